//! Between the bytes of a file and what the vault stores.
//!
//! One object has three views: file bytes, `data` (object dialect, a JSON object) and `value` (kv
//! dialect, a string). The rule that everything here serves: *a file gives back exactly the bytes
//! that were written to it.* The one exception is white space in JSON written over an object that
//! is already structured.
//!
//! `data` comes in three kinds: `{"value": text}`, `{"value": base64, "encoding": "base64"}`, and
//! any other object, which a file shows as canonical JSON. What is stored structured is always of
//! the third kind: the text `{"value":"x"}` in a file is text, else it would read back as `x`.
//!
//! Pure functions: no input panics, time and memory are linear in it (`json` bounds how far
//! canonical text may grow), errors hold none of the bytes, intermediate copies are wiped. Knows
//! nothing of names, requests or limits on the size of values.

mod json;

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use self::json::SyntaxError;
use crate::secret::{SecretBytes, SecretString};
use crate::vault::model::object::{Content, Form};

/// What the kv dialect puts before the base64 of bytes that are no text.
const VALUE_PREFIX: &str = "data:application/octet-stream;base64,";

/// `--format`: how bytes written to a file become an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// JSON objects stay structured, everything else is text or base64.
    #[default]
    Auto,
    /// Only JSON objects are taken.
    Json,
    /// Always bytes.
    Raw,
}

/// Bytes or JSON that cannot be stored or understood. Never holds any of the bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// `--format json` and the bytes are not a JSON object.
    #[error("the bytes are not a JSON object, and --format json takes nothing else")]
    NotAnObject,
    /// `data` is not a JSON object that can be stored: not an object, duplicate keys, too deep.
    #[error("{0}")]
    BadData(&'static str),
    /// The file would have more bytes than the caller allows.
    #[error("the value is larger than {max} bytes")]
    TooLarge {
        /// The most bytes allowed.
        max: usize,
    },
}

impl From<SyntaxError> for CodecError {
    fn from(error: SyntaxError) -> Self {
        Self::BadData(match error {
            SyntaxError::Syntax => "data is not valid JSON",
            SyntaxError::NotAnObject => "data must be a JSON object",
            SyntaxError::DuplicateKey => "data must be a JSON object in which no key occurs twice",
            SyntaxError::TooDeep => "data must be a JSON object that is nested at most 128 levels deep",
            SyntaxError::TooLong => "data is too large once it is laid out as a file",
        })
    }
}

/// Decides how `bytes` are stored and returns what the file will show afterwards.
///
/// `base` is the form of the version that the writer started from, `None` for a new object. Only
/// with [`Format::Auto`] over [`Form::Structured`], and with [`Format::Json`], may the returned
/// bytes differ from `bytes`, and then in JSON layout alone.
///
/// # Errors
/// Only with [`Format::Json`]: bytes that are no JSON object, or one that cannot be stored.
pub fn to_content(format: Format, base: Option<Form>, bytes: &[u8]) -> Result<Content, CodecError> {
    let plain = || Content::plain(bytes);
    if format == Format::Raw {
        return Ok(plain());
    }
    let canonical = match json::canonical(bytes) {
        Ok(canonical) => canonical,
        Err(_) if format == Format::Auto => return Ok(plain()),
        Err(SyntaxError::Syntax | SyntaxError::NotAnObject) => return Err(CodecError::NotAnObject),
        Err(error) => return Err(error.into()),
    };
    let reformats = format == Format::Json || base == Some(Form::Structured);
    let same = canonical.expose() == bytes;
    if plain_view(canonical.expose()).is_some() || !(same || reformats) {
        return Ok(plain());
    }
    Ok(structured(canonical))
}

/// Object dialect: JSON text of `data` to file bytes.
///
/// # Errors
/// [`CodecError::BadData`] for what the vault must answer with 422; the sentence names `data`.
pub fn decode_data(data: &str) -> Result<Content, CodecError> {
    let canonical = json::canonical(data.as_bytes())?;
    Ok(match plain_view(canonical.expose()) {
        Some(bytes) => plain_content(bytes),
        None => structured(canonical),
    })
}

/// [`decode_data`] for a file of at most `max` bytes. Memory stays within a small multiple of
/// `max`, also for `data` with a canonical layout a hundred times its length.
///
/// # Errors
/// As [`decode_data`], and [`CodecError::TooLarge`].
pub fn decode_data_within(data: &str, max: usize) -> Result<Content, CodecError> {
    let too_large = CodecError::TooLarge { max };
    // A byte of text takes at most six bytes in JSON, `\u0001`, and what surrounds it less than
    // 100.
    let room = max.saturating_mul(6).saturating_add(100);
    let canonical = json::canonical_within(data.as_bytes(), room).map_err(|error| match error {
        SyntaxError::TooLong => too_large.clone(),
        error => error.into(),
    })?;
    let content = match plain_view(canonical.expose()) {
        Some(bytes) => plain_content(bytes),
        None => structured(canonical),
    };
    if content.bytes.len() > max { Err(too_large) } else { Ok(content) }
}

/// Object dialect: file bytes to the JSON text of `data`. Reads back as the same content for all
/// that [`to_content`] and [`decode_data`] return.
pub fn encode_data(content: &Content) -> SecretString {
    let bytes = content.bytes.expose();
    let text = std::str::from_utf8(bytes).ok();
    match (content.form, text) {
        // Canonical text is JSON as it stands; only the final newline belongs to the file.
        (Form::Structured, Some(text)) => SecretString::new(text.trim_end().to_owned()),
        (_, Some(text)) if !text.contains('\0') => json::document("{\"value\":", text, "}"),
        _ => {
            let encoded = SecretString::new(STANDARD.encode(bytes));
            json::document("{\"value\":", encoded.expose(), ",\"encoding\":\"base64\"}")
        }
    }
}

/// kv dialect: `value` to file bytes.
pub fn decode_value(value: &str) -> Content {
    let binary = value.strip_prefix(VALUE_PREFIX).and_then(|encoded| from_base64(encoded.as_bytes()));
    plain_content(binary.unwrap_or_else(|| SecretBytes::from(value.as_bytes())))
}

/// kv dialect: file bytes to `value`.
pub fn encode_value(bytes: &[u8]) -> SecretString {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') && !text.starts_with(VALUE_PREFIX) => {
            SecretString::new(text.to_owned())
        }
        _ => {
            let encoded_len = bytes.len().div_ceil(3) * 4;
            let mut value = String::with_capacity(VALUE_PREFIX.len() + encoded_len);
            value.push_str(VALUE_PREFIX);
            STANDARD.encode_string(bytes, &mut value);
            SecretString::new(value)
        }
    }
}

/// [`decode_value`] from the JSON text of `value`, for a file of at most `max` bytes.
///
/// # Errors
/// [`CodecError::BadData`] for what is no string of Unicode characters, and
/// [`CodecError::TooLarge`].
pub fn decode_value_within(json: &str, max: usize) -> Result<Content, CodecError> {
    let no_text = CodecError::BadData("value is not a string of Unicode characters");
    let content = decode_value(parse_json_text(json).ok_or(no_text)?.expose());
    if content.bytes.len() > max { Err(CodecError::TooLarge { max }) } else { Ok(content) }
}

/// The text of a JSON string, quotes and all; `None` if it is none, or holds a lone surrogate.
pub fn parse_json_text(json: &str) -> Option<SecretString> {
    let bytes = json::string(json)?;
    // Of what was UTF-8, only whole characters were taken.
    std::str::from_utf8(bytes.expose()).ok().map(|text| SecretString::new(text.to_owned()))
}

/// `before`, then `text` as a JSON string, then `after`: how a secret text gets into a JSON
/// document with no copy of it left behind.
pub fn json_with_text(before: &str, text: &SecretString, after: &str) -> SecretString {
    json::document(before, text.expose(), after)
}

fn structured(canonical: SecretBytes) -> Content {
    Content { bytes: Arc::new(canonical), form: Form::Structured }
}

fn plain_content(bytes: SecretBytes) -> Content {
    Content { bytes: Arc::new(bytes), form: Form::Plain }
}

/// The bytes that canonical `data` of kind 1 or 2 stands for; `None` for kind 3.
///
/// Canonical text has one member of the outer object a line and no line break inside strings, so
/// lines are enough.
fn plain_view(canonical: &[u8]) -> Option<SecretBytes> {
    const ENCODING: &[u8] = b"  \"encoding\": \"base64\"";
    let members = canonical.strip_prefix(b"{\n")?.strip_suffix(b"\n}\n")?;
    let mut lines = members.split(|&b| b == b'\n');
    let (first, second, rest) = (lines.next()?, lines.next(), lines.next());
    match (second, rest) {
        (None, None) => json::unescape(string_of_value(first)?),
        (Some(second), None) => {
            let first = first.strip_suffix(b",")?;
            let value = if first == ENCODING {
                second
            } else if second == ENCODING {
                first
            } else {
                return None;
            };
            let encoded = json::unescape(string_of_value(value)?)?;
            from_base64(encoded.expose())
        }
        _ => None,
    }
}

/// What canonical base64 stands for. What was decoded before a mistake was found is wiped, too.
fn from_base64(encoded: &[u8]) -> Option<SecretBytes> {
    let mut bytes = Zeroizing::new(Vec::new());
    STANDARD.decode_vec(encoded, &mut bytes).ok()?;
    Some(SecretBytes::new(std::mem::take(&mut *bytes)))
}

/// What stands between the quotes in the line of a member `value` that holds a string.
fn string_of_value(line: &[u8]) -> Option<&[u8]> {
    line.strip_prefix(b"  \"value\": \"")?.strip_suffix(b"\"")
}

#[cfg(test)]
mod tests;
