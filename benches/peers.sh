#!/bin/sh
# Measures ado beside ssh, docker logs, a plain QUIC stream, graphile-worker and BullMQ, in one run:
# benches/peers.sh [--quick] [--json FILE] ...
#
# As root on Debian it installs what is missing. It starts an sshd and a dockerd of its own, which listen on a loopback
# port and a socket in a temporary folder, and stops both by their pids. What cannot be had is skipped, loudly.
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mktemp -d)
chmod 711 "$folder" # PostgreSQL runs as another user
export TMPDIR="$folder"
pids=

stop() {
    # Where the bench itself was stopped, nobody has stopped its background processes.
    for home in "$folder"/.tmp*/home; do
        [ ! -d "$home" ] || ADO_HOME=$home "$here/target/release/ado" down >&2 || true
    done
    for pid in $pids; do
        kill "$pid" 2>/dev/null || true
    done
    for pid in $pids; do
        wait "$pid" 2>/dev/null || true
    done
    rm -rf "$folder" 2>/dev/null || true
}
trap stop EXIT
trap 'exit 130' INT TERM

is_root() { [ "$(id -u)" = 0 ]; }

say() { echo "peers: $*" >&2; }

install() {
    if is_root && command -v apt-get >/dev/null; then
        say "installing $*"
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >"$folder/apt.log" 2>&1 ||
            { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; } \
                >>"$folder/apt.log" 2>&1 || say "cannot install $*: $(tail -n 1 "$folder/apt.log")"
    fi
}

free_port() {
    port=20000
    while grep -q ":$(printf %04X $port) " /proc/net/tcp /proc/net/tcp6 2>/dev/null; do
        port=$((port + 1))
    done
    echo $port
}

start_sshd() {
    [ -x /usr/sbin/sshd ] || install openssh-server
    [ -x /usr/sbin/sshd ] || { say "SKIPPED: ssh: there is no sshd"; return; }
    ! is_root || mkdir -p /run/sshd # where it gives up its privileges
    port=$(free_port)
    ssh-keygen -q -t ed25519 -N '' -f "$folder/host"
    ssh-keygen -q -t ed25519 -N '' -f "$folder/user"
    cp "$folder/user.pub" "$folder/authorized"
    cat >"$folder/sshd_config" <<END
ListenAddress 127.0.0.1
Port $port
HostKey $folder/host
PidFile none
AuthorizedKeysFile $folder/authorized
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PrintMotd no
MaxStartups 200
MaxSessions 200
# Not the first shell: so bash does not read its start files, which cost what this user put there.
SetEnv SHLVL=2
END
    cat >"$folder/ssh_config" <<END
Host peer
    HostName 127.0.0.1
    Port $port
    User $(id -un)
    IdentityFile $folder/user
    IdentitiesOnly yes
    UserKnownHostsFile $folder/known
    StrictHostKeyChecking accept-new
    LogLevel ERROR
END
    /usr/sbin/sshd -D -e -f "$folder/sshd_config" 2>"$folder/sshd.log" &
    pids="$pids $!"
    tries=0
    until ssh -F "$folder/ssh_config" peer true 2>"$folder/ssh.log"; do
        tries=$((tries + 1))
        [ $tries -lt 50 ] || { say "SKIPPED: ssh: $(tail -n 1 "$folder/sshd.log" "$folder/ssh.log")"; return; }
        sleep 0.1
    done
    export ADO_PEERS_SSH_CONFIG="$folder/ssh_config"
}

start_docker() {
    is_root || { say "SKIPPED: docker: only root can start a dockerd"; return; }
    command -v dockerd >/dev/null || install docker.io iptables
    command -v dockerd >/dev/null && command -v docker >/dev/null || { say "SKIPPED: docker: there is no dockerd"; return; }
    [ -L /bin ] && [ -L /lib ] || { say "SKIPPED: docker: /usr is not all there is, and the image is made of it"; return; }
    export DOCKER_HOST="unix://$folder/docker.sock"
    dockerd --host "$DOCKER_HOST" --data-root "$folder/docker" --exec-root "$folder/exec" --pidfile "$folder/docker.pid" \
        --storage-driver vfs --bridge none --iptables=false --ip6tables=false >"$folder/dockerd.log" 2>&1 &
    pids="$pids $!"
    tries=0
    until docker version >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ $tries -lt 100 ] || { say "SKIPPED: docker: $(tail -n 1 "$folder/dockerd.log")"; return; }
        sleep 0.2
    done
    # The image is links into the host's own /usr, which every container has mounted: nothing is downloaded.
    mkdir -p "$folder/image/usr"
    for name in bin lib lib64 sbin; do
        [ ! -L "/$name" ] || cp -P "/$name" "$folder/image/$name"
    done
    tar -C "$folder/image" -c . | docker import - ado-peers >/dev/null
    docker run --rm --network none -v /usr:/usr:ro ado-peers /usr/bin/true >"$folder/docker.log" 2>&1 ||
        { say "SKIPPED: docker: $(tail -n 1 "$folder/docker.log")"; return; }
    export ADO_PEERS_DOCKER_IMAGE=ado-peers
}

# Their servers, PostgreSQL and Redis, the bench starts itself.
install_queues() {
    command -v node >/dev/null && command -v npm >/dev/null || install nodejs npm
    command -v node >/dev/null && command -v npm >/dev/null || { say "SKIPPED: queues: there is no node"; return; }
    npm install --prefix "$folder/node" --no-audit --no-fund --loglevel=error graphile-worker@0.17.3 bullmq@6.7.0 ioredis@6.0.0 \
        >"$folder/npm.log" 2>&1 || { say "SKIPPED: queues: $(tail -n 1 "$folder/npm.log")"; return; }
    export ADO_PEERS_NODE_MODULES="$folder/node/node_modules"
    ! is_root || export ADO_TEST=full # has them installed
}

start_sshd
start_docker
install_queues
cd "$here"
cargo bench --quiet --bench peers -- "$@"
