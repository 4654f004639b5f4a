//! What a person decides about writes that the vault does not have: store them after all, or give
//! them up.

use std::sync::Arc;
use std::time::Duration;

use crate::fs::inode::file::{Failure, File, Link};
use crate::fs::types::unsaved::Unsaved;
use crate::fs::writeback::Writeback;
use crate::fs::writeback::commit::Cause;
use crate::vault::{Call, ObjectName};

impl Writeback {
    /// Writes that the vault does not have, open files included.
    pub fn unsaved(&self) -> Vec<Unsaved> {
        let files: Vec<_> = self.inodes.lock().all_files().collect();
        let now = self.env.now();
        let mut unsaved: Vec<Unsaved> = files
            .iter()
            .filter_map(|file| {
                let state = file.state();
                state.is_dirty().then(|| Unsaved {
                    name: state.name.as_str().to_owned(),
                    path: String::new(),
                    size: state.size(),
                    error: state.failure.as_ref().map(|f| f.message.clone()),
                    conflict: state.failure.as_ref().is_some_and(|f| f.conflict),
                    retry_s: (state.retrying)
                        .filter(|_| state.failure.as_ref().is_some_and(Failure::is_retried))
                        .map(|at| at.saturating_duration_since(now).as_millis().div_ceil(1000) as u64),
                })
            })
            .collect();
        for write in &mut unsaved {
            write.path = self.namespace.path_of(&write.name);
        }
        unsaved.sort_by(|a, b| a.name.cmp(&b.name));
        unsaved
    }

    /// What is lost if the mount ends now: unsaved writes, and deletions that the vault has not
    /// made.
    pub fn left_over(&self) -> Vec<Unsaved> {
        let deletions = self.failed_deletes().into_iter();
        let deletions = deletions.map(|one| Unsaved::deletion(one.name, one.path, one.error));
        let mut left: Vec<Unsaved> = self.unsaved().into_iter().chain(deletions).collect();
        left.sort_by(|a, b| a.name.cmp(&b.name));
        left
    }

    /// Stores unsaved writes (all, or that of one name), also over a newer version: the user who
    /// asks has seen the conflict. Deletes what should be gone. Returns what is unsaved afterwards.
    pub async fn retry_unsaved(self: &Arc<Self>, name: Option<&str>, patience: Duration) -> Vec<Unsaved> {
        let call = Call::foreground(self.env.now() + patience);
        let files = self.unsaved_files(name);
        // `unsaved` below reports what fails.
        futures_util::future::join_all(files.iter().map(|file| self.commit(file, &call, Cause::Asked))).await;
        self.retry_failed_deletes(|one| name.is_none_or(|name| name == one.name), &call).await;
        self.unsaved()
    }

    /// Gives the unsaved write of a name up, or its deletion: the name shows what the vault has.
    /// False if there is neither.
    pub fn discard_unsaved(&self, name: &str) -> bool {
        let kept = self.dismiss(name);
        let files = self.unsaved_files(Some(name));
        for file in &files {
            let name = self.give_up(file);
            tracing::warn!(name = name.as_str(), "an unsaved write was discarded, as asked for");
        }
        kept || !files.is_empty()
    }

    fn unsaved_files(&self, name: Option<&str>) -> Vec<Arc<File>> {
        let wanted = |file: &Arc<File>| {
            let state = file.state();
            state.is_dirty() && name.is_none_or(|name| state.name.as_str() == name)
        };
        self.inodes.lock().all_files().filter(wanted).collect()
    }

    /// Lets go of a buffer and its inode: the next look at the name finds what the vault has.
    pub fn give_up(&self, file: &File) -> ObjectName {
        let tx = self.env.journal().begin();
        let mut table = self.inodes.lock_in(&tx);
        let mut state = file.change(&tx);
        let name = state.name.clone();
        state.link = Link::Unlinked;
        state.failure = None;
        state.release();
        drop(state);
        table.unpoint(&name, file.ino);
        table.detach(&tx, &name, file);
        table.drop_unheld(file.ino);
        drop(table);
        self.namespace.inval_name(&name);
        name
    }
}
