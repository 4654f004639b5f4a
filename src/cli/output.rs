//! Standard output of the commands.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use super::exit::{Exit, Failure};
use crate::console;

/// Standard output. A reader that goes away (`| head`) ends the command without a complaint.
pub struct Output {
    out: io::BufWriter<io::StdoutLock<'static>>,
    /// Whether a person reads it.
    pub terminal: bool,
}

impl Output {
    /// Nothing is written yet.
    pub fn new() -> Self {
        let out = console::stdout().lock();
        let terminal = out.is_terminal();
        Self { out: io::BufWriter::new(out), terminal }
    }

    /// False if nobody reads any more.
    pub fn line(&mut self, line: &str) -> Result<bool, Failure> {
        self.bytes(format!("{line}\n").as_bytes())
    }

    /// False if nobody reads any more.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<bool, Failure> {
        heard(self.out.write_all(bytes))
    }

    /// What is there goes out now; false if nobody reads any more.
    pub fn flush(&mut self) -> Result<bool, Failure> {
        heard(self.out.flush())
    }

    /// The end of the output, and of the command.
    pub fn finish(mut self) -> Result<ExitCode, Failure> {
        heard(self.out.flush()).map(|_| ExitCode::SUCCESS)
    }
}

/// Prints what `render` makes, as the whole output of a command.
pub fn print(render: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> anyhow::Result<()> {
    let mut text = Vec::new();
    render(&mut text)?;
    let mut out = Output::new();
    out.bytes(&text)?;
    Ok(out.finish().map(drop)?)
}

/// False if nobody reads any more, who had all that was wanted; an error if it could not be written.
pub fn heard(result: io::Result<()>) -> Result<bool, Failure> {
    match result {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(Failure::new(Exit::Failed, format!("cannot write to standard output: {e}"))),
    }
}
