{{/* "true" if this release runs NATS servers, otherwise empty. */}}
{{- define "facial-service.hasNats" -}}
{{- if and .Values.worker.enabled .Values.nats.enabled }}true{{ end }}
{{- end }}

{{/* Maximum number of pods of a component, with any kind of scaling: (dict "root" $ "component" "api"). */}}
{{- define "facial-service.maxPods" -}}
{{- $values := get .root.Values .component }}
{{- if dig "keda" "enabled" false $values }}
{{- int $values.keda.maxReplicas }}
{{- else if dig "autoscaling" "enabled" false $values }}
{{- int $values.autoscaling.maxReplicas }}
{{- else }}
{{- int $values.replicas }}
{{- end }}
{{- end }}

{{/* Fail if minReplicas exceeds maxReplicas: (dict "path" "api.autoscaling" "range" .Values.api.autoscaling). */}}
{{- define "facial-service.checkRange" -}}
{{- if gt (int .range.minReplicas) (int .range.maxReplicas) }}
{{- fail (printf "%s: minReplicas (%d) exceeds maxReplicas (%d); lower minReplicas or raise maxReplicas" .path (int .range.minReplicas) (int .range.maxReplicas)) }}
{{- end }}
{{- end }}

{{/* HorizontalPodAutoscaler object: (dict "root" $ "component" "api"). */}}
{{- define "facial-service.hpa" -}}
{{- $values := get .root.Values .component }}
{{- $hpa := $values.autoscaling }}
{{- include "facial-service.checkRange" (dict "path" (printf "%s.autoscaling" .component) "range" $hpa) }}
{{- if not (or (dig "requests" "cpu" "" $values.resources) (dig "limits" "cpu" "" $values.resources)) }}
{{- fail (printf "%[1]s.autoscaling: CPU utilization is relative to the CPU request, which is not set; set %[1]s.resources.requests.cpu" .component) }}
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
    # Not Resource: sidecars, such as a mesh proxy, would dilute the pod's utilization. A sidecar without a CPU request
    # would make it unavailable.
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

{{/* Fail if a disruption budget blocks every node drain: (dict "path" "api" "maxUnavailable" 0). */}}
{{- define "facial-service.checkBudget" -}}
{{- if has (toString .maxUnavailable) (list "0" "0%") }}
{{- fail (printf "%s.podDisruptionBudget.maxUnavailable: %v would block every node drain; set 1 or more, or set enabled to false" .path .maxUnavailable) }}
{{- end }}
{{- end }}

{{/* PodDisruptionBudget object: (dict "root" $ "component" "api" "maxUnavailable" 1). */}}
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
  # Pods that are not ready serve no requests, so they must not block a node drain.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "facial-service.selectorLabels" . | nindent 6 }}
{{- end }}

{{/*
Monitoring endpoint for KEDA, as JSON {"host": "name:port", "https": bool}. KEDA appends the path, and for a cluster it
prepends the server name, so the host is the headless Service.
*/}}
{{- define "facial-service.kedaEndpoint" -}}
{{- $url := trim .Values.externalNats.monitorUrl }}
{{- if .Values.nats.enabled }}
{{- if and .Values.networkPolicy.enabled (not .Values.networkPolicy.natsMonitorFrom) }}
{{- fail "worker.keda.enabled: networkPolicy blocks KEDA from the queue's monitoring port; add KEDA's pods to networkPolicy.natsMonitorFrom" }}
{{- end }}
{{- dict "host" (printf "%s-nats.%s.svc:8222" (include "facial-service.fullname" .) .Release.Namespace) "https" false | toJson }}
{{- else if not $url }}
{{- fail "worker.keda.enabled: KEDA needs the monitoring port of the NATS servers; set externalNats.monitorUrl, or use worker.autoscaling" }}
{{- else if not (regexMatch "^https?://[^/@?#]+/?$" $url) }}
{{- fail "worker.keda.enabled: expected externalNats.monitorUrl with only scheme, host and port; set it to a URL such as http://nats.example:8222" }}
{{- else }}
{{- dict "host" (regexReplaceAll "^https?://([^/]+)/?$" $url "${1}") "https" (hasPrefix "https:" $url) | toJson }}
{{- end }}
{{- end }}
