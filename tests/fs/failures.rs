//! Failed saves: a true errno, the bytes kept, nothing overwritten that the writer did not know of.

use std::sync::Arc;
use std::time::Duration;

use vaultfs::fs::{Drain, Errno, FileSystem};
use vaultfs::vault::ErrorKind;
use vaultfs::vault::model::op::Op;
use vaultfs::vault::testing::faulty::Fault;

use crate::shell::{CREATE, EXCL, Shell, WRITE};

const PATIENCE: Duration = Duration::from_secs(60);

fn unsaved(fs: &FileSystem) -> Vec<(String, bool)> {
    fs.unsaved().into_iter().map(|u| (u.name, u.conflict)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_change_whose_answer_is_lost_is_one_version() {
    for kind in [ErrorKind::Deadline, ErrorKind::Server, ErrorKind::BadAnswer] {
        let sh = Shell::new();
        sh.vault.fail_next(Op::Create, Fault::After(kind));
        sh.write_file("f", "one").await.unwrap();
        assert_eq!(sh.history("f").await, ["one"]);
        sh.vault.fail_next(Op::Update, Fault::After(kind));
        sh.write_file("f", "two").await.unwrap();
        assert_eq!(sh.history("f").await, ["one", "two"]);
        assert!(sh.fs.unsaved().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn an_update_whose_answer_is_lost_is_one_version_at_any_later_try() {
    for again in ["fsync", "retry", "drain"] {
        let sh = Shell::new();
        sh.put("f", "old").await;
        let fd = sh.open("f", WRITE).await.unwrap();
        sh.pwrite(&fd, 0, "new").unwrap();
        sh.vault.fail_next(Op::Update, Fault::After(ErrorKind::Deadline));
        sh.vault.fail_always(Op::GetByName, Fault::Before(ErrorKind::Unreachable));
        assert_eq!(sh.fsync(&fd).await, Err(Errno::ETIMEDOUT));
        sh.vault.clear();
        match again {
            "fsync" => sh.fsync(&fd).await.unwrap(),
            "retry" => sh.pass(Duration::from_secs(61)).await,
            _ => assert!(sh.fs.drain(Drain::All, PATIENCE).await.is_empty()),
        }
        assert!(sh.fs.unsaved().is_empty(), "{again}");
        sh.close(fd).await.unwrap();
        assert_eq!(sh.history("f").await, ["old", "new"], "{again}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_update_in_doubt_that_arrives_after_the_look_is_one_version() {
    for others in [0, 1, 9] {
        let sh = Shell::kv();
        sh.put("f", "old").await;
        let fd = sh.open("f", WRITE).await.unwrap();
        sh.pwrite(&fd, 0, "new").unwrap();
        // The first attempt is on its way for longer than anybody waits for it.
        sh.vault.fail_next(Op::Update, Fault::Hang);
        sh.vault.fail_always(Op::GetByName, Fault::Before(ErrorKind::Unreachable));
        assert_eq!(sh.fsync(&fd).await, Err(Errno::ETIMEDOUT));
        sh.vault.clear();
        let arrives = async {
            for turn in 0..=others {
                let mut gate = sh.vault.plan(Op::Update).times(1).gate();
                gate.arrived(1).await;
                let text = if turn == others { "new".to_owned() } else { format!("theirs {turn}") };
                sh.put("f", text).await;
                gate.release();
            }
        };
        tokio::select! {
            biased;
            () = async { arrives.await; std::future::pending().await } => unreachable!(),
            done = sh.fsync(&fd) => done.unwrap(),
        }
        let history = sh.history("f").await;
        assert_eq!(history.last().unwrap(), "new", "against somebody who writes all the time, too");
        if others < 2 {
            assert_eq!(history.len(), 2 + others, "{history:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_save_that_met_a_refused_key_is_stored_once_a_key_is_taken() {
    let sh = Shell::new();
    sh.vault.fail_always(Op::Create, Fault::Before(ErrorKind::Unauthorized));
    assert_eq!(sh.write_file("f", "x").await, Err(Errno::EACCES));
    sh.pass(Duration::from_secs(200)).await;
    assert_eq!((unsaved(&sh.fs).len(), sh.fs.status().last_errors.len()), (1, 1), "kept, and told once");
    sh.vault.clear();
    sh.pass(Duration::from_secs(61)).await;
    assert_eq!((unsaved(&sh.fs).len(), sh.history("f").await), (0, vec!["x".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_drain_goes_on_until_its_time_is_up() {
    for (fails_for, left) in [(20, 0), (100, 1)] {
        let sh = Shell::new();
        sh.vault.fail_always(Op::Create, Fault::Before(ErrorKind::Server));
        assert_eq!(sh.write_file("f", "x").await, Err(Errno::EIO));
        let began = tokio::time::Instant::now();
        let recovers = async {
            tokio::time::sleep(Duration::from_secs(fails_for)).await;
            sh.vault.clear();
            std::future::pending().await
        };
        let unsaved = tokio::select! {
            () = recovers => unreachable!(),
            unsaved = sh.fs.drain(Drain::All, PATIENCE) => unsaved,
        };
        assert_eq!(unsaved.len(), left, "the vault fails for {fails_for} s");
        assert!(began.elapsed() <= PATIENCE);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_save_is_sent_and_told_once() {
    let sh = Shell::new();
    sh.vault.fail_always(Op::Create, Fault::Before(ErrorKind::Forbidden));
    assert_eq!(sh.write_file("f", "x").await, Err(Errno::EACCES));
    assert_eq!((sh.vault.count(Op::Create), sh.fs.status().last_errors.len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_update_of_what_was_deleted_elsewhere_makes_it_anew() {
    let sh = Shell::new();
    sh.put("f", "old").await;
    let fd = sh.open("f", WRITE).await.unwrap();
    sh.delete("f").await;
    sh.pwrite(&fd, 0, "new").unwrap();
    sh.close(fd).await.unwrap();
    assert_eq!(sh.history("f").await, ["new"]);
    assert_eq!(sh.cat("f").await, "new");
}

#[tokio::test(start_paused = true)]
async fn a_create_of_what_appeared_elsewhere_is_an_update() {
    let sh = Shell::new();
    let fd = sh.open("f", CREATE).await.unwrap();
    sh.put("f", "theirs").await;
    sh.pwrite(&fd, 0, "ours").unwrap();
    sh.close(fd).await.unwrap();
    assert_eq!(sh.history("f").await, ["theirs", "ours"]);
}

#[tokio::test(start_paused = true)]
async fn a_save_never_ends_in_eexist_or_enoent() {
    let sh = Shell::new();
    let fd = sh.open("new", CREATE).await.unwrap();
    sh.put("new", "theirs").await;
    sh.pwrite(&fd, 0, "ours").unwrap();
    sh.vault.fail_always(Op::GetByName, Fault::Before(ErrorKind::Server));
    assert_eq!(sh.close(fd).await, Err(Errno::EIO));
    sh.vault.clear();
    sh.put("old", "x").await;
    sh.refresh().await;
    let fd = sh.open("old", WRITE).await.unwrap();
    sh.delete("old").await;
    sh.pwrite(&fd, 0, "y").unwrap();
    sh.vault.fail_always(Op::GetByName, Fault::Before(ErrorKind::Unreachable));
    assert_eq!(sh.close(fd).await, Err(Errno::ETIMEDOUT));
    sh.vault.clear();
    assert_eq!(sh.fs.drain(Drain::All, PATIENCE).await.len(), 2);
    assert_eq!(sh.history("new").await, ["theirs"], "what is tried again later overwrites nothing");
    assert_eq!(unsaved(&sh.fs), ["new", "old"].map(|name| (name.to_owned(), true)));
}

#[tokio::test(start_paused = true)]
async fn exclusive_creation_of_what_appeared_elsewhere_is_eexist() {
    let sh = Shell::new();
    let fd = sh.open("f", EXCL).await.unwrap();
    sh.put("f", "theirs").await;
    sh.pwrite(&fd, 0, "ours").unwrap();
    assert_eq!(sh.close(fd).await, Err(Errno::EEXIST));
    assert_eq!(sh.history("f").await, ["theirs"]);
    assert_eq!(sh.open("f", EXCL).await.unwrap_err(), Errno::EEXIST);
}

#[tokio::test(start_paused = true)]
async fn exclusive_creation_in_doubt_never_overwrites() {
    let sh = Arc::new(Shell::new());
    let fd = sh.open("f", EXCL).await.unwrap();
    sh.pwrite(&fd, 0, "ours").unwrap();
    sh.vault.fail_next(Op::Create, Fault::After(ErrorKind::Deadline));
    let mut gate = sh.vault.gate(Op::GetByName);
    let closing = tokio::spawn({
        let sh = sh.clone();
        async move { sh.close(fd).await }
    });
    gate.arrived(1).await;
    sh.put("f", "theirs").await;
    gate.release();
    closing.await.unwrap().expect("it was made, and superseded");
    assert_eq!(sh.history("f").await, ["ours", "theirs"]);
}

#[tokio::test(start_paused = true)]
async fn each_refusal_has_its_errno_and_the_bytes_are_kept_until_the_vault_takes_them() {
    let table = [
        (ErrorKind::Unauthorized, Errno::EACCES),
        (ErrorKind::Forbidden, Errno::EACCES),
        (ErrorKind::Invalid, Errno::EINVAL),
        (ErrorKind::TooLarge, Errno::EFBIG),
        (ErrorKind::RateLimited, Errno::EBUSY),
        (ErrorKind::Unreachable, Errno::ETIMEDOUT),
        (ErrorKind::Server, Errno::EIO),
    ];
    for (kind, errno) in table {
        for old in [false, true] {
            let sh = Shell::new();
            if old {
                sh.put("f", "old").await;
            }
            let op = if old { Op::Update } else { Op::Create };
            sh.vault.fail_always(op, Fault::Before(kind));
            assert_eq!(sh.write_file("f", "precious").await, Err(errno), "{kind:?}");
            assert_eq!(sh.cat("f").await, "precious");
            assert_eq!(sh.ls("").await.unwrap(), ["f"]);
            sh.forget_all();
            sh.refresh().await;
            assert_eq!(sh.cat("f").await, "precious", "forgotten by the kernel, kept by us");
            assert_eq!(unsaved(&sh.fs), [("f".to_owned(), false)]);
            assert!(sh.fs.unsaved()[0].error.is_some());
            assert_eq!(sh.fs.drain(Drain::All, PATIENCE).await.len(), 1, "what cannot be stored is named");
            sh.vault.clear();
            assert!(sh.fs.drain(Drain::All, PATIENCE).await.is_empty());
            assert_eq!(sh.history("f").await.last().unwrap(), "precious");
            assert_eq!(sh.history("f").await.len(), 1 + usize::from(old));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_save_is_stored_by_itself_once_the_vault_is_back() {
    let sh = Shell::new();
    sh.put("f", "old").await;
    sh.cat("f").await;
    sh.vault.outage();
    assert_eq!(sh.write_file("f", "new").await, Err(Errno::ETIMEDOUT));
    sh.pass(Duration::from_secs(300)).await;
    assert_eq!(unsaved(&sh.fs), [("f".to_owned(), false)]);
    sh.vault.clear();
    sh.pass(Duration::from_secs(61)).await;
    assert_eq!(sh.history("f").await, ["old", "new"]);
    assert!(sh.fs.unsaved().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_retry_by_itself_never_overwrites_a_newer_version() {
    let sh = Shell::new();
    sh.put("f", "old").await;
    sh.put("g", "old").await;
    for name in ["f", "g", "new"] {
        let fd = sh.open(name, CREATE).await.unwrap();
        sh.pwrite(&fd, 0, "ours").unwrap();
        sh.vault.outage();
        assert_eq!(sh.close(fd).await, Err(Errno::ETIMEDOUT));
        sh.vault.clear();
    }
    sh.put("f", "theirs").await;
    sh.put("new", "theirs").await;
    sh.delete("g").await;
    sh.pass(Duration::from_secs(300)).await;
    assert_eq!(
        (sh.history("f").await, sh.history("new").await),
        (vec!["old".into(), "theirs".into()], vec!["theirs".into()])
    );
    assert!(sh.meta("g").await.is_none());
    let conflicts = ["f", "g", "new"].map(|name| (name.to_owned(), true));
    assert_eq!(unsaved(&sh.fs), conflicts);
    assert_eq!(sh.fs.drain(Drain::All, PATIENCE).await.len(), 3, "unmount does not overwrite either");
    assert_eq!(sh.history("f").await.len(), 2);
    assert_eq!(sh.cat("f").await, "ours", "a person decides: the bytes are here");
    sh.write_file("f", "decided").await.unwrap();
    assert_eq!(sh.history("f").await, ["old", "theirs", "decided"]);
}

#[tokio::test(start_paused = true)]
async fn an_error_is_told_by_fsync_and_close_and_refuses_no_write() {
    let sh = Shell::new();
    let (one, two) = (sh.open("f", CREATE).await.unwrap(), sh.open("f", WRITE).await.unwrap());
    let idle = sh.open("f", WRITE).await.unwrap();
    sh.pwrite(&one, 0, "x").unwrap();
    sh.vault.outage();
    assert_eq!(sh.fsync(&one).await, Err(Errno::ETIMEDOUT));
    sh.pwrite(&one, 0, "who was told goes on").unwrap();
    sh.pwrite(&two, 0, "y").unwrap();
    sh.pass(Duration::from_secs(200)).await;
    assert_eq!(sh.fsync(&idle).await, Err(Errno::ETIMEDOUT), "fsync says whether all is stored");
    sh.flush(&idle).await.expect("through this one nothing was written");
    assert_eq!(sh.close(two).await, Err(Errno::ETIMEDOUT));
    assert_eq!(sh.flush(&one).await, Err(Errno::ETIMEDOUT));
    sh.vault.clear();
    sh.pwrite(&one, 0, "a write after any number of failures").unwrap();
    sh.fsync(&one).await.unwrap();
    sh.close(one).await.unwrap();
    sh.close(idle).await.unwrap();
    assert_eq!(sh.history("f").await, ["a write after any number of failures"]);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_never_told_to_readers() {
    let sh = Shell::new();
    sh.vault.fail_always(Op::Create, Fault::Before(ErrorKind::Forbidden));
    assert_eq!(sh.write_file("f", "x").await, Err(Errno::EACCES));
    assert_eq!(sh.cat("f").await, "x");
    let ino = sh.stat("f").await.unwrap().ino;
    let error = sh.fs.getxattr(ino, "user.vault.error".as_ref()).unwrap();
    assert!(String::from_utf8(error).unwrap().contains("Forbidden"));
}

#[tokio::test(start_paused = true)]
async fn a_save_over_unsaved_bytes_is_one_version() {
    let sh = Shell::new();
    sh.put("f", "old").await;
    sh.cat("f").await;
    sh.vault.outage();
    assert!(sh.write_file("f", "lost on the way").await.is_err());
    sh.vault.clear();
    sh.write_file("f", "new").await.unwrap();
    assert_eq!(sh.history("f").await, ["old", "new"]);
    assert!(sh.fs.unsaved().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_file_unlinked_after_a_creation_in_doubt_does_not_come_back() {
    let sh = Shell::new();
    let fd = sh.open("f", CREATE).await.unwrap();
    sh.pwrite(&fd, 0, "x").unwrap();
    sh.vault.fail_next(Op::Create, Fault::After(ErrorKind::Deadline));
    sh.vault.fail_always(Op::GetByName, Fault::Before(ErrorKind::Unreachable));
    assert!(sh.close(fd).await.is_err());
    sh.vault.clear();
    assert_eq!(sh.history("f").await, ["x"], "it was made, although no answer said so");
    sh.rm("f").await.unwrap();
    assert!(sh.names().await.is_empty());
    sh.refresh().await;
    assert_eq!(sh.stat("f").await, Err(Errno::ENOENT));
}

/// The bytes that are renamed over it make no version where the vault has them already: no version
/// tells.
#[tokio::test(start_paused = true)]
async fn a_failed_save_never_goes_over_what_was_renamed_over_it() {
    for waits in [Duration::ZERO, Duration::from_secs(60)] {
        let sh = Shell::new();
        sh.write_file("t", "value").await.unwrap();
        sh.write_file("u", "value").await.unwrap();
        sh.vault.fail_next(Op::Update, Fault::Hang);
        assert_eq!(sh.write_file("t", "older").await, Err(Errno::ETIMEDOUT));
        // Stored under the new name, deleted under the old one, and nothing says so.
        sh.vault.fail_next(Op::Delete, Fault::HangAfter);
        assert_eq!(sh.mv("u", "t").await, Err(Errno::ETIMEDOUT));
        sh.pass(waits).await;
        sh.fs.drain(Drain::Closed, Duration::from_secs(60)).await;
        assert_eq!((sh.names().await, sh.history("t").await), (vec!["t".to_owned()], vec!["value".into()]));
        assert_eq!((unsaved(&sh.fs), sh.cat("t").await), (vec![("t".to_owned(), true)], "older".into()));
    }
}

#[tokio::test(start_paused = true)]
async fn unlinking_gives_up_what_is_unsaved() {
    let sh = Shell::new();
    sh.put("f", "old").await;
    sh.cat("f").await;
    sh.vault.outage();
    assert!(sh.write_file("f", "new").await.is_err());
    assert_eq!(sh.rm("f").await, Err(Errno::ETIMEDOUT));
    assert_eq!(sh.cat("f").await, "new", "an unlink that failed gives up nothing");
    sh.vault.clear();
    sh.rm("f").await.unwrap();
    sh.pass(Duration::from_secs(300)).await;
    assert!(sh.names().await.is_empty() && sh.fs.unsaved().is_empty());
}

#[tokio::test(start_paused = true)]
async fn deleting_with_the_answer_lost_is_deleting() {
    let sh = Shell::new();
    sh.put("f", "x").await;
    sh.vault.fail_next(Op::Delete, Fault::After(ErrorKind::Deadline));
    sh.rm("f").await.unwrap();
    assert_eq!(sh.stat("f").await, Err(Errno::ENOENT));
    sh.put("g", "x").await;
    sh.refresh().await;
    sh.cat("g").await;
    sh.delete("g").await;
    sh.put("g", "made anew elsewhere").await;
    sh.rm("g").await.unwrap();
    assert!(sh.names().await.is_empty(), "the name goes, whichever object has it");
}

#[tokio::test(start_paused = true)]
async fn an_unlink_that_the_vault_refuses_leaves_the_file() {
    for (kind, errno) in [(ErrorKind::Forbidden, Errno::EACCES), (ErrorKind::Server, Errno::EIO)] {
        let sh = Shell::new();
        sh.put("f", "x").await;
        sh.vault.fail_next(Op::Delete, Fault::Before(kind));
        assert_eq!(sh.rm("f").await, Err(errno));
        assert_eq!(sh.cat("f").await, "x");
        sh.rm("f").await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_save_that_the_key_may_not_make_is_stored_once_it_may() {
    for old in [false, true] {
        for sh in [Shell::new(), Shell::kv()] {
            if old {
                sh.put("f", "old").await;
                sh.cat("f").await;
            }
            let op = if old { Op::Update } else { Op::Create };
            sh.vault.fail_always(op, Fault::Before(ErrorKind::Forbidden));
            assert_eq!(sh.write_file("f", "new").await, Err(Errno::EACCES));
            assert_eq!(sh.fs.unsaved()[0].retry_s, Some(1), "it says when it is tried again");
            sh.pass(Duration::from_secs(300)).await;
            let sent = || {
                let ops = [Op::Create, Op::Update, Op::GetByName, Op::Metadata];
                ops.iter().map(|op| sh.vault.count(*op)).sum::<u64>()
            };
            let before = sent();
            sh.pass(Duration::from_secs(1200)).await;
            let sent = sent() - before;
            assert!((8..=21).contains(&sent), "at most one request a minute: {sent} in 20 minutes");
            assert_eq!(
                (unsaved(&sh.fs).len(), sh.fs.status().last_errors.len()),
                (1, 1),
                "kept, and told once"
            );
            let retry = sh.fs.unsaved()[0].retry_s;
            assert!(retry.is_some_and(|s| s <= 120), "{retry:?}");
            sh.vault.clear();
            sh.pass(Duration::from_secs(121)).await;
            assert!(sh.fs.unsaved().is_empty());
            assert_eq!(sh.history("f").await.last().unwrap(), "new");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_save_goes_over_nothing_newer_once_it_may() {
    for old in [false, true] {
        for sh in [Shell::new(), Shell::kv()] {
            if old {
                sh.put("f", "old").await;
                sh.cat("f").await;
            }
            let fd = sh.open("f", CREATE).await.unwrap();
            sh.pwrite(&fd, 0, "ours").unwrap();
            sh.vault
                .fail_next(if old { Op::Update } else { Op::Create }, Fault::Before(ErrorKind::Forbidden));
            assert_eq!(sh.close(fd).await, Err(Errno::EACCES));
            sh.put("f", "theirs").await;
            sh.pass(Duration::from_secs(300)).await;
            assert_eq!(sh.history("f").await.last().unwrap(), "theirs");
            assert_eq!(unsaved(&sh.fs), [("f".to_owned(), true)]);
            assert_eq!(sh.fs.unsaved()[0].retry_s, None, "a person decides");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_vault_can_never_take_is_sent_once() {
    for kind in [ErrorKind::Invalid, ErrorKind::TooLarge, ErrorKind::NameTooLong] {
        let sh = Shell::new();
        sh.vault.fail_always(Op::Create, Fault::Before(kind));
        sh.write_file("f", "x").await.unwrap_err();
        sh.pass(Duration::from_secs(600)).await;
        assert_eq!((sh.vault.count(Op::Create), sh.fs.unsaved()[0].retry_s), (1, None), "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_a_permission() {
    for kind in [ErrorKind::Forbidden, ErrorKind::Unauthorized] {
        let sh = Shell::new();
        sh.vault.fail_always(Op::Create, Fault::Before(kind));
        assert_eq!(sh.write_file("f", "x").await, Err(Errno::EACCES));
        let began = tokio::time::Instant::now();
        assert_eq!(sh.fs.drain(Drain::All, PATIENCE).await.len(), 1);
        assert!(began.elapsed() < Duration::from_secs(1), "{kind:?}");
    }
}
