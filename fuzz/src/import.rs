//! Exports of other stores, in each of their forms.
//!
//! Whoever includes this file has the reader in scope.

use std::io::{BufRead, BufReader};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{Columns, Format, Reader, Record};

/// Any bytes are records up to an end or an error; how they arrive makes no difference; and the records that
/// were read are the same when they are written down and read again.
pub fn import_file(data: &[u8]) {
    for format in [Format::Csv, Format::JsonLines, Format::Sql] {
        let (records, error) = read(data, format);
        let slowly = read(BufReader::with_capacity(1, data), format);
        assert_eq!((&records, &error), (&slowly.0, &slowly.1), "{format}");
        assert!(records.iter().all(|record| !record.key.is_empty()));
        let written = written(&records, format);
        let again = read(written.as_slice(), format);
        assert_eq!(again, (records, None), "{format}");
    }
}

fn read(input: impl BufRead, format: Format) -> (Vec<Record>, Option<String>) {
    let columns = Columns {
        table: "kv".to_owned(),
        key: "key".to_owned(),
        value: "value".to_owned(),
    };
    let mut records = Vec::new();
    let mut reader = match Reader::new(input, format, &columns) {
        Ok(reader) => reader,
        Err(error) => return (records, Some(error.to_string())),
    };
    loop {
        match reader.next_record() {
            Ok(Some(record)) => records.push(record),
            Ok(None) => return (records, None),
            Err(error) => return (records, Some(error.to_string())),
        }
    }
}

fn written(records: &[Record], format: Format) -> Vec<u8> {
    let mut text = Vec::new();
    if matches!(format, Format::Csv) {
        text.extend(b"key,value\n");
    }
    for record in records {
        let (key, value) = (record.key.as_slice(), record.value.as_slice());
        match format {
            Format::Csv => {
                for (field, end) in [(key, b','), (value, b'\n')] {
                    text.push(b'"');
                    for &byte in field {
                        text.push(byte);
                        if byte == b'"' {
                            text.push(byte);
                        }
                    }
                    text.extend([b'"', end]);
                }
            }
            Format::JsonLines => {
                let (key, value) = (STANDARD.encode(key), STANDARD.encode(value));
                let line = format!(
                    "{{\"encoding\":\"base64\",\"key\":\"{key}\",\"value\":\"{value}\"}}\n"
                );
                text.extend(line.into_bytes());
            }
            // Escapes and bytes: the two forms that can hold everything.
            Format::Sql => {
                let each = |prefix: &str, bytes: &[u8]| -> String {
                    let digits = bytes.iter().map(|byte| format!("{prefix}{byte:02x}"));
                    digits.collect()
                };
                let row = format!(
                    "INSERT INTO kv (key, value) VALUES (e'{}', '\\x{}');\n",
                    each("\\x", key),
                    each("", value)
                );
                text.extend(row.into_bytes());
            }
        }
    }
    text
}
