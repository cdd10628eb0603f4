//! The simulator: torc's production protocol core under virtual time, with a network, disks, clocks and a
//! failure detector that misbehave, all drawn from one seed.
//!
//! Invariant: a run is a pure function of its [`Plan`]; the same plan gives the same trace hash on every
//! machine. Source of the approach: FoundationDB's simulation (Zhou et al., 2021).
//! What it does not do: it knows nothing of QUIC, RocksDB or processes; those are tested for real.

pub mod check;
mod client;
mod copies;
mod disk;
mod fault;
mod finish;
mod floors;
mod gossip;
pub mod minimise;
mod moves;
pub mod mutants;
mod operator;
mod place;
pub mod plan;
pub mod rng;
pub mod swarm;
mod world;

pub use plan::Plan;
pub use world::{Counts, Outcome, run};
