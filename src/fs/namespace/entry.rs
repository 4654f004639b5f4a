//! Entries: what a lookup returns for a place in the tree, and how the kernel is made to look a
//! name up again.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use crate::fs::Entry;
use crate::fs::inode::file::File;
use crate::fs::inode::{DirKind, Node};
use crate::fs::namespace::Namespace;
use crate::fs::namespace::resolve::Place;
use crate::vault::ObjectName;

impl Namespace {
    /// Counts the lookup and makes the entry.
    pub(in crate::fs) fn entry(&self, node: &Node, ttl: Duration) -> Entry {
        self.inodes.lock().hold(node);
        Entry { attr: self.attr(node), ttl }
    }

    pub(in crate::fs) fn tree_entry(&self, place: Place) -> Option<Entry> {
        match place {
            Place::Dir(prefix) => Some(self.dir_entry(&DirKind::Tree(prefix))),
            Place::Local(file) => Some(self.own_entry(&file)),
            Place::Object(found) => {
                let file = self.file_node(&found);
                Some(self.entry(&Node::File(file), self.env.ttl(found.ttl)))
            }
            Place::Absent => None,
        }
    }

    /// The entry of a file that has bytes of ours.
    pub(in crate::fs) fn own_entry(&self, file: &Arc<File>) -> Entry {
        let node = Node::File(file.clone());
        let ttl = self.attr_ttl(&node).min(self.env.options().refresh);
        self.entry(&node, ttl)
    }

    /// Asked for at each use, where names are unlinked and made anew: they have another history
    /// then.
    pub(in crate::fs) fn history_entry(&self, place: Place) -> Option<Entry> {
        let entry = match place {
            Place::Dir(prefix) => Some(self.dir_entry(&DirKind::Histories(prefix))),
            Place::Local(file) => {
                let state = file.state();
                let (name, stored) = (state.name.clone(), state.stored.clone());
                drop(state);
                Some(self.dir_entry(&DirKind::History(name, stored?.id)))
            }
            Place::Object(found) => {
                let meta = &found.object.meta;
                Some(self.dir_entry(&DirKind::History(meta.name.clone(), meta.id.clone())))
            }
            Place::Absent => None,
        };
        if self.env.options().read_only {
            return entry;
        }
        entry.map(|entry| Entry { ttl: Duration::ZERO, ..entry })
    }

    /// The entry of a directory.
    pub(in crate::fs) fn dir_entry(&self, kind: &DirKind) -> Entry {
        let dir = self.inodes.lock().dir(kind);
        let node = Node::Dir(dir);
        let ttl = self.attr_ttl(&node);
        self.entry(&node, ttl)
    }

    /// Makes the kernel look `name` up again.
    pub(in crate::fs) fn inval_name(&self, name: &ObjectName) {
        self.inodes.lock().names_changed();
        if let (Some(kernel), Some((parent, text))) = (self.env.kernel(), self.position(name)) {
            kernel.inval_entry(parent, OsStr::new(&text));
        }
    }
}
