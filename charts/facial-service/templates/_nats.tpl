{{/*
Seconds that a server of a cluster may take to hand over and end: 30 of its lame duck mode, the least that it knows, and
15 to close its store.
*/}}
{{- define "facial-service.lameDuckSeconds" -}}
{{- add 30 15 }}
{{- end }}

{{/* The server's configuration; app/tasks/embedded.py writes the same where the service starts its own. */}}
{{- define "facial-service.natsConf" -}}
{{- $isCluster := gt (int .Values.nats.replicas) 1 }}
{{- $body := include "facial-service.setting" (dict "root" $ "component" "api" "name" "MAX_BODY_BYTES" "default" 16777216) | int64 }}
{{- $payload := max 33554432 (add $body 1048576) }}
{{- if .Values.nats.auth.existingSecret -}}
# $TOKEN and $ROUTES, written from the Secret when the pod starts.
include "../../run/nats/access.conf"
{{ end -}}
server_name: $POD_NAME
listen: "0.0.0.0:4222"
http: "0.0.0.0:8222"

# A message holds a request's body and, beside it, the landmarks in another form.
max_payload: {{ $payload }}
# What waits to be sent to one client; beyond it the server hangs up on it.
max_pending: {{ mul 8 $payload }}

jetstream {
  store_dir: "/data"
  max_mem: 33554432
  # Of the volume, less what its file system takes.
  max_file: {{ include "facial-service.storeBytes" . }}
  sync_interval: {{ quote .Values.nats.syncInterval }}
}
{{- if .Values.nats.auth.existingSecret }}

authorization { token: $TOKEN }
{{- end }}
{{- if $isCluster }}

# A server that is told to stop has others take its streams and its clients over first.
lame_duck_grace_period: "10s"
lame_duck_duration: "30s"

cluster {
  name: {{ include "facial-service.fullname" . }}-nats
  listen: "0.0.0.0:6222"
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
