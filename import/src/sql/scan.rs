//! Words, names, strings and what lies between them: the characters of a dump.

use std::collections::VecDeque;
use std::io::BufRead;

use super::super::read::{PIECE_BYTES_MAX, line};
use super::Statements;

/// Longest name or tag that is read.
const NAME_BYTES_MAX: usize = 1_000;

impl<R: BufRead> Statements<R> {
    /// A string up to its closing quote; its opening one was read.
    pub(super) fn quoted(&mut self, escapes: bool) -> Result<Vec<u8>, String> {
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

    pub(super) fn escape(&mut self) -> Result<Vec<u8>, String> {
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
    pub(super) fn unicode(&mut self, len: usize) -> Result<Vec<u8>, String> {
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

    pub(super) fn code_point(&mut self, len: usize) -> Result<u32, String> {
        let mut code = 0;
        for _ in 0..len {
            let digit = self.take()?.and_then(|b| char::from(b).to_digit(16));
            code = code << 4 | digit.ok_or(format!("`\\u` without {len} hexadecimal digits"))?;
        }
        Ok(code)
    }

    /// A number of at most `len` digits, the first of which may have been read; `None` without any.
    pub(super) fn digits(
        &mut self,
        first: Option<u8>,
        radix: u32,
        len: usize,
    ) -> Result<Option<u32>, String> {
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
    pub(super) fn name(&mut self) -> Result<String, String> {
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
    pub(super) fn quoted_name(&mut self) -> Result<Vec<u8>, String> {
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

    pub(super) fn expect(&mut self, word: &str) -> Result<(), String> {
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
    pub(super) fn word_from(&mut self, first: u8) -> Result<String, String> {
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

    pub(super) fn skip_statement(&mut self) -> Result<(), String> {
        // An element that is a semicolon is one outside of everything that is quoted.
        while self.element()?.is_some_and(|byte| byte != b';') {}
        Ok(())
    }

    /// Passes over a word, a string, a quoted name or one other byte, and answers what it began with; `None`
    /// at the end of the dump.
    pub(super) fn element(&mut self) -> Result<Option<u8>, String> {
        let first = self.after_space()?;
        if let Some(first) = first {
            self.element_from(first)?;
        }
        Ok(first)
    }

    pub(super) fn element_from(&mut self, first: u8) -> Result<(), String> {
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
    pub(super) fn skip_dollars(&mut self) -> Result<(), String> {
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
    pub(super) fn after_space(&mut self) -> Result<Option<u8>, String> {
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

    pub(super) fn peek(&mut self) -> Result<Option<u8>, String> {
        let filled = self.input.fill_buf().map_err(|error| error.to_string())?;
        Ok(filled.first().copied())
    }

    pub(super) fn take(&mut self) -> Result<Option<u8>, String> {
        let byte = self.peek()?;
        if byte.is_some() {
            self.input.consume(1);
        }
        Ok(byte)
    }
}
