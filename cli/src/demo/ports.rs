//! Free ports on loopback, the usual ones if possible.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

/// One node's ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ports {
    pub(crate) http: u16,
    pub(crate) admin: u16,
    pub(crate) peer: u16,
}

/// Admin ports are this far above the data ports, peer ports as far below.
const APART: u16 = 1_000;

pub(crate) fn address(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

impl Ports {
    /// The first that is in use, with what it is for.
    pub(crate) fn in_use(self) -> Option<(&'static str, u16)> {
        [
            ("data", self.http, is_free_tcp(self.http)),
            ("admin", self.admin, is_free_tcp(self.admin)),
            ("peer", self.peer, is_free_udp(self.peer)),
        ]
        .into_iter()
        .find(|(.., free)| !free)
        .map(|(what, port, _)| (what, port))
    }
}

/// Ports for `count` nodes, from `base` on; ports in use are passed over. Somebody may take one of them
/// before its node does; the node then says so.
pub(crate) fn choose(base: u16, count: u16) -> anyhow::Result<Vec<Ports>> {
    let mut taken = BTreeSet::new();
    let mut nodes = Vec::new();
    for _ in 0..count {
        let http = next(base, &mut taken, is_free_tcp)?;
        let admin = next(base.saturating_add(APART), &mut taken, is_free_tcp)?;
        let peer = next(base.saturating_sub(APART), &mut taken, is_free_udp)?;
        nodes.push(Ports { http, admin, peer });
    }
    Ok(nodes)
}

fn next(from: u16, taken: &mut BTreeSet<u16>, is_free: fn(u16) -> bool) -> anyhow::Result<u16> {
    let port = (from..from.saturating_add(APART))
        .find(|port| !taken.contains(port) && is_free(*port))
        .with_context(|| format!("no port is free from {from} on; name others with --base-port"))?;
    taken.insert(port);
    Ok(port)
}

fn is_free_tcp(port: u16) -> bool {
    TcpListener::bind(address(port)).is_ok()
}

fn is_free_udp(port: u16) -> bool {
    UdpSocket::bind(address(port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_in_use_are_passed_over_and_none_is_given_twice() {
        let held = TcpListener::bind(address(0)).expect("bind");
        let base = held.local_addr().expect("address").port();
        // Near the end of the range there is no room above.
        if base > 60_000 {
            return;
        }
        let nodes = choose(base, 4).expect("ports");
        assert!(nodes.iter().all(|ports| ports.http > base));
        let mut all: Vec<u16> = nodes
            .iter()
            .flat_map(|ports| [ports.http, ports.admin, ports.peer])
            .collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 12);
        let ports = Ports {
            http: base,
            ..nodes[0]
        };
        assert_eq!(ports.in_use(), Some(("data", base)));
    }
}
