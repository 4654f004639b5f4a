//! The long form: mixed load on a real mount while the proxy has bad days, and nothing grows. Run
//! by scripts/soak.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::common::{self, Place, Size, assert_nothing_left, run};
use crate::support::proxy::{At, Fault, Proxy};
use crate::support::vault_server::served::Served;

const FAULTS: [Fault; 9] = [
    Fault::Reset(At::Lost),
    Fault::BlackHole,
    Fault::Status(500, 0),
    Fault::Endless,
    Fault::Reset(At::Body),
    Fault::Silence,
    Fault::Html(502),
    Fault::Garbage,
    Fault::Delay(Duration::from_millis(300)),
];

/// Unmounts whatever happens: a load that waits for a mount cannot be killed.
struct Guard<'a>(&'a Place);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for command in ["status", "pending"] {
                let ran = run(self.0.vaultfs([command]).arg(&self.0.mnt));
                eprintln!("vaultfs {command}: {}{}", ran.out, ran.err);
            }
            eprintln!("the mount's log:\n{}", self.0.log());
        }
        if common::is_mounted(&self.0.mnt) {
            run(self.0.vaultfs(["unmount", "--force"]).arg(&self.0.mnt));
        }
    }
}

/// Ends the load also when the test fails: who waits for its threads would wait for ever.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Writes numbers, each larger than the one before; the last that was acknowledged.
fn writer(path: &Path, by_rename: bool, over: &AtomicBool, acknowledged: &AtomicU64) {
    for number in 1.. {
        if over.load(Ordering::Relaxed) {
            return;
        }
        let saved = match by_rename {
            false => fs::write(path, number.to_string()),
            true => {
                let temporary = path.with_extension("tmp");
                fs::write(&temporary, number.to_string()).and_then(|()| fs::rename(&temporary, path))
            }
        };
        if saved.is_ok() {
            acknowledged.store(number, Ordering::Relaxed);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
#[ignore = "takes minutes: scripts/soak"]
#[expect(clippy::too_many_lines, reason = "one story, or one table")]
fn nothing_grows_and_nothing_is_lost_under_mixed_load_on_bad_days() {
    let minutes =
        std::env::var("VAULTFS_SOAK_MINUTES").ok().and_then(|m| m.parse::<f64>().ok()).unwrap_or(1.0);
    let whole = Duration::from_secs_f64(minutes * 60.0);
    let place = Place::new();
    let served = Served::start(&place.data);
    let proxy = Proxy::before(&served.url);
    let way = ["--api-url".to_owned(), proxy.url.clone(), "--api-key-file".to_owned()];
    let key = place.data.join("api-key");
    run(place.vaultfs(["mount", "--timeout", "2s", "--refresh", "2s"]).args(&way).arg(&key).arg(&place.mnt))
        .ok();
    let guard = Guard(&place);
    let status = run(place.vaultfs(["status", "--json"]).arg(&place.mnt)).ok();
    let status = serde_json::from_str::<serde_json::Value>(&status).unwrap()[0].take();
    let pid = |at: &serde_json::Value| at.as_i64().unwrap() as i32;
    let processes = [
        ("worker", pid(&status["worker_pid"])),
        ("keeper", pid(&status["keeper_pid"])),
        ("helper", pid(&status["fs"]["changes"]["helper"]["pid"])),
    ];
    let sizes = || processes.map(|(_, pid)| Size::of(pid));

    let over = AtomicBool::new(false);
    let acknowledged: [AtomicU64; 4] = Default::default();
    let path = |n: usize| place.mnt.join(format!("w{n}"));
    let mut early = None;
    std::thread::scope(|scope| {
        let _end = End(&over);
        for (n, acknowledged) in acknowledged.iter().enumerate() {
            let (path, over) = (path(n), &over);
            scope.spawn(move || writer(&path, n % 2 == 1, over, acknowledged));
        }
        for n in 0..8 {
            let (mnt, over) = (place.mnt.clone(), &over);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    // What fails on a bad day is told elsewhere; that it ends is what counts here.
                    let _ = fs::read(mnt.join(format!("w{}", n % 4)));
                    let _ = fs::read_dir(&mnt).map(|dir| dir.flatten().count());
                    let _ = fs::metadata(mnt.join("absent"));
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
        }
        let (began, mut days) = (Instant::now(), 0);
        for fault in FAULTS.into_iter().cycle() {
            proxy.always(fault);
            std::thread::sleep(Duration::from_secs(1));
            proxy.clear();
            std::thread::sleep(Duration::from_secs(2));
            // Not before each fault has been there once: what they take is not growth.
            days += 1;
            if early.is_none() && days >= FAULTS.len() && began.elapsed() >= whole / 10 {
                early = Some(sizes());
            }
            if early.is_some() && began.elapsed() >= whole {
                break;
            }
        }
    });
    let (early, late) = (early.unwrap(), sizes());
    run(place.vaultfs(["unmount"]).arg(&place.mnt)).ok();
    drop(guard);
    assert_nothing_left(&place.mnt);
    for (n, acknowledged) in acknowledged.iter().enumerate() {
        let mut get = Command::new(common::VAULTFS);
        place.isolate(&mut get);
        let text = run(get.arg("get").args(&way).arg(&key).arg(format!("w{n}"))).ok();
        let (stored, told): (u64, u64) = (text.parse().unwrap(), acknowledged.load(Ordering::Relaxed));
        eprintln!("w{n}: {told} was acknowledged last, {stored} is in the vault");
        assert!(stored >= told, "w{n}: {told} was acknowledged, {stored} is in the vault");
    }
    for (n, (who, _)) in processes.into_iter().enumerate() {
        early[n].assert_not_outgrown(who, late[n]);
    }
}
