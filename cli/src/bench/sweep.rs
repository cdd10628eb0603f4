//! `torc bench sweep`: every combination of n, r and w.

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use torc_client::{Client, ClientConfig, Quorum, RingBucket};
use torc_loadtest::drive::{self, Plan};
use torc_loadtest::report::{
    Combination, Outage, PhaseResult, RunResult, SWEEP_COLUMNS, SweepResult, WorkloadView,
};
use torc_loadtest::staleness::{self, Staleness, StalenessPlan};
use torc_loadtest::target::{Target, TargetKind, TargetSpec};
use torc_loadtest::workload::Workload;

use super::args::{AskArgs, SweepArgs};
use super::nodes::Nodes;
use super::run::{load, measure, target, with_trouble};
use super::watch::{End, watch};
use super::{plan, workload, write_files};
use crate::args::Output;
use crate::demo::Stops;
use crate::exit::Usage;
use crate::output;

/// Time that probes may take for each thousand of them, besides half a minute.
const PROBE_TIME: Duration = Duration::from_secs(1);

/// What a combination is measured with.
struct Bed<'a> {
    args: &'a SweepArgs,
    plan: Plan,
    workload: Arc<Workload>,
    nodes: Nodes,
    stops: Stops,
}

pub(crate) async fn run(args: &SweepArgs) -> anyhow::Result<ExitCode> {
    let (plan, workload) = (plan(&args.drive), Arc::new(workload(&args.workload)?));
    plan.check()?;
    let mut stops = Stops::new()?;
    let nodes = Nodes::open(&args.nodes, &mut stops).await?;
    let mut bed = Bed {
        args,
        plan,
        workload,
        nodes,
        stops,
    };
    let result = bed.sweep().await;
    let closed = bed.nodes.close(&mut bed.stops).await;
    let result = result?;
    closed?;
    write_files(&args.report, &result, || result.page())?;
    match args.report.output {
        Output::Json => output::json(&result)?,
        Output::Text => {
            output::line(output::table(&SWEEP_COLUMNS, result.rows()))?;
            for line in result.verdict() {
                output::line(line)?;
            }
        }
    }
    let kept = result
        .combinations
        .iter()
        .all(Combination::keeps_its_promise);
    Ok(if kept {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

impl Bed<'_> {
    async fn sweep(&mut self) -> anyhow::Result<SweepResult> {
        let addresses = self.nodes.addresses();
        let buckets = self.buckets(&addresses).await?;
        let mut result = SweepResult {
            addresses,
            workload: WorkloadView::of(&self.workload),
            connections: self.plan.connections,
            probed_keys: self.args.probed_keys,
            combinations: Vec::new(),
            stopped: false,
        };
        for bucket in buckets {
            let quorums = |given: &[u16]| -> Vec<u16> {
                given
                    .iter()
                    .copied()
                    .filter(|count| *count <= u16::from(bucket.n))
                    .collect()
            };
            let (reads, writes) = (quorums(&self.args.r), quorums(&self.args.w));
            let all = self.target(&bucket.name, None)?;
            all.probe(self.args.drive.allow_remote).await?;
            if !self.args.workload.no_load {
                load(&self.plan, &all, &self.workload, &mut self.stops).await?;
            }
            for r in &reads {
                for w in &writes {
                    let target = self.target(&bucket.name, Some((*r, *w)))?;
                    let combination = self
                        .combination(&target, (u16::from(bucket.n), *r, *w))
                        .await?;
                    let Some(combination) = combination else {
                        result.stopped = true;
                        return Ok(result);
                    };
                    result.combinations.push(combination);
                }
            }
        }
        Ok(result)
    }

    /// A bucket for each n that was asked for.
    async fn buckets(&self, addresses: &[String]) -> anyhow::Result<Vec<RingBucket>> {
        // Checks the addresses before anything is sent to them.
        self.target(&self.args.bucket, None)?;
        let ring = Client::new(ClientConfig::new(addresses.iter().cloned()))?
            .ring()
            .await?;
        self.args
            .n
            .iter()
            .map(|n| {
                let fits = |name: &str| {
                    let mut buckets = ring.buckets.iter();
                    buckets
                        .find(|bucket| bucket.name == name && u16::from(bucket.n) == *n)
                        .cloned()
                };
                let own = format!("bench-n{n}");
                fits(&self.args.bucket)
                    .or_else(|| fits(&own))
                    .ok_or_else(|| {
                        let given = &self.args.bucket;
                        Usage(format!(
                            "no bucket of n = {n}: neither `{given}` nor `{own}` is one"
                        ))
                        .into()
                    })
            })
            .collect()
    }

    fn target(&self, bucket: &str, quorums: Option<(u16, u16)>) -> anyhow::Result<Target> {
        let count = |count: u16| u8::try_from(count).map_or(Quorum::All, Quorum::Count);
        let ask = AskArgs {
            bucket: bucket.to_owned(),
            r: quorums.map(|(r, _)| count(r)),
            w: quorums.map(|(_, w)| count(w)),
        };
        let spec = TargetSpec {
            kind: TargetKind::Torc,
            addresses: Vec::new(),
        };
        target(&spec, &ask, &self.args.drive, || self.nodes.addresses())
    }

    /// Measures one combination; nothing when it was stopped in the middle.
    async fn combination(
        &mut self,
        target: &Target,
        (n, r, w): (u16, u16, u16),
    ) -> anyhow::Result<Option<Combination>> {
        let name = format!("n={n} r={r} w={w}");
        let measured = measure(&name, &self.plan, target, &self.workload, &mut self.stops).await?;
        let run = RunResult::of((target, &self.workload, &self.plan), None, &measured);
        if run.stopped {
            return Ok(None);
        }
        let Some(staleness) = self.staleness(target, &format!("{name} staleness")).await? else {
            return Ok(None);
        };
        let Some(outage) = self.outage(target, &format!("{name} outage")).await? else {
            return Ok(None);
        };
        Ok(Some(Combination {
            n,
            r,
            w,
            overlaps: r + w > n,
            run: PhaseResult::of(&measured),
            instrument: run.instrument,
            staleness,
            outage,
        }))
    }

    /// `Some(None)` where it is not wanted.
    async fn staleness(
        &mut self,
        target: &Target,
        name: &str,
    ) -> anyhow::Result<Option<Option<Staleness>>> {
        let probes = self.args.probes;
        if probes == 0 {
            return Ok(Some(None));
        }
        let plan = StalenessPlan {
            probes,
            duration: Duration::from_secs(30)
                + PROBE_TIME * u32::try_from(probes / 1_000).unwrap_or(u32::MAX),
            lanes: self.args.probed_keys,
            workers: self.plan.workers,
            value_len: 128,
            seed: self.plan.seed,
        };
        let target = target.clone();
        let work = move |progress: &drive::Progress| {
            let found = staleness::measure(&plan, &target, progress);
            (found, progress.is_stopped())
        };
        let (found, stopped) = watch(name, End::Operations(probes), &mut self.stops, work).await?;
        Ok((!stopped).then_some(Some(found?)))
    }

    async fn outage(
        &mut self,
        target: &Target,
        name: &str,
    ) -> anyhow::Result<Option<Option<Outage>>> {
        let victim = match self.nodes.killable() {
            Some(count) if count > 1 && !self.args.no_outage => count,
            _ => {
                if !self.args.no_outage {
                    // A closed standard error is no reason to stop.
                    let _ = writeln!(
                        io::stderr(),
                        "{name}: left out, these nodes cannot be killed from here (--start or --demo)"
                    );
                }
                return Ok(Some(None));
            }
        };
        let (kill, back) = (self.args.kill_after, self.args.return_after);
        let mut plan = self.plan.clone();
        plan.duration = kill + back + self.args.after_return;
        let times = (plan.warm_up + kill, Some(back));
        let measure = measure(name, &plan, target, &self.workload, &mut self.stops);
        let measured = with_trouble(&mut self.nodes, victim, times, measure).await?;
        let result = RunResult::of((target, &self.workload, &plan), None, &measured);
        if result.stopped {
            return Ok(None);
        }
        let seconds = (kill.as_secs_f64(), (kill + back).as_secs_f64());
        Ok(Some(Some(Outage::of(result, seconds))))
    }
}
