//! The protocol between an agent and its scheduler: routes, bodies and limits.
//!
//! The agent dials out over TLS and speaks HTTP/2 (HTTP/1.1 is answered too). Only the join route takes a caller without a client certificate;
//! every other route takes the certificate that joining gave, and the identity in it is the only one that counts. Bodies are JSON with unknown
//! fields refused. A refusal is a 4xx or 5xx with an [`ErrorBody`].
//!
//! ```text
//! POST /agent/v1/join                  JoinRequest -> 200 JoinResponse | 400 | 403 token unknown, used or expired | 409 name taken
//! GET  /agent/v1/spec?after=G          200 a spec newer than G (`spec::wire`) | 204 none within LONG_POLL_SECONDS: ask again
//! POST /agent/v1/report                `observed::Report` -> 204
//! POST /agent/v1/renew                 RenewRequest -> 200 RenewResponse | 400
//! GET  /agent/v1/images/{id}/data      200 the bytes of an image, with Content-Length | 404
//! ```
//!
//! First contact: the agent knows no CA yet, but its [`JoinToken`] names the SHA-256 of the CA certificate (DER). The server sends that
//! certificate at the end of its chain, so the agent accepts a handshake when a certificate of the chain has that digest and the server's own
//! certificate is good under it. From then on the agent trusts the CA in [`JoinResponse::ca`], whose digest it holds against the token.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::{HostId, ImageId};
use crate::image::Sha256;
use crate::spec::Generation;

/// Route of the first contact.
pub const JOIN_PATH: &str = "/agent/v1/join";
/// Route of the long poll for a spec.
pub const SPEC_PATH: &str = "/agent/v1/spec";
/// Route of renewing a certificate.
pub const RENEW_PATH: &str = "/agent/v1/renew";
/// Route of reports.
pub const REPORT_PATH: &str = "/agent/v1/report";

/// How long the scheduler holds a poll for a spec that is not there yet. A client's time limit must be longer.
pub const LONG_POLL_SECONDS: u64 = 30;
/// How often an agent reports at least; it may report sooner when something changed.
pub const REPORT_INTERVAL_SECONDS: u64 = 5;
/// A host that has not reported for this long counts as down.
pub const HOST_DOWN_AFTER_SECONDS: u64 = 20;
/// The longest spec that a scheduler sends and an agent reads.
pub const SPEC_BYTES_MAX: usize = 64 << 20;
/// The longest report that an agent sends and a scheduler reads.
pub const REPORT_BYTES_MAX: usize = 8 << 20;
/// The longest join request.
pub const JOIN_BYTES_MAX: usize = 16 << 10;

/// The route of an image's bytes.
#[must_use]
pub fn image_data_path(id: ImageId) -> String {
    format!("/agent/v1/images/{id}/data")
}

/// A secret that lets one host join once, with the digest of the CA that the host is to trust.
///
/// Its text is `basalt1.<digest of the CA>.<secret>`, both as 64 hexadecimal digits. `Debug` hides the secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JoinToken {
    ca: Sha256,
    secret: Sha256,
}

/// Text that is no join token. Holds nothing of the text: it may be nearly a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "parse a join token: want basalt1.<64 hexadecimal digits>.<64 hexadecimal digits>, as `scheduler token` prints it"
)]
pub struct JoinTokenError;

impl JoinToken {
    /// Puts a token together from the digest of the CA certificate (DER) and 32 secret bytes.
    #[must_use]
    pub const fn new(ca: Sha256, secret: [u8; 32]) -> Self {
        Self { ca, secret: Sha256::new(secret) }
    }

    /// The SHA-256 of the CA certificate (DER) that the joining host is to trust.
    #[must_use]
    pub const fn ca(&self) -> Sha256 {
        self.ca
    }

    /// The secret bytes: to be hashed and compared, never shown.
    #[must_use]
    pub const fn secret(&self) -> [u8; 32] {
        self.secret.bytes()
    }

    /// The whole token as text: a secret.
    #[must_use]
    pub fn reveal(&self) -> String {
        format!("basalt1.{}.{}", self.ca, self.secret)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("ca", &self.ca).field("secret", &"hidden").finish()
    }
}

impl FromStr for JoinToken {
    type Err = JoinTokenError;

    fn from_str(text: &str) -> Result<Self, JoinTokenError> {
        let mut parts = text.trim().split('.');
        let (Some("basalt1"), Some(ca), Some(secret), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(JoinTokenError);
        };
        Ok(Self { ca: ca.parse().map_err(|_| JoinTokenError)?, secret: secret.parse().map_err(|_| JoinTokenError)? })
    }
}

impl TryFrom<String> for JoinToken {
    type Error = JoinTokenError;

    fn try_from(text: String) -> Result<Self, JoinTokenError> {
        text.parse()
    }
}

impl From<JoinToken> for String {
    fn from(token: JoinToken) -> Self {
        token.reveal()
    }
}

/// What a host says to become part of the cloud.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// The secret that it was given.
    pub token: JoinToken,
    /// Its name: a DNS label, the one that the token was made for.
    pub name: String,
    /// Its tunnel endpoint on the underlay.
    pub tunnel: Ipv4Addr,
    /// A certificate signing request in PEM. Only its public key counts: the scheduler decides on the names.
    pub csr: String,
    /// The agent's version.
    pub version: String,
}

/// What makes a host part of the cloud.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinResponse {
    /// Its identity from now on. A host that joins again under its name keeps it.
    pub host: HostId,
    /// Its client certificate in PEM, for the key of the request. Subject: O=agent, CN=host id.
    pub certificate: String,
    /// The CA certificate in PEM.
    pub ca: String,
}

/// What a host says to have a new certificate before its old one ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// A certificate signing request in PEM, as in [`JoinRequest`].
    pub csr: String,
}

/// A host's next certificate. The old one is good until the new one has been shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewResponse {
    /// The certificate in PEM, for the key of the request. Subject as before.
    pub certificate: String,
}

/// The query of the long poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpecQuery {
    /// The newest generation that the agent holds; 0 when it holds none.
    pub after: Generation,
}

/// A refusal: the body of every answer of 400 and up, on all routes of the scheduler.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorBody {
    /// What was refused and why.
    pub error: ErrorDetail,
}

/// What was refused and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorDetail {
    /// A word for programs: it stays the same when the message is bettered.
    pub code: String,
    /// A sentence for people.
    pub message: String,
    /// The field of the request that is at fault, as a dotted path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};

    proptest! {
        #[test]
        fn a_token_parses_from_its_own_text(ca in any::<[u8; 32]>(), secret in any::<[u8; 32]>()) {
            let token = JoinToken::new(Sha256::new(ca), secret);
            assert_eq!(token.reveal().parse(), Ok(token));
        }

        #[test]
        fn no_text_makes_the_token_parser_panic(text in "\\PC{0,160}") {
            let _ = text.parse::<JoinToken>();
        }
    }

    #[test]
    fn a_token_hides_its_secret_from_debug_output() {
        let token = JoinToken::new(Sha256::new([0x11; 32]), [0x22; 32]);
        let text = format!("{token:?}");
        assert!(text.contains("1111") && !text.contains("2222"), "{text}");
    }

    #[test]
    fn a_refusal_without_a_field_leaves_it_out() {
        let detail = ErrorDetail { code: "not_found".to_owned(), message: "no such vm".to_owned(), field: None };
        let text = serde_json::to_string(&ErrorBody { error: detail }).unwrap();
        assert_eq!(text, r#"{"error":{"code":"not_found","message":"no such vm"}}"#);
    }
}
