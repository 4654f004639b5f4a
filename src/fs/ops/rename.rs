//! rename(2): the vault has none, so a file is stored under its new name, then its old name is
//! deleted.
//!
//! The order never loses the value: until the new name is stored the old one stays, and a failure
//! between the two leaves both. Onto an existing name it is an update, which keeps that object's
//! history; the history of the old name ends with its object. The inode goes along, as the kernel
//! expects: a program that has the file open has it open under its new name. Directories:
//! `move_dir`. Nothing is sent where a file only changes from one temporary name to another, or
//! becomes a backup (`provisional`). What is likely a backup by its name alone is stored like any
//! other, and its old object deleted a little later (`replace`).

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Instant;

use crate::failpoint;
use crate::fs::FileSystem;
use crate::fs::inode::file::{File, Link, Persistence};
use crate::fs::inode::{DeferredDelete, Node};
use crate::fs::name::DirPrefix;
use crate::fs::namespace::resolve::Place;
use crate::fs::temporary::deferred_delete::{is_backup_of, is_by_an_editor};
use crate::fs::temporary::provisional::PROMOTE_AFTER;
use crate::fs::types::ctx::{Intent, RequestCtx};
use crate::fs::types::errno::{Errno, Result};
use crate::fs::writeback::commit::Job;
use crate::vault::save::{Conditions, Saved};
use crate::vault::{Error, ErrorKind, ObjectName};

/// A place in the tree: a directory's inode number and a file name in it.
type At<'a> = (u64, &'a OsStr);

/// Where a file goes.
struct Goal {
    under: DirPrefix,
    name: ObjectName,
    /// What the name shows until then.
    target: Option<Arc<File>>,
    /// Whether it is stored under that name.
    persistence: Persistence,
    /// The old name is likely to be made anew: since when its object is hidden, rather than deleted
    /// (`replace`).
    hides: Option<Instant>,
}

impl FileSystem {
    /// RENAME, with renameat2(2)'s flags.
    pub async fn rename(
        self: &Arc<Self>,
        ctx: &RequestCtx,
        from: At<'_>,
        to: At<'_>,
        flags: u32,
    ) -> Result<()> {
        let (from_dir, to_dir) = (self.namespace.changeable(from.0)?, self.namespace.changeable(to.0)?);
        if flags & !libc::RENAME_NOREPLACE != 0 {
            return Err(Errno::EINVAL);
        }
        let replace = flags & libc::RENAME_NOREPLACE == 0;
        let work = Box::pin(self.rename_in(ctx, (from_dir, from.1), (to_dir, to.1), replace));
        self.propagator.within(from.0, self.propagator.within(to.0, work)).await
    }

    async fn rename_in(
        self: &Arc<Self>,
        ctx: &RequestCtx,
        (from_dir, from_name): (DirPrefix, &OsStr),
        (to_dir, to_name): (DirPrefix, &OsStr),
        replace: bool,
    ) -> Result<()> {
        ctx.call().await;
        let is_backup = is_backup_of(from_name, to_name)
            && if from_dir == to_dir { from_name != to_name } else { is_by_an_editor(ctx.caller.pid) };
        let hides = is_backup.then(|| self.env.now());
        if let Some(Intent::Rename { ino, name, over }) = &ctx.resumed {
            let to = (to_dir, to_name, name.clone());
            return self.move_on(ctx, &from_dir, to, (*ino, *over, hides)).await;
        }
        let source = match self.namespace.find(ctx, &from_dir, from_name).await? {
            Place::Local(file) => file,
            Place::Object(found) => self.namespace.file_node(&found),
            Place::Dir(dir) => {
                return self.move_dir(ctx, &dir, &from_dir, (&to_dir, to_name), replace).await;
            }
            Place::Absent if matches!(ctx.resumed, Some(Intent::RenameDir)) => return Ok(()),
            Place::Absent => return Err(Errno::ENOENT),
        };
        let target = match self.namespace.find(ctx, &to_dir, to_name).await? {
            Place::Local(file) => Some(file),
            Place::Object(found) => Some(self.namespace.file_node(&found)),
            Place::Dir(_) => return Err(Errno::EISDIR),
            Place::Absent => None,
        };
        if target.as_ref().is_some_and(|t| t.ino == source.ino) {
            return Ok(());
        }
        if target.is_some() && !replace {
            return Err(Errno::EEXIST);
        }
        self.may_replace(&source, target.as_deref())?;
        let name = self.name_to_create("rename", &to_dir, to_name)?;
        let persistence = self.temporaries.persistence_of_moved((to_name, &name), &source, target.as_deref());
        let goal = Goal { under: to_dir, name, target, persistence, hides };
        self.move_file(ctx, &from_dir, &source, goal).await
    }

    /// Goes on with a move that a worker's death cut off. Nothing here has changed before it is
    /// done; what the vault has already is found there.
    async fn move_on(
        self: &Arc<Self>,
        ctx: &RequestCtx,
        from_dir: &DirPrefix,
        (under, component, name): (DirPrefix, &OsStr, ObjectName),
        (ino, over, hides): (u64, Option<u64>, Option<Instant>),
    ) -> Result<()> {
        // Without its inode, or with its new name, it is done.
        let Ok(Node::File(source)) = self.inodes.node(ino) else { return Ok(()) };
        if source.state().name == name {
            return Ok(());
        }
        let target = match over.and_then(|ino| self.inodes.node(ino).ok()) {
            Some(Node::File(target)) => Some(target),
            _ => None,
        };
        let persistence =
            self.temporaries.persistence_of_moved((component, &name), &source, target.as_deref());
        self.move_file(ctx, from_dir, &source, Goal { under, name, target, persistence, hides }).await
    }

    async fn move_file(
        self: &Arc<Self>,
        ctx: &RequestCtx,
        from_dir: &DirPrefix,
        source: &Arc<File>,
        mut goal: Goal,
    ) -> Result<()> {
        let call = ctx.call().await;
        let in_use = source.in_use();
        self.load(call, source).await?;
        let mut locks = Vec::new();
        for file in [Some(source), goal.target.as_ref()].into_iter().flatten() {
            let lock = self.writeback.lock_commit(file, call).await;
            locks.push(lock.map_err(|e| self.env.failed("rename", file.state().name.as_str(), &e))?);
        }
        self.writeback.resolve_creation(source, call).await?;
        let (old_name, own) = self.temporaries.backing_objects(source);
        let job = self.job_under(source, &goal).ok_or(Errno::EIO)?;
        let stores = goal.persistence == Persistence::Vault;
        let reuses = stores && self.is_reusable(ctx, &goal.name);
        let mut deletes = if stores { own } else { Vec::new() };
        if let Some(target) = &goal.target {
            // What is overwritten is gone, as after an unlink.
            deletes.extend(self.inodes.lock().deletes_with(target));
        }
        deletes.retain(|(name, _)| *name != goal.name);
        if !deletes.is_empty() && self.env.options().no_delete {
            let why = "renaming deletes the old name, and the mount was made with --no-delete";
            return Err(self.env.refused("rename", old_name.as_str(), Errno::EPERM, why));
        }
        goal.hides = goal.hides.filter(|_| deletes.iter().any(|(name, _)| *name == old_name));
        deletes.retain(|(name, _)| goal.hides.is_none() || *name != old_name);
        let over = goal.target.as_ref().map(|target| target.ino);
        self.replay.record_intent(ctx, Intent::Rename { ino: source.ino, name: goal.name.clone(), over });
        if reuses {
            self.inodes.lock().reuse(&goal.name);
        }
        let stored = match stores {
            true => match self.writeback.store_moved(source, &job, call).await {
                Ok(saved) => Some(saved),
                Err(e) => return self.not_moved(ctx, (source, &old_name), (&goal.name, reuses), &e).await,
            },
            false => None,
        };
        failpoint::point("rename stored");
        for (name, id) in deletes {
            let deleted = self.delete_doomed(ctx, &old_name, &name, id).await;
            if deleted.is_err() && stored.is_some() {
                self.both_are_there(&goal);
            }
            deleted?;
        }
        failpoint::point("rename deleted");
        self.switch(from_dir, source, &old_name, &goal, stored.map(|saved| (&job, saved)));
        if let Some(since) = goal.hides {
            self.writeback.delete_later(old_name, since, PROMOTE_AFTER);
        }
        drop(in_use);
        self.temporaries.promote_later(source);
        Ok(())
    }

    /// The new name has the bytes, and the old one stays.
    fn both_are_there(&self, goal: &Goal) {
        if let Some(target) = &goal.target {
            // What it failed to store before does not go over them by itself.
            self.writeback.conflict(target);
        }
        // The kernel knows it as it was.
        self.propagator.repoint(&goal.name);
    }

    /// The file could not be stored under its new name.
    async fn not_moved(
        &self,
        ctx: &RequestCtx,
        (source, old_name): (&File, &ObjectName),
        (name, reuses): (&ObjectName, bool),
        e: &Error,
    ) -> Result<()> {
        if reuses {
            self.inodes.lock().cancel_reuse(name);
        }
        let old = source.state().stored.as_ref().map(|stored| stored.id.clone());
        if let (true, Some(_), Some(id)) = (e.kind == ErrorKind::MadeAndDeleted, &ctx.resumed, old)
            && let Err(gone) = self.env.cache().vault().metadata(ctx.call().await, &id).await
            && gone.kind == ErrorKind::NotFound
        {
            // The worker that died had done all of it, and the new name was deleted after that.
            source.change_alone().forget_sent(name);
            self.env.note_deleted(old_name, None);
            return Ok(());
        }
        Err(self.env.failed("rename", name.as_str(), e))
    }

    /// Whether an object is hidden under that name that a move may reuse; it may have done so
    /// before a crash.
    fn is_reusable(&self, ctx: &RequestCtx, name: &ObjectName) -> bool {
        let table = self.inodes.lock();
        table.is_hidden(name) || (ctx.resumed.is_some() && table.deferred(name).is_some())
    }

    /// The bytes of `source` as they will be stored under the new name, based on what that shows
    /// now.
    fn job_under(&self, source: &File, goal: &Goal) -> Option<Job> {
        let target = goal.target.as_ref().and_then(|t| t.state().stored.clone());
        // Over a hidden object the bytes are its next version, or what it was.
        let base =
            target.or_else(|| self.inodes.lock().deferred(&goal.name).map(|hidden| hidden.stored.clone()));
        let now = self.env.wall();
        let mut state = source.change_alone();
        state.buffer_of_stored(now)?;
        Job::under(&state, goal.name.clone(), base, Conditions::default())
    }

    /// From now on the inode hangs on its new name, and what that showed hangs on none.
    fn switch(
        &self,
        from_dir: &DirPrefix,
        source: &Arc<File>,
        old_name: &ObjectName,
        goal: &Goal,
        stored: Option<(&Job, Saved)>,
    ) {
        let now = self.env.wall();
        let tx = self.env.journal().begin();
        let mut table = self.inodes.lock_in(&tx);
        table.unpoint(old_name, source.ino);
        table.unpin(old_name);
        if let Some(target) = &goal.target {
            let mut state = target.change(&tx);
            state.link = Link::Unlinked;
            state.release();
            self.temporaries.account_room(&mut state);
        }
        let base = match &stored {
            Some((job, _)) => job.base.clone(),
            None => goal.target.as_ref().and_then(|t| t.state().stored.clone()),
        };
        // Held back under the name of an object that was unlinked, it is that object's next
        // version.
        let is_next = goal.persistence == Persistence::Provisional
            && table.deferred(&goal.name).is_some_and(DeferredDelete::is_unlinked);
        let base = base.or_else(|| is_next.then(|| table.reuse(&goal.name)).flatten());
        let object = {
            let mut state = source.change(&tx);
            // A new name is no new content. What is stored under it has the vault's time, like any
            // save.
            let mtime = state.set_mtime().or(stored.is_none().then(|| state.mtime()));
            let was_object = !state.is_only_here();
            let before = std::mem::replace(&mut state.stored, base);
            state.local.mtime = mtime.map(|at| (at, state.stored.as_ref().map(|s| s.version.clone())));
            state.name = goal.name.clone();
            state.persistence = goal.persistence;
            state.link = Link::Current;
            // That the name was free was asked of the old one: a rename replaces.
            state.exclusive = false;
            state.local.ctime = Some(now);
            self.temporaries.account_room(&mut state);
            *table.local(&goal.name) = state.local.clone();
            before.filter(|_| was_object)
        };
        match goal.persistence {
            Persistence::Vault => {
                table.detach(&tx, old_name, source);
                if let (Some(since), Some(stored)) = (goal.hides, object) {
                    table.defer_delete(old_name, stored, since);
                }
            }
            Persistence::Provisional => {
                table.hide(&tx, (old_name, object), source, goal.target.as_deref(), self.env.now());
            }
            Persistence::Scratch | Persistence::Made => {}
        }
        goal.target.iter().for_each(|target| table.forget_backup(&tx, target));
        table.point(&goal.name, source.ino);
        table.file_made(&goal.under, &goal.name);
        if let Some(target) = &goal.target {
            table.drop_unheld(target.ino);
        }
        [from_dir, &goal.under].into_iter().for_each(|dir| table.names_changed_in(dir, now));
        let stored =
            stored.map(|(job, saved)| (job, self.writeback.stored_in(&tx, &mut table, source, job, saved)));
        table.drop_unheld(source.ino);
        drop(table);
        if let Some((job, shows)) = stored {
            self.writeback.after_stored(&job.name, shows);
        }
    }
}
