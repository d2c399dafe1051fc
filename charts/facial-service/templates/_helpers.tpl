{{/* Name of the chart, or its override. */}}
{{- define "facial-service.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* Prefix of all object names, short enough for a suffix. */}}
{{- define "facial-service.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "facial-service.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "facial-service.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Labels that select the pods of one component: (dict "root" $ "component" "api"). */}}
{{- define "facial-service.selectorLabels" -}}
app.kubernetes.io/name: {{ include "facial-service.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Labels of every object. Chart labels take precedence over commonLabels: (dict "root" $ "component" "api"). */}}
{{- define "facial-service.labels" -}}
{{- $labels := include "facial-service.selectorLabels" . | fromYaml }}
{{- $_ := set $labels "app.kubernetes.io/version" .root.Chart.AppVersion }}
{{- $_ = set $labels "app.kubernetes.io/part-of" (include "facial-service.name" .root) }}
{{- $_ = set $labels "app.kubernetes.io/managed-by" .root.Release.Service }}
{{- $_ = set $labels "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-") }}
{{- toYaml (merge $labels (.root.Values.commonLabels | default dict)) }}
{{- end }}

{{/* Image of every pod, by digest if one is set. */}}
{{- define "facial-service.image" -}}
{{- $name := .Values.image.repository }}
{{- with .Values.image.registry }}{{ $name = printf "%s/%s" . $name }}{{ end }}
{{- if .Values.image.digest }}
{{- printf "%s@%s" $name .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" $name (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{- define "facial-service.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "facial-service.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}
