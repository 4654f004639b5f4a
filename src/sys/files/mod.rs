//! Files of the user's that are read or written: opened so that no other user decides which file it
//! is.
//!
//! Keys, certificates, logs and audit files may be in places where others can write, and root reads
//! and writes for everybody. So:
//!
//! 1. **To read** ([`open`]): links are followed as long as each is trusted, which means that root
//!    made it, or we did, or the user of the mount (`--uid`). Links of Kubernetes (`..data`),
//!    agenix and sops-nix are. What is opened is a regular file, or a private pipe (`<(command)`),
//!    of one of these users, and its size is bounded.
//! 2. **To append** ([`Place`]): the directory is found in the same way, once. The file itself is
//!    no link, is regular, has no second name, belongs to us or root, and others cannot write to
//!    it.
//! 3. Nothing waits: opens do not block, a pipe has a time limit, and a FUSE file system of another
//!    user is not asked ([`ownership`]).
//! 4. The walk uses descriptors, component by component, so that what was checked is what is
//!    opened.
//!
//! Directories of our own (runtime directory, embedded vault, volumes) are checked as directories;
//! their files need none of this. `/proc`, `/sys` and `/dev/fuse` are the kernel's.

pub mod ownership;
mod secret_mount;
pub mod walk;

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata, Permissions};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open as open_path, openat, renameat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use nix::unistd::Gid;
use zeroize::Zeroizing;

use crate::display::Shown;
use crate::sys::files::ownership::{by_descriptor, is_trusted};
use crate::sys::files::walk::{Route, not_of_others};

/// How long a command behind a pipe may take to write.
const WRITTEN: Duration = Duration::from_secs(10);

/// `/dev/null`: major 1, minor 3 (Linux, admin-guide/devices.txt).
const NULL_DEVICE: libc::dev_t = libc::makedev(1, 3);

/// Why a file is left alone.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A device, a socket, or a pipe where only a file will do.
    #[error("it is no regular file")]
    NotRegular,
    /// Another user could change it.
    #[error(
        "it belongs to user {0}, and is neither yours nor root's: have its owner changed (chown), or copy it"
    )]
    Owner(u32),
    /// Another user's link.
    #[error("{} is a link that belongs to user {owner}, and is not followed: name the file that it leads to", path.shown())]
    Link {
        /// Where it is.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// What is written there is not ours alone.
    #[error("others can write to it: chmod o-w")]
    Writable,
    /// A hard link, perhaps to a file that another user chose.
    #[error("it has a second name (a hard link): name a file of its own")]
    Linked,
    /// It may never answer, and says what it likes.
    #[error("it is in a file system that user {0} serves, and is not asked: use a place outside of it")]
    Served(u32),
}

impl From<Errno> for Unfit {
    fn from(e: Errno) -> Self {
        Self::Io(e.into())
    }
}

impl From<Unfit> for io::Error {
    fn from(e: Unfit) -> Self {
        match e {
            Unfit::Io(e) => e,
            e => Self::new(ErrorKind::PermissionDenied, e.to_string()),
        }
    }
}

/// A file that was opened to be read.
#[derive(Debug)]
pub struct Opened {
    file: File,
    meta: Metadata,
}

/// Opens a file to read it. `also`: a user with the same trust as one's own.
pub fn open(path: &Path, also: Option<u32>) -> Result<Opened, Unfit> {
    let resolved = ResolvedName::of(path, also, true)?;
    let link = if resolved.is_magic { OFlag::empty() } else { OFlag::O_NOFOLLOW };
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | link;
    let file = File::from(openat(&resolved.dir, resolved.name.as_os_str(), flags, Mode::empty())?);
    let meta = file.metadata()?;
    match meta.file_type() {
        kind if kind.is_dir() => Err(io::Error::from(ErrorKind::IsADirectory).into()),
        // A pipe that others can read from is private to no user.
        kind if kind.is_fifo() && meta.mode() & 0o077 == 0 || kind.is_file() => {
            if is_trusted(meta.uid(), also) {
                Ok(Opened { file, meta })
            } else {
                Err(Unfit::Owner(meta.uid()))
            }
        }
        _ => Err(Unfit::NotRegular),
    }
}

/// What stat(2) says of a file that [`open`] might open.
pub fn metadata(path: &Path, also: Option<u32>) -> Result<Metadata, Unfit> {
    let resolved = ResolvedName::of(path, also, true)?;
    if resolved.is_magic {
        return Ok(std::fs::metadata(by_descriptor(&resolved.dir).join(&resolved.name))?);
    }
    Ok(File::from(peek(resolved.dir.as_fd(), &resolved.name)?.0).metadata()?)
}

/// A directory, found by trusted links only, and where it is, without links.
pub fn directory(path: &Path) -> Result<(OwnedFd, PathBuf), Unfit> {
    let mut walk = Route::along(path, None)?;
    while let Some((name, _)) = walk.next_name()? {
        let (opened, found) = peek(walk.dir.as_fd(), &name)?;
        match found.st_mode & libc::S_IFMT == libc::S_IFLNK {
            true => walk.follow(opened.as_fd(), &name, found.st_uid)?,
            false => walk.enter(opened, name),
        }
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok((openat(&walk.dir, ".", flags, Mode::empty())?, walk.path))
}

/// Gives a socket that was just made a group and a mode. Whatever else has its name by now stays as
/// it is.
pub fn let_in(socket: &Path, group: Option<Gid>, mode: u32) -> io::Result<()> {
    let found = open_path(socket, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
    let stat = nix::sys::stat::fstat(&found)?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFSOCK || stat.st_uid != nix::unistd::geteuid().as_raw() {
        return Err(io::Error::other("something else was put in its place"));
    }
    let found = by_descriptor(&found);
    nix::unistd::chown(&found, None, group)?;
    std::fs::set_permissions(&found, Permissions::from_mode(mode))
}

/// Refuses a path that leads into a file system which another user serves, or that a link of
/// another user could lead there.
pub fn check_way(path: &Path) -> io::Result<()> {
    match ResolvedName::of(path, None, true) {
        Err(Unfit::Io(_)) | Ok(_) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

impl Opened {
    /// Whether root owns it.
    pub fn is_roots(&self) -> bool {
        self.meta.uid() == 0
    }

    /// The permission bits.
    pub fn mode(&self) -> u32 {
        self.meta.mode() & 0o7777
    }

    /// Whether others than its owner can use it in one of the ways of `forbidden`. A container's
    /// secret is for the container, whatever its mode says.
    pub fn is_exposed(&self, forbidden: u32) -> bool {
        self.meta.mode() & forbidden != 0 && !(self.meta.mode() & 0o022 == 0 && secret_mount::has(&self.file))
    }

    /// All of it. More than `max` bytes are an error of the kind `FileTooLarge`.
    pub fn read(mut self, max: u64) -> io::Result<Zeroizing<Vec<u8>>> {
        let is_pipe = self.meta.file_type().is_fifo();
        // As large as it gets: a buffer that grew would leave copies behind.
        let expected = if is_pipe { max } else { self.meta.len().min(max) };
        let mut bytes = Zeroizing::new(Vec::with_capacity(expected as usize + 1));
        match is_pipe {
            true => read_pipe(&mut self.file, &mut bytes, max)?,
            false => self.file.take(max + 1).read_to_end(&mut bytes).map(drop)?,
        }
        if bytes.len() as u64 > max {
            let sentence = format!("it is larger than {max} bytes");
            return Err(io::Error::new(ErrorKind::FileTooLarge, sentence));
        }
        Ok(bytes)
    }
}

/// Reads what is written into a pipe, to its end.
fn read_pipe(pipe: &mut File, bytes: &mut Vec<u8>, max: u64) -> io::Result<()> {
    let end = Instant::now() + WRITTEN;
    let mut part = Zeroizing::new([0; 512]);
    while bytes.len() as u64 <= max {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => {
                let sentence = format!("no process wrote it to its end within {} s", WRITTEN.as_secs());
                return Err(io::Error::new(ErrorKind::TimedOut, sentence));
            }
            Err(e) if e != Errno::EINTR => return Err(e.into()),
            _ => {}
        }
        match pipe.read(part.as_mut_slice()) {
            Ok(0) => break,
            Ok(n) => bytes.extend_from_slice(&part[..n.min(bytes.capacity() - bytes.len())]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Opens a file to read it, below a directory that is open, by names alone: no link, no `..`, no
/// other file system.
pub fn open_below(dir: BorrowedFd<'_>, path: &Path) -> io::Result<File> {
    let device = nix::sys::stat::fstat(dir)?.st_dev;
    let mut at = dir.try_clone_to_owned()?;
    let mut names = path.components().peekable();
    while let Some(name) = names.next() {
        let Component::Normal(name) = name else { return Err(ErrorKind::InvalidInput.into()) };
        let last = names.peek().is_none();
        let kind =
            if last { OFlag::O_NONBLOCK | OFlag::O_NOCTTY } else { OFlag::O_PATH | OFlag::O_DIRECTORY };
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | kind;
        at = openat(&at, name, flags, Mode::empty())?;
    }
    let file = File::from(at);
    let meta = file.metadata()?;
    if !meta.is_file() || meta.dev() != device {
        return Err(Unfit::NotRegular.into());
    }
    Ok(file)
}

/// Where a file is that is written to: its directory, open, and its name there.
#[derive(Debug)]
pub struct Place {
    dir: OwnedFd,
    name: OsString,
}

impl Place {
    /// Finds the directory; the file need not be there yet.
    pub fn of(path: &Path) -> Result<Self, Unfit> {
        let ResolvedName { dir, name, .. } = ResolvedName::of(path, None, false)?;
        Ok(Self { dir, name })
    }

    /// Opens the file to append to it, and makes it, 0600, where there is none.
    pub fn append(&self) -> Result<File, Unfit> {
        let flags = OFlag::O_WRONLY
            | OFlag::O_APPEND
            | OFlag::O_CREAT
            | OFlag::O_NOFOLLOW
            | OFlag::O_NONBLOCK
            | OFlag::O_NOCTTY
            | OFlag::O_CLOEXEC;
        self.check()?;
        let opened = openat(&self.dir, self.name.as_os_str(), flags, Mode::from_bits_truncate(0o600));
        let file = File::from(opened.map_err(|e| match e {
            // Of a pipe without a reader, and of a socket.
            Errno::ELOOP | Errno::ENXIO => Unfit::NotRegular,
            e => e.into(),
        })?);
        let stat = nix::sys::stat::fstat(&file)?;
        is_writable(&stat).map(|()| file)
    }

    /// Whether [`Place::append`] would refuse what is there; nothing is made.
    pub fn check(&self) -> Result<(), Unfit> {
        match peek(self.dir.as_fd(), &self.name) {
            Ok((_, stat)) => is_writable(&stat),
            Err(Unfit::Io(e)) if e.kind() == ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Whether the name still leads to what was opened by it. No descriptor is needed: a process
    /// that has none left can log.
    pub fn leads_to(&self, opened: &Metadata) -> bool {
        let found = fstatat(&self.dir, self.name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
        found.is_ok_and(|found| found.st_ino == opened.ino() && found.st_dev == opened.dev())
    }

    /// Renames the file, within its directory.
    pub fn rename(&self, to: &OsStr) -> io::Result<()> {
        Ok(renameat(&self.dir, self.name.as_os_str(), &self.dir, to)?)
    }

    /// Where its directory is.
    pub fn directory(&self) -> io::Result<PathBuf> {
        std::fs::read_link(by_descriptor(&self.dir))
    }

    /// Its name.
    pub fn name(&self) -> &OsStr {
        &self.name
    }
}

/// Whether to append to such a file.
fn is_writable(stat: &FileStat) -> Result<(), Unfit> {
    match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFREG => {}
        // It keeps nothing, whatever its owner.
        SFlag::S_IFCHR if stat.st_rdev == NULL_DEVICE => return Ok(()),
        SFlag::S_IFDIR => return Err(io::Error::from(ErrorKind::IsADirectory).into()),
        _ => return Err(Unfit::NotRegular),
    }
    if !is_trusted(stat.st_uid, None) {
        return Err(Unfit::Owner(stat.st_uid));
    }
    if stat.st_mode & 0o002 != 0 {
        return Err(Unfit::Writable);
    }
    if stat.st_nlink > 1 { Err(Unfit::Linked) } else { Ok(()) }
}

/// What has that name, a link itself, and what it is.
fn peek(dir: BorrowedFd<'_>, name: &OsStr) -> Result<(OwnedFd, FileStat), Unfit> {
    let opened = openat(dir, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
    not_of_others(opened.as_fd())?;
    let stat = nix::sys::stat::fstat(&opened)?;
    Ok((opened, stat))
}

/// The directory of a file, found by following trusted links only, and the file's name in it.
struct ResolvedName {
    dir: OwnedFd,
    name: OsString,
    /// A link of procfs's to a file that is open, as behind `/dev/stdin`: only the kernel can
    /// follow it.
    is_magic: bool,
}

impl ResolvedName {
    /// `follow`: also where the last name is a link.
    fn of(path: &Path, also: Option<u32>, follow: bool) -> Result<Self, Unfit> {
        let mut walk = Route::along(path, also)?;
        while let Some((name, last)) = walk.next_name()? {
            if last && !follow {
                return Ok(Self { dir: walk.dir, name, is_magic: false });
            }
            let (opened, found) = peek(walk.dir.as_fd(), &name)?;
            let is_link = found.st_mode & libc::S_IFMT == libc::S_IFLNK;
            let is_magic = is_link && fstatfs(&walk.dir)?.filesystem_type() == PROC_SUPER_MAGIC;
            if is_link && !is_magic {
                walk.follow(opened.as_fd(), &name, found.st_uid)?;
                continue;
            }
            if last {
                return Ok(Self { dir: walk.dir, name, is_magic });
            }
            let link = if is_magic { OFlag::empty() } else { OFlag::O_NOFOLLOW };
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | link;
            let dir = openat(&walk.dir, name.as_os_str(), flags, Mode::empty())?;
            walk.enter(dir, name);
        }
        Err(io::Error::from(ErrorKind::IsADirectory).into())
    }
}

/// Which state of a file it is: one that was written or replaced is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp([i64; 6]);

/// That of a regular file which [`open`] might open.
pub fn stamp(path: &Path, also: Option<u32>) -> Option<Stamp> {
    let meta = metadata(path, also).ok().filter(Metadata::is_file)?;
    let (dev, ino) = (meta.dev().cast_signed(), meta.ino().cast_signed());
    Some(Stamp([dev, ino, meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()]))
}

#[cfg(test)]
mod tests;
