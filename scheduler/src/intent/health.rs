//! Health monitors of listeners, and the verdicts that hosts find by them.
//!
//! Owns the requests that set and remove a monitor, and the one bit of a member that a verdict changes: it is kept with the member, so that a scheduler that
//! restarts gives out what was known last. Never checks anybody. Invariant: nobody is in error whom nobody checks.

use std::collections::BTreeSet;
use std::sync::Arc;

use model::BalancerId;
use model::balancer::monitor::{Check, Monitor, MonitorError, TIMEOUT_MAX};
use model::balancer::{MemberHealth, MemberRef};
use serde::Deserialize;
use utoipa::ToSchema;

use super::balancer::place;
use super::{Intent, find};
use crate::refusal::Refusal;

/// A health monitor, in the place of any that there is.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewHealthMonitor {
    /// What members are asked: TCP, HTTP, PING, or for a listener of udp UDP-CONNECT.
    #[serde(rename = "type")]
    #[schema(example = "HTTP")]
    kind: String,
    /// From one check to the next, in seconds: 1 to 3600; 5 unless said.
    delay: Option<u16>,
    /// How long an answer may take, in seconds, 1 to the delay, 60 at most; 3, or the delay if that is less, unless said.
    timeout: Option<u16>,
    /// Checks in a row that must go well before a member in error is online: 1 to 10; 3 unless said.
    max_retries: Option<u8>,
    /// Checks in a row that must fail before a member is in error: 1 to 10; 3 unless said.
    max_retries_down: Option<u8>,
    /// GET or HEAD, for HTTP; GET unless said.
    http_method: Option<String>,
    /// What is requested, for HTTP; / unless said.
    url_path: Option<String>,
    /// The codes of an answer that is well, for HTTP, as 200, 200,202 or 200-299; 200 unless said.
    expected_codes: Option<String>,
    /// Whether members are checked; true unless said. Where not, all are taken for online.
    admin_state_up: Option<bool>,
}

impl NewHealthMonitor {
    fn checked(&self) -> Result<Monitor, Refusal> {
        let refuse = |field: &'static str| move |error: MonitorError| Refusal::invalid(field, error.to_string());
        let mut check: Check = self.kind.parse().map_err(refuse("type"))?;
        let is_http = matches!(check, Check::Http { .. });
        let asked = [
            ("http_method", &self.http_method),
            ("url_path", &self.url_path),
            ("expected_codes", &self.expected_codes),
        ];
        if let Some((field, _)) = asked.iter().find(|(_, said)| !is_http && said.is_some()) {
            return Err(Refusal::invalid(*field, format!("a check by {} requests nothing", check.name())));
        }
        if let Check::Http { method, url_path, expected_codes } = &mut check {
            if let Some(said) = &self.http_method {
                *method = said.parse().map_err(refuse("http_method"))?;
            }
            if let Some(said) = &self.url_path {
                *url_path = said.clone().try_into().map_err(refuse("url_path"))?;
            }
            if let Some(said) = &self.expected_codes {
                *expected_codes = said.clone().try_into().map_err(refuse("expected_codes"))?;
            }
        }
        let usual = Monitor::new(check);
        let delay_seconds = self.delay.unwrap_or(usual.delay_seconds);
        // Monitors from before may have more: their hosts wait for no longer than this.
        if let Some(timeout) = self.timeout.filter(|timeout| *timeout > TIMEOUT_MAX) {
            return Err(Refusal::invalid("timeout", format!("its timeout is {timeout} s, want {TIMEOUT_MAX} at most")));
        }
        Ok(Monitor {
            delay_seconds,
            timeout_seconds: self.timeout.unwrap_or(usual.timeout_seconds.min(delay_seconds)),
            max_retries: self.max_retries.unwrap_or(usual.max_retries),
            max_retries_down: self.max_retries_down.unwrap_or(usual.max_retries_down),
            admin_state_up: self.admin_state_up.unwrap_or(usual.admin_state_up),
            ..usual
        })
    }
}

/// The field of a request that a monitor does not fit by.
const fn field(error: &MonitorError) -> &'static str {
    match error {
        MonitorError::Delay { .. } => "delay",
        MonitorError::Timeout { .. } => "timeout",
        MonitorError::Retries { field, .. } => field,
        MonitorError::Method { .. } => "http_method",
        MonitorError::UrlPath { .. } => "url_path",
        MonitorError::Codes { .. } => "expected_codes",
        MonitorError::Type { .. } | MonitorError::Protocol { .. } => "type",
    }
}

impl Intent {
    /// Has the members of a listener checked; verdicts of a monitor from before hold until checks say otherwise.
    pub(crate) fn set_monitor(
        &mut self,
        name: &str,
        listener: (&str, &str),
        new: &NewHealthMonitor,
    ) -> Result<BalancerId, Refusal> {
        let monitor = new.checked()?;
        let (id, balancer) = find(&self.balancers, name, None)?;
        let at = place(&balancer, listener)?;
        let fits = monitor.check_for(balancer.listeners[at].protocol);
        fits.map_err(|error| Refusal::invalid(field(&error), error.to_string()))?;
        let mut balancer = (*balancer).clone();
        balancer.listeners[at].monitor = Some(monitor);
        balancer.listeners[at].clear_verdicts();
        self.put_balancer(balancer, "type")?;
        Ok(id)
    }

    /// Has the members of a listener checked no more: all are taken for online.
    pub(crate) fn remove_monitor(&mut self, name: &str, listener: (&str, &str)) -> Result<BalancerId, Refusal> {
        let (id, balancer) = find(&self.balancers, name, None)?;
        let at = place(&balancer, listener)?;
        let mut balancer = (*balancer).clone();
        balancer.listeners[at].monitor = None;
        balancer.listeners[at].clear_verdicts();
        self.balancers.insert(id, Arc::new(balancer));
        Ok(id)
    }

    /// Keeps a verdict, where somebody is checked whom it is about.
    pub(crate) fn note_health(&mut self, health: &MemberHealth) {
        self.note_verdict(&health.member, health.online);
    }

    /// Whether others than these have a share of the listener that a member is of, and serve.
    pub(crate) fn others_serve(&self, about: &MemberRef, than: &BTreeSet<MemberRef>) -> bool {
        let Some(balancer) = self.balancers.get(&about.balancer) else { return false };
        let Some(listener) = balancer.listener(about.protocol, about.listener) else { return false };
        let mut serving = listener.members.iter().filter(|it| it.weight > 0 && !it.in_error);
        serving.any(|it| !than.contains(&MemberRef::of(balancer, listener, it)))
    }

    /// The same, of whomever it is.
    pub(crate) fn note_verdict(&mut self, about: &MemberRef, online: bool) {
        let Some(balancer) = self.balancers.get_mut(&about.balancer) else { return };
        let listens = |it: &model::balancer::Listener| {
            (it.protocol, it.port) == (about.protocol, about.listener) && it.checks().is_some()
        };
        let Some(at) = balancer.listeners.iter().position(listens) else { return };
        let is_it = |it: &model::balancer::Member| (it.address, it.port) == (about.address, about.port);
        let Some(seat) = balancer.listeners[at].members.iter().position(is_it) else { return };
        if balancer.listeners[at].members[seat].in_error == online {
            Arc::make_mut(balancer).listeners[at].members[seat].in_error = !online;
        }
    }
}
