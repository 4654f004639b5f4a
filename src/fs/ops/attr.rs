//! Attributes and the figures of the file system. Neither asks the vault.

use std::time::Duration;

use crate::fs::types::attr::{Attr, StatFs};
use crate::fs::{FileSystem, Result};

const BLOCK_SIZE: u32 = 4096;

/// 1 GiB.
const NOMINAL_BLOCKS: u64 = 1 << 18;

const NOMINAL_FILES: u64 = 1 << 20;

impl FileSystem {
    /// GETATTR. Never asks the vault.
    pub fn getattr(&self, ino: u64) -> Result<(Attr, Duration)> {
        let node = self.inodes.node(ino)?;
        Ok((self.namespace.attr(&node), self.namespace.attr_ttl(&node)))
    }

    /// STATFS: the vault has no size. Never asks it.
    pub fn statfs(&self) -> StatFs {
        let cache = self.env.cache().status();
        StatFs {
            blocks: NOMINAL_BLOCKS,
            free: NOMINAL_BLOCKS.saturating_sub(cache.bytes.div_ceil(u64::from(BLOCK_SIZE))),
            files: cache.names as u64 + NOMINAL_FILES,
            free_files: NOMINAL_FILES,
            block_size: BLOCK_SIZE,
            name_max: 255,
        }
    }
}
