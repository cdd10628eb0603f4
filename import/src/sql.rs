//! SQL dumps: rows of one table, from `INSERT` and `COPY` statements.
//!
//! No SQL is run or understood beyond these. The scanner knows strings (`'…'` with `''`, `E'…'` with
//! backslashes, `$tag$…$tag$`), bytes (`'\x…'`, `X'…'`, `b'…'`), quoted names, comments and parentheses; what
//! it does not know in a row of the table that is wanted is an error, never a guess.
//! Source: PostgreSQL 16 documentation, sections 4.1 and COPY; CockroachDB 20.2 for how its dumps quote: text
//! as `'…'` or, with anything but printable ASCII in it, as `e'…'`; bytes as `'\x…'` or, in older ones, `b'…'`.

mod scan;

use std::io::BufRead;

use super::read::{Columns, Record, line};

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
mod tests;
