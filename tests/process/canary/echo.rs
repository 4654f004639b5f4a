//! A vault gone wrong: it lists objects that can be asked for, and answers in every broken way
//! there is, each repeating the key it was sent, the value it was sent, and the one it pretends to
//! hold.
//!
//! `getN` breaks when it is read, `putN` when it is written; N is the way.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The server; its threads end with the test's process.
pub struct Echo {
    pub url: String,
    /// How many broken ways there are.
    pub cases: usize,
    hits: Arc<AtomicUsize>,
}

impl Echo {
    pub fn start(value: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let hits = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&hits);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (value, counter) = (value.clone(), Arc::clone(&counter));
                std::thread::spawn(move || serve(stream.unwrap(), &value, &counter));
            }
        });
        Self { url, cases: broken("", "").len(), hits }
    }

    /// Broken answers given.
    pub fn hits(&self) -> usize {
        self.hits.load(Ordering::Relaxed)
    }
}

struct Request {
    head: String,
    body: String,
    key: String,
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let header = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    };
    let mut body = vec![0; header("content-length").map_or(0, |n| n.parse().unwrap())];
    reader.read_exact(&mut body).ok()?;
    let key = header("authorization").unwrap_or_default().replace("Bearer ", "");
    Some(Request { body: String::from_utf8(body).unwrap(), key, head })
}

fn serve(mut stream: TcpStream, value: &str, hits: &AtomicUsize) {
    // One request a connection: most of the answers leave it unusable.
    let Some(request) = read(&stream) else { return };
    let line = request.head.lines().next().unwrap_or_default();
    let number = |kind: &str| -> Option<usize> {
        // The first place where a number follows: paths and methods hold the words, too.
        let text = format!("{line} {}", request.body);
        text.match_indices(kind).find_map(|(at, _)| {
            let rest = &text[at + kind.len()..];
            rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())].parse().ok()
        })
    };
    let lists = line.contains("/object/list");
    let case = match (number("get"), number("put")) {
        _ if lists => None,
        (Some(case), None) => Some((case, value)),
        (_, put) => put.filter(|_| !line.starts_with("GET")).map(|case| (case, &*request.body)),
    };
    let answer = match case {
        Some((case, sent)) => {
            hits.fetch_add(1, Ordering::Relaxed);
            broken(sent, &request.key)[case].clone()
        }
        None if lists => json(200, "", &list()),
        None => json(200, "", &object(number("put").unwrap_or(0), "\"value\":\"\"")),
    };
    let _ = stream.write_all(answer.as_bytes());
}

fn list() -> String {
    let names = (0..broken("", "").len()).flat_map(|n| [format!("get{n}"), format!("put{n}")]);
    let time = "2024-01-15T10:30:00.000Z";
    let objects = names.map(|name| {
        format!(
            r#"{{"id":"id_{name}_","name":"{name}","version":1,"created_at":"{time}","updated_at":"{time}"}}"#
        )
    });
    let objects: Vec<String> = objects.collect();
    format!(r#"{{"data":[{}],"list_metadata":{{"before":null,"after":null}}}}"#, objects.join(","))
}

fn object(number: usize, data: &str) -> String {
    format!(r#"{{"id":"id_put{number}_","name":"put{number}","version":1,"data":{{{data}}}}}"#)
}

fn json(status: u16, headers: &str, body: &str) -> String {
    let len = body.len();
    format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nConnection: close\r\n{headers}Content-Length: {len}\r\n\r\n{body}"
    )
}

/// Every way to be wrong, repeating `sent` and `key`.
fn broken(sent: &str, key: &str) -> Vec<String> {
    let quoted = serde_json::Value::from(format!("{sent} {key}")).to_string();
    let line: String = format!("{sent} {key}").chars().filter(char::is_ascii_graphic).collect();
    let said = format!(r#"{{"error":{quoted},"code":{quoted},"message":{quoted}}}"#);
    let with = |data: &str| json(200, "", &format!(r#"{{"id":"x","name":"y","version":1,"data":{data}}}"#));
    let mut answers: Vec<String> = [400, 401, 403, 404, 405, 409, 413, 418, 422, 500, 503]
        .map(|status| json(status, "", &said))
        .to_vec();
    answers.extend([
        // No JSON, or other JSON than there should be.
        json(200, "", sent),
        json(200, "", &quoted),
        json(200, "", &format!("{{{quoted}:{quoted}")),
        json(200, "", &format!(r#"{{"id":[{quoted}],"name":{quoted},"version":1}}"#)),
        json(200, "", &format!(r#"{{"id":"x","version":{{"n":{quoted}}},"data":{quoted}}}"#)),
        json(404, "", sent),
        with(&quoted),
        with(&format!(r#"{{"value":{quoted},"value":{quoted}}}"#)),
        with(&format!(r#"{{{quoted}:{}1{}}}"#, "[".repeat(200), "]".repeat(200))),
        with(&format!(r#"{{"value":{quoted},"encoding":"base64","encoding":{quoted}}}"#)),
        // In headers.
        json(302, &format!("Location: http://127.0.0.1:1/{line}\r\n"), ""),
        json(500, &format!("X-Request-ID: {line}\r\n"), &said),
        json(400, &format!("X-Request-ID: {key}\r\n"), &said),
        json(400, &format!("X-Request-ID: Bearer:{key}\r\nX-Error: {line}\r\n"), "{}"),
        json(429, &format!("Retry-After: {line}\r\nX-RateLimit-Limit: {line}\r\n"), &said),
        // No HTTP.
        format!("{line}\r\n\r\n"),
        format!("HTTP/1.1 200 {line}\r\n{line}\r\n\r\n{sent}"),
        format!("HTTP/1.1 {line} X\r\n\r\n"),
        format!("HTTP/1.1 200 X\r\nContent-Length: {line}\r\n\r\n{sent}"),
        format!("HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n{line}\r\n{sent}"),
        format!("HTTP/1.1 200 X\r\nContent-Length: 5000\r\n\r\n{sent}"),
        format!("HTTP/1.1 400 X\r\nContent-Encoding: {line}\r\nContent-Length: {}\r\n\r\n{sent}", sent.len()),
        String::new(),
    ]);
    answers
}
