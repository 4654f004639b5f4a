//! Deletions that come later than the program was answered, and that the vault does not make: told,
//! tried again or left to a person, and forgotten with what they were about.

use std::sync::atomic::Ordering;
use std::time::Duration;

use vaultfs::fs::{Drain, Errno, Options};
use vaultfs::vault::ErrorKind;
use vaultfs::vault::model::op::Op;
use vaultfs::vault::testing::faulty::Fault;
use vaultfs::vault::testing::memory::{KV_CAPABILITIES, OBJECT_CAPABILITIES};

use crate::shell::{CREATE, Shell};

const PATIENCE: Duration = Duration::from_secs(60);
const ERROR: &str = "user.vault.error";

/// What should be gone, and whether it is tried again.
fn told(sh: &Shell) -> Vec<(String, bool)> {
    sh.fs.failed_deletes().into_iter().map(|one| (one.name, one.retried)).collect()
}

async fn error_of(sh: &Shell, name: &str) -> Result<String, Errno> {
    let ino = sh.stat(name).await?.ino;
    sh.fs.getxattr(ino, ERROR.as_ref()).map(|error| String::from_utf8(error).unwrap())
}

/// `mv s BACKUP`, and the vault refuses to delete.
async fn refused(sh: Shell, backup: &str) -> Shell {
    sh.put("s", "value").await;
    sh.vault.fail_always(Op::Delete, Fault::Before(ErrorKind::Forbidden));
    sh.mv("s", backup).await.unwrap();
    sh.pass(PATIENCE).await;
    assert_eq!(told(&sh), [("s".to_owned(), false)], "{backup}");
    sh
}

#[tokio::test(start_paused = true)]
async fn what_the_vault_does_not_delete_is_told_until_a_person_decides() {
    for capabilities in [OBJECT_CAPABILITIES, KV_CAPABILITIES] {
        for backup in ["s~", "s.save"] {
            let sh = refused(Shell::of(capabilities, Options::default()), backup).await;
            let error = error_of(&sh, "s").await.unwrap();
            assert!(error.starts_with("it should be gone, but was not deleted: "), "{error}");
            assert_eq!(error_of(&sh, backup).await, Err(Errno::ENODATA));
            let status = sh.fs.status();
            assert_eq!(
                (status.failed_deletes[0].error.as_str(), status.last_errors.len()),
                (error.as_str(), 1)
            );

            // Another worker tells it as well.
            sh.die_after(0);
            sh.write_file("t", "1").await.unwrap();
            assert_ne!(sh.deaths.load(Ordering::Relaxed), 0);
            assert_eq!(told(&sh), [("s".to_owned(), false)], "{backup}");
            assert_eq!(error_of(&sh, "s").await.unwrap(), error);

            // Still refused, it is still there; kept, it is an object like any other.
            sh.fs.retry_unsaved(None, PATIENCE).await;
            assert_eq!((told(&sh), sh.cat("s").await), (vec![("s".to_owned(), false)], "value".into()));
            assert!(sh.fs.discard_unsaved("s") && !sh.fs.discard_unsaved("s"));
            assert_eq!((told(&sh), error_of(&sh, "s").await), (vec![], Err(Errno::ENODATA)));
            assert_eq!(sh.cat("s").await, "value");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_not_deleted_is_deleted_when_a_person_asks_again() {
    for (name, deleted) in [(None, true), (Some("s"), true), (Some("other"), false)] {
        let sh = refused(Shell::new(), "s.save").await;
        sh.vault.clear();
        sh.fs.retry_unsaved(name, PATIENCE).await;
        assert_eq!(sh.names().await, if deleted { vec!["s.save"] } else { vec!["s", "s.save"] }, "{name:?}");
        assert_eq!(told(&sh).is_empty(), deleted);
        assert_eq!(sh.stat("s").await.is_err(), deleted);
    }
    // While somebody writes it, it is theirs.
    let sh = refused(Shell::new(), "s.save").await;
    sh.vault.clear();
    let fd = sh.open("s", CREATE).await.unwrap();
    sh.pwrite(&fd, 0, "new").unwrap();
    sh.fs.retry_unsaved(Some("s"), PATIENCE).await;
    sh.close(fd).await.unwrap();
    assert_eq!((sh.history("s").await, told(&sh)), (vec!["value".into(), "new".into()], vec![]));
}

#[tokio::test(start_paused = true)]
async fn what_should_be_gone_is_forgotten_with_what_it_was() {
    for act in ["write", "rename", "unlink", "put elsewhere", "delete elsewhere"] {
        let sh = refused(Shell::new(), "s.save").await;
        sh.vault.clear();
        match act {
            "write" => sh.write_file("s", "new").await.unwrap(),
            "rename" => sh.mv("s", "other").await.unwrap(),
            "unlink" => sh.rm("s").await.unwrap(),
            "put elsewhere" => drop(sh.put("s", "new").await),
            _ => sh.delete("s").await,
        }
        sh.refresh().await;
        let _ = sh.read_file("s").await;
        assert_eq!(told(&sh), [], "{act}");
        sh.fs.retry_unsaved(None, PATIENCE).await;
        let stays = matches!(act, "write" | "put elsewhere");
        assert_eq!(sh.names().await.contains(&"s".to_owned()), stays, "{act}");
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_vault_is_away_a_deletion_is_tried_again_and_its_object_stays_hidden() {
    for backup in ["s~", "s.save"] {
        let sh = Shell::new();
        sh.put("s", "value").await;
        sh.vault.fail_always(Op::Delete, Fault::Before(ErrorKind::Server));
        sh.mv("s", backup).await.unwrap();
        sh.pass(Duration::from_secs(600)).await;
        assert_eq!(told(&sh), [("s".to_owned(), true)], "{backup}");
        assert_eq!((sh.stat("s").await, sh.cat(backup).await), (Err(Errno::ENOENT), "value".into()));
        assert_eq!(sh.fs.status().last_errors.len(), 1, "told once");
        let tries = sh.vault.count(Op::Delete);
        assert!((8..=20).contains(&tries), "{tries} in ten minutes");
        sh.vault.clear();
        sh.pass(PATIENCE).await;
        assert_eq!((sh.names().await, told(&sh)), (vec![backup.to_owned()], vec![]));
    }
    // Made anew meanwhile, it is the next version, and nothing is deleted any more.
    let sh = Shell::new();
    let id = sh.put("s", "value").await.id;
    sh.vault.fail_always(Op::Delete, Fault::Before(ErrorKind::Server));
    sh.mv("s", "s.save").await.unwrap();
    sh.pass(PATIENCE).await;
    sh.write_file("s", "new").await.unwrap();
    sh.vault.clear();
    sh.pass(PATIENCE).await;
    assert_eq!((sh.meta("s").await.unwrap().id, sh.cat("s").await, told(&sh)), (id, "new".into(), vec![]));
    // A person can give it up, too.
    let sh = Shell::new();
    sh.put("s", "value").await;
    sh.vault.fail_always(Op::Delete, Fault::Before(ErrorKind::Server));
    sh.mv("s", "s.save").await.unwrap();
    sh.pass(PATIENCE).await;
    assert!(sh.fs.discard_unsaved("s"));
    sh.vault.clear();
    sh.pass(PATIENCE).await;
    assert_eq!((sh.cat("s").await, told(&sh)), ("value".into(), vec![]));
}

/// What ends with the mount, and why.
async fn drained(sh: &Shell, patience: Duration) -> Vec<(String, String)> {
    let left = sh.fs.drain(Drain::All, patience).await;
    left.into_iter().map(|one| (one.name, one.error.unwrap_or_default())).collect()
}

#[tokio::test(start_paused = true)]
async fn a_mount_that_ends_deletes_what_is_held_back_or_says_what_it_did_not() {
    for backup in ["s~", "s.save"] {
        // Within the time that it is held back.
        let sh = Shell::new();
        sh.put("s", "value").await;
        sh.mv("s", backup).await.unwrap();
        assert_eq!(drained(&sh, PATIENCE).await, []);
        assert_eq!(sh.names().await, [backup]);

        // The vault is away for a part of the time.
        let sh = Shell::new();
        sh.put("s", "value").await;
        sh.mv("s", backup).await.unwrap();
        sh.vault.plan(Op::Delete).times(5).fail(Fault::Before(ErrorKind::Unreachable));
        assert_eq!(drained(&sh, PATIENCE).await, []);
        assert_eq!(sh.names().await, [backup]);

        // It refuses, or is away for longer.
        for (kind, tries) in [(ErrorKind::Forbidden, 1), (ErrorKind::Unreachable, 5)] {
            let sh = Shell::new();
            sh.put("s", "value").await;
            sh.mv("s", backup).await.unwrap();
            sh.vault.fail_always(Op::Delete, Fault::Before(kind));
            let left = drained(&sh, PATIENCE).await;
            let [(name, why)] = &left[..] else { panic!("{kind:?}: {left:?}") };
            assert!(name == "s" && why.starts_with("it should be gone, but was not deleted: "), "{why}");
            assert!(sh.vault.count(Op::Delete) >= tries, "{kind:?}");
            // It goes on after all, and ends a second time.
            sh.vault.clear();
            assert_eq!(drained(&sh, PATIENCE).await, []);
            assert_eq!((sh.names().await, told(&sh)), (vec![backup.to_owned()], vec![]));
        }

        // Without any time.
        let sh = Shell::new();
        sh.put("s", "value").await;
        sh.mv("s", backup).await.unwrap();
        sh.vault.outage();
        let left = drained(&sh, Duration::ZERO).await;
        assert_eq!(left.len(), 1, "{left:?}");
    }
}
