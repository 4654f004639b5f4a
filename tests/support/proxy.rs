//! A proxy between vaultfs and a vault, which does to requests and answers what networks and
//! services do on bad days.
//!
//! One thread a connection; a request is read whole (unless the fault says otherwise), passed on or
//! not, and its answer given back as the [`Fault`] in force says. Bytes are never looked at beyond
//! what HTTP/1.1 framing needs, so both dialects go through alike. Everything is counted: requests
//! that came, those that reached the vault, and bytes that were sent of a body without end.
//! Dropping it closes every connection.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

/// Where a connection is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// Before a byte of the request is read.
    Request,
    /// After the request, which the vault never sees.
    Answer,
    /// After the vault has answered; nothing of that is passed on.
    Lost,
    /// In the status line of the vault's answer.
    StatusLine,
    /// In its headers.
    Headers,
    /// In its body.
    Body,
}

/// What is done to a request or its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The answer comes whole, later.
    Delay(Duration),
    /// The connection is reset.
    Reset(At),
    /// The connection ends in good order in the middle of the body.
    Truncated,
    /// Content-Length names fewer bytes than the body has.
    TooShort,
    /// Content-Length names more; they never come.
    TooLong,
    /// What answers speaks no HTTP.
    Garbage,
    /// 200, and a body that is not JSON.
    Nonsense,
    /// A page for people, with this status.
    Html(u16),
    /// To somewhere else.
    Redirect,
    /// The body comes byte by byte, with such pauses.
    Drip(Duration),
    /// A body of 10 GB, as is announced.
    Huge,
    /// A body of 10 GB, in chunks and without a word.
    Endless,
    /// This status, an empty body, and Retry-After in seconds if that is not 0.
    Status(u16, u32),
    /// The request is read and nothing ever comes back; the vault never sees it.
    BlackHole,
    /// The vault has answered, and nothing comes back.
    Silence,
}

/// The bytes of a body without end.
pub const HUGE: u64 = 10 << 30;

#[derive(Default)]
struct Plan {
    fault: Option<Fault>,
    /// How many requests it is for; `None` for all.
    left: Option<u32>,
    /// Only requests of this method.
    method: Option<&'static str>,
}

#[derive(Default)]
struct State {
    plan: Mutex<Plan>,
    /// Nobody listens.
    down: Mutex<bool>,
    vault: Mutex<Option<SocketAddr>>,
    changed: Condvar,
    over: AtomicBool,
    requests: AtomicU64,
    forwarded: AtomicU64,
    endless: AtomicU64,
    /// Open connections, to be closed at the end.
    open: Mutex<Vec<TcpStream>>,
}

/// The proxy; faults may be changed at any time and hold from the next request on.
pub struct Proxy {
    pub url: String,
    address: SocketAddr,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Proxy {
    /// In front of the vault at `http://HOST:PORT`.
    pub fn before(vault: &str) -> Self {
        let listener = listen();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State { vault: Mutex::new(Some(address_of(vault))), ..State::default() });
        let thread = std::thread::spawn({
            let state = state.clone();
            move || accept(listener, address, &state)
        });
        Self { url: format!("http://{address}"), address, state, thread: Some(thread) }
    }

    /// From now on the vault is at this address.
    pub fn lead_to(&self, vault: &str) {
        *locked(&self.state.vault) = Some(address_of(vault));
        self.state.close_all();
    }

    /// From now on, every request.
    pub fn always(&self, fault: Fault) {
        *locked(&self.state.plan) = Plan { fault: Some(fault), ..Plan::default() };
    }

    /// The next `times` requests.
    pub fn next(&self, fault: Fault, times: u32) {
        *locked(&self.state.plan) = Plan { fault: Some(fault), left: Some(times), method: None };
    }

    /// Every request of this method.
    pub fn each(&self, method: &'static str, fault: Fault) {
        *locked(&self.state.plan) = Plan { fault: Some(fault), left: None, method: Some(method) };
    }

    /// No fault any more. What hangs stays so.
    pub fn clear(&self) {
        *locked(&self.state.plan) = Plan::default();
    }

    /// Nobody listens: connections are refused, and those that were open are reset.
    pub fn down(&self) {
        *locked(&self.state.down) = true;
        self.state.close_all();
        self.wake();
        // Refused from here on, surely.
        while TcpStream::connect(self.address).is_ok() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// It listens again, at the same address.
    pub fn up(&self) {
        *locked(&self.state.down) = false;
        self.state.changed.notify_all();
        while TcpStream::connect(self.address).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Requests that came.
    pub fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::SeqCst)
    }

    /// Requests that the vault has seen.
    pub fn forwarded(&self) -> u64 {
        self.state.forwarded.load(Ordering::SeqCst)
    }

    /// Bytes that were sent of bodies without end.
    pub fn endless(&self) -> u64 {
        self.state.endless.load(Ordering::SeqCst)
    }

    fn wake(&self) {
        // The listener may be gone already: then nobody waits.
        drop(TcpStream::connect(self.address));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::SeqCst);
        *locked(&self.state.down) = false;
        self.state.changed.notify_all();
        self.state.close_all();
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            self.wake();
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(self.thread.take().map(JoinHandle::join));
    }
}

impl State {
    fn close_all(&self) {
        for stream in locked(&self.open).drain(..) {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// The fault for the request of this method.
    fn fault(&self, method: &str) -> Option<Fault> {
        let mut plan = locked(&self.plan);
        if plan.method.is_some_and(|only| only != method) || plan.left == Some(0) {
            return None;
        }
        plan.left = plan.left.map(|left| left - 1);
        plan.fault
    }
}

fn address_of(url: &str) -> SocketAddr {
    url.trim_start_matches("http://").parse().unwrap()
}

/// Not on port 0: while a proxy is down its port must not go to anybody else, which happens to
/// those that the kernel hands out. So each proxy of a process has one of its own below their
/// range.
fn listen() -> TcpListener {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let n = u64::from(std::process::id()) * 97 + NEXT.fetch_add(1, Ordering::SeqCst);
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", 10_000 + (n % 20_000) as u16)) {
            return listener;
        }
    }
}

fn accept(listener: TcpListener, address: SocketAddr, state: &Arc<State>) {
    let mut listener = Some(listener);
    while !state.over.load(Ordering::SeqCst) {
        let mut down = locked(&state.down);
        if *down {
            drop(listener.take());
            while *down {
                down = state.changed.wait(down).unwrap_or_else(|poisoned| poisoned.into_inner());
            }
            continue;
        }
        drop(down);
        let Some(open) = &listener else {
            listener = TcpListener::bind(address).ok();
            continue;
        };
        let Ok((client, _)) = open.accept() else { continue };
        let mut connections = locked(&state.open);
        connections.retain(|stream| stream.peer_addr().is_ok());
        if let Ok(copy) = client.try_clone() {
            connections.push(copy);
        }
        drop(connections);
        let state = state.clone();
        let vault = locked(&state.vault).expect("set from the start");
        std::thread::spawn(move || {
            let _ = Connection { client: &client, vault, upstream: None, state: &state }.run();
            // The copy that is kept for the end must not hold it open.
            let _ = client.shutdown(Shutdown::Both);
        });
    }
}

/// An answer as it came from the vault.
struct Answer {
    status_line: Vec<u8>,
    /// Up to the empty line, which is in it.
    headers: Vec<u8>,
    body: Vec<u8>,
}

struct Connection<'a> {
    client: &'a TcpStream,
    vault: SocketAddr,
    upstream: Option<TcpStream>,
    state: &'a State,
}

impl Connection<'_> {
    /// Serves requests until one side ends it.
    fn run(mut self) -> io::Result<()> {
        loop {
            if self.client.peek(&mut [0])? == 0 {
                return Ok(());
            }
            let before = locked(&self.state.plan).fault == Some(Fault::Reset(At::Request));
            if before && self.state.fault("").is_some() {
                self.state.requests.fetch_add(1, Ordering::SeqCst);
                return reset(self.client);
            }
            let (head, body) = read_message(&mut &*self.client)?;
            self.state.requests.fetch_add(1, Ordering::SeqCst);
            let method =
                String::from_utf8_lossy(head.split(|b| *b == b' ').next().unwrap_or(&[])).into_owned();
            match self.state.fault(&method) {
                None => {
                    let answer = self.forward(&head, &body)?;
                    self.give(&answer)?;
                }
                Some(fault) => {
                    if !self.spoil(fault, &head, &body)? {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn forward(&mut self, head: &[u8], body: &[u8]) -> io::Result<Answer> {
        let mut upstream = match self.upstream.take() {
            Some(upstream) => upstream,
            None => TcpStream::connect(self.vault)?,
        };
        self.state.forwarded.fetch_add(1, Ordering::SeqCst);
        upstream.write_all(head)?;
        upstream.write_all(body)?;
        let (head, body) = read_message(&mut upstream)?;
        self.upstream = Some(upstream);
        let end = head.iter().position(|b| *b == b'\n').unwrap_or(0) + 1;
        let (status_line, headers) = head.split_at(end);
        Ok(Answer { status_line: status_line.to_vec(), headers: headers.to_vec(), body })
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let mut client = self.client;
        client.write_all(bytes)
    }

    fn give(&self, answer: &Answer) -> io::Result<()> {
        self.send(&[&answer.status_line[..], &answer.headers, &answer.body].concat())
    }

    /// Waits until the client goes away.
    fn hold(&self) -> io::Result<bool> {
        let mut client = self.client;
        while client.read(&mut [0; 1024])? > 0 {}
        Ok(false)
    }

    /// What was sent last shall have arrived before what follows.
    fn pause() {
        std::thread::sleep(Duration::from_millis(20));
    }

    /// Carries the fault out; true if the connection can go on.
    #[expect(clippy::too_many_lines, reason = "one story, or one table")]
    fn spoil(&mut self, fault: Fault, head: &[u8], body: &[u8]) -> io::Result<bool> {
        match fault {
            Fault::Delay(time) => {
                let answer = self.forward(head, body)?;
                std::thread::sleep(time);
                self.give(&answer)?;
                return Ok(true);
            }
            Fault::Reset(At::Request | At::Answer) => reset(self.client)?,
            Fault::Reset(at) => {
                let answer = self.forward(head, body)?;
                match at {
                    At::StatusLine => self.send(&answer.status_line[..7])?,
                    At::Headers => {
                        let half = &answer.headers[..answer.headers.len() / 2];
                        self.send(&[&answer.status_line[..], half].concat())?;
                    }
                    At::Body => self.half(&answer)?,
                    At::Request | At::Answer | At::Lost => {}
                }
                Self::pause();
                reset(self.client)?;
            }
            Fault::Truncated => {
                let answer = self.forward(head, body)?;
                self.half(&answer)?;
                self.client.shutdown(Shutdown::Write)?;
                return self.hold();
            }
            Fault::TooShort | Fault::TooLong => {
                let mut answer = self.forward(head, body)?;
                let len =
                    if fault == Fault::TooLong { answer.body.len() + 100 } else { answer.body.len() / 2 };
                answer.headers = with_length(&answer.headers, len);
                self.give(&answer)?;
                return self.hold();
            }
            Fault::Garbage => {
                self.send(b"\x16\x03\x01\x02\x00\x01\x00 this is no HTTP\r\n\r\n")?;
                Self::pause();
            }
            Fault::Nonsense => self.page("200 OK", "application/json", "\"\\u12{]}nonsense")?,
            Fault::Html(status) => {
                let page = "<!DOCTYPE html><title>Sign in</title><h1>Sign in to go on</h1>";
                self.page(&format!("{status} Sorry"), "text/html", page)?;
            }
            Fault::Redirect => {
                let to = format!("Location: http://{}/elsewhere\r\nContent-Length: 0\r\n\r\n", self.vault);
                self.send(format!("HTTP/1.1 307 Temporary Redirect\r\n{to}").as_bytes())?;
                return Ok(true);
            }
            Fault::Drip(pause) => {
                let answer = self.forward(head, body)?;
                self.send(&[&answer.status_line[..], &answer.headers].concat())?;
                for byte in &answer.body {
                    self.send(&[*byte])?;
                    std::thread::sleep(pause);
                }
                return Ok(true);
            }
            Fault::Huge | Fault::Endless => return self.endless(fault),
            Fault::Status(status, retry_after) => {
                let retry = match retry_after {
                    0 => String::new(),
                    seconds => format!("Retry-After: {seconds}\r\n"),
                };
                self.send(format!("HTTP/1.1 {status} Sorry\r\n{retry}Content-Length: 0\r\n\r\n").as_bytes())?;
                return Ok(true);
            }
            Fault::BlackHole => return self.hold(),
            Fault::Silence => {
                self.forward(head, body)?;
                return self.hold();
            }
        }
        Ok(false)
    }

    fn half(&self, answer: &Answer) -> io::Result<()> {
        let half = &answer.body[..answer.body.len() / 2];
        self.send(&[&answer.status_line[..], &answer.headers, half].concat())
    }

    fn page(&self, status: &str, kind: &str, text: &str) -> io::Result<()> {
        let len = text.len();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nConnection: close\r\nContent-Length: {len}\r\n\r\n"
        );
        self.send(format!("{head}{text}").as_bytes())?;
        Self::pause();
        Ok(())
    }

    fn endless(&self, fault: Fault) -> io::Result<bool> {
        let chunked = fault == Fault::Endless;
        let how = match chunked {
            true => "Transfer-Encoding: chunked".to_owned(),
            false => format!("Content-Length: {HUGE}"),
        };
        self.send(format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{how}\r\n\r\n").as_bytes())?;
        let block = [b' '; 1 << 16];
        let mut sent = 0;
        while sent < HUGE {
            if chunked {
                self.send(format!("{:x}\r\n", block.len()).as_bytes())?;
            }
            self.send(&block)?;
            if chunked {
                self.send(b"\r\n")?;
            }
            sent += block.len() as u64;
            self.state.endless.fetch_add(block.len() as u64, Ordering::SeqCst);
        }
        Ok(false)
    }
}

/// A message's head, up to the empty line, and its body.
fn read_message(from: &mut impl Read) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let mut head = Vec::new();
    // A byte at a time: what follows the head stays where it is. Heads are short, and this is a
    // test.
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if from.read(&mut byte)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.push(byte[0]);
    }
    let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
    let mut body = vec![0; length.map_or(0, |n| n.trim().parse().unwrap_or(0))];
    from.read_exact(&mut body)?;
    Ok((head, body))
}

fn with_length(headers: &[u8], len: usize) -> Vec<u8> {
    let text = String::from_utf8_lossy(headers);
    let lines = text.split_inclusive("\r\n").map(|line| match line.to_ascii_lowercase() {
        low if low.starts_with("content-length:") => format!("content-length: {len}\r\n"),
        _ => line.to_owned(),
    });
    lines.collect::<String>().into_bytes()
}

/// Ends a connection the hard way.
fn reset(stream: &TcpStream) -> io::Result<()> {
    setsockopt(stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    // With its copy still open only this sends the reset: connecting a stream to nothing.
    // SAFETY: an address of the family AF_UNSPEC is all zeroes, and as long as said.
    let done = unsafe {
        let nowhere: libc::sockaddr = std::mem::zeroed();
        let len = size_of::<libc::sockaddr>() as libc::socklen_t;
        libc::connect(std::os::fd::AsRawFd::as_raw_fd(stream), &nowhere, len)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
