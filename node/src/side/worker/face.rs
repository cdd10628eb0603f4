//! A worker's health and metrics.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use torc_face::Face;

use super::Book;
use crate::metrics::process_text;

impl Face for Book {
    fn ready(&self) -> Result<(), String> {
        if self.stopping.load(Ordering::Relaxed) {
            Err("the worker is stopping".to_owned())
        } else if self.connected.load(Ordering::Relaxed) {
            Ok(())
        } else {
            Err("no broker is connected".to_owned())
        }
    }

    fn health(&self) -> Value {
        let queue = if self.connected.load(Ordering::Relaxed) {
            json!({"status": "ok", "depth": self.depth.load(Ordering::Relaxed), "dead": self.dead.load(Ordering::Relaxed)})
        } else {
            json!({"status": "down", "reason": "no broker is connected"})
        };
        let status = if self.ready().is_ok() { "ok" } else { "down" };
        json!({"status": status, "components": {"queue": queue}})
    }

    fn metrics(&self) -> String {
        metrics(self, self.connected.load(Ordering::Relaxed))
    }
}

fn metrics(book: &Book, connected: bool) -> String {
    let results = [
        ("applied", &book.applied),
        ("superseded", &book.superseded),
        ("failed", &book.failed),
        ("poison", &book.poison),
    ];
    let mut text = String::from(
        "# HELP torc_worker_messages_total Queued writes that this worker is done with.\n# TYPE torc_worker_messages_total counter\n",
    );
    for (result, count) in results {
        let count = count.value();
        let _ = writeln!(
            text,
            "torc_worker_messages_total{{result=\"{result}\"}} {count}"
        );
    }
    let attempts = [("refused", &book.retried), ("unavailable", &book.waited)];
    text += "# HELP torc_worker_retries_total Attempts that were made again, by why.\n# TYPE torc_worker_retries_total counter\n";
    for (reason, count) in attempts {
        let count = count.value();
        let _ = writeln!(
            text,
            "torc_worker_retries_total{{reason=\"{reason}\"}} {count}"
        );
    }
    let redelivered = book.redelivered.value();
    let _ = write!(
        text,
        "# HELP torc_worker_redelivered_total Messages that had been delivered before.\n# TYPE torc_worker_redelivered_total counter\ntorc_worker_redelivered_total {redelivered}\n"
    );
    let gauges = [
        (
            "torc_worker_connected",
            "1 while a broker is connected",
            u64::from(connected),
        ),
        (
            "torc_worker_in_work",
            "Messages in work",
            book.in_work.load(Ordering::Relaxed) as u64,
        ),
        (
            "torc_queue_depth",
            "Queued writes that wait",
            book.depth.load(Ordering::Relaxed),
        ),
        (
            "torc_queue_dead",
            "Queued writes that were given up",
            book.dead.load(Ordering::Relaxed),
        ),
    ];
    for (name, help, value) in gauges {
        let _ = write!(
            text,
            "# HELP {name} {help}.\n# TYPE {name} gauge\n{name} {value}\n"
        );
    }
    text + &process_text()
}
