//! What happens to the processes of a mount, to the vault, and to the way between them while
//! programs save.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::scene::Scene;
use crate::support::common::{is_root, run, signal, wait, worker_of};
use crate::support::proxy::{At, Fault};
use crate::support::vault_server::served::Served;

/// A kind of bad day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    None,
    Helper,
    Worker,
    Upgrade,
    /// Kills and upgrades in short order, and at once.
    Both,
    /// Workers are stopped for a moment, or until the keeper replaces them.
    Freeze,
    Memory,
    Network,
    Server,
    Disk,
    Keeper,
}

impl Kind {
    pub const ALL: [Self; 11] = [
        Self::None,
        Self::Helper,
        Self::Worker,
        Self::Upgrade,
        Self::Both,
        Self::Freeze,
        Self::Memory,
        Self::Network,
        Self::Server,
        Self::Disk,
        Self::Keeper,
    ];

    /// Whether programs may see an error: the vault is away, a request is suspected, or the mount
    /// is dead.
    pub fn may_fail(self) -> bool {
        match self {
            Self::None | Self::Helper | Self::Worker | Self::Upgrade | Self::Both | Self::Freeze => false,
            Self::Memory | Self::Network | Self::Server | Self::Disk | Self::Keeper => true,
        }
    }

    /// Goes on for so long. What was done, and how often.
    pub fn rage(self, scene: &mut Scene, time: Duration, done: &mut BTreeMap<&'static str, u32>) {
        let end = Instant::now() + time;
        // The last one has time to be got over.
        while Instant::now() < end {
            if self == Self::None {
                pause(200);
                continue;
            }
            let what = self.strike(scene);
            *done.entry(what).or_default() += 1;
        }
        scene.proxies.iter().for_each(|proxy| proxy.clear());
    }

    fn strike(self, scene: &mut Scene) -> &'static str {
        let at = scene.random.below(2) as usize;
        let moment = scene.random.between(200, 600);
        match self {
            Self::None => "nothing",
            Self::Helper => {
                kill(scene, at, "vaultfs-helper");
                pause(moment);
                "helpers killed"
            }
            Self::Worker => {
                kill(scene, at, "vaultfs-worker");
                // Of each mount's workers every 0.4 to 1.2 s.
                pause(moment);
                "workers killed"
            }
            Self::Upgrade => {
                upgrade(scene, at);
                pause(moment);
                "upgrades"
            }
            Self::Both => {
                let early = scene.random.below(60);
                let keeper = scene.keeper(at).expect("it lives");
                let killer = std::thread::spawn(move || {
                    pause(early);
                    worker_of(keeper).map(|worker| {
                        nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker), Signal::SIGKILL)
                    })
                });
                upgrade(scene, at);
                drop(killer.join());
                pause(moment);
                "kills while an upgrade is on"
            }
            Self::Freeze => freeze(scene, at),
            Self::Memory => {
                exhaust(scene, at);
                pause(moment * 4);
                "workers without memory"
            }
            Self::Network => spoil(scene, at),
            Self::Server => {
                // Killed by being dropped.
                drop(scene.served.take());
                pause(scene.random.below(600));
                let served = Served::start(&scene.data);
                scene.proxies.iter().for_each(|proxy| proxy.lead_to(&served.url));
                scene.served = Some(served);
                pause(moment * 2);
                "servers killed"
            }
            Self::Disk => {
                fill(&scene.data, moment);
                pause(moment);
                "full disks"
            }
            Self::Keeper => {
                kill_keeper(scene, at);
                pause(moment * 3);
                "keepers killed"
            }
        }
    }
}

fn pause(millis: u64) {
    std::thread::sleep(Duration::from_millis(millis));
}

fn kill(scene: &Scene, at: usize, name: &str) {
    crate::support::common::kill(scene.keeper(at).expect("it lives"), name);
}

fn upgrade(scene: &Scene, at: usize) {
    let mount = &scene.mounts[at];
    run(mount.vaultfs(["upgrade"]).arg(mount.mnt())).ok();
}

fn worker(scene: &Scene, at: usize) -> i32 {
    let keeper = scene.keeper(at).expect("it lives");
    wait(|| worker_of(keeper), Duration::from_secs(20)).expect("a worker")
}

fn freeze(scene: &mut Scene, at: usize) -> &'static str {
    let pid = worker(scene, at);
    signal(pid, Signal::SIGSTOP);
    if scene.random.below(6) > 0 {
        pause(scene.random.between(100, 1500));
        // It may have been replaced.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGCONT);
        pause(scene.random.between(100, 500));
        return "workers stopped for a moment";
    }
    let keeper = scene.keeper(at).expect("it lives");
    let replaced = || worker_of(keeper).filter(|now| *now != pid);
    wait(replaced, Duration::from_secs(25)).expect("the keeper replaces a worker that does not move");
    // Of a request's 10 s it took half: one that meets two of these cannot be in time.
    pause(5000);
    "workers frozen until they were replaced"
}

/// From now on the worker gets no more memory; it ends when it asks for some.
fn exhaust(scene: &Scene, at: usize) {
    let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
    // SAFETY: the pointers are to a limit that outlives the call, and to none.
    let set = unsafe { libc::prlimit(worker(scene, at), libc::RLIMIT_AS, &limit, std::ptr::null_mut()) };
    // It may be gone by now.
    let _ = set;
}

fn spoil(scene: &mut Scene, at: usize) -> &'static str {
    let (fault, name) = scene.random.of(&[
        (Fault::Delay(Duration::from_millis(400)), "answers delayed"),
        (Fault::Reset(At::Lost), "answers lost"),
        (Fault::Reset(At::Answer), "requests lost"),
        (Fault::Reset(At::Body), "answers cut"),
        (Fault::Silence, "answers held"),
        (Fault::BlackHole, "requests held"),
        (Fault::Status(503, 0), "answers of a vault that is away"),
    ]);
    match scene.random.below(3) {
        0 => scene.proxies[at].always(fault),
        1 => scene.proxies[at].each("PUT", fault),
        _ => scene.proxies[at].next(fault, 5),
    }
    pause(scene.random.between(100, 900));
    scene.proxies[at].clear();
    pause(scene.random.between(100, 900));
    name
}

/// Nothing can be written beside the vault for a while.
fn fill(data: &Path, millis: u64) {
    if !is_root() {
        eprintln!("SKIPPED: filling a disk needs root");
        return pause(millis);
    }
    let path = data.join("filling");
    let mut file = File::create(&path).unwrap();
    let block = vec![1; 1 << 16];
    while file.write_all(&block).is_ok() {}
    pause(millis);
    drop(file);
    fs::remove_file(path).unwrap();
}

/// The mount is dead then, and stays so until it is mounted again in the same place.
fn kill_keeper(scene: &mut Scene, at: usize) {
    let mnt = scene.mounts[at].mnt().to_owned();
    signal(scene.keeper(at).expect("it lives"), Signal::SIGKILL);
    let dead = || match fs::metadata(&mnt) {
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => Some(true),
        _ if !crate::support::common::is_mounted(&mnt) => Some(false),
        _ => None,
    };
    let is_dead = wait(dead, Duration::from_secs(90)).expect("the mount ends when its keeper dies");
    assert!(is_dead, "{} was unmounted, and its programs go on below it", mnt.display());
    pause(scene.random.below(300));
    scene.mount_again(at);
}
