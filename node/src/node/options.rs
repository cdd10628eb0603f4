//! What the settings mean for the store.

use crate::config::{Durability, Settings};

pub(super) fn storage(settings: &Settings) -> torc_storage::Options {
    let mut options = torc_storage::Options::new(settings.data.clone());
    options.durability = match settings.durability {
        Durability::Fsync => torc_storage::Durability::Fsync,
        Durability::Interval(every) => torc_storage::Durability::Interval(every),
        Durability::Os => torc_storage::Durability::Os,
    };
    options.block_cache = settings.storage.block_cache;
    options.write_buffer = settings.storage.write_buffer;
    options.reserve = settings.storage.reserve;
    options
}
