//! From the path that a person typed to the mount that is meant.
//!
//! The mount may hang, so the path itself is not touched at first: it is compared, as text, with
//! the mount table. Only when that finds nothing are links resolved, in a child process.

use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use crate::sys::mount_table;
use crate::sys::mount_table::Entry;
use crate::sys::mount_target::WalkError;
use crate::sys::probe;

/// Why no mount was found.
#[derive(Debug, thiserror::Error)]
pub enum LocateError {
    /// Nothing is mounted there.
    #[error("nothing is mounted on {0}")]
    NotMounted(PathBuf),
    /// Something else is mounted there.
    #[error("{0} is not a vaultfs mount but {1}: it is left alone")]
    Foreign(PathBuf, String),
    /// The link's owner may lead it elsewhere at any moment.
    #[error(
        "a link of another user's is on the way to {0}: give the path without it, as the mount table has it"
    )]
    Link(PathBuf),
    /// The mount table cannot be read.
    #[error("the mount table cannot be read: {0}")]
    Table(io::Error),
}

/// The vaultfs mount that is visible at `path`.
pub fn vaultfs_at(path: &Path) -> Result<Entry, LocateError> {
    let absolute = lexically_absolute(path).map_err(LocateError::Table)?;
    let mut top = mount_table::top_at(&absolute).map_err(LocateError::Table)?;
    if top.is_none() {
        match probe::stat(path, Duration::from_secs(5)) {
            Ok(Ok((seen, _))) => top = mount_table::top_at(&seen.canonical).map_err(LocateError::Table)?,
            Ok(Err(WalkError::Link { .. })) => return Err(LocateError::Link(absolute)),
            Ok(Err(_)) | Err(_) => {}
        }
    }
    match top {
        Some(entry) if entry.is_vaultfs() => Ok(entry),
        Some(entry) => Err(LocateError::Foreign(absolute, entry.fs_type)),
        None => Err(LocateError::NotMounted(absolute)),
    }
}

/// The vaultfs mount that holds a path, and the way from its root: by the path's text, and only if
/// that finds nothing, without links. The path itself need not exist.
pub fn holding(path: &Path) -> Option<(Entry, PathBuf)> {
    let absolute = lexically_absolute(path).ok()?;
    let table = mount_table::table().ok()?;
    let holds = |path: &Path| {
        let above = table.iter().filter(|entry| path.starts_with(&entry.mountpoint));
        // Of several at one place, the last one covers the others.
        let entry = above.max_by_key(|entry| entry.mountpoint.components().count())?;
        let way = path.strip_prefix(&entry.mountpoint).ok()?.to_owned();
        entry.is_vaultfs().then(|| (entry.clone(), way))
    };
    let canonical = |path: &Path| Some(probe::stat(path, Duration::from_secs(5)).ok()?.ok()?.0.canonical);
    holds(&absolute).or_else(|| holds(&canonical(&absolute)?)).or_else(|| {
        let (parent, name) = (absolute.parent()?, absolute.file_name()?);
        holds(&canonical(parent)?.join(name))
    })
}

/// As [`vaultfs_at`]; of a path that is below a mount point, the mount that holds it.
pub fn vaultfs_of(path: &Path) -> Result<Entry, LocateError> {
    match vaultfs_at(path) {
        Err(LocateError::NotMounted(at)) => {
            holding(path).map(|(entry, _)| entry).ok_or(LocateError::NotMounted(at))
        }
        found => found,
    }
}

/// Absolute, `.` and `..` taken out as text.
fn lexically_absolute(path: &Path) -> io::Result<PathBuf> {
    let mut out = PathBuf::from("/");
    for component in std::path::absolute(path)?.components() {
        match component {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_compared_as_text() {
        assert_eq!(lexically_absolute(Path::new("/a/./b/../c/")).unwrap(), Path::new("/a/c"));
        assert_eq!(lexically_absolute(Path::new("x")).unwrap(), std::env::current_dir().unwrap().join("x"));
    }

    #[test]
    fn what_is_not_ours_is_named() {
        assert!(
            matches!(vaultfs_at(Path::new("/proc")), Err(LocateError::Foreign(_, kind)) if kind == "proc")
        );
        assert!(matches!(vaultfs_at(Path::new("/no/such/place")), Err(LocateError::NotMounted(_))));
    }
}
