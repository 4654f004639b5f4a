//! `vaultfs serve` while others hold connections and bodies: what an authorised client waits, and
//! what memory it takes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::Plan;
use crate::measure::{Spread, quantile};
use crate::mount::{Place, run, wait};
use crate::report::Report;

/// Connections that say nothing.
const SILENT: usize = 2000;
/// Bodies that begin and do not go on.
const STALLED: usize = 100;
/// What such a body says that it has. The server takes values of 8 MiB and their JSON.
const BODY: usize = 8 << 20;
/// Most memory that the server may have taken at any time.
const MEMORY: u64 = 128 << 20;
/// Each so many requests the client connects anew.
const ON_ONE_CONNECTION: usize = 10;

/// The server as a process of its own; killed when dropped.
struct Served {
    child: Child,
    address: String,
    key: String,
    writer: String,
}

impl Served {
    fn start(place: &Place) -> Result<Self, String> {
        let data = place.path("data").display().to_string();
        let mut command = place.vaultfs();
        command.args(["serve", "--rate-limit", "0", "--listen", "127.0.0.1:0", "--data", &data]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut served = Self {
            child: child.map_err(|e| e.to_string())?,
            address: String::new(),
            key: String::new(),
            writer: String::new(),
        };
        let said = served.child.stdout.take().ok_or("no pipe from the server")?;
        let mut url = String::new();
        BufReader::new(said).read_line(&mut url).map_err(|e| e.to_string())?;
        served.address = url.trim().strip_prefix("http://").ok_or("the server does not serve")?.to_owned();
        let key = std::fs::read_to_string(place.path("data").join("api-key"));
        served.key = key.map_err(|e| e.to_string())?.trim().to_owned();
        let add = ["serve", "--data", &data, "key", "add", "--permissions", "write"];
        served.writer = run(place.vaultfs().args(add))?.trim().to_owned();
        Ok(served)
    }

    fn head(&self, method_and_path: &str, key: &str, length: usize) -> String {
        format!(
            "{method_and_path} HTTP/1.1\r\nHost: vault\r\nAuthorization: Bearer {key}\r\nContent-Length: {length}\r\n\r\n"
        )
    }

    /// The most memory that it has had resident.
    fn most_memory(&self) -> Result<u64, String> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.map_err(|e| e.to_string())?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib: Option<u64> = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
        kib.map(|kib| kib * 1024).ok_or_else(|| "the server has ended".to_owned())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An authorised client, on one connection for some requests.
struct Client<'a> {
    served: &'a Served,
    line: Option<BufReader<TcpStream>>,
}

impl Client<'_> {
    fn ask(&mut self, head: &str, body: &str) -> std::io::Result<()> {
        let mut line = match self.line.take() {
            Some(line) => line,
            None => {
                let stream = TcpStream::connect(&self.served.address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(Duration::from_secs(60)))?;
                BufReader::new(stream)
            }
        };
        line.get_mut().write_all([head, body].concat().as_bytes())?;
        let (mut length, mut first, mut text) = (0, true, String::new());
        loop {
            text.clear();
            line.read_line(&mut text)?;
            if first && !text.starts_with("HTTP/1.1 200 ") {
                return Err(std::io::Error::other(format!("answered {text:?}")));
            }
            first = false;
            let lower = text.trim().to_ascii_lowercase();
            if lower.is_empty() {
                break;
            }
            if let Some(told) = lower.strip_prefix("content-length:") {
                length = told.trim().parse().map_err(std::io::Error::other)?;
            }
        }
        line.read_exact(&mut vec![0; length])?;
        self.line = Some(line);
        Ok(())
    }

    /// The time under which 99 of 100 requests stay.
    fn p99(&mut self, requests: usize) -> Result<f64, String> {
        let mut times = Vec::new();
        for n in 0..requests {
            if n % ON_ONE_CONNECTION == 0 {
                self.line = None;
            }
            let path = format!("GET /vault/object/get-by-name?name=key-{}", n % 100);
            let begun = Instant::now();
            self.ask(&self.served.head(&path, &self.served.key, 0), "").map_err(|e| e.to_string())?;
            times.push(begun.elapsed().as_secs_f64());
        }
        Ok(quantile(&mut times, 0.99))
    }
}

/// Connections that are opened again when the server ends them.
struct Crowd<'a> {
    address: &'a str,
    head: String,
    /// How much of a body each has sent.
    streams: Vec<(TcpStream, usize)>,
    size: usize,
}

impl Crowd<'_> {
    fn press(&mut self) {
        let mut buffer = [0; 4096];
        self.streams.retain_mut(|(stream, _)| match stream.read(&mut buffer) {
            Ok(n) => n > 0,
            Err(e) => e.kind() == std::io::ErrorKind::WouldBlock,
        });
        while self.streams.len() < self.size {
            let Ok(mut stream) = TcpStream::connect(self.address) else { return };
            if stream.set_nonblocking(true).is_ok() && stream.write_all(self.head.as_bytes()).is_ok() {
                self.streams.push((stream, 0));
            }
        }
        if self.head.is_empty() {
            return;
        }
        let part = [b'x'; 65536];
        for (stream, sent) in &mut self.streams {
            while let Ok(n) = stream.write(&part[..part.len().min(BODY - 1 - *sent)]) {
                *sent += n;
                if n == 0 {
                    break;
                }
            }
        }
    }
}

/// Measures the client while the crowds press.
fn besieged(served: &Served, client: &mut Client<'_>, requests: usize) -> Result<f64, String> {
    let (over, waves) = (AtomicBool::new(false), AtomicUsize::new(0));
    let crowd = |head: String, size| Crowd { address: &served.address, head, streams: Vec::new(), size };
    let post = served.head("POST /vault/object/create", &served.writer, BODY);
    std::thread::scope(|scope| {
        for mut crowd in [crowd(String::new(), SILENT), crowd(post, STALLED)] {
            let (over, waves) = (&over, &waves);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    crowd.press();
                    waves.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_secs(1));
                }
            });
        }
        let there = wait("all are there", || (waves.load(Ordering::Relaxed) >= 4).then_some(()));
        let measured = there.and_then(|()| client.p99(requests));
        over.store(true, Ordering::Relaxed);
        measured
    })
}

pub fn all(plan: &Plan, report: &mut Report) -> Result<(), String> {
    vaultfs::sys::hardening::raise_descriptors();
    let place = Place::new()?;
    let served = Served::start(&place)?;
    let mut client = Client { served: &served, line: None };
    for n in 0..100 {
        let body = format!(r#"{{"name":"key-{n}","data":{{"value":"{}"}}}}"#, "v".repeat(100));
        let head = served.head("POST /vault/object/create", &served.key, body.len());
        client.ask(&head, &body).map_err(|e| e.to_string())?;
    }
    let requests = if plan.quick { 2000 } else { 5000 };
    client.p99(requests)?;
    let (mut idle, mut pressed, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        let (alone, among) = (client.p99(requests)?, besieged(&served, &mut client, requests)?);
        idle.push(alone);
        pressed.push(among);
        ratios.push(among / alone);
    }
    let what =
        format!("p99 of a GET by name beside {SILENT} silent connections and {STALLED} stalled bodies");
    report.at_most("siege", format!("{what}, against its p99 alone"), 5.0, &Spread::of(ratios));
    report.told("the same, p99", Spread::of(pressed).millis());
    report.told("the same alone, p99", Spread::of(idle).millis());
    let memory = served.most_memory()?;
    report.row(
        "siege-memory",
        "most resident memory of the server meanwhile",
        "≤ 128 MiB",
        (format!("{:.1} MiB", memory as f64 / f64::from(1 << 20)), format!("{} rounds", plan.rounds)),
        memory <= MEMORY,
    );
    Ok(())
}
