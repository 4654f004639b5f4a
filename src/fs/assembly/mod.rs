//! Wires a file system together: its environment, its parts, and the state of the last worker.

mod restore;

use std::sync::Arc;

use crate::clock::Clock;
use crate::fs::handle::Handles;
use crate::fs::inode::InodeTable;
use crate::fs::journal::{Journal, JournalWriter};
use crate::fs::namespace::Namespace;
use crate::fs::propagation::Propagator;
use crate::fs::recovery::replay::Replay;
use crate::fs::report::Report;
use crate::fs::temporary::Temporaries;
use crate::fs::types::env::Env;
use crate::fs::writeback::Writeback;
use crate::fs::{Audit, FileSystem, Options};
use crate::vault::{DynVault, Page};

/// What a file system is built from.
pub struct Builder {
    /// The vault that it shows.
    pub vault: DynVault,
    /// What the start-up check of the vault listed, if it did.
    pub first_page: Option<Page>,
    /// The options of the mount.
    pub options: Options,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The state of the last worker; it gets the changes.
    pub journal: Arc<dyn Journal>,
    /// The kernel knows no inodes and handles.
    pub fresh_mount: bool,
    /// Where opens are recorded.
    pub audit: Option<Arc<Audit>>,
}

impl Builder {
    /// The file system. Call it on the tokio runtime that will run the futures it returns.
    pub fn build(self) -> Arc<FileSystem> {
        let env = Env::new(self.vault, self.options, self.clock, JournalWriter::new(self.journal.clone()));
        let inodes = InodeTable::new(env.clone());
        let namespace = Namespace::new(env.clone(), inodes.clone());
        let handles = Arc::new(Handles::new(env.clone()));
        let propagator = Propagator::new(env.clone(), inodes.clone(), namespace.clone(), handles.clone());
        let writeback = Writeback::new(env.clone(), inodes.clone(), namespace.clone(), propagator.clone());
        let temporaries = Temporaries::new(env.clone(), inodes.clone(), namespace.clone(), writeback.clone());
        let fs = Arc::new(FileSystem {
            report: Report::new(env.clone(), inodes.clone(), self.audit),
            namespace,
            inodes,
            propagator,
            writeback,
            handles,
            replay: Replay::new(env.clone()),
            temporaries,
            env,
        });
        let revocation_listener = Arc::downgrade(&fs.propagator);
        fs.env.cache().set_revocation_listener(revocation_listener);
        restore::restore(&fs, &*self.journal, self.fresh_mount, self.first_page);
        fs
    }
}
