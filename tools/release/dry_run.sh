#!/usr/bin/env bash
# Try everything of a release that needs no registry and no identity: check the workflows and the versions, package the
# chart, build the image twice and compare the digests, write the SBOM and check it. Results are in build/release.
# Environment: BASE_IMAGE and BUILDX_BUILDER, as for image.sh; OUTPUT, another folder.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$PWD/.tools/bin:$PATH

# As in the workflow. The default builder of Docker has no option to rewrite timestamps.
buildkit=$(sed -n 's/^ *driver-opts: image=//p' .github/workflows/release.yml | sort -u)
builder=facial-service-release
folder=${OUTPUT:-build/release}
log() { printf '· %s\n' "$*" >&2; }
fail() { log "$*"; exit 1; }

for program in actionlint helm syft; do
  command -v "$program" >/dev/null || fail "$program: not found on PATH; run \`make release-tools\`"
done
docker version >/dev/null 2>&1 || [[ -n ${BUILDX_BUILDER:-} ]] || fail "docker: no engine runs; it builds the image"
if [[ -z ${BUILDX_BUILDER:-} ]]; then
  export BUILDX_BUILDER=$builder
  docker buildx inspect "$builder" >/dev/null 2>&1 \
    || docker buildx create --name "$builder" --driver docker-container --driver-opt "image=$buildkit" >/dev/null
fi
docker buildx inspect --bootstrap >/dev/null || fail "builder $BUILDX_BUILDER: not started; it needs the image $buildkit"

log "workflows and versions"
actionlint
python3 tools/release/version.py --check
rm -rf "$folder"
mkdir -p "$folder"

log "chart"
package=$(tools/release/chart.sh "$folder")

log "image, twice"
first=$(tools/release/image.sh layout "$folder/image")
second=$(BUILD_OPTIONS="${BUILD_OPTIONS:-} --no-cache" tools/release/image.sh layout "$folder/second")
[[ $first == "$second" ]] || fail "image: expected the same digest from two builds, got $first and $second"
rm -r "$folder/second"

log "SBOM"
tools/release/sbom.sh "oci-dir:$folder/image" "$folder/facial-service.spdx.json"

printf '%-8s%s\n' image "$first (equal in two builds)" chart "$package" sbom "$folder/facial-service.spdx.json"
