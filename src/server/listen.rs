//! Connections: accepted from a Unix socket and from TCP, answered by one router, drained at the end.
//!
//! On the Unix socket only processes of our own user (or root) are let in, whatever the file's mode says.
//! A client that sends no request gets a limited time; draining gets a limited time as well.

use std::io;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use nix::unistd::geteuid;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// How long a connection may stay without a complete request head. Longer than clients keep idle connections
/// (reqwest: 90 s), so that it is they who close: a request never meets a connection that is just going.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);
/// How long requests under way may take once the server is told to stop.
const DRAIN: Duration = Duration::from_secs(10);
/// Pause after a failed accept: out of file descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Where connections come from.
#[derive(Debug)]
pub struct Listeners {
    /// The vault's socket.
    pub unix: UnixListener,
    /// TCP, if asked for.
    pub tcp: Option<TcpListener>,
}

/// Answers with `router` until `stop` is done; then takes no more connections and finishes those it has.
pub async fn serve(listeners: Listeners, router: Router, stop: impl Future<Output = ()>) {
    let Listeners { unix, tcp } = listeners;
    let connections = GracefulShutdown::new();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            accepted = unix.accept() => match accepted.and_then(|(stream, _)| own_user(stream)) {
                Ok(stream) => answer(&connections, router.clone(), stream),
                Err(e) => refused(&e).await,
            },
            accepted = accept_tcp(tcp.as_ref()) => match accepted {
                Ok(stream) => answer(&connections, router.clone(), stream),
                Err(e) => refused(&e).await,
            },
        }
    }
    drop((unix, tcp));
    if tokio::time::timeout(DRAIN, connections.shutdown()).await.is_err() {
        tracing::warn!("stopped with requests under way that did not end in {DRAIN:?}");
    }
}

async fn accept_tcp(listener: Option<&TcpListener>) -> io::Result<TcpStream> {
    match listener {
        Some(listener) => {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok(stream)
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

fn answer<S>(connections: &GracefulShutdown, router: Router, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let connection = connections.watch(connection);
    tokio::spawn(async move {
        if let Err(e) = connection.await {
            tracing::debug!(error = %e, "a connection ended early");
        }
    });
}
