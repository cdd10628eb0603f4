//! A page of HTML that stands alone: style and plots are inside, nothing is fetched and nothing runs.

use std::fmt::Write as _;

use super::plot::{Frame, Line, draw};
use super::result::RunResult;
use super::table::{RUN_COLUMNS, millis, number, run_rows};
use crate::pace::Pace;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#1b1b1b}\
h1{font-size:1.6em}h2{font-size:1.25em;margin-top:2em}table{border-collapse:collapse;font-variant-numeric:tabular-nums}\
th,td{padding:.25em .7em;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}\
th:first-child,td:first-child{text-align:left}th{font-size:.85em}svg{max-width:100%;height:auto;margin:.5em 0}\
.note{color:#555;font-size:.9em}.scroll{overflow-x:auto}";

/// A page in the making.
#[derive(Debug)]
pub struct Page {
    title: String,
    body: String,
}

impl Page {
    /// With this title.
    #[must_use]
    pub fn new(title: &str) -> Self {
        let mut page = Self {
            title: escape(title),
            body: String::new(),
        };
        page.push("h1", title);
        page
    }

    fn push(&mut self, element: &str, text: &str) {
        // Writing into a String cannot fail.
        let _ = writeln!(self.body, "<{element}>{}</{element}>", escape(text));
    }

    /// A heading.
    pub fn section(&mut self, text: &str) {
        self.push("h2", text);
    }

    /// A paragraph.
    pub fn paragraph(&mut self, text: &str) {
        self.push("p", text);
    }

    /// What explains, in small letters.
    pub fn note(&mut self, text: &str) {
        let _ = writeln!(self.body, "<p class=\"note\">{}</p>", escape(text));
    }

    /// A table.
    pub fn table(&mut self, head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
        self.body.push_str("<div class=\"scroll\"><table><tr>");
        for cell in head {
            let _ = write!(self.body, "<th>{}</th>", escape(cell));
        }
        self.body.push_str("</tr>\n");
        for row in rows {
            self.body.push_str("<tr>");
            for cell in row {
                let _ = write!(self.body, "<td>{}</td>", escape(&cell));
            }
            self.body.push_str("</tr>\n");
        }
        self.body.push_str("</table></div>\n");
    }

    pub(crate) fn plot(&mut self, frame: Frame<'_>, lines: Vec<Line>) {
        if let Some(svg) = draw(frame, lines) {
            self.body.push_str(&svg);
            self.body.push('\n');
        }
    }

    /// The whole page.
    #[must_use]
    pub fn finish(self) -> String {
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width\"><title>{}</title><style>{STYLE}</style></head>\n\
             <body>\n{}</body></html>\n",
            self.title, self.body
        )
    }

    /// Runs of one workload, side by side where there are several.
    #[must_use]
    pub fn of_runs(title: &str, results: &[RunResult]) -> String {
        let mut page = Self::new(title);
        if let Some(first) = results.first() {
            page.paragraph(&about(first));
        }
        page.section("Throughput and latency");
        page.table(&RUN_COLUMNS, results.iter().flat_map(run_rows));
        page.note(
            "Latency of a closed loop counts from the moment at which the request was sent, of an open loop from the \
             moment at which it was due. Reads of records that are not there are answers, not errors.",
        );
        page.section("From second to second");
        let series = |of: fn(&super::result::Point) -> f64| -> Vec<Line> {
            results
                .iter()
                .map(|result| Line {
                    name: result.target.name().to_owned(),
                    points: result
                        .series
                        .iter()
                        .map(|point| (point.second as f64, of(point)))
                        .collect(),
                })
                .collect()
        };
        let frame = |title, y| Frame {
            title,
            x: "seconds",
            y,
            ..Frame::default()
        };
        page.plot(
            frame("Throughput", "operations a second"),
            series(|point| point.throughput),
        );
        page.plot(
            Frame {
                log_y: true,
                ..frame("Latency, 99 of 100", "milliseconds")
            },
            series(|point| point.p99 / 1_000.0),
        );
        page.section("Availability");
        page.table(&AVAILABILITY_COLUMNS, results.iter().map(availability_row));
        page.note("Judged by tenths of a second. Recovered: nothing fails any more and throughput is back at 90 %.");
        page.section("The load generator");
        page.table(
            &[
                "TARGET",
                "CPU us/op",
                "CONTEXT SWITCHES/op",
                "SENT LATE p99 ms",
            ],
            results.iter().map(instrument_row),
        );
        page.finish()
    }
}

/// Heads of the columns of [`availability_row`].
pub(crate) const AVAILABILITY_COLUMNS: [&str; 5] = [
    "TARGET",
    "ANSWERED",
    "TIME UP",
    "LONGEST SILENCE s",
    "RECOVERED AFTER s",
];

fn availability_row(result: &RunResult) -> Vec<String> {
    let mut row = vec![result.target.name().to_owned()];
    row.extend(result.availability.cells());
    row
}

fn instrument_row(result: &RunResult) -> Vec<String> {
    let late = result
        .instrument
        .lateness_us
        .map_or_else(|| "-".to_owned(), |late| millis(late.p99));
    vec![
        result.target.name().to_owned(),
        format!("{:.1}", result.instrument.cpu_us_per_operation),
        format!("{:.2}", result.instrument.context_switches_per_operation),
        late,
    ]
}

fn about(result: &RunResult) -> String {
    let pace = match result.pace {
        Pace::Closed => {
            "closed loop: each connection sends its next request when the last is answered"
                .to_owned()
        }
        Pace::Open { per_second, .. } => {
            format!("open loop at {} operations a second", number(per_second))
        }
    };
    format!(
        "{} ({}), {:?} distribution over {} records, values of {}; {} connections, {pace}; {:.1} s measured.",
        result.workload.name,
        result.workload.mix,
        result.workload.distribution,
        number(result.workload.records as f64),
        result.workload.value_size,
        result.connections,
        result.totals.seconds
    )
    .replace("Zipfian", "zipfian")
    .replace("Uniform", "uniform")
    .replace("Latest", "latest")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_stands_alone_and_text_stays_text() {
        let mut page = Page::new("a <b>");
        page.table(&["X"], [vec!["<script>".to_owned()]]);
        let text = page.finish();
        assert!(text.contains("<title>a &lt;b&gt;</title>") && text.contains("&lt;script&gt;"));
        for outside in ["src=", "href=", "<script", "@import"] {
            assert!(!text.contains(outside), "{outside}");
        }
    }
}
