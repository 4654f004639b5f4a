//! Changes made elsewhere: the name shows a new inode, an old handle keeps the old bytes whole.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vaultfs::fs::Errno;
use vaultfs::vault::model::op::Op;

use crate::shell::{CREATE, EXCL, READ, Shell, WRITE};

#[tokio::test(start_paused = true)]
async fn a_change_elsewhere_is_a_new_inode_and_an_old_handle_keeps_the_old_bytes() {
    let sh = Shell::new();
    sh.put("f", "old").await;
    let before = sh.stat("f").await.unwrap();
    let fd = sh.open("f", READ).await.unwrap();
    sh.put("f", "newer and longer").await;
    assert_eq!(sh.stat("f").await.unwrap().ino, before.ino, "within the refresh time");
    sh.refresh().await;
    assert_eq!(sh.cat("f").await, "newer and longer");
    assert_ne!(sh.stat("f").await.unwrap().ino, before.ino);
    assert_eq!(sh.read_all(&fd).await.unwrap(), b"old");
    sh.close(fd).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_unchanged_object_keeps_its_inode() {
    let sh = Shell::new();
    sh.put("f", "x").await;
    let ino = sh.stat("f").await.unwrap().ino;
    sh.refresh().await;
    assert_eq!(sh.stat("f").await.unwrap().ino, ino);
}

#[tokio::test(start_paused = true)]
async fn a_write_through_an_old_handle_updates_the_object_and_the_name_shows_it() {
    let sh = Shell::new();
    let id = sh.put("f", "old").await.id;
    let fd = sh.open("f", libc::O_RDWR).await.unwrap();
    sh.put("f", "theirs").await;
    sh.refresh().await;
    assert_eq!(sh.cat("f").await, "theirs");
    sh.pwrite(&fd, 0, "our").unwrap();
    sh.close(fd).await.unwrap();
    assert_eq!(sh.history("f").await, ["old", "theirs", "our"]);
    assert_eq!(sh.cat("f").await, "our");
    assert_eq!(sh.stat("f").await.unwrap().ino, fd.ino);
    assert_eq!(sh.meta("f").await.unwrap().id, id);
    assert!(sh.invalidated().contains(&(vaultfs::fs::ROOT, "f".into())));
}

/// The kernel goes on with the name that it knows until it is notified, by the next worker if need
/// be: no reader gets what was there before an acknowledged save.
#[tokio::test(start_paused = true)]
async fn after_a_death_a_name_that_was_brought_back_shows_nothing_older_either() {
    let mut deaths = 0;
    for records in 0.. {
        let sh = Shell::new();
        sh.put("f", "old").await;
        let fd = sh.open("f", libc::O_RDWR).await.unwrap();
        sh.put("f", "theirs").await;
        sh.refresh().await;
        let shown = sh.stat("f").await.unwrap().ino;
        sh.kernel.is_slow.store(true, Ordering::SeqCst);
        sh.pwrite(&fd, 0, "our").unwrap();
        sh.die_after(records);
        sh.flush(&fd).await.unwrap();
        sh.bury();
        let stale = sh.once(|fs, ctx| async move { fs.open(&ctx, shown, READ).await }).await;
        assert_eq!(stale.unwrap_err(), Errno::ESTALE, "a death after {records} records");
        assert_eq!(sh.cat("f").await, "our", "a death after {records} records");
        sh.kernel.is_slow.store(false, Ordering::SeqCst);
        sh.kernel.forget();
        if sh.deaths.load(Ordering::SeqCst) == 0 {
            break;
        }
        deaths += 1;
    }
    assert!(deaths >= 3, "{deaths}");
}

#[tokio::test(start_paused = true)]
async fn what_is_deleted_elsewhere_is_gone_and_an_old_handle_keeps_its_bytes() {
    let sh = Shell::new();
    sh.put("f", "old").await;
    sh.put("d/g", "x").await;
    let fd = sh.open("f", READ).await.unwrap();
    sh.cat("d/g").await;
    sh.delete("f").await;
    sh.delete("d/g").await;
    sh.refresh().await;
    assert_eq!(sh.stat("f").await, Err(Errno::ENOENT));
    assert_eq!(sh.ls("").await.unwrap(), Vec::<String>::new());
    assert_eq!(sh.read_all(&fd).await.unwrap(), b"old");
    sh.close(fd).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_name_deleted_elsewhere_is_made_anew_with_the_new_bytes_only() {
    for flags in [CREATE, EXCL] {
        let sh = Shell::new();
        sh.put("f", "a long old value").await;
        sh.cat("f").await;
        sh.delete("f").await;
        sh.refresh().await;
        let fd = sh.open("f", flags).await.unwrap();
        sh.pwrite(&fd, 0, "new").unwrap();
        assert_eq!(sh.fstat(&fd).size, 3);
        sh.close(fd).await.unwrap();
        assert_eq!(sh.history("f").await, ["new"]);
        assert_eq!(sh.cat("f").await, "new");
    }
}

#[tokio::test(start_paused = true)]
async fn a_writer_of_what_was_deleted_elsewhere_brings_it_back() {
    let sh = Shell::new();
    sh.put("f", "old").await;
    let fd = sh.open("f", WRITE).await.unwrap();
    sh.delete("f").await;
    sh.refresh().await;
    assert_eq!(sh.stat("f").await, Err(Errno::ENOENT));
    sh.pwrite(&fd, 0, "new").unwrap();
    sh.close(fd).await.unwrap();
    assert_eq!(sh.history("f").await, ["new"]);
    assert_eq!(sh.cat("f").await, "new");
}

#[tokio::test(start_paused = true)]
async fn a_create_that_comes_late_opens_what_is_there_and_cuts_it() {
    let sh = Shell::new();
    sh.put("f", "value").await;
    sh.cat("f").await;
    let fd = sh.create(vaultfs::fs::ROOT, "f", CREATE, 0o600).await.unwrap();
    assert_eq!(sh.fstat(&fd).size, 0, "the kernel leaves O_TRUNC to the answer of CREATE");
    sh.pwrite(&fd, 0, "new").unwrap();
    sh.close(fd).await.unwrap();
    assert_eq!(sh.history("f").await, ["value", "new"]);
    let excl = sh.create(vaultfs::fs::ROOT, "f", EXCL, 0o600).await;
    assert_eq!(excl.unwrap_err(), Errno::EEXIST);
}

#[tokio::test(start_paused = true)]
async fn unlinked_while_open_the_bytes_stay_and_are_never_stored_again() {
    let sh = Shell::new();
    sh.put("f", "old").await;
    let fd = sh.open("f", libc::O_RDWR).await.unwrap();
    sh.rm("f").await.unwrap();
    assert_eq!(sh.stat("f").await, Err(Errno::ENOENT));
    assert_eq!(sh.read_all(&fd).await.unwrap(), b"old");
    sh.pwrite(&fd, 0, "new").unwrap();
    assert_eq!(sh.read_all(&fd).await.unwrap(), b"new");
    sh.fsync(&fd).await.unwrap();
    sh.write_file("f", "another").await.unwrap();
    sh.close(fd).await.unwrap();
    assert_eq!(sh.history("f").await, ["another"]);
    assert_eq!(sh.cat("f").await, "another");
}

#[tokio::test(start_paused = true)]
async fn an_unlink_waits_for_a_save_on_its_way() {
    let sh = Arc::new(Shell::new());
    let fd = sh.open("f", CREATE).await.unwrap();
    sh.pwrite(&fd, 0, "x").unwrap();
    let mut gate = sh.vault.gate(Op::Create);
    let spawned = [true, false].map(|closes| {
        let sh = sh.clone();
        tokio::spawn(async move { if closes { sh.close(fd).await } else { sh.rm("f").await } })
    });
    gate.arrived(1).await;
    gate.release();
    for task in spawned {
        task.await.unwrap().unwrap();
    }
    assert!(sh.names().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn bytes_that_cannot_be_had_again_are_estale_never_others() {
    let sh = Shell::kv();
    sh.put("f", "old").await;
    let ino = sh.stat("f").await.unwrap().ino;
    sh.refresh().await;
    // The value leaves the cache, and the vault gives no old ones.
    let small = sh.remount_with(vaultfs::fs::Options { cache_size: 1, ..sh.fs.options().clone() });
    let held = small.stat("f").await.unwrap().ino;
    sh.put("f", "new").await;
    sh.put("other", "pushes it out").await;
    small.cat("other").await;
    // Others may have it open where the kernel opens files by itself.
    let read = small.once(|fs, ctx| async move { fs.read(&ctx, held, 0, 0, 100).await }).await;
    assert_eq!(read.map(|slice| slice.len()), Err(Errno::ESTALE));
    // Nobody has it open here: an open opens what there is, with its size.
    let opened = small.once(|fs, ctx| async move { fs.open(&ctx, held, READ).await }).await.unwrap();
    assert!(small.kernel.inodes.lock().unwrap().contains(&held));
    let read = small.once(|fs, ctx| async move { fs.read(&ctx, held, opened.fh, 0, 100).await }).await;
    assert_eq!(read.unwrap().expose(), b"new");
    assert_eq!(small.cat("f").await, "new");
    assert_eq!(
        sh.once(|fs, ctx| async move { fs.open(&ctx, ino, READ).await }).await.map(drop),
        Ok(()),
        "in memory here"
    );
}

#[tokio::test(start_paused = true)]
async fn of_replaced_inodes_that_nobody_opens_as_much_is_kept_as_the_cache_may_hold() {
    let options = vaultfs::fs::Options { read_only: true, cache_size: 2000, ..Default::default() };
    let sh = Shell::of(vaultfs::vault::testing::memory::KV_CAPABILITIES, options);
    let mut before = Vec::new();
    for name in ["a", "b", "c"] {
        sh.put(name, name.repeat(700)).await;
        before.push(sh.stat(name).await.unwrap().ino);
        sh.put(name, "new").await;
        sh.refresh().await;
        assert_ne!(sh.stat(name).await.unwrap().ino, before[before.len() - 1]);
    }
    for n in 0..20 {
        sh.put(&format!("other{n}"), "x".repeat(700)).await;
        sh.stat(&format!("other{n}")).await.unwrap();
    }
    // Without a handle, as the kernel reads where it opens files by itself.
    let mut read = Vec::new();
    for ino in before {
        let slice = sh.once(|fs, ctx| async move { fs.read(&ctx, ino, 0, 0, 4096).await }).await;
        read.push(slice.map(|slice| String::from_utf8_lossy(slice.expose()).into_owned()));
    }
    assert_eq!(read, [Ok("a".repeat(700)), Ok("b".repeat(700)), Err(Errno::ESTALE)]);
}
