//! Byte ranges (RFC 9110, section 14): one range of a value. A request for several is answered with the
//! whole value, which the RFC leaves to the server; so is one that is malformed or of another unit.

use http::HeaderValue;

/// What a `Range` header asks of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// All of it.
    Whole,
    /// These bytes, both inclusive, within the value.
    Part { first: u64, last: u64 },
    /// Bytes that it does not have.
    Unsatisfiable,
}

/// Reads a `Range` header against a value of `len` bytes.
pub(super) fn parse(value: &HeaderValue, len: u64) -> Asked {
    let Ok(text) = value.to_str() else {
        return Asked::Whole;
    };
    let Some((unit, set)) = text.split_once('=') else {
        return Asked::Whole;
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") || set.contains(',') {
        return Asked::Whole;
    }
    let Some((first, last)) = set.trim().split_once('-') else {
        return Asked::Whole;
    };
    let (Some(first), Some(last)) = (Number::read(first), Number::read(last)) else {
        return Asked::Whole;
    };
    match (first, last) {
        (Number::Absent, Number::Absent) => Asked::Whole,
        (Number::Given(first), Number::Given(last)) if last < first => Asked::Whole,
        (Number::Absent, Number::Given(suffix)) if suffix > 0 && len > 0 => Asked::Part {
            first: len.saturating_sub(suffix),
            last: len - 1,
        },
        (Number::Given(first), Number::Absent) if first < len => Asked::Part {
            first,
            last: len - 1,
        },
        (Number::Given(first), Number::Given(last)) if first < len => Asked::Part {
            first,
            last: last.min(len - 1),
        },
        _ => Asked::Unsatisfiable,
    }
}

/// One end of a range.
#[derive(Clone, Copy)]
enum Number {
    Absent,
    Given(u64),
}

impl Number {
    /// Digits, or nothing at all; a number above `u64` is as good as the greatest one.
    fn read(text: &str) -> Option<Self> {
        match text {
            "" => Some(Self::Absent),
            digits if digits.bytes().all(|b| b.is_ascii_digit()) => {
                Some(Self::Given(digits.parse().unwrap_or(u64::MAX)))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_rfc_has_them() {
        let part = |first, last| Asked::Part { first, last };
        let cases: &[(&str, u64, Asked)] = &[
            ("bytes=0-4", 10, part(0, 4)),
            ("bytes=0-0", 10, part(0, 0)),
            ("bytes=5-", 10, part(5, 9)),
            ("bytes=5-99", 10, part(5, 9)),
            ("bytes=-3", 10, part(7, 9)),
            ("bytes=-99", 10, part(0, 9)),
            ("Bytes=1-2", 10, part(1, 2)),
            ("bytes=10-", 10, Asked::Unsatisfiable),
            ("bytes=-0", 10, Asked::Unsatisfiable),
            ("bytes=0-", 0, Asked::Unsatisfiable),
            ("bytes=-1", 0, Asked::Unsatisfiable),
            ("bytes=99999999999999999999-", 10, Asked::Unsatisfiable),
            ("bytes=0-99999999999999999999", 10, part(0, 9)),
            ("bytes=4-2", 10, Asked::Whole),
            ("bytes=-", 10, Asked::Whole),
            ("bytes=a-b", 10, Asked::Whole),
            ("bytes=0-1,4-5", 10, Asked::Whole),
            ("lines=0-1", 10, Asked::Whole),
            ("bytes", 10, Asked::Whole),
        ];
        for &(text, len, expected) in cases {
            assert_eq!(
                parse(&HeaderValue::from_static(text), len),
                expected,
                "{text} of {len}"
            );
        }
    }
}
