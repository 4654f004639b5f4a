//! What the parser says about a command line that it does not understand, without repeating what
//! may be a secret.
//!
//! A value in `vaultfs put NAME VALUE`, or a key given to a switch, is in the shell's history
//! already. But the parser's message may also go to a journal or a build's log, where it must not
//! be.

use std::ffi::OsString;

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory};

use crate::cli::Cli;
use crate::cli::args::hints;
use crate::display;

/// In place of what was given.
const KEPT_BACK: &str = "…";

/// The parser's error about this command line, with our tips, and without values that no option
/// takes.
pub fn explained(mut e: clap::Error, args: &[OsString]) -> clap::Error {
    let root = Cli::command();
    let (command, rest) = named(&root, args);
    let text = |e: &clap::Error, kind| match e.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        _ => String::new(),
    };
    let argument = text(&e, ContextKind::InvalidArg);
    let hide = |e: &mut clap::Error, kind| _ = e.insert(kind, ContextValue::String(KEPT_BACK.to_owned()));
    let mut tip = None;
    match e.kind() {
        ErrorKind::InvalidSubcommand => {
            let typed = text(&e, ContextKind::InvalidSubcommand);
            tip = hints::command(command, &typed).map(|ours| format!("did you mean '{ours}'?"));
            if !is_word(&typed) {
                hide(&mut e, ContextKind::InvalidSubcommand);
            }
        }
        ErrorKind::UnknownArgument if argument.starts_with('-') => {
            let typed = argument.trim_start_matches('-');
            // A short one is too short to be like another.
            let long = argument.starts_with("--").then(|| hints::option(command, typed));
            tip = long.flatten().map(|ours| format!("did you mean {ours}?"));
            if !is_word(typed) {
                hide(&mut e, ContextKind::InvalidArg);
            }
        }
        ErrorKind::UnknownArgument => {
            hide(&mut e, ContextKind::InvalidArg);
            tip = Some(hints::surplus(command, &rest));
        }
        ErrorKind::InvalidValue => {
            let values = match e.get(ContextKind::ValidValue) {
                Some(ContextValue::Strings(values)) => values.clone(),
                _ => Vec::new(),
            };
            let typed = text(&e, ContextKind::InvalidValue);
            tip = hints::nearest(&typed, values.into_iter()).map(|value| format!("did you mean '{value}'?"));
            if !is_word(&typed) {
                hide(&mut e, ContextKind::InvalidValue);
            }
        }
        ErrorKind::TooManyValues => hide(&mut e, ContextKind::InvalidValue),
        ErrorKind::ValueValidation if !argument.starts_with('-') => hide(&mut e, ContextKind::InvalidValue),
        _ => {}
    }
    // The parser would have a secret passed after `--`. (It guesses no names: that feature of it is
    // off, because it knows nothing of what is hidden.)
    e.remove(ContextKind::Suggested);
    if let Some(tip) = tip {
        e.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![StyledStr::from(tip)]));
    }
    escaped(e)
}

/// The command that the first words of a command line name, and the words after them.
fn named<'a, 'b>(root: &'a Command, args: &'b [OsString]) -> (&'a Command, Vec<&'b str>) {
    let mut words = args.iter().skip(1).map(|arg| arg.to_str().unwrap_or_default()).peekable();
    let mut command = root;
    while let Some(sub) = words.peek().and_then(|word| command.find_subcommand(word)) {
        command = sub;
        words.next();
    }
    (command, words.collect())
}

/// Whether it looks like the name of a command or an option, and not like a secret.
fn is_word(text: &str) -> bool {
    text.len() <= 24
        && !text.starts_with("sk_")
        && text.chars().all(|c| c.is_ascii_alphabetic() || matches!(c, '-' | '_'))
}

/// The same error with what was given shown as other text that is not ours is: the parser would
/// repeat it as it is.
fn escaped(mut e: clap::Error) -> clap::Error {
    let given = e.context().filter_map(|(kind, value)| match value {
        ContextValue::String(text) => Some((kind, text.clone(), display::line(text).to_string())),
        _ => None,
    });
    let hostile: Vec<_> = given.filter(|(_, text, shown)| text != shown).collect();
    for (kind, _, shown) in hostile {
        e.insert(kind, ContextValue::String(shown));
    }
    e
}
