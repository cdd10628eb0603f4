//! Free ports on loopback, the usual ones if possible.

use std::io;
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
            (
                "data",
                self.http,
                TcpListener::bind(address(self.http)).is_ok(),
            ),
            (
                "admin",
                self.admin,
                TcpListener::bind(address(self.admin)).is_ok(),
            ),
            (
                "peer",
                self.peer,
                UdpSocket::bind(address(self.peer)).is_ok(),
            ),
        ]
        .into_iter()
        .find(|(.., free)| !free)
        .map(|(what, port, _)| (what, port))
    }
}

/// Ports that are bound, so that nobody else takes them before their node does.
#[derive(Debug)]
pub(crate) struct Held {
    _http: TcpListener,
    _admin: TcpListener,
    _peer: UdpSocket,
}

/// Ports for `count` nodes, from `base` on; ports in use are passed over.
pub(crate) fn choose(base: u16, count: u16) -> anyhow::Result<Vec<(Ports, Held)>> {
    (0..count)
        .map(|_| {
            let (http, held_http) = next(base, TcpListener::bind)?;
            let (admin, held_admin) = next(base.saturating_add(APART), TcpListener::bind)?;
            let (peer, held_peer) = next(base.saturating_sub(APART), UdpSocket::bind)?;
            let held = Held {
                _http: held_http,
                _admin: held_admin,
                _peer: held_peer,
            };
            Ok((Ports { http, admin, peer }, held))
        })
        .collect()
}

fn next<T>(from: u16, bind: fn(SocketAddr) -> io::Result<T>) -> anyhow::Result<(u16, T)> {
    (from..from.saturating_add(APART))
        .find_map(|port| Some((port, bind(address(port)).ok()?)))
        .with_context(|| format!("no port is free from {from} on; name others with --base-port"))
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
        assert!(nodes.iter().all(|(ports, _)| ports.http > base));
        let mut all: Vec<u16> = nodes
            .iter()
            .flat_map(|(ports, _)| [ports.http, ports.admin, ports.peer])
            .collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 12);
        let ports = Ports {
            http: base,
            ..nodes[0].0
        };
        assert_eq!(ports.in_use(), Some(("data", base)));
    }
}
