//! Removing the mount, and the first words of the FUSE protocol. [`super::attach`] makes it.
//!
//! Unmounting is done by the keeper, by `vaultfs unmount`, or by a child process of a
//! worker whose keeper died; each first checks in the mount table that what it would remove is the mount it
//! means. Root uses the system calls, everybody else `fusermount3`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::fusermount;
use super::mounts::{self, Dev, Entry};
use super::trust::Spot;
use crate::files::whose::by_descriptor;

/// How to unmount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Fails with EBUSY while something is open.
    Plain,
    /// Detaches now; ends when the last program lets go.
    Lazy,
}

/// Unmounts the mount `dev` if that is what is visible at `mountpoint`; `Ok(false)` if it is not. Root's system call takes
/// no path that somebody else could lead elsewhere meanwhile: see [`Spot`]. fusermount3 has its own care.
pub fn unmount(mountpoint: &Path, dev: Dev, mode: Mode) -> io::Result<bool> {
    let top = mounts::top_at(mountpoint)?;
    let Some(mount) = top.filter(|top| top.dev == dev && top.is_vaultfs()) else { return Ok(false) };
    if mode == Mode::Lazy {
        return detach(&mount);
    }
    if !nix::unistd::geteuid().is_root() {
        return fusermount::unmount(mountpoint, false).map(|()| true);
    }
    let spot = Spot::of(mountpoint)?;
    if spot.root(mount.id)?.is_none() {
        return Ok(false);
    }
    umount2(&spot.path(), MntFlags::UMOUNT_NOFOLLOW)?;
    Ok(true)
}

/// Detaches this mount and no other. `Ok(false)` if something else is at its path.
pub fn detach(mount: &Entry) -> io::Result<bool> {
    let Some(root) = Spot::of(&mount.mountpoint)?.root(mount.id)? else { return Ok(false) };
    if nix::unistd::geteuid().is_root() {
        detach_opened(root.as_fd())?;
    } else {
        drop(root);
        fusermount::unmount(&mount.mountpoint, true)?;
    }
    Ok(true)
}

/// Detaches the mount whose root is open, wherever it is. For root.
pub fn detach_opened(root: BorrowedFd<'_>) -> io::Result<()> {
    Ok(umount2(&by_descriptor(root), MntFlags::MNT_DETACH)?)
}

/// Unmounts, lazily if it is in use. `Ok(true)` if it is gone at once.
pub fn unmount_or_detach(mountpoint: &Path, dev: Dev) -> io::Result<bool> {
    match unmount(mountpoint, dev, Mode::Plain) {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
            unmount(mountpoint, dev, Mode::Lazy).map(|_| false)
        }
        Err(e) => Err(e),
    }
}

/// Whether the connection behind the device is still there: it goes with the last mount, in whatever mount namespace.
pub fn is_connected(device: &File) -> bool {
    let mut fds = [PollFd::new(device.as_fd(), PollFlags::empty())];
    match poll(&mut fds, PollTimeout::ZERO) {
        Ok(_) => !fds[0].revents().is_some_and(|seen| seen.contains(PollFlags::POLLERR)),
        Err(_) => true,
    }
}

/// Ends a connection, whoever holds its device; the mount stays, dead. By fusectl, where systemd or somebody has mounted it; root
/// can do without.
pub fn abort(dev: Dev) -> io::Result<()> {
    let (_, connection) = dev.numbers();
    match std::fs::write(format!("/sys/fs/fuse/connections/{connection}/abort"), "1") {
        Err(_) if nix::unistd::geteuid().is_root() => abort_by_mount(dev),
        result => result,
    }
}

/// A forced unmount ends the connection before it looks whether the mount is in use, which it is here.
fn abort_by_mount(dev: Dev) -> io::Result<()> {
    let mount = mounts::table()?.into_iter().rfind(|mount| mount.dev == dev);
    let root = mount.map(|mount| Spot::of(&mount.mountpoint)?.root(mount.id)).transpose()?.flatten();
    let root = root.ok_or(io::ErrorKind::NotFound)?;
    match umount2(&by_descriptor(root.as_fd()), MntFlags::MNT_FORCE) {
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// The INIT request: `fuse_in_header` (40 bytes), then `fuse_init_in`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Init(Vec<u8>);

const HEADER: usize = 40;
const OPCODE_INIT: u32 = 26;
/// FUSE_HAS_RESEND, bit 39: the seventh of `flags2`.
const FLAG2_RESEND: u32 = 1 << 7;
/// `flags2` is there.
const FLAG_INIT_EXT: u32 = 1 << 30;

impl Init {
    /// Takes the kernel's first request from a fresh mount.
    pub fn read(device: &File) -> io::Result<Self> {
        // The kernel queued it when the mount was made; one that somebody removed meanwhile answers ENODEV.
        let mut ready = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(Duration::from_secs(5)).unwrap_or(PollTimeout::MAX);
        while poll(&mut ready, timeout) == Err(Errno::EINTR) {}
        if ready[0].any() != Some(true) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel sent no INIT"));
        }
        // FUSE_MIN_READ_BUFFER
        let mut buffer = vec![0; 8192];
        let mut device = device;
        let len = device.read(&mut buffer)?;
        buffer.truncate(len);
        Self::from_bytes(buffer).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "the kernel's first request is no INIT")
        })
    }

    /// Checks that `bytes` is an INIT request.
    pub fn from_bytes(bytes: Vec<u8>) -> Option<Self> {
        let init = Self(bytes);
        let opcode = u32::from_ne_bytes(init.0.get(4..8)?.try_into().ok()?);
        (opcode == OPCODE_INIT && init.0.len() >= HEADER + 16).then_some(init)
    }

    /// The request as it came.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn word(&self, index: usize) -> u32 {
        let at = HEADER + 4 * index;
        self.0.get(at..at + 4).map_or(0, |b| u32::from_ne_bytes(b.try_into().expect("four bytes")))
    }

    /// The protocol version the kernel speaks.
    pub fn abi(&self) -> (u32, u32) {
        (self.word(0), self.word(1))
    }

    /// Whether the kernel can send unanswered requests again.
    pub fn resend(&self) -> bool {
        self.word(3) & FLAG_INIT_EXT != 0 && self.word(4) & FLAG2_RESEND != 0
    }
}

/// Makes the kernel send again what was read and not answered: by a worker that died.
pub fn resend(device: &File) -> io::Result<()> {
    // fuse_out_header: len, error (FUSE_NOTIFY_RESEND), unique
    let mut notice = [0; 16];
    notice[..4].copy_from_slice(&16u32.to_ne_bytes());
    notice[4..8].copy_from_slice(&7i32.to_ne_bytes());
    answer(device, &notice)
}

/// Writes an answer to the kernel.
pub fn answer(mut device: &File, reply: &[u8]) -> io::Result<()> {
    // One write, one answer: the kernel takes all of it or refuses.
    device.write(reply).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    fn request(opcode: u32, flags: u32, flags2: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [104, opcode, 1, 0, 0, 0, 0, 0, 0, 0, 7, 45, 131072, flags, flags2] {
            bytes.extend_from_slice(&u32::to_ne_bytes(word));
        }
        bytes.resize(104, 0);
        bytes
    }

    #[test]
    fn the_kernels_offer_is_read() {
        let init = Init::from_bytes(request(26, FLAG_INIT_EXT, FLAG2_RESEND)).expect("an INIT");
        assert_eq!((init.abi(), init.resend()), ((7, 45), true));
        let old = Init::from_bytes(request(26, 0, FLAG2_RESEND)).expect("an INIT");
        assert!(!old.resend());
    }

    #[test]
    fn anything_else_is_refused() {
        assert_eq!(Init::from_bytes(request(1, 0, 0)), None);
        assert_eq!(Init::from_bytes(vec![26; 10]), None);
    }

    #[test]
    fn a_connection_ends_without_fusectl_and_its_mount_stays() {
        if !nix::unistd::geteuid().is_root() {
            crate::console::say("SKIPPED: only root can mount and unmount without help");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let flags = nix::mount::MsFlags::MS_NOSUID;
        nix::mount::mount(Some("test"), dir.path(), Some(mounts::FS_TYPE), flags, Some(data.as_str()))
            .unwrap();
        let mount = mounts::top_at(dir.path()).unwrap().unwrap();
        let connected = is_connected(&device);
        let ended = abort_by_mount(mount.dev);
        let still = (is_connected(&device), mounts::is_mounted(dir.path(), mount.dev));
        let detached = detach(&mount);
        ended.unwrap();
        assert!(connected && detached.unwrap());
        assert_eq!(still, (false, true));
        assert!(abort_by_mount(mount.dev).is_err(), "it is gone");
    }
}
