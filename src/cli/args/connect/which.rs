//! Which vault a command for objects means. The first of these that applies:
//!
//! 1. An option: `--embedded`, `--api-url`, `--api-key-file`, `--mount`.
//! 2. A NAME that is a path into a mount: that object of that mount.
//! 3. The mount that holds the working directory.
//! 4. The environment.
//! 5. The only mount there is.
//!
//! Only mounts of the caller's own count.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use super::{
    Api, ApiKeyInput, ConnectArgs, ConnectSpec, DEFAULT_URL, Endpoint, bad_key, clean_prefix, clean_url, env,
    has_contexts, usage,
};
use crate::cli::exit::{Exit, Failure};
use crate::daemon::live_mounts::{self, LiveMount};
use crate::daemon::locate;
use crate::display::{self, Shown};
use crate::fs::name;
use crate::sys::mount_table::{Dev, Entry};
use crate::sys::{mount_table, stdio, trust};
use crate::vault::client::api_key;

const NO_VAULT: &str = "which vault? Give --embedded for one on this machine, or set WORKOS_API_KEY (or give \
                        --api-key-file FILE) for the service, or mount one first";

const WAYS: &str = "give --embedded=DIR, or --api-url URL, or set WORKOS_API_URL and WORKOS_API_KEY";

/// Options that name the vault of a command for objects.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Which vault")]
pub struct VaultArgs {
    /// Use the vault of the mount that holds DIR
    ///
    /// Without an option: the mount into which NAME is a path (absolute, or with ./ or ../ first),
    /// then the one that holds the working directory, then the environment, then the only mount.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["embedded", "api_url"])]
    mount: Option<PathBuf>,

    /// Say which mount is used
    #[arg(short, long)]
    verbose: bool,

    /// The options that name it otherwise.
    #[command(flatten)]
    connect: ConnectArgs,
}

impl VaultArgs {
    /// Whether the vault is one of this machine that the command line names.
    pub fn names_embedded(&self) -> bool {
        self.connect.embedded.is_some()
    }

    /// Determines vault and key; `names` that are paths become names of objects (of the root: "").
    pub fn resolve(&self, names: &mut [String]) -> Result<(ConnectSpec, ApiKeyInput), Failure> {
        self.connect.runtime.apply();
        if let Some(dir) = &self.mount {
            let (entry, _) = own_mount_of(dir).ok_or_else(|| {
                Failure::new(Exit::NotFound, format!("no mount of yours holds {}", dir.shown()))
            })?;
            take_paths(names, Some(&entry))?;
            return self.of_live(&live(&entry)?, false);
        }
        let connect = &self.connect;
        if connect.embedded.is_some() || connect.api_url.is_some() || connect.api_key_file.is_some() {
            return connect.resolve();
        }
        if let Some(entry) = take_paths(names, None)? {
            return self.of_live(&live(&entry)?, false);
        }
        if let Some(entry) = here() {
            let is_choice = connect.names_a_vault() || live_mounts::live().len() > 1;
            return self.of_live(&live(&entry)?, is_choice);
        }
        if connect.names_a_vault() {
            return connect.resolve();
        }
        match live_mounts::live().as_slice() {
            [] => Err(Failure::new(Exit::NotFound, NO_VAULT)),
            [only] => self.of_live(only, false),
            several => {
                let names: Vec<_> = several.iter().map(|one| one.mountpoint.shown().to_string()).collect();
                let names = names.join(", ");
                Err(usage(format!(
                    "which vault? There are several mounts ({names}): give --mount DIR, or cd into one"
                )))
            }
        }
    }

    /// The vault of a mount; `is_choice`: another one could be meant.
    fn of_live(&self, mount: &LiveMount, is_choice: bool) -> Result<(ConnectSpec, ApiKeyInput), Failure> {
        let used = self.of_mount(&mount.mountpoint, mount.spec())?;
        if is_choice || self.verbose {
            stdio::say(format_args!("using the vault mounted at {}", mount.mountpoint.shown()));
        }
        Ok(used)
    }

    /// The vault of a mount, with this command's own limits.
    fn of_mount(&self, at: &Path, spec: serde_json::Value) -> Result<(ConnectSpec, ApiKeyInput), Failure> {
        let (connect, at) = (&self.connect, at.shown());
        let mut spec: ConnectSpec = serde_json::from_value(spec).map_err(|_| {
            usage(format!(
                "the mount at {at} is of another version and does not say which vault it shows: {WAYS}"
            ))
        })?;
        let key = self.key_of(&mut spec, &at)?;
        if let Some(prefix) = &connect.prefix {
            spec.prefix = clean_prefix(prefix)?;
        }
        if connect.api != Api::Auto {
            spec.api = connect.api;
        }
        if !connect.key_context.is_empty() {
            spec.key_context = connect.key_context.iter().cloned().collect();
        }
        spec.timeout = connect.timeout;
        if let Some(dialect) = spec.dialect() {
            has_contexts(&spec, dialect)?;
        }
        Ok((spec, key))
    }

    /// The key of a mount's vault: that of the mount's key file, else that of this command.
    fn key_of(&self, spec: &mut ConnectSpec, at: &dyn Display) -> Result<ApiKeyInput, Failure> {
        let url = match &spec.endpoint {
            Endpoint::Embedded(_) if self.connect.api_key_file.is_some() => {
                return Err(usage("an embedded vault has a key of its own: leave --api-key-file away"));
            }
            Endpoint::Embedded(_) => return Ok(ApiKeyInput::default()),
            Endpoint::Url(url) => url,
        };
        if let (Some(path), None) = (&spec.key_file, &self.connect.api_key_file) {
            let secret = api_key::read_key_file(path, spec.also).map_err(|e| bad_key(path, e))?;
            return Ok(ApiKeyInput { secret: Some(secret) });
        }
        // The environment's key is for the environment's address.
        let of_env =
            clean_url(&env("WORKOS_API_URL").unwrap_or_else(|| DEFAULT_URL.into()), "WORKOS_API_URL");
        let is_for_it = self.connect.api_key_file.is_some() || of_env.is_ok_and(|of_env| of_env == *url);
        if !is_for_it || !self.connect.names_a_vault() {
            let sentence = format!(
                "the mount at {at} shows {url} with a key that only it knows: give --api-key-file FILE, or set \
                 WORKOS_API_URL and WORKOS_API_KEY"
            );
            return Err(Failure::new(Exit::Key, sentence));
        }
        let (secret, file) = self.connect.find_key()?;
        spec.key_file = file;
        Ok(ApiKeyInput { secret: Some(secret) })
    }
}

/// The processes of a mount of the caller's.
fn live(entry: &Entry) -> Result<LiveMount, Failure> {
    live_mounts::of(entry).ok_or_else(|| {
        let at = entry.mountpoint.shown();
        Failure::new(Exit::Failed, format!("the mount at {at} is dead: mount it again, or unmount it"))
    })
}

/// The caller's mount that holds the working directory; the kernel says so without its daemon.
fn here() -> Option<Entry> {
    let dev = Dev::of(nix::fcntl::AT_FDCWD).ok()?;
    let mut table = mount_table::table().ok()?.into_iter();
    table.find(|entry| entry.dev == dev && entry.is_vaultfs() && trust::is_own(entry))
}

/// The caller's mount that a path leads into, and the way from there.
fn own_mount_of(path: &Path) -> Option<(Entry, PathBuf)> {
    locate::holding(path).filter(|(entry, _)| trust::is_own(entry))
}

/// Makes names of objects of `names` that are paths into a mount (into `only` this one, if it is
/// given). Returns the mount; `None` if no name is such a path.
fn take_paths(names: &mut [String], only: Option<&Entry>) -> Result<Option<Entry>, Failure> {
    let mut found: Option<Entry> = None;
    let mut plain = None;
    for name in names {
        let place = Some(&*name).filter(|name| is_path(name)).and_then(|name| own_mount_of(Path::new(name)));
        let Some((entry, way)) = place.filter(|(entry, _)| only.is_none_or(|only| only.dev == entry.dev))
        else {
            plain = Some(display::text(name).to_string());
            continue;
        };
        if found.as_ref().is_some_and(|other| other.dev != entry.dev) {
            return Err(usage("the names are paths into several mounts: give those of one mount"));
        }
        let object = name::of_path(&way)
            .map_err(|e| usage(format!("{} is no object of the vault: {e}", display::text(name))))?;
        *name = object.map_or_else(String::new, |object| object.as_str().to_owned());
        found = Some(entry);
    }
    match (found, plain) {
        (Some(_), Some(plain)) if only.is_none() => Err(usage(format!(
            "which vault? {plain} is no path into the mount of the other names: give all as paths"
        ))),
        (found, _) => Ok(found),
    }
}

/// Whether a name may be meant as a path. One that only begins with a dot is a name.
fn is_path(name: &str) -> bool {
    name.starts_with('/') || matches!(name.split('/').next(), Some("." | ".."))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct CommandLine {
        #[command(flatten)]
        vault: VaultArgs,
    }

    #[test]
    fn a_mount_lends_its_vault() {
        let args =
            |words: &[&str]| CommandLine::try_parse_from(["vaultfs"].iter().chain(words)).unwrap().vault;
        let plain = args(&[]);
        let (spec, _) = args(&["--embedded=/v", "--prefix", "app"]).connect.resolve().unwrap();
        let lent = |args: &VaultArgs, spec: &ConnectSpec| {
            args.of_mount(Path::new("/mnt"), serde_json::to_value(spec).unwrap())
        };
        let (found, key) = lent(&plain, &spec).unwrap();
        assert_eq!((&found.endpoint, &found.prefix), (&spec.endpoint, &spec.prefix));
        assert!(key.secret.is_none());
        assert_eq!(lent(&args(&["--api-key-file", "/k"]), &spec).unwrap_err().exit, Exit::Usage);
        let remote = ConnectSpec { endpoint: Endpoint::Url("https://example.com".into()), ..spec };
        assert_eq!(lent(&plain, &remote).unwrap_err().exit, Exit::Key, "only the mount knows the key");
        let old = plain.of_mount(Path::new("/mnt"), serde_json::json!({"old": 1}));
        assert_eq!(old.unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn a_name_that_begins_with_a_dot_is_a_name() {
        for path in ["/a", ".", "..", "./a", "../a/b"] {
            assert!(is_path(path), "{path}");
        }
        for name in ["a", ".env", "..a", ".a/b", "a/../b", ""] {
            assert!(!is_path(name), "{name}");
        }
    }
}
