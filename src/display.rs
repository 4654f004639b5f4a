//! Text that is not ours, as people see it.
//!
//! Names of objects, programs and mount points, errors of servers, and what other programs say may
//! hold anything: an escape sequence that a terminal obeys, a newline that forges a line, a mark
//! that reverses what follows, an invisible character. Here they become visible, in the notation of
//! Rust's strings: `\n`, `\u{1b}`, `\u{202e}`, `\xff` for a byte that is no UTF-8.
//!
//! 1. **The sinks escape, not the callers.** Whatever is written for people goes through [`line`]:
//!    [`crate::sys::stdio`] on standard error, `cli::output` on standard output, `cli::log` and the
//!    journal for each event. One call is one line: a newline in it is escaped like the rest. A
//!    message of several lines is several calls.
//! 2. **The source makes it unambiguous.** [`text`], [`bytes`] and [`Shown::shown`] escape the
//!    backslash, too, so that two texts never look alike. `tests/project/layering.rs` bans
//!    `Path::display`, which hides what is no UTF-8. `{:?}` is as good.
//! 3. **Data is not text.** Values, names on a pipe, and `--json` are exact. [`json`] writes the
//!    same characters as JSON escapes.

use std::borrow::Cow;
use std::fmt::{self, Display, Write};
use std::path::Path;

/// Whether a terminal shows it as one visible mark (or a space) and does nothing else for it.
fn is_plain(c: char) -> bool {
    if c.is_ascii() {
        return c == ' ' || c.is_ascii_graphic();
    }
    // The standard library knows what is printable, and shows it by escaping. Behind another
    // character, where combining marks are as good as any.
    let mut pair = [b'a', 0, 0, 0, 0];
    let len = c.encode_utf8(&mut pair[1..]).len();
    let printable =
        std::str::from_utf8(&pair[..=len]).is_ok_and(|pair| pair.escape_debug().nth(1) == Some(c));
    printable && !is_invisible(c)
}

/// Characters that count as letters, marks or symbols, and show nothing (Unicode's
/// Default_Ignorable_Code_Point, and blanks).
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{2800}'
        | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{ffa0}' | '\u{e0100}'..='\u{e01ef}')
}

/// A text of others: two that differ never look alike.
pub fn text(text: &str) -> Foreign<'_> {
    Foreign(text.as_bytes())
}

/// Bytes of others that should be text.
pub fn bytes(bytes: &[u8]) -> Foreign<'_> {
    Foreign(bytes)
}

/// A path, or the name of a file, as [`text`].
pub trait Shown {
    /// For a message.
    fn shown(&self) -> Foreign<'_>;
}

impl<P: AsRef<Path> + ?Sized> Shown for P {
    fn shown(&self) -> Foreign<'_> {
        Foreign(self.as_ref().as_os_str().as_encoded_bytes())
    }
}

/// What [`text`] shows.
#[derive(Debug, Clone, Copy)]
pub struct Foreign<'a>(&'a [u8]);

impl Display for Foreign<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for (at, part) in chunk.valid().split('\\').enumerate() {
                if at > 0 {
                    f.write_str("\\\\")?;
                }
                Plain(&mut *f).write_str(part)?;
            }
            chunk.invalid().iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))?;
        }
        Ok(())
    }
}

/// One line for people, whatever is in it. Backslashes stay: they are ours, or [`text`] has doubled
/// them.
pub fn line<T: Display>(text: T) -> Line<T> {
    Line(text)
}

/// What [`line`] shows.
#[derive(Debug, Clone, Copy)]
pub struct Line<T>(T);

impl<T: Display> Display for Line<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Plain(f), "{}", self.0)
    }
}

/// Lets only plain characters through, and escapes of the others.
#[derive(Debug)]
pub struct Plain<W>(pub W);

impl<W: Write> Write for Plain<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| !is_plain(*c)) {
            self.0.write_str(&rest[..at])?;
            // As a number where a combining mark would not be escaped.
            match c.is_ascii_control() {
                true => write!(self.0, "{}", c.escape_debug())?,
                false => write!(self.0, "{}", c.escape_unicode())?,
            }
            rest = &rest[at + c.len_utf8()..];
        }
        self.0.write_str(rest)
    }
}

/// JSON that says the same and holds plain characters only: in JSON, others are only within
/// strings.
pub fn json(text: &str) -> Cow<'_, str> {
    let escaped = |c: char| c != '\n' && !is_plain(c);
    if !text.contains(escaped) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if !escaped(c) {
            out.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            // Writing to a string cannot fail.
            let _ = write!(out, "\\u{unit:04x}");
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    /// Each of the kinds of characters that are no text.
    const UNSEEN: &str = "\0\u{1}\u{7}\u{8}\t\n\u{b}\r\u{1b}\u{7f}\u{80}\u{85}\u{9b}\u{9d}\u{a0}\u{ad}\u{34f}\u{61c}\u{115f}\u{180e}\
        \u{200b}\u{200c}\u{200d}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2060}\u{2066}\u{2067}\
        \u{2068}\u{2069}\u{2800}\u{3000}\u{3164}\u{e000}\u{fe0f}\u{feff}\u{fff9}\u{ffa0}\u{fffe}\u{1d173}\u{e0001}\u{e0041}\
        \u{e0100}\u{10ffff}";

    #[test]
    fn what_a_terminal_obeys_or_hides_is_escaped() {
        for c in UNSEEN.chars() {
            let name = format!("a{c}b");
            for shown in [text(&name).to_string(), line(&name).to_string()] {
                assert!(
                    shown.starts_with("a\\") && shown.ends_with('b') && shown.len() > 3,
                    "{c:?}: {shown:?}"
                );
                assert!(shown.bytes().all(|b| b == b' ' || b.is_ascii_graphic()), "{c:?}: {shown:?}");
            }
        }
        assert_eq!(text("a\n\u{1b}[31m\u{9b}\u{202e}").to_string(), r"a\n\u{1b}[31m\u{9b}\u{202e}");
    }

    #[test]
    fn what_people_write_stays() {
        for plain in ["db/password", "it's \"so\": 5 %", "grüße/日本語/مرحبا/e\u{301}/🔑", "~!@#$^&*()"]
        {
            assert_eq!(text(plain).to_string(), plain);
            assert_eq!(line(plain).to_string(), plain);
            assert_eq!(json(plain), plain);
        }
    }

    #[test]
    fn two_texts_never_look_alike() {
        assert_eq!(text("a\\nb").to_string(), r"a\\nb");
        assert_eq!(text("a\nb").to_string(), r"a\nb");
        assert_eq!(bytes(b"a\xff\\xff\xe2\x82").to_string(), r"a\xff\\xff\xe2\x82");
        assert_eq!(OsStr::from_bytes(b"/m\x9b1\n").shown().to_string(), r"/m\x9b1\n");
        // What is shown once is not changed by the line that it stands in.
        let all: String = (0..0x3000).filter_map(char::from_u32).collect();
        assert_eq!(line(text(&all)).to_string(), text(&all).to_string());
    }

    #[test]
    fn json_says_the_same() {
        let text = serde_json::to_string_pretty(&[UNSEEN, "é\\n\"", "\u{e0001}"]).expect("text");
        let safe = json(&text);
        assert!(safe.chars().all(|c| c == '\n' || is_plain(c)), "{safe}");
        let back: Vec<String> = serde_json::from_str(&safe).expect("JSON");
        assert_eq!(back, [UNSEEN, "é\\n\"", "\u{e0001}"]);
    }
}
