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

use vaultfs::daemon::state_log::{self, SealKey};
use vaultfs::fs::{Journal, Options};
use vaultfs::vault::ErrorKind;
use vaultfs::vault::model::op::Op;
use vaultfs::vault::testing::faulty::Fault;
use vaultfs::vault::testing::memory::{MemoryVault, OBJECT_CAPABILITIES};

use crate::shell::{EXCL, READ, Shell};
use crate::torn::Log;

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
    for name in ["f", "g", "dir/deep"] {
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
    sh.vault.plan(Op::Create).always().fail(Fault::Before(ErrorKind::Unauthorized));
    sh.write_file("failed", "refused").await.unwrap_err();
    let mut bytes = vec![0; HEADER + log.status().bytes as usize];
    File::from(memory).read_exact_at(&mut bytes, 0).unwrap();
    let numbers = [held, unsaved].map(|fd| format!("{} {}", fd.ino, fd.fh)).join(" ");
    let version = bytes[16];
    fs::create_dir_all(dir()).unwrap();
    fs::write(dir().join(version.to_string()), [format!("{numbers}\n").as_bytes(), &bytes].concat()).unwrap();
}
