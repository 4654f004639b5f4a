//! The receiver of the key: the user behind a port or a socket of this machine.
//!
//! TLS verifies that the other side is the vault; plain http to this machine and Unix sockets do
//! not, and any user may take a port while the vault is down. So a new connection is looked up
//! before anything is sent on it: the listener, and each socket that has accepted a connection
//! there, has to belong to a trusted user. (A connection that is not accepted yet is the
//! listener's.) Where the kernel shows neither, a rule of root's leads it elsewhere.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::sync::Mutex;
use tower_layer::Layer;
use tower_service::Service;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Where the connection goes.
#[derive(Debug, Clone)]
enum Place {
    /// A port, at these addresses.
    Port(Vec<IpAddr>, u16),
    /// A Unix socket.
    Socket(PathBuf),
}

/// A listener of this machine, and the users it may belong to.
#[derive(Debug)]
pub struct Listener {
    place: Place,
    trusted: Vec<u32>,
    /// How often the kernel's tables were read.
    looks: AtomicU64,
    /// The last look, by its number, and the users that it showed. Held while the tables are read.
    seen: Mutex<(u64, Vec<u32>)>,
}

/// The key would go to another user.
#[derive(Debug, thiserror::Error)]
#[error(
    "{place} belongs to user {uid}, so the API key is not sent: trust that user with --api-uid {uid}, or use https"
)]
pub struct NotTrusted {
    place: String,
    uid: u32,
}

impl Listener {
    /// Of a plain http address; `None` for https, and for what is not this machine.
    pub fn of_url(url: &str, trusted: Vec<u32>) -> Option<Self> {
        let url = reqwest::Url::parse(url).ok().filter(|url| url.scheme() == "http")?;
        let host = url.host_str()?.trim_start_matches('[').trim_end_matches(']').to_owned();
        let addresses = match host.parse::<IpAddr>() {
            Ok(ip) => vec![ip.to_canonical()],
            // The name of loopback stands for both.
            Err(_) => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        };
        Some(Self::at(Place::Port(addresses, url.port_or_known_default()?), trusted))
    }

    /// Of a Unix socket.
    pub fn of_socket(path: PathBuf, trusted: Vec<u32>) -> Self {
        Self::at(Place::Socket(path), trusted)
    }

    fn at(place: Place, trusted: Vec<u32>) -> Self {
        Self { place, trusted, looks: AtomicU64::new(0), seen: Mutex::default() }
    }

    /// [`holders`], by a look that began after the connection was made. The tables have every
    /// connection of the machine that ended in the last minute: of many that are made at once, as
    /// after a takeover, those that wait share a look.
    async fn holders(&self, addresses: &[IpAddr], port: u16) -> Vec<u32> {
        let before = self.looks.load(Ordering::Acquire);
        let mut seen = self.seen.lock().await;
        if seen.0 <= before {
            *seen = (self.looks.fetch_add(1, Ordering::AcqRel) + 1, holders(addresses, port));
        }
        seen.1.clone()
    }

    /// Refuses a listener of another user's.
    async fn check(&self) -> Result<(), BoxError> {
        let (place, uids) = match &self.place {
            Place::Port(addresses, port) => {
                (format!("port {port} of this machine"), self.holders(addresses, *port).await)
            }
            Place::Socket(path) => {
                let peer = tokio::net::UnixStream::connect(path).await?.peer_cred()?;
                (crate::display::Shown::shown(path.as_path()).to_string(), vec![peer.uid()])
            }
        };
        match uids.into_iter().find(|uid| !self.trusted.contains(uid)) {
            Some(uid) => Err(NotTrusted { place, uid }.into()),
            None => Ok(()),
        }
    }
}

/// The users of the sockets that listen at the port, or have accepted connections there.
fn holders(addresses: &[IpAddr], port: u16) -> Vec<u32> {
    let read = |name: &str| std::fs::read_to_string(name).unwrap_or_default();
    let local = format!(":{port:04X} ");
    // Not those that have ended (TIME_WAIT), which may be many thousands.
    let may_count = |line: &&str| line.contains(&local) && !line.contains(" 06 ");
    let of_port = |table: String| parse(table.lines().filter(may_count));
    let rows = [read("/proc/self/net/tcp"), read("/proc/self/net/tcp6")].map(of_port);
    addresses.iter().flat_map(|address| holders_in(&rows, *address, port)).collect()
}

/// One socket of the kernel's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SocketRow {
    local: IpAddr,
    port: u16,
    listens: bool,
    uid: u32,
    /// 0 while no process has it.
    inode: u64,
}

/// The sockets at one address. A dual-stack listener shows in the second table only.
fn holders_in(tables: &[Vec<SocketRow>; 2], address: IpAddr, port: u16) -> Vec<u32> {
    let rows = || tables.iter().flatten().filter(move |row| row.port == port);
    let listens = |row: &&SocketRow| row.listens && (row.local == address || row.local.is_unspecified());
    let same_family = |row: &&SocketRow| row.local.is_ipv4() == address.is_ipv4();
    let mut listeners: Vec<&SocketRow> = rows().filter(listens).filter(same_family).collect();
    if listeners.is_empty() && address.is_ipv4() {
        listeners = rows().filter(listens).collect();
    }
    let accepted = rows().filter(|row| !row.listens && row.local == address && row.inode != 0);
    listeners.into_iter().chain(accepted).map(|row| row.uid).collect()
}

/// Reads the kernel's table; what is not understood is left out.
fn parse<'t>(lines: impl Iterator<Item = &'t str>) -> Vec<SocketRow> {
    let row = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (local, port) = fields.get(1)?.split_once(':')?;
        Some(SocketRow {
            local: address(local)?,
            port: u16::from_str_radix(port, 16).ok()?,
            listens: *fields.get(3)? == "0A",
            uid: fields.get(7)?.parse().ok()?,
            inode: fields.get(9)?.parse().ok()?,
        })
    };
    lines.filter_map(row).collect()
}

/// Words of 32 bits in the machine's order.
fn address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(hex.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    if hex.len() == 8 {
        return Some(IpAddr::from(word(0)?));
    }
    let bytes: Vec<u8> = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
    Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical())
}

/// Has each new connection of a client looked up.
#[derive(Debug, Clone)]
pub struct Checked<S> {
    inner: S,
    listener: Arc<Listener>,
}

/// Makes them.
#[derive(Debug, Clone)]
pub struct CheckLayer(pub Arc<Listener>);

impl<S> Layer<S> for CheckLayer {
    type Service = Checked<S>;
    fn layer(&self, inner: S) -> Checked<S> {
        Checked { inner, listener: Arc::clone(&self.0) }
    }
}

impl<S, R> Service<R> for Checked<S>
where
    S: Service<R, Error = BoxError>,
    S::Future: Send + 'static,
    S::Response: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let connecting = self.inner.call(request);
        let listener = Arc::clone(&self.listener);
        Box::pin(async move {
            let connection = connecting.await?;
            listener.check().await?;
            Ok(connection)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    fn table(rows: &[(&str, &str, u32, u64)]) -> Vec<SocketRow> {
        let line = |(local, state, uid, inode): &(&str, &str, u32, u64)| {
            format!(
                "   0: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 {uid} 0 {inode} 1 0\n"
            )
        };
        parse((HEAD.to_owned() + &rows.iter().map(line).collect::<String>()).lines())
    }

    #[tokio::test]
    async fn connections_that_wait_share_a_look_that_begins_after_them() {
        let listener = Listener::of_url("http://127.0.0.1:9", Vec::new()).unwrap();
        let looks = || listener.looks.load(Ordering::Relaxed);
        let held = listener.seen.lock().await;
        let waiting = futures_util::future::join_all((0..10).map(|_| listener.holders(&[], 9)));
        tokio::join!(waiting, async { drop(held) });
        assert_eq!(looks(), 1);
        // A later caller needs another one.
        listener.holders(&[], 9).await;
        assert_eq!(looks(), 2);
    }

    fn seen(v4: &[(&str, &str, u32, u64)], v6: &[(&str, &str, u32, u64)], address: &str) -> Vec<u32> {
        holders_in(&[table(v4), table(v6)], address.parse().unwrap(), 8200)
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn the_holders_of_a_port_are_found() {
        let (one, any) = ("0100007F:2008", "00000000:2008");
        let any6 = "00000000000000000000000000000000:2008";
        assert_eq!(seen(&[(one, "0A", 7, 1), ("0200007F:2008", "0A", 9, 2)], &[], "127.0.0.1"), [7]);
        assert_eq!(seen(&[(any, "0A", 7, 1), ("0100007F:2009", "0A", 9, 2)], &[], "127.0.0.1"), [7]);
        assert_eq!(seen(&[], &[(any6, "0A", 7, 1)], "127.0.0.1"), [7], "a dual-stack listener");
        assert_eq!(seen(&[(one, "0A", 7, 1)], &[(any6, "0A", 9, 1)], "127.0.0.1"), [7], "the nearer one");
        assert_eq!(
            seen(&[(one, "0A", 7, 1)], &[("00000000000000000000000001000000:2008", "0A", 9, 1)], "::1"),
            [9]
        );
        // Accepted by another user's process, which has closed its listener since; and not accepted
        // yet.
        assert_eq!(
            seen(&[(one, "0A", 7, 1), (one, "01", 9, 5), (one, "01", 0, 0)], &[], "127.0.0.1"),
            [7, 9]
        );
        assert_eq!(seen(&[], &[("0000000000000000FFFF00000100007F:2008", "01", 9, 5)], "127.0.0.1"), [9]);
        assert!(seen(&[("nonsense", "0A", 7, 1)], &[], "127.0.0.1").is_empty());
    }

    #[test]
    fn only_plain_http_is_looked_up() {
        assert!(Listener::of_url("https://127.0.0.1:8200", vec![0]).is_none());
        let port = |url| match Listener::of_url(url, vec![0]).unwrap().place {
            Place::Port(addresses, port) => (addresses.len(), port),
            Place::Socket(_) => unreachable!(),
        };
        assert_eq!(port("http://127.0.0.1:8200"), (1, 8200));
        assert_eq!(port("http://[::1]"), (1, 80));
        assert_eq!(port("http://localhost:81/x"), (2, 81));
    }

    #[test]
    fn a_real_listener_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(holders(&[Ipv4Addr::LOCALHOST.into()], port), [nix::unistd::geteuid().as_raw()]);
    }
}
