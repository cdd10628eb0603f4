//! Decided configs: kept, fetched when missing, stored and applied in order.

use std::collections::BTreeMap;
use std::sync::Arc;

use torc_ring::{Config, ConfigVersion, NodeId, RingVersion, change};

use super::{After, Cluster, Phase, put_number};
use crate::cluster_io::{ClusterEvent, ClusterOutput, LEFTOVERS_MAX};
use crate::cluster_message::{CONFIGS_MAX, ClusterMessage};
use crate::mutant::Mutant;
use crate::store::{Leftover, StateKey, StoreError, Write};
use crate::time::{Mono, Now, SECOND};
use crate::wire::{self, Blob};

/// Decided versions that a node keeps. One that was away for longer can only come back as a new node.
pub(super) const HISTORY_MAX: u64 = 1_000;
/// Nodes that are told when a version is stored; further ones learn it from the next ping.
const WAITERS_MAX: usize = 64;
/// A fetch that is not answered for so long goes to another peer, in microseconds.
const FETCH_WAIT: u64 = SECOND;
/// A cleanup that failed is tried again after this time, in microseconds.
const CLEAN_AGAIN: u64 = SECOND;
/// Bytes of configs in one answer to a fetch; one config is sent however long it is.
const FETCH_BYTES_MAX: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Configs {
    kept: BTreeMap<ConfigVersion, Arc<Config>>,
    applied: ConfigVersion,
    applying: Applying,
    /// A decided config is on its way to disk.
    storing: bool,
    /// Decided configs that wait to be stored, at most [`CONFIGS_MAX`] ahead of the newest.
    incoming: BTreeMap<ConfigVersion, Arc<Config>>,
    waiters: Vec<(NodeId, ConfigVersion)>,
    /// Somebody who is no known member, or who told a shard, knows this version.
    hint: Option<(NodeId, ConfigVersion)>,
    /// A fetch is under way, until then.
    fetching: Option<Mono>,
    fetch_due: bool,
}

#[derive(Debug)]
enum Applying {
    Idle,
    /// The shards finish what they took under the older ring version.
    Draining(Arc<Config>),
    /// What this node does not own any more leaves the disk.
    Cleaning(Arc<Config>),
    Storing,
    CleanAt(Mono, Arc<Config>),
    RetryAt(Mono, Arc<Config>),
}

impl Configs {
    pub(super) fn new(decided: Vec<Arc<Config>>, applied: ConfigVersion) -> Self {
        Self {
            kept: decided
                .into_iter()
                .map(|config| (config.version, config))
                .collect(),
            applied,
            applying: Applying::Idle,
            storing: false,
            incoming: BTreeMap::new(),
            waiters: Vec::new(),
            hint: None,
            fetching: None,
            fetch_due: false,
        }
    }

    pub(super) fn latest(&self) -> Option<&Arc<Config>> {
        self.kept.values().next_back()
    }

    /// The oldest version that is kept.
    pub(super) fn oldest(&self) -> Option<ConfigVersion> {
        self.kept.keys().next().copied()
    }

    /// Versions right before the oldest one.
    pub(super) fn keep_older(&mut self, older: Vec<Arc<Config>>) {
        let older = older.into_iter().map(|config| (config.version, config));
        self.kept.extend(older);
    }

    pub(super) fn latest_version(&self) -> ConfigVersion {
        self.latest()
            .map_or(ConfigVersion(0), |config| config.version)
    }

    pub(super) fn applied(&self) -> ConfigVersion {
        self.applied
    }

    pub(super) fn applied_config(&self) -> Option<&Arc<Config>> {
        self.kept.get(&self.applied)
    }

    /// All decided configs that are kept, in order.
    pub(super) fn kept(&self) -> impl Iterator<Item = &Arc<Config>> {
        self.kept.values()
    }

    pub(super) fn at(&self, version: ConfigVersion) -> Option<&Arc<Config>> {
        self.kept.get(&version)
    }

    /// Whether the newest config is applied and no other one is known of.
    pub(super) fn is_settled(&self) -> bool {
        self.applied == self.latest_version() && !self.storing && self.incoming.is_empty()
    }

    /// What came meanwhile is fetched again: it would wait here for somebody to send more, and keep this node
    /// from asking.
    pub(super) fn storing_failed(&mut self) {
        self.storing = false;
        self.incoming.clear();
        self.fetch_due = true;
    }

    pub(super) fn retry_applied(&mut self, config: Arc<Config>, at: Mono) {
        self.applying = Applying::RetryAt(at, config);
    }

    pub(super) fn deadline(&self) -> Option<Mono> {
        let retry = match &self.applying {
            Applying::RetryAt(at, _) | Applying::CleanAt(at, _) => Some(*at),
            Applying::Idle | Applying::Draining(_) | Applying::Cleaning(_) | Applying::Storing => {
                None
            }
        };
        [retry, self.fetching].into_iter().flatten().min()
    }
}

impl Cluster {
    /// Stores the first config that this node has: bootstrapped, or the one that took it in.
    pub(super) fn store_base(&mut self, config: Arc<Config>) {
        if self.configs.storing {
            return;
        }
        let Ok(value) = wire::encode_config(&config) else {
            return;
        };
        self.configs.storing = true;
        let put = Write::StatePut {
            key: StateKey::Decided(config.version),
            value,
        };
        self.commit(vec![put], After::Base(config));
    }

    pub(super) fn on_base(&mut self, config: &Arc<Config>, now: Now) {
        self.configs.storing = false;
        self.configs.kept.insert(config.version, Arc::clone(config));
        self.sync_peers();
        self.drive_decided(config, false, now);
        self.begin_start_check(now);
        self.apply_next();
    }

    /// Somebody knows of that version.
    pub(super) fn news(&mut self, peer: NodeId, version: ConfigVersion) {
        if version <= self.configs.latest_version() || self.configs.latest().is_none() {
            return;
        }
        if self.configs.hint.is_none_or(|(_, known)| version > known) {
            self.configs.hint = Some((peer, version));
        }
        self.configs.fetch_due = true;
    }

    pub(super) fn on_fetch(&mut self, from: NodeId, after: Option<ConfigVersion>) {
        let kept = &self.configs.kept;
        let oldest = kept.keys().next().copied().unwrap_or(ConfigVersion(0));
        let latest = self.configs.latest_version();
        let first = after.map_or(latest, |version| ConfigVersion(version.0.saturating_add(1)));
        let mut configs = Vec::new();
        let mut bytes = 0;
        // Without the versions right after `after` the others are of no use to the asker.
        let wanted = kept
            .range(first..)
            .take(CONFIGS_MAX)
            .filter(|_| first >= oldest);
        for (_, config) in wanted {
            let Ok(encoded) = wire::encode_config(config) else {
                break;
            };
            bytes += encoded.len();
            if !configs.is_empty() && bytes > FETCH_BYTES_MAX {
                break;
            }
            configs.push(Blob(encoded));
        }
        self.send(
            from,
            ClusterMessage::Configs {
                oldest,
                latest,
                configs,
            },
        );
    }

    pub(super) fn on_configs(
        &mut self,
        from: NodeId,
        (oldest, latest): (ConfigVersion, ConfigVersion),
        configs: &[Blob],
        now: Now,
    ) {
        if matches!(self.phase, Phase::Joining(_)) {
            self.on_fetched_by_joiner(from, configs.last(), now);
            return;
        }
        let have = self.configs.latest_version();
        self.configs.fetching = None;
        self.take_older(oldest, configs);
        if have.0 > 0 && oldest.0 > have.0 + 1 {
            self.event(ClusterEvent::FarBehind {
                peer: from,
                have,
                oldest,
            });
            self.configs.hint = None;
            return;
        }
        for blob in configs.iter().take(CONFIGS_MAX) {
            self.take_decided(from, &blob.0);
        }
        if latest > have && !configs.is_empty() {
            self.news(from, latest);
        }
    }

    pub(super) fn on_learn(&mut self, from: NodeId, bytes: &[u8]) {
        if matches!(self.phase, Phase::Joining(_)) {
            match wire::decode_config(bytes) {
                Ok(config) => self.adopt_if_member(Arc::new(config)),
                Err(_) => self.event(ClusterEvent::BadConfig { peer: from }),
            }
            return;
        }
        let Some(version) = self.take_decided(from, bytes) else {
            return;
        };
        if version <= self.configs.latest_version() {
            let version = self.configs.latest_version();
            self.send(from, ClusterMessage::Learned { version });
        } else if self.configs.waiters.len() < WAITERS_MAX {
            self.configs.waiters.push((from, version));
        }
    }

    /// Takes in a config that a peer says is decided; answers its version.
    fn take_decided(&mut self, from: NodeId, bytes: &[u8]) -> Option<ConfigVersion> {
        let latest = Arc::clone(self.configs.latest()?);
        let config = match wire::decode_config(bytes) {
            Ok(config) if config.cluster == latest.cluster => config,
            Ok(_) | Err(_) => {
                self.event(ClusterEvent::BadConfig { peer: from });
                return None;
            }
        };
        let version = config.version;
        if version > latest.version {
            if version.0 <= latest.version.0 + CONFIGS_MAX as u64 {
                self.configs
                    .incoming
                    .entry(version)
                    .or_insert_with(|| Arc::new(config));
            }
            if version.0 > latest.version.0 + 1 {
                self.news(from, version);
            }
            self.store_next(from);
        }
        Some(version)
    }

    fn store_next(&mut self, from: NodeId) {
        let Some(latest) = self.configs.latest().cloned() else {
            return;
        };
        if self.configs.storing {
            return;
        }
        self.configs.incoming = self
            .configs
            .incoming
            .split_off(&ConfigVersion(latest.version.0 + 1));
        let Some(next) = self
            .configs
            .incoming
            .remove(&ConfigVersion(latest.version.0 + 1))
        else {
            return;
        };
        let encoded = wire::encode_config(&next)
            .ok()
            .filter(|_| change::follows(&latest, &next));
        let Some(value) = encoded else {
            self.event(ClusterEvent::BadConfig { peer: from });
            return;
        };
        self.configs.storing = true;
        let version = next.version;
        let mut writes = vec![
            Write::StatePut {
                key: StateKey::Decided(version),
                value,
            },
            // What was voted is of no use once it is known what was decided. (The version before: a vote
            // may have been on its way to disk when its own deletion was.)
            Write::StateDelete {
                key: StateKey::Acceptor(version),
            },
            Write::StateDelete {
                key: StateKey::Acceptor(latest.version),
            },
        ];
        if let Some(old) = version.0.checked_sub(HISTORY_MAX)
            && ConfigVersion(old) < self.configs.applied
        {
            writes.push(Write::StateDelete {
                key: StateKey::Decided(ConfigVersion(old)),
            });
        }
        self.commit(writes, After::Decided(next));
    }

    pub(super) fn on_decided(&mut self, config: &Arc<Config>, now: Now) {
        let version = config.version;
        self.configs.storing = false;
        if let Some(old) = version.0.checked_sub(HISTORY_MAX)
            && ConfigVersion(old) < self.configs.applied
        {
            self.configs.kept.remove(&ConfigVersion(old));
        }
        self.configs.kept.insert(version, Arc::clone(config));
        if self.configs.hint.is_some_and(|(_, known)| known <= version) {
            self.configs.hint = None;
        }
        self.configs.fetch_due = true;
        let waiters = std::mem::take(&mut self.configs.waiters);
        for (peer, wanted) in waiters {
            if wanted <= version {
                self.send(peer, ClusterMessage::Learned { version });
            } else {
                self.configs.waiters.push((peer, wanted));
            }
        }
        self.sync_peers();
        let led = self.admin.leads(config) || self.changes.leads(config);
        self.drive_decided(config, led, now);
        self.votes_decided(version);
        self.change_decided(config);
        self.admin_decided(config);
        self.store_next(self.node);
        self.apply_next();
    }

    /// Hands the version after the applied one to the shell.
    pub(super) fn apply_next(&mut self) {
        if !matches!(self.configs.applying, Applying::Idle) {
            return;
        }
        let applied = self.configs.applied;
        let next = match applied.0 {
            _ if self.has(Mutant::VersionSkipped) => {
                let newest = self.configs.latest();
                newest.filter(|config| config.version > applied)
            }
            0 => self.configs.kept.values().next(),
            _ => self.configs.kept.get(&ConfigVersion(applied.0 + 1)),
        };
        let Some(next) = next.cloned() else {
            return;
        };
        let before = self
            .configs
            .applied_config()
            .map(|config| config.ring_version);
        self.out.push_back(ClusterOutput::Apply(Arc::clone(&next)));
        if before == Some(next.ring_version) || self.has(Mutant::AppliedUndrained) {
            self.clean(next);
            return;
        }
        self.configs.applying = Applying::Draining(next);
    }

    pub(super) fn on_drained(&mut self, ring: RingVersion) {
        match std::mem::replace(&mut self.configs.applying, Applying::Idle) {
            Applying::Draining(config) if config.ring_version <= ring => self.clean(config),
            other => self.configs.applying = other,
        }
    }

    /// Has everything dropped that this node does not own by `config`: what stayed behind would come back
    /// when the node owns it again. A node's disk is compared with the config, not with the one before, so
    /// that a node that was down meanwhile leaves nothing either.
    fn clean(&mut self, config: Arc<Config>) {
        if self.has(Mutant::LeftoversKept) {
            self.store_applied(config);
            return;
        }
        let mut kept = Arc::clone(&config);
        if self.has(Mutant::CleanedEarly)
            && let Some(next) = config.switched()
        {
            kept = Arc::new(next);
        }
        self.out.push_back(ClusterOutput::FindLeftovers(kept));
        self.configs.applying = Applying::Cleaning(config);
    }

    pub(super) fn on_leftovers(
        &mut self,
        version: ConfigVersion,
        found: Result<Vec<Leftover>, StoreError>,
        now: Now,
    ) {
        let early = self.has(Mutant::CleanedEarly);
        let config = match std::mem::replace(&mut self.configs.applying, Applying::Idle) {
            Applying::Cleaning(config) if config.version == version || early => config,
            other => {
                self.configs.applying = other;
                return;
            }
        };
        match found {
            Ok(found) if found.is_empty() => self.store_applied(config),
            Ok(found) => {
                let more = found.len() >= LEFTOVERS_MAX;
                let drops = found.into_iter().map(Write::Drop).collect();
                self.configs.applying = Applying::Storing;
                self.commit(drops, After::Cleaned(config, more));
            }
            Err(error) => {
                self.event(ClusterEvent::StoreFailed { error });
                self.clean_later(config, now);
            }
        }
    }

    pub(super) fn clean_later(&mut self, config: Arc<Config>, now: Now) {
        self.configs.applying = Applying::CleanAt(now.mono.plus(CLEAN_AGAIN), config);
    }

    pub(super) fn on_cleaned(&mut self, config: Arc<Config>, more: bool) {
        if more {
            self.clean(config);
        } else {
            self.store_applied(config);
        }
    }

    fn store_applied(&mut self, config: Arc<Config>) {
        self.configs.applying = Applying::Storing;
        let mut writes = vec![put_number(StateKey::Applied, config.version.0)];
        for peer in self.peers.take_forgotten() {
            writes.push(Write::StateDelete {
                key: StateKey::PeerBound(peer),
            });
        }
        self.commit(writes, After::Applied(config));
    }

    pub(super) fn on_applied(&mut self, config: &Arc<Config>, now: Now) {
        self.configs.applied = config.version;
        self.configs.applying = Applying::Idle;
        self.event(ClusterEvent::Applied {
            version: config.version,
            ring: config.ring_version,
            members: config.current.len(),
        });
        self.note_removal(now);
        self.recovery_applied(config);
        self.serve_if_ready(now);
        self.let_shards_serve();
        self.apply_next();
    }

    pub(super) fn tick_configs(&mut self, now: Now) {
        if matches!(&self.configs.applying, Applying::RetryAt(at, _) if *at <= now.mono)
            && let Applying::RetryAt(_, config) =
                std::mem::replace(&mut self.configs.applying, Applying::Idle)
        {
            self.store_applied(config);
        }
        if matches!(&self.configs.applying, Applying::CleanAt(at, _) if *at <= now.mono)
            && let Applying::CleanAt(_, config) =
                std::mem::replace(&mut self.configs.applying, Applying::Idle)
        {
            self.clean(config);
        }
        if self.configs.fetching.is_some_and(|until| until <= now.mono) {
            self.configs.fetching = None;
            self.configs.hint = None;
            self.configs.fetch_due = true;
        }
        let have = self.configs.latest_version();
        if !self.configs.fetch_due || self.configs.fetching.is_some() || have.0 == 0 {
            return;
        }
        self.configs.fetch_due = false;
        let busy = self.configs.storing
            || self
                .configs
                .incoming
                .contains_key(&ConfigVersion(have.0 + 1));
        if busy {
            return;
        }
        let pick = self.rng.next_u64();
        let source = self.configs.hint.map(|(peer, _)| peer);
        if let Some(peer) = source.or_else(|| self.peers.ahead_of(have, pick)) {
            self.configs.fetching = Some(now.mono.plus(FETCH_WAIT));
            self.send(peer, ClusterMessage::Fetch { after: Some(have) });
        }
    }
}
