//! Notifications to the kernel, from a thread of their own, and orders to the helper.
//!
//! A notification can wait for requests that are in flight in the same directory, so it must never be sent from
//! a thread that answers requests, nor under a lock that a request needs (FIELD-NOTES: the classic deadlock).

use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use fuser::{INodeNo, Notifier};

use super::handover::Channel;
use super::helper::Order;
use super::mounts::Dev;
use super::process;
use crate::fs::{HelperCall, Kernel};

enum Notice {
    Entry(u64, OsString),
    Inode(u64),
}

/// Queues notices for the thread that sends them.
struct Queue {
    notices: Sender<Notice>,
    helper: Arc<Channel>,
    dev: Dev,
}

impl Kernel for Queue {
    fn inval_entry(&self, parent: u64, name: &OsStr) {
        // The thread ends only with the process.
        let _ = self.notices.send(Notice::Entry(parent, name.to_owned()));
    }

    fn inval_inode(&self, ino: u64) {
        let _ = self.notices.send(Notice::Inode(ino));
    }

    fn order(&self, number: u64, to: u32, call: &HelperCall) -> bool {
        // One order is out at a time, so there is room for it in the line.
        match self.helper.send(&Order { number, to, call: call.clone() }, &[]) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%error, "the helper does not hear");
                false
            }
        }
    }

    fn is_watched(&self) -> bool {
        process::watch(self.dev)
    }
}

/// Starts the thread. It ends when the returned handle is dropped.
///
/// # Errors
/// When the thread cannot be started.
pub fn spawn(notifier: Notifier, helper: Arc<Channel>, dev: Dev) -> std::io::Result<Arc<dyn Kernel>> {
    let (sender, receiver) = channel();
    std::thread::Builder::new().name("notify".into()).spawn(move || {
        for notice in receiver {
            let sent = match &notice {
                Notice::Entry(parent, name) => notifier.inval_entry(INodeNo(*parent), name),
                Notice::Inode(ino) => notifier.inval_inode(INodeNo(*ino), 0, 0),
            };
            if let Err(error) = sent {
                tracing::debug!(%error, "the kernel did not take a notification");
            }
        }
    })?;
    Ok(Arc::new(Queue { notices: sender, helper, dev }))
}
