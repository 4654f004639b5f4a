//! The names in a directory as readers see them: each name once, in a stable order.
//!
//! 1. A reader resumes at the position (`cookie`) of the last name it got. A name keeps its
//!    position as long as a reader may resume: a newer listing takes over the positions of the
//!    previous one and appends new names. No remaining name is skipped or repeated, with concurrent
//!    readers, and without handles.
//! 2. A listing of many pages is shown while it grows, in the order of the vault's pages.
//! 3. Listings are large. They are dropped some time after their last use; a reader that resumes
//!    later still finds its place if no name has changed.
//! 4. What readers were given is journaled for a successor, in parts: each part once, however often
//!    a listing grows.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::fs::types::attr::FileKind;
use crate::fs::types::errno::{Errno, Result};

/// One entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    /// Its file name.
    pub name: String,
    /// What it is.
    pub kind: FileKind,
    /// Its inode number, if the kernel was given one.
    pub ino: Option<u64>,
    /// Its position, from 1 on.
    pub cookie: u64,
}

impl DirEntry {
    /// An entry without a position.
    pub fn new(name: impl Into<String>, kind: FileKind, ino: Option<u64>) -> Self {
        Self { name: name.into(), kind, ino, cookie: 0 }
    }
}

#[derive(Debug, Clone, Copy)]
enum Progress {
    Growing,
    /// The state of a dead worker: its readers' positions are valid, and more names follow.
    CutOff,
    Done,
    Failed(Errno),
}

#[derive(Debug)]
struct ListingState {
    /// Ascending by cookie.
    entries: Vec<DirEntry>,
    last: u64,
    progress: Progress,
    /// The last position that a reader was given.
    shown: u64,
    noted: Noted,
    /// A newer listing is journaled instead.
    given_way: bool,
    /// Readers that wait for more.
    waiting: usize,
    /// A reader timed out, and reported the failure.
    reported: bool,
}

/// What is journaled of a listing.
#[derive(Debug, Clone, Copy, Default)]
struct Noted {
    /// So many entries, the first ones, unchanged.
    entries: usize,
    /// The number of parts; parts that do not count are rewritten.
    parts: u32,
    /// The listing was journaled as complete.
    whole: bool,
}

/// What is to be journaled of a changed listing.
#[derive(Debug)]
pub struct Note<'a> {
    /// The number of the part for the new entries.
    pub part: u32,
    /// The new entries.
    pub entries: &'a [DirEntry],
    /// Parts that do not count any more.
    pub obsolete: Range<u32>,
    /// What there is now.
    pub head: Head,
}

/// The journal's record of a listing, beside its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The number of parts.
    pub parts: u32,
    /// The last position.
    pub last: u64,
    /// Whether it is complete.
    pub whole: bool,
}

/// The entries of a directory, including `.` and `..`. Only the journal is locked under the lock.
#[derive(Debug)]
pub struct Listing {
    state: Mutex<ListingState>,
    changed: Notify,
}

impl Listing {
    fn with(entries: Vec<DirEntry>, last: u64, progress: Progress) -> Arc<Self> {
        let state = ListingState {
            entries,
            last,
            progress,
            shown: 0,
            noted: Noted::default(),
            given_way: false,
            waiting: 0,
            reported: false,
        };
        Arc::new(Self { state: Mutex::new(state), changed: Notify::new() })
    }

    /// A complete listing.
    pub fn whole(entries: Vec<DirEntry>) -> Arc<Self> {
        let (entries, last) = renew(&[], 0, entries);
        Self::with(entries, last, Progress::Done)
    }

    /// A listing that begins with these and grows.
    pub fn growing(entries: Vec<DirEntry>) -> Arc<Self> {
        let (entries, last) = renew(&[], 0, entries);
        Self::with(entries, last, Progress::Growing)
    }

    /// The state of a dead worker, complete or not.
    pub fn restored(entries: Vec<DirEntry>, head: Head) -> Arc<Self> {
        let progress = if head.whole { Progress::Done } else { Progress::CutOff };
        let noted = Noted { entries: entries.len(), parts: head.parts, whole: head.whole };
        let listing = Self::with(entries, head.last, progress);
        listing.state.lock().noted = noted;
        listing
    }

    /// Its names may not be shown without a new request. One that grows ends with its own answer.
    pub fn take_away(&self) {
        let mut state = self.state.lock();
        if matches!(state.progress, Progress::Done) {
            state.progress = Progress::CutOff;
        }
    }

    /// Whether a reader has to wait for a new request.
    pub fn is_cut_off(&self) -> bool {
        matches!(self.state.lock().progress, Progress::CutOff)
    }

    /// Has `write` journal what is missing. Concurrent calls are ordered.
    pub fn note(&self, write: impl FnOnce(Note<'_>)) {
        let mut state = self.state.lock();
        let whole = matches!(state.progress, Progress::Done);
        let before = state.noted;
        if state.given_way || before.entries == state.entries.len() && before.whole == whole {
            return;
        }
        let part = if before.entries == 0 { 0 } else { before.parts };
        let parts = part + 1;
        let head = Head { parts, last: state.last, whole };
        let entries = &state.entries[before.entries..];
        write(Note { part, entries, obsolete: parts..before.parts.max(parts), head });
        state.noted = Noted { entries: state.entries.len(), parts, whole };
    }

    /// The number of journaled parts.
    pub fn noted_parts(&self) -> u32 {
        self.state.lock().noted.parts
    }

    /// Replaces another listing of the same directory, which is not journaled any more: its
    /// readers' positions are valid in this one, and its unchanged parts count for this one.
    pub fn take_the_place_of(&self, before: &Self) {
        if !std::ptr::eq(self, before) {
            let (mut before, mut now) = (before.state.lock(), self.state.lock());
            before.given_way = true;
            now.noted = before.still_noted(&now.entries);
        }
    }

    /// A newer one of the same directory.
    pub fn succeeded_by(&self, entries: Vec<DirEntry>) -> Arc<Self> {
        let state = self.state.lock();
        let (entries, last) = renew(&state.entries, state.last, entries);
        drop(state);
        Self::with(entries, last, Progress::Done)
    }

    /// Whether more names follow.
    pub fn is_growing(&self) -> bool {
        matches!(self.state.lock().progress, Progress::Growing)
    }

    /// Whether a reader at this position can be answered, and how; `None` while unknown.
    pub fn ready(&self, after: u64) -> Option<Result<()>> {
        self.state.lock().ready(after)
    }

    /// Waits until [`Listing::ready`].
    pub async fn wait(&self, after: u64) -> Result<()> {
        loop {
            // Registered before the check, so that no change between check and wait is missed.
            let changed = self.changed.notified();
            if let Some(ready) = self.ready(after) {
                return ready;
            }
            changed.await;
        }
    }

    /// The same with a timeout; `None` after it, which the caller has to report.
    pub async fn wait_for(&self, after: u64, patience: Duration) -> Option<Result<()>> {
        self.state.lock().waiting += 1;
        let waited = timeout(patience, self.wait(after)).await.ok();
        self.state.lock().waiting -= 1;
        waited.or_else(|| self.given_up(after))
    }

    fn given_up(&self, after: u64) -> Option<Result<()>> {
        // Both may end at one moment: the reader after the listing.
        let mut state = self.state.lock();
        let ready = state.ready(after);
        state.reported |= ready.is_none();
        ready
    }

    /// Passes the entries after a position to `take`, until it has no room for one.
    pub fn visit(&self, after: u64, mut take: impl FnMut(&DirEntry) -> bool) {
        let mut state = self.state.lock();
        let mut shown = state.shown;
        for entry in &state.entries[state.first_after(after)..] {
            if take(entry) {
                break;
            }
            shown = shown.max(entry.cookie);
        }
        state.shown = shown;
    }

    /// The same without a reader: nothing counts as shown.
    pub fn peek(&self, after: u64, take: impl FnMut(&DirEntry) -> bool) {
        let state = self.state.lock();
        let _ = state.entries[state.first_after(after)..].iter().any(take);
    }

    /// The position of a name: searched among the next `near` entries after a position, then, if
    /// there are at most `few`, among all.
    pub fn position(&self, name: &str, after: u64, near: usize, few: usize) -> Option<u64> {
        let state = self.state.lock();
        let behind = &state.entries[state.first_after(after)..];
        let all = if state.entries.len() <= few { &state.entries[..] } else { &[] };
        let found = behind.iter().take(near).chain(all).find(|entry| entry.name == name);
        found.map(|entry| entry.cookie)
    }

    /// The entries after a position.
    pub fn after(&self, after: u64) -> Vec<DirEntry> {
        let mut entries = Vec::new();
        self.visit(after, |entry| {
            entries.push(entry.clone());
            false
        });
        entries
    }

    /// Adds names; some may be repeated with another kind. `positions`: the index of each name.
    pub fn grow(&self, found: Vec<DirEntry>, positions: &mut HashMap<String, usize>) {
        let mut state = self.state.lock();
        for mut entry in found {
            match positions.get(&entry.name) {
                Some(at) if state.entries[*at].kind != entry.kind => {
                    state.entries[*at].kind = entry.kind;
                    if *at < state.noted.entries {
                        state.noted.entries = 0;
                    }
                }
                Some(_) => {}
                None => {
                    state.last += 1;
                    entry.cookie = state.last;
                    positions.insert(entry.name.clone(), state.entries.len());
                    state.entries.push(entry);
                }
            }
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Whether a reader was given this entry, by its index, as a file.
    pub fn is_shown_file(&self, at: usize) -> bool {
        let state = self.state.lock();
        let entry = state.entries.get(at);
        entry.is_some_and(|entry| entry.cookie <= state.shown && entry.kind != FileKind::Directory)
    }

    /// All names are known. Returns whether a name that a reader was given is missing.
    pub fn finish(&self, entries: Vec<DirEntry>) -> bool {
        let mut state = self.state.lock();
        let before = state.shown_count();
        let (entries, last) = renew(&state.entries, state.last, entries);
        state.noted = state.still_noted(&entries);
        (state.entries, state.last) = (entries, last);
        state.progress = Progress::Done;
        let after = state.shown_count();
        drop(state);
        self.changed.notify_waiters();
        after < before
    }

    /// No more names follow. `report` gets whether the failure is new (it is not if all waiting
    /// readers had timed out), and ends before any reader has the errno.
    pub fn fail(&self, errno: Errno, report: impl FnOnce(bool)) {
        let mut state = self.state.lock();
        report(state.waiting > 0 || !state.reported);
        state.progress = Progress::Failed(errno);
        drop(state);
        self.changed.notify_waiters();
    }
}

impl ListingState {
    fn ready(&self, after: u64) -> Option<Result<()>> {
        let first = self.first_after(after);
        // The dots alone are no answer to a new reader.
        let more = self.entries.len() > first && (after > 0 || self.entries.len() > 2);
        match self.progress {
            Progress::Failed(errno) if !more => Some(Err(errno)),
            Progress::Growing if !more => None,
            Progress::Growing | Progress::CutOff | Progress::Done | Progress::Failed(_) => Some(Ok(())),
        }
    }

    fn first_after(&self, after: u64) -> usize {
        self.entries.partition_point(|entry| entry.cookie <= after)
    }

    fn shown_count(&self) -> usize {
        self.first_after(self.shown)
    }

    /// The journaled parts that stay valid for `entries`.
    fn still_noted(&self, entries: &[DirEntry]) -> Noted {
        let noted = self.noted.entries;
        let same = |(a, b): (&DirEntry, &DirEntry)| a.cookie == b.cookie && a.kind == b.kind;
        let all_same = entries.len() >= noted && self.entries[..noted].iter().zip(entries).all(same);
        Noted { entries: if all_same { noted } else { 0 }, ..self.noted }
    }
}

/// Gives `entries` their positions: the previous ones, or new ones after `last`.
fn renew(before: &[DirEntry], last: u64, mut entries: Vec<DirEntry>) -> (Vec<DirEntry>, u64) {
    let mut known: Vec<(&str, u64)> =
        before.iter().map(|entry| (entry.name.as_str(), entry.cookie)).collect();
    // Both are nearly in the order of their names: the next entry is mostly the one.
    known.sort_unstable();
    let (mut last, mut next) = (last, 0);
    for entry in &mut entries {
        let name = entry.name.as_str();
        if known.get(next).is_none_or(|(other, _)| *other != name) {
            next = known.partition_point(|(other, _)| *other < name);
        }
        entry.cookie = match known.get(next) {
            Some((other, cookie)) if *other == name => {
                next += 1;
                *cookie
            }
            _ => {
                last += 1;
                last
            }
        };
    }
    entries.sort_unstable_by_key(|entry| entry.cookie);
    (entries, last)
}

#[cfg(test)]
mod tests;
