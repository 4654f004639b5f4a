//! The directory to mount on, as a descriptor: the checked directory is the one that is mounted on.
//!
//! 1. A path is walked once, component by component, and never looked up again: a later exchange of
//!    a component has no effect. If the directory itself is moved or removed meanwhile, nothing is
//!    mounted.
//! 2. A link on the way is followed if it belongs to root or to this user. Any other could point
//!    into a directory that its owner has no right to cover.
//! 3. A directory is followed whatever its owner and mode. A user that may rename there can put
//!    other directories in its place, but only those that this user may rename, and users of these
//!    names depend on that user anyway.
//! 4. No link can be mounted on, and an automount that waits at the mount point is not triggered:
//!    it is what is mounted on.
//! 5. Nothing is looked up in what another user serves by FUSE ([`Route`]), and a mount within it
//!    is refused: it could not be removed without asking that user. What is mounted at the path's
//!    end is not looked into here.
//! 6. Walking may hang: it is done in a child process ([`crate::sys::probe`]).

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, fstat};
use serde::{Deserialize, Serialize};

use crate::sys::files::Unfit;
use crate::sys::files::ownership::mount_id;
use crate::sys::files::walk::Route;
use crate::sys::mount_table;

/// Where a mount is to be made.
#[derive(Debug)]
pub struct Target {
    path: PathBuf,
    directory: OwnedFd,
    mount_id: u64,
}

impl Target {
    /// The directory behind a descriptor that was opened with O_PATH; its path was `path` when it
    /// was checked.
    pub fn new(path: PathBuf, directory: OwnedFd) -> io::Result<Self> {
        let mount_id = mount_id(directory.as_fd())?;
        Ok(Self { path, directory, mount_id })
    }

    /// The path, without links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// The id of the mount that the directory is in.
    pub fn mount_id(&self) -> u64 {
        self.mount_id
    }

    /// Fails if the directory was moved or removed since the check.
    pub fn check_in_place(&self) -> io::Result<()> {
        match mount_table::path_of(self.directory()) {
            Ok(path) if path == self.path => Ok(()),
            _ => Err(io::Error::other("the directory was moved or replaced meanwhile")),
        }
    }
}

/// Why a path does not lead to a directory that may be mounted on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum WalkError {
    /// An errno value.
    Errno(i32),
    /// A component was exchanged during the walk.
    Moved,
    /// A link of another user's is on the way.
    Link {
        /// Where.
        link: String,
        /// Its owner.
        uid: u32,
    },
    /// It is in a file system that this user serves.
    Served(u32),
}

impl From<Unfit> for WalkError {
    fn from(e: Unfit) -> Self {
        match e {
            Unfit::Link { path, owner } => {
                Self::Link { link: path.to_string_lossy().into_owned(), uid: owner }
            }
            Unfit::Served(uid) => Self::Served(uid),
            e => io::Error::from(e).into(),
        }
    }
}

impl From<Errno> for WalkError {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno as i32)
    }
}

impl From<io::Error> for WalkError {
    fn from(e: io::Error) -> Self {
        Self::Errno(e.raw_os_error().unwrap_or(libc::EIO))
    }
}

/// Opens what `path` leads to, for a [`Target`], with its path without links: where the names led.
pub fn walk(path: &Path) -> Result<(PathBuf, OwnedFd), WalkError> {
    let mut walk = Route::along(path, None)?;
    while let Some((name, last)) = walk.next_name()? {
        let next = step(walk.dir.as_fd(), &name, last)?;
        // Sends no request where it is no link, even of a dead mount.
        if readlinkat(&next, "").is_ok() {
            let owner = fstat(&next)?.st_uid;
            walk.follow(next.as_fd(), &name, owner)?;
        } else {
            walk.enter(next, name);
        }
    }
    // There are file systems to which the case of names is all the same.
    let folded = |path: &Path| path.to_string_lossy().to_lowercase();
    let is = mount_table::path_of(walk.dir.as_fd())?;
    if folded(&is) != folded(&walk.path) {
        return Err(WalkError::Moved);
    }
    Ok((is, walk.dir))
}

/// Opens one component, a link as itself.
fn step(at: BorrowedFd<'_>, name: &OsStr, is_last: bool) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    if !is_last {
        // O_DIRECTORY makes an automount on the way happen.
        match openat(at, name, flags | OFlag::O_DIRECTORY, Mode::empty()) {
            Err(Errno::ENOTDIR | Errno::ELOOP) => {}
            other => return other,
        }
    }
    openat(at, name, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{lchown, symlink};

    use super::*;

    fn reach(path: &Path) -> Result<PathBuf, WalkError> {
        walk(path).map(|(path, _)| path)
    }

    fn reached(path: &Path) -> Target {
        let (path, directory) = walk(path).unwrap();
        Target::new(path, directory).unwrap()
    }

    #[test]
    fn own_links_are_followed_as_the_kernel_follows_them() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("a/b")).unwrap();
        symlink("a", root.join("relative")).unwrap();
        symlink(root.join("relative/b"), root.join("absolute")).unwrap();
        symlink("../a/..", root.join("a/up")).unwrap();
        for path in ["a/b", "a//./b/", "relative/b", "absolute", "absolute/../b", "a/up/a/b"] {
            assert_eq!(reach(&root.join(path)), root.join(path).canonicalize().map_err(WalkError::from));
        }
        assert_eq!(reach(&root.join("a/up")), Ok(root.clone()));
        assert_eq!(reach(Path::new("/../..")), Ok(PathBuf::from("/")));
        assert_eq!(reach(Path::new(".")), Ok(std::env::current_dir().unwrap().canonicalize().unwrap()));
        symlink("loop", root.join("loop")).unwrap();
        assert_eq!(reach(&root.join("loop")), Err(WalkError::Errno(libc::ELOOP)));
        fs::write(root.join("file"), "").unwrap();
        assert_eq!(reach(&root.join("file/x")), Err(WalkError::Errno(libc::ENOTDIR)));
        assert_eq!(reach(&root.join("none/x")), Err(WalkError::Errno(libc::ENOENT)));
    }

    #[test]
    fn a_link_of_another_users_is_refused_wherever_it_is() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: only root can give a link away");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("a/b")).unwrap();
        let theirs = root.join("theirs");
        symlink("a", &theirs).unwrap();
        lchown(&theirs, Some(1), Some(1)).unwrap();
        symlink("theirs/b", root.join("ours")).unwrap();
        let refused = WalkError::Link { link: theirs.to_string_lossy().into_owned(), uid: 1 };
        for path in ["theirs", "theirs/b", "theirs/../a", "ours", "theirs/none"] {
            assert_eq!(reach(&root.join(path)), Err(refused.clone()), "{path}");
        }
        // A directory of another user's is no link.
        std::os::unix::fs::chown(root.join("a"), Some(1), Some(1)).unwrap();
        assert_eq!(reach(&root.join("a/b")), Ok(root.join("a/b")));
    }

    #[test]
    fn a_directory_that_was_moved_or_removed_is_not_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let (here, there) = (dir.path().join("here"), dir.path().join("there"));
        fs::create_dir(&here).unwrap();
        let target = reached(&here);
        target.check_in_place().unwrap();
        fs::rename(&here, &there).unwrap();
        fs::create_dir(&here).unwrap();
        target.check_in_place().unwrap_err();
        let target = reached(&here);
        fs::remove_dir(&here).unwrap();
        target.check_in_place().unwrap_err();
    }
}
