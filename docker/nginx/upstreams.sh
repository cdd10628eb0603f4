#!/bin/sh
# Runs before nginx (/docker-entrypoint.d): writes the list of nodes from the addresses that the name
# torc-nodes has on the network, then keeps watching it and reloads nginx when it changes. So a node that
# comes, goes, or comes back under another address is never forgotten, whoever started it.
#
# A node that comes is listed once it is ready: one that has not joined yet refuses writes, which are not
# sent twice. A node that the autoscaler is about to take away is listed no more before it goes.
set -eu

NAME=${TORC_UPSTREAM_NAME:-torc-nodes}
PORT=${TORC_UPSTREAM_PORT:-8081}
INTERVAL=${TORC_UPSTREAM_INTERVAL:-2}
# Who says what is about to go (host:port); without it nothing is.
AUTOSCALER=${TORC_AUTOSCALER:-}
into=/tmp/torc
mkdir -p "$into"

resolve() { getent ahostsv4 "$1" | awk '{ print $1 }' | sort -u; }
ready() { curl -fsS -o /dev/null -m 1 "http://$1:$PORT/health/ready" 2>/dev/null; }
contains() { case " $(echo "$1" | tr '\n' ' ') " in *" $2 "*) ;; *) return 1 ;; esac; }

draining() {
  [ -n "$AUTOSCALER" ] || return 0
  for node in $(curl -fsS -m 1 "http://$AUTOSCALER/draining" 2>/dev/null || true); do
    resolve "$node"
  done
}

# addresses KNOWN: those that have the name, without those that go and new ones that are not ready.
addresses() {
  named=$(resolve "$NAME")
  going=$(draining)
  for address in $named; do
    if contains "$going" "$address"; then continue; fi
    if contains "$1" "$address" || ready "$address"; then echo "$address"; fi
  done
}

write() {
  for address in $1; do
    echo "server $address:$PORT max_fails=1 fail_timeout=5s;"
  done >"$into/servers.conf"
  for address in $1; do
    echo "server $address:$PORT max_fails=0;"
  done >"$into/servers-again.conf"
}

# When nobody has the name (all nodes are down, or the name server is), the last list stays.
watch() {
  known=$1
  while sleep "$INTERVAL"; do
    now=$(addresses "$known") || continue
    [ -n "$now" ] && [ "$now" != "$known" ] || continue
    write "$now"
    if nginx -t -q && nginx -s reload; then
      echo "upstreams: nodes are now $(echo "$now" | tr '\n' ' ')"
      known=$now
    fi
  done
}

first=$(addresses "") || first=""
# Nginx does not start without a server; this one refuses until the first node is there.
write "${first:-127.0.0.1}"
watch "$first" &
