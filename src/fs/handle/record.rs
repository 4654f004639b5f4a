//! A handle as a record.

use std::sync::atomic::Ordering;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::fs::handle::close_policy::Opener;
use crate::fs::handle::{Handle, Held, Writer};

/// A handle as it is written down.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::fs) struct HandleRecord {
    pub held: HeldRecord,
    pub by: Option<u64>,
}

/// See [`Held`].
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::fs) enum HeldRecord {
    Dir(u64),
    File(u64, Option<(Opener, i32)>),
    Version(u64),
    Control(u64, SystemTime, Vec<u8>),
}

impl HandleRecord {
    pub(super) fn of(handle: &Handle) -> Self {
        let held = match &handle.held {
            Held::Dir { dir, .. } => HeldRecord::Dir(dir.ino),
            Held::File { file, writer } => {
                let writer = writer.as_ref().map(|w| (w.opener, w.refused.load(Ordering::Relaxed)));
                HeldRecord::File(file.ino, writer)
            }
            Held::Version(version) => HeldRecord::Version(version.ino),
            Held::Control(text) => HeldRecord::Control(text.ino, text.taken, text.text.clone()),
        };
        Self { held, by: handle.unacknowledged.request() }
    }
}

impl Writer {
    /// As it was written down.
    pub fn restored((opener, refused): (Opener, i32)) -> Self {
        Self { opener, refused: refused.into() }
    }
}
