//! Names to inodes: what a directory shows, and what an entry looks like.

pub mod attr;
mod entry;
mod kind;
pub(in crate::fs) mod listing;
pub(in crate::fs) mod position;
pub(in crate::fs) mod resolve;
mod shown;

use std::sync::Arc;

use crate::fs::inode::InodeTable;
use crate::fs::types::env::Env;

/// See the module.
pub(in crate::fs) struct Namespace {
    env: Arc<Env>,
    inodes: Arc<InodeTable>,
}

impl Namespace {
    pub fn new(env: Arc<Env>, inodes: Arc<InodeTable>) -> Arc<Self> {
        Arc::new(Self { env, inodes })
    }
}
