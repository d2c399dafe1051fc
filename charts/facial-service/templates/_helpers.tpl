{{/*
Shorten a name to 40 characters, so that suffixes fit. A shortened name ends with a hash of the whole name, so that two long
names never become the same.
*/}}
{{- define "facial-service.shorten" -}}
{{- if gt (len .) 40 }}
{{- printf "%s-%s" (trunc 31 . | trimSuffix "-") (sha256sum . | trunc 8) }}
{{- else }}
{{- . }}
{{- end }}
{{- end }}

{{/* Name of the chart, or its override. */}}
{{- define "facial-service.name" -}}
{{- include "facial-service.shorten" (default .Chart.Name .Values.nameOverride) }}
{{- end }}

{{/* Prefix of all object names, short enough for a suffix. */}}
{{- define "facial-service.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if .Values.fullnameOverride }}
{{- include "facial-service.shorten" .Values.fullnameOverride }}
{{- else if contains $name .Release.Name }}
{{- include "facial-service.shorten" .Release.Name }}
{{- else }}
{{- include "facial-service.shorten" (printf "%s-%s" .Release.Name $name) }}
{{- end }}
{{- end }}

{{/*
Render the strings of a value as templates, in maps and lists too, and return the value as JSON, below the key "value":
(dict "root" $ "path" "ingress.annotations" "value" .Values.ingress.annotations).
*/}}
{{- define "facial-service.renderStrings" -}}
{{- $call := . }}
{{- if kindIs "map" .value }}
{{- $result := dict }}
{{- range $name, $item := .value }}
{{- $_ := set $result $name (include "facial-service.renderStrings" (dict "root" $call.root "path" $call.path "value" $item) | fromJson).value }}
{{- end }}
{{- dict "value" $result | toJson }}
{{- else if kindIs "slice" .value }}
{{- $result := list }}
{{- range .value }}
{{- $result = append $result (include "facial-service.renderStrings" (dict "root" $call.root "path" $call.path "value" .) | fromJson).value }}
{{- end }}
{{- dict "value" $result | toJson }}
{{- else if and (kindIs "string" .value) (contains "{{" .value) }}
{{- $text := tpl .value .root }}
{{- if contains "{{" $text }}
{{- fail (printf "%s: %s still contains {{ after it was rendered as a template; remove the nested template" .path $text) }}
{{- end }}
{{- dict "value" $text | toJson }}
{{- else }}
{{- dict "value" .value | toJson }}
{{- end }}
{{- end }}

{{/* Render a string, such as the name of a Secret, as a template: (dict "root" $ "path" "…" "value" .Values.…). */}}
{{- define "facial-service.string" -}}
{{- (include "facial-service.renderStrings" . | fromJson).value | default "" }}
{{- end }}

{{/* Render a URL as a template, with the arguments of "facial-service.string". */}}
{{- define "facial-service.url" -}}
{{- $url := include "facial-service.string" . }}
{{- if and $url (not (regexMatch "^https?://[^[:space:]]+$" $url)) }}
{{- fail (printf "%s: expected a URL that begins with http:// or https://, got %s" .path $url) }}
{{- end }}
{{- $url }}
{{- end }}

{{/* Render the strings of a map or a list as templates, as YAML. Numbers of the values may be floats, so none is here. */}}
{{- define "facial-service.yaml" -}}
{{- if contains "{{" (toJson .value) }}
{{- toYaml (include "facial-service.renderStrings" . | fromJson).value }}
{{- else }}
{{- toYaml .value }}
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
{{- toYaml (merge $labels (include "facial-service.yaml" (dict "root" .root "path" "commonLabels" "value" (.root.Values.commonLabels | default dict)) | fromYaml)) }}
{{- end }}

{{/*
Reference of an image, by digest if one is set. A registry of the values replaces the one in the repository's name:
(dict "root" $ "image" .Values.image "tag" .Chart.AppVersion).
*/}}
{{- define "facial-service.imageReference" -}}
{{- $name := .image.repository }}
{{- with .image.registry | default (dig "imageRegistry" "" (.root.Values.global | default dict)) }}
{{- $first := regexFind "^[^/]+/" $name }}
{{- if or (contains "." $first) (contains ":" $first) (eq $first "localhost/") }}{{ $name = trimPrefix $first $name }}{{ end }}
{{- $name = printf "%s/%s" (trimSuffix "/" .) $name }}
{{- end }}
{{- if .image.digest }}
{{- printf "%s@%s" $name .image.digest }}
{{- else }}
{{- printf "%s:%s" $name (default .tag .image.tag) }}
{{- end }}
{{- end }}

{{/* Image of the service. */}}
{{- define "facial-service.image" -}}
{{- include "facial-service.imageReference" (dict "root" $ "image" .Values.image "tag" .Chart.AppVersion) }}
{{- end }}

{{/* Image of nats-server: without a repository, the service's, which contains the program. */}}
{{- define "facial-service.natsImage" -}}
{{- if .Values.nats.image.repository }}
{{- include "facial-service.imageReference" (dict "root" $ "image" .Values.nats.image "tag" "") }}
{{- else }}
{{- include "facial-service.image" . }}
{{- end }}
{{- end }}

{{/* Pull secrets of every pod: those of the chart and of the parent chart, as a JSON list. */}}
{{- define "facial-service.imagePullSecrets" -}}
{{- $secrets := list }}
{{- range concat (.Values.imagePullSecrets | default list) (dig "imagePullSecrets" list (.Values.global | default dict) | default list) }}
{{- $secrets = append $secrets (kindIs "string" . | ternary (dict "name" .) .) }}
{{- end }}
{{- (include "facial-service.renderStrings" (dict "root" $ "path" "imagePullSecrets" "value" (uniq $secrets)) | fromJson).value | toJson }}
{{- end }}

{{- define "facial-service.serviceAccountName" -}}
{{- $name := include "facial-service.string" (dict "root" $ "path" "serviceAccount.name" "value" .Values.serviceAccount.name) }}
{{- if .Values.serviceAccount.create }}
{{- default (include "facial-service.fullname" .) $name }}
{{- else }}
{{- default "default" $name }}
{{- end }}
{{- end }}
