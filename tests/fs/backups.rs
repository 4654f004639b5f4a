//! Backups by rename, whatever they are called: the history stays with the name that is made anew,
//! and what was hidden meanwhile is never lost to a deletion that comes late.

use std::sync::Arc;
use std::time::Duration;

use vaultfs::fs::{Drain, Errno, Options};
use vaultfs::vault::model::op::Op;
use vaultfs::vault::testing::faulty::Fault;
use vaultfs::vault::{Capabilities, ErrorKind};

use vaultfs::vault::testing::memory::{KV_CAPABILITIES, OBJECT_CAPABILITIES};

use crate::shell::{CREATE, EXCL, Shell};

const DIALECTS: [Capabilities; 2] = [OBJECT_CAPABILITIES, KV_CAPABILITIES];
const PATIENCE: Duration = Duration::from_secs(60);
/// A name that was not made anew so long after its file was renamed is deleted.
const DELETED_AFTER: Duration = Duration::from_millis(5100);

/// The versions of an object; kv gives the bytes of the last one only.
async fn has_history(sh: &Shell, name: &str, expected: &[&str]) -> bool {
    let history = sh.history(name).await;
    history.len() == expected.len() && history.last().map(String::as_str) == expected.last().copied()
}

/// What `sed -i.SUFFIX` does, up to a step.
async fn sed(sh: &Shell, backup: &str, new: &str, steps: usize) {
    if steps > 0 {
        let fd = sh.open("sedAbCdEf", EXCL).await.unwrap();
        sh.pwrite(&fd, 0, new).unwrap();
        sh.close(fd).await.unwrap();
    }
    if steps > 1 {
        sh.mv("s", backup).await.unwrap();
    }
    if steps > 2 {
        sh.mv("sedAbCdEf", "s").await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_backup_of_any_suffix_or_prefix_leaves_the_history_where_it_was() {
    for capabilities in DIALECTS {
        for backup in ["s.save", "s.2024-01-01", "s-old", "orig_s", "s.bak", "s~", "s.orig"] {
            let sh = Shell::of(capabilities, Options::default());
            let id = sh.put("s", "one").await.id;
            for (i, new) in ["two", "three"].into_iter().enumerate() {
                sed(&sh, backup, new, 3).await;
                assert_eq!(sh.history("s").await.len(), i + 2, "{backup}");
                assert_eq!(sh.ls("").await.unwrap().len(), 2, "{backup}");
            }
            sh.pass(PATIENCE).await;
            assert!(has_history(&sh, "s", &["one", "two", "three"]).await, "{backup}");
            assert_eq!(sh.meta("s").await.unwrap().id, id, "{backup}");
            let mut names = vec!["s".to_owned(), backup.to_owned()];
            names.sort();
            assert_eq!((sh.names().await, sh.cat(backup).await), (names, "two".into()), "{backup}");
            assert_eq!(sh.fs.status().scratch_bytes, 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_backup_cut_off_at_any_step_loses_nothing() {
    for (steps, drained) in [0, 1, 2, 3].into_iter().flat_map(|n| [(n, false), (n, true)]) {
        let sh = Shell::new();
        sh.put("s", "old").await;
        sed(&sh, "s.save", "new", steps).await;
        if drained {
            assert!(sh.fs.drain(Drain::All, PATIENCE).await.is_empty());
        }
        let left = sh.remount();
        let found = left.walk("").await.unwrap();
        let has = |value: &str| found.values().any(|bytes| bytes == value.as_bytes());
        assert!(has("old"), "after {steps} steps, drained: {drained}: {found:?}");
        assert!(has("new") || steps < 3, "stored when the rename answered: {found:?}");
        let expected: &[&str] = match (steps, drained) {
            (3, _) => &["old", "new"],
            (2, true) => &[],
            _ => &["old"],
        };
        assert_eq!(left.history("s").await, expected, "after {steps} steps, drained: {drained}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rename_that_only_looks_like_a_backup_is_stored_at_once_and_ends_a_little_later() {
    for capabilities in DIALECTS {
        let sh = Shell::of(capabilities, Options::default());
        sh.put("s", "value").await;
        sh.mv("s", "s.2").await.unwrap();
        assert_eq!(sh.history("s.2").await, ["value"]);
        assert_eq!(
            (sh.stat("s").await, sh.ls("").await.unwrap()),
            (Err(Errno::ENOENT), vec!["s.2".to_owned()])
        );
        sh.pass(DELETED_AFTER).await;
        assert_eq!(sh.names().await, ["s.2"]);
        // And back again: nothing has happened.
        let id = sh.meta("s.2").await.unwrap().id;
        sh.mv("s.2", "s.2.x").await.unwrap();
        sh.mv("s.2.x", "s.2").await.unwrap();
        sh.pass(PATIENCE).await;
        assert_eq!(
            (sh.names().await, sh.history("s.2").await),
            (vec!["s.2".to_owned()], vec!["value".into()])
        );
        assert_eq!(sh.meta("s.2").await.unwrap().id, id);
    }
}

#[tokio::test(start_paused = true)]
async fn a_chain_of_backups_moves_each_value_on() {
    for capabilities in DIALECTS {
        let sh = Shell::of(capabilities, Options::default());
        for (name, value) in [("log", "3"), ("log.1", "2"), ("log.2", "1")] {
            sh.write_file(name, value).await.unwrap();
        }
        let id = sh.meta("log").await.unwrap().id;
        for (from, to) in [("log.2", "log.3"), ("log.1", "log.2"), ("log", "log.1")] {
            sh.mv(from, to).await.unwrap();
        }
        sh.write_file("log", "4").await.unwrap();
        for settled in [false, true] {
            let values =
                [sh.cat("log").await, sh.cat("log.1").await, sh.cat("log.2").await, sh.cat("log.3").await];
            assert_eq!(values, ["4", "3", "2", "1"], "{settled}");
            sh.pass(PATIENCE).await;
        }
        assert_eq!(sh.names().await, ["log", "log.1", "log.2", "log.3"]);
        assert!(has_history(&sh, "log", &["3", "4"]).await);
        assert_eq!(sh.meta("log").await.unwrap().id, id);
    }
}

/// What was hidden is deleted later than anybody asked for it: by then it may be another's.
#[tokio::test(start_paused = true)]
async fn a_hidden_object_that_is_changed_elsewhere_shows_again() {
    for capabilities in DIALECTS {
        for backup in ["s~", "s.save"] {
            for unmounts in [false, true] {
                let sh = Shell::of(capabilities, Options::default());
                sh.put("s", "old").await;
                sh.mv("s", backup).await.unwrap();
                sh.put("s", "from elsewhere").await;
                if unmounts {
                    assert!(sh.fs.drain(Drain::All, PATIENCE).await.is_empty());
                } else {
                    sh.pass(PATIENCE).await;
                    assert_eq!(
                        (sh.cat("s").await, sh.cat(backup).await),
                        ("from elsewhere".into(), "old".into())
                    );
                }
                assert!(has_history(&sh, "s", &["old", "from elsewhere"]).await, "{backup}");
                assert!(has_history(&sh, backup, &["old"]).await, "{backup}");
            }
        }
        // The backup is given up by hand: that is no word about what came from elsewhere.
        let sh = Shell::of(capabilities, Options::default());
        sh.put("s", "old").await;
        sh.mv("s", "s~").await.unwrap();
        sh.put("s", "from elsewhere").await;
        sh.rm("s~").await.unwrap();
        sh.refresh().await;
        assert_eq!((sh.cat("s").await, sh.names().await), ("from elsewhere".into(), vec!["s".to_owned()]));
    }
}

#[tokio::test(start_paused = true)]
async fn a_backup_whose_object_cannot_be_deleted_leaves_both_names() {
    for backup in ["s~", "s.save"] {
        let sh = Shell::new();
        sh.put("s", "value").await;
        sh.vault.fail_always(Op::Delete, Fault::Before(ErrorKind::Forbidden));
        sh.mv("s", backup).await.unwrap();
        sh.pass(PATIENCE).await;
        assert_eq!((sh.cat("s").await, sh.cat(backup).await), ("value".into(), "value".into()), "{backup}");
        assert_eq!(sh.ls("").await.unwrap(), ["s", backup]);
    }
}

#[tokio::test(start_paused = true)]
async fn without_deletion_a_backup_of_any_name_is_refused() {
    let sh = Shell::with(Options { no_delete: true, ..Options::default() });
    sh.put("s", "value").await;
    assert_eq!(sh.mv("s", "s.save").await, Err(Errno::EPERM));
    assert_eq!((sh.names().await, sh.cat("s").await), (vec!["s".to_owned()], "value".into()));
}

/// The end of one grace is not the end of the next.
#[tokio::test(start_paused = true)]
async fn a_name_that_is_hidden_again_has_its_whole_grace() {
    let sh = Shell::new();
    let id = sh.put("s", "1").await.id;
    sh.mv("s", "s.save").await.unwrap();
    sh.pass(Duration::from_secs(4)).await;
    sh.write_file("s", "2").await.unwrap();
    sh.mv("s", "s.save").await.unwrap();
    sh.pass(Duration::from_secs(4)).await;
    assert_eq!(sh.meta("s").await.map(|meta| meta.id), Some(id.clone()), "hidden for 4 s, not 8");
    sh.write_file("s", "3").await.unwrap();
    sh.pass(PATIENCE).await;
    assert_eq!(
        (sh.meta("s").await.unwrap().id, sh.history("s").await),
        (id, vec!["1".into(), "2".into(), "3".into()])
    );
    assert_eq!(sh.cat("s.save").await, "2");
}

/// The file that is made anew is given up before it was stored: what was moved stays moved.
#[tokio::test(start_paused = true)]
async fn a_name_made_anew_and_given_up_ends_as_it_would_have() {
    for capabilities in DIALECTS {
        let sh = Shell::of(capabilities, Options::default());
        sh.put("s", "value").await;
        sh.mv("s", "s.save").await.unwrap();
        let fd = sh.open("s", CREATE).await.unwrap();
        sh.pwrite(&fd, 0, "half").unwrap();
        sh.rm("s").await.unwrap();
        sh.close(fd).await.unwrap();
        sh.pass(PATIENCE).await;
        assert_eq!((sh.names().await, sh.cat("s.save").await), (vec!["s.save".to_owned()], "value".into()));
    }
}

#[tokio::test(start_paused = true)]
async fn undo_files_of_vim_are_scratch() {
    let sh = Shell::new();
    sh.put("s", "value").await;
    let fd = sh.open(".s.un~", EXCL).await.unwrap();
    sh.pwrite(&fd, 0, "all old values").unwrap();
    sh.close(fd).await.unwrap();
    sh.pass(PATIENCE).await;
    assert_eq!((sh.names().await, sh.cat(".s.un~").await), (vec!["s".to_owned()], "all old values".into()));
    assert!(sh.fs.drain(Drain::All, PATIENCE).await.is_empty());
    assert_eq!(sh.names().await, ["s"]);
}

/// A deletion that comes after the mount's end would take what the next mount saved under the name.
#[tokio::test(start_paused = true)]
async fn a_mount_ends_after_what_is_on_its_way() {
    for capabilities in DIALECTS {
        for moves_to in [Some("s~"), Some("s.save"), Some("other"), None] {
            let sh = Arc::new(Shell::of(capabilities, Options::default()));
            sh.put("s", "old").await;
            sh.vault.plan(Op::Delete).nth(1).fail(Fault::Delay(Duration::from_secs(3)));
            let program = tokio::spawn({
                let sh = sh.clone();
                async move {
                    match moves_to {
                        Some(to) => sh.mv("s", to).await,
                        None => sh.rm("s").await,
                    }
                }
            });
            sh.pass(Duration::from_millis(100)).await;
            if program.is_finished() {
                // It was answered, and is deleted later.
                sh.forget_all();
                sh.pass(DELETED_AFTER).await;
            }
            assert_eq!(sh.fs.drain(Drain::All, PATIENCE).await, []);
            let next = sh.remount();
            next.write_file("s", "new").await.unwrap();
            next.pass(PATIENCE).await;
            assert_eq!(next.history("s").await.pop().as_deref(), Some("new"), "moved to {moves_to:?}");
            program.await.unwrap().unwrap();
        }
    }
}
