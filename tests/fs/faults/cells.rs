//! One cell of the table: what is made ready, what is done while the fault lasts, what must hold
//! afterwards.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vaultfs::clock::Clock;
use vaultfs::fs::{Drain, Errno, Options, Result};
use vaultfs::vault::Dialect;

use super::WAITED;
use super::world::{MovedClock, World};
use crate::shell::{CREATE, Fd, READ, Shell, WRITE};
use crate::support::proxy::{Fault, HUGE, Proxy};

/// `--timeout` of the mounts; what is made ready before has the same.
const TIMEOUT: Duration = Duration::from_secs(3);

/// `--refresh`: nothing goes stale by itself while a cell runs.
const REFRESH: Duration = Duration::from_secs(600);

/// What a loaded machine may take on top of a deadline.
const SLACK: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    ColdRead,
    WarmRead,
    StaleRead,
    Listing,
    Absent,
    Create,
    Update,
    Fsync,
    Truncate,
    Unlink,
    Rename,
    Direct,
    Version,
}

pub const OPERATIONS: [Operation; 13] = [
    Operation::ColdRead,
    Operation::WarmRead,
    Operation::StaleRead,
    Operation::Listing,
    Operation::Absent,
    Operation::Create,
    Operation::Update,
    Operation::Fsync,
    Operation::Truncate,
    Operation::Unlink,
    Operation::Rename,
    Operation::Direct,
    Operation::Version,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Every request, for as long as the operation takes.
    Lasting,
    /// The same, of a vault that answers with a refusal.
    Refusing,
    /// The first request only.
    Passing,
    /// Nobody listens.
    Down,
}

#[derive(Debug, Clone, Copy)]
pub struct Cell {
    pub mode: Mode,
    pub operation: Operation,
    pub fault: Fault,
    /// What an operation gets that needs an answer.
    pub errno: Option<Errno>,
    /// Requests of a read.
    pub requests: u64,
}

impl Cell {
    /// What this operation gets.
    fn expected(&self) -> Option<Errno> {
        match (self.operation, self.mode) {
            (Operation::WarmRead, _) | (_, Mode::Passing) => None,
            // An older value stands in, but for a refusal and for who wants none.
            (Operation::StaleRead, Mode::Lasting | Mode::Down) => None,
            // A spent limit is told as such.
            (Operation::Direct, Mode::Lasting) if self.errno == Some(Errno::EBUSY) => self.errno,
            (Operation::Direct, Mode::Lasting) => Some(Errno::ETIMEDOUT),
            _ => self.errno,
        }
    }

    fn most_requests(&self) -> u64 {
        let is_read = matches!(
            self.operation,
            Operation::ColdRead | Operation::StaleRead | Operation::Listing | Operation::Absent
        );
        match self.operation {
            Operation::WarmRead => 0,
            _ if is_read && self.mode != Mode::Passing => self.requests,
            // The change, a look whether it was made, and once more.
            _ => 12.max(self.requests + 3),
        }
    }
}

/// What is at hand while a cell is looked at.
struct Scene {
    world: Arc<World>,
    sh: Shell,
    clock: Arc<MovedClock>,
    operation: Operation,
    /// Names of this cell alone.
    name: String,
    other: String,
    fd: Option<Fd>,
    /// How a read may end that joins one from before the repair.
    joined: Option<Errno>,
}

pub async fn check(world: Arc<World>, cell: Cell, number: usize) {
    let proxy = Proxy::before(&world.server.url);
    let clock = Arc::new(MovedClock::default());
    let vault = world.through(&proxy.url, clock.clone()).await;
    let options = Options { timeout: TIMEOUT, refresh: REFRESH, ..Options::default() };
    let sh = Shell::over(vault, clock.clone() as Arc<dyn Clock>, options);
    let (name, other) = (format!("f{number}"), format!("g{number}"));
    let operation = cell.operation;
    let mut scene = Scene { world, sh, clock, operation, name, other, fd: None, joined: cell.errno };
    scene.prepare().await;

    match cell.mode {
        Mode::Passing => proxy.next(cell.fault, 1),
        Mode::Down => proxy.down(),
        Mode::Lasting | Mode::Refusing => proxy.always(cell.fault),
    }
    let (requests, errors) = (proxy.requests(), scene.sh.fs.status().last_errors.len());
    let began = Instant::now();
    let result = scene.act().await;
    let took = began.elapsed();
    let said = scene.sh.fs.status().last_errors;
    // An answer that is asked for until the deadline may be under way at its end.
    let is_late = cell.requests == WAITED && took >= TIMEOUT && result == Err(Errno::ETIMEDOUT);
    assert!(result.err() == cell.expected() || is_late, "{result:?}, not {:?}: {said:?}", cell.expected());
    assert!(took < TIMEOUT + SLACK, "it took {took:?}");
    let sent = proxy.requests() - requests;
    assert!(sent <= cell.most_requests(), "{sent} requests");
    assert_eq!(said.len() - errors, usize::from(cell.expected().is_some()), "one line: {said:?}");
    assert!(proxy.endless() < HUGE / 100, "{} bytes were read", proxy.endless());

    proxy.clear();
    if cell.mode == Mode::Down {
        proxy.up();
    }
    // A limit that is used up is so for a minute.
    scene.clock.advance(Duration::from_secs(61));
    scene.look_afterwards(&proxy).await;
}

impl Scene {
    async fn prepare(&mut self) {
        let (sh, name) = (&self.sh, &self.name);
        if !matches!(self.operation, Operation::Create | Operation::Absent) {
            self.world.put(name, "old").await;
        }
        match self.operation {
            Operation::ColdRead | Operation::Listing | Operation::Absent | Operation::Version => {}
            Operation::WarmRead | Operation::Direct | Operation::Truncate | Operation::Unlink => {
                sh.cat(name).await;
            }
            Operation::StaleRead => {
                sh.cat(name).await;
                self.clock.advance(REFRESH + Duration::from_secs(1));
            }
            Operation::Rename => {
                sh.cat(name).await;
                assert_eq!(sh.stat(&self.other).await, Err(Errno::ENOENT));
            }
            Operation::Create | Operation::Update | Operation::Fsync => {
                let flags = if self.operation == Operation::Create { CREATE } else { WRITE };
                let fd = sh.open(name, flags).await.unwrap();
                sh.pwrite(&fd, 0, "new bytes").unwrap();
                self.fd = Some(fd);
            }
        }
    }

    async fn act(&mut self) -> Result<()> {
        let (sh, name) = (&self.sh, &self.name);
        match self.operation {
            Operation::ColdRead | Operation::WarmRead | Operation::StaleRead => {
                let bytes = sh.read_file(name).await?;
                assert_eq!(bytes, b"old");
                Ok(())
            }
            Operation::Listing => sh.ls("").await.map(|names| assert!(names.contains(name))),
            Operation::Absent => match sh.stat(name).await {
                Err(Errno::ENOENT) => Ok(()),
                other => other.map(|_| panic!("it is not there")),
            },
            Operation::Create | Operation::Update => sh.close(self.fd.take().expect("opened before")).await,
            Operation::Fsync => sh.fsync(&self.fd.expect("opened before")).await,
            Operation::Truncate => sh.truncate(name, 1).await,
            Operation::Unlink => sh.rm(name).await,
            Operation::Rename => sh.mv(name, &self.other).await,
            Operation::Direct => sh.close(sh.open(name, READ | libc::O_DIRECT).await?).await,
            Operation::Version => {
                let bytes = sh.read_file(&format!(".versions/{name}/1")).await?;
                assert_eq!(bytes, b"old");
                Ok(())
            }
        }
    }

    /// A read that joins one from before the repair gets its answer: its timeout, or the fault's
    /// error. Nothing waits longer for it.
    async fn until_it_works(&mut self) {
        let end = Instant::now() + TIMEOUT + SLACK;
        while let Err(e) = self.act().await {
            let may_be = e == Errno::ETIMEDOUT || Some(e) == self.joined;
            assert!(may_be && Instant::now() < end, "{e:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Everything works at once; what was written is in the vault, each change once.
    async fn look_afterwards(mut self, proxy: &Proxy) {
        let (name, other) = (self.name.clone(), self.other.clone());
        match self.operation {
            Operation::ColdRead | Operation::WarmRead | Operation::StaleRead | Operation::Version => {
                let before = proxy.requests();
                self.until_it_works().await;
                let sent = proxy.requests() - before;
                let most = if self.operation == Operation::Version { 4 } else { 1 };
                assert!(sent <= most, "{sent} requests when it is back");
                assert_eq!(self.world.history(&name).await, Some((1, "old".to_owned())));
            }
            Operation::Direct | Operation::Listing | Operation::Absent => self.until_it_works().await,
            Operation::Create | Operation::Update | Operation::Fsync | Operation::Truncate => {
                if let Some(fd) = self.fd.take() {
                    self.sh.close(fd).await.unwrap();
                }
                let left = self.sh.fs.drain(Drain::All, Duration::from_secs(60)).await;
                assert!(left.is_empty(), "{left:?}");
                let (versions, text) = match self.operation {
                    Operation::Create => (1, "new bytes"),
                    Operation::Truncate => (2, "o"),
                    _ => (2, "new bytes"),
                };
                assert_eq!(self.world.history(&name).await, Some((versions, text.to_owned())));
                assert_eq!(self.sh.cat(&name).await, text);
            }
            Operation::Unlink => {
                let again = self.sh.rm(&name).await;
                assert!(matches!(again, Ok(()) | Err(Errno::ENOENT)), "{again:?}");
                assert_eq!(self.world.history(&name).await, None);
            }
            Operation::Rename => {
                let again = self.sh.mv(&name, &other).await;
                assert!(matches!(again, Ok(()) | Err(Errno::ENOENT)), "{again:?}");
                assert_eq!(self.world.history(&name).await, None);
                assert_eq!(self.world.history(&other).await, Some((1, "old".to_owned())));
                assert_eq!(self.sh.cat(&other).await, "old");
            }
        }
        let kv = self.world.dialect() == Dialect::Kv;
        assert!(self.sh.fs.unsaved().is_empty(), "kv: {kv}");
    }
}
