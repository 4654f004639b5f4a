//! rename(2) of a directory that is in memory alone: made here, with nothing in it but others like
//! it.
//!
//! Any other is EXDEV, because the vault has no rename and each object below would end its history:
//! mv(1) then copies, which is what it says it does. The kernel moves the entry with its inode, so
//! the inode gets the new name here.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::fs::FileSystem;
use crate::fs::inode::{Dir, DirKind, Node, Table};
use crate::fs::name::{DirPrefix, SELF};
use crate::fs::namespace::resolve::Place;
use crate::fs::types::ctx::{Intent, RequestCtx};
use crate::fs::types::errno::{Errno, Result};
use crate::vault::cache::PrefixState;

impl FileSystem {
    /// Moves `dir` to the file name `to.1` in the directory `to.0`.
    pub(in crate::fs) async fn move_dir(
        self: &Arc<Self>,
        ctx: &RequestCtx,
        dir: &DirPrefix,
        from: &DirPrefix,
        to: (&DirPrefix, &OsStr),
        replace: bool,
    ) -> Result<()> {
        let goal = self.dir_to_make("rename", to.0, to.1)?;
        if goal == *dir {
            return Ok(());
        }
        if goal.as_str().starts_with(dir.as_str()) {
            return Err(Errno::EINVAL);
        }
        let call = ctx.call().await;
        self.env.cache().list_all(call).await.map_err(|e| self.env.failed("rename", dir.as_str(), &e))?;
        let over = match self.namespace.find(ctx, to.0, to.1).await? {
            Place::Absent => None,
            Place::Dir(_) if !replace => return Err(Errno::EEXIST),
            Place::Dir(target) if self.namespace.names_in(&target).is_empty() => Some(target),
            Place::Dir(_) => return Err(Errno::ENOTEMPTY),
            Place::Local(_) | Place::Object(_) => return Err(Errno::ENOTDIR),
        };
        let alone = self.is_in_memory_alone(dir);
        if let Some(target) = over.filter(|_| alone) {
            // Empty as it looks, objects can be hidden in it: they end as at rmdir(2).
            self.temporaries.flush_deferred_in(&target, call).await?;
            if !self.is_in_memory_alone(&target) || !self.namespace.names_in(&target).is_empty() {
                return Err(Errno::ENOTEMPTY);
            }
        }
        if !self.is_in_memory_alone(dir) {
            return Err(Errno::EXDEV);
        }
        let now = self.env.wall();
        let tx = self.env.journal().begin();
        self.replay.record_intent_in(&tx, ctx, Intent::RenameDir);
        let mut table = self.inodes.lock_in(&tx);
        let gone = table.dir_ino(&DirKind::Tree(goal.clone()));
        table.move_dirs(dir, &goal);
        table.dir_local(&DirKind::Tree(goal)).ctime = Some(now);
        for parent in [from, to.0] {
            if !parent.is_root() {
                table.made().insert(parent.clone());
            }
            table.touch(&DirKind::Tree(parent.clone()), now);
        }
        drop(table);
        gone.into_iter().for_each(|ino| self.namespace.dir_removed(ino));
        Ok(())
    }

    /// Whether no object and no file is below `dir`, as far as all names are known.
    fn is_in_memory_alone(&self, dir: &DirPrefix) -> bool {
        if self.namespace.names_in(dir).contains_key(SELF) {
            return false;
        }
        let table = self.inodes.lock();
        !dir.is_continuation()
            && self.env.cache().prefix_state(dir.as_str()) != PrefixState::Yes
            && !table.files_under(dir.as_str()).any(|(_, file)| file.state().is_beyond_vault())
            && table.deferred_below(dir.as_str()).next().is_none()
    }
}

impl Table {
    /// `from` and all directories below it are below `to` now, with the same inodes.
    fn move_dirs(&mut self, from: &DirPrefix, to: &DirPrefix) {
        let moved = |dir: &DirPrefix| {
            let rest = dir.as_str().strip_prefix(from.as_str())?;
            DirPrefix::new(&format!("{}{rest}", to.as_str()))
        };
        let made: Vec<(DirPrefix, DirPrefix)> =
            self.made().iter().filter_map(|dir| Some((dir.clone(), moved(dir)?))).collect();
        for (kind, dir) in self.dirs_of_the_tree() {
            if let DirKind::Tree(prefix) = &kind
                && let Some(prefix) = moved(prefix)
            {
                self.rename_dir(
                    &kind,
                    Node::Dir(Arc::new(Dir { ino: dir.ino, kind: DirKind::Tree(prefix) })),
                );
            }
        }
        for (old, new) in made {
            self.made().remove(&old);
            self.made().insert(new);
        }
        self.made().insert(to.clone());
    }
}
