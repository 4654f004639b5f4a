//! Log lines for the systemd journal in its native protocol, with fields that can be queried.
//!
//! `journalctl VAULTFS_NAME=db/password` is the history of one secret,
//! `VAULTFS_MOUNTPOINT=/srv/secrets -p warning` the warnings of one mount. MESSAGE is the line that
//! a log file has; each field of the event is there as `VAULTFS_…`, too. Values are escaped
//! ([`display`]), as a line is: `journalctl -o verbose` would show a newline as it is. Fields are
//! what the line shows anyway: no value and no key, which have types that cannot be printed.

use std::fmt::Write as _;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::display;

/// Where the journal listens.
pub const JOURNAL: &str = "/run/systemd/journal/socket";

/// Sends each event to the journal.
pub struct Journal {
    socket: Option<UnixDatagram>,
    at: PathBuf,
    mountpoint: PathBuf,
}

impl Journal {
    /// For the processes of a mount.
    pub fn new(mountpoint: &Path) -> Self {
        Self::at(Path::new(JOURNAL), mountpoint)
    }

    fn at(at: &Path, mountpoint: &Path) -> Self {
        let socket = UnixDatagram::unbound().and_then(|s| s.set_nonblocking(true).map(|()| s));
        Self { socket: socket.ok(), at: at.to_owned(), mountpoint: mountpoint.to_owned() }
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let Some(socket) = &self.socket else { return };
        let priority = match *event.metadata().level() {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "6",
            Level::DEBUG | Level::TRACE => "7",
        };
        let mut datagram = Vec::new();
        put(&mut datagram, "PRIORITY", priority.as_bytes());
        put(&mut datagram, "SYSLOG_IDENTIFIER", b"vaultfs");
        put(&mut datagram, "VAULTFS_MOUNTPOINT", self.mountpoint.as_os_str().as_bytes());
        let mut line = Line { fields: &mut datagram, message: String::new(), rest: String::new() };
        event.record(&mut line);
        let message = line.message + &line.rest;
        put(&mut datagram, "MESSAGE", message.as_bytes());
        // A journal that is stopped or slow must not stop the mount.
        let _ = socket.send_to(&datagram, &self.at);
    }
}

/// `KEY`, and the value with its length before it: so it may hold anything.
fn put(datagram: &mut Vec<u8>, key: &str, value: &[u8]) {
    // Writing to a vector cannot fail.
    let _ = writeln!(datagram, "{key}");
    datagram.extend_from_slice(&(value.len() as u64).to_le_bytes());
    datagram.extend_from_slice(value);
    datagram.push(b'\n');
}

/// An event on its way: fields to the datagram at once, and behind the message.
struct Line<'a> {
    fields: &'a mut Vec<u8>,
    message: String,
    rest: String,
}

impl Line<'_> {
    fn field(&mut self, field: &Field, plain: &str, quoted: &str) {
        let plain = display::line(plain).to_string();
        if field.name() == "message" {
            self.message = plain;
            return;
        }
        // Names are Rust's: letters, digits, `_`, and a dot or two that the journal would not take.
        let key = field.name().to_ascii_uppercase().replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        put(self.fields, &format!("VAULTFS_{key}"), plain.as_bytes());
        let _ = write!(self.rest, " {}={}", field.name(), display::line(quoted));
    }
}

impl Visit for Line<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.field(field, value, &format!("{value:?}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let text = format!("{value:?}");
        self.field(field, &text, &text);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// What the journal makes of a datagram (systemd.io/JOURNAL_NATIVE_PROTOCOL).
    fn parsed(mut datagram: &[u8]) -> BTreeMap<String, String> {
        let mut fields = BTreeMap::new();
        while let Some(end) = datagram.iter().position(|b| *b == b'\n') {
            let key = String::from_utf8(datagram[..end].to_vec()).expect("a name");
            assert!(!key.contains('='), "always with its length");
            let (len, rest) = datagram[end + 1..].split_first_chunk::<8>().expect("a length");
            let (value, rest) = rest.split_at(u64::from_le_bytes(*len) as usize);
            assert!(fields.insert(key, String::from_utf8(value.to_vec()).expect("text")).is_none());
            datagram = rest.strip_prefix(b"\n").expect("the end of the value");
        }
        fields
    }

    #[test]
    fn each_field_can_be_asked_for_and_none_can_be_smuggled_in() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = dir.path().join("socket");
        let ear = UnixDatagram::bind(&at).expect("own directory");
        let log = tracing_subscriber::registry().with(Journal::at(&at, Path::new("/srv/v")));
        let said = || {
            let mut datagram = [0; 4096];
            let len = ear.recv(&mut datagram).expect("said");
            parsed(&datagram[..len])
        };
        tracing::subscriber::with_default(log, || {
            let (name, errno) = ("db\nPRIORITY=0\nMESSAGE=all is well", "EIO");
            let secret = crate::secret::SecretString::new("canary-4471".to_owned());
            tracing::warn!(operation = "read", name, %errno, tries = 3, ?secret, "operation failed");
        });
        let fields = said();
        let field = |key: &str| fields.get(key).map(String::as_str);
        assert_eq!(field("PRIORITY"), Some("4"));
        assert_eq!(field("SYSLOG_IDENTIFIER"), Some("vaultfs"));
        assert_eq!(field("VAULTFS_MOUNTPOINT"), Some("/srv/v"));
        assert_eq!(field("VAULTFS_OPERATION"), Some("read"));
        assert_eq!(field("VAULTFS_NAME"), Some("db\\nPRIORITY=0\\nMESSAGE=all is well"));
        assert_eq!((field("VAULTFS_ERRNO"), field("VAULTFS_TRIES")), (Some("EIO"), Some("3")));
        let message = field("MESSAGE").expect("there is one");
        assert!(
            message.starts_with("operation failed operation=\"read\" name=\"db\\nPRIORITY=0"),
            "{message}"
        );
        assert!(!fields.values().any(|value| value.contains("canary")), "{fields:?}");
    }
}
