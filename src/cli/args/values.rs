//! What people type behind options: times, sizes, users. A refusal says what would be taken.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use nix::unistd::{Group, User};

use crate::daemon::runtime_dir;
use crate::sys::files;
use crate::vault::ObjectName;

/// The largest `--max-size`: a value is in memory several times while it is read or stored.
const LARGEST_VALUE: ByteSize = ByteSize::gib(1);

/// `HOME`, where it exists: no home is made here. Where an ordinary user has none, as behind
/// mount(8), which is set-uid and passes none on, the user's entry in the password file. Root has
/// none at boot, and places of its own for what others keep at home.
pub fn home() -> Option<PathBuf> {
    let given =
        std::env::var_os("HOME").map(PathBuf::from).filter(|path| path.is_absolute() && is_directory(path));
    let user = nix::unistd::geteuid();
    let own = || User::from_uid(user).ok().flatten().map(|user| user.dir).filter(|path| path.is_absolute());
    given.or_else(|| (!user.is_root()).then(own).flatten())
}

fn is_directory(path: &Path) -> bool {
    files::check_way(path).is_ok() && path.is_dir()
}

/// Of each command that finds mounts.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct RuntimeDirArg {
    /// Use DIR/vaultfs for the control sockets of mounts
    ///
    /// Without it, vaultfs uses the first usable directory of /run/vaultfs (root only),
    /// $XDG_RUNTIME_DIR/vaultfs, /run/user/UID/vaultfs and /tmp/vaultfs-UID. Commands look in all
    /// of them, and in DIR.
    #[arg(help_heading = None, long, value_name = "DIR", value_parser = absolute_path)]
    runtime_dir: Option<PathBuf>,
}

impl RuntimeDirArg {
    /// What was given.
    pub fn dir(&self) -> Option<&Path> {
        self.runtime_dir.as_deref()
    }

    /// Has this process look there.
    pub fn apply(&self) {
        if let Some(dir) = self.dir() {
            runtime_dir::prefer(dir);
        }
    }
}

/// A path for processes with another working directory.
pub fn absolute_path(text: &str) -> Result<PathBuf, String> {
    std::path::absolute(text).map_err(|e| e.to_string())
}

/// `10s`, `1m 30s`.
pub fn time(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "give a number and its unit, like 500ms, 10s, 1m or 1h".into())
}

/// The name of an object.
pub fn name(text: &str) -> Result<String, String> {
    ObjectName::new(text).map(|_| text.to_owned()).ok_or_else(|| "a name has 1 to 1024 bytes".into())
}

/// The number of a version.
pub fn version(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "give a version number, like 3 (`vaultfs log NAME` lists them)".into())
}

/// A time that is not nothing.
pub fn some_time(text: &str) -> Result<Duration, String> {
    match time(text)? {
        Duration::ZERO => Err("there is always some time in between: give more, like 5s".into()),
        time => Ok(time),
    }
}

/// `1MiB`, `64k`, `4096`.
pub fn size(text: &str) -> Result<ByteSize, String> {
    text.parse().map_err(|_| "give a number of bytes, or one with a unit, like 512KiB or 64MiB".into())
}

/// A size that is not nothing.
pub fn some_size(text: &str) -> Result<ByteSize, String> {
    match size(text)? {
        ByteSize(0) => Err("nothing would fit: give more, like 64MiB".into()),
        size => Ok(size),
    }
}

/// The most that a value may have.
pub fn value_size(text: &str) -> Result<ByteSize, String> {
    match some_size(text)? {
        size if size > LARGEST_VALUE => {
            Err(format!("values are held in memory, {LARGEST_VALUE} is the most: give less"))
        }
        size => Ok(size),
    }
}

/// `10.0.0.0/8`, `192.0.2.1`.
pub fn network(text: &str) -> Result<ipnet::IpNet, String> {
    let address = || text.parse::<std::net::IpAddr>().map(ipnet::IpNet::from).ok();
    text.parse().ok().or_else(address).ok_or_else(|| "give an address, or a network like 10.0.0.0/8".into())
}

/// A user's number or name.
pub fn user(text: &str) -> Result<u32, String> {
    let named = |name: &str| User::from_name(name).ok().flatten().map(|user| user.uid.as_raw());
    number_or_name(text, named).ok_or_else(|| "there is no such user: give a name or a number".into())
}

/// A group's number or name.
pub fn group(text: &str) -> Result<u32, String> {
    let named = |name: &str| Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw());
    number_or_name(text, named).ok_or_else(|| "there is no such group: give a name or a number".into())
}

fn number_or_name(text: &str, named: impl FnOnce(&str) -> Option<u32>) -> Option<u32> {
    // The last number means "nobody in particular" to chown(2).
    text.parse().ok().filter(|id| *id != u32::MAX).or_else(|| named(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_meant_is_taken() {
        assert_eq!(time("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(size("0"), Ok(ByteSize(0)));
        assert_eq!(value_size("1GiB"), Ok(ByteSize::gib(1)));
        assert_eq!((user("root"), user("1000"), group("root")), (Ok(0), Ok(1000), Ok(0)));
    }

    #[test]
    fn what_is_not_is_refused_with_an_example() {
        assert!(time("xx").unwrap_err().contains("10s"));
        assert!(time("10").unwrap_err().contains("10s"));
        assert!(some_time("0s").unwrap_err().contains("5s"));
        assert!(size("1x").unwrap_err().contains("64MiB"));
        assert!(some_size("0").unwrap_err().contains("64MiB"));
        assert!(value_size("1025MiB").unwrap_err().contains("give less"));
        assert!(value_size("0").is_err());
        assert!(user("no-such-user").unwrap_err().contains("a name or a number"));
        assert!(group("no-such-group").unwrap_err().contains("a name or a number"));
        assert!(user("4294967295").is_err());
    }
}
