#!/usr/bin/env bash
# A cluster of kind with kube-prometheus-stack and the service, watched: up, down, and its ports forwarded.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat <<'TEXT'
usage: tools/kind.sh up|down|forward

  up       make the cluster of kind-config.yaml, load the image, install kube-prometheus-stack and the chart (5 minutes)
  down     delete the cluster
  forward  forward service, Prometheus, Alertmanager and Grafana, and print their addresses, until Ctrl-C

environment:
  IMAGE        image to load (facial-service:e2e; `make image` builds it)
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

say() { printf '· %s\n' "$*" >&2; }
need() { # need PROGRAM HINT
  command -v "$1" >/dev/null || { say "expected $1 on PATH; $2"; exit 1; }
}
kube() { kubectl --context "$context" "$@"; }

up() {
  [[ $image == *:* ]] || { say "expected IMAGE as name:tag, got $image"; exit 1; }
  need docker "kind runs its nodes as containers"
  need kind "with Go: go install sigs.k8s.io/kind@v0.33.0"
  need kubectl "see the documentation of Kubernetes, 'Install Tools'"
  need helm "\`python3 tools/setup.py helm\` builds it into .tools/bin"
  docker image inspect "$image" >/dev/null 2>&1 || { say "expected the image $image; \`make image\` builds it"; exit 1; }
  if ! kind get clusters 2>/dev/null | grep -qx "$cluster"; then
    say "making the cluster (its node image is pulled once; this needs an image registry)"
    kind create cluster --config kind-config.yaml --wait 2m
  fi
  say "loading $image"
  kind load docker-image "$image" --name "$cluster"
  say "installing kube-prometheus-stack $kps_version (its images are pulled by the nodes: this needs an image registry)"
  helm --kube-context "$context" upgrade --install kube-prometheus-stack kube-prometheus-stack \
    --repo https://prometheus-community.github.io/helm-charts --version "$kps_version" \
    --namespace monitoring --create-namespace --values charts/kube-prometheus-stack-values.yaml --wait --timeout 10m
  say "installing metrics-server and the definitions of KEDA and the Gateway API, for autoscalers and the tests"
  helm --kube-context "$context" upgrade --install metrics-server metrics-server \
    --repo https://kubernetes-sigs.github.io/metrics-server --namespace kube-system \
    --set 'args={--kubelet-insecure-tls}' --wait --timeout 5m
  python3 tools/custom_resources.py
  local folder
  for folder in .tools/crds/{keda,gateway-api}@*; do kube apply --server-side --filename "$folder" >/dev/null; done
  say "installing the service"
  kube create namespace "$namespace" --dry-run=client --output yaml | kube apply --filename - >/dev/null
  kube label namespace "$namespace" pod-security.kubernetes.io/enforce=restricted --overwrite >/dev/null
  helm --kube-context "$context" upgrade --install "$release" charts/facial-service --namespace "$namespace" \
    --values charts/kind-values.yaml --set "image.repository=${image%:*},image.tag=${image##*:}" --wait --timeout 5m
  # A new image of the same name changes no object.
  kube --namespace "$namespace" rollout restart deployment,statefulset --selector "app.kubernetes.io/instance=$release" >/dev/null
  local part
  for part in "deployment/$release-facial-service-"{api,worker} "statefulset/$release-facial-service-nats"; do
    kube --namespace "$namespace" rollout status "$part" --timeout 3m
  done
  say "the service is at http://127.0.0.1:8080/docs; \`make forward\` gives the rest"
  say "for \`make e2e\`: export KUBECONFIG=${KUBECONFIG:-~/.kube/config}"
}

down() {
  need kind "with Go: go install sigs.k8s.io/kind@v0.33.0"
  kind delete cluster --name "$cluster"
}

forward() {
  need kubectl "see the documentation of Kubernetes, 'Install Tools'"
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
Grafana       http://127.0.0.1:3000   user admin; the password:
              kubectl -n monitoring get secret kube-prometheus-stack-grafana -o jsonpath='{.data.admin-password}' | base64 -d
Ctrl-C ends them.
TEXT
  wait -n "${pids[@]}" || { say "a port could not be forwarded, or its pod went away"; exit 1; }
}

case ${1:-} in
  up | down | forward) "$1" ;;
  -h | --help) usage ;;
  *) usage >&2; exit 2 ;;
esac
