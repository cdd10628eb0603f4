//! What clients did and saw: operations with the times between which each must have happened.
//!
//! All times come from one clock (one test process), so "returned before the other was invoked" is
//! a fact and not an estimate. Values of puts are unique within a history: the checker rests on it.

use std::fmt;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// A value that a client wrote or read. Puts of one history never write the same value twice.
pub type Value = Arc<str>;

/// What a client asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// Write this value.
    Put(Value),
    /// Write a tombstone.
    Delete,
    /// Read.
    Get,
}

/// What the client learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The write was acknowledged.
    Written,
    /// The read returned this; `None` is "no such key".
    Saw(Option<Value>),
    /// It had no effect and never will (for example a 400, or a connection that was refused).
    Refused,
    /// Nobody knows: a timeout, a 503, a connection that was cut. A write may take effect at any
    /// time after its invocation, or never.
    Unknown,
}

/// One operation of one client on one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Who asked; a client has one operation at a time.
    pub client: u32,
    /// Which key.
    pub key: Arc<str>,
    /// What was asked.
    pub call: Call,
    /// When it was sent, in nanoseconds since the history began.
    pub invoked_ns: u64,
    /// When the answer (or the error) was there, in nanoseconds since the history began.
    pub returned_ns: u64,
    /// What came back.
    pub outcome: Outcome,
    /// What else the answer said (the version, say); for people, not for the checker.
    pub note: Option<Arc<str>>,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |ns: u64| ns as f64 / 1e6;
        let asked = match &self.call {
            Call::Put(value) => format!("put {value}"),
            Call::Delete => "delete".to_owned(),
            Call::Get => "get".to_owned(),
        };
        let answer = match &self.outcome {
            Outcome::Written => "acknowledged".to_owned(),
            Outcome::Saw(Some(value)) => format!("saw {value}"),
            Outcome::Saw(None) => "saw nothing".to_owned(),
            Outcome::Refused => "refused".to_owned(),
            Outcome::Unknown => "outcome unknown".to_owned(),
        };
        write!(
            f,
            "client {:>3}  [{:>12.3} .. {:>12.3} ms]  {asked:<20} {answer:<20} {}",
            self.client,
            ms(self.invoked_ns),
            ms(self.returned_ns),
            self.note.as_deref().unwrap_or_default(),
        )
    }
}

/// Collects the operations of many threads under one clock.
#[derive(Debug)]
pub struct Recorder {
    began: Instant,
    operations: Mutex<Vec<Operation>>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            operations: Mutex::new(Vec::new()),
        }
    }
}

impl Recorder {
    /// A recorder whose clock starts now.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nanoseconds since the recorder was made.
    pub fn now_ns(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    /// Runs `ask`, which answers with the outcome and a note, and records it with the times around it.
    pub fn run(
        &self,
        client: u32,
        key: &Arc<str>,
        call: Call,
        ask: impl FnOnce() -> (Outcome, Option<Arc<str>>),
    ) -> Outcome {
        let invoked_ns = self.now_ns();
        let (outcome, note) = ask();
        let operation = Operation {
            client,
            key: Arc::clone(key),
            call,
            invoked_ns,
            returned_ns: self.now_ns(),
            outcome: outcome.clone(),
            note,
        };
        self.operations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(operation);
        outcome
    }

    /// How many operations have returned so far.
    pub fn len(&self) -> usize {
        self.operations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Whether none has returned yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Everything recorded so far, in the order in which it returned.
    pub fn operations(&self) -> Vec<Operation> {
        self.operations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Writes a history to a file, one operation a line, so that a failure can be studied later.
///
/// # Errors
/// When the file cannot be written.
pub fn dump(operations: &[Operation], path: &Path) -> io::Result<()> {
    let mut file = io::BufWriter::new(std::fs::File::create(path)?);
    for operation in operations {
        writeln!(file, "{:<12} {operation}", operation.key)?;
    }
    file.flush()
}
