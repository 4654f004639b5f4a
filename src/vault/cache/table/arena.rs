//! Memory for small values: mapped by ourselves, left out of core dumps, locked as far as the limit
//! allows.
//!
//! 1. Records are laid one after another in segments. A record has a number for as long as it is
//!    there, by which its place is found, so that it can be moved. What is freed is wiped at once.
//!    A segment without a record goes back to the system at once; when a quarter of the memory is
//!    holes, the emptiest segment is emptied by moving what it holds.
//! 2. Locking (mlock) is tried for each segment while the limit has room for it, and some is left
//!    to others: what was put in first is locked first. [`Arena::usage`] says how much that is.

use std::ptr::NonNull;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use zeroize::{Zeroize, Zeroizing};

/// Bytes of a segment.
const SEGMENT: usize = 256 * 1024;
/// Places count in units of so many bytes.
const UNIT: usize = 4;
const UNITS: u32 = (SEGMENT / UNIT) as u32;
/// Number and length.
const HEAD: usize = 8;
/// The number of a hole, and the place of a number that no record has.
const NONE: u32 = u32::MAX;
/// Longest record.
pub const LONGEST: usize = 4096;
/// Locked memory that is left to the rest of the process, where there is a limit.
const SPARED: u64 = 2 * 1024 * 1024;

/// A record, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(u32);

/// Memory of an arena, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Mapped.
    pub mapped: u64,
    /// Of those, surely never swapped out.
    pub locked: u64,
}

/// The segments.
#[derive(Debug, Default)]
pub struct Arena {
    segments: Vec<Option<Segment>>,
    /// Where each record is: the segment, and the place in it.
    places: Vec<u32>,
    /// Numbers that no record has.
    free: Vec<u32>,
    /// The segment that takes new records.
    head: Option<usize>,
    mapped: usize,
    live: usize,
    locked: usize,
}

impl Arena {
    /// Keeps `bytes`. `None` if they are too long, or the system gives no memory.
    pub fn put(&mut self, bytes: &[u8]) -> Option<Slot> {
        let next = u32::try_from(self.places.len()).ok().filter(|next| *next != NONE)?;
        let number = self.free.last().copied().unwrap_or(next);
        let place = self.append(number, bytes)?;
        match self.free.pop() {
            Some(number) => self.places[number as usize] = place,
            None => self.places.push(place),
        }
        Some(Slot(number))
    }

    fn append(&mut self, number: u32, bytes: &[u8]) -> Option<u32> {
        if bytes.len() > LONGEST {
            return None;
        }
        let need = space(bytes.len());
        let at = match self.head {
            Some(at) if self.segment(at).room() >= need => at,
            _ => self.open()?,
        };
        let offset = self.segments[at].as_mut()?.append(number, bytes);
        self.live += need;
        Some(at as u32 * UNITS + offset)
    }

    /// The bytes of a record.
    pub fn get(&self, slot: Slot) -> &[u8] {
        let (at, offset) = self.place(slot);
        self.segment(at).record(offset).1
    }

    /// Wipes a record.
    pub fn free(&mut self, slot: Slot) {
        let (at, offset) = self.place(slot);
        let Some(segment) = self.segments[at].as_mut() else { return };
        self.live -= segment.wipe(offset);
        if segment.live == 0 {
            self.close(at);
        }
        self.places[slot.0 as usize] = NONE;
        self.free.push(slot.0);
        if self.free.len() == self.places.len() {
            (self.places, self.free) = (Vec::new(), Vec::new());
        }
        self.tidy();
    }

    fn place(&self, Slot(number): Slot) -> (usize, usize) {
        let place = self.places[number as usize];
        ((place / UNITS) as usize, (place % UNITS) as usize * UNIT)
    }

    /// Moves what one segment holds, if a quarter of the memory is holes.
    fn tidy(&mut self) {
        if self.mapped <= self.live + self.live / 3 + 2 * SEGMENT {
            return;
        }
        let number_of = |(number, segment): (usize, &Option<Segment>)| Some((segment.as_ref()?.live, number));
        let others =
            self.segments.iter().enumerate().filter_map(number_of).filter(|(_, n)| self.head != Some(*n));
        let Some((_, emptiest)) = others.min() else { return };
        let mut at = 0;
        while let Some((number, bytes)) = self.segment(emptiest).record_at(at) {
            let (offset, bytes) = (at, Zeroizing::new(bytes.to_vec()));
            at += space(bytes.len());
            if number == NONE {
                continue;
            }
            // Without memory to move it to, the rest stays where it is.
            let Some(place) = self.append(number, &bytes) else { return };
            self.places[number as usize] = place;
            if let Some(segment) = self.segments[emptiest].as_mut() {
                self.live -= segment.wipe(offset);
            }
        }
        self.close(emptiest);
    }

    /// Mapped and locked bytes.
    pub fn usage(&self) -> Usage {
        Usage { mapped: self.mapped as u64, locked: self.locked as u64 }
    }

    fn segment(&self, number: usize) -> &Segment {
        self.segments[number].as_ref().expect("a slot is used only until it is freed")
    }

    /// Opens a segment for new records.
    fn open(&mut self) -> Option<usize> {
        let free = self.segments.iter().position(Option::is_none);
        // The last segment is left out: no place is [`NONE`].
        let number =
            free.or((self.segments.len() < (u32::MAX / UNITS) as usize).then_some(self.segments.len()))?;
        let segment = Segment::map(self.may_lock())?;
        self.mapped += SEGMENT;
        self.locked += if segment.locked { SEGMENT } else { 0 };
        match self.segments.get_mut(number) {
            Some(place) => *place = Some(segment),
            None => self.segments.push(Some(segment)),
        }
        self.head = Some(number);
        Some(number)
    }

    fn close(&mut self, number: usize) {
        if let Some(segment) = self.segments[number].take() {
            self.mapped -= SEGMENT;
            self.locked -= if segment.locked { SEGMENT } else { 0 };
        }
        if self.head == Some(number) {
            self.head = None;
        }
        while self.segments.last().is_some_and(Option::is_none) {
            self.segments.pop();
        }
    }

    fn may_lock(&self) -> bool {
        match getrlimit(Resource::RLIMIT_MEMLOCK) {
            Ok((soft, _)) => {
                soft == RLIM_INFINITY || (self.locked + SEGMENT) as u64 <= soft.saturating_sub(SPARED)
            }
            Err(_) => false,
        }
    }
}

fn space(len: usize) -> usize {
    (HEAD + len).next_multiple_of(UNIT)
}

/// A mapping of our own.
#[derive(Debug)]
struct Segment {
    memory: NonNull<u8>,
    used: usize,
    live: usize,
    locked: bool,
}

// SAFETY: the memory belongs to the segment alone.
unsafe impl Send for Segment {}

impl Segment {
    fn map(lock: bool) -> Option<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new anonymous mapping touches nothing that is there.
        let memory = unsafe { libc::mmap(std::ptr::null_mut(), SEGMENT, access, kind, -1, 0) };
        if memory == libc::MAP_FAILED {
            return None;
        }
        // SAFETY: both calls are about the mapping just made.
        let locked = unsafe {
            libc::madvise(memory, SEGMENT, libc::MADV_DONTDUMP);
            lock && libc::mlock(memory, SEGMENT) == 0
        };
        Some(Self { memory: NonNull::new(memory.cast())?, used: 0, live: 0, locked })
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: mapped in this size, zeroed by the system, and ours alone.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), SEGMENT) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed for as long.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), SEGMENT) }
    }

    fn room(&self) -> usize {
        SEGMENT - self.used
    }

    /// Where the record begins, in units.
    fn append(&mut self, number: u32, bytes: &[u8]) -> u32 {
        let (at, need) = (self.used, space(bytes.len()));
        let place = &mut self.bytes_mut()[at..at + need];
        place[..4].copy_from_slice(&number.to_ne_bytes());
        place[4..HEAD].copy_from_slice(&(bytes.len() as u32).to_ne_bytes());
        place[HEAD..HEAD + bytes.len()].copy_from_slice(bytes);
        self.used += need;
        self.live += need;
        (at / UNIT) as u32
    }

    fn record(&self, at: usize) -> (u32, &[u8]) {
        let word = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&self.bytes()[at..at + 4]);
            u32::from_ne_bytes(word)
        };
        (word(at), &self.bytes()[at + HEAD..][..word(at + 4) as usize])
    }

    fn set_number(&mut self, at: usize, number: u32) {
        self.bytes_mut()[at..at + 4].copy_from_slice(&number.to_ne_bytes());
    }

    /// Makes the record a hole; returns the bytes it took.
    fn wipe(&mut self, at: usize) -> usize {
        let len = self.record(at).1.len();
        self.bytes_mut()[at + HEAD..][..len].zeroize();
        self.set_number(at, NONE);
        self.live -= space(len);
        space(len)
    }

    /// The record that begins at `at`, holes included; `None` behind the last.
    fn record_at(&self, at: usize) -> Option<(u32, &[u8])> {
        (at < self.used).then(|| self.record(at))
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        let used = self.used;
        self.bytes_mut()[..used].zeroize();
        // SAFETY: mapped by `map`, in this size; there is no reference any more.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), SEGMENT) };
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn value(n: u32) -> Vec<u8> {
        vec![n as u8; (n as usize * 37) % 700]
    }

    #[test]
    fn records_keep_their_bytes_while_others_come_and_go() {
        let mut arena = Arena::default();
        let mut slots = HashMap::new();
        for n in 0..20_000 {
            slots.insert(n, arena.put(&value(n)).unwrap());
            if n % 3 != 0 {
                arena.free(slots.remove(&(n - n % 7)).unwrap_or_else(|| slots.remove(&n).unwrap()));
            }
            // Without moves most of the memory would be holes.
            assert!(arena.mapped <= arena.live + arena.live / 3 + 3 * SEGMENT);
        }
        let live: usize = slots.keys().map(|n| space(value(*n).len())).sum();
        assert_eq!(arena.live, live);
        for (n, slot) in &slots {
            assert_eq!(arena.get(*slot), value(*n));
        }
        slots.into_values().for_each(|slot| arena.free(slot));
        assert_eq!((arena.live, arena.usage()), (0, Usage::default()));
        assert!(arena.segments.is_empty() && arena.places.is_empty());
    }

    #[test]
    fn what_is_freed_is_wiped() {
        let mut arena = Arena::default();
        let slot = arena.put(b"hunter2").unwrap();
        let other = arena.put(b"").unwrap();
        arena.free(slot);
        let memory = arena.segment(0).bytes();
        assert!(!memory.windows(7).any(|w| w == b"hunter2"));
        assert_eq!(arena.get(other), b"");
        assert!(arena.put(&[0; LONGEST + 1]).is_none());
    }

    #[test]
    fn no_more_is_locked_than_the_limit_leaves() {
        let mut arena = Arena::default();
        for n in (0..16).flat_map(|_| 0..250) {
            arena.put(&[n; LONGEST]).unwrap();
        }
        let usage = arena.usage();
        let (soft, _) = getrlimit(Resource::RLIMIT_MEMLOCK).unwrap();
        assert!(usage.locked <= usage.mapped && (soft == RLIM_INFINITY || usage.locked <= soft));
    }
}
