//! The helper process and the kernel between it and the file system: a call becomes the requests
//! that Linux sends for it, answered at once.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::{Arc, Mutex, Weak};

use vaultfs::fs::{Entry, Errno, FileSystem, HelperCall, HelperReport, ROOT, Result};

use super::Shell;

/// Its process id.
pub const PID: u32 = 7777;

/// What it did: the call's name, the path, and the inode that the name shows afterwards.
pub type HelperOp = (&'static str, String, Option<u64>);

/// Something to happen between the order and the call.
type Before = Box<dyn FnMut(&Arc<FileSystem>) + Send>;

#[derive(Default)]
pub struct Helper {
    fs: Mutex<Option<Weak<FileSystem>>>,
    lookups: Mutex<HashMap<u64, u64>>,
    calls: Mutex<Vec<HelperOp>>,
    /// What calls end with instead of being made.
    pub fails: Mutex<Option<i32>>,
    /// Orders are heard and not carried out.
    pub is_dead: Mutex<bool>,
    /// Orders that wait for [`Helper::release`].
    held: Mutex<Option<Vec<(u64, HelperCall)>>>,
    before: Mutex<Option<Before>>,
    /// The kernel has looked a name up already: the next rename of an inode to its own name is
    /// none.
    pub knows: Mutex<bool>,
}

impl Helper {
    /// Starts it.
    pub fn start(sh: &Shell) {
        let helper = &sh.kernel.helper;
        *helper.fs.lock().unwrap() = Some(Arc::downgrade(&sh.fs));
        *helper.is_dead.lock().unwrap() = false;
        sh.fs.propagator().helper_reports(HelperReport::Started { pid: PID });
    }

    /// The worker is another one: it is told of the helper that is there, as the keeper does.
    pub fn goes_on(sh: &Shell) {
        if sh.kernel.helper.fs.lock().unwrap().is_some() {
            Self::start(sh);
        }
    }

    /// What it did since the last call.
    pub fn calls(&self) -> Vec<HelperOp> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    /// Has this happen once the next call is ordered, before it is made.
    pub fn before_next(&self, happens: impl FnMut(&Arc<FileSystem>) + Send + 'static) {
        *self.before.lock().unwrap() = Some(Box::new(happens));
    }

    /// From now on orders wait.
    pub fn hold(&self) {
        *self.held.lock().unwrap() = Some(Vec::new());
    }

    pub fn holds_any(&self) -> bool {
        self.held.lock().unwrap().as_ref().is_some_and(|held| !held.is_empty())
    }

    /// Carries out the orders that wait.
    pub fn release(&self, fs: &Arc<FileSystem>) {
        for (number, call) in self.held.lock().unwrap().take().into_iter().flatten() {
            let errno = self.make(fs, &call).err().map_or(0, |e| e.0);
            fs.propagator().helper_reports(HelperReport::Done { number, errno });
        }
    }

    pub fn let_go(&self) -> HashMap<u64, u64> {
        std::mem::take(&mut *self.lookups.lock().unwrap())
    }

    pub fn order(&self, number: u64, to: u32, call: &HelperCall) -> bool {
        let Some(fs) = self.fs.lock().unwrap().as_ref().and_then(Weak::upgrade) else { return false };
        if *self.is_dead.lock().unwrap() {
            return true;
        }
        let meant = to == 0 || to == PID;
        if let Some(held) = &mut *self.held.lock().unwrap() {
            held.push((number, call.clone()));
            return true;
        }
        if to != 0
            && let Some(mut happens) = self.before.lock().unwrap().take()
        {
            happens(&fs);
        }
        let fails = self.fails.lock().unwrap().filter(|_| to != 0);
        let errno = match fails {
            Some(errno) => errno,
            None if meant => self.make(&fs, call).err().map_or(0, |e| e.0),
            None => libc::ESRCH,
        };
        fs.propagator().helper_reports(HelperReport::Done { number, errno });
        true
    }

    fn lookup(&self, fs: &FileSystem, parent: u64, name: &str) -> Result<Option<Entry>> {
        let found =
            fs.propagator().helper_lookup(PID, parent, OsStr::new(name)).expect("it is the helper's")?;
        if let Some(entry) = &found {
            *self.lookups.lock().unwrap().entry(entry.attr.ino).or_default() += 1;
        }
        Ok(found)
    }

    /// The directory and the last component of a path.
    fn walk<'p>(&self, fs: &FileSystem, path: &'p str) -> Result<(u64, &'p str)> {
        let (dirs, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut at = ROOT;
        for dir in dirs.split('/').filter(|dir| !dir.is_empty()) {
            at = self.lookup(fs, at, dir)?.ok_or(Errno::ENOENT)?.attr.ino;
        }
        Ok((at, name))
    }

    fn make(&self, fs: &FileSystem, call: &HelperCall) -> Result<()> {
        let done = match call {
            HelperCall::Rename { from, to } => {
                let (from, to_at) = (self.walk(fs, from)?, self.walk(fs, to)?);
                let source = self.lookup(fs, from.0, from.1)?.ok_or(Errno::ENOENT)?.attr.ino;
                let over = self.lookup(fs, to_at.0, to_at.1)?.map(|entry| entry.attr.ino);
                if over == Some(source) && std::mem::take(&mut *self.knows.lock().unwrap()) {
                    return Ok(());
                }
                let (from, to_at) = ((from.0, OsStr::new(from.1)), (to_at.0, OsStr::new(to_at.1)));
                fs.propagator().helper_rename(PID, from, to_at).expect("it is the helper's")?;
                ("rename", to.clone(), Some(source))
            }
            HelperCall::Unlink { path } => {
                let (dir, name) = self.walk(fs, path)?;
                self.lookup(fs, dir, name)?.ok_or(Errno::ENOENT)?;
                fs.propagator().helper_unlink(PID, dir, OsStr::new(name)).expect("it is the helper's")?;
                ("unlink", path.clone(), None)
            }
            HelperCall::Touch { path, .. } => {
                let (dir, name) = self.walk(fs, path)?;
                let ino = self.lookup(fs, dir, name)?.ok_or(Errno::ENOENT)?.attr.ino;
                fs.propagator().helper_setattr(PID, ino).expect("it is the helper's")?;
                ("touch", path.clone(), Some(ino))
            }
        };
        self.calls.lock().unwrap().push(done);
        Ok(())
    }
}
