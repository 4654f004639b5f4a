//! Commits: a file's buffer becomes a version of its object.
//!
//! 1. **Acknowledged is stored.** A commit ends well only when the vault has the bytes. One that
//!    fails leaves them in the buffer with the [`Failure`], readable, listed in `status`, and tried
//!    again.
//! 2. **One save, one version.** A lock serializes the commits of a file; a commit stores one
//!    generation of the buffer, and a later commit of the same generation finds it stored. Bytes
//!    that the vault has already make no version.
//! 3. **A save that may have been applied is looked up before it is repeated**, and is never
//!    repeated where the vault cannot show its outcome (`outcome`).
//! 4. **A save never ends in EEXIST or ENOENT**: a create that meets a name becomes an update, an
//!    update that meets a deleted object looks the name up and updates or creates. Only O_EXCL
//!    wants EEXIST.
//! 5. **A retry by itself never overwrites a newer version**: it is sent only while the vault still
//!    has the version that the bytes were based on; else it is a conflict, and a person decides.

use std::ops::ControlFlow;
use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use crate::failpoint;
use crate::fs::FileSystem;
use crate::fs::inode::Table;
use crate::fs::inode::file::{File, FileState, Link, Stored};
use crate::fs::journal::Transaction;
use crate::fs::types::errno::{Errno, Result};
use crate::fs::writeback::may_write::Change;
use crate::fs::writeback::outcome::{After, Outcome, Saved, Sent, deleted, unknown};
use crate::secret::SecretBytes;
use crate::vault::{
    Call, Content, Error, ErrorKind, IdempotencyKey, Meta, Object, ObjectId, ObjectName, VersionTag, codec,
};

/// Attempts of one commit: each of them but the first answers a change made elsewhere meanwhile.
const ROUNDS: usize = 16;
/// Failed attempts before the failure is reported to the waiting program.
const FAILING: usize = 4;
/// After this many attempts that another writer forestalled, an update overwrites what came since:
/// checked, it could wait until its deadline for a moment without another writer.
const CHECKED: usize = 4;

/// What made a commit necessary, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fs) enum Cause {
    Close,
    Fsync,
    Release,
    Truncate,
    Link,
    Promote,
    Retry,
    Drain,
    Asked,
}

impl Cause {
    /// No program waits for it.
    pub(super) fn is_by_itself(self) -> bool {
        matches!(self, Cause::Retry | Cause::Drain)
    }

    /// A program waits for it: none has seen the file's times after its close.
    fn is_waited_for(self) -> bool {
        matches!(self, Cause::Close | Cause::Fsync | Cause::Truncate | Cause::Link)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Cause::Close => "close",
            Cause::Fsync => "fsync",
            Cause::Release => "last close",
            Cause::Truncate => "truncate",
            Cause::Link => "link",
            Cause::Promote => "end of a provisional file",
            Cause::Retry => "retry of a failed write",
            Cause::Drain => "unmount",
            Cause::Asked => "retry that was asked for",
        }
    }
}

/// One generation of a buffer on its way to the vault.
pub(in crate::fs) struct Job {
    pub name: ObjectName,
    pub bytes: SecretBytes,
    pub generation: u64,
    /// What the bytes are a change of: an update of that object, or a new one.
    pub base: Option<Stored>,
    pub exclusive: bool,
    /// Only while the vault still has the base: `--strict`, and retries by themselves.
    pub guarded: bool,
    /// A person wants these bytes, whatever became of an attempt before.
    pub insists: bool,
    /// An attempt to store these bytes that may have been made.
    pub sent: Option<Sent>,
    /// A program waits for it: the file has not been looked at since it was closed.
    pub waited_for: bool,
    /// What the vault may know each attempt by.
    pub idempotency_key: Option<IdempotencyKey>,
}

impl Job {
    fn of(state: &FileState, guarded: bool, insists: bool) -> Option<Self> {
        if !state.is_dirty() {
            return None;
        }
        let buffer = state.buffer.as_ref()?;
        let sent = state.sent(&state.name).cloned();
        Some(Self {
            name: state.name.clone(),
            bytes: buffer.bytes.clone(),
            generation: buffer.generation,
            base: state.stored.clone(),
            exclusive: state.exclusive,
            guarded,
            insists,
            waited_for: true,
            // What a person wants is made whatever an earlier attempt made.
            idempotency_key: Sent::key_after(sent.as_ref().filter(|_| !insists)),
            sent,
        })
    }

    /// Whether the bytes are a change of just this version.
    fn is_based_on(&self, now: &Meta) -> bool {
        self.base.as_ref().is_some_and(|base| base.is(now))
    }
}

/// The vault has moved on from what the bytes are a change of.
fn superseded() -> Error {
    Error::new(
        ErrorKind::VersionMismatch,
        "the object was changed elsewhere since it was opened; the bytes written here are kept (vaultfs status)",
    )
}

/// The vault refuses a name as taken that it has no object of: it keeps names of deleted objects
/// for a while, or takes another name for this one.
fn not_free(name: &ObjectName) -> Error {
    let sentence = format!(
        "creating {name:?}: the name is not free yet: the vault has no such object and refuses the name as taken; it is \
         tried again"
    );
    Error::new(ErrorKind::NameNotFree, sentence)
}

/// What comes next: it is stored, or is sent.
type Next = ControlFlow<Saved, After>;

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

/// What a name shows after a commit of its file.
#[derive(Debug, Clone, Copy)]
pub(in crate::fs) struct Shows {
    /// Another one's version.
    superseded: bool,
    /// Another inode than before.
    moved: bool,
}

impl FileSystem {
    /// Stores what the file's buffer holds now. Succeeds if the vault has it, even if stored by
    /// another client.
    pub(in crate::fs) async fn commit(
        self: &Arc<Self>,
        file: &Arc<File>,
        call: &Call,
        cause: Cause,
    ) -> Result<()> {
        let goal = {
            let state = file.state();
            if let Some(refused) = state.write_error.filter(|_| state.is_dirty()) {
                // Reported and logged at the write.
                return Err(refused);
            }
            state.buffer.as_ref().map_or(0, |b| b.generation)
        };
        loop {
            let _lock = self.lock_commit(file, call, cause.name()).await?;
            // Held until the journal has that it is stored: a successor then knows (`hold_stores`).
            let permit = self.among_stores(call).await;
            let permit = permit.map_err(|e| self.env.failed(cause.name(), file.state().name.as_str(), &e))?;
            let Some(job) = self.job_of(file, cause)? else { return Ok(()) };
            failpoint::point("commit");
            match self.store(file, &job, call).await {
                Ok(saved) => {
                    failpoint::point("stored");
                    self.committed(file, &job, saved);
                }
                Err(e) => return Err(self.commit_failed(file, &job, cause, e)),
            }
            drop(permit);
            self.finish_move(file, call).await;
            if job.generation >= goal {
                return Ok(());
            }
        }
    }

    /// What a commit has to store now, if anything.
    fn job_of(&self, file: &File, cause: Cause) -> Result<Option<Job>> {
        let state = file.state();
        let conflict = state.failure.as_ref().map(|failure| failure.conflict);
        let guarded = match cause {
            Cause::Retry | Cause::Drain if conflict == Some(true) => return Err(Errno::ESTALE),
            // Its writer stores it.
            Cause::Retry | Cause::Asked if state.is_being_written() => return Err(Errno::EBUSY),
            Cause::Retry => true,
            Cause::Drain => conflict.is_some() || self.env.options().strict,
            // A person has seen the conflict and wants these bytes.
            Cause::Asked => false,
            _ => self.env.options().strict,
        };
        let job = Job::of(&state, guarded, cause == Cause::Asked);
        Ok(job.map(|job| Job { waited_for: cause.is_waited_for(), ..job }))
    }

    /// Waits until no change of this file is out at the vault. A wait that is too long is reported
    /// as a failure of `operation`.
    pub(in crate::fs) async fn lock_commit(
        &self,
        file: &File,
        call: &Call,
        operation: &'static str,
    ) -> Result<OwnedSemaphorePermit> {
        let lock = tokio::time::timeout(self.left(call), file.commit_lock.clone().acquire_owned()).await;
        lock.ok().and_then(std::result::Result::ok).ok_or_else(|| {
            let why = Error::new(ErrorKind::Deadline, "an earlier change of this file is still on its way");
            self.env.failed(operation, file.state().name.as_str(), &why)
        })
    }

    /// Brings a job to the vault; the caller holds the file's commit lock and a permit for stores.
    /// An error says in `maybe_applied` whether any attempt may have been made.
    pub(in crate::fs) async fn store(&self, file: &File, job: &Job, call: &Call) -> Result<Saved, Error> {
        let mut maybe_applied = job.sent.is_some();
        let stored = self.attempt(file, job, call, &mut maybe_applied).await;
        stored.map_err(|e| Error { maybe_applied, ..e })
    }

    async fn attempt(
        &self,
        file: &File,
        job: &Job,
        call: &Call,
        maybe_applied: &mut bool,
    ) -> Result<Saved, Error> {
        let content = self.content_of(job)?;
        let mut next = match (&job.sent, &job.base) {
            (Some(sent), _) => self.next(job, self.outcome_of(job, Some(sent), &content, call).await?)?,
            (None, Some(base)) => match self.unchanged(base, &content, job, call).await? {
                Some(object) => Next::Break(Saved::current(object)),
                None => Next::Continue(self.after(&base.id, &base.version)),
            },
            (None, None) => Next::Continue(After::Nothing),
        };
        let mut last = None;
        let mut before = job.sent.clone();
        for round in 1..=ROUNDS {
            *maybe_applied &= !is_refused(before.as_ref().map(|sent| &sent.after), &next);
            let after = match next {
                Next::Break(saved) => return Ok(saved),
                // Another writer saves all the time: the last writer wins.
                Next::Continue(after) if round > CHECKED && !job.guarded && !*maybe_applied => {
                    after.unchecked()
                }
                Next::Continue(after) => after,
            };
            let (name, generation, key) = (job.name.clone(), job.generation, job.idempotency_key);
            let sent = Sent { name, generation, after, key };
            file.change_alone().note_sent(sent.clone());
            let made = self.send(&sent.after, job, &content, call).await;
            self.note_save(job, Change::of(&sent.after), made.as_ref().err());
            let e = match made {
                Ok(meta) => return Ok(Saved::current(self.env.cache().stored(meta, content))),
                Err(e) => e,
            };
            *maybe_applied |= e.maybe_applied;
            if e.kind == ErrorKind::MadeAndDeleted {
                // It stays written down: no try by itself makes it again.
                *maybe_applied = true;
                return Err(deleted());
            }
            next = self.after_failure(job, e.clone(), maybe_applied.then_some(&sent), &content, call).await?;
            before = Some(sent);
            let taken = |e: &Error| e.kind == ErrorKind::AlreadyExists && !*maybe_applied;
            // It may have been deleted just now: once more, where a program waits.
            let is_told = job.guarded || job.exclusive || last.as_ref().is_some_and(taken);
            match &next {
                Next::Continue(After::Nothing) if taken(&e) && is_told => return Err(not_free(&job.name)),
                // Somebody else's object of the same bytes.
                Next::Break(_) if taken(&e) && job.exclusive => return Err(e),
                _ => {}
            }
            let is_failing = matches!(e.kind, ErrorKind::BadAnswer | ErrorKind::Server);
            last = Some(e);
            if is_failing && round >= FAILING && matches!(next, Next::Continue(_)) {
                break;
            }
        }
        // Each attempt met another change: the last failure is reported.
        Err(last.unwrap_or_else(|| Error::new(ErrorKind::Server, "the object could not be stored")))
    }

    /// What to do after an attempt that failed with `e`; `sent` if it, or one before it, may have
    /// been made.
    async fn after_failure(
        &self,
        job: &Job,
        e: Error,
        sent: Option<&Sent>,
        content: &Content,
        call: &Call,
    ) -> Result<Next, Error> {
        let moved =
            matches!(e.kind, ErrorKind::AlreadyExists | ErrorKind::NotFound | ErrorKind::VersionMismatch);
        if !e.maybe_applied && !moved {
            return Err(e);
        }
        match self.outcome_of(job, sent, content, call).await {
            Ok(outcome) => self.next(job, outcome),
            Err(_) if e.maybe_applied => Err(e),
            Err(_) if job.guarded && sent.is_none() => Err(superseded()),
            Err(unknown) => Err(unknown),
        }
    }

    /// What to do where that is what became of attempts so far.
    fn next(&self, job: &Job, outcome: Outcome) -> Result<Next, Error> {
        let now = match outcome {
            Outcome::Made(saved) => return Ok(Next::Break(saved)),
            Outcome::Unknown(_) if !job.insists => return Err(unknown()),
            Outcome::Deleted(_) if !job.insists => return Err(deleted()),
            Outcome::Deleted(now) => Some(now),
            Outcome::Unknown(now) | Outcome::NotMade(now) => now,
        };
        match now {
            Some(_) if job.exclusive && job.base.is_none() => {
                Err(Error::new(ErrorKind::AlreadyExists, "the name is taken"))
            }
            Some(now) if job.guarded && !job.is_based_on(&now) => Err(superseded()),
            Some(now) => Ok(Next::Continue(self.after(&now.id, &now.version))),
            None if job.guarded && job.base.is_some() => Err(superseded()),
            None => Ok(Next::Continue(After::Nothing)),
        }
    }

    /// An update that follows this version.
    fn after(&self, id: &ObjectId, version: &VersionTag) -> After {
        match self.can_check() {
            true => After::Just(id.clone(), version.clone()),
            false => After::Any(id.clone(), version.clone()),
        }
    }

    pub(in crate::fs) fn can_check(&self) -> bool {
        self.env.cache().vault().capabilities().version_check
    }

    /// The bytes as the vault takes them.
    fn content_of(&self, job: &Job) -> Result<Content, Error> {
        let form = job.base.as_ref().map(|base| base.form);
        codec::to_content(self.env.options().format, form, job.bytes.expose())
            .map_err(|e| Error::new(ErrorKind::Invalid, e.to_string()))
    }

    async fn send(&self, after: &After, job: &Job, content: &Content, call: &Call) -> Result<Meta, Error> {
        let (vault, call) =
            (self.env.cache().vault(), &Call { idempotency_key: job.idempotency_key, ..*call });
        let (id, check) = match after {
            After::Nothing => return vault.create(call, &job.name, content).await,
            After::Any(id, _) => (id, None),
            After::Just(id, version) => (id, Some(version)),
        };
        if job.guarded && !self.can_check() {
            // The dialect cannot check: look just before, which leaves a short race with other
            // writers.
            let now = vault.metadata(call, id).await?;
            if !job.is_based_on(&now) {
                return Err(superseded());
            }
        }
        vault.update(call, id, content, check).await
    }

    /// The current object, if it has these bytes already and is the version that they were based
    /// on.
    async fn unchanged(
        &self,
        base: &Stored,
        content: &Content,
        job: &Job,
        call: &Call,
    ) -> Result<Option<Arc<Object>>, Error> {
        let may_be = match self.bytes_in_memory(base) {
            Some(before) => before.content.bytes == content.bytes,
            // Known to a worker that died.
            None => base.size == content.bytes.len() as u64,
        };
        if !may_be {
            return Ok(None);
        }
        // Asked even if the cache is fresh: what changed elsewhere a second ago must not swallow a
        // save.
        let current = self.env.cache().fetch(call, &job.name).await?;
        Ok(current.filter(|c| c.stale.is_none() && c.object.content.bytes == content.bytes).map(|c| c.object))
    }

    /// The file is what was stored, now.
    fn committed(&self, file: &Arc<File>, job: &Job, saved: Saved) {
        let tx = self.env.journal().begin();
        let mut table = self.table_in(&tx);
        let shows = self.stored_in(&tx, &mut table, file, job, saved);
        drop(table);
        self.after_stored(&job.name, shows);
    }

    /// The same as a part of another change; [`FileSystem::after_stored`] is due when that is
    /// published.
    pub(in crate::fs) fn stored_in(
        &self,
        tx: &Transaction,
        table: &mut Table,
        file: &Arc<File>,
        job: &Job,
        saved: Saved,
    ) -> Shows {
        let Saved { object, superseded } = saved;
        let normalised = object.content.bytes.expose() != job.bytes.expose();
        let other = table.file(&job.name).filter(|other| other.ino != file.ino);
        let mut state = file.change(tx);
        state.times_of_stored(&object.meta, job.waited_for);
        *table.local(&job.name) = state.local.clone();
        state.stored = Some(Stored::of(&object));
        state.pinned = (state.opens > 0).then_some(object);
        state.failure = None;
        state.exclusive = false;
        state.sent.clear();
        // A lookup found another version, which may have the same number in another object.
        state.pending_notify = None;
        table.cancel_delete(&job.name);
        if let Some(buffer) = &mut state.buffer {
            buffer.stored(job.generation);
        }
        let moved = match state.link {
            // What the name is to show is another's version.
            Link::Current | Link::Replaced if superseded => false,
            Link::Current | Link::Replaced if normalised && !state.is_dirty() => {
                state.link = Link::Replaced;
                table.unpoint(&job.name, file.ino);
                tracing::info!(name = job.name.as_str(), "stored as JSON: the white space was normalised");
                true
            }
            Link::Replaced => {
                state.link = Link::Current;
                table.point(&job.name, file.ino);
                true
            }
            Link::Current | Link::Unlinked => false,
        };
        let is_behind = superseded && state.link == Link::Replaced;
        state.release();
        drop(state);
        // What is older than this save leaves the name, too, where another one's version is to show
        // there.
        let gives_way = |other: &Arc<File>| {
            let is_ours = other.state().is_beyond_vault();
            moved || (is_behind && !is_ours && !self.is_newest(other))
        };
        if let Some(other) = other.filter(gives_way) {
            {
                let mut state = other.change(tx);
                self.keep_bytes(&mut state);
                state.link = Link::Replaced;
            }
            table.unpoint(&job.name, other.ino);
            table.drop_unheld(other.ino);
        }
        Shows { superseded, moved }
    }

    pub(in crate::fs) fn after_stored(&self, name: &ObjectName, shows: Shows) {
        if shows.superseded {
            self.env.cache().superseded(name);
        }
        if shows.moved || shows.superseded {
            self.repoint(name);
        }
    }

    /// Before a file loses its name: if its creation is in doubt, finds out whether there is an
    /// object to delete.
    pub(in crate::fs) async fn resolve_creation(&self, file: &File, call: &Call) -> Result<()> {
        let job = Job::of(&file.state(), false, false).filter(|job| job.base.is_none());
        let Some((job, sent)) = job.and_then(|job| job.sent.clone().map(|sent| (job, sent))) else {
            return Ok(());
        };
        let failed = |e| self.env.failed("unlink", job.name.as_str(), &e);
        let content = self.content_of(&job).map_err(failed)?;
        if let Outcome::Made(saved) =
            self.outcome_of(&job, Some(&sent), &content, call).await.map_err(failed)?
        {
            file.change_alone().stored = Some(Stored::of(&saved.object));
        }
        Ok(())
    }
}
