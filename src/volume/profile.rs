//! Profiles: options that a volume names (`-o profile=NAME`) and does not have itself.
//!
//! A profile is a file of the plugin's user or root that others cannot write to: a vault, its key
//! file, commands to run. One option in a line, `name=value` or `name`; lines that begin with `#`
//! are comments. It is read at each mount.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::options::Profile;
use super::state;
use crate::display::Shown;
use crate::sys::files;

/// Far more than all options.
const LONGEST: u64 = 64 << 10;
/// Permissions of others that a profile must not have.
const WRITABLE: u32 = 0o022;

/// The profiles of a plugin.
#[derive(Debug)]
pub struct Profiles(PathBuf);

impl Profiles {
    /// Those in this directory, which need not be there.
    pub fn new(dir: PathBuf) -> Self {
        Self(dir)
    }

    /// Where they are.
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// One profile; an error is a sentence.
    pub fn read(&self, name: &str) -> Result<Profile, String> {
        if state::check_name(name).is_err() {
            return Err("-o profile: a profile's name has letters, digits, and _ . - after the first".into());
        }
        let path = self.0.join(name);
        let failed = |e: &dyn std::fmt::Display| format!("-o profile={name}: {}: {e}", path.shown());
        let opened = files::open(&path, None).map_err(|e| failed(&e))?;
        if opened.mode() & WRITABLE != 0 {
            return Err(failed(&"others can write to it: chmod go-w"));
        }
        let text = opened.read(LONGEST).map_err(|e| failed(&e))?;
        let text = std::str::from_utf8(&text).map_err(|_| failed(&"it is not UTF-8"))?;
        Ok((name.to_owned(), options(text).map_err(|e| failed(&e))?))
    }
}

/// The options in a profile's text.
fn options(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut options = BTreeMap::new();
    for (number, line) in text.lines().map(str::trim).enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        // The line is not quoted: it may be a key, by mistake.
        let is_name = name.trim().bytes().all(|b| b.is_ascii_lowercase() || b"-_".contains(&b));
        if !is_name || name.starts_with('-') || name.trim().is_empty() {
            return Err(format!(
                "line {} is no option: write name=value, without dashes before it",
                number + 1
            ));
        }
        if options.insert(name.trim().to_owned(), value.trim().to_owned()).is_some() {
            return Err(format!("line {}: the option is there twice", number + 1));
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_profile_is_lines() {
        let text = "# the database\n\napi-url = https://x\n  on-change=kill -HUP 1; echo a=b\nread-only\n";
        let options = options(text).expect("well formed");
        let said: Vec<_> = options.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(
            said,
            [("api-url", "https://x"), ("on-change", "kill -HUP 1; echo a=b"), ("read-only", "")]
        );
        for (text, says) in [
            ("\n--api-url=x", "line 2 is no option"),
            ("=x", "line 1"),
            ("sk_Geheim", "line 1 is no option"),
            ("audit=/a\naudit=/b", "line 2: the option is there twice"),
        ] {
            let said = super::options(text).expect_err("wrong");
            assert!(said.contains(says) && !said.contains("Geheim"), "{said}");
        }
    }

    #[test]
    fn only_files_that_nobody_else_can_write_are_profiles() {
        let dir = tempfile::tempdir().expect("a directory");
        let profiles = Profiles::new(dir.path().to_owned());
        let path = dir.path().join("db");
        let said = |name: &str| profiles.read(name).expect_err("refused");
        assert!(said("db").contains("/db: No such file"), "{}", said("db"));
        for name in ["../db", "", "a/b", ".."] {
            assert!(said(name).contains("a profile's name"), "{name}");
        }
        fs::write(&path, "read-only").expect("own directory");
        fs::set_permissions(&path, Permissions::from_mode(0o664)).expect("own file");
        assert!(said("db").contains("chmod go-w"));
        fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("own file");
        assert_eq!(profiles.read("db").expect("well").1["read-only"], "");
        fs::write(&path, [0xff]).expect("own directory");
        assert!(said("db").contains("not UTF-8"));
        fs::create_dir(dir.path().join("d")).expect("own directory");
        assert!(said("d").contains("irectory"), "{}", said("d"));
    }
}
