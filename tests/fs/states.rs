//! A worker takes over the state that a release before has left: one of each is in `tests/state`,
//! by the version in its header. The state of this release is recorded with
//!
//!     cargo test --locked --test fs states::record -- --ignored
//!
//! once its version is another one. Each file is a line of numbers (inodes and handles of what is
//! open), and the memory as it was: its header, and the records.

use std::fs;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use vaultfs::daemon::state_log::{self, SealKey};
use vaultfs::fs::{Errno, Journal, Options, Record, Value};
use vaultfs::vault::ErrorKind;
use vaultfs::vault::model::op::Op;
use vaultfs::vault::testing::faulty::Fault;
use vaultfs::vault::testing::memory::{MemoryVault, OBJECT_CAPABILITIES};

use crate::shell::{EXCL, Fd, READ, Shell};
use crate::torn::Log;

/// What the vault has, in the order of the ids.
const STORED: [&str; 3] = ["f", "g", "dir/deep"];
/// Where the records begin.
const HEADER: usize = 4096;

fn key() -> SealKey {
    SealKey::from_bytes(b"no secret: a key of these tests.").unwrap()
}

fn dir() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(PathBuf::new, PathBuf::from).join("tests/state")
}

fn mounted(log: Arc<Log>) -> Shell {
    let clock = Shell::paused();
    let memory = Arc::new(MemoryVault::new(OBJECT_CAPABILITIES, clock.clone()));
    Shell::with_journal(memory.clone(), memory, clock, Options::default(), log)
}

#[tokio::test(start_paused = true)]
#[ignore = "writes a file"]
async fn record() {
    let memory = state_log::create().unwrap();
    let log = Arc::new(Log::over(memory.try_clone().unwrap(), key()));
    let sh = mounted(log.clone());
    for name in STORED {
        sh.put(name, "old").await;
    }
    sh.walk("").await.unwrap();
    let held = sh.open("f", READ).await.unwrap();
    sh.chmod("f", 0o640).await.unwrap();
    sh.mkdir("made").await.unwrap();
    sh.chmod("made", 0o700).await.unwrap();
    sh.mv("g", "g~").await.unwrap();
    let unsaved = sh.open("unsaved", EXCL).await.unwrap();
    sh.pwrite(&unsaved, 0, "not stored").unwrap();
    let swap = sh.open(".f.swp", EXCL).await.unwrap();
    sh.pwrite(&swap, 0, "swap").unwrap();
    sh.close(swap).await.unwrap();
    sh.vault.plan(Op::Create).always().fail(Fault::Before(ErrorKind::Server));
    sh.write_file("failed", "refused").await.unwrap_err();
    let mut bytes = vec![0; HEADER + log.status().bytes as usize];
    File::from(memory).read_exact_at(&mut bytes, 0).unwrap();
    let numbers = [held, unsaved].map(|fd| format!("{} {}", fd.ino, fd.fh)).join(" ");
    let version = bytes[16];
    fs::create_dir_all(dir()).unwrap();
    fs::write(dir().join(version.to_string()), [format!("{numbers}\n").as_bytes(), &bytes].concat()).unwrap();
}

/// The recorded memory of that version, and what is open there.
fn recorded(version: &str) -> (Arc<Log>, [Fd; 2]) {
    let recorded = fs::read(dir().join(version)).unwrap();
    let end = recorded.iter().position(|byte| *byte == b'\n').unwrap();
    let (numbers, bytes) = (std::str::from_utf8(&recorded[..end]).unwrap(), &recorded[end + 1..]);
    let numbers: Vec<u64> = numbers.split(' ').map(|number| number.parse().unwrap()).collect();
    let memory = File::from(state_log::create().unwrap());
    memory.write_all_at(bytes, 0).unwrap();
    let log = Arc::new(Log::over(memory.into(), key()));
    (log, [Fd::new(numbers[0], numbers[1]), Fd::new(numbers[2], numbers[3])])
}

#[tokio::test(start_paused = true)]
async fn the_state_of_each_release_is_taken_over() {
    let mut versions: Vec<String> =
        fs::read_dir(dir()).unwrap().map(|at| at.unwrap().file_name().into_string().unwrap()).collect();
    versions.sort();
    assert!(versions.contains(&state_log::state_version().to_string()), "record it: {versions:?}");
    assert!(versions.len() > 1, "that of the release before: {versions:?}");
    for version in versions {
        let (log, [held, unsaved]) = recorded(&version);
        let sh = mounted(log);
        // The objects that it knows, by their ids, have other bytes.
        for name in STORED {
            sh.put(name, "other").await;
        }
        let journal = sh.fs.status().journal.unwrap();
        assert!(journal.complete && journal.refused == 0, "{version}: {journal:?}");
        assert_eq!(sh.fs.status().handles, 2, "{version}");
        let names: Vec<String> = sh.fs.unsaved().into_iter().map(|unsaved| unsaved.name).collect();
        assert_eq!(names, ["failed", "unsaved"], "{version}");
        // What it was when it was opened, whatever the vault has now. When 4 was
        // recorded the key was refused, and what was read with it taken back.
        let bytes = sh.read_all(&held).await;
        match version.as_str() {
            "4" => assert_eq!(bytes, Err(Errno::ESTALE)),
            _ => assert_eq!(bytes.unwrap(), b"old", "{version}"),
        }
        assert_eq!(sh.fstat(&held).perm, 0o640, "{version}");
        assert_eq!(sh.read_file(".f.swp").await.unwrap(), b"swap", "{version}");
        assert_eq!(sh.stat("made").await.unwrap().perm, 0o700, "{version}");
        sh.pwrite(&unsaved, 3, " is").unwrap();
        sh.close(unsaved).await.unwrap();
        sh.close(held).await.unwrap();
        sh.pass(Duration::from_secs(200)).await;
        assert_eq!(sh.history("unsaved").await, ["not isored"], "{version}");
        assert_eq!(sh.fs.status().handles, 0, "{version}");
        assert_eq!(sh.fs.unsaved(), [], "{version}");
        assert_eq!(sh.history("failed").await, ["refused"], "{version}");
    }
}

#[tokio::test(start_paused = true)]
async fn records_that_are_unknown_are_kept_and_spoil_no_others() {
    let (log, [held, _]) = recorded(&state_log::state_version().to_string());
    // A kind that is not known, and a version of the salt that is not.
    let unknown = [(vec![200], vec![1, 2, 3]), (vec![0], vec![99, 1])];
    let record = |(slot, value): &(Vec<u8>, Vec<u8>)| Record {
        slot: slot.clone(),
        order: 1,
        value: Some(Value::Plain(value.clone())),
    };
    log.append(unknown.iter().map(record).collect());
    let sh = mounted(log.clone());
    assert_eq!(sh.fs.status().journal.unwrap().refused, 2);
    assert_eq!(sh.read_all(&held).await.unwrap(), b"old");
    assert_eq!(sh.fs.unsaved().len(), 2);
    let kept = log.read();
    assert!(
        kept.iter()
            .any(|(slot, value)| *slot == [200] && matches!(value, Value::Plain(v) if *v == [1, 2, 3]))
    );
}
