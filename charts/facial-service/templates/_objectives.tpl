{{/* Number as Prometheus writes it in a label: 1 becomes 1.0. */}}
{{- define "facial-service.bucket" -}}
{{- $text := printf "%v" (float64 .) }}
{{- if contains "." $text }}{{ $text }}{{ else }}{{ $text }}.0{{ end }}
{{- end }}

{{/* Burn rate of an alert, at least 1, at which the budget lasts for the period: (list $partOfTheBudget $windowDays $hours). */}}
{{- define "facial-service.burnRate" -}}
{{- printf "%v" (maxf 1 (round (divf (mulf (index . 0) (index . 1) 24) (index . 2)) 4)) }}
{{- end }}

{{/* Ratio in percent. */}}
{{- define "facial-service.percent" -}}
{{- printf "%v%%" (mulf 100 .) }}
{{- end }}

{{/*
Texts of the objectives and of the release, by the token that stands for each in files/rules and files/dashboards, as
YAML. prometheus/source/objectives.py computes the same texts; a test compares them.
*/}}
{{- define "facial-service.texts" -}}
{{- $slo := .Values.slo -}}
{{- range $name := list "availability" "latency" }}
{{- $target := float64 (get $slo $name).objective }}
{{- $upper := upper $name }}
{{ $upper }}_OBJECTIVE: {{ printf "%v" $target | quote }}
{{ $upper }}_OBJECTIVE_PERCENT: {{ include "facial-service.percent" $target | quote }}
{{ $upper }}_BUDGET: {{ printf "%v" (subf 1 $target) | quote }}
{{ $upper }}_BUDGET_PERCENT: {{ include "facial-service.percent" (subf 1 $target) | quote }}
{{- end }}
LATENCY_BUCKET: {{ include "facial-service.bucket" $slo.latency.threshold | quote }}
LATENCY_SECONDS: {{ printf "%v" (float64 $slo.latency.threshold) | quote }}
ROUTES: {{ quote $slo.routes }}
SHEDDING_FACTOR: {{ ternary "0" "1" $slo.countShedding | quote }}
WINDOW_DAYS: {{ int $slo.windowDays | quote }}
FACTOR_1H: {{ include "facial-service.burnRate" (list 0.02 $slo.windowDays 1) | quote }}
FACTOR_6H: {{ include "facial-service.burnRate" (list 0.05 $slo.windowDays 6) | quote }}
FACTOR_1D: {{ include "facial-service.burnRate" (list 0.1 $slo.windowDays 24) | quote }}
FACTOR_3D: {{ include "facial-service.burnRate" (list 0.1 $slo.windowDays 72) | quote }}
FAST_BURN_RATIO: {{ printf "%v" (mulf (include "facial-service.burnRate" (list 0.02 $slo.windowDays 1)) (subf 1 (float64 $slo.availability.objective))) | quote }}
TASK_DEADLINE_S: {{ kindIs "invalid" $slo.taskDeadlineSeconds | ternary "+Inf" (include "facial-service.text" $slo.taskDeadlineSeconds) | quote }}
NAMESPACE: {{ quote .Release.Namespace }}
RELEASE: {{ quote .Release.Name }}
FULLNAME: {{ include "facial-service.fullname" . | quote }}
CLUSTER: {{ with .Values.prometheusRule.cluster }}{{ printf ", cluster=%q" . | squote }}{{ else }}""{{ end }}
{{- end }}

{{/* Text with its tokens replaced: (dict "root" $ "text" $text). */}}
{{- define "facial-service.fillTexts" -}}
{{- $text := .text }}
{{- range $name, $value := include "facial-service.texts" .root | fromYaml }}
{{- $text = replace (printf "@%s@" $name) $value $text }}
{{- end }}
{{- $text }}
{{- end }}

{{/* Dashboard with its tokens replaced; a string that consists of a token is a number: (dict "root" $ "text" $text). */}}
{{- define "facial-service.fillDashboard" -}}
{{- $text := .text }}
{{- range $name, $value := include "facial-service.texts" .root | fromYaml }}
{{- $text = $text | replace (printf ": \"@%s@\"" $name) (printf ": %s" $value) | replace (printf "@%s@" $name) $value }}
{{- end }}
{{- $text }}
{{- end }}

{{- define "facial-service.checkObjectives" -}}
{{- $slo := .Values.slo }}
{{- $fastest := include "facial-service.burnRate" (list 0.02 $slo.windowDays 1) | float64 }}
{{- range $name := list "availability" "latency" }}
{{- $target := float64 (get $slo $name).objective }}
{{- if ge (mulf $fastest (subf 1 $target)) 1.0 }}
slo.{{ $name }}.objective: expected more than {{ round (subf 1 (divf 1 $fastest)) 4 }}, because the alert at a burn rate of {{ $fastest }} could not fire, got {{ $target }}
{{- end }}
{{- end }}
{{- range $component := ternary (list "api" "worker") (list "api") .Values.worker.enabled }}
{{- $buckets := include "facial-service.setting" (dict "root" $ "component" $component "name" "REQUEST_DURATION_BUCKETS" "default" "0.001,0.0025,0.005,0.01,0.025,0.05,0.1,0.25,0.5,1,2.5,5,10") }}
{{- $isBoundary := false }}
{{- range splitList "," $buckets }}
{{- if eq (trim . | float64) (float64 $slo.latency.threshold) }}{{ $isBoundary = true }}{{ end }}
{{- end }}
{{- if not $isBoundary }}
slo.latency.threshold: expected a boundary of REQUEST_DURATION_BUCKETS ({{ $buckets }}), got {{ $slo.latency.threshold }} ({{ $component }})
{{- end }}
{{- end }}
{{- if and .Values.prometheusRule.enabled (gt (include "facial-service.milliseconds" .Values.metrics.interval | int64) 60000) }}
metrics.interval: expected at most 1m, because rules use windows of 2m, and a rate needs two samples, got {{ .Values.metrics.interval }}
{{- end }}
{{- end }}
