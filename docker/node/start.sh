#!/bin/sh
# Starts a node. The first node bootstraps the cluster, but only a cluster that has never been there: when
# its data is lost later it must join the others, not make a second cluster beside theirs. The mark that
# pki.sh leaves is removed by the health check as soon as the node is a member (see compose.yaml).
set -eu
if [ -e /pki/bootstrap ] && [ ! -e /data/FORMAT ]; then
  exec torc serve --bootstrap
fi
exec torc serve
