//! What one seed draws: the cluster, the workload, and which faults there are.
//!
//! Each run has only some of the kinds of faults, at its own rates: rare mixes are found sooner that way
//! (Groce et al., "Swarm Testing", 2012).

use std::collections::BTreeSet;

use torc_protocol::mutant::Mutant;
use torc_protocol::time::{MS, SECOND};
use torc_ring::{Quorum, ReadRepair};

use crate::rng::Rng;

/// Everything that is drawn before a run begins.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where all else comes from.
    pub seed: u64,
    /// Operations of clients.
    pub ops: u64,
    /// Nodes that make up the cluster at first, 1..=7.
    pub nodes: usize,
    /// Further nodes, which begin when an operator starts them.
    pub spares: usize,
    /// Operators change the ring only as `torc` lets them when nothing is wrong: nodes join by asking, leave, and
    /// get other shares and numbers of replicas. Clients have time, and shards hear at once what their node
    /// hears.
    pub orderly: bool,
    /// How they become a cluster.
    pub formation: Formation,
    /// Clients do not wait until the cluster is complete.
    pub early: bool,
    /// Partitions as a power of two.
    pub bits: u8,
    /// The bucket's n.
    pub n: u8,
    /// The bucket's r.
    pub r: Quorum,
    /// The bucket's w.
    pub w: Quorum,
    /// Whether operations draw their own r and w.
    pub own_quorums: bool,
    /// The bucket's read repair.
    pub repair: ReadRepair,
    /// Whether some writes may use stand-ins.
    pub sloppy: bool,
    /// Whether commits are fsynced before they count.
    pub fsync: bool,
    /// Keys.
    pub keys: u64,
    /// Clients, each with one operation at a time.
    pub clients: u64,
    /// Reads, writes, deletes, watches, lists: relative weights.
    pub mix: [u64; 5],
    /// Whether some values have a time to live.
    pub ttl: bool,
    /// Typical pause of a client between operations, in microseconds.
    pub think: u64,
    /// Allowed clock drift, in microseconds.
    pub drift_max: u64,
    /// Bound of a shard's hints per target, in bytes.
    pub hint_bytes_max: u64,
    /// Greatest age of hints, in microseconds.
    pub hint_age_max: u64,
    /// Requests that a shard works on at a time.
    pub ops_max: usize,
    /// Answered writes that a shard remembers.
    pub lingering_max: usize,
    /// What goes wrong.
    pub faults: Faults,
    /// Whether owners compare their copies.
    pub antientropy: bool,
    /// How often floors are raised at most, on average, in microseconds; 0 for never.
    pub floor_interval: u64,
    /// How old tombstones have to be before they are collected, in microseconds: far less than a node takes,
    /// so that what may never be late is late often.
    pub floor_margin: u64,
    /// A deliberate bug in all nodes.
    pub mutant: Option<Mutant>,
    /// Tells runs of the same plan apart.
    pub run: u64,
    /// Faults that are left out, by their number in the run.
    pub skip: BTreeSet<u64>,
}

/// Numbers of a plan that can be set by name; those from `loss` on are rates of faults, 0 for none.
pub const NAMES: [&str; 42] = [
    "nodes",
    "ops",
    "run",
    "keys",
    "clients",
    "think",
    "floor_interval",
    "floor_margin",
    "reads",
    "writes",
    "deletes",
    "watches",
    "lists",
    "every",
    "loss",
    "duplicates",
    "slow",
    "read_errors",
    "lies",
    "cuts",
    "crashes",
    "pauses",
    "full",
    "jumps",
    "configs",
    "power",
    "wipes",
    "images",
    "refusals",
    "rot",
    "lags",
    "twins",
    "drift_ppm",
    "relics",
    "changes",
    "force",
    "floor_loss",
    "halfway",
    "again",
    "slow_gain",
    "slow_marks",
    "full_at_close",
];

/// Nothing in a plan is called so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSuchName;

/// How the nodes of a run become a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Formation {
    /// The first config, with all of them in it, is on their disks.
    Formed,
    /// The first config names one node, the others join it.
    Joined,
    /// One node is bootstrapped with the bucket's default settings, the others join it.
    Bootstrapped,
}

/// Rates of faults; 0 where a run has none of a kind.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Mean interval of the events below, in microseconds.
    pub every: u64,
    /// Lost messages, permille.
    pub loss: u64,
    /// Duplicated messages, permille.
    pub duplicates: u64,
    /// Messages and disk operations that take very long, permille.
    pub slow: u64,
    /// Failed reads, permille.
    pub read_errors: u64,
    /// Wrong beliefs about who is alive, permille per look.
    pub lies: u64,
    /// Weight of cut links, one-way or both ways.
    pub cuts: u64,
    /// Weight of crashes.
    pub crashes: u64,
    /// Weight of pauses.
    pub pauses: u64,
    /// Weight of full disks.
    pub full: u64,
    /// Weight of clock jumps.
    pub jumps: u64,
    /// Weight of new ring versions with the same members.
    pub configs: u64,
    /// Weight of power cuts, where commits are not fsynced: what was not synced is gone, and the node comes back
    /// under its id. Lives that end otherwise lose nothing there.
    pub power: u64,
    /// Weight of lost data directories: the node comes back as a new one.
    pub wipes: u64,
    /// Weight of disks that are set back to an older image.
    pub images: u64,
    /// Commits that are refused as if even the reserve were gone, permille.
    pub refusals: u64,
    /// Weight of disks that go bad: some keys cannot be read any more, until the node is replaced.
    pub rot: u64,
    /// Weight of slow links, one-way.
    pub lags: u64,
    /// Weight of records with an equal version and another value, which nothing can make but a fault.
    pub twins: u64,
    /// How fast or slow clocks may be, in millionths.
    pub drift_ppm: u64,
    /// Weight of lost files in whose place older ones come to light.
    pub relics: u64,
    /// Weight of operators who change the ring.
    pub changes: u64,
    /// Whether operators give up nodes that have died, and what these have: 0 or 1.
    pub force: u64,
    /// Lost messages about floors, permille.
    pub floor_loss: u64,
    /// Closes and floors on disks at which an operator lets others be members, permille.
    pub halfway: u64,
    /// Lost questions of reads that were put to the same node before, permille.
    pub again: u64,
    /// Nodes whose disks are slow when they begin to take over partitions, permille.
    pub slow_gain: u64,
    /// Commits of floors, closes and promises that take very long, permille.
    pub slow_marks: u64,
    /// Closes and floors on disks that are full from then on, permille.
    pub full_at_close: u64,
}

impl Plan {
    /// What `seed` draws, for a run of `ops` operations.
    #[must_use]
    pub fn draw(seed: u64, ops: u64) -> Self {
        Self::draw_world(seed, ops, true)
    }

    /// The same where no floor is raised, whatever the seed says, so that partitions may move.
    #[must_use]
    pub fn draw_without_floors(seed: u64, ops: u64) -> Self {
        Self::draw_world(seed, ops, false)
    }

    fn draw_world(seed: u64, ops: u64, floors: bool) -> Self {
        let mut plan = Self::draw_all(seed, ops, floors);
        plan.draw_power();
        plan
    }

    fn draw_all(seed: u64, ops: u64, floors: bool) -> Self {
        let mut rng = Rng::new(seed);
        let rng = &mut rng;
        let nodes = rng.pick(&[1, 2, 3, 3, 3, 4, 5, 5, 6, 7]);
        let n = rng.pick(&[1, 2, 3, 3, 3, 3, 3, 4, 5]);
        let (r, w) = match rng.below(6) {
            0 => (rng.between(1, u64::from(n)), rng.between(1, u64::from(n))),
            1 => (1, u64::from(n)),
            2 => (u64::from(n), 1),
            _ => (u64::from(n) / 2 + 1, u64::from(n) / 2 + 1),
        };
        let formation = rng.pick(&[
            Formation::Formed,
            Formation::Formed,
            Formation::Joined,
            Formation::Joined,
            Formation::Bootstrapped,
        ]);
        // A new cluster's bucket has the documented settings.
        let default = formation == Formation::Bootstrapped;
        let (n, r, w) = if default { (3, 2, 2) } else { (n, r, w) };
        let fsync = !rng.chance(250);
        let gentle = rng.chance(200);
        let mut plan = Self {
            seed,
            ops,
            nodes,
            spares: 0,
            orderly: false,
            formation,
            early: rng.chance(150),
            bits: rng.pick(&[0, 2, 4, 6]),
            n,
            r: Quorum::Count(r as u8),
            w: Quorum::Count(w as u8),
            own_quorums: rng.chance(300),
            repair: if default {
                ReadRepair::Blocking
            } else {
                rng.pick(&[
                    ReadRepair::Blocking,
                    ReadRepair::Blocking,
                    ReadRepair::Blocking,
                    ReadRepair::Async,
                    ReadRepair::Off,
                ])
            },
            sloppy: rng.chance(250),
            fsync,
            keys: rng.pick(&[1, 2, 3, 5, 20, 100]),
            clients: rng.between(1, 12),
            mix: [
                rng.between(1, 10),
                rng.between(1, 10),
                rng.pick(&[0, 0, 1, 4]),
                rng.pick(&[0, 0, 1]),
                rng.pick(&[0, 1, 2]),
            ],
            ttl: rng.chance(200),
            think: rng.pick(&[0, MS, 5 * MS, 20 * MS, 200 * MS]),
            // Less than the clock bound is ahead would keep a restarted node from writing.
            drift_max: rng.pick(&[15, 60]) * SECOND,
            hint_bytes_max: rng.pick(&[500, 5_000, 1 << 20, 1 << 20, 1 << 20]),
            hint_age_max: rng.pick(&[5 * SECOND, 10_800 * SECOND, 10_800 * SECOND]),
            ops_max: rng.pick(&[3, 1_000, 1_000, 1_000]),
            lingering_max: rng.pick(&[1, 1_000, 1_000]),
            faults: Faults::draw(rng),
            antientropy: rng.chance(500),
            floor_interval: 0,
            floor_margin: 0,
            mutant: None,
            run: 0,
            skip: BTreeSet::new(),
        };
        if gentle {
            plan.faults.spare_hints();
        }
        let storms = rng.chance(60);
        if storms {
            plan.storm();
        }
        if floors {
            plan.draw_floors();
        }
        if plan.floor_interval > 0 {
            plan.aim_at_marks(gentle);
            if !storms {
                plan.draw_floors_and_moves(gentle);
            }
            return plan;
        }
        let moves = rng.chance(800);
        if moves && !storms && rng.chance(800) {
            plan.move_ring(rng);
            plan.faults.force = u64::from(!gentle && rng.chance(700));
            plan.leave_gaps();
        }
        if !moves && !storms {
            plan.sharpen();
        }
        plan
    }

    /// Draws from a sequence of its own, so that the rest of a seed stays as it was.
    fn draw_floors(&mut self) {
        let mut rng = Rng::new(self.seed ^ 0x00f1_0042);
        if !rng.chance(350) {
            return;
        }
        self.antientropy = true;
        self.floor_interval = rng.pick(&[200 * MS, 500 * MS, SECOND, 3 * SECOND]);
        self.floor_margin = rng.pick(&[0, 0, 10 * MS, 100 * MS, SECOND]);
        if self.mix[2] == 0 && rng.chance(800) {
            self.mix[2] = rng.between(1, 4);
        }
        self.ttl |= rng.chance(300);
        if self.fsync && rng.chance(300) {
            // Once in a run at most: the weight only says how soon.
            self.faults.relics = rng.between(5, 20);
        }
    }

    /// In about half of the worlds with floors the ring changes, too: both take a while, and a raise wants all
    /// members there, so less goes wrong besides. Draws from a sequence of its own.
    fn draw_floors_and_moves(&mut self, gentle: bool) {
        let mut rng = Rng::new(self.seed ^ 0x00b0_7b07);
        if !rng.chance(550) {
            return;
        }
        self.move_ring(&mut rng);
        self.faults.force = u64::from(!gentle && rng.chance(700));
        self.floor_interval = rng.pick(&[100 * MS, 200 * MS, 500 * MS]);
        self.keys = rng.pick(&[2, 5, 20]);
        self.mix = [4, 3, rng.between(2, 4), self.mix[3], self.mix[4]];
        if !gentle {
            self.faults.crashes = rng.pick(&[0, 1, 3]);
        }
        if rng.chance(600) {
            // Messages that were lost would end most raises.
            (self.faults.loss, self.faults.lies) = (0, 0);
        }
        if self.fsync && !gentle && rng.chance(400) {
            self.faults.relics = rng.between(5, 20);
        }
        if rng.chance(500) {
            self.stop_halfway(&mut rng);
            if self.sloppy && !gentle {
                // Owners that are away are what stand-ins are for.
                self.faults.crashes = self.faults.crashes.max(1);
            }
        }
    }

    /// In some worlds the steps of a raise are when disks are slow or full. Draws from a sequence of its own.
    fn aim_at_marks(&mut self, gentle: bool) {
        let mut rng = Rng::new(self.seed ^ 0x3a9c_51e7);
        if rng.chance(400) {
            self.faults.slow_marks = rng.pick(&[20, 100]);
        }
        if rng.chance(400) && !gentle {
            self.faults.full_at_close = rng.pick(&[50, 200]);
            self.floor_margin = rng.pick(&[0, 0, self.floor_margin]);
        }
    }

    /// Raises end halfway and the ring changes just then: owners that come know neither floor nor close, and some
    /// of those that stay have the floor and others have not.
    fn stop_halfway(&mut self, rng: &mut Rng) {
        (self.n, self.r, self.w) = (3, Quorum::Count(2), Quorum::Count(2));
        (self.nodes, self.spares) = (self.nodes.max(3), self.spares.max(2));
        (self.bits, self.floor_margin) = (rng.pick(&[0, 0, 2]), rng.pick(&[0, 0, 10 * MS]));
        (self.mix[0], self.mix[1], self.mix[2]) = (8, 2, 2);
        self.sloppy |= rng.chance(500);
        let faults = &mut self.faults;
        faults.floor_loss = rng.pick(&[50, 150, 300]);
        faults.halfway = rng.pick(&[0, 20, 100, 300]);
        faults.again = rng.pick(&[0, 500, 800]);
        faults.slow_gain = rng.pick(&[0, 300, 900]);
    }

    /// Where the power is cut, nothing else takes records away, so that all that is promised can be looked at. In
    /// some of these worlds owners miss writes, and only what they cover brings them back. Draws from a sequence
    /// of its own.
    fn draw_power(&mut self) {
        let faults = &mut self.faults;
        if self.fsync || faults.power == 0 {
            faults.power = 0;
            return;
        }
        (faults.wipes, faults.images, faults.rot) = (0, 0, 0);
        (faults.twins, faults.relics, faults.force) = (0, 0, 0);
        let mut rng = Rng::new(self.seed ^ 0x0090_3e12);
        faults.power = rng.pick(&[1, 3, 10]);
        if rng.chance(500) {
            (self.n, self.r, self.w) = (3, Quorum::Count(2), Quorum::Count(2));
            self.nodes = self.nodes.max(3);
            (self.own_quorums, self.sloppy) = (false, false);
            // So many that what was lost is not written anew at once.
            (self.hint_bytes_max, self.keys) = (500, rng.pick(&[20, 100, 300]));
            (faults.cuts, faults.every) = (3, 300 * MS);
            self.clients = self.clients.max(4);
            self.think = self.think.max(10 * MS);
            self.mix = [4, 3, self.mix[2], self.mix[3], self.mix[4]];
            if self.floor_interval == 0 {
                (self.repair, self.antientropy) = (ReadRepair::Off, false);
            }
        }
    }

    /// Ring versions change under many writes that are on their way for long, and that replicas then
    /// cannot look up.
    fn storm(&mut self) {
        (self.clients, self.think, self.keys) = (12, 0, 5);
        let faults = &mut self.faults;
        (faults.every, faults.configs, faults.lags) = (50 * MS, 10, 3);
        (faults.slow, faults.read_errors, faults.duplicates) = (200, 200, 0);
    }

    /// Worlds without floors and moves hide least: some of them are made for what chance alone seldom brings.
    fn sharpen(&mut self) {
        let mut rng = Rng::new(self.seed ^ 0x0051_a4b7);
        (self.n, self.r, self.w) = (3, Quorum::Count(2), Quorum::Count(2));
        let faults = &mut self.faults;
        match rng.below(3) {
            // Owners miss more than their hints may take, and nothing but hints brings it to them.
            0 => {
                faults.spare_hints();
                self.nodes = self.nodes.max(3);
                (faults.cuts, faults.every, faults.twins) = (3, 300 * MS, 0);
                (self.antientropy, self.hint_bytes_max) = (false, 500);
                (self.hint_age_max, self.keys) = (10_800 * SECOND, 20);
                self.think = self.think.max(5 * MS);
            }
            // Nodes whose clocks are set crash again and again, and forget what they were writing.
            1 => {
                self.fsync = false;
                (faults.jumps, faults.crashes, faults.cuts) = (2, 3, 3);
                (faults.every, faults.slow, faults.wipes) = (50 * MS, 50, 0);
                // Each crash is one, so that nothing is promised.
                faults.power = 0;
                (self.mix, self.keys, self.drift_max) = ([1, 3, 0, 0, 0], 3, 60 * SECOND);
                (self.clients, self.think) = (4, 200 * MS);
            }
            _ => {}
        }
    }

    /// Operators change the ring while clients work; that takes seconds, so the run lasts for some.
    fn move_ring(&mut self, rng: &mut Rng) {
        self.spares = rng.pick(&[0, 1, 2, 2, 3, 4]);
        self.faults.changes = rng.pick(&[1, 3, 10]);
        self.faults.every = rng.pick(&[300 * MS, SECOND, SECOND, 3 * SECOND]);
        match rng.below(10) {
            // What is said of one change arrives in the next.
            0..=2 => (self.faults.slow, self.faults.lags) = (200, 3),
            // Not everybody hears of a decision.
            3 | 4 => self.faults.loss = 200,
            _ => {}
        }
        self.clients = self.clients.max(3);
        let span = rng.pick(&[8, 15, 30]) * SECOND;
        self.think = span * self.clients / self.ops.max(1);
    }

    /// In some worlds whose ring changes owners miss writes, and only the change itself brings them. Draws from a
    /// sequence of its own.
    fn leave_gaps(&mut self) {
        let mut rng = Rng::new(self.seed ^ 0x6a95);
        if !rng.chance(150) {
            return;
        }
        (self.n, self.r, self.w) = (3, Quorum::Count(2), Quorum::Count(2));
        (self.nodes, self.spares) = (self.nodes.max(3), self.spares.max(2));
        (self.repair, self.antientropy) = (ReadRepair::Off, false);
        (self.own_quorums, self.sloppy) = (false, false);
        (self.hint_bytes_max, self.keys) = (500, 20);
        self.faults.cuts = 3;
        self.mix = [1, 4, 0, 0, 0];
    }

    /// Sets one number by its name: those of [`NAMES`].
    ///
    /// # Errors
    /// When there is no such name.
    pub fn set(&mut self, name: &str, value: u64) -> Result<(), NoSuchName> {
        let faults = &mut self.faults;
        let place = match name {
            "nodes" => {
                self.nodes = (value as usize).max(1);
                return Ok(());
            }
            // At no distance at all the first fault would be followed by others for ever.
            "every" => {
                faults.every = value.max(1);
                return Ok(());
            }
            "ops" => &mut self.ops,
            "run" => &mut self.run,
            "keys" => &mut self.keys,
            "clients" => &mut self.clients,
            "think" => &mut self.think,
            "floor_interval" => &mut self.floor_interval,
            "floor_margin" => &mut self.floor_margin,
            "reads" => &mut self.mix[0],
            "writes" => &mut self.mix[1],
            "deletes" => &mut self.mix[2],
            "watches" => &mut self.mix[3],
            "lists" => &mut self.mix[4],
            "loss" => &mut faults.loss,
            "duplicates" => &mut faults.duplicates,
            "slow" => &mut faults.slow,
            "read_errors" => &mut faults.read_errors,
            "lies" => &mut faults.lies,
            "cuts" => &mut faults.cuts,
            "crashes" => &mut faults.crashes,
            "pauses" => &mut faults.pauses,
            "full" => &mut faults.full,
            "jumps" => &mut faults.jumps,
            "configs" => &mut faults.configs,
            "power" => &mut faults.power,
            "wipes" => &mut faults.wipes,
            "images" => &mut faults.images,
            "refusals" => &mut faults.refusals,
            "rot" => &mut faults.rot,
            "lags" => &mut faults.lags,
            "twins" => &mut faults.twins,
            "drift_ppm" => &mut faults.drift_ppm,
            "relics" => &mut faults.relics,
            "changes" => &mut faults.changes,
            "force" => &mut faults.force,
            "floor_loss" => &mut faults.floor_loss,
            "halfway" => &mut faults.halfway,
            "again" => &mut faults.again,
            "slow_gain" => &mut faults.slow_gain,
            "slow_marks" => &mut faults.slow_marks,
            "full_at_close" => &mut faults.full_at_close,
            _ => return Err(NoSuchName),
        };
        *place = value;
        Ok(())
    }

    /// Whether data that was reported committed may be gone later.
    #[must_use]
    pub fn forgets(&self) -> bool {
        !self.fsync && self.faults.end_lives() && self.faults.power == 0
    }
}

impl Faults {
    fn draw(rng: &mut Rng) -> Self {
        let rare = rng.chance(150);
        let mut some = |choices: &[u64]| {
            if rng.chance(400) {
                rng.pick(choices)
            } else {
                0
            }
        };
        Self {
            loss: some(&[1, 10, 50, 200]),
            duplicates: some(&[0, 1, 10, 100]),
            slow: some(&[5, 50, 200]),
            read_errors: some(&[1, 20, 200]),
            lies: some(&[10, 100, 300]),
            cuts: some(&[1, 3]),
            crashes: some(&[1, 3]),
            pauses: some(&[1, 3]),
            full: some(&[1, 2]),
            jumps: some(&[1, 2]),
            configs: some(&[1, 3, 10]),
            power: some(&[1]),
            wipes: some(&[1]),
            images: some(&[1]),
            refusals: some(&[1, 10]),
            rot: some(&[1]),
            lags: some(&[1, 3]),
            twins: u64::from(rare),
            drift_ppm: some(&[50, 500, 20_000]),
            relics: 0,
            changes: 0,
            force: 0,
            floor_loss: 0,
            halfway: 0,
            again: 0,
            slow_gain: 0,
            slow_marks: 0,
            full_at_close: 0,
            every: rng.pick(&[50 * MS, 300 * MS, SECOND, 4 * SECOND]),
        }
    }

    /// Without anything that excuses a missing hint.
    fn spare_hints(&mut self) {
        (self.crashes, self.wipes, self.images, self.rot) = (0, 0, 0, 0);
        (self.full, self.refusals, self.power) = (0, 0, 0);
    }

    /// Whether lives of nodes end without a warning.
    pub(crate) fn end_lives(&self) -> bool {
        let faults =
            self.crashes > 0 || self.power > 0 || self.wipes > 0 || self.images > 0 || self.rot > 0;
        faults || self.force > 0
    }

    /// The same without anything that goes wrong by itself.
    pub(crate) fn calm(&mut self) {
        let every = self.every;
        *self = Self {
            every,
            ..Self::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worlds_raise_floors_and_move_partitions_and_some_do_both() {
        let (mut floors, mut moves, mut both) = (0, 0, 0);
        for seed in 0..1_000 {
            let plan = Plan::draw(seed, 500);
            let raises = plan.floor_interval > 0;
            both += u64::from(raises && plan.faults.changes > 0);
            floors += u64::from(raises);
            moves += u64::from(plan.faults.changes > 0);
            let without = Plan::draw_without_floors(seed, 500);
            assert_eq!(without.floor_interval, 0, "seed {seed}");
        }
        assert!(floors > 300, "{floors} seeds of a thousand raise floors");
        assert!(moves > 300, "{moves} seeds of a thousand move partitions");
        assert!(both > 150, "{both} seeds of a thousand do both");
    }
}
