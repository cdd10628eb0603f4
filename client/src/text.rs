//! Bytes in URLs and in JSON. Keys and values are bytes; where they are not UTF-8, JSON carries base64.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use serde::{Deserialize, Serialize};

/// All but what RFC 3986 calls unreserved. Slashes are encoded too: proxies merge them otherwise.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

pub(crate) fn encode(bytes: &[u8]) -> String {
    // These two would be taken for steps in a path.
    match bytes {
        b"." => "%2E".to_owned(),
        b".." => "%2E%2E".to_owned(),
        _ => percent_encode(bytes, ENCODED).to_string(),
    }
}

/// Bytes as JSON carries them: text, or base64 with `"encoding":"base64"` beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    /// The text itself, or base64.
    pub text: String,
    /// Whether `text` is base64.
    pub is_base64: bool,
}

impl Text {
    /// As text where it is UTF-8.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self {
                text: text.to_owned(),
                is_base64: false,
            },
            Err(_) => Self::base64(bytes),
        }
    }

    pub(crate) fn base64(bytes: &[u8]) -> Self {
        Self {
            text: STANDARD.encode(bytes),
            is_base64: true,
        }
    }

    /// The bytes; `None` where it is no base64 although it says so.
    #[must_use]
    pub fn bytes(&self) -> Option<Bytes> {
        if self.is_base64 {
            STANDARD.decode(&self.text).ok().map(Bytes::from)
        } else {
            Some(Bytes::copy_from_slice(self.text.as_bytes()))
        }
    }

    pub(crate) fn from_json(text: String, encoding: Option<&str>) -> Self {
        Self {
            text,
            is_base64: encoding == Some("base64"),
        }
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_one_path_segment() {
        assert_eq!(encode(b"a b/c"), "a%20b%2Fc");
        assert_eq!(encode(&[0, 255]), "%00%FF");
        assert_eq!(encode(b".."), "%2E%2E");
        assert_eq!(encode("ß".as_bytes()), "%C3%9F");
    }

    #[test]
    fn bytes_survive_json() {
        for bytes in [&b"text"[..], &[0xff, 0x00], b""] {
            assert_eq!(Text::of(bytes).bytes().as_deref(), Some(bytes));
        }
    }
}
