//! How many bytes are held back from the vault: they live in memory, bounded by `--scratch-size`.

use crate::fs::inode::file::FileState;
use crate::fs::temporary::Temporaries;
use crate::fs::types::errno::{Errno, Result};

impl Temporaries {
    /// Bytes held back in all.
    pub fn bytes(&self) -> u64 {
        *self.bytes.lock()
    }

    /// Reserves quota for a file that is held back to have `size` bytes; ENOSPC beyond the bound.
    /// Others need none.
    pub fn reserve_room(&self, state: &mut FileState, size: u64) -> Result<()> {
        if !state.is_only_here() {
            return Ok(());
        }
        let bound = self.env.options().scratch_size;
        let mut used = self.bytes.lock();
        let next = used.saturating_sub(state.quota_bytes).saturating_add(size);
        if size > state.quota_bytes && next > bound {
            drop(used);
            let why = format!(
                "files that are held back from the vault are limited to {bound} bytes together (--scratch-size)"
            );
            return Err(self.env.refused("write", state.name.as_str(), Errno::ENOSPC, &why));
        }
        *used = next;
        state.quota_bytes = size;
        Ok(())
    }

    /// Accounts for a file that was moved, closed, unlinked or stored: what it holds back now,
    /// whatever the bound.
    pub fn account_room(&self, state: &mut FileState) {
        let held = if state.is_only_here() { state.buffer.as_ref().map_or(0, |b| b.bytes.len()) } else { 0 };
        let now = held as u64;
        let mut used = self.bytes.lock();
        *used = used.saturating_sub(state.quota_bytes).saturating_add(now);
        state.quota_bytes = now;
    }
}
