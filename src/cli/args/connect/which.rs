//! Which vault a command means that names none: that of a mount.

use std::path::{Path, PathBuf};

use super::{
    Api, ApiKeyInput, ConnectArgs, ConnectSpec, Endpoint, bad_key, clean_prefix, has_contexts, usage,
};
use crate::cli::exit::{Exit, Failure};
use crate::daemon::live_mounts;
use crate::display::Shown;
use crate::sys::stdio;
use crate::vault::client::api_key;

const NO_VAULT: &str = "which vault? Give --embedded for one on this machine, or set WORKOS_API_KEY (or give \
                        --api-key-file FILE) for the service, or mount one first";

const WAYS: &str = "give --embedded=DIR, or --api-url URL, or set WORKOS_API_URL and WORKOS_API_KEY";

impl ConnectArgs {
    /// As [`ConnectArgs::resolve`]; if nothing names a vault, that of the only live mount.
    pub fn resolve_or_mounted(&self) -> Result<(ConnectSpec, ApiKeyInput), Failure> {
        if self.names_a_vault() {
            return self.resolve();
        }
        self.runtime.apply();
        let mounts =
            live_mounts::live().into_iter().map(|mount| (mount.mountpoint.clone(), mount.spec())).collect();
        let (mut spec, key) = of_the_one_mount(mounts)?;
        if let Some(prefix) = &self.prefix {
            spec.prefix = clean_prefix(prefix)?;
        }
        if self.api != Api::Auto {
            spec.api = self.api;
        }
        if !self.key_context.is_empty() {
            spec.key_context = self.key_context.iter().cloned().collect();
        }
        spec.timeout = self.timeout;
        if let Some(dialect) = spec.dialect() {
            has_contexts(&spec, dialect)?;
        }
        Ok((spec, key))
    }
}

/// What to type for the vault of a mount, on a line of its own.
fn suggest_options(mountpoint: &Path, spec: &serde_json::Value) -> Option<String> {
    let way = match serde_json::from_value::<ConnectSpec>(spec.clone()) {
        Err(_) => return None,
        Ok(ConnectSpec { endpoint: Endpoint::Embedded(dir), prefix, .. }) => {
            (format!("--embedded={}", dir.shown()), prefix)
        }
        Ok(ConnectSpec { endpoint: Endpoint::Url(url), key_file, prefix, .. }) => {
            let key = key_file.map_or_else(|| "FILE".to_owned(), |file| file.shown().to_string());
            (format!("--api-url {url} --api-key-file {key}"), prefix)
        }
    };
    let prefix = way.1.map_or_else(String::new, |prefix| format!(" --prefix {prefix}"));
    Some(format!("  for {} give {}{prefix}", mountpoint.shown(), way.0))
}

/// The vault of the only mount there is, said on standard error.
pub(super) fn of_the_one_mount(
    mounts: Vec<(PathBuf, serde_json::Value)>,
) -> Result<(ConnectSpec, ApiKeyInput), Failure> {
    let [(mountpoint, spec)] = <[_; 1]>::try_from(mounts).map_err(|mounts| match mounts.as_slice() {
        [] => Failure::new(Exit::NotFound, NO_VAULT),
        several => {
            let names: Vec<_> = several.iter().map(|(path, _)| path.shown().to_string()).collect();
            let ways = several.iter().filter_map(|(path, spec)| suggest_options(path, spec)).collect();
            usage(format!("which vault? There are several mounts ({}):", names.join(", "))).with_lines(ways)
        }
    })?;
    let at = mountpoint.shown();
    let spec: ConnectSpec = serde_json::from_value(spec).map_err(|_| {
        usage(format!(
            "the mount at {at} is of another version and does not say which vault it shows: {WAYS}"
        ))
    })?;
    let secret = match (&spec.endpoint, &spec.key_file) {
        (Endpoint::Embedded(_), _) => None,
        (Endpoint::Url(_), Some(path)) => {
            Some(api_key::read_key_file(path, spec.also).map_err(|e| bad_key(path, e))?)
        }
        (Endpoint::Url(url), None) => {
            let sentence = format!(
                "the mount at {at} shows {url} with a key that only it knows: set WORKOS_API_KEY, or give \
                 --api-key-file FILE"
            );
            return Err(Failure::new(Exit::Key, sentence));
        }
    };
    stdio::say(format_args!("using the vault mounted at {at}"));
    Ok((spec, ApiKeyInput { secret }))
}
