//! The short form of the fuzz targets of this crate (`make fuzz` runs the long one): the same checks, inputs
//! made from valid ones.
// `pub` is for the fuzz targets, which share these files.
#![allow(missing_docs, unreachable_pub)]

#[path = "../../fuzz/src/edits.rs"]
mod edits;
#[path = "../../fuzz/src/node.rs"]
mod targets;

use torc_node::config::{
    Durability, Settings, SettingsError, Start, format_duration, format_size, parse_config,
};
use torc_node::http::path::{KeyPathError, parse_key_path};

#[test]
fn any_path_is_a_key_or_refused() {
    let longest = format!("/kv/{}/{}", "b".repeat(64), "%61".repeat(1_024));
    let seeds = [
        include_bytes!("../../fuzz/seeds/key_path/segments").to_vec(),
        include_bytes!("../../fuzz/seeds/key_path/escapes").to_vec(),
        b"/kv/default/a".to_vec(),
        longest.into_bytes(),
    ];
    edits::feed(&seeds, targets::key_path);
}

#[test]
fn any_configuration_file_is_valid_settings_or_an_error_on_one_line() {
    let seeds = [
        include_bytes!("../../fuzz/seeds/config_file/top.toml").to_vec(),
        include_bytes!("../../fuzz/seeds/config_file/sections.toml").to_vec(),
        include_bytes!("../../fuzz/seeds/config_file/addresses.toml").to_vec(),
        include_bytes!("../../fuzz/seeds/config_file/pairs.toml").to_vec(),
        include_bytes!("../../fuzz/seeds/config_file/spellings.toml").to_vec(),
    ];
    // The last one is refused on purpose; from refused ones alone, nothing accepted would ever be made.
    for seed in &seeds[..4] {
        let parsed = parse_config(std::str::from_utf8(seed).expect("a text"));
        assert!(parsed.is_ok(), "{parsed:?}");
    }
    edits::feed(&seeds, targets::config_file);
}
