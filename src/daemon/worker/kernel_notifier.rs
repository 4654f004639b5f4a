//! Notifications to the kernel, from a thread of their own, and orders to the helper.
//!
//! A notification can wait for requests that are in flight in the same directory, so it must never
//! be sent from a thread that answers requests, nor under a lock that a request needs: it
//! would deadlock.
//!
//! A worker that is killed meanwhile does not end before that request is answered, by its
//! successor. So the thread shares no descriptor with the others: with them would stay open the
//! lock and the socket of an embedded vault, which the successor needs for its answer. A worker
//! that has no successor ends the thread before itself ([`NoticeSender::all_sent`]).
//!
//! To wake a task takes a descriptor of the runtime, which the thread does not have either (tokio
//! panics). What waits for notices is therefore called by a second thread, which has them all.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use fuser::{INodeNo, Notifier};
use nix::sched::{CloneFlags, unshare};
use tokio::sync::oneshot;

use crate::daemon::helper::Order;
use crate::failpoint;
use crate::fs::{HelperCall, Kernel};
use crate::sys::channel::Channel;
use crate::sys::mount_table;
use crate::sys::mount_table::Dev;
use crate::sys::process;

enum Notice {
    Entry(u64, OsString),
    Inode(u64),
    Then(Then),
    /// No other is sent.
    Last(Then),
}

/// Called once the notices before it are sent.
type Then = Box<dyn FnOnce() + Send>;

/// Queues notices for the thread that sends them.
pub struct NoticeSender {
    notices: Sender<Notice>,
    helper: Arc<Channel>,
    dev: Dev,
}

impl NoticeSender {
    /// Sends what is queued, and nothing afterwards. A process that ends in the midst of a
    /// notification holds the device open until the request is answered that this waits for. It
    /// needs no thread of its own: there may be none to be had.
    pub async fn all_sent(&self) {
        let (all_sent, last) = oneshot::channel();
        // An error: the thread has ended before.
        // The receiver may have given up.
        let last_sent = Box::new(move || all_sent.send(()).unwrap_or_default());
        if self.notices.send(Notice::Last(last_sent)).is_ok() {
            let _ = last.await;
        }
    }
}

impl Kernel for NoticeSender {
    fn inval_entry(&self, parent: u64, name: &OsStr) {
        // The thread ends only with the process.
        let _ = self.notices.send(Notice::Entry(parent, name.to_owned()));
    }

    fn inval_inode(&self, ino: u64) {
        let _ = self.notices.send(Notice::Inode(ino));
    }

    fn after_notices(&self, then: Box<dyn FnOnce() + Send>) {
        let _ = self.notices.send(Notice::Then(then));
    }

    fn order(&self, number: u64, to: u32, call: &HelperCall) -> bool {
        // One order is out at a time, so there is room for it in the line.
        match self.helper.send(&Order { number, to, call: call.clone() }, &[]) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%error, "the helper cannot be reached");
                false
            }
        }
    }

    fn is_watched(&self) -> bool {
        process::watch(self.dev)
    }

    fn has_mount(&self, pid: u32, mount: u64) -> bool {
        let table = mount_table::table_of(pid).unwrap_or_default();
        table.iter().find(|entry| entry.id == mount).is_none_or(|entry| entry.dev == self.dev)
    }
}

/// Starts the threads, which write to `device`. They end when the returned sender is ended, or
/// dropped.
///
/// # Errors
/// When a thread cannot be started.
pub fn spawn(
    notifier: Notifier,
    device: BorrowedFd<'_>,
    helper: Arc<Channel>,
    dev: Dev,
) -> std::io::Result<Arc<NoticeSender>> {
    let notices = start(device.as_raw_fd(), move |notice| {
        // An error: the kernel does not know the name or the inode any more. The log is not among
        // what is open here.
        let _ = match notice {
            Notice::Entry(parent, name) => notifier.inval_entry(INodeNo(parent), &name),
            Notice::Inode(ino) => notifier.inval_inode(INodeNo(ino), 0, 0),
            Notice::Then(_) | Notice::Last(_) => Ok(()),
        };
    })?;
    Ok(Arc::new(NoticeSender { notices, helper, dev }))
}

/// Starts both threads: one sends by `send` and keeps only the descriptor `kept`, the other calls
/// what waits for that.
fn start(kept: RawFd, send: impl Fn(Notice) + Send + 'static) -> std::io::Result<Sender<Notice>> {
    let (sender, receiver) = channel();
    let (done, sent) = channel::<Then>();
    std::thread::Builder::new()
        .name("notified".into())
        .spawn(move || sent.into_iter().for_each(|then| then()))?;
    std::thread::Builder::new().name("notify".into()).spawn(move || {
        if let Err(error) = keep_only(kept) {
            tracing::debug!(%error, "the thread for notifications shares its descriptors");
        }
        for notice in receiver {
            failpoint::point("notice");
            // The other thread ends after this one.
            match notice {
                Notice::Then(then) => drop(done.send(then)),
                Notice::Last(then) => return drop(done.send(then)),
                Notice::Entry(..) | Notice::Inode(_) => send(notice),
            }
        }
    })?;
    Ok(sender)
}

/// From now on this thread has descriptors of its own, and of those only `kept`.
fn keep_only(kept: RawFd) -> nix::Result<()> {
    unshare(CloneFlags::CLONE_FILES)?;
    let close = |from: RawFd, to: libc::c_uint| {
        // SAFETY: no other thread shares this table of descriptors, and this thread uses none of
        // the closed.
        let rc = unsafe { libc::syscall(libc::SYS_close_range, from as libc::c_uint, to, 0) };
        rc == 0
    };
    if close(kept + 1, libc::c_uint::MAX) && (kept == 0 || close(0, kept as libc::c_uint - 1)) {
        return Ok(());
    }
    // Before Linux 5.9.
    for fd in (0..1024).filter(|fd| *fd != kept) {
        // SAFETY: as above.
        unsafe { libc::close(fd) };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_waits_for_notices_is_woken_and_later_notices_are_sent() {
        let kept = tempfile::tempfile().unwrap();
        let (arrived, arrivals) = channel();
        let send = move |notice| match notice {
            Notice::Inode(ino) => arrived.send(ino).unwrap(),
            _ => unreachable!(),
        };
        let notices = start(kept.as_raw_fd(), send).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for ino in 1..=3 {
            notices.send(Notice::Inode(ino)).unwrap();
            let (woken, waits) = oneshot::channel();
            let wake = move || {
                // Meanwhile the runtime has begun to wait for its descriptors.
                std::thread::sleep(std::time::Duration::from_millis(200));
                woken.send(()).unwrap();
            };
            notices.send(Notice::Then(Box::new(wake))).unwrap();
            let limit = std::time::Duration::from_secs(30);
            runtime.block_on(async { tokio::time::timeout(limit, waits).await }).unwrap().unwrap();
            assert_eq!(arrivals.recv().unwrap(), ino);
        }
    }

    #[test]
    fn the_thread_has_one_descriptor_and_the_others_keep_theirs() {
        let (mut kept, mut other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let fd = kept.as_raw_fd();
        let gone = other.as_raw_fd();
        // SAFETY: asks about numbers only.
        let is_open = |fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0;
        let seen = std::thread::spawn(move || {
            keep_only(fd).unwrap();
            (is_open(fd), is_open(gone), is_open(2))
        });
        assert_eq!(seen.join().unwrap(), (true, false, false));
        kept.write_all(b"1").unwrap();
        other.write_all(b"1").unwrap();
    }
}
