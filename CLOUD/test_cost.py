#!/usr/bin/env python3
"""Tests of cost.py; run them with `python3 CLOUD/test_cost.py`."""

import contextlib
import datetime
import importlib.util
import io
import json
import math
import sys
import tempfile
import unittest
from pathlib import Path

# Nothing is left beside the sources.
sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).parent))
import cost  # noqa: E402

TODAY = datetime.date(2026, 12, 1)
BENCH = {
    "machine": {"cores": 2, "cpu": "Example"},
    "settings": {"value_bytes": 1000},
    "rows": {
        "put quorum, fsync": {"servers_cpu_us": 200.0, "peer_bytes": 2000, "written_per_byte_stored": 2.0, "rss_mib": 100},
        "get quorum, os": {"servers_cpu_us": 100.0, "peer_bytes": 500, "rss_mib": 120},
        "get one, os": {"servers_cpu_us": 50.0, "rss_mib": 110},
    },
}
PRICES = {
    "as_of": "2026-11-27", "checked": True, "currency": "USD",
    "clouds": {"aws": {
        "region": "here",
        "instances": [{"name": "small", "vcpu": 2, "memory_gib": 8, "hour": 0.1}, {"name": "large", "vcpu": 8, "memory_gib": 32, "hour": 0.4}],
        "disk": {"name": "disk", "gib_month": 0.1, "mib_s_included": 100, "mib_s_month": 0.05, "mib_s_max": 500, "gib_max": 1000},
        "snapshot_gib_month": 0.05, "cross_zone_gib": 0.02, "load_balancer_month": 10,
    }},
}


class CostTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def file(self, name, content):
        path = self.folder / name
        path.write_text(json.dumps(content))
        return str(path)

    def run_cost(self, *arguments, bench=BENCH, prices=PRICES):
        out, err = io.StringIO(), io.StringIO()
        more = ["--measured", self.file("bench.json", bench)] if bench else []
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cost.main([*more, "--prices", self.file("prices.json", prices), "--output", "json", *map(str, arguments)], TODAY)
        return code, json.loads(out.getvalue()) if code == 0 else None, err.getvalue()

    def test_cores_follow_from_measured_time_for_a_request(self):
        code, result, _ = self.run_cost("--puts", 10_000, "--gets", 20_000, "--keys", 1e6, "--value-bytes", 1000)
        self.assertEqual(code, 0)
        # 10,000 × 200 us + 20,000 × 100 us in each second.
        self.assertEqual(result["needs"]["cores"], 4.0)
        small = result["offers"][0]
        # 4 cores at half use with a third of the machines gone: 12 vCPU, 6 machines of 2.
        self.assertEqual((small["instance"], small["nodes"]), ("small", 6))
        # 6 × 0.1 × 730 hours = 438, to two digits.
        self.assertEqual(small["month"]["machines"], 440)

    def test_a_read_of_one_replica_takes_its_own_measurement(self):
        _, result, _ = self.run_cost("--puts", 0, "--gets", 20_000, "--keys", 1e6, "--value-bytes", 1000, "--read", "one")
        self.assertEqual(result["needs"]["cores"], 1.0)

    def test_nodes_are_a_multiple_of_the_zones_and_never_fewer_than_replicas(self):
        for puts in [0, 1, 5_000, 15_000, 40_000]:
            _, result, _ = self.run_cost("--puts", puts, "--gets", 0, "--keys", 1000, "--value-bytes", 1000)
            for offer in result["offers"]:
                self.assertGreaterEqual(offer["nodes"], 3)
                self.assertEqual(offer["nodes"] % 3, 0)

    def test_the_spare_zone_costs_half_as_much_again(self):
        arguments = ["--puts", 60_000, "--gets", 0, "--keys", 1000, "--value-bytes", 1000]
        _, spare, _ = self.run_cost(*arguments)
        _, none, _ = self.run_cost(*arguments, "--without-zone-spare")
        # 12 cores at half use: 24 vCPU, or 36 of which a third may go.
        nodes = lambda result: {offer["instance"]: offer["nodes"] for offer in result["offers"]}  # noqa: E731
        self.assertEqual(nodes(spare), {"small": 18, "large": 6})
        self.assertEqual(nodes(none), {"small": 12, "large": 3})

    def test_much_data_wants_more_disks_than_processors_do(self):
        _, result, _ = self.run_cost("--puts", 1, "--gets", 1, "--keys", 1e9, "--value-bytes", 1000)
        offer = result["offers"][0]
        self.assertLessEqual(offer["disk_gib_per_node"], 1000)
        # 10⁹ records of 1,096 bytes, three times, in files 1.5 times as large, on disks 60 % full.
        gib = 1e9 * 1096 * 3 * 1.5 / 0.6 / 2**30
        self.assertEqual(offer["nodes"], math.ceil(math.ceil(gib / 1000) / 3) * 3)

    def test_traffic_between_zones_is_what_peers_and_clients_send(self):
        arguments = ["--puts", 1000, "--gets", 0, "--keys", 1000, "--value-bytes", 1000]
        seconds = 730 * 3600 / 2  # at half of the peak on average
        _, result, _ = self.run_cost(*arguments)
        expected = (1000 * 2000 + 1000 * 1000 * 2 / 3) * seconds / 2**30
        self.assertEqual(result["needs"]["cross_zone_gib_month"], cost.two_digits(expected))
        _, near, _ = self.run_cost(*arguments, "--clients-in-zone")
        self.assertEqual(near["needs"]["cross_zone_gib_month"], cost.two_digits(1000 * 2000 * seconds / 2**30))
        _, one, _ = self.run_cost(*arguments, "--zones", 1)
        self.assertEqual(one["needs"]["cross_zone_gib_month"], 0)

    def test_what_was_not_measured_is_an_error_and_no_guess(self):
        load = ["--puts", 1, "--gets", 1, "--keys", 1]
        for row, name in [("put quorum, fsync", "servers_cpu_us"), ("get quorum, os", "rss_mib"), ("put quorum, fsync", "written_per_byte_stored")]:
            bench = json.loads(json.dumps(BENCH))
            del bench["rows"][row][name]
            code, _, said = self.run_cost(*load, bench=bench)
            self.assertEqual(code, 1)
            self.assertIn(name, said)
        code, _, said = self.run_cost(*load, "--put-cpu-us", 100, bench=None)
        self.assertEqual(code, 1)
        self.assertIn("--get-cpu-us", said)
        self.assertIn("--measured-value-bytes", said)
        code, _, said = self.run_cost(*load, "--durability", "os")
        self.assertEqual(code, 1)
        self.assertIn("put quorum, os", said)

    def test_flags_say_the_same_as_a_file(self):
        load = ["--puts", 10_000, "--gets", 20_000, "--keys", 1e6, "--value-bytes", 1000]
        _, by_file, _ = self.run_cost(*load)
        code, by_flags, said = self.run_cost(
            *load, "--put-cpu-us", 200, "--get-cpu-us", 100, "--put-peer-bytes", 2000, "--get-peer-bytes", 500,
            "--written-per-byte", 2, "--rss-mib", 120, "--measured-value-bytes", 1000, bench=None,
        )
        self.assertEqual(code, 0, said)
        self.assertEqual(by_flags["offers"], by_file["offers"])

    def test_values_of_another_size_and_old_or_unchecked_prices_are_warned_of(self):
        load = ["--puts", 1, "--gets", 1, "--keys", 1]
        _, result, _ = self.run_cost(*load, "--value-bytes", 100_000)
        self.assertTrue(any("bound from above" in warning for warning in result["warnings"]))
        _, result, _ = self.run_cost(*load, "--value-bytes", 1000)
        self.assertEqual(result["warnings"], [])
        _, result, _ = self.run_cost(*load, "--value-bytes", 1000, prices=PRICES | {"as_of": "2025-01-01", "checked": False})
        self.assertEqual(len(result["warnings"]), 2)

    def test_money_has_two_digits(self):
        for value, rounded in [(0, 0), (1234.5, 1200), (87.6, 88), (0.0123, 0.012), (99.9, 100), (1.04, 1.0)]:
            self.assertAlmostEqual(cost.two_digits(value), rounded)

    def test_the_table_that_comes_with_it_can_be_used_for_each_cloud(self):
        prices = json.loads(Path(cost.__file__).with_name("prices.json").read_text())
        for cloud in ["aws", "azure", "gcp"]:
            code, result, said = self.run_cost(
                "--puts", 2000, "--gets", 8000, "--keys", 5e7, "--value-bytes", 1000, "--cloud", cloud, prices=prices
            )
            self.assertEqual(code, 0, said)
            self.assertEqual({offer["cloud"] for offer in result["offers"]}, {cloud})

    def test_what_the_bench_writes_is_what_is_read(self):
        # The bench's own code makes the rows, with a load and servers that are not there.
        place = Path(__file__).parent / "../scripts/bench/regress.py"
        spec = importlib.util.spec_from_file_location("regress", place)
        regress = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(regress)

        class Servers:
            looked = 0

            def counts(self):
                self.looked += 1
                each = {"cpu": 0.2, "switches": 500, "written": 6_000_000, "peer_bytes": 2_000_000, "batches": 100, "batched": 1000}
                return {name: value * self.looked for name, value in each.items()}

            def rss_mib(self):
                return 99.6

        bench = regress.Bench("", str(self.folder))
        bench.run = lambda *_, **__: {
            "operations": 1000, "throughput": 1000.0, "errors": 0, "missing": 0, "latency_us": {"p50": 1, "p99": 2},
            "instrument": {"cpu_us_per_operation": 10, "context_switches_per_operation": 0.1},
        }
        with contextlib.redirect_stdout(io.StringIO()):
            for name in ["put quorum, os", "put quorum, fsync", "get quorum, os", "get one, os"]:
                bench.measure(name, Servers())
        written = {"machine": {"cores": 2, "cpu": "here"}, "settings": {"value_bytes": regress.VALUE_BYTES}, "rows": bench.rows}
        for read, durability in [("quorum", "fsync"), ("one", "os")]:
            code, result, said = self.run_cost(
                "--puts", 10_000, "--gets", 0, "--keys", 1e6, "--read", read, "--durability", durability, bench=written
            )
            self.assertEqual(code, 0, said)
            # 0.2 s of processors for 1,000 requests.
            self.assertEqual(result["measured"]["put_cpu_us"], 200)
            self.assertEqual(result["needs"]["cores"], 2.0)
            self.assertEqual(result["measured"]["put_peer_bytes"], 2000)
            self.assertEqual(result["measured"]["rss_mib"], 100)
        # And the rows that it names are those that the bench measures.
        source = place.read_text()
        for row in ['f"put quorum, {durability}"', '"get quorum, os"', '"get one, os"']:
            self.assertIn(f"bench.measure({row}", source)

    def test_numbers_that_are_none_are_refused(self):
        for bad in [["--puts", "nan"], ["--puts", "-1"], ["--puts", "1", "--utilisation", "0"]]:
            with self.assertRaises(SystemExit), contextlib.redirect_stderr(io.StringIO()):
                cost.main([*bad, "--gets", "1", "--keys", "1"], TODAY)


if __name__ == "__main__":
    unittest.main()
