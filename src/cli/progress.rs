//! A progress line for terminals.
//!
//! On standard error, and only when that is a terminal: scripts and logs never see it. The line is
//! written over and taken away at the end, so what is printed afterwards stands alone.

use crate::sys::stdio;

/// The line; nothing is shown before the first [`Progress::say`].
#[derive(Debug)]
pub struct Progress {
    terminal: bool,
    shown: bool,
}

impl Progress {
    /// For standard error as it is.
    pub fn on_stderr() -> Self {
        Self { terminal: stdio::is_watched(), shown: false }
    }

    /// Shows this instead of what was shown.
    pub fn say(&mut self, text: &str) {
        if self.terminal {
            self.shown = true;
            stdio::replace_line(text);
        }
    }

    /// Takes the line away.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            stdio::replace_line("");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
