//! `torc autoscale`: arguments, a runtime, signals; the work is `torc_autoscale`'s.

use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use torc_autoscale::decide::Rule;
use torc_autoscale::{Settings, Target};

use crate::args::time;
use crate::exit::Usage;
use crate::serve;

/// Busy processors of each node, as the recording rules have it.
const NODE_LOAD: &str = "avg(instance:process_cpu_seconds:rate1m)";
/// Queued writes that wait, as the nodes see it that have a broker.
const QUEUE: &str =
    "max(torc_queue_depth{job=\"torc\"} and on (instance) torc_queue_connected == 1)";

/// How to scale.
#[derive(Debug, Args)]
#[command(
    after_help = "A load counts when it has lasted for --sustain; after a change nothing is changed for --cooldown.\n\
    A node is taken into the ring before it counts, and leaves the ring before its container stops. Only what\n\
    was added by an autoscaler is ever removed. docs/autoscaler.md says more."
)]
pub(crate) struct AutoscaleArgs {
    /// Prometheus that knows the load
    #[arg(long, value_name = "URL", default_value = "127.0.0.1:9090")]
    prometheus: String,
    /// Admin addresses of the nodes that are always there; most of them must answer
    #[arg(
        long,
        value_name = "URL[,...]",
        value_delimiter = ',',
        env = "TORC_ADMIN_URL",
        default_value = "127.0.0.1:9081"
    )]
    admin: Vec<String>,
    /// Socket of the Docker engine
    #[arg(long, value_name = "PATH", default_value = "/var/run/docker.sock")]
    docker: String,
    /// Compose project [default: that of the container this runs in]
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
    /// Service that new nodes are made like
    #[arg(long, value_name = "SERVICE", default_value = "node-1")]
    node_template: String,
    /// Service that new workers are made like
    #[arg(long, value_name = "SERVICE", default_value = "worker-1")]
    worker_template: String,
    /// Fewest and most nodes
    #[arg(long, value_name = "MIN..MAX", value_parser = bounds, default_value = "3..6")]
    nodes: (u32, u32),
    /// Fewest and most workers
    #[arg(long, value_name = "MIN..MAX", value_parser = bounds, default_value = "2..6")]
    workers: (u32, u32),
    /// Query of the load of each node
    #[arg(long, value_name = "PROMQL", default_value = NODE_LOAD)]
    node_load: String,
    /// Load of each node below which one less would do, and from which on one more is wanted
    #[arg(long, value_name = "LOW..HIGH", value_parser = band, default_value = "0.4..1.2")]
    node_band: (f64, f64),
    /// Query of the writes that wait in the queue
    #[arg(long, value_name = "PROMQL", default_value = QUEUE)]
    queue: String,
    /// Waiting writes for each worker below which one less would do, and from which on one more is wanted
    #[arg(long, value_name = "LOW..HIGH", value_parser = band, default_value = "10..1000")]
    queue_band: (f64, f64),
    /// For how long a load has to last before it counts
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "1m")]
    sustain: Duration,
    /// Least time between two changes
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "5m")]
    cooldown: Duration,
    /// Time between two looks
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "10s")]
    interval: Duration,
    /// Where health and metrics are served
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:9182")]
    http: SocketAddr,
    /// Only explain each decision
    #[arg(long)]
    dry_run: bool,
    /// Look, explain and end; with --dry-run
    #[arg(long, requires = "dry_run")]
    once: bool,
}

pub(crate) fn run(args: AutoscaleArgs) -> anyhow::Result<ExitCode> {
    let filter = std::env::var("TORC_LOG").ok();
    torc_node::logs::start(filter.as_deref()).map_err(|error| Usage(error.to_string()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let settings = settings(args);
    runtime.block_on(async {
        torc_autoscale::run(settings, serve::stop(None)?).await?;
        Ok(ExitCode::SUCCESS)
    })
}

fn settings(args: AutoscaleArgs) -> Settings {
    let target = |query, (min, max), (low, high)| Target {
        query,
        rule: Rule {
            min,
            max,
            high,
            low,
            sustain: args.sustain,
            cooldown: args.cooldown,
        },
    };
    // Who only explains can do without the engine.
    let is_socket = std::fs::metadata(&args.docker).is_ok_and(|file| file.file_type().is_socket());
    Settings {
        nodes: target(args.node_load, args.nodes, args.node_band),
        workers: target(args.queue, args.workers, args.queue_band),
        prometheus: args.prometheus,
        admin: args.admin,
        docker: (is_socket || !args.dry_run).then_some(args.docker),
        project: args.project,
        templates: (args.node_template, args.worker_template),
        interval: args.interval,
        http: args.http,
        dry_run: args.dry_run,
        once: args.once,
    }
}

fn bounds(text: &str) -> Result<(u32, u32), &'static str> {
    let both = text.split_once("..").and_then(|(min, max)| {
        let (min, max) = (min.parse().ok()?, max.parse().ok()?);
        (1..=max).contains(&min).then_some((min, max))
    });
    both.ok_or("give the fewest and the most, such as 3..6")
}

fn band(text: &str) -> Result<(f64, f64), &'static str> {
    let both = text.split_once("..").and_then(|(low, high)| {
        let (low, high): (f64, f64) = (low.parse().ok()?, high.parse().ok()?);
        (low >= 0.0 && low < high && high.is_finite()).then_some((low, high))
    });
    both.ok_or("give two loads, the lower one first, such as 0.4..1.2")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_and_bands_are_read_and_what_is_none_is_refused() {
        assert_eq!(bounds("3..6"), Ok((3, 6)));
        assert_eq!(bounds("3..3"), Ok((3, 3)));
        assert_eq!(band("0.4..1.2"), Ok((0.4, 1.2)));
        for bad in ["", "3", "6..3", "0..3", "a..b", "3..=6"] {
            assert!(bounds(bad).is_err(), "{bad}");
        }
        for bad in ["", "1", "2..1", "1..1", "-1..1", "1..inf", "NaN..1"] {
            assert!(band(bad).is_err(), "{bad}");
        }
    }
}
