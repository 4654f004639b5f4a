//! One vault in a process of its own, two mounts of it in different dialects, each behind a proxy,
//! and the programs that use them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use super::api::Api;
use super::check::{Log, Name, Violation, seconds};
use super::value::{self, Random, Save};
use super::work::{self, Role};
use crate::support::common::{Mount, Place, is_mounted, is_root, run, until, wait};
use crate::support::proxy::Proxy;
use crate::support::vault_server::served::Served;

/// A request's deadline on the mounts.
pub const DEADLINE: Duration = Duration::from_secs(10);

pub const DIALECTS: [&str; 2] = ["object", "kv"];

const fn role(kind: &'static str, name: &'static str, by: &'static str) -> Role {
    Role { kind, name, by }
}

/// Who does what. Where a name is written in place, readers on the same mount take its lock, or
/// there are none.
const ROLES: &[Role] = &[
    role("rename", "renamed", "object"),
    role("rename", "renamed", "kv"),
    role("sed", "renamed", "object"),
    role("perl", "renamed", "kv"),
    role("mv", "renamed", "object"),
    role("update", "renamed", "api"),
    role("read", "renamed", "object"),
    role("read", "renamed", "kv"),
    role("echo", "echoed", "object"),
    role("update", "echoed", "api"),
    role("read", "echoed", "kv"),
    role("cp", "copied", "kv"),
    role("update", "copied", "api"),
    role("read", "copied", "object"),
    role("flock", "locked", "object"),
    role("held", "locked", "object"),
    role("flock", "locked", "kv"),
    role("held", "locked", "kv"),
    role("update", "locked", "api"),
    role("read-locked", "locked", "object"),
    role("read-locked", "locked", "kv"),
    role("append", "appended", "object"),
    role("append", "appended", "object"),
    role("read", "appended", "kv"),
    role("append", "appended-kv", "kv"),
    role("append", "appended-kv", "kv"),
    role("read", "appended-kv", "object"),
    role("anew", "anew", "object"),
    role("read", "anew", "kv"),
    role("gone", "gone", "object"),
    role("gone", "gone", "kv"),
];

pub struct Scene {
    pub served: Option<Served>,
    pub mounts: Vec<Mount>,
    pub proxies: Vec<Proxy>,
    pub data: PathBuf,
    programs: Vec<Child>,
    pub random: Random,
    home: Place,
    time: Duration,
}

/// How many of what.
#[derive(Debug)]
#[allow(dead_code, reason = "they are shown, and people read them")]
pub struct Figures {
    pub saves: usize,
    /// By errno.
    pub failed: BTreeMap<String, usize>,
    pub reads: usize,
    pub slowest: (Duration, String),
}

impl Scene {
    /// For so long at the most.
    pub fn start(seed: u64, time: Duration) -> Self {
        let home = Place::new();
        let data = home.data.clone();
        if is_root() {
            // Small enough to be filled; and no disk makes anybody wait.
            fs::create_dir(&data).unwrap();
            let size = format!("size={}m", 256 + time.as_secs() / 2);
            let mut mount = Command::new("mount");
            run(mount.args(["-t", "tmpfs", "-o", &size, "vaultfs-test"]).arg(&data)).ok();
        }
        let served = Served::start(&data);
        let proxies: Vec<Proxy> = DIALECTS.iter().map(|_| Proxy::before(&served.url)).collect();
        let mut scene = Self {
            served: Some(served),
            mounts: Vec::new(),
            proxies,
            data,
            programs: Vec::new(),
            random: Random::new(seed),
            home,
            time,
        };
        for at in 0..DIALECTS.len() {
            let place = Place::new();
            run(&mut scene.mount_command(&place, at)).ok();
            scene.mounts.push(Mount::adopt_for(place, time));
        }
        for name in scene.names() {
            let path = scene.mounts[0].path(name);
            fs::write(path, value::line(Save { writer: u16::MAX, number: 0 }, 50)).unwrap();
            until("it is seen elsewhere", || scene.mounts[1].path(name).exists());
        }
        assert!(ROLES.len() <= value::WRITERS as usize);
        for (writer, role) in ROLES.iter().enumerate() {
            let log = scene.log_of(writer);
            let dirs: Vec<(&str, &Path)> =
                DIALECTS.iter().zip(&scene.mounts).map(|(by, mount)| (*by, mount.mnt())).collect();
            let seed = scene.random.below(u64::MAX >> 12);
            let child = work::start(role, writer as u16, &dirs, &scene.data, &log, seed);
            scene.programs.push(child);
        }
        scene
    }

    fn mount_command(&self, place: &Place, at: usize) -> Command {
        let deadline = format!("{}s", DEADLINE.as_secs());
        let mut command =
            place.vaultfs(["mount", "--refresh", "500ms", "--drain", "20s", "--timeout", &deadline]);
        command.args(["--api", DIALECTS[at], "--api-url", &self.proxies[at].url, "--api-key-file"]);
        command.arg(self.data.join("api-key")).arg(&place.mnt);
        command
    }

    /// Where a keeper died: mounts again in the dead mount's place.
    pub fn mount_again(&mut self, at: usize) {
        run(&mut self.mount_command(self.mounts[at].place(), at)).ok();
        let time = self.time;
        self.mounts[at].watch_again(time);
    }

    fn log_of(&self, writer: usize) -> PathBuf {
        self.home.dir.path().join(format!("log-{writer}"))
    }

    fn names(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = ROLES.iter().map(|role| role.name).filter(|name| *name != "gone").collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    fn logs(&self) -> Vec<Log> {
        (0..ROLES.len()).map(|writer| Log::read(&self.log_of(writer), writer as u16)).collect()
    }

    /// What failed so far, and must not have.
    pub fn failures(&self) -> Vec<String> {
        let mut all = Vec::new();
        for (writer, (role, log)) in ROLES.iter().zip(self.logs()).enumerate() {
            let who = format!("w{writer}, {} {} on {}", role.kind, role.name, role.by);
            let failed = log.failed.iter();
            all.extend(failed.map(|(told, why)| {
                format!("{who}: {} - {}: {}: {why}", seconds(told.start), seconds(told.end), told.save)
            }));
            let unread = log.unread.iter();
            all.extend(
                unread.map(|(start, end, why)| {
                    format!("{who}: {} - {}: {why}", seconds(*start), seconds(*end))
                }),
            );
        }
        all
    }

    /// The longest operation so far, and which that was.
    pub fn slowest(&self) -> (Duration, String) {
        let slowest = self.logs().into_iter().map(|log| log.slowest).max().unwrap_or_default();
        (Duration::from_nanos(slowest.0), slowest.1)
    }

    /// Ends the load: each program finishes what it is at.
    pub fn end_load(&mut self) {
        for program in &mut self.programs {
            drop(program.stdin.take());
        }
        for program in &mut self.programs {
            let ended = wait(|| program.try_wait().unwrap(), Duration::from_secs(60));
            assert!(ended.is_some_and(|status| status.success()), "a program of the load: {ended:?}");
        }
    }

    /// Until nothing is on its way to the vault any more. What failed for good is given up.
    fn settle(&self) {
        for mount in &self.mounts {
            let pending = || {
                let text = run(mount.vaultfs(["pending", "--json"]).arg(mount.mnt())).out;
                let listed: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
                let of = |left: &serde_json::Value| left["name"].as_str().map(str::to_owned);
                listed.as_array().into_iter().flatten().filter_map(of).collect::<Vec<_>>()
            };
            let _ = wait(|| pending().is_empty().then_some(()), Duration::from_secs(8));
            for name in pending() {
                eprintln!("given up at the end: {name} on {}", mount.mnt().display());
                let _ = run(mount.vaultfs(["pending"]).arg(mount.mnt()).args(["--discard", &name]));
            }
        }
    }

    /// Ends the load, and looks at the history of every name. What is wrong, and how much was done.
    pub fn judge(mut self) -> (Vec<Violation>, Figures) {
        self.end_load();
        self.settle();
        let (api, logs) = (Api::of(&self.data), self.logs());
        let mut wrong = Vec::new();
        for name in self.names() {
            let of_name = ROLES.iter().enumerate().filter(|(_, role)| role.name == name);
            let logs = of_name.map(|(writer, role)| (writer as u16, role, &logs[writer])).collect();
            match api.history(name) {
                Ok(versions) => {
                    let current = versions.last().expect("never none").clone();
                    wrong.extend(self.ends_equal(name, &current));
                    wrong.extend(Name { name, versions, logs }.violations());
                }
                Err(e) => wrong.push(Violation { rule: "versions are 1..N", text: format!("{name}: {e}") }),
            }
        }
        let deleted: Vec<&String> = logs.iter().flat_map(|log| &log.deleted).collect();
        let mut failed = BTreeMap::new();
        for (_, why) in logs.iter().flat_map(|log| &log.failed) {
            let errno = why.rsplit(": ").next().unwrap_or(why);
            let errno = errno.split(" (os error").next().unwrap_or(errno);
            *failed.entry(errno.to_owned()).or_default() += 1;
        }
        let names = self.names();
        for name in api.names() {
            if deleted.contains(&&name) {
                wrong.push(Violation { rule: "what was deleted is gone", text: name });
            } else if failed.is_empty() && !names.contains(&name.as_str()) {
                wrong.push(Violation { rule: "no temporary is left", text: name });
            }
        }
        let sum = |of: fn(&Log) -> usize| logs.iter().map(of).sum();
        let figures = Figures {
            saves: sum(|log| log.acknowledged.len()),
            failed,
            reads: sum(|log| log.reads.len()),
            slowest: self.slowest(),
        };
        self.end(&mut wrong);
        (wrong, figures)
    }

    /// Both mounts show what is in the vault.
    fn ends_equal(&self, name: &str, current: &[u8]) -> Vec<Violation> {
        let differs = |mount: &&Mount| {
            let shows = || (fs::read(mount.path(name)).ok()? == current).then_some(());
            wait(shows, Duration::from_secs(10)).is_none()
        };
        let told = |mount: &Mount| {
            let shown = fs::read(mount.path(name)).map(|bytes| value::parse(&bytes));
            let stored = value::parse(current);
            let text = format!("{name}: {} shows {shown:?}, the vault has {stored:?}", mount.mnt().display());
            Violation { rule: "both mounts show what is stored", text }
        };
        self.mounts.iter().filter(differs).map(told).collect()
    }

    /// Nothing is left: no process, no mount, and nothing below the mount points.
    fn end(mut self, wrong: &mut Vec<Violation>) {
        for mount in self.mounts.drain(..) {
            let place = mount.unmount();
            let below: Vec<_> =
                fs::read_dir(&place.mnt).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            if !below.is_empty() {
                wrong
                    .push(Violation { rule: "nothing is written below a mount", text: format!("{below:?}") });
            }
        }
    }

    /// A count for each kind of thing that was done.
    pub fn told(done: &BTreeMap<&'static str, u32>) -> String {
        done.iter().map(|(what, times)| format!("{times} {what}")).collect::<Vec<_>>().join(", ")
    }

    pub fn keeper(&self, at: usize) -> Option<i32> {
        keeper_at(self.mounts[at].mnt())
    }
}

/// The keeper of a mount, found without asking anybody.
pub fn keeper_at(mnt: &Path) -> Option<i32> {
    let is_keeper = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "vaultfs-keeper")
    };
    crate::support::common::processes_of(mnt).into_iter().find(is_keeper)
}

impl Drop for Scene {
    fn drop(&mut self) {
        for program in &mut self.programs {
            drop(program.stdin.take());
        }
        // What waits for a mount ends with it.
        self.proxies.iter().for_each(Proxy::clear);
        self.mounts.clear();
        for program in &mut self.programs {
            let _ = program.kill();
            let _ = program.wait();
        }
        drop(self.served.take());
        if is_root() && is_mounted(&self.data) {
            let _ = Command::new("umount").arg("-l").arg(&self.data).status();
        }
    }
}
