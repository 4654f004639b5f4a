//! The processes that keep a mount busy, found without accessing the mount.
//!
//! Following a link in /proc/PID/fd, or stat(2) on a path, may ask the mount's daemon. What is read
//! here does not: `mnt_id` in /proc/PID/fdinfo, device numbers in /proc/PID/maps, and the *text* of
//! the links cwd, root and exe. Processes of other users are seen by root only.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::sys::mount_table;
use crate::sys::mount_table::{Dev, Entry};
use crate::sys::process;

/// A process that uses a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its id.
    pub pid: u32,
    /// Its name (`comm`).
    pub name: String,
}

/// The processes that use `mount`, without the calling one.
pub fn users(mount: &Entry) -> Vec<User> {
    let mut found: Vec<User> = process::all()
        .filter(|pid| *pid != std::process::id() && uses(*pid, mount))
        .map(|pid| User { pid, name: name(pid) })
        .collect();
    found.sort_by_key(|user| user.pid);
    found
}

/// Processes in a mount namespace that has the file system of `mount` bound to another place than
/// its own: containers. A namespace that was copied whole has it where it was, and one that was
/// given all of `/` has it below that (`-v /:/host`): neither uses it.
pub fn bound_elsewhere(mount: &Entry) -> Vec<User> {
    let is_bound = |pid: &u32| {
        fs::read(format!("/proc/{pid}/mountinfo")).is_ok_and(|table| is_bound_elsewhere(&table, mount))
    };
    process::all().filter(is_bound).map(|pid| User { pid, name: name(pid) }).collect()
}

fn is_bound_elsewhere(table: &[u8], mount: &Entry) -> bool {
    let device = mount.dev.to_string();
    let own = mount.mountpoint.as_os_str().as_bytes();
    table.split(|b| *b == b'\n').any(|line| {
        let mut fields = line.split(|b| *b == b' ').skip(2);
        fields.next() == Some(device.as_bytes())
            && !(fields.next() == Some(b"/")
                && fields.next().is_some_and(|at| mount_table::unescape(at).as_bytes().ends_with(own)))
    })
}

/// A process of each mount namespace that has the file system `dev`, as far as this user may look.
pub fn namespaces_with(dev: Dev) -> Vec<User> {
    let mut pids: Vec<u32> = process::all().collect();
    pids.sort_unstable();
    let device = dev.to_string();
    // Its device number goes to the next file system when it ends.
    let kind = format!(" - {} ", mount_table::FS_TYPE);
    let is_it = |line: &str| line.split(' ').nth(2) == Some(&*device) && line.contains(&kind);
    let has = |table: &str| table.lines().any(is_it);
    let mut seen = Vec::new();
    let mut found = Vec::new();
    for pid in pids {
        let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/mnt")) else { continue };
        if seen.contains(&namespace) {
            continue;
        }
        // One that has just ended has no table any more, and others of its namespace may.
        let Some(table) = text(format!("/proc/{pid}/mountinfo")) else { continue };
        if table.is_empty() {
            continue;
        }
        if has(&table) {
            found.push(User { pid, name: name(pid) });
        }
        seen.push(namespace);
    }
    found
}

/// Paths in it need not be UTF-8: any user may add one.
fn text(path: impl AsRef<Path>) -> Option<String> {
    Some(String::from_utf8_lossy(&fs::read(path).ok()?).into_owned())
}

fn name(pid: u32) -> String {
    text(format!("/proc/{pid}/comm")).map_or_else(|| "?".into(), |name| name.trim_end().to_owned())
}

fn uses(pid: u32, mount: &Entry) -> bool {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    stands_in(&proc, &mount.mountpoint) || has_open(&proc, mount.id) || has_mapped(&proc, mount)
}

/// Working directory, root directory and program.
fn stands_in(proc: &Path, mountpoint: &Path) -> bool {
    ["cwd", "root", "exe"].iter().any(|link| {
        fs::read_link(proc.join(link)).is_ok_and(|target| {
            // Of a deleted directory the kernel says "/path (deleted)".
            let text = target.as_os_str().as_bytes();
            let text = text.strip_suffix(b" (deleted)").unwrap_or(text);
            Path::new(std::ffi::OsStr::from_bytes(text)).starts_with(mountpoint)
        })
    })
}

fn has_open(proc: &Path, mount_id: u64) -> bool {
    let Ok(descriptors) = fs::read_dir(proc.join("fdinfo")) else { return false };
    descriptors.flatten().any(|entry| {
        fs::read_to_string(entry.path()).is_ok_and(|info| {
            info.lines()
                .find_map(|line| line.strip_prefix("mnt_id:"))
                .is_some_and(|id| id.trim().parse() == Ok(mount_id))
        })
    })
}

fn has_mapped(proc: &Path, mount: &Entry) -> bool {
    let (major, minor) = mount.dev.numbers();
    let device = format!("{major:02x}:{minor:02x}");
    text(proc.join("maps")).is_some_and(|maps| {
        maps.lines().any(|line| line.split_ascii_whitespace().nth(3) == Some(device.as_str()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> Entry {
        mount_table::table().unwrap().into_iter().rfind(|e| e.mountpoint == Path::new("/")).unwrap()
    }

    #[test]
    fn an_open_file_is_found_by_its_mount() {
        let mut mount = root();
        mount.mountpoint = "/nowhere".into();
        mount.dev = mount_table::Dev::from_raw(libc::makedev(255, 255));
        let file = fs::File::open("/proc/self/stat").unwrap();
        let info =
            fs::read_to_string(format!("/proc/self/fdinfo/{}", std::os::fd::AsRawFd::as_raw_fd(&file)));
        let id = info.unwrap().lines().find_map(|l| l.strip_prefix("mnt_id:")?.trim().parse().ok()).unwrap();
        mount.id = id;
        assert!(uses(std::process::id(), &mount));
        mount.id = u64::MAX;
        assert!(!uses(std::process::id(), &mount));
    }

    #[test]
    fn what_has_the_whole_tree_does_not_use_a_mount() {
        let line =
            |root: &str, at: &str| format!("36 35 0:45 {root} {at} rw - fuse.vaultfs vaultfs rw,user_id=0");
        let mount = Entry { mountpoint: "/a b/v".into(), dev: "0:45".parse().unwrap(), ..root() };
        let is_bound = |root: &str, at: &str| is_bound_elsewhere(line(root, at).as_bytes(), &mount);
        assert!(!is_bound("/", r"/a\040b/v") && !is_bound("/", r"/host/a\040b/v"));
        assert!(is_bound("/", "/secrets") && is_bound("/", "/v") && is_bound("/db", r"/a\040b/v"));
        assert!(!is_bound_elsewhere(line("/", "/s").replace("0:45", "0:46").as_bytes(), &mount));
    }

    #[test]
    fn a_directory_of_the_same_beginning_is_another() {
        let cwd = std::env::current_dir().unwrap();
        let proc = PathBuf::from("/proc/self");
        assert!(stands_in(&proc, &cwd));
        let longer = PathBuf::from(format!("{}x", cwd.display()));
        assert!(!stands_in(&proc, &longer));
    }
}
