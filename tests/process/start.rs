//! Starting a mount while the vault is not there: at once, waiting, and without it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::support::common::{self, Beside, Mount, Place, assert_nothing_left, kill_worker, run, until};
use crate::support::proxy::{At, Fault, Proxy};
use crate::support::vault_server::served::Served;

/// A vault with an object in it, and the way to it, which can be closed.
struct Vault {
    _served: Served,
    proxy: Proxy,
    key_file: String,
}

impl Vault {
    fn start(place: &Place) -> Self {
        let served = Served::start(&place.data);
        let proxy = Proxy::before(&served.url);
        let key_file = place.data.join("api-key").to_str().unwrap().to_owned();
        let vault = Self { _served: served, proxy, key_file };
        let put = format!("printf 1 | {} put {} -- d/f", common::VAULTFS, vault.way().join(" "));
        let mut command = Command::new("sh");
        place.isolate(&mut command);
        run(command.args(["-c", &put])).ok();
        vault
    }

    fn way(&self) -> [&str; 4] {
        ["--api-url", &self.proxy.url, "--api-key-file", &self.key_file]
    }

    fn mount_command(&self, place: &Place, more: &[&str]) -> Command {
        let mut command = place.vaultfs(["mount"]);
        let timeout = if more.contains(&"--timeout") { &[][..] } else { &["--timeout", "2s"] };
        command.args(timeout).args(self.way()).args(more).arg(&place.mnt);
        command
    }
}

#[test]
fn a_mount_says_that_it_made_a_vault_and_its_successors_make_none() {
    let place = Place::new();
    let key = place.data.join("master-key");
    let made = format!("vaultfs: made a new vault in {}: back up {}\n", place.data.display(), key.display());
    assert_eq!(run(&mut place.mount_command(&[])).err, made);
    let mount = Mount::adopt(place);
    mount.sh("printf 1 > a");
    let place = mount.unmount();
    assert_eq!(run(&mut place.mount_command(&[])).err, "");
    let data = place.data.clone();
    let mount = Mount::adopt(place);
    let (keeper, _) = mount.pids();
    let moved = data.with_extension("moved");
    fs::rename(&data, &moved).unwrap();
    kill_worker(keeper);
    until("the log says it", || mount.log().contains("there is no vault in"));
    assert!(!data.exists());
    fs::rename(&moved, &data).unwrap();
    until("a successor serves", || fs::read(mount.path("a")).is_ok_and(|value| value == b"1"));
}

#[test]
fn without_a_vault_it_is_exit_4_and_nothing_stays() {
    let place = Place::new();
    let vault = Vault::start(&place);
    vault.proxy.down();
    let said = run(&mut vault.mount_command(&place, &[])).fails(4);
    assert!(said.contains("no connection to the vault"), "{said}");
    assert_nothing_left(&place.mnt);
    vault.proxy.up();
    vault.proxy.always(Fault::BlackHole);
    run(&mut vault.mount_command(&place, &[])).fails(4);
    vault.proxy.always(Fault::Html(200));
    let said = run(&mut vault.mount_command(&place, &[])).fails(4);
    assert!(said.contains("not a vault at"), "{said}");
    assert_nothing_left(&place.mnt);
}

#[test]
fn a_vault_that_is_restarted_is_waited_for_by_mounts_and_reads() {
    let place = Place::new();
    let vault = Vault::start(&place);
    for status in [502, 503, 504] {
        vault.proxy.always(Fault::Status(status, 0));
        let said = run(&mut vault.mount_command(&place, &[])).fails(4);
        assert!(said.contains(&format!("status {status}")), "{said}");
    }
    assert_nothing_left(&place.mnt);
    // More failures than are tried where a failure is no restart, in less time than there is.
    vault.proxy.clear();
    vault.proxy.next(Fault::Status(503, 0), 7);
    run(&mut vault.mount_command(&place, &["--timeout", "60s"])).ok();
    let mount = Mount::adopt(place);
    vault.proxy.next(Fault::Status(502, 0), 3);
    vault.proxy.next(Fault::Reset(At::Answer), 3);
    assert_eq!(fs::read_to_string(mount.path("d/f")).unwrap(), "1");
    // The first try of a change may have been made: it is looked for, and then made.
    vault.proxy.next(Fault::Status(503, 0), 6);
    fs::write(mount.path("d/f"), "2").unwrap();
    assert_eq!(mount.versions("d/f"), [1, 2]);
    mount.unmount();
}

#[test]
fn wait_mounts_when_the_vault_comes_and_says_that_it_waits() {
    let place = Place::new();
    let vault = Vault::start(&place);
    vault.proxy.down();
    // The first seconds of a service that starts: refused, then a load balancer that has nobody to
    // ask.
    let mut mounting =
        Beside::start(vault.mount_command(&place, &["--wait"]).stderr(Stdio::piped()).stdin(Stdio::null()));
    let mut said = String::new();
    BufReader::new(mounting.0.stderr.take().unwrap()).read_line(&mut said).unwrap();
    assert!(said.contains("waiting for the vault"), "{said}");
    assert!(!common::is_mounted(&place.mnt), "nothing is mounted before there is a vault");
    vault.proxy.up();
    vault.proxy.next(Fault::Status(503, 0), 4);
    assert_eq!(mounting.ends().code(), Some(0));
    let mount = Mount::adopt(place);
    assert_eq!(fs::read_to_string(mount.path("d/f")).unwrap(), "1");
    assert!(mount.log().contains("the vault does not answer yet: waiting for it"), "{}", mount.log());
    mount.unmount();
}

#[test]
fn what_replaces_the_directory_while_a_mount_waits_is_not_mounted_on() {
    crate::support::only_root!("only root can give a link away");
    for case in ["link", "directory", "nothing", "another path to it"] {
        let place = Place::new();
        let vault = Vault::start(&place);
        let (victim, moved) = (place.dir.path().join("victim"), place.dir.path().join("moved"));
        fs::create_dir(&victim).unwrap();
        vault.proxy.down();
        let mut mounting = Beside::start(vault.mount_command(&place, &["--wait"]).stderr(Stdio::piped()));
        let mut said = BufReader::new(mounting.0.stderr.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert!(line.contains("waiting for the vault"), "{line}");
        match case {
            "nothing" => fs::remove_dir(&place.mnt).unwrap(),
            _ => fs::rename(&place.mnt, &moved).unwrap(),
        }
        match case {
            "link" => std::os::unix::fs::symlink(&victim, &place.mnt).unwrap(),
            "directory" => fs::create_dir(&place.mnt).unwrap(),
            "another path to it" => std::os::unix::fs::symlink(&moved, &place.mnt).unwrap(),
            _ => {}
        }
        if let Ok(about) = fs::symlink_metadata(&place.mnt)
            && about.is_symlink()
        {
            std::os::unix::fs::lchown(&place.mnt, Some(1000), Some(1000)).unwrap();
        }
        vault.proxy.up();
        assert_eq!(mounting.ends().code(), Some(1), "{case}");
        line.clear();
        said.read_line(&mut line).unwrap();
        assert!(line.contains("moved or replaced"), "{case}: {line}");
        for path in [&place.mnt, &moved, &victim] {
            assert_nothing_left(path);
        }
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!table.contains(place.dir.path().to_str().unwrap()), "{case}: {table}");
    }
}

#[test]
fn wait_ends_with_exit_4_and_a_refused_key_is_not_waited_for() {
    let place = Place::new();
    let vault = Vault::start(&place);
    vault.proxy.down();
    run(&mut vault.mount_command(&place, &["-o", "wait=1500ms"])).fails(4);
    vault.proxy.up();
    vault.proxy.always(Fault::Status(401, 0));
    run(&mut vault.mount_command(&place, &["--wait=10m"])).fails(3);
    let both = run(&mut vault.mount_command(&place, &["--wait", "--lazy"])).fails(2);
    assert!(both.contains("--lazy"), "{both}");
    assert_nothing_left(&place.mnt);
}

#[test]
fn lazy_mounts_without_a_vault_and_works_when_there_is_one() {
    for api in ["auto", "kv"] {
        let place = Place::new();
        let vault = Vault::start(&place);
        vault.proxy.down();
        run(&mut vault.mount_command(&place, &["-o", "lazy", "--api", api])).ok();
        let mount = Mount::adopt(place);
        let errno = |path: &str| fs::read(mount.path(path)).unwrap_err().raw_os_error();
        assert_eq!(errno("d/f"), Some(libc::ETIMEDOUT));
        assert_eq!(
            fs::read_dir(mount.mnt()).unwrap().next().unwrap().unwrap_err().raw_os_error(),
            Some(libc::ETIMEDOUT)
        );
        assert!(fs::metadata(mount.mnt()).is_ok_and(|root| root.is_dir()), "the root needs nobody");
        let written = fs::write(mount.path("early"), "bird");
        assert_eq!(written.unwrap_err().raw_os_error(), Some(libc::ETIMEDOUT));
        assert!(mount.status()["fs"]["vault"]["outage"].is_string());

        vault.proxy.up();
        until("the vault is seen", || fs::read_to_string(mount.path("d/f")).is_ok_and(|text| text == "1"));
        assert!(mount.status()["fs"]["vault"]["outage"].is_null());
        fs::write(mount.path("new"), "2").unwrap();
        assert_eq!(mount.versions("new"), [1]);
        mount.unmount();
    }
}

#[test]
fn lazy_asks_once_for_all_who_wait_and_a_refusal_is_an_answer() {
    let place = Place::new();
    let vault = Vault::start(&place);
    vault.proxy.always(Fault::BlackHole);
    run(&mut vault.mount_command(&place, &["--lazy"])).ok();
    let mount = Mount::adopt(place);
    let before = vault.proxy.requests();
    std::thread::scope(|scope| {
        for n in 0..50 {
            let path = mount.path(format!("f{n}"));
            scope.spawn(move || {
                assert_eq!(fs::read(path).unwrap_err().raw_os_error(), Some(libc::ETIMEDOUT));
            });
        }
    });
    assert!(vault.proxy.requests() - before < 10, "{}", vault.proxy.requests() - before);
    vault.proxy.always(Fault::Status(401, 0));
    assert_eq!(fs::read(mount.path("f")).unwrap_err().raw_os_error(), Some(libc::EACCES));
    vault.proxy.clear();
    until("the key is taken", || fs::read(mount.path("d/f")).is_ok());
    mount.unmount();
}
