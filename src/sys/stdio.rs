//! Standard output and standard error: the one place that writes there.
//!
//! Whoever reads them may be gone: a terminal that was closed, a pipe's reader that had enough, a full disk. The
//! macros of the standard library panic then, which would end a daemon with all that is unsaved, and a command with
//! another exit code than its own. So: what is said on standard error may be lost, and nothing else comes of it; what
//! cannot be written to standard output is an error like any other. `tests/project/layering.rs` keeps others away.
//! What is said is escaped ([`crate::display`]): each call is one line, whatever text of others is in it.
//!
//! SIGPIPE is ignored in all our processes (the runtime does that before `main`), so a missing reader is EPIPE here.

use std::fmt::Display;
use std::io::{self, IsTerminal, Stderr, Stdout, Write};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;

use crate::display;

/// A log's reader that has not taken a line by then is asleep.
const PATIENCE_MS: u16 = 200;

/// Says a sentence to who called the program.
pub fn say(sentence: impl Display) {
    line(format_args!("vaultfs: {sentence}"));
}

/// A line on standard error, in one write.
pub fn line(text: impl Display) {
    write(&format!("{}\n", display::line(text)));
}

/// Shows this in the last line of a terminal instead of what was shown there; nothing takes it away.
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

/// Standard error as a descriptor, to look at.
pub fn stderr() -> Stderr {
    io::stderr()
}

/// Standard output, for data. An error of it has to reach the caller.
pub fn stdout() -> Stdout {
    io::stdout()
}

/// Standard error as a log's place: lines are lost where they cannot be written, or would have to wait for a reader that sleeps
/// (a terminal that was stopped, a pager), because a mount must not wait for its log.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogStream;

/// One line at a time; whether the reader was asleep at the last.
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
