#!/usr/bin/env bash
# Fails if a TCP port is taken on this machine, and says by which process: deploy/free-ports.sh PORT...
set -euo pipefail

owner_of() { # INODE: the name and the id of the process that has this socket
    local link pid
    link=$(find /proc/[0-9]*/fd -lname "socket:\[$1\]" -print -quit 2>/dev/null || true)
    pid=$(cut -d / -f 3 <<<"$link")
    if [ -n "$pid" ]; then
        echo "$(cat "/proc/$pid/comm") (process $pid)"
    else
        echo "a process of another user or container"
    fi
}

taken=0
for port in "$@"; do
    # State 0A is LISTEN; the tenth field is the socket's inode.
    inode=$(awk -v port="$(printf ':%04X' "$port")" \
        'index($2, port) && substr($2, length($2) - 4) == port && $4 == "0A" { print $10; exit }' \
        /proc/net/tcp /proc/net/tcp6 2>/dev/null || true)
    if [ -n "$inode" ]; then
        echo "port $port is taken by $(owner_of "$inode"): stop that process, or choose another port" >&2
        taken=1
    fi
done
exit $taken
