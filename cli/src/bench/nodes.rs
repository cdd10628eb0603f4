//! The nodes that a load goes to: a cluster of its own, a running demo, or just addresses.

use std::time::Duration;

use torc_client::{Admin, Error as ClientError};

use super::args::NodesArgs;
use crate::args::{DemoArgs, DemoTarget, Output};
use crate::demo::Stops;
use crate::demo::cluster::Cluster;
use crate::demo::control::{self, Action, NodeView, Reply, Request};
use crate::demo::home::Home;
use crate::exit::Usage;
use crate::output::Progress;

/// First data port of a cluster of one's own: away from a demo's.
const BASE_PORT: u16 = 28_081;
/// Time for one question to a node.
const ASK_MAX: Duration = Duration::from_secs(2);
/// Time for a node to be ready again, and the pause between two looks.
const READY_MAX: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);

/// Nodes, and what may be done to them.
#[derive(Debug)]
pub(crate) enum Nodes {
    /// Started for this load.
    Own(Box<Cluster>, Home),
    /// Those of a running demo.
    Demo(DemoTarget, Vec<NodeView>),
    /// Somebody else's.
    Given(Vec<String>),
}

impl Nodes {
    /// Finds or starts them.
    pub(crate) async fn open(args: &NodesArgs, stops: &mut Stops) -> anyhow::Result<Self> {
        if let Some(nodes) = args.start {
            return Self::start(nodes, &args.durability, stops).await;
        }
        if let Some(pid) = args.demo {
            let target = DemoTarget {
                demo: (pid > 0).then_some(pid),
                output: Output::Text,
            };
            let views = views(&target).await?;
            return Ok(Self::Demo(target, views));
        }
        Ok(Self::Given(args.node.clone()))
    }

    async fn start(nodes: u16, durability: &str, stops: &mut Stops) -> anyhow::Result<Self> {
        if !["fsync", "interval", "os"].contains(&durability) {
            return Err(Usage(format!(
                "--durability is `{durability}`; give fsync, interval or os"
            ))
            .into());
        }
        let args = DemoArgs {
            command: None,
            nodes,
            keep: None,
            durability: durability.to_owned(),
            base_port: BASE_PORT,
            load: false,
        };
        let home = Home::open(None)?;
        let mut cluster = Box::new(Cluster::plan(&args, &home)?);
        let mut progress = Progress::new();
        let started = tokio::select! {
            started = cluster.start(&mut progress) => started,
            () = stops.wait() => Err(anyhow::anyhow!("stopped before the cluster was ready")),
        };
        progress.finish();
        if let Err(error) = started {
            cluster.stop(stops).await;
            return Err(error);
        }
        Ok(Self::Own(cluster, home))
    }

    /// Data addresses.
    pub(crate) fn addresses(&self) -> Vec<String> {
        match self {
            Self::Own(cluster, _) => cluster.data_addresses(),
            Self::Demo(_, views) => views.iter().map(|view| view.http.clone()).collect(),
            Self::Given(addresses) => addresses.clone(),
        }
    }

    /// How many there are, if they can be killed from here.
    pub(crate) fn killable(&self) -> Option<u16> {
        let count = match self {
            Self::Own(cluster, _) => cluster.nodes.len(),
            Self::Demo(_, views) => views.len(),
            Self::Given(_) => return None,
        };
        u16::try_from(count).ok()
    }

    /// Kills or restarts a node; answers its admin address.
    pub(crate) async fn act(&mut self, action: Action, node: u16) -> anyhow::Result<String> {
        let request = Request::Act { action, node };
        let reply = match self {
            Self::Own(cluster, _) => cluster.carry_out(&request).await,
            Self::Demo(target, _) => control::ask(target, &request).await?,
            Self::Given(_) => anyhow::bail!("these nodes cannot be killed from here"),
        };
        match reply {
            Reply::Done { admin, .. } => Ok(admin),
            Reply::Refused { reason } => anyhow::bail!(reason),
            Reply::Nodes { .. } => {
                anyhow::bail!("the demo answered something else; is it of this version?")
            }
        }
    }

    /// Stops and removes what was started here.
    pub(crate) async fn close(self, stops: &mut Stops) -> anyhow::Result<()> {
        if let Self::Own(mut cluster, home) = self {
            cluster.stop(stops).await;
            home.close()?;
        }
        Ok(())
    }
}

async fn views(target: &DemoTarget) -> anyhow::Result<Vec<NodeView>> {
    match control::ask(target, &Request::List).await? {
        Reply::Nodes { nodes } => Ok(nodes),
        _ => {
            anyhow::bail!("the demo answered something else than its nodes; is it of this version?")
        }
    }
}

/// Waits until a node says that it is ready.
pub(crate) async fn wait_ready(admin: &str) -> anyhow::Result<()> {
    let admin = Admin::new(vec![admin.to_owned()], ASK_MAX)?;
    let wait = async {
        while !matches!(admin.ready().await, Ok::<_, ClientError>(Ok(()))) {
            tokio::time::sleep(PAUSE).await;
        }
    };
    match tokio::time::timeout(READY_MAX, wait).await {
        Ok(()) => Ok(()),
        Err(_) => anyhow::bail!(
            "the node that was started again is not ready after {} s",
            READY_MAX.as_secs()
        ),
    }
}
