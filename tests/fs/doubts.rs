//! A save of which no answer was heard, with a second writer at each step between request and
//! answer: it is made once, goes over nobody's newer version, and what cannot be told is a conflict
//! that is told (`meddler`).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use proptest::prelude::*;
use vaultfs::fs::{Errno, Options};
use vaultfs::vault::testing::memory::{KV_CAPABILITIES, MemoryVault, OBJECT_CAPABILITIES};

use crate::meddler::{Event, Loss, Meddler, NAME, Other, Script};
use crate::shell::{CREATE, READ, Shell};

/// How a program saves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Save {
    /// Makes or rewrites it.
    Write,
    /// Adds to what is there.
    Append,
    /// Renames another file to it, over what is there.
    Rename,
}

const SAVES: [Save; 3] = [Save::Write, Save::Append, Save::Rename];
const LOSSES: [Loss; 7] = [
    Loss::None,
    Loss::Answer,
    Loss::AnswerAndVault,
    Loss::Request,
    Loss::Late,
    Loss::Worker,
    Loss::WorkerAndRequest,
];
const OTHERS: [Other; 6] =
    [Other::Nothing, Other::Puts, Other::PutsAlike, Other::PutsTwice, Other::Deletes, Other::Replaces];

struct Session {
    sh: Arc<Shell>,
    meddler: Arc<Meddler>,
    kv: bool,
    number: u32,
}

impl Session {
    fn new(kv: bool) -> Self {
        let clock = Shell::paused();
        let capabilities = if kv { KV_CAPABILITIES } else { OBJECT_CAPABILITIES };
        let memory = Arc::new(MemoryVault::new(capabilities, clock.clone()));
        let meddler = Meddler::new(memory.clone());
        let sh = Arc::new(Shell::of_vault(meddler.clone(), memory, clock, Options::default()));
        let weak = Arc::downgrade(&sh);
        meddler.kill_with(move || weak.upgrade().expect("it is used").die_after(0));
        Self { sh, meddler, kv, number: 0 }
    }

    /// The same, of a vault that ignores keys of requests.
    fn without_keys(kv: bool) -> Self {
        let session = Self::new(kv);
        session.meddler.knows_keys.store(false, Ordering::SeqCst);
        session
    }

    /// One save, and all that happens to it until the vault is well and time has gone by. Whether
    /// its program was told that it is stored.
    async fn save(&mut self, how: Save, script: Script) -> bool {
        self.number += 1;
        // By its size what is unsaved is told from what an earlier save left.
        let pad = (self.number * self.number * 7) as usize;
        let tag = format!("[{:.<pad$}mine {:04}]", "", self.number);
        let case = format!("kv {}, keys {}, {tag} {how:?}, {script:?}", self.kv, self.knows_keys());
        if how == Save::Rename {
            self.sh.write_file("t", &tag).await.unwrap();
        }
        let begun = self.meddler.log.lock().unwrap().len();
        self.meddler.play(script);
        let (mut result, size) = self.try_save(how, &tag).await;
        self.meddler.rest();
        if how == Save::Rename && result.is_err() && self.sh.stat("t").await.is_ok() {
            // Its program tries again.
            result = self.asked(self.sh.mv("t", NAME)).await;
            let kept = result.is_ok() || self.sh.cat("t").await == tag;
            assert!(kept, "{case}: {result:?}, and it is nowhere");
        }
        self.sh.pass(Duration::from_secs(300)).await;
        self.check(&case, (&tag, size), how, begun, result);
        result.is_ok()
    }

    fn knows_keys(&self) -> bool {
        self.meddler.knows_keys.load(Ordering::SeqCst)
    }

    async fn asked<T>(&self, work: impl Future<Output = T>) -> T {
        self.meddler.asked.store(true, Ordering::SeqCst);
        let result = work.await;
        self.meddler.asked.store(false, Ordering::SeqCst);
        result
    }

    /// What the program is told, and how much it saved.
    async fn try_save(&self, how: Save, tag: &str) -> (Result<(), Errno>, u64) {
        let (sh, len) = (&self.sh, tag.len() as u64);
        if how == Save::Rename {
            return (self.asked(sh.mv("t", NAME)).await, len);
        }
        let flags = if how == Save::Write { CREATE } else { libc::O_WRONLY | libc::O_CREAT };
        let fd = match sh.open(NAME, flags).await {
            Ok(fd) => fd,
            Err(e) => return (Err(e), len),
        };
        let before = sh.fstat(&fd).size;
        let written = sh.pwrite(&fd, before, tag).map(drop);
        let closed = self.asked(sh.close(fd)).await;
        (written.and(closed), before + len)
    }

    fn check(
        &self,
        case: &str,
        (tag, size): (&str, u64),
        how: Save,
        begun: usize,
        result: Result<(), Errno>,
    ) {
        let log = self.meddler.log.lock().unwrap().clone();
        let log = &log[begun..];
        let case = format!("{case}: {result:?}, {log:?}");
        let is_ours = |event: &Event| matches!(event, Event::Ours { value, .. } if value.ends_with(tag));
        let made: Vec<usize> = (0..log.len()).filter(|at| is_ours(&log[*at])).collect();
        let since = |at: usize| &log[at + 1..];
        // What a vault without keys cannot tell: a new name whose creation was not heard of, and
        // that is absent.
        let is_made_anew = |first: usize, second: usize| {
            !self.knows_keys()
                && matches!(log[first], Event::Ours { made: true, .. })
                && log[first..second].contains(&Event::Deleted)
        };
        if let [first, second, ..] = made[..] {
            // And of the object dialect, which has no check: what arrives after the look.
            let late = !self.kv && !self.knows_keys() && case.contains("Late");
            assert!(made.len() == 2 && (is_made_anew(first, second) || late), "made twice: {case}");
        }
        for event in &made {
            let Event::Ours { asked: false, made: anew, .. } = log[*event] else { continue };
            let overtaken = log[..*event].iter().any(|event| matches!(event, Event::Theirs | Event::Deleted));
            assert!(
                !overtaken || (anew && is_made_anew(made[0], *event)),
                "by itself it went over others: {case}"
            );
        }
        let unsaved = self.sh.fs.unsaved();
        let is_unsaved = unsaved.iter().any(|unsaved| unsaved.name == NAME && unsaved.size == size);
        assert!(unsaved.iter().all(|unsaved| unsaved.conflict), "it is still tried again: {case}");
        match made.last() {
            None => {
                assert!(result.is_err(), "acknowledged, and nowhere: {case}");
                let kept = is_unsaved || how == Save::Rename;
                assert!(kept, "neither stored nor told: {case}");
                let others = log.iter().any(|event| matches!(event, Event::Theirs | Event::Deleted));
                assert!(others, "nobody was in its way: {case}");
            }
            Some(last) if is_unsaved => {
                assert!(result.is_err(), "acknowledged, and unsaved: {case}");
                let is_gone = since(*last).contains(&Event::Deleted);
                let is_covered = since(*last).contains(&Event::Theirs);
                let is_told = self.knows_keys() || !self.kv;
                assert!(is_gone || (is_covered && !is_told), "it is made, and can be told: {case}");
            }
            Some(_) => {}
        }
    }
}

fn block_on(work: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(work);
}

#[test]
fn a_save_in_doubt_is_made_once_whatever_somebody_else_does_meanwhile() {
    save_in_doubt(Session::new);
}

#[test]
fn a_save_in_doubt_is_made_once_also_by_a_vault_that_ignores_keys() {
    save_in_doubt(Session::without_keys);
}

fn save_in_doubt(of: fn(bool) -> Session) {
    for kv in [false, true] {
        for there in [false, true] {
            for (how, loss) in SAVES.into_iter().flat_map(|how| LOSSES.map(|loss| (how, loss))) {
                for others in all_others() {
                    block_on(async {
                        let mut session = of(kv);
                        if there {
                            session.sh.put(NAME, "before").await;
                            session.sh.cat(NAME).await;
                        }
                        session.save(how, Script { loss, others }).await;
                    });
                }
            }
        }
    }
}

/// Somebody at each of the steps, and at any two of them.
fn all_others() -> Vec<[Other; 3]> {
    let all =
        OTHERS.into_iter().flat_map(|a| OTHERS.into_iter().flat_map(move |b| OTHERS.map(|c| [a, b, c])));
    all.filter(|others| others.contains(&Other::Nothing)).collect()
}

fn steps() -> impl Strategy<Value = Vec<(Save, Script)>> {
    let other = || prop::sample::select(OTHERS.to_vec());
    let script = (prop::sample::select(LOSSES.to_vec()), [other(), other(), other()]);
    let script = script.prop_map(|(loss, others)| Script { loss, others });
    prop::collection::vec((prop::sample::select(SAVES.to_vec()), script), 1..12)
}

proptest! {
    #![proptest_config(crate::model::config())]

    #[test]
    fn sessions_with_two_writers_store_each_save_once(kv: bool, keys: bool, steps in steps()) {
        block_on(async {
            let mut session = if keys { Session::new(kv) } else { Session::without_keys(kv) };
            for (how, script) in steps {
                session.save(how, script).await;
            }
        });
    }
}

/// The history of the object dialect has all bytes, and a vault that knows a request again tells
/// what it made: a save that is in the history is stored.
#[tokio::test(start_paused = true)]
async fn a_save_that_was_made_and_superseded_is_stored() {
    let vaults = [(false, false), (false, true), (true, false), (true, true)];
    for ((kv, keys), loss) in vaults.into_iter().flat_map(|vault| LOSSES.map(|loss| (vault, loss))) {
        if matches!(loss, Loss::Request | Loss::Late | Loss::WorkerAndRequest) {
            continue;
        }
        for others in [Other::Nothing, Other::PutsTwice, Other::PutsAlike] {
            // Otherwise the next version of kv is told by its size where it is another's, and by
            // its bytes where it is current.
            let is_told = keys || !kv || others == Other::Nothing;
            let mut session = if keys { Session::new(kv) } else { Session::without_keys(kv) };
            session.sh.put(NAME, "before").await;
            session.sh.cat(NAME).await;
            let others = [Other::Nothing, others, Other::Puts];
            let told = session.save(Save::Write, Script { loss, others }).await;
            let case = format!("kv {kv}, keys {keys}, {loss:?}, {others:?}");
            let unsaved = session.sh.fs.unsaved();
            assert_eq!(unsaved.is_empty(), is_told || loss == Loss::None, "{case}: {unsaved:?}");
            assert!(
                told || !unsaved.is_empty() || loss == Loss::AnswerAndVault,
                "{case}: its program is told"
            );
            let shown = session.sh.cat(NAME).await;
            let last = session.sh.history(NAME).await.pop().unwrap();
            assert!(
                shown == last || !unsaved.is_empty(),
                "{case}: the name shows what is newest, and not {shown}"
            );
        }
    }
}

/// Its inode was replaced before; what replaced it is older than the save.
#[tokio::test(start_paused = true)]
async fn a_save_that_was_superseded_leaves_nothing_older_at_its_name() {
    let session = Session::new(false);
    let sh = &session.sh;
    sh.put(NAME, "before").await;
    let fd = sh.open(NAME, libc::O_RDWR).await.unwrap();
    sh.put(NAME, "theirs").await;
    sh.refresh().await;
    let shown = sh.stat(NAME).await.unwrap().ino;
    assert_ne!(shown, fd.ino);
    // The kernel goes on with the name that it knows for a while.
    sh.kernel.is_slow.store(true, Ordering::SeqCst);
    let others = [Other::Nothing, Other::Puts, Other::Nothing];
    session.meddler.play(Script { loss: Loss::Answer, others });
    sh.pwrite(&fd, 0, "[mine]").unwrap();
    sh.close(fd).await.unwrap();
    session.meddler.rest();
    let stale = sh.once(|fs, ctx| async move { fs.open(&ctx, shown, READ).await }).await;
    assert_eq!(stale.unwrap_err(), Errno::ESTALE);
    let history = sh.history(NAME).await;
    assert!(history[2].contains("[mine]") && history.len() == 4, "{history:?}");
    assert_eq!(sh.cat(NAME).await, history[3]);
}

/// A check that is refused each time does not keep a save waiting, nor does one whose request was
/// lost before.
#[tokio::test(start_paused = true)]
async fn a_save_is_made_though_somebody_else_writes_all_the_time() {
    for loss in [Loss::None, Loss::Request] {
        let session = Session::new(true);
        session.sh.put(NAME, "before").await;
        session.sh.cat(NAME).await;
        session.meddler.busy.store(true, Ordering::SeqCst);
        session.meddler.play(Script { loss, others: [Other::Nothing; 3] });
        let saved = session.try_save(Save::Write, "[mine]").await;
        assert_eq!(saved.0, Ok(()), "{loss:?}");
        let log = session.meddler.log.lock().unwrap().clone();
        assert!(matches!(log.last(), Some(Event::Ours { .. })), "{loss:?}: {log:?}");
        let others = log.iter().filter(|event| **event == Event::Theirs).count();
        assert!(others < 10, "{loss:?}: {log:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_told_is_a_conflict_and_no_second_update() {
    for loss in [Loss::Worker, Loss::Answer] {
        for what in [Other::PutsAlike, Other::Deletes, Other::Replaces] {
            let mut session = Session::without_keys(true);
            session.sh.put(NAME, "before").await;
            session.sh.cat(NAME).await;
            session.save(Save::Write, Script { loss, others: [Other::Nothing, what, Other::Nothing] }).await;
            let sh = &session.sh;
            let unsaved = sh.fs.unsaved();
            assert!(matches!(&unsaved[..], [one] if one.conflict), "{loss:?}, {what:?}: {unsaved:?}");
            let before = sh.history(NAME).await.len();
            // Nor does its program store it by trying again, and a person does.
            sh.fs.drain(vaultfs::fs::Drain::Closed, Duration::from_secs(10)).await;
            assert_eq!(sh.history(NAME).await.len(), before);
            assert!(sh.fs.retry_unsaved(None, Duration::from_secs(10)).await.is_empty());
            assert_eq!(sh.history(NAME).await.len(), before + 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_creation_in_doubt_whose_object_was_deleted_elsewhere_is_not_made_again() {
    // Between its effect and the look: what comes late is made at the look.
    let losses = [(Loss::Answer, 1), (Loss::AnswerAndVault, 1), (Loss::Worker, 1), (Loss::Late, 2)];
    let cases = SAVES.into_iter().flat_map(|how| losses.map(|(loss, step)| (how, loss, step)));
    let cases = cases.flat_map(|case| [Other::Deletes, Other::Replaces].map(|what| (case, what)));
    for (kv, ((how, loss, step), what)) in cases.flat_map(|case| [(false, case), (true, case)]) {
        let mut session = Session::new(kv);
        let mut others = [Other::Nothing; 3];
        others[step] = what;
        let told = session.save(how, Script { loss, others }).await;
        let log = session.meddler.log.lock().unwrap().clone();
        let case = format!("kv {kv}, {how:?}, {loss:?}, {what:?}: {log:?}");
        assert!(matches!(log[..2], [Event::Ours { .. }, Event::Deleted]), "{case}");
        assert!(log[2..].iter().all(|event| *event == Event::Theirs), "{case}");
        let sh = &session.sh;
        if how == Save::Rename {
            // Its program has the file where it was; unless the worker that died had moved all of
            // it.
            let kept = sh.read_file("t").await;
            match kept {
                Ok(bytes) => assert!(!told && bytes.ends_with(b"mine 0001]"), "{case}: {bytes:?}"),
                Err(e) => assert!(told && loss == Loss::Worker, "{case}: {e:?}, {:?}", sh.fs.unsaved()),
            }
            continue;
        }
        let unsaved = sh.fs.unsaved();
        assert!(matches!(&unsaved[..], [one] if one.conflict), "{case}: {unsaved:?}");
        // A person stores it anew.
        assert!(sh.fs.retry_unsaved(None, Duration::from_secs(10)).await.is_empty(), "{case}");
        assert!(sh.history(NAME).await.last().unwrap().contains("mine"), "{case}");
    }
}
