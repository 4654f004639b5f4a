//! One line that says how far something is, for who watches a terminal.
//!
//! On standard error, and only when that is a terminal: scripts and logs never see it. The line is written over and
//! taken away at the end, so what is printed afterwards stands alone.

use std::io::{self, IsTerminal, Write};

/// The line; nothing is shown before the first [`Progress::say`].
#[derive(Debug)]
pub struct Progress {
    terminal: bool,
    shown: bool,
}

impl Progress {
    /// For standard error as it is.
    pub fn on_stderr() -> Self {
        Self { terminal: io::stderr().is_terminal(), shown: false }
    }

    /// Shows this instead of what was shown.
    pub fn say(&mut self, text: &str) {
        if self.terminal {
            self.shown = true;
            // A terminal that is gone is no reason to stop.
            let _ = write!(io::stderr(), "\r\x1b[K{text}");
            let _ = io::stderr().flush();
        }
    }

    /// Takes the line away.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(io::stderr(), "\r\x1b[K");
            let _ = io::stderr().flush();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
