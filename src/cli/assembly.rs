//! The worker's stack of layers: vault, file system, adapter. Built before anything is mounted.

use std::any::Any;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::cli::args::connect;
use crate::cli::args::connect::{Api, ApiKeyInput, ConnectSpec};
use crate::cli::exit::{Exit, Failure};
use crate::clock::{Clock, SystemClock};
use crate::daemon::hooks;
use crate::daemon::hooks::command;
use crate::daemon::hooks::command::Job;
use crate::daemon::hooks::{ChangeEvent, EventKind, Following, Memory};
use crate::daemon::protocol::MountConfig;
use crate::daemon::worker::{LAST_DRAIN, Service, TakeoverState};
use crate::display::Shown;
use crate::fs::{Audit, Builder, Drain, FileSystem, HelperReport, Kernel, Options, Processes, Unsaved};
use crate::fuse::adapter::Adapter;
use crate::fuse::request_counts::Requests;
use crate::secret::SecretString;
use crate::server::instance::embedded::Embedded;
use crate::vault::Dialect;
use crate::vault::cache::{Change, ChangeKind};
use crate::vault::client::api_key::ApiKey;
use crate::vault::client::tls::TlsFiles;
use crate::vault::lazy::Start;

/// A vault that answered, and a file system over it.
pub struct Stack {
    spec: ConnectSpec,
    fs: Arc<FileSystem>,
    key: Arc<ApiKey>,
    tls: Arc<TlsFiles>,
    on_change: Option<(Job, Handle)>,
    last: Last,
}

/// Connects to the vault. Fails with the exit code that the command ends with.
pub async fn build(
    config: &MountConfig,
    key: Option<SecretString>,
    takeover_state: TakeoverState,
) -> Result<Stack, Failure> {
    let mut spec: ConnectSpec = serde_json::from_value(config.spec.clone()).map_err(anyhow::Error::from)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let TakeoverState { state, takeover, fresh_mount } = takeover_state;
    spec.takes_over = takeover;
    spec.makes = !takeover;
    let start = if takeover { Start::Lazy } else { config.start };
    let connected = connect::connect(&spec, ApiKeyInput { secret: key }, clock.clone(), start).await?;
    if connected.first_page.is_some() {
        // A successor need not ask: it may have to start while the vault is away.
        spec.lists = true;
        spec.api = match connected.vault.capabilities().dialect {
            Dialect::Object => Api::Object,
            Dialect::Kv => Api::Kv,
        };
    }
    let which = serde_json::json!([spec.endpoint, spec.prefix]).to_string();
    let options = Options { vault: which, ..config.options.clone() };
    let open_audit = |path: &PathBuf| Audit::open(path).map_err(|e| bad_audit(path, &e));
    let builder = Builder {
        vault: connected.vault,
        first_page: connected.first_page,
        audit: options.audit.as_ref().map(open_audit).transpose()?,
        options,
        clock,
        journal: state,
        fresh_mount,
    };
    let fs = builder.build();
    if !spec.lists {
        fs.listing_is_untried();
    }
    let job = config.on_change.clone().map(|command| Job {
        command,
        mountpoint: config.mountpoint.clone(),
        limit: command::LIMIT,
    });
    let on_change = job.map(|job| (job, tokio::runtime::Handle::current()));
    Ok(Stack { spec, fs, key: connected.key, tls: connected.tls, on_change, last: Last(connected.embedded) })
}

impl Stack {
    /// The vault's description, as far as it is known now.
    pub fn spec(&self) -> serde_json::Value {
        serde_json::to_value(&self.spec).unwrap_or_default()
    }

    /// What fuser calls, what the worker calls, and what is to be stopped when both are done.
    pub fn take_apart(self, runtime: &tokio::runtime::Handle) -> (Adapter, Arc<dyn Service>, Last) {
        let adapter = Adapter::new(self.fs.clone(), runtime.clone());
        let requests = adapter.requests();
        let on_change = Mutex::new(self.on_change);
        let following = Mutex::default();
        let (fs, key, tls) = (self.fs, self.key, self.tls);
        let service = Mounted { fs, key, tls, on_change, following, requests };
        (adapter, Arc::new(service), self.last)
    }
}

/// What must outlive the file system: the embedded vault, if this process serves it.
pub struct Last(Option<Embedded>);

impl Last {
    /// Stops serving, once what was asked is answered.
    pub async fn stop(self) {
        if let Some(embedded) = self.0 {
            embedded.shutdown().await;
        }
    }
}

/// The file system and its key, as the worker sees them.
struct Mounted {
    fs: Arc<FileSystem>,
    key: Arc<ApiKey>,
    tls: Arc<TlsFiles>,
    /// Until the mount is there.
    on_change: Mutex<Option<(Job, Handle)>>,
    following: Mutex<Option<Following>>,
    requests: Arc<Requests>,
}

/// Why `--audit` cannot be used.
pub fn bad_audit(path: &Path, e: &std::io::Error) -> Failure {
    let sentence = format!(
        "the audit file {} cannot be used: {e}: name a file that you can write, in a directory that exists",
        path.shown()
    );
    Failure::new(Exit::Failed, sentence)
}

impl hooks::Source<Change> for Arc<FileSystem> {
    fn news(&self, change: &Change) -> ChangeEvent {
        let event = match change.kind {
            ChangeKind::Created => EventKind::Created,
            ChangeKind::Changed => EventKind::Changed,
            ChangeKind::Deleted => EventKind::Deleted,
        };
        let version = change.version.as_ref().map(|version| version.as_str().to_owned());
        ChangeEvent { name: change.name.as_str().to_owned(), version, event }
    }

    fn is_shown(&self) -> bool {
        self.propagator().is_propagated()
    }

    fn is_own(&self, change: &Change) -> bool {
        self.propagator().is_own_change(change)
    }
}

#[async_trait::async_trait]
impl Service for Mounted {
    fn attach_processes(&self, processes: Processes) {
        self.fs.attach_processes(processes);
    }

    fn attach_kernel(&self, kernel: Arc<dyn Kernel>) {
        self.fs.attach_kernel(kernel);
        let job = self.on_change.lock().take();
        // Subscribed before changes are followed: the first tick knows that they are wanted.
        let job = job.map(|(job, runtime)| (job, runtime, self.fs.propagator().subscribe()));
        self.fs.propagator().follow_changes();
        if let Some((job, runtime, changes)) = job {
            let fs = self.fs.clone();
            let kept = fs.propagator().kept_commands();
            let save_state = Arc::new({
                let fs = fs.clone();
                move |bytes| fs.propagator().keep_commands(bytes)
            });
            let following = hooks::follow(&runtime, changes, fs, job, Memory { kept, save_state });
            *self.following.lock() = Some(following);
        }
    }

    fn helper_reports(&self, report: HelperReport) {
        self.fs.propagator().helper_reports(report);
    }

    fn status(&self) -> serde_json::Value {
        serde_json::to_value(self.fs.status()).unwrap_or_default()
    }

    fn requests(&self) -> serde_json::Value {
        self.requests.to_json()
    }

    async fn first_answer(&self) {
        self.requests.first_answer().await;
    }

    fn check_liveness(&self) {
        self.fs.check_liveness();
    }

    async fn drain(&self, what: Drain, within: Duration) -> Vec<Unsaved> {
        let known = if within <= LAST_DRAIN { self.fs.left_over() } else { Vec::new() };
        let mut left = self.fs.drain(what, within).await;
        // In so little time a try may end at its deadline: that is no reason, what was known before
        // is.
        for write in left.iter_mut().filter(|write| !write.conflict) {
            let before = known.iter().find(|before| before.name == write.name && before.error.is_some());
            if let Some(before) = before {
                write.error.clone_from(&before.error);
            }
        }
        left
    }

    async fn retry(&self, name: Option<&str>) -> Vec<Unsaved> {
        self.fs.retry_unsaved(name, self.fs.options().timeout).await
    }

    fn discard(&self, name: &str) -> bool {
        self.fs.discard_unsaved(name)
    }

    async fn end_commands(&self) {
        let following = self.following.lock().take();
        if let Some(following) = following {
            following.end().await;
        }
    }

    async fn pause(&self, within: Duration) -> Box<dyn Any + Send> {
        let requests = self.requests.pause.begin(within).await;
        // What no program waits for, too.
        Box::new((requests, self.fs.hold_stores(within).await))
    }

    async fn reload_key(&self) {
        // SIGHUP is for all of them.
        self.fs.reopen_audit();
        match self.key.reload() {
            Ok(true) => tracing::info!("the key file has another key: using it"),
            Ok(false) => tracing::info!("the key is the same as before"),
            Err(e) => tracing::error!("the key file cannot be used, the old key stays: {e}"),
        }
        self.tls.reload_and_log();
    }
}
