//! Attributes: what stat(2) says.
//!
//! Sizes are true because an inode's bytes are known before its attributes are shown. Modes of new
//! files are cut to the mount's ceiling; what chmod, chown and utimens set is kept for the life of
//! the mount.

use std::time::{Duration, SystemTime};

use crate::fs::inode::file::{Link, LocalAttr};
use crate::fs::inode::{DirKind, Node};
use crate::fs::namespace::Namespace;
use crate::fs::types::attr::{Attr, FileKind, SetAttr};
use crate::fs::{Errno, Result};

impl Namespace {
    /// For how long the kernel may keep attributes. A chmod of a file changes which users may read
    /// its history, which the kernel does not know to belong to it: that is asked for each time,
    /// where there is a chmod.
    pub(in crate::fs) fn attr_ttl(&self, node: &Node) -> Duration {
        match node {
            // Its times are others once it is stored.
            Node::File(file) if file.state().is_dirty() => Duration::ZERO,
            Node::File(_) => self.env.ttl(self.env.options().refresh),
            Node::Dir(dir) if matches!(dir.kind, DirKind::Tree(_)) => {
                self.env.ttl(self.env.options().refresh)
            }
            Node::Dir(_) | Node::Version(_) if !self.env.options().read_only => Duration::ZERO,
            Node::Control(_) | Node::Dir(_) | Node::Version(_) => self.env.options().refresh,
        }
    }

    /// The attributes of an inode.
    pub(in crate::fs) fn attr(&self, node: &Node) -> Attr {
        match node {
            Node::Dir(dir) => {
                let table = self.inodes.lock();
                let changed = table.dir_mtime(&dir.kind).unwrap_or(self.env.started());
                let (perm, local) = match &dir.kind {
                    DirKind::Tree(_) => {
                        let local = table.dir_local_of(&dir.kind).cloned().unwrap_or_default();
                        let nlink = u32::from(!table.is_removed(dir));
                        drop(table);
                        return Attr { nlink, ..self.tree_dir_attr(dir.ino, changed, &local) };
                    }
                    DirKind::Histories(prefix) => {
                        let local = table.dir_local_of(&DirKind::Tree(prefix.clone()));
                        (local.and_then(|l| l.mode).unwrap_or(self.env.options().dir_mode) & 0o555, local)
                    }
                    DirKind::History(name, _) => {
                        let local = table.local_of(name);
                        let read = self.history_perm(local);
                        (read | read >> 2, local)
                    }
                    DirKind::Control => (self.env.options().dir_mode & 0o500, None),
                };
                self.plain((dir.ino, FileKind::Directory), 0, perm, changed, local)
            }
            Node::File(file) => {
                let state = file.state();
                let (local, mtime) = (&state.local, state.mtime());
                let perm = local.mode.unwrap_or(self.env.options().file_mode);
                Attr {
                    atime: local.atime.unwrap_or(mtime),
                    ctime: local.ctime.map_or(mtime, |c| c.max(mtime)),
                    nlink: u32::from(state.link != Link::Unlinked),
                    ..self.plain((file.ino, file.kind), state.size(), perm, mtime, Some(local))
                }
            }
            Node::Version(version) => {
                let table = self.inodes.lock();
                let local = table.local_of(&version.name);
                let (perm, made) = (self.history_perm(local), version.info.created_at);
                self.plain((version.ino, FileKind::Regular), version.size(), perm, made, local)
            }
            Node::Control(control) => {
                let size = control.text.len() as u64;
                self.plain((control.ino, FileKind::Regular), size, 0o400, control.taken, None)
            }
        }
    }

    /// How many files and directories have an owner that was set here.
    pub(in crate::fs) fn owners_set(&self) -> usize {
        let is_other = |local: &LocalAttr| {
            local.uid.is_some_and(|uid| uid != self.env.options().uid)
                || local.gid.is_some_and(|gid| gid != self.env.options().gid)
        };
        self.inodes.lock().all_local().filter(|local| is_other(local)).count()
    }

    /// A directory's time of change is what utimens set, until its names change.
    fn tree_dir_attr(&self, ino: u64, changed: SystemTime, local: &LocalAttr) -> Attr {
        let perm = local.mode.unwrap_or(self.env.options().dir_mode);
        let set = local.mtime.as_ref().filter(|_| local.ctime.is_some_and(|set| set >= changed));
        let mtime = set.map_or(changed, |(at, _)| *at);
        Attr {
            atime: local.atime.unwrap_or(mtime),
            ctime: local.ctime.map_or(changed, |c| c.max(changed)),
            ..self.plain((ino, FileKind::Directory), 0, perm, mtime, Some(local))
        }
    }

    /// The users that may read an object's versions: those that may read its file.
    fn history_perm(&self, local: Option<&LocalAttr>) -> u32 {
        local.and_then(|local| local.mode).unwrap_or(self.env.options().file_mode) & 0o444
    }

    /// With the owner that was set here, one name and one time.
    fn plain(
        &self,
        (ino, kind): (u64, FileKind),
        size: u64,
        perm: u32,
        mtime: SystemTime,
        local: Option<&LocalAttr>,
    ) -> Attr {
        let options = self.env.options();
        let perm = if options.read_only { perm & 0o555 } else { perm } as u16;
        let uid = local.and_then(|local| local.uid).unwrap_or(options.uid);
        let gid = local.and_then(|local| local.gid).unwrap_or(options.gid);
        Attr { ino, size, kind, nlink: 1, perm, atime: mtime, mtime, ctime: mtime, uid, gid }
    }

    /// chmod, chown and utimens of a file or directory: kept in memory. The kernel has checked that
    /// the caller may.
    pub(in crate::fs) fn set_local(&self, node: &Node, set: &SetAttr) -> Result<()> {
        if self.env.options().read_only {
            return Err(Errno::EROFS);
        }
        // An engine that hands over an empty volume (podman's `:U`) changes the owner of all that
        // it lists. The control files keep their owner.
        let is_handed_over = self.env.options().never_empty && set.mode.is_none();
        let now = self.env.wall();
        match node {
            Node::File(file) => {
                let (name, local, shows) = {
                    let mut state = file.change_alone();
                    let state = &mut *state;
                    let version = state.stored.as_ref().map(|s| s.version.clone());
                    let local = &mut state.local;
                    local.set(set, file.kind);
                    if let Some(mtime) = set.mtime {
                        local.mtime = Some((mtime, version));
                    }
                    local.ctime = Some(now);
                    (state.name.clone(), local.clone(), state.link == Link::Current)
                };
                if shows {
                    // Of an inode that was replaced or unlinked the name keeps nothing.
                    *self.inodes.lock().local(&name) = local;
                }
                Ok(())
            }
            Node::Dir(dir) if matches!(dir.kind, DirKind::Tree(_)) => {
                let mut table = self.inodes.lock();
                let local = table.dir_local(&dir.kind);
                local.set(set, FileKind::Directory);
                local.mtime = set.mtime.map(|at| (at, None)).or(local.mtime.take());
                local.ctime = Some(now);
                Ok(())
            }
            Node::Control(_) if is_handed_over => Ok(()),
            Node::Dir(dir) if is_handed_over && matches!(dir.kind, DirKind::Control) => Ok(()),
            Node::Dir(_) | Node::Version(_) | Node::Control(_) => Err(Errno::EPERM),
        }
    }

    /// The mode of a new file: what was asked for, less the umask, cut to the ceiling.
    pub(in crate::fs) fn new_mode(&self, mode: u32, umask: u32) -> u32 {
        mode & 0o777 & !umask & self.env.options().file_mode
    }
}
