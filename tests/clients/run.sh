#!/usr/bin/env bash
# Other projects' clients against live servers with the demo models, each in an environment of its
# own, since they disagree about each other's versions:
#
#   tests/clients/run.sh                     all of them
#   tests/clients/run.sh litellm node        some
#
# Environments are kept in .clients/ and made once. PYTHON starts the server (default: python3).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

ALL="openai anthropic langchain litellm instructor pydantic_ai node"
declare -A PACKAGES=(
  [openai]="openai" [anthropic]="anthropic" [langchain]="langchain-openai" [litellm]="litellm"
  [instructor]="instructor" [pydantic_ai]="pydantic-ai-slim[openai]"
)
PYTHON="${PYTHON:-python3}"
HOME_DIR="$PWD/.clients"
mkdir -p "$HOME_DIR"

install() {
  local folder="$HOME_DIR/$1"
  [ -e "$folder/.done" ] && return
  if [ "$1" = node ]; then
    mkdir -p "$folder"
    cp tests/clients/node/* "$folder/" && npm --prefix "$folder" install --silent || return 1
  else
    python3 -m venv "$folder" || return 1
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check \
      pytest pytest-timeout "${PACKAGES[$1]}" || return 1
  fi
  touch "$folder/.done"
}

run() {
  if [ "$1" = node ]; then
    cp tests/clients/node/* "$HOME_DIR/node/" && (cd "$HOME_DIR/node" && node --test)
  else
    "$HOME_DIR/$1/bin/python" -m pytest -q -c /dev/null --rootdir tests/clients --timeout 180 \
      -p no:cacheprovider "tests/clients/test_$1.py"
  fi
}

# start NAME FLAGS...: a server, whose address is then in URL
SERVERS=()
trap 'kill "${SERVERS[@]}" 2>/dev/null; wait "${SERVERS[@]}" 2>/dev/null' EXIT
start() {
  local log="$HOME_DIR/$1.log" port
  shift
  port="$("$PYTHON" -c 'import socket as s; print(s.create_server(("127.0.0.1", 0)).getsockname()[1])')"
  URL="http://127.0.0.1:$port"
  "$PYTHON" -m pagemill serve --port "$port" --api-key test-key "$@" >"$log" 2>&1 &
  SERVERS+=("$!")
  for _ in $(seq 600); do
    kill -0 "${SERVERS[-1]}" 2>/dev/null || { cat "$log"; exit 1; }
    "$PYTHON" -c "import urllib.request as r; r.urlopen('$URL/ready')" 2>/dev/null && return
    sleep 0.2
  done
}

start text
export PAGEMILL_TEST_URL="$URL"
start vectors minilm
export PAGEMILL_TEST_VECTORS_URL="$URL"

failed=0
for client in ${*:-$ALL}; do
  echo "== $client"
  install "$client" || { echo "$client cannot be installed"; failed=1; continue; }
  run "$client" || failed=1
done
exit "$failed"
