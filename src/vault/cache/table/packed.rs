//! Ids and version tags in eighteen bytes: what reads as a ULID, a UUID or a number is kept as that, anything else
//! as a reference to its text.
//!
//! Texts in front of a ULID (`vault_obj_`) are few in a vault, and known by a number. Packing is a bijection: a text
//! that would not come back as it was (lower case, leading zeros) is kept as text.

use std::hash::Hash;

use ulid::Ulid;

use super::pool::{Pool, Text};

/// What the sixteen bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    /// There is none.
    Nothing,
    Ulid,
    Uuid,
    Number,
    Text,
}

/// An id or a version tag, packed.
#[derive(Debug, Clone, Copy)]
pub struct Packed {
    kind: Kind,
    prefix: u8,
    bits: [u8; 16],
}

/// What two packed texts are compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Key<'a> {
    /// Kind, prefix and bits.
    Bits(u8, u8, [u8; 16]),
    /// The text itself.
    Text(&'a str),
}

/// The texts in front of ids.
#[derive(Debug, Default)]
pub struct Prefixes(Vec<Box<str>>);

/// A text taken apart: what is in front, and what the rest is.
struct Parts<'a> {
    prefix: &'a str,
    kind: Kind,
    bits: u128,
}

impl Packed {
    /// No text at all.
    pub const NOTHING: Self = Self { kind: Kind::Nothing, prefix: 0, bits: [0; 16] };

    /// Packs `text`; what does not fit goes to the pool. `None` if that is full.
    pub fn new(text: &str, prefixes: &mut Prefixes, pool: &mut Pool) -> Option<Self> {
        if let Some(Parts { prefix, kind, bits }) = take_apart(text)
            && let Some(prefix) = prefixes.intern(prefix)
        {
            return Some(Self { kind, prefix, bits: bits.to_be_bytes() });
        }
        let Text(at) = pool.put(text)?;
        Some(Self { kind: Kind::Text, prefix: 0, bits: u128::from(at).to_be_bytes() })
    }

    /// Whether there is one.
    pub fn is_something(&self) -> bool {
        self.kind != Kind::Nothing
    }

    /// What it is compared by.
    pub fn key<'a>(&self, pool: &'a Pool) -> Key<'a> {
        match self.pooled() {
            Some(at) => Key::Text(pool.text(at)),
            None => Key::Bits(self.kind as u8, self.prefix, self.bits),
        }
    }

    /// The text; `None` if there is none.
    pub fn text(&self, prefixes: &Prefixes, pool: &Pool) -> Option<String> {
        let bits = u128::from_be_bytes(self.bits);
        let prefix = || prefixes.0.get(usize::from(self.prefix)).map_or("", |p| p);
        Some(match self.kind {
            Kind::Nothing => return None,
            Kind::Text => pool.text(self.pooled()?).to_owned(),
            Kind::Ulid => format!("{}{}", prefix(), Ulid::from(bits)),
            Kind::Number => format!("{}{bits}", prefix()),
            Kind::Uuid => {
                let hex = format!("{bits:032x}");
                let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
                format!("{}{}", prefix(), parts.join("-"))
            }
        })
    }

    /// Its text, if it is in the pool, is elsewhere from now on.
    pub fn move_text(&mut self, again: &mut impl FnMut(Text) -> Text) {
        if let Some(at) = self.pooled() {
            self.bits = u128::from(again(at).0).to_be_bytes();
        }
    }

    /// Where its text is in the pool, if it is there.
    pub fn pooled(&self) -> Option<Text> {
        let bits = u128::from_be_bytes(self.bits);
        (self.kind == Kind::Text).then(|| Text(u32::try_from(bits).expect("made from 32 bits")))
    }
}

impl Prefixes {
    /// What `text` would be compared by if it were packed here; nothing new is learnt.
    pub fn key<'a>(&self, text: &'a str) -> Key<'a> {
        let parts = take_apart(text);
        match parts.and_then(|parts| Some((self.find(parts.prefix)?, parts))) {
            Some((prefix, Parts { kind, bits, .. })) => Key::Bits(kind as u8, prefix, bits.to_be_bytes()),
            None => Key::Text(text),
        }
    }

    fn find(&self, prefix: &str) -> Option<u8> {
        self.0.iter().position(|known| **known == *prefix).and_then(|at| u8::try_from(at).ok())
    }

    /// The number of `prefix`; `None` once there are too many.
    fn intern(&mut self, prefix: &str) -> Option<u8> {
        if let Some(known) = self.find(prefix) {
            return Some(known);
        }
        let number = u8::try_from(self.0.len()).ok()?;
        self.0.push(prefix.into());
        Some(number)
    }
}

const ULID: usize = 26;
const UUID: usize = 36;
/// Longest text in front that is worth keeping apart.
const PREFIX: usize = 24;

fn take_apart(text: &str) -> Option<Parts<'_>> {
    let tail = |len: usize| {
        let at = text.len().checked_sub(len).filter(|at| *at <= PREFIX && text.is_char_boundary(*at))?;
        Some(text.split_at(at))
    };
    if let Some((prefix, digits)) = tail(UUID)
        && let Some(bits) = uuid(digits)
    {
        return Some(Parts { prefix, kind: Kind::Uuid, bits });
    }
    if let Some((prefix, digits)) = tail(ULID)
        && let Some(ulid) = Ulid::from_string(digits).ok().filter(|ulid| is_spelt(*ulid, digits))
    {
        return Some(Parts { prefix, kind: Kind::Ulid, bits: ulid.0 });
    }
    let number = text.parse::<u64>().ok().filter(|_| text == "0" || !text.starts_with(['0', '+']))?;
    Some(Parts { prefix: "", kind: Kind::Number, bits: number.into() })
}

fn is_spelt(ulid: Ulid, digits: &str) -> bool {
    let mut buffer = [0; ulid::ULID_LEN];
    ulid.array_to_str(&mut buffer) == digits
}

fn uuid(text: &str) -> Option<u128> {
    let mut bits = 0;
    for (at, byte) in text.bytes().enumerate() {
        match (at, byte) {
            (8 | 13 | 18 | 23, b'-') => {}
            (8 | 13 | 18 | 23, _) => return None,
            (_, b'0'..=b'9') => bits = bits << 4 | u128::from(byte - b'0'),
            (_, b'a'..=b'f') => bits = bits << 4 | u128::from(byte - b'a' + 10),
            _ => return None,
        }
    }
    Some(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_comes_back_and_only_equal_ones_are_equal() {
        let (mut prefixes, mut pool) = (Prefixes::default(), Pool::default());
        let texts = [
            "vault_obj_01HZXKQW3V5N8Y2J4T6R8P0C1D",
            "01HZXKQW3V5N8Y2J4T6R8P0C1D",
            "vault_obj_01hzxkqw3v5n8y2j4t6r8p0c1d",
            "secret_01HZXKQW3V5N8Y2J4T6R8P0C1E",
            "0b5a9cf2-8a3e-4a3b-9d6a-6f1d2f6b1c11",
            "v-0b5a9cf2-8a3e-4a3b-9d6a-6f1d2f6b1c11",
            "0B5A9CF2-8A3E-4A3B-9D6A-6F1D2F6B1C11",
            "0",
            "1",
            "18446744073709551615",
            "18446744073709551616",
            "007",
            "+7",
            "-7",
            "",
            "é",
            "ééééééééééééééééé",
            "a prefix that is longer than any of an id 01HZXKQW3V5N8Y2J4T6R8P0C1D",
        ];
        let packed: Vec<Packed> =
            texts.iter().map(|text| Packed::new(text, &mut prefixes, &mut pool).unwrap()).collect();
        for (n, (text, one)) in texts.iter().zip(&packed).enumerate() {
            assert_eq!(one.text(&prefixes, &pool).as_deref(), Some(*text));
            assert_eq!(one.key(&pool), prefixes.key(text), "{text}");
            for (m, other) in packed.iter().enumerate() {
                assert_eq!(one.key(&pool) == other.key(&pool), n == m, "{text} and {}", texts[m]);
            }
        }
        assert_eq!(packed.iter().filter(|p| p.pooled().is_some()).count(), 10);
        assert_eq!(Packed::NOTHING.text(&prefixes, &pool), None);
    }

    #[test]
    fn with_too_many_prefixes_ids_are_kept_as_text() {
        let (mut prefixes, mut pool) = (Prefixes::default(), Pool::default());
        for n in 0..600 {
            let text = format!("p{n}_01HZXKQW3V5N8Y2J4T6R8P0C1D");
            let packed = Packed::new(&text, &mut prefixes, &mut pool).unwrap();
            assert_eq!(packed.text(&prefixes, &pool), Some(text.clone()));
            assert_eq!(packed.key(&pool), prefixes.key(&text));
        }
    }
}
