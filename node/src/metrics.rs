//! Every metric of a node: one struct, one file.

/// All metrics.
#[derive(Debug, Default)]
pub struct Metrics {}
