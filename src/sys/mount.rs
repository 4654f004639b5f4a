//! Makes the mount.
//!
//! 1. Root makes it detached: it is connected, answers INIT and is served before it is attached to
//!    the checked directory. A failure or death before that leaves no mount.
//! 2. Where a kernel or a security policy does not permit that, root mounts at once, on the
//!    descriptor by its name in /proc.
//! 3. fusermount3 makes an ordinary user's mount, at once and by path. If the mount table shows it
//!    elsewhere than on the checked directory, it is removed.
//! 4. A dead mount is replaced without a moment in which programs find the plain directory: the new
//!    one is attached beneath it before it is removed. Where that is impossible (before Linux 6.5,
//!    an ordinary user) it is removed first.
//! 5. A mount that was made at once and failed later is identified as new in the mount table, and
//!    dead.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::mount::MsFlags;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};
use serde::{Deserialize, Serialize};

use crate::failpoint;
use crate::sys::files::ownership::{by_descriptor, mount_id};
use crate::sys::fuse_device;
use crate::sys::fuse_device::Init;
use crate::sys::fusermount;
use crate::sys::mount_table;
use crate::sys::mount_table::{Dev, Entry};
use crate::sys::mount_target::Target;
use crate::sys::unmount;
use crate::sys::unmount::Mode;
use crate::sys::{mountpoint, probe};

/// Flags of mount(2). nosuid and nodev are always set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelOptions {
    /// Other users may enter; the kernel then checks modes.
    pub allow_other: bool,
    /// Programs on the mount cannot be run.
    pub noexec: bool,
    /// Every write waits for the vault (it does anyway; kept for `mount -o sync`).
    pub sync: bool,
    /// As the mount table shows it; access times are never stored.
    #[serde(default)]
    pub noatime: bool,
    /// Links are not followed there. Root only: fusermount3 does not know it.
    #[serde(default)]
    pub nosymfollow: bool,
    /// The source in the mount table, which is the vault; `mount -a` and systemd compare it with
    /// /etc/fstab.
    pub source: Option<String>,
}

impl KernelOptions {
    /// The source column of the mount table.
    pub fn source(&self) -> &str {
        self.source.as_deref().unwrap_or("vaultfs")
    }
}

/// A mount that this process made: the device to serve it with, and its INIT request, not answered
/// yet.
#[derive(Debug)]
pub struct Mounted {
    /// /dev/fuse, connected to the mount.
    pub device: File,
    /// The mount's id: where the mount is says the mount table.
    pub id: u64,
    /// The mount's device number.
    pub dev: Dev,
    /// The kernel's INIT request, as it came.
    pub init: Init,
    /// The mount, as long as it is not attached.
    detached: Option<OwnedFd>,
}

/// How a mount is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Detached at first, where the machine lets this user.
    Detached,
    /// At its place from the beginning.
    AtOnce,
}

/// Makes a mount for `target` and reads the kernel's INIT.
pub fn mount(target: &Target, options: &KernelOptions, way: Way) -> io::Result<Mounted> {
    target.check_in_place()?;
    if way == Way::Detached && nix::unistd::geteuid().is_root() {
        match make_detached(options) {
            Ok((device, detached)) => {
                let (id, dev) = (mount_id(detached.as_fd())?, Dev::of(detached.as_fd())?);
                let init = Init::read(&device)?;
                failpoint::point("detached");
                return Ok(Mounted { device, id, dev, init, detached: Some(detached) });
            }
            // The older call says what is wrong, if it is not only this one that is missing.
            Err(e) => tracing::debug!("no detached mount: {e}"),
        }
    }
    let uncovered = dead_mount(target)?.map(|_| uncover(target)).transpose()?;
    let target = uncovered.as_ref().unwrap_or(target);
    let before = mount_table::table()?;
    mount_at_once(target, options, &before).inspect_err(|_| remove_new(&before))
}

impl Mounted {
    /// Unmounts it, wherever it is. `Ok(false)` if it remains: another mount covers it, or it keeps
    /// moving.
    pub fn unmount(&self, made_at: &Path, mode: Mode) -> io::Result<bool> {
        let mut failed = None;
        for _ in 0..TRIES {
            let Some(entry) = self.entry(made_at)? else { return Ok(true) };
            match unmount::unmount(&entry.mountpoint, self.dev, mode) {
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => return Err(e),
                result => failed = result.err(),
            }
        }
        failed.map_or(Ok(false), Err)
    }

    /// The same, lazily if it is in use: then it is `Ok(false)`, too.
    pub fn unmount_or_detach(&self, made_at: &Path) -> io::Result<bool> {
        match self.unmount(made_at, Mode::Plain) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                self.unmount(made_at, Mode::Lazy).map(|_| false)
            }
            result => result,
        }
    }

    /// Ends the connection, then removes the mount: from then on every request fails at once, so
    /// that unmounting cannot wait for one.
    pub fn abandon(self, made_at: &Path) -> io::Result<bool> {
        let found = self.entry(made_at);
        let Self { device, id, dev, .. } = self;
        drop(device);
        let Some(mut entry) = found? else { return Ok(true) };
        for _ in 0..TRIES {
            if unmount::unmount(&entry.mountpoint, dev, Mode::Lazy)? {
                return Ok(true);
            }
            let Some(moved) = mount_table::find(id, dev)? else { return Ok(true) };
            entry = moved;
        }
        Ok(false)
    }

    /// Where the mount is, if this mount namespace has it: renaming its directory moves it. The
    /// kernel reuses its numbers once it has ended, so without a connection it is only searched for
    /// where it was made.
    pub fn entry(&self, made_at: &Path) -> io::Result<Option<Entry>> {
        let table = mount_table::table()?;
        let is_at = |entry: &&Entry| match fuse_device::is_connected(&self.device) {
            true => entry.id == self.id,
            false => entry.mountpoint == made_at && entry.is_vaultfs(),
        };
        Ok(table.iter().filter(|entry| entry.dev == self.dev).rfind(is_at).cloned())
    }

    /// Attaches a detached mount to `target`; an attached one stays. After an error it is nowhere.
    pub fn attach(&mut self, target: &Target) -> Result<(), AttachError> {
        let Some(detached) = self.detached.take() else { return Ok(()) };
        target.check_in_place().map_err(AttachError::Failed)?;
        failpoint::point("attach");
        let dead = dead_mount(target).map_err(AttachError::Failed)?;
        let mut onto = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        onto.set(MoveMountFlags::MOVE_MOUNT_BENEATH, dead.is_some());
        match move_mount(&detached, "", target.directory(), "", onto).map_err(io::Error::from) {
            Ok(()) => {}
            Err(e) if dead.is_some() => {
                tracing::debug!("no mount beneath a dead one: {e}");
                let target = uncover(target).map_err(AttachError::Failed)?;
                self.detached = Some(detached);
                return self.attach(&target);
            }
            Err(e) if may_be_a_policy(&e) => return Err(AttachError::NotPermitted(e)),
            Err(e) => return Err(AttachError::Failed(e)),
        }
        failpoint::point("attached");
        let parent = dead.as_ref().map_or(target.mount_id(), |dead| dead.parent);
        let checked = mount_table::find(self.id, self.dev).and_then(|entry| {
            check_place(entry.as_ref(), target.path(), parent)?;
            dead.map_or(Ok(()), |_| unmount::detach_opened(target.directory()))
        });
        // The mount is busy as long as it is open here.
        checked.map_err(|e| {
            let _ = unmount::detach_opened(detached.as_fd());
            AttachError::Failed(e)
        })
    }
}

/// Why a detached mount could not be attached.
#[derive(Debug)]
pub enum AttachError {
    /// This way is not permitted; mounting at once may be.
    NotPermitted(io::Error),
    /// Anything else.
    Failed(io::Error),
}

/// Whether a policy (seccomp, AppArmor) may have refused the call.
fn may_be_a_policy(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EACCES))
}

/// /dev/fuse, and the mount that it is connected to.
fn make_detached(options: &KernelOptions) -> io::Result<(File, OwnedFd)> {
    let device = open_device()?;
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", options.source())?;
    fsconfig_set_string(&context, "subtype", "vaultfs")?;
    for (name, value) in values(&device) {
        fsconfig_set_string(&context, name, value)?;
    }
    fsconfig_set_flag(&context, "default_permissions")?;
    if options.allow_other {
        fsconfig_set_flag(&context, "allow_other")?;
    }
    if options.sync {
        fsconfig_set_flag(&context, "sync")?;
    }
    fsconfig_create(&context)?;
    let mut flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    flags.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, options.noexec);
    flags.set(MountAttrFlags::MOUNT_ATTR_NOATIME, options.noatime);
    flags.set(MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW, options.nosymfollow);
    Ok((device, fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)?))
}

fn open_device() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/fuse")
}

/// The data string of mount(2).
fn values(device: &File) -> [(&'static str, String); 4] {
    [
        ("fd", device.as_raw_fd().to_string()),
        ("rootmode", "40000".to_owned()),
        ("user_id", nix::unistd::geteuid().to_string()),
        ("group_id", nix::unistd::getegid().to_string()),
    ]
}

fn mount_at_once(target: &Target, options: &KernelOptions, before: &[Entry]) -> io::Result<Mounted> {
    let device = match nix::unistd::geteuid().is_root() {
        true => mount_directly(target, options)?,
        false => File::from(fusermount::mount(target.directory(), options)?),
    };
    let mut made = new_since(before)?;
    made.retain(|entry| entry.mountpoint == target.path());
    // Two vaultfs that mount there at the same time cannot identify their own mount.
    let entry = if made.len() == 1 { made.pop() } else { None };
    target.check_in_place()?;
    check_place(entry.as_ref(), target.path(), target.mount_id())?;
    let Entry { id, dev, .. } = entry.ok_or_else(elsewhere)?;
    let init = Init::read(&device)?;
    Ok(Mounted { device, id, dev, init, detached: None })
}

/// MS_NOSYMFOLLOW, from Linux 5.10 on; before that the bit means nothing.
const NOSYMFOLLOW: MsFlags = MsFlags::from_bits_retain(1 << 8);

fn mount_directly(target: &Target, options: &KernelOptions) -> io::Result<File> {
    let device = open_device()?;
    let mut data = "default_permissions".to_owned();
    for (name, value) in values(&device) {
        data.push_str(&format!(",{name}={value}"));
    }
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    flags.set(MsFlags::MS_NOEXEC, options.noexec);
    flags.set(MsFlags::MS_SYNCHRONOUS, options.sync);
    flags.set(MsFlags::MS_NOATIME, options.noatime);
    flags.set(NOSYMFOLLOW, options.nosymfollow);
    let onto = by_descriptor(target.directory());
    nix::mount::mount(Some(options.source()), &onto, Some(mount_table::FS_TYPE), flags, Some(data.as_str()))?;
    Ok(device)
}

fn elsewhere() -> io::Error {
    io::Error::other("something was moved, replaced or mounted there meanwhile")
}

/// The dead mount with the target as its root, if it is one: no other mount of ours can be one
/// (`mountpoint::check`).
fn dead_mount(target: &Target) -> io::Result<Option<Entry>> {
    let is_it = |entry: &Entry| {
        entry.id == target.mount_id() && entry.mountpoint == target.path() && entry.is_vaultfs()
    };
    Ok(mount_table::table()?.into_iter().find(is_it))
}

/// Removes the dead mount with the target as its root; returns what is below it.
fn uncover(target: &Target) -> io::Result<Target> {
    unmount::detach_opened(target.directory())?;
    let below = mountpoint::check(target.path(), true).map_err(io::Error::other)?;
    if below.path() == target.path() { Ok(below) } else { Err(elsewhere()) }
}

/// Whether a mount is on the checked directory, in that directory's mount, and the directory is
/// still at its path.
fn check_place(mount: Option<&Entry>, path: &Path, parent: u64) -> io::Result<()> {
    let is_there = |mount: &Entry| mount.is_vaultfs() && mount.mountpoint == path && mount.parent == parent;
    if mount.is_some_and(is_there) { Ok(()) } else { Err(elsewhere()) }
}

/// The mounts of this user's that were not in the mount table. The kernel gives ids and device
/// numbers of mounts that ended meanwhile to new ones: whole entries are compared.
fn new_since(before: &[Entry]) -> io::Result<Vec<Entry>> {
    let own = nix::unistd::geteuid().as_raw();
    let is_new = |entry: &Entry| entry.is_vaultfs() && entry.owner == Some(own) && !before.contains(entry);
    Ok(mount_table::table()?.into_iter().filter(is_new).collect())
}

/// Attempts to find a mount that keeps moving.
const TRIES: u32 = 100;

/// Removes the mount of a failed [`mount_at_once`]: its device is closed, so it is the dead one.
fn remove_new(before: &[Entry]) {
    for _ in 0..TRIES {
        let Ok(left) = new_since(before) else { continue };
        let mut moved = false;
        for entry in left {
            match probe::stat(&entry.mountpoint, Duration::from_secs(5)) {
                Ok(Ok((seen, root))) if mount_id(root.as_fd()).is_ok_and(|id| id == entry.id) => {
                    let is_dead = mountpoint::is_dead(&entry, &seen);
                    // A look that was under way when the connection ended has another error than
                    // those that come later.
                    let is_ending = !is_dead && seen.statfs.is_err();
                    moved |= is_ending || is_dead && !matches!(unmount::detach(&entry), Ok(true));
                }
                _ => moved = true,
            }
        }
        if !moved {
            return;
        }
    }
    tracing::error!("a mount that failed may be left: see /proc/self/mountinfo");
}
