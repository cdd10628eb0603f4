//! An export as a sequence of records.

use std::fmt;
use std::io::{self, BufRead, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::Error;
use super::sql::Statements;

/// Longest line or value that is read: the greatest value that a node can be set to, in base64, and more.
pub(crate) const PIECE_BYTES_MAX: usize = 96 << 20;

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Key.
    pub key: Vec<u8>,
    /// Value.
    pub value: Vec<u8>,
}

/// What the export looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A head line with names of columns, then a line for each record (RFC 4180).
    Csv,
    /// A JSON object a line; `"encoding":"base64"` says that key and value are.
    JsonLines,
    /// A dump with `INSERT INTO … VALUES` (`pg_dump --inserts`, `cockroach dump`), or `COPY … FROM stdin`.
    Sql,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Csv => "csv",
            Self::JsonLines => "jsonl",
            Self::Sql => "sql",
        })
    }
}

/// Where key and value stand in a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    /// Table of a SQL dump; others in it are passed over.
    pub table: String,
    /// Column of the key.
    pub key: String,
    /// Column of the value.
    pub value: String,
}

/// Records of an export, one after the other.
pub struct Reader<R> {
    source: Source<R>,
    read: u64,
}

enum Source<R> {
    Csv {
        records: csv::Reader<Bounded<R>>,
        key: usize,
        value: usize,
    },
    JsonLines {
        input: R,
        columns: Columns,
    },
    Sql(Statements<R>),
}

impl<R: BufRead> Reader<R> {
    /// Reads an export from its beginning.
    ///
    /// # Errors
    /// When its head lacks a column.
    pub fn new(input: R, format: Format, columns: &Columns) -> Result<Self, Error> {
        let source = match format {
            Format::Csv => {
                let mut records = csv::ReaderBuilder::new().from_reader(Bounded::new(input));
                let head = records
                    .byte_headers()
                    .map_err(|error| malformed(0, &error))?
                    .clone();
                let at = |name: &str| {
                    head.iter()
                        .position(|column| column == name.as_bytes())
                        .ok_or_else(|| {
                            malformed(0, &format!("the head line has no column `{name}`"))
                        })
                };
                Source::Csv {
                    key: at(&columns.key)?,
                    value: at(&columns.value)?,
                    records,
                }
            }
            Format::JsonLines => Source::JsonLines {
                input,
                columns: columns.clone(),
            },
            Format::Sql => Source::Sql(Statements::new(input, columns.clone())),
        };
        Ok(Self { source, read: 0 })
    }

    /// The next record; `None` at the end.
    ///
    /// # Errors
    /// When the export is malformed or cannot be read.
    pub fn next_record(&mut self) -> Result<Option<Record>, Error> {
        let number = self.read + 1;
        let found = match &mut self.source {
            Source::Csv {
                records,
                key,
                value,
            } => from_csv(records, (*key, *value)),
            Source::JsonLines { input, columns } => from_json(input, columns),
            Source::Sql(statements) => statements.next_record(),
        };
        let found = found.map_err(|reason| malformed(number, &reason))?;
        if let Some(record) = &found {
            if record.key.is_empty() {
                return Err(malformed(number, &"the key is empty"));
            }
            self.read = number;
        }
        Ok(found)
    }
}

fn malformed(record: u64, reason: &impl ToString) -> Error {
    let reason = reason.to_string();
    Error::Malformed { record, reason }
}

/// An input of which only so much may be read for one record: behind a quote that is never closed the whole
/// export would be one.
struct Bounded<R> {
    input: R,
    left: usize,
}

impl<R> Bounded<R> {
    fn new(input: R) -> Self {
        let left = PIECE_BYTES_MAX;
        Self { input, left }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            let limit = format!("a record is longer than {PIECE_BYTES_MAX} bytes");
            return Err(io::Error::other(limit));
        }
        let room = buffer.len().min(self.left);
        let read = self.input.read(&mut buffer[..room])?;
        self.left -= read;
        Ok(read)
    }
}

fn from_csv<R: BufRead>(
    records: &mut csv::Reader<Bounded<R>>,
    (key, value): (usize, usize),
) -> Result<Option<Record>, String> {
    records.get_mut().left = PIECE_BYTES_MAX;
    let mut row = csv::ByteRecord::new();
    match records.read_byte_record(&mut row) {
        Ok(false) => Ok(None),
        // The reader has checked that every row has as many fields as the head.
        Ok(true) => Ok(Some(Record {
            key: row.get(key).unwrap_or_default().to_vec(),
            value: row.get(value).unwrap_or_default().to_vec(),
        })),
        Err(error) => Err(error.to_string()),
    }
}

/// One line without its end; `None` at the end of the input.
pub(crate) fn line(input: &mut impl BufRead) -> Result<Option<Vec<u8>>, String> {
    let mut line = Vec::new();
    let mut limited = Read::take(input, PIECE_BYTES_MAX as u64);
    let read = limited
        .read_until(b'\n', &mut line)
        .map_err(|error| error.to_string())?;
    if read == 0 {
        return Ok(None);
    }
    if line.pop_if(|last| *last == b'\n').is_none() && read == PIECE_BYTES_MAX {
        return Err(format!("a line is longer than {PIECE_BYTES_MAX} bytes"));
    }
    line.pop_if(|last| *last == b'\r');
    Ok(Some(line))
}

fn from_json(input: &mut impl BufRead, columns: &Columns) -> Result<Option<Record>, String> {
    let text = loop {
        match line(input)? {
            None => return Ok(None),
            Some(text) if text.trim_ascii().is_empty() => {}
            Some(text) => break text,
        }
    };
    let object: Value = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    let is_base64 = object["encoding"] == "base64";
    let bytes = |name: &str| match &object[name] {
        Value::String(text) if is_base64 => STANDARD
            .decode(text)
            .map_err(|error| format!("`{name}` is no base64: {error}")),
        Value::String(text) => Ok(text.clone().into_bytes()),
        Value::Null => Err(format!("no `{name}`")),
        // A document is kept as its JSON.
        other => Ok(other.to_string().into_bytes()),
    };
    Ok(Some(Record {
        key: bytes(&columns.key)?,
        value: bytes(&columns.value)?,
    }))
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;
    use crate::samples::{columns, pairs};

    fn all(text: &[u8], format: Format) -> Result<Vec<(String, String)>, Error> {
        let mut reader = Reader::new(text, format, &columns())?;
        let mut found = Vec::new();
        while let Some(record) = reader.next_record()? {
            found.push(record.texts());
        }
        Ok(found)
    }

    #[test]
    fn csv_knows_its_columns_by_name_and_quotes() {
        let text = b"id,value,key\n1,\"a, \"\"b\"\"\nc\",k1\n2,,k2\n";
        let found = all(text, Format::Csv).expect("records");
        assert_eq!(found, pairs(&[("k1", "a, \"b\"\nc"), ("k2", "")]));
        let error = all(b"id,val\n", Format::Csv).expect_err("no columns");
        assert!(error.to_string().contains("no column `key`"), "{error}");
        assert!(
            all(b"key,value\na\n", Format::Csv).is_err(),
            "a row that is too short"
        );
    }

    #[test]
    fn a_quote_that_is_never_closed_ends_at_a_bound() {
        let head = &b"key,value\nk,v\na,\""[..];
        let input = BufReader::new(head.chain(io::repeat(b'x')));
        let mut reader = Reader::new(input, Format::Csv, &columns()).expect("a head");
        assert!(reader.next_record().expect("the first record").is_some());
        let error = reader.next_record().expect_err("it has no end");
        assert!(error.to_string().contains("is longer than"), "{error}");
    }

    #[test]
    fn json_lines_hold_text_base64_and_documents() {
        let text = b"{\"key\":\"a\",\"value\":\"x\"}\r\n\n{\"key\":\"Yg==\",\"value\":\"AP8=\",\"encoding\":\"base64\"}\n{\"key\":\"c\",\"value\":{\"n\":1}}";
        let mut reader = Reader::new(&text[..], Format::JsonLines, &columns()).expect("reader");
        let mut found = Vec::new();
        while let Some(record) = reader.next_record().expect("a record") {
            found.push((record.key, record.value));
        }
        let expected: [(&[u8], &[u8]); 3] = [(b"a", b"x"), (b"b", &[0, 255]), (b"c", b"{\"n\":1}")];
        let expected = expected.map(|(key, value)| (key.to_vec(), value.to_vec()));
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_malformed_is_named_with_its_number() {
        let text = b"{\"key\":\"a\",\"value\":\"x\"}\n{\"key\":\"b\"}\n";
        let error = all(text, Format::JsonLines).expect_err("no value");
        assert_eq!(error.to_string(), "record 2 of the export: no `value`");
        for bad in ["nonsense", "{\"key\":\"\",\"value\":\"x\"}", "[]"] {
            assert!(all(bad.as_bytes(), Format::JsonLines).is_err(), "{bad}");
        }
    }
}
