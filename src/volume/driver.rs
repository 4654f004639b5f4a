//! Serves the requests of an engine: the order of checks, mounts, state changes and answers.
//!
//! 1. A lock for each volume serializes its changes; volumes do not wait for each other. Read-only
//!    requests never wait.
//! 2. A user is recorded after the mount answers and before the engine gets its answer. A crash in
//!    between leaves a mount without users, which the next start unmounts; never a user without a
//!    mount.
//! 3. An engine that has stopped waiting does not use the mount: its user is removed under the same
//!    lock, so that a repeated request finds the user either recorded or absent.
//! 4. A user is removed, and the engine answered, before the volume is unmounted: podman waits 5 s
//!    for an answer, and without one takes the volume for mounted. If unmounting fails (writes that
//!    the vault does not accept), the mount stays for the next user or for `vaultfs pending`. If
//!    the answer did not arrive, the user is recorded again. A Mount or a Remove interrupts an
//!    unmounting that waits for the vault.
//! 5. The mount point exists only while something is mounted there, so that an engine never binds a
//!    directory of the disk in place of the vault. A Mount fails if the engine's mount namespace
//!    does not have the mount.
//! 6. An engine that is killed, or that removes a container while the plugin is stopped, leaves its
//!    users recorded. So recorded users do not prevent a Remove if no visible process uses the
//!    mount: an engine removes only volumes that it takes for unused. An Unmount does not remove
//!    other users: one may have its answer and not have bound it yet.
//! 7. After its last user a volume stays mounted for a while, for containers that restart while the
//!    vault does not answer. It is never unmounted while another mount namespace has it bound.

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

/// Timeout for storing unsaved writes before a removal: podman waits 5 s for the answer, dockerd a
/// minute.
const REMOVAL: Duration = Duration::from_secs(3);
/// Interval between checks for mount namespaces that have a volume bound.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// The same while an engine waits for its removal.
const FIRST_POLL: Duration = Duration::from_millis(100);

type Result<T> = std::result::Result<T, Refusal>;

/// The volumes of one state directory.
pub struct Driver {
    /// What is on disk. Never held across a wait.
    volumes: Mutex<Volumes>,
    /// Serializes writes. Acquired after a volume's lock, before `volumes`.
    saving: tokio::sync::Mutex<()>,
    /// Serialize the changes of each volume.
    locks: VolumeLocks,
    /// Mounted volumes without users, which will be unmounted. Never held across a wait.
    idle: Mutex<Idle>,
    store: Arc<Store>,
    mounter: Arc<dyn Mounter>,
    grammar: Arc<dyn Grammar>,
    defaults: BTreeMap<String, String>,
    profiles: Arc<Profiles>,
    keep: Duration,
    clock: Arc<dyn Clock>,
}

/// The parts of a [`Driver`].
pub struct Parts {
    /// Writes the volumes.
    pub store: Store,
    /// The volumes as they were read.
    pub volumes: Volumes,
    /// Makes the mounts.
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
    /// A driver of these parts.
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
        // The next mount validates the options of an existing volume, which an earlier version may
        // have created.
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

    /// Mount, for an engine with a known process. `answer` gets the answer while the volume is
    /// locked, and returns whether the engine received it.
    pub async fn mount(
        &self,
        name: &str,
        id: &str,
        engine: Option<u32>,
        answer: impl FnOnce(Result<PathBuf>) -> bool,
    ) {
        let guard = self.locks.soon(name).await;
        match self.mount_locked(&guard, name, id, engine).await {
            Ok(at) => {
                if !answer(Ok(at)) {
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
                answer(Err(e));
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

    /// Unmount, as [`Driver::mount`]. Without users left, returns when the volume is unmounted;
    /// failures after the answer are logged.
    pub async fn unmount(&self, name: &str, id: &str, answer: impl FnOnce(Result<()>) -> bool) {
        let guard = self.locks.next(name).await;
        let was_user = match self.change(|volumes| volumes.release(name, id)).await {
            Ok(was_user) => was_user,
            Err(e) => {
                answer(Err(e));
                return;
            }
        };
        if !answer(Ok(())) && was_user {
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

    /// Undoes a Mount if the engine did not receive the answer.
    async fn take_back(&self, guard: &VolumeGuard, name: &str, id: &str) -> Result<()> {
        self.change(|volumes| volumes.release(name, id)).await?;
        if self.is_unused(name) { self.unmount_unused(name, guard.wanted()).await } else { Ok(()) }
    }

    fn is_unused(&self, name: &str) -> bool {
        self.volumes().get(name).map_or(true, |volume| volume.users.is_empty())
    }

    /// Unmounts a volume without users `after` that time, unless it has users by then or another
    /// mount namespace has it bound.
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
                // The Mount that interrupted it uses the volume; dockerd does so each time it
                // starts a container.
                Err(e) if guard.is_wanted() => return tracing::debug!("{e}"),
                Err(e) => return tracing::error!("{e}"),
                Ok(()) => return,
            }
            pause = self.keep.max(POLL_INTERVAL);
        }
    }

    /// Unmounts a volume; may take long while the vault does not answer.
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
            // An earlier request removed it, and its answer was lost.
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

    /// Waits until no other mount namespace has the mount: the kernel removes a container's
    /// namespace after its end.
    async fn unbound(&self, at: &std::path::Path, within: Duration) {
        let gone = async {
            while self.mounter.holder(at).await.is_some() {
                tokio::time::sleep(FIRST_POLL).await;
            }
        };
        // On a timeout the caller reports the holder.
        let _ = tokio::time::timeout(within, gone).await;
    }

    /// Path: the mount point, empty without users.
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

    /// After a start: unmounts volumes without users and logs missing mounts. Waits for mounts: run
    /// it in the background.
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
                tracing::info!(volume = name, "mounted, and not in use: unmounting");
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

    /// At the end: unmounts volumes without users, and logs those that stay.
    pub async fn end(&self) {
        for name in self.store.mountpoints() {
            let guard = self.locks.next(&name).await;
            let at = self.store.mountpoint(&name);
            if !self.mounter.is_mounted(&at) {
                continue;
            }
            let users = self.volumes().get(&name).map_or(0, |volume| volume.users.len());
            if users > 0 {
                tracing::info!(volume = name, users, "in use: stays mounted");
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

    /// Applies a change to a copy, writes it to disk, then makes it visible.
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

/// Runs a function that reads files on a blocking thread.
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
