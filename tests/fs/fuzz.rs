//! Whatever the kernel asks, the vault answers or a predecessor has left: no panic, and an answer
//! to each request.
//!
//! The requests are bytes, as they come from /dev/fuse, and go through fuser's decoder into the
//! adapter: a session whose device is a socket ([`session`]). The kernel is believed in the form of
//! what it sends (a WRITE has as many bytes as it says, nanoseconds are less than a second); every
//! number, name and length in it is made up.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use proptest::prelude::*;
use tokio::runtime::Runtime;

use vaultfs::clock::SystemClock;
use vaultfs::daemon::state_log;
use vaultfs::fs::{Journal, MemoryJournal, Options, Record, Value};
use vaultfs::fuse::adapter::Adapter;
use vaultfs::fuse::session;
use vaultfs::secret::{SecretBytes, SecretString};
use vaultfs::sys::fuse_device::Init;
use vaultfs::vault::client::api_key::ApiKey;
use vaultfs::vault::client::kv::KvVault;
use vaultfs::vault::client::object::ObjectVault;
use vaultfs::vault::client::retry::Policy;
use vaultfs::vault::client::{HttpConfig, Target};
use vaultfs::vault::testing::memory::{MemoryVault, OBJECT_CAPABILITIES};
use vaultfs::vault::{Call, Content, DynVault, ObjectName, Vault};

use super::ten_minutes::for_ten_minutes;
use crate::shell::file_system;
use crate::support::canned::{Canned, CannedServer};

/// What each request has behind its header: `4` and `8` are numbers of so many bytes, `t` seconds,
/// `u` nanoseconds, `i` an inode, `f` a handle, `n` a name, `S` the length of the data at the end
/// (`D`), `C` a count of pairs (`P`).
const LAYOUTS: &[(u32, &str)] = &[
    (1, "n"),
    (2, "8"),
    (3, "44f"),
    (4, "V4f88tttuuu44444"),
    (5, ""),
    (6, "nn"),
    (8, "4444n"),
    (9, "44n"),
    (10, "n"),
    (11, "n"),
    (12, "inn"),
    (13, "in"),
    (14, "44"),
    (15, "f844844"),
    (16, "f8S4844D"),
    (17, ""),
    (18, "f448"),
    (20, "f44"),
    (21, "S4nD"),
    (22, "44n"),
    (23, "44"),
    (24, "n"),
    (25, "f448"),
    (26, "444444444444"),
    (27, "44"),
    (28, "f844844"),
    (29, "f448"),
    (30, "f44"),
    (31, "f8884444"),
    (32, "f8884444"),
    (33, "f8884444"),
    (34, "44"),
    (35, "4444n"),
    (36, "8"),
    (37, "844"),
    (39, "f448S4D"),
    (40, "f844"),
    (42, "C4P"),
    (43, "f8844"),
    (44, "f844844"),
    (45, "i44nn"),
    (46, "f844"),
    (47, "f8if888"),
    (50, "88"),
    (4096, ""),
];

/// What is answered within a second where the machine has nothing else to do, milliseconds.
const PATIENCE: u16 = 60_000;

/// FORGET, NOTIFY_REPLY, BATCH_FORGET.
const UNANSWERED: [u32; 3] = [2, 41, 42];
const FORGETS: [u32; 2] = [2, 42];

/// One request; which fields of it are used depends on its layout.
#[derive(Debug, Clone)]
struct Ask {
    layout: usize,
    node: u64,
    numbers: Vec<u64>,
    names: Vec<Vec<u8>>,
    data: Vec<u8>,
    pid: u32,
    /// It is sent again, as after the death of a worker.
    again: bool,
    /// The kernel's message is shorter, where that is a matter of form for fuser.
    cut: Option<prop::sample::Index>,
}

/// Numbers around everything that is a limit somewhere. Small ones stand for inodes and handles
/// that were given out.
fn number() -> impl Strategy<Value = u64> {
    let edges =
        [0, 1, i32::MAX as u64, u64::from(u32::MAX), 1 << 20, i64::MAX as u64, i64::MIN as u64, u64::MAX];
    prop_oneof![
        6 => 0..8u64,
        2 => prop::sample::select(edges.to_vec()),
        1 => prop::sample::select(edges.to_vec()).prop_flat_map(|edge| (0..3u64).prop_map(move |n| edge.wrapping_sub(n))),
        1 => any::<u64>(),
        1 => 0..200_000u64,
    ]
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let known = [
        "a",
        "d",
        "e",
        "x",
        "y",
        ".self",
        "%2E",
        "a~",
        ".a.swp",
        ".versions",
        ".vaultfs",
        "1",
        "a%2Fb",
        ".%2E0",
    ];
    prop_oneof![
        6 => prop::sample::select(known.to_vec()).prop_map(|name| name.as_bytes().to_vec()),
        1 => prop::collection::vec(1..=255u8, 1..300),
        1 => any::<String>().prop_map(String::into_bytes),
    ]
    .prop_map(|name| name.into_iter().filter(|byte| ![0, b'/'].contains(byte)).take(1023).collect())
}

fn ask() -> impl Strategy<Value = Ask> {
    let data = prop_oneof![
        3 => prop::collection::vec(any::<u8>(), 0..40),
        1 => (0..20_000usize).prop_map(|len| vec![b'x'; len]),
    ];
    let pid = prop_oneof![Just(0), Just(std::process::id()), any::<u32>()];
    (
        (
            0..LAYOUTS.len(),
            number(),
            prop::collection::vec(number(), 20),
            prop::collection::vec(name(), 2),
            data,
        ),
        (pid, prop::bool::weighted(0.05), prop::option::weighted(0.05, any::<prop::sample::Index>())),
    )
        .prop_map(|((layout, node, numbers, names, data), (pid, again, cut))| Ask {
            layout,
            node,
            numbers,
            names,
            data,
            pid,
            again,
            cut,
        })
}

fn asks() -> impl Strategy<Value = Vec<Ask>> {
    prop::collection::vec(ask(), 1..40)
}

impl Ask {
    fn opcode(&self) -> u32 {
        LAYOUTS[self.layout].0
    }

    /// The message; `inodes` and `handles` are those that were given out.
    fn bytes(&self, unique: u64, inodes: &[u64], handles: &[u64]) -> Vec<u8> {
        let (opcode, layout) = LAYOUTS[self.layout];
        let known = |number: u64, of: &[u64]| of.get(number as usize).copied().unwrap_or(number);
        let (mut numbers, mut names) = (self.numbers.iter().cycle(), self.names.iter().cycle());
        let mut body = Vec::new();
        for field in layout.chars() {
            let number = *numbers.next().unwrap();
            match field {
                // Which times are set, and whether to now, is left to chance; what is on in the
                // rest is small.
                'V' => body.extend((number as u32 | 1 << (number % 11)).to_ne_bytes()),
                '4' => body.extend((number as u32).to_ne_bytes()),
                '8' => body.extend(number.to_ne_bytes()),
                // A time in the least second of all is cut to its beginning by the kernel.
                't' => body.extend((number | u64::from(number == 1 << 63)).to_ne_bytes()),
                'u' => body.extend((number as u32 % 1_000_000_000).to_ne_bytes()),
                'i' => body.extend(known(number, inodes).to_ne_bytes()),
                'f' => body.extend(known(number, handles).to_ne_bytes()),
                'S' => body.extend((self.data.len() as u32).to_ne_bytes()),
                'D' => body.extend(&self.data),
                'C' => body.extend((number as u32 % 5).to_ne_bytes()),
                'P' => {
                    for _ in 0..self.numbers[0] as u32 % 5 {
                        body.extend(known(*numbers.next().unwrap(), inodes).to_ne_bytes());
                        body.extend(numbers.next().unwrap().to_ne_bytes());
                    }
                }
                'n' => {
                    body.extend(names.next().unwrap());
                    body.push(0);
                }
                _ => unreachable!("no such field"),
            }
        }
        if let Some(cut) = self.cut
            && !layout.contains(['S', 'P'])
        {
            body.truncate(cut.index(body.len() + 1));
        }
        // The root is forgotten by nobody.
        let node = known(self.node, inodes);
        let mut bytes = Vec::new();
        bytes.extend((40 + body.len() as u32).to_ne_bytes());
        bytes.extend(opcode.to_ne_bytes());
        bytes.extend((unique | u64::from(self.again) << 63).to_ne_bytes());
        bytes.extend(node.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(self.pid.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(body);
        bytes
    }
}

/// Panics on threads of sessions and of these tests' runtimes, since the start of the process.
static PANICS: AtomicUsize = AtomicUsize::new(0);
/// How these threads are called.
const THREADS: &str = "made-up-mount";

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let thread = std::thread::current();
            if thread.name().is_some_and(|name| name.starts_with("fuser-") || name == THREADS) {
                PANICS.fetch_add(1, Ordering::SeqCst);
            }
            before(panic);
        }));
    });
}

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).thread_name(THREADS).enable_all().build().unwrap()
}

fn options(kind: u8) -> Options {
    Options {
        timeout: Duration::from_millis(400),
        max_size: 100_000,
        show_versions: true,
        read_only: kind % 8 == 1,
        in_place: kind % 4 == 2,
        ..Options::default()
    }
}

fn init() -> Init {
    let mut bytes = Vec::new();
    for word in [104u32, 26, 1, 0, 0, 0, 0, 0, 0, 0, 7, 45, 131_072, u32::MAX, u32::MAX >> 1] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.resize(104, 0);
    Init::from_bytes(bytes).unwrap()
}

/// A mount whose kernel is this test.
struct Mounted {
    device: File,
    session: Option<std::thread::JoinHandle<std::io::Result<()>>>,
    unique: u64,
    inodes: Vec<u64>,
    handles: Vec<u64>,
}

impl Mounted {
    fn of(runtime: &Runtime, vault: DynVault, journal: Arc<dyn Journal>, kind: u8) -> Self {
        count_panics();
        let _inside = runtime.enter();
        let fs = file_system(vault, options(kind), Arc::new(SystemClock), journal);
        let adapter = Adapter::new(fs, runtime.handle().clone());
        let (session, _) = session::shake_hands(adapter, &init()).unwrap();
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        session::attach(&session, theirs).unwrap();
        let session = Some(std::thread::spawn(move || session.run()));
        Self { device: File::from(ours), session, unique: 1, inodes: vec![1], handles: Vec::new() }
    }

    /// Sends it, and waits for the answer that it has to have.
    fn ask(&mut self, ask: &Ask) -> Result<(), TestCaseError> {
        self.unique += 1;
        if FORGETS.contains(&ask.opcode()) && ask.node == 0 {
            return Ok(());
        }
        self.device.write_all(&ask.bytes(self.unique, &self.inodes, &self.handles)).unwrap();
        if UNANSWERED.contains(&ask.opcode()) {
            return Ok(());
        }
        let mut answer = vec![0; 1 << 20];
        loop {
            let mut ready = [PollFd::new(self.device.as_fd(), PollFlags::POLLIN)];
            poll(&mut ready, PollTimeout::from(PATIENCE)).unwrap();
            prop_assert_eq!(ready[0].any(), Some(true), "no answer to {:?}", ask);
            let len = self.device.read(&mut answer).unwrap();
            prop_assert!(len >= 16, "the session has ended: {:?}", ask);
            let word = |at: usize| u64::from_ne_bytes(answer[at..at + 8].try_into().unwrap());
            if word(8) & (u64::MAX >> 1) != self.unique {
                continue;
            }
            if answer[4..8] == [0; 4] {
                match ask.opcode() {
                    1 | 8 | 9 | 13 | 35 if len >= 24 => self.inodes.push(word(16)),
                    14 | 27 if len >= 24 => self.handles.push(word(16)),
                    _ => {}
                }
                if ask.opcode() == 35 && len >= 16 + 128 + 8 {
                    self.handles.push(word(16 + 128));
                }
            }
            return Ok(());
        }
    }

    fn ask_all(&mut self, asks: &[Ask]) -> Result<(), TestCaseError> {
        let before = PANICS.load(Ordering::SeqCst);
        asks.iter().try_for_each(|ask| self.ask(ask))?;
        prop_assert_eq!(PANICS.load(Ordering::SeqCst), before, "a panic");
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // DESTROY ends one thread of the session each; what waits for the vault is answered into
        // the void.
        let mut destroy = vec![0; 40];
        destroy[..8].copy_from_slice(&[40, 0, 0, 0, 38, 0, 0, 0]);
        for _ in 0..2 {
            let _ = self.device.write_all(&destroy);
        }
        let _ = self.session.take().map(std::thread::JoinHandle::join);
    }
}

fn vault(runtime: &Runtime) -> DynVault {
    let memory = Arc::new(MemoryVault::new(OBJECT_CAPABILITIES, Arc::new(SystemClock)));
    let call = Call::foreground(std::time::Instant::now() + Duration::from_secs(10));
    for (name, value) in [("a", "one"), ("d/x", "two"), ("d/e/y", "three"), ("a~", "four")] {
        let name = ObjectName::new(name).unwrap();
        runtime.block_on(memory.create(&call, &name, &Content::plain(value))).unwrap();
    }
    memory
}

fn requests_are_answered((asks, kind): (Vec<Ask>, u8)) -> Result<(), TestCaseError> {
    let runtime = runtime();
    let vault = vault(&runtime);
    let result = Mounted::of(&runtime, vault, Arc::new(MemoryJournal::default()), kind).ask_all(&asks);
    runtime.shutdown_background();
    result
}

/// What becomes of a record: a byte of it is another one, it is cut off, it is under another one's
/// key, or it is gone.
#[derive(Debug, Clone)]
struct Bend {
    record: prop::sample::Index,
    at: prop::sample::Index,
    byte: u8,
    how: u8,
}

fn bends() -> impl Strategy<Value = Vec<Bend>> {
    let bend = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), number(), 0..6u8)
        .prop_map(|(record, at, byte, how)| Bend { record, at, byte: byte as u8, how });
    prop::collection::vec(bend, 0..12)
}

fn bend(records: &mut [(Vec<u8>, Value)], bends: &[Bend]) {
    let bends = if records.is_empty() { &[] } else { bends };
    for Bend { record, at, byte, how } in bends {
        let (one, other) = (record.index(records.len()), at.index(records.len()));
        let edit = |bytes: &mut Vec<u8>| match how {
            0 | 1 if !bytes.is_empty() => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            2 => bytes.truncate(at.index(bytes.len() + 1)),
            3 => bytes.insert(at.index(bytes.len() + 1), *byte),
            _ => bytes.clear(),
        };
        match (&mut records[one].1, how) {
            (_, 4) => {
                let key = records[other].0.clone();
                records[one].0 = key;
            }
            (Value::Plain(bytes), _) => edit(bytes),
            (Value::Secret(bytes), _) => {
                let mut changed = bytes.expose().to_vec();
                edit(&mut changed);
                *bytes = SecretBytes::from(&*changed);
            }
        }
    }
}

fn successors_go_on(
    (before, bends, after, kind): (Vec<Ask>, Vec<Bend>, Vec<Ask>, u8),
) -> Result<(), TestCaseError> {
    let runtime = runtime();
    let vault = vault(&runtime);
    let journal = Arc::new(MemoryJournal::default());
    let mut first = Mounted::of(&runtime, vault.clone(), journal.clone(), kind);
    first.ask_all(&before)?;
    let (inodes, handles) = (first.inodes.clone(), first.handles.clone());
    drop(first);
    let mut records = journal.read();
    bend(&mut records, &bends);
    let bent = Arc::new(MemoryJournal::default());
    let record = |(slot, value)| Record { slot, order: 1, value: Some(value) };
    bent.append(records.into_iter().map(record).collect());
    let panics = PANICS.load(Ordering::SeqCst);
    let mut second = Mounted::of(&runtime, vault, bent, kind);
    (second.inodes, second.handles) = (inodes, handles);
    let result = second.ask_all(&after);
    drop(second);
    runtime.shutdown_background();
    prop_assert_eq!(PANICS.load(Ordering::SeqCst), panics, "a panic");
    result
}

/// A record of the state's memory, bent where it lies.
type Records = Vec<(Vec<u8>, Vec<u8>)>;

fn memory_is_read((bends, records): (Vec<Bend>, Records)) -> Result<(), TestCaseError> {
    use std::os::unix::fs::FileExt;
    let (key, fd) = (state_log::SealKey::random().unwrap(), state_log::create().unwrap());
    let state = state_log::State::open(fd.try_clone().unwrap(), &key).unwrap();
    let record = |(order, (slot, value)): (usize, (Vec<u8>, Vec<u8>))| {
        let secret = order % 2 == 1;
        let value = if secret { Value::Secret(SecretBytes::from(&*value)) } else { Value::Plain(value) };
        Record { slot, order: order as u64 + 1, value: Some(value) }
    };
    records.into_iter().enumerate().for_each(|numbered| state.append(vec![record(numbered)]));
    let used = state.status().bytes;
    drop(state);
    let memory = File::from(fd.try_clone().unwrap());
    // The header's first three words are its version, which is another's to check.
    let end = 4096 + used;
    for Bend { record, byte, .. } in bends {
        let at = 24 + record.index(end as usize - 24) as u64;
        memory.write_all_at(&[byte], if at < 4096 { at % 72 + 24 } else { at }).unwrap();
    }
    let successor = state_log::State::open(fd, &key).unwrap();
    let loaded = successor.read();
    let status = successor.status();
    prop_assert!(status.refused == 0 || status.problem.is_some(), "{:?}", status);
    successor.append(vec![Record { slot: b"new".to_vec(), order: 1, value: Some(Value::Plain(Vec::new())) }]);
    prop_assert!(loaded.len() <= status.records);
    Ok(())
}

/// Answers that are nearly right: of two objects, with fields that are anything.
fn answers() -> impl Strategy<Value = Vec<Canned>> {
    let time = prop_oneof![
        Just(r#""2024-06-15T10:30:00Z""#.to_owned()),
        Just(r#""1969-12-31T23:59:59.999Z""#.to_owned()),
        Just(r#""1970-01-01T00:00:00+00:01""#.to_owned()),
        Just(r#""9999-12-31T23:59:59.999999999Z""#.to_owned()),
        Just(r#""9999-12-31T23:59:59-14:00""#.to_owned()),
        Just("-1".to_owned()),
        Just("1e400".to_owned()),
        "\"[0-9]{4,5}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z\"".prop_map(|text| text),
    ];
    let number = prop_oneof![
        Just("1".to_owned()),
        Just("-1".to_owned()),
        Just("NaN".to_owned()),
        Just("1e308".to_owned()),
        Just("18446744073709551616".to_owned()),
        number().prop_map(|n| n.to_string()),
    ];
    let value = prop_oneof![
        Just(r#"{"value":"v"}"#.to_owned()),
        Just(r#""v""#.to_owned()),
        (1..400usize).prop_map(|n| format!("{}{}", "[".repeat(n), "]".repeat(n))),
        (1..5000usize).prop_map(|n| format!("\"{}\"", "x".repeat(n * 30))),
        number.clone(),
    ];
    let name = prop::sample::select(vec!["a", "d/x", "d", "../a", "", "A", "d//", "\\u0000", "é"]);
    let object = (name, value, time.clone(), time, number.clone()).prop_map(|(name, value, made, changed, n)| {
        format!(
            r#"{{"id":"vault_obj_{n}","name":"{name}","data":{value},"value":{value},"created_at":{made},"updated_at":{changed},"version":{n},"size":{n},"metadata":{{"id":"i","version_id":"{n}","updated_at":{changed}}}}}"#
        )
    });
    let page = (prop::collection::vec(object.clone(), 0..4), "[ab]?").prop_map(|(rows, after)| {
        format!(r#"{{"data":[{}],"list_metadata":{{"after":"{after}"}}}}"#, rows.join(","))
    });
    let status =
        prop_oneof![8 => Just(200u16), 1 => prop::sample::select(vec![204, 404, 409, 429, 500, 503, 412])];
    let header = (
        prop::sample::select(vec![
            "Retry-After",
            "X-RateLimit-Limit",
            "X-RateLimit-Remaining",
            "X-RateLimit-Reset",
        ]),
        number,
    )
        .prop_map(|(name, number)| format!("{name}: {number}"));
    let dates =
        ["Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", "Sun, 06 Nov 1994 08:49:37 GMT"];
    let date = prop::sample::select(dates.to_vec()).prop_map(|date| format!("Date: {date}"));
    let headers = prop::collection::vec(prop_oneof![header, date], 0..3);
    let answer = (status, headers, prop_oneof![object, page]).prop_map(|(status, headers, body)| {
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        Canned::answer(status, &headers, &body)
    });
    prop::collection::vec(answer, 1..30)
}

fn answers_are_survived((answers, asks, kind): (Vec<Canned>, Vec<Ask>, u8)) -> Result<(), TestCaseError> {
    let runtime = runtime();
    let server = runtime.block_on(CannedServer::start(answers));
    let config = HttpConfig {
        target: Target::Url(server.url.clone()),
        tls: Arc::default(),
        key: Arc::new(ApiKey::new(SecretString::new("sk".into()), None, None)),
        clock: Arc::new(SystemClock),
        max_size: 100_000,
        policy: Policy { base: Duration::from_millis(1), ..Policy::default() },
        listeners: None,
        key_context: Default::default(),
    };
    let transport = Arc::new(config.transport().unwrap());
    let vault: DynVault = match kind % 2 {
        0 => Arc::new(ObjectVault::new(transport, 100_000)),
        _ => Arc::new(KvVault::new(transport, 100_000, Default::default())),
    };
    let result = Mounted::of(&runtime, vault, Arc::new(MemoryJournal::default()), kind).ask_all(&asks);
    runtime.shutdown_background();
    result
}

fn few_asks() -> impl Strategy<Value = Vec<Ask>> {
    prop::collection::vec(ask(), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 100, ..ProptestConfig::default() })]
    #[test]
    fn whatever_the_kernel_asks_is_answered(made in (asks(), any::<u8>())) {
        requests_are_answered(made)?;
    }

    #[test]
    fn a_successor_goes_on_from_damaged_records(made in (asks(), bends(), asks(), any::<u8>())) {
        successors_go_on(made)?;
    }

    #[test]
    fn damaged_memory_is_refused(made in (bends(), prop::collection::vec((prop::collection::vec(any::<u8>(), 1..20), prop::collection::vec(any::<u8>(), 0..200)), 0..20))) {
        memory_is_read(made)?;
    }

    #[test]
    fn no_answer_of_a_vault_ends_a_worker(made in (answers(), few_asks(), any::<u8>())) {
        answers_are_survived(made)?;
    }
}

#[test]
#[ignore = "ten minutes of made-up requests: run by scripts/test --all"]
fn requests_of_the_kernel_for_ten_minutes() {
    for_ten_minutes("requests of the kernel", &(asks(), any::<u8>()), requests_are_answered);
}

#[test]
#[ignore = "ten minutes of damaged states: run by scripts/test --all"]
fn states_for_ten_minutes() {
    for_ten_minutes("states", &(asks(), bends(), asks(), any::<u8>()), successors_go_on);
}

#[test]
#[ignore = "ten minutes of a vault's answers to a mount: run by scripts/test --all"]
fn answers_to_a_mount_for_ten_minutes() {
    for_ten_minutes("answers to a mount", &(answers(), few_asks(), any::<u8>()), answers_are_survived);
}
