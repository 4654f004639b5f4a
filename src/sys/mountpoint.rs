//! Checks whether a directory can be mounted on, before any process is started. The checked
//! directory stays open and is the one that is mounted on ([`Target`]).
//!
//! What is there already decides: nothing, and it is checked like any directory; a *dead* mount of
//! ours (our type in the mount table, ENOTCONN from the kernel) is removed and replaced; anything
//! else, live, hanging or foreign, is left alone. Access may hang, so a child process does it
//! ([`probe`]). Each refusal is one sentence with the next step in it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::sys::fusermount;
use crate::sys::mount::KernelOptions;
use crate::sys::mount_table;
use crate::sys::mount_table::Entry;
use crate::sys::mount_target::{Target, WalkError};
use crate::sys::probe;
use crate::sys::probe::{ProbeError, Seen};
use crate::sys::unmount;

/// Timeout after which a file system counts as hanging.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a directory cannot be mounted on.
#[derive(Debug, thiserror::Error)]
pub enum MountpointError {
    /// ENOENT.
    #[error("{0} does not exist: make it with `mkdir {0}`")]
    Missing(PathBuf),
    /// It is no directory.
    #[error("{0} is not a directory: choose or make another")]
    NotADirectory(PathBuf),
    /// Files would be hidden.
    #[error(
        "{0} is not empty, and a mount would hide its files: choose an empty directory, or use -o nonempty"
    )]
    NotEmpty(PathBuf),
    /// A live mount of ours.
    #[error("{0} has a vault mounted already: unmount it with `vaultfs unmount {0}` first")]
    Mounted(PathBuf),
    /// Another file system's mount.
    #[error("{0} is the mount point of another file system ({1}): choose another directory")]
    Foreign(PathBuf, String),
    /// No answer.
    #[error(
        "{0} does not answer: something mounted there hangs; it is left alone (`umount -l {0}` removes it)"
    )]
    Hangs(PathBuf),
    /// A dead mount that cannot be removed.
    #[error("{0} has a dead mount that cannot be removed: {1}")]
    Stuck(PathBuf, io::Error),
    /// A link of another user is on the way.
    #[error(
        "{0} leads through {1}, a link that belongs to another user (uid {2}): give the path of the directory itself"
    )]
    Link(PathBuf, String, u32),
    /// It is in a FUSE file system of another user, which could prevent unmounting.
    #[error(
        "{0} is within a file system that another user (uid {1}) serves and could keep mounted: choose \
         a directory outside of it"
    )]
    Served(PathBuf, u32),
    /// Paths travel as JSON.
    #[error("{0}: only UTF-8 paths can be mounted on")]
    NotUtf8(PathBuf),
    /// Anything else.
    #[error("{0} cannot be used: {1}")]
    Other(PathBuf, io::Error),
}

/// Checks that `path` leads to a directory that can be mounted on. A dead mount of ours is removed,
/// or, for root, is itself what is mounted on.
pub fn check(path: &Path, nonempty: bool) -> Result<Target, MountpointError> {
    // Dead mounts may be stacked; each turn removes one.
    for _ in 0..16 {
        let (seen, target) = inspect(path)?;
        let at = target.path();
        let other = |e| MountpointError::Other(at.to_owned(), e);
        if at.to_str().is_none() {
            return Err(MountpointError::NotUtf8(at.to_owned()));
        }
        let is_its_root = |entry: &Entry| entry.id == target.mount_id() && entry.mountpoint == at;
        let table = mount_table::table().map_err(other)?;
        match table.iter().find(|entry| is_its_root(entry)).cloned() {
            Some(top) if is_dead(&top, &seen) => {
                let is_stacked =
                    table.iter().any(|entry| entry.id == top.parent && entry.mountpoint == top.mountpoint);
                // The next mount takes its place (`attach`): the plain directory never shows in
                // between.
                if nix::unistd::geteuid().is_root() && !is_stacked {
                    return Ok(target);
                }
                drop(target);
                remove_dead(&top.mountpoint, &top)?;
            }
            Some(top) if top.is_vaultfs() => return Err(MountpointError::Mounted(top.mountpoint)),
            Some(top) if !nonempty => return Err(MountpointError::Foreign(top.mountpoint, top.fs_type)),
            _ => return plain_directory(target, &seen, nonempty),
        }
    }
    Err(MountpointError::Stuck(path.into(), io::Error::other("too many of them")))
}

fn inspect(path: &Path) -> Result<(Seen, Target), MountpointError> {
    let other = |e| MountpointError::Other(path.into(), e);
    match probe::stat(path, PATIENCE) {
        Ok(Ok((seen, directory))) => {
            let target = Target::new(seen.canonical.clone(), directory).map_err(other)?;
            Ok((seen, target))
        }
        Ok(Err(WalkError::Errno(errno))) => Err(refusal(path, errno)),
        Ok(Err(WalkError::Moved)) => Err(other(io::Error::other("it was moved or replaced meanwhile"))),
        Ok(Err(WalkError::Link { link, uid })) => Err(MountpointError::Link(path.into(), link, uid)),
        Ok(Err(WalkError::Served(uid))) => Err(MountpointError::Served(path.into(), uid)),
        Err(ProbeError::Hangs) => Err(MountpointError::Hangs(path.into())),
        Err(ProbeError::Failed(e)) => Err(other(e)),
    }
}

/// Whether it is a vaultfs mount without a daemon.
pub fn is_dead(top: &Entry, seen: &Seen) -> bool {
    top.is_vaultfs() && seen.statfs == Err(libc::ENOTCONN)
}

/// Detaches a dead mount, and no other that may be there by now.
pub fn remove_dead(canonical: &Path, top: &Entry) -> Result<(), MountpointError> {
    let removed = match unmount::detach(top) {
        Ok(true) => return Ok(()),
        Ok(false) => io::Error::other("something else is there now"),
        Err(e) => e,
    };
    Err(MountpointError::Stuck(canonical.into(), removed))
}

fn plain_directory(target: Target, seen: &Seen, nonempty: bool) -> Result<Target, MountpointError> {
    let at = || target.path().to_owned();
    match seen.stat {
        Ok((true, _)) => {}
        Ok((false, _)) => return Err(MountpointError::NotADirectory(at())),
        Err(errno) => return Err(refusal(target.path(), errno)),
    }
    match seen.empty {
        Ok(false) if !nonempty => Err(MountpointError::NotEmpty(at())),
        Err(errno) if !nonempty => Err(refusal(target.path(), errno)),
        _ => Ok(target),
    }
}

fn refusal(path: &Path, errno: i32) -> MountpointError {
    let path = path.to_owned();
    match errno {
        libc::ENOENT => MountpointError::Missing(path),
        libc::ENOTDIR => MountpointError::NotADirectory(path),
        errno => MountpointError::Other(path, io::Error::from_raw_os_error(errno)),
    }
}

/// What this machine lacks for a mount.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// No device.
    #[error(
        "/dev/fuse is missing: load the kernel's module with `modprobe fuse` (in a container: --device /dev/fuse)"
    )]
    NoDevice,
    /// The device is closed to this user.
    #[error("/dev/fuse cannot be opened: {0}; an administrator opens it with `chmod 666 /dev/fuse`")]
    DeviceClosed(io::Error),
    /// Ordinary users need it.
    #[error("fusermount3 is not installed, and only root can mount without it: install the package fuse3")]
    NoFusermount,
    /// fusermount3 is set-uid.
    #[error(
        "programs started here may not gain privileges, so fusermount3 cannot mount: unset NoNewPrivileges, or mount as root"
    )]
    NoNewPrivileges,
    /// /etc/fuse.conf
    #[error(
        "--allow-other is for root only here: an administrator permits it with the line user_allow_other in /etc/fuse.conf"
    )]
    AllowOther,
    /// Files of others.
    #[error("--uid and --gid of others are for root only: leave them away")]
    OthersIds,
}

/// Checks that this user can mount with these options on this machine.
pub fn check_machine(options: &KernelOptions, uid: u32, gid: u32) -> Result<(), MachineError> {
    match std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => {}
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENXIO | libc::ENODEV)) => {
            return Err(MachineError::NoDevice);
        }
        Err(e) => return Err(MachineError::DeviceClosed(e)),
    }
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    if fusermount::find().is_none() {
        return Err(MachineError::NoFusermount);
    }
    if !may_gain_privileges(&std::fs::read_to_string("/proc/self/status").unwrap_or_default()) {
        return Err(MachineError::NoNewPrivileges);
    }
    if options.allow_other
        && !permits_allow_other(&std::fs::read_to_string("/etc/fuse.conf").unwrap_or_default())
    {
        return Err(MachineError::AllowOther);
    }
    let groups = nix::unistd::getgroups().unwrap_or_default();
    let own_gid = gid == nix::unistd::getegid().as_raw() || groups.iter().any(|g| g.as_raw() == gid);
    if uid != nix::unistd::geteuid().as_raw() || !own_gid {
        return Err(MachineError::OthersIds);
    }
    Ok(())
}

/// Whether a process with this status gets the rights of a set-uid program that it starts.
pub fn may_gain_privileges(status: &str) -> bool {
    !status.lines().any(|line| line == "NoNewPrivs:\t1")
}

/// Whether fuse.conf(5) says so.
pub fn permits_allow_other(conf: &str) -> bool {
    conf.lines().any(|line| line.split('#').next().is_some_and(|l| l.trim() == "user_allow_other"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_permits_nothing() {
        assert!(!permits_allow_other("#user_allow_other\nmount_max = 10\n"));
        assert!(permits_allow_other("mount_max = 10\n user_allow_other # for backups\n"));
    }

    #[test]
    fn only_our_own_type_with_enotconn_is_dead() {
        let mut entry = mount_table::table().unwrap().remove(0);
        let mut seen = Seen {
            canonical: "/x".into(),
            stat: Err(libc::ENOTCONN),
            statfs: Err(libc::ENOTCONN),
            empty: Err(libc::ENOTCONN),
        };
        assert!(!is_dead(&entry, &seen), "a foreign mount");
        entry.fs_type = mount_table::FS_TYPE.into();
        assert!(is_dead(&entry, &seen));
        seen.statfs = Err(libc::EACCES);
        assert!(!is_dead(&entry, &seen), "another user's, alive");
    }
}
