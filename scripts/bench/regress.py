#!/usr/bin/env python3
"""The regression bench: a fixed short set, all in one run, written as ratios that survive a noisy machine.

    regress.py BIN_FOLDER RESULT.json

Three nodes and the load on this machine, 1 KiB values, n = 3. Beside them, one after the other: a bare hyper
server, RocksDB alone with batches as large as the nodes' own, and a bare quinn stream. `docs/performance.md`
says what each figure means. Load goes to loopback only; everything started here is ended here.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

SECONDS = float(os.environ.get("BENCH_SECONDS", "8"))
CONNECTIONS = int(os.environ.get("BENCH_CONNECTIONS", "64"))
RECORDS = int(os.environ.get("BENCH_RECORDS", "50000"))
VALUE_BYTES = 1024
# Three nodes share the cores, as in `torc demo`.
SHARED = {"TOKIO_WORKER_THREADS": str(max(1, os.cpu_count() // 3))}
TICK = os.sysconf("SC_CLK_TCK")


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def get(url, timeout=2):
    with urllib.request.urlopen(url, timeout=timeout) as answer:
        return answer.read().decode()


def wait_for(what, look, seconds=60):
    end = time.monotonic() + seconds
    while True:
        try:
            if look():
                return
        except OSError:
            pass
        if time.monotonic() > end:
            raise SystemExit(f"waited {seconds} s for {what}")
        time.sleep(0.1)


class Process:
    """A process with what the kernel counts about it."""

    def __init__(self, command, log, environment=None):
        self.log = log
        with open(log, "wb") as out:
            self.child = subprocess.Popen(
                command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env={**os.environ, **(environment or {})}
            )

    def path(self, name):
        return f"/proc/{self.child.pid}/{name}"

    def counts(self):
        """CPU seconds, context switches, bytes written to storage."""
        with open(self.path("stat")) as file:
            fields = file.read().rsplit(") ", 1)[1].split()
        switches = 0
        for task in os.listdir(self.path("task")):
            try:
                with open(self.path(f"task/{task}/status")) as file:
                    switches += sum(int(n) for n in re.findall(r"ctxt_switches:\s+(\d+)", file.read()))
            except FileNotFoundError:
                pass  # The thread has ended meanwhile.
        with open(self.path("io")) as file:
            written = int(re.search(r"^write_bytes: (\d+)", file.read(), re.M).group(1))
        return {"cpu": (int(fields[11]) + int(fields[12])) / TICK, "switches": switches, "written": written}

    def rss_mib(self):
        with open(self.path("status")) as file:
            return int(re.search(r"VmRSS:\s+(\d+)", file.read()).group(1)) / 1024

    def kill(self):
        self.child.send_signal(signal.SIGKILL)
        self.child.wait()


class Cluster:
    def __init__(self, bin_folder, folder, durability):
        ports = free_ports(9)
        self.http = [f"127.0.0.1:{port}" for port in ports[:3]]
        self.admin = [f"127.0.0.1:{port}" for port in ports[3:6]]
        peers = [f"127.0.0.1:{port}" for port in ports[6:]]
        self.nodes = []
        for i in range(3):
            formation = ["--bootstrap"] if i == 0 else ["--join", peers[0]]
            command = [
                os.path.join(bin_folder, "torc"), "serve", "--name", f"node-{i + 1}", "--data",
                os.path.join(folder, f"{durability}-{i}"), "--http", self.http[i], "--admin", self.admin[i],
                "--peer", peers[i], "--durability", durability, *formation,
            ]
            self.nodes.append(Process(command, os.path.join(folder, f"{durability}-{i}.log"), SHARED))
            wait_for(f"node {i + 1} (its log: {self.nodes[-1].log})", lambda: get(f"http://{self.http[i]}/health/ready"))
        wait_for("three members", lambda: all(len(json.loads(get(f"http://{a}/ring"))["members"]) == 3 for a in self.admin))

    def counts(self):
        total = {"peer_bytes": 0, "batches": 0, "batched": 0}
        for node, admin in zip(self.nodes, self.admin):
            for name, value in node.counts().items():
                total[name] = total.get(name, 0) + value
            text = get(f"http://{admin}/metrics", 10)
            for name, pattern in [
                ("peer_bytes", r'^torc_peer_bytes_total\{[^}]*direction="out"[^}]*\} (\S+)'),
                ("batches", r"^torc_commit_batch_size_count(?:\{[^}]*\})? (\S+)"),
                ("batched", r"^torc_commit_batch_size_sum(?:\{[^}]*\})? (\S+)"),
            ]:
                total[name] += sum(float(value) for value in re.findall(pattern, text, re.M))
        return total

    def rss_mib(self):
        return max(node.rss_mib() for node in self.nodes)

    def kill(self):
        for node in self.nodes:
            node.kill()


class Bench:
    def __init__(self, bin_folder, folder):
        self.bin, self.folder = bin_folder, folder
        self.rows = {}

    def run(self, addresses, mix, *more, seconds=SECONDS, connections=CONNECTIONS):
        result = os.path.join(self.folder, "run.json")
        command = [
            os.path.join(self.bin, "torc"), "bench", "run", "--target", "torc=" + ",".join(addresses), "--mix", mix,
            "--records", str(RECORDS), "--duration", f"{int(seconds * 1000)}ms", "--warm-up", "0s", "-c", str(connections),
            "--json", result, *more,
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=600)
        with open(result) as file:
            return json.load(file)

    def measure(self, name, server, *run, **more):
        """One load, with what it cost the servers. No warm-up, so that all that they do is counted."""
        before = server.counts()
        result = self.run(*run, "--no-load", **more)
        after = server.counts()
        each = {key: (after[key] - before[key]) / max(result["operations"], 1) for key in after}
        latency = result["latency_us"]
        row = {
            "per_second": round(result["throughput"]),
            "errors": result["errors"] + result["missing"],
            "p50_us": latency["p50"],
            "p99_us": latency["p99"],
            "servers_cpu_us": round(each["cpu"] * 1e6, 1),
            "load_cpu_us": round(result["instrument"]["cpu_us_per_operation"], 1),
            "context_switches": round(each["switches"], 2),
            "load_context_switches": round(result["instrument"]["context_switches_per_operation"], 2),
        }
        if "peer_bytes" in each:
            row["peer_bytes"] = round(each["peer_bytes"])
            batches = after["batches"] - before["batches"]
            if "put" in name and batches > 0:
                row["commit_batch"] = round((after["batched"] - before["batched"]) / batches, 1)
                # Three replicas store each byte once at least.
                row["written_per_byte_stored"] = round(each["written"] / (3 * VALUE_BYTES), 2)
            row["rss_mib"] = round(server.rss_mib())
        self.rows[name] = row
        print(
            f"{name:24} {row['per_second']:8d}/s  p50 {row['p50_us'] / 1000:7.2f} ms  p99 {row['p99_us'] / 1000:7.2f} ms  "
            f"CPU {row['servers_cpu_us']:6.1f} + {row['load_cpu_us']:4.1f} us  switches {row['context_switches']:5.2f}  "
            f"errors {row['errors']}",
            flush=True,
        )
        return row

    def half(self, name, cluster, mix, *more):
        """Latency at half of the greatest rate, in an open loop."""
        rate = self.rows[name]["per_second"] / 2
        result = self.run(cluster.http, mix, "--rate", f"{rate:.0f}", "--no-load", *more)
        latency = result["latency_us"]
        self.rows[name]["at_half_rate"] = {
            "p50_us": latency["p50"],
            "p99_us": latency["p99"],
            "p99_of_p50": round(latency["p99"] / max(latency["p50"], 1), 2),
        }

    def example(self, name, *arguments):
        command = [os.path.join(self.bin, "examples", name), *arguments]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=300, env={**os.environ, "JSON": "1"})
        return [json.loads(line) for line in done.stdout.decode().splitlines() if line.startswith("{")]


def bare_hyper(bench):
    address = f"127.0.0.1:{free_ports(1)[0]}"
    server = Process([os.path.join(bench.bin, "examples", "bare_hyper"), address], os.path.join(bench.folder, "bare.log"))
    try:
        wait_for("the bare server", lambda: get(f"http://{address}/"))
        return bench.measure("bare hyper", server, [address], "get=1")
    finally:
        server.kill()


def parts(bench):
    """The peers' round trip beside a bare quinn stream; the better of two rounds of each."""
    best = {}
    for line in bench.example("peer_round_trips", str(max(2, int(SECONDS / 2))), "2"):
        if line["per_second"] > best.get(line["what"], {"per_second": 0})["per_second"]:
            best[line["what"]] = line
    for name in ["bare quinn", "transport"]:
        bench.rows[name] = {key: best[name][key] for key in ["per_second", "cpu_us"]}
        print(f"{name:24} {best[name]['per_second']:8.0f}/s  CPU {best[name]['cpu_us']:.1f} us", flush=True)


def alone(bench, durability, batch):
    folder = tempfile.mkdtemp(dir=bench.folder)
    row = bench.example("alone", folder, str(max(1, round(batch))), str(SECONDS / 2), durability)[0]
    bench.rows[f"rocksdb alone, {durability}"] = row
    print(f"{'rocksdb alone, ' + durability:24} {row['per_second']:8d}/s  CPU {row['cpu_us']:.1f} us  batches of {row['batch']}", flush=True)
    return row


def ratios(rows):
    cores = os.cpu_count()
    bare, quinn = rows["bare hyper"], rows["bare quinn"]
    store = rows["rocksdb alone, os"]
    http_us = bare["servers_cpu_us"] + bare["load_cpu_us"]
    # What a quorum PUT cannot do without: HTTP, two round trips, three commits (docs/performance.md).
    put_us = http_us + 2 * quinn["cpu_us"] + 3 * store["cpu_us"]
    get_us = http_us + 2 * quinn["cpu_us"]
    budget = {"put_us": round(put_us, 1), "put_per_second": round(cores * 1e6 / put_us), "get_us": round(get_us, 1),
              "get_per_second": round(cores * 1e6 / get_us)}
    of = lambda name, other: round(rows[name]["per_second"] / other, 3)
    return budget, {
        "get_quorum_of_bare_hyper": of("get quorum, os", bare["per_second"]),
        "get_one_of_bare_hyper": of("get one, os", bare["per_second"]),
        "put_quorum_of_budget": of("put quorum, os", budget["put_per_second"]),
        "put_quorum_of_rocksdb_alone": of("put quorum, os", store["per_second"]),
        "peer_round_trip_of_bare_quinn": of("transport", quinn["per_second"]),
        "put_fsync_of_put_os": of("put quorum, fsync", rows["put quorum, os"]["per_second"]),
    }


def main():
    bin_folder, out = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="torc-bench-") as folder:
        bench = Bench(bin_folder, folder)
        bare_hyper(bench)
        parts(bench)
        for durability in ["os", "fsync"]:
            cluster = Cluster(bin_folder, folder, durability)
            idle = round(cluster.rss_mib())
            try:
                # Writes the records.
                bench.run(cluster.http, "get=1", seconds=0.1)
                put = bench.measure(f"put quorum, {durability}", cluster, cluster.http, "put=1", "-w", "quorum")
                if durability == "os":
                    get_arguments = (cluster, cluster.http, "get=1")
                    bench.measure("get quorum, os", *get_arguments, "-r", "quorum")
                    bench.measure("get one, os", *get_arguments, "-r", "one")
                    bench.half("get quorum, os", cluster, "get=1", "-r", "quorum")
                    bench.half("put quorum, os", cluster, "put=1", "-w", "quorum")
                    bench.rows["idle node"] = {"rss_mib": idle}
                else:
                    bench.measure("put quorum, fsync, 256", cluster, cluster.http, "put=1", "-w", "quorum", connections=256)
            finally:
                cluster.kill()
            alone(bench, durability, put.get("commit_batch", 1))
    budget, found = ratios(bench.rows)
    with open("/proc/cpuinfo") as file:
        model = re.search(r"model name\s*: (.*)", file.read())
    result = {
        "machine": {"cores": os.cpu_count(), "cpu": model.group(1) if model else "", "kernel": os.uname().release,
                    "load_before": LOAD_BEFORE},
        "settings": {"seconds": SECONDS, "connections": CONNECTIONS, "records": RECORDS, "value_bytes": VALUE_BYTES},
        "rows": bench.rows,
        "budget": budget,
        "ratios": found,
    }
    with open(out, "w") as file:
        json.dump(result, file, indent=1)
        file.write("\n")
    print("budget of this run:", ", ".join(f"{name} {value}" for name, value in budget.items()))
    for name, value in found.items():
        print(f"  {name:34} {value:.3f}")
    print("written to", out)


LOAD_BEFORE = os.getloadavg()[0]
if __name__ == "__main__":
    main()
