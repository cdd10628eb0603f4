//! `torc bench compare`: the same workload against several targets, one after the other.

use std::process::ExitCode;
use std::sync::Arc;

use serde::Serialize;
use torc_loadtest::report::{Page, RUN_COLUMNS, RunResult, run_rows};

use super::args::CompareArgs;
use super::run::{load, measure, target};
use super::{plan, workload, write_files};
use crate::args::{DATA_DEFAULT, Output};
use crate::demo::Stops;
use crate::exit::Usage;
use crate::output;

/// Targets of one comparison.
const TARGETS_MAX: usize = 16;

/// Its JSON is an interface.
#[derive(Debug, Serialize)]
struct Compared {
    targets: Vec<RunResult>,
}

pub(crate) async fn run(args: &CompareArgs) -> anyhow::Result<ExitCode> {
    let (plan, workload) = (plan(&args.drive), Arc::new(workload(&args.workload)?));
    plan.check()?;
    if args.target.len() > TARGETS_MAX {
        return Err(Usage(format!("at most {TARGETS_MAX} targets can be compared")).into());
    }
    let targets = args
        .target
        .iter()
        .map(|spec| {
            target(spec, &args.ask, &args.drive, || {
                vec![DATA_DEFAULT.to_owned()]
            })
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    // Nobody's load begins before all are known to be there.
    for target in &targets {
        target.probe(args.drive.allow_remote).await?;
    }
    let mut stops = Stops::new()?;
    let mut compared = Compared {
        targets: Vec::new(),
    };
    for target in &targets {
        let loaded = if args.workload.no_load {
            None
        } else {
            Some(load(&plan, target, &workload, &mut stops).await?)
        };
        let measured = measure(target.kind.name(), &plan, target, &workload, &mut stops).await?;
        let result = RunResult::of((target, &workload, &plan), loaded.as_ref(), &measured);
        let stopped = result.stopped;
        compared.targets.push(result);
        if stopped {
            break;
        }
    }
    write_files(&args.report, &compared, || {
        Page::of_runs(
            &format!("torc bench: {} side by side", workload.name),
            &compared.targets,
        )
    })?;
    match args.report.output {
        Output::Json => output::json(&compared)?,
        Output::Text => output::line(output::table(
            &RUN_COLUMNS,
            compared.targets.iter().flat_map(run_rows),
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}
