//! Views of ports: where they are, what they may send, and what their hosts say of them.

use model::network::AllowedPair;
use model::observed::PortState;
use serde::Serialize;
use utoipa::ToSchema;

use super::{NamedRef, ProblemView, listed, named};
use crate::centre::World;
use crate::intent::port::PortIntent;

/// A port.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PortView {
    id: String,
    name: String,
    network: NamedRef,
    mac: String,
    addresses: Vec<AddressView>,
    groups: Vec<NamedRef>,
    /// What it may send from beside its own addresses.
    allowed_pairs: Vec<PairView>,
    /// What it may send and receive in a second, and how its packets are marked.
    #[schema(value_type = Object)]
    qos: model::qos::Qos,
    port_security: bool,
    /// Number of the port in flows, and of its tap device.
    key: u32,
    /// The trunk that it is a part of; none: it has an interface of its own.
    trunk: Option<TrunkView>,
    /// Who gets copies of its frames; none: nobody.
    mirror: Option<MirrorView>,
    /// The ports whose copies it gets.
    mirror_of: Vec<NamedRef>,
    vm: Option<NamedRef>,
    /// The host that it is plugged in on: its machine's, or one that the machine has spoken on.
    host: Option<NamedRef>,
    /// The other host that it is awaited on; none: it stays where it is.
    awaited: Option<AwaitedView>,
    /// `up`, `down`, `unknown`, or `unplugged` when it is on no host.
    state: &'static str,
    problem: Option<ProblemView>,
}

/// Where a port is awaited.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AwaitedView {
    /// The host.
    host: NamedRef,
    /// Which attempt this is.
    serial: u64,
    /// Whether it is wired there: `up`, `down` or `unknown`.
    state: &'static str,
}

/// The trunk of a sub-port.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TrunkView {
    /// The port whose interface it is on.
    parent: NamedRef,
    /// The VLAN whose tag its frames have there.
    vlan: u16,
}

/// Who gets copies of the frames of a port.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct MirrorView {
    /// The port that gets them.
    to: NamedRef,
    /// What is copied, as the machine sees it: `in`, `out` or `both`.
    direction: &'static str,
}

/// An address of a port.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AddressView {
    subnet: NamedRef,
    address: String,
}

/// Addresses that a port may send from beside its own.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PairView {
    addresses: String,
    /// The MAC address that they come with; none: the port's own.
    mac: Option<String>,
}

impl From<&AllowedPair> for PairView {
    fn from(pair: &AllowedPair) -> Self {
        Self { addresses: pair.addresses.to_string(), mac: pair.mac.map(|mac| mac.to_string()) }
    }
}

/// What a host says of a port.
const fn state_of(seen: Option<PortState>) -> &'static str {
    match seen {
        Some(PortState::Up) => "up",
        Some(PortState::Down) => "down",
        Some(PortState::Unknown) | None => "unknown",
    }
}

impl PortView {
    pub(super) fn of(world: &World, it: &PortIntent) -> Self {
        let (intent, port) = (&world.intent, &it.port);
        let vm = intent.port_user(port.tap_port()).and_then(|(id, _)| intent.machines.get(&id));
        let host = intent.place_of(it);
        let report = host.and_then(|host| world.cluster.fresh(host));
        let seen = report.as_ref().and_then(|report| report.ports.iter().find(|seen| seen.id == port.id));
        let state = host.map_or("unplugged", |_| state_of(seen.map(|seen| seen.state)));
        let awaited = intent.ports.get(&port.tap_port()).and_then(|tap| tap.journey.awaited());
        let awaited = awaited.map(|(host, serial)| {
            let report = world.cluster.fresh(host);
            let seen = report.as_ref().and_then(|report| report.ports.iter().find(|seen| seen.id == port.id));
            let state = state_of(seen.map(|seen| seen.state));
            AwaitedView { host: named(&intent.hosts, &host), serial, state }
        });
        // Only a port with a number for copies can get some.
        let mirror_of = it.mirror_vni.into_iter().flat_map(|_| intent.mirrored_to(port.id));
        let addresses = port.addresses.iter().map(|fixed| AddressView {
            subnet: named(&intent.subnets, &fixed.subnet),
            address: fixed.address.to_string(),
        });
        Self {
            id: port.id.to_string(),
            name: port.name.clone(),
            network: named(&intent.networks, &port.network),
            mac: port.mac.to_string(),
            addresses: addresses.collect(),
            groups: listed(&intent.groups, &port.groups),
            allowed_pairs: port.allowed_pairs.iter().map(PairView::from).collect(),
            qos: port.qos,
            port_security: port.port_security,
            key: port.key,
            trunk: port
                .trunk
                .map(|trunk| TrunkView { parent: named(&intent.ports, &trunk.parent), vlan: trunk.vlan.get() }),
            mirror: port
                .mirror
                .map(|mirror| MirrorView { to: named(&intent.ports, &mirror.to), direction: mirror.direction.name() }),
            mirror_of: listed(&intent.ports, mirror_of.map(|it| &it.port.id)),
            vm: vm.map(|vm| named(&intent.machines, &vm.machine.id)),
            host: host.map(|host| named(&intent.hosts, &host)),
            awaited,
            state,
            problem: seen.and_then(|seen| seen.problem.as_ref()).map(ProblemView::from),
        }
    }
}
