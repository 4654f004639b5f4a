//! The directory where a user's mounts are found: one control socket and one record a mount.
//!
//! `/run/vaultfs` for root, else `$XDG_RUNTIME_DIR/vaultfs`, else `/tmp/vaultfs-UID`. It is 0700 and its
//! ownership is checked each time, because anybody may make a directory in /tmp. Files are named by the
//! mount's device number, and by the keeper: the kernel uses the number again as soon as a mount is gone, when
//! its keeper may still be busy ending, and each keeper removes only what is its own. A record holds no secret;
//! it may be stale after a crash, so only those of live keepers are read.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::mounts::Dev;
use super::process;
use crate::fs::Unsaved;

/// What a keeper writes down about its mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The keeper.
    pub keeper_pid: u32,
    /// Which vault: the connection's description, without any secret.
    pub spec: serde_json::Value,
    /// Why everything on the mount fails, if it does: the keeper has given up.
    #[serde(default)]
    pub broken: Option<String>,
    /// What the vault does not have, where there is no worker that could be asked.
    #[serde(default)]
    pub unsaved: Option<Vec<Unsaved>>,
}

/// A checked runtime directory.
#[derive(Debug, Clone)]
pub struct RuntimeDir(PathBuf);

impl RuntimeDir {
    /// This user's directory, made if it is missing.
    pub fn own() -> io::Result<Self> {
        let uid = nix::unistd::geteuid().as_raw();
        let mut last = io::Error::other("no place for it");
        for path in candidates(uid) {
            let made = DirBuilder::new().mode(0o700).create(&path);
            match made.or_else(|e| if e.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(e) }) {
                Ok(()) => match check(&path, uid) {
                    Ok(()) => return Ok(Self(path)),
                    Err(e) => last = e,
                },
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    /// Makes the control socket of a mount, in this user's directory.
    pub fn listen(dev: Dev, keeper: u32) -> io::Result<(Self, UnixListener)> {
        let mut tries = 0;
        loop {
            let dir = Self::own()?;
            dir.clear_stale();
            // Of the same keeper's from before, where there is one.
            let _ = fs::remove_file(dir.socket(dev, keeper));
            match UnixListener::bind(dir.socket(dev, keeper)) {
                Ok(listener) => return Ok((dir, listener)),
                // The last mount that ended has just removed the directory.
                Err(e) if e.kind() == io::ErrorKind::NotFound && tries < 10 => tries += 1,
                Err(e) => return Err(e),
            }
        }
    }

    /// The control socket that `keeper` makes for a mount.
    pub fn socket(&self, dev: Dev, keeper: u32) -> PathBuf {
        self.0.join(format!("{dev}.{keeper}.sock"))
    }

    fn record(&self, dev: Dev, keeper: u32) -> PathBuf {
        self.0.join(format!("{dev}.{keeper}.json"))
    }

    /// Writes a mount's record, whole or not at all.
    pub fn write(&self, dev: Dev, record: &Record) -> io::Result<()> {
        let temporary = self.0.join(format!("{dev}.{}.new", record.keeper_pid));
        let write = || {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(&serde_json::to_vec(record)?)?;
            fs::rename(&temporary, self.record(dev, record.keeper_pid))
        };
        // A full disk: the file is there, and nothing in it.
        write().inspect_err(|_| drop(fs::remove_file(&temporary)))
    }

    /// Removes what a keeper made for a mount.
    pub fn clear(&self, dev: Dev, keeper: u32) {
        let _ = fs::remove_file(self.record(dev, keeper));
        let _ = fs::remove_file(self.socket(dev, keeper));
    }

    /// The same, and the directory if that was all: no mount of this user's is left.
    pub fn leave(&self, dev: Dev, keeper: u32) {
        self.clear(dev, keeper);
        self.tidy();
    }

    /// Removes the directory if nothing is in it.
    pub fn tidy(&self) {
        let _ = fs::remove_dir(&self.0);
    }

    /// Removes what keepers left that died.
    pub fn clear_stale(&self) {
        for (dev, keeper, _) in self.keepers() {
            if !process::is_keeper(keeper) {
                self.clear(dev, keeper);
            }
        }
    }

    /// What the names in the directory say, and when each was made.
    fn keepers(&self) -> Vec<(Dev, u32, SystemTime)> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let name = entry.file_name();
                let mut parts = name.to_str()?.split('.');
                let (dev, keeper) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
                Some((dev, keeper, entry.metadata().ok()?.modified().ok()?))
            })
            .collect()
    }
}

/// The record of mount `dev` made by user `uid`, and where it is. Of a live keeper, the latest.
pub fn find(uid: u32, dev: Dev) -> Option<(RuntimeDir, Record)> {
    candidates(uid).into_iter().find_map(|path| {
        check(&path, uid).ok()?;
        let dir = RuntimeDir(path);
        let mut keepers = dir.keepers();
        keepers.retain(|(of, keeper, _)| *of == dev && process::is_keeper(*keeper));
        keepers.sort_by_key(|(_, _, made)| *made);
        let text = keepers.iter().rev().find_map(|(_, keeper, _)| fs::read(dir.record(dev, *keeper)).ok())?;
        Some((dir, serde_json::from_slice(&text).ok()?))
    })
}

/// The records that keepers of user `uid` made, each with its mount's number, where it is, and whether its keeper lives. The
/// latest last.
pub fn all(uid: u32) -> Vec<(RuntimeDir, Dev, Record, bool)> {
    let mut found = Vec::new();
    for path in candidates(uid) {
        if check(&path, uid).is_err() {
            continue;
        }
        let dir = RuntimeDir(path);
        let mut keepers = dir.keepers();
        keepers.sort_by_key(|(_, _, made)| *made);
        let mut seen = Vec::new();
        for (dev, keeper, _) in keepers {
            if seen.contains(&(dev, keeper)) {
                continue;
            }
            seen.push((dev, keeper));
            let record = fs::read(dir.record(dev, keeper)).ok();
            let Some(record) = record.and_then(|text| serde_json::from_slice(&text).ok()) else { continue };
            found.push((dir.clone(), dev, record, process::is_keeper(keeper)));
        }
    }
    found
}

/// Where the runtime directory of `uid` may be, best first.
fn candidates(uid: u32) -> Vec<PathBuf> {
    let mut places = Vec::new();
    if uid == 0 {
        places.push(PathBuf::from("/run/vaultfs"));
    } else {
        let own = uid == nix::unistd::geteuid().as_raw();
        let named = std::env::var_os("XDG_RUNTIME_DIR").filter(|_| own).map(PathBuf::from);
        places.extend(named.filter(|p| p.is_absolute()).map(|p| p.join("vaultfs")));
        places.push(PathBuf::from(format!("/run/user/{uid}/vaultfs")));
    }
    places.push(PathBuf::from(format!("/tmp/vaultfs-{uid}")));
    places
}

/// A directory (no link) of `uid`, closed to everybody else.
fn check(path: &Path, uid: u32) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    if meta.is_dir() && meta.uid() == uid && meta.mode() & 0o077 == 0 {
        return Ok(());
    }
    Err(io::Error::other(format!("{} is not a directory that only user {uid} can use", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_open_to_others_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a directory");
        let uid = nix::unistd::geteuid().as_raw();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).expect("own directory");
        assert!(check(dir.path(), uid).is_ok());
        assert!(check(dir.path(), uid + 1).is_err());
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("own directory");
        assert!(check(dir.path(), uid).is_err());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/root", &link).expect("own directory");
        assert!(check(&link, uid).is_err());
    }

    #[test]
    fn a_record_that_cannot_be_written_leaves_nothing() {
        let dir = RuntimeDir(tempfile::tempdir().expect("a directory").keep());
        let dev = Dev::from_raw(0x2d);
        let record = Record {
            mountpoint: "/mnt/v".into(),
            keeper_pid: 7,
            spec: serde_json::Value::Null,
            broken: None,
            unsaved: None,
        };
        fs::create_dir_all(dir.record(dev, 7).join("in the way")).expect("own directory");
        assert!(dir.write(dev, &record).is_err());
        let left = fs::read_dir(&dir.0).expect("own directory").count();
        assert_eq!(left, 1, "only what was there");
        fs::remove_dir_all(&dir.0).expect("own directory");
    }

    #[test]
    fn records_come_back() {
        let dir = RuntimeDir(tempfile::tempdir().expect("a directory").keep());
        let dev = Dev::from_raw(0x2d);
        let record = Record {
            mountpoint: "/mnt/v".into(),
            keeper_pid: 7,
            spec: serde_json::json!({"a": 1}),
            broken: None,
            unsaved: None,
        };
        dir.write(dev, &record).expect("own directory");
        assert_eq!(dir.keepers().iter().map(|k| (k.0, k.1)).collect::<Vec<_>>(), [(dev, 7)]);
        let text = fs::read(dir.record(dev, 7)).expect("written");
        let back: Record = serde_json::from_slice(&text).expect("own output");
        assert_eq!((back.mountpoint, back.keeper_pid), (record.mountpoint, 7));
        dir.clear(dev, 8);
        assert!(dir.record(dev, 7).exists(), "another keeper's");
        dir.leave(dev, 8);
        assert!(dir.record(dev, 7).exists(), "another keeper's");
        dir.leave(dev, 7);
        assert!(!dir.0.exists(), "the last one tidies up");
    }
}
