//! `--audit`: one JSON line for each open, with the program and user. Never a value.
//!
//! 1. No request waits for the file: lines go through a bounded channel to a thread that writes
//!    them. What does not fit into it, or cannot be written (a full disk), is dropped, counted, and
//!    said by `status`.
//! 2. The file belongs to a directory that is opened once, before the mount is there ([`Place`]).
//!    It is opened anew (SIGHUP, for logrotate) from that directory and never through a link, so
//!    that no path on our own mount is ever touched: the process would wait for itself.
//! 3. It is made 0600: names of secrets and of their users are private.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::fs::inode::Node;
use crate::fs::types::ctx::Caller;
use crate::sys::files::{Place, Unfit};
use crate::sys::program::Program;

/// Lines that may wait to be written.
const CAPACITY: usize = 4096;

/// One opening.
#[derive(Debug, Serialize)]
struct Line<'a> {
    at: String,
    op: &'static str,
    uid: u32,
    gid: u32,
    #[serde(flatten)]
    who: Program,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a str>,
}

enum Message {
    Line(Vec<u8>),
    Reopen,
}

/// What `status` says of the audit file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditStatus {
    /// Lines written.
    pub written: u64,
    /// Lines that could not be.
    pub lost: u64,
    /// Why the last one could not be; absent once one could be again.
    pub error: Option<String>,
}

#[derive(Debug, Default)]
struct Tally {
    written: AtomicU64,
    lost: AtomicU64,
    error: Mutex<Option<String>>,
}

impl Tally {
    fn failed(&self, error: &io::Error) {
        let before = self.set_error(Some(error.to_string()));
        if before.is_none() {
            tracing::error!("the audit file cannot be written, opens are not recorded: {error}");
        }
    }

    fn set_error(&self, error: Option<String>) -> Option<String> {
        let mut last = self.error.lock();
        std::mem::replace(&mut *last, error)
    }
}

/// The way to the audit file.
#[derive(Debug)]
pub struct Audit {
    channel: SyncSender<Message>,
    tally: Arc<Tally>,
}

impl Audit {
    /// Opens the file for appending and starts the thread that writes to it.
    ///
    /// # Errors
    /// When the file cannot be opened, is no plain file, or no thread can be started.
    pub fn open(path: &Path) -> io::Result<Arc<Self>> {
        let place = Place::of(path)?;
        let file = open_private(&place)?;
        Self::start(file, move || open_private(&place))
    }

    /// Whether it could be opened, as far as can be checked without making it.
    ///
    /// # Errors
    /// As [`Audit::open`].
    pub fn check(path: &Path) -> io::Result<()> {
        Ok(Place::of(path)?.check()?)
    }

    fn start<W: Write + Send + 'static>(
        file: W,
        reopen: impl FnMut() -> io::Result<W> + Send + 'static,
    ) -> io::Result<Arc<Self>> {
        let (channel, messages) = sync_channel(CAPACITY);
        let tally = Arc::new(Tally::default());
        let counted = tally.clone();
        std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || write_lines(&messages, file, reopen, &counted))?;
        Ok(Arc::new(Self { channel, tally }))
    }

    /// Opens the file again under its name: it was moved away.
    pub fn reopen(&self) {
        // A full channel still has lines for the old file: the next SIGHUP reopens it.
        if self.channel.try_send(Message::Reopen).is_err() {
            tracing::warn!("the audit file is not opened again: too many lines wait to be written");
        }
    }

    fn write(&self, line: &Line<'_>) {
        let Ok(text) = serde_json::to_string(line) else { return };
        let text = crate::display::json(&text).into_owned() + "\n";
        if self.channel.try_send(Message::Line(text.into_bytes())).is_err() {
            self.tally.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What `status` says.
    pub fn status(&self) -> AuditStatus {
        let error = self.tally.error.lock().clone();
        AuditStatus {
            written: self.tally.written.load(Ordering::Relaxed),
            lost: self.tally.lost.load(Ordering::Relaxed),
            error,
        }
    }
}

fn write_lines<W: Write>(
    messages: &Receiver<Message>,
    mut file: W,
    mut reopen: impl FnMut() -> io::Result<W>,
    tally: &Tally,
) {
    // A line of which only a part was written must not run into the next.
    let mut torn = false;
    for message in messages {
        match message {
            Message::Line(line) => match write_line(&mut file, &line, &mut torn) {
                Ok(()) => {
                    tally.written.fetch_add(1, Ordering::Relaxed);
                    tally.set_error(None);
                }
                Err(e) => {
                    tally.lost.fetch_add(1, Ordering::Relaxed);
                    tally.failed(&e);
                }
            },
            Message::Reopen => match reopen() {
                Ok(new) => (file, torn) = (new, false),
                Err(e) => tally.failed(&e),
            },
        }
    }
}

fn write_line(file: &mut impl Write, line: &[u8], torn: &mut bool) -> io::Result<()> {
    if *torn {
        file.write_all(b"\n")?;
    }
    *torn = true;
    file.write_all(line)?;
    *torn = false;
    Ok(())
}

/// Opens the file, and closes it to others: names of secrets are in it.
fn open_private(place: &Place) -> io::Result<File> {
    let file = place.append()?;
    let metadata = file.metadata()?;
    // A log may be the null device, which is writable for all.
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, Unfit::NotRegular.to_string()));
    }
    if metadata.mode() & 0o077 != 0 {
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

impl Audit {
    /// Writes down that an inode was opened.
    pub(super) fn record_open(&self, at: SystemTime, node: &Node, op: &'static str, caller: Caller) {
        let (name, version) = match node {
            Node::File(file) => {
                let state = file.state();
                (state.name.clone(), state.stored.as_ref().map(|stored| stored.version.clone()))
            }
            Node::Version(version) => (version.name.clone(), Some(version.info.tag.clone())),
            Node::Dir(_) | Node::Control(_) => return,
        };
        self.write(&Line {
            at: humantime::format_rfc3339_millis(at).to_string(),
            op,
            uid: caller.uid,
            gid: caller.gid,
            who: Program::of(caller.pid),
            name: name.as_str(),
            version: version.as_ref().map(|version| version.as_str()),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn line(name: &str) -> Line<'_> {
        let at = "2026-01-01T00:00:00.000Z".to_owned();
        Line { at, op: "read", uid: 1, gid: 2, who: Program::default(), name, version: Some("3") }
    }

    fn until(audit: &Audit, is: impl Fn(&AuditStatus) -> bool) -> AuditStatus {
        for _ in 0..4000 {
            let status = audit.status();
            if is(&status) {
                return status;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("{:?}", audit.status());
    }

    #[test]
    fn lines_are_appended_to_a_file_for_its_owner_alone_also_after_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        std::fs::write(&path, "before\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let audit = Audit::open(&path).unwrap();
        audit.write(&line("a"));
        until(&audit, |status| status.written == 1);
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        audit.reopen();
        audit.write(&line("b\nc"));
        until(&audit, |status| status.written == 2);
        let old = std::fs::read_to_string(dir.path().join("old")).unwrap();
        let new = std::fs::read_to_string(&path).unwrap();
        assert!(
            old.starts_with("before\n{") && old.ends_with("\"name\":\"a\",\"version\":\"3\"}\n"),
            "{old}"
        );
        assert!(new.lines().count() == 1 && new.contains(r"b\nc"), "{new}");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(dir.path().join("old")).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn links_and_what_is_no_file_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/hostname", dir.path().join("link")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mode = || std::fs::metadata("/dev/null").unwrap().mode();
        let before = mode();
        for name in ["link", "fifo", ".", "/dev/zero", "/dev/null"] {
            assert!(Audit::open(&dir.path().join(name)).is_err(), "{name}");
        }
        assert_eq!(mode(), before);
    }

    /// Takes half a line when it is full.
    struct Disk(Arc<Mutex<(Vec<u8>, bool)>>);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut disk = self.0.lock();
            if !disk.1 {
                disk.0.extend_from_slice(bytes);
                return Ok(bytes.len());
            }
            if disk.0.ends_with(b"\n") {
                disk.0.extend_from_slice(&bytes[..5]);
                return Ok(5);
            }
            Err(io::Error::from_raw_os_error(libc::ENOSPC))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_loses_lines_and_nothing_else() {
        let disk = Arc::new(Mutex::new((Vec::new(), false)));
        let audit = Audit::start(Disk(disk.clone()), || Err(io::Error::other("not asked"))).unwrap();
        audit.write(&line("a"));
        until(&audit, |status| status.written == 1);
        disk.lock().1 = true;
        (0..10).for_each(|_| audit.write(&line("b")));
        let status = until(&audit, |status| status.lost == 10);
        assert!(status.error.is_some());
        disk.lock().1 = false;
        audit.write(&line("c"));
        assert_eq!(until(&audit, |status| status.written == 2).error, None);
        let text = String::from_utf8(disk.lock().0.clone()).unwrap();
        let whole: Vec<&str> = text.lines().filter(|line| line.ends_with('}')).collect();
        assert_eq!(whole.len(), 2, "{text}");
    }

    #[test]
    fn nobody_waits_for_a_disk_that_hangs() {
        struct Hangs(Receiver<()>);
        impl Write for Hangs {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let _ = self.0.recv();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (release, held) = sync_channel(0);
        let audit = Audit::start(Hangs(held), || Err(io::Error::other("not asked"))).unwrap();
        (0..CAPACITY + 100).for_each(|_| audit.write(&line("a")));
        assert!(audit.status().lost >= 99);
        drop(release);
    }
}
