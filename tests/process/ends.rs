//! Ends of mounts that others have a say in: other mount namespaces, other commands, processes that
//! die meanwhile.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::common::{
    Beside, Mount, Place, assert_nothing_left, is_mounted, is_root, processes_of, run, signal, until,
};
use crate::support::mount_table;

/// A process in a mount namespace of its own that has what this one has, and hears of no change.
fn copy_of_all_mounts(mount: &Mount) -> Beside {
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "private", "sleep", "60"]).stdin(Stdio::null());
    let other = Beside::start(&mut command);
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let pid = other.0.id().to_string();
    until("it has a namespace of its own", || {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        namespace(&pid) != namespace("self") && name == "sleep\n"
    });
    let table = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    assert!(table.contains(mount.mnt().to_str().unwrap()));
    other
}

#[test]
fn a_mount_that_another_namespace_has_is_told_at_once_and_shown_until_it_ends() {
    let _alone = mount_table::take();
    crate::support::only_root!("only root can copy a mount namespace");
    let mount = Mount::with(&["--drain", "30s"]);
    let (keeper, _) = mount.pids();
    let other = copy_of_all_mounts(&mount);
    let begun = Instant::now();
    let who = format!("that of {} (sleep)", other.0.id());
    for _ in 0..2 {
        let said = run(mount.vaultfs(["unmount"]).arg(mount.mnt())).fails(1);
        assert!(said.contains("is unmounted here, but another mount namespace has it still"), "{said}");
        assert!(said.contains(&who) && said.contains(&format!("process {keeper})")), "{said}");
    }
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert!(!is_mounted(mount.mnt()));
    let status = run(mount.vaultfs(["status"]).arg(mount.mnt())).ok();
    assert!(status.contains("DETACHED: ") && status.contains(&who), "{status}");
    assert!(status.contains(&format!("keeper {keeper}")), "{status}");
    let all = run(&mut mount.vaultfs(["status", "--json"])).out;
    assert!(all.contains(mount.mnt().to_str().unwrap()));
    drop(other);
    mount.unmount_done();
}

#[test]
fn a_mount_that_another_namespace_has_can_be_ended_all_the_same() {
    let _alone = mount_table::take();
    crate::support::only_root!("only root can copy a mount namespace");
    for by in ["SIGTERM", "SIGTERM after unmount", "unmount --force"] {
        let mount = Mount::with(&["--drain", "40s"]);
        fs::write(mount.path("f"), "value").unwrap();
        let (keeper, _) = mount.pids();
        let _other = copy_of_all_mounts(&mount);
        if by != "SIGTERM" {
            run(mount.vaultfs(["unmount"]).arg(mount.mnt())).fails(1);
        }
        let begun = Instant::now();
        match by {
            "unmount --force" => drop(run(mount.vaultfs(["unmount", "--force"]).arg(mount.mnt())).ok()),
            _ => signal(keeper, Signal::SIGTERM),
        }
        until("its processes have ended", || processes_of(mount.mnt()).is_empty());
        assert!(begun.elapsed() < Duration::from_secs(15), "{by}: {:?}", begun.elapsed());
        let place = mount.unmount_done();
        assert_eq!(run(&mut place.vaultfs(["get", &place.embedded(), "f"])).ok(), "value");
    }
}

#[test]
fn of_two_unmounts_at_once_neither_says_what_is_not_so() {
    for _ in 0..5 {
        let mount = Mount::start();
        fs::write(mount.path("f"), "value").unwrap();
        let mut unmounts = [0, 1].map(|_| {
            let mut command = mount.vaultfs(["unmount"]);
            Beside::start(command.arg(mount.mnt()).stdin(Stdio::null()).stderr(Stdio::piped()))
        });
        let mut codes = Vec::new();
        for unmount in &mut unmounts {
            let code = unmount.ends().code().unwrap();
            let mut said = String::new();
            unmount.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            let too_late = said.contains("nothing is mounted on")
                || said.contains("was unmounted by another command meanwhile");
            assert!(code == 0 || too_late, "{code}: {said}");
            codes.push(code);
        }
        assert!(codes.contains(&0), "{codes:?}");
        mount.unmount_done();
    }
}

/// `vaultfs serve` that has been stopped, and a mount of it with one save that failed.
struct Silent {
    server: Beside,
    mount: Mount,
}

impl Silent {
    fn start(drain: &str) -> Self {
        let place = Place::new();
        let mut command = place.vaultfs(["serve", "--listen", "127.0.0.1:0", "--data"]);
        command.arg(&place.data).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut server = Beside::start(&mut command);
        let mut url = String::new();
        BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut url).unwrap();
        let mut command =
            place.vaultfs(["mount", "--timeout", "1s", "--drain", drain, "--api-url", url.trim()]);
        run(command.arg("--api-key-file").arg(place.data.join("api-key")).arg(&place.mnt)).ok();
        let mount = Mount::adopt(place);
        signal(server.0.id() as i32, Signal::SIGSTOP);
        let mut file = fs::File::create(mount.path("late")).unwrap();
        file.write_all(b"precious").unwrap();
        file.sync_all().unwrap_err();
        Self { server, mount }
    }

    fn speak(&self) {
        signal(self.server.0.id() as i32, Signal::SIGCONT);
    }

    /// `vaultfs unmount`, once it has begun to store.
    fn unmount(&self) -> Beside {
        let mut command = self.mount.vaultfs(["unmount"]);
        command.arg(self.mount.mnt()).stdin(Stdio::null()).stderr(Stdio::piped());
        let unmount = Beside::start(&mut command);
        std::thread::sleep(Duration::from_millis(1500));
        unmount
    }

    /// It ended well, and the vault has what was unsaved.
    fn has_stored(self, unmount: &mut Beside) {
        let code = unmount.ends().code();
        let mut said = String::new();
        unmount.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(code, Some(0), "{said}");
        let Self { server, mount } = self;
        let place = mount.unmount_done();
        drop(server);
        assert_eq!(run(&mut place.vaultfs(["get", &place.embedded(), "late"])).ok(), "precious");
    }
}

#[test]
fn an_unmount_goes_on_with_the_next_worker() {
    let silent = Silent::start("20s");
    let (_, worker) = silent.mount.pids();
    let mut unmount = silent.unmount();
    signal(worker, Signal::SIGKILL);
    until("another worker serves", || {
        let status = run(silent.mount.vaultfs(["status", "--json"]).arg(silent.mount.mnt()));
        status.out.contains("worker_pid") && !status.out.contains(&format!("\"worker_pid\": {worker}"))
    });
    assert_eq!(unmount.0.try_wait().unwrap(), None, "it goes on");
    silent.speak();
    silent.has_stored(&mut unmount);
}

#[test]
fn a_worker_whose_keeper_died_says_that_it_ends_and_is_waited_for() {
    let silent = Silent::start("20s");
    let (keeper, worker) = silent.mount.pids();
    signal(keeper, Signal::SIGKILL);
    let of_mount = |command: &str| run(silent.mount.vaultfs([command]).arg(silent.mount.mnt()));
    until("it is noticed", || of_mount("status").code == Some(1));
    let status = of_mount("status").out;
    assert!(
        status.contains(&format!("its keeper is gone; its worker, process {worker}, stores")),
        "{status}"
    );
    let pending = of_mount("pending");
    assert!(pending.code == Some(7) && pending.out.contains("  late  "), "{pending:?}");
    let mut unmount = silent.unmount();
    assert_eq!(unmount.0.try_wait().unwrap(), None, "it waits");
    silent.speak();
    silent.has_stored(&mut unmount);
}

#[test]
fn force_names_what_a_worker_whose_keeper_died_has_not_stored() {
    let silent = Silent::start("20s");
    let (keeper, _) = silent.mount.pids();
    signal(keeper, Signal::SIGKILL);
    let mount = &silent.mount;
    until("it is noticed", || run(mount.vaultfs(["status"]).arg(mount.mnt())).code == Some(1));
    let said = run(mount.vaultfs(["unmount", "--force"]).arg(mount.mnt())).fails(7);
    assert!(said.contains("late: ") && said.contains("given up") && !said.contains("dead mount"), "{said}");
    assert!(!is_mounted(mount.mnt()));
    silent.speak();
    let Silent { server, mount } = silent;
    mount.unmount_done();
    drop(server);
}

#[test]
fn a_home_that_does_not_exist_is_not_made() {
    let place = Place::new();
    let home = place.dir.path().join("none");
    let mut command = place.mount_command(&[]);
    let ran = run(command.env("HOME", &home).env_remove("XDG_STATE_HOME"));
    assert!(!home.exists());
    match is_root() {
        true => {
            let mount = Mount::adopt(place);
            ran.ok();
            let own = mount.mnt().parent().unwrap().to_str().unwrap().rsplit('-').next().unwrap().to_owned();
            mount.unmount();
            let logs = fs::read_dir("/var/log/vaultfs").unwrap().map(|log| log.unwrap().path());
            let logs: Vec<_> = logs.filter(|log| log.to_str().unwrap().contains(&own)).collect();
            assert_eq!(logs.len(), 1, "{logs:?}");
            fs::remove_file(&logs[0]).unwrap();
        }
        // The password file may name one, which is as good.
        false if ran.code == Some(0) => drop(Mount::adopt(place)),
        false => assert!(ran.err.contains("--log FILE"), "{ran:?}"),
    }
}

#[test]
fn a_key_pipe_that_nobody_writes_is_not_waited_for_long() {
    let place = Place::new();
    let pipe = place.dir.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut command = place.vaultfs(["ls", "--api-url", "http://127.0.0.1:9", "--api-key-file"]);
    let said = run(command.arg(&pipe)).fails(3);
    assert!(said.contains("no process wrote it to its end within 10 s"), "{said}");
    assert_nothing_left(&place.mnt);
}

#[test]
fn who_waits_in_vain_is_told_the_true_cause() {
    let place = Place::new();
    let mut command = place.vaultfs(["mount", "--wait=3s", "--api-url", "http://127.0.0.1:9"]);
    let said = run(command.env("WORKOS_API_KEY", "sk_x").arg(&place.mnt)).fails(4);
    assert!(said.contains("no connection to the vault at") && !said.contains("in time"), "{said}");
}
