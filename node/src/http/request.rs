//! What a request's head says, read in one pass, and the id by which logs know the request.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Version};
use torc_protocol::message::TRACE_LEN_MAX;

use super::problem::{Problem, Refused};
use super::query;

/// The headers that the facade looks at. Where one may be repeated, this holds its first line.
#[derive(Debug, Default)]
pub(super) struct Heads<'a> {
    pub(super) accept: Option<&'a HeaderValue>,
    pub(super) content_encoding: Option<&'a HeaderValue>,
    pub(super) content_range: Option<&'a HeaderValue>,
    pub(super) content_type: Option<&'a HeaderValue>,
    pub(super) context: Option<&'a HeaderValue>,
    pub(super) deadline: Option<&'a HeaderValue>,
    pub(super) expect: Option<&'a HeaderValue>,
    pub(super) if_match: Option<&'a HeaderValue>,
    pub(super) if_modified_since: Option<&'a HeaderValue>,
    pub(super) if_none_match: Option<&'a HeaderValue>,
    pub(super) if_range: Option<&'a HeaderValue>,
    pub(super) if_unmodified_since: Option<&'a HeaderValue>,
    pub(super) range: Option<&'a HeaderValue>,
    pub(super) request_id: Option<&'a HeaderValue>,
    pub(super) traceparent: Option<&'a HeaderValue>,
    hosts: u8,
    contexts: u8,
}

impl<'a> Heads<'a> {
    pub(super) fn scan(headers: &'a HeaderMap) -> Self {
        let mut heads = Self::default();
        for (name, value) in headers {
            let slot = match name.as_str() {
                "host" => {
                    heads.hosts = heads.hosts.saturating_add(1);
                    continue;
                }
                "x-torc-context" => {
                    heads.contexts = heads.contexts.saturating_add(1);
                    &mut heads.context
                }
                "accept" => &mut heads.accept,
                "content-encoding" => &mut heads.content_encoding,
                "content-range" => &mut heads.content_range,
                "content-type" => &mut heads.content_type,
                "x-torc-deadline" => &mut heads.deadline,
                "expect" => &mut heads.expect,
                "if-match" => &mut heads.if_match,
                "if-modified-since" => &mut heads.if_modified_since,
                "if-none-match" => &mut heads.if_none_match,
                "if-range" => &mut heads.if_range,
                "if-unmodified-since" => &mut heads.if_unmodified_since,
                "range" => &mut heads.range,
                "x-request-id" => &mut heads.request_id,
                "traceparent" => &mut heads.traceparent,
                _ => continue,
            };
            slot.get_or_insert(value);
        }
        heads
    }

    /// Rules that hold for every request.
    pub(super) fn check(&self, parts: &Parts) -> Result<(), Refused> {
        if parts.version == Version::HTTP_11 && self.hosts != 1 {
            return Err(Problem::no_host());
        }
        if self.contexts > 1 {
            return Err(Problem::repeated_context());
        }
        match self.expect {
            Some(value) if !value.as_bytes().eq_ignore_ascii_case(b"100-continue") => {
                Err(Problem::expectation())
            }
            _ => Ok(()),
        }
    }

    /// How long the request may take: what query and header ask for, the smaller one of the two.
    pub(super) fn deadline(
        &self,
        asked: Option<Duration>,
        usual: Duration,
        max: Duration,
    ) -> Result<Duration, Refused> {
        let header = match self.deadline.map(HeaderValue::to_str) {
            None => None,
            Some(Ok(text)) => Some(query::deadline(text)?),
            Some(Err(_)) => {
                return Err(Problem::bad_parameter(
                    "X-Torc-Deadline",
                    "?",
                    "a time such as 250ms or 2s",
                ));
            }
        };
        let wanted = match (asked, header) {
            (Some(a), Some(b)) => a.min(b),
            (Some(only), None) | (None, Some(only)) => only,
            (None, None) => return Ok(usual),
        };
        if wanted > max {
            Err(Problem::deadline_too_long(wanted, max))
        } else {
            Ok(wanted)
        }
    }
}

/// Mints ids for requests that bring none: unique in this process, and hardly ever met in another.
#[derive(Debug)]
pub(super) struct Ids {
    base: u64,
    next: AtomicU64,
}

impl Ids {
    pub(super) fn new() -> Self {
        Self {
            base: rand::random(),
            next: AtomicU64::new(0),
        }
    }

    /// The request's id in logs: `X-Request-Id` where it is fit, else the trace id of a W3C `traceparent`,
    /// else a new one of 16 hexadecimal digits.
    pub(super) fn of(&self, heads: &Heads<'_>) -> Bytes {
        let given = heads
            .request_id
            .map(HeaderValue::as_bytes)
            .filter(|id| is_fit(id));
        let given = given.or_else(|| {
            heads
                .traceparent
                .and_then(|value| trace_id(value.as_bytes()))
        });
        given.map_or_else(|| self.mint(), Bytes::copy_from_slice)
    }

    fn mint(&self) -> Bytes {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        // An odd multiplier is a bijection: distinct counts make distinct ids.
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        let id = self
            .base
            .wrapping_add(count.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut text = [0_u8; 16];
        for (at, digit) in text.iter_mut().enumerate() {
            *digit = DIGITS[(id >> (60 - 4 * at)) as usize & 15];
        }
        Bytes::copy_from_slice(&text)
    }
}

fn is_fit(id: &[u8]) -> bool {
    (1..=TRACE_LEN_MAX).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

/// The trace id of a `traceparent`: `version-traceid-parentid-flags`, in lower-case hexadecimal.
fn trace_id(value: &[u8]) -> Option<&[u8]> {
    let is_hex = |part: &[u8]| part.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let mut parts = value.split(|&b| b == b'-');
    let (version, trace, parent, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let lengths = (version.len(), trace.len(), parent.len(), flags.len()) == (2, 32, 16, 2);
    let plain = [version, trace, parent, flags].into_iter().all(is_hex);
    // Version 0 ends after the flags; later ones may go on. ff is forbidden, and so are ids of zeros.
    let ends = version != b"00" || parts.next().is_none();
    let set = trace.iter().any(|&b| b != b'0') && parent.iter().any(|&b| b != b'0');
    (lengths && plain && ends && set && version != b"ff").then_some(trace)
}

/// Whether `accept` allows one of `offered`; an absent header allows everything. Answers the index of the
/// first one that is allowed with the greatest weight.
pub(super) fn accepts(accept: Option<&HeaderValue>, offered: &[&str]) -> Option<usize> {
    let Some(accept) = accept else { return Some(0) };
    // What cannot be read is treated as absent, as RFC 9110 leaves it to the server.
    let Ok(accept) = accept.to_str() else {
        return Some(0);
    };
    if accept.trim().is_empty() {
        return Some(0);
    }
    let weights = offered
        .iter()
        .enumerate()
        .map(|(at, media)| (weight(accept, media), at));
    let (weight, at) = weights.max_by_key(|&(weight, at)| (weight, std::cmp::Reverse(at)))?;
    (weight > 0).then_some(at)
}

/// Weight of a media type in thousandths, by the most specific range that covers it.
fn weight(accept: &str, media: &str) -> u32 {
    let kind = media.split('/').next().unwrap_or_default();
    let mut best = (0, 0);
    for item in accept.split(',') {
        let mut fields = item.split(';').map(str::trim);
        let range = fields.next().unwrap_or_default();
        let specificity = match range.split_once('/') {
            _ if range.eq_ignore_ascii_case(media) => 3,
            Some((k, "*")) if k.eq_ignore_ascii_case(kind) => 2,
            Some(("*", "*")) => 1,
            _ => continue,
        };
        let q = fields.find_map(|f| f.strip_prefix("q=").or_else(|| f.strip_prefix("Q=")));
        let q = q
            .map_or(1.0, |q| q.parse::<f32>().unwrap_or(1.0))
            .clamp(0.0, 1.0);
        if specificity > best.0 {
            best = (specificity, (q * 1_000.0) as u32);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_is_taken_over_only_if_it_is_fit() {
        let ids = Ids::new();
        let of = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(
                name,
                HeaderValue::from_bytes(value.as_bytes()).expect("a header value"),
            );
            String::from_utf8(ids.of(&Heads::scan(&headers)).to_vec()).expect("ASCII")
        };
        assert_eq!(of("x-request-id", "abc-1"), "abc-1");
        let trace = "0af7651916cd43dd8448eb211c80319c";
        assert_eq!(
            of("traceparent", &format!("00-{trace}-b7ad6b7169203331-01")),
            trace
        );
        for bad in ["", "a b", "ü", &"x".repeat(TRACE_LEN_MAX + 1)] {
            assert_eq!(of("x-request-id", bad).len(), 16, "{bad}");
        }
        for bad in [
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "nonsense",
        ] {
            assert_eq!(of("traceparent", bad).len(), 16, "{bad}");
        }
        assert_ne!(ids.mint(), ids.mint());
    }

    #[test]
    fn accept_is_weighed_by_its_most_specific_range() {
        let offered = ["application/json", "application/x-ndjson"];
        let pick =
            |accept: &'static str| accepts(Some(&HeaderValue::from_static(accept)), &offered);
        assert_eq!(accepts(None, &offered), Some(0));
        assert_eq!(pick("*/*"), Some(0));
        assert_eq!(pick("application/x-ndjson"), Some(1));
        assert_eq!(pick("application/*;q=0.5, application/x-ndjson"), Some(1));
        assert_eq!(pick("application/json;q=0, */*"), Some(1));
        assert_eq!(pick("text/html"), None);
        assert_eq!(pick("*/*;q=0"), None);
        assert_eq!(pick(""), Some(0));
    }
}
