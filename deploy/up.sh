#!/usr/bin/env bash
# Builds the images, starts the backend and then the gateway, and returns when both are ready. When it is first
# run it makes the secrets. Options of compose may be given: deploy/up.sh -p NAME
set -euo pipefail
here=$(dirname "$0")

secret() { head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n'; }
if [ ! -e "$here/.env" ]; then
    (umask 077 && printf 'CC_EXECUTOR_TOKEN=%s\nCC_EXECUTOR_BACKEND_TOKEN=%s\n' "$(secret)" "$(secret)" >"$here/.env")
    echo "made $here/.env with two tokens: clients need CC_EXECUTOR_TOKEN"
fi
wait=()
if "$here/compose.sh" up --help | grep -q -- '--wait '; then wait=(--wait); fi
"$here/compose.sh" "$@" up -d --build "${wait[@]}"

# Older releases of compose return when the containers run, which is before they are ready.
health() {
    docker inspect --format '{{.Name}} {{.State.Status}} {{if .State.Health}}{{.State.Health.Status}}{{end}}' \
        $("$here/compose.sh" "$@" ps -q)
}
for _ in $(seq 120); do
    if ! health "$@" | grep -qv ' running healthy$'; then
        health "$@"
        exit
    fi
    sleep 1
done
echo "not ready after 120 s:" >&2
health "$@" >&2
"$here/compose.sh" "$@" logs --tail 20 >&2
exit 1
