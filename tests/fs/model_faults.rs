//! Random sessions with a vault that fails: whatever fails between whichever steps, no value is
//! lost that a program was told is saved and that nobody has overwritten or deleted since.
//!
//! Where a value is after a failed rename is not certain: it may be at either name. So the model
//! keeps, for each value, the names under which it may be, and forgets it when one of those is
//! given up. At the end the vault is well again, time goes by, and each value has to be the current
//! one of one of its names, or be listed as not saved.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use vaultfs::fs::{Drain, Errno, Options, Remover};
use vaultfs::vault::ErrorKind;
use vaultfs::vault::model::op::Op;
use vaultfs::vault::testing::faulty::Fault;
use vaultfs::vault::testing::memory::{KV_CAPABILITIES, OBJECT_CAPABILITIES};

use crate::shell::{CREATE, EXCL, Shell};

/// Backups and temporaries of each other.
const NAMES: [&str; 8] = ["s", "s~", "s.x", "s.bak", "t", "t~", "x.tmp", "4913"];
const OPS: [Op; 6] = [Op::Create, Op::Update, Op::Delete, Op::GetByName, Op::Metadata, Op::List];
const KINDS: [ErrorKind; 5] = [
    ErrorKind::Server,
    ErrorKind::Unreachable,
    ErrorKind::Forbidden,
    ErrorKind::RateLimited,
    ErrorKind::Deadline,
];

#[derive(Debug, Clone)]
enum Step {
    Save(usize),
    SaveExclusively(usize),
    Rename(usize, usize),
    /// By a program that is known to remove, or by another one.
    Unlink(usize, bool),
    /// A close while something is renamed.
    SaveWhileRenaming(usize, usize, usize),
    /// The n-th call of an operation from now on has this fault.
    Fail(usize, Fault, u32),
    Outage,
    Well,
    Pass(u64),
    Forget,
    Remount,
}

fn fault() -> impl Strategy<Value = Fault> {
    let kind = prop::sample::select(KINDS.to_vec());
    prop_oneof![
        2 => kind.clone().prop_map(Fault::Before),
        2 => kind.prop_map(Fault::After),
        // Long enough for what waits for its time to come in between.
        2 => (1..9u64).prop_map(|seconds| Fault::Delay(Duration::from_secs(seconds))),
        1 => Just(Fault::Hang),
        1 => Just(Fault::HangAfter),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let name = 0..NAMES.len();
    let step = prop_oneof![
        5 => name.clone().prop_map(Step::Save),
        2 => name.clone().prop_map(Step::SaveExclusively),
        6 => (name.clone(), name.clone()).prop_map(|(n, m)| Step::Rename(n, m)),
        2 => (name.clone(), any::<bool>()).prop_map(|(n, removes)| Step::Unlink(n, removes)),
        2 => (name.clone(), name.clone(), name.clone()).prop_map(|(n, from, to)| Step::SaveWhileRenaming(n, from, to)),
        5 => (0..OPS.len(), fault(), 1..3u32).prop_map(|(o, fault, n)| Step::Fail(o, fault, n)),
        1 => Just(Step::Outage),
        2 => Just(Step::Well),
        3 => (0..8u64).prop_map(Step::Pass),
        1 => Just(Step::Forget),
        1 => Just(Step::Remount),
    ];
    prop::collection::vec(step, 1..30)
}

struct Session {
    sh: Shell,
    /// Values that have to be somewhere, and where they may be.
    held: BTreeMap<String, BTreeSet<&'static str>>,
    made: u32,
}

impl Session {
    fn give_up(&mut self, name: &str) {
        self.held.retain(|_, names| !names.contains(name));
    }

    async fn save(&mut self, name: &'static str, flags: i32) {
        self.made += 1;
        let value = format!("value {}", self.made);
        let Ok(fd) = self.sh.open(name, flags).await else { return };
        self.give_up(name);
        let written = self.sh.pwrite(&fd, 0, &value);
        if self.sh.close(fd).await.is_ok() && written.is_ok() {
            self.held.insert(value, [name].into());
        }
    }

    async fn rename(&mut self, from: &'static str, to: &'static str) {
        // Who cannot be told whether it is there may still move it.
        let there = self.sh.stat(from).await != Err(Errno::ENOENT);
        let moved = self.sh.mv(from, to).await.is_ok();
        self.renamed(from, to, there, moved);
    }

    fn renamed(&mut self, from: &'static str, to: &'static str, there: bool, moved: bool) {
        if from == to || (!there && !moved) {
            return;
        }
        // What was there may be overwritten, whatever the answer.
        self.give_up(to);
        for names in self.held.values_mut().filter(|names| names.contains(from)) {
            // In doubt before, it may not be what was moved: unsaved bytes can have shown in its
            // place.
            if moved && names.len() == 1 {
                names.remove(from);
            }
            names.insert(to);
        }
    }

    async fn save_while_renaming(&mut self, name: &'static str, from: &'static str, to: &'static str) {
        self.made += 1;
        let value = format!("value {}", self.made);
        let Ok(fd) = self.sh.open(name, CREATE).await else { return };
        self.give_up(name);
        let written = self.sh.pwrite(&fd, 0, &value);
        let (closed, moved) = tokio::join!(self.sh.close(fd), self.sh.mv(from, to));
        if closed.is_ok() && written.is_ok() {
            self.held.insert(value, [name].into());
        }
        self.renamed(from, to, true, moved.is_ok());
    }

    async fn run(&mut self, step: Step) {
        match step {
            Step::Save(n) => self.save(NAMES[n], CREATE).await,
            Step::SaveExclusively(n) => self.save(NAMES[n], EXCL).await,
            Step::Rename(n, m) => self.rename(NAMES[n], NAMES[m]).await,
            Step::Unlink(n, removes) => {
                // Deleted or not, its value is no longer wanted.
                self.give_up(NAMES[n]);
                let by = if removes { Remover::Removes } else { Remover::Unknown };
                let _ = self.sh.unlink(NAMES[n], by).await;
            }
            Step::SaveWhileRenaming(n, from, to) => {
                self.save_while_renaming(NAMES[n], NAMES[from], NAMES[to]).await;
            }
            Step::Fail(op, fault, nth) => self.sh.vault.plan(OPS[op]).nth(nth).fail(fault),
            Step::Outage => self.sh.vault.outage(),
            Step::Well => self.sh.vault.clear(),
            Step::Pass(seconds) => self.sh.pass(Duration::from_secs(seconds)).await,
            Step::Forget => self.sh.forget_all(),
            Step::Remount => {
                self.sh.vault.clear();
                if self.sh.fs.drain(Drain::All, Duration::from_secs(60)).await.is_empty() {
                    self.check().await;
                    self.sh = self.sh.remount();
                }
            }
        }
    }

    /// The vault has what has to be there, or it is listed as not saved.
    async fn check(&self) {
        let mut current = BTreeMap::new();
        for name in NAMES {
            current.insert(name, self.sh.history(name).await.pop());
        }
        let unsaved: Vec<String> = self.sh.fs.unsaved().into_iter().map(|unsaved| unsaved.name).collect();
        for (value, names) in &self.held {
            let stored = names.iter().any(|name| current[name].as_ref() == Some(value));
            let mut kept = false;
            for name in names.iter().filter(|name| unsaved.iter().any(|unsaved| unsaved == *name)) {
                kept |= self.sh.cat(name).await == *value;
            }
            assert!(stored || kept, "{value:?} is lost, was at {names:?}: {current:?}, unsaved: {unsaved:?}");
        }
    }
}

fn session(kv: bool, steps: &[Step]) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let capabilities = if kv { KV_CAPABILITIES } else { OBJECT_CAPABILITIES };
        let sh = Shell::of(capabilities, Options::default());
        let mut session = Session { sh, held: BTreeMap::new(), made: 0 };
        for step in steps {
            session.run(step.clone()).await;
        }
        session.sh.vault.clear();
        session.sh.pass(Duration::from_secs(300)).await;
        session.check().await;
        session.sh.fs.drain(Drain::All, Duration::from_secs(60)).await;
        session.check().await;
    });
}

proptest! {
    #![proptest_config(crate::model::config())]

    #[test]
    fn sessions_with_a_failing_vault_lose_nothing_that_was_saved(kv: bool, steps in steps()) {
        session(kv, &steps);
    }
}

/// Shrunk from sessions that once lost a value.
#[test]
fn sessions_that_once_lost_a_value() {
    use Step::*;
    let late = || Fail(2, Fault::Delay(Duration::from_secs(3)), 1);
    let sessions: [&[Step]; 4] = [
        // The deletion that ends a move was on its way when the mount ended, and met the next
        // mount's save.
        &[Save(2), late(), Rename(2, 1), Pass(6), Remount, Save(2)],
        &[Save(0), late(), Rename(0, 3), Pass(6), Remount, Save(0)],
        &[Save(0), late(), Rename(0, 1), Pass(6), Remount, Save(0)],
        // The kernel had forgotten the file.
        &[Save(0), late(), Rename(0, 1), Forget, Pass(6), Forget, Remount, Save(0)],
    ];
    for steps in sessions {
        session(false, steps);
        session(true, steps);
    }
}
