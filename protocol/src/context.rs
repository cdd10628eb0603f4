//! What a client carries between its requests: the causal context, and the entity tag.
//!
//! A context says what its bearer has seen of one key. It goes to clients as an opaque token with a message
//! authentication code over the key that it is of, for a forged one (far in the future, or of another key)
//! could bury all later writes. Form, before URL-safe base64 without padding (big endian):
//!
//! ```text
//! format u8 = 1   kind u8   kind 1: hlc u64, node u64
//!                           kind 2: (node u64, epoch u64, hlc u64)*, rising by (node, epoch)
//!                 MAC: the first 16 bytes of keyed BLAKE3 over
//!                 bucket id u32, length of the key u32, key, and all bytes before the MAC
//! ```
//!
//! Source: Preguiça, Baquero et al., "Dotted Version Vectors" (2010), for contexts in place of clocks.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::BufMut;
use torc_ring::{BucketId, NodeId, Secret};

use crate::hlc::Hlc;
use crate::siblings::{Causal, Dot};
use crate::version::{Digest, Version};

/// Greatest number of dots in a context, so that it fits into a header.
pub const CONTEXT_DOTS_MAX: usize = 128;
/// Greatest length of a context's text, in bytes.
pub const CONTEXT_TEXT_MAX: usize = (2 + CONTEXT_DOTS_MAX * DOT_LEN + MAC_LEN).div_ceil(3) * 4;

const FORMAT: u8 = 1;
const KIND_VERSION: u8 = 1;
const KIND_DOTS: u8 = 2;
const MAC_LEN: usize = 16;
const VERSION_LEN: usize = 16;
const DOT_LEN: usize = 24;
/// Separates this use of the cluster's secret from all others.
const KEY_PURPOSE: &str = "torc 2026 causal context of a key";

/// What a client has seen of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Context {
    /// In an `lww` or `linearizable` bucket: that version.
    Version(Version),
    /// In a `siblings` bucket: these dots and all before them.
    Dots(Causal),
}

/// Why a context is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ContextError {
    /// Longer than any that was handed out.
    #[error("X-Torc-Context of {len} bytes is over the limit of {CONTEXT_TEXT_MAX}")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// No URL-safe base64, or cut off.
    #[error("X-Torc-Context is malformed: send back exactly what an answer about this key carried")]
    Malformed,
    /// Made by another version of torc.
    #[error(
        "X-Torc-Context has format {format}, kind {kind}, which this node does not know: read the key again"
    )]
    Unknown {
        /// First byte.
        format: u8,
        /// Second byte.
        kind: u8,
    },
    /// Not made by this cluster, or not for this key.
    #[error(
        "X-Torc-Context was not made by this cluster for this key: send back what an answer about this key carried"
    )]
    Forged,
    /// More dots than fit.
    #[error("the key's context has {dots} entries, over the limit of {CONTEXT_DOTS_MAX}")]
    TooManyDots {
        /// Dots that it has.
        dots: usize,
    },
}

/// Makes and checks contexts. Made once per config from its secret.
#[derive(Clone)]
pub struct ContextKey([u8; 32]);

impl std::fmt::Debug for ContextKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ContextKey(..)")
    }
}

impl ContextKey {
    /// Derives the key from the cluster's secret.
    #[must_use]
    pub fn new(secret: &Secret) -> Self {
        Self(blake3::derive_key(KEY_PURPOSE, &secret.0))
    }

    /// The text that a client is handed for this key.
    ///
    /// # Errors
    /// When the context has too many dots.
    pub fn encode(
        &self,
        bucket: BucketId,
        key: &[u8],
        context: &Context,
    ) -> Result<String, ContextError> {
        let mut bytes = Vec::with_capacity(2 + VERSION_LEN + MAC_LEN);
        bytes.put_u8(FORMAT);
        match context {
            Context::Version(version) => {
                bytes.put_u8(KIND_VERSION);
                bytes.put_u64(version.hlc.0);
                bytes.put_u64(version.node.0);
            }
            Context::Dots(seen) if seen.len() > CONTEXT_DOTS_MAX => {
                return Err(ContextError::TooManyDots { dots: seen.len() });
            }
            Context::Dots(seen) => {
                bytes.put_u8(KIND_DOTS);
                for dot in seen.dots() {
                    bytes.put_u64(dot.node.0);
                    bytes.put_u64(dot.epoch);
                    bytes.put_u64(dot.hlc.0);
                }
            }
        }
        let mac = self.mac(bucket, key, &bytes);
        bytes.put_slice(&mac);
        Ok(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// The context in a client's text.
    ///
    /// # Errors
    /// When it was not made by [`Self::encode`] with this secret for this key.
    pub fn decode(
        &self,
        bucket: BucketId,
        key: &[u8],
        text: &[u8],
    ) -> Result<Context, ContextError> {
        if text.len() > CONTEXT_TEXT_MAX {
            return Err(ContextError::TooLong { len: text.len() });
        }
        let bytes = URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| ContextError::Malformed)?;
        let Some((signed, mac)) = bytes.split_last_chunk::<MAC_LEN>() else {
            return Err(ContextError::Malformed);
        };
        let &[format, kind, ref body @ ..] = signed else {
            return Err(ContextError::Malformed);
        };
        if format != FORMAT {
            return Err(ContextError::Unknown { format, kind });
        }
        if !is_equal(&self.mac(bucket, key, signed), mac) {
            return Err(ContextError::Forged);
        }
        match kind {
            KIND_VERSION => version_of(body).map(Context::Version),
            KIND_DOTS => dots_of(body).map(Context::Dots),
            _ => Err(ContextError::Unknown { format, kind }),
        }
    }

    fn mac(&self, bucket: BucketId, key: &[u8], signed: &[u8]) -> [u8; MAC_LEN] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&bucket.0.to_be_bytes());
        hasher.update(&(key.len() as u32).to_be_bytes());
        hasher.update(key);
        hasher.update(signed);
        let mut mac = [0; MAC_LEN];
        mac.copy_from_slice(&hasher.finalize().as_bytes()[..MAC_LEN]);
        mac
    }
}

/// Compares in a time that does not depend on where the two differ, so that nobody can guess a code byte
/// by byte.
pub(crate) fn is_equal(a: &[u8; MAC_LEN], b: &[u8; MAC_LEN]) -> bool {
    let difference = a
        .iter()
        .zip(b)
        .fold(0, |difference, (a, b)| difference | (a ^ b));
    std::hint::black_box(difference) == 0
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..)?.first_chunk::<8>()?;
    Some(u64::from_be_bytes(*bytes))
}

fn version_of(body: &[u8]) -> Result<Version, ContextError> {
    match (word(body, 0), word(body, 8)) {
        (Some(hlc), Some(node)) if body.len() == VERSION_LEN => Ok(Version {
            hlc: Hlc(hlc),
            node: NodeId(node),
        }),
        _ => Err(ContextError::Malformed),
    }
}

fn dots_of(body: &[u8]) -> Result<Causal, ContextError> {
    let mut seen = Causal::new();
    let chunks = body.chunks_exact(DOT_LEN);
    if !chunks.remainder().is_empty() || chunks.len() > CONTEXT_DOTS_MAX {
        return Err(ContextError::Malformed);
    }
    for chunk in chunks {
        let (Some(node), Some(epoch), Some(hlc)) =
            (word(chunk, 0), word(chunk, 8), word(chunk, 16))
        else {
            return Err(ContextError::Malformed);
        };
        seen.insert(Dot {
            node: NodeId(node),
            epoch,
            hlc: Hlc(hlc),
        });
    }
    Ok(seen)
}

/// The entity tag of a state, quotes included: `"hlc-node-hash"`, each of 16 hexadecimal digits.
#[must_use]
pub fn etag(digest: Digest) -> String {
    format!(
        "\"{:016x}-{:016x}-{:016x}\"",
        digest.version.hlc.0, digest.version.node.0, digest.hash
    )
}

/// The state in an entity tag, with or without quotes and the prefix of a weak one; `None` for tags that
/// this store never hands out.
#[must_use]
pub fn parse_etag(text: &str) -> Option<Digest> {
    let text = text.trim();
    let text = text
        .strip_prefix("W/")
        .or_else(|| text.strip_prefix("w/"))
        .unwrap_or(text);
    let text = text
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .unwrap_or(text);
    let mut parts = text.split('-').map(|part| {
        let is_hex = (1..=16).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit());
        if is_hex {
            u64::from_str_radix(part, 16).ok()
        } else {
            None
        }
    });
    let (hlc, node, hash) = (parts.next()??, parts.next()??, parts.next()??);
    let version = Version {
        hlc: Hlc(hlc),
        node: NodeId(node),
    };
    parts.next().is_none().then_some(Digest { version, hash })
}

/// Whether a header of entity tags (`If-None-Match`, `If-Match`) names this state: `*` names every one.
#[must_use]
pub fn etag_matches(header: &str, digest: Digest) -> bool {
    header.trim() == "*" || header.split(',').any(|tag| parse_etag(tag) == Some(digest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(seed: u8) -> ContextKey {
        ContextKey::new(&Secret([seed; 32]))
    }

    fn context(hlc: u64, node: u64) -> Context {
        Context::Version(Version {
            hlc: Hlc(hlc),
            node: NodeId(node),
        })
    }

    #[test]
    fn the_text_is_this() {
        let text = key(7)
            .encode(BucketId(1), b"k", &context(5, 6))
            .expect("small");
        assert_eq!(text, "AQEAAAAAAAAABQAAAAAAAAAGoDajbZVGtxjl7vuzSfOZOw");
        assert_eq!(
            key(7).decode(BucketId(1), b"k", text.as_bytes()),
            Ok(context(5, 6))
        );
    }

    #[test]
    fn a_context_cannot_be_moved_or_forged() {
        let text = key(7)
            .encode(BucketId(1), b"k", &context(5, 6))
            .expect("small");
        let forged = Err(ContextError::Forged);
        assert_eq!(
            key(8).decode(BucketId(1), b"k", text.as_bytes()),
            forged,
            "another cluster"
        );
        assert_eq!(
            key(7).decode(BucketId(2), b"k", text.as_bytes()),
            forged,
            "another bucket"
        );
        assert_eq!(
            key(7).decode(BucketId(1), b"K", text.as_bytes()),
            forged,
            "another key"
        );
        for at in 3..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            assert!(
                key(7).decode(BucketId(1), b"k", &bytes).is_err(),
                "byte {at}"
            );
        }
    }

    #[test]
    fn what_is_no_context_says_so() {
        let decode = |text: &[u8]| key(7).decode(BucketId(1), b"k", text);
        assert_eq!(decode(b""), Err(ContextError::Malformed));
        assert_eq!(decode(b"not base64!"), Err(ContextError::Malformed));
        assert_eq!(
            decode(&[b'A'; 40]),
            Err(ContextError::Unknown { format: 0, kind: 0 })
        );
        assert_eq!(
            decode(&vec![b'A'; 99_999]),
            Err(ContextError::TooLong { len: 99_999 })
        );
    }

    #[test]
    fn the_longest_context_fits_and_a_longer_one_is_refused() {
        let mut seen = Causal::new();
        for node in 0..CONTEXT_DOTS_MAX as u64 {
            seen.insert(Dot {
                node: NodeId(node),
                epoch: 1,
                hlc: Hlc(9),
            });
        }
        let longest = Context::Dots(seen.clone());
        let text = key(7).encode(BucketId(1), b"k", &longest).expect("fits");
        assert!(text.len() <= CONTEXT_TEXT_MAX && text.len() < 6_000);
        assert_eq!(
            key(7).decode(BucketId(1), b"k", text.as_bytes()),
            Ok(longest)
        );
        seen.insert(Dot {
            node: NodeId(9_999),
            epoch: 1,
            hlc: Hlc(9),
        });
        let refused = key(7).encode(BucketId(1), b"k", &Context::Dots(seen));
        assert_eq!(
            refused,
            Err(ContextError::TooManyDots {
                dots: CONTEXT_DOTS_MAX + 1
            })
        );
    }

    #[test]
    fn an_entity_tag_comes_back_in_all_its_forms() {
        let version = Version {
            hlc: Hlc(0xabc),
            node: NodeId(2),
        };
        let digest = Digest {
            version,
            hash: u64::MAX,
        };
        let tag = etag(digest);
        assert_eq!(
            tag,
            "\"0000000000000abc-0000000000000002-ffffffffffffffff\""
        );
        for form in [
            tag.clone(),
            format!("W/{tag}"),
            format!("  {tag} "),
            tag.replace('"', ""),
            tag.to_uppercase(),
        ] {
            assert_eq!(parse_etag(&form), Some(digest), "{form}");
        }
        for form in [
            "",
            "*",
            "\"\"",
            "\"1-2\"",
            "\"1-2-3-4\"",
            "\"+1-2-3\"",
            "\"1-2-g\"",
            "\"1-2-00000000000000003\"",
        ] {
            assert_eq!(parse_etag(form), None, "{form}");
        }
        assert!(etag_matches(&format!("\"other\", W/{tag}"), digest));
        assert!(etag_matches(" * ", digest));
        assert!(!etag_matches("\"other\"", digest));
    }

    proptest! {
        #[test]
        fn contexts_survive_the_way(hlc: u64, node: u64, name in prop::collection::vec(any::<u8>(), 0..9), dots in prop::collection::vec(any::<(u64, u64, u64)>(), 0..9)) {
            let mut seen = Causal::new();
            for (node, epoch, hlc) in dots {
                seen.insert(Dot { node: NodeId(node), epoch, hlc: Hlc(hlc) });
            }
            for given in [context(hlc, node), Context::Dots(seen)] {
                let text = key(1).encode(BucketId(3), &name, &given).expect("small");
                prop_assert_eq!(key(1).decode(BucketId(3), &name, text.as_bytes()), Ok(given));
            }
        }

        #[test]
        fn arbitrary_text_never_panics(text in prop::collection::vec(any::<u8>(), 0..99)) {
            let _ = key(1).decode(BucketId(3), b"k", &text);
            let _ = parse_etag(&String::from_utf8_lossy(&text));
        }
    }
}
