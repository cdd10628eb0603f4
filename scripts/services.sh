#!/bin/sh
# Installs the side services that tests start (Redis, Sentinel, RabbitMQ, etcd, Nginx, Prometheus, a browser)
# and debootstrap for the offline images, as far as this machine lacks them. Quick and silent when all is
# there. Needs root or sudo only when a package is missing.
#
# Tests start these programs themselves, on free ports and in temporary folders. So what is installed here
# is neither started nor enabled; services that were there before are left as they are.
set -eu
cd "$(dirname "$0")/.."
. scripts/env.sh
. scripts/apt.sh

say() { printf 'services: %s\n' "$*"; }
# Daemons lie in sbin, which is not on everybody's path.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
have() { command -v "$1" >/dev/null 2>&1; }

# Fills `packages` and `units` with what is missing, and the units that it would bring.
packages=""
units=""
need() {
  have "$1" && return 0
  packages="$packages $2"
  units="$units ${3:-}"
}
look() {
  packages=""
  units=""
  need redis-server redis-server redis-server.service
  need redis-cli redis-tools
  need redis-sentinel redis-sentinel redis-sentinel.service
  need rabbitmq-server rabbitmq-server "rabbitmq-server.service epmd.socket epmd.service"
  need etcd etcd-server etcd.service
  need nginx nginx-light nginx.service
  need prometheus prometheus prometheus.service
  need promtool prometheus
  need debootstrap debootstrap
  have chromium-browser || have google-chrome || need chromium "chromium fonts-dejavu-core"
  # Only a machine that runs containers anyway has use for it. Version 1: see also compose.sh.
  if have docker; then
    need docker-compose docker-compose
  fi
}

# Debian's packages start their daemons on installation unless this file forbids it.
policy=/usr/sbin/policy-rc.d
ours=""
forbid_starting() {
  [ ! -e "$policy" ] || return 0
  ours=yes
  printf '#!/bin/sh\n# Put here by torc for the time of one installation.\nexit 101\n' |
    privileged sh -c "cat >$policy && chmod 755 $policy"
}
allow_starting() {
  [ -z "$ours" ] || privileged rm -f "$policy"
  ours=""
}

# Several checkouts may come here at a time; the one that waited finds that nothing is missing.
install_missing() {
  mkdir -p "$TORC_CACHE_DIR"
  exec 9>"$TORC_CACHE_DIR/services.lock"
  flock -w 900 9 || { say "another installation has been running for 15 minutes; giving up"; return 1; }
  look
  [ -n "$packages" ] || return 0
  say "installing$packages (once; nothing of it is started)"
  log=$(mktemp)
  trap 'allow_starting; rm -f "$log"' EXIT
  trap 'exit 130' INT TERM
  forbid_starting
  apt update >"$log" 2>&1 || say "apt-get update failed; trying with the package lists that are there"
  # shellcheck disable=SC2086 # the list is meant to be split
  if ! apt install -y --no-install-recommends $packages >>"$log" 2>&1; then
    tail -n 20 "$log" >&2
    say "apt-get install$packages failed (its last lines stand above)"
  fi
  # Not at the next boot either.
  if have systemctl; then
    # shellcheck disable=SC2086
    privileged systemctl disable $units >/dev/null 2>&1 || true
  fi
  allow_starting
  exec 9>&-
}

# Where containers run, also today's Compose, which Debian does not package.
! have docker || scripts/compose.sh || true
look
[ -n "$packages" ] || exit 0
if can_install; then
  install_missing || true
else
  say "apt-get cannot be used here (neither root nor sudo, or not a Debian)"
fi
look
if [ -n "$packages" ]; then
  say "MISSING:$packages. Tests of side services will fail without them. As root: apt-get install$packages" >&2
  [ -z "${CI:-}" ] || exit 1
else
  say "all there"
fi
