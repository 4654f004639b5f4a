//! Where the processes of a mount write what people should know.
//!
//! `-f` logs on standard error; else `--log FILE`; else the journal, when there is one; else
//! `$XDG_STATE_HOME/vaultfs/NAME.log`. Files are 0600 and renamed to `.1` when they grow. Keeper
//! and worker write to the same file, each line with one write, so both look for a rotation by the
//! other. No line holds a value or a key: they have types that cannot be printed, and a panic's
//! text, which could quote anything, is replaced by its place.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{self, FormatFields, Writer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::cli::args::values::home;
use crate::display;
use crate::display::Shown;
use crate::sys::files::{Place, check_way};
use crate::sys::journald;
use crate::sys::journald::JOURNAL;
use crate::sys::stdio;

/// A log file is renamed away beyond this size.
const MAX_FILE: u64 = 4 << 20;

/// Where to, and how much. Decided by the command, used by the processes it starts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LogConfig {
    /// Where to.
    pub target: Target,
    /// How often `-v` was given.
    pub verbosity: u8,
}

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Standard error.
    Stderr,
    /// The system's journal.
    Journal,
    /// A file.
    File(PathBuf),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Stderr => f.write_str("standard error"),
            Target::Journal => f.write_str("journalctl -t vaultfs"),
            Target::File(path) => write!(f, "{}", path.shown()),
        }
    }
}

impl LogConfig {
    /// Chooses the target for a mount. An error names the file and what to do.
    pub fn choose(
        mountpoint: &Path,
        file: Option<&Path>,
        foreground: bool,
        verbosity: u8,
    ) -> io::Result<Self> {
        let target = match file {
            Some(file) => Target::File(std::path::absolute(file)?),
            None if foreground && !(stderr_is_journal() && Path::new(JOURNAL).exists()) => Target::Stderr,
            None if Path::new(JOURNAL).exists() => Target::Journal,
            None => Target::File(default_file(mountpoint)?),
        };
        if let Target::File(path) = &target {
            // Now, where the message is read; and never on the mount itself, which could not be
            // served while it waits for its own log.
            let failed = |e: io::Error| unusable(path, file.is_some(), &e);
            let place = Place::of(path).map_err(|e| failed(e.into()))?;
            if place.directory().map_err(failed)?.starts_with(mountpoint) {
                return Err(failed(io::Error::other("it would be on the mount itself")));
            }
            place.append().map_err(|e| failed(e.into()))?;
        }
        Ok(Self { target, verbosity })
    }
}

/// Refuses a log that [`LogConfig::choose`] would refuse, as far as that shows without making one.
pub fn check(path: &Path) -> io::Result<()> {
    let failed = |e: io::Error| unusable(path, true, &e);
    Place::of(path).and_then(|place| place.check()).map_err(|e| failed(e.into()))
}

/// `named`: by the user.
fn unusable(path: &Path, named: bool, e: &io::Error) -> io::Error {
    let next = match named {
        true => "name a file that you can write, in a directory that exists",
        false => "name another one with --log FILE",
    };
    io::Error::other(format!("{}: {e}: {next}", path.shown()))
}

/// Whether systemd connected standard error to the journal (systemd.exec(5), `JOURNAL_STREAM`).
fn stderr_is_journal() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else { return false };
    let own = File::from(match stdio::stderr().as_fd().try_clone_to_owned() {
        Ok(fd) => fd,
        Err(_) => return false,
    });
    own.metadata().is_ok_and(|meta| stream.to_str() == Some(&format!("{}:{}", meta.dev(), meta.ino())))
}

/// `$XDG_STATE_HOME/vaultfs/mnt-v.log` for /mnt/v.
fn default_file(mountpoint: &Path) -> io::Result<PathBuf> {
    let named = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    // At boot root has no home.
    let system = || nix::unistd::geteuid().is_root().then(|| PathBuf::from("/var/log"));
    let state = named("XDG_STATE_HOME")
        .or_else(|| home().map(|home| home.join(".local/state")))
        .or_else(system)
        .ok_or_else(|| io::Error::other("HOME is not set: use --log FILE"))?;
    check_way(&state)?;
    let dir = state.join("vaultfs");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|e| {
        io::Error::other(format!(
            "{}: {e}: name a file with --log FILE, or log to standard error with -f",
            dir.shown()
        ))
    })?;
    Ok(dir.join(format!("{}.log", file_name(mountpoint))))
}

/// A path as one file name: `/` becomes `-`, what is not plain is escaped.
fn file_name(path: &Path) -> String {
    let mut name = String::new();
    for byte in path.as_os_str().as_encoded_bytes().iter().skip(1) {
        match byte {
            b'/' => name.push('-'),
            b if b.is_ascii_alphanumeric() || b"._".contains(b) => name.push(char::from(*b)),
            b => {
                let _ = write!(name, "%{b:02X}");
            }
        }
    }
    // NAME_MAX is 255; a path that long is known by its end.
    let cut = name.len().saturating_sub(200);
    name.split_off(cut)
}

/// What is logged. rustls has a line for each handshake that fails, which could fill the log: the
/// request that failed for it is logged once a minute, with a count (`fs::failures`).
fn filter(verbosity: u8) -> &'static str {
    match verbosity {
        0 => "warn,vaultfs=info,fuser=error,rustls=off",
        1 => "info,vaultfs=debug,fuser=error,rustls=off",
        // Other crates may print what passes through them: never at their most verbose.
        _ => "info,vaultfs=trace,fuser=error",
    }
}

/// Starts logging in this process, which serves `mountpoint`, and makes panics say no more than
/// where they happened.
pub fn start(config: &LogConfig, mountpoint: &Path) {
    let filter = filter(config.verbosity);
    let lines = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_ansi(false)
        .with_target(false)
        .fmt_fields(fields())
        // It would complain about the log on standard error, with a macro that panics where that is
        // gone.
        .log_internal_errors(false);
    let started = match &config.target {
        Target::Stderr => lines.with_writer(|| stdio::LogStream).try_init(),
        Target::Journal => tracing_subscriber::registry()
            .with(journald::Journal::new(mountpoint).with_filter(EnvFilter::new(filter)))
            .try_init()
            .map_err(Into::into),
        Target::File(path) => lines.with_writer(LogFile::new(path)).try_init(),
    };
    // Only a second call could fail, and then the first log is as good.
    drop(started);
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("{}", bug(panic));
        // The runtime catches what its threads do. Any other thread would be gone, and what waits
        // for it would wait for good, or go on as if it had been done: a successor does it.
        if !matches!(std::thread::current().name(), Some(RUNTIME_THREAD | "main")) {
            std::process::abort();
        }
    }));
}

/// The fields of an event as one line, whatever text of others is in them.
pub fn fields() -> impl for<'w> FormatFields<'w> + Send + Sync + 'static {
    let field = |out: &mut Writer<'_>, field: &Field, value: &dyn std::fmt::Debug| match field.name() {
        "message" => write!(display::Plain(out), "{value:?}"),
        // Of the crate log's events; their metadata say the same.
        name if name.starts_with("log.") => Ok(()),
        name => write!(display::Plain(out), "{name}={value:?}"),
    };
    format::debug_fn(field).delimited(" ")
}

/// The name of the runtime's threads.
pub const RUNTIME_THREAD: &str = "vaultfs-async";

/// Makes panics say no more than where they happened, on standard error: for every process, until
/// it has a log.
pub fn quiet_panics() {
    std::panic::set_hook(Box::new(|panic| {
        stdio::say(bug(panic));
    }));
}

/// A panic's place; its text could quote anything.
fn bug(panic: &std::panic::PanicHookInfo<'_>) -> String {
    let place = panic.location().map_or_else(|| "somewhere".into(), ToString::to_string);
    format!("a bug in vaultfs: panic at {place} (its text is kept back, it could hold a secret)")
}

/// A log file that two processes write and either may rotate.
struct LogFile {
    path: PathBuf,
    open: Mutex<Option<(Place, File)>>,
}

impl LogFile {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), open: Mutex::new(Self::open(path).ok()) }
    }

    fn open(path: &Path) -> io::Result<(Place, File)> {
        let place = Place::of(path)?;
        let file = place.append()?;
        Ok((place, file))
    }

    fn append(&self, line: &[u8]) -> io::Result<()> {
        let mut open = self.open.lock();
        let stays = match &*open {
            None => false,
            Some((place, file)) => {
                let current = file.metadata()?;
                let same = place.leads_to(&current);
                let full = current.len() > MAX_FILE;
                if same && full {
                    let mut old = place.name().to_owned();
                    old.push(".1");
                    place.rename(&old)?;
                }
                same && !full
            }
        };
        if !stays {
            *open = Some(Self::open(&self.path)?);
        }
        match open.as_mut() {
            Some((_, file)) => file.write_all(line),
            None => Ok(()),
        }
    }
}

impl Write for &LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // A full disk must not stop the mount: the line is lost.
        let _ = self.append(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = &'a LogFile;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_becomes_one_file_name() {
        assert_eq!(file_name(Path::new("/mnt/my vault")), "mnt-my%20vault");
        assert_eq!(file_name(Path::new(&format!("/{}end", "x".repeat(300)))).len(), 200);
    }

    #[test]
    fn a_file_that_grew_is_renamed_and_two_writers_follow() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.log");
        let (one, two) = (LogFile::new(&path), LogFile::new(&path));
        one.append(&vec![b'x'; MAX_FILE as usize + 1]).expect("written");
        one.append(b"one\n").expect("written");
        two.append(b"two\n").expect("written");
        assert_eq!(fs::read(&path).expect("there"), b"one\ntwo\n");
        assert_eq!(fs::metadata(dir.path().join("a.log.1")).expect("there").len(), MAX_FILE + 1);
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
    }

    #[test]
    fn a_log_may_be_the_null_device() {
        let null = Path::new("/dev/null");
        check(null).expect("taken");
        let config = LogConfig::choose(Path::new("/mnt/v"), Some(null), false, 0).expect("taken");
        assert_eq!(config.target, Target::File(null.to_owned()));
        let log = LogFile::new(null);
        log.append(b"one\n").expect("written");
        log.append(b"two\n").expect("written");
    }

    #[test]
    fn failed_handshakes_have_no_lines_of_their_own() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        for verbosity in [0, 1] {
            let lines = tracing_subscriber::fmt()
                .with_env_filter(EnvFilter::new(filter(verbosity)))
                .with_writer(LogFile::new(&path))
                .finish();
            tracing::subscriber::with_default(lines, || {
                tracing::error!(target: "rustls::common_state", "TLS alert received");
                tracing::warn!(target: "rustls::msgs::handshake", "Illegal SNI extension");
                tracing::warn!(target: "hyper", "told");
            });
        }
        let log = fs::read_to_string(&path).expect("there");
        assert_eq!((log.lines().count(), log.matches("told").count()), (2, 2), "{log}");
    }

    #[test]
    fn a_log_on_the_mount_itself_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let mountpoint = fs::canonicalize(dir.path()).expect("there");
        let file = mountpoint.join("log");
        let refused = LogConfig::choose(&mountpoint, Some(&file), false, 0).expect_err("refused").to_string();
        assert!(refused.contains(file.to_str().expect("UTF-8")), "{refused}");
        let refused = LogConfig::choose(&mountpoint, Some(Path::new("/nodir/a")), false, 0);
        let refused = refused.expect_err("refused").to_string();
        assert!(
            refused.starts_with("/nodir/a: No such file") && refused.contains("name a file"),
            "{refused}"
        );
    }
}
