//! A vault that goes and comes back: an outage in compressed time, and one that comes back from a
//! backup.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use vaultfs::clock::Clock;
use vaultfs::fs::{Errno, Options};
use vaultfs::vault::Dialect;

use super::world::{MovedClock, World};
use crate::shell::{CREATE, READ, Shell};
use crate::support::proxy::{At, Fault, Proxy};
use crate::support::vault_server::Server;

struct Scene {
    proxy: Proxy,
    clock: Arc<MovedClock>,
    sh: Shell,
}

impl Scene {
    async fn over(world: &World, options: Options) -> Self {
        let proxy = Proxy::before(&world.server.url);
        let clock = Arc::new(MovedClock::default());
        let vault = world.through(&proxy.url, clock.clone()).await;
        let sh = Shell::over(vault, clock.clone() as Arc<dyn Clock>, options);
        Self { proxy, clock, sh }
    }

    async fn eventually(&self, path: &str, text: &str) {
        for _ in 0..2000 {
            if self.sh.read_file(path).await.is_ok_and(|bytes| bytes == text.as_bytes()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{path:?} does not become {text:?}");
    }
}

/// Long enough that nothing is past its time by itself.
const REFRESH: Duration = Duration::from_secs(600);

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_bridged_told_and_over() {
    for dialect in [Dialect::Object, Dialect::Kv] {
        let world = World::start(dialect).await;
        for n in 0..20 {
            world.put(&format!("f{n}"), &format!("value {n}")).await;
        }
        let options = Options {
            refresh: REFRESH,
            max_stale: Duration::from_secs(3600),
            timeout: Duration::from_secs(3),
            ..Options::default()
        };
        let scene = Scene::over(&world, options).await;
        let sh = &scene.sh;
        for n in 0..20 {
            sh.cat(&format!("f{n}")).await;
        }
        sh.ls("").await.unwrap();
        let held = sh.open("f0", READ).await.unwrap();
        scene.proxy.down();
        // Half an hour, ten minutes at a time.
        for _ in 0..3 {
            scene.clock.advance(REFRESH + Duration::from_secs(1));
            for n in 0..20 {
                assert_eq!(sh.cat(&format!("f{n}")).await, format!("value {n}"));
            }
        }
        let status = sh.fs.status();
        assert!(status.cache.serving_stale && status.vault.outage_s.is_some_and(|s| s >= 1200), "{status:?}");
        assert_eq!(sh.write_file("f1", "written meanwhile").await, Err(Errno::ETIMEDOUT));
        scene.clock.advance(Duration::from_secs(7200));
        assert_eq!(sh.read_file("f2").await, Err(Errno::ETIMEDOUT), "past --max-stale");
        assert_eq!(sh.read_all(&held).await.unwrap(), b"value 0", "an open handle keeps its version");
        assert_eq!(sh.cat("f1").await, "written meanwhile");

        scene.proxy.up();
        scene.eventually("f2", "value 2").await;
        let before = scene.proxy.requests();
        for n in 3..20 {
            // A question of the time before may still be on its way, and ends late by the clock
            // that was moved.
            scene.eventually(&format!("f{n}"), &format!("value {n}")).await;
        }
        let sent = scene.proxy.requests() - before;
        // One for each name in use; beside them the write that failed is tried again.
        assert!(sent <= 17 + 8, "{sent} requests");
        for _ in 0..2000 {
            if sh.fs.unsaved().is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(world.history("f1").await, Some((2, "written meanwhile".to_owned())));
        let status = sh.fs.status();
        assert!(!status.cache.serving_stale && status.vault.outage.is_none(), "{status:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_revoked_on_a_live_server_shows_nothing_any_more() {
    for dialect in [Dialect::Object, Dialect::Kv] {
        let world = World::start(dialect).await;
        world.put("f", "secret").await;
        let scene = Scene::over(&world, Options { refresh: REFRESH, ..Options::default() }).await;
        let sh = &scene.sh;
        let held = sh.open("f", READ).await.unwrap();
        let writer = sh.open("new", CREATE).await.unwrap();
        sh.pwrite(&writer, 0, "mine").unwrap();
        let keys = world.server.service.keys().await.unwrap();
        for key in keys {
            world.server.service.revoke_key(&key.id).await.unwrap();
        }
        assert_eq!(sh.close(writer).await, Err(Errno::EACCES), "heard at a write");
        assert_eq!(sh.read_all(&held).await, Err(Errno::EACCES));
        assert_eq!(sh.read_file("f").await, Err(Errno::EACCES));
        assert_eq!(sh.ls("").await, Err(Errno::EACCES));
        assert_eq!(sh.cat("new").await, "mine", "what is only here is nobody else's to take");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_in_doubt_whose_object_was_deleted_is_known_by_its_key() {
    for dialect in [Dialect::Object, Dialect::Kv] {
        let world = World::start(dialect).await;
        let options = Options { refresh: REFRESH, timeout: Duration::from_secs(2), ..Options::default() };
        let scene = Scene::over(&world, options).await;
        let sh = &scene.sh;
        let fd = sh.open("f", CREATE).await.unwrap();
        sh.pwrite(&fd, 0, "mine").unwrap();
        scene.proxy.always(Fault::Reset(At::Lost));
        assert!(sh.close(fd).await.is_err());
        assert_eq!(world.history("f").await, Some((1, "mine".to_owned())), "it was made");
        world.delete("f").await;
        scene.proxy.clear();
        for _ in 0..2000 {
            if sh.fs.unsaved().iter().all(|unsaved| unsaved.conflict) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let unsaved = sh.fs.unsaved();
        assert!(matches!(&unsaved[..], [one] if one.conflict), "{dialect:?}: {unsaved:?}");
        assert_eq!(world.history("f").await, None, "{dialect:?}");
        assert!(sh.fs.retry_unsaved(None, Duration::from_secs(10)).await.is_empty(), "a person wants it");
        assert_eq!(world.history("f").await, Some((1, "mine".to_owned())), "{dialect:?}");
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_restored_from_a_backup_is_the_truth() {
    for dialect in [Dialect::Object, Dialect::Kv] {
        let world = World::start(dialect).await;
        world.put("f", "one").await;
        world.put("f", "two").await;
        let dir = world.stop().await;
        let backup = tempfile::tempdir().unwrap();
        copy(dir.path(), backup.path());

        let world = World::again(Server::start_in(dir, 1 << 20).await, dialect).await;
        world.put("f", "lost with the disk").await;
        let scene = Scene::over(&world, Options { refresh: REFRESH, ..Options::default() }).await;
        let sh = &scene.sh;
        assert_eq!(sh.cat("f").await, "lost with the disk");
        sh.ls("").await.unwrap();
        let held = sh.open("f", READ).await.unwrap();
        if dialect == Dialect::Object {
            assert_eq!(sh.cat(".versions/f/3").await, "lost with the disk");
        }
        drop(world.stop().await);

        let world = World::again(Server::start_in(backup, 1 << 20).await, dialect).await;
        scene.proxy.lead_to(&world.server.url);
        scene.clock.advance(REFRESH + Duration::from_secs(1));
        scene.eventually("f", "two").await;
        assert_eq!(sh.ls(".versions/f").await.unwrap(), ["1", "2"]);
        assert_eq!(sh.read_all(&held).await.unwrap(), b"lost with the disk", "its own version, to the end");

        // The number that was lost is given again, to other bytes.
        world.put("f", "another third").await;
        scene.clock.advance(REFRESH + Duration::from_secs(1));
        scene.eventually("f", "another third").await;
        sh.ls("").await.unwrap();
        assert_eq!(sh.cat("f").await, "another third");
        assert_eq!(sh.read_all(&held).await.unwrap(), b"lost with the disk");
        sh.close(held).await.unwrap();
        if dialect == Dialect::Object {
            assert_eq!(sh.cat(".versions/f/3").await, "another third");
        }
        scene.proxy.always(Fault::Status(500, 0));
        scene.clock.advance(REFRESH + Duration::from_secs(1));
        assert_eq!(sh.cat("f").await, "another third", "and so does what stands in");
    }
}
