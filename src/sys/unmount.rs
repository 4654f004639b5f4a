//! Removes the mount that [`crate::sys::mount`] makes.
//!
//! The keeper, `vaultfs unmount`, or a child process of an orphaned worker unmounts; each first
//! verifies in the mount table that it removes the intended mount. Root uses the system calls,
//! other users `fusermount3`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use crate::sys::files::ownership::by_descriptor;
use crate::sys::fusermount;
use crate::sys::mount_table;
use crate::sys::mount_table::{Dev, Entry};
use crate::sys::trust::MountpointHandle;

/// How to unmount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Fails with EBUSY while something is open.
    Plain,
    /// Detaches now; the mount ends with its last open file.
    Lazy,
}

/// Unmounts the mount `dev` if it is visible at `mountpoint`; `Ok(false)` if it is not. Root's
/// system call uses no path that another user could exchange meanwhile: see [`MountpointHandle`].
/// fusermount3 checks the path itself.
pub fn unmount(mountpoint: &Path, dev: Dev, mode: Mode) -> io::Result<bool> {
    let top = mount_table::top_at(mountpoint)?;
    let Some(mount) = top.filter(|top| top.dev == dev && top.is_vaultfs()) else { return Ok(false) };
    if mode == Mode::Lazy {
        return detach(&mount);
    }
    if !nix::unistd::geteuid().is_root() {
        return fusermount::unmount(mountpoint, false).map(|()| true);
    }
    let handle = MountpointHandle::of(mountpoint)?;
    if handle.root(mount.id)?.is_none() {
        return Ok(false);
    }
    umount2(&handle.path(), MntFlags::UMOUNT_NOFOLLOW)?;
    Ok(true)
}

/// Detaches this mount and no other. `Ok(false)` if something else is at its path.
pub fn detach(mount: &Entry) -> io::Result<bool> {
    let Some(root) = MountpointHandle::of(&mount.mountpoint)?.root(mount.id)? else { return Ok(false) };
    if nix::unistd::geteuid().is_root() {
        detach_opened(root.as_fd())?;
    } else {
        drop(root);
        fusermount::unmount(&mount.mountpoint, true)?;
    }
    Ok(true)
}

/// Detaches the mount by its open root, wherever it is. For root.
pub fn detach_opened(root: BorrowedFd<'_>) -> io::Result<()> {
    Ok(umount2(&by_descriptor(root), MntFlags::MNT_DETACH)?)
}

/// Aborts a connection, whichever process holds its device; the mount stays, dead. Uses fusectl
/// where it is mounted; root can do without.
pub fn abort(dev: Dev) -> io::Result<()> {
    let (_, connection) = dev.numbers();
    match std::fs::write(format!("/sys/fs/fuse/connections/{connection}/abort"), "1") {
        Err(_) if nix::unistd::geteuid().is_root() => abort_by_mount(dev),
        result => result,
    }
}

/// A forced unmount ends the connection before it looks whether the mount is in use, which it is
/// here.
fn abort_by_mount(dev: Dev) -> io::Result<()> {
    let mount = mount_table::table()?.into_iter().rfind(|mount| mount.dev == dev);
    let root =
        mount.map(|mount| MountpointHandle::of(&mount.mountpoint)?.root(mount.id)).transpose()?.flatten();
    let root = root.ok_or(io::ErrorKind::NotFound)?;
    match umount2(&by_descriptor(root.as_fd()), MntFlags::MNT_FORCE) {
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::sys::fuse_device::is_connected;

    #[test]
    fn a_connection_ends_without_fusectl_and_its_mount_stays() {
        if !nix::unistd::geteuid().is_root() {
            crate::sys::stdio::say("SKIPPED: only root can mount and unmount without help");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let flags = nix::mount::MsFlags::MS_NOSUID;
        nix::mount::mount(Some("test"), dir.path(), Some(mount_table::FS_TYPE), flags, Some(data.as_str()))
            .unwrap();
        let mount = mount_table::top_at(dir.path()).unwrap().unwrap();
        let connected = is_connected(&device);
        let ended = abort_by_mount(mount.dev);
        let still = (is_connected(&device), mount_table::is_mounted(dir.path(), mount.dev));
        let detached = detach(&mount);
        ended.unwrap();
        assert!(connected && detached.unwrap());
        assert_eq!(still, (false, true));
        assert!(abort_by_mount(mount.dev).is_err(), "it is gone");
    }
}
