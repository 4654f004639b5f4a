//! Which program unlinks a file: one that removes files, or one that may be about to create the
//! file anew.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use crate::sys::program::{name_of, tgid_of};

/// What a program that unlinks a file is known for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remover {
    /// It removes files: its user waits for the deletion.
    Removes,
    /// It unlinks files to create them anew.
    Replaces,
    /// Neither.
    Unknown,
}

/// Programs that remove files, as the kernel names them (at most 15 bytes), in lower case.
const REMOVE: &str = "rm unlink find bfs shred srm wipe vaultfs systemd-tmpfile tmpreaper tmpwatch rmlint fdupes \
    ncdu trash trash-put trash-empty trash-rm gio gvfs-rm gvfs-trash gvfsd-trash mc ranger nnn \
    lf vifm yazi nautilus nemo caja thunar pcmanfm pcmanfm-qt spacefm doublecmd krusader \
    konqueror dolphin kioclient kioclient5 kioworker kioslave5 kioslave";

/// Programs that unlink a file and create it anew.
const REPLACE: &str = "install mv cp ln rsync tar bsdtar unzip 7z 7za 7zr cpio git gzip pigz bzip2 xz lzip zstd lz4 \
    ssh-keygen xauth";

/// Programs that are many, the first argument says which.
const MANY: &[&str] = &["busybox", "toybox", "coreutils"];

/// How long the arguments of a process are waited for: they are in its memory, which it may have
/// put where reading waits.
const PATIENCE: Duration = Duration::from_secs(1);

impl Remover {
    /// What the program is known for that the thread `tid` runs; 0 is one that cannot be seen.
    pub async fn of(tid: u32) -> Self {
        let Some(pid) = (tid != 0).then(|| tgid_of(tid)).flatten() else { return Self::Unknown };
        let Some(name) = name_of(pid) else { return Self::Unknown };
        if !MANY.contains(&name.as_str()) {
            return Self::by_name(&name);
        }
        let arguments = tokio::task::spawn_blocking(move || fs::read(format!("/proc/{pid}/cmdline")));
        match tokio::time::timeout(PATIENCE, arguments).await {
            Ok(Ok(Ok(arguments))) => Self::by_arguments(&arguments),
            _ => Self::Unknown,
        }
    }

    fn by_name(name: &str) -> Self {
        let name = name.to_lowercase();
        if REMOVE.split_whitespace().any(|known| known == name) {
            Self::Removes
        } else if REPLACE.split_whitespace().any(|known| known == name) {
            Self::Replaces
        } else {
            Self::Unknown
        }
    }

    /// By the first argument that names one of the programs.
    fn by_arguments(arguments: &[u8]) -> Self {
        let name = |argument: &[u8]| {
            let name = Path::new(OsStr::from_bytes(argument)).file_name()?.to_str()?;
            (!MANY.contains(&name)).then(|| Self::by_name(name))
        };
        arguments.split(|byte| *byte == 0).take(2).find_map(name).unwrap_or(Self::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_known_by_the_name_that_the_kernel_gives_them() {
        let all = REMOVE.split_whitespace().chain(REPLACE.split_whitespace());
        let long: Vec<_> = all.filter(|name| name.len() > 15).collect();
        assert!(long.is_empty(), "{long:?} are cut by the kernel");
        for (name, expected) in [
            ("rm", Remover::Removes),
            ("Thunar", Remover::Removes),
            ("git", Remover::Replaces),
            ("python3", Remover::Unknown),
            ("", Remover::Unknown),
        ] {
            assert_eq!(Remover::by_name(name), expected, "{name}");
        }
    }

    #[test]
    fn a_program_that_is_many_is_known_by_its_first_argument() {
        for (arguments, expected) in [
            (&b"busybox\0rm\0f\0"[..], Remover::Removes),
            (b"/bin/busybox\0/bin/rm\0", Remover::Removes),
            (b"rm\0busybox\0", Remover::Removes),
            (b"busybox\0tar\0x\0", Remover::Replaces),
            (b"busybox\0sh\0-c\0rm f\0", Remover::Unknown),
            (b"busybox\0sh\0rm\0", Remover::Unknown),
            (b"\0rm\0", Remover::Removes),
            (b"", Remover::Unknown),
        ] {
            assert_eq!(Remover::by_arguments(arguments), expected, "{arguments:?}");
        }
    }

    #[tokio::test]
    async fn a_process_that_cannot_be_seen_is_unknown() {
        assert_eq!(Remover::of(0).await, Remover::Unknown);
        assert_eq!(Remover::of(std::process::id()).await, Remover::Unknown);
    }
}
