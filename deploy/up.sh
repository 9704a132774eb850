#!/usr/bin/env bash
# Builds the images, starts the backend and then the gateway, and returns when both are ready. Adds missing secrets to
# deploy/.env. Takes options of compose: deploy/up.sh -p NAME
set -euo pipefail
here=$(dirname "$0")
compose() { "$here/compose.sh" "${options[@]}" "$@"; }
options=("$@")

set_if_missing() { # NAME VALUE: adds a variable to deploy/.env unless it is there
    if ! grep -q "^$1=." "$here/.env"; then
        printf '%s=%s\n' "$1" "$2" >>"$here/.env"
        echo "made $1 in $here/.env"
    fi
}
secret() { head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n'; }
# A file given with --env-file must have all of them.
if [[ " $* " != *" --env-file "* ]]; then
    (umask 077 && touch "$here/.env")
    set_if_missing CC_EXECUTOR_TOKEN "$(secret)"
    set_if_missing CC_EXECUTOR_BACKEND_TOKEN "$(secret)"
    # The backend gets only the digest of its token, because commands can read its environment.
    token=$(sed -n 's/^CC_EXECUTOR_BACKEND_TOKEN=//p' "$here/.env" | tail -n 1)
    sed -i '/^CC_EXECUTOR_BACKEND_TOKEN_SHA256=/d' "$here/.env"
    printf 'CC_EXECUTOR_BACKEND_TOKEN_SHA256=%s\n' "$(printf %s "$token" | sha256sum | cut -d ' ' -f 1)" >>"$here/.env"
fi

not_ready() {
    echo "not ready: $1" >&2
    compose ps >&2
    compose logs --tail 20 >&2
    exit 1
}
# The containers of an earlier `make up` have the ports themselves.
if [ -z "$(compose ps -q)" ]; then
    # compose 2 writes `published: "8003"`, compose 1 `- 127.0.0.1:8003:8003/tcp`.
    ports=$(compose config | sed -nE 's/^ *published: "?([0-9]+)"?$/\1/p; s/^ *- ([0-9.]+:)?([0-9]+):[0-9]+\/tcp$/\2/p')
    "$here/free-ports.sh" $ports || { echo "set CC_EXECUTOR_PORT or CLAUDE_API_PORT in $here/.env for other ports" >&2; exit 1; }
fi
wait=()
if [[ $(compose up --help) == *"--wait-timeout "* ]]; then wait=(--wait --wait-timeout 120); fi
compose up -d --build "${wait[@]}" || not_ready "compose failed"

# Older releases of compose return when the containers run, and not when they are ready.
health() { docker inspect --format '{{.Name}} {{.State.Status}} {{if .State.Health}}{{.State.Health.Status}}{{end}}' $(compose ps -aq); }
for _ in $(seq 120); do
    found=$(health)
    if [[ $(grep -c ' running healthy$' <<<"$found") == 2 ]]; then
        echo "$found"
        compose exec -T claude-api test -w /workspace -a -w /home/executor \
            || not_ready "CC_EXECUTOR_CLAUDE_HOME and CC_EXECUTOR_WORKSPACE must be directories that user 10002 can write to"
        exit
    fi
    sleep 1
done
not_ready "after 120 s: $found"
