//! The checker against histories whose answer is known, and against brute force.

use std::sync::Arc;
use std::time::Instant;

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::check;
use super::search::{Reason, search};
use crate::history::{Call, Operation, Outcome};

/// Reads one history: a line is `client from..to call`, for example `1 0..5 put a`, `2 6..8 get a`,
/// `3 1..2 get -`, `1 3..4 del`; `?` after the call says that the outcome is unknown, `!` refused.
fn history(lines: &str) -> Vec<Operation> {
    lines
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(operation)
        .collect()
}

fn operation(line: &str) -> Operation {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (from, to) = words[1].split_once("..").expect("a range");
    let (call, saw) = match words[2] {
        "put" => (Call::Put(words[3].into()), Outcome::Written),
        "del" => (Call::Delete, Outcome::Written),
        "get" if words[3] == "-" => (Call::Get, Outcome::Saw(None)),
        "get" => (Call::Get, Outcome::Saw(Some(words[3].into()))),
        other => panic!("no such call: {other}"),
    };
    let outcome = match *words.last().expect("words") {
        "?" => Outcome::Unknown,
        "!" => Outcome::Refused,
        _ => saw,
    };
    Operation {
        client: words[0].parse().expect("a client"),
        key: "k".into(),
        call,
        invoked_ns: from.parse().expect("a time"),
        returned_ns: to.parse().expect("a time"),
        outcome,
        note: None,
    }
}

/// Tries every order. Only for a handful of operations.
fn brute_force(operations: &[Operation]) -> bool {
    fn step(rest: &[Operation], value: Option<&str>) -> bool {
        let must: Vec<&Operation> = rest
            .iter()
            .filter(|op| op.outcome != Outcome::Unknown)
            .collect();
        if must.is_empty() {
            return true;
        }
        let horizon = must
            .iter()
            .map(|op| op.returned_ns)
            .min()
            .unwrap_or(u64::MAX);
        (0..rest.len())
            .filter(|i| rest[*i].invoked_ns <= horizon)
            .any(|i| {
                let mut others = rest.to_vec();
                let next = others.remove(i);
                match (&next.call, &next.outcome) {
                    (Call::Put(new), _) => step(&others, Some(new)),
                    (Call::Delete, _) => step(&others, None),
                    (Call::Get, Outcome::Saw(saw)) => {
                        saw.as_deref() == value && step(&others, value)
                    }
                    (Call::Get, _) => step(&others, value),
                }
            })
    }
    let relevant: Vec<_> = operations
        .iter()
        .filter(|op| op.outcome != Outcome::Refused)
        .cloned()
        .collect();
    step(&relevant, None)
}

#[test]
fn possible_histories_are_accepted() {
    let table = [
        ("nothing happened", ""),
        ("an absent key", "1 0..1 get -"),
        (
            "one after the other",
            "1 0..1 put a\n1 2..3 get a\n1 4..5 del\n1 6..7 get -",
        ),
        (
            "overlapping put seen early by one, late by another",
            "1 0..9 put a\n2 1..2 get -\n3 3..4 get a",
        ),
        (
            "overlapping puts in either order",
            "1 0..9 put a\n2 0..9 put b\n3 10..11 get a",
        ),
        (
            "overlapping puts, both seen",
            "1 0..9 put a\n2 0..9 put b\n3 1..2 get b\n3 3..4 get a",
        ),
        (
            "an unknown put that was never seen",
            "1 0..1 put a ?\n2 2..3 get -",
        ),
        (
            "an unknown put seen much later",
            "1 0..1 put a ?\n2 2..3 get -\n2 4..5 get a",
        ),
        (
            "an unknown put over a later put",
            "1 0..1 put a ?\n2 2..3 put b\n2 4..5 get b\n2 6..7 get a",
        ),
        (
            "an unknown delete much later",
            "1 0..1 put a\n2 2..3 del ?\n1 4..5 get a\n1 6..7 get -",
        ),
        (
            "two unknown deletes, two puts",
            "1 0..1 del ?\n2 0..1 del ?\n1 2..3 put a\n1 4..5 get -\n1 6..7 put b\n1 8..9 get -",
        ),
        (
            "a pending delete serves after a put",
            "1 0..20 del\n2 1..2 put a\n2 3..4 get a\n2 5..6 get -",
        ),
        (
            "a refused put that nobody saw",
            "1 0..1 put a !\n2 2..3 get -",
        ),
        (
            "an unknown get says nothing",
            "1 0..1 put a\n2 2..3 get - ?",
        ),
        (
            "a value hidden between two reads",
            "1 0..1 put a\n2 2..9 put b\n3 2..9 put c\n4 3..4 get a\n4 10..11 get c",
        ),
    ];
    for (name, lines) in table {
        let operations = history(lines);
        assert!(
            brute_force(&operations),
            "{name}: the table itself is wrong"
        );
        if let Err(violation) = check(&operations) {
            panic!("{name}: should be accepted, but: {violation}");
        }
    }
}

#[test]
fn impossible_histories_are_rejected_with_a_short_counterexample() {
    let table = [
        ("stale read", "1 0..1 put a\n1 2..3 put b\n2 4..5 get a", 3),
        ("stale absence", "1 0..1 put a\n2 2..3 get -", 2),
        ("lost write", "1 0..1 put a\n2 2..3 get -\n2 4..5 get -", 2),
        ("never written", "1 0..1 put a\n2 2..3 get z", 1),
        ("a refused put seen", "1 0..1 put a !\n2 2..3 get a", 2),
        (
            "seen before it was written",
            "2 0..1 get a\n1 2..3 put a",
            2,
        ),
        (
            "back in time",
            "1 0..1 put a\n2 2..9 put b\n3 3..4 get b\n3 5..6 get a",
            4,
        ),
        (
            "two readers disagree on the order",
            "1 0..9 put a\n2 0..9 put b\n3 1..2 get a\n3 3..4 get b\n4 5..6 get a",
            5,
        ),
        (
            "order of puts that do not overlap",
            "1 0..1 put a\n2 2..3 put b\n3 4..5 get b\n3 6..7 get a",
            3,
        ),
        (
            "a deleted value back",
            "1 0..1 put a\n1 2..3 del\n2 4..5 get -\n2 6..7 get a",
            3,
        ),
        (
            "a deleted value back, nobody saw the absence",
            "1 0..1 put a\n1 2..3 del\n2 6..7 get a",
            3,
        ),
        (
            "an unknown put taken back",
            "1 0..1 put a\n2 2..3 put b ?\n3 4..5 get b\n3 6..7 get a",
            4,
        ),
        (
            "one unknown delete used twice",
            "1 0..1 del ?\n1 2..3 put a\n1 4..5 get -\n1 6..7 put b\n1 8..9 get -",
            5,
        ),
        (
            "an unknown delete before it was asked for",
            "1 0..1 put a\n2 2..3 get -\n1 4..5 del ?",
            2,
        ),
        (
            "a pending delete used twice",
            "1 0..30 del\n2 1..2 put a\n2 3..4 get -\n2 5..6 put b\n2 7..8 get -",
            5,
        ),
    ];
    for (name, lines, length) in table {
        let operations = history(lines);
        assert!(
            !brute_force(&operations),
            "{name}: the table itself is wrong"
        );
        let violation = check(&operations).expect_err(name);
        assert!(
            !brute_force(&violation.operations),
            "{name}: not a counterexample: {violation}"
        );
        assert!(
            violation.operations.len() <= length,
            "{name}: too long: {violation}"
        );
        assert!(
            violation.to_string().contains("key k: "),
            "{name}: {violation}"
        );
    }
}

#[test]
fn a_history_with_one_value_put_twice_is_not_judged() {
    let violation = check(&history("1 0..1 put a\n2 2..3 put a")).expect_err("must not be judged");
    assert_eq!(violation.reason, Reason::NotUnique { value: "a".into() });
}

#[test]
fn keys_are_judged_on_their_own() {
    let mut operations = history("1 0..1 put a\n2 4..5 get a\n1 6..7 put b");
    operations[1].key = "other".into();
    let violation = check(&operations).expect_err("the other key never had this value");
    assert_eq!(&*violation.key, "other");
}

/// Executes random operations one after the other and gives each a random interval around its
/// moment: a history that is linearizable by construction.
fn random_execution(rng: &mut StdRng, clients: u32, each: usize, unknown: f64) -> Vec<Operation> {
    let mut free_at = vec![0_u64; clients as usize];
    let mut value: Option<Arc<str>> = None;
    let mut operations = Vec::new();
    // Writes that answered "unknown" and take effect later, if ever.
    let mut late: Vec<Call> = Vec::new();
    for number in 0..each * clients as usize {
        let moment = (number as u64 + 1) * 1_000;
        let client = rng.random_range(0..clients);
        let earliest =
            free_at[client as usize].max(moment.saturating_sub(1_000 * u64::from(clients)));
        if earliest >= moment {
            continue;
        }
        if !late.is_empty() && rng.random_bool(0.2) {
            let which = rng.random_range(0..late.len());
            value = match late.swap_remove(which) {
                Call::Put(new) => Some(new),
                Call::Delete | Call::Get => None,
            };
        }
        let invoked_ns = rng.random_range(earliest..moment);
        let returned_ns = moment + rng.random_range(0..1_000 * u64::from(clients));
        free_at[client as usize] = returned_ns + 1;
        let is_unknown = rng.random_bool(unknown);
        let call = match rng.random_range(0..10) {
            0..4 => Call::Put(format!("v{number}").into()),
            4 => Call::Delete,
            _ => Call::Get,
        };
        let outcome = match (&call, is_unknown) {
            (Call::Get, true) => Outcome::Unknown,
            (Call::Get, false) => Outcome::Saw(value.clone()),
            (_, true) => {
                late.push(call.clone());
                Outcome::Unknown
            }
            (Call::Put(new), false) => {
                value = Some(Arc::clone(new));
                Outcome::Written
            }
            (Call::Delete, false) => {
                value = None;
                Outcome::Written
            }
        };
        operations.push(Operation {
            client,
            key: "k".into(),
            call,
            invoked_ns,
            returned_ns,
            outcome,
            note: None,
        });
    }
    operations
}

/// Lets one read that began after two puts, one after the other, see the older of them.
fn make_stale(rng: &mut StdRng, operations: &mut [Operation]) -> bool {
    let puts: Vec<(u64, u64, Arc<str>)> = operations
        .iter()
        .filter_map(|op| match (&op.call, &op.outcome) {
            (Call::Put(value), Outcome::Written) => {
                Some((op.invoked_ns, op.returned_ns, Arc::clone(value)))
            }
            _ => None,
        })
        .collect();
    let start = rng.random_range(0..operations.len());
    for offset in 0..operations.len() {
        let read = &mut operations[(start + offset) % operations.len()];
        if read.call != Call::Get || matches!(read.outcome, Outcome::Unknown) {
            continue;
        }
        let Some(newer) = puts.iter().rev().find(|put| put.1 < read.invoked_ns) else {
            continue;
        };
        if let Some(older) = puts.iter().find(|put| put.1 < newer.0) {
            read.outcome = Outcome::Saw(Some(Arc::clone(&older.2)));
            return true;
        }
    }
    false
}

#[test]
fn twenty_clients_with_five_thousand_operations_each_are_judged_in_seconds() {
    let seed = rand::rng().random();
    eprintln!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut operations = random_execution(&mut rng, 20, 5_000, 0.02);
    let began = Instant::now();
    let checked = check(&operations).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
    eprintln!("{checked:?} in {:?}", began.elapsed());
    assert!(
        make_stale(&mut rng, &mut operations),
        "seed {seed}: no read to spoil"
    );
    let violation = check(&operations).expect_err("a stale read");
    eprintln!("rejected after {:?}: {violation}", began.elapsed());
    assert!(violation.operations.len() <= 12, "seed {seed}: {violation}");
    assert!(
        began.elapsed().as_secs() < 60,
        "seed {seed}: took {:?}",
        began.elapsed()
    );
}

/// Any small history: random intervals, random answers, most of them impossible.
fn small_history() -> impl Strategy<Value = Vec<Operation>> {
    let operation = (0..16_u64, 0..8_u64, 0..8_u8, 0..4_u8, 0..10_u8);
    prop::collection::vec(operation, 1..8).prop_map(|drawn| {
        let puts = drawn.iter().filter(|(_, _, kind, ..)| *kind < 3).count();
        drawn
            .iter()
            .enumerate()
            .map(|(number, (from, length, kind, saw, certainty))| {
                let (call, outcome) = match kind {
                    0..3 => (Call::Put(format!("v{number}").into()), Outcome::Written),
                    3..5 => (Call::Delete, Outcome::Written),
                    _ => {
                        let written = drawn
                            .iter()
                            .enumerate()
                            .filter(|(_, (_, _, kind, ..))| *kind < 3)
                            .nth(usize::from(*saw) % (puts + 1));
                        let saw = written.map(|(number, _)| format!("v{number}").into());
                        (Call::Get, Outcome::Saw(saw))
                    }
                };
                let outcome = if *certainty < 2 {
                    Outcome::Unknown
                } else {
                    outcome
                };
                Operation {
                    client: number as u32,
                    key: "k".into(),
                    call,
                    invoked_ns: *from,
                    returned_ns: from + length,
                    outcome,
                    note: None,
                }
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn brute_force_agrees_on_small_histories(operations in small_history()) {
        let expected = brute_force(&operations);
        let found = search(&operations);
        prop_assert_eq!(found.is_ok(), expected, "{:?}", found);
        if !expected {
            let violation = check(&operations).expect_err("search said so");
            prop_assert!(!brute_force(&violation.operations), "not a counterexample: {}", violation);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, ..ProptestConfig::default() })]

    #[test]
    fn brute_force_agrees_on_executions_with_one_changed_answer(seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut operations = random_execution(&mut rng, 4, 3, 0.2);
        operations.truncate(9);
        prop_assert!(search(&operations).is_ok());
        prop_assert!(brute_force(&operations));
        make_stale(&mut rng, &mut operations);
        prop_assert_eq!(search(&operations).is_ok(), brute_force(&operations));
    }

    #[test]
    fn executions_are_accepted_and_stale_reads_in_them_rejected(
        seed: u64, clients in 1..12_u32, unknown in 0.0..0.3_f64,
    ) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut operations = random_execution(&mut rng, clients, 12, unknown);
        if let Err(violation) = check(&operations) {
            return Err(TestCaseError::fail(violation.to_string()));
        }
        if !operations.is_empty() && make_stale(&mut rng, &mut operations) {
            let violation = check(&operations).expect_err("a stale read");
            prop_assert!(search(&violation.operations).is_err());
        }
    }
}
