//! Query strings, read without a map: each resource knows its few parameters and refuses the rest, so that
//! a misspelt `w=` never silently means the default.

use std::borrow::Cow;
use std::time::Duration;

use torc_ring::Quorum;

use super::path;
use super::problem::{Problem, Refused};

/// Longest time to live: a hundred years.
const TTL_MAX: Duration = Duration::from_secs(100 * 365 * 86_400);
/// Longest wait of a watch.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(300);

/// What a request on a key may say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct KeyQuery {
    pub(super) quorum: Option<Quorum>,
    pub(super) ttl: Option<Duration>,
    pub(super) sloppy: Option<bool>,
    pub(super) deadline: Option<Duration>,
    pub(super) fsync: bool,
    pub(super) wait: Option<Duration>,
}

/// Parameters of `GET` and `HEAD`.
pub(super) const READ: &[&str] = &["r", "deadline", "wait"];
/// Parameters of `PUT`.
pub(super) const PUT: &[&str] = &["w", "ttl", "sloppy", "deadline", "durability"];
/// Parameters of `DELETE`.
pub(super) const DELETE: &[&str] = &["w", "sloppy", "deadline", "durability"];

impl KeyQuery {
    /// Reads the parameters, of which those in `known` are allowed.
    pub(super) fn parse(
        query: Option<&str>,
        known: &'static [&'static str],
    ) -> Result<Self, Refused> {
        let mut parsed = Self::default();
        let Some(query) = query else {
            return Ok(parsed);
        };
        for_each(query, known, |name, value| {
            match name {
                "r" | "w" => parsed.quorum = Some(quorum(name, value)?),
                "ttl" => parsed.ttl = Some(ttl(value)?),
                "sloppy" => parsed.sloppy = Some(boolean("sloppy", value)?),
                "deadline" => parsed.deadline = Some(deadline(value)?),
                "durability" if value == "fsync" => parsed.fsync = true,
                "durability" => return Err(Problem::bad_parameter("durability", value, "fsync")),
                _ => parsed.wait = Some(wait(value)?),
            }
            Ok(())
        })?;
        Ok(parsed)
    }
}

/// Hands each parameter to `take`, decoded; unknown and repeated ones are refused.
pub(super) fn for_each(
    query: &str,
    known: &'static [&'static str],
    mut take: impl FnMut(&'static str, &str) -> Result<(), Refused>,
) -> Result<(), Refused> {
    for_each_bytes(query, known, |name, value| {
        match std::str::from_utf8(value) {
            Ok(value) => take(name, value),
            Err(_) => Err(Problem::bad_parameter(
                name,
                &String::from_utf8_lossy(value),
                "text in UTF-8",
            )),
        }
    })
}

/// The same for values that may be any bytes, as keys may.
pub(super) fn for_each_bytes(
    query: &str,
    known: &'static [&'static str],
    mut take: impl FnMut(&'static str, &[u8]) -> Result<(), Refused>,
) -> Result<(), Refused> {
    let mut seen = 0_u32;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some(at) = known.iter().position(|k| *k == name) else {
            return Err(Problem::unknown_parameter(
                name,
                nearest(name, known),
                known,
            ));
        };
        if seen & (1 << at) != 0 {
            return Err(Problem::repeated_parameter(name));
        }
        seen |= 1 << at;
        take(known[at], &decode(value)?)?;
    }
    Ok(())
}

/// `+` is a space in a query, by old custom of HTML forms.
fn decode(value: &str) -> Result<Cow<'_, [u8]>, Refused> {
    if value.contains('+') {
        let spaced = value.replace('+', " ");
        let decoded = path::decode(spaced.as_bytes()).map_err(|_| Problem::bad_escape())?;
        return Ok(Cow::Owned(decoded.into_owned()));
    }
    path::decode(value.as_bytes()).map_err(|_| Problem::bad_escape())
}

pub(super) fn quorum(name: &'static str, value: &str) -> Result<Quorum, Refused> {
    value.parse().map_err(|_| {
        Problem::bad_parameter(name, value, "one, quorum, all, or a number from 1 to n")
    })
}

fn boolean(name: &'static str, value: &str) -> Result<bool, Refused> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(Problem::bad_parameter(name, value, "true or false")),
    }
}

pub(super) fn ttl(value: &str) -> Result<Duration, Refused> {
    let expected =
        "a time such as 500ms, 30s, 10m, 12h or 7d, above zero and at most a hundred years";
    duration(value)
        .filter(|d| (Duration::from_millis(1)..=TTL_MAX).contains(d))
        .ok_or_else(|| Problem::bad_parameter("ttl", value, expected))
}

/// A deadline, of the query or of the header.
pub(super) fn deadline(value: &str) -> Result<Duration, Refused> {
    duration(value).filter(|d| !d.is_zero()).ok_or_else(|| {
        Problem::bad_parameter("deadline", value, "a time such as 250ms or 2s, above zero")
    })
}

fn wait(value: &str) -> Result<Duration, Refused> {
    duration(value)
        .filter(|d| !d.is_zero() && *d <= WAIT_MAX)
        .ok_or_else(|| {
            Problem::bad_parameter(
                "wait",
                value,
                "a time such as 30s, above zero and at most 5m",
            )
        })
}

/// Whole numbers with one unit: `ms`, `s`, `m`, `h`, `d`.
fn duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text.get(..digits)?.parse().ok()?;
    let unit_ms: u64 = match text.get(digits..)? {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(unit_ms).map(Duration::from_millis)
}

/// The known name that is the fewest edits away, if it is near enough to be what was meant.
pub(super) fn nearest(name: &str, known: &[&'static str]) -> Option<&'static str> {
    const NAME_MAX: usize = 32;
    if name.len() > NAME_MAX {
        return None;
    }
    let ranked = known
        .iter()
        .map(|&k| (edits(name.as_bytes(), k.as_bytes()), k));
    let (distance, nearest) = ranked.min_by_key(|&(distance, _)| distance)?;
    (distance <= (nearest.len() / 2).max(1)).then_some(nearest)
}

fn edits(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(!x.eq_ignore_ascii_case(y));
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit_and_do_not_overflow() {
        let cases: &[(&str, Option<u64>)] = &[
            ("500ms", Some(500)),
            ("30s", Some(30_000)),
            ("10m", Some(600_000)),
            ("2h", Some(7_200_000)),
            ("7d", Some(604_800_000)),
            ("30", None),
            ("", None),
            ("s", None),
            ("-1s", None),
            ("+1s", None),
            ("1.5s", None),
            ("1 s", None),
            ("1S", None),
            ("99999999999999999999s", None),
            ("18446744073709551615d", None),
        ];
        for (text, expected) in cases {
            assert_eq!(
                duration(text),
                expected.map(Duration::from_millis),
                "{text}"
            );
        }
    }

    #[test]
    fn everything_that_a_put_may_say_is_understood() {
        let query = KeyQuery::parse(
            Some("w=all&ttl=10m&sloppy=true&deadline=250ms&durability=fsync"),
            PUT,
        );
        let expected = KeyQuery {
            quorum: Some(Quorum::All),
            ttl: Some(Duration::from_secs(600)),
            sloppy: Some(true),
            deadline: Some(Duration::from_millis(250)),
            fsync: true,
            wait: None,
        };
        assert_eq!(query.ok(), Some(expected));
        assert_eq!(
            KeyQuery::parse(Some("r=%6fne&"), READ)
                .ok()
                .and_then(|q| q.quorum),
            Some(Quorum::One)
        );
    }

    #[test]
    fn an_unknown_parameter_is_refused_with_the_nearest_known_one() {
        let cases = [
            ("dedline=1s", "did you mean `deadline`"),
            ("W=1", "did you mean `w`"),
            ("durabilty=fsync", "did you mean `durability`"),
            ("quux=1", "known are w, ttl, sloppy, deadline, durability"),
        ];
        for (query, expected) in cases {
            let refused = KeyQuery::parse(Some(query), PUT).expect_err(query);
            assert!(
                refused.detail.contains(expected),
                "{query}: {}",
                refused.detail
            );
        }
        for bad in [
            "w=0",
            "w=+1",
            "w=257",
            "w=",
            "w",
            "ttl=0s",
            "ttl=40000d",
            "sloppy=yes",
            "durability=os",
            "w=1&w=2",
            "w=%zz",
        ] {
            assert!(KeyQuery::parse(Some(bad), PUT).is_err(), "{bad}");
        }
    }
}
