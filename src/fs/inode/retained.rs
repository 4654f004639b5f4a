//! The bytes of a version that its name no longer shows, kept with its inode where the kernel opens
//! files by itself, so that no handle pins them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::fs::inode::InodeTable;
use crate::fs::inode::file::{FileState, Link};
use crate::vault::Object;

/// See the module. Counted in a total as long as they are kept.
#[derive(Debug)]
pub struct RetainedBytes {
    object: Arc<Object>,
    total: Arc<AtomicU64>,
}

impl RetainedBytes {
    fn new(object: Arc<Object>, total: &Arc<AtomicU64>) -> Self {
        let retained = Self { object, total: total.clone() };
        total.fetch_add(retained.size(), Ordering::Relaxed);
        retained
    }

    /// The version.
    pub fn object(&self) -> &Arc<Object> {
        &self.object
    }

    fn size(&self) -> u64 {
        self.object.content.bytes.len() as u64
    }
}

impl Drop for RetainedBytes {
    fn drop(&mut self) {
        self.total.fetch_sub(self.size(), Ordering::Relaxed);
    }
}

impl InodeTable {
    /// The name of this inode shows another version, or nothing, from now on: where no handle pins
    /// the bytes, they stay with the inode, as long as there is room.
    pub fn mark_replaced(&self, state: &mut FileState) {
        self.keep_bytes(state);
        state.link = Link::Replaced;
    }

    fn keep_bytes(&self, state: &mut FileState) {
        if !self.env.options().reads_unopened() || state.retained.is_some() {
            return;
        }
        let Some(stored) = &state.stored else { return };
        let Some(object) = self.env.bytes_in_memory(stored) else { return };
        let retained = RetainedBytes::new(object, &self.retained);
        let has_room = self.retained.load(Ordering::Relaxed) <= self.env.options().cache_size;
        state.retained = has_room.then_some(retained);
    }

    /// The bytes that a dead worker kept so.
    pub fn keep_restored(&self, state: &mut FileState) {
        if self.env.options().reads_unopened()
            && state.link != Link::Current
            && let Some(object) = state.pinned.take()
        {
            state.retained = Some(RetainedBytes::new(object, &self.retained));
        }
    }
}
