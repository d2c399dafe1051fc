{{/*
Paths exposed outside the cluster: the API and its pages. There is no prefix `/`, because the other paths of the API port
(/metrics, /health, /version) must stay internal.
*/}}
{{- define "facial-service.publicPaths" -}}
{{- range $path, $match := dict "/api" "Prefix" "/docs" "Prefix" "/openapi.json" "Exact" "/page" "Prefix" "/" "Exact" }}
- {path: {{ $.Values.pathPrefix | default "" }}{{ $path }}, match: {{ $match }}}
{{- end }}
{{- end }}

{{/* Hosts of the Ingress, as a JSON list of {"host": name} and, for own paths, "paths". */}}
{{- define "facial-service.ingressHosts" -}}
{{- $hosts := list }}
{{- range .Values.ingress.hosts }}
{{- $hosts = append $hosts (kindIs "string" . | ternary (dict "host" .) .) }}
{{- end }}
{{- (include "facial-service.renderStrings" (dict "root" $ "path" "ingress.hosts" "value" $hosts) | fromJson).value | toJson }}
{{- end }}

{{/*
"true" if `/metrics` of the API port is reachable from outside the cluster: through the type of its Service, or through own
paths of the Ingress.
*/}}
{{- define "facial-service.isApiPortPublic" -}}
{{- $isPublic := ne .Values.api.service.type "ClusterIP" }}
{{- range .Values.ingress.enabled | ternary (include "facial-service.ingressHosts" . | fromJsonArray) list }}
{{- range .paths }}
{{- $path := trimSuffix "/" (.path | default "") }}
{{- if or (hasPrefix (printf "%s/metrics" ($.Values.pathPrefix | default "")) $path) (hasPrefix "/metrics" $path) }}{{ $isPublic = true }}
{{- else if and (has $path (list "" ($.Values.pathPrefix | default ""))) (ne (.pathType | default "Prefix") "Exact") }}{{ $isPublic = true }}
{{- end }}
{{- end }}
{{- end }}
{{- if $isPublic }}true{{ end }}
{{- end }}

{{/* IP families of a Service's addresses. */}}
{{- define "facial-service.ipFamilies" -}}
{{- with .Values.ipFamilyPolicy -}}
ipFamilyPolicy: {{ . }}
{{- end }}
{{- with .Values.ipFamilies }}
ipFamilies: {{ toJson . }}
{{- end }}
{{- end }}

{{/*
Port of a URL. Errors must not repeat the URL, because it may contain a password:
(dict "url" "nats://host" "default" 4222).
*/}}
{{- define "facial-service.urlPort" -}}
{{- $host := regexReplaceAll "^.*@" (regexReplaceAll "^[A-Za-z]+://" (trim .url) "") "" }}
{{- regexFind ":[0-9]+/?$" $host | trimPrefix ":" | trimSuffix "/" | default .default | int }}
{{- end }}

{{/* NATS ports that the API and the workers connect to, as a JSON list. */}}
{{- define "facial-service.queuePorts" -}}
{{- $ports := list }}
{{- if include "facial-service.hasNats" . }}
{{- $ports = list 4222 8222 }}
{{- else if .Values.worker.enabled }}
{{- range compact (splitList "," (include "facial-service.externalUrl" (dict "root" $ "name" "url"))) }}
{{- $ports = append $ports (include "facial-service.urlPort" (dict "url" . "default" 4222) | int) }}
{{- end }}
{{- with trim (include "facial-service.externalUrl" (dict "root" $ "name" "monitorUrl")) }}
{{- $ports = append $ports (include "facial-service.urlPort" (dict "url" . "default" (ternary 443 80 (hasPrefix "https:" .))) | int) }}
{{- end }}
{{- end }}
{{- $ports | uniq | toJson }}
{{- end }}

{{/* Egress rule for DNS. It has no selector, because DNS may run in any namespace or as a cache on the node. */}}
{{- define "facial-service.dnsEgress" -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{- end }}

{{/* NetworkPolicy peer that selects pods of this release: (dict "root" $ "components" (list "api" "worker")). */}}
{{- define "facial-service.podPeer" -}}
- podSelector:
    matchLabels:
      app.kubernetes.io/name: {{ include "facial-service.name" .root }}
      app.kubernetes.io/instance: {{ .root.Release.Name }}
    matchExpressions:
      - {key: app.kubernetes.io/component, operator: In, values: [{{ join ", " .components }}]}
{{- end }}

{{/* Egress rules of the API and the workers: DNS, the queue, the collector of traces, and networkPolicy.egress. */}}
{{- define "facial-service.clientEgress" -}}
{{- include "facial-service.dnsEgress" . }}
{{- with include "facial-service.queuePorts" . | fromJsonArray }}
- ports:
    {{- range . }}
    - {port: {{ int . }}, protocol: TCP}
    {{- end }}
  {{- if include "facial-service.hasNats" $ }}
  to:
    {{- include "facial-service.podPeer" (dict "root" $ "components" (list "nats")) | nindent 4 }}
  {{- end }}
{{- end }}
{{- if .Values.tracing.endpoint }}
{{- /* Without its path. */}}
{{- $url := include "facial-service.tracingEndpoint" . | regexFind "^[A-Za-z]+://[^/]+" }}
- ports:
    - {port: {{ include "facial-service.urlPort" (dict "url" $url "default" (ternary 443 80 (hasPrefix "https:" $url))) }}, protocol: TCP}
{{- end }}
{{- with .Values.networkPolicy.egress }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Ingress rule for the metrics port. */}}
{{- define "facial-service.metricsIngress" -}}
- ports:
    - {port: 9000, protocol: TCP}
  from:
    {{- toYaml (.Values.networkPolicy.metricsFrom | default (list (dict "namespaceSelector" dict))) | nindent 4 }}
{{- end }}
