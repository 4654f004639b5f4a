//! A worker dies between any two lines of a publish: of each step of the memory that the keeper
//! holds, at each commit of each change, a copy is taken as a death there leaves it, and a
//! successor goes on from the copy. A change is there as a whole or not at all.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::unistd::Whence;
use vaultfs::daemon::state_log::{self, SealKey, State};
use vaultfs::failpoint;
use vaultfs::fs::{Journal, JournalStatus, Options, Record, Value};
use vaultfs::secret::SecretBytes;
use vaultfs::vault::testing::memory::{MemoryVault, OBJECT_CAPABILITIES};

use crate::dying::Mortal;
use crate::shell::{EXCL, Fd, READ, Shell, WRITE};

/// Where a worker dies, and what it leaves.
#[derive(Debug)]
struct Death {
    memory: OwnedFd,
    /// Points until then.
    left: Mutex<Option<u64>>,
    image: Mutex<Option<OwnedFd>>,
    /// Where it was.
    point: Mutex<String>,
}

thread_local! {
    /// Of the journal that publishes now.
    static PUBLISHING: RefCell<Option<Arc<Death>>> = const { RefCell::new(None) };
}

fn passes(point: &str) {
    PUBLISHING.with_borrow(|death| {
        let Some(death) = death else { return };
        let mut left = death.left.lock().unwrap();
        match *left {
            Some(0) if death.image.lock().unwrap().is_none() => {
                *death.image.lock().unwrap() = Some(copy(&death.memory));
                *death.point.lock().unwrap() = point.to_owned();
            }
            Some(0) | None => {}
            Some(more) => *left = Some(more - 1),
        }
    });
}

/// A copy of the memory: of what there is of it.
fn copy(memory: &OwnedFd) -> OwnedFd {
    let copy = File::from(state_log::create().unwrap());
    let memory = File::from(memory.try_clone().unwrap());
    let mut at = 0;
    while let Ok(from) = nix::unistd::lseek(memory.as_fd(), at, Whence::SeekData) {
        at = nix::unistd::lseek(memory.as_fd(), from, Whence::SeekHole).unwrap();
        let mut bytes = vec![0; (at - from) as usize];
        memory.read_exact_at(&mut bytes, from as u64).unwrap();
        copy.write_all_at(&bytes, from as u64).unwrap();
    }
    copy.into()
}

/// The journal of a real mount. A step is a point between two lines of it.
#[derive(Debug)]
pub struct Log {
    state: State,
    key: SealKey,
    death: Arc<Death>,
}

impl Log {
    pub fn over(memory: OwnedFd, key: SealKey) -> Self {
        let state = State::open(memory.try_clone().unwrap(), &key).unwrap();
        let death =
            Death { memory, left: Mutex::default(), image: Mutex::default(), point: Mutex::default() };
        Self { state, key, death: Arc::new(death) }
    }

    fn new() -> Arc<Self> {
        Arc::new(Self::over(state_log::create().unwrap(), SealKey::random().unwrap()))
    }

    /// The next commit copies what is live to the other region first.
    fn is_full(&self) {
        let slot = |value| vec![Record { slot: b"filler".to_vec(), order: 1, value }];
        self.state.append(slot(Some(Value::Plain(vec![1; 5 << 20]))));
        self.state.append(slot(None));
    }
}

impl Mortal for Log {
    fn stop_after(&self, steps: u64) {
        *self.death.left.lock().unwrap() = Some(steps);
    }
    fn has_stopped(&self) -> bool {
        self.death.image.lock().unwrap().is_some()
    }
    fn miss_values(&self) {
        unreachable!("there is memory");
    }
    fn successor(&self) -> Arc<dyn Mortal> {
        let image = self.death.image.lock().unwrap().as_ref().unwrap().try_clone().unwrap();
        Arc::new(Self::over(image, self.key.clone()))
    }
}

impl Journal for Log {
    fn append(&self, records: Vec<Record>) {
        if !self.has_stopped() {
            PUBLISHING.set(Some(self.death.clone()));
            failpoint::observe(Some(passes));
            self.state.append(records);
            failpoint::observe(None);
        }
    }
    fn read(&self) -> Vec<(Vec<u8>, Value)> {
        self.state.read()
    }
    fn status(&self) -> JournalStatus {
        self.state.status()
    }
    fn accept(&self) {
        self.state.accept();
    }
    fn missed(&self, slot: Vec<u8>, why: String) {
        self.state.missed(slot, why);
    }
    fn refused(&self, records: usize) {
        self.state.refused(records);
    }
}

#[test]
fn a_publish_is_there_as_a_whole_or_not_at_all() {
    let plain = |slot: &str, order, value: &str| Record {
        slot: slot.into(),
        order,
        value: Some(Value::Plain(value.into())),
    };
    let gone = |slot: &str, order| Record { slot: slot.into(), order, value: None };
    let secret = |slot: &str, order, value: &[u8]| Record {
        slot: slot.into(),
        order,
        value: Some(Value::Secret(SecretBytes::from(value))),
    };
    let commits = || {
        vec![
            vec![plain("a", 1, "1"), plain("b", 2, "1"), secret("s", 3, &[1; 100])],
            vec![plain("a", 4, "2"), gone("b", 5), secret("s", 6, &[2; 50]), plain("c", 7, "2")],
            vec![gone("a", 8), gone("c", 9), gone("s", 10), plain("b", 11, "3")],
        ]
    };
    let shown = |log: &Log| {
        let value = |value: Value| match value {
            Value::Plain(bytes) => bytes,
            Value::Secret(bytes) => bytes.expose().to_vec(),
        };
        log.read().into_iter().map(|(slot, at)| (slot, value(at))).collect::<BTreeMap<_, _>>()
    };
    let mut points = BTreeMap::new();
    for (commit, full) in (0..3).flat_map(|commit| [(commit, false), (commit, true)]) {
        for step in 0.. {
            let log = Log::new();
            commits().drain(..commit).for_each(|records| log.append(records));
            if full {
                log.is_full();
            }
            let before = shown(&log);
            log.stop_after(step);
            log.append(commits().remove(commit));
            let after = shown(&log);
            assert_ne!(before, after);
            let Some(image) = log.death.image.lock().unwrap().take() else { break };
            let point = log.death.point.lock().unwrap().clone();
            let successor = Log::over(image, log.key.clone());
            let found = shown(&successor);
            let is_out = matches!(&*point, "journal published" | "journal noted");
            assert_eq!(found, if is_out { after } else { before }, "commit {commit}, {point}");
            assert!(successor.status().complete, "commit {commit}, {point}: {:?}", successor.status());
            *points.entry(point).or_insert(0) += 1;
        }
    }
    assert_eq!(points.len(), 11, "{points:?}");
}

type Act = for<'a> fn(&'a Shell, &'a Slot) -> Pin<Box<dyn Future<Output = vaultfs::fs::Result<()>> + 'a>>;

/// What is open beforehand.
type Slot = Mutex<Option<Fd>>;

/// A change: what is done before, the change, the files afterwards, and which of them have how many
/// versions.
struct Row {
    what: &'static str,
    prepare: Act,
    act: Act,
    after: &'static [(&'static str, &'static str)],
    versions: &'static [(&'static str, usize)],
    /// The vault needs one request for it at the most: also without its kernel asking again it is
    /// done, or not.
    is_one_step: bool,
}

const BEFORE: &[(&str, &str)] = &[("a", "one"), ("d/x", "three"), ("d/y", "four"), ("f", "two")];

macro_rules! act {
    (|$sh:ident, $fd:ident| $body:expr) => {
        |$sh, $fd| Box::pin(async move { $body })
    };
}

fn nothing() -> Act {
    act!(|_sh, _fd| Ok(()))
}

#[expect(clippy::too_many_lines, reason = "one story, or one table")]
fn rows() -> Vec<Row> {
    let row = |what, act, after, versions| Row {
        what,
        prepare: nothing(),
        act,
        after,
        versions,
        is_one_step: true,
    };
    vec![
        Row {
            prepare: act!(|sh, fd| {
                let opened = sh.open("f", WRITE | libc::O_TRUNC).await?;
                sh.pwrite(&opened, 0, "saved")?;
                *fd.lock().unwrap() = Some(opened);
                Ok(())
            }),
            ..row(
                "save",
                act!(|sh, fd| {
                    let opened = fd.lock().unwrap().unwrap();
                    sh.flush(&opened).await
                }),
                &[("a", "one"), ("d/x", "three"), ("d/y", "four"), ("f", "saved")],
                &[("f", 2)],
            )
        },
        row(
            "create",
            act!(|sh, fd| {
                let made = sh.open("new", EXCL).await?;
                *fd.lock().unwrap() = Some(made);
                Ok(())
            }),
            &[("a", "one"), ("d/x", "three"), ("d/y", "four"), ("f", "two"), ("new", "")],
            &[("new", 1)],
        ),
        Row {
            is_one_step: false,
            ..row(
                "create, and save later",
                act!(|sh, fd| {
                    let made = sh.open("new", EXCL).await?;
                    *fd.lock().unwrap() = Some(made);
                    sh.pass(Duration::from_secs(1)).await;
                    sh.pwrite(&made, 0, "saved")?;
                    sh.flush(&made).await
                }),
                &[("a", "one"), ("d/x", "three"), ("d/y", "four"), ("f", "two"), ("new", "saved")],
                &[("new", 1)],
            )
        },
        Row {
            is_one_step: false,
            ..row(
                "rename over a file",
                act!(|sh, _fd| sh.mv("a", "f").await),
                &[("d/x", "three"), ("d/y", "four"), ("f", "one")],
                &[("f", 2)],
            )
        },
        row(
            "unlink",
            act!(|sh, _fd| sh.rm("f").await),
            &[("a", "one"), ("d/x", "three"), ("d/y", "four")],
            &[("a", 1)],
        ),
        row("mkdir", act!(|sh, _fd| sh.mkdir("made").await.map(drop)), BEFORE, &[("f", 1)]),
        row(
            "open",
            act!(|sh, fd| {
                let opened = sh.open("f", READ).await?;
                *fd.lock().unwrap() = Some(opened);
                Ok(())
            }),
            BEFORE,
            &[("f", 1)],
        ),
        row("chmod", act!(|sh, _fd| sh.chmod("f", 0o640).await.map(drop)), BEFORE, &[("f", 1)]),
        row(
            "truncate",
            act!(|sh, _fd| sh.truncate("f", 1).await),
            &[("a", "one"), ("d/x", "three"), ("d/y", "four"), ("f", "t")],
            &[("f", 2)],
        ),
        Row {
            prepare: act!(|sh, _fd| sh.mkdir("made").await.map(drop)),
            ..row("rename of a directory", act!(|sh, _fd| sh.mv("made", "moved").await), BEFORE, &[("f", 1)])
        },
    ]
}

fn files(list: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
    list.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.as_bytes().to_vec())).collect()
}

/// What the vault has.
async fn objects(sh: &Shell) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for name in sh.names().await {
        let last = sh.history(&name).await.pop().unwrap();
        all.insert(name, last.into_bytes());
    }
    all
}

/// One change, with a death at that step; whether there was one.
#[expect(clippy::too_many_lines, reason = "one story, or one table")]
async fn dies(row: &Row, step: u64, full: bool, killed: bool) -> bool {
    let (journal, clock) = (Log::new(), Shell::paused());
    let memory = Arc::new(MemoryVault::new(OBJECT_CAPABILITIES, clock.clone()));
    let sh = Shell::with_journal(memory.clone(), memory, clock, Options::default(), journal.clone());
    for (name, bytes) in BEFORE {
        sh.put(name, *bytes).await;
    }
    assert_eq!(sh.walk("").await.unwrap(), files(BEFORE));
    let fd = Slot::default();
    (row.prepare)(&sh, &fd).await.unwrap();
    if full {
        journal.is_full();
    }
    journal.stop_after(step);
    sh.is_killed.store(killed, Ordering::Relaxed);
    let done = (row.act)(&sh, &fd).await;
    let died = sh.bury() || sh.deaths.load(Ordering::Relaxed) > 0;
    sh.is_killed.store(false, Ordering::Relaxed);
    let point = journal.death.point.lock().unwrap().clone();
    let at = format!("{}, step {step}, {point}, full: {full}, killed: {killed}", row.what);
    let (before, after) = (files(BEFORE), files(row.after));
    if killed && died {
        // What the dead worker had deleted at the vault is found out like any deletion elsewhere.
        if row.what != "unlink" {
            let shows = sh.walk("").await.unwrap();
            assert!(shows == before || shows == after || row.what == "save", "{at}: {shows:?}");
        }
    } else {
        done.unwrap_or_else(|e| panic!("{at}: {e:?}"));
        assert_eq!(sh.walk("").await.unwrap(), after, "{at}");
    }
    let made = match row.what {
        "mkdir" => Some("made"),
        "rename of a directory" => Some("moved"),
        _ => None,
    };
    if let Some(made) = made.filter(|_| !(killed && died)) {
        assert_eq!(sh.ls(made).await.unwrap(), [""; 0], "{at}");
        sh.rmdir(made).await.unwrap();
        assert_eq!(sh.ls("").await.unwrap(), ["a", "d/", "f"], "{at}");
    }
    if row.what == "chmod" {
        let mode: u32 = sh.stat("f").await.unwrap().perm.into();
        assert!(mode == 0o640 || (killed && died && mode == sh.fs.options().file_mode), "{at}: {mode:o}");
    }
    let opened = fd.lock().unwrap().take();
    if let Some(opened) = opened {
        let bytes = sh.read_all(&opened).await.unwrap_or_else(|e| panic!("{at}: {e:?}"));
        let own = match row.what {
            "save" | "create, and save later" => "saved",
            "create" => "",
            _ => "two",
        };
        assert_eq!(bytes, own.as_bytes(), "{at}");
        sh.close(opened).await.unwrap_or_else(|e| panic!("{at}: {e:?}"));
    }
    // A handle that no program has counts as closed after a minute.
    let is_left_open = killed && died && matches!(row.what, "create" | "open");
    sh.pass(Duration::from_secs(if is_left_open { 65 } else { 6 })).await;
    if killed {
        // Also what the dead worker had deleted, by who looks.
        sh.refresh().await;
        for (name, _) in BEFORE {
            let _ = sh.stat(name).await;
        }
    }
    assert!(sh.fs.unsaved().is_empty(), "{at}: {:?}", sh.fs.unsaved());
    assert_eq!(sh.fs.status().handles, 0, "{at}");
    assert!(sh.fs.status().journal.is_some_and(|journal| journal.complete && journal.refused == 0), "{at}");
    let (shows, stored) = (sh.walk("").await.unwrap(), objects(&sh).await);
    assert_eq!(shows, stored, "{at}");
    if killed && died && row.what != "save" {
        assert!(shows == before || shows == after, "{at}: {shows:?}");
    } else {
        assert_eq!(shows, after, "{at}");
        for (name, versions) in row.versions {
            assert_eq!(sh.history(name).await.len(), *versions, "{at}: {name}");
        }
    }
    died
}

fn at_each_point(killed: bool) {
    for row in rows().iter().filter(|row| !killed || row.is_one_step) {
        // What the copying of all records leaves, the test above knows.
        for full in [false, true].into_iter().filter(|full| !full || row.what == "save") {
            let deaths = (0..).take_while(|step| {
                let runtime = tokio::runtime::Builder::new_current_thread();
                let runtime = { runtime }.enable_all().start_paused(true).build().unwrap();
                runtime.block_on(dies(row, *step, full, killed))
            });
            let deaths = deaths.count();
            assert!(deaths >= 6, "{}: {deaths}", row.what);
        }
    }
}

#[test]
fn a_change_survives_a_death_between_any_two_lines_of_its_publish() {
    at_each_point(false);
}

#[test]
fn a_change_whose_program_dies_too_is_there_as_a_whole_or_not_at_all() {
    at_each_point(true);
}
