//! What became of a save of which no answer was heard: the one rule, for lost answers, deaths, upgrades and retries alike.
//!
//! 1. Before an attempt is sent it is written down what it is sent after ([`Sent`]). The note goes with the answer, or
//!    where the attempt surely changed nothing.
//! 2. A later try of the same bytes looks among the versions since ([`Outcome`]): made is stored, whoever saved after it;
//!    not made is sent; what cannot be told is a conflict, never a second update.
//! 3. A creation carries a key, the same in each attempt: a vault that honours such keys knows it again, and tells that
//!    it made the object, and whether that was deleted since. Any other vault is asked in vain.
//! 4. Where the vault checks versions each update names the one that it follows: just the next one can be it, and a
//!    request that arrives after the look is refused once another one was made.

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

/// An attempt that is out, or may have been made unheard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// The name that it stores under: a rename stores under another one than the file's.
    pub name: ObjectName,
    /// The buffer's generation.
    pub generation: u64,
    /// What it follows.
    pub after: After,
}

/// What an attempt follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum After {
    /// Nothing: it makes the object, and the vault may know it by this key.
    Nothing(Option<IdempotencyKey>),
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
    /// Nobody can say; what the name is now.
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

/// What is said of a save whose outcome nobody can tell.
pub(in crate::fs) fn unknown() -> Error {
    Error::new(
        ErrorKind::VersionMismatch,
        "no answer told whether this save was made, and the object was changed elsewhere since; the bytes are kept \
         (vaultfs pending): compare before you store them again",
    )
}

/// What is said of a save whose object somebody deleted before its answer was heard.
pub(in crate::fs) fn deleted() -> Error {
    Error::new(
        ErrorKind::MadeAndDeleted,
        "this save was made, and its object was deleted elsewhere before an answer was heard; the bytes are kept \
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

    /// No attempt for that name is in doubt any more.
    pub(in crate::fs) fn forget_sent(&mut self, name: &ObjectName) {
        self.sent.retain(|sent| sent.name != *name);
    }
}

impl FileSystem {
    /// What became of an attempt to store `content`; without one, what the name is now.
    pub(in crate::fs) async fn outcome_of(
        &self,
        job: &Job,
        after: Option<&After>,
        content: &Content,
        call: &Call,
    ) -> Result<Outcome, Error> {
        let outcome = self.outcome_by_versions(job, after, content, call).await?;
        let (
            Some(After::Nothing(idempotency_key @ Some(_))),
            Outcome::NotMade(Some(now)) | Outcome::Unknown(Some(now)),
        ) = (after, &outcome)
        else {
            return Ok(outcome);
        };
        // The name is taken: sent once more, it makes nothing, and a vault that knows it says what it made.
        match self
            .cache
            .vault()
            .create(&Call { idempotency_key: *idempotency_key, ..*call }, &job.name, content)
            .await
        {
            Ok(meta) if meta.id == now.id => {
                let object = Arc::new(Object { meta, content: content.clone() });
                Ok(Outcome::Made(Saved { object, superseded: true }))
            }
            // What had the name is gone meanwhile.
            Ok(meta) => Ok(Outcome::Made(Saved::current(self.cache.stored(meta, content.clone())))),
            Err(e) if e.kind == ErrorKind::MadeAndDeleted => Ok(Outcome::Deleted(now.clone())),
            Err(e) if is_outage(e.kind) => Err(e),
            Err(_) => Ok(outcome),
        }
    }

    /// The same, as far as the object and its versions tell it.
    async fn outcome_by_versions(
        &self,
        job: &Job,
        after: Option<&After>,
        content: &Content,
        call: &Call,
    ) -> Result<Outcome, Error> {
        let asked = self.clock.now();
        let current = match self.cache.vault().get_by_name(call, &job.name).await {
            Ok(object) if object.content.bytes == content.bytes => {
                return Ok(Outcome::Made(Saved::current(self.cache.stored(object.meta, object.content))));
            }
            Ok(object) => self.cache.ingest_object(object, asked),
            Err(e) if e.kind == ErrorKind::NotFound => {
                return Ok(match after {
                    Some(After::Any(..) | After::Just(..)) => Outcome::Unknown(None),
                    Some(After::Nothing(_)) | None => Outcome::NotMade(None),
                });
            }
            Err(e) => return Err(e),
        };
        let now = &current.meta;
        match after {
            None => return Ok(Outcome::NotMade(Some(now.clone()))),
            Some(After::Any(id, _) | After::Just(id, _)) if *id != now.id => {
                return Ok(Outcome::Unknown(Some(now.clone())));
            }
            Some(After::Any(_, version) | After::Just(_, version)) if *version == now.version => {
                return Ok(Outcome::NotMade(Some(now.clone())));
            }
            Some(_) => {}
        }
        let history = match self.cache.vault().versions(call, &now.id).await {
            Ok(history) => history,
            Err(e) if is_outage(e.kind) => return Err(e),
            Err(_) => return Ok(Outcome::Unknown(Some(now.clone()))),
        };
        match after.and_then(|after| candidates(&history, after, now)) {
            Some(candidates) => self.search_versions(candidates, now, content, call).await,
            None => Ok(Outcome::Unknown(Some(now.clone()))),
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
        let can_read = self.cache.vault().capabilities().old_values;
        let mut unknown = false;
        for info in candidates.into_iter().filter(|info| info.size.is_none_or(|listed| listed == size)) {
            let found = match self.cache.value_in_memory(&now.id, &info.tag) {
                _ if can_read => self.cache.old_value(call, &now.id, info).await,
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

/// The superseded versions that an attempt can be; `None` where the history does not have what it was sent after. The
/// newest first: what is looked for was made a moment ago.
fn candidates<'h>(history: &'h [VersionInfo], after: &After, now: &Meta) -> Option<Vec<&'h VersionInfo>> {
    let behind = |version: &VersionTag| Some(history.iter().position(|info| info.tag == *version)? + 1);
    let (first, only_next) = match after {
        After::Nothing(_) => (0, true),
        After::Any(_, version) => (behind(version)?, false),
        After::Just(_, version) => (behind(version)?, true),
    };
    let last = if only_next { history.len().min(first + 1) } else { history.len() };
    Some(history[first..last].iter().rev().filter(|info| info.tag != now.version).collect())
}

impl After {
    /// The key of a creation that goes on after that attempt.
    pub(in crate::fs) fn idempotency_key(sent: Option<&Self>) -> Option<IdempotencyKey> {
        match sent {
            Some(Self::Nothing(idempotency_key)) => *idempotency_key,
            _ => IdempotencyKey::random(),
        }
    }

    /// The same, over whatever came since.
    pub(in crate::fs) fn unchecked(self) -> Self {
        match self {
            Self::Just(id, version) => Self::Any(id, version),
            other => other,
        }
    }
}
