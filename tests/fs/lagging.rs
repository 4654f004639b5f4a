//! A vault whose reads lag behind its writes: all of them, or every other one. Time is paused.

use std::time::Duration;

use vaultfs::fs::{Errno, Options};
use vaultfs::vault::cache::ChangeKind;
use vaultfs::vault::model::op::Op;
use vaultfs::vault::testing::faulty::Fault;
use vaultfs::vault::testing::memory::{KV_CAPABILITIES, Lagging, OBJECT_CAPABILITIES};
use vaultfs::vault::{Capabilities, ErrorKind};

use crate::shell::helper::Helper;
use crate::shell::{EXCL, READ, Shell};

const SECOND: Duration = Duration::from_secs(1);
const LAG: Duration = Duration::from_secs(6);
const DIALECTS: [Capabilities; 2] = [OBJECT_CAPABILITIES, KV_CAPABILITIES];

/// Each kind of vault that lags, with `old` in the object `f` for a while.
async fn each() -> Vec<(Shell, String)> {
    let mut all = Vec::new();
    for capabilities in DIALECTS {
        for lagging in [Lagging::Always(LAG), Lagging::Alternating(LAG)] {
            let sh = Shell::of(capabilities, Options { refresh: SECOND, ..Options::default() });
            sh.put("f", "old\n").await;
            sh.pass(30 * SECOND).await;
            sh.memory.lag(lagging);
            all.push((sh, format!("{:?}, {lagging:?}", capabilities.dialect)));
        }
    }
    all
}

/// A save, and reads until one has shown that the vault lags.
async fn known(sh: &Shell) {
    known_by(sh, "new\n").await;
}

async fn known_by(sh: &Shell, save: &str) {
    sh.write_file("f", save).await.unwrap();
    for _ in 0..3 {
        sh.refresh().await;
        assert_eq!(sh.cat("f").await, save);
    }
    assert!(sh.fs.status().vault.lagged_s.is_some_and(|lagged_s| lagged_s < 5));
}

/// `echo LINE >> path`.
async fn append(sh: &Shell, path: &str, line: &str) {
    let fd = sh.open(path, libc::O_RDWR).await.unwrap();
    let size = sh.fstat(&fd).size;
    sh.pwrite(&fd, size, line).unwrap();
    sh.close(fd).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn appends_within_the_lag_keep_every_line() {
    for (sh, case) in each().await {
        let mut lines = "old\n".to_owned();
        for n in 0..8 {
            append(&sh, "f", &format!("{n}\n")).await;
            lines += &format!("{n}\n");
            assert_eq!(sh.cat("f").await, lines, "{case}");
            // Past the time for which what was stored is fresh.
            sh.pass(Duration::from_millis(1700)).await;
            assert_eq!(sh.cat("f").await, lines, "{case}");
        }
        assert!(sh.fs.status().vault.lagged_s.is_some(), "{case}");
        sh.pass(30 * SECOND).await;
        assert_eq!(sh.cat("f").await, lines, "{case}");
        let history = sh.history("f").await;
        assert_eq!((history.len(), history.last()), (9, Some(&lines)), "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_made_stays_and_what_was_deleted_stays_away() {
    for (sh, case) in each().await {
        known(&sh).await;
        sh.write_file("d/made", "1").await.unwrap_err();
        sh.mkdir("d").await.unwrap();
        sh.write_file("d/made", "1").await.unwrap();
        sh.write_file("again", "1").await.unwrap();
        sh.pass(30 * SECOND).await;
        sh.rm("again").await.unwrap();
        sh.write_file("again", "2").await.unwrap();
        sh.write_file("moved", "3").await.unwrap();
        sh.mv("moved", "there").await.unwrap();
        sh.rm("f").await.unwrap();
        sh.mkdir("e").await.unwrap();
        sh.mv("d/made", "e/made").await.unwrap();
        for _ in 0..12 {
            sh.refresh().await;
            let walked = sh.walk("").await.unwrap();
            let names: Vec<_> = walked.keys().map(String::as_str).collect();
            assert_eq!(names, ["again", "e/made", "there"], "{case}");
            assert_eq!(sh.cat("again").await, "2", "{case}");
            assert_eq!(sh.stat("f").await, Err(Errno::ENOENT), "{case}");
            assert_eq!(sh.stat("moved").await, Err(Errno::ENOENT), "{case}");
            assert_eq!(sh.stat("d/made").await, Err(Errno::ENOENT), "{case}");
        }
        sh.write_file("f", "anew").await.unwrap();
        sh.refresh().await;
        assert_eq!(sh.open("f", EXCL).await.unwrap_err(), Errno::EEXIST, "{case}");
        append(&sh, "f", " and more").await;
        sh.pass(30 * SECOND).await;
        assert_eq!(sh.cat("f").await, "anew and more", "{case}");
        assert_eq!(sh.names().await, ["again", "e/made", "f", "there"], "{case}");
        assert_eq!(sh.history("f").await.len(), 2, "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_replicas_one_that_knows_is_found_by_asking_once_more() {
    for capabilities in DIALECTS {
        let sh = Shell::of(capabilities, Options { refresh: SECOND, ..Options::default() });
        sh.put("other", "x").await;
        sh.memory.lag(Lagging::Alternating(LAG));
        sh.write_file("made", "1").await.unwrap();
        for _ in 0..5 {
            sh.refresh().await;
            assert_eq!(sh.cat("made").await, "1");
        }
        assert!(sh.fs.status().vault.lagged_s.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn no_subscriber_hears_of_what_is_older_and_nothing_is_rotated_to_it() {
    for (sh, case) in each().await {
        Helper::start(&sh);
        sh.fs.propagator().follow_changes();
        let mut changes = sh.fs.propagator().subscribe();
        known(&sh).await;
        sh.write_file("made", "1").await.unwrap();
        sh.write_file("gone", "1").await.unwrap();
        sh.pass(40 * SECOND).await;
        sh.rm("gone").await.unwrap();
        for n in 0..10 {
            sh.write_file("f", format!("mine {n}")).await.unwrap();
            append(&sh, "made", "1").await;
            sh.pass(Duration::from_millis(2300)).await;
        }
        sh.pass(20 * SECOND).await;
        let heard = changes.try_recv();
        assert!(heard.is_err(), "{case}: {heard:?}");
        assert_eq!(sh.kernel.helper.calls(), [], "{case}");
        // What others make shows, in the order in which it was made.
        let mut seen = Vec::new();
        for n in 10..40 {
            sh.put("f", format!("{n}")).await;
            for _ in 0..7 {
                sh.pass(Duration::from_millis(300)).await;
                seen.push(sh.cat("f").await);
            }
        }
        sh.pass(20 * SECOND).await;
        assert_eq!(sh.cat("f").await, "39", "{case}");
        seen.retain(|value| !value.starts_with("mine"));
        assert!(seen.is_sorted() && seen.len() > 100, "{case}: {seen:?}");
        let mut versions = Vec::new();
        while let Ok(change) = changes.try_recv() {
            assert_eq!((change.name.as_str(), change.kind), ("f", ChangeKind::Changed), "{case}");
            versions.extend(
                change
                    .version
                    .and_then(|version| version.as_str().trim_start_matches("v-").parse::<u64>().ok()),
            );
        }
        assert!(versions.is_sorted_by(|a, b| a < b), "{case}: {versions:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn histories_have_what_was_stored_here() {
    for (sh, case) in each().await {
        sh.ls(".versions").await.unwrap();
        for n in 2..5 {
            sh.write_file("f", format!("{n}")).await.unwrap();
            sh.refresh().await;
            let numbers = sh.ls(".versions/f").await.unwrap();
            assert_eq!(numbers.len(), n, "{case}: {numbers:?}");
            assert_eq!(sh.cat(&format!(".versions/f/{n}")).await, format!("{n}"), "{case}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_vault_that_went_back_is_believed_after_a_quarter_of_a_minute() {
    for capabilities in DIALECTS {
        let sh = Shell::of(capabilities, Options { refresh: SECOND, ..Options::default() });
        sh.put("f", "backed up").await;
        sh.put("deleted", "backed up").await;
        sh.pass(30 * SECOND).await;
        // From here on everybody sees what there was.
        sh.memory.lag(Lagging::Always(3600 * SECOND));
        sh.write_file("f", "lost").await.unwrap();
        sh.rm("deleted").await.unwrap();
        for _ in 0..12 {
            sh.refresh().await;
            assert_eq!(sh.cat("f").await, "lost");
        }
        sh.pass(4 * SECOND).await;
        assert_eq!(sh.cat("f").await, "backed up");
        assert_eq!(sh.cat("deleted").await, "backed up");
    }
}

#[tokio::test(start_paused = true)]
async fn a_deletion_elsewhere_of_what_was_just_made_is_asked_for_once_more() {
    for capabilities in DIALECTS {
        let sh = Shell::of(capabilities, Options::default());
        sh.put("old", "x").await;
        sh.write_file("made", "1").await.unwrap();
        sh.ls("").await.unwrap();
        sh.delete("made").await;
        sh.refresh().await;
        assert_eq!(sh.cost(sh.stat("made")).await, (Err(Errno::ENOENT), 2));
        assert_eq!(sh.ls("").await.unwrap(), ["old"]);
        // It is there again, so the vault may lag after all.
        sh.put("made", "2").await;
        sh.refresh().await;
        assert_eq!(sh.cat("made").await, "2");
        assert_eq!(sh.fs.status().vault.lagged_s, None, "another object is no lag");

        // A follower hears of it a second after the tick that did not list it.
        Helper::start(&sh);
        sh.fs.propagator().follow_changes();
        let mut changes = sh.fs.propagator().subscribe();
        sh.write_file("followed", "1").await.unwrap();
        sh.stat("followed").await.unwrap();
        sh.delete("followed").await;
        sh.pass(Duration::from_millis(6100)).await;
        let change = changes.try_recv().unwrap();
        assert_eq!((change.name.as_str(), change.kind), ("followed", ChangeKind::Deleted));
        assert_eq!(sh.kernel.helper.calls(), [("unlink", "followed".to_owned(), None)]);
        assert_eq!(sh.fs.status().vault.lagged_s, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_successor_knows_what_was_stored_before() {
    for (sh, case) in each().await {
        known(&sh).await;
        append(&sh, "f", "mine\n").await;
        sh.write_file("made", "1").await.unwrap();
        sh.stat("made").await.unwrap();
        sh.die_after(0);
        sh.mkdir("d").await.unwrap();
        append(&sh, "f", "and more\n").await;
        assert_eq!(sh.cat("f").await, "new\nmine\nand more\n", "{case}");
        sh.refresh().await;
        let fd = sh.open("f", READ).await.unwrap();
        assert_eq!(sh.read_all(&fd).await.unwrap(), b"new\nmine\nand more\n", "{case}");
        sh.close(fd).await.unwrap();
        sh.pass(30 * SECOND).await;
        assert_eq!(sh.cat("f").await, "new\nmine\nand more\n", "{case}");
        assert_eq!(sh.history("f").await.len(), 4, "{case}");
    }
}

/// Whatever is asked for first: no answer has shown the successor that the vault lags.
#[tokio::test(start_paused = true)]
async fn a_successor_knows_that_the_vault_lags_and_what_was_made_and_deleted() {
    for first in ["made", "gone", "", "f"] {
        for (sh, case) in each().await {
            sh.write_file("gone", "1").await.unwrap();
            sh.pass(30 * SECOND).await;
            known(&sh).await;
            sh.write_file("made", "1").await.unwrap();
            sh.rm("gone").await.unwrap();
            sh.die_after(0);
            sh.mkdir("d").await.unwrap();
            assert!(sh.fs.status().vault.lagged_s.is_some(), "{case}");
            for _ in 0..12 {
                match first {
                    "" => assert_eq!(sh.ls("").await.unwrap(), ["d/", "f", "made"], "{case}"),
                    "gone" => assert_eq!(sh.stat("gone").await, Err(Errno::ENOENT), "{case}"),
                    "f" => assert_eq!(sh.cat("f").await, "new\n", "{case}"),
                    made => assert_eq!(sh.cat(made).await, "1", "{case}"),
                }
                assert_eq!(sh.ls("").await.unwrap(), ["d/", "f", "made"], "{case}, first {first}");
                assert_eq!(sh.cat("made").await, "1", "{case}, first {first}");
                assert_eq!(sh.stat("gone").await, Err(Errno::ENOENT), "{case}, first {first}");
                sh.refresh().await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn each_of_two_mounts_reads_its_own_writes() {
    for (one, case) in each().await {
        let two = one.remount();
        for (sh, save) in [(&one, "one"), (&two, "two")] {
            known_by(sh, save).await;
            sh.pass(30 * SECOND).await;
        }
        for n in 0..6 {
            one.write_file("f", format!("one {n}")).await.unwrap();
            two.write_file("g", format!("two {n}")).await.unwrap();
            one.pass(Duration::from_millis(1300)).await;
            assert_eq!(
                (one.cat("f").await, two.cat("g").await),
                (format!("one {n}"), format!("two {n}")),
                "{case}"
            );
        }
        one.pass(LAG + 3 * SECOND).await;
        assert_eq!((two.cat("f").await, one.cat("g").await), ("one 5".into(), "two 5".into()), "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_whose_answer_is_lost_is_made_once_within_the_lag() {
    for (sh, case) in each().await {
        known(&sh).await;
        sh.vault.fail_next(Op::Update, Fault::After(ErrorKind::Deadline));
        append(&sh, "f", "mine\n").await;
        assert_eq!(sh.history("f").await.len(), 3, "{case}");
        sh.vault.fail_next(Op::Create, Fault::After(ErrorKind::Unreachable));
        sh.write_file("made", "1").await.unwrap();
        assert_eq!(sh.history("made").await.len(), 1, "{case}");
        sh.pass(30 * SECOND).await;
        assert_eq!((sh.cat("f").await, sh.cat("made").await), ("new\nmine\n".into(), "1".into()), "{case}");
        assert_eq!(sh.fs.unsaved().len(), 0);
    }
}
