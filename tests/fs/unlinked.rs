//! unlink(2): whose deletes at once, and whose leaves a second for the name to be made anew.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vaultfs::fs::{Drain, Errno, Options, Remover};
use vaultfs::vault::model::op::Op;
use vaultfs::vault::testing::faulty::Fault;
use vaultfs::vault::testing::memory::{KV_CAPABILITIES, OBJECT_CAPABILITIES};
use vaultfs::vault::{Capabilities, ErrorKind};

use crate::shell::{CREATE, EXCL, Shell};

const DIALECTS: [Capabilities; 2] = [OBJECT_CAPABILITIES, KV_CAPABILITIES];
/// A name that was not made anew for so long is deleted.
const GRACE: Duration = Duration::from_millis(1100);
const PATIENCE: Duration = Duration::from_secs(60);
/// Objects that are hidden at a time.
const MOST: usize = 64;

/// How a name is made anew.
#[derive(Debug, Clone, Copy)]
enum Anew {
    Create,
    Exclusively,
    Rename,
    Link,
    Mknod,
}

async fn make(sh: &Shell, path: &str, how: Anew) {
    match how {
        Anew::Create => sh.write_file(path, "two").await.unwrap(),
        Anew::Exclusively | Anew::Mknod => {
            let flags = if let Anew::Mknod = how {
                sh.mknod(path).await.unwrap();
                CREATE
            } else {
                EXCL
            };
            let fd = sh.open(path, flags).await.unwrap();
            sh.pwrite(&fd, 0, "two").unwrap();
            sh.close(fd).await.unwrap();
        }
        Anew::Rename | Anew::Link => {
            sh.write_file("other", "two").await.unwrap();
            match how {
                Anew::Rename => sh.mv("other", path).await.unwrap(),
                _ => drop(sh.link("other", path).await.unwrap()),
            }
        }
    }
}

const ANEW: [Anew; 5] = [Anew::Create, Anew::Exclusively, Anew::Rename, Anew::Link, Anew::Mknod];

#[tokio::test(start_paused = true)]
async fn a_name_that_is_unlinked_and_made_anew_keeps_its_object() {
    for (capabilities, how) in DIALECTS.into_iter().flat_map(|c| ANEW.map(|how| (c, how))) {
        for path in ["s", "d/s", "s.tmp", ".s.swp"] {
            let sh = Shell::of(capabilities, Options::default());
            let id = sh.put(path, "one").await.id;
            sh.unlink(path, Remover::Unknown).await.unwrap();
            assert_eq!(sh.stat(path).await, Err(Errno::ENOENT));
            make(&sh, path, how).await;
            sh.pass(PATIENCE).await;
            assert_eq!(sh.cat(path).await, "two", "{how:?} {path}");
            assert_eq!(sh.history(path).await.len(), 2, "{how:?} {path}: one save, one version");
            assert_eq!(sh.meta(path).await.unwrap().id, id, "{how:?} {path}");
            assert_eq!(
                (sh.vault.count(Op::Delete) > 0, sh.fs.failed_deletes()),
                (matches!(how, Anew::Rename), vec![])
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_death_at_any_moment_between_unlink_and_creation_ends_no_history() {
    for (capabilities, how) in DIALECTS.into_iter().flat_map(|c| ANEW.map(|how| (c, how))) {
        let mut records = 0;
        loop {
            let sh = Shell::of(capabilities, Options::default());
            let id = sh.put("s", "one").await.id;
            sh.die_after(records);
            sh.unlink("s", Remover::Unknown).await.unwrap();
            make(&sh, "s", how).await;
            let died = sh.deaths.load(Ordering::Relaxed) > 0;
            sh.pass(PATIENCE).await;
            assert_eq!(sh.cat("s").await, "two", "{how:?}, after {records}");
            assert_eq!(sh.history("s").await.len(), 2, "{how:?}, after {records}");
            assert_eq!(sh.meta("s").await.unwrap().id, id, "{how:?}, after {records}");
            if !died {
                break;
            }
            records += 1;
        }
        assert!(records > 5, "{records}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_moved_object_is_deleted_although_its_name_was_made_anew_for_a_moment() {
    for capabilities in DIALECTS {
        let sh = Arc::new(Shell::of(capabilities, Options::default()));
        sh.put("s", "one").await;
        sh.mv("s", "s~").await.unwrap();
        sh.pass(Duration::from_secs(4)).await;
        // The backup is stored in a second; the deletion of the object behind it waits for a save.
        let mut gate = sh.vault.plan(Op::Create).named("other").gate();
        let saver = sh.clone();
        let save = tokio::spawn(async move { saver.write_file("other", "x").await });
        gate.arrived(1).await;
        sh.pass(Duration::from_secs(2)).await;
        let fd = sh.open("s", CREATE).await.unwrap();
        gate.release();
        save.await.unwrap().unwrap();
        sh.pass(Duration::from_secs(1)).await;
        assert_eq!(sh.names().await, ["other", "s", "s~"]);
        sh.unlink("s", Remover::Unknown).await.unwrap();
        sh.close(fd).await.unwrap();
        sh.pass(PATIENCE).await;
        assert_eq!((sh.names().await, sh.fs.failed_deletes()), (vec!["other".into(), "s~".into()], vec![]));
    }
}

#[tokio::test(start_paused = true)]
async fn a_program_that_removes_is_answered_when_the_object_is_deleted() {
    for capabilities in DIALECTS {
        let sh = Shell::of(capabilities, Options::default());
        for (name, by, left) in
            [("a", Remover::Removes, false), ("b", Remover::Unknown, true), ("c", Remover::Replaces, true)]
        {
            sh.write_file(name, "x").await.unwrap();
            sh.unlink(name, by).await.unwrap();
            assert_eq!(sh.names().await.contains(&name.to_owned()), left, "{by:?}");
            assert_eq!((sh.stat(name).await, sh.ls("").await.unwrap()), (Err(Errno::ENOENT), vec![]));
            sh.pass(GRACE).await;
            assert_eq!((sh.names().await, sh.fs.failed_deletes()), (Vec::<String>::new(), vec![]), "{by:?}");
        }
        // Made anew after that, it is another object.
        sh.write_file("s", "one").await.unwrap();
        let id = sh.meta("s").await.unwrap().id;
        sh.unlink("s", Remover::Unknown).await.unwrap();
        sh.pass(GRACE).await;
        sh.write_file("s", "two").await.unwrap();
        assert_eq!(sh.history("s").await, ["two"]);
        assert_ne!(sh.meta("s").await.unwrap().id, id);
    }
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_is_refused_later_is_told_and_the_next_ones_wait_for_the_answer() {
    for capabilities in DIALECTS {
        let sh = Shell::of(capabilities, Options::default());
        for name in ["a", "b", "c"] {
            sh.put(name, "x").await;
        }
        sh.vault.fail_always(Op::Delete, Fault::Before(ErrorKind::Forbidden));
        sh.unlink("a", Remover::Unknown).await.unwrap();
        assert_eq!(sh.stat("a").await, Err(Errno::ENOENT));
        sh.pass(GRACE).await;
        let told = sh.fs.failed_deletes();
        assert_eq!(
            told.iter().map(|one| (one.name.as_str(), one.retried)).collect::<Vec<_>>(),
            [("a", false)]
        );
        assert_eq!(sh.cat("a").await, "x", "it shows again");
        // Who unlinks now is told at once, and so for a minute after the last refusal.
        for wait in [1, 59, 59] {
            sh.pass(Duration::from_secs(wait)).await;
            assert_eq!(sh.unlink("b", Remover::Unknown).await, Err(Errno::EACCES), "{wait}");
        }
        sh.pass(Duration::from_secs(61)).await;
        sh.vault.clear();
        sh.unlink("c", Remover::Unknown).await.unwrap();
        assert!(sh.names().await.contains(&"c".to_owned()), "hidden again");
        sh.pass(GRACE).await;
        assert_eq!(sh.names().await, ["a", "b"]);
    }
}

#[tokio::test(start_paused = true)]
async fn so_many_are_hidden_at_a_time_and_no_more() {
    for away in [false, true] {
        let sh = Shell::new();
        for n in 0..MOST + 6 {
            sh.put(&format!("n{n:02}"), "x").await;
        }
        sh.ls("").await.unwrap();
        for n in 0..MOST {
            sh.unlink(&format!("n{n:02}"), Remover::Unknown).await.unwrap();
        }
        assert_eq!(sh.vault.count(Op::Delete), 0);
        if away {
            sh.cat(&format!("n{MOST}")).await;
            sh.vault.fail_always(Op::Delete, Fault::Before(ErrorKind::Server));
            assert_eq!(sh.unlink(&format!("n{MOST}"), Remover::Unknown).await, Err(Errno::EIO));
            sh.pass(PATIENCE).await;
            assert_eq!(sh.fs.failed_deletes().len(), MOST);
            sh.vault.clear();
            sh.pass(2 * PATIENCE).await;
            assert_eq!(sh.names().await.len(), 6);
            continue;
        }
        for n in MOST..MOST + 6 {
            sh.unlink(&format!("n{n:02}"), Remover::Unknown).await.unwrap();
            assert_eq!(sh.names().await.len(), MOST + MOST + 5 - n, "deleted before the answer");
        }
        sh.pass(GRACE).await;
        assert_eq!(sh.names().await, Vec::<String>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn syncing_the_directory_deletes_what_is_hidden_and_returns_the_error() {
    for (capabilities, dir) in DIALECTS.into_iter().flat_map(|c| ["", "d"].map(|dir| (c, dir))) {
        let sh = Shell::of(capabilities, Options::default());
        let names = ["d/a", "d/b", "other/c"];
        for name in names {
            sh.put(name, "x").await;
        }
        for name in names {
            sh.unlink(name, Remover::Unknown).await.unwrap();
        }
        sh.fsync_dir(dir).await.unwrap();
        let left: &[&str] = if dir.is_empty() { &[] } else { &["other/c"] };
        assert_eq!(sh.names().await, left);
        // Made anew and not stored yet, it is no deletion.
        sh.write_file("d/s", "one").await.unwrap();
        sh.unlink("d/s", Remover::Unknown).await.unwrap();
        let fd = sh.open("d/s", CREATE).await.unwrap();
        sh.fsync_dir(dir).await.unwrap();
        sh.pwrite(&fd, 0, "two").unwrap();
        sh.close(fd).await.unwrap();
        assert_eq!(sh.history("d/s").await.len(), 2);

        for (kind, errno, retried) in
            [(ErrorKind::Server, Errno::EIO, true), (ErrorKind::Forbidden, Errno::EACCES, false)]
        {
            sh.write_file("d/t", "x").await.unwrap();
            sh.unlink("d/t", Remover::Unknown).await.unwrap();
            sh.vault.fail_always(Op::Delete, Fault::Before(kind));
            assert_eq!(sh.fsync_dir(dir).await, Err(errno));
            assert_eq!(sh.fs.failed_deletes().len(), 1);
            assert_eq!(sh.fs.failed_deletes()[0].retried, retried);
            sh.vault.clear();
            sh.fs.retry_unsaved(None, PATIENCE).await;
            assert_eq!((sh.stat("d/t").await, sh.fs.failed_deletes()), (Err(Errno::ENOENT), vec![]));
        }
    }
}

/// Python's rmtree, and others.
#[tokio::test(start_paused = true)]
async fn a_directory_with_hidden_objects_is_removed_when_they_are_deleted() {
    for capabilities in DIALECTS {
        let sh = Shell::of(capabilities, Options::default());
        let names: Vec<String> = (0..MOST + 3).map(|n| format!("d/n{n:02}")).collect();
        for name in &names {
            sh.put(name, "x").await;
        }
        // Each deletion takes a while; together they fit into the time of one rmdir(2).
        sh.vault.fail_always(Op::Delete, Fault::Delay(Duration::from_millis(500)));
        for name in &names {
            sh.unlink(name, Remover::Unknown).await.unwrap();
        }
        sh.rmdir("d").await.unwrap();
        assert_eq!((sh.names().await, sh.ls("").await.unwrap()), (vec![], vec![]));

        for (kind, errno) in [(ErrorKind::Forbidden, Errno::EACCES), (ErrorKind::Server, Errno::EIO)] {
            let sh = Shell::of(capabilities, Options::default());
            sh.put("d/s", "x").await;
            sh.unlink("d/s", Remover::Unknown).await.unwrap();
            sh.vault.fail_always(Op::Delete, Fault::Before(kind));
            assert_eq!(sh.rmdir("d").await, Err(errno));
            assert_eq!(sh.fs.failed_deletes().len(), 1);
            sh.vault.clear();
            if kind == ErrorKind::Forbidden {
                sh.rm("d/s").await.unwrap();
            }
            sh.rmdir("d").await.unwrap();
            assert_eq!((sh.names().await, sh.fs.failed_deletes()), (vec![], vec![]));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn without_deletion_only_programs_that_create_anew_may_unlink() {
    for capabilities in DIALECTS {
        let sh = Shell::of(capabilities, Options { no_delete: true, ..Options::default() });
        let id = sh.put("s", "one").await.id;
        for by in [Remover::Removes, Remover::Unknown] {
            assert_eq!(sh.unlink("s", by).await, Err(Errno::EPERM), "{by:?}");
        }
        sh.unlink("s", Remover::Replaces).await.unwrap();
        assert_eq!(sh.stat("s").await, Err(Errno::ENOENT));
        sh.write_file("s", "two").await.unwrap();
        assert_eq!((sh.history("s").await.len(), sh.meta("s").await.unwrap().id), (2, id));
        // Not made anew, it shows again.
        sh.unlink("s", Remover::Replaces).await.unwrap();
        sh.pass(GRACE).await;
        assert_eq!((sh.cat("s").await, sh.vault.count(Op::Delete)), ("two".into(), 0));
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_mount_deletes_what_is_hidden_or_names_it() {
    for refuses in [false, true] {
        let sh = Shell::new();
        sh.put("s", "x").await;
        sh.unlink("s", Remover::Unknown).await.unwrap();
        if refuses {
            sh.vault.fail_always(Op::Delete, Fault::Before(ErrorKind::Forbidden));
        }
        let left = sh.fs.drain(Drain::All, PATIENCE).await;
        assert_eq!(
            left.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(),
            ["s"; 1][..usize::from(refuses)]
        );
        assert_eq!(sh.names().await.len(), usize::from(refuses));
    }
}
