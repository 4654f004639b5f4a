//! The state on disk: one JSON file, replaced whole, 0600 in a directory that one plugin at a time uses.
//!
//! With it goes the boot it belongs to: after a restart of the machine no mount and no container is left, so nobody
//! uses anything. The directory also holds the mount points (`volumes/NAME`). It and they can be passed through by
//! everybody (0711), because in a user namespace the container's runtime walks to the volume as another user; what is
//! in a volume is decided by the mount.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::state::Volumes;

/// The state.
const VOLUMES: &str = "volumes.json";
/// The database of an embedded vault.
const VAULT: &str = "vault.db";

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It is the directory of an embedded vault, which nobody else may enter.
    #[error("{0} holds a vault: give volumes a directory of their own with --state DIR")]
    Vault(PathBuf),
    /// Another plugin has it.
    #[error("another volume plugin uses {0}: end it first, or give each its own --state DIR")]
    Locked(PathBuf),
    /// Not what this version writes.
    #[error("{0} cannot be understood ({1}): move it away to begin without volumes")]
    Garbled(PathBuf, serde_json::Error),
    /// The file system says no.
    #[error("{0}: {1}: choose a directory that you can write to with --state DIR")]
    Io(PathBuf, io::Error),
}

/// A state directory in use.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    boot: String,
    /// Held for the life of the plugin.
    _lock: Flock<File>,
}

#[derive(Serialize, Deserialize)]
struct OnDisk {
    boot: String,
    volumes: Volumes,
}

/// What is remembered in a state directory, whoever uses it.
pub fn volumes_in(dir: &Path) -> io::Result<Volumes> {
    let text = fs::read(dir.join(VOLUMES))?;
    Ok(serde_json::from_slice::<OnDisk>(&text)?.volumes)
}

impl Store {
    /// Takes the directory, made if it is missing, and reads what is in it. `boot` identifies this run of the machine.
    pub fn open(dir: &Path, boot: &str) -> Result<(Self, Volumes), StoreError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |e: io::Error| StoreError::Io(path, e)
        };
        if dir.join(VAULT).exists() {
            return Err(StoreError::Vault(dir.to_owned()));
        }
        for path in [dir.to_owned(), dir.join("volumes")] {
            DirBuilder::new().recursive(true).mode(0o711).create(&path).map_err(at(&path))?;
            fs::set_permissions(&path, Permissions::from_mode(0o711)).map_err(at(&path))?;
        }
        // Without links: mount points are compared, as text, with the mount table.
        let dir = fs::canonicalize(dir).map_err(at(dir))?;
        let lock = dir.join("lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock);
        let lock = Flock::lock(file.map_err(at(&lock))?, FlockArg::LockExclusiveNonblock)
            .map_err(|_| StoreError::Locked(dir.clone()))?;
        let store = Self { dir, boot: boot.to_owned(), _lock: lock };
        let path = store.file();
        let volumes = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Volumes::default(),
            Err(e) => return Err(StoreError::Io(path, e)),
            Ok(text) => {
                let OnDisk { boot, mut volumes } =
                    serde_json::from_slice(&text).map_err(|e| StoreError::Garbled(path, e))?;
                if boot != store.boot {
                    volumes.forget_users();
                }
                volumes
            }
        };
        Ok((store, volumes))
    }

    /// Writes the state; it is on disk when this returns.
    pub fn save(&self, volumes: &Volumes) -> io::Result<()> {
        let text = serde_json::to_vec(&OnDisk { boot: self.boot.clone(), volumes: volumes.clone() })?;
        let new = self.dir.join("volumes.json.new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, self.file())?;
        File::open(&self.dir)?.sync_all()
    }

    /// Where a volume is mounted.
    pub fn mountpoint(&self, name: &str) -> PathBuf {
        self.dir.join("volumes").join(name)
    }

    /// The mount points that are there.
    pub fn mountpoints(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.join("volumes")).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    fn file(&self) -> PathBuf {
        self.dir.join(VOLUMES)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn volumes_come_back_and_users_only_within_one_boot() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path().join("state");
        let (store, mut volumes) = Store::open(&dir, "boot 1").expect("made");
        assert!(matches!(Store::open(&dir, "boot 1"), Err(StoreError::Locked(_))));
        volumes.create("v", &Default::default(), 7).expect("new");
        volumes.acquire("v", "id").expect("there");
        store.save(&volumes).expect("written");
        let mode = |path: &Path| fs::metadata(path).expect("there").mode() & 0o777;
        assert_eq!((mode(&store.file()), mode(&dir)), (0o600, 0o711));
        drop(store);

        let (store, back) = Store::open(&dir, "boot 1").expect("there");
        assert_eq!(back, volumes);
        drop(store);
        let (_, back) = Store::open(&dir, "boot 2").expect("there");
        assert!(back.get("v").expect("remembered").users.is_empty());
    }

    #[test]
    fn a_vault_keeps_its_directory_to_itself() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("vault.db"), "").expect("own directory");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).expect("own directory");
        let said = Store::open(dir.path(), "b").expect_err("refused").to_string();
        assert!(said.contains("holds a vault") && said.contains("--state DIR"), "{said}");
        let mode = fs::metadata(dir.path()).expect("there").mode() & 0o777;
        assert_eq!((mode, dir.path().join("lock").exists()), (0o700, false), "untouched");
    }

    #[test]
    fn what_cannot_be_read_is_not_overwritten() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("volumes.json"), "{").expect("own directory");
        let said = Store::open(dir.path(), "b").expect_err("garbled").to_string();
        assert!(said.contains("move it away"), "{said}");
    }
}
