//! The search itself, for one key. See the parent module for the method and its sources.

use std::collections::HashMap;
use std::sync::Arc;

use crate::history::{Call, Operation, Outcome, Value};

/// Configurations held at a time; real histories need a handful, so this only stops a runaway.
const CONFIGURATIONS_MAX: usize = 200_000;
/// Operations of known outcome that may be under way at a time on one key.
const PENDING_MAX: usize = 128;

/// Why a history is impossible, or cannot be judged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// A read saw a value that no put wrote.
    #[error("a read saw {value}, which nobody wrote")]
    NeverWritten {
        /// What was seen.
        value: Value,
    },
    /// A read saw a value whose put was refused for sure.
    #[error("a read saw {value}, whose put was refused")]
    WriteRefused {
        /// What was seen.
        value: Value,
    },
    /// A read returned a value before its put was invoked.
    #[error("a read saw {value} before its put began")]
    ReadBeforeWritten {
        /// What was seen.
        value: Value,
    },
    /// Every order contradicts some answer.
    #[error("no order of the operations explains the answers")]
    NoOrder,
    /// Two puts wrote the same value: a fault of the test, not of the store.
    #[error("{value} was put twice, so this history cannot be judged")]
    NotUnique {
        /// What was put twice.
        value: Value,
    },
    /// Too many operations at a time: a fault of the test, not of the store.
    #[error("more than {PENDING_MAX} operations at a time, so this history cannot be judged")]
    TooConcurrent,
    /// The search outgrew its bound.
    #[error("more than {CONFIGURATIONS_MAX} configurations, so this history cannot be judged")]
    TooManyConfigurations,
}

/// Interned value; `ABSENT` is "no such key".
type ValueId = u32;
const ABSENT: ValueId = 0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Put,
    Get,
    Delete,
}

/// An operation that must be in the order (its outcome is known, or somebody saw its effect).
#[derive(Debug, Clone, Copy)]
struct Step {
    kind: Kind,
    value: ValueId,
    invoked: u64,
    returned: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A delete that may take effect from now on, once, or never.
    SpareDelete,
    Invoke(usize),
    Return(usize),
}

/// The history in the form that the search wants.
struct Prepared {
    steps: Vec<Step>,
    events: Vec<Event>,
    /// By value: the position in `events` of the last invocation of a read of it.
    last_read: Vec<usize>,
}

/// Searches for an order that explains `operations` (all of one key); answers with the largest
/// number of configurations held at a time.
///
/// # Errors
/// The reason why there is none.
pub(super) fn search(operations: &[Operation]) -> Result<usize, Reason> {
    let prepared = prepare(operations)?;
    let mut walk = Walk::new(&prepared);
    let mut most = 1;
    for (position, event) in prepared.events.iter().enumerate() {
        match *event {
            Event::SpareDelete => walk.spare_deletes += 1,
            Event::Invoke(step) => walk.on_invoke(step)?,
            Event::Return(step) => walk.on_return(step, position)?,
        }
        most = most.max(walk.configurations.len());
    }
    Ok(most)
}

fn prepare(operations: &[Operation]) -> Result<Prepared, Reason> {
    let ids = intern(operations)?;
    let mut steps = Vec::with_capacity(operations.len());
    let mut spare = Vec::new();
    let mut unknown_puts = Vec::new();
    // By value: when the first read of it returned.
    let mut first_seen: Vec<Option<u64>> = vec![None; ids.len() + 1];
    for operation in operations {
        let (invoked, returned) = (operation.invoked_ns, operation.returned_ns);
        let step = |kind, value| Step {
            kind,
            value,
            invoked,
            returned,
        };
        match (&operation.call, &operation.outcome) {
            (_, Outcome::Refused) | (Call::Get, Outcome::Unknown | Outcome::Written) => {}
            (Call::Put(value), Outcome::Unknown) => unknown_puts.push(step(Kind::Put, ids[value])),
            (Call::Put(value), _) => steps.push(step(Kind::Put, ids[value])),
            (Call::Delete, Outcome::Unknown) => spare.push(invoked),
            (Call::Delete, _) => steps.push(step(Kind::Delete, ABSENT)),
            (Call::Get, Outcome::Saw(None)) => steps.push(step(Kind::Get, ABSENT)),
            (Call::Get, Outcome::Saw(Some(value))) => {
                let id = *ids.get(value).ok_or_else(|| unwritten(operations, value))?;
                let seen = &mut first_seen[id as usize];
                *seen = Some(seen.map_or(returned, |earlier| earlier.min(returned)));
                steps.push(step(Kind::Get, id));
            }
        }
    }
    // Whoever saw an unknown put's value proves that it took effect by then; one that nobody saw
    // explains nothing and can be left out.
    steps.extend(
        unknown_puts.into_iter().filter_map(|put| {
            first_seen[put.value as usize].map(|returned| Step { returned, ..put })
        }),
    );
    for put in steps.iter().filter(|step| step.kind == Kind::Put) {
        if first_seen[put.value as usize].is_some_and(|seen| seen < put.invoked) {
            return Err(Reason::ReadBeforeWritten {
                value: value_of(&ids, put.value),
            });
        }
    }
    let (events, last_read) = order(&steps, &spare, ids.len() + 1);
    Ok(Prepared {
        steps,
        events,
        last_read,
    })
}

/// Numbers the values that may have been written, from 1.
fn intern(operations: &[Operation]) -> Result<HashMap<Value, ValueId>, Reason> {
    let mut ids = HashMap::new();
    for operation in operations {
        if let Call::Put(value) = &operation.call {
            if operation.outcome == Outcome::Refused {
                continue;
            }
            let id = ids.len() as ValueId + 1;
            if ids.insert(Arc::clone(value), id).is_some() {
                return Err(Reason::NotUnique {
                    value: Arc::clone(value),
                });
            }
        }
    }
    Ok(ids)
}

fn unwritten(operations: &[Operation], value: &Value) -> Reason {
    let value = Arc::clone(value);
    let refused = operations
        .iter()
        .any(|op| matches!(&op.call, Call::Put(put) if *put == value));
    if refused {
        Reason::WriteRefused { value }
    } else {
        Reason::NeverWritten { value }
    }
}

fn value_of(ids: &HashMap<Value, ValueId>, id: ValueId) -> Value {
    ids.iter()
        .find(|(_, known)| **known == id)
        .map_or_else(|| "?".into(), |(value, _)| Arc::clone(value))
}

/// Events in time order. At equal times invocations come before returns: what touches overlaps.
fn order(steps: &[Step], spare: &[u64], values: usize) -> (Vec<Event>, Vec<usize>) {
    let mut timed: Vec<(u64, bool, Event)> = spare
        .iter()
        .map(|invoked| (*invoked, false, Event::SpareDelete))
        .collect();
    for (index, step) in steps.iter().enumerate() {
        timed.push((step.invoked, false, Event::Invoke(index)));
        timed.push((step.returned.max(step.invoked), true, Event::Return(index)));
    }
    timed.sort_unstable();
    let mut last_read = vec![0; values];
    for (position, (_, _, event)) in timed.iter().enumerate() {
        if let Event::Invoke(index) = event {
            let step = &steps[*index];
            if step.kind == Kind::Get {
                last_read[step.value as usize] = position;
            }
        }
    }
    (
        timed.into_iter().map(|(_, _, event)| event).collect(),
        last_read,
    )
}

/// What may be true at one moment: which pending operations (bits are slots) took effect already,
/// and the register's value.
type Configuration = (u128, ValueId);

struct Walk<'a> {
    prepared: &'a Prepared,
    /// Each configuration with the fewest spare deletes that lead to it: fewer is never worse.
    configurations: HashMap<Configuration, usize>,
    /// Spare deletes invoked so far.
    spare_deletes: usize,
    /// Which step is pending in which slot.
    slots: Vec<Option<usize>>,
}

/// The pending operations at one moment, as slot sets.
struct Pending {
    /// Puts whose reads are all pending or done, together with those reads.
    closed: u128,
    /// Reads of an absent key.
    absent_reads: u128,
    /// Deletes, the one that returns first first.
    deletes: Vec<u128>,
}

impl<'a> Walk<'a> {
    fn new(prepared: &'a Prepared) -> Self {
        Self {
            prepared,
            configurations: HashMap::from([((0, ABSENT), 0)]),
            spare_deletes: 0,
            slots: Vec::new(),
        }
    }

    fn on_invoke(&mut self, step: usize) -> Result<(), Reason> {
        let slot = match self.slots.iter().position(Option::is_none) {
            Some(slot) => slot,
            None if self.slots.len() < PENDING_MAX => {
                self.slots.push(None);
                self.slots.len() - 1
            }
            None => return Err(Reason::TooConcurrent),
        };
        self.slots[slot] = Some(step);
        let Step { kind, value, .. } = self.prepared.steps[step];
        if kind == Kind::Get {
            self.rebuild(|(mask, now), spent, into| {
                let mask = if now == value {
                    mask | (1 << slot)
                } else {
                    mask
                };
                into.push(((mask, now), spent));
            })?;
        }
        Ok(())
    }

    fn on_return(&mut self, step: usize, position: usize) -> Result<(), Reason> {
        let Some(slot) = self.slots.iter().position(|pending| *pending == Some(step)) else {
            return Ok(());
        };
        let bit = 1_u128 << slot;
        let pending = self.pending(position);
        let target = self.prepared.steps[step];
        let write = self.write_bits(target.value);
        let (spare, last_read) = (self.spare_deletes, &self.prepared.last_read);
        self.rebuild(|(mask, now), spent, into| {
            if mask & bit != 0 {
                into.push(((mask & !bit, now), spent));
                return;
            }
            if now != ABSENT && last_read[now as usize] > position {
                return;
            }
            let before = mask | pending.closed;
            let absences = pending.absences(mask, spent, spare);
            if target.value == ABSENT {
                // A delete that returns together with others may not be among the first of them.
                let done = absences.filter(|(mask, _)| mask & bit != 0);
                into.extend(done.map(|(mask, spent)| (((mask | before) & !bit, ABSENT), spent)));
            } else if let Some((put, reads)) = write
                && mask & put == 0
            {
                let after = |mask: u128| ((mask | before | put | reads) & !bit, target.value);
                into.push((after(mask), spent));
                into.extend(absences.map(|(mask, spent)| (after(mask), spent)));
            }
        })?;
        self.slots[slot] = None;
        Ok(())
    }

    /// Replaces every configuration by those that `expand` pushes for it.
    fn rebuild(
        &mut self,
        mut expand: impl FnMut(Configuration, usize, &mut Vec<(Configuration, usize)>),
    ) -> Result<(), Reason> {
        let mut next = HashMap::with_capacity(self.configurations.len());
        let mut pushed = Vec::new();
        for (configuration, spent) in self.configurations.drain() {
            expand(configuration, spent, &mut pushed);
            for (configuration, spent) in pushed.drain(..) {
                let fewest = next.entry(configuration).or_insert(spent);
                *fewest = spent.min(*fewest);
            }
        }
        self.configurations = next;
        match self.configurations.len() {
            0 => Err(Reason::NoOrder),
            n if n > CONFIGURATIONS_MAX => Err(Reason::TooManyConfigurations),
            _ => Ok(()),
        }
    }

    /// The slot of the pending put of a value and the slots of the pending reads of it.
    fn write_bits(&self, value: ValueId) -> Option<(u128, u128)> {
        let mut put = 0;
        let mut reads = 0;
        for (bit, step) in self.occupied() {
            match step.kind {
                Kind::Put if step.value == value => put = bit,
                Kind::Get if step.value == value => reads |= bit,
                _ => {}
            }
        }
        (put != 0).then_some((put, reads))
    }

    fn occupied(&self) -> impl Iterator<Item = (u128, Step)> {
        self.slots
            .iter()
            .enumerate()
            .filter_map(|(slot, step)| step.map(|step| (1 << slot, self.prepared.steps[step])))
    }

    fn pending(&self, position: usize) -> Pending {
        let mut pending = Pending {
            closed: 0,
            absent_reads: 0,
            deletes: Vec::new(),
        };
        let mut deletes = Vec::new();
        for (bit, step) in self.occupied() {
            match step.kind {
                Kind::Put if self.prepared.last_read[step.value as usize] <= position => {
                    let (put, reads) = self.write_bits(step.value).unwrap_or_default();
                    pending.closed |= put | reads;
                }
                Kind::Get if step.value == ABSENT => pending.absent_reads |= bit,
                Kind::Delete => deletes.push((step.returned, bit)),
                Kind::Put | Kind::Get => {}
            }
        }
        deletes.sort_unstable();
        pending.deletes = deletes.into_iter().map(|(_, bit)| bit).collect();
        pending
    }
}

impl Pending {
    /// The ways to let the key be absent for a moment: the first one, two, … of the pending deletes
    /// or, when there is none, a spare one. Each comes with all reads that saw nothing.
    fn absences(
        &self,
        mask: u128,
        spent: usize,
        spare: usize,
    ) -> impl Iterator<Item = (u128, usize)> {
        let mut so_far = mask | self.absent_reads;
        let mut ways = Vec::new();
        for bit in self.deletes.iter().filter(|bit| mask & **bit == 0) {
            so_far |= bit;
            ways.push((so_far, spent));
        }
        if ways.is_empty() && spent < spare {
            ways.push((so_far, spent + 1));
        }
        ways.into_iter()
    }
}
