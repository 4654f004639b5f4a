//! The programs of the load. Each is a process of its own: this test binary again, told by its
//! environment what to do, which may start real programs (sed, perl, cp, mv) in turn. What it did
//! is written down in a log of its own, by the clock that all processes share.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use vaultfs::clock::{Clock, SystemClock};

use super::api::Api;
use super::value::{self, Random, Save};

/// What one program of the load is to do.
#[derive(Debug, Clone)]
pub struct Role {
    /// What it does: the name of an arm in [`Worker::save`], or `read`, `read-locked`.
    pub kind: &'static str,
    /// The name that it does it to.
    pub name: &'static str,
    /// Which mount it uses: `object`, `kv`, or `api` for none.
    pub by: &'static str,
}

const ROLE: &str = "VAULTFS_HISTORY_ROLE";
/// The longest filling of a line, and when a file that is appended to begins anew.
const LONGEST: u32 = 700;
pub const LONGEST_APPENDED: u32 = 40;
pub const FULL: u64 = 4096;

/// Starts the program number `writer`; it ends when its standard input does.
pub fn start(role: &Role, writer: u16, dirs: &[(&str, &Path)], data: &Path, log: &Path, seed: u64) -> Child {
    let mnt = dirs.iter().find(|(by, _)| *by == role.by).map_or(data, |(_, dir)| dir);
    let words = [
        role.kind,
        role.name,
        role.by,
        mnt.to_str().unwrap(),
        data.to_str().unwrap(),
        log.to_str().unwrap(),
        &writer.to_string(),
        &seed.to_string(),
    ];
    Command::new(std::env::current_exe().unwrap())
        .args(["history::worker", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env(ROLE, words.join("\t"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Does what the environment says, if it says something.
pub fn work() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let words: Vec<&str> = role.split('\t').collect();
    let [kind, name, by, mnt, data, log, writer, seed] = words[..] else { panic!("{role}") };
    let worker = Worker {
        kind: kind.to_owned(),
        path: Path::new(mnt).join(name),
        name: name.to_owned(),
        by_api: by == "api",
        scratch: PathBuf::from(log).with_extension("scratch"),
        api: Api::of(Path::new(data)),
        id: None,
        log: OpenOptions::new().create(true).append(true).open(log).unwrap(),
        writer: writer.parse().unwrap(),
        random: Random::new(seed.parse().unwrap()),
        open: None,
    };
    worker.run();
}

/// Nanoseconds of the clock that all processes share.
pub fn now() -> u64 {
    SystemClock.since_boot().as_nanos() as u64
}

struct Worker {
    kind: String,
    path: PathBuf,
    name: String,
    by_api: bool,
    /// A file beside the vault.
    scratch: PathBuf,
    api: Api,
    id: Option<String>,
    log: File,
    writer: u16,
    random: Random,
    /// A descriptor that a writer holds.
    open: Option<File>,
}

/// close(2) with its answer.
fn close(file: File) -> io::Result<()> {
    // SAFETY: the descriptor was the file's, and nobody else's.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Operations that took long, and how long in nanoseconds, since the last turn.
static SLOW: Mutex<Vec<(&str, u64)>> = Mutex::new(Vec::new());

/// One operation, by its name.
fn said<T>(what: &'static str, operation: impl FnOnce() -> io::Result<T>) -> Result<T, String> {
    let begun = now();
    let result = operation();
    let took = now() - begun;
    // Of real programs it is not known what of it they waited for, and who waits for a lock waits
    // for others.
    if took > 500_000_000 && !["spawn", "lock"].contains(&what) {
        SLOW.lock().unwrap().push((what, took));
    }
    result.map_err(|e| format!("{what}: {e}"))
}

/// Under an exclusive or a shared lock, as flock(2) has it; the lock goes with the descriptor.
fn lock(file: &File, how: libc::c_int) -> io::Result<()> {
    // SAFETY: no pointers are passed.
    match unsafe { libc::flock(file.as_raw_fd(), how) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Worker {
    fn run(mut self) {
        let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let told = over.clone();
        std::thread::spawn(move || {
            // Ends when the test does, however that ends.
            let _ = io::stdin().read(&mut [0]);
            told.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        let mut number = 0;
        while !over.load(std::sync::atomic::Ordering::SeqCst) {
            number += 1;
            match self.kind.as_str() {
                "read" | "read-locked" => self.read(),
                _ => self.save_one(Save { writer: self.writer, number }),
            }
            for (what, took) in std::mem::take(&mut *SLOW.lock().unwrap()) {
                self.note(&format!("slow {took} {what}"));
            }
            let pause = if self.kind.starts_with("read") { 10 } else { 40 };
            std::thread::sleep(Duration::from_millis(self.random.below(pause)));
        }
    }

    fn note(&mut self, line: &str) {
        // One write(2): a line is there or not.
        self.log.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn save_one(&mut self, save: Save) {
        let start = now();
        self.note(&format!("start {} {start}", save.number));
        let result = self.save(save);
        let end = now();
        match result {
            Ok(()) => self.note(&format!("ack {} {start} {end}", save.number)),
            Err(why) => self.note(&format!("fail {} {start} {end} {}", save.number, why.replace('\n', " "))),
        }
    }

    fn save(&mut self, save: Save) -> Result<(), String> {
        let text = value::line(save, LONGEST);
        match self.kind.as_str() {
            "rename" => self.rename(&text),
            "echo" => {
                let mut file = said("open", || File::create(&self.path))?;
                said("write", || file.write_all(text.as_bytes()))?;
                said("close", || close(file))
            }
            "cp" => {
                said("scratch", || fs::write(&self.scratch, &text))?;
                self.program(Command::new("cp").arg(&self.scratch).arg(&self.path))
            }
            "mv" => {
                let new = self.path.with_extension(format!("{}.new", self.writer));
                said("new", || fs::write(&new, &text))?;
                self.program(Command::new("mv").arg(&new).arg(&self.path))
            }
            "sed" => {
                let script = format!("c\\{}", text.trim_end());
                self.program(Command::new("sed").args(["-i", &script]).arg(&self.path))
            }
            "perl" => {
                let script = format!("$_ = \"{}\\n\"", text.trim_end());
                self.program(Command::new("perl").args(["-i", "-pe", &script]).arg(&self.path))
            }
            "flock" => self.rewrite(&text),
            "held" => self.rewrite_held(&text),
            "append" => self.append(&value::line(save, LONGEST_APPENDED)),
            "anew" => {
                said("unlink", || fs::remove_file(&self.path).or_else(absent_is_fine))?;
                let mut file =
                    said("create", || OpenOptions::new().write(true).create_new(true).open(&self.path))?;
                said("write", || file.write_all(text.as_bytes()))?;
                said("close", || close(file))
            }
            "gone" => self.create_and_delete(save, &text),
            "update" => self.update(&text),
            other => panic!("{other}"),
        }
    }

    fn rename(&mut self, text: &str) -> Result<(), String> {
        let new = self.path.with_extension(format!("{}.tmp", self.writer));
        let saved = self.make(&new, text).and_then(|()| said("rename", || fs::rename(&new, &self.path)));
        if saved.is_err() {
            let _ = fs::remove_file(&new);
        }
        saved
    }

    fn make(&self, path: &Path, text: &str) -> Result<(), String> {
        let mut file = said("create", || OpenOptions::new().write(true).create_new(true).open(path))?;
        said("write", || file.write_all(text.as_bytes()))?;
        said("close", || close(file))
    }

    fn program(&self, command: &mut Command) -> Result<(), String> {
        let output = said("spawn", || command.env("LC_ALL", "C").stdin(Stdio::null()).output())?;
        // Perl skips what it cannot open, and calls that a success.
        match output.status.success() && output.stderr.is_empty() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        }
    }

    /// As programs do that keep their state in one file.
    fn rewrite(&mut self, text: &str) -> Result<(), String> {
        let mut file = said("open", || OpenOptions::new().read(true).write(true).open(&self.path))?;
        said("lock", || lock(&file, libc::LOCK_EX))?;
        said("truncate", || file.set_len(0))?;
        said("write", || file.write_all(text.as_bytes()))?;
        said("close", || close(file))
    }

    /// The same through a descriptor that stays open, and by fsync.
    fn rewrite_held(&mut self, text: &str) -> Result<(), String> {
        if self.random.below(20) == 0 {
            self.open = None;
        }
        let mut file = match self.open.take() {
            Some(file) => file,
            None => said("open", || OpenOptions::new().read(true).write(true).open(&self.path))?,
        };
        said("lock", || lock(&file, libc::LOCK_EX))?;
        said("seek", || file.seek(SeekFrom::Start(0)))?;
        said("truncate", || file.set_len(0))?;
        said("write", || file.write_all(text.as_bytes()))?;
        said("fsync", || file.sync_all())?;
        said("unlock", || lock(&file, libc::LOCK_UN))?;
        self.open = Some(file);
        Ok(())
    }

    fn append(&mut self, text: &str) -> Result<(), String> {
        let file = said("open", || OpenOptions::new().append(true).create(true).open(&self.path))?;
        said("lock", || lock(&file, libc::LOCK_EX))?;
        let mut file = file;
        if said("stat", || file.metadata())?.len() > FULL {
            said("truncate", || file.set_len(0))?;
        }
        said("write", || file.write_all(text.as_bytes()))?;
        said("close", || close(file))
    }

    fn update(&mut self, text: &str) -> Result<(), String> {
        assert!(self.by_api);
        let id = match self.id.take() {
            Some(id) => id,
            None => self.api.id_of(&self.name)?,
        };
        self.api.update(&id, text)?;
        self.id = Some(id);
        Ok(())
    }

    /// A new name, which somebody else deletes as soon as it is stored: it must not come back.
    fn create_and_delete(&mut self, save: Save, text: &str) -> Result<(), String> {
        let name = format!("gone-{}-{}", self.writer, save.number);
        self.make(&self.path.with_file_name(&name), text)?;
        let id = self.api.id_of(&name)?;
        self.api.delete(&id)?;
        self.note(&format!("deleted {name}"));
        Ok(())
    }

    fn read(&mut self) {
        let start = now();
        let read = self.read_once();
        let end = now();
        match read {
            Ok(None) => {}
            Ok(Some((bytes, size))) => {
                let saves = value::parse(&bytes);
                let last = saves.and_then(|saves| saves.last().copied());
                match last {
                    Some(save) if size == bytes.len() as u64 => {
                        self.note(&format!("read {} {} {start} {end}", save.writer, save.number));
                    }
                    _ => {
                        let text = String::from_utf8_lossy(&bytes).into_owned();
                        self.note(&format!("torn {start} {end} of {size} bytes: {text:?}"));
                    }
                }
            }
            Err(why) => self.note(&format!("unread {start} {end} {why}")),
        }
    }

    /// The bytes, and the size that was told.
    fn read_once(&mut self) -> Result<Option<(Vec<u8>, u64)>, String> {
        let mut file = match File::open(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && self.name == "anew" => return Ok(None),
            other => other.map_err(|e| format!("open: {e}"))?,
        };
        if self.kind == "read-locked" {
            said("lock", || lock(&file, libc::LOCK_SH))?;
        }
        let size = said("stat", || file.metadata())?.len();
        let mut bytes = Vec::new();
        said("read", || file.read_to_end(&mut bytes))?;
        Ok(Some((bytes, size)))
    }
}

fn absent_is_fine(e: io::Error) -> io::Result<()> {
    if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) }
}
