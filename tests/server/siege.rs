//! The built server in bad circumstances: a full disk, connections that say nothing, bodies that
//! stall.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::support::vault_server::served::Served;

fn client() -> Client {
    // Another test of this process may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().no_proxy().timeout(Duration::from_secs(20)).build().unwrap()
}

struct Api {
    client: Client,
    url: String,
    key: String,
}

impl Api {
    fn of(served: &Served) -> Self {
        Self::with_key(served, &served.key)
    }

    fn with_key(served: &Served, key: &str) -> Self {
        Self { client: client(), url: served.url.clone(), key: key.to_owned() }
    }

    async fn create(&self, name: &str, value: &str) -> StatusCode {
        let body = json!({"name": name, "data": {"value": value}}).to_string();
        let request = self.client.post(format!("{}/vault/object/create", self.url)).bearer_auth(&self.key);
        request.body(body).send().await.unwrap().status()
    }

    async fn delete(&self, id: &str) -> StatusCode {
        let request = self.client.delete(format!("{}/vault/object/delete", self.url)).bearer_auth(&self.key);
        request.body(json!({"id": id}).to_string()).send().await.unwrap().status()
    }

    async fn get(&self, name: &str) -> (StatusCode, Value) {
        let url = format!("{}/vault/object/get-by-name?name={name}", self.url);
        let response = self.client.get(url).bearer_auth(&self.key).send().await.unwrap();
        (response.status(), serde_json::from_str(&response.text().await.unwrap()).unwrap())
    }
}

/// A small disk, gone with the test.
struct Disk<'a>(&'a Path);

impl<'a> Disk<'a> {
    fn of_4_mib(at: &'a Path) -> Self {
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", "size=4m,mode=700", "none"]).arg(at).status().unwrap();
        assert!(mounted.success());
        Self(at)
    }

    fn fill(&self) {
        let mut filler = fs::File::create(self.filler()).unwrap();
        while filler.write_all(&[0; 4096]).is_ok() {}
    }

    fn filler(&self) -> std::path::PathBuf {
        self.0.join("lost+found")
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

async fn on_a_full_disk(end: i32) {
    crate::support::only_root!("only root can make a small file system");
    let temp = tempfile::tempdir().unwrap();
    let disk = Disk::of_4_mib(temp.path());
    let dir = temp.path().join("vault");
    let mut served = Served::start(&dir);
    assert_eq!(Api::of(&served).create("old", "kept").await, StatusCode::OK);
    served.signal(end);
    served.wait();
    disk.fill();

    let served = Served::start(&dir);
    let api = Api::of(&served);
    let (status, object) = api.get("old").await;
    assert_eq!((status, &object["data"]["value"]), (StatusCode::OK, &json!("kept")));
    // Readers do not wait for one another, or for changes that are refused.
    let long = "x".repeat(60_000);
    let (refused, read) = tokio::join!(api.create("new", &long), api.get("old"));
    assert_eq!((refused, read.0), (StatusCode::INSUFFICIENT_STORAGE, StatusCode::OK));
    assert_eq!(api.get("new").await.0, StatusCode::NOT_FOUND);

    fs::remove_file(disk.filler()).unwrap();
    assert_eq!(api.create("new", &long).await, StatusCode::OK);
    for n in 0..5 {
        assert_eq!(api.create(&format!("more{n}"), "value").await, StatusCode::OK);
        let (status, object) = api.get("new").await;
        assert_eq!((status, &object["data"]["value"]), (StatusCode::OK, &json!(long)));
    }
    // It is a server like any other again: a command beside it finds the database open.
    let mut list = Command::new(env!("CARGO_BIN_EXE_vaultfs"));
    let list =
        list.args(["serve", "--data"]).arg(&dir).args(["key", "list"]).stdin(Stdio::null()).output().unwrap();
    assert!(list.status.success(), "{}", String::from_utf8_lossy(&list.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disk_a_server_starts_and_reads_and_stores_when_there_is_room() {
    on_a_full_disk(libc::SIGTERM).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disk_a_server_starts_after_a_death_and_has_what_was_acknowledged() {
    on_a_full_disk(libc::SIGKILL).await;
}

/// Whether a file of the vault holds `text`.
fn is_on_disk(dir: &Path, text: &str) -> bool {
    let files = fs::read_dir(dir).unwrap().flatten().filter_map(|file| fs::read(file.path()).ok());
    files.into_iter().any(|bytes| bytes.windows(text.len()).any(|window| window == text.as_bytes()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_secret_leaves_every_file_of_the_vault() {
    let temp = tempfile::tempdir().unwrap();
    let mut served = Served::start(temp.path());
    // Names are plain text; the sealed value goes with the row.
    for (name, end) in [("deleted-and-served-on", None), ("deleted-and-killed", Some(libc::SIGKILL))] {
        let api = Api::of(&served);
        assert_eq!(api.create(name, "value").await, StatusCode::OK);
        assert!(is_on_disk(temp.path(), name));
        let id = api.get(name).await.1["id"].as_str().unwrap().to_owned();
        assert_eq!(api.delete(&id).await, StatusCode::OK);
        if let Some(signal) = end {
            served.signal(signal);
            served.wait();
            served = Served::start(temp.path());
            assert!(!is_on_disk(temp.path(), name), "it answers already");
        }
        let begun = Instant::now();
        while is_on_disk(temp.path(), name) {
            assert!(begun.elapsed() < Duration::from_secs(30), "{name} is still on the disk");
            // Reads and changes that begin later do not keep it.
            assert_eq!(api.get(name).await.0, StatusCode::NOT_FOUND);
            api.create(&format!("other{:?}", begun.elapsed()), "value").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_was_moved_in_the_database_is_not_opened() {
    let temp = tempfile::tempdir().unwrap();
    let mut served = Served::start(temp.path());
    for name in ["one", "two"] {
        assert_eq!(Api::of(&served).create(name, &format!("value of {name}")).await, StatusCode::OK);
    }
    served.signal(libc::SIGTERM);
    served.wait();
    let database = rusqlite::Connection::open(temp.path().join("vault.db")).unwrap();
    for (column, table, row) in [("sealed", "versions", "object"), ("wrapped_key", "objects", "seq")] {
        let move_it = format!(
            "UPDATE {table} SET {column} = (SELECT {column} FROM {table} WHERE {row} = 2) WHERE {row} = 1"
        );
        assert_eq!(database.execute(&move_it, []).unwrap(), 1);
        let mut served = Served::start(temp.path());
        let (status, answer) = Api::of(&served).get("one").await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR, "{column}: {answer}");
        assert!(!answer.to_string().contains("value of"), "{answer}");
        assert_eq!(Api::of(&served).get("two").await.0, StatusCode::OK);
        served.signal(libc::SIGTERM);
        served.wait();
    }
}

fn address(served: &Served) -> String {
    served.url.strip_prefix("http://").unwrap().to_owned()
}

/// Resident memory of the server, in KiB.
fn memory(served: &Served) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", served.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn key_with(dir: &Path, permissions: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vaultfs"));
    let made = command.args(["serve", "--data"]).arg(dir).args(["key", "add", "--permissions", permissions]);
    let made = made.stdin(Stdio::null()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    String::from_utf8(made.stdout).unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_say_nothing_shut_nobody_out() {
    let temp = tempfile::tempdir().unwrap();
    let log = temp.path().join("log");
    let served = Served::start_logging(&temp.path().join("vault"), fs::File::create(&log).unwrap().into());
    let api = Api::of(&served);
    assert_eq!(api.create("a", "value").await, StatusCode::OK);
    let mut proven = TcpStream::connect(address(&served)).await.unwrap();
    let head =
        format!("GET /vault/object/list HTTP/1.1\r\nHost: v\r\nAuthorization: Bearer {}\r\n\r\n", served.key);
    proven.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 65536];
    assert!(proven.read(&mut answer).await.unwrap() > 0);

    // Some say nothing, some half a head, some bring a key that is not known.
    let mut silent = Vec::new();
    let unknown = "GET /vault/object/list HTTP/1.1\r\nHost: v\r\nAuthorization: Bearer sk_no\r\n\r\n";
    for n in 0..1000 {
        let mut stream = TcpStream::connect(address(&served)).await.unwrap();
        let said = ["", "GET /vault", unknown][n % 3];
        let _ = stream.write_all(said.as_bytes()).await;
        silent.push(stream);
    }
    for n in 0..20 {
        // Each on a connection of its own.
        assert_eq!(Api::of(&served).create(&format!("n{n}"), "value").await, StatusCode::OK);
    }
    proven.write_all(head.as_bytes()).await.unwrap();
    assert!(proven.read(&mut answer).await.unwrap() > 0, "it brought a key");
    let mut local = UnixStream::connect(temp.path().join("vault/vault.sock")).await.unwrap();
    local.write_all(head.as_bytes()).await.unwrap();
    assert!(local.read(&mut answer).await.unwrap() > 0);

    let mut open = 0;
    for stream in &mut silent {
        // What was answered with 401 has that to read first.
        let mut buffer = [0; 4096];
        open += u32::from(loop {
            match stream.try_read(&mut buffer) {
                Ok(n) if n > 0 => {}
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break true,
                _ => break false,
            }
        });
    }
    assert!(open <= 256, "{open} are still open");
    let log = fs::read_to_string(&log).unwrap();
    assert_eq!(log.matches("the oldest are closed").count(), 1, "one line a minute");
}

/// A server that was busy finds a crowd at its port, and requests that were sent long ago in the
/// middle of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_in_a_crowd_from_their_own_address_are_answered() {
    let temp = tempfile::tempdir().unwrap();
    let served = Served::start(temp.path());
    let head =
        format!("GET /vault/object/list HTTP/1.1\r\nHost: v\r\nAuthorization: Bearer {}\r\n\r\n", served.key);
    for crowd in ["", "GET /vault"] {
        served.signal(libc::SIGSTOP);
        let (mut silent, mut asking) = (Vec::new(), Vec::new());
        // No more than the system keeps for a server that does not accept.
        for n in 0..1000 {
            let connect = tokio::time::timeout(Duration::from_secs(30), TcpStream::connect(address(&served)));
            let mut stream = connect.await.expect("the system keeps it").unwrap();
            let asks = n % 10 == 0;
            stream.write_all(if asks { &head } else { crowd }.as_bytes()).await.unwrap();
            if asks { &mut asking } else { &mut silent }.push(stream);
        }
        served.signal(libc::SIGCONT);
        for mut stream in asking {
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_begins_no_request_ends() {
    let temp = tempfile::tempdir().unwrap();
    let served = Served::start(temp.path());
    let mut stream = TcpStream::connect(address(&served)).await.unwrap();
    stream.write_all(b"GET /vault").await.unwrap();
    let begun = Instant::now();
    let ended = tokio::time::timeout(Duration::from_secs(60), stream.read(&mut [0; 4096])).await;
    assert!(ended.is_ok(), "it is still open after {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_stall_hold_little_memory_and_shut_nobody_out() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("vault");
    let served = Served::start(&dir);
    let writer = key_with(&dir, "write");
    let api = Api::of(&served);
    assert_eq!(api.create("a", "value").await, StatusCode::OK);
    let before = memory(&served);
    let size = 8 << 20;
    let part = vec![b'x'; size - 1];
    let mut stalled = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let head = format!(
            "POST /vault/object/create HTTP/1.1\r\nHost: v\r\nAuthorization: Bearer {writer}\r\nContent-Length: {size}\r\n\r\n"
        );
        let (address, part) = (address(&served), part.clone());
        stalled.spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(head.as_bytes()).await.unwrap();
            // As much as it takes; then nothing.
            let _ = tokio::time::timeout(Duration::from_secs(2), stream.write_all(&part)).await;
            stream
        });
    }
    let mut connections = Vec::new();
    while let Some(stream) = stalled.join_next().await {
        connections.push(stream.unwrap());
    }
    let grown = memory(&served).saturating_sub(before) / 1024;
    assert!(grown < 128, "{grown} MiB are held");
    let large = "y".repeat(500_000);
    assert_eq!(api.create("large", &large).await, StatusCode::OK);
    assert_eq!(Api::with_key(&served, &writer).create("small", "value").await, StatusCode::OK);
    // They are told, and their memory is free again.
    let mut answer = String::new();
    let mut first = connections.remove(0);
    let told = tokio::time::timeout(Duration::from_secs(120), first.read_to_string(&mut answer)).await;
    assert!(told.is_ok() && answer.starts_with("HTTP/1.1 408 "), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_nobody_takes_hold_little_memory_and_shut_nobody_out() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("vault");
    let served = Served::start(&dir);
    let reader = key_with(&dir, "read");
    let api = Api::of(&served);
    assert_eq!(api.create("long", &"y".repeat(1_000_000)).await, StatusCode::OK);
    assert_eq!(api.create("short", "value").await, StatusCode::OK);
    let before = memory(&served);
    let head = format!(
        "GET /vault/object/get-by-name?name=long HTTP/1.1\r\nHost: v\r\nAuthorization: Bearer {reader}\r\n\r\n"
    );
    let address = address(&served).parse().unwrap();
    let mut connections = Vec::new();
    // Fewer than may be open before their keys are looked at.
    for _ in 0..200 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        connections.push(stream);
    }
    assert_eq!(api.get("short").await.0, StatusCode::OK, "another key does not wait for them");
    // Each has an answer by then, and takes nothing of it.
    let answered = async {
        let mut given = 0;
        for stream in &connections {
            let mut begun = [0; 12];
            stream.peek(&mut begun).await.unwrap();
            given += usize::from(begun == *b"HTTP/1.1 200");
        }
        given
    };
    let given = tokio::time::timeout(Duration::from_secs(120), answered).await.unwrap();
    assert!((1..50).contains(&given), "{given} long answers are under way");
    let grown = memory(&served).saturating_sub(before) / 1024;
    assert!(grown < 64, "{grown} MiB are held");
    // The connections end, and what they held is free again for the same key.
    let begun = Instant::now();
    while Api::with_key(&served, &reader).get("short").await.0 != StatusCode::OK {
        assert!(begun.elapsed() < Duration::from_secs(120), "the key cannot read any more");
    }
    drop(connections);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_from_one_address_ends_no_connection_from_another() {
    let temp = tempfile::tempdir().unwrap();
    let served = Served::start(temp.path());
    let mut far = TcpStream::connect(address(&served)).await.unwrap();
    let mut crowd = Vec::new();
    for _ in 0..1000 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        crowd.push(socket.connect(address(&served).parse().unwrap()).await.unwrap());
    }
    let head =
        format!("GET /vault/object/list HTTP/1.1\r\nHost: v\r\nAuthorization: Bearer {}\r\n\r\n", served.key);
    far.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    far.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_names_the_client_behind_a_trusted_proxy_only() {
    for (trusted, expected, lines) in [
        ("127.0.0.0/8", "203.0.113.9", &["6.6.6.6, 203.0.113.9"][..]),
        ("127.0.0.0/8", "203.0.113.9", &["6.6.6.6", "203.0.113.9"]),
        ("10.0.0.0/8", "127.0.0.1", &["6.6.6.6, 203.0.113.9"]),
    ] {
        let temp = tempfile::tempdir().unwrap();
        let log = temp.path().join("log");
        let options = ["--listen", "127.0.0.1:0", "--trusted-proxy", trusted];
        let file = fs::File::create(&log).unwrap();
        let served = Served::start_with(&temp.path().join("vault"), file.into(), &options);
        let mut request = client().get(format!("{}/vault/object/list", served.url)).bearer_auth(&served.key);
        for line in lines {
            request = request.header("X-Forwarded-For", *line);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let line = |log: &str| log.lines().any(|line| line.contains("answered") && line.contains(expected));
        assert!(line(&fs::read_to_string(&log).unwrap()), "{}", fs::read_to_string(&log).unwrap());
    }
}

/// An ordinary user.
const OTHER: u32 = 65534;

fn vaultfs(args: &[&str], uid: u32) -> std::process::Output {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(env!("CARGO_BIN_EXE_vaultfs"));
    for name in ["WORKOS_API_KEY", "WORKOS_API_URL", "CREDENTIALS_DIRECTORY", "XDG_RUNTIME_DIR"] {
        command.env_remove(name);
    }
    command.args(args).uid(uid).gid(uid).stdin(Stdio::null()).output().unwrap()
}

/// A server of another user's that writes down what it is sent.
struct Thief {
    child: std::process::Child,
    url: String,
}

impl Thief {
    fn start(out: &Path, host: &str) -> Self {
        use std::io::BufRead;
        use std::os::unix::process::CommandExt;
        let script = "import socket, sys\n\
                      family = socket.AF_INET6 if ':' in sys.argv[2] else socket.AF_INET\n\
                      s = socket.create_server((sys.argv[2], 0), family=family)\n\
                      print(s.getsockname()[1], flush=True)\n\
                      while True:\n  c, _ = s.accept(); c.settimeout(2)\n  try: data = c.recv(65536)\n  except OSError: data = b''\n  \
                      open(sys.argv[1], 'ab').write(data); c.close()\n";
        let mut command = Command::new("python3");
        command.args(["-c", script]).arg(out).arg(host).uid(OTHER).gid(OTHER);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut port = String::new();
        std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        Self { child, url: format!("http://{host}:{}", port.trim()) }
    }
}

impl Drop for Thief {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_port_that_another_user_has_taken_does_not_get_the_key() {
    crate::support::only_root!("only root can act as another user");
    let temp = tempfile::tempdir().unwrap();
    let (key, mnt) = (temp.path().join("key"), temp.path().join("mnt"));
    fs::write(&key, "sk_the_key_of_root_for_a_test").unwrap();
    fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    fs::create_dir(&mnt).unwrap();
    fs::set_permissions(temp.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let stolen = temp.path().join("stolen");
    fs::write(&stolen, "").unwrap();
    std::os::unix::fs::chown(&stolen, Some(OTHER), None).unwrap();
    for host in ["127.0.0.1", "0.0.0.0", "::1"] {
        let thief = Thief::start(&stolen, host);
        let url = thief.url.replace("0.0.0.0", "127.0.0.1");
        let with_key = ["--api-url", &url, "--timeout", "2s", "--api-key-file", key.to_str().unwrap()];
        let mount = [&["mount"], &with_key[..], &[mnt.to_str().unwrap()]].concat();
        let get = [&["get", "name"], &with_key[..]].concat();
        for args in [&mount, &get] {
            let refused = vaultfs(args, 0);
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert_eq!(refused.status.code(), Some(4), "{said}");
            assert!(said.contains("belongs to user 65534") && said.contains("--api-uid"), "{said}");
            assert_eq!(fs::read_to_string(&stolen).unwrap(), "", "{host}");
        }
    }
    let thief = Thief::start(&stolen, "127.0.0.1");
    let trusting =
        ["get", "name", "--timeout", "2s", "--api-uid", "65534", "--api-url", &thief.url, "--api-key-file"];
    vaultfs(&[&trusting[..], &[key.to_str().unwrap()]].concat(), 0);
    assert!(fs::read_to_string(&stolen).unwrap().contains("sk_the_key_of_root"), "it was told to");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_socket_lets_other_users_in_and_the_key_decides() {
    crate::support::only_root!("only root can act as another user");
    let temp = tempfile::tempdir().unwrap();
    fs::set_permissions(temp.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (dir, socket, key) =
        (temp.path().join("vault"), temp.path().join("shared.sock"), temp.path().join("key"));
    let shared = ["--listen", "127.0.0.1:0", "--socket", socket.to_str().unwrap()];
    let mut served =
        Served::start_with(&dir, Stdio::null(), &[&shared[..], &["--socket-group", "65534"]].concat());
    assert_eq!(Api::of(&served).create("name", "value").await, StatusCode::OK);
    fs::write(&key, key_with(&dir, "read")).unwrap();
    fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&key, Some(OTHER), Some(OTHER)).unwrap();
    let url = format!("unix:{}", socket.display());
    let with_key = ["--api-url", &url, "--api-key-file", key.to_str().unwrap()];
    let got = vaultfs(&[&["get", "name"], &with_key[..]].concat(), OTHER);
    assert_eq!(String::from_utf8_lossy(&got.stdout), "value", "{}", String::from_utf8_lossy(&got.stderr));
    assert_eq!(
        vaultfs(&[&["rm", "name"], &with_key[..]].concat(), OTHER).status.code(),
        Some(3),
        "it may only read"
    );
    // Of another group.
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", "65534", "--regid", "12345", "--clear-groups"])
        .arg(env!("CARGO_BIN_EXE_vaultfs"));
    let refused = command.args(["get", "name", "--timeout", "2s"]).args(with_key).output().unwrap();
    assert_eq!(refused.status.code(), Some(4), "{}", String::from_utf8_lossy(&refused.stderr));
    // One whose server was killed is replaced, one in use is not.
    served.signal(libc::SIGKILL);
    served.wait();
    let served = Served::start_with(&dir, Stdio::null(), &shared);
    let got = vaultfs(&[&["get", "name"], &with_key[..]].concat(), OTHER);
    assert_eq!(String::from_utf8_lossy(&got.stdout), "value");
    let second = temp.path().join("second");
    let mut other = Command::new(env!("CARGO_BIN_EXE_vaultfs"));
    let other = other.args(["serve", "--data"]).arg(&second).args(shared).output().unwrap();
    assert!(String::from_utf8_lossy(&other.stderr).contains("something is there already"));
    served.signal(libc::SIGTERM);
    let mut served = served;
    served.wait();
    assert!(!socket.exists());
}
