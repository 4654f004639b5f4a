//! Standard input as a terminal that does not show what is typed.
//!
//! The terminal belongs to the shell, too: whatever ends this process meanwhile, but SIGKILL, first
//! makes it show again, and drops what was typed and not read: the shell would take the rest of a
//! secret for commands, and write it to its history.

use std::io;
use std::os::fd::AsFd;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, tcgetattr, tcsetattr};

/// The kernel's room for a line with its end, be it Enter or Ctrl-D. Of a longer line it drops the
/// rest, without a word: one that fills the room may be such a line.
pub const LINE_ROOM: usize = 4096;

/// What ends a process. Ctrl-Z is among them: it drops the half of a line that was typed before it.
const ENDS: [Signal; 5] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGTSTP];

/// How the terminal was, while it is hidden. Never freed: a handler may be at it.
static SHOWN: AtomicPtr<libc::termios> = AtomicPtr::new(null_mut());

/// While it lives, nothing that is typed is shown.
#[derive(Debug)]
pub struct Hidden {
    before: Vec<(Signal, SigAction)>,
}

impl Hidden {
    /// Hides what is typed at standard input.
    pub fn new() -> io::Result<Self> {
        let shown = tcgetattr(io::stdin())?;
        let mut hidden = shown.clone();
        hidden.local_flags.remove(LocalFlags::ECHO | LocalFlags::ECHONL);
        // A read gives a line, however the program before this one left the terminal.
        hidden.local_flags.insert(LocalFlags::ICANON | LocalFlags::ISIG);
        for end_of_line in [SpecialCharacterIndices::VEOL, SpecialCharacterIndices::VEOL2] {
            hidden.control_chars[end_of_line as usize] = 0;
        }
        SHOWN.store(Box::into_raw(Box::new(shown.into())), Ordering::Release);
        let action = SigAction::new(SigHandler::Handler(show_and_end), SaFlags::empty(), SigSet::empty());
        let mut guard = Self { before: Vec::new() };
        for signal in ENDS {
            // SAFETY: the handler calls only functions that signal handlers may call.
            guard.before.push((signal, unsafe { sigaction(signal, &action) }?));
        }
        // What was typed too early stays: it is the beginning of the value.
        tcsetattr(io::stdin().as_fd(), SetArg::TCSADRAIN, &hidden)?;
        Ok(guard)
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        show(libc::TCSADRAIN);
        for (signal, action) in &self.before {
            // SAFETY: what was there before.
            let _ = unsafe { sigaction(*signal, action) };
        }
    }
}

fn show(when: libc::c_int) {
    let shown = SHOWN.load(Ordering::Acquire);
    if !shown.is_null() {
        // SAFETY: it is set once it is complete, and is never freed.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, when, shown) };
    }
}

/// Drops what was typed and not read.
pub fn forget_input() {
    // SAFETY: takes no memory.
    unsafe { libc::tcflush(libc::STDIN_FILENO, libc::TCIFLUSH) };
}

extern "C" fn show_and_end(signal: libc::c_int) {
    let end = if signal == libc::SIGTSTP { libc::SIGINT } else { signal };
    // SAFETY: all of it may be called in a signal handler. In the background, changing a terminal
    // would stop this process.
    unsafe {
        libc::signal(libc::SIGTTOU, libc::SIG_IGN);
        show(libc::TCSAFLUSH);
        libc::signal(end, libc::SIG_DFL);
        libc::raise(end);
    }
}
