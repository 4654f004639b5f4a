//! Whose close stores: with several who have a file open for writing, each save is one version, and
//! nobody's close stores what another one is in the middle of writing.

use std::time::Duration;

use vaultfs::fs::{Errno, Options};
use vaultfs::vault::ErrorKind;
use vaultfs::vault::model::op::Op;
use vaultfs::vault::testing::faulty::Fault;

use crate::shell::{CREATE, READ, Shell, WRITE};

const BOTH: i32 = libc::O_RDWR;

/// The worker dies of the next record that it writes, and another one answers.
async fn death(sh: &Shell) {
    sh.die_after(0);
    match sh.mkdir("made").await {
        Ok(_) => {}
        Err(_) => sh.rmdir("made").await.unwrap(),
    }
    assert!(sh.deaths.swap(0, std::sync::atomic::Ordering::Relaxed) > 0);
}

/// Opens for reading and writing, writes nothing, closes: who looks at the file under a lock, or
/// waits for it.
async fn look(sh: &Shell, name: &str) {
    let fd = sh.open(name, BOTH).await.unwrap();
    sh.read_all(&fd).await.unwrap();
    sh.close(fd).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_rewrite_under_a_lock_is_one_version_whoever_closes_meanwhile() {
    for sh in [Shell::new(), Shell::kv()] {
        sh.put("f", "old").await;
        let mut expected = vec!["old".to_owned()];
        // All have it open; the lock goes round.
        let waiting = [sh.open("f", BOTH).await.unwrap(), sh.open("f", BOTH).await.unwrap()];
        for (turn, fd) in waiting.into_iter().enumerate() {
            let idle = sh.open("f", BOTH).await.unwrap();
            sh.ftruncate(&fd, 0).await.unwrap();
            look(&sh, "f").await;
            sh.pwrite(&fd, 0, format!("turn {turn}, ")).unwrap();
            look(&sh, "f").await;
            sh.close(idle).await.unwrap();
            assert_eq!(sh.history("f").await.len(), expected.len(), "nobody but the writer stores");
            sh.pwrite(&fd, 8, "whole").unwrap();
            sh.close(fd).await.unwrap();
            expected.push(format!("turn {turn}, whole"));
            assert_eq!(sh.history("f").await.last(), expected.last(), "stored before close returns");
            look(&sh, "f").await;
        }
        assert_eq!(sh.history("f").await.len(), expected.len());
        assert!(sh.fs.unsaved().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_close_after_a_write_stores_whatever_others_do() {
    let sh = Shell::new();
    sh.put("f", "old").await;
    let (one, two) = (sh.open("f", BOTH).await.unwrap(), sh.open("f", BOTH).await.unwrap());
    sh.pwrite(&one, 0, "one").unwrap();
    sh.pwrite(&two, 3, "two").unwrap();
    sh.close(one).await.unwrap();
    assert_eq!(sh.history("f").await, ["old", "onetwo"], "what close acknowledges is in the vault");
    sh.flush(&two).await.unwrap();
    assert_eq!(sh.history("f").await.len(), 2, "that was the other one's, too");
    sh.pwrite(&two, 6, "!").unwrap();
    sh.close(two).await.unwrap();
    assert_eq!(sh.history("f").await, ["old", "onetwo", "onetwo!"]);
}

#[tokio::test(start_paused = true)]
async fn who_was_cut_off_has_nothing_to_store() {
    for by_open in [false, true] {
        let sh = Shell::new();
        sh.put("f", "old").await;
        let one = sh.open("f", BOTH).await.unwrap();
        sh.pwrite(&one, 0, "one").unwrap();
        let two = sh.open("f", if by_open { CREATE } else { WRITE }).await.unwrap();
        if !by_open {
            sh.ftruncate(&two, 0).await.unwrap();
        }
        sh.pwrite(&two, 0, "tw").unwrap();
        sh.close(one).await.unwrap();
        assert_eq!(sh.history("f").await, ["old"], "there is nothing left of it, and the other one is amid");
        sh.pwrite(&two, 2, "o").unwrap();
        sh.close(two).await.unwrap();
        assert_eq!(sh.history("f").await, ["old", "two"]);
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_close_stores_what_nobody_else_did() {
    let mut sh = Shell::new();
    sh.pid = std::process::id();
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    sh.put("f", "old").await;
    // A child closes what it wrote to: that leaves a mark, and then the writer's handle is gone.
    for last_is_flushed in [true, false] {
        let idle = sh.open("f", BOTH).await.unwrap();
        let fd = sh.open("f", BOTH).await.unwrap();
        sh.pwrite(&fd, 0, if last_is_flushed { "one" } else { "two" }).unwrap();
        sh.flush_from(&fd, child.id()).await.unwrap();
        let before = sh.history("f").await.len();
        sh.release(fd).await;
        assert_eq!(sh.history("f").await.len(), before, "the other one's close stores");
        if last_is_flushed {
            sh.flush(&idle).await.unwrap();
            assert_eq!(sh.history("f").await, ["old", "one"]);
        }
        sh.release(idle).await;
    }
    assert_eq!(sh.history("f").await, ["old", "one", "two"]);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_child_and_its_parent_share_what_they_wrote() {
    let mut sh = Shell::new();
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    sh.pid = std::process::id();
    sh.put("f", "old").await;
    let fd = sh.open("f", BOTH).await.unwrap();
    sh.ftruncate(&fd, 0).await.unwrap();
    sh.flush_from(&fd, child.id()).await.unwrap();
    // Another process looks, and a third one has it open all the time.
    sh.pid = child.id();
    let idle = sh.open("f", BOTH).await.unwrap();
    look(&sh, "f").await;
    sh.pid = std::process::id();
    sh.pwrite(&fd, 0, "whole").unwrap();
    sh.flush(&fd).await.unwrap();
    assert_eq!(sh.history("f").await, ["old", "whole"]);
    sh.flush(&fd).await.unwrap();
    sh.release(fd).await;
    sh.pid = child.id();
    sh.close(idle).await.unwrap();
    assert_eq!(sh.history("f").await, ["old", "whole"]);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test(start_paused = true)]
async fn pages_of_a_mapping_are_stored_by_whoever_mapped_them() {
    for closes_first in [0, 1] {
        let sh = Shell::new();
        sh.put("f", "old value").await;
        let fds = [sh.open("f", BOTH).await.unwrap(), sh.open("f", BOTH).await.unwrap()];
        // The kernel sends them with the handle that was mapped last, whoever wrote.
        sh.pwrite_mapped(&fds[1], 0, "new").unwrap();
        sh.close(fds[closes_first]).await.unwrap();
        assert_eq!(sh.history("f").await, ["old value", "new value"], "close {closes_first} returned");
        sh.pwrite_mapped(&fds[1 - closes_first], 4, "VALUE").unwrap();
        look(&sh, "f").await;
        sh.close(fds[1 - closes_first]).await.unwrap();
        assert_eq!(sh.history("f").await.last().unwrap(), "new VALUE");
        assert!(sh.fs.unsaved().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_mapping_that_outlives_its_descriptor_is_stored_when_it_ends() {
    for other in [false, true] {
        let sh = Shell::new();
        sh.put("f", "old").await;
        let other = if other { Some(sh.open("f", BOTH).await.unwrap()) } else { None };
        let fd = sh.open("f", BOTH).await.unwrap();
        sh.flush(&fd).await.unwrap();
        sh.pwrite_mapped(&fd, 0, "new").unwrap();
        sh.release(fd).await;
        if let Some(other) = other {
            sh.close(other).await.unwrap();
        }
        assert_eq!(sh.history("f").await, ["old", "new"]);
    }
}

#[tokio::test(start_paused = true)]
async fn fsync_by_any_who_may_write_stores_all() {
    let sh = Shell::new();
    sh.put("f", "old").await;
    let (one, two) = (sh.open("f", BOTH).await.unwrap(), sh.open("f", BOTH).await.unwrap());
    sh.pwrite(&one, 0, "new").unwrap();
    sh.flush(&two).await.unwrap();
    assert_eq!(sh.history("f").await, ["old"]);
    sh.fsync(&two).await.unwrap();
    assert_eq!(sh.history("f").await, ["old", "new"]);
    sh.close(one).await.unwrap();
    sh.close(two).await.unwrap();
    assert_eq!(sh.history("f").await, ["old", "new"]);
}

#[tokio::test(start_paused = true)]
async fn the_error_of_a_save_is_its_writers() {
    let sh = Shell::new();
    sh.put("f", "old").await;
    let (writer, idle) = (sh.open("f", BOTH).await.unwrap(), sh.open("f", BOTH).await.unwrap());
    sh.pwrite(&writer, 0, "new").unwrap();
    sh.vault.fail_always(Op::Update, Fault::Before(ErrorKind::Server));
    look(&sh, "f").await;
    assert_eq!(sh.vault.count(Op::Update), 0);
    assert_eq!(sh.flush(&writer).await, Err(Errno::EIO));
    look(&sh, "f").await;
    assert_eq!(sh.vault.count(Op::Update), 1, "the writer has it open, and may try again");
    assert_eq!(sh.close(writer).await, Err(Errno::EIO), "each close of the writer's says so");
    // Nobody who wrote is left: any close tries again, and who only closes has nothing to be told.
    sh.flush(&idle).await.unwrap();
    assert_eq!(sh.vault.count(Op::Update), 3);
    sh.pwrite(&idle, 3, "er").unwrap();
    assert_eq!(sh.flush(&idle).await, Err(Errno::EIO), "now there are writes of its own");
    sh.vault.clear();
    sh.close(idle).await.unwrap();
    assert_eq!(sh.history("f").await, ["old", "newer"]);
}

#[tokio::test(start_paused = true)]
async fn what_failed_is_tried_again_by_a_close_unless_somebody_is_writing() {
    let sh = Shell::new();
    sh.put("f", "old").await;
    let fd = sh.open("f", WRITE).await.unwrap();
    sh.pwrite(&fd, 0, "new").unwrap();
    sh.vault.fail_next(Op::Update, Fault::Before(ErrorKind::Unreachable));
    assert_eq!(sh.close(fd).await, Err(Errno::ETIMEDOUT));
    let writer = sh.open("f", WRITE).await.unwrap();
    sh.pwrite(&writer, 0, "half").unwrap();
    look(&sh, "f").await;
    assert_eq!(sh.history("f").await, ["old"]);
    sh.pwrite(&writer, 0, "whole").unwrap();
    sh.vault.fail_next(Op::Update, Fault::Before(ErrorKind::Unreachable));
    assert_eq!(sh.close(writer).await, Err(Errno::ETIMEDOUT));
    look(&sh, "f").await;
    assert_eq!(sh.history("f").await, ["old", "whole"]);
    assert!(sh.fs.unsaved().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_successor_knows_who_wrote() {
    let sh = Shell::new();
    sh.put("f", "old").await;
    let (one, two) = (sh.open("f", BOTH).await.unwrap(), sh.open("f", BOTH).await.unwrap());
    let mapped = sh.open("g", CREATE).await.unwrap();
    let other = sh.open("g", BOTH).await.unwrap();
    sh.ftruncate(&one, 0).await.unwrap();
    sh.pwrite(&one, 0, "ha").unwrap();
    sh.pwrite_mapped(&other, 0, "mapped").unwrap();
    death(&sh).await;
    look(&sh, "f").await;
    sh.close(two).await.unwrap();
    assert_eq!(sh.history("f").await, ["old"], "one is amid");
    sh.close(mapped).await.unwrap();
    assert_eq!(sh.history("g").await, ["mapped"]);
    sh.close(other).await.unwrap();
    sh.pwrite(&one, 2, "lf").unwrap();
    death(&sh).await;
    sh.close(one).await.unwrap();
    assert_eq!(sh.history("f").await, ["old", "half"], "and knows that it is amid");
    death(&sh).await;
    assert_eq!((sh.history("f").await.len(), sh.history("g").await.len()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_close_that_a_worker_dies_of_stores_once_and_for_its_own_writes_only() {
    for records in 0..6 {
        let sh = Shell::new();
        sh.put("f", "old").await;
        let (one, idle) = (sh.open("f", BOTH).await.unwrap(), sh.open("f", BOTH).await.unwrap());
        sh.ftruncate(&one, 0).await.unwrap();
        sh.die_after(records);
        sh.pwrite(&one, 0, "who").unwrap();
        sh.close(idle).await.unwrap();
        assert_eq!(sh.history("f").await, ["old"]);
        sh.pwrite(&one, 3, "le").unwrap();
        sh.close(one).await.unwrap();
        sh.pass(Duration::from_secs(10)).await;
        assert_eq!(sh.history("f").await, ["old", "whole"], "death after {records} records");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_has_no_part_in_it() {
    let sh = Shell::new();
    sh.put("f", "old").await;
    let writer = sh.open("f", BOTH).await.unwrap();
    let reader = sh.open("f", READ).await.unwrap();
    sh.pwrite(&writer, 0, "new").unwrap();
    sh.flush(&reader).await.unwrap();
    sh.close(reader).await.unwrap();
    assert_eq!(sh.history("f").await, ["old"]);
    sh.close(writer).await.unwrap();
    assert_eq!(sh.history("f").await, ["old", "new"]);
}

/// As `sync FILE` does, which opens it for reading.
#[tokio::test(start_paused = true)]
async fn fsync_by_a_reader_stores_what_others_wrote() {
    let sh = Shell::new();
    sh.put("f", "old").await;
    let writer = sh.open("f", BOTH).await.unwrap();
    let reader = sh.open("f", READ).await.unwrap();
    sh.pwrite(&writer, 0, "new").unwrap();
    sh.fsync(&reader).await.unwrap();
    assert_eq!(sh.history("f").await, ["old", "new"]);
    sh.close(writer).await.unwrap();
    assert_eq!(sh.history("f").await, ["old", "new"]);
}

/// As in flock(1): the next one waits with the file open, cuts it, and writes it anew.
#[tokio::test(start_paused = true)]
async fn what_failed_is_not_tried_again_while_the_next_one_is_writing() {
    for sh in [Shell::new(), Shell::kv()] {
        for (turn, cuts_by_open) in [true, false].into_iter().enumerate() {
            let name = ["f", "g"][turn];
            sh.put(name, "good").await;
            let first = sh.open(name, CREATE).await.unwrap();
            let waiting = sh.open(name, BOTH).await.unwrap();
            sh.pwrite(&first, 0, "failed").unwrap();
            sh.vault.outage();
            assert_eq!(sh.close(first).await, Err(Errno::ETIMEDOUT));
            let writer = if cuts_by_open {
                sh.close(waiting).await.unwrap();
                sh.open(name, CREATE).await.unwrap()
            } else {
                sh.ftruncate(&waiting, 0).await.unwrap();
                waiting
            };
            sh.vault.clear();
            sh.pass(Duration::from_secs(130)).await;
            assert_eq!(sh.history(name).await.len(), 1, "no empty version, and nothing was in its way");
            sh.pwrite(&writer, 0, "ha").unwrap();
            sh.pass(Duration::from_secs(130)).await;
            death(&sh).await;
            sh.pass(Duration::from_secs(130)).await;
            sh.fs.retry_unsaved(None, Duration::from_secs(10)).await;
            assert_eq!(sh.history(name).await.len(), 1, "no half of it");
            sh.pwrite(&writer, 2, "lf").unwrap();
            sh.close(writer).await.unwrap();
            assert_eq!(sh.meta(name).await.map(|_| ()), Some(()));
            let history = sh.history(name).await;
            assert_eq!((history.len(), history[1].as_str()), (2, "half"));
            assert!(sh.fs.unsaved().is_empty());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_bytes_that_failed_are_tried_again_while_others_have_the_file_open() {
    for sh in [Shell::new(), Shell::kv()] {
        sh.put("f", "old").await;
        let (writer, idle) = (sh.open("f", CREATE).await.unwrap(), sh.open("f", BOTH).await.unwrap());
        sh.pwrite(&writer, 0, "new").unwrap();
        sh.vault.outage();
        assert_eq!(sh.flush(&writer).await, Err(Errno::ETIMEDOUT));
        sh.vault.clear();
        sh.pass(Duration::from_secs(61)).await;
        assert_eq!(sh.history("f").await.last().unwrap(), "new", "nobody has changed them since");
        sh.close(writer).await.unwrap();
        sh.close(idle).await.unwrap();
        assert_eq!(sh.history("f").await.len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn who_waited_for_the_lock_stores_whatever_failed_before() {
    for sh in [Shell::new(), Shell::kv()] {
        sh.put("f", "good").await;
        let (one, two) = (sh.open("f", BOTH).await.unwrap(), sh.open("f", BOTH).await.unwrap());
        sh.ftruncate(&one, 0).await.unwrap();
        sh.pwrite(&one, 0, "one").unwrap();
        sh.vault.fail_next(Op::Update, Fault::Before(ErrorKind::Server));
        assert_eq!(sh.close(one).await, Err(Errno::EIO));
        sh.ftruncate(&two, 0).await.unwrap();
        sh.pwrite(&two, 0, "two").expect("a write that was not tried is not refused");
        sh.close(two).await.unwrap();
        let history = sh.history("f").await;
        assert_eq!((history.len(), history.last().unwrap().as_str()), (2, "two"));
        assert_eq!(sh.cat("f").await, "two");
    }
}

#[tokio::test(start_paused = true)]
async fn who_was_refused_a_write_stores_nothing_and_is_told_at_the_close() {
    for dies in [false, true] {
        let sh = Shell::with(Options { max_size: 10, ..Options::default() });
        sh.put("f", "good").await;
        let (one, two) = (sh.open("f", BOTH).await.unwrap(), sh.open("f", BOTH).await.unwrap());
        sh.ftruncate(&one, 0).await.unwrap();
        assert_eq!(sh.pwrite(&one, 0, "more than fits"), Err(Errno::EFBIG));
        if dies {
            death(&sh).await;
        }
        assert_eq!(sh.flush(&one).await, Err(Errno::EFBIG));
        assert_eq!(sh.fsync(&one).await, Err(Errno::EFBIG));
        // Another one begins anew: what was refused is no part of that.
        sh.ftruncate(&two, 0).await.unwrap();
        sh.ftruncate(&two, 1).await.unwrap();
        sh.pwrite(&two, 0, "two").unwrap();
        sh.close(two).await.unwrap();
        assert_eq!(sh.history("f").await, ["good", "two"]);
        assert_eq!(sh.close(one).await, Err(Errno::EFBIG), "what it wrote is nowhere");
        assert_eq!(sh.history("f").await, ["good", "two"]);
    }
}

#[tokio::test(start_paused = true)]
async fn who_wrote_nothing_decides_no_conflict() {
    for sh in [Shell::new(), Shell::kv()] {
        sh.put("f", "old").await;
        let writer = sh.open("f", BOTH).await.unwrap();
        sh.pwrite(&writer, 0, "mine").unwrap();
        sh.vault.outage();
        assert_eq!(sh.close(writer).await, Err(Errno::ETIMEDOUT));
        sh.vault.clear();
        sh.put("f", "newer").await;
        // By a close or by itself, whichever comes first.
        look(&sh, "f").await;
        sh.pass(Duration::from_secs(61)).await;
        look(&sh, "f").await;
        let reader = sh.open("f", READ).await.unwrap();
        assert_eq!(sh.fsync(&reader).await, Err(Errno::ESTALE));
        sh.close(reader).await.unwrap();
        let history = sh.history("f").await;
        assert_eq!((history.len(), history.last().unwrap().as_str()), (2, "newer"));
        assert!(sh.fs.unsaved()[0].conflict);
    }
}

/// Nobody has tried to store these bytes yet: the last who writes wins, whoever's close it is.
#[tokio::test(start_paused = true)]
async fn what_was_never_tried_is_stored_by_any_close_as_by_its_writers() {
    let mut sh = Shell::new();
    sh.pid = std::process::id();
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    sh.put("f", "old").await;
    let (idle, fd) = (sh.open("f", BOTH).await.unwrap(), sh.open("f", BOTH).await.unwrap());
    sh.pwrite(&fd, 0, "mine").unwrap();
    sh.flush_from(&fd, child.id()).await.unwrap();
    sh.release(fd).await;
    sh.put("f", "theirs").await;
    sh.close(idle).await.unwrap();
    assert_eq!(sh.history("f").await, ["old", "theirs", "mine"]);
    assert!(sh.fs.unsaved().is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
}
