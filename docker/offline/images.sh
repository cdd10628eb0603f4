#!/bin/bash
# docker/offline/images.sh build [NAME...]   makes the stand-in images that are missing
# docker/offline/images.sh remove            removes them again
# docker/offline/images.sh list              says for each tag what it is: real, stand-in, missing
#
# Where no registry can be reached, images made of Debian packages stand in for the official ones, under
# the tags that docker/compose.yaml and docker/Dockerfile name, so that the same files start. Each has the
# label `torc.stand-in`. A real image of that tag is used as it is and never replaced. What Debian does not
# package has no stand-in: Grafana. `build rust` makes one of the Dockerfile's build stage out of this machine's
# toolchain and compiler cache, to see that the image can be built from source (docker/README.md); nothing else
# uses it.
#
# Needs docker, debootstrap (as root or with sudo) and a Debian mirror; a few minutes the first time. The
# label holds a hash of what an image was made from, so later calls only look.
set -euo pipefail
cd "$(dirname "$0")"
. ../../scripts/apt.sh

NAMES="debian nginx redis rabbitmq prometheus"
# Made and removed only by name.
MORE="rust"
RELEASE=bookworm
# Raise this when this script makes images in another way.
RECIPE=1
LABEL=torc.stand-in
export DOCKER_BUILDKIT=0 # the older builder is in every engine, and needs no plugin

say() { printf 'stand-ins: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }

# The tag of an image, as the files that use it name it.
tag() {
  local found
  found=$(sed -nE "s,^ *(image:|FROM|ARG DEBIAN_IMAGE=) *\"?(([a-z./]*/)?$1:[^ \"]+).*,\2,p" ../compose.yaml ../Dockerfile | sort -u)
  [ "$(printf '%s\n' "$found" | wc -l)" -eq 1 ] && [ -n "$found" ] || fail "no single tag of $1 in compose.yaml and Dockerfile: '$found'"
  printf '%s\n' "$found"
}

# What an image is made from; the base goes into all.
hash_of() {
  {
    echo "$RELEASE $RECIPE"
    tag debian
    [ "$1" != rust ] || rustc --version
    [ "$1" = debian ] || find "$1" -type f | LC_ALL=C sort | xargs sha256sum
  } | sha256sum | cut -c1-16
}

# real, missing, current, or stale (a stand-in of other contents).
state() {
  local label
  if ! label=$(docker image inspect --format "{{index .Config.Labels \"$LABEL\"}}" "$(tag "$1")" 2>/dev/null); then
    echo missing
  elif [ -z "$label" ] || [ "$label" = "<no value>" ]; then
    echo real
  elif [ "$label" = "$(hash_of "$1")" ]; then
    echo current
  else
    echo stale
  fi
}

# The mirror that this machine uses, in the one-line or the deb822 form of apt's sources.
mirror() {
  {
    cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null |
      sed -nE 's/^deb[[:space:]]+(\[[^]]*\][[:space:]]+)?([^[:space:]]+)[[:space:]]+[a-z]+[[:space:]]+main.*/\2/p'
    cat /etc/apt/sources.list.d/*.sources 2>/dev/null | sed -nE 's/^URIs:[[:space:]]*([^[:space:]]+).*/\1/p'
    echo http://deb.debian.org/debian
  } | grep -v security | grep -E '/debian/?$' | head -n 1
}

build_debian() {
  local into
  into=$(mktemp -d)
  # shellcheck disable=SC2064 # the folder of now is meant
  trap "privileged rm -rf --one-file-system '$into'" RETURN
  privileged debootstrap --variant=minbase --include=ca-certificates "$RELEASE" "$into/root" "$(mirror)" >"$into/log" 2>&1 ||
    { tail -n 10 "$into/log" >&2; fail "debootstrap failed (its last lines stand above)"; }
  # As small as the official slim image: no caches, documentation or translations.
  privileged tar -C "$into/root" --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' --exclude='./usr/share/doc/*' \
    --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*' --exclude='./usr/share/info/*' -c . |
    docker import --change "LABEL $LABEL=$(hash_of debian)" --change 'CMD ["bash"]' - "$(tag debian)" >/dev/null
}

# The host's network, because that is the one that is known to reach the mirror.
build_other() {
  local log
  log=$(mktemp)
  docker build --network host --build-arg "BASE=$(tag debian)" --label "$LABEL=$(hash_of "$1")" --tag "$(tag "$1")" "$1" >"$log" 2>&1 ||
    { tail -n 20 "$log" >&2; fail "docker build of docker/offline/$1 failed (its last lines stand above)"; }
  rm -f "$log"
}

# The toolchain that is in use here, beside the Dockerfile.
build_rust() {
  local into
  into=$(mktemp -d)
  # shellcheck disable=SC2064 # the folder of now is meant
  trap "rm -rf '$into'" RETURN
  mkdir "$into/rust" "$into/rust/toolchain"
  cp rust/Dockerfile "$into/rust/"
  # What this machine has compiled already is not compiled again.
  local ccache=${CCACHE_DIR:-${TORC_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/torc}/ccache}
  if [ -d "$ccache" ]; then cp -a "$ccache" "$into/rust/ccache"; else mkdir "$into/rust/ccache"; fi
  cp -L /etc/ssl/certs/ca-certificates.crt "$into/rust/"
  tar -C "$(rustc --print sysroot)" --exclude ./share/doc -cf - . | tar -C "$into/rust/toolchain" -xf -
  docker build --network host --build-arg "BASE=$(tag debian)" --label "$LABEL=$(hash_of rust)" --tag "$(tag rust)" "$into/rust" >"$into/log" 2>&1 ||
    { tail -n 20 "$into/log" >&2; fail "docker build of docker/offline/rust failed (its last lines stand above)"; }
}

build() {
  local name
  docker info >/dev/null 2>&1 || fail "no docker engine answers (docker info)"
  mkdir -p "${TORC_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/torc}"
  exec 9>"${TORC_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/torc}/stand-ins.lock"
  flock -w 900 9 || fail "another build has been running for 15 minutes"
  for name in debian "$@"; do
    case " $NAMES $MORE " in *" $name "*) ;; *) fail "no stand-in '$name'; there are: $NAMES $MORE" ;; esac
    case "$(state "$name")" in
      missing | stale)
        say "making $(tag "$name") from Debian packages"
        case "$name" in debian | rust) "build_$name" ;; *) build_other "$name" ;; esac
        ;;
    esac
  done
}

remove() {
  local name
  for name in rust prometheus rabbitmq redis nginx debian; do
    case "$(state "$name")" in
      current | stale) docker image rm "$(tag "$name")" >/dev/null && say "removed $(tag "$name")" ;;
    esac
  done
}

command=${1:-}
[ $# -eq 0 ] || shift
case "$command" in
  build)
    # shellcheck disable=SC2086 # the list is meant to be split
    [ $# -gt 0 ] || set -- $NAMES
    build "$@"
    ;;
  remove) remove ;;
  list) for name in $NAMES $MORE; do printf '%-28s %s\n' "$(tag "$name")" "$(state "$name")"; done ;;
  *) sed -n '2,4s/^# //p' images.sh; exit 2 ;;
esac
