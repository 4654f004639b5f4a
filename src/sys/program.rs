//! The program of a process, and the service or container that it belongs to. Read from /proc, as
//! far as that shows it; never a path on the mount.

use std::fs;

use serde::Serialize;

/// A process as /proc shows it. What cannot be seen is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Program {
    /// The process, not the thread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Its name, as `comm` has it (at most 15 bytes).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// The systemd unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// The container's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
}

impl Program {
    /// The process of the thread `tid`; 0 if it cannot be seen.
    pub fn of(tid: u32) -> Self {
        if tid == 0 {
            return Self::default();
        }
        let pid = tgid_of(tid).unwrap_or(tid);
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        Self { pid: Some(pid), program: name_of(pid), unit: unit(&cgroup), container: container(&cgroup) }
    }
}

/// The name of the program that the thread `pid` runs, as `comm` has it (at most 15 bytes).
pub fn name_of(pid: u32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim_end_matches('\n').to_owned())
}

/// The name of the program that a thread is part of.
pub fn name_of_process(tid: u32) -> Option<String> {
    name_of(tgid_of(tid)?)
}

/// The process that a thread belongs to.
pub fn tgid_of(tid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
}

/// The components of all paths in cgroup(7) text, the deepest first.
fn components(cgroup: &str) -> impl Iterator<Item = &str> {
    let paths = cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.flat_map(|path| path.split('/').rev())
}

/// The id that container engines put into the path: 64 hexadecimal digits, alone or in the name of
/// a scope.
fn container(cgroup: &str) -> Option<String> {
    let id = |component: &str| {
        let name = component.trim_end_matches(".scope");
        let id = name.rsplit('-').next().unwrap_or(name);
        (id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit())).then(|| id.to_owned())
    };
    components(cgroup).find_map(id)
}

fn unit(cgroup: &str) -> Option<String> {
    let is_unit = |name: &&str| {
        name.ends_with(".service")
            || (name.ends_with(".scope") && container(&format!("0::/{name}")).is_none())
    };
    components(cgroup).find(is_unit).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn units_and_containers_are_read_from_either_hierarchy() {
        let service = "0::/system.slice/nginx.service\n";
        assert_eq!((unit(service).as_deref(), container(service)), (Some("nginx.service"), None));
        let user = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-u1.scope\n";
        assert_eq!(unit(user).as_deref(), Some("run-u1.scope"));
        let docker = format!("0::/system.slice/docker-{ID}.scope\n");
        assert_eq!((unit(&docker), container(&docker).as_deref()), (None, Some(ID)));
        let old = format!("12:pids:/docker/{ID}\n1:name=systemd:/docker/{ID}\n");
        assert_eq!((unit(&old), container(&old).as_deref()), (None, Some(ID)));
        assert_eq!((unit("0::/\n"), container("0::/\n")), (None, None));
    }

    #[test]
    fn a_thread_is_told_as_its_process() {
        let tid = std::thread::spawn(|| nix::unistd::gettid().as_raw() as u32).join();
        let me = Program::of(std::process::id());
        assert_eq!(me.pid, Some(std::process::id()));
        assert!(me.program.is_some());
        let gone = Program::of(tid.unwrap());
        assert!(gone.pid.is_some());
        assert_eq!(Program::of(0), Program::default());
    }
}
