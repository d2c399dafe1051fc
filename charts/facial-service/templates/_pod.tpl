{{/*
Format a value as the string of an environment variable. Integers have no exponent (Helm reads 1073741824 from a file as
1.073741824e+09), and lists are joined by commas.
*/}}
{{- define "facial-service.text" -}}
{{- if kindIs "float64" . }}
{{- ternary (printf "%.0f" .) (toString .) (eq (floor .) .) }}
{{- else if kindIs "slice" . }}
{{- $texts := list }}
{{- range . }}{{ $texts = append $texts (include "facial-service.text" .) }}{{ end }}
{{- join "," $texts }}
{{- else if not (kindIs "invalid" .) }}
{{- toString . }}
{{- end }}
{{- end }}

{{/* Convert a Kubernetes quantity, such as 8Gi or 1.5G, to bytes. */}}
{{- define "facial-service.bytes" -}}
{{- $text := include "facial-service.text" . }}
{{- $units := dict "m" 1e-3 "" 1 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624 "Ei" 1152921504606846976 }}
{{- $number := regexFind "^[0-9]+([.][0-9]*)?([eE][0-9]+)?" $text }}
{{- $unit := trimPrefix $number $text }}
{{- if or (not $number) (not (hasKey $units $unit)) }}
{{- fail (printf "expected a quantity of memory or storage such as 512Mi or 8Gi, got %s" $text) }}
{{- end }}
{{- printf "%.0f" (mulf (float64 $number) (get $units $unit)) }}
{{- end }}

{{/* Effective value of a component's setting: (dict "root" $ "component" "api" "name" "MAX_BODY_BYTES" "default" 1). */}}
{{- define "facial-service.setting" -}}
{{- $settings := mergeOverwrite (deepCopy (.root.Values.settings | default dict)) (deepCopy ((get .root.Values .component).settings | default dict)) }}
{{- include "facial-service.text" (get $settings .name) | default (include "facial-service.text" .default) }}
{{- end }}

{{/* Total size limit of the queue's streams, in bytes, with the defaults of app/settings.py. */}}
{{- define "facial-service.queueBounds" -}}
{{- $sum := 0 }}
{{- range $name, $default := dict "TASK_QUEUE_MAX_BYTES" 1073741824 "RESULT_MAX_BYTES" 1073741824 "TASK_DEAD_MAX_BYTES" 268435456 }}
{{- $sum = include "facial-service.setting" (dict "root" $ "component" "api" "name" $name "default" $default) | int64 | add $sum }}
{{- end }}
{{- $sum }}
{{- end }}

{{/* Storage limit of nats-server, in bytes: the volume size minus the overhead of the file system. */}}
{{- define "facial-service.storeBytes" -}}
{{- printf "%.0f" (floor (mulf 0.9 (include "facial-service.bytes" .Values.nats.persistence.size | float64))) }}
{{- end }}

{{/*
Shutdown time of the master after the graceful timeout, in seconds: to stop its workers, to disconnect from the queue, and
to stop its exporter.
*/}}
{{- define "facial-service.stopMarginSeconds" -}}
{{- get (dict "api" 5 "worker" 7) . }}
{{- end }}

{{/* Maximum duration of a pod's graceful shutdown, in seconds: (dict "root" $ "component" "api"). */}}
{{- define "facial-service.stopSeconds" -}}
{{- $values := get .root.Values .component }}
{{- add (int (dig "preStopSeconds" 0 $values)) (int $values.gracefulTimeoutSeconds) (include "facial-service.stopMarginSeconds" .component | int) }}
{{- end }}

{{/*
Hosts of the NATS servers of this release, as a JSON list. With TLS, they include the namespace, because a wildcard in a
certificate covers only names with at least two dots.
*/}}
{{- define "facial-service.natsHosts" -}}
{{- $name := printf "%s-nats" (include "facial-service.fullname" .) }}
{{- $domain := ternary (printf "%s.%s.svc" $name .Release.Namespace) $name (not (empty .Values.nats.tls.existingSecret)) }}
{{- $hosts := list }}
{{- range until (int .Values.nats.replicas) }}{{ $hosts = append $hosts (printf "%s-%d.%s" $name . $domain) }}{{ end }}
{{- toJson $hosts }}
{{- end }}

{{/* Source of a variable: a key of a Secret: (dict "root" $ "path" "…" "secret" .Values.… "key" "token"). */}}
{{- define "facial-service.secretKey" -}}
{valueFrom: {secretKeyRef: {name: {{ include "facial-service.string" (merge (dict "value" .secret) .) | quote }}, key: {{ quote .key }}}}}
{{- end }}

{{/* URL of external NATS servers: (dict "root" $ "name" "monitorUrl"). */}}
{{- define "facial-service.externalUrl" -}}
{{- include "facial-service.string" (dict "root" .root "path" (printf "externalNats.%s" .name) "value" (get .root.Values.externalNats .name)) }}
{{- end }}

{{/* Files with which clients verify the queue, and identify themselves, as JSON; "tls" has the values they come from. */}}
{{- define "facial-service.clientTls" -}}
{{- $isOwn := not (empty (include "facial-service.hasNats" .)) }}
{{- $tls := .Values.nats.tls }}
{{- $secret := $tls.existingSecret }}
{{- $path := "nats.tls" }}
{{- if not $isOwn }}
{{- $tls = .Values.externalNats }}
{{- $secret = $tls.tlsSecret }}
{{- $path = "externalNats" }}
{{- end }}
{{- $hasCa := and $tls.caKey (or $tls.caConfigMap $secret) (or (not $isOwn) $secret) }}
{{- $hasCertificate := and (not $isOwn) $secret $tls.tlsClientCertificate }}
{{- dict "hasCa" (not (empty $hasCa)) "hasCertificate" (not (empty $hasCertificate)) "tls" $tls "secret" $secret "path" $path | toJson }}
{{- end }}

{{/* Environment variables with the queue's addresses and credentials, as a map. */}}
{{- define "facial-service.natsEnv" -}}
{{- if include "facial-service.hasNats" . }}
{{- $urls := list }}
{{- $scheme := ternary "tls" "nats" (not (empty .Values.nats.tls.existingSecret)) }}
{{- range include "facial-service.natsHosts" . | fromJsonArray }}{{ $urls = append $urls (printf "%s://%s:4222" $scheme .) }}{{ end -}}
NATS_URL: {{ join "," $urls }}
NATS_MONITOR_URL: http://{{ include "facial-service.fullname" . }}-nats:8222
NATS_REPLICAS: {{ int .Values.nats.replicas | quote }}
{{- with .Values.nats.auth }}
{{- if .existingSecret }}
NATS_TOKEN: {{ include "facial-service.secretKey" (dict "root" $ "path" "nats.auth.existingSecret" "secret" .existingSecret "key" .tokenKey) }}
{{- end }}
{{- end }}
{{- else }}
{{- $external := .Values.externalNats -}}
NATS_URL: {{ include "facial-service.externalUrl" (dict "root" $ "name" "url") | quote }}
NATS_REPLICAS: {{ int $external.replicas | quote }}
{{- with include "facial-service.externalUrl" (dict "root" $ "name" "monitorUrl") }}
NATS_MONITOR_URL: {{ quote . }}
{{- end }}
{{- range $name, $key := dict "NATS_USER" $external.userKey "NATS_PASSWORD" $external.passwordKey "NATS_TOKEN" $external.tokenKey "NATS_NKEY_SEED" $external.nkeySeedKey }}
{{- if $key }}
{{ $name }}: {{ include "facial-service.secretKey" (dict "root" $ "path" "externalNats.existingSecret" "secret" $external.existingSecret "key" $key) }}
{{- end }}
{{- end }}
{{- if $external.credsSecret }}
NATS_CREDS_FILE: {{ printf "/etc/nats-access/%s" $external.credsKey | quote }}
{{- end }}
{{- end }}
{{- $tls := include "facial-service.clientTls" . | fromJson }}
{{- if $tls.hasCa }}
NATS_TLS_CA_FILE: /etc/nats-access/ca.crt
{{- end }}
{{- if $tls.hasCertificate }}
NATS_TLS_CERT_FILE: /etc/nats-access/tls.crt
NATS_TLS_KEY_FILE: /etc/nats-access/tls.key
{{- end }}
{{- end }}

{{/* Environment variables that the chart manages, as a map: (dict "root" $ "component" "api"). */}}
{{- define "facial-service.managedEnv" -}}
{{- $values := get .root.Values .component -}}
# Addresses of both families; the service listens on those of IPv4 if the node has no IPv6.
HOST: "::"
METRICS_PORT: "9000"
SLO_LATENCY_THRESHOLD_S: {{ include "facial-service.text" .root.Values.slo.latency.threshold | quote }}
GRACEFUL_TIMEOUT_S: {{ int $values.gracefulTimeoutSeconds | quote }}
PROMETHEUS_MULTIPROC_DIR: /run/metrics
ENABLE_TASKS: {{ .root.Values.worker.enabled | quote }}
METRICS_ON_API_PORT: {{ or (not (include "facial-service.isApiPortPublic" .root)) .root.Values.api.service.exposeMetrics | quote }}
{{- with .root.Values.pathPrefix }}
ROOT_PATH: {{ quote . }}
{{- end }}
{{- if eq .component "api" }}
PORT: "8000"
WORKERS: {{ int $values.workers | quote }}
{{- with .root.Values.apiKeys }}
{{- if .existingSecret }}
API_KEYS_FILE: /etc/api-keys/keys
{{- end }}
{{- end }}
{{- else }}
TASK_WORKERS: {{ int $values.processes | quote }}
{{- end }}
{{- if .root.Values.worker.enabled }}
{{ include "facial-service.natsEnv" .root }}
{{- end }}
{{- if .root.Values.tracing.endpoint }}
{{ include "facial-service.tracingEnv" . }}
{{- end }}
{{- end }}

{{/*
Environment variables of OpenTelemetry, as a map: (dict "root" $ "component" "api"). Kubernetes replaces
$(POD_NAME).
*/}}
{{- define "facial-service.tracingEnv" -}}
{{- $tracing := .root.Values.tracing -}}
OTEL_EXPORTER_OTLP_ENDPOINT: {{ include "facial-service.tracingEndpoint" .root | quote }}
OTEL_SERVICE_NAME: {{ printf "%s-%s" (include "facial-service.fullname" .root) .component }}
POD_NAME: {valueFrom: {fieldRef: {fieldPath: metadata.name}}}
OTEL_RESOURCE_ATTRIBUTES: k8s.namespace.name={{ .root.Release.Namespace }},k8s.pod.name=$(POD_NAME)
OTEL_TRACES_SAMPLER: {{ $tracing.sampler }}
{{- if hasSuffix "traceidratio" $tracing.sampler }}
OTEL_TRACES_SAMPLER_ARG: {{ include "facial-service.text" $tracing.ratio | quote }}
{{- end }}
{{- with $tracing.existingSecret }}
OTEL_EXPORTER_OTLP_HEADERS: {{ include "facial-service.secretKey" (dict "root" $.root "path" "tracing.existingSecret" "secret" . "key" $tracing.headersKey) }}
{{- end }}
{{- end }}

{{/* URL of the collector. */}}
{{- define "facial-service.tracingEndpoint" -}}
{{- include "facial-service.string" (dict "root" . "path" "tracing.endpoint" "value" .Values.tracing.endpoint) }}
{{- end }}

{{/* Environment variables of the values, a map or a list as in a pod, as a JSON map. */}}
{{- define "facial-service.envMap" -}}
{{- if kindIs "slice" . }}
{{- $variables := dict }}
{{- range . }}
{{- $_ := set $variables .name (hasKey . "valueFrom" | ternary (dict "valueFrom" .valueFrom) (.value | default "")) }}
{{- end }}
{{- toJson $variables }}
{{- else }}
{{- . | default dict | toJson }}
{{- end }}
{{- end }}

{{/*
Environment variables of a component, without duplicate names. In increasing precedence: `env`, the component's `settings`
and `env`, managed variables. Variables with `valueFrom` come first, so that other values can refer to them as $(NAME):
(dict "root" $ "component" "api").
*/}}
{{- define "facial-service.env" -}}
{{- $values := get .root.Values .component }}
{{- $sources := dict }}
{{- $texts := dict }}
{{- range list (include "facial-service.envMap" .root.Values.env | fromJson) $values.settings (include "facial-service.envMap" $values.env | fromJson) (include "facial-service.managedEnv" . | fromYaml) }}
{{- range $name, $value := . }}
{{- $_ := unset $sources $name }}
{{- $_ = unset $texts $name }}
{{- if kindIs "map" $value }}
{{- $_ = set $sources $name (include "facial-service.renderStrings" (dict "root" $.root "path" (printf "env.%s" $name) "value" $value) | fromJson).value }}
{{- else if not (kindIs "invalid" $value) }}
{{- $_ = set $texts $name (include "facial-service.text" $value) }}
{{- end }}
{{- end }}
{{- end }}
{{- $entries := list }}
{{- range $name, $value := $sources }}{{ $entries = append $entries (merge (dict "name" $name) $value) }}{{ end }}
{{- range $name, $value := $texts }}{{ $entries = append $entries (dict "name" $name "value" $value) }}{{ end }}
{{- toYaml $entries }}
{{- end }}

{{/* Sources of environment variables: the shared settings, `envFrom`, and credentials of external NATS servers. */}}
{{- define "facial-service.envFrom" -}}
- configMapRef:
    name: {{ include "facial-service.fullname" . }}-settings
{{- with .Values.envFrom }}
{{ include "facial-service.yaml" (dict "root" $ "path" "envFrom" "value" .) }}
{{- end }}
{{- with .Values.externalNats }}
{{- if and $.Values.worker.enabled .existingSecret (not (or .userKey .passwordKey .tokenKey .nkeySeedKey)) }}
- secretRef:
    name: {{ include "facial-service.string" (dict "root" $ "path" "externalNats.existingSecret" "value" .existingSecret) | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* Data of the ConfigMap with the shared settings. */}}
{{- define "facial-service.settings" -}}
{{- $data := dict }}
{{- range $name, $value := .Values.settings }}
{{- if not (kindIs "invalid" $value) }}{{ $_ := set $data $name (include "facial-service.text" $value) }}{{ end }}
{{- end }}
{{- toYaml $data }}
{{- end }}

{{/*
Labels and annotations of a component's pods. They do not include the chart version, because a new chart version alone
must not restart pods: (dict "root" $ "component" "api" "checksums" (dict "settings" "…")).
*/}}
{{- define "facial-service.podMetadata" -}}
{{- $selected := include "facial-service.selectorLabels" . | fromYaml }}
{{- $annotations := dict }}
{{- range $name, $text := .checksums }}{{ $_ := set $annotations (printf "checksum/%s" $name) (sha256sum $text) }}{{ end -}}
labels:
  {{- $given := merge dict (.root.Values.podLabels | default dict) (.root.Values.commonLabels | default dict) }}
  {{- $given = include "facial-service.yaml" (dict "root" .root "path" "podLabels" "value" $given) | fromYaml }}
  {{- merge $selected $given (dict "app.kubernetes.io/part-of" (include "facial-service.name" .root)) | toYaml | nindent 2 }}
{{- range $name, $text := include "facial-service.renderedSecrets" . | fromJson }}{{ $_ := set $annotations (printf "checksum/secret-%s" $name) (sha256sum $text) }}{{ end }}
{{- with merge $annotations ((get .root.Values .component).podAnnotations | default dict) (.root.Values.podAnnotations | default dict) }}
annotations:
  {{- include "facial-service.yaml" (dict "root" $.root "path" "podAnnotations" "value" .) | nindent 2 }}
{{- end }}
{{- end }}

{{/*
Secrets of `extraObjects` that the component reads at startup, as a JSON map of name to content. A change restarts the pods:
(dict "root" $ "component" "api").
*/}}
{{- define "facial-service.renderedSecrets" -}}
{{- $values := .root.Values }}
{{- $names := list $values.nats.auth.existingSecret $values.nats.tls.existingSecret }}
{{- if ne .component "nats" }}
{{- $external := $values.externalNats }}
{{- $names = concat $names (list $external.existingSecret $external.credsSecret $external.tlsSecret $values.tracing.existingSecret) }}
{{- range $values.envFrom }}{{ $names = append $names (dig "secretRef" "name" "" .) }}{{ end }}
{{- end }}
{{- $names = (include "facial-service.renderStrings" (dict "root" .root "path" "existingSecret" "value" (compact $names)) | fromJson).value }}
{{- $secrets := dict }}
{{- range .root.Values.extraObjects }}
{{- $text := tpl (kindIs "string" . | ternary . (toYaml .)) $.root }}
{{- $object := fromYaml $text }}
{{- if and (eq (dig "kind" "" $object) "Secret") (has (dig "metadata" "name" "" $object) $names) }}
{{- $_ := set $secrets $object.metadata.name $text }}
{{- end }}
{{- end }}
{{- toJson $secrets }}
{{- end }}

{{/*
Annotations of a Deployment or StatefulSet: (dict "root" $ "component" "api").
*/}}
{{- define "facial-service.workloadAnnotations" -}}
{{- with (get .root.Values .component).annotations -}}
annotations:
  {{- include "facial-service.yaml" (dict "root" $.root "path" (printf "%s.annotations" $.component) "value" .) | nindent 2 }}
{{- end }}
{{- end }}

{{/*
Scheduling and security fields of a pod specification: (dict "root" $ "component" "api"). Set "values" if another
component's values apply.
*/}}
{{- define "facial-service.podSpec" -}}
{{- $values := get .root.Values (.values | default .component) -}}
serviceAccountName: {{ include "facial-service.serviceAccountName" .root }}
automountServiceAccountToken: {{ .root.Values.automountServiceAccountToken }}
enableServiceLinks: false
{{- with include "facial-service.imagePullSecrets" .root | fromJsonArray }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.runtimeClassName }}
runtimeClassName: {{ quote . }}
{{- end }}
{{- with .root.Values.hostAliases }}
hostAliases:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.dnsPolicy }}
dnsPolicy: {{ . }}
{{- end }}
{{- with .root.Values.dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if not (kindIs "invalid" .root.Values.hostUsers) }}
hostUsers: {{ .root.Values.hostUsers }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .root.Values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
Topology spread constraints. A constraint without a label selector selects the component's pods. Pods of other revisions
do not count, because they are about to stop. With "isRequired", the default constraint is not only a preference:
(dict "root" $ "component" "api" "revisionLabel" "pod-template-hash" "isRequired" false).
*/}}
{{- define "facial-service.topologySpread" -}}
{{- $defaults := dict "labelSelector" (dict "matchLabels" (include "facial-service.selectorLabels" . | fromYaml)) }}
{{- with .revisionLabel }}{{ $_ := set $defaults "matchLabelKeys" (list .) }}{{ end }}
{{- $default := dict "maxSkew" 1 "topologyKey" "kubernetes.io/hostname" "whenUnsatisfiable" "ScheduleAnyway" }}
{{- if .isRequired }}
{{- /* Nodes on which the pods cannot run do not count, such as those of the control plane. */}}
{{- $default = merge (dict "whenUnsatisfiable" "DoNotSchedule" "nodeTaintsPolicy" "Honor") $default }}
{{- end }}
{{- $constraints := list }}
{{- range (get .root.Values .component).topologySpreadConstraints | default (list $default) }}
{{- $constraints = append $constraints (ternary . (merge dict . $defaults) (hasKey . "labelSelector")) }}
{{- end -}}
topologySpreadConstraints:
  {{- toYaml $constraints | nindent 2 }}
{{- end }}

{{/* Image and security context of a container. */}}
{{- define "facial-service.container" -}}
image: {{ include "facial-service.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- with .Values.securityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
Startup, readiness and liveness probes on one port: (dict "root" $ "port" "metrics" "startup" "/health/ready" "ready" "/health/ready"
"live" "/health/live" "startupFactor" 1).
*/}}
{{- define "facial-service.probes" -}}
{{- with .root.Values.probes -}}
startupProbe:
  httpGet: {path: {{ quote $.startup }}, port: {{ $.port }}}
  periodSeconds: {{ int .startupPeriodSeconds }}
  failureThreshold: {{ mul (int .startupFailureThreshold) ($.startupFactor | default 1) }}
  timeoutSeconds: {{ int .timeoutSeconds }}
readinessProbe:
  httpGet: {path: {{ quote $.ready }}, port: {{ $.port }}}
  periodSeconds: {{ int .readinessPeriodSeconds }}
  failureThreshold: 2
  timeoutSeconds: {{ int .timeoutSeconds }}
livenessProbe:
  httpGet: {path: {{ quote $.live }}, port: {{ $.port }}}
  periodSeconds: {{ int .livenessPeriodSeconds }}
  failureThreshold: {{ int .livenessFailureThreshold }}
  timeoutSeconds: {{ int .timeoutSeconds }}
{{- end }}
{{- end }}

{{/* Volume mounts of the API and the workers: (dict "root" $ "component" "api"). */}}
{{- define "facial-service.volumeMounts" -}}
{{- $component := .component }}
{{- with .root -}}
- {name: metrics, mountPath: /run/metrics}
- {name: tmp, mountPath: /tmp}
{{- if include "facial-service.hasNatsAccess" . }}
- {name: nats-access, mountPath: /etc/nats-access, readOnly: true}
{{- end }}
{{- with concat (.Values.extraVolumeMounts | default list) ((get .Values $component).extraVolumeMounts | default list) }}
{{ toYaml . }}
{{- end }}
{{- end }}
{{- end }}

{{/* "true" if the queue needs certificates or credentials from files, otherwise empty. */}}
{{- define "facial-service.hasNatsAccess" -}}
{{- $tls := include "facial-service.clientTls" . | fromJson }}
{{- $hasCredentials := and (not .Values.nats.enabled) .Values.externalNats.credsSecret }}
{{- if and .Values.worker.enabled (or $tls.hasCa $tls.hasCertificate $hasCredentials) }}true{{ end }}
{{- end }}

{{/*
Sources of a projected volume with a CA certificate as ca.crt, and a certificate as tls.crt and tls.key: (dict "root" $ "path"
"nats.tls" "tls" .Values.nats.tls "secret" "name" "hasCa" true "hasCertificate" false).
*/}}
{{- define "facial-service.tlsSources" -}}
{{- $secret := include "facial-service.string" (dict "root" .root "path" (printf "%s Secret" .path) "value" .secret) }}
{{- $config := include "facial-service.string" (dict "root" .root "path" (printf "%s.caConfigMap" .path) "value" .tls.caConfigMap) }}
{{- $items := list }}
{{- if and .hasCa (not $config) }}{{ $items = append $items (dict "key" .tls.caKey "path" "ca.crt") }}{{ end }}
{{- if .hasCertificate }}
{{- $items = concat $items (list (dict "key" .tls.certKey "path" "tls.crt") (dict "key" .tls.keyKey "path" "tls.key")) }}
{{- end }}
{{- with $items }}
- secret:
    name: {{ quote $secret }}
    items:
      {{- range . }}
      - {key: {{ quote .key }}, path: {{ .path }}}
      {{- end }}
{{- end }}
{{- if and .hasCa $config }}
- configMap:
    name: {{ quote $config }}
    items:
      - {key: {{ quote .tls.caKey }}, path: ca.crt}
{{- end }}
{{- end }}

{{/*
Volumes of the API and the workers: (dict "root" $ "component" "api" "processes" 2).

Processes cannot record new metrics if the volume for metric files is full. An API worker that has served every method
on every path uses 0.7 MiB; other processes use less than 0.1 MiB. So 4 MiB for each worker, plus 4 MiB for all other
processes, also suffice for several times as many buckets. Only used space counts against the memory limit.
*/}}
{{- define "facial-service.volumes" -}}
{{- $root := .root -}}
- name: metrics
  emptyDir:
    medium: Memory
    sizeLimit: {{ add1 (int .processes) | mul 4 }}Mi
- name: tmp
  emptyDir:
    sizeLimit: 256Mi
{{- if include "facial-service.hasNatsAccess" $root }}
{{- $external := $root.Values.externalNats }}
- name: nats-access
  projected:
    defaultMode: 0440
    sources:
      {{- if $external.credsSecret }}
      - secret:
          name: {{ include "facial-service.string" (dict "root" $root "path" "externalNats.credsSecret" "value" $external.credsSecret) | quote }}
          items:
            - {key: {{ quote $external.credsKey }}, path: {{ quote $external.credsKey }}}
      {{- end }}
      {{- include "facial-service.tlsSources" (merge (dict "root" $root) (include "facial-service.clientTls" $root | fromJson)) | nindent 6 }}
{{- end }}
{{- with concat ($root.Values.extraVolumes | default list) ((get $root.Values .component).extraVolumes | default list) }}
{{ include "facial-service.yaml" (dict "root" $root "path" "extraVolumes" "value" .) }}
{{- end }}
{{- end }}

{{/* Annotations for service discovery by a Prometheus without the Operator, unless a monitor is enabled. */}}
{{- define "facial-service.scrapeAnnotations" -}}
{{- if not (or .Values.metrics.serviceMonitor.enabled .Values.metrics.podMonitor.enabled) -}}
annotations:
  prometheus.io/scrape: "true"
  prometheus.io/port: "9000"
  prometheus.io/path: /metrics
{{- end }}
{{- end }}
