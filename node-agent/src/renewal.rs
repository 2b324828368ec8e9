//! Renews this host's certificate over the link that it opens, long before it ends.
//!
//! The key stays, so that one file is replaced, at once or not at all; the scheduler takes the old certificate until the new one was shown, so that an
//! agent killed at any point goes on with either. A renewal that fails is tried again after a wait that doubles up to `RETRY_MAX`; machines and
//! flows have nothing to do with it. A certificate that has ended cannot be renewed: `doctor` says to join again.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;

use crate::driver::Failure;
use crate::identity;
use crate::link::{SchedulerClient, Wait};

/// The longest wait after a renewal that failed.
const RETRY_MAX: Duration = Duration::from_secs(3600);
/// How long to wait at most until the next look at the certificate: clocks are set, and files replaced by people.
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(3600);
/// It is renewed when this part of its time is left.
const LEFT_PART: u64 = 3;

/// From when to when a certificate is good, seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Its first second.
    pub begin: u64,
    /// Its last.
    pub end: u64,
}

impl Validity {
    /// Reads it off a certificate.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate.as_ref()).ok()?;
        let validity = parsed.validity();
        let second = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).ok();
        Some(Self { begin: second(validity.not_before)?, end: second(validity.not_after)? })
    }

    /// When it is to be renewed.
    #[must_use]
    pub const fn due(self) -> u64 {
        self.end.saturating_sub(self.end.saturating_sub(self.begin) / LEFT_PART)
    }
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Keeps the certificate below `state` good for as long as the agent runs.
pub async fn keep(client: SchedulerClient, state: PathBuf) {
    let mut wait = Wait::up_to(RETRY_MAX);
    loop {
        match when_due(&state) {
            Ok(Some(left)) => {
                tokio::time::sleep(left.min(LOOK_INTERVAL_MAX)).await;
                continue;
            }
            Ok(None) => {}
            Err(failure) => {
                complain(&failure);
                wait.pause().await;
                continue;
            }
        }
        match renew(&client, &state).await {
            Ok(()) => {
                tracing::info!("certificate renewed");
                wait = Wait::up_to(RETRY_MAX);
            }
            Err(failure) => {
                complain(&failure);
                wait.pause().await;
            }
        }
    }
}

fn complain(failure: &Failure) {
    let problem = failure.problem();
    tracing::warn!(problem = problem.message, remedy = problem.remedy, "certificate not renewed");
}

/// How long until the certificate is to be renewed; none when it is time.
fn when_due(state: &Path) -> Result<Option<Duration>, Failure> {
    let remedy = "join again with a new token";
    let what = "look at this host's certificate";
    let certificate = identity::certificate(state).map_err(|error| Failure::caused(what, remedy, error))?;
    let validity =
        Validity::of(&certificate).ok_or_else(|| Failure::new(format!("{what}: its end cannot be read"), remedy))?;
    Ok(validity.due().checked_sub(now()).filter(|left| *left > 0).map(Duration::from_secs))
}

async fn renew(client: &SchedulerClient, state: &Path) -> Result<(), Failure> {
    let what = "renew this host's certificate";
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        Failure::caused(what, "look at paths.state; if that does not help, join again with a new token", error)
    };
    let key = identity::key(state).map_err(|error| failed(error.into()))?;
    let request = rcgen::CertificateParams::default().serialize_request(&key);
    let csr = request.and_then(|request| request.pem()).map_err(|error| failed(error.into()))?;
    let certificate = client.renew(csr).await?;
    identity::replace_certificate(state, &certificate).map_err(|error| failed(error.into()))?;
    client.reload(state).map_err(|error| failed(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_due_when_a_third_of_its_time_is_left() {
        assert_eq!(Validity { begin: 1000, end: 1900 }.due(), 1600);
        assert_eq!(Validity { begin: 10, end: 5 }.due(), 5, "nonsense is due at its end");
    }
}
