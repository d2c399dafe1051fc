#!/usr/bin/env bash
# Package the Helm chart, check the package, and print its path.
#   tools/release/chart.sh FOLDER
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$PWD/.tools/bin:$PATH

folder=${1:?expected the folder for the package}
helm lint --strict charts/facial-service >&2
package=$(helm package charts/facial-service --destination "$folder" | sed -n 's/^Successfully packaged chart and saved it to: //p')
for file in README.md values.yaml values.schema.json files/rules/facial-service-slo.yaml; do
  tar -xzOf "$package" "facial-service/$file" | cmp - "charts/facial-service/$file" >&2
done
# The version that a helm built from source assumes is too old for the chart.
kube=(--kube-version 1.34.0)
helm template facial "$package" "${kube[@]}" >/dev/null
if errors=$(helm template facial "$package" "${kube[@]}" --set unknown=1 2>&1) || [[ $errors != *unknown* ]]; then
  echo "$package: expected the schema to reject an unknown value, got: $errors" >&2
  exit 1
fi
echo "$package"
