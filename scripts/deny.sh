#!/bin/sh
# Licences, sources, bans and known vulnerabilities of all dependencies (rules: deny.toml).
# The first three need no network and must pass. Advisories need the RustSec database: where it cannot
# be fetched this is said plainly, and is no failure.
set -eu
cd "$(dirname "$0")/.."
. scripts/env.sh

VERSION=0.20.2
FETCH_SECONDS_MAX=90
tools="$TORC_CACHE_DIR/tools"
deny="$tools/bin/cargo-deny"

if [ "$("$deny" --version 2>/dev/null)" != "cargo-deny $VERSION" ]; then
  echo "deny: installing cargo-deny $VERSION into $tools (once, about two minutes)"
  # Unoptimised and without debug information: it builds in a third of the time and runs in two seconds.
  if ! CARGO_TARGET_DIR="$tools/build" CARGO_PROFILE_DEV_DEBUG=0 \
    cargo install --quiet --locked --debug --force --root "$tools" --version "$VERSION" cargo-deny; then
    echo "deny: cargo-deny $VERSION could not be installed; its output stands above" >&2
    exit 1
  fi
  rm -rf "$tools/build"
fi

"$deny" --log-level error check --hide-inclusion-graph bans licenses sources

# Kept where the tool wants it, in the cargo home; only the time that we wait for it is ours.
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if GIT_TERMINAL_PROMPT=0 timeout "$FETCH_SECONDS_MAX" "$deny" --color never fetch db >"$log" 2>&1; then
  "$deny" --log-level error --offline check --hide-inclusion-graph advisories
else
  echo "deny: ADVISORIES WERE NOT CHECKED: the advisory database could not be fetched (we wait $FETCH_SECONDS_MAX s at most):"
  grep -v '^[[:space:]]*$' "$log" | tail -n 3 | cut -c1-300 | sed 's/^/deny:   /'
fi
