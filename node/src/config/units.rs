//! Sizes and times as people write them: `64MiB`, `250ms`.

use std::time::Duration;

const SIZES: [(&str, u64); 7] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// In milliseconds. Longest first, so that what is printed is shortest.
const TIMES: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

/// Reads a size in bytes: a whole number and one of `B KiB MiB GiB TiB kB MB`. `None` for anything else,
/// a missing unit and what exceeds `u64` included.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    scaled(text, &SIZES)
}

/// Reads a time: a whole number and one of `ms s m h d`. `None` for anything else, a missing unit included.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    scaled(text, &TIMES).map(Duration::from_millis)
}

/// Writes a size so that [`parse_size`] reads the same.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    let binary = SIZES.iter().filter(|(unit, _)| unit.ends_with("iB"));
    print(bytes, binary, "B")
}

/// Writes a time, in whole milliseconds, so that [`parse_duration`] reads the same.
#[must_use]
pub fn format_duration(time: Duration) -> String {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    print(millis, TIMES.iter(), "ms")
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let scale = units.iter().find(|(name, _)| *name == unit)?.1;
    number.parse::<u64>().ok()?.checked_mul(scale)
}

fn print<'a>(
    amount: u64,
    mut units: impl Iterator<Item = &'a (&'a str, u64)>,
    smallest: &str,
) -> String {
    match units.find(|(_, scale)| amount > 0 && amount.is_multiple_of(*scale)) {
        Some((unit, scale)) => format!("{}{unit}", amount / scale),
        None => format!("{amount}{smallest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_are_read_and_required() {
        assert_eq!(parse_size("64MiB"), Some(64 << 20));
        assert_eq!(parse_size("0B"), Some(0));
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse_duration("7d"), Some(Duration::from_hours(168)));
        for bad in [
            "",
            "64",
            "MiB",
            "64 MiB",
            "64mib",
            "-1B",
            "+1B",
            "1.5MiB",
            "99999999999TiB",
            "ß",
        ] {
            assert_eq!(parse_size(bad), None, "{bad}");
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn amounts_are_written_short() {
        assert_eq!(format_size(64 << 20), "64MiB");
        assert_eq!(format_size(1025), "1025B");
        assert_eq!(format_size(0), "0B");
        assert_eq!(format_duration(Duration::from_secs(90)), "90s");
        assert_eq!(format_duration(Duration::from_mins(2)), "2m");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(amount in any::<u64>()) {
            prop_assert_eq!(parse_size(&format_size(amount)), Some(amount));
            let time = Duration::from_millis(amount);
            prop_assert_eq!(parse_duration(&format_duration(time)), Some(time));
        }
    }
}
