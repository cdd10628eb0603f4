//! From errors to exit codes, and to one line on standard error.

use std::fmt;
use std::io::{self, Write as _};
use std::process::ExitCode;

use torc_client::Error as ClientError;
use torc_loadtest::Error as LoadError;
use torc_node::config::SettingsError;

/// Refused, or not found.
pub(crate) const REFUSED: u8 = 1;
/// The command line or the configuration is wrong.
pub(crate) const USAGE: u8 = 2;
/// The cluster cannot be reached, or has no quorum.
pub(crate) const UNREACHABLE: u8 = 3;

/// An error of whoever wrote the command line.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// The cluster is not there, or not in the state that was waited for.
#[derive(Debug)]
pub(crate) struct Unreachable(pub(crate) String);

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreachable {}

/// Prints the error and says with which code to exit.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    // Whoever reads standard output has seen enough, as `head` does.
    let is_pipe = |cause: &(dyn std::error::Error + 'static)| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    if error.chain().any(is_pipe) {
        return ExitCode::SUCCESS;
    }
    let mut line = text(error);
    if let Some(hint) = error
        .chain()
        .find_map(|cause| cause.downcast_ref().and_then(hint))
    {
        line.push_str("; ");
        line.push_str(hint);
    }
    // Nothing can be done where even this cannot be written.
    let _ = writeln!(io::stderr(), "torc: {line}");
    ExitCode::from(code(error))
}

/// The error and its causes; a cause that the message before it tells already is not told twice.
fn text(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
    }
    text.replace(char::is_control, " ")
}

fn code(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if cause.is::<Usage>() || cause.is::<SettingsError>() {
            return USAGE;
        }
        if cause.is::<Unreachable>() {
            return UNREACHABLE;
        }
        if let Some(error) = cause.downcast_ref::<LoadError>() {
            return match error {
                error if error.is_usage() => USAGE,
                LoadError::Unreachable { .. } => UNREACHABLE,
                _ => REFUSED,
            };
        }
        if let Some(error) = cause.downcast_ref::<ClientError>() {
            return client_code(error);
        }
    }
    REFUSED
}

fn client_code(error: &ClientError) -> u8 {
    match error {
        ClientError::NoNodes
        | ClientError::BadNode { .. }
        | ClientError::BadRequest(_)
        | ClientError::BatchTooLong { .. } => USAGE,
        // A full disk is no quorum's fault, and trying again helps as little as with other refusals.
        ClientError::Refused { problem, .. } if problem.status == 507 => REFUSED,
        error if error.is_clusters_fault() => UNREACHABLE,
        _ => REFUSED,
    }
}

/// What to do about it.
fn hint(error: &ClientError) -> Option<&'static str> {
    match error {
        ClientError::Unreachable { .. } => Some(
            "is it running? `torc demo` starts a cluster, --node and --admin name other addresses",
        ),
        ClientError::Unknown { .. } => {
            Some("read the key to see, then decide whether to write again")
        }
        ClientError::Refused { problem, .. } if problem.status == 503 => {
            Some("`torc status` says who is missing; -r and -w ask for fewer replicas")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use torc_client::Problem;

    use super::*;

    fn refused(status: u16) -> anyhow::Error {
        let problem = Problem {
            status,
            ..Problem::default()
        };
        ClientError::Refused {
            node: "a:1".into(),
            problem: Box::new(problem),
        }
        .into()
    }

    #[test]
    fn a_cause_is_told_once() {
        let error = anyhow::anyhow!("in use")
            .context("cannot listen: in use")
            .context("cannot start");
        assert_eq!(text(&error), "cannot start: cannot listen: in use");
    }

    #[test]
    fn each_kind_of_error_has_its_exit_code() {
        for (error, expected) in [
            (refused(404), REFUSED),
            (refused(400), REFUSED),
            (refused(413), REFUSED),
            (refused(507), REFUSED),
            (refused(503), UNREACHABLE),
            (refused(429), UNREACHABLE),
            (ClientError::NoNodes.into(), USAGE),
            (ClientError::BadNode { given: "x".into() }.into(), USAGE),
            (SettingsError::BootstrapAndJoin.into(), USAGE),
            (Usage("x".into()).into(), USAGE),
            (Unreachable("x".into()).into(), UNREACHABLE),
            (anyhow::anyhow!("other"), REFUSED),
            (refused(503).context("while trying"), UNREACHABLE),
        ] {
            assert_eq!(code(&error), expected, "{error:#}");
        }
    }
}
