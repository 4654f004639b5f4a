//! Which close(2) stores: a FLUSH comes at *every* close of *every* descriptor, copies and children
//! included.
//!
//! 1. Only the process that opened a handle decides; a forked child that closes what it inherited
//!    only leaves a mark, or `{ cat a; cat b; } > f` would store a version after each command.
//! 2. While that process itself still holds another descriptor of the same open file (`exec 3>f;
//!    echo a >&3` closes a copy), the writing goes on. Read from its `fdinfo`, where permitted.
//! 3. When it is gone, or cannot be seen (pid 0: another pid namespace), any process that closes
//!    decides.
//!
//! Reads /proc only; never touches a path on the mount, which would be a request to ourselves.

use std::fs;

use serde::{Deserialize, Serialize};

use crate::fs::handle::{Handle, Handles, Held};
use crate::fs::types::ctx::Caller;
use crate::sys::program::tgid_of;

/// More descriptors than this are not searched: the close then stores.
const MAX_DESCRIPTORS: usize = 4096;

/// The process that opened a handle. `start` distinguishes it from a later one with the same
/// number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opener {
    tgid: u32,
    start: u64,
}

impl Handles {
    /// Whether a FLUSH of this handle stores: something was written through it, or through no
    /// handle that is known, and the writing is over.
    pub fn commits_on_close(&self, handle: &Handle, caller: Caller) -> bool {
        let Held::File { file, writer: Some(writer) } = &handle.held else { return false };
        if !file.state().has_uncommitted(handle.fh) {
            return false;
        }
        let is_ours = |pid, mount| self.env.kernel().is_none_or(|kernel| kernel.has_mount(pid, mount));
        loop {
            let (only, seen) = {
                let state = file.state();
                // Of several handles the process may have another one's descriptors, too, by
                // inheritance.
                (state.writers.len() == 1, state.last_writer)
            };
            if writer.opener.commits_on_close(caller.pid, file.ino, only, is_ours) {
                return true;
            }
            // The copy that was seen may be the descriptor of a handle that was opened meanwhile.
            if file.state().last_writer == seen {
                return false;
            }
        }
    }
}

impl Opener {
    /// The process of the thread `pid`.
    pub fn of(pid: u32) -> Self {
        let tgid = tgid_of(pid).unwrap_or(pid);
        Self { tgid, start: start_of(tgid).unwrap_or(0) }
    }

    /// Whether a FLUSH from the thread `pid` stores. `ino` is the file's, `only` that this process
    /// has it open through no other handle.
    ///
    /// `is_ours` returns whether a mount, by its id as the process `pid` has it, is of this file
    /// system: other file systems have files of the same number.
    pub fn commits_on_close(
        &self,
        pid: u32,
        ino: u64,
        only: bool,
        is_ours: impl Fn(u32, u64) -> bool,
    ) -> bool {
        if pid == 0 || self.tgid == 0 {
            return true;
        }
        let own = pid == self.tgid || tgid_of(pid) == Some(self.tgid);
        if own {
            return !only || !self.still_holds(ino, is_ours);
        }
        !self.is_alive()
    }

    /// Whether the process is still there and not a zombie.
    fn is_alive(&self) -> bool {
        match stat_fields(self.tgid) {
            Some((state, start)) => start == self.start && !matches!(state, 'Z' | 'X' | 'x'),
            None => false,
        }
    }

    fn still_holds(&self, ino: u64, is_ours: impl Fn(u32, u64) -> bool) -> bool {
        let Ok(dir) = fs::read_dir(format!("/proc/{}/fdinfo", self.tgid)) else { return false };
        for (seen, descriptor) in dir.flatten().enumerate() {
            if seen == MAX_DESCRIPTORS {
                return false;
            }
            let Ok(info) = fs::read_to_string(descriptor.path()) else { continue };
            if is_writable_descriptor_of(&info, ino)
                && field(&info, "mnt_id:").is_none_or(|mount| is_ours(self.tgid, mount))
            {
                return true;
            }
        }
        false
    }
}

/// Whether proc(5) `fdinfo` text is of a descriptor for writing on inode `ino`. The `ino` line is
/// there since Linux 5.14; without it the answer is no, and each close of the opener stores.
fn is_writable_descriptor_of(info: &str, ino: u64) -> bool {
    let writes = line(info, "flags:")
        .and_then(|f| i32::from_str_radix(f, 8).ok())
        .is_some_and(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY);
    writes && field(info, "ino:") == Some(ino)
}

fn line<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

fn field(info: &str, name: &str) -> Option<u64> {
    line(info, name)?.parse().ok()
}

fn start_of(tgid: u32) -> Option<u64> {
    stat_fields(tgid).map(|(_, start)| start)
}

/// State letter and start time (clock ticks since boot) of a process: fields 3 and 22 of proc(5)
/// stat. The command in field 2 may hold spaces and parentheses, so fields are counted from the
/// last parenthesis.
fn stat_fields(tgid: u32) -> Option<(char, u64)> {
    let stat = fs::read_to_string(format!("/proc/{tgid}/stat")).ok()?;
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;
    use std::process::{Command, Stdio};

    use super::*;

    fn any(_: u32, _: u64) -> bool {
        true
    }

    #[test]
    fn a_thread_of_the_opener_stores_once_no_copy_is_left() {
        let file = tempfile::tempfile().unwrap();
        let ino = file.metadata().unwrap().ino();
        let me = Opener::of(std::process::id());
        let thread = std::thread::spawn(|| nix::unistd::gettid().as_raw() as u32).join().unwrap();
        assert!(thread != me.tgid);
        assert!(!me.commits_on_close(me.tgid, ino, true, any), "descriptor {} is open", file.as_raw_fd());
        assert!(me.commits_on_close(me.tgid, ino, false, any));
        assert!(
            me.commits_on_close(me.tgid, ino, true, |_, _| false),
            "another file system's file of that number"
        );
        drop(file);
        assert!(me.commits_on_close(me.tgid, ino, true, any));
    }

    #[test]
    fn a_child_stores_only_after_its_parent() {
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let me = Opener::of(std::process::id());
        assert!(!me.commits_on_close(child.id(), 1, true, any));
        let gone = Opener::of(child.id());
        assert!(!gone.commits_on_close(std::process::id(), 1, true, any));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(gone.commits_on_close(std::process::id(), 1, true, any));
    }

    #[test]
    fn who_cannot_be_seen_stores() {
        assert!(Opener::of(0).commits_on_close(1, 1, true, any));
        assert!(Opener::of(std::process::id()).commits_on_close(0, 1, true, any));
    }
}
