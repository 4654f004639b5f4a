//! The owner of a file or a link, by what the kernel says of a descriptor. No file system is asked.
//!
//! A FUSE file system says what it likes about owners, and need not answer: what is in one of
//! another user is that user's, and is not asked.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};

/// The path that leads to what a descriptor refers to, and nowhere else.
pub fn by_descriptor(fd: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

/// The id of the mount that a descriptor is in: that of a line of the mount table as long as the
/// descriptor is open.
pub fn mount_id(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let id = |info: String| info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    match std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())) {
        Ok(info) => id(info).ok_or_else(|| io::ErrorKind::InvalidData.into()),
        // Before Linux 5.14 a hardened process of an ordinary user may not read it.
        Err(_) => mount_id_by_statx(fd),
    }
}

/// The same, from Linux 5.8 on. FUSE refuses it to all but its own user.
fn mount_id_by_statx(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut seen = std::mem::MaybeUninit::<libc::statx>::zeroed();
    let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;
    let wanted = libc::STATX_MNT_ID;
    // SAFETY: the empty path is NUL-terminated and the buffer has the right size.
    if unsafe { libc::statx(fd.as_raw_fd(), c"".as_ptr(), flags, wanted, seen.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: filled by the call; all zeros would be valid as well.
    let seen = unsafe { seen.assume_init() };
    match seen.stx_mask & wanted {
        0 => Err(io::ErrorKind::Unsupported.into()),
        _ => Ok(seen.stx_mnt_id),
    }
}

/// The line of the mount table (proc_pid_mountinfo(5)) for a descriptor's mount.
pub fn mount_line(fd: BorrowedFd<'_>) -> io::Result<Option<String>> {
    let id = mount_id(fd)?.to_string();
    let table = std::fs::read("/proc/self/mountinfo")?;
    let table = String::from_utf8_lossy(&table);
    Ok(table.lines().find(|line| line.split(' ').next() == Some(&*id)).map(str::to_owned))
}

/// The other user, not root, that serves the FUSE file system which a descriptor is in.
pub fn server(fd: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    let Some(line) = mount_line(fd)? else {
        // The root directory's own mount need not be listed (chroot); anything else has just been
        // taken away.
        let root = open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        return match mount_id(fd)? == mount_id(root.as_fd())? {
            true => Ok(None),
            false => Err(io::ErrorKind::NotFound.into()),
        };
    };
    let user = served_by(&line);
    Ok(user.filter(|user| *user != 0 && *user != nix::unistd::geteuid().as_raw()))
}

/// The user that mounted it, for FUSE.
fn served_by(line: &str) -> Option<u32> {
    let mut fields = line.split_once(" - ")?.1.split(' ');
    let kind = fields.next()?;
    let is_fuse = kind == "fuse" || kind == "fuseblk" || kind.starts_with("fuse.");
    let options = fields.nth(1).filter(|_| is_fuse)?;
    options.split(',').find_map(|option| option.strip_prefix("user_id=")?.parse().ok())
}

/// Whether an owner's files and links are trusted: root's, one's own, and those of `also`.
pub fn is_trusted(owner: u32, also: Option<u32>) -> bool {
    owner == 0 || owner == nix::unistd::geteuid().as_raw() || Some(owner) == also
}

/// Whether the link may be followed that has this owner and is in this directory.
pub fn is_trusted_link(owner: u32, directory: BorrowedFd<'_>, also: Option<u32>) -> io::Result<bool> {
    // Without a user id, the place of its links distinguishes root from other users.
    Ok(is_trusted(owner, also) || is_root(owner) && fstat(directory)?.st_mode & 0o002 == 0)
}

/// Whether the machine's root has this number, in a user namespace that may have none for it.
pub fn is_root(owner: u32) -> bool {
    const OVERFLOW: u32 = 65534;
    let map = || std::fs::read_to_string("/proc/self/uid_map");
    owner == 0 || owner == OVERFLOW && map().is_ok_and(|map| !names_root(&map))
}

/// Whether the user 0 of the namespace outside has a number here (user_namespaces(7)).
fn names_root(map: &str) -> bool {
    map.lines().any(|line| line.split_ascii_whitespace().nth(1) == Some("0"))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_kernel_says_which_mount_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::open(dir.path()).unwrap();
        let id = mount_id(file.as_fd()).unwrap();
        assert_eq!(mount_id_by_statx(file.as_fd()).unwrap(), id);
        assert!(mount_line(file.as_fd()).unwrap().unwrap().starts_with(&format!("{id} ")));
        assert_eq!(server(file.as_fd()).unwrap(), None);
        let line = |fields: &str| served_by(&format!("36 35 0:45 / /a\\040-b rw shared:1 - {fields}"));
        assert_eq!(line("fuse.x a rw,user_id=7,group_id=0,allow_other"), Some(7));
        assert_eq!(line("fuseblk /dev/a rw,user_id=0"), Some(0));
        assert_eq!((line("fuse"), line("ext4 user_id=1 rw,user_id=1"), line("")), (None, None, None));
    }

    #[test]
    fn a_root_without_a_number_is_known_by_where_its_links_are() {
        assert!(names_root("         0          0 4294967295\n") && names_root("1 1000 1\n0 0 1\n"));
        assert!(!names_root("         0       1000          1\n") && !names_root(""));
        let dir = tempfile::tempdir().unwrap();
        let directory = File::open(dir.path()).unwrap();
        let own = nix::unistd::geteuid().as_raw();
        let is = |owner, also| is_trusted_link(owner, directory.as_fd(), also).unwrap();
        assert!(is(0, None) && is(own, None) && is(own + 7, Some(own + 7)) && !is(own + 7, None));
        let named = names_root(&std::fs::read_to_string("/proc/self/uid_map").unwrap());
        assert_eq!(is(65534, None), !named);
        directory.set_permissions(std::fs::Permissions::from_mode(0o1777)).unwrap();
        assert!(!is(65534, None), "any user may have made it there");
    }
}
