#!/usr/bin/env bash
# Measures torc beside its limits.
#
#   scripts/bench.sh [regress|parts]      (regress by default; parts: the criterion benches of the crates)
#   BENCH_SECONDS=8  seconds of each measurement      BENCH_CONNECTIONS=64      BENCH_RECORDS=50000
#
# The result of regress is a table and $CARGO_TARGET_DIR/bench.json (docs/performance.md explains it).
# The load goes to loopback only, is bounded in time, and everything started is ended.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh

case "${1:-regress}" in
  regress)
    cargo build --release -q -p torc
    cargo build --release -q -p torc-node --example bare_hyper --example peer_round_trips
    cargo build --release -q -p torc-storage --example alone
    exec scripts/bench/regress.py "$CARGO_TARGET_DIR/release" "$CARGO_TARGET_DIR/bench.json"
    ;;
  parts) exec cargo bench -p torc-ring -p torc-protocol -p torc-storage ;;
  *)
    echo "usage: scripts/bench.sh [regress|parts]" >&2
    exit 2
    ;;
esac
