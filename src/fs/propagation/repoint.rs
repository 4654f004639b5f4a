//! Names that show another inode than the kernel knows, until the kernel knows it, too.
//!
//! A save through a descriptor from before its file was replaced brings that inode back to the
//! name. The save is answered before the kernel is notified: the helper's rename waits for the lock
//! of the inode, which an fsync holds, and a notification for that of the directory. Until then an
//! open of the name comes for the inode that the kernel still knows. It is ESTALE, once: the kernel
//! looks the name up again and opens what it finds. An open that has come to the inode in another
//! way (a bind mount, /proc/PID/fd) comes for the same inode again, and gets it.
//!
//! That lasts [`ON_THE_WAY`] longer than the kernel does not know: an open that found the old inode
//! may arrive after the answer to the rename that replaced it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::fs::Caller;
use crate::fs::inode::file::{File, Link};
use crate::fs::journal::{JournalWriter, Key, Transaction};
use crate::fs::name::DirPrefix;
use crate::fs::propagation::Propagator;
use crate::fs::types::errno::{Errno, Result};
use crate::vault::ObjectName;

/// How long an open may be on its way that found the inode from before, on a machine under load.
const ON_THE_WAY: Duration = Duration::from_secs(30);

/// One name.
#[derive(Debug, Default)]
struct Repoint {
    /// Of its last move; each has its own.
    number: u64,
    /// Threads that were sent to look the name up by an open, and have opened nothing since.
    sent: HashSet<u32>,
}

/// A leaf: nothing else is locked while this is, but the journal.
#[derive(Debug)]
pub(in crate::fs) struct Repoints {
    names: Mutex<HashMap<ObjectName, Repoint>>,
    moves: AtomicU64,
    journal: JournalWriter,
}

impl Repoints {
    pub fn new(journal: JournalWriter) -> Arc<Self> {
        Arc::new(Self { names: Mutex::default(), moves: AtomicU64::new(0), journal })
    }

    /// The same as a part of the change that moves the name, for the next worker: `begin` is due
    /// when that is published.
    pub fn note_in(tx: &Transaction, name: &ObjectName) {
        tx.record(&Key::Repoint(name.clone()), &());
    }

    /// The name shows another inode from now on than the kernel knows.
    pub fn begin(&self, name: &ObjectName) {
        let mut names = self.names.lock();
        names.entry(name.clone()).or_default().number = self.moves.fetch_add(1, Ordering::Relaxed) + 1;
        self.journal.record(&Key::Repoint(name.clone()), &());
    }

    /// The number of the name's last move; 0 if there was none lately.
    pub fn number(&self, name: &ObjectName) -> u64 {
        self.names.lock().get(name).map_or(0, |repoint| repoint.number)
    }

    /// The kernel knows: deletes the record. False, and the record stays, if the name has moved
    /// again.
    fn note_known(&self, name: &ObjectName, number: u64) -> bool {
        let names = self.names.lock();
        let is_last = names.get(name).is_some_and(|repoint| repoint.number == number);
        if is_last {
            self.journal.delete(&Key::Repoint(name.clone()));
        }
        is_last
    }

    /// No open is on its way any more that found the inode from before.
    fn end(&self, name: &ObjectName, number: u64) {
        let mut names = self.names.lock();
        if names.get(name).is_some_and(|repoint| repoint.number == number) {
            names.remove(name);
        }
    }

    /// Whether an open of `file` by this thread has to look the name up first.
    fn sends(&self, file: &File, thread: u32) -> bool {
        let mut names = self.names.lock();
        if names.is_empty() {
            return false;
        }
        drop(names);
        let (name, link) = {
            let state = file.state();
            (state.name.clone(), state.link)
        };
        names = self.names.lock();
        let Some(repoint) = names.get_mut(&name) else { return false };
        !repoint.sent.remove(&thread) && link == Link::Replaced && repoint.sent.insert(thread)
    }
}

impl Propagator {
    /// The name shows another inode than the kernel knows.
    pub(in crate::fs) fn repoint(&self, name: &ObjectName) {
        if self.helper.works() {
            self.begin_repoint(name);
        } else {
            self.repoints.begin(name);
            self.namespace.inval_name(name);
            self.repointed(name, self.repoints.number(name));
        }
    }

    /// The kernel knows what the name shows, or will once it has what it was sent.
    pub(in crate::fs) fn repointed(&self, name: &ObjectName, number: u64) {
        let (env, repoints, name) = (self.env.clone(), self.repoints.clone(), name.clone());
        let on_known = move || {
            if repoints.note_known(&name, number) {
                env.spawn(async move {
                    tokio::time::sleep(ON_THE_WAY).await;
                    repoints.end(&name, number);
                });
            }
        };
        match self.env.kernel() {
            Some(kernel) => kernel.after_notices(Box::new(on_known)),
            None => on_known(),
        }
    }

    /// ESTALE for an open, or a truncate(2), that may be meant for another inode, which the name
    /// shows by now.
    pub(in crate::fs) fn is_at_its_name(&self, file: &File, caller: Caller) -> Result<()> {
        match self.repoints.sends(file, caller.pid) {
            true => Err(Errno::ESTALE),
            false => Ok(()),
        }
    }

    /// Whether a save brings back a name that shows nothing: a program writes to a file that was
    /// replaced.
    pub(in crate::fs) fn may_come_back(&self, file: Option<&ObjectName>, dir: Option<&DirPrefix>) -> bool {
        self.handles.all().iter().filter_map(|handle| handle.written_file()).any(|open| {
            let state = open.state();
            let is_it = file == Some(&state.name)
                || dir.is_some_and(|dir| state.name.as_str().starts_with(dir.as_str()));
            is_it && state.link == Link::Replaced
        })
    }
}
