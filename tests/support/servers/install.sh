#!/bin/sh
# Installs what the full test tier needs, Debian packages by name, as root: `sh install.sh postgresql redis-server`.
# Nothing that is installed is started: tests start servers of their own.
set -eu
mask=/usr/sbin/policy-rc.d
if [ ! -e "$mask" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$mask"
    chmod 755 "$mask"
    trap 'rm -f "$mask"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq -y --no-install-recommends "$@"
