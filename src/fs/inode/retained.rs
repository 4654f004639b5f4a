//! The bytes of a version that its name no longer shows, kept for its open handles.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::vault::Object;

/// See the module. Counted in a total as long as they are kept.
#[derive(Debug)]
pub struct RetainedBytes {
    object: Arc<Object>,
    total: Arc<AtomicU64>,
}

impl RetainedBytes {
    /// Keeps them, however many there are.
    pub fn new(object: Arc<Object>, total: &Arc<AtomicU64>) -> Self {
        let retained = Self { object, total: total.clone() };
        total.fetch_add(retained.size(), Ordering::Relaxed);
        retained
    }

    /// Keeps them if the total stays within `limit`.
    pub fn within(object: Arc<Object>, total: &Arc<AtomicU64>, limit: u64) -> Option<Self> {
        Some(Self::new(object, total)).filter(|_| total.load(Ordering::Relaxed) <= limit)
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
