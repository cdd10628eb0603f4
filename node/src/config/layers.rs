//! File, environment and flags, laid over each other, and the validated [`Settings`] made from them.
//!
//! Invariant: what is not in [`super::keys`] is refused, wherever it stands. Reads neither files nor the
//! environment itself; the caller hands both in.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{Origin, SettingsError};
use super::keys::{self, Key, Kind};
use super::units::{format_duration, parse_duration, parse_size};
use super::{AntiEntropy, Durability, Hints, Limits, Settings, Start, Storage};

/// Greatest size of a configuration file in bytes.
pub const FILE_BYTES_MAX: usize = 1 << 20;
/// Greatest number of addresses, or of buckets, in a list.
const JOIN_MAX: usize = 100;
/// Bytes of a refused value that an error shows.
const SHOWN_MAX: usize = 80;

/// Variables that begin with `TORC_` and are no settings of a node: the command line's and the build's own.
const FOREIGN_VARIABLES: &[&str] = &[
    "TORC_ADMIN_URL",
    "TORC_BIN",
    "TORC_CACHE_DIR",
    "TORC_CONFIG",
    "TORC_LOG",
    "TORC_LONG",
    "TORC_NODE_URL",
    "TORC_SEED",
];

/// A value before it is known what it should be.
#[derive(Clone, Debug)]
enum Raw {
    Text(String),
    Integer(i64),
    Flag(bool),
    List(Vec<String>),
    Other(&'static str),
}

/// Values from several sources; the later source wins.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    values: BTreeMap<&'static str, (Raw, Origin)>,
    warnings: Vec<String>,
}

impl Layers {
    /// Nothing but the defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lays the text of a `torc.toml` over what is there.
    ///
    /// # Errors
    /// When it is not TOML, or holds an unknown key.
    pub fn file(&mut self, text: &str) -> Result<(), SettingsError> {
        if text.len() > FILE_BYTES_MAX {
            return Err(SettingsError::TooLarge {
                bytes: text.len(),
                limit: FILE_BYTES_MAX,
            });
        }
        let document = DeTable::parse(text).map_err(|error| SettingsError::Syntax {
            line: line_of(text, error.span()),
            reason: error.message().replace('\n', "; "),
        })?;
        let mut found = Vec::new();
        for (name, value) in document.get_ref() {
            match value.get_ref() {
                DeValue::Table(section) if keys::is_section(name.get_ref()) => {
                    for (leaf, value) in section {
                        found.push((
                            format!("{}.{}", name.get_ref(), leaf.get_ref()),
                            leaf.span(),
                            value,
                        ));
                    }
                }
                _ => found.push((name.get_ref().to_string(), name.span(), value)),
            }
        }
        let mut layer = Vec::new();
        for (name, span, value) in found {
            let origin = Origin::File {
                line: line_of(text, Some(span)),
            };
            if self.passes_by(&name, &origin) {
                continue;
            }
            layer.push((known(&name, &origin)?, raw(value), origin));
        }
        self.lay(layer);
        Ok(())
    }

    /// Lays environment variables over what is there; those that do not begin with `TORC_` are passed by.
    ///
    /// Passed by are also the command line's own (`TORC_NODE_URL`, `TORC_ADMIN_URL`, `TORC_LOG`) and what
    /// Kubernetes puts into each container beside a service called `torc` (`TORC_SERVICE_HOST`,
    /// `TORC_PORT_8081_TCP`).
    ///
    /// # Errors
    /// When one that begins with `TORC_` is none of these and no key either.
    pub fn environment(
        &mut self,
        variables: impl IntoIterator<Item = (String, Option<String>)>,
    ) -> Result<(), SettingsError> {
        let mut layer = Vec::new();
        for (variable, value) in variables {
            if !variable.starts_with("TORC_") || is_foreign(&variable) {
                continue;
            }
            if let Some(why) = keys::retired_variable(&variable) {
                let origin = Origin::Environment { variable };
                self.warnings
                    .push(format!("{origin}: no longer needed: {why}"));
                continue;
            }
            let Some(key) = keys::find_variable(&variable) else {
                let name = variable["TORC_".len()..].to_ascii_lowercase();
                let sectioned = name.replacen('_', ".", 1);
                return Err(SettingsError::UnknownKey {
                    nearest: keys::nearest(&sectioned).or_else(|| keys::nearest(&name)),
                    key: variable.clone(),
                    origin: Origin::Environment { variable },
                });
            };
            let value = value.ok_or_else(|| SettingsError::NotText {
                variable: variable.clone(),
            })?;
            layer.push((key, Raw::Text(value), Origin::Environment { variable }));
        }
        self.lay(layer);
        Ok(())
    }

    /// Lays flags over what is there: key, value, and the flag as the user wrote it.
    ///
    /// # Errors
    /// When a key is unknown.
    pub fn flags<'a>(
        &mut self,
        flags: impl IntoIterator<Item = (&'a str, String, String)>,
    ) -> Result<(), SettingsError> {
        let mut layer = Vec::new();
        for (name, value, flag) in flags {
            let origin = Origin::Flag { flag };
            if self.passes_by(name, &origin) {
                continue;
            }
            layer.push((known(name, &origin)?, Raw::Text(value), origin));
        }
        self.lay(layer);
        Ok(())
    }

    /// What was passed by although an earlier version knew it; for the log.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Whether `name` was a key once and means nothing any more.
    fn passes_by(&mut self, name: &str, origin: &Origin) -> bool {
        let Some(why) = keys::retired(name) else {
            return false;
        };
        self.warnings
            .push(format!("{origin}: `{name}` is no longer needed: {why}"));
        true
    }

    fn lay(&mut self, layer: Vec<(&'static Key, Raw, Origin)>) {
        // How a node starts is one choice with two keys: whoever names one of them has chosen.
        if layer
            .iter()
            .any(|(key, ..)| matches!(key.name, "bootstrap" | "join"))
        {
            self.values.remove("bootstrap");
            self.values.remove("join");
        }
        for (key, value, origin) in layer {
            self.values.insert(key.name, (value, origin));
        }
    }

    /// The validated settings.
    ///
    /// # Errors
    /// Names the first key whose value is not what it should be, or that does not go with another.
    pub fn settings(&self) -> Result<Settings, SettingsError> {
        let http = self.socket("http")?;
        let peer = self.socket("peer")?;
        let settings = Settings {
            name: self.text("name")?,
            data: PathBuf::from(self.text("data")?),
            http,
            admin: self.socket("admin")?,
            peer,
            advertise_peer: self
                .optional("advertise_peer")?
                .unwrap_or_else(|| peer.to_string()),
            advertise_http: self
                .optional("advertise_http")?
                .unwrap_or_else(|| http.to_string()),
            zone: self.text("zone")?,
            weight: self.number("weight")? as u32,
            start: self.start()?,
            pki: self.optional("pki")?.map(PathBuf::from),
            durability: self.durability()?,
            insecure: self.flag("insecure")?,
            replace: self.optional("replace")?,
            partition_bits: self.number("partition_bits")? as u8,
            shards: self.number("shards")? as usize,
            limits: Limits {
                value_bytes: self.number("limits.value_bytes")? as usize,
                connections: self.number("limits.connections")? as usize,
                requests: self.number("limits.requests")? as usize,
                header_timeout: self.time("limits.header_timeout")?,
                body_timeout: self.time("limits.body_timeout")?,
                header_bytes: self.number("limits.header_bytes")? as usize,
                shutdown: self.time("limits.shutdown")?,
            },
            deadline: self.time("deadline")?,
            deadline_max: self.time("deadline_max")?,
            clock_drift_max: self.time("clock.drift_max")?,
            clock_drift_warn: self.time("clock.drift_warn")?,
            hints: Hints {
                bytes_per_target: self.number("hints.bytes_per_target")?,
                age: self.time("hints.age")?,
                rate: self.number("hints.rate")?,
            },
            transfer_rate: self.number("transfer_rate")?,
            antientropy: AntiEntropy {
                age_target: self.time("antientropy.age_target")?,
                rate: self.number("antientropy.rate")?,
                scan_rate: self.number("antientropy.scan_rate")?,
            },
            floor_interval: self.time("floor.interval")?,
            gossip_interval: self.time("gossip.interval")?,
            storage: Storage {
                block_cache: self.number("storage.block_cache")? as usize,
                write_buffer: self.number("storage.write_buffer")? as usize,
                reserve: self.number("storage.reserve")?,
            },
            cache: self.cache()?,
            queue: self.queue()?,
        };
        self.check(&settings)?;
        Ok(settings)
    }

    /// What holds between keys.
    fn check(&self, settings: &Settings) -> Result<(), SettingsError> {
        for (smaller, low, greater, high) in [
            (
                "deadline",
                settings.deadline,
                "deadline_max",
                settings.deadline_max,
            ),
            (
                "clock.drift_warn",
                settings.clock_drift_warn,
                "clock.drift_max",
                settings.clock_drift_max,
            ),
        ] {
            if low > high {
                return Err(SettingsError::OutOfOrder {
                    smaller,
                    smaller_value: format_duration(low),
                    greater,
                    greater_value: format_duration(high),
                });
            }
        }
        if settings.replace.is_some() && !matches!(settings.start, Start::Join(_)) {
            return Err(SettingsError::ReplaceWithoutJoin);
        }
        if settings.http == settings.admin {
            return Err(SettingsError::SameAddress {
                first: "http",
                second: "admin",
                address: settings.http.to_string(),
            });
        }
        for (listener, address, advertise) in [
            ("http", settings.http, "advertise_http"),
            ("peer", settings.peer, "advertise_peer"),
        ] {
            if address.ip().is_unspecified() && !self.values.contains_key(advertise) {
                return Err(SettingsError::NothingToAdvertise {
                    listener,
                    address: address.to_string(),
                    advertise,
                });
            }
        }
        for (listener, address) in [("http", settings.http), ("admin", settings.admin)] {
            if !address.ip().is_loopback() && !settings.insecure {
                return Err(SettingsError::Unprotected {
                    listener,
                    address: address.to_string(),
                });
            }
        }
        if !settings.peer.ip().is_loopback() && settings.pki.is_none() {
            return Err(SettingsError::PeerWithoutPki {
                address: settings.peer.to_string(),
            });
        }
        Ok(())
    }

    fn start(&self) -> Result<Start, SettingsError> {
        let bootstrap = self.flag("bootstrap")?;
        let join = match self.value("join") {
            Some((key, raw, origin)) => addresses(&raw).ok_or_else(|| bad(key, &raw, &origin))?,
            None => Vec::new(),
        };
        match (bootstrap, join.is_empty()) {
            (true, false) => Err(SettingsError::BootstrapAndJoin),
            (true, true) => Ok(Start::Bootstrap),
            (false, false) => Ok(Start::Join(join)),
            (false, true) => Ok(Start::Resume),
        }
    }

    fn durability(&self) -> Result<Durability, SettingsError> {
        let interval = self.time("durability_interval")?;
        Ok(match self.text("durability")?.as_str() {
            "interval" => Durability::Interval(interval),
            "os" => Durability::Os,
            _ => Durability::Fsync,
        })
    }

    fn value(&self, name: &str) -> Option<(&'static Key, Raw, Origin)> {
        let key = keys::find(name);
        // The names are literals in this file, and a test reads every one of them.
        assert!(key.is_some(), "{name} is not in the table of keys");
        let key = key?;
        match (self.values.get(key.name), key.default) {
            (Some((raw, origin)), _) => Some((key, raw.clone(), origin.clone())),
            (None, Some(default)) => {
                let text = default.trim_matches('"').to_owned();
                Some((key, Raw::Text(text), Origin::Default))
            }
            (None, None) => None,
        }
    }

    fn read<T>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&Kind, &Raw) -> Option<T>,
    ) -> Result<Option<T>, SettingsError> {
        let Some((key, raw, origin)) = self.value(name) else {
            return Ok(None);
        };
        match parse(&key.kind, &raw) {
            Some(value) => Ok(Some(value)),
            None => Err(bad(key, &raw, &origin)),
        }
    }

    /// For keys that have a default: a missing value there is refused like a wrong one.
    fn required<T>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&Kind, &Raw) -> Option<T>,
    ) -> Result<T, SettingsError> {
        self.read(name, parse)?
            .ok_or_else(|| SettingsError::BadValue {
                key: name,
                given: "nothing".to_owned(),
                origin: Origin::Default,
                expected: "optional".to_owned(),
            })
    }

    pub(super) fn text(&self, name: &'static str) -> Result<String, SettingsError> {
        self.required(name, text)
    }

    pub(super) fn optional(&self, name: &'static str) -> Result<Option<String>, SettingsError> {
        self.read(name, text)
    }

    pub(super) fn list(&self, name: &'static str) -> Result<Option<Vec<String>>, SettingsError> {
        self.read(name, |kind, raw| match kind {
            Kind::Buckets => buckets(raw),
            _ => addresses(raw),
        })
    }

    fn socket(&self, name: &'static str) -> Result<SocketAddr, SettingsError> {
        self.required(name, |_, raw| match raw {
            Raw::Text(text) => text
                .parse::<SocketAddr>()
                .ok()
                .filter(|address| address.port() != 0),
            _ => None,
        })
    }

    pub(super) fn flag(&self, name: &'static str) -> Result<bool, SettingsError> {
        self.required(name, |_, raw| match raw {
            Raw::Flag(flag) => Some(*flag),
            Raw::Text(text) => text.parse().ok(),
            _ => None,
        })
    }

    pub(super) fn number(&self, name: &'static str) -> Result<u64, SettingsError> {
        self.required(name, number)
    }

    pub(super) fn time(&self, name: &'static str) -> Result<Duration, SettingsError> {
        self.required(name, |kind, raw| match (kind, raw) {
            (Kind::Time(range), Raw::Text(text)) => {
                parse_duration(text).filter(|time| range.contains(&(time.as_millis() as u64)))
            }
            _ => None,
        })
    }
}

fn text(kind: &Kind, raw: &Raw) -> Option<String> {
    let Raw::Text(text) = raw else { return None };
    let fits = match kind {
        Kind::Name => torc_ring::config::is_node_name(text),
        Kind::Path => !text.is_empty() && !text.contains('\0'),
        Kind::HostPort => is_host_port(text),
        Kind::Word(words) => words.contains(&text.as_str()),
        _ => false,
    };
    fits.then(|| text.clone())
}

fn number(kind: &Kind, raw: &Raw) -> Option<u64> {
    let whole = match raw {
        Raw::Integer(integer) => u64::try_from(*integer).ok(),
        Raw::Text(text) if text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok(),
        _ => None,
    };
    match (kind, raw) {
        (Kind::Number(range), _) => whole.filter(|number| range.contains(number)),
        (Kind::Size(range), Raw::Text(text)) => {
            parse_size(text).filter(|size| range.contains(size))
        }
        (Kind::AutoOrPower(max), Raw::Text(text)) if text == "auto" => {
            Some(shards_auto().min(*max))
        }
        (Kind::AutoOrPower(max), _) => whole.filter(|n| n.is_power_of_two() && n <= max),
        _ => None,
    }
}

/// A shard for each two cores that this process may use, rounded up to a power of two.
fn shards_auto() -> u64 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cores.div_ceil(2).next_power_of_two() as u64
}

fn items(raw: &Raw) -> Option<Vec<String>> {
    match raw {
        Raw::List(list) => Some(list.clone()),
        Raw::Text(text) => Some(text.split(',').map(|part| part.trim().to_owned()).collect()),
        _ => None,
    }
}

fn buckets(raw: &Raw) -> Option<Vec<String>> {
    let list = items(raw)?;
    let fit = |name: &String| torc_ring::config::is_bucket_name(name);
    ((1..=JOIN_MAX).contains(&list.len()) && list.iter().all(fit)).then_some(list)
}

fn addresses(raw: &Raw) -> Option<Vec<String>> {
    let list = items(raw)?;
    ((1..=JOIN_MAX).contains(&list.len()) && list.iter().all(|address| is_host_port(address)))
        .then_some(list)
}

/// Whether this is `host:port`: a name, an IPv4 address or an IPv6 address in brackets, and a port above 0.
fn is_host_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let host_fits = match host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            (1..=253).contains(&host.len())
                && host
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        }
    };
    let port_fits =
        port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0);
    host_fits && port_fits
}

fn known(name: &str, origin: &Origin) -> Result<&'static Key, SettingsError> {
    keys::find(name).ok_or_else(|| SettingsError::UnknownKey {
        key: shown(name),
        origin: origin.clone(),
        nearest: keys::nearest(name),
    })
}

fn raw(value: &Spanned<DeValue<'_>>) -> Raw {
    match value.get_ref() {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Integer(integer) => i64::from_str_radix(integer.as_str(), integer.radix())
            .map_or(Raw::Other("a number beyond 64 bits"), Raw::Integer),
        DeValue::Boolean(flag) => Raw::Flag(*flag),
        DeValue::Array(items) => items
            .iter()
            .map(|item| item.get_ref().as_str().map(str::to_owned))
            .collect::<Option<Vec<_>>>()
            .map_or(Raw::Other("a list of other things than strings"), Raw::List),
        DeValue::Table(_) => Raw::Other("a section"),
        DeValue::Float(_) => Raw::Other("a number with a fraction"),
        DeValue::Datetime(_) => Raw::Other("a date"),
    }
}

fn bad(key: &'static Key, raw: &Raw, origin: &Origin) -> SettingsError {
    let given = match raw {
        Raw::Text(text) => format!("\"{}\"", shown(text)),
        Raw::Integer(integer) => integer.to_string(),
        Raw::Flag(flag) => flag.to_string(),
        Raw::List(list) => shown(&format!("{list:?}")),
        Raw::Other(what) => (*what).to_owned(),
    };
    SettingsError::BadValue {
        key: key.name,
        given,
        origin: origin.clone(),
        expected: key.kind.expected(),
    }
}

/// On one line, and not too long for one.
fn shown(text: &str) -> String {
    let mut short: String = text
        .chars()
        .take(SHOWN_MAX)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(SHOWN_MAX).is_some() {
        short.push_str("...");
    }
    short
}

fn line_of(text: &str, span: Option<Range<usize>>) -> usize {
    let until = span.map_or(0, |span| span.start).min(text.len());
    1 + text[..char_boundary(text, until)].matches('\n').count()
}

fn is_foreign(variable: &str) -> bool {
    FOREIGN_VARIABLES.contains(&variable)
        || variable == "TORC_PORT"
        || variable.starts_with("TORC_PORT_")
        || variable.starts_with("TORC_SERVICE_")
        || variable.starts_with("TORC_TEST_")
}

/// The last boundary between characters at or before `at`.
fn char_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len()))
        .rev()
        .find(|&i| text.is_char_boundary(i))
        .unwrap_or(0)
}
