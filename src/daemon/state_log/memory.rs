//! The memfd that the keeper holds: how it is laid out, which version it is of, and what of it has
//! pages.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// How the memory is laid out.
const FORMAT: u64 = 1;
/// The version of what the records say: counted up with each change of them that the release before
/// does not understand. It reads that release's, too ([`check`]). One state of each is recorded in
/// `tests/state`.
const STATE_VERSION: &str = "vaultfs state 5";
const MAGIC: u64 = u64::from_le_bytes(*b"vaultfs\x01");
pub const HEADER: usize = 4096;
/// The most that one region can hold. Only what is used takes memory.
pub const REGION: usize = 512 << 20;

/// The first words of the memory.
#[repr(C)]
pub struct Header {
    magic: AtomicU64,
    format: AtomicU64,
    pub state: AtomicU64,
    /// Workers there have been: the first part of every nonce.
    pub epoch: AtomicU64,
    /// The active region, 0 or 1.
    pub active: AtomicU64,
    /// Bytes of each region that count.
    pub len: [AtomicU64; 2],
    /// 1 while there are changes that there was no memory for.
    pub missed: AtomicU64,
    /// The worker's process id, and the count of its heartbeats. A program of an older version
    /// leaves it alone.
    pub heartbeat: AtomicU64,
}

/// The heartbeats of the worker `pid`; `None` if it has none. Reads one word, so that it can be
/// asked for all the time.
pub fn heartbeats(state: BorrowedFd<'_>, pid: u32) -> Option<u32> {
    let mut bytes = [0; 8];
    let at = std::mem::offset_of!(Header, heartbeat) as libc::off_t;
    let read = nix::sys::uio::pread(state, &mut bytes, at);
    let word = u64::from_ne_bytes(bytes);
    (read == Ok(bytes.len()) && word >> 32 == u64::from(pid)).then_some(word as u32)
}

/// Why a state cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another version's.
    #[error("the mount's state has version {found}, and this program knows version {known}")]
    Version {
        /// What the state says.
        found: u64,
        /// What this program writes.
        known: u64,
    },
    /// The memory.
    #[error("the mount's state cannot be used: {0}")]
    Io(#[from] io::Error),
}

/// Makes an empty state. The keeper does, and keeps the descriptor for as long as the mount lives.
pub fn create() -> io::Result<OwnedFd> {
    let name = c"vaultfs-state";
    // MFD_NOEXEC_SEAL is there since Linux 6.3.
    let wanted = [libc::MFD_CLOEXEC | 0x8, libc::MFD_CLOEXEC];
    let mut last = io::Error::other("unreachable");
    for flags in wanted {
        // SAFETY: the name is NUL-terminated; the descriptor is ours.
        let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
        if fd < 0 {
            last = io::Error::last_os_error();
            continue;
        }
        // SAFETY: as above.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        file.set_len((HEADER + 2 * REGION) as u64)?;
        let map = Map::of(&file)?;
        map.grow(&file, 0, HEADER)?;
        let header = map.header();
        header.format.store(FORMAT, Ordering::Relaxed);
        header.state.store(state_version(), Ordering::Relaxed);
        header.magic.store(MAGIC, Ordering::Release);
        return Ok(file.into());
    }
    Err(last)
}

/// Whether this program can take the state over. Changes nothing.
pub fn check(state: impl AsFd) -> Result<(), StateError> {
    let file = File::from(state.as_fd().try_clone_to_owned()?);
    if file.metadata()?.len() < HEADER as u64 {
        return Err(io::Error::from(io::ErrorKind::InvalidData).into());
    }
    let map = Map::of(&file)?;
    let header = map.header();
    if header.magic.load(Ordering::Acquire) != MAGIC || header.format.load(Ordering::Relaxed) != FORMAT {
        let found = header.format.load(Ordering::Relaxed);
        return Err(StateError::Version { found, known: FORMAT });
    }
    match header.state.load(Ordering::Relaxed) {
        found if found == state_version() || found + 1 == state_version() => Ok(()),
        found => Err(StateError::Version { found, known: state_version() }),
    }
}

/// [`STATE_VERSION`] as a number. Read from the text, which a test changes in a copy of the
/// program.
pub fn state_version() -> u64 {
    let (_, number) = std::hint::black_box(STATE_VERSION).rsplit_once(' ').unwrap_or_default();
    number.parse().unwrap_or(0)
}

/// The whole memory, mapped.
#[derive(Debug)]
pub struct Map {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is reached under `State`'s lock, the header through atomics.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    pub fn of(file: &File) -> io::Result<Self> {
        let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        // SAFETY: a new mapping of a file that never shrinks.
        let at = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the mapping just made. Of no use in a dump, and not to be in one.
        unsafe { libc::madvise(at, len, libc::MADV_DONTDUMP) };
        Ok(Self { at: NonNull::new(at.cast()).expect("a mapping is somewhere"), len })
    }

    pub fn header(&self) -> &Header {
        // SAFETY: the mapping begins at a page and has at least a header; all of it are atomics.
        unsafe { self.at.cast().as_ref() }
    }

    /// Where a region begins.
    pub fn start(region: usize) -> usize {
        HEADER + region * REGION
    }

    /// Gets memory for a range, so that touching it cannot fail.
    pub fn grow(&self, file: &File, from: usize, len: usize) -> io::Result<()> {
        loop {
            // SAFETY: takes numbers only.
            match unsafe { libc::fallocate(file.as_raw_fd(), 0, from as i64, len as i64) } {
                0 => return Ok(()),
                _ => match io::Error::last_os_error() {
                    e if e.kind() == io::ErrorKind::Interrupted => {}
                    e => return Err(e),
                },
            }
        }
    }

    pub fn give_back(&self, file: &File, from: usize, len: usize) {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: takes numbers only. Nothing in the range counts any more.
        unsafe { libc::fallocate(file.as_raw_fd(), mode, from as i64, len as i64) };
    }

    pub fn read(&self, at: usize, len: usize) -> &[u8] {
        assert!(at + len <= self.len);
        // SAFETY: within the mapping; written before its length was counted in, and not changed
        // afterwards.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr().add(at), len) }
    }

    pub fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len);
        // SAFETY: within the mapping, beyond what counts, under the lock of the only writer.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at.as_ptr().add(at), bytes.len()) };
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: there is no reference into it any more.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.len) };
    }
}
