//! Time as data: the core never looks at a clock, it is told.

/// Microseconds on a clock that never goes back and has no meaning beyond this process. For deadlines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mono(pub u64);

/// Microseconds since 1970 as the machine believes; jumps in both directions. For versions and expiry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Wall(pub u64);

/// Both clocks, read together by the shell before it calls the core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// For deadlines.
    pub mono: Mono,
    /// For versions.
    pub wall: Wall,
}

/// One millisecond in the unit of [`Mono`] and [`Wall`].
pub const MS: u64 = 1_000;
/// One second in the unit of [`Mono`] and [`Wall`].
pub const SECOND: u64 = 1_000_000;

impl Mono {
    /// This moment and `us` microseconds, saturating.
    #[must_use]
    pub fn plus(self, us: u64) -> Self {
        Self(self.0.saturating_add(us))
    }

    /// Microseconds from `earlier` to this moment; 0 when it is not earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Notices that the wall clock has jumped, by comparing it with the monotonic one: long before peers'
/// clocks can be compared, and before the jump gets into a version or a durable bound.
#[derive(Clone, Copy, Debug)]
pub struct JumpGuard {
    /// Wall minus monotonic time, in microseconds, as it was when the clock was last trusted.
    offset: i128,
    /// A jump beyond this many microseconds is distrusted.
    allowed: u64,
    since: Option<Mono>,
}

/// So long a jump is distrusted, in microseconds; peers' clocks have been compared by then, and whoever
/// has no peers goes on with the clock that it has.
const JUMP_DISTRUST: u64 = 10 * SECOND;

impl JumpGuard {
    /// Trusts the clocks as they are now.
    #[must_use]
    pub fn new(now: Now, allowed: u64) -> Self {
        Self {
            offset: offset(now),
            allowed,
            since: None,
        }
    }

    /// Looks at the clocks; answers whether the wall clock may be used.
    pub fn look(&mut self, now: Now) -> bool {
        let moved = (offset(now) - self.offset).unsigned_abs();
        if moved <= u128::from(self.allowed) {
            self.since = None;
            return true;
        }
        let since = *self.since.get_or_insert(now.mono);
        if now.mono.since(since) > JUMP_DISTRUST {
            *self = Self::new(now, self.allowed);
        }
        self.since.is_none()
    }
}

fn offset(now: Now) -> i128 {
    i128::from(now.wall.0) - i128::from(now.mono.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(mono: u64, wall: u64) -> Now {
        Now {
            mono: Mono(mono * SECOND),
            wall: Wall(wall * SECOND),
        }
    }

    #[test]
    fn a_jump_is_distrusted_until_it_is_taken_back_or_has_been_judged() {
        let mut guard = JumpGuard::new(at(0, 100), 60 * SECOND);
        assert!(guard.look(at(10, 115)), "a correction within the drift");
        assert!(!guard.look(at(11, 7_300)));
        assert!(guard.look(at(12, 112)), "taken back");
        assert!(!guard.look(at(13, 7_300)));
        assert!(!guard.look(at(20, 7_307)));
        assert!(guard.look(at(24, 7_311)), "the peers have had their say");
        assert!(guard.look(at(25, 7_312)));
    }
}
