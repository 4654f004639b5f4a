//! The boundary to other users: which mounts, files, sockets and paths are trusted, and for what.
//!
//! 1. A name, a path or a number in a file proves nothing: another user may have made it, or may
//!    exchange it later. Only what the kernel shows of a descriptor counts: owner, mount id, peer.
//!    Processes: [`crate::sys::process::Process`].
//! 2. A mount belongs to the user that `user_id=` in the mount table names. This user's own keepers
//!    are trusted. Root shows the answers of another user's mount and trusts none of them; other
//!    users do not access it.
//! 3. A FUSE file system of another user is never accessed: it may not answer, and it may report
//!    any owner.
//! 4. What is read from another user is bounded, in bytes and by one deadline.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt::PeerCredentials,
};
use nix::sys::stat::{Mode, mkdirat};

use crate::sys::files;
use crate::sys::files::ownership::{by_descriptor, is_root, mount_id};
use crate::sys::files::walk::not_of_others;
use crate::sys::mount_table::Entry;

/// Longest record, and longest answer of a control socket, of one's own mounts.
pub const LONGEST: usize = 16 << 20;
/// The same of other users' mounts.
pub const LONGEST_OF_OTHERS: usize = 1 << 20;

/// This user.
pub fn own() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// Whether the mount is this user's own.
pub fn is_own(mount: &Entry) -> bool {
    mount.owner == Some(own())
}

/// The owner of a mount that this user may query: its own, and any for root.
pub fn may_ask(mount: &Entry) -> Option<u32> {
    mount.owner.filter(|owner| *owner == own() || own() == 0)
}

/// Limit of bytes read from this user.
pub fn longest(owner: u32) -> usize {
    if owner == own() { LONGEST } else { LONGEST_OF_OTHERS }
}

/// Opens a path, also a link itself, without a request to its file system.
fn open_at(dir: BorrowedFd<'_>, name: &OsStr, more: OFlag) -> io::Result<OwnedFd> {
    Ok(openat(dir, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | more, Mode::empty())?)
}

fn root() -> io::Result<OwnedFd> {
    Ok(open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// The directory `path`, without links, held open; nothing on the way is in a FUSE file system of
/// another user.
fn descend(path: &Path) -> io::Result<OwnedFd> {
    let mut at = root()?;
    for component in path.components() {
        let Component::Normal(name) = component else { continue };
        at = open_at(at.as_fd(), name, OFlag::O_DIRECTORY)?;
        not_of_others(at.as_fd())?;
    }
    Ok(at)
}

/// A mount's mount point by way of a descriptor of the directory that it is in.
#[derive(Debug)]
pub struct MountpointHandle {
    parent: OwnedFd,
    name: OsString,
}

impl MountpointHandle {
    /// Of the path in the mount table.
    pub fn of(mountpoint: &Path) -> io::Result<Self> {
        let (Some(parent), Some(name)) = (mountpoint.parent(), mountpoint.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        Ok(Self { parent: descend(parent)?, name: name.to_owned() })
    }

    /// The root of the mount with this id, if that is what is visible there. As long as it is open
    /// the mount is busy.
    pub fn root(&self, id: u64) -> io::Result<Option<OwnedFd>> {
        let root = open_at(self.parent.as_fd(), &self.name, OFlag::empty())?;
        Ok((mount_id(root.as_fd())? == id).then_some(root))
    }

    /// A path to it that leads nowhere else, as long as its last component is not followed.
    pub fn path(&self) -> PathBuf {
        by_descriptor(&self.parent).join(&self.name)
    }
}

/// The process that called listen(2) for the other end, as far as it is in this pid namespace.
pub fn peer(stream: &UnixStream) -> io::Result<u32> {
    Ok(getsockopt(stream, PeerCredentials)?.pid() as u32)
}

/// A directory that only one user can use, held open: its path is not looked up again.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    path: PathBuf,
    owner: u32,
}

impl Directory {
    /// Opens it.
    pub fn open(path: &Path, owner: u32) -> io::Result<Self> {
        Self::at(path, owner, false)
    }

    /// Opens it, made if it is missing.
    pub fn make(path: &Path, owner: u32) -> io::Result<Self> {
        Self::at(path, owner, true)
    }

    fn at(path: &Path, owner: u32, make: bool) -> io::Result<Self> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let (above, _) = files::directory(parent)?;
        let made = if make { mkdirat(above.as_fd(), name, Mode::S_IRWXU) } else { Ok(()) };
        made.or_else(|e| if e == Errno::EEXIST { Ok(()) } else { Err(e) })?;
        let directory =
            Self { fd: open_at(above.as_fd(), name, OFlag::O_DIRECTORY)?, path: path.to_owned(), owner };
        not_of_others(directory.fd.as_fd())?;
        let (above, own) = (File::from(above).metadata()?, File::from(directory.fd.try_clone()?).metadata()?);
        // In a directory for all, like /tmp, only its owner and the directory's can take it away.
        let is_for_all = above.mode() & 0o002 != 0 && above.mode() & libc::S_ISVTX == 0;
        let may_be_above = !is_for_all && (above.uid() == owner || is_root(above.uid()));
        if own.uid() != owner || own.mode() & 0o077 != 0 || !may_be_above {
            return Err(io::Error::other(format!("it is not a directory that only user {owner} can use")));
        }
        Ok(directory)
    }

    /// Its owner.
    pub fn owner(&self) -> u32 {
        self.owner
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path to something directly in it, whatever becomes of the directory's own path.
    pub fn entry(&self, name: &str) -> PathBuf {
        by_descriptor(&self.fd).join(name)
    }

    /// The names in it, at most so many.
    pub fn names(&self, most: usize) -> Vec<String> {
        let entries = std::fs::read_dir(by_descriptor(&self.fd)).into_iter().flatten().flatten();
        entries.take(most).filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// Opens a file of the owner in it, without access to a FUSE file system.
    fn look_up(&self, name: &str) -> io::Result<(OwnedFd, std::fs::Metadata)> {
        let fd = open_at(self.fd.as_fd(), OsStr::new(name), OFlag::empty())?;
        not_of_others(fd.as_fd())?;
        let meta = File::from(fd.try_clone()?).metadata()?;
        match meta.uid() == self.owner {
            true => Ok((fd, meta)),
            false => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }

    /// The whole of a regular file, and when it was changed.
    pub fn read(&self, name: &str) -> io::Result<(Vec<u8>, std::time::SystemTime)> {
        let (fd, meta) = self.look_up(name)?;
        let longest = longest(self.owner);
        if !meta.is_file() || meta.len() > longest as u64 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(by_descriptor(&fd))?;
        let mut text = Vec::new();
        file.take(longest as u64).read_to_end(&mut text)?;
        Ok((text, meta.modified()?))
    }

    /// Connects to a socket of the owner's.
    pub fn connect(&self, name: &str, within: Duration) -> io::Result<UnixStream> {
        let (fd, meta) = self.look_up(name)?;
        if !meta.file_type().is_socket() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let flags = SockFlag::SOCK_CLOEXEC;
        let stream = UnixStream::from(socket(AddressFamily::Unix, SockType::Stream, flags, None)?);
        // Of connect(2) as well: a listener need not accept any connection.
        stream.set_write_timeout(Some(within.max(Duration::from_millis(1))))?;
        connect(stream.as_raw_fd(), &UnixAddr::new(&by_descriptor(&fd))?)?;
        // The process that called listen(2).
        match getsockopt(&stream, PeerCredentials)?.uid() == self.owner {
            true => Ok(stream),
            false => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    use super::*;

    fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().canonicalize().expect("it is there");
        (dir, path)
    }

    #[test]
    fn a_directory_open_to_others_is_not_used() {
        let (_dir, place) = place();
        let path = place.join("d");
        assert!(Directory::open(&path, own()).is_err(), "not there");
        assert!(Directory::make(&path, own()).is_ok());
        assert!(Directory::make(&path, own()).is_ok(), "again");
        assert!(Directory::open(&path, own() + 1).is_err());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("own directory");
        assert!(Directory::open(&path, own()).is_err());
        let link = place.join("link");
        symlink("/root", &link).expect("own directory");
        assert!(Directory::make(&link, own()).is_err());
    }

    #[test]
    fn only_plain_files_and_sockets_are_taken_from_it() {
        let (_dir, place) = place();
        let directory = Directory::make(&place.join("d"), own()).expect("made");
        let within = Duration::from_millis(50);
        fs::write(directory.entry("f"), "text").expect("own directory");
        assert_eq!(directory.read("f").expect("a file").0, b"text");
        assert!(directory.connect("f", within).is_err());
        symlink("f", directory.entry("link")).expect("own directory");
        assert!(directory.read("link").is_err());
        nix::unistd::mkfifo(&directory.entry("fifo"), Mode::S_IRWXU).expect("own directory");
        assert!(directory.read("fifo").is_err(), "and does not wait for a writer");
        File::create(directory.entry("large")).expect("own directory").set_len(1 << 40).expect("sparse");
        assert!(directory.read("large").is_err());
        let _listener = UnixListener::bind(directory.entry("s")).expect("own directory");
        assert!(directory.connect("s", within).is_ok());
        symlink("s", directory.entry("other")).expect("own directory");
        assert!(directory.connect("other", within).is_err());
        assert_eq!(directory.names(2).len(), 2);
    }

    #[test]
    fn a_listener_that_takes_nobody_is_not_waited_for() {
        let (_dir, place) = place();
        let directory = Directory::make(&place.join("d"), own()).expect("made");
        let listener = UnixListener::bind(directory.entry("s")).expect("own directory");
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).expect("a number"))
            .expect("again");
        let within = Duration::from_millis(50);
        let mut held = Vec::new();
        let refused =
            (0..8).find_map(|_| directory.connect("s", within).map(|stream| held.push(stream)).err());
        assert_eq!(refused.expect("full").kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_place_is_what_it_was() {
        let (_dir, place) = place();
        fs::create_dir_all(place.join("a/b")).expect("own directory");
        let id = mount_id(File::open(&place).expect("own").as_fd()).expect("of any descriptor");
        let handle = MountpointHandle::of(&place.join("a/b")).expect("no links");
        fs::rename(place.join("a"), place.join("c")).expect("own directory");
        symlink("/", place.join("a")).expect("own directory");
        assert!(handle.root(id).expect("held").is_some());
        assert!(handle.root(id + 1).expect("held").is_none());
        assert!(MountpointHandle::of(&place.join("a/etc")).is_err(), "a link");
        assert!(MountpointHandle::of(Path::new("/")).is_err());
    }
}
