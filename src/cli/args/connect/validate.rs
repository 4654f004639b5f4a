//! Checks a vault's options as far as this machine can, before anything is mounted: the volume
//! plugin says so when a volume is created, not when the first container needs it.

use crate::cli::args::connect::{ConnectArgs, ConnectSpec, Endpoint, absolute, bad_key, usage};
use crate::cli::exit::{Exit, Failure};
use crate::display::Shown;
use crate::sys::files;
use crate::vault::client::api_key;
use crate::vault::client::api_key::KeyError;
use crate::vault::client::tls::TlsFiles;

impl ConnectArgs {
    /// Refuses what [`ConnectArgs::resolve`] and [`crate::cli::args::connect::connect`] refuse
    /// without asking a vault, of a mount that has neither the credential nor the environment of
    /// this process. `key_later`: it may still get its key.
    pub fn validate(&self, key_later: bool) -> Result<(), Failure> {
        let spec = self.spec()?;
        tls_files(&spec)?.check()?;
        match (&spec.endpoint, &self.api_key_file) {
            (Endpoint::Embedded(dir), _) if files::metadata(dir, None).is_ok_and(|meta| !meta.is_dir()) => {
                Err(usage(format!("--embedded={} is no directory: choose another place", dir.shown())))
            }
            (Endpoint::Embedded(_), _) => Ok(()),
            (Endpoint::Url(_), Some(file)) => {
                let file = absolute(file)?;
                let meta = files::metadata(&file, self.also);
                // Each mount reads it anew, which a pipe gives only once.
                let key = if meta.is_ok_and(|meta| !meta.is_dir() && !meta.is_file()) {
                    Err(KeyError::NotAFile(file.clone()))
                } else {
                    api_key::read_key_file(&file, self.also)
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

/// What `--ca-file` names.
pub fn tls_files(spec: &ConnectSpec) -> Result<TlsFiles, Failure> {
    let path = spec.ca_file.as_deref();
    if spec.takes_over {
        return Ok(TlsFiles::read_if_usable(path, spec.also));
    }
    TlsFiles::read(path, spec.also).map_err(|e| {
        usage(format!("--ca-file {}: {e}", path.unwrap_or_else(|| std::path::Path::new("")).shown()))
    })
}
