//! unlink(2): deletes the object, history and all, or hides it for a moment where its name may be
//! made anew (`replace`). A file that never reached the vault just goes.

use std::ffi::OsStr;
use std::future::Future;
use std::sync::Arc;

use crate::failpoint;
use crate::fs::FileSystem;
use crate::fs::inode::Node;
use crate::fs::inode::file::{File, Link};
use crate::fs::name::DirPrefix;
use crate::fs::namespace::resolve::Place;
use crate::fs::temporary::remover::Remover;
use crate::fs::types::ctx::{Intent, RequestCtx};
use crate::fs::types::errno::{Errno, Result};
use crate::vault::{Call, ErrorKind, ObjectId, ObjectName};

impl FileSystem {
    /// UNLINK. Open handles keep the bytes. `remover` is waited for first: the program may be gone
    /// later.
    pub async fn unlink(
        self: &Arc<Self>,
        ctx: &RequestCtx,
        parent: u64,
        component: &OsStr,
        remover: impl Future<Output = Remover>,
    ) -> Result<()> {
        let under = self.namespace.changeable(parent)?;
        let work = async {
            ctx.call().await;
            let hides = match remover.await {
                Remover::Removes => false,
                Remover::Replaces => true,
                Remover::Unknown => !self.env.options().no_delete,
            };
            let file = match ctx.resumed {
                Some(Intent::Unlink { ino }) => match self.still_to_unlink(ino) {
                    Some(file) => file,
                    None => return Ok(()),
                },
                _ => match self.namespace.find(ctx, &under, component).await? {
                    Place::Local(file) => file,
                    Place::Object(found) => self.namespace.file_node(&found),
                    Place::Dir(_) => return Err(Errno::EISDIR),
                    Place::Absent => return Err(Errno::ENOENT),
                },
            };
            if self.unlink_one_name(ctx, &under, component, &file)? {
                return Ok(());
            }
            self.remove(ctx, &under, &file, hides).await
        };
        self.propagator.within(parent, Box::pin(work)).await
    }

    /// The file that was being unlinked when the last worker died, if that is not done.
    fn still_to_unlink(&self, ino: u64) -> Option<Arc<File>> {
        match self.inodes.node(ino) {
            Ok(Node::File(file)) if file.state().link != Link::Unlinked => Some(file),
            _ => None,
        }
    }

    /// Takes `file` from its name. With `hides` its object only goes if the name is not made anew
    /// at once.
    async fn remove(
        self: &Arc<Self>,
        ctx: &RequestCtx,
        under: &DirPrefix,
        file: &Arc<File>,
        hides: bool,
    ) -> Result<()> {
        let call = ctx.call().await;
        // A commit that is out has to end first: it would make the object anew.
        let lock = self.writeback.lock_commit(file, call).await;
        let _lock = lock.map_err(|e| self.env.failed("unlink", file.state().name.as_str(), &e))?;
        self.writeback.resolve_creation(file, call).await?;
        let (name, deletes) = self.temporaries.backing_objects(file);
        self.replay.record_intent(ctx, Intent::Unlink { ino: file.ino });
        if !hides || !self.temporaries.hide_unlinked(file) {
            if self.env.options().no_delete && !deletes.is_empty() {
                let why = "the mount was made with --no-delete";
                return Err(self.env.refused("unlink", name.as_str(), Errno::EPERM, why));
            }
            for (object, id) in deletes {
                self.delete_doomed(ctx, &name, &object, id).await?;
            }
        }
        failpoint::point("deleted");
        let tx = self.env.journal().begin();
        let mut table = self.inodes.lock_in(&tx);
        {
            let mut state = file.change(&tx);
            state.link = Link::Unlinked;
            state.release();
            self.temporaries.account_room(&mut state);
        }
        table.unpoint(&name, file.ino);
        table.unpin(&name);
        table.detach(&tx, &name, file);
        table.names_changed_in(under, self.env.wall());
        table.drop_unheld(file.ino);
        Ok(())
    }

    /// Deletes what goes with a file that had the name `own`: its own object, or one that is hidden
    /// behind it.
    pub(in crate::fs) async fn delete_doomed(
        &self,
        ctx: &RequestCtx,
        own: &ObjectName,
        object: &ObjectName,
        id: ObjectId,
    ) -> Result<()> {
        let call = ctx.call().await;
        if object == own {
            self.delete(call, object, id, ctx.resumed.is_some()).await
        } else {
            let deleted = self.writeback.delete_hidden(object, |hidden| hidden.stored.id == id, call).await;
            deleted.map(drop).map_err(|e| self.env.failed("unlink", object.as_str(), &e))
        }
    }

    /// Deletes what the name means now: the object we know, or the one that took its name
    /// meanwhile. With `again` it may have been deleted before a crash.
    async fn delete(&self, call: &Call, name: &ObjectName, known: ObjectId, again: bool) -> Result<()> {
        let failed = |e| self.env.failed("unlink", name.as_str(), &e);
        let mut id = known;
        let mut maybe_applied = false;
        for _ in 0..2 {
            match self.writeback.delete_object(call, &id, None).await {
                Ok(()) => {
                    self.env.note_deleted(name, None);
                    return Ok(());
                }
                // Deleted before a crash; the name now has an object made elsewhere.
                Err(e) if e.kind == ErrorKind::NotFound && again => {
                    self.env.note_deleted(name, Some(&id));
                    return Ok(());
                }
                Err(e) if e.kind == ErrorKind::NotFound || e.maybe_applied => {
                    maybe_applied |= e.maybe_applied
                }
                Err(e) => return Err(failed(e)),
            }
            match self.env.cache().vault().get_by_name(call, name).await {
                Ok(object) => id = object.meta.id,
                Err(e) if e.kind == ErrorKind::NotFound => {
                    self.env.note_deleted(name, None);
                    return Ok(());
                }
                Err(e) => return Err(failed(e)),
            }
        }
        let why = if maybe_applied {
            "no answer shows whether it was deleted"
        } else {
            "it is replaced elsewhere all the time"
        };
        Err(self.env.refused("unlink", name.as_str(), Errno::EIO, why))
    }
}
