//! The register of helper calls: which requests of the helper are ours, and how they are answered.
//!
//! The helper is a process of the mount that makes system calls on it (`rename` of a hidden name
//! over a file, `unlink`), so that the kernel and all watchers see a change made elsewhere for what
//! it is. The requests that result are answered here:
//!
//! 1. **Each call is registered before it is ordered**; only an exact match is accepted, and the
//!    operation itself only once. Anything else from that process is EPERM.
//! 2. **No request of the helper reaches the vault**, and no request waits for the helper.
//! 3. Its process id is accepted once a request for a hidden name, which no other process can know,
//!    has come from it.
//! 4. A hidden name is spelt like no object's name, so that it is ENOENT for all others without a
//!    request.
//!
//! One call is in flight at a time. Without a helper, or if a call fails, the caller falls back to
//! a notification to the kernel, which is counted in status.

use std::ffi::OsStr;
use std::hash::{BuildHasher, RandomState};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::fs::inode::file::File;
use crate::fs::inode::{DirKind, Node, ROOT};
use crate::fs::propagation::Propagator;
use crate::fs::types::errno::{Errno, Result};
use crate::fs::{Attr, Entry, HelperCall, HelperReport, Kernel};
use crate::sys::random;

/// How hidden names begin. `%2E` is an escape only at the beginning of a name.
const HIDDEN: &str = ".%2E";

/// Timeout of the call that verifies the helper's process id.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The requests that a call results in.
#[derive(Debug, Clone)]
pub(in crate::fs) struct Expected {
    /// The directories on the way: parent, name, inode.
    pub way: Vec<(u64, String, DirKind)>,
    /// The directory of the change.
    pub parent: u64,
    /// The name that changes.
    pub name: String,
    /// The change.
    pub op: HelperOp,
}

/// The effect of a call.
#[derive(Debug, Clone)]
pub(in crate::fs) enum HelperOp {
    /// None: the name does not exist.
    Handshake,
    /// The hidden name shows `fresh` and becomes the name, which shows the inode `over` until then.
    Rename { hidden: String, fresh: Arc<File>, over: Option<u64> },
    /// The name is removed; it shows `file`.
    Unlink { file: Arc<File> },
    /// The time of `file` is set.
    Touch { file: Arc<File> },
}

/// The result of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fs) struct CallResult {
    /// The request arrived, and was carried out.
    pub seen: bool,
    /// The request arrived and was refused, because of a change meanwhile.
    pub refused: bool,
    /// What the helper got.
    pub errno: i32,
}

/// The state of the helper.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    Absent,
    /// It has started, and is to be verified.
    New,
    Works,
    /// The reason why there is none.
    Useless(String),
}

#[derive(Debug)]
struct PendingCall {
    number: u64,
    expected: Expected,
    ended: CallResult,
    answered: bool,
}

#[derive(Debug)]
struct HelperState {
    standing: Standing,
    number: u64,
    out: Option<PendingCall>,
    calls: u64,
    fallbacks: u64,
    last_fallback: Option<String>,
}

/// What is known of the helper.
#[derive(Debug)]
pub(in crate::fs) struct Register {
    /// The process id of the helper's requests; 0 for none.
    pid: AtomicU32,
    state: Mutex<HelperState>,
    changed: Notify,
}

/// The helper, for `status`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct HelperStatus {
    /// Its process id, 0 if there is none.
    pub pid: u32,
    /// `works`, or why it does not.
    pub state: String,
    /// Calls made.
    pub calls: u64,
    /// Changes that were only notified to the kernel, because no call could be made.
    pub fallbacks: u64,
    /// The reason, the last time.
    pub last_fallback: Option<String>,
}

impl Register {
    pub fn new() -> Self {
        let state = HelperState {
            standing: Standing::Absent,
            number: 0,
            out: None,
            calls: 0,
            fallbacks: 0,
            last_fallback: None,
        };
        Self { pid: AtomicU32::new(0), state: Mutex::new(state), changed: Notify::new() }
    }

    /// Whether a thread is the helper's.
    pub fn is(&self, pid: u32) -> bool {
        pid != 0 && self.pid.load(Ordering::Relaxed) == pid
    }

    /// Whether calls can be ordered.
    pub fn works(&self) -> bool {
        self.state.lock().standing == Standing::Works
    }

    /// A change was only notified to the kernel.
    pub fn fell_back(&self, why: impl std::fmt::Display) {
        let mut state = self.state.lock();
        state.fallbacks += 1;
        state.last_fallback = Some(why.to_string());
    }

    pub fn status(&self) -> HelperStatus {
        let state = self.state.lock();
        HelperStatus {
            pid: self.pid.load(Ordering::Relaxed),
            state: match &state.standing {
                Standing::Absent => "there is none".to_owned(),
                Standing::New => "no handshake yet".to_owned(),
                Standing::Works => "works".to_owned(),
                Standing::Useless(why) => why.clone(),
            },
            calls: state.calls,
            fallbacks: state.fallbacks,
            last_fallback: state.last_fallback.clone(),
        }
    }

    pub fn note_report(&self, report: HelperReport) {
        let mut state = self.state.lock();
        match report {
            HelperReport::Started { pid } => {
                self.pid.store(pid, Ordering::Relaxed);
                state.standing = Standing::New;
                // Its predecessor is dead.
                give_up(&mut state, libc::ESRCH);
            }
            HelperReport::Done { number, errno } => {
                // Orders that were abandoned when another helper came stay so, although that one
                // may execute them.
                let out = state.out.as_mut().filter(|out| out.number == number && !out.answered);
                if let Some(out) = out {
                    (out.answered, out.ended.errno) = (true, errno);
                }
            }
            HelperReport::Leaving => {
                self.pid.store(0, Ordering::Relaxed);
                state.standing = Standing::Absent;
                give_up(&mut state, libc::ESRCH);
            }
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Orders a call and waits for its result.
    pub async fn order(&self, kernel: &dyn Kernel, expected: Expected, call: &HelperCall) -> CallResult {
        let to =
            if matches!(expected.op, HelperOp::Handshake) { 0 } else { self.pid.load(Ordering::Relaxed) };
        let number = {
            let mut state = self.state.lock();
            state.number = state.number.max(first_number()) + 1;
            state.calls += 1;
            let ended = CallResult { seen: false, refused: false, errno: 0 };
            state.out = Some(PendingCall { number: state.number, expected, ended, answered: false });
            state.number
        };
        if !kernel.order(number, to, call) {
            self.note_report(HelperReport::Done { number, errno: libc::EPIPE });
        }
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.state.lock();
                match &state.out {
                    Some(out) if out.number == number && !out.answered => {}
                    Some(out) if out.number == number => {
                        let ended = out.ended;
                        state.out = None;
                        return ended;
                    }
                    _ => return CallResult { seen: false, refused: false, errno: libc::ESRCH },
                }
            }
            changed.await;
        }
    }

    /// Verifies a new helper: finds the process id that the kernel gives its requests.
    pub async fn handshake(&self, kernel: &dyn Kernel) {
        if self.state.lock().standing != Standing::New {
            return;
        }
        let name = hidden_name();
        let call = HelperCall::Unlink { path: name.clone() };
        let expected = Expected { way: Vec::new(), parent: ROOT, name, op: HelperOp::Handshake };
        let ended = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.order(kernel, expected, &call)).await;
        let mut state = self.state.lock();
        if state.standing != Standing::New {
            return;
        }
        state.standing = match ended {
            Ok(CallResult { seen: true, errno: libc::ENOENT, .. }) => Standing::Works,
            // Another helper has replaced it.
            Ok(CallResult { errno: libc::ESRCH, .. }) => Standing::New,
            Ok(CallResult { seen: false, errno, .. }) => Standing::Useless(format!(
                "its requests do not come under its process id (another pid namespace?): {}",
                errno_text(errno)
            )),
            Ok(CallResult { seen: true, errno, .. }) => Standing::Useless(errno_text(errno)),
            Err(_) => Standing::Useless("it does not answer".to_owned()),
        };
        if let Standing::Useless(why) = &state.standing {
            tracing::warn!("the kernel is notified of remote changes without the helper: {why}");
        }
    }

    /// The call in flight, if `is` accepts it; marked as seen if it is the operation itself.
    fn take(&self, is: impl FnOnce(&Expected) -> bool) -> Option<HelperOp> {
        let mut state = self.state.lock();
        let out = state.out.as_mut().filter(|out| !out.ended.seen && !out.answered)?;
        if !is(&out.expected) {
            return None;
        }
        out.ended.seen = true;
        Some(out.expected.op.clone())
    }

    fn refuse(&self) {
        if let Some(out) = &mut self.state.lock().out {
            (out.ended.seen, out.ended.refused) = (false, true);
        }
    }

    fn expected(&self) -> Option<Expected> {
        let state = self.state.lock();
        state.out.as_ref().filter(|out| !out.answered).map(|out| out.expected.clone())
    }
}

fn give_up(state: &mut HelperState, errno: i32) {
    if let Some(out) = &mut state.out {
        (out.answered, out.ended.errno) = (true, errno);
    }
}

pub(in crate::fs) fn errno_text(errno: i32) -> String {
    std::io::Error::from_raw_os_error(errno).to_string()
}

/// The orders of each worker have numbers of their own.
fn first_number() -> u64 {
    static FIRST: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *FIRST.get_or_init(|| u64::from(random_number() as u32) << 32)
}

fn random_number() -> u64 {
    // Without randomness the name is still unique, and only the helper's process id gives a request
    // its rights.
    let fallback = |_| RandomState::new().hash_one(std::process::id());
    random::bytes().map_or_else(fallback, u64::from_ne_bytes)
}

/// A name that is used once and that cannot be guessed.
pub(in crate::fs) fn hidden_name() -> String {
    format!("{HIDDEN}{:016x}{:016x}", random_number(), random_number())
}

impl Propagator {
    /// LOOKUP by the helper, or of a hidden name: answered without the vault.
    pub fn helper_lookup(&self, pid: u32, parent: u64, name: &OsStr) -> Option<Result<Option<Entry>>> {
        let hidden = name.as_bytes().starts_with(HIDDEN.as_bytes());
        let helper = self.helper.is(pid);
        if !hidden && !helper {
            return None;
        }
        if !helper {
            return Some(Ok(None));
        }
        let is_handshake = |e: &Expected| {
            matches!(e.op, HelperOp::Handshake) && e.parent == parent && name == e.name.as_str()
        };
        if self.helper.take(is_handshake).is_some() {
            return Some(Ok(None));
        }
        let Some(expected) = self.helper.expected() else { return Some(Err(Errno::EPERM)) };
        let on_the_way = expected.way.iter().find(|(at, text, _)| *at == parent && name == text.as_str());
        if let Some((_, _, kind)) = on_the_way {
            return Some(Ok(Some(self.namespace.dir_entry(kind))));
        }
        if parent != expected.parent {
            return Some(Err(Errno::EPERM));
        }
        let show = |file: &Arc<File>| self.namespace.entry(&Node::File(file.clone()), Duration::ZERO);
        Some(match &expected.op {
            HelperOp::Rename { hidden, fresh, .. } if name == hidden.as_str() => Ok(Some(show(fresh))),
            HelperOp::Rename { over, .. } if name == expected.name.as_str() => {
                let over = over.and_then(|ino| self.inodes.lock().node(ino));
                Ok(over.map(|node| self.namespace.entry(&node, Duration::ZERO)))
            }
            HelperOp::Unlink { file } | HelperOp::Touch { file } if name == expected.name.as_str() => {
                Ok(Some(show(file)))
            }
            HelperOp::Handshake
            | HelperOp::Rename { .. }
            | HelperOp::Unlink { .. }
            | HelperOp::Touch { .. } => Err(Errno::EPERM),
        })
    }

    /// RENAME, if it is the helper's.
    pub fn helper_rename(&self, pid: u32, from: (u64, &OsStr), to: (u64, &OsStr)) -> Option<Result<()>> {
        self.helper.is(pid).then(|| {
            let is_it = |e: &Expected| {
                matches!(&e.op, HelperOp::Rename { hidden, .. } if from.1 == hidden.as_str())
                    && (from.0, to.0) == (e.parent, e.parent)
                    && to.1 == e.name.as_str()
            };
            match self.helper.take(is_it) {
                Some(HelperOp::Rename { fresh, over, .. }) => self.or_refuse(self.show(&fresh, over)),
                _ => Err(Errno::EPERM),
            }
        })
    }

    /// UNLINK, if it is the helper's.
    pub fn helper_unlink(&self, pid: u32, parent: u64, name: &OsStr) -> Option<Result<()>> {
        self.helper.is(pid).then(|| {
            let is_it = |e: &Expected| {
                matches!(e.op, HelperOp::Unlink { .. }) && e.parent == parent && name == e.name.as_str()
            };
            match self.helper.take(is_it) {
                Some(HelperOp::Unlink { file }) => self.or_refuse(self.show_nothing(&file)),
                _ => Err(Errno::EPERM),
            }
        })
    }

    /// SETATTR, if it is the helper's.
    pub fn helper_setattr(&self, pid: u32, ino: u64) -> Option<Result<(Attr, Duration)>> {
        self.helper.is(pid).then(|| {
            let is_it = |e: &Expected| matches!(&e.op, HelperOp::Touch { file } if file.ino == ino);
            match self.helper.take(is_it) {
                Some(HelperOp::Touch { file }) => {
                    Ok((self.namespace.attr(&Node::File(file)), Duration::ZERO))
                }
                _ => Err(Errno::EPERM),
            }
        })
    }

    fn or_refuse(&self, done: Result<()>) -> Result<()> {
        if done.is_err() {
            self.helper.refuse();
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::name::{DirPrefix, decode};

    #[test]
    fn what_was_given_up_is_not_answered_after_all() {
        let register = Register::new();
        register.note_report(HelperReport::Started { pid: 1 });
        let expected = Expected { way: Vec::new(), parent: ROOT, name: "x".into(), op: HelperOp::Handshake };
        let ended = CallResult { seen: false, refused: false, errno: 0 };
        register.state.lock().out = Some(PendingCall { number: 7, expected, ended, answered: false });
        register.note_report(HelperReport::Started { pid: 2 });
        // It executes an order to its predecessor, unseen because its process id was not known yet.
        register.note_report(HelperReport::Done { number: 7, errno: libc::ENOENT });
        assert_eq!(register.state.lock().out.as_ref().map(|out| out.ended.errno), Some(libc::ESRCH));
    }

    #[test]
    fn no_object_is_spelt_like_a_hidden_name() {
        let name = hidden_name();
        assert_ne!(name, hidden_name());
        let deep = DirPrefix::new("a/b/").unwrap();
        assert!(decode(name.as_bytes(), &DirPrefix::root()).is_err(), "{name}");
        assert!(decode(name.as_bytes(), &deep).is_err(), "{name}");
    }
}
