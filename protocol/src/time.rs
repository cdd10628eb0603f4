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
