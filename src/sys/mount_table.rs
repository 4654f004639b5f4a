//! The mount table, as /proc/self/mountinfo has it.
//!
//! Reading it touches no file system, so it works while a mount hangs; it is the only source of
//! truth for "is this mount ours". A mount is identified by its device number ([`Dev`]): unlike a
//! path, it cannot be covered by, or confused with, a foreign mount. Paths in the table are
//! octal-escaped.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::sys::files::ownership::by_descriptor;

/// The type of our mounts in the mount table.
pub const FS_TYPE: &str = "fuse.vaultfs";

/// A device number; for FUSE the minor is also the number of the connection below
/// /sys/fs/fuse/connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dev {
    major: u32,
    minor: u32,
}

impl Dev {
    /// From `st_dev`.
    pub fn from_raw(dev: u64) -> Self {
        Self { major: libc::major(dev), minor: libc::minor(dev) }
    }

    /// Of what a descriptor is open on, without a request to its server.
    pub fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let mut seen = std::mem::MaybeUninit::<libc::statx>::zeroed();
        let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;
        // With an empty mask the kernel answers even where this user may not look into the mount.
        // SAFETY: the empty path is NUL-terminated and the buffer has the right size.
        let rc = unsafe { libc::statx(fd.as_raw_fd(), c"".as_ptr(), flags, 0, seen.as_mut_ptr()) };
        if rc != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: filled by the call; all zeros would be valid as well.
        let seen = unsafe { seen.assume_init() };
        Ok(Self { major: seen.stx_dev_major, minor: seen.stx_dev_minor })
    }

    /// The two numbers.
    pub fn numbers(self) -> (u32, u32) {
        (self.major, self.minor)
    }
}

impl fmt::Display for Dev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for Dev {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (major, minor) = text.split_once(':').ok_or(())?;
        Ok(Self { major: major.parse().map_err(drop)?, minor: minor.parse().map_err(drop)? })
    }
}

impl Serialize for Dev {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Dev {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(|()| serde::de::Error::custom("not a device number"))
    }
}

/// One line of the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The mount's id, as `mnt_id` in /proc/PID/fdinfo.
    pub id: u64,
    /// The id of the mount it is on.
    pub parent: u64,
    /// The file system's device number.
    pub dev: Dev,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// For example `ext4`, `fuse.vaultfs`.
    pub fs_type: String,
    /// What was mounted, as the mounter called it.
    pub source: String,
    /// The user that mounted it, for FUSE.
    pub owner: Option<u32>,
}

impl Entry {
    /// Whether a vaultfs made it.
    pub fn is_vaultfs(&self) -> bool {
        self.fs_type == FS_TYPE
    }
}

/// The whole mount table of this mount namespace, in the order of mounting.
pub fn table() -> io::Result<Vec<Entry>> {
    table_at("/proc/self/mountinfo".as_ref())
}

/// That of the mount namespace of a process.
pub fn table_of(pid: u32) -> io::Result<Vec<Entry>> {
    table_at(format!("/proc/{pid}/mountinfo").as_ref())
}

fn table_at(path: &Path) -> io::Result<Vec<Entry>> {
    Ok(std::fs::read(path)?.split(|b| *b == b'\n').filter_map(parse).collect())
}

/// What is visible at `mountpoint`: the mount made last there.
pub fn top_at(mountpoint: &Path) -> io::Result<Option<Entry>> {
    Ok(table()?.into_iter().rfind(|e| e.mountpoint == mountpoint))
}

/// The mount with this id and device number, wherever it is by now: a rename of its directory moves
/// it.
pub fn find(id: u64, dev: Dev) -> io::Result<Option<Entry>> {
    Ok(table()?.into_iter().find(|entry| entry.id == id && entry.dev == dev))
}

/// Where the directory is that a descriptor is open on, as this process sees it now.
pub fn path_of(fd: BorrowedFd<'_>) -> io::Result<PathBuf> {
    std::fs::read_link(by_descriptor(fd))
}

/// Whether the file system `dev` is mounted at `mountpoint`, covered or not.
pub fn is_mounted(mountpoint: &Path, dev: Dev) -> bool {
    table().is_ok_and(|t| t.iter().any(|e| e.dev == dev && e.is_vaultfs() && e.mountpoint == mountpoint))
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue` (proc(5)).
fn parse(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|b| *b == b' ');
    let text = |field: Option<&[u8]>| field.and_then(|f| std::str::from_utf8(f).ok().map(str::to_owned));
    let id = text(fields.next())?.parse().ok()?;
    let parent = text(fields.next())?.parse().ok()?;
    let dev = text(fields.next())?.parse().ok()?;
    let mountpoint = unescape(fields.nth(1)?);
    // Optional fields end with a single hyphen.
    fields.find(|f| *f == b"-")?;
    let fs_type = text(fields.next())?;
    let source = PathBuf::from(unescape(fields.next()?)).to_string_lossy().into_owned();
    let options = text(fields.next())?;
    let owner = options.split(',').find_map(|o| o.strip_prefix("user_id=")?.parse().ok());
    Some(Entry { id, parent, dev, mountpoint: mountpoint.into(), fs_type, source, owner })
}

/// Undoes `\040` and the like.
pub fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|d| first == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
        match octal {
            Some(digits) => {
                let value = digits.iter().fold(0u32, |v, d| v * 8 + u32::from(d - b'0'));
                // At most \377 is ever written; anything above would not be an escape of the
                // kernel's.
                out.push(value as u8);
                rest = &tail[3..];
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_with_escapes_and_optional_fields() {
        let line = br"36 35 0:45 / /mnt/a\040b\134c rw,nosuid shared:1 master:2 - fuse.vaultfs vaultfs rw,user_id=1000,group_id=100";
        let entry = parse(line).expect("well formed");
        assert_eq!(entry.mountpoint, Path::new(r"/mnt/a b\c"));
        assert_eq!((entry.id, entry.parent, entry.owner), (36, 35, Some(1000)));
        assert_eq!(entry.dev.to_string(), "0:45");
        assert!(entry.is_vaultfs());
    }

    #[test]
    fn lines_without_optional_fields_and_short_ones() {
        let entry = parse(b"22 27 0:21 / /proc rw - proc proc rw").expect("well formed");
        assert_eq!((entry.fs_type.as_str(), entry.owner), ("proc", None));
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"22 27 0:21 / /proc rw"), None);
    }

    #[test]
    fn the_real_table_has_proc() {
        assert!(table().expect("readable").iter().any(|e| e.mountpoint == Path::new("/proc")));
    }
}
