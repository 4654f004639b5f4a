//! A vault that is not there yet: how a mount starts without one.
//!
//! [`Start`] says what is to happen when the vault does not answer at first: give up, wait, or go
//! on without it. Going on is [`LazyVault`]: it asks for the dialect when an answer is first
//! needed, again at each need until there is one, and from then on only passes calls on. Callers
//! meanwhile share one question, each until its own deadline. Until the dialect is known it says
//! what the object dialect can do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, OnceCell};

use crate::vault::cache::is_outage;
use crate::vault::client::{Connector, Opened};
use crate::vault::testing::memory::{KV_CAPABILITIES, OBJECT_CAPABILITIES};
use crate::vault::{
    Call, Capabilities, Check, Content, Dialect, DynVault, Error, ErrorKind, ListQuery, Meta, Object,
    ObjectId, ObjectName, Page, Result, Vault, VaultStatus, VersionInfo,
};

/// What to do when the vault does not answer at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Start {
    /// Fail.
    #[default]
    AtOnce,
    /// Ask again for so long, then fail.
    Wait(Duration),
    /// Go on; the first call that needs the vault reports the failure.
    Lazy,
}

/// Interval between two attempts of a waiting caller.
const PAUSE: Duration = Duration::from_secs(1);

/// A mount that starts without a vault waits no longer than this for one that may be there.
const LAZY_TIMEOUT: Duration = Duration::from_secs(1);

/// The vault and, if it has answered, the first page of its names.
pub async fn start(
    connector: Connector,
    start: Start,
    timeout: Duration,
) -> Result<(DynVault, Option<Page>)> {
    let clock = connector.clock().clone();
    let answered = |opened: Opened| (opened.vault, opened.first_page);
    match start {
        Start::AtOnce => {
            let call = Call::foreground(clock.now() + timeout);
            connector.open(&call).await.map(answered)
        }
        Start::Wait(patience) => {
            let end = clock.now() + patience;
            let mut warned = false;
            let mut before: Option<Error> = None;
            loop {
                let is_last = clock.now() + timeout > end;
                let call = Call::foreground((clock.now() + timeout).min(end));
                let failed = match connector.open(&call).await {
                    Ok(opened) => return Ok(answered(opened)),
                    // It had less time than an answer may take: that says nothing of the vault.
                    Err(e) if is_last && e.kind == ErrorKind::Deadline => before.take().unwrap_or(e),
                    Err(e) if is_outage(e.kind) => e,
                    Err(e) => return Err(e),
                };
                let left = end.saturating_duration_since(clock.now());
                if left.is_zero() {
                    return Err(failed);
                }
                if !std::mem::replace(&mut warned, true) {
                    tracing::warn!(error = %failed, "the vault does not answer yet: waiting for it");
                }
                before = Some(failed);
                tokio::time::sleep(PAUSE.min(left)).await;
            }
        }
        Start::Lazy => {
            let call = Call::foreground(clock.now() + timeout.min(LAZY_TIMEOUT));
            match connector.open(&call).await {
                Ok(opened) => Ok(answered(opened)),
                Err(e) if is_outage(e.kind) => {
                    tracing::warn!(error = %e, "the vault does not answer yet: mounting without it");
                    Ok((Arc::new(LazyVault::new(connector)), None))
                }
                Err(e) => Err(e),
            }
        }
    }
}

/// The vault of a worker after a takeover: programs wait, and it may be unreachable just now.
pub fn take_over(connector: Connector) -> DynVault {
    match connector.known() {
        Some(vault) => vault,
        None => Arc::new(LazyVault::new(connector)),
    }
}

/// A vault that is connected to at its first use.
#[derive(Debug)]
pub struct LazyVault {
    connector: Connector,
    vault: OnceCell<DynVault>,
    /// How often it was asked.
    asked: AtomicU64,
    /// Held while a question is in flight; the last one that failed, by its number, and why.
    asking: Mutex<Option<(u64, Error)>>,
}

impl LazyVault {
    /// Asks nothing yet.
    pub fn new(connector: Connector) -> Self {
        Self { connector, vault: OnceCell::new(), asked: AtomicU64::new(0), asking: Mutex::new(None) }
    }

    async fn vault(&self, call: &Call) -> Result<&DynVault> {
        if let Some(vault) = self.vault.get() {
            return Ok(vault);
        }
        let left = call.deadline.saturating_duration_since(self.connector.clock().now());
        let late = || {
            let endpoint = self.connector.status().endpoint;
            Error::new(ErrorKind::Deadline, format!("the vault at {endpoint} did not answer in time"))
        };
        tokio::time::timeout(left, self.ask(call)).await.unwrap_or_else(|_| Err(late()))
    }

    async fn ask(&self, call: &Call) -> Result<&DynVault> {
        let before = self.asked.load(Ordering::Acquire);
        let mut last = self.asking.lock().await;
        if let Some(vault) = self.vault.get() {
            return Ok(vault);
        }
        if let Some((_, failed)) = last.as_ref().filter(|(number, _)| *number > before) {
            // It was asked since we came.
            return Err(failed.clone());
        }
        let number = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        match self.connector.open(call).await {
            Ok(Opened { vault, .. }) => {
                let dialect = vault.capabilities().dialect;
                tracing::info!(?dialect, "the vault answers");
                Ok(self.vault.get_or_init(|| async { vault }).await)
            }
            Err(e) => {
                *last = Some((number, e.clone()));
                Err(e)
            }
        }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Vault for LazyVault {
    fn capabilities(&self) -> Capabilities {
        match (self.vault.get(), self.connector.dialect()) {
            (Some(vault), _) => vault.capabilities(),
            (None, Some(Dialect::Kv)) => KV_CAPABILITIES,
            (None, Some(Dialect::Object) | None) => OBJECT_CAPABILITIES,
        }
    }

    fn status(&self) -> VaultStatus {
        self.connector.status()
    }

    async fn get_by_name(&self, call: &Call, name: &ObjectName) -> Result<Object> {
        self.vault(call).await?.get_by_name(call, name).await
    }

    async fn get(&self, call: &Call, id: &ObjectId) -> Result<Object> {
        self.vault(call).await?.get(call, id).await
    }

    async fn metadata(&self, call: &Call, id: &ObjectId) -> Result<Meta> {
        self.vault(call).await?.metadata(call, id).await
    }

    async fn create(&self, call: &Call, name: &ObjectName, content: &Content) -> Result<Meta> {
        self.vault(call).await?.create(call, name, content).await
    }

    async fn update(&self, call: &Call, id: &ObjectId, content: &Content, check: Check<'_>) -> Result<Meta> {
        self.vault(call).await?.update(call, id, content, check).await
    }

    async fn delete(&self, call: &Call, id: &ObjectId, check: Check<'_>) -> Result<()> {
        self.vault(call).await?.delete(call, id, check).await
    }

    async fn list(&self, call: &Call, query: &ListQuery) -> Result<Page> {
        self.vault(call).await?.list(call, query).await
    }

    async fn versions(&self, call: &Call, id: &ObjectId, since: Check<'_>) -> Result<Vec<VersionInfo>> {
        self.vault(call).await?.versions(call, id, since).await
    }

    async fn version(&self, call: &Call, id: &ObjectId, version: &VersionInfo) -> Result<Object> {
        self.vault(call).await?.version(call, id, version).await
    }
}
