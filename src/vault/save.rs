//! One save: bytes become a version of an object, made once, whatever happens on the way.
//!
//! The mount and the object commands share it. A caller says what it knows ([`Save`]) and acts on
//! the result; what becomes of a save in doubt is decided here alone, by the rule of
//! docs/SEMANTICS.md.
//!
//! 1. **A save never ends in EEXIST or ENOENT**: a create that meets a name becomes an update, an
//!    update that meets a deleted object looks the name up and updates or creates. Only an
//!    exclusive one ends with a name that is taken.
//! 2. Before an attempt is sent its caller hears what it follows ([`Attempt`]). A later try of the
//!    same bytes looks among the versions since ([`Outcome`]): made counts as stored, whatever was
//!    saved after it; not made is sent; an unknown outcome is a conflict, never a second update.
//! 3. Each attempt carries a key, the same for the same bytes: a vault that honours such keys makes
//!    them once, however often and however late they come, and returns what it made, and for a
//!    creation whether the object was deleted since. One that says for how long it knows keys is
//!    sent the attempt once more, whatever that makes now, and its versions are not asked for. Any
//!    other vault is asked where that can make nothing.
//! 4. Where the vault checks versions each update names the one that it follows: just the next one
//!    can be it, and a request that arrives after the look is refused once another one was made.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::vault::cache::{Cache, is_outage};
use crate::vault::{
    Call, Check, Content, Error, ErrorKind, Form, IdempotencyKey, Meta, Object, ObjectId, ObjectName, Result,
    VersionInfo, VersionTag,
};

/// Attempts of one save: each of them but the first answers a change made elsewhere meanwhile.
const ROUNDS: usize = 16;
/// Failed attempts before the failure is reported.
const FAILING: usize = 4;
/// After this many attempts that another writer forestalled, an update overwrites what came since:
/// checked, it could wait until its deadline for a moment without another writer.
const CHECKED: usize = 4;

/// A version of an object, without its bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stored {
    /// The object.
    pub id: ObjectId,
    /// The version.
    pub version: VersionTag,
    /// How the vault holds it.
    pub form: Form,
    /// Its size in bytes.
    pub size: u64,
    /// When it was made.
    pub updated_at: SystemTime,
}

impl Stored {
    /// Whether an object is this version. Its number is not enough: a restored vault gives it to
    /// other bytes.
    pub fn is(&self, meta: &Meta) -> bool {
        self.id == meta.id && self.version == meta.version && self.updated_at == meta.updated_at
    }

    /// The stored state of an object as it was read or written.
    pub fn of(object: &Object) -> Self {
        Self {
            id: object.meta.id.clone(),
            version: object.meta.version.clone(),
            form: object.content.form,
            size: object.content.bytes.len() as u64,
            updated_at: object.meta.updated_at,
        }
    }
}

/// An attempt that is in flight, or has lost its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// What it follows.
    pub after: After,
    /// What the vault may know it by.
    pub key: Option<IdempotencyKey>,
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

impl After {
    /// The version that it follows.
    fn version(&self) -> Check<'_> {
        match self {
            After::Nothing => None,
            After::Any(_, version) | After::Just(_, version) => Some(version),
        }
    }
}

/// What became of an attempt.
#[derive(Debug)]
pub enum Outcome {
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
pub struct Saved {
    /// The version.
    pub object: Arc<Object>,
    /// Somebody else's is newer.
    pub superseded: bool,
}

impl Saved {
    /// The newest version.
    pub fn current(object: Arc<Object>) -> Self {
        Self { object, superseded: false }
    }
}

/// What a save may do about changes made elsewhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Conditions {
    /// A new object that finds its name taken is an error.
    pub exclusive: bool,
    /// Only while the vault still has the base.
    pub guarded: bool,
    /// A person wants these bytes, whatever became of an attempt before.
    pub insists: bool,
}

/// Hears of each attempt, before it is sent and with its answer.
pub type Progress<'a> = &'a (dyn Fn(&Attempt, Option<&Result<Meta>>) + Sync);

/// A save, as far as its caller knows it.
#[derive(Debug)]
pub struct Save<'a> {
    /// Over the vault.
    pub cache: &'a Cache,
    /// Its bounds.
    pub call: &'a Call,
    /// The object's name.
    pub name: &'a ObjectName,
    /// The bytes.
    pub content: &'a Content,
    /// What the bytes are a change of: an update of that object, or a new one.
    pub base: Option<&'a Stored>,
    /// An attempt to store these bytes that may have been made.
    pub sent: Option<&'a Attempt>,
    /// What it may do.
    pub conditions: Conditions,
}

/// The vault keeps names of deleted objects for a while, or takes another name for this one.
const NOT_FREE: &str = "the name is not free yet: the vault has no such object and refuses the name as taken; a later try \
                        may store it";

/// What comes next: it is stored, or is sent.
type Next = ControlFlow<Saved, After>;

/// The vault has moved on from what the bytes are a change of.
fn superseded() -> Error {
    Error::new(
        ErrorKind::VersionMismatch,
        "the object was changed elsewhere since it was opened; the bytes written here are kept (vaultfs status)",
    )
}

/// The outcome of an attempt is unknown.
fn unknown() -> Error {
    Error::new(
        ErrorKind::VersionMismatch,
        "no answer shows whether this save was made, and the object was changed elsewhere since: compare before you store \
         the bytes again (a mount keeps them: vaultfs pending)",
    )
}

/// An attempt made the object, which was deleted before the answer arrived.
fn deleted() -> Error {
    Error::new(
        ErrorKind::MadeAndDeleted,
        "this save was made, and its object was deleted elsewhere before an answer arrived: store the bytes again, or \
         give them up (a mount keeps them: vaultfs pending)",
    )
}

/// Whether an attempt failed because the name is not what it was sent after.
fn has_moved(e: &Error) -> bool {
    matches!(e.kind, ErrorKind::AlreadyExists | ErrorKind::NotFound | ErrorKind::VersionMismatch)
}

/// Whether an attempt that was not made can never be made any more: the vault refuses it, since
/// another version follows the one that it was to follow.
fn is_refused(attempt: Option<&After>, next: &Next) -> bool {
    match (attempt, next) {
        (Some(After::Just(id, before)), Next::Continue(After::Just(now_id, now))) => {
            id == now_id && before != now
        }
        _ => false,
    }
}

impl Save<'_> {
    /// Brings the bytes to the vault; `progress` hears of each attempt. An error says in
    /// `maybe_applied` whether any attempt may have been made.
    pub async fn run(&self, progress: Progress<'_>) -> Result<Saved> {
        let mut maybe_applied = self.sent.is_some();
        let saved = self.attempt(progress, &mut maybe_applied).await;
        saved.map_err(|e| Error { maybe_applied, ..e })
    }

    async fn attempt(&self, progress: Progress<'_>, maybe_applied: &mut bool) -> Result<Saved> {
        // What a person wants is made whatever an earlier attempt made.
        let before = self.sent.filter(|_| !self.conditions.insists);
        let key = before.map_or_else(|| IdempotencyKey::new(self.cache.wall()), |sent| sent.key);
        let mut next = match (self.sent, self.base) {
            (Some(sent), _) => self.next(self.outcome(Some(sent), !self.conditions.guarded).await?)?,
            (None, Some(base)) => Next::Continue(self.after(&base.id, &base.version)),
            (None, None) => Next::Continue(After::Nothing),
        };
        let mut last = None;
        let mut before = self.sent.cloned();
        for round in 1..=ROUNDS {
            *maybe_applied &= !is_refused(before.as_ref().map(|sent| &sent.after), &next);
            let after = match next {
                Next::Break(saved) => return Ok(saved),
                // Another writer saves all the time: the last writer wins.
                Next::Continue(After::Just(id, version))
                    if round > CHECKED && !self.conditions.guarded && !*maybe_applied =>
                {
                    After::Any(id, version)
                }
                Next::Continue(after) => after,
            };
            let sent = Attempt { after, key };
            progress(&sent, None);
            let made = self.send(&sent).await;
            progress(&sent, Some(&made));
            let e = match made {
                Ok(meta) => return Ok(Saved::current(self.cache.stored(meta, self.content.clone()))),
                Err(e) => e,
            };
            *maybe_applied |= e.maybe_applied;
            if e.kind == ErrorKind::MadeAndDeleted {
                // It stays written down: no try by itself makes it again.
                *maybe_applied = true;
                return Err(deleted());
            }
            next = self.after_failure(e.clone(), maybe_applied.then_some(&sent)).await?;
            before = Some(sent);
            let taken = |e: &Error| e.kind == ErrorKind::AlreadyExists && !*maybe_applied;
            // It may have been deleted just now: once more, where somebody waits.
            let Conditions { exclusive, guarded, .. } = self.conditions;
            let is_told = guarded || exclusive || last.as_ref().is_some_and(taken);
            match &next {
                Next::Continue(After::Nothing) if taken(&e) && is_told => {
                    return Err(self.not_free(NOT_FREE));
                }
                // Somebody else's object of the same bytes.
                Next::Break(_) if taken(&e) && exclusive => return Err(e),
                _ => {}
            }
            let is_failing = matches!(e.kind, ErrorKind::BadAnswer | ErrorKind::Server);
            last = Some(e);
            if is_failing && round >= FAILING && matches!(next, Next::Continue(_)) {
                break;
            }
        }
        // Each attempt met another change, or the last failure is reported.
        let is_contended = || self.not_free("others change it all the time: try again");
        Err(last.filter(|e| !has_moved(e)).unwrap_or_else(is_contended))
    }

    fn not_free(&self, why: &str) -> Error {
        Error::new(ErrorKind::NameNotFree, format!("{:?}: {why}", self.name))
    }

    /// What to do after an attempt that failed with `e`; `sent` if it, or one before it, may have
    /// been made.
    async fn after_failure(&self, e: Error, sent: Option<&Attempt>) -> Result<Next> {
        if !e.maybe_applied && !has_moved(&e) {
            return Err(e);
        }
        match self.outcome(sent, !self.conditions.guarded).await {
            Ok(outcome) => self.next(outcome),
            Err(_) if e.maybe_applied => Err(e),
            Err(_) if self.conditions.guarded && sent.is_none() => Err(superseded()),
            Err(look) if look.kind == ErrorKind::Forbidden && e.kind == ErrorKind::AlreadyExists => {
                let sentence = format!(
                    "{:?} exists already, and to make a version of it the API key has to look it up, which takes the \
                     permission read as well",
                    self.name
                );
                Err(Error { message: sentence, ..look })
            }
            Err(look) => Err(look),
        }
    }

    /// What to do where that is what became of attempts so far.
    fn next(&self, outcome: Outcome) -> Result<Next> {
        let Conditions { exclusive, guarded, insists } = self.conditions;
        let now = match outcome {
            Outcome::Made(saved) => return Ok(Next::Break(saved)),
            Outcome::Unknown(_) if !insists => return Err(unknown()),
            Outcome::Deleted(_) if !insists => return Err(deleted()),
            Outcome::Deleted(now) => Some(now),
            Outcome::Unknown(now) | Outcome::NotMade(now) => now,
        };
        match now {
            Some(_) if exclusive && self.base.is_none() => {
                Err(Error::new(ErrorKind::AlreadyExists, "the name is taken"))
            }
            Some(now) if guarded && !self.is_based_on(&now) => Err(superseded()),
            Some(now) => Ok(Next::Continue(self.after(&now.id, &now.version))),
            None if guarded && self.base.is_some() => Err(superseded()),
            None => Ok(Next::Continue(After::Nothing)),
        }
    }

    /// Whether the bytes are a change of just this version.
    fn is_based_on(&self, now: &Meta) -> bool {
        self.base.is_some_and(|base| base.is(now))
    }

    fn can_check(&self) -> bool {
        self.cache.vault().capabilities().version_check
    }

    /// An update that follows this version.
    fn after(&self, id: &ObjectId, version: &VersionTag) -> After {
        let after = if self.can_check() { After::Just } else { After::Any };
        after(id.clone(), version.clone())
    }

    async fn send(&self, sent: &Attempt) -> Result<Meta> {
        let (vault, call) = (self.cache.vault(), &Call { idempotency_key: sent.key, ..*self.call });
        let (id, check) = match &sent.after {
            After::Nothing => return vault.create(call, self.name, self.content).await,
            After::Any(id, _) => (id, None),
            After::Just(id, version) => (id, Some(version)),
        };
        if self.conditions.guarded && !self.can_check() {
            // The dialect cannot check: look just before, which leaves a moment for somebody else.
            let now = vault.metadata(call, id).await?;
            if !self.is_based_on(&now) {
                return Err(superseded());
            }
        }
        vault.update(call, id, self.content, check).await
    }

    /// What became of an attempt to store the bytes; without one, what the name is now.
    /// With `may_make` a vault that knows what was sent may make it now.
    pub async fn outcome(&self, sent: Option<&Attempt>, may_make: bool) -> Result<Outcome> {
        let after = sent.map(|sent| &sent.after);
        let asked = self.cache.now();
        let current = match self.cache.vault().get_by_name(self.call, self.name).await {
            Ok(object) if object.content.bytes == self.content.bytes => {
                return Ok(Outcome::Made(Saved::current(self.cache.stored(object.meta, object.content))));
            }
            Ok(object) => self.cache.ingest_object(object, asked),
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
        if let Some(outcome) = self.outcome_by_key(sent, now, may_make).await? {
            return Ok(outcome);
        }
        let history = match self.cache.vault().versions(self.call, &now.id, sent.after.version()).await {
            Ok(history) => history,
            Err(e) if is_outage(e.kind) => return Err(e),
            Err(_) => return Ok(Outcome::Unknown(Some(now.clone()))),
        };
        match candidates(&history, &sent.after, now) {
            Some(candidates) => self.search_versions(candidates, now).await,
            None => Ok(Outcome::Unknown(Some(now.clone()))),
        }
    }

    /// Sends an attempt once more: a vault that knows it by its key says what it made. Where it
    /// does not say that it knows keys, or nothing may be made, only an attempt is sent that makes
    /// nothing now: the name is taken, or another version follows the one that it is to follow.
    async fn outcome_by_key(&self, sent: &Attempt, now: &Meta, may_make: bool) -> Result<Option<Outcome>> {
        let Some(key) = sent.key else { return Ok(None) };
        let call = &Call { idempotency_key: sent.key, is_repeated: true, ..*self.call };
        let vault = self.cache.vault();
        // Half of the time: clocks differ.
        let knows = vault.status().remembers.zip(key.age(self.cache.wall()));
        let knows = knows.is_some_and(|(remembers, age)| age < remembers / 2);
        let again = match &sent.after {
            After::Nothing => vault.create(call, self.name, self.content).await,
            After::Any(id, version) | After::Just(id, version)
                if self.can_check() && version.is_the_vaults() =>
            {
                vault.update(call, id, self.content, Some(version)).await
            }
            After::Any(id, _) if knows && may_make => vault.update(call, id, self.content, None).await,
            After::Any(..) | After::Just(..) => return Ok(None),
        };
        let is_later = |meta: &Meta| meta.version.is_later(meta.updated_at, (&now.version, now.updated_at));
        match again {
            Ok(meta) if meta.id == now.id && !is_later(&meta) => {
                let object = self.cache.stored_before(meta, self.content.clone());
                Ok(Some(Outcome::Made(Saved { object, superseded: true })))
            }
            // Made now, or since the look; or what had the name is gone meanwhile.
            Ok(meta) => {
                Ok(Some(Outcome::Made(Saved::current(self.cache.stored(meta, self.content.clone())))))
            }
            Err(e) if e.kind == ErrorKind::MadeAndDeleted => Ok(Some(Outcome::Deleted(now.clone()))),
            Err(e) if is_outage(e.kind) => Err(e),
            Err(e) if knows && e.kind != ErrorKind::NotFound && has_moved(&e) => {
                Ok(Some(Outcome::NotMade(Some(now.clone()))))
            }
            Err(_) => Ok(None),
        }
    }

    /// Looks for the bytes among superseded versions.
    async fn search_versions(&self, candidates: Vec<&VersionInfo>, now: &Meta) -> Result<Outcome> {
        let size = self.content.bytes.len() as u64;
        let can_read = self.cache.vault().capabilities().old_values;
        let mut unknown = false;
        for info in candidates.into_iter().filter(|info| info.size.is_none_or(|listed| listed == size)) {
            let found = match self.cache.value_in_memory(&now.id, &info.tag) {
                _ if can_read => self.cache.old_value(self.call, &now.id, info).await,
                Some(seen) => Ok(seen),
                None => Err(Error::new(ErrorKind::Unsupported, "the vault gives no values of old versions")),
            };
            match found {
                Ok(object) if object.content.bytes == self.content.bytes => {
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
