//! Names that an editor or a script juggles: scratch, provisional files, deferred deletes.

pub(in crate::fs) mod deferred_delete;
pub(in crate::fs) mod provisional;
mod quota;
pub(in crate::fs) mod remover;

use std::sync::Arc;

use parking_lot::Mutex;

use crate::fs::inode::InodeTable;
use crate::fs::namespace::Namespace;
use crate::fs::types::env::Env;
use crate::fs::writeback::Writeback;

/// Which files are held back from the vault, and which objects are hidden, while names are juggled;
/// and when that ends.
pub(in crate::fs) struct Temporaries {
    env: Arc<Env>,
    inodes: Arc<InodeTable>,
    namespace: Arc<Namespace>,
    writeback: Arc<Writeback>,
    /// Bytes held back in all. A leaf: nothing else is locked while this is.
    bytes: Mutex<u64>,
}

impl Temporaries {
    pub fn new(
        env: Arc<Env>,
        inodes: Arc<InodeTable>,
        namespace: Arc<Namespace>,
        writeback: Arc<Writeback>,
    ) -> Arc<Self> {
        Arc::new(Self { env, inodes, namespace, writeback, bytes: Mutex::new(0) })
    }
}
