//! A JSON scanner that keeps what a parser into values loses.
//!
//! The file view of a structured object must not change what the vault stores, so numbers stay
//! verbatim (`1.0`, `1E5`, `-0`, `1e400`), keys keep their order, and a lone surrogate escape,
//! which no Rust string can hold, stays an escape. Duplicate keys and nesting over [`MAX_DEPTH`]
//! are refused, never resolved silently.
//!
//! Two passes over the input: the first checks the grammar and measures the result, the second
//! writes into a buffer of exactly that size. So a secret is never left behind by a growing buffer,
//! and a text that would unfold to a hundred times its size (deep nesting costs indentation on
//! every line) is refused before any memory is taken. Recursion is bounded by [`MAX_DEPTH`]; time
//! is linear but for the sorting of keys.

use std::ops::Range;

use crate::secret::{SecretBytes, SecretString};

/// Objects and arrays inside each other, the outermost counted.
pub(super) const MAX_DEPTH: usize = 128;

/// Why a text is no storable JSON object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SyntaxError {
    /// Not JSON, or not UTF-8.
    Syntax,
    /// JSON, but no object. (What follows the first character of the value has not been looked at.)
    NotAnObject,
    /// A key occurs twice in one object, escapes resolved.
    DuplicateKey,
    /// More than [`MAX_DEPTH`] levels.
    TooDeep,
    /// The canonical text is longer than allowed.
    TooLong,
}

/// [`canonical_within`] with room for any sensible layout: sixteen times the text and 64 MiB.
pub(super) fn canonical(text: &[u8]) -> Result<SecretBytes, SyntaxError> {
    canonical_within(text, text.len().saturating_mul(16).saturating_add(64 << 20))
}

/// The canonical text of a JSON object: two-space indent, `{}` and `[]` inline, shortest escapes, a
/// final newline. Idempotent.
pub(super) fn canonical_within(text: &[u8], max: usize) -> Result<SecretBytes, SyntaxError> {
    let text = std::str::from_utf8(text).map_err(|_| SyntaxError::Syntax)?.as_bytes();
    let mut measure = Scanner { text, at: 0, depth: 0, sink: Measure(0) };
    measure.document()?;
    let len = measure.sink.0;
    if len > max {
        return Err(SyntaxError::TooLong);
    }
    let sink = Write { out: Vec::with_capacity(len), keys: Vec::new() };
    let mut write = Scanner { text, at: 0, depth: 0, sink };
    let result = write.document();
    let out = SecretBytes::new(write.sink.out);
    result.map(|()| out)
}

/// `before`, then `text` as a JSON string, then `after`.
pub(super) fn document(before: &str, text: &str, after: &str) -> SecretString {
    let mut measure = Measure(0);
    put_text(&mut measure, text);
    let mut sink =
        Write { out: Vec::with_capacity(before.len() + after.len() + 2 + measure.0), keys: Vec::new() };
    sink.put(before.as_bytes());
    sink.put(b"\"");
    put_text(&mut sink, text);
    sink.put(b"\"");
    sink.put(after.as_bytes());
    // Only whole `str`s and ASCII were put, so this is UTF-8; an empty document could not go
    // unnoticed.
    SecretString::new(String::from_utf8(sink.out).unwrap_or_default())
}

/// The bytes of a JSON string; `None` if it is not one, or if there is a lone surrogate in it.
pub(super) fn string(text: &str) -> Option<SecretBytes> {
    let text = text.as_bytes();
    if text.first() != Some(&b'"') {
        return None;
    }
    // Canonical escapes are the shortest there are: no growing, no unwiped copy.
    let sink = Write { out: Vec::with_capacity(text.len()), keys: Vec::new() };
    let mut write = Scanner { text, at: 0, depth: 0, sink };
    let result = write.string();
    let whole = write.at == text.len();
    let out = SecretBytes::new(write.sink.out);
    result.ok()?;
    unescape(out.expose().get(1..out.len() - 1)?).filter(|_| whole)
}

/// The bytes of a string in canonical form, without its quotes; `None` if there is a lone surrogate
/// in it.
pub(super) fn unescape(inner: &[u8]) -> Option<SecretBytes> {
    let mut out = SecretBytes::new(Vec::new());
    out.resize(inner.len());
    let (mut from, mut len) = (0, 0);
    while let Some(run) = inner.get(from..).filter(|rest| !rest.is_empty()) {
        let plain = run.iter().position(|&b| b == b'\\').unwrap_or(run.len());
        out.write_at(len, &run[..plain]);
        (from, len) = (from + plain, len + plain);
        if plain == run.len() {
            break;
        }
        let (byte, taken) = match *run.get(plain + 1)? {
            b'u' => (u8::try_from(hex4(run.get(plain + 2..plain + 6)?)?).ok()?, 6),
            b'b' => (8, 2),
            b'f' => (12, 2),
            b'n' => (b'\n', 2),
            b'r' => (b'\r', 2),
            b't' => (b'\t', 2),
            same => (same, 2),
        };
        out.write_at(len, &[byte]);
        (from, len) = (from + taken, len + 1);
    }
    out.resize(len);
    Some(out)
}

/// Where canonical text goes.
trait Sink {
    fn put(&mut self, bytes: &[u8]);
    /// Keys seen so far in all open objects; what [`Sink::close`] goes back to.
    fn open(&self) -> usize;
    /// The text since `from` was a key.
    fn key(&mut self, from: usize);
    /// The end of an object: whether its keys, those since `open`, are all different.
    fn close(&mut self, open: usize) -> bool;
    /// Bytes put so far.
    fn len(&self) -> usize;
}

/// Counts.
struct Measure(usize);

impl Sink for Measure {
    fn put(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }
    fn open(&self) -> usize {
        0
    }
    fn key(&mut self, _from: usize) {}
    fn close(&mut self, _open: usize) -> bool {
        true
    }
    fn len(&self) -> usize {
        self.0
    }
}

/// Writes, and compares keys by their canonical text, which is the same exactly for the same key.
struct Write {
    out: Vec<u8>,
    keys: Vec<Range<usize>>,
}

impl Sink for Write {
    fn put(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }
    fn open(&self) -> usize {
        self.keys.len()
    }
    fn key(&mut self, from: usize) {
        self.keys.push(from..self.out.len());
    }
    fn close(&mut self, open: usize) -> bool {
        let (out, keys) = (&self.out, &mut self.keys[open..]);
        keys.sort_unstable_by(|a, b| out[a.clone()].cmp(&out[b.clone()]));
        let distinct = keys.windows(2).all(|pair| out[pair[0].clone()] != out[pair[1].clone()]);
        self.keys.truncate(open);
        distinct
    }
    fn len(&self) -> usize {
        self.out.len()
    }
}

fn put_text(sink: &mut impl Sink, text: &str) {
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c < ' ' || c == '"' || c == '\\') {
        let (plain, special) = rest.split_at(at);
        sink.put(plain.as_bytes());
        let mut chars = special.chars();
        chars.next().into_iter().for_each(|c| put_char(sink, c));
        rest = chars.as_str();
    }
    sink.put(rest.as_bytes());
}

fn put_char(sink: &mut impl Sink, c: char) {
    match c {
        '"' => sink.put(b"\\\""),
        '\\' => sink.put(b"\\\\"),
        '\u{8}' => sink.put(b"\\b"),
        '\u{c}' => sink.put(b"\\f"),
        '\n' => sink.put(b"\\n"),
        '\r' => sink.put(b"\\r"),
        '\t' => sink.put(b"\\t"),
        c if c < ' ' => put_unit(sink, c as u16),
        c => sink.put(c.encode_utf8(&mut [0; 4]).as_bytes()),
    }
}

fn put_unit(sink: &mut impl Sink, unit: u16) {
    // By hand: `format!` would leave a copy of it on the heap, and takes its time a million times.
    let digit = |shift: u16| b"0123456789abcdef"[usize::from(unit >> shift & 0xf)];
    sink.put(&[b'\\', b'u', digit(12), digit(8), digit(4), digit(0)]);
}

fn hex4(digits: &[u8]) -> Option<u16> {
    digits.iter().try_fold(0u16, |n, &d| Some(n << 4 | char::from(d).to_digit(16)? as u16))
}

/// Reads JSON and puts its canonical text into the sink as it goes.
struct Scanner<'a, S> {
    text: &'a [u8],
    at: usize,
    depth: usize,
    sink: S,
}

impl<S: Sink> Scanner<'_, S> {
    fn document(&mut self) -> Result<(), SyntaxError> {
        match self.next_token() {
            Some(b'{') => self.value()?,
            Some(b'[' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => {
                return Err(SyntaxError::NotAnObject);
            }
            _ => return Err(SyntaxError::Syntax),
        }
        self.sink.put(b"\n");
        if self.next_token().is_none() { Ok(()) } else { Err(SyntaxError::Syntax) }
    }

    /// The next byte that is not white space; it is not consumed.
    fn next_token(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.text.get(self.at) {
            self.at += 1;
        }
        self.text.get(self.at).copied()
    }

    fn value(&mut self) -> Result<(), SyntaxError> {
        match self.next_token() {
            Some(b'{') => self.nested(b'}', Self::member),
            Some(b'[') => self.nested(b']', Self::value),
            Some(b'"') => self.string(),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word(b"true"),
            Some(b'f') => self.word(b"false"),
            Some(b'n') => self.word(b"null"),
            _ => Err(SyntaxError::Syntax),
        }
    }

    /// An object or array; the opening bracket is next.
    fn nested(&mut self, end: u8, item: fn(&mut Self) -> Result<(), SyntaxError>) -> Result<(), SyntaxError> {
        if self.depth == MAX_DEPTH {
            return Err(SyntaxError::TooDeep);
        }
        self.depth += 1;
        self.copy(1);
        let keys = self.sink.open();
        if self.next_token() != Some(end) {
            loop {
                self.line();
                item(self)?;
                match self.next_token() {
                    Some(b',') => self.copy(1),
                    Some(found) if found == end => break,
                    _ => return Err(SyntaxError::Syntax),
                }
            }
            self.depth -= 1;
            self.line();
        } else {
            self.depth -= 1;
        }
        self.copy(1);
        if self.sink.close(keys) { Ok(()) } else { Err(SyntaxError::DuplicateKey) }
    }

    fn member(&mut self) -> Result<(), SyntaxError> {
        if self.next_token() != Some(b'"') {
            return Err(SyntaxError::Syntax);
        }
        let from = self.sink.len();
        self.string()?;
        self.sink.key(from);
        if self.next_token() != Some(b':') {
            return Err(SyntaxError::Syntax);
        }
        self.copy(1);
        self.sink.put(b" ");
        self.value()
    }

    /// A line break and the indentation of the present depth.
    fn line(&mut self) {
        const SPACES: [u8; 2 * MAX_DEPTH] = [b' '; 2 * MAX_DEPTH];
        self.sink.put(b"\n");
        self.sink.put(&SPACES[..2 * self.depth]);
    }

    /// Takes `n` bytes that are known to be there over as they are.
    fn copy(&mut self, n: usize) {
        self.sink.put(&self.text[self.at..self.at + n]);
        self.at += n;
    }

    fn word(&mut self, word: &[u8]) -> Result<(), SyntaxError> {
        if !self.text[self.at..].starts_with(word) {
            return Err(SyntaxError::Syntax);
        }
        self.copy(word.len());
        Ok(())
    }

    fn number(&mut self) -> Result<(), SyntaxError> {
        let rest = &self.text[self.at..];
        let mut n = usize::from(rest[0] == b'-');
        let digits = |from: usize| rest[from..].iter().take_while(|b| b.is_ascii_digit()).count();
        let whole = digits(n);
        if whole == 0 || (whole > 1 && rest[n] == b'0') {
            return Err(SyntaxError::Syntax);
        }
        n += whole;
        if rest.get(n) == Some(&b'.') {
            let fraction = digits(n + 1);
            if fraction == 0 {
                return Err(SyntaxError::Syntax);
            }
            n += 1 + fraction;
        }
        if let Some(b'e' | b'E') = rest.get(n) {
            n += 1 + usize::from(matches!(rest.get(n + 1), Some(b'+' | b'-')));
            let exponent = digits(n);
            if exponent == 0 {
                return Err(SyntaxError::Syntax);
            }
            n += exponent;
        }
        self.copy(n);
        Ok(())
    }

    /// A string; its opening quote is next.
    fn string(&mut self) -> Result<(), SyntaxError> {
        self.copy(1);
        loop {
            let rest = &self.text[self.at..];
            let special = |b: &u8| *b < b' ' || *b == b'"' || *b == b'\\';
            let plain = rest.iter().position(special).ok_or(SyntaxError::Syntax)?;
            self.copy(plain);
            match rest[plain] {
                b'"' => {
                    self.copy(1);
                    return Ok(());
                }
                b'\\' => self.escape()?,
                _ => return Err(SyntaxError::Syntax),
            }
        }
    }

    /// An escape; its backslash is next.
    fn escape(&mut self) -> Result<(), SyntaxError> {
        match self.text.get(self.at + 1) {
            Some(b'"' | b'\\' | b'b' | b'f' | b'n' | b'r' | b't') => self.copy(2),
            Some(b'/') => {
                self.at += 2;
                self.sink.put(b"/");
            }
            Some(b'u') => {
                let first = self.unit().ok_or(SyntaxError::Syntax)?;
                self.at += 6;
                let second = if (0xd800..0xdc00).contains(&first) { self.unit() } else { None };
                let units = [first, second.unwrap_or_default()];
                let count = if second.is_some_and(|low| (0xdc00..0xe000).contains(&low)) { 2 } else { 1 };
                self.at += 6 * (count - 1);
                for unit in char::decode_utf16(units.into_iter().take(count)) {
                    match unit {
                        Ok(c) => put_char(&mut self.sink, c),
                        Err(lone) => put_unit(&mut self.sink, lone.unpaired_surrogate()),
                    }
                }
            }
            _ => return Err(SyntaxError::Syntax),
        }
        Ok(())
    }

    /// The code unit of the `\uHHHH` that is next, if there is one; it is not consumed.
    fn unit(&self) -> Option<u16> {
        hex4(self.text[self.at..].get(..6)?.strip_prefix(b"\\u")?)
    }
}
