//! Directories: implied by names, made in memory, emptied and revived; modes, ceilings and
//! refusals.

use std::time::Duration;

use vaultfs::fs::{Errno, FileKind, Options, SetAttr};
use vaultfs::vault::model::op::Op;

use crate::shell::{CREATE, Shell, WRITE};

#[tokio::test(start_paused = true)]
async fn a_made_directory_is_in_memory_until_an_object_is_in_it() {
    let sh = Shell::new();
    let made = sh.mkdir("d").await.unwrap();
    assert_eq!(sh.mkdir("d").await, Err(Errno::EEXIST));
    sh.mkdir("d/e").await.unwrap();
    assert!(sh.names().await.is_empty());
    assert_eq!(
        (sh.ls("").await.unwrap(), sh.ls("d").await.unwrap()),
        (vec!["d/".into()], vec!["e/".to_owned()])
    );
    sh.write_file("d/e/f", "x").await.unwrap();
    assert_eq!(sh.names().await, ["d/e/f"]);
    assert_eq!(sh.stat("d").await.unwrap().ino, made.ino);
    assert_eq!(sh.rm("d").await, Err(Errno::EISDIR));
}

#[tokio::test(start_paused = true)]
async fn only_what_surely_is_empty_is_removed() {
    let sh = Shell::new();
    sh.put("d/f", "x").await;
    assert_eq!(sh.rmdir("d").await, Err(Errno::ENOTEMPTY));
    sh.rm("d/f").await.unwrap();
    assert_eq!(sh.ls("").await.unwrap(), ["d/"], "an emptied directory stays until rmdir");
    sh.put("d/elsewhere", "x").await;
    sh.refresh().await;
    assert_eq!(sh.rmdir("d").await, Err(Errno::ENOTEMPTY));
    sh.delete("d/elsewhere").await;
    sh.refresh().await;
    let fd = sh.open("d/unsaved", CREATE).await.unwrap();
    assert_eq!(sh.rmdir("d").await, Err(Errno::ENOTEMPTY));
    sh.close(fd).await.unwrap();
    sh.rm("d/unsaved").await.unwrap();
    sh.mkdir("d/e").await.unwrap();
    assert_eq!(sh.rmdir("d").await, Err(Errno::ENOTEMPTY));
    sh.rmdir("d/e").await.unwrap();
    sh.rmdir("d").await.unwrap();
    assert_eq!(sh.stat("d").await, Err(Errno::ENOENT));
    assert_eq!(sh.ls("").await.unwrap(), Vec::<String>::new());
    sh.write_file("f", "x").await.unwrap();
    assert_eq!(sh.rmdir("f").await, Err(Errno::ENOTDIR));
}

#[tokio::test(start_paused = true)]
async fn a_directory_keeps_its_inode_while_it_empties_and_revives() {
    let sh = Shell::new();
    sh.put("d/f", "x").await;
    let ino = sh.stat("d").await.unwrap().ino;
    sh.rm("d/f").await.unwrap();
    sh.forget_all();
    assert_eq!(sh.stat("d").await.unwrap().ino, ino);
    sh.put("d/g", "x").await;
    sh.refresh().await;
    assert_eq!((sh.stat("d").await.unwrap().ino, sh.cat("d/g").await), (ino, "x".into()));
    sh.delete("d/g").await;
    sh.refresh().await;
    sh.put("d/h", "x").await;
    sh.refresh().await;
    assert_eq!(sh.stat("d").await.unwrap().ino, ino);
}

#[tokio::test(start_paused = true)]
async fn a_listing_taken_in_parts_neither_skips_nor_doubles_what_stays() {
    let sh = Shell::new();
    for n in 0..50 {
        sh.put(&format!("n{n:02}"), "x").await;
    }
    let dir = sh.once(|fs, ctx| async move { fs.opendir(&ctx, vaultfs::fs::ROOT) }).await.unwrap();
    let root = vaultfs::fs::ROOT;
    let first = sh.once(|fs, ctx| async move { fs.readdir(&ctx, root, dir.fh, 0).await }).await.unwrap();
    let all = first.after(0);
    let half = all[20].cookie;
    for n in (0..25).step_by(3) {
        sh.rm(&format!("n{n:02}")).await.unwrap();
        sh.write_file(&format!("m{n:02}"), "x").await.unwrap();
    }
    let onward = sh.once(|fs, ctx| async move { fs.readdir(&ctx, root, dir.fh, half).await }).await.unwrap();
    assert_eq!(onward.after(half), all[21..], "the names as they were at the beginning");
    let again = sh.getdents(root, dir.fh).await.unwrap();
    assert!(again.iter().any(|e| e.name == "m00") && !again.iter().any(|e| e.name == "n00"));
    let late =
        sh.once(|fs, ctx| async move { fs.readdir(&ctx, root, 0, half).await }).await.unwrap().after(half);
    let stays = |e: &&vaultfs::fs::DirEntry| all[21..].iter().any(|old| old.name == e.name);
    let stayed = all[21..].iter().filter(|e| again.iter().any(|new| new.name == e.name)).count();
    assert_eq!(
        late.iter().filter(stays).count(),
        stayed,
        "who has no handle finds the place in the newer names"
    );
    sh.fs.releasedir(dir.fh);
    assert_eq!(sh.fs.status().handles, 0);
}

#[tokio::test(start_paused = true)]
async fn a_listing_tells_true_inode_numbers_where_there_are_any() {
    let sh = Shell::new();
    sh.put("d/f", "x").await;
    sh.put("g", "x").await;
    let (d, g) = (sh.stat("d").await.unwrap().ino, sh.stat("g").await.unwrap().ino);
    let dir = sh.once(|fs, ctx| async move { fs.opendir(&ctx, vaultfs::fs::ROOT) }).await.unwrap();
    let listing = sh.getdents(vaultfs::fs::ROOT, dir.fh).await.unwrap();
    let ino = |name| listing.iter().find(|e| e.name == name).and_then(|e| e.ino);
    assert_eq!((ino("d"), ino("g")), (Some(d), Some(g)));
    sh.fs.releasedir(dir.fh);
}

#[tokio::test(start_paused = true)]
async fn the_time_of_a_directory_is_when_its_names_last_changed() {
    let sh = Shell::new();
    sh.mkdir("d").await.unwrap();
    sh.write_file("d/f", "x").await.unwrap();
    let mtime = sh.stat("d").await.unwrap().mtime;
    sh.pass(Duration::from_secs(1)).await;
    sh.write_file("d/f", "y").await.unwrap();
    sh.ls("d").await.unwrap();
    assert_eq!(sh.stat("d").await.unwrap().mtime, mtime, "a new value changes no name");
    sh.write_file("d/g", "y").await.unwrap();
    let created = sh.stat("d").await.unwrap().mtime;
    assert!(created > mtime);
    sh.ls("d").await.unwrap();
    sh.put("d/elsewhere", "x").await;
    sh.refresh().await;
    sh.ls("d").await.unwrap();
    assert!(sh.stat("d").await.unwrap().mtime > created, "changed elsewhere");
}

#[tokio::test(start_paused = true)]
async fn new_files_get_the_mode_asked_for_less_umask_and_ceiling() {
    let sh = Shell::with(Options { file_mode: 0o640, dir_mode: 0o750, ..Options::default() });
    for (asked, got) in [(0o666, 0o640), (0o600, 0o600), (0o444, 0o440), (0o4755, 0o640)] {
        let fd = sh.open_mode("f", CREATE, asked).await.unwrap();
        assert_eq!(sh.fstat(&fd).perm, got, "{asked:o}");
        sh.close(fd).await.unwrap();
        assert_eq!(sh.stat("f").await.unwrap().perm, got, "{asked:o} once stored");
        sh.rm("f").await.unwrap();
    }
    assert_eq!(sh.mkdir("d").await.unwrap().perm, 0o750);
    sh.put("elsewhere", "x").await;
    sh.refresh().await;
    assert_eq!(sh.stat("elsewhere").await.unwrap().perm, 0o640);
}

#[tokio::test(start_paused = true)]
async fn modes_and_times_set_here_outlive_forget_and_new_versions() {
    let sh = Shell::new();
    let then = sh.fs.now() - Duration::from_secs(1_000_000);
    sh.put("f", "x").await;
    sh.mkdir("d").await.unwrap();
    for path in ["f", "d"] {
        sh.chmod(path, 0o440).await.unwrap();
        sh.utimens(path, then).await.unwrap();
        sh.forget_all();
        sh.refresh().await;
        let attr = sh.stat(path).await.unwrap();
        assert_eq!((attr.perm, attr.mtime), (0o440, then), "{path}");
        assert!(attr.ctime > then);
    }
    sh.put("f", "y").await;
    sh.refresh().await;
    let attr = sh.stat("f").await.unwrap();
    assert_eq!(attr.perm, 0o440);
    assert!(attr.mtime > then, "a new version has its own time");
    let set =
        SetAttr { uid: Some(sh.fs.options().uid), gid: Some(sh.fs.options().gid), ..SetAttr::default() };
    sh.set("f", set).await.unwrap();
    assert_eq!(sh.fs.status().owners_set, 0);
}

#[tokio::test(start_paused = true)]
async fn a_file_made_anew_has_nothing_of_its_predecessor() {
    let sh = Shell::new();
    sh.write_file("f", "x").await.unwrap();
    sh.chmod("f", 0o400).await.unwrap();
    sh.rm("f").await.unwrap();
    sh.write_file("f", "y").await.unwrap();
    assert_eq!(sh.stat("f").await.unwrap().perm, 0o600);
}

#[tokio::test(start_paused = true)]
async fn read_only_refuses_every_change() {
    let sh = Shell::with(Options { read_only: true, ..Options::default() });
    sh.put("f", "x").await;
    sh.put("d/g", "x").await;
    assert_eq!((sh.cat("f").await, sh.stat("f").await.unwrap().perm), ("x".into(), 0o400));
    assert_eq!(sh.stat("d").await.unwrap().perm, 0o500);
    assert_eq!(sh.open("f", WRITE).await.unwrap_err(), Errno::EROFS);
    assert_eq!(sh.open("new", CREATE).await.unwrap_err(), Errno::EROFS);
    assert_eq!(sh.truncate("f", 0).await, Err(Errno::EROFS));
    assert_eq!(sh.chmod("f", 0o600).await, Err(Errno::EROFS));
    assert_eq!(sh.utimens("d", sh.fs.now()).await, Err(Errno::EROFS));
    assert_eq!(sh.rm("f").await, Err(Errno::EROFS));
    assert_eq!(sh.mv("f", "h").await, Err(Errno::EROFS));
    assert_eq!(sh.mkdir("e").await, Err(Errno::EROFS));
    assert_eq!(sh.rmdir("d").await, Err(Errno::EROFS));
    assert_eq!(sh.vault.count(Op::Create) + sh.vault.count(Op::Update) + sh.vault.count(Op::Delete), 0);
}

#[tokio::test(start_paused = true)]
async fn no_delete_refuses_what_would_delete_and_nothing_else() {
    let sh = Shell::with(Options { no_delete: true, ..Options::default() });
    sh.put("f", "x").await;
    sh.put("g", "x").await;
    assert_eq!(sh.rm("f").await, Err(Errno::EPERM));
    assert_eq!(sh.mv("f", "h").await, Err(Errno::EPERM));
    assert_eq!(sh.mv("f", "g").await, Err(Errno::EPERM));
    sh.write_file("f", "y").await.unwrap();
    sh.write_file("new", "y").await.unwrap();
    sh.open("tmp12345678", crate::shell::EXCL).await.unwrap();
    sh.rm("tmp12345678").await.unwrap();
    assert_eq!(sh.names().await, ["f", "g", "new"]);
    assert_eq!(sh.vault.count(Op::Delete), 0);
}

#[tokio::test(start_paused = true)]
async fn a_file_is_no_directory_and_a_directory_no_file() {
    let sh = Shell::new();
    sh.put("f", "x").await;
    sh.put("d/g", "x").await;
    let (f, d) = (sh.stat("f").await.unwrap(), sh.stat("d").await.unwrap());
    assert_eq!((f.kind, d.kind), (FileKind::Regular, FileKind::Directory));
    assert_eq!(sh.lookup(f.ino, "x").await, Err(Errno::ENOTDIR));
    assert_eq!(sh.once(|fs, ctx| async move { fs.opendir(&ctx, f.ino) }).await, Err(Errno::ENOTDIR));
    assert_eq!(sh.open("d", WRITE).await.unwrap_err(), Errno::EISDIR);
    assert_eq!(sh.truncate("d", 0).await, Err(Errno::EISDIR));
    assert_eq!(sh.mv("f", "d").await, Err(Errno::EISDIR));
    assert_eq!(sh.fs.getattr(12345), Err(Errno::ESTALE));
}
