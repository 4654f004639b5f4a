//! The right to change directories that show no `w`, for the helper of an ordinary user.
//!
//! On a read-only mount nothing shows a `w`, and the kernel enforces that for an ordinary user's
//! helper: its rename is EACCES before the worker gets it. In a user namespace a process overrides
//! the modes of files of its own user and group only; the mount sees the same user. Where user
//! namespaces are forbidden, the helper runs without one.

use std::fs;
use std::io;

use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_dumpable;
use nix::unistd::{getegid, geteuid};

/// Enters one. Only for a process with one thread, and for one that holds no secret: for a moment
/// it is dumpable, because the files under /proc/self that have to be written are root's until
/// then.
pub fn enter() -> io::Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER)?;
    set_dumpable(true)?;
    let mapped = map(uid.as_raw(), gid.as_raw());
    set_dumpable(false)?;
    mapped
}

/// The same user and group inside as outside.
fn map(uid: u32, gid: u32) -> io::Result<()> {
    // Or the kernel takes no map of groups.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))
}
