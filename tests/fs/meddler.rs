//! A vault where somebody else acts at each step between a request and its answer, and where an
//! answer is lost; it writes down who stored what.

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use vaultfs::vault::testing::memory::MemoryVault;
use vaultfs::vault::{
    Call, Capabilities, Check, Content, Error, ErrorKind, IdempotencyKey, ListQuery, Meta, Object, ObjectId,
    ObjectName, Page, Result, Vault, VaultStatus, VersionInfo, VersionTag,
};

/// What becomes of the request and its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// It is made and answered.
    None,
    /// The answer is lost.
    Answer,
    /// The same, and the vault is away for a while.
    AnswerAndVault,
    /// The request is lost.
    Request,
    /// It arrives when the worker has looked whether it was made.
    Late,
    /// It is made, and the worker dies before it hears of it.
    Worker,
    /// The worker dies, and with it the request.
    WorkerAndRequest,
}

/// What somebody else does to the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Other {
    Nothing,
    /// A value of another size than what is saved.
    Puts,
    /// One of the same size.
    PutsAlike,
    /// Two of them.
    PutsTwice,
    Deletes,
    /// Deletes it, and makes it anew.
    Replaces,
}

/// What happened to the object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The mount stored this value; whether that made the object, and whether a program waited for
    /// it.
    Ours { value: String, made: bool, asked: bool },
    /// Somebody else stored something.
    Theirs,
    /// Somebody else deleted it.
    Deleted,
}

/// What happens to the next change of the object.
#[derive(Clone, Copy, Debug)]
pub struct Script {
    pub loss: Loss,
    /// Before the request arrives; between its effect and its answer; between a look and what is
    /// sent after it.
    pub others: [Other; 3],
}

/// A change on its way.
type Late = (Option<IdempotencyKey>, Option<ObjectId>, Content, Option<VersionTag>);

type Kill = Box<dyn Fn() + Send + Sync>;

pub struct Meddler {
    pub memory: Arc<MemoryVault>,
    pub log: Mutex<Vec<Event>>,
    /// The vault knows a request again.
    pub knows_keys: AtomicBool,
    /// By these.
    made: Mutex<HashSet<IdempotencyKey>>,
    /// A program waits for a save.
    pub asked: AtomicBool,
    /// Somebody else writes before each checked update.
    pub busy: AtomicBool,
    script: Mutex<Option<Script>>,
    /// After the next look.
    after_look: Mutex<Option<Other>>,
    late: Mutex<Option<Late>>,
    away: AtomicBool,
    numbers: Mutex<u32>,
    /// The size of what is being saved.
    len: Mutex<usize>,
    kill: Mutex<Option<Kill>>,
}

impl fmt::Debug for Meddler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Meddler")
    }
}

/// The object that is meddled with.
pub const NAME: &str = "f";

fn lost(kind: ErrorKind) -> Error {
    Error::new(kind, "lost").maybe_applied()
}

impl Meddler {
    pub fn new(memory: Arc<MemoryVault>) -> Arc<Self> {
        Arc::new(Self {
            memory,
            log: Mutex::default(),
            knows_keys: AtomicBool::new(true),
            made: Mutex::default(),
            asked: AtomicBool::new(false),
            busy: AtomicBool::new(false),
            script: Mutex::default(),
            after_look: Mutex::default(),
            late: Mutex::default(),
            away: AtomicBool::new(false),
            numbers: Mutex::default(),
            len: Mutex::default(),
            kill: Mutex::default(),
        })
    }

    /// How the worker dies.
    pub fn kill_with(&self, kill: impl Fn() + Send + Sync + 'static) {
        *self.kill.lock().unwrap() = Some(Box::new(kill));
    }

    pub fn play(&self, script: Script) {
        *self.script.lock().unwrap() = Some(script);
    }

    /// The vault is well, and nobody else does anything any more.
    pub fn rest(&self) {
        self.away.store(false, Ordering::SeqCst);
        *self.script.lock().unwrap() = None;
        *self.after_look.lock().unwrap() = None;
        *self.late.lock().unwrap() = None;
    }

    fn name() -> ObjectName {
        ObjectName::new(NAME).unwrap()
    }

    async fn is_it(&self, call: &Call, id: &ObjectId) -> bool {
        self.memory.get(call, id).await.is_ok_and(|object| object.meta.name == Self::name())
    }

    fn note(&self, event: Event) {
        self.log.lock().unwrap().push(event);
    }

    fn here(&self) -> Result<()> {
        match self.away.load(Ordering::SeqCst) {
            true => Err(Error::new(ErrorKind::Unreachable, "away")),
            false => Ok(()),
        }
    }

    async fn put(&self, call: &Call, len: usize) {
        let mut text = {
            let mut number = self.numbers.lock().unwrap();
            *number += 1;
            format!("t{number}.")
        };
        text.extend(std::iter::repeat_n('.', len.saturating_sub(text.len())));
        let content = Content::plain(text);
        match self.memory.get_by_name(call, &Self::name()).await {
            Ok(object) => drop(self.memory.update(call, &object.meta.id, &content, None).await.unwrap()),
            Err(_) => drop(self.memory.create(call, &Self::name(), &content).await.unwrap()),
        }
        self.note(Event::Theirs);
    }

    async fn act(&self, call: &Call, what: Other) {
        let call =
            &Call { deadline: call.deadline + Duration::from_secs(600), idempotency_key: None, ..*call };
        let len = *self.len.lock().unwrap();
        match what {
            Other::Nothing => {}
            Other::Puts => self.put(call, len + 7).await,
            Other::PutsAlike => self.put(call, len).await,
            Other::PutsTwice => {
                self.put(call, len).await;
                self.put(call, len).await;
            }
            Other::Deletes | Other::Replaces => {
                if let Ok(object) = self.memory.get_by_name(call, &Self::name()).await {
                    self.memory.delete(call, &object.meta.id, None).await.unwrap();
                    self.note(Event::Deleted);
                }
                if what == Other::Replaces {
                    self.put(call, len).await;
                }
            }
        }
    }

    /// What the mount stores, and how it goes.
    async fn change(
        &self,
        call: &Call,
        content: &Content,
        id: Option<&ObjectId>,
        check: Check<'_>,
    ) -> Result<Meta> {
        self.here()?;
        if self.busy.load(Ordering::SeqCst) && check.is_some() {
            self.put(call, content.bytes.len() + 7).await;
        }
        let Some(script) = self.script.lock().unwrap().take() else {
            return self.make(call, content, id, check).await;
        };
        *self.len.lock().unwrap() = content.bytes.len();
        self.act(call, script.others[0]).await;
        let is_lost = matches!(script.loss, Loss::Request | Loss::Late | Loss::WorkerAndRequest);
        let made =
            if is_lost { Err(lost(ErrorKind::Deadline)) } else { self.make(call, content, id, check).await };
        if made.as_ref().is_err_and(|e| !e.maybe_applied) {
            // Refused, and sent again on what is there now.
            *self.script.lock().unwrap() =
                Some(Script { others: [Other::Nothing, script.others[1], script.others[2]], ..script });
            return made;
        }
        self.act(call, script.others[1]).await;
        if script.loss != Loss::None {
            *self.after_look.lock().unwrap() = Some(script.others[2]);
        }
        match script.loss {
            Loss::None => made,
            Loss::Answer | Loss::Request => Err(lost(ErrorKind::Server)),
            Loss::Late => {
                *self.late.lock().unwrap() =
                    Some((call.idempotency_key, id.cloned(), content.clone(), check.cloned()));
                Err(lost(ErrorKind::Server))
            }
            Loss::AnswerAndVault => {
                self.away.store(true, Ordering::SeqCst);
                Err(lost(ErrorKind::Deadline))
            }
            Loss::Worker | Loss::WorkerAndRequest => {
                self.kill.lock().unwrap().as_ref().expect("there is a way")();
                made
            }
        }
    }

    async fn make(
        &self,
        call: &Call,
        content: &Content,
        id: Option<&ObjectId>,
        check: Check<'_>,
    ) -> Result<Meta> {
        let idempotency_key = call.idempotency_key.filter(|_| self.knows_keys.load(Ordering::SeqCst));
        let call = &Call { idempotency_key, ..*call };
        let meta = match id {
            None => self.memory.create(call, &Self::name(), content).await?,
            Some(id) => self.memory.update(call, id, content, check).await?,
        };
        if idempotency_key.is_some_and(|key| !self.made.lock().unwrap().insert(key)) {
            // It was made before.
            return Ok(meta);
        }
        let value = String::from_utf8(content.bytes.expose().to_vec()).unwrap();
        self.note(Event::Ours { value, made: id.is_none(), asked: self.asked.load(Ordering::SeqCst) });
        Ok(meta)
    }

    /// Somebody looked; what comes between that and what is sent after it.
    async fn looked(&self, call: &Call) {
        let late = self.late.lock().unwrap().take();
        if let Some((once, id, content, check)) = late {
            // A check refuses what is overtaken.
            let _ = self
                .make(&Call { idempotency_key: once, ..*call }, &content, id.as_ref(), check.as_ref())
                .await;
        }
        let what = self.after_look.lock().unwrap().take();
        self.act(call, what.unwrap_or(Other::Nothing)).await;
    }
}

#[async_trait]
impl Vault for Meddler {
    fn capabilities(&self) -> Capabilities {
        self.memory.capabilities()
    }
    fn status(&self) -> VaultStatus {
        let status = self.memory.status();
        let remembers = status.remembers.filter(|_| self.knows_keys.load(Ordering::SeqCst));
        VaultStatus { remembers, ..status }
    }
    async fn get_by_name(&self, call: &Call, name: &ObjectName) -> Result<Object> {
        self.here()?;
        let found = self.memory.get_by_name(call, name).await;
        if *name == Self::name() {
            self.looked(call).await;
        }
        found
    }
    async fn get(&self, call: &Call, id: &ObjectId) -> Result<Object> {
        self.here()?;
        self.memory.get(call, id).await
    }
    async fn metadata(&self, call: &Call, id: &ObjectId) -> Result<Meta> {
        self.here()?;
        self.memory.metadata(call, id).await
    }
    async fn create(&self, call: &Call, name: &ObjectName, content: &Content) -> Result<Meta> {
        if *name == Self::name() {
            return self.change(call, content, None, None).await;
        }
        self.here()?;
        self.memory.create(call, name, content).await
    }
    async fn update(&self, call: &Call, id: &ObjectId, content: &Content, check: Check<'_>) -> Result<Meta> {
        if self.is_it(call, id).await {
            return self.change(call, content, Some(id), check).await;
        }
        self.here()?;
        self.memory.update(call, id, content, check).await
    }
    async fn delete(&self, call: &Call, id: &ObjectId, check: Check<'_>) -> Result<()> {
        self.here()?;
        self.memory.delete(call, id, check).await
    }
    async fn list(&self, call: &Call, query: &ListQuery) -> Result<Page> {
        self.here()?;
        self.memory.list(call, query).await
    }
    async fn versions(&self, call: &Call, id: &ObjectId, since: Check<'_>) -> Result<Vec<VersionInfo>> {
        self.here()?;
        self.memory.versions(call, id, since).await
    }
    async fn version(&self, call: &Call, id: &ObjectId, version: &VersionInfo) -> Result<Object> {
        self.here()?;
        self.memory.version(call, id, version).await
    }
}
