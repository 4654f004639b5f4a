//! A vault in memory: what a real one does, without network, for tests of everything above.
//!
//! It plays either dialect: what it offers is decided by the [`Capabilities`] it is made with, and
//! the contract suite holds it to the same rules as the real ones. Share the `Arc` and write
//! through it to play "a change made elsewhere"; every call is counted, so that tests can assert
//! how many requests an operation costs. Time comes from the clock it is given, in whole
//! milliseconds as a server sends it. It keeps values as [`Content`], so bytes and form come back
//! as they went in. It can play one with reads that lag behind its writes ([`Lagging`]).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use parking_lot::{Mutex, MutexGuard};

use crate::clock::{Clock, SystemClock};
use crate::vault::model::op::{Op, OpCounts};
use crate::vault::{
    BudgetStatus, Call, Capabilities, Check, Content, Dialect, Error, ErrorKind, IdempotencyKey, ListQuery,
    Meta, NameLimit, Object, ObjectId, ObjectName, Page, Result, Summary, Vault, VaultStatus, VersionInfo,
    VersionTag,
};

/// What the object dialect offers.
pub const OBJECT_CAPABILITIES: Capabilities = Capabilities {
    dialect: Dialect::Object,
    old_values: true,
    version_check: false,
    search: false,
    max_name: NameLimit::Bytes(1024),
};

/// What the kv dialect offers.
pub const KV_CAPABILITIES: Capabilities = Capabilities {
    dialect: Dialect::Kv,
    old_values: false,
    version_check: true,
    search: true,
    max_name: NameLimit::Chars(200),
};

/// A vault in memory. Cheap to share: hold it in an `Arc`.
#[derive(Debug)]
pub struct MemoryVault {
    capabilities: Capabilities,
    clock: Arc<dyn Clock>,
    counts: OpCounts,
    state: Mutex<State>,
    reported: Mutex<Reported>,
    lag: Mutex<SimulatedLag>,
}

/// Which reads show the past.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lagging {
    /// None.
    #[default]
    Never,
    /// All, as it was so long ago.
    Always(Duration),
    /// Every other one, as it was so long ago: there are two replicas, and requests go to them in
    /// turn.
    Alternating(Duration),
}

/// What a read sees.
enum Shown<'a> {
    Now(MutexGuard<'a, State>),
    Before(State),
}

impl std::ops::Deref for Shown<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        match self {
            Shown::Now(state) => state,
            Shown::Before(state) => state,
        }
    }
}

#[derive(Debug, Default)]
struct SimulatedLag {
    lagging: Lagging,
    /// It is known since then what there was.
    is_kept: bool,
    reads: u64,
    /// What there was before each of the last changes, and when that was made.
    before: VecDeque<(Instant, State)>,
}

/// What it reports of itself.
#[derive(Debug, Clone, Copy)]
struct Reported {
    budget: Option<BudgetStatus>,
    ahead_ms: Option<i64>,
}

/// Rows by creation number, which is the order of listings and the cursor.
#[derive(Debug, Default, Clone)]
struct State {
    rows: BTreeMap<u64, Row>,
    by_name: HashMap<ObjectName, u64>,
    by_id: HashMap<ObjectId, u64>,
    /// What requests with a key made.
    made: HashMap<IdempotencyKey, (ObjectId, VersionTag)>,
    /// The last number given out, to rows and to version tags alike.
    last: u64,
}

#[derive(Debug, Clone)]
struct Row {
    id: ObjectId,
    name: ObjectName,
    /// Oldest first, never empty.
    versions: Vec<Version>,
}

#[derive(Debug, Clone)]
struct Version {
    tag: VersionTag,
    created_at: SystemTime,
    content: Content,
}

impl Row {
    fn current(&self) -> &Version {
        self.versions.last().expect("a row is made with its first version and never loses one")
    }

    fn meta_of(&self, version: &Version) -> Meta {
        Meta {
            id: self.id.clone(),
            name: self.name.clone(),
            version: version.tag.clone(),
            updated_at: version.created_at,
        }
    }

    fn meta(&self) -> Meta {
        self.meta_of(self.current())
    }

    fn object(&self) -> Object {
        Object { meta: self.meta(), content: self.current().content.clone() }
    }
}

impl State {
    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// What a request with that key made before.
    fn made(&self, call: &Call) -> Option<Result<Meta>> {
        let (id, tag) = self.made.get(&call.idempotency_key?)?;
        let version = |row: &Row| row.versions.iter().find(|v| v.tag == *tag).map(|v| row.meta_of(v));
        Some(self.row(id).map(|row| version(row).expect("versions stay")))
    }

    fn row(&self, id: &ObjectId) -> Result<&Row> {
        self.by_id.get(id).and_then(|n| self.rows.get(n)).ok_or_else(|| no_such_id(id))
    }

    fn row_mut(&mut self, id: &ObjectId) -> Result<&mut Row> {
        self.by_id.get(id).and_then(|n| self.rows.get_mut(n)).ok_or_else(|| no_such_id(id))
    }
}

fn no_such_id(id: &ObjectId) -> Error {
    Error::new(ErrorKind::NotFound, format!("no object has the id {id}"))
}

fn check_version(row: &Row, check: Check<'_>) -> Result<()> {
    match check {
        Some(tag) if *tag != row.current().tag => Err(Error::new(
            ErrorKind::VersionMismatch,
            format!("{:?} was changed meanwhile: its version is not {tag}", row.name),
        )),
        _ => Ok(()),
    }
}

impl MemoryVault {
    /// An empty vault that plays the object dialect on the machine's clock.
    pub fn object() -> Self {
        Self::new(OBJECT_CAPABILITIES, Arc::new(SystemClock))
    }

    /// An empty vault that plays the kv dialect on the machine's clock.
    pub fn kv() -> Self {
        Self::new(KV_CAPABILITIES, Arc::new(SystemClock))
    }

    /// An empty vault.
    pub fn new(capabilities: Capabilities, clock: Arc<dyn Clock>) -> Self {
        let reported = Mutex::new(Reported { budget: None, ahead_ms: Some(0) });
        Self {
            capabilities,
            clock,
            counts: OpCounts::default(),
            state: Mutex::default(),
            reported,
            lag: Mutex::default(),
        }
    }

    /// From now on [`Vault::status`] reports a limit of so many requests in windows of such a
    /// length. It is not enforced.
    pub fn report_limit(&self, limit: u32, window: Duration) {
        let (reset_s, window_s) = (window.as_secs(), window.as_secs_f64());
        let budget = BudgetStatus { limit, remaining: limit, reset_s, window_s, assumed: false };
        self.reported().budget = Some(budget);
    }

    /// From now on [`Vault::status`] reports a clock so far ahead of its user's, or none.
    pub fn report_ahead(&self, ahead_ms: Option<i64>) {
        self.reported().ahead_ms = ahead_ms;
    }

    /// From now on reads show what there was before. What they showed until now.
    pub fn lag(&self, lagging: Lagging) -> Lagging {
        let mut lag = self.lag.lock();
        lag.is_kept |= lagging != Lagging::Never;
        std::mem::replace(&mut lag.lagging, lagging)
    }

    fn reported(&self) -> MutexGuard<'_, Reported> {
        self.reported.lock()
    }

    /// How often `op` was called.
    pub fn count(&self, op: Op) -> u64 {
        self.counts.get(op)
    }

    /// How often anything was called.
    pub fn total(&self) -> u64 {
        self.counts.total()
    }

    fn begin(&self, call: &Call, op: Op) -> Result<MutexGuard<'_, State>> {
        self.counts.add(op);
        if call.deadline <= self.clock.now() {
            return Err(Error::new(ErrorKind::Deadline, "no time was left to ask the vault"));
        }
        let state = self.state.lock();
        let mut lag = self.lag.lock();
        if lag.is_kept && op.writes() {
            lag.before.push_back((self.clock.now(), state.clone()));
        }
        Ok(state)
    }

    /// What a read shows.
    fn read(&self, call: &Call, op: Op) -> Result<Shown<'_>> {
        let state = self.begin(call, op)?;
        let mut lag = self.lag.lock();
        lag.reads += 1;
        let by = match lag.lagging {
            Lagging::Always(by) => by,
            Lagging::Alternating(by) if lag.reads.is_multiple_of(2) => by,
            Lagging::Alternating(_) | Lagging::Never => Duration::ZERO,
        };
        let now = self.clock.now();
        let hidden = lag.before.iter().find(|(made, _)| *made + by > now);
        Ok(hidden.map_or(Shown::Now(state), |(_, before)| Shown::Before(before.clone())))
    }

    fn now(&self) -> SystemTime {
        let since = self.clock.wall().duration_since(UNIX_EPOCH).unwrap_or_default();
        UNIX_EPOCH + Duration::from_millis(since.as_millis() as u64)
    }

    fn tag(&self, number: u64, unique: u64) -> VersionTag {
        match self.capabilities.dialect {
            Dialect::Object => VersionTag::new(number.to_string()),
            Dialect::Kv => VersionTag::new(format!("v-{unique}")),
        }
    }

    fn page_size(&self, limit: u32) -> Result<usize> {
        match self.capabilities.dialect {
            Dialect::Object if !(1..=100).contains(&limit) => {
                Err(Error::new(ErrorKind::Invalid, "limit must be from 1 to 100"))
            }
            Dialect::Object | Dialect::Kv => Ok(limit.clamp(1, 100) as usize),
        }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Vault for MemoryVault {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn status(&self) -> VaultStatus {
        let (endpoint, requests) = ("memory".to_owned(), self.counts.total());
        let Reported { budget, ahead_ms } = *self.reported();
        let (spent_by, remembers) = (Vec::new(), Some(Duration::from_secs(24 * 60 * 60)));
        VaultStatus {
            endpoint,
            requests,
            spent_by,
            budget,
            ahead_ms,
            may_write: None,
            remembers,
            key_changes: 0,
        }
    }

    async fn get_by_name(&self, call: &Call, name: &ObjectName) -> Result<Object> {
        let state = self.read(call, Op::GetByName)?;
        let row = state.by_name.get(name).and_then(|n| state.rows.get(n));
        row.map(Row::object)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no object is named {name:?}")))
    }

    async fn get(&self, call: &Call, id: &ObjectId) -> Result<Object> {
        self.read(call, Op::Get)?.row(id).map(Row::object)
    }

    async fn metadata(&self, call: &Call, id: &ObjectId) -> Result<Meta> {
        self.read(call, Op::Metadata)?.row(id).map(Row::meta)
    }

    async fn create(&self, call: &Call, name: &ObjectName, content: &Content) -> Result<Meta> {
        let mut state = self.begin(call, Op::Create)?;
        if !self.capabilities.max_name.allows(name.as_str()) {
            return Err(Error::new(ErrorKind::NameTooLong, format!("the name {name:?} is too long")));
        }
        if let Some(made) = state.made(call) {
            let gone =
                |_| Error::new(ErrorKind::MadeAndDeleted, format!("{name:?} was made, and deleted since"));
            return made.map_err(gone);
        }
        if state.by_name.contains_key(name) {
            let sentence = format!("an object is named {name:?} already");
            return Err(Error::new(ErrorKind::AlreadyExists, sentence));
        }
        let number = state.next();
        let version = Version { tag: self.tag(1, number), created_at: self.now(), content: content.clone() };
        let id = ObjectId::new(format!("memory_{number}"));
        let row = Row { id: id.clone(), name: name.clone(), versions: vec![version] };
        let meta = row.meta();
        state.made.extend(call.idempotency_key.map(|key| (key, (id.clone(), meta.version.clone()))));
        state.by_name.insert(name.clone(), number);
        state.by_id.insert(id, number);
        state.rows.insert(number, row);
        Ok(meta)
    }

    async fn update(&self, call: &Call, id: &ObjectId, content: &Content, check: Check<'_>) -> Result<Meta> {
        let mut state = self.begin(call, Op::Update)?;
        if let Some(made) = state.made(call) {
            return made;
        }
        let unique = state.next();
        let row = state.row_mut(id)?;
        if self.capabilities.version_check {
            check_version(row, check)?;
        }
        let tag = self.tag(row.versions.len() as u64 + 1, unique);
        row.versions.push(Version { tag, created_at: self.now(), content: content.clone() });
        let meta = row.meta();
        state.made.extend(call.idempotency_key.map(|key| (key, (id.clone(), meta.version.clone()))));
        Ok(meta)
    }

    async fn delete(&self, call: &Call, id: &ObjectId, check: Check<'_>) -> Result<()> {
        let mut state = self.begin(call, Op::Delete)?;
        let row = state.row(id)?;
        if self.capabilities.version_check {
            check_version(row, check)?;
        }
        let name = row.name.clone();
        state.by_name.remove(&name);
        if let Some(number) = state.by_id.remove(id) {
            state.rows.remove(&number);
        }
        Ok(())
    }

    async fn list(&self, call: &Call, query: &ListQuery) -> Result<Page> {
        let state = self.read(call, Op::List)?;
        let size = self.page_size(query.limit)?;
        let after = match &query.after {
            None => 0,
            Some(cursor) => cursor
                .parse::<u64>()
                .ok()
                .filter(|n| *n <= state.last)
                .ok_or_else(|| Error::new(ErrorKind::Invalid, "the cursor is unknown"))?,
        };
        let wanted = |row: &Row| {
            !self.capabilities.search
                || (query.search.as_ref().is_none_or(|s| row.name.as_str().contains(s))
                    && query.updated_after.is_none_or(|t| row.current().created_at > t))
        };
        let mut found = state.rows.range(after + 1..).filter(|(_, row)| wanted(row));
        let rows: Vec<_> = found.by_ref().take(size).collect();
        let next = match (found.next(), rows.last()) {
            (Some(_), Some((number, _))) => Some(number.to_string()),
            _ => None,
        };
        let versions = self.capabilities.dialect == Dialect::Object;
        let summary = |row: &Row| Summary {
            id: row.id.clone(),
            name: row.name.clone(),
            updated_at: Some(row.current().created_at),
            version: versions.then(|| row.current().tag.clone()),
        };
        Ok(Page { items: rows.into_iter().map(|(_, row)| summary(row)).collect(), next })
    }

    async fn versions(&self, call: &Call, id: &ObjectId, since: Check<'_>) -> Result<Vec<VersionInfo>> {
        let state = self.read(call, Op::Versions)?;
        let row = state.row(id)?;
        let last = row.versions.len();
        let info = |(i, version): (usize, &Version)| VersionInfo {
            number: i as u64 + 1,
            tag: version.tag.clone(),
            created_at: version.created_at,
            size: Some(version.content.bytes.len() as u64),
            current: i + 1 == last,
        };
        let first = row.versions.iter().position(|version| Some(&version.tag) == since).unwrap_or(0);
        Ok(row.versions.iter().enumerate().skip(first).map(info).collect())
    }

    async fn version(&self, call: &Call, id: &ObjectId, version: &VersionInfo) -> Result<Object> {
        let state = self.read(call, Op::Version)?;
        let row = state.row(id)?;
        let found = row.versions.iter().find(|v| v.tag == version.tag).ok_or_else(|| {
            let sentence = format!("{:?} has no version {}", row.name, version.number);
            Error::new(ErrorKind::NotFound, sentence)
        })?;
        if !self.capabilities.old_values && found.tag != row.current().tag {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("the vault gives no values of old versions (version {})", version.number),
            ));
        }
        Ok(Object { meta: row.meta_of(found), content: found.content.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    #[tokio::test]
    async fn counts_calls_and_takes_its_time_from_the_clock() {
        let clock = ManualClock::new();
        let vault = MemoryVault::new(OBJECT_CAPABILITIES, Arc::new(clock.clone()));
        let call = Call::foreground(clock.now() + Duration::from_secs(1));
        let name = ObjectName::new("a").unwrap();
        let made = vault.create(&call, &name, &Content::plain("1")).await.unwrap();
        clock.advance(Duration::from_millis(500));
        let changed = vault.update(&call, &made.id, &Content::plain("2"), None).await.unwrap();
        assert_eq!(changed.updated_at.duration_since(made.updated_at).unwrap(), Duration::from_millis(500));
        clock.advance(Duration::from_millis(500));
        let late = vault.get(&call, &made.id).await.unwrap_err();
        assert_eq!(late.kind, ErrorKind::Deadline);
        assert_eq!((vault.count(Op::Get), vault.count(Op::List), vault.total()), (1, 0, 3));
    }
}
