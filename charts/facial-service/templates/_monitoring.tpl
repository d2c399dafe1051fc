{{/*
Labels of an object, merged with labels from the values, which take precedence. All label values become strings:
(dict "root" $ "component" "monitoring" "labels" .Values.metrics.labels).
*/}}
{{- define "facial-service.labelsWith" -}}
{{- $labels := include "facial-service.labels" . | fromYaml }}
{{- range $name, $value := .labels }}
{{- $_ := set $labels $name (toString $value) }}
{{- end }}
{{- toYaml $labels }}
{{- end }}

{{/*
Name of an object that may be in another namespace. There it includes the release namespace, so that releases of the
same name do not collide: (dict "root" $ "namespace" .Values.metrics.namespace).
*/}}
{{- define "facial-service.nameIn" -}}
{{- $fullname := include "facial-service.fullname" .root }}
{{- if or (not .namespace) (eq .namespace .root.Release.Namespace) }}
{{- $fullname }}
{{- else }}
{{- printf "%s-%s" .root.Release.Namespace $fullname }}
{{- end }}
{{- end }}

{{/* Object name suffix from a file name: (dict "root" $ "path" "files/rules/facial-service-slo.yaml"). */}}
{{- define "facial-service.fileName" -}}
{{- $name := base .path | trimSuffix (ext .path) | lower | replace "_" "-" | replace "." "-" }}
{{- $name | trimPrefix (printf "%s-" .root.Chart.Name) }}
{{- end }}

{{/* Convert a duration such as 15s to milliseconds. */}}
{{- define "facial-service.milliseconds" -}}
{{- $unit := regexFind "[a-z]+$" . }}
{{- mul (regexFind "^[0-9]+" . | int64) (get (dict "ms" 1 "s" 1000 "m" 60000) $unit) }}
{{- end }}

{{/* Fail if both monitors are enabled, or if the scrape timeout exceeds the interval. */}}
{{- define "facial-service.checkMonitors" -}}
{{- $metrics := .Values.metrics }}
{{- if and $metrics.serviceMonitor.enabled $metrics.podMonitor.enabled }}
{{- fail "metrics.serviceMonitor.enabled and metrics.podMonitor.enabled: every pod would be scraped twice; enable one of them" }}
{{- end }}
{{- if gt (include "facial-service.milliseconds" $metrics.scrapeTimeout | int64) (include "facial-service.milliseconds" $metrics.interval | int64) }}
{{- fail (printf "metrics.scrapeTimeout: expected at most metrics.interval (%[2]s), got %[1]s; the Prometheus Operator would ignore the monitor" $metrics.scrapeTimeout $metrics.interval) }}
{{- end }}
{{- end }}

{{/* Scrape endpoint of a monitor. */}}
{{- define "facial-service.endpoint" -}}
port: metrics
path: /metrics
interval: {{ .Values.metrics.interval }}
scrapeTimeout: {{ .Values.metrics.scrapeTimeout }}
scheme: {{ .Values.metrics.scheme }}
honorLabels: {{ .Values.metrics.honorLabels }}
{{- with .Values.metrics.tlsConfig }}
tlsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.metrics.endpointFields }}
{{ toYaml . }}
{{- end }}
relabelings:
  # Rules and dashboards select this job, independent of the release name.
  - targetLabel: job
    replacement: facial-service
  - targetLabel: release
    replacement: {{ .Release.Name }}
  # Not `component`, because some metrics have a label of that name.
  - sourceLabels: [__meta_kubernetes_pod_label_app_kubernetes_io_component]
    targetLabel: role
  # Drop the port name that the Operator adds: it would replace the metrics' own `endpoint` label, the route.
  - action: labeldrop
    regex: endpoint
  {{- with .Values.metrics.relabelings }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.metrics.metricRelabelings }}
metricRelabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Fields shared by ServiceMonitor and PodMonitor. */}}
{{- define "facial-service.monitorSpec" -}}
namespaceSelector:
  matchNames: [{{ .Release.Namespace }}]
{{- with .Values.metrics.podTargetLabels }}
podTargetLabels:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.metrics.monitorFields }}
{{ toYaml . }}
{{- end }}
{{- with int .Values.metrics.sampleLimit }}
sampleLimit: {{ . }}
{{- end }}
{{- with int .Values.metrics.labelLimit }}
labelLimit: {{ . }}
{{- end }}
{{- end }}
