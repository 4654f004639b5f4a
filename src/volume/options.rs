//! What `-o` of `docker volume create` and `podman volume create` means: the long options of
//! `vaultfs mount`.
//!
//! The command line defines the options ([`Grammar`]); this file decides which of them a volume may
//! have, translates those that only volumes have, and words the errors.
//!
//! A user that may create volumes is not trusted as the plugin's user is. So a volume's own options
//! open no file of the host, run no command and choose no vault: the plugin's options and profiles
//! ([`super::profile`]) do.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use crate::display::Shown;

/// What an option of `vaultfs mount` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// No value.
    Nothing,
    /// A value.
    Value,
    /// A value or nothing.
    Either,
}

/// The command line of `vaultfs mount`.
pub trait Grammar: Send + Sync {
    /// What the long option `name` takes; `None` if there is none.
    fn takes(&self, name: &str) -> Option<Takes>;
    /// The option of a volume that was probably meant by `name`.
    fn nearest(&self, name: &str) -> Option<String>;
    /// How long such a mount waits for a vault that does not answer, if these arguments parse; else
    /// what is wrong, as one sentence.
    fn check(&self, arguments: &[String]) -> Result<Option<Duration>, String>;
    /// What this machine has against such a mount, as one sentence, before it is made: files that
    /// cannot be used, a URL that is none of a vault. Reads files; asks no vault.
    fn validate(&self, arguments: &[String]) -> Result<(), String>;
}

/// Options of `vaultfs mount` for interactive use, which volumes do not have.
const NOT_FOR_VOLUMES: [&str; 6] = ["foreground", "nonempty", "verbose", "help", "version", "never-empty"];

/// The option of a volume that names its profile.
pub const PROFILE: &str = "profile";

/// Options that a volume may have itself.
const OF_A_VOLUME: [&str; 16] = [
    "prefix",
    "read-only",
    "uid",
    "gid",
    "mode",
    "file-mode",
    "dir-mode",
    "refresh",
    "max-stale",
    "in-place",
    "no-delete",
    "strict",
    "wait",
    "lazy",
    "format",
    PROFILE,
];

/// Options of a vault, which go together.
const VAULT: [&str; 5] = ["embedded", "api-url", "api-key-file", "ca-file", "api"];

/// Options that the engines themselves understand, and pass on.
const OF_THE_ENGINES: [&str; 4] = ["nocopy", "rw", "nosuid", "nodev"];

/// Options that only volumes have, and short forms.
const OF_VOLUMES: [&str; 3] = ["mode", "ro", PROFILE];

/// Options that name a file or directory of the host.
const PATHS: [&str; 5] = ["embedded", "api-key-file", "ca-file", "audit", "log"];

/// What `mode` sets both of.
const SINGLE_MODES: [&str; 2] = ["file-mode", "dir-mode"];

/// Longest `wait`. dockerd gives up on a Mount after 120 s, with a message that does not mention
/// the vault.
const LONGEST_WAIT: Duration = Duration::from_secs(90);

/// What a volume offers, of all long options of `vaultfs mount`.
pub fn offered(of_mount: impl Iterator<Item = String>) -> impl Iterator<Item = String> {
    let of_mount = of_mount.filter(|name| !NOT_FOR_VOLUMES.contains(&name.as_str()));
    of_mount.chain(OF_VOLUMES.map(str::to_owned))
}

/// The key file that a service manager handed over is the default vault's, unless that has one.
pub fn default_key(defaults: &mut BTreeMap<String, String>, file: String) {
    if !defaults.keys().any(|name| ["embedded", "api-key-file"].contains(&&*spelt(name))) {
        defaults.insert("api-key-file".into(), file);
    }
}

/// A profile's name and options.
pub type Profile = (String, BTreeMap<String, String>);

/// The options of a volume that it could not be created with any more. Empty unless an earlier
/// version created it.
pub fn old(options: &BTreeMap<String, String>) -> Vec<&str> {
    let is_fit = |name: &str| OF_A_VOLUME.contains(&name) || OF_THE_ENGINES.contains(&name);
    options.keys().map(String::as_str).filter(|name| !is_fit(&spelt(name))).collect()
}

/// Refuses options that only a profile may have, and says where to put them.
pub fn check_own(
    volume: &str,
    options: &BTreeMap<String, String>,
    profiles: &Path,
    grammar: &dyn Grammar,
) -> Result<(), String> {
    let refused = old(options);
    if refused.is_empty() {
        return Ok(());
    }
    let name = options.get(PROFILE).map_or(volume, String::as_str);
    let shown = |name: &&str| {
        let (spelt, value) = (spelt(name), &options[*name]);
        match grammar.takes(&spelt) {
            Some(Takes::Nothing) => format!("`{spelt}`"),
            _ if value.is_empty() => format!("`{spelt}`"),
            // It may hold a password, or be a key by mistake.
            _ if value.contains('@') || (PATHS.contains(&&*spelt) && !value.starts_with('/')) => {
                format!("`{spelt}=…`")
            }
            _ => format!("`{spelt}={value}`"),
        }
    };
    let lines: Vec<_> = refused.iter().map(shown).collect();
    Err(format!(
        "-o {}: not for a volume to say, because files, commands and vaults of the host are its administrator's. Write \
         {}, with {} {}, and create the volume with -o profile={name} instead",
        refused.join(", -o "),
        profiles.join(name).shown(),
        if lines.len() == 1 { "the line" } else { "the lines" },
        lines.join(" and "),
    ))
}

/// The arguments of `vaultfs mount` for a volume: its own options over those of its profile, these
/// over the plugin's. What the profile says holds.
pub fn of_volume(
    defaults: &BTreeMap<String, String>,
    profile: Option<&Profile>,
    own: &BTreeMap<String, String>,
    grammar: &dyn Grammar,
) -> Result<Vec<String>, String> {
    let Some((name, profile)) = profile else { return arguments(&[defaults, own], grammar) };
    let mut own = own.clone();
    own.remove(PROFILE);
    let both = |option: &String| {
        let same = |said: &String| match spelt(option).as_str() {
            "mode" => ["mode", "file-mode", "dir-mode"].contains(&&*spelt(said)),
            other if SINGLE_MODES.contains(&other) => [other, "mode"].contains(&&*spelt(said)),
            other => other == spelt(said),
        };
        profile.keys().any(same)
    };
    if let Some(option) = own.keys().find(|option| both(option)) {
        return Err(format!("-o {option}: the profile {name} says that for its volumes: leave it away"));
    }
    arguments(&[defaults, profile, &own], grammar)
}

/// The arguments of `vaultfs mount` for these options, the later ones over the earlier. Checked.
pub fn arguments(layers: &[&BTreeMap<String, String>], grammar: &dyn Grammar) -> Result<Vec<String>, String> {
    let mut all = BTreeMap::new();
    for layer in layers {
        lay(&mut all, layer)?;
    }
    let mut arguments = Vec::new();
    // First: a volume's file-mode counts over the plugin's mode.
    if let Some(mode) = all.remove("mode") {
        arguments.extend(modes(mode)?);
    }
    for (name, value) in &all {
        match name.as_str() {
            _ if OF_THE_ENGINES.contains(&name.as_str()) => {}
            _ => arguments.extend(argument(name, value, grammar)?),
        }
    }
    match grammar.check(&arguments)? {
        Some(wait) if wait > LONGEST_WAIT => Err(format!(
            "-o wait={}: Docker waits 2 minutes for a mount and podman 5 s by default; give {} s at most, or \
             lazy",
            humantime::format_duration(wait),
            LONGEST_WAIT.as_secs()
        )),
        _ => Ok(arguments),
    }
}

/// Overrides options with others.
fn lay<'a>(all: &mut BTreeMap<String, &'a str>, layer: &'a BTreeMap<String, String>) -> Result<(), String> {
    one_way_of_modes(layer)?;
    let says = |name: &str| layer.keys().any(|given| spelt(given) == name);
    // One that names a vault of its own does not want the other one's key.
    if says("embedded") || says("api-url") {
        all.retain(|name, _| !VAULT.contains(&&**name));
    }
    if says("mode") {
        all.retain(|name, _| !SINGLE_MODES.contains(&&**name));
    }
    let mut seen = BTreeSet::new();
    for (name, value) in layer {
        if !seen.insert(spelt(name)) {
            return Err(format!("-o {name} is given twice, in two spellings: leave one away"));
        }
        all.insert(spelt(name), value);
    }
    Ok(())
}

/// `mode` stands for both of these, so the three are not given together.
fn one_way_of_modes(options: &BTreeMap<String, String>) -> Result<(), String> {
    let given = |name: &str| options.keys().any(|given| spelt(given) == name);
    match SINGLE_MODES.into_iter().find(|one| given("mode") && given(one)) {
        Some(one) => Err(format!("-o mode stands for file-mode and dir-mode: leave away mode or {one}")),
        None => Ok(()),
    }
}

/// mount(8) spells options with underscores, the command line with hyphens.
fn spelt(name: &str) -> String {
    match name {
        "ro" | "readonly" => "read-only".to_owned(),
        name => name.replace('_', "-"),
    }
}

fn argument(name: &str, value: &str, grammar: &dyn Grammar) -> Result<Option<String>, String> {
    let takes = if NOT_FOR_VOLUMES.contains(&name) { None } else { grammar.takes(name) };
    match (takes, value) {
        (None, _) => Err(match grammar.nearest(name) {
            Some(near) => format!("-o {name}: there is no such option for a volume; did you mean {near}?"),
            None => format!(
                "-o {name}: there is no such option for a volume; it takes mode, profile, and options of `vaultfs mount` \
                 like prefix, read-only and uid"
            ),
        }),
        (Some(Takes::Nothing), "" | "true" | "1" | "yes") => Ok(Some(format!("--{name}"))),
        (Some(Takes::Nothing), "false" | "0" | "no") if name == "allow-other" => Err(format!(
            "-o {name}={value}: containers have other users, so volumes are always mounted with it where that is \
             possible; mode, uid and gid say who may read"
        )),
        (Some(Takes::Nothing), "false" | "0" | "no") => Ok(None),
        (Some(Takes::Nothing), _) => Err(format!("-o {name}={value}: {name} is true or false")),
        (Some(_), value) if name == "prefix" && value.starts_with('/') => {
            Err(match value.trim_matches('/') {
                "" => format!("-o prefix={value}: for all names leave prefix away"),
                below => format!(
                    "-o prefix={value}: names do not start with a slash; for those below {below}/ give -o prefix={below}"
                ),
            })
        }
        // The value is not quoted: it may be a key, by mistake.
        (Some(takes), value)
            if PATHS.contains(&name)
                && !value.starts_with('/')
                && !value.is_empty()
                && (takes, value) != (Takes::Either, "true") =>
        {
            Err(format!(
                "-o {name} takes a path of the host from / on: the plugin is in no directory of yours"
            ))
        }
        (Some(Takes::Value), "") => Err(format!("-o {name} needs a value: give -o {name}=VALUE")),
        (Some(Takes::Either), "" | "true") => Ok(Some(format!("--{name}"))),
        (Some(Takes::Value | Takes::Either), value) => Ok(Some(format!("--{name}={value}"))),
    }
}

/// `mode=0640`: files so; directories can be entered by those that may read them.
fn modes(value: &str) -> Result<[String; 2], String> {
    let mode = u32::from_str_radix(value, 8).ok().filter(|mode| *mode <= 0o777);
    let mode = mode.ok_or_else(|| format!("-o mode={value}: give permissions in octal, like 0640"))?;
    Ok([format!("--file-mode={mode:04o}"), format!("--dir-mode={:04o}", mode | (mode & 0o444) >> 2)])
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Known;

    impl Grammar for Known {
        fn takes(&self, name: &str) -> Option<Takes> {
            match name {
                "read-only" | "foreground" | "allow-other" => Some(Takes::Nothing),
                "wait" | "prefix" | "api-url" | "api-key-file" | "file-mode" | "dir-mode" => {
                    Some(Takes::Value)
                }
                "embedded" => Some(Takes::Either),
                _ => None,
            }
        }

        fn nearest(&self, name: &str) -> Option<String> {
            offered(["prefix".to_owned(), "foreground".to_owned()].into_iter())
                .find(|known| name.starts_with(known))
        }

        fn check(&self, arguments: &[String]) -> Result<Option<Duration>, String> {
            if arguments.iter().any(|a| a.contains("bad")) {
                return Err("bad".into());
            }
            let wait = arguments.iter().find_map(|a| a.strip_prefix("--wait="));
            Ok(wait.map(|time| humantime::parse_duration(time).unwrap()))
        }

        fn validate(&self, _: &[String]) -> Result<(), String> {
            Ok(())
        }
    }

    fn of(options: &[(&str, &str)]) -> Result<Vec<String>, String> {
        arguments(&[&map(&[("api-url", "http://x"), ("api-key-file", "/k")]), &map(options)], &Known)
    }

    fn map(options: &[(&str, &str)]) -> BTreeMap<String, String> {
        options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn options_become_arguments_over_the_defaults() {
        assert_eq!(of(&[]).unwrap(), ["--api-key-file=/k", "--api-url=http://x"]);
        assert_eq!(
            of(&[("prefix", "app"), ("ro", ""), ("nocopy", "")]).unwrap(),
            ["--api-key-file=/k", "--api-url=http://x", "--prefix=app", "--read-only"]
        );
        assert_eq!(of(&[("read_only", "false")]).unwrap().len(), 2);
        assert_eq!(
            of(&[("embedded", "/data")]).unwrap(),
            ["--embedded=/data"],
            "not the default vault's key"
        );
        assert_eq!(
            of(&[("api_url", "http://y"), ("api-key-file", "/l")]).unwrap(),
            ["--api-key-file=/l", "--api-url=http://y"]
        );
        assert!(of(&[("wait", "90s")]).is_ok());
        assert_eq!(of(&[("mode", "640")]).unwrap()[..2], ["--file-mode=0640", "--dir-mode=0750"]);
        let over = |default: &str, own: &str| {
            arguments(&[&map(&[(default, "0644")]), &map(&[(own, "0600")])], &Known).unwrap()
        };
        assert_eq!(over("mode", "file_mode"), ["--file-mode=0644", "--dir-mode=0755", "--file-mode=0600"]);
        assert_eq!(over("dir-mode", "mode"), ["--file-mode=0600", "--dir-mode=0700"]);
    }

    #[test]
    fn a_key_that_was_handed_over_is_for_the_default_vault() {
        let with = |options: &[(&str, &str)]| {
            let mut defaults = map(options);
            default_key(&mut defaults, "/handed".into());
            move |own: &[(&str, &str)]| arguments(&[&defaults, &map(own)], &Known).unwrap()
        };
        let url = with(&[("api-url", "http://x")]);
        assert_eq!(url(&[]), ["--api-key-file=/handed", "--api-url=http://x"]);
        assert_eq!(url(&[("api-url", "http://y")]), ["--api-url=http://y"]);
        assert_eq!(with(&[("api_key_file", "/own")])(&[]), ["--api-key-file=/own"]);
        assert_eq!(with(&[("embedded", "")])(&[]), ["--embedded"]);
    }

    #[test]
    fn a_volume_says_no_more_than_it_may() {
        let check = |options: &[(&str, &str)]| {
            check_own("app", &map(options), Path::new("/etc/vaultfs/profiles"), &Known)
        };
        let all = OF_A_VOLUME.iter().chain(&OF_THE_ENGINES).map(|name| (*name, "1"));
        assert_eq!(check(&all.collect::<Vec<_>>()), Ok(()));
        assert_eq!(check(&[("ro", ""), ("readonly", ""), ("read_only", ""), ("dir_mode", "0700")]), Ok(()));
        let said = check(&[("api_key_file", "/k"), ("on-change", "touch /x"), ("prefix", "a")]).unwrap_err();
        assert!(said.starts_with("-o api_key_file, -o on-change: not for a volume"), "{said}");
        assert!(said.contains(
            "Write /etc/vaultfs/profiles/app, with the lines `api-key-file=/k` and `on-change=touch /x`"
        ));
        assert!(said.ends_with("-o profile=app instead"), "{said}");
        for (name, value) in [("api-key-file", "sk_geheim"), ("api-url", "https://u:geheim@x")] {
            let said = check(&[(name, value)]).unwrap_err();
            assert!(said.contains(&format!("the line `{name}=…`")) && !said.contains("geheim"), "{said}");
        }
        assert!(check(&[("embedded", "")]).unwrap_err().contains("the line `embedded`, and"));
        assert!(
            check(&[("audit", "/a"), ("profile", "db")])
                .unwrap_err()
                .contains("profiles/db, with the line `audit=/a`")
        );
    }

    #[test]
    fn what_a_profile_says_holds() {
        let defaults = map(&[("api-url", "http://x"), ("api-key-file", "/k"), ("mode", "0640")]);
        let of = |profile: &[(&str, &str)], own: &[(&str, &str)]| {
            of_volume(&defaults, Some(&("db".to_owned(), map(profile))), &map(own), &Known)
        };
        let said = of(&[("api_url", "http://y")], &[("profile", "db"), ("prefix", "a"), ("mode", "0600")]);
        assert_eq!(
            said.unwrap(),
            ["--file-mode=0600", "--dir-mode=0700", "--api-url=http://y", "--prefix=a"],
            "not the other vault's key"
        );
        for (profile, own) in [
            (("prefix", "a"), ("prefix", "b")),
            (("read-only", ""), ("ro", "false")),
            (("file_mode", "0600"), ("mode", "0644")),
            (("mode", "0600"), ("dir-mode", "0755")),
        ] {
            let said = of(&[profile], &[("profile", "db"), own]).unwrap_err();
            assert!(said.contains("the profile db says that"), "{said}");
        }
        assert!(of(&[("file-mode", "0600")], &[("dir-mode", "0755")]).is_ok());
        assert!(of(&[("profile", "other")], &[]).unwrap_err().contains("no such option"));
    }

    #[test]
    fn what_is_wrong_is_a_sentence() {
        for (options, says) in [
            (&[("colour", "red")][..], "no such option"),
            (&[("foreground", "")], "no such option"),
            (&[("prefix", "")], "needs a value"),
            (&[("read-only", "perhaps")], "true or false"),
            (&[("mode", "rw")], "octal"),
            (&[("read_only", ""), ("ro", "")], "twice"),
            (&[("mode", "0640"), ("dir_mode", "0700")], "leave away mode or dir-mode"),
            (&[("allow-other", "false")], "always"),
            (&[("prefix", "bad")], "bad"),
            (&[("prefixes", "a")], "did you mean prefix?"),
            (&[("prefix", "/a/b/")], "below a/b/ give -o prefix=a/b"),
            (&[("prefix", "//")], "leave prefix away"),
            (&[("embedded", "srv/vault")], "-o embedded takes a path of the host from / on"),
            (&[("api_key_file", "~/key")], "-o api-key-file takes a path of the host from / on"),
            (&[("modes", "a")], "did you mean mode?"),
            (&[("foregrounds", "")], "it takes mode"),
            (&[("wait", "91s")], "-o wait=1m 31s: Docker waits 2 minutes"),
        ] {
            let said = of(options).unwrap_err();
            assert!(said.contains(says), "{said}");
        }
        assert!(!of(&[("api-key-file", "sk_test_pasted")]).unwrap_err().contains("pasted"));
    }
}
