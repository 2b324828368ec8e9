//! Who is calling, by the certificate that the TLS handshake has already found to be ours.

use model::HostId;
use model::image::Sha256;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::authority::{AGENT, OPERATOR, digest};
use crate::intent::Intent;
use crate::refusal::Refusal;

/// Who a connection belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Caller {
    /// It showed no certificate.
    Anonymous,
    /// An operator.
    Operator,
    /// An agent, with the digest of its certificate.
    Agent { host: HostId, certificate: Sha256 },
    /// A certificate of ours that says neither.
    Other,
}

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Anyone, also without a certificate.
    Anyone,
    /// Operators.
    Operator,
    /// The agents of hosts.
    Agent,
}

impl Caller {
    /// Reads the caller from the certificate that it showed.
    pub(crate) fn of(certificate: Option<&CertificateDer<'_>>) -> Self {
        let Some(der) = certificate else { return Self::Anonymous };
        let Ok((_, parsed)) = X509Certificate::from_der(der) else { return Self::Other };
        let subject = parsed.subject();
        let role = subject.iter_organization().next().and_then(|value| value.as_str().ok());
        let name = subject.iter_common_name().next().and_then(|value| value.as_str().ok());
        match (role, name.map(str::parse)) {
            (Some(OPERATOR), Some(_)) => Self::Operator,
            (Some(AGENT), Some(Ok(host))) => Self::Agent { host, certificate: digest(der) },
            _ => Self::Other,
        }
    }

    /// The host and its next certificate, if this is the first time that it shows that one.
    pub(crate) fn first_shown(&self, intent: &Intent) -> Option<(HostId, Sha256)> {
        let Self::Agent { host, certificate } = self else { return None };
        let renewed = intent.hosts.get(host)?.renewed;
        (renewed == Some(*certificate)).then_some((*host, *certificate))
    }

    /// Checks that this caller may use a route of `role`. A host that was forgotten, or joined again since, may not.
    pub(crate) fn check(&self, role: Role, intent: &Intent) -> Result<(), Refusal> {
        let refuse = |problem: &str| Err(Refusal::Forbidden(problem.to_owned()));
        match (role, self) {
            (Role::Anyone, _) | (Role::Operator, Self::Operator) => Ok(()),
            (Role::Agent, Self::Agent { host, certificate }) => match intent.hosts.get(host) {
                None => refuse("this host is not known: it was deleted; join it again with a new token"),
                Some(known) if known.certificate != *certificate && known.renewed != Some(*certificate) => {
                    refuse("this certificate was replaced: the host renewed it, or joined again")
                }
                Some(_) => Ok(()),
            },
            (Role::Operator, Self::Anonymous) => refuse("this route takes an operator's certificate"),
            (Role::Operator, _) => refuse("this certificate is no operator's"),
            (Role::Agent, Self::Anonymous) => refuse("this route takes an agent's certificate"),
            (Role::Agent, _) => refuse("this certificate is no agent's"),
        }
    }
}
