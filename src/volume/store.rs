//! The state on disk: one JSON file, replaced atomically, 0600 in a directory that one plugin at a
//! time uses.
//!
//! The file names the boot it belongs to: after a restart of the machine no volume has users. The
//! directory also holds the mount points (`volumes/NAME`). Both are 0711, because in a user
//! namespace the container's runtime reaches the volume as another user; the mount decides who may
//! read it.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::state::Volumes;
use crate::sys::files;
use crate::sys::files::ownership::by_descriptor;

/// The state.
const VOLUMES: &str = "volumes.json";
/// A thousand volumes are a tenth of this.
const LONGEST: u64 = 16 << 20;
/// The database of an embedded vault.
const VAULT: &str = "vault.db";

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It is the directory of an embedded vault, which must stay private.
    #[error("{0} holds a vault: give volumes a directory of their own with --state DIR")]
    Vault(PathBuf),
    /// Another plugin uses it.
    #[error("another volume plugin uses {0}: end it first, or give each its own --state DIR")]
    Locked(PathBuf),
    /// Not in this version's format.
    #[error("{0} cannot be understood ({1}): move it away to begin without volumes")]
    Garbled(PathBuf, serde_json::Error),
    /// It belongs to another user, which could change volumes and mount points.
    #[error("{0} belongs to user {1}: give volumes a directory of your own with --state DIR")]
    Foreign(PathBuf, u32),
    /// An error of the file system.
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

/// Reads the volumes of a state directory without using it.
pub fn volumes_in(dir: &Path) -> io::Result<Volumes> {
    let text = read(&dir.join(VOLUMES))?;
    Ok(serde_json::from_slice::<OnDisk>(&text)?.volumes)
}

/// The state, as this user or root wrote it.
fn read(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    files::open(path, None)?.read(LONGEST)
}

fn at(path: &Path) -> impl Fn(io::Error) -> StoreError {
    move |e| StoreError::Io(path.to_owned(), e)
}

/// Makes a directory, or takes one of this user's, and lets everybody pass through. Where it is,
/// without links.
fn take(path: &Path) -> Result<PathBuf, StoreError> {
    DirBuilder::new().recursive(true).mode(0o711).create(path).map_err(at(path))?;
    let (opened, real) = files::directory(path).map_err(|e| at(path)(e.into()))?;
    let opened = File::open(by_descriptor(&opened)).map_err(at(path))?;
    let owner = opened.metadata().map_err(at(path))?.uid();
    if owner != nix::unistd::geteuid().as_raw() {
        return Err(StoreError::Foreign(real, owner));
    }
    opened.set_permissions(Permissions::from_mode(0o711)).map_err(at(path))?;
    Ok(real)
}

impl Store {
    /// Takes the directory, made if it is missing, and reads what is in it. `boot` identifies this
    /// run of the machine.
    pub fn open(dir: &Path, boot: &str) -> Result<(Self, Volumes), StoreError> {
        files::check_way(dir).map_err(at(dir))?;
        if dir.join(VAULT).exists() {
            return Err(StoreError::Vault(dir.to_owned()));
        }
        // Without links: mount points are compared, as text, with the mount table.
        let dir = take(dir)?;
        take(&dir.join("volumes"))?;
        let lock = dir.join("lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&lock);
        let lock = Flock::lock(file.map_err(at(&lock))?, FlockArg::LockExclusiveNonblock)
            .map_err(|_| StoreError::Locked(dir.clone()))?;
        let store = Self { dir, boot: boot.to_owned(), _lock: lock };
        let path = store.file();
        let volumes = match read(&path) {
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
    fn a_directory_of_another_user_holds_no_state() {
        if !nix::unistd::geteuid().is_root() {
            crate::sys::stdio::say("SKIPPED: only root can give a directory away");
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        let make = |name: &str| fs::create_dir_all(at(name)).expect("own directory");
        let give = |name: &str| std::os::unix::fs::lchown(at(name), Some(1), Some(1)).expect("as root");
        let link =
            |to: &str, name: &str| std::os::unix::fs::symlink(at(to), at(name)).expect("own directory");
        make("victim");
        fs::set_permissions(at("victim"), Permissions::from_mode(0o700)).expect("own directory");
        for name in ["theirs", "own/volumes"] {
            make(name);
            give(name);
        }
        make("leads");
        for name in ["link", "leads/volumes"] {
            link("victim", name);
            give(name);
        }
        make("read");
        fs::write(at("read/volumes.json"), r#"{"boot":"b","volumes":{}}"#).expect("own directory");
        give("read/volumes.json");
        make("locked");
        link("victim/new", "locked/lock");
        for name in ["theirs", "own", "link", "leads", "read", "locked"] {
            assert!(Store::open(&at(name), "b").is_err(), "{name}");
        }
        assert_eq!(fs::metadata(at("victim")).expect("there").mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(at("victim")).expect("there").count(), 0);
        // A link of root's is root's choice.
        link("own2", "chosen");
        make("own2");
        assert_eq!(
            Store::open(&at("chosen"), "b").expect("own").0.dir,
            at("own2").canonicalize().expect("there")
        );
    }

    #[test]
    fn what_cannot_be_read_is_not_overwritten() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("volumes.json"), "{").expect("own directory");
        let said = Store::open(dir.path(), "b").expect_err("garbled").to_string();
        assert!(said.contains("move it away"), "{said}");
    }
}
