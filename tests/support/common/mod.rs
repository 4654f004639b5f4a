//! Real mounts for tests: started, watched, unmounted, and checked to leave nothing.
//!
//! A test that waits for a mount whose worker is stuck cannot be killed, so each [`Mount`] has a
//! watchdog that aborts the FUSE connection when its time is up; what waited then fails with
//! ENOTCONN and the test with it. Dropping a [`Mount`] unmounts it, and fails the test if a process
//! or a mount is left.

pub mod api;

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use tempfile::TempDir;

use super::mount_table;

/// The built program.
pub const VAULTFS: &str = env!("CARGO_BIN_EXE_vaultfs");
/// Whether this binary mounts over the kv dialect: `mount_kv` runs the bodies of others so.
pub const KV: bool = matches!(env!("CARGO_CRATE_NAME").as_bytes(), b"mount_kv");
/// How long a mounted test may take before its connection is aborted.
pub const TEST_TIME: Duration = Duration::from_secs(180);
/// How long any one command may take.
pub const COMMAND_TIME: Duration = Duration::from_secs(45);

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// The output of a command that must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "stdout: {}\nstderr: {}", self.out, self.err);
        self.out
    }

    /// The output of a command that must have ended with `code`.
    #[track_caller]
    pub fn prints(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.out, self.err);
        self.out
    }

    /// Standard error of a command that must have ended with `code`.
    #[track_caller]
    pub fn fails(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.out, self.err);
        self.err
    }
}

/// Runs a command to its end, or kills it after [`COMMAND_TIME`].
pub fn run(command: &mut Command) -> Ran {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    // Read beside the wait: a full pipe would stop the child.
    let out = drain(child.stdout.take());
    let err = drain(child.stderr.take());
    let code = match wait(|| child.try_wait().unwrap(), COMMAND_TIME) {
        Some(status) => status.code(),
        None => {
            let _ = child.kill();
            panic!("{command:?} did not end in {COMMAND_TIME:?}");
        }
    };
    Ran { code, out: out.join().unwrap(), err: err.join().unwrap() }
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = Vec::new();
        pipe.unwrap().read_to_end(&mut text).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    })
}

/// Asks until there is an answer or the time is up.
pub fn wait<T>(mut ask: impl FnMut() -> Option<T>, within: Duration) -> Option<T> {
    let end = Instant::now() + within;
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until `is` is true; fails with `what` after 40 s, of which a quiet machine needs a
/// fraction.
#[track_caller]
pub fn until(what: &str, mut is: impl FnMut() -> bool) {
    assert!(wait(|| is().then_some(()), Duration::from_secs(40)).is_some(), "not within 40 s: {what}");
}

/// Directories of a test: a home, a vault's data, an empty directory to mount on.
pub struct Place {
    pub dir: TempDir,
    pub data: PathBuf,
    pub mnt: PathBuf,
    _table: Arc<mount_table::Held>,
}

impl Place {
    pub fn new() -> Self {
        Self::below(std::env::temp_dir())
    }

    /// Elsewhere than in the directory for temporary files.
    pub fn below(parent: impl AsRef<Path>) -> Self {
        assert!(
            Path::new("/dev/fuse").exists(),
            "these tests mount, and there is no /dev/fuse here: modprobe fuse, or --device /dev/fuse"
        );
        let table = mount_table::share();
        // By the number scripts/run-isolated knows what is the test's.
        let prefix = format!("vaultfs-test-{}-", std::process::id());
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir_in(parent).unwrap();
        // The kernel shows paths without links.
        let root = fs::canonicalize(dir.path()).unwrap();
        let (data, mnt) = (root.join("data"), root.join("mnt"));
        fs::create_dir(&mnt).unwrap();
        Self { dir, data, mnt, _table: table }
    }

    /// `vaultfs` with an environment of its own.
    pub fn vaultfs<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(VAULTFS);
        self.isolate(&mut command);
        command.args(args);
        command
    }

    /// Gives a command this test's directories, and nothing of the vaults that the developer uses.
    pub fn isolate(&self, command: &mut Command) {
        for name in ["WORKOS_API_KEY", "WORKOS_API_URL", "CREDENTIALS_DIRECTORY", "XDG_RUNTIME_DIR"] {
            command.env_remove(name);
        }
        let home = self.dir.path();
        command.env("HOME", home).env("XDG_STATE_HOME", home.join("state"));
        command.env("XDG_DATA_HOME", home.join("share"));
    }

    /// `--embedded=DATA`, as a test's own vault.
    pub fn embedded(&self) -> String {
        format!("--embedded={}", self.data.display())
    }

    /// `vaultfs mount --embedded=DATA ARGS MNT`, not run yet.
    pub fn mount_command(&self, args: &[&str]) -> Command {
        let mut command = self.vaultfs(["mount", &self.embedded()]);
        if KV {
            command.args(["--api", "kv"]);
        }
        command.args(args).arg(&self.mnt);
        command
    }

    /// What the mount logged.
    pub fn log(&self) -> String {
        let dir = self.dir.path().join("state/vaultfs");
        let files = fs::read_dir(dir).into_iter().flatten().flatten();
        files.map(|f| fs::read_to_string(f.path()).unwrap_or_default()).collect()
    }
}

/// What a test mounted here and did not come to adopt or unmount, because it failed, does not stay.
impl Drop for Place {
    fn drop(&mut self) {
        for line in mount_lines(&self.mnt) {
            eprintln!("a mount is left, taking it away: {line}");
            abort(minor_of(&line));
            let _ = Command::new("umount").arg("-l").arg(&self.mnt).status();
        }
    }
}

/// The number of the FUSE connection in a line of the mount table.
fn minor_of(line: &str) -> u32 {
    line.split([' ', ':']).nth(3).unwrap().parse().unwrap()
}

/// A mounted vault.
pub struct Mount {
    place: Option<Place>,
    watchdog: Watchdog,
}

impl Mount {
    /// Mounts an empty embedded vault.
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// The same with more options.
    pub fn with(args: &[&str]) -> Self {
        Self::at(Place::new(), args)
    }

    /// Mounts at a place that is already there (with the vault that is in it).
    pub fn at(place: Place, args: &[&str]) -> Self {
        run(&mut place.mount_command(args)).ok();
        Self::adopt(place)
    }

    /// Watches over a mount that the test made itself.
    pub fn adopt(place: Place) -> Self {
        Self::adopt_for(place, TEST_TIME)
    }

    /// The same for a test that takes so long at the most.
    pub fn adopt_for(place: Place, time: Duration) -> Self {
        let line = mount_lines(&place.mnt).pop().expect("just mounted");
        Self { watchdog: Watchdog::start(minor_of(&line), time), place: Some(place) }
    }

    /// Another mount has taken the place of this one, which was dead.
    pub fn watch_again(&mut self, time: Duration) {
        let line = mount_lines(self.mnt()).pop().expect("just mounted");
        self.watchdog = Watchdog::start(minor_of(&line), time);
    }

    /// A path on the mount.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.mnt().join(name)
    }

    /// The mount point.
    pub fn mnt(&self) -> &Path {
        &self.place().mnt
    }

    /// `vaultfs ARGS…`
    pub fn vaultfs<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        self.place().vaultfs(args)
    }

    /// `--embedded=DATA`: the same vault, for commands.
    pub fn embedded(&self) -> String {
        self.place().embedded()
    }

    /// Runs a script in the mount with bash; it must succeed. Its standard output.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        self.script("bash", script).ok()
    }

    /// Runs a script in the mount with this shell.
    pub fn script(&self, shell: &str, script: &str) -> Ran {
        let mut command = Command::new(shell);
        self.place().isolate(&mut command);
        run(command.arg("-c").arg(script).current_dir(self.mnt()))
    }

    /// The numbers in `.versions/NAME`, ascending; none if there is no such object.
    pub fn versions(&self, name: &str) -> Vec<u64> {
        let Ok(dir) = fs::read_dir(self.path(".versions").join(name)) else { return Vec::new() };
        let names = dir.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut numbers: Vec<u64> = names.map(|name| name.parse().unwrap()).collect();
        numbers.sort_unstable();
        numbers
    }

    /// Requests sent to the vault so far, as the mount itself says, but for those that follow
    /// changes made elsewhere.
    pub fn requests(&self) -> u64 {
        let text = fs::read(self.path(".vaultfs/status.json")).unwrap();
        let status: serde_json::Value = serde_json::from_slice(&text).unwrap();
        status["vault"]["requests"].as_u64().unwrap()
            - status["changes"]["refresh"]["requests"].as_u64().unwrap()
    }

    /// `vaultfs status --json MNT`.
    pub fn status(&self) -> serde_json::Value {
        let out = run(self.vaultfs(["status", "--json"]).arg(self.mnt())).out;
        serde_json::from_str::<serde_json::Value>(&out).unwrap()[0].take()
    }

    /// The keeper's and the worker's process ids.
    pub fn pids(&self) -> (i32, i32) {
        let status = self.status();
        let pid = |name: &str| status[name].as_i64().unwrap() as i32;
        (pid("keeper_pid"), pid("worker_pid"))
    }

    /// What the mount logged.
    pub fn log(&self) -> String {
        self.place().log()
    }

    /// Unmounts as a user would, which must succeed, and gives the place back for another mount.
    pub fn unmount(self) -> Place {
        run(self.vaultfs(["unmount"]).arg(self.mnt())).ok();
        self.unmount_done()
    }

    /// The same where another test's engine may have copied all mounts into a mount namespace of
    /// its own: that has to be told, and the mount ends by force.
    pub fn unmount_beside_engines(self) -> Place {
        let ran = run(self.vaultfs(["unmount"]).arg(self.mnt()));
        if ran.code != Some(0) {
            let said = ran.fails(1);
            assert!(said.contains("another mount namespace has it still"), "{said}");
            // That namespace may be gone by now, and the mount with it.
            let forced = run(self.vaultfs(["unmount", "--force"]).arg(self.mnt()));
            assert!(matches!(forced.code, Some(0 | 5)), "{forced:?}");
        }
        self.unmount_done()
    }

    /// The place of a mount that has ended already, for another one.
    pub fn unmount_done(mut self) -> Place {
        let place = self.place.take().expect("taken only here and above");
        assert_nothing_left(&place.mnt);
        place
    }

    /// Where it is.
    pub fn place(&self) -> &Place {
        self.place.as_ref().expect("there until `unmount`")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let Some(place) = &self.place else { return };
        let mnt = place.mnt.clone();
        if is_mounted(&mnt) {
            let unmount = std::panic::AssertUnwindSafe(|| {
                run(place.vaultfs(["unmount", "--force"]).arg(&mnt));
            });
            let ended = std::panic::catch_unwind(unmount);
            if ended.is_err() || is_mounted(&mnt) {
                self.watchdog.abort_now();
                let _ = Command::new("umount").arg("-l").arg(&mnt).status();
            }
        }
        if std::thread::panicking() {
            eprintln!("the mount's log:\n{}", place.log());
        } else {
            assert_nothing_left(&mnt);
        }
    }
}

/// No mount, and no process that knows of it.
#[track_caller]
pub fn assert_nothing_left(mnt: &Path) {
    until("the mount is gone", || !is_mounted(mnt));
    until("its processes are gone", || processes_of(mnt).is_empty());
}

/// The mount table's lines for a mount point (whose path holds nothing that is escaped there).
pub fn mount_lines(mnt: &Path) -> Vec<String> {
    let table = fs::read("/proc/self/mountinfo").unwrap();
    let table = String::from_utf8_lossy(&table);
    let is_at = |line: &&str| line.split(' ').nth(4) == mnt.to_str();
    table.lines().filter(is_at).map(str::to_owned).collect()
}

pub fn is_mounted(mnt: &Path) -> bool {
    !mount_lines(mnt).is_empty()
}

/// Live processes (no zombies) that have the mount point in their arguments, without this one.
pub fn processes_of(mnt: &Path) -> Vec<i32> {
    let needle = mnt.to_str().unwrap();
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| *pid != std::process::id() as i32)
        .filter(|pid| {
            // A zombie's is empty.
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&arguments).contains(needle)
        })
        .collect()
}

/// What a process takes: KiB resident, descriptors, threads.
#[derive(Debug, Clone, Copy)]
pub struct Size(pub [u64; 3]);

impl Size {
    /// Of a live process.
    pub fn of(pid: i32) -> Self {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let status = fs::read_to_string(proc.join("status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let count = |dir: &str| fs::read_dir(proc.join(dir)).unwrap().count() as u64;
        Self([resident.trim().trim_end_matches(" kB").trim().parse().unwrap(), count("fd"), count("task")])
    }

    /// Fails if `late` is more than a tenth above this; a page or two, and two descriptors or
    /// threads, are no growth.
    #[track_caller]
    pub fn assert_not_outgrown(self, who: &str, late: Self) {
        eprintln!("{who}: {:?} KiB, descriptors, threads early on, {:?} at the end", self.0, late.0);
        for ((what, slack), (early, late)) in
            [("KiB", 16), ("descriptors", 2), ("threads", 2)].into_iter().zip(self.0.into_iter().zip(late.0))
        {
            assert!(
                late as f64 <= early as f64 * 1.1 + f64::from(slack),
                "{who}, {what}: {early} at a tenth of the way, {late} at the end"
            );
        }
    }
}

/// Sends a signal. A process that has ended needs no SIGKILL: workers end with their keeper.
pub fn signal(pid: i32, signal: nix::sys::signal::Signal) {
    match nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal) {
        Err(nix::errno::Errno::ESRCH) if signal == nix::sys::signal::Signal::SIGKILL => {}
        sent => sent.unwrap(),
    }
}

/// Any number of deaths, each followed by another worker at once.
pub const IMMORTAL: (&str, &str) = ("VAULTFS_TEST_DEATHS", "1000000,1000000");

/// The child of that name that lives now, found without asking anybody.
pub fn child_of(keeper: i32, name: &str) -> Option<i32> {
    let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).ok()?;
    let is_it = |pid: &i32| {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        comm.trim() == name && !stat.contains(") Z ")
    };
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(is_it)
}

pub fn worker_of(keeper: i32) -> Option<i32> {
    child_of(keeper, "vaultfs-worker")
}

pub fn kill(keeper: i32, name: &str) {
    let child = wait(|| child_of(keeper, name), Duration::from_secs(20));
    signal(child.unwrap_or_else(|| panic!("there is no {name}")), nix::sys::signal::Signal::SIGKILL);
}

pub fn kill_worker(keeper: i32) {
    kill(keeper, "vaultfs-worker");
}

/// Kills the worker, once there is one; its successor.
pub fn replace_worker(keeper: i32) -> i32 {
    let worker = wait(|| worker_of(keeper), Duration::from_secs(20)).expect("a worker");
    signal(worker, nix::sys::signal::Signal::SIGKILL);
    let other = || worker_of(keeper).filter(|now| *now != worker);
    wait(other, Duration::from_secs(40)).expect("a successor")
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Aborts a FUSE connection when the time is up.
struct Watchdog {
    minor: u32,
    disarm: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    fn start(minor: u32, after: Duration) -> Self {
        if is_root() && fs::read_dir("/sys/fs/fuse/connections").is_ok_and(|mut d| d.next().is_none()) {
            let kind = ["-t", "fusectl", "none", "/sys/fs/fuse/connections"];
            let _ = Command::new("mount").args(kind).stderr(Stdio::null()).status();
        }
        let (disarm, armed) = channel();
        let thread = std::thread::spawn(move || {
            if armed.recv_timeout(after) == Err(RecvTimeoutError::Timeout) {
                eprintln!("the test took more than {after:?}: aborting the mount");
                abort(minor);
            }
        });
        Self { minor, disarm: Some(disarm), thread: Some(thread) }
    }

    fn abort_now(&self) {
        abort(self.minor);
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.disarm.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn abort(minor: u32) {
    if let Err(e) = fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1") {
        eprintln!("the connection cannot be aborted: {e}");
    }
}

/// A command that goes on beside the test; killed when dropped.
pub struct Beside(pub std::process::Child);

impl Beside {
    pub fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}")))
    }

    /// Waits for its end.
    #[track_caller]
    pub fn ends(&mut self) -> ExitStatus {
        wait(|| self.0.try_wait().unwrap(), COMMAND_TIME).expect("it ends")
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `vaultfs mount -f …`: returns when it says on standard error that it is mounted, with the rest
/// of that.
pub fn in_foreground(command: &mut Command) -> (Beside, BufReader<ChildStderr>) {
    let mut front = Beside::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()));
    let mut said = BufReader::new(front.0.stderr.take().unwrap());
    let mut line = String::new();
    while !line.ends_with("is mounted\n") {
        line.clear();
        assert_ne!(said.read_line(&mut line).unwrap(), 0, "it ended without having mounted");
    }
    (front, said)
}

/// Opens a path to everybody.
pub fn open_to_all(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// /dev/fuse open to everybody, as distributions have it and some containers do not; one test at a
/// time.
pub struct DeviceForAll {
    mode: u32,
    /// Two tests would change the mode under each other.
    _turn: Flock<fs::File>,
    _table: Arc<mount_table::Held>,
}

impl DeviceForAll {
    pub fn open() -> Self {
        // In this order everywhere: no two tests wait for each other.
        let table = mount_table::share();
        let device = fs::File::open("/dev/fuse").unwrap();
        let turn = Flock::lock(device, FlockArg::LockExclusive).unwrap();
        let mode = fs::metadata("/dev/fuse").unwrap().mode() & 0o777;
        fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)).unwrap();
        Self { mode, _turn: turn, _table: table }
    }
}

impl Drop for DeviceForAll {
    fn drop(&mut self) {
        let _ = fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(self.mode));
    }
}
