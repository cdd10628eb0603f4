//! `torc bench run`: one workload, one target.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use torc_loadtest::drive::{self, Measured, Plan};
use torc_loadtest::report::{Page, RUN_COLUMNS, RunResult, run_rows};
use torc_loadtest::target::{Asking, Target, TargetKind, TargetSpec};
use torc_loadtest::workload::Workload;

use super::args::{AskArgs, DriveArgs, RunArgs};
use super::nodes::{Nodes, wait_ready};
use super::watch::{End, watch};
use super::{plan, workload, write_files};
use crate::args::Output;
use crate::demo::Stops;
use crate::demo::control::Action;
use crate::exit::Usage;
use crate::output;

pub(crate) async fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let (plan, workload) = (plan(&args.drive), Arc::new(workload(&args.workload)?));
    plan.check()?;
    let is_torc = matches!(args.target.kind, TargetKind::Torc | TargetKind::TorcClient);
    if !is_torc && args.target.addresses.is_empty() {
        let name = args.target.kind.name();
        return Err(Usage(format!(
            "--target {name} needs an address, such as {name}=127.0.0.1:6379"
        ))
        .into());
    }
    let mut stops = Stops::new()?;
    let mut nodes = Nodes::open(&args.nodes, &mut stops).await?;
    let result = with_nodes(args, (&plan, &workload), &mut nodes, &mut stops).await;
    let closed = nodes.close(&mut stops).await;
    let result = result?;
    closed?;
    write_files(&args.report, &result, || {
        Page::of_runs(
            &format!("torc bench: {}", workload.name),
            std::slice::from_ref(&result),
        )
    })?;
    match args.report.output {
        Output::Json => output::json(&result)?,
        Output::Text => print(&result)?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn with_nodes(
    args: &RunArgs,
    (plan, workload): (&Plan, &Arc<Workload>),
    nodes: &mut Nodes,
    stops: &mut Stops,
) -> anyhow::Result<RunResult> {
    let victim = match (args.kill_after, nodes.killable()) {
        (None, _) => None,
        (Some(_), Some(count)) if count > 1 => Some(count),
        (Some(_), _) => {
            return Err(Usage(
                "--kill-after needs at least two nodes of --start or --demo".to_owned(),
            )
            .into());
        }
    };
    let target = target(&args.target, &args.ask, &args.drive, || nodes.addresses())?;
    target.probe(args.drive.allow_remote).await?;
    let loaded = if args.workload.no_load {
        None
    } else {
        Some(load(plan, &target, workload, stops).await?)
    };
    let after = plan.warm_up + args.kill_after.unwrap_or_default();
    let times = (after, args.return_after);
    let measure = measure("run", plan, &target, workload, stops);
    let measured = match victim {
        None => measure.await?,
        Some(node) => with_trouble(nodes, node, times, measure).await?,
    };
    Ok(RunResult::of(
        (&target, workload, plan),
        loaded.as_ref(),
        &measured,
    ))
}

/// The target, with the nodes' addresses unless it has its own.
pub(crate) fn target(
    spec: &TargetSpec,
    ask: &AskArgs,
    drive: &DriveArgs,
    addresses: impl FnOnce() -> Vec<String>,
) -> anyhow::Result<Target> {
    let mut spec = spec.clone();
    if spec.addresses.is_empty() {
        spec.addresses = addresses();
    }
    let asking = Asking {
        bucket: ask.bucket.clone(),
        r: ask.r,
        w: ask.w,
        deadline: drive.deadline,
    };
    Ok(Target::new(&spec, asking, drive.allow_remote)?)
}

/// The load phase.
pub(crate) async fn load(
    plan: &Plan,
    target: &Target,
    workload: &Arc<Workload>,
    stops: &mut Stops,
) -> anyhow::Result<Measured> {
    let end = End::Operations(workload.records);
    let (plan, target, workload) = (plan.clone(), target.clone(), Arc::clone(workload));
    let work = move |progress: &drive::Progress| {
        let loaded = drive::load(&plan, &target, &workload, progress);
        (loaded, progress.is_stopped())
    };
    let (loaded, stopped) = watch("load", end, stops, work).await?;
    let loaded = loaded?;
    if stopped {
        anyhow::bail!("stopped before all records were written");
    }
    Ok(loaded)
}

/// The measured phase.
pub(crate) async fn measure(
    name: &str,
    plan: &Plan,
    target: &Target,
    workload: &Arc<Workload>,
    stops: &mut Stops,
) -> anyhow::Result<Measured> {
    let end = End::Time(plan.warm_up + plan.duration);
    let (plan, target, workload) = (plan.clone(), target.clone(), Arc::clone(workload));
    let work = move |progress: &drive::Progress| drive::run(&plan, &target, &workload, progress);
    Ok(watch(name, end, stops, work).await??)
}

/// Does `work` while a node is killed and, after a while, returns. A node that is still dead when the work
/// ends is started again all the same.
pub(crate) async fn with_trouble<T>(
    nodes: &mut Nodes,
    node: u16,
    (kill_after, return_after): (Duration, Option<Duration>),
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    tokio::pin!(work);
    tokio::select! {
        done = &mut work => return done,
        () = tokio::time::sleep(kill_after) => {}
    }
    nodes.act(Action::Kill, node).await?;
    let rest = async {
        match return_after {
            Some(time) => tokio::time::sleep(time).await,
            None => std::future::pending().await,
        }
    };
    let early = tokio::select! {
        done = &mut work => Some(done),
        () = rest => None,
    };
    let admin = nodes.act(Action::Restart, node).await?;
    let ready = wait_ready(&admin);
    if let Some(done) = early {
        return ready.await.and(done);
    }
    let (done, ready) = tokio::join!(work, ready);
    ready.and(done)
}

fn print(result: &RunResult) -> anyhow::Result<()> {
    output::line(output::table(&RUN_COLUMNS, run_rows(result)))?;
    let availability = result.availability.cells();
    output::line(format!(
        "availability: {} of the operations answered, up {} of the time; longest silence {} s; recovered after: {} s",
        availability[0], availability[1], availability[2], availability[3]
    ))?;
    for (reason, count) in &result.totals.reasons {
        output::line(format!("errors: {count} x {reason}"))?;
    }
    output::line(format!(
        "load generator: {:.1} us of processor time and {:.2} context switches for an operation",
        result.instrument.cpu_us_per_operation, result.instrument.context_switches_per_operation
    ))?;
    if result.stopped {
        output::line("stopped before its time")?;
    }
    Ok(())
}
