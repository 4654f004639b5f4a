//! The vault inside another process: attach to the process that serves a directory, or serve it.
//!
//! The process that holds the lock serves; the others wait for it. While attached, a connection to
//! the serving process is kept open: when it ends, that process is likely gone, and the lock is
//! tried again. So a second mount goes on when the first ends, however it ends.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::server::error::ServeError;
use crate::server::instance::data_dir::{DataDir, DirLock, has_vault};
use crate::server::instance::serve::{Instance, Listening, ServeOptions};

/// How long a process that holds the lock may take to answer on its socket.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two tries for the lock or the socket while neither is to be had.
const PAUSE: Duration = Duration::from_millis(20);

/// A running vault over a directory, in this process or in the one that was there first.
#[derive(Debug)]
pub struct Embedded {
    socket: PathBuf,
    key_file: PathBuf,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Embedded {
    /// Makes `dir` if needed; attaches to a running server's `dir/vault.sock`, or serves it in this
    /// process. While attached, takes over serving as soon as the other process goes away.
    pub async fn start(dir: &Path) -> Result<Self, ServeError> {
        Self::start_with(dir, ServeOptions::default()).await
    }

    /// [`Embedded::start`] with options, which hold whenever it is this process that serves.
    pub async fn start_with(dir: &Path, options: ServeOptions) -> Result<Self, ServeError> {
        if !options.make && !has_vault(dir) {
            return Err(ServeError::NoVault(dir.to_owned()));
        }
        let dir = DataDir::prepare(dir)?;
        let (socket, key_file) = (dir.socket(), dir.key_file());
        let (stop, stopped) = watch::channel(false);
        let task = match own_or_attach(&dir).await? {
            Role::Instance(lock) => {
                let listening = open(dir.clone(), lock, options).await?;
                tokio::spawn(listening.run(stop_requested(stopped)))
            }
            Role::Attached(stream) => tokio::spawn(take_over(dir, options, stream, stopped)),
        };
        Ok(Self { socket, key_file, stop, task })
    }

    /// The Unix socket to speak HTTP on.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The file that holds an API key with all permissions.
    pub fn key_file(&self) -> &Path {
        &self.key_file
    }

    /// Answers what is being asked, then stops serving.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        if let Err(e) = (&mut self.task).await {
            tracing::error!(error = %e, "the embedded vault did not end well");
        }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        // Without a shutdown the task still ends, and gives up the lock.
        self.stop.send_replace(true);
    }
}

enum Role {
    Instance(DirLock),
    Attached(UnixStream),
}

async fn open(dir: DataDir, lock: DirLock, options: ServeOptions) -> Result<Listening, ServeError> {
    Instance::open(dir, lock, options).await?.listen(None)
}

async fn stop_requested(mut stop: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a way of saying stop.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Takes the lock, or connects to the process that holds it.
async fn own_or_attach(dir: &DataDir) -> Result<Role, ServeError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(lock) = dir.try_lock()? {
            return Ok(Role::Instance(lock));
        }
        if let Ok(stream) = UnixStream::connect(dir.socket()).await {
            return Ok(Role::Attached(stream));
        }
        if Instant::now() > deadline {
            return Err(ServeError::InstanceSilent(dir.path().to_owned()));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits for the other process to go away, then serves in its place.
async fn take_over(dir: DataDir, options: ServeOptions, first: UnixStream, stop: watch::Receiver<bool>) {
    // The vault was there: if it is gone, another one is not its successor.
    let options = ServeOptions { make: false, ..options };
    let mut stream = first;
    loop {
        let role = tokio::select! {
            () = stop_requested(stop.clone()) => return,
            role = next_role(&dir, stream) => role,
        };
        let served = match role {
            Ok(Role::Attached(other)) => {
                stream = other;
                continue;
            }
            Ok(Role::Instance(lock)) => open(dir.clone(), lock, options.clone()).await,
            Err(e) => Err(e),
        };
        return match served {
            Ok(listening) => {
                tracing::info!("took over serving the vault");
                listening.run(stop_requested(stop)).await;
            }
            Err(e) => tracing::error!(error = %e, "cannot take over serving the vault"),
        };
    }
}

async fn next_role(dir: &DataDir, mut stream: UnixStream) -> Result<Role, ServeError> {
    // Nothing is ever sent here: the end of the connection is all there is to read.
    while matches!(stream.read(&mut [0; 64]).await, Ok(n) if n > 0) {}
    own_or_attach(dir).await
}
