//! Runs a load on threads of its own and shows how far it is.

use std::io::{self, IsTerminal as _};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use torc_loadtest::drive::Progress;

use crate::demo::Stops;

/// How often the bar moves.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What is waited for, and its end: so many operations, or a time.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Operations(u64),
    Time(Duration),
}

/// Does `work`, which blocks, and shows its progress under a name. A signal ends it early.
pub(crate) async fn watch<T: Send + 'static>(
    name: &str,
    end: End,
    stops: &mut Stops,
    work: impl FnOnce(&Progress) -> T + Send + 'static,
) -> anyhow::Result<T> {
    let progress = Arc::new(Progress::default());
    let shared = Arc::clone(&progress);
    let mut work = tokio::task::spawn_blocking(move || work(&shared));
    let bar = bar(name, end);
    let begin = std::time::Instant::now();
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            done = &mut work => {
                bar.finish_and_clear();
                return done.context("the load ended by a fault of its own");
            }
            () = stops.wait(), if !progress.is_stopped() => progress.stop(),
            _ = look.tick() => {
                let at = match end {
                    End::Operations(_) => progress.done(),
                    End::Time(_) => begin.elapsed().as_millis() as u64,
                };
                bar.set_position(at);
                bar.set_message(format!("{} operations", progress.done()));
            }
        }
    }
}

fn bar(name: &str, end: End) -> ProgressBar {
    if !io::stderr().is_terminal() {
        eprint_line(name);
        return ProgressBar::hidden();
    }
    let (length, template) = match end {
        End::Operations(count) => (
            count,
            "{prefix:10} {bar:40} {pos}/{len} ({per_sec}, {eta} left)",
        ),
        End::Time(time) => (
            time.as_millis() as u64,
            "{prefix:10} {bar:40} {elapsed} ({msg})",
        ),
    };
    let bar = ProgressBar::new(length).with_prefix(name.to_owned());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// A line for those who read a pipe.
fn eprint_line(text: &str) {
    use std::io::Write as _;
    // A closed standard error is no reason to stop.
    let _ = writeln!(io::stderr(), "{text}");
}
