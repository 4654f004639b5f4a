//! The machine: what a mount needs, and what would find secrets that are in one.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::cli::commands::doctor::containers::{containers, volumes};
use crate::cli::commands::doctor::{Finding, Level};
use crate::cli::commands::status;
use crate::daemon::protocol::see_log;
use crate::display::Shown;
use crate::sys::{mount_table, mountpoint};

/// Programs that read every file they find, and how to keep each away from mounts.
const CRAWLERS: [(&str, &str, &str); 6] = [
    (
        "usr/libexec/tracker-miner-fs-3",
        "Tracker",
        "gsettings set org.freedesktop.Tracker3.Miner.Files index-recursive-directories: leave the mount out",
    ),
    ("usr/bin/baloo_file", "Baloo", "balooctl config add excludeFolders DIR"),
    ("usr/bin/recollindex", "Recoll", "add the mount to skippedPaths in recoll.conf"),
    (
        "usr/sbin/clamonacc",
        "ClamAV's on-access scanner",
        "add the mount to OnAccessExcludePath in clamd.conf",
    ),
    ("usr/bin/aide", "AIDE", "add !DIR to aide.conf"),
    (
        "usr/bin/rsnapshot",
        "rsnapshot",
        "set one_fs 1 in rsnapshot.conf: a backup of the mount is a copy of every secret",
    ),
];

/// More than that is read of no file below `--root`.
const LONGEST: u64 = 1 << 20;

/// A machine, seen through its files.
pub struct Machine {
    root: PathBuf,
    /// Whether it is the one that this runs on.
    here: bool,
    /// Whether the caller is to mount there, and needs fusermount3 for it.
    pub(super) ordinary: bool,
}

impl Machine {
    pub fn new(root: &Path) -> Self {
        let here = root == Path::new("/");
        Self { root: root.to_owned(), here, ordinary: here && !nix::unistd::geteuid().is_root() }
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    pub(super) fn text(&self, path: &str) -> Option<String> {
        let mut text = String::new();
        let file =
            fs::File::options().read(true).custom_flags(libc::O_NONBLOCK).open(self.path(path)).ok()?;
        let is_file = file.metadata().is_ok_and(|meta| meta.is_file());
        (is_file && file.take(LONGEST).read_to_string(&mut text).is_ok()).then_some(text)
    }

    pub(super) fn has(&self, path: &str) -> bool {
        fs::symlink_metadata(self.path(path)).is_ok()
    }
}

/// Everything about the machine.
pub fn check(machine: &Machine) -> Vec<Finding> {
    let mut found = vec![
        device(machine),
        fusermount(machine),
        allow_other(machine),
        kernel(machine),
        memory_lock(machine),
        swap(machine),
        cores(machine),
        updatedb(machine),
    ];
    found.extend(crawlers(machine));
    found.extend(containers(machine));
    found.extend(volumes(machine));
    found.extend(key_files(machine));
    if machine.here {
        found.extend(mounted());
    }
    found
}

fn device(machine: &Machine) -> Finding {
    let path = machine.path("dev/fuse");
    let missing = "load the kernel's module with `modprobe fuse`; in a container: --device /dev/fuse --cap-add SYS_ADMIN";
    let Ok(meta) = fs::metadata(&path) else {
        return Finding::problem("device", "/dev/fuse is missing", missing);
    };
    if machine.here && !meta.file_type().is_char_device() {
        return Finding::problem("device", "/dev/fuse is not a device", "remove it, then `modprobe fuse`");
    }
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    match fs::OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path) {
        Ok(_) => Finding::ok("device", "/dev/fuse can be opened"),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => {
            Finding::problem("device", format!("/dev/fuse cannot be opened: {e}"), missing)
        }
        Err(e) => Finding::problem(
            "device",
            format!("/dev/fuse cannot be opened: {e}"),
            "as root: chmod 666 /dev/fuse (this gives no user more rights: mounting needs fusermount3 anyway)",
        ),
    }
}

fn fusermount(machine: &Machine) -> Finding {
    let places = ["usr/bin/fusermount3", "bin/fusermount3", "usr/local/bin/fusermount3"];
    let program = places.iter().find_map(|place| fs::metadata(machine.path(place)).ok());
    // A user that cannot mount has a problem; root may never miss it.
    let only_root = |says: &str, else_level: Level, fix: &str| Finding {
        level: if machine.ordinary { Level::Problem } else { else_level },
        ..Finding::note("fusermount3", says, fix)
    };
    match program {
        None => only_root(
            "fusermount3 is not installed: only root can mount",
            Level::Note,
            "install the package fuse3",
        ),
        Some(meta) if meta.mode() & 0o4000 == 0 || (machine.here && meta.uid() != 0) => only_root(
            "fusermount3 is not set-uid root: only root can mount",
            Level::Warning,
            "chown root and chmod u+s it, or install the package fuse3 again",
        ),
        Some(_) if machine.ordinary && !may_gain_privileges(machine) => Finding::problem(
            "fusermount3",
            "programs started here may not gain privileges, so fusermount3 cannot mount",
            "unset NoNewPrivileges (of the unit, the container, or setpriv), or mount as root",
        ),
        // Whether /dev/fuse lets them is a finding of its own.
        Some(_) => Finding::ok("fusermount3", "fusermount3 is installed, set-uid root"),
    }
}

fn may_gain_privileges(machine: &Machine) -> bool {
    mountpoint::may_gain_privileges(&machine.text("proc/self/status").unwrap_or_default())
}

fn allow_other(machine: &Machine) -> Finding {
    let conf = machine.text("etc/fuse.conf").unwrap_or_default();
    if mountpoint::permits_allow_other(&conf) {
        return Finding::ok("allow_other", "ordinary users may use --allow-other");
    }
    Finding::note(
        "allow_other",
        "only root may use --allow-other, which containers with another user need",
        "to permit it, add the line user_allow_other to /etc/fuse.conf",
    )
}

/// The numbers a version begins with.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim().split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn kernel(machine: &Machine) -> Finding {
    let release = machine.text("proc/sys/kernel/osrelease").unwrap_or_default();
    match version(&release) {
        Some(found) if found >= (6, 9) => Finding::ok(
            "kernel",
            format!("Linux {}: a mount outlives a crash of its server process", release.trim()),
        ),
        Some(_) => Finding::warning(
            "kernel",
            format!("Linux {}: operations in flight fail when the server process crashes", release.trim()),
            "Linux 6.9 or newer resends them",
        ),
        None => Finding::note(
            "kernel",
            "the kernel's version is unknown",
            "run `uname -r`: 6.9 or newer is recommended",
        ),
    }
}

fn unlimited_memory(machine: &Machine) -> bool {
    let limits = machine.text("proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    // Soft and hard limit: the soft one can be raised to the hard one.
    let hard = line.and_then(|line| line.split_whitespace().nth(1));
    hard == Some("unlimited") || (machine.here && nix::unistd::geteuid().is_root())
}

fn memory_lock(machine: &Machine) -> Finding {
    if unlimited_memory(machine) {
        return Finding::ok("memlock", "memory can be locked: secrets do not reach the swap");
    }
    Finding::warning(
        "memlock",
        "the limit of locked memory is too low to keep secrets out of the swap",
        "ulimit -l unlimited (limits.conf: memlock unlimited; systemd: LimitMEMLOCK=infinity)",
    )
}

fn swap(machine: &Machine) -> Finding {
    let swaps = machine.text("proc/swaps").unwrap_or_default();
    let devices: Vec<&str> =
        swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    if devices.is_empty() {
        return Finding::ok("swap", "there is none");
    }
    let names = devices.join(", ");
    if devices.iter().all(|device| device.starts_with("/dev/zram")) {
        return Finding::ok("swap", format!("{names}, in memory"));
    }
    if unlimited_memory(machine) {
        return Finding::ok(
            "swap",
            format!(
                "{names}; the memory of vaultfs is locked, but programs that read secrets can be swapped out"
            ),
        );
    }
    Finding::warning(
        "swap",
        format!("{names}: secrets may be written to it"),
        "let memory be locked, encrypt the swap, or give services MemorySwapMax=0",
    )
}

fn cores(machine: &Machine) -> Finding {
    let pattern = machine.text("proc/sys/kernel/core_pattern").unwrap_or_default();
    let pattern = pattern.trim();
    let all = machine.text("proc/sys/fs/suid_dumpable").unwrap_or_default();
    if all.trim() == "1" {
        return Finding::problem(
            "cores",
            "fs.suid_dumpable is 1: core dumps of processes that hold secrets are readable by their users",
            "sysctl fs.suid_dumpable=0",
        );
    }
    match pattern {
        "" => Finding::ok("cores", "no cores are written"),
        _ => Finding::note(
            "cores",
            format!("vaultfs writes none, but other programs can dump secrets (core_pattern: {pattern})"),
            "set LimitCORE=0 in their units, and check which users can read the dumps",
        ),
    }
}

fn updatedb(machine: &Machine) -> Finding {
    let Some(conf) = machine.text("etc/updatedb.conf") else {
        return Finding::ok("updatedb", "this machine makes no index for locate");
    };
    // The package's drop-in counts only where systemd starts it: else cron runs updatedb, without
    // it.
    let drop_in = machine.text("usr/lib/systemd/system/plocate-updatedb.service.d/vaultfs.conf");
    let by_systemd = machine.has("run/systemd/system") && machine.has("usr/sbin/updatedb.plocate");
    if by_systemd && drop_in.is_some_and(|text| text.contains(mount_table::FS_TYPE)) {
        return Finding::ok("updatedb", "vaults are left out by a drop-in of plocate-updatedb.service");
    }
    let line = conf.lines().map(str::trim_start).find_map(|line| line.strip_prefix("PRUNEFS"));
    let kinds = line.unwrap_or_default().trim_start_matches([' ', '=', '"']);
    if kinds.split(|c: char| c.is_whitespace() || c == '"').any(|kind| kind == mount_table::FS_TYPE) {
        return Finding::ok("updatedb", "vaults are left out");
    }
    Finding::warning(
        "updatedb",
        "updatedb indexes the names of all secrets, and every user of locate can see them",
        "add fuse.vaultfs to PRUNEFS in /etc/updatedb.conf",
    )
}

fn crawlers(machine: &Machine) -> Vec<Finding> {
    let here = CRAWLERS.iter().filter(|(path, _, _)| machine.has(path));
    here.map(|(_, name, fix)| {
        Finding::note(
            "crawler",
            format!("{name} is installed and reads every file that it finds: one request for each secret"),
            *fix,
        )
    })
    .collect()
}

/// The keys of the units that the package installs.
fn key_files(machine: &Machine) -> Vec<Finding> {
    let files = fs::read_dir(machine.path("etc/vaultfs")).into_iter().flatten().flatten();
    let keys = files.filter(|file| file.file_name().to_string_lossy().ends_with("key"));
    keys.filter_map(|file| {
        let mode = file.metadata().ok()?.mode() & 0o777;
        let path = format!("/etc/vaultfs/{}", file.file_name().to_string_lossy());
        (mode & 0o077 != 0).then(|| {
            Finding::problem(
                "key",
                format!("{path} can be read by others (mode {mode:04o})"),
                format!("chmod 600 {path}"),
            )
        })
    })
    .collect()
}

fn mounted() -> Vec<Finding> {
    let mounts = status::problems().unwrap_or_default();
    let well = mounts.iter().filter(|mount| mount.problem.is_none()).count();
    let mut found = match well {
        0 if mounts.is_empty() => vec![Finding::ok("mounts", "none of yours is mounted")],
        0 => Vec::new(),
        n => vec![Finding::ok("mounts", format!("{n} of yours mounted; `vaultfs status` shows their state"))],
    };
    found.extend(mounts.iter().filter_map(|mount| {
        let problem = mount.problem.as_deref()?;
        Some(unwell(&mount.mountpoint, problem, &mount.log))
    }));
    found
}

/// A mount that `vaultfs status` calls not well.
fn unwell(path: &Path, problem: &str, log: &str) -> Finding {
    let at = path.shown();
    // What comes after it is the fix.
    let says = format!("{at}: {}", clause(problem));
    if problem == status::NOT_OURS {
        return Finding::note("mounts", says, "run `vaultfs status` as its user");
    }
    let fix = if problem.starts_with("DEAD") {
        format!("`vaultfs mount` with the same options replaces it, `vaultfs unmount {at}` removes it")
    } else {
        format!("{}; `vaultfs unmount --force {at}` takes it away", see_log(log))
    };
    Finding::problem("mounts", says, fix)
}

/// The text before the first semicolon that is in no parentheses.
fn clause(text: &str) -> &str {
    let mut depth = 0;
    let end = text.find(|c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ';' && depth <= 0
    });
    end.map_or(text, |end| &text[..end])
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A machine made of these files.
    pub(in crate::cli::commands::doctor) fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Machine) {
        let dir = tempfile::tempdir().expect("a directory");
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("below the root")).expect("own directory");
            fs::write(path, text).expect("own directory");
        }
        let machine = Machine::new(dir.path());
        (dir, machine)
    }

    #[test]
    fn a_mount_that_is_not_well_comes_with_its_fix() {
        let path = Path::new("/srv/secrets");
        let dead = unwell(path, "DEAD: its processes died, nothing can be read; `vaultfs mount` …", "");
        assert_eq!(dead.level, Level::Problem);
        assert!(dead.says.ends_with("nothing can be read"), "{}", dead.says);
        assert!(dead.fix.is_some_and(|fix| fix.contains("vaultfs unmount /srv/secrets")));
        let dying = unwell(
            path,
            "its worker keeps dying (it was killed by signal 9; see the log: /l): all fails; unmount",
            "/l",
        );
        assert!(dying.says.ends_with("signal 9; see the log: /l): all fails"), "{}", dying.says);
        assert!(dying.fix.is_some_and(|fix| fix.starts_with("see the log: /l; ")));
        assert_eq!(unwell(path, "its worker does not answer: timed out", "").level, Level::Problem);
        assert_eq!(unwell(path, status::NOT_OURS, "").level, Level::Note);
    }

    #[test]
    fn an_empty_machine_lacks_the_device() {
        let (_dir, machine) = machine(&[]);
        assert_eq!(device(&machine).level, Level::Problem);
        assert_eq!(fusermount(&machine).level, Level::Note);
        assert_eq!(updatedb(&machine).level, Level::Ok);
    }

    #[test]
    fn who_cannot_mount_without_fusermount3_has_a_problem() {
        let level = |ordinary, mode, status: &str| {
            let (dir, mut machine) = machine(&[("usr/bin/fusermount3", ""), ("proc/self/status", status)]);
            let program = dir.path().join("usr/bin/fusermount3");
            fs::set_permissions(program, std::os::unix::fs::PermissionsExt::from_mode(mode))
                .expect("own file");
            machine.ordinary = ordinary;
            fusermount(&machine).level
        };
        assert_eq!((level(true, 0o4755, ""), level(false, 0o4755, "")), (Level::Ok, Level::Ok));
        assert_eq!((level(true, 0o755, ""), level(false, 0o755, "")), (Level::Problem, Level::Warning));
        let status = "Name:\tx\nNoNewPrivs:\t1\n";
        assert_eq!((level(true, 0o4755, status), level(false, 0o4755, status)), (Level::Problem, Level::Ok));
        let (_dir, mut machine) = machine(&[]);
        machine.ordinary = true;
        assert_eq!(fusermount(&machine).level, Level::Problem);
    }

    #[test]
    fn kernels_are_told_apart_by_number() {
        let level = |release: &str| kernel(&machine(&[("proc/sys/kernel/osrelease", release)]).1).level;
        assert_eq!(level("6.10.3-amd64\n"), Level::Ok);
        assert_eq!(level("6.9.0"), Level::Ok);
        assert_eq!(level("6.1.0-28-amd64\n"), Level::Warning);
        assert_eq!(level("5.14.0-503.el9.x86_64"), Level::Warning);
    }

    #[test]
    fn the_index_of_locate_has_to_leave_vaults_out() {
        let level = |conf: &str| updatedb(&machine(&[("etc/updatedb.conf", conf)]).1).level;
        assert_eq!(level("PRUNEFS=\"NFS fuse.vaultfs proc\"\n"), Level::Ok);
        assert_eq!(level("PRUNEFS = \"NFS proc fuse.sshfs\"\n"), Level::Warning);
        assert_eq!(level("PRUNE_BIND_MOUNTS=\"yes\"\n"), Level::Warning);
        let of_package = [
            ("etc/updatedb.conf", "PRUNEFS=\"NFS proc\"\n"),
            ("usr/sbin/updatedb.plocate", ""),
            (
                "usr/lib/systemd/system/plocate-updatedb.service.d/vaultfs.conf",
                include_str!("../../../../packaging/systemd/plocate/vaultfs.conf"),
            ),
            ("run/systemd/system/x", ""),
        ];
        assert_eq!(updatedb(&machine(&of_package).1).level, Level::Ok);
        assert_eq!(updatedb(&machine(&of_package[..3]).1).level, Level::Warning, "cron starts it");
    }

    #[test]
    fn swap_matters_where_memory_is_not_locked() {
        const SWAP: (&str, &str) = ("proc/swaps", "Filename Type Size\n/dev/sda2 partition 1\n");
        let limits = |hard: &str| {
            format!(
                "Limit Soft Hard Units\nMax locked memory         65536                {hard}            bytes\n"
            )
        };
        let of = |hard: &str| swap(&machine(&[SWAP, ("proc/self/limits", &limits(hard))]).1).level;
        assert_eq!(of("unlimited"), Level::Ok);
        assert_eq!(of("65536"), Level::Warning);
        assert_eq!(swap(&machine(&[("proc/swaps", "Filename\n")]).1).level, Level::Ok);
    }

    #[test]
    fn keys_that_others_can_read_are_a_problem() {
        let (dir, machine) = machine(&[("etc/vaultfs/a.key", "sk_x"), ("etc/vaultfs/a.conf", "")]);
        let mode = |mode| {
            let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
            fs::set_permissions(dir.path().join("etc/vaultfs/a.key"), permissions).expect("own file");
        };
        mode(0o644);
        assert_eq!(key_files(&machine)[0].level, Level::Problem);
        mode(0o600);
        assert!(key_files(&machine).is_empty());
    }

    #[test]
    fn each_finding_that_is_not_well_has_its_fix() {
        let (_dir, machine) =
            machine(&[("usr/bin/docker", ""), ("usr/bin/baloo_file", ""), (".dockerenv", "")]);
        for finding in check(&machine) {
            assert_eq!(finding.fix.is_none(), finding.level == Level::Ok, "{finding:?}");
        }
    }
}
