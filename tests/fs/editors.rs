//! Editors' temporaries: one save, one version of the same object, nothing left behind, nothing
//! lost when cut off.

use std::time::Duration;

use vaultfs::fs::{Drain, Errno, Options};
use vaultfs::vault::ErrorKind;
use vaultfs::vault::model::op::Op;
use vaultfs::vault::testing::faulty::Fault;

use crate::shell::{CREATE, EXCL, Shell, WRITE};

const PATIENCE: Duration = Duration::from_secs(60);
/// A provisional file left alone for so long is stored.
const DELETED_AFTER: Duration = Duration::from_millis(5100);

async fn create_excl(sh: &Shell, name: &str, bytes: &str) {
    let fd = sh.open(name, EXCL).await.unwrap();
    sh.pwrite(&fd, 0, bytes).unwrap();
    sh.close(fd).await.unwrap();
}

/// What vim does on `:w` with a backup.
async fn vim_saves(sh: &Shell, name: &str, bytes: &str) {
    let backup = format!("{name}~");
    create_excl(sh, "4913", "").await;
    sh.rm("4913").await.unwrap();
    sh.mv(name, &backup).await.unwrap();
    let fd = sh.open(name, CREATE).await.unwrap();
    sh.pwrite(&fd, 0, bytes).unwrap();
    sh.fsync(&fd).await.unwrap();
    sh.close(fd).await.unwrap();
    sh.rm(&backup).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn vim_makes_one_version_of_the_same_object() {
    let sh = Shell::new();
    let id = sh.put("s", "old").await.id;
    vim_saves(&sh, "s", "new").await;
    assert_eq!(sh.history("s").await, ["old", "new"]);
    assert_eq!((sh.meta("s").await.unwrap().id, sh.names().await), (id.clone(), vec!["s".into()]));
    assert_eq!(sh.vault.count(Op::Delete) + sh.vault.count(Op::Create), 0);
    vim_saves(&sh, "s", "newer").await;
    sh.pass(PATIENCE).await;
    assert_eq!((sh.history("s").await.len(), sh.names().await), (3, vec!["s".to_owned()]));
    assert_eq!((sh.cat("s").await, sh.ls("").await.unwrap()), ("newer".into(), vec!["s".to_owned()]));
    assert_eq!(sh.meta("s").await.unwrap().id, id);
    assert_eq!(sh.fs.status().scratch_bytes, 0);
}

#[tokio::test(start_paused = true)]
async fn vim_cut_off_at_any_step_loses_nothing() {
    for steps in 0..=6 {
        for drained in [true, false] {
            let sh = Shell::new();
            sh.put("s", "old").await;
            let mut fd = None;
            for step in 0..steps {
                match step {
                    0 => sh.mv("s", "s~").await.unwrap(),
                    1 => fd = Some(sh.open("s", CREATE).await.unwrap()),
                    2 => sh.pwrite(fd.as_ref().unwrap(), 0, "new").unwrap(),
                    3 => sh.fsync(fd.as_ref().unwrap()).await.unwrap(),
                    4 => sh.close(fd.take().unwrap()).await.unwrap(),
                    _ => sh.rm("s~").await.unwrap(),
                }
            }
            if drained {
                assert!(sh.fs.drain(Drain::All, PATIENCE).await.is_empty());
            }
            let found = sh.remount().walk("").await.unwrap();
            let has = |value: &str| found.values().any(|bytes| bytes == value.as_bytes());
            assert!(has("old") || has("new"), "after {steps} steps, drained: {drained}: {found:?}");
            if (1..=5).contains(&steps) && drained {
                assert!(has("old"), "the backup was not given up yet: {found:?}");
            }
            if !drained && steps < 4 {
                assert_eq!(sh.history("s").await, ["old"], "killed before anything was stored");
            }
            if steps >= 3 && drained {
                assert_eq!(sh.history("s").await, ["old", "new"], "after {steps} steps");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_backup_that_comes_back_is_nothing_sent() {
    let sh = Shell::new();
    sh.put("s", "old").await;
    sh.cat("s").await;
    sh.ls("").await.unwrap();
    let before = sh.vault.total() - sh.vault.count(Op::GetByName);
    sh.mv("s", "s~").await.unwrap();
    assert_eq!((sh.stat("s").await, sh.cat("s~").await), (Err(Errno::ENOENT), "old".into()));
    assert_eq!(sh.ls("").await.unwrap(), ["s~"]);
    sh.mv("s~", "s").await.unwrap();
    assert_eq!(sh.ls("").await.unwrap(), ["s"]);
    assert_eq!(sh.vault.total() - sh.vault.count(Op::GetByName), before, "nothing but looks");
    sh.pass(PATIENCE).await;
    assert_eq!((sh.history("s").await, sh.names().await), (vec!["old".into()], vec!["s".to_owned()]));
    assert_eq!(sh.fs.status().scratch_bytes, 0);
}

#[tokio::test(start_paused = true)]
async fn a_rename_to_a_backup_alone_is_carried_out_after_a_while() {
    let sh = Shell::new();
    sh.put("s", "old").await;
    sh.mv("s", "s~").await.unwrap();
    assert_eq!(sh.names().await, ["s"]);
    sh.pass(DELETED_AFTER).await;
    assert_eq!(sh.names().await, ["s~"]);
    assert_eq!((sh.cat("s~").await, sh.stat("s").await), ("old".into(), Err(Errno::ENOENT)));
    sh.write_file("s", "made anew").await.unwrap();
    assert_eq!(
        (sh.history("s").await, sh.history("s~").await),
        (vec!["made anew".into()], vec!["old".to_owned()])
    );
}

#[tokio::test(start_paused = true)]
async fn a_move_that_fails_half_way_is_finished_later() {
    let sh = Shell::new();
    sh.put("s", "old").await;
    sh.mv("s", "s~").await.unwrap();
    sh.vault.outage();
    sh.pass(DELETED_AFTER).await;
    sh.vault.clear();
    assert_eq!(sh.names().await, ["s"]);
    sh.pass(PATIENCE * 2).await;
    assert_eq!(sh.names().await, ["s~"]);
    assert_eq!((sh.stat("s").await, sh.cat("s~").await), (Err(Errno::ENOENT), "old".into()));
    let sh = Shell::new();
    sh.put("s", "old").await;
    sh.mv("s", "s~").await.unwrap();
    sh.vault.fail_next(Op::Create, Fault::Before(ErrorKind::Forbidden));
    sh.pass(DELETED_AFTER).await;
    assert!(sh.fs.drain(Drain::All, PATIENCE).await.is_empty());
    assert_eq!(sh.names().await, ["s~"], "unmount finishes it too");
}

#[tokio::test(start_paused = true)]
async fn unlinking_the_backup_of_an_absent_name_deletes_the_object() {
    let sh = Shell::new();
    sh.put("s", "old").await;
    sh.mv("s", "s~").await.unwrap();
    sh.rm("s~").await.unwrap();
    assert!(sh.names().await.is_empty());
    assert_eq!(sh.ls("").await.unwrap(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_backup_overwritten_while_its_name_is_absent_deletes_the_object() {
    let sh = Shell::new();
    sh.put("s", "old").await;
    sh.put("t", "other").await;
    sh.mv("s", "x~").await.unwrap();
    sh.mv("t", "x~").await.unwrap();
    sh.pass(PATIENCE).await;
    assert_eq!((sh.names().await, sh.cat("x~").await), (vec!["x~".to_owned()], "other".into()));
}

#[tokio::test(start_paused = true)]
async fn an_older_backup_does_not_take_a_later_hidden_object_along() {
    let sh = Shell::new();
    let id = sh.put("s", "1").await.id;
    sh.mv("s", "s~").await.unwrap();
    sh.write_file("s", "2").await.unwrap();
    sh.mv("s", "s.orig").await.unwrap();
    sh.rm("s~").await.unwrap();
    assert_eq!(sh.meta("s").await.map(|meta| meta.id), Some(id.clone()));
    sh.write_file("s", "3").await.unwrap();
    assert_eq!((sh.meta("s").await.unwrap().id, sh.history("s").await.len()), (id, 3));
    sh.pass(PATIENCE).await;
    assert_eq!((sh.cat("s").await, sh.cat("s.orig").await), ("3".into(), "2".into()));
    assert_eq!(sh.names().await, ["s", "s.orig"]);
}

#[tokio::test(start_paused = true)]
async fn unlinking_the_new_unsaved_file_keeps_the_hidden_object() {
    let sh = Shell::new();
    let id = sh.put("s", "old").await.id;
    sh.mv("s", "s~").await.unwrap();
    let fd = sh.open("s", CREATE).await.unwrap();
    sh.pwrite(&fd, 0, "half").unwrap();
    sh.rm("s").await.unwrap();
    sh.close(fd).await.unwrap();
    assert_eq!((sh.meta("s").await.unwrap().id, sh.stat("s").await), (id.clone(), Err(Errno::ENOENT)));
    sh.mv("s~", "s").await.unwrap();
    assert_eq!((sh.cat("s").await, sh.meta("s").await.unwrap().id), ("old".into(), id));
}

#[tokio::test(start_paused = true)]
async fn a_backup_name_that_is_an_object_already_keeps_its_own_history() {
    let sh = Shell::new();
    let (s, backup) = (sh.put("s", "old").await.id, sh.put("s~", "older").await.id);
    vim_saves(&sh, "s", "new").await;
    assert_eq!(
        (sh.meta("s").await.unwrap().id, sh.history("s").await),
        (s.clone(), vec!["old".into(), "new".to_owned()])
    );
    assert_eq!(sh.names().await, ["s"], "vim has unlinked its backup, as it was told to");
    sh.put("s~", "older").await;
    sh.refresh().await;
    sh.mv("s", "s~").await.unwrap();
    sh.pass(DELETED_AFTER).await;
    assert_eq!(
        (sh.names().await, sh.history("s~").await),
        (vec!["s~".to_owned()], vec!["older".into(), "new".into()])
    );
    assert_ne!(sh.meta("s~").await.unwrap().id, backup);
}

#[tokio::test(start_paused = true)]
async fn a_temporary_renamed_over_the_name_is_one_version() {
    for temporary in ["tmpAbCdEf12", "sedAbCdEf", "f.tmp", "f.new", ".f.AbCdEf", "f.lock"] {
        let sh = Shell::new();
        let id = sh.put("f", "old").await.id;
        create_excl(&sh, temporary, "new").await;
        sh.mv(temporary, "f").await.unwrap();
        assert_eq!(
            (sh.history("f").await, sh.names().await),
            (vec!["old".into(), "new".to_owned()], vec!["f".into()])
        );
        assert_eq!(sh.meta("f").await.unwrap().id, id);
        sh.pass(PATIENCE).await;
        assert_eq!(sh.names().await, ["f"], "{temporary}");
        assert_eq!((sh.vault.count(Op::Create), sh.vault.count(Op::Delete)), (0, 0));
        assert_eq!(sh.fs.status().scratch_bytes, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn sed_with_a_backup_keeps_both() {
    let sh = Shell::new();
    sh.put("g", "old").await;
    create_excl(&sh, "sedAbCdEf", "new").await;
    sh.mv("g", "g.bak").await.unwrap();
    sh.mv("sedAbCdEf", "g").await.unwrap();
    assert_eq!(sh.history("g").await, ["old", "new"]);
    let sh = Shell::new();
    sh.put("f", "old").await;
    create_excl(&sh, "sedAbCdEf", "new").await;
    sh.mv("f", "f.orig").await.unwrap();
    sh.mv("sedAbCdEf", "f").await.unwrap();
    assert_eq!(sh.history("f").await, ["old", "new"], "history goes on");
    sh.pass(DELETED_AFTER).await;
    assert_eq!(
        (sh.names().await, sh.cat("f.orig").await),
        (vec!["f".into(), "f.orig".to_owned()], "old".into())
    );
}

#[tokio::test(start_paused = true)]
async fn a_file_that_only_looks_like_a_temporary_is_stored() {
    let sh = Shell::new();
    sh.write_file(".env.docker", "made by hand").await.unwrap();
    assert_eq!(sh.history(".env.docker").await, ["made by hand"]);
    create_excl(&sh, ".env.devel1", "by a program").await;
    assert_eq!((sh.names().await.len(), sh.cat(".env.devel1").await), (1, "by a program".into()));
    sh.pass(DELETED_AFTER).await;
    assert_eq!(sh.history(".env.devel1").await, ["by a program"]);
    create_excl(&sh, ".env.devel2", "at unmount").await;
    assert!(sh.fs.drain(Drain::All, PATIENCE).await.is_empty());
    assert_eq!(sh.history(".env.devel2").await, ["at unmount"]);
    sh.write_file(".env.devel2", "an object like any other").await.unwrap();
    assert_eq!(sh.history(".env.devel2").await.len(), 2);
    assert_eq!(sh.fs.status().scratch_bytes, 0);
}

#[tokio::test(start_paused = true)]
async fn a_provisional_file_is_kept_while_it_is_open_or_forgotten() {
    let sh = Shell::new();
    let fd = sh.open("a.tmp", EXCL).await.unwrap();
    sh.pwrite(&fd, 0, "x").unwrap();
    sh.pass(PATIENCE).await;
    assert!(sh.names().await.is_empty(), "in use");
    sh.close(fd).await.unwrap();
    sh.forget_all();
    assert_eq!(sh.cat("a.tmp").await, "x");
    sh.pass(Duration::from_secs(3)).await;
    let fd = sh.open("a.tmp", WRITE).await.unwrap();
    sh.pass(Duration::from_secs(3)).await;
    assert!(sh.names().await.is_empty(), "opened again before it was left alone for long");
    sh.close(fd).await.unwrap();
    sh.pass(DELETED_AFTER).await;
    assert_eq!(sh.history("a.tmp").await, ["x"]);
}

/// That a name was free was asked of the one that it was created under.
#[tokio::test(start_paused = true)]
async fn a_temporary_that_was_renamed_is_stored_over_what_appeared_elsewhere() {
    let sh = Shell::new();
    create_excl(&sh, "s~", "mine").await;
    sh.mv("s~", "s.tmp").await.unwrap();
    sh.put("s.tmp", "theirs").await;
    sh.pass(Duration::from_secs(60)).await;
    assert_eq!((sh.fs.unsaved(), sh.history("s.tmp").await), (vec![], vec!["theirs".into(), "mine".into()]));
}

#[tokio::test(start_paused = true)]
async fn a_provisional_file_whose_rename_fails_is_stored_under_its_own_name() {
    let sh = Shell::new();
    sh.put("s", "old").await;
    create_excl(&sh, "s.tmp", "new").await;
    // The rename is under way when the file would be stored.
    sh.vault.fail_next(Op::Update, Fault::Hang);
    assert_eq!(sh.mv("s.tmp", "s").await, Err(Errno::ETIMEDOUT));
    sh.pass(DELETED_AFTER * 2).await;
    assert_eq!(
        (sh.history("s").await, sh.history("s.tmp").await),
        (vec!["old".into()], vec!["new".to_owned()])
    );
}

#[tokio::test(start_paused = true)]
async fn scratch_files_are_never_stored() {
    let sh = Shell::new();
    for name in [".s.swp", ".s.swpx", "#s#", "._s", ".DS_Store"] {
        sh.write_file(name, "scratch").await.unwrap();
        assert_eq!(sh.cat(name).await, "scratch");
        let fd = sh.open(name, WRITE).await.unwrap();
        sh.fsync(&fd).await.unwrap();
        sh.close(fd).await.unwrap();
    }
    sh.forget_all();
    sh.pass(PATIENCE).await;
    assert_eq!(sh.ls("").await.unwrap().len(), 5);
    assert!(sh.fs.drain(Drain::All, PATIENCE).await.is_empty() && sh.names().await.is_empty());
    assert_eq!(sh.fs.status().scratch_bytes, 5 * 7);
    sh.mv(".s.swp", "recovered").await.unwrap();
    assert_eq!(sh.history("recovered").await, ["scratch"]);
    for name in [".s.swpx", "#s#", "._s", ".DS_Store"] {
        sh.rm(name).await.unwrap();
    }
    assert_eq!((sh.names().await, sh.fs.status().scratch_bytes), (vec!["recovered".to_owned()], 0));
}

#[tokio::test(start_paused = true)]
async fn an_object_in_the_vault_is_no_scratch_file() {
    let sh = Shell::new();
    sh.put(".s.swp", "stored elsewhere").await;
    sh.write_file(".s.swp", "changed").await.unwrap();
    assert_eq!(sh.history(".s.swp").await, ["stored elsewhere", "changed"]);
    sh.put("f", "x").await;
    sh.refresh().await;
    sh.mv("f", ".f.swp").await.unwrap();
    assert_eq!(sh.names().await, [".f.swp", ".s.swp"], "never gone at unmount");
}

#[tokio::test(start_paused = true)]
async fn memory_for_scratch_files_is_bounded_and_given_back() {
    let sh = Shell::with(Options { scratch_size: 100, ..Options::default() });
    let full = "x".repeat(100);
    for round in 0..3 {
        sh.write_file(".a.swp", &full).await.unwrap_or_else(|e| panic!("round {round}: {e:?}"));
        let fd = sh.open(".b.swp", CREATE).await.unwrap();
        assert_eq!(sh.pwrite(&fd, 0, "y"), Err(Errno::ENOSPC));
        assert_eq!(sh.ftruncate(&fd, 1).await, Err(Errno::ENOSPC));
        sh.close(fd).await.unwrap();
        sh.truncate(".a.swp", 10).await.unwrap();
        sh.rm(".a.swp").await.unwrap();
        sh.rm(".b.swp").await.unwrap();
        // A file that has no name any more takes room until it is closed.
        let fd = sh.open("tmp12345678", EXCL).await.unwrap();
        sh.rm("tmp12345678").await.unwrap();
        sh.pwrite(&fd, 0, &full).unwrap();
        assert_eq!(sh.fs.status().scratch_bytes, 100);
        sh.close(fd).await.unwrap();
        assert_eq!(sh.fs.status().scratch_bytes, 0, "round {round}");
        // One that is overwritten gives its room back.
        create_excl(&sh, "1.tmp", "50 bytes").await;
        create_excl(&sh, "2.tmp", "50 bytes").await;
        sh.mv("1.tmp", "2.tmp").await.unwrap();
        assert_eq!(sh.fs.status().scratch_bytes, 8);
        sh.rm("2.tmp").await.unwrap();
        assert_eq!(sh.fs.status().scratch_bytes, 0, "round {round}");
    }
    sh.write_file("ordinary", "z".repeat(1000)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_big_object_moved_to_a_backup_takes_no_room_from_others() {
    let sh = Shell::with(Options { scratch_size: 100, ..Options::default() });
    sh.put("big", "b".repeat(1000)).await;
    sh.write_file(".a.swp", "x".repeat(50)).await.unwrap();
    sh.mv("big", "big~").await.unwrap();
    sh.mv("big~", "big").await.unwrap();
    assert_eq!(sh.fs.status().scratch_bytes, 50);
    vim_saves(&sh, "big", "smaller").await;
    assert_eq!(sh.fs.status().scratch_bytes, 50);
    assert_eq!(sh.history("big").await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_directory_from_which_all_was_moved_to_backups_can_be_removed() {
    let sh = Shell::new();
    sh.put("d/s", "kept").await;
    sh.mv("d/s", "s.orig").await.unwrap();
    sh.rmdir("d").await.unwrap();
    assert_eq!(
        (sh.ls("").await.unwrap(), sh.names().await),
        (vec!["s.orig".to_owned()], vec!["s.orig".to_owned()])
    );
    assert_eq!(sh.cat("s.orig").await, "kept");
}

#[tokio::test(start_paused = true)]
async fn a_directory_from_which_all_was_moved_to_backups_can_be_replaced() {
    let sh = Shell::new();
    sh.put("d/s", "value").await;
    sh.mv("d/s", "s~").await.unwrap();
    // Only one that is in memory alone replaces anything: the objects stay hidden for any other.
    sh.mkdir("full").await.unwrap();
    sh.write_file("full/f", "1").await.unwrap();
    assert_eq!(sh.mv("full", "d").await, Err(Errno::EXDEV));
    assert_eq!(sh.names().await, ["d/s", "full/f"]);
    sh.mkdir("e").await.unwrap();
    sh.mv("e", "d").await.unwrap();
    assert_eq!((sh.names().await, sh.ls("d").await.unwrap()), (vec!["full/f".into(), "s~".into()], vec![]));
    // What cannot be deleted shows again, and is in the way.
    sh.put("d/t", "value").await;
    sh.refresh().await;
    sh.mv("d/t", "t~").await.unwrap();
    sh.vault.fail_always(Op::Delete, Fault::Before(ErrorKind::Forbidden));
    sh.mkdir("e").await.unwrap();
    assert_eq!(sh.mv("e", "d").await, Err(Errno::ENOTEMPTY));
    assert_eq!(sh.ls("d").await.unwrap(), ["t"]);
}

#[tokio::test(start_paused = true)]
async fn backups_that_take_each_others_names_lose_nothing() {
    // Objects are put first; then these renames, and a new value for a name that has become free.
    type Case =
        (&'static [(&'static str, &'static str)], &'static [(&'static str, &'static str)], &'static str);
    let cases: [Case; 5] = [
        (&[("a~", "1"), ("b~", "2")], &[("a~", "t.tmp"), ("b~", "a~"), ("t.tmp", "b~")], ""),
        (&[("f", "3"), ("f~", "2")], &[("f~", "f~~"), ("f", "f~")], "f"),
        (&[("f", "2"), ("f~", "1")], &[("f~", "f.orig"), ("f", "f~")], ""),
        (&[("f", "2"), ("f.~1~", "1")], &[("f.~1~", "f.~2~"), ("f", "f.~1~")], "f"),
        (&[("x.lock", "1"), ("b", "2")], &[("x.lock", "tmpabcdefgh"), ("b", "x.lock")], "b"),
    ];
    for kv in [false, true] {
        for (objects, renames, anew) in cases {
            for ends_at_once in [false, true] {
                let sh = if kv { Shell::kv() } else { Shell::new() };
                let mut expected = std::collections::BTreeMap::new();
                for (name, value) in objects {
                    sh.write_file(name, value).await.unwrap();
                    expected.insert((*name).to_owned(), value.as_bytes().to_vec());
                }
                for (from, to) in renames {
                    sh.mv(from, to).await.unwrap();
                    let value = expected.remove(*from).unwrap();
                    expected.insert((*to).to_owned(), value);
                }
                if !anew.is_empty() {
                    sh.write_file(anew, "new").await.unwrap();
                    expected.insert(anew.to_owned(), b"new".to_vec());
                }
                if ends_at_once {
                    assert!(sh.fs.drain(Drain::All, Duration::from_secs(10)).await.is_empty());
                } else {
                    sh.pass(Duration::from_secs(20)).await;
                }
                assert_eq!(sh.walk("").await.unwrap(), expected, "{renames:?} {kv}");
                let left = sh.remount();
                assert_eq!(left.walk("").await.unwrap(), expected, "{renames:?} {kv}, mounted anew");
            }
        }
    }
}
