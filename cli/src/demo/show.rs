//! `torc demo join-leave`: a cluster under load while a node joins, one is killed and comes back, and one
//! leaves; a live picture of it, and at the end a verdict.

mod load;

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde::Serialize;
use torc_client::{Admin, Change, ChangeView};

use self::load::{Counts, Load, quantile};
use super::Stops;
use super::cluster::Cluster;
use super::control::{Action, Reply, Request};
use super::home::Home;
use super::ports::address;
use crate::args::{DemoArgs, Output, ShowArgs};
use crate::change::describe;
use crate::exit::REFUSED;
use crate::output::{self, Progress};

/// How often the picture is drawn anew.
const BEAT: Duration = Duration::from_millis(500);
/// Time for one step of the show.
const STEP_MAX: Duration = Duration::from_secs(300);
/// Time for one question to a node.
const ASK_MAX: Duration = Duration::from_secs(2);

/// The verdict. Its JSON is an interface.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Verdict {
    /// Whether every promise was kept.
    kept: bool,
    requests: u64,
    /// Requests that failed, beyond those in the hands of the node that was killed.
    failed: u64,
    /// Requests in the hands of the node that was killed.
    failed_in_killed_node: u64,
    acknowledged_writes: u64,
    /// Reads that were compared with what had been acknowledged.
    checks: u64,
    lost_writes: u64,
    seconds: f64,
    p99_before_us: u32,
    /// The worst of all steps.
    p99_during_us: u32,
    steps: Vec<Step>,
    /// The first failures in words.
    failures: Vec<String>,
}

/// One step of the show.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Step {
    what: String,
    seconds: f64,
    requests: u64,
    p99_us: u32,
}

pub(crate) async fn run(args: &ShowArgs) -> anyhow::Result<ExitCode> {
    let demo = DemoArgs {
        command: None,
        nodes: args.nodes,
        keep: None,
        durability: args.durability.clone(),
        base_port: args.base_port,
        load: false,
    };
    let mut stops = Stops::new()?;
    let home = Home::open(None)?;
    let mut cluster = Cluster::plan(&demo, &home)?;
    let mut progress = Progress::new();
    let started = tokio::select! {
        started = cluster.start(&mut progress) => started,
        () = stops.wait() => Err(anyhow::anyhow!("stopped before the cluster was ready")),
    };
    progress.finish();
    let result = match started {
        Ok(()) => tokio::select! {
            result = play(&mut cluster, args) => result,
            () = stops.wait() => Err(anyhow::anyhow!("stopped before the show was over")),
        },
        Err(error) => Err(error),
    };
    cluster.stop(&mut stops).await;
    home.close()?;
    let verdict = result?;
    match args.output {
        Output::Json => output::json(&verdict)?,
        Output::Text => output::line(text(&verdict))?,
    }
    Ok(if verdict.kept {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(REFUSED)
    })
}

async fn play(cluster: &mut Cluster, args: &ShowArgs) -> anyhow::Result<Verdict> {
    let began = Instant::now();
    let load = Load::start(&cluster.data_addresses(), args.keys, args.value_bytes)?;
    let mut show = Show {
        load,
        picture: Picture::new(args.output),
        steps: Vec::new(),
    };
    let pause = Duration::from_secs(args.pause);
    show.step("all nodes serve", cluster, Until::Time(pause))
        .await?;

    order(cluster, &Request::Add).await?;
    let joined = cluster.nodes.len();
    show.step(
        &format!("node-{joined} joins"),
        cluster,
        Until::Members {
            count: joined,
            node: joined,
        },
    )
    .await?;

    let victim = 2_u16.min(args.nodes);
    let http = address(cluster.nodes[usize::from(victim) - 1].ports.http);
    show.load.on_kill(&http.to_string());
    order(cluster, &act(Action::Kill, victim)).await?;
    show.step(
        &format!("node-{victim} is killed"),
        cluster,
        Until::Time(pause),
    )
    .await?;
    order(cluster, &act(Action::Restart, victim)).await?;
    show.step(
        &format!("node-{victim} comes back"),
        cluster,
        Until::Ready(usize::from(victim)),
    )
    .await?;

    // Not the first: the picture is drawn from there.
    let leaver = cluster.nodes.len() - usize::from(cluster.nodes.len() > 3);
    let name = cluster.nodes[leaver - 1].name();
    let admin = admin(cluster, 1)?;
    admin
        .commit(&[Change::Leave { node: name.clone() }], None)
        .await?;
    show.step(&format!("{name} leaves"), cluster, Until::Gone(leaver))
        .await?;
    show.step("all that are left serve", cluster, Until::Time(pause))
        .await?;
    show.picture.finish();
    let steps = show.steps;
    let counts = show.load.finish().await?;
    Ok(judge(&counts, steps, began.elapsed()))
}

fn act(action: Action, node: u16) -> Request {
    Request::Act { action, node }
}

async fn order(cluster: &mut Cluster, request: &Request) -> anyhow::Result<()> {
    match cluster.carry_out(request).await {
        Reply::Refused { reason } => anyhow::bail!(reason),
        Reply::Done { .. } | Reply::Nodes { .. } => Ok(()),
    }
}

fn admin(cluster: &Cluster, number: usize) -> anyhow::Result<Admin> {
    let at = address(cluster.nodes[number - 1].ports.admin).to_string();
    Ok(Admin::new(vec![at], ASK_MAX.max(Duration::from_secs(15)))?)
}

/// When a step is over.
enum Until {
    Time(Duration),
    /// So many members, no change running, and that node ready.
    Members {
        count: usize,
        node: usize,
    },
    /// That node is ready.
    Ready(usize),
    /// That node has left the ring and its process has ended.
    Gone(usize),
}

struct Show {
    load: Load,
    picture: Picture,
    steps: Vec<Step>,
}

impl Show {
    /// Draws the picture until the step is over.
    async fn step(
        &mut self,
        what: &str,
        cluster: &mut Cluster,
        until: Until,
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        let admin = admin(cluster, 1)?;
        let requests = self.load.counts.done.load(Ordering::Relaxed);
        self.load.counts.take_latencies();
        let mut latencies = Vec::new();
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.picture.begin(what);
        loop {
            beat.tick().await;
            let ended: Vec<String> = cluster.look();
            let fresh = self.load.counts.take_latencies();
            let change = tokio::time::timeout(ASK_MAX, admin.change()).await;
            let change = change.ok().and_then(Result::ok);
            self.picture.draw(&View {
                what,
                took: began.elapsed(),
                change: change.as_ref(),
                latencies: &fresh,
                counts: &self.load.counts,
            });
            latencies.extend(fresh);
            if is_over(&until, cluster, change.as_ref(), began).await {
                break;
            }
            let is_leaving = matches!(until, Until::Gone(_));
            if let (Some(ended), false) = (ended.first(), is_leaving) {
                anyhow::bail!("{what}: {ended}");
            }
            anyhow::ensure!(
                began.elapsed() < STEP_MAX,
                "{what}: not over after {} s; {}",
                STEP_MAX.as_secs(),
                change.map_or_else(
                    || "node-1 does not answer".to_owned(),
                    |seen| describe(&seen, began.elapsed())
                )
            );
        }
        latencies.sort_unstable();
        self.steps.push(Step {
            what: what.to_owned(),
            seconds: began.elapsed().as_secs_f64(),
            requests: self.load.counts.done.load(Ordering::Relaxed) - requests,
            p99_us: quantile(&latencies, 0.99),
        });
        Ok(())
    }
}

async fn is_over(
    until: &Until,
    cluster: &mut Cluster,
    change: Option<&ChangeView>,
    began: Instant,
) -> bool {
    match until {
        Until::Time(time) => began.elapsed() >= *time,
        Until::Members { count, node } => {
            let is_member = change.is_some_and(|seen| seen.is_idle() && seen.nodes.len() == *count);
            is_member && is_ready(cluster, *node).await
        }
        Until::Ready(node) => is_ready(cluster, *node).await,
        Until::Gone(node) => {
            let has_ended = cluster.nodes[*node - 1].pid().is_none();
            has_ended && change.is_some_and(ChangeView::is_idle)
        }
    }
}

async fn is_ready(cluster: &Cluster, node: usize) -> bool {
    let Ok(admin) = admin(cluster, node) else {
        return false;
    };
    let asked = tokio::time::timeout(ASK_MAX, admin.ready()).await;
    matches!(asked, Ok(Ok(Ok(()))))
}

/// What is to be seen.
struct View<'a> {
    what: &'a str,
    took: Duration,
    change: Option<&'a ChangeView>,
    latencies: &'a [u32],
    counts: &'a Counts,
}

/// The picture: in place on a terminal, a line now and then in a pipe.
struct Picture {
    bars: Option<Bars>,
    quiet: bool,
    lines: u32,
}

struct Bars {
    _all: MultiProgress,
    step: ProgressBar,
    moving: ProgressBar,
    load: ProgressBar,
}

/// In a pipe, a line for each so many beats.
const BEATS_PER_LINE: u32 = 4;

impl Picture {
    fn new(output: Output) -> Self {
        let bars = io::stderr().is_terminal().then(|| {
            let all = MultiProgress::new();
            let style = |template: &str| {
                ProgressStyle::with_template(template)
                    .unwrap_or_else(|_| ProgressStyle::default_bar())
            };
            let step = all.add(ProgressBar::new_spinner().with_style(style("{spinner} {msg}")));
            let moving = all.add(
                ProgressBar::new(0).with_style(style("  {bar:40} {pos} of {len} partitions {msg}")),
            );
            let load = all.add(ProgressBar::new_spinner().with_style(style("  {msg}")));
            step.enable_steady_tick(Duration::from_millis(100));
            Bars {
                _all: all,
                step,
                moving,
                load,
            }
        });
        Self {
            bars,
            quiet: output == Output::Json,
            lines: 0,
        }
    }

    fn begin(&mut self, what: &str) {
        self.lines = 0;
        match &self.bars {
            Some(bars) => bars.step.set_message(what.to_owned()),
            None if self.quiet => {}
            // A closed standard output is met again at the verdict.
            None => drop(output::line(what)),
        }
    }

    fn draw(&mut self, view: &View<'_>) {
        let rate = view.latencies.len() as f64 / BEAT.as_secs_f64();
        let load = format!(
            "{rate:.0} requests/s, p50 {:.1} ms, p99 {:.1} ms; {} failed, {} acknowledged writes lost",
            f64::from(quantile(view.latencies, 0.5)) / 1_000.0,
            f64::from(quantile(view.latencies, 0.99)) / 1_000.0,
            view.counts.failed.load(Ordering::Relaxed),
            view.counts.lost.load(Ordering::Relaxed),
        );
        let moving = view.change.filter(|seen| !seen.is_idle());
        let Some(bars) = &self.bars else {
            self.lines += 1;
            if !self.quiet && self.lines % BEATS_PER_LINE == 1 {
                let change = moving.map_or_else(String::new, |seen| {
                    format!("; {}", describe(seen, view.took))
                });
                drop(output::line(format!("  {load}{change}")));
            }
            return;
        };
        bars.step
            .set_message(format!("{} ({:.0} s)", view.what, view.took.as_secs_f64()));
        let progress = moving.map(ChangeView::progress).unwrap_or_default();
        bars.moving.set_length(progress.total);
        bars.moving.set_position(progress.done);
        bars.moving.set_message(moving.map_or_else(
            || "(none moves)".to_owned(),
            |seen| {
                format!(
                    "({}, {})",
                    seen.phase,
                    torc_node::config::format_size(progress.bytes)
                )
            },
        ));
        bars.load.set_message(load);
    }

    fn finish(&self) {
        if let Some(bars) = &self.bars {
            for bar in [&bars.step, &bars.moving, &bars.load] {
                bar.finish_and_clear();
            }
        }
    }
}

fn judge(counts: &Counts, steps: Vec<Step>, took: Duration) -> Verdict {
    let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let (failed, lost) = (read(&counts.failed), read(&counts.lost));
    Verdict {
        kept: failed == 0 && lost == 0,
        requests: read(&counts.done),
        failed,
        failed_in_killed_node: read(&counts.killed),
        acknowledged_writes: read(&counts.acknowledged),
        checks: read(&counts.checked),
        lost_writes: lost,
        seconds: took.as_secs_f64(),
        p99_before_us: steps.first().map_or(0, |step| step.p99_us),
        p99_during_us: steps
            .iter()
            .skip(1)
            .map(|step| step.p99_us)
            .max()
            .unwrap_or(0),
        steps,
        failures: counts.words(),
    }
}

fn text(verdict: &Verdict) -> String {
    let rows = verdict.steps.iter().map(|step| {
        vec![
            step.what.clone(),
            format!("{:.1} s", step.seconds),
            step.requests.to_string(),
            format!("{:.1} ms", f64::from(step.p99_us) / 1_000.0),
        ]
    });
    let mut text = output::table(&["STEP", "TIME", "REQUESTS", "P99"], rows);
    // Writing into a String cannot fail.
    let _ = write!(
        text,
        "\n\n{}: {} requests, {} failed ({} more in the hands of the node that was killed); {} acknowledged writes, \
         {} compared with what is there, {} lost",
        if verdict.kept {
            "every promise was kept"
        } else {
            "A PROMISE WAS BROKEN"
        },
        verdict.requests,
        verdict.failed,
        verdict.failed_in_killed_node,
        verdict.acknowledged_writes,
        verdict.checks,
        verdict.lost_writes
    );
    for failure in &verdict.failures {
        text.push_str("\n  ");
        text.push_str(failure);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_write_or_a_failed_request_breaks_the_promise() {
        let counts = Counts::default();
        counts.done.store(10, Ordering::Relaxed);
        counts.killed.store(2, Ordering::Relaxed);
        let verdict = judge(&counts, Vec::new(), Duration::from_secs(1));
        assert!(verdict.kept);
        assert!(text(&verdict).contains("every promise was kept: 10 requests, 0 failed (2 more"));
        counts.lost.store(1, Ordering::Relaxed);
        let verdict = judge(&counts, Vec::new(), Duration::from_secs(1));
        assert!(!verdict.kept);
        assert!(text(&verdict).contains("A PROMISE WAS BROKEN"));
    }
}
