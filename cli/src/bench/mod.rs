//! `torc bench`: the load generator of `torc-loadtest`, its progress and its reports.

pub(crate) mod args;
mod compare;
mod nodes;
mod run;
mod sweep;
mod watch;

use std::path::Path;
use std::process::ExitCode;
use std::thread;

use anyhow::Context as _;
use serde::Serialize;
use torc_loadtest::drive::Plan;
use torc_loadtest::pace::{Arrivals, Pace};
use torc_loadtest::workload::{Choice, Workload};

use self::args::{ArrivalsArg, BenchArgs, BenchCommand, DriveArgs, ReportArgs, WorkloadArgs};

/// Most threads of a load unless more are asked for.
const WORKERS_DEFAULT_MAX: usize = 8;

pub(crate) async fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        BenchCommand::Run(args) => run::run(&args).await,
        BenchCommand::Sweep(args) => sweep::run(&args).await,
        BenchCommand::Compare(args) => compare::run(&args).await,
    }
}

fn plan(args: &DriveArgs) -> Plan {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let pace = match args.rate {
        None => Pace::Closed,
        Some(per_second) => Pace::Open {
            per_second,
            arrivals: match args.arrivals {
                ArrivalsArg::Constant => Arrivals::Constant,
                ArrivalsArg::Poisson => Arrivals::Poisson,
            },
        },
    };
    Plan {
        connections: args.connections,
        workers: args.workers.unwrap_or(cores.min(WORKERS_DEFAULT_MAX)),
        pace,
        warm_up: args.warm_up,
        duration: args.duration,
        operations: args.operations,
        seed: args.seed,
    }
}

fn workload(args: &WorkloadArgs) -> anyhow::Result<Workload> {
    let size = args.value_size.clone();
    let mut workload = match &args.mix {
        None => Workload::ycsb(&args.workload, args.records, size)?,
        Some(mix) => Workload {
            name: "mix".to_owned(),
            mix: mix.clone(),
            choice: Choice::Uniform,
            records: args.records,
            value_size: size,
        },
    };
    if let Some(choice) = args.distribution {
        workload.choice = choice;
    }
    Ok(workload)
}

/// Writes the files that were asked for.
fn write_files(
    args: &ReportArgs,
    result: &impl Serialize,
    page: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    let write = |path: &Path, text: String| {
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(result).context("cannot write JSON")?;
        write(path, text + "\n")?;
    }
    if let Some(path) = &args.html {
        write(path, page())?;
    }
    Ok(())
}
