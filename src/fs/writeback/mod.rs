//! Written bytes become versions: commits, retries, and what the vault does not have.

pub(in crate::fs) mod commit;
mod delete;
pub(in crate::fs) mod drain;
pub(in crate::fs) mod failed_deletes;
pub(in crate::fs) mod may_write;
mod permits;
pub(in crate::fs) mod retry;
pub(in crate::fs) mod unsaved;
pub(in crate::fs) mod unsaved_from_journal;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::fs::inode::InodeTable;
use crate::fs::namespace::Namespace;
use crate::fs::propagation::Propagator;
use crate::fs::types::env::Env;
use crate::fs::writeback::may_write::{REMEMBERED, Saves};
use crate::fs::writeback::permits::{COMMITS, Together};

/// What is sent to the vault, one change of an object after the other, and what became of it.
pub(in crate::fs) struct Writeback {
    env: Arc<Env>,
    inodes: Arc<InodeTable>,
    namespace: Arc<Namespace>,
    propagator: Arc<Propagator>,
    /// A permit for each commit (`permits`).
    commits: Arc<Semaphore>,
    deletes: Together,
    saves: Saves,
    /// Counts failed commits.
    failures: AtomicU64,
    /// When the vault last refused a deletion.
    deletion_refused: Mutex<Option<Instant>>,
}

impl Writeback {
    pub fn new(
        env: Arc<Env>,
        inodes: Arc<InodeTable>,
        namespace: Arc<Namespace>,
        propagator: Arc<Propagator>,
    ) -> Arc<Self> {
        Arc::new(Self {
            inodes,
            namespace,
            propagator,
            commits: Arc::new(Semaphore::new(COMMITS as usize)),
            deletes: Together::default(),
            saves: Mutex::new(LruCache::new(REMEMBERED)),
            failures: AtomicU64::new(0),
            deletion_refused: Mutex::default(),
            env,
        })
    }
}
