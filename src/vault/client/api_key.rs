//! The API key: held in one place, read again from its file when it may have changed.
//!
//! A key file that others can read is refused: a key in it must count as known to everyone on the
//! machine. The group may read a file that root owns (a service's key, a systemd credential).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use zeroize::Zeroize;

use crate::display::Shown;
use crate::secret::SecretString;
use crate::sys::files;
use crate::sys::files::{Opened, Stamp, Unfit};

/// A key is one line; whatever is longer than this is another file.
const MAX_KEY_BYTES: u64 = 4096;

/// Why a key cannot be used. Never holds any of it.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("cannot read the API key from {}: {source}", path.shown())]
    Unreadable {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others can read the file.
    #[error("{} can be read by others (mode {mode:04o}): {}", path.shown(), remedy(path))]
    Exposed {
        /// Its path.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A device, or a pipe that others can read: neither closes by chmod, nor is a key in it.
    #[error("{} is no regular file and holds no key: name a file with the key in it, readable by you alone", .0.shown())]
    NotAFile(PathBuf),
    /// There is nothing in it.
    #[error("the API key is empty")]
    Empty,
    /// It does not fit into an HTTP header.
    #[error("this is not an API key: a key is one line of printable ASCII characters")]
    Malformed,
}

/// What to do about a file that others can read.
fn remedy(path: &Path) -> String {
    match path.starts_with("/run/secrets") {
        true => "give the secret the mode 0400 and its reader as owner (docs/CONTAINERS.md)".to_owned(),
        false => format!("chmod 600 {}", path.shown()),
    }
}

/// Checks a key and cuts the newline that editors and `echo` leave at its end.
pub fn clean_key(mut text: String) -> Result<SecretString, KeyError> {
    let len = text.trim_end_matches(['\n', '\r']).len();
    text.truncate(len);
    let problem = if text.is_empty() {
        Some(KeyError::Empty)
    } else if !text.bytes().all(|b| b.is_ascii_graphic()) {
        Some(KeyError::Malformed)
    } else {
        None
    };
    match problem {
        None => Ok(SecretString::new(text)),
        Some(e) => {
            text.zeroize();
            Err(e)
        }
    }
}

/// Reads a key from a file that only its owner can read. `also`: a user with the same trust as
/// one's own.
pub fn read_key_file(path: &Path, also: Option<u32>) -> Result<SecretString, KeyError> {
    let unreadable = |source| KeyError::Unreadable { path: path.to_owned(), source };
    let opened = files::open(path, also).map_err(|e| match e {
        Unfit::NotRegular => KeyError::NotAFile(path.to_owned()),
        e => unreadable(e.into()),
    })?;
    is_private(&opened, path)?;
    let bytes = opened.read(MAX_KEY_BYTES).map_err(|e| match e.kind() {
        io::ErrorKind::FileTooLarge => KeyError::Malformed,
        _ => unreadable(e),
    })?;
    clean_key(std::str::from_utf8(&bytes).map_err(|_| KeyError::Malformed)?.to_owned())
}

/// Refuses a file with a key in it that others can read.
pub fn is_private(file: &Opened, path: &Path) -> Result<(), KeyError> {
    let forbidden = if file.is_roots() { 0o037 } else { 0o077 };
    match file.is_exposed(forbidden) {
        true => Err(KeyError::Exposed { path: path.to_owned(), mode: file.mode() }),
        false => Ok(()),
    }
}

/// The key that requests carry, and where a newer one may be found.
#[derive(Debug)]
pub struct ApiKey {
    current: RwLock<SecretString>,
    file: Option<PathBuf>,
    also: Option<u32>,
    /// What its file was when it was read.
    read: Mutex<Option<Stamp>>,
    changes: AtomicU64,
}

impl ApiKey {
    /// A key, and the file it came from if it came from one. `also` as for [`read_key_file`].
    pub fn new(key: SecretString, file: Option<PathBuf>, also: Option<u32>) -> Self {
        let read = Mutex::new(file.as_deref().and_then(|file| files::stamp(file, also)));
        Self { current: RwLock::new(key), file, also, read, changes: AtomicU64::new(0) }
    }

    /// The file that the key came from.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// The key of this moment.
    pub fn current(&self) -> SecretString {
        self.current.read().clone()
    }

    /// Reads the file again, on SIGHUP and after a 401. True if there is a file and the key is
    /// another now.
    pub fn reload(&self) -> Result<bool, KeyError> {
        let Some(path) = &self.file else { return Ok(false) };
        *self.read.lock() = files::stamp(path, self.also);
        let fresh = read_key_file(path, self.also)?;
        let mut current = self.current.write();
        let changed = *current != fresh;
        *current = fresh;
        if changed {
            self.changes.fetch_add(1, Ordering::Release);
        }
        Ok(changed)
    }

    /// How often another key has come into use.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Reads the file again if it was changed since it was read.
    pub fn reload_if_changed(&self) {
        let now = self.file.as_deref().and_then(|file| files::stamp(file, self.also));
        let read = *self.read.lock();
        if now != read
            && let Err(e) = self.reload()
        {
            tracing::warn!(error = %e, "the file of the API key was changed and cannot be used");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn key_file(text: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (dir, path)
    }

    #[test]
    fn newline_is_cut_and_nothing_else() {
        for text in ["sk_x\n", "sk_x\r\n", "sk_x"] {
            let (_dir, path) = key_file(text.as_bytes(), 0o600);
            assert_eq!(read_key_file(&path, None).unwrap().expose(), "sk_x");
        }
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_remedy() {
        for mode in [0o604, 0o644, 0o602, 0o660] {
            let (_dir, path) = key_file(b"sk_x", mode);
            let e = read_key_file(&path, None).unwrap_err();
            assert!(matches!(e, KeyError::Exposed { .. }), "{mode:o}: {e}");
            assert!(e.to_string().contains("chmod 600"), "{e}");
        }
    }

    #[test]
    fn what_is_no_file_holds_no_key_and_a_private_pipe_may() {
        let e = read_key_file(Path::new("/dev/null"), None).unwrap_err();
        assert!(matches!(e, KeyError::NotAFile(_)), "{e}");
        let said = e.to_string();
        assert!(said.contains("/dev/null") && said.contains("no key") && !said.contains("chmod"), "{said}");
        let (reader, mut writer) = io::pipe().unwrap();
        io::Write::write_all(&mut writer, b"sk_piped\n").unwrap();
        drop(writer);
        let path = format!("/dev/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader));
        assert_eq!(read_key_file(Path::new(&path), None).unwrap().expose(), "sk_piped");
    }

    #[test]
    fn what_is_no_key_is_refused_and_not_repeated() {
        let long = vec![b'x'; 5000];
        for text in [&b""[..], b"\n", b"two\nlines", b"sp ace", b"\xff\xfe", &long] {
            let (_dir, path) = key_file(text, 0o600);
            let e = read_key_file(&path, None).unwrap_err();
            assert!(matches!(e, KeyError::Empty | KeyError::Malformed), "{e}");
            assert!(!e.to_string().contains("two"), "{e}");
        }
        assert!(matches!(read_key_file(Path::new("/"), None), Err(KeyError::Unreadable { .. })));
        assert!(matches!(
            read_key_file(Path::new("/nonexistent/key"), None),
            Err(KeyError::Unreadable { .. })
        ));
    }

    #[test]
    fn reload_tells_whether_the_key_changed() {
        let (_dir, path) = key_file(b"sk_old\n", 0o600);
        let key = ApiKey::new(read_key_file(&path, None).unwrap(), Some(path.clone()), None);
        assert!(!key.reload().unwrap());
        fs::write(&path, "sk_new\n").unwrap();
        assert!(key.reload().unwrap());
        assert_eq!(key.current().expose(), "sk_new");
        fs::remove_file(&path).unwrap();
        assert!(key.reload().is_err());
        assert_eq!(key.current().expose(), "sk_new");
        assert!(!ApiKey::new(SecretString::new("sk_env".into()), None, None).reload().unwrap());
    }

    #[test]
    fn a_reload_takes_the_care_of_the_first_reading() {
        if !nix::unistd::geteuid().is_root() {
            crate::sys::stdio::say("SKIPPED: only root can make files of others and mount");
            return;
        }
        let (dir, path) = key_file(b"sk_old\n", 0o600);
        let at = |name: &str| dir.path().join(name);
        let key = ApiKey::new(read_key_file(&path, None).unwrap(), Some(path.clone()), None);
        let replace = |from: &str| fs::rename(at(from), &path).unwrap();
        let make = |name: &str| {
            fs::write(at(name), "sk_new\n").unwrap();
            fs::set_permissions(at(name), fs::Permissions::from_mode(0o600)).unwrap();
        };
        // Another user's file; another user's link to one's own; what others can read; a pipe
        // without a writer.
        make("theirs");
        std::os::unix::fs::chown(at("theirs"), Some(1), None).unwrap();
        make("target");
        std::os::unix::fs::symlink(at("target"), at("link")).unwrap();
        std::os::unix::fs::lchown(at("link"), Some(1), None).unwrap();
        make("open");
        fs::set_permissions(at("open"), fs::Permissions::from_mode(0o644)).unwrap();
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
        for name in ["theirs", "link", "open", "pipe"] {
            replace(name);
            key.reload_if_changed();
            assert_eq!((key.current().expose(), key.changes()), ("sk_old", 0), "{name}");
            assert!(key.reload().is_err(), "{name}");
        }
        // A file system of another user, which does not answer.
        let device = fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let data = format!(
            "fd={},rootmode=100000,user_id=1,group_id=1,allow_other",
            std::os::fd::AsRawFd::as_raw_fd(&device)
        );
        make("served");
        nix::mount::mount(
            Some("x"),
            &at("served"),
            Some("fuse"),
            nix::mount::MsFlags::MS_NOSUID,
            Some(&*data),
        )
        .unwrap();
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("served", &path).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let looking = std::thread::spawn(move || {
            key.reload_if_changed();
            sender.send(key.reload().is_err()).unwrap();
            key
        });
        let refused = receiver.recv_timeout(std::time::Duration::from_secs(60));
        // What waits for it is released.
        drop(device);
        nix::mount::umount2(&at("served"), nix::mount::MntFlags::MNT_DETACH).unwrap();
        let key = looking.join().unwrap();
        assert!(refused.expect("it does not wait"));
        fs::remove_file(&path).unwrap();
        make("own");
        replace("own");
        key.reload_if_changed();
        assert_eq!((key.current().expose(), key.changes()), ("sk_new", 1));
    }
}
