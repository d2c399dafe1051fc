{{/*
Shutdown time of a server of a cluster, in seconds: 30 for lame duck mode, and 15 to close its store. nats-server accepts
no shorter lame duck mode.
*/}}
{{- define "facial-service.lameDuckSeconds" -}}
{{- add 30 15 }}
{{- end }}

{{/* TLS settings of nats-server, for clients and for the connections between servers. */}}
{{- define "facial-service.natsTls" -}}
tls {
  cert_file: "/etc/nats-tls/tls.crt"
  key_file: "/etc/nats-tls/tls.key"
  {{- if .Values.nats.tls.caKey }}
  ca_file: "/etc/nats-tls/ca.crt"
  {{- end }}
  timeout: 5
}
{{- end }}

{{/* Configuration of nats-server; app/tasks/embedded_server.py writes the same for an embedded server. */}}
{{- define "facial-service.natsConf" -}}
{{- $isCluster := gt (int .Values.nats.replicas) 1 }}
{{- $body := include "facial-service.setting" (dict "root" $ "component" "api" "name" "MAX_BODY_BYTES" "default" 16777216) | int64 }}
{{- $payload := max 33554432 (add $body 1048576) }}
server_name: $POD_NAME
# For this address, the server listens on both families, or on IPv4 if the node has no IPv6.
listen: "0.0.0.0:4222"
http: "0.0.0.0:8222"

# A message holds a request body and the decoded landmarks.
max_payload: {{ $payload }}
# Limit of unsent data per client; the server closes the connection of a client that exceeds it.
max_pending: {{ mul 8 $payload }}

jetstream {
  store_dir: "/data"
  max_mem: 33554432
  # Volume size minus the overhead of the file system.
  max_file: {{ include "facial-service.storeBytes" . }}
  sync_interval: {{ quote .Values.nats.syncInterval }}
}
{{- if .Values.nats.auth.existingSecret }}

# The server parses variables: $TOKEN is quoted.
authorization { token: $TOKEN }
{{- end }}
{{- if .Values.nats.tls.existingSecret }}

{{ include "facial-service.natsTls" . }}
{{- end }}
{{- if $isCluster }}

# On shutdown, a server first transfers its streams and clients to the other servers.
lame_duck_grace_period: "10s"
lame_duck_duration: "30s"

cluster {
  name: {{ include "facial-service.fullname" . }}-nats
  listen: "0.0.0.0:6222"
  {{- if .Values.nats.tls.existingSecret }}
  {{- include "facial-service.natsTls" . | nindent 2 }}
  {{- end }}
  {{- if .Values.nats.auth.existingSecret }}
  authorization { user: route, password: $TOKEN }
  routes: $ROUTES
  {{- else }}
  routes: [
    {{- range include "facial-service.natsHosts" . | fromJsonArray }}
    "nats-route://{{ . }}:6222"
    {{- end }}
  ]
  {{- end }}
}
{{- end }}
{{- end }}
