//! The outcome of a save without an answer: one rule for lost answers, deaths, upgrades and
//! retries.
//!
//! 1. Before an attempt is sent it is written down what it is sent after ([`Sent`]). The note goes
//!    with the answer, or where the attempt surely changed nothing.
//! 2. A later try of the same bytes looks among the versions since ([`Outcome`]): made counts as
//!    stored, whatever was saved after it; not made is sent; an unknown outcome is a conflict,
//!    never a second update.
//! 3. Each attempt carries a key, the same for the same bytes: a vault that honours such keys makes
//!    them once, however often and however late they come, and returns what it made, and for a
//!    creation whether the object was deleted since. It is asked before its versions are. Any other
//!    vault is asked in vain.
//! 4. Where the vault checks versions each update names the one that it follows: just the next one
//!    can be it, and a request that arrives after the look is refused once another one was made.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::fs::FileSystem;
use crate::fs::inode::file::FileState;
use crate::fs::writeback::commit::Job;
use crate::vault::cache::is_outage;
use crate::vault::{
    Call, Content, Error, ErrorKind, IdempotencyKey, Meta, Object, ObjectId, ObjectName, VersionInfo,
    VersionTag,
};

/// An attempt that is in flight, or has lost its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// The name that it stores under: a rename stores under another one than the file's.
    pub name: ObjectName,
    /// The buffer's generation.
    pub generation: u64,
    /// What it follows.
    pub after: After,
    /// What the vault may know it by.
    pub key: Option<IdempotencyKey>,
}

impl Sent {
    /// The key of an attempt that goes on after that one.
    pub(in crate::fs) fn key_after(sent: Option<&Self>) -> Option<IdempotencyKey> {
        sent.map_or_else(IdempotencyKey::random, |sent| sent.key)
    }
}

/// What an attempt follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum After {
    /// Nothing: it makes the object.
    Nothing,
    /// This version of the object, or any later one.
    Any(ObjectId, VersionTag),
    /// Just this version: the vault checks.
    Just(ObjectId, VersionTag),
}

/// What became of an attempt.
#[derive(Debug)]
pub(in crate::fs) enum Outcome {
    /// The vault has the bytes.
    Made(Saved),
    /// It was not made; what the name is now.
    NotMade(Option<Meta>),
    /// It made an object, which was deleted since, and the name is another's now.
    Deleted(Meta),
    /// Unknown; what the name is now.
    Unknown(Option<Meta>),
}

/// A save that the vault has.
#[derive(Debug)]
pub(in crate::fs) struct Saved {
    /// The version.
    pub object: Arc<Object>,
    /// Somebody else's is newer.
    pub superseded: bool,
}

impl Saved {
    pub fn current(object: Arc<Object>) -> Self {
        Self { object, superseded: false }
    }
}

/// The error of a save with an unknown outcome.
pub(in crate::fs) fn unknown() -> Error {
    Error::new(
        ErrorKind::VersionMismatch,
        "no answer shows whether this save was made, and the object was changed elsewhere since; the bytes are kept \
         (vaultfs pending): compare before you store them again",
    )
}

/// The error of a save after which the object was deleted, before the answer arrived.
pub(in crate::fs) fn deleted() -> Error {
    Error::new(
        ErrorKind::MadeAndDeleted,
        "this save was made, and its object was deleted elsewhere before an answer arrived; the bytes are kept \
         (vaultfs pending): store them again, or discard them",
    )
}

impl FileState {
    /// The attempt to store these bytes under this name that may have been made.
    pub(in crate::fs) fn sent(&self, name: &ObjectName) -> Option<&Sent> {
        let generation = self.buffer.as_ref()?.generation;
        self.sent.iter().find(|sent| sent.name == *name && sent.generation == generation)
    }

    /// An attempt goes out.
    pub(in crate::fs) fn note_sent(&mut self, sent: Sent) {
        self.forget_sent(&sent.name);
        self.sent.push(sent);
    }

    /// The outcome of all attempts for that name is known.
    pub(in crate::fs) fn forget_sent(&mut self, name: &ObjectName) {
        self.sent.retain(|sent| sent.name != *name);
    }
}

impl FileSystem {
    /// What became of an attempt to store `content`; without one, what the name is now.
    pub(in crate::fs) async fn outcome_of(
        &self,
        job: &Job,
        sent: Option<&Sent>,
        content: &Content,
        call: &Call,
    ) -> Result<Outcome, Error> {
        let asked = self.env.now();
        let after = sent.map(|sent| &sent.after);
        let current = match self.env.cache().vault().get_by_name(call, &job.name).await {
            Ok(object) if object.content.bytes == content.bytes => {
                return Ok(Outcome::Made(Saved::current(
                    self.env.cache().stored(object.meta, object.content),
                )));
            }
            Ok(object) => self.env.cache().ingest_object(object, asked),
            Err(e) if e.kind == ErrorKind::NotFound => {
                return Ok(match after {
                    Some(After::Any(..) | After::Just(..)) => Outcome::Unknown(None),
                    Some(After::Nothing) | None => Outcome::NotMade(None),
                });
            }
            Err(e) => return Err(e),
        };
        let now = &current.meta;
        let Some(sent) = sent else { return Ok(Outcome::NotMade(Some(now.clone()))) };
        match &sent.after {
            After::Any(id, _) | After::Just(id, _) if *id != now.id => {
                return Ok(Outcome::Unknown(Some(now.clone())));
            }
            After::Any(_, version) | After::Just(_, version) if *version == now.version => {
                return Ok(Outcome::NotMade(Some(now.clone())));
            }
            After::Any(..) | After::Just(..) | After::Nothing => {}
        }
        if let Some(outcome) = self.outcome_by_key(job, sent, now, content, call).await? {
            return Ok(outcome);
        }
        let history = match self.env.cache().vault().versions(call, &now.id).await {
            Ok(history) => history,
            Err(e) if is_outage(e.kind) => return Err(e),
            Err(_) => return Ok(Outcome::Unknown(Some(now.clone()))),
        };
        match candidates(&history, &sent.after, now) {
            Some(candidates) => self.search_versions(candidates, now, content, call).await,
            None => Ok(Outcome::Unknown(Some(now.clone()))),
        }
    }

    /// Sends an attempt once more that makes nothing now: the name is taken, or another version
    /// follows the one that it is to follow. A vault that knows it by its key says what it made.
    async fn outcome_by_key(
        &self,
        job: &Job,
        sent: &Sent,
        now: &Meta,
        content: &Content,
        call: &Call,
    ) -> Result<Option<Outcome>, Error> {
        let (vault, call) = (self.env.cache().vault(), &Call { idempotency_key: sent.key, ..*call });
        let again = match &sent.after {
            _ if sent.key.is_none() => return Ok(None),
            After::Nothing => vault.create(call, &job.name, content).await,
            After::Any(id, version) | After::Just(id, version)
                if self.can_check() && version.is_the_vaults() =>
            {
                vault.update(call, id, content, Some(version)).await
            }
            After::Any(..) | After::Just(..) => return Ok(None),
        };
        match again {
            Ok(meta) if meta.id == now.id => {
                let object = Arc::new(Object { meta, content: content.clone() });
                Ok(Some(Outcome::Made(Saved { object, superseded: true })))
            }
            // What had the name is gone meanwhile.
            Ok(meta) => {
                Ok(Some(Outcome::Made(Saved::current(self.env.cache().stored(meta, content.clone())))))
            }
            Err(e) if e.kind == ErrorKind::MadeAndDeleted => Ok(Some(Outcome::Deleted(now.clone()))),
            Err(e) if is_outage(e.kind) => Err(e),
            Err(_) => Ok(None),
        }
    }

    /// Looks for the bytes among superseded versions.
    async fn search_versions(
        &self,
        candidates: Vec<&VersionInfo>,
        now: &Meta,
        content: &Content,
        call: &Call,
    ) -> Result<Outcome, Error> {
        let size = content.bytes.len() as u64;
        let can_read = self.env.cache().vault().capabilities().old_values;
        let mut unknown = false;
        for info in candidates.into_iter().filter(|info| info.size.is_none_or(|listed| listed == size)) {
            let found = match self.env.cache().value_in_memory(&now.id, &info.tag) {
                _ if can_read => self.env.cache().old_value(call, &now.id, info).await,
                Some(seen) => Ok(seen),
                None => Err(Error::new(ErrorKind::Unsupported, "the vault gives no values of old versions")),
            };
            match found {
                Ok(object) if object.content.bytes == content.bytes => {
                    return Ok(Outcome::Made(Saved { object, superseded: true }));
                }
                Ok(_) => {}
                Err(e) if is_outage(e.kind) => return Err(e),
                Err(_) => unknown = true,
            }
        }
        Ok(if unknown { Outcome::Unknown(Some(now.clone())) } else { Outcome::NotMade(Some(now.clone())) })
    }
}

/// The superseded versions that an attempt can be; `None` where the history does not have what it
/// was sent after. The newest first: what is looked for was made a moment ago.
fn candidates<'h>(history: &'h [VersionInfo], after: &After, now: &Meta) -> Option<Vec<&'h VersionInfo>> {
    let behind = |version: &VersionTag| Some(history.iter().position(|info| info.tag == *version)? + 1);
    let (first, only_next) = match after {
        After::Nothing => (0, true),
        After::Any(_, version) => (behind(version)?, false),
        After::Just(_, version) => (behind(version)?, true),
    };
    let last = if only_next { history.len().min(first + 1) } else { history.len() };
    Some(history[first..last].iter().rev().filter(|info| info.tag != now.version).collect())
}

impl After {
    /// The same, over whatever came since.
    pub(in crate::fs) fn unchecked(self) -> Self {
        match self {
            Self::Just(id, version) => Self::Any(id, version),
            other => other,
        }
    }
}
