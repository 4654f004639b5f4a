//! What the one worker that writes a state log knows of it: where each live record is, and how far
//! the active region is in use. It is built again from the records by each worker.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;

use crate::daemon::state_log::memory::{Map, REGION};
use crate::fs::Record;

/// Before each record: its length, the key's length, what it is.
pub(super) const PREFIX: usize = 9;
/// What sealing adds: a nonce and a tag.
pub(super) const NONCE: usize = 12;

pub(super) const DELETED: u8 = 0;
pub(super) const PLAIN: u8 = 1;
pub(super) const SEALED: u8 = 2;
/// Plain, and the value begins with its version. [`PLAIN`] ones are of version 1: state 4 had
/// those.
pub(super) const VERSIONED: u8 = 3;

/// The value of a record that is no secret, with its version.
pub(super) fn plain_value(kind: u8, value: &[u8]) -> Vec<u8> {
    if kind == PLAIN { [&[1][..], value].concat() } else { value.to_vec() }
}

/// Where a live record is.
#[derive(Debug, Clone, Copy)]
pub(super) struct RecordLocation {
    pub at: usize,
    pub len: usize,
    pub order: u64,
}

pub(super) struct Writer {
    pub region: usize,
    /// Bytes of the region that count.
    pub used: usize,
    /// Bytes of it that there is memory for.
    pub room: usize,
    pub live: HashMap<Box<[u8]>, RecordLocation>,
    pub live_bytes: usize,
    /// The latest deletions, so that a record that comes late does not undo one.
    pub deleted: HashMap<Box<[u8]>, u64>,
    pub sealed: u64,
    /// Slots with a last change that there was no memory for.
    pub missed: HashSet<Box<[u8]>>,
    pub problem: Option<String>,
    /// Records of the last worker that made no sense.
    pub refused: usize,
}

impl Writer {
    /// Goes on where the last writer was.
    pub(super) fn over(map: &Map) -> Self {
        let header = map.header();
        let region = (header.active.load(Ordering::Acquire) as usize) & 1;
        let used = (header.len[region].load(Ordering::Acquire) as usize).min(REGION);
        let mut writer = Self {
            region,
            used,
            room: used,
            live: HashMap::new(),
            live_bytes: 0,
            deleted: HashMap::new(),
            sealed: 0,
            missed: HashSet::new(),
            problem: None,
            refused: 0,
        };
        if header.missed.load(Ordering::Acquire) != 0 {
            writer.problem = Some("the last worker had no memory for all of it".to_owned());
        }
        writer.scan(map);
        writer
    }

    /// Finds what is live in the active region.
    fn scan(&mut self, map: &Map) {
        let start = Map::start(self.region);
        let mut at = 0;
        while at + PREFIX <= self.used {
            let prefix = map.read(start + at, PREFIX);
            let number = |part: &[u8]| u32::from_le_bytes(part.try_into().expect("four bytes")) as usize;
            let (len, key) = (number(&prefix[..4]), number(&prefix[4..8]));
            if len < PREFIX + key || at + len > self.used {
                self.problem = Some("the last worker's records are damaged".to_owned());
                self.refused += 1;
                break;
            }
            let kind = prefix[8];
            let key: Box<[u8]> = map.read(start + at + PREFIX, key).into();
            let place = RecordLocation { at: start + at, len, order: 0 };
            self.take_in(key, (kind != DELETED).then_some(place), 0);
            at += len;
        }
        self.deleted.clear();
    }

    pub(super) fn take_in(&mut self, key: Box<[u8]>, place: Option<RecordLocation>, order: u64) {
        let before = match place {
            Some(place) => {
                self.live_bytes += place.len;
                self.live.insert(key, place)
            }
            None => {
                let before = self.live.remove(&key);
                if order > 0 {
                    self.deleted.insert(key, order);
                }
                before
            }
        };
        self.live_bytes -= before.map_or(0, |before| before.len);
    }

    pub(super) fn is_late(&self, record: &Record) -> bool {
        self.live.get(&*record.slot).is_some_and(|place| place.order > record.order)
            || self.deleted.get(&*record.slot).is_some_and(|order| *order > record.order)
    }
}
