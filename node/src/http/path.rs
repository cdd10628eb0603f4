//! Key paths: `/kv/{bucket}/{key}`, where the key is the rest of the path, percent-decoded to bytes.
//!
//! Nothing is normalised: `..`, empty segments and `%2F` are bytes of the key like any other. What is one
//! key in one spelling is the same key in another (`a` and `%61`), as RFC 3986 has it.

use std::borrow::Cow;

use torc_protocol::record::KEY_LEN_MAX;

/// A key's path, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPath<'a> {
    /// 1-64 bytes of `a-z 0-9 _ -`.
    pub bucket: Cow<'a, str>,
    /// 1..=1024 bytes, any bytes.
    pub key: Cow<'a, [u8]>,
}

/// Why a path names no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyPathError {
    /// It does not begin with `/kv/` and a bucket.
    #[error("the path does not begin with /kv/{{bucket}}/")]
    Prefix,
    /// A `%` without two hexadecimal digits.
    #[error("a `%` is not followed by two hexadecimal digits")]
    Escape,
    /// The bucket's name breaks its rule.
    #[error("a bucket name is 1-64 bytes of a-z 0-9 _ -")]
    Bucket,
    /// Nothing follows the bucket.
    #[error("the key is empty")]
    EmptyKey,
    /// The key is over its limit.
    #[error("the key has {len} bytes; the limit is {KEY_LEN_MAX}")]
    KeyTooLong {
        /// Bytes that it has when decoded.
        len: usize,
    },
}

/// Takes the raw path of a request target apart. Pure, and total on all bytes.
///
/// # Errors
/// Says which rule the path breaks.
pub fn parse_key_path(path: &[u8]) -> Result<KeyPath<'_>, KeyPathError> {
    let rest = path.strip_prefix(b"/kv/").ok_or(KeyPathError::Prefix)?;
    let slash = rest
        .iter()
        .position(|&b| b == b'/')
        .ok_or(KeyPathError::Prefix)?;
    let bucket = parse_bucket(&rest[..slash])?;
    let key = decode(&rest[slash + 1..])?;
    match key.len() {
        0 => Err(KeyPathError::EmptyKey),
        len if len > KEY_LEN_MAX => Err(KeyPathError::KeyTooLong { len }),
        _ => Ok(KeyPath { bucket, key }),
    }
}

/// A bucket's name as it stands in a path.
///
/// # Errors
/// When it is malformed or breaks the rule for names.
pub(super) fn parse_bucket(raw: &[u8]) -> Result<Cow<'_, str>, KeyPathError> {
    let name = match decode(raw)? {
        Cow::Borrowed(bytes) => std::str::from_utf8(bytes)
            .map(Cow::Borrowed)
            .map_err(|_| KeyPathError::Bucket)?,
        Cow::Owned(bytes) => String::from_utf8(bytes)
            .map(Cow::Owned)
            .map_err(|_| KeyPathError::Bucket)?,
    };
    if torc_ring::config::is_bucket_name(&name) {
        Ok(name)
    } else {
        Err(KeyPathError::Bucket)
    }
}

/// Percent-decodes; without an escape nothing is copied.
///
/// # Errors
/// At a `%` that two hexadecimal digits do not follow.
pub(super) fn decode(raw: &[u8]) -> Result<Cow<'_, [u8]>, KeyPathError> {
    let Some(first) = raw.iter().position(|&b| b == b'%') else {
        return Ok(Cow::Borrowed(raw));
    };
    let mut decoded = Vec::with_capacity(raw.len());
    decoded.extend_from_slice(&raw[..first]);
    let mut at = first;
    while at < raw.len() {
        if raw[at] == b'%' {
            let pair = raw.get(at + 1..at + 3).ok_or(KeyPathError::Escape)?;
            decoded.push((hex(pair[0])? << 4) | hex(pair[1])?);
            at += 3;
        } else {
            decoded.push(raw[at]);
            at += 1;
        }
    }
    Ok(Cow::Owned(decoded))
}

fn hex(digit: u8) -> Result<u8, KeyPathError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(KeyPathError::Escape),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(path: &str) -> Result<(String, Vec<u8>), KeyPathError> {
        parse_key_path(path.as_bytes()).map(|p| (p.bucket.into_owned(), p.key.into_owned()))
    }

    #[test]
    fn a_key_is_the_rest_of_the_path_as_bytes() {
        type Expected = Result<(&'static str, &'static [u8]), KeyPathError>;
        let cases: &[(&str, Expected)] = &[
            ("/kv/default/a", Ok(("default", b"a"))),
            ("/kv/default/a/b//c/", Ok(("default", b"a/b//c/"))),
            ("/kv/default//", Ok(("default", b"/"))),
            ("/kv/default/a%2Fb", Ok(("default", b"a/b"))),
            ("/kv/default/../etc/./x", Ok(("default", b"../etc/./x"))),
            ("/kv/default/%2e%2E", Ok(("default", b".."))),
            ("/kv/default/%00%ff", Ok(("default", b"\x00\xff"))),
            ("/kv/default/a+b", Ok(("default", b"a+b"))),
            ("/kv/def%61ult/a", Ok(("default", b"a"))),
            ("/kv/default/", Err(KeyPathError::EmptyKey)),
            ("/kv/default/%", Err(KeyPathError::Escape)),
            ("/kv/default/%4", Err(KeyPathError::Escape)),
            ("/kv/default/%zz", Err(KeyPathError::Escape)),
            ("/kv/default/%+1", Err(KeyPathError::Escape)),
            ("/kv/Default/a", Err(KeyPathError::Bucket)),
            ("/kv//a", Err(KeyPathError::Bucket)),
            ("/kv/a%2Fb/c", Err(KeyPathError::Bucket)),
            ("/kv/default", Err(KeyPathError::Prefix)),
            ("/kv", Err(KeyPathError::Prefix)),
            ("/elsewhere/default/a", Err(KeyPathError::Prefix)),
        ];
        for (path, expected) in cases {
            let expected = expected.map(|(bucket, key)| (bucket.to_owned(), key.to_vec()));
            assert_eq!(key(path), expected, "{path}");
        }
    }

    #[test]
    fn the_limit_counts_decoded_bytes() {
        let longest = format!("/kv/default/{}", "%61".repeat(KEY_LEN_MAX));
        assert_eq!(key(&longest).map(|(_, key)| key.len()), Ok(KEY_LEN_MAX));
        let longer = format!("{longest}b");
        assert_eq!(
            key(&longer),
            Err(KeyPathError::KeyTooLong {
                len: KEY_LEN_MAX + 1
            })
        );
        assert_eq!(
            key(&format!("/kv/{}/k", "b".repeat(64))).map(|(b, _)| b.len()),
            Ok(64)
        );
        assert_eq!(
            key(&format!("/kv/{}/k", "b".repeat(65))),
            Err(KeyPathError::Bucket)
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_apart_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse_key_path(&bytes);
            let mut path = b"/kv/default/".to_vec();
            path.extend_from_slice(&bytes);
            let _ = parse_key_path(&path);
        }

        #[test]
        fn an_escaped_key_is_itself_again(bytes in prop::collection::vec(any::<u8>(), 1..64)) {
            let escaped = bytes.iter().map(|b| format!("%{b:02X}")).collect::<Vec<_>>().concat();
            let path = format!("/kv/default/{escaped}");
            let parsed = parse_key_path(path.as_bytes()).map(|p| p.key.into_owned());
            prop_assert_eq!(parsed, Ok(bytes));
        }
    }
}
