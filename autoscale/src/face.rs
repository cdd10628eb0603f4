//! The autoscaler's health and metrics.

use std::fmt::Write as _;

use parking_lot::Mutex;
use serde_json::json;
use torc_face::Face;

use crate::decide::{Decision, Seen, Step};

/// What is scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Node,
    Worker,
}

pub(crate) const KINDS: [Kind; 2] = [Kind::Node, Kind::Worker];
const STEPS: [Step; 3] = [Step::Add, Step::Remove, Step::Hold];

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Worker => "worker",
        }
    }
}

/// What the autoscaler has seen and done.
#[derive(Debug, Default)]
pub(crate) struct Book {
    lines: Mutex<[Line; 2]>,
    /// Why it cannot work; empty while it can.
    trouble: Mutex<Vec<String>>,
    rounds: Mutex<u64>,
    /// The node that is to get no more requests.
    draining: Mutex<Option<String>>,
}

#[derive(Debug, Default)]
struct Line {
    seen: Option<Seen>,
    why: String,
    decisions: [u64; 3],
    /// Of additions and removals: done, failed.
    changes: [[u64; 2]; 2],
}

impl Book {
    pub(crate) fn on_round(&self, trouble: Vec<String>) {
        *self.rounds.lock() += 1;
        *self.trouble.lock() = trouble;
    }

    pub(crate) fn on_decision(&self, kind: Kind, seen: &Seen, decision: &Decision) {
        let line = &mut self.lines.lock()[kind as usize];
        line.seen = Some(*seen);
        line.why = decision.why.to_string();
        let at = STEPS.iter().position(|step| *step == decision.step);
        if let Some(count) = at.and_then(|at| line.decisions.get_mut(at)) {
            *count += 1;
        }
    }

    pub(crate) fn on_changed(&self, kind: Kind, added: bool, done: bool) {
        self.lines.lock()[kind as usize].changes[usize::from(!added)][usize::from(!done)] += 1;
    }

    pub(crate) fn drain(&self, node: Option<&str>) {
        *self.draining.lock() = node.map(str::to_owned);
    }
}

impl Face for Book {
    fn ready(&self) -> Result<(), String> {
        let trouble = self.trouble.lock();
        match (*self.rounds.lock(), trouble.is_empty()) {
            (0, true) => Err("nothing was looked at yet".to_owned()),
            (_, true) => Ok(()),
            (_, false) => Err(trouble.join("; ")),
        }
    }

    fn health(&self) -> serde_json::Value {
        let lines = self.lines.lock();
        let mut parts = serde_json::Map::new();
        for kind in KINDS {
            let line = &lines[kind as usize];
            if let Some(seen) = &line.seen {
                let part = json!({
                    "count": seen.count, "added": seen.added, "load": seen.load, "why": line.why,
                });
                parts.insert(kind.name().to_owned(), part);
            }
        }
        let status = if self.ready().is_ok() { "ok" } else { "down" };
        json!({"status": status, "reasons": *self.trouble.lock(), "components": parts})
    }

    fn metrics(&self) -> String {
        let lines = self.lines.lock();
        let mut text = String::new();
        let mut family = |name: &str, kind: &str, help: &str, series: &[(String, String)]| {
            let _ = writeln!(text, "# HELP {name} {help}.\n# TYPE {name} {kind}");
            for (labels, value) in series {
                let _ = writeln!(text, "{name}{{{labels}}} {value}");
            }
        };
        let of = |value: &dyn Fn(&Seen) -> Option<f64>| -> Vec<(String, String)> {
            let of_kind = |kind: &Kind| {
                let seen = lines[*kind as usize].seen.as_ref()?;
                let labels = format!("kind=\"{}\"", kind.name());
                Some((labels, value(seen)?.to_string()))
            };
            KINDS.iter().filter_map(of_kind).collect()
        };
        let help = "How many there are";
        let count = of(&|seen| Some(f64::from(seen.count)));
        family("torc_autoscale_count", "gauge", help, &count);
        let help = "How many of them were added by the autoscaler";
        let added = of(&|seen| Some(f64::from(seen.added)));
        family("torc_autoscale_added", "gauge", help, &added);
        let help = "Load of one of them on average, as last seen";
        family("torc_autoscale_load", "gauge", help, &of(&|seen| seen.load));
        let mut decisions = Vec::new();
        let mut changes = Vec::new();
        for kind in KINDS {
            let (line, name) = (&lines[kind as usize], kind.name());
            for (step, count) in STEPS.iter().zip(line.decisions) {
                decisions.push((
                    format!("kind=\"{name}\",decision=\"{step}\""),
                    count.to_string(),
                ));
            }
            for (change, outcomes) in ["add", "remove"].iter().zip(line.changes) {
                for (outcome, count) in ["done", "failed"].iter().zip(outcomes) {
                    let labels =
                        format!("kind=\"{name}\",change=\"{change}\",outcome=\"{outcome}\"");
                    changes.push((labels, count.to_string()));
                }
            }
        }
        let help = "Decisions";
        family(
            "torc_autoscale_decisions_total",
            "counter",
            help,
            &decisions,
        );
        let help = "Changes that were made, or failed";
        family("torc_autoscale_changes_total", "counter", help, &changes);
        let ready = u8::from(self.ready().is_ok());
        let _ = writeln!(
            text,
            "# HELP torc_autoscale_ready 1 while Prometheus, a node and (unless it only explains) the engine answer.\n\
             # TYPE torc_autoscale_ready gauge\ntorc_autoscale_ready {ready}"
        );
        text
    }

    /// A name a line, for the shell script that writes Nginx' list of nodes.
    fn more(&self) -> Option<(&'static str, String)> {
        let draining = self.draining.lock().clone();
        let text = draining.map_or_else(String::new, |name| name + "\n");
        Some(("/draining", text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::Why;

    #[test]
    fn what_was_seen_and_done_is_in_the_metrics() {
        let book = Book::default();
        assert!(book.ready().is_err(), "before the first round nobody knows");
        let seen = Seen {
            count: 4,
            added: 1,
            load: Some(1.5),
            blocked: None,
        };
        let decision = Decision {
            step: Step::Hold,
            why: Why::NoFigures,
        };
        book.on_decision(Kind::Node, &seen, &decision);
        book.on_changed(Kind::Node, true, true);
        book.on_changed(Kind::Worker, false, false);
        book.on_round(Vec::new());
        let text = book.metrics();
        for line in [
            "torc_autoscale_count{kind=\"node\"} 4",
            "torc_autoscale_added{kind=\"node\"} 1",
            "torc_autoscale_load{kind=\"node\"} 1.5",
            "torc_autoscale_decisions_total{kind=\"node\",decision=\"hold\"} 1",
            "torc_autoscale_changes_total{kind=\"node\",change=\"add\",outcome=\"done\"} 1",
            "torc_autoscale_changes_total{kind=\"worker\",change=\"remove\",outcome=\"failed\"} 1",
            "torc_autoscale_ready 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        book.on_round(vec!["no".to_owned()]);
        assert_eq!(book.health()["status"], "down");
    }
}
