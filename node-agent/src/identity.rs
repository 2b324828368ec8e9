//! Who this host is to its scheduler: what joining gave, kept below `<state>/identity`.
//!
//! `key.pem` never leaves the host and has mode 0600, as the rest has. The files are written whole, the one that names the host last: with it
//! the identity is complete.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::HostId;
use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

use crate::ledger::{LedgerError, replace};

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file could not be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file could not be written.
    #[error("keep the identity of this host")]
    Write(#[from] LedgerError),
    /// A file is not what it should be.
    #[error("read {path}: it is damaged; join again with a new token")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The host has not joined.
    #[error(
        "this host has not joined a scheduler: run `node-agent join --scheduler URL --token TOKEN`, or set spec.source"
    )]
    NotJoined,
}

/// Who this host is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Its id in the cloud.
    pub host: HostId,
    /// Its name there.
    pub name: String,
    /// Where the scheduler answers: `https://name:port`.
    pub scheduler: String,
}

/// The key and the certificates as PEM text.
#[derive(Clone)]
pub struct Credentials {
    /// The private key: a secret.
    pub key: String,
    /// The host's certificate.
    pub certificate: String,
    /// The CA's certificate.
    pub ca: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("key", &"hidden").finish_non_exhaustive()
    }
}

/// The directory of the identity.
#[must_use]
pub fn directory(state: &Path) -> PathBuf {
    state.join("identity")
}

/// Keeps what joining gave.
///
/// # Errors
/// [`IdentityError::Write`].
pub fn keep(state: &Path, identity: &Identity, credentials: &Credentials) -> Result<(), IdentityError> {
    let directory = directory(state);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .map_err(|source| LedgerError::Write { path: directory.clone(), source })?;
    for (name, text) in
        [("key.pem", &credentials.key), ("certificate.pem", &credentials.certificate), ("ca.pem", &credentials.ca)]
    {
        replace(&directory.join(name), text.as_bytes(), 0o600)?;
    }
    let path = directory.join("host.json");
    let bytes =
        serde_json::to_vec_pretty(identity).map_err(|source| LedgerError::Encode { path: path.clone(), source })?;
    Ok(replace(&path, &bytes, 0o600)?)
}

/// Reads who this host is.
///
/// # Errors
/// [`IdentityError::NotJoined`] when it never joined.
pub fn load(state: &Path) -> Result<Identity, IdentityError> {
    let path = directory(state).join("host.json");
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(IdentityError::NotJoined),
        Err(source) => return Err(IdentityError::Read { path, source }),
    };
    serde_json::from_slice(&bytes).map_err(|source| IdentityError::Damaged { path, source: Box::new(source) })
}

/// The private key of this host: a secret.
///
/// # Errors
/// [`IdentityError`] when it cannot be read.
pub fn key(state: &Path) -> Result<rcgen::KeyPair, IdentityError> {
    let path = directory(state).join("key.pem");
    let text = fs::read_to_string(&path).map_err(|source| IdentityError::Read { path: path.clone(), source })?;
    rcgen::KeyPair::from_pem(&text).map_err(|source| IdentityError::Damaged { path, source: Box::new(source) })
}

/// Puts a new certificate for the same key in the place of the one there is.
///
/// # Errors
/// [`IdentityError`] when the text is no certificate for this host's key, or the file could not be written: the old one stays.
pub fn replace_certificate(state: &Path, pem: &str) -> Result<(), IdentityError> {
    let path = directory(state).join("certificate.pem");
    let damaged = |source: Box<dyn std::error::Error + Send + Sync>| IdentityError::Damaged {
        path: path.with_extension("answer"),
        source,
    };
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| damaged(Box::new(error)))?;
    tls_with(state, certificate)?;
    Ok(replace(&path, pem.as_bytes(), 0o600)?)
}

/// The certificate of the joined CA.
///
/// # Errors
/// [`IdentityError`] when it cannot be read.
pub fn authority(state: &Path) -> Result<CertificateDer<'static>, IdentityError> {
    let path = directory(state).join("ca.pem");
    CertificateDer::from_pem_file(&path).map_err(|source| IdentityError::Damaged { path, source: Box::new(source) })
}

/// The certificate of this host, if it has one.
///
/// # Errors
/// [`IdentityError`] when it cannot be read.
pub fn certificate(state: &Path) -> Result<CertificateDer<'static>, IdentityError> {
    let path = directory(state).join("certificate.pem");
    CertificateDer::from_pem_file(&path).map_err(|source| IdentityError::Damaged { path, source: Box::new(source) })
}

/// TLS as this host speaks it: its own certificate, only the joined CA trusted.
///
/// # Errors
/// [`IdentityError`] when a file is missing or damaged.
pub fn tls(state: &Path) -> Result<ClientConfig, IdentityError> {
    tls_with(state, certificate(state)?)
}

fn tls_with(state: &Path, certificate: CertificateDer<'static>) -> Result<ClientConfig, IdentityError> {
    let directory = directory(state);
    let damaged = |name: &str| {
        let path = directory.join(name);
        move |source: Box<dyn std::error::Error + Send + Sync>| IdentityError::Damaged { path, source }
    };
    let ca = authority(state)?;
    let key = PrivateKeyDer::from_pem_file(directory.join("key.pem")).map_err(|e| damaged("key.pem")(Box::new(e)))?;
    let mut roots = RootCertStore::empty();
    roots.add(ca).map_err(|error| damaged("ca.pem")(Box::new(error)))?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| damaged("ca.pem")(Box::new(error)))?
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate], key)
        .map_err(|error| damaged("certificate.pem")(Box::new(error)))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
