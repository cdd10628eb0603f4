//! What comes to disks about floors: what must hold of it, and what goes wrong just then.

use std::collections::BTreeMap;

use torc_protocol::floor::Mark;
use torc_protocol::floor_message::{FloorAnswer, FloorAsk, FloorBody};
use torc_protocol::hlc::Hlc;
use torc_protocol::message::{PeerBody, PeerMessage, RecordKey, RequestKind};
use torc_protocol::record::Record;
use torc_protocol::store::{StateKey, Write};
use torc_protocol::time::MS;
use torc_ring::{Config, ConfigVersion, NodeId, PartitionId, RingVersion};

use crate::check::floors;
use crate::moves::Act;
use crate::world::{BUCKET, Ev, Mend, Place, World, number_of_bytes};

/// What a mark says that the one before it on that disk did not.
#[derive(Clone, Copy, Debug)]
enum News {
    None,
    Closed,
    Raised,
}

impl World {
    /// A mark is on a disk. The first owner that raises its floor shows what all owners have by then.
    pub(crate) fn note_mark(&mut self, node: usize, write: &Write) {
        let Write::StatePut {
            key: StateKey::Floor(bucket, partition),
            value,
        } = write
        else {
            return;
        };
        self.crash_at_floor(node);
        if *bucket == BUCKET {
            let mark = Mark::decode(value).unwrap_or_default();
            match self.mark_on_disk(node, *partition, mark) {
                News::None => {}
                News::Closed => self.aim_at_mark(node, self.faults.halfway),
                News::Raised => self.aim_at_mark(node, 3 * self.faults.halfway),
            }
        }
    }

    /// What a node finds as it starts: a crash may have come between the disk and the news of it.
    pub(crate) fn note_marks_found(&mut self, node: usize) {
        let found: Vec<(PartitionId, Mark)> = self.nodes[node]
            .disk
            .visible
            .floors()
            .filter(|(bucket, ..)| *bucket == BUCKET)
            .map(|(_, partition, mark)| (partition, Mark::decode(mark).unwrap_or_default()))
            .collect();
        for (partition, mark) in found {
            self.mark_on_disk(node, partition, mark);
        }
    }

    fn mark_on_disk(&mut self, node: usize, partition: PartitionId, mark: Mark) -> News {
        let place = (self.nodes[node].member.id, partition.0);
        let version = self.version_at(node, partition);
        let before = self.marks.of(place);
        // It may have been on its way since the config before.
        let since = ConfigVersion(before.map_or(0, |(_, since)| since.saturating_sub(2)));
        // Where records may be gone, so is what the floor said of them.
        let lost = self.nodes[node].disk.lost;
        let let_go = lost || self.has_let_go(node, partition, since);
        let risen = self.marks.stored(place, (mark, version), let_go);
        let before = before.unwrap_or_default().0;
        match risen {
            Ok(true) => {
                self.floor_on_disk(node, partition, mark.floor);
                News::Raised
            }
            Ok(false) if mark.close > before.close => News::Closed,
            Ok(false) => News::None,
            Err(violation) => {
                self.fail(violation);
                News::None
            }
        }
    }

    /// The config version that the shard of that partition goes by; 0 while there is none.
    fn version_at(&self, node: usize, partition: PartitionId) -> u64 {
        let slots = &self.nodes[node].slots;
        let slot = slots.get(usize::from(partition.0) % slots.len().max(1));
        let placed = slot.and_then(|slot| slot.placed.as_ref());
        placed.map_or(0, |placed| placed.view.config.version.0)
    }

    /// Whether a node knows a config after that version by which it does not own the partition.
    pub(crate) fn has_let_go(
        &self,
        node: usize,
        partition: PartitionId,
        since: ConfigVersion,
    ) -> bool {
        let (id, disk) = (self.nodes[node].member.id, &self.nodes[node].disk);
        let mut later = (since.0 + 1..=disk.visible.decided()).map(ConfigVersion);
        later.any(|version| {
            let placed = self.places.at(version);
            placed.is_some_and(|placed| !placed.view.keeps(id, BUCKET, partition))
        })
    }

    /// A node has a higher floor than before: what it holds is whole up to there, and so is what those hold that
    /// have such a floor, too.
    fn floor_on_disk(&mut self, node: usize, partition: PartitionId, floor: Hlc) {
        let first = self.deleted.raised(partition.0, floor);
        for (key, record) in self.records_of(node, partition) {
            let (number, version) = (number_of_bytes(&key.key), record.version());
            if record.dead_at().is_none_or(|at| at > floor) {
                self.check_alive(node, &key, floor);
                continue;
            }
            self.deleted.bury(number, version);
            if first {
                self.count("rare: tombstone below the floor");
                self.everywhere(node, &key, version);
            }
            for other in 0..self.nodes.len() {
                let theirs = self.nodes[other].disk.visible.floor(BUCKET, partition);
                self.check_alive(other, &key, theirs);
            }
        }
        if first && self.nodes[node].is_up() {
            self.check_raised(node, partition, floor);
        }
    }

    fn records_of(&self, node: usize, partition: PartitionId) -> Vec<(RecordKey, Record)> {
        let bits = self.plan.bits;
        let records = self.nodes[node].disk.visible.records.iter();
        records
            .filter(|(key, _)| key.bucket == BUCKET && key.token.partition(bits) == partition)
            .map(|(key, record)| (key.clone(), record.clone()))
            .collect()
    }

    /// What a node holds of a key was not deleted as far as its floor goes.
    fn check_alive(&mut self, node: usize, key: &RecordKey, floor: Hlc) {
        let disk = &self.nodes[node].disk;
        let Some(record) = disk.visible.records.get(key).filter(|_| !disk.lost) else {
            return;
        };
        let place = (number_of_bytes(&key.key), self.nodes[node].member.id);
        let alive = self.deleted.holds(place, record.version(), floor);
        self.check(alive);
    }

    /// The first owner has raised its floor: the others have closed, and all of them hold the same up to there.
    fn check_raised(&mut self, node: usize, partition: PartitionId, floor: Hlc) {
        let version = ConfigVersion(self.version_at(node, partition));
        let Some(placed) = self.places.at(version) else {
            return;
        };
        let Some(bucket) = placed.view.config.bucket_by_id(BUCKET) else {
            return;
        };
        let owners = placed.view.ring.owners_of(bucket, partition);
        let whole = |at: usize| self.has_its_data(at) && !self.nodes[at].disk.lost;
        if owners.target.is_some() || !whole(node) {
            return;
        }
        let since = ConfigVersion(version.0.saturating_sub(1));
        let others: Vec<usize> = owners
            .current
            .iter()
            .filter_map(|&id| self.index_of(id))
            .filter(|&at| at != node && whole(at))
            .filter(|&at| !self.has_let_go(at, partition, since))
            .collect();
        for other in others {
            let owner = (self.nodes[other].member.id, partition.0);
            let close = self.nodes[other].disk.visible.close(BUCKET, partition);
            let closed = floors::closed(owner, floor, close);
            self.check(closed);
            if !self.plan.forgets() {
                self.check_compared((node, other), partition, floor);
                self.check_compared((other, node), partition, floor);
            }
        }
    }

    /// What one owner holds up to a floor, the other holds, too.
    fn check_compared(&mut self, (one, other): (usize, usize), partition: PartitionId, floor: Hlc) {
        let id = self.nodes[other].member.id;
        for (key, record) in self.records_of(one, partition) {
            let must = record.version();
            if must.hlc > floor || self.is_collected(other, &key, must) {
                continue;
            }
            let has = self.nodes[other].disk.visible.records.get(&key);
            let has = has.map(Record::version);
            let equal = floors::compared((id, number_of_bytes(&key.key)), must, has);
            self.check(equal);
        }
    }

    // ---- ring changes and stand-ins

    /// How far the present owners of each moving partition have closed it: so many of them that every majority
    /// knows.
    pub(crate) fn closes_of(&mut self, joint: &Config) -> BTreeMap<u16, Hlc> {
        let placed = self.placed(joint);
        let Some(bucket) = joint.bucket_by_id(BUCKET) else {
            return BTreeMap::new();
        };
        let mut all = BTreeMap::new();
        for index in 0..placed.view.ring.partitions() {
            let partition = PartitionId(index as u16);
            let owners = placed.view.ring.owners_of(bucket, partition);
            if owners.target.is_none() {
                continue;
            }
            let close = |id: &NodeId| {
                let disk = self.index_of(*id).map(|at| &self.nodes[at].disk.visible);
                disk.map_or(Hlc(0), |disk| disk.close(BUCKET, partition))
            };
            let mut closes: Vec<Hlc> = owners.current.iter().map(close).collect();
            closes.sort_unstable();
            // Every majority has one of those from the middle of the order on.
            let least = closes.get(owners.current.len() / 2);
            all.insert(partition.0, least.copied().unwrap_or_default());
        }
        all
    }

    /// A shard says that all it gains in a ring change is there: the closes, too.
    pub(crate) fn check_inherited(&mut self, at: Place, ring: RingVersion) {
        let Some(moving) = self.moving.as_ref().filter(|moving| moving.ring == ring) else {
            return;
        };
        let Some(placed) = self.places.at(moving.version) else {
            return;
        };
        let Some(bucket) = placed.view.config.bucket_by_id(BUCKET) else {
            return;
        };
        let this = &self.nodes[at.node];
        let (id, shards) = (this.member.id, this.slots.len().max(1));
        let gains = |partition: PartitionId| {
            let owners = placed.view.ring.owners_of(bucket, partition);
            let target = owners.target.is_some_and(|target| target.contains(&id));
            target && !owners.current.contains(&id)
        };
        let inherited = moving
            .closes
            .iter()
            .map(|(&partition, &must)| (PartitionId(partition), must))
            .filter(|(partition, _)| usize::from(partition.0) % shards == usize::from(at.shard))
            .filter(|(partition, _)| gains(*partition))
            .try_for_each(|(partition, must)| {
                let close = this.disk.visible.close(BUCKET, partition);
                floors::inherited((id, partition.0), must, close)
            });
        self.check(inherited);
    }

    /// A node is about to keep a hint: when it counts, the node has promised the floors that others have.
    pub(crate) fn check_stand_in(&mut self, node: usize, write: &Write) {
        let Write::HintPut { hint, .. } = write else {
            return;
        };
        if !hint.counted || hint.key.bucket != BUCKET {
            return;
        }
        let partition = hint.key.token.partition(self.plan.bits);
        let place = (self.nodes[node].member.id, partition.0);
        let promise = self.nodes[node].disk.visible.promise(BUCKET, partition);
        let floor = self.deleted.floor(partition.0);
        let promised = floors::stands_in(place, floor, promise);
        self.check(promised);
    }

    // ---- what goes wrong just then

    /// A close or a floor has come to a disk: now and then there is no room left for what others lack, or the
    /// ring changes before the raise has ended.
    fn aim_at_mark(&mut self, node: usize, halfway: u64) {
        let full = self.faults.full_at_close;
        if full > 0 && self.rng.chance(full) {
            self.count("fault: disk full at a close");
            self.note(format_args!("n{node} disk full"));
            self.nodes[node].disk.full = true;
            let span = self.rng.tailed(100 * MS);
            self.schedule(span, Ev::Mend(Mend::Full(node)));
        }
        let rests = self.agreed.latest().is_some_and(|c| c.target.is_none());
        if halfway > 0 && rests && self.rng.chance(halfway) {
            self.count("fault: ring changed while a floor rises");
            let by = self.rng.below(self.nodes.len() as u64) as usize;
            self.schedule(0, Ev::Operate(Act::Others(by)));
        }
    }

    /// Whether that message is lost because of what it says: of a floor, or the same question of a read again.
    pub(crate) fn loses(&mut self, node: usize, to: NodeId, message: &PeerMessage) -> bool {
        let permille = match &message.body {
            PeerBody::Floor(message) => {
                // The last step of a raise, so that some owners have the floor and others have not; and what
                // others have closed, of which only a majority has to come.
                let late = matches!(
                    message.body,
                    FloorBody::Ask(FloorAsk::Inherit | FloorAsk::Raise { .. })
                        | FloorBody::Answer(FloorAnswer::Closed { .. })
                );
                self.faults.floor_loss * if late { 2 } else { 1 }
            }
            PeerBody::Request(request) if self.faults.again > 0 => {
                let reads = matches!(request.kind, RequestKind::Read { .. });
                let life = self.nodes[node].life;
                let again = reads && !self.asked.insert((node, life, request.op, to));
                if again { self.faults.again } else { 0 }
            }
            _ => 0,
        };
        permille > 0 && self.rng.chance(permille)
    }

    /// A node that clients turn to because it has just begun to take over partitions, if there is one.
    pub(crate) fn newcomer(&mut self) -> Option<usize> {
        if self.faults.again == 0 || !self.rng.chance(300) {
            return None;
        }
        (0..self.nodes.len())
            .find(|&at| self.nodes[at].serving && self.nodes[at].slow_until > self.now)
    }

    /// The disk of a node that begins to take over partitions is slow now and then.
    pub(crate) fn slow_while_it_gains(&mut self, node: usize) {
        let permille = self.faults.slow_gain;
        if permille > 0 && self.rng.chance(permille) {
            self.count("fault: slow disk of a node that gains");
            let span = self.rng.below(2_000 * MS);
            self.nodes[node].slow_until = self.now + span;
            self.note(format_args!("n{node} writes slowly for {span}"));
        }
    }
}
