{{/* Name of the alert group that kube-prometheus-stack largely covers with its own alerts. */}}
{{- define "facial-service.kubernetesGroup" -}}
facial-service-kubernetes
{{- end }}

{{/* Groups of a rule file for this release, as a YAML list: (dict "root" $ "path" $path "content" $bytes). */}}
{{- define "facial-service.fileGroups" -}}
{{- $parsed := include "facial-service.fillTexts" (dict "root" .root "text" (toString .content)) | fromYaml }}
{{- if not (kindIs "slice" (get $parsed "groups")) }}
{{- fail (printf "%s: expected a rule file: %s" .path (get $parsed "Error" | default "it has no list of groups")) }}
{{- end }}
{{- toYaml $parsed.groups }}
{{- end }}

{{/* Alert names of all rule files, one entry per rule, as a JSON list. */}}
{{- define "facial-service.alertNames" -}}
{{- $names := list }}
{{- range $path, $content := .Files.Glob "files/rules/*.yaml" }}
{{- range include "facial-service.fileGroups" (dict "root" $ "path" $path "content" $content) | fromYamlArray }}
{{- range .rules }}
{{- with get . "alert" }}{{ $names = append $names . }}{{ end }}
{{- end }}
{{- end }}
{{- end }}
{{- toJson $names }}
{{- end }}

{{/* Fail if an override matches no alert, or if its expression would apply to several rules. */}}
{{- define "facial-service.checkOverrides" -}}
{{- $names := include "facial-service.alertNames" . | fromJsonArray }}
{{- range $name, $override := .Values.prometheusRule.overrides }}
{{- if not (has $name $names) }}
{{- fail (printf "prometheusRule.overrides: unknown alert %s; expected one of: %s" $name ($names | uniq | sortAlpha | join ", " | default "none")) }}
{{- end }}
{{- $count := 0 }}
{{- range $names }}{{ if eq . $name }}{{ $count = add1 $count }}{{ end }}{{ end }}
{{- if and (gt (int $count) 1) (get ($override | default dict) "expr") }}
{{- fail (printf "prometheusRule.overrides.%[1]s.expr: %[2]d rules have the name %[1]s, each with a different expression; disable them with enabled: false, and add your rule to prometheusRule.additionalGroups" $name (int $count)) }}
{{- end }}
{{- end }}
{{- end }}

{{/*
Groups with overrides applied, as a YAML list, or empty: (dict "root" $ "groups" $groups). Rules are not passed through
`tpl`, because Prometheus templates use the same braces. A disabled group keeps its recording rules, and the alerts that
an override enables.
*/}}
{{- define "facial-service.ruleGroups" -}}
{{- $values := .root.Values.prometheusRule }}
{{- $groups := list }}
{{- range .groups }}
{{- $isOn := or $values.kubernetes.enabled (ne .name (include "facial-service.kubernetesGroup" $)) }}
{{- $rules := list }}
{{- range .rules }}
{{- $override := get ($values.overrides | default dict) (get . "alert" | default "") | default dict }}
{{- if not (hasKey . "alert") }}
{{- $rules = append $rules . }}
{{- else if ternary $override.enabled $isOn (kindIs "bool" (get $override "enabled")) }}
{{- $rules = append $rules (include "facial-service.alert" (dict "root" $.root "rule" . "override" $override) | fromYaml) }}
{{- end }}
{{- end }}
{{- if $rules }}
{{- $groups = append $groups (set (deepCopy .) "rules" $rules) }}
{{- end }}
{{- end }}
{{- with $groups }}
{{- toYaml . }}
{{- end }}
{{- end }}

{{/* Base URL of links, without a slash at its end: (dict "root" $ "name" "runbookBaseUrl"). */}}
{{- define "facial-service.ruleUrl" -}}
{{- include "facial-service.url" (dict "root" .root "path" (printf "prometheusRule.%s" .name) "value" (get .root.Values.prometheusRule .name)) | trimSuffix "/" }}
{{- end }}

{{/* Alert with its override applied, as YAML: (dict "root" $ "rule" $rule "override" $override). */}}
{{- define "facial-service.alert" -}}
{{- $rule := deepCopy .rule }}
{{- $labels := get $rule "labels" | default dict }}
{{- $annotations := get $rule "annotations" | default dict }}
{{- range $key, $value := .root.Values.prometheusRule.additionalLabels }}
{{- if not (hasKey $labels $key) }}{{ $_ := set $labels $key (toString $value) }}{{ end }}
{{- end }}
{{- /* A path would not open, so a link without its base URL is left out. */}}
{{- range $key, $base := dict "runbook_url" "runbookBaseUrl" "dashboard_url" "dashboardBaseUrl" }}
{{- $base = include "facial-service.ruleUrl" (dict "root" $.root "name" $base) }}
{{- $link := get $annotations $key }}
{{- if hasPrefix "/" $link }}
{{- if $base }}{{ $_ := set $annotations $key (printf "%s%s" $base $link) }}
{{- else }}{{ $_ := unset $annotations $key }}{{ end }}
{{- end }}
{{- end }}
{{- range $key, $value := .override }}
{{- if kindIs "invalid" $value }}
{{- else if has $key (list "expr" "for" "keep_firing_for") }}{{ $_ := set $rule $key (toString $value) }}
{{- else if eq $key "severity" }}{{ $_ := set $labels $key (toString $value) }}
{{- else if eq $key "labels" }}{{ range $name, $text := $value }}{{ $_ := set $labels $name (toString $text) }}{{ end }}
{{- else if eq $key "annotations" }}{{ range $name, $text := $value }}{{ $_ := set $annotations $name (toString $text) }}{{ end }}
{{- end }}
{{- end }}
{{- with $labels }}{{ $_ := set $rule "labels" . }}{{ end }}
{{- with $annotations }}{{ $_ := set $rule "annotations" . }}{{ end }}
{{- toYaml $rule }}
{{- end }}

{{/* PrometheusRule object: (dict "root" $ "name" "slo" "groups" $groupsAsYaml). */}}
{{- define "facial-service.prometheusRule" -}}
{{- $values := .root.Values.prometheusRule -}}
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: {{ include "facial-service.nameIn" (dict "root" .root "namespace" $values.namespace) }}-{{ .name }}
  namespace: {{ $values.namespace | default .root.Release.Namespace }}
  labels:
    {{- include "facial-service.labelsWith" (dict "root" .root "component" "monitoring" "labels" $values.labels) | nindent 4 }}
spec:
  groups:
    {{- .groups | nindent 4 }}
{{- end }}
