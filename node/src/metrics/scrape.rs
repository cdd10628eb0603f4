//! One answer to a scrape: what was counted, and what the node knows at this moment.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use torc_protocol::floor::FloorStatus;
use torc_protocol::shard_io::View;
use torc_ring::config::DEFAULT_BUCKET;
use torc_ring::{NodeId, PartitionId};
use torc_storage::Properties;

use super::process::Process;
use super::series::{Counter, Histogram};
use super::{MODES, Metrics, TIMED};
use crate::handle::{Agreement, Handle, State};
use crate::side::Side;

/// Microseconds in a second.
const MICROS: f64 = 1e6;

/// Everything that a scrape is made of.
#[derive(Debug)]
pub struct Scrape {
    pub(super) metrics: Arc<Metrics>,
    pub(super) side: Side,
    view: Option<Arc<View>>,
    state: State,
    agreement: Agreement,
    floors: FloorStatus,
    ready: bool,
    node: NodeId,
    /// Measured round trip of each peer that is connected.
    rtt: Vec<(NodeId, Duration)>,
    store: Option<Properties>,
    process: Process,
}

impl Scrape {
    /// The node as it is now.
    #[must_use]
    pub fn of(handle: &Handle) -> Self {
        let parts = handle.parts();
        let peers = parts.map_or_else(Vec::new, |parts| parts.transport.peers());
        Self {
            metrics: handle.shared_metrics(),
            side: handle.side().clone(),
            view: handle.view(),
            state: handle.state(),
            agreement: handle.agreement(),
            floors: handle.floors(),
            ready: handle.ready().is_ok(),
            node: handle.node(),
            rtt: peers
                .into_iter()
                .filter_map(|peer| Some((peer.node, peer.rtt?)))
                .collect(),
            store: parts.map(|parts| parts.store.properties()),
            process: Process::read(),
        }
    }

    /// The text of OpenMetrics 1.0, which Prometheus reads.
    ///
    /// # Errors
    /// None in practice: text is written to memory.
    pub fn encode(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::with_capacity(16 << 10);
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }

    /// A peer's name where the config knows it, else its id.
    fn name(&self, id: NodeId) -> String {
        let member = self.view.as_ref().and_then(|view| view.config.member(id));
        member.map_or_else(|| id.to_string(), |member| member.name.clone())
    }

    fn counted(&self, out: &mut Out<'_>) -> fmt::Result {
        let m = &self.metrics;
        let mut http = out.family(
            "torc_http_requests",
            "Requests answered, of both listeners",
            MetricType::Counter,
        )?;
        for (method, route, status, count) in m.http.snapshot() {
            let labels = [
                ("method", method),
                ("route", route),
                ("status", status.as_str()),
            ];
            counter(&mut http.encode_family(&labels)?, count)?;
        }
        let help = "Seconds from a request's head to its answer's head";
        out.histogram("torc_http_request_seconds", help, &m.http_seconds, MICROS)?;
        let mut open = out.family(
            "torc_http_connections",
            "Connections that are open",
            MetricType::Gauge,
        )?;
        for (listener, count) in ["data", "admin"].iter().zip(&m.connections) {
            open.encode_family(&[("listener", *listener)])?
                .encode_gauge(&count.value())?;
        }
        out.words(
            "torc_shed",
            "Work refused early",
            "reason",
            &m.shed.snapshot(),
        )?;
        self.coordinated(out)?;
        let mut replica = out.family(
            "torc_replica_ops",
            "What this replica was asked",
            MetricType::Counter,
        )?;
        for (op, _, outcome, count) in m.replica.snapshot() {
            counter(
                &mut replica.encode_family(&[("op", op), ("outcome", outcome)])?,
                count,
            )?;
        }
        let help = "Seconds from the write to durable, of one group commit";
        out.histogram(
            "torc_replica_commit_seconds",
            help,
            &m.commit_seconds,
            MICROS,
        )?;
        let help = "Batches that one group commit made durable";
        out.histogram("torc_commit_batch_size", help, &m.commit_batch, 1.0)
    }

    fn coordinated(&self, out: &mut Out<'_>) -> fmt::Result {
        let m = &self.metrics;
        let mut ops = out.family(
            "torc_coordinator_ops",
            "Operations that this node coordinated",
            MetricType::Counter,
        )?;
        for (op, required, outcome, count) in m.coordinated.snapshot() {
            let required = required.to_string();
            let labels = [
                ("op", op),
                ("consistency", required.as_str()),
                ("outcome", outcome),
            ];
            counter(&mut ops.encode_family(&labels)?, count)?;
        }
        let help = "Seconds from a request's arrival at the shard to its reply";
        let mut seconds = out.family("torc_coordinator_seconds", help, MetricType::Histogram)?;
        for (op, times) in TIMED.iter().zip(&m.coordinator_seconds) {
            histogram(&mut seconds.encode_family(&[("op", *op)])?, times, MICROS)?;
        }
        out.counter(
            "torc_hedged_reads",
            "Reads that asked one replica more",
            &m.hedged,
        )?;
        let mut repairs = out.family(
            "torc_read_repairs",
            "Reads that found replicas differ",
            MetricType::Counter,
        )?;
        for (mode, count) in MODES.iter().zip(&m.read_repairs) {
            counter(
                &mut repairs.encode_family(&[("mode", *mode)])?,
                count.value(),
            )?;
        }
        let help = "Equal versions with different values were merged: a fault";
        out.counter("torc_version_collisions", help, &m.collisions)
    }

    fn peers(&self, out: &mut Out<'_>) -> fmt::Result {
        let m = &self.metrics;
        let help = "Round trip of the network to the peer, smoothed";
        let mut rtt = out.family("torc_peer_rtt_seconds", help, MetricType::Gauge)?;
        for &(peer, time) in &self.rtt {
            rtt.encode_family(&[("peer", self.name(peer))])?
                .encode_gauge(&time.as_secs_f64())?;
        }
        let help = "Seconds from a coordinator's request to the peer's reply";
        let mut replies = out.family("torc_peer_reply_seconds", help, MetricType::Histogram)?;
        for (peer, times) in m.peer_reply.snapshot() {
            histogram(
                &mut replies.encode_family(&[("peer", self.name(peer))])?,
                &times,
                MICROS,
            )?;
        }
        let mut bytes = out.family(
            "torc_peer_bytes",
            "Payload of peer connections",
            MetricType::Counter,
        )?;
        let mut both = |peer: &str, counts: &[Counter; 2]| -> fmt::Result {
            for (direction, count) in ["out", "in"].into_iter().zip(counts) {
                let labels = [("direction", direction), ("peer", peer)];
                counter(&mut bytes.encode_family(&labels)?, count.value())?;
            }
            Ok(())
        };
        for (peer, counts) in m.peer_bytes.snapshot() {
            both(&self.name(peer), &counts)?;
        }
        both("guests", &m.guest_bytes)?;
        let help = "Connections and messages of peers that were not accepted";
        out.words(
            "torc_peer_refused",
            help,
            "reason",
            &m.peer_refused.snapshot(),
        )?;
        let mut drift = out.family(
            "torc_clock_drift_seconds",
            "Offset of the peer's clock from this node's",
            MetricType::Gauge,
        )?;
        for &(peer, micros) in &self.state.drift {
            drift
                .encode_family(&[("peer", self.name(peer))])?
                .encode_gauge(&(micros as f64 / MICROS))?;
        }
        Ok(())
    }

    fn hints(&self, out: &mut Out<'_>) -> fmt::Result {
        let m = &self.metrics;
        let mut waiting = out.family(
            "torc_hints_waiting",
            "Hints that wait for their target",
            MetricType::Gauge,
        )?;
        for &(target, count, _) in &self.state.hints {
            waiting
                .encode_family(&[("target", self.name(target))])?
                .encode_gauge(&(count as f64))?;
        }
        let mut bytes = out.family(
            "torc_hint_bytes",
            "Bytes of the hints that wait",
            MetricType::Gauge,
        )?;
        for &(target, _, size) in &self.state.hints {
            bytes
                .encode_family(&[("target", self.name(target))])?
                .encode_gauge(&(size as f64))?;
        }
        out.counter("torc_hints_stored", "Hints written", &m.hints_stored)?;
        out.counter(
            "torc_hints_delivered",
            "Hints that their target has acknowledged",
            &m.hints_delivered,
        )?;
        out.words(
            "torc_hints_dropped",
            "Hints dropped by a bound",
            "reason",
            &m.hints_dropped.snapshot(),
        )
    }

    fn membership(&self, out: &mut Out<'_>) -> fmt::Result {
        out.gauge(
            "torc_ready",
            "1 when this node serves",
            f64::from(u8::from(self.ready)),
        )?;
        out.gauge(
            "torc_disk_full",
            "1 when the disk is full and writes are refused",
            f64::from(u8::from(self.state.disk_full)),
        )?;
        out.gauge(
            "torc_clock_trusted",
            "1 when this node's clock is within the allowed drift",
            f64::from(u8::from(self.state.clock_trusted)),
        )?;
        let Some(view) = &self.view else {
            return Ok(());
        };
        let (config, ring) = (&view.config, &view.ring);
        let dead = &self.state.dead;
        let live = config
            .current
            .iter()
            .filter(|member| !dead.contains(&member.id))
            .count();
        out.gauge(
            "torc_config_version",
            "Version of the config that is applied",
            config.version.0 as f64,
        )?;
        out.gauge(
            "torc_nodes",
            "Members of the ring",
            config.current.len() as f64,
        )?;
        out.gauge(
            "torc_nodes_live",
            "Members that this node believes to be alive, itself included",
            live as f64,
        )?;
        let Some(bucket) = config.bucket(DEFAULT_BUCKET) else {
            return Ok(());
        };
        let help = "Share of all replicas of the bucket default that this node holds, 0 to 1";
        out.gauge("torc_ring_share", help, ring.share(bucket.n, self.node))?;
        let mut partitions = out.family(
            "torc_partitions",
            "Partitions of the bucket default by what this node has to do with them",
            MetricType::Gauge,
        )?;
        // Owned now and later, coming, going, none of this node's.
        let mut counts = [
            ("owned", 0_u32),
            ("gaining", 0),
            ("losing", 0),
            ("foreign", 0),
        ];
        for index in 0..ring.partitions() {
            let owners = ring.owners_of(bucket, PartitionId(index as u16));
            let now = owners.current.contains(&self.node);
            let later = owners
                .target
                .map_or(now, |target| target.contains(&self.node));
            let state = match (now, later) {
                (true, true) => 0,
                (false, true) => 1,
                (true, false) => 2,
                (false, false) => 3,
            };
            counts[state].1 += 1;
        }
        for (state, count) in counts {
            partitions
                .encode_family(&[("state", state)])?
                .encode_gauge(&f64::from(count))?;
        }
        Ok(())
    }

    fn floors(&self, out: &mut Out<'_>) -> fmt::Result {
        let floors = &self.floors;
        let help = "Tombstones and values with an expiry in this node's partitions, as far as they were counted: too \
                    `young` to be collected, `due`, and below their floor but still on disk (`collecting`)";
        let mut tombstones = out.family("torc_tombstones", help, MetricType::Gauge)?;
        for (state, count) in [
            ("young", floors.young),
            ("due", floors.due),
            ("collecting", floors.collecting),
        ] {
            tombstones
                .encode_family(&[("state", state)])?
                .encode_gauge(&(count as f64))?;
        }
        out.gauge(
            "torc_floor_age_seconds",
            "Time for which the oldest tombstone or expired value here could have been collected, and was not",
            floors.lag_us as f64 / MICROS,
        )?;
        out.gauge(
            "torc_floor_partitions_uncounted",
            "Partitions of buckets whose tombstones were not counted since the start",
            floors.uncounted as f64,
        )?;
        let help = "Partitions of buckets whose floor this node would raise, and does not because of that node";
        let mut held = out.family("torc_floor_held", help, MetricType::Gauge)?;
        let mut causes: BTreeMap<(&str, NodeId), u64> = BTreeMap::new();
        for cause in &floors.held {
            *causes.entry((cause.reason, cause.node)).or_default() += cause.partitions;
        }
        for ((reason, node), partitions) in causes {
            held.encode_family(&[("reason", reason), ("node", &self.name(node))])?
                .encode_gauge(&(partitions as f64))?;
        }
        let m = &self.metrics;
        let help = "Tombstones and expired values dropped from this node's disk";
        out.counter("torc_tombstones_collected", help, &m.collected)?;
        let help = "Floors of partitions that were raised here";
        out.counter("torc_floor_raises", help, &m.raises)?;
        out.words(
            "torc_floor_raises_failed",
            "Raises that were given up here, and are tried again",
            "reason",
            &m.raises_failed.snapshot(),
        )
    }

    fn store(&self, out: &mut Out<'_>) -> fmt::Result {
        let Some(p) = &self.store else { return Ok(()) };
        let counters = [
            (
                "torc_rocksdb_block_cache_hits",
                "Blocks found in the cache",
                p.block_cache_hits,
            ),
            (
                "torc_rocksdb_block_cache_misses",
                "Blocks not found in the cache",
                p.block_cache_misses,
            ),
        ];
        for (name, help, count) in counters {
            counter(&mut out.family(name, help, MetricType::Counter)?, count)?;
        }
        let help = "Time that writes waited for flush and compaction";
        let stalled = p.stall_us as f64 / MICROS;
        out.family("torc_rocksdb_stall_seconds", help, MetricType::Counter)?
            .encode_counter::<NoLabelSet, f64, f64>(&stalled, None)?;
        let gauges = [
            (
                "torc_rocksdb_memtable_bytes",
                "Bytes of write buffers",
                p.memtable_bytes,
            ),
            (
                "torc_rocksdb_compaction_debt_bytes",
                "Bytes that compaction has yet to rewrite, estimated",
                p.compaction_debt_bytes,
            ),
            (
                "torc_rocksdb_stalled",
                "1 while writes are slowed down or stopped",
                u64::from(p.stalled),
            ),
            (
                "torc_rocksdb_block_cache_bytes",
                "Bytes in the block cache",
                p.block_cache_bytes,
            ),
            (
                "torc_rocksdb_disk_bytes",
                "Bytes of tables on disk, without the log",
                p.disk_bytes,
            ),
            (
                "torc_rocksdb_records",
                "Records, tombstones included, estimated",
                p.records,
            ),
            (
                "torc_rocksdb_corrupt",
                "1 when RocksDB refuses writes because it met corrupt data",
                u64::from(p.corrupt),
            ),
            (
                "torc_disk_free_bytes",
                "Free bytes of the data directory's file system",
                p.free_bytes,
            ),
        ];
        for (name, help, value) in gauges {
            out.gauge(name, help, value as f64)?;
        }
        Ok(())
    }

    fn agreement(&self, out: &mut Out<'_>) -> fmt::Result {
        let m = &self.metrics;
        out.gauge(
            "torc_antientropy_age_seconds",
            "Time since which the least verified copy of a partition here is known to agree with another owner's",
            self.agreement.age.as_secs_f64(),
        )?;
        out.gauge(
            "torc_antientropy_pairs",
            "Pairs of a partition here and another owner of it",
            self.agreement.pairs as f64,
        )?;
        out.gauge(
            "torc_antientropy_doubts",
            "Pairs that are in doubt and compared first",
            self.agreement.doubts as f64,
        )?;
        out.counter(
            "torc_antientropy_keys_repaired",
            "Keys stored here because another owner had them, outside of ring changes",
            &m.keys_repaired,
        )?;
        out.words(
            "torc_antientropy_sessions_failed",
            "Comparisons that ended early and are tried again",
            "reason",
            &m.sessions_failed.snapshot(),
        )?;
        out.counter(
            "torc_transfer_bytes",
            "Bytes of keys and values received in ring changes",
            &m.transfer_bytes,
        )
    }

    fn process(&self, out: &mut Out<'_>) -> fmt::Result {
        let p = &self.process;
        if let Some(seconds) = p.cpu_seconds {
            let mut cpu = out.family(
                "process_cpu_seconds",
                "CPU time, user and system",
                MetricType::Counter,
            )?;
            cpu.encode_counter::<NoLabelSet, f64, f64>(&seconds, None)?;
        }
        let gauges = [
            (
                "process_resident_memory_bytes",
                "Resident memory",
                p.resident_bytes.map(|v| v as f64),
            ),
            (
                "process_virtual_memory_bytes",
                "Virtual memory",
                p.virtual_bytes.map(|v| v as f64),
            ),
            (
                "process_open_fds",
                "Open file descriptors",
                p.open_fds.map(|v| v as f64),
            ),
            (
                "process_max_fds",
                "Limit of open file descriptors",
                p.max_fds.map(|v| v as f64),
            ),
            ("process_threads", "Threads", p.threads.map(|v| v as f64)),
            (
                "process_start_time_seconds",
                "When the process started, in seconds since 1970",
                p.start_seconds,
            ),
        ];
        for (name, help, value) in gauges {
            if let Some(value) = value {
                out.gauge(name, help, value)?;
            }
        }
        Ok(())
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(encoder);
        self.counted(&mut out)?;
        self.peers(&mut out)?;
        self.hints(&mut out)?;
        self.agreement(&mut out)?;
        self.floors(&mut out)?;
        self.membership(&mut out)?;
        self.store(&mut out)?;
        self.side(&mut out)?;
        self.process(&mut out)
    }
}

/// The encoder, with the shapes that are needed here. Counters are named without `_total`, which the
/// encoder adds.
pub(super) struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    pub(super) fn family<'s>(
        &'s mut self,
        name: &'s str,
        help: &str,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name, help, None, kind)
    }

    fn counter(&mut self, name: &str, help: &str, count: &Counter) -> fmt::Result {
        counter(
            &mut self.family(name, help, MetricType::Counter)?,
            count.value(),
        )
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.family(name, help, MetricType::Gauge)?
            .encode_gauge(&value)
    }

    fn words(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        counts: &[(&'static str, u64)],
    ) -> fmt::Result {
        let mut family = self.family(name, help, MetricType::Counter)?;
        for (word, count) in counts {
            counter(&mut family.encode_family(&[(label, *word)])?, *count)?;
        }
        Ok(())
    }

    fn histogram(&mut self, name: &str, help: &str, values: &Histogram, unit: f64) -> fmt::Result {
        histogram(
            &mut self.family(name, help, MetricType::Histogram)?,
            values,
            unit,
        )
    }
}

pub(super) fn counter(encoder: &mut MetricEncoder<'_>, count: u64) -> fmt::Result {
    encoder.encode_counter::<NoLabelSet, u64, f64>(&count, None)
}

fn histogram(encoder: &mut MetricEncoder<'_>, values: &Histogram, unit: f64) -> fmt::Result {
    let (sum, count, buckets) = values.snapshot(unit);
    encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
}
