//! One other node: its queue, the connections with it, and which of them is used for sending.
//!
//! Either side may dial, also again. Both send on the newest connection that the lower node id dialled,
//! or else on the newest one; the others stay open for receiving until they are idle. So no message
//! waits for the decision, and none is lost by it.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use quinn::{Connection, SendStream};
use tokio::sync::{Semaphore, watch};
use torc_ring::NodeId;

use super::error::Reason;
use super::queue::{Bounds, Queue};

/// Messages that travel at a time on streams of their own, and gossip likewise.
pub(super) const BULK_STREAMS_MAX: usize = 4;
/// Connections that one side has dialled and that are open at a time.
const LINKS_MAX: usize = 4;
/// Former processes of a node that are remembered.
const FORMER_MAX: usize = 8;

/// What another node is to this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// A member: linked to for as long as it is one.
    Member {
        /// Its name, to which its certificate is bound.
        name: String,
        /// Where it is reached, `host:port`.
        addr: String,
    },
    /// Known by a connection only; may talk about membership.
    Guest,
    /// Forgotten; its tasks end.
    Retired,
}

/// A connection after both greetings.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: u64,
    pub(super) connection: Connection,
    /// Whether this node dialled.
    pub(super) dialled: bool,
    /// The other side's process.
    pub(super) process: u64,
    /// Name in its certificate.
    pub(super) name: String,
    /// Where others reach it.
    pub(super) advertise: SocketAddr,
    /// The stream of small messages.
    pub(super) out: tokio::sync::Mutex<SendStream>,
    /// When something last came, in milliseconds since the transport started.
    pub(super) active_ms: AtomicU64,
}

impl Link {
    /// Closes the connection and tells the other side why.
    pub(super) fn close(&self, reason: Reason, what: &str) {
        self.connection.close(reason.code(), what.as_bytes());
    }
}

/// Another node.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) node: NodeId,
    pub(super) queue: Queue,
    pub(super) role: watch::Sender<Role>,
    /// The connection to send on.
    pub(super) chosen: watch::Sender<Option<Arc<Link>>>,
    pub(super) bulk: Arc<Semaphore>,
    pub(super) gossip: Arc<Semaphore>,
    member: AtomicBool,
    cut: AtomicBool,
    links: Mutex<Links>,
}

#[derive(Debug, Default)]
struct Links {
    /// In order of arrival; all of the same process.
    all: Vec<Arc<Link>>,
    /// Processes that a later one took over from.
    former: VecDeque<u64>,
    retired: bool,
}

/// Why a link was not added.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotAdded {
    /// The peer was forgotten meanwhile; look it up again.
    Retired,
    /// Another process of this node id is connected, and took over from this one.
    Former,
}

impl Peer {
    pub(super) fn new(node: NodeId, role: Role, bounds: Bounds) -> Self {
        let member = matches!(role, Role::Member { .. });
        Self {
            node,
            queue: Queue::new(bounds),
            role: watch::channel(role).0,
            chosen: watch::channel(None).0,
            bulk: Arc::new(Semaphore::new(BULK_STREAMS_MAX)),
            gossip: Arc::new(Semaphore::new(BULK_STREAMS_MAX)),
            member: AtomicBool::new(member),
            cut: AtomicBool::new(false),
            links: Mutex::default(),
        }
    }

    /// Whether it is a member just now.
    pub(super) fn is_member(&self) -> bool {
        self.member.load(Ordering::Acquire)
    }

    /// Under whom its bytes are counted: any number of nodes may be guests, one after the other.
    pub(super) fn counted(&self) -> Option<NodeId> {
        self.is_member().then_some(self.node)
    }

    /// Whether everything between the two nodes is thrown away: see [`super::Transport::set_cut`].
    pub(super) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    pub(super) fn set_cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Release);
    }

    /// Its name as far as one is known: as a member, or by its certificate.
    pub(super) fn is_called(&self, names: &BTreeSet<String>) -> bool {
        match &*self.role.borrow() {
            Role::Member { name, .. } => names.contains(name),
            Role::Guest | Role::Retired => {
                self.links().iter().any(|link| names.contains(&link.name))
            }
        }
    }

    pub(super) fn set_role(&self, role: Role) {
        self.member
            .store(matches!(role, Role::Member { .. }), Ordering::Release);
        self.role.send_if_modified(|current| {
            let changed = *current != role;
            *current = role;
            changed
        });
    }

    /// Puts a new connection in place.
    pub(super) fn add(&self, own: NodeId, link: &Arc<Link>) -> Result<(), NotAdded> {
        let mut links = self.links.lock();
        if links.retired {
            return Err(NotAdded::Retired);
        }
        let current = links.all.first().map(|link| link.process);
        if current.is_some_and(|current| current != link.process) {
            if links.former.contains(&link.process) {
                return Err(NotAdded::Former);
            }
            links.take_over();
        }
        let mut same = links.all.iter().filter(|old| old.dialled == link.dialled);
        if let (Some(oldest), LINKS_MAX..) = (same.next().cloned(), same.count() + 1) {
            oldest.close(Reason::Replaced, "");
            links.all.retain(|old| old.id != oldest.id);
        }
        links.all.push(link.clone());
        self.choose(own, &links);
        Ok(())
    }

    /// Takes a connection away that has ended. True when it was the last one.
    pub(super) fn remove(&self, own: NodeId, id: u64) -> bool {
        let mut links = self.links.lock();
        links.all.retain(|link| link.id != id);
        self.choose(own, &links);
        links.all.is_empty()
    }

    /// Marks a peer without connections as forgotten; false when it has one again.
    pub(super) fn retire(&self) -> bool {
        let mut links = self.links.lock();
        if !links.all.is_empty() {
            return false;
        }
        links.retired = true;
        drop(links);
        self.set_role(Role::Retired);
        true
    }

    /// All connections.
    pub(super) fn links(&self) -> Vec<Arc<Link>> {
        self.links.lock().all.clone()
    }

    fn choose(&self, own: NodeId, links: &Links) {
        let dialled_by_lower = |link: &&Arc<Link>| link.dialled == (own < self.node);
        let best = links
            .all
            .iter()
            .rev()
            .find(dialled_by_lower)
            .or(links.all.last());
        self.chosen.send_if_modified(|chosen| {
            let changed = chosen.as_ref().map(|link| link.id) != best.map(|link| link.id);
            *chosen = best.cloned();
            changed
        });
    }
}

impl Links {
    /// A new process speaks for the node: what its predecessor left is closed.
    fn take_over(&mut self) {
        for old in self.all.drain(..) {
            if !self.former.contains(&old.process) {
                self.former.push_back(old.process);
            }
            old.close(
                Reason::DuplicateId,
                "a newer process with this node id has connected",
            );
        }
        while self.former.len() > FORMER_MAX {
            self.former.pop_front();
        }
    }
}
