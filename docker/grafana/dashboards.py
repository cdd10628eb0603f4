#!/usr/bin/env python3
"""Writes the dashboards (dashboards/*.json) from the tables below; `--check` says whether they are current.

A panel is (title, unit, [(query, legend), ...]) with an optional description. `$node` is the dashboard's
choice of nodes, `$__rate_interval` is Grafana's. Every query is run against a live cluster by a test
(e2e, `metrics`), so one that finds nothing does not stay.
"""

import json
import sys
from pathlib import Path

RATE = "$__rate_interval"
NODE = 'instance=~"$node"'


def rate(metric, by, select=""):
    return f"sum by ({by}) (rate({metric}{select}[{RATE}]))"


def quantile(q, metric, by="", select=""):
    by = f"{by}, le" if by else "le"
    return f"histogram_quantile({q}, sum by ({by}) (rate({metric}_bucket{select}[{RATE}])))"


CLUSTER = [
    ("Members", "short", [("max(torc_nodes)", "members"), ("min(torc_nodes_live)", "alive, as the most pessimistic node sees it")]),
    ("Alerts", "short", [('sum by (alertname) (ALERTS{alertstate="firing"})', "{{alertname}}")]),
    ("Requests by status", "reqps", [(rate("torc_http_requests_total", "status"), "{{status}}")]),
    ("Requests by route", "reqps", [(rate("torc_http_requests_total", "route, method"), "{{method}} {{route}}")]),
    ("Operations by outcome", "ops", [("job:torc_coordinator_ops:rate1m", "{{op}} {{outcome}}")]),
    ("Share of requests without a quorum", "percentunit", [("job:torc_quorum_failures:ratio_rate5m", "{{job}}")]),
    ("Slowest of a hundred, by operation", "s", [("job_op:torc_coordinator_seconds:p99_rate5m", "{{op}}")]),
    ("Hints that wait, by target", "short", [("job_target:torc_hints_waiting:sum", "{{target}}")]),
    ("Share of all replicas", "percentunit", [("torc_ring_share", "{{instance}}")]),
    ("Version of the ring", "short", [("torc_config_version", "{{instance}}")]),
    ("Partitions", "short", [("torc_partitions", "{{instance}} {{state}}")]),
    ("Free disk", "bytes", [("torc_disk_free_bytes", "{{instance}}")]),
]

NODES = [
    ("Ready", "bool_yes_no", [(f"torc_ready{{{NODE}}}", "{{instance}}")]),
    ("Processor", "percentunit", [(f"instance:process_cpu_seconds:rate1m{{{NODE}}}", "{{instance}}")], "1 is one core."),
    ("Memory", "bytes", [(f"process_resident_memory_bytes{{{NODE}}}", "{{instance}}")]),
    ("Open files", "short", [(f"process_open_fds{{{NODE}}}", "{{instance}}"), (f"process_max_fds{{{NODE}}}", "{{instance}} limit")]),
    ("Connections", "short", [(f"torc_http_connections{{{NODE}}}", "{{instance}} {{listener}}")]),
    ("Refused early, by reason", "reqps", [(rate("torc_shed_total", "instance, reason", f"{{{NODE}}}"), "{{instance}} {{reason}}")]),
    ("What replicas were asked", "ops", [(rate("torc_replica_ops_total", "op, outcome", f"{{{NODE}}}"), "{{op}} {{outcome}}")]),
    ("Batches in a group commit, median", "short", [(quantile(0.5, "torc_commit_batch_size", "instance", f"{{{NODE}}}"), "{{instance}}")]),
    ("Group commits", "ops", [(rate("torc_replica_commit_seconds_count", "instance", f"{{{NODE}}}"), "{{instance}}")]),
    ("Block cache: share of hits", "percentunit", [(f"instance:torc_block_cache_hits:ratio_rate5m{{{NODE}}}", "{{instance}}")]),
    ("Write buffers", "bytes", [(f"torc_rocksdb_memtable_bytes{{{NODE}}}", "{{instance}}")]),
    ("Compaction debt", "bytes", [(f"torc_rocksdb_compaction_debt_bytes{{{NODE}}}", "{{instance}}")]),
    ("Writes held back", "percentunit", [(f"rate(torc_rocksdb_stall_seconds_total{{{NODE}}}[{RATE}])", "{{instance}}"), (f"torc_rocksdb_stalled{{{NODE}}}", "{{instance}} now")]),
    ("Data on disk", "bytes", [(f"torc_rocksdb_disk_bytes{{{NODE}}}", "{{instance}}"), (f"torc_rocksdb_block_cache_bytes{{{NODE}}}", "{{instance}} in the cache")]),
    ("Records, estimated", "short", [(f"torc_rocksdb_records{{{NODE}}}", "{{instance}}")]),
    ("Health of store and clock", "short", [(f"torc_rocksdb_corrupt{{{NODE}}}", "{{instance}} corrupt"), (f"torc_disk_full{{{NODE}}}", "{{instance}} disk full"), (f"torc_clock_trusted{{{NODE}}}", "{{instance}} clock trusted")]),
]

LATENCY = [
    ("Median, by operation", "s", [("job_op:torc_coordinator_seconds:p50_rate5m", "{{op}}")]),
    ("Slowest of a hundred, by operation", "s", [("job_op:torc_coordinator_seconds:p99_rate5m", "{{op}}")]),
    ("Gets: slowest of a hundred, by node", "s", [(quantile(0.99, "torc_coordinator_seconds", "instance", '{op="get"}'), "{{instance}}")]),
    ("Puts: slowest of a hundred, by node", "s", [(quantile(0.99, "torc_coordinator_seconds", "instance", '{op="put"}'), "{{instance}}")]),
    ("Deletes and lists", "s", [(quantile(0.99, "torc_coordinator_seconds", "op", '{op=~"delete|list"}'), "{{op}}")]),
    ("HTTP, all routes", "s", [(quantile(q, "torc_http_request_seconds"), name) for q, name in ((0.5, "median"), (0.99, "99 %"), (0.999, "99.9 %"))]),
    ("Group commit (write and fsync)", "s", [(quantile(0.5, "torc_replica_commit_seconds", "instance"), "{{instance}} median"), ("job:torc_replica_commit_seconds:p99_rate5m", "99 %")]),
    ("Replies of peers, slowest of a hundred", "s", [(quantile(0.99, "torc_peer_reply_seconds", "peer"), "{{peer}}")], "From a coordinator's request to the peer's reply, the peer's disk included."),
    ("Round trips of the network", "s", [("torc_peer_rtt_seconds", "{{instance}} to {{peer}}")]),
    ("Hedged reads", "ops", [(rate("torc_hedged_reads_total", "instance"), "{{instance}}")], "Reads that asked one replica more because another was slow."),
]

REPAIR = [
    ("Hints that wait, by target", "short", [("job_target:torc_hints_waiting:sum", "{{target}}")]),
    ("Bytes of hints that wait", "bytes", [("sum by (target) (torc_hint_bytes)", "{{target}}")]),
    ("Hints stored, delivered, dropped", "ops", [(rate("torc_hints_stored_total", "job"), "stored"), (rate("torc_hints_delivered_total", "job"), "delivered"), (rate("torc_hints_dropped_total", "reason"), "dropped: {{reason}}")]),
    ("Read repairs", "ops", [(rate("torc_read_repairs_total", "mode"), "{{mode}}")]),
    ("Differences of clocks", "s", [("torc_clock_drift_seconds", "{{instance}} to {{peer}}")]),
    ("Bytes between nodes", "Bps", [(rate("torc_peer_bytes_total", "instance, direction"), "{{instance}} {{direction}}")]),
    ("Peers refused", "ops", [(rate("torc_peer_refused_total", "reason"), "{{reason}}")]),
    ("Version collisions", "short", [("sum(torc_version_collisions_total)", "must stay 0")]),
    ("Anti-entropy: age of the oldest comparison", "s", [("torc_antientropy_age_seconds", "{{instance}}"), ("job:torc_antientropy_age_seconds:max", "oldest")], "Since when the least verified copy of a partition is known to agree with another owner's."),
    ("Anti-entropy: pairs in doubt", "short", [("torc_antientropy_doubts", "{{instance}}"), ("torc_antientropy_pairs", "{{instance}} all")]),
    ("Tombstones and values with an expiry", "short", [("torc_tombstones", "{{instance}} {{state}}")], "As far as they were counted. Those that are due are dropped as soon as all members are alive and in agreement."),
    ("Tombstones: how long the oldest has been due", "s", [("torc_floor_age_seconds", "{{instance}}")], "A member that is away holds all of them up."),
    ("Tombstones dropped, floors raised", "ops", [(rate("torc_tombstones_collected_total", "instance"), "{{instance}} dropped"), (rate("torc_floor_raises_total", "instance"), "{{instance}} raised")]),
    ("Anti-entropy: keys repaired", "ops", [(rate("torc_antientropy_keys_repaired_total", "instance"), "{{instance}}")]),
]

SIDE = [
    ("Cache: reads, by how they fared", "reqps", [(rate("torc_cache_requests_total", "result"), "{{result}}")]),
    ("Cache: share of hits", "percentunit", [("job:torc_cache_hits:ratio_rate5m", "{{job}}")], "Of the reads that may use it."),
    ("Cache: keys", "short", [("max(torc_cache_keys)", "keys")]),
    ("Cache: memory", "bytes", [("max(torc_cache_bytes)", "Redis")]),
    ("Connected", "short", [("torc_cache_connected", "{{instance}} cache"), ("torc_queue_connected", "{{instance}} queue"), ("torc_worker_connected", "{{instance}} worker")]),
    ("Queue: writes that wait", "short", [("job:torc_queue_depth:max", "waiting"), ('max(torc_queue_dead{job="torc"})', "given up")]),
    ("Workers: messages done", "ops", [(rate("torc_worker_messages_total", "result"), "{{result}}")]),
    ("Workers: messages in work", "short", [("torc_worker_in_work", "{{instance}}")]),
    ("Workers: attempts made again, deliveries repeated", "ops", [(rate("torc_worker_retries_total", "reason"), "{{reason}}"), ("sum(rate(torc_worker_redelivered_total[$__rate_interval]))", "delivered again")]),
    ("Change feed", "ops", [(rate("torc_changes_total", "result"), "{{result}}")]),
    ("Change feed: notes that wait", "short", [("sum by (lane) (torc_changes_waiting)", "{{lane}}")]),
    ("Autoscaler: how many there are", "short", [("torc_autoscale_count", "{{kind}}s"), ("torc_autoscale_added", "{{kind}}s added")]),
    ("Autoscaler: load of each", "short", [("torc_autoscale_load", "{{kind}}")]),
    ("Autoscaler: changes", "short", [("sum by (kind, change, outcome) (torc_autoscale_changes_total)", "{{kind}} {{change}} {{outcome}}")]),
]

DASHBOARDS = {
    "cluster": ("Cluster", CLUSTER),
    "node": ("Node", NODES),
    "latency": ("Latency by operation", LATENCY),
    "repair": ("Repair", REPAIR),
    "side": ("Side services", SIDE),
}

# Two panels beside each other on Grafana's grid of 24 columns.
WIDTH, HEIGHT = 12, 8
SOURCE = {"type": "prometheus", "uid": "prometheus"}


def panel(number, spec):
    title, unit, queries, *description = spec
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "description": description[0] if description else "",
        "datasource": SOURCE,
        "gridPos": {"h": HEIGHT, "w": WIDTH, "x": WIDTH * (number % 2), "y": HEIGHT * (number // 2)},
        "fieldConfig": {"defaults": {"unit": unit, "min": None if unit == "s" and "clocks" in title else 0, "custom": {"fillOpacity": 10, "showPoints": "never"}}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [{"refId": chr(ord("A") + at), "datasource": SOURCE, "expr": expr, "legendFormat": legend} for at, (expr, legend) in enumerate(queries)],
    }


def dashboard(name, title, panels):
    choice = {
        "name": "node",
        "label": "Node",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": "label_values(torc_nodes, instance)", "refId": "node"},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".+",
        "current": {"text": "All", "value": "$__all"},
    }
    uses_node = any("$node" in expr for _, _, queries, *_ in panels for expr, _ in queries)
    return {
        "uid": f"torc-{name}",
        "title": f"torc: {title}",
        "tags": ["torc"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "",
        "links": [{"type": "dashboards", "tags": ["torc"], "asDropdown": False, "includeVars": False, "keepTime": True, "title": "torc"}],
        "templating": {"list": [choice] if uses_node else []},
        "annotations": {"list": []},
        "panels": [panel(number, spec) for number, spec in enumerate(panels)],
    }


def main():
    folder = Path(__file__).parent / "dashboards"
    stale = []
    for name, (title, panels) in DASHBOARDS.items():
        path = folder / f"{name}.json"
        text = json.dumps(dashboard(name, title, panels), indent=1, ensure_ascii=False) + "\n"
        if "--check" in sys.argv:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                stale.append(path.name)
        else:
            path.write_text(text, encoding="utf-8")
    if stale:
        sys.exit(f"not what dashboards.py writes: {', '.join(stale)}; run it")


main()
