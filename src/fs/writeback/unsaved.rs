//! What a person decides about writes that the vault does not have: store them after all, or give
//! them up.

use std::sync::Arc;
use std::time::Duration;

use crate::fs::FileSystem;
use crate::fs::inode::file::{File, Link};
use crate::fs::types::unsaved::Unsaved;
use crate::fs::writeback::commit::Cause;
use crate::vault::{Call, ObjectName};

impl FileSystem {
    /// Stores unsaved writes (all, or that of one name), also over a newer version: the user who
    /// asks has seen the conflict. Deletes what should be gone. Returns what is unsaved afterwards.
    pub async fn retry_unsaved(self: &Arc<Self>, name: Option<&str>, patience: Duration) -> Vec<Unsaved> {
        let call = Call::foreground(self.env.now() + patience);
        let files = self.unsaved_files(name);
        // `unsaved` below reports what fails.
        futures_util::future::join_all(files.iter().map(|file| self.commit(file, &call, Cause::Asked))).await;
        self.delete_after_all(name, &call).await;
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
            self.inval_name(&name);
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
    pub(in crate::fs) fn give_up(&self, file: &File) -> ObjectName {
        let tx = self.env.journal().begin();
        let mut table = self.inodes.lock_in(&tx);
        let mut state = file.change(&tx);
        let name = state.name.clone();
        state.link = Link::Unlinked;
        state.failure = None;
        state.release();
        self.temporaries.account_room(&mut state);
        drop(state);
        table.unpoint(&name, file.ino);
        table.detach(&tx, &name, file);
        table.drop_unheld(file.ino);
        name
    }
}
