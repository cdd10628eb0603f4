#!/bin/sh
# Fuzzes everything that parses bytes from outside: `scripts/fuzz.sh [TARGET...]`, all targets by default.
#
#   FUZZ_RUNS=1000000   executions of each target, or
#   FUZZ_SECONDS=30     seconds for each (the default)
#   FUZZ_TIMEOUT=5      seconds that one input may take; of the clock, so more on a machine with no time to spare
#
# What is found stays under fuzz/artifacts/TARGET; the inputs that reach new code under fuzz/corpus/TARGET
# make the next run start where this one ended. Neither is committed: a finding becomes a test. Valid inputs
# to start from, where random bytes would not get far, are committed: fuzz/seeds/TARGET.
set -eu
cd "$(dirname "$0")/.."
. scripts/env.sh

fuzz_version=0.13.2
tool="$TORC_CACHE_DIR/tools/bin/cargo-fuzz"
if ! "$tool" --version 2>/dev/null | grep -q " $fuzz_version\$"; then
  echo "fuzz: installing cargo-fuzz $fuzz_version into $TORC_CACHE_DIR/tools"
  nice cargo install --quiet --locked --version "$fuzz_version" --root "$TORC_CACHE_DIR/tools" cargo-fuzz
fi

if [ -n "${FUZZ_RUNS:-}" ]; then
  limit="-runs=$FUZZ_RUNS"
else
  limit="-max_total_time=${FUZZ_SECONDS:-30}"
fi
[ "$#" -gt 0 ] || set -- $(sed -n 's/^name = "\([a-z_]*\)"$/\1/p' fuzz/Cargo.toml)

# One of every message to start from, without the version byte, which the target puts in front.
mkdir -p fuzz/corpus/wire_decode
python3 - <<'PY'
with open("protocol/tests/wire.golden", encoding="ascii") as golden:
    for line in golden:
        name, _, data = line.strip().partition(": ")
        with open("fuzz/corpus/wire_decode/" + name.replace(" ", "-"), "wb") as seed:
            seed.write(bytes.fromhex(data)[1:])
PY

# The flags of sanitizers are unstable: the stable compiler takes them with this set, and nothing else here
# makes use of it. The targets have no unsafe code, so AddressSanitizer would find nothing in them and cost
# half of the executions; what is looked for are panics, broken promises and hunger for memory.
export RUSTC_BOOTSTRAP=1
for target in "$@"; do
  echo "fuzz: $target ($limit)"
  mkdir -p "fuzz/corpus/$target"
  seeds=
  [ ! -d "fuzz/seeds/$target" ] || seeds="fuzz/seeds/$target"
  log=$(mktemp)
  if "$tool" fuzz run --sanitizer none --target-dir "$CARGO_TARGET_DIR/fuzz" "$target" "fuzz/corpus/$target" $seeds -- \
    "$limit" -rss_limit_mb=512 -malloc_limit_mb=128 -timeout="${FUZZ_TIMEOUT:-5}" -print_final_stats=1 >"$log" 2>&1; then
    grep -E 'number_of_executed_units|peak_rss_mb' "$log" | sed "s/^/fuzz: $target /"
    rm -f "$log"
  else
    tail -n 60 "$log" >&2
    echo "fuzz: $target failed; the input lies under fuzz/artifacts/$target, the whole output in $log" >&2
    exit 1
  fi
done
