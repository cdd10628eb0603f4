#!/bin/sh
# Runs before nginx (/docker-entrypoint.d): writes the list of nodes from the addresses that the name
# torc-nodes has on the network, then keeps watching it and reloads nginx when it changes. So a node that
# comes, goes, or comes back under another address is never forgotten, whoever started it.
set -eu

NAME=${TORC_UPSTREAM_NAME:-torc-nodes}
PORT=${TORC_UPSTREAM_PORT:-8081}
INTERVAL=${TORC_UPSTREAM_INTERVAL:-2}
into=/tmp/torc
mkdir -p "$into"

addresses() { getent ahostsv4 "$NAME" | awk '{ print $1 }' | sort -u; }

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
    now=$(addresses) || continue
    [ -n "$now" ] && [ "$now" != "$known" ] || continue
    write "$now"
    if nginx -t -q && nginx -s reload; then
      echo "upstreams: nodes are now $(echo "$now" | tr '\n' ' ')"
      known=$now
    fi
  done
}

first=$(addresses) || first=""
# Nginx does not start without a server; this one refuses until the first node is there.
write "${first:-127.0.0.1}"
watch "$first" &
