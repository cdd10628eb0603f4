//! Which nodes own a key, by the config that a node goes by.

use std::collections::BTreeMap;
use std::sync::Arc;

use torc_protocol::message::RecordKey;
use torc_protocol::shard_io::View;
use torc_ring::{Config, ConfigVersion, NodeId, PartitionId};

use crate::check::order::SetId;

/// A config, its ring, and since when each partition has had its present owners.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) view: Arc<View>,
    n: u8,
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
    fn new(config: Config, n: u8, before: Option<&Self>) -> Self {
        let version = config.version;
        let view = View::new(config);
        let partitions = (0..view.ring.partitions()).map(|at| PartitionId(at as u16));
        let since = |now: &[NodeId], earlier: &[NodeId], at: ConfigVersion| {
            let same = now.len() == earlier.len() && now.iter().all(|node| earlier.contains(node));
            if same { at } else { version }
        };
        let mut current_since = Vec::new();
        let mut target_since = Vec::new();
        for part in partitions {
            let owners = view.ring.owners(n, part);
            let target = view.ring.target_owners(n, part).unwrap_or(&[]);
            let at = usize::from(part.0);
            current_since.push(before.map_or(version, |placed| {
                let earlier = placed.view.ring.owners(n, part);
                since(owners, earlier, placed.current_since[at])
            }));
            target_since.push(before.map_or(version, |placed| {
                let earlier = placed.view.ring.target_owners(n, part).unwrap_or(&[]);
                since(target, earlier, placed.target_since[at])
            }));
        }
        Self {
            view,
            n,
            current_since,
            target_since,
        }
    }

    /// The owners of a key: those of the current ring and, while the key's partition moves, those of the
    /// target ring.
    pub(crate) fn sets(&self, key: &RecordKey) -> Vec<Set<'_>> {
        let part = key.token.partition(self.view.config.partition_bits);
        let at = usize::from(part.0);
        let mut sets = vec![Set {
            id: SetId {
                since: self.current_since[at],
                target: false,
            },
            nodes: self.view.ring.owners(self.n, part),
        }];
        if self.view.ring.is_moving(self.n, part)
            && let Some(nodes) = self.view.ring.target_owners(self.n, part)
        {
            let id = SetId {
                since: self.target_since[at],
                target: true,
            };
            sets.push(Set { id, nodes });
        }
        sets
    }
}

/// All configs that nodes have gone by.
#[derive(Debug, Default)]
pub(crate) struct Places(BTreeMap<ConfigVersion, Arc<Placed>>);

impl Places {
    /// The tables of that config, computed once.
    pub(crate) fn of(&mut self, config: &Config, n: u8) -> Arc<Placed> {
        if let Some(known) = self.0.get(&config.version)
            && known.view.config == *config
        {
            return Arc::clone(known);
        }
        let before = config.version.0.checked_sub(1).map(ConfigVersion);
        let before = before.and_then(|version| self.0.get(&version));
        let placed = Arc::new(Placed::new(config.clone(), n, before.map(|b| &**b)));
        // Of two configs with one version, which another checker reports, the first one stays.
        self.0
            .entry(config.version)
            .or_insert_with(|| Arc::clone(&placed));
        placed
    }
}
