#!/usr/bin/env bash
# Tests the deployment on a real engine: builds both images, starts them with compose, runs `cc-executor check`, and injects
# the faults that a deployment may have. Each step prints its observations. Needs docker, compose and Python 3. Leaves only the
# images behind.
set -euo pipefail
cd "$(dirname "$0")"

project=cc-executor-test
port=${TEST_PORT:-18003}
# The variables of the shell would override those of this test.
unset ${!CC_EXECUTOR_*} ${!BACKEND_*} ANTHROPIC_API_KEY CLAUDE_CODE CLAUDE_API_PORT GATEWAY_MEMORY COMPOSE_PROJECT_NAME
work=$(mktemp -d)
# The users of the containers read the logs and write the output of clients, but must not read the tokens.
chmod 711 "$work"
mkdir -m 755 "$work/logs" && mkdir -m 777 "$work/load"

step() { printf '\n[%3d s] %s\n' "$SECONDS" "$*"; }
report() { sed 's/^/        /' <<<"$*"; }
fail() {
    printf '\nFAILED: %s\n' "$*" >&2
    exit 1
}
wait_until() { # SECONDS WHAT COMMAND...: waits until the command succeeds
    local patience=$1 what=$2 since=$SECONDS
    shift 2
    until "$@"; do
        ((SECONDS - since < patience)) || fail "waited $patience s in vain: $what"
        sleep 0.1
    done
}

compose() { ./compose.sh -p "$project" --env-file "$work/env" "$@"; }
run_silently() { "$@" >"$work/output" 2>&1 || { tail -n 30 "$work/output" >&2; fail "$*"; }; }
container() { compose ps -aq "$1"; }
clean_up() {
    local code=$?
    if ((code)); then
        for service in claude-api cc-executor-mcp; do
            docker logs --tail 40 "$(container $service)" 2>&1 | sed "s/^/$service | /" >&2 || true
        done
    fi
    jobs -p | xargs -r kill 2>/dev/null || true
    if [[ ${privileged-} ]]; then
        if ((code)); then docker logs --tail 40 "$privileged" 2>&1 | sed 's/^/privileged | /' >&2 || true; fi
        docker rm -f "$privileged" >/dev/null 2>&1 || true
    fi
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

# Runs a client command in a container of the gateway's image.
client() { timeout 120 docker run --rm -i --network host --env-file "$work/env" cc-executor-gateway "$@"; }
# Runs a command in the background, with the messages in the file $work/$1. Its process is $!.
start_run() { client run --json --heartbeat 1 "${@:2}" >"$work/$1" 2>"$work/$1.err" </dev/null & }
has_message() { grep -q "$2" "$work/$1" 2>/dev/null; }
assert_ending() { # FILE STATUS REASON
    wait_until 30 "the end of $1" has_message "$1" '"reason":'
    local end
    end=$(tail -n 1 "$work/$1")
    [[ $end == *"\"status\":\"$2\",\"reason\":\"$3\""* ]] || fail "$1 should end $2 $3: $end"
    report "$1: $(cut -c 1-400 <<<"${end#*\"params\":}")"
}
assert_runs_commands() { [[ $(client run -- 'echo "RESULT:::$((24 * 7))"') == RESULT:::168 ]] || fail "a command does not run"; }
get() { # URL [TOKEN]
    python3 -c '
import sys, urllib.request
headers = {"Authorization": "Bearer " + sys.argv[2]} if sys.argv[2] else {}
request = urllib.request.Request(sys.argv[1], headers=headers)
print(urllib.request.urlopen(request, timeout=5).read().decode())' "$1" "${2-}" 2>/dev/null
}
ready() { get "http://127.0.0.1:$port/ready" >/dev/null; }
# With the token, because without it /health has no numbers.
n_executions() { get "http://127.0.0.1:$port/health" "$(sed -n 's/^CC_EXECUTOR_TOKEN=//p' "$work/env")" | python3 -c 'import json, sys; print(json.load(sys.stdin)["executions"])'; }
n_executions_is() { [[ $(n_executions) == "$1" ]]; }
since() { docker inspect --format '{{.State.StartedAt}} {{.RestartCount}}' "$1"; }
processes() { docker top "$1" -eo pid,stat,comm | awk 'NR > 1 { print $2, $3 }'; }
# Whether a container has only its init and its service, the backend's also its subreaper, and no zombie.
has_only_service() {
    found=$(processes "$1")
    [[ $(sort <<<"$found" | sed 's/^[^Z]* //' | sed '/^cc-subreaper$/d' | xargs) == "cc-executor docker-init" ]]
}
assert_no_process_left() {
    for service in claude-api cc-executor-mcp; do
        local at
        at=$(container $service)
        wait_until 15 "only init and service are in $service" has_only_service "$at"
        report "$service: $(tr '\n' ',' <<<"$found")"
    done
}

# Removes the containers of an earlier run that was killed.
run_silently compose down -v

step "both images are built"
run_silently compose build
for image in cc-executor-gateway cc-executor-backend; do
    report "$image: $(($(docker image inspect --format '{{.Size}}' $image) / 1000000)) MB, user $(docker image inspect --format '{{.Config.User}}' $image)"
done

step "start order: a gateway before its backend"
run_silently compose up -d --no-deps cc-executor-mcp
gateway=$(container cc-executor-mcp)
not_ready() { ! reason=$(docker exec "$gateway" /usr/local/bin/cc-executor healthcheck 2>&1) && [[ $reason == *$1* ]]; }
wait_until 20 "the gateway reports a missing backend" not_ready '"reason":"starting"'
report "no backend: $reason"
cat >"$work/slow.yaml" <<'END'
services:
  claude-api:
    entrypoint: [bash, -c, "until [ -e /workspace/go ]; do sleep 0.1; done; exec cc-executor backend"]
END
run_silently compose -f "$work/slow.yaml" up -d --no-deps claude-api
backend=$(container claude-api)
wait_until 20 "the gateway reports an unreachable backend" not_ready 'refused'
report "a backend that is slow: $reason"
health_is() { [[ $(docker inspect --format '{{.State.Health.Status}}' "$2") == "$1" ]]; }
wait_until 40 "the engine reports the gateway as unhealthy" health_is unhealthy "$gateway"
report "the engine reports the gateway as unhealthy"
docker exec "$backend" touch /workspace/go
wait_until 20 "the gateway is ready" ready
wait_until 20 "the engine reports the gateway as healthy" health_is healthy "$gateway"
assert_runs_commands
[[ $(since "$gateway") == *" 0" ]] || fail "the gateway was restarted"
report "ready and healthy when the backend is, without a restart"
run_silently compose down -v

step "one command brings it up, ready when it returns"
run_silently ./up.sh -p "$project" --env-file "$work/env"
report "$(tail -n 2 "$work/output")"
ready || fail "up.sh returned before the gateway was ready"
gateway=$(container cc-executor-mcp) backend=$(container claude-api)
for at in "$gateway" "$backend"; do docker logs -f "$at" >>"$work/logs/all" 2>&1 & done
assert_runs_commands
healthy_at=$(docker inspect --format '{{range .State.Health.Log}}{{if eq .ExitCode 0}}{{.End.UTC.Format "2006-01-02T15:04:05.000"}} {{end}}{{end}}' "$backend" | cut -d ' ' -f 1)
[[ $healthy_at < $(docker inspect --format '{{.State.StartedAt}}' "$gateway") ]] || fail "the gateway was started before the backend was healthy"
report "the backend was healthy at $healthy_at, the gateway was started at $(docker inspect --format '{{.State.StartedAt}}' "$gateway")"
code=0
docker run --rm --network host -e CC_EXECUTOR_URL=ws://127.0.0.1:"$port" cc-executor-gateway run -- true 2>"$work/refused" || code=$?
((code == 77)) || fail "a client without token gets $code: $(cat "$work/refused")"
report "without a token: $(cat "$work/refused")"
for at in "$gateway" "$backend"; do
    [[ $(docker inspect --format '{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.Init}} {{.HostConfig.CapDrop}}' "$at") == "true true [ALL]" ]] \
        || fail "wrong container settings: $(docker inspect --format '{{json .HostConfig}}' "$at")"
done
docker exec -u 0 "$backend" touch /written 2>"$work/refused" && fail "the root file system can be written to"
grep -q 'Read-only' "$work/refused" || fail "writing failed for another reason: $(cat "$work/refused")"
report "$(cat "$work/refused")"
# A command reads every environment that it can.
client run -- 'cat /proc/[0-9]*/environ 2>/dev/null | tr "\0" "\n"; env' >"$work/environ"
grep -q ^PATH= "$work/environ" || fail "no environment could be read, so the test proves nothing"
for name in CC_EXECUTOR_TOKEN CC_EXECUTOR_BACKEND_TOKEN; do
    if grep -qF "$(sed -n "s/^$name=//p" "$work/env")" "$work/environ"; then fail "a command can read $name"; fi
done
report "a command finds no token in any environment that it can read"
report "in the backend: $(client run -- 'claude --version; python3 --version; git --version; id' | xargs -d '\n')"

step "cc-executor check"
docker run --rm --network host --env-file "$work/env" -v "$work/logs:/logs:ro" cc-executor-gateway check --logs /logs/all \
    || fail "the capability suite"
assert_no_process_left

step "kill -9 of the backend in mid-stream"
gateway_since=$(since "$gateway")
start_run killed -- 'setsid sleep 1000 & while :; do echo flowing; sleep 0.05; done'
wait_until 20 "output arrives" has_message killed flowing
ended=$(client run --detach -- 'seq 1 200000; exit 3') || fail "a detached command does not start"
unended=$(client run --detach -- 'seq 1 200000; sleep 1000') || fail "a detached command does not start"
client attach "$ended" >/dev/null && fail "the exit code of the detached command is lost"
wrote_all() { docker exec "$backend" bash -c "[ \$(tail -n 1 /var/lib/cc-executor/state/executions/$unended/stdout) = 200000 ]" 2>/dev/null; }
wait_until 20 "the output is on disk" wrote_all
# The shell of docker exec dies with the container.
docker exec "$backend" bash -c 'kill -KILL $(cat /proc/1/task/1/children)' || true
assert_ending killed FAILED backend_lost
wait_until 60 "the gateway is ready again" ready
assert_runs_commands
[[ $(since "$gateway") == "$gateway_since" ]] || fail "the gateway was restarted"
for id in "$ended" "$unended"; do
    code=0
    client attach "$id" >"$work/kept" 2>"$work/kept.err" || code=$?
    [[ $(sha256sum <"$work/kept") == $(seq 1 200000 | sha256sum) ]] || fail "the output of $id is not complete"
    report "$id: exit code $code $(cat "$work/kept.err")"
    if [[ $id == "$ended" ]]; then ((code == 3)) || fail "its ending is lost"; else ((code == 69)) || fail "its ending is invented"; fi
done
report "recovered, the gateway runs since $gateway_since, restarts of the backend: $(docker inspect --format '{{.RestartCount}}' "$backend")"
assert_no_process_left

step "docker pause of the backend"
start_run paused -- 'for n in $(seq 20); do echo $n; sleep 0.2; done'
wait_until 20 "output arrives" has_message paused '"content":"2'
docker pause "$backend" >/dev/null
wait_until 20 "a heartbeat reports the backend as silent" has_message paused '"backend":"silent"'
report "paused: $(grep '"backend":"silent"' "$work/paused" | head -n 1)"
docker unpause "$backend" >/dev/null
assert_ending paused COMPLETED exit
grep -q '"bytes":{"stdout":51,' "$work/paused" || fail "not all of the 20 lines arrived"
assert_no_process_left

step "the network between gateway and backend is cut"
start_run cut --reconnect=60 -- 'for n in $(seq 300); do echo $n; sleep 0.05; done'
start_run lost -- 'while :; do echo flowing; sleep 0.2; done'
for name in cut lost; do wait_until 20 "output arrives" has_message $name '"method":"output"'; done
id=$(grep -om 1 '"executionId":"[^"]*' "$work/cut" | cut -d '"' -f 4)
docker network disconnect "${project}_private" "$backend"
assert_ending cut FAILED backend_lost
assert_ending lost FAILED backend_lost
if ready; then fail "the gateway is ready without a backend"; fi
report "not ready: $(docker exec "$gateway" /usr/local/bin/cc-executor healthcheck 2>&1)"
docker network connect --alias claude-api "${project}_private" "$backend"
wait_until 30 "the gateway is ready again" ready
client attach "$id" >"$work/attached" || fail "the detachable execution did not continue: $(cat "$work/attached")"
[[ $(cat "$work/attached") == "$(seq 300)" ]] || fail "the output written meanwhile is incomplete"
report "connected again: $(wc -l <"$work/attached") lines of the detachable execution, complete"
assert_no_process_left

step "docker stop of the gateway under load"
timeout 120 docker run --rm --network host --env-file "$work/env" -v "$work/load:/load" --entrypoint bash cc-executor-backend -c '
    commands=("sleep 5; echo done" "sleep 1000" "while :; do echo flowing; sleep 0.02; done")
    for n in $(seq 50); do
        cc-executor run --json -- "${commands[n % 3]}" 2>/load/$n.err | tail -n 1 >/load/$n &
    done
    wait' &
load=$!
wait_until 60 "50 executions run" n_executions_is 50
stopped_at=$SECONDS
docker stop "$gateway" >/dev/null
took=$((SECONDS - stopped_at)) code=$(docker inspect --format '{{.State.ExitCode}}' "$gateway")
wait $load || true
((code == 0)) || fail "the gateway exited with $code"
((took < 15)) || fail "the stop took $took s"
endings=$(for n in $(seq 50); do grep -o '"status":"[A-Z]*","reason":"[a-z_]*"' "$work/load/$n" || cat "$work/load/$n" "$work/load/$n.err"; done | sort | uniq -c)
report "exit code 0 after $took s, the endings of 50 clients:"
report "$endings"
[[ $(grep -cE '"status":"(COMPLETED","reason":"exit|CANCELLED","reason":"drained)"' <(cat "$work"/load/*)) == 50 ]] || fail "not all clients got an ending"
grep -q COMPLETED <<<"$endings" || fail "no command was allowed to finish"
docker start "$gateway" >/dev/null
docker logs -f --since 1s "$gateway" >>"$work/logs/all" 2>&1 &
wait_until 30 "the gateway is ready again" ready
assert_no_process_left

step "a command runs out of memory"
backend_since=$(since "$backend")
# The number of OOM kills in the container, by either version of control groups.
oom_kills() { docker exec "$backend" bash -c 'cat /sys/fs/cgroup/memory/memory.oom_control /sys/fs/cgroup/memory.events 2>/dev/null | sed -n "s/^oom_kill //p"'; }
before=$(oom_kills)
start_run bystander -- 'for n in $(seq 100); do echo $n; sleep 0.05; done'
wait_until 20 "output arrives" has_message bystander '"method":"output"'
start_run greedy -- 'exec python3 -c "kept = [bytes([1]) * (1 << 24) for n in range(1000)]"'
assert_ending greedy FAILED signal
has_message greedy '"signal":"SIGKILL"' || fail "the command was not killed by the kernel"
# This backend may make no cgroup, so it cannot tell whose process the kernel killed.
has_message greedy '"message":"memory may have run out' || fail "the ending does not say that memory may have run out"
(($(oom_kills) > before)) || fail "the kernel has counted no OOM kill"
report "OOM kills: $(oom_kills), before: $before"
assert_ending bystander COMPLETED exit
[[ $(since "$backend") == "$backend_since" ]] || fail "the backend was restarted"
assert_no_process_left

step "a command runs out of memory in a cgroup of its own"
cat >"$work/privileged" <<'END'
set -e
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    # Version 2 only: the service is put in a group of its own, as systemd does with DelegateSubgroup=.
    mkdir /sys/fs/cgroup/service
    echo $$ >/sys/fs/cgroup/service/cgroup.procs
    python3 -c 'import os; os.setxattr("/sys/fs/cgroup", "user.delegate", b"1")'
elif ! grep -q ' cgroup2 ' /proc/mounts; then
    mkdir /run/cgroup2
    mount -t cgroup2 none /run/cgroup2
fi
exec cc-executor serve --bind "127.0.0.1:$1" --containment cgroup
END
# An engine that is itself confined cannot give a container every capability. tests/usage/memory.rs tests the same without.
if docker run --rm --privileged --user 0 --network host --entrypoint true cc-executor-backend 2>"$work/refused"; then
    privileged=$(docker run -d --privileged --user 0 --network host --memory 256m --memory-swap 256m \
        -e CC_EXECUTOR_TOKEN="$(sed -n 's/^CC_EXECUTOR_TOKEN=//p' "$work/env")" -v "$work/privileged:/privileged:ro" --entrypoint bash cc-executor-backend /privileged $((port + 1)))
    privileged_ready() { get "http://127.0.0.1:$((port + 1))/ready" >/dev/null; }
    wait_until 20 "the service with cgroups is ready" privileged_ready
    start_run hog --url "ws://127.0.0.1:$((port + 1))" -- 'exec python3 -c "kept = [bytes([1]) * (1 << 24) for n in range(1000)]"'
    assert_ending hog FAILED oom
    has_message hog '"signal":"SIGKILL"' || fail "the command was not killed by the kernel"
    start_run killed-by-hand --url "ws://127.0.0.1:$((port + 1))" -- 'kill -9 $$'
    assert_ending killed-by-hand FAILED signal
    docker rm -f "$privileged" >/dev/null
    privileged=
else
    printf 'LEFT OUT: a command that runs out of memory in a cgroup of its own: no privileged container: %s\n' "$(cat "$work/refused")" >&2
fi

step "the disk is full"
start_run full -- 'head -c 200M /dev/zero >/tmp/filled'
assert_ending full FAILED exit
grep -o '[^"]*No space left on device' "$work/full" >"$work/disk-full" || fail "the output does not name the full disk"
report "$(cat "$work/disk-full")"
assert_runs_commands
report "another command runs beside it"
[[ $(client run -- 'rm /tmp/filled && echo gone') == gone ]] || fail "the file cannot be removed"
assert_no_process_left

step "everything is restarted"
start_run interrupted -- 'sleep 1000'
wait_until 20 "the command runs" has_message interrupted RUNNING
run_silently compose restart
assert_ending interrupted CANCELLED drained
wait_until 60 "the gateway is ready again" ready
client check --only basic,stress,cancel || fail "the suite after the restart"
assert_no_process_left

step "the logs"
run_silently compose stop
for service in cc-executor-mcp claude-api; do
    at=$(container $service)
    report "$service exited with $(docker inspect --format '{{.State.ExitCode}}' "$at")"
    [[ $(docker inspect --format '{{.State.ExitCode}}' "$at") == 0 ]] || fail "$service should exit with 0"
    deaths=$([[ $service == claude-api ]] && echo 1 || echo 0)
    audited=$(docker logs "$at" 2>&1 | ./audit.py --deaths "$deaths" --errors 0 --least 100) || fail "the log of $service: $audited"
    report "$service: $audited"
done
docker logs "$gateway" >"$work/logs/both" 2>&1
docker logs "$backend" >>"$work/logs/both" 2>&1
session=$(sed -n '/"reason":"backend_lost"/s/.*"session_id":"\([^"]*\).*/\1/p' "$work/logs/both" | sed -n 1p)
timeline=$(docker run --rm -v "$work/logs:/logs:ro" cc-executor-gateway logs --session "$session" /logs/both) || fail "no timeline of session $session"
for event in session.opened process.started execution.finished session.closed; do
    [[ $timeline == *"$event"* ]] || fail "the timeline lacks $event: $timeline"
done
report "the session whose backend was killed:"
report "$(cut -c 1-200 <<<"$timeline")"

step "all steps passed"
