//! Commits: a file's buffer becomes a version of its object.
//!
//! 1. **Acknowledged is stored.** A commit ends well only when the vault has the bytes. One that fails leaves
//!    them in the buffer with the [`Failure`], readable, listed in `status`, and tried again.
//! 2. **One save, one version.** Commits of a file take turns; a commit stores one generation of the buffer, and
//!    who comes later for the same generation finds it stored. Bytes that the vault has already make no version.
//! 3. **An effect in doubt is looked at before it is repeated** (an answer that was lost after the change).
//! 4. **A save never ends in EEXIST or ENOENT**: a create that meets a name becomes an update, an update that
//!    meets a deleted object looks the name up and updates or creates. Only O_EXCL wants EEXIST.
//! 5. **A retry by itself never overwrites a newer version**: it is sent only while the vault still has the version
//!    that the bytes were based on; else it is a conflict, and a person decides.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use super::FileSystem;
use super::errno::{Errno, Result};
use super::file::{Failure, File, Link, Stored};
use super::status::Unsaved;
use crate::crash;
use crate::secret::SecretBytes;
use crate::vault::{Call, Content, Error, ErrorKind, Meta, Object, ObjectId, ObjectName, VersionTag, codec};

/// A background retry waits this long first, then twice as long each time.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// And mostly never longer than this (`last_pause`).
pub(super) const LAST_RETRY: Duration = Duration::from_secs(60);

/// Looks at the vault that one commit may need: each answers a change made elsewhere meanwhile.
const ROUNDS: usize = 4;

/// What made a commit necessary, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    Close,
    Fsync,
    Release,
    Truncate,
    Settle,
    Retry,
    Drain,
    Asked,
}

impl Cause {
    fn name(self) -> &'static str {
        match self {
            Cause::Close => "close",
            Cause::Fsync => "fsync",
            Cause::Release => "last close",
            Cause::Truncate => "truncate",
            Cause::Settle => "end of a provisional file",
            Cause::Retry => "retry of a failed write",
            Cause::Drain => "unmount",
            Cause::Asked => "retry that was asked for",
        }
    }
}

/// What a drain stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drain {
    /// What nobody is writing any more: the mount may stay.
    Closed,
    /// Everything: the mount is gone, and who wrote will not come back.
    All,
}

impl Drain {
    fn covers(self, file: &File) -> bool {
        let state = file.state();
        state.is_dirty() && (self == Drain::All || state.writers.is_empty())
    }
}

/// One generation of a buffer on its way to the vault.
pub(super) struct Job {
    pub name: ObjectName,
    pub bytes: SecretBytes,
    pub generation: u64,
    /// What the bytes are a change of: an update of that object, or a new one.
    pub base: Option<Stored>,
    pub exclusive: bool,
    /// Only while the vault still has the base: `--strict`, and retries by themselves.
    pub guarded: bool,
    /// These bytes may be stored already: an answer was lost.
    pub doubted: bool,
}

impl Job {
    fn of(file: &File, guarded: bool) -> Option<Self> {
        let state = file.state();
        if !state.is_dirty() {
            return None;
        }
        let buffer = state.buffer.as_ref()?;
        Some(Self {
            name: state.name.clone(),
            bytes: buffer.bytes.clone(),
            generation: buffer.generation,
            base: state.stored.clone(),
            exclusive: state.exclusive,
            guarded,
            doubted: state.is_in_doubt(),
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

/// What to send.
enum Plan {
    Create,
    /// An update, with the version that was seen just now if an attempt before it is in doubt.
    Update(ObjectId, Option<VersionTag>),
}

/// What a look at the vault finds where an attempt may have stored the bytes unheard.
enum Unheard {
    Stored(Arc<Object>),
    /// Another version is there.
    Not(Meta),
    Absent,
}

impl FileSystem {
    /// Stores what the file's buffer holds now. Ends well if the vault has it, whoever stored it.
    pub(super) async fn commit(self: &Arc<Self>, file: &Arc<File>, call: &Call, cause: Cause) -> Result<()> {
        let goal = {
            let state = file.state();
            if let Some(refused) = state.cut_short.filter(|_| state.is_dirty()) {
                // Told and logged at the write.
                return Err(refused);
            }
            state.buffer.as_ref().map_or(0, |b| b.generation)
        };
        loop {
            let Some(_turn) = self.turn(file, call).await else {
                let name = file.state().name.clone();
                let why =
                    Error::new(ErrorKind::Deadline, "an earlier change of this file is still on its way");
                return Err(self.failed(cause.name(), name.as_str(), &why));
            };
            let by_itself = matches!(cause, Cause::Retry | Cause::Drain);
            if by_itself && file.state().failure.as_ref().is_some_and(|failure| failure.conflict) {
                // Something went over it while this waited for its turn.
                return Err(Errno::ESTALE);
            }
            let guarded = match cause {
                Cause::Retry => true,
                // A person has seen the conflict and wants these bytes.
                Cause::Asked => false,
                _ => self.options.strict,
            };
            let Some(job) = Job::of(file, guarded) else { return Ok(()) };
            file.state().sending = true;
            crash::point("commit");
            match self.store(&job, call).await {
                Ok(object) => {
                    crash::point("stored");
                    self.committed(file, &job, object);
                    self.finish_move(file, call).await;
                }
                Err(e) => return Err(self.commit_failed(file, &job, cause, e)),
            }
            if job.generation >= goal {
                return Ok(());
            }
        }
    }

    /// Waits until no change of this file is out at the vault.
    pub(super) async fn turn(&self, file: &File, call: &Call) -> Option<OwnedSemaphorePermit> {
        let turn = file.turn.clone().acquire_owned();
        tokio::time::timeout(self.left(call), turn).await.ok()?.ok()
    }

    /// Brings a job to the vault; the caller has the file's turn.
    pub(super) async fn store(self: &Arc<Self>, job: &Job, call: &Call) -> Result<Arc<Object>, Error> {
        let Some(_permit) = self.among_stores(call).await else {
            return Err(Error::new(ErrorKind::Deadline, "a deletion is on its way that has to end first"));
        };
        let form = job.base.as_ref().map(|b| b.form);
        let content = codec::to_content(self.options.format, form, job.bytes.expose())
            .map_err(|e| Error::new(ErrorKind::Invalid, e.to_string()))?;
        if let Some(base) = &job.base
            && let Some(object) = self.unchanged(job, base, &content, call).await?
        {
            return Ok(object);
        }
        let mut seen = None;
        if job.doubted {
            match self.look(job, &content, call).await? {
                Unheard::Stored(object) => return Ok(object),
                Unheard::Not(meta) => seen = Some(meta.version),
                Unheard::Absent => {}
            }
        }
        let mut plan = match &job.base {
            Some(base) => Plan::Update(base.id.clone(), seen),
            None => Plan::Create,
        };
        let mut in_doubt = job.doubted;
        let mut last = None;
        for round in 1..=ROUNDS {
            if let (ROUNDS, Plan::Update(_, seen)) = (round, &mut plan) {
                // Somebody else writes all the time: the last who writes wins.
                *seen = None;
            }
            let e = match self.send(&plan, job, &content, call).await {
                Ok(meta) => return Ok(self.cache.stored(meta, content)),
                Err(e) => e,
            };
            in_doubt |= e.maybe_applied;
            let moved = match e.kind {
                ErrorKind::AlreadyExists | ErrorKind::NotFound => true,
                // Not that of `guarded`: something came after the look, and may be the attempt in doubt.
                ErrorKind::VersionMismatch => !job.guarded,
                _ => false,
            };
            if !e.maybe_applied && moved && job.guarded {
                return Err(superseded());
            }
            if !e.maybe_applied && (!moved || (job.exclusive && e.kind == ErrorKind::AlreadyExists)) {
                return Err(e);
            }
            plan = match self.look(job, &content, call).await {
                Ok(Unheard::Stored(object)) => return Ok(object),
                Ok(Unheard::Not(_)) if job.exclusive => {
                    return Err(Error::new(ErrorKind::AlreadyExists, "the name is taken"));
                }
                Ok(Unheard::Not(now)) if job.guarded && !job.is_based_on(&now) => return Err(superseded()),
                Ok(Unheard::Not(now)) => Plan::Update(now.id, Some(now.version).filter(|_| in_doubt)),
                Ok(Unheard::Absent) => Plan::Create,
                Err(unknown) => return Err(if moved { unknown } else { e }),
            };
            last = Some(e);
        }
        // As often as it was tried something came in between: what came last is told.
        Err(last.unwrap_or_else(|| Error::new(ErrorKind::Server, "the object could not be stored")))
    }

    /// What is there, where an attempt whose answer was lost may have stored these bytes, or still may.
    async fn look(&self, job: &Job, content: &Content, call: &Call) -> Result<Unheard, Error> {
        match self.cache.vault().get_by_name(call, &job.name).await {
            Ok(object) if object.content.bytes == content.bytes => {
                Ok(Unheard::Stored(self.cache.stored(object.meta, object.content)))
            }
            Ok(object) => Ok(Unheard::Not(object.meta)),
            Err(e) if e.kind == ErrorKind::NotFound => Ok(Unheard::Absent),
            Err(e) => Err(e),
        }
    }

    async fn send(&self, plan: &Plan, job: &Job, content: &Content, call: &Call) -> Result<Meta, Error> {
        let vault = self.cache.vault();
        let can_check = vault.capabilities().version_check;
        match plan {
            Plan::Create => vault.create(call, &job.name, content).await,
            Plan::Update(id, seen) => {
                let base = job.base.as_ref().filter(|_| job.guarded).map(|base| &base.version);
                if base.is_some() && !can_check {
                    // The dialect cannot check: look just before, which leaves a moment for somebody else.
                    let now = vault.metadata(call, id).await?;
                    if !job.is_based_on(&now) {
                        return Err(superseded());
                    }
                }
                // An attempt in doubt may still be on its way to the vault, and arrive after the look.
                let seen = seen.as_ref().filter(|_| can_check);
                vault.update(call, id, content, base.or(seen)).await
            }
        }
    }

    /// The current object, if it has these bytes already and is the version that they were based on.
    async fn unchanged(
        self: &Arc<Self>,
        job: &Job,
        base: &Stored,
        content: &Content,
        call: &Call,
    ) -> Result<Option<Arc<Object>>, Error> {
        let may_be = match self.bytes_in_memory(base) {
            Some(before) => before.content.bytes == content.bytes,
            // Known to a worker that died. (Where an answer was lost, it is looked for anyway.)
            None => base.size == content.bytes.len() as u64 && !job.doubted,
        };
        if !may_be {
            return Ok(None);
        }
        // Asked even if the cache is fresh: what changed elsewhere a second ago must not swallow a save.
        let current = self.cache.fetch(call, &job.name).await?;
        Ok(current.filter(|c| !c.stale && c.object.content.bytes == content.bytes).map(|c| c.object))
    }

    /// The file is what was stored, now.
    pub(super) fn committed(&self, file: &Arc<File>, job: &Job, object: Arc<Object>) {
        let normalised = object.content.bytes.expose() != job.bytes.expose();
        let mut table = self.table();
        let other = table.file(&job.name).filter(|other| other.ino != file.ino);
        let mut state = file.state();
        // The time of the write stays the file's time: were it the vault's from now on, an editor would take its
        // own save for a change made elsewhere.
        let changed_at = state.mtime();
        state.local.mtime = Some((changed_at, Some(object.meta.version.clone())));
        *table.local(&job.name) = state.local.clone();
        state.stored = Some(Stored::of(&object));
        state.pinned = (state.opens > 0).then_some(object);
        state.failure = None;
        state.exclusive = false;
        state.sending = false;
        table.reveal(&job.name);
        if let Some(buffer) = &mut state.buffer {
            buffer.stored(job.generation);
        }
        let moved = match state.link {
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
        state.settle();
        drop(state);
        if let Some(other) = other.filter(|_| moved) {
            other.state().link = Link::Replaced;
            table.unpoint(&job.name, other.ino);
            table.drop_unheld(other.ino);
        }
        drop(table);
        if moved {
            self.reshow(&job.name);
        }
    }

    fn commit_failed(self: &Arc<Self>, file: &Arc<File>, job: &Job, cause: Cause, e: Error) -> Errno {
        let before = file.state().failure.as_ref().map(|f| (f.errno, f.number));
        let errno = Errno::from(&e);
        let number = match before {
            // Known, logged and told already: a retry by itself is news only if it fails in another way.
            Some((known, number)) if cause == Cause::Retry && known == errno => number,
            _ => {
                self.failed(cause.name(), job.name.as_str(), &e);
                self.failures.fetch_add(1, Ordering::Relaxed) + 1
            }
        };
        let mut state = file.state();
        // A try that was never sent clears up nothing about one before it.
        let in_doubt = e.maybe_applied || job.doubted;
        let generation = job.generation;
        let conflict = e.kind == ErrorKind::VersionMismatch;
        let key_refused = matches!(e.kind, ErrorKind::Unauthorized | ErrorKind::Forbidden);
        state.sending = e.maybe_applied;
        let failure =
            Failure { errno, message: e.to_string(), conflict, key_refused, in_doubt, generation, number };
        let again = failure.is_retried();
        state.failure = Some(failure);
        if again && state.retrying.is_none() {
            state.retrying = Some(self.clock.now() + FIRST_RETRY);
            self.runtime.spawn(self.clone().retry(file.clone()));
        }
        errno
    }

    /// Tries a failed commit again until it is stored, refused for good, or in conflict.
    pub(super) async fn retry(self: Arc<Self>, file: Arc<File>) {
        let mut pause = FIRST_RETRY;
        loop {
            file.state().retrying = Some(self.clock.now() + pause);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(self.last_pause(&file));
            let call = Call::background(self.clock.now() + self.options.timeout);
            let stored = self.commit_again(&file, &call, Cause::Retry).await.is_ok();
            let again = file.state().failure.as_ref().is_some_and(Failure::is_retried);
            if stored || !again {
                break;
            }
        }
        file.state().retrying = None;
        self.table().drop_unheld(file.ino);
    }

    /// A key that may not do it may stay so for weeks: each file costs at most one request a minute then.
    fn last_pause(&self, file: &File) -> Duration {
        let state = file.state();
        let refused = state.failure.as_ref().is_some_and(|failure| failure.key_refused);
        let looks_first = state.stored.is_some() && !self.cache.vault().capabilities().version_check;
        if refused && looks_first { LAST_RETRY * 2 } else { LAST_RETRY }
    }

    /// A commit that no program waits for: sent only while the vault has the version that the bytes are based on.
    async fn commit_again(self: &Arc<Self>, file: &Arc<File>, call: &Call, cause: Cause) -> Result<()> {
        if !file.state().is_dirty() {
            return Ok(());
        }
        // What was refused has changed nothing: the guarded commit sees by itself whether the vault has moved on.
        let sees = cause == Cause::Retry
            && file.state().failure.as_ref().is_some_and(|failure| failure.key_refused && !failure.in_doubt);
        if !sees && self.is_superseded(file, call).await == Some(true) {
            self.conflict(file);
            return Err(Errno::ESTALE);
        }
        self.commit(file, call, cause).await
    }

    /// Whether the vault has moved on from the version that the unsaved bytes are based on; `None` if it does not
    /// say.
    async fn is_superseded(&self, file: &File, call: &Call) -> Option<bool> {
        let (name, base, doubted) = {
            let state = file.state();
            (state.name.clone(), state.stored.clone(), state.is_in_doubt())
        };
        let is_ours =
            |now: &Object| file.state().buffer.as_ref().is_some_and(|b| b.bytes == *now.content.bytes);
        match (self.cache.vault().get_by_name(call, &name).await, base) {
            // A change whose answer was lost: the commit compares the bytes.
            (Ok(now), Some(_)) if doubted && is_ours(&now) => Some(false),
            (Ok(now), None) => Some(!is_ours(&now)),
            (Ok(now), Some(base)) => Some(!base.is(&now.meta)),
            (Err(e), base) if e.kind == ErrorKind::NotFound => Some(base.is_some()),
            (Err(_), _) => None,
        }
    }

    /// Before a file loses its name: if its creation is in doubt, finds out whether there is an object to delete.
    pub(super) async fn clear_doubt(&self, file: &File, call: &Call) -> Result<()> {
        let name = {
            let state = file.state();
            if state.stored.is_some() || !state.is_in_doubt() {
                return Ok(());
            }
            state.name.clone()
        };
        match self.cache.vault().get_by_name(call, &name).await {
            Ok(object) => {
                let mut state = file.state();
                if state.buffer.as_ref().is_some_and(|b| b.bytes == *object.content.bytes) {
                    state.stored = Some(Stored::of(&object));
                }
                Ok(())
            }
            Err(e) if e.kind == ErrorKind::NotFound => Ok(()),
            Err(e) => Err(self.failed("unlink", name.as_str(), &e)),
        }
    }

    /// What failed to be stored is in conflict with what the vault has: no retry is sent by itself.
    pub(super) fn conflict(&self, file: &File) {
        let mut state = file.state();
        let name = state.name.clone();
        if let Some(failure) = &mut state.failure {
            failure.conflict = true;
            failure.message = "the object has changed in the vault since; the bytes are kept here".to_owned();
            tracing::warn!(name = name.as_str(), "an unsaved write is in conflict with a newer version");
        }
    }

    /// Stores what is unsaved, deletes what should be gone, and names what is left of both afterwards.
    pub async fn drain(self: &Arc<Self>, what: Drain, patience: Duration) -> Vec<Unsaved> {
        let call = Call::foreground(self.clock.now() + patience);
        self.settle_all(what, &call).await;
        self.delete_refused(&call).await;
        self.delete_unreplaced(&call).await;
        let mut cause = Cause::Drain;
        loop {
            let unsaved: Vec<Arc<File>> = self.table().all_files().filter(|file| what.covers(file)).collect();
            let commits = unsaved.iter().map(|file| async {
                let failed = file.state().failure.as_ref().map(|f| f.conflict);
                // What fails is told by `unsaved` below.
                let _ = match failed {
                    Some(true) => Err(Errno::ESTALE),
                    Some(false) => self.commit_again(file, &call, cause).await,
                    None => self.commit(file, &call, cause).await,
                };
            });
            futures_util::future::join_all(commits).await;
            // A vault that fails at once may do better before the time is up. A key will hardly: where there is a new one
            // in its file, it was read at the first refusal.
            let may_do_better = |file: &Arc<File>| {
                let failed = |failure: &Failure| failure.is_retried() && !failure.key_refused;
                what.covers(file) && file.state().failure.as_ref().is_some_and(failed)
            };
            let owes = unsaved.iter().any(may_do_better) || self.owes_deletions();
            if !owes || self.left(&call) <= FIRST_RETRY {
                return self.left_over();
            }
            tokio::time::sleep(FIRST_RETRY).await;
            self.delete_unreplaced(&call).await;
            cause = Cause::Retry;
        }
    }
}
