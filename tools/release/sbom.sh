#!/usr/bin/env bash
# Write the SBOM of an image in the format SPDX, and check it.
#   tools/release/sbom.sh SOURCE FILE [OPTION…]
# SOURCE is what syft reads, such as oci-dir:build/release/image, docker:facial-service or registry:NAME@DIGEST.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$PWD/.tools/bin:$PATH

source=${1:?expected the source of the image} file=${2:?expected the file for the SBOM}
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' app/__init__.py)
SYFT_CHECK_FOR_APP_UPDATE=false syft scan "$source" --quiet --source-name facial-service --source-version "$version" \
  --output "spdx-json=$file" "${@:3}"
"$(python3 tools/setup.py spdx | sed 's/^spdx *[^ ]* *//')/bin/python" tools/release/check_sbom.py "$file"
