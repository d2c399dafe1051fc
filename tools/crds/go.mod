// Modules with the definitions of custom resources that ../setup.py copies; nothing is built from them.
// To change a version, edit it, and put the sums that `go mod download -json MODULE@VERSION` prints into go.sum.
module facial-service/tools/crds

go 1.26.0

require (
	github.com/kedacore/keda/v2 v2.21.0
	github.com/prometheus-operator/prometheus-operator v0.85.0
	k8s.io/autoscaler/vertical-pod-autoscaler v1.8.1
	sigs.k8s.io/gateway-api v1.6.3
)
