//! What `-o` of `docker volume create` and `podman volume create` means: the long options of `vaultfs mount`.
//!
//! Which options there are is the command line's business ([`Grammar`]); which of them a volume may have, the few that
//! mean something of their own, and the sentences for what is wrong are in here.

use std::collections::BTreeMap;
use std::time::Duration;

/// What an option of `vaultfs mount` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// Nothing: it is there or not.
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
    /// How long such a mount waits for a vault that does not answer, if these arguments parse; else what is wrong, as
    /// one sentence.
    fn check(&self, arguments: &[String]) -> Result<Option<Duration>, String>;
    /// What this machine has against such a mount, as one sentence, before it is made: files that cannot be used, a URL
    /// that is none of a vault. Reads files; asks no vault.
    fn rehearse(&self, arguments: &[String]) -> Result<(), String>;
}

/// Options of `vaultfs mount` that say how a person runs it; a volume is not run by one.
const NOT_FOR_VOLUMES: [&str; 6] = ["foreground", "nonempty", "verbose", "help", "version", "never-empty"];

/// Options that the engines themselves understand, and pass on.
const OF_THE_ENGINES: [&str; 4] = ["nocopy", "rw", "nosuid", "nodev"];

/// Options that only volumes have, and short forms.
const OF_VOLUMES: [&str; 2] = ["mode", "ro"];

/// Options that name a file or directory of the host.
const PATHS: [&str; 5] = ["embedded", "api-key-file", "ca-file", "audit", "log"];

/// What `mode` sets both of.
const SINGLE_MODES: [&str; 2] = ["file-mode", "dir-mode"];

/// Longest `wait`. dockerd hangs up on a Mount after 120 s, and what it shows then says nothing of the vault.
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

/// The arguments of `vaultfs mount` for a volume with these options, `defaults` where it says nothing. Checked.
pub fn arguments(
    defaults: &BTreeMap<String, String>,
    options: &BTreeMap<String, String>,
    grammar: &dyn Grammar,
) -> Result<Vec<String>, String> {
    let mut all: BTreeMap<String, &str> = BTreeMap::new();
    for (name, value) in defaults {
        all.insert(spelt(name), value);
    }
    one_way_of_modes(defaults)?;
    one_way_of_modes(options)?;
    // A volume with a vault of its own does not want the default one.
    let own = |name: &str| options.keys().any(|given| spelt(given) == name);
    if own("embedded") || own("api-url") {
        for name in ["embedded", "api-url", "api-key-file", "ca-file", "api"] {
            all.remove(name);
        }
    }
    if own("mode") {
        for name in SINGLE_MODES {
            all.remove(name);
        }
    }
    for (name, value) in options {
        if all.insert(spelt(name), value).is_some() && !defaults.keys().any(|d| spelt(d) == spelt(name)) {
            return Err(format!("-o {name} is given twice, in two spellings: leave one away"));
        }
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
            "-o wait={}: Docker waits 2 minutes for a mount and podman 5 s unless told otherwise; give {} s at most, or \
             lazy",
            humantime::format_duration(wait),
            LONGEST_WAIT.as_secs()
        )),
        _ => Ok(arguments),
    }
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
                "-o {name}: there is no such option for a volume; it takes mode, and the options of `vaultfs mount` \
                 like prefix, read-only, uid, api-url or api-key-file"
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

/// `mode=0640`: files so, and directories that whoever may read may also enter.
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

        fn rehearse(&self, _: &[String]) -> Result<(), String> {
            Ok(())
        }
    }

    fn of(options: &[(&str, &str)]) -> Result<Vec<String>, String> {
        arguments(
            &map(&[("api-url", "http://x"), ("api-key-file", "/k"), ("refresh", "")][..2]),
            &map(options),
            &Known,
        )
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
            arguments(&map(&[(default, "0644")]), &map(&[(own, "0600")]), &Known).unwrap()
        };
        assert_eq!(over("mode", "file_mode"), ["--file-mode=0644", "--dir-mode=0755", "--file-mode=0600"]);
        assert_eq!(over("dir-mode", "mode"), ["--file-mode=0600", "--dir-mode=0700"]);
    }

    #[test]
    fn a_key_that_was_handed_over_is_for_the_default_vault() {
        let with = |options: &[(&str, &str)]| {
            let mut defaults = map(options);
            default_key(&mut defaults, "/handed".into());
            move |own: &[(&str, &str)]| arguments(&defaults, &map(own), &Known).unwrap()
        };
        let url = with(&[("api-url", "http://x")]);
        assert_eq!(url(&[]), ["--api-key-file=/handed", "--api-url=http://x"]);
        assert_eq!(url(&[("api-url", "http://y")]), ["--api-url=http://y"]);
        assert_eq!(with(&[("api_key_file", "/own")])(&[]), ["--api-key-file=/own"]);
        assert_eq!(with(&[("embedded", "")])(&[]), ["--embedded"]);
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
