#!/bin/sh
# start.sh [worker|autoscale ARGUMENT...]: starts a node, a worker, or the autoscaler.
#
# The first node bootstraps the cluster, but only a cluster that has never been there: when its data is lost
# later it must join the others, not make a second cluster beside theirs. The mark that pki.sh leaves is
# removed by the health check as soon as the node is a member (see compose.yaml).
set -eu
# What compose.yaml hands on and nobody has set is empty, and an empty setting is a wrong one.
for name in $(env | sed -n 's/^\(TORC_[A-Z0-9_]*\)=$/\1/p'); do
  unset "$name"
done
case "${1:-}" in
  worker) exec torc "$@" ;;
  autoscale)
    # Without the engine's socket it can only say what it would do.
    [ -S /var/run/docker.sock ] || set -- "$@" --dry-run
    exec torc "$@"
    ;;
esac
if [ -e /pki/bootstrap ] && [ ! -e /data/FORMAT ]; then
  exec torc serve --bootstrap
fi
exec torc serve
