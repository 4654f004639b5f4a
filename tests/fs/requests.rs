//! What each operation costs in requests, and that an absence is never guessed.

use std::sync::Arc;
use std::time::Duration;

use vaultfs::fs::{DirEntry, Errno, FileKind, ROOT};
use vaultfs::vault::ErrorKind;
use vaultfs::vault::model::op::Op;
use vaultfs::vault::testing::faulty::Fault;

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

#[tokio::test(start_paused = true)]
async fn the_first_names_of_a_long_listing_are_shown_before_the_second_page_is_asked_for() {
    let sh = Shell::new();
    let all: Vec<String> = (0..350).map(|n| format!("n{n:03}")).collect();
    for name in &all {
        sh.put(name, "x").await;
    }
    let mut second = sh.vault.plan(Op::List).nth(2).times(1).gate();
    let dir = sh.once(|fs, ctx| async move { fs.opendir(&ctx, ROOT) }).await.unwrap();
    let first =
        sh.once(|fs, ctx| async move { fs.readdir(&ctx, ROOT, dir.fh, 0).await }).await.unwrap().after(0);
    let names = |entries: &[DirEntry]| entries.iter().map(|e| e.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&first)[2..], all[..100], "what the first page told, while the second is held back");
    second.arrived(1).await;
    // What changes meanwhile, on this side of the reader and beyond.
    sh.put("made", "x").await;
    sh.delete("n000").await;
    sh.delete("n340").await;
    second.release();
    let seen = sh.getdents_after(ROOT, dir.fh, first).await.unwrap();
    sh.fs.releasedir(dir.fh);
    let mut seen = names(&seen);
    let count = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), count, "no name twice");
    let stays = all.iter().filter(|name| !["n000", "n340"].contains(&name.as_str()));
    assert!(stays.into_iter().all(|name| seen.contains(name)), "no name is left out");
    assert!(!seen.contains(&"n340".to_owned()) && seen.contains(&"made".to_owned()));
    assert_eq!(sh.vault.count(Op::List), 4);
}

#[tokio::test(start_paused = true)]
async fn a_name_shown_as_a_file_stays_one_when_a_later_page_has_names_below_it() {
    let sh = Shell::new();
    sh.put("early", "own").await;
    for n in 0..150 {
        sh.put(&format!("n{n:03}"), "x").await;
    }
    sh.put("early/below", "below").await;
    sh.put("late/below", "x").await;
    sh.put("late", "own").await;
    let second = sh.vault.plan(Op::List).nth(2).times(1).gate();
    let first = sh.once(|fs, ctx| async move { fs.readdir(&ctx, ROOT, 0, 0).await }).await.unwrap().after(0);
    assert!(first.iter().any(|e| e.name == "early" && e.kind == FileKind::Regular));
    second.release();
    let all = sh.getdents_after(ROOT, 0, first).await.unwrap();
    let kinds = |name: &str| all.iter().filter(|e| e.name == name).map(|e| e.kind).collect::<Vec<_>>();
    assert_eq!(kinds("early"), [FileKind::Regular]);
    assert_eq!(kinds("early%2Fbelow"), [FileKind::Regular]);
    assert_eq!(kinds("late"), [FileKind::Directory]);
    assert_eq!((sh.cat("early").await, sh.cat("early%2Fbelow").await), ("own".into(), "below".into()));
    assert_eq!(sh.cat("late/.self").await, "own");
}

#[tokio::test(start_paused = true)]
async fn a_listing_that_breaks_off_ends_in_the_error() {
    let sh = Shell::new();
    for n in 0..250 {
        sh.put(&format!("n{n:03}"), "x").await;
    }
    sh.vault.plan(Op::List).nth(2).always().fail(Fault::Before(ErrorKind::RateLimited));
    assert_eq!(sh.ls("").await, Err(Errno::EBUSY));
    sh.vault.clear();
    assert_eq!(sh.ls("").await.unwrap().len(), 250);
}

#[tokio::test(start_paused = true)]
async fn from_the_third_look_in_a_listed_directory_the_others_are_fetched_ahead() {
    let sh = Shell::new();
    for n in 0..300 {
        sh.put(&format!("d/n{n:03}"), "x").await;
    }
    sh.ls("d").await.unwrap();
    let before = sh.vault.count(Op::GetByName);
    for looks in 1..=2 {
        sh.stat(&format!("d/n{looks:03}")).await.unwrap();
        sh.pass(Duration::from_millis(1)).await;
        assert_eq!(sh.vault.count(Op::GetByName) - before, looks, "two looks are no sign");
    }
    sh.stat("d/n003").await.unwrap();
    sh.pass(Duration::from_millis(1)).await;
    assert_eq!(sh.vault.count(Op::GetByName) - before, 103);
    assert_eq!(sh.cost(sh.stat("d/n050")).await.1, 0);
    for n in 0..300 {
        sh.stat(&format!("d/n{n:03}")).await.unwrap();
    }
    sh.pass(Duration::from_millis(1)).await;
    assert_eq!(sh.vault.count(Op::GetByName) - before, 300, "no value twice");
}

#[tokio::test(start_paused = true)]
async fn what_is_fetched_ahead_holds_up_nobody_who_asks() {
    let sh = Shell::new();
    for n in 0..300 {
        sh.put(&format!("d/n{n:03}"), "x").await;
    }
    sh.ls("d").await.unwrap();
    let gates: Vec<_> =
        (3..103).map(|n| sh.vault.plan(Op::GetByName).named(&format!("d/n{n:03}")).gate()).collect();
    let before = sh.vault.count(Op::GetByName);
    for n in 0..3 {
        sh.stat(&format!("d/n{n:03}")).await.unwrap();
    }
    sh.pass(Duration::from_millis(1)).await;
    let out = |gates: &[vaultfs::vault::testing::faulty::Gate]| {
        gates.iter().map(|gate| gate.count()).sum::<usize>()
    };
    assert_eq!(out(&gates), 8, "a few at a time");
    assert_eq!(sh.cost(sh.stat("d/n250")).await.1, 1, "while they are out");
    assert_eq!(out(&gates), 8);
    gates.iter().for_each(|gate| gate.release());
    sh.pass(Duration::from_millis(1)).await;
    assert_eq!(sh.vault.count(Op::GetByName) - before, 104);
}

#[tokio::test(start_paused = true)]
async fn in_a_long_listing_only_who_goes_through_it_has_values_fetched_ahead() {
    let sh = Shell::new();
    for n in 0..12_000 {
        sh.put(&format!("d/n{n:05}"), "x").await;
    }
    sh.ls("d").await.unwrap();
    let before = sh.vault.count(Op::GetByName);
    for n in [5000, 900, 11_000, 3000, 7000] {
        sh.stat(&format!("d/n{n:05}")).await.unwrap();
        sh.pass(Duration::from_millis(1)).await;
    }
    assert_eq!(sh.vault.count(Op::GetByName) - before, 5, "here and there");
    for n in 0..3 {
        sh.stat(&format!("d/n{n:05}")).await.unwrap();
    }
    sh.pass(Duration::from_millis(1)).await;
    assert_eq!(sh.vault.count(Op::GetByName) - before, 5 + 103, "one after the other");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_fetched_ahead_where_nobody_listed() {
    let sh = Shell::new();
    for n in 0..20 {
        sh.put(&format!("n{n:03}"), "x").await;
    }
    for n in 0..10 {
        sh.stat(&format!("n{n:03}")).await.unwrap();
    }
    sh.pass(Duration::from_millis(1)).await;
    assert_eq!(sh.vault.count(Op::GetByName), 10);
    assert_eq!(sh.vault.count(Op::List), 0);
}
