#!/usr/bin/env bash
# Packs what `make install` installs: deploy/dist.sh BINARY
set -euo pipefail
binary=$1
name=cc-executor-$("$binary" --version | cut -d ' ' -f 2)-$(uname -m)-linux
dist=$(dirname "$(dirname "$binary")")/dist

rm -rf "$dist/$name"
"$(dirname "$0")/install.sh" "$binary" "$dist/$name" >/dev/null
# The same files give the same archive.
tar -C "$dist" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -czf "$dist/$name.tar.gz" "$name"
sha256sum "$dist/$name.tar.gz"
