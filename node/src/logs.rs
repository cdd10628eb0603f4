//! Logs: for people on a terminal, JSON otherwise.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

/// What is logged where nothing else is said.
pub const FILTER_DEFAULT: &str = "info";

/// Why logs cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is malformed.
    #[error(
        "log filter `{filter}` is malformed: {source}; it looks like `info` or `torc_node=debug,warn`"
    )]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Logs are set up already in this process.
    #[error("logs are set up already: {source}")]
    Twice {
        /// What the library says.
        source: TryInitError,
    },
}

/// Sends logs to standard error: readable on a terminal, one JSON object a line otherwise. `filter` is what
/// `TORC_LOG` says (`info`, `torc_node=debug,warn`); [`FILTER_DEFAULT`] without it.
///
/// # Errors
/// When the filter is malformed, or logs are set up already.
pub fn start(filter: Option<&str>) -> Result<(), LogError> {
    let filter = filter
        .map(str::trim)
        .filter(|text| !text.is_empty())
        .unwrap_or(FILTER_DEFAULT);
    let parsed = EnvFilter::try_new(filter).map_err(|source| LogError::Filter {
        filter: filter.to_owned(),
        source,
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_writer(std::io::stderr);
    let started = if std::io::stderr().is_terminal() {
        builder.with_target(false).finish().try_init()
    } else {
        builder
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .finish()
            .try_init()
    };
    started.map_err(|source| LogError::Twice { source })
}

/// Says which settings of earlier versions were passed by.
pub fn settings_passed_by(warnings: &[String]) {
    for warning in warnings {
        tracing::warn!("setting passed by: {warning}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_filter_is_refused_and_named() {
        let error = start(Some("torc_node=loud")).expect_err("not a level");
        assert!(error.to_string().contains("torc_node=loud"), "{error}");
    }
}
