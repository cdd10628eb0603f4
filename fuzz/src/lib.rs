//! What the fuzz targets do with their bytes. The same functions run with generated inputs in
//! `protocol/tests/fuzz_short.rs` and `node/tests/fuzz_short.rs`, which need no other compiler flags.
//!
//! The two parsers of torc-node are compiled in from their files: the whole crate would bring RocksDB, QUIC
//! and HTTP into each target.

// Of what these files hold, the targets use a part.
#[allow(dead_code, unused_imports, unreachable_pub)]
#[path = "../../node/src"]
mod settings {
    pub mod config;
}
#[allow(dead_code)]
#[path = "../../node/src/http"]
mod http {
    pub mod path;
}

use self::http::path::{KeyPathError, parse_key_path};
use self::settings::config::{
    Durability, Settings, SettingsError, Start, format_duration, format_size, parse_config,
};

pub mod node;
pub mod protocol;
