//! The volume driver without mounts: whatever the engine asks, in whatever order, with crashes
//! between, users are counted truly, and what is mounted is what is used.

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
use vaultfs::volume::profile::Profiles;
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
    /// Another mount namespace has what is mounted.
    bound: AtomicBool,
    /// The engine is in a mount namespace that does not see what is mounted.
    blind: AtomicBool,
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

    async fn holder(&self, at: &Path) -> Option<String> {
        (self.is_mounted(at) && self.bound.load(Ordering::Relaxed)).then(|| "namespace 8 has it".into())
    }

    fn is_seen_by(&self, _: &Path, _: Option<u32>) -> Result<(), String> {
        if self.blind.load(Ordering::Relaxed) { Err("the engine does not see it".into()) } else { Ok(()) }
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

    fn validate(&self, _: &[String]) -> Result<(), String> {
        Ok(())
    }
}

fn driver(dir: &Path, mounter: &Arc<Fake>, boot: &str) -> Driver {
    keeping(dir, mounter, boot, Duration::ZERO)
}

/// One that keeps volumes mounted for a time after their last users.
fn keeping(dir: &Path, mounter: &Arc<Fake>, boot: &str, keep: Duration) -> Driver {
    let (store, volumes) = Store::open(dir, boot).unwrap();
    Driver::new(Parts {
        store,
        volumes,
        mounter: mounter.clone(),
        grammar: Arc::new(AnyOption),
        defaults: BTreeMap::new(),
        profiles: Profiles::new(dir.join("profiles")),
        keep,
        clock: Arc::new(SystemClock),
    })
}

async fn mount(driver: &Driver, name: &str, id: &str, heard: bool) -> Result<PathBuf, Refusal> {
    let mut answer = None;
    driver
        .mount(name, id, Some(1), |told| {
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
    Blind(bool),
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
        1 => any::<bool>().prop_map(Step::Blind),
        1 => Just(Step::Restart),
        1 => Just(Step::Reboot),
    ]
}

/// What must be true: the users of each volume, and how many times each.
type Model = BTreeMap<String, BTreeMap<String, u32>>;

#[expect(clippy::too_many_lines, reason = "one story, or one table")]
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
                let blind = mounter.blind.load(Ordering::Relaxed);
                assert_eq!(done.is_ok(), known.is_some() && (there || !away) && !blind, "{done:?}");
                if let (Ok(_), Some(users)) = (done, known)
                    && *heard
                {
                    *users.entry(id(*i)).or_default() += 1;
                }
            }
            Step::Unmount(v, i, heard) => {
                let done = unmount(&now, &name(*v), &id(*i), *heard).await;
                assert_eq!(done.is_ok(), model.contains_key(&name(*v)), "{done:?}");
                if let Some(users) = model.get_mut(&name(*v))
                    && *heard
                {
                    users.entry(id(*i)).and_modify(|count| *count -= 1);
                    users.retain(|_, count| *count > 0);
                }
            }
            Step::Remove(v) => {
                let done = now.remove(&name(*v)).await;
                let busy = mounter.busy.load(Ordering::Relaxed);
                // Of what is gone it is done.
                let unused = model.get(&name(*v)).is_none_or(|users| users.is_empty() || !busy);
                assert!(if unused { done.is_ok() || unsaved } else { done.is_err() }, "{done:?}");
                if done.is_ok() {
                    model.remove(&name(*v));
                }
            }
            Step::Away(is) => mounter.away.store(*is, Ordering::Relaxed),
            Step::Unsaved(is) => mounter.unsaved.store(*is, Ordering::Relaxed),
            Step::Busy(is) => mounter.busy.store(*is, Ordering::Relaxed),
            Step::Blind(is) => mounter.blind.store(*is, Ordering::Relaxed),
            Step::Restart | Step::Reboot => {
                if matches!(step, Step::Reboot) {
                    boot += 1;
                    mounter.mounted.lock().unwrap().clear();
                    model.values_mut().for_each(BTreeMap::clear);
                }
                drop(now);
                now = driver(&root, &mounter, &boot.to_string());
                now.check_mounts().await;
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
async fn mounts_of_one_user_are_counted_over_restarts_and_removing_what_is_gone_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let mounter = Arc::new(Fake::default());
    let mounts = || mounter.mounted.lock().unwrap().len();
    let mut now = driver(dir.path(), &mounter, "0");
    now.create("v", &BTreeMap::new()).await.unwrap();
    // A container, and docker cp with its ID.
    mount(&now, "v", "a", true).await.unwrap();
    for _ in 0..2 {
        mount(&now, "v", "a", true).await.unwrap();
        drop(now);
        now = driver(dir.path(), &mounter, "0");
        now.check_mounts().await;
        unmount(&now, "v", "a", true).await.unwrap();
        assert_eq!((mounts(), now.get("v").unwrap().status["users"].clone()), (1, 1.into()));
    }
    mount(&now, "v", "a", false).await.unwrap();
    assert_eq!(mounts(), 1, "only that one is taken back");
    unmount(&now, "v", "a", true).await.unwrap();
    assert_eq!(mounts(), 0);
    unmount(&now, "v", "a", true).await.unwrap();
    now.remove("v").await.unwrap();
    now.remove("v").await.unwrap();
    now.remove("never").await.unwrap();
    assert!(now.get("v").is_err() && now.path("v").is_err());
}

#[tokio::test(start_paused = true)]
async fn what_another_namespace_has_is_not_unmounted() {
    let dir = tempfile::tempdir().unwrap();
    let mounter = Arc::new(Fake::default());
    let now = Arc::new(driver(dir.path(), &mounter, "0"));
    now.create("v", &BTreeMap::new()).await.unwrap();
    mount(&now, "v", "a", true).await.unwrap();
    mounter.bound.store(true, Ordering::Relaxed);
    let (driver, (told, hear)) = (now.clone(), tokio::sync::oneshot::channel());
    let unmounting = tokio::spawn(async move { driver.unmount("v", "a", |a| told.send(a).is_ok()).await });
    hear.await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(!unmounting.is_finished() && mounter.mounted.lock().unwrap().len() == 1);
    let said = now.remove("v").await.unwrap_err().to_string();
    assert!(said.contains("volume v is in use: namespace 8 has it"), "{said}");
    now.end().await;
    assert_eq!(mounter.mounted.lock().unwrap().len(), 1);
    mounter.bound.store(false, Ordering::Relaxed);
    unmounting.await.unwrap();
    assert!(mounter.mounted.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_volume_is_kept_for_the_next_container() {
    let dir = tempfile::tempdir().unwrap();
    let mounter = Arc::new(Fake::default());
    let mounts = || mounter.mounted.lock().unwrap().len();
    let now = Arc::new(keeping(dir.path(), &mounter, "0", Duration::from_secs(60)));
    now.create("v", &BTreeMap::new()).await.unwrap();
    let restart = async |first: bool| {
        if !first {
            mounter.away.store(true, Ordering::Relaxed);
        }
        mount(&now, "v", "a", true).await.unwrap();
        let driver = now.clone();
        let ended = tokio::spawn(async move { unmount(&driver, "v", "a", true).await.unwrap() });
        tokio::time::sleep(Duration::from_secs(50)).await;
        assert!(mounts() == 1 && now.path("v").unwrap() == Path::new(""), "kept, and nobody's");
        [ended]
    };
    let ends = [restart(true).await, restart(false).await];
    for [ended] in ends {
        ended.await.unwrap();
    }
    assert_eq!(mounts(), 0, "a minute after the last one");
    assert!(mount(&now, "v", "a", true).await.is_err(), "the vault is away");
    mounter.away.store(false, Ordering::Relaxed);

    // A removal and the plugin's end do not wait.
    restart(true).await;
    now.remove("v").await.unwrap();
    assert_eq!(mounts(), 0);
    now.create("v", &BTreeMap::new()).await.unwrap();
    restart(true).await;
    now.end().await;
    assert_eq!(mounts(), 0);
}

#[tokio::test]
async fn an_engine_that_does_not_see_the_mount_gets_none() {
    let dir = tempfile::tempdir().unwrap();
    let mounter = Arc::new(Fake::default());
    let now = driver(dir.path(), &mounter, "0");
    now.create("v", &BTreeMap::new()).await.unwrap();
    mounter.blind.store(true, Ordering::Relaxed);
    let said = mount(&now, "v", "a", true).await.unwrap_err().to_string();
    assert_eq!(said, "vaultfs volume v: the engine does not see it");
    assert!(mounter.mounted.lock().unwrap().is_empty() && now.get("v").unwrap().status["users"] == 0);
    mounter.blind.store(false, Ordering::Relaxed);
    mount(&now, "v", "a", true).await.unwrap();
    mounter.blind.store(true, Ordering::Relaxed);
    mount(&now, "v", "b", true).await.unwrap_err();
    assert_eq!(mounter.mounted.lock().unwrap().len(), 1, "it is another one's");
}

#[tokio::test]
async fn options_that_are_for_profiles_are_refused_and_old_volumes_keep_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let mounter = Arc::new(Fake::default());
    let options = BTreeMap::from([("on-change".to_owned(), "touch /x".to_owned())]);
    let (store, mut volumes) = Store::open(dir.path(), "0").unwrap();
    volumes.create("old", &options, 0).unwrap();
    store.save(&volumes).unwrap();
    drop(store);
    let now = driver(dir.path(), &mounter, "0");
    mount(&now, "old", "a", true).await.unwrap();
    unmount(&now, "old", "a", true).await.unwrap();
    now.create("old", &options).await.unwrap();
    let said = now.create("new", &options).await.unwrap_err().to_string();
    assert!(said.contains("profiles/new, with the line `on-change=touch /x`"), "{said}");
    now.remove("old").await.unwrap();
    assert!(now.create("old", &options).await.is_err() && now.list().is_empty(), "kept until removed");

    let named = BTreeMap::from([("profile".to_owned(), "p".to_owned())]);
    assert!(now.create("v", &named).await.unwrap_err().to_string().contains("-o profile=p: "));
    std::fs::create_dir(dir.path().join("profiles")).unwrap();
    std::fs::write(dir.path().join("profiles/p"), "on-change=touch /x").unwrap();
    now.create("v", &named).await.unwrap();
    mount(&now, "v", "a", true).await.unwrap();
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
