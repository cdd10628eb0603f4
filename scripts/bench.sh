#!/usr/bin/env bash
# The whole measured from outside: three nodes and the load on one machine, 1 KiB values, 64 connections,
# n = 3, r = w = quorum, beside a bare hyper server in the same run; then the parts by criterion.
#
#   scripts/bench.sh [whole|parts]      (both by default)
#   BENCH_SECONDS=10  seconds of each measurement      BENCH_CONNECTIONS=64
#
# The load goes to loopback only, is bounded in time, and everything started here is ended here.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
what="${1:-both}"
seconds="${BENCH_SECONDS:-10}"
connections="${BENCH_CONNECTIONS:-64}"
bin="$CARGO_TARGET_DIR/release"
work="$(mktemp -d)"
pids=()
cleanup() {
  for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT

command -v wrk >/dev/null || {
  echo "make bench needs wrk: apt-get install wrk" >&2
  exit 1
}

free_ports() {
  python3 - "$1" <<'PY'
import socket, sys
sockets = []
for _ in range(int(sys.argv[1])):
    s = socket.socket()
    s.bind(("127.0.0.1", 0))
    sockets.append(s)
print(*[s.getsockname()[1] for s in sockets])
PY
}

# load NAME SCRIPT QUERY URL: one measurement; prints requests/s, p50, p99 and errors.
load() {
  local name="$1" script="$2" query="$3" url="$4"
  wrk -t2 -c"$connections" -d"${seconds}s" --latency -s "scripts/bench/$script.lua" "$url" -- "$query" >"$work/wrk.txt"
  python3 - "$name" "$work/wrk.txt" "$work/results.jsonl" <<'PY'
import json, re, sys
name, path, out = sys.argv[1:]
text = open(path).read()
def us(word):
    number, unit = re.match(r"([\d.]+)(us|ms|s)", word).groups()
    return float(number) * {"us": 1, "ms": 1e3, "s": 1e6}[unit]
rate = float(re.search(r"Requests/sec:\s+([\d.]+)", text).group(1))
p50 = us(re.search(r"50%\s+(\S+)", text).group(1))
p99 = us(re.search(r"99%\s+(\S+)", text).group(1))
bad = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
sock = re.search(r"Socket errors: (.*)", text)
errors = int(bad.group(1)) if bad else 0
print(f"{name:34} {rate:10.0f}/s   p50 {p50/1000:7.2f} ms   p99 {p99/1000:7.2f} ms   p99/p50 {p99/p50:4.1f}   errors {errors}{' ' + sock.group(1) if sock else ''}")
json.dump({"name": name, "per_second": rate, "p50_us": p50, "p99_us": p99, "errors": errors}, open(out, "a"))
open(out, "a").write("\n")
PY
}

wait_ready() {
  for _ in $(seq 150); do
    curl -fs -o /dev/null "$1/health/ready" && return 0
    sleep 0.1
  done
  echo "a node did not become ready; its log:" >&2
  tail -20 "$work"/node-*.log >&2
  exit 1
}

cluster() {
  local durability="$1"
  read -r -a ports <<<"$(free_ports 9)"
  node_pids=()
  urls=()
  for i in 0 1 2; do
    local start="--bootstrap"
    [ "$i" = 0 ] || start="--join 127.0.0.1:${ports[6]}"
    # shellcheck disable=SC2086
    "$bin/torc" serve --name "node-$((i + 1))" --data "$work/$durability-$i" --http "127.0.0.1:${ports[$i]}" \
      --admin "127.0.0.1:${ports[$((i + 3))]}" --peer "127.0.0.1:${ports[$((i + 6))]}" $start \
      --durability "$durability" >"$work/node-$i.log" 2>&1 &
    node_pids+=($!)
    pids+=($!)
    urls+=("http://127.0.0.1:${ports[$i]}")
    wait_ready "http://127.0.0.1:${ports[$i]}"
  done
  for _ in $(seq 100); do
    members="$(curl -fs "http://127.0.0.1:${ports[5]}/ring" | python3 -c 'import json,sys; print(len(json.load(sys.stdin)["members"]))' || echo 0)"
    [ "$members" = 3 ] && return 0
    sleep 0.1
  done
  echo "the three nodes did not form a ring" >&2
  exit 1
}

# Every key of the set once, so that reads find all of them.
fill() {
  python3 - "$1" <<'PY'
import http.client, sys, threading, urllib.parse
address = urllib.parse.urlparse(sys.argv[1]).netloc
def part(first):
    connection = http.client.HTTPConnection(address, timeout=30)
    for start in range(first * 12500, (first + 1) * 12500, 500):
        lines = "".join(f'{{"op":"put","key":"k{key + 1}","value":"{"x" * 1024}"}}\n' for key in range(start, start + 500))
        connection.request("POST", "/kv/default/_batch", lines, {"Content-Type": "application/x-ndjson"})
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200 and b'"status":5' not in body, (answer.status, body[:300])
threads = [threading.Thread(target=part, args=(n,)) for n in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
PY
}

rss() { awk '/VmRSS/ {printf "%d", $2 / 1024}' "/proc/$1/status"; }

whole() {
  cargo build --release -q -p torc
  cargo build --release -q -p torc-node --example bare_hyper
  : >"$work/results.jsonl"
  local bare
  bare="$(free_ports 1)"
  "$bin/examples/bare_hyper" "127.0.0.1:$bare" &
  pids+=($!)
  local bare_pid=$!
  for _ in $(seq 50); do curl -fs -o /dev/null "http://127.0.0.1:$bare/" && break; sleep 0.1; done
  load "bare hyper, 1 KiB" get "" "http://127.0.0.1:$bare"
  kill -9 "$bare_pid"
  wait "$bare_pid" 2>/dev/null || true
  for durability in os fsync; do
    cluster "$durability"
    echo "resident memory of an idle node: $(rss "${node_pids[0]}") MiB"
    load "PUT w=quorum, $durability" put "" "${urls[0]}"
    fill "${urls[1]}"
    load "GET r=quorum, $durability" get "" "${urls[0]}"
    load "GET r=one, $durability" get "?r=one" "${urls[0]}"
    echo "resident memory under load: $(rss "${node_pids[0]}") MiB"
    for pid in "${node_pids[@]}"; do kill -9 "$pid"; done
    wait "${node_pids[@]}" 2>/dev/null || true
  done
  mkdir -p "$CARGO_TARGET_DIR"
  python3 - "$work/results.jsonl" "$CARGO_TARGET_DIR/bench.json" <<'PY'
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
bare = next(r["per_second"] for r in rows if r["name"].startswith("bare"))
for row in rows:
    row["of_bare_hyper"] = round(row["per_second"] / bare, 3)
json.dump(rows, open(sys.argv[2], "w"), indent=1)
print("ratios to the bare hyper server of this run:")
for row in rows[1:]:
    print(f"  {row['name']:34} {row['of_bare_hyper']:.3f}")
print("written to", sys.argv[2])
PY
}

parts() {
  cargo bench -p torc-ring -p torc-protocol -p torc-storage
}

case "$what" in
  whole) whole ;;
  parts) parts ;;
  both) whole; parts ;;
  *) echo "usage: scripts/bench.sh [whole|parts]" >&2; exit 2 ;;
esac
