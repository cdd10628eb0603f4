//! Nodes in network namespaces of their own, joined by a bridge, with links that can be cut.
//!
//! A hub namespace holds the bridge; each node's namespace and this machine's own have one end of a
//! virtual cable in it. The direction from A to B is cut by a wrong hardware address for B in A's table
//! of neighbours: the kernel goes on sending, and nobody takes it. That cuts one direction of one pair,
//! silently, and needs nothing but `ip`. Needs root; whoever has not may ask [`available`] why.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::OnceLock;

/// Networks that may be in use at a time on one machine, by all test processes.
const NETWORKS: u8 = 64;
/// A hardware address that no cable has (locally administered).
const NOBODY: &str = "02:00:00:00:00:01";
const CABLE: &str = "eth0";

/// The namespaces of one cluster; they go away when it is dropped.
#[derive(Debug)]
pub struct Netns {
    number: u8,
    size: usize,
    /// Held, not read: the lock on it is what reserves the number.
    _lock: File,
}

/// Whether this process may make network namespaces; the reason if not.
///
/// # Errors
/// What is missing, as a sentence.
pub fn available() -> Result<(), &'static str> {
    static TRIED: OnceLock<Result<(), String>> = OnceLock::new();
    TRIED
        .get_or_init(|| {
            let name = format!("torc-try-{}", std::process::id());
            ip(&["netns", "add", &name])
                .and_then(|()| {
                    let tried = ip(&["-n", &name, "link", "add", "torc0", "type", "veth", "peer", "name", "torc1"])
                        .and_then(|()| run("nsenter", &[&netns_arg(&name), "--", "true"]));
                    ip(&["netns", "del", &name])?;
                    tried
                })
                .map_err(|error| {
                    format!("network namespaces need root (CAP_SYS_ADMIN, CAP_NET_ADMIN) and the tools ip and nsenter: {error}")
                })
        })
        .as_ref()
        .copied()
        .map_err(String::as_str)
}

impl Netns {
    /// Lays the network of `size` nodes.
    ///
    /// # Errors
    /// Which command failed, and what it said.
    pub fn lay(size: usize) -> Result<Self, String> {
        let (number, lock) = reserve()?;
        // What a killed test process left behind under this number.
        let names: Vec<String> = (0..16).map(|node| name(number, node)).collect();
        for leftover in names.iter().chain([&hub(number)]) {
            if fs::exists(format!("/run/netns/{leftover}")).unwrap_or(false) {
                ip(&["netns", "del", leftover])?;
            }
        }
        let network = Self {
            number,
            size,
            _lock: lock,
        };
        network.build()?;
        Ok(network)
    }

    fn build(&self) -> Result<(), String> {
        let hub = hub(self.number);
        ip(&["netns", "add", &hub])?;
        ip(&["-n", &hub, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &hub, "link", "set", "br0", "up"])?;
        // A cable into this namespace, over which the tests talk to the nodes.
        let here = here(self.number);
        self.plug(
            "here",
            &[
                "link", "add", &here, "type", "veth", "peer", "name", "here", "netns", &hub,
            ],
        )?;
        ip(&[
            "addr",
            "add",
            &format!("{}/24", self.address(253)),
            "dev",
            &here,
        ])?;
        ip(&["link", "set", &here, "up"])?;
        for node in 0..self.size {
            let name = name(self.number, node);
            let port = format!("port{node}");
            ip(&["netns", "add", &name])?;
            self.plug(
                &port,
                &[
                    "-n", &name, "link", "add", CABLE, "type", "veth", "peer", "name", &port,
                    "netns", &hub,
                ],
            )?;
            let address = format!("{}/24", self.ip(node));
            ip(&["-n", &name, "addr", "add", &address, "dev", CABLE])?;
            ip(&["-n", &name, "link", "set", CABLE, "up"])?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
        }
        Ok(())
    }

    /// Makes a cable whose other end is called `port` in the hub, and plugs that into the bridge.
    fn plug(&self, port: &str, cable: &[&str]) -> Result<(), String> {
        let hub = hub(self.number);
        ip(cable)?;
        ip(&["-n", &hub, "link", "set", port, "master", "br0"])?;
        ip(&["-n", &hub, "link", "set", port, "up"])
    }

    /// What a command line begins with to run in that node's namespace.
    pub fn prefix(&self, node: usize) -> Vec<String> {
        let netns = netns_arg(&name(self.number, node));
        vec!["nsenter".to_owned(), netns, "--".to_owned()]
    }

    /// A port on that node's address.
    pub fn socket(&self, node: usize, port: u16) -> SocketAddr {
        (self.ip(node), port).into()
    }

    fn ip(&self, node: usize) -> Ipv4Addr {
        self.address(node as u8 + 1)
    }

    fn address(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 213, self.number, host)
    }

    /// Cuts the direction from one node to another.
    ///
    /// # Errors
    /// Which command failed, and what it said.
    pub fn cut(&self, from: usize, to: usize) -> Result<(), String> {
        let (name, to) = (name(self.number, from), self.ip(to).to_string());
        let entry = ["lladdr", NOBODY, "dev", CABLE, "nud", "permanent"];
        ip(&[&["-n", &name, "neigh", "replace", &to][..], &entry].concat())
    }

    /// Ends what [`Self::cut`] began.
    ///
    /// # Errors
    /// Which command failed, and what it said.
    pub fn mend(&self, from: usize, to: usize) -> Result<(), String> {
        let (name, to) = (name(self.number, from), self.ip(to).to_string());
        ip(&["-n", &name, "neigh", "del", &to, "dev", CABLE])
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // The cables go with the namespaces that they end in.
        let names = (0..self.size).map(|node| name(self.number, node));
        for name in names.chain([hub(self.number)]) {
            if let Err(error) = ip(&["netns", "del", &name]) {
                eprintln!("{error}");
            }
        }
    }
}

fn name(number: u8, node: usize) -> String {
    format!("torc-e2e-{number}-{node}")
}

fn hub(number: u8) -> String {
    format!("torc-e2e-{number}-hub")
}

fn here(number: u8) -> String {
    format!("torc-e2e-{number}")
}

fn netns_arg(name: &str) -> String {
    format!("--net=/run/netns/{name}")
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    run("ip", arguments)
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let shown = || format!("{program} {}", arguments.join(" "));
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| format!("run {}: {error}", shown()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(format!("{}: {}: {said}", shown(), output.status))
}

fn reserve() -> Result<(u8, File), String> {
    let folder = std::env::temp_dir().join("torc-e2e-netns");
    fs::create_dir_all(&folder).map_err(|error| format!("create {}: {error}", folder.display()))?;
    for number in 1..=NETWORKS {
        let path = folder.join(number.to_string());
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|error| format!("open {}: {error}", path.display()))?;
        match file.try_lock() {
            Ok(()) => return Ok((number, file)),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => {
                return Err(format!("lock {}: {error}", path.display()));
            }
        }
    }
    Err(format!("all {NETWORKS} test networks are in use"))
}
