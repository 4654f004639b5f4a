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
//!    get a directory of the disk in place of the vault. Nor does one whose mount namespace does not have the mount.
//! 6. An engine that is killed, or that removes a container while the plugin is away, never strikes out its users. So
//!    users do not keep a volume from being removed, provided that nothing that can be seen uses the mount: the engine
//!    asks for the removal only of what it believes to be unused. An Unmount says nothing of other users, of whom one
//!    may have been told of its mount and not have bound it yet: they are left.
//! 7. After its last user a volume stays mounted for a while: a container that restarts while the vault is away finds it.
//!    And it is never unmounted while another mount namespace has it bound, whatever was counted.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, MutexGuard};

use super::lock::{Idle, VolumeGuard, VolumeLocks};
use super::mounter::{Interruption, Mounter};
use super::options::{self, Grammar};
use super::profile::Profiles;
use super::protocol::Described;
use super::state::{self, Refusal, Volume, Volumes};
use super::store::Store;
use crate::clock::Clock;

/// How long a removal tries to store what is unsaved: podman waits 5 s for the answer, dockerd a minute.
const REMOVAL: Duration = Duration::from_secs(3);
/// How often it is looked whether a mount namespace that has a volume bound has ended, at least.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// The same while an engine waits for its removal.
const FIRST_POLL: Duration = Duration::from_millis(100);

type Result<T> = std::result::Result<T, Refusal>;

/// The volumes of one state directory.
pub struct Driver {
    /// What is on disk. Short: never held while anything is waited for.
    volumes: Mutex<Volumes>,
    /// One change is written at a time. Taken after a volume's lock, before `volumes`.
    saving: tokio::sync::Mutex<()>,
    /// Whose turn it is to change a volume.
    locks: VolumeLocks,
    /// The volumes that are mounted and will be unmounted, unless they are used before. Short.
    idle: Mutex<Idle>,
    store: Arc<Store>,
    mounter: Arc<dyn Mounter>,
    grammar: Arc<dyn Grammar>,
    defaults: BTreeMap<String, String>,
    profiles: Arc<Profiles>,
    keep: Duration,
    clock: Arc<dyn Clock>,
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
    /// Options that volumes name and do not have themselves.
    pub profiles: Profiles,
    /// How long a volume stays mounted after its last user.
    pub keep: Duration,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

impl Driver {
    /// A driver over what was remembered.
    pub fn new(parts: Parts) -> Self {
        Self {
            volumes: Mutex::new(parts.volumes),
            saving: tokio::sync::Mutex::default(),
            locks: VolumeLocks::default(),
            idle: Mutex::default(),
            store: Arc::new(parts.store),
            mounter: parts.mounter,
            grammar: parts.grammar,
            defaults: parts.defaults,
            profiles: Arc::new(parts.profiles),
            keep: parts.keep,
            clock: parts.clock,
        }
    }

    /// Create.
    pub async fn create(&self, name: &str, options: &BTreeMap<String, String>) -> Result<()> {
        state::check_name(name)?;
        let _guard = self.locks.next(name).await;
        // Of one that is there already, by an earlier version perhaps, options and files are the next mount's business.
        if self.volumes().get(name).is_err() {
            let arguments = self.arguments(options).await?;
            options::check_own(name, options, self.profiles.dir(), &*self.grammar)
                .map_err(Refusal::Message)?;
            let grammar = self.grammar.clone();
            blocking(move || grammar.validate(&arguments)).await?;
        }
        let now = seconds(self.clock.wall());
        self.change(|volumes| volumes.create(name, options, now)).await.map(drop)
    }

    /// The arguments of `vaultfs mount` for a volume with these options.
    async fn arguments(&self, options: &BTreeMap<String, String>) -> Result<Vec<String>> {
        let (profiles, name) = (self.profiles.clone(), options.get(options::PROFILE).cloned());
        let profile = match name {
            Some(name) => Some(blocking(move || profiles.read(&name)).await?),
            None => None,
        };
        options::of_volume(&self.defaults, profile.as_ref(), options, &*self.grammar)
            .map_err(Refusal::Message)
    }

    /// Mount, for an engine whose process is known: `tell` gets the answer while the volume is still locked, and says
    /// whether anybody heard it.
    pub async fn mount(
        &self,
        name: &str,
        id: &str,
        engine: Option<u32>,
        tell: impl FnOnce(Result<PathBuf>) -> bool,
    ) {
        let guard = self.locks.soon(name).await;
        match self.mount_locked(&guard, name, id, engine).await {
            Ok(at) => {
                if !tell(Ok(at)) {
                    tracing::warn!(
                        volume = name,
                        "the engine waited no longer for its mount: taking it back"
                    );
                    if let Err(e) = self.take_back(&guard, name, id).await {
                        tracing::error!(volume = name, "{e}");
                    }
                }
            }
            Err(e) => {
                tell(Err(e));
            }
        }
    }

    async fn mount_locked(
        &self,
        guard: &VolumeGuard,
        name: &str,
        id: &str,
        engine: Option<u32>,
    ) -> Result<PathBuf> {
        let volume = self.volumes().get(name)?.clone();
        let arguments = self.arguments(&volume.options).await?;
        let at = self.store.mountpoint(name);
        self.mounter.mount(&at, &arguments).await.map_err(|e| failure(name, &e))?;
        let seen = self.mounter.is_seen_by(&at, engine).map_err(|e| failure(name, &e));
        let done = match seen {
            Ok(()) => self.acquire(name, id).await,
            Err(e) => Err(e),
        };
        if done.is_err() && volume.users.is_empty() {
            let unmounted = self.unmount_unused(name, guard.wanted()).await;
            unmounted.unwrap_or_else(|e| tracing::error!(volume = name, "{e}"));
        }
        done.map(|()| at)
    }

    /// Unmount: as [`Driver::mount`]. Returns when the volume is unmounted, if it has no users then; what fails after
    /// the answer is logged.
    pub async fn unmount(&self, name: &str, id: &str, tell: impl FnOnce(Result<()>) -> bool) {
        let guard = self.locks.next(name).await;
        let was_user = match self.change(|volumes| volumes.release(name, id)).await {
            Ok(was_user) => was_user,
            Err(e) => {
                tell(Err(e));
                return;
            }
        };
        if !tell(Ok(())) && was_user {
            tracing::warn!(volume = name, "the engine waited no longer for its unmounting: it stays mounted");
            if let Err(e) = self.acquire(name, id).await {
                tracing::error!(volume = name, "{e}");
            }
        } else if self.is_unused(name) {
            self.leave(name, guard, self.keep).await;
        }
    }

    async fn acquire(&self, name: &str, id: &str) -> Result<()> {
        self.change(|volumes| volumes.acquire(name, id)).await?;
        self.idle().end(name);
        Ok(())
    }

    /// Undoes a Mount of which the engine did not hear.
    async fn take_back(&self, guard: &VolumeGuard, name: &str, id: &str) -> Result<()> {
        self.change(|volumes| volumes.release(name, id)).await?;
        if self.is_unused(name) { self.unmount_unused(name, guard.wanted()).await } else { Ok(()) }
    }

    fn is_unused(&self, name: &str) -> bool {
        self.volumes().get(name).map_or(true, |volume| volume.users.is_empty())
    }

    /// Unmounts a volume without users `after` that time, unless it has some by then. While another mount namespace has
    /// it bound, it stays.
    async fn leave(&self, name: &str, guard: VolumeGuard, after: Duration) {
        let (mut guard, mut pause) = (guard, after);
        let mine = self.idle().begin(name);
        loop {
            if !pause.is_zero() {
                drop(guard);
                tokio::time::sleep(pause).await;
                guard = self.locks.next(name).await;
                if !self.idle().is_since(name, mine) {
                    return;
                }
            }
            match self.unmount_unused(name, guard.wanted()).await {
                Err(e @ Refusal::Bound { .. }) => tracing::debug!("stays mounted: {e}"),
                // Whoever interrupted it has the mount now; dockerd does so each time it starts a container.
                Err(e) if guard.is_wanted() => return tracing::debug!("{e}"),
                Err(e) => return tracing::error!("{e}"),
                Ok(()) => return,
            }
            pause = self.keep.max(POLL_INTERVAL);
        }
    }

    /// Storing what is unsaved may take long where the vault is away.
    async fn unmount_unused(&self, name: &str, unless: Interruption) -> Result<()> {
        let at = self.store.mountpoint(name);
        if let Some(holder) = self.mounter.holder(&at).await {
            return Err(Refusal::Bound { name: name.to_owned(), holder });
        }
        self.mounter.unmount(&at, unless).await.map_err(|e| failure(name, &e))?;
        self.mounter.tidy(&at);
        Ok(())
    }

    /// Remove.
    pub async fn remove(&self, name: &str) -> Result<()> {
        let _guard = self.locks.soon(name).await;
        let unused = match self.volumes().check_unused(name) {
            // By a request whose answer was lost.
            Err(Refusal::Unknown(_)) => return Ok(()),
            unused => unused,
        };
        let at = self.store.mountpoint(name);
        if let Err(in_use) = unused {
            let holder = self.mounter.holder(&at).await;
            let idle = match holder {
                Some(holder) => Err(holder),
                None => self.mounter.unmount_idle(&at, REMOVAL).await,
            };
            idle.map_err(|e| Refusal::Message(format!("{in_use} ({e})")))?;
            self.mounter.tidy(&at);
            tracing::warn!(
                volume = name,
                "its users were never struck out, and nothing uses it: removing it"
            );
        } else {
            self.unbound(&at, REMOVAL).await;
            self.mounter.store(&at, REMOVAL).await.map_err(|e| failure(name, &e))?;
            self.unmount_unused(name, Box::pin(std::future::pending())).await?;
        }
        self.idle().end(name);
        self.change(|volumes| {
            volumes.remove(name);
            Ok(())
        })
        .await
    }

    /// Waits until no other mount namespace has what is mounted there: that of a container that ends goes after it.
    async fn unbound(&self, at: &std::path::Path, within: Duration) {
        let gone = async {
            while self.mounter.holder(at).await.is_some() {
                tokio::time::sleep(FIRST_POLL).await;
            }
        };
        // Else it is told who has it.
        let _ = tokio::time::timeout(within, gone).await;
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
    pub async fn check_mounts(&self) {
        let checks = self.known().into_iter().map(|name| async move { self.check_mount(&name).await });
        futures_util::future::join_all(checks).await;
    }

    async fn check_mount(&self, name: &str) {
        let guard = self.locks.next(name).await;
        let at = self.store.mountpoint(name);
        let volume = self.volumes().get(name).ok().cloned();
        let (users, options) = volume.map_or_else(Default::default, |volume| (volume.users, volume.options));
        let old = options::old(&options);
        if !old.is_empty() {
            tracing::warn!(
                volume = name,
                options = old.join(", "),
                "it has options that belong into a profile now"
            );
        }
        match users.len() {
            0 if self.mounter.is_mounted(&at) => {
                tracing::info!(volume = name, "mounted, and nobody uses it: unmounting");
                return self.leave(name, guard, Duration::ZERO).await;
            }
            0 => {}
            n if !self.mounter.is_mounted(&at) => tracing::error!(
                volume = name,
                users = n,
                "its mount is gone: the containers that use it have to be started again"
            ),
            n => tracing::info!(volume = name, users = n, "found mounted"),
        }
        if !self.mounter.is_mounted(&at) {
            self.mounter.tidy(&at);
        }
    }

    /// At the end: what nobody uses is unmounted, without waiting any longer. Names what stays.
    pub async fn end(&self) {
        for name in self.store.mountpoints() {
            let guard = self.locks.next(&name).await;
            let at = self.store.mountpoint(&name);
            if !self.mounter.is_mounted(&at) {
                continue;
            }
            let users = self.volumes().get(&name).map_or(0, |volume| volume.users.len());
            if users > 0 {
                tracing::info!(volume = name, users, "stays mounted for those who use it");
            } else if let Err(e) = self.unmount_unused(&name, guard.wanted()).await {
                tracing::error!(volume = name, "{e}");
            }
        }
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock()
    }

    /// The names of volumes, and of mount points that are there.
    fn known(&self) -> BTreeSet<String> {
        let names: Vec<_> = self.volumes().iter().map(|(name, _)| name.to_owned()).collect();
        names.into_iter().chain(self.store.mountpoints()).collect()
    }

    fn volumes(&self) -> MutexGuard<'_, Volumes> {
        self.volumes.lock()
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
            .map_err(|e| Refusal::Message(format!("the volumes of vaultfs cannot be written down: {e}")))?;
        *self.volumes() = volumes;
        Ok(done)
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

fn failure(name: &str, sentence: &str) -> Refusal {
    Refusal::Message(format!("vaultfs volume {name}: {sentence}"))
}

/// Runs what reads files.
async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> std::result::Result<T, String> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(read).await;
    done.unwrap_or_else(|e| Err(e.to_string())).map_err(Refusal::Message)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("volumes", &self.volumes()).finish_non_exhaustive()
    }
}
