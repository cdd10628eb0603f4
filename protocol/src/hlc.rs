//! Hybrid logical clock: timestamps near physical time that respect causality.
//!
//! Invariant: no [`HlcClock`] mints a timestamp at or above its durable bound, nor one twice; clocks of
//! the shards of one node never mint the same timestamp.
//! Source: Kulkarni, Demirbas et al., "Logical Physical Clocks" (2014). Reads no clock.

use std::fmt;

use crate::time::{SECOND, Wall};

/// 52 bits of microseconds since 1970, then 12 bits of counter. Ordered as a number.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    bincode::Encode,
    bincode::Decode,
)]
pub struct Hlc(pub u64);

/// Bits of the counter.
pub const COUNTER_BITS: u32 = 12;
/// Bits of the counter that hold the minting shard's index, so that shards never mint the same timestamp.
pub const SHARD_BITS: u32 = 6;
/// Greatest number of shards of a node; a power of two.
pub const SHARDS_MAX: usize = 1 << SHARD_BITS;

/// Room above a clock that runs ahead of the physical one, in microseconds: a node that is killed and
/// restarted again and again must not run away by the whole of [`Pace::ahead`] each time.
pub const BOUND_LEAD: u64 = SECOND / 2;

/// Most room above the clock that a slow disk is given, in microseconds. Below what a start waits for the
/// physical clock to pass the bound of the earlier life.
pub const SLOW_AHEAD_MAX: u64 = SECOND * 5 / 2;

/// How a clock keeps its durable bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// How far ahead of use the bound is made durable, in microseconds; it is renewed at half of that. At
    /// least twice as long as the last renewal took, as far as [`SLOW_AHEAD_MAX`].
    pub ahead: u64,
    /// Renewed only while somebody mints.
    pub lazy: bool,
    /// After a start nothing is minted before the physical clock has passed the bound of the earlier life.
    /// Minting above it at once would be unique too, but would run ahead of the physical clock, and a
    /// write through another node right after could get a smaller timestamp than an acknowledged one.
    pub patient: bool,
}

impl Pace {
    /// For versions of writes.
    pub const WRITES: Self = Self {
        ahead: SECOND,
        lazy: true,
        patient: true,
    };
    /// For ballots, and for the bound that peers remember of a node.
    pub const BALLOTS: Self = Self {
        ahead: 10 * SECOND,
        lazy: false,
        patient: false,
    };
}

impl Hlc {
    /// The first timestamp of a microsecond.
    #[must_use]
    pub fn from_micros(us: u64) -> Self {
        Self(us << COUNTER_BITS)
    }

    /// Microseconds since 1970.
    #[must_use]
    pub fn micros(self) -> u64 {
        self.0 >> COUNTER_BITS
    }
}

impl fmt::Display for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}.{}",
            self.micros(),
            self.0 & ((1 << COUNTER_BITS) - 1)
        )
    }
}

/// The clock of one shard of one node.
#[derive(Clone, Debug)]
pub struct HlcClock {
    shard: u64,
    pace: Pace,
    /// Greatest timestamp minted or heard of.
    last: Hlc,
    /// Durable promise: everything that was or will be minted before the next renewal lies below.
    bound: Hlc,
    /// The bound of the earlier life, while the physical clock has not passed it.
    past: Option<Hlc>,
    /// A renewal that is on its way to disk, and when it was asked for.
    pending: Option<(Hlc, Wall)>,
    /// How long the last renewal took to become durable, in microseconds.
    took: u64,
    /// Somebody minted, or wanted to, since the last renewal.
    wanted: bool,
    /// How far above the physical clock a heard timestamp may lie, in microseconds.
    drift_max: u64,
}

/// Why no timestamp can be minted now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MintError {
    /// The durable bound must be raised first; [`HlcClock::renewal`] says to what.
    BoundReached,
    /// The physical clock has not passed yet what the earlier life may have minted.
    Past,
}

impl HlcClock {
    /// A clock for shard `shard` (below [`SHARDS_MAX`]) that mints only above `durable_bound`, the highest
    /// bound that any earlier life of this node had made durable.
    #[must_use]
    pub fn new(shard: u8, durable_bound: Hlc, drift_max: u64, pace: Pace) -> Self {
        assert!(
            usize::from(shard) < SHARDS_MAX,
            "shard index {shard} is below {SHARDS_MAX}"
        );
        let mut clock = Self {
            shard: u64::from(shard),
            pace,
            last: Hlc(0),
            bound: durable_bound,
            past: Some(durable_bound),
            pending: None,
            took: 0,
            // The first bound is made durable before anybody asks, so that the first write need not wait.
            wanted: true,
            drift_max,
        };
        if !pace.patient {
            clock.stop_waiting();
        }
        clock
    }

    /// Greatest timestamp minted or heard of; what messages carry.
    #[must_use]
    pub fn last(&self) -> Hlc {
        self.last
    }

    /// The current time as a timestamp, without minting: for expiry and ages.
    #[must_use]
    pub fn peek(&self, wall: Wall) -> Hlc {
        self.last.max(Hlc::from_micros(wall.0))
    }

    /// A timestamp above all minted and heard before.
    ///
    /// # Errors
    /// When it would reach the durable bound, or the earlier life's has not passed.
    pub fn mint(&mut self, wall: Wall) -> Result<Hlc, MintError> {
        self.mint_since(wall, wall)
    }

    /// The same for a request that arrived at `arrived` and has waited since: where the durable bound does
    /// not reach to `wall` any more (the disk was slow), its timestamp may lie after its arrival instead.
    /// Whatever was acknowledged before the request began lies before that.
    ///
    /// # Errors
    /// The same.
    pub fn mint_since(&mut self, arrived: Wall, wall: Wall) -> Result<Hlc, MintError> {
        self.wanted = true;
        if let Some(past) = self.past {
            if Hlc::from_micros(wall.0) <= past {
                return Err(MintError::Past);
            }
            self.stop_waiting();
        }
        let mut times = [wall, arrived.min(wall)].into_iter();
        let next = times.find_map(|at| Some(self.next_after(at)).filter(|next| *next < self.bound));
        self.last = next.ok_or(MintError::BoundReached)?;
        Ok(self.last)
    }

    /// The next timestamp of this shard above all that were minted and heard, and at or after `at`.
    fn next_after(&self, at: Wall) -> Hlc {
        let shard_mask = (1_u64 << SHARD_BITS) - 1;
        let floor = self.last.0.max(at.0 << COUNTER_BITS) + 1;
        // The next number at or above `floor` whose low bits are this shard's index.
        let mut next = (floor & !shard_mask) | self.shard;
        if next < floor {
            next += shard_mask + 1;
        }
        Hlc(next)
    }

    /// Does not wait for the physical clock any longer: it was set back. What is minted from now on lies
    /// above the earlier life's bound all the same.
    pub fn stop_waiting(&mut self) {
        if let Some(past) = self.past.take() {
            self.last = self.last.max(past);
        }
    }

    /// Takes in a timestamp from a peer or a client's context. One that lies further above the physical
    /// clock than the allowed drift is not taken in; answers whether it was.
    pub fn observe(&mut self, heard: Hlc, wall: Wall) -> bool {
        if heard.micros() > wall.0.saturating_add(self.drift_max) {
            return false;
        }
        self.last = self.last.max(heard);
        true
    }

    /// The bound that should be made durable now, if any; call [`Self::on_bound_durable`] when it is.
    pub fn renewal(&mut self, wall: Wall) -> Option<Hlc> {
        if self.pending.is_some() || (self.pace.lazy && !self.wanted) {
            return None;
        }
        // A bound that has passed before it is durable is good for nothing.
        let slow = self.took.saturating_mul(2).min(SLOW_AHEAD_MAX);
        let (ahead, lead) = (self.pace.ahead.max(slow), BOUND_LEAD.max(slow));
        let (now, last, bound) = (wall.0, self.last.micros(), self.bound.micros());
        if bound > (now + ahead / 2).max(last + lead / 2) {
            return None;
        }
        let next = Hlc::from_micros((now + ahead).max(last + lead));
        self.pending = Some((next, wall));
        self.wanted = false;
        Some(next)
    }

    /// The renewal is on disk.
    pub fn on_bound_durable(&mut self, wall: Wall) {
        if let Some((bound, asked)) = self.pending.take() {
            self.bound = self.bound.max(bound);
            self.took = wall.0.saturating_sub(asked.0);
        }
    }

    /// The renewal failed; it will be asked for again.
    pub fn on_bound_failed(&mut self) {
        self.pending = None;
        self.wanted = true;
    }

    /// The durable bound.
    #[must_use]
    pub fn bound(&self) -> Hlc {
        self.bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(shard: u8) -> HlcClock {
        let mut clock = HlcClock::new(shard, Hlc(0), 60 * SECOND, Pace::BALLOTS);
        assert!(clock.renewal(Wall(1_000)).is_some());
        clock.on_bound_durable(Wall(0));
        clock
    }

    #[test]
    fn nothing_is_minted_before_a_bound_is_durable() {
        let mut clock = HlcClock::new(0, Hlc(0), 60 * SECOND, Pace::BALLOTS);
        assert_eq!(clock.mint(Wall(1_000)), Err(MintError::BoundReached));
        let bound = clock.renewal(Wall(1_000)).expect("asked for");
        assert_eq!(clock.renewal(Wall(1_000)), None, "one renewal at a time");
        assert_eq!(
            clock.mint(Wall(1_000)),
            Err(MintError::BoundReached),
            "not durable yet"
        );
        clock.on_bound_durable(Wall(0));
        assert!(clock.mint(Wall(1_000)).expect("minted") < bound);
    }

    #[test]
    fn timestamps_rise_when_the_wall_stands_still_or_jumps_back() {
        let mut clock = ready(3);
        let a = clock.mint(Wall(5_000)).expect("minted");
        let b = clock.mint(Wall(5_000)).expect("minted");
        let c = clock.mint(Wall(10)).expect("minted");
        assert!(a < b && b < c);
    }

    #[test]
    fn two_shards_never_mint_the_same() {
        let (mut one, mut two) = (ready(1), ready(2));
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..1_000 {
            assert!(seen.insert(one.mint(Wall(7)).expect("minted")));
            assert!(seen.insert(two.mint(Wall(7)).expect("minted")));
        }
    }

    #[test]
    fn a_restart_mints_above_everything_of_the_earlier_life() {
        let mut clock = ready(0);
        let before = clock.mint(Wall(2_000)).expect("minted");
        let mut again = HlcClock::new(0, clock.bound(), 60 * SECOND, Pace::BALLOTS);
        assert_eq!(again.mint(Wall(0)), Err(MintError::BoundReached));
        again.renewal(Wall(0)).expect("asked for");
        again.on_bound_durable(Wall(0));
        assert!(again.mint(Wall(0)).expect("minted") > before);
    }

    #[test]
    fn quick_restarts_do_not_carry_the_clock_away() {
        let mut bound = Hlc(0);
        let wall = Wall(100 * SECOND);
        for _ in 0..20 {
            let mut clock = HlcClock::new(0, bound, 60 * SECOND, Pace::BALLOTS);
            clock.renewal(wall).expect("a start raises the bound");
            clock.on_bound_durable(Wall(0));
            clock.mint(wall).expect("minted");
            assert_eq!(
                clock.renewal(wall),
                None,
                "one renewal is enough for a while"
            );
            bound = clock.bound();
        }
        assert!(
            bound.micros() <= wall.0 + 20 * SECOND,
            "20 restarts within no time"
        );
    }

    #[test]
    fn writes_wait_until_the_physical_clock_has_passed_the_earlier_life() {
        let bound = Hlc::from_micros(5 * SECOND);
        let mut clock = HlcClock::new(0, bound, 60 * SECOND, Pace::WRITES);
        assert_eq!(
            clock.last(),
            Hlc(0),
            "peers are not told of times that nobody has minted"
        );
        assert_eq!(clock.mint(Wall(4 * SECOND)), Err(MintError::Past));
        clock.renewal(Wall(4 * SECOND));
        clock.on_bound_durable(Wall(0));
        assert_eq!(clock.mint(Wall(4 * SECOND)), Err(MintError::Past));
        clock.renewal(Wall(6 * SECOND));
        clock.on_bound_durable(Wall(0));
        let minted = clock.mint(Wall(6 * SECOND)).expect("minted");
        assert_eq!(
            minted.micros(),
            6 * SECOND,
            "not ahead of the physical clock"
        );
    }

    #[test]
    fn a_clock_that_was_set_back_is_not_waited_for_for_ever() {
        let bound = Hlc::from_micros(500 * SECOND);
        let mut clock = HlcClock::new(0, bound, 60 * SECOND, Pace::WRITES);
        assert_eq!(clock.mint(Wall(SECOND)), Err(MintError::Past));
        clock.stop_waiting();
        clock
            .mint(Wall(SECOND))
            .expect_err("the bound must be raised");
        clock.renewal(Wall(SECOND)).expect("asked for");
        clock.on_bound_durable(Wall(0));
        assert!(clock.mint(Wall(SECOND)).expect("minted") > bound);
    }

    #[test]
    fn an_idle_clock_does_not_trouble_the_disk() {
        let mut clock = HlcClock::new(0, Hlc(0), 60 * SECOND, Pace::WRITES);
        assert!(clock.renewal(Wall(SECOND)).is_some(), "once, at the start");
        clock.on_bound_durable(Wall(0));
        assert_eq!(clock.renewal(Wall(9 * SECOND)), None);
        assert_eq!(clock.mint(Wall(9 * SECOND)), Err(MintError::BoundReached));
        assert!(clock.renewal(Wall(9 * SECOND)).is_some());
        clock.on_bound_durable(Wall(0));
        assert!(clock.mint(Wall(9 * SECOND)).is_ok());
    }

    #[test]
    fn a_timestamp_beyond_the_drift_is_not_taken_in() {
        let mut clock = ready(0);
        assert!(clock.observe(Hlc::from_micros(59 * SECOND), Wall(0)));
        assert!(!clock.observe(Hlc::from_micros(61 * SECOND), Wall(0)));
        assert_eq!(clock.last(), Hlc::from_micros(59 * SECOND));
    }

    #[test]
    fn a_bound_that_a_slow_disk_lets_pass_serves_those_that_came_before_and_the_next_reaches_further()
     {
        let mut clock = HlcClock::new(0, Hlc(0), 60 * SECOND, Pace::WRITES);
        let (arrived, done) = (Wall(100 * SECOND), Wall(102 * SECOND));
        assert_eq!(clock.mint(arrived), Err(MintError::BoundReached));
        let bound = clock.renewal(arrived).expect("asked for");
        clock.on_bound_durable(done);
        assert_eq!(
            clock.mint(done),
            Err(MintError::BoundReached),
            "it has passed"
        );
        let minted = clock.mint_since(arrived, done).expect("minted");
        assert!(arrived.0 <= minted.micros() && minted < bound);
        let next = clock.renewal(done).expect("asked for");
        assert_eq!(
            next.micros(),
            done.0 + SLOW_AHEAD_MAX,
            "twice as long, within the limit"
        );
        clock.on_bound_durable(Wall(done.0 + 2 * SECOND));
        assert!(clock.mint(Wall(done.0 + 2 * SECOND)).is_ok());
    }

    #[test]
    fn what_the_earlier_life_may_have_minted_is_not_minted_for_a_request_that_waited() {
        let past = Hlc::from_micros(100 * SECOND + SECOND / 4);
        let mut clock = HlcClock::new(0, past, 60 * SECOND, Pace::WRITES);
        clock.renewal(Wall(100 * SECOND)).expect("asked for");
        clock.on_bound_durable(Wall(103 * SECOND));
        let minted = clock.mint_since(Wall(100 * SECOND), Wall(103 * SECOND));
        assert!(minted.expect("minted") > past);
    }
}
