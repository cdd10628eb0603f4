//! Which nodes own a key, by the config that a node goes by.

use std::collections::BTreeMap;
use std::sync::Arc;

use torc_protocol::message::RecordKey;
use torc_protocol::shard_io::View;
use torc_ring::{Bucket, Config, ConfigVersion, NodeId, PartitionId};

use crate::check::order::SetId;
use crate::world::BUCKET;

/// A config, its ring, and since when each partition has had its present owners.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) view: Arc<View>,
    current_since: Vec<ConfigVersion>,
    target_since: Vec<ConfigVersion>,
}

/// One set of owners of a key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Set<'a> {
    pub(crate) id: SetId,
    pub(crate) nodes: &'a [NodeId],
}

impl Placed {
    /// `before` is the version before, when it is known.
    fn new(config: Config, before: Option<&Self>) -> Self {
        let version = config.version;
        let view = View::new(config);
        let bucket = bucket_of(&view.config).cloned();
        let owners_by = |view: &View, part| {
            let owners = bucket_of(&view.config).map(|b| view.ring.owners_of(b, part));
            owners.map_or((Vec::new(), Vec::new()), |owners| {
                let target = owners.target.unwrap_or_default();
                (owners.current.to_vec(), target.to_vec())
            })
        };
        let partitions = if bucket.is_some() {
            view.ring.partitions()
        } else {
            0
        };
        let partitions = (0..partitions).map(|at| PartitionId(at as u16));
        let since = |now: &[NodeId], earlier: &[NodeId], at: ConfigVersion| {
            let same = now.len() == earlier.len() && now.iter().all(|node| earlier.contains(node));
            if same { at } else { version }
        };
        let mut current_since = Vec::new();
        let mut target_since = Vec::new();
        for part in partitions {
            let (current, target) = owners_by(&view, part);
            let earlier = before.map(|placed| (placed, owners_by(&placed.view, part)));
            let at = usize::from(part.0);
            let (mut first, mut second) = (version, version);
            if let Some((placed, (before_current, before_target))) = &earlier {
                first = since(&current, before_current, placed.current_since[at]);
                second = since(&target, before_target, placed.target_since[at]);
            }
            current_since.push(first);
            target_since.push(second);
        }
        Self {
            view,
            current_since,
            target_since,
        }
    }

    /// The owners of a key: those of the current ring and, while the key's partition moves, those of the
    /// target ring.
    pub(crate) fn sets(&self, key: &RecordKey) -> Vec<Set<'_>> {
        let part = key.token.partition(self.view.config.partition_bits);
        let at = usize::from(part.0);
        let Some(bucket) = bucket_of(&self.view.config) else {
            return Vec::new();
        };
        let owners = self.view.ring.owners_of(bucket, part);
        let mut sets = vec![Set {
            id: SetId {
                since: self.current_since[at],
                target: false,
            },
            nodes: owners.current,
        }];
        if let Some(nodes) = owners.target {
            let id = SetId {
                since: self.target_since[at],
                target: true,
            };
            sets.push(Set { id, nodes });
        }
        sets
    }
}

/// The run's bucket in that config.
fn bucket_of(config: &Config) -> Option<&Bucket> {
    config.bucket_by_id(BUCKET)
}

/// All configs that nodes have gone by.
#[derive(Debug, Default)]
pub(crate) struct Places(BTreeMap<ConfigVersion, Arc<Placed>>);

impl Places {
    /// The tables of that version, if any node has gone by them.
    pub(crate) fn at(&self, version: ConfigVersion) -> Option<&Arc<Placed>> {
        self.0.get(&version)
    }

    /// The tables of that config, computed once.
    pub(crate) fn of(&mut self, config: &Config) -> Arc<Placed> {
        if let Some(known) = self.0.get(&config.version)
            && known.view.config == *config
        {
            return Arc::clone(known);
        }
        let before = config.version.0.checked_sub(1).map(ConfigVersion);
        let before = before.and_then(|version| self.0.get(&version));
        let placed = Arc::new(Placed::new(config.clone(), before.map(|b| &**b)));
        // Of two configs with one version, which another checker reports, the first one stays.
        self.0
            .entry(config.version)
            .or_insert_with(|| Arc::clone(&placed));
        placed
    }
}
