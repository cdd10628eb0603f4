#!/bin/bash
# docker/up.sh [core|full]: brings the platform up and returns when every health check is green.
#
#   TORC_BIN=PATH      that binary in the image of torc, instead of compiling one
#   TORC_OFFLINE=1     do not even try a registry: stand-ins of Debian packages, no Grafana
#   TORC_DOCKER_SOCKET=/var/run/docker.sock   the autoscaler may use the engine (docs/autoscaler.md)
#   TORC_BIND, TORC_HTTP_PORT, TORC_PROMETHEUS_PORT, TORC_GRAFANA_PORT: where it is published
#
# `docker compose --profile full up` works as well once docker/secrets.sh has run.
set -euo pipefail
cd "$(dirname "$0")"
profile=${1:-core}
. ./lib.sh

HEALTHY_SECONDS_MAX=${TORC_HEALTHY_SECONDS_MAX:-300}
PULL_SECONDS_MAX=600

case $profile in core | full) ;; *) fail "no profile '$profile': core and full are there" ;; esac

./secrets.sh

# --- images -------------------------------------------------------------------------------------------
# The stand-ins are for where nothing else can be had: each real image is tried first.
# A stand-in left from before is not the image; it is replaced as soon as the real one can be had.
have_image() {
  local label
  label=$(docker image inspect --format '{{index .Config.Labels "torc.stand-in"}}' "$1" 2>/dev/null) || return 1
  [ -z "$label" ] || [ "$label" = "<no value>" ]
}
pull() { [ -z "${TORC_OFFLINE:-}" ] && timeout "$PULL_SECONDS_MAX" docker pull --quiet "$1" >/dev/null 2>&1; }
others() {
  sed -nE 's/^(FROM|ARG DEBIAN_IMAGE=) *(debian:[^ ]+).*/\2/p' Dockerfile
  compose config | sed -nE 's/^ *image: *"?([^"]+)"?$/\1/p' | sort -u | grep -vx "${TORC_IMAGE:-torc:local}"
}
for image in $(others); do
  if ! have_image "$image" && ! pull "$image"; then
    say "$image cannot be pulled: stand-ins of Debian packages take its place (docker/offline), and Grafana is left out"
    ./offline/images.sh build
    [ "$profile" = core ] || profile=offline
    break
  fi
done

# --- the image of torc --------------------------------------------------------------------------------
rust_image=$(sed -nE 's/^FROM (rust:[^ ]+) .*/\1/p' Dockerfile)
if [ -z "${TORC_BIN:-}" ] && ! have_image "$rust_image" && ! pull "$rust_image"; then
  say "$rust_image cannot be pulled: torc is compiled on this machine"
  (cd .. && . scripts/env.sh && scripts/deps.sh && cargo build --release -p torc)
  TORC_BIN=$(cd .. && . scripts/env.sh && echo "$CARGO_TARGET_DIR/release/torc")
fi
mkdir -p build
# The older builder wants it although nothing of it gets into the image.
[ -e build/torc ] || : >build/torc
if [ -n "${TORC_BIN:-}" ]; then
  strip -o build/torc "$TORC_BIN" 2>/dev/null || cp "$TORC_BIN" build/torc
  chmod 755 build/torc
  export TORC_TARGET=prebuilt
fi
say "building ${TORC_IMAGE:-torc:local}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
compose build pki >"$log" 2>&1 || { tail -n 30 "$log" >&2; fail "the image of torc could not be built"; }

# --- the autoscaler's way to the engine: only when it is asked for -------------------------------------
if [ -n "${TORC_DOCKER_SOCKET:-}" ]; then
  TORC_DOCKER_GROUP=$(stat -c %g "$TORC_DOCKER_SOCKET")
  export TORC_DOCKER_GROUP
fi

# --- up -----------------------------------------------------------------------------------------------
begin=$SECONDS
compose up -d --remove-orphans >"$log" 2>&1 || { tail -n 30 "$log" >&2; fail "compose up failed"; }

# "NAME STATUS" of each container with a health check that is not green.
waiting() {
  docker ps -aq --filter "label=com.docker.compose.project=$project" |
    xargs -r docker inspect --format '{{.Name}} {{if .State.Health}}{{.State.Health.Status}}{{else}}none{{end}}' |
    grep -vE ' (healthy|none)$' | sed 's,^/,,' || true
}
while [ -n "$(waiting)" ]; do
  if [ $((SECONDS - begin)) -gt "$HEALTHY_SECONDS_MAX" ]; then
    waiting >&2
    fail "not healthy within $HEALTHY_SECONDS_MAX s (docker logs NAME says more)"
  fi
  sleep 1
done

bind=${TORC_BIND:-127.0.0.1}
say "all healthy after $((SECONDS - begin)) s. torc: http://$bind:${TORC_HTTP_PORT:-8080}/"
[ "$profile" = core ] || say "Prometheus: http://$bind:${TORC_PROMETHEUS_PORT:-9090}/"
[ "$profile" != full ] || say "Grafana: http://$bind:${TORC_GRAFANA_PORT:-3000}/ (admin, password in docker/secrets/grafana_password)"
