//! Inode numbers and times: the same in every mount, below 2^32, and never given to two inodes at a
//! time.

use std::time::Duration;

use vaultfs::fs::{Errno, FileKind, Options, SetAttr};
use vaultfs::vault::testing::memory::{MemoryVault, OBJECT_CAPABILITIES};

use crate::shell::{CREATE, READ, Shell, WRITE};

async fn numbers(sh: &Shell, paths: &[&str]) -> Vec<u64> {
    let mut all = Vec::new();
    for path in paths {
        all.push(sh.stat(path).await.unwrap_or_else(|e| panic!("{path}: {e:?}")).ino);
    }
    all
}

#[tokio::test(start_paused = true)]
async fn numbers_are_the_same_in_every_mount_and_short() {
    let sh = Shell::with(Options { vault: "https://vault.example".into(), ..Options::default() });
    for name in ["f", "d/f", "d/e/g", "x y"] {
        sh.put(name, "1").await;
    }
    let paths =
        ["", "d", "d/e", "f", "d/f", "d/e/g", "x y", ".versions", ".versions/f", ".versions/f/1", ".vaultfs"];
    let first = numbers(&sh, &paths).await;
    let again = sh.remount();
    let mut backwards = paths;
    backwards.reverse();
    let mut second = numbers(&again, &backwards).await;
    second.reverse();
    assert_eq!(first, second, "in whatever order they are looked up");
    assert!(first.iter().all(|ino| *ino < 0xffff_ffff && *ino > 0), "{first:?}");
    let mut others = first.clone();
    others.sort_unstable();
    others.dedup();
    assert_eq!(others.len(), first.len());
    let elsewhere = sh.remount_with(Options { vault: "https://other.example".into(), ..Options::default() });
    assert_ne!(numbers(&elsewhere, &paths[1..]).await, first[1..]);
}

#[tokio::test(start_paused = true)]
async fn a_new_version_has_another_number_while_the_old_one_is_held() {
    let sh = Shell::new();
    sh.put("f", "1").await;
    let reader = sh.open("f", READ).await.unwrap();
    let first = reader.ino;
    sh.put("f", "22").await;
    sh.refresh().await;
    let second = sh.stat("f").await.unwrap().ino;
    assert_ne!(first, second);
    assert_eq!(sh.read_all(&reader).await.unwrap(), b"1");
    sh.close(reader).await.unwrap();
    sh.forget_all();
    let third = sh.stat("f").await.unwrap();
    assert_eq!((third.ino, third.size), (first, 2), "nobody holds the old one");
    assert_eq!(sh.remount().stat("f").await.unwrap().ino, first);
}

#[tokio::test(start_paused = true)]
async fn a_directory_made_after_rmdir_is_another_one() {
    let sh = Shell::new();
    let held = sh.mkdir("d").await.unwrap().ino;
    sh.rmdir("d").await.unwrap();
    assert_eq!(sh.fs.getattr(held).unwrap().0.nlink, 0);
    let made = sh.mkdir("d").await.unwrap().ino;
    assert_ne!(held, made);
    sh.write_file("d/f", "x").await.unwrap();
    assert_eq!(sh.lookup(held, "f").await, Err(Errno::ENOENT), "the old one stays dead");
    assert_eq!(sh.create(held, "g", CREATE, 0o600).await.unwrap_err(), Errno::ENOENT);
    assert_eq!(sh.ls("d").await.unwrap(), ["f"]);
    sh.rm("d/f").await.unwrap();
    sh.rmdir("d").await.unwrap();
    sh.put("d/elsewhere", "y").await;
    sh.refresh().await;
    let third = sh.stat("d").await.unwrap().ino;
    assert!(![held, made].contains(&third), "so is one that others make");
    assert_eq!(sh.cat("d/elsewhere").await, "y");
    sh.forget_all();
    assert_eq!(sh.stat("d").await.unwrap().ino, third, "and it stays");
}

#[tokio::test(start_paused = true)]
async fn a_number_that_is_held_is_not_given_again_over_takeovers() {
    let sh = Shell::new();
    let held = sh.mkdir("d").await.unwrap().ino;
    sh.rmdir("d").await.unwrap();
    sh.die_after(0);
    let made = sh.mkdir("d").await.unwrap().ino;
    assert!(sh.deaths.load(std::sync::atomic::Ordering::Relaxed) > 0);
    assert_ne!(held, made);
    assert_eq!(sh.lookup(held, "f").await, Err(Errno::ENOENT));
    sh.write_file("d/f", "x").await.unwrap();
    let (fd, file) = (sh.open("d/f", READ).await.unwrap(), sh.stat("d/f").await.unwrap().ino);
    sh.rm("d/f").await.unwrap();
    sh.die_after(0);
    sh.write_file("d/f", "anew").await.unwrap();
    assert_ne!(sh.stat("d/f").await.unwrap().ino, file);
    assert_eq!(sh.read_all(&fd).await.unwrap(), b"x");
    sh.close(fd).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn files_and_directories_take_each_others_names() {
    let sh = Shell::new();
    let dir = sh.mkdir("n").await.unwrap().ino;
    sh.rmdir("n").await.unwrap();
    sh.write_file("n", "a file").await.unwrap();
    assert_eq!(sh.cat("n").await, "a file");
    sh.rm("n").await.unwrap();
    let again = sh.mkdir("n").await.unwrap().ino;
    assert_ne!(dir, again);
    sh.write_file("n/f", "x").await.unwrap();
    assert_eq!(sh.ls("n").await.unwrap(), ["f"]);
    sh.mkdir("s").await.unwrap();
    let moved = sh.stat("s").await.unwrap().ino;
    sh.mv("s", "s.bak").await.unwrap();
    assert_ne!(sh.mkdir("s").await.unwrap().ino, moved);
    sh.write_file("s/f", "x").await.unwrap();
    assert_eq!((sh.stat("s.bak").await.unwrap().ino, sh.ls("s.bak").await.unwrap()), (moved, vec![]));
    // A directory that is renamed over an empty one: that one is dead.
    sh.rm("s/f").await.unwrap();
    let over = sh.stat("s").await.unwrap().ino;
    sh.mv("s.bak", "s").await.unwrap();
    assert_eq!(sh.stat("s").await.unwrap().ino, moved);
    assert_eq!(sh.lookup(over, "f").await, Err(Errno::ENOENT));
    sh.write_file("s/g", "y").await.unwrap();
    assert_eq!(sh.ls("s").await.unwrap(), ["g"]);
}

#[tokio::test(start_paused = true)]
async fn an_empty_directory_made_here_gives_way_to_an_object_of_its_name() {
    let sh = Shell::new();
    let dir = sh.mkdir("late").await.unwrap().ino;
    sh.put("late", "a secret").await;
    sh.refresh().await;
    assert_eq!(sh.stat("late").await.unwrap().kind, FileKind::Regular);
    assert_eq!(
        (sh.cat("late").await, sh.ls("").await.unwrap()),
        ("a secret".into(), vec!["late".to_owned()])
    );
    assert_eq!(sh.lookup(dir, "x").await, Err(Errno::ENOENT));
    assert_eq!(sh.create(dir, "x", CREATE, 0o600).await.unwrap_err(), Errno::ENOENT);
    // What has something in it stays; the object is in it.
    sh.mkdir("full").await.unwrap();
    sh.write_file("full/f", "x").await.unwrap();
    sh.mkdir("deep").await.unwrap();
    sh.mkdir("deep/er").await.unwrap();
    sh.put("full", "y").await;
    sh.put("deep", "z").await;
    sh.refresh().await;
    assert_eq!(sh.ls("full").await.unwrap(), [".self", "f"]);
    assert_eq!(sh.ls("deep").await.unwrap(), [".self", "er/"]);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_stored_after_its_close_keeps_its_times() {
    let clock = Shell::paused();
    let ahead = Duration::from_secs(2);
    let vaults = std::sync::Arc::new(Skewed { clock: clock.clone(), behind: Duration::ZERO, ahead });
    let memory = std::sync::Arc::new(MemoryVault::new(OBJECT_CAPABILITIES, vaults));
    let sh = Shell::mounted(memory, clock, Options::default());
    // Without a write nothing is stored before the release; a retry comes after a close that
    // failed.
    let fd = sh.open("empty", CREATE).await.unwrap();
    sh.close(fd).await.unwrap();
    sh.write_file("old", "value").await.unwrap();
    let fd = sh.open("old", WRITE | libc::O_TRUNC).await.unwrap();
    sh.close(fd).await.unwrap();
    for name in ["empty", "old"] {
        let closed = sh.stat(name).await.unwrap();
        sh.pass(Duration::from_secs(60)).await;
        sh.refresh().await;
        let later = sh.stat(name).await.unwrap();
        assert_eq!((later.mtime, later.ctime, later.size), (closed.mtime, closed.ctime, 0), "{name}");
        assert!(sh.fs.status().unsaved.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_save_has_the_vaults_time_before_its_close_returns() {
    for (behind, ahead) in
        [(Duration::ZERO, Duration::from_secs(2)), (Duration::from_secs(2), Duration::ZERO)]
    {
        let clock = Shell::paused();
        let vaults = std::sync::Arc::new(Skewed { clock: clock.clone(), behind, ahead });
        let memory = std::sync::Arc::new(MemoryVault::new(OBJECT_CAPABILITIES, vaults));
        let sh = Shell::mounted(memory, clock, Options::default());
        let fd = sh.open("f", CREATE).await.unwrap();
        sh.pass(Duration::from_millis(3)).await;
        sh.pwrite(&fd, 0, "x").unwrap();
        sh.pass(Duration::from_millis(50)).await;
        let (_, ttl) = sh.fs.getattr(fd.ino).unwrap();
        assert_eq!(ttl, Duration::ZERO, "nobody keeps the time that a file has until it is stored");
        sh.close(fd).await.unwrap();
        let stored = sh.stat("f").await.unwrap();
        assert_eq!(stored.mtime, stored.ctime);
        for sh in [&sh.remount(), &sh] {
            sh.refresh().await;
            let later = sh.stat("f").await.unwrap();
            assert_eq!((later.mtime, later.ctime, later.ino), (stored.mtime, stored.ctime, stored.ino));
        }
        sh.truncate("f", 0).await.unwrap();
        sh.chmod("f", 0o640).await.unwrap();
        let fd = sh.open("f", WRITE).await.unwrap();
        sh.pwrite(&fd, 0, "yy").unwrap();
        sh.fsync(&fd).await.unwrap();
        let synced = sh.fstat(&fd);
        sh.close(fd).await.unwrap();
        let cold = sh.remount().stat("f").await.unwrap();
        assert_eq!((cold.mtime, cold.ctime), (synced.mtime, synced.ctime));
    }
}

#[tokio::test(start_paused = true)]
async fn what_utimens_set_on_a_version_holds_for_it() {
    let sh = Shell::new();
    let then = sh.fs.now() - Duration::from_secs(1_000_000);
    let fd = sh.open("f", CREATE).await.unwrap();
    sh.pwrite(&fd, 0, "x").unwrap();
    let set = SetAttr { mtime: Some(then), ..SetAttr::default() };
    sh.once(|fs, ctx| async move { fs.setattr(&ctx, fd.ino, Some(fd.fh), set).await }).await.unwrap();
    sh.close(fd).await.unwrap();
    assert_eq!(sh.stat("f").await.unwrap().mtime, then);
    let fd = sh.open("f", WRITE).await.unwrap();
    sh.once(|fs, ctx| async move { fs.setattr(&ctx, fd.ino, Some(fd.fh), set).await }).await.unwrap();
    sh.pwrite(&fd, 0, "y").unwrap();
    sh.close(fd).await.unwrap();
    let written = sh.stat("f").await.unwrap();
    assert!(written.mtime > then, "written after it was set");
    assert_eq!(sh.remount().stat("f").await.unwrap().mtime, written.mtime);
}

/// A clock that is off.
#[derive(Debug)]
struct Skewed {
    clock: std::sync::Arc<dyn vaultfs::clock::Clock>,
    behind: Duration,
    ahead: Duration,
}

impl vaultfs::clock::Clock for Skewed {
    fn now(&self) -> std::time::Instant {
        self.clock.now()
    }
    fn wall(&self) -> std::time::SystemTime {
        self.clock.wall() + self.ahead - self.behind
    }
    fn since_boot(&self) -> Duration {
        self.clock.since_boot()
    }
}
