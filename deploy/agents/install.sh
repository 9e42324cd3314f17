#!/bin/sh
# Installs AI agents for an ado worker, at the versions that ado is tested with:
#
#     sh install.sh [--dir DIR] [AGENT...]        AGENT: claude-code, gemini-cli; both unless named
#
# They go to DIR, by default `agents` below ado's own directory, where a worker looks for them before it looks in its PATH.
# Needs npm, and for gemini-cli Node.js 20 or later. Nothing else on the machine is changed. Running it again is quick, and
# brings what is there to these versions.
#
# cursor-cli cannot be had from a registry: install it as its maker says (https://cursor.com/docs/cli), and see that
# `cursor-agent` is in the worker's PATH. ado drives it by the Agent Client Protocol, as recordings of it and its
# documentation say; unlike the others it is not tested with the program itself.
set -eu

CLAUDE_CODE=2.1.330
GEMINI_CLI=0.61.0

fail() {
    echo "install.sh: $1" >&2
    exit 1
}

dir="${ADO_HOME:-${XDG_DATA_HOME:-$HOME/.local/share}/ado}/agents"
if [ "${1:-}" = --dir ]; then
    [ $# -ge 2 ] || fail "--dir needs a directory"
    dir=$2
    shift 2
fi
[ $# -gt 0 ] || set -- claude-code gemini-cli
command -v npm >/dev/null || fail "there is no npm: install Node.js (Debian: apt-get install nodejs npm)"
mkdir -p "$dir/bin"
dir=$(cd "$dir" && pwd)

# One package of one version, without running anything of it.
install() {
    if [ "$(cat "$dir/$1/installed" 2>/dev/null)" != "$2" ]; then
        rm -rf "${dir:?}/$1"
        mkdir -p "$dir/$1"
        npm install --prefix "$dir/$1" --ignore-scripts --no-audit --no-fund --no-save --omit=dev --loglevel=error "$2"
        echo "$2" >"$dir/$1/installed"
    fi
}

# The name of a platform in npm's words.
platform() {
    case "$(uname -s)" in
    Linux) os=linux ;;
    Darwin) os=darwin ;;
    *) fail "there is no claude-code for $(uname -s)" ;;
    esac
    case "$(uname -m)" in
    x86_64 | amd64) cpu=x64 ;;
    aarch64 | arm64) cpu=arm64 ;;
    *) fail "there is no claude-code for $(uname -m)" ;;
    esac
    libc=
    if [ "$os" = linux ] && ldd /bin/sh 2>/dev/null | grep -q musl; then
        libc=-musl
    fi
    echo "$os-$cpu$libc"
}

for agent; do
    case $agent in
    claude-code)
        package="@anthropic-ai/claude-code-$(platform)"
        install claude-code "$package@$CLAUDE_CODE"
        ln -sf "../claude-code/node_modules/$package/claude" "$dir/bin/claude"
        echo "claude-code $CLAUDE_CODE: $dir/bin/claude"
        ;;
    gemini-cli)
        node=$(command -v node) || fail "there is no node: gemini-cli needs Node.js 20 or later"
        major=$("$node" --version | sed 's/^v\([0-9]*\).*/\1/')
        [ "$major" -ge 20 ] || fail "gemini-cli needs Node.js 20 or later, and $node is $("$node" --version)"
        install gemini-cli "@google/gemini-cli@$GEMINI_CLI"
        printf '#!/bin/sh\nexec "%s" "%s" "$@"\n' "$node" \
            "$dir/gemini-cli/node_modules/@google/gemini-cli/bundle/gemini.js" >"$dir/bin/gemini"
        chmod 755 "$dir/bin/gemini"
        echo "gemini-cli $GEMINI_CLI: $dir/bin/gemini"
        ;;
    cursor-cli) fail "cursor-cli is not in a registry: see https://cursor.com/docs/cli" ;;
    *) fail "\`$agent\` is none of claude-code, gemini-cli" ;;
    esac
done
