//! Commits: a file's buffer becomes a version of its object.
//!
//! 1. **Acknowledged is stored.** A commit ends well only when the vault has the bytes. One that
//!    fails leaves them in the buffer with the [`Failure`], readable, listed in `status`, and tried
//!    again.
//! 2. **One save, one version.** A lock serializes the commits of a file; a commit stores one
//!    generation of the buffer, and a later commit of the same generation finds it stored. Bytes
//!    that the vault has already make no version.
//! 3. **A retry by itself never overwrites a newer version**: it is sent only while the vault still
//!    has the version that the bytes were based on; else it is a conflict, and a person decides.
//!
//! How the bytes get to the vault, and what becomes of a save in doubt, is
//! [`save`](crate::vault::save)'s.

use std::sync::Arc;

use crate::failpoint;
use crate::fs::inode::Table;
use crate::fs::inode::file::{File, FileState, Link, Sent};
use crate::fs::journal::Transaction;
use crate::fs::propagation::repoint::Repoints;
use crate::fs::types::errno::{Errno, Result};
use crate::fs::writeback::Writeback;
use crate::fs::writeback::may_write::Change;
use crate::secret::SecretBytes;
use crate::vault::save::{Attempt, Conditions, Outcome, Save, Saved, Stored};
use crate::vault::{Call, Content, Error, ErrorKind, Meta, Object, ObjectName, codec};

/// What made a commit necessary. It decides whether the commit may overwrite a newer version and
/// which times the file gets, and is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fs) enum Cause {
    Close,
    Fsync,
    Release,
    Truncate,
    Link,
    Unlink,
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
        matches!(self, Cause::Close | Cause::Fsync | Cause::Truncate | Cause::Link | Cause::Unlink)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Cause::Close => "close",
            Cause::Fsync => "fsync",
            Cause::Release => "last close",
            Cause::Truncate => "truncate",
            Cause::Link => "link",
            Cause::Unlink => "unlink",
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
    pub conditions: Conditions,
    /// An attempt to store these bytes that may have been made.
    pub sent: Option<Attempt>,
    /// A program waits for it: the file has not been looked at since it was closed.
    pub waited_for: bool,
}

impl Job {
    fn of(state: &FileState, guarded: bool, cause: Cause) -> Option<Self> {
        if !state.is_dirty() {
            return None;
        }
        // A person has seen the conflict and wants these bytes.
        let insists = cause == Cause::Asked;
        let conditions = Conditions { exclusive: state.exclusive, guarded, insists };
        let job = Self::under(state, state.name.clone(), state.stored.clone(), conditions)?;
        Some(Self { waited_for: cause.is_waited_for(), ..job })
    }

    /// The bytes of the buffer under this name; a program waits for it.
    pub fn under(
        state: &FileState,
        name: ObjectName,
        base: Option<Stored>,
        conditions: Conditions,
    ) -> Option<Self> {
        let buffer = state.buffer.as_ref()?;
        let (bytes, generation, sent) = (buffer.bytes.clone(), buffer.generation, state.sent(&name).cloned());
        Some(Self { name, bytes, generation, base, conditions, sent, waited_for: true })
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

impl Writeback {
    /// Stores what the file's buffer holds now. Succeeds if the vault has it, even if stored by
    /// another client.
    pub async fn commit(self: &Arc<Self>, file: &Arc<File>, call: &Call, cause: Cause) -> Result<()> {
        let goal = {
            let state = file.state();
            if let Some(refused) = state.write_error.filter(|_| state.is_dirty()) {
                // Reported and logged at the write.
                return Err(refused);
            }
            state.buffer.as_ref().map_or(0, |b| b.generation)
        };
        loop {
            let permits = async {
                let lock = self.lock_commit(file, call).await?;
                // Held until the journal has that it is stored: a successor then knows
                // (`hold_stores`).
                Ok((lock, self.among_stores(call).await?))
            };
            let (_lock, permit) = permits
                .await
                .map_err(|e: Error| self.env.failed(cause.name(), file.state().name.as_str(), &e))?;
            let Some(job) = self.job_of(file, cause)? else { return Ok(()) };
            failpoint::point("commit");
            match self.store(file, &job, call).await {
                Ok(saved) => {
                    failpoint::point("stored");
                    let tx = self.env.journal().begin();
                    let shows = self.stored_in(&tx, &mut self.inodes.lock_in(&tx), file, &job, saved);
                    self.after_stored(&job.name, shows);
                }
                Err(e) => return Err(self.commit_failed(file, &job, cause, &e)),
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
            Cause::Asked => false,
            _ => self.env.options().strict,
        };
        Ok(Job::of(&state, guarded, cause))
    }

    /// Brings a job to the vault; the caller holds the file's commit lock and a permit for stores.
    /// An error says in `maybe_applied` whether any attempt may have been made.
    async fn store(&self, file: &File, job: &Job, call: &Call) -> Result<Saved, Error> {
        let content = self.content_of(job)?;
        if let (None, Some(base)) = (&job.sent, &job.base)
            && let Some(object) = self.unchanged(base, &content, job, call).await?
        {
            return Ok(Saved::current(object));
        }
        let progress = |attempt: &Attempt, answer: Option<&Result<Meta, Error>>| match answer {
            None => {
                let (name, generation, attempt) = (job.name.clone(), job.generation, attempt.clone());
                file.change_alone().note_sent(Sent { name, generation, attempt });
            }
            Some(made) => self.note_save(job, Change::of(&attempt.after), made.as_ref().err()),
        };
        self.save_of(job, &content, call).run(&progress).await
    }

    /// Stores a file under its new name.
    pub async fn store_moved(&self, source: &File, job: &Job, call: &Call) -> Result<Saved, Error> {
        let _permit = self.among_stores(call).await?;
        let stored = self.store(source, job, call).await;
        if stored.as_ref().is_err_and(|e| !e.maybe_applied) {
            source.change_alone().forget_sent(&job.name);
        }
        stored
    }

    fn save_of<'a>(&'a self, job: &'a Job, content: &'a Content, call: &'a Call) -> Save<'a> {
        let Job { name, base, sent, conditions, .. } = job;
        Save {
            cache: self.env.cache(),
            call,
            name,
            content,
            base: base.as_ref(),
            sent: sent.as_ref(),
            conditions: *conditions,
        }
    }

    /// The bytes as the vault takes them.
    fn content_of(&self, job: &Job) -> Result<Content, Error> {
        let form = job.base.as_ref().map(|base| base.form);
        codec::to_content(self.env.options().format, form, job.bytes.expose()).map_err(|e| {
            let maybe_applied = job.sent.is_some();
            Error { maybe_applied, ..Error::new(ErrorKind::Invalid, e.to_string()) }
        })
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
        let may_be = match self.env.bytes_in_memory(base) {
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

    /// The file is what was stored, now, as a part of a change; [`Writeback::after_stored`] is due
    /// when that is published.
    pub fn stored_in(
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
            moved || (is_behind && !is_ours && !self.namespace.is_newest(other))
        };
        if let Some(other) = other.filter(gives_way) {
            {
                let mut state = other.change(tx);
                self.inodes.mark_replaced(&mut state);
            }
            table.unpoint(&job.name, other.ino);
            table.drop_unheld(other.ino);
        }
        if moved || superseded {
            Repoints::note_in(tx, &job.name);
        }
        Shows { superseded, moved }
    }

    pub fn after_stored(&self, name: &ObjectName, shows: Shows) {
        if shows.superseded {
            self.env.cache().superseded(name);
        }
        if shows.moved || shows.superseded {
            self.propagator.repoint(name);
        }
    }

    /// Before a file loses its name: if its creation is in doubt, finds out whether there is an
    /// object to delete.
    pub async fn resolve_creation(&self, file: &File, call: &Call) -> Result<()> {
        let job = Job::of(&file.state(), false, Cause::Unlink).filter(|job| job.base.is_none());
        let Some((job, sent)) = job.and_then(|job| job.sent.clone().map(|sent| (job, sent))) else {
            return Ok(());
        };
        let failed = |e| self.env.failed(Cause::Unlink.name(), job.name.as_str(), &e);
        let content = self.content_of(&job).map_err(failed)?;
        let outcome = self.save_of(&job, &content, call).outcome(Some(&sent), false).await;
        if let Outcome::Made(saved) = outcome.map_err(failed)? {
            file.change_alone().stored = Some(Stored::of(&saved.object));
        }
        Ok(())
    }
}
