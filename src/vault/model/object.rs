//! Objects of a vault as values: names, ids, versions, contents, listings. No behaviour beyond
//! validity.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::secret::SecretBytes;
use crate::vault::{Error, ErrorKind, Result};

/// Longest name any dialect takes, in bytes (object dialect; 200 characters of kv are at most 800).
pub const MAX_NAME_BYTES: usize = 1024;

/// An object's name: 1 to 1024 bytes of any UTF-8, control characters and slashes included.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectName(Arc<str>);

impl ObjectName {
    /// `None` for a name that no vault can hold: empty, or over 1024 bytes.
    pub fn new(name: &str) -> Option<Self> {
        (!name.is_empty() && name.len() <= MAX_NAME_BYTES).then(|| Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for ObjectName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

macro_rules! opaque_text {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Wraps the vault's own text.
            pub fn new(text: impl Into<Arc<str>>) -> Self {
                Self(text.into())
            }
            /// The vault's own text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

opaque_text! {
    /// An object's id, opaque to us.
    ObjectId
}
opaque_text! {
    /// Distinguishes the versions of an object: its number in the object dialect, its id in kv.
    VersionTag
}

/// Begins a tag that is no version's id but the time of the change.
const TIME_TAG: &str = "@";

impl VersionTag {
    /// Of a version that the vault gives no tag.
    pub fn of_time(time: &str) -> Self {
        Self::new(format!("{TIME_TAG}{time}"))
    }

    /// Whether the version of this tag, made at that time, came after another one of its object.
    pub fn is_later(&self, at: SystemTime, (other, then): (&Self, SystemTime)) -> bool {
        let number = |tag: &Self| tag.0.parse::<u64>().ok();
        at > then || (at == then && number(self).zip(number(other)).is_some_and(|(own, other)| own > other))
    }

    /// Whether the vault gave it, and can check it.
    pub fn is_the_vaults(&self) -> bool {
        !self.0.starts_with(TIME_TAG)
    }
}

/// How the vault holds a value: as plain bytes, or as a JSON object of its own (kind 3 of the
/// codec).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Form {
    /// Bytes, as text or base64.
    Plain,
    /// A JSON object; the bytes are its canonical text.
    Structured,
}

/// A value as file bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// The bytes of the file.
    pub bytes: Arc<SecretBytes>,
    /// How the vault holds them. `Structured` promises that the bytes are canonical JSON.
    pub form: Form,
}

impl Content {
    /// Plain bytes.
    pub fn plain(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: Arc::new(SecretBytes::new(bytes.into())), form: Form::Plain }
    }
}

/// Everything of an object but its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Its id.
    pub id: ObjectId,
    /// Its name.
    pub name: ObjectName,
    /// Its current version.
    pub version: VersionTag,
    /// When that version was made.
    pub updated_at: SystemTime,
}

/// An object with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Everything but the value.
    pub meta: Meta,
    /// The value.
    pub content: Content,
}

/// One version in an object's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionInfo {
    /// 1 is the oldest.
    pub number: u64,
    /// The vault's word for it.
    pub tag: VersionTag,
    /// When it was made.
    pub created_at: SystemTime,
    /// Bytes of the file view, where the vault says so.
    pub size: Option<u64>,
    /// Whether it is the current one.
    pub current: bool,
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Its id.
    pub id: ObjectId,
    /// Its name.
    pub name: ObjectName,
    /// When it last changed, where the listing says so.
    pub updated_at: Option<SystemTime>,
    /// Its current version, where the listing says so (object dialect).
    pub version: Option<VersionTag>,
}

/// What to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListQuery {
    /// Objects a page, 1 to 100.
    pub limit: u32,
    /// Cursor from [`Page::next`].
    pub after: Option<String>,
    /// Only names that contain this; the caller still checks. Ignored where not offered.
    pub search: Option<String>,
    /// Only objects changed after this. Ignored where not offered.
    pub updated_after: Option<SystemTime>,
}

impl ListQuery {
    /// A full page from the beginning.
    pub fn first() -> Self {
        Self { limit: 100, ..Self::default() }
    }

    /// The page after `cursor`, everything else the same.
    pub fn next(&self, cursor: String) -> Self {
        Self { after: Some(cursor), ..self.clone() }
    }
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The objects, creation order ascending.
    pub items: Vec<Summary>,
    /// Where the next page starts; `None` at the end.
    pub next: Option<String>,
}

/// Follows the cursors of one listing and notices when they go in circles, in constant memory: one
/// cursor is kept, replaced after 1, 2, 4 … steps, and a circle comes back to it (Brent).
#[derive(Debug, Default)]
pub struct Cursors {
    kept: Option<String>,
    steps: u64,
    until: u64,
}

impl Cursors {
    /// The cursor to go on with after a page, `None` at the end.
    ///
    /// # Errors
    /// [`ErrorKind::BadAnswer`] if the listing would never end.
    pub fn advance(&mut self, next: Option<String>) -> Result<Option<String>> {
        let Some(next) = next else { return Ok(None) };
        if self.kept.as_ref() == Some(&next) {
            let sentence = "listing the vault: its pages go in circles";
            return Err(Error::new(ErrorKind::BadAnswer, sentence));
        }
        if self.steps >= self.until {
            self.until = (self.until * 2).max(1);
            self.steps = 0;
            self.kept = Some(next.clone());
        }
        self.steps += 1;
        Ok(Some(next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn circles_of_cursors_end() {
        for (lead, circle) in [(0, 1), (0, 2), (1, 3), (100, 1), (5, 64), (1000, 777)] {
            let mut cursors = Cursors::default();
            let at = |step: usize| if step < lead { step } else { lead + (step - lead) % circle };
            let ended =
                (0..10 * (lead + circle + 1)).find(|n| cursors.advance(Some(at(*n).to_string())).is_err());
            assert!(
                ended.is_some_and(|n| n <= 4 * (lead + circle) && n >= circle),
                "{lead} {circle} {ended:?}"
            );
        }
    }

    #[test]
    fn a_listing_of_any_length_is_followed() {
        let mut cursors = Cursors::default();
        for n in 0..10_000 {
            let next = cursors.advance(Some(n.to_string())).unwrap();
            assert_eq!(next, Some(n.to_string()));
        }
        assert_eq!(cursors.advance(None).unwrap(), None);
    }
}
