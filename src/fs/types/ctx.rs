//! A request of the kernel, as an argument of all that is done for it.
//!
//! 1. It has one deadline, which bounds each of its requests to the vault. A read or listing that
//!    several share has the full timeout of its own (`vault::cache::single_flight`): there the
//!    deadline bounds the wait for the answer.
//! 2. [`RequestCtx::call`] comes before the first of these. There the request leaves the kernel's
//!    thread: what is before it never waits, what follows runs on the runtime.
//! 3. Background work has no `RequestCtx`: it makes its own [`Call`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::vault::{Call, ObjectName};

/// The sender of a request, according to the kernel.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    /// The calling thread in the mounter's pid namespace; 0 from outside it and for write-back.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// What a request has begun to do, and what it must know of the state before.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::fs) enum Intent {
    /// Makes a file, directory or other name.
    Make,
    /// Removes an empty directory.
    Rmdir,
    /// Removes a file's name, with the objects behind it.
    Unlink { ino: u64 },
    /// Moves a file to a name, over another file or not.
    Rename { ino: u64, name: ObjectName, over: Option<u64> },
    /// Moves a directory.
    RenameDir,
}

impl Intent {
    /// The point at which tests end the process.
    pub fn failpoint(&self) -> &'static str {
        match self {
            Intent::Make => "make",
            Intent::Rmdir => "rmdir",
            Intent::Unlink { .. } => "unlink",
            Intent::Rename { .. } => "rename",
            Intent::RenameDir => "rename dir",
        }
    }

    /// The file with the bytes that are needed to resume.
    pub fn moves(&self) -> Option<u64> {
        match self {
            Intent::Rename { ino, .. } => Some(*ino),
            Intent::Make | Intent::Rmdir | Intent::Unlink { .. } | Intent::RenameDir => None,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct RequestCtx {
    /// Its number, the same when it is resent.
    pub(in crate::fs) id: u64,
    /// Its sender.
    pub(in crate::fs) caller: Caller,
    /// The intent that a dead worker had recorded.
    pub(in crate::fs) resumed: Option<Intent>,
    call: Call,
    has_left: AtomicBool,
}

impl RequestCtx {
    pub(in crate::fs) fn new(id: u64, caller: Caller, deadline: Instant, resumed: Option<Intent>) -> Self {
        let call = Call::foreground(deadline);
        Self { id, caller, resumed, call, has_left: AtomicBool::new(false) }
    }

    /// What bounds its requests to the vault. The first time this is pending once, so that the
    /// request leaves the kernel's thread.
    pub(in crate::fs) async fn call(&self) -> &Call {
        if !self.has_left.swap(true, Ordering::Relaxed) {
            tokio::task::yield_now().await;
        }
        &self.call
    }
}
