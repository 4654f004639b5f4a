//! Changes made elsewhere are brought to the kernel: a rename, an unlink, or a word to forget.
//! Local writers first.

use std::ffi::OsStr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use vaultfs::fs::{Caller, Errno, HelperReport, Options, ROOT, SetAttr, Step};
use vaultfs::vault::cache::ChangeKind;
use vaultfs::vault::model::op::Op;
use vaultfs::vault::testing::memory::{KV_CAPABILITIES, OBJECT_CAPABILITIES};

use crate::shell::helper::{Helper, PID};
use crate::shell::{Fd, READ, Shell};

/// A mount with a helper, that has seen all names once, a while after they were made.
async fn watched(sh: Shell) -> Shell {
    Helper::start(&sh);
    sh.pass(Duration::from_secs(10)).await;
    sh.fs.propagator().refresh_now().await;
    sh.ls("").await.unwrap();
    sh.fs.propagator().refresh_now().await;
    assert_eq!(sh.fs.status().changes.helper.state, "works");
    assert_eq!(sh.kernel.helper.calls(), []);
    sh
}

fn both() -> [Shell; 2] {
    [Shell::new(), Shell::kv()]
}

#[tokio::test(start_paused = true)]
async fn a_new_version_is_a_rename_and_the_old_inode_keeps_its_bytes() {
    for sh in both() {
        sh.put("f", "old").await;
        let sh = watched(sh).await;
        let before = sh.stat("f").await.unwrap();
        let fd = sh.open("f", READ).await.unwrap();
        sh.put("f", "newer and longer").await;
        sh.fs.propagator().refresh_now().await;
        let calls = sh.kernel.helper.calls();
        let [("rename", path, Some(ino))] = &calls[..] else { panic!("{calls:?}") };
        assert_eq!(path, "f");
        assert_ne!(*ino, before.ino);
        let (after, cost) = sh.cost(sh.stat("f")).await;
        assert_eq!((after.unwrap().ino, cost), (*ino, 0), "fetched before it was shown");
        assert_eq!(sh.cat("f").await, "newer and longer");
        assert_eq!(sh.read_all(&fd).await.unwrap(), b"old");
        sh.close(fd).await.unwrap();
        assert_eq!(sh.invalidated(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn creation_is_a_rename_and_deletion_an_unlink_and_neither_fetches() {
    for sh in both() {
        let sh = watched(sh).await;
        sh.put("d/f", "made elsewhere").await;
        sh.fs.propagator().refresh_now().await;
        assert_eq!(sh.kernel.helper.calls(), [], "the kernel does not know the directory");
        assert_eq!(sh.ls("d").await.unwrap(), ["f"]);
        sh.put("d/g", "made elsewhere").await;
        let reads = sh.vault.count(Op::GetByName);
        sh.fs.propagator().refresh_now().await;
        let calls = sh.kernel.helper.calls();
        assert!(matches!(&calls[..], [("rename", path, Some(_))] if path == "d/g"), "{calls:?}");
        assert_eq!(sh.vault.count(Op::GetByName), reads);
        assert_eq!(sh.cat("d/g").await, "made elsewhere");
        let fd = sh.open("d/g", READ).await.unwrap();
        sh.delete("d/g").await;
        sh.fs.propagator().refresh_now().await;
        assert_eq!(sh.kernel.helper.calls(), [("unlink", "d/g".to_owned(), None)]);
        assert_eq!(sh.stat("d/g").await, Err(Errno::ENOENT));
        assert_eq!(sh.read_all(&fd).await.unwrap(), b"made elsewhere");
        sh.close(fd).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_empties_elsewhere_is_forgotten_and_revives_as_the_same() {
    let sh = Shell::new();
    sh.put("d/f", "x").await;
    let sh = watched(sh).await;
    let dir = sh.stat("d").await.unwrap().ino;
    sh.cat("d/f").await;
    sh.delete("d/f").await;
    sh.fs.propagator().refresh_now().await;
    assert_eq!(sh.kernel.helper.calls(), [("unlink", "d/f".to_owned(), None)]);
    assert_eq!(sh.invalidated(), [(ROOT, "d".to_owned())], "never an rmdir");
    assert_eq!(sh.stat("d").await, Err(Errno::ENOENT));
    sh.put("d/g", "y").await;
    sh.fs.propagator().refresh_now().await;
    assert_eq!(sh.stat("d").await.unwrap().ino, dir);
    assert_eq!(sh.cat("d/g").await, "y");
}

#[tokio::test(start_paused = true)]
async fn of_several_versions_the_newest_is_shown() {
    let sh = Shell::new();
    sh.put("f", "1").await;
    let sh = watched(sh).await;
    sh.cat("f").await;
    for version in ["2", "3", "4"] {
        sh.put("f", version).await;
    }
    sh.fs.propagator().refresh_now().await;
    assert_eq!(sh.kernel.helper.calls().len(), 1);
    assert_eq!(sh.cat("f").await, "4");
    sh.fs.propagator().refresh_now().await;
    assert_eq!(sh.kernel.helper.calls(), []);
}

#[tokio::test(start_paused = true)]
async fn what_is_being_written_is_not_rotated_and_its_commit_decides() {
    let sh = Shell::new();
    sh.put("f", "old").await;
    let sh = watched(sh).await;
    let fd = sh.open("f", libc::O_RDWR).await.unwrap();
    sh.pwrite(&fd, 0, "our").unwrap();
    sh.put("f", "theirs").await;
    sh.fs.propagator().refresh_now().await;
    assert_eq!(sh.kernel.helper.calls(), []);
    assert_eq!(sh.cat("f").await, "our");
    sh.close(fd).await.unwrap();
    assert_eq!(sh.history("f").await, ["old", "theirs", "our"]);
    sh.fs.propagator().refresh_now().await;
    assert_eq!(sh.kernel.helper.calls(), [], "the name shows that inode all the time");
    assert_eq!((sh.cat("f").await.as_str(), sh.stat("f").await.unwrap().ino), ("our", fd.ino));
}

#[tokio::test(start_paused = true)]
async fn a_rotation_does_not_wait_for_an_fsync_in_flight_whose_commit_decides() {
    for sh in both() {
        sh.put("f", "old").await;
        sh.put("g", "old").await;
        let sh = watched(sh).await;
        sh.cat("g").await;
        let fd = sh.open("f", libc::O_RDWR).await.unwrap();
        sh.pwrite(&fd, 0, "our").unwrap();
        let mut gate = sh.vault.gate(Op::Update);
        let Step::Pending(fsync) = sh.begin(|fs, ctx| async move { fs.fsync(&ctx, fd.fh).await }) else {
            panic!("there is something to store")
        };
        let fsync = tokio::spawn(fsync);
        gate.arrived(1).await;
        sh.put("f", "theirs").await;
        sh.put("g", "theirs").await;
        let began = tokio::time::Instant::now();
        sh.fs.propagator().refresh_now().await;
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        let calls = sh.kernel.helper.calls();
        assert!(matches!(&calls[..], [("rename", path, Some(_))] if path == "g"), "{calls:?}");
        assert_eq!(sh.cat("f").await, "our");
        gate.release();
        fsync.await.unwrap().unwrap();
        sh.close(fd).await.unwrap();
        sh.fs.propagator().refresh_now().await;
        assert_eq!(sh.kernel.helper.calls(), [], "the name shows that inode all the time");
        assert_eq!((sh.cat("f").await.as_str(), sh.stat("f").await.unwrap().ino), ("our", fd.ino));
        assert_eq!(sh.history("f").await.last().unwrap(), "our");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rename_is_made_where_the_directory_is_now() {
    for sh in both() {
        let sh = watched(sh).await;
        sh.mkdir("before").await.unwrap();
        sh.mv("before", "after").await.unwrap();
        let ino = sh.stat("after").await.unwrap().ino;
        sh.put("after/f", "1").await;
        sh.put("before/g", "1").await;
        sh.fs.propagator().refresh_now().await;
        let calls = sh.kernel.helper.calls();
        assert!(matches!(&calls[..], [("rename", path, Some(_))] if path == "after/f"), "{calls:?}");
        assert_eq!(sh.stat("after").await.unwrap().ino, ino);
        assert_eq!(
            (sh.ls("after").await.unwrap(), sh.ls("before").await.unwrap()),
            (vec!["f".to_owned()], vec!["g".to_owned()])
        );
        sh.cat("after/f").await;
        sh.pass(Duration::from_secs(1)).await;
        sh.put("after/f", "2").await;
        sh.delete("before/g").await;
        sh.fs.propagator().refresh_now().await;
        let mut calls = sh.kernel.helper.calls();
        calls.sort();
        assert!(
            matches!(&calls[..], [("rename", f, Some(_)), ("unlink", g, None)] if f == "after/f" && g == "before/g"),
            "{calls:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_lookup_has_found_is_told_also_if_the_first_helper_dies_of_it() {
    let sh = Shell::new();
    sh.put("f", "old").await;
    let sh = watched(sh).await;
    sh.cat("f").await;
    sh.put("f", "new").await;
    sh.refresh().await;
    assert_eq!(sh.cat("f").await, "new", "found by a lookup");
    *sh.kernel.helper.is_dead.lock().unwrap() = true;
    let fs = sh.fs.clone();
    let rotation = tokio::spawn(async move { fs.propagator().refresh_now().await });
    sh.pass(Duration::from_secs(1)).await;
    assert!(!rotation.is_finished(), "the order was heard by nobody");
    Helper::start(&sh);
    rotation.await.unwrap();
    let calls = sh.kernel.helper.calls();
    assert!(matches!(&calls[..], [("rename", path, Some(_))] if path == "f"), "{calls:?}");
    assert_eq!(sh.fs.status().changes.done, 1);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_comes_between_order_and_rename_stops_it() {
    let sh = Shell::new();
    sh.put("f", "old").await;
    let sh = watched(sh).await;
    let fd = sh.open("f", libc::O_RDWR).await.unwrap();
    let fh = fd.fh;
    sh.kernel.helper.before_next(move |fs| assert_eq!(fs.write(fh, 0, b"our"), Ok(3)));
    sh.put("f", "theirs").await;
    sh.fs.propagator().refresh_now().await;
    assert_eq!(sh.kernel.helper.calls(), []);
    assert_eq!(sh.cat("f").await, "our");
    sh.close(fd).await.unwrap();
    assert_eq!(sh.history("f").await, ["old", "theirs", "our"]);
}

#[tokio::test(start_paused = true)]
async fn a_write_on_a_replaced_inode_is_an_update_and_the_name_is_rotated_to_it() {
    let sh = Shell::new();
    let id = sh.put("f", "old").await.id;
    let sh = watched(sh).await;
    let fd = sh.open("f", libc::O_RDWR).await.unwrap();
    sh.put("f", "theirs").await;
    sh.fs.propagator().refresh_now().await;
    assert_eq!(sh.kernel.helper.calls().len(), 1);
    assert_eq!(sh.cat("f").await, "theirs");
    sh.pwrite(&fd, 0, "our").unwrap();
    sh.close(fd).await.unwrap();
    sh.fs.propagator().flush_queue().await;
    assert_eq!(sh.history("f").await, ["old", "theirs", "our"]);
    assert_eq!(sh.meta("f").await.unwrap().id, id);
    assert_eq!(sh.kernel.helper.calls(), [("rename", "f".to_owned(), Some(fd.ino))]);
    assert_eq!((sh.cat("f").await.as_str(), sh.stat("f").await.unwrap().ino), ("our", fd.ino));
}

/// What an open of this inode gets, by whatever name the kernel came to it.
async fn opened(sh: &Shell, ino: u64, thread: u32) -> Result<Vec<u8>, Errno> {
    let caller = Caller { pid: thread, uid: 0, gid: 0 };
    let opened = sh.once_of(caller, |fs, ctx| async move { fs.open(&ctx, ino, READ).await }).await?;
    let bytes = sh
        .once(|fs, ctx| async move { fs.read(&ctx, ino, opened.fh, 0, 1 << 20).await })
        .await?
        .expose()
        .to_vec();
    sh.once(|fs, ctx| async move { fs.release(&ctx, opened.fh).await }).await?;
    Ok(bytes)
}

/// A descriptor of a file that was replaced by `theirs`, and the inode that the kernel knows under
/// its name. What was found out is not carried out before [`FileSystem::flush_queue`] and
/// [`FakeKernel::forget`].
async fn replaced(with_helper: bool) -> (Shell, Fd, u64) {
    let sh = Shell::new();
    sh.put("f", "old").await;
    let sh = if with_helper { watched(sh).await } else { sh };
    let fd = sh.open("f", libc::O_RDWR).await.unwrap();
    sh.put("f", "theirs").await;
    sh.pass(Duration::from_secs(10)).await;
    sh.fs.propagator().refresh_now().await;
    let shown = sh.stat("f").await.unwrap().ino;
    assert_ne!(shown, fd.ino);
    sh.kernel.helper.calls();
    sh.invalidated();
    sh.kernel.is_slow.store(true, Ordering::Relaxed);
    (sh, fd, shown)
}

#[tokio::test(start_paused = true)]
async fn a_save_through_a_replaced_inode_is_what_the_next_open_of_its_name_finds() {
    for (with_helper, dies) in [(true, false), (true, true), (false, false)] {
        let (sh, fd, shown) = replaced(with_helper).await;
        assert_eq!(opened(&sh, shown, 1).await.unwrap(), b"theirs");
        sh.pwrite(&fd, 0, "our").unwrap();
        sh.fsync(&fd).await.unwrap();
        if dies {
            sh.die_after(0);
            sh.bury();
        }
        // The kernel knows the inode from before: it looks the name up again.
        for thread in [2, 2, 3] {
            assert_eq!(opened(&sh, shown, thread).await, Err(Errno::ESTALE), "{thread}");
            let found = sh.stat("f").await.unwrap().ino;
            assert_eq!((found, opened(&sh, found, thread).await.unwrap()), (fd.ino, b"our".to_vec()));
        }
        let set = SetAttr { size: Some(1), ..SetAttr::default() };
        let caller = Caller { pid: 4, uid: 0, gid: 0 };
        let cut = sh.once_of(caller, |fs, ctx| async move { fs.setattr(&ctx, shown, None, set).await }).await;
        assert_eq!(cut.unwrap_err(), Errno::ESTALE, "truncate(2)");
        // A bind mount of that inode: it comes again, and is not sent about for ever.
        for _ in 0..2 {
            assert_eq!(opened(&sh, shown, 5).await, Err(Errno::ESTALE));
            assert_eq!(opened(&sh, shown, 5).await.unwrap(), b"theirs");
        }
        sh.fs.propagator().flush_queue().await;
        assert_eq!(opened(&sh, shown, 6).await, Err(Errno::ESTALE), "not before the kernel has heard of it");
        sh.kernel.forget();
        assert_eq!(opened(&sh, shown, 7).await, Err(Errno::ESTALE), "it may have been on its way");
        sh.pass(Duration::from_secs(31)).await;
        assert_eq!(opened(&sh, shown, 7).await.unwrap(), b"theirs");
        assert_eq!(opened(&sh, shown, 8).await.unwrap(), b"theirs");
        assert_eq!(sh.history("f").await, ["old", "theirs", "our"]);
        sh.close(fd).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_replaced_inode_that_is_written_again_at_once_is_at_its_name_all_the_same() {
    let (sh, fd, shown) = replaced(true).await;
    sh.pwrite(&fd, 0, "our").unwrap();
    sh.fsync(&fd).await.unwrap();
    sh.pwrite(&fd, 0, "next").unwrap();
    sh.fs.propagator().flush_queue().await;
    assert_eq!(sh.kernel.helper.calls(), [], "it is being written");
    assert_eq!(sh.invalidated(), [(ROOT, "f".to_owned())]);
    assert_eq!(opened(&sh, shown, 1).await, Err(Errno::ESTALE));
    sh.close(fd).await.unwrap();
    assert_eq!(sh.cat("f").await, "next");
}

#[tokio::test(start_paused = true)]
async fn who_watches_is_told_of_a_save_that_a_lookup_found_before() {
    let (sh, fd, _) = replaced(true).await;
    sh.pwrite(&fd, 0, "our").unwrap();
    sh.fsync(&fd).await.unwrap();
    // The kernel knows of it: a rename of the inode to its own name is none.
    *sh.kernel.helper.knows.lock().unwrap() = true;
    sh.fs.propagator().flush_queue().await;
    let calls = sh.kernel.helper.calls();
    assert!(
        matches!(&calls[..], [("rename", path, Some(ino))] if path == "f" && *ino != fd.ino),
        "{calls:?}"
    );
    assert_eq!(sh.cat("f").await, "our");
    sh.pwrite(&fd, 0, "again").unwrap();
    sh.close(fd).await.unwrap();
    assert_eq!(sh.cat("f").await, "again");
    assert_eq!(sh.history("f").await, ["old", "theirs", "our", "again"]);
}

/// Whatever was ordered before the save.
#[tokio::test(start_paused = true)]
async fn a_save_while_a_change_is_on_its_way_stays_at_its_name() {
    for is_deleted in [false, true] {
        let sh = Shell::new();
        sh.put("f", "old").await;
        let sh = watched(sh).await;
        let fd = sh.open("f", libc::O_RDWR).await.unwrap();
        let fh = fd.fh;
        sh.kernel.helper.before_next(move |fs| {
            assert_eq!(fs.write(fh, 0, b"our"), Ok(3));
            let caller = Caller { pid: 0, uid: 0, gid: 0 };
            let fsync = fs.run(1 << 40, caller, |fs, ctx| async move { fs.fsync(&ctx, fh).await });
            let Step::Pending(fsync) = fsync else { panic!("there is something to store") };
            fsync.now_or_never().expect("the vault answers at once").unwrap();
        });
        match is_deleted {
            true => sh.delete("f").await,
            false => drop(sh.put("f", "theirs").await),
        }
        sh.fs.propagator().refresh_now().await;
        let calls = sh.kernel.helper.calls();
        let shown = (sh.cat("f").await, sh.stat("f").await.unwrap().ino);
        assert_eq!(shown, ("our".to_owned(), fd.ino), "deleted: {is_deleted}, {calls:?}");
        sh.close(fd).await.unwrap();
        sh.fs.propagator().refresh_now().await;
        assert_eq!((sh.cat("f").await.as_str(), sh.stat("f").await.unwrap().ino), ("our", fd.ino));
    }
}

/// A save through the descriptor brings the name back, and the kernel would go on without asking.
#[tokio::test(start_paused = true)]
async fn the_name_of_a_file_that_is_open_for_writing_is_absent_for_no_time() {
    for name in ["f", "d/f"] {
        let sh = Shell::new();
        sh.put(name, "old").await;
        sh.put("other", "x").await;
        let sh = watched(sh).await;
        let fd = sh.open(name, libc::O_RDWR).await.unwrap();
        sh.delete(name).await;
        sh.fs.propagator().refresh_now().await;
        let first = OsStr::new(&name[..1]);
        assert_eq!(sh.lookup(ROOT, &name[..1]).await.unwrap(), None);
        assert_eq!(sh.fs.absent_for(ROOT, first), Duration::ZERO);
        sh.pwrite(&fd, 0, "our").unwrap();
        sh.close(fd).await.unwrap();
        assert_eq!(sh.cat(name).await, "our");
        sh.delete(name).await;
        sh.fs.propagator().refresh_now().await;
        assert_eq!(sh.lookup(ROOT, &name[..1]).await.unwrap(), None);
        assert!(sh.fs.absent_for(ROOT, first) > Duration::ZERO);
    }
}

#[tokio::test(start_paused = true)]
async fn normalised_json_appears_as_a_rotation() {
    let sh = Shell::new();
    let json = b"{\n  \"a\": 1\n}\n".to_vec();
    let form = vaultfs::vault::Form::Structured;
    let bytes = std::sync::Arc::new(vaultfs::secret::SecretBytes::new(json));
    sh.put_content("f", vaultfs::vault::Content { bytes, form }).await;
    let sh = watched(sh).await;
    let ino = sh.stat("f").await.unwrap().ino;
    sh.write_file("f", "{\"a\":2}").await.unwrap();
    sh.fs.propagator().flush_queue().await;
    let calls = sh.kernel.helper.calls();
    assert!(matches!(&calls[..], [("rename", path, Some(new))] if path == "f" && *new != ino), "{calls:?}");
    assert_eq!(sh.cat("f").await, "{\n  \"a\": 2\n}\n");
}

#[tokio::test(start_paused = true)]
async fn a_rename_waits_for_what_is_out_in_its_directory_or_of_its_file() {
    let sh = Shell::new();
    sh.put("f", "old").await;
    let sh = watched(sh).await;
    let fd = sh.open("f", libc::O_RDWR).await.unwrap();
    sh.put("f", "theirs").await;
    sh.pass(Duration::from_secs(1)).await;
    // A lookup of the directory that the vault does not answer for a while.
    sh.refresh().await;
    let lookup = sh.begin(|fs, ctx| async move { fs.lookup(&ctx, ROOT, OsStr::new("absent")).await });
    assert!(matches!(lookup, Step::Pending(_)), "nothing is fresh");
    let fs = sh.fs.clone();
    let rotation = tokio::spawn(async move { fs.propagator().refresh_now().await });
    sh.pass(Duration::from_secs(3)).await;
    assert_eq!(sh.kernel.helper.calls(), []);
    drop(lookup);
    rotation.await.unwrap();
    assert_eq!(sh.kernel.helper.calls().len(), 1);
    sh.close(fd).await.unwrap();
}

/// The save is not fresh any more when the rename is made.
#[tokio::test(start_paused = true)]
async fn a_rename_that_was_ordered_long_before_a_save_does_not_undo_it() {
    for capabilities in [OBJECT_CAPABILITIES, KV_CAPABILITIES] {
        let refresh = Duration::from_millis(100);
        let sh = Shell::of(capabilities, Options { refresh, ..Options::default() });
        sh.put("f", "old").await;
        let sh = watched(sh).await;
        let fd = sh.open("f", libc::O_RDWR).await.unwrap();
        sh.put("f", "theirs").await;
        sh.kernel.helper.hold();
        let fs = sh.fs.clone();
        let rotation = tokio::spawn(async move { fs.propagator().refresh_now().await });
        while !sh.kernel.helper.holds_any() {
            sh.pass(refresh / 10).await;
        }
        sh.pwrite(&fd, 0, "our").unwrap();
        sh.flush(&fd).await.unwrap();
        sh.pass(3 * refresh).await;
        sh.kernel.helper.release(&sh.fs);
        rotation.await.unwrap();
        assert_eq!(sh.kernel.helper.calls(), []);
        assert_eq!(sh.stat("f").await.unwrap().ino, fd.ino);
        assert_eq!(sh.cat("f").await, "our");
        sh.close(fd).await.unwrap();
        assert_eq!(sh.history("f").await.len(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_helper_or_where_it_fails_the_kernel_is_told_to_forget() {
    for errno in [None, Some(libc::EACCES), Some(libc::EROFS), Some(libc::EBUSY)] {
        let sh = Shell::new();
        sh.put("f", "old").await;
        if errno.is_some() {
            Helper::start(&sh);
        }
        sh.cat("f").await;
        sh.ls("").await.unwrap();
        *sh.kernel.helper.fails.lock().unwrap() = errno;
        sh.put("f", "new").await;
        sh.put("g", "new").await;
        sh.fs.propagator().refresh_now().await;
        assert_eq!(sh.invalidated(), [(ROOT, "f".to_owned()), (ROOT, "g".to_owned())], "{errno:?}");
        assert!(sh.kernel.inodes.lock().unwrap().contains(&ROOT), "listings that the kernel keeps");
        let status = sh.fs.status().changes.helper;
        assert_eq!(status.fallbacks, 2);
        assert!(status.last_fallback.is_some());
        assert_eq!(sh.cat("f").await, "new");
    }
}

#[tokio::test(start_paused = true)]
async fn a_helper_that_dies_is_succeeded_and_the_rotation_goes_on() {
    let sh = Shell::new();
    sh.put("f", "old").await;
    let sh = watched(sh).await;
    sh.cat("f").await;
    *sh.kernel.helper.is_dead.lock().unwrap() = true;
    sh.put("f", "new").await;
    let fs = sh.fs.clone();
    let rotation = tokio::spawn(async move { fs.propagator().refresh_now().await });
    sh.pass(Duration::from_secs(1)).await;
    assert!(!rotation.is_finished(), "the order was heard by nobody");
    assert_eq!(sh.cat("f").await, "new", "and no request waits for it");
    Helper::start(&sh);
    rotation.await.unwrap();
    // Looked up meanwhile, the name shows the version already.
    sh.put("f", "newest").await;
    sh.fs.propagator().refresh_now().await;
    assert!(!sh.kernel.helper.calls().is_empty());
    assert_eq!(sh.cat("f").await, "newest");
}

#[tokio::test(start_paused = true)]
async fn nothing_but_what_is_registered_is_done_for_the_helper() {
    let sh = Shell::new();
    sh.put("f", "x").await;
    let sh = watched(sh).await;
    sh.cat("f").await;
    let before = sh.vault.total();
    let f = OsStr::new("f");
    assert!(
        sh.fs.propagator().is_helper(PID)
            && !sh.fs.propagator().is_helper(PID + 1)
            && !sh.fs.propagator().is_helper(0)
    );
    assert_eq!(sh.fs.propagator().helper_lookup(PID, ROOT, f), Some(Err(Errno::EPERM)));
    assert_eq!(sh.fs.propagator().helper_unlink(PID, ROOT, f), Some(Err(Errno::EPERM)));
    assert_eq!(
        sh.fs.propagator().helper_rename(PID, (ROOT, f), (ROOT, OsStr::new("g"))),
        Some(Err(Errno::EPERM))
    );
    assert_eq!(
        sh.fs.propagator().helper_setattr(PID, sh.stat("f").await.unwrap().ino),
        Some(Err(Errno::EPERM))
    );
    // Others: an ordinary request, or a hidden name that is nobody's.
    assert_eq!(sh.fs.propagator().helper_lookup(PID + 1, ROOT, f), None);
    assert_eq!(sh.fs.propagator().helper_unlink(PID + 1, ROOT, f), None);
    assert_eq!(sh.fs.propagator().helper_lookup(PID + 1, ROOT, OsStr::new(".%2E0123")), Some(Ok(None)));
    assert_eq!(sh.vault.total(), before);
    sh.fs.propagator().helper_reports(HelperReport::Leaving);
    assert!(!sh.fs.propagator().is_helper(PID));
}

#[tokio::test(start_paused = true)]
async fn in_place_the_same_inode_changes_and_its_time_is_set() {
    let sh = Shell::with(Options { in_place: true, ..Options::default() });
    sh.put("f", "old").await;
    let sh = watched(sh).await;
    let before = sh.stat("f").await.unwrap();
    let fd = sh.open("f", READ).await.unwrap();
    sh.put("f", "newer and longer").await;
    sh.fs.propagator().refresh_now().await;
    assert_eq!(sh.kernel.helper.calls(), [("touch", "f".to_owned(), Some(before.ino))]);
    assert!(sh.kernel.inodes.lock().unwrap().contains(&before.ino), "its pages are forgotten");
    assert_eq!(
        sh.read_all(&fd).await.unwrap(),
        b"newer and longer",
        "an open file changes too: that is the price"
    );
    assert_eq!(sh.stat("f").await.unwrap().ino, before.ino);
    // Found by a lookup rather than a tick.
    sh.put("f", "newest").await;
    sh.refresh().await;
    assert_eq!(sh.stat("f").await.unwrap().ino, before.ino);
    assert_eq!(sh.read_all(&fd).await.unwrap(), b"newest");
    sh.close(fd).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_hears_of_each_change_once_and_of_none_of_our_own() {
    for sh in both() {
        sh.put("f", "1").await;
        sh.put("g", "1").await;
        let sh = watched(sh).await;
        let mut changes = sh.fs.propagator().subscribe();
        sh.write_file("ours", "1").await.unwrap();
        sh.write_file("f", "ours").await.unwrap();
        sh.fs.propagator().refresh_now().await;
        assert!(changes.try_recv().is_err(), "our own changes are no news");
        sh.put("f", "2").await;
        sh.put("h", "1").await;
        sh.delete("g").await;
        // Whoever sees it first.
        sh.refresh().await;
        sh.cat("f").await;
        sh.fs.propagator().refresh_now().await;
        sh.fs.propagator().refresh_now().await;
        let mut heard = Vec::new();
        while let Ok(change) = changes.try_recv() {
            heard.push((change.name.as_str().to_owned(), change.kind));
        }
        heard.sort_by(|a, b| a.0.cmp(&b.0));
        let told = |name: &str, kind| (name.to_owned(), kind);
        let expected =
            [told("f", ChangeKind::Changed), told("g", ChangeKind::Deleted), told("h", ChangeKind::Created)];
        assert_eq!(heard, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_tick_is_one_request_in_kv_and_one_a_hundred_names_in_the_object_dialect() {
    for (capabilities, names, expected) in [
        (KV_CAPABILITIES, 50, 1),
        (KV_CAPABILITIES, 250, 1),
        (OBJECT_CAPABILITIES, 50, 1),
        (OBJECT_CAPABILITIES, 250, 3),
    ] {
        let sh = Shell::of(capabilities, Options::default());
        for n in 0..names {
            sh.put(&format!("n{n}"), "x").await;
        }
        let sh = watched(sh).await;
        sh.refresh().await;
        let ((), cost) = sh.cost(sh.fs.propagator().refresh_now()).await;
        assert_eq!(cost, expected, "{names}");
        sh.put("n7", "changed").await;
        let ((), cost) = sh.cost(sh.fs.propagator().refresh_now()).await;
        assert_eq!(cost, expected, "{names}");
        assert_eq!(sh.kernel.helper.calls().len(), 1);
        // Everything is confirmed: what is known needs no request.
        sh.cat("n3").await;
        sh.pass(Duration::from_secs(4)).await;
        sh.fs.propagator().refresh_now().await;
        sh.pass(Duration::from_secs(4)).await;
        let (bytes, cost) = sh.cost(sh.cat("n3")).await;
        assert_eq!((bytes.as_str(), cost), ("x", 0));
        let (absent, cost) = sh.cost(sh.stat("absent")).await;
        assert_eq!((absent, cost), (Err(Errno::ENOENT), 0));
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_mount_sends_nothing_and_one_in_use_asks_each_tick() {
    let sh = Shell::new();
    sh.put("f", "1").await;
    sh.fs.propagator().follow_changes();
    sh.pass(Duration::from_secs(3600)).await;
    assert_eq!(sh.vault.total(), 0, "nobody has used it yet");
    sh.cat("f").await;
    let ((), cost) = sh.cost(sh.pass(Duration::from_secs(50))).await;
    assert!((10..=13).contains(&cost), "about one every 5 s, and not {cost}");
    sh.pass(Duration::from_secs(60)).await;
    let ((), cost) = sh.cost(sh.pass(Duration::from_secs(3600))).await;
    assert_eq!(cost, 0, "nobody has used it for as long as the kernel may go without asking");
    sh.put("f", "2").await;
    assert_eq!(sh.cat("f").await, "2", "what was known before is not believed");
    // Somebody who wants to know keeps it awake.
    sh.pass(Duration::from_secs(600)).await;
    let changes = sh.fs.propagator().subscribe();
    let ((), cost) = sh.cost(sh.pass(Duration::from_secs(600))).await;
    assert!(cost > 100, "{cost}");
    drop(changes);
    sh.pass(Duration::from_secs(600)).await;
    // And so does who watches.
    sh.kernel.watched.store(true, std::sync::atomic::Ordering::Relaxed);
    sh.cat("f").await;
    sh.pass(Duration::from_secs(600)).await;
    let ((), cost) = sh.cost(sh.pass(Duration::from_secs(600))).await;
    assert!(cost > 100, "{cost}");
    sh.kernel.watched.store(false, std::sync::atomic::Ordering::Relaxed);
    sh.pass(Duration::from_secs(90)).await;
    let ((), cost) = sh.cost(sh.pass(Duration::from_secs(600))).await;
    assert_eq!(cost, 0);
}
