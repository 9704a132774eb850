#!/usr/bin/env bash
# Runs compose, of either major version, with deploy/compose.yaml: deploy/compose.sh ps
set -euo pipefail
if docker compose version >/dev/null 2>&1; then compose=(docker compose); else compose=(docker-compose); fi
export COMPOSE_PROJECT_NAME=${COMPOSE_PROJECT_NAME:-cc-executor}
exec "${compose[@]}" -f "$(dirname "$0")/compose.yaml" "$@"
