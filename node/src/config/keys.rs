//! The table of all keys: name, kind with its range, default, meaning. File, environment, flags, error
//! messages and the documented defaults are all made from it, so that they cannot differ.

use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::units::{format_duration, format_size};

/// What a key's value looks like.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// 1–64 bytes of `a-z A-Z 0-9 _ - .`.
    Name,
    /// A path.
    Path,
    /// `IP:port`.
    Socket,
    /// `host:port`.
    HostPort,
    /// Several `host:port`.
    HostPorts,
    /// Several names of buckets.
    Buckets,
    /// `true` or `false`.
    Flag,
    /// A whole number.
    Number(RangeInclusive<u64>),
    /// `auto` or a power of two up to this.
    AutoOrPower(u64),
    /// A size with a unit, in bytes.
    Size(RangeInclusive<u64>),
    /// A time with a unit, in milliseconds.
    Time(RangeInclusive<u64>),
    /// One of these words.
    Word(&'static [&'static str]),
}

impl Kind {
    /// What would have been right, for "... is not {this}".
    pub(super) fn expected(&self) -> String {
        match self {
            Self::Name => "a name of 1-64 bytes of a-z A-Z 0-9 _ - .".to_owned(),
            Self::Path => "a path".to_owned(),
            Self::Socket => {
                "an address as IP:PORT with a port above 0, such as \"127.0.0.1:8081\"".to_owned()
            }
            Self::HostPort => "an address as HOST:PORT, such as \"node-1.example:7081\"".to_owned(),
            Self::HostPorts => {
                "a list of 1-100 addresses as HOST:PORT, such as [\"127.0.0.1:7081\"]".to_owned()
            }
            Self::Buckets => "a list of 1-100 names of buckets, such as [\"default\"]".to_owned(),
            Self::Flag => "true or false".to_owned(),
            Self::Number(range) => {
                format!("a whole number from {} to {}", range.start(), range.end())
            }
            Self::AutoOrPower(max) => format!("\"auto\" or a power of two from 1 to {max}"),
            Self::Size(range) => format!(
                "a size from {} to {} with its unit (B, KiB, MiB, GiB, TiB), such as \"64MiB\"",
                format_size(*range.start()),
                format_size(*range.end())
            ),
            Self::Time(range) => {
                let show = |millis: &u64| format_duration(Duration::from_millis(*millis));
                format!(
                    "a time from {} to {} with its unit (ms, s, m, h, d), such as \"250ms\"",
                    show(range.start()),
                    show(range.end())
                )
            }
            Self::Word(words) => format!("one of {}", words.join(", ")),
        }
    }

    /// The range, for the documentation of the defaults; empty where the default shows it all.
    fn range(&self) -> String {
        let show = |millis: &u64| format_duration(Duration::from_millis(*millis));
        match self {
            Self::Number(range) => format!(" Range: {} to {}.", range.start(), range.end()),
            Self::Size(range) => format!(
                " Range: {} to {}.",
                format_size(*range.start()),
                format_size(*range.end())
            ),
            Self::Time(range) => {
                format!(" Range: {} to {}.", show(range.start()), show(range.end()))
            }
            Self::Word(words) => format!(" One of: {}.", words.join(", ")),
            _ => String::new(),
        }
    }
}

/// One key.
#[derive(Debug)]
pub(super) struct Key {
    /// Name with its section, `limits.value_bytes`.
    pub(super) name: &'static str,
    /// What its value looks like.
    pub(super) kind: Kind,
    /// Default as it stands in a file, quotes included; `None` where there is none.
    pub(super) default: Option<&'static str>,
    /// An example for a key without a default.
    example: &'static str,
    /// Meaning, one or more whole sentences.
    doc: &'static str,
}

impl Key {
    /// Name of the environment variable that overrides it.
    pub(super) fn variable(&self) -> String {
        format!("TORC_{}", self.name.replace('.', "_").to_ascii_uppercase())
    }
}

pub(super) const fn key(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    doc: &'static str,
) -> Key {
    Key {
        name,
        kind,
        default: Some(default),
        example: "",
        doc,
    }
}

pub(super) const fn optional(
    name: &'static str,
    kind: Kind,
    example: &'static str,
    doc: &'static str,
) -> Key {
    Key {
        name,
        kind,
        default: None,
        example,
        doc,
    }
}

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const SECOND: u64 = 1_000;
const HOUR: u64 = 3_600_000;

/// Names of the durabilities.
pub(super) const DURABILITIES: &[&str] = &["fsync", "interval", "os"];

/// All keys, sections together, in the order in which they are documented.
pub(super) static KEYS: &[Key] = &[
    key(
        "name",
        Kind::Name,
        "\"node-1\"",
        "Name for people, unique in the cluster.",
    ),
    key(
        "data",
        Kind::Path,
        "\"torc-data\"",
        "Data directory; made if it is not there.",
    ),
    key(
        "http",
        Kind::Socket,
        "\"127.0.0.1:8081\"",
        "Data listener: keys, health.",
    ),
    key(
        "admin",
        Kind::Socket,
        "\"127.0.0.1:9081\"",
        "Admin listener: ring, buckets, metrics.",
    ),
    key(
        "peer",
        Kind::Socket,
        "\"127.0.0.1:7081\"",
        "Peer listener: QUIC over UDP.",
    ),
    optional(
        "advertise_http",
        Kind::HostPort,
        "\"node-1.example:8081\"",
        "Address that clients reach `http` at. Without it: `http` itself.",
    ),
    optional(
        "advertise_peer",
        Kind::HostPort,
        "\"node-1.example:7081\"",
        "Address that other nodes reach `peer` at. Without it: `peer` itself.",
    ),
    key(
        "zone",
        Kind::Name,
        "\"default\"",
        "Failure domain: replicas of a key are put into distinct zones.",
    ),
    key(
        "weight",
        Kind::Number(1..=10_000),
        "100",
        "Relative share of the ring.",
    ),
    key(
        "bootstrap",
        Kind::Flag,
        "false",
        "Make a new cluster with this node as its first member. A data directory that knows its cluster \
         needs neither this nor `join`.",
    ),
    optional(
        "join",
        Kind::HostPorts,
        "[\"127.0.0.1:7081\"]",
        "Peer addresses of nodes whose cluster this node joins. When the cluster holds keys, this node's share \
         of them moves to it before it counts.",
    ),
    optional(
        "replace",
        Kind::Name,
        "\"node-3\"",
        "Name or id of a dead member whose place this node takes; goes with `join`. The member's share moves to \
         this node in the same change that takes it out. Means nothing once this node is a member.",
    ),
    optional(
        "pki",
        Kind::Path,
        "\"pki\"",
        "Folder with the cluster's CA certificate and this node's own. Without it: a development CA, \
         made once per user, on loopback only.",
    ),
    key(
        "durability",
        Kind::Word(DURABILITIES),
        "\"fsync\"",
        "When a write counts as durable: when it is on disk (fsync), when it is written and an fsync follows \
         within `durability_interval` (interval), or when the operating system has it (os).",
    ),
    key(
        "durability_interval",
        Kind::Time(1..=60 * SECOND),
        "\"100ms\"",
        "Time between fsyncs for `interval`.",
    ),
    key(
        "insecure",
        Kind::Flag,
        "false",
        "Listen beyond loopback although there are no tokens in this version. Anybody who reaches the \
         listeners reads and writes every key.",
    ),
    key(
        "partition_bits",
        Kind::Number(0..=16),
        "10",
        "Number of partitions as a power of two. Only used at bootstrap, fixed from then on.",
    ),
    key(
        "shards",
        Kind::AutoOrPower(32),
        "\"auto\"",
        "Number of shards that a node's partitions are divided over, a power of two up to 32. `auto` is one \
         for each two cores, rounded up: the other half is for the network.",
    ),
    key(
        "deadline",
        Kind::Time(1..=600 * SECOND),
        "\"2s\"",
        "Deadline of requests that name none.",
    ),
    key(
        "deadline_max",
        Kind::Time(1..=600 * SECOND),
        "\"60s\"",
        "Greatest deadline that a request may ask for.",
    ),
    key(
        "transfer_rate",
        Kind::Size(0..=100 * GIB),
        "\"64MiB\"",
        "Greatest rate at which this node receives, and at which it hands out, partitions in a ring change, \
         per second. It goes down, to a thirty-second at least, while requests take more than twice as long as \
         before the change; 0B: no limit, whatever requests take.",
    ),
    key(
        "limits.value_bytes",
        Kind::Size(1..=64 * MIB),
        "\"1MiB\"",
        "Greatest value.",
    ),
    key(
        "limits.connections",
        Kind::Number(1..=1_000_000),
        "4096",
        "Open connections of each listener.",
    ),
    key(
        "limits.requests",
        Kind::Number(1..=1_000_000),
        "1024",
        "Requests in work at a time; more are refused with 429.",
    ),
    key(
        "limits.header_timeout",
        Kind::Time(100..=600 * SECOND),
        "\"10s\"",
        "Time within which a request's head must have arrived.",
    ),
    key(
        "limits.body_timeout",
        Kind::Time(100..=HOUR),
        "\"30s\"",
        "Time within which a request's body must have arrived.",
    ),
    key(
        "limits.header_bytes",
        Kind::Size(8_192..=MIB),
        "\"32KiB\"",
        "Greatest head of a request.",
    ),
    key(
        "limits.shutdown",
        Kind::Time(100..=600 * SECOND),
        "\"8s\"",
        "Time that requests in work have to end when the node stops.",
    ),
    key(
        "clock.drift_max",
        Kind::Time(10..=24 * HOUR),
        "\"60s\"",
        "Beyond this drift from the median of the members' clocks a node takes no fresh writes.",
    ),
    key(
        "clock.drift_warn",
        Kind::Time(1..=24 * HOUR),
        "\"1s\"",
        "Beyond this drift a node warns.",
    ),
    key(
        "hints.bytes_per_target",
        Kind::Size(0..=TIB),
        "\"1GiB\"",
        "Writes kept for one node that is away.",
    ),
    key(
        "hints.age",
        Kind::Time(SECOND..=30 * 24 * HOUR),
        "\"3h\"",
        "Older ones are dropped, and counted.",
    ),
    key(
        "hints.rate",
        Kind::Size(1_024..=100 * GIB),
        "\"16MiB\"",
        "Greatest rate of delivery to one node, per second.",
    ),
    key(
        "antientropy.age_target",
        Kind::Time(SECOND..=30 * 24 * HOUR),
        "\"10m\"",
        "Copies of a partition are compared so often that, at rest, all of them are known to have agreed \
         within this time.",
    ),
    key(
        "antientropy.rate",
        Kind::Size(0..=100 * GIB),
        "\"16MiB\"",
        "Greatest rate at which comparisons and repairs read and send, per second; 0B for no limit.",
    ),
    key(
        "antientropy.scan_rate",
        Kind::Size(0..=100 * GIB),
        "\"1MiB\"",
        "Rate at which everything is read again, so that damage on disk is found, per second; 0B for never. \
         One round takes at least six times `age_target`.",
    ),
    key(
        "floor.interval",
        Kind::Time(0..=30 * 24 * HOUR),
        "\"30m\"",
        "Tombstones and expired values of a partition are dropped about this often, as soon as they are older than \
         `deadline_max` and twice `clock.drift_max` together (and `queue.lifetime`, where there is a queue), and \
         as long as all members are alive; 0s for never. Nodes have to agree on all of these.",
    ),
    key(
        "gossip.interval",
        Kind::Time(10..=60 * SECOND),
        "\"100ms\"",
        "Time between gossip rounds.",
    ),
    key(
        "storage.block_cache",
        Kind::Size(MIB..=TIB),
        "\"128MiB\"",
        "RocksDB's block cache.",
    ),
    key(
        "storage.write_buffer",
        Kind::Size(MIB..=16 * GIB),
        "\"32MiB\"",
        "RocksDB's memtable; each start takes up to a quarter less, by chance, so that replicas do not all flush at once.",
    ),
    key(
        "storage.reserve",
        Kind::Size(0..=TIB),
        "\"64MiB\"",
        "Free space on the disk below which writes are refused.",
    ),
];

/// Keys of earlier versions that mean nothing any more, and why; they are passed by with a warning.
static RETIRED: &[(&str, &str)] = &[(
    "ring_changes_preview",
    "ring changes are always on; remove it from the configuration",
)];

/// Why a key of an earlier version is no longer needed.
pub(super) fn retired(name: &str) -> Option<&'static str> {
    RETIRED
        .iter()
        .find(|(key, _)| *key == name)
        .map(|(_, why)| *why)
}

/// The same for the environment variable that overrode it.
pub(super) fn retired_variable(variable: &str) -> Option<&'static str> {
    retired(&variable.strip_prefix("TORC_")?.to_ascii_lowercase())
}

/// The keys of the node, then those of its side services.
fn all() -> impl Iterator<Item = &'static Key> {
    KEYS.iter().chain(super::side::KEYS)
}

/// The key of that name.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    all().find(|key| key.name == name)
}

/// The key that an environment variable overrides.
pub(super) fn find_variable(variable: &str) -> Option<&'static Key> {
    all().find(|key| key.variable() == variable)
}

/// Whether `name` is a section.
pub(super) fn is_section(name: &str) -> bool {
    all().any(|key| section(key.name) == name && !name.is_empty())
}

fn section(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(section, _)| section)
}

/// The known key that an unknown one was probably meant to be.
pub(super) fn nearest(unknown: &str) -> Option<&'static str> {
    let leaf = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let length = unknown.chars().count();
    // What is much longer than any key is not a slip of one.
    if length > 64 {
        return None;
    }
    let misplaced = all().find(|key| leaf(key.name) == leaf(unknown));
    let similar = all()
        .map(|key| (distance(unknown, key.name), key))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, _)| *distance <= (length / 3).max(2))
        .map(|(_, key)| key);
    misplaced.or(similar).map(|key| key.name)
}

/// Least number of characters to insert, remove or replace (Levenshtein 1966, by Wagner and Fischer's rows).
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(l != *r);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

/// The documented defaults, as a file that is accepted unchanged and changes nothing.
#[must_use]
pub fn default_config() -> String {
    let mut text = String::from(
        "# torc.toml: all keys with their defaults.\n\
         # Overridden by environment variables (TORC_NAME, TORC_LIMITS_VALUE_BYTES, ...), and these by flags.\n\
         # Sizes and times have units: \"64MiB\", \"250ms\".\n",
    );
    let mut last = "";
    for key in all() {
        let section = section(key.name);
        if section != last {
            let _ = write!(text, "\n[{section}]\n");
            last = section;
        }
        let leaf = key.name.rsplit('.').next().unwrap_or_default();
        text.push('\n');
        for line in wrap(&format!("{}{}", key.doc, key.kind.range())) {
            let _ = writeln!(text, "# {line}");
        }
        let _ = match key.default {
            Some(default) => writeln!(text, "{leaf} = {default}"),
            None => writeln!(text, "# {leaf} = {}", key.example),
        };
    }
    text
}

fn wrap(text: &str) -> Vec<String> {
    const COLUMNS: usize = 98;
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        if lines
            .last()
            .is_some_and(|line| !line.is_empty() && line.len() + 1 + word.len() > COLUMNS)
        {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("same", "same"), 0);
    }

    #[test]
    fn slips_are_recognised_and_nonsense_is_not() {
        assert_eq!(nearest("nmae"), Some("name"));
        assert_eq!(nearest("limit.value_bytes"), Some("limits.value_bytes"));
        assert_eq!(nearest("value_bytes"), Some("limits.value_bytes"));
        assert_eq!(nearest("storage.blockcache"), Some("storage.block_cache"));
        assert_eq!(nearest("completely_other"), None);
        assert_eq!(nearest(&"x".repeat(10_000)), None);
    }

    #[test]
    fn names_and_variables_are_unique() {
        let mut names: Vec<_> = all().map(|key| key.name).collect();
        let mut variables: Vec<_> = all().map(Key::variable).collect();
        names.sort_unstable();
        variables.sort_unstable();
        names.dedup();
        variables.dedup();
        assert_eq!(
            (names.len(), variables.len()),
            (all().count(), all().count())
        );
    }
}
