//! Why settings were refused. Each message names the key, where it stood, and what would be right.

use std::fmt;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The documented default.
    Default,
    /// A line of the configuration file, counted from 1.
    File {
        /// Line of the value.
        line: usize,
    },
    /// The environment variable of that name.
    Environment {
        /// Its name, with `TORC_`.
        variable: String,
    },
    /// A flag of the command line.
    Flag {
        /// The flag, with its dashes.
        flag: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { line } => write!(f, "line {line}"),
            Self::Environment { variable } => write!(f, "environment variable {variable}"),
            Self::Flag { flag } => write!(f, "flag {flag}"),
        }
    }
}

/// Why settings were refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum SettingsError {
    #[error("the file has {bytes} bytes; a configuration has at most {limit}")]
    TooLarge { bytes: usize, limit: usize },
    #[error("line {line}: not TOML: {reason}")]
    Syntax { line: usize, reason: String },
    #[error("{origin}: unknown key `{key}`{}", hint(*.nearest))]
    UnknownKey {
        key: String,
        origin: Origin,
        nearest: Option<&'static str>,
    },
    #[error("{origin}: {key} = {given} is not {expected}")]
    BadValue {
        key: &'static str,
        given: String,
        origin: Origin,
        expected: String,
    },
    #[error("environment variable {variable} is not UTF-8")]
    NotText { variable: String },
    #[error("`{given}` is not KEY=VALUE; give for example limits.value_bytes=4MiB")]
    NotAnAssignment { given: String },
    #[error(
        "bootstrap and join exclude each other: the first node of a cluster bootstraps, all others join"
    )]
    BootstrapAndJoin,
    #[error(
        "replace names the dead member whose place this node takes, and goes with join: add --join ADDRESS of a \
         living member"
    )]
    ReplaceWithoutJoin,
    #[error("{smaller} = {smaller_value} is above {greater} = {greater_value}")]
    OutOfOrder {
        smaller: &'static str,
        smaller_value: String,
        greater: &'static str,
        greater_value: String,
    },
    #[error("{first} and {second} are both {address}; give each its own port")]
    SameAddress {
        first: &'static str,
        second: &'static str,
        address: String,
    },
    #[error(
        "{listener} = {address} listens on every address, which nobody can connect to: set {advertise} to \
         what others reach this node at, as host:port"
    )]
    NothingToAdvertise {
        listener: &'static str,
        address: String,
        advertise: &'static str,
    },
    #[error(
        "{listener} = {address} is reachable from other machines and there are no tokens in this version: \
         listen on 127.0.0.1, or pass --insecure if the network is trusted"
    )]
    Unprotected {
        listener: &'static str,
        address: String,
    },
    #[error(
        "peer = {address} is reachable from other machines, and the development CA is for loopback only: \
         make a CA with `torc pki init --out DIR`, a certificate with `torc pki issue NAME --pki DIR`, and \
         pass --pki DIR"
    )]
    PeerWithoutPki { address: String },
    #[error("cache.redis and cache.sentinels exclude each other: the sentinels know the server")]
    ServerAndSentinels,
    #[error(
        "the broker {broker} is not on loopback, where RabbitMQ's default password does not work and must not: \
         set queue.user and queue.password_file"
    )]
    DefaultPassword { broker: String },
}

fn hint(nearest: Option<&'static str>) -> String {
    match nearest {
        Some(name) => format!("; did you mean `{name}`?"),
        None => "; `torc config default` prints all keys".to_owned(),
    }
}
