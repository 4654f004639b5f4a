//! `-o` lists as mount(8), /etc/fstab and systemd write them, in terms of `vaultfs mount`'s long
//! options.
//!
//! The list is rewritten before the command line is parsed, so that each option has one meaning and
//! one check. An option is one of four kinds: ours (`refresh=2s` is `--refresh=2s`), one that
//! changes nothing here because it is so anyway or speaks to mount(8) itself, one that cannot be
//! had and says so in a hint, or unknown. What is unknown stays `-o NAME`, for the command to
//! refuse with a sentence.

use std::ffi::OsString;

use crate::cli::args::hints;
use crate::sys::stdio;
use clap::CommandFactory;

/// They are so anyway, or speak to mount(8), systemd or the boot.
const WITHOUT_EFFECT: [&str; 33] = [
    "nosuid",
    "nodev",
    "default_permissions",
    "async",
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "nofail",
    "_netdev",
    "exec",
    "norelatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    "diratime",
    "nodiratime",
    "iversion",
    "noiversion",
    "mand",
    "nomand",
    "silent",
    "loud",
    "comment",
    "helper",
    "uhelper",
    "subtype",
    "blkdev",
    "dirsync",
];

/// Other programs' words for options of ours.
const ALIASES: [(&str, &str); 4] =
    [("ro", "read-only"), ("credentials", "api-key-file"), ("cred", "api-key-file"), ("url", "api-url")];

/// Rewrites `-o a,b=c` of `vaultfs mount` to `--a --b=c`.
pub fn expand_options(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut args = args.peekable();
    let mut out: Vec<OsString> = args.by_ref().take(2).collect();
    if out.get(1).is_none_or(|command| command != "mount") {
        out.extend(args);
        return out;
    }
    while let Some(arg) = args.next() {
        let text = arg.to_str().unwrap_or_default();
        match text.strip_prefix("-o") {
            Some("") => match args.next() {
                Some(list) => expand_list(&list, &mut out),
                None => out.push(arg),
            },
            Some(list) => expand_list(&OsString::from(list), &mut out),
            None if text == "--" => {
                out.push(arg);
                out.extend(args);
                break;
            }
            None => out.push(arg),
        }
    }
    out
}

fn expand_list(list: &OsString, out: &mut Vec<OsString>) {
    let Some(list) = list.to_str() else {
        out.extend(["-o".into(), list.clone()]);
        return;
    };
    for option in split(list) {
        expand_option(&option, out);
    }
}

/// At commas; within double quotes a comma is part of a value, as in mount(8).
pub fn split(list: &str) -> Vec<String> {
    let mut options = vec![String::new()];
    let mut quoted = false;
    for c in list.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => options.push(String::new()),
            c => options.last_mut().expect("never empty").push(c),
        }
    }
    options.retain(|option| !option.is_empty());
    options
}

fn expand_option(option: &str, out: &mut Vec<OsString>) {
    let (name, value) = option.split_once('=').map_or((option, None), |(n, v)| (n, Some(v)));
    if WITHOUT_EFFECT.contains(&name) || name.starts_with("x-") || name.starts_with("X-") {
        return;
    }
    match name {
        // The last word counts, and mount(8) adds one of the two.
        "rw" => return out.retain(|arg| arg != "--read-only" && arg != "--ro"),
        "atime" | "strictatime" | "relatime" => return out.retain(|arg| arg != "--noatime"),
        "symfollow" => return out.retain(|arg| arg != "--nosymfollow"),
        "suid" | "dev" => {
            stdio::say(format_args!("hint: -o {name} has no effect, vaults are always mounted nosuid,nodev"));
            return;
        }
        _ => {}
    }
    let alias = ALIASES.iter().find(|(theirs, _)| *theirs == name).map(|(_, ours)| (*ours).to_owned());
    let long = alias.unwrap_or_else(|| name.replace('_', "-"));
    let command = crate::cli::Cli::command();
    let known = command
        .find_subcommand("mount")
        .is_some_and(|mount| mount.get_arguments().any(|a| a.get_long() == Some(long.as_str())));
    match value {
        // Kept as it is, so that the command can say which one is meant.
        _ if !known => out.extend(["-o".into(), option.into()]),
        Some(value) => out.push(format!("--{long}={value}").into()),
        None => out.push(format!("--{long}").into()),
    }
}

/// `-o help`.
pub const HELP: &str = "help";

/// What `-o help` prints.
pub fn help() -> String {
    format!("-o takes {}, and what mount(8) takes: ro, rw, noexec, noatime, user, nofail …", listed())
}

/// Whether a rewritten command line of `vaultfs mount` asks for [`help`], whatever else is missing
/// in it.
pub fn asks_for_help(args: &[OsString]) -> bool {
    args.get(1).is_some_and(|command| command == "mount")
        && args.windows(2).take_while(|pair| pair[0] != "--").any(|pair| pair[0] == "-o" && pair[1] == HELP)
}

/// Why an option that was left over is refused.
pub fn refusal(option: &str) -> String {
    let name = option.split_once('=').map_or(option, |(name, _)| name);
    match name {
        "remount" => {
            "-o remount: a mounted vault keeps its options: unmount it and mount it with the new ones".into()
        }
        "bind" | "rbind" | "move" => {
            format!("-o {name}: that is done by mount(8) itself: mount --{name} OLD NEW")
        }
        HELP => help(),
        name if KEYS.contains(&name.to_ascii_lowercase().as_str()) || name.starts_with(KEY) => format!(
            "-o {}: there is no such option: a key on a command line or in /etc/fstab can be read by everybody. Put it \
             into a file that only you can read, give -o api_key_file=FILE, and make a new key in place of this one",
            shown(option)
        ),
        _ => {
            let option = shown(option);
            match hints::nearest(name, known()) {
                Some(near) => format!("-o {option}: there is no such option; did you mean {near}?"),
                None => format!("-o {option}: there is no such option; `vaultfs mount --help` lists them"),
            }
        }
    }
}

/// What people call the option that there is not.
const KEYS: [&str; 9] =
    ["api_key", "api-key", "apikey", "key", "workos_api_key", "password", "pass", "token", "secret"];
/// How a key begins.
const KEY: &str = "sk_";

/// An option that is not known, to be said aloud: its name alone. The value could be a key.
pub fn shown(option: &str) -> String {
    let (name, value) = option.split_once('=').map_or((option, ""), |(name, _)| (name, "=…"));
    if name.starts_with(KEY) { format!("{KEY}…{value}") } else { format!("{name}{value}") }
}

/// The options of ours, as `-o` spells them.
fn listed() -> String {
    let command = crate::cli::Cli::command();
    let mount = command.find_subcommand("mount").into_iter().flat_map(clap::Command::get_arguments);
    let mut names = Vec::new();
    for option in mount.filter(|option| !option.is_hide_set()) {
        let Some(long) = option.get_long().filter(|long| *long != "help") else { continue };
        let value = option.get_value_names().and_then(|names| names.first());
        let value = value.filter(|_| option.get_action().takes_values()).map(|value| format!("={value}"));
        names.push(long.replace('-', "_") + value.as_deref().unwrap_or_default());
    }
    names.join(", ")
}

/// All that `-o` takes.
pub fn known() -> impl Iterator<Item = String> {
    let command = crate::cli::Cli::command();
    let mount = command.find_subcommand("mount").into_iter();
    let ours = mount.flat_map(clap::Command::get_arguments).filter_map(|a| a.get_long());
    let ours: Vec<_> = ours.map(|long| long.replace('-', "_")).collect();
    ours.into_iter()
        .chain(WITHOUT_EFFECT.map(str::to_owned))
        .chain(["ro", "rw", "atime", "relatime"].map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(args: &[&str]) -> Vec<String> {
        expand_options(args.iter().map(OsString::from))
            .into_iter()
            .map(|a| a.into_string().expect("UTF-8 in, UTF-8 out"))
            .collect()
    }

    #[test]
    fn dash_o_becomes_long_options() {
        let args = ["vaultfs", "mount", "-o", "ro,allow_other,refresh=2s,async", "-onodev,noexec", "/mnt"];
        let want = ["vaultfs", "mount", "--read-only", "--allow-other", "--refresh=2s", "--noexec", "/mnt"];
        assert_eq!(expanded(&args), want);
    }

    #[test]
    fn other_commands_and_unknown_options_are_left() {
        let put = ["vaultfs", "put", "-o", "ro"];
        assert_eq!(expanded(&put), put);
        let unknown = ["vaultfs", "mount", "-o", "bogus=1", "/m"];
        assert_eq!(expanded(&unknown), unknown);
        let ends = ["vaultfs", "mount", "--", "-o", "x"];
        assert_eq!(expanded(&ends), ends);
    }

    #[test]
    fn what_mount_and_systemd_add_is_understood() {
        let line = "rw,_netdev,nofail,noauto,auto,user,users,owner,user=joe,x-systemd.automount,x-gvfs-show,X-mount.mkdir,\
                    nosuid,nodev,suid,dev,exec,defaults,async,noatime,atime,lazytime,comment=x,uhelper=fuse";
        assert_eq!(expanded(&["vaultfs", "mount", "-o", line, "/m"]), ["vaultfs", "mount", "/m"]);
    }

    #[test]
    fn the_last_of_ro_and_rw_counts() {
        assert_eq!(expanded(&["vaultfs", "mount", "-oro,rw"]), ["vaultfs", "mount"]);
        assert_eq!(expanded(&["vaultfs", "mount", "-orw,ro"]), ["vaultfs", "mount", "--read-only"]);
        assert_eq!(expanded(&["vaultfs", "mount", "-onoatime,relatime"]), ["vaultfs", "mount"]);
        assert_eq!(expanded(&["vaultfs", "mount", "-oatime,noatime"]), ["vaultfs", "mount", "--noatime"]);
    }

    #[test]
    fn quotes_hold_a_value_together() {
        let args = ["vaultfs", "mount", "-o", "scratch=\"*.a,*.b\",credentials=/k"];
        assert_eq!(expanded(&args), ["vaultfs", "mount", "--scratch=*.a,*.b", "--api-key-file=/k"]);
    }

    #[test]
    fn values_of_options_that_are_not_known_are_not_repeated() {
        for option in
            ["api_key=SECRET", "apikey=SECRET", "WORKOS_API_KEY=SECRET", "zzzzzz=a=SECRET", "sk_SECRET=1"]
        {
            let said = refusal(option);
            assert!(!said.contains("SECRET") && said.contains("=…"), "{said}");
        }
        assert!(refusal("sk_live_SECRET").contains("-o sk_…: "));
        assert!(refusal("password=SECRET").contains("api_key_file=FILE"));
        assert_eq!((shown("a=b").as_str(), shown("a").as_str()), ("a=…", "a"));
    }

    #[test]
    fn what_is_refused_says_what_to_do() {
        assert!(refusal("remount").contains("unmount it"));
        assert!(refusal("alow_other").contains("did you mean allow_other?"));
        assert!(refusal("zzzzzz=1").contains("--help"));
        let help = refusal("help");
        assert!(
            help.contains("allow_other, ") && help.contains("refresh=TIME") && !help.contains("nonempty"),
            "{help}"
        );
    }
}
