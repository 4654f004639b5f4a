//! Names, what is known of them, and their values, in about 230 bytes for a secret of 100.
//!
//! 1. One [`Entry`] of fixed size a name. Texts of names are in a [`Pool`], ids and versions are [`Packed`], small
//!    values in an [`Arena`]; larger ones, whose size dwarfs any overhead, stay the objects they came as. What goes
//!    in and comes out are the vault's own types: nobody outside knows how it is kept.
//! 2. An entry that is *listed* is what its name means now. One that is not is an old version that still has its
//!    value. Names are found by hash, walked in order; values are found by hash of id and version.
//! 3. Values are bounded in bytes ([`Table::usage`] is what they and their entries take); the least recently used
//!    leaves first. Names are as many as the vault has.
//!
//! No step but [`Table::retain`] and [`Table::put_back`] visits all names.

mod arena;
mod order;
mod packed;
mod pool;
#[cfg(test)]
mod tests;
mod values;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hashbrown::HashTable;

pub use self::arena::Usage;
use self::arena::{Arena, Slot};
use self::order::{Order, Place};
use self::packed::{Key, Packed, Prefixes};
use self::pool::{Pool, Text};
use super::Known;
use crate::vault::{Object, ObjectId, ObjectName, VersionTag};

/// No entry.
const NONE: u32 = u32::MAX;
/// Entries that are allocated at once.
const BLOCK: usize = 1024;

/// Where an entry's value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ValueAt(u32);

impl ValueAt {
    const NOWHERE: Self = Self(u32::MAX);
    /// Among the large ones, under the entry's number.
    const LARGE: Self = Self(u32::MAX - 1);

    fn slot(self) -> Option<Slot> {
        (self != Self::NOWHERE && self != Self::LARGE).then_some(Slot(self.0))
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Nanoseconds since 1970; [`NO_TIME`] if not known.
    updated: [u32; 2],
    /// Nanoseconds since the table's beginning, which may be before it.
    as_of: [u32; 2],
    name: Text,
    value: ValueAt,
    /// Towards the more recently used, in the circle of those that have a value.
    newer: u32,
    older: u32,
    id: Packed,
    version: Packed,
    listed: bool,
    structured: bool,
}

const NO_TIME: i64 = i64::MIN;

/// Halved, so that an entry needs no padding.
fn halves(n: i64) -> [u32; 2] {
    [(n as u64 >> 32) as u32, n as u32]
}

fn whole([high, low]: [u32; 2]) -> i64 {
    (u64::from(high) << 32 | u64::from(low)) as i64
}

/// The table.
#[derive(Debug)]
pub struct Table {
    base: Instant,
    hasher: RandomState,
    blocks: Vec<Vec<Entry>>,
    free: Vec<u32>,
    pool: Pool,
    prefixes: Prefixes,
    /// Listed entries by the hash of their names.
    by_name: HashTable<u32>,
    /// Listed entries in the order of their names.
    order: Order,
    /// Entries with a value, by the hash of id and version.
    by_version: HashTable<u32>,
    arena: Arena,
    large: HashMap<u32, Arc<Object>>,
    /// The most recently used entry with a value.
    newest: u32,
    bytes: u64,
    capacity: u64,
}

impl Table {
    /// An empty table whose values take at most `capacity` bytes; the newest stays whatever its size. `base` is some
    /// moment of the clock that entries are dated by.
    pub fn new(base: Instant, capacity: u64) -> Self {
        Self {
            base,
            hasher: RandomState::new(),
            blocks: Vec::new(),
            free: Vec::new(),
            pool: Pool::default(),
            prefixes: Prefixes::default(),
            by_name: HashTable::new(),
            order: Order::default(),
            by_version: HashTable::new(),
            arena: Arena::default(),
            large: HashMap::new(),
            newest: NONE,
            bytes: 0,
            capacity,
        }
    }

    /// Number of names.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// What is known of a name.
    pub fn get(&self, name: &str) -> Option<Known> {
        self.find(name).map(|number| self.known(number))
    }

    /// As of when a name is known.
    pub fn as_of(&self, name: &str) -> Option<Instant> {
        self.find(name).map(|number| self.moment(whole(self.entry(number).as_of)))
    }

    /// Learns what a name is; true if it was not known before.
    pub fn insert(&mut self, name: &ObjectName, known: &Known) -> bool {
        if self.enter(name, known) {
            return true;
        }
        if let Some(number) = self.find(name.as_str()) {
            self.renew(number, known);
        }
        false
    }

    /// Learns what a name is, if it was not known before; false if it was, or if there is no room for it.
    pub fn enter(&mut self, name: &ObjectName, known: &Known) -> bool {
        let hash = self.hasher.hash_one(name.as_str().as_bytes());
        if self.find_hashed(hash, name.as_str()).is_some() {
            return false;
        }
        let Some(packed) = self.pack(known) else { return false };
        let Some(text) = self.pool.put(name.as_str()) else { return false };
        let (updated, as_of) = (self.time_of(known.updated_at), halves(self.since_base(known.as_of)));
        let number = self.add(Entry {
            updated,
            as_of,
            name: text,
            value: ValueAt::NOWHERE,
            newer: NONE,
            older: NONE,
            id: packed.0,
            version: packed.1,
            listed: true,
            structured: false,
        });
        let (blocks, pool, hasher) = (&self.blocks, &self.pool, &self.hasher);
        let name_of = |n: u32| pool.bytes(entry(blocks, n).name);
        self.by_name.insert_unique(hash, number, |n| hasher.hash_one(name_of(*n)));
        self.order.insert(number, |n| name_of(n).cmp(name.as_str().as_bytes()));
        true
    }

    /// Takes a name out; true if it was there. Its value, if there is one, stays as that of an old version.
    pub fn remove(&mut self, name: &str) -> bool {
        let Some(number) = self.find(name) else { return false };
        let (blocks, pool) = (&self.blocks, &self.pool);
        self.order.remove(|n| pool.bytes(entry(blocks, n).name).cmp(name.as_bytes()));
        self.unlist(number);
        self.tidy();
        true
    }

    /// Keeps the names that are known as of `asked` or later; those that go.
    pub fn retain(&mut self, asked: Instant) -> Vec<ObjectName> {
        let asked = self.since_base(asked);
        let blocks = &self.blocks;
        let gone = self.by_name.iter().filter(|n| whole(entry(blocks, **n).as_of) < asked);
        let gone: Vec<u32> = gone.copied().collect();
        if gone.is_empty() {
            return Vec::new();
        }
        let names = gone.iter().map(|number| self.name(*number)).collect();
        self.order.retain(|n| whole(entry(blocks, n).as_of) >= asked);
        gone.into_iter().for_each(|number| self.unlist(number));
        self.tidy();
        names
    }

    /// Dates all that is known back by `by`.
    pub fn put_back(&mut self, by: Duration) {
        let by = i64::try_from(by.as_nanos()).unwrap_or(i64::MAX);
        for entry in self.blocks.iter_mut().flatten() {
            entry.as_of = halves(whole(entry.as_of).saturating_sub(by));
        }
    }

    /// All names from `start` on, in order.
    pub fn names_from(&self, start: &str) -> impl Iterator<Item = ObjectName> + '_ {
        let place = self.place_of(start);
        self.order.from(place).map(|n| self.name(n))
    }

    /// Whether a name begins with `prefix`. No name is made for the answer.
    pub fn has_under(&self, prefix: &str) -> bool {
        let first = self.order.from(self.place_of(prefix)).next();
        first.is_some_and(|n| self.pool.bytes(self.entry(n).name).starts_with(prefix.as_bytes()))
    }

    fn place_of(&self, start: &str) -> Place {
        self.order.first_not_before(&mut |n| self.pool.bytes(self.entry(n).name).cmp(start.as_bytes()))
    }

    fn find(&self, name: &str) -> Option<u32> {
        self.find_hashed(self.hasher.hash_one(name.as_bytes()), name)
    }

    fn find_hashed(&self, hash: u64, name: &str) -> Option<u32> {
        self.by_name.find(hash, |n| self.pool.bytes(self.entry(*n).name) == name.as_bytes()).copied()
    }

    fn name(&self, number: u32) -> ObjectName {
        ObjectName::new(self.pool.text(self.entry(number).name)).expect("it was a name when it came")
    }

    fn id(&self, number: u32) -> ObjectId {
        ObjectId::new(self.entry(number).id.text(&self.prefixes, &self.pool).unwrap_or_default())
    }

    fn version(&self, number: u32) -> Option<VersionTag> {
        self.entry(number).version.text(&self.prefixes, &self.pool).map(VersionTag::new)
    }

    fn known(&self, number: u32) -> Known {
        let entry = self.entry(number);
        Known {
            id: self.id(number),
            version: self.version(number),
            updated_at: time(whole(entry.updated)),
            as_of: self.moment(whole(entry.as_of)),
        }
    }

    /// The name is known anew. A value of another version stays as that of an old one.
    fn renew(&mut self, number: u32, known: &Known) {
        let same = {
            let entry = self.entry(number);
            let version = known.version.as_ref().map(|v| self.prefixes.key(v.as_str()));
            entry.id.key(&self.pool) == self.prefixes.key(known.id.as_str())
                && version == entry.version.is_something().then(|| entry.version.key(&self.pool))
        };
        if !same {
            let Some((id, version)) = self.pack(known) else { return };
            if self.entry(number).value == ValueAt::NOWHERE {
                self.drop_texts(number, false);
            } else {
                self.split_off(number);
            }
            let entry = self.entry_mut(number);
            (entry.id, entry.version) = (id, version);
        }
        let (updated, as_of) = (self.time_of(known.updated_at), halves(self.since_base(known.as_of)));
        let Entry { updated: before, value, .. } = *self.entry(number);
        let told_both = known.updated_at.is_some() && before != self.time_of(None);
        if same && told_both && before != updated && value != ValueAt::NOWHERE {
            // The vault went back, and forward another way: the same version is not the same bytes.
            self.drop_value(number);
        }
        let entry = self.entry_mut(number);
        (entry.updated, entry.as_of) = (updated, as_of);
        self.tidy();
    }

    fn pack(&mut self, known: &Known) -> Option<(Packed, Packed)> {
        let id = Packed::new(known.id.as_str(), &mut self.prefixes, &mut self.pool)?;
        let version = match &known.version {
            Some(version) => Packed::new(version.as_str(), &mut self.prefixes, &mut self.pool)?,
            None => Packed::NOTHING,
        };
        Some((id, version))
    }

    /// The name, which is out of the order already, is not what this entry is any more.
    fn unlist(&mut self, number: u32) {
        let hash = self.hasher.hash_one(self.pool.bytes(self.entry(number).name));
        if let Ok(found) = self.by_name.find_entry(hash, |n| *n == number) {
            found.remove();
        }
        self.entry_mut(number).listed = false;
        if self.entry(number).value == ValueAt::NOWHERE {
            self.give_up(number);
        }
    }

    fn add(&mut self, new: Entry) -> u32 {
        if let Some(number) = self.free.pop() {
            *self.entry_mut(number) = new;
            return number;
        }
        if self.blocks.last().is_none_or(|block| block.len() == BLOCK) {
            self.blocks.push(Vec::with_capacity(BLOCK));
        }
        let block = self.blocks.len() - 1;
        self.blocks[block].push(new);
        (block * BLOCK + self.blocks[block].len() - 1) as u32
    }

    /// Lets an entry go that is neither listed nor has a value.
    fn give_up(&mut self, number: u32) {
        self.drop_texts(number, true);
        self.free.push(number);
        if self.free.len() == self.blocks.iter().map(Vec::len).sum::<usize>() {
            // Nothing is left: nor need be its memory.
            self.blocks = Vec::new();
            self.free = Vec::new();
            self.pool = Pool::default();
            self.by_name = HashTable::new();
            self.by_version = HashTable::new();
            self.order = Order::default();
        }
    }

    fn drop_texts(&mut self, number: u32, name: bool) {
        let Entry { id, version, name: text, .. } = *self.entry(number);
        for text in [id.pooled(), version.pooled(), name.then_some(text)].into_iter().flatten() {
            self.pool.drop_text(text);
        }
    }

    fn entry(&self, number: u32) -> &Entry {
        entry(&self.blocks, number)
    }

    fn entry_mut(&mut self, number: u32) -> &mut Entry {
        &mut self.blocks[number as usize / BLOCK][number as usize % BLOCK]
    }

    fn since_base(&self, at: Instant) -> i64 {
        let nanos = |d: Duration| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX);
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

    fn time_of(&self, at: Option<SystemTime>) -> [u32; 2] {
        let nanos = |at: SystemTime| match at.duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_nanos()).ok(),
            Err(before) => i64::try_from(before.duration().as_nanos()).ok().map(|n| -n),
        };
        halves(at.and_then(nanos).unwrap_or(NO_TIME))
    }

    /// What outlived its use is given back: texts that nobody refers to, holes among the values.
    fn tidy(&mut self) {
        if self.pool.is_wasteful() {
            self.rebuild_pool();
        }
        self.tidy_values();
    }

    fn rebuild_pool(&mut self) {
        let old = std::mem::take(&mut self.pool);
        let free: std::collections::HashSet<u32> = self.free.iter().copied().collect();
        for (block, entries) in self.blocks.iter_mut().enumerate() {
            for (at, entry) in entries.iter_mut().enumerate() {
                if free.contains(&((block * BLOCK + at) as u32)) {
                    continue;
                }
                let pool = &mut self.pool;
                entry.name = pool.copy(&old, entry.name);
                entry.id.move_text(&mut |text| pool.copy(&old, text));
                entry.version.move_text(&mut |text| pool.copy(&old, text));
            }
        }
    }
}

fn entry(blocks: &[Vec<Entry>], number: u32) -> &Entry {
    &blocks[number as usize / BLOCK][number as usize % BLOCK]
}

fn time(nanos: i64) -> Option<SystemTime> {
    let distance = Duration::from_nanos(nanos.unsigned_abs());
    match nanos {
        NO_TIME => None,
        0.. => UNIX_EPOCH.checked_add(distance),
        _ => UNIX_EPOCH.checked_sub(distance),
    }
}
