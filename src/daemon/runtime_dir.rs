//! The directory by which commands find a user's mounts: one control socket and one record a mount.
//!
//! `DIR/vaultfs` of `--runtime-dir DIR`; else the first of `/run/vaultfs` (root's),
//! `$XDG_RUNTIME_DIR/vaultfs`, `/run/user/UID/vaultfs` and `/tmp/vaultfs-UID` that can be used. It
//! is 0700 and is checked each time, and held open ([`trust::Directory`]), because any user may
//! make a directory in /tmp. Files are named by the mount's device number, and by the keeper: the
//! kernel uses the number again as soon as a mount is gone, when its keeper may still be busy
//! ending, and each keeper removes only what is its own. A record holds no secret; it may be stale
//! after a crash, so a live keeper is one with the number *and* the start time that its record
//! says.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::unistd::AccessFlags;
use serde::{Deserialize, Serialize};

use crate::daemon::control::Client;
use crate::daemon::keeper;
use crate::display::Shown;
use crate::fs::Unsaved;
use crate::sys::mount_table::Dev;
use crate::sys::process;
use crate::sys::process::Process;
use crate::sys::trust;
use crate::sys::trust::Directory;

/// A keeper's record of its mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The keeper.
    pub keeper_pid: u32,
    /// Its start time, which with its number identifies the process. Keepers of older versions
    /// leave it out.
    #[serde(default)]
    pub keeper_started: Option<u64>,
    /// Which vault: the connection's description, without any secret.
    pub spec: serde_json::Value,
    /// Where its log is, for people.
    #[serde(default)]
    pub log: String,
    /// Why everything on the mount fails, if the keeper has given up.
    #[serde(default)]
    pub broken: Option<String>,
    /// Unsaved writes of a mount without a worker.
    #[serde(default)]
    pub unsaved: Option<Vec<Unsaved>>,
}

/// A checked runtime directory.
#[derive(Debug, Clone)]
pub struct RuntimeDir(Arc<Directory>);

/// `--runtime-dir`.
static GIVEN: OnceLock<PathBuf> = OnceLock::new();
/// Limit of names that are read: another user may have made many to delay commands.
const MOST_NAMES: usize = 10_000;
/// Limit of records of another user's mount; there is one, or two while it is replaced.
const MOST_OF_OTHERS: usize = 4;
/// Timeout for identifying a listener.
const LISTENS: Duration = Duration::from_secs(1);

/// Takes `DIR/vaultfs` first of all, and makes sockets nowhere else.
pub fn prefer(dir: &Path) {
    let _ = GIVEN.set(dir.join("vaultfs"));
}

impl RuntimeDir {
    /// This user's directory, made if it is missing.
    pub fn own() -> io::Result<Self> {
        let mut tried = Vec::new();
        let places = GIVEN.get().map_or_else(|| candidates(trust::own()), |given| vec![given.clone()]);
        for path in places {
            let made = Directory::make(&path, trust::own()).and_then(|directory| {
                // On a read-only file system it may be there.
                nix::unistd::eaccess(&directory.entry("."), AccessFlags::W_OK)?;
                Ok(Self(Arc::new(directory)))
            });
            match made {
                Ok(directory) => return Ok(directory),
                Err(e) => tried.push(format!("{}: {e}", path.shown())),
            }
        }
        let next = "give --runtime-dir DIR, or set XDG_RUNTIME_DIR, to a directory of this user's that can be written";
        Err(io::Error::other(format!("{}; {next}", tried.join("; "))))
    }

    /// Makes the control socket of a mount, in this user's directory.
    pub fn listen(dev: Dev, keeper: u32) -> io::Result<(Self, UnixListener)> {
        let mut tries = 0;
        loop {
            let dir = Self::own()?;
            dir.clear_stale();
            // Of the same keeper's from before, where there is one.
            let socket = dir.0.entry(&socket(dev, keeper));
            let _ = fs::remove_file(&socket);
            match UnixListener::bind(&socket) {
                Ok(listener) => return Ok((dir, listener)),
                // The last mount that ended has just removed the directory.
                Err(e) if e.kind() == io::ErrorKind::NotFound && tries < 10 => tries += 1,
                Err(e) => return Err(e),
            }
        }
    }

    /// Writes a mount's record, whole or not at all.
    pub fn write(&self, dev: Dev, record: &Record) -> io::Result<()> {
        let temporary = self.0.entry(&format!("{dev}.{}.new", record.keeper_pid));
        let write = || {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(&serde_json::to_vec(record)?)?;
            fs::rename(&temporary, self.0.entry(&name(dev, record.keeper_pid)))
        };
        // A full disk: the file is there, and nothing in it.
        write().inspect_err(|_| drop(fs::remove_file(&temporary)))
    }

    /// Removes what a keeper made for a mount.
    pub fn clear(&self, dev: Dev, keeper: u32) {
        let _ = fs::remove_file(self.0.entry(&name(dev, keeper)));
        let _ = fs::remove_file(self.0.entry(&socket(dev, keeper)));
    }

    /// The same, and the directory if that was all: no mount of this user's is left.
    pub fn leave(&self, dev: Dev, keeper: u32) {
        self.clear(dev, keeper);
        self.tidy();
    }

    /// Removes the directory if nothing is in it.
    pub fn tidy(&self) {
        let _ = fs::remove_dir(self.0.path());
    }

    /// Removes what keepers left that died.
    pub fn clear_stale(&self) {
        for (dev, keeper) in self.keepers(None) {
            let record = self.read(dev, keeper);
            // One that has just mounted has no record yet.
            let lives = match &record {
                Some((record, _)) => self.keeper(dev, record).is_some(),
                None => Process::open(keeper, trust::own()).is_some(),
            };
            if !lives {
                self.clear(dev, keeper);
            }
        }
    }

    /// What the names in the directory say, of one mount or of all. The file systems of their files
    /// are not asked.
    fn keepers(&self, of: Option<Dev>) -> Vec<(Dev, u32)> {
        let parse = |name: String| {
            let mut parts = name.split('.');
            Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
        };
        let mut found: Vec<_> = self.0.names(MOST_NAMES).into_iter().filter_map(parse).collect();
        found.retain(|(dev, _)| of.is_none_or(|of| of == *dev));
        found.sort_unstable();
        found.dedup();
        found
    }

    /// What a keeper wrote, and when.
    fn read(&self, dev: Dev, keeper: u32) -> Option<(Record, std::time::SystemTime)> {
        let (text, written) = self.0.read(&name(dev, keeper)).ok()?;
        let record: Record = serde_json::from_slice(&text).ok()?;
        (record.keeper_pid == keeper).then_some((record, written))
    }

    /// The keeper that wrote a record, if it lives: not whatever has its number by now.
    fn keeper(&self, dev: Dev, record: &Record) -> Option<Process> {
        let process = Process::open(record.keeper_pid, self.0.owner())?;
        let wrote = match record.keeper_started {
            Some(at) => process.started() == Some(at),
            None => {
                let peer = self.0.connect(&socket(dev, process.pid()), LISTENS).and_then(|s| trust::peer(&s));
                peer.is_ok_and(|peer| peer == process.pid())
            }
        };
        wrote.then_some(process)
    }
}

fn socket(dev: Dev, keeper: u32) -> String {
    format!("{dev}.{keeper}.sock")
}

fn name(dev: Dev, keeper: u32) -> String {
    format!("{dev}.{keeper}.json")
}

impl Record {
    /// Of this process, which keeps the mount.
    pub fn of_this_keeper(mountpoint: PathBuf, spec: serde_json::Value, log: String) -> Self {
        let keeper_pid = std::process::id();
        let keeper_started = process::started(keeper_pid);
        Self { mountpoint, keeper_pid, keeper_started, spec, log, broken: None, unsaved: None }
    }
}

/// The files of a keeper in a runtime directory.
#[derive(Debug, Clone)]
pub struct Found {
    /// Where.
    pub dir: RuntimeDir,
    /// Of which mount.
    pub dev: Dev,
    /// What it wrote.
    pub record: Record,
    /// The keeper, if it lives.
    pub keeper: Option<Arc<Process>>,
}

impl Found {
    /// Connects to the worker.
    pub fn connect(&self, within: Duration) -> io::Result<Client> {
        let stream = self.dir.0.connect(&socket(self.dev, self.record.keeper_pid), within)?;
        Ok(Client::new(stream, trust::longest(self.dir.0.owner())))
    }

    /// Its owner.
    pub fn owner(&self) -> u32 {
        self.dir.0.owner()
    }
}

/// What keepers of user `uid` left, of one mount or of all. The latest last.
pub fn find(uid: u32, of: Option<Dev>) -> Vec<Found> {
    let mut found = Vec::new();
    let mut places = candidates(uid);
    let given = if uid == trust::own() { given_to_keepers() } else { Vec::new() };
    for given in GIVEN.get().cloned().into_iter().chain(given) {
        if !places.contains(&given) {
            places.insert(0, given);
        }
    }
    for path in places {
        let Ok(directory) = Directory::open(&path, uid) else { continue };
        let dir = RuntimeDir(Arc::new(directory));
        let mut keepers = dir.keepers(of);
        if uid != trust::own() {
            keepers.truncate(MOST_OF_OTHERS);
        }
        let mut here: Vec<_> = keepers
            .into_iter()
            .filter_map(|(dev, keeper)| dir.read(dev, keeper).map(|(record, at)| (dev, record, at)))
            .collect();
        here.sort_by_key(|(_, _, written)| *written);
        found.extend(here.into_iter().map(|(dev, record, _)| {
            let keeper = dir.keeper(dev, &record).map(Arc::new);
            Found { dir: dir.clone(), dev, record, keeper }
        }));
    }
    found
}

/// What this user's running keepers were given with `--runtime-dir`, which not every command has
/// (umount(8)'s).
fn given_to_keepers() -> Vec<PathBuf> {
    let own = process::all().filter_map(|pid| Process::open(pid, trust::own()));
    let keepers = own.filter(|process| process.is_called(keeper::NAME));
    keepers.filter_map(|process| Some(process.argument(keeper::RUNTIME_DIR)?.join("vaultfs"))).collect()
}

/// XDG_RUNTIME_DIR.
fn named_by_environment() -> Option<PathBuf> {
    std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute())
}

/// XDG_RUNTIME_DIR, where a mount's socket comes there and commands without that variable would not
/// look there.
pub fn known_by_environment_alone() -> Option<PathBuf> {
    let named = named_by_environment()?;
    let usual = Path::new("/run/user").join(trust::own().to_string());
    (named != usual && RuntimeDir::own().ok()?.0.path() == named.join("vaultfs")).then_some(named)
}

/// Where the runtime directory of `uid` may be, best first.
fn candidates(uid: u32) -> Vec<PathBuf> {
    let mut places = Vec::new();
    if uid == 0 {
        places.push(PathBuf::from("/run/vaultfs"));
    }
    let named = named_by_environment().filter(|_| uid == trust::own());
    places.extend(named.map(|path| path.join("vaultfs")));
    places.push(PathBuf::from(format!("/run/user/{uid}/vaultfs")));
    places.push(PathBuf::from(format!("/tmp/vaultfs-{uid}")));
    places.dedup();
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> (tempfile::TempDir, RuntimeDir) {
        let dir = tempfile::tempdir().expect("a directory");
        let made = Directory::make(&dir.path().join("vaultfs"), trust::own()).expect("own directory");
        (dir, RuntimeDir(Arc::new(made)))
    }

    fn record(keeper_pid: u32) -> Record {
        Record {
            keeper_pid,
            ..Record::of_this_keeper("/mnt/v".into(), serde_json::json!({"a": 1}), String::new())
        }
    }

    #[test]
    fn a_record_that_cannot_be_written_leaves_nothing() {
        let (_parent, dir) = directory();
        let dev = Dev::from_raw(0x2d);
        fs::create_dir_all(dir.0.entry(&name(dev, 7)).join("in the way")).expect("own directory");
        assert!(dir.write(dev, &record(7)).is_err());
        assert_eq!(dir.0.names(9).len(), 1, "only what was there");
    }

    #[test]
    fn records_come_back() {
        let (_parent, dir) = directory();
        let dev = Dev::from_raw(0x2d);
        dir.write(dev, &record(7)).expect("own directory");
        assert_eq!(dir.keepers(Some(dev)), [(dev, 7)]);
        assert_eq!(dir.keepers(Some(Dev::from_raw(0x2e))), []);
        let (back, _) = dir.read(dev, 7).expect("own output");
        assert_eq!((back.mountpoint, back.keeper_pid), ("/mnt/v".into(), 7));
        dir.clear(dev, 8);
        assert!(dir.read(dev, 7).is_some(), "another keeper's");
        dir.leave(dev, 8);
        assert!(dir.read(dev, 7).is_some(), "another keeper's");
        dir.leave(dev, 7);
        assert!(!dir.0.path().exists(), "the last one tidies up");
    }

    #[test]
    fn a_number_that_another_process_has_is_no_keeper() {
        let (_parent, dir) = directory();
        let dev = Dev::from_raw(0x2d);
        let own = std::process::id();
        assert!(dir.keeper(dev, &record(own)).is_some());
        let later = Record { keeper_started: process::started(own).map(|at| at + 1), ..record(own) };
        assert!(dir.keeper(dev, &later).is_none());
        let older = Record { keeper_started: None, ..record(own) };
        assert!(dir.keeper(dev, &older).is_none(), "nobody listens");
        let _listener = UnixListener::bind(dir.0.entry(&socket(dev, own))).expect("own directory");
        assert!(dir.keeper(dev, &older).is_some(), "an older version's");
        assert!(dir.keeper(dev, &record(u32::MAX)).is_none());
        dir.write(dev, &later).expect("own directory");
        dir.clear_stale();
        assert!(dir.read(dev, own).is_none());
    }
}
