//! The secrets of containers: files of mode 0444 in a file system in memory at `/run/secrets`, which only the container has.
//!
//! Engines make them so for programs of any user in the container. The mode says nothing about other users of the
//! machine, because the file system is read-only, or its mount is private to the container (in no peer group, mount_namespaces(7)).

use std::fs::File;
use std::os::fd::AsRawFd;

/// Where engines mount them.
const SECRETS: &str = "/run/secrets";

/// Whether the file is on such a mount.
pub fn has(file: &File) -> bool {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read(&format!("/proc/self/fdinfo/{}", file.as_raw_fd()));
    let Some(id) = info.lines().find_map(|line| line.strip_prefix("mnt_id:")) else { return false };
    is_secret(id.trim(), &read("/proc/self/mountinfo"))
}

/// By the mount table (proc_pid_mountinfo(5)).
fn is_secret(id: &str, table: &str) -> bool {
    let found = table.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|line| line[0] == id);
    let Some((mount, file_system)) = found.as_ref().and_then(|line| {
        let dash = line.iter().position(|field| *field == "-")?;
        Some((&line[..dash], &line[dash + 1..]))
    }) else {
        return false;
    };
    let ([_, _, _, _, at, options, peers @ ..], [kind, _, more, ..]) = (mount, file_system) else {
        return false;
    };
    let below = at.strip_prefix(SECRETS).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let read_only = [options, more].iter().any(|options| options.split(',').any(|option| option == "ro"));
    let private = !peers.iter().any(|peer| peer.starts_with("shared:"));
    below && matches!(*kind, "tmpfs" | "ramfs") && (read_only || private)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_file_system_in_memory_of_its_own_counts() {
        let is = |line: &str| is_secret("7", &format!("6 1 0:1 / / rw - ext4 /dev/a rw\n7 6 0:9 {line}\n"));
        // swarm, podman, compose with a directory for each.
        assert!(is("/ /run/secrets ro,relatime - tmpfs tmpfs ro,mode=755"));
        assert!(is("/containers/4f/secrets /run/secrets rw,nosuid - tmpfs tmpfs rw"));
        assert!(is("/ /run/secrets/key rw master:4 - ramfs none rw"));
        assert!(is("/ /run/secrets ro,relatime shared:3 - tmpfs tmpfs rw"));
        // The machine's own: all its users see it.
        assert!(!is("/ /run/secrets rw,relatime shared:3 - tmpfs tmpfs rw"));
        assert!(!is("/ /run rw,nosuid - tmpfs tmpfs rw"));
        assert!(!is("/ /run/secretsx ro - tmpfs tmpfs ro"));
        assert!(!is("/home/u/key /run/secrets/key ro - ext4 /dev/a rw"));
        assert!(!is_secret("8", "7 6 0:9 / /run/secrets ro - tmpfs tmpfs ro") && !is(""));
    }
}
