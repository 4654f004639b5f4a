//! File names of temporaries: scratch files, which never reach the vault, and files that are often
//! an editor's and are held back for a while. Only names that are certain are scratch.

use glob::Pattern;

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
