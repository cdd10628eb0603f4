//! ETags, causal contexts and dates as header values, and conditions on them.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, BytesMut};
use http::header::GetAll;
use http::HeaderValue;
use torc_protocol::hlc::Hlc;
use torc_protocol::version::{Digest, Version};
use torc_ring::{BucketId, NodeId, Secret};

/// Makes several short header values in one piece of memory.
#[derive(Debug)]
pub(super) struct Texts(BytesMut);

impl Texts {
    pub(super) fn new() -> Self {
        // ETag 50, context up to 64, date 29, Content-Range up to 50.
        Self(BytesMut::with_capacity(200))
    }

    fn take(&mut self) -> HeaderValue {
        // What is written here is digits, letters and punctuation of ASCII.
        HeaderValue::from_maybe_shared(self.0.split().freeze()).unwrap_or_else(|_| HeaderValue::from_static("-"))
    }

    pub(super) fn etag(&mut self, digest: &Digest) -> HeaderValue {
        self.0.put_u8(b'"');
        put_etag(&mut self.0, digest);
        self.0.put_u8(b'"');
        self.take()
    }

    pub(super) fn context(&mut self, scope: &Scope<'_>, version: Version) -> HeaderValue {
        put_context(&mut self.0, scope, version);
        self.take()
    }

    pub(super) fn date(&mut self, at: SystemTime) -> HeaderValue {
        let _ = write!(self.0, "{}", httpdate::HttpDate::from(at));
        self.take()
    }

    pub(super) fn content_range(&mut self, first: u64, last: u64, len: u64) -> HeaderValue {
        let _ = write!(self.0, "bytes {first}-{last}/{len}");
        self.take()
    }

    pub(super) fn number(&mut self, number: u64) -> HeaderValue {
        let _ = write!(self.0, "{number}");
        self.take()
    }
}

/// What a context is bound to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope<'a> {
    pub(super) secret: &'a Secret,
    pub(super) bucket: BucketId,
    pub(super) key: &'a [u8],
}

/// The ETag without its quotes, for JSON.
pub(super) fn etag_text(digest: &Digest) -> String {
    let mut buf = BytesMut::with_capacity(48);
    put_etag(&mut buf, digest);
    String::from_utf8_lossy(&buf).into_owned()
}

/// When a version was minted, to the second.
pub(super) fn minted_at(version: Version) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(version.hlc.micros() / 1_000_000)
}

/// Conditions of `If-Match` and `If-None-Match`: a list of entity tags, or `*`.
pub(super) struct Tags<'a>(pub(super) GetAll<'a, HeaderValue>);

/// One member of such a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tag<'a> {
    Any,
    Strong(&'a [u8]),
    Weak(&'a [u8]),
}

impl Tags<'_> {
    /// Whether one of them is this state; weak comparison as for `If-None-Match`.
    pub(super) fn match_weakly(&self, digest: &Digest) -> bool {
        self.any(|tag| match tag {
            Tag::Any => true,
            Tag::Strong(text) | Tag::Weak(text) => parse_etag(text) == Some(*digest),
        })
    }

    /// Whether one of them is this state; strong comparison as for `If-Match`.
    pub(super) fn match_strongly(&self, digest: &Digest) -> bool {
        self.any(|tag| match tag {
            Tag::Any => true,
            Tag::Strong(text) => parse_etag(text) == Some(*digest),
            Tag::Weak(_) => false,
        })
    }

    /// The state that the client knows, if the list is one entity tag; the inner `None` is a tag that is
    /// not of our making.
    pub(super) fn single(&self) -> Option<Option<Digest>> {
        let mut known = None;
        let more = self.any(|tag| match (tag, known) {
            (Tag::Strong(text) | Tag::Weak(text), None) => {
                known = Some(parse_etag(text));
                false
            }
            _ => true,
        });
        if more { None } else { known }
    }

    fn any(&self, mut test: impl FnMut(Tag<'_>) -> bool) -> bool {
        self.0.iter().any(|value| each(value.as_bytes(), &mut test))
    }
}

/// Whether `If-Range` names this state: a strong entity tag. Dates of seconds are no strong validators.
pub(super) fn if_range_matches(value: &HeaderValue, digest: &Digest) -> bool {
    each(value.as_bytes(), &mut |tag| matches!(tag, Tag::Strong(text) if parse_etag(text) == Some(*digest)))
}

/// Walks over a list of entity tags until `test` says yes; ends at the first thing that is none.
fn each(mut list: &[u8], test: &mut impl FnMut(Tag<'_>) -> bool) -> bool {
    loop {
        while let [b' ' | b'\t' | b',', rest @ ..] = list {
            list = rest;
        }
        let (weak, quoted) = match list {
            [b'*', rest @ ..] => {
                if test(Tag::Any) {
                    return true;
                }
                list = rest;
                continue;
            }
            [b'W', b'/', b'"', rest @ ..] => (true, rest),
            [b'"', rest @ ..] => (false, rest),
            _ => return false,
        };
        let Some(end) = quoted.iter().position(|&b| b == b'"') else { return false };
        let text = &quoted[..end];
        if test(if weak { Tag::Weak(text) } else { Tag::Strong(text) }) {
            return true;
        }
        list = &quoted[end + 1..];
    }
}

// --- until torc_protocol::context is there -------------------------------------------------------------

fn put_etag(buf: &mut BytesMut, digest: &Digest) {
    let _ = write!(buf, "{:016x}{:016x}{:016x}", digest.version.hlc.0, digest.version.node.0, digest.hash);
}

fn parse_etag(text: &[u8]) -> Option<Digest> {
    let text = std::str::from_utf8(text).ok().filter(|t| t.len() == 48 && t.bytes().all(|b| b.is_ascii_hexdigit()))?;
    let word = |at: usize| u64::from_str_radix(text.get(at..at + 16)?, 16).ok();
    Some(Digest { version: Version { hlc: Hlc(word(0)?), node: NodeId(word(16)?) }, hash: word(32)? })
}

fn put_context(buf: &mut BytesMut, _scope: &Scope<'_>, version: Version) {
    let _ = write!(buf, "{:016x}{:016x}", version.hlc.0, version.node.0);
}

/// The version that a context holds; `None` when this cluster did not give it out for this key.
pub(super) fn parse_context(value: &HeaderValue, _scope: &Scope<'_>) -> Option<Version> {
    let text = value.to_str().ok().filter(|t| t.len() == 32)?;
    let word = |at: usize| u64::from_str_radix(text.get(at..at + 16)?, 16).ok();
    Some(Version { hlc: Hlc(word(0)?), node: NodeId(word(16)?) })
}
