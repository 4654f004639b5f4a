//! Changes made elsewhere: found by comparing each answer with what was known before it.
//!
//! A change is noted once, whether a tick of the refresher, a listing or a read shows it, because
//! the comparison is made where the answer enters the index. Our own changes enter separately and
//! are not noted. Nothing is noted before [`Cache::track_changes`].

use std::time::{Instant, SystemTime};

use super::lag::Verdict;
use super::{Cache, CacheState, Knowledge};
use crate::vault::{Meta, ObjectName, Summary, VersionTag};

/// What happened to a name elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is new.
    Created,
    /// It has another version, or is another object.
    Changed,
    /// It is gone.
    Deleted,
}

/// A change that was made elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The object's name.
    pub name: ObjectName,
    /// The version it has now, where the news says so: listings of kv do not.
    pub version: Option<VersionTag>,
    /// When that was made, where the news says so.
    pub made: Option<SystemTime>,
    /// When the answer that shows it was asked for.
    pub asked: Instant,
    /// What happened.
    pub kind: ChangeKind,
}

impl CacheState {
    /// Lines of a listing that was begun at `asked`, and arrived now.
    pub(super) fn ingest(&mut self, items: &[Summary], asked: Instant, now: Instant) {
        for item in items {
            match self.lag.presence(item, asked, now, false) {
                Verdict::Accepted => {}
                Verdict::Instead(newest) => {
                    self.index.listed(&newest, asked);
                    continue;
                }
                Verdict::Gone | Verdict::Retry => continue,
            }
            if self.index.enters(item, asked) {
                // Before all names were known, an unknown name meant nothing.
                let news = self.index.complete_as_listed().map(|_| ChangeKind::Created);
                self.note_change(&item.name, (item.version.clone(), item.updated_at), news, asked);
                continue;
            }
            let news =
                self.index.news_of(&item.name, &item.id, item.version.as_ref(), item.updated_at, asked);
            self.note_change(&item.name, (item.version.clone(), item.updated_at), news, asked);
            self.index.listed(item, asked);
        }
    }

    /// A read that was sent at `asked`.
    pub(super) fn ingest_read(&mut self, meta: &Meta, asked: Instant) {
        let at = Some(meta.updated_at);
        let news = self.index.news_of(&meta.name, &meta.id, Some(&meta.version), at, asked);
        self.note_change(&meta.name, (Some(meta.version.clone()), at), news, asked);
        self.index.found(meta, asked);
    }

    /// A read that was sent at `asked` found nothing.
    pub(super) fn ingest_absence(&mut self, name: &ObjectName, asked: Instant) {
        let news = self.index.loses(name, asked).then_some(ChangeKind::Deleted);
        self.note_change(name, (None, None), news, asked);
        self.index.missing(name, asked);
    }

    /// A listing that was begun at `asked` has ended.
    pub(super) fn end_listing(&mut self, asked: Instant, pages: usize) {
        let mut kept = Vec::new();
        for name in self.lag.names() {
            let Knowledge::Exists(known) = self.index.knowledge(&name) else { continue };
            if !self.index.lacks(&name, asked) {
                continue;
            }
            match self.lag.absence(&name, asked, false) {
                Verdict::Accepted => continue,
                Verdict::Instead(_) | Verdict::Gone => {}
                // Not freshly known either.
                Verdict::Retry => kept.push((name.clone(), known.as_of)),
            }
            self.index.hold(&name, asked);
        }
        for name in self.index.listing_ended(asked, pages) {
            self.note_change(&name, (None, None), Some(ChangeKind::Deleted), asked);
        }
        for (name, as_of) in kept {
            self.index.hold(&name, as_of);
        }
    }

    fn note_change(
        &mut self,
        name: &ObjectName,
        (version, made): (Option<VersionTag>, Option<SystemTime>),
        news: Option<ChangeKind>,
        asked: Instant,
    ) {
        if let (Some(changes), Some(kind)) = (&mut self.changes, news) {
            changes.push(Change { name: name.clone(), version, made, asked, kind });
        }
    }
}

impl Cache {
    /// From now on changes are noted, for [`Cache::take_changes`].
    pub fn track_changes(&self) {
        self.state().changes.get_or_insert_default();
    }

    /// Whether it was made here after all: a listing may show a change before the answer to it has
    /// come.
    pub fn is_own(&self, change: &Change) -> bool {
        self.state().lag.made(change)
    }

    /// The changes noted since the last call, in the order in which they were seen.
    pub fn take_changes(&self) -> Vec<Change> {
        self.state().changes.as_mut().map(std::mem::take).unwrap_or_default()
    }
}
