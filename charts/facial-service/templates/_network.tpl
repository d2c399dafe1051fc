{{/*
What is reached from outside: the API and its pages. Everything else on the API's port stays inside (/metrics,
/health, /version), so there is no prefix `/`.
*/}}
{{- define "facial-service.publicPaths" -}}
- {path: /api, match: Prefix}
- {path: /docs, match: Prefix}
- {path: /openapi.json, match: Exact}
- {path: /page, match: Prefix}
- {path: /, match: Exact}
{{- end }}

{{/*
Port of an address, without a word about the rest of it, which may hold a password:
(dict "url" "nats://host" "default" 4222).
*/}}
{{- define "facial-service.urlPort" -}}
{{- $place := regexReplaceAll "^.*@" (regexReplaceAll "^[A-Za-z]+://" (trim .url) "") "" }}
{{- regexFind ":[0-9]+/?$" $place | trimPrefix ":" | trimSuffix "/" | default .default | int }}
{{- end }}

{{/* Ports of the queue that API and workers connect to, as a JSON list. */}}
{{- define "facial-service.queuePorts" -}}
{{- $ports := list }}
{{- if include "facial-service.hasNats" . }}
{{- $ports = list 4222 8222 }}
{{- else if .Values.worker.enabled }}
{{- range compact (splitList "," .Values.externalNats.url) }}
{{- $ports = append $ports (include "facial-service.urlPort" (dict "url" . "default" 4222) | int) }}
{{- end }}
{{- with trim .Values.externalNats.monitorUrl }}
{{- $ports = append $ports (include "facial-service.urlPort" (dict "url" . "default" (ternary 443 80 (hasPrefix "https:" .))) | int) }}
{{- end }}
{{- end }}
{{- $ports | uniq | toJson }}
{{- end }}

{{/* To the cluster's DNS, wherever it is: in kube-system, elsewhere, or a cache on the node that no selector meets. */}}
{{- define "facial-service.dnsEgress" -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{- end }}

{{/* A peer, as pods of this release: (dict "root" $ "components" (list "api" "worker")). */}}
{{- define "facial-service.podPeer" -}}
- podSelector:
    matchLabels:
      app.kubernetes.io/name: {{ include "facial-service.name" .root }}
      app.kubernetes.io/instance: {{ .root.Release.Name }}
    matchExpressions:
      - {key: app.kubernetes.io/component, operator: In, values: [{{ join ", " .components }}]}
{{- end }}

{{/* What API and workers may reach: names, the queue, and what the values add. */}}
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
{{- with .Values.networkPolicy.egress }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Who may read metrics. */}}
{{- define "facial-service.metricsIngress" -}}
- ports:
    - {port: 9000, protocol: TCP}
  from:
    {{- toYaml (.Values.networkPolicy.metricsFrom | default (list (dict "namespaceSelector" dict))) | nindent 4 }}
{{- end }}
