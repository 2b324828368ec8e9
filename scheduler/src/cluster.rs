//! What hosts said last and when: the half of the state that is only in memory.
//!
//! A scheduler that restarts knows nothing here until hosts report again. Until it has waited as long as a host may be silent, a host that it has
//! not heard is [`Life::Unheard`], not down: nothing is moved away from it.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use model::HostId;
use model::agent::HOST_DOWN_AFTER_SECONDS;
use model::balancer::{MemberHealth, MemberRef};
use model::observed::{Report, Resources};

/// Whether a host answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// It reported lately.
    Up,
    /// It has not reported since this scheduler started, which is not long ago.
    Unheard,
    /// It has been silent for too long.
    Down,
}

/// What is known of one host.
#[derive(Debug, Clone)]
pub(crate) struct Sight {
    pub(crate) life: Life,
    pub(crate) report: Option<Arc<Report>>,
    /// How long ago it reported.
    pub(crate) silent: Option<Duration>,
}

/// All hosts as seen at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cluster {
    sights: BTreeMap<HostId, Sight>,
    blind: bool,
    /// What reports say of members of load balancers, by member: gathered when it is asked for.
    found: OnceLock<BTreeMap<MemberRef, Vec<MemberHealth>>>,
}

impl Cluster {
    /// What is known of a host.
    pub(crate) fn sight(&self, host: HostId) -> Sight {
        let unknown = || Sight { life: self.life(host), report: None, silent: None };
        self.sights.get(&host).cloned().unwrap_or_else(unknown)
    }

    /// Whether a host answers.
    pub(crate) fn life(&self, host: HostId) -> Life {
        let unknown = if self.blind { Life::Unheard } else { Life::Down };
        self.sights.get(&host).map_or(unknown, |sight| sight.life)
    }

    /// A host's last report.
    pub(crate) fn report(&self, host: HostId) -> Option<&Report> {
        self.sights.get(&host)?.report.as_deref()
    }

    /// What hosts last said of a member of a load balancer.
    pub(crate) fn found(&self, about: &MemberRef) -> &[MemberHealth] {
        let gather = || {
            let mut found = BTreeMap::<_, Vec<_>>::new();
            for health in self.sights.values().filter_map(|sight| sight.report.as_ref()).flat_map(|it| &it.members) {
                found.entry(health.member).or_default().push(health.clone());
            }
            found
        };
        self.found.get_or_init(gather).get(about).map_or(&[], Vec::as_slice)
    }

    /// A host's report, if the host is up.
    pub(crate) fn fresh(&self, host: HostId) -> Option<Arc<Report>> {
        let sight = self.sight(host);
        sight.report.filter(|_| sight.life == Life::Up)
    }

    /// A host's resources as it last said.
    pub(crate) fn resources(&self, host: HostId) -> Resources {
        self.sight(host).report.map(|report| report.resources.clone()).unwrap_or_default()
    }

    /// For tests: a cluster in which these reports just came in.
    #[cfg(test)]
    pub(crate) fn of(reports: impl IntoIterator<Item = Report>) -> Self {
        let sight =
            |report: Report| Sight { life: Life::Up, report: Some(Arc::new(report)), silent: Some(Duration::ZERO) };
        let sights = reports.into_iter().map(|report| (report.host, sight(report))).collect();
        Self { sights, ..Self::default() }
    }
}

/// The last report of each host.
#[derive(Debug)]
pub(crate) struct Reports {
    started: Instant,
    last: BTreeMap<HostId, (Arc<Report>, Instant)>,
}

impl Reports {
    /// None yet.
    pub(crate) const fn new(now: Instant) -> Self {
        Self { started: now, last: BTreeMap::new() }
    }

    /// Takes a report in; says whether it is news after the one before.
    pub(crate) fn hear(&mut self, report: Report, now: Instant) -> bool {
        let host = report.host;
        let report = Arc::new(report);
        let before = self.last.insert(host, (Arc::clone(&report), now));
        let limit = Duration::from_secs(HOST_DOWN_AFTER_SECONDS);
        before.is_none_or(|(before, at)| report.is_news_after(&before) || now.saturating_duration_since(at) >= limit)
    }

    /// Forgets a host.
    pub(crate) fn forget(&mut self, host: HostId) {
        self.last.remove(&host);
    }

    /// How the hosts look at `now`.
    pub(crate) fn look(&self, now: Instant) -> Cluster {
        let limit = Duration::from_secs(HOST_DOWN_AFTER_SECONDS);
        let sight = |(report, at): &(Arc<Report>, Instant)| {
            let silent = now.saturating_duration_since(*at);
            let life = if silent < limit { Life::Up } else { Life::Down };
            Sight { life, report: Some(Arc::clone(report)), silent: Some(silent) }
        };
        Cluster {
            sights: self.last.iter().map(|(host, heard)| (*host, sight(heard))).collect(),
            blind: now.saturating_duration_since(self.started) < limit,
            found: OnceLock::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::spec::Generation;

    pub(crate) fn report(host: HostId) -> Report {
        Report {
            host,
            accepted: Generation(0),
            settled: Generation(0),
            resources: Resources::default(),
            machines: Vec::new(),
            ports: Vec::new(),
            volumes: Vec::new(),
            images: Vec::new(),
            members: Vec::new(),
            arrived: Vec::new(),
            problems: Vec::new(),
        }
    }

    #[test]
    fn silence_counts_as_down_only_after_its_limit() {
        let host = HostId::from_uuid(uuid::Uuid::from_u128(1));
        let other = HostId::from_uuid(uuid::Uuid::from_u128(2));
        let start = Instant::now();
        let mut reports = Reports::new(start);
        assert_eq!(reports.look(start).sight(other).life, Life::Unheard);
        assert!(reports.hear(report(host), start));
        assert!(!reports.hear(report(host), start), "the same report is no news");
        let of_member = |online: bool, reason: &str| {
            let member = model::balancer::MemberRef {
                balancer: model::BalancerId::from_uuid(uuid::Uuid::from_u128(3)),
                protocol: model::balancer::Transport::Tcp,
                listener: 80,
                address: std::net::Ipv4Addr::LOCALHOST.into(),
                port: 8080,
            };
            let found = model::balancer::MemberHealth { member, online, reason: reason.to_owned() };
            Report { members: vec![found], ..report(host) }
        };
        assert!(reports.hear(of_member(false, "HTTP 500"), start));
        assert!(!reports.hear(of_member(false, "HTTP 503"), start), "the reason is no news");
        let kept = reports.look(start).report(host).unwrap().members[0].reason.clone();
        assert_eq!(kept, "HTTP 503", "and kept all the same");
        assert!(reports.hear(of_member(true, "HTTP 503"), start), "a verdict is");
        assert!(reports.hear(report(host), start));
        let limit = Duration::from_secs(HOST_DOWN_AFTER_SECONDS);
        assert_eq!(reports.look(start + limit / 2).sight(host).life, Life::Up);
        assert_eq!(reports.look(start + limit).sight(host).life, Life::Down);
        assert_eq!(reports.look(start + limit).sight(other).life, Life::Down);
        assert!(reports.hear(report(host), start + limit), "coming back is news");
    }
}
