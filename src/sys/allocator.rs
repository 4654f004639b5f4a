//! Returns unused memory to the system.
//!
//! glibc keeps freed memory below blocks in use, and has an arena for each allocating thread: a
//! burst of requests would stay resident for the life of the mount. So there are few arenas, large
//! blocks have their own mapping and are returned when they are freed, and free pages are trimmed
//! when memory has stopped growing and much of it is free. Locked memory stays locked: only the end
//! of the heap can be trimmed then (the kernel refuses to drop locked pages in the middle), and
//! smaller blocks already have their own mapping.

use std::time::Duration;

/// Arenas of the allocator: threads that allocate at once are few, and each arena holds on to what
/// it had.
const ARENAS: libc::c_int = 2;
/// Blocks from this size on, in bytes, have a mapping of their own. Without this setting glibc
/// raises this to the largest that was ever freed (up to 32 MiB), and a vault's answers without end
/// would leave holes in the heap that grow by and by.
const LARGE: libc::c_int = 64 * 1024;
/// Interval between checks.
const PAUSE: Duration = Duration::from_secs(10);
/// Trim only for at least so many free bytes.
const WORTH: u64 = 512 * 1024;

/// Sets the limits of the allocator. To be called before there are threads.
pub fn tune() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets two numbers, in a process that has one thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

/// Trims from time to time, for ever.
pub async fn give_back() {
    let mut watch = Watch::default();
    loop {
        tokio::time::sleep(PAUSE).await;
        // It walks through the heap: for a large one that takes longer than others should wait.
        let task = tokio::task::spawn_blocking(move || {
            if watch.is_time(resident(), in_use()) {
                trim();
                watch.trimmed(resident(), in_use());
            }
            watch
        });
        // A panic in there would be the allocator's.
        watch = task.await.unwrap_or_default();
    }
}

/// Resident bytes of this process; 0 if unknown.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    pages * 4096
}

/// Bytes that the allocator has handed out, modulo 4 GiB (mallinfo2 is not in every C library that
/// is in use).
fn in_use() -> u64 {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: takes no pointers, returns a structure of numbers.
        let info = unsafe { libc::mallinfo() };
        u64::from(info.uordblks as u32) + u64::from(info.hblkhd as u32)
    }
    #[cfg(not(target_env = "gnu"))]
    0
}

fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers; the allocator locks what it walks through.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[derive(Debug, Default)]
struct Watch {
    /// Resident bytes at the last check.
    last: u64,
    /// Resident bytes not in use after the last trim.
    rest: u64,
}

impl Watch {
    /// Whether memory has stopped growing and a trim would free pages.
    fn is_time(&mut self, resident: u64, in_use: u64) -> bool {
        let stopped = resident <= self.last + WORTH;
        self.last = resident;
        stopped && resident.saturating_sub(in_use) > self.rest + WORTH
    }

    fn trimmed(&mut self, resident: u64, in_use: u64) {
        self.last = resident;
        self.rest = resident.saturating_sub(in_use);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_waits_for_the_end_of_a_burst_and_trims_once() {
        let mut watch = Watch::default();
        let mb = |n: u64| n << 20;
        assert!(!watch.is_time(mb(10), mb(2)), "it grows");
        assert!(watch.is_time(mb(10), mb(2)));
        watch.trimmed(mb(9), mb(2));
        assert!(!watch.is_time(mb(9), mb(2)), "nothing is to be had");
        assert!(!watch.is_time(mb(50), mb(40)) && !watch.is_time(mb(90), mb(80)));
        assert!(watch.is_time(mb(90), mb(80)));
        watch.trimmed(mb(88), mb(80));
        assert!(watch.is_time(mb(88), mb(20)), "what is freed later counts, although nothing grew");
        watch.trimmed(mb(28), mb(20));
        assert!(!watch.is_time(mb(28), mb(20)));
    }

    #[test]
    #[cfg(target_env = "gnu")]
    fn a_large_block_is_mapped_also_after_another_was_freed() {
        // In a process of its own: what other tests freed may hold the block as well.
        const ALONE: &str = "VAULTFS_TEST_ALONE";
        if std::env::var_os(ALONE).is_none() {
            let name = std::thread::current().name().unwrap().to_owned();
            let mut again = std::process::Command::new(std::env::current_exe().unwrap());
            assert!(again.args(["--exact", &name]).env(ALONE, "1").status().unwrap().success());
            return;
        }
        tune();
        for size in (1..4).map(|n| n << 22) {
            let block = std::hint::black_box(vec![1_u8; size]);
            // What has a mapping of its own begins behind the allocator's 16 bytes at the start of
            // a page.
            assert_eq!(block.as_ptr().addr() % 4096, 16, "{size} bytes are in the heap");
            drop(std::hint::black_box(vec![1_u8; 4 * size]));
        }
    }

    #[test]
    fn it_knows_how_much_is_resident() {
        let before = resident();
        let block = std::hint::black_box(vec![1_u8; 64 << 20]);
        assert!(before > 0 && resident() >= before + (60 << 20));
        drop(block);
    }
}
