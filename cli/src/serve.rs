//! `torc serve`: settings from file, environment and flags; a runtime; signals.

use std::collections::BTreeSet;
use std::future::Future;
use std::io::{self, BufRead as _};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use torc_node::config::{Layers, SettingsError};
use torc_node::node::Cuts;

use crate::args::ServeArgs;
use crate::exit::Usage;

/// Time that an orphan has to stop in order before it is ended.
const ORPHAN_STOP_MAX: Duration = Duration::from_secs(12);

pub(crate) fn run(args: &ServeArgs) -> anyhow::Result<ExitCode> {
    let mut layers = layers(args.config.as_deref())?;
    layers.flags(flags(args)?)?;
    let settings = layers.settings()?;
    let filter = std::env::var("TORC_LOG").ok();
    torc_node::logs::start(filter.as_deref()).map_err(|error| Usage(error.to_string()))?;
    torc_node::logs::settings_passed_by(layers.warnings());
    let (parent, cuts) = match args.parent_pipe.then(watch_parent).transpose()? {
        Some((parent, cuts)) => (Some(parent), Some(cuts)),
        None => (None, None),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let stop = stop(parent)?;
        torc_node::node::run(settings, stop, cuts).await?;
        anyhow::Ok(())
    })?;
    // Whatever still blocks a thread has had its time.
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(ExitCode::SUCCESS)
}

/// The configuration file and the environment.
pub(crate) fn layers(file: Option<&Path>) -> anyhow::Result<Layers> {
    let mut layers = Layers::new();
    if let Some(file) = file {
        let text = crate::config::read(file).map_err(|error| Usage(format!("{error:#}")))?;
        layers
            .file(&text)
            .with_context(|| file.display().to_string())?;
    }
    let variables = std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok()?;
        Some((name, value.into_string().ok()))
    });
    layers.environment(variables)?;
    Ok(layers)
}

fn flags(args: &ServeArgs) -> Result<Vec<(&str, String, String)>, SettingsError> {
    let yes = |given: bool| given.then(|| "true".to_owned());
    let named = [
        ("name", args.name.clone()),
        ("data", args.data.clone()),
        ("http", args.http.clone()),
        ("admin", args.admin.clone()),
        ("peer", args.peer.clone()),
        ("advertise_http", args.advertise_http.clone()),
        ("advertise_peer", args.advertise_peer.clone()),
        ("bootstrap", yes(args.bootstrap)),
        ("join", args.join.clone()),
        ("replace", args.replace.clone()),
        ("zone", args.zone.clone()),
        ("weight", args.weight.clone()),
        ("pki", args.pki.clone()),
        ("durability", args.durability.clone()),
        ("insecure", yes(args.insecure)),
    ];
    let mut flags: Vec<_> = named
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?, format!("--{}", key.replace('_', "-")))))
        .collect();
    flags.extend(assignments(&args.set)?);
    Ok(flags)
}

/// What `--set` says.
pub(crate) fn assignments(set: &[String]) -> Result<Vec<(&str, String, String)>, SettingsError> {
    let each = set.iter().map(|assignment| {
        let (key, value) =
            assignment
                .split_once('=')
                .ok_or_else(|| SettingsError::NotAnAssignment {
                    given: assignment.clone(),
                })?;
        Ok((key.trim(), value.trim().to_owned(), "--set".to_owned()))
    });
    each.collect()
}

/// Ends with the first SIGTERM, SIGINT, or the parent's end. A second signal ends the process at once.
pub(crate) fn stop(
    parent: Option<oneshot::Receiver<()>>,
) -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    Ok(async move {
        let orphaned = async {
            match parent {
                Some(parent) => drop(parent.await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = orphaned => {}
        }
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            std::process::exit(130);
        });
    })
}

/// Tells when standard input ends, which whoever started this node holds open as long as it lives, and
/// what it says there: `cut NAME...` cuts this node off from those nodes and from no others.
fn watch_parent() -> anyhow::Result<(oneshot::Receiver<()>, Cuts)> {
    let (gone, parent) = oneshot::channel();
    let (cut, cuts) = watch::channel(BTreeSet::new());
    thread::Builder::new()
        .name("parent".to_owned())
        .spawn(move || {
            // Other lines mean nothing; an error means the same as the end.
            for line in io::stdin().lock().lines().map_while(Result::ok) {
                let mut words = line.split_ascii_whitespace().map(str::to_owned);
                if words.next().as_deref() == Some("cut") {
                    cut.send_replace(words.collect());
                }
            }
            let _ = gone.send(());
            thread::sleep(ORPHAN_STOP_MAX);
            std::process::exit(1);
        })
        .context("cannot start a thread")?;
    Ok((parent, cuts))
}
