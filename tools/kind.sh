#!/usr/bin/env bash
# Manage a kind cluster with kube-prometheus-stack and the service.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat <<'TEXT'
usage: tools/kind.sh up|down|forward

  up       create the cluster of kind-config.yaml, load the image, install kube-prometheus-stack and the chart (5 minutes)
  down     delete the cluster
  forward  forward ports of the service, Prometheus, Alertmanager and Grafana, and print their URLs; stop with Ctrl-C

environment:
  IMAGE        image to load (default: facial-service:e2e, which `make image` builds)
  KPS_VERSION  version of kube-prometheus-stack

example: make image kind-up forward
TEXT
}

cluster=facial-service
image=${IMAGE:-facial-service:e2e}
kps_version=${KPS_VERSION:-88.5.3}
release=facial
namespace=facial-service
context=kind-$cluster

log() { printf '· %s\n' "$*" >&2; }
need() { # need PROGRAM HINT
  command -v "$1" >/dev/null || { log "$1: not found on PATH; $2"; exit 1; }
}
kube() { kubectl --context "$context" "$@"; }

up() {
  [[ $image == *:* ]] || { log "IMAGE: expected name:tag, got $image"; exit 1; }
  need docker "kind runs nodes as containers"
  need kind "install it with: go install sigs.k8s.io/kind@v0.33.0"
  need kubectl "see 'Install Tools' in the Kubernetes documentation"
  need helm "\`python3 tools/setup.py helm\` installs it into .tools/bin"
  docker image inspect "$image" >/dev/null 2>&1 || { log "image $image: not found; run \`make image\`"; exit 1; }
  if ! kind get clusters 2>/dev/null | grep -qx "$cluster"; then
    log "creating the cluster (pulls the node image from its registry, once)"
    kind create cluster --config kind-config.yaml --wait 2m
  fi
  log "loading $image"
  kind load docker-image "$image" --name "$cluster"
  log "installing kube-prometheus-stack $kps_version (the nodes pull its images from their registries)"
  helm --kube-context "$context" upgrade --install kube-prometheus-stack kube-prometheus-stack \
    --repo https://prometheus-community.github.io/helm-charts --version "$kps_version" \
    --namespace monitoring --create-namespace --values charts/kube-prometheus-stack-values.yaml --wait --timeout 10m
  log "installing metrics-server, and the CRDs of KEDA and the Gateway API, for autoscaling and tests"
  helm --kube-context "$context" upgrade --install metrics-server metrics-server \
    --repo https://kubernetes-sigs.github.io/metrics-server --namespace kube-system \
    --set 'args={--kubelet-insecure-tls}' --wait --timeout 5m
  python3 tools/custom_resources.py
  local directory
  for directory in .tools/crds/{keda,gateway-api}@*; do kube apply --server-side --filename "$directory" >/dev/null; done
  log "installing the service"
  kube create namespace "$namespace" --dry-run=client --output yaml | kube apply --filename - >/dev/null
  kube label namespace "$namespace" pod-security.kubernetes.io/enforce=restricted --overwrite >/dev/null
  helm --kube-context "$context" upgrade --install "$release" charts/facial-service --namespace "$namespace" \
    --values charts/kind-values.yaml --set "image.repository=${image%:*},image.tag=${image##*:}" --wait --timeout 5m
  # Restart explicitly, because a new image with the same name changes no object.
  kube --namespace "$namespace" rollout restart deployment,statefulset --selector "app.kubernetes.io/instance=$release" >/dev/null
  local workload
  for workload in "deployment/$release-facial-service-"{api,worker} "statefulset/$release-facial-service-nats"; do
    kube --namespace "$namespace" rollout status "$workload" --timeout 3m
  done
  log "the service is available at http://127.0.0.1:8080/docs; \`make forward\` exposes the monitoring"
  log "before \`make e2e\`: export KUBECONFIG=${KUBECONFIG:-~/.kube/config}"
}

down() {
  need kind "install it with: go install sigs.k8s.io/kind@v0.33.0"
  kind delete cluster --name "$cluster"
}

forward() {
  need kubectl "see 'Install Tools' in the Kubernetes documentation"
  local pids=() pid
  trap 'kill "${pids[@]}" 2>/dev/null || true' EXIT
  kube -n "$namespace" port-forward "service/$release-facial-service-api" 8000:80 >/dev/null & pids+=($!)
  kube -n monitoring port-forward service/prometheus-operated 9090:9090 >/dev/null & pids+=($!)
  kube -n monitoring port-forward service/alertmanager-operated 9093:9093 >/dev/null & pids+=($!)
  kube -n monitoring port-forward service/kube-prometheus-stack-grafana 3000:80 >/dev/null & pids+=($!)
  cat <<'TEXT'
service       http://127.0.0.1:8000/docs
Prometheus    http://127.0.0.1:9090
Alertmanager  http://127.0.0.1:9093
Grafana       http://127.0.0.1:3000   user: admin, password:
              kubectl -n monitoring get secret kube-prometheus-stack-grafana -o jsonpath='{.data.admin-password}' | base64 -d
Stop with Ctrl-C.
TEXT
  wait -n "${pids[@]}" || { log "a port forward failed or its pod stopped"; exit 1; }
}

case ${1:-} in
  up | down | forward) "$1" ;;
  -h | --help) usage ;;
  *) usage >&2; exit 2 ;;
esac
