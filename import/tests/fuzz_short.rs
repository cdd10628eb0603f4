//! The short form of the fuzz target of this crate (`make fuzz` runs the long one): the same checks, inputs
//! made from valid ones.
// `pub` is for the fuzz targets, which share these files.
#![allow(missing_docs, unreachable_pub)]

#[path = "../../fuzz/src/edits.rs"]
mod edits;
#[path = "../../fuzz/src/import.rs"]
mod targets;

use torc_import::{Columns, Format, Reader, Record};

#[test]
fn any_export_is_records_or_an_error() {
    let seeds = [
        include_bytes!("../../fuzz/seeds/import_file/cockroach.sql").to_vec(),
        include_bytes!("../../fuzz/seeds/import_file/pg.sql").to_vec(),
        include_bytes!("../../fuzz/seeds/import_file/rows.csv").to_vec(),
        include_bytes!("../../fuzz/seeds/import_file/lines.jsonl").to_vec(),
    ];
    edits::feed(&seeds, targets::import_file);
}
