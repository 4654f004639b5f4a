//! A server for tests that answers what it was told to, however wrong: bytes on a socket of
//! 127.0.0.1.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What happens to one request.
#[derive(Debug, Clone)]
pub enum Canned {
    /// These bytes, and the connection stays open.
    Raw(String),
    /// These bytes, and the connection is closed.
    RawThenClose(String),
    /// The connection is reset without an answer.
    Reset,
    /// No answer at all.
    Hang,
    /// An answer that never ends.
    Endless,
}

impl Canned {
    /// A whole answer with the right length.
    pub fn answer(status: u16, headers: &[&str], body: &str) -> Self {
        let headers: String = headers.iter().map(|h| format!("{h}\r\n")).collect();
        Self::Raw(format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len()))
    }

    /// A whole answer in JSON.
    pub fn json(status: u16, body: &str) -> Self {
        Self::answer(status, &["Content-Type: application/json", "X-Request-ID: req_1"], body)
    }
}

/// Plays its answers in order, one a request; when they have run out, the last one again.
#[derive(Debug)]
pub struct CannedServer {
    /// Its address.
    pub url: String,
    seen: Arc<Mutex<Vec<String>>>,
    accepted: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for CannedServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl CannedServer {
    /// Listens on a free port.
    pub async fn start(answers: Vec<Canned>) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), answers)
    }

    /// Listens here.
    pub fn on(listener: TcpListener, answers: Vec<Canned>) -> Self {
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let recorder = seen.clone();
        let accepted = Arc::new(AtomicUsize::new(0));
        let counter = accepted.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counter.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(stream, recorder.clone(), answers.clone()));
            }
        });
        Self { url, seen, accepted, task }
    }

    /// Takes no more connections when this returns.
    pub async fn stop(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// Connections so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// The requests so far, heads and bodies.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

async fn serve(mut stream: TcpStream, seen: Arc<Mutex<Vec<String>>>, answers: Vec<Canned>) {
    while let Some(request) = read_request(&mut stream).await {
        let index = {
            let mut seen = seen.lock().unwrap();
            seen.push(request);
            seen.len() - 1
        };
        // A client may leave before it has read all of it: what is too long, or comes too late.
        match answers[index.min(answers.len() - 1)].clone() {
            Canned::Raw(text) => {
                if stream.write_all(text.as_bytes()).await.is_err() {
                    return;
                }
            }
            Canned::RawThenClose(text) => {
                let _ = stream.write_all(text.as_bytes()).await;
                return;
            }
            Canned::Reset => {
                let _ = stream.set_zero_linger();
                return;
            }
            Canned::Hang => std::future::pending().await,
            Canned::Endless => {
                let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
                let _ = stream.write_all(head.as_bytes()).await;
                while stream.write_all(chunk.as_bytes()).await.is_ok() {}
                return;
            }
        }
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return Some(text);
            }
        }
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return None,
            Ok(n) => bytes.extend_from_slice(&buffer[..n]),
        }
    }
}
