//! The cloud's own certificate authority: who is who between scheduler, agents and operators.
//!
//! A certificate says its holder's role in O and its name in CN; both are chosen here, never by the request. Keys are written readable by their
//! owner only and shown nowhere.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::HostId;
use model::image::Sha256;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::Digest;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// O of an agent's certificate.
pub(crate) const AGENT: &str = "agent";
/// O of an operator's certificate.
pub(crate) const OPERATOR: &str = "operator";
/// How long the CA is good, in years.
const CA_YEARS: i16 = 20;
/// How long other certificates are good, in years.
const LEAF_YEARS: i16 = 5;

/// By how much the clock of a host may be behind, in seconds.
const CLOCKS_DIFFER_SECONDS: u64 = 24 * 3600;

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
    pub(crate) fn sign_agent(&self, csr: &str, host: HostId, seconds: u64) -> Result<Signed, AuthorityError> {
        let mut request = CertificateSigningRequestParams::from_pem(csr)
            .map_err(certificate("read a certificate signing request"))?;
        request.params = params(AGENT, &host.to_string(), LEAF_YEARS);
        request.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0);
        let at = |second: u64| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(second);
        // Clocks differ between hosts, which matters less to what is good for long.
        request.params.not_before = at(now.saturating_sub((seconds / 8).min(CLOCKS_DIFFER_SECONDS)));
        request.params.not_after = at(now + seconds);
        let signed = request.signed_by(&self.issuer).map_err(certificate("sign an agent's certificate"))?;
        Ok(Signed { pem: signed.pem(), digest: digest(signed.der()) })
    }

    /// Makes a new certificate with a new key for an operator in `dir`, in files of this name, and says how they are called.
    pub(crate) fn sign_operator(&self, dir: &Path, name: &str) -> Result<[PathBuf; 2], AuthorityError> {
        let mut operator = params(OPERATOR, name, LEAF_YEARS);
        operator.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let (certificate, key) = self.sign(&operator)?;
        let [certificate_file, key_file] = [format!("{name}.crt"), format!("{name}.key")];
        replace(dir, &key_file, &key, 0o600)?;
        replace(dir, &certificate_file, &certificate, 0o644)?;
        Ok([dir.join(certificate_file), dir.join(key_file)])
    }

    /// Makes the server's certificate anew, for the same key and the names that it has.
    pub(crate) fn renew_server(&self, dir: &Path) -> Result<PathBuf, AuthorityError> {
        let path = dir.join(files::SERVER);
        let old = read(&path)?;
        let der = CertificateDer::from_pem_slice(old.as_bytes())
            .map_err(|source| AuthorityError::Pem { path: path.clone(), source })?;
        let key =
            KeyPair::from_pem(&read(&dir.join(files::SERVER_KEY))?).map_err(certificate("read the server's key"))?;
        let mut server = params("scheduler", &common_name(&der), LEAF_YEARS);
        server.subject_alt_names = CertificateParams::new(names_of(&der))
            .map_err(certificate("take the names of the server certificate"))?
            .subject_alt_names;
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let signed = server.signed_by(&key, &self.issuer).map_err(certificate("sign the server's certificate"))?;
        replace(dir, files::SERVER, &format!("{}{}", signed.pem(), self.pem), 0o644)?;
        Ok(path)
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

/// CN of a certificate; empty where it has none.
fn common_name(der: &CertificateDer<'_>) -> String {
    let Ok((_, parsed)) = X509Certificate::from_der(der) else { return String::new() };
    let name = parsed.subject().iter_common_name().next().and_then(|value| value.as_str().ok());
    name.unwrap_or_default().to_owned()
}

/// The names and addresses that a certificate is good for.
fn names_of(der: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(der) else { return Vec::new() };
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return Vec::new() };
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
        },
        _ => None,
    };
    names.value.general_names.iter().filter_map(text).collect()
}

/// Writes a file in the place of another, all of it or nothing.
fn replace(dir: &Path, name: &str, text: &str, mode: u32) -> Result<(), AuthorityError> {
    let part = format!("{name}.new");
    // What a replacement that was cut off left.
    let _ = fs::remove_file(dir.join(&part));
    write(dir, &part, text, mode)?;
    let path = dir.join(name);
    fs::rename(dir.join(&part), &path).map_err(|source| AuthorityError::File { action: "replace", path, source })
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
    fn certificates_are_made_anew_for_the_same_authority_and_names() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        let names = ["cloud.example".to_owned(), "192.0.2.7".to_owned(), "::1".to_owned()];
        let authority = Authority::found(&home, &names).unwrap();
        let server = || CertificateDer::from_pem_slice(&fs::read(home.join(files::SERVER)).unwrap()).unwrap();
        let (before, key) = (server(), fs::read(home.join(files::SERVER_KEY)).unwrap());
        authority.renew_server(&home).unwrap();
        assert_ne!(server(), before);
        assert_eq!((names_of(&server()), common_name(&server())), (names.to_vec(), "cloud.example".to_owned()));
        assert_eq!(fs::read(home.join(files::SERVER_KEY)).unwrap(), key, "the key stays");
        let [certificate, key] = authority.sign_operator(&home, "alice").unwrap();
        let der = CertificateDer::from_pem_slice(&fs::read(certificate).unwrap()).unwrap();
        assert_eq!(crate::caller::Caller::of(Some(&der)), crate::caller::Caller::Operator);
        assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(authority.sign_operator(&home, "alice").is_ok(), "made anew as often as wanted");
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
        let signed = authority.sign_agent(&csr, host, 3600).unwrap();
        let der = CertificateDer::from_pem_slice(signed.pem.as_bytes()).unwrap();
        let caller = crate::caller::Caller::of(Some(&der));
        assert_eq!(caller, crate::caller::Caller::Agent { host, certificate: signed.digest });
        assert!(authority.sign_agent("nonsense", host, 3600).is_err());
    }
}
