//! Connections: accepted from a Unix socket and from TCP, answered by one router, drained at the end.
//!
//! TCP is plain on loopback, or TLS. A handshake has its own time limit and holds up no other connection.
//! On the vault's Unix socket only processes of our own user (or root) are let in, whatever the file's mode says. On a
//! shared one the file's mode decides who connects, and the key who gets what.
//! Each listener has an [`Admission`] of its own, so that whoever fills the port leaves the socket alone. A client that takes
//! nothing of its answer loses its connection. Draining gets a limited time.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use ipnet::IpNet;
use nix::unistd::geteuid;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;

use crate::server::instance::admission::{Admission, Origin, Seat};
use crate::sys::files;

/// How long a connection may stay between two requests. Longer than clients keep idle connections
/// (reqwest: 90 s), so that it is they who close: a request never meets a connection that is just going.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);
/// What a connection may hold of what it received and nobody has read yet: a head fits.
const BUFFER: usize = 64 * 1024;
/// What the system may hold of an answer that the network does not take yet. The rest stays here, where it is counted.
const UNSENT: u32 = 64 * 1024;
/// How long a client may take nothing of what is sent to it.
const STALL: Duration = Duration::from_secs(30);
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long requests under way may take once the server is told to stop.
const DRAIN: Duration = Duration::from_secs(10);
/// Pause after a failed accept: out of file descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Where connections come from.
#[derive(Debug)]
pub struct Listeners {
    /// The vault's socket, for its own user.
    pub unix: UnixListener,
    /// A socket for any user who may open it.
    pub shared: Option<UnixListener>,
    /// TCP, if asked for.
    pub tcp: Option<Tcp>,
}

/// A TCP port, and how it is spoken on.
pub struct Tcp {
    /// The port.
    pub listener: TcpListener,
    /// The server's certificate and key; without, HTTP travels as it is.
    pub tls: Option<TlsAcceptor>,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
}

impl From<TcpListener> for Tcp {
    fn from(listener: TcpListener) -> Self {
        Self { listener, tls: None, trusted_proxies: Vec::new() }
    }
}

impl std::fmt::Debug for Tcp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tcp").field("listener", &self.listener).field("tls", &self.tls.is_some()).finish()
    }
}

/// Answers with `router` until `stop` is done; then takes no more connections and finishes those it has.
pub async fn serve(listeners: Listeners, router: Router, stop: impl Future<Output = ()>) {
    let Listeners { unix, shared, tcp } = listeners;
    let of_others = usize::from(shared.is_some()) + usize::from(tcp.is_some());
    let local = Admission::new(Vec::new(), 1);
    let others = Admission::new(Vec::new(), of_others);
    let proxies = tcp.as_ref().map_or_else(Vec::new, |tcp| tcp.trusted_proxies.clone());
    let remote = Admission::new(proxies, of_others);
    let connections = GracefulShutdown::new();
    // Dropped at the end of taking connections: a handshake that is not done by then has no request to lose.
    let (taking, stopped) = watch::channel(());
    tokio::pin!(stop);
    loop {
        let (stream, seat) = tokio::select! {
            () = &mut stop => break,
            accepted = unix.accept() => match accepted.and_then(|(stream, _)| own_user(stream)) {
                Ok(stream) => (Stream::Unix(stream), local.admit(Origin::User(geteuid().as_raw()))),
                Err(e) => {
                    refused(&e).await;
                    continue;
                }
            },
            accepted = accept_shared(shared.as_ref()) => match accepted {
                Ok((stream, uid)) => (Stream::Unix(stream), others.admit(Origin::User(uid))),
                Err(e) => {
                    refused(&e).await;
                    continue;
                }
            },
            accepted = accept_tcp(tcp.as_ref()) => match accepted {
                Ok((stream, peer, tls)) => {
                    let seat = remote.admit(Origin::Address(peer));
                    (Stream::Tcp(stream, tls), seat)
                }
                Err(e) => {
                    refused(&e).await;
                    continue;
                }
            },
        };
        // Without a seat the connection is dropped here.
        let Some(seat) = seat else { continue };
        let peer = match &stream {
            Stream::Unix(stream) => Peer::of(stream),
            Stream::Tcp(..) => Peer(None),
        };
        let router = Seated { router: TowerToHyperService::new(router.clone()), seat, peer };
        match stream {
            Stream::Unix(stream) => answer(connections.watcher(), router, stream),
            Stream::Tcp(stream, None) => answer(connections.watcher(), router, stream),
            Stream::Tcp(stream, Some(tls)) => {
                let handshake = Handshake { stream, tls, stopped: stopped.clone() };
                answer_tls(connections.watcher(), router, handshake);
            }
        }
    }
    drop((unix, shared, tcp, taking));
    if tokio::time::timeout(DRAIN, connections.shutdown()).await.is_err() {
        tracing::warn!("stopped with requests under way that did not end in {DRAIN:?}");
    }
}

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream, Option<TlsAcceptor>),
}

/// The process at the other end of a Unix socket, if it has a number in this pid namespace. An extension of each request.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub Option<u32>);

impl Peer {
    fn of(stream: &UnixStream) -> Self {
        let pid = stream.peer_cred().ok().and_then(|peer| u32::try_from(peer.pid()?).ok());
        Self(pid.filter(|pid| *pid != 0))
    }
}

/// The router of one connection: each request knows its seat and its peer.
#[derive(Clone)]
struct Seated {
    router: TowerToHyperService<Router>,
    seat: Arc<Seat>,
    peer: Peer,
}

impl hyper::service::Service<hyper::Request<Incoming>> for Seated {
    type Response = axum::response::Response;
    type Error = std::convert::Infallible;
    type Future = <TowerToHyperService<Router> as hyper::service::Service<hyper::Request<Incoming>>>::Future;

    fn call(&self, mut request: hyper::Request<Incoming>) -> Self::Future {
        self.seat.begin();
        request.extensions_mut().insert(Arc::clone(&self.seat));
        request.extensions_mut().insert(self.peer);
        self.router.call(request)
    }
}

async fn accept_shared(shared: Option<&UnixListener>) -> io::Result<(UnixStream, u32)> {
    match shared {
        Some(listener) => {
            let (stream, _) = listener.accept().await?;
            let uid = stream.peer_cred()?.uid();
            Ok((stream, uid))
        }
        None => std::future::pending().await,
    }
}

/// Makes a socket that others may open: those of `group`, or everybody. One that nobody listens on is replaced.
pub fn share(path: &Path, group: Option<u32>) -> io::Result<UnixListener> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    files::check_way(path)?;
    if let Ok(meta) = std::fs::symlink_metadata(path) {
        let is_ours = meta.file_type().is_socket() && meta.uid() == geteuid().as_raw();
        if !is_ours || std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "something is there already"));
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    // Closed to others (umask 077) until it has its group.
    let mode = if group.is_some() { 0o660 } else { 0o666 };
    files::let_in(path, group.map(nix::unistd::Gid::from_raw), mode)?;
    Ok(listener)
}

async fn accept_tcp(tcp: Option<&Tcp>) -> io::Result<(TcpStream, IpAddr, Option<TlsAcceptor>)> {
    match tcp {
        Some(Tcp { listener, tls, .. }) => {
            let (stream, peer) = listener.accept().await?;
            stream.set_nodelay(true)?;
            socket2::SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT)?;
            // An IPv4 peer of an IPv6 listener is the same machine as on an IPv4 one.
            Ok((stream, peer.ip().to_canonical(), tls.clone()))
        }
        None => std::future::pending().await,
    }
}

fn own_user(stream: UnixStream) -> io::Result<UnixStream> {
    let peer = stream.peer_cred()?.uid();
    if peer == geteuid().as_raw() || peer == 0 {
        return Ok(stream);
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("user {peer} is not let in")))
}

async fn refused(e: &io::Error) {
    tracing::warn!(error = %e, "a connection was not accepted");
    if e.kind() != io::ErrorKind::PermissionDenied {
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

/// A connection on which nothing was said yet.
struct Handshake {
    stream: TcpStream,
    tls: TlsAcceptor,
    stopped: watch::Receiver<()>,
}

fn answer_tls(connections: Watcher, router: Seated, handshake: Handshake) {
    let Handshake { stream, tls, mut stopped } = handshake;
    tokio::spawn(async move {
        let accepted = tokio::select! {
            accepted = tokio::time::timeout(HANDSHAKE, tls.accept(stream)) => accepted,
            () = router.seat.ended() => return,
            _ = stopped.changed() => return,
        };
        match accepted {
            Ok(Ok(stream)) => answer(connections, router, stream),
            Ok(Err(e)) => tracing::debug!(error = %e, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
    });
}

fn answer<S>(connections: Watcher, router: Seated, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let seat = Arc::clone(&router.seat);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(STALL));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(Box::pin(stream)), router);
    let connection = connections.watch(connection);
    tokio::spawn(async move {
        tokio::select! {
            ended = connection => if let Err(e) = ended {
                tracing::debug!(error = %e, "a connection ended early");
            },
            () = seat.ended() => tracing::debug!("a connection that brought no API key was closed"),
        }
    });
}
