//! rename(2): the new name is stored before the old one is deleted; onto an existing name it is an
//! update.

use std::time::Duration;

use vaultfs::fs::Errno;
use vaultfs::vault::ErrorKind;
use vaultfs::vault::model::op::Op;
use vaultfs::vault::testing::faulty::Fault;

use crate::shell::{CREATE, READ, Shell, WRITE};

#[tokio::test(start_paused = true)]
async fn to_a_new_name_the_bytes_go_along_and_the_old_object_ends() {
    let sh = Shell::new();
    sh.put("old", "value").await;
    let ino = sh.stat("old").await.unwrap().ino;
    sh.mv("old", "new").await.unwrap();
    assert_eq!(sh.names().await, ["new"]);
    assert_eq!((sh.cat("new").await, sh.stat("old").await), ("value".into(), Err(Errno::ENOENT)));
    assert_eq!(sh.stat("new").await.unwrap().ino, ino, "the kernel keeps the inode");
    sh.refresh().await;
    assert_eq!((sh.cat("new").await, sh.ls("").await.unwrap()), ("value".into(), vec!["new".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn onto_an_existing_name_it_is_an_update_of_that_object() {
    let sh = Shell::new();
    let id = sh.put("target", "one").await.id;
    sh.put("source", "two").await;
    sh.mv("source", "target").await.unwrap();
    assert_eq!(sh.names().await, ["target"]);
    assert_eq!(sh.history("target").await, ["one", "two"]);
    assert_eq!(sh.meta("target").await.unwrap().id, id);
    assert_eq!(sh.cat("target").await, "two");
}

#[tokio::test(start_paused = true)]
async fn between_directories_and_for_unsaved_files() {
    let sh = Shell::new();
    sh.mkdir("d").await.unwrap();
    let fd = sh.open("f", CREATE).await.unwrap();
    sh.pwrite(&fd, 0, "unsaved").unwrap();
    sh.mv("f", "d/g").await.unwrap();
    assert_eq!(sh.history("d/g").await, ["unsaved"]);
    sh.pwrite(&fd, 0, "UN").unwrap();
    sh.close(fd).await.unwrap();
    assert_eq!(sh.history("d/g").await, ["unsaved", "UNsaved"], "an open handle follows");
    assert_eq!(sh.names().await, ["d/g"]);
    sh.mv("d/g", "f").await.unwrap();
    assert_eq!(
        (sh.names().await, sh.ls("").await.unwrap()),
        (vec!["f".into()], vec!["d/".into(), "f".into()])
    );
}

#[tokio::test(start_paused = true)]
async fn an_open_target_keeps_its_bytes_and_stores_nothing_any_more() {
    let sh = Shell::new();
    sh.put("target", "one").await;
    sh.put("source", "two").await;
    let fd = sh.open("target", libc::O_RDWR).await.unwrap();
    sh.pwrite(&fd, 0, "ONE").unwrap();
    sh.mv("source", "target").await.unwrap();
    assert_eq!(sh.read_all(&fd).await.unwrap(), b"ONE");
    sh.close(fd).await.unwrap();
    assert_eq!(sh.history("target").await, ["one", "two"]);
}

#[tokio::test(start_paused = true)]
async fn flags_are_honoured_or_refused() {
    let sh = Shell::new();
    sh.put("a", "a").await;
    sh.put("b", "b").await;
    sh.put("d/x", "x").await;
    assert_eq!(sh.mv_flags("a", "b", libc::RENAME_NOREPLACE).await, Err(Errno::EEXIST));
    assert_eq!(sh.mv_flags("a", "b", libc::RENAME_EXCHANGE).await, Err(Errno::EINVAL));
    assert_eq!(sh.mv("d", "e").await, Err(Errno::EXDEV), "mv(1) copies directories");
    assert_eq!(sh.mv("absent", "b").await, Err(Errno::ENOENT));
    sh.mv("a", "a").await.unwrap();
    sh.mv_flags("a", "c", libc::RENAME_NOREPLACE).await.unwrap();
    assert_eq!(sh.names().await, ["b", "c", "d/x"]);
}

#[tokio::test(start_paused = true)]
async fn a_failure_between_storing_and_deleting_leaves_both() {
    for kind in [ErrorKind::Forbidden, ErrorKind::Server] {
        let sh = Shell::new();
        sh.put("old", "value").await;
        sh.vault.fail_next(Op::Delete, Fault::Before(kind));
        assert!(sh.mv("old", "new").await.is_err());
        assert_eq!(sh.names().await, ["new", "old"]);
        assert_eq!((sh.cat("old").await, sh.cat("new").await), ("value".into(), "value".into()));
        sh.mv("old", "new").await.unwrap();
        assert_eq!(
            (sh.names().await, sh.history("new").await),
            (vec!["new".to_owned()], vec!["value".into()])
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_to_store_leaves_all_as_it_was() {
    let sh = Shell::new();
    sh.put("old", "value").await;
    sh.put("target", "t").await;
    sh.ls("").await.unwrap();
    for (op, to) in [(Op::Create, "new"), (Op::Update, "target")] {
        sh.vault.fail_next(op, Fault::Before(ErrorKind::Server));
        assert_eq!(sh.mv("old", to).await, Err(Errno::EIO));
        assert_eq!(sh.names().await, ["old", "target"]);
        assert_eq!((sh.cat("old").await, sh.cat("target").await), ("value".into(), "t".into()));
    }
    assert!(sh.fs.unsaved().is_empty());
    sh.mv("old", "target").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn modes_and_times_go_along() {
    let sh = Shell::new();
    let then = sh.fs.now() - Duration::from_secs(1_000_000);
    sh.put("target", "old").await;
    for to in ["new", "target"] {
        sh.write_file(".f.AbCdEf", "copied by rsync").await.unwrap();
        sh.chmod(".f.AbCdEf", 0o400).await.unwrap();
        sh.utimens(".f.AbCdEf", then).await.unwrap();
        sh.mv(".f.AbCdEf", to).await.unwrap();
        for _ in 0..2 {
            let attr = sh.stat(to).await.unwrap();
            assert_eq!((attr.perm, attr.mtime), (0o400, then), "{to}");
            sh.forget_all();
            sh.refresh().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_across_a_rename_keeps_its_bytes() {
    let sh = Shell::new();
    sh.put("a", "a").await;
    sh.put("b", "b").await;
    let (ra, rb) = (sh.open("a", READ).await.unwrap(), sh.open("b", READ).await.unwrap());
    sh.mv("a", "b").await.unwrap();
    assert_eq!(sh.read_all(&ra).await.unwrap(), b"a");
    assert_eq!(sh.read_all(&rb).await.unwrap(), b"b");
    sh.close(ra).await.unwrap();
    sh.close(rb).await.unwrap();
    assert_eq!(sh.cat("b").await, "a");
}

#[tokio::test(start_paused = true)]
async fn a_file_renamed_away_can_be_made_again() {
    let sh = Shell::new();
    sh.put("a", "one").await;
    sh.mv("a", "b").await.unwrap();
    sh.write_file("a", "two").await.unwrap();
    sh.mv("a", "b").await.unwrap();
    assert_eq!(
        (sh.names().await, sh.history("b").await),
        (vec!["b".to_owned()], vec!["one".into(), "two".into()])
    );
    let fd = sh.open("b", WRITE).await.unwrap();
    sh.pwrite(&fd, 0, "2").unwrap();
    sh.close(fd).await.unwrap();
    assert_eq!(sh.cat("b").await, "2wo");
}

#[tokio::test(start_paused = true)]
async fn what_a_rename_replaces_is_known_from_the_vault_not_from_memory() {
    let sh = Shell::new();
    sh.put("a", "a").await;
    sh.put("b", "b").await;
    sh.cat("a").await;
    sh.cat("b").await;
    sh.delete("b").await;
    sh.put("a", "changed elsewhere").await;
    sh.refresh().await;
    sh.mv("a", "b").await.unwrap();
    assert_eq!((sh.names().await, sh.cat("b").await), (vec!["b".to_owned()], "changed elsewhere".into()));
}
