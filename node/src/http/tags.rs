//! ETags, causal contexts and dates as header values, and conditions on them.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use http::HeaderValue;
use http::header::GetAll;
use torc_protocol::context::{Context, ContextError, ContextKey, etag, parse_etag};
use torc_protocol::version::{Digest, Version};
use torc_ring::BucketId;

use super::problem::{Problem, Refused};

/// Makes several short header values in one piece of memory.
#[derive(Debug)]
pub(super) struct Texts(BytesMut);

impl Texts {
    pub(super) fn new() -> Self {
        // A date 29, Content-Range up to 70, Content-Length up to 20.
        Self(BytesMut::with_capacity(120))
    }

    fn take(&mut self) -> HeaderValue {
        HeaderValue::from_maybe_shared(self.0.split().freeze())
            .unwrap_or(HeaderValue::from_static("-"))
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
    pub(super) codec: &'a ContextKey,
    pub(super) bucket: BucketId,
    pub(super) key: &'a [u8],
}

impl Scope<'_> {
    pub(super) fn header(&self, version: Version) -> HeaderValue {
        // Only a context with too many dots cannot be written, and this one has none.
        let text = self
            .codec
            .encode(self.bucket, self.key, &Context::Version(version))
            .unwrap_or_default();
        value(text)
    }

    /// The version that a context holds.
    pub(super) fn parse(&self, header: &HeaderValue) -> Result<Version, Refused> {
        match self.codec.decode(self.bucket, self.key, header.as_bytes()) {
            Ok(Context::Version(version)) => Ok(version),
            Ok(Context::Dots(_)) => Err(Problem::bad_context(ContextError::Forged)),
            Err(error) => Err(Problem::bad_context(error)),
        }
    }
}

/// The ETag header of a state.
pub(super) fn etag_header(digest: &Digest) -> HeaderValue {
    value(etag(*digest))
}

/// The ETag without its quotes, for JSON.
pub(super) fn etag_text(digest: &Digest) -> String {
    etag(*digest).replace('"', "")
}

/// What is made here is digits, letters and punctuation of ASCII.
fn value(text: String) -> HeaderValue {
    HeaderValue::from_maybe_shared(Bytes::from(text)).unwrap_or(HeaderValue::from_static("-"))
}

/// When a version was minted, to the second.
pub(super) fn minted_at(version: Version) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(version.hlc.micros() / 1_000_000)
}

/// Conditions of `If-Match` and `If-None-Match`: a list of entity tags, or `*`.
pub(super) struct Tags<'a>(pub(super) GetAll<'a, HeaderValue>);

/// What a list of entity tags says about the state that a client knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// That one.
    State(Digest),
    /// One that is not of our making.
    Foreign,
    /// It names none, any, or several.
    NotOne,
}

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
            Tag::Strong(text) | Tag::Weak(text) => digest_of(text) == Some(*digest),
        })
    }

    /// Whether one of them is this state; strong comparison as for `If-Match`.
    pub(super) fn match_strongly(&self, digest: &Digest) -> bool {
        self.any(|tag| match tag {
            Tag::Any => true,
            Tag::Strong(text) => digest_of(text) == Some(*digest),
            Tag::Weak(_) => false,
        })
    }

    /// The state that the client knows, if the list is one entity tag.
    pub(super) fn single(&self) -> Known {
        let mut known = Known::NotOne;
        let mut count = 0;
        self.any(|tag| {
            count += 1;
            known = match tag {
                Tag::Strong(text) | Tag::Weak(text) if count == 1 => {
                    digest_of(text).map_or(Known::Foreign, Known::State)
                }
                _ => Known::NotOne,
            };
            count > 1
        });
        known
    }

    fn any(&self, mut test: impl FnMut(Tag<'_>) -> bool) -> bool {
        self.0.iter().any(|value| each(value.as_bytes(), &mut test))
    }
}

fn digest_of(tag: &[u8]) -> Option<Digest> {
    parse_etag(std::str::from_utf8(tag).ok()?)
}

/// Whether `If-Range` names this state: a strong entity tag. Dates of seconds are no strong validators.
pub(super) fn if_range_matches(value: &HeaderValue, digest: &Digest) -> bool {
    each(
        value.as_bytes(),
        &mut |tag| matches!(tag, Tag::Strong(text) if digest_of(text) == Some(*digest)),
    )
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
        let Some(end) = quoted.iter().position(|&b| b == b'"') else {
            return false;
        };
        let text = &quoted[..end];
        if test(if weak {
            Tag::Weak(text)
        } else {
            Tag::Strong(text)
        }) {
            return true;
        }
        list = &quoted[end + 1..];
    }
}

/// The version that an ETag, quotes included, was made of.
#[cfg(test)]
pub(super) fn etag_version(quoted: &str) -> Option<Version> {
    parse_etag(quoted).map(|digest| digest.version)
}
