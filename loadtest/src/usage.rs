//! What the instrument itself costs.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

/// Used by one or more threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time.
    pub cpu: Duration,
    /// Context switches, asked for or not.
    pub switches: u64,
}

impl Usage {
    /// Of the calling thread so far; nothing where the kernel does not tell.
    pub(crate) fn of_thread() -> Self {
        getrusage(UsageWho::RUSAGE_THREAD).map_or_else(
            |_| Self::default(),
            |usage| {
                let micros =
                    usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
                let switches =
                    usage.voluntary_context_switches() + usage.involuntary_context_switches();
                Self {
                    cpu: Duration::from_micros(micros.unsigned_abs()),
                    switches: switches.unsigned_abs(),
                }
            },
        )
    }

    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(earlier.cpu),
            switches: self.switches.saturating_sub(earlier.switches),
        }
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            cpu: self.cpu + other.cpu,
            switches: self.switches + other.switches,
        }
    }
}
