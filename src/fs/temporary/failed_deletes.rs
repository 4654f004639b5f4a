//! Deletions that the vault did not make although rename(2) or unlink(2) has answered: of what was
//! hidden first, because its name was likely to be made anew (`provisional`, `replace`).
//!
//! No program waits for an answer any more, so `user.vault.error`, status and `vaultfs pending`
//! report it. While the vault is away the object stays hidden and the deletion is tried again; what
//! the vault refuses shows again, and a person decides. Each is forgotten with what it was about:
//! the name is stored anew, renamed or unlinked, or changes elsewhere.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::fs::FileSystem;
use crate::fs::inode::{DeferredDelete, FailedDeleteRecord};
use crate::fs::types::errno::Errno;
use crate::vault::cache::{Peek, is_outage};
use crate::vault::{Call, Error, ErrorKind, ObjectName};

/// An object that should be gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedDelete {
    /// Its name.
    pub name: String,
    /// Where it shows, below the mount point.
    pub path: String,
    /// Why it is still there.
    pub error: String,
    /// It does not show, and its deletion is tried again by itself.
    pub retried: bool,
}

impl FileSystem {
    /// Objects that should be gone, by name.
    pub fn failed_deletes(&self) -> Vec<FailedDelete> {
        let known: Vec<_> = {
            let table = self.inodes.lock();
            let all = table.failed_deletes.iter();
            all.map(|(name, kept)| (name.clone(), kept.clone(), table.is_hidden(name))).collect()
        };
        let mut failed_deletes = Vec::new();
        for (name, kept, retried) in known {
            let is_still_there = match self.env.cache().peek(&name) {
                Peek::Value(found) => kept.stored.is(&found.object.meta),
                Peek::Absent(_) | Peek::AbsentBefore => false,
                Peek::Exists | Peek::Unknown => true,
            };
            if is_still_there {
                let path = self.path_of(name.as_str());
                failed_deletes.push(FailedDelete {
                    name: name.as_str().to_owned(),
                    path,
                    error: kept.message,
                    retried,
                });
            } else {
                self.inodes.lock().failed_deletes.remove(&name);
            }
        }
        failed_deletes.sort_by(|a, b| a.name.cmp(&b.name));
        failed_deletes
    }

    /// Whether the vault may yet make a deletion that it has not made.
    pub(in crate::fs) fn has_pending_deletes(&self) -> bool {
        let table = self.inodes.lock();
        // What shows again is not tried again.
        table.failed_deletes.keys().any(|name| table.deferred_deletes.contains_key(name))
    }

    /// The deletion of what is hidden under `name` failed. True if it is to be tried again, the
    /// object hidden until then; else it shows again.
    pub(in crate::fs) fn record_failed_delete(&self, name: &ObjectName, error: &Error) -> bool {
        let again = is_outage(error.kind) || error.kind == ErrorKind::Full;
        let errno = Errno::from(error);
        let mut table = self.inodes.lock();
        let Some(stored) = table.deferred_deletes.get(name).map(|hidden| hidden.stored.clone()) else {
            return false;
        };
        let is_news = table.failed_deletes.get(name).is_none_or(|known| known.errno != errno);
        let message = format!("it should be gone, but was not deleted: {error}");
        table.failed_deletes.insert(name.clone(), FailedDeleteRecord { stored, errno, message });
        drop(table);
        if is_news {
            self.env.failed("deletion of what was moved or unlinked", name.as_str(), error);
        }
        again
    }

    /// What is hidden under `name` shows again.
    pub(in crate::fs) fn show_again(&self, name: &ObjectName) {
        self.inodes.lock().deferred_deletes.remove(name);
        self.inval_name(name);
    }

    /// Deletes after all what should be gone (all, or that name), unless it is something else now.
    pub(in crate::fs) async fn delete_after_all(self: &Arc<Self>, name: Option<&str>, call: &Call) {
        let wanted = |failed_deletes: &FailedDelete| name.is_none_or(|name| name == failed_deletes.name);
        let names =
            self.failed_deletes().into_iter().filter(wanted).filter_map(|one| ObjectName::new(&one.name));
        for name in names {
            if self.hide_again(&name) {
                // What fails is listed again.
                self.end_unreplaced(&name, call).await;
            }
        }
    }

    /// Another try at what the vault refused to delete: the mount ends, and this is the last.
    pub(in crate::fs) async fn delete_refused(self: &Arc<Self>, call: &Call) {
        let refused = self.failed_deletes().into_iter().filter(|one| !one.retried);
        for name in refused.filter_map(|one| ObjectName::new(&one.name)) {
            if self.hide_again(&name) {
                // What fails is listed again.
                self.end_unreplaced(&name, call).await;
            }
        }
    }

    /// Hides what showed again, for another try to delete it. Not while a program changes it.
    fn hide_again(&self, name: &ObjectName) -> bool {
        let mut table = self.inodes.lock();
        if table.deferred_deletes.contains_key(name) {
            return true;
        }
        let Some(stored) = table.failed_deletes.get(name).map(|kept| kept.stored.clone()) else {
            return false;
        };
        if table.file(name).is_some_and(|file| file.state().is_beyond_vault()) {
            return false;
        }
        let hidden = DeferredDelete { stored, backup: None, reused: false, since: self.env.now() };
        table.deferred_deletes.insert(name.clone(), hidden);
        drop(table);
        self.inval_name(name);
        true
    }

    /// The object stays: a person wants it so. False if there is none of that name that should be
    /// gone.
    pub(in crate::fs) fn dismiss(&self, name: &str) -> bool {
        let Some(name) = ObjectName::new(name) else { return false };
        let mut table = self.inodes.lock();
        let known = table.failed_deletes.remove(&name).is_some();
        let hidden = known && table.is_hidden(&name);
        drop(table);
        if hidden {
            self.show_again(&name);
        }
        known
    }
}
