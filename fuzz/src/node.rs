//! Everything of the shell that parses bytes from outside and is not another's parser: key paths and the
//! configuration file.
//!
//! Whoever includes this file has the parsers themselves in scope.

use std::fmt::Write as _;

use super::{
    Durability, KeyPathError, Settings, SettingsError, Start, format_duration, format_size,
    parse_config, parse_key_path,
};

/// Greatest length of a message that a wrong configuration ends in, in bytes.
const MESSAGE_BYTES_MAX: usize = 2_048;

/// Paths of keys: any path is taken apart or refused; what was taken apart keeps the limits, and is the same
/// key in every spelling.
pub fn key_path(data: &[u8]) {
    check_path(data);
    // Guessing the fixed part would teach nothing.
    check_path(&[b"/kv/default/", data].concat());
}

fn check_path(path: &[u8]) {
    let parsed = match parse_key_path(path) {
        Ok(parsed) => parsed,
        Err(KeyPathError::KeyTooLong { len }) => {
            assert!(len > 1_024 && len <= path.len());
            return;
        }
        Err(_) => return,
    };
    let (bucket, key) = (parsed.bucket, parsed.key);
    assert!((1..=1_024).contains(&key.len()), "{} bytes", key.len());
    assert!((1..=64).contains(&bucket.len()));
    assert!(
        bucket
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-')),
        "{bucket}"
    );
    if !path.contains(&b'%') {
        let plain = [b"/kv/", bucket.as_bytes(), b"/", &*key].concat();
        assert_eq!(plain, path);
    }
    let mut escaped = format!("/kv/{bucket}/");
    for byte in &*key {
        let _ = write!(escaped, "%{byte:02x}");
    }
    let again = parse_key_path(escaped.as_bytes()).expect("an escaped key is a key");
    assert_eq!((again.bucket, again.key), (bucket, key));
}

/// Configuration files: any text is a whole, valid set of settings or an error that fits on a line; settings
/// that are written down are the same when they are read again.
pub fn config_file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match parse_config(text) {
        Ok(settings) => {
            check_settings(&settings);
            let written = written(&settings);
            assert_eq!(parse_config(&written), Ok(settings), "{written}");
        }
        Err(error) => check_error(&error, text),
    }
}

fn check_settings(settings: &Settings) {
    assert!(settings.deadline <= settings.deadline_max);
    assert!(settings.clock_drift_warn <= settings.clock_drift_max);
    assert!(settings.shards.is_power_of_two() && settings.shards <= 64);
    assert!(settings.partition_bits <= 16);
    assert!((1..=64 << 20).contains(&settings.limits.value_bytes));
    assert!((1..=64).contains(&settings.name.len()) && (1..=64).contains(&settings.zone.len()));
    assert_ne!(settings.http, settings.admin);
    assert!(settings.peer.ip().is_loopback() || settings.pki.is_some());
    for address in [settings.http, settings.admin] {
        assert!(address.port() != 0 && (address.ip().is_loopback() || settings.insecure));
    }
}

fn check_error(error: &SettingsError, text: &str) {
    let message = error.to_string();
    assert!(
        message.len() <= MESSAGE_BYTES_MAX && !message.chars().any(char::is_control),
        "{message:?}"
    );
    if let SettingsError::Syntax { line, .. } = error {
        assert!(
            (1..=1 + text.matches('\n').count()).contains(line),
            "{message}"
        );
    }
}

/// The settings as a file.
fn written(settings: &Settings) -> String {
    let mut text = String::new();
    let mut line = |key: &str, value: String| {
        let _ = writeln!(text, "{key} = {value}");
    };
    let size = |bytes: u64| quoted(&format_size(bytes));
    let time = |time| quoted(&format_duration(time));
    line("name", quoted(&settings.name));
    line("data", quoted(&settings.data.to_string_lossy()));
    line("http", quoted(&settings.http.to_string()));
    line("admin", quoted(&settings.admin.to_string()));
    line("peer", quoted(&settings.peer.to_string()));
    line("advertise_peer", quoted(&settings.advertise_peer));
    line("advertise_http", quoted(&settings.advertise_http));
    line("zone", quoted(&settings.zone));
    line("weight", settings.weight.to_string());
    match &settings.start {
        Start::Resume => {}
        Start::Bootstrap => line("bootstrap", "true".to_owned()),
        Start::Join(addresses) => line("join", quoted(&addresses.join(", "))),
    }
    if let Some(pki) = &settings.pki {
        line("pki", quoted(&pki.to_string_lossy()));
    }
    match settings.durability {
        Durability::Fsync => line("durability", quoted("fsync")),
        Durability::Os => line("durability", quoted("os")),
        Durability::Interval(interval) => {
            line("durability", quoted("interval"));
            line("durability_interval", time(interval));
        }
    }
    line("insecure", settings.insecure.to_string());
    line("partition_bits", settings.partition_bits.to_string());
    line("shards", settings.shards.to_string());
    line("deadline", time(settings.deadline));
    line("deadline_max", time(settings.deadline_max));
    let limits = &settings.limits;
    line("limits.value_bytes", size(limits.value_bytes as u64));
    line("limits.connections", limits.connections.to_string());
    line("limits.requests", limits.requests.to_string());
    line("limits.header_timeout", time(limits.header_timeout));
    line("limits.body_timeout", time(limits.body_timeout));
    line("limits.header_bytes", size(limits.header_bytes as u64));
    line("limits.shutdown", time(limits.shutdown));
    line("clock.drift_max", time(settings.clock_drift_max));
    line("clock.drift_warn", time(settings.clock_drift_warn));
    line(
        "hints.bytes_per_target",
        size(settings.hints.bytes_per_target),
    );
    line("hints.age", time(settings.hints.age));
    line("hints.rate", size(settings.hints.rate));
    line("gossip.interval", time(settings.gossip_interval));
    line(
        "storage.block_cache",
        size(settings.storage.block_cache as u64),
    );
    line(
        "storage.write_buffer",
        size(settings.storage.write_buffer as u64),
    );
    line("storage.reserve", size(settings.storage.reserve));
    text
}

/// A basic string of TOML.
fn quoted(value: &str) -> String {
    let mut text = String::from('"');
    for c in value.chars() {
        let _ = match c {
            '"' | '\\' => write!(text, "\\{c}"),
            c if c.is_control() => write!(text, "\\u{:04X}", u32::from(c)),
            c => text.write_char(c),
        };
    }
    text.push('"');
    text
}
