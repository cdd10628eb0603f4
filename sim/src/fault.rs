//! What goes wrong, and when it ends.

use torc_protocol::record::{Kind, Parts, Record};
use torc_protocol::time::{MS, SECOND};
use torc_ring::{Bucket, Config};

use crate::world::{EPOCH, Ev, Fate, Mend, World};

/// Members whose data may be lost for good without the loss of anything that was acknowledged by a
/// majority: fewer than half of the owners of any key, and of the members, in either ring.
fn losses_max(config: &Config) -> usize {
    owners_min(config).saturating_sub(1) / 2
}

/// The least number of owners that a key has, in either ring.
fn owners_min(config: &Config) -> usize {
    let replicas = |bucket: &Bucket| usize::from(bucket.n.min(config.target_replicas(bucket)));
    let target = config.target.as_ref().unwrap_or(&config.current);
    let members = config.current.len().min(target.len());
    let owners = config.buckets.iter().map(replicas).min().unwrap_or(0);
    owners.min(members)
}

impl World {
    /// One fault of the kinds that this run has, and the time of the next. A new kind gets a weight in
    /// [`crate::plan::Faults`] and an arm here.
    pub(crate) fn fault(&mut self) {
        let faults = &self.faults;
        let weights = [
            faults.cuts,
            faults.crashes,
            faults.pauses,
            faults.full,
            faults.jumps,
            faults.configs,
            faults.power,
            faults.wipes,
            faults.images,
            faults.rot,
            faults.lags,
            faults.twins,
            faults.relics,
            faults.changes,
        ];
        let total: u64 = weights.iter().sum();
        let after = self.rng.tailed(faults.every);
        if total > 0 {
            let mut at = self.rng.below(total);
            let mut kind = 0;
            while at >= weights[kind] {
                at -= weights[kind];
                kind += 1;
            }
            let node = self.rng.below(self.nodes.len() as u64) as usize;
            let number = self.next_fault;
            self.next_fault += 1;
            if self.plan.skip.contains(&number) {
                self.schedule(after, Ev::Fault);
                return;
            }
            self.note(format_args!("fault {number}"));
            match kind {
                0 => self.cut(node),
                1 => self.crash_some(node),
                2 => self.pause(node),
                3 => self.fill_disk(node),
                4 => self.jump(node),
                5 => self.new_configs(node),
                6 => self.cut_power(node),
                7 => self.lose_data(node),
                8 => self.set_back(node),
                9 => self.rot(node),
                10 => self.slow_link(node),
                11 => self.twin(node),
                12 => self.lose_file(node),
                _ => self.change_ring(node),
            }
        }
        self.schedule(after, Ev::Fault);
    }

    fn pause(&mut self, node: usize) {
        self.count("fault: pause");
        let span = self.rng.tailed(300 * MS);
        self.note(format_args!("n{node} pauses for {span}"));
        let this = &mut self.nodes[node];
        this.paused_until = this.paused_until.max(self.now + span);
    }

    fn fill_disk(&mut self, node: usize) {
        self.count("fault: disk full");
        self.note(format_args!("n{node} disk full"));
        self.nodes[node].disk.full = true;
        let span = self.rng.tailed(500 * MS);
        self.schedule(span, Ev::Mend(Mend::Full(node)));
    }

    /// Cuts one node off from some of the others, in one direction or in both.
    fn cut(&mut self, node: usize) {
        self.count("fault: cut");
        let span = self.rng.tailed(500 * MS);
        let directions = self.rng.below(3);
        for other in 0..self.nodes.len() {
            if other == node || self.rng.chance(400) {
                continue;
            }
            if directions != 0 {
                self.cuts.insert((node, other));
            }
            if directions != 1 {
                self.cuts.insert((other, node));
            }
            self.schedule(span, Ev::Mend(Mend::Cut(node, other)));
        }
        self.note(format_args!(
            "links of n{node} are cut, ways {directions}, for {span}"
        ));
    }

    /// Nothing reaches a node for a while.
    pub(crate) fn deafen(&mut self, node: usize) {
        let span = self.rng.tailed(500 * MS);
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            self.cuts.insert((other, node));
            self.schedule(span, Ev::Mend(Mend::Cut(node, other)));
        }
        self.note(format_args!("n{node} hears nothing for {span}"));
    }

    /// Kills one node, sometimes all of them.
    fn crash_some(&mut self, node: usize) {
        let all = self.rng.chance(100);
        for victim in 0..self.nodes.len() {
            if (victim == node || all) && self.nodes[victim].is_up() {
                self.count("fault: crash");
                self.crash(victim);
                let down = self.rng.tailed(200 * MS);
                self.schedule(down, Ev::Restart { node: victim });
                // Clocks are set while a machine starts.
                if self.faults.jumps > 0 && self.rng.chance(300) {
                    self.jump(victim);
                }
            }
        }
    }

    /// A machine loses its power: what was not synced is gone. One at a time, until it has got it back from the
    /// others: what two of three have lost nobody can bring back.
    fn cut_power(&mut self, node: usize) {
        let Some(latest) = self.agreed.latest() else {
            return;
        };
        let id = self.nodes[node].member.id;
        let mut others = self.nodes.iter().filter(|other| other.member.id != id);
        let whole = others.all(|other| !other.disk.lost && !latest.recovers(other.member.id));
        if !whole || !self.nodes[node].is_up() || owners_min(latest) < 2 {
            return;
        }
        self.count("fault: power cut");
        self.lose_power(node);
        let down = self.rng.tailed(200 * MS);
        self.schedule(down, Ev::Restart { node });
    }

    fn jump(&mut self, node: usize) {
        self.count("fault: clock jump");
        let drift = self.plan.drift_max;
        let size = self
            .rng
            .pick(&[MS, 100 * MS, SECOND, drift / 2, 2 * drift, 600 * SECOND]);
        let size = i64::try_from(self.rng.below(size)).unwrap_or(0);
        let offset = &mut self.nodes[node].offset;
        *offset += if self.rng.chance(500) { size } else { -size };
        let offset = *offset;
        self.ahead_max = self.ahead_max.max(u64::try_from(offset).unwrap_or(0));
        self.note(format_args!("n{node} clock is now off by {offset}"));
        let span = self.rng.tailed(2 * SECOND);
        self.schedule(span, Ev::Mend(Mend::Clock(node)));
    }

    /// Whether one more member may lose its data for good.
    pub(crate) fn may_lose(&self, node: usize) -> bool {
        let Some(latest) = self.agreed.latest() else {
            return false;
        };
        // A joiner may be a member by a decision that nobody has stored yet.
        let is_member = latest.member(self.nodes[node].member.id).is_some();
        // Members that have not heard of the newest config need a majority of the one before.
        let all_know = latest.all_members().all(|member| {
            self.index_of(member.id)
                .is_none_or(|at| self.nodes[at].disk.visible.decided() == latest.version.0)
        });
        is_member
            && all_know
            && self.has_its_data(node)
            && !self.nodes[node].doomed
            && self.lost_members() < losses_max(latest)
    }

    /// A node's data directory is lost; it comes back as a new node.
    pub(crate) fn lose_data(&mut self, node: usize) {
        if !self.may_lose(node) {
            return;
        }
        self.replace(node);
    }

    /// A node's data is gone, and it comes back as a new one.
    fn replace(&mut self, node: usize) {
        self.count("fault: data lost");
        if self.nodes[node].is_up() {
            self.crash(node);
        }
        self.wipe(node);
        let down = self.rng.tailed(200 * MS);
        self.schedule(down, Ev::Restart { node });
    }

    /// Takes an image of a disk, or brings one back.
    fn set_back(&mut self, node: usize) {
        if self.nodes[node].image.is_none() {
            let this = &mut self.nodes[node];
            this.image = (this.life > 0).then(|| this.disk.image());
            return;
        }
        if !self.nodes[node].is_up() || !self.may_lose(node) {
            return;
        }
        self.crash(node);
        let this = &mut self.nodes[node];
        let Some(image) = this.image.take() else {
            return;
        };
        if image.visible.cluster_bound() == this.disk.visible.cluster_bound() {
            // Nothing in it tells that it is old: outside what is promised.
            this.image = Some(image);
        } else {
            this.disk = image;
            this.fate = Fate::SetBack;
            let id = this.member.id;
            self.marks.forget(id);
            self.count("fault: disk set back");
            self.note(format_args!("the disk of n{node} is an old image now"));
        }
        let down = self.rng.tailed(200 * MS);
        self.schedule(down, Ev::Restart { node });
    }

    /// Some of a node's keys cannot be read any more; after a while somebody replaces the node.
    fn rot(&mut self, node: usize) {
        if !self.may_lose(node) {
            return;
        }
        self.count("fault: disk corrupt");
        let parity = self.rng.below(2);
        self.nodes[node].disk.rotten = Some(parity);
        self.note(format_args!(
            "n{node} cannot read half of its keys any more"
        ));
        let span = self.rng.tailed(500 * MS);
        self.schedule(span, Ev::Mend(Mend::Rot(node)));
    }

    pub(crate) fn replace_rotten(&mut self, node: usize) {
        if self.nodes[node].disk.rotten.is_none() {
            return;
        }
        let id = self.nodes[node].member.id;
        let latest = self.agreed.latest();
        let needed = latest.is_some_and(|latest| {
            latest.member(id).is_some() && self.lost_members() > losses_max(latest)
        });
        if needed {
            // The ring has become smaller since: nobody gives up a disk that the cluster cannot do without.
            self.count("rare: disk repaired");
            self.nodes[node].disk.rotten = None;
        } else {
            self.replace(node);
        }
    }

    /// Makes a link slow, in one direction.
    fn slow_link(&mut self, node: usize) {
        let other = self.rng.below(self.nodes.len() as u64) as usize;
        if other == node {
            return;
        }
        self.count("fault: slow link");
        let lag = self.rng.between(5 * MS, 500 * MS);
        self.lags.insert((node, other), lag);
        self.note(format_args!("n{node} reaches n{other} {lag} later"));
        let span = self.rng.tailed(500 * MS);
        self.schedule(span, Ev::Mend(Mend::Lag(node, other)));
    }

    /// One node holds another value under the same version: no rule can make that, only a fault.
    fn twin(&mut self, node: usize) {
        let key = self.rng.below(self.plan.keys);
        let key = self.record_key(key);
        let Some(old) = self.nodes[node].disk.visible.records.get(&key) else {
            return;
        };
        if old.kind() != Kind::Value {
            return;
        }
        let mut value = old.value_bytes().to_vec();
        value.push(9);
        let twin = Record::value(Parts {
            version: old.version(),
            expiry: old.expiry(),
            content_type: old.content_type(),
            value: &value,
        });
        // The lesser one would lose against what is stored already.
        if twin.digest() > old.digest() {
            self.count("fault: equal versions");
            self.mint.twin(twin.version());
            self.nodes[node].disk.replace(&key, &twin);
        }
    }

    /// A node comes back from a crash with an older file in the place of a newer one. One node of a run, so
    /// that a majority of the others has everything.
    fn lose_file(&mut self, node: usize) {
        let taken = self.nodes.iter().any(|other| other.relics);
        if taken || !self.may_lose(node) || !self.nodes[node].disk.has_relics() {
            return;
        }
        self.count("fault: file lost");
        if self.nodes[node].is_up() {
            self.crash(node);
        }
        let this = &mut self.nodes[node];
        this.image = None;
        this.relics = true;
        let back = this.disk.lose_file();
        let id = this.member.id;
        self.marks.forget(id);
        self.note(format_args!(
            "n{node} has lost a file, {back} old values are back"
        ));
        let down = self.rng.tailed(200 * MS);
        self.schedule(down, Ev::Restart { node });
    }

    /// Clocks of this run are fast or slow.
    pub(crate) fn set_rates(&mut self) {
        let most = self.plan.faults.drift_ppm;
        for node in 0..self.nodes.len() {
            let rate = self.rng.between(0, 2 * most);
            self.nodes[node].rate =
                i64::try_from(rate).unwrap_or(0) - i64::try_from(most).unwrap_or(0);
        }
    }

    /// How far the fastest clock is ahead by now, in microseconds.
    pub(crate) fn drifted_max(&self) -> u64 {
        let ahead = |at: usize| (self.clock(at).wall.0).saturating_sub(EPOCH + self.now);
        (0..self.nodes.len()).map(ahead).max().unwrap_or(0)
    }

    pub(crate) fn mend(&mut self, mend: Mend) {
        match mend {
            Mend::Cut(a, b) => {
                self.cuts.remove(&(a, b));
                self.cuts.remove(&(b, a));
            }
            Mend::Full(node) => self.nodes[node].disk.full = false,
            Mend::Clock(node) => self.nodes[node].offset = 0,
            Mend::Lag(a, b) => {
                self.lags.remove(&(a, b));
            }
            Mend::Rot(node) => self.replace_rotten(node),
        }
    }
}
