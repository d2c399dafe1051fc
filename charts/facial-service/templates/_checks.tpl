{{/* Settings that the chart manages, with the values to use instead. An empty string means that there is none. */}}
{{- define "facial-service.managedSettings" -}}
HOST: ""
PORT: ""
METRICS_PORT: ""
PROMETHEUS_MULTIPROC_DIR: ""
DATA_DIR: ""
LOG_FILE: ""
MODELS_DIR: ""
SLO_LATENCY_THRESHOLD_S: slo.latency.threshold
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
Settings that must be equal for the API and the workers, as a JSON list. Both configure the streams and access the same
records, and the worker validates again what the API has accepted.
*/}}
{{- define "facial-service.sharedSettings" -}}
{{- list "TASK_QUEUE_MAX_MESSAGES" "TASK_QUEUE_MAX_BYTES" "TASK_DEAD_MAX_BYTES" "TASK_ACK_WAIT_S" "TASK_DURATION_BUCKETS" "TASK_WAIT_BUCKETS" "RESULT_TTL" "RESULT_MAX_BYTES" "RESULT_CACHE" "MAX_IMAGE_PIXELS" "LANDMARK_MARGIN" | toJson }}
{{- end }}

{{/* Settings that templates read, as a JSON list. Templates cannot read them from environment variables. */}}
{{- define "facial-service.readSettings" -}}
{{- list "MAX_BODY_BYTES" "MAX_CONCURRENCY" "MAX_IMAGE_PIXELS" "WORK_THREADS" "ENABLE_METRICS" "TASK_QUEUE_MAX_BYTES" "RESULT_MAX_BYTES" "TASK_DEAD_MAX_BYTES" | toJson }}
{{- end }}

{{/*
Error messages for rejected names, one per line: (dict "path" "api.env" "given" .Values.api.env "managed" $managed
"rejected" (dict "NAME" "reason")).
*/}}
{{- define "facial-service.checkNames" -}}
{{- $check := . }}
{{- range $name, $value := .given }}
{{- $upper := upper $name }}
{{- if hasKey $check.managed $upper }}
{{- $instead := get $check.managed $upper }}
{{ $check.path }}.{{ $name }}: the chart manages {{ $upper }}; {{ if $instead }}set {{ $instead }} instead{{ else }}remove it{{ end }}
{{- else if hasKey $check.rejected $upper }}
{{ $check.path }}.{{ $name }}: {{ get $check.rejected $upper }}; set it in `settings`
{{- end }}
{{- end }}
{{- end }}

{{- /* The schema rejects these settings too; this check also works with --skip-schema-validation. */}}
{{- define "facial-service.checkSettings" -}}
{{- $managed := include "facial-service.managedSettings" . | fromYaml }}
{{- $shared := dict }}
{{- range include "facial-service.sharedSettings" . | fromJsonArray }}
{{- $_ := set $shared . "it must be the same for the API and the workers" }}
{{- end }}
{{- $read := dict }}
{{- range include "facial-service.readSettings" . | fromJsonArray }}
{{- $_ := set $read . "the chart needs its value and cannot read environment variables" }}
{{- end }}
{{- include "facial-service.checkNames" (dict "path" "settings" "given" .Values.settings "managed" $managed "rejected" dict) }}
{{- include "facial-service.checkNames" (dict "path" "env" "given" .Values.env "managed" $managed "rejected" $read) }}
{{- range $component := list "api" "worker" }}
{{- $values := get $.Values $component }}
{{- include "facial-service.checkNames" (dict "path" (printf "%s.settings" $component) "given" $values.settings "managed" $managed "rejected" $shared) }}
{{- include "facial-service.checkNames" (dict "path" (printf "%s.env" $component) "given" $values.env "managed" $managed "rejected" (merge dict $shared $read)) }}
{{- end }}
{{- end }}

{{- define "facial-service.checkGrace" -}}
{{- range $component := ternary (list "api" "worker") (list "api") .Values.worker.enabled }}
{{- $grace := (get $.Values $component).terminationGracePeriodSeconds }}
{{- $minimum := include "facial-service.stopSeconds" (dict "root" $ "component" $component) | int }}
{{- if and (not (kindIs "invalid" $grace)) (lt (int $grace) $minimum) }}
{{ $component }}.terminationGracePeriodSeconds: {{ int $grace }} s is too short, because a graceful shutdown takes up to {{ $minimum }} s ({{ if eq $component "api" }}preStopSeconds, {{ end }}gracefulTimeoutSeconds, and {{ include "facial-service.stopMarginSeconds" $component }} s for the master); set {{ $minimum }} or more, or leave it empty
{{- end }}
{{- end }}
{{- $minimum := include "facial-service.lameDuckSeconds" . | int }}
{{- if and (include "facial-service.hasNats" .) (gt (int .Values.nats.replicas) 1) (lt (int .Values.nats.terminationGracePeriodSeconds) $minimum) }}
nats.terminationGracePeriodSeconds: {{ int .Values.nats.terminationGracePeriodSeconds }} s is too short for a server of a cluster to transfer its clients and streams; set {{ $minimum }} or more
{{- end }}
{{- end }}

{{- define "facial-service.checkQueue" -}}
{{- $external := .Values.externalNats }}
{{- if .Values.nats.enabled }}
{{- range $name := list "url" "monitorUrl" "existingSecret" "credsSecret" "tlsSecret" }}
{{- if get $external $name }}
externalNats.{{ $name }}: it has no effect while nats.enabled is true; set nats.enabled to false, or leave externalNats.{{ $name }} empty
{{- end }}
{{- end }}
{{- else if .Values.nats.auth.existingSecret }}
nats.auth.existingSecret: it has no effect while nats.enabled is false; set externalNats.existingSecret instead
{{- else if and .Values.worker.enabled (not $external.url) }}
nats.enabled: workers need a queue; set it to true, set externalNats.url, or set worker.enabled to false to run without tasks
{{- end }}
{{- range $name := list "url" "monitorUrl" }}
{{- if contains "@" (get $external $name) }}
externalNats.{{ $name }}: credentials in a URL would be visible in every pod specification; put them into a Secret and set externalNats.existingSecret
{{- end }}
{{- end }}
{{- if and $external.existingSecret $external.credsSecret }}
externalNats.existingSecret and externalNats.credsSecret: only one authentication method can be used; set one of them
{{- end }}
{{- if and $external.tlsClientCertificate (not $external.tlsSecret) }}
externalNats.tlsClientCertificate: the client certificate needs a Secret; set externalNats.tlsSecret
{{- end }}
{{- if include "facial-service.hasNats" . }}
{{- $bounds := include "facial-service.queueBounds" . | int64 }}
{{- if lt (include "facial-service.storeBytes" . | int64) (mul 2 $bounds) }}
{{- $minimum := divf (mul 2 $bounds) 0.9 1048576 | ceil }}
nats.persistence.size: {{ include "facial-service.text" .Values.nats.persistence.size }} is too small for TASK_QUEUE_MAX_BYTES, RESULT_MAX_BYTES and TASK_DEAD_MAX_BYTES ({{ div $bounds 1048576 }}Mi in total), because the volume needs twice the total and a tenth for the file system; set {{ $minimum }}Mi or more, or lower these limits in `settings`
{{- end }}
{{- include "facial-service.checkNatsReplicas" . }}
{{- end }}
{{- end }}

{{/* A single server and a cluster store streams differently: a cluster deletes the streams of a single server. */}}
{{- define "facial-service.checkNatsReplicas" -}}
{{- $name := printf "%s-nats" (include "facial-service.fullname" .) }}
{{- $current := lookup "apps/v1" "StatefulSet" .Release.Namespace $name }}
{{- if and .Release.IsUpgrade $current .Values.nats.persistence.enabled }}
{{- $currentReplicas := int (dig "spec" "replicas" 1 $current) }}
{{- if and $currentReplicas (ne (gt $currentReplicas 1) (gt (int .Values.nats.replicas) 1)) }}
nats.replicas: a change from {{ $currentReplicas }} to {{ int .Values.nats.replicas }} would lose every task; wait until the queue is empty, delete the StatefulSet {{ $name }}, then upgrade
{{- else if gt $currentReplicas (int .Values.nats.replicas) }}
nats.replicas: a change from {{ $currentReplicas }} to {{ int .Values.nats.replicas }} is not possible, because the cluster still counts the removed servers as peers and no other server could stop; keep {{ $currentReplicas }}, or wait until the queue is empty, delete the StatefulSet {{ $name }}, then upgrade
{{- end }}
{{- end }}
{{- end }}

{{- define "facial-service.checkScaling" -}}
{{- if and .Values.worker.enabled .Values.worker.autoscaling.enabled .Values.worker.keda.enabled }}
worker.autoscaling.enabled and worker.keda.enabled: only one autoscaler can manage the worker pods; enable one of them
{{- end }}
{{- end }}

{{/*
The memory limits must suffice for the largest images and bodies in all processes at once. docs/limits.md explains the
sum: 100 MiB for master and exporter, 128 MiB per process, 12 bytes per pixel and thread; for the API, also 96 MiB for
the express thread and the bodies of all slots, and for the workers, 64 MiB for a message and its result.
*/}}
{{- define "facial-service.checkMemory" -}}
{{- range $component, $processes := dict "api" .Values.api.workers "worker" .Values.worker.processes }}
{{- $limit := dig "resources" "limits" "memory" "" (get $.Values $component) }}
{{- if and $limit (or (eq $component "api") $.Values.worker.enabled) }}
{{- $get := dict "root" $ "component" $component }}
{{- $pixels := include "facial-service.setting" (merge (dict "name" "MAX_IMAGE_PIXELS" "default" 64000000) $get) | int64 }}
{{- $threads := include "facial-service.setting" (merge (dict "name" "WORK_THREADS" "default" 1) $get) | int64 }}
{{- $other := 64 }}
{{- $names := "MAX_IMAGE_PIXELS" }}
{{- if eq $component "api" }}
{{- $slots := include "facial-service.setting" (merge (dict "name" "MAX_CONCURRENCY" "default" 16) $get) | int64 }}
{{- $body := include "facial-service.setting" (merge (dict "name" "MAX_BODY_BYTES" "default" 16777216) $get) | int64 }}
{{- $other = mulf $slots (divf $body 1048576) | ceil | int64 | add 96 }}
{{- $names = "MAX_IMAGE_PIXELS, MAX_CONCURRENCY or MAX_BODY_BYTES" }}
{{- end }}
{{- $image := divf (mul 12 $pixels $threads) 1048576 | ceil | int64 }}
{{- $minimum := add 100 (mul (int64 $processes) (add 128 $image $other)) }}
{{- if lt (include "facial-service.bytes" $limit | int64) (mul $minimum 1048576) }}
{{ $component }}.resources.limits.memory: {{ include "facial-service.text" $limit }} is too small for the largest images in {{ int $processes }} {{ int $processes | plural "process" "processes" }}, so the kernel would kill them; set {{ $minimum }}Mi or more, or lower {{ $names }} in `settings` or {{ eq $component "api" | ternary "api.workers" "worker.processes" }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "facial-service.checkMetrics" -}}
{{- $isOff := has (include "facial-service.setting" (dict "root" . "component" "api" "name" "ENABLE_METRICS" "default" true) | lower) (list "false" "0" "no" "off" "f" "n") }}
{{- if and $isOff (or .Values.metrics.serviceMonitor.enabled .Values.metrics.podMonitor.enabled) }}
settings.ENABLE_METRICS: without metrics every Prometheus target would be down; disable metrics.serviceMonitor and metrics.podMonitor, or set it to true
{{- end }}
{{- end }}

{{- define "facial-service.checkNetwork" -}}
{{- $families := .Values.ipFamilies }}
{{- if ne (len $families) (len (uniq $families)) }}
ipFamilies: {{ join ", " $families }} has a family twice; list each family once
{{- else if and (gt (len $families) 1) (not (has .Values.ipFamilyPolicy (list "PreferDualStack" "RequireDualStack"))) }}
ipFamilies: two families need a Service with addresses of both; set ipFamilyPolicy to PreferDualStack or RequireDualStack
{{- end }}
{{- end }}

{{- define "facial-service.checkPods" -}}
{{- if and .Values.api.service.nodePort (eq .Values.api.service.type "ClusterIP") }}
api.service.nodePort: a Service of type ClusterIP has no node port; set api.service.type to NodePort or LoadBalancer
{{- end }}
{{- range .Values.extraVolumes }}
{{- if has .name (list "metrics" "tmp" "nats-access") }}
extraVolumes: the name {{ .name }} is reserved for a volume of the chart; choose another name
{{- end }}
{{- end }}
{{- range .Values.extraContainers }}
{{- if has .name (list "api" "worker") }}
extraContainers: the name {{ .name }} is reserved for a container of the chart; choose another name
{{- end }}
{{- end }}
{{- end }}

{{/* Fail with all contradictions in the values at once. */}}
{{- define "facial-service.checks" -}}
{{- $errors := list }}
{{- range list "Settings" "Grace" "Queue" "Scaling" "Memory" "Metrics" "Objectives" "Network" "Pods" }}
{{- with trim (include (printf "facial-service.check%s" .) $) }}{{ $errors = append $errors . }}{{ end }}
{{- end }}
{{- with $errors }}
{{- fail (printf "\n\n%s\n" (join "\n" .)) }}
{{- end }}
{{- end }}
