#!/usr/bin/env bash
# Other projects' clients against a live server with the demo model, each in an environment of its
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

PORT="$("$PYTHON" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')"
"$PYTHON" -m pagemill serve --port "$PORT" --api-key test-key >"$HOME_DIR/server.log" 2>&1 &
SERVER=$!
trap 'kill "$SERVER" 2>/dev/null; wait "$SERVER" 2>/dev/null' EXIT
for _ in $(seq 600); do
  kill -0 "$SERVER" 2>/dev/null || { cat "$HOME_DIR/server.log"; exit 1; }
  "$PYTHON" -c "import urllib.request as r; r.urlopen('http://127.0.0.1:$PORT/ready')" 2>/dev/null && break
  sleep 0.2
done
export PAGEMILL_TEST_URL="http://127.0.0.1:$PORT"

failed=0
for client in ${*:-$ALL}; do
  echo "== $client"
  install "$client" || { echo "$client cannot be installed"; failed=1; continue; }
  run "$client" || failed=1
done
exit "$failed"
