//! The number of kernel requests by kind: the cost of each operation, for `vaultfs status`, tests
//! and benchmarks.
//!
//! A warm operation costs no request, or a single one that a program waits for: these counters show
//! it. FORGET and RELEASE are counted, too, but no program waits for them.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use fuser::{INodeNo, Request};
use tokio::sync::Notify;

use crate::fuse::pause::Pause;

macro_rules! operations {
    ($($name:ident = $text:literal),* $(,)?) => {
        /// What the kernel can ask for.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(missing_docs, reason = "named as in fuse.h")]
        pub enum Operation { $($name),* }

        impl Operation {
            const NAMES: &'static [&'static str] = &[$($text),*];
        }
    };
}

operations! {
    Lookup = "lookup",
    Forget = "forget",
    Getattr = "getattr",
    Setattr = "setattr",
    Mknod = "mknod",
    Symlink = "symlink",
    Link = "link",
    Mkdir = "mkdir",
    Unlink = "unlink",
    Rmdir = "rmdir",
    Rename = "rename",
    Open = "open",
    Read = "read",
    Write = "write",
    Flush = "flush",
    Release = "release",
    Fsync = "fsync",
    Create = "create",
    Opendir = "opendir",
    Readdir = "readdir",
    Releasedir = "releasedir",
    Fsyncdir = "fsyncdir",
    Statfs = "statfs",
    Setxattr = "setxattr",
    Getxattr = "getxattr",
    Listxattr = "listxattr",
    Removexattr = "removexattr",
}

/// Counts since the worker started.
#[derive(Debug)]
pub struct Requests {
    counts: Vec<AtomicU64>,
    has_answered: AtomicBool,
    first_answer: Notify,
    /// Before a successor takes over.
    pub pause: Arc<Pause>,
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            counts: Operation::NAMES.iter().map(|_| AtomicU64::new(0)).collect(),
            has_answered: AtomicBool::new(false),
            first_answer: Notify::new(),
            pause: Arc::default(),
        }
    }
}

impl Requests {
    /// One more, which waits here during a pause: counted, and with `-vv` logged, with the file or
    /// directory that it is about, and in there the name.
    pub fn count(&self, operation: Operation, request: &Request, ino: INodeNo, name: Option<&OsStr>) {
        let (place, pid) = (operation as usize, request.pid());
        self.pause.wait();
        self.add(operation);
        tracing::trace!(
            operation = Operation::NAMES[place],
            ino = ino.0,
            name = name.map(tracing::field::debug),
            pid,
            "asked"
        );
    }

    /// A request has been answered.
    pub fn answered(&self) {
        if !self.has_answered.load(Ordering::Relaxed) && !self.has_answered.swap(true, Ordering::Relaxed) {
            self.first_answer.notify_one();
        }
    }

    /// Waits for the first answer; for one caller.
    pub async fn first_answer(&self) {
        self.first_answer.notified().await;
    }

    fn add(&self, operation: Operation) {
        self.counts[operation as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// What was asked at all, by name.
    pub fn to_json(&self) -> serde_json::Value {
        let counts =
            Operation::NAMES.iter().zip(&self.counts).map(|(name, n)| (*name, n.load(Ordering::Relaxed)));
        counts.filter(|(_, n)| *n > 0).collect::<std::collections::BTreeMap<_, _>>().into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operation_has_its_own_count() {
        let requests = Requests::default();
        requests.add(Operation::Lookup);
        requests.add(Operation::Removexattr);
        requests.add(Operation::Removexattr);
        assert_eq!(requests.to_json(), serde_json::json!({ "lookup": 1, "removexattr": 2 }));
    }
}
