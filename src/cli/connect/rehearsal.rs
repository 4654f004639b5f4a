//! What is wrong with a vault's options as far as this machine can tell, before anything is mounted: the volume plugin
//! says so when a volume is created, not when the first container needs it.

use super::{ConnectArgs, ConnectSpec, Endpoint, absolute, bad_key, usage};
use crate::cli::exit::{Exit, Failure};
use crate::display::Shown;
use crate::files;
use crate::vault::http;
use crate::vault::http::key::{self, KeyError};

impl ConnectArgs {
    /// Refuses what [`ConnectArgs::resolve`] and [`super::connect`] refuse without asking a vault, of a mount that has
    /// neither the credential nor the environment of this process. `key_later`: it may still get its key.
    pub fn rehearse(&self, key_later: bool) -> Result<(), Failure> {
        let spec = self.spec()?;
        if let Some(pem) = more_roots(&spec)? {
            http::check_roots(&pem)?;
        }
        match (&spec.endpoint, &self.api_key_file) {
            (Endpoint::Embedded(dir), _) if dir.exists() && !dir.is_dir() => {
                Err(usage(format!("--embedded={} is no directory: choose another place", dir.shown())))
            }
            (Endpoint::Embedded(_), _) => Ok(()),
            (Endpoint::Url(_), Some(file)) => {
                let file = absolute(file)?;
                let pipe = |file: &std::path::Path| file.exists() && !file.is_dir() && !file.is_file();
                // Each mount reads it anew, which a pipe gives only once.
                let key = if pipe(&file) {
                    Err(KeyError::NotAFile(file.clone()))
                } else {
                    key::read_key_file(&file, self.also)
                };
                key.map(drop).map_err(|e| bad_key(&file, e))
            }
            (Endpoint::Url(_), None) if key_later => Ok(()),
            (Endpoint::Url(url), None) => Err(Failure::new(
                Exit::Key,
                format!(
                    "no API key for {url}: give --api-key-file=FILE, or --embedded=DIR for a vault on this machine, \
                     which needs none"
                ),
            )),
        }
    }
}

/// A system's whole list of authorities is a twentieth of this.
const MAX_CERTIFICATES: u64 = 4 << 20;

/// The certificates of `--ca-file`.
pub fn more_roots(spec: &ConnectSpec) -> Result<Option<Vec<u8>>, Failure> {
    let Some(path) = &spec.ca_file else { return Ok(None) };
    let read = files::open(path, spec.also).map_err(Into::into).and_then(|file| file.read(MAX_CERTIFICATES));
    read.map(|pem| Some(pem.to_vec()))
        .map_err(|e: std::io::Error| usage(format!("--ca-file {}: {e}", path.shown())))
}
