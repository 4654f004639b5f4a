//! The volume driver without mounts: whatever the engine asks, in whatever order, with crashes between, users are counted
//! truly, and what is mounted is what is used.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use proptest::prelude::*;
use vaultfs::clock::SystemClock;
use vaultfs::volume::driver::{Driver, Parts};
use vaultfs::volume::mounter::{Interruption, Mounter};
use vaultfs::volume::options::{Grammar, Takes};
use vaultfs::volume::state::Refusal;
use vaultfs::volume::store::Store;

/// Mounts that are names in a set; they outlive a driver.
#[derive(Default)]
struct Fake {
    mounted: Mutex<BTreeSet<PathBuf>>,
    away: AtomicBool,
    /// Unmounting fails: writes are left that the vault does not take.
    unsaved: AtomicBool,
    /// The next unmounting takes until it is interrupted: the vault is away.
    drains: AtomicBool,
    /// Somebody uses what is mounted.
    busy: AtomicBool,
    /// A volume of this name takes until it is let go.
    slow: tokio::sync::Notify,
}

#[async_trait]
impl Mounter for Fake {
    async fn mount(&self, at: &Path, _: &[String]) -> Result<(), String> {
        if at.ends_with("slow") {
            self.slow.notified().await;
        }
        if self.away.load(Ordering::Relaxed) && !self.is_mounted(at) {
            return Err("the vault cannot be reached".into());
        }
        self.mounted.lock().unwrap().insert(at.to_owned());
        std::fs::create_dir_all(at).map_err(|e| e.to_string())
    }

    async fn store(&self, at: &Path, _: Duration) -> Result<(), String> {
        let left = self.is_mounted(at) && self.unsaved.load(Ordering::Relaxed);
        if left { Err("not stored: a".into()) } else { Ok(()) }
    }

    async fn unmount(&self, at: &Path, unless: Interruption) -> Result<(), String> {
        if self.is_mounted(at) && self.drains.swap(false, Ordering::Relaxed) {
            unless.await;
            return Err("interrupted".into());
        }
        if self.is_mounted(at) && self.unsaved.load(Ordering::Relaxed) {
            return Err("not stored: a".into());
        }
        self.mounted.lock().unwrap().remove(at);
        Ok(())
    }

    async fn unmount_idle(&self, at: &Path, _: Duration) -> Result<(), String> {
        if self.busy.load(Ordering::Relaxed) {
            Err("process 7 has it".into())
        } else {
            self.unmount(at, Box::pin(std::future::pending())).await
        }
    }

    fn is_mounted(&self, at: &Path) -> bool {
        self.mounted.lock().unwrap().contains(at)
    }

    fn tidy(&self, at: &Path) {
        let _ = std::fs::remove_dir(at);
    }
}

struct AnyOption;

impl Grammar for AnyOption {
    fn takes(&self, _: &str) -> Option<Takes> {
        Some(Takes::Either)
    }

    fn nearest(&self, _: &str) -> Option<String> {
        None
    }

    fn check(&self, _: &[String]) -> Result<Option<Duration>, String> {
        Ok(None)
    }

    fn rehearse(&self, _: &[String]) -> Result<(), String> {
        Ok(())
    }
}

fn driver(dir: &Path, mounter: &Arc<Fake>, boot: &str) -> Driver {
    let (store, volumes) = Store::open(dir, boot).unwrap();
    Driver::new(Parts {
        store,
        volumes,
        mounter: mounter.clone(),
        grammar: Arc::new(AnyOption),
        defaults: BTreeMap::new(),
        clock: Arc::new(SystemClock),
    })
}

async fn mount(driver: &Driver, name: &str, id: &str, heard: bool) -> Result<PathBuf, Refusal> {
    let mut answer = None;
    driver
        .mount(name, id, |told| {
            answer = Some(told);
            heard
        })
        .await;
    answer.expect("always told")
}

async fn unmount(driver: &Driver, name: &str, id: &str, heard: bool) -> Result<(), Refusal> {
    let mut answer = None;
    let tell = |told| {
        answer = Some(told);
        heard
    };
    driver.unmount(name, id, tell).await;
    answer.expect("always told")
}

#[derive(Debug, Clone)]
enum Step {
    Create(u8),
    Mount(u8, u8, bool),
    Unmount(u8, u8, bool),
    Remove(u8),
    Away(bool),
    Unsaved(bool),
    Busy(bool),
    Restart,
    Reboot,
}

fn step() -> impl Strategy<Value = Step> {
    let (volume, id) = (0..3u8, 0..3u8);
    prop_oneof![
        2 => volume.clone().prop_map(Step::Create),
        5 => (volume.clone(), id.clone(), prop::bool::weighted(0.8)).prop_map(|(v, i, heard)| Step::Mount(v, i, heard)),
        5 => (volume.clone(), id, prop::bool::weighted(0.8)).prop_map(|(v, i, heard)| Step::Unmount(v, i, heard)),
        2 => volume.prop_map(Step::Remove),
        1 => any::<bool>().prop_map(Step::Away),
        1 => any::<bool>().prop_map(Step::Unsaved),
        1 => any::<bool>().prop_map(Step::Busy),
        1 => Just(Step::Restart),
        1 => Just(Step::Reboot),
    ]
}

/// What must be true: the users of each volume.
type Model = BTreeMap<String, BTreeSet<String>>;

async fn play(steps: &[Step]) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let mounter = Arc::new(Fake::default());
    let mut boot = 0;
    let mut now = driver(&root, &mounter, "0");
    let mut model = Model::new();
    let (name, id) = (|v: u8| format!("v{v}"), |i: u8| format!("id{i}"));
    for step in steps {
        let (away, unsaved) = (mounter.away.load(Ordering::Relaxed), mounter.unsaved.load(Ordering::Relaxed));
        let at = |name: &str| root.join("volumes").join(name);
        match step {
            Step::Create(v) => {
                now.create(&name(*v), &BTreeMap::new()).await.unwrap();
                model.entry(name(*v)).or_default();
            }
            Step::Mount(v, i, heard) => {
                let there = mounter.is_mounted(&at(&name(*v)));
                let done = mount(&now, &name(*v), &id(*i), *heard).await;
                let known = model.get_mut(&name(*v));
                assert_eq!(done.is_ok(), known.is_some() && (there || !away), "{done:?}");
                if let (Ok(_), Some(users)) = (done, known)
                    && *heard
                {
                    users.insert(id(*i));
                }
            }
            Step::Unmount(v, i, heard) => {
                let done = unmount(&now, &name(*v), &id(*i), *heard).await;
                assert_eq!(done.is_ok(), model.contains_key(&name(*v)), "{done:?}");
                if let Some(users) = model.get_mut(&name(*v))
                    && *heard
                {
                    users.remove(&id(*i));
                }
            }
            Step::Remove(v) => {
                let done = now.remove(&name(*v)).await;
                let busy = mounter.busy.load(Ordering::Relaxed);
                let unused = model.get(&name(*v)).is_some_and(|users| users.is_empty() || !busy);
                assert!(if unused { done.is_ok() || unsaved } else { done.is_err() }, "{done:?}");
                if done.is_ok() {
                    model.remove(&name(*v));
                }
            }
            Step::Away(is) => mounter.away.store(*is, Ordering::Relaxed),
            Step::Unsaved(is) => mounter.unsaved.store(*is, Ordering::Relaxed),
            Step::Busy(is) => mounter.busy.store(*is, Ordering::Relaxed),
            Step::Restart | Step::Reboot => {
                if matches!(step, Step::Reboot) {
                    boot += 1;
                    mounter.mounted.lock().unwrap().clear();
                    model.values_mut().for_each(BTreeSet::clear);
                }
                drop(now);
                now = driver(&root, &mounter, &boot.to_string());
                now.settle().await;
            }
        }
        check(&now, &mounter, &model, &root);
    }
}

fn check(driver: &Driver, mounter: &Fake, model: &Model, root: &Path) {
    let listed: Vec<_> = driver.list().into_iter().map(|v| v.name).collect();
    assert_eq!(listed, model.keys().cloned().collect::<Vec<_>>());
    for (name, users) in model {
        let described = driver.get(name).unwrap();
        assert_eq!(described.status["users"], users.len());
        let at = root.join("volumes").join(name);
        assert_eq!(described.mountpoint, if users.is_empty() { PathBuf::new() } else { at.clone() });
        assert!(mounter.is_mounted(&at) || users.is_empty(), "{name} is used and not mounted");
        assert_eq!(at.exists(), mounter.is_mounted(&at), "a bare directory in place of a volume");
    }
}

proptest! {
    #[test]
    fn users_are_true_whatever_is_asked(steps in prop::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(play(&steps));
    }
}

#[tokio::test]
async fn what_nobody_uses_is_not_mounted() {
    let dir = tempfile::tempdir().unwrap();
    let mounter = Arc::new(Fake::default());
    let mounts = || mounter.mounted.lock().unwrap().len();
    let now = driver(dir.path(), &mounter, "0");
    now.create("v", &BTreeMap::new()).await.unwrap();
    assert_eq!(mounts(), 0, "created is not mounted");
    // As dockerd: two IDs for one start.
    mount(&now, "v", "a", true).await.unwrap();
    unmount(&now, "v", "a", true).await.unwrap();
    assert_eq!(mounts(), 0);
    mount(&now, "v", "b", true).await.unwrap();
    mount(&now, "v", "c", true).await.unwrap();
    unmount(&now, "v", "b", true).await.unwrap();
    assert_eq!(mounts(), 1);
    unmount(&now, "v", "c", false).await.unwrap();
    assert_eq!(mounts(), 1, "nobody heard it");
    unmount(&now, "v", "c", true).await.unwrap();
    assert_eq!(mounts(), 0);
    mount(&now, "v", "d", false).await.unwrap();
    assert_eq!((mounts(), now.get("v").unwrap().status["users"].clone()), (0, 0.into()), "nobody heard it");
}

#[tokio::test]
async fn unsaved_writes_keep_the_mount_and_the_volume() {
    let dir = tempfile::tempdir().unwrap();
    let mounter = Arc::new(Fake::default());
    let now = driver(dir.path(), &mounter, "0");
    now.create("v", &BTreeMap::new()).await.unwrap();
    mount(&now, "v", "a", true).await.unwrap();
    mounter.unsaved.store(true, Ordering::Relaxed);
    unmount(&now, "v", "a", true).await.unwrap();
    let said = now.remove("v").await.unwrap_err().to_string();
    assert!(said.contains("vaultfs volume v: not stored"), "{said}");
    mount(&now, "v", "b", true).await.unwrap();
    mounter.unsaved.store(false, Ordering::Relaxed);
    unmount(&now, "v", "b", true).await.unwrap();
    now.remove("v").await.unwrap();
    assert!(mounter.mounted.lock().unwrap().is_empty());
}

#[tokio::test]
async fn users_that_nobody_strikes_out_do_not_keep_an_idle_volume_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let mounter = Arc::new(Fake::default());
    let now = driver(dir.path(), &mounter, "0");
    now.create("v", &BTreeMap::new()).await.unwrap();
    mount(&now, "v", "a", true).await.unwrap();
    mount(&now, "v", "b", true).await.unwrap();
    // The engine is killed; its containers stay for a while.
    mounter.busy.store(true, Ordering::Relaxed);
    let said = now.remove("v").await.unwrap_err().to_string();
    assert!(said.contains("in use by 2 containers") && said.contains("process 7"), "{said}");
    unmount(&now, "v", "b", true).await.unwrap();
    assert_eq!(now.get("v").unwrap().status["users"], 1, "an Unmount is of one user");
    mounter.busy.store(false, Ordering::Relaxed);
    now.remove("v").await.unwrap();
    assert!(mounter.mounted.lock().unwrap().is_empty() && now.list().is_empty());
    drop(now);
    assert!(driver(dir.path(), &mounter, "0").list().is_empty(), "written down");
}

#[tokio::test]
async fn one_volume_does_not_wait_for_another_and_lists_wait_for_none() {
    let dir = tempfile::tempdir().unwrap();
    let mounter = Arc::new(Fake::default());
    let now = Arc::new(driver(dir.path(), &mounter, "0"));
    now.create("slow", &BTreeMap::new()).await.unwrap();
    now.create("v", &BTreeMap::new()).await.unwrap();
    mounter.busy.store(true, Ordering::Relaxed);
    let (driver, order) = (now.clone(), Arc::new(Mutex::new(Vec::new())));
    let mounting = tokio::spawn({
        let order = order.clone();
        async move {
            mount(&driver, "slow", "a", true).await.unwrap();
            order.lock().unwrap().push("mounted");
        }
    });
    tokio::task::yield_now().await;
    let (driver, ordered) = (now.clone(), order.clone());
    let removing = tokio::spawn(async move {
        let refused = driver.remove("slow").await;
        ordered.lock().unwrap().push("remove");
        refused
    });
    tokio::task::yield_now().await;
    mount(&now, "v", "a", true).await.unwrap();
    assert_eq!((now.list().len(), now.path("slow").unwrap()), (2, PathBuf::new()));
    mounter.slow.notify_one();
    mounting.await.unwrap();
    let refused = removing.await.unwrap().unwrap_err().to_string();
    assert!(refused.contains("in use by a container"), "it waited for the mount: {refused}");
    assert_eq!(*order.lock().unwrap(), ["mounted", "remove"]);
}

/// A volume that was unmounted for the engine, while the mount still waits for the vault.
async fn unmounting(driver: &Arc<Driver>, mounter: &Fake, id: &'static str) -> tokio::task::JoinHandle<()> {
    mount(driver, "v", id, true).await.unwrap();
    mounter.drains.store(true, Ordering::Relaxed);
    let (told, hear) = tokio::sync::oneshot::channel();
    let now = driver.clone();
    let ended = tokio::spawn(async move { now.unmount("v", id, |answer| told.send(answer).is_ok()).await });
    hear.await.unwrap().unwrap();
    assert_eq!(driver.get("v").unwrap().status["users"], 0, "struck out, and told so");
    ended
}

#[tokio::test]
async fn an_unmounting_that_waits_for_the_vault_gives_way() {
    let dir = tempfile::tempdir().unwrap();
    let mounter = Arc::new(Fake::default());
    let now = Arc::new(driver(dir.path(), &mounter, "0"));
    now.create("v", &BTreeMap::new()).await.unwrap();
    let ended = unmounting(&now, &mounter, "a").await;
    mount(&now, "v", "b", true).await.unwrap();
    ended.await.unwrap();
    assert!(mounter.mounted.lock().unwrap().len() == 1 && now.get("v").unwrap().status["users"] == 1);
    unmount(&now, "v", "b", true).await.unwrap();
    assert!(mounter.mounted.lock().unwrap().is_empty(), "nobody waits any more, nothing is interrupted");

    let ended = unmounting(&now, &mounter, "c").await;
    let remover = now.clone();
    let removing = tokio::spawn(async move { remover.remove("v").await });
    ended.await.unwrap();
    removing.await.unwrap().unwrap();
    assert!(mounter.mounted.lock().unwrap().is_empty() && now.list().is_empty());
}
