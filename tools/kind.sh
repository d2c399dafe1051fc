#!/usr/bin/env bash
# Manage a kind cluster with kube-prometheus-stack and the service. Works with bash 3.2, which macOS has.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat <<'TEXT'
usage: tools/kind.sh up|down|forward

  up       create the cluster of kind-config.yaml, load the image, install kube-prometheus-stack and the chart (5 minutes)
  down     delete the cluster
  forward  forward ports of the service, Prometheus, Alertmanager and Grafana, and print their URLs; stop with Ctrl-C

environment:
  IMAGE                image to load (default: facial-service:e2e, which `make image` builds)
  NODE_IMAGE           image of the nodes, for a mirror of Docker Hub or an image of your own
  KIND_MONITORING      chart (default) installs kube-prometheus-stack and metrics-server; none installs neither
  KPS_VERSION          version of kube-prometheus-stack
  KPS_REPO             repository of its chart
  METRICS_SERVER_REPO  repository of the chart metrics-server

example: make image kind-up forward
TEXT
}

cluster=facial-service
release=facial
namespace=facial-service
context=kind-$cluster
image=${IMAGE:-facial-service:e2e}
node_image=${NODE_IMAGE:-kindest/node:v1.34.0@sha256:7416a61b42b1662ca6ca89f02028ac133a309a2a30ba309614e8ec94d976dc5a}
monitoring=${KIND_MONITORING:-chart}
kps_version=${KPS_VERSION:-88.5.3}
kps_repo=${KPS_REPO:-https://prometheus-community.github.io/helm-charts}
metrics_server_version=3.14.0
metrics_server_repo=${METRICS_SERVER_REPO:-https://kubernetes-sigs.github.io/metrics-server}

log() { printf '· %s\n' "$*" >&2; }
fail() { log "$*"; exit 1; }
need() { # need PROGRAM HINT
  command -v "$1" >/dev/null || fail "$1: not found on PATH; $2"
}
need_kind() { need kind "install it with: go install sigs.k8s.io/kind@v0.33.0"; }
need_kubectl() { need kubectl "see 'Install Tools' in the Kubernetes documentation"; }
kube() { kubectl --context "$context" "$@"; }
install() { # install RELEASE CHART OPTIONS…: without the notes of the chart
  helm --kube-context "$context" upgrade --install "$@" >/dev/null
}
exists() { kind get clusters 2>/dev/null | grep -qx "$cluster"; }
responds() { kube get --raw /readyz --request-timeout 10s >/dev/null 2>&1; }

up() {
  [[ $image == *:* ]] || fail "IMAGE: expected name:tag, got $image"
  [[ $monitoring == chart || $monitoring == none ]] || fail "KIND_MONITORING: expected chart or none, got $monitoring"
  need docker "kind runs nodes as containers"
  need_kind
  need_kubectl
  need helm "\`python3 tools/setup.py helm\` installs it into .tools/bin"
  docker image inspect "$image" >/dev/null 2>&1 || fail "image $image: not found; run \`make image\`"
  create_cluster
  log "loading $image"
  load_image
  [[ $monitoring == none ]] || install_monitoring
  install_definitions
  install_service
  cat <<TEXT
service     http://127.0.0.1:8080/docs
monitoring  make forward
tests       KUBECONFIG=${KUBECONFIG:-$HOME/.kube/config} make e2e
TEXT
}

create_cluster() {
  if exists && ! responds; then
    log "deleting the cluster, because its API server does not respond"
    kind delete cluster --quiet --name "$cluster"
  fi
  if ! exists; then
    log "creating the cluster (pulls the node image from its registry, once)"
    kind create cluster --quiet --config kind-config.yaml --image "$node_image" --wait 3m
  fi
}

load_image() {
  kind load docker-image "$image" --quiet --name "$cluster" 2>/dev/null && return
  # With its containerd store, Docker exports an image for several platforms that kind cannot import directly.
  local folder
  folder=$(mktemp -d)
  docker save "$image" --output "$folder/image.tar"
  kind load image-archive "$folder/image.tar" --quiet --name "$cluster"
  rm -r "$folder"
}

install_monitoring() {
  log "installing kube-prometheus-stack $kps_version (the nodes pull its images from their registries)"
  install kube-prometheus-stack kube-prometheus-stack --repo "$kps_repo" --version "$kps_version" \
    --namespace monitoring --create-namespace --values charts/kube-prometheus-stack-values.yaml --wait --timeout 10m
  # Helm does not wait for what the Operator creates.
  local name
  for name in prometheus-kube-prometheus-stack-prometheus alertmanager-kube-prometheus-stack-alertmanager; do
    wait_for "statefulset/$name" -n monitoring
    kube -n monitoring rollout status "statefulset/$name" --timeout 5m >/dev/null
  done
  log "installing metrics-server $metrics_server_version"
  install metrics-server metrics-server --repo "$metrics_server_repo" --version "$metrics_server_version" \
    --namespace kube-system --set 'args={--kubelet-insecure-tls}' --wait --timeout 5m
}

wait_for() { # wait_for OBJECT OPTIONS…: until it exists
  local i
  for ((i = 0; i < 120; i++)); do
    kube get "$@" >/dev/null 2>&1 && return
    sleep 1
  done
  fail "$1: expected within 2 minutes, not found"
}

install_definitions() { # of KEDA and the Gateway API, which some end-to-end tests use
  if ! command -v go >/dev/null; then
    log "without Go, the definitions of KEDA and the Gateway API are not installed; tests that use them are skipped"
    return
  fi
  python3 tools/setup.py crds >/dev/null
  kube apply --server-side --recursive --filename .tools/crds >/dev/null
}

install_service() {
  log "installing the service"
  kube create namespace "$namespace" --dry-run=client --output yaml | kube apply --filename - >/dev/null
  kube label namespace "$namespace" pod-security.kubernetes.io/enforce=restricted --overwrite >/dev/null
  local is_upgrade= options=() workload
  ! helm --kube-context "$context" status "$release" --namespace "$namespace" >/dev/null 2>&1 || is_upgrade=1
  if ! kube get crd servicemonitors.monitoring.coreos.com prometheusrules.monitoring.coreos.com >/dev/null 2>&1; then
    log "without the Prometheus Operator, the service is installed without ServiceMonitors and rules"
    options=(--set metrics.serviceMonitor.enabled=false,prometheusRule.enabled=false)
  fi
  install "$release" charts/facial-service --namespace "$namespace" --values charts/kind-values.yaml \
    --set-string "image.repository=${image%:*},image.tag=${image##*:}" ${options[@]+"${options[@]}"} --wait --timeout 5m
  [[ -n $is_upgrade ]] || return 0
  # A new image with the same name changes no object.
  kube -n "$namespace" rollout restart deployment,statefulset --selector "app.kubernetes.io/instance=$release" >/dev/null
  for workload in "deployment/$release-facial-service-"{api,worker} "statefulset/$release-facial-service-nats"; do
    kube -n "$namespace" rollout status "$workload" --timeout 3m >/dev/null
  done
}

down() {
  need_kind
  kind delete cluster --name "$cluster"
}

forward() {
  need_kubectl
  need curl "it checks whether a forwarded port answers"
  responds || fail "cluster $cluster: its API server does not respond; run \`make kind-up\`"
  local keepers=()
  trap 'kill "${keepers[@]}" 2>/dev/null; wait' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  keep_forwarding "service       http://127.0.0.1:8000/docs" "$namespace" "$release-facial-service-api" 8000:80 &
  keepers+=($!)
  keep_forwarding "Prometheus    http://127.0.0.1:9090" monitoring prometheus-operated 9090:9090 &
  keepers+=($!)
  keep_forwarding "Alertmanager  http://127.0.0.1:9093" monitoring alertmanager-operated 9093:9093 &
  keepers+=($!)
  keep_forwarding "Grafana       http://127.0.0.1:3000   user: admin, password:
              kubectl -n monitoring get secret kube-prometheus-stack-grafana -o jsonpath='{.data.admin-password}' | base64 -d" \
    monitoring kube-prometheus-stack-grafana 3000:80 &
  keepers+=($!)
  log "forwarding; stop with Ctrl-C"
  wait
}

keep_forwarding() { # keep_forwarding TEXT NAMESPACE SERVICE PORTS: print the text when the port answers; reconnect
  local text=$1 child='' errors shown='' reason='' found
  errors=$(mktemp)
  trap 'trap - TERM; [[ -z $child ]] || kill "$child" 2>/dev/null; rm -f "$errors"; exit' TERM
  trap '' INT
  if ! kube -n "$2" get service "$3" >/dev/null 2>&1; then
    log "service $3: not found in the namespace $2, not forwarded"
    rm -f "$errors"
    return
  fi
  while :; do
    kubectl --context "$context" -n "$2" port-forward "service/$3" "$4" >/dev/null 2>"$errors" &
    child=$!
    sleep 0.5  # a port that another program uses must not count as forwarded
    until curl --silent --max-time 5 --output /dev/null "http://127.0.0.1:${4%:*}"; do
      kill -0 "$child" 2>/dev/null || break
      sleep 0.5
    done
    if [[ -z $shown ]] && kill -0 "$child" 2>/dev/null; then
      printf '%s\n' "$text"
      shown=1
    fi
    wait "$child" || true
    child=''
    found=$(tail -n 1 "$errors")
    if [[ $found != "$reason" ]]; then
      log "service $3: ${found:-connection lost}; reconnecting"
      reason=$found
    fi
    sleep 1
  done
}

case ${1:-} in
  up | down | forward) "$1" ;;
  -h | --help) usage ;;
  *) usage >&2; exit 2 ;;
esac
