//! TLS for the served vault: a certificate chain and its private key, from PEM files.
//!
//! The key's file must be closed to others, like every file with a secret in it. Read once, at the
//! start.

use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::display::Shown;
use crate::server::error::ServeError;
use crate::server::instance::data_dir::{SecretFileError, read_tls_key};
use crate::sys::files;

/// A chain is a few certificates.
const MAX_CHAIN: u64 = 1 << 20;

/// The TLS identity of TCP connections: the chain in `cert`, proved with the key in `key`.
pub fn acceptor(cert: &Path, key: &Path) -> Result<TlsAcceptor, ServeError> {
    let bad =
        |path: &Path, problem: &str| ServeError::Tls { path: path.to_owned(), problem: problem.to_owned() };
    let pem = files::open(cert, None).map_err(Into::into).and_then(|file| file.read(MAX_CHAIN));
    let pem = pem.map_err(ServeError::io("cannot read the certificate", cert))?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|_| bad(cert, "is not PEM: give the certificate chain in PEM"))?;
    if chain.is_empty() {
        return Err(bad(cert, "holds no certificate: give the certificate chain in PEM"));
    }
    let text = read_tls_key(key).map_err(|e| match e {
        SecretFileError::Missing => bad(key, "is missing"),
        SecretFileError::TooOpen => bad(key, "can be read by others: make it 0600, and consider it known"),
        SecretFileError::NotText => bad(key, "holds no private key in PEM"),
        SecretFileError::Io(e) => ServeError::io("cannot read the key", key)(e),
    })?;
    // Straight into the TLS library, which keeps it for as long as the server runs.
    let private = PrivateKeyDer::from_pem_slice(text.expose().as_bytes())
        .map_err(|_| bad(key, "holds no private key in PEM that is not itself encrypted"))?;
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map(|config| config.with_no_client_auth())
        .and_then(|config| config.with_single_cert(chain, private));
    let mut config = config
        .map_err(|e| bad(cert, &format!("and its key {} cannot be used together: {e}", key.shown())))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
