//! Random sessions against a map: whatever programs and others do, each object shows exactly once,
//! whole, where walking and looking agree, and the vault ends up with just that.
//!
//! Names collide on purpose: files below files, names of backups and temporaries, escapes. Every
//! value is made up only once, so a value tells its object. What several paths could mean is taken
//! from the spelling alone (`candidates`): which of them an object has depends on what was seen
//! first.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use vaultfs::fs::name::{DirPrefix, Rest, split, split_beside};
use vaultfs::fs::{Drain, Errno, FileKind, Options, Remover};
use vaultfs::vault::testing::memory::{KV_CAPABILITIES, Lagging, OBJECT_CAPABILITIES};

use crate::shell::helper::Helper;
use crate::shell::{CREATE, EXCL, Fd, Shell};

const NAMES: [&str; 11] =
    ["a", "a/b", "a/b/c", "a~", "a/b~", "a/.self", "b.tmp", "d/x", "a//b", "a.x", "a/b.x"];
/// Not for long: what others delete and make has to show in the time that a step takes.
const LONGEST_LAG: Duration = Duration::from_millis(700);
/// So long after a save or a deletion, as docs/SEMANTICS.md has it.
const NOT_UNDONE: Duration = Duration::from_secs(15);
const DIRS: [&str; 4] = ["a", "a/b", "d", "e"];

#[derive(Debug, Clone, Copy)]
enum Step {
    Write(usize),
    CreateExclusively(usize),
    Cut(usize, u64),
    /// By a program that is known to remove, or by another one.
    Unlink(usize, bool),
    Mknod(usize),
    Link(usize, usize),
    Rename(usize, usize),
    Open(usize),
    /// Cuts an open file and writes it anew, without closing it: its user is in the middle of
    /// writing.
    WriteOpen(usize),
    /// The same through a mapping, and without a cut.
    WriteMapped(usize),
    Fsync,
    Close(usize),
    Mkdir(usize),
    Rmdir(usize),
    Forget,
    Pass,
    PutElsewhere(usize),
    DeleteElsewhere(usize),
    Remount,
    /// The worker dies after so many more records.
    Die(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let name = 0..NAMES.len();
    let dir = 0..DIRS.len();
    let step = prop_oneof![
        4 => name.clone().prop_map(Step::Write),
        2 => name.clone().prop_map(Step::CreateExclusively),
        1 => (name.clone(), 0..3u64).prop_map(|(n, size)| Step::Cut(n, size)),
        3 => (name.clone(), any::<bool>()).prop_map(|(n, removes)| Step::Unlink(n, removes)),
        1 => name.clone().prop_map(Step::Mknod),
        1 => (name.clone(), name.clone()).prop_map(|(n, m)| Step::Link(n, m)),
        4 => (name.clone(), name.clone()).prop_map(|(n, m)| Step::Rename(n, m)),
        3 => name.clone().prop_map(Step::Open),
        3 => (0..4usize).prop_map(Step::WriteOpen),
        1 => (0..4usize).prop_map(Step::WriteMapped),
        1 => Just(Step::Fsync),
        3 => (0..4usize).prop_map(Step::Close),
        1 => dir.clone().prop_map(Step::Mkdir),
        2 => dir.prop_map(Step::Rmdir),
        1 => Just(Step::Forget),
        2 => Just(Step::Pass),
        3 => name.clone().prop_map(Step::PutElsewhere),
        2 => name.prop_map(Step::DeleteElsewhere),
        1 => Just(Step::Remount),
        4 => (0..24u64).prop_map(Step::Die),
    ];
    prop::collection::vec(step, 1..40)
}

/// The paths at which the object could be, by how names are spelt.
fn candidates(name: &str) -> Vec<String> {
    let (mut paths, mut under, mut above) = (Vec::new(), DirPrefix::root(), String::new());
    while let Some((text, rest)) = split(name, &under) {
        let beside = split_beside(name, &under).expect("it is in there");
        if beside.0 != text {
            paths.push(format!("{above}{}", beside.0));
        }
        match rest {
            Rest::File => {
                // The likeliest first: programs try it first.
                paths.insert(0, format!("{above}{text}"));
                paths.insert(1, format!("{above}{text}/.self"));
                break;
            }
            Rest::Dir(dir) => (above, under) = (format!("{above}{text}/"), dir),
        }
    }
    paths
}

/// An open file: the name that shows it, unless it was unlinked.
struct Open {
    fd: Fd,
    name: Option<&'static str>,
    /// It may have been written through this.
    wrote: bool,
    /// It surely was, and nothing of that can be in the vault yet.
    amid: bool,
}

struct Session {
    sh: Shell,
    /// What a program should see.
    model: BTreeMap<&'static str, Vec<u8>>,
    open: Vec<Open>,
    made: u32,
    /// Whether what happens elsewhere is brought to the kernel at once, by a helper, or found out
    /// later.
    helped: bool,
    /// Whether the vault does.
    lags: bool,
}

impl Session {
    fn fresh(&mut self) -> Vec<u8> {
        self.made += 1;
        format!("value {}", self.made).into_bytes()
    }

    /// The one path at which an object is, found by looking.
    async fn path(&self, name: &str) -> Option<String> {
        let mut found = None;
        for path in candidates(name) {
            match self.sh.stat(&path).await {
                Ok(attr) if attr.kind == FileKind::Regular => {
                    assert_eq!(found, None, "{name:?} shows twice, at {path:?} too");
                    found = Some(path);
                }
                Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(e) => panic!("stat {path:?}: {e:?}"),
            }
        }
        found
    }

    async fn check(&self) {
        let mut looked = BTreeMap::new();
        let mut numbers = BTreeMap::new();
        let mut one_number_one_inode = |ino: u64, what: String| {
            assert!(ino < 0xffff_ffff, "{what:?} has number {ino}");
            let before = numbers.insert(ino, what.clone());
            assert!(before.as_ref().is_none_or(|before| *before == what), "{ino} is {before:?} and {what:?}");
        };
        for dir in DIRS {
            if let Ok(attr) = self.sh.stat(dir).await {
                one_number_one_inode(attr.ino, dir.to_owned());
            }
        }
        for open in &self.open {
            let path = match open.name {
                Some(name) => self.path(name).await,
                None => None,
            };
            let shown = match &path {
                Some(path) => self.sh.stat(path).await.ok().map(|attr| attr.ino),
                None => None,
            };
            // One that its name does not show any more is another inode than all that are shown.
            let is_shown = shown == Some(open.fd.ino);
            let what = path.filter(|_| is_shown).unwrap_or_else(|| format!("what is open: {}", open.fd.ino));
            one_number_one_inode(open.fd.ino, what);
        }
        for name in NAMES {
            let path = self.path(name).await;
            if let Some(path) = &path {
                one_number_one_inode(self.sh.stat(path).await.unwrap().ino, path.clone());
            }
            assert_eq!(path.is_some(), self.model.contains_key(name), "{name:?} at {path:?}");
            if let Some(path) = path {
                let bytes = self.sh.read_file(&path).await.unwrap_or_else(|e| panic!("{path:?}: {e:?}"));
                assert_eq!(bytes, self.model[name], "{name:?} at {path:?}");
                looked.insert(path, bytes);
            }
        }
        assert_eq!(self.sh.walk("").await.expect("the vault answers"), looked, "walking and looking differ");
    }

    /// The vault has what programs see, once nothing is held back or open.
    async fn check_vault(&self) {
        assert!(self.sh.fs.unsaved().is_empty());
        assert_eq!(self.sh.names().await, self.model.keys().map(|n| (*n).to_owned()).collect::<Vec<_>>());
        for (name, bytes) in &self.model {
            let last = self.sh.history(name).await.pop();
            assert_eq!(last.as_deref().map(str::as_bytes), Some(&bytes[..]), "{name:?}");
        }
    }

    async fn settle(&self) {
        self.sh.pass(Duration::from_secs(6)).await;
        if self.open.is_empty() {
            self.check_vault().await;
        }
    }

    /// Writes a name that may be new: some path takes it, with the directories before it made as
    /// needed.
    async fn write(&mut self, name: &'static str, flags: i32) -> Option<()> {
        let bytes = self.fresh();
        let versions = self.sh.history(name).await.len();
        self.stored(name);
        let paths = self.path(name).await.map_or_else(|| candidates(name), |path| vec![path]);
        for path in &paths {
            for (at, _) in path.match_indices('/') {
                let _ = self.sh.mkdir(&path[..at]).await;
            }
            let Ok(fd) = self.sh.open(path, flags).await else { continue };
            self.sh.flush(&fd).await.unwrap();
            self.sh.pwrite(&fd, 0, &bytes).unwrap();
            self.sh.close(fd).await.unwrap();
            self.model.insert(name, bytes);
            if flags == CREATE && self.open.is_empty() && !name.ends_with('~') && name != "b.tmp" {
                assert_eq!(self.sh.history(name).await.len(), versions + 1, "one save, one version");
            }
            return Some(());
        }
        assert!(
            flags & libc::O_EXCL != 0 && self.model.contains_key(name),
            "no path of {paths:?} takes {name:?}"
        );
        None
    }

    /// What was written to this name may be stored, or cut off.
    fn stored(&mut self, name: &str) {
        self.open.iter_mut().filter(|open| open.name == Some(name)).for_each(|open| open.amid = false);
    }

    /// Writes anew through an open file, and goes on writing.
    async fn write_open(&mut self, at: usize) {
        let bytes = self.fresh();
        let Open { fd, name, .. } = self.open[at];
        self.sh.ftruncate(&fd, 0).await.unwrap();
        self.sh.pwrite(&fd, 0, &bytes).unwrap();
        assert_eq!(self.sh.read_all(&fd).await.unwrap(), bytes);
        if let Some(name) = name {
            self.stored(name);
            self.model.insert(name, bytes);
        }
        self.open[at].wrote = true;
        self.open[at].amid = true;
    }

    async fn write_mapped(&mut self, at: usize) {
        let bytes = self.fresh();
        let Open { fd, name, .. } = self.open[at];
        self.sh.pwrite_mapped(&fd, 0, &bytes).unwrap();
        let Some(name) = name else { return };
        // Of those who have it open nobody knows whose it is.
        self.stored(name);
        self.open.iter_mut().filter(|open| open.name == Some(name)).for_each(|open| open.wrote = true);
        let value = self.model.get_mut(name).expect("it is there");
        value.resize(value.len().max(bytes.len()), 0);
        value[..bytes.len()].copy_from_slice(&bytes);
    }

    /// A close stores what was written through its handle, and nothing that somebody else is in the
    /// middle of writing.
    async fn close(&mut self, at: usize) {
        let closed = self.open.remove(at);
        let Some(name) = closed.name else { return self.sh.close(closed.fd).await.unwrap() };
        let before = self.sh.history(name).await;
        self.sh.close(closed.fd).await.unwrap();
        let after = self.sh.history(name).await;
        let is_kept = name.ends_with('~') || name == "b.tmp";
        if closed.amid && !is_kept {
            let last = after.last().map(|last| last.as_bytes());
            assert_eq!(last, Some(&self.model[name][..]), "{name:?}: a close that stores");
        }
        if !closed.wrote && self.open.iter().any(|open| open.name == Some(name) && open.amid) {
            assert_eq!(before, after, "{name:?}: a close while somebody else is writing");
        } else {
            self.stored(name);
        }
    }

    async fn rename(&mut self, from: &'static str, to: &'static str) {
        self.stored(from);
        self.stored(to);
        let Some(source) = self.path(from).await else { return };
        let target = self.path(to).await.unwrap_or_else(|| candidates(to).remove(0));
        if self.sh.mv(&source, &target).await.is_err() || from == to {
            return;
        }
        let bytes = self.model.remove(from).expect("it was there");
        self.model.insert(to, bytes);
        for open in &mut self.open {
            match open.name {
                Some(name) if name == to => open.name = None,
                Some(name) if name == from => open.name = Some(to),
                _ => {}
            }
        }
    }

    /// An empty file, which its first writer stores.
    async fn mknod(&mut self, name: &'static str) {
        if self.path(name).await.is_some() {
            return;
        }
        for path in candidates(name) {
            if self.sh.mknod(&path).await.is_ok() {
                self.model.insert(name, Vec::new());
                return;
            }
        }
    }

    /// Another object with the same bytes, if they are stored.
    async fn link(&mut self, from: &'static str, to: &'static str) {
        let Some(source) = self.path(from).await else { return };
        if self.path(to).await.is_some() {
            return;
        }
        self.stored(from);
        if self.sh.link(&source, &candidates(to).remove(0)).await.is_ok() {
            assert_eq!(
                self.sh.history(to).await.pop().as_deref().map(str::as_bytes),
                Some(&self.model[from][..])
            );
            self.model.insert(to, self.model[from].clone());
        }
    }

    #[expect(clippy::too_many_lines, reason = "one story, or one table")]
    async fn run(&mut self, step: Step) {
        match step {
            Step::Write(n) => drop(self.write(NAMES[n], CREATE).await),
            Step::CreateExclusively(n) => drop(self.write(NAMES[n], EXCL).await),
            Step::Cut(n, size) => {
                self.stored(NAMES[n]);
                if let Some(path) = self.path(NAMES[n]).await {
                    self.sh.truncate(&path, size).await.unwrap();
                    self.model.get_mut(NAMES[n]).expect("it was found").resize(size as usize, 0);
                }
            }
            Step::Unlink(n, removes) => {
                if let Some(path) = self.path(NAMES[n]).await {
                    let by = if removes { Remover::Removes } else { Remover::Unknown };
                    self.sh.unlink(&path, by).await.unwrap();
                    self.model.remove(NAMES[n]);
                    let unlinked = self.open.iter_mut().filter(|open| open.name == Some(NAMES[n]));
                    unlinked.for_each(|open| open.name = None);
                }
            }
            Step::Mknod(n) => self.mknod(NAMES[n]).await,
            Step::Link(n, m) => self.link(NAMES[n], NAMES[m]).await,
            Step::Rename(n, m) => self.rename(NAMES[n], NAMES[m]).await,
            Step::Open(n) => {
                if let Some(path) = self.path(NAMES[n]).await {
                    let fd = self.sh.open(&path, libc::O_RDWR).await.unwrap();
                    self.open.push(Open { fd, name: Some(NAMES[n]), wrote: false, amid: false });
                }
            }
            Step::WriteOpen(_) | Step::WriteMapped(_) | Step::Close(_) if self.open.is_empty() => {}
            Step::WriteOpen(n) => self.write_open(n % self.open.len()).await,
            Step::WriteMapped(n) => self.write_mapped(n % self.open.len()).await,
            Step::Close(n) => self.close(n % self.open.len()).await,
            Step::Fsync => {
                if let Some(open) = self.open.first() {
                    self.sh.fsync(&open.fd).await.unwrap();
                    open.name.into_iter().for_each(|name| self.stored(name));
                }
            }
            Step::Mkdir(d) => drop(self.sh.mkdir(DIRS[d]).await),
            Step::Rmdir(d) => {
                let removed = self.sh.rmdir(DIRS[d]).await;
                let below = format!("{}/", DIRS[d]);
                if removed.is_ok() {
                    assert!(!self.model.keys().any(|name| name.starts_with(&below)), "it was not empty");
                }
                if removed == Err(Errno::ENOTEMPTY) {
                    self.settle().await;
                    match self.sh.ls(DIRS[d]).await {
                        Ok(names) => assert_ne!(names, Vec::<String>::new()),
                        // The object of the directory's own name was in it, and nothing else is
                        // left.
                        Err(e) => assert!(e == Errno::ENOTDIR && self.model.contains_key(DIRS[d]), "{e:?}"),
                    }
                }
            }
            Step::Forget => self.sh.forget_all(),
            Step::Pass => self.settle().await,
            Step::Die(records) => self.sh.die_after(records),
            Step::PutElsewhere(_) | Step::DeleteElsewhere(_) => self.elsewhere(step).await,
            Step::Remount => {
                for open in self.open.drain(..) {
                    self.sh.close(open.fd).await.unwrap();
                }
                // What dies while it drains drains again.
                let mut left = self.sh.fs.drain(Drain::All, Duration::from_secs(60)).await;
                while self.sh.bury() {
                    left = self.sh.fs.drain(Drain::All, Duration::from_secs(60)).await;
                }
                assert_eq!(left, []);
                self.check_vault().await;
                // Another mount does not know what this one stored a moment ago.
                self.sh.pass(LONGEST_LAG).await;
                self.sh = self.sh.remount();
                if self.helped {
                    Helper::start(&self.sh);
                }
            }
        }
    }

    /// With files open or held back, whose bytes win depends on who comes last: other tests know.
    async fn elsewhere(&mut self, step: Step) {
        if !self.open.is_empty() {
            return;
        }
        self.settle().await;
        self.put_or_delete(step).await;
        if self.lags {
            // Of a vault that was seen to lag no answer is believed before that undoes what was
            // done here.
            self.sh.pass(NOT_UNDONE).await;
        }
        self.shows().await;
    }

    async fn put_or_delete(&mut self, step: Step) {
        match step {
            Step::PutElsewhere(n) => {
                let bytes = self.fresh();
                self.sh.put(NAMES[n], bytes.clone()).await;
                self.model.insert(NAMES[n], bytes);
            }
            Step::DeleteElsewhere(n) if self.model.remove(NAMES[n]).is_some() => {
                self.sh.delete(NAMES[n]).await
            }
            _ => {}
        }
    }

    /// What was made elsewhere is brought to the kernel, or found out.
    async fn shows(&mut self) {
        if self.helped {
            loop {
                self.sh.pass(Duration::from_millis(2)).await;
                self.sh.fs.propagator().refresh_now().await;
                // One that dies of it has a successor, which begins again.
                if !self.sh.bury() {
                    break;
                }
            }
            let helper = self.sh.fs.status().changes.helper;
            assert_eq!((helper.fallbacks, helper.last_fallback), (0, None));
        } else {
            self.sh.refresh().await;
        }
    }
}

fn session(kv: bool, helped: bool, lagging: Lagging, steps: &[Step], checks_each: bool) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let capabilities = if kv { KV_CAPABILITIES } else { OBJECT_CAPABILITIES };
        let sh = Shell::of(capabilities, Options::default());
        sh.memory.lag(lagging);
        if helped {
            Helper::start(&sh);
        }
        let mut session = Session {
            sh,
            model: BTreeMap::new(),
            open: Vec::new(),
            made: 0,
            helped,
            lags: lagging != Lagging::Never,
        };
        for step in steps {
            session.run(*step).await;
            if checks_each {
                session.check().await;
            }
        }
        session.check().await;
        session.run(Step::Remount).await;
        session.check().await;
    });
}

/// `scripts/test --all` runs the long form; PROPTEST_CASES says how many by itself.
pub fn config() -> ProptestConfig {
    let default = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    match (std::env::var_os("VAULTFS_TEST_ALL"), std::env::var_os("PROPTEST_CASES")) {
        (Some(_), _) => ProptestConfig { cases: 100_000, ..default },
        (None, Some(_)) => default,
        (None, None) => ProptestConfig { cases: 2_000, ..default },
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn sessions_of_programs_and_others_end_as_they_should(
        kv: bool,
        helped: bool,
        checks_each: bool,
        // A death costs more than all the rest.
        dies in prop::bool::weighted(0.1),
        lagging in prop_oneof![
            8 => Just(Lagging::Never),
            1 => Just(Lagging::Always(LONGEST_LAG)),
            1 => Just(Lagging::Alternating(LONGEST_LAG)),
        ],
        steps in steps(),
    ) {
        let lives: Vec<Step> =
            steps.iter().copied().filter(|step| dies || !matches!(step, Step::Die(_))).collect();
        let lagging = if dies { Lagging::Never } else { lagging };
        session(kv, helped, lagging, &lives, checks_each);
    }
}

/// Shrunk from sessions that once ended otherwise.
#[test]
fn sessions_that_once_failed() {
    use Step::*;
    let sessions: [&[Step]; 8] = [
        // A file in the place of a directory that emptied elsewhere: nothing could be made below
        // it.
        &[PutElsewhere(1), CreateExclusively(1), DeleteElsewhere(1), CreateExclusively(0), Write(1)],
        // A directory with nothing in it but a hidden object.
        &[Write(3), Write(4), Cut(0, 0), Rename(4, 3), Rmdir(0)],
        // A backup over an object, moved on: the object showed again.
        &[CreateExclusively(3), Write(1), Pass, Rename(1, 3), Rename(3, 6)],
        // A directory that emptied elsewhere became a file when a listing said so, not when it was
        // looked up.
        &[PutElsewhere(2), PutElsewhere(0), Mkdir(2), WriteOpen(0), DeleteElsewhere(2)],
        // An object came back to a name like a backup's, and was replaced there by a file that is
        // held back.
        &[PutElsewhere(6), Rename(6, 3), Rename(3, 6), CreateExclusively(4), Rename(4, 6)],
        // The directory of a file that is held back was listed, and not found.
        &[Mkdir(2), PutElsewhere(0), CreateExclusively(4), Unlink(0, true)],
        // The worker died of what it heard of a change elsewhere.
        &[Write(3), Remount, PutElsewhere(0), Write(2), Die(14), Write(3), Pass, PutElsewhere(0)],
        // A directory whose only object was made here and deleted elsewhere could not be removed.
        &[Write(1), DeleteElsewhere(1), Rmdir(0)],
    ];
    for steps in sessions {
        for (kv, checks_each) in [(false, false), (false, true), (true, false), (true, true)] {
            session(kv, false, Lagging::Never, steps, checks_each);
            session(kv, true, Lagging::Never, steps, checks_each);
        }
    }
}

/// Shrunk like those above, over a vault whose answers lag.
#[test]
fn sessions_that_once_failed_over_a_vault_that_lags() {
    use Step::*;
    // What is deleted elsewhere within the seconds in which the vault's absences are not believed.
    let steps = [Write(3), Write(2), DeleteElsewhere(2)];
    for (kv, checks_each) in [(false, false), (false, true), (true, false), (true, true)] {
        for lagging in [Lagging::Always(LONGEST_LAG), Lagging::Alternating(LONGEST_LAG)] {
            session(kv, false, lagging, &steps, checks_each);
            session(kv, true, lagging, &steps, checks_each);
        }
    }
}
