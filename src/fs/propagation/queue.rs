//! Rotation: a change made elsewhere becomes a rename on our own mount.
//!
//! 1. What changed is queued by name, once; what a name is to show is found out when its turn
//!    comes, so that of several versions in a short time the newest wins.
//! 2. A value in use (the kernel holds its inode) is fetched first, in the background. Of any other
//!    only the name changes: what is shown until the next lookup has no size and is never trusted.
//! 3. The new version gets an inode of its own under a hidden name, and the helper renames that
//!    over the old one. Creation is a rename to a name that was not there, deletion an unlink. The
//!    old inode is `Replaced`.
//! 4. **Local writers come first.** An inode with bytes that the vault has not is not replaced,
//!    neither when its turn comes nor when the helper's request does: its commit decides.
//! 5. In the kernel a rename waits for whatever is out in that directory, and holds up what comes
//!    after it: one is ordered only when no request of that directory and no commit of that file is
//!    out at the vault.
//! 6. A directory is never removed by the helper: the kernel would hold its inode for dead, and it
//!    may revive.
//! 7. Without a helper, or where it fails, the kernel is notified to forget the entry, and the next
//!    lookup does the rest.
//!
//! With `--in-place` the inode stays and its bytes change, which may be seen half way.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, broadcast};

use crate::fs::inode::DirKind;
use crate::fs::inode::file::File;
use crate::fs::journal::Key;
use crate::fs::propagation::helper_calls::{
    CallResult, Expected, HelperCall, HelperOp, errno_text, hidden_name,
};
use crate::fs::propagation::in_flight::InFlight;
use crate::fs::propagation::position::NamePosition;
use crate::fs::{FileSystem, HelperStatus, Kernel, Step};
use crate::vault::cache::{Change, Peek, PrefixState, RefreshStatus};
use crate::vault::{Object, ObjectId, ObjectName};

/// Values fetched at a time.
const FETCHES: usize = 8;

/// Unused names up to this number get an event each in one pass; beyond it, the kernel only
/// forgets.
const EVENTS: usize = 1000;

/// How often things may change while a rotation is on its way.
const ROUNDS: usize = 5;

/// Changes that a slow subscriber may be behind.
const BEHIND: usize = 4096;

/// What `EACCES` means for the helper.
const NO_RIGHT: &str = ": the helper may not change that directory; where it shows no `w`, as on a read-only mount, an \
    ordinary user's helper needs user namespaces";

/// Why a name is to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::fs) enum Why {
    /// It changed elsewhere.
    Changed,
    /// It shows another inode now than the kernel knows.
    Repoint,
    /// The same, but the kernel knows by now, from a lookup: watchers had no event.
    Known,
}

/// What is to be rotated, and what is out.
#[derive(Debug)]
pub(in crate::fs) struct Propagator {
    queue: Mutex<BTreeMap<ObjectName, Why>>,
    wake: Notify,
    in_flight: Arc<InFlight>,
    done: Mutex<u64>,
    /// Rotations are being carried out.
    working: AtomicBool,
    events: broadcast::Sender<Change>,
}

impl Propagator {
    pub fn new() -> Self {
        Self {
            queue: Mutex::default(),
            wake: Notify::new(),
            in_flight: Arc::default(),
            done: Mutex::default(),
            working: AtomicBool::new(false),
            events: broadcast::channel(BEHIND).0,
        }
    }

    pub fn wake(&self) {
        self.wake.notify_one();
    }

    fn queue(&self) -> parking_lot::MutexGuard<'_, BTreeMap<ObjectName, Why>> {
        self.queue.lock()
    }

    pub fn add(&self, name: ObjectName, why: Why) {
        add(&mut self.queue(), name, why);
        self.wake();
    }
}

fn add(queue: &mut BTreeMap<ObjectName, Why>, name: ObjectName, why: Why) {
    let before = queue.entry(name).or_insert(why);
    *before = why.max(*before);
}

/// Rotations, for `status`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RotationStatus {
    /// The refresher.
    pub refresh: RefreshStatus,
    /// The helper.
    pub helper: HelperStatus,
    /// Names that were made to show something else.
    pub done: u64,
    /// Names that wait for it.
    pub waiting: usize,
}

enum Propagated {
    Done,
    /// The kernel had nothing to do.
    Unseen,
    Again,
}

impl FileSystem {
    /// Begins to follow what changes elsewhere, for as long as the runtime lives.
    pub fn follow_changes(self: &Arc<Self>) {
        self.env.cache().track_changes();
        let (fs, subscribed, seen, idle) = (self.clone(), self.clone(), self.clone(), self.clone());
        let wanted = move || subscribed.propagator.events.receiver_count() > 0;
        let watched = move || seen.env.kernel().is_some_and(|kernel| kernel.is_watched());
        let on_tick = move || fs.ingest_changes();
        let on_idle = move || idle.take_back_pages();
        self.env.spawn(self.env.cache().clone().keep_fresh(wanted, watched, on_tick, on_idle));
        let fs = self.clone();
        self.env.spawn(async move {
            loop {
                fs.propagator.wake.notified().await;
                fs.flush_queue().await;
            }
        });
    }

    /// The changes made elsewhere, as they are seen from now on. While there is a subscriber the
    /// mount is in use.
    pub fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.propagator.events.subscribe()
    }

    /// Whether the mount shows every change that subscribers received.
    pub fn is_propagated(&self) -> bool {
        // In this order: what is taken out of the queue is being worked on before it is gone from
        // there.
        self.propagator.queue().is_empty() && !self.propagator.working.load(Ordering::Acquire)
    }

    /// Whether a change that subscribers received was made here.
    pub fn is_own_change(&self, change: &Change) -> bool {
        self.env.cache().is_own(change)
    }

    /// One tick of the refresher, and all that follows from it.
    pub async fn refresh_now(self: &Arc<Self>) {
        self.env.cache().track_changes();
        self.env.cache().tick().await;
        self.env.cache().ask_again().await;
        self.ingest_changes();
        self.flush_queue().await;
    }

    fn ingest_changes(&self) {
        for change in self.env.cache().take_changes() {
            self.propagator.add(change.name.clone(), Why::Changed);
            // There may be no subscriber.
            let _ = self.propagator.events.send(change);
        }
        if self.env.journal().is_enabled()
            && let Some(covered) = self.env.cache().covered()
        {
            self.env.journal().record(&Key::Covered, &covered);
        }
        self.note_lag();
    }

    /// Writes down what a successor has to know of a vault that lags.
    fn note_lag(&self) {
        if self.env.journal().is_enabled()
            && let Some(lag) = self.env.cache().lag_memory()
        {
            self.env.journal().record(&Key::Lag, &lag);
        }
    }

    /// An object was deleted here, or is known to be gone: of another one that has its name by now
    /// only if `id` says which.
    pub(in crate::fs) fn note_deleted(&self, name: &ObjectName, id: Option<&ObjectId>) {
        match id {
            Some(id) => self.env.cache().deleted_object(name, id),
            None => self.env.cache().deleted(name),
        }
        self.note_lag();
    }

    /// The requests that a step sends hold the lock of directory `parent` in the kernel.
    pub(in crate::fs) fn within<T: 'static>(&self, parent: u64, step: Step<T>) -> Step<T> {
        match step {
            Step::Ready(result) => Step::Ready(result),
            Step::Pending(work) => {
                let out = self.propagator.in_flight.enter(parent);
                Step::later(async move {
                    let _out = out;
                    work.await
                })
            }
        }
    }

    /// Carries out all rotations that wait.
    pub async fn flush_queue(self: &Arc<Self>) {
        let Some(kernel) = self.env.kernel() else { return };
        loop {
            self.helper.handshake(&**kernel).await;
            self.propagator.working.store(true, Ordering::Release);
            let batch = std::mem::take(&mut *self.propagator.queue());
            if batch.is_empty() {
                self.propagator.working.store(false, Ordering::Release);
                return;
            }
            // The values first, several at once: the helper makes one call after the other.
            let wanted = batch.keys().filter(|name| self.in_use(name).is_some());
            futures_util::stream::iter(wanted)
                .for_each_concurrent(FETCHES, |name| async move {
                    let _ = self.current(name).await;
                })
                .await;
            let mut unused = 0;
            for (name, why) in batch {
                unused += usize::from(self.in_use(&name).is_none());
                let number = self.repoints.number(&name);
                self.propagate(&name, why, unused <= EVENTS).await;
                if why != Why::Changed {
                    self.repointed(&name, number);
                }
            }
        }
    }

    /// The file that `name` shows, if the kernel or a program holds it.
    fn in_use(&self, name: &ObjectName) -> Option<Arc<File>> {
        let table = self.table();
        let file = table.file(name)?;
        let held = table.is_held(file.ino) || file.state().opens > 0;
        held.then_some(file)
    }

    /// What the vault has of that name now.
    async fn current(&self, name: &ObjectName) -> Result<Option<Arc<Object>>, crate::vault::Error> {
        match self.env.cache().peek(name) {
            Peek::Value(found) => Ok(Some(found.object)),
            Peek::Absent(_) => Ok(None),
            Peek::Exists | Peek::AbsentBefore | Peek::Unknown => {
                self.env.cache().fetch_in_background(name).await
            }
        }
    }

    async fn propagate(self: &Arc<Self>, name: &ObjectName, mut why: Why, with_event: bool) {
        for _ in 0..ROUNDS {
            match self.propagate_once(name, why, with_event).await {
                Propagated::Done => return,
                Propagated::Unseen => why = Why::Known,
                Propagated::Again => {}
            }
        }
        self.only_forget(name, "the file was changed here again and again");
    }

    async fn propagate_once(self: &Arc<Self>, name: &ObjectName, why: Why, with_event: bool) -> Propagated {
        let shown = {
            let table = self.table();
            if table.is_hidden(name) {
                return Propagated::Done;
            }
            table.file(name)
        };
        if shown.as_ref().is_some_and(|file| file.state().is_beyond_vault()) {
            // Its commit decides what the name shows. That it is another inode than before is so
            // already.
            if why == Why::Repoint {
                self.inval_name(name);
            }
            return Propagated::Done;
        }
        self.make_way_for(name);
        let Some(position) = self.name_position(name) else { return Propagated::Done };
        if position.is_below {
            if let Some(kernel) = self.env.kernel() {
                // It may have a negative entry for that directory.
                kernel.inval_entry(position.parent, OsStr::new(&position.text));
                kernel.inval_inode(position.parent);
            }
            return Propagated::Done;
        }
        let used = self.in_use(name);
        let op = match self.op(name, why, shown.as_ref(), used.as_ref()).await {
            Ok(Some(op)) => op,
            Ok(None) => return Propagated::Done,
            Err(e) => {
                self.only_forget(name, &e.to_string());
                return Propagated::Done;
            }
        };
        if used.is_none() && !with_event {
            self.only_forget(name, "so many names changed at once that only those in use are rotated");
            return Propagated::Done;
        }
        let outcome = self.execute(name, position, op.clone(), shown).await;
        // What was not shown is dropped.
        match op {
            HelperOp::Rename { fresh: file, .. } | HelperOp::Unlink { file } | HelperOp::Touch { file } => {
                self.table().drop_unheld(file.ino);
            }
            HelperOp::Handshake => {}
        }
        outcome
    }

    /// What has to happen so that `name` shows what the vault has.
    async fn op(
        self: &Arc<Self>,
        name: &ObjectName,
        why: Why,
        shown: Option<&Arc<File>>,
        used: Option<&Arc<File>>,
    ) -> Result<Option<HelperOp>, crate::vault::Error> {
        let over = shown.map(|file| file.ino);
        let rename = |fresh: Arc<File>| HelperOp::Rename { hidden: hidden_name(), fresh, over };
        let Some(used) = used else {
            let stays = matches!(self.env.cache().peek(name), Peek::Value(_) | Peek::Exists);
            let nameless = |table: &mut crate::fs::inode::Table| {
                table.add_nameless(name, |ino, local| File::new(ino, name.clone(), local))
            };
            let file = nameless(&mut self.table());
            return Ok(Some(if stays { rename(file) } else { HelperOp::Unlink { file } }));
        };
        let Some(object) = self.current(name).await? else {
            return Ok(Some(HelperOp::Unlink { file: used.clone() }));
        };
        let is_shown = used.state().stored.as_ref().is_some_and(|stored| stored.is(&object.meta));
        // What a lookup has found already is executed all the same, for watchers.
        let announced = used.state().pending_notify.as_ref() != Some(&object.meta.version);
        Ok(match (is_shown, why) {
            (true, Why::Changed) if announced => None,
            (true, Why::Repoint) => Some(rename(used.clone())),
            (true, _) if self.env.options().in_place => Some(HelperOp::Touch { file: used.clone() }),
            (false, _) if self.env.options().in_place => {
                let tx = self.env.journal().begin();
                let _table = self.table_in(&tx);
                self.become_version(&tx, used, &object).then(|| HelperOp::Touch { file: used.clone() })
            }
            _ => {
                let mut table = self.table();
                Some(rename(table.add_nameless(name, |ino, local| File::of(ino, &object, local))))
            }
        })
    }

    /// Has the helper do it, once nothing stands in its way.
    async fn execute(
        self: &Arc<Self>,
        name: &ObjectName,
        position: NamePosition,
        op: HelperOp,
        shown: Option<Arc<File>>,
    ) -> Propagated {
        let Some(kernel) = self.env.kernel() else { return Propagated::Done };
        if !self.helper.works() {
            self.only_forget(name, &self.helper.status().state);
            return Propagated::Done;
        }
        let quiet = self.quiet(position.parent, shown.as_deref());
        if tokio::time::timeout(2 * self.env.options().timeout, quiet).await.is_err() {
            self.only_forget(name, "its directory or a write of it is at the vault all the time");
            return Propagated::Done;
        }
        let to = format!("{}{}", position.path, position.text);
        let call = match &op {
            HelperOp::Handshake => return Propagated::Done,
            HelperOp::Rename { hidden, .. } => {
                HelperCall::Rename { from: format!("{}{hidden}", position.path), to }
            }
            HelperOp::Unlink { .. } => HelperCall::Unlink { path: to },
            HelperOp::Touch { file } => HelperCall::Touch { path: to, mtime: file.state().mtime() },
        };
        let deletes = matches!(op, HelperOp::Unlink { .. });
        let is_same = matches!(&op, HelperOp::Rename { fresh, over, .. } if *over == Some(fresh.ino));
        let file = if let HelperOp::Touch { file } = &op { Some(file.clone()) } else { None };
        let way = position.way.clone();
        let expected = Expected { way: position.way, parent: position.parent, name: position.text, op };
        match self.helper.order(&**kernel, expected, &call).await {
            CallResult { refused: true, .. } => Propagated::Again,
            // A rename onto the same inode is nothing to the kernel, which knew already.
            CallResult { seen: false, errno: 0, .. } if is_same => Propagated::Unseen,
            CallResult { seen, errno, .. } if seen || errno == 0 => {
                *self.propagator.done.lock() += u64::from(seen);
                tracing::debug!(name = name.as_str(), ?call, "changed elsewhere");
                if deletes {
                    self.forget_emptied(&**kernel, &way);
                }
                if let Some(file) = file {
                    file.change_alone().pending_notify = None;
                }
                Propagated::Done
            }
            // The helper died; another one is on its way.
            CallResult { errno: libc::ESRCH, .. } => {
                self.helper.handshake(&**kernel).await;
                Propagated::Again
            }
            CallResult { errno, .. } => {
                let needs = if errno == libc::EACCES { NO_RIGHT } else { "" };
                self.only_forget(name, &format!("{}{needs}", errno_text(errno)));
                Propagated::Done
            }
        }
    }

    /// Waits until no request of the directory and no commit of the file is out at the vault.
    async fn quiet(&self, parent: u64, file: Option<&File>) {
        loop {
            self.propagator.in_flight.quiet(parent).await;
            match file {
                Some(file) if file.commit_lock.available_permits() == 0 => {
                    drop(file.commit_lock.acquire().await)
                }
                _ => return,
            }
        }
    }

    /// The kernel forgets what it knows of the name; the next lookup finds out.
    fn only_forget(&self, name: &ObjectName, why: &str) {
        self.helper.fell_back(why);
        self.inval_name(name);
        if let (Some(kernel), Some(position)) = (self.env.kernel(), self.name_position(name)) {
            // A listing that the kernel keeps.
            kernel.inval_inode(position.parent);
        }
    }

    /// Directories that nothing implies any more show nothing.
    fn forget_emptied(&self, kernel: &dyn Kernel, way: &[(u64, String, DirKind)]) {
        for (parent, text, kind) in way.iter().rev() {
            let DirKind::Tree(dir) = kind else { return };
            let made = self.table().is_made(dir);
            if made || self.env.cache().prefix_state(dir.as_str()) == PrefixState::Yes {
                return;
            }
            kernel.inval_entry(*parent, OsStr::new(text));
        }
    }

    /// What `status` says.
    pub(in crate::fs) fn rotation_status(&self) -> RotationStatus {
        RotationStatus {
            refresh: self.env.cache().refresh_status(),
            helper: self.helper.status(),
            done: *self.propagator.done.lock(),
            waiting: self.propagator.queue().len(),
        }
    }

    /// For how long the kernel may go on without asking, where what changes is brought to it.
    pub(in crate::fs) fn ttl(&self, fresh_for: Duration) -> Duration {
        if fresh_for.is_zero() || !self.env.cache().is_refreshed() { fresh_for } else { self.longest_ttl() }
    }

    /// The longest of all.
    pub(in crate::fs) fn longest_ttl(&self) -> Duration {
        self.env.options().refresh.saturating_mul(TTL_TICKS)
    }
}

/// How many refresh times the kernel goes without asking while changes are brought to it.
const TTL_TICKS: u32 = 12;
