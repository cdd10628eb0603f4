//! The two networks under a cluster, and how their links are cut.

use std::net::SocketAddr;

use torc_e2e::cluster::Cluster;
use torc_e2e::netns::Netns;
use torc_e2e::proxy::{Link, Network};

const PEER_PORT: u16 = 7081;
const HTTP_PORT: u16 = 8081;
const ADMIN_PORT: u16 = 9081;

/// Between the nodes of a cluster.
pub(crate) enum Net {
    /// Each node in a namespace of its own.
    Namespaces(Netns),
    /// A proxy in front of each node's peer port; `None` before the ports are known.
    Proxies(Option<Network>),
}

/// What is usual behind the proxies: enough for datagrams to overtake each other.
const USUAL: Link = Link {
    cut: false,
    lost: 2,
    doubled: 2,
    delay_us: 100,
    jitter_us: 400,
};

/// Gives each node of a cluster its namespace and addresses there.
pub(crate) fn place_in_namespaces(cluster: &mut Cluster, network: Netns) -> Net {
    for (number, node) in cluster.nodes.iter_mut().enumerate() {
        node.prefix = network.prefix(number);
        node.peer = network.socket(number, PEER_PORT);
        node.http = network.socket(number, HTTP_PORT);
        node.admin = network.socket(number, ADMIN_PORT);
        // Outside loopback a node asks for tokens; nobody else is on this network.
        node.options.arguments.push("--insecure".to_owned());
    }
    Net::Namespaces(network)
}

/// Puts a proxy in front of each node's peer port.
pub(crate) fn place_behind_proxies(cluster: &mut Cluster, seed: u64) -> Net {
    let peers: Vec<SocketAddr> = cluster.nodes.iter().map(|node| node.peer).collect();
    let network = Network::start(&peers, seed);
    network.set_all(USUAL);
    for (number, node) in cluster.nodes.iter_mut().enumerate() {
        let front = network.front(number).to_string();
        node.options
            .arguments
            .extend(["--advertise-peer".to_owned(), front]);
    }
    Net::Proxies(Some(network))
}

impl Net {
    /// Where others reach each node's peer port.
    pub(crate) fn peers(&self, cluster: &Cluster) -> Vec<SocketAddr> {
        match self {
            Self::Proxies(Some(network)) => (0..cluster.nodes.len())
                .map(|node| network.front(node))
                .collect(),
            _ => cluster.nodes.iter().map(|node| node.peer).collect(),
        }
    }

    /// Cuts the direction from one node to another, or ends the cut.
    pub(crate) fn set_cut(&self, from: usize, to: usize, cut: bool) {
        match self {
            Self::Namespaces(network) => {
                let done = if cut {
                    network.cut(from, to)
                } else {
                    network.mend(from, to)
                };
                done.unwrap_or_else(|error| panic!("cut or mend {from} to {to}: {error}"));
            }
            Self::Proxies(Some(network)) => network.set(from, to, Link { cut, ..USUAL }),
            Self::Proxies(None) => {}
        }
    }

    /// Makes every link bad in other ways, or usual again; `false` where only cuts are possible.
    pub(crate) fn set_bad(&self, bad: Option<Link>) -> bool {
        match self {
            Self::Proxies(Some(network)) => {
                network.set_all(bad.unwrap_or(USUAL));
                true
            }
            _ => false,
        }
    }
}
