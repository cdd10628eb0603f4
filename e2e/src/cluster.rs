//! Clusters of real processes: start, kill, pause, stop, and look at them from outside.
//!
//! Each cluster has a folder of its own with data, keys, and logs. Whatever happens, its processes
//! end with it: on drop, also while a test panics, and, if the test process itself is killed, by the
//! kernel (`setpriv --pdeathsig`). Only processes that were started here are ever signalled.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::process::torc;
use crate::{ports, wait};

pub use crate::node::{Node, shown};

/// How long a node may take to be ready. Generous: two cores, unoptimised builds, other tests.
pub const READY_MAX: Duration = Duration::from_secs(30);
/// How long a node may take to stop in order (`operations.md` promises 10 s).
pub const STOP_MAX: Duration = Duration::from_secs(10);
/// How long an ordinary request may take; above the store's own default deadline of 2 s.
pub const REQUEST_MAX: Duration = Duration::from_secs(5);

/// How a node gets its first configuration.
#[derive(Debug, Clone)]
pub enum Formation {
    /// It makes a cluster of its own (`--bootstrap`).
    Bootstrap,
    /// It joins through these peer addresses (`--join`).
    Join(Vec<SocketAddr>),
    /// Its data folder knows.
    Known,
}

/// What all nodes of a cluster have in common.
#[derive(Debug, Clone)]
pub struct Options {
    /// `--durability`.
    pub durability: &'static str,
    /// Further arguments of `torc serve`.
    pub arguments: Vec<String>,
    /// Variables of the environment of `torc serve`, names and values.
    pub environment: Vec<(String, String)>,
    /// Content of a `torc.toml` for all nodes.
    pub config: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        // Killing a process loses nothing that was written to the operating system, and tests that
        // do not need an fsync for each write are faster without.
        Self {
            durability: "os",
            arguments: Vec::new(),
            environment: Vec::new(),
            config: None,
        }
    }
}

/// Several nodes and the folder in which they live.
#[derive(Debug)]
pub struct Cluster {
    folder: Option<TempDir>,
    pki: PathBuf,
    options: Options,
    /// The nodes, in the order in which they were added.
    pub nodes: Vec<Node>,
}

impl Cluster {
    /// An empty cluster with a certificate authority of its own.
    pub fn empty(mut options: Options) -> Self {
        let folder = TempDir::with_prefix("torc-e2e-")
            .unwrap_or_else(|error| panic!("make a folder for the cluster: {error}"));
        if let Some(config) = &options.config {
            let path = folder.path().join("torc.toml");
            std::fs::write(&path, config)
                .unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
            options
                .arguments
                .extend(["--config".to_owned(), path.display().to_string()]);
        }
        let pki = folder.path().join("pki");
        let cluster = Self {
            folder: Some(folder),
            pki,
            options,
            nodes: Vec::new(),
        };
        let mut command = torc(cluster.folder());
        let output = command
            .args(["pki", "init", "--out"])
            .arg(&cluster.pki)
            .output()
            .unwrap_or_else(|error| panic!("run {command:?}: {error}"));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{command:?} ended with {}: {errors}",
            output.status
        );
        cluster
    }

    /// A running cluster of `size` nodes; returns when each is ready and knows all members.
    pub fn start(size: usize, options: Options) -> Self {
        let mut cluster = Self::empty(options);
        for _ in 0..size {
            cluster.add();
        }
        let peers: Vec<SocketAddr> = cluster.nodes.iter().map(|node| node.peer).collect();
        cluster.form(&peers);
        cluster
    }

    /// Starts all nodes that were added as one cluster; `peers` are the addresses under which others
    /// reach them. Returns when each is ready and knows all members.
    pub fn form(&mut self, peers: &[SocketAddr]) {
        for (number, node) in self.nodes.iter_mut().enumerate() {
            // The first must be there before the others can join; these may arrive together.
            if number == 0 {
                node.start(&Formation::Bootstrap);
            } else {
                node.launch(&Formation::Join(peers[..number].to_vec()));
            }
        }
        self.wait_members(self.nodes.len());
    }

    /// The cluster's folder.
    pub fn folder(&self) -> &Path {
        self.folder
            .as_ref()
            .map_or(Path::new("/nonexistent"), TempDir::path)
    }

    /// Where its certificate authority is.
    pub fn pki(&self) -> &Path {
        &self.pki
    }

    /// Uses another cluster's certificate authority (for nodes added from now on).
    pub fn use_pki_of(&mut self, other: &Self) {
        self.pki.clone_from(&other.pki);
    }

    /// Adds a node with new ports and an empty data folder, without starting it.
    pub fn add(&mut self) -> &mut Node {
        let name = format!("node-{}", self.nodes.len() + 1);
        let data = self.folder().join(&name);
        self.add_in(&name, &data)
    }

    /// Like [`Self::add`], with a name and a data folder of one's own.
    pub fn add_in(&mut self, name: &str, data: &Path) -> &mut Node {
        let node = Node {
            name: name.to_owned(),
            data: data.to_owned(),
            log: self.folder().join(format!("{name}.log")),
            http: ports::free(),
            admin: ports::free(),
            peer: ports::free(),
            pki: self.pki.clone(),
            options: self.options.clone(),
            prefix: Vec::new(),
            child: None,
        };
        self.nodes.push(node);
        self.last()
    }

    fn last(&mut self) -> &mut Node {
        self.nodes
            .last_mut()
            .unwrap_or_else(|| panic!("the cluster has no node yet"))
    }

    /// Waits until each running node is ready, counts `size` members in a ring that does not change, and sees
    /// all that run alive.
    pub fn wait_members(&self, size: usize) {
        for node in self.nodes.iter().filter(|node| node.is_launched()) {
            node.wait_ready();
            wait::until(
                &format!("{size} members on {}", node.name),
                READY_MAX,
                || match (node.members()?, node.is_changing()?) {
                    (members, false) if members.len() == size => Ok(()),
                    (members, changing) => {
                        Err(format!("members {members:?}, changing: {changing}"))
                    }
                },
            );
        }
        let running = self.nodes.iter().filter(|node| node.is_launched()).count();
        for node in self.nodes.iter().filter(|node| node.is_launched()) {
            node.wait_metric("torc_nodes_live", &[], |live| live >= running as f64);
        }
    }

    /// HTTP addresses of all nodes.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.http).collect()
    }

    /// Kills every node with SIGKILL, all at once.
    pub fn kill_all(&mut self) {
        for node in &self.nodes {
            node.signal(Signal::SIGKILL);
        }
        for node in self.nodes.iter_mut().filter(|node| node.is_launched()) {
            node.wait_exit(READY_MAX);
        }
    }

    /// Starts every node that does not run, and waits for all of them.
    pub fn restart_all(&mut self) {
        for node in &mut self.nodes {
            if !node.is_launched() {
                node.launch(&Formation::Known);
            }
        }
        self.wait_members(self.nodes.len());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.kill();
        }
        if !thread::panicking() {
            return;
        }
        for node in &self.nodes {
            eprintln!(
                "---- end of the log of {} ({})\n{}",
                node.name,
                node.http,
                node.log_end()
            );
        }
        if let Some(folder) = self.folder.take() {
            eprintln!("---- data and logs are kept in {}", folder.keep().display());
        }
    }
}
