//! The journal that outlives a worker: records in a memfd that the keeper holds.
//!
//! 1. A log in memory with two regions, one of them active. Records are written, then published by
//!    one store of the region's length: after a death at any moment an append is there as a whole,
//!    or not at all.
//! 2. The one writing worker knows the live records by key (`writer`). When most of a region is
//!    dead, the live records are copied to the other region, which one store activates; the old
//!    pages are freed.
//! 3. Pages of a memfd can be swapped. Secrets are therefore sealed (AES-256-GCM) with a key of the
//!    keeper, which exists in locked memory only. A nonce is never reused: it has an epoch, which
//!    each worker increments in the header, and a counter.
//! 4. Memory is allocated before it is written, so that a machine out of memory is an error and no
//!    signal. The mount goes on, status says that a crash would lose data, and the successor learns
//!    of it, until each missed slot has been written again.
//! 5. The header has the version of the format and of the records. A worker reads its own and the
//!    one before; it must not use another ([`check`]). Each value has its own version besides.

mod key;
mod memory;
mod writer;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

use parking_lot::{Mutex, MutexGuard};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::{Zeroize, Zeroizing};

pub use crate::daemon::state_log::key::SealKey;
use crate::daemon::state_log::memory::{Map, REGION};
pub use crate::daemon::state_log::memory::{StateError, check, create, heartbeats, state_version};
use crate::daemon::state_log::writer::{
    DELETED, NONCE, PREFIX, RecordLocation, SEALED, VERSIONED, Writer, plain_value,
};
use crate::failpoint;
use crate::fs::{Journal, JournalStatus, Record, Value};
use crate::secret::SecretBytes;

/// Allocation step.
const STEP: usize = 1 << 20;
/// A smaller region is not compacted.
const SMALL: usize = 4 << 20;
/// The state of a mount, as its worker writes it.
pub struct State {
    file: File,
    map: Map,
    key: LessSafeKey,
    epoch: u32,
    writer: Mutex<Writer>,
    /// Limit of one allocation.
    #[cfg(test)]
    largest: usize,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl State {
    /// Takes the state over. The previous writer is dead.
    pub fn open(state: OwnedFd, key: &SealKey) -> Result<Self, StateError> {
        check(&state)?;
        let file = File::from(state);
        let map = Map::of(&file)?;
        let epoch = map.header().epoch.fetch_add(1, Ordering::SeqCst) as u32;
        let key = UnboundKey::new(&AES_256_GCM, key.expose()).map_err(|_| io::Error::other("a bad key"))?;
        let writer = Writer::over(&map);
        Ok(Self {
            file,
            map,
            key: LessSafeKey::new(key),
            epoch,
            writer: Mutex::new(writer),
            #[cfg(test)]
            largest: usize::MAX,
        })
    }

    /// Increments this process's heartbeat, for [`heartbeats`].
    pub fn tick(&self) {
        let word = &self.map.header().heartbeat;
        let count = (word.load(Ordering::Relaxed) as u32).wrapping_add(1);
        word.store(u64::from(std::process::id()) << 32 | u64::from(count), Ordering::Relaxed);
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock()
    }

    fn seal(&self, writer: &mut Writer, key: &[u8], bytes: &SecretBytes, out: &mut Vec<u8>) {
        writer.sealed += 1;
        let mut nonce = [0; NONCE];
        nonce[..4].copy_from_slice(&self.epoch.to_le_bytes());
        nonce[4..].copy_from_slice(&writer.sealed.to_le_bytes());
        out.extend_from_slice(&nonce);
        let start = out.len();
        // Sealed in place; `out` does not grow, so no copy is left.
        out.extend_from_slice(bytes.expose());
        let nonce = Nonce::assume_unique_for_key(nonce);
        match self.key.seal_in_place_separate_tag(nonce, Aad::from(key), &mut out[start..]) {
            Ok(tag) => out.extend_from_slice(tag.as_ref()),
            // Only for far more bytes than a chunk has.
            Err(_) => {
                out[start..].zeroize();
                writer.problem = Some("a value could not be sealed".to_owned());
            }
        }
    }

    fn unseal(&self, key: &[u8], sealed: &[u8]) -> Option<SecretBytes> {
        let (nonce, sealed) = sealed.split_at_checked(NONCE)?;
        let mut bytes = Zeroizing::new(sealed.to_vec());
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let plain = self.key.open_in_place(nonce, Aad::from(key), &mut bytes).ok()?;
        Some(SecretBytes::from(&*plain))
    }

    /// Encodes records; they are not published yet.
    fn encode(&self, writer: &mut Writer, records: &[Record]) -> (Vec<u8>, Vec<(usize, usize)>) {
        let room: usize = records
            .iter()
            .map(|record| {
                let value = match &record.value {
                    None => 0,
                    Some(Value::Plain(bytes)) => bytes.len(),
                    Some(Value::Secret(bytes)) => bytes.len() + NONCE + 16,
                };
                PREFIX + record.slot.len() + value
            })
            .sum();
        let mut out = Vec::with_capacity(room);
        let mut places = Vec::with_capacity(records.len());
        for record in records {
            let start = out.len();
            out.extend_from_slice(&[0; PREFIX]);
            out.extend_from_slice(&record.slot);
            let kind = match &record.value {
                None => DELETED,
                Some(Value::Plain(bytes)) => {
                    out.extend_from_slice(bytes);
                    VERSIONED
                }
                Some(Value::Secret(bytes)) => {
                    self.seal(writer, &record.slot, bytes, &mut out);
                    SEALED
                }
            };
            let len = out.len() - start;
            out[start..start + 4].copy_from_slice(&(len as u32).to_le_bytes());
            out[start + 4..start + 8].copy_from_slice(&(record.slot.len() as u32).to_le_bytes());
            out[start + 8] = kind;
            places.push((start, len));
        }
        (out, places)
    }

    /// Allocates so many bytes more in the active region.
    fn make_room(&self, writer: &mut Writer, more: usize) -> io::Result<()> {
        #[cfg(test)]
        if more > self.largest {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let dead = writer.used - writer.live_bytes;
        if (writer.used > SMALL && dead > 2 * writer.live_bytes) || writer.used + more > REGION {
            let cleaned = self.clean_up(writer);
            if writer.used + more > REGION {
                cleaned?;
            }
        }
        if writer.used + more > REGION {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        if writer.used + more > writer.room {
            let step = more.next_multiple_of(STEP).min(REGION - writer.used);
            self.map.grow(&self.file, Map::start(writer.region) + writer.used, step)?;
            writer.room = writer.used + step;
        }
        Ok(())
    }

    /// Copies the live records to the other region and activates it.
    fn clean_up(&self, writer: &mut Writer) -> io::Result<()> {
        let (from, to) = (writer.region, 1 - writer.region);
        let start = Map::start(to);
        let room = writer.live_bytes.next_multiple_of(STEP).max(STEP);
        self.map.grow(&self.file, start, room)?;
        failpoint::point("journal grown");
        let mut used = 0;
        for place in writer.live.values_mut() {
            self.map.write(start + used, self.map.read(place.at, place.len));
            place.at = start + used;
            used += place.len;
            failpoint::point("journal copies");
        }
        let header = self.map.header();
        header.len[to].store(used as u64, Ordering::Release);
        failpoint::point("journal copied");
        header.active.store(to as u64, Ordering::Release);
        failpoint::point("journal switched");
        self.map.give_back(&self.file, Map::start(from), writer.room.max(writer.used));
        failpoint::point("journal freed");
        (writer.region, writer.used, writer.room, writer.live_bytes) = (to, used, room, used);
        writer.deleted.clear();
        // After a walk over everything most records are dead: the map shrinks, too.
        if writer.live.len() < writer.live.capacity() / 8 {
            writer.live.shrink_to(writer.live.len() * 2);
        }
        Ok(())
    }
}

impl State {
    /// Clears the problem once no slot is missed.
    fn note_missed(&self, writer: &mut Writer, before: bool) {
        if before && writer.missed.is_empty() {
            writer.problem = None;
            self.map.header().missed.store(0, Ordering::Release);
            tracing::warn!("there is memory for the mount's state again: a crash would lose nothing");
        }
    }
}

/// A slot and its value.
pub type PlainRecord = (Vec<u8>, Vec<u8>);

/// The records without secrets, by slot. Read-only: for the keeper of a mount without a worker.
pub fn plain_records(state: impl AsFd) -> Result<Vec<PlainRecord>, StateError> {
    check(&state)?;
    let map = Map::of(&File::from(state.as_fd().try_clone_to_owned()?))?;
    let record = |(key, place): (Box<[u8]>, RecordLocation)| {
        let record = map.read(place.at, place.len);
        let value = &record[PREFIX + key.len()..];
        (record[8] != SEALED).then(|| (key.to_vec(), plain_value(record[8], value)))
    };
    Ok(Writer::over(&map).live.into_iter().filter_map(record).collect())
}

/// Remembered deletions: no record comes later than that.
const DELETIONS: usize = 4096;

impl Journal for State {
    fn append(&self, mut records: Vec<Record>) {
        let mut writer = self.writer();
        let writer = &mut *writer;
        records.retain(|record| !writer.is_late(record));
        let missed = !writer.missed.is_empty();
        for record in &records {
            writer.missed.remove(&*record.slot);
        }
        // A slot without a record needs no deletion.
        records.retain(|record| record.value.is_some() || writer.live.contains_key(&*record.slot));
        if records.is_empty() {
            self.note_missed(writer, missed);
            return;
        }
        failpoint::point("journal begun");
        let (bytes, places) = self.encode(writer, &records);
        failpoint::point("journal encoded");
        if let Err(e) = self.make_room(writer, bytes.len()) {
            if writer.problem.is_none() {
                tracing::error!(
                    "no memory for the mount's state: a crash would lose open and unsaved files: {e}"
                );
            }
            writer.problem = Some(format!("no memory for it: {e}"));
            writer.missed.extend(records.into_iter().map(|record| record.slot.into()));
            self.map.header().missed.store(1, Ordering::Release);
            return;
        }
        let start = Map::start(writer.region) + writer.used;
        failpoint::point("journal allocated");
        self.map.write(start, &bytes);
        writer.used += bytes.len();
        failpoint::point("journal written");
        // From now on the release before does not understand it.
        self.map.header().state.store(state_version(), Ordering::Relaxed);
        self.map.header().len[writer.region].store(writer.used as u64, Ordering::Release);
        failpoint::point("journal published");
        for (record, (at, len)) in records.into_iter().zip(places) {
            let place = RecordLocation { at: start + at, len, order: record.order };
            let place = record.value.is_some().then_some(place);
            writer.take_in(record.slot.into(), place, record.order);
        }
        if writer.deleted.len() > DELETIONS {
            writer.deleted.clear();
        }
        self.note_missed(writer, missed);
        failpoint::point("journal noted");
    }

    fn missed(&self, slot: Vec<u8>, why: String) {
        let mut writer = self.writer();
        writer.problem = Some(format!("it cannot be written down: {why}"));
        writer.missed.insert(slot.into());
        self.map.header().missed.store(1, Ordering::Release);
    }

    fn refused(&self, records: usize) {
        self.writer().refused += records;
    }

    fn accept(&self) {
        let mut writer = self.writer();
        if writer.missed.is_empty() {
            writer.problem = None;
            self.map.header().missed.store(0, Ordering::Release);
        }
    }

    fn read(&self) -> Vec<(Vec<u8>, Value)> {
        let mut writer = self.writer();
        let mut all = Vec::with_capacity(writer.live.len());
        let mut lost = 0;
        for (key, place) in &writer.live {
            let record = self.map.read(place.at, place.len);
            let value = &record[PREFIX + key.len()..];
            let value = match record[8] {
                SEALED => self.unseal(key, value).map(Value::Secret),
                kind => Some(Value::Plain(plain_value(kind, value))),
            };
            match value {
                Some(value) => all.push((key.to_vec(), value)),
                None => lost += 1,
            }
        }
        if lost > 0 {
            writer.problem = Some(format!("{lost} records could not be unsealed"));
            writer.refused += lost;
        }
        all
    }

    fn status(&self) -> JournalStatus {
        let writer = self.writer();
        JournalStatus {
            complete: writer.problem.is_none(),
            bytes: writer.used as u64,
            records: writer.live.len(),
            problem: writer.problem.clone(),
            refused: writer.refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::memory::HEADER;
    use super::*;

    fn put(key: &str, order: u64, value: &str) -> Record {
        Record { slot: key.into(), order, value: Some(Value::Plain(value.into())) }
    }

    fn secret(key: &str, order: u64, value: &[u8]) -> Record {
        Record { slot: key.into(), order, value: Some(Value::Secret(SecretBytes::from(value))) }
    }

    fn gone(key: &str, order: u64) -> Record {
        Record { slot: key.into(), order, value: None }
    }

    fn shown(state: &State) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut all: Vec<_> = state
            .read()
            .iter()
            .map(|(key, value)| match value {
                Value::Plain(bytes) => (text(key), text(bytes)),
                Value::Secret(bytes) => (text(key), text(bytes.expose())),
            })
            .collect();
        all.sort();
        all
    }

    #[test]
    fn a_successor_finds_what_is_live_and_secrets_are_sealed() {
        let key = SealKey::random().unwrap();
        let fd = create().unwrap();
        let first = State::open(fd.try_clone().unwrap(), &key).unwrap();
        first.append(vec![put("a", 1, "one"), put("b", 2, "two"), secret("s", 3, b"correct horse")]);
        first.append(vec![put("a", 4, "three"), gone("b", 5)]);
        // Later to arrive, earlier in order.
        first.append(vec![put("a", 3, "late"), put("b", 2, "late")]);
        let memory = first.map.read(0, HEADER + STEP);
        assert!(!memory.windows(7).any(|part| part == b"correct"));
        drop(first);
        let second = State::open(fd.try_clone().unwrap(), &key).unwrap();
        let expected = [("a", "three"), ("s", "correct horse")];
        let expected = expected.map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(shown(&second), expected);
        assert!(second.status().complete);
        second.append(vec![gone("a", 1)]);
        drop(second);
        let wrong = State::open(fd, &SealKey::random().unwrap()).unwrap();
        assert_eq!(shown(&wrong), []);
        assert!(!wrong.status().complete);
    }

    #[test]
    fn what_is_no_secret_can_be_read_without_the_key_and_changes_nothing() {
        let key = SealKey::random().unwrap();
        let fd = create().unwrap();
        assert_eq!(plain_records(&fd).unwrap(), []);
        let state = State::open(fd.try_clone().unwrap(), &key).unwrap();
        state.append(vec![put("a", 1, "one"), put("b", 2, "two"), secret("s", 3, b"correct horse")]);
        state.append(vec![put("a", 4, "three"), gone("b", 5)]);
        assert_eq!(plain_records(&fd).unwrap(), [(b"a".to_vec(), b"three".to_vec())]);
        assert_eq!(state.map.header().epoch.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_heartbeat_is_counted_under_its_process_id() {
        let fd = create().unwrap();
        let state = State::open(fd.try_clone().unwrap(), &SealKey::random().unwrap()).unwrap();
        let own = std::process::id();
        assert_eq!(heartbeats(fd.as_fd(), own), None);
        state.tick();
        state.tick();
        assert_eq!((heartbeats(fd.as_fd(), own), heartbeats(fd.as_fd(), own + 1)), (Some(2), None));
    }

    #[test]
    fn what_was_not_counted_in_is_not_there() {
        let key = SealKey::random().unwrap();
        let fd = create().unwrap();
        let first = State::open(fd.try_clone().unwrap(), &key).unwrap();
        first.append(vec![put("a", 1, "one")]);
        let counted = first.map.header().len[0].load(Ordering::Acquire);
        first.append(vec![put("a", 2, "two"), put("b", 3, "two")]);
        first.map.header().len[0].store(counted, Ordering::Release);
        drop(first);
        assert_eq!(shown(&State::open(fd, &key).unwrap()), [("a".to_owned(), "one".to_owned())]);
    }

    #[test]
    fn what_is_dead_takes_no_room() {
        let key = SealKey::random().unwrap();
        let fd = create().unwrap();
        let state = State::open(fd.try_clone().unwrap(), &key).unwrap();
        state.append(vec![put("kept", 1, "kept")]);
        let large = vec![b'x'; 100_000];
        for round in 0..500 {
            state.append(vec![secret("s", 2 + round, &large)]);
        }
        assert!(state.status().bytes < 8 << 20, "{:?}", state.status());
        let blocks = std::os::unix::fs::MetadataExt::blocks(&state.file.metadata().unwrap());
        assert!(blocks * 512 < 16 << 20, "{blocks}");
        drop(state);
        let state = State::open(fd, &key).unwrap();
        assert_eq!(shown(&state).len(), 2);
        assert_eq!(shown(&state)[0].1, "kept");
    }

    #[test]
    fn a_successor_is_told_of_what_there_was_no_memory_for_until_it_is_written_again() {
        let key = SealKey::random().unwrap();
        let fd = create().unwrap();
        let mut state = State::open(fd.try_clone().unwrap(), &key).unwrap();
        state.largest = 1000;
        state.append(vec![put("a", 1, "one")]);
        let too_much = "x".repeat(2000);
        state.append(vec![put("a", 2, &too_much), put("b", 2, "two")]);
        assert!(!state.status().complete);
        state.append(vec![put("c", 3, "the rest goes on")]);
        state.append(vec![gone("b", 4)]);
        assert!(!state.status().complete, "a is still missed");
        drop(state);
        let mut state = State::open(fd.try_clone().unwrap(), &key).unwrap();
        state.largest = 1000;
        assert!(!state.status().complete);
        assert_eq!(shown(&state)[0], ("a".to_owned(), "one".to_owned()));
        state.accept();
        assert!(state.status().complete);
        state.append(vec![put("a", 1, &too_much)]);
        assert!(!state.status().complete);
        state.append(vec![put("a", 2, "three")]);
        assert!(state.status().complete);
        drop(state);
        assert!(State::open(fd, &key).unwrap().status().complete);
    }

    #[test]
    fn another_versions_state_is_left_alone() {
        let fd = create().unwrap();
        let map = Map::of(&File::from(fd.try_clone().unwrap())).unwrap();
        for (version, is_read) in [(-2, false), (-1, true), (0, true), (1, false)] {
            let state = state_version().wrapping_add_signed(version);
            map.header().state.store(state, Ordering::Relaxed);
            assert_eq!(check(&fd).is_ok(), is_read, "{state}");
        }
        assert!(State::open(fd, &SealKey::random().unwrap()).is_err());
    }
}
