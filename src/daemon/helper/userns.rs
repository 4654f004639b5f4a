//! The right to change directories that show no `w`, for the helper of an ordinary user.
//!
//! On a read-only mount nothing shows a `w`, and the kernel holds an ordinary user's helper to that: its rename is EACCES
//! before the worker hears of it. In a user namespace of its own a process overrides the modes of what belongs to its
//! own user and group, and of nothing else; as seen from the mount it stays who it is. Where user namespaces are
//! forbidden, all stays as it was.

use std::fs;
use std::io;

use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_dumpable;
use nix::unistd::{getegid, geteuid};

/// Enters one. Only for a process with one thread, and for one that holds no secret: for a moment it is dumpable,
/// because the files under /proc/self that have to be written are root's until then.
pub fn enter() -> io::Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER)?;
    set_dumpable(true)?;
    let mapped = map(uid.as_raw(), gid.as_raw());
    set_dumpable(false)?;
    mapped
}

/// Who it is outside it is inside.
fn map(uid: u32, gid: u32) -> io::Result<()> {
    // Or the kernel takes no map of groups.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))
}
