//! What else is made and set: files of mknod(2), copies by link(2), owners, attributes, directories
//! for a trash.

use std::ffi::OsStr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vaultfs::fs::{Drain, Errno, Options, Remover, SetAttr};
use vaultfs::vault::model::op::Op;
use vaultfs::vault::testing::faulty::Fault;
use vaultfs::vault::testing::memory::{KV_CAPABILITIES, OBJECT_CAPABILITIES};
use vaultfs::vault::{Capabilities, ErrorKind};

use crate::shell::{CREATE, EXCL, READ, Shell, WRITE};

const DIALECTS: [Capabilities; 2] = [OBJECT_CAPABILITIES, KV_CAPABILITIES];
const DELETED_AFTER: Duration = Duration::from_millis(5100);
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn a_file_made_by_mknod_is_stored_by_its_first_writer() {
    for (capabilities, pauses) in DIALECTS.into_iter().flat_map(|c| [false, true].map(|p| (c, p))) {
        for path in ["s", "d/s"] {
            let sh = Shell::of(capabilities, Options::default());
            if path == "d/s" {
                sh.mkdir("d").await.unwrap();
            }
            sh.mknod(path).await.unwrap();
            assert_eq!((sh.mknod(path).await, sh.cat(path).await), (Err(Errno::EEXIST), String::new()));
            sh.chmod(path, 0o600).await.unwrap();
            sh.utimens(path, sh.fs.now() - PATIENCE).await.unwrap();
            assert_eq!(sh.names().await, Vec::<String>::new());
            let fd = sh.open(path, WRITE).await.unwrap();
            if pauses {
                sh.pass(DELETED_AFTER).await;
                assert_eq!(sh.names().await, Vec::<String>::new(), "its writer decides");
            }
            sh.pwrite(&fd, 0, "value").unwrap();
            sh.close(fd).await.unwrap();
            assert_eq!(sh.history(path).await, ["value"], "stored when close(2) answered, once");
            sh.pass(PATIENCE).await;
            assert_eq!((sh.history(path).await, sh.fs.status().scratch_bytes), (vec!["value".into()], 0));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_made_by_mknod_and_left_alone_is_stored_empty() {
    for act in ["wait", "read", "fsync", "close", "truncate", "unmount", "rename", "unlink", "die"] {
        let sh = Shell::new();
        sh.mknod("s").await.unwrap();
        let mut name = "s";
        match act {
            "wait" => sh.pass(DELETED_AFTER).await,
            "read" => {
                assert_eq!(sh.cat("s").await, "");
                assert_eq!(sh.names().await, Vec::<String>::new());
                sh.pass(DELETED_AFTER).await;
            }
            "fsync" => {
                let fd = sh.open("s", READ).await.unwrap();
                sh.fsync(&fd).await.unwrap();
                sh.close(fd).await.unwrap();
            }
            "close" => {
                let fd = sh.open("s", WRITE).await.unwrap();
                sh.close(fd).await.unwrap();
            }
            "truncate" => sh.truncate("s", 3).await.unwrap(),
            "unmount" => assert_eq!(sh.fs.drain(Drain::All, PATIENCE).await, []),
            "rename" => {
                sh.mv("s", "t").await.unwrap();
                name = "t";
            }
            "die" => {
                sh.die_after(0);
                sh.chmod("s", 0o600).await.unwrap();
                assert_eq!(sh.deaths.load(Ordering::Relaxed), 1);
                sh.pass(DELETED_AFTER).await;
            }
            _ => sh.rm("s").await.unwrap(),
        }
        let expected: &[&str] = match act {
            "unlink" => &[],
            "truncate" => &["\0\0\0"],
            _ => &[""],
        };
        assert_eq!(sh.history(name).await, expected, "{act}");
        sh.pass(PATIENCE).await;
        assert_eq!(sh.history(name).await, expected, "{act}");
    }
    // What somebody else made meanwhile is not emptied.
    let sh = Shell::new();
    sh.mknod("s").await.unwrap();
    sh.put("s", "theirs").await;
    sh.pass(PATIENCE).await;
    assert_eq!(sh.history("s").await, ["theirs"]);
    // Temporary names are what they are for any other program.
    let sh = Shell::new();
    sh.mknod(".s.swp").await.unwrap();
    sh.mknod("s.tmp").await.unwrap();
    sh.write_file("s.tmp", "value").await.unwrap();
    sh.mv("s.tmp", "s").await.unwrap();
    sh.pass(PATIENCE).await;
    assert_eq!((sh.names().await, sh.history("s").await), (vec!["s".to_owned()], vec!["value".into()]));
}

#[tokio::test(start_paused = true)]
async fn a_link_is_another_object_with_the_same_bytes() {
    for capabilities in DIALECTS {
        for warm in [false, true] {
            let sh = Shell::of(capabilities, Options::default());
            sh.put("f", "value").await;
            sh.put("taken", "x").await;
            if warm {
                sh.cat("f").await;
            }
            sh.chmod("f", 0o400).await.unwrap();
            let made = sh.link("f", "f.old").await.unwrap();
            assert_eq!(sh.history("f.old").await, ["value"], "stored before the answer");
            let source = sh.stat("f").await.unwrap();
            assert_ne!(made.ino, source.ino);
            assert_eq!((made.nlink, source.nlink, made.perm, made.size), (1, 1, 0o400, 5));
            sh.write_file("f", "new").await.unwrap();
            assert_eq!((sh.cat("f").await, sh.cat("f.old").await), ("new".into(), "value".into()));
            assert_eq!(sh.link("f", "taken").await, Err(Errno::EEXIST));
            assert_eq!(sh.link("f", "%25x").await, Err(Errno::EINVAL));
            // What is created and closed empty is stored a moment after, which a link waits for.
            let fd = sh.open("lock-c", EXCL).await.unwrap();
            sh.flush(&fd).await.unwrap();
            sh.link("lock-c", "lock-l").await.unwrap();
            sh.close(fd).await.unwrap();
            assert_eq!(
                (sh.history("lock-c").await, sh.history("lock-l").await),
                (vec![String::new()], vec![String::new()])
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_stored_has_no_link() {
    let sh = Shell::new();
    sh.put("s", "value").await;
    let open = sh.open("s", WRITE).await.unwrap();
    sh.pwrite(&open, 0, "half").unwrap();
    let mut fds = vec![open];
    for name in ["f.tmp", ".f.swp"] {
        let fd = sh.open(name, EXCL).await.unwrap();
        sh.pwrite(&fd, 0, "x").unwrap();
        fds.push(fd);
    }
    for name in ["s", "f.tmp", ".f.swp"] {
        assert_eq!(sh.link(name, "t").await, Err(Errno::EPERM), "{name}");
    }
    for fd in fds {
        sh.close(fd).await.unwrap();
    }
    // What no vault gets has none at all.
    assert_eq!(sh.link(".f.swp", "t").await, Err(Errno::EPERM));
    // Nor one that the vault does not take.
    for (kind, errno) in [(ErrorKind::Forbidden, Errno::EACCES), (ErrorKind::Server, Errno::EIO)] {
        sh.vault.fail_always(Op::Create, Fault::Before(kind));
        assert_eq!(sh.link("s", "t").await, Err(errno));
        assert_eq!((sh.stat("t").await, sh.fs.unsaved()), (Err(Errno::ENOENT), vec![]));
        sh.vault.clear();
        sh.pass(PATIENCE).await;
        assert_eq!(sh.names().await, ["f.tmp", "s"]);
    }
}

/// `ln -f`, and programs that put a new file in place by link(2) and unlink(2).
#[tokio::test(start_paused = true)]
async fn a_link_of_a_temporary_file_puts_it_in_place() {
    for had_target in [true, false] {
        let sh = Shell::new();
        if had_target {
            sh.put("t", "old").await;
        }
        let fd = sh.open("f.tmp", EXCL).await.unwrap();
        sh.pwrite(&fd, 0, "new").unwrap();
        sh.close(fd).await.unwrap();
        if had_target {
            sh.unlink("t", Remover::Unknown).await.unwrap();
        }
        sh.link("f.tmp", "t").await.unwrap();
        sh.unlink("f.tmp", Remover::Unknown).await.unwrap();
        sh.pass(PATIENCE).await;
        assert_eq!((sh.names().await, sh.cat("t").await), (vec!["t".to_owned()], "new".to_owned()));
        let history = if had_target { vec!["old", "new"] } else { vec!["new"] };
        assert_eq!(sh.history("t").await, history, "one save, one version, same object");
        assert_eq!(sh.fs.unsaved(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn a_link_that_a_worker_dies_of_is_made_once() {
    let mut records = 0;
    loop {
        let sh = Shell::new();
        sh.put("s", "value").await;
        sh.die_after(records);
        sh.link("s", "t").await.unwrap();
        let died = sh.deaths.load(Ordering::Relaxed) > 0;
        assert_eq!(
            (sh.cat("t").await, sh.history("t").await),
            ("value".into(), vec!["value".into()]),
            "{records}"
        );
        assert_eq!(sh.fs.unsaved(), []);
        if !died {
            break;
        }
        records += 1;
    }
    assert!(records > 3, "{records}");
}

#[tokio::test(start_paused = true)]
async fn owners_set_here_last_as_long_as_the_mount() {
    let sh = Shell::new();
    sh.put("f", "x").await;
    sh.mkdir("d").await.unwrap();
    let own = sh.stat("f").await.unwrap();
    let (uid, gid) = (own.uid + 1000, own.gid + 2000);
    let chown = SetAttr { uid: Some(uid), gid: Some(gid), ..SetAttr::default() };
    sh.chmod("f", 0o6755).await.unwrap();
    sh.chmod("d", 0o2755).await.unwrap();
    for path in ["f", "d", ""] {
        let attr = sh.set(path, chown).await.unwrap();
        assert_eq!((attr.uid, attr.gid), (uid, gid), "{path}");
    }
    assert_eq!(sh.stat("f").await.unwrap().perm, 0o755, "set-id bits go with the owner");
    assert_eq!(sh.stat("d").await.unwrap().perm, 0o2755);
    assert_eq!(sh.fs.status().owners_set, 3);
    sh.write_file("f", "y").await.unwrap();
    sh.put("f", "elsewhere").await;
    sh.refresh().await;
    sh.forget_all();
    sh.die_after(0);
    sh.chmod("f", 0o600).await.unwrap();
    assert_ne!(sh.deaths.load(Ordering::Relaxed), 0);
    sh.mv("f", "g").await.unwrap();
    // Its history is for whom the file is for.
    for path in ["g", "d", ".versions/g", ".versions/g/1"] {
        let attr = sh.stat(path).await.unwrap();
        assert_eq!((attr.uid, attr.gid), (uid, gid), "{path}");
    }
    // Set back by group, and by owner.
    let back = SetAttr { gid: Some(own.gid), ..SetAttr::default() };
    assert_eq!(sh.set("g", back).await.map(|attr| (attr.uid, attr.gid)), Ok((uid, own.gid)));
    assert_eq!(sh.stat("d").await.unwrap().uid, uid);
    let new = sh.open("new", CREATE).await.unwrap();
    assert_eq!(sh.fstat(&new).uid, uid, "the directory was given away, and what is made in it");
    sh.close(new).await.unwrap();
    let again = sh.remount();
    assert_eq!((again.stat("g").await.unwrap().uid, again.fs.status().owners_set), (own.uid, 0));
}

#[tokio::test(start_paused = true)]
async fn attributes_of_the_vault_answer_to_their_names_and_are_not_listed() {
    let sh = Shell::new();
    sh.put("f", "x").await;
    let ino = sh.stat("f").await.unwrap().ino;
    assert_eq!(sh.fs.listxattr(ino), Ok(vec![]));
    for name in ["user.vault.id", "user.vault.version", "user.vault.updated_at", "user.vault.stale"] {
        let name = OsStr::new(name);
        let value = sh.fs.getxattr(ino, name).unwrap();
        assert_eq!(sh.fs.setxattr(ino, name, &value), Ok(()), "{name:?}: it has that value");
        assert_eq!(sh.fs.setxattr(ino, name, b"other"), Err(Errno::EOPNOTSUPP), "{name:?}");
    }
    for name in ["user.vault.error", "user.vault.other", "user.x", "security.selinux"] {
        assert_eq!(sh.fs.setxattr(ino, OsStr::new(name), b"x"), Err(Errno::EOPNOTSUPP), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn there_is_no_trash_in_the_vault() {
    let sh = Shell::new();
    sh.put("s", "x").await;
    for name in [".Trash", ".Trash-0", ".Trash-1000"] {
        assert_eq!(sh.mkdir(name).await, Err(Errno::EPERM), "{name}");
    }
    sh.mkdir("d").await.unwrap();
    for name in ["d/.Trash-0", ".Trashes", ".Trash0"] {
        sh.mkdir(name).await.unwrap();
        assert_eq!(sh.mv(name, ".Trash-0").await, Err(Errno::EPERM), "{name}");
    }
    // No scratch file either: what has that name is kept.
    sh.write_file(".Trash-x", "value").await.unwrap();
    assert_eq!(sh.names().await, [".Trash-x", "s"]);
}
