//! The demo's nodes together: start, watch, act, stop.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use torc_client::{Admin, Client, ClientConfig, Routing, WriteOptions};

use super::Stops;
use super::control::{Action, NodeView, Reply, Request};
use super::cut;
use super::home::{Home, Plan};
use super::node::{Formation, Node};
use super::ports::{self, Ports, address};
use crate::args::DemoArgs;
use crate::exit::Unreachable;
use crate::output::Progress;

/// Time for all nodes to be ready and to be members of one ring.
const START_MAX: Duration = Duration::from_secs(90);
/// Time for nodes to stop in order before they are killed.
const STOP_MAX: Duration = Duration::from_secs(10);
/// Time for one question to one node while the cluster starts.
const ASK_MAX: Duration = Duration::from_secs(2);
/// Nodes of a demo.
const NODES_MAX: usize = 16;
const PAUSE: Duration = Duration::from_millis(50);

/// Keys to look at; written when the cluster is new.
const SAMPLES: &[(&str, &str)] = &[
    ("hello", "good morning"),
    ("fruit/apple", "red"),
    ("fruit/banana", "yellow"),
    ("ключ", "keys are bytes, so any text will do"),
];

/// All nodes of the demo.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    is_new: bool,
    home: PathBuf,
    durability: String,
    base_port: u16,
}

impl Cluster {
    /// Which nodes there will be, at which addresses. Starts nothing.
    pub(crate) fn plan(args: &DemoArgs, home: &Home) -> anyhow::Result<Self> {
        let kept = home.plan()?;
        let is_new = kept.is_none();
        let node =
            |at: usize, ports: Ports| Node::new(at + 1, ports, home.path(), &args.durability);
        let nodes = if let Some(plan) = kept {
            check_free(&plan.nodes)?;
            let ports = plan.nodes.into_iter().enumerate();
            ports.map(|(at, ports)| node(at, ports)).collect()
        } else {
            // What a start that was broken off has left is of no cluster.
            clear(home.path(), args.nodes)?;
            torc_node::pki::init(&home.path().join("pki"))?;
            let ports = ports::choose(args.base_port, args.nodes)?
                .into_iter()
                .enumerate();
            ports
                .map(|(at, (ports, held))| node(at, ports).holding(held))
                .collect()
        };
        Ok(Self {
            nodes,
            is_new,
            home: home.path().to_owned(),
            durability: args.durability.clone(),
            base_port: args.base_port,
        })
    }

    /// For the next time.
    pub(crate) fn to_plan(&self) -> Plan {
        Plan {
            nodes: self.nodes.iter().map(|node| node.ports).collect(),
        }
    }

    pub(crate) fn is_new(&self) -> bool {
        self.is_new
    }

    pub(crate) fn data_addresses(&self) -> Vec<String> {
        self.nodes
            .iter()
            .map(|node| address(node.ports.http).to_string())
            .collect()
    }

    /// Starts all nodes and waits until each is ready and sees all others; then writes the sample keys.
    pub(crate) async fn start(&mut self, progress: &mut Progress) -> anyhow::Result<()> {
        let end = Instant::now() + START_MAX;
        if self.is_new {
            // The first must be there before the others can join; these arrive together.
            progress.say("starting node-1");
            let (first, others) = self.nodes.split_at_mut(1);
            first[0].start(&Formation::Bootstrap)?;
            wait(first, end, progress).await?;
            let peer = address(first[0].ports.peer).to_string();
            for node in others {
                progress.say(&format!("starting {}", node.name()));
                node.start(&Formation::Join(peer.clone()))?;
            }
        } else {
            for node in &mut self.nodes {
                progress.say(&format!("starting {}", node.name()));
                node.start(&Formation::Known)?;
            }
        }
        wait(&mut self.nodes, end, progress).await?;
        if self.is_new {
            progress.say("writing some keys");
            self.write_samples()
                .await
                .context("the cluster is ready, but does not take writes")?;
        }
        Ok(())
    }

    async fn write_samples(&self) -> anyhow::Result<()> {
        let mut config = ClientConfig::new(self.data_addresses());
        config.routing = Routing::InTurn;
        config.deadline = Duration::from_secs(10);
        let client = Client::new(config)?;
        let options = WriteOptions {
            content_type: Some("text/plain; charset=utf-8".into()),
            ..WriteOptions::default()
        };
        for (key, value) in SAMPLES {
            client
                .put("default", key.as_bytes(), *value, &options)
                .await?;
        }
        Ok(())
    }

    /// Stops all nodes in order; those that take too long, or all of them at a further signal, are killed.
    pub(crate) async fn stop(&mut self, stops: &mut Stops) {
        for node in &self.nodes {
            node.begin_stop();
        }
        let end = Instant::now() + STOP_MAX;
        for node in &mut self.nodes {
            tokio::select! {
                () = node.finish_stop(end.saturating_duration_since(Instant::now())) => {}
                () = stops.wait() => break,
            }
        }
        for node in &mut self.nodes {
            node.finish_stop(Duration::ZERO).await;
        }
    }

    /// Lines about nodes that have ended by themselves since the last look.
    pub(crate) fn look(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        for node in &mut self.nodes {
            if let Some(how) = node.look() {
                lines.push(format!(
                    "{} has ended ({how}); its log: {}; `torc demo restart {}` starts it again",
                    node.name(),
                    node.log.display(),
                    node.number
                ));
            }
        }
        lines
    }

    /// Does what a second terminal asks for.
    pub(crate) async fn carry_out(&mut self, request: &Request) -> Reply {
        let done = match request {
            Request::List => {
                return Reply::Nodes {
                    nodes: self.nodes.iter().map(view).collect(),
                };
            }
            Request::Act { action, node } => self.act(*action, *node).await,
            Request::Add => self.add(),
            Request::Partition { groups } => self.partition(groups).await,
        };
        match done {
            Ok((message, at)) => Reply::Done {
                message,
                admin: address(self.nodes[at].ports.admin).to_string(),
            },
            Err(error) => Reply::Refused {
                reason: format!("{error:#}"),
            },
        }
    }

    /// Where the node of that number, from 1, stands.
    fn place(&self, number: u16) -> anyhow::Result<usize> {
        let count = self.nodes.len();
        usize::from(number)
            .checked_sub(1)
            .filter(|&at| at < count)
            .with_context(|| format!("there is no node {number}; this demo has 1 to {count}"))
    }

    async fn act(&mut self, action: Action, number: u16) -> anyhow::Result<(String, usize)> {
        let at = self.place(number)?;
        let node = &mut self.nodes[at];
        let name = node.name();
        let message = match action {
            Action::Kill => node.kill().await.map(|()| format!("killed {name}")),
            Action::Pause => node.pause().map(|()| format!("paused {name}")),
            Action::Resume => node.resume().map(|()| format!("{name} goes on")),
            Action::Restart => {
                node.begin_stop();
                node.finish_stop(STOP_MAX).await;
                node.start(&Formation::Known)?;
                node.tell_cut().await.map(|()| format!("started {name}"))
            }
        };
        Ok((message?, at))
    }

    /// One node more, which joins by whichever other runs.
    fn add(&mut self) -> anyhow::Result<(String, usize)> {
        let count = self.nodes.len();
        anyhow::ensure!(
            count < NODES_MAX,
            "a demo has at most {NODES_MAX} nodes, and this one has as many"
        );
        let runs = self.nodes.iter().find(|node| node.pid().is_some());
        let contact = runs.context("no node runs that another could join by")?;
        let peer = address(contact.ports.peer).to_string();
        let (ports, held) = ports::choose(self.base_port, 1)?
            .pop()
            .context("no port is free")?;
        let mut node = Node::new(count + 1, ports, &self.home, &self.durability).holding(held);
        node.start(&Formation::Join(peer))?;
        let message = format!("started {}, which joins", node.name());
        self.nodes.push(node);
        Ok((message, count))
    }

    /// Cuts the links between nodes of different groups, and mends all others.
    async fn partition(&mut self, groups: &[Vec<u16>]) -> anyhow::Result<(String, usize)> {
        for &number in groups.iter().flatten() {
            self.place(number)?;
        }
        for node in &mut self.nodes {
            node.set_cut(cut::cut_off_from(node.number, groups));
            node.tell_cut().await?;
        }
        let message = match groups.len() {
            0 => "all links are mended".to_owned(),
            count => format!("the links between {count} groups of nodes are cut"),
        };
        Ok((message, 0))
    }
}

fn view(node: &Node) -> NodeView {
    NodeView {
        node: node.number,
        name: node.name(),
        state: node.state().to_owned(),
        pid: node.pid(),
        http: address(node.ports.http).to_string(),
        admin: address(node.ports.admin).to_string(),
        peer: address(node.ports.peer).to_string(),
        log: node.log.display().to_string(),
    }
}

fn check_free(nodes: &[Ports]) -> anyhow::Result<()> {
    for (at, ports) in nodes.iter().enumerate() {
        if let Some((what, port)) = ports.in_use() {
            anyhow::bail!(
                "the {what} port {port} of node-{} is in use, and a kept cluster keeps its addresses: stop what \
                 listens there",
                at + 1
            );
        }
    }
    Ok(())
}

/// Removes what an unfinished start has left of these nodes.
fn clear(home: &Path, count: u16) -> anyhow::Result<()> {
    let mut paths: Vec<PathBuf> = vec![home.join("pki")];
    paths.extend((1..=count).map(|number| home.join(format!("node-{number}"))));
    for path in paths {
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Waits until all of `nodes` are ready, and each sees them all as members and alive.
async fn wait(nodes: &mut [Node], end: Instant, progress: &mut Progress) -> anyhow::Result<()> {
    let count = nodes.len();
    let admins: Vec<Admin> = nodes
        .iter()
        .map(|node| Admin::new(vec![address(node.ports.admin).to_string()], ASK_MAX))
        .collect::<Result<_, _>>()?;
    let mut missing = vec![String::from("not asked yet"); count];
    loop {
        for (at, admin) in admins.iter().enumerate() {
            if let Some(how) = nodes[at].look() {
                progress.finish();
                show_log(&nodes[at]);
                anyhow::bail!(
                    "{} has ended ({how}) while the cluster started",
                    nodes[at].name()
                );
            }
            missing[at] = lacks(admin, count).await.unwrap_or_default();
        }
        let ready = missing.iter().filter(|lack| lack.is_empty()).count();
        progress.say(&format!("{ready} of {count} nodes are ready"));
        if ready == count {
            return Ok(());
        }
        if Instant::now() >= end {
            progress.finish();
            return Err(Unreachable(failure(nodes, &missing)).into());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What a node still lacks; `None` when nothing.
async fn lacks(admin: &Admin, count: usize) -> Option<String> {
    match admin.ready().await {
        Ok(Ok(())) => {}
        Ok(Err(reason)) => return Some(reason),
        Err(error) => return Some(error.to_string()),
    }
    match admin.ring().await {
        Ok(ring) => {
            let alive = ring.members.iter().filter(|member| member.alive).count();
            (ring.members.len() != count || alive != count)
                .then(|| format!("sees {} members, {alive} of them alive", ring.members.len()))
        }
        Err(error) => Some(error.to_string()),
    }
}

/// Shows the logs of those that are not ready, and says what they lack.
fn failure(nodes: &[Node], missing: &[String]) -> String {
    let mut text = format!("the cluster was not ready after {} s", START_MAX.as_secs());
    for (node, lack) in nodes
        .iter()
        .zip(missing)
        .filter(|(_, lack)| !lack.is_empty())
    {
        show_log(node);
        // Writing into a String cannot fail.
        let _ = write!(text, "; {}: {lack}", node.name());
    }
    text
}

fn show_log(node: &Node) {
    // A closed standard error is no reason to fail in another way.
    let _ = writeln!(
        io::stderr(),
        "---- end of the log of {}\n{}",
        node.name(),
        node.log_end()
    );
}
