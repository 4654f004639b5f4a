//! Completions for the shells, from the definitions that parse the command line.
//!
//! clap_complete writes them. What it does not do is done here: hidden options and commands are
//! left out, what an option takes is known by the name of its value, and so is what a command takes
//! (bash and fish know that of options only, and would offer the files of the working directory as
//! names of secrets).

use clap::builder::ValueHint;
use clap::{Arg, Command, CommandFactory};
use clap_complete::Shell;

use crate::cli::Cli;

/// What the program is called in a command line.
const NAME: &str = "vaultfs";

/// The script for a shell.
pub fn script(shell: Shell) -> String {
    let mut command = visible(&Cli::command(), shell);
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, NAME, &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    match shell {
        Shell::Bash => with_arguments_in_bash(&script, &command),
        Shell::Fish => script + &arguments_in_fish(&command),
        _ => script,
    }
}

/// The command without what is hidden, each value with its hint.
fn visible(command: &Command, shell: Shell) -> Command {
    // clap wants names that live as long as the program, which ends when it has printed this.
    let name: &'static str = command.get_name().to_owned().leak();
    let mut seen = Command::new(name);
    if let Some(about) = command.get_about() {
        seen = seen.about(about.clone());
    }
    let arguments = command.get_arguments().filter(|argument| !argument.is_hide_set());
    seen = seen.args(arguments.map(|argument| hinted(argument.clone(), shell)));
    let commands = command.get_subcommands().filter(|sub| !sub.is_hide_set());
    seen.subcommands(commands.map(|sub| visible(sub, shell)))
}

fn hinted(argument: Arg, shell: Shell) -> Arg {
    if !argument.get_action().takes_values() {
        return argument;
    }
    let hint = hint(&argument);
    match (hint, shell) {
        // Of these bash would make files.
        (ValueHint::Username | ValueHint::CommandString, Shell::Bash) => {
            argument.value_hint(ValueHint::Other)
        }
        (hint, _) => argument.value_hint(hint),
    }
}

fn hint(argument: &Arg) -> ValueHint {
    let names = argument.get_value_names().and_then(|names| names.first());
    match names.map_or_else(|| argument.get_id().as_str().to_uppercase(), ToString::to_string).as_str() {
        "FILE" => ValueHint::FilePath,
        "DIR" | "MOUNTPOINT" => ValueHint::DirPath,
        "PATH" => ValueHint::AnyPath,
        "USER" => ValueHint::Username,
        "CMD" => ValueHint::CommandString,
        _ => ValueHint::Other,
    }
}

/// Every command that takes arguments, by the words that lead to it, with what its first argument
/// is.
fn taking<'a>(command: &'a Command, path: &[&'a str], out: &mut Vec<(Vec<&'a str>, ValueHint)>) {
    for sub in command.get_subcommands() {
        let path = [path, &[sub.get_name()]].concat();
        taking(sub, &path, out);
        if let Some(first) = sub.get_positionals().next() {
            out.push((path, first.get_value_hint()));
        }
    }
}

/// In the part of each such command, after the values of its options.
fn with_arguments_in_bash(script: &str, command: &Command) -> String {
    const OPTIONS: &str =
        "COMPREPLY=( $(compgen -W \"${opts}\" -- \"${cur}\") )\n            return 0\n            ;;";
    let mut all = Vec::new();
    taking(command, &[], &mut all);
    let mut script = script.to_owned();
    for (path, hint) in all {
        let head = format!("\n        {NAME}__subcmd__{})\n", path.join("__subcmd__"));
        let Some(start) = script.find(&head) else { continue };
        let Some(end) = script[start..].find(OPTIONS).map(|at| start + at + OPTIONS.len()) else { continue };
        let files = match hint {
            ValueHint::DirPath => {
                "local IFS=$'\\n'\n            COMPREPLY=( $(compgen -d -- \"${cur}\") )\n            \
                 compopt -o filenames 2>/dev/null"
            }
            _ => "COMPREPLY=()\n            compopt +o default +o bashdefault 2>/dev/null",
        };
        let part =
            script[start..end].replace(OPTIONS, &format!("{files}\n            return 0\n            ;;"));
        // The first word after the command is no option, where a directory is wanted.
        let part = part.replace(&format!(" || ${{COMP_CWORD}} -eq {} ]]", path.len() + 1), " ]]");
        script.replace_range(start..end, &part);
    }
    script
}

/// What the script for fish says more: what each command takes.
fn arguments_in_fish(command: &Command) -> String {
    let mut all = Vec::new();
    taking(command, &[], &mut all);
    let mut lines = String::new();
    for (path, hint) in all {
        let mut when = format!("__fish_{NAME}_using_subcommand {}", path[0]);
        for word in &path[1..] {
            when.push_str(&format!("; and __fish_seen_subcommand_from {word}"));
        }
        let what = match hint {
            ValueHint::DirPath => " -a \"(__fish_complete_directories)\"",
            _ => "",
        };
        lines.push_str(&format!("complete -c {NAME} -n \"{when}\" -f{what}\n"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hidden_is_in_no_script() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = script(shell);
            for hidden in ["generate", "nonempty", "never-empty", "fsname", "noexec["] {
                let lines: Vec<&str> = script.lines().filter(|line| line.contains(hidden)).collect();
                // The help of -o names options of mount(8).
                let said = lines.iter().filter(|line| !line.contains("noexec, nonempty")).count();
                assert_eq!(said, 0, "{shell}, {hidden}: {lines:?}");
            }
            assert!(script.contains("unmount") && script.contains("refresh"), "{shell}");
        }
    }

    #[test]
    fn each_command_with_an_argument_is_known() {
        let (command, mut all) = (visible(&Cli::command(), Shell::Zsh), Vec::new());
        taking(&command, &[], &mut all);
        let of = |name: &str| all.iter().find(|(path, _)| path.join(" ") == name).map(|(_, hint)| *hint);
        for name in ["mount", "unmount", "status", "pending", "upgrade"] {
            assert_eq!(of(name), Some(ValueHint::DirPath), "{name}");
        }
        for name in ["get", "put", "rm", "log", "restore", "ls"] {
            assert_eq!(of(name), Some(ValueHint::Other), "{name}");
        }
    }
}
