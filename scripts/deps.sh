#!/bin/sh
# Installs what a build of torc needs and this machine lacks: a C++20 compiler for RocksDB, libclang for
# its bindings, ccache so that RocksDB is compiled once. Runs in well under a second, and touches
# nothing, when all is there. Needs root or sudo only when a package is missing.
set -eu
cd "$(dirname "$0")/.."
libclang_given="${LIBCLANG_PATH:-}"
. scripts/env.sh
. scripts/apt.sh

say() { printf 'deps: %s\n' "$*"; }
fail() { printf 'deps: %s\n' "$*" >&2; exit 1; }

# RocksDB is written in C++20, which gcc speaks well enough from version 11 on.
GCC_MIN=11
have_compiler() {
  command -v g++ >/dev/null 2>&1 || return 1
  major=$(g++ -dumpversion 2>/dev/null | cut -d. -f1)
  [ "${major:-0}" -ge "$GCC_MIN" ]
}
have_libclang() { [ -n "${LIBCLANG_PATH:-}" ] && [ -d "$LIBCLANG_PATH" ]; }
have() { command -v "$1" >/dev/null 2>&1; }

# --- Rust: comes from rustup, never from here --------------------------------------------------------
rust_min=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
if ! have cargo || ! rustc_line=$(rustc --version 2>&1); then
  fail "no Rust toolchain found. Install Rust $rust_min or later with rustup (https://rustup.rs), then try again."
fi
rust_now=$(printf '%s\n' "$rustc_line" | sed -n 's/^rustc \([0-9]*\.[0-9]*\).*/\1/p')
if [ "$(printf '%s\n%s\n' "$rust_min" "$rust_now" | sort -V | head -n 1)" != "$rust_min" ]; then
  fail "Rust $rust_now is too old, torc needs $rust_min or later: rustup update stable"
fi
if ! have cargo-fmt || ! have cargo-clippy; then
  if have rustup && rustup component add rustfmt clippy >/dev/null 2>&1; then
    say "added rustfmt and clippy to the Rust toolchain"
  else
    say "rustfmt or clippy is missing: builds work, 'make lint' and 'make test' will not"
  fi
fi

# --- system packages ---------------------------------------------------------------------------------
packages=""
have_compiler || packages="$packages g++"
have_libclang || packages="$packages libclang1"
have ccache || packages="$packages ccache"
have git || packages="$packages git"
have curl || packages="$packages curl"
have python3 || packages="$packages python3"

# Most releases have a package `libclang1`; some have only numbered ones.
libclang_package() {
  if [ -n "$(apt-cache show libclang1 2>/dev/null)" ]; then
    echo libclang1
  else
    apt-cache search --names-only '^libclang1-[0-9]+$' 2>/dev/null | cut -d' ' -f1 | sort -V | tail -n 1
  fi
}
install_with_apt() {
  log=$(mktemp)
  say "installing$packages"
  if ! apt update >"$log" 2>&1; then
    say "apt-get update failed; trying with the package lists that are there"
  fi
  case "$packages" in
    *libclang1*) packages=$(printf '%s' "$packages" | sed "s/libclang1/$(libclang_package)/") ;;
  esac
  # shellcheck disable=SC2086 # the list is meant to be split
  if ! apt install -y --no-install-recommends $packages >>"$log" 2>&1; then
    tail -n 20 "$log" >&2
    say "apt-get install$packages failed (its last lines stand above)"
  fi
  rm -f "$log"
}
# libclang exists as a Python wheel too: no root needed.
install_libclang_wheel() {
  have python3 || return 1
  into="$TORC_CACHE_DIR/libclang"
  scratch=$(mktemp -d)
  say "fetching libclang as a Python wheel"
  pip="python3 -m pip"
  if ! $pip --version >/dev/null 2>&1; then
    python3 -m venv "$scratch/venv" >/dev/null 2>&1 || { rm -rf "$scratch"; return 1; }
    pip="$scratch/venv/bin/python -m pip"
  fi
  if $pip download --quiet --no-deps --only-binary :all: --dest "$scratch" libclang >&2; then
    mkdir -p "$into"
    # A wheel is a zip archive; where in it the library lies differs from version to version.
    python3 -m zipfile -e "$scratch"/libclang-*.whl "$scratch/wheel" &&
      find "$scratch/wheel" -name 'libclang*.so*' -exec cp {} "$into/" \;
  fi
  rm -rf "$scratch"
}

if [ -n "$packages" ]; then
  if can_install; then
    install_with_apt
  else
    say "missing:$packages, and apt-get cannot be used here (neither root nor sudo, or not a Debian)"
  fi
  LIBCLANG_PATH="$libclang_given"
  . scripts/env.sh
  if ! have_libclang && install_libclang_wheel; then
    . scripts/env.sh
  fi
  have_compiler || fail "no C++ compiler that speaks C++20 (g++ $GCC_MIN or later). As root: apt-get install g++"
  have_libclang || fail "no libclang, which RocksDB's bindings need. As root: apt-get install libclang1 (or set LIBCLANG_PATH to the folder that holds libclang.so)"
  have ccache || say "no ccache: every new target folder compiles RocksDB from the start. As root: apt-get install ccache"
  say "all there"
fi

# --- the one long step, announced --------------------------------------------------------------------
rocksdb_built() {
  for archive in "$CARGO_TARGET_DIR"/*/build/librocksdb-sys-*/out/librocksdb.a; do
    [ -e "$archive" ] && return 0
  done
  return 1
}
# RocksDB is some 350 objects, of which ccache keeps two files each.
ccache_warm() { [ "$(find "$CCACHE_DIR" -type f 2>/dev/null | head -n 500 | wc -l)" -ge 500 ]; }
if ! rocksdb_built && ! ccache_warm; then
  say "the first build compiles RocksDB from source: about 18 minutes on 2 cores, fewer on more."
  say "It happens once: the result is kept in $TORC_CACHE_DIR."
fi
