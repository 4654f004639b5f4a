//! A mount and a vault that allows few requests.

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use common::{Beside, Mount, Place, run};

/// A vault with `count` objects `f1`, `f2` …, served with this rate limit, and the options that reach it.
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
    let text = run(mount.vaultfs(["status"]).arg(mount.mnt())).ok();
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
