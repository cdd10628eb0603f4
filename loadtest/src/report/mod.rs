//! Results: values that become JSON, rows of a table, and an HTML page.

mod availability;
mod html;
mod plot;
mod result;
mod sweep;
mod table;

pub use availability::Availability;
pub use html::Page;
pub use result::{Instrument, Latency, PhaseResult, Point, RunResult, Totals, WorkloadView};
pub use sweep::{Combination, Outage, SWEEP_COLUMNS, SweepResult};
pub use table::{RUN_COLUMNS, number, run_rows};
