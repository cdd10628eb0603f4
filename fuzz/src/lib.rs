//! What the fuzz targets do with their bytes. The same functions run with generated inputs in
//! `fuzz_short.rs` of the crates that they look into, which need no other compiler flags.
//!
//! The parsers of torc-node and torc-import are compiled in from their files: the whole crates would bring
//! RocksDB, QUIC and HTTP into each target.

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

#[allow(dead_code)]
#[path = "../../import/src"]
mod export {
    pub mod read;
    mod sql;

    /// The one error of torc-import that reading can end in.
    #[derive(Debug, thiserror::Error)]
    pub enum Error {
        #[error("record {record} of the export: {reason}")]
        Malformed { record: u64, reason: String },
    }
}

use self::export::read::{Columns, Format, Reader, Record};
use self::http::path::{KeyPathError, parse_key_path};
use self::settings::config::{
    Durability, Settings, SettingsError, Start, format_duration, format_size, parse_config,
};

pub mod import;
pub mod node;
pub mod protocol;
