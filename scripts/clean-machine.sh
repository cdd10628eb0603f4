#!/bin/bash
# scripts/clean-machine.sh DIR [STEP...]
#
# For maintainers: proves that the README's two commands work on a machine that has never seen torc.
# Makes a Debian 12 in DIR (a chroot with git, gcc, make, curl, python3 and this machine's Rust
# toolchain, nothing else), clones the commit that is checked out here into it, and runs there:
#
#   deps   `make deps` twice; the second run must find nothing to do
#   demo   `make demo`; each curl line that it prints must work; Ctrl-C must leave no process behind; all twice
#   test   `make test`
#
# A chroot has no Docker engine: the tests that start containers are left out (TORC_WITHOUT_DOCKER=1); run
# those with `make test` on a machine that has one. A compiler cache of this machine is used when
# CCACHE_FROM names its folder: it is copied, and RocksDB is not compiled for the twentieth time.
#
# Default: all three. Needs root, debootstrap, about 12 GB, and for `demo` the demo's ports, which the
# chroot shares with this machine. DIR is kept: a second run is quicker. Remove it with
# `rm -rf --one-file-system DIR`.
set -euo pipefail

say() { printf '[%s] clean-machine: %s\n' "$(date +%H:%M:%S)" "$*"; }
fail() { say "$*" >&2; exit 1; }

[ $# -ge 1 ] || fail "usage: scripts/clean-machine.sh DIR [deps] [demo] [test]"
repository=$(cd "$(dirname "$0")/.." && pwd)
dir=$(realpath -m "$1")
shift
steps=${*:-deps demo test}
for step in $steps; do
  case $step in deps | demo | test) ;; *) fail "no step '$step': deps, demo and test are there" ;; esac
done
[ "$(id -u)" -eq 0 ] || fail "needs root, for chroot and mount"
[ "$dir" != / ] || fail "DIR must not be the machine itself"
command -v debootstrap >/dev/null || fail "needs debootstrap: apt-get install debootstrap"

RELEASE=bookworm
FIRST_BUILD_SECONDS_MAX=7200
STOP_SECONDS_MAX=30

# The mirror that this machine uses, in the one-line or the deb822 form of apt's sources.
mirror() {
  {
    cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null |
      sed -nE 's/^deb[[:space:]]+(\[[^]]*\][[:space:]]+)?([^[:space:]]+)[[:space:]]+[a-z]+[[:space:]]+main.*/\2/p'
    cat /etc/apt/sources.list.d/*.sources 2>/dev/null | sed -nE 's/^URIs:[[:space:]]*([^[:space:]]+).*/\1/p'
  } | grep -v security | grep -E '/debian/?$' | head -n 1
}

make_machine() {
  if [ ! -e "$dir/etc/debian_version" ]; then
    local from
    from=$(mirror)
    [ -n "$from" ] || fail "no Debian mirror found in /etc/apt"
    say "making Debian $RELEASE in $dir"
    debootstrap --variant=minbase --include=ca-certificates,git,gcc,libc6-dev,make,curl,python3 \
      "$RELEASE" "$dir" "$from" >"$dir.log" 2>&1 || { tail -n 5 "$dir.log" >&2; fail "debootstrap failed, see $dir.log"; }
    rm -f "$dir.log"
  fi
  cp -L /etc/resolv.conf /etc/hosts "$dir/etc/"
  # Networks with their own certificate authority, and mirrors of the crate registry, are this machine's
  # business: the clean machine inherits them.
  cp -L /etc/ssl/certs/ca-certificates.crt "$dir/etc/ssl/certs/ca-certificates.crt"
  mkdir -p "$dir/root/.cargo"
  local config
  for config in config.toml config; do
    [ ! -e "${CARGO_HOME:-$HOME/.cargo}/$config" ] || cp -L "${CARGO_HOME:-$HOME/.cargo}/$config" "$dir/root/.cargo/"
  done
  if [ ! -x "$dir/opt/rust/bin/cargo" ]; then
    say "copying the Rust toolchain: $(rustc --version)"
    mkdir -p "$dir/opt/rust"
    tar -C "$(rustc --print sysroot)" --exclude ./share/doc -cf - . | tar -C "$dir/opt/rust" -xf -
  fi
  if [ -n "${CCACHE_FROM:-}" ] && [ ! -d "$dir/root/.cache/torc/ccache" ]; then
    say "copying the compiler cache of $CCACHE_FROM"
    mkdir -p "$dir/root/.cache/torc"
    cp -a "$CCACHE_FROM" "$dir/root/.cache/torc/ccache"
  fi
  rm -rf "$dir/root/torc"
  git clone --quiet --no-hardlinks "$repository" "$dir/root/torc"
  say "cloned $(git -C "$dir/root/torc" log -1 --format='%h %s')"
}

mounted=()
unmount_all() {
  local i
  for ((i = ${#mounted[@]} - 1; i >= 0; i--)); do umount -l "${mounted[i]}" || true; done
}
mount_all() {
  trap unmount_all EXIT
  # A machine's root is a mount point, and `ip netns exec` wants one.
  mount --bind "$dir" "$dir" && mounted+=("$dir") && mount --make-private "$dir"
  mount -t proc proc "$dir/proc" && mounted+=("$dir/proc")
  mount --rbind /dev "$dir/dev" && mount --make-rslave "$dir/dev" && mounted+=("$dir/dev")
}

inside() {
  chroot "$dir" /usr/bin/env -i HOME=/root USER=root LANG=C.UTF-8 TERM=dumb \
    PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    ${http_proxy:+"http_proxy=$http_proxy"} ${https_proxy:+"https_proxy=$https_proxy"} \
    ${no_proxy:+"no_proxy=$no_proxy"} \
    TORC_WITHOUT_DOCKER=1 \
    sh -c 'cd /root/torc && exec "$@"' sh "$@"
}

# Processes whose root is the chroot: what is left of a command that ended.
left_behind() {
  local process
  for process in /proc/[0-9]*; do
    [ "$(readlink "$process/root" 2>/dev/null)" != "$dir" ] || tr '\0' ' ' <"$process/cmdline" | sed "s|^|${process#/proc/} |"
  done
}

# await SECONDS COMMAND...: until the command succeeds, asked twice a second.
await() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$deadline" ] || return 1
    sleep 0.5
  done
}

step_deps() {
  inside make deps
  local output
  output=$(inside make deps)
  case $output in
    *installing* | *fetching* | *missing*) fail "the second 'make deps' still had something to do: $output" ;;
  esac
  say "deps: the second run found nothing to do"
}

curl_lines() { sed -nE 's/^[[:space:]]*(\$ )?(curl .*)$/\2/p' "$1"; }
demo_printed() { [ -n "$(curl_lines "$log")" ] || ! kill -0 "$demo" 2>/dev/null; }
demo_settled() {
  local before
  before=$(stat -c %s "$log")
  sleep 2
  [ "$(stat -c %s "$log")" = "$before" ]
}
demo_gone() { ! kill -0 "$demo" 2>/dev/null; }

demo_once() {
  [ -z "$(left_behind)" ] || fail "there are processes in $dir from before: $(left_behind)"
  log=$(mktemp)
  printf 'write-out = "%%{stderr}\\nstatus %%{http_code}\\n"\n' >"$dir/root/.curlrc"
  # Its own process group, as in a terminal: Ctrl-C reaches make, the demo and the nodes.
  set -m
  inside make demo >"$log" 2>&1 </dev/null &
  demo=$!
  set +m
  await "$FIRST_BUILD_SECONDS_MAX" demo_printed || { kill -INT -- "-$demo"; tail -n 20 "$log"; fail "the demo printed no curl line"; }
  await 30 demo_settled || say "the demo goes on printing; trying its curl lines anyway"
  if demo_gone; then tail -n 20 "$log"; fail "the demo ended by itself"; fi
  local line failed=0
  while read -r line; do
    # `status N` comes from the .curlrc: curl itself calls an answer of 500 a success. A 404 is one: the
    # demo may show what a deleted key looks like.
    if inside sh -c "$line" >"$log.curl" 2>"$log.status" </dev/null &&
      grep -qE '^status ([23][0-9][0-9]|404)$' "$log.status" && ! grep -qE '^status (4[^0]|40[^4]|5)' "$log.status"; then
      say "ok:     $line ($(tail -n 1 "$log.status"))"
    else
      say "FAILED: $line ($(tail -n 1 "$log.status"))"
      failed=1
    fi
  done < <(curl_lines "$log")
  kill -INT -- "-$demo"
  await "$STOP_SECONDS_MAX" demo_gone || { kill -KILL -- "-$demo"; fail "the demo did not end within $STOP_SECONDS_MAX s of Ctrl-C"; }
  [ "$failed" -eq 0 ] || { cat "$log"; fail "a printed curl line does not work"; }
  local rest
  rest=$(left_behind)
  [ -z "$rest" ] || fail "the demo left processes behind: $rest"
  rm -f "$log" "$log.curl" "$log.status"
}
step_demo() {
  demo_once
  demo_once
  say "demo: printed lines work, Ctrl-C leaves nothing behind, twice"
}
step_test() { inside env CI=true make test; }

make_machine
mount_all
for step in $steps; do
  say "step $step"
  begin=$SECONDS
  "step_$step"
  say "step $step: ok after $((SECONDS - begin)) s"
done
say "all steps passed: $steps"
