//! `torc health`: for health checks of containers, which have no curl.

use std::process::ExitCode;

use torc_client::Admin;

use crate::args::HealthArgs;
use crate::exit::Unreachable;
use crate::output;

pub(crate) async fn run(args: HealthArgs) -> anyhow::Result<ExitCode> {
    let node = Admin::new(vec![args.node.clone()], args.deadline)?;
    match node.ready().await? {
        Ok(()) => {
            output::line("ready")?;
            Ok(ExitCode::SUCCESS)
        }
        Err(reason) => Err(Unreachable(format!("{} is not ready: {reason}", args.node)).into()),
    }
}
