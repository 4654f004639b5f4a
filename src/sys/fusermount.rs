//! Mounting and unmounting for ordinary users, through the set-uid program `fusermount3`.
//!
//! The protocol: it is started with the number of a socket in `_FUSE_COMMFD`, mounts, sends the
//! open /dev/fuse descriptor over that socket (one byte and SCM_RIGHTS) and exits. What it prints
//! on standard error is written for people and is passed on.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::sys::channel::receive_descriptor;
use crate::sys::files::ownership::by_descriptor;
use crate::sys::mount::KernelOptions;

/// Where `fusermount3` is, if it is installed.
pub fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin"));
    let usual = ["/usr/bin", "/bin", "/usr/local/bin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .chain(usual)
        .map(|dir| dir.join("fusermount3"))
        .find(|program| program.metadata().is_ok_and(|m| m.is_file() && m.mode() & 0o111 != 0))
}

fn program() -> io::Result<PathBuf> {
    find().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "fusermount3 is not installed"))
}

/// Mounts on `directory`, and returns the /dev/fuse descriptor (close-on-exec). The program takes
/// the directory's path and looks that up once more: the caller compares where the mount is.
pub fn mount(directory: BorrowedFd<'_>, options: &KernelOptions) -> io::Result<OwnedFd> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
    let mut command = Command::new(program()?);
    command.current_dir(by_descriptor(directory));
    command.arg("-o").arg(option_text(options)).args(["--", "."]);
    command.env("_FUSE_COMMFD", theirs.as_raw_fd().to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let inherited = theirs.as_raw_fd();
    // SAFETY: only fcntl(2) is called between fork and exec, on a descriptor that is open in the
    // child.
    unsafe {
        command.pre_exec(move || match libc::fcntl(inherited, libc::F_SETFD, 0) {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    let child = command.spawn()?;
    drop(theirs);
    let received = receive_descriptor(ours.as_fd());
    drop(ours);
    let output = child.wait_with_output()?;
    match received {
        Ok(Some(device)) if output.status.success() => Ok(device),
        Err(e) => Err(e),
        _ => Err(io::Error::other(said(&output.stderr))),
    }
}

/// Unmounts; `lazy` detaches a mount that is in use.
pub fn unmount(mountpoint: &Path, lazy: bool) -> io::Result<()> {
    let mut command = Command::new(program()?);
    command.arg("-u");
    if lazy {
        command.arg("-z");
    }
    let output = command.arg("--").arg(mountpoint).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = said(&output.stderr);
    Err(if text.contains("resource busy") {
        io::Error::from_raw_os_error(libc::EBUSY)
    } else {
        io::Error::other(text)
    })
}

fn option_text(options: &KernelOptions) -> String {
    // A comma ends an option there unless a backslash is before it.
    let source = options.source().replace('\\', "\\\\").replace(',', "\\,");
    let mut text = format!("rw,nosuid,nodev,default_permissions,fsname={source},subtype=vaultfs");
    let switches = [
        (options.allow_other, ",allow_other"),
        (options.noexec, ",noexec"),
        (options.sync, ",sync"),
        (options.noatime, ",noatime"),
    ];
    text.extend(switches.iter().filter(|(on, _)| *on).map(|(_, name)| *name));
    text
}

/// The program's message, without its name.
fn said(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let text = text.trim();
    let text = text.rsplit_once("fusermount3: ").map_or(text, |(_, rest)| rest);
    if text.is_empty() { "fusermount3 failed and did not say why".into() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_always_nosuid_and_nodev() {
        let text =
            option_text(&KernelOptions { allow_other: true, noexec: true, ..KernelOptions::default() });
        assert_eq!(
            text,
            "rw,nosuid,nodev,default_permissions,fsname=vaultfs,subtype=vaultfs,allow_other,noexec"
        );
        let named = KernelOptions { source: Some("embedded=/a,b".into()), ..KernelOptions::default() };
        assert!(option_text(&named).ends_with(r"fsname=embedded=/a\,b,subtype=vaultfs"));
    }

    #[test]
    fn its_own_words_are_passed_on() {
        assert_eq!(said(b"fusermount3: user has no write access\n"), "user has no write access");
        assert!(said(b"").contains("did not say"));
    }
}
