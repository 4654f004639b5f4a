//! Whether any name starts with a prefix, asked of a vault that can search: a directory that names
//! imply is found without listing them all.
//!
//! The vault searches for the text anywhere in a name, so what it finds is checked here. One hit is
//! enough; a search that ends without one is remembered as an absence, as fresh as any other
//! answer.

use std::sync::Arc;

use super::{Cache, is_outage};
use crate::vault::cache::single_flight::{Flight, spawn_shared_with_payer};
use crate::vault::model::object::Cursors;
use crate::vault::{Call, Error, ErrorKind, ListQuery, Result};

impl Cache {
    /// Makes sure that [`Cache::implied`] freshly knows about `prefix`. While the vault is down,
    /// what was known before may be used, as in [`Cache::list_all`].
    pub async fn search_prefix(self: &Arc<Self>, call: &Call, prefix: &str) -> Result<()> {
        let patience = call.deadline.saturating_duration_since(self.clock.now());
        let flight = self.search_flight(prefix);
        let answer = match tokio::time::timeout(patience, flight).await {
            Ok(answer) => answer,
            Err(_) => {
                let sentence = format!("the vault did not find names under {prefix:?} in time");
                Err(Error::new(ErrorKind::Deadline, sentence))
            }
        };
        match answer {
            Err(e) if is_outage(e.kind) && self.stale_absence_suffices(prefix) => Ok(()),
            other => other,
        }
    }

    /// Joins the search for `prefix` that is out, or begins one.
    fn search_flight(self: &Arc<Self>, prefix: &str) -> Flight<()> {
        let mut state = self.state();
        if let Some((flight, payer)) = state.searches.get(prefix) {
            payer.join();
            return flight.clone();
        }
        let (cache, wanted) = (self.clone(), prefix.to_owned());
        let out = spawn_shared_with_payer(move |payer| async move {
            loop {
                let paid_by = payer.guest();
                let answer = cache.search_pages(&wanted).await;
                cache.note(&answer);
                let mut state = cache.state();
                if !payer.is_another(paid_by, &answer) {
                    state.searches.remove(&wanted);
                    return answer;
                }
            }
        });
        state.searches.insert(prefix.to_owned(), out.clone());
        out.0
    }

    async fn search_pages(&self, prefix: &str) -> Result<()> {
        let asked = self.clock.now();
        let mut query = ListQuery { search: Some(prefix.to_owned()), ..ListQuery::first() };
        let mut cursors = Cursors::default();
        loop {
            let call = Call::foreground(self.clock.now() + self.config.timeout);
            let page = self.vault.list(&call, &query).await?;
            let next = cursors.advance(page.next)?;
            let mut state = self.state();
            state.ingest(&page.items, asked, self.clock.now());
            if state.index.prefix_state(prefix) == super::PrefixState::Yes {
                return Ok(());
            }
            match next {
                Some(cursor) => query = query.next(cursor),
                None => {
                    state.index.searched(prefix, asked);
                    return Ok(());
                }
            }
        }
    }

    fn stale_absence_suffices(&self, prefix: &str) -> bool {
        let now = self.clock.now();
        match self.state().index.prefix_state(prefix) {
            super::PrefixState::No(at) => now.saturating_duration_since(at) <= self.config.max_stale,
            super::PrefixState::Yes | super::PrefixState::Unknown => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::{Clock, ManualClock};
    use crate::vault::cache::{CacheConfig, PrefixState};
    use crate::vault::model::op::Op;
    use crate::vault::testing::memory::{KV_CAPABILITIES, MemoryVault};
    use crate::vault::{Content, ObjectName, Vault};

    struct Setup {
        clock: ManualClock,
        memory: Arc<MemoryVault>,
        cache: Arc<Cache>,
    }

    impl Setup {
        async fn with(names: &[&str]) -> Self {
            let clock = ManualClock::new();
            let memory = Arc::new(MemoryVault::new(KV_CAPABILITIES, Arc::new(clock.clone())));
            let config = CacheConfig {
                refresh: Duration::from_secs(5),
                max_stale: Duration::from_secs(3600),
                timeout: Duration::from_secs(10),
                capacity: 1 << 20,
            };
            let cache = Cache::new(memory.clone(), Arc::new(clock.clone()), config);
            let setup = Self { clock, memory, cache };
            for name in names {
                setup.make(name).await;
            }
            setup
        }

        async fn make(&self, name: &str) {
            let name = ObjectName::new(name).unwrap();
            self.memory.create(&self.call(), &name, &Content::plain("x")).await.unwrap();
        }

        fn call(&self) -> Call {
            Call::foreground(self.clock.now() + Duration::from_secs(10))
        }

        async fn prefix_state(&self, prefix: &str) -> PrefixState {
            self.cache.search_prefix(&self.call(), prefix).await.unwrap();
            self.cache.prefix_state(prefix)
        }
    }

    #[tokio::test]
    async fn one_request_tells_whether_a_directory_is_implied() {
        let setup = Setup::with(&["x/a/b", "a/b", "a", "ab"]).await;
        assert_eq!(setup.cache.prefix_state("a/"), PrefixState::Unknown);
        assert_eq!(setup.prefix_state("a/").await, PrefixState::Yes);
        assert!(matches!(setup.prefix_state("b/").await, PrefixState::No(_)));
        assert!(
            matches!(setup.prefix_state("/b").await, PrefixState::No(_)),
            "only names that begin so count"
        );
        assert_eq!(setup.memory.count(Op::List), 3);
        assert!(!setup.cache.is_complete());
    }

    #[tokio::test]
    async fn an_absence_is_fresh_for_the_refresh_time() {
        let setup = Setup::with(&[]).await;
        assert!(matches!(setup.prefix_state("a/").await, PrefixState::No(_)));
        setup.clock.advance(Duration::from_secs(6));
        assert_eq!(setup.cache.prefix_state("a/"), PrefixState::Unknown);
        setup.make("a/b").await;
        assert_eq!(setup.prefix_state("a/").await, PrefixState::Yes);
    }

    #[tokio::test]
    async fn hits_that_do_not_count_are_paged_over() {
        let setup = Setup::with(&[]).await;
        for n in 0..250 {
            setup.make(&format!("{n}/deep/x")).await;
        }
        setup.make("deep/x").await;
        assert_eq!(setup.prefix_state("deep/").await, PrefixState::Yes);
        assert_eq!(setup.memory.count(Op::List), 3);
    }

    #[tokio::test]
    async fn all_who_wait_share_one_request() {
        let setup = Setup::with(&["a/b"]).await;
        let waiting = (0..100).map(|_| setup.prefix_state("a/"));
        let answers = futures_util::future::join_all(waiting).await;
        assert!(answers.iter().all(|a| *a == PrefixState::Yes));
        assert_eq!(setup.memory.count(Op::List), 1);
    }
}
