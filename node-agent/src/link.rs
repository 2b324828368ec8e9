//! The link to the scheduler: specs in, reports out, images on demand, all dialled from here over HTTP/2 with mTLS.
//!
//! Losing the link changes nothing on the host: what was accepted stays in the ledger and in force, and the link comes back by itself after a
//! jittered wait that doubles up to `RETRY_MAX`.

use std::hash::{BuildHasher, Hasher};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use model::ImageId;
use model::agent::{
    ErrorBody, LONG_POLL_SECONDS, RENEW_PATH, REPORT_INTERVAL_SECONDS, REPORT_PATH, RenewRequest, RenewResponse,
    SPEC_BYTES_MAX, SPEC_PATH, image_data_path,
};
use model::observed::{Problem, Report};
use model::spec::{Generation, NodeSpec, wire};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};

use crate::driver::Failure;
use crate::identity::{self, Identity, IdentityError};
use crate::reconcile::Command;

/// The first wait after a failure.
const RETRY_MIN: Duration = Duration::from_millis(500);
/// The longest wait after a failure.
const RETRY_MAX: Duration = Duration::from_secs(15);
/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a report may take.
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an image may go without a byte.
const IMAGE_IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long to wait at least between two reports, so that a burst of changes is one.
const REPORT_GAP: Duration = Duration::from_millis(100);

/// A connection pool to the scheduler.
#[derive(Debug, Clone)]
pub struct SchedulerClient {
    /// Made anew when the certificate is: a connection shows the one that it was made with.
    http: Arc<RwLock<reqwest::Client>>,
    url: Arc<str>,
}

/// The bytes of an image as they come.
#[derive(Debug)]
pub struct ImageBody {
    response: reqwest::Response,
    url: Arc<str>,
}

impl ImageBody {
    /// The next bytes; none at the end.
    ///
    /// # Errors
    /// [`Failure`] when the connection breaks or stands still.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        match tokio::time::timeout(IMAGE_IDLE_TIMEOUT, self.response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk.map(|bytes| bytes.to_vec())),
            Ok(Err(error)) => Err(unreachable(&self.url, "fetch an image", error)),
            Err(_) => {
                let what = format!("fetch an image from {}: nothing came for {IMAGE_IDLE_TIMEOUT:?}", self.url);
                Err(Failure::new(what, "look at the management network and the scheduler"))
            }
        }
    }
}

impl SchedulerClient {
    /// A client for the scheduler that this host joined.
    ///
    /// # Errors
    /// [`IdentityError`] when key or certificates cannot be read.
    pub fn new(state: &Path, identity: &Identity) -> Result<Self, IdentityError> {
        let http = Arc::new(RwLock::new(client(state)?));
        Ok(Self { http, url: identity.scheduler.trim_end_matches('/').into() })
    }

    /// Shows the certificate that is there now with every further request.
    ///
    /// # Errors
    /// [`IdentityError`] when key or certificates cannot be read.
    pub fn reload(&self, state: &Path) -> Result<(), IdentityError> {
        let next = client(state)?;
        *self.http.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    fn http(&self) -> reqwest::Client {
        self.http.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has a certificate made for the key of a request (PEM); gives it in PEM.
    ///
    /// # Errors
    /// [`Failure`] when the scheduler does not answer or refuses.
    pub async fn renew(&self, csr: String) -> Result<String, Failure> {
        let attempt = "renew this host's certificate";
        let url = format!("{}{RENEW_PATH}", self.url);
        let sent = self.http().post(url).timeout(REPORT_TIMEOUT).json(&RenewRequest { csr }).send().await;
        let response = self.accepted(attempt, sent).await?;
        let answer: RenewResponse = response.json().await.map_err(|error| unreachable(&self.url, attempt, error))?;
        Ok(answer.certificate)
    }

    /// Asks for a spec newer than `after`; none when there is none within the poll.
    ///
    /// # Errors
    /// [`Failure`] when the scheduler does not answer, refuses, or sends no spec.
    pub async fn spec(&self, after: Generation) -> Result<Option<NodeSpec>, Failure> {
        let attempt = "ask for a spec";
        let url = format!("{}{SPEC_PATH}?after={after}", self.url);
        let sent = self.http().get(url).timeout(Duration::from_secs(LONG_POLL_SECONDS + 10)).send().await;
        let mut response = self.accepted(attempt, sent).await?;
        if response.status() == reqwest::StatusCode::NO_CONTENT {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(&self.url, attempt, error))? {
            if bytes.len() + chunk.len() > SPEC_BYTES_MAX {
                let what = format!("take the spec from {}: it is longer than {SPEC_BYTES_MAX} bytes", self.url);
                return Err(Failure::new(what, "report this: the scheduler should not send such a spec"));
            }
            bytes.extend_from_slice(&chunk);
        }
        wire::decode(&bytes).map(Some).map_err(|error| {
            let remedy = "are the scheduler's and the agent's versions right for each other?";
            Failure::caused(format!("take the spec from {}", self.url), remedy, error)
        })
    }

    /// Sends a report.
    ///
    /// # Errors
    /// [`Failure`] when the scheduler does not answer or refuses.
    pub async fn report(&self, report: &Report) -> Result<(), Failure> {
        let url = format!("{}{REPORT_PATH}", self.url);
        let sent = self.http().post(url).timeout(REPORT_TIMEOUT).json(report).send().await;
        self.accepted("send a report", sent).await.map(drop)
    }

    /// Begins to fetch an image.
    ///
    /// # Errors
    /// [`Failure`] when the scheduler does not answer or has no such image.
    pub async fn image(&self, id: ImageId) -> Result<ImageBody, Failure> {
        let url = format!("{}{}", self.url, image_data_path(id));
        let sent = self.http().get(url).send().await;
        let response = self.accepted("fetch an image", sent).await?;
        Ok(ImageBody { response, url: Arc::clone(&self.url) })
    }

    async fn accepted(
        &self,
        attempt: &str,
        sent: Result<reqwest::Response, reqwest::Error>,
    ) -> Result<reqwest::Response, Failure> {
        let response = sent.map_err(|error| unreachable(&self.url, attempt, error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let words = response.json::<ErrorBody>().await.map_or_else(|_| String::new(), |body| body.error.message);
        let remedy = if status == reqwest::StatusCode::UNAUTHORIZED || status == reqwest::StatusCode::FORBIDDEN {
            "join again with a new token: the scheduler does not know this host's certificate"
        } else {
            "look into the scheduler's log"
        };
        Err(Failure::new(format!("{attempt} at {}: refused with {status}: {words}", self.url), remedy))
    }
}

fn client(state: &Path) -> Result<reqwest::Client, IdentityError> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(identity::tls(state)?)
        .https_only(true)
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .http2_keep_alive_timeout(Duration::from_secs(10))
        .build()
        .map_err(|error| IdentityError::Damaged { path: identity::directory(state), source: Box::new(error) })
}

fn unreachable(url: &str, attempt: &str, error: reqwest::Error) -> Failure {
    let remedy = "machines and flows go on by the last spec; look at the management network and the scheduler";
    // The error names the URL again, query and all.
    Failure::caused(format!("{attempt} at {url}"), remedy, error.without_url())
}

/// How the link is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LinkStatus {
    /// Where the scheduler answers.
    pub scheduler: String,
    /// Whether the last exchange went well.
    pub connected: bool,
    /// Why not.
    pub problem: Option<Problem>,
}

/// Keeps the link for ever: takes specs in, sends reports out.
pub async fn keep(
    client: SchedulerClient,
    commands: mpsc::Sender<Command>,
    reports: watch::Receiver<Option<Arc<Report>>>,
    accepted: watch::Receiver<Generation>,
    status: watch::Sender<Option<LinkStatus>>,
) {
    let specs = take_specs(&client, &commands, accepted, &status);
    let sends = send_reports(&client, reports, &status);
    tokio::join!(specs, sends);
}

async fn take_specs(
    client: &SchedulerClient,
    commands: &mpsc::Sender<Command>,
    accepted: watch::Receiver<Generation>,
    status: &watch::Sender<Option<LinkStatus>>,
) {
    let mut wait = Wait::new();
    loop {
        let after = *accepted.borrow();
        let outcome = match client.spec(after).await {
            Ok(None) => Ok(()),
            Ok(Some(spec)) => offer(commands, spec).await,
            Err(failure) => Err(failure),
        };
        note(client, status, &outcome);
        match outcome {
            Ok(()) => wait.reset(),
            Err(_) => wait.pause().await,
        }
    }
}

/// Hands a spec to the loop and waits until it is in the ledger or refused.
async fn offer(commands: &mpsc::Sender<Command>, spec: NodeSpec) -> Result<(), Failure> {
    let (reply, answer) = oneshot::channel();
    let gone = || Failure::new("take in a spec: the agent is ending", "");
    commands.send(Command::Accept { spec: Box::new(spec), reply }).await.map_err(|_| gone())?;
    match answer.await.map_err(|_| gone())? {
        Ok(_) => Ok(()),
        Err(refusal) => {
            let remedy = refusal.remedy();
            Err(Failure::caused("take in a spec from the scheduler", remedy, refusal))
        }
    }
}

async fn send_reports(
    client: &SchedulerClient,
    mut reports: watch::Receiver<Option<Arc<Report>>>,
    status: &watch::Sender<Option<LinkStatus>>,
) {
    let mut wait = Wait::new();
    loop {
        let report = reports.borrow_and_update().clone();
        if let Some(report) = report {
            let outcome = client.report(&report).await;
            note(client, status, &outcome);
            match outcome {
                Ok(()) => wait.reset(),
                Err(_) => wait.pause().await,
            }
        }
        tokio::time::sleep(REPORT_GAP).await;
        let heartbeat = Duration::from_secs(REPORT_INTERVAL_SECONDS);
        if let Ok(Err(_)) = tokio::time::timeout(heartbeat, reports.changed()).await {
            return;
        }
    }
}

fn note(client: &SchedulerClient, status: &watch::Sender<Option<LinkStatus>>, outcome: &Result<(), Failure>) {
    let problem = outcome.as_ref().err().map(Failure::problem);
    let next = LinkStatus { scheduler: client.url.to_string(), connected: problem.is_none(), problem };
    status.send_if_modified(|now| {
        if now.as_ref() == Some(&next) {
            return false;
        }
        match &next.problem {
            None => tracing::info!(scheduler = next.scheduler, "scheduler link is up"),
            Some(problem) => {
                tracing::warn!(scheduler = next.scheduler, problem = problem.message, "scheduler link is down");
            }
        }
        *now = Some(next);
        true
    });
}

/// A wait that doubles, with jitter.
#[derive(Debug)]
pub struct Wait {
    next: Duration,
    max: Duration,
}

impl Wait {
    /// A wait that begins short.
    #[must_use]
    pub const fn new() -> Self {
        Self::up_to(RETRY_MAX)
    }

    /// A wait that begins short and is `max` at most.
    #[must_use]
    pub const fn up_to(max: Duration) -> Self {
        Self { next: RETRY_MIN, max }
    }

    const fn reset(&mut self) {
        self.next = RETRY_MIN;
    }

    /// Waits.
    pub async fn pause(&mut self) {
        tokio::time::sleep(jitter(self.next, random())).await;
        self.next = (self.next * 2).min(self.max);
    }
}

impl Default for Wait {
    fn default() -> Self {
        Self::new()
    }
}

/// Between half of `wait` and all of it.
fn jitter(wait: Duration, random: u64) -> Duration {
    let half = wait / 2;
    let share = u32::try_from(random % 1024).unwrap_or_default();
    half + half * share / 1024
}

/// Good enough for jitter: each `RandomState` has keys of its own.
fn random() -> u64 {
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_between_half_and_all() {
        for random in [0, 1, 511, 1023, 1024, u64::MAX] {
            let wait = jitter(Duration::from_secs(4), random);
            assert!((Duration::from_secs(2)..=Duration::from_secs(4)).contains(&wait), "{wait:?}");
        }
    }
}
