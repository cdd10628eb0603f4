//! The command line of `torc bench`. Names of commands and flags are an interface.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use torc_client::Quorum;
use torc_loadtest::target::TargetSpec;
use torc_loadtest::workload::{Choice, Mix, ValueSize};

use crate::args::{DATA_DEFAULT, Output, time};

#[derive(Debug, Args)]
#[command(
    after_help = "A load is bounded in time and in operations, and goes to this machine only unless --allow-remote \
    says otherwise.\n\nTry: torc bench run --start 3 --workload b --html report.html"
)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) command: BenchCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Run one workload against one target
    Run(Box<RunArgs>),
    /// Measure every combination of n, r and w: throughput, latency, staleness, and availability while a node
    /// is killed and returns
    Sweep(Box<SweepArgs>),
    /// Run one workload against several targets, side by side
    Compare(Box<CompareArgs>),
}

/// Which operations, on which records.
#[derive(Clone, Debug, Args)]
pub(crate) struct WorkloadArgs {
    /// One of YCSB's core workloads: a (half reads, half updates), b (95 % reads), c (reads), d (reads of the
    /// latest), e (scans), f (read-modify-write)
    #[arg(
        long,
        value_name = "LETTER",
        default_value = "a",
        conflicts_with = "mix"
    )]
    pub(crate) workload: String,
    /// Another mix, as weights: get=90,put=9,delete=1 (of get, put, insert, scan, rmw, delete)
    #[arg(long, value_name = "WEIGHTS")]
    pub(crate) mix: Option<Mix>,
    /// Which records are asked for: zipfian, latest or uniform [default: the workload's; uniform with --mix]
    #[arg(long, value_name = "NAME")]
    pub(crate) distribution: Option<Choice>,
    /// Records that the load phase writes
    #[arg(long, value_name = "COUNT", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub(crate) records: u64,
    /// Size of values: 1KiB, 100B-10KiB, zipf:100B-10KiB, or weighted 1KiB*9,64KiB*1
    #[arg(long, value_name = "SIZE", default_value = "1KiB")]
    pub(crate) value_size: ValueSize,
    /// Take the records for written: no load phase
    #[arg(long)]
    pub(crate) no_load: bool,
}

/// How the load is driven.
#[derive(Clone, Debug, Args)]
pub(crate) struct DriveArgs {
    /// Connections, each with one request at a time
    #[arg(long, short, value_name = "COUNT", default_value_t = 64)]
    pub(crate) connections: usize,
    /// Open loop: so many operations a second, whatever the target does; latency counts from the time at which
    /// each was due [default: closed loop]
    #[arg(long, value_name = "PER SECOND")]
    pub(crate) rate: Option<f64>,
    /// How operations of an open loop follow each other
    #[arg(long, value_enum, default_value_t, requires = "rate")]
    pub(crate) arrivals: ArrivalsArg,
    /// Time of the measurement
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "10s")]
    pub(crate) duration: Duration,
    /// Time before it, under the same load, that does not count
    #[arg(long, value_name = "TIME", value_parser = time_or_zero, default_value = "2s")]
    pub(crate) warm_up: Duration,
    /// End the measurement after so many operations, if that is sooner
    #[arg(long, value_name = "COUNT", default_value_t = 100_000_000)]
    pub(crate) operations: u64,
    /// Threads of the load [default: one for each core, at most 8]
    #[arg(long, value_name = "COUNT")]
    pub(crate) workers: Option<usize>,
    /// Decides all random choices
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Time for one operation
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "5s")]
    pub(crate) deadline: Duration,
    /// Allow targets on other machines: only where you may
    #[arg(long)]
    pub(crate) allow_remote: bool,
}

/// See [`torc_loadtest::pace::Arrivals`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ArrivalsArg {
    /// At equal distances
    #[default]
    Constant,
    /// Independently of each other
    Poisson,
}

/// Which nodes are driven, and what is done to them meanwhile.
#[derive(Clone, Debug, Args)]
pub(crate) struct NodesArgs {
    /// Start a cluster of so many nodes for this run, and remove it afterwards
    #[arg(long, value_name = "NODES", conflicts_with_all = ["node", "demo"], value_parser = clap::value_parser!(u16).range(1..=16))]
    pub(crate) start: Option<u16>,
    /// Durability of the nodes of --start: fsync, interval or os
    #[arg(long, value_name = "WHEN", default_value = "os")]
    pub(crate) durability: String,
    /// Use the nodes of the running `torc demo`; with several, name its process id
    #[arg(long, value_name = "PID", num_args = 0..=1, default_missing_value = "0", conflicts_with = "node")]
    pub(crate) demo: Option<u32>,
    /// Data address of a node; connections are spread over several, separated by commas
    #[arg(long, value_name = "URL", value_delimiter = ',', env = "TORC_NODE_URL", default_value = DATA_DEFAULT)]
    pub(crate) node: Vec<String>,
}

/// How torc is asked.
#[derive(Clone, Debug, Args)]
pub(crate) struct AskArgs {
    /// Bucket
    #[arg(long, short, value_name = "NAME", default_value = "default")]
    pub(crate) bucket: String,
    /// Replicas to wait for in reads: one, quorum, all, or a number [default: the bucket's]
    #[arg(short, value_name = "REPLICAS")]
    pub(crate) r: Option<Quorum>,
    /// Replicas to wait for in writes [default: the bucket's]
    #[arg(short, value_name = "REPLICAS")]
    pub(crate) w: Option<Quorum>,
}

/// Where results go besides the terminal.
#[derive(Clone, Debug, Args)]
pub(crate) struct ReportArgs {
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
    /// Write the result into a file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write a report with plots into a file: one page of HTML that stands alone
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// What to drive: torc (over HTTP), torc-client (routes by the ring), redis, redis-cluster or etcd, with
    /// addresses if they are not those of torc's nodes: redis=127.0.0.1:6379
    #[arg(long, value_name = "NAME[=ADDRESS,...]", default_value = "torc")]
    pub(crate) target: TargetSpec,
    #[command(flatten)]
    pub(crate) workload: WorkloadArgs,
    #[command(flatten)]
    pub(crate) drive: DriveArgs,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
    #[command(flatten)]
    pub(crate) nodes: NodesArgs,
    /// Kill a node this long after the measurement began; the last node of --start or --demo
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) kill_after: Option<Duration>,
    /// Start it again this long after it was killed
    #[arg(long, value_name = "TIME", value_parser = time, requires = "kill_after")]
    pub(crate) return_after: Option<Duration>,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

#[derive(Debug, Args)]
pub(crate) struct SweepArgs {
    /// Replicas of each key: a bucket is needed for each, --bucket or bench-nN
    #[arg(long, value_name = "COUNTS", value_delimiter = ',', default_value = "3", value_parser = clap::value_parser!(u16).range(1..=255))]
    pub(crate) n: Vec<u16>,
    /// Replicas that reads wait for; those above n are left out
    #[arg(long, value_name = "COUNTS", value_delimiter = ',', default_value = "1,2,3", value_parser = clap::value_parser!(u16).range(1..=255))]
    pub(crate) r: Vec<u16>,
    /// Replicas that writes wait for; those above n are left out
    #[arg(long, value_name = "COUNTS", value_delimiter = ',', default_value = "1,2,3", value_parser = clap::value_parser!(u16).range(1..=255))]
    pub(crate) w: Vec<u16>,
    /// Bucket, for the n that it has
    #[arg(long, short, value_name = "NAME", default_value = "default")]
    pub(crate) bucket: String,
    #[command(flatten)]
    pub(crate) workload: WorkloadArgs,
    #[command(flatten)]
    pub(crate) drive: DriveArgs,
    #[command(flatten)]
    pub(crate) nodes: NodesArgs,
    /// Writes that are read once each, to measure staleness; 0: leave it out
    #[arg(long, value_name = "COUNT", default_value_t = 20_000)]
    pub(crate) probes: u64,
    /// Keys that are probed at a time
    #[arg(long, value_name = "COUNT", default_value_t = 32)]
    pub(crate) probed_keys: usize,
    /// Do not kill a node
    #[arg(long)]
    pub(crate) no_outage: bool,
    /// When a node is killed, from the beginning of that measurement
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "4s")]
    pub(crate) kill_after: Duration,
    /// How long it stays dead
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "4s")]
    pub(crate) return_after: Duration,
    /// How long the measurement goes on then
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "6s")]
    pub(crate) after_return: Duration,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// What to drive, once for each target: torc, torc-client, redis, redis-cluster, etcd, with its addresses:
    /// --target torc=127.0.0.1:8081 --target redis=127.0.0.1:6379 --target etcd=127.0.0.1:2379
    #[arg(long, value_name = "NAME[=ADDRESS,...]", required = true)]
    pub(crate) target: Vec<TargetSpec>,
    #[command(flatten)]
    pub(crate) workload: WorkloadArgs,
    #[command(flatten)]
    pub(crate) drive: DriveArgs,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

fn time_or_zero(text: &str) -> Result<Duration, &'static str> {
    if text.trim_end_matches(char::is_alphabetic) == "0" {
        return Ok(Duration::ZERO);
    }
    time(text)
}
