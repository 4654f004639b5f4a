//! Groups of processes with a limit of their own, where a test may make one.

use std::fs;
use std::path::{Path, PathBuf};

use super::common::until;

/// A group with a limit; it goes with this, once its processes have ended.
pub struct Limited(PathBuf);

impl Limited {
    /// The limit's file by its name in version 2 and in version 1. `None`, said aloud, where no
    /// group can be made.
    pub fn to(controller: &str, limit: &str, old_limit: &str, value: u64) -> Option<Self> {
        let all = Path::new("/sys/fs/cgroup");
        let (parent, limit) = if all.join("cgroup.controllers").exists() {
            // It may be on already, or not be ours to turn on.
            let _ = fs::write(all.join("cgroup.subtree_control"), format!("+{controller}"));
            (all.to_owned(), limit)
        } else {
            (all.join(controller), old_limit)
        };
        let group = Self(parent.join(format!("vaultfs-test-{}-{controller}", std::process::id())));
        let made = fs::create_dir(&group.0).and_then(|()| fs::write(group.0.join(limit), value.to_string()));
        if let Err(e) = made {
            eprintln!(
                "SKIPPED: no group with a limit of its own can be made ({e}): that takes root and {controller} of cgroups"
            );
            return None;
        }
        // No such file in version 1.
        let _ = fs::write(group.0.join("memory.swap.max"), "0");
        Some(group)
    }

    /// Moves these processes to it; false, said aloud, where that is not allowed.
    pub fn takes(&self, pids: &[i32]) -> bool {
        for pid in pids {
            if let Err(e) = fs::write(self.0.join("cgroup.procs"), pid.to_string()) {
                eprintln!("SKIPPED: process {pid} cannot be moved to a group with a limit: {e}");
                return false;
            }
        }
        true
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            until("the group is empty", || !self.0.exists() || fs::remove_dir(&self.0).is_ok());
        }
    }
}

/// A group whose processes can be frozen (version 2); they are let go when this goes.
pub struct Freezer(PathBuf);

impl Freezer {
    /// `None`, said aloud, where no such group can be made.
    pub fn new() -> Option<Self> {
        let parents = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(Path::new);
        let parent = parents.into_iter().find(|parent| parent.join("cgroup.controllers").exists());
        let group = parent.map(|parent| parent.join(format!("vaultfs-test-{}-freezer", std::process::id())));
        let made = group.filter(|group| fs::create_dir(group).is_ok()).map(Self);
        if made.is_none() {
            eprintln!("SKIPPED: no group can be frozen: that takes root and cgroups of version 2");
        }
        made
    }

    /// Freezes this process; false, said aloud, where that is not allowed.
    pub fn freezes(&self, pid: i32) -> bool {
        let frozen = fs::write(self.0.join("cgroup.procs"), pid.to_string())
            .and_then(|()| fs::write(self.0.join("cgroup.freeze"), "1"));
        if let Err(e) = &frozen {
            eprintln!("SKIPPED: process {pid} cannot be frozen: {e}");
        }
        frozen.is_ok()
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.freeze"), "0");
        if !std::thread::panicking() {
            until("the group is empty", || fs::remove_dir(&self.0).is_ok());
        }
    }
}
