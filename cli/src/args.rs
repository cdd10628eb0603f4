//! The command line. Names of commands and flags are an interface.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use torc_client::Quorum;

use crate::bench::args::BenchArgs;

pub(crate) const DATA_DEFAULT: &str = "127.0.0.1:8081";
const ADMIN_DEFAULT: &str = "127.0.0.1:9081";

const EXIT_CODES: &str =
    "Exit codes: 0 done, 1 refused or not found, 2 usage, 3 cluster unreachable or no quorum.";

#[derive(Debug, Parser)]
#[command(name = "torc", version, about = "A key-value store without a leader", after_help = EXIT_CODES)]
#[command(arg_required_else_help = true, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a cluster on this machine and play with it; Ctrl-C stops it
    Demo(DemoArgs),
    /// Measure: throughput, latency, availability and staleness, of torc and of others beside it
    Bench(BenchArgs),
    /// Run one node
    Serve(Box<ServeArgs>),
    /// Take queued writes from RabbitMQ and have the nodes store them
    Worker(WorkerArgs),
    /// Add and remove nodes and workers in containers, by load
    Autoscale(Box<crate::autoscale::AutoscaleArgs>),
    /// Print a key's value
    Get(GetArgs),
    /// Store a value, from the command line, a file or standard input
    Put(PutArgs),
    /// Delete keys, whether or not they are there
    #[command(visible_alias = "rm")]
    Delete(DeleteArgs),
    /// List keys
    Ls(ListArgs),
    /// Do many operations, one line of JSON each, from a file or standard input
    Batch(BatchArgs),
    /// Say whether the cluster is healthy, why not, and what it would survive
    Status(StatusArgs),
    /// Look at the ring, and change it
    Ring(RingArgs),
    /// Say what each owner holds of a key, and whether they agree
    Verify(VerifyArgs),
    /// Have a node compare its copies with their other owners' now; it does so all the time anyway
    Repair(RepairArgs),
    /// Look at buckets, make and change them
    Bucket(BucketArgs),
    /// Ask one node whether it is ready; for health checks of containers
    Health(HealthArgs),
    /// Store the export of another store, then compare every key
    Import(Box<crate::import::ImportArgs>),
    /// Show or check configuration files
    Config(ConfigArgs),
    /// Make a certificate authority and certificates for nodes
    Pki(PkiArgs),
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write man pages into a folder
    #[command(hide = true)]
    Man {
        /// The folder; made if it is not there
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Where keys are asked for.
#[derive(Debug, Args)]
pub(crate) struct DataArgs {
    /// Data address of a node; several, separated by commas, are asked in turn
    #[arg(long, value_name = "URL", value_delimiter = ',', env = "TORC_NODE_URL", default_value = DATA_DEFAULT)]
    pub(crate) node: Vec<String>,
    /// Bucket
    #[arg(long, short, value_name = "NAME", default_value = "default")]
    pub(crate) bucket: String,
    /// Time for the whole operation, such as 500ms or 5s [default: 2s]
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) deadline: Option<Duration>,
}

/// Where the cluster is asked for.
#[derive(Debug, Args)]
pub(crate) struct AdminArgs {
    /// Admin address of a node; of several, separated by commas, the first that answers is taken
    #[arg(long, value_name = "URL", value_delimiter = ',', env = "TORC_ADMIN_URL", default_value = ADMIN_DEFAULT)]
    pub(crate) admin: Vec<String>,
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

/// What a write may ask for.
#[derive(Debug, Args)]
pub(crate) struct WriteArgs {
    /// Replicas to wait for: one, quorum, all, or a number [default: the bucket's]
    #[arg(short, value_name = "REPLICAS")]
    pub(crate) w: Option<Quorum>,
    /// Let the next nodes on the ring stand in for dead owners
    #[arg(long)]
    pub(crate) sloppy: bool,
    /// Wait until it is on disk, whatever the nodes' durability
    #[arg(long)]
    pub(crate) fsync: bool,
    /// What an earlier read or write printed as its context: this write orders after it
    #[arg(long, value_name = "CONTEXT")]
    pub(crate) context: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// The key: any bytes
    pub(crate) key: OsString,
    /// Replicas to wait for: one, quorum, all, or a number [default: the bucket's]
    #[arg(short, value_name = "REPLICAS")]
    pub(crate) r: Option<Quorum>,
    /// Write the value into a file instead
    #[arg(long, short, value_name = "FILE", conflicts_with = "output")]
    pub(crate) file: Option<PathBuf>,
    /// Form of the output; json has version and context beside the value
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) data: DataArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PutArgs {
    /// The key: any bytes
    pub(crate) key: OsString,
    /// The value; standard input without it, or when it is `-`
    pub(crate) value: Option<OsString>,
    /// Read the value from a file
    #[arg(long, short, value_name = "FILE", conflicts_with = "value")]
    pub(crate) file: Option<PathBuf>,
    /// Time after which the value is gone, such as 30s, 10m or 7d [default: the bucket's]
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) ttl: Option<Duration>,
    /// Content type to keep with the value
    #[arg(long, value_name = "TYPE")]
    pub(crate) content_type: Option<String>,
    #[command(flatten)]
    pub(crate) write: WriteArgs,
    /// Form of the output; json has version and context, text prints nothing
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) data: DataArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// The keys: any bytes
    #[arg(required = true)]
    pub(crate) keys: Vec<OsString>,
    #[command(flatten)]
    pub(crate) write: WriteArgs,
    #[command(flatten)]
    pub(crate) data: DataArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only keys that begin so
    #[arg(default_value = "")]
    pub(crate) prefix: String,
    /// At most this many keys
    #[arg(long, short = 'n', value_name = "COUNT")]
    pub(crate) limit: Option<usize>,
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) data: DataArgs,
}

#[derive(Debug, Args)]
pub(crate) struct BatchArgs {
    /// File of operations, such as {"op":"put","key":"k","value":"v"}; standard input without it
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) data: DataArgs,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
    /// Print again every second until Ctrl-C
    #[arg(long, conflicts_with = "until")]
    pub(crate) watch: bool,
    /// Wait until the cluster is in this state; for scripts
    #[arg(long, value_enum, value_name = "STATE")]
    pub(crate) until: Option<Until>,
    /// How long to wait with --until
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "60s", requires = "until")]
    pub(crate) timeout: Duration,
}

/// What `torc status --until` waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Until {
    /// Every member is alive, and nothing waits.
    Healthy,
}

#[derive(Debug, Args)]
pub(crate) struct RingArgs {
    #[command(subcommand)]
    pub(crate) command: RingCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RingCommand {
    /// Members, and how much each of them owns
    Show(AdminArgs),
    /// What changes would move, without making them
    Plan(PlanArgs),
    /// Make several changes together
    Commit {
        /// Changes, such as leave:node-3 reweigh:node-1=200; see `torc ring plan --help`
        #[arg(required = true, value_name = "CHANGE")]
        changes: Vec<String>,
        #[command(flatten)]
        how: ChangeArgs,
    },
    /// Take the running change back
    Abort {
        #[command(flatten)]
        how: ChangeArgs,
    },
    /// Show how far the running change is, until it is over
    Follow(AdminArgs),
    /// A node gives its data to the others, goes, and stops by itself
    Leave {
        /// Name or id of the node
        node: String,
        #[command(flatten)]
        how: ChangeArgs,
    },
    /// Take out a node that is dead for good
    Remove {
        /// Name or id of the node
        node: String,
        /// What the node alone holds is lost: say that you mean it
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        how: ChangeArgs,
    },
    /// Take out a dead node and put in one that waits to join
    Replace {
        /// Name or id of the dead node
        dead: String,
        /// Name or id of the new one, started with --join
        by: String,
        #[command(flatten)]
        how: ChangeArgs,
    },
    /// Give a node another share of the ring
    Reweigh {
        /// Name or id of the node
        node: String,
        /// Relative share, 1 to 10,000; 100 is usual
        weight: u32,
        #[command(flatten)]
        how: ChangeArgs,
    },
    /// Say that a node is in another failure domain
    Rezone {
        /// Name or id of the node
        node: String,
        /// The failure domain
        zone: String,
        #[command(flatten)]
        how: ChangeArgs,
    },
    /// Who holds a key, in order of preference
    Owners {
        /// The key: any bytes
        key: OsString,
        /// Bucket
        #[arg(long, short, value_name = "NAME", default_value = "default")]
        bucket: String,
        #[command(flatten)]
        admin: AdminArgs,
    },
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The key: any bytes
    pub(crate) key: OsString,
    /// Bucket
    #[arg(long, short, value_name = "NAME", default_value = "default")]
    pub(crate) bucket: String,
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RepairArgs {
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
    /// Only say that it is to be done
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// How long to wait
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "10m")]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Changes: join:NODE, leave:NODE, remove:NODE, replace:DEAD=NEW, reweigh:NODE=WEIGHT,\n\
    rezone:NODE=ZONE, replicas:BUCKET=N. Several are made together, and data moves once for all of them."
)]
pub(crate) struct PlanArgs {
    /// Changes, such as leave:node-3 reweigh:node-1=200
    #[arg(required = true, value_name = "CHANGE")]
    pub(crate) changes: Vec<String>,
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
}

/// How a change of the ring is made.
#[derive(Debug, Args)]
pub(crate) struct ChangeArgs {
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Do not wait until the data has moved
    #[arg(long)]
    pub(crate) no_wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BucketArgs {
    #[command(subcommand)]
    pub(crate) command: BucketCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BucketCommand {
    /// All buckets and their settings
    List(AdminArgs),
    /// Make a bucket
    Create {
        /// Its name: 1-64 bytes of a-z 0-9 _ -
        name: String,
        #[command(flatten)]
        settings: BucketSettings,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Change a bucket's settings; those not given stay. Another n moves data and is changed alone
    Update {
        /// Its name
        name: String,
        #[command(flatten)]
        settings: BucketSettings,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Delete a bucket with all of its keys
    Delete {
        /// Its name
        name: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
        #[command(flatten)]
        admin: AdminArgs,
    },
}

/// What a bucket is like.
#[derive(Debug, Args)]
pub(crate) struct BucketSettings {
    /// Replicas of each key, 1 to 16 [default: 3]
    #[arg(short)]
    pub(crate) n: Option<u8>,
    /// Replicas that a read waits for: one, quorum, all, or a number [default: quorum]
    #[arg(short, value_name = "REPLICAS")]
    pub(crate) r: Option<Quorum>,
    /// Replicas that a write waits for [default: quorum]
    #[arg(short, value_name = "REPLICAS")]
    pub(crate) w: Option<Quorum>,
    /// How concurrent writes are resolved: lww
    #[arg(long, value_name = "MODE")]
    pub(crate) conflict: Option<String>,
    /// Time after which values that name none are gone, such as 7d; `none` takes it away
    #[arg(long, value_name = "TIME")]
    pub(crate) ttl: Option<String>,
    /// When reads that saw replicas differ write back: blocking, async or off [default: blocking]
    #[arg(long, value_name = "WHEN")]
    pub(crate) read_repair: Option<String>,
    /// Let the next nodes on the ring stand in for dead owners: true or false [default: false]
    #[arg(long, value_name = "BOOL")]
    pub(crate) sloppy: Option<bool>,
}

#[derive(Debug, Args)]
pub(crate) struct HealthArgs {
    /// Data address of the node
    #[arg(long, value_name = "URL", env = "TORC_NODE_URL", default_value = DATA_DEFAULT)]
    pub(crate) node: String,
    /// Time for the answer
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "2s")]
    pub(crate) deadline: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    pub(crate) command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print every setting with its default and what it does
    Default,
    /// Say whether a configuration file is valid
    Check {
        /// The file
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct PkiArgs {
    #[command(subcommand)]
    pub(crate) command: PkiCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PkiCommand {
    /// Make a cluster's certificate authority
    Init {
        /// Folder for it; made if it is not there
        #[arg(long, value_name = "DIR", default_value = "pki")]
        out: PathBuf,
    },
    /// Issue a node's certificate
    Issue {
        /// The node's name, as in --name
        name: String,
        /// Folder of the certificate authority
        #[arg(long, value_name = "DIR", default_value = "pki")]
        pki: PathBuf,
    },
}

#[derive(Debug, Args)]
#[command(
    after_help = "A restart needs neither --bootstrap nor --join: the data directory knows.\n\
    All settings: `torc config default`. Each can also be given as an environment variable (TORC_NAME)."
)]
pub(crate) struct ServeArgs {
    /// Name, unique in the cluster
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Data directory
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<String>,
    /// Data listener
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) http: Option<String>,
    /// Admin listener
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) admin: Option<String>,
    /// Peer listener (QUIC over UDP)
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) peer: Option<String>,
    /// Address that clients reach --http at
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) advertise_http: Option<String>,
    /// Address that other nodes reach --peer at
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) advertise_peer: Option<String>,
    /// Make a new cluster with this node as its first member
    #[arg(long, conflicts_with = "join")]
    pub(crate) bootstrap: bool,
    /// Join the cluster of the nodes at these peer addresses
    #[arg(long, value_name = "HOST:PORT[,...]")]
    pub(crate) join: Option<String>,
    /// Take the place of this dead member, named by name or id; goes with --join
    #[arg(long, value_name = "NODE", conflicts_with = "bootstrap")]
    pub(crate) replace: Option<String>,
    /// Failure domain
    #[arg(long)]
    pub(crate) zone: Option<String>,
    /// Relative share of the ring
    #[arg(long)]
    pub(crate) weight: Option<String>,
    /// Folder of the cluster's CA certificate and this node's own
    #[arg(long, value_name = "DIR")]
    pub(crate) pki: Option<String>,
    /// When a write counts as durable: fsync, interval or os
    #[arg(long, value_name = "WHEN")]
    pub(crate) durability: Option<String>,
    /// Listen beyond loopback although there are no tokens in this version
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Configuration file
    #[arg(long, value_name = "FILE", env = "TORC_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Any other setting, such as limits.value_bytes=4MiB
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Stop when standard input ends: whoever started this node is gone
    #[arg(long, hide = true)]
    pub(crate) parent_pipe: bool,
}

#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    /// Data address of a node; of several, separated by commas, the next one is asked when one does not answer
    #[arg(long, value_name = "URL", value_delimiter = ',', env = "TORC_NODE_URL", default_value = DATA_DEFAULT)]
    pub(crate) node: Vec<String>,
    /// Where health and metrics are served
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:9181")]
    pub(crate) http: SocketAddr,
    /// Messages in work at a time
    #[arg(long, value_name = "COUNT", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub(crate) prefetch: u16,
    /// Attempts after which a message that the nodes refuse goes to the dead letters
    #[arg(long, value_name = "COUNT", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) tries: u32,
    /// Put what is in the dead letters back into the queue, and end
    #[arg(long)]
    pub(crate) redrive: bool,
    /// Configuration file: its section `queue` says where the brokers are
    #[arg(long, value_name = "FILE", env = "TORC_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// A setting, such as queue.brokers=127.0.0.1:5672
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(
    after_help = "From a second terminal: torc demo ls, kill N, pause N, resume N, restart N,\n\
    add, leave N, partition '1,2|3', heal.\n\
    A show with a verdict: torc demo join-leave."
)]
pub(crate) struct DemoArgs {
    #[command(subcommand)]
    pub(crate) command: Option<DemoCommand>,
    /// Number of nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub(crate) nodes: u16,
    /// Keep the data under this name for the next time
    #[arg(long, value_name = "NAME")]
    pub(crate) keep: Option<String>,
    /// When a write counts as durable: fsync, interval or os
    #[arg(long, value_name = "WHEN", default_value = "fsync")]
    pub(crate) durability: String,
    /// First data port; admin ports are 1000 above, peer ports 1000 below. Ports in use are passed over
    #[arg(long, value_name = "PORT", default_value_t = 8081, value_parser = clap::value_parser!(u16).range(2000..=60000))]
    pub(crate) base_port: u16,
    /// Keep a gentle load running
    #[arg(long)]
    pub(crate) load: bool,
}

/// From a second terminal.
#[derive(Debug, Subcommand)]
pub(crate) enum DemoCommand {
    /// List the running demo's nodes
    Ls(DemoTarget),
    /// Kill a node (SIGKILL)
    Kill(DemoNode),
    /// Stop a node's time (SIGSTOP)
    Pause(DemoNode),
    /// Let a paused node go on (SIGCONT)
    Resume(DemoNode),
    /// Start a node again, whatever became of it
    Restart(DemoNode),
    /// Start one node more, which joins the cluster
    Add(DemoTarget),
    /// Let a node leave: it gives its data to the others, and stops by itself
    Leave(DemoNode),
    /// A show of its own: under load a node joins, one is killed and comes back, one leaves; with a verdict
    JoinLeave(ShowArgs),
    /// Cut the links between groups of nodes, such as 1,2|3; `torc demo heal` mends them
    Partition {
        /// Groups of node numbers; nodes in none of them keep all their links
        groups: String,
        #[command(flatten)]
        target: DemoTarget,
    },
    /// Mend all cut links
    Heal(DemoTarget),
}

/// The show.
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// Nodes to begin with
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(3..=15))]
    pub(crate) nodes: u16,
    /// Keys that are written and read
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(8..=10_000_000))]
    pub(crate) keys: u32,
    /// Bytes of each value
    #[arg(long, value_name = "BYTES", default_value_t = 1_024)]
    pub(crate) value_bytes: usize,
    /// Seconds before, between and after the changes
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) pause: u64,
    /// When a write counts as durable: fsync, interval or os
    #[arg(long, value_name = "WHEN", default_value = "fsync", value_parser = ["fsync", "interval", "os"])]
    pub(crate) durability: String,
    /// First data port, as of `torc demo`
    #[arg(long, value_name = "PORT", default_value_t = 8081, value_parser = clap::value_parser!(u16).range(2000..=60000))]
    pub(crate) base_port: u16,
    /// Form of the output; json prints the verdict alone
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

/// Which demo is meant.
#[derive(Debug, Args)]
pub(crate) struct DemoTarget {
    /// Process id of the demo, when several run
    #[arg(long, value_name = "PID")]
    pub(crate) demo: Option<u32>,
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

/// Which node is meant.
#[derive(Debug, Args)]
pub(crate) struct DemoNode {
    /// Number of the node, from 1
    pub(crate) node: u16,
    #[command(flatten)]
    pub(crate) target: DemoTarget,
}

/// A time above zero.
pub(crate) fn time(text: &str) -> Result<Duration, &'static str> {
    torc_node::config::parse_duration(text)
        .filter(|time| !time.is_zero())
        .ok_or("give a time above zero with its unit, such as 250ms, 30s, 10m, 12h or 7d")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn several_nodes_are_one_argument() {
        let cli = Cli::try_parse_from(["torc", "get", "k", "--node", "a:1,b:2", "-r", "2"])
            .expect("valid");
        let Command::Get(get) = cli.command else {
            panic!("not get")
        };
        assert_eq!(get.data.node, ["a:1", "b:2"]);
        assert_eq!(get.r, Some(Quorum::Count(2)));
    }

    #[test]
    fn what_excludes_each_other_is_refused() {
        for bad in [
            &["torc", "serve", "--bootstrap", "--join", "a:1"][..],
            &["torc", "put", "k", "v", "--file", "f"],
            &["torc", "get", "k", "-r", "0"],
            &["torc", "put", "k", "v", "--ttl", "30"],
            &["torc", "demo", "--nodes", "0"],
            &["torc", "demo", "--nodes", "3", "ls"],
        ] {
            assert!(Cli::try_parse_from(bad).is_err(), "{bad:?}");
        }
    }
}
