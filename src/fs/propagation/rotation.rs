//! Rotation: a change made elsewhere becomes a rename on our own mount.
//!
//! 1. The queue ([`Propagator`]) has each name once; what a name is to show is found out when it is
//!    taken out, so that of several versions in a short time the newest wins.
//! 2. A value in use (the kernel holds its inode) is fetched first, in the background. Of any other
//!    only the name changes: what is shown until the next lookup has no size and is never trusted.
//! 3. The new version gets an inode of its own under a hidden name, and the helper renames that
//!    over the old one. Creation is a rename to a name that was not there, deletion an unlink. The
//!    old inode is `Replaced`.
//! 4. **Local writers come first.** An inode with bytes that the vault has not is not replaced,
//!    neither when its name is taken out nor when the helper's request does: its commit decides.
//! 5. In the kernel a rename waits for whatever is out in that directory, and holds up what comes
//!    after it: one is ordered only when no request of that directory and no commit of that file is
//!    out at the vault.
//! 6. A directory is never removed by the helper: the kernel would hold its inode for dead, and it
//!    may revive.
//! 7. Without a helper, or where it fails, the kernel is notified to forget the entry, and the next
//!    lookup does the rest.
//!
//! With `--in-place` the inode stays and its bytes change, which may be seen half way.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::StreamExt;

use crate::fs::inode::DirKind;
use crate::fs::inode::file::File;
use crate::fs::namespace::position::NamePosition;
use crate::fs::propagation::helper_calls::{CallResult, Expected, HelperOp, errno_text, hidden_name};
use crate::fs::propagation::{Propagator, Why};
use crate::fs::{HelperCall, Kernel};
use crate::vault::cache::{Peek, PrefixState};
use crate::vault::{Object, ObjectName};

/// Values fetched at a time.
const FETCHES: usize = 8;

/// Unused names up to this number get an event each in one pass; beyond it, the kernel only
/// forgets.
const EVENTS: usize = 1000;

/// How often things may change while a rotation is on its way.
const ROUNDS: usize = 5;

/// What `EACCES` means for the helper.
const NO_RIGHT: &str = ": the helper may not change that directory; where it shows no `w`, as on a read-only mount, an \
    ordinary user's helper needs user namespaces";

enum Propagated {
    Done,
    /// The kernel had nothing to do.
    Unseen,
    Again,
}

impl Propagator {
    /// Begins to follow what changes elsewhere, for as long as the runtime lives.
    pub fn follow_changes(self: &Arc<Self>) {
        self.env.cache().track_changes();
        let (refreshed, subscribed, seen, idle) = (self.clone(), self.clone(), self.clone(), self.clone());
        let wanted = move || subscribed.events.receiver_count() > 0;
        let watched = move || seen.env.kernel().is_some_and(|kernel| kernel.is_watched());
        let on_tick = move || refreshed.ingest_changes();
        let on_idle = move || idle.take_back_pages();
        self.env.spawn(self.env.cache().clone().keep_fresh(wanted, watched, on_tick, on_idle));
        let propagator = self.clone();
        self.env.spawn(async move {
            loop {
                propagator.wake.notified().await;
                propagator.flush_queue().await;
            }
        });
    }

    /// For tests: one tick of the refresher, without a deletion scan, and the rotations that it
    /// causes.
    pub async fn refresh_now(self: &Arc<Self>) {
        self.env.cache().track_changes();
        self.env.cache().tick().await;
        self.env.cache().ask_again().await;
        self.ingest_changes();
        self.flush_queue().await;
    }

    /// Carries out all rotations that wait.
    pub async fn flush_queue(self: &Arc<Self>) {
        let Some(kernel) = self.env.kernel() else { return };
        loop {
            self.helper.handshake(&**kernel).await;
            let Some(batch) = self.take_batch() else { return };
            // The values first, several at once: the helper makes one call after the other.
            let wanted = batch.keys().filter(|name| self.held_file(name).is_some());
            futures_util::stream::iter(wanted)
                .for_each_concurrent(FETCHES, |name| async move {
                    let _ = self.current(name).await;
                })
                .await;
            let mut unused = 0;
            for (name, why) in batch {
                unused += usize::from(self.held_file(&name).is_none());
                let number = self.repoints.number(&name);
                self.propagate(&name, why, unused <= EVENTS).await;
                if why != Why::Changed {
                    self.repointed(&name, number);
                }
            }
        }
    }

    /// The file that `name` shows, if the kernel or a program holds it.
    fn held_file(&self, name: &ObjectName) -> Option<Arc<File>> {
        let table = self.inodes.lock();
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
            let table = self.inodes.lock();
            if table.is_hidden(name) {
                return Propagated::Done;
            }
            table.file(name)
        };
        if shown.as_ref().is_some_and(|file| file.state().is_beyond_vault()) {
            // Its commit decides what the name shows. That it is another inode than before is so
            // already.
            if why == Why::Repoint {
                self.namespace.inval_name(name);
            }
            return Propagated::Done;
        }
        self.namespace.make_way_for(name);
        let Some(position) = self.namespace.name_position(name) else { return Propagated::Done };
        if position.is_below {
            if let Some(kernel) = self.env.kernel() {
                // It may have a negative entry for that directory.
                kernel.inval_entry(position.parent, OsStr::new(&position.text));
                kernel.inval_inode(position.parent);
            }
            return Propagated::Done;
        }
        let used = self.held_file(name);
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
                self.inodes.lock().drop_unheld(file.ino);
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
            let file =
                self.inodes.lock().add_nameless(name, |ino, local| File::new(ino, name.clone(), local));
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
                let _table = self.inodes.lock_in(&tx);
                self.namespace
                    .become_version(&tx, used, &object)
                    .then(|| HelperOp::Touch { file: used.clone() })
            }
            _ => {
                let mut table = self.inodes.lock();
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
                if seen {
                    self.done.fetch_add(1, Ordering::Relaxed);
                }
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

    /// The kernel forgets what it knows of the name; the next lookup finds out.
    fn only_forget(&self, name: &ObjectName, why: &str) {
        self.helper.fell_back(why);
        self.namespace.inval_name(name);
        if let (Some(kernel), Some(position)) = (self.env.kernel(), self.namespace.name_position(name)) {
            // A listing that the kernel keeps.
            kernel.inval_inode(position.parent);
        }
    }

    /// Directories that nothing implies any more show nothing.
    fn forget_emptied(&self, kernel: &dyn Kernel, way: &[(u64, String, DirKind)]) {
        for (parent, text, kind) in way.iter().rev() {
            let DirKind::Tree(dir) = kind else { return };
            let made = self.inodes.lock().is_made(dir);
            if made || self.env.cache().prefix_state(dir.as_str()) == PrefixState::Yes {
                return;
            }
            kernel.inval_entry(*parent, OsStr::new(text));
        }
    }
}
