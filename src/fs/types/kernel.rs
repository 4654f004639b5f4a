//! The kernel's side, as far as the file system calls it: notices, and the calls of the helper.

use std::ffi::OsStr;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// The kernel's side. Implementations never block the caller.
pub trait Kernel: Send + Sync {
    /// Invalidates the entry `name` of directory `parent`, so that its next use is a lookup.
    fn inval_entry(&self, parent: u64, name: &OsStr);
    /// Invalidates attributes and pages of an inode.
    fn inval_inode(&self, ino: u64);
    /// Calls `then` after all previous invalidations.
    fn after_notices(&self, then: Box<dyn FnOnce() + Send>);
    /// Orders a helper call; `to` is the helper's process id, 0 for any. The answer comes with
    /// [`HelperReport`]. False without a channel.
    fn order(&self, number: u64, to: u32, call: &HelperCall) -> bool;
    /// Whether a program watches something of the mount (inotify), as far as that is visible.
    fn is_watched(&self) -> bool;
    /// Whether the mount with this id, in the mount namespace of the process `pid`, is of this file
    /// system. True if unknown.
    fn has_mount(&self, pid: u32, mount: u64) -> bool;
}

/// An order to the helper. Paths are relative to the root of the mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HelperCall {
    /// rename(2)
    Rename {
        /// The hidden name.
        from: String,
        /// Its new name.
        to: String,
    },
    /// unlink(2)
    Unlink {
        /// The name to remove.
        path: String,
    },
    /// utimensat(2), of the change time only.
    Touch {
        /// Of what.
        path: String,
        /// The time.
        mtime: SystemTime,
    },
}

/// Messages of the helper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HelperReport {
    /// It has started; open orders of its predecessor will not be executed.
    Started {
        /// Its process id.
        pid: u32,
    },
    /// It has made a call.
    Done {
        /// The order's number.
        number: u64,
        /// 0 on success.
        errno: i32,
    },
    /// It is gone, and no other will follow.
    Leaving,
}
