//! A vault, the ways to it, and a clock that tests can move on.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use vaultfs::clock::{Clock, SystemClock};
use vaultfs::secret::SecretString;
use vaultfs::server::instance::serve::ServeOptions;
use vaultfs::vault::client;
use vaultfs::vault::client::api_key::ApiKey;
use vaultfs::vault::client::retry::Policy;
use vaultfs::vault::client::{HttpConfig, Target};
use vaultfs::vault::{Call, Content, Dialect, DynVault, ErrorKind, ObjectName};

use crate::support::vault_server::Server;

/// The time, and as much more as a test says.
#[derive(Debug, Default)]
pub struct MovedClock(Mutex<Duration>);

impl MovedClock {
    /// So much time goes by at once.
    pub fn advance(&self, time: Duration) {
        *self.0.lock().unwrap() += time;
    }

    fn moved(&self) -> Duration {
        *self.0.lock().unwrap()
    }
}

impl Clock for MovedClock {
    fn now(&self) -> Instant {
        Instant::now() + self.moved()
    }
    fn wall(&self) -> SystemTime {
        SystemTime::now() + self.moved()
    }
    fn since_boot(&self) -> Duration {
        SystemClock.since_boot() + self.moved()
    }
}

/// A vault that is served, spoken to in one dialect.
pub struct World {
    pub server: Server,
    /// The vault as it is: no proxy between.
    truth: DynVault,
}

impl World {
    pub async fn start(dialect: Dialect) -> Arc<Self> {
        let server = Server::start_with(tempfile::tempdir().unwrap(), ServeOptions::default()).await;
        Self::again(server, dialect).await
    }

    /// A vault that was there before.
    pub async fn again(server: Server, dialect: Dialect) -> Arc<Self> {
        let truth = open(&server.url, &server.key, dialect, Arc::new(MovedClock::default())).await;
        Arc::new(Self { server, truth })
    }

    /// Ends it in good order and gives its directory back.
    pub async fn stop(self: Arc<Self>) -> tempfile::TempDir {
        Arc::into_inner(self).expect("nobody else uses it").server.stop().await
    }

    pub fn dialect(&self) -> Dialect {
        self.truth.capabilities().dialect
    }

    /// The vault behind `url`, as a mount sees it.
    pub async fn through(&self, url: &str, clock: Arc<dyn Clock>) -> DynVault {
        open(url, &self.server.key, self.dialect(), clock).await
    }

    pub async fn put(&self, name: &str, text: &str) {
        let name = ObjectName::new(name).unwrap();
        let content = Content::plain(text);
        match self.truth.get_by_name(&soon(), &name).await {
            Ok(object) => self.truth.update(&soon(), &object.meta.id, &content, None).await.unwrap(),
            Err(_) => self.truth.create(&soon(), &name, &content).await.unwrap(),
        };
    }

    pub async fn delete(&self, name: &str) {
        let object = self.truth.get_by_name(&soon(), &ObjectName::new(name).unwrap()).await.unwrap();
        self.truth.delete(&soon(), &object.meta.id, None).await.unwrap();
    }

    /// The number of versions and the current bytes; none if there is no such object.
    pub async fn history(&self, name: &str) -> Option<(usize, String)> {
        let name = ObjectName::new(name).unwrap();
        let object = match self.truth.get_by_name(&soon(), &name).await {
            Ok(object) => object,
            Err(e) if e.kind == ErrorKind::NotFound => return None,
            Err(e) => panic!("{e}"),
        };
        let versions = self.truth.versions(&soon(), &object.meta.id, None).await.unwrap();
        let text = String::from_utf8(object.content.bytes.expose().to_vec()).unwrap();
        Some((versions.len(), text))
    }
}

fn soon() -> Call {
    Call::foreground(Instant::now() + Duration::from_secs(60))
}

async fn open(url: &str, key: &str, dialect: Dialect, clock: Arc<dyn Clock>) -> DynVault {
    let call = Call::foreground(clock.now() + Duration::from_secs(60));
    let config = HttpConfig {
        target: Target::Url(url.to_owned()),
        tls: Arc::default(),
        key: Arc::new(ApiKey::new(SecretString::new(key.to_owned()), None, None)),
        clock,
        max_size: 1 << 14,
        policy: Policy { base: Duration::from_millis(5), ..Policy::default() },
        listeners: None,
        key_context: Default::default(),
    };
    client::open(config, &call, Some(dialect)).await.unwrap().vault
}
