#!/bin/bash
# docker/down.sh [--data]: ends the platform; with --data its volumes go too.
set -euo pipefail
cd "$(dirname "$0")"
profile=full # has all services
. ./lib.sh

./secrets.sh # the file does not parse without them
# What the autoscaler has added is in no compose file. Its volumes stay: they hold keys. The autoscaler comes
# first, because it starts what it misses.
remove_added() {
  local of="label=torc.project=$project" running
  docker ps -q --filter "label=com.docker.compose.project=$project" --filter label=com.docker.compose.service=autoscaler |
    xargs -r docker stop >/dev/null
  running=$(docker ps -q --filter "$of")
  # shellcheck disable=SC2086 # the list is meant to be split
  [ -z "$running" ] || docker stop --time 20 $running >/dev/null
  docker ps -aq --filter "$of" | xargs -r docker rm -f >/dev/null
  [ "${1:-}" != --data ] || docker volume ls -q --filter "$of" | xargs -r docker volume rm >/dev/null
}
case "${1:-}" in
  "") remove_added && compose down --remove-orphans ;;
  --data) remove_added --data && compose down --remove-orphans --volumes ;;
  *) fail "usage: docker/down.sh [--data]" ;;
esac
