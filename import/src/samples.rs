//! What the tests of all forms of export have in common.

use super::{Columns, Record};

pub(crate) fn columns() -> Columns {
    Columns {
        table: "kv".to_owned(),
        key: "key".to_owned(),
        value: "value".to_owned(),
    }
}

pub(crate) fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let own = |&(key, value): &(&str, &str)| (key.to_owned(), value.to_owned());
    pairs.iter().map(own).collect()
}

impl Record {
    /// Key and value as text.
    pub(crate) fn texts(&self) -> (String, String) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(&self.key), text(&self.value))
    }
}
