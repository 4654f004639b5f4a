//! A mount and a vault that allows few requests.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::support::common::{self, Beside, Mount, Place, run};

/// A vault with `count` objects `f1`, `f2` …, served with this rate limit, and the options that
/// reach it.
fn served(count: usize, limit: &str) -> (Place, Beside, Vec<String>) {
    let mount = Mount::start();
    (1..=count).for_each(|n| fs::write(mount.path(format!("f{n}")), format!("value {n}")).unwrap());
    let place = mount.unmount();
    let mut serve = place.vaultfs(["serve", "--rate-limit", limit, "--listen", "127.0.0.1:0", "--data"]);
    serve.arg(&place.data).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut serving = Beside::start(&mut serve);
    let mut url = String::new();
    BufReader::new(serving.0.stdout.take().unwrap()).read_line(&mut url).unwrap();
    let key = place.data.join("api-key").to_str().unwrap().to_owned();
    let way = ["--api-url", url.trim(), "--api-key-file", &key];
    (place, serving, way.map(str::to_owned).to_vec())
}

fn mounted(place: Place, way: &[String], more: &[&str]) -> Mount {
    let mut command = place.vaultfs(["mount"]);
    run(command.args(way).args(more).arg(&place.mnt)).ok();
    Mount::adopt(place)
}

#[test]
fn a_mount_takes_two_requests_at_most() {
    let (place, _serving, way) = served(150, "0");
    let mount = mounted(place, &way, &[]);
    let status = mount.status();
    assert!(status["fs"]["vault"]["requests"].as_u64().unwrap() <= 2, "{status}");
    assert!(mount.status()["fs"]["vault"]["spent_by"].as_array().unwrap().len() <= 1, "{status}");
}

#[test]
fn when_the_budget_is_spent_what_is_known_is_served_and_the_rest_is_ebusy() {
    let (place, _serving, way) = served(40, "30");
    let mount = mounted(place, &way, &["--refresh=500ms", "--timeout=2s"]);
    assert_eq!(fs::read(mount.path("f1")).unwrap(), b"value 1");
    let refused = (2..=40).find_map(|n| fs::read(mount.path(format!("f{n}"))).err());
    assert_eq!(refused.expect("40 objects and 30 requests").raw_os_error(), Some(libc::EBUSY));
    common::until("what is known is past its time", || {
        mount.status()["fs"]["cache"]["serving_stale"] == true || {
            assert_eq!(fs::read(mount.path("f1")).unwrap(), b"value 1");
            false
        }
    });
    assert_eq!(fs::read(mount.path("f1")).unwrap(), b"value 1");
    let status = mount.status();
    let vault = &status["fs"]["vault"];
    assert_eq!(vault["budget"]["limit"], 30);
    assert_eq!(vault["budget"]["remaining"], 0, "{vault}");
    assert!(vault["outage"].as_str().is_some_and(|why| why.starts_with("rate limit used up")), "{vault}");
    let spent: u64 =
        vault["spent_by"].as_array().unwrap().iter().map(|s| s["requests"].as_u64().unwrap()).sum();
    assert_eq!(Some(spent), vault["requests"].as_u64());
    let text = run(mount.vaultfs(["status"]).arg(mount.mnt())).prints(1);
    assert!(text.contains("0 of 30 requests left"), "{text}");
}

#[test]
fn reading_ahead_takes_a_quarter_of_what_is_left_and_nothing_of_the_last_quarter() {
    let (place, _serving, way) = served(100, "80");
    let mount = mounted(place, &way, &["--refresh=1h"]);
    let figures = || {
        let vault = mount.status()["fs"]["vault"].clone();
        let number = |value: &serde_json::Value| value.as_u64().unwrap();
        (number(&vault["requests"]), number(&vault["budget"]["remaining"]))
    };
    let names: Vec<_> = fs::read_dir(mount.mnt()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(names.len(), 100);
    let look = |n: usize| assert!(fs::metadata(&names[n]).unwrap().is_file());
    (0..2).for_each(look);
    let (asked, left) = figures();
    look(2);
    let mut before = figures();
    common::until("nothing more is fetched", || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        std::mem::replace(&mut before, figures()) == figures()
    });
    let ahead = figures().0 - asked - 1;
    assert!(ahead >= 5 && ahead <= left / 4, "{ahead} of {left} fetched ahead");
    // Those who ask use the rest, to the end.
    let mut n = names.len();
    while figures().1 > 20 {
        n -= 1;
        look(n);
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let (asked, left) = figures();
    (1..=left as usize).for_each(|k| look(n - k));
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(figures(), (asked + left, 0), "one request for each");
}

/// A script as user `nobody`, who is let in; `$M` is the mount point.
fn as_nobody(mount: &Mount, script: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "sh", "-c", script]);
    command.env("M", mount.mnt()).current_dir("/");
    command
}

fn mounted_for_all(place: Place, way: &[String], refresh: &str) -> Mount {
    common::open_to_all(place.dir.path());
    let options = ["--allow-other", "--file-mode=0644", "--dir-mode=0755", refresh];
    mounted(place, way, &options)
}

#[test]
fn who_is_merely_let_in_takes_half_of_the_budget_and_the_owner_goes_on() {
    if !common::is_root() {
        eprintln!("skipped: only root can be another user");
        return;
    }
    let direct = "for n in $(seq 120); do dd if=$M/f$n iflag=direct status=none of=/dev/null; done";
    let cold = "for n in $(seq 120); do cat $M/f$n > /dev/null; done";
    let absent = "for n in $(seq 120); do test -e $M/absent$n; stat -c %n $M/absent$n/x$n; done";
    let listings = "for n in $(seq 120); do ls $M > /dev/null; sleep 0.02; done";
    for (script, refresh) in [
        (direct, "--refresh=1h"),
        (cold, "--refresh=1h"),
        (absent, "--refresh=1ms"),
        (listings, "--refresh=1ms"),
    ] {
        let (place, _serving, way) = served(150, "60");
        let mount = mounted_for_all(place, &way, refresh);
        let errors = mount.place().dir.path().join("errors");
        let forever = format!("while :; do {script}; done");
        let mut guest = as_nobody(&mount, &forever);
        guest.stdout(Stdio::null()).stderr(fs::File::create(&errors).unwrap());
        let guest = Beside::start(&mut guest);
        common::until("the guest is refused", || {
            fs::read_to_string(&errors).unwrap().contains("Device or resource busy")
                || mount.log().contains("operation failed")
                || mount.status()["fs"]["vault"]["budget"]["remaining"].as_u64() <= Some(30)
        });
        for n in 140..145 {
            assert_eq!(
                fs::read(mount.path(format!("f{n}"))).unwrap(),
                format!("value {n}").as_bytes(),
                "{script}"
            );
        }
        assert!(fs::read_dir(mount.mnt()).unwrap().count() >= 150, "{script}");
        common::until("the guest goes on", || {
            fs::metadata(&errors).unwrap().len() > 20_000 || script == listings
        });
        assert_eq!(fs::read(mount.path("f146")).unwrap(), b"value 146", "{script}");
        drop(guest);
        let failures = mount.log().lines().filter(|line| line.contains("EBUSY")).count();
        assert!(failures <= 20, "{script}: {}", mount.log());
        let outage = mount.status()["fs"]["vault"]["outage"].clone();
        assert!(outage.is_null(), "it is no outage: {outage}");
    }
}

#[test]
fn o_direct_of_who_is_merely_let_in_asks_once_a_second_and_a_spent_limit_is_ebusy() {
    if !common::is_root() {
        eprintln!("skipped: only root can be another user");
        return;
    }
    let (place, _serving, way) = served(40, "100");
    let mount = mounted_for_all(place, &way, "--refresh=1h");
    let direct = "dd if=$M/f1 iflag=direct status=none of=/dev/null";
    let before = (mount.requests(), std::time::Instant::now());
    run(&mut as_nobody(&mount, &format!("set -e; for n in $(seq 100); do {direct}; done"))).ok();
    let (asked, seconds) = (mount.requests() - before.0, before.1.elapsed().as_secs());
    assert!(asked <= seconds + 2, "{asked} requests in {seconds} s");
    // The owner's asks each time, to the end of the limit.
    let loop_of =
        |times: u32| format!("for n in $(seq {times}); do {direct} || exit 1; done").replace("$M/", "");
    let refused = mount.script("sh", &loop_of(110)).err;
    assert!(refused.contains("Device or resource busy"), "{refused}");
    assert_eq!(fs::read(mount.path("f1")).unwrap(), b"value 1", "without O_DIRECT what is known is served");
    assert!(
        run(&mut as_nobody(&mount, &format!("sleep 1.1; {direct}"))).err.contains("Device or resource busy")
    );
}
