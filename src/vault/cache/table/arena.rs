//! Memory for small values: mapped by ourselves, left out of core dumps, locked as far as the limit allows.
//!
//! 1. Records are laid one after another in segments; a record knows its owner, so that it can be moved. What is
//!    freed is wiped at once. A segment without a record goes back to the system at once; when a quarter of the
//!    memory is holes, the emptiest segment is emptied by moving what it holds.
//! 2. Locking (mlock) is tried for each segment while the limit has room for it, and some is left to others: what
//!    was put in first is locked first. [`Arena::usage`] says how much that is.

use std::ptr::NonNull;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use zeroize::Zeroize;

/// Bytes of a segment.
const SEGMENT: usize = 256 * 1024;
/// References count in units of so many bytes.
const UNIT: usize = 4;
const UNITS: u32 = (SEGMENT / UNIT) as u32;
/// Owner and length.
const HEAD: usize = 8;
/// The owner of a hole.
const NOBODY: u32 = u32::MAX;
/// Longest record.
pub const LONGEST: usize = 4096;
/// Locked memory that is left to the rest of the process, where there is a limit.
const SPARED: u64 = 2 * 1024 * 1024;

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(pub u32);

/// A record that was moved: its owner has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// Whose it is.
    pub owner: u32,
    /// Where it is now.
    pub to: Slot,
}

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
    /// The segment that takes new records.
    head: Option<usize>,
    mapped: usize,
    live: usize,
    locked: usize,
}

impl Arena {
    /// Keeps `bytes` for `owner`. `None` if they are too long, or the system gives no memory.
    pub fn put(&mut self, owner: u32, bytes: &[u8]) -> Option<Slot> {
        if bytes.len() > LONGEST {
            return None;
        }
        let need = space(bytes.len());
        let number = match self.head {
            Some(number) if self.segment(number).room() >= need => number,
            _ => self.open()?,
        };
        let segment = self.segments[number].as_mut()?;
        let at = segment.append(owner, bytes);
        self.live += need;
        Some(Slot(number as u32 * UNITS + at))
    }

    /// The bytes at `slot`.
    pub fn get(&self, slot: Slot) -> &[u8] {
        self.segment((slot.0 / UNITS) as usize).record((slot.0 % UNITS) as usize * UNIT).1
    }

    /// The record at `slot` belongs to another owner from now on.
    pub fn give_to(&mut self, slot: Slot, owner: u32) {
        if let Some(segment) = self.segments[(slot.0 / UNITS) as usize].as_mut() {
            segment.set_owner((slot.0 % UNITS) as usize * UNIT, owner);
        }
    }

    /// Wipes the record at `slot`.
    pub fn free(&mut self, slot: Slot) {
        let number = (slot.0 / UNITS) as usize;
        let Some(segment) = self.segments[number].as_mut() else { return };
        self.live -= segment.wipe((slot.0 % UNITS) as usize * UNIT);
        if segment.live == 0 {
            self.close(number);
        }
    }

    /// Moves what one segment holds, if a quarter of the memory is holes. What was moved is put into `moved`.
    pub fn tidy(&mut self, moved: &mut Vec<Moved>) {
        if self.mapped <= self.live + self.live / 3 + 2 * SEGMENT {
            return;
        }
        let number_of = |(number, segment): (usize, &Option<Segment>)| Some((segment.as_ref()?.live, number));
        let others =
            self.segments.iter().enumerate().filter_map(number_of).filter(|(_, n)| self.head != Some(*n));
        let Some((_, number)) = others.min() else { return };
        let Some(mut victim) = self.segments[number].take() else { return };
        let mut at = 0;
        while let Some((owner, bytes)) = victim.record_at(at) {
            let next = at + space(bytes.len());
            if owner != NOBODY {
                // Without memory to move it to, the rest stays where it is.
                let Some(to) = self.put(owner, bytes) else { break };
                moved.push(Moved { owner, to });
                self.live -= victim.wipe(at);
            }
            at = next;
        }
        let empty = victim.live == 0;
        self.segments[number] = Some(victim);
        if empty {
            self.close(number);
        }
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
        // The last numbers are left out: callers use the highest references for something else.
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
    fn append(&mut self, owner: u32, bytes: &[u8]) -> u32 {
        let (at, need) = (self.used, space(bytes.len()));
        let place = &mut self.bytes_mut()[at..at + need];
        place[..4].copy_from_slice(&owner.to_ne_bytes());
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

    fn set_owner(&mut self, at: usize, owner: u32) {
        self.bytes_mut()[at..at + 4].copy_from_slice(&owner.to_ne_bytes());
    }

    /// Makes the record a hole; returns the bytes it took.
    fn wipe(&mut self, at: usize) -> usize {
        let len = self.record(at).1.len();
        self.bytes_mut()[at + HEAD..][..len].zeroize();
        self.set_owner(at, NOBODY);
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
        // SAFETY: mapped by `map`, in this size; nobody has a reference any more.
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
        let mut moves = 0;
        for n in 0..20_000 {
            slots.insert(n, arena.put(n, &value(n)).unwrap());
            if n % 3 != 0 {
                arena.free(slots.remove(&(n - n % 7)).unwrap_or_else(|| slots.remove(&n).unwrap()));
            }
            let mut moved = Vec::new();
            arena.tidy(&mut moved);
            moves += moved.len();
            for Moved { owner, to } in moved {
                *slots.get_mut(&owner).expect("a hole is not moved") = to;
            }
        }
        assert!(moves > 0);
        let live: usize = slots.keys().map(|n| space(value(*n).len())).sum();
        assert_eq!(arena.live, live);
        assert!(arena.mapped <= live + live / 3 + 3 * SEGMENT);
        for (n, slot) in &slots {
            assert_eq!(arena.get(*slot), value(*n));
        }
        slots.into_values().for_each(|slot| arena.free(slot));
        assert_eq!((arena.live, arena.usage()), (0, Usage::default()));
        assert!(arena.segments.is_empty());
    }

    #[test]
    fn what_is_freed_is_wiped() {
        let mut arena = Arena::default();
        let slot = arena.put(1, b"hunter2").unwrap();
        let other = arena.put(2, b"").unwrap();
        arena.free(slot);
        let memory = arena.segment(0).bytes();
        assert!(!memory.windows(7).any(|w| w == b"hunter2"));
        assert_eq!(arena.get(other), b"");
        assert!(arena.put(3, &[0; LONGEST + 1]).is_none());
    }

    #[test]
    fn no_more_is_locked_than_the_limit_leaves() {
        let mut arena = Arena::default();
        for n in 0..4000 {
            arena.put(n, &[7; LONGEST]).unwrap();
        }
        let usage = arena.usage();
        let (soft, _) = getrlimit(Resource::RLIMIT_MEMLOCK).unwrap();
        assert!(usage.locked <= usage.mapped && (soft == RLIM_INFINITY || usage.locked <= soft));
    }
}
