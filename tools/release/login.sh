#!/usr/bin/env bash
# Log in to the registry of images and charts. Docker, helm, syft and cosign then use the same credentials.
#   tools/release/login.sh REGISTRY USER
# Environment: REGISTRY_TOKEN.
set -euo pipefail
docker login "$1" --username "$2" --password-stdin <<<"${REGISTRY_TOKEN:?expected the token for $1}"
