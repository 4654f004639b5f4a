//! Revocation: what the vault refuses now is shown no more, to nobody, whatever was open; what is
//! only here stays.

use std::time::Duration;

use vaultfs::fs::{DirEntry, Drain, Errno, Options};
use vaultfs::vault::ErrorKind;
use vaultfs::vault::model::op::Op;
use vaultfs::vault::testing::faulty::Fault;
use vaultfs::vault::testing::memory::{KV_CAPABILITIES, OBJECT_CAPABILITIES};

use crate::shell::{CREATE, READ, Shell, WRITE};

/// Where a refused key may be noticed first.
const PLACES: [(Op, ErrorKind); 6] = [
    (Op::GetByName, ErrorKind::Unauthorized),
    (Op::List, ErrorKind::Unauthorized),
    (Op::List, ErrorKind::Forbidden),
    (Op::Create, ErrorKind::Unauthorized),
    (Op::Update, ErrorKind::Unauthorized),
    (Op::Delete, ErrorKind::Unauthorized),
];

fn refuse_all(sh: &Shell) {
    sh.vault.plan_any().always().fail(Fault::Before(ErrorKind::Unauthorized));
}

#[tokio::test(start_paused = true)]
async fn a_revocation_takes_all_that_was_shown_wherever_it_is_heard() {
    for (op, kind) in PLACES {
        let sh = Shell::new();
        sh.put("f", "one").await;
        sh.put("g", "two").await;
        sh.cat("g").await;
        let held = sh.open("f", READ).await.unwrap();
        assert_eq!(sh.read_all(&held).await.unwrap(), b"one");
        let version = sh.open(".versions/g/1", READ).await.unwrap();
        let inode = sh.stat("g").await.unwrap().ino;
        sh.kernel.inodes.lock().unwrap().clear();

        sh.vault.fail_next(op, Fault::Before(kind));
        let refused = match op {
            Op::GetByName => sh.stat("h").await.map(drop),
            Op::List => sh.ls("").await.map(drop),
            Op::Create => sh.write_file("new", "x").await,
            Op::Update => sh.write_file("f", "x").await,
            _ => sh.rm("f").await,
        };
        assert_eq!(refused, Err(Errno::EACCES), "{op:?}");
        refuse_all(&sh);
        assert_eq!(sh.fs.status().cache.values, 0, "{op:?}");
        if op != Op::Update {
            assert_eq!(sh.read_all(&held).await, Err(Errno::EACCES), "{op:?}");
        }
        assert_eq!(
            sh.once(|fs, ctx| async move { fs.read(&ctx, version.ino, version.fh, 0, 100).await })
                .await
                .map(drop),
            Err(Errno::EACCES),
            "{op:?}"
        );
        assert_eq!(sh.read_file("g").await, Err(Errno::EACCES), "{op:?}");
        let told = sh.kernel.inodes.lock().unwrap().clone();
        assert!(told.contains(&inode) && told.contains(&version.ino), "pages go: {op:?} {told:?}");

        sh.vault.clear();
        sh.vault.outage();
        assert_eq!(sh.read_file("g").await, Err(Errno::ETIMEDOUT), "nothing stands in afterwards: {op:?}");
        sh.vault.clear();
        sh.pass(Duration::from_secs(61)).await;
        let again = if op == Op::Update { &b"x"[..] } else { b"one" };
        assert_eq!(sh.read_all(&held).await.unwrap(), again, "taken again, the key shows it again: {op:?}");
        assert_eq!(
            sh.once(|fs, ctx| async move { fs.read(&ctx, version.ino, version.fh, 0, 100).await })
                .await
                .unwrap()
                .expose(),
            b"two"
        );
        assert_eq!(sh.cat("g").await, "two");
    }
}

#[tokio::test(start_paused = true)]
async fn a_revocation_takes_names_from_who_begins_to_list_and_who_goes_on() {
    for capabilities in [OBJECT_CAPABILITIES, KV_CAPABILITIES] {
        for read_only in [false, true] {
            // What was read or stored a moment ago is remembered longest.
            for touched in [false, true] {
                let case = format!("{:?} {read_only} {touched}", capabilities.dialect);
                let options = Options { read_only, show_versions: true, ..Options::default() };
                let sh = Shell::of(capabilities, options);
                for name in ["f", "d/g"] {
                    sh.put(name, "one").await;
                }
                if touched {
                    sh.cat("f").await;
                    sh.cat("d/g").await;
                }
                if touched && !read_only {
                    sh.write_file("h", "two").await.unwrap();
                }
                let mut held = Vec::new();
                for path in ["", "d", ".versions", ".versions/f"] {
                    assert!(!sh.ls(path).await.unwrap().is_empty(), "{case} {path}");
                    let ino = sh.stat(path).await.unwrap().ino;
                    let dir = sh.once(|fs, ctx| async move { fs.opendir(&ctx, ino) }).await.unwrap();
                    let read = sh.getdents(ino, dir.fh).await.unwrap();
                    held.push((ino, dir.fh, read[..2].to_vec(), read));
                }
                sh.kernel.inodes.lock().unwrap().clear();

                refuse_all(&sh);
                sh.refresh().await;
                assert_eq!(sh.ls("").await, Err(Errno::EACCES), "{case}");
                let told = sh.kernel.inodes.lock().unwrap().clone();
                for (ino, fh, begun, _) in &held {
                    assert!(told.contains(ino), "{case}: the kernel asks before it goes on");
                    assert_eq!(
                        sh.getdents_after(*ino, *fh, begun.clone()).await,
                        Err(Errno::EACCES),
                        "{case}"
                    );
                }

                sh.vault.clear();
                sh.pass(Duration::from_secs(61)).await;
                for (ino, fh, begun, read) in held {
                    let again = sh.getdents_after(ino, fh, begun).await.unwrap();
                    let places = |entries: Vec<DirEntry>| -> Vec<(String, u64)> {
                        entries.into_iter().map(|entry| (entry.name, entry.cookie)).collect()
                    };
                    assert_eq!(
                        places(again),
                        places(read),
                        "{case}: taken again, the key shows them in their places"
                    );
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn unsaved_bytes_outlive_a_revocation() {
    let sh = Shell::new();
    sh.put("f", "old").await;
    let (writer, reader) = (sh.open("f", WRITE).await.unwrap(), sh.open("f", READ).await.unwrap());
    sh.pwrite(&writer, 0, "mine").unwrap();
    let scratch = sh.open(".f.swp", CREATE).await.unwrap();
    sh.pwrite(&scratch, 0, "scratch").unwrap();
    refuse_all(&sh);
    assert_eq!(sh.fsync(&writer).await, Err(Errno::EACCES));
    assert_eq!(sh.read_all(&reader).await.unwrap(), b"mine");
    assert_eq!(sh.fs.getattr(scratch.ino).unwrap().0.size, 7);
    sh.pwrite(&writer, 4, " all the same").unwrap();
    sh.vault.clear();
    sh.close(writer).await.unwrap();
    assert_eq!(sh.history("f").await, ["old", "mine all the same"]);
    assert!(sh.fs.drain(Drain::All, Duration::from_secs(60)).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_writer_whose_base_was_taken_away_writes_over_nothing() {
    let sh = Shell::new();
    sh.put("f", "0123456789").await;
    let writer = sh.open("f", WRITE).await.unwrap();
    sh.vault.fail_next(Op::GetByName, Fault::Before(ErrorKind::Unauthorized));
    assert_eq!(sh.stat("g").await, Err(Errno::EACCES));
    assert_eq!(sh.pwrite(&writer, 2, "x"), Err(Errno::EACCES));
    assert_eq!(sh.close(writer).await, Err(Errno::EACCES), "and its close says so");
    assert_eq!(sh.history("f").await, ["0123456789"]);
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_refused_is_only_that_name() {
    for kv in [false, true] {
        let sh = if kv { Shell::kv() } else { Shell::new() };
        sh.put("f", "one").await;
        sh.put("g", "two").await;
        sh.ls("").await.unwrap();
        sh.cat("f").await;
        sh.cat("g").await;
        let (f, g) = (sh.open("f", READ).await.unwrap(), sh.open("g", READ).await.unwrap());
        sh.refresh().await;
        let refusal = Fault::Before(ErrorKind::Forbidden);
        for op in [Op::GetByName, Op::Get] {
            sh.vault.plan(op).named("f").always().fail(refusal.clone());
        }
        assert_eq!(sh.read_file("f").await, Err(Errno::EACCES));
        assert_eq!(sh.read_all(&f).await, Err(Errno::EACCES));
        assert_eq!(sh.read_all(&g).await.unwrap(), b"two");
        assert_eq!(sh.cat("g").await, "two");
        assert_eq!(sh.ls("").await.unwrap(), ["f", "g"], "it is there, and may not be read");
        sh.vault.clear();
        sh.vault.outage();
        sh.refresh().await;
        assert_eq!(sh.read_file("f").await, Err(Errno::ETIMEDOUT), "nothing stands in for it");
        assert_eq!(sh.cat("g").await, "two");
        sh.vault.clear();
        sh.pass(Duration::from_secs(3)).await;
        assert_eq!(sh.cat("f").await, "one");
    }
}
