//! Inputs for the short form of the fuzz targets: valid inputs with a few edits, and plain noise.
//!
//! The edits are proptest's to choose and to take back, so that a failing input is shown with as few of them
//! as it needs.

use std::fmt;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// Inputs of each target. Without coverage as a guide, more of them find little more.
const INPUTS: u32 = 100_000;
/// Edits of one input.
const EDITS_MAX: usize = 8;
/// Bytes of plain noise.
const NOISE_BYTES_MAX: usize = 48;
/// Greatest length of an input in bytes; edits that would make it longer are cut off.
const INPUT_BYTES_MAX: usize = 4_096;

/// Feeds a target with inputs that are made from these valid ones. A panic in it fails the test, and the
/// least input that causes it is printed.
#[track_caller]
pub fn feed(seeds: &[Vec<u8>], target: fn(&[u8])) {
    for seed in seeds {
        target(seed);
    }
    // Half of the inputs have a single edit: of a text with several, next to nothing is still accepted.
    let edits = prop_oneof![
        vec(any::<(u64, u64)>(), 1),
        vec(any::<(u64, u64)>(), 2..=EDITS_MAX)
    ];
    let edited = (any::<u16>(), edits).prop_map(|(seed, edits)| {
        let mut input = pick(seeds, u64::from(seed)).to_vec();
        for (what, with) in edits {
            edit(&mut input, what, with, seeds);
            input.truncate(INPUT_BYTES_MAX);
        }
        input
    });
    let inputs = prop_oneof![7 => edited, 1 => vec(any::<u8>(), 0..NOISE_BYTES_MAX)];
    let config = Config {
        cases: INPUTS,
        failure_persistence: None,
        ..Config::default()
    };
    let outcome = TestRunner::new(config).run(&inputs.prop_map(Input), |input| {
        target(&input.0);
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

/// Shown so that it can be put into a test as it is.
struct Input(Vec<u8>);

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

fn pick(seeds: &[Vec<u8>], choice: u64) -> &[u8] {
    let index = choice.checked_rem(seeds.len() as u64).unwrap_or(0);
    seeds.get(index as usize).map_or(&[], Vec::as_slice)
}

/// One edit. The low bits of `what` say which, its high half where; `with` is the material.
fn edit(input: &mut Vec<u8>, what: u64, with: u64, seeds: &[Vec<u8>]) {
    let at = (what >> 32) as usize % (input.len() + 1);
    let material = with.to_le_bytes();
    let few = (what >> 8) as usize % material.len() + 1;
    let end = (at + few).min(input.len());
    match what % 8 {
        // A bit; a byte, mostly one near by, which makes a digit of a digit; a number at the edge of its range.
        0 => (input[at..end].iter_mut().take(1)).for_each(|byte| *byte ^= 1 << (with % 8)),
        1 => (input[at..end].iter_mut().take(1)).for_each(|byte| {
            *byte = match material[1] {
                0..64 => material[0],
                _ => byte.wrapping_add(material[0] % 8).wrapping_sub(4),
            }
        }),
        2 => input[at..end].fill([0, 0xff, 0x7f, 0x80, 1, b'0', b'9', b'%'][few - 1]),
        // Something more, or less, or the same once more.
        3 => drop(input.splice(at..at, material[..few].iter().copied())),
        4 => drop(input.drain(at..end)),
        5 => {
            let upto = at + with as usize % 64;
            let again = input[at..upto.min(input.len())].to_vec();
            input.splice(at..at, again);
        }
        // The end is missing, or is another's.
        6 => input.truncate(at),
        _ => {
            let other = pick(seeds, with);
            let from = (with >> 32) as usize % (other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
    }
}
