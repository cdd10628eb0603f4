//! Drives the cluster machines: hands them what happens, and does what they want.

use torc_protocol::agree::Acceptor;
use torc_protocol::cluster_io::{
    ChangeOutcome, ClusterEvent, ClusterInput, ClusterOutput, LEFTOVERS_MAX,
};
use torc_protocol::cluster_message::ClusterMessage;
use torc_protocol::message::{PeerBody, PeerMessage};
use torc_protocol::shard_io::Input;
use torc_protocol::store::{Leftover, StateKey};
use torc_protocol::time::{MS, Mono};
use torc_protocol::wire;
use torc_ring::{Config, Member, NodeId, RingVersion};

use super::node::{CLUSTER, Fate, Machine, Place};
use super::text::{BriefCluster, BriefOutput};
use super::{Ev, World};
use crate::check::agreed::Agreed;
use crate::check::{Invariant, Violation};

/// Whether somebody has to get copies from others before the next config.
fn demands_copies(config: &Config) -> bool {
    config.target.is_some() || !config.recovering.is_empty()
}

impl World {
    pub(super) fn cluster_tick(&mut self, node: usize, life: u32) {
        let now = self.now;
        if !self.alive(node, life) {
            return;
        }
        if let Some(machine) = &mut self.nodes[node].machine
            && machine.tick_at.is_some_and(|due| due <= now)
        {
            machine.tick_at = None;
            self.cluster_input(node, ClusterInput::Tick);
        }
    }

    /// From within a node to its cluster machine, in order.
    pub(crate) fn mail_cluster(&mut self, node: usize, input: ClusterInput) {
        let after = self.rng.below(50);
        let now = self.now;
        let this = &mut self.nodes[node];
        let life = this.life;
        let Some(machine) = &mut this.machine else {
            return;
        };
        machine.mail_at = machine.mail_at.max(now + after);
        let after = machine.mail_at - now;
        self.schedule(after, Ev::ClusterMail { node, life, input });
    }

    /// Hands an input to a node's cluster machine if it is there, and does what it wants.
    pub(crate) fn cluster_input(&mut self, node: usize, input: ClusterInput) {
        let now = self.clock(node);
        if self.tracing && !matches!(input, ClusterInput::Tick) {
            self.note(format_args!("n{node} cluster <- {}", BriefCluster(&input)));
        }
        self.mix(node as u64);
        if let Some(machine) = &mut self.nodes[node].machine {
            machine.cluster.handle(now, input);
            self.after_cluster(node);
        }
    }

    /// Does what a cluster machine wants, and sees to it that it is woken in time.
    pub(super) fn after_cluster(&mut self, node: usize) {
        let life = self.nodes[node].life;
        while let Some(output) = self.nodes[node]
            .machine
            .as_mut()
            .and_then(|machine| machine.cluster.next_output())
        {
            if self.tracing
                && !matches!(
                    output,
                    ClusterOutput::Send(..) | ClusterOutput::Event(ClusterEvent::PeerClock { .. })
                )
            {
                self.note(format_args!("n{node} cluster -> {}", BriefOutput(&output)));
            }
            self.cluster_output(node, output);
        }
        let now = self.now;
        let Some(machine) = &mut self.nodes[node].machine else {
            return;
        };
        if let Some(Mono(due)) = machine.cluster.next_deadline() {
            if due <= now {
                let what = format!("n{node} leaves a timer of its cluster machine that is due");
                self.fail(Violation::new(Invariant::Bounded, what));
            } else if machine.tick_at.is_none_or(|scheduled| due < scheduled) {
                machine.tick_at = Some(due);
                self.schedule(due - now, Ev::ClusterTick { node, life });
            }
        }
    }

    /// What a cluster machine wants. A new kind of output goes here.
    fn cluster_output(&mut self, node: usize, output: ClusterOutput) {
        let life = self.nodes[node].life;
        match output {
            ClusterOutput::Send(to, message) => {
                self.observe_cluster(node, &message);
                self.send(node, to, &message);
            }
            ClusterOutput::Commit(id, batch) => {
                let shard = CLUSTER;
                self.commit(Place { node, life, shard }, id, batch);
            }
            ClusterOutput::Apply(config) => self.apply(node, &config),
            ClusterOutput::Dial(member) => self.dial(node, &member),
            ClusterOutput::Serve => self.serve(node),
            ClusterOutput::Recovered => {
                self.count("rare: recovered");
                self.nodes[node].disk.lost = false;
            }
            ClusterOutput::ClockTrusted(trusted) => {
                self.count("rare: clock judged anew");
                self.mail_all(node, || Input::ClockTrusted(trusted));
            }
            ClusterOutput::JoinRefused(refusal) => {
                self.count("rare: join refused");
                if refusal.is_final() {
                    self.retire(node);
                }
            }
            ClusterOutput::BootstrapRefused(_) => {
                self.crash(node);
                let down = self.rng.tailed(200 * MS);
                self.schedule(down, Ev::Restart { node });
            }
            ClusterOutput::Amnesia { .. } => self.on_amnesia(node),
            ClusterOutput::FindLeftovers(config) => {
                self.find_leftovers(node, &config);
                self.crash_at_step(node);
            }
            ClusterOutput::AdminReply(_, reply) => self.count(match reply {
                Ok(_) => "operator's wish granted",
                Err(_) => "operator's wish refused",
            }),
            ClusterOutput::Removed { graceful, .. } => {
                self.count(if graceful {
                    "rare: left"
                } else {
                    "rare: removed"
                });
                self.retire(node);
            }
            ClusterOutput::Event(event) => {
                if let ClusterEvent::Applied { ring, version, .. } = event {
                    let joint = self.agreed.at(version.0).is_some_and(|c| demands_copies(c));
                    self.applied(node, ring, joint);
                    self.crash_at_step(node);
                }
                if let ClusterEvent::Switching { .. } = event {
                    let other = self.rng.below(self.nodes.len() as u64) as usize;
                    self.crash_at_step(other);
                    self.keep_from_one(node);
                }
                self.on_cluster_event(&event);
            }
        }
    }

    fn on_cluster_event(&mut self, event: &ClusterEvent) {
        let name = match event {
            ClusterEvent::Applied { .. } => "config applied",
            ClusterEvent::Change { outcome, .. } => match outcome {
                ChangeOutcome::Started => "change started",
                ChangeOutcome::Proposed => "change proposed",
                ChangeOutcome::Committed => "change committed",
                ChangeOutcome::Postponed => "rare: change postponed",
                ChangeOutcome::Unknown => "rare: change with unknown outcome",
            },
            ClusterEvent::StartWaits { .. } => "rare: start check waits",
            ClusterEvent::StoreFailed { .. } => "rare: cluster state not stored",
            ClusterEvent::ClockDrift { warn: true, .. } => "rare: clock drift warned of",
            ClusterEvent::FarBehind { .. } => "rare: far behind",
            ClusterEvent::Switching { .. } => "switch proposed",
            ClusterEvent::TargetLost { .. } => "rare: target given up",
            ClusterEvent::Recovering { .. } => "rare: recovering",
            ClusterEvent::BadConfig { .. } => {
                self.fail(Violation::new(
                    Invariant::Agreed,
                    "a config was sent that cannot follow",
                ));
                return;
            }
            _ => return,
        };
        self.count(name);
    }

    fn apply(&mut self, node: usize, config: &Config) {
        let this = &mut self.nodes[node];
        let stored = this.disk.visible.applied();
        let id = this.member.id;
        let Some(machine) = &mut this.machine else {
            return;
        };
        let before = machine.handed.replace(config.version);
        let in_order = Agreed::applied(id, (stored, before), config.version);
        self.check(in_order);
        let durable = stored >= config.version.0;
        let placed = self.placed(config);
        self.mail_all(node, || Input::Config(placed.view.clone()));
        if durable {
            self.applied(node, config.ring_version, demands_copies(config));
        }
    }

    /// Shards compare their copies only under a config that is durably applied, and in some worlds only when
    /// the config demands it.
    fn applied(&mut self, node: usize, ring: RingVersion, demanded: bool) {
        if demanded {
            self.slow_while_it_gains(node);
        }
        if self.plan.antientropy || demanded {
            self.mail_all(node, || Input::Applied(ring));
        }
    }

    /// Each record that is not this node's by the config is a range of its own.
    fn find_leftovers(&mut self, node: usize, config: &Config) {
        let view = self.placed(config).view.clone();
        let this = &self.nodes[node];
        let id = this.member.id;
        let mut found: Vec<Leftover> = Vec::new();
        for key in this.disk.visible.records.keys() {
            let partition = key.token.partition(config.partition_bits);
            if !view.keeps(id, key.bucket, partition) {
                let (first, last) = (key.token, key.token);
                let bucket = key.bucket;
                found.push(Leftover {
                    bucket,
                    first,
                    last,
                });
            }
        }
        found.truncate(LEFTOVERS_MAX);
        self.mail_cluster(node, ClusterInput::Leftovers(config.version, Ok(found)));
    }

    fn dial(&mut self, node: usize, member: &Member) {
        let life = self.nodes[node].life;
        let target = self.index_of(member.id);
        let reached = target.is_some_and(|target| {
            self.nodes[target].is_up()
                && !self.cuts.contains(&(node, target))
                && !self.cuts.contains(&(target, node))
        });
        let after = if reached {
            self.rng.tailed(MS)
        } else {
            // The shell's time for a dial is over.
            3_000 * MS
        };
        let input = ClusterInput::Dialled(member.id, reached);
        self.schedule(after, Ev::ClusterMail { node, life, input });
    }

    fn serve(&mut self, node: usize) {
        let this = &mut self.nodes[node];
        let warned = this.machine.as_ref().is_some_and(|machine| machine.warned);
        if this.fate == Fate::SetBack {
            if warned {
                let what = format!("n{node} serves from an old disk though it was told so");
                self.fail(Violation::new(Invariant::Agreed, what));
            } else {
                // No reachable member could notice; that is outside what is promised.
                self.count("rare: old disk image unnoticed");
                self.void = true;
            }
            return;
        }
        this.serving = true;
        self.mail_all(node, || Input::Serve);
    }

    fn on_amnesia(&mut self, node: usize) {
        if self.nodes[node].fate != Fate::SetBack {
            let what = format!("n{node} has forgotten nothing, and was told that it has");
            self.fail(Violation::new(Invariant::Progress, what));
            return;
        }
        self.count("rare: amnesia noticed");
        self.crash(node);
        self.wipe(node);
        let down = self.rng.tailed(200 * MS);
        self.schedule(down, Ev::Restart { node });
    }

    /// An answer to a start check arrives.
    pub(super) fn note_remembered(&mut self, to: usize, message: &ClusterMessage) {
        if let ClusterMessage::StartChecked { bound, remembered } = message
            && remembered > bound
            && self.nodes[to].disk.visible.cluster_bound() == *bound
            && let Some(machine) = &mut self.nodes[to].machine
        {
            machine.warned = true;
        }
    }

    /// Looks at what a cluster machine says before it goes out.
    fn observe_cluster(&mut self, node: usize, message: &PeerMessage) {
        let PeerBody::Cluster(body) = &message.body else {
            return;
        };
        let id = self.nodes[node].member.id;
        let result = match body {
            ClusterMessage::Prepare { version, ballot } => {
                let life = self.nodes[node].life;
                let fresh = self.agreed.prepares(*ballot, (id, life));
                self.check(fresh);
                let decided = self.nodes[node].latest().map(|config| config.version);
                let based = Agreed::proposes(id, decided.unwrap_or_default(), *version);
                self.check(based);
                Agreed::takes_part(id, self.takes_part(node))
            }
            ClusterMessage::Promise {
                version, ballot, ..
            } => self.vote_is_kept(node, id, StateKey::Acceptor(*version), (*ballot, false)),
            ClusterMessage::Accepted { version, ballot } => {
                self.vote_is_kept(node, id, StateKey::Acceptor(*version), (*ballot, true))
            }
            ClusterMessage::Learn { config } => {
                if let Ok(config) = wire::decode_config(&config.0) {
                    self.decided(config);
                }
                return;
            }
            _ => return,
        };
        self.check(result);
    }

    /// Whether a node has passed its start check. One that has lost records votes before it serves.
    fn takes_part(&self, node: usize) -> bool {
        let this = &self.nodes[node];
        let votes = |machine: &Machine| this.disk.lost && machine.cluster.is_serving();
        this.serving || this.machine.as_ref().is_some_and(votes)
    }

    fn vote_is_kept(
        &self,
        node: usize,
        id: NodeId,
        key: StateKey,
        vote: (torc_protocol::agree::Ballot, bool),
    ) -> Result<(), Violation> {
        let states = &self.nodes[node].disk.durable().states;
        if let StateKey::Acceptor(version) = key
            && states.contains_key(&StateKey::Decided(version))
        {
            // What was decided meanwhile says more than the vote.
            return Ok(());
        }
        Agreed::takes_part(id, self.takes_part(node))?;
        let stored = states.get(&key).and_then(|b| Acceptor::decode(b).ok());
        Agreed::votes(id, stored.as_ref(), vote)
    }
}
