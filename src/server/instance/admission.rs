//! Which connections may stay.
//!
//! 1. A connection is **unproven** until a request on it brings an API key that is known. There are
//!    at most [`UNPROVEN`] of these: one more evicts the oldest of the [`Group`] that has the most.
//!    So a far client is not evicted by a crowd from elsewhere, nor one in the middle of a
//!    handshake by a crowd that says nothing.
//! 2. An evicted connection ends in its own task, after a look at what has arrived: a request that
//!    is there is read, and its key decides. Until then the connection counts as **leaving**, and
//!    while there are [`LEAVING`] none is accepted. They wait for this process only, so a crowd
//!    cannot prolong that.
//! 3. A connection on which no request begins within [`FIRST_HEAD`] ends.
//! 4. Proven connections count for their key, at most [`PER_KEY`].
//! 5. Neither TCP nor a shared socket takes the last descriptors: [`RESERVED`] are left to the
//!    vault's own socket and the store.
//!
//! The lock is held for a few instructions; nothing else is locked meanwhile.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};

/// Most connections without an authenticated request.
pub const UNPROVEN: usize = 256;
/// Most connections that are evicted and not closed yet.
const LEAVING: usize = 64;
/// Most connections of one API key.
pub const PER_KEY: usize = 1024;
/// How long a connection may take to begin its first request.
pub const FIRST_HEAD: Duration = Duration::from_secs(10);
/// Descriptors that are not for TCP connections.
const RESERVED: usize = 128;
/// Equal events are logged once in this time.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// The origin of a connection, as far as it is known before the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A machine.
    Address(IpAddr),
    /// A user of this machine.
    User(u32),
}

impl Origin {
    /// What counts as one origin: for an IPv6 address its network of 64 bits.
    fn network(self) -> Self {
        match self {
            Self::Address(IpAddr::V6(ip)) => {
                Self::Address(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into())
            }
            other => other,
        }
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(ip) => ip.fmt(f),
            Self::User(uid) => write!(f, "user {uid} of this machine"),
        }
    }
}

/// Counts the connections of one listener.
#[derive(Debug)]
pub struct Admission {
    most: usize,
    proxies: Vec<IpNet>,
    left: Notify,
    state: Mutex<State>,
}

/// Of which the oldest is evicted if it has the most: a network, and whether a byte has come.
type Group = (Origin, bool);

#[derive(Debug, Default)]
struct State {
    next: u64,
    open: usize,
    /// With a sender that is dropped when the connection is no longer one of these.
    unproven: BTreeMap<u64, (Group, watch::Sender<()>)>,
    leaving: usize,
    by_key: HashMap<String, usize>,
    evictions: Evictions,
}

/// Connections that were ended and not logged yet.
#[derive(Debug, Default)]
struct Evictions {
    number: u64,
    logged: Option<Instant>,
}

impl Admission {
    /// For one of so many `listeners` that share the descriptors; `X-Forwarded-For` is believed
    /// from `proxies`.
    pub fn new(proxies: Vec<IpNet>, listeners: usize) -> Arc<Self> {
        use nix::sys::resource::{Resource, getrlimit};
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        let most = usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(RESERVED) / listeners.max(1);
        Arc::new(Self::with_most(most.max(1), proxies))
    }

    fn with_most(most: usize, proxies: Vec<IpNet>) -> Self {
        Self { most, proxies, left: Notify::new(), state: Mutex::default() }
    }

    /// Returns when a connection may be accepted. One task at a time may wait.
    pub async fn room(&self) {
        while self.state().leaving >= LEAVING {
            self.left.notified().await;
        }
    }

    /// Takes a connection in; `None` if there is no descriptor for it.
    pub fn admit(self: &Arc<Self>, origin: Origin) -> Option<Arc<ConnectionPermit>> {
        let mut state = self.state();
        if state.unproven.len() >= UNPROVEN || state.open >= self.most {
            state.evicted(origin);
            state.evict_oldest_of_the_most()?;
        }
        let id = state.next;
        state.next += 1;
        state.open += 1;
        let (unproven, end) = watch::channel(());
        state.unproven.insert(id, ((origin.network(), false), unproven));
        Some(Arc::new(ConnectionPermit {
            of: Arc::clone(self),
            id,
            origin,
            end,
            admitted: tokio::time::Instant::now(),
            begun: AtomicBool::new(false),
            looking: tokio::sync::Mutex::default(),
            key: Mutex::default(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    fn evict_oldest_of_the_most(&mut self) -> Option<()> {
        let mut groups: HashMap<Group, (usize, Reverse<u64>)> = HashMap::new();
        for (id, (group, _)) in &self.unproven {
            groups.entry(*group).or_insert((0, Reverse(*id))).0 += 1;
        }
        let (_, Reverse(oldest)) = groups.into_values().max()?;
        self.unproven.remove(&oldest)?;
        self.leaving += 1;
        Some(())
    }

    fn evicted(&mut self, newest: Origin) {
        self.evictions.number += 1;
        if self.evictions.logged.is_some_and(|at| at.elapsed() < LOG_EVERY) {
            return;
        }
        tracing::warn!(
            number = self.evictions.number,
            "too many connections without an API key: the oldest are closed, first those of the address with the most (the \
             newest comes from {newest})"
        );
        self.evictions = Evictions { number: 0, logged: Some(Instant::now()) };
    }
}

/// The place of one connection, until dropped.
#[derive(Debug)]
pub struct ConnectionPermit {
    of: Arc<Admission>,
    id: u64,
    origin: Origin,
    /// Closed when the connection is evicted or proven.
    end: watch::Receiver<()>,
    admitted: tokio::time::Instant,
    begun: AtomicBool,
    looking: tokio::sync::Mutex<()>,
    key: Mutex<Option<String>>,
}

impl ConnectionPermit {
    /// Something has come.
    pub fn speaks(&self) {
        if let Some(((_, speaks), _)) = self.of.state().unproven.get_mut(&self.id) {
            *speaks = true;
        }
    }

    /// A request began.
    pub fn begin(&self) {
        self.begun.store(true, Ordering::Relaxed);
    }

    /// Held while the key of a request is looked up: the connection does not end meanwhile.
    pub async fn look_up(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.looking.lock().await
    }

    /// A request came with this API key, which is known. False if the key has too many connections.
    pub fn prove(&self, key: &str) -> bool {
        let mut known = self.key.lock();
        if known.as_deref() == Some(key) {
            return true;
        }
        let mut state = self.of.state();
        let count = state.by_key.entry(key.to_owned()).or_default();
        if *count >= PER_KEY {
            return false;
        }
        *count += 1;
        match known.replace(key.to_owned()) {
            Some(other) => state.leave(&other),
            None => self.proven_or_gone(state),
        }
        true
    }

    fn proven_or_gone(&self, mut state: MutexGuard<'_, State>) {
        if state.unproven.remove(&self.id).is_none() {
            state.leaving -= 1;
            self.of.left.notify_one();
        }
    }

    fn is_proven(&self) -> bool {
        self.key.lock().is_some()
    }

    /// Returns when the connection has to end. What has arrived is to be read first.
    pub async fn ended(&self) {
        let mut end = self.end.clone();
        let silent = async {
            tokio::time::sleep_until(self.admitted + FIRST_HEAD).await;
            if self.begun.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            _ = end.changed() => {}
            () = silent => {}
        }
        drop(self.look_up().await);
        if self.is_proven() {
            std::future::pending::<()>().await;
        }
    }

    /// Where a request with this `X-Forwarded-For` came from: the last address that no trusted
    /// proxy has. `None` for what came over no network.
    pub fn peer(&self, forwarded: &str) -> Option<IpAddr> {
        let is_proxy = |ip: &IpAddr| self.of.proxies.iter().any(|net| net.contains(ip));
        let Origin::Address(direct) = self.origin else { return None };
        let mut hops = forwarded.rsplit(',').map(|hop| hop.trim().parse::<IpAddr>());
        let mut origin = direct;
        while is_proxy(&origin) {
            let Some(Ok(hop)) = hops.next() else { break };
            origin = hop;
        }
        Some(origin)
    }
}

impl State {
    fn leave(&mut self, key: &str) {
        if let Some(count) = self.by_key.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                self.by_key.remove(key);
            }
        }
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let key = self.key.lock().take();
        let mut state = self.of.state();
        state.open -= 1;
        match key {
            Some(key) => state.leave(&key),
            None => self.proven_or_gone(state),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Origin = Origin::User(0);

    fn admission(proxies: &[&str]) -> Arc<Admission> {
        let proxies = proxies.iter().map(|net| net.parse().unwrap()).collect();
        Arc::new(Admission::with_most(1_000, proxies))
    }

    fn is_evicted(permit: &ConnectionPermit) -> bool {
        permit.end.has_changed().is_err() && !permit.is_proven()
    }

    async fn ends_within_an_hour(permit: &ConnectionPermit) -> bool {
        tokio::time::timeout(Duration::from_secs(3600), permit.ended()).await.is_ok()
    }

    #[test]
    fn the_oldest_unproven_connection_makes_room() {
        let admission = admission(&[]);
        let seats: Vec<_> = (0..UNPROVEN).map(|_| admission.admit(HERE).unwrap()).collect();
        assert!(seats[0].prove("a") && seats[0].prove("a"));
        let more = [admission.admit(HERE).unwrap(), admission.admit(HERE).unwrap()];
        assert!(!is_evicted(&seats[0]), "it is proven");
        assert!(is_evicted(&seats[1]) && !is_evicted(&seats[2]));
        drop((seats, more));
        let state = admission.state();
        assert_eq!((state.open, state.unproven.len(), state.leaving, state.by_key.len()), (0, 0, 0, 0));
    }

    #[test]
    fn a_crowd_ends_its_own_connections() {
        let admission = admission(&[]);
        let from = |ip: String| admission.admit(Origin::Address(ip.parse().unwrap())).unwrap();
        let far = [from("192.0.2.7".into()), admission.admit(Origin::User(7)).unwrap()];
        // One machine with as many addresses as it likes.
        let crowd: Vec<_> = (0..10 * UNPROVEN).map(|n| from(format!("2001:db8::{n:x}"))).collect();
        assert!(!far.iter().any(|permit| is_evicted(permit)));
        assert_eq!(crowd.iter().filter(|permit| !is_evicted(permit)).count(), UNPROVEN - far.len());
        assert!(!is_evicted(crowd.last().unwrap()), "the oldest go");
    }

    #[test]
    fn a_key_has_so_many_connections() {
        let admission = Arc::new(Admission::with_most(10_000, Vec::new()));
        let mut seats: Vec<_> = (0..PER_KEY)
            .map(|_| {
                let permit = admission.admit(HERE).unwrap();
                assert!(permit.prove("a"));
                permit
            })
            .collect();
        let one_more = admission.admit(HERE).unwrap();
        assert!(!one_more.prove("a") && one_more.prove("b"));
        seats.pop();
        assert!(one_more.prove("a"), "a connection may change its key");
        assert_eq!(admission.state().by_key.get("b"), None);
    }

    #[test]
    fn descriptors_are_kept() {
        let admission = Arc::new(Admission::with_most(3, Vec::new()));
        let seats: Vec<_> = (0..3).map(|_| admission.admit(HERE).unwrap()).collect();
        seats.iter().for_each(|permit| assert!(permit.prove("a")));
        assert!(admission.admit(HERE).is_none());
        let (one, two) = (Admission::new(Vec::new(), 1), Admission::new(Vec::new(), 2));
        assert!(one.most > two.most && two.most * 2 <= one.most);
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        let peer = |proxies: &[&str], direct: &str, forwarded| {
            let permit = admission(proxies).admit(Origin::Address(direct.parse().unwrap())).unwrap();
            permit.peer(forwarded).unwrap().to_string()
        };
        let chain = "6.6.6.6, 203.0.113.9, 10.0.0.2";
        assert_eq!(peer(&[], "10.0.0.1", chain), "10.0.0.1");
        assert_eq!(peer(&["10.0.0.0/8"], "10.0.0.1", chain), "203.0.113.9");
        assert_eq!(peer(&["10.0.0.1/32"], "10.0.0.1", chain), "10.0.0.2");
        assert_eq!(peer(&["10.0.0.0/8"], "10.0.0.1", ""), "10.0.0.1");
        assert_eq!(peer(&["10.0.0.0/8"], "10.0.0.1", "nonsense"), "10.0.0.1");
        assert_eq!(peer(&["10.0.0.0/8"], "192.0.2.7", chain), "192.0.2.7");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_ends_and_one_that_began_stays() {
        let admission = admission(&[]);
        let (silent, begun) = (admission.admit(HERE).unwrap(), admission.admit(HERE).unwrap());
        begun.begin();
        assert!(ends_within_an_hour(&silent).await);
        assert!(!ends_within_an_hour(&begun).await);
    }

    #[tokio::test(start_paused = true)]
    async fn an_evicted_connection_ends_when_its_key_was_looked_up_and_is_not_known() {
        let admission = admission(&[]);
        let seats: Vec<_> = (0..2 * UNPROVEN).map(|_| admission.admit(HERE).unwrap()).collect();
        let (known, unknown) = (&seats[0], &seats[1]);
        assert!(is_evicted(known) && is_evicted(unknown));
        let looking = (known.look_up().await, unknown.look_up().await);
        assert!(!ends_within_an_hour(known).await && !ends_within_an_hour(unknown).await);
        assert!(known.prove("a"));
        drop(looking);
        assert!(!ends_within_an_hour(known).await);
        assert!(ends_within_an_hour(unknown).await);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_accepted_while_many_evicted_connections_are_not_closed() {
        let admission = admission(&[]);
        let mut seats: Vec<_> = (0..UNPROVEN + LEAVING).map(|_| admission.admit(HERE).unwrap()).collect();
        let waits = async || tokio::time::timeout(Duration::from_secs(3600), admission.room()).await.is_err();
        assert!(waits().await);
        assert!(seats[1].prove("a"), "its request came");
        assert!(!waits().await);
        seats.push(admission.admit(HERE).unwrap());
        assert!(waits().await);
        seats.remove(0);
        assert!(!waits().await);
    }

    #[test]
    fn a_crowd_that_says_nothing_ends_no_connection_that_does() {
        let admission = admission(&[]);
        let speaks = || {
            let permit = admission.admit(HERE).unwrap();
            permit.speaks();
            permit
        };
        let first = speaks();
        let silent: Vec<_> = (0..10 * UNPROVEN).map(|_| admission.admit(HERE).unwrap()).collect();
        assert!(!is_evicted(&first));
        drop(silent);
        let one = admission.admit(HERE).unwrap();
        let crowd: Vec<_> = (0..UNPROVEN).map(|_| speaks()).collect();
        assert!(!is_evicted(&one) && is_evicted(&first) && is_evicted(&crowd[0]));
    }
}
