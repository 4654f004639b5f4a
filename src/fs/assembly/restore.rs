//! Restores a file system from the journal of a dead worker.
//!
//! First the state is restored, without a request to the vault, so that the kernel is answered at
//! once. Then the work of the dead process is restarted: commits of closed files, retries, timers
//! of provisional files and deferred deletes, interrupted moves, and changes that were not
//! propagated to the kernel.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use crate::fs::FileSystem;
use crate::fs::handle::{HandleRecord, Held, HeldRecord, Writer};
use crate::fs::inode::file::{Failure, File, Persistence};
use crate::fs::inode::file_snapshot::{FileSnapshot, join};
use crate::fs::inode::{ControlText, Dir, Node, NodeRecord, ROOT, VersionFile};
use crate::fs::journal::{Journal, Key, MOST, Value};
use crate::fs::namespace::listing::{DirEntry, Head, Listing};
use crate::fs::types::ctx::Intent;
use crate::fs::types::errno::Errno;
use crate::secret::SecretBytes;
use crate::vault::cache::LagMemory;
use crate::vault::{Call, Content, Meta, Object, Page};

/// The message for unsaved bytes after a crash without memory.
const INCOMPLETE: &str = "a worker died while there was no memory for the mount's state: these bytes may not be what was \
                        written, and are not stored by themselves";

/// The journal's contents by kind.
#[derive(Default)]
struct JournalContents {
    plain: HashMap<Key, Vec<u8>>,
    secret: HashMap<Key, SecretBytes>,
    /// Unreadable records: of another version, or damaged. They are not used.
    refused: usize,
}

impl JournalContents {
    fn in_journal(journal: &dyn Journal) -> Self {
        let mut contents = Self::default();
        for (key, value) in journal.read() {
            match (Key::decode(&key), value) {
                (Some(key), Value::Plain(bytes)) => match key.value(&bytes).map(<[u8]>::to_vec) {
                    Some(value) => drop(contents.plain.insert(key, value)),
                    None => contents.refused += 1,
                },
                (Some(key), Value::Secret(bytes)) => drop(contents.secret.insert(key, bytes)),
                (None, _) => contents.refused += 1,
            }
        }
        contents
    }

    /// Drops what only the kernel refers to.
    fn forget_kernel(&mut self) -> Vec<Key> {
        let is_its = |key: &Key| {
            matches!(
                key,
                Key::Lookups(_)
                    | Key::Handle(_)
                    | Key::Listing(_)
                    | Key::ListingPart(..)
                    | Key::Intent(_)
                    | Key::CrashRecord(_)
            )
        };
        let keys: Vec<Key> = self.plain.keys().filter(|key| is_its(key)).cloned().collect();
        keys.iter().for_each(|key| drop(self.plain.remove(key)));
        keys
    }

    fn read<T: serde::de::DeserializeOwned>(&mut self, key: &Key) -> Option<T> {
        let read = postcard::from_bytes(self.plain.get(key)?).ok();
        self.refused += usize::from(read.is_none());
        read
    }

    /// A counter that continues.
    fn count(&mut self, key: &Key) -> Option<u64> {
        let read = self.read(key)?;
        self.refused += usize::from(read > MOST);
        Some(read).filter(|count| *count <= MOST)
    }

    /// All records of a kind, by number.
    fn numbered(&self, number: impl Fn(&Key) -> Option<u64>) -> Vec<u64> {
        let mut all: Vec<u64> = self.plain.keys().filter_map(number).collect();
        all.sort_unstable();
        all
    }
}

/// Restores the state of `journal`. With `fresh_mount` the kernel knows no inodes and handles.
/// `first_page` is what the start-up check of the vault listed.
pub(super) fn restore(
    fs: &Arc<FileSystem>,
    journal: &dyn Journal,
    fresh_mount: bool,
    first_page: Option<Page>,
) {
    let mut contents = JournalContents::in_journal(journal);
    let incomplete = !journal.status().complete;
    let forgotten = if fresh_mount { contents.forget_kernel() } else { Vec::new() };
    forgotten.iter().for_each(|key| fs.env.journal().delete(key));
    restore_nodes(fs, &mut contents);
    restore_handles(fs, &mut contents);
    restore_listings(fs, &mut contents);
    restore_requests(fs, &mut contents);
    if contents.plain.keys().any(|key| matches!(key, Key::Node(_))) {
        let (inodes, handles) = (fs.inodes.lock().len(), fs.handles.all().len());
        tracing::info!(inodes, handles, "takeover: the state of the last worker is restored");
        resume_changes(fs, contents.read(&Key::Covered), contents.read(&Key::Lag));
        let moved = contents.plain.keys().filter_map(|key| match key {
            Key::Repoint(name) => Some(name),
            _ => None,
        });
        moved.for_each(|name| fs.propagator.begin_repoint(name));
    }
    fs.propagator.restore_commands(contents.read(&Key::Commands));
    if contents.refused > 0 {
        tracing::error!(
            records = contents.refused,
            "takeover: some records of the last worker cannot be read"
        );
        journal.refused(contents.refused);
    }
    if let Some(page) = first_page {
        // Any difference to what the kernel shows is a change.
        fs.env.cache().seed(&page, fs.env.now());
    }
    if incomplete || contents.refused > 0 {
        fs.inodes.lock().give_other_numbers();
    }
    if incomplete {
        mark_unsaved_incomplete(fs);
        journal.accept();
    }
    resume_background(fs);
    if fresh_mount {
        fs.inodes.lock().drop_all_unheld();
    }
}

fn restore_nodes(fs: &FileSystem, contents: &mut JournalContents) {
    let journal = fs.env.journal();
    let mut table = fs.inodes.lock();
    let max_size = fs.env.options().max_size;
    let numbers = contents.numbered(|key| match key {
        Key::Node(ino) => Some(*ino),
        _ => None,
    });
    for ino in numbers {
        let Some(record) = contents.read::<NodeRecord>(&Key::Node(ino)) else { continue };
        if ino <= ROOT {
            contents.refused += usize::from(ino < ROOT);
            continue;
        }
        let held = contents.plain.contains_key(&Key::Lookups(ino));
        let lookups = contents.count(&Key::Lookups(ino)).unwrap_or(u64::from(held));
        let node = match record {
            NodeRecord::Dir(kind) => Node::Dir(Arc::new(Dir { ino, kind })),
            NodeRecord::Control(taken, text) => Node::Control(Arc::new(ControlText { ino, taken, text })),
            NodeRecord::File => {
                let record = contents.plain.get(&Key::File(ino));
                let record = record.and_then(|bytes| FileSnapshot::decode(bytes));
                let Some(record) = record.filter(|record| record.makes_sense(max_size)) else {
                    contents.refused += 1;
                    continue;
                };
                let behind = contents.plain.contains_key(&Key::KernelBehind(ino));
                let mut file = record.restore(ino, behind, &mut |key| contents.secret.remove(&key));
                file.journal = journal.clone();
                Node::File(Arc::new(file))
            }
            NodeRecord::Version { bytes: Some((_, len)), .. } if len as u64 > max_size => {
                contents.refused += 1;
                continue;
            }
            NodeRecord::Version { name, id, info, bytes, refused } => {
                let object = bytes.map(|(form, len)| {
                    let chunks = len.div_ceil(crate::fs::journal::CHUNK) as u32;
                    let bytes = join(chunks, |at| contents.secret.remove(&Key::Pinned(ino, at)));
                    let (version, updated_at) = (info.tag.clone(), info.created_at);
                    let meta = Meta { id: id.clone(), name: name.clone(), version, updated_at };
                    Arc::new(Object { meta, content: Content { bytes: Arc::new(bytes), form } })
                });
                let refused = refused.into();
                Node::Version(Arc::new(VersionFile { ino, name, id, info, object, refused }))
            }
        };
        table.restore_node(node, lookups);
    }
    for (key, value) in &contents.plain {
        contents.refused += usize::from(table.restore(key.clone(), value).is_none());
    }
    table.write_with(journal.clone());
}

/// Readers resume at positions in them.
fn restore_listings(fs: &FileSystem, contents: &mut JournalContents) {
    let numbers = contents.numbered(|key| match key {
        Key::Listing(ino) => Some(*ino),
        _ => None,
    });
    for ino in numbers {
        let Some(head) = contents.read::<Head>(&Key::Listing(ino)) else { continue };
        let mut part = |part| contents.read::<Vec<DirEntry>>(&Key::ListingPart(ino, part));
        if let Some(parts) = (0..head.parts).map(&mut part).collect::<Option<Vec<_>>>() {
            fs.namespace.restore_listing(ino, Listing::restored(parts.concat(), head));
        }
    }
}

fn restore_handles(fs: &Arc<FileSystem>, contents: &mut JournalContents) {
    let numbers = contents.numbered(|key| match key {
        Key::Handle(fh) => Some(*fh).filter(|fh| *fh <= MOST),
        _ => None,
    });
    // One less: the next number is recorded as in use, too.
    let next = contents.count(&Key::NextHandle).unwrap_or(1).max(numbers.last().map_or(1, |last| last + 1));
    let mut open = Vec::new();
    for fh in numbers {
        let Some(HandleRecord { held, by }) = contents.read(&Key::Handle(fh)) else { continue };
        match restore_held(fs, fh, held) {
            Some(held) => open.push((fh, held, by)),
            None => {
                tracing::warn!(fh, "takeover: an open file is lost");
                fs.env.journal().delete(&Key::Handle(fh));
            }
        }
    }
    fs.handles.restore(next, open.into_iter());
}

fn restore_held(fs: &FileSystem, fh: u64, record: HeldRecord) -> Option<Held> {
    let node = |ino| fs.inodes.lock().node(ino);
    match record {
        HeldRecord::Control(ino, taken, text) => {
            Some(Held::Control(Arc::new(ControlText { ino, taken, text })))
        }
        HeldRecord::Dir(ino) => match node(ino)? {
            Node::Dir(dir) => {
                fs.namespace.restore_open_dir(ino);
                Some(Held::Dir { dir, listing: None.into(), cached: false })
            }
            _ => None,
        },
        HeldRecord::Version(ino) => match node(ino)? {
            Node::Version(version) => Some(Held::Version(version)),
            _ => None,
        },
        HeldRecord::File(ino, writer) => match node(ino)? {
            Node::File(file) => {
                let mut state = file.change_alone();
                state.opens += 1;
                if writer.is_some() {
                    state.add_writer(fh);
                }
                drop(state);
                Some(Held::File { file, writer: writer.map(Writer::restored) })
            }
            _ => None,
        },
    }
}

fn restore_requests(fs: &Arc<FileSystem>, contents: &mut JournalContents) {
    let (mut intents, mut crash_records, mut old) = (HashMap::new(), HashMap::new(), Vec::new());
    let is_one = |key: &&Key| matches!(key, Key::Intent(_) | Key::CrashRecord(_));
    let keys: Vec<Key> = contents.plain.keys().filter(is_one).cloned().collect();
    for key in keys {
        match key {
            Key::Intent(id) => {
                let Some(intent) = contents.read::<Intent>(&key) else { continue };
                intents.insert(id, intent);
                old.push(id);
            }
            Key::CrashRecord(id) => {
                match contents.read(&key) {
                    Some(crash_record) => drop(crash_records.insert(id, crash_record)),
                    None => fs.env.journal().delete(&key),
                }
                old.push(id);
            }
            _ => {}
        }
    }
    fs.replay.restore(intents, crash_records);
    fs.expire_requests(old);
}

/// The kernel shows the dead worker's answers and missed later changes: the first answers that
/// differ are changes. Changes that the worker knew and had not propagated come first.
fn resume_changes(fs: &FileSystem, covered: Option<SystemTime>, lag: Option<LagMemory>) {
    let mut shown = Vec::new();
    {
        let table = fs.inodes.lock();
        for file in table.all_files() {
            let state = file.state();
            let is_shown = table.file(&state.name).is_some_and(|at| at.ino == file.ino);
            let Some(stored) = state.stored.as_ref().filter(|_| is_shown && !state.is_only_here()) else {
                continue;
            };
            let (id, version, updated_at) = (stored.id.clone(), stored.version.clone(), stored.updated_at);
            shown.push(Meta { id, name: state.name.clone(), version, updated_at });
        }
    }
    fs.env.cache().resume(&shown, covered, lag, fs.env.longest_ttl());
}

/// The dead worker had no memory for its journal: the unsaved bytes may be incomplete. Open
/// handles report that; otherwise a person has to decide.
fn mark_unsaved_incomplete(fs: &FileSystem) {
    let files: Vec<Arc<File>> = fs.inodes.lock().all_files().collect();
    for file in files {
        let mut state = file.change_alone();
        let Some(generation) = state.buffer.as_ref().map(|buffer| buffer.generation) else { continue };
        if !state.is_dirty() {
            continue;
        }
        let name = state.name.clone();
        tracing::error!(name = name.as_str(), "{INCOMPLETE}");
        if !state.writers.is_empty() {
            state.write_error = Some(Errno::EIO);
        }
        let number = state.failure.as_ref().map_or(0, |failure| failure.number) + 1;
        state.failure = Some(Failure {
            errno: Errno::EIO,
            message: INCOMPLETE.to_owned(),
            conflict: true,
            key_refused: false,
            generation,
            number,
        });
    }
}

/// Restarts background work.
fn resume_background(fs: &Arc<FileSystem>) {
    let files: Vec<Arc<File>> = fs.inodes.lock().all_files().collect();
    let mut failures = 0;
    let moving = fs.replay.moved_files();
    for file in files {
        let mut state = file.change_alone();
        failures = failures.max(state.failure.as_ref().map_or(0, |failure| failure.number));
        state.forget_closed();
        let left_alone = state.writers.is_empty();
        let write_error = left_alone && state.write_error.is_some() && state.buffer.is_some();
        let moved = state.origin.is_some() && state.persistence == Persistence::Vault && !state.is_dirty();
        let unsaved = left_alone && state.is_dirty() && !write_error;
        let failed = state.failure.is_some();
        let again = state.failure.as_ref().is_some_and(|failure| failure.is_retried());
        if again {
            state.retrying = Some(fs.env.now());
        }
        fs.inodes.keep_restored(&mut state);
        if !moving.contains(&file.ino) {
            state.release();
        }
        fs.temporaries.account_room(&mut state);
        drop(state);
        if write_error {
            fs.take_back(&file);
        } else if again {
            fs.writeback.start_retries(&file);
        } else if unsaved && !failed {
            // Its last close was answered, or will not be: no handle stores it.
            let (fs, env, file) = (fs.clone(), fs.env.clone(), file.clone());
            env.spawn(async move {
                fs.store_closed(&file, &Call::foreground(fs.env.deadline())).await;
            });
        } else if moved {
            let (fs, env, file) = (fs.clone(), fs.env.clone(), file.clone());
            env.spawn(async move {
                let call = Call::background(fs.env.deadline());
                let _lock = fs.writeback.lock_commit(&file, &call).await;
                fs.writeback.finish_move(&file, &call).await;
                fs.inodes.lock().drop_unheld(file.ino);
            });
        }
        fs.temporaries.promote_later(&file);
        fs.inodes.lock().drop_unheld(file.ino);
    }
    fs.writeback.restore_failures(failures);
    fs.temporaries.watch_unreplaced();
}
