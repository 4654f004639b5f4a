//! Scratch files: editors' temporaries that never reach the vault, recognized by their name.
//!
//! Only names that are certain are in here; a name
//! that exists in the vault is never scratch. They live in memory, bounded, and are gone at
//! unmount.

use std::sync::Arc;

use glob::Pattern;
use parking_lot::Mutex;

use crate::fs::inode::file::FileState;
use crate::fs::types::env::Env;
use crate::fs::types::errno::{Errno, Result};

/// Swap and undo files of vim, locks and autosaves of emacs, droppings of desktops, NFS and FUSE.
const BUILT_IN: &[&str] = &[
    ".*.sw[a-p]",
    ".*.sw[a-p]x",
    ".*.un~",
    ".#*",
    "#*#",
    "._*",
    ".DS_Store",
    ".nfs*",
    ".fuse_hidden*",
    ".goutputstream-*",
];

/// Names that are often, but not always, an editor's temporary: `provisional`.
const OFTEN: &[&str] = &[
    "*~",
    "4913",
    "sed??????",
    ".*.??????",
    "tmp????????",
    "tmp.??????????",
    "XX??????",
    "*.tmp",
    "*.lock",
    "*.new",
    "*.orig",
    "*.bak",
    "*.old",
];

/// The patterns of a mount.
#[derive(Debug)]
pub struct Patterns {
    certain: Vec<Pattern>,
    often: Vec<Pattern>,
}

impl Patterns {
    /// The built-in ones and those of `--scratch`, which the command line has checked.
    pub fn new(more: &[String]) -> Self {
        let all = BUILT_IN.iter().copied().chain(more.iter().map(String::as_str));
        let patterns =
            |all: &mut dyn Iterator<Item = &str>| all.filter_map(|p| Pattern::new(p).ok()).collect();
        Self { certain: patterns(&mut { all }), often: patterns(&mut OFTEN.iter().copied()) }
    }

    /// Whether a file of this name is scratch, if the vault has no such object.
    pub fn matches(&self, component: &str) -> bool {
        self.certain.iter().any(|p| p.matches(component))
    }

    /// Whether a file of this name is held back for a while, if the vault has no such object.
    pub fn is_provisional(&self, component: &str) -> bool {
        self.often.iter().any(|p| p.matches(component))
    }
}

/// Which files are held back from the vault by their name, and how many bytes.
pub(in crate::fs) struct Temporaries {
    env: Arc<Env>,
    patterns: Patterns,
    /// Bytes held back in all. A leaf: nothing else is locked while this is.
    bytes: Mutex<u64>,
}

impl Temporaries {
    pub fn new(env: Arc<Env>) -> Self {
        Self { patterns: Patterns::new(&env.options().scratch), bytes: Mutex::new(0), env }
    }

    pub fn patterns(&self) -> &Patterns {
        &self.patterns
    }

    /// Bytes held back in all.
    pub fn bytes(&self) -> u64 {
        *self.bytes.lock()
    }

    /// Reserves quota for a file that is held back to have `size` bytes; ENOSPC beyond the bound.
    /// Others need none.
    pub fn reserve_room(&self, state: &mut FileState, size: u64) -> Result<()> {
        if !state.is_only_here() {
            return Ok(());
        }
        let bound = self.env.options().scratch_size;
        let mut used = self.bytes.lock();
        let next = used.saturating_sub(state.quota_bytes).saturating_add(size);
        if size > state.quota_bytes && next > bound {
            drop(used);
            let why = format!(
                "files that are held back from the vault are limited to {bound} bytes together (--scratch-size)"
            );
            return Err(self.env.refused("write", state.name.as_str(), Errno::ENOSPC, &why));
        }
        *used = next;
        state.quota_bytes = size;
        Ok(())
    }

    /// Accounts for a file that was moved, closed, unlinked or stored: what it holds back now,
    /// whatever the bound.
    pub fn account_room(&self, state: &mut FileState) {
        let held = if state.is_only_here() { state.buffer.as_ref().map_or(0, |b| b.bytes.len()) } else { 0 };
        let now = held as u64;
        let mut used = self.bytes.lock();
        *used = used.saturating_sub(state.quota_bytes).saturating_add(now);
        state.quota_bytes = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_certain_is_scratch() {
        let patterns = Patterns::new(&["*.part".into()]);
        for name in [".a.swp", ".a.swo", ".a.swpx", ".a.un~", ".#a", "#a#", "._x", ".DS_Store", "x.part"] {
            assert!(patterns.matches(name), "{name}");
        }
        for name in ["a.swp", ".env.docker", "4913", "a~", "sedAbCdEf", "password", ".swp", "a.un~", ".un~"] {
            assert!(!patterns.matches(name), "{name}");
        }
        for name in [
            "a~",
            "4913",
            "sedAbCdEf",
            ".env.docker",
            "tmp12345678",
            "a.tmp",
            "index.lock",
            "a.new",
            "a.orig",
            "a.bak",
            "a.old",
        ] {
            assert!(patterns.is_provisional(name), "{name}");
        }
        for name in ["a", "sedAbC", ".env", "tmp", "template", "4914", "lock"] {
            assert!(!patterns.is_provisional(name), "{name}");
        }
    }
}
