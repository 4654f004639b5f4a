//! Scratch files: editors' temporaries that never reach the vault, told by their name.
//!
//! Only names that are certain are in here (FIELD-NOTES: what programs leave beside a file); a name that
//! exists in the vault is never scratch. They live in memory, bounded, and are gone at unmount.

use std::sync::atomic::Ordering;

use glob::Pattern;

use super::FileSystem;
use super::errno::{Errno, Result};

/// Swap files of vim, locks and autosaves of emacs, droppings of desktops, NFS and FUSE.
const BUILT_IN: &[&str] = &[
    ".*.sw[a-p]",
    ".*.sw[a-p]x",
    ".#*",
    "#*#",
    "._*",
    ".DS_Store",
    ".Trash-*",
    ".nfs*",
    ".fuse_hidden*",
    ".goutputstream-*",
];

/// The patterns of a mount.
#[derive(Debug)]
pub struct Patterns(Vec<Pattern>);

impl Patterns {
    /// The built-in ones and those of `--scratch`, which the command line has checked.
    pub fn new(more: &[String]) -> Self {
        let all = BUILT_IN.iter().copied().chain(more.iter().map(String::as_str));
        Self(all.filter_map(|p| Pattern::new(p).ok()).collect())
    }

    /// Whether a file of this name is scratch, if the vault has no such object.
    pub fn matches(&self, component: &str) -> bool {
        self.0.iter().any(|p| p.matches(component))
    }
}

impl FileSystem {
    /// Accounts for a scratch file that changes from `from` to `to` bytes; ENOSPC beyond the bound.
    pub(super) fn account_scratch(&self, from: u64, to: u64) -> Result<()> {
        let bound = self.options.scratch_size;
        let update = |used: u64| {
            let next = used.saturating_sub(from).saturating_add(to);
            (to <= from || next <= bound).then_some(next)
        };
        match self.scratch_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update) {
            Ok(_) => Ok(()),
            Err(_) => Err(self.refused(
                "write",
                "a scratch file",
                Errno::ENOSPC,
                "all scratch files together are limited to 16 MiB",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_certain_is_scratch() {
        let patterns = Patterns::new(&["*.part".into()]);
        for name in [".a.swp", ".a.swo", ".a.swpx", ".#a", "#a#", "._x", ".DS_Store", "x.part"] {
            assert!(patterns.matches(name), "{name}");
        }
        for name in ["a.swp", ".env.docker", "4913", "a~", "sedAbCdEf", "password", ".swp"] {
            assert!(!patterns.matches(name), "{name}");
        }
    }
}
