//! Deletions that the vault did not make although rename(2) or unlink(2) has answered: of what was
//! hidden first, because its name was likely to be made anew (`provisional`, `replace`).
//!
//! No program waits for an answer any more, so `user.vault.error`, status and `vaultfs pending`
//! report it. While the vault is away the object stays hidden and the deletion is tried again; what
//! the vault refuses shows again, and a person decides. Each is forgotten with what it was about:
//! the name is stored anew, renamed or unlinked, or changes elsewhere.

use serde::{Deserialize, Serialize};

use crate::fs::writeback::Writeback;
use crate::vault::cache::Peek;
use crate::vault::{Call, ObjectName};

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

impl Writeback {
    /// Objects that should be gone, by name.
    pub fn failed_deletes(&self) -> Vec<FailedDelete> {
        let known: Vec<_> = {
            let table = self.inodes.lock();
            let all = table.all_failed_deletes();
            all.map(|(name, kept)| (name.clone(), kept.clone(), table.is_hidden(name))).collect()
        };
        let still_there = known.into_iter().filter_map(|(name, kept, retried)| {
            let is_gone = match self.env.cache().peek(&name) {
                Peek::Value(found) => !kept.stored.is(&found.object.meta),
                Peek::Absent(_) | Peek::AbsentBefore => true,
                Peek::Exists | Peek::Unknown => false,
            };
            if is_gone {
                self.inodes.lock().forget_failed_delete(&name);
                return None;
            }
            let (path, name) = (self.namespace.path_of(name.as_str()), name.as_str().to_owned());
            Some(FailedDelete { name, path, error: kept.message, retried })
        });
        let mut failed_deletes: Vec<FailedDelete> = still_there.collect();
        failed_deletes.sort_by(|a, b| a.name.cmp(&b.name));
        failed_deletes
    }

    /// Whether the vault may yet make a deletion that it has not made.
    pub fn has_pending_deletes(&self) -> bool {
        let table = self.inodes.lock();
        // What shows again is not tried again.
        table.all_failed_deletes().any(|(name, _)| table.deferred(name).is_some())
    }

    /// Another try at the deletions that failed and that `wanted` chooses, unless the name is
    /// something else now. What fails is listed again, and shows: nothing else tries it again.
    pub async fn retry_failed_deletes(&self, wanted: impl Fn(&FailedDelete) -> bool, call: &Call) {
        let wanted = self.failed_deletes().into_iter().filter(wanted);
        for name in wanted.filter_map(|one| ObjectName::new(&one.name)) {
            if self.hide_again(&name) && self.delete_deferred(&name, call).await.is_err() {
                self.show_again(&name);
            }
        }
    }

    /// Hides what showed again, for another try to delete it. Not while a program changes it.
    fn hide_again(&self, name: &ObjectName) -> bool {
        let mut table = self.inodes.lock();
        if table.deferred(name).is_some() {
            return true;
        }
        let Some(stored) = table.failed_delete(name).map(|kept| kept.stored.clone()) else {
            return false;
        };
        if table.file(name).is_some_and(|file| file.state().is_beyond_vault()) {
            return false;
        }
        table.defer_delete(name, stored, self.env.now());
        drop(table);
        self.namespace.inval_name(name);
        true
    }

    /// The object stays: a person wants it so. False if there is none of that name that should be
    /// gone.
    pub fn dismiss(&self, name: &str) -> bool {
        let Some(name) = ObjectName::new(name) else { return false };
        let mut table = self.inodes.lock();
        let is_hidden = table.forget_failed_delete(&name).then(|| table.is_hidden(&name));
        drop(table);
        if is_hidden == Some(true) {
            self.show_again(&name);
        }
        is_hidden.is_some()
    }
}
