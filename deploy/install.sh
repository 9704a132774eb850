#!/usr/bin/env bash
# Installs the binary, its manual pages, and its completions for bash, zsh and fish: deploy/install.sh BINARY PREFIX
set -euo pipefail
binary=$1 prefix=$2

install -D -m 755 "$binary" "$prefix/bin/cc-executor"
write() { # FILE COMMAND...: the output of a command of the binary, as a file
    local file=$prefix/share/$1
    shift
    install -d "$(dirname "$file")"
    # By its name, because the scripts call the binary as they were made by it.
    PATH=$prefix/bin:$PATH cc-executor "$@" >"$file"
}
write bash-completion/completions/cc-executor completions bash
write zsh/site-functions/_cc-executor completions zsh
write fish/vendor_completions.d/cc-executor.fish completions fish
write man/man1/cc-executor.1 man
for command in $("$binary" --help | awk '/^Commands:/ { on = 1; next } /^$/ { on = 0 } on && /^  [a-z]/ && $1 != "help" { print $1 }'); do
    write "man/man1/cc-executor-$command.1" man "$command"
done
echo "installed cc-executor below $prefix; its manual: man cc-executor"
