//! Results of a sweep over n, r and w.

use serde::Serialize;

use super::html::Page;
use super::plot::{Frame, Line};
use super::result::{PhaseResult, RunResult, Totals, WorkloadView};
use super::table::{millis, number};
use super::{Availability, Instrument, Point};
use crate::staleness::Staleness;

/// Availability while one node is killed and returns.
#[derive(Clone, Debug, Serialize)]
pub struct Outage {
    /// When it was killed, in seconds from the beginning of the measurement.
    pub killed_after_seconds: f64,
    /// When it was started again.
    pub returned_after_seconds: f64,
    /// Totals of this measurement.
    #[serde(flatten)]
    pub totals: Totals,
    /// How it went.
    pub availability: Availability,
    /// From second to second.
    pub series: Vec<Point>,
}

/// One combination of n, r and w.
#[derive(Clone, Debug, Serialize)]
pub struct Combination {
    /// Replicas of each key.
    pub n: u16,
    /// Replicas that a read waits for.
    pub r: u16,
    /// Replicas that a write waits for.
    pub w: u16,
    /// Whether every read meets every acknowledged write: r + w > n.
    pub overlaps: bool,
    /// Throughput and latency of the workload.
    #[serde(flatten)]
    pub run: PhaseResult,
    /// What the load generator used.
    pub instrument: Instrument,
    /// Measured staleness, if it was measured.
    pub staleness: Option<Staleness>,
    /// Measured with a node killed, if one could be.
    pub outage: Option<Outage>,
}

impl Combination {
    /// Whether what was measured keeps what r + w > n promises; where it promises nothing, it always does.
    #[must_use]
    pub fn keeps_its_promise(&self) -> bool {
        !self.overlaps
            || self
                .staleness
                .as_ref()
                .is_none_or(|staleness| staleness.misses == 0)
    }

    fn name(&self) -> String {
        format!("n={} r={} w={}", self.n, self.r, self.w)
    }
}

/// A whole sweep.
#[derive(Clone, Debug, Serialize)]
pub struct SweepResult {
    /// What was driven.
    pub addresses: Vec<String>,
    /// The workload of throughput and availability.
    pub workload: WorkloadView,
    /// Connections.
    pub connections: usize,
    /// Keys that were probed at a time.
    pub probed_keys: usize,
    /// All combinations.
    pub combinations: Vec<Combination>,
    /// It was ended before its time.
    pub stopped: bool,
}

/// Heads of the columns of [`SweepResult::rows`].
pub const SWEEP_COLUMNS: [&str; 15] = [
    "n",
    "r",
    "w",
    "r+w>n",
    "PER SECOND",
    "p50 ms",
    "p90 ms",
    "p99 ms",
    "p99.9 ms",
    "MAX ms",
    "STALE READS",
    "OF PROBES",
    "OLDEST ms",
    "ANSWERED",
    "RECOVERED s",
];

impl SweepResult {
    /// A row for each combination.
    #[must_use]
    pub fn rows(&self) -> Vec<Vec<String>> {
        self.combinations.iter().map(row).collect()
    }

    /// The result in sentences.
    #[must_use]
    pub fn verdict(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let probed = |overlaps: bool| {
            let some = self
                .combinations
                .iter()
                .filter(move |combination| combination.overlaps == overlaps);
            some.filter_map(|combination| Some((combination, combination.staleness.as_ref()?)))
        };
        let (probes, misses) = probed(true).fold((0, 0), |(probes, misses), (_, staleness)| {
            (probes + staleness.probes, misses + staleness.misses)
        });
        if probes > 0 {
            lines.push(if misses == 0 {
                format!("Where r + w > n, none of {} reads missed the last acknowledged write.", number(probes as f64))
            } else {
                format!("Where r + w > n, {misses} of {} reads missed the last acknowledged write: a promise is broken.", number(probes as f64))
            });
        }
        let worst = probed(false).max_by(|(_, a), (_, b)| a.probability.total_cmp(&b.probability));
        if let Some((combination, staleness)) = worst {
            lines.push(format!(
                "Stale most often: {} with {:.4} % of its reads; the oldest value had been overwritten for {:.2} ms.",
                combination.name(),
                staleness.probability * 100.0,
                staleness.oldest_value_ms
            ));
        }
        lines
    }

    /// The report: a page that is understood without us.
    #[must_use]
    pub fn page(&self) -> String {
        let mut page = Page::new("torc bench: what n, r and w cost, and what they buy");
        page.paragraph(
            "Each key is kept on n nodes. A write is acknowledged when w of them have stored it; a read is answered when r \
             of them have spoken, with the newest value among theirs. If r + w > n, every read meets every acknowledged \
             write. Smaller numbers are faster and survive more failures, and may show old values for a moment. This page \
             shows how much of each, as measured.",
        );
        for line in self.verdict() {
            page.paragraph(&line);
        }
        page.section("All combinations");
        page.table(&SWEEP_COLUMNS, self.rows());
        page.note(&format!(
            "{} ({}), {} records of {}; {} connections in a closed loop. Latency over all operations. Answered and recovered: \
             measured while one node was killed and returned; recovered means that nothing failed any more and throughput was \
             back at 90 %. Where too few nodes are left for r or w, operations fail until the node is back: that is what \
             waiting for all of them means.",
            self.workload.name,
            self.workload.mix,
            number(self.workload.records as f64),
            self.workload.value_size,
            self.connections
        ));
        self.staleness_section(&mut page);
        self.latency_section(&mut page);
        self.outage_section(&mut page);
        page.finish()
    }

    fn staleness_section(&self, page: &mut Page) {
        page.section("Staleness");
        page.paragraph(
            "How likely a read misses the last acknowledged write, by the time between the acknowledgement and the read \
             (Bailis et al., Probabilistically bounded staleness, 2012). Each write was read once, through another node than \
             the one that took it.",
        );
        let curve = |combination: &Combination| {
            let staleness = combination
                .staleness
                .as_ref()
                .filter(|staleness| staleness.misses > 0)?;
            // A bin of few probes says little.
            let bins = staleness.curve.iter().filter(|bin| bin.probes >= 20);
            Some(Line {
                name: combination.name(),
                points: bins
                    .map(|bin| ((bin.mean_us / 1_000.0).max(0.01), bin.probability * 100.0))
                    .collect(),
            })
        };
        let lines: Vec<Line> = self.combinations.iter().filter_map(curve).collect();
        if lines.is_empty() {
            page.paragraph("No read of any combination was stale.");
        }
        let frame = Frame {
            title: "Reads that missed the last acknowledged write",
            x: "milliseconds since the acknowledgement",
            y: "% of reads",
            log_x: true,
            log_y: false,
        };
        page.plot(frame, lines);
        let columns = [
            "COMBINATION",
            "PROBES",
            "STALE",
            "% OF READS",
            "AT MOST % (95 % SURE)",
            "OLDEST VALUE ms",
            "WRITES BEHIND",
        ];
        let rows = self.combinations.iter().filter_map(|combination| {
            let staleness = combination.staleness.as_ref()?;
            Some(vec![
                combination.name(),
                number(staleness.probes as f64),
                number(staleness.misses as f64),
                format!("{:.4}", staleness.probability * 100.0),
                format!("{:.4}", staleness.probability_at_most * 100.0),
                format!("{:.2}", staleness.oldest_value_ms),
                staleness.versions_behind_max.to_string(),
            ])
        });
        page.table(&columns, rows);
    }

    fn latency_section(&self, page: &mut Page) {
        page.section("Latency by kind of operation");
        let columns = [
            "COMBINATION",
            "OPERATION",
            "COUNT",
            "ERRORS",
            "p50 ms",
            "p90 ms",
            "p99 ms",
            "p99.9 ms",
            "MAX ms",
        ];
        let rows = self.combinations.iter().flat_map(|combination| {
            combination.run.kinds.iter().map(|(kind, totals)| {
                let latency = totals.latency_us;
                let mut row = vec![combination.name(), (*kind).to_owned()];
                row.extend([totals.operations, totals.errors].map(|count| number(count as f64)));
                row.extend(
                    [
                        latency.p50,
                        latency.p90,
                        latency.p99,
                        latency.p999,
                        latency.max,
                    ]
                    .map(millis),
                );
                row
            })
        });
        page.table(&columns, rows);
    }

    fn outage_section(&self, page: &mut Page) {
        let outages = || {
            self.combinations
                .iter()
                .filter_map(|combination| Some((combination, combination.outage.as_ref()?)))
        };
        let Some((_, first)) = outages().next() else {
            return;
        };
        page.section("One node killed");
        page.paragraph(&format!(
            "A node was killed (SIGKILL) {:.0} s into the measurement and started again {:.0} s later, under the same load.",
            first.killed_after_seconds,
            first.returned_after_seconds - first.killed_after_seconds
        ));
        let lines = outages().map(|(combination, outage)| Line {
            name: combination.name(),
            points: outage
                .series
                .iter()
                .map(|point| (point.second as f64, point.throughput))
                .collect(),
        });
        let frame = Frame {
            title: "Throughput while a node is killed and returns",
            x: "seconds",
            y: "operations answered a second",
            ..Frame::default()
        };
        page.plot(frame, lines.collect());
        let columns = [
            "COMBINATION",
            "ANSWERED",
            "TIME UP",
            "LONGEST SILENCE s",
            "RECOVERED AFTER s",
            "ERRORS",
        ];
        let rows = outages().map(|(combination, outage)| {
            let mut row = vec![combination.name()];
            row.extend(outage.availability.cells());
            let reasons: Vec<String> = outage
                .totals
                .reasons
                .iter()
                .map(|(reason, count)| format!("{count} x {reason}"))
                .collect();
            row.push(if reasons.is_empty() {
                "-".to_owned()
            } else {
                reasons.join(", ")
            });
            row
        });
        page.table(&columns, rows);
    }
}

fn row(combination: &Combination) -> Vec<String> {
    let totals = &combination.run.totals;
    let latency = totals.latency_us;
    let mut row = [combination.n, combination.r, combination.w]
        .map(|number| number.to_string())
        .to_vec();
    row.push(if combination.overlaps { "yes" } else { "no" }.to_owned());
    row.push(number(totals.throughput));
    row.extend(
        [
            latency.p50,
            latency.p90,
            latency.p99,
            latency.p999,
            latency.max,
        ]
        .map(millis),
    );
    match &combination.staleness {
        Some(staleness) => row.extend([
            number(staleness.misses as f64),
            number(staleness.probes as f64),
            format!("{:.2}", staleness.oldest_value_ms),
        ]),
        None => row.extend(["-"; 3].map(str::to_owned)),
    }
    match &combination.outage {
        Some(outage) => {
            let cells = outage.availability.cells();
            row.extend([cells[0].clone(), cells[3].clone()]);
        }
        None => row.extend(["-"; 2].map(str::to_owned)),
    }
    row
}

impl Outage {
    /// Of a run in which a node was killed and returned at these times, in seconds.
    #[must_use]
    pub fn of(result: RunResult, (killed, returned): (f64, f64)) -> Self {
        Self {
            killed_after_seconds: killed,
            returned_after_seconds: returned,
            totals: result.totals,
            availability: result.availability,
            series: result.series,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn combination(r: u16, w: u16, misses: u64) -> Combination {
        Combination {
            n: 3,
            r,
            w,
            overlaps: r + w > 3,
            run: PhaseResult::default(),
            instrument: Instrument::default(),
            staleness: Some(Staleness {
                probes: 1_000,
                misses,
                probability: misses as f64 / 1_000.0,
                ..Staleness::default()
            }),
            outage: None,
        }
    }

    fn sweep(combinations: Vec<Combination>) -> SweepResult {
        let size = "1KiB".parse().expect("a size");
        let workload = crate::workload::Workload::ycsb("a", 10, size).expect("a workload");
        SweepResult {
            addresses: Vec::new(),
            workload: WorkloadView::of(&workload),
            connections: 1,
            probed_keys: 1,
            combinations,
            stopped: false,
        }
    }

    #[test]
    fn a_stale_read_breaks_a_promise_only_where_there_is_one() {
        assert!(combination(1, 1, 5).keeps_its_promise());
        assert!(combination(2, 2, 0).keeps_its_promise());
        assert!(!combination(2, 2, 1).keeps_its_promise());
        assert!(sweep(vec![combination(2, 2, 1)]).verdict()[0].contains("broken"));
        assert!(sweep(vec![combination(2, 2, 0)]).verdict()[0].contains("none of 1,000"));
    }

    #[test]
    fn rows_and_columns_fit_and_the_page_names_every_combination() {
        let sweep = sweep(vec![combination(1, 1, 5), combination(2, 2, 0)]);
        assert!(
            sweep
                .rows()
                .iter()
                .all(|row| row.len() == SWEEP_COLUMNS.len())
        );
        let page = sweep.page();
        assert!(page.contains("n=3 r=1 w=1") && page.contains("n=3 r=2 w=2"));
        assert!(page.contains("Stale most often: n=3 r=1 w=1 with 0.5000 %"));
    }
}
