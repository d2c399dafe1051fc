{{/*
A value of the user's as the text of an environment variable: whole numbers without an exponent (Helm reads 1073741824
from a file as 1.073741824e+09), lists joined by commas.
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

{{/* A quantity of Kubernetes, such as 8Gi or 1.5G, in bytes. */}}
{{- define "facial-service.bytes" -}}
{{- $text := include "facial-service.text" . }}
{{- $units := dict "" 1 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624 }}
{{- $number := regexFind "^[0-9]+([.][0-9]*)?([eE][0-9]+)?" $text }}
{{- $unit := trimPrefix $number $text }}
{{- if or (not $number) (not (hasKey $units $unit)) }}
{{- fail (printf "%s: expected an amount of memory or storage, such as 512Mi or 8Gi" $text) }}
{{- end }}
{{- printf "%.0f" (mulf (float64 $number) (get $units $unit)) }}
{{- end }}

{{/* What a setting comes to for a component: (dict "root" $ "component" "api" "name" "MAX_BODY_BYTES" "default" 1). */}}
{{- define "facial-service.setting" -}}
{{- $settings := mergeOverwrite (deepCopy (.root.Values.settings | default dict)) (deepCopy ((get .root.Values .component).settings | default dict)) }}
{{- include "facial-service.text" (get $settings .name) | default (include "facial-service.text" .default) }}
{{- end }}

{{/* Bytes that the queue's streams may take together, with the defaults of app/task_settings.py. */}}
{{- define "facial-service.queueBounds" -}}
{{- $sum := 0 }}
{{- range $name, $default := dict "TASK_QUEUE_MAX_BYTES" 1073741824 "RESULT_MAX_BYTES" 1073741824 "TASK_DEAD_MAX_BYTES" 268435456 }}
{{- $sum = include "facial-service.setting" (dict "root" $ "component" "api" "name" $name "default" $default) | int64 | add $sum }}
{{- end }}
{{- $sum }}
{{- end }}

{{/* What the queue's server may store of its volume: a file system takes some of it for itself. */}}
{{- define "facial-service.storeBytes" -}}
{{- printf "%.0f" (floor (mulf 0.9 (include "facial-service.bytes" .Values.nats.persistence.size | float64))) }}
{{- end }}

{{/* Seconds that a master takes beyond the time of its workers: to end them, to take leave of the queue, and its exporter. */}}
{{- define "facial-service.stopMarginSeconds" -}}
{{- get (dict "api" 5 "worker" 7) . }}
{{- end }}

{{/* Seconds that a pod's orderly end may take, the sum of its parts: (dict "root" $ "component" "api"). */}}
{{- define "facial-service.stopSeconds" -}}
{{- $values := get .root.Values .component }}
{{- add (int (dig "preStopSeconds" 0 $values)) (int $values.gracefulTimeoutSeconds) (include "facial-service.stopMarginSeconds" .component | int) }}
{{- end }}

{{/* Addresses of the queue's servers in this release, as a JSON list of hosts. */}}
{{- define "facial-service.natsHosts" -}}
{{- $name := printf "%s-nats" (include "facial-service.fullname" .) }}
{{- $hosts := list }}
{{- range until (int .Values.nats.replicas) }}{{ $hosts = append $hosts (printf "%s-%d.%s" $name . $name) }}{{ end }}
{{- toJson $hosts }}
{{- end }}

{{/* Variables that say where the queue is and how to be let in; as a map. */}}
{{- define "facial-service.natsEnv" -}}
{{- if include "facial-service.hasNats" . }}
{{- $urls := list }}
{{- range include "facial-service.natsHosts" . | fromJsonArray }}{{ $urls = append $urls (printf "nats://%s:4222" .) }}{{ end -}}
NATS_URL: {{ join "," $urls }}
NATS_MONITOR_URL: http://{{ include "facial-service.fullname" . }}-nats:8222
NATS_REPLICAS: {{ int .Values.nats.replicas | quote }}
{{- with .Values.nats.auth }}
{{- if .existingSecret }}
NATS_TOKEN: {valueFrom: {secretKeyRef: {name: {{ quote .existingSecret }}, key: {{ quote .tokenKey }}}}}
{{- end }}
{{- end }}
{{- else }}
{{- with .Values.externalNats -}}
NATS_URL: {{ quote .url }}
NATS_REPLICAS: {{ int .replicas | quote }}
{{- with .monitorUrl }}
NATS_MONITOR_URL: {{ quote . }}
{{- end }}
{{- if .credsSecret }}
NATS_CREDS_FILE: {{ printf "/etc/nats-access/%s" .credsKey | quote }}
{{- end }}
{{- if .tlsSecret }}
NATS_TLS_CA_FILE: /etc/nats-access/ca.crt
{{- if .tlsClientCertificate }}
NATS_TLS_CERT_FILE: /etc/nats-access/tls.crt
NATS_TLS_KEY_FILE: /etc/nats-access/tls.key
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Variables that the chart sets itself, as a map: (dict "root" $ "component" "api"). */}}
{{- define "facial-service.ownEnv" -}}
{{- $values := get .root.Values .component -}}
HOST: 0.0.0.0
METRICS_PORT: "9000"
GRACEFUL_TIMEOUT_S: {{ int $values.gracefulTimeoutSeconds | quote }}
PROMETHEUS_MULTIPROC_DIR: /run/metrics
ENABLE_TASKS: {{ .root.Values.worker.enabled | quote }}
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
{{- end }}

{{/*
The variables of a component, each name once, whatever says it: what is said for all, for the component, by the chart.
Those with a source come first, so that a text may refer to them as $(NAME): (dict "root" $ "component" "api").
*/}}
{{- define "facial-service.env" -}}
{{- $values := get .root.Values .component }}
{{- $sources := dict }}
{{- $texts := dict }}
{{- range list .root.Values.env $values.settings $values.env (include "facial-service.ownEnv" . | fromYaml) }}
{{- range $name, $value := . }}
{{- $_ := unset $sources $name }}
{{- $_ = unset $texts $name }}
{{- if kindIs "map" $value }}
{{- $_ = set $sources $name $value }}
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

{{/* Where more variables come from: the common settings, what the user names, and credentials of servers elsewhere. */}}
{{- define "facial-service.envFrom" -}}
- configMapRef:
    name: {{ include "facial-service.fullname" . }}-settings
{{- with .Values.envFrom }}
{{ toYaml . }}
{{- end }}
{{- if and .Values.worker.enabled .Values.externalNats.existingSecret }}
- secretRef:
    name: {{ .Values.externalNats.existingSecret | quote }}
{{- end }}
{{- end }}

{{/* The common settings, as they stand in the ConfigMap. */}}
{{- define "facial-service.settings" -}}
{{- $data := dict }}
{{- range $name, $value := .Values.settings }}
{{- if not (kindIs "invalid" $value) }}{{ $_ := set $data $name (include "facial-service.text" $value) }}{{ end }}
{{- end }}
{{- toYaml $data }}
{{- end }}

{{/*
Labels and annotations of a component's pods. No version stands among them: a pod is replaced where it changes, not
where the chart does: (dict "root" $ "component" "api" "checksums" (dict "settings" "…")).
*/}}
{{- define "facial-service.podMetadata" -}}
{{- $selected := include "facial-service.selectorLabels" . | fromYaml }}
{{- $annotations := dict }}
{{- range $name, $text := .checksums }}{{ $_ := set $annotations (printf "checksum/%s" $name) (sha256sum $text) }}{{ end -}}
labels:
  {{- merge $selected (.root.Values.podLabels | default dict) (.root.Values.commonLabels | default dict) (dict "app.kubernetes.io/part-of" (include "facial-service.name" .root)) | toYaml | nindent 2 }}
{{- with merge $annotations ((get .root.Values .component).podAnnotations | default dict) (.root.Values.podAnnotations | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
Where a component's pods run, and as whom: (dict "root" $ "component" "api"). `values` names the part of the values that
says so, where that is another.
*/}}
{{- define "facial-service.podSpec" -}}
{{- $values := get .root.Values (.values | default .component) -}}
serviceAccountName: {{ include "facial-service.serviceAccountName" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
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
How pods are spread; a constraint that does not say whose is about the component's own: (dict "root" $ "component"
"api" "revisionLabel" "pod-template-hash"). Pods of another revision do not count, for they are about to go.
*/}}
{{- define "facial-service.topologySpread" -}}
{{- $own := dict "labelSelector" (dict "matchLabels" (include "facial-service.selectorLabels" . | fromYaml)) }}
{{- with .revisionLabel }}{{ $_ := set $own "matchLabelKeys" (list .) }}{{ end }}
{{- $default := dict "maxSkew" 1 "topologyKey" "kubernetes.io/hostname" "whenUnsatisfiable" "ScheduleAnyway" }}
{{- $constraints := list }}
{{- range (get .root.Values .component).topologySpreadConstraints | default (list $default) }}
{{- $constraints = append $constraints (ternary . (merge dict . $own) (hasKey . "labelSelector")) }}
{{- end -}}
topologySpreadConstraints:
  {{- toYaml $constraints | nindent 2 }}
{{- end }}

{{/* A container's image and security. */}}
{{- define "facial-service.container" -}}
image: {{ include "facial-service.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- with .Values.securityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
The three probes, on one port: (dict "root" $ "port" "metrics" "startup" "/health/ready" "ready" "/health/ready"
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

{{/* What API and workers mount. */}}
{{- define "facial-service.volumeMounts" -}}
- {name: metrics, mountPath: /run/metrics}
- {name: tmp, mountPath: /tmp}
{{- if include "facial-service.hasNatsAccess" . }}
- {name: nats-access, mountPath: /etc/nats-access, readOnly: true}
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Whether files let API and workers in at servers elsewhere: "true", or nothing. */}}
{{- define "facial-service.hasNatsAccess" -}}
{{- if and .Values.worker.enabled (not .Values.nats.enabled) (or .Values.externalNats.credsSecret .Values.externalNats.tlsSecret) }}true{{ end }}
{{- end }}

{{/*
The volumes of API and workers: (dict "root" $ "processes" 2).

Metric files live in memory, and a process that writes to one when the volume is full is killed (SIGBUS). An API worker
that has answered every method on every path takes 0.7 MiB, anything else less than 0.1; so 4 MiB for each of them, and
for what runs beside them, holds several times the buckets too. Only what is used counts against the memory limit.
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
{{- with $root.Values.externalNats }}
- name: nats-access
  projected:
    defaultMode: 0440
    sources:
      {{- if .credsSecret }}
      - secret:
          name: {{ .credsSecret | quote }}
          items:
            - {key: {{ quote .credsKey }}, path: {{ quote .credsKey }}}
      {{- end }}
      {{- if .tlsSecret }}
      - secret:
          name: {{ .tlsSecret | quote }}
          items:
            {{- range ternary (list "ca.crt" "tls.crt" "tls.key") (list "ca.crt") .tlsClientCertificate }}
            - {key: {{ . }}, path: {{ . }}}
            {{- end }}
      {{- end }}
{{- end }}
{{- end }}
{{- with $root.Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Annotations by which a Prometheus without the Operator finds pods, where no monitor does it. */}}
{{- define "facial-service.scrapeAnnotations" -}}
{{- if not (or .Values.metrics.serviceMonitor.enabled .Values.metrics.podMonitor.enabled) -}}
annotations:
  prometheus.io/scrape: "true"
  prometheus.io/port: "9000"
  prometheus.io/path: /metrics
{{- end }}
{{- end }}
