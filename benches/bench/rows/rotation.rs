//! Changes made elsewhere: how soon an open sees them, and that nobody ever sees a mixture.

use std::ffi::CString;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{hundred, names};
use crate::Plan;
use crate::measure::{c_path, quantile};
use crate::mount::Place;
use crate::report::Report;
use crate::vault::{Vault, value};

/// How long a change may take to show before a run is given up.
const PATIENCE: Duration = Duration::from_secs(20);

/// Which version the bytes are of, if they begin as those of an object do.
fn version_of(bytes: &[u8]) -> Option<u32> {
    std::str::from_utf8(bytes.get(8..14)?).ok()?.parse().ok()
}

pub fn freshness(plan: &Plan, report: &mut Report) -> Result<(), String> {
    let names = names("app/", 200);
    let vault = Vault::start(names.clone(), hundred)?;
    let place = Place::new()?;
    let mount = place.mount("mnt", &vault.url, &["--read-only", "--refresh=200ms"])?;
    let paths: Vec<_> = names.iter().map(|name| mount.path(name)).collect();
    for path in &paths {
        std::fs::read(path).map_err(|e| e.to_string())?;
    }
    let (mut after_told, mut after_change) = (Vec::new(), Vec::new());
    let changes = if plan.quick { 40 } else { 200 };
    for n in (0..200).cycle().take(changes) {
        let (changed, version) = (Instant::now(), vault.change(n));
        loop {
            let bytes = std::fs::read(&paths[n as usize]).map_err(|e| e.to_string())?;
            let seen = Instant::now();
            if version_of(&bytes) == Some(version) {
                let told = vault.told(n, version).ok_or("a version was seen that nobody told of")?;
                after_told.push(seen.saturating_duration_since(told).as_secs_f64());
                after_change.push((seen - changed).as_secs_f64());
                break;
            }
            if seen - changed > PATIENCE {
                return Err(format!("a change was not seen in {PATIENCE:?}"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // Not in step with the refresher.
        std::thread::sleep(Duration::from_millis(u64::from(n * 37) % 150));
    }
    let median = quantile(&mut after_told, 0.5);
    let p99 = quantile(&mut after_told, 0.99);
    let spread =
        format!("median {:.1} ms, worst {:.1} ms", median * 1e3, quantile(&mut after_told, 1.0) * 1e3);
    report.row(
        "freshness",
        format!("from the vault's answer to the first open that sees the new value, {changes} changes"),
        "p99 ≤ 50 ms",
        (format!("p99 {:.1} ms", p99 * 1e3), spread),
        p99 <= 0.05,
    );
    let p99 = quantile(&mut after_change, 0.99);
    let spread = format!("median {:.0} ms", quantile(&mut after_change, 0.5) * 1e3);
    report.told(
        "from the change in the vault, with --refresh=200ms",
        (format!("p99 {:.0} ms", p99 * 1e3), spread),
    );
    Ok(())
}

/// 20 to 5,019 bytes, another size each time.
fn changing(n: u32, version: u32) -> usize {
    (20 + (u64::from(n) * 7919 + u64::from(version) * 104_729) % 5000) as usize
}

#[derive(Default)]
struct Seen {
    reads: AtomicU64,
    torn: AtomicU64,
    cut: AtomicU64,
    wrong_sizes: AtomicU64,
    /// Errors of open and read.
    failed: AtomicU64,
}

impl Seen {
    /// Looks at what a reader of object `n` got, and the size it was told.
    fn look(&self, n: u32, bytes: &[u8], told: usize) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let Some(version) = version_of(bytes) else {
            self.torn.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let whole = value(n, version, changing(n, version));
        if bytes.len() != told || told != whole.len() {
            self.wrong_sizes.fetch_add(1, Ordering::Relaxed);
        }
        if bytes.len() < whole.len() && whole.as_bytes().starts_with(bytes) {
            self.cut.fetch_add(1, Ordering::Relaxed);
        } else if bytes != whole.as_bytes() {
            self.torn.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// An open file.
struct Fd(i32);

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: opened by `open` and closed only here.
        unsafe { libc::close(self.0) };
    }
}

fn open(path: &CString) -> Option<(Fd, usize)> {
    // SAFETY: the path ends in NUL; the structure is as large as the call takes it to be.
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if fd < 0 {
            return None;
        }
        let fd = Fd(fd);
        let mut stat: libc::stat = std::mem::zeroed();
        (libc::fstat(fd.0, &mut stat) == 0).then_some((fd, stat.st_size as usize))
    }
}

fn pread(fd: &Fd, buffer: &mut [u8], at: usize) -> Option<usize> {
    // SAFETY: the buffer is as long as is said.
    let n = unsafe { libc::pread(fd.0, buffer.as_mut_ptr().cast(), buffer.len(), at as i64) };
    usize::try_from(n).ok()
}

/// Opens and reads, again and again.
fn reopen(n: u32, path: &CString, seen: &Seen) -> Option<()> {
    let (fd, told) = open(path)?;
    let mut buffer = [0; 8192];
    let len = pread(&fd, &mut buffer, 0)?;
    seen.look(n, &buffer[..len], told);
    Some(())
}

/// Keeps a file open for a while and reads it in pieces.
fn hold(n: u32, path: &CString, seen: &Seen) -> Option<()> {
    let (fd, told) = open(path)?;
    let (mut bytes, mut piece) = (Vec::new(), [0; 700]);
    loop {
        let len = pread(&fd, &mut piece, bytes.len())?;
        if len == 0 {
            break;
        }
        bytes.extend_from_slice(&piece[..len]);
        std::thread::sleep(Duration::from_micros(300));
    }
    seen.look(n, &bytes, told);
    Some(())
}

/// Maps a file, and looks at it twice.
fn map(n: u32, path: &CString, seen: &Seen) -> Option<()> {
    let (fd, told) = open(path)?;
    // SAFETY: the mapping is of the size asked for, private to this function, and unmapped at its
    // end. The file does not shrink under it: that is what is measured, and a fault would end the
    // run.
    unsafe {
        let at = libc::mmap(std::ptr::null_mut(), told, libc::PROT_READ, libc::MAP_SHARED, fd.0, 0);
        if at == libc::MAP_FAILED {
            return None;
        }
        for _ in 0..2 {
            seen.look(n, std::slice::from_raw_parts(at.cast(), told), told);
            std::thread::sleep(Duration::from_micros(500));
        }
        libc::munmap(at, told);
    }
    Some(())
}

type Reader = fn(u32, &CString, &Seen) -> Option<()>;
const READERS: [Reader; 4] = [reopen, reopen, hold, map];

/// Counts what is moved into a directory.
struct Watch(Fd);

impl Watch {
    fn start(directory: &CString) -> Result<Self, String> {
        // SAFETY: takes no pointers but the path, which ends in NUL.
        unsafe {
            let fd = libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC);
            if fd < 0 || libc::inotify_add_watch(fd, directory.as_ptr(), libc::IN_MOVED_TO) < 0 {
                return Err(format!("inotify: {}", std::io::Error::last_os_error()));
            }
            Ok(Self(Fd(fd)))
        }
    }

    /// Events since the last time.
    fn count(&self) -> u64 {
        let (mut buffer, mut count) = (vec![0_u8; 64 * 1024], 0);
        loop {
            // SAFETY: the buffer is as long as is said.
            let n = unsafe { libc::read(self.0.0, buffer.as_mut_ptr().cast(), buffer.len()) };
            let Ok(n @ 1..) = usize::try_from(n) else { return count };
            let mut at = 0;
            while at + 16 <= n {
                let word = |at: usize| {
                    u32::from_ne_bytes([buffer[at], buffer[at + 1], buffer[at + 2], buffer[at + 3]])
                };
                count += u64::from(word(at + 4) & libc::IN_MOVED_TO != 0);
                at += 16 + word(at + 12) as usize;
            }
        }
    }
}

const FILES: u32 = 100;

pub fn rotations(plan: &Plan, report: &mut Report) -> Result<(), String> {
    let names = names("app/", FILES as usize);
    let vault = Vault::start(names.clone(), changing)?;
    let place = Place::new()?;
    let mount = place.mount("mnt", &vault.url, &["--read-only", "--refresh=100ms"])?;
    let paths: Vec<_> = names.iter().map(|name| c_path(&mount.path(name))).collect();
    for path in &names {
        std::fs::read(mount.path(path)).map_err(|e| e.to_string())?;
    }
    let watch = Watch::start(&c_path(&mount.path("app")))?;
    let (seen, over) = (Seen::default(), AtomicBool::new(false));
    let batches = if plan.quick { 10 } else { 100 };
    let begun = Instant::now();
    let moved = std::thread::scope(|scope| {
        for (k, reader) in READERS.into_iter().enumerate() {
            let (seen, over, paths) = (&seen, &over, &paths);
            scope.spawn(move || {
                let mut n = k as u32 * 31;
                while !over.load(Ordering::Relaxed) {
                    n = (n * 5 + 17) % FILES;
                    if reader(n, &paths[n as usize], seen).is_none() {
                        seen.failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let moved = rotate(&vault, &watch, batches);
        over.store(true, Ordering::Relaxed);
        moved
    })?;
    let took = begun.elapsed().as_secs_f64();
    let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
    let bad = [&seen.torn, &seen.cut, &seen.wrong_sizes, &seen.failed].map(count);
    let told = vault.versions_told().len() as u64;
    report.row(
        "rotation",
        format!("{told} rotations of changing size, 4 readers (2 reopen, a held descriptor, a mapping)"),
        "0 torn, 0 cut, 0 wrong sizes",
        (
            format!("{} torn, {} cut, {} wrong sizes, {} failed", bad[0], bad[1], bad[2], bad[3]),
            format!("of {} reads in {took:.0} s", count(&seen.reads)),
        ),
        bad == [0; 4],
    );
    report.row(
        "inotify",
        "IN_MOVED_TO events",
        format!("{told}: one for each version that the refresher saw"),
        (moved.to_string(), "exact".into()),
        moved == told,
    );
    Ok(())
}

/// Changes all files so many times, each time once the last is done: the refresher has seen it, and
/// everybody who watches. Returns the events that came.
fn rotate(vault: &Vault, watch: &Watch, batches: usize) -> Result<u64, String> {
    let mut moved = 0;
    for _ in 0..batches {
        let versions: Vec<(u32, u32)> = (0..FILES).map(|n| (n, vault.change(n))).collect();
        let due = moved + u64::from(FILES);
        let mut end = Instant::now() + PATIENCE;
        let told = || versions.iter().all(|(n, version)| vault.told(*n, *version).is_some());
        let mut seen = false;
        while Instant::now() < end && !(seen && moved >= due) {
            std::thread::sleep(Duration::from_millis(2));
            let more = watch.count();
            moved += more;
            if !seen && told() {
                seen = true;
            }
            if seen && more > 0 {
                // Two seconds without an event: the rest does not come.
                end = Instant::now() + Duration::from_secs(2);
            }
        }
        if !seen {
            return Err(format!("the changes were not asked for in {PATIENCE:?}"));
        }
    }
    // What should not be.
    std::thread::sleep(Duration::from_millis(500));
    Ok(moved + watch.count())
}
