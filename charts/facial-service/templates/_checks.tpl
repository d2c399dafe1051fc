{{/* Settings that the chart sets itself, and what to set instead; without that, nothing can be. */}}
{{- define "facial-service.ownSettings" -}}
HOST: ""
PORT: ""
METRICS_PORT: ""
PROMETHEUS_MULTIPROC_DIR: ""
DATA_DIR: ""
LOG_FILE: ""
MODELS_DIR: ""
WORKERS: api.workers
TASK_WORKERS: worker.processes
GRACEFUL_TIMEOUT_S: api.gracefulTimeoutSeconds and worker.gracefulTimeoutSeconds
ENABLE_TASKS: worker.enabled
API_KEYS: apiKeys.existingSecret
API_KEYS_FILE: apiKeys.existingSecret
NATS_URL: nats.enabled or externalNats.url
NATS_MONITOR_URL: externalNats.monitorUrl
NATS_REPLICAS: nats.replicas or externalNats.replicas
NATS_SYNC_INTERVAL: nats.syncInterval
NATS_TOKEN: nats.auth.existingSecret or externalNats.existingSecret
NATS_USER: externalNats.existingSecret
NATS_PASSWORD: externalNats.existingSecret
NATS_NKEY_SEED: externalNats.existingSecret
NATS_CREDS_FILE: externalNats.credsSecret
NATS_TLS_CA_FILE: externalNats.tlsSecret
NATS_TLS_CERT_FILE: externalNats.tlsSecret
NATS_TLS_KEY_FILE: externalNats.tlsSecret
{{- end }}

{{/*
Settings that API and workers have to agree on, as JSON: both keep the streams in line with theirs, write and read the
same records, and a task that one accepts is checked again by the other.
*/}}
{{- define "facial-service.sharedSettings" -}}
{{- list "TASK_QUEUE_MAX_MESSAGES" "TASK_QUEUE_MAX_BYTES" "TASK_DEAD_MAX_BYTES" "TASK_ACK_WAIT_S" "TASK_DURATION_BUCKETS" "TASK_WAIT_BUCKETS" "RESULT_TTL" "RESULT_MAX_BYTES" "RESULT_CACHE" "MAX_IMAGE_PIXELS" "LANDMARK_MARGIN" | toJson }}
{{- end }}

{{/* Settings that the chart reads to make something else of, as JSON; as variables it would not see them. */}}
{{- define "facial-service.readSettings" -}}
{{- list "MAX_BODY_BYTES" "ENABLE_METRICS" "TASK_QUEUE_MAX_BYTES" "RESULT_MAX_BYTES" "TASK_DEAD_MAX_BYTES" | toJson }}
{{- end }}

{{/*
Names that are refused, one sentence a line: (dict "path" "api.env" "given" .Values.api.env "own" $own "refused" (dict
"NAME" "why")).
*/}}
{{- define "facial-service.checkNames" -}}
{{- $check := . }}
{{- range $name, $value := .given }}
{{- $upper := upper $name }}
{{- if hasKey $check.own $upper }}
{{- $instead := get $check.own $upper }}
{{ $check.path }}.{{ $name }}: the chart sets {{ $upper }} itself; {{ if $instead }}set {{ $instead }} instead{{ else }}leave it out{{ end }}
{{- else if hasKey $check.refused $upper }}
{{ $check.path }}.{{ $name }}: {{ get $check.refused $upper }}; set it in `settings`
{{- end }}
{{- end }}
{{- end }}

{{- /* Of `settings`, the schema lets through none of these; whoever passes it over is told here. */}}
{{- define "facial-service.checkSettings" -}}
{{- $own := include "facial-service.ownSettings" . | fromYaml }}
{{- $shared := dict }}
{{- range include "facial-service.sharedSettings" . | fromJsonArray }}
{{- $_ := set $shared . "API and workers have to agree on it" }}
{{- end }}
{{- $read := dict }}
{{- range include "facial-service.readSettings" . | fromJsonArray }}
{{- $_ := set $read . "the chart has to know it, and does not read variables" }}
{{- end }}
{{- include "facial-service.checkNames" (dict "path" "settings" "given" .Values.settings "own" $own "refused" dict) }}
{{- include "facial-service.checkNames" (dict "path" "env" "given" .Values.env "own" $own "refused" $read) }}
{{- range $component := list "api" "worker" }}
{{- $values := get $.Values $component }}
{{- include "facial-service.checkNames" (dict "path" (printf "%s.settings" $component) "given" $values.settings "own" $own "refused" $shared) }}
{{- include "facial-service.checkNames" (dict "path" (printf "%s.env" $component) "given" $values.env "own" $own "refused" (merge dict $shared $read)) }}
{{- end }}
{{- end }}

{{- define "facial-service.checkGrace" -}}
{{- range $component := ternary (list "api" "worker") (list "api") .Values.worker.enabled }}
{{- $grace := (get $.Values $component).terminationGracePeriodSeconds }}
{{- $least := include "facial-service.stopSeconds" (dict "root" $ "component" $component) | int }}
{{- if and (not (kindIs "invalid" $grace)) (lt (int $grace) $least) }}
{{ $component }}.terminationGracePeriodSeconds: {{ int $grace }} s end what is under way by force; its end takes up to {{ $least }} s ({{ if eq $component "api" }}preStopSeconds, {{ end }}gracefulTimeoutSeconds, and {{ include "facial-service.stopMarginSeconds" $component }} s for the master), so set {{ $least }} or more, or leave it empty
{{- end }}
{{- end }}
{{- $least := include "facial-service.lameDuckSeconds" . | int }}
{{- if and (include "facial-service.hasNats" .) (gt (int .Values.nats.replicas) 1) (lt (int .Values.nats.terminationGracePeriodSeconds) $least) }}
nats.terminationGracePeriodSeconds: {{ int .Values.nats.terminationGracePeriodSeconds }} s are too short for a server of a cluster to hand over its clients and streams; set {{ $least }} or more
{{- end }}
{{- end }}

{{- define "facial-service.checkQueue" -}}
{{- $external := .Values.externalNats }}
{{- if .Values.nats.enabled }}
{{- range $name := list "url" "monitorUrl" "existingSecret" "credsSecret" "tlsSecret" }}
{{- if get $external $name }}
externalNats.{{ $name }}: tasks go to this release's own server as long as nats.enabled is true; set that to false, or leave externalNats.{{ $name }} empty
{{- end }}
{{- end }}
{{- else if .Values.nats.auth.existingSecret }}
nats.auth.existingSecret: it is for this release's own server, and nats.enabled is false; set externalNats.existingSecret instead
{{- else if and .Values.worker.enabled (not $external.url) }}
nats.enabled: without a queue of its own the release needs another; set externalNats.url, or worker.enabled to false for a service without tasks
{{- end }}
{{- range $name := list "url" "monitorUrl" }}
{{- if contains "@" (get $external $name) }}
externalNats.{{ $name }}: an address with a password in it would stand in the clear in every pod; name a Secret in externalNats.existingSecret
{{- end }}
{{- end }}
{{- if and $external.existingSecret $external.credsSecret }}
externalNats.existingSecret and externalNats.credsSecret: servers take one way to authenticate; choose one
{{- end }}
{{- if and $external.tlsClientCertificate (not $external.tlsSecret) }}
externalNats.tlsClientCertificate: there is no Secret to take the certificate from; set externalNats.tlsSecret
{{- end }}
{{- if include "facial-service.hasNats" . }}
{{- $bounds := include "facial-service.queueBounds" . | int64 }}
{{- if lt (include "facial-service.storeBytes" . | int64) (mul 2 $bounds) }}
{{- $least := divf (mul 2 $bounds) 0.9 1048576 | ceil }}
nats.persistence.size: {{ include "facial-service.text" .Values.nats.persistence.size }} cannot hold what TASK_QUEUE_MAX_BYTES, RESULT_MAX_BYTES and TASK_DEAD_MAX_BYTES allow ({{ div $bounds 1048576 }}Mi): it takes twice that, for what is deleted goes later, and a tenth for the file system; set {{ $least }}Mi or more, or lower them in `settings`
{{- end }}
{{- include "facial-service.checkServers" . }}
{{- end }}
{{- end }}

{{/* One server and a cluster keep their streams in different ways: a cluster deletes what a single server has left. */}}
{{- define "facial-service.checkServers" -}}
{{- $name := printf "%s-nats" (include "facial-service.fullname" .) }}
{{- $now := lookup "apps/v1" "StatefulSet" .Release.Namespace $name }}
{{- if and .Release.IsUpgrade $now .Values.nats.persistence.enabled }}
{{- $had := int (dig "spec" "replicas" 1 $now) }}
{{- if and $had (ne (gt $had 1) (gt (int .Values.nats.replicas) 1)) }}
nats.replicas: {{ $had }} to {{ int .Values.nats.replicas }} would leave every task behind; let the queue run empty, delete the StatefulSet {{ $name }}, and upgrade then
{{- else if gt $had (int .Values.nats.replicas) }}
nats.replicas: {{ $had }} to {{ int .Values.nats.replicas }} would leave a cluster that still counts those that are gone, and none of the rest could go; keep {{ $had }}, or let the queue run empty, delete the StatefulSet {{ $name }}, and upgrade then
{{- end }}
{{- end }}
{{- end }}

{{- define "facial-service.checkScaling" -}}
{{- if and .Values.worker.enabled .Values.worker.autoscaling.enabled .Values.worker.keda.enabled }}
worker.autoscaling.enabled and worker.keda.enabled: two autoscalers would fight over the same pods; choose one
{{- end }}
{{- end }}

{{- define "facial-service.checkMetrics" -}}
{{- $isOff := has (include "facial-service.setting" (dict "root" . "component" "api" "name" "ENABLE_METRICS" "default" true) | lower) (list "false" "0" "no" "off" "f" "n") }}
{{- if and $isOff (or .Values.metrics.serviceMonitor.enabled .Values.metrics.podMonitor.enabled) }}
settings.ENABLE_METRICS: there would be nothing for Prometheus to read, and every target down; turn off metrics.serviceMonitor and metrics.podMonitor, or leave it out
{{- end }}
{{- end }}

{{- define "facial-service.checkPods" -}}
{{- if and .Values.api.service.nodePort (eq .Values.api.service.type "ClusterIP") }}
api.service.nodePort: a Service of type ClusterIP has no port on nodes; set api.service.type to NodePort or LoadBalancer
{{- end }}
{{- range .Values.extraVolumes }}
{{- if has .name (list "metrics" "tmp" "nats-access") }}
extraVolumes: the chart has a volume called {{ .name }} already; choose another name
{{- end }}
{{- end }}
{{- range .Values.extraContainers }}
{{- if has .name (list "api" "worker") }}
extraContainers: the chart has a container called {{ .name }} already; choose another name
{{- end }}
{{- end }}
{{- end }}

{{/* Says everything that contradicts itself, at once. */}}
{{- define "facial-service.checks" -}}
{{- $found := list }}
{{- range list "Settings" "Grace" "Queue" "Scaling" "Metrics" "Pods" }}
{{- with trim (include (printf "facial-service.check%s" .) $) }}{{ $found = append $found . }}{{ end }}
{{- end }}
{{- with $found }}
{{- fail (printf "\n\n%s\n" (join "\n" .)) }}
{{- end }}
{{- end }}
