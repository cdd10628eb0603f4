#!/bin/sh
# Proves by `cargo tree` that the pure core stays pure: torc-ring and torc-protocol may depend, at run
# time and with all features, only on crates of the list below. Everything else fails, known offenders
# and unknown newcomers alike. (Their clippy.toml forbids clocks, threads and I/O of the standard
# library in the same spirit.)
set -eu
cd "$(dirname "$0")/.."
. scripts/env.sh

# Each was looked at: no I/O, no clock, no threads, no randomness of its own.
# Crates marked (macro) run in the compiler only; theirs is no code at run time.
allowed="
torc-protocol torc-ring
arrayvec blake3 cfg-if constant_time_eq cpufeatures libc
base64
bincode bincode_derive
bytes
hashring
proc-macro2 quote syn unicode-ident
serde serde_core serde_derive
siphasher
thiserror thiserror-impl
unty virtue virtue-next
xxhash-rust
"
# bincode, bincode_derive, unty, virtue: the wire codec        bytes: values without copies
# hashring, siphasher: places the virtual nodes                 xxhash-rust: tokens
# blake3 (and its arrayvec, cfg-if, constant_time_eq, cpufeatures): codes of causal contexts; cpufeatures
# asks libc, on ARM only, which instructions the processor has, and the results are the same with all
# base64: contexts as text
# serde*: derives of the config value                           thiserror*: error enums
# proc-macro2, quote, syn, unicode-ident, virtue*, *_derive, *-impl: (macro)

status=0
for package in torc-ring torc-protocol; do
  # Its own statement, so that a failure of cargo is not taken for an empty tree.
  tree=$(cargo tree --quiet --package "$package" --edges normal --all-features --target all --prefix none --format '{p}')
  for name in $(printf '%s\n' "$tree" | cut -d' ' -f1 | sort -u); do
    # shellcheck disable=SC2086 # the list is meant to be split
    case " $(echo $allowed) " in
      *" $name "*) continue ;;
    esac
    status=1
    case $name in
      tokio* | quinn* | hyper* | rocksdb | librocksdb-sys | chitchat | mio | socket2 | rustls* | async-*)
        why="does I/O; the pure core must not know it" ;;
      rand | rand_* | getrandom | fastrand | oorandom)
        why="draws randomness; take a seed or the number itself as an argument" ;;
      libc | nix | rustix | windows-sys | parking_lot* | crossbeam*)
        why="talks to the operating system or to threads" ;;
      *)
        why="is not on the list in scripts/check-purity.sh: read its source, and add it there if it does no I/O, reads no clock, starts no thread and draws no randomness" ;;
    esac
    echo "purity: $package depends on $name, which $why" >&2
    cargo tree --quiet --package "$package" --edges normal --all-features --target all --invert "$name" 2>/dev/null | head -n 12 >&2 || true
  done
done
[ "$status" -eq 0 ] && echo "purity: torc-ring and torc-protocol depend on nothing that touches the world"
exit "$status"
