//! What load balancers look like to an operator: their address, what they listen for, who gets it, and whether those serve.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::balancer::monitor::{Check, Monitor};
use model::balancer::{Balancer, Listener, Member, MemberRef};
use model::network::Port;
use serde::Serialize;
use utoipa::ToSchema;

use super::{NamedRef, named};
use crate::assign::bindings;
use crate::centre::World;
use crate::intent::balancer::SessionPersistence;
use crate::seat::Seats;
use crate::standing::{Standing, Unable};

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
    /// What its host found out last, or what keeps it from serving.
    status_reason: Option<String>,
    /// The port on a network that has the address.
    network_port: Option<NamedRef>,
}

impl LoadBalancerView {
    pub(super) fn of(world: &World, balancer: &Balancer) -> Self {
        let unable = unable(world, balancer);
        let listener = |listener| ListenerView::of(world, (balancer, listener), &unable);
        Self {
            id: balancer.id.to_string(),
            name: balancer.name.clone(),
            key: balancer.key,
            subnet: named(&world.intent.subnets, &balancer.subnet),
            address: balancer.address.to_string(),
            mac: balancer.mac.to_string(),
            operating_status: operating_status(balancer),
            listeners: balancer.listeners.iter().map(listener).collect(),
        }
    }
}

impl ListenerView {
    fn of(world: &World, of: (&Balancer, &Listener), unable: &BTreeMap<IpAddr, Unable>) -> Self {
        let (_, listener) = of;
        let why = |member: &Member| unable.get(&member.address).copied().filter(|_| member.in_error);
        Self {
            protocol: listener.protocol.to_string(),
            port: listener.port,
            session_persistence: listener.persistence.into(),
            connection_limit: listener.connection_limit,
            health_monitor: listener.monitor.as_ref().map(HealthMonitorView::of),
            members: listener.members.iter().map(|member| MemberView::of(world, of, (member, why(member)))).collect(),
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

/// Why members of a load balancer can not serve, by their addresses.
fn unable(world: &World, balancer: &Balancer) -> BTreeMap<IpAddr, Unable> {
    let down: BTreeSet<IpAddr> =
        balancer.listeners.iter().flat_map(|it| &it.members).filter(|it| it.in_error).map(|it| it.address).collect();
    if down.is_empty() {
        return BTreeMap::new();
    }
    let (bindings, standing) = (bindings(&world.intent), Standing::of(&world.intent, &world.cluster));
    let seats = Seats::of(&world.intent, &bindings);
    let why = |address: IpAddr| Some((address, standing.unable(seats.of_member(balancer, address)?)?));
    down.into_iter().filter_map(why).collect()
}

/// What a host found out of a member, as far as it agrees with what is known.
fn reason(world: &World, (balancer, listener): (&Balancer, &Listener), member: &Member) -> String {
    let found = world.cluster.found(&MemberRef::of(balancer, listener, member));
    let found = found.iter().find(|found| found.online != member.in_error);
    let unsaid = if member.in_error { "as its host found before" } else { "not checked yet" };
    found.map_or_else(|| unsaid.to_owned(), |found| found.reason.clone())
}

impl MemberView {
    fn of(
        world: &World,
        (balancer, listener): (&Balancer, &Listener),
        (member, unable): (&Member, Option<Unable>),
    ) -> Self {
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
            status_reason: listener.checks().map(|_| match unable {
                Some(unable) => unable.reason().to_owned(),
                None => reason(world, (balancer, listener), member),
            }),
            network_port: port.map(|(id, _)| named(&intent.ports, id)),
        }
    }
}
