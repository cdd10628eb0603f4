#!/usr/bin/env python3
"""How many machines a load needs, and about what they cost: from measured CPU time per request and a price table.

    cost.py --measured bench.json --puts 2000 --gets 8000 --keys 50e6
    cost.py --put-cpu-us 180 --get-cpu-us 90 --put-peer-bytes 2300 --get-peer-bytes 700 \\
            --written-per-byte 2.5 --rss-mib 400 --measured-value-bytes 1024 --puts 2000 --gets 8000 --keys 50e6

`bench.json` is what `make bench` writes (docs/performance.md). It is measured with n = 3 on three nodes, so the
model is for n = 3. Nothing is filled in that was not measured: a figure that is missing is an error. What is
assumed instead of measured stands in the output, each with the flag that changes it. Money is rounded to two digits,
because neither the prices nor the machines are known better. Python's standard library only.
"""

import argparse
import datetime
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

REPLICAS = 3
HOURS_PER_MONTH = 730
SECONDS_PER_MONTH = HOURS_PER_MONTH * 3600
GIB = 1 << 30
MIB = 1 << 20
# Older price tables are still used, with a warning.
PRICES_DAYS_MAX = 180
# A measurement with values of another size says little about the CPU time of these.
VALUE_RATIO_MAX = 2


class Refused(Exception):
    """What cannot be computed, and what to do about it."""


@dataclass
class Measured:
    """What one request costs; CPU time is that of all servers together."""

    source: str
    put_cpu_us: float
    get_cpu_us: float
    put_peer_bytes: float
    get_peer_bytes: float
    written_per_byte: float
    rss_mib: float
    value_bytes: float

    @property
    def puts_per_core(self):
        return 1e6 / self.put_cpu_us

    @property
    def gets_per_core(self):
        return 1e6 / self.get_cpu_us


def number(text):
    value = float(text)
    if not math.isfinite(value) or value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 on")
    return value


def share(text):
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value


def of_bench(path, durability, read):
    """The figures of a `bench.json`."""
    try:
        bench = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise Refused(f"cannot read {path}: {error}") from error
    rows = bench.get("rows", {})

    def figure(row, name):
        value = rows.get(row, {}).get(name)
        if not isinstance(value, (int, float)) or value <= 0:
            raise Refused(f"{path} has no `{name}` of `{row}`: run `make bench` again, or give the figure as a flag")
        return float(value)

    put, get = f"put quorum, {durability}", f"get {read}, os"
    value_bytes = bench.get("settings", {}).get("value_bytes")
    if not value_bytes:
        raise Refused(f"{path} does not say its value_bytes")
    machine = bench.get("machine", {})
    return Measured(
        source=f"{path}: {machine.get('cores', '?')} cores, {machine.get('cpu') or 'processor unknown'}; rows `{put}`, `{get}`",
        put_cpu_us=figure(put, "servers_cpu_us"),
        get_cpu_us=figure(get, "servers_cpu_us"),
        put_peer_bytes=figure(put, "peer_bytes"),
        # Where each node owns each key, a read of one replica may need no peer at all.
        get_peer_bytes=float(rows[get].get("peer_bytes", 0)),
        written_per_byte=figure(put, "written_per_byte_stored"),
        rss_mib=max(figure(put, "rss_mib"), figure(get, "rss_mib")),
        value_bytes=float(value_bytes),
    )


def of_flags(args):
    given = {
        name: getattr(args, name)
        for name in ["put_cpu_us", "get_cpu_us", "put_peer_bytes", "get_peer_bytes", "written_per_byte", "rss_mib"]
    }
    given["value_bytes"] = args.measured_value_bytes
    missing = [name for name, value in given.items() if value is None]
    if missing:
        flags = ", ".join("--" + name.replace("_", "-") for name in missing).replace("--value-bytes", "--measured-value-bytes")
        raise Refused(f"give --measured bench.json, or measure and give also {flags}")
    if not given["put_cpu_us"] or not given["get_cpu_us"]:
        raise Refused("a request without CPU time was not measured")
    return Measured(source="flags", **given)


def prices_of(path, today):
    """The price table, and what is to be said about it."""
    try:
        prices = json.loads(Path(path).read_text())
        as_of = datetime.date.fromisoformat(prices["as_of"])
    except (OSError, ValueError, KeyError) as error:
        raise Refused(f"cannot use the price table {path}: {error}") from error
    warnings = []
    if not prices.get("checked"):
        warnings.append("the price table was not compared with the providers' lists: " + prices.get("note", ""))
    days = (today - as_of).days
    if days > PRICES_DAYS_MAX:
        warnings.append(f"the price table is {days} days old")
    return prices, warnings


@dataclass
class Need:
    """What a load needs, whatever the machines."""

    cores: float
    stored_gib: float
    disk_gib: float
    written_mib_s: float
    cross_zone_gib_month: float


def need(load, measured):
    """From requests at peak to cores, bytes and traffic."""
    grown = max(1.0, load.value_bytes / measured.value_bytes)
    record = load.value_bytes + load.key_bytes + load.record_overhead
    stored = load.keys * record * REPLICAS
    # Larger values than measured: everything grows with them at most. Smaller ones: as measured, at most.
    peers = (load.puts * measured.put_peer_bytes + load.gets * measured.get_peer_bytes) * grown
    clients = 0 if load.clients_in_zone else (load.puts + load.gets) * load.value_bytes * (load.zones - 1) / load.zones
    return Need(
        cores=(load.puts * measured.put_cpu_us + load.gets * measured.get_cpu_us) * grown / 1e6 / load.core_ratio,
        stored_gib=stored / GIB,
        disk_gib=stored * load.space_amplification / load.disk_fill / GIB,
        written_mib_s=load.puts * REPLICAS * record * measured.written_per_byte / MIB,
        # With one zone nothing crosses; else all that peers send does: a key's owners are in different zones.
        cross_zone_gib_month=0 if load.zones == 1 else (peers + clients) * load.average / GIB * SECONDS_PER_MONTH,
    )


def nodes_for(needed, instance, disk, load):
    """Nodes of this kind, a multiple of the zones; `None` where no number of them will do."""
    if instance["memory_gib"] * 1024 < load.memory_mib_min:
        return None
    left = (load.zones - 1) / load.zones if load.zones > 1 and not load.without_zone_spare else 1
    by_cpu = needed.cores / (instance["vcpu"] * load.utilisation * left)
    by_disk = needed.disk_gib / disk["gib_max"]
    by_writes = needed.written_mib_s / disk["mib_s_max"]
    least = max(REPLICAS, math.ceil(by_cpu - 1e-9), math.ceil(by_disk), math.ceil(by_writes))
    return math.ceil(least / load.zones) * load.zones


def month(needed, nodes, instance, cloud, load):
    """Money for a month, by part."""
    disk = cloud["disk"]
    gib = max(math.ceil(needed.disk_gib / nodes), 10)
    mib_s = needed.written_mib_s / nodes
    if "mib_s_per_gib" in disk:
        # Throughput comes with size here.
        gib = max(gib, math.ceil(mib_s / disk["mib_s_per_gib"]))
        throughput = 0.0
    else:
        throughput = max(0.0, mib_s - disk["mib_s_included"]) * disk["mib_s_month"]
    return {
        "machines": nodes * instance["hour"] * HOURS_PER_MONTH,
        "disks": nodes * (gib * disk["gib_month"] + throughput),
        "snapshots": needed.stored_gib * load.space_amplification * load.snapshot_copies * cloud["snapshot_gib_month"],
        "between zones": needed.cross_zone_gib_month * cloud["cross_zone_gib"],
        "load balancer": cloud["load_balancer_month"],
    }, gib


def two_digits(value):
    """Rounded to two significant digits."""
    if value == 0:
        return 0
    scale = 10 ** (math.floor(math.log10(abs(value))) - 1)
    return round(value / scale) * scale if scale >= 1 else round(value, 1 - math.floor(math.log10(abs(value))))


def compute(load, measured, prices):
    """All clouds' offers, the cheapest kind of each cloud first."""
    needed = need(load, measured)
    offers = []
    for cloud_name, cloud in prices["clouds"].items():
        if load.cloud and load.cloud != cloud_name:
            continue
        for instance in cloud["instances"]:
            nodes = nodes_for(needed, instance, cloud["disk"], load)
            if nodes is None:
                continue
            parts, gib = month(needed, nodes, instance, cloud, load)
            offers.append({
                "cloud": cloud_name,
                "region": cloud["region"],
                "instance": instance["name"],
                "nodes": nodes,
                "disk_gib_per_node": gib,
                "disk": cloud["disk"]["name"],
                "month": {name: two_digits(value) for name, value in parts.items()},
                "total": two_digits(sum(parts.values())),
                "exact": sum(parts.values()),
            })
    if not offers:
        raise Refused("no machine of the price table is large enough, or the cloud is not in it")
    offers.sort(key=lambda offer: (offer["cloud"], offer["exact"]))
    for offer in offers:
        del offer["exact"]
    return needed, offers


def warnings_of(load, measured):
    ratio = max(load.value_bytes, measured.value_bytes) / max(1.0, min(load.value_bytes, measured.value_bytes))
    if ratio > VALUE_RATIO_MAX:
        return [
            f"measured with values of {measured.value_bytes:.0f} bytes, asked for {load.value_bytes:.0f}: the result is a bound "
            "from above, no estimate; measure with your size (`torc bench run --value-size`)"
        ]
    return []


def assumptions(load):
    spare = "none" if load.without_zone_spare or load.zones == 1 else "one zone may be gone at peak"
    return [
        f"processors are used to {load.utilisation:.0%} at peak (--utilisation)",
        f"a vCPU does {load.core_ratio:g} of a measured core's work (--core-ratio)",
        f"spare: {spare} (--without-zone-spare)",
        f"the month's average is {load.average:.0%} of the peak (--average)",
        f"files take {load.space_amplification:g} times the live bytes (--space-amplification), disks are filled to {load.disk_fill:.0%} (--disk-fill)",
        f"{load.record_overhead:.0f} bytes around each record (--record-overhead)",
        f"snapshots hold {load.snapshot_copies:g} times the files (--snapshot-copies)",
        "clients are in the zone of the node that they ask (--clients-in-zone)" if load.clients_in_zone
        else "clients ask nodes of any zone (--clients-in-zone)",
        "not counted: IOPS beyond what a disk includes, traffic out of the region, support, taxes, discounts, people",
    ]


def text(load, measured, prices, needed, offers, warnings):
    lines = [
        f"measured    {measured.source}",
        f"            {two_digits(measured.puts_per_core):g} puts/s and {two_digits(measured.gets_per_core):g} gets/s for each core, all replicas' work included",
        f"peak        {load.puts:g} puts/s, {load.gets:g} gets/s, {load.keys:g} keys of {load.value_bytes:g} bytes, n = 3 in {load.zones} zones",
        f"needs       {two_digits(needed.cores):g} cores busy, {two_digits(needed.stored_gib):g} GiB live on all replicas, "
        f"{two_digits(needed.written_mib_s):g} MiB/s written",
        f"prices      {prices['as_of']}, {prices['currency']} for a month, two digits",
        "",
        f"{'CLOUD':7} {'MACHINE':18} {'NODES':>5} {'DISK EACH':>10}  {'MACHINES':>9} {'DISKS':>8} {'SNAPSHOTS':>9} {'ZONES':>8} {'TOTAL':>9}",
    ]
    for offer in offers:
        part = offer["month"]
        lines.append(
            f"{offer['cloud']:7} {offer['instance']:18} {offer['nodes']:5d} {offer['disk_gib_per_node']:6d} GiB  "
            f"{part['machines']:9g} {part['disks']:8g} {part['snapshots']:9g} {part['between zones']:8g} {offer['total']:9g}"
        )
    lines += ["", "Assumed, not measured:"] + ["  " + each for each in assumptions(load)]
    lines += ["WARNING: " + each for each in warnings]
    return "\n".join(lines)


def parser():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    load = p.add_argument_group("load, at peak")
    load.add_argument("--puts", type=number, required=True, help="writes a second")
    load.add_argument("--gets", type=number, required=True, help="reads a second")
    load.add_argument("--keys", type=number, required=True, help="keys stored")
    load.add_argument("--value-bytes", type=number, default=1024)
    load.add_argument("--key-bytes", type=number, default=32)
    load.add_argument("--read", choices=["quorum", "one"], default="quorum", help="how reads are made")
    load.add_argument("--durability", choices=["fsync", "os"], default="fsync")
    load.add_argument("--zones", type=int, choices=[1, 2, 3], default=3)
    seen = p.add_argument_group("measured")
    seen.add_argument("--measured", metavar="FILE", help="bench.json of `make bench`; or all of the following")
    for name in ["put-cpu-us", "get-cpu-us", "put-peer-bytes", "get-peer-bytes", "written-per-byte", "rss-mib", "measured-value-bytes"]:
        seen.add_argument("--" + name, type=number)
    assumed = p.add_argument_group("assumed")
    assumed.add_argument("--utilisation", type=share, default=0.5)
    assumed.add_argument("--core-ratio", type=share, default=1.0)
    assumed.add_argument("--average", type=share, default=0.5, help="of the peak, over the month")
    assumed.add_argument("--space-amplification", type=number, default=1.5)
    assumed.add_argument("--disk-fill", type=share, default=0.6)
    assumed.add_argument("--record-overhead", type=number, default=64)
    assumed.add_argument("--snapshot-copies", type=number, default=1.5)
    assumed.add_argument("--without-zone-spare", action="store_true")
    assumed.add_argument("--clients-in-zone", action="store_true")
    p.add_argument("--prices", metavar="FILE", default=str(Path(__file__).with_name("prices.json")))
    p.add_argument("--cloud", choices=["aws", "azure", "gcp"])
    p.add_argument("--output", choices=["text", "json"], default="text")
    return p


def main(arguments=None, today=None):
    load = parser().parse_args(arguments)
    try:
        measured = of_bench(load.measured, load.durability, load.read) if load.measured else of_flags(load)
        # The largest node that was measured, twice, because more keys want more of everything.
        load.memory_mib_min = 2 * measured.rss_mib
        prices, warnings = prices_of(load.prices, today or datetime.date.today())
        needed, offers = compute(load, measured, prices)
    except Refused as refusal:
        print(f"cost.py: {refusal}", file=sys.stderr)
        return 1
    warnings = warnings_of(load, measured) + warnings
    if load.output == "json":
        print(json.dumps({
            "measured": vars(measured), "needs": {k: two_digits(v) for k, v in vars(needed).items()},
            "prices_as_of": prices["as_of"], "currency": prices["currency"], "offers": offers,
            "assumed": assumptions(load), "warnings": warnings,
        }, indent=1))
    else:
        print(text(load, measured, prices, needed, offers, warnings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
