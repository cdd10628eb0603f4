//! Nodes and their lives: what is in one, how it starts, how it ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use torc_protocol::cluster::Cluster;
use torc_protocol::cluster_io::{ClusterInput, ClusterSettings, Persisted};
use torc_protocol::shard::{Shard, ShardSettings};
use torc_protocol::store::{StateKey, Write};
use torc_protocol::time::{MS, Mono, Now, SECOND, Wall};
use torc_protocol::wire;
use torc_ring::{ClusterId, Config, ConfigVersion, Member, NodeId, RingVersion, Secret};

use super::{Ev, World};
use crate::check::books::Hints;
use crate::check::exchanges::Drain;
use crate::disk::Disk;
use crate::place::Placed;
use crate::plan::{Formation, Plan};

/// Age of agreement that owners aim at where they compare their copies, in microseconds.
const AGE_TARGET: u64 = 20 * SECOND;
/// Wall clock at the start of a run, in microseconds since 1970.
pub(crate) const EPOCH: u64 = 1_800_000_000 * SECOND;
/// The cluster's secret; nothing here depends on it.
const SECRET: Secret = Secret([0; 32]);

/// One shard, or the cluster machine, of one life of a node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) node: usize,
    pub(crate) life: u32,
    /// Index of the shard; [`CLUSTER`] for the cluster machine.
    pub(crate) shard: u8,
}

/// Greatest number of shards of a node here.
pub(super) const SHARDS_MAX: u8 = 4;
/// The cluster machine's index among those who commit.
pub(super) const CLUSTER: u8 = u8::MAX;

pub(crate) struct Slot {
    pub(crate) shard: Shard,
    pub(super) tick_at: Option<u64>,
    /// When the last thing that was sent to it from within the node arrives: they keep their order.
    pub(super) mail_at: u64,
    /// What it goes by.
    pub(crate) placed: Option<Arc<Placed>>,
    pub(crate) drained: RingVersion,
    /// Its records on their way to disk.
    pub(super) drain: Drain,
    /// Hints waiting by target, as last told.
    pub(crate) waiting: BTreeMap<NodeId, u64>,
}

/// The cluster machine of one life.
pub(crate) struct Machine {
    pub(crate) cluster: Cluster,
    pub(super) tick_at: Option<u64>,
    pub(super) mail_at: u64,
    /// The version that it handed out last in this life.
    pub(super) handed: Option<ConfigVersion>,
    pub(super) drained: Gather,
    pub(super) covered: Gather,
    /// Somebody remembers more of this node than its disk holds, and has told it so.
    pub(super) warned: bool,
}

/// Which shards have said the same thing.
#[derive(Clone, Debug, Default)]
pub(super) struct Gather {
    ring: RingVersion,
    shards: BTreeSet<u8>,
}

impl Gather {
    /// Counts a shard; answers whether all have said it now.
    pub(super) fn add(&mut self, shard: u8, ring: RingVersion, of: usize) -> bool {
        if ring > self.ring {
            self.ring = ring;
            self.shards.clear();
        }
        ring == self.ring && self.shards.insert(shard) && self.shards.len() == of
    }
}

/// Whether a node comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It does.
    Stays,
    /// Its disk was set back to an old image: it must notice.
    SetBack,
}

pub(crate) struct Node {
    pub(crate) member: Member,
    /// How often it has lost its identity.
    incarnation: u64,
    pub(crate) life: u32,
    /// Empty while the node is down.
    pub(crate) slots: Vec<Slot>,
    /// None while the node is down.
    pub(crate) machine: Option<Machine>,
    pub(crate) fate: Fate,
    /// Nobody has started it yet.
    pub(crate) dormant: bool,
    /// It is to be removed by force: what it has is as good as lost.
    pub(crate) doomed: bool,
    /// The member that it is to take the place of.
    pub(crate) replaces: Option<String>,
    pub(crate) serving: bool,
    pub(crate) disk: Disk,
    /// It has lost a file, and deleted values have come to light again.
    pub(crate) relics: bool,
    /// What the disk was like at some earlier time.
    pub(crate) image: Option<Disk>,
    pub(crate) offset: i64,
    /// How much faster its clock is, in millionths.
    pub(crate) rate: i64,
    pub(crate) paused_until: u64,
    /// Its disk takes long until then.
    pub(crate) slow_until: u64,
    pub(crate) believed_dead: BTreeSet<NodeId>,
    pub(crate) books: Hints,
}

impl Node {
    pub(super) fn new(at: usize, zones: u64, plan: &Plan) -> Self {
        Self {
            member: member(at, 0, format!("z{}", at as u64 % zones)),
            incarnation: 0,
            life: 0,
            slots: Vec::new(),
            machine: None,
            fate: Fate::Stays,
            dormant: at >= plan.nodes,
            doomed: false,
            replaces: None,
            serving: false,
            disk: Disk::new(plan.fsync, plan.mutant),
            relics: false,
            image: None,
            offset: 0,
            rate: 0,
            paused_until: 0,
            slow_until: 0,
            believed_dead: BTreeSet::new(),
            books: Hints::default(),
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.machine.is_some()
    }

    /// The newest config that it has stored as decided.
    pub(crate) fn latest(&self) -> Option<&Arc<Config>> {
        self.machine.as_ref().and_then(|m| m.cluster.latest())
    }
}

fn member(at: usize, incarnation: u64, zone: String) -> Member {
    let id = at as u64 + 1 + 100 * incarnation;
    Member {
        id: NodeId(id),
        name: format!("n{id}"),
        zone,
        weight: 100,
        peer: format!("n{id}:1"),
        http: format!("n{id}:2"),
    }
}

impl World {
    pub(crate) fn clock(&self, node: usize) -> Now {
        let this = &self.nodes[node];
        let drifted = i64::try_from(self.now).unwrap_or(0) / 1_000 * this.rate / 1_000;
        let wall = (EPOCH + self.now).saturating_add_signed(this.offset + drifted);
        Now {
            mono: Mono(self.now),
            wall: Wall(wall),
        }
    }

    pub(super) fn alive(&self, node: usize, life: u32) -> bool {
        self.nodes[node].life == life && self.nodes[node].is_up()
    }

    /// Whether the newest config names every node that has been started, all of them serve under it, and nobody
    /// recovers.
    /// (While a member's data is lost, nobody can join.)
    pub(crate) fn is_formed(&self) -> bool {
        let Some(latest) = self.agreed.latest() else {
            return false;
        };
        let open = self.lost_members() == 0;
        let settled = latest.target.is_none() && latest.recovering.is_empty();
        let nodes = self.nodes.iter();
        let mut there = nodes.filter(|n| !n.dormant);
        settled
            && there.all(|node| {
                let is_member = latest.member(node.member.id).is_some();
                if !is_member && !open {
                    return true;
                }
                is_member
                    && node.serving
                    && node
                        .machine
                        .as_ref()
                        .is_some_and(|machine| machine.cluster.applied() == latest.version)
            })
    }

    /// Puts the first config onto the disks of those that have it from the start.
    pub(super) fn prepare_disks(&mut self) {
        let first = match self.plan.formation {
            Formation::Formed => self.plan.nodes,
            Formation::Joined => 1,
            Formation::Bootstrapped => 0,
        };
        if first == 0 {
            return;
        }
        let members: Vec<Member> = self.nodes[..first]
            .iter()
            .map(|node| node.member.clone())
            .collect();
        let seeds = (self.token_seed, SECRET);
        let mut config = Config::bootstrap(ClusterId(1), seeds, self.plan.bits, members[0].clone());
        config.current = members;
        let bucket = &mut config.buckets[0];
        (bucket.n, bucket.r, bucket.w) = (self.plan.n, self.plan.r, self.plan.w);
        bucket.read_repair = self.plan.repair;
        let value = wire::encode_config(&config).expect("a small config");
        for node in &mut self.nodes[..first] {
            node.disk.plant(Write::StatePut {
                key: StateKey::Decided(config.version),
                value: value.clone(),
            });
            node.disk.plant(Write::StatePut {
                key: StateKey::Applied,
                value: config.version.0.to_be_bytes().to_vec().into(),
            });
        }
        self.decided(config);
    }

    pub(super) fn start(&mut self, node: usize) {
        let this = &self.nodes[node];
        if this.is_up() || this.dormant {
            return;
        }
        self.note_marks_found(node);
        let count = self.rng.pick(&[1, 1, 2, SHARDS_MAX]);
        let now = self.clock(node);
        let seed = self.rng.word();
        let this = &mut self.nodes[node];
        this.life += 1;
        this.serving = false;
        this.believed_dead.clear();
        let life = this.life;
        self.note(format_args!(
            "n{node} starts life {life} with {count} shards"
        ));
        for index in 0..count {
            self.start_shard(node, (index, count), seed);
        }
        self.start_machine(node, seed, now);
        if !self.plan.fsync {
            self.schedule(50 * MS, Ev::Sync { node, life });
        }
    }

    fn start_shard(&mut self, node: usize, (index, count): (u8, u8), seed: u64) {
        let now = self.clock(node);
        let plan = &self.plan;
        let this = &mut self.nodes[node];
        let totals = this.disk.visible.totals();
        let mut settings = ShardSettings::new(this.member.id, index, count);
        settings.zone.clone_from(&this.member.zone);
        settings.durable_bound = this.disk.visible.shards_bound();
        settings.store_empty = this.disk.visible.records.is_empty();
        settings.lost = this.disk.lost;
        settings.seed = seed.wrapping_add(u64::from(index) << 32);
        settings.drift_max = plan.drift_max;
        settings.hint_bytes_max = plan.hint_bytes_max;
        settings.hint_age_max = plan.hint_age_max;
        settings.ops_max = plan.ops_max;
        settings.lingering_max = plan.lingering_max;
        settings.antientropy_age_target = AGE_TARGET;
        settings.floor_interval = plan.floor_interval;
        settings.floor_margin = plan.floor_margin;
        settings.mutant = plan.mutant;
        let mut waiting: BTreeMap<NodeId, u64> = BTreeMap::new();
        for total in totals.iter().filter(|total| total.slot % count == index) {
            *waiting.entry(total.target).or_default() += total.count;
        }
        let mut shard = Shard::new(settings, &totals, now);
        for (bucket, partition, mark) in this.disk.visible.floors() {
            shard.restore_floor(bucket, partition, mark);
        }
        this.slots.push(Slot {
            shard,
            tick_at: None,
            mail_at: 0,
            placed: None,
            drained: RingVersion(0),
            drain: Drain::default(),
            waiting,
        });
    }

    fn start_machine(&mut self, node: usize, seed: u64, now: Now) {
        let mut settings = ClusterSettings::new(seed);
        settings.drift_max = self.plan.drift_max;
        settings.mutant = self.plan.mutant;
        settings.lost = self.nodes[node].disk.lost;
        settings.replaces.clone_from(&self.nodes[node].replaces);
        let this = &mut self.nodes[node];
        let state = this.disk.visible.states.clone();
        let persisted =
            Persisted::read(this.member.clone(), state).expect("what a node wrote can be read");
        let is_new = persisted.decided.is_empty();
        let incarnation = this.incarnation;
        this.machine = Some(Machine {
            cluster: Cluster::new(persisted, settings, now),
            tick_at: None,
            mail_at: 0,
            handed: None,
            drained: Gather::default(),
            covered: Gather::default(),
            warned: false,
        });
        if !is_new {
            self.after_cluster(node);
        } else if node == 0 && incarnation == 0 && self.agreed.latest().is_none() {
            let bootstrap = ClusterInput::Bootstrap {
                cluster: ClusterId(1),
                seed: self.token_seed,
                secret: SECRET,
                partition_bits: self.plan.bits,
            };
            self.cluster_input(node, bootstrap);
        } else {
            self.name_contacts(node);
        }
    }

    /// Names the other nodes to one that wants to join.
    pub(crate) fn name_contacts(&mut self, node: usize) {
        let others = self.nodes.iter().enumerate();
        let others = others.filter(|(at, other)| *at != node && !other.dormant);
        let contacts = others.map(|(_, other)| other.member.id).collect();
        self.cluster_input(node, ClusterInput::Contacts(contacts));
    }

    /// The process ends without any warning. Where the power can be cut, too, nothing is lost by that; else the
    /// machine ends with it.
    pub(crate) fn crash(&mut self, node: usize) {
        self.note(format_args!("n{node} crashes"));
        let rng = &mut self.rng;
        let this = &mut self.nodes[node];
        if self.plan.faults.power > 0 {
            this.disk.kill(rng);
        } else {
            this.disk.crash(rng);
        }
        self.down(node);
    }

    /// The machine ends: what was not synced is gone.
    pub(crate) fn lose_power(&mut self, node: usize) {
        self.note(format_args!("n{node} loses its power"));
        let rng = &mut self.rng;
        let this = &mut self.nodes[node];
        this.disk.crash(rng);
        this.disk.lost = true;
        self.cut_at = Some(self.now);
        self.clients.forget_one();
        self.down(node);
    }

    fn down(&mut self, node: usize) {
        let this = &mut self.nodes[node];
        this.slots.clear();
        this.machine = None;
        this.serving = false;
        this.paused_until = 0;
        self.clients_lost(node);
    }

    /// The data directory of a node that is down is gone: it will come back as another one.
    pub(crate) fn wipe(&mut self, node: usize) {
        let as_replacement = self.rng.chance(500);
        let plan = &self.plan;
        let this = &mut self.nodes[node];
        this.incarnation += 1;
        this.replaces = as_replacement.then(|| this.member.name.clone());
        let zone = std::mem::take(&mut this.member.zone);
        this.member = member(node, this.incarnation, zone);
        this.disk = Disk::new(plan.fsync, plan.mutant);
        this.image = None;
        (this.fate, this.doomed) = (Fate::Stays, false);
        this.relics = false;
        this.books = Hints::default();
        let name = this.member.name.clone();
        self.note(format_args!("n{node} has lost its data and is {name} now"));
    }

    /// Members of the newest config whose data is gone.
    pub(crate) fn lost_members(&self) -> usize {
        let members = self
            .agreed
            .latest()
            .into_iter()
            .flat_map(|c| c.all_members());
        let there = |at: usize| self.has_its_data(at) && !self.nodes[at].doomed;
        members
            .filter(|member| !self.index_of(member.id).is_some_and(there))
            .count()
    }

    /// Whether a node's disk is its own, and can be read.
    pub(crate) fn has_its_data(&self, node: usize) -> bool {
        self.nodes[node].fate == Fate::Stays && self.nodes[node].disk.rotten.is_none()
    }
}
