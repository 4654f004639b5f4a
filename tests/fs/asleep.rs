//! A mount that sleeps hears of no revocation: what the kernel could show on without asking is
//! taken back by then, and the first read after that asks the vault.

use std::time::Duration;

use vaultfs::fs::{Errno, Options};
use vaultfs::vault::ErrorKind;
use vaultfs::vault::model::op::Op;
use vaultfs::vault::testing::faulty::Fault;

use crate::shell::{CREATE, Fd, READ, Shell};

/// Longer than the kernel goes without asking.
const LONG: Duration = Duration::from_secs(600);

/// A mount that has fallen asleep with `f` open, and the cost of an hour of that.
async fn asleep(options: Options) -> (Shell, Fd) {
    let sh = Shell::with(options);
    sh.put("f", "one").await;
    sh.fs.propagator().follow_changes();
    let held = sh.open("f", READ).await.unwrap();
    assert_eq!(sh.read_all(&held).await.unwrap(), b"one");
    sh.kernel.inodes.lock().unwrap().clear();
    sh.pass(LONG).await;
    let ((), cost) = sh.cost(sh.pass(Duration::from_secs(3600))).await;
    assert_eq!((cost, sh.fs.status().changes.refresh.awake), (0, false));
    (sh, held)
}

fn kinds_of_mounts() -> [Options; 2] {
    [Options::default(), Options { read_only: true, ..Options::default() }]
}

#[tokio::test(start_paused = true)]
async fn falling_asleep_takes_pages_back_once_and_the_first_read_asks_whether_the_key_is_still_taken() {
    for options in kinds_of_mounts() {
        let (sh, held) = asleep(options).await;
        let told = sh.kernel.inodes.lock().unwrap().clone();
        assert_eq!(told.iter().filter(|ino| **ino == held.ino).count(), 1, "{told:?}");
        let (bytes, cost) = sh.cost(sh.read_all(&held)).await;
        assert_eq!((bytes.unwrap().as_slice(), cost), (&b"one"[..], 1));
        assert!(sh.fs.status().changes.refresh.awake);
        assert_eq!(sh.cost(sh.read_all(&held)).await, (Ok(b"one".to_vec()), 0));
        // And again, as the kernel has pages again.
        sh.pass(LONG).await;
        let told = sh.kernel.inodes.lock().unwrap().clone();
        assert_eq!(told.iter().filter(|ino| **ino == held.ino).count(), 2, "{told:?}");
        // Who looks the name up has an answer that counts.
        let (bytes, cost) = sh.cost(sh.cat("f")).await;
        assert_eq!((bytes.as_str(), cost), ("one", 1));
        assert_eq!(sh.cost(sh.read_all(&held)).await, (Ok(b"one".to_vec()), 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_revocation_while_the_mount_slept_is_heard_before_anything_is_read() {
    for options in kinds_of_mounts() {
        for kind in [ErrorKind::Unauthorized, ErrorKind::Forbidden] {
            let (sh, held) = asleep(options.clone()).await;
            sh.vault.fail_always(Op::List, Fault::Before(kind));
            for op in [Op::Get, Op::GetByName, Op::Version] {
                sh.vault.fail_always(op, Fault::Before(kind));
            }
            assert_eq!(sh.read_all(&held).await, Err(Errno::EACCES), "{kind:?}");
            assert_eq!(sh.fs.status().cache.values, 0);
            sh.vault.clear();
            assert_eq!(sh.read_all(&held).await.unwrap(), b"one", "the key is taken again");
        }
    }
    // A use that asks nothing wakes the mount, and changes nothing about what open files may show.
    let (sh, held) = asleep(Options::default()).await;
    sh.vault.fail_always(Op::List, Fault::Before(ErrorKind::Unauthorized));
    sh.vault.fail_always(Op::Get, Fault::Before(ErrorKind::Unauthorized));
    sh.stat(".vaultfs").await.unwrap();
    assert!(sh.fs.status().changes.refresh.awake);
    assert_eq!(sh.read_all(&held).await, Err(Errno::EACCES));
}

#[tokio::test(start_paused = true)]
async fn a_vault_that_is_away_after_a_sleep_holds_no_read_up_for_long() {
    let (sh, held) = asleep(Options::default()).await;
    sh.vault.outage();
    assert_eq!(sh.read_all(&held).await.unwrap(), b"one");
    assert!(sh.fs.status().cache.serving_stale);
    let (sh, held) = asleep(Options::default()).await;
    sh.vault.plan_any().always().fail(Fault::Hang);
    let began = sh.clock.now();
    assert_eq!(sh.read_all(&held).await.unwrap(), b"one");
    assert!(sh.clock.now() - began <= Duration::from_secs(3));
    // The ticks go on asking: as soon as it answers, it is heard.
    sh.vault.clear();
    sh.vault.plan_any().always().fail(Fault::Before(ErrorKind::Unauthorized));
    sh.pass(Duration::from_secs(20)).await;
    assert_eq!(sh.read_all(&held).await, Err(Errno::EACCES));
}

#[tokio::test(start_paused = true)]
async fn what_is_only_here_is_read_without_asking_also_after_a_sleep() {
    let (sh, _held) = asleep(Options::default()).await;
    let scratch = sh.open(".f.swp", CREATE).await.unwrap();
    sh.pwrite(&scratch, 0, "scratch").unwrap();
    sh.pass(LONG).await;
    sh.vault.plan_any().always().fail(Fault::Hang);
    assert_eq!(sh.cost(sh.read_all(&scratch)).await, (Ok(b"scratch".to_vec()), 0));
}
