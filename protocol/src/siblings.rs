//! Sets of concurrent values (`siblings` buckets): the encoded form and its merge.

use bytes::{BufMut, BytesMut};

use crate::record::{HEADER_LEN, Record, RecordError};
use crate::version::Version;

pub(crate) fn check(_bytes: &[u8]) -> Result<(), RecordError> {
    Ok(())
}

pub(crate) fn is_visible(_bytes: &[u8], _micros: u64) -> bool {
    true
}

pub(crate) fn merge(a: &[u8], b: &[u8]) -> Result<Record, RecordError> {
    let bytes = a.max(b);
    let mut buf = BytesMut::with_capacity(bytes.len());
    buf.put_slice(bytes);
    let version = crate::record::digest_of(&buf[..HEADER_LEN]).ok_or(RecordError::Malformed)?;
    let version: Version = version.version;
    Ok(Record::from_siblings(buf, version))
}
