//! I2: once faults have ended, the owners of a key hold the same, byte for byte.

use torc_protocol::record::Record;

use super::{Invariant, Violation};

/// At rest, the owners of key `key` hold these states.
///
/// # Errors
/// When two of them differ.
pub fn owners(key: u64, states: &[(usize, Option<Record>)]) -> Result<(), Violation> {
    if states.windows(2).all(|pair| pair[0].1 == pair[1].1) {
        return Ok(());
    }
    let states: Vec<_> = states
        .iter()
        .map(|(at, record)| (at, record.as_ref().map(Record::digest)))
        .collect();
    let what = format!("owners of key {key} differ after a read of all of them: {states:?}");
    Err(Violation::new(Invariant::Converge, what))
}

#[cfg(test)]
mod tests {
    use torc_protocol::hlc::Hlc;
    use torc_protocol::record::Parts;
    use torc_protocol::version::Version;
    use torc_ring::NodeId;

    use super::*;

    #[test]
    fn owners_that_differ_in_the_value_alone_are_found() {
        let record = |value: &[u8]| {
            let version = Version {
                hlc: Hlc(1),
                node: NodeId(1),
            };
            Some(Record::value(Parts {
                version,
                expiry: None,
                content_type: b"",
                value,
            }))
        };
        assert!(owners(1, &[(0, record(b"a")), (1, record(b"a"))]).is_ok());
        assert!(owners(1, &[(0, record(b"a")), (1, record(b"b"))]).is_err());
        assert!(owners(1, &[(0, record(b"a")), (1, None)]).is_err());
    }
}
