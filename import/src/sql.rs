//! SQL dumps: rows of one table, from `INSERT` and `COPY` statements.
//!
//! No SQL is run or understood beyond these. The scanner knows strings (`'…'` with `''`, `E'…'` with
//! backslashes, `$tag$…$tag$`), bytes (`'\x…'`, `X'…'`, `b'…'`), quoted names, comments and parentheses; what
//! it does not know in a row of the table that is wanted is an error, never a guess.
//! Source: PostgreSQL 16 documentation, sections 4.1 and COPY; CockroachDB 20.2 for how its dumps quote: text
//! as `'…'` or, with anything but printable ASCII in it, as `e'…'`; bytes as `'\x…'` or, in older ones, `b'…'`.

use std::collections::VecDeque;
use std::io::BufRead;

use super::read::{Columns, PIECE_BYTES_MAX, Record, line};

/// Longest name or tag that is read.
const NAME_BYTES_MAX: usize = 1_000;

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

/// A value of a row.
enum Cell {
    Null,
    Bytes(Vec<u8>),
    /// More than a plain value; an error only where it is the key's or the value's.
    Other,
}

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
            "INSERT" | "UPSERT" => {
                self.expect("INTO")?;
                true
            }
            "COPY" => false,
            "" => {
                match first {
                    b';' => {}
                    // A command of psql's (`\connect`, `\restrict`) is a line.
                    b'\\' => drop(line(&mut self.input)?),
                    _ => {
                        self.element_from(first)?;
                        self.skip_statement()?;
                    }
                }
                return Ok(true);
            }
            _ => {
                self.skip_statement()?;
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
            b'\'' => Cell::Bytes(unhex(self.quoted(false)?)),
            b'e' | b'E' if self.peek()? == Some(b'\'') => {
                self.take()?;
                // `e'\\x41'` is text with a backslash: bytes are written without the `e`.
                Cell::Bytes(self.quoted(true)?)
            }
            b'x' | b'X' if self.peek()? == Some(b'\'') => {
                self.take()?;
                let digits = self.quoted(false)?;
                Cell::Bytes(hex(&digits).ok_or("X'…' holds more than hexadecimal digits")?)
            }
            b'b' | b'B' if self.peek()? == Some(b'\'') => {
                self.take()?;
                Cell::Bytes(self.quoted(true)?)
            }
            _ => {
                let word = self.word_from(first)?;
                match (word.to_ascii_uppercase().as_str(), self.peek()?) {
                    ("", _) => return Err(format!("a row holds `{}`", char::from(first))),
                    ("NULL", _) => Cell::Null,
                    ("ARRAY", Some(b'[')) => {
                        self.skip_array()?;
                        Cell::Other
                    }
                    _ => Cell::Bytes(word.into_bytes()),
                }
            }
        };
        self.cast()?;
        Ok(cell)
    }

    /// `[…]`, of which nothing was read.
    fn skip_array(&mut self) -> Result<(), String> {
        let mut depth = 0_u32;
        loop {
            match self.element()?.ok_or("the dump ends within an array")? {
                b'[' => depth += 1,
                b']' if depth == 1 => return Ok(()),
                b']' => depth -= 1,
                _ => {}
            }
        }
    }

    /// `::TYPE` and `:::TYPE` change nothing about the bytes.
    fn cast(&mut self) -> Result<(), String> {
        while self.peek()? == Some(b':') {
            self.take()?;
            if self.peek()?.is_some_and(|byte| byte != b':') {
                let first = self.take()?.unwrap_or_default();
                self.word_from(first)?;
                // `STRING[]`, `DECIMAL(10,2)`.
                while let Some(b'[' | b'(') = self.peek()? {
                    while !matches!(self.take()?, None | Some(b']' | b')')) {}
                }
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
            b'v' => vec![11],
            b'a' => vec![7],
            b'x' => {
                let code = self.digits(None, 16, 2)?;
                vec![code.ok_or("`\\x` without hexadecimal digits")? as u8]
            }
            b'0'..=b'7' => {
                let code = self.digits(Some(byte), 8, 3)?.unwrap_or_default();
                let byte = u8::try_from(code).map_err(|_| format!("`\\{code:o}` is no byte"))?;
                vec![byte]
            }
            b'u' => self.unicode(4)?,
            b'U' => self.unicode(8)?,
            other => vec![other],
        })
    }

    /// `\uXXXX` or `\UXXXXXXXX`, of which the letter was read; two halves of a pair make one character.
    fn unicode(&mut self, len: usize) -> Result<Vec<u8>, String> {
        let mut code = self.code_point(len)?;
        if (0xD800..0xDC00).contains(&code) {
            if self.take()? != Some(b'\\') || self.take()? != Some(b'u') {
                return Err(format!("`\\u{code:04x}` is half a character"));
            }
            let low = self.code_point(4)?;
            if !(0xDC00..0xE000).contains(&low) {
                return Err(format!("`\\u{code:04x}\\u{low:04x}` is no character"));
            }
            code = 0x1_0000 + ((code - 0xD800) << 10) + (low - 0xDC00);
        }
        let character = char::from_u32(code).ok_or(format!("U+{code:04X} is no character"))?;
        Ok(character.to_string().into_bytes())
    }

    fn code_point(&mut self, len: usize) -> Result<u32, String> {
        let mut code = 0;
        for _ in 0..len {
            let digit = self.take()?.and_then(|b| char::from(b).to_digit(16));
            code = code << 4 | digit.ok_or(format!("`\\u` without {len} hexadecimal digits"))?;
        }
        Ok(code)
    }

    /// A number of at most `len` digits, the first of which may have been read; `None` without any.
    fn digits(&mut self, first: Option<u8>, radix: u32, len: usize) -> Result<Option<u32>, String> {
        let digit = |byte: u8| char::from(byte).to_digit(radix);
        let mut number = first.and_then(digit);
        let mut read = usize::from(number.is_some());
        while read < len
            && let Some(next) = self.peek()?.and_then(digit)
        {
            self.take()?;
            number = Some(number.unwrap_or_default() * radix + next);
            read += 1;
        }
        Ok(number)
    }

    /// A name, of which only the last part counts: `public.kv`, `"kv"`.
    fn name(&mut self) -> Result<String, String> {
        loop {
            let first = self.after_space()?.ok_or("the dump ends within a name")?;
            let part = if first == b'"' {
                String::from_utf8_lossy(&self.quoted_name()?).into_owned()
            } else {
                self.word_from(first)?
            };
            if self.peek()? != Some(b'.') {
                return Ok(part);
            }
            self.take()?;
        }
    }

    /// A name up to its closing quote; its opening one was read.
    fn quoted_name(&mut self) -> Result<Vec<u8>, String> {
        let mut name = Vec::new();
        loop {
            match self.take()?.ok_or("the dump ends within a name")? {
                b'"' if self.peek()? == Some(b'"') => {
                    self.take()?;
                    name.push(b'"');
                }
                b'"' => return Ok(name),
                byte => name.push(byte),
            }
            if name.len() > NAME_BYTES_MAX {
                return Err(format!("a name is longer than {NAME_BYTES_MAX} bytes"));
            }
        }
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
        let part = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b >= 128;
        let mut word = Vec::new();
        if part(first) || matches!(first, b'.' | b'-' | b'+') {
            word.push(first);
            let number = !first.is_ascii_alphabetic() && first < 128;
            while let Some(next) = self.peek()? {
                let after_exponent = matches!(word.last(), Some(b'e' | b'E'));
                // A dot belongs to a number, and parts names; a sign is its exponent's.
                let belongs = part(next)
                    || number && next == b'.'
                    || number && after_exponent && matches!(next, b'-' | b'+');
                if !belongs {
                    break;
                }
                if word.len() >= NAME_BYTES_MAX {
                    return Err(format!("a word is longer than {NAME_BYTES_MAX} bytes"));
                }
                word.push(next);
                self.take()?;
            }
        }
        Ok(String::from_utf8_lossy(&word).into_owned())
    }

    fn skip_statement(&mut self) -> Result<(), String> {
        // An element that is a semicolon is one outside of everything that is quoted.
        while self.element()?.is_some_and(|byte| byte != b';') {}
        Ok(())
    }

    /// Passes over a word, a string, a quoted name or one other byte, and answers what it began with; `None`
    /// at the end of the dump.
    fn element(&mut self) -> Result<Option<u8>, String> {
        let first = self.after_space()?;
        if let Some(first) = first {
            self.element_from(first)?;
        }
        Ok(first)
    }

    fn element_from(&mut self, first: u8) -> Result<(), String> {
        match first {
            b'\'' => drop(self.quoted(false)?),
            b'"' => drop(self.quoted_name()?),
            b'e' | b'E' | b'b' | b'B' if self.peek()? == Some(b'\'') => {
                self.take()?;
                self.quoted(true)?;
            }
            b'$' => self.skip_dollars()?,
            _ => drop(self.word_from(first)?),
        }
        Ok(())
    }

    /// `$tag$…$tag$`, of which the first `$` was read; or that alone, as in `$1`.
    fn skip_dollars(&mut self) -> Result<(), String> {
        let mut tag = vec![b'$'];
        while let Some(byte) = self.peek()? {
            let belongs = byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 128;
            if !belongs && byte != b'$' || tag.len() > NAME_BYTES_MAX {
                return Ok(());
            }
            tag.extend(self.take()?);
            if byte == b'$' {
                break;
            }
        }
        let mut last = VecDeque::with_capacity(tag.len());
        while !last.iter().eq(tag.iter()) {
            if last.len() == tag.len() {
                last.pop_front();
            }
            let byte = self.take()?.ok_or("the dump ends within $$")?;
            last.push_back(byte);
        }
        Ok(())
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
        Some(Cell::Null) => Err(format!("the {what} is NULL")),
        Some(Cell::Other) => Err(format!("the {what} is no plain value")),
        Some(Cell::Bytes(bytes)) => Ok(bytes.clone()),
    };
    Ok(Record {
        key: cell(key, "key")?,
        value: cell(value, "value")?,
    })
}

/// `\x…` is how bytes are written; everything else is text.
fn unhex(text: Vec<u8>) -> Vec<u8> {
    let bytes = text.strip_prefix(b"\\x").and_then(hex);
    bytes.unwrap_or(text)
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
        return Cell::Null;
    }
    let mut text = Vec::with_capacity(cell.len());
    let mut rest = cell;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            text.push(byte);
            continue;
        }
        let Some((&escaped, after)) = rest.split_first() else {
            text.push(b'\\');
            break;
        };
        rest = after;
        text.push(match escaped {
            b'n' => b'\n',
            b't' => b'\t',
            b'r' => b'\r',
            b'b' => 8,
            b'f' => 12,
            b'v' => 11,
            b'x' => {
                let (code, len) = leading(rest, 16, 2);
                rest = &rest[len..];
                if len == 0 { b'x' } else { code }
            }
            b'0'..=b'7' => {
                let digits = &cell[cell.len() - rest.len() - 1..];
                let (code, len) = leading(digits, 8, 3);
                rest = &digits[len..];
                code
            }
            other => other,
        });
    }
    Cell::Bytes(unhex(text))
}

/// The byte that these digits begin with, and how many digits it has; what does not fit is cut off, as
/// PostgreSQL does.
fn leading(digits: &[u8], radix: u32, len: usize) -> (u8, usize) {
    let of = |byte: &u8| char::from(*byte).to_digit(radix);
    let found: Vec<u32> = digits.iter().take(len).map_while(of).collect();
    let code = found.iter().fold(0, |code, digit| code * radix + digit);
    (code as u8, found.len())
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
    fn a_dump_of_cockroachdb_is_read_as_it_was_meant() {
        let dump = r#"CREATE TABLE kv (
	key STRING NOT NULL,
	value STRING NULL,
	tags STRING[] NULL,
	CONSTRAINT "primary" PRIMARY KEY (key ASC),
	FAMILY "primary" (key, value, tags)
);

INSERT INTO sessions (id, data) VALUES
	('a', e'it\'s; INSERT INTO kv (key, value) VALUES (\'no\', \'no\');'),
	('b', b'\x27;');

INSERT INTO kv (key, value, tags) VALUES
	('plain', 'text', NULL),
	(e'm\u00FCsli', e'\U0001F41Ftab\there', ARRAY['a':::STRING, e']\'']),
	(e'quote\'s', e'back\\slash\x01', ARRAY[]:::STRING[]),
	('text', e'\\x41', NULL),
	('bytes', '\x4100', NULL),
	('older bytes', b'A\x00\'', NULL);
UPSERT INTO kv (key, value) VALUES ('late', '{"a": 1}');
"#;
        let expected = pairs(&[
            ("plain", "text"),
            ("m\u{fc}sli", "\u{1f41f}tab\there"),
            ("quote's", "back\\slash\u{1}"),
            ("text", "\\x41"),
            ("bytes", "A\0"),
            ("older bytes", "A\0'"),
            ("late", "{\"a\": 1}"),
        ]);
        assert_eq!(all(dump), Ok(expected));
    }

    #[test]
    fn what_is_passed_over_hides_nothing_behind_it() {
        let row = "INSERT INTO kv (key, value) VALUES ('k', 'v');\n";
        for before in [
            "INSERT INTO o (a) VALUES (E'\\\\', E'\\'; INSERT');\n",
            "CREATE FUNCTION f() AS $fn$ it's; $$ nested; $$ $fn$ LANGUAGE sql;\n",
            "COMMENT ON TABLE \"it's; \"\" odd\" IS 'x';\n",
            "\\restrict t0ken'\n",
            "SET x = 1-- it's\n;",
            "SELECT $1, 1e-5, -2;",
            "COPY \"o;\" (a) FROM stdin;\nit's; (\n\\.\n",
        ] {
            let found = all(&format!("{before}{row}"));
            assert_eq!(found, Ok(pairs(&[("k", "v")])), "{before}");
        }
    }

    #[test]
    fn escapes_of_copy_are_those_of_postgresql() {
        let dump = "COPY kv (key, value) FROM stdin;\nk\\061\\x41\t\\101z\\q\\xg\n\\.\n";
        assert_eq!(all(dump), Ok(pairs(&[("k1A", "Azqxg")])));
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
                "INSERT INTO kv (key, value) VALUES ('a', ARRAY['b']);",
                "the value is no plain value",
            ),
            (
                "INSERT INTO kv (key, value) VALUES ('a', e'\\ud800x');",
                "half a character",
            ),
            (
                "INSERT INTO kv (key, value) VALUES ('a', e'\\777');",
                "is no byte",
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
