//! `mount.vaultfs`, `mount.fuse.vaultfs` and their `umount` counterparts: how mount(8) calls
//! vaultfs.
//!
//! mount(8) knows no file system of this type, so it runs the program `/sbin/mount.TYPE SRC DIR -o
//! OPTIONS`, which is this binary under another name. What it was called as decides (argv[0]). SRC
//! says which vault, and the rest is `vaultfs mount` with the options rewritten. umount(8) runs
//! `/sbin/umount.fuse.vaultfs` likewise, so that it stores what is unsaved before it unmounts, and
//! fails where that fails. Exit codes are mount(8)'s: 1 for a wrong command line, 32 for a failure.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use nix::sched::{CloneFlags, setns};

use crate::cli::args::connect::SYSTEM_VAULT;
use crate::cli::args::{mount_options, parse};
use crate::cli::commands::{mount, unmount};
use crate::cli::exit::{Exit, Failure};
use crate::cli::{Cli, Command};

/// mount(8)'s exit code for a command line or a permission that will not do.
const USAGE: u8 = 1;
/// mount(8)'s exit code for a mount that failed.
const FAILED: u8 = 32;
/// What the helpers end with, for their pages.
pub const EXIT_CODES: [(u8, &str); 2] =
    [(USAGE, "wrong command line, or missing permission"), (FAILED, "failed: standard error has the reason")];

/// Mount a vault, for mount(8) and /etc/fstab
#[derive(Debug, Parser)]
#[command(
    name = "mount.vaultfs",
    version,
    long_about = "Mount a vault, for mount(8) and /etc/fstab.\n\nmount(8) runs this program for file systems of type vaultfs \
                  and fuse.vaultfs; there is no need to call it by hand.",
    after_help = "Examples:\n  mount -t vaultfs embedded /srv/secrets\n  \
                  mount -t vaultfs https://vault.example.com /srv/secrets -o ro,api_key_file=/etc/vaultfs/key\n\n\
                  /etc/fstab:\n  https://vault.example.com /srv/secrets vaultfs \
                  _netdev,nofail,api_key_file=/etc/vaultfs/key 0 0"
)]
pub struct MountHelper {
    /// Which vault: `embedded`, `embedded=DIR`, the URL of a service, or `none` if the options say
    /// it
    ///
    /// `embedded` alone means /var/lib/vaultfs for root, and the vault of `vaultfs mount
    /// --embedded` for other users.
    #[arg(value_name = "SRC")]
    source: String,

    /// The mount point
    #[arg(value_name = "DIR")]
    directory: PathBuf,

    /// Options, separated by commas: those of vaultfs-mount(1), with or without dashes, and those
    /// of mount(8)
    #[arg(short = 'o', value_name = "OPT,OPT=VAL")]
    options: Vec<String>,

    /// Ignore unknown options
    #[arg(short = 's')]
    sloppy: bool,

    /// Check the options and the mount point, and mount nothing
    #[arg(short = 'f')]
    fake: bool,

    /// Ignored: there is no /etc/mtab to write
    #[arg(short = 'n')]
    no_mtab: bool,

    /// Log more
    #[arg(short = 'v', action = clap::ArgAction::Count)]
    verbose: u8,

    /// Read-only, as -o ro
    #[arg(short = 'r')]
    read_only: bool,

    /// Read-write, as -o rw
    #[arg(short = 'w', conflicts_with = "read_only")]
    read_write: bool,

    /// Mount in another mount namespace: a file like /proc/PID/ns/mnt, or PID
    #[arg(short = 'N', value_name = "NAMESPACE")]
    namespace: Option<String>,

    /// The type as mount(8) was given it
    #[arg(short = 't', value_name = "TYPE.SUBTYPE")]
    kind: Option<String>,
}

/// Unmount a vault, for umount(8): store what is unsaved first
///
/// umount(8) runs this program for file systems of type fuse.vaultfs; there is no need to call it
/// by hand. It fails, and the mount stays, if a write cannot be stored or programs use the mount.
/// Root's plain `umount DIR` does not run it: use `umount -c DIR` or `vaultfs unmount`.
#[derive(Debug, Parser)]
#[command(name = "umount.fuse.vaultfs", version)]
pub struct UmountHelper {
    /// The mount point
    #[arg(value_name = "DIR")]
    directory: PathBuf,

    /// Give up writes that cannot be stored, and take the mount away from programs that use it
    #[arg(short = 'f')]
    force: bool,

    /// Detach now; the mount ends when the last program closes it
    #[arg(short = 'l')]
    lazy: bool,

    /// Ignored: there is no /etc/mtab to write
    #[arg(short = 'n')]
    no_mtab: bool,

    /// Ignored: a busy vault is not remounted read-only
    #[arg(short = 'r')]
    read_only: bool,

    /// Ignored: there is no more output
    #[arg(short = 'v')]
    verbose: bool,

    /// Unmount in another mount namespace: a file like /proc/PID/ns/mnt, or PID
    #[arg(short = 'N', value_name = "NAMESPACE")]
    namespace: Option<String>,

    /// The type as umount(8) was given it
    #[arg(short = 't', value_name = "TYPE.SUBTYPE")]
    kind: Option<String>,
}

/// Runs the helper that this process was called as, if it was called as one.
pub fn called_as(name: Option<&OsStr>) -> Option<ExitCode> {
    let name = Path::new(name?).file_name()?.to_str()?;
    match name {
        "mount.vaultfs" | "mount.fuse.vaultfs" => Some(match MountHelper::try_parse() {
            Ok(helper) => end(name, mount_as_asked(helper)),
            Err(e) => misunderstood(e),
        }),
        "umount.vaultfs" | "umount.fuse.vaultfs" => Some(match UmountHelper::try_parse() {
            Ok(helper) => end(name, unmount_as_asked(helper)),
            Err(e) => misunderstood(e),
        }),
        _ => None,
    }
}

fn misunderstood(e: clap::Error) -> ExitCode {
    let e = parse::explained(e, &std::env::args_os().collect::<Vec<_>>());
    let _ = e.print();
    ExitCode::from(if e.use_stderr() { USAGE } else { 0 })
}

fn end(name: &str, result: anyhow::Result<ExitCode>) -> ExitCode {
    let failure = match result {
        Ok(code) => return code,
        Err(e) => Failure::from(e),
    };
    failure.say(name);
    ExitCode::from(if failure.exit == Exit::Usage { USAGE } else { FAILED })
}

fn mount_as_asked(helper: MountHelper) -> anyhow::Result<ExitCode> {
    enter(helper.namespace.as_deref())?;
    let args = arguments(&helper, nix::unistd::geteuid().is_root());
    let parsed = Cli::try_parse_from(&args);
    let mut mount = match parsed.map(|cli| cli.command) {
        Ok(Command::Mount(mount)) => mount,
        Ok(_) => unreachable!("the second argument is `mount`"),
        Err(e) => return Err(usage(e, &args).into()),
    };
    if helper.sloppy {
        mount.forget_unknown_options();
    }
    let result = if helper.fake { mount::check(&mount) } else { mount::run(*mount) };
    result.map_err(|e| {
        let mut failure = Failure::from(e);
        if failure.exit == Exit::Key {
            failure.message.push_str(" (as an option of mount: -o api_key_file=FILE)");
        }
        failure.into()
    })
}

/// The first lines of what clap has to say, which is about `vaultfs mount`.
fn usage(e: clap::Error, args: &[OsString]) -> Failure {
    let text = parse::explained(e, args).to_string();
    let text = text.split("\n\nUsage").next().unwrap_or_default();
    let mut lines = text.trim_start_matches("error: ").trim().lines().map(str::to_owned);
    Failure::new(Exit::Usage, lines.next().unwrap_or_default()).with_lines(lines.collect())
}

/// The command line of `vaultfs mount` for it.
fn arguments(helper: &MountHelper, root: bool) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["vaultfs".into(), "mount".into()];
    match helper.source.split_once('=').unwrap_or((&helper.source, "")) {
        // Whatever HOME says: at boot there is none.
        ("embedded", "") if root => args.push(format!("--embedded={SYSTEM_VAULT}").into()),
        ("embedded", "") => args.push("--embedded".into()),
        ("embedded", dir) => args.push(format!("--embedded={dir}").into()),
        ("none" | "vaultfs", "") => {}
        _ => args.push(format!("--api-url={}", helper.source).into()),
    }
    args.push(format!("--fsname={}", helper.source).into());
    args.extend(std::iter::repeat_n("-v".into(), usize::from(helper.verbose)));
    let given = helper.options.iter().map(String::as_str);
    let switches = [(helper.read_only, "ro"), (helper.read_write, "rw")];
    let switches = switches.iter().filter(|(on, _)| *on).map(|(_, name)| *name);
    for list in given.chain(switches) {
        args.extend(["-o".into(), list.into()]);
    }
    args.extend(["--".into(), helper.directory.clone().into_os_string()]);
    mount_options::expand_options(args.into_iter())
}

fn unmount_as_asked(helper: UmountHelper) -> anyhow::Result<ExitCode> {
    enter(helper.namespace.as_deref())?;
    unmount::run(unmount::UnmountArgs::new(helper.directory, helper.lazy, helper.force))
}

/// Goes to another mount namespace. No thread runs yet, which the kernel asks for. The maker of a
/// namespace in a user namespace of its own decides what is at each path there, /proc too: that
/// affects only its users.
fn enter(namespace: Option<&str>) -> Result<(), Failure> {
    let Some(namespace) = namespace else { return Ok(()) };
    let path = match namespace.parse::<u32>() {
        Ok(pid) => format!("/proc/{pid}/ns/mnt"),
        Err(_) => namespace.to_owned(),
    };
    let entered = File::open(&path)
        .map_err(|e| e.to_string())
        .and_then(|file| if of_this_user_namespace(&file) { Ok(file) } else { Err(FOREIGN_NAMESPACE.into()) })
        .and_then(|file| setns(file, CloneFlags::CLONE_NEWNS).map_err(|e| e.desc().to_owned()));
    entered.map_err(|e| Failure::new(Exit::Failed, format!("-N {namespace}: cannot be entered: {e}")))
}

const FOREIGN_NAMESPACE: &str =
    "it belongs to another user namespace; run this command as its users do, in there";

/// Whether the mount namespace belongs to the user namespace that this process is in.
fn of_this_user_namespace(namespace: &File) -> bool {
    const NS_GET_USERNS: libc::Ioctl = 0xb701;
    // SAFETY: takes no argument; the descriptor that comes back is ours.
    let fd = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS) };
    if fd < 0 {
        return false;
    }
    // SAFETY: as above.
    let owner = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let which = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
    let own = std::fs::metadata("/proc/self/ns/user").map(which);
    matches!((owner.metadata().map(which), own), (Ok(owner), Ok(own)) if owner == own)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments_of(line: &[&str], root: bool) -> Vec<String> {
        let helper = MountHelper::try_parse_from(["mount.vaultfs"].iter().chain(line)).expect("a good line");
        arguments(&helper, root).into_iter().map(|a| a.into_string().expect("UTF-8")).collect()
    }

    #[test]
    fn sources_say_which_vault() {
        let vault = |source: &str, root| arguments_of(&[source, "/m", "-o", "rw"], root)[2].clone();
        assert_eq!(vault("embedded", true), "--embedded=/var/lib/vaultfs");
        assert_eq!(vault("embedded", false), "--embedded");
        assert_eq!(vault("embedded=/srv/v", true), "--embedded=/srv/v");
        assert_eq!(vault("https://x.example", false), "--api-url=https://x.example");
        assert_eq!(vault("none", false), "--fsname=none");
    }

    #[test]
    fn the_order_of_mount_8_is_understood() {
        let line = [
            "embedded=/v",
            "/m",
            "-s",
            "-n",
            "-v",
            "-o",
            "rw,nosuid,refresh=2s,user=joe",
            "-t",
            "fuse.vaultfs",
        ];
        let want =
            ["vaultfs", "mount", "--embedded=/v", "--fsname=embedded=/v", "-v", "--refresh=2s", "--", "/m"];
        assert_eq!(arguments_of(&line, true), want);
    }

    #[test]
    fn other_names_are_no_helpers() {
        assert!(called_as(Some(OsStr::new("/usr/bin/vaultfs"))).is_none());
        assert!(called_as(None).is_none());
    }
}
