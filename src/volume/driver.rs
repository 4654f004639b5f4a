//! Order around the state: what is asked, checked, mounted, written down and answered, in which sequence.
//!
//! 1. Requests that change a volume are taken one by one for each volume; volumes do not wait for each other. What only
//!    asks waits for nobody.
//! 2. A user is written down after the mount answers and before the engine hears of it. A crash in between leaves a
//!    mount without users, which the next start unmounts; never a user without a mount.
//! 3. An engine that has given up waiting does not use what it asked for: its user is taken back, under the same lock,
//!    so that a repeated request finds either the user or its absence, never something in between.
//! 4. A user is struck out, and the engine told so, before the volume is unmounted: podman waits 5 s for an answer, and
//!    without one goes on to believe that the volume is mounted. If unmounting fails (writes that the vault does not
//!    take), the mount stays for the next user or for `vaultfs pending`. An engine that did not hear the answer has its
//!    user back. As long as unmounting waits for a vault that is away, a Mount or a Remove ends it and goes first.
//! 5. The mount point exists only while something is mounted there. An engine that is wrong about that fails; it does not
//!    get a directory of the disk in place of the vault.
//! 6. An engine that is killed, or that removes a container while the plugin is away, never strikes out its users. So
//!    users do not keep a volume from being removed, provided that nothing that can be seen uses the mount: the engine
//!    asks for the removal only of what it believes to be unused. An Unmount says nothing of other users, of whom one
//!    may have been told of its mount and not have bound it yet: they are left.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use super::mounter::{Interruption, Mounter};
use super::options::{self, Grammar};
use super::protocol::Described;
use super::state::{self, Refusal, Volume, Volumes};
use super::store::Store;
use crate::clock::Clock;

/// How long a removal tries to store what is unsaved: podman waits 5 s for the answer, dockerd a minute.
const REMOVAL: Duration = Duration::from_secs(3);

type Result<T> = std::result::Result<T, Refusal>;

/// The volumes of one state directory.
pub struct Driver {
    /// What is on disk. Short: never held while anything is waited for.
    volumes: Mutex<Volumes>,
    /// One change is written at a time. Taken after a volume's lock, before `volumes`.
    saving: tokio::sync::Mutex<()>,
    /// The volumes that are being changed. Short.
    turns: Mutex<HashMap<String, Arc<Turn>>>,
    store: Arc<Store>,
    mounter: Arc<dyn Mounter>,
    grammar: Arc<dyn Grammar>,
    defaults: BTreeMap<String, String>,
    clock: Arc<dyn Clock>,
}

/// One change of a volume at a time.
#[derive(Default)]
struct Turn {
    lock: Arc<tokio::sync::Mutex<()>>,
    /// How many engines wait for the volume, to mount or to remove it.
    hurry: watch::Sender<usize>,
}

/// The turn of whoever holds it.
struct MyTurn {
    turn: Arc<Turn>,
    _lock: tokio::sync::OwnedMutexGuard<()>,
}

/// Counts one who waits, as long as it is there.
struct Hurry<'a>(&'a watch::Sender<usize>);

impl<'a> Hurry<'a> {
    fn new(hurry: &'a watch::Sender<usize>) -> Self {
        hurry.send_modify(|n| *n += 1);
        Self(hurry)
    }
}

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

impl MyTurn {
    /// Whether an engine wants the volume.
    fn is_wanted(&self) -> bool {
        *self.turn.hurry.borrow() > 0
    }

    /// Ends when an engine wants the volume.
    fn wanted(&self) -> Interruption {
        let mut hurry = self.turn.hurry.subscribe();
        Box::pin(async move {
            // The sender is held as long as this turn is.
            if hurry.wait_for(|n| *n > 0).await.is_err() {
                std::future::pending().await
            }
        })
    }
}

/// What the driver works with.
pub struct Parts {
    /// Where volumes are remembered.
    pub store: Store,
    /// What was remembered.
    pub volumes: Volumes,
    /// What mounts.
    pub mounter: Arc<dyn Mounter>,
    /// Which options there are.
    pub grammar: Arc<dyn Grammar>,
    /// Options of every volume that does not say otherwise.
    pub defaults: BTreeMap<String, String>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

impl Driver {
    /// A driver over what was remembered.
    pub fn new(parts: Parts) -> Self {
        Self {
            volumes: Mutex::new(parts.volumes),
            saving: tokio::sync::Mutex::default(),
            turns: Mutex::default(),
            store: Arc::new(parts.store),
            mounter: parts.mounter,
            grammar: parts.grammar,
            defaults: parts.defaults,
            clock: parts.clock,
        }
    }

    /// Create.
    pub async fn create(&self, name: &str, options: &BTreeMap<String, String>) -> Result<()> {
        state::check_name(name)?;
        let arguments = options::arguments(&self.defaults, options, &*self.grammar).map_err(Refusal::Said)?;
        // Of one that is there already the files are the next mount's business.
        if self.volumes().get(name).is_err() {
            let grammar = self.grammar.clone();
            let rehearsed = tokio::task::spawn_blocking(move || grammar.rehearse(&arguments)).await;
            rehearsed.unwrap_or_else(|e| Err(e.to_string())).map_err(Refusal::Said)?;
        }
        let _turn = self.turn(name).await;
        let now = seconds(self.clock.wall());
        self.change(|volumes| volumes.create(name, options, now)).await.map(drop)
    }

    /// Mount: `tell` gets the answer while the volume is still locked, and says whether anybody heard it.
    pub async fn mount(&self, name: &str, id: &str, tell: impl FnOnce(Result<PathBuf>) -> bool) {
        let turn = self.turn_soon(name).await;
        match self.mount_locked(&turn, name, id).await {
            Ok((at, new)) => {
                if !tell(Ok(at)) && new {
                    tracing::warn!(
                        volume = name,
                        "the engine waited no longer for its mount: taking it back"
                    );
                    if let Err(e) = self.release(&turn, name, id).await {
                        tracing::error!(volume = name, "{e}");
                    }
                }
            }
            Err(e) => {
                tell(Err(e));
            }
        }
    }

    async fn mount_locked(&self, turn: &MyTurn, name: &str, id: &str) -> Result<(PathBuf, bool)> {
        let volume = self.volumes().get(name)?.clone();
        let arguments =
            options::arguments(&self.defaults, &volume.options, &*self.grammar).map_err(Refusal::Said)?;
        let at = self.store.mountpoint(name);
        self.mounter.mount(&at, &arguments).await.map_err(|e| said(name, &e))?;
        match self.acquire(name, id).await {
            Ok(new) => Ok((at, new)),
            Err(e) => {
                if volume.users.is_empty() {
                    let unmounted = self.unmount_unused(name, turn.wanted()).await;
                    unmounted.unwrap_or_else(|e| tracing::error!(volume = name, "{e}"));
                }
                Err(e)
            }
        }
    }

    /// Unmount: as [`Driver::mount`]. What fails after the answer is logged.
    pub async fn unmount(&self, name: &str, id: &str, tell: impl FnOnce(Result<()>) -> bool) {
        let turn = self.turn(name).await;
        let was_user = self.volumes().get(name).is_ok_and(|volume| volume.users.contains(id));
        let last = match self.change(|volumes| volumes.release(name, id)).await {
            Ok(last) => last,
            Err(e) => {
                tell(Err(e));
                return;
            }
        };
        let failed = if !tell(Ok(())) && was_user {
            tracing::warn!(volume = name, "the engine waited no longer for its unmounting: it stays mounted");
            self.acquire(name, id).await.err()
        } else if last {
            self.unmount_unused(name, turn.wanted()).await.err()
        } else {
            None
        };
        match failed {
            // Whoever interrupted it has the mount now; dockerd does so each time it starts a container.
            Some(e) if turn.is_wanted() => tracing::debug!("{e}"),
            Some(e) => tracing::error!("{e}"),
            None => {}
        }
    }

    async fn acquire(&self, name: &str, id: &str) -> Result<bool> {
        self.change(|volumes| volumes.acquire(name, id)).await
    }

    async fn release(&self, turn: &MyTurn, name: &str, id: &str) -> Result<()> {
        let last = self.change(|volumes| volumes.release(name, id)).await?;
        if last { self.unmount_unused(name, turn.wanted()).await } else { Ok(()) }
    }

    /// Storing what is unsaved may take long where the vault is away.
    async fn unmount_unused(&self, name: &str, unless: Interruption) -> Result<()> {
        let at = self.store.mountpoint(name);
        self.mounter.unmount(&at, unless).await.map_err(|e| said(name, &e))?;
        self.mounter.tidy(&at);
        Ok(())
    }

    /// Remove.
    pub async fn remove(&self, name: &str) -> Result<()> {
        let _turn = self.turn_soon(name).await;
        let users = self.volumes().get(name)?.users.clone();
        let unused = self.volumes().check_unused(name);
        let at = self.store.mountpoint(name);
        if let Err(in_use) = unused {
            let idle = self.mounter.unmount_idle(&at, REMOVAL).await;
            idle.map_err(|e| Refusal::Said(format!("{in_use} ({e})")))?;
            self.mounter.tidy(&at);
            tracing::warn!(
                volume = name,
                users = users.len(),
                "its users were never struck out, and nothing uses it: removing it"
            );
        } else {
            self.mounter.store(&at, REMOVAL).await.map_err(|e| said(name, &e))?;
            self.unmount_unused(name, Box::pin(std::future::pending())).await?;
        }
        self.change(|volumes| {
            for id in &users {
                volumes.release(name, id)?;
            }
            volumes.remove(name)
        })
        .await
    }

    /// Path: where it is mounted, empty while nobody uses it.
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        let volumes = self.volumes();
        let volume = volumes.get(name)?;
        Ok(self.place(name, volume))
    }

    /// Get.
    pub fn get(&self, name: &str) -> Result<Described> {
        let volumes = self.volumes();
        let volume = volumes.get(name)?;
        Ok(self.describe(name, volume))
    }

    /// List.
    pub fn list(&self) -> Vec<Described> {
        self.volumes().iter().map(|(name, volume)| self.describe(name, volume)).collect()
    }

    /// After a start: what is mounted for nobody is unmounted, what is gone is named. Waits for mounts; run it beside.
    pub async fn settle(&self) {
        for name in self.known() {
            let turn = self.turn(&name).await;
            let at = self.store.mountpoint(&name);
            let users = self.volumes().get(&name).map(|volume| volume.users.len());
            match users {
                Ok(0) | Err(_) if self.mounter.is_mounted(&at) => {
                    tracing::info!(volume = name, "mounted, and nobody uses it: unmounting");
                    let unmounted = self.unmount_unused(&name, turn.wanted()).await;
                    unmounted.unwrap_or_else(|e| tracing::error!(volume = name, "{e}"));
                }
                Ok(n) if n > 0 && !self.mounter.is_mounted(&at) => tracing::error!(
                    volume = name,
                    users = n,
                    "its mount is gone: the containers that use it have to be started again"
                ),
                Ok(n) if n > 0 => tracing::info!(volume = name, users = n, "found mounted"),
                _ => {}
            }
            if !self.mounter.is_mounted(&at) {
                self.mounter.tidy(&at);
            }
        }
    }

    /// At the end: what nobody uses is unmounted (only after a failed unmounting is there any). Names what stays.
    pub async fn end(&self) {
        for name in self.store.mountpoints() {
            let turn = self.turn(&name).await;
            let at = self.store.mountpoint(&name);
            if !self.mounter.is_mounted(&at) {
                continue;
            }
            let users = self.volumes().get(&name).map_or(0, |volume| volume.users.len());
            if users > 0 {
                tracing::info!(volume = name, users, "stays mounted for those who use it");
            } else if let Err(e) = self.unmount_unused(&name, turn.wanted()).await {
                tracing::error!(volume = name, "{e}");
            }
        }
    }

    /// The names of volumes, and of mount points that are there.
    fn known(&self) -> BTreeSet<String> {
        let names: Vec<_> = self.volumes().iter().map(|(name, _)| name.to_owned()).collect();
        names.into_iter().chain(self.store.mountpoints()).collect()
    }

    fn volumes(&self) -> MutexGuard<'_, Volumes> {
        self.volumes.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Makes a change, writes it, then shows it.
    async fn change<T>(&self, change: impl FnOnce(&mut Volumes) -> Result<T>) -> Result<T> {
        let _one = self.saving.lock().await;
        let mut volumes = self.volumes().clone();
        let done = change(&mut volumes)?;
        if volumes == *self.volumes() {
            return Ok(done);
        }
        let store = self.store.clone();
        let saved = tokio::task::spawn_blocking(move || store.save(&volumes).map(|()| volumes)).await;
        let volumes = saved
            .unwrap_or_else(|e| Err(std::io::Error::other(e)))
            .map_err(|e| Refusal::Said(format!("the volumes of vaultfs cannot be written down: {e}")))?;
        *self.volumes() = volumes;
        Ok(done)
    }

    async fn turn(&self, name: &str) -> MyTurn {
        let turn = self.turn_of(name);
        let lock = turn.lock.clone().lock_owned().await;
        MyTurn { turn, _lock: lock }
    }

    /// As [`Driver::turn`], but an unmounting that goes on for nobody gives way.
    async fn turn_soon(&self, name: &str) -> MyTurn {
        let turn = self.turn_of(name);
        let hurry = Hurry::new(&turn.hurry);
        let lock = turn.lock.clone().lock_owned().await;
        drop(hurry);
        MyTurn { turn, _lock: lock }
    }

    fn turn_of(&self, name: &str) -> Arc<Turn> {
        let mut turns = self.turns.lock().unwrap_or_else(|e| e.into_inner());
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry(name.to_owned()).or_default().clone()
    }

    fn place(&self, name: &str, volume: &Volume) -> PathBuf {
        if volume.users.is_empty() { PathBuf::new() } else { self.store.mountpoint(name) }
    }

    fn describe(&self, name: &str, volume: &Volume) -> Described {
        let created = UNIX_EPOCH + Duration::from_secs(volume.created);
        let status = [
            ("options".to_owned(), serde_json::json!(volume.options)),
            ("users".to_owned(), volume.users.len().into()),
        ];
        Described {
            name: name.to_owned(),
            mountpoint: self.place(name, volume),
            created_at: humantime::format_rfc3339_seconds(created).to_string(),
            status: status.into(),
        }
    }
}

fn said(name: &str, sentence: &str) -> Refusal {
    Refusal::Said(format!("vaultfs volume {name}: {sentence}"))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("volumes", &self.volumes()).finish_non_exhaustive()
    }
}
