//! The files that connections are secured with, read again when they are renewed: on SIGHUP, and
//! after a connection that failed for its certificates, once for each state of the files. Unusable
//! files are reported, and what was read before stays. A client's own certificate would be one more
//! file here.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use crate::display::Shown;
use crate::sys::files;
use crate::sys::files::Stamp;
use crate::vault::client::{Target, client};
use crate::vault::{Error, ErrorKind, Result};

/// A system's whole list of authorities is a twentieth of this.
const MAX_BYTES: u64 = 4 << 20;

/// A service's address may lead to another server meanwhile, while the old one goes on answering.
const MAX_AGE: Duration = Duration::from_secs(300);

/// What files hold at a time.
#[derive(Debug, Clone, Default)]
pub struct Material {
    /// Certificates to trust besides the system's, as PEM.
    pub more_roots: Option<Vec<u8>>,
    /// Counts the times that it was renewed.
    pub generation: u64,
}

/// The files, and what was last read from them.
#[derive(Debug, Default)]
pub struct TlsFiles {
    ca_file: Option<PathBuf>,
    /// Another user with trusted files.
    also: Option<u32>,
    current: Mutex<Current>,
}

#[derive(Debug, Default)]
struct Current {
    material: Material,
    /// The file that was read last, whether it could be used or not.
    seen: Option<Stamp>,
}

impl TlsFiles {
    /// Reads the file of `--ca-file`, if there is one; files of `also` are as good as one's own.
    /// Whether it holds certificates is seen when they are used.
    pub fn read(ca_file: Option<&Path>, also: Option<u32>) -> io::Result<Self> {
        let Some(path) = ca_file else { return Ok(Self::default()) };
        let (pem, seen) = read(path, also)?;
        let material = Material { more_roots: Some(pem), generation: 0 };
        let current = Mutex::new(Current { material, seen });
        Ok(Self { ca_file: Some(path.to_owned()), also, current })
    }

    /// The same, without certificates of its own until the file can be used: it is read again when
    /// it is another one.
    pub fn read_if_usable(ca_file: Option<&Path>, also: Option<u32>) -> Self {
        let files = Self { ca_file: ca_file.map(Path::to_owned), also, current: Mutex::default() };
        files.reload_and_log();
        files
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock()
    }

    /// What was read last that could be used.
    pub fn material(&self) -> Material {
        self.lock().material.clone()
    }

    /// Counts the times that it was renewed.
    pub fn generation(&self) -> u64 {
        self.lock().material.generation
    }

    /// Whether what was read can be used.
    pub fn check(&self) -> Result<()> {
        self.lock().material.more_roots.as_deref().map_or(Ok(()), |pem| certificates(pem).map(drop))
    }

    /// Reads the files again. True if they hold something else than before.
    ///
    /// # Errors
    /// Where a file cannot be used; what was read before stays.
    pub fn reload(&self) -> Result<bool> {
        let Some(path) = &self.ca_file else { return Ok(false) };
        let broken = |e: &dyn std::fmt::Display| {
            Error::new(ErrorKind::Invalid, format!("--ca-file {}: {e}", path.shown()))
        };
        // A pipe has nothing to give a second time.
        let is_pipe = files::metadata(path, self.also).is_ok_and(|meta| meta.file_type().is_fifo());
        let read = if is_pipe { Ok(None) } else { read(path, self.also).map(Some) };
        let mut current = self.lock();
        let (pem, seen) = match read {
            Ok(Some(read)) => read,
            Ok(None) => return Ok(false),
            Err(e) => {
                current.seen = files::stamp(path, self.also);
                return Err(broken(&e));
            }
        };
        current.seen = seen;
        if current.material.more_roots.as_ref() == Some(&pem) {
            return Ok(false);
        }
        certificates(&pem)?;
        let generation = current.material.generation + 1;
        current.material = Material { more_roots: Some(pem), generation };
        Ok(true)
    }

    /// Reads the files again if they have changed, and logs it. True if their content is new.
    pub fn reload_if_renewed(&self) -> bool {
        let Some(path) = &self.ca_file else { return false };
        if files::stamp(path, self.also) == self.lock().seen {
            return false;
        }
        self.reload_and_log()
    }

    /// Reads the files again, and logs the outcome. True if their content is new.
    pub fn reload_and_log(&self) -> bool {
        let renewed = self.reload();
        match &renewed {
            Ok(true) => tracing::info!("the file of --ca-file was renewed: using its certificates"),
            Ok(false) => {}
            Err(e) => tracing::error!("the certificates cannot be renewed, the old ones stay: {e}"),
        }
        renewed.unwrap_or(false)
    }
}

/// Makes connections that are secured with what the files hold now.
#[derive(Debug)]
pub struct Connections {
    target: Target,
    tls: Arc<TlsFiles>,
    listeners: Option<Vec<u32>>,
    /// Which state of the files it was made with, and since when it is used.
    client: Mutex<(reqwest::Client, u64, Option<Instant>)>,
}

impl Connections {
    /// Makes none yet.
    pub fn new(target: Target, tls: Arc<TlsFiles>, listeners: Option<Vec<u32>>) -> Result<Self> {
        let material = tls.material();
        let client = client(&target, material.more_roots.as_deref(), listeners.as_ref())?;
        Ok(Self { target, tls, listeners, client: Mutex::new((client, material.generation, None)) })
    }

    /// Whether there are other certificates than those that a connection just failed for.
    pub fn renewed(&self) -> bool {
        self.tls.reload_if_renewed()
    }

    /// What sends requests. Connections that were made before the files were renewed, or longer
    /// than [`MAX_AGE`] ago, are not used afterwards.
    pub fn client(&self, now: Instant) -> reqwest::Client {
        let mut current = self.client.lock();
        let since = *current.2.get_or_insert(now);
        if current.1 != self.tls.generation() || now.saturating_duration_since(since) >= MAX_AGE {
            let material = self.tls.material();
            match client(&self.target, material.more_roots.as_deref(), self.listeners.as_ref()) {
                Ok(renewed) => *current = (renewed, material.generation, Some(now)),
                Err(e) => {
                    tracing::error!("the connection is secured as before: {e}");
                    (current.1, current.2) = (material.generation, Some(now));
                }
            }
        }
        current.0.clone()
    }
}

/// Whether a connection failed in a way that other certificates may mend; `why` is the TLS
/// library's reason.
pub fn is_about_certificates(why: &str) -> bool {
    why.contains("invalid peer certificate")
}

/// The certificates in a file of `--ca-file`.
pub fn certificates(pem: &[u8]) -> Result<Vec<reqwest::Certificate>> {
    let broken = |sentence: String| Error::new(ErrorKind::Invalid, sentence);
    let roots = reqwest::Certificate::from_pem_bundle(pem)
        .map_err(|e| broken(format!("the certificates of --ca-file cannot be used: {}", e.without_url())))?;
    match roots.is_empty() {
        true => Err(broken("the file of --ca-file holds no certificate".into())),
        false => Ok(roots),
    }
}

fn read(path: &Path, also: Option<u32>) -> io::Result<(Vec<u8>, Option<Stamp>)> {
    let stamp = files::stamp(path, also);
    let pem = files::open(path, also)?.read(MAX_BYTES)?;
    Ok((pem.to_vec(), stamp))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One certificate of a made-up authority; only its form is read.
    fn authority() -> Vec<u8> {
        let made = std::process::Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-days", "2", "-subj", "/CN=authority", "-keyout", "/dev/null"])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        made.stdout
    }

    #[test]
    fn a_renewed_file_is_taken_and_a_broken_one_leaves_the_old() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let (old, new) = (authority(), authority());
        std::fs::write(&path, &old).unwrap();
        let files = TlsFiles::read(Some(&path), None).unwrap();
        let held = || files.material().more_roots.unwrap();
        assert!(!files.reload().unwrap() && !files.reload_if_renewed(), "it is the same");
        for broken in [&b""[..], b"no certificate", &new[..new.len() / 2]] {
            std::fs::write(&path, broken).unwrap();
            assert!(files.reload().is_err());
            assert!(!files.reload_if_renewed(), "and is not looked at again");
            assert_eq!((held(), files.generation()), (old.clone(), 0));
        }
        std::fs::remove_file(&path).unwrap();
        assert!(files.reload().unwrap_err().message.contains("ca.pem"));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(!files.reload().unwrap(), "a pipe is not waited for");
        std::fs::remove_file(&path).unwrap();
        // As a link that is turned, too.
        std::fs::write(dir.path().join("new"), &new).unwrap();
        std::os::unix::fs::symlink("new", &path).unwrap();
        assert!(files.reload_if_renewed());
        assert_eq!((held(), files.generation()), (new, 1));
        assert!(!TlsFiles::default().reload().unwrap() && !TlsFiles::default().reload_if_renewed());
    }

    #[test]
    fn what_cannot_be_read_at_a_takeover_is_read_when_it_can_be() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let files = TlsFiles::read_if_usable(Some(&path), None);
        assert!(TlsFiles::read(Some(&path), None).is_err() && files.material().more_roots.is_none());
        assert!(!files.reload_if_renewed());
        std::fs::write(&path, authority()).unwrap();
        assert!(files.reload_if_renewed() && files.check().is_ok());
    }
}
