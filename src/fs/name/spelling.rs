//! How one component of a name is spelt: escapes, and cuts into pieces that fit a file name.
//!
//! Text is encoded in *atoms* that are never cut: a character, an escape, or an escaped `%`
//! together with the characters that made it need escaping. How an atom is spelt depends on nothing
//! outside it. The one rule that looks at a whole piece is the first dot of reserved names.

use super::{CONTROL, SELF, VERSIONS};

/// Longest file name that Linux takes, in bytes.
pub(super) const MAX_FILE_NAME: usize = 255;

/// Most bytes in a piece that is not the last, before [`CONTINUES`].
const MAX_CUT: usize = 250;

/// The end of a piece that is not the last.
const CONTINUES: &str = "%+";

/// How an empty component is spelt.
const EMPTY: &str = "%_";

/// A piece of a component, as a file name.
pub(super) struct Piece {
    /// The file name.
    pub(super) text: String,
    /// Where in the component it ends.
    pub(super) end: usize,
    /// Whether it ends with the component.
    pub(super) last: bool,
}

/// The piece of `component` that begins at `from`; `None` if none begins there. `at_root`: the
/// component is an entry of the root directory.
pub(super) fn chunk(component: &str, from: usize, at_root: bool) -> Option<Piece> {
    let mut at = 0;
    while at < from {
        let chunk = piece_from(component, at, at_root);
        if chunk.last {
            return None;
        }
        at = chunk.end;
    }
    (at == from).then(|| piece_from(component, at, at_root))
}

fn piece_from(component: &str, from: usize, at_root: bool) -> Piece {
    let mut text = String::new();
    let mut at = from;
    let (mut cut, mut cut_text) = (from, 0);
    while at < component.len() {
        at += push_atom(&mut text, &component[at..]);
        if text.len() <= MAX_CUT {
            (cut, cut_text) = (at, text.len());
        }
        if text.len() > MAX_FILE_NAME {
            text.truncate(cut_text);
            text.push_str(CONTINUES);
            return Piece { text, end: cut, last: false };
        }
    }
    if text.is_empty() {
        text.push_str(EMPTY);
    } else if is_reserved(&text, at_root) {
        text.replace_range(..1, "%2E");
    }
    Piece { text, end: at, last: true }
}

fn is_reserved(text: &str, at_root: bool) -> bool {
    matches!(text, "." | ".." | SELF) || (at_root && matches!(text, VERSIONS | CONTROL))
}

/// Appends the atom that `rest`, which is not empty, begins with; returns how much of `rest` that
/// is.
fn push_atom(text: &mut String, rest: &str) -> usize {
    let mut chars = rest.chars();
    match chars.next() {
        Some('%') => {
            let makes_escape = escape_len(&rest[1..]);
            text.push_str(if makes_escape > 0 { "%25" } else { "%" });
            text.push_str(&rest[1..1 + makes_escape]);
            1 + makes_escape
        }
        Some('/') => {
            text.push_str("%2F");
            1
        }
        Some(c @ '\0'..'\x20') => {
            text.push_str(&format!("%{:02X}", u32::from(c)));
            1
        }
        Some(c) => {
            text.push(c);
            c.len_utf8()
        }
        None => 0,
    }
}

/// How many bytes of `rest`, the text after a `%`, make an escape of it; 0 if it is a mere `%`.
fn escape_len(rest: &str) -> usize {
    match rest.as_bytes() {
        [b'_' | b'+', ..] => 1,
        [b'0' | b'1', b'0'..=b'9' | b'A'..=b'F', ..] | [b'2', b'5' | b'E' | b'F', ..] => 2,
        _ => 0,
    }
}

/// What a file name stands for, and whether it ends in `%+`. More is accepted than [`chunk`] gives
/// out: the caller spells the result again and compares.
pub(super) fn unescape(file_name: &str) -> Option<(String, bool)> {
    if file_name == EMPTY {
        return Some((String::new(), false));
    }
    let mut text = String::with_capacity(file_name.len());
    let mut rest = file_name;
    while let Some(at) = rest.find('%') {
        text.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let escape;
        (escape, rest) = rest.split_at(escape_len(rest));
        match escape {
            "" => text.push('%'),
            "+" => return rest.is_empty().then_some((text, true)),
            "_" => return None,
            hex => text.push(char::from(u8::from_str_radix(hex, 16).ok()?)),
        }
    }
    text.push_str(rest);
    // An empty file name, and nothing else, gets here without text.
    (!text.is_empty()).then_some((text, false))
}
