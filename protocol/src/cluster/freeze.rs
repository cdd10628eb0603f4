//! The freeze of this member's writes for a change of the members, and how it ends.

use std::collections::BTreeSet;
use std::sync::Arc;

use torc_ring::{NodeId, RingVersion};

use super::{After, Cluster, put_number};
use crate::cluster_io::{CheckId, ClusterOutput};
use crate::cluster_message::ClusterMessage;
use crate::store::StateKey;
use crate::time::{Mono, Now, SECOND};

/// A frozen member proposes the thaw itself after this time, in microseconds. Longer than whoever asked
/// for the freeze gives the change, so that it only does so when that node is gone.
const THAW_AFTER: (u64, u64) = (10 * SECOND, 15 * SECOND);

#[derive(Debug, Default)]
pub(super) struct Freeze(Option<Frost>);

#[derive(Debug)]
struct Frost {
    ring: RingVersion,
    step: Step,
    askers: BTreeSet<NodeId>,
    thaw_at: Mono,
}

#[derive(Debug)]
enum Step {
    /// On its way to disk.
    Storing,
    /// The shards are asked to close.
    Closing,
    /// The shell looks for keys.
    Looking(CheckId),
    /// All is known, and stays so.
    Attested(bool),
}

impl Freeze {
    pub(super) fn ring(&self) -> Option<RingVersion> {
        self.0.as_ref().map(|frost| frost.ring)
    }

    pub(super) fn deadline(&self) -> Option<Mono> {
        self.0.as_ref().map(|frost| frost.thaw_at)
    }
}

impl Cluster {
    /// The node had been frozen when it stopped: so it is again, before it serves.
    pub(super) fn resume_freeze(&mut self, ring: RingVersion, now: Now) {
        let thaw_at = self.jitter(now, THAW_AFTER.0, THAW_AFTER.1);
        let askers = BTreeSet::new();
        self.freeze = Freeze(Some(Frost {
            ring,
            step: Step::Closing,
            askers,
            thaw_at,
        }));
        self.out.push_back(ClusterOutput::Freeze(ring));
    }

    pub(super) fn on_freeze(&mut self, from: NodeId, ring: RingVersion, now: Now) {
        let Some(latest) = self.acting() else {
            return;
        };
        let applied = self
            .configs
            .applied_config()
            .map(|config| config.ring_version);
        if !latest.is_current(from) || latest.ring_version != ring || applied != Some(ring) {
            return;
        }
        if let Some(frost) = &mut self.freeze.0 {
            match frost.step {
                Step::Attested(empty) => {
                    self.send(from, ClusterMessage::Attested { ring, empty });
                }
                Step::Storing | Step::Closing | Step::Looking(_) => {
                    frost.askers.insert(from);
                }
            }
            return;
        }
        let thaw_at = self.jitter(now, THAW_AFTER.0, THAW_AFTER.1);
        let askers = BTreeSet::from([from]);
        self.freeze = Freeze(Some(Frost {
            ring,
            step: Step::Storing,
            askers,
            thaw_at,
        }));
        self.commit(
            vec![put_number(StateKey::Frozen, ring.0)],
            After::Frozen(ring),
        );
    }

    pub(super) fn on_freeze_stored(&mut self, ring: RingVersion) {
        if let Some(frost) = self.frost(ring)
            && matches!(frost.step, Step::Storing)
        {
            frost.step = Step::Closing;
            self.out.push_back(ClusterOutput::Freeze(ring));
        }
    }

    /// The freeze could not be stored: whoever asked for it asks again, or gives up.
    pub(super) fn on_freeze_failed(&mut self, ring: RingVersion) {
        if matches!(
            self.frost(ring),
            Some(Frost {
                step: Step::Storing,
                ..
            })
        ) {
            self.freeze = Freeze::default();
        }
    }

    pub(super) fn on_shards_frozen(&mut self, ring: RingVersion) {
        if !matches!(
            self.frost(ring),
            Some(Frost {
                step: Step::Closing,
                ..
            })
        ) {
            return;
        }
        let check = self.new_check();
        if let Some(frost) = self.frost(ring) {
            frost.step = Step::Looking(check);
        }
        self.out.push_back(ClusterOutput::CheckEmpty(check));
    }

    /// Answers whether the check was this file's.
    pub(super) fn on_frozen_empty(&mut self, check: CheckId, empty: bool) -> bool {
        let Some(frost) = &mut self.freeze.0 else {
            return false;
        };
        if !matches!(frost.step, Step::Looking(asked) if asked == check) {
            return false;
        }
        frost.step = Step::Attested(empty);
        let ring = frost.ring;
        for asker in std::mem::take(&mut frost.askers) {
            self.send(asker, ClusterMessage::Attested { ring, empty });
        }
        true
    }

    fn frost(&mut self, ring: RingVersion) -> Option<&mut Frost> {
        self.freeze.0.as_mut().filter(|frost| frost.ring == ring)
    }

    /// A config of that ring version is being applied: all lower freezes are over.
    pub(super) fn thaw_below(&mut self, ring: RingVersion) {
        if self.freeze.ring().is_some_and(|frozen| frozen < ring) {
            self.freeze = Freeze::default();
        }
    }

    /// Ends the freeze of the present ring version by a config with the same members under a new one.
    pub(super) fn propose_thaw(&mut self, now: Now) {
        if let Some(latest) = self.base() {
            self.propose(Arc::new(latest.reissued()), now);
        }
    }

    pub(super) fn tick_freeze(&mut self, now: Now) {
        let Some(ring) = self
            .freeze
            .0
            .as_ref()
            .filter(|f| f.thaw_at <= now.mono)
            .map(|f| f.ring)
        else {
            return;
        };
        let next = self.jitter(now, THAW_AFTER.0, THAW_AFTER.1);
        if let Some(frost) = &mut self.freeze.0 {
            frost.thaw_at = next;
        }
        let still = self
            .configs
            .latest()
            .is_some_and(|config| config.ring_version == ring);
        if still && !self.votes.is_proposing() {
            self.propose_thaw(now);
        }
    }
}
