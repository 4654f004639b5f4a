//! One deadline for each request of the kernel, whatever it takes: tries, looks, both halves of a
//! rename.
//!
//! Time is paused, so what is measured is exact: no slack but for the looks at the clock.

use std::time::Duration;

use vaultfs::fs::{Errno, Options};
use vaultfs::vault::testing::faulty::Fault;
use vaultfs::vault::testing::memory::{KV_CAPABILITIES, OBJECT_CAPABILITIES};

use crate::shell::{CREATE, READ, Shell, WRITE};

const TIMEOUT: Duration = Duration::from_secs(10);

/// Operations that ask the vault, each by itself.
const OPERATIONS: [&str; 13] = [
    "cold read",
    "stale read",
    "listing",
    "absent",
    "create",
    "update",
    "fsync",
    "truncate",
    "unlink",
    "rename",
    "rename onto",
    "O_DIRECT",
    "version",
];

/// Does one of them while the vault is as `fault` says; how long that took.
async fn time_of(operation: &str, fault: Fault, kv: bool) -> Duration {
    let capabilities = if kv { KV_CAPABILITIES } else { OBJECT_CAPABILITIES };
    let sh = Shell::of(capabilities, Options { timeout: TIMEOUT, ..Options::default() });
    if operation != "create" && operation != "absent" {
        sh.put("f", "old").await;
    }
    let (mut fd, mut history) = (None, 0);
    match operation {
        "stale read" => {
            sh.cat("f").await;
            sh.refresh().await;
        }
        "truncate" | "unlink" | "O_DIRECT" => drop(sh.cat("f").await),
        "rename" => {
            sh.cat("f").await;
            assert_eq!(sh.stat("g").await, Err(Errno::ENOENT));
        }
        "version" => history = sh.stat(".versions/f").await.unwrap().ino,
        "rename onto" => {
            sh.put("g", "other").await;
            sh.cat("f").await;
            sh.cat("g").await;
        }
        "create" | "update" | "fsync" => {
            let opened = sh.open("f", if operation == "create" { CREATE } else { WRITE }).await.unwrap();
            sh.pwrite(&opened, 0, "new").unwrap();
            fd = Some(opened);
        }
        _ => {}
    }
    sh.vault.plan_any().always().fail(fault);
    let began = tokio::time::Instant::now();
    // What comes of it is told elsewhere; here it is the time.
    let _ = match operation {
        "cold read" | "stale read" => sh.read_file("f").await.map(drop),
        "listing" => sh.ls("").await.map(drop),
        "absent" => sh.stat("f").await.map(drop),
        "create" | "update" => sh.flush(&fd.unwrap()).await,
        "fsync" => sh.fsync(&fd.unwrap()).await,
        "truncate" => {
            let ino = sh.stat("f").await.unwrap().ino;
            let set = vaultfs::fs::SetAttr { size: Some(1), ..Default::default() };
            sh.once(|fs, ctx| async move { fs.setattr(&ctx, ino, None, set).await }).await.map(drop)
        }
        "unlink" => sh.rm("f").await,
        "rename" | "rename onto" => sh.mv("f", "g").await,
        "O_DIRECT" => sh.open("f", READ | libc::O_DIRECT).await.map(drop),
        "version" => sh.lookup(history, "1").await.map(drop),
        other => panic!("{other}"),
    };
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn no_operation_outlasts_one_deadline() {
    let slow = [3, 6, 9].map(|s| Fault::Delay(Duration::from_secs(s)));
    let faults = slow.into_iter().chain([Fault::Hang, Fault::HangAfter]);
    for fault in faults {
        for operation in OPERATIONS {
            for kv in [false, true] {
                let took = time_of(operation, fault.clone(), kv).await;
                // A second for the looks at the clock and for timers, which are rounded up to
                // milliseconds.
                assert!(
                    took <= TIMEOUT + Duration::from_secs(1),
                    "{operation} under {fault:?}: {took:?} (kv: {kv})"
                );
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_needs_no_vault_never_waits_for_it() {
    let sh = Shell::new();
    sh.put("f", "1").await;
    sh.cat("f").await;
    let held = sh.open("f", READ).await.unwrap();
    let requests = sh.vault.total();
    sh.vault.plan_any().always().fail(Fault::Hang);
    let began = tokio::time::Instant::now();
    sh.fs.statfs();
    assert!(sh.fs.getattr(vaultfs::fs::ROOT).is_ok());
    let control = sh.stat(".vaultfs").await.unwrap();
    assert_eq!(sh.ls(".vaultfs").await.unwrap(), ["metrics", "status.json"]);
    let status = sh.lookup(control.ino, "status.json").await.unwrap().unwrap();
    let opened = sh.once(|fs, ctx| async move { fs.open(&ctx, status.attr.ino, READ).await }).await.unwrap();
    assert!(
        !sh.once(|fs, ctx| async move { fs.read(&ctx, status.attr.ino, opened.fh, 0, 1 << 20).await })
            .await
            .unwrap()
            .is_empty()
    );
    sh.fs.status();
    sh.fs.getxattr(held.ino, "user.vault.id".as_ref()).unwrap();
    sh.chmod("f", 0o400).await.unwrap();
    assert_eq!(sh.read_all(&held).await.unwrap(), b"1");
    sh.close(held).await.unwrap();
    assert_eq!(sh.vault.total(), requests);
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_listing_that_comes_too_late_is_told_once() {
    for kv in [false, true] {
        let capabilities = if kv { KV_CAPABILITIES } else { OBJECT_CAPABILITIES };
        let sh = Shell::of(capabilities, Options { timeout: TIMEOUT, ..Options::default() });
        sh.put("f", "x").await;
        sh.vault.plan_any().always().fail(Fault::Hang);
        assert_eq!(sh.ls("").await, Err(Errno::ETIMEDOUT));
        // The listing itself ends, too.
        sh.pass(Duration::from_secs(1)).await;
        let said = sh.fs.status().last_errors;
        assert_eq!(said.len(), 1, "{said:?}");
        // Who asks anew is told anew.
        assert_eq!(sh.ls("").await, Err(Errno::ETIMEDOUT));
        sh.pass(Duration::from_secs(1)).await;
        assert_eq!(sh.fs.status().last_errors.len(), 2);
    }
}
