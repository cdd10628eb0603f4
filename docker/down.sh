#!/bin/bash
# docker/down.sh [--data]: ends the platform; with --data its volumes go too.
set -euo pipefail
cd "$(dirname "$0")"
profile=full # has all services
. ./lib.sh

./secrets.sh # the file does not parse without them
case "${1:-}" in
  "") compose down --remove-orphans ;;
  --data) compose down --remove-orphans --volumes ;;
  *) fail "usage: docker/down.sh [--data]" ;;
esac
