#!/usr/bin/env bash
# Build the image of the current commit with BuildKit. Two builds have the same digest: timestamps are those of the
# commit, and everything that the image contains is pinned by digest or hash.
#   tools/release/image.sh layout FOLDER      write it as an OCI layout into FOLDER, for the platform of this machine
#   tools/release/image.sh push NAME ARCH     push it to NAME by digest, without a tag, with its provenance; write the
#                                             digest as ARCH=sha256:… to the file GITHUB_OUTPUT
# Environment: BASE_IMAGE, another base image; BUILDX_BUILDER, the builder to use; BUILD_OPTIONS, more options.
set -euo pipefail
cd "$(dirname "$0")/../.."

metadata=$(mktemp)
trap 'rm -f "$metadata"' EXIT
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
options=(--build-arg "REVISION=$(git rev-parse HEAD)" --build-arg "CREATED=$(git log -1 --format=%cI)" --metadata-file "$metadata")
[[ -z ${BASE_IMAGE:-} ]] || options+=(--build-arg "BASE_IMAGE=$BASE_IMAGE")
read -ra more <<<"${BUILD_OPTIONS:-}"

build() { # build OPTIONS…
  docker buildx build "${options[@]}" ${more[@]+"${more[@]}"} "$@" . >&2
  digest=$(grep -o '"containerimage\.digest": *"sha256:[0-9a-f]\{64\}"' "$metadata" | grep -o 'sha256:[0-9a-f]*') || { echo "docker buildx: expected the digest of the image in the metadata, found none" >&2; exit 1; }
}

case ${1:-} in
  layout)
    mkdir -p "$2"
    build --provenance false --output "type=oci,dest=$2,tar=false,rewrite-timestamp=true"
    echo "$digest"
    ;;
  push)
    build --platform "linux/$3" --provenance mode=max \
      --output "type=image,name=$2,push=true,push-by-digest=true,name-canonical=true,rewrite-timestamp=true"
    echo "$3=$digest" | tee -a "${GITHUB_OUTPUT:-/dev/null}"
    ;;
  *)
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" >&2
    exit 2
    ;;
esac
