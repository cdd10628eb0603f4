//! `torc repair`: has a node compare its copies with their other owners' now.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use torc_client::{Admin, Agreement};

use crate::args::{Output, RepairArgs};
use crate::exit::Unreachable;
use crate::output;

const PAUSE: Duration = Duration::from_millis(500);
const DEADLINE: Duration = Duration::from_secs(5);

pub(crate) async fn run(args: RepairArgs) -> anyhow::Result<ExitCode> {
    // The same node must be asked all the time.
    let mut error = None;
    for address in &args.admin.admin {
        let admin = Admin::new(vec![address.clone()], DEADLINE)?;
        match admin.repair().await {
            Ok(first) => return follow(&admin, first, &args).await,
            Err(other) => error = Some(other),
        }
    }
    match error {
        Some(error) => Err(error.into()),
        None => Err(Unreachable("no admin address was given".to_owned()).into()),
    }
}

async fn follow(admin: &Admin, first: Agreement, args: &RepairArgs) -> anyhow::Result<ExitCode> {
    let end = Instant::now() + args.timeout;
    let mut now = first;
    let mut progress = output::Progress::new();
    while !args.no_wait && now.doubts > 0 {
        progress.say(&format!(
            "comparing: {} of {} pairs of copies left",
            now.doubts, now.pairs
        ));
        if Instant::now() >= end {
            let left = now.doubts;
            let waited = torc_node::config::format_duration(args.timeout);
            return Err(Unreachable(format!("{left} pairs are not compared after {waited}; the node goes on. Is one of the other owners dead?")).into());
        }
        tokio::time::sleep(PAUSE).await;
        now = admin.agreement().await?;
    }
    progress.finish();
    match args.admin.output {
        Output::Json => output::json(&now)?,
        Output::Text if args.no_wait => {
            output::line(format!("{} pairs of copies will be compared", now.pairs))?;
        }
        Output::Text => output::line(format!(
            "all {} pairs of copies at node {} agree, or have been made to",
            now.pairs, now.node
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}
