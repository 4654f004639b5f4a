//! The control socket of a mount: how commands ask the worker.
//!
//! One JSON request a line, one JSON answer a line. The keeper makes the listener, so that it
//! outlives a worker; the worker serves it. Only the mount's owner and root may send requests
//! (SO_PEERCRED), whatever the permissions of the socket file. No value and no key ever crosses it.
//! [`crate::sys::trust`] decides which sockets a command trusts; an answer is bounded in size, and
//! by one deadline for all of it.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::fs::Unsaved;
use crate::sys::trust;
use crate::sys::trust::{LONGEST, LONGEST_OF_OTHERS};

/// A request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// The status of the mount.
    Status,
    /// Store what is unsaved.
    Drain {
        /// The time for it in milliseconds; `--drain` of the mount if there is none.
        timeout_ms: Option<u64>,
    },
    /// Store unsaved writes again, also over newer versions; answered by [`Answer::Drained`].
    Retry {
        /// Only this object.
        name: Option<String>,
    },
    /// Discard an unsaved write; answered by [`Answer::Discarded`].
    Discard {
        /// The object's name.
        name: String,
    },
    /// Let this program take over; answered only if it is refused.
    Upgrade {
        /// The program, absolute.
        program: PathBuf,
    },
    /// Answer when the mount has ended.
    Watch,
    /// End at once, without storing anything.
    End,
}

/// The answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To [`Request::Status`].
    Status(serde_json::Value),
    /// To [`Request::Drain`]: what is still unsaved.
    Drained(Vec<Unsaved>),
    /// To [`Request::Discard`]: whether there was such a write.
    Discarded(bool),
    /// To [`Request::Watch`] and [`Request::End`]: what the vault does not have, now that it is
    /// over.
    Ended(Vec<Unsaved>),
    /// The request was refused.
    Error(String),
}

/// Serves the requests.
#[async_trait::async_trait]
pub trait Handler: Send + Sync + 'static {
    /// The whole status, as JSON.
    fn status(&self) -> serde_json::Value;
    /// Stores what is unsaved; returns what could not be stored in time.
    async fn drain(&self, within: Option<Duration>) -> Vec<Unsaved>;
    /// Stores unsaved writes after all; returns what is unsaved afterwards.
    async fn retry(&self, name: Option<&str>) -> Vec<Unsaved>;
    /// Discards an unsaved write.
    fn discard(&self, name: &str) -> bool;
}

/// Hands the mount to another program.
#[async_trait::async_trait]
pub trait Upgrade: Send + Sync {
    /// Returns only if it is refused, with the reason.
    async fn to(&self, program: &Path) -> String;
}

/// How the worker's main loop and the socket's connections reach each other.
#[derive(Clone)]
pub struct ControlChannels {
    /// A command asked for the end.
    pub end: mpsc::UnboundedSender<()>,
    /// Starts a takeover by another program.
    pub upgrade: Arc<dyn Upgrade>,
    /// Set once, when the mount has ended.
    pub ended: watch::Receiver<Option<Vec<Unsaved>>>,
}

/// Longest request line.
const MAX_LINE: u64 = 64 * 1024;

/// Connections at a time: others wait until one of these ends.
const CONNECTIONS: usize = 64;

/// A connection without a request for this long is closed.
const IDLE: Duration = Duration::from_secs(30);

/// Serves the socket until the mount has ended and all watchers have their answer.
pub async fn serve(listener: tokio::net::UnixListener, handler: Arc<dyn Handler>, channels: ControlChannels) {
    let mut connections = JoinSet::new();
    let mut ended = channels.ended.clone();
    loop {
        // The end comes last: earlier requests are answered.
        tokio::select! {
            biased;
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, handler.clone(), channels.clone()));
                }
                Err(e) => {
                    tracing::warn!("control socket: {e}");
                    // Out of descriptors: others must go first.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
            _ = over(&mut ended) => break,
        }
    }
    let all_notified = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(Duration::from_secs(1), all_notified).await;
}

/// Waits for the end; a worker that dies without an answer has no unsaved writes to name.
async fn over(ended: &mut watch::Receiver<Option<Vec<Unsaved>>>) -> Vec<Unsaved> {
    match ended.wait_for(Option::is_some).await {
        Ok(unsaved) => unsaved.clone().unwrap_or_default(),
        Err(_) => Vec::new(),
    }
}

async fn connection(stream: tokio::net::UnixStream, handler: Arc<dyn Handler>, channels: ControlChannels) {
    let peer = stream.peer_cred().map(|peer| peer.uid());
    let allowed = peer.as_ref().is_ok_and(|uid| *uid == trust::own() || *uid == 0);
    let longest = if peer.is_ok_and(|uid| uid == trust::own()) { LONGEST } else { LONGEST_OF_OTHERS };
    let (read, mut write) = stream.into_split();
    let mut read = tokio::io::BufReader::new(read);
    let mut ended = channels.ended.clone();
    loop {
        let mut line = String::new();
        let mut limited = (&mut read).take(MAX_LINE);
        tokio::select! {
            biased;
            got = tokio::time::timeout(IDLE, limited.read_line(&mut line)) => match got {
                Ok(Ok(n)) if n > 0 => {}
                _ => return,
            },
            _ = over(&mut ended) => return,
        }
        let answer = match serde_json::from_str::<Request>(&line) {
            _ if !allowed => Answer::Error("only the mount's owner and root may ask".into()),
            Err(e) => Answer::Error(format!("not a request: {e}")),
            Ok(Request::Status) => Answer::Status(handler.status()),
            Ok(Request::Drain { timeout_ms }) => {
                Answer::Drained(handler.drain(timeout_ms.map(Duration::from_millis)).await)
            }
            Ok(Request::Retry { name }) => Answer::Drained(handler.retry(name.as_deref()).await),
            Ok(Request::Upgrade { program }) => Answer::Error(channels.upgrade.to(&program).await),
            Ok(Request::Discard { name }) => Answer::Discarded(handler.discard(&name)),
            Ok(request @ (Request::Watch | Request::End)) => {
                if matches!(request, Request::End) {
                    let _ = channels.end.send(());
                }
                Answer::Ended(over(&mut ended).await)
            }
        };
        let Some(text) = line_of(answer, longest) else { return };
        if write.write_all(&text).await.is_err() {
            return;
        }
    }
}

/// Encodes an answer. Lists that are too long for a client are cut, and the rest is counted.
fn line_of(mut answer: Answer, longest: usize) -> Option<Vec<u8>> {
    let mut omitted = 0;
    loop {
        let mut text = serde_json::to_vec(&answer).ok()?;
        text.push(b'\n');
        if text.len() <= longest {
            return Some(text);
        }
        let left_out = match &mut answer {
            Answer::Drained(list) | Answer::Ended(list) => halve(list),
            Answer::Status(status) => {
                let lists = ["/fs/unsaved", "/fs/undeleted"];
                let halved = lists.map(|list| status.pointer_mut(list)?.as_array_mut().map(halve));
                omitted += halved.iter().flatten().sum::<usize>();
                status["omitted"] = omitted.into();
                halved.into_iter().flatten().sum()
            }
            Answer::Discarded(_) | Answer::Error(_) => 0,
        };
        if left_out == 0 {
            answer = Answer::Error("the answer is too long".into());
        }
    }
}

/// Drops the second half; how many that were.
fn halve<T>(list: &mut Vec<T>) -> usize {
    let dropped = list.len().div_ceil(2);
    list.truncate(list.len() - dropped);
    dropped
}

/// A command's end of the socket.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    /// Received bytes that are not consumed yet.
    come: Vec<u8>,
    /// The longest accepted answer.
    longest: usize,
}

impl Client {
    /// Of a connection to a mount's socket.
    pub fn new(stream: UnixStream, longest: usize) -> Self {
        Self { stream, come: Vec::new(), longest }
    }

    /// Sends a request without waiting for the answer.
    pub fn send(&mut self, request: &Request) -> io::Result<()> {
        let mut text = serde_json::to_vec(request)?;
        text.push(b'\n');
        self.stream.write_all(&text)
    }

    /// Waits until something of an answer is there, or the end; false if the time was up before.
    pub fn has_answered(&self, within: Duration) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(within).unwrap_or(PollTimeout::MAX)) {
            Ok(ready) => Ok(ready > 0),
            Err(nix::errno::Errno::EINTR) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Waits for the whole of the next answer; `None` if the worker ended without one.
    pub fn receive(&mut self, within: Duration) -> io::Result<Option<Answer>> {
        let end = Instant::now() + within;
        let mut part = vec![0; 64 * 1024];
        let mut seen = 0;
        loop {
            if let Some(at) = self.come[seen..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.come.drain(..=seen + at).collect();
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            seen = self.come.len();
            if seen > self.longest {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "its answer does not end"));
            }
            let left = end.saturating_duration_since(Instant::now());
            if !self.has_answered(left)? {
                if left.is_zero() {
                    let why = format!("no answer within {} s", within.as_secs());
                    return Err(io::Error::new(io::ErrorKind::TimedOut, why));
                }
                continue;
            }
            match self.stream.read(&mut part)? {
                0 if seen == 0 => return Ok(None),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => self.come.extend_from_slice(&part[..n]),
            }
        }
    }

    /// Sends a request and waits for its answer.
    pub fn ask(&mut self, request: &Request, within: Duration) -> io::Result<Answer> {
        self.send(request)?;
        self.receive(within)?.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake;

    fn unsaved(name: &str) -> Unsaved {
        Unsaved {
            name: name.into(),
            path: name.into(),
            size: 1,
            error: Some("e".into()),
            conflict: false,
            retry_s: None,
        }
    }

    #[async_trait::async_trait]
    impl Handler for Fake {
        fn status(&self) -> serde_json::Value {
            serde_json::json!({"well": true})
        }
        async fn retry(&self, name: Option<&str>) -> Vec<Unsaved> {
            name.map(unsaved).into_iter().collect()
        }
        fn discard(&self, name: &str) -> bool {
            name == "left"
        }
        async fn drain(&self, _within: Option<Duration>) -> Vec<Unsaved> {
            vec![unsaved("a")]
        }
    }

    #[async_trait::async_trait]
    impl Upgrade for Fake {
        async fn to(&self, program: &Path) -> String {
            format!("not to {}", program.display())
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn requests_are_answered_and_watchers_hear_the_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        let listener = tokio::net::UnixListener::bind(&path).expect("own directory");
        let (end, mut asked_to_end) = mpsc::unbounded_channel();
        let (over, ended) = watch::channel(None);
        let server = tokio::spawn(serve(
            listener,
            Arc::new(Fake),
            ControlChannels { end, ended, upgrade: Arc::new(Fake) },
        ));
        let client = tokio::task::spawn_blocking(move || {
            let second = Duration::from_secs(5);
            let stream = UnixStream::connect(&path).expect("listening");
            let mut client = Client::new(stream, LONGEST);
            let status = client.ask(&Request::Status, second).expect("answered");
            assert!(matches!(status, Answer::Status(v) if v["well"] == true));
            let drained = client.ask(&Request::Drain { timeout_ms: None }, second).expect("answered");
            assert!(matches!(drained, Answer::Drained(left) if left[0].name == "a"));
            client.stream.write_all(b"nonsense\n").expect("open");
            assert!(matches!(client.receive(second).expect("answered"), Some(Answer::Error(_))));
            let ended = client.ask(&Request::End, second).expect("answered");
            assert!(matches!(ended, Answer::Ended(left) if left.len() == 2));
            assert!(client.receive(second).expect("closed").is_none());
        });
        asked_to_end.recv().await.expect("asked");
        over.send(Some(vec![unsaved("x"), unsaved("y")])).expect("the server listens");
        client.await.expect("no panic");
        server.await.expect("no panic");
    }

    #[test]
    fn one_deadline_is_for_all_of_an_answer() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let drips = std::thread::spawn(move || {
            while theirs.write_all(b" ").is_ok() {
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let mut client = Client::new(ours, LONGEST);
        let refused = client.receive(Duration::from_millis(100)).expect_err("it never ends");
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
        drop(client);
        drips.join().expect("no panic");
    }

    #[test]
    fn an_answer_without_end_is_not_read_to_its_end() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let floods = std::thread::spawn(move || while theirs.write_all(&[b'1'; 4096]).is_ok() {});
        let mut client = Client::new(ours, 100_000);
        let refused = client.receive(Duration::from_secs(60)).expect_err("too long");
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
        assert!(client.come.len() < 300_000);
        drop(client);
        floods.join().expect("no panic");
    }

    #[test]
    fn what_is_too_long_to_be_taken_is_cut_and_counted() {
        let many: Vec<_> = (0..200_000).map(|n| unsaved(&format!("{n:060}"))).collect();
        let text = line_of(Answer::Drained(many.clone()), LONGEST).expect("JSON");
        assert!(text.len() <= LONGEST);
        let cut: Answer = serde_json::from_slice(&text).expect("own output");
        assert!(matches!(cut, Answer::Drained(left) if left[0].name == many[0].name));
        let status = serde_json::json!({"fs": {"unsaved": many, "undeleted": []}});
        let text = line_of(Answer::Status(status), LONGEST).expect("JSON");
        let Answer::Status(cut) = serde_json::from_slice(&text).expect("own output") else { panic!("cut") };
        let left = cut["fs"]["unsaved"].as_array().expect("there").len() as u64;
        assert_eq!(cut["omitted"].as_u64().map(|omitted| omitted + left), Some(200_000));
    }
}
