//! I11: a write with a context orders after what its author saw.

use torc_protocol::version::Version;

use super::{Invariant, Violation};

/// A write whose author had seen `context` was stored as `version`.
///
/// # Errors
/// When it is not the later one.
pub fn write(context: Option<Version>, version: Version) -> Result<(), Violation> {
    if context < Some(version) {
        return Ok(());
    }
    let what = format!("a write became {version} although its author had seen {context:?}");
    Err(Violation::new(Invariant::Causal, what))
}

#[cfg(test)]
mod tests {
    use torc_protocol::hlc::Hlc;
    use torc_ring::NodeId;

    use super::*;

    #[test]
    fn a_write_below_its_context_is_found() {
        let version = |at| Version {
            hlc: Hlc(at),
            node: NodeId(1),
        };
        assert!(write(None, version(1)).is_ok());
        assert!(write(Some(version(1)), version(2)).is_ok());
        assert!(write(Some(version(2)), version(2)).is_err());
        assert!(write(Some(version(3)), version(2)).is_err());
    }
}
