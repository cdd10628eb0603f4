//! Results as values. Their JSON is an interface: names and units stay.

use std::collections::BTreeMap;

use hdrhistogram::{Counter, Histogram};
use serde::Serialize;

use super::availability::Availability;
use crate::drive::{Measured, Plan};
use crate::pace::Pace;
use crate::record::Tally;
use crate::target::{Asking, Target, TargetKind};
use crate::workload::{Choice, KINDS, ValueSize, Workload};

/// Latencies in microseconds. Of an open loop they count from the time at which an operation was due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    /// Median.
    pub p50: f64,
    /// 90 of 100 took at most this long.
    pub p90: f64,
    /// 99 of 100.
    pub p99: f64,
    /// 999 of 1,000.
    pub p999: f64,
    /// The longest.
    pub max: f64,
    /// Mean.
    pub mean: f64,
}

impl Latency {
    pub(crate) fn of<C: Counter>(histogram: &Histogram<C>) -> Self {
        let micros = |nanos: f64| (nanos / 100.0).round() / 10.0;
        let at = |quantile| micros(histogram.value_at_quantile(quantile) as f64);
        if histogram.is_empty() {
            return Self::default();
        }
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: micros(histogram.max() as f64),
            mean: micros(histogram.mean()),
        }
    }
}

/// Counts and latencies of some operations.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Totals {
    /// Operations that ended, failed ones included.
    pub operations: u64,
    /// Operations that failed.
    pub errors: u64,
    /// Reads of records that are not there; no errors.
    pub missing: u64,
    /// Time that they took all together, in seconds.
    pub seconds: f64,
    /// Operations that were answered, in a second.
    pub throughput: f64,
    /// Of those that were answered.
    pub latency_us: Latency,
    /// Errors by reason.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub reasons: BTreeMap<String, u64>,
}

impl Totals {
    fn of<'a>(tallies: impl Iterator<Item = &'a Tally>, seconds: f64) -> Self {
        let mut totals = Self {
            seconds,
            ..Self::default()
        };
        let mut latency = crate::record::histogram::<u64>(3);
        for tally in tallies {
            // All histograms have the same bounds.
            let added = latency.add(&tally.latency);
            debug_assert!(added.is_ok(), "{added:?}");
            totals.missing += tally.missing;
            for (reason, count) in &tally.errors {
                totals.errors += count;
                *totals.reasons.entry(reason.to_string()).or_default() += count;
            }
        }
        let answered = latency.len();
        totals.operations = answered + totals.errors;
        totals.latency_us = Latency::of(&latency);
        if seconds > 0.0 {
            totals.throughput = answered as f64 / seconds;
        }
        totals
    }
}

/// One phase: totals, and the same for each kind of operation.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PhaseResult {
    /// All kinds together.
    #[serde(flatten)]
    pub totals: Totals,
    /// Each kind that occurred.
    pub kinds: BTreeMap<&'static str, Totals>,
}

impl PhaseResult {
    /// Of what was measured.
    #[must_use]
    pub fn of(measured: &Measured) -> Self {
        let tallies = &measured.record.kinds;
        let occurred = |tally: &&Tally| !tally.latency.is_empty() || !tally.errors.is_empty();
        let kinds = KINDS.into_iter().zip(tallies);
        Self {
            totals: Totals::of(tallies.iter(), measured.seconds),
            kinds: kinds
                .filter(|(_, tally)| occurred(tally))
                .map(|(kind, tally)| {
                    (
                        kind.name(),
                        Totals::of(std::iter::once(tally), measured.seconds),
                    )
                })
                .collect(),
        }
    }
}

/// One point of the series.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Its end, in seconds from the beginning.
    pub second: u64,
    /// Operations answered in a second.
    pub throughput: f64,
    /// Operations that failed.
    pub errors: u64,
    /// Median in microseconds.
    pub p50: f64,
    /// 99 of 100, in microseconds.
    pub p99: f64,
    /// The longest, in microseconds.
    pub max: f64,
}

/// What the load generator itself used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Instrument {
    /// Processor time for an operation, in microseconds.
    pub cpu_us_per_operation: f64,
    /// Context switches for an operation.
    pub context_switches_per_operation: f64,
    /// Open loop: how much later than due operations were sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lateness_us: Option<Latency>,
}

/// The workload, as it stands in results.
#[derive(Clone, Debug, Serialize)]
pub struct WorkloadView {
    /// Name.
    pub name: String,
    /// Shares of operations.
    pub mix: String,
    /// Which records.
    pub distribution: Choice,
    /// How many.
    pub records: u64,
    /// Their values.
    pub value_size: ValueSize,
}

impl WorkloadView {
    /// Of this workload.
    #[must_use]
    pub fn of(workload: &Workload) -> Self {
        Self {
            name: workload.name.clone(),
            mix: workload.mix.to_string(),
            distribution: workload.choice,
            records: workload.records,
            value_size: workload.value_size.clone(),
        }
    }
}

/// One run against one target.
#[derive(Clone, Debug, Serialize)]
pub struct RunResult {
    /// What was driven.
    pub target: TargetKind,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// How it was asked.
    pub asking: Asking,
    /// The workload.
    pub workload: WorkloadView,
    /// Connections.
    pub connections: usize,
    /// Closed or open loop.
    pub pace: Pace,
    /// Decided all draws.
    pub seed: u64,
    /// The measured phase.
    #[serde(flatten)]
    pub totals: Totals,
    /// The phases, `load` and `run`, with the kinds of operations.
    pub phases: BTreeMap<&'static str, PhaseResult>,
    /// How the measured phase went.
    pub availability: Availability,
    /// What the load generator used in it.
    pub instrument: Instrument,
    /// The measured phase from second to second.
    pub series: Vec<Point>,
    /// It was ended before its time.
    pub stopped: bool,
}

impl RunResult {
    /// Of what was measured, with the load phase if there was one.
    #[must_use]
    pub fn of(
        (target, workload, plan): (&Target, &Workload, &Plan),
        load: Option<&Measured>,
        run: &Measured,
    ) -> Self {
        let mut phases = BTreeMap::new();
        if let Some(load) = load {
            phases.insert("load", PhaseResult::of(load));
        }
        let phase = PhaseResult::of(run);
        let totals = phase.totals.clone();
        phases.insert("run", phase);
        Self {
            target: target.kind,
            addresses: target
                .addresses
                .iter()
                .map(|address| address.text.clone())
                .collect(),
            asking: target.asking.clone(),
            workload: WorkloadView::of(workload),
            connections: plan.connections,
            pace: plan.pace,
            seed: plan.seed,
            totals,
            phases,
            availability: Availability::of(&run.record.moments),
            instrument: instrument(run, matches!(plan.pace, Pace::Open { .. })),
            series: series(run),
            stopped: run.stopped,
        }
    }
}

fn instrument(run: &Measured, is_open: bool) -> Instrument {
    let tallies = run.record.kinds.iter();
    let operations: u64 = tallies
        .map(|tally| tally.latency.len() + tally.errors.values().sum::<u64>())
        .sum();
    let each = |amount: f64| {
        if operations == 0 {
            0.0
        } else {
            amount / operations as f64
        }
    };
    Instrument {
        cpu_us_per_operation: each(run.usage.cpu.as_secs_f64() * 1e6),
        context_switches_per_operation: each(run.usage.switches as f64),
        lateness_us: is_open.then(|| Latency::of(&run.record.lateness)),
    }
}

fn series(run: &Measured) -> Vec<Point> {
    let length = run.record.point.as_secs().max(1);
    let points = run.record.points.iter().zip(1..);
    points
        .map(|(point, number)| {
            let latency = Latency::of(&point.latency);
            Point {
                second: number * length,
                throughput: point.latency.len() as f64 / length as f64,
                errors: point.errors,
                p50: latency.p50,
                p99: latency.p99,
                max: latency.max,
            }
        })
        .collect()
}
