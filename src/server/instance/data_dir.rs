//! A vault's directory: ours alone, locked by the one process that serves it.
//!
//! ```text
//! DIR/           0700
//!   lock         held with flock(2) by the process that serves
//!   vault.db     the database (and its -wal, -shm)
//!   master-key   opens what the database holds, unless another file was named
//!   api-key      an API key with all permissions, made at the first start
//!   vault.sock   the Unix socket, while someone serves
//! ```
//! only the holder of the lock makes, replaces and removes vault.sock.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{AccessFlags, access, geteuid};

use crate::secret::SecretString;
use crate::server::error::ServeError;
use crate::server::store::sqlite::schema::APPLICATION_ID;
use crate::sys::files;
use crate::sys::files::ownership::by_descriptor;
use crate::sys::files::{Opened, Unfit};

/// What a start opens or trusts, if it is there.
const FILES: [&str; 6] = ["lock", "vault.db", "vault.db-wal", "vault.db-shm", "master-key", "api-key"];
/// What else a start may leave.
const LEFT: [&str; 4] = ["vault.sock", "vault.db-journal", "master-key.partial", "api-key.partial"];
/// Where SQLite's header has the application id, big endian (sqlite.org/fileformat2.html).
const APPLICATION_ID_AT: usize = 68;
/// Longest path a Unix socket's address holds.
const MAX_SOCKET_PATH: usize = 107;
/// No key file is longer; what is longer was named by mistake.
const MAX_KEY_FILE: u64 = 4096;
/// The largest RSA keys in use take a fifth of this.
const MAX_TLS_KEY_FILE: u64 = 65536;

/// A directory that is ours and that no other user can enter.
#[derive(Debug, Clone)]
pub struct DataDir {
    path: PathBuf,
}

/// The right to serve the directory; given up when dropped or when the process ends.
#[derive(Debug)]
pub struct DirLock {
    _file: Flock<File>,
}

impl DataDir {
    /// Makes the directory, or takes an existing one that is empty or a vault's, and tightens its
    /// mode. Any other content stays as it is.
    pub fn prepare(path: &Path) -> Result<Self, ServeError> {
        let failed = |what| ServeError::io(what, path);
        files::check_way(path).map_err(failed("cannot open directory"))?;
        if fs::metadata(path).is_ok_and(|meta| !meta.is_dir()) {
            return Err(ServeError::NotADirectory(path.to_owned()));
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed("cannot make directory"))?;
        let (dir, opened, meta) = Self::checked(path)?;
        if meta.mode() & 0o7777 != 0o700 {
            opened
                .set_permissions(Permissions::from_mode(0o700))
                .map_err(ServeError::io("cannot set the mode of directory", &dir.path))?;
        }
        dir.is_all_ours(&meta)?;
        Ok(dir)
    }

    /// The checks of [`DataDir::prepare`] alone; `None` if the directory does not exist and could
    /// be made.
    pub fn existing(path: &Path) -> Result<Option<Self>, ServeError> {
        files::check_way(path).map_err(ServeError::io("cannot open directory", path))?;
        match fs::metadata(path) {
            Ok(meta) if !meta.is_dir() => return Err(ServeError::NotADirectory(path.to_owned())),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let parent = path.ancestors().skip(1).find(|parent| parent.exists());
                let parent = parent.filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let may = access(parent, AccessFlags::W_OK | AccessFlags::X_OK);
                return may
                    .map(|()| None)
                    .map_err(|e| ServeError::io("cannot make directory", path)(e.into()));
            }
            Err(e) => return Err(ServeError::io("cannot open directory", path)(e)),
        }
        let (dir, _, meta) = Self::checked(path)?;
        dir.is_all_ours(&meta)?;
        Ok(Some(dir))
    }

    /// A directory of ours for a vault, open so that what was checked is what is tightened.
    fn checked(path: &Path) -> Result<(Self, File, fs::Metadata), ServeError> {
        let (dir, path) =
            files::directory(path).map_err(|e| ServeError::io("cannot open directory", path)(e.into()))?;
        let dir = File::open(by_descriptor(&dir)).map_err(ServeError::io("cannot open directory", &path))?;
        let meta = dir.metadata().map_err(ServeError::io("cannot open directory", &path))?;
        if meta.uid() != geteuid().as_raw() {
            return Err(ServeError::ForeignDirectory { path, owner: meta.uid() });
        }
        if !is_for_a_vault(&path).map_err(ServeError::io("cannot read directory", &path))? {
            return Err(ServeError::NotAVault(path));
        }
        Ok((Self { path }, dir, meta))
    }

    /// It may have been open to others until now: a key or a database that they left is not ours.
    fn is_all_ours(&self, meta: &fs::Metadata) -> Result<(), ServeError> {
        for file in FILES.map(|name| self.path.join(name)) {
            let owner = fs::symlink_metadata(&file).map_or(meta.uid(), |file| file.uid());
            if owner != meta.uid() {
                return Err(ServeError::ForeignDirectory { path: file, owner });
            }
        }
        if self.socket().as_os_str().len() > MAX_SOCKET_PATH {
            return Err(ServeError::PathTooLong(self.socket()));
        }
        Ok(())
    }

    /// Takes the lock; `None` if another process has it.
    pub fn try_lock(&self) -> Result<Option<DirLock>, ServeError> {
        let path = self.path.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .map_err(ServeError::io("cannot open", &path))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Some(DirLock { _file: file })),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, e)) => Err(ServeError::io("cannot lock", path)(e.into())),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The database.
    pub fn database(&self) -> PathBuf {
        self.path.join("vault.db")
    }

    /// The Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.path.join("vault.sock")
    }

    /// The API key made at the first start.
    pub fn key_file(&self) -> PathBuf {
        self.path.join("api-key")
    }

    /// The master key, unless another file was named.
    pub fn master_key_file(&self) -> PathBuf {
        self.path.join("master-key")
    }

    /// Puts a secret into a file of the directory: whole or not at all, 0600, on disk when this
    /// returns.
    pub fn write_secret(&self, path: &Path, text: &SecretString) -> Result<(), ServeError> {
        let failed = |what| ServeError::io(what, path);
        let partial = path.with_extension("partial");
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&partial)
            .map_err(failed("cannot make"))?;
        // A key belongs in its 0600 file and nowhere else.
        file.write_all(text.expose().as_bytes()).map_err(failed("cannot write"))?;
        file.sync_all().map_err(failed("cannot write"))?;
        fs::rename(&partial, path).map_err(failed("cannot make"))?;
        File::open(&self.path).and_then(|dir| dir.sync_all()).map_err(failed("cannot write"))
    }
}

/// Whether a directory is empty, is a vault's already, or holds nothing but what a start that did
/// not get far leaves: what else there is must not be closed to others, nor get a vault's files.
fn is_for_a_vault(dir: &Path) -> io::Result<bool> {
    // The database first: a process that makes one has made the lock before it.
    let database = fs::metadata(dir.join("vault.db")).is_ok_and(|meta| meta.len() > 0);
    let names =
        fs::read_dir(dir)?.map(|entry| entry.map(|e| e.file_name())).collect::<io::Result<Vec<_>>>()?;
    let has = |name: &str| names.iter().any(|n| n == name);
    if has("lock") && (database || has("master-key")) || is_our_database(&dir.join("vault.db")) {
        return Ok(true);
    }
    let own = |name: &OsString| name.to_str().is_some_and(|n| FILES.contains(&n) || LEFT.contains(&n));
    Ok(!database && names.iter().all(own))
}

/// Whether `dir` has a vault's database. What cannot be looked at may be one: the use of it fails.
pub fn has_vault(dir: &Path) -> bool {
    match files::check_way(dir).and_then(|()| fs::metadata(dir.join("vault.db"))) {
        Ok(meta) => meta.len() > 0,
        Err(e) => e.kind() != ErrorKind::NotFound,
    }
}

/// Whether the file is a database that says in its header that it is a vault's.
fn is_our_database(path: &Path) -> bool {
    let mut header = [0; APPLICATION_ID_AT + 4];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut header));
    let id = header.last_chunk().map(|id| i32::from_be_bytes(*id));
    read.is_ok() && header.starts_with(b"SQLite format 3\0") && id == Some(APPLICATION_ID)
}

/// Why a secret file was not read.
#[derive(Debug)]
pub enum SecretFileError {
    /// There is none.
    Missing,
    /// Others can read it.
    TooOpen,
    /// Not a short text file.
    NotText,
    /// The operating system refused.
    Io(io::Error),
}

/// Reads a short secret text from a file that only its owner can read.
pub fn read_secret(path: &Path) -> Result<SecretString, SecretFileError> {
    read(path, MAX_KEY_FILE, |_| 0o077)
}

/// Reads a credential of systemd's, which lets its service in by an access list: that shows in the
/// group's bits.
pub fn read_credential(path: &Path) -> Result<SecretString, SecretFileError> {
    read(path, MAX_KEY_FILE, |_| 0o037)
}

/// Reads the private key of a certificate. The group may read one that root owns, as distributions
/// keep them.
pub fn read_tls_key(path: &Path) -> Result<SecretString, SecretFileError> {
    read(path, MAX_TLS_KEY_FILE, |file| if file.is_roots() { 0o037 } else { 0o077 })
}

fn read(path: &Path, max: u64, forbidden: impl Fn(&Opened) -> u32) -> Result<SecretString, SecretFileError> {
    let file = files::open(path, None).map_err(|e| match e {
        // A device holds no key, and no mode helps.
        Unfit::NotRegular => SecretFileError::NotText,
        Unfit::Io(e) if e.kind() == ErrorKind::NotFound => SecretFileError::Missing,
        e => SecretFileError::Io(e.into()),
    })?;
    if file.is_exposed(forbidden(&file)) {
        return Err(SecretFileError::TooOpen);
    }
    let bytes = file.read(max).map_err(|e| match e.kind() {
        ErrorKind::FileTooLarge => SecretFileError::NotText,
        _ => SecretFileError::Io(e),
    })?;
    let text = std::str::from_utf8(&bytes).map_err(|_| SecretFileError::NotText)?;
    Ok(SecretString::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_directory_is_made_or_tightened() {
        let temp = tempfile::tempdir().unwrap();
        let fresh = temp.path().join("a/b");
        DataDir::prepare(&fresh).unwrap();
        assert_eq!(mode(&fresh), 0o700);

        let open = temp.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, Permissions::from_mode(0o755)).unwrap();
        DataDir::prepare(&open).unwrap();
        assert_eq!(mode(&open), 0o700);
    }

    #[test]
    fn what_cannot_be_a_vaults_directory_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(DataDir::prepare(&file), Err(ServeError::NotADirectory(_))));
        let long = temp.path().join("x".repeat(120));
        assert!(matches!(DataDir::prepare(&long), Err(ServeError::PathTooLong(_))));
        // Whoever runs the tests, one of these two is not theirs.
        if geteuid().is_root() {
            let other = temp.path().join("other");
            fs::create_dir(&other).unwrap();
            std::os::unix::fs::chown(&other, Some(12345), None).unwrap();
            assert!(matches!(
                DataDir::prepare(&other),
                Err(ServeError::ForeignDirectory { owner: 12345, .. })
            ));
            let planted = temp.path().join("planted");
            fs::create_dir(&planted).unwrap();
            fs::write(planted.join("master-key"), "x").unwrap();
            std::os::unix::fs::chown(planted.join("master-key"), Some(12345), None).unwrap();
            assert!(matches!(
                DataDir::prepare(&planted),
                Err(ServeError::ForeignDirectory { owner: 12345, .. })
            ));
        } else {
            assert!(matches!(
                DataDir::prepare(Path::new("/usr")),
                Err(ServeError::ForeignDirectory { owner: 0, .. })
            ));
        }
    }

    #[test]
    fn a_directory_with_other_things_in_it_is_refused_and_left_as_it_is() {
        let temp = tempfile::tempdir().unwrap();
        for files in [
            &["letter"][..],
            &["lock", "letter"],
            &["master-key", "letter"],
            &["vault.db"],
            &["vault.db", "master-key"],
        ] {
            let dir = temp.path().join(files.join("-"));
            fs::create_dir(&dir).unwrap();
            for file in files {
                fs::write(dir.join(file), "SQLite format 3\0 of somebody else").unwrap();
            }
            fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
            let refused = DataDir::prepare(&dir).unwrap_err();
            assert!(matches!(&refused, ServeError::NotAVault(path) if path.ends_with(files.join("-"))));
            assert_eq!(mode(&dir), 0o755);
            assert_eq!(fs::read_dir(&dir).unwrap().count(), files.len());
        }
    }

    #[test]
    fn a_vaults_directory_is_known_by_its_files() {
        let temp = tempfile::tempdir().unwrap();
        let mut database = vec![0; 4096];
        database[..16].copy_from_slice(b"SQLite format 3\0");
        database[APPLICATION_ID_AT..][..4].copy_from_slice(&APPLICATION_ID.to_be_bytes());
        for files in [
            &["lock", "master-key", "notes"][..],
            &["lock", "vault.db", "notes"],
            // A backup that was put back.
            &["vault.db", "notes"],
            // A start that was interrupted.
            &["lock"],
            &["lock", "master-key.partial"],
            &["vault.sock"],
        ] {
            let dir = temp.path().join(files.join("-"));
            fs::create_dir(&dir).unwrap();
            for file in files {
                fs::write(dir.join(file), &database).unwrap();
            }
            DataDir::prepare(&dir).unwrap();
            assert_eq!(mode(&dir), 0o700);
        }
    }

    #[test]
    fn one_lock_at_a_time() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::prepare(temp.path()).unwrap();
        let lock = dir.try_lock().unwrap().unwrap();
        assert!(dir.try_lock().unwrap().is_none());
        drop(lock);
        assert!(dir.try_lock().unwrap().is_some());
    }

    #[test]
    fn secrets_are_private_whole_and_refused_when_open() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::prepare(temp.path()).unwrap();
        let path = dir.key_file();
        assert!(matches!(read_secret(&path), Err(SecretFileError::Missing)));
        dir.write_secret(&path, &SecretString::new("sk_made_for_a_test\n".into())).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(read_secret(&path).unwrap().expose(), "sk_made_for_a_test\n");
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(read_secret(&path), Err(SecretFileError::TooOpen)));
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, [0xff]).unwrap();
        assert!(matches!(read_secret(&path), Err(SecretFileError::NotText)));
        assert!(matches!(read_secret(Path::new("/dev/null")), Err(SecretFileError::NotText)));
    }
}
