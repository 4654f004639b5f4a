//! With the vault down: what is cached is served, for so long and no longer. Refusals are answers.

use std::time::Duration;

use vaultfs::fs::{Errno, Options};
use vaultfs::vault::ErrorKind;
use vaultfs::vault::cache::RATE_LIMITED;
use vaultfs::vault::model::op::Op;
use vaultfs::vault::testing::faulty::Fault;

use crate::shell::{READ, Shell};

fn stale(sh: &Shell, ino: u64) -> Vec<u8> {
    sh.fs.getxattr(ino, "user.vault.stale".as_ref()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_is_cached_is_served_up_to_max_stale_and_no_longer() {
    for sh in [Shell::new(), Shell::kv()] {
        sh.put("f", "cached").await;
        sh.put("d/g", "listed, never read").await;
        sh.cat("f").await;
        sh.ls("").await.unwrap();
        sh.vault.outage();
        sh.refresh().await;
        assert_eq!(sh.cat("f").await, "cached");
        assert_eq!(sh.ls("").await.unwrap(), ["d/", "f"]);
        assert_eq!(sh.stat("d/g").await, Err(Errno::ETIMEDOUT), "no value, no size to show");
        let status = sh.fs.status();
        assert!(status.cache.serving_stale && status.vault.outage.is_some(), "it is said aloud");
        assert_eq!(stale(&sh, sh.stat("f").await.unwrap().ino), b"1");
        let max = sh.fs.options().max_stale;
        sh.pass(max - Duration::from_secs(60)).await;
        assert_eq!(sh.cat("f").await, "cached");
        sh.pass(Duration::from_secs(120)).await;
        assert_eq!(sh.read_file("f").await, Err(Errno::ETIMEDOUT));
        assert_eq!(sh.ls("").await, Err(Errno::ETIMEDOUT));
        sh.vault.clear();
        assert_eq!(sh.cat("f").await, "cached");
        let status = sh.fs.status();
        assert!(!status.cache.serving_stale && status.vault.outage.is_none());
        assert_eq!(stale(&sh, sh.stat("f").await.unwrap().ino), b"0");
    }
}

#[tokio::test(start_paused = true)]
async fn a_spent_rate_limit_is_told_from_an_outage() {
    let sh = Shell::new();
    sh.put("f", "cached").await;
    sh.cat("f").await;
    sh.vault.plan_any().always().fail(Fault::Before(ErrorKind::RateLimited));
    sh.refresh().await;
    assert_eq!(sh.cat("f").await, "cached");
    let status = sh.fs.status();
    assert!(status.cache.serving_stale);
    assert!(status.vault.outage.is_some_and(|why| why.starts_with(RATE_LIMITED)));
}

#[tokio::test(start_paused = true)]
async fn an_open_handle_reads_on_through_an_outage() {
    let sh = Shell::with(Options { max_stale: Duration::from_secs(10), ..Options::default() });
    sh.put("f", "held").await;
    let fd = sh.open("f", READ).await.unwrap();
    sh.vault.outage();
    sh.pass(Duration::from_secs(3600)).await;
    assert_eq!(sh.read_all(&fd).await.unwrap(), b"held");
    sh.close(fd).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn with_an_old_value_at_hand_nobody_waits_long_for_a_hanging_vault() {
    let sh = Shell::new();
    sh.put("f", "cached").await;
    sh.cat("f").await;
    sh.refresh().await;
    sh.vault.plan_any().always().fail(Fault::Hang);
    let before = tokio::time::Instant::now();
    assert_eq!(sh.cat("f").await, "cached");
    assert!(before.elapsed() <= Duration::from_secs(5), "{:?}", before.elapsed());
}

#[tokio::test(start_paused = true)]
async fn with_old_names_at_hand_nobody_waits_long_for_a_listing_that_hangs() {
    for shell in [Shell::new, Shell::kv] {
        let sh = shell();
        for n in 0..250 {
            sh.put(&format!("n{n:03}"), "x").await;
        }
        assert_eq!(sh.ls("").await.unwrap().len(), 250);
        sh.refresh().await;
        // The first page comes, and then nothing.
        sh.vault.plan(Op::List).nth(2).always().fail(Fault::Hang);
        let before = tokio::time::Instant::now();
        assert_eq!(sh.ls("").await.unwrap().len(), 250);
        assert!(before.elapsed() <= Duration::from_secs(5), "{:?}", before.elapsed());
        assert!(sh.fs.status().cache.serving_stale, "and that is told");
    }
}

#[tokio::test(start_paused = true)]
async fn refusals_are_answers_never_stale_is_fine() {
    for (kind, errno) in [(ErrorKind::Forbidden, Errno::EACCES), (ErrorKind::Unauthorized, Errno::EACCES)] {
        let sh = Shell::new();
        sh.put("f", "cached").await;
        sh.cat("f").await;
        sh.refresh().await;
        sh.vault.fail_always(Op::GetByName, Fault::Before(kind));
        sh.vault.fail_always(Op::List, Fault::Before(kind));
        assert_eq!(sh.read_file("f").await, Err(errno), "{kind:?}");
        assert_eq!(sh.ls("").await, Err(errno), "{kind:?}");
    }
    let sh = Shell::new();
    sh.put("f", "cached").await;
    sh.cat("f").await;
    sh.delete("f").await;
    sh.refresh().await;
    assert_eq!(sh.read_file("f").await, Err(Errno::ENOENT));
    sh.ls("").await.unwrap();
    sh.vault.outage();
    assert_eq!(sh.read_file("f").await.map(drop), Err(Errno::ENOENT), "freshly known to be gone");
}

#[tokio::test(start_paused = true)]
async fn a_refused_key_drops_all_values() {
    let sh = Shell::new();
    sh.put("f", "cached").await;
    sh.put("g", "cached").await;
    sh.cat("f").await;
    sh.cat("g").await;
    sh.refresh().await;
    sh.vault.fail_next(Op::GetByName, Fault::Before(ErrorKind::Unauthorized));
    assert_eq!(sh.read_file("f").await, Err(Errno::EACCES));
    assert_eq!(sh.fs.status().cache.values, 0);
    sh.vault.outage();
    assert_eq!(sh.read_file("g").await, Err(Errno::ETIMEDOUT), "nothing stands in after a revocation");
}

#[tokio::test(start_paused = true)]
async fn a_save_through_an_outage_is_told_and_its_bytes_are_read_back() {
    let sh = Shell::new();
    sh.put("f", "old").await;
    sh.ls("").await.unwrap();
    sh.cat("f").await;
    sh.vault.outage();
    assert_eq!(sh.write_file("f", "new").await, Err(Errno::ETIMEDOUT));
    assert_eq!(sh.write_file("g", "fresh").await, Err(Errno::ETIMEDOUT));
    sh.refresh().await;
    assert_eq!((sh.cat("f").await, sh.cat("g").await), ("new".into(), "fresh".into()));
    assert_eq!(sh.ls("").await.unwrap(), ["f", "g"]);
    assert_eq!(sh.remount().cat("f").await, "old");
}
