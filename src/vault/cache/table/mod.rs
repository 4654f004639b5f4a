//! Names, what is known of them, and their values.
//!
//! 1. **Names** are a map in the order of names: as many as the vault has. The texts of one version
//!    (name, id, version) are one allocation, [`Texts`], which its name and its value share.
//! 2. **Values** are an LRU map by id and version, bounded in bytes ([`Table::usage`] is what they
//!    take with their entries). The value of a version that is no longer current stays until it is
//!    the least recently used.
//! 3. Small values are in an [`Arena`]; larger ones, which dwarf any overhead, stay the objects
//!    they came as. A value that an open handle pins lives on through its `Arc` when it leaves
//!    here. Values are wiped when they leave: in the arena at once, larger ones when their last
//!    owner drops them ([`crate::secret::SecretBytes`]).
//!
//! No step but [`Table::retain`] and [`Table::put_back`] visits all names.

mod arena;
#[cfg(test)]
mod tests;
mod texts;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lru::LruCache;

pub use self::arena::Usage;
use self::arena::{Arena, Slot};
use self::texts::{Texts, VersionTexts};
use super::Known;
use crate::vault::{Content, Form, Meta, Object, ObjectId, ObjectName, VersionTag};

/// What a value costs beside its texts and its bytes: its place in both maps, and its record's
/// head.
const OVERHEAD: u64 = 200;
/// What a value that stays an object costs more: its allocations.
const LARGE_OVERHEAD: u64 = 300;

/// What is known of a name besides its texts. Times are numbers, because there may be millions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    /// Nanoseconds since 1970; [`NO_TIME`] if not known.
    updated: i64,
    /// Nanoseconds since the table's beginning, which may be before it.
    as_of: i64,
}

const NO_TIME: i64 = i64::MIN;

#[derive(Debug)]
enum Value {
    Small { at: Slot, form: Form, updated: i64 },
    Large(Arc<Object>),
}

/// The table.
#[derive(Debug)]
pub struct Table {
    base: Instant,
    names: BTreeMap<Texts, Entry>,
    values: LruCache<VersionTexts, Value>,
    arena: Arena,
    bytes: u64,
    capacity: u64,
}

impl Table {
    /// An empty table for at most `capacity` bytes of values; the newest stays whatever its size.
    /// `base` is some moment of the clock that entries are dated by.
    pub fn new(base: Instant, capacity: u64) -> Self {
        Self {
            base,
            names: BTreeMap::new(),
            values: LruCache::unbounded(),
            arena: Arena::default(),
            bytes: 0,
            capacity,
        }
    }

    /// Number of names.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// What is known of a name.
    pub fn get(&self, name: &str) -> Option<Known> {
        let (texts, entry) = self.names.get_key_value(name)?;
        Some(Known {
            id: ObjectId::new(texts.id()),
            version: texts.version().map(VersionTag::new),
            updated_at: time(entry.updated),
            as_of: self.moment(entry.as_of),
        })
    }

    /// As of when a name is known.
    pub fn as_of(&self, name: &str) -> Option<Instant> {
        self.names.get(name).map(|entry| self.moment(entry.as_of))
    }

    /// Learns what a name is; true if it was not known before. A value of another version stays as
    /// that of an old one.
    pub fn insert(&mut self, name: &ObjectName, known: &Known) -> bool {
        let new = self.entry_of(known);
        let id = known.id.as_str();
        let version = known.version.as_ref().map(VersionTag::as_str);
        let before = self.names.get_key_value(name.as_str());
        let is_same = before.is_some_and(|(texts, _)| texts.id() == id && texts.version() == version);
        if is_same && let Some(entry) = self.names.get_mut(name.as_str()) {
            *entry = new;
        } else {
            let was_known = self.names.remove(name.as_str()).is_some();
            self.names.insert(Texts::new(name.as_str(), id, version), new);
            return !was_known;
        }
        if let Some(version) = version {
            self.drop_value_of_another_time(id, version, new.updated);
        }
        false
    }

    /// Learns what a name is, if it was not known before; false if it was.
    pub fn enter(&mut self, name: &ObjectName, known: &Known) -> bool {
        !self.names.contains_key(name.as_str()) && self.insert(name, known)
    }

    /// Takes a name out; true if it was there. Its value, if there is one, stays as that of an old
    /// version.
    pub fn remove(&mut self, name: &str) -> bool {
        self.names.remove(name).is_some()
    }

    /// Keeps the names that are known as of `asked` or later; those that go.
    pub fn retain(&mut self, asked: Instant) -> Vec<ObjectName> {
        let asked = self.since_base(asked);
        let mut gone = Vec::new();
        self.names.retain(|texts, entry| {
            let stays = entry.as_of >= asked;
            if !stays {
                gone.extend(ObjectName::new(texts.name()));
            }
            stays
        });
        gone
    }

    /// Dates all that is known back by `by`.
    pub fn put_back(&mut self, by: Duration) {
        let by = nanos(by);
        self.names.values_mut().for_each(|entry| entry.as_of = entry.as_of.saturating_sub(by));
    }

    /// All names from `start` on, in order.
    pub fn names_from(&self, start: &str) -> impl Iterator<Item = ObjectName> + '_ {
        self.texts_from(start).filter_map(|texts| ObjectName::new(texts.name()))
    }

    /// Whether a name begins with `prefix`. No name is made for the answer.
    pub fn has_under(&self, prefix: &str) -> bool {
        self.texts_from(prefix).next().is_some_and(|texts| texts.name().starts_with(prefix))
    }

    fn texts_from<'a>(&'a self, start: &str) -> impl Iterator<Item = &'a Texts> + use<'a> {
        use std::ops::Bound::{Included, Unbounded};
        self.names.range::<str, _>((Included(start), Unbounded)).map(|(texts, _)| texts)
    }

    /// The value of a version, if it is here; counts as a use.
    pub fn value(&mut self, id: &ObjectId, version: &VersionTag) -> Option<Arc<Object>> {
        let key = VersionTexts(Texts::new("", id.as_str(), Some(version.as_str())));
        self.values.promote(&key);
        let (VersionTexts(texts), value) = self.values.peek_mru().filter(|(found, _)| **found == key)?;
        let (at, form, updated) = match value {
            Value::Small { at, form, updated } => (*at, *form, *updated),
            Value::Large(object) => return Some(Arc::clone(object)),
        };
        let meta = Meta {
            id: id.clone(),
            name: ObjectName::new(texts.name())?,
            version: version.clone(),
            updated_at: time(updated).unwrap_or(UNIX_EPOCH),
        };
        Some(Arc::new(Object { meta, content: Content { form, ..Content::plain(self.arena.get(at)) } }))
    }

    /// Takes a value in and lets the oldest go.
    pub fn put_value(&mut self, object: &Arc<Object>) {
        let Meta { id, name, version, updated_at } = &object.meta;
        self.drop_version(id, version);
        let (id, version) = (id.as_str(), Some(version.as_str()));
        let current = self.names.get_key_value(name.as_str()).map(|(texts, _)| texts);
        let current = current.filter(|texts| texts.id() == id && texts.version() == version).cloned();
        let texts = current.unwrap_or_else(|| Texts::new(name.as_str(), id, version));
        let value = match self.arena.put(object.content.bytes.expose()) {
            Some(at) => {
                Value::Small { at, form: object.content.form, updated: since_1970(Some(*updated_at)) }
            }
            None => Value::Large(Arc::clone(object)),
        };
        self.bytes += self.cost(&texts, &value);
        self.values.put(VersionTexts(texts), value);
        while self.bytes > self.capacity
            && self.values.len() > 1
            && let Some((VersionTexts(texts), value)) = self.values.pop_lru()
        {
            self.release(&texts, value);
        }
    }

    /// Lets the value of a version go.
    pub fn drop_version(&mut self, id: &ObjectId, version: &VersionTag) {
        self.drop_value(VersionTexts(Texts::new("", id.as_str(), Some(version.as_str()))));
    }

    /// Lets all values go.
    pub fn clear_values(&mut self) {
        self.values = LruCache::unbounded();
        (self.arena, self.bytes) = (Arena::default(), 0);
    }

    /// Number of values, and the bytes that they take with their entries.
    pub fn usage(&self) -> (usize, u64) {
        (self.values.len(), self.bytes)
    }

    /// Memory of small values.
    pub fn arena(&self) -> Usage {
        self.arena.usage()
    }

    /// The vault went back, and forward another way: the same version is not the same bytes.
    fn drop_value_of_another_time(&mut self, id: &str, version: &str, updated: i64) {
        let key = VersionTexts(Texts::new("", id, Some(version)));
        let then = match self.values.peek(&key) {
            Some(Value::Small { updated, .. }) => *updated,
            Some(Value::Large(object)) => since_1970(Some(object.meta.updated_at)),
            None => return,
        };
        if updated != NO_TIME && then != NO_TIME && then != updated {
            self.drop_value(key);
        }
    }

    fn drop_value(&mut self, key: VersionTexts) {
        if let Some((VersionTexts(texts), value)) = self.values.pop_entry(&key) {
            self.release(&texts, value);
        }
    }

    /// Wipes a value that is in the map no more.
    fn release(&mut self, texts: &Texts, value: Value) {
        self.bytes -= self.cost(texts, &value);
        if let Value::Small { at, .. } = value {
            self.arena.free(at);
        }
        if self.values.is_empty() {
            // The map keeps the room that it once had.
            self.clear_values();
        }
    }

    fn cost(&self, texts: &Texts, value: &Value) -> u64 {
        let bytes = match value {
            Value::Small { at, .. } => self.arena.get(*at).len() as u64,
            Value::Large(object) => object.content.bytes.len() as u64 + LARGE_OVERHEAD,
        };
        bytes + texts.len() as u64 + OVERHEAD
    }

    fn entry_of(&self, known: &Known) -> Entry {
        Entry { updated: since_1970(known.updated_at), as_of: self.since_base(known.as_of) }
    }

    fn since_base(&self, at: Instant) -> i64 {
        match at.checked_duration_since(self.base) {
            Some(after) => nanos(after),
            None => -nanos(self.base.saturating_duration_since(at)),
        }
    }

    fn moment(&self, since: i64) -> Instant {
        let distance = Duration::from_nanos(since.unsigned_abs());
        let moment =
            if since < 0 { self.base.checked_sub(distance) } else { self.base.checked_add(distance) };
        moment.unwrap_or(self.base)
    }
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

fn since_1970(at: Option<SystemTime>) -> i64 {
    let signed = |at: SystemTime| match at.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).ok(),
        Err(before) => i64::try_from(before.duration().as_nanos()).ok().map(|n| -n),
    };
    at.and_then(signed).unwrap_or(NO_TIME)
}

fn time(nanos: i64) -> Option<SystemTime> {
    let distance = Duration::from_nanos(nanos.unsigned_abs());
    match nanos {
        NO_TIME => None,
        0.. => UNIX_EPOCH.checked_add(distance),
        _ => UNIX_EPOCH.checked_sub(distance),
    }
}
