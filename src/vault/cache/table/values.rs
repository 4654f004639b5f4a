//! The values in the table: found by id and version, bounded in bytes, the least recently used leaves first.
//!
//! Entries with a value form a circle, from the most recently used to the least. A value that an open handle pins
//! lives on through its `Arc` when it leaves here. Values are wiped when they leave: in the arena at once, larger
//! ones when their last owner drops them ([`crate::secret::SecretBytes`]).

use super::arena::Moved;
use super::*;
use crate::vault::{Content, Form, Meta};

/// What an entry costs beside its texts and its value: itself, its places in hashes and order, the record's head.
pub(super) const OVERHEAD: u64 = size_of::<Entry>() as u64 + 40;
/// What a value that stays an object costs more: its allocations.
const LARGE_OVERHEAD: u64 = 300;

impl Table {
    /// The value of a version, if it is here; counts as a use.
    pub fn value(&mut self, id: &ObjectId, version: &VersionTag) -> Option<Arc<Object>> {
        let number = self.find_version(id.as_str(), version.as_str())?;
        self.unlink(number);
        self.link(number);
        self.object(number)
    }

    /// Takes a value in and lets the oldest go.
    pub fn put_value(&mut self, object: &Arc<Object>) {
        let Meta { id, name, version, updated_at } = &object.meta;
        if let Some(number) = self.find_version(id.as_str(), version.as_str()) {
            self.drop_value(number);
            let updated = self.time_of(Some(*updated_at));
            self.entry_mut(number).updated = updated;
            self.fill(number, object);
        } else if let Some(number) = self.current(name.as_str(), id, version) {
            self.fill(number, object);
        } else {
            let as_of = self.base;
            let known = Known {
                id: id.clone(),
                version: Some(version.clone()),
                updated_at: Some(*updated_at),
                as_of,
            };
            let Some((id, version)) = self.pack(&known) else { return };
            let Some(text) = self.pool.put(name.as_str()) else { return };
            let updated = self.time_of(Some(*updated_at));
            let number = self.add(Entry {
                updated,
                as_of: halves(0),
                name: text,
                value: ValueAt::NOWHERE,
                newer: NONE,
                older: NONE,
                id,
                version,
                listed: false,
                structured: false,
            });
            self.fill(number, object);
        }
        while self.bytes > self.capacity && self.by_version.len() > 1 {
            let oldest = self.entry(self.newest).newer;
            self.evict(oldest);
        }
        self.tidy();
    }

    /// Lets the value of a version go.
    pub fn drop_version(&mut self, id: &ObjectId, version: &VersionTag) {
        if let Some(number) = self.find_version(id.as_str(), version.as_str()) {
            self.evict(number);
        }
    }

    /// Lets all values go.
    pub fn clear_values(&mut self) {
        while self.newest != NONE {
            self.evict(self.newest);
        }
        self.by_version = HashTable::new();
        self.tidy();
    }

    /// Number of values, and the bytes that they take with their entries.
    pub fn usage(&self) -> (usize, u64) {
        (self.by_version.len(), self.bytes)
    }

    /// Memory of small values.
    pub fn arena(&self) -> Usage {
        self.arena.usage()
    }

    fn find_version(&self, id: &str, version: &str) -> Option<u32> {
        let key = (self.prefixes.key(id), self.prefixes.key(version));
        let hash = self.hasher.hash_one(key);
        self.by_version.find(hash, |n| self.version_key(*n) == key).copied()
    }

    fn version_key(&self, number: u32) -> (Key<'_>, Key<'_>) {
        let entry = self.entry(number);
        (entry.id.key(&self.pool), entry.version.key(&self.pool))
    }

    /// The listed entry of `name`, if it is of this version.
    fn current(&self, name: &str, id: &ObjectId, version: &VersionTag) -> Option<u32> {
        let key = (self.prefixes.key(id.as_str()), self.prefixes.key(version.as_str()));
        self.find(name).filter(|number| self.version_key(*number) == key)
    }

    /// Gives an entry that has none its value.
    fn fill(&mut self, number: u32, object: &Arc<Object>) {
        let slot = self.arena.put(number, object.content.bytes.expose());
        let value = match slot {
            Some(Slot(at)) => ValueAt(at),
            None => {
                self.large.insert(number, Arc::clone(object));
                ValueAt::LARGE
            }
        };
        let entry = self.entry_mut(number);
        entry.value = value;
        entry.structured = object.content.form == Form::Structured;
        self.bytes += self.cost(number);
        let hash = self.hasher.hash_one(self.version_key(number));
        let Self { blocks, pool, hasher, by_version, .. } = self;
        by_version.insert_unique(hash, number, |n| {
            let entry = entry_of(blocks, *n);
            hasher.hash_one((entry.id.key(pool), entry.version.key(pool)))
        });
        self.link(number);
    }

    /// Takes the value from an entry that has one.
    pub(super) fn drop_value(&mut self, number: u32) {
        self.unlink(number);
        let hash = self.hasher.hash_one(self.version_key(number));
        if let Ok(found) = self.by_version.find_entry(hash, |n| *n == number) {
            found.remove();
        }
        self.bytes -= self.cost(number);
        match self.entry(number).value.slot() {
            Some(slot) => self.arena.free(slot),
            None => drop(self.large.remove(&number)),
        }
        self.entry_mut(number).value = ValueAt::NOWHERE;
    }

    fn evict(&mut self, number: u32) {
        self.drop_value(number);
        if !self.entry(number).listed {
            self.give_up(number);
        }
    }

    /// Moves id, version and value of a listed entry to one that is not.
    pub(super) fn split_off(&mut self, number: u32) {
        let mut old = *self.entry(number);
        let name = self.pool.text(old.name).to_owned();
        let Some(text) = self.pool.put(&name) else { return self.drop_value(number) };
        (old.name, old.listed) = (text, false);
        let hash = self.hasher.hash_one(self.version_key(number));
        let apart = self.add(old);
        if let Some(place) = self.by_version.find_mut(hash, |n| *n == number) {
            *place = apart;
        }
        match old.value.slot() {
            Some(slot) => self.arena.give_to(slot, apart),
            None => {
                if let Some(object) = self.large.remove(&number) {
                    self.large.insert(apart, object);
                }
            }
        }
        // In the circle it takes the other's place.
        if old.newer == number {
            let only = self.entry_mut(apart);
            (only.newer, only.older) = (apart, apart);
        } else {
            self.entry_mut(old.newer).older = apart;
            self.entry_mut(old.older).newer = apart;
        }
        if self.newest == number {
            self.newest = apart;
        }
        self.entry_mut(number).value = ValueAt::NOWHERE;
    }

    fn object(&self, number: u32) -> Option<Arc<Object>> {
        let entry = self.entry(number);
        let Some(slot) = entry.value.slot() else { return self.large.get(&number).cloned() };
        let form = if entry.structured { Form::Structured } else { Form::Plain };
        let meta = Meta {
            id: self.id(number),
            name: self.name(number),
            version: self.version(number)?,
            updated_at: time(whole(entry.updated)).unwrap_or(UNIX_EPOCH),
        };
        Some(Arc::new(Object { meta, content: Content { form, ..Content::plain(self.arena.get(slot)) } }))
    }

    pub(super) fn cost(&self, number: u32) -> u64 {
        let entry = self.entry(number);
        let value = match entry.value.slot() {
            Some(slot) => self.arena.get(slot).len() as u64,
            None => self.large.get(&number).map_or(0, |o| o.content.bytes.len() as u64) + LARGE_OVERHEAD,
        };
        value + self.pool.bytes(entry.name).len() as u64 + OVERHEAD
    }

    fn link(&mut self, number: u32) {
        let newest = self.newest;
        let (newer, older) = match newest {
            NONE => (number, number),
            _ => (self.entry(newest).newer, newest),
        };
        // `newer` of the newest is the oldest: the circle closes there.
        if newest != NONE {
            self.entry_mut(newer).older = number;
            self.entry_mut(older).newer = number;
        }
        let entry = self.entry_mut(number);
        (entry.newer, entry.older) = (newer, older);
        self.newest = number;
    }

    fn unlink(&mut self, number: u32) {
        let Entry { newer, older, .. } = *self.entry(number);
        if newer == number {
            self.newest = NONE;
            return;
        }
        self.entry_mut(newer).older = older;
        self.entry_mut(older).newer = newer;
        if self.newest == number {
            self.newest = older;
        }
    }

    pub(super) fn tidy_values(&mut self) {
        let mut moved = Vec::new();
        self.arena.tidy(&mut moved);
        for Moved { owner, to: Slot(at) } in moved {
            self.entry_mut(owner).value = ValueAt(at);
        }
    }
}

fn entry_of(blocks: &[Vec<Entry>], number: u32) -> &Entry {
    super::entry(blocks, number)
}
