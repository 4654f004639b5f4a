//! The built server as a process of its own.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The built binary serving `dir`; killed when dropped.
pub struct Served {
    child: Child,
    pub url: String,
    pub key: String,
}

impl Served {
    pub fn start(dir: &Path) -> Self {
        Self::start_logging(dir, Stdio::null())
    }

    pub fn start_logging(dir: &Path, log: Stdio) -> Self {
        Self::start_with(dir, log, &["--listen", "127.0.0.1:0"])
    }

    /// With options of its own.
    pub fn start_with<S: AsRef<std::ffi::OsStr>>(dir: &Path, log: Stdio, options: &[S]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_vaultfs"))
            .args(["serve", "--rate-limit", "0", "-vv", "--data"])
            .arg(dir)
            .args(options)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        let key = std::fs::read_to_string(dir.join("api-key")).unwrap();
        Self { child, url: url.trim().to_owned(), key: key.trim().to_owned() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: kill(2) takes no pointers, and the pid is that of a child that was not waited
        // for.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    pub fn wait(&mut self) -> std::process::ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the server does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
