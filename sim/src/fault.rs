//! What goes wrong, and when it ends.

use torc_protocol::shard_io::Input;
use torc_protocol::time::{MS, SECOND};

use crate::world::{Ev, Mend, World};

impl World {
    /// One fault of the kinds that this run has, and the time of the next.
    pub(crate) fn fault(&mut self) {
        let faults = &self.faults;
        let weights = [
            faults.cuts,
            faults.crashes,
            faults.pauses,
            faults.full,
            faults.jumps,
            faults.configs,
            faults.freezes,
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
            match kind {
                0 => self.cut(node),
                1 => self.crash_some(node),
                2 => {
                    self.count("fault: pause");
                    let span = self.rng.tailed(300 * MS);
                    self.note(format_args!("n{node} pauses for {span}"));
                    let this = &mut self.nodes[node];
                    this.paused_until = this.paused_until.max(self.now + span);
                }
                3 => {
                    self.count("fault: disk full");
                    self.note(format_args!("n{node} disk full"));
                    self.nodes[node].disk.full = true;
                    let span = self.rng.tailed(500 * MS);
                    self.schedule(span, Ev::Mend(Mend::Full(node)));
                }
                4 => self.jump(node),
                5 => {
                    self.count("fault: new config");
                    let ring = !self.rng.chance(250);
                    self.new_config(ring);
                }
                _ => self.freeze(),
            }
        }
        self.schedule(after, Ev::Fault);
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

    /// Kills one node, sometimes all of them.
    fn crash_some(&mut self, node: usize) {
        let all = self.rng.chance(100);
        for victim in 0..self.nodes.len() {
            if (victim == node || all) && self.nodes[victim].is_up() {
                self.count("fault: crash");
                self.crash(victim);
                let down = self.rng.tailed(200 * MS);
                self.schedule(down, Ev::Restart { node: victim });
            }
        }
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
        self.note(format_args!("n{node} clock is now off by {offset}"));
        let span = self.rng.tailed(2 * SECOND);
        self.schedule(span, Ev::Mend(Mend::Clock(node)));
    }

    /// All nodes stop taking writes, and some time later there is a new ring.
    fn freeze(&mut self) {
        self.count("fault: freeze");
        for node in 0..self.nodes.len() {
            if self.nodes[node].paused_until <= self.now {
                let ring = self.ring_of(node);
                self.input_all(node, || Input::Freeze(ring));
            }
        }
        let span = self.rng.tailed(100 * MS);
        self.schedule(span, Ev::NewRing);
    }

    pub(crate) fn mend(&mut self, mend: Mend) {
        match mend {
            Mend::Cut(a, b) => {
                self.cuts.remove(&(a, b));
                self.cuts.remove(&(b, a));
            }
            Mend::Full(node) => self.nodes[node].disk.full = false,
            Mend::Clock(node) => self.nodes[node].offset = 0,
        }
    }

    /// A node looks at what gossip tells it: late, partly, and now and then wrongly. It also hears of new
    /// configs and finds out whether its clock is off.
    pub(crate) fn gossip(&mut self, node: usize) {
        let after = self.rng.between(50 * MS, 150 * MS);
        self.schedule(after, Ev::Gossip { node });
        if !self.nodes[node].is_up() {
            return;
        }
        let mut believed = self.nodes[node].believed_dead.clone();
        for other in (0..self.nodes.len()).filter(|&other| other != node) {
            let gone = !self.nodes[other].is_up()
                || self.nodes[other].paused_until > self.now
                || self.cuts.contains(&(other, node));
            let lie = self.rng.chance(self.faults.lies);
            if lie {
                self.count("fault: wrong belief");
            }
            if lie || self.rng.chance(600) {
                let id = self.nodes[other].id;
                let dead = gone ^ lie;
                if dead {
                    believed.insert(id);
                } else {
                    believed.remove(&id);
                }
            }
        }
        if believed != self.nodes[node].believed_dead {
            self.nodes[node].believed_dead.clone_from(&believed);
            self.input_all(node, || Input::Liveness(believed.iter().copied().collect()));
        }
        if self.nodes[node].applied + 1 < self.configs.len() && self.rng.chance(500) {
            let life = self.nodes[node].life;
            self.schedule(0, Ev::Apply { node, life });
        }
        self.judge_clock(node);
    }

    fn judge_clock(&mut self, node: usize) {
        let mut offsets: Vec<i64> = self.nodes.iter().map(|node| node.offset).collect();
        offsets.sort_unstable();
        let median = offsets[offsets.len() / 2];
        let off = self.nodes[node].offset.abs_diff(median);
        let trusted = off <= self.plan.drift_max;
        if trusted != self.nodes[node].trusted {
            self.nodes[node].trusted = trusted;
            self.count("rare: clock judged anew");
            self.input_all(node, || Input::ClockTrusted(trusted));
        }
    }
}
