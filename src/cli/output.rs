//! Standard output of the commands: lines for people, which are escaped ([`crate::display`]), and
//! data, which is exact.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use serde::Serialize;

use super::exit::{Exit, Failure};
use crate::display;
use crate::sys::stdio;

/// Standard output. A reader that goes away (`| head`) ends the command without a complaint.
pub struct Output {
    out: io::BufWriter<io::StdoutLock<'static>>,
    /// Whether a person reads it.
    pub terminal: bool,
}

impl Output {
    /// Nothing is written yet.
    pub fn new() -> Self {
        let out = stdio::stdout().lock();
        let terminal = out.is_terminal();
        Self { out: io::BufWriter::new(out), terminal }
    }

    /// One line for people; false if there is no reader any more.
    pub fn line(&mut self, line: impl Display) -> Result<bool, Failure> {
        self.bytes(format!("{}\n", display::line(line)).as_bytes())
    }

    /// Data, as it is; false if there is no reader any more.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<bool, Failure> {
        is_read(self.out.write_all(bytes))
    }

    /// What is there goes out now; false if there is no reader any more.
    pub fn flush(&mut self) -> Result<bool, Failure> {
        is_read(self.out.flush())
    }

    /// The end of the output, and of the command.
    pub fn finish(mut self) -> Result<ExitCode, Failure> {
        is_read(self.out.flush()).map(|_| ExitCode::SUCCESS)
    }
}

/// Lines for people, before they are printed.
#[derive(Debug, Default)]
pub struct Lines(String);

/// Colours of marks, as terminals know them.
pub const PLAIN: &str = "";
/// All is well.
pub const GREEN: &str = "\x1b[32m";
/// It should be mended.
pub const YELLOW: &str = "\x1b[33m";
/// It does not work.
pub const RED: &str = "\x1b[1;31m";

/// Whether standard output is a terminal that shows colours, and none forbids them (NO_COLOR).
fn has_colours() -> bool {
    anstream::AutoStream::choice(&stdio::stdout()) != anstream::ColorChoice::Never
}

impl Lines {
    /// A line with a mark in it, which is coloured where a person sees it.
    pub fn marked(&mut self, before: impl Display, colour: &str, mark: impl Display, after: impl Display) {
        let (before, mark, after) = (display::line(before), display::line(mark), display::line(after));
        self.0 += &match colour.is_empty() || !has_colours() {
            true => format!("{before}{mark}{after}\n"),
            false => format!("{before}{colour}{mark}\x1b[0m{after}\n"),
        };
    }

    /// One more, whatever is in it.
    pub fn line(&mut self, line: impl Display) {
        self.0 += &format!("{}\n", display::line(line));
    }
}

impl Display for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Prints what `render` makes, as the whole output of a command.
pub fn print(render: impl FnOnce(&mut Lines)) -> Result<(), Failure> {
    let mut lines = Lines::default();
    render(&mut lines);
    data(&lines.to_string())
}

/// Prints this as JSON, as the whole output of a command.
pub fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    Ok(data(&display::json(&text))?)
}

/// Prints these as a JSON array, one a line, as the whole output of a command.
pub fn print_array(items: impl Iterator<Item: Serialize>) -> Result<ExitCode, Failure> {
    let mut out = Output::new();
    let mut before = "[";
    for item in items {
        let item = serde_json::to_string(&item).expect("text, numbers and null always serialise");
        if !out.bytes(format!("{before}\n  {}", display::json(&item)).as_bytes())? {
            return Ok(ExitCode::SUCCESS);
        }
        before = ",";
    }
    out.bytes(if before == "[" { b"[]\n" } else { b"\n]\n" })?;
    out.finish()
}

/// Prints a text of ours for programs, as the whole output of a command.
pub fn data(text: &str) -> Result<(), Failure> {
    let mut out = Output::new();
    out.bytes(text.as_bytes())?;
    out.finish().map(drop)
}

/// False if the reader has closed the pipe; an error if it could not be written.
pub fn is_read(result: io::Result<()>) -> Result<bool, Failure> {
    match result {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(Failure::new(Exit::Failed, format!("cannot write to standard output: {e}"))),
    }
}
