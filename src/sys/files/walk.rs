//! Walking along a path by descriptors, component by component: what was checked is what is used.
//!
//! A link is followed if it is trusted ([`is_trusted_link`]). Nothing is looked up in what another
//! user serves by FUSE.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat, readlinkat};
use nix::sys::stat::Mode;

use crate::sys::files::Unfit;
use crate::sys::files::ownership::{is_trusted_link, server};
use crate::sys::mount_table;

/// As many links as the kernel follows in one path.
const MAX_LINKS: usize = 40;

/// A directory on the way, and the names that lead on from there.
#[derive(Debug)]
pub struct Route {
    /// The directory.
    pub dir: OwnedFd,
    /// Where the names led, without links.
    pub path: PathBuf,
    ahead: VecDeque<OsString>,
    links: usize,
    also: Option<u32>,
}

impl Route {
    /// At the beginning of `path`. Links of `also` are as good as one's own.
    pub fn along(path: &Path, also: Option<u32>) -> Result<Self, Unfit> {
        let dir = start(path)?;
        not_of_others(dir.as_fd())?;
        let at = mount_table::path_of(dir.as_fd())?;
        Ok(Self { dir, path: at, ahead: names(path), links: 0, also })
    }

    /// The next name, to be looked up in the directory, and whether it is the last one.
    pub fn next_name(&mut self) -> Result<Option<(OsString, bool)>, Unfit> {
        let Some(name) = self.ahead.pop_front() else { return Ok(None) };
        not_of_others(self.dir.as_fd())?;
        Ok(Some((name, self.ahead.is_empty())))
    }

    /// Goes on where a link leads that has this name and this owner.
    pub fn follow(&mut self, link: BorrowedFd<'_>, name: &OsStr, owner: u32) -> Result<(), Unfit> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(Errno::ELOOP.into());
        }
        if !is_trusted_link(owner, self.dir.as_fd(), self.also)? {
            return Err(Unfit::Link { path: self.path.join(name), owner });
        }
        let target = PathBuf::from(readlinkat(link, "")?);
        if target.is_absolute() {
            (self.path, self.dir) = (PathBuf::from("/"), start(&target)?);
        }
        for name in names(&target).into_iter().rev() {
            self.ahead.push_front(name);
        }
        Ok(())
    }

    /// Goes on in the directory that has this name.
    pub fn enter(&mut self, dir: OwnedFd, name: OsString) {
        self.dir = dir;
        if name == ".." {
            self.path.pop();
        } else {
            self.path.push(name);
        }
    }
}

/// Refuses what another user serves.
pub fn not_of_others(fd: BorrowedFd<'_>) -> Result<(), Unfit> {
    server(fd)?.map_or(Ok(()), |user| Err(Unfit::Served(user)))
}

fn start(path: &Path) -> Result<OwnedFd, Errno> {
    let start = if path.is_absolute() { "/" } else { "." };
    openat(AT_FDCWD, start, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// The names of a path's components, `..` among them.
fn names(path: &Path) -> VecDeque<OsString> {
    let names = path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    names.map(|part| part.as_os_str().to_owned()).collect()
}
