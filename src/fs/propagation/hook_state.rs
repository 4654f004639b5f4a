//! What of `--on-change` has to outlive the process: bytes that only the command runner
//! understands.

use crate::fs::FileSystem;
use crate::fs::journal::Key;

impl FileSystem {
    /// What the dead worker before this one had kept. Once.
    pub fn kept_commands(&self) -> Option<Vec<u8>> {
        self.kept_commands.lock().take()
    }

    /// Keeps this for a successor, in place of what was kept before.
    pub fn keep_commands(&self, what: Option<Vec<u8>>) {
        match what {
            Some(bytes) => self.env.journal().record(&Key::Commands, &bytes),
            None => self.env.journal().delete(&Key::Commands),
        }
    }
}
