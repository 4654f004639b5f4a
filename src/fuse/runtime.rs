//! The directory where a user's mounts are found: one control socket and one record a mount.
//!
//! `/run/vaultfs` for root, else `$XDG_RUNTIME_DIR/vaultfs`, else `/tmp/vaultfs-UID`. It is 0700 and its
//! ownership is checked each time, because anybody may make a directory in /tmp. Files are named by the
//! mount's device number. A record holds no secret; it may be stale after a crash, so whoever reads one
//! checks the mount table and the process first.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::mounts::Dev;

/// What a keeper writes down about its mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The keeper.
    pub keeper_pid: u32,
    /// Which vault: the connection's description, without any secret.
    pub spec: serde_json::Value,
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

    /// The control socket of a mount.
    pub fn socket(&self, dev: Dev) -> PathBuf {
        self.0.join(format!("{dev}.sock"))
    }

    fn record(&self, dev: Dev) -> PathBuf {
        self.0.join(format!("{dev}.json"))
    }

    /// Writes a mount's record, whole or not at all.
    pub fn write(&self, dev: Dev, record: &Record) -> io::Result<()> {
        let temporary = self.0.join(format!("{dev}.json.new"));
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&serde_json::to_vec(record)?)?;
        fs::rename(temporary, self.record(dev))
    }

    /// Removes what a mount left. Device numbers are used again, so a new mount does this first.
    pub fn clear(&self, dev: Dev) {
        let _ = fs::remove_file(self.socket(dev));
        let _ = fs::remove_file(self.record(dev));
    }
}

/// The record of mount `dev` made by user `uid`, and where it is.
pub fn find(uid: u32, dev: Dev) -> Option<(RuntimeDir, Record)> {
    candidates(uid).into_iter().find_map(|path| {
        check(&path, uid).ok()?;
        let dir = RuntimeDir(path);
        let record = serde_json::from_slice(&fs::read(dir.record(dev)).ok()?).ok()?;
        Some((dir, record))
    })
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
    fn records_come_back() {
        let dir = RuntimeDir(tempfile::tempdir().expect("a directory").keep());
        let dev = Dev::from_raw(0x2d);
        let record = Record { mountpoint: "/mnt/v".into(), keeper_pid: 7, spec: serde_json::json!({"a": 1}) };
        dir.write(dev, &record).expect("own directory");
        let text = fs::read(dir.record(dev)).expect("written");
        let back: Record = serde_json::from_slice(&text).expect("own output");
        assert_eq!((back.mountpoint, back.keeper_pid), (record.mountpoint, 7));
        dir.clear(dev);
        assert!(!dir.record(dev).exists());
        fs::remove_dir(dir.0).expect("empty");
    }
}
