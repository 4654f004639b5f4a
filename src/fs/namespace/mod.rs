//! Names to inodes: what a directory shows, and what an entry looks like.

pub mod attr;
pub(in crate::fs) mod dir;
mod entry;
mod kind;
pub(in crate::fs) mod listing;
pub(in crate::fs) mod listings;
pub(in crate::fs) mod position;
mod prefetch;
pub(in crate::fs) mod resolve;
mod shown;

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::fs::inode::InodeTable;
use crate::fs::name::patterns::Patterns;
use crate::fs::namespace::listings::Listings;
use crate::fs::namespace::prefetch::ScanTracker;
use crate::fs::types::env::Env;

/// See the module.
pub(in crate::fs) struct Namespace {
    env: Arc<Env>,
    inodes: Arc<InodeTable>,
    patterns: Patterns,
    /// A leaf: nothing else is locked while this is, but the journal.
    listings: Mutex<Listings>,
    /// The directories that are being gone through, by number.
    scans: Mutex<HashMap<u64, ScanTracker>>,
}

impl Namespace {
    pub fn new(env: Arc<Env>, inodes: Arc<InodeTable>) -> Arc<Self> {
        Arc::new(Self {
            patterns: Patterns::new(&env.options().scratch),
            listings: Mutex::default(),
            scans: Mutex::default(),
            env,
            inodes,
        })
    }

    /// The file names of temporaries.
    pub fn patterns(&self) -> &Patterns {
        &self.patterns
    }
}
