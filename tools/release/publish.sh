#!/usr/bin/env bash
# Publish a release: the image for all platforms, the chart, their signatures, and an SBOM for each platform.
#   tools/release/publish.sh TAG IMAGE CHARTS ARCH=DIGEST…
# IMAGE and CHARTS are names without a scheme; the digests are those that `image.sh push` printed.
# Environment: GH_TOKEN, for the release (empty: none is created); COSIGN_OPTIONS, such as a key for a trial. By default,
# cosign signs without a key, with the identity of the workflow.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$PWD/.tools/bin:$PATH

tag=$1 image=$2 charts=$3 version=${1#v}
folder=build/release/$version
for platform in "${@:4}"; do
  [[ $platform == *=sha256:* ]] || { echo "$platform: expected ARCH=sha256:…" >&2; exit 2; }
done
notes=$(python3 tools/release/notes.py "$tag")
rm -rf "$folder"
mkdir -p "$folder"
printf '%s\n' "$notes" >"$folder/notes.md"
read -ra cosign_options <<<"${COSIGN_OPTIONS:---yes}"
log() { printf '· %s\n' "$*" >&2; }

package=$(tools/release/chart.sh "$folder")

log "SBOMs"
digests=()
for platform in "${@:4}"; do
  arch=${platform%%=*} digest=${platform#*=}
  digests+=("$image@$digest")
  tools/release/sbom.sh "registry:$image@$digest" "$folder/facial-service-$version-$arch.spdx.json" --platform "linux/$arch"
done

log "image $image:$version"
docker buildx imagetools create --tag "$image:$version" "${digests[@]}"
index=$(docker buildx imagetools inspect "$image:$version" --format '{{.Manifest.Digest}}')

log "chart $charts/facial-service:$version"
pushed=$(helm push "$package" "oci://$charts" 2>&1 | tee /dev/stderr | sed -n 's/^Digest: //p')
[[ $pushed == sha256:* ]] || { echo "helm push: expected the digest of the chart, found none" >&2; exit 1; }

log "signatures"
cosign sign "${cosign_options[@]}" --recursive "$image@$index"
cosign sign "${cosign_options[@]}" "$charts/facial-service@$pushed"
for platform in "${@:4}"; do
  arch=${platform%%=*}
  # The index contains the image of each platform and its provenance, which has no architecture.
  manifest=$(docker buildx imagetools inspect "$image@$index" \
    --format "{{range .Manifest.Manifests}}{{if eq .Platform.Architecture \"$arch\"}}{{.Digest}}{{end}}{{end}}")
  cosign attest "${cosign_options[@]}" --type spdxjson --predicate "$folder/facial-service-$version-$arch.spdx.json" "$image@$manifest"
done

printf '%s\n' "$image:$version@$index" "$charts/facial-service:$version@$pushed" | tee "$folder/digests.txt"
if [[ -n ${GH_TOKEN:-} ]]; then
  gh release create "$tag" --verify-tag --title "facial-service $version" --notes-file "$folder/notes.md" \
    "$package" "$folder"/*.spdx.json "$folder/digests.txt"
fi
