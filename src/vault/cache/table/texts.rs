//! The texts of one version in one allocation, and what they are found by.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Name, id and version, one after another. They are equal, and in order, as their names are.
#[derive(Debug, Clone)]
pub struct Texts {
    all: Arc<str>,
    id_at: u32,
    /// `u32::MAX` if there is no version.
    version_at: u32,
}

impl Texts {
    pub fn new(name: &str, id: &str, version: Option<&str>) -> Self {
        let at = |len: usize| u32::try_from(len).expect("answers of a vault are far shorter than 4 GiB");
        let version_at = version.map_or(u32::MAX, |_| at(name.len() + id.len()));
        let all = [name, id, version.unwrap_or_default()].concat();
        Self { all: all.into(), id_at: at(name.len()), version_at }
    }

    pub fn name(&self) -> &str {
        &self.all[..self.id_at as usize]
    }

    pub fn id(&self) -> &str {
        &self.all[self.id_at as usize..self.all.len().min(self.version_at as usize)]
    }

    pub fn version(&self) -> Option<&str> {
        (self.version_at != u32::MAX).then(|| &self.all[self.version_at as usize..])
    }

    /// Bytes of all three.
    pub fn len(&self) -> usize {
        self.all.len()
    }
}

impl Borrow<str> for Texts {
    fn borrow(&self) -> &str {
        self.name()
    }
}

impl PartialEq for Texts {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Texts {}

impl PartialOrd for Texts {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Texts {
    fn cmp(&self, other: &Self) -> Ordering {
        self.name().cmp(other.name())
    }
}

/// The same, equal where id and version are.
#[derive(Debug)]
pub struct VersionTexts(pub Texts);

impl PartialEq for VersionTexts {
    fn eq(&self, Self(other): &Self) -> bool {
        self.0.id() == other.id() && self.0.version() == other.version()
    }
}

impl Eq for VersionTexts {}

impl Hash for VersionTexts {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.0.id(), self.0.version()).hash(state);
    }
}
