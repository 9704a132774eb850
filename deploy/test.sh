#!/usr/bin/env bash
# The deployment on a real engine: builds both images, brings them up with compose, runs `cc-executor check`, and
# then injects each fault that a deployment meets. Every step prints what it saw. Needs docker, compose and
# Python 3; of what it starts only the images stay.
set -euo pipefail
cd "$(dirname "$0")"

project=cc-executor-test
port=${TEST_PORT:-18003}
# The shell's own would win over those of this test.
unset ${!CC_EXECUTOR_*} ${!BACKEND_*} ANTHROPIC_API_KEY CLAUDE_CODE CLAUDE_API_PORT GATEWAY_MEMORY COMPOSE_PROJECT_NAME
work=$(mktemp -d)
# The containers' users read the logs and write what clients were told; the tokens are nobody's.
chmod 711 "$work"
mkdir -m 755 "$work/logs" && mkdir -m 777 "$work/load"

step() { printf '\n[%3d s] %s\n' "$SECONDS" "$*"; }
saw() { sed 's/^/        /' <<<"$*"; }
fail() {
    printf '\nFAILED: %s\n' "$*" >&2
    exit 1
}
until_so() { # SECONDS WHAT COMMAND...: waits for a fact
    local patience=$1 what=$2 since=$SECONDS
    shift 2
    until "$@"; do
        ((SECONDS - since < patience)) || fail "waited $patience s in vain: $what"
        sleep 0.1
    done
}

compose() { ./compose.sh -p "$project" --env-file "$work/env" "$@"; }
quietly() { "$@" >"$work/said" 2>&1 || { tail -n 30 "$work/said" >&2; fail "$*"; }; }
container() { compose ps -aq "$1"; }
clean_up() {
    local code=$?
    if ((code)); then
        for service in claude-api cc-executor-mcp; do
            docker logs --tail 40 "$(container $service)" 2>&1 | sed "s/^/$service | /" >&2 || true
        done
    fi
    jobs -p | xargs -r kill 2>/dev/null || true
    compose down -v >/dev/null 2>&1 || true
    rm -rf "$work"
    exit $code
}
trap clean_up EXIT

secret() { head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n'; }
backend_token=$(secret)
umask 077
cat >"$work/env" <<END
CC_EXECUTOR_TOKEN=$(secret)
CC_EXECUTOR_BACKEND_TOKEN=$backend_token
CC_EXECUTOR_BACKEND_TOKEN_SHA256=$(printf %s "$backend_token" | sha256sum | cut -d ' ' -f 1)
CC_EXECUTOR_URL=ws://127.0.0.1:$port
CC_EXECUTOR_PORT=$port
CLAUDE_API_PORT=$((port - 1))
BACKEND_MEMORY=1g
BACKEND_TMP=64m
CC_EXECUTOR_CONSUMER_STALL_MS=5000
END
umask 022

# A client in a container of its own, from the gateway's image.
client() { timeout 120 docker run --rm -i --network host --env-file "$work/env" cc-executor-gateway "$@"; }
# The same in the background: its messages go to a file. $! is its process.
follow() { client run --json --heartbeat 1 "${@:2}" >"$work/$1" 2>"$work/$1.err" </dev/null & }
heard() { grep -q "$2" "$work/$1" 2>/dev/null; }
ended() { # FILE STATUS REASON
    until_so 30 "the end of $1" heard "$1" '"reason":'
    local end
    end=$(tail -n 1 "$work/$1")
    [[ $end == *"\"status\":\"$2\",\"reason\":\"$3\""* ]] || fail "$1 should end $2 $3: $end"
    saw "$1: $(cut -c 1-400 <<<"${end#*\"params\":}")"
}
runs() { [[ $(client run -- 'echo "RESULT:::$((24 * 7))"') == RESULT:::168 ]] || fail "a command does not run"; }
get() { python3 -c 'import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())' "$1" 2>/dev/null; }
ready() { get "http://127.0.0.1:$port/ready" >/dev/null; }
n_executions() { get "http://127.0.0.1:$port/health" | python3 -c 'import json, sys; print(json.load(sys.stdin)["executions"])'; }
n_executions_is() { [[ $(n_executions) == "$1" ]]; }
since() { docker inspect --format '{{.State.StartedAt}} {{.RestartCount}}' "$1"; }
processes() { docker top "$1" -eo pid,stat,comm | awk 'NR > 1 { print $2, $3 }'; }
# In either container there is the init and the service, in the backend's its subreaper, and nothing that has ended and
# was not reaped.
bare() {
    found=$(processes "$1")
    [[ $(sort <<<"$found" | sed 's/^[^Z]* //' | sed '/^cc-subreaper$/d' | xargs) == "cc-executor docker-init" ]]
}
nothing_left() {
    for service in claude-api cc-executor-mcp; do
        local at
        at=$(container $service)
        until_so 15 "only init and service are in $service" bare "$at"
        saw "$service: $(tr '\n' ',' <<<"$found")"
    done
}

# What an earlier run left that was killed.
quietly compose down -v

step "both images are built"
quietly compose build
for image in cc-executor-gateway cc-executor-backend; do
    saw "$image: $(($(docker image inspect --format '{{.Size}}' $image) / 1000000)) MB, user $(docker image inspect --format '{{.Config.User}}' $image)"
done

step "start order: a gateway before its backend"
quietly compose up -d --no-deps cc-executor-mcp
gateway=$(container cc-executor-mcp)
not_ready() { ! reason=$(docker exec "$gateway" /usr/local/bin/cc-executor healthcheck 2>&1) && [[ $reason == *$1* ]]; }
until_so 20 "it says that its backend is not there" not_ready '"reason":"starting"'
saw "no backend: $reason"
cat >"$work/slow.yaml" <<'END'
services:
  claude-api:
    entrypoint: [bash, -c, "until [ -e /workspace/go ]; do sleep 0.1; done; exec cc-executor backend"]
END
quietly compose -f "$work/slow.yaml" up -d --no-deps claude-api
backend=$(container claude-api)
until_so 20 "it says that its backend does not answer" not_ready 'refused'
saw "a backend that is slow: $reason"
health_is() { [[ $(docker inspect --format '{{.State.Health.Status}}' "$2") == "$1" ]]; }
until_so 40 "the gateway is called unhealthy" health_is unhealthy "$gateway"
saw "the engine calls the gateway unhealthy"
docker exec "$backend" touch /workspace/go
until_so 20 "it is ready" ready
until_so 20 "the gateway is called healthy" health_is healthy "$gateway"
runs
[[ $(since "$gateway") == *" 0" ]] || fail "the gateway was restarted"
saw "ready and healthy when the backend is, without a restart"
quietly compose down -v

step "one command brings it up, ready when it returns"
quietly ./up.sh -p "$project" --env-file "$work/env"
saw "$(tail -n 2 "$work/said")"
ready || fail "up.sh returned, and it is not ready"
gateway=$(container cc-executor-mcp) backend=$(container claude-api)
for at in "$gateway" "$backend"; do docker logs -f "$at" >>"$work/logs/all" 2>&1 & done
runs
healthy_at=$(docker inspect --format '{{range .State.Health.Log}}{{if eq .ExitCode 0}}{{.End.UTC.Format "2006-01-02T15:04:05.000"}} {{end}}{{end}}' "$backend" | cut -d ' ' -f 1)
[[ $healthy_at < $(docker inspect --format '{{.State.StartedAt}}' "$gateway") ]] || fail "the gateway was started before the backend was healthy"
saw "the backend was healthy at $healthy_at, the gateway was started at $(docker inspect --format '{{.State.StartedAt}}' "$gateway")"
code=0
docker run --rm --network host -e CC_EXECUTOR_URL=ws://127.0.0.1:"$port" cc-executor-gateway run -- true 2>"$work/refused" || code=$?
((code == 77)) || fail "a client without token gets $code: $(cat "$work/refused")"
saw "without a token: $(cat "$work/refused")"
for at in "$gateway" "$backend"; do
    [[ $(docker inspect --format '{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.Init}} {{.HostConfig.CapDrop}}' "$at") == "true true [ALL]" ]] \
        || fail "not as it should be: $(docker inspect --format '{{json .HostConfig}}' "$at")"
done
docker exec -u 0 "$backend" touch /written 2>"$work/refused" && fail "the root file system can be written to"
grep -q 'Read-only' "$work/refused" || fail "writing failed for another reason: $(cat "$work/refused")"
saw "$(cat "$work/refused")"
# A command reads all that it can.
client run -- 'cat /proc/[0-9]*/environ 2>/dev/null | tr "\0" "\n"; env' >"$work/environ"
grep -q ^PATH= "$work/environ" || fail "no environment could be read: this shows nothing"
for name in CC_EXECUTOR_TOKEN CC_EXECUTOR_BACKEND_TOKEN; do
    if grep -qF "$(sed -n "s/^$name=//p" "$work/env")" "$work/environ"; then fail "a command can read $name"; fi
done
saw "a command finds no token in any environment that it can read"
saw "in the backend: $(client run -- 'claude --version; python3 --version; git --version; id' | xargs -d '\n')"

step "cc-executor check"
docker run --rm --network host --env-file "$work/env" -v "$work/logs:/logs:ro" cc-executor-gateway check --logs /logs/all \
    || fail "the capability suite"
nothing_left

step "kill -9 of the backend in mid-stream"
gateway_since=$(since "$gateway")
follow killed -- 'setsid sleep 1000 & while :; do echo flowing; sleep 0.05; done'
until_so 20 "output flows" heard killed flowing
# The shell that does it dies with the container.
docker exec "$backend" bash -c 'kill -KILL $(cat /proc/1/task/1/children)' || true
ended killed FAILED backend_lost
until_so 60 "it is ready again" ready
runs
[[ $(since "$gateway") == "$gateway_since" ]] || fail "the gateway was restarted"
saw "recovered, the gateway runs since $gateway_since, restarts of the backend: $(docker inspect --format '{{.RestartCount}}' "$backend")"
nothing_left

step "docker pause of the backend"
follow paused -- 'for n in $(seq 20); do echo $n; sleep 0.2; done'
until_so 20 "output flows" heard paused '"content":"2'
docker pause "$backend" >/dev/null
until_so 20 "a heartbeat says silent" heard paused '"backend":"silent"'
saw "paused: $(grep '"backend":"silent"' "$work/paused" | head -n 1)"
docker unpause "$backend" >/dev/null
ended paused COMPLETED exit
grep -q '"bytes":{"stdout":51,' "$work/paused" || fail "not all of its 20 lines"
nothing_left

step "the network between them is cut"
follow cut --reconnect=60 -- 'for n in $(seq 300); do echo $n; sleep 0.05; done'
follow lost -- 'while :; do echo flowing; sleep 0.2; done'
for name in cut lost; do until_so 20 "output flows" heard $name '"method":"output"'; done
id=$(grep -om 1 '"executionId":"[^"]*' "$work/cut" | cut -d '"' -f 4)
docker network disconnect "${project}_private" "$backend"
ended cut FAILED backend_lost
ended lost FAILED backend_lost
if ready; then fail "the gateway is ready without a backend"; fi
saw "not ready: $(docker exec "$gateway" /usr/local/bin/cc-executor healthcheck 2>&1)"
docker network connect --alias claude-api "${project}_private" "$backend"
until_so 30 "it is ready again" ready
client attach "$id" >"$work/attached" || fail "what may detach did not go on: $(cat "$work/attached")"
[[ $(cat "$work/attached") == "$(seq 300)" ]] || fail "what was written meanwhile is not whole"
saw "connected again: $(wc -l <"$work/attached") lines of the one that may detach, whole"
nothing_left

step "docker stop of the gateway under load"
timeout 120 docker run --rm --network host --env-file "$work/env" -v "$work/load:/load" --entrypoint bash cc-executor-backend -c '
    commands=("sleep 5; echo done" "sleep 1000" "while :; do echo flowing; sleep 0.02; done")
    for n in $(seq 50); do
        cc-executor run --json -- "${commands[n % 3]}" 2>/load/$n.err | tail -n 1 >/load/$n &
    done
    wait' &
load=$!
until_so 60 "50 executions run" n_executions_is 50
stopped_at=$SECONDS
docker stop "$gateway" >/dev/null
took=$((SECONDS - stopped_at)) code=$(docker inspect --format '{{.State.ExitCode}}' "$gateway")
wait $load || true
((code == 0)) || fail "the gateway exited with $code"
((took < 15)) || fail "the stop took $took s"
endings=$(for n in $(seq 50); do grep -o '"status":"[A-Z]*","reason":"[a-z_]*"' "$work/load/$n" || cat "$work/load/$n" "$work/load/$n.err"; done | sort | uniq -c)
saw "exit code 0 after $took s, the last words of 50 clients:"
saw "$endings"
[[ $(grep -cE '"status":"(COMPLETED","reason":"exit|CANCELLED","reason":"drained)"' <(cat "$work"/load/*)) == 50 ]] || fail "not all clients were told the end"
grep -q COMPLETED <<<"$endings" || fail "what could finish in time was not let finish"
docker start "$gateway" >/dev/null
docker logs -f --since 1s "$gateway" >>"$work/logs/all" 2>&1 &
until_so 30 "it is ready again" ready
nothing_left

step "a command runs out of memory"
backend_since=$(since "$backend")
# How often the kernel has ended something in the container, by either version of its control groups.
oom_kills() { docker exec "$backend" bash -c 'cat /sys/fs/cgroup/memory/memory.oom_control /sys/fs/cgroup/memory.events 2>/dev/null | sed -n "s/^oom_kill //p"'; }
before=$(oom_kills)
follow bystander -- 'for n in $(seq 100); do echo $n; sleep 0.05; done'
until_so 20 "output flows" heard bystander '"method":"output"'
follow greedy -- 'exec python3 -c "kept = [bytes([1]) * (1 << 24) for n in range(1000)]"'
ended greedy FAILED signal
heard greedy '"signal":"SIGKILL"' || fail "it was not the kernel"
(($(oom_kills) > before)) || fail "the kernel has not ended anything"
saw "ended by the kernel for memory: $(oom_kills), before: $before"
ended bystander COMPLETED exit
[[ $(since "$backend") == "$backend_since" ]] || fail "the backend was restarted"
nothing_left

step "the disk is full"
follow full -- 'head -c 200M /dev/zero >/tmp/filled'
ended full FAILED exit
grep -o '[^"]*No space left on device' "$work/full" >"$work/told" || fail "nobody said why"
saw "$(cat "$work/told")"
runs
saw "another command runs beside it"
[[ $(client run -- 'rm /tmp/filled && echo gone') == gone ]] || fail "the file cannot be removed"
nothing_left

step "everything is restarted"
follow interrupted -- 'sleep 1000'
until_so 20 "it runs" heard interrupted RUNNING
quietly compose restart
ended interrupted CANCELLED drained
until_so 60 "it is ready again" ready
client check --only basic,stress,cancel || fail "the suite after the restart"
nothing_left

step "the logs"
quietly compose stop
for service in cc-executor-mcp claude-api; do
    at=$(container $service)
    saw "$service exited with $(docker inspect --format '{{.State.ExitCode}}' "$at")"
    [[ $(docker inspect --format '{{.State.ExitCode}}' "$at") == 0 ]] || fail "$service should exit with 0"
    deaths=$([[ $service == claude-api ]] && echo 1 || echo 0)
    told=$(docker logs "$at" 2>&1 | ./audit.py --deaths "$deaths" --errors 0 --least 100) || fail "the log of $service: $told"
    saw "$service: $told"
done
docker logs "$gateway" >"$work/logs/both" 2>&1
docker logs "$backend" >>"$work/logs/both" 2>&1
session=$(sed -n '/"reason":"backend_lost"/s/.*"session_id":"\([^"]*\).*/\1/p' "$work/logs/both" | sed -n 1p)
timeline=$(docker run --rm -v "$work/logs:/logs:ro" cc-executor-gateway logs --session "$session" /logs/both) || fail "no timeline of session $session"
for event in session.opened process.started execution.finished session.closed; do
    [[ $timeline == *"$event"* ]] || fail "the timeline lacks $event: $timeline"
done
saw "the session whose backend was killed:"
saw "$(cut -c 1-200 <<<"$timeline")"

step "all of it passed"
