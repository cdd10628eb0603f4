//! The nodes that a client knows, and which of them answered lately.
//!
//! A node that failed is asked last for a while, twice as long after each further failure; it is never
//! struck off, because the client may be the one that is cut off.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::uri::{Authority, Uri};
use parking_lot::{Mutex, RwLock};

use crate::error::Error;

/// Greatest number of nodes that a client remembers: a cluster's limit, and as many again that have left.
const NODES_MAX: usize = 2_000;
const AVOIDED_FIRST: Duration = Duration::from_millis(500);
const AVOIDED_MAX: Duration = Duration::from_secs(16);

/// One node's data listener.
#[derive(Debug)]
pub(crate) struct Node {
    authority: Authority,
    health: Mutex<Health>,
}

#[derive(Debug, Default)]
struct Health {
    failures: u32,
    avoid_until: Option<Instant>,
}

impl Node {
    pub(crate) fn new(address: &str) -> Result<Self, Error> {
        Ok(Self {
            authority: parse(address)?,
            health: Mutex::default(),
        })
    }

    pub(crate) fn authority(&self) -> &str {
        self.authority.as_str()
    }

    pub(crate) fn on_answer(&self) {
        *self.health.lock() = Health::default();
    }

    pub(crate) fn on_failure(&self, now: Instant) {
        let mut health = self.health.lock();
        let doubled = AVOIDED_FIRST * (1 << health.failures.min(5));
        health.failures = health.failures.saturating_add(1);
        health.avoid_until = Some(now + doubled.min(AVOIDED_MAX));
    }

    fn is_avoided(&self, now: Instant) -> bool {
        self.health
            .lock()
            .avoid_until
            .is_some_and(|until| now < until)
    }
}

/// `host:port` out of that, or out of `http://host:port`.
fn parse(address: &str) -> Result<Authority, Error> {
    let bad = || Error::BadNode {
        given: address.chars().take(100).collect(),
    };
    let bare = match address.parse::<Uri>() {
        Ok(uri)
            if uri.scheme_str() == Some("http")
                && matches!(uri.path(), "" | "/")
                && uri.query().is_none() =>
        {
            uri.authority().cloned().ok_or_else(bad)?
        }
        Ok(uri) if uri.scheme().is_some() => return Err(bad()),
        _ => address.parse::<Authority>().map_err(|_| bad())?,
    };
    if bare.port_u16().is_none_or(|port| port == 0)
        || bare.host().is_empty()
        || bare.as_str().contains('@')
    {
        return Err(bad());
    }
    Ok(bare)
}

/// All nodes that a client knows: those it was given, and those that the ring names.
#[derive(Debug)]
pub(crate) struct Nodes {
    given: Vec<Arc<Node>>,
    known: RwLock<BTreeMap<String, Arc<Node>>>,
    turn: AtomicUsize,
}

impl Nodes {
    pub(crate) fn new(addresses: &[String]) -> Result<Self, Error> {
        let mut known = BTreeMap::new();
        let mut given = Vec::new();
        for address in addresses {
            let node = Arc::new(Node::new(address)?);
            if known
                .insert(node.authority().to_owned(), Arc::clone(&node))
                .is_none()
            {
                given.push(node);
            }
        }
        if given.is_empty() {
            return Err(Error::NoNodes);
        }
        // Clients that start at the same time do not all begin with the first node.
        let turn = AtomicUsize::new(rand::random_range(0..given.len()));
        Ok(Self {
            given,
            known: RwLock::new(known),
            turn,
        })
    }

    /// The node at an address that the ring names; `None` for what is no address, and beyond the bound.
    fn at(&self, address: &str) -> Option<Arc<Node>> {
        if let Some(node) = self.known.read().get(address) {
            return Some(Arc::clone(node));
        }
        let node = Arc::new(Node::new(address).ok()?);
        let mut known = self.known.write();
        if known.len() >= NODES_MAX {
            return None;
        }
        let node = known.entry(node.authority().to_owned()).or_insert(node);
        Some(Arc::clone(node))
    }

    /// Whom to ask, best first, at most `limit`: `owners`, then the given nodes in turn; those that failed
    /// lately come last.
    pub(crate) fn candidates<'a>(
        &self,
        owners: impl IntoIterator<Item = &'a str>,
        limit: usize,
    ) -> Vec<Arc<Node>> {
        let now = Instant::now();
        let mut nodes: Vec<Arc<Node>> = owners
            .into_iter()
            .filter_map(|address| self.at(address))
            .collect();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.given.len();
        for node in self.given[turn..].iter().chain(&self.given[..turn]) {
            if !nodes
                .iter()
                .any(|other| other.authority() == node.authority())
            {
                nodes.push(Arc::clone(node));
            }
        }
        nodes.sort_by_key(|node| node.is_avoided(now));
        nodes.truncate(limit.max(1));
        nodes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(nodes: &[Arc<Node>]) -> Vec<&str> {
        nodes.iter().map(|node| node.authority()).collect()
    }

    #[test]
    fn addresses_are_read_with_and_without_scheme() {
        for good in [
            "127.0.0.1:80",
            "http://127.0.0.1:80",
            "http://node-1:80/",
            "[::1]:80",
        ] {
            Node::new(good).expect(good);
        }
        for bad in [
            "",
            "node-1",
            "https://a:1",
            "http://a:1/x",
            "a:0",
            "http://u@a:1",
            "a:b",
            "a b:1",
        ] {
            assert!(Node::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn owners_come_first_and_what_failed_comes_last() {
        let given = ["a:1", "b:1", "a:1"].map(str::to_owned);
        let nodes = Nodes::new(&given).expect("nodes");
        assert_eq!(nodes.given.len(), 2);
        let order = nodes.candidates(["c:1", "b:1"], 4);
        assert_eq!(names(&order), ["c:1", "b:1", "a:1"]);
        order[0].on_failure(Instant::now());
        assert_eq!(
            names(&nodes.candidates(["c:1", "b:1"], 4)),
            ["b:1", "a:1", "c:1"]
        );
        order[0].on_answer();
        assert_eq!(names(&nodes.candidates(["c:1", "b:1"], 1)), ["c:1"]);
    }

    #[test]
    fn given_nodes_take_turns() {
        let nodes = Nodes::new(&["a:1", "b:1"].map(str::to_owned)).expect("nodes");
        let first = nodes.candidates([], 1);
        let second = nodes.candidates([], 1);
        assert_ne!(names(&first), names(&second));
        assert!(matches!(Nodes::new(&[]), Err(Error::NoNodes)));
    }
}
