//! Results as rows of a table.

use super::result::{RunResult, Totals};

/// Heads of the columns of [`run_rows`].
pub const RUN_COLUMNS: [&str; 11] = [
    "TARGET",
    "PHASE",
    "OPERATION",
    "COUNT",
    "ERRORS",
    "PER SECOND",
    "p50 ms",
    "p90 ms",
    "p99 ms",
    "p99.9 ms",
    "MAX ms",
];

/// A row for each phase and kind of operation, and one for all kinds where there are several.
#[must_use]
pub fn run_rows(result: &RunResult) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for (name, phase) in &result.phases {
        let row = |kind: &str, totals: &Totals| {
            let mut row = vec![
                result.target.name().to_owned(),
                (*name).to_owned(),
                kind.to_owned(),
            ];
            row.extend(cells(totals));
            row
        };
        if phase.kinds.len() != 1 {
            rows.push(row("all", &phase.totals));
        }
        rows.extend(phase.kinds.iter().map(|(kind, totals)| row(kind, totals)));
    }
    rows
}

fn cells(totals: &Totals) -> [String; 8] {
    let latency = totals.latency_us;
    [
        number(totals.operations as f64),
        number(totals.errors as f64),
        number(totals.throughput),
        millis(latency.p50),
        millis(latency.p90),
        millis(latency.p99),
        millis(latency.p999),
        millis(latency.max),
    ]
}

/// Microseconds as milliseconds.
pub(crate) fn millis(micros: f64) -> String {
    let millis = micros / 1_000.0;
    if millis < 100.0 {
        format!("{millis:.2}")
    } else {
        number(millis)
    }
}

/// A whole number with its thousands apart.
#[must_use]
pub fn number(value: f64) -> String {
    let digits = format!("{:.0}", value.max(0.0));
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(number(0.4), "0");
        assert_eq!(number(999.0), "999");
        assert_eq!(number(1_234_567.0), "1,234,567");
        assert_eq!(
            (millis(1_234.0), millis(250_000.0)),
            ("1.23".to_owned(), "250".to_owned())
        );
    }
}
