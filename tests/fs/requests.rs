//! What each operation costs in requests, and that an absence is never guessed.

use std::sync::Arc;
use std::time::Duration;

use vaultfs::fs::{Errno, FileKind};
use vaultfs::vault::ErrorKind;
use vaultfs::vault::faulty::Fault;
use vaultfs::vault::op::Op;

use crate::shell::Shell;

#[tokio::test(start_paused = true)]
async fn a_cold_read_of_a_root_name_is_one_request_and_a_warm_one_none() {
    let sh = Shell::new();
    sh.put("password", "hunter2").await;
    assert_eq!(sh.cost(sh.cat("password")).await, ("hunter2".into(), 1));
    assert_eq!(sh.vault.count(Op::GetByName), 1);
    assert_eq!(sh.cost(sh.cat("password")).await, ("hunter2".into(), 0));
    sh.refresh().await;
    assert_eq!(sh.cost(sh.cat("password")).await.1, 1, "past the refresh time it is asked again");
}

#[tokio::test(start_paused = true)]
async fn a_cold_read_in_a_known_directory_is_one_request() {
    let sh = Shell::new();
    sh.put("db/user", "u").await;
    sh.put("db/password", "p").await;
    sh.ls("").await.unwrap();
    assert_eq!(sh.cost(sh.cat("db/password")).await, ("p".into(), 1));
    assert_eq!(sh.cost(sh.cat("db/password")).await.1, 0);
}

#[tokio::test(start_paused = true)]
async fn a_save_of_an_existing_name_is_two_requests_from_cold_and_one_once_known() {
    let sh = Shell::new();
    sh.put("f", "0").await;
    assert_eq!(sh.cost(sh.write_file("f", "1")).await, (Ok(()), 2));
    assert_eq!(sh.cost(sh.write_file("f", "2")).await, (Ok(()), 1));
    assert_eq!(sh.history("f").await, ["0", "1", "2"]);
}

#[tokio::test(start_paused = true)]
async fn a_new_name_is_one_request_while_all_names_are_freshly_known() {
    let sh = Shell::new();
    sh.ls("").await.unwrap();
    assert_eq!(sh.cost(sh.write_file("new", "1")).await, (Ok(()), 1));
    assert_eq!(sh.vault.count(Op::Create), 1);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_readers_of_one_cold_name_are_one_request() {
    let sh = Arc::new(Shell::new());
    sh.put("f", "one for all").await;
    let mut gate = sh.vault.gate(Op::GetByName);
    let readers: Vec<_> = (0..1000)
        .map(|_| {
            let sh = sh.clone();
            tokio::spawn(async move { sh.cat("f").await })
        })
        .collect();
    gate.arrived(1).await;
    gate.release();
    for reader in readers {
        assert_eq!(reader.await.unwrap(), "one for all");
    }
    assert_eq!(sh.vault.total(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_absent_name_costs_nothing_while_all_names_are_freshly_known() {
    let sh = Shell::new();
    sh.put("f", "x").await;
    sh.ls("").await.unwrap();
    for name in ["absent", "absent/below", ".env", "g"] {
        assert_eq!(sh.cost(sh.stat(name)).await, (Err(Errno::ENOENT), 0), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_listing_is_one_request_a_hundred_names_and_fetches_no_values() {
    let sh = Shell::new();
    for n in 0..250 {
        sh.put(&format!("n{n:03}"), "x").await;
    }
    let (names, cost) = sh.cost(sh.ls("")).await;
    assert_eq!((names.unwrap().len(), cost), (250, 3));
    assert_eq!(sh.vault.count(Op::List), 3);
    assert_eq!(sh.cost(sh.ls("")).await.1, 0);
}

#[tokio::test(start_paused = true)]
async fn values_of_kv_stay_known_through_a_listing() {
    let sh = Shell::kv();
    sh.put("f", "x").await;
    sh.cat("f").await;
    sh.ls("").await.unwrap();
    assert_eq!(sh.cost(sh.cat("f")).await.1, 0, "the listing said that it has not changed");
    sh.pass(Duration::from_millis(10)).await;
    sh.put("f", "y").await;
    sh.refresh().await;
    sh.ls("").await.unwrap();
    assert_eq!(sh.cost(sh.cat("f")).await, ("y".into(), 1), "the listing said that it has changed");
}

#[tokio::test(start_paused = true)]
async fn an_implied_directory_waits_for_the_listing() {
    let sh = Arc::new(Shell::new());
    sh.put("a/b/c", "deep").await;
    let mut gate = sh.vault.gate(Op::List);
    let looking = tokio::spawn({
        let sh = sh.clone();
        async move { sh.stat("a").await }
    });
    gate.arrived(1).await;
    gate.release();
    assert_eq!(looking.await.unwrap().unwrap().kind, FileKind::Directory);
    assert_eq!(sh.cat("a/b/c").await, "deep");
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_cannot_be_ruled_out_is_never_enoent() {
    let faults = [
        (Fault::Hang, Errno::ETIMEDOUT),
        (Fault::Before(ErrorKind::Unreachable), Errno::ETIMEDOUT),
        (Fault::Before(ErrorKind::Server), Errno::EIO),
        (Fault::Before(ErrorKind::Forbidden), Errno::EACCES),
        (Fault::Before(ErrorKind::RateLimited), Errno::EBUSY),
    ];
    for (fault, errno) in faults {
        let sh = Shell::new();
        sh.put("a/b", "x").await;
        sh.vault.fail_always(Op::List, fault);
        assert_eq!(sh.stat("a").await, Err(errno));
        assert_eq!(sh.stat("nothing").await, Err(errno));
        assert_eq!(sh.ls("").await, Err(errno));
        sh.vault.clear();
        assert_eq!(sh.cat("a/b").await, "x");
    }
}

#[tokio::test(start_paused = true)]
async fn no_lookup_outlasts_the_timeout() {
    let sh = Shell::new();
    sh.vault.plan_any().always().fail(Fault::Hang);
    let before = tokio::time::Instant::now();
    assert_eq!(sh.stat("f").await, Err(Errno::ETIMEDOUT));
    assert_eq!(sh.write_file("f", "x").await, Err(Errno::ETIMEDOUT));
    let timeout = sh.fs.options().timeout;
    assert!(before.elapsed() <= 2 * timeout + Duration::from_millis(10), "{:?}", before.elapsed());
}
