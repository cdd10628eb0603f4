//! Clients that put, get and delete over several nodes at a time and record what they saw.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::history::{Call, Operation, Outcome, Recorder, Value};
use crate::http::{Client, HttpError, Request, Response};

/// Failures that are kept for the report; later ones are only counted.
const FAILURES_KEPT: usize = 1_000;
/// Pause after a failure, so that a node that refuses connections is not asked in a busy loop.
const AFTER_FAILURE: Duration = Duration::from_millis(20);

/// What the clients do.
#[derive(Debug, Clone)]
pub struct Mix {
    /// Clients, each a thread with one request at a time.
    pub clients: u32,
    /// Operations that one client makes at most.
    pub operations_max: usize,
    /// Keys in use: `{prefix}0`, `{prefix}1`, …
    pub keys: u32,
    /// Prefix of each key.
    pub prefix: &'static str,
    /// Of 100 operations, this many are puts.
    pub puts: u32,
    /// Of 100 operations, this many are deletes. The rest are gets.
    pub deletes: u32,
    /// Query of gets, without the question mark.
    pub get_query: &'static str,
    /// Query of puts and deletes.
    pub put_query: &'static str,
    /// How long a client waits for an answer.
    pub timeout: Duration,
    /// Pause between two operations of a client; zero for none.
    pub pace: Duration,
    /// Whether the nodes' clocks agree. Without that, a write may be told that a newer version was there
    /// already although every earlier write had returned: nobody need ever see it then.
    pub one_clock: bool,
}

impl Default for Mix {
    fn default() -> Self {
        Self {
            clients: 12,
            operations_max: 100_000,
            keys: 6,
            prefix: "key-",
            puts: 40,
            deletes: 5,
            get_query: "r=quorum",
            put_query: "w=quorum",
            timeout: Duration::from_secs(5),
            pace: Duration::ZERO,
            one_clock: true,
        }
    }
}

impl Mix {
    /// The keys in use.
    pub fn keys(&self) -> impl Iterator<Item = Arc<str>> + use<> {
        let prefix = self.prefix;
        (0..self.keys).map(move |key| format!("{prefix}{key}").into())
    }
}

/// What a load does besides its [`Mix`].
#[derive(Debug, Clone, Default)]
pub struct Extras {
    /// Each key is put once before anything else.
    pub fill: bool,
    /// Half of all operations go to the first so many keys; 0 for none in particular.
    pub hot: u32,
    /// Values are filled up to so many bytes; 0 for none.
    pub value_bytes: usize,
}

/// What values are filled up with.
const FILLER: char = '.';

/// A request that did not succeed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// When it was sent, in nanoseconds since the load began.
    pub invoked_ns: u64,
    /// When it failed, in nanoseconds since the load began.
    pub returned_ns: u64,
    /// Which node was asked.
    pub node: SocketAddr,
    /// What was asked and what came back.
    pub what: String,
}

/// What a load saw.
#[derive(Debug)]
pub struct Seen {
    /// Every operation.
    pub operations: Vec<Operation>,
    /// The first failures.
    pub failures: Vec<Failure>,
    /// All failures.
    pub failures_count: usize,
}

impl Seen {
    /// Operations that succeeded.
    pub fn succeeded(&self) -> usize {
        self.operations.len() - self.failures_count
    }
}

#[derive(Debug, Default)]
struct Failures {
    first: Vec<Failure>,
    count: usize,
}

/// A running load; stops when it is finished or dropped.
#[derive(Debug)]
pub struct Load {
    mix: Mix,
    targets: Arc<Mutex<Vec<SocketAddr>>>,
    filling: Arc<AtomicU32>,
    recorder: Arc<Recorder>,
    failures: Arc<Mutex<Failures>>,
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts the clients. `seed` decides keys and kinds of operations.
    pub fn start(nodes: &[SocketAddr], mix: &Mix, seed: u64) -> Self {
        Self::start_with(nodes, mix, &Extras::default(), seed)
    }

    /// Starts the clients; they do more than their mix says.
    pub fn start_with(nodes: &[SocketAddr], mix: &Mix, extras: &Extras, seed: u64) -> Self {
        let mut load = Self {
            mix: mix.clone(),
            targets: Arc::new(Mutex::new(nodes.to_vec())),
            filling: Arc::new(AtomicU32::new(if extras.fill { mix.clients } else { 0 })),
            recorder: Arc::new(Recorder::new()),
            failures: Arc::default(),
            stop: Arc::default(),
            clients: Vec::new(),
        };
        for id in 0..mix.clients {
            let mut worker = Worker {
                id,
                mix: mix.clone(),
                keys: (0..mix.keys)
                    .map(|key| format!("{}{key}", mix.prefix).into())
                    .collect(),
                extras: extras.clone(),
                random: Random(seed ^ (u64::from(id) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
                targets: Arc::clone(&load.targets),
                nodes: BTreeMap::new(),
                recorder: Arc::clone(&load.recorder),
                failures: Arc::clone(&load.failures),
            };
            let (stop, filling) = (Arc::clone(&load.stop), Arc::clone(&load.filling));
            load.clients.push(thread::spawn(move || {
                if worker.extras.fill {
                    worker.fill(&stop);
                    filling.fetch_sub(1, Ordering::Relaxed);
                }
                for number in 0..worker.mix.operations_max {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    worker.step(number);
                }
            }));
        }
        load
    }

    /// From their next operations on, clients ask these nodes, and no others.
    pub fn set_nodes(&self, nodes: &[SocketAddr]) {
        *self.targets.lock().unwrap_or_else(PoisonError::into_inner) = nodes.to_vec();
    }

    /// Whether every key has been put once, where that was asked for.
    pub fn is_filled(&self) -> bool {
        self.filling.load(Ordering::Relaxed) == 0
    }

    /// Nanoseconds since the load began, on the clock of its operations.
    pub fn now_ns(&self) -> u64 {
        self.recorder.now_ns()
    }

    /// How many operations have returned.
    pub fn operations_so_far(&self) -> usize {
        self.recorder.len()
    }

    /// How many operations have failed.
    pub fn failures_so_far(&self) -> usize {
        self.failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .count
    }

    /// Stops the clients, then reads every key with `r=quorum` through each of `readers`, as part of
    /// the same history: what was acknowledged and is gone contradicts these reads.
    #[track_caller]
    pub fn finish_reading(mut self, readers: &[SocketAddr]) -> Seen {
        self.join();
        for (offset, reader) in readers.iter().enumerate() {
            let id = self.mix.clients + offset as u32;
            let mut client = Client::new(*reader, self.mix.timeout);
            for key in self.mix.keys() {
                let request = Request::get(&format!("/kv/default/{key}?r=quorum"));
                let mut failed = None;
                self.recorder.run(id, &key, Call::Get, || {
                    let answer = client.send(&request);
                    let note = note(*reader, &answer);
                    let (outcome, failure) = judge(&Call::Get, answer);
                    failed = failure;
                    (outcome, Some(note))
                });
                if let Some(failure) = failed {
                    panic!("reading {key} from {reader} after the load: {failure}");
                }
            }
        }
        self.finish()
    }

    /// Like [`Self::finish_reading`], for many keys: each is read once, the readers take turns, and so many
    /// threads read at a time as there were clients.
    #[track_caller]
    pub fn finish_reading_once(mut self, readers: &[SocketAddr]) -> Seen {
        self.join();
        let keys: Vec<Arc<str>> = self.mix.keys().collect();
        let share = keys.len().div_ceil(self.mix.clients.max(1) as usize).max(1);
        let failed = thread::scope(|scope| {
            let threads: Vec<_> = keys
                .chunks(share)
                .enumerate()
                .map(|(number, keys)| {
                    let reader = readers[number % readers.len()];
                    let id = self.mix.clients + number as u32;
                    let (recorder, timeout) = (&self.recorder, self.mix.timeout);
                    scope.spawn(move || read_all(recorder, id, (reader, timeout), keys))
                })
                .collect();
            let joined = threads.into_iter().map(|thread| match thread.join() {
                Ok(failed) => failed,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            joined.flatten().next()
        });
        if let Some(failure) = failed {
            panic!("reading after the load: {failure}");
        }
        self.finish()
    }

    fn join(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            if let Err(panic) = client.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }

    /// Stops the clients and waits for their last answers.
    pub fn finish(mut self) -> Seen {
        self.join();
        let failures =
            std::mem::take(&mut *self.failures.lock().unwrap_or_else(PoisonError::into_inner));
        Seen {
            operations: self.recorder.operations(),
            failures: failures.first,
            failures_count: failures.count,
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Reads each of the keys once; answers with the first failure.
fn read_all(
    recorder: &Recorder,
    id: u32,
    (reader, timeout): (SocketAddr, Duration),
    keys: &[Arc<str>],
) -> Option<String> {
    let mut client = Client::new(reader, timeout);
    for key in keys {
        let request = Request::get(&format!("/kv/default/{key}?r=quorum"));
        let mut failed = None;
        recorder.run(id, key, Call::Get, || {
            let answer = client.send(&request);
            let note = note(reader, &answer);
            let (outcome, failure) = judge(&Call::Get, answer);
            failed = failure;
            (outcome, Some(note))
        });
        if let Some(failure) = failed {
            return Some(format!("{key} from {reader}: {failure}"));
        }
    }
    None
}

struct Worker {
    id: u32,
    mix: Mix,
    extras: Extras,
    keys: Vec<Arc<str>>,
    random: Random,
    targets: Arc<Mutex<Vec<SocketAddr>>>,
    nodes: BTreeMap<SocketAddr, Client>,
    recorder: Arc<Recorder>,
    failures: Arc<Mutex<Failures>>,
}

impl Worker {
    /// Puts this client's share of the keys, each once.
    fn fill(&mut self, stop: &AtomicBool) {
        let first = self.id as usize;
        for at in (first..self.keys.len()).step_by(self.mix.clients as usize) {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let key = Arc::clone(&self.keys[at]);
            let value: Value = format!("f{}-{at}", self.id).into();
            let request = self.put(&key, &value);
            self.ask(&key, &Call::Put(value), &request);
        }
    }

    fn put(&self, key: &str, value: &str) -> Request {
        let target = format!("/kv/default/{key}?{}", self.mix.put_query);
        let mut body = value.to_owned();
        let missing = self.extras.value_bytes.saturating_sub(body.len());
        body.extend(std::iter::repeat_n(FILLER, missing));
        Request::put(&target, body)
    }

    fn step(&mut self, number: usize) {
        let hot = self.extras.hot as usize;
        let among = if hot > 0 && self.random.below(2) == 0 {
            hot.min(self.keys.len())
        } else {
            self.keys.len()
        };
        let key = Arc::clone(&self.keys[self.random.below(among)]);
        let target = |query: &str| format!("/kv/default/{key}?{query}");
        let dice = self.random.below(100) as u32;
        let (call, request) = if dice < self.mix.puts {
            let value: Value = format!("c{}-{number}", self.id).into();
            let request = self.put(&key, &value);
            (Call::Put(value), request)
        } else if dice < self.mix.puts + self.mix.deletes {
            (Call::Delete, Request::delete(&target(self.mix.put_query)))
        } else {
            (Call::Get, Request::get(&target(self.mix.get_query)))
        };
        self.ask(&key, &call, &request);
    }

    /// Asks one of the nodes, and records what came back.
    fn ask(&mut self, key: &Arc<str>, call: &Call, request: &Request) {
        let address = {
            let targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
            targets[self.random.below(targets.len())]
        };
        let timeout = self.mix.timeout;
        let client = self
            .nodes
            .entry(address)
            .or_insert_with(|| Client::new(address, timeout));
        let invoked_ns = self.recorder.now_ns();
        let mut failed = None;
        self.recorder.run(self.id, key, call.clone(), || {
            let answer = client.send(request);
            let note = note(address, &answer);
            let is_superseded = matches!(&answer, Ok(response) if is_superseded(response));
            let (outcome, failure) = judge(call, answer);
            failed = failure;
            let is_void = is_superseded && !self.mix.one_clock && outcome == Outcome::Written;
            let outcome = if is_void { Outcome::Unknown } else { outcome };
            (outcome, Some(note))
        });
        if let Some(what) = failed {
            let what = format!("{} {}: {what}", request.method(), request.target());
            let returned_ns = self.recorder.now_ns();
            let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
            failures.count += 1;
            if failures.first.len() < FAILURES_KEPT {
                failures.first.push(Failure {
                    invoked_ns,
                    returned_ns,
                    node: address,
                    what,
                });
            }
            drop(failures);
            thread::sleep(AFTER_FAILURE);
        } else if !self.mix.pace.is_zero() {
            thread::sleep(self.mix.pace);
        }
    }
}

/// Who was asked, and which version the answer is about.
fn note(node: SocketAddr, answer: &Result<Response, HttpError>) -> Arc<str> {
    let port = node.port();
    match answer {
        Ok(response) => {
            let version = response.header("etag").unwrap_or("no etag");
            let superseded = if is_superseded(response) {
                " superseded"
            } else {
                ""
            };
            format!("{port} {} {version}{superseded}", response.status).into()
        }
        Err(_) => format!("{port}").into(),
    }
}

/// Whether a write was told that a newer version is there.
fn is_superseded(response: &Response) -> bool {
    response.header("x-torc-superseded").is_some()
}

/// What an answer means for the history, and what to say of it if it is a failure.
fn judge(call: &Call, answer: Result<Response, HttpError>) -> (Outcome, Option<String>) {
    let response = match answer {
        Ok(response) => response,
        Err(error) if error.may_have_had_effect() => {
            return (Outcome::Unknown, Some(error.to_string()));
        }
        Err(error) => return (Outcome::Refused, Some(error.to_string())),
    };
    match (call, response.status) {
        (Call::Put(_) | Call::Delete, 204) => (Outcome::Written, None),
        (Call::Get, 200) => {
            let text = response.text();
            let value: Value = text.trim_end_matches(FILLER).into();
            (Outcome::Saw(Some(value)), None)
        }
        (Call::Get, 404) => (Outcome::Saw(None), None),
        // A node that says that nothing was written is taken at its word, and the checker with it.
        (_, status) => {
            let has_no_effect =
                matches!(status, 400..500) || response.json()["outcome"] == "not-written";
            let outcome = if has_no_effect {
                Outcome::Refused
            } else {
                Outcome::Unknown
            };
            (outcome, Some(format!("{status} {}", response.text())))
        }
    }
}

/// A small generator (`SplitMix64`, Steele, Lea and Flood 2014): the load must not depend on which
/// version of which crate draws.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which must not be 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next_u64() % bound as u64) as usize
    }
}

/// A seed for this run: `TORC_SEED` if it is set, else a new one. Printed either way.
pub fn seed() -> u64 {
    let given = std::env::var("TORC_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(0, |since| since.as_nanos() as u64)
    });
    eprintln!("TORC_SEED={seed}");
    seed
}

/// Whether the long form of a test was asked for (`TORC_LONG=1`).
pub fn is_long() -> bool {
    std::env::var("TORC_LONG").is_ok_and(|value| value == "1")
}
