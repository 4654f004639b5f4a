//! The secrets of containers: files of mode 0444 in a file system in memory at `/run/secrets`,
//! which only the container has.
//!
//! Engines make them so for programs of any user in the container. The mode says nothing about
//! other users of the machine, because the file system is read-only, or its mount is private to the
//! container (in no peer group, mount_namespaces(7)).

use std::fs::File;
use std::os::fd::AsFd;

use crate::sys::files::ownership;

/// Where engines mount them.
const SECRETS: &str = "/run/secrets";

/// Whether the file is on such a mount.
pub fn has(file: &File) -> bool {
    ownership::mount_line(file.as_fd()).ok().flatten().is_some_and(|line| is_secret(&line))
}

/// By its line of the mount table.
fn is_secret(line: &str) -> bool {
    let Some((mount, file_system)) = line.split_once(" - ") else { return false };
    let (mount, file_system): (Vec<_>, Vec<_>) =
        (mount.split(' ').collect(), file_system.split(' ').collect());
    let ([_, _, _, _, at, options, peers @ ..], [kind, _, more, ..]) = (&*mount, &*file_system) else {
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
        let is = |line: &str| is_secret(&format!("7 6 0:9 {line}"));
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
        assert!(!is("") && !is("/ /run/secrets ro - tmpfs"));
    }
}
