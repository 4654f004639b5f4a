//! What shells complete: the words of a command line, and what an argument names.
//!
//! Each script only asks `vaultfs complete-words` at each Tab, with the words up to the cursor. The
//! answer comes from the definitions that parse the command line, and, for mount points, object
//! names and unsaved writes, from what is mounted. Files and directories are left to the shell,
//! which knows `~` and quotes. clap_complete's dynamic engine does the same with paths of its own,
//! which know neither, and is not stable yet.
//!
//! Names of objects are anybody's: a script never evaluates a word, and quotes what it inserts.

use clap::{Arg, Command, CommandFactory};

use crate::cli::Cli;
use crate::cli::args::mount_options;
use crate::cli::docs::live_words;
use crate::display;

/// A shell that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Shell {
    /// GNU bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

impl Shell {
    /// Its script.
    pub fn script(self) -> &'static str {
        match self {
            Self::Bash => include_str!("completion.bash"),
            Self::Zsh => include_str!("completion.zsh"),
            Self::Fish => include_str!("completion.fish"),
        }
    }
}

/// A word that may stand at the cursor, and what it is.
type Word = (String, String);

/// What may stand at the cursor.
#[derive(Debug, PartialEq, Eq)]
enum Offer {
    /// A file, which the shell knows.
    Files,
    /// A directory, likewise.
    Directories,
    /// One of these.
    Words(Vec<Word>),
}

impl Offer {
    /// For a script: what it is, then a word a line, each with a tab and what it is.
    fn render(&self) -> String {
        match self {
            Self::Files => "files\n".into(),
            Self::Directories => "dirs\n".into(),
            Self::Words(words) => {
                let plain = words.iter().filter(|(word, _)| display::line(word).to_string() == *word);
                plain.fold("words\n".into(), |all, (word, about)| all + &format!("{word}\t{about}\n"))
            }
        }
    }
}

/// The words before the cursor, as far as they say what stands at it.
struct Before<'a> {
    command: &'a Command,
    /// An option that waits for its value.
    open: Option<&'a Arg>,
    /// How many arguments the command has been given.
    arguments: usize,
    /// Whether `--` has ended the options.
    ended: bool,
}

impl<'a> Before<'a> {
    fn read(root: &'a Command, words: &[String]) -> Self {
        let mut at = Self { command: root, open: None, arguments: 0, ended: false };
        words.iter().for_each(|word| at.follow(word));
        at
    }

    fn follow(&mut self, word: &str) {
        if self.open.take().is_some() {
            return;
        }
        match word.strip_prefix('-').filter(|_| !self.ended) {
            Some("-") => self.ended = true,
            Some(option) if !option.is_empty() => self.open = self.waits(option),
            _ => match self.command.find_subcommand(word) {
                Some(sub) if self.arguments == 0 => self.command = sub,
                _ => self.arguments += 1,
            },
        }
    }

    /// The option, if its value is the next word.
    fn waits(&self, option: &str) -> Option<&'a Arg> {
        let takes = |arg: &&Arg| arg.get_action().takes_values() && !arg.is_require_equals_set();
        let mut all = self.command.get_arguments();
        match option.strip_prefix('-') {
            Some(long) => all.find(|arg| named(arg, long)).filter(takes),
            // The first one of a cluster that takes a value has the rest of it.
            None => {
                let last = option.chars().last();
                let of = |c: char| self.command.get_arguments().find(|arg| arg.get_short() == Some(c));
                let first = option.chars().find(|c| of(*c).as_ref().is_some_and(takes))?;
                of(first).filter(|_| Some(first) == last)
            }
        }
    }
}

fn named(arg: &Arg, long: &str) -> bool {
    arg.get_long() == Some(long) || arg.get_all_aliases().is_some_and(|all| all.contains(&long))
}

/// What may stand at the cursor. The last of `words` is the one that it is in, maybe empty.
fn offer(words: &[String]) -> Offer {
    let mut root = Cli::command();
    root.build();
    let Some((current, before)) = words.split_last() else { return Offer::Words(Vec::new()) };
    let at = Before::read(&root, before);
    let all = match (at.open, current.strip_prefix("--").and_then(|long| long.split_once('='))) {
        (Some(arg), _) => value(at.command, arg, current, words),
        (None, Some((long, given))) if !at.ended => {
            let arg = at.command.get_arguments().find(|arg| named(arg, long));
            match arg.map(|arg| value(at.command, arg, given, words)) {
                Some(Offer::Words(found)) => {
                    let whole = |(word, about)| (format!("--{long}={word}"), about);
                    Offer::Words(found.into_iter().map(whole).collect())
                }
                other => other.unwrap_or(Offer::Words(Vec::new())),
            }
        }
        _ if current.starts_with('-') && !at.ended => Offer::Words(options(at.command)),
        _ => argument(&at, current, words),
    };
    match all {
        Offer::Words(mut all) => {
            // A path from ~ becomes a whole one.
            all.retain(|(word, _)| word.starts_with(current.as_str()) || current.starts_with('~'));
            Offer::Words(all)
        }
        other => other,
    }
}

fn options(command: &Command) -> Vec<Word> {
    let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
    shown.filter_map(|arg| Some((format!("--{}", arg.get_long()?), about(arg.get_help())))).collect()
}

fn about(text: Option<&clap::builder::StyledStr>) -> String {
    text.map(ToString::to_string).unwrap_or_default().lines().next().unwrap_or_default().to_owned()
}

fn argument(at: &Before<'_>, current: &str, words: &[String]) -> Offer {
    let mut commands = at.command.get_subcommands().filter(|sub| !sub.is_hide_set()).peekable();
    if commands.peek().is_some() && at.arguments == 0 {
        let word = |sub: &Command| (sub.get_name().to_owned(), about(sub.get_about()));
        return Offer::Words(commands.map(word).collect());
    }
    let mut all = at.command.get_positionals();
    let several = |arg: &&Arg| arg.get_num_args().is_some_and(|range| range.max_values() > 1);
    match all.nth(at.arguments).or_else(|| at.command.get_positionals().last().filter(several)) {
        Some(arg) => value(at.command, arg, current, words),
        None => Offer::Words(Vec::new()),
    }
}

/// What an argument or an option of a command may be.
fn value(command: &Command, arg: &Arg, current: &str, words: &[String]) -> Offer {
    let possible = arg.get_possible_values();
    if !possible.is_empty() {
        let shown = possible.iter().filter(|value| !value.is_hide_set());
        return Offer::Words(
            shown.map(|value| (value.get_name().to_owned(), about(value.get_help()))).collect(),
        );
    }
    let plain =
        |words: Vec<String>| Offer::Words(words.into_iter().map(|word| (word, String::new())).collect());
    let name = arg.get_value_names().and_then(|names| names.first()).map_or("", |name| name.as_str());
    match (command.get_name(), arg.get_id().as_str(), name) {
        ("pending", "save" | "discard", _) => plain(live_words::unsaved(words)),
        ("unmount" | "status" | "pending" | "upgrade", "mountpoint", _) | (_, "mount", _) => {
            plain(live_words::mount_points(current))
        }
        ("ls" | "get" | "put" | "rm" | "log" | "restore", "name" | "names" | "dir", _) => {
            plain(live_words::names(current, words))
        }
        ("mount", "options", _) => plain(of_list(current)),
        (_, _, "USER") => plain(live_words::users("/etc/passwd")),
        (_, _, "GROUP") => plain(live_words::users("/etc/group")),
        (_, _, "FILE" | "PATH") => Offer::Files,
        (_, _, "DIR") | (_, "mountpoint", _) => Offer::Directories,
        _ => plain(Vec::new()),
    }
}

/// The options of `-o`, after those that the list has.
fn of_list(current: &str) -> Vec<String> {
    let start = current.rfind(',').map_or(0, |comma| comma + 1);
    mount_options::known().map(|name| format!("{}{name}", &current[..start])).collect()
}

/// What a script gets for these words.
pub fn answer(words: &[String], bash: bool) -> String {
    if !bash {
        return offer(words).render();
    }
    let (words, before) = from_bash(words);
    match offer(&words) {
        Offer::Words(all) => {
            let cut = |(word, about): Word| Some((word.get(before..)?.to_owned(), about));
            Offer::Words(all.into_iter().filter_map(cut).collect()).render()
        }
        other => other.render(),
    }
}

/// The words as bash splits them, put together again: it parts words at `=` and `:`, and leaves
/// quotes in. Also how much of the last one bash takes for an earlier word.
fn from_bash(words: &[String]) -> (Vec<String>, usize) {
    let mut out: Vec<String> = Vec::new();
    let (mut joins, mut before) = (false, 0);
    for word in words {
        let parts = matches!(word.as_str(), "=" | ":");
        let word: String = word.chars().filter(|c| !matches!(c, '\\' | '\'' | '"')).collect();
        match out.last_mut() {
            Some(last) if joins || parts => {
                before = if parts { last.len() + word.len() } else { last.len() };
                last.push_str(&word);
            }
            _ => {
                before = 0;
                out.push(word);
            }
        }
        joins = parts;
    }
    (out, before)
}
