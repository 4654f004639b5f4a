//! A vault that fails where a test says so: before the change, after it, late, or not until
//! released.
//!
//! ```
//! # use std::sync::Arc;
//! # use vaultfs::vault::{ErrorKind, model::op::Op};
//! # use vaultfs::vault::testing::{faulty::{Fault, FaultyVault}, memory::MemoryVault};
//! let memory = Arc::new(MemoryVault::object());
//! let faulty = FaultyVault::new(memory.clone());
//! // Stored, but the answer is lost.
//! faulty.fail_next(Op::Update, Fault::After(ErrorKind::Deadline));
//! let third = faulty.plan(Op::Create).named("db/password").nth(3);
//! third.always().fail(Fault::Before(ErrorKind::Server));
//! // Calls wait here until gate.release(), or their deadline.
//! let gate = faulty.gate(Op::GetByName);
//! # drop(gate);
//! ```
//! Plans are asked in the order they were made, and the first that fits decides. Time limits count
//! in real time by the clock given: a fault that hangs ends at the call's deadline, as the HTTP
//! client's calls do.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use crate::clock::{Clock, SystemClock};
use crate::vault::model::op::{Op, OpCounts};
use crate::vault::{
    Call, Capabilities, Check, Content, DynVault, Error, ErrorKind, ListQuery, Meta, Object, ObjectId,
    ObjectName, Page, Result, Vault, VaultStatus, VersionInfo,
};

/// What happens to a call.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It fails and changes nothing.
    Before(ErrorKind),
    /// It takes effect and fails nonetheless; writes say `maybe_applied`.
    After(ErrorKind),
    /// It waits, then goes on.
    Delay(Duration),
    /// It never reaches the vault and ends at its deadline; writes say `maybe_applied`.
    Hang,
    /// It takes effect and ends at its deadline; writes say `maybe_applied`.
    HangAfter,
}

/// A vault with planned faults. Without any it is transparent.
#[derive(Debug)]
pub struct FaultyVault {
    inner: DynVault,
    clock: Arc<dyn Clock>,
    counts: OpCounts,
    state: Mutex<FaultState>,
}

#[derive(Debug, Default)]
struct FaultState {
    plans: Vec<Planned>,
    /// Names of ids that passed by, so that plans by name reach calls by id.
    names: HashMap<ObjectId, ObjectName>,
}

#[derive(Debug)]
struct Planned {
    op: Option<Op>,
    name: Option<String>,
    skip: u32,
    times: Option<u32>,
    action: Action,
}

#[derive(Debug, Clone)]
enum Action {
    Fault(Fault),
    Gate(watch::Receiver<bool>, watch::Sender<usize>),
}

/// A fault in the making; it counts from [`Plan::fail`] or [`Plan::gate`] on.
#[must_use = "a plan does nothing until fail() or gate()"]
#[derive(Debug)]
pub struct Plan<'a> {
    vault: &'a FaultyVault,
    op: Option<Op>,
    name: Option<String>,
    skip: u32,
    times: Option<u32>,
}

impl Plan<'_> {
    /// Only calls about this object, by name or by an id that has passed by with its name.
    pub fn named(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// From the n-th fitting call on, 1 being the next.
    pub fn nth(mut self, n: u32) -> Self {
        self.skip = n.saturating_sub(1);
        self
    }

    /// So many calls in a row.
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// Every call from then on, until [`FaultyVault::clear`].
    pub fn always(mut self) -> Self {
        self.times = None;
        self
    }

    /// Puts the fault in place.
    pub fn fail(self, fault: Fault) {
        self.put(Action::Fault(fault));
    }

    /// Holds fitting calls until released.
    pub fn gate(self) -> Gate {
        let (open, opened) = watch::channel(false);
        let (arrived, arrivals) = watch::channel(0);
        self.put(Action::Gate(opened, arrived));
        Gate { open, arrivals }
    }

    fn put(self, action: Action) {
        let Plan { vault, op, name, skip, times } = self;
        vault.lock().plans.push(Planned { op, name, skip, times, action });
    }
}

/// Holds calls back. They go on when it is released or dropped, or fail at their deadline.
#[derive(Debug)]
pub struct Gate {
    open: watch::Sender<bool>,
    arrivals: watch::Receiver<usize>,
}

impl Gate {
    /// Returns when `n` calls have come to the gate since it was put up.
    pub async fn arrived(&mut self, n: usize) {
        // The sender lives as long as the plan: without it, no call can arrive any more.
        self.arrivals.wait_for(|count| *count >= n).await.expect("the plan of this gate was cleared");
    }

    /// How many calls have come to the gate.
    pub fn count(&self) -> usize {
        *self.arrivals.borrow()
    }

    /// Lets all calls pass, also later ones.
    pub fn release(&self) {
        self.open.send_replace(true);
    }
}

impl FaultyVault {
    /// `inner` with no faults planned.
    pub fn new(inner: DynVault) -> Self {
        Self::with_clock(inner, Arc::new(SystemClock))
    }

    /// `inner`, deadlines counted by `clock`.
    pub fn with_clock(inner: DynVault, clock: Arc<dyn Clock>) -> Self {
        Self { inner, clock, counts: OpCounts::default(), state: Mutex::default() }
    }

    /// Plans a fault of one call of `op`; see [`Plan`] for which.
    pub fn plan(&self, op: Op) -> Plan<'_> {
        Plan { vault: self, op: Some(op), name: None, skip: 0, times: Some(1) }
    }

    /// Plans a fault of one call of any operation.
    pub fn plan_any(&self) -> Plan<'_> {
        Plan { vault: self, op: None, name: None, skip: 0, times: Some(1) }
    }

    /// The next call of `op`.
    pub fn fail_next(&self, op: Op, fault: Fault) {
        self.plan(op).fail(fault);
    }

    /// Every call of `op`, until [`FaultyVault::clear`].
    pub fn fail_always(&self, op: Op, fault: Fault) {
        self.plan(op).always().fail(fault);
    }

    /// Everything fails as if nothing listened there, until [`FaultyVault::clear`].
    pub fn outage(&self) {
        self.plan_any().always().fail(Fault::Before(ErrorKind::Unreachable));
    }

    /// Holds all calls of `op` until released.
    pub fn gate(&self, op: Op) -> Gate {
        self.plan(op).always().gate()
    }

    /// Forgets all plans. Calls that are held or delayed go on.
    pub fn clear(&self) {
        self.lock().plans.clear();
    }

    /// How often `op` was called, failed calls included.
    pub fn count(&self, op: Op) -> u64 {
        self.counts.get(op)
    }

    /// How often anything was called, failed calls included.
    pub fn total(&self) -> u64 {
        self.counts.total()
    }

    fn lock(&self) -> MutexGuard<'_, FaultState> {
        self.state.lock()
    }

    fn learn(&self, id: &ObjectId, name: &ObjectName) {
        self.lock().names.insert(id.clone(), name.clone());
    }

    fn name_of(&self, id: &ObjectId) -> Option<ObjectName> {
        self.lock().names.get(id).cloned()
    }

    /// The plan that fits this call, used up by one.
    fn pick(&self, op: Op, name: Option<&ObjectName>) -> Option<Action> {
        self.counts.add(op);
        let mut state = self.lock();
        let fits = |plan: &Planned| {
            plan.op.is_none_or(|o| o == op)
                && plan.name.as_deref().is_none_or(|n| name.is_some_and(|name| name.as_str() == n))
        };
        let mut due = None;
        for (index, plan) in state.plans.iter_mut().enumerate().filter(|(_, plan)| fits(plan)) {
            if plan.skip > 0 {
                plan.skip -= 1;
            } else if due.is_none() {
                due = Some(index);
            }
        }
        let index = due?;
        let plan = &mut state.plans[index];
        let action = plan.action.clone();
        if let Some(times) = &mut plan.times {
            *times -= 1;
            if *times == 0 {
                state.plans.remove(index);
            }
        }
        Some(action)
    }

    fn error(op: Op, kind: ErrorKind, maybe_applied: bool) -> Error {
        let error = Error::new(kind, format!("planned fault of {op:?}: {kind:?}"));
        if maybe_applied && op.writes() { error.maybe_applied() } else { error }
    }

    /// Waits until `until` is over; fails at the call's deadline.
    async fn wait(&self, call: &Call, op: Op, until: impl Future<Output = ()>) -> Result<()> {
        let left = call.deadline.saturating_duration_since(self.clock.now());
        let late = |_| Self::error(op, ErrorKind::Deadline, true);
        tokio::time::timeout(left, until).await.map_err(late)
    }

    /// One call: the fault that is due, if any, around the real thing.
    async fn run<T>(
        &self,
        call: &Call,
        op: Op,
        name: Option<&ObjectName>,
        real: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        match self.pick(op, name) {
            None => real.await,
            Some(Action::Fault(Fault::Before(kind))) => Err(Self::error(op, kind, false)),
            Some(Action::Fault(Fault::After(kind))) => {
                real.await?;
                Err(Self::error(op, kind, true))
            }
            Some(Action::Fault(Fault::Delay(time))) => {
                self.wait(call, op, tokio::time::sleep(time)).await?;
                real.await
            }
            Some(Action::Fault(Fault::Hang)) => {
                self.wait(call, op, std::future::pending()).await?;
                real.await
            }
            Some(Action::Fault(Fault::HangAfter)) => {
                let value = real.await?;
                self.wait(call, op, std::future::pending()).await?;
                Ok(value)
            }
            Some(Action::Gate(mut opened, arrived)) => {
                arrived.send_modify(|count| *count += 1);
                // An error here says that the gate was dropped, which opens it.
                let open = async { drop(opened.wait_for(|open| *open).await) };
                self.wait(call, op, open).await?;
                real.await
            }
        }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Vault for FaultyVault {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn status(&self) -> VaultStatus {
        self.inner.status()
    }

    async fn get_by_name(&self, call: &Call, name: &ObjectName) -> Result<Object> {
        let object = self.run(call, Op::GetByName, Some(name), self.inner.get_by_name(call, name)).await?;
        self.learn(&object.meta.id, name);
        Ok(object)
    }

    async fn get(&self, call: &Call, id: &ObjectId) -> Result<Object> {
        self.run(call, Op::Get, self.name_of(id).as_ref(), self.inner.get(call, id)).await
    }

    async fn metadata(&self, call: &Call, id: &ObjectId) -> Result<Meta> {
        self.run(call, Op::Metadata, self.name_of(id).as_ref(), self.inner.metadata(call, id)).await
    }

    async fn create(&self, call: &Call, name: &ObjectName, content: &Content) -> Result<Meta> {
        let real = async {
            let meta = self.inner.create(call, name, content).await?;
            self.learn(&meta.id, name);
            Ok(meta)
        };
        self.run(call, Op::Create, Some(name), real).await
    }

    async fn update(&self, call: &Call, id: &ObjectId, content: &Content, check: Check<'_>) -> Result<Meta> {
        let real = self.inner.update(call, id, content, check);
        self.run(call, Op::Update, self.name_of(id).as_ref(), real).await
    }

    async fn delete(&self, call: &Call, id: &ObjectId, check: Check<'_>) -> Result<()> {
        let real = self.inner.delete(call, id, check);
        self.run(call, Op::Delete, self.name_of(id).as_ref(), real).await
    }

    async fn list(&self, call: &Call, query: &ListQuery) -> Result<Page> {
        let page = self.run(call, Op::List, None, self.inner.list(call, query)).await?;
        for item in &page.items {
            self.learn(&item.id, &item.name);
        }
        Ok(page)
    }

    async fn versions(&self, call: &Call, id: &ObjectId, since: Check<'_>) -> Result<Vec<VersionInfo>> {
        self.run(call, Op::Versions, self.name_of(id).as_ref(), self.inner.versions(call, id, since)).await
    }

    async fn version(&self, call: &Call, id: &ObjectId, version: &VersionInfo) -> Result<Object> {
        let real = self.inner.version(call, id, version);
        self.run(call, Op::Version, self.name_of(id).as_ref(), real).await
    }
}
