//! A small deterministic world of cluster machines: virtual time, a network that loses, doubles and
//! reorders, disks that forget what was not committed when their node crashes. One seed, one run.
//!
//! It watches, at every step, what must never break: one config per version, none skipped, no ballot of
//! two lives, no vote before it is on disk, no switch before all are complete.

#![allow(dead_code)] // each test file uses its part

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use torc_protocol::agree::{Acceptor, Ballot};
use torc_protocol::cluster::Cluster;
use torc_protocol::cluster_admin::{AdminError, AdminId, AdminReply, AdminRequest, Status};
use torc_protocol::cluster_io::LEFTOVERS_MAX;
use torc_protocol::cluster_io::{
    ChangeOutcome, ClusterEvent, ClusterInput, ClusterOutput, ClusterSettings, Persisted,
};
use torc_protocol::cluster_message::{ClusterMessage, JoinRefusal};
use torc_protocol::message::{PeerBody, PeerMessage};
use torc_protocol::rng::Rng;
use torc_protocol::store::{Batch, CommitId, Leftover, StateKey, StoreError, Write};
use torc_protocol::time::{MS, Mono, Now, SECOND, Wall};
use torc_protocol::wire;
use torc_ring::config::{Secret, WEIGHT_DEFAULT};
use torc_ring::{BucketId, ClusterId, Config, ConfigVersion, Member, NodeId, RingVersion, Token};

const EPOCH: u64 = 1_700_000_000 * SECOND;

/// What the world does to its nodes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    /// One of so many messages is lost; 0 for none.
    pub(crate) loss: u64,
    /// One of so many messages comes twice; 0 for none.
    pub(crate) double: u64,
    /// Greatest delay of a message, in microseconds.
    pub(crate) delay: u64,
    /// One of so many commits fails; 0 for none.
    pub(crate) full_disk: u64,
}

impl Weather {
    pub(crate) const CALM: Self = Self {
        loss: 0,
        double: 0,
        delay: 2 * MS,
        full_disk: 0,
    };
    pub(crate) const STORM: Self = Self {
        loss: 8,
        double: 10,
        delay: 400 * MS,
        full_disk: 60,
    };
}

#[derive(Debug)]
enum Happening {
    Deliver {
        to: usize,
        from: NodeId,
        frame: Bytes,
    },
    Commit {
        to: usize,
        life: u64,
    },
    Answer {
        to: usize,
        life: u64,
        answer: Answer,
    },
    Wake {
        to: usize,
        life: u64,
    },
    Start {
        node: usize,
    },
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    Drained(RingVersion),
    Leftovers(ConfigVersion),
    Covered(RingVersion),
    Dialled(NodeId),
    Contacts,
}

/// How a node was started.
#[derive(Clone, Debug)]
pub(crate) enum Flags {
    Bootstrap,
    Join(Vec<usize>),
}

pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) name: String,
    pub(crate) flags: Flags,
    pub(crate) disk: BTreeMap<StateKey, Bytes>,
    pub(crate) machine: Option<Cluster>,
    life: u64,
    commits: VecDeque<(CommitId, Batch)>,
    wake: Option<Mono>,
    /// The shards' state in this life.
    ring: Option<RingVersion>,
    pub(crate) serves: bool,
    /// Handed out last in this life.
    applied: Option<ConfigVersion>,
    pub(crate) clock_ahead: i64,
    pub(crate) trusted: bool,
    pub(crate) refused: Option<JoinRefusal>,
    pub(crate) amnesia: bool,
    pub(crate) removed: bool,
    /// Whether it left of its own will.
    pub(crate) graceful: Option<bool>,
    /// Its shards get what they gain.
    pub(crate) covers: bool,
    /// The config by which its disk was cleaned last.
    cleaned: ConfigVersion,
    /// Ranges on its disk that it does not own.
    pub(crate) leftovers: usize,
    pub(crate) replaces: Option<String>,
    /// Its power was cut without fsync, and it has not got everything back.
    pub(crate) lost: bool,
    /// Ring versions under which it told its shards to serve, one for each life that came so far.
    pub(crate) served: Vec<RingVersion>,
    pub(crate) events: Vec<ClusterEvent>,
    /// Nobody reaches it at the address that it gives.
    pub(crate) wrong_address: bool,
}

pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) weather: Weather,
    pub(crate) nodes: Vec<Node>,
    pub(crate) decided: BTreeMap<ConfigVersion, Arc<Config>>,
    pub(crate) cut: BTreeSet<(NodeId, NodeId)>,
    rng: Rng,
    queue: BTreeMap<(u64, u64), Happening>,
    next: u64,
    ballots: BTreeMap<Ballot, (usize, u64)>,
    /// Who has everything that it gains, and under which joint ring version.
    pub(crate) covered: BTreeSet<(NodeId, RingVersion)>,
    pub(crate) replies: BTreeMap<AdminId, Result<AdminReply, AdminError>>,
    next_admin: u64,
    /// How long it takes to cover what a node gains, at most, in microseconds.
    pub(crate) cover_delay: u64,
    #[cfg(feature = "mutants")]
    pub(crate) mutant: Option<torc_protocol::mutant::Mutant>,
}

pub(crate) fn member(index: usize) -> Member {
    Member {
        id: NodeId(100 + index as u64),
        name: format!("node-{index}"),
        zone: String::new(),
        weight: WEIGHT_DEFAULT,
        peer: format!("127.0.0.1:{}", 7000 + index),
        http: format!("127.0.0.1:{}", 8000 + index),
    }
}

impl World {
    pub(crate) fn new(seed: u64, weather: Weather) -> Self {
        Self {
            now: SECOND,
            weather,
            nodes: Vec::new(),
            decided: BTreeMap::new(),
            cut: BTreeSet::new(),
            rng: Rng::new(seed),
            queue: BTreeMap::new(),
            next: 0,
            ballots: BTreeMap::new(),
            covered: BTreeSet::new(),
            replies: BTreeMap::new(),
            next_admin: 0,
            cover_delay: 300 * MS,
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }

    /// An operator asks that node.
    pub(crate) fn admin(&mut self, index: usize, request: AdminRequest) -> AdminId {
        self.next_admin += 1;
        let id = AdminId(self.next_admin);
        self.input(index, ClusterInput::Admin(id, request));
        id
    }

    /// Asks, and waits for the answer.
    pub(crate) fn ask(
        &mut self,
        index: usize,
        request: AdminRequest,
    ) -> Result<AdminReply, AdminError> {
        let id = self.admin(index, request);
        self.run_till(15 * SECOND, |world| world.replies.contains_key(&id));
        self.replies.remove(&id).expect("an operator is answered")
    }

    pub(crate) fn status(&mut self, index: usize) -> Status {
        match self.ask(index, AdminRequest::Status) {
            Ok(AdminReply::Status(status)) => *status,
            other => panic!("no status: {other:?}"),
        }
    }

    /// Adds a node that starts after `delay` microseconds; answers its index.
    pub(crate) fn add(&mut self, flags: Flags, delay: u64) -> usize {
        let index = self.nodes.len();
        let own = member(index);
        self.nodes.push(Node {
            id: own.id,
            name: own.name,
            flags,
            disk: BTreeMap::new(),
            machine: None,
            life: 0,
            commits: VecDeque::new(),
            wake: None,
            ring: None,
            serves: false,
            applied: None,
            clock_ahead: 0,
            trusted: true,
            refused: None,
            amnesia: false,
            removed: false,
            graceful: None,
            covers: true,
            cleaned: ConfigVersion(0),
            leftovers: 0,
            replaces: None,
            lost: false,
            served: Vec::new(),
            events: Vec::new(),
            wrong_address: false,
        });
        self.after(delay, Happening::Start { node: index });
        index
    }

    pub(crate) fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    fn after(&mut self, delay: u64, what: Happening) {
        self.next += 1;
        self.queue.insert((self.now + delay, self.next), what);
    }

    fn one_in(&mut self, n: u64) -> bool {
        n > 0 && self.rng.between(0, n) == 0
    }

    fn index(&self, id: NodeId) -> Option<usize> {
        self.nodes.iter().position(|node| node.id == id)
    }

    fn time(&self, node: usize) -> Now {
        let wall = (EPOCH + self.now).saturating_add_signed(self.nodes[node].clock_ahead);
        Now {
            mono: Mono(self.now),
            wall: Wall(wall),
        }
    }

    pub(crate) fn start(&mut self, index: usize) {
        let now = self.time(index);
        let mut own = member(index);
        own.id = self.nodes[index].id;
        own.name.clone_from(&self.nodes[index].name);
        let seed = self.rng.next_u64();
        let node = &mut self.nodes[index];
        if node.machine.is_some()
            || node.removed
            || node.refused.as_ref().is_some_and(JoinRefusal::is_final)
        {
            return;
        }
        node.life += 1;
        node.wake = None;
        let state = node.disk.iter().map(|(key, value)| (*key, value.clone()));
        let persisted = Persisted::read(own, state).expect("what the node wrote can be read");
        let is_used = !persisted.decided.is_empty();
        let mut settings = ClusterSettings::new(seed);
        settings.replaces.clone_from(&node.replaces);
        settings.lost = node.lost;
        #[cfg(feature = "mutants")]
        {
            settings.mutant = self.mutant;
        }
        let mut machine = Cluster::new(persisted, settings, now);
        let flags = node.flags.clone();
        let life = node.life;
        if matches!(flags, Flags::Bootstrap) && !is_used {
            let secret = Secret([7; 32]);
            let cluster = ClusterId(1 + index as u64);
            machine.handle(
                now,
                ClusterInput::Bootstrap {
                    cluster,
                    seed: 7,
                    secret,
                    partition_bits: 4,
                },
            );
        }
        node.machine = Some(machine);
        if matches!(flags, Flags::Join(_)) && !is_used {
            let delay = self.rng.between(0, 50 * MS);
            self.after(
                delay,
                Happening::Answer {
                    to: index,
                    life,
                    answer: Answer::Contacts,
                },
            );
        }
        self.drain(index);
    }

    /// The node dies at once: of the commits under way a prefix is on disk.
    pub(crate) fn crash(&mut self, index: usize) {
        let kept = self
            .rng
            .between(0, self.nodes[index].commits.len() as u64 + 1);
        for _ in 0..kept {
            if let Some((_, batch)) = self.nodes[index].commits.pop_front() {
                self.write(index, batch);
            }
        }
        let node = &mut self.nodes[index];
        node.commits.clear();
        node.machine = None;
        node.serves = false;
        node.ring = None;
        node.applied = None;
        node.trusted = true;
        node.life += 1;
    }

    /// Of the commits under way, the one that brings config versions from before the oldest one on disk; with
    /// how many there are in it.
    pub(crate) fn older_on_its_way(&self, index: usize) -> Option<(usize, usize)> {
        let node = &self.nodes[index];
        let decided = |key: &StateKey| match key {
            StateKey::Decided(version) => Some(*version),
            _ => None,
        };
        let oldest = node.disk.keys().find_map(decided)?;
        let is_older = |write: &Write| match write {
            Write::StatePut { key, .. } => decided(key).is_some_and(|version| version < oldest),
            _ => false,
        };
        let mut batches = node.commits.iter().enumerate();
        batches.find_map(|(at, (_, batch))| {
            let older = batch.writes.iter().filter(|write| is_older(write)).count();
            (older > 0).then_some((at, older))
        })
    }

    /// The node dies while a commit is being written: all before it are on disk, and so many writes of it.
    pub(crate) fn crash_within(&mut self, index: usize, commit: usize, writes: usize) {
        let commits = std::mem::take(&mut self.nodes[index].commits);
        for (at, (_, mut batch)) in commits.into_iter().take(commit + 1).enumerate() {
            if at == commit {
                batch.writes.truncate(writes);
            }
            self.write(index, batch);
        }
        self.crash(index);
    }

    /// The config versions on a node's disk.
    pub(crate) fn history(&self, index: usize) -> Vec<u64> {
        let keys = self.nodes[index].disk.keys();
        keys.filter_map(|key| match key {
            StateKey::Decided(version) => Some(version.0),
            _ => None,
        })
        .collect()
    }

    pub(crate) fn start_later(&mut self, index: usize, delay: u64) {
        self.after(delay, Happening::Start { node: index });
    }

    pub(crate) fn input(&mut self, index: usize, input: ClusterInput) {
        let now = self.time(index);
        if let Some(machine) = &mut self.nodes[index].machine {
            machine.handle(now, input);
            self.drain(index);
        }
    }

    /// Lets time pass until nothing is due before `until`.
    pub(crate) fn run_until(&mut self, until: u64) {
        while let Some((&(at, number), _)) = self.queue.iter().next() {
            if at > until {
                break;
            }
            self.now = self.now.max(at);
            if let Some(what) = self.queue.remove(&(at, number)) {
                self.happen(what);
            }
        }
        self.now = until;
    }

    pub(crate) fn run(&mut self, us: u64) {
        self.run_until(self.now + us);
    }

    /// Lets time pass until `condition` holds, at most `us` microseconds; answers whether it does.
    pub(crate) fn run_till(&mut self, us: u64, condition: impl Fn(&Self) -> bool) -> bool {
        let until = self.now + us;
        while self.now < until {
            if condition(self) {
                return true;
            }
            self.run(50 * MS);
        }
        condition(self)
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Start { node } => self.start(node),
            Happening::Deliver { to, from, frame } => {
                let message = wire::decode(&frame).expect("what was encoded decodes");
                let PeerBody::Cluster(body) = message.body else {
                    panic!("the cluster machine sends nothing else");
                };
                self.input(
                    to,
                    ClusterInput::Peer {
                        from,
                        hlc: message.hlc,
                        message: body,
                    },
                );
            }
            Happening::Commit { to, life } if self.nodes[to].life == life => self.finish_commit(to),
            Happening::Answer { to, life, answer } if self.nodes[to].life == life => {
                self.answer(to, answer);
            }
            Happening::Wake { to, life } if self.nodes[to].life == life => {
                self.nodes[to].wake = None;
                self.input(to, ClusterInput::Tick);
            }
            Happening::Commit { .. } | Happening::Answer { .. } | Happening::Wake { .. } => {}
        }
    }

    fn finish_commit(&mut self, index: usize) {
        let Some((id, batch)) = self.nodes[index].commits.pop_front() else {
            return;
        };
        if self.one_in(self.weather.full_disk) {
            self.input(index, ClusterInput::Committed(id, Err(StoreError::Full)));
            return;
        }
        self.write(index, batch);
        self.input(index, ClusterInput::Committed(id, Ok(())));
    }

    fn write(&mut self, index: usize, batch: Batch) {
        for write in batch.writes {
            match write {
                Write::StatePut { key, value } => {
                    if let StateKey::Decided(version) = key {
                        self.check_decided(version, &value);
                    }
                    if key == StateKey::Applied {
                        let version = u64::from_be_bytes(value[..].try_into().expect("eight"));
                        let cleaned = self.nodes[index].cleaned.0;
                        assert!(cleaned >= version, "cleaned before it counts as applied");
                    }
                    self.nodes[index].disk.insert(key, value);
                }
                Write::StateDelete { key } => {
                    self.nodes[index].disk.remove(&key);
                }
                Write::Remove { .. } => panic!("a cluster machine drops no single record"),
                Write::Drop(_) => {
                    self.nodes[index].leftovers = self.nodes[index].leftovers.saturating_sub(1);
                    if self.nodes[index].leftovers == 0 {
                        self.nodes[index].cleaned = ConfigVersion(u64::MAX);
                    }
                }
                other => panic!("the cluster machine does not write {other:?}"),
            }
        }
    }

    fn check_decided(&mut self, version: ConfigVersion, value: &[u8]) {
        let config = Arc::new(wire::decode_config(value).expect("valid"));
        assert_eq!(config.version, version);
        if config.cluster != ClusterId(1) {
            return;
        }
        if let Some(known) = self.decided.get(&version) {
            assert_eq!(**known, *config, "two configs were decided for {version:?}");
            return;
        }
        if let Some(before) = self.decided.get(&ConfigVersion(version.0 - 1)) {
            self.check_switch(&Arc::clone(before), &config);
        }
        self.decided.insert(version, config);
    }

    /// The ring is another one only after everybody who had to be complete was, under this very version.
    fn check_switch(&self, before: &Config, config: &Config) {
        if before.current == config.current {
            return;
        }
        let target = before.target.as_ref().expect("by way of a joint phase");
        assert_eq!(*target, config.current, "the target is the ring");
        let leaves = |member: &&Member| {
            !target.iter().any(|m| m.id == member.id) && !before.abandoned.contains(&member.id)
        };
        for member in target.iter().chain(before.current.iter().filter(leaves)) {
            assert!(
                self.covered.contains(&(member.id, before.ring_version)),
                "a switch, and {} is not complete",
                member.name
            );
        }
    }

    /// The ring version of the config that a node has durably applied.
    fn applied_ring(&self, index: usize) -> Option<RingVersion> {
        let stored = self.nodes[index].disk.get(&StateKey::Applied)?;
        let version = u64::from_be_bytes(stored[..].try_into().expect("eight bytes"));
        let config = self.decided.get(&ConfigVersion(version))?;
        Some(config.ring_version)
    }

    fn answer(&mut self, to: usize, answer: Answer) {
        if let Answer::Covered(ring) = answer
            && self.applied_ring(to).is_none_or(|applied| applied < ring)
        {
            // Shards cover others only under a config that is durably applied.
            let life = self.nodes[to].life;
            self.after(20 * MS, Happening::Answer { to, life, answer });
            return;
        }
        let input = match answer {
            Answer::Drained(ring) => ClusterInput::Drained(ring),
            Answer::Leftovers(version) => {
                let found = self.nodes[to].leftovers;
                if found == 0 {
                    self.nodes[to].cleaned = version;
                }
                let range = |index: usize| Leftover {
                    bucket: BucketId(1),
                    first: Token(2 * index as u64),
                    last: Token(2 * index as u64),
                };
                let ranges = (0..found.min(LEFTOVERS_MAX)).map(range).collect();
                ClusterInput::Leftovers(version, Ok(ranges))
            }
            Answer::Covered(ring) => {
                self.covered.insert((self.nodes[to].id, ring));
                ClusterInput::Covered(ring)
            }
            Answer::Dialled(id) => {
                let reached = self.index(id).is_some_and(|at| {
                    self.nodes[at].machine.is_some() && !self.nodes[at].wrong_address
                });
                ClusterInput::Dialled(id, reached)
            }
            Answer::Contacts => {
                let Flags::Join(contacts) = &self.nodes[to].flags else {
                    return;
                };
                ClusterInput::Contacts(contacts.iter().map(|at| self.nodes[*at].id).collect())
            }
        };
        self.input(to, input);
    }

    /// Does what the machine wants, and sees to it that it is woken in time.
    fn drain(&mut self, index: usize) {
        while let Some(output) = self.nodes[index]
            .machine
            .as_mut()
            .and_then(Cluster::next_output)
        {
            self.carry_out(index, output);
        }
        let life = self.nodes[index].life;
        let deadline = self.nodes[index]
            .machine
            .as_ref()
            .and_then(Cluster::next_deadline);
        let Some(at) = deadline else {
            return;
        };
        assert!(
            at.0 > self.now,
            "a timer that is due was not run: the shell would spin"
        );
        if self.nodes[index].wake.is_none_or(|wake| at < wake) {
            self.nodes[index].wake = Some(at);
            self.after(at.0 - self.now, Happening::Wake { to: index, life });
        }
    }

    fn carry_out(&mut self, index: usize, output: ClusterOutput) {
        let life = self.nodes[index].life;
        let node = &mut self.nodes[index];
        match output {
            ClusterOutput::Send(to, message) => self.carry(index, to, &message),
            ClusterOutput::Commit(id, batch) => {
                node.commits.push_back((id, batch));
                let delay = self.rng.between(MS, 8 * MS);
                self.after(delay, Happening::Commit { to: index, life });
            }
            ClusterOutput::Apply(config) => self.apply(index, &config),
            ClusterOutput::FindLeftovers(config) => {
                let answer = Answer::Leftovers(config.version);
                let delay = self.rng.between(0, 5 * MS);
                self.after(
                    delay,
                    Happening::Answer {
                        to: index,
                        life,
                        answer,
                    },
                );
            }
            ClusterOutput::AdminReply(id, reply) => {
                let before = self.replies.insert(id, reply);
                assert!(before.is_none(), "an operator is answered twice");
            }
            ClusterOutput::Dial(member) => {
                let delay = self.rng.between(MS, 20 * MS);
                let answer = Answer::Dialled(member.id);
                self.after(
                    delay,
                    Happening::Answer {
                        to: index,
                        life,
                        answer,
                    },
                );
            }
            ClusterOutput::Serve => {
                assert!(!node.serves && node.ring.is_some(), "once, and with a ring");
                node.serves = true;
                node.served.extend(node.ring);
            }
            ClusterOutput::Recovered => node.lost = false,
            ClusterOutput::ClockTrusted(trusted) => node.trusted = trusted,
            ClusterOutput::JoinRefused(refusal) => {
                let is_final = refusal.is_final();
                node.refused = Some(refusal);
                if is_final {
                    node.removed |= node.applied.is_some();
                    self.crash(index);
                }
            }
            ClusterOutput::BootstrapRefused(_) => self.crash(index),
            ClusterOutput::Amnesia { .. } => {
                node.amnesia = true;
                self.crash(index);
            }
            ClusterOutput::Removed { graceful, .. } => {
                node.removed = true;
                node.graceful = Some(graceful);
                self.crash(index);
            }
            ClusterOutput::Event(event) => node.events.push(event),
        }
    }

    fn apply(&mut self, index: usize, config: &Config) {
        let life = self.nodes[index].life;
        let node = &mut self.nodes[index];
        assert!(
            node.disk.contains_key(&StateKey::Decided(config.version)),
            "decided first"
        );
        let stored = node.disk.get(&StateKey::Applied).map_or(0, |bytes| {
            u64::from_be_bytes(bytes[..].try_into().expect("eight bytes"))
        });
        // The first one of a life is the one applied last, or a node's very first; then none is skipped.
        let expected = node.applied.map_or(stored, |last| last.0 + 1);
        let is_next = config.version.0 == expected || (node.applied.is_none() && stored == 0);
        assert!(
            is_next,
            "{} skips from {expected} to {:?}",
            node.name, config.version
        );
        node.applied = Some(config.version);
        node.cleaned = ConfigVersion(0);
        node.ring = Some(config.ring_version);
        let ring = config.ring_version;
        let delay = self.rng.between(0, self.weather.delay);
        self.after(
            delay,
            Happening::Answer {
                to: index,
                life,
                answer: Answer::Drained(ring),
            },
        );
        let has_to_cover = config.target.is_some() || config.recovers(self.nodes[index].id);
        if has_to_cover && self.nodes[index].covers {
            let answer = Answer::Covered(ring);
            let delay = delay + self.rng.between(0, self.cover_delay);
            self.after(
                delay,
                Happening::Answer {
                    to: index,
                    life,
                    answer,
                },
            );
        }
    }

    fn carry(&mut self, from: usize, to: NodeId, message: &PeerMessage) {
        self.check_votes(from, message);
        let sender = self.nodes[from].id;
        assert_ne!(sender, to, "never to itself");
        let mut frame = BytesMut::new();
        wire::encode(message, &mut frame).expect("within the limit");
        let frame = frame.freeze();
        let Some(index) = self.index(to) else {
            return;
        };
        if self.cut.contains(&(sender, to)) || self.one_in(self.weather.loss) {
            return;
        }
        let copies = 1 + u64::from(self.one_in(self.weather.double));
        for _ in 0..copies {
            let delay = self.rng.between(MS / 10, self.weather.delay);
            let frame = frame.clone();
            self.after(
                delay,
                Happening::Deliver {
                    to: index,
                    from: sender,
                    frame,
                },
            );
        }
    }

    fn check_votes(&mut self, from: usize, message: &PeerMessage) {
        let PeerBody::Cluster(body) = &message.body else {
            return;
        };
        let (version, ballot, accepts) = match body {
            ClusterMessage::Prepare { ballot, .. } => {
                let life = (from, self.nodes[from].life);
                let known = *self.ballots.entry(*ballot).or_insert(life);
                assert_eq!(known, life, "a ballot is used twice");
                assert!(self.takes_part(from), "proposes before it may");
                return;
            }
            ClusterMessage::Promise {
                version, ballot, ..
            } => (*version, *ballot, false),
            ClusterMessage::Accepted { version, ballot } => (*version, *ballot, true),
            _ => return,
        };
        let node = &self.nodes[from];
        assert!(self.takes_part(from), "votes before it may");
        if node.disk.contains_key(&StateKey::Decided(version)) {
            return;
        }
        let stored = node
            .disk
            .get(&StateKey::Acceptor(version))
            .expect("the vote is on disk");
        let mut acceptor = Acceptor::decode(stored).expect("readable");
        if accepts {
            assert!(
                acceptor
                    .accepted()
                    .is_some_and(|(stored, _)| *stored >= ballot)
            );
        }
        let below = Ballot {
            hlc: torc_protocol::hlc::Hlc(ballot.hlc.0 - 1),
            node: NodeId(0),
        };
        assert!(acceptor.prepare(below).is_err(), "the promise is on disk");
    }

    /// Whether a node has passed its start check. One that has lost records votes before it serves.
    fn takes_part(&self, index: usize) -> bool {
        let node = &self.nodes[index];
        let votes = |machine: &Cluster| node.lost && machine.is_serving();
        node.serves || node.machine.as_ref().is_some_and(votes)
    }

    /// The power of that node is cut: its records may be gone, what is fsynced is not.
    pub(crate) fn cut_power(&mut self, index: usize) {
        self.crash(index);
        self.nodes[index].lost = true;
    }

    pub(crate) fn latest(&self) -> Option<&Arc<Config>> {
        self.decided.values().next_back()
    }

    pub(crate) fn members(&self) -> Vec<usize> {
        let latest = self.latest().into_iter().flat_map(|config| &config.current);
        latest.filter_map(|member| self.index(member.id)).collect()
    }

    /// Everybody who is no refused joiner serves at the newest config, and nobody recovers.
    pub(crate) fn is_formed(&self) -> bool {
        self.all_but(None)
    }

    fn all_but(&self, absent: Option<usize>) -> bool {
        let absent = absent.map(|index| self.nodes[index].id);
        let Some(latest) = self.latest() else {
            return false;
        };
        self.nodes
            .iter()
            .filter(|node| !node.removed && Some(node.id) != absent)
            .filter(|node| node.refused.as_ref().is_none_or(|r| !r.is_final()))
            .all(|node| {
                node.machine.as_ref().is_some_and(|machine| {
                    machine.is_serving()
                        && node.serves
                        && latest.target.is_none()
                        && latest.recovering.is_empty()
                        && machine.applied() == latest.version
                        && machine.latest().map(|config| config.version) == Some(latest.version)
                })
            })
    }

    /// The same, whatever has become of that node.
    pub(crate) fn is_formed_without(&self, absent: usize) -> bool {
        self.all_but(Some(absent))
    }

    pub(crate) fn outcomes(&self, index: usize) -> Vec<ChangeOutcome> {
        let events = self.nodes[index].events.iter();
        events
            .filter_map(|event| match event {
                ClusterEvent::Change { outcome, .. } => Some(*outcome),
                _ => None,
            })
            .collect()
    }

    /// A readable account of where everybody stands, for failures.
    pub(crate) fn account(&self) -> String {
        let newest = self
            .latest()
            .map(|config| (config.version, config.ring_version));
        let mut text = format!(
            "at {} ms, decided {newest:?}, members {:?}\n",
            self.now / MS,
            self.members()
        );
        for node in &self.nodes {
            let machine = node.machine.as_ref();
            let is_news = |event: &&ClusterEvent| !matches!(event, ClusterEvent::PeerClock { .. });
            let events: Vec<_> = node.events.iter().rev().filter(is_news).take(4).collect();
            let _ = writeln!(
                text,
                "  {} up={} serves={} applied={:?} latest={:?} refused={:?} {events:?}",
                node.name,
                machine.is_some(),
                machine.is_some_and(Cluster::is_serving),
                machine.map(Cluster::applied),
                machine.and_then(|machine| machine.latest().map(|config| config.version)),
                node.refused,
            );
        }
        text
    }
}
