{{/* "true" if this release runs NATS servers, otherwise empty. */}}
{{- define "facial-service.hasNats" -}}
{{- if and .Values.worker.enabled .Values.nats.enabled }}true{{ end }}
{{- end }}

{{/* "true" if an autoscaler sets the number of pods, otherwise empty: (dict "root" $ "component" "api"). */}}
{{- define "facial-service.isScaled" -}}
{{- $values := get .root.Values .component }}
{{- if or $values.autoscaling.enabled (dig "keda" "enabled" false $values) }}true{{ end }}
{{- end }}

{{/*
Number of pods of a Deployment, as a field of its spec. An autoscaler owns the number: an upgrade repeats the current one,
because Kubernetes sets a number that Helm no longer specifies to 1. Without access to the cluster, the field is absent:
(dict "root" $ "component" "api").
*/}}
{{- define "facial-service.replicas" -}}
{{- if include "facial-service.isScaled" . }}
{{- $name := printf "%s-%s" (include "facial-service.fullname" .root) .component }}
{{- $current := lookup "apps/v1" "Deployment" .root.Release.Namespace $name }}
{{- if and $current (hasKey ($current.spec | default dict) "replicas") -}}
replicas: {{ int $current.spec.replicas }}
{{- end }}
{{- else -}}
replicas: {{ int (get .root.Values .component).replicas }}
{{- end }}
{{- end }}

{{/* Update strategy of a Deployment: a pod stops only after its replacement is ready. */}}
{{- define "facial-service.strategy" -}}
{{- with .strategy }}
{{- toYaml . }}
{{- else -}}
type: RollingUpdate
rollingUpdate: {maxUnavailable: 0, maxSurge: 25%}
{{- end }}
{{- end }}

{{/* Minimum number of pods of a component, with any kind of scaling: (dict "root" $ "component" "api"). */}}
{{- define "facial-service.minPods" -}}
{{- $values := get .root.Values .component }}
{{- if dig "keda" "enabled" false $values }}
{{- int $values.keda.minReplicas }}
{{- else if $values.autoscaling.enabled }}
{{- int $values.autoscaling.minReplicas }}
{{- else }}
{{- int $values.replicas }}
{{- end }}
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
{{- $resources := $values.resources | default dict }}
{{- if not (or (dig "requests" "cpu" "" $resources) (dig "limits" "cpu" "" $resources)) }}
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

{{/* Fail if a disruption budget blocks every node drain: (dict "root" $ "component" "api" "budget" $budget). */}}
{{- define "facial-service.checkBudget" -}}
{{- $maxUnavailable := .budget.maxUnavailable }}
{{- $pods := include "facial-service.minPods" . | int }}
{{- if not (kindIs "invalid" .budget.minAvailable) }}
{{- $text := include "facial-service.text" .budget.minAvailable }}
{{- if or (eq $text "100%") (and (not (hasSuffix "%" $text)) (ge (int $text) (max 1 $pods))) }}
{{- fail (printf "%s.podDisruptionBudget.minAvailable: %s would block every node drain while %d pods run; set less, or set enabled to false" .component $text $pods) }}
{{- end }}
{{- else if has (toString $maxUnavailable) (list "0" "0%") }}
{{- fail (printf "%s.podDisruptionBudget.maxUnavailable: %v would block every node drain; set 1 or more, or set enabled to false" .component $maxUnavailable) }}
{{- end }}
{{- end }}

{{/* PodDisruptionBudget object: (dict "root" $ "component" "api" "budget" (dict "maxUnavailable" 1)). */}}
{{- define "facial-service.pdb" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "facial-service.fullname" .root }}-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "facial-service.labels" . | nindent 4 }}
spec:
  {{- if kindIs "invalid" .budget.minAvailable }}
  maxUnavailable: {{ toYaml .budget.maxUnavailable }}
  {{- else }}
  minAvailable: {{ toYaml .budget.minAvailable }}
  {{- end }}
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
{{- $url := trim (include "facial-service.externalUrl" (dict "root" $ "name" "monitorUrl")) }}
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
