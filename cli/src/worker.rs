//! `torc worker`: settings, a runtime, signals; the work is `torc_node::side::worker`'s.

use std::process::ExitCode;

use anyhow::Context as _;
use torc_node::side::worker::{self, WorkerSettings};

use crate::args::WorkerArgs;
use crate::exit::Usage;
use crate::serve;

pub(crate) fn run(args: WorkerArgs) -> anyhow::Result<ExitCode> {
    let mut layers = serve::layers(args.config.as_deref())?;
    layers.flags(serve::assignments(&args.set)?)?;
    let Some(queue) = layers.settings()?.queue else {
        let text = "there is no queue to work on: give its brokers, for example with \
                    --set queue.brokers=127.0.0.1:5672";
        return Err(Usage(text.to_owned()).into());
    };
    let filter = std::env::var("TORC_LOG").ok();
    torc_node::logs::start(filter.as_deref()).map_err(|error| Usage(error.to_string()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        if args.redrive {
            let count = worker::redrive(queue).await?;
            crate::output::line(format!("{count} writes put back into the queue"))?;
            return Ok(ExitCode::SUCCESS);
        }
        let settings = WorkerSettings {
            queue,
            nodes: args.node,
            http: args.http,
            prefetch: args.prefetch,
            tries: args.tries,
        };
        worker::run(settings, serve::stop(None)?).await?;
        Ok(ExitCode::SUCCESS)
    })
}
