//! What people type for something that is called otherwise here.
//!
//! Words that mean one of our commands are aliases and simply run. The rest is in the tables below.
//! What is in no table gets the nearest word that the command has, if it is near enough; hidden
//! commands and options are never named.

use clap::{Arg, Command};

/// Commands of other programs, and ours.
const COMMANDS: [(&[&str], &str); 12] = [
    (&["remove", "del", "unlink", "destroy", "purge"], "rm"),
    (&["add", "create", "store", "save", "update", "insert"], "put"),
    (&["show", "print", "view", "fetch", "reveal"], "get"),
    (&["dir", "ll", "names"], "ls"),
    (&["rollback", "revert", "undo", "rollout"], "restore"),
    (&["mounts", "info", "ps", "state"], "status"),
    (&["check", "diagnose", "diag"], "doctor"),
    (&["server", "daemon"], "serve"),
    (&["dismount", "eject", "detach"], "unmount"),
    (&["conflicts", "unsaved"], "pending"),
    (&["plugin", "docker", "podman", "volume"], "volume-plugin"),
    // Near to others by accident.
    (&["version", "remount", "stat", "sed", "cut", "jet", "rest"], ""),
];

/// Options of other programs, the option here, and what is said if a command has it.
const OPTIONS: [(&[&str], &str, &str); 8] = [
    (
        &[
            "key",
            "key-file",
            "keyfile",
            "api-key",
            "apikey",
            "token",
            "token-file",
            "auth",
            "credentials",
            "secret",
            "pass",
            "password",
        ],
        "api-key-file",
        "--api-key-file FILE (a key is read from a file that only you can read)",
    ),
    (&["url", "address", "addr", "endpoint", "host", "vault", "server"], "api-url", "--api-url URL"),
    (&["address", "addr", "bind", "host", "port", "url"], "listen", "--listen ADDR"),
    (&["dir", "directory", "data-dir", "db", "path", "embedded"], "data", "--data DIR"),
    (&["debug", "trace", "log-level", "loglevel"], "verbose", "-v (-vv logs more)"),
    (&["yes", "y", "no-confirm", "assume-yes"], "force", "--force"),
    (&["rev", "revision", "number", "at"], "version", "--version N"),
    (&["output", "format"], "json", "--json"),
];

/// The command that was meant, if that is likely enough.
pub fn command(root: &Command, typed: &str) -> Option<String> {
    let visible = || root.get_subcommands().filter(|sub| !sub.is_hide_set());
    // Those of `vaultfs key` are others.
    if let Some((_, ours)) = COMMANDS.iter().find(|(words, _)| words.contains(&typed))
        && root.get_name() == "vaultfs"
    {
        return visible().any(|sub| sub.get_name() == *ours).then(|| (*ours).to_owned());
    }
    let words = visible().flat_map(|sub| std::iter::once(sub.get_name()).chain(sub.get_visible_aliases()));
    nearest(typed, words.map(str::to_owned))
}

/// What is said of an unknown long option (without its dashes), if something is likely enough.
pub fn option(command: &Command, typed: &str) -> Option<String> {
    let visible: Vec<&Arg> = command.get_arguments().filter(|arg| !arg.is_hide_set()).collect();
    let has = |long: &str| visible.iter().any(|arg| arg.get_long() == Some(long));
    let typed = typed.to_ascii_lowercase().replace('_', "-");
    let known = OPTIONS.iter().find(|(words, ours, _)| words.contains(&typed.as_str()) && has(ours));
    if let Some((_, _, tip)) = known {
        return Some((*tip).to_owned());
    }
    let longs = visible.iter().filter_map(|arg| arg.get_long());
    nearest(&typed, longs.map(str::to_owned)).map(|long| format!("--{long}"))
}

/// What a command takes, where it was given more. The usual reason is an option that takes its
/// value with an equals sign.
pub fn surplus(command: &Command, args: &[&str]) -> String {
    let equals = |arg: &&Arg| arg.is_require_equals_set() && !arg.is_hide_set();
    let bare = command.get_arguments().filter(equals).find_map(|arg| {
        let long = arg.get_long()?;
        let value = arg.get_value_names().and_then(|names| names.first())?;
        args.contains(&format!("--{long}").as_str())
            .then(|| format!("--{long} takes its value with an equals sign: --{long}={value}"))
    });
    let name = command.get_name();
    let takes: Vec<String> = command.get_positionals().map(placeholder).collect();
    let takes = bare.unwrap_or_else(|| match takes.as_slice() {
        _ if name == "put" => {
            "a value is read from standard input: printf %s \"$VALUE\" | vaultfs put NAME".to_owned()
        }
        [] => format!("{name} takes no argument"),
        [one] => format!("{name} takes one {one}"),
        all => format!("{name} takes {}", all.join(" and ")),
    });
    format!("{takes}; the rest is not repeated here, because it could be a secret")
}

fn placeholder(arg: &Arg) -> String {
    let name = arg.get_value_names().and_then(|names| names.first());
    name.map_or_else(|| arg.get_id().as_str().to_uppercase(), ToString::to_string)
}

/// The word that was probably meant: at most a third of it differs.
pub fn nearest(typed: &str, words: impl Iterator<Item = String>) -> Option<String> {
    words
        .map(|word| (strsim::osa_distance(typed, &word), word))
        .filter(|(distance, word)| *distance <= word.len().max(typed.len()) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn the_tables_name_what_exists() {
        let root = Cli::command();
        for (words, ours) in COMMANDS.iter().filter(|(_, ours)| !ours.is_empty()) {
            let command = root.find_subcommand(ours).unwrap_or_else(|| panic!("{ours}"));
            assert!(!command.is_hide_set(), "{ours}");
            for word in *words {
                assert!(root.find_subcommand(word).is_none(), "{word} runs by itself");
            }
        }
        for (words, ours, tip) in OPTIONS {
            let of = |name: &str| {
                root.get_subcommands().any(|sub| sub.get_arguments().any(|a| a.get_long() == Some(name)))
            };
            assert!(of(ours) && tip.starts_with('-'), "{ours}");
            assert!(!words.contains(&ours), "{ours}");
        }
    }
}
