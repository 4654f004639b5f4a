//! The plugin's socket: HTTP requests of the container engine, each handed to the driver.
//!
//! Only root and the plugin's own user may send requests. A change runs to its end even if the
//! engine closes the connection (podman does after 5 s). Errors are HTTP 500 with the message in
//! `Err`, which both engines show.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Router};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;

use super::driver::Driver;
use super::protocol::{Answer, Ask, CONTENT_TYPE, Refused, Scope};
use super::state::Refusal;
use crate::server::instance::listen::Peer;
use crate::sys::{files, trust};

/// Where dockerd looks for plugins.
const OF_DOCKER: &str = "/run/docker/plugins";
/// Longest body that is read: far more than a volume with all its options.
const LONGEST: usize = 1 << 20;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process listens there.
    #[error("{0} is answered by another process: end it, or choose another --socket")]
    Taken(PathBuf),
    /// A file that is no socket.
    #[error("{0} is there and is no socket: choose another --socket")]
    NotASocket(PathBuf),
    /// More than the last directory is missing.
    #[error("{0} is not there: make it (mkdir -p), or choose another --socket")]
    Nowhere(PathBuf),
    /// Anything else.
    #[error("{0}: {1}: choose a --socket in a directory that you can write to")]
    Io(PathBuf, std::io::Error),
}

/// Listens at `path`, 0600; what an ended plugin left there is replaced.
pub async fn listen(path: &Path) -> Result<UnixListener, SocketError> {
    use std::os::unix::fs::FileTypeExt;
    let failed = |e| SocketError::Io(path.to_owned(), e);
    files::check_way(path).map_err(failed)?;
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
        Ok(_) if UnixStream::connect(path).await.is_ok() => return Err(SocketError::Taken(path.to_owned())),
        Ok(_) => std::fs::remove_file(path).map_err(failed)?,
        Err(_) => {
            // Of a bare name the parent is the empty path.
            if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
                make_directory(dir)?;
            }
        }
    }
    // The umask keeps others out from the start.
    let listener = UnixListener::bind(path).map_err(failed)?;
    files::let_in(path, None, 0o600).map_err(failed)?;
    Ok(listener)
}

/// The directory of a socket, unless it is there. A path that is mostly missing is a slip; but
/// where dockerd looks for plugins nothing needs to be before its first start, and plugins are
/// started before it.
fn make_directory(dir: &Path) -> Result<(), SocketError> {
    let failed = |e| SocketError::Io(dir.to_owned(), e);
    match dir.parent() {
        _ if dir.is_dir() => Ok(()),
        Some(above) if !above.as_os_str().is_empty() && !above.exists() && !dir.starts_with(OF_DOCKER) => {
            Err(SocketError::Nowhere(above.to_owned()))
        }
        _ => std::fs::create_dir_all(dir).map_err(failed),
    }
}

/// Requests the list of volumes as an engine does, to verify that engines get answers.
pub async fn ask_for_volumes(path: &Path) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(path).await?;
    if stream.peer_cred()?.uid() != trust::own() {
        return Err(std::io::ErrorKind::PermissionDenied.into());
    }
    stream.write_all(b"POST /VolumeDriver.List HTTP/1.1\r\nHost: \r\nContent-Length: 0\r\n\r\n").await?;
    const WELL: &[u8] = b"HTTP/1.1 200 ";
    let mut said = [0; WELL.len()];
    stream.read_exact(&mut said).await?;
    if said == WELL { Ok(()) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}

/// Answers each request.
pub fn router(driver: Arc<Driver>) -> Router {
    Router::new()
        .route(
            "/Plugin.Activate",
            post(async || answer(Ok(Answer::Activate { implements: ["VolumeDriver"] }))),
        )
        .route(
            "/VolumeDriver.Capabilities",
            post(async || answer(Ok(Answer::Capabilities { capabilities: Scope { scope: "local" } }))),
        )
        .route("/VolumeDriver.Create", post(create))
        .route("/VolumeDriver.Mount", post(mount))
        .route("/VolumeDriver.Unmount", post(unmount))
        .route("/VolumeDriver.Remove", post(remove))
        .route("/VolumeDriver.Path", post(path))
        .route("/VolumeDriver.Get", post(get))
        .route("/VolumeDriver.List", post(list))
        .fallback(async || {
            refused(Refusal::Message("this socket speaks the volume plugin protocol only".into()))
        })
        .layer(middleware::from_fn(whole))
        .with_state(driver)
}

/// Reads a request to its end before it is answered, whatever it is: a client that sends its body
/// after the head meets a closed connection otherwise.
async fn whole(request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let asked = head.uri.path().to_owned();
    let answer = match axum::body::to_bytes(body, LONGEST).await {
        Ok(body) => next.run(Request::from_parts(head, body.into())).await,
        Err(e) => refused(Refusal::Message(format!("the request cannot be read: {e}"))),
    };
    tracing::debug!(status = answer.status().as_u16(), "{asked}");
    answer
}

type Shared = State<Arc<Driver>>;

async fn create(State(driver): Shared, body: Bytes) -> Response {
    let ask = match ask(&body) {
        Ok(ask) => ask,
        Err(e) => return refused(e),
    };
    let options = ask.opts.clone().unwrap_or_default();
    to_the_end(named(&ask), move |name| async move { driver.create(&name, &options).await }).await
}

async fn unmount(State(driver): Shared, body: Bytes) -> Response {
    let (name, id) = match ask(&body).and_then(|ask| user(&ask)) {
        Ok(user) => user,
        Err(e) => return refused(e),
    };
    let (sender, receiver) = oneshot::channel();
    tokio::spawn(async move { driver.unmount(&name, &id, |answer| sender.send(answer).is_ok()).await });
    answer(joined(receiver.await).map(|()| Answer::Done {}))
}

async fn remove(State(driver): Shared, body: Bytes) -> Response {
    let name = ask(&body).and_then(|ask| named(&ask));
    to_the_end(name, move |name| async move { driver.remove(&name).await }).await
}

async fn mount(State(driver): Shared, Extension(Peer(engine)): Extension<Peer>, body: Bytes) -> Response {
    let (name, id) = match ask(&body).and_then(|ask| user(&ask)) {
        Ok(user) => user,
        Err(e) => return refused(e),
    };
    let (sender, receiver) = oneshot::channel();
    tokio::spawn(async move { driver.mount(&name, &id, engine, |answer| sender.send(answer).is_ok()).await });
    answer(joined(receiver.await).map(|mountpoint| Answer::Mountpoint { mountpoint }))
}

async fn path(State(driver): Shared, body: Bytes) -> Response {
    let path = ask(&body).and_then(|ask| driver.path(&named(&ask)?));
    answer(path.map(|mountpoint| Answer::Mountpoint { mountpoint }))
}

async fn get(State(driver): Shared, body: Bytes) -> Response {
    let volume = ask(&body).and_then(|ask| driver.get(&named(&ask)?));
    answer(volume.map(|volume| Answer::Volume { volume }))
}

async fn list(State(driver): Shared) -> Response {
    answer(Ok(Answer::Volumes { volumes: driver.list() }))
}

/// Runs a change in its own task, which continues when the engine closes the connection.
async fn to_the_end<F>(name: Result<String, Refusal>, change: impl FnOnce(String) -> F) -> Response
where
    F: Future<Output = Result<(), Refusal>> + Send + 'static,
{
    let done = match name {
        Ok(name) => joined(tokio::spawn(change(name)).await),
        Err(e) => Err(e),
    };
    answer(done.map(|()| Answer::Done {}))
}

/// A task that was to answer and died did so because of a bug, which the log names.
fn joined<T, E>(answer: Result<Result<T, Refusal>, E>) -> Result<T, Refusal> {
    answer.unwrap_or_else(|_| {
        Err(Refusal::Message("vaultfs failed; the standard error of volume-plugin says where".into()))
    })
}

/// The body; engines leave it out where it would be empty.
fn ask(body: &Bytes) -> Result<Ask, Refusal> {
    if body.trim_ascii().is_empty() {
        return Ok(Ask::default());
    }
    serde_json::from_slice(body).map_err(|e| Refusal::Message(format!("the request cannot be read: {e}")))
}

fn named(ask: &Ask) -> Result<String, Refusal> {
    ask.name.clone().filter(|name| !name.is_empty()).ok_or(Refusal::Missing("volume"))
}

fn user(ask: &Ask) -> Result<(String, String), Refusal> {
    Ok((named(ask)?, ask.id.clone().filter(|id| !id.is_empty()).ok_or(Refusal::Missing("ID"))?))
}

fn answer(answer: Result<Answer, Refusal>) -> Response {
    match answer {
        Ok(answer) => json(StatusCode::OK, &answer),
        Err(e) => refused(e),
    }
}

fn refused(e: Refusal) -> Response {
    match &e {
        // Engines ask so before they create one.
        Refusal::Unknown(_) => tracing::debug!("{e}"),
        e => tracing::warn!("{e}"),
    }
    json(StatusCode::INTERNAL_SERVER_ERROR, &Refused { err: crate::display::line(e).to_string() })
}

fn json(status: StatusCode, body: &impl serde::Serialize) -> Response {
    // Plain data: it always is JSON.
    let text = serde_json::to_string(body).unwrap_or_default();
    (status, [(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response()
}
