//! Names and paths: every object can be reached, every path means one name.

use vaultfs::fs::{Errno, FileKind};

use crate::shell::{CREATE, Shell};
use crate::support::hostile_names::HOSTILE_NAMES;

#[tokio::test(start_paused = true)]
async fn every_hostile_name_is_reached_by_walking_and_read_whole() {
    let sh = Shell::new();
    for name in HOSTILE_NAMES {
        sh.put(name, *name).await;
    }
    let mut found: Vec<_> = sh.walk("").await.unwrap().into_values().collect();
    found.sort();
    let mut expected: Vec<_> = HOSTILE_NAMES.iter().map(|name| name.as_bytes().to_vec()).collect();
    expected.sort();
    assert_eq!(found, expected);
}

#[tokio::test(start_paused = true)]
async fn every_hostile_name_can_be_written_under_its_path() {
    let elsewhere = Shell::new();
    for name in HOSTILE_NAMES {
        elsewhere.put(name, *name).await;
    }
    let paths = elsewhere.walk("").await.unwrap();
    let sh = Shell::new();
    for (path, name) in &paths {
        for (at, _) in path.match_indices('/') {
            if sh.stat(&path[..at]).await == Err(Errno::ENOENT) {
                sh.mkdir(&path[..at]).await.unwrap_or_else(|e| panic!("mkdir {:?}: {e:?}", &path[..at]));
            }
        }
        sh.write_file(path, name).await.unwrap_or_else(|e| panic!("{path:?}: {e:?}"));
    }
    let mut expected: Vec<_> = HOSTILE_NAMES.iter().map(|name| (*name).to_owned()).collect();
    expected.sort();
    assert_eq!(sh.names().await, expected);
    for path in paths.keys() {
        sh.rm(path).await.unwrap_or_else(|e| panic!("rm {path:?}: {e:?}"));
    }
    assert!(sh.names().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn names_longer_than_a_component_are_nested_directories() {
    let sh = Shell::new();
    let long = "n".repeat(900);
    sh.put(&long, "deep").await;
    sh.put(&"ü".repeat(300), "wide").await;
    let mut values: Vec<_> = sh.walk("").await.unwrap().into_values().collect();
    values.sort();
    assert_eq!(values, [b"deep", b"wide"]);
    assert_eq!(sh.open(&"x".repeat(256), CREATE).await.unwrap_err(), Errno::ENAMETOOLONG);
}

#[tokio::test(start_paused = true)]
async fn an_object_with_the_name_of_a_directory_is_self_in_it() {
    let sh = Shell::new();
    sh.put("a", "the object").await;
    sh.put("a/b", "below").await;
    assert_eq!(sh.ls("").await.unwrap(), ["a/"]);
    assert_eq!(sh.ls("a").await.unwrap(), [".self", "b"]);
    assert_eq!((sh.cat("a/.self").await, sh.cat("a/b").await), ("the object".into(), "below".into()));
    sh.write_file("a/.self", "changed").await.unwrap();
    assert_eq!(sh.history("a").await, ["the object", "changed"]);
    sh.rm("a/.self").await.unwrap();
    assert_eq!(sh.names().await, ["a/b"]);
    sh.write_file("a/.self", "again").await.unwrap();
    assert_eq!((sh.names().await, sh.cat("a/.self").await), (vec!["a".into(), "a/b".into()], "again".into()));
}

#[tokio::test(start_paused = true)]
async fn what_was_first_seen_as_a_file_stays_one() {
    let sh = Shell::new();
    sh.put("a", "the object").await;
    assert_eq!(sh.cat("a").await, "the object");
    sh.put("a/b", "below").await;
    sh.refresh().await;
    assert_eq!(sh.ls("").await.unwrap(), ["a", "a%2Fb"]);
    assert_eq!((sh.cat("a").await, sh.cat("a%2Fb").await), ("the object".into(), "below".into()));
    assert_eq!(sh.stat("a/b").await, Err(Errno::ENOTDIR));
    sh.write_file("a%2Fb", "changed").await.unwrap();
    assert_eq!(sh.history("a/b").await, ["below", "changed"]);
    assert_eq!(sh.remount().ls("").await.unwrap(), ["a/"], "another mount sees it as it is");
}

#[tokio::test(start_paused = true)]
async fn what_was_first_seen_as_a_directory_stays_one() {
    let sh = Shell::new();
    sh.put("a/b", "below").await;
    let ino = sh.stat("a").await.unwrap().ino;
    sh.put("a", "the object").await;
    sh.refresh().await;
    assert_eq!(sh.stat("a").await.unwrap().ino, ino);
    assert_eq!(
        (sh.ls("a").await.unwrap(), sh.cat("a/.self").await),
        (vec![".self".into(), "b".into()], "the object".into())
    );
    assert_eq!(sh.stat("a%2Fb").await, Err(Errno::ENOENT));
}

#[tokio::test(start_paused = true)]
async fn a_spelling_that_is_not_the_one_of_a_name_is_nothing() {
    let sh = Shell::new();
    sh.put("a", "x").await;
    sh.put("A", "x").await;
    sh.ls("").await.unwrap();
    for ordinary in ["%41", "%2f", "100%", "%41%00", "%0A"] {
        sh.write_file(ordinary, "x").await.unwrap_or_else(|e| panic!("{ordinary}: {e:?}"));
        assert_eq!(sh.remount().ls("").await.unwrap().iter().filter(|n| *n == ordinary).count(), 1);
        sh.rm(ordinary).await.unwrap();
    }
    for refused in ["%2Ea", "a%2Fb", "%_a", ".self"] {
        assert_eq!(sh.open(refused, CREATE).await.unwrap_err(), Errno::EINVAL, "{refused}");
        assert_eq!(sh.mkdir(refused).await.unwrap_err(), Errno::EINVAL, "{refused}");
        assert_eq!(sh.mv("A", refused).await.unwrap_err(), Errno::EINVAL, "{refused}");
    }
    assert_eq!(sh.names().await, ["A", "a"]);
}

#[tokio::test(start_paused = true)]
async fn names_too_long_for_the_vault_are_refused_without_asking_it() {
    let sh = Shell::kv();
    sh.ls("").await.unwrap();
    let long = "x".repeat(201);
    assert_eq!(sh.cost(sh.stat(&long)).await, (Err(Errno::ENOENT), 0));
    assert_eq!(sh.open(&long, CREATE).await.unwrap_err(), Errno::ENAMETOOLONG);
    sh.write_file(&"ü".repeat(100), "200 bytes, 100 characters").await.unwrap();
    assert_eq!(sh.names().await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_history_of_an_object_is_files_that_can_only_be_read() {
    let sh = Shell::new();
    sh.mkdir("d").await.unwrap();
    for value in ["one", "twotwo", "three"] {
        sh.write_file("d/f", value).await.unwrap();
    }
    assert_eq!(sh.ls(".versions/d/f").await.unwrap(), ["1", "2", "3"]);
    assert_eq!(sh.cat(".versions/d/f/2").await, "twotwo");
    assert_eq!(sh.stat(".versions/d/f/4").await, Err(Errno::ENOENT));
    assert_eq!(sh.stat(".versions/d/f/02").await, Err(Errno::ENOENT));
    assert_eq!(sh.open(".versions/d/f/1", crate::shell::WRITE).await.unwrap_err(), Errno::EPERM);
    assert_eq!(sh.rm(".versions/d/f/1").await, Err(Errno::EPERM));
    assert_eq!(sh.open(".versions/d/new", CREATE).await.unwrap_err(), Errno::EPERM);
    assert_eq!(sh.stat(".versions/d/f/1").await.unwrap().perm, 0o400);
    assert!(!sh.ls("").await.unwrap().contains(&".versions/".to_owned()), "left out of listings");
    let old = sh.read_file(".versions/d/f/1").await.unwrap();
    sh.write_file("d/f", old).await.unwrap();
    assert_eq!(sh.history("d/f").await, ["one", "twotwo", "three", "one"]);
}

#[tokio::test(start_paused = true)]
async fn control_files_are_the_owners_only_and_say_how_things_are() {
    let sh = Shell::new();
    let attr = sh.stat(".vaultfs/status.json").await.unwrap();
    assert_eq!((attr.perm, attr.kind), (0o400, FileKind::Regular));
    let fd = sh.open(".vaultfs/status.json", crate::shell::READ).await.unwrap();
    let text =
        sh.once(|fs, ctx| async move { fs.read(&ctx, fd.ino, fd.fh, 0, 1 << 20).await }).await.unwrap();
    assert!(serde_json::from_slice::<vaultfs::fs::Status>(text.expose()).is_ok());
    sh.close(fd).await.unwrap();
    assert_eq!(sh.open(".vaultfs/new", CREATE).await.unwrap_err(), Errno::EPERM);
}
