//! What load balancers look like to an operator: their address, what they listen for, who gets it, and whether those serve.

use model::balancer::monitor::{Check, Monitor};
use model::balancer::{Balancer, Listener, Member, MemberRef};
use model::network::Port;
use serde::Serialize;
use utoipa::ToSchema;

use super::{NamedRef, named};
use crate::centre::World;
use crate::intent::balancer::SessionPersistence;

/// Operating statuses, as Octavia has them.
const ONLINE: &str = "ONLINE";
const DEGRADED: &str = "DEGRADED";
const ERROR: &str = "ERROR";
const NO_MONITOR: &str = "NO_MONITOR";

/// A load balancer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LoadBalancerView {
    id: String,
    name: String,
    /// Number of the load balancer in flows.
    key: u16,
    subnet: NamedRef,
    /// The address that clients connect to.
    address: String,
    mac: String,
    /// Of all members that are checked: ONLINE, DEGRADED when some are in error, ERROR when all are; NO_MONITOR when none is checked.
    operating_status: &'static str,
    listeners: Vec<ListenerView>,
}

/// What a load balancer listens for.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ListenerView {
    protocol: String,
    port: u16,
    session_persistence: SessionPersistence,
    /// How many of its connections may be open at once from each host; null: any number.
    connection_limit: Option<u32>,
    /// How its members are checked.
    health_monitor: Option<HealthMonitorView>,
    members: Vec<MemberView>,
}

/// How the members of a listener are checked.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct HealthMonitorView {
    /// TCP, HTTP, PING or UDP-CONNECT.
    #[serde(rename = "type")]
    kind: String,
    /// From one check to the next, in seconds.
    delay: u16,
    /// How long an answer may take, in seconds.
    timeout: u16,
    /// Checks in a row that must go well before a member in error is online.
    max_retries: u8,
    /// Checks in a row that must fail before a member is in error.
    max_retries_down: u8,
    http_method: Option<String>,
    url_path: Option<String>,
    expected_codes: Option<String>,
    admin_state_up: bool,
}

/// Who gets a share of a listener's connections.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct MemberView {
    address: String,
    port: u16,
    weight: u16,
    /// ONLINE, ERROR, or NO_MONITOR when it is not checked.
    operating_status: &'static str,
    /// What its host found out last.
    status_reason: Option<String>,
    /// The port on a network that has the address.
    network_port: Option<NamedRef>,
}

impl LoadBalancerView {
    pub(super) fn of(world: &World, balancer: &Balancer) -> Self {
        Self {
            id: balancer.id.to_string(),
            name: balancer.name.clone(),
            key: balancer.key,
            subnet: named(&world.intent.subnets, &balancer.subnet),
            address: balancer.address.to_string(),
            mac: balancer.mac.to_string(),
            operating_status: operating_status(balancer),
            listeners: balancer.listeners.iter().map(|listener| ListenerView::of(world, balancer, listener)).collect(),
        }
    }
}

impl ListenerView {
    fn of(world: &World, balancer: &Balancer, listener: &Listener) -> Self {
        Self {
            protocol: listener.protocol.to_string(),
            port: listener.port,
            session_persistence: listener.persistence.into(),
            connection_limit: listener.connection_limit,
            health_monitor: listener.monitor.as_ref().map(HealthMonitorView::of),
            members: listener
                .members
                .iter()
                .map(|member| MemberView::of(world, (balancer, listener), member))
                .collect(),
        }
    }
}

impl HealthMonitorView {
    fn of(monitor: &Monitor) -> Self {
        let (http_method, url_path, expected_codes) = match &monitor.check {
            Check::Http { method, url_path, expected_codes } => {
                (Some(method.name().to_owned()), Some(url_path.as_str().to_owned()), Some(expected_codes.to_string()))
            }
            Check::Tcp | Check::Ping | Check::UdpConnect => (None, None, None),
        };
        Self {
            kind: monitor.check.name().to_owned(),
            delay: monitor.delay_seconds,
            timeout: monitor.timeout_seconds,
            max_retries: monitor.max_retries,
            max_retries_down: monitor.max_retries_down,
            http_method,
            url_path,
            expected_codes,
            admin_state_up: monitor.admin_state_up,
        }
    }
}

fn operating_status(balancer: &Balancer) -> &'static str {
    let checked = balancer.listeners.iter().filter(|listener| listener.checks().is_some());
    let checked: Vec<&Member> = checked.flat_map(|listener| &listener.members).collect();
    match (checked.len(), checked.iter().filter(|member| member.in_error).count()) {
        (0, _) => NO_MONITOR,
        (_, 0) => ONLINE,
        (all, down) if all == down => ERROR,
        _ => DEGRADED,
    }
}

/// What a host found out of a member, as far as it agrees with what is known.
fn reason(world: &World, (balancer, listener): (&Balancer, &Listener), member: &Member) -> String {
    let about = MemberRef {
        balancer: balancer.id,
        protocol: listener.protocol,
        listener: listener.port,
        address: member.address,
        port: member.port,
    };
    let reports = world.intent.hosts.keys().filter_map(|host| world.cluster.report(*host));
    let mut found = reports.flat_map(|report| &report.members);
    let found = found.find(|found| found.member == about && found.online != member.in_error);
    let unsaid = if member.in_error { "as its host found before" } else { "not checked yet" };
    found.map_or_else(|| unsaid.to_owned(), |found| found.reason.clone())
}

impl MemberView {
    fn of(world: &World, (balancer, listener): (&Balancer, &Listener), member: &Member) -> Self {
        let intent = &world.intent;
        let own = intent.network_of(balancer);
        let stands = |router: &&std::sync::Arc<model::network::Router>| {
            router.interfaces.iter().any(|foot| foot.subnet == balancer.subnet)
        };
        let feet: Vec<_> = intent.routers.values().filter(stands).flat_map(|router| &router.interfaces).collect();
        let has = |port: &Port| {
            port.addresses.iter().any(|fixed| {
                let is_near = Some(port.network) == own || feet.iter().any(|foot| foot.subnet == fixed.subnet);
                fixed.address == member.address && is_near
            })
        };
        let port = intent.ports.iter().find(|(_, port)| has(&port.port));
        Self {
            address: member.address.to_string(),
            port: member.port,
            weight: member.weight,
            operating_status: match listener.checks() {
                None => NO_MONITOR,
                Some(_) if member.in_error => ERROR,
                Some(_) => ONLINE,
            },
            status_reason: listener.checks().map(|_| reason(world, (balancer, listener), member)),
            network_port: port.map(|(id, _)| named(&intent.ports, id)),
        }
    }
}
