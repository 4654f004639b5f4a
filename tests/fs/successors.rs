//! A worker dies, and the vault goes on without one: what its successor finds out is brought to the
//! kernel like any change.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use vaultfs::fs::{Create, Drain, Errno, FileSystem, Opened, Options, ROOT, RequestCtx, Step};
use vaultfs::vault::ErrorKind;
use vaultfs::vault::model::op::Op;
use vaultfs::vault::testing::faulty::Fault;

use crate::shell::helper::Helper;
use crate::shell::{CREATE, EXCL, READ, Shell, WRITE};

/// A mount with a helper; the kernel holds `names`.
async fn showing(sh: Shell, names: &[&str]) -> Shell {
    Helper::start(&sh);
    sh.pass(Duration::from_secs(10)).await;
    for name in names {
        sh.stat(name).await.unwrap();
    }
    sh.fs.propagator().refresh_now().await;
    assert_eq!(sh.kernel.helper.calls(), []);
    sh
}

/// The worker dies of the next record that it writes, and another one answers.
async fn death(sh: &Shell) {
    sh.die_after(0);
    sh.mkdir("made").await.unwrap();
    assert_eq!(sh.deaths.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn what_changed_while_there_was_no_worker_is_a_rotation_all_the_same() {
    for sh in [Shell::new(), Shell::kv()] {
        for name in ["changed", "deleted", "same", "open"] {
            sh.put(name, "old").await;
        }
        let sh = showing(sh, &["changed", "deleted", "same", "open"]).await;
        let held = sh.open("open", READ).await.unwrap();
        sh.put("changed", "newer and longer").await;
        sh.put("open", "new").await;
        sh.delete("deleted").await;
        death(&sh).await;
        sh.fs.propagator().refresh_now().await;
        let mut calls = sh.kernel.helper.calls();
        calls.sort();
        let brief: Vec<_> = calls.iter().map(|(op, path, _)| (*op, path.as_str())).collect();
        assert_eq!(brief, [("rename", "changed"), ("rename", "open"), ("unlink", "deleted")]);
        assert_eq!(sh.cat("changed").await, "newer and longer");
        assert_eq!(sh.stat("deleted").await, Err(Errno::ENOENT));
        assert_eq!(sh.cat("same").await, "old");
        assert_eq!(sh.read_all(&held).await.unwrap(), b"old");
        sh.close(held).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn of_many_names_those_are_asked_for_that_changed_since_the_last_tick_of_the_dead() {
    let sh = Shell::kv();
    for n in 0..150 {
        sh.put(&format!("n{n}"), "old").await;
    }
    let sh = showing(sh, &["n7"]).await;
    sh.pass(Duration::from_secs(3600)).await;
    sh.put("n8", "later").await;
    sh.fs.propagator().refresh_now().await;
    sh.kernel.helper.calls();
    sh.put("n7", "new").await;
    sh.pass(Duration::from_secs(600)).await;
    death(&sh).await;
    let ((), cost) = sh.cost(sh.fs.propagator().refresh_now()).await;
    let calls = sh.kernel.helper.calls();
    assert!(matches!(&calls[..], [("rename", path, Some(_))] if path == "n7"), "{calls:?}");
    assert!(cost <= 3, "{cost} requests: the first page, what changed, and the value");
}

#[tokio::test(start_paused = true)]
async fn a_rotation_that_the_dead_worker_owed_is_carried_out() {
    let sh = Shell::new();
    sh.put("f", "old").await;
    let sh = showing(sh, &["f"]).await;
    let fd = sh.open("f", WRITE).await.unwrap();
    sh.put("f", "theirs").await;
    sh.fs.propagator().refresh_now().await;
    assert_eq!(sh.kernel.helper.calls().len(), 1);
    // An update by who has the old inode open: the name is to show that again.
    sh.pwrite(&fd, 0, "our").unwrap();
    sh.close(fd).await.unwrap();
    death(&sh).await;
    sh.fs.propagator().flush_queue().await;
    assert_eq!(sh.kernel.helper.calls(), [("rename", "f".to_owned(), Some(fd.ino))]);
    // And only once.
    sh.die_after(0);
    sh.rmdir("made").await.unwrap();
    sh.fs.propagator().flush_queue().await;
    assert_eq!(sh.kernel.helper.calls(), []);
}

#[tokio::test(start_paused = true)]
async fn a_successor_that_is_refused_takes_away_what_the_dead_one_showed() {
    let sh = Shell::new();
    sh.put("f", "secret").await;
    let sh = showing(sh, &["f"]).await;
    let ino = sh.stat("f").await.unwrap().ino;
    let held = sh.open("f", READ).await.unwrap();
    death(&sh).await;
    sh.kernel.inodes.lock().unwrap().clear();
    sh.vault.plan_any().always().fail(Fault::Before(ErrorKind::Unauthorized));
    sh.fs.propagator().refresh_now().await;
    assert!(sh.kernel.inodes.lock().unwrap().contains(&ino), "the kernel's pages go");
    assert_eq!(sh.read_all(&held).await, Err(Errno::EACCES));
}

/// An open whose answer nobody gets: the worker dies before, and who asked is gone when another one
/// comes.
async fn lost_open<F>(sh: &Shell, work: impl FnOnce(Arc<FileSystem>, RequestCtx) -> F) -> u64
where
    F: Future<Output = Result<Opened, Errno>> + Send,
{
    let Step::Ready(opened) = sh.begin(work) else { panic!("its bytes are here") };
    death(sh).await;
    opened.unwrap().fh
}

#[tokio::test(start_paused = true)]
async fn a_handle_that_nobody_heard_of_counts_as_closed_in_a_while() {
    let sh = Shell::new();
    let create = Create { mode: 0o600, umask: 0, flags: EXCL };
    lost_open(&sh, |fs, ctx| async move {
        fs.create(&ctx, ROOT, OsStr::new("new"), create).await.map(|(_, opened)| opened)
    })
    .await;
    assert_eq!(sh.fs.status().handles, 1);
    assert_eq!(sh.meta("new").await, None, "its writer may come yet");
    let left = sh.fs.drain(Drain::Closed, Duration::ZERO).await;
    assert_eq!(left.len(), 1, "an unmount is refused meanwhile: {left:?}");
    sh.pass(Duration::from_secs(61)).await;
    assert_eq!(sh.fs.status().handles, 0);
    assert_eq!(sh.history("new").await, [""], "it was made, and is stored as if closed");
    assert!(sh.fs.drain(Drain::Closed, Duration::ZERO).await.is_empty(), "nothing holds an unmount up");
}

#[tokio::test(start_paused = true)]
async fn a_handle_whose_owner_was_silent_for_long_is_open_all_the_same() {
    let sh = Shell::new();
    sh.put("f", "text").await;
    let ino = sh.stat("f").await.unwrap().ino;
    let fh = lost_open(&sh, |fs, ctx| async move { fs.open(&ctx, ino, libc::O_RDWR).await }).await;
    sh.pass(Duration::from_secs(61)).await;
    assert_eq!(sh.fs.status().handles, 0);
    let text = sh.once(|fs, ctx| async move { fs.read(&ctx, ino, fh, 0, 100).await }).await.unwrap();
    assert_eq!(text.expose(), b"text");
    assert_eq!(sh.fs.status().handles, 1);
    sh.fs.write(fh, 0, b"T").unwrap();
    sh.once(|fs, ctx| async move { fs.flush(&ctx, fh).await }).await.unwrap();
    sh.once(|fs, ctx| async move { fs.release(&ctx, fh).await }).await.unwrap();
    assert_eq!(sh.fs.status().handles, 0);
    assert_eq!(sh.history("f").await, ["text", "Text"]);
    // Who is silent and was answered is not even asked about.
    let held = sh.open("f", READ).await.unwrap();
    sh.die_after(0);
    sh.rmdir("made").await.unwrap();
    sh.pass(Duration::from_secs(61)).await;
    assert_eq!(sh.fs.status().handles, 1);
    sh.close(held).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn unsaved_bytes_that_there_was_no_memory_for_are_not_stored_by_a_successor() {
    let sh = Shell::new();
    let open = sh.open("open", EXCL).await.unwrap();
    sh.miss_values();
    sh.pwrite(&open, 0, "is lost").unwrap();
    death(&sh).await;
    assert_eq!(sh.fsync(&open).await, Err(Errno::EIO));
    sh.pwrite(&open, 0, "more").unwrap();
    assert_eq!(sh.close(open).await, Err(Errno::EIO), "until it is written anew");
    assert_eq!(sh.meta("open").await, None);
    assert!(sh.fs.status().journal.is_some_and(|journal| journal.complete), "the new one misses nothing");
    sh.write_file("open", "anew").await.unwrap();
    assert_eq!(sh.history("open").await, ["anew"]);
}

#[tokio::test(start_paused = true)]
async fn strict_writes_hold_on_to_their_base_version_over_a_death() {
    let sh = Shell::with(Options { strict: true, ..Options::default() });
    sh.put("f", "base").await;
    sh.stat("f").await.unwrap();
    let fd = sh.open("f", WRITE).await.unwrap();
    sh.pwrite(&fd, 0, "mine").unwrap();
    death(&sh).await;
    sh.put("f", "theirs").await;
    assert_eq!(sh.fsync(&fd).await, Err(Errno::ESTALE));
    // Nor does the next one forget what its user has been told.
    sh.die_after(0);
    sh.rmdir("made").await.unwrap();
    assert_eq!(sh.fsync(&fd).await, Err(Errno::ESTALE));
    assert_eq!(sh.history("f").await, ["base", "theirs"]);
    let unsaved = sh.fs.unsaved();
    assert!(matches!(&unsaved[..], [one] if one.name == "f" && one.conflict), "{unsaved:?}");
}

#[tokio::test(start_paused = true)]
async fn bytes_that_the_vault_has_make_no_version_over_a_death() {
    for sh in [Shell::new(), Shell::kv()] {
        sh.put("f", "same").await;
        sh.cat("f").await;
        let fd = sh.open("f", CREATE).await.unwrap();
        sh.pwrite(&fd, 0, "same").unwrap();
        death(&sh).await;
        sh.close(fd).await.unwrap();
        assert_eq!(sh.history("f").await, ["same"]);
        // Others of that length, and what changed elsewhere meanwhile. (kv gives no bytes of old
        // versions.)
        for (theirs, versions) in [(None, 2), (Some("more"), 4)] {
            let fd = sh.open("f", CREATE).await.unwrap();
            sh.pwrite(&fd, 0, "ours").unwrap();
            sh.die_after(0);
            match theirs {
                None => sh.rmdir("made").await.unwrap(),
                Some(theirs) => {
                    sh.mkdir("made").await.unwrap();
                    sh.put("f", theirs).await;
                }
            }
            sh.close(fd).await.unwrap();
            let history = sh.history("f").await;
            assert_eq!((history.len(), history.last().map(String::as_str)), (versions, Some("ours")));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_save_that_was_out_at_a_death_is_no_conflict_with_itself_after_an_outage() {
    for sh in [Shell::new(), Shell::kv()] {
        sh.put("f", "old").await;
        let fd = sh.open("f", CREATE).await.unwrap();
        sh.pwrite(&fd, 0, "new").unwrap();
        let mut gate = sh.vault.gate(Op::Update);
        let dies = async {
            gate.arrived(1).await;
            // The vault makes the version, nobody hears of it, and is away when the successor would
            // ask.
            sh.die_after(0);
            sh.vault.outage();
            gate.release();
        };
        let (closed, ()) = tokio::join!(sh.close(fd), dies);
        closed.unwrap_err();
        assert_eq!(sh.deaths.load(std::sync::atomic::Ordering::Relaxed), 1);
        sh.vault.clear();
        sh.pass(Duration::from_secs(121)).await;
        let unsaved = sh.fs.unsaved();
        assert!(unsaved.is_empty(), "{unsaved:?}");
        // kv gives no bytes of old versions.
        let history = sh.history("f").await;
        assert_eq!((history.len(), history.last().map(String::as_str)), (2, Some("new")));
    }
}

/// The kernel opens what its lookup found before; the bytes of that version went with the worker.
#[tokio::test(start_paused = true)]
async fn an_open_whose_lookup_a_dead_worker_answered_opens_what_the_vault_has_now() {
    for (seen_by_others, flags) in [(false, READ), (true, READ), (false, WRITE), (true, WRITE)] {
        let sh = Shell::kv();
        sh.put("f", "old").await;
        let ino = sh.stat("f").await.unwrap().ino;
        let mut texts = vec!["old".to_owned()];
        // As often as you like: ESTALE would be for the program the second time.
        for saved in ["newer and longer", "new", "the newest of all"] {
            death(&sh).await;
            sh.pass(Duration::from_millis(10)).await;
            sh.put("f", saved).await;
            texts.push(saved.to_owned());
            if seen_by_others {
                assert_eq!(sh.cat("f").await, saved);
            }
            sh.kernel.inodes.lock().unwrap().clear();
            let opened = sh.once(|fs, ctx| async move { fs.open(&ctx, ino, flags).await }).await.unwrap();
            assert!(sh.kernel.inodes.lock().unwrap().contains(&ino), "the kernel has another size");
            assert_eq!(sh.fs.getattr(ino).unwrap().0.size, saved.len() as u64);
            let read =
                sh.once(|fs, ctx| async move { fs.read(&ctx, ino, opened.fh, 0, 100).await }).await.unwrap();
            assert_eq!(read.expose(), saved.as_bytes());
            if flags == WRITE {
                sh.fs.write(opened.fh, 0, b"MINE").unwrap();
                sh.once(|fs, ctx| async move { fs.flush(&ctx, opened.fh).await }).await.unwrap();
                texts.push(format!("MINE{}", saved.get(4..).unwrap_or_default()));
            }
            sh.once(|fs, ctx| async move { fs.release(&ctx, opened.fh).await }).await.unwrap();
            assert_eq!(sh.cat("f").await, *texts.last().unwrap());
            sh.rmdir("made").await.unwrap();
            sh.deaths.store(0, std::sync::atomic::Ordering::Relaxed);
        }
        assert_eq!(sh.history("f").await.len(), texts.len());
    }
}

/// The name shows an inode of a lookup between the two: the kernel may open that one next.
#[tokio::test(start_paused = true)]
async fn after_such_an_open_the_name_shows_no_older_version() {
    for (is_open, is_dirty) in [(false, false), (true, false), (true, true)] {
        let sh = Shell::kv();
        sh.put("f", "old").await;
        let ino = sh.stat("f").await.unwrap().ino;
        death(&sh).await;
        sh.put("f", "newer").await;
        let between = sh.stat("f").await.unwrap().ino;
        assert_ne!(between, ino);
        let fd = if is_open { Some(sh.open("f", WRITE).await.unwrap()) } else { None };
        if let Some(fd) = fd.as_ref().filter(|_| is_dirty) {
            sh.pwrite(fd, 0, "MINE!").unwrap();
        }
        sh.pass(Duration::from_millis(10)).await;
        sh.put("f", "the newest").await;
        let open = |ino| sh.once(move |fs, ctx| async move { fs.open(&ctx, ino, READ).await });
        if is_dirty {
            assert_eq!(open(ino).await, Err(Errno::ESTALE));
            assert_eq!(sh.cat("f").await, "MINE!");
            continue;
        }
        let opened = open(ino).await.unwrap();
        let read = sh.once(|fs, ctx| async move { fs.read(&ctx, ino, opened.fh, 0, 100).await }).await;
        assert_eq!(read.unwrap().expose(), b"the newest");
        assert_eq!(open(between).await, Err(Errno::ESTALE), "{is_open}");
        assert_eq!(sh.cat("f").await, "the newest");
        if let Some(fd) = fd {
            assert_eq!(sh.read_all(&fd).await.unwrap(), b"newer");
            sh.close(fd).await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_version_that_was_replaced_is_read_again_without_the_history_of_its_object() {
    let sh = Shell::new();
    sh.put("f", "old").await;
    let ino = sh.stat("f").await.unwrap().ino;
    death(&sh).await;
    for n in 0..300 {
        sh.put("f", format!("newer {n}")).await;
    }
    let (opened, cost) = sh.cost(sh.once(|fs, ctx| async move { fs.open(&ctx, ino, READ).await })).await;
    let fh = opened.unwrap().fh;
    let read = sh.once(|fs, ctx| async move { fs.read(&ctx, ino, fh, 0, 100).await }).await.unwrap();
    assert_eq!((read.expose(), cost), (&b"old"[..], 2), "what is current, and the version");
    assert_eq!(sh.vault.count(Op::Versions), 0);
}

fn opening(sh: &Shell, ino: u64) -> tokio::task::JoinHandle<Result<Opened, Errno>> {
    let step = sh.begin(move |fs, ctx| async move { fs.open(&ctx, ino, READ).await });
    tokio::spawn(async move {
        match step {
            Step::Ready(opened) => opened,
            Step::Pending(work) => work.await,
        }
    })
}

/// A file that the kernel knows in a version that is gone, under a kernel that forgets slowly.
async fn gone_version() -> (Shell, u64) {
    let sh = Shell::kv();
    sh.put("f", "old").await;
    let ino = sh.stat("f").await.unwrap().ino;
    death(&sh).await;
    sh.put("f", "newer and longer").await;
    sh.kernel.is_slow.store(true, std::sync::atomic::Ordering::Relaxed);
    (sh, ino)
}

#[tokio::test(start_paused = true)]
async fn such_an_open_waits_until_the_kernel_has_forgotten_the_size() {
    let (sh, ino) = gone_version().await;
    let opening = opening(&sh, ino);
    sh.pass(Duration::from_secs(1)).await;
    assert!(!opening.is_finished());
    sh.kernel.forget();
    opening.await.unwrap().unwrap();
}

/// Nor one that comes meanwhile, or again after another death, before which the kernel may not have
/// been notified.
#[tokio::test(start_paused = true)]
async fn no_other_open_is_answered_before_the_kernel_has_forgotten_the_size() {
    for dies in [false, true] {
        let (sh, ino) = gone_version().await;
        let first = opening(&sh, ino);
        sh.pass(Duration::from_secs(1)).await;
        if dies {
            first.abort();
            sh.rmdir("made").await.unwrap();
            sh.deaths.store(0, std::sync::atomic::Ordering::Relaxed);
            death(&sh).await;
            sh.kernel.inodes.lock().unwrap().clear();
        }
        let second = opening(&sh, ino);
        sh.pass(Duration::from_secs(1)).await;
        assert!(!second.is_finished(), "{dies}");
        assert!(sh.kernel.inodes.lock().unwrap().contains(&ino), "{dies}");
        sh.kernel.forget();
        second.await.unwrap().unwrap();
        assert_eq!(sh.fs.getattr(ino).unwrap().0.size, 16);
    }
}

#[tokio::test(start_paused = true)]
async fn such_an_open_is_stale_where_the_object_is_another_one_or_the_file_is_open() {
    let sh = Shell::kv();
    for name in ["gone", "anew", "open"] {
        sh.put(name, "old").await;
    }
    let inos = [sh.stat("gone").await.unwrap().ino, sh.stat("anew").await.unwrap().ino];
    let held = sh.open("open", READ).await.unwrap();
    death(&sh).await;
    sh.delete("gone").await;
    sh.delete("anew").await;
    sh.put("anew", "of another object").await;
    sh.put("open", "newer").await;
    for ino in inos {
        assert_eq!(
            sh.once(|fs, ctx| async move { fs.open(&ctx, ino, READ).await }).await,
            Err(Errno::ESTALE)
        );
    }
    assert_eq!(sh.stat("gone").await, Err(Errno::ENOENT));
    assert_eq!(sh.cat("anew").await, "of another object");
    // Who has it open goes on with what was opened.
    let again = sh.once(|fs, ctx| async move { fs.open(&ctx, held.ino, READ).await }).await.unwrap();
    for fh in [held.fh, again.fh] {
        assert_eq!(
            sh.once(|fs, ctx| async move { fs.read(&ctx, held.ino, fh, 0, 100).await })
                .await
                .unwrap()
                .expose(),
            b"old"
        );
    }
    assert_eq!(sh.cat("open").await, "newer");
}
