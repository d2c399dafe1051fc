{{/*
Labels of an object, merged with labels from the values, which take precedence. All label values become strings:
(dict "root" $ "component" "monitoring" "labels" .Values.metrics.labels).
*/}}
{{- define "facial-service.labelsWith" -}}
{{- $labels := include "facial-service.labels" . | fromYaml }}
{{- range $name, $value := include "facial-service.yaml" (dict "root" .root "path" "labels" "value" (.labels | default dict)) | fromYaml }}
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

{{/* Fail if both monitors are enabled, or if their scrape timeout is too long. */}}
{{- define "facial-service.checkMonitors" -}}
{{- $metrics := .Values.metrics }}
{{- if and $metrics.serviceMonitor.enabled $metrics.podMonitor.enabled }}
{{- fail "metrics.serviceMonitor.enabled and metrics.podMonitor.enabled: every pod would be scraped twice; enable one of them" }}
{{- end }}
{{- include "facial-service.checkScrapeTimeout" . }}
{{- end }}

{{/* Fail if the Probe has no exporter. */}}
{{- define "facial-service.checkProbe" -}}
{{- if not .Values.metrics.probe.proberUrl }}
{{- fail "metrics.probe.proberUrl: expected host and port of a blackbox exporter, because metrics.probe.enabled is set" }}
{{- end }}
{{- include "facial-service.checkScrapeTimeout" . }}
{{- end }}

{{/* Fail if the scrape timeout exceeds the interval. */}}
{{- define "facial-service.checkScrapeTimeout" -}}
{{- $metrics := .Values.metrics }}
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

{{/*
Dashboard with its objectives and links: (dict "root" $ "text" $text). A link whose address is not known is removed: to a
runbook without prometheusRule.runbookBaseUrl, to the logs without dashboards.logs, to the traces without dashboards.traces.
*/}}
{{- define "facial-service.dashboard" -}}
{{- $document := include "facial-service.fillDashboard" . | fromJson }}
{{- range $panel := $document.panels }}
{{- range concat (list $panel) (get $panel "panels" | default list) }}
{{- include "facial-service.setRunbooks" (dict "panel" . "base" (include "facial-service.ruleUrl" (dict "root" $.root "name" "runbookBaseUrl"))) }}
{{- end }}
{{- end }}
{{- range $source := list (dict "link" "Logs" "variable" "loki" "enabled" .root.Values.dashboards.logs) (dict "link" "Traces" "variable" "tempo" "enabled" .root.Values.dashboards.traces) }}
{{- if not $source.enabled }}
{{- $links := list }}
{{- range $document.links }}{{ if ne .title $source.link }}{{ $links = append $links . }}{{ end }}{{ end }}
{{- $_ := set $document "links" $links }}
{{- $variables := list }}
{{- range $document.templating.list }}{{ if ne .name $source.variable }}{{ $variables = append $variables . }}{{ end }}{{ end }}
{{- $_ := set $document.templating "list" $variables }}
{{- end }}
{{- end }}
{{- toPrettyJson $document }}
{{- end }}

{{/* Add the address of the runbooks to the links of a panel, or remove them: (dict "panel" $panel "base" $url). */}}
{{- define "facial-service.setRunbooks" -}}
{{- $links := list }}
{{- range get .panel "links" | default list }}
{{- if not (hasPrefix "/docs/runbooks/" .url) }}{{ $links = append $links . }}
{{- else if $.base }}{{ $links = append $links (set . "url" (printf "%s%s" $.base .url)) }}{{ end }}
{{- end }}
{{- if $links }}{{ $_ := set .panel "links" $links }}{{ else }}{{ $_ := unset .panel "links" }}{{ end }}
{{- end }}
