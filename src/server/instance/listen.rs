//! Connections: accepted from a Unix socket and from TCP, answered by one router, drained at the
//! end.
//!
//! TCP is plain on loopback, or TLS. A connection is a task from the start: nothing that it does
//! not say, no handshake and no head, holds up another, and one that says nothing has no buffers.
//! On the vault's Unix socket only processes of our own user (or root) are let in, whatever the
//! file's mode says. On a shared one the file's mode decides which users connect, and the key what
//! they get. Each listener has an [`Admission`] of its own, so that clients that fill the port do
//! not affect the socket. A client that takes nothing of its answer loses its connection. Draining
//! gets a limited time.

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use ipnet::IpNet;
use nix::unistd::geteuid;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{consume_budget, unconstrained};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;

use crate::server::instance::admission::{Admission, ConnectionPermit, Origin};
use crate::sys::files;

/// Connections that the system keeps while none is accepted, if it is allowed as many.
const BACKLOG: u32 = 4096;
/// How long a connection may stay between two requests. Longer than clients keep idle connections
/// (reqwest: 90 s), so that the client closes first: a request never meets a connection that is
/// about to close.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);
/// What a connection may hold of what it received and has not been read yet: a head fits.
const BUFFER: usize = 64 * 1024;
/// What the system may hold of an answer that the network does not take yet. The rest stays here,
/// where it is counted.
const UNSENT: u32 = 64 * 1024;
/// How long a client may take nothing of what is sent to it.
const STALL: Duration = Duration::from_secs(30);
/// What a request costs of the 128 operations that a task may do in its turn. The look-ups in the
/// store are made within the task, so a connection with many requests in a pipeline would take
/// sixteen of them in one turn.
const REQUEST: usize = 60;
/// How long requests under way may take once the server is to stop.
const DRAIN: Duration = Duration::from_secs(10);
/// Pause after a failed accept: out of file descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Where connections come from.
#[derive(Debug)]
pub struct Listeners {
    /// The vault's socket, for its own user.
    pub unix: UnixListener,
    /// A socket for any user that may open it.
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
    /// Proxies that are trusted with `X-Forwarded-For`.
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

/// Answers with `router` until `stop` is done; then takes no more connections and finishes those it
/// has.
pub async fn serve(listeners: Listeners, router: Router, stop: impl Future<Output = ()>) {
    let Listeners { unix, shared, tcp } = listeners;
    let of_others = usize::from(shared.is_some()) + usize::from(tcp.is_some());
    let local = Admission::new(Vec::new(), 1);
    let others = Admission::new(Vec::new(), of_others);
    let proxies = tcp.as_ref().map_or_else(Vec::new, |tcp| tcp.trusted_proxies.clone());
    let remote = Admission::new(proxies, of_others);
    let connections = GracefulShutdown::new();
    // Dropped at the end of taking connections: what has sent no request by then has none to lose.
    let (taking, stopped) = watch::channel(());
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = accept_own(&unix, &local) => accepted,
            accepted = accept_shared(shared.as_ref(), &others) => accepted,
            accepted = accept_tcp(tcp.as_ref(), &remote) => accepted,
        };
        let (stream, permit) = match accepted {
            Ok((stream, Some(permit))) => (stream, permit),
            // Without a permit the connection is dropped here.
            Ok((_, None)) => continue,
            Err(e) => {
                refused(&e).await;
                continue;
            }
        };
        let peer = Peer::of(&stream);
        let router = PermittedRouter { router: TowerToHyperService::new(router.clone()), permit, peer };
        tokio::spawn(answer(stream, router, connections.watcher(), stopped.clone()));
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

impl Stream {
    async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.readable().await,
            Self::Tcp(stream, _) => stream.readable().await,
        }
    }

    /// Whether bytes are there, which the runtime may not know of.
    fn has_bytes(&self) -> bool {
        let socket = match self {
            Self::Unix(stream) => SockRef::from(stream),
            Self::Tcp(stream, _) => SockRef::from(stream),
        };
        socket.peek(&mut [MaybeUninit::uninit()]).is_ok_and(|n| n > 0)
    }
}

/// The process at the other end of a Unix socket, if it has a number in this pid namespace. An
/// extension of each request.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub Option<u32>);

impl Peer {
    fn of(stream: &Stream) -> Self {
        let Stream::Unix(stream) = stream else { return Self(None) };
        let pid = stream.peer_cred().ok().and_then(|peer| u32::try_from(peer.pid()?).ok());
        Self(pid.filter(|pid| *pid != 0))
    }
}

/// The router of one connection: each request knows its permit and its peer.
#[derive(Clone)]
struct PermittedRouter {
    router: TowerToHyperService<Router>,
    permit: Arc<ConnectionPermit>,
    peer: Peer,
}

impl hyper::service::Service<hyper::Request<Incoming>> for PermittedRouter {
    type Response = axum::response::Response;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn call(&self, mut request: hyper::Request<Incoming>) -> Self::Future {
        self.permit.begin();
        request.extensions_mut().insert(Arc::clone(&self.permit));
        request.extensions_mut().insert(self.peer);
        let answer = self.router.call(request);
        Box::pin(async move {
            let answer = answer.await;
            for _ in 0..REQUEST {
                consume_budget().await;
            }
            answer
        })
    }
}

type Accepted = io::Result<(Stream, Option<Arc<ConnectionPermit>>)>;

async fn accept_own(listener: &UnixListener, admission: &Arc<Admission>) -> Accepted {
    admission.room().await;
    let (stream, _) = listener.accept().await?;
    let (own, peer) = (geteuid().as_raw(), stream.peer_cred()?.uid());
    if peer != own && peer != 0 {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("user {peer} is not let in")));
    }
    Ok((Stream::Unix(stream), admission.admit(Origin::User(own))))
}

async fn accept_shared(listener: Option<&UnixListener>, admission: &Arc<Admission>) -> Accepted {
    let Some(listener) = listener else { return std::future::pending().await };
    admission.room().await;
    let (stream, _) = listener.accept().await?;
    let user = Origin::User(stream.peer_cred()?.uid());
    Ok((Stream::Unix(stream), admission.admit(user)))
}

async fn accept_tcp(tcp: Option<&Tcp>, admission: &Arc<Admission>) -> Accepted {
    let Some(Tcp { listener, tls, .. }) = tcp else { return std::future::pending().await };
    admission.room().await;
    let (stream, peer) = listener.accept().await?;
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT)?;
    // An IPv4 peer of an IPv6 listener is the same machine as on an IPv4 one.
    let address = Origin::Address(peer.ip().to_canonical());
    Ok((Stream::Tcp(stream, tls.clone()), admission.admit(address)))
}

/// Listens on a TCP port.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Makes a socket that others may open: those of `group`, or everybody. A socket without a listener
/// is replaced.
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

async fn refused(e: &io::Error) {
    tracing::warn!(error = %e, "a connection was not accepted");
    if e.kind() != io::ErrorKind::PermissionDenied {
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

/// One connection, from its first byte to its end.
async fn answer(
    stream: Stream,
    router: PermittedRouter,
    connections: Watcher,
    mut stopped: watch::Receiver<()>,
) {
    let permit = Arc::clone(&router.permit);
    let speaks = tokio::select! {
        biased;
        readable = stream.readable() => readable.is_ok(),
        () = permit.ended() => stream.has_bytes() && stream.readable().await.is_ok(),
        _ = stopped.changed() => false,
    };
    if !speaks {
        tracing::debug!("a connection that said nothing was closed");
        return;
    }
    permit.speaks();
    match stream {
        Stream::Unix(stream) => answer_http(stream, router, connections).await,
        Stream::Tcp(stream, None) => answer_http(stream, router, connections).await,
        Stream::Tcp(stream, Some(tls)) => {
            let accepted = tokio::select! {
                biased;
                accepted = tls.accept(stream) => accepted,
                () = permit.ended() => return,
                _ = stopped.changed() => return,
            };
            match accepted {
                Ok(stream) => answer_http(stream, router, connections).await,
                Err(e) => tracing::debug!(error = %e, "a TLS handshake failed"),
            }
        }
    }
}

async fn answer_http<S>(stream: S, router: PermittedRouter, connections: Watcher)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let permit = Arc::clone(&router.permit);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(STALL));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(Box::pin(stream)), router);
    tokio::select! {
        // First: what has arrived is read before the connection is ended.
        biased;
        ended = connections.watch(connection) => if let Err(e) = ended {
            tracing::debug!(error = %e, "a connection ended early");
        },
        // Polled also when the requests of a pipeline have used up the budget of the task.
        () = unconstrained(permit.ended()) => {
            tracing::debug!("a connection that brought no API key was closed");
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::server::instance::admission::UNPROVEN;

    #[tokio::test]
    async fn a_pipeline_of_requests_takes_turns_with_other_connections() {
        let order = Arc::new(std::sync::Mutex::new(Vec::new()));
        let (admission, connections) = (Admission::new(Vec::new(), 1), GracefulShutdown::new());
        let (_taking, stopped) = watch::channel(());
        let mut clients = Vec::new();
        for (name, requests) in [("many", 64), ("one", 1)] {
            let (mut client, stream) = UnixStream::pair().unwrap();
            let request = b"GET / HTTP/1.1\r\nHost: v\r\n\r\n".repeat(requests);
            client.write_all(&request).await.unwrap();
            // Known to the runtime before the first of the two has its turn.
            stream.readable().await.unwrap();
            clients.push(client);
            let order = Arc::clone(&order);
            let router = Router::new().fallback(async move || order.lock().unwrap().push(name));
            let permit = admission.admit(Origin::User(0)).unwrap();
            let router =
                PermittedRouter { router: TowerToHyperService::new(router), permit, peer: Peer(None) };
            tokio::spawn(answer(Stream::Unix(stream), router, connections.watcher(), stopped.clone()));
        }
        for client in &mut clients {
            assert!(client.read(&mut [0; 4096]).await.unwrap() > 0);
        }
        let position = order.lock().unwrap().iter().position(|name| *name == "one").unwrap();
        assert!(position < 8, "{position} of the others were answered first");
    }

    #[tokio::test]
    async fn an_endless_pipeline_does_not_keep_an_evicted_connection() {
        let (admission, connections) = (Admission::new(Vec::new(), 1), GracefulShutdown::new());
        let (_taking, stopped) = watch::channel(());
        let (client, stream) = UnixStream::pair().unwrap();
        let (mut answers, mut requests) = client.into_split();
        let permit = admission.admit(Origin::User(0)).unwrap();
        let router = TowerToHyperService::new(Router::new().fallback(async || "answered"));
        let router = PermittedRouter { router, permit, peer: Peer(None) };
        let ended = tokio::spawn(answer(Stream::Unix(stream), router, connections.watcher(), stopped));
        tokio::spawn(async move {
            let many = b"GET / HTTP/1.1\r\nHost: v\r\n\r\n".repeat(1000);
            while requests.write_all(&many).await.is_ok() {}
        });
        let mut buffer = [0; 4096];
        assert!(answers.read(&mut buffer).await.unwrap() > 0);
        tokio::spawn(async move { while answers.read(&mut buffer).await.is_ok_and(|n| n > 0) {} });
        let crowd: Vec<_> = (0..UNPROVEN)
            .map(|_| admission.admit(Origin::User(0)).unwrap())
            .inspect(|one| one.speaks())
            .collect();
        assert!(tokio::time::timeout(Duration::from_secs(60), ended).await.is_ok());
        drop(crowd);
    }

    #[tokio::test]
    async fn what_came_before_the_eviction_is_read_and_answered() {
        for _ in 0..20 {
            let admission = Admission::new(Vec::new(), 1);
            let admit = || admission.admit(Origin::User(0)).unwrap();
            let (mut client, stream) = UnixStream::pair().unwrap();
            client.write_all(b"GET / HTTP/1.1\r\nHost: v\r\n\r\n").await.unwrap();
            let permit = admit();
            let _crowd: Vec<_> = (0..UNPROVEN).map(|_| admit()).collect();
            let router = TowerToHyperService::new(Router::new().fallback(async || "answered"));
            let (connections, (_taking, stopped)) = (GracefulShutdown::new(), watch::channel(()));
            let router = PermittedRouter { router, permit, peer: Peer(None) };
            answer(Stream::Unix(stream), router, connections.watcher(), stopped).await;
            let mut text = String::new();
            client.read_to_string(&mut text).await.unwrap();
            assert!(text.ends_with("answered"), "{text:?}");
        }
    }
}
