#!/usr/bin/env bash
# Check that the commit of a tag can be released: version and changelog match the tag, the commit is on main, and its
# continuous integration succeeded.
#   tools/release/check.sh TAG
# Environment: GH_TOKEN, which may read the workflow runs.
set -euo pipefail
cd "$(dirname "$0")/../.."

tag=${1:?expected a tag, such as v0.1.0}
commit=$(git rev-parse HEAD)
python3 tools/release/version.py --check
python3 tools/release/notes.py "$tag" >/dev/null
git merge-base --is-ancestor "$commit" origin/main || { echo "$tag: expected a commit on main, got $commit" >&2; exit 1; }
state=$(gh run list --workflow ci.yaml --branch main --commit "$commit" --limit 1 --json conclusion --jq '.[].conclusion')
[[ $state == success ]] || { echo "$tag: expected a successful run of ci.yaml, got ${state:-no finished run}" >&2; exit 1; }
