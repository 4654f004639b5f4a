//! The name index: what we believe exists, as of when.
//!
//! Three sources feed it: listings (all names, no values), single reads, and our own changes. An
//! answer that was asked for before one of our own changes to the same name is older than that
//! change and is ignored, so a slow listing can never resurrect a deleted name or bring an old
//! version back. Pure state without I/O, time comes in with each call.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use lru::LruCache;

use super::changes::ChangeKind;
use super::table::{Table, Usage};
use crate::vault::cache::refresher::EXISTS;
use crate::vault::{Meta, Object, ObjectId, ObjectName, Summary, VersionTag};

/// Absent names (and prefixes) that are remembered beside a complete listing; the oldest are
/// dropped.
const ABSENT_NAMES: NonZeroUsize = NonZeroUsize::new(65_536).unwrap();

/// What we believe of a name that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its id.
    pub id: ObjectId,
    /// Its version, where the source said so.
    pub version: Option<VersionTag>,
    /// When it last changed, where the source said so.
    pub updated_at: Option<SystemTime>,
    /// The moment as of which this is true: when its request was sent.
    pub as_of: Instant,
}

/// What a look into the index says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Knowledge {
    /// It exists; fresh if `as_of` is recent.
    Exists(Known),
    /// It did not exist at that moment.
    Absent(Instant),
    /// Nothing is known.
    Unknown,
}

/// Whether any name starts with a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrefixState {
    /// At least one name does.
    Yes,
    /// None did at that moment.
    No(Instant),
    /// Not known.
    Unknown,
}

/// The index.
#[derive(Debug)]
pub struct Index {
    names: Table,
    absent: LruCache<ObjectName, Instant>,
    /// Prefixes with which no name began at that moment.
    searched: LruCache<String, Instant>,
    /// Since when all names are known, and of how many pages that listing was.
    complete: Option<(Instant, usize)>,
    /// What was known since the first moment is known to hold as of the second: nothing has changed
    /// in between.
    confirmed: Option<(Instant, Instant)>,
    /// Moves on whenever the set of names changes.
    generation: u64,
}

impl Index {
    /// Knows nothing. `now` is any moment of the clock in use; `capacity` bounds the values, in
    /// bytes.
    pub fn new(now: Instant, capacity: u64) -> Self {
        Self {
            names: Table::new(now, capacity),
            absent: LruCache::new(ABSENT_NAMES),
            searched: LruCache::new(ABSENT_NAMES),
            complete: None,
            confirmed: None,
            generation: 0,
        }
    }

    /// What is believed of `name`.
    pub fn knowledge(&self, name: &ObjectName) -> Knowledge {
        if let Some(known) = self.names.get(name.as_str()) {
            let as_of = self.confirmed(known.as_of).min(known.as_of + EXISTS).max(known.as_of);
            return Knowledge::Exists(Known { as_of, ..known });
        }
        let single = self.absent.peek(name).map(|at| self.confirmed(*at));
        match (single, self.complete()) {
            (Some(at), Some((listed, _))) => Knowledge::Absent(at.max(listed)),
            (Some(at), None) | (None, Some((at, _))) => Knowledge::Absent(at),
            (None, None) => Knowledge::Unknown,
        }
    }

    /// Whether some name starts with `prefix`.
    pub fn prefix_state(&self, prefix: &str) -> PrefixState {
        if self.names.has_under(prefix) {
            return PrefixState::Yes;
        }
        let listed = self.complete().map(|(at, _)| at);
        listed
            .max(self.searched.peek(prefix).map(|at| self.confirmed(*at)))
            .map_or(PrefixState::Unknown, PrefixState::No)
    }

    /// All names from `start` on, in order.
    pub fn names_from(&self, start: &str) -> impl Iterator<Item = ObjectName> + '_ {
        self.names.names_from(start)
    }

    /// The names that start with `prefix` that were observed at `since` or later.
    pub fn names_since(&self, prefix: &str, since: Instant) -> Vec<ObjectName> {
        let names = self.names_from(prefix).take_while(|name| name.as_str().starts_with(prefix));
        names.filter(|name| self.names.as_of(name.as_str()).is_some_and(|at| at >= since)).collect()
    }

    /// Number of names known to exist.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// As of when all names are known, and the number of pages of that listing.
    pub fn complete(&self) -> Option<(Instant, usize)> {
        self.complete.map(|(at, pages)| (self.confirmed(at), pages))
    }

    /// When the last complete listing was begun, and its number of pages.
    pub fn complete_as_listed(&self) -> Option<(Instant, usize)> {
        self.complete
    }

    /// Nothing that was believed since `since` had changed at `asked`, but for deletions.
    pub fn confirm(&mut self, since: Instant, asked: Instant) {
        self.confirmed = Some((since, asked));
    }

    /// As of when knowledge of the moment `at` is known to hold.
    fn confirmed(&self, at: Instant) -> Instant {
        self.confirmed.filter(|(since, _)| *since <= at).map_or(at, |(_, asked)| asked.max(at))
    }

    /// What an answer requested at `asked` shows of an unknown name.
    pub fn news_of(
        &self,
        name: &ObjectName,
        id: &ObjectId,
        version: Option<&VersionTag>,
        updated_at: Option<SystemTime>,
        asked: Instant,
    ) -> Option<ChangeKind> {
        if self.is_older_than_ours(name, asked) {
            return None;
        }
        let Some(known) = self.names.get(name.as_str()) else {
            // Before all names are known, an unknown name means nothing.
            return (self.complete.is_some() || self.absent.contains(name)).then_some(ChangeKind::Created);
        };
        let same_time = match (known.updated_at, updated_at) {
            (Some(known), Some(seen)) => known == seen,
            (_, None) | (None, _) => true,
        };
        let same = match (&known.version, version) {
            (Some(known), Some(seen)) => known == seen && same_time,
            (_, None) | (None, _) => same_time,
        };
        (known.id != *id || !same).then_some(ChangeKind::Changed)
    }

    /// Whether a name that is believed to exist does not, by an answer that was asked for at
    /// `asked`.
    pub fn loses(&self, name: &ObjectName, asked: Instant) -> bool {
        self.names.as_of(name.as_str()).is_some_and(|at| at <= asked)
    }

    /// Whether a listing that was begun at `asked` and has ended has not named this, which is
    /// believed to exist.
    pub fn lacks(&self, name: &ObjectName, asked: Instant) -> bool {
        self.names.as_of(name.as_str()).is_some_and(|at| at < asked)
    }

    /// What is believed of a name that exists is believed as of another moment.
    pub fn hold(&mut self, name: &ObjectName, as_of: Instant) {
        if let Some(known) = self.names.get(name.as_str()) {
            self.names.insert(name, &Known { as_of, ..known });
        }
    }

    /// Moves on whenever the set of names changes.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Ingests an entry of a listing that was begun at `asked`, if its name is known neither to
    /// exist nor to be absent; false if it is.
    pub fn enters(&mut self, item: &Summary, asked: Instant) -> bool {
        let Summary { id, name, updated_at, version } = item;
        if self.absent.contains(name) {
            return false;
        }
        let known = Known { id: id.clone(), version: version.clone(), updated_at: *updated_at, as_of: asked };
        let entered = self.names.enter(name, &known);
        self.generation += u64::from(entered);
        entered
    }

    /// A listing that was begun at `asked` says that this exists.
    pub fn listed(&mut self, item: &Summary, asked: Instant) {
        if self.is_older_than_ours(&item.name, asked) {
            return;
        }
        let known = Known {
            id: item.id.clone(),
            version: item.version.clone().or_else(|| self.unchanged_version(item)),
            updated_at: item.updated_at,
            as_of: asked,
        };
        self.insert(&item.name, &known);
    }

    /// A listing begun at `asked` has ended: what it did not name is gone, and is returned.
    pub fn listing_ended(&mut self, asked: Instant, pages: usize) -> Vec<ObjectName> {
        let gone = self.names.retain(asked);
        if !gone.is_empty() {
            self.generation += 1;
        }
        // A listing may end after one that was begun later.
        if self.complete.is_none_or(|(at, _)| at <= asked) {
            self.complete = Some((asked, pages));
        }
        gone
    }

    /// A search that was begun at `asked` found no name that starts with `prefix`.
    pub fn searched(&mut self, prefix: &str, asked: Instant) {
        self.searched.put(prefix.to_owned(), asked);
    }

    /// A read that was sent at `asked`, or a change of ours that ended then, says that this is
    /// current.
    pub fn found(&mut self, meta: &Meta, asked: Instant) -> bool {
        if self.is_older_than_ours(&meta.name, asked) {
            return false;
        }
        let known = Known {
            id: meta.id.clone(),
            version: Some(meta.version.clone()),
            updated_at: Some(meta.updated_at),
            as_of: asked,
        };
        self.insert(&meta.name, &known);
        true
    }

    /// A read that was sent at `asked`, or a deletion of ours that ended then, says that it is
    /// absent.
    pub fn missing(&mut self, name: &ObjectName, asked: Instant) {
        if self.is_older_than_ours(name, asked) {
            return;
        }
        if self.names.remove(name.as_str()) {
            self.generation += 1;
        }
        self.absent.put(name.clone(), asked);
    }

    /// It exists as far as is known; its version is not known.
    pub fn unknown(&mut self, name: &ObjectName, asked: Instant) {
        let Some(known) = self.names.get(name.as_str()) else { return };
        if let Some(version) = &known.version {
            self.names.drop_version(&known.id, version);
        }
        self.names.insert(name, &Known { version: None, updated_at: None, as_of: asked, ..known });
    }

    /// Forgets that anything is known to be recent; names stay as hints.
    pub fn expire(&mut self, long_ago: Duration) {
        self.names.put_back(long_ago);
        self.absent.clear();
        self.searched.clear();
        (self.complete, self.confirmed) = (None, None);
    }

    /// The value of a version, if it is in memory; counts as a use.
    pub fn value(&mut self, id: &ObjectId, version: &VersionTag) -> Option<Arc<Object>> {
        self.names.value(id, version)
    }

    /// Keeps a value, and lets the least recently used go beyond the capacity.
    pub fn put_value(&mut self, object: &Arc<Object>) {
        self.names.put_value(object);
    }

    /// Lets all values go.
    pub fn clear_values(&mut self) {
        self.names.clear_values();
    }

    /// Number of values, and the bytes that they take, overhead included.
    pub fn usage(&self) -> (usize, u64) {
        self.names.usage()
    }

    /// Memory of small values: how much of it there is, and how much is locked.
    pub fn arena(&self) -> Usage {
        self.names.arena()
    }

    fn insert(&mut self, name: &ObjectName, known: &Known) {
        self.absent.pop(name);
        if self.names.insert(name, known) {
            self.generation += 1;
        }
    }

    /// Listings of kv name no version: one that has not changed since is the one we know.
    fn unchanged_version(&self, item: &Summary) -> Option<VersionTag> {
        let known = self.names.get(item.name.as_str()).filter(|known| known.id == item.id)?;
        let same = item.updated_at.is_some() && known.updated_at == item.updated_at;
        known.version.clone().filter(|_| same)
    }

    fn is_older_than_ours(&self, name: &ObjectName, asked: Instant) -> bool {
        let as_of = self.names.as_of(name.as_str()).or_else(|| self.absent.peek(name).copied());
        as_of.is_some_and(|at| at > asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(s: &str) -> ObjectName {
        ObjectName::new(s).unwrap()
    }

    fn meta(n: &str, version: &str) -> Meta {
        Meta {
            id: ObjectId::new("id"),
            name: name(n),
            version: VersionTag::new(version),
            updated_at: SystemTime::UNIX_EPOCH,
        }
    }

    fn summary(n: &str) -> Summary {
        Summary { id: ObjectId::new("id"), name: name(n), updated_at: None, version: None }
    }

    #[test]
    fn a_slow_listing_neither_resurrects_nor_removes_what_we_changed_meanwhile() {
        let t0 = Instant::now();
        let later = t0 + Duration::from_secs(1);
        let mut index = Index::new(t0, 1 << 20);
        index.found(&meta("gone", "1"), t0);
        index.missing(&name("gone"), later);
        index.found(&meta("new", "1"), later);
        index.listed(&summary("gone"), t0);
        index.listing_ended(t0, 1);
        assert_eq!(index.knowledge(&name("gone")), Knowledge::Absent(later));
        assert!(matches!(index.knowledge(&name("new")), Knowledge::Exists(_)));
    }

    #[test]
    fn absence_is_known_only_from_a_complete_listing_or_a_read() {
        let t0 = Instant::now();
        let mut index = Index::new(t0, 1 << 20);
        assert_eq!(index.knowledge(&name("a")), Knowledge::Unknown);
        assert_eq!(index.prefix_state("a/"), PrefixState::Unknown);
        index.listed(&summary("a/b"), t0);
        assert_eq!(index.prefix_state("a/"), PrefixState::Yes);
        assert_eq!(index.knowledge(&name("a")), Knowledge::Unknown);
        index.listing_ended(t0, 1);
        assert_eq!(index.knowledge(&name("a")), Knowledge::Absent(t0));
        assert_eq!(index.prefix_state("c/"), PrefixState::No(t0));
        let later = t0 + Duration::from_secs(1);
        index.searched("c/", later);
        index.searched("a/", later);
        assert_eq!(index.prefix_state("c/"), PrefixState::No(later));
        assert_eq!(
            index.prefix_state("a/"),
            PrefixState::Yes,
            "what we know of outlives a search that missed it"
        );
    }

    #[test]
    fn an_old_read_does_not_undo_our_write() {
        let t0 = Instant::now();
        let mut index = Index::new(t0, 1 << 20);
        index.found(&meta("a", "2"), t0 + Duration::from_secs(1));
        assert!(!index.found(&meta("a", "1"), t0));
        let Knowledge::Exists(known) = index.knowledge(&name("a")) else { panic!("it exists") };
        assert_eq!(known.version, Some(VersionTag::new("2")));
    }
}
