//! Revocation: the vault refuses what it gave before, and no program may see it any more.
//!
//! It overrides that an open handle keeps its version. Bytes that came from the vault leave the
//! inodes, and the kernel is notified to forget its pages, entries and listings; the next read then
//! asks the vault, by id and version, and gets EACCES, or the same bytes again once the key is
//! taken again. Revocation does not cover what was written here and is not in the vault: unsaved
//! bytes, scratch and provisional files stay.
//!
//! An idle mount would not observe it: it takes the kernel's pages and listings back by then, so
//! that the next read comes here, and asks the vault before it is answered (`vault::cache::idle`).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::fs::handle::Held;
use crate::fs::inode::file::{File, Link};
use crate::fs::inode::{DirKind, Node, VersionFile};
use crate::fs::propagation::Propagator;
use crate::vault::ObjectName;
use crate::vault::cache::RevocationListener;

impl RevocationListener for Propagator {
    fn refused(&self, name: Option<&ObjectName>) {
        let (files, versions) = {
            let table = self.inodes.lock();
            let files: Vec<Arc<File>> = table.all_files().collect();
            (files, table.all_versions())
        };
        let files = files.into_iter().filter(|file| name.is_none_or(|name| file.state().name == *name));
        let versions = versions.into_iter().filter(|version| name.is_none_or(|name| version.name == *name));
        for file in files {
            self.take_bytes(&file);
        }
        for version in versions {
            self.take_version(&version);
        }
        if name.is_none() {
            self.take_listings_away();
        }
    }
}

impl Propagator {
    /// The mount falls asleep: nothing of the vault's is to be read on without us.
    pub(in crate::fs) fn take_back_pages(&self) {
        let Some(kernel) = self.env.kernel() else { return };
        let (files, versions) = {
            let table = self.inodes.lock();
            let given = table.all_files().filter(|file| file.clear_kernel_cached());
            (given.map(|file| file.ino).collect::<Vec<_>>(), table.all_versions())
        };
        let inodes = files.into_iter().chain(versions.iter().map(|version| version.ino));
        inodes.for_each(|ino| kernel.inval_inode(ino));
        self.namespace.forget_kernel_listings();
    }

    /// Whether a revocation takes away what is read of this inode.
    pub(in crate::fs) fn may_be_taken_away(&self, ino: u64) -> bool {
        match self.inodes.node(ino) {
            Ok(Node::File(file)) => file.state().may_be_taken_away(),
            Ok(Node::Version(_)) => true,
            Ok(Node::Dir(_) | Node::Control(_)) | Err(_) => false,
        }
    }

    fn take_bytes(&self, file: &Arc<File>) {
        let shown = {
            let mut state = file.change_alone();
            if !state.may_be_taken_away() {
                return;
            }
            (state.pinned, state.retained, state.buffer) = (None, None, None);
            (state.link == Link::Current).then(|| state.name.clone())
        };
        self.env.inval_inode(file.ino);
        if let Some(name) = shown {
            self.namespace.inval_name(&name);
        }
    }

    fn take_version(&self, version: &VersionFile) {
        version.refused.store(true, Ordering::Release);
        self.inodes.lock().note_node(version.ino);
        self.env.inval_inode(version.ino);
    }

    /// Readers of directories have to wait for a new request, at any position.
    fn take_listings_away(&self) {
        for handle in self.handles.all() {
            if let Held::Dir { listing, dir, .. } = &handle.held
                && !matches!(dir.kind, DirKind::Control)
                && let Some(listing) = &*listing.lock()
            {
                listing.take_away();
            }
        }
        self.namespace.take_listings_away();
    }
}
