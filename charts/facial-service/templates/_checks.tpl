{{/* Settings that the chart manages, with the values to use instead. An empty string means that there is none. */}}
{{- define "facial-service.managedSettings" -}}
HOST: ""
PORT: ""
METRICS_PORT: ""
METRICS_ON_API_PORT: api.service.exposeMetrics
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
{{- include "facial-service.checkNames" (dict "path" "env" "given" (include "facial-service.envMap" .Values.env | fromJson) "managed" $managed "rejected" $read) }}
{{- range $component := list "api" "worker" }}
{{- $values := get $.Values $component }}
{{- include "facial-service.checkNames" (dict "path" (printf "%s.settings" $component) "given" $values.settings "managed" $managed "rejected" $shared) }}
{{- include "facial-service.checkNames" (dict "path" (printf "%s.env" $component) "given" (include "facial-service.envMap" $values.env | fromJson) "managed" $managed "rejected" (merge dict $shared $read)) }}
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

{{- define "facial-service.checkTracing" -}}
{{- if contains "@" (include "facial-service.tracingEndpoint" .) }}
tracing.endpoint: credentials in a URL would be visible in every pod specification; put a header into a Secret and set tracing.existingSecret
{{- end }}
{{- if and .Values.tracing.existingSecret (not .Values.tracing.endpoint) }}
tracing.existingSecret: it has no effect without a collector; set tracing.endpoint, or leave it empty
{{- end }}
{{- end }}

{{- define "facial-service.checkQueue" -}}
{{- $external := .Values.externalNats }}
{{- if .Values.nats.enabled }}
{{- range $name := list "url" "monitorUrl" "existingSecret" "credsSecret" "tlsSecret" "caConfigMap" }}
{{- if get $external $name }}
externalNats.{{ $name }}: it has no effect while nats.enabled is true; set nats.enabled to false, or leave externalNats.{{ $name }} empty
{{- end }}
{{- end }}
{{- else if .Values.nats.auth.existingSecret }}
nats.auth.existingSecret: it has no effect while nats.enabled is false; set externalNats.existingSecret instead
{{- else if .Values.nats.tls.existingSecret }}
nats.tls.existingSecret: it has no effect while nats.enabled is false; set externalNats.tlsSecret instead
{{- else if and .Values.worker.enabled (not $external.url) }}
nats.enabled: workers need a queue; set it to true, set externalNats.url, or set worker.enabled to false to run without tasks
{{- end }}
{{- range $name := list "url" "monitorUrl" }}
{{- if contains "@" (include "facial-service.externalUrl" (dict "root" $ "name" $name)) }}
externalNats.{{ $name }}: credentials in a URL would be visible in every pod specification; put them into a Secret and set externalNats.existingSecret
{{- end }}
{{- end }}
{{- if and (not $external.existingSecret) (or $external.userKey $external.passwordKey $external.tokenKey $external.nkeySeedKey) }}
externalNats.userKey, passwordKey, tokenKey and nkeySeedKey: they are keys of a Secret; set externalNats.existingSecret
{{- end }}
{{- if ne (empty $external.userKey) (empty $external.passwordKey) }}
externalNats.userKey and externalNats.passwordKey: a user needs a password; set both or neither
{{- end }}
{{- if gt (len (compact (list $external.userKey $external.tokenKey $external.nkeySeedKey))) 1 }}
externalNats.userKey, tokenKey and nkeySeedKey: only one authentication method can be used; set one of them
{{- end }}
{{- if and .Values.nats.tls.caConfigMap (not .Values.nats.tls.existingSecret) }}
nats.tls.caConfigMap: the servers need a certificate; set nats.tls.existingSecret
{{- end }}
{{- range $path, $tls := dict "nats.tls" .Values.nats.tls "externalNats" $external }}
{{- if and $tls.caConfigMap (not $tls.caKey) }}
{{ $path }}.caKey: the CA certificate in {{ $path }}.caConfigMap needs a key; set {{ $path }}.caKey
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
{{- include "facial-service.checkNatsImage" . }}
{{- include "facial-service.checkNatsStorage" . }}
{{- with .Values.nats.persistence }}
{{- if and .existingClaim (not .enabled) }}
nats.persistence.existingClaim: it has no effect while nats.persistence.enabled is false; set nats.persistence.enabled to true
{{- else if and .existingClaim (gt (int $.Values.nats.replicas) 1) }}
nats.persistence.existingClaim: several servers cannot share a claim; set nats.replicas to 1, or leave it empty
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* The default digest would take precedence over another tag, and some versions of NATS lose records. */}}
{{- define "facial-service.checkNatsImage" -}}
{{- with .Values.nats.image }}
{{- if and .repository (ne .tag "2.15.0-alpine") (eq .digest "sha256:ac8f88a6494bffc2c2a5289a0ca61cb28a9145c11ba5677cf24265d07f46d8d4") }}
nats.image.tag: the digest of the default version takes precedence over the tag {{ .tag }}; set nats.image.digest too, or set it to empty
{{- else if and .repository (not .digest) (not .tag) }}
nats.image.tag: the image needs a version; set nats.image.tag or nats.image.digest
{{- end }}
{{- with regexFind "^v?[0-9]+[.][0-9]+([.][0-9]+)?" .tag }}
{{- if or (semverCompare "<2.11.0" .) (semverCompare ">=2.12.7 <=2.12.9" .) }}
nats.image.tag: the service does not support NATS {{ . }}; set a version from 2.11 on, except 2.12.7 to 2.12.9
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/*
Streams reserve their limits in the storage of a server, and keep those of the release that is upgraded until the service
changes them. A server whose storage is less can change no stream; before NATS 2.12, it does not load them.
*/}}
{{- define "facial-service.checkNatsStorage" -}}
{{- $name := include "facial-service.fullname" . }}
{{- $size := .Values.nats.persistence.size }}
{{- if and .Release.IsUpgrade .Values.nats.persistence.enabled (lookup "v1" "ConfigMap" .Release.Namespace (printf "%s-nats" $name)) }}
{{- $current := dig "data" dict (lookup "v1" "ConfigMap" .Release.Namespace (printf "%s-settings" $name) | default dict) }}
{{- $reserved := add (get $current "TASK_QUEUE_MAX_BYTES" | default 1073741824 | int64) (get $current "TASK_DEAD_MAX_BYTES" | default 268435456 | int64) }}
{{- if lt (include "facial-service.storeBytes" . | int64) $reserved }}
nats.persistence.size: {{ include "facial-service.text" $size }} is too small for the existing streams, which reserve {{ div $reserved 1048576 }}Mi until the service has lowered their limits; upgrade with the lower limits in `settings` and the current size first, then lower the size
{{- end }}
{{- end }}
{{- end }}

{{/* A single server and a cluster store streams differently: a cluster deletes the streams of a single server. */}}
{{- define "facial-service.checkNatsReplicas" -}}
{{- $name := printf "%s-nats" (include "facial-service.fullname" .) }}
{{- $current := lookup "apps/v1" "StatefulSet" .Release.Namespace $name }}
{{- if and .Release.IsUpgrade $current .Values.nats.persistence.enabled (not .Values.nats.persistence.existingClaim) }}
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

{{- define "facial-service.checkFullName" -}}
{{- $name := include "facial-service.fullname" . }}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) }}
fullnameOverride: the object name {{ $name }} is not valid for a Service (RFC 1035: letters, digits and dashes, a letter first); set fullnameOverride
{{- end }}
{{- end }}

{{- define "facial-service.checkNetwork" -}}
{{- if .Values.pathPrefix }}
{{- range $path, $settings := dict "settings" (.Values.settings | default dict) "api.settings" (.Values.api.settings | default dict) }}
{{- if get $settings "ROOT_PATH" }}
{{ $path }}.ROOT_PATH: pathPrefix sets it; remove one of them
{{- end }}
{{- end }}
{{- end }}
{{- $service := .Values.api.service }}
{{- if and (eq $service.type "ClusterIP") $service.externalTrafficPolicy }}
api.service.externalTrafficPolicy: it has no effect for the type ClusterIP; set api.service.type to NodePort or LoadBalancer
{{- end }}
{{- if and $service.exposeMetrics (not (include "facial-service.isApiPortPublic" .)) }}
api.service.exposeMetrics: it has no effect for the type ClusterIP; set api.service.type to NodePort or LoadBalancer
{{- end }}
{{- if ne $service.type "LoadBalancer" }}
{{- range $name := list "loadBalancerClass" "loadBalancerSourceRanges" }}
{{- if get $service $name }}
api.service.{{ $name }}: it has no effect for the type {{ $service.type }}; set api.service.type to LoadBalancer
{{- end }}
{{- end }}
{{- end }}
{{- range include "facial-service.ingressHosts" . | fromJsonArray }}
{{- if not .host }}
ingress.hosts: a host needs a name; set host in each item
{{- end }}
{{- range .paths }}
{{- if not (hasPrefix "/" (.path | default "")) }}
ingress.hosts: the path {{ .path | default "" | quote }} must begin with a slash
{{- end }}
{{- end }}
{{- end }}
{{- $families := .Values.ipFamilies | default list }}
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
{{- range concat (.Values.extraVolumes | default list) (.Values.api.extraVolumes | default list) (.Values.worker.extraVolumes | default list) }}
{{- if has .name (list "metrics" "tmp" "nats-access" "api-keys") }}
extraVolumes: the name {{ .name }} is reserved for a volume of the chart; choose another name
{{- end }}
{{- end }}
{{- range .Values.nats.extraVolumes }}
{{- if has .name (list "configuration" "tls" "store" "cluster-store") }}
nats.extraVolumes: the name {{ .name }} is reserved for a volume of the chart; choose another name
{{- end }}
{{- end }}
{{- range .Values.worker.keda.triggers }}
{{- if hasPrefix "lane" (.name | default "") }}
worker.keda.triggers: the name {{ .name }} is reserved for a trigger of the chart; choose another name
{{- end }}
{{- end }}
{{- if and (has .Values.dnsPolicy (list "None")) (not (dig "nameservers" "" (.Values.dnsConfig | default dict))) }}
dnsPolicy: without name servers no name resolves; set dnsConfig.nameservers
{{- end }}
{{- range .Values.extraContainers }}
{{- if has .name (list "api" "worker") }}
extraContainers: the name {{ .name }} is reserved for a container of the chart; choose another name
{{- end }}
{{- end }}
{{- end }}

{{/*
Values whose strings may contain `{{`: those that are rendered as templates, and texts in the language of another program,
such as alerts. Others would reach Kubernetes as they are.
*/}}
{{- define "facial-service.openedValues" -}}
{{- list "global" "settings" "env" "envFrom" "imagePullSecrets" "commonLabels" "podLabels" "podAnnotations" "apiKeys.existingSecret" "externalNats.url" "externalNats.monitorUrl" "externalNats.existingSecret" "externalNats.credsSecret" "externalNats.tlsSecret" "externalNats.caConfigMap" "nats.auth.existingSecret" "nats.tls.existingSecret" "nats.tls.caConfigMap" "nats.persistence.existingClaim" "nats.persistence.annotations" "api.service.annotations" "api.service.labels" "worker.keda.labels" "worker.keda.triggers" "worker.keda.formula" "metrics.labels" "metrics.probe.proberUrl" "metrics.probe.url" "metrics.relabelings" "metrics.metricRelabelings" "metrics.endpointFields" "metrics.monitorFields" "prometheusRule.labels" "prometheusRule.additionalLabels" "prometheusRule.overrides" "prometheusRule.additionalGroups" "prometheusRule.runbookBaseUrl" "prometheusRule.dashboardBaseUrl" "dashboards.labels" "dashboards.annotations" "ingress.annotations" "ingress.labels" "ingress.hosts" "ingress.tls" "httpRoute.annotations" "httpRoute.labels" "httpRoute.parentRefs" "httpRoute.hostnames" "serviceAccount.name" "serviceAccount.annotations" "tracing.endpoint" "tracing.existingSecret" "extraVolumes" "extraContainers" "extraInitContainers" "extraObjects" | toJson }}
{{- end }}

{{/* Errors for strings with `{{` that the chart does not render: (dict "path" "nats" "value" .Values.nats "opened" $names). */}}
{{- define "facial-service.checkBraces" -}}
{{- $call := . }}
{{- $path := regexReplaceAll "^(api|worker|nats)[.](settings|env|annotations|podAnnotations|lifecycle|extraVolumes)$" .path "global" }}
{{- if has $path .opened }}
{{- else if kindIs "map" .value }}
{{- range $name, $item := .value }}
{{- include "facial-service.checkBraces" (dict "path" (ternary $name (printf "%s.%s" $call.path $name) (empty $call.path)) "value" $item "opened" $call.opened) }}
{{- end }}
{{- else if and (or (kindIs "slice" .value) (kindIs "string" .value)) (contains "{{" (toJson .value)) }}
{{ .path }}: the chart does not render this value as a template; replace the text that contains {{ "{{" }}
{{- end }}
{{- end }}

{{- define "facial-service.checkTemplates" -}}
{{- if contains "{{" (toJson .Values) }}
{{- include "facial-service.checkBraces" (dict "path" "" "value" (deepCopy .Values) "opened" (include "facial-service.openedValues" . | fromJsonArray)) }}
{{- end }}
{{- end }}

{{/* Fail with all contradictions in the values at once. */}}
{{- define "facial-service.checks" -}}
{{- $errors := list }}
{{- range list "Settings" "Grace" "Queue" "Tracing" "Scaling" "Memory" "Metrics" "Objectives" "FullName" "Network" "Pods" "Templates" }}
{{- with trim (include (printf "facial-service.check%s" .) $) }}{{ $errors = append $errors . }}{{ end }}
{{- end }}
{{- with $errors }}
{{- fail (printf "\n\n%s\n" (join "\n" .)) }}
{{- end }}
{{- end }}
