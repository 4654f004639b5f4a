//! Key contexts of the kv dialect: a few pairs of text that say which key something is encrypted
//! under.

use std::collections::BTreeMap;

use serde::Serialize;

/// Most pairs in a context.
pub const MAX_PAIRS: usize = 10;
/// Longest value of a pair, in characters. The API sets no limit to names; without one a page of a
/// listing could take any amount of memory, so here it is the same.
pub const MAX_CHARS: usize = 500;

/// A context within the limits. Equal contexts have equal texts: the pairs are sorted by their
/// names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct KeyContext(BTreeMap<String, String>);

impl KeyContext {
    /// `None` if these are too many pairs, or a name or a value is too long.
    pub fn new(pairs: BTreeMap<String, String>) -> Option<Self> {
        let short = |text: &String| text.chars().count() <= MAX_CHARS;
        let fits = pairs.len() <= MAX_PAIRS && pairs.keys().all(short) && pairs.values().all(short);
        fits.then_some(Self(pairs))
    }

    /// From [`KeyContext::text`].
    pub fn from_text(text: &str) -> Option<Self> {
        Self::new(serde_json::from_str(text).ok()?)
    }

    /// As JSON.
    pub fn text(&self) -> String {
        // A map from text to text, which serde_json writes without fail.
        serde_json::to_string(&self.0).expect("a map of strings serialises")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_limits_and_one_text() {
        let context = |n: usize, len: usize| {
            KeyContext::new((0..n).rev().map(|n| (format!("k{n}"), "é".repeat(len))).collect())
        };
        assert_eq!(context(2, 1).unwrap().text(), r#"{"k0":"é","k1":"é"}"#);
        assert_eq!(KeyContext::from_text(&context(10, 500).unwrap().text()), context(10, 500));
        assert_eq!(KeyContext::default().text(), "{}");
        assert!(context(11, 1).is_none() && context(1, 501).is_none());
        let named = |len: usize| KeyContext::new([("n".repeat(len), String::new())].into());
        assert!(named(500).is_some() && named(501).is_none());
    }
}
