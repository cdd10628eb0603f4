//! The wire format: a version byte, then the message in bincode's "legacy" layout (fixed-width little
//! endian integers), under a length limit. Values are never copied: a decoded message shares the frame.
//!
//! Invariant: whatever bytes arrive, decoding ends in a message or an error, and allocates no more than
//! the frame's own length (a hostile length prefix without the limit would abort the process).
//! This file is the only one that configures bincode; message types only derive its traits.

use bincode::de::{BorrowDecode, BorrowDecoder, Decode};
use bincode::enc::{Encode, Encoder};
use bincode::error::{DecodeError, EncodeError};
use bytes::{BufMut, Bytes, BytesMut};
use torc_ring::{BucketId, Config, Token};

use crate::message::{PeerMessage, RecordKey};
use crate::record::{KEY_LEN_MAX, Record, VALUE_LEN_MAX};

/// Version of this format; a peer that speaks another one is refused.
pub const WIRE_VERSION: u8 = 3;
/// Greatest length of an encoded message, in bytes: the greatest value and room for all around it.
pub const MESSAGE_LEN_MAX: usize = VALUE_LEN_MAX + (1 << 20);

const _: () =
    assert!(MESSAGE_LEN_MAX > VALUE_LEN_MAX + KEY_LEN_MAX + crate::message::TRACE_LEN_MAX);

/// Why bytes are no message, or a message no bytes.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Nothing there.
    #[error("peer frame is empty")]
    Empty,
    /// Another version of the format.
    #[error("peer speaks wire version {theirs}, this node {WIRE_VERSION}; upgrade the older node")]
    Version {
        /// What the peer speaks.
        theirs: u8,
    },
    /// Over the limit.
    #[error("peer frame of {len} bytes is over the limit of {MESSAGE_LEN_MAX}")]
    TooLong {
        /// Length in bytes.
        len: usize,
    },
    /// Not of the format.
    #[error("peer frame cannot be decoded: {0}")]
    Decode(#[from] DecodeError),
    /// Bytes after the end of the message.
    #[error("peer frame has {left} bytes too many")]
    Trailing {
        /// How many.
        left: usize,
    },
    /// Cannot be encoded.
    #[error("message cannot be encoded: {0}")]
    Encode(#[from] EncodeError),
    /// A configuration that breaks its own rules.
    #[error("received configuration is invalid: {0}")]
    Config(#[from] torc_ring::ConfigError),
}

/// The frame that a message is being decoded from; lets [`Blob`] share its memory.
#[derive(Clone, Debug)]
pub struct Frame(Bytes);

/// Bytes inside a message, sharing the frame's memory when decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blob(pub Bytes);

fn config() -> impl bincode::config::Config {
    bincode::config::legacy().with_limit::<MESSAGE_LEN_MAX>()
}

/// Appends the encoded message to `out`, without a length prefix; answers the encoded length.
///
/// # Errors
/// When the message is over the limit; `out` is then as it was.
pub fn encode(message: &PeerMessage, out: &mut BytesMut) -> Result<usize, WireError> {
    let start = out.len();
    out.put_u8(WIRE_VERSION);
    let mut writer = Appender(out);
    let result = bincode::encode_into_writer(message, &mut writer, config());
    let len = out.len() - start;
    match result {
        Ok(()) if len <= MESSAGE_LEN_MAX => Ok(len),
        Ok(()) => {
            out.truncate(start);
            Err(WireError::TooLong { len })
        }
        Err(error) => {
            out.truncate(start);
            Err(error.into())
        }
    }
}

/// The message in `frame` (without a length prefix), sharing its memory.
///
/// # Errors
/// When it is none; whatever the bytes, nothing panics.
pub fn decode(frame: &Bytes) -> Result<PeerMessage, WireError> {
    match frame.first() {
        None => return Err(WireError::Empty),
        Some(&WIRE_VERSION) => {}
        Some(&theirs) => return Err(WireError::Version { theirs }),
    }
    if frame.len() > MESSAGE_LEN_MAX {
        return Err(WireError::TooLong { len: frame.len() });
    }
    let body = frame.slice(1..);
    let context = Frame(body.clone());
    let (message, used) = bincode::borrow_decode_from_slice_with_context(&body, config(), context)?;
    if used < body.len() {
        return Err(WireError::Trailing {
            left: body.len() - used,
        });
    }
    Ok(message)
}

/// A configuration without tables of owners, in which nobody recovers.
const CONFIG_PLAIN: u8 = 1;
/// A configuration with tables of owners, in which nobody recovers.
const CONFIG_TABLES: u8 = 2;
/// A configuration in which members recover.
const CONFIG_RECOVERING: u8 = 3;
/// What [`CONFIG_PLAIN`] leaves out at the end: two empty lists of tables and one of members that recover.
const NOTHING: [u8; 24] = [0; 24];

/// How a configuration is encoded, and how many bytes are left out at its end.
fn form(value: &Config) -> (u8, usize) {
    let has_tables = !value.tables.is_empty() || !value.target_tables.is_empty();
    if !value.recovering.is_empty() {
        (CONFIG_RECOVERING, 0)
    } else if has_tables {
        (CONFIG_TABLES, 8)
    } else {
        (CONFIG_PLAIN, NOTHING.len())
    }
}

/// The bytes of a configuration, for wire and disk. What stands last and is empty is left out, so that a
/// configuration that has none of it has the same bytes as before there was any.
///
/// # Errors
/// When it is over the limit.
pub fn encode_config(value: &Config) -> Result<Bytes, WireError> {
    let (version, left_out) = form(value);
    let mut out = vec![version];
    out.extend(bincode::serde::encode_to_vec(value, config())?);
    out.truncate(out.len() - left_out);
    Ok(out.into())
}

/// The configuration in these bytes, checked by [`Config::validate`].
///
/// # Errors
/// When it is none or an invalid one.
pub fn decode_config(bytes: &[u8]) -> Result<Config, WireError> {
    let (&version, body) = bytes.split_first().ok_or(WireError::Empty)?;
    let left_out = match version {
        CONFIG_PLAIN => NOTHING.len(),
        CONFIG_TABLES => 8,
        CONFIG_RECOVERING => 0,
        theirs => return Err(WireError::Version { theirs }),
    };
    let body = [body, &NOTHING[..left_out]].concat();
    let (value, used): (Config, usize) = bincode::serde::decode_from_slice(&body, config())?;
    if used < body.len() {
        return Err(WireError::Trailing {
            left: body.len() - used,
        });
    }
    if form(&value).0 != version {
        let error = DecodeError::Other("a configuration is encoded in another form than its own");
        return Err(error.into());
    }
    value.validate()?;
    Ok(value)
}

struct Appender<'a>(&'a mut BytesMut);

impl bincode::enc::write::Writer for Appender<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.0.put_slice(bytes);
        Ok(())
    }
}

impl Encode for Blob {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.0.as_ref().encode(encoder)
    }
}

impl<'de> BorrowDecode<'de, Frame> for Blob {
    fn borrow_decode<D: BorrowDecoder<'de, Context = Frame>>(
        decoder: &mut D,
    ) -> Result<Self, DecodeError> {
        let slice = <&'de [u8]>::borrow_decode(decoder)?;
        // An empty slice may point outside the frame, where `slice_ref` would panic.
        if slice.is_empty() {
            Ok(Self::default())
        } else {
            Ok(Self(decoder.context().0.slice_ref(slice)))
        }
    }
}

impl Encode for Record {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.as_bytes().as_ref().encode(encoder)
    }
}

impl<'de> BorrowDecode<'de, Frame> for Record {
    fn borrow_decode<D: BorrowDecoder<'de, Context = Frame>>(
        decoder: &mut D,
    ) -> Result<Self, DecodeError> {
        let bytes = Blob::borrow_decode(decoder)?.0;
        Self::parse(bytes)
            .map_err(|_| DecodeError::Other("record is malformed or fails its checksum"))
    }
}

impl Encode for RecordKey {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.bucket.0.encode(encoder)?;
        self.token.0.encode(encoder)?;
        self.key.as_ref().encode(encoder)
    }
}

impl<'de> BorrowDecode<'de, Frame> for RecordKey {
    fn borrow_decode<D: BorrowDecoder<'de, Context = Frame>>(
        decoder: &mut D,
    ) -> Result<Self, DecodeError> {
        let bucket = BucketId(u32::decode(decoder)?);
        let token = Token(u64::decode(decoder)?);
        let key = Blob::borrow_decode(decoder)?.0;
        if key.is_empty() || key.len() > KEY_LEN_MAX {
            return Err(DecodeError::Other("key is empty or over its limit"));
        }
        Ok(Self { bucket, token, key })
    }
}
