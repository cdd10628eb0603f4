# Source this file (`. scripts/env.sh`) to build by hand with the settings that `make` uses.
#
# It puts build output and compiled C++ objects into a cache folder outside the checkout, so that a
# fresh clone does not compile RocksDB again, and tells bindgen where libclang and gcc's headers are.
# What is set already is left alone. `scripts/deps.sh` installs what it looks for.

TORC_CACHE_DIR="${TORC_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/torc}"
export TORC_CACHE_DIR
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$TORC_CACHE_DIR/target}"
export CCACHE_DIR="${CCACHE_DIR:-$TORC_CACHE_DIR/ccache}"
export CCACHE_MAXSIZE="${CCACHE_MAXSIZE:-2G}"
if command -v ccache >/dev/null 2>&1; then
  export CC="${CC:-ccache gcc}" CXX="${CXX:-ccache g++}"
fi
if [ -z "${LIBCLANG_PATH:-}" ]; then
  # The last match wins: the system's own libclang before the one that deps.sh put into the cache.
  for torc_dir in "$TORC_CACHE_DIR"/libclang /usr/lib/llvm-*/lib /usr/lib/*-linux-gnu; do
    # Not libclang-cpp.so: that is another library, of no use to bindgen.
    for torc_lib in "$torc_dir"/libclang.so* "$torc_dir"/libclang-[0-9]*.so*; do
      [ -e "$torc_lib" ] && LIBCLANG_PATH="$torc_dir"
    done
  done
  [ -n "${LIBCLANG_PATH:-}" ] && export LIBCLANG_PATH
  unset torc_dir torc_lib
fi
if [ -z "${BINDGEN_EXTRA_CLANG_ARGS:-}" ] && command -v gcc >/dev/null 2>&1; then
  BINDGEN_EXTRA_CLANG_ARGS="-isystem $(gcc -print-file-name=include)"
  export BINDGEN_EXTRA_CLANG_ARGS
fi
torc_bin="${CARGO_HOME:-${HOME:-/root}/.cargo}/bin"
case ":$PATH:" in
  *":$torc_bin:"*) ;;
  *) PATH="$torc_bin:$PATH"; export PATH ;;
esac
unset torc_bin
