//! Times, ratios and their spread; and the operations that are timed, as system calls without
//! anything around them.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// A median with what lies around it.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Spread {
    /// Of at least one figure.
    pub fn of(mut figures: Vec<f64>) -> Self {
        figures.sort_by(f64::total_cmp);
        let last = figures.len() - 1;
        Self { median: figures[figures.len() / 2], least: figures[0], most: figures[last] }
    }

    /// As a ratio.
    pub fn times(&self) -> (String, String) {
        (format!("{:.2} ×", self.median), format!("{:.2}–{:.2}", self.least, self.most))
    }

    /// Of seconds, as microseconds.
    pub fn micros(&self) -> (String, String) {
        let us = |s: f64| s * 1e6;
        (format!("{:.1} µs", us(self.median)), format!("{:.1}–{:.1}", us(self.least), us(self.most)))
    }

    /// Of seconds, as milliseconds.
    pub fn millis(&self) -> (String, String) {
        let ms = |s: f64| s * 1e3;
        (format!("{:.2} ms", ms(self.median)), format!("{:.2}–{:.2}", ms(self.least), ms(self.most)))
    }
}

/// The value below which `part` of the figures lie.
pub fn quantile(figures: &mut [f64], part: f64) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[((figures.len() - 1) as f64 * part).round() as usize]
}

/// Times two sides in rounds, the one that begins taking turns; each side is measured in `parts` of
/// a round, one of ours, one of theirs and so on, and the median of its parts is what it took.
pub fn compare(
    rounds: usize,
    parts: usize,
    mut ours: impl FnMut() -> Result<Duration, String>,
    mut theirs: impl FnMut() -> Result<Duration, String>,
) -> Result<(Spread, Spread), String> {
    let (mut ratios, mut times) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for part in 0..parts {
            if (round + part) % 2 == 0 {
                a.push(ours()?.as_secs_f64());
                b.push(theirs()?.as_secs_f64());
            } else {
                b.push(theirs()?.as_secs_f64());
                a.push(ours()?.as_secs_f64());
            }
        }
        let (a, b) = (Spread::of(a).median, Spread::of(b).median);
        ratios.push(a / b);
        times.push(a);
    }
    Ok((Spread::of(ratios), Spread::of(times)))
}

/// How long `work` takes.
pub fn time<T>(work: impl FnOnce() -> Result<T, String>) -> Result<Duration, String> {
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed())
}

/// A path as system calls take it.
pub fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("paths made here have no NUL")
}

fn failed(what: &str, path: &CStr) -> String {
    format!("{what} {}: {}", path.to_string_lossy(), std::io::Error::last_os_error())
}

/// open, fstat, read, close.
pub fn cat(path: &CStr, buffer: &mut [u8]) -> Result<usize, String> {
    // SAFETY: the path ends in NUL, the structure and the buffer are as large as is said.
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if fd < 0 {
            return Err(failed("open", path));
        }
        let mut stat = std::mem::zeroed();
        let ok = libc::fstat(fd, &mut stat) == 0;
        let read = libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len());
        libc::close(fd);
        if !ok || read < 0 || read as i64 != stat.st_size {
            return Err(failed("read", path));
        }
        Ok(read as usize)
    }
}

/// stat.
pub fn stat(path: &CStr) -> Result<(), String> {
    // SAFETY: as above.
    let done = unsafe {
        let mut stat = std::mem::zeroed();
        libc::stat(path.as_ptr(), &mut stat)
    };
    if done == 0 { Ok(()) } else { Err(failed("stat", path)) }
}

/// open with O_TRUNC, write, close.
pub fn save(path: &CStr, bytes: &[u8]) -> Result<(), String> {
    // SAFETY: as above.
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_TRUNC | libc::O_CLOEXEC);
        if fd < 0 {
            return Err(failed("open", path));
        }
        let written = libc::write(fd, bytes.as_ptr().cast(), bytes.len());
        if libc::close(fd) != 0 || written != bytes.len() as isize {
            return Err(failed("write", path));
        }
    }
    Ok(())
}

/// readdir to the end, with a stat of each name if asked; the number of names.
pub fn list(path: &CStr, with_stat: bool) -> Result<usize, String> {
    let mut names = 0;
    // SAFETY: the stream is open until closedir; a name is looked at before the next is asked for.
    unsafe {
        let dir = libc::opendir(path.as_ptr());
        if dir.is_null() {
            return Err(failed("opendir", path));
        }
        let fd = libc::dirfd(dir);
        loop {
            *libc::__errno_location() = 0;
            let entry = libc::readdir(dir);
            if entry.is_null() {
                break;
            }
            let name = (*entry).d_name.as_ptr();
            if *name == b'.' as libc::c_char {
                continue;
            }
            names += 1;
            if with_stat {
                let mut stat = std::mem::zeroed();
                if libc::fstatat(fd, name, &mut stat, libc::AT_SYMLINK_NOFOLLOW) != 0 {
                    return Err(failed("fstatat", CStr::from_ptr(name)));
                }
            }
        }
        let errno = *libc::__errno_location();
        libc::closedir(dir);
        if errno != 0 {
            return Err(failed("readdir", path));
        }
    }
    Ok(names)
}

/// Runs `work` in so many threads at once; from the moment they all start to the end of the last.
pub fn in_threads(
    threads: usize,
    work: impl Fn(usize) -> Result<(), String> + Sync,
) -> Result<Duration, String> {
    let barrier = std::sync::Barrier::new(threads + 1);
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|n| {
                let (barrier, work) = (&barrier, &work);
                std::thread::Builder::new()
                    .stack_size(128 * 1024)
                    .spawn_scoped(scope, move || {
                        barrier.wait();
                        work(n)
                    })
                    .map_err(|e| format!("no thread: {e}"))
            })
            .collect::<Result<_, _>>()?;
        barrier.wait();
        let begun = Instant::now();
        for thread in running {
            thread.join().map_err(|_| "a thread panicked")??;
        }
        Ok(begun.elapsed())
    })
}
