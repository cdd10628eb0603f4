//! SQL dumps: rows of one table, from `INSERT` and `COPY` statements.
//!
//! No SQL is run or understood beyond these. The scanner knows strings (`'…'` with `''`, `E'…'` with
//! backslashes, `$$…$$`), bytes (`'\x…'`, `X'…'`), comments and parentheses; what it does not know in a row
//! of the table that is wanted is an error, never a guess.
//! Source: PostgreSQL 16 documentation, sections 4.1.2 and COPY.

use std::io::BufRead;

use crate::read::{Columns, PIECE_BYTES_MAX, Record, line};

pub(crate) struct Statements<R> {
    input: R,
    columns: Columns,
    state: State,
}

enum State {
    Between,
    /// In the rows of an `INSERT`: where key and value stand.
    Values(usize, usize),
    /// In the lines of a `COPY`.
    Copy(usize, usize),
}

/// A value of a row; `None` is NULL.
type Cell = Option<Vec<u8>>;

impl<R: BufRead> Statements<R> {
    pub(crate) fn new(input: R, columns: Columns) -> Self {
        Self {
            input,
            columns,
            state: State::Between,
        }
    }

    pub(crate) fn next_record(&mut self) -> Result<Option<Record>, String> {
        loop {
            match self.state {
                State::Between => {
                    if !self.statement()? {
                        return Ok(None);
                    }
                }
                State::Copy(key, value) => match line(&mut self.input)? {
                    None => return Err("the dump ends within COPY".to_owned()),
                    Some(end) if end == b"\\." => self.state = State::Between,
                    Some(text) => {
                        let cells: Vec<Cell> = text.split(|&b| b == b'\t').map(uncopy).collect();
                        return record(&cells, key, value).map(Some);
                    }
                },
                State::Values(key, value) => {
                    let cells = self.row()?;
                    match self.after_space()? {
                        Some(b',') => {}
                        Some(b';') => self.state = State::Between,
                        // ON CONFLICT and the like: nothing that would change a row.
                        Some(_) => {
                            self.skip_statement()?;
                            self.state = State::Between;
                        }
                        None => return Err("the dump ends within INSERT".to_owned()),
                    }
                    return record(&cells, key, value).map(Some);
                }
            }
        }
    }

    /// Reads up to the rows of the next statement that has any for us; false at the end of the dump.
    fn statement(&mut self) -> Result<bool, String> {
        let Some(first) = self.after_space()? else {
            return Ok(false);
        };
        let word = self.word_from(first)?.to_ascii_uppercase();
        let what = match word.as_str() {
            "INSERT" => {
                self.expect("INTO")?;
                true
            }
            "COPY" => false,
            _ => {
                if first != b';' {
                    self.skip_from(first, word.is_empty())?;
                }
                return Ok(true);
            }
        };
        let table = self.name()?;
        if !table.eq_ignore_ascii_case(&self.columns.table) {
            let is_copy = !what;
            self.skip_statement()?;
            if is_copy {
                self.skip_copy()?;
            }
            return Ok(true);
        }
        let (key, value) = self.columns_of(&table)?;
        if what {
            self.expect("VALUES")?;
            self.state = State::Values(key, value);
        } else {
            self.skip_statement()?;
            line(&mut self.input)?;
            self.state = State::Copy(key, value);
        }
        Ok(true)
    }

    /// The rest of the line of a COPY that nobody wants, and its lines.
    fn skip_copy(&mut self) -> Result<(), String> {
        while let Some(text) = line(&mut self.input)? {
            if text == b"\\." {
                break;
            }
        }
        Ok(())
    }

    fn columns_of(&mut self, table: &str) -> Result<(usize, usize), String> {
        if self.after_space()? != Some(b'(') {
            return Err(format!(
                "`{table}` is dumped without the names of its columns (pg_dump: --column-inserts)"
            ));
        }
        let mut names = Vec::new();
        loop {
            names.push(self.name()?);
            match self.after_space()? {
                Some(b',') => {}
                Some(b')') => break,
                _ => return Err(format!("malformed list of columns of `{table}`")),
            }
        }
        let at = |wanted: &str| {
            let found = names
                .iter()
                .position(|name| name.eq_ignore_ascii_case(wanted));
            found.ok_or_else(|| format!("`{table}` has no column `{wanted}`"))
        };
        Ok((at(&self.columns.key)?, at(&self.columns.value)?))
    }

    fn row(&mut self) -> Result<Vec<Cell>, String> {
        if self.after_space()? != Some(b'(') {
            return Err("a row of INSERT does not begin with `(`".to_owned());
        }
        let mut cells = Vec::new();
        loop {
            cells.push(self.cell()?);
            match self.after_space()? {
                Some(b',') => {}
                Some(b')') => return Ok(cells),
                _ => return Err("a row holds more than plain values".to_owned()),
            }
        }
    }

    fn cell(&mut self) -> Result<Cell, String> {
        let first = self.after_space()?.ok_or("the dump ends within a row")?;
        let cell = match first {
            b'\'' => self.quoted(false).map(unhex)?,
            b'e' | b'E' if self.peek()? == Some(b'\'') => {
                self.take()?;
                // In an escape string `\\x…` is what bytes look like; it has become `\x…` by now.
                self.quoted(true).map(unhex)?
            }
            b'x' | b'X' if self.peek()? == Some(b'\'') => {
                self.take()?;
                let digits = self.quoted(false)?;
                Some(hex(&digits).ok_or("X'…' holds more than hexadecimal digits")?)
            }
            b'b' | b'B' if self.peek()? == Some(b'\'') => {
                self.take()?;
                Some(self.quoted(true)?)
            }
            _ => {
                let word = self.word_from(first)?;
                match word.to_ascii_uppercase().as_str() {
                    "" => return Err(format!("a row holds `{}`", char::from(first))),
                    "NULL" => None,
                    _ => Some(word.into_bytes()),
                }
            }
        };
        self.cast()?;
        Ok(cell)
    }

    /// `::TYPE` and `:::TYPE` change nothing about the bytes.
    fn cast(&mut self) -> Result<(), String> {
        while self.peek()? == Some(b':') {
            self.take()?;
            if self.peek()?.is_some_and(|byte| byte != b':') {
                let first = self.take()?.unwrap_or_default();
                self.word_from(first)?;
            }
        }
        Ok(())
    }

    /// A string up to its closing quote; its opening one was read.
    fn quoted(&mut self, escapes: bool) -> Result<Vec<u8>, String> {
        let mut text = Vec::new();
        loop {
            match self.take()?.ok_or("the dump ends within a string")? {
                b'\'' if self.peek()? == Some(b'\'') => {
                    self.take()?;
                    text.push(b'\'');
                }
                b'\'' => return Ok(text),
                b'\\' if escapes => {
                    let escaped = self.escape()?;
                    text.extend(escaped);
                }
                byte => text.push(byte),
            }
            if text.len() > PIECE_BYTES_MAX {
                return Err(format!("a string is longer than {PIECE_BYTES_MAX} bytes"));
            }
        }
    }

    fn escape(&mut self) -> Result<Vec<u8>, String> {
        let byte = self.take()?.ok_or("the dump ends within a string")?;
        Ok(match byte {
            b'n' => vec![b'\n'],
            b't' => vec![b'\t'],
            b'r' => vec![b'\r'],
            b'b' => vec![8],
            b'f' => vec![12],
            b'x' => {
                // `\xHH` is a byte; `\\x` has come as `\` and `x`.
                let mut digits = Vec::new();
                while digits.len() < 2 && self.peek()?.is_some_and(|b| b.is_ascii_hexdigit()) {
                    digits.extend(self.take()?);
                }
                hex(&digits).ok_or("`\\x` without two hexadecimal digits")?
            }
            b'0'..=b'7' | b'u' | b'U' => {
                return Err("octal and Unicode escapes are not read; dump without them".to_owned());
            }
            other => vec![other],
        })
    }

    /// A name, of which only the last part counts: `public.kv`, `"kv"`.
    fn name(&mut self) -> Result<String, String> {
        let first = self.after_space()?.ok_or("the dump ends within a name")?;
        let part = if first == b'"' {
            let mut text = Vec::new();
            loop {
                match self.take()?.ok_or("the dump ends within a name")? {
                    b'"' => break,
                    byte => text.push(byte),
                }
            }
            String::from_utf8_lossy(&text).into_owned()
        } else {
            self.word_from(first)?
        };
        if self.peek()? == Some(b'.') {
            self.take()?;
            return self.name();
        }
        Ok(part)
    }

    fn expect(&mut self, word: &str) -> Result<(), String> {
        let first = self
            .after_space()?
            .ok_or("the dump ends within a statement")?;
        let found = self.word_from(first)?;
        if found.eq_ignore_ascii_case(word) {
            Ok(())
        } else {
            Err(format!("`{found}` where {word} was expected"))
        }
    }

    /// A word that begins with this byte; empty when it is none.
    fn word_from(&mut self, first: u8) -> Result<String, String> {
        let part = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'+') || b >= 128;
        let mut word = Vec::new();
        if part(first) || first == b'.' {
            word.push(first);
            // A dot belongs to a number, and parts names.
            while let Some(next) = self.peek()? {
                let number = word
                    .first()
                    .is_some_and(|b| b.is_ascii_digit() || *b == b'-');
                if !(part(next) || (next == b'.' && number)) || word.len() > 1_000 {
                    break;
                }
                word.push(next);
                self.take()?;
            }
        }
        Ok(String::from_utf8_lossy(&word).into_owned())
    }

    fn skip_statement(&mut self) -> Result<(), String> {
        match self.after_space()? {
            None | Some(b';') => Ok(()),
            Some(first) => self.skip_from(first, true),
        }
    }

    /// Passes over a statement up to its `;`, of which this byte was read, and counts if it is a quote.
    fn skip_from(&mut self, first: u8, counts: bool) -> Result<(), String> {
        let mut next = counts.then_some(first);
        loop {
            let byte = match next.take() {
                Some(byte) => Some(byte),
                None => self.after_space()?,
            };
            match byte {
                None | Some(b';') => return Ok(()),
                Some(b'\'') => {
                    self.quoted(false)?;
                }
                Some(b'$') if self.peek()? == Some(b'$') => {
                    self.take()?;
                    while !(self.take()?.ok_or("the dump ends within $$")? == b'$'
                        && self.peek()? == Some(b'$'))
                    {}
                    self.take()?;
                }
                Some(_) => {}
            }
        }
    }

    /// The next byte that is neither space nor in a comment.
    fn after_space(&mut self) -> Result<Option<u8>, String> {
        loop {
            match self.take()? {
                Some(byte) if byte.is_ascii_whitespace() => {}
                Some(b'-') if self.peek()? == Some(b'-') => {
                    line(&mut self.input)?;
                }
                Some(b'/') if self.peek()? == Some(b'*') => {
                    self.take()?;
                    while !(self.take()?.ok_or("the dump ends within a comment")? == b'*'
                        && self.peek()? == Some(b'/'))
                    {}
                    self.take()?;
                }
                other => return Ok(other),
            }
        }
    }

    fn peek(&mut self) -> Result<Option<u8>, String> {
        let filled = self.input.fill_buf().map_err(|error| error.to_string())?;
        Ok(filled.first().copied())
    }

    fn take(&mut self) -> Result<Option<u8>, String> {
        let byte = self.peek()?;
        if byte.is_some() {
            self.input.consume(1);
        }
        Ok(byte)
    }
}

fn record(cells: &[Cell], key: usize, value: usize) -> Result<Record, String> {
    let cell = |at: usize, what: &str| match cells.get(at) {
        None => Err(format!(
            "a row has {} values, fewer than its columns",
            cells.len()
        )),
        Some(None) => Err(format!("the {what} is NULL")),
        Some(Some(bytes)) => Ok(bytes.clone()),
    };
    Ok(Record {
        key: cell(key, "key")?,
        value: cell(value, "value")?,
    })
}

/// `\x…` is how bytes are written; everything else is text.
#[allow(clippy::unnecessary_wraps)] // a cell, as of every other form
fn unhex(text: Vec<u8>) -> Cell {
    let bytes = text.strip_prefix(b"\\x").and_then(hex);
    Some(bytes.unwrap_or(text))
}

fn hex(digits: &[u8]) -> Option<Vec<u8>> {
    let digit = |b: u8| char::from(b).to_digit(16).map(|d| d as u8);
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let pairs = digits.chunks_exact(2);
    pairs
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect()
}

/// A cell of COPY's text format.
fn uncopy(cell: &[u8]) -> Cell {
    if cell == b"\\N" {
        return None;
    }
    let mut text = Vec::with_capacity(cell.len());
    let mut bytes = cell.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            text.push(byte);
            continue;
        }
        text.push(match bytes.next() {
            Some(b'n') => b'\n',
            Some(b't') => b'\t',
            Some(b'r') => b'\r',
            Some(b'b') => 8,
            Some(b'f') => 12,
            Some(b'v') => 11,
            Some(other) => other,
            None => b'\\',
        });
    }
    unhex(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(text: &str) -> Result<Vec<(String, String)>, String> {
        let columns = Columns {
            table: "kv".to_owned(),
            key: "key".to_owned(),
            value: "value".to_owned(),
        };
        let mut statements = Statements::new(text.as_bytes(), columns);
        let mut found = Vec::new();
        while let Some(record) = statements.next_record()? {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            found.push((text(&record.key), text(&record.value)));
        }
        Ok(found)
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let own = |&(key, value): &(&str, &str)| (key.to_owned(), value.to_owned());
        pairs.iter().map(own).collect()
    }

    #[test]
    fn rows_of_insert_are_found_among_everything_else() {
        let dump = r#"
-- a comment; with a semicolon
SET client_encoding = 'UTF8; x';
/* another ; */ CREATE TABLE public.kv (key STRING NOT NULL, value STRING, note TEXT DEFAULT ';');
CREATE FUNCTION f() RETURNS text AS $$ INSERT INTO kv (key, value) VALUES ('no', 'no'); $$;
INSERT INTO other (key, value) VALUES ('x', 'INSERT INTO kv (key, value) VALUES (''n'', ''n'');');
INSERT INTO public."kv" ("value", id, key) VALUES
	('it''s (here); ok', 1, 'a/1'),
	(e'line\n\x41\\', -2.5, 'b':::STRING),
	('\x6869', NULL, X'63');
INSERT INTO kv (key, value) VALUES ('d', '') ON CONFLICT DO NOTHING;
"#;
        let expected = pairs(&[
            ("a/1", "it's (here); ok"),
            ("b", "line\nA\\"),
            ("c", "hi"),
            ("d", ""),
        ]);
        assert_eq!(all(dump), Ok(expected));
    }

    #[test]
    fn rows_of_copy_are_found_too() {
        let dump = "COPY public.other (key, value) FROM stdin;\na\tb\n\\.\n\nCOPY public.kv (id, key, value) FROM stdin;\n1\tk\\t1\tline\\nnext\n2\tk2\t\\\\x6869\n\\.\n\nSELECT 1;\n";
        let expected = pairs(&[("k\t1", "line\nnext"), ("k2", "hi")]);
        assert_eq!(all(dump), Ok(expected));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (dump, reason) in [
            ("INSERT INTO kv VALUES ('a','b');", "without the names"),
            ("INSERT INTO kv (key) VALUES ('a');", "no column `value`"),
            (
                "INSERT INTO kv (key, value) VALUES ('a', now());",
                "more than plain values",
            ),
            (
                "INSERT INTO kv (key, value) VALUES ('a', NULL);",
                "the value is NULL",
            ),
            (
                "INSERT INTO kv (key, value) VALUES ('a', 'b",
                "ends within a string",
            ),
            (
                "INSERT INTO kv (key, value) VALUES ('a');",
                "fewer than its columns",
            ),
            (
                "COPY kv (key, value) FROM stdin;\na\tb\n",
                "ends within COPY",
            ),
        ] {
            let error = all(dump).expect_err(dump);
            assert!(error.contains(reason), "{dump}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_survives_a_dump(rows in proptest::collection::vec(("[^\\\\]{1,20}", "[^\\\\]{0,40}"), 1..8)) {
            let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
            let values: Vec<String> = rows
                .iter()
                .map(|(key, value)| format!("({}, {})", quoted(key), quoted(value)))
                .collect();
            let dump = format!("INSERT INTO kv (key, value) VALUES {};", values.join(", "));
            prop_assert_eq!(all(&dump), Ok(rows));
        }

        #[test]
        fn no_dump_makes_it_panic(text in "[INSERTinto kv(key,value)VALUESCOPY'\\\\x$:;\n-]{0,120}") {
            // An error or some records: both are answers.
            let _ = all(&text);
        }
    }
}
