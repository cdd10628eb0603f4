//! The versions before the one that took this node in: a joiner fetches them too, so that a member that was
//! away can still be told of them when all those that saw them have left.
//!
//! Invariant: what is kept has no gaps; older versions are stored in one batch that ends right before the
//! oldest one kept, and only when each may follow the one before. They are never applied here.

use std::sync::Arc;

use torc_ring::{Config, ConfigVersion, NodeId, change};

use super::configs::HISTORY_MAX;
use super::{After, Cluster};
use crate::cluster_message::{CONFIGS_MAX, ClusterMessage};
use crate::store::{StateKey, Write};
use crate::time::{Mono, Now, SECOND};
use crate::wire::{self, Blob};

/// The next member is asked after this time, in microseconds.
const ASK_EVERY: u64 = SECOND;
/// Members that had nothing older in a row, after which this node is content: nobody else has.
const VAIN_MAX: u32 = 64;

/// What is fetched of the time before this node.
#[derive(Debug)]
pub(super) struct History {
    /// Versions that are asked for at a time; fewer where they do not fit into an answer.
    step: u64,
    ask_at: Option<Mono>,
    vain: u32,
    storing: bool,
}

impl History {
    pub(super) fn new(now: Mono) -> Self {
        Self {
            step: CONFIGS_MAX as u64,
            ask_at: Some(now),
            vain: 0,
            storing: false,
        }
    }

    pub(super) fn deadline(&self) -> Option<Mono> {
        self.ask_at
    }

    pub(super) fn storing_failed(&mut self) {
        self.storing = false;
    }
}

impl Cluster {
    /// Asks some member for what came before the oldest version here, until there is nothing before it.
    pub(super) fn tick_history(&mut self, now: Now) {
        if self.history.ask_at.is_none_or(|at| at > now.mono) {
            return;
        }
        self.history.ask_at = Some(now.mono.plus(ASK_EVERY));
        // Before something is applied, the oldest version is where this node begins.
        let (Some(oldest), true) = (self.configs.oldest(), self.configs.applied().0 > 0) else {
            return;
        };
        let latest = self.configs.latest_version().0;
        let is_all = oldest.0 <= 1 || latest - oldest.0 >= HISTORY_MAX / 2;
        if is_all || self.history.vain >= VAIN_MAX {
            self.history.ask_at = None;
            return;
        }
        if self.history.storing {
            return;
        }
        let members = self.configs.latest().into_iter().flat_map(|c| &c.current);
        let others: Vec<NodeId> = members
            .map(|m| m.id)
            .filter(|id| *id != self.node)
            .collect();
        if others.is_empty() {
            return;
        }
        let pick = self.rng.between(0, others.len() as u64) as usize;
        let after = ConfigVersion(oldest.0.saturating_sub(self.history.step + 1));
        self.history.vain += 1;
        self.send(others[pick], ClusterMessage::Fetch { after: Some(after) });
    }

    /// A peer answers a fetch; the versions before the oldest one here are taken, if they join up with it.
    pub(super) fn take_older(&mut self, theirs: ConfigVersion, configs: &[Blob]) {
        let Some(oldest) = self
            .configs
            .oldest()
            .filter(|_| self.configs.applied().0 > 0)
        else {
            return;
        };
        if self.history.ask_at.is_none() || self.history.storing || theirs >= oldest {
            return;
        }
        let Some(next) = self.configs.at(oldest).cloned() else {
            return;
        };
        let mut older: Vec<Arc<Config>> = Vec::new();
        for blob in configs.iter().take(CONFIGS_MAX) {
            let Ok(config) = wire::decode_config(&blob.0) else {
                return;
            };
            if config.version < oldest {
                older.push(Arc::new(config));
            }
        }
        let chain = older.iter().chain(std::iter::once(&next));
        let chain: Vec<&Arc<Config>> = chain.collect();
        let joins_up = chain
            .windows(2)
            .all(|pair| change::follows(pair[0], pair[1]));
        if older.is_empty() || !joins_up {
            // It was too much for one answer, or too little is kept there.
            let missing = oldest.0 - theirs.0;
            self.history.step = (self.history.step / 2).min(missing).max(1);
            return;
        }
        let mut writes = Vec::with_capacity(older.len());
        // The newest first: whatever part of it a crash may leave joins up with what is there.
        for config in older.iter().rev() {
            let Ok(value) = wire::encode_config(config) else {
                return;
            };
            let key = StateKey::Decided(config.version);
            writes.push(Write::StatePut { key, value });
        }
        self.history.storing = true;
        self.history.vain = 0;
        self.commit(writes, After::Older(older));
    }

    pub(super) fn on_older(&mut self, older: Vec<Arc<Config>>, now: Now) {
        self.history.storing = false;
        self.history.ask_at = Some(now.mono);
        self.configs.keep_older(older);
    }
}
