{{/*
Labels of an object, with the user's over them, as texts whatever the user wrote:
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
Name of an object that may go to another namespace: there it says where it comes from, for releases of one name in
several namespaces: (dict "root" $ "namespace" .Values.metrics.namespace).
*/}}
{{- define "facial-service.nameIn" -}}
{{- $fullname := include "facial-service.fullname" .root }}
{{- if or (not .namespace) (eq .namespace .root.Release.Namespace) }}
{{- $fullname }}
{{- else }}
{{- printf "%s-%s" .root.Release.Namespace $fullname }}
{{- end }}
{{- end }}

{{/* What a file adds to the name of its object: (dict "root" $ "path" "files/rules/facial-service-slo.yaml"). */}}
{{- define "facial-service.fileName" -}}
{{- $name := base .path | trimSuffix (ext .path) | lower | replace "_" "-" | replace "." "-" }}
{{- $name | trimPrefix (printf "%s-" .root.Chart.Name) }}
{{- end }}

{{/* A duration such as 15s, in milliseconds. */}}
{{- define "facial-service.milliseconds" -}}
{{- $unit := regexFind "[a-z]+$" . }}
{{- mul (regexFind "^[0-9]+" . | int64) (get (dict "ms" 1 "s" 1000 "m" 60000) $unit) }}
{{- end }}

{{/* Refuses monitors that would scrape nothing, or everything twice. */}}
{{- define "facial-service.checkMonitors" -}}
{{- $metrics := .Values.metrics }}
{{- if and $metrics.serviceMonitor.enabled $metrics.podMonitor.enabled }}
{{- fail "metrics.serviceMonitor.enabled and metrics.podMonitor.enabled: every pod would be scraped twice; choose one" }}
{{- end }}
{{- if gt (include "facial-service.milliseconds" $metrics.scrapeTimeout | int64) (include "facial-service.milliseconds" $metrics.interval | int64) }}
{{- fail (printf "metrics.scrapeTimeout (%s) is longer than metrics.interval (%s): the Prometheus Operator would pass over the monitor" $metrics.scrapeTimeout $metrics.interval) }}
{{- end }}
{{- end }}

{{/* How each target is scraped. */}}
{{- define "facial-service.endpoint" -}}
port: metrics
path: /metrics
interval: {{ .Values.metrics.interval }}
scrapeTimeout: {{ .Values.metrics.scrapeTimeout }}
honorLabels: false
relabelings:
  # Rules and dashboards look for this job, whatever the release is called.
  - targetLabel: job
    replacement: facial-service
  # `component` is a label of metrics.
  - sourceLabels: [__meta_kubernetes_pod_label_app_kubernetes_io_component]
    targetLabel: role
  # The Operator's name of the port: a metric's label of that name, the route, would have to give way to it.
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

{{/* What both kinds of monitors have in common. */}}
{{- define "facial-service.monitorSpec" -}}
namespaceSelector:
  matchNames: [{{ .Release.Namespace }}]
{{- with .Values.metrics.podTargetLabels }}
podTargetLabels:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with int .Values.metrics.sampleLimit }}
sampleLimit: {{ . }}
{{- end }}
{{- with int .Values.metrics.labelLimit }}
labelLimit: {{ . }}
{{- end }}
{{- end }}
