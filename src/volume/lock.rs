//! A lock for each volume, and the list of volumes without users.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::mounter::Interruption;

/// The volumes that are being changed, one change at a time for each.
#[derive(Default)]
pub struct VolumeLocks(Mutex<HashMap<String, Arc<VolumeLock>>>);

impl VolumeLocks {
    /// Waits for the lock of a volume.
    pub async fn next(&self, name: &str) -> VolumeGuard {
        let volume = self.of(name);
        let lock = volume.lock.clone().lock_owned().await;
        VolumeGuard { volume, _lock: lock }
    }

    /// As [`VolumeLocks::next`], and interrupts the unmounting of an unused volume.
    pub async fn soon(&self, name: &str) -> VolumeGuard {
        let volume = self.of(name);
        let waiters = Waiter::new(&volume.waiters);
        let lock = volume.lock.clone().lock_owned().await;
        drop(waiters);
        VolumeGuard { volume, _lock: lock }
    }

    fn of(&self, name: &str) -> Arc<VolumeLock> {
        let mut locks = self.0.lock();
        locks.retain(|_, volume| Arc::strong_count(volume) > 1);
        locks.entry(name.to_owned()).or_default().clone()
    }
}

/// The lock of one volume.
#[derive(Default)]
struct VolumeLock {
    lock: Arc<tokio::sync::Mutex<()>>,
    /// How many engines wait for the volume, to mount or to remove it.
    waiters: watch::Sender<usize>,
}

/// A held lock of one volume.
pub struct VolumeGuard {
    volume: Arc<VolumeLock>,
    _lock: tokio::sync::OwnedMutexGuard<()>,
}

/// Counts as a waiting engine until it is dropped.
struct Waiter<'a>(&'a watch::Sender<usize>);

impl<'a> Waiter<'a> {
    fn new(waiters: &'a watch::Sender<usize>) -> Self {
        waiters.send_modify(|n| *n += 1);
        Self(waiters)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

impl VolumeGuard {
    /// Whether an engine wants the volume.
    pub fn is_wanted(&self) -> bool {
        *self.volume.waiters.borrow() > 0
    }

    /// Ends when an engine wants the volume.
    pub fn wanted(&self) -> Interruption {
        let mut waiters = self.volume.waiters.subscribe();
        Box::pin(async move {
            // The guard holds the sender.
            if waiters.wait_for(|n| *n > 0).await.is_err() {
                std::future::pending().await
            }
        })
    }
}

/// Volumes without users, each with the number of the time since which it has none.
#[derive(Debug, Default)]
pub struct Idle {
    last: u64,
    since: HashMap<String, u64>,
}

impl Idle {
    /// A volume has no users from now on.
    pub fn begin(&mut self, name: &str) -> u64 {
        self.last += 1;
        self.since.insert(name.to_owned(), self.last);
        self.last
    }

    /// It has one, or is gone.
    pub fn end(&mut self, name: &str) {
        self.since.remove(name);
    }

    /// Whether it has had none since then.
    pub fn is_since(&self, name: &str, begun: u64) -> bool {
        self.since.get(name) == Some(&begun)
    }
}
