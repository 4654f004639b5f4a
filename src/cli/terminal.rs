//! What a command says to and asks of a person at a terminal. Scripts see none of it.

use std::fmt::Display;
use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use zeroize::Zeroizing;

use crate::cli::exit::{Exit, Failure};
use crate::secret::SecretBytes;
use crate::sys::stdio;
use crate::sys::terminal::{self, Hidden, LINE_ROOM};

/// Says what was done, if a person sees both what a command prints and what it says.
pub fn done(sentence: impl Display) {
    if is_watched() {
        stdio::line(sentence);
    }
}

/// Whether a person sees both what a command prints and what it says.
pub fn is_watched() -> bool {
    stdio::is_watched() && stdio::stdout().is_terminal()
}

/// Whether a person can be asked.
pub fn can_ask() -> bool {
    stdio::is_watched() && io::stdin().is_terminal()
}

/// Whether the person says yes. The end of the input is no.
pub fn confirms(question: impl Display) -> bool {
    stdio::ask(format_args!("{question} [y/N]"));
    let mut answer = String::new();
    let _ = io::stdin().read_line(&mut answer);
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

/// Whether a standard descriptor was closed when the program started: the runtime puts /dev/null in
/// its place, for reading and writing, while a shell's `< /dev/null` is for reading only.
fn is_closed(standard: impl AsFd) -> bool {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let null = std::fs::metadata("/dev/null").ok();
    let seen = nix::sys::stat::fstat(&standard).ok();
    let is_null = null.zip(seen).is_some_and(|(null, seen)| null.rdev() == seen.st_rdev && seen.st_rdev != 0);
    let flags = fcntl(&standard, FcntlArg::F_GETFL).map(OFlag::from_bits_truncate);
    is_null && flags.is_ok_and(|flags| flags & OFlag::O_ACCMODE == OFlag::O_RDWR)
}

/// All of standard input, at most `max` bytes. What a person types is not shown, and its last Enter
/// is no part of it.
pub fn read_value(max: u64) -> Result<SecretBytes, Failure> {
    if is_closed(io::stdin()) {
        let sentence =
            "standard input is closed: nothing is stored (an empty value: printf '' | vaultfs put NAME)";
        return Err(Failure::new(Exit::Failed, sentence));
    }
    if !io::stdin().is_terminal() {
        return read(max, false).map(|(bytes, _)| bytes);
    }
    let hidden = Hidden::new();
    let hidden = hidden.map_err(|e| {
        let sentence =
            format!("the terminal cannot be kept from showing the value: {e}; use a pipe or a file");
        Failure::new(Exit::Failed, sentence)
    })?;
    stdio::say(
        "type or paste the value, of one or more lines; it is not shown. Enter and then Ctrl-D end it, and that Enter is \
         not part of the value",
    );
    let typed = read(max, true);
    if typed.is_err() {
        // The shell would take the rest for commands.
        terminal::forget_input();
    }
    drop(hidden);
    let (bytes, len) = typed?;
    if len == 0 {
        let sentence = "nothing was typed: nothing is stored (an empty value: printf '' | vaultfs put NAME)";
        return Err(Failure::new(Exit::Failed, sentence));
    }
    Ok(bytes)
}

/// The bytes, and how many there are. A terminal gives a line at a time; Ctrl-D ends one without
/// its newline.
fn read(max: u64, lines: bool) -> Result<(SecretBytes, usize), Failure> {
    let failed = |sentence: String| Failure::new(Exit::Failed, sentence);
    let mut input = io::stdin().lock();
    let mut bytes = SecretBytes::default();
    let mut buffer = Zeroizing::new(vec![0; 64 * 1024]);
    // The newline of the line before, which is part of the value if another line follows.
    let mut newline = false;
    loop {
        let n = match input.read(&mut buffer) {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(failed(format!("cannot read standard input: {e}"))),
        };
        if n == 0 {
            let len = bytes.len();
            return Ok((bytes, len));
        }
        let ended = lines && buffer[n - 1] != b'\n';
        if lines && n + usize::from(ended) >= LINE_ROOM {
            return Err(failed(format!(
                "a terminal cuts lines of {} bytes and more: nothing is stored; use a pipe or a file: vaultfs put \
                 NAME < FILE",
                LINE_ROOM - 1
            )));
        }
        if newline {
            bytes.write_at(bytes.len(), b"\n");
        }
        newline = lines && !ended;
        let part = &buffer[..n - usize::from(newline)];
        if (bytes.len() + part.len()) as u64 > max {
            return Err(failed(format!("the value is larger than {max} bytes, see --max-size")));
        }
        bytes.write_at(bytes.len(), part);
        if ended {
            let len = bytes.len();
            return Ok((bytes, len));
        }
    }
}
