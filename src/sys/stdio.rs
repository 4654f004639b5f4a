//! Standard output and standard error: the one place that writes there.
//!
//! Their reader may be gone: a closed terminal, a pipe without a reader, a full disk. The macros of
//! the standard library panic then, which would end a daemon with its unsaved writes, and a command
//! with a wrong exit code. So a line on standard error may be lost without further effect, and a
//! failed write to standard output is an error like any other. `tests/project/layering.rs` forbids
//! the macros elsewhere. Text on standard error is escaped ([`crate::display`]): each call is one
//! line.
//!
//! SIGPIPE is ignored in all our processes (the runtime does that before `main`), so a missing
//! reader is EPIPE here.

use std::fmt::Display;
use std::io::{self, IsTerminal, Stderr, Stdout, Write};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;

use crate::display;

/// Timeout after which the reader of a log counts as stopped.
const PATIENCE_MS: u16 = 200;

/// Prints a message for the caller of the program on standard error.
pub fn say(sentence: impl Display) {
    line(format_args!("vaultfs: {sentence}"));
}

/// A line on standard error, in one write.
pub fn line(text: impl Display) {
    write(&format!("{}\n", display::line(text)));
}

/// Asks on standard error; the answer follows on the same line.
pub fn ask(question: impl Display) {
    write(&format!("vaultfs: {} ", display::line(question)));
}

/// Replaces the last line of a terminal; empty text clears it.
pub fn replace_line(text: impl Display) {
    write(&format!("\r\x1b[K{}", display::line(text)));
}

fn write(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Whether a person may watch standard error.
pub fn is_watched() -> bool {
    io::stderr().is_terminal()
}

/// Standard error as a descriptor, for checks.
pub fn stderr() -> Stderr {
    io::stderr()
}

/// Standard output, for data. An error of it has to reach the caller.
pub fn stdout() -> Stdout {
    io::stdout()
}

/// Standard error as a log's place: lines are lost where they cannot be written, or would have to
/// wait for a reader that sleeps (a terminal that was stopped, a pager), because a mount must not
/// wait for its log.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogStream;

/// Serializes lines; whether the reader had stopped at the last one.
static ASLEEP: Mutex<bool> = Mutex::new(false);

impl Write for LogStream {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let stderr = io::stderr();
        let mut asleep = ASLEEP.lock();
        // Only the first line waits for a reader that sleeps.
        let patience = if *asleep { PollTimeout::ZERO } else { PollTimeout::from(PATIENCE_MS) };
        *asleep = poll(&mut [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)], patience) == Ok(0);
        if !*asleep {
            let _ = (&stderr).write_all(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
