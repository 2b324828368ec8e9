//! The cloud's own certificate authority: who is who between scheduler, agents and operators.
//!
//! A certificate says its holder's role in O and its name in CN; both are chosen here, never by the request. Keys are written readable by their
//! owner only and shown nowhere.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use model::HostId;
use model::image::Sha256;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::Digest;

/// O of an agent's certificate.
pub(crate) const AGENT: &str = "agent";
/// O of an operator's certificate.
pub(crate) const OPERATOR: &str = "operator";
/// How long the CA is good, in years.
const CA_YEARS: i16 = 20;
/// How long other certificates are good, in years.
const LEAF_YEARS: i16 = 5;

/// The files of a scheduler's directory.
pub(crate) mod files {
    pub(crate) const CA: &str = "ca.crt";
    pub(crate) const CA_KEY: &str = "ca.key";
    pub(crate) const SERVER: &str = "server.crt";
    pub(crate) const SERVER_KEY: &str = "server.key";
    pub(crate) const OPERATOR: &str = "operator.crt";
    pub(crate) const OPERATOR_KEY: &str = "operator.key";
    pub(crate) const CLIENT: &str = "client.toml";
    pub(crate) const CONFIG: &str = "scheduler.toml";
}

/// The authority can not be made, read or used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthorityError {
    /// There is one already.
    #[error("make a certificate authority in {0:?}: there is one already, and its hosts would be lost")]
    Exists(PathBuf),
    /// A file can not be read or written.
    #[error("{action} {path:?}")]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// A file holds no certificate.
    #[error("read a certificate from {path:?}")]
    Pem {
        path: PathBuf,
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// A certificate or key can not be made or read.
    #[error("{action}")]
    Certificate {
        action: &'static str,
        #[source]
        source: rcgen::Error,
    },
}

fn certificate(action: &'static str) -> impl FnOnce(rcgen::Error) -> AuthorityError {
    move |source| AuthorityError::Certificate { action, source }
}

/// The authority with its key.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("digest", &self.digest()).finish_non_exhaustive()
    }
}

/// A certificate for an agent.
#[derive(Debug, Clone)]
pub(crate) struct Signed {
    pub(crate) pem: String,
    pub(crate) digest: Sha256,
}

/// The SHA-256 of a certificate (DER).
pub(crate) fn digest(certificate: &CertificateDer<'_>) -> Sha256 {
    Sha256::new(sha2::Sha256::digest(certificate).into())
}

impl Authority {
    /// Makes a new authority in `dir`, with the server's and the first operator's certificates for it.
    pub(crate) fn found(dir: &Path, names: &[String]) -> Result<Self, AuthorityError> {
        let exists = dir.join(files::CA_KEY);
        if exists.exists() {
            return Err(AuthorityError::Exists(dir.to_owned()));
        }
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|source| AuthorityError::File { action: "make", path: dir.to_owned(), source })?;
        let key = generate()?;
        let mut params = params("basalt", "Basalt CA", CA_YEARS);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca = params.self_signed(&key).map_err(certificate("sign the CA certificate"))?;
        let (pem, der) = (ca.pem(), ca.der().clone());
        let ca_key = key.serialize_pem();
        let authority = Self { issuer: Issuer::new(params, key), certificate: der, pem };

        let first = names.first().map_or("scheduler", String::as_str);
        let mut server = self::params("scheduler", first, LEAF_YEARS);
        server.subject_alt_names = CertificateParams::new(names.to_vec())
            .map_err(certificate("take the names of the server certificate"))?
            .subject_alt_names;
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let (server, server_key) = authority.sign(&server)?;
        let mut operator = self::params(OPERATOR, "operator", LEAF_YEARS);
        operator.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let (operator, operator_key) = authority.sign(&operator)?;

        write(dir, files::SERVER_KEY, &server_key, 0o600)?;
        // The CA certificate ends the chain that is sent, so that a joining host can hold it against the digest in its token.
        write(dir, files::SERVER, &format!("{server}{}", authority.pem), 0o644)?;
        write(dir, files::OPERATOR_KEY, &operator_key, 0o600)?;
        write(dir, files::OPERATOR, &operator, 0o644)?;
        write(dir, files::CA, &authority.pem, 0o644)?;
        write(dir, files::CA_KEY, &ca_key, 0o600)?;
        Ok(authority)
    }

    /// Reads the authority that was made in `dir`.
    pub(crate) fn load(dir: &Path) -> Result<Self, AuthorityError> {
        let (pem, certificate_der) = read_certificate(dir)?;
        let key = KeyPair::from_pem(&read(&dir.join(files::CA_KEY))?).map_err(certificate("read the CA key"))?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key).map_err(certificate("read the CA certificate"))?;
        Ok(Self { issuer, certificate: certificate_der, pem })
    }

    /// The CA certificate.
    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The CA certificate in PEM.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// The SHA-256 of the CA certificate (DER).
    pub(crate) fn digest(&self) -> Sha256 {
        digest(&self.certificate)
    }

    /// Signs an agent's request. Of the request only the public key is taken; the names are ours.
    pub(crate) fn sign_agent(&self, csr: &str, host: HostId) -> Result<Signed, AuthorityError> {
        let mut request = CertificateSigningRequestParams::from_pem(csr)
            .map_err(certificate("read a certificate signing request"))?;
        request.params = params(AGENT, &host.to_string(), LEAF_YEARS);
        request.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let signed = request.signed_by(&self.issuer).map_err(certificate("sign an agent's certificate"))?;
        Ok(Signed { pem: signed.pem(), digest: digest(signed.der()) })
    }

    fn sign(&self, params: &CertificateParams) -> Result<(String, String), AuthorityError> {
        let key = generate()?;
        let signed = params.signed_by(&key, &self.issuer).map_err(certificate("sign a certificate"))?;
        Ok((signed.pem(), key.serialize_pem()))
    }
}

/// The SHA-256 of the CA certificate in `dir`, without its key.
pub(crate) fn ca_digest(dir: &Path) -> Result<Sha256, AuthorityError> {
    Ok(digest(&read_certificate(dir)?.1))
}

fn read_certificate(dir: &Path) -> Result<(String, CertificateDer<'static>), AuthorityError> {
    let path = dir.join(files::CA);
    let pem = read(&path)?;
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|source| AuthorityError::Pem { path, source })?;
    Ok((pem, der))
}

fn generate() -> Result<KeyPair, AuthorityError> {
    KeyPair::generate().map_err(certificate("generate a key"))
}

fn params(role: &str, name: &str, years: i16) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, role);
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    // Clocks differ between hosts: what is made today was good yesterday.
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let date = |date: jiff::civil::Date, years: i16| {
        let month = u8::try_from(date.month()).unwrap_or(1);
        // The 29th of February is not in every year.
        let day = u8::try_from(date.day()).unwrap_or(1).min(28);
        rcgen::date_time_ymd(i32::from(date.year() + years), month, day)
    };
    params.not_before = date(today.yesterday().unwrap_or(today), 0);
    params.not_after = date(today, years);
    params.serial_number = Some(SerialNumber::from_slice(uuid::Uuid::new_v4().as_bytes()));
    params.use_authority_key_identifier_extension = true;
    params
}

fn read(path: &Path) -> Result<String, AuthorityError> {
    fs::read_to_string(path).map_err(|source| AuthorityError::File { action: "read", path: path.to_owned(), source })
}

/// Writes a new file with these permissions from its first byte on.
pub(crate) fn write(dir: &Path, name: &str, text: &str, mode: u32) -> Result<(), AuthorityError> {
    let path = dir.join(name);
    let mut open = fs::OpenOptions::new();
    let file = open.write(true).create_new(true).mode(mode).open(&path);
    let written = file.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|source| AuthorityError::File { action: "write", path, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn keys_are_for_their_owner_only_and_a_second_authority_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        let made = Authority::found(&home, &["localhost".to_owned()]).unwrap();
        for name in [files::CA_KEY, files::SERVER_KEY, files::OPERATOR_KEY] {
            let mode = fs::metadata(home.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        assert!(matches!(Authority::found(&home, &[]), Err(AuthorityError::Exists(_))));
        let read = Authority::load(&home).unwrap();
        assert_eq!(read.digest(), made.digest());
        assert_eq!(ca_digest(&home).unwrap(), made.digest());
        assert!(!format!("{read:?}").contains("PRIVATE"));
        let chain = fs::read(home.join(files::SERVER)).unwrap();
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&chain).map(Result::unwrap).collect();
        let [server, ca] = chain.as_slice() else { panic!("{} certificates in the server's chain", chain.len()) };
        assert_ne!(digest(server), made.digest());
        assert_eq!(digest(ca), made.digest(), "a joining host finds the CA of its token at the end of the chain");
    }

    #[test]
    fn of_a_signing_request_only_the_key_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::found(&dir.path().join("home"), &["localhost".to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut asked = params(OPERATOR, "root", 1);
        asked.serial_number = None;
        asked.use_authority_key_identifier_extension = false;
        let csr = asked.serialize_request(&key).unwrap().pem().unwrap();
        let host = HostId::from_uuid(uuid::Uuid::from_u128(7));
        let signed = authority.sign_agent(&csr, host).unwrap();
        let der = CertificateDer::from_pem_slice(signed.pem.as_bytes()).unwrap();
        let caller = crate::caller::Caller::of(Some(&der));
        assert_eq!(caller, crate::caller::Caller::Agent { host, certificate: signed.digest });
        assert!(authority.sign_agent("nonsense", host).is_err());
    }
}
