//! `node-agent join`: from a token to an identity.
//!
//! The key is made here and stays here. First contact trusts exactly one thing, the digest of the CA certificate in the token
//! ([`model::agent`]): a server that cannot show that certificate, and a certificate of its own under it, is refused before the token is sent.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use model::agent::{ErrorBody, JOIN_PATH, JoinRequest, JoinResponse, JoinToken};
use model::image::Sha256;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::Digest;

use crate::identity::{Credentials, Identity, IdentityError};

/// How long the scheduler may take to answer.
const JOIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a host did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No key or request could be made.
    #[error("make a key and a certificate request")]
    Request(#[source] rcgen::Error),
    /// TLS could not be set up.
    #[error("set up TLS")]
    Tls(#[source] rustls::Error),
    /// The scheduler was not reached, or is not the one that the token names.
    #[error("reach the scheduler at {url}")]
    Reach {
        /// Its address.
        url: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The scheduler refused.
    #[error("join {url}: the scheduler refused with {status}: {message}")]
    Refused {
        /// Its address.
        url: String,
        /// The HTTP status.
        status: u16,
        /// Its words.
        message: String,
    },
    /// The answer names another CA than the token.
    #[error("join {url}: the CA in the answer has SHA-256 {got}, the token names {want}")]
    OtherCa {
        /// Its address.
        url: String,
        /// What was answered.
        got: Sha256,
        /// What the token names.
        want: Sha256,
    },
    /// The answer holds no CA certificate.
    #[error("join {url}: read the CA certificate in the answer")]
    CaShape {
        /// Its address.
        url: String,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// The identity could not be kept.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// What joining needs.
#[derive(Debug, Clone)]
pub struct Join {
    /// Where the scheduler answers: `https://name:port`.
    pub scheduler: String,
    /// The token.
    pub token: JoinToken,
    /// The host's name, the one that the token was made for.
    pub name: String,
    /// Its tunnel endpoint.
    pub tunnel: Ipv4Addr,
}

/// Joins.
///
/// # Errors
/// [`JoinError`].
pub async fn join(join: &Join) -> Result<(Identity, Credentials), JoinError> {
    let key = rcgen::KeyPair::generate().map_err(JoinError::Request)?;
    let csr = rcgen::CertificateParams::default().serialize_request(&key).map_err(JoinError::Request)?;
    let request = JoinRequest {
        token: join.token.clone(),
        name: join.name.clone(),
        tunnel: join.tunnel,
        csr: csr.pem().map_err(JoinError::Request)?,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let response = send(join, &request).await?;
    let ca = CertificateDer::from_pem_slice(response.ca.as_bytes())
        .map_err(|source| JoinError::CaShape { url: join.scheduler.clone(), source })?;
    let got = digest(&ca);
    if got != join.token.ca() {
        return Err(JoinError::OtherCa { url: join.scheduler.clone(), got, want: join.token.ca() });
    }
    let identity = Identity { host: response.host, name: join.name.clone(), scheduler: join.scheduler.clone() };
    let credentials = Credentials { key: key.serialize_pem(), certificate: response.certificate, ca: response.ca };
    Ok((identity, credentials))
}

async fn send(join: &Join, request: &JoinRequest) -> Result<JoinResponse, JoinError> {
    let reach = |source| JoinError::Reach { url: join.scheduler.clone(), source };
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls(join.token.ca()).map_err(JoinError::Tls)?)
        .https_only(true)
        .timeout(JOIN_TIMEOUT)
        .build()
        .map_err(reach)?;
    let url = format!("{}{JOIN_PATH}", join.scheduler.trim_end_matches('/'));
    let response = client.post(url).json(request).send().await.map_err(reach)?;
    let status = response.status();
    if !status.is_success() {
        let message = response.json::<ErrorBody>().await.map_or_else(|_| String::new(), |body| body.error.message);
        return Err(JoinError::Refused { url: join.scheduler.clone(), status: status.as_u16(), message });
    }
    response.json().await.map_err(reach)
}

/// The SHA-256 of a certificate.
#[must_use]
pub fn digest(certificate: &CertificateDer<'_>) -> Sha256 {
    Sha256::new(sha2::Sha256::digest(certificate.as_ref()).into())
}

fn tls(ca: Sha256) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(PinnedCa { ca, provider: Arc::clone(&provider) });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Trusts the one CA certificate that has a given digest, wherever in the chain it is, and then checks as usual.
#[derive(Debug)]
struct PinnedCa {
    ca: Sha256,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ca = intermediates.iter().find(|certificate| digest(certificate) == self.ca);
        let ca = ca.ok_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
