//! How fast partitions may move while clients are served: as fast as the settings allow while clients do not
//! notice it, and slower as soon as they do.
//!
//! This shard's own operations are the measure: their 95th percentile in short windows, beside the same in
//! the time before the ring changed. Additive increase, multiplicative decrease (Chiu and Jain, "Analysis of the
//! Increase and Decrease Algorithms for Congestion Avoidance", 1989), with a least share, so that a
//! change ends under any load.

use crate::time::{MS, Mono, SECOND};

/// The whole of a rate.
pub(crate) const WHOLE: u32 = 256;
/// What is left of a rate however slow clients are served: a transfer always ends.
const LEAST: u32 = WHOLE / 32;
/// With so much a ring change begins: what it costs is not known yet.
const FIRST: u32 = WHOLE / 8;
/// What is gained in a window in which clients notice nothing.
const STEP: u32 = WHOLE / 32;
/// A window is at least so long, in microseconds, and has [`SAMPLES_MIN`] operations, unless it gets
/// [`WINDOW_MAX`].
const WINDOW: u64 = 100 * MS;
const WINDOW_MAX: u64 = SECOND;
const SAMPLES_MIN: u32 = 32;
/// Clients may wait this multiple of what they wait in calm times.
const SLOWER_MAX: u64 = 2;
/// Less than this, in microseconds, nobody notices.
const UNNOTICED: u64 = 2 * MS;
/// What is believed to be calm where no calm time was seen, in microseconds: a node that joins.
const UNKNOWN: u64 = 3 * MS;
/// Classes of latency for each doubling.
const PER_OCTAVE: u32 = 4;
const CLASSES: usize = 96;

/// How clients are served by this shard, and what is left for moving partitions.
#[derive(Clone, Debug)]
pub(crate) struct Foreground {
    classes: [u32; CLASSES],
    samples: u32,
    since: Mono,
    /// The 95th percentile of calm times in microseconds, as a mean of windows that forgets.
    calm: Option<u64>,
    share: u32,
    moving: bool,
}

impl Default for Foreground {
    fn default() -> Self {
        Self {
            classes: [0; CLASSES],
            samples: 0,
            since: Mono(0),
            calm: None,
            share: WHOLE,
            moving: false,
        }
    }
}

impl Foreground {
    /// A client's operation took so many microseconds.
    pub(crate) fn observe(&mut self, now: Mono, micros: u64) {
        self.look(now);
        self.classes[class(micros)] += 1;
        self.samples += 1;
    }

    /// Whether the ring changes now.
    pub(crate) fn set_moving(&mut self, now: Mono, moving: bool) {
        if self.moving != moving {
            self.look(now);
            self.begin_window(now);
            self.moving = moving;
            self.share = if moving { FIRST } else { WHOLE };
        }
    }

    /// The part of a transfer's rate that may be used now, of [`WHOLE`].
    pub(crate) fn share(&mut self, now: Mono) -> u32 {
        self.look(now);
        self.share
    }

    /// Ends the window if it is over.
    fn look(&mut self, now: Mono) {
        let length = now.since(self.since);
        if length < WINDOW || (self.samples < SAMPLES_MIN && length < WINDOW_MAX) {
            return;
        }
        let p95 = (self.samples >= SAMPLES_MIN).then(|| self.p95());
        if self.moving {
            let limit = (self.calm.unwrap_or(UNKNOWN) * SLOWER_MAX).max(UNNOTICED);
            self.share = match p95 {
                Some(micros) if micros > limit => (self.share * 3 / 4).max(LEAST),
                Some(_) => (self.share + STEP).min(WHOLE),
                // Hardly anybody is there who could notice.
                None => (self.share * 2).min(WHOLE),
            };
        } else if let Some(micros) = p95 {
            self.calm = Some(self.calm.map_or(micros, |calm| (calm * 15 + micros) / 16));
        }
        self.begin_window(now);
    }

    fn begin_window(&mut self, now: Mono) {
        self.classes = [0; CLASSES];
        self.samples = 0;
        self.since = now;
    }

    /// Upper end of the class that the 95th percentile is in.
    fn p95(&self) -> u64 {
        let mut above = self.samples / 20;
        for (class, &count) in self.classes.iter().enumerate().rev() {
            if count > above {
                return upper(class);
            }
            above -= count;
        }
        0
    }
}

/// Latencies from [`upper`] of the class before up to its own.
fn class(micros: u64) -> usize {
    let micros = micros.max(1);
    let octave = micros.ilog2();
    // The two bits after the leading one.
    let part = match octave.checked_sub(2) {
        Some(shift) => (micros >> shift) & 3,
        None => (micros << (2 - octave)) & 3,
    };
    let class = octave * PER_OCTAVE + part as u32;
    (class as usize).min(CLASSES - 1)
}

/// Upper end of a class, in microseconds.
fn upper(class: usize) -> u64 {
    let (octave, part) = (class as u32 / PER_OCTAVE, class as u64 % 4);
    ((5 + part) << octave) >> 2
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many milliseconds of clients who are answered after `micros`, one each millisecond.
    fn serve(clients: &mut Foreground, from: u64, ms: u64, micros: u64) -> u64 {
        for at in from..from + ms {
            clients.observe(Mono(at * MS), micros);
        }
        from + ms
    }

    #[test]
    fn a_class_holds_what_lies_below_its_upper_end_and_above_the_one_before() {
        for micros in [1, 2, 3, 5, 99, 100, 4_096, 5_000, 123_456, 3_000_000] {
            let class = class(micros);
            assert!(micros <= upper(class), "{micros}");
            assert!(
                class == 0 || upper(class) * 3 / 4 <= micros.max(2),
                "{micros}"
            );
        }
        assert_eq!(class(u64::MAX), CLASSES - 1);
    }

    #[test]
    fn a_transfer_gives_way_when_clients_wait_longer_than_before_and_comes_back() {
        let mut clients = Foreground::default();
        let now = serve(&mut clients, 0, 2_000, 3_000);
        clients.set_moving(Mono(now * MS), true);
        let now = serve(&mut clients, now, 2_000, 4_000);
        let quick = clients.share(Mono(now * MS));
        assert!(quick > FIRST * 4, "nobody noticed, and it is at {quick}");
        let now = serve(&mut clients, now, 5_000, 9_000);
        assert_eq!(clients.share(Mono(now * MS)), LEAST);
        let now = serve(&mut clients, now, 5_000, 4_000);
        assert_eq!(clients.share(Mono(now * MS)), WHOLE);
    }

    #[test]
    fn where_there_are_no_clients_nothing_is_held_back() {
        let mut clients = Foreground::default();
        clients.set_moving(Mono(0), true);
        for second in 1..=5 {
            clients.share(Mono(second * SECOND));
        }
        assert_eq!(clients.share(Mono(5 * SECOND)), WHOLE);
    }

    #[test]
    fn what_clients_wait_during_a_change_is_not_taken_for_calm() {
        let mut clients = Foreground::default();
        let now = serve(&mut clients, 0, 1_000, 3_000);
        let calm = clients.calm;
        clients.set_moving(Mono(now * MS), true);
        serve(&mut clients, now, 5_000, 50_000);
        assert_eq!(clients.calm, calm);
    }
}
