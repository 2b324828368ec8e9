//! Keeps the flows of a bridge as they should be.
//!
//! ```text
//!            connected            read, diff, apply, read again
//!   Away ───────────────> Catching up ───────────────────────────> Settled ──┐ new flows wanted: diff, apply
//!    ^                        │ refused: again after a pause          │  ^───┘ audit due: read, diff, apply
//!    └────────────────────────┴───────── connection lost ─────────────┘
//! ```
//!
//! One task owns the connection. On each connection it reads what is installed, because a switch daemon that was
//! restarted has nothing left, and an agent that was restarted finds all it had: the difference decides, and traffic
//! that is right goes on. While the connection holds, what is wanted is held against what was installed last at the places
//! that were touched since, so one port costs one port; an audit reads everything again now and then, and finds what others
//! did. Connections that are translated in another way than before are forgotten. After a round that began with reading, the
//! counts of flows, groups and meters must be right. Flows and groups that are not ours are reported, and left alone unless the
//! settings say otherwise.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ovsdb::backoff::Backoff;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::channel::{Channel, ChannelError, Connector, Punted, Reply, Responder};
use openflow::wire::CtFlush;

use crate::diff::{Changes, Foreign, Installed, between, diff};
use crate::flow_set::{FlowSet, Touched};

mod apply;
mod stale;
mod status;

use apply::{apply, verify};
use stale::Stale;
pub use status::{Applied, DriverStatus};

/// How often everything is read again while nothing else happens.
const AUDIT_INTERVAL: Duration = Duration::from_secs(60);

/// How often routers are advertised though nobody asked: machines forget one after 18 hours (RFC 4861 §6.2.1 allows up to this pause).
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(1800);

/// Pauses between attempts to connect. An attempt on a unix socket costs nothing, and each pause is time without flows after the switch's return.
const RECONNECT_PAUSE_MIN: Duration = Duration::from_millis(20);
const RECONNECT_PAUSE_MAX: Duration = Duration::from_millis(100);

/// Pauses between attempts to apply what the switch refused.
const REFUSED_PAUSE_MIN: Duration = Duration::from_secs(1);
const REFUSED_PAUSE_MAX: Duration = Duration::from_secs(60);

/// The most requests to read that may wait.
const REQUESTS_MAX: usize = 16;

/// How many foreign flows are named in the status.
const FOREIGN_NAMED_MAX: usize = 16;

/// Why the flows are not as they should be.
#[derive(Debug, Error)]
pub enum DriverError {
    /// The flows were not in place in time.
    #[error("install flows (wanted {wanted}, installed {applied}) in {waited:?}: {problem}")]
    Late {
        /// The version waited for.
        wanted: u64,
        /// The version installed.
        applied: u64,
        /// How long was waited.
        waited: Duration,
        /// What the last attempt said.
        problem: String,
    },
    /// There is no connection to read from.
    #[error("read installed flows: not connected to the switch: {0}")]
    NotConnected(String),
    /// Reading failed.
    #[error("read installed flows")]
    Read(#[source] ChannelError),
    /// The driver's task has ended.
    #[error("the switch driver has stopped")]
    Stopped,
}

/// How long a problem may be in the status.
const PROBLEM_CHARS_MAX: usize = 1000;

/// How the driver treats what it finds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DriverSettings {
    /// Whether flows and groups on the bridge that are not ours are removed; otherwise they are reported only.
    pub remove_foreign: bool,
}

#[derive(Debug, Default)]
struct Wanted {
    version: u64,
    flows: Option<FlowSet>,
    /// Where the flows may differ from those that the worker took last; none is everywhere. Changed with the flows, taken with them.
    touched: Mutex<Option<Touched>>,
}

impl Wanted {
    fn touched(&self) -> MutexGuard<'_, Option<Touched>> {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the switch of this connection has, as far as we know.
#[derive(Debug, Clone)]
struct Known {
    flows: FlowSet,
    foreign: Foreign,
}

/// What is asked of the task.
enum Request {
    /// Reads what is installed.
    Read(oneshot::Sender<Result<Installed, DriverError>>),
    /// Holds flows against what is installed, as far as that is known, without reading again.
    Compare(Arc<FlowSet>, oneshot::Sender<Result<Changes, DriverError>>),
    /// Makes the switch forget connections.
    Forget(Vec<CtFlush>, oneshot::Sender<Result<(), DriverError>>),
}

impl Request {
    fn refuse(self, error: DriverError) {
        // Whoever gave up waiting does not want to know.
        match self {
            Self::Read(answer) => drop(answer.send(Err(error))),
            Self::Compare(_, answer) => drop(answer.send(Err(error))),
            Self::Forget(_, answer) => drop(answer.send(Err(error))),
        }
    }
}

/// Keeps the flows of a bridge as they should be. Dropping it ends the work and leaves the flows.
#[derive(Debug)]
pub struct Driver {
    wanted: watch::Sender<Wanted>,
    status: watch::Receiver<DriverStatus>,
    requests: mpsc::Sender<Request>,
    task: JoinHandle<()>,
}

impl Driver {
    /// Starts to connect; must be called inside a tokio runtime. Nothing is changed before the first [`Driver::set`].
    #[must_use]
    pub fn start(connector: impl Connector, responder: impl Responder) -> Self {
        Self::start_with(DriverSettings::default(), connector, responder)
    }

    /// The same, with settings.
    #[must_use]
    pub fn start_with(settings: DriverSettings, connector: impl Connector, responder: impl Responder) -> Self {
        let (wanted, wanted_receiver) = watch::channel(Wanted::default());
        let (status_sender, status) = watch::channel(DriverStatus::default());
        let (requests, requests_receiver) = mpsc::channel(REQUESTS_MAX);
        let worker = Worker {
            wanted: wanted_receiver,
            requests: requests_receiver,
            status: status_sender,
            responder,
            settings,
            known: None,
            has_installed: false,
            stale: Stale::default(),
            refused: Backoff::new(REFUSED_PAUSE_MIN, REFUSED_PAUSE_MAX),
        };
        let task = tokio::spawn(worker.run(connector));
        Self { wanted, status, requests, task }
    }

    /// Wants these flows from now on, and returns the version by which [`Driver::applied`] knows them.
    pub fn set(&self, flows: Arc<FlowSet>) -> u64 {
        self.want((*flows).clone(), None)
    }

    /// The same, for flows that differ from those wanted before at the touched places only: nothing else is looked at.
    pub fn update(&self, flows: FlowSet, touched: Touched) -> u64 {
        self.want(flows, Some(touched))
    }

    fn want(&self, flows: FlowSet, touched: Option<Touched>) -> u64 {
        let mut version = 0;
        self.wanted.send_modify(|wanted| {
            wanted.version += 1;
            wanted.flows = Some(flows);
            let mut before = wanted.touched();
            match (before.as_mut(), touched) {
                (Some(before), Some(touched)) => before.extend(touched),
                (_, None) | (None, _) => *before = None,
            }
            drop(before);
            version = wanted.version;
        });
        version
    }

    /// Waits until this version, or a later one, is installed.
    ///
    /// # Errors
    /// When `limit` passes first; the message has the last problem.
    pub async fn applied(&self, version: u64, limit: Duration) -> Result<Applied, DriverError> {
        let mut status = self.status.clone();
        match timeout(limit, status.wait_for(|status| status.applied >= version)).await {
            Ok(Ok(status)) => Ok(status.last.clone().unwrap_or_default()),
            Ok(Err(_)) => Err(DriverError::Stopped),
            Err(_) => {
                let status = self.status.borrow();
                let problem = status.problem.clone().unwrap_or_else(|| "the switch has not answered yet".to_owned());
                Err(DriverError::Late { wanted: version, applied: status.applied, waited: limit, problem })
            }
        }
    }

    /// Follows how the driver is.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<DriverStatus> {
        self.status.clone()
    }

    /// Reads what is installed now.
    ///
    /// # Errors
    /// When there is no connection or the switch does not answer.
    pub async fn installed(&self) -> Result<Installed, DriverError> {
        let (sender, receiver) = oneshot::channel();
        self.ask(Request::Read(sender)).await?;
        receiver.await.unwrap_or(Err(DriverError::Stopped))
    }

    /// What would have to change for `flows` to be installed. Reads only when what is installed is not known, so it is
    /// cheap enough to ask often; what others did is seen after the next audit.
    ///
    /// # Errors
    /// When there is no connection or the switch does not answer.
    pub async fn pending(&self, flows: Arc<FlowSet>) -> Result<Changes, DriverError> {
        let (sender, receiver) = oneshot::channel();
        self.ask(Request::Compare(flows, sender)).await?;
        receiver.await.unwrap_or(Err(DriverError::Stopped))
    }

    /// Makes the switch forget connections.
    ///
    /// # Errors
    /// When there is no connection or the switch does not answer. What it refuses to forget is noted in the log.
    pub async fn forget(&self, which: Vec<CtFlush>) -> Result<(), DriverError> {
        let (sender, receiver) = oneshot::channel();
        self.ask(Request::Forget(which, sender)).await?;
        receiver.await.unwrap_or(Err(DriverError::Stopped))
    }

    async fn ask(&self, request: Request) -> Result<(), DriverError> {
        self.requests.send(request).await.map_err(|_| DriverError::Stopped)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the task waits for next.
enum Event {
    Wanted,
    Stopped,
    Request(Request),
    Punted(Result<Punted, ChannelError>),
    Later(Reply),
    Due,
    Stale,
    Announce,
}

struct Worker<R> {
    wanted: watch::Receiver<Wanted>,
    requests: mpsc::Receiver<Request>,
    status: watch::Sender<DriverStatus>,
    responder: R,
    settings: DriverSettings,
    /// None until it was read.
    known: Option<Known>,
    /// Whether all of ours was in place once.
    has_installed: bool,
    stale: Stale,
    refused: Backoff,
}

impl<R: Responder> Worker<R> {
    async fn run(mut self, mut connector: impl Connector) {
        let mut backoff = Backoff::new(RECONNECT_PAUSE_MIN, RECONNECT_PAUSE_MAX);
        loop {
            let error = match connector.connect().await {
                Ok(channel) => {
                    backoff.reset();
                    info!("switch connected");
                    self.status.send_modify(|status| {
                        status.connected = true;
                        status.connections += 1;
                    });
                    match self.serve(channel).await {
                        Some(error) => error,
                        None => return,
                    }
                }
                Err(error) => error,
            };
            self.lost(&error);
            if !self.pause(backoff.next_pause()).await {
                return;
            }
        }
    }

    /// Works on one connection until it is lost; nothing is returned when the driver is dropped.
    async fn serve(&mut self, mut channel: impl Channel) -> Option<ChannelError> {
        self.known = None;
        let mut due = Instant::now();
        let mut announce = due + ANNOUNCE_INTERVAL;
        loop {
            let event = tokio::select! {
                changed = self.wanted.changed() => if changed.is_ok() { Event::Wanted } else { Event::Stopped },
                Some(request) = self.requests.recv() => Event::Request(request),
                punted = channel.punted() => Event::Punted(punted),
                reply = self.responder.later() => Event::Later(reply),
                () = sleep_until(due) => Event::Due,
                () = stale::reached(self.stale.due()) => Event::Stale,
                () = sleep_until(announce) => Event::Announce,
            };
            let outcome = match event {
                Event::Stopped => return None,
                Event::Request(request) => self.answer(&mut channel, request).await,
                Event::Punted(Ok(packet)) => self.respond(&mut channel, &packet).await,
                Event::Punted(Err(error)) => Err(error),
                Event::Later(reply) => channel.send(reply).await,
                Event::Announce => {
                    announce = Instant::now() + ANNOUNCE_INTERVAL;
                    self.announce(&mut channel).await
                }
                Event::Wanted => self.settle(&mut channel, &mut due).await,
                Event::Stale => self.stale.forget(&mut channel).await,
                Event::Due => {
                    self.known = None;
                    self.settle(&mut channel, &mut due).await
                }
            };
            if let Err(error) = outcome {
                return Some(error);
            }
        }
    }

    async fn announce(&mut self, channel: &mut impl Channel) -> Result<(), ChannelError> {
        for reply in self.responder.announce() {
            channel.send(reply).await?;
        }
        Ok(())
    }

    /// Brings the switch to what is wanted. A refusal is noted and tried again later; only a lost connection is an error.
    async fn settle(&mut self, channel: &mut impl Channel, due: &mut Instant) -> Result<(), ChannelError> {
        let (version, flows, touched) = {
            let wanted = self.wanted.borrow_and_update();
            let touched = wanted.touched().replace(Touched::default());
            (wanted.version, wanted.flows.clone(), touched)
        };
        let Some(flows) = flows else {
            *due = Instant::now() + AUDIT_INTERVAL;
            return Ok(());
        };
        let start = Instant::now();
        match self.reconcile(channel, &flows, touched).await {
            Ok(mut applied) => {
                applied.took = start.elapsed();
                self.refused.reset();
                *due = Instant::now() + AUDIT_INTERVAL;
                self.settled(version, applied);
                Ok(())
            }
            Err(error @ (ChannelError::Lost { .. } | ChannelError::Connect { .. })) => Err(error),
            Err(error @ ChannelError::Refused { .. }) => {
                // What the switch has now is not known for sure.
                self.known = None;
                *due = Instant::now() + self.refused.next_pause();
                let problem = chain(&error);
                warn!(version, problem, "flows refused");
                self.status.send_modify(|status| {
                    status.wanted = version;
                    status.problem = Some(problem);
                });
                Ok(())
            }
        }
    }

    /// One round: from what is known, or from what is read.
    async fn reconcile(
        &mut self,
        channel: &mut impl Channel,
        flows: &FlowSet,
        touched: Option<Touched>,
    ) -> Result<Applied, ChannelError> {
        // Until all is done it is not known what the switch has.
        match self.known.take() {
            Some(known) => {
                let touched = touched.unwrap_or_else(|| known.flows.differences(flows));
                let changes = between(&known.flows, flows, &touched);
                self.stale.add(&changes);
                let applied = apply(channel, changes).await?;
                self.stale.forget(channel).await?;
                self.known = Some(Known { flows: flows.clone(), foreign: known.foreign });
                Ok(applied)
            }
            None => self.reconcile_all(channel, flows).await,
        }
    }

    async fn reconcile_all(&mut self, channel: &mut impl Channel, flows: &FlowSet) -> Result<Applied, ChannelError> {
        let mut changes = diff(flows, &channel.read().await?);
        let foreign = if self.settings.remove_foreign {
            let removed = changes.remove_foreign();
            if !removed.is_empty() {
                info!(flows = removed.flows.len(), groups = removed.groups.len(), "what is not ours is removed");
            }
            Foreign::default()
        } else {
            std::mem::take(&mut changes.foreign)
        };
        let is_changed = !changes.is_empty();
        self.stale.add(&changes);
        let applied = apply(channel, changes).await?;
        self.stale.forget(channel).await?;
        if is_changed {
            verify(channel, flows, &foreign).await?;
        }
        self.known = Some(Known { flows: flows.clone(), foreign });
        Ok(applied)
    }

    fn settled(&mut self, version: u64, applied: Applied) {
        let Some(known) = &self.known else { return };
        let changed = applied.messages > 0;
        if changed {
            info!(
                version,
                added = applied.added_flows,
                replaced = applied.replaced_flows,
                deleted = applied.deleted_flows,
                unchanged = applied.unchanged_flows,
                took_ms = u64::try_from(applied.took.as_millis()).unwrap_or(u64::MAX),
                "flows applied"
            );
        }
        let had_installed = std::mem::replace(&mut self.has_installed, true);
        self.status.send_modify(|status| {
            let same_version = status.applied == version;
            if had_installed && same_version && changed {
                status.repairs += 1;
            }
            status.wanted = version;
            status.applied = version;
            status.settled = status.connections;
            status.flows = known.flows.flows().len();
            status.groups = known.flows.groups().len();
            status.foreign_count = known.foreign.len();
            status.foreign = known.foreign.flows.iter().take(FOREIGN_NAMED_MAX).map(ToString::to_string).collect();
            status.problem = None;
            // A round that found all in place says nothing new of the last change.
            if changed || status.last.is_none() || !same_version {
                status.last = Some(applied);
            }
        });
    }

    async fn answer(&mut self, channel: &mut impl Channel, request: Request) -> Result<(), ChannelError> {
        if let (Request::Compare(flows, _), Some(known)) = (&request, &self.known) {
            let mut changes = between(&known.flows, flows, &known.flows.differences(flows));
            changes.foreign = known.foreign.clone();
            if let Request::Compare(_, answer) = request {
                // Whoever gave up waiting does not want to know.
                let _ = answer.send(Ok(changes));
            }
            return Ok(());
        }
        if let Request::Forget(which, answer) = request {
            for which in which {
                match channel.forget_connections(which).await {
                    Err(error @ ChannelError::Refused { .. }) => {
                        warn!(?which, problem = chain(&error), "connections not forgotten");
                    }
                    done => done?,
                }
            }
            // Whoever gave up waiting does not want to know.
            let _ = answer.send(Ok(()));
            return Ok(());
        }
        match channel.read().await {
            Ok(installed) => {
                match request {
                    Request::Forget(..) => {}
                    Request::Read(answer) => drop(answer.send(Ok(installed))),
                    Request::Compare(flows, answer) => drop(answer.send(Ok(diff(&flows, &installed)))),
                }
                Ok(())
            }
            Err(error @ ChannelError::Refused { .. }) => {
                request.refuse(DriverError::Read(error));
                Ok(())
            }
            Err(error) => {
                request.refuse(DriverError::NotConnected(chain(&error)));
                Err(error)
            }
        }
    }

    async fn respond(&mut self, channel: &mut impl Channel, packet: &Punted) -> Result<(), ChannelError> {
        let Some(reply) = self.responder.respond(packet) else { return Ok(()) };
        match channel.send(reply).await {
            Err(error @ ChannelError::Refused { .. }) => {
                debug!(problem = chain(&error), "packet-out refused");
                Ok(())
            }
            other => other,
        }
    }

    fn lost(&mut self, error: &ChannelError) {
        self.known = None;
        let problem = chain(error);
        let wanted = self.wanted.borrow().version;
        self.status.send_if_modified(|status| {
            if std::mem::replace(&mut status.connected, false) {
                warn!(problem, "switch connection lost");
            }
            let changed = status.problem.as_deref() != Some(&problem) || status.wanted != wanted;
            status.wanted = wanted;
            status.problem = Some(problem);
            changed
        });
    }

    /// Waits before the next attempt, and answers requests meanwhile; false when the driver was dropped.
    async fn pause(&mut self, pause: Duration) -> bool {
        let end = Instant::now() + pause;
        loop {
            tokio::select! {
                () = sleep_until(end) => return true,
                request = self.requests.recv() => {
                    let Some(request) = request else { return false };
                    let problem = self.status.borrow().problem.clone().unwrap_or_default();
                    request.refuse(DriverError::NotConnected(problem));
                }
            }
        }
    }
}

/// The error with all its causes, cut short: a refused group may be as long as its buckets.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    let chars = text.chars().count();
    if chars <= PROBLEM_CHARS_MAX {
        return text;
    }
    // What was being done stands at the beginning, the cause at the end.
    let half = PROBLEM_CHARS_MAX / 2;
    let (head, tail) = (text.chars().take(half), text.chars().skip(chars - half));
    head.chain(" … ".chars()).chain(tail).collect()
}

#[cfg(test)]
mod tests;
