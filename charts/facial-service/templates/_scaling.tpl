{{/* Whether this release runs the queue's server: "true", or nothing. */}}
{{- define "facial-service.hasNats" -}}
{{- if and .Values.worker.enabled .Values.nats.enabled }}true{{ end }}
{{- end }}

{{/* Most pods of a component, whoever scales it: (dict "root" $ "component" "api"). */}}
{{- define "facial-service.mostPods" -}}
{{- $values := get .root.Values .component }}
{{- if dig "keda" "enabled" false $values }}
{{- int $values.keda.maxReplicas }}
{{- else if dig "autoscaling" "enabled" false $values }}
{{- int $values.autoscaling.maxReplicas }}
{{- else }}
{{- int $values.replicas }}
{{- end }}
{{- end }}

{{/* Refuses a range that is upside down: (dict "path" "api.autoscaling" "range" .Values.api.autoscaling). */}}
{{- define "facial-service.checkRange" -}}
{{- if gt (int .range.minReplicas) (int .range.maxReplicas) }}
{{- fail (printf "%s: minReplicas (%d) is above maxReplicas (%d)" .path (int .range.minReplicas) (int .range.maxReplicas)) }}
{{- end }}
{{- end }}

{{/* A HorizontalPodAutoscaler: (dict "root" $ "component" "api"). */}}
{{- define "facial-service.hpa" -}}
{{- $values := get .root.Values .component }}
{{- $hpa := $values.autoscaling }}
{{- include "facial-service.checkRange" (dict "path" (printf "%s.autoscaling" .component) "range" $hpa) }}
{{- if not (or (dig "requests" "cpu" "" $values.resources) (dig "limits" "cpu" "" $values.resources)) }}
{{- fail (printf "%[1]s.autoscaling is on: it counts CPU in percent of the request, so set %[1]s.resources.requests.cpu" .component) }}
{{- end -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ include "facial-service.fullname" .root }}-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "facial-service.labels" . | nindent 4 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ include "facial-service.fullname" .root }}-{{ .component }}
  minReplicas: {{ int $hpa.minReplicas }}
  maxReplicas: {{ int $hpa.maxReplicas }}
  metrics:
    # The container's CPU, not the pod's: containers beside it (a mesh's proxy) would thin it out, and one of them
    # without a request for CPU would leave the autoscaler with no figure at all.
    - type: ContainerResource
      containerResource:
        name: cpu
        container: {{ .component }}
        target:
          type: Utilization
          averageUtilization: {{ int $hpa.targetCPUUtilizationPercentage }}
    {{- with $hpa.metrics }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $hpa.behavior }}
  behavior:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* Refuses a budget that lets nobody go, and so no node be drained: (dict "path" "api" "maxUnavailable" 0). */}}
{{- define "facial-service.checkBudget" -}}
{{- if has (toString .maxUnavailable) (list "0" "0%") }}
{{- fail (printf "%s.podDisruptionBudget.maxUnavailable: %v would let no node be drained; set 1 or more, or enabled to false" .path .maxUnavailable) }}
{{- end }}
{{- end }}

{{/* A PodDisruptionBudget: (dict "root" $ "component" "api" "maxUnavailable" 1). */}}
{{- define "facial-service.pdb" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "facial-service.fullname" .root }}-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "facial-service.labels" . | nindent 4 }}
spec:
  maxUnavailable: {{ toYaml .maxUnavailable }}
  # Pods that do not get ready hold up no drain of a node; they serve nobody.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "facial-service.selectorLabels" . | nindent 6 }}
{{- end }}

{{/*
Where KEDA reads the queue's figures, as JSON {"host": "name:port", "https": bool}. It puts the path behind the host
itself, and in a cluster the server's name before it, so the host is the headless Service.
*/}}
{{- define "facial-service.kedaEndpoint" -}}
{{- $url := trim .Values.externalNats.monitorUrl }}
{{- if .Values.nats.enabled }}
{{- if and .Values.networkPolicy.enabled (not .Values.networkPolicy.natsMonitorFrom) }}
{{- fail "worker.keda.enabled with networkPolicy.enabled: KEDA could not read the queue's monitoring port; name its pods in networkPolicy.natsMonitorFrom" }}
{{- end }}
{{- dict "host" (printf "%s-nats.%s.svc:8222" (include "facial-service.fullname" .) .Release.Namespace) "https" false | toJson }}
{{- else if not $url }}
{{- fail "worker.keda.enabled: KEDA reads the tasks that wait from the monitoring port of the NATS servers; set externalNats.monitorUrl, or scale with worker.autoscaling" }}
{{- else if not (regexMatch "^https?://[^/@?#]+/?$" $url) }}
{{- fail "worker.keda.enabled: KEDA takes scheme, host and port of the monitoring address and nothing else; set externalNats.monitorUrl to something such as http://nats.example:8222" }}
{{- else }}
{{- dict "host" (regexReplaceAll "^https?://([^/]+)/?$" $url "${1}") "https" (hasPrefix "https:" $url) | toJson }}
{{- end }}
{{- end }}
