//! Read your writes, over a vault with reads that lag behind its writes by seconds (replicas).
//!
//! 1. **Remembered** for [`WINDOW`]: changes made here, and versions seen here shortly after they
//!    were made elsewhere. Versions of one object are ordered by the vault's times.
//! 2. **An older version** than the remembered one is rejected: the remembered one replaces it, and
//!    the vault counts as lagging for [`KNOWN`].
//! 3. **An absence** of what was created here, or a presence of what was deleted here, is lag or a
//!    change made elsewhere: the query is repeated after [`AGAIN`], and the second answer is
//!    accepted. Of a lagging vault neither is accepted within the window, nor is the absence of any
//!    other remembered object.
//! 4. **A change without an answer** may have been made: within the window no answer of a lagging
//!    vault is accepted that shows nothing newer than was known before.
//! 5. **After the window** every answer is accepted: the vault may have been restored from a
//!    backup.
//!
//! Each answer is checked once: reads of one object in `revocation`, lines of listings in
//! `changes`. Pure state without I/O; the time is an argument.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::vault::cache::changes::{Change, ChangeKind};
use crate::vault::{Meta, ObjectId, ObjectName, Summary, VersionTag};

/// Upper bound of a vault's lag.
pub(super) const WINDOW: Duration = Duration::from_secs(15);

/// Pause before a contradicting answer is asked for again.
pub(super) const AGAIN: Duration = Duration::from_secs(1);

/// How long a vault counts as lagging after it lagged.
const KNOWN: Duration = Duration::from_secs(600);

/// A clock that goes back so far was set back; those of replicas differ by less.
const PUT_BACK: Duration = Duration::from_secs(60);

/// Remembered objects at a time; the oldest are forgotten first.
const MOST: usize = 4096;

/// Versions made here that are distinguished although the vault gave them one time.
const MOST_EARLIER: usize = 32;

/// What to do with an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Use the answer.
    Accepted,
    /// Use this version.
    Instead(Summary),
    /// The object is gone.
    Gone,
    /// Ask again.
    Retry,
}

/// The state of an answer that contradicted what is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    /// It is to be asked for again.
    Open(Instant),
    /// It was confirmed.
    Confirmed,
}

#[derive(Debug)]
struct LagEntry {
    /// The newest known version; `None` if the object was deleted.
    newest: Option<Summary>,
    name: Option<ObjectName>,
    /// Earlier versions made here, with their times.
    earlier: Vec<(VersionTag, SystemTime)>,
    /// It was stored or deleted here.
    is_ours: bool,
    /// It was created here: some answers may lack it.
    created: bool,
    /// Answers requested before that may be older.
    at: Instant,
    question: Option<Question>,
}

impl LagEntry {
    /// The newest version, if `item` is an older one.
    fn newer_than(&self, item: &Summary) -> Option<&Summary> {
        let made = item.updated_at?;
        let is_same =
            |version: Option<&VersionTag>| item.version.is_none() || item.version.as_ref() == version;
        self.newest.as_ref().filter(|newest| match newest.updated_at {
            Some(at) if made == at && is_same(newest.version.as_ref()) => false,
            Some(at) => made < at || self.earlier.iter().any(|(v, at)| made == *at && is_same(Some(v))),
            None => false,
        })
    }
}

/// The subject of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Changed {
    Id(ObjectId),
    Name(ObjectName),
}

/// What a successor has to know of a vault that lags. Versions that the kernel shows it knows
/// anyway.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LagMemory {
    /// When an answer last showed it.
    seen: SystemTime,
    /// What was deleted here, and when, the oldest first.
    gone: Vec<(SystemTime, ObjectId, ObjectName)>,
}

/// What is remembered.
#[derive(Debug, Default)]
pub(super) struct Lag {
    entries: HashMap<ObjectId, LagEntry>,
    names: HashMap<ObjectName, ObjectId>,
    /// By time; entries that were remembered anew since are skipped.
    order: VecDeque<(Instant, ObjectId)>,
    /// The versions that were made here, by time.
    made: VecDeque<(Instant, Meta)>,
    /// Names of what was deleted here, by time.
    removed: VecDeque<(Instant, ObjectName)>,
    /// Changes without an answer, and when they were sent.
    unanswered: Vec<(Changed, Instant)>,
    /// When an answer last showed lag.
    seen: Option<Instant>,
    /// By the vault's clock: changes made in this time may be missing in some answers.
    recent: Option<Range<SystemTime>>,
}

impl Lag {
    /// By the vault's clock, changes made in this time may be missing in some answers.
    pub fn set_recent(&mut self, times: Range<SystemTime>) {
        if self.recent.as_ref().is_some_and(|before| times.start + PUT_BACK < before.start) {
            // Later changes made elsewhere are not older than what they made before.
            self.entries.retain(|_, entry| entry.is_ours);
            self.names.retain(|_, id| self.entries.contains_key(id));
        }
        self.recent = Some(times);
    }

    /// Whether a change made then may be missing in some answers.
    pub fn is_recent(&self, made: SystemTime) -> bool {
        self.recent.as_ref().is_some_and(|times| times.contains(&made))
    }

    /// This was stored here, and acknowledged at `now`. `created`: the name was free before.
    pub fn stored(&mut self, meta: &Meta, created: bool, now: Instant) {
        while self.made.len() >= MOST || self.made.front().is_some_and(|(at, _)| *at + WINDOW <= now) {
            self.made.pop_front();
        }
        self.made.push_back((now, meta.clone()));
        // The answer to a repeated creation is the first one's.
        if created && self.entries.get(&meta.id).is_some_and(|before| before.newest.is_some()) {
            return;
        }
        let mut earlier = Vec::new();
        let mut created = created;
        if let Some(before) = self.entries.get_mut(&meta.id) {
            earlier = std::mem::take(&mut before.earlier);
            earlier.extend(before.newest.take().and_then(|newest| newest.version.zip(newest.updated_at)));
            earlier.retain(|(version, _)| *version != meta.version);
            earlier.drain(..earlier.len().saturating_sub(MOST_EARLIER));
            created |= before.created;
        }
        let newest = Summary {
            id: meta.id.clone(),
            name: meta.name.clone(),
            updated_at: Some(meta.updated_at),
            version: Some(meta.version.clone()),
        };
        let name = Some(meta.name.clone());
        self.remember(
            &meta.id,
            LagEntry { newest: Some(newest), name, earlier, is_ours: true, created, at: now, question: None },
        );
    }

    /// The answer to an update that may have been made before, and overtaken since.
    pub fn stored_again(&mut self, meta: &Meta, now: Instant) {
        let is_overtaken = |known: &LagEntry| {
            let newest =
                known.newest.as_ref().and_then(|newest| newest.version.as_ref().zip(newest.updated_at));
            known.earlier.iter().any(|(version, at)| *version == meta.version && *at == meta.updated_at)
                || newest.is_some_and(|(tag, at)| tag.is_later(at, (&meta.version, meta.updated_at)))
        };
        if !self.entries.get(&meta.id).is_some_and(is_overtaken) {
            self.stored(meta, false, now);
        }
    }

    /// The object was deleted here; acknowledged at `now`.
    pub fn deleted(&mut self, id: &ObjectId, now: Instant) {
        let name = self.entries.get(id).and_then(|before| before.name.clone());
        let (newest, earlier) = (None, Vec::new());
        self.remember(
            id,
            LagEntry { newest, name, earlier, is_ours: true, created: false, at: now, question: None },
        );
    }

    /// Whether this change was made here, and is remembered.
    pub fn made(&self, change: &Change) -> bool {
        if change.kind == ChangeKind::Deleted {
            return self.removed.iter().any(|(at, name)| *at >= change.asked && *name == change.name);
        }
        self.made.iter().any(|(_, meta)| {
            meta.name == change.name
                && match &change.version {
                    // Another object of the name may count its versions from 1, too.
                    Some(version) => {
                        *version == meta.version && change.made.is_none_or(|at| at == meta.updated_at)
                    }
                    None => change.made == Some(meta.updated_at),
                }
        })
    }

    /// The object of that name was deleted here.
    pub fn removed(&mut self, name: &ObjectName, now: Instant) {
        while self.removed.len() >= MOST || self.removed.front().is_some_and(|(at, _)| *at + WINDOW <= now) {
            self.removed.pop_front();
        }
        self.removed.push_back((now, name.clone()));
    }

    /// The name of an object that was deleted here.
    pub fn deleted_name(&mut self, name: &ObjectName, id: &ObjectId) {
        if let Some(entry) = self.entries.get_mut(id).filter(|entry| entry.newest.is_none()) {
            entry.name = Some(name.clone());
            self.names.insert(name.clone(), id.clone());
        }
    }

    /// An accepted answer, which arrived at `answered`, shows this version. An older answer to a
    /// request that was sent before then is no lag: the two may have been answered out of order.
    fn observe(&mut self, item: &Summary, answered: Instant) {
        if let Some(entry) = self.entries.get_mut(&item.id) {
            if entry.newest.as_ref().is_some_and(|newest| newest.updated_at < item.updated_at) {
                // Made elsewhere after it.
                (entry.newest, entry.at) = (Some(item.clone()), answered);
                self.order.push_back((answered, item.id.clone()));
            }
            return;
        }
        if item.updated_at.is_some_and(|made| self.is_recent(made)) && self.entries.len() < MOST {
            let (newest, name) = (Some(item.clone()), Some(item.name.clone()));
            let entry = LagEntry {
                newest,
                name,
                earlier: Vec::new(),
                is_ours: false,
                created: false,
                at: answered,
                question: None,
            };
            self.remember(&item.id, entry);
        }
    }

    fn remember(&mut self, id: &ObjectId, entry: LagEntry) {
        while self.entries.len() >= MOST && !self.entries.contains_key(id) && self.forget_first() {}
        self.order.push_back((entry.at, id.clone()));
        if let Some(name) = &entry.name {
            self.names.insert(name.clone(), id.clone());
        }
        self.entries.insert(id.clone(), entry);
    }

    /// Forgets changes with a window that has passed at `now`.
    fn forget(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(at, _)| *at + WINDOW <= now) {
            self.forget_first();
        }
    }

    /// Forgets the first in the order, if it was not remembered anew since. False if nothing is
    /// left.
    fn forget_first(&mut self) -> bool {
        let Some((at, id)) = self.order.pop_front() else { return false };
        if self.entries.get(&id).is_none_or(|entry| entry.at != at) {
            return true;
        }
        let name = self.entries.remove(&id).and_then(|entry| entry.name);
        if let Some(name) = name.filter(|name| self.names.get(name) == Some(&id)) {
            self.names.remove(&name);
        }
        true
    }

    /// The answer to a change was lost at `now`.
    pub fn note_unanswered(&mut self, of: Changed, now: Instant) {
        self.resolve_unanswered(&of);
        if self.unanswered.len() >= MOST {
            self.unanswered.remove(0);
        }
        self.unanswered.push((of, now));
    }

    /// A later change of the same subject was acknowledged.
    pub fn resolve_unanswered(&mut self, of: &Changed) {
        self.unanswered.retain(|(other, _)| other != of);
    }

    /// Whether an answer requested at `asked` may be too old to show a change of it.
    pub fn is_unanswered(&mut self, of: &Changed, asked: Instant) -> bool {
        self.unanswered.retain(|(_, at)| *at + WINDOW > asked);
        self.is_known(asked) && self.unanswered.iter().any(|(other, _)| other == of)
    }

    /// Whether the vault counts as lagging.
    pub fn is_known(&self, now: Instant) -> bool {
        self.seen.is_some_and(|seen| now.saturating_duration_since(seen) < KNOWN)
    }

    /// When an answer last showed lag, while the vault counts as lagging.
    pub fn last_seen(&self, now: Instant) -> Option<Instant> {
        self.seen.filter(|_| self.is_known(now))
    }

    /// For a successor, while the vault counts as lagging.
    pub fn memory(&self, now: Instant, wall: SystemTime) -> Option<LagMemory> {
        let time = |at: Instant| wall.checked_sub(now.saturating_duration_since(at));
        let gone = self.entries.iter().filter(|(_, entry)| entry.newest.is_none());
        let gone = gone.filter_map(|(id, entry)| Some((time(entry.at)?, id.clone(), entry.name.clone()?)));
        let mut gone: Vec<_> = gone.collect();
        gone.sort_by_key(|(at, ..)| *at);
        Some(LagMemory { seen: time(self.last_seen(now)?)?, gone })
    }

    /// What the predecessor knew.
    pub fn resume(&mut self, memory: LagMemory, now: Instant, wall: SystemTime) {
        let instant = |at: SystemTime| now.checked_sub(wall.duration_since(at).unwrap_or_default());
        self.seen = instant(memory.seen);
        for (at, id, name) in memory.gone {
            let Some(at) = instant(at) else { continue };
            self.deleted(&id, at);
            self.deleted_name(&name, &id);
        }
    }

    fn shows(&mut self, asked: Instant) {
        if !self.is_known(asked) {
            tracing::warn!(
                "the vault's reads lag behind its writes: for {WINDOW:?} after a change it is not believed that \
                 the change was not made"
            );
        }
        self.seen = self.seen.max(Some(asked));
    }

    /// An answer requested at `asked`, which arrived at `answered`, shows this version; `again`:
    /// the query was a repetition.
    pub fn presence(&mut self, item: &Summary, asked: Instant, answered: Instant, again: bool) -> Verdict {
        self.forget(asked);
        let is_gone = self.entries.get(&item.id).is_some_and(|entry| entry.newest.is_none());
        let other = self.names.get(&item.name).filter(|id| **id != item.id);
        let other = other.and_then(|id| self.entries.get(id)?.newest.clone());
        if let Some(other) = other {
            if is_gone {
                return Verdict::Instead(other);
            }
            if item.updated_at.is_some() && item.updated_at < other.updated_at {
                match self.absence(&item.name, asked, again) {
                    Verdict::Accepted => {}
                    verdict => return verdict,
                }
            }
        }
        if is_gone {
            return self.question(&item.id, asked, again, Verdict::Gone);
        }
        let Some(entry) = self.entries.get_mut(&item.id) else {
            self.observe(item, answered);
            return Verdict::Accepted;
        };
        if let Some(newest) = entry.newer_than(item) {
            let newest = newest.clone();
            if asked >= entry.at {
                self.shows(asked);
            }
            return Verdict::Instead(newest);
        }
        if entry.question.take().is_some() {
            // It was absent before.
            self.shows(asked);
        }
        self.observe(item, answered);
        Verdict::Accepted
    }

    /// An answer requested at `asked` shows that there is no such object.
    pub fn absence(&mut self, name: &ObjectName, asked: Instant, again: bool) -> Verdict {
        self.forget(asked);
        let is_known = self.is_known(asked);
        let Some(id) = self.names.get(name).cloned() else { return Verdict::Accepted };
        let Some(entry) = self.entries.get_mut(&id) else { return Verdict::Accepted };
        match entry.newest.clone() {
            None => {
                if entry.question.take().is_some() {
                    // It was there before.
                    self.shows(asked);
                }
                Verdict::Accepted
            }
            Some(newest) if entry.created || is_known => {
                self.question(&id, asked, again, Verdict::Instead(newest))
            }
            Some(_) => Verdict::Accepted,
        }
    }

    /// The same for an id.
    pub fn absence_of(&mut self, id: &ObjectId, asked: Instant, again: bool) -> Verdict {
        match self.entries.get(id).and_then(|entry| entry.name.clone()) {
            Some(name) if self.names.get(&name) == Some(id) => self.absence(&name, asked, again),
            _ => Verdict::Accepted,
        }
    }

    /// The verdict on an answer that contradicts a change made here; `kept` if it is rejected.
    fn question(&mut self, id: &ObjectId, asked: Instant, again: bool, kept: Verdict) -> Verdict {
        let is_known = self.is_known(asked);
        let Some(entry) = self.entries.get_mut(id) else { return Verdict::Accepted };
        if is_known || asked < entry.at {
            return kept;
        }
        match entry.question {
            Some(Question::Confirmed) => Verdict::Accepted,
            Some(Question::Open(at)) if again || asked.saturating_duration_since(at) >= AGAIN => {
                entry.question = Some(Question::Confirmed);
                Verdict::Accepted
            }
            _ => {
                entry.question.get_or_insert(Question::Open(asked));
                Verdict::Retry
            }
        }
    }

    /// The newest version that is remembered of an object.
    pub fn newest(&mut self, id: &ObjectId, asked: Instant) -> Option<Summary> {
        self.forget(asked);
        self.entries.get(id)?.newest.clone()
    }

    /// A history requested at `asked` lacks the newest version.
    pub fn lacks_newest(&mut self, id: &ObjectId, asked: Instant) {
        if self.entries.get(id).is_some_and(|entry| asked >= entry.at) {
            self.shows(asked);
        }
    }

    /// Names to be asked for again.
    pub fn questions(&self) -> Vec<ObjectName> {
        let open = |entry: &&LagEntry| matches!(entry.question, Some(Question::Open(_)));
        self.entries.values().filter(open).filter_map(|entry| entry.name.clone()).collect()
    }

    /// Names that exist as far as is remembered.
    pub fn names(&self) -> Vec<ObjectName> {
        let there = |id: &ObjectId| self.entries.get(id).is_some_and(|entry| entry.newest.is_some());
        self.names.iter().filter(|(_, id)| there(id)).map(|(name, _)| name.clone()).collect()
    }

    /// Names deleted here and not confirmed to exist again.
    pub fn gone(&self) -> HashSet<ObjectName> {
        let gone = |entry: &&LagEntry| entry.newest.is_none() && entry.question != Some(Question::Confirmed);
        let gone = self.entries.iter().filter(|(_, entry)| gone(entry));
        let gone = gone
            .filter_map(|(id, entry)| entry.name.as_ref().filter(|name| self.names.get(*name) == Some(id)));
        gone.cloned().collect()
    }
}

#[cfg(test)]
mod tests;
