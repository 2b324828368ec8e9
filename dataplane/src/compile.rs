//! From a host's networks to the flows that should exist: pure, complete and deterministic, one unit at a time.
//!
//! Owns [`Compiler`] and the list of what each unit is made of. A `Unit` is an object of the specification; features make its flows from what a
//! `View` shows them, and the view writes down what they read. When a specification changes, the units
//! that read what changed are made again, and no others, so that one port costs one port. Never reads what is installed: that is
//! [`diff`](mod@crate::diff)'s part.
//! Invariant: equal inputs give equal flow sets, whatever was compiled before (ADR 7).
//!
//! ```text
//! specification --differences--> index --facts that moved--> units that read them --features--> parts --assembly--> flow set, and what it touched
//! ```
//!
//! A feature that needs another object of the specification adds a row each to `Fact` and, if the object has flows of its own, to
//! `Unit`, a look to `View`, and a line to `Changed`; what follows from several objects belongs into the index.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;

use model::network::{Port, Router};
use model::provider::PhysicalNetwork;
use model::spec::HostNetwork;
use model::{Mac, NetworkId, PortId};
use openflow::flow::{PortNo, ip_proto};
use openflow::wire::{CtFlush, CtTuple};

use crate::cookie::Object;
use crate::feature::{
    arp, arrival, balancer, canary, classify, deliver, dhcp, firewall, floating, forward, health, identity, mirror,
    neighbour, north, path_mtu, provider, qos, quoted, router, security, service, snat, static_route, trunk, tunnel,
    way_out,
};
use crate::flow_set::{Assembly, FlowSet, Part, Touched};
use crate::identity::{Groups, NOBODY};
use crate::peer::{PEERS_MAX, Peers};

mod changed;
mod index;
mod structure;
pub(crate) mod unit;
pub(crate) mod view;

pub use changed::Edit;

use changed::Changed;
use index::{Index, Moved};
use unit::{Fact, Unit};
use view::{Place, View};

/// What a host finds out for itself: the numbers that the switch gave to what is plugged into it, and stations on the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortNumbers {
    /// The OpenFlow port of each local port that is plugged in; a sub-port has that of its parent. A port without one gets no traffic yet.
    pub ports: BTreeMap<PortId, PortNo>,
    /// The OpenFlow port of the VXLAN tunnel; none: hosts do not reach each other yet.
    pub vxlan: Option<PortNo>,
    /// The other hosts that tell whether they are alive, by tunnel endpoint.
    pub peers: Peers,
    /// The OpenFlow port of each physical network that is plugged in.
    pub physical: BTreeMap<PhysicalNetwork, PortNo>,
    /// The queue of each port with a minimum of what the physical network of its network carries, on the interface that leads there.
    pub queues: BTreeMap<PortId, u32>,
    /// The MAC addresses of stations outside, as the agent found out.
    pub stations: Stations,
    /// The ports that came here from another host a while ago at most: their connections go on though this host's tracker does not know them.
    pub settling: BTreeSet<PortId>,
}

impl PortNumbers {
    /// The OpenFlow port that a port is plugged in at: that of its parent for a sub-port.
    #[must_use]
    pub fn of(&self, port: &Port) -> Option<PortNo> {
        self.ports.get(&port.tap_port()).copied()
    }
}

/// What ports are promised of each physical network, in thousands of bits a second.
pub type Minimums = BTreeMap<PhysicalNetwork, BTreeMap<PortId, NonZeroU32>>;

/// The MAC addresses of stations on provider networks, by their addresses.
pub type Stations = BTreeMap<(NetworkId, IpAddr), Mac>;

/// Keeps the flows that a host should have while its networks change.
#[derive(Debug)]
pub struct Compiler {
    network: HostNetwork,
    numbers: PortNumbers,
    index: Index,
    assembly: Assembly,
    reads: Reads,
}

/// Makes the flows, groups and meters that this host should have, from nothing.
#[must_use]
pub fn compile(host: &HostNetwork, numbers: &PortNumbers) -> FlowSet {
    let mut compiler = Compiler::new(HostNetwork::empty(host.host, host.tunnel));
    compiler.update(host.clone(), numbers);
    compiler.flows().clone()
}

impl Compiler {
    /// A host with this network, most often one without anything in it, and nothing plugged in.
    #[must_use]
    pub fn new(network: HostNetwork) -> Self {
        let mut compiler = Self {
            network: HostNetwork::empty(network.host, network.tunnel),
            numbers: PortNumbers::default(),
            index: Index::default(),
            assembly: Assembly::default(),
            reads: Reads::default(),
        };
        let constant = BTreeSet::from([Unit::Host]);
        compiler.make(constant);
        compiler.update(network, &PortNumbers::default());
        compiler
    }

    /// The networks that the flows are made from.
    #[must_use]
    pub const fn network(&self) -> &HostNetwork {
        &self.network
    }

    /// The numbers that the flows are made from.
    #[must_use]
    pub const fn numbers(&self) -> &PortNumbers {
        &self.numbers
    }

    /// The flows that should exist.
    #[must_use]
    pub const fn flows(&self) -> &FlowSet {
        self.assembly.set()
    }

    /// Takes a new specification and new port numbers, and says where the flows are others now. Costs a comparison of the specifications, and
    /// what the differences cost.
    pub fn update(&mut self, network: HostNetwork, numbers: &PortNumbers) -> Touched {
        if network.host != self.network.host {
            return self.restart(network, numbers);
        }
        let before = std::mem::replace(&mut self.network, network);
        let moved = {
            let mut changed = Changed::between(&before, &self.network);
            changed.number(&self.numbers, numbers);
            changed.enter(&mut self.index, &self.network)
        };
        if self.numbers != *numbers {
            self.numbers = numbers.clone();
        }
        self.follow(moved)
    }

    /// Changes a few objects of the specification, and says where the flows are others now. Costs what the change costs, however large the rest is.
    /// The edits are the caller's to have checked: the result must be a specification that [`HostNetwork::check`] takes.
    pub fn edit(&mut self, edits: Vec<Edit>) -> Touched {
        let before: Vec<_> =
            edits.into_iter().map(|edit| edit.exchange(&mut self.network, &mut self.numbers)).collect();
        let moved = Changed::by(&before, &self.network, &self.numbers).enter(&mut self.index, &self.network);
        self.follow(moved)
    }

    /// The edits that lead to other port numbers.
    #[must_use]
    pub fn plugs(&self, numbers: &PortNumbers) -> Vec<Edit> {
        let (old, new) = (&self.numbers.ports, &numbers.ports);
        let gone = old.keys().filter(|id| !new.contains_key(id)).map(|id| Edit::Plug(*id, None));
        let others = new.iter().filter(|(id, number)| old.get(id) != Some(number));
        let others = others.map(|(id, number)| Edit::Plug(*id, Some(*number)));
        let (before, after) = (&self.numbers.queues, &numbers.queues);
        let unqueued = before.keys().filter(|id| !after.contains_key(id)).map(|id| Edit::Queue(*id, None));
        let queued = after.iter().filter(|(id, queue)| before.get(id) != Some(queue));
        let queued = queued.map(|(id, queue)| Edit::Queue(*id, Some(*queue)));
        let tunnel = (self.numbers.vxlan != numbers.vxlan).then_some(Edit::PlugTunnel(numbers.vxlan));
        let peers = (self.numbers.peers != numbers.peers).then(|| Edit::Peers(numbers.peers.clone()));
        let is_same = self.numbers.physical == numbers.physical;
        let physical = (!is_same).then(|| Edit::PlugPhysical(numbers.physical.clone()));
        let is_same = self.numbers.settling == numbers.settling;
        let settling = (!is_same).then(|| Edit::Settling(numbers.settling.clone()));
        let is_same = self.numbers.stations == numbers.stations;
        let stations = (!is_same).then(|| Edit::Stations(numbers.stations.clone()));
        let queues = unqueued.chain(queued);
        gone.chain(others)
            .chain(queues)
            .chain(tunnel)
            .chain(peers)
            .chain(physical)
            .chain(stations)
            .chain(settling)
            .collect()
    }

    /// The tunnel endpoints of the hosts whose life matters here: of routers with several gateways the gateways, where the router is used or this host is
    /// one of them, and there those of the hosts that use it; of routers' addresses of IPv6 the other gateways, where this host is one. At most [`PEERS_MAX`], gateways first.
    #[must_use]
    pub fn peers(&self) -> BTreeSet<Ipv4Addr> {
        let here = self.network.host;
        let (mut gateways, mut users) = (BTreeSet::new(), BTreeSet::new());
        for router in self.network.routers.values() {
            let others = router.ipv6_gateway_among(here).map(|(gateway, _)| &gateway.gateways).into_iter().flatten();
            gateways.extend(others.filter(|gateway| gateway.host != here).map(|gateway| gateway.tunnel));
            let snat = router.external.as_ref().and_then(|external| external.snat.as_ref());
            let Some(snat) = snat.filter(|snat| snat.gateways.len() > 1) else { continue };
            let subnets = router.interfaces.iter().filter_map(|foot| self.network.subnets.get(&foot.subnet));
            let networks: BTreeSet<NetworkId> = subnets.map(|subnet| subnet.network).collect();
            let is_gateway = router.snat_among(here).is_some();
            if is_gateway {
                users.extend(networks.iter().flat_map(|network| self.index.endpoints(*network)));
            }
            if is_gateway || networks.iter().any(|network| self.index.locals(*network).next().is_some()) {
                let others = snat.gateways.iter().filter(|gateway| gateway.host != here);
                gateways.extend(others.map(|gateway| gateway.tunnel));
            }
        }
        let users = users.difference(&gateways).copied();
        gateways.iter().copied().chain(users).take(PEERS_MAX).collect()
    }

    /// What ports that are plugged in here are promised of the physical networks that theirs are parts of.
    #[must_use]
    pub fn minimums(&self) -> Minimums {
        let mut minimums = Minimums::new();
        for port in self.network.ports.values() {
            let here = port.binding.as_ref().is_some_and(|binding| binding.host == self.network.host);
            let Some(minimum) = port.qos.egress_min_kbps.filter(|_| here) else { continue };
            let provider = self.network.networks.get(&port.network).and_then(|network| network.provider.as_ref());
            if let Some(provider) = provider {
                minimums.entry(provider.physical_network.clone()).or_default().insert(port.id, minimum);
            }
        }
        minimums
    }

    /// Whether an address is behind the router that has this floating IP, or leads to something there: nobody is spoken to at such a one by the floating IP.
    #[must_use]
    pub fn is_behind(&self, floating: Ipv4Addr, address: Ipv4Addr) -> bool {
        let has = |router: &&Router| {
            let external = router.external.as_ref();
            external.is_some_and(|external| external.floating_ips.iter().any(|it| it.address == floating))
        };
        let mut routers = self.network.routers.values().filter(has);
        routers.any(|router| {
            self.index.inside(router.id).is_some_and(|ranges| ranges.iter().any(|it| it.contains(&IpAddr::V4(address))))
        })
    }

    /// The connections of TCP that a tracker may know of a port and its sub-ports, by the port that has the tap.
    #[must_use]
    pub fn connections_of(&self, tap: PortId) -> Vec<CtFlush> {
        let ports = self.network.ports.values().filter(|port| port.tap_port() == tap);
        let known = ports.flat_map(|port| {
            let zone = self.index.zone(port.network);
            let own = port.addresses.iter().map(|fixed| fixed.address);
            let addresses: BTreeSet<IpAddr> = own.chain(port.ipv6_addresses().map(IpAddr::V6)).collect();
            addresses.into_iter().flat_map(move |address| {
                let from = CtTuple { source: Some(address), ..CtTuple::default() };
                let to = CtTuple { target: Some(address), ..CtTuple::default() };
                let of = move |tuple| CtFlush { zone, proto: ip_proto::TCP, original: Some(tuple), reply: None };
                zone.map(|_| [from, to].map(of)).into_iter().flatten()
            })
        });
        known.collect()
    }

    /// Another host altogether: nothing of what is known holds.
    fn restart(&mut self, network: HostNetwork, numbers: &PortNumbers) -> Touched {
        let before = self.flows().clone();
        *self = Self::new(HostNetwork::empty(network.host, network.tunnel));
        self.update(network, numbers);
        before.differences(self.flows())
    }

    /// Makes the units again that read what moved.
    fn follow(&mut self, moved: Moved) -> Touched {
        let mut units = moved.units;
        for fact in &moved.facts {
            units.extend(fact.own_unit());
            units.extend(self.reads.readers(*fact).cloned());
        }
        self.make(units)
    }

    fn make(&mut self, units: BTreeSet<Unit>) -> Touched {
        let Self { network, numbers, index, assembly, reads } = self;
        // One at a time: the parts of thousands of units would be as large as the set.
        let parts = units.into_iter().map(|unit| {
            let view = View::new(network, numbers, index);
            let part = part(&unit, &view, index);
            let facts = view.into_reads().into_iter().filter(|fact| fact.own_unit().as_ref() != Some(&unit));
            let facts: Box<[Fact]> = if part.is_some() { facts.collect() } else { Box::default() };
            reads.remember(&unit, facts);
            (unit, part)
        });
        assembly.replace(parts)
    }
}

/// What each unit read of what is not its own, both ways.
#[derive(Debug, Default)]
struct Reads {
    by_unit: BTreeMap<Unit, Box<[Fact]>>,
    readers: BTreeSet<(Fact, Unit)>,
}

impl Reads {
    fn remember(&mut self, unit: &Unit, facts: Box<[Fact]>) {
        let before = self.by_unit.remove(unit).unwrap_or_default();
        if before != facts {
            for fact in before {
                self.readers.remove(&(fact, unit.clone()));
            }
            self.readers.extend(facts.iter().map(|fact| (*fact, unit.clone())));
        }
        if !facts.is_empty() {
            self.by_unit.insert(unit.clone(), facts);
        }
    }

    fn readers(&self, fact: Fact) -> impl Iterator<Item = &Unit> {
        let from = self.readers.range((fact, Unit::Host)..);
        from.take_while(move |(other, _)| *other == fact).map(|(_, unit)| unit)
    }
}

/// What a unit wants; nothing when its object is no more.
fn part(unit: &Unit, view: &View<'_>, index: &Index) -> Option<Part> {
    let mut part = Part::default();
    match unit {
        Unit::Host => host(view, &mut part),
        Unit::Network(id) => {
            let network = view.network(*id)?;
            part.name(Object::Network(network.vni.get()), format!("network {}", network.name));
            if let Some(segment) = view.segment(*id) {
                forward::network(view, segment, &mut part);
                tunnel::network(view, segment, &mut part);
                provider::network(view, segment, &mut part);
                floating::network(view, segment, &mut part);
                north::network(view, segment, &mut part);
            } else if let Some(segment) = view.gated(*id) {
                tunnel::arrivals(view, segment, &mut part);
            }
        }
        Unit::Router(id) => {
            let router = view.router(*id)?;
            part.name(Object::Router(router.key.into()), format!("router {}", router.name));
            if view.is_near_router(*id) {
                arp::router(view, router, &mut part);
                neighbour::router(view, router, &mut part);
                forward::router(view, router, &mut part);
                router::router(view, router, &mut part);
                path_mtu::router(view, router, &mut part);
                static_route::router(view, router, &mut part);
                way_out::router(view, router, &mut part);
                north::router(view, router, &mut part);
            }
            north::gate(view, router, &mut part);
        }
        Unit::Firewall(id) => {
            let router = view.router(*id)?;
            firewall::router(view, router, &mut part)?;
        }
        Unit::FirewallPolicy(id) => firewall::policy(view.firewall_policy(*id)?, &mut part),
        Unit::Group(id) => {
            let group = view.group(*id)?;
            part.name(Object::Group(group.key), format!("security group {}", group.name));
            security::group(view, group, &mut part);
        }
        Unit::Addresses(id) => {
            let group = view.addresses(*id)?;
            part.name(Object::Addresses(group.key), format!("address group {}", group.name));
            security::address::addresses(view, group, &mut part);
        }
        Unit::Balancer(id) => {
            let it = view.balancer(*id)?;
            part.name(Object::Balancer(it.key.into()), format!("load balancer {}", it.name));
            balancer::balancer(view, it, &mut part);
            health::balancer(view, it, &mut part);
        }
        Unit::Port(id) => port(view, *id, &mut part)?,
        Unit::Mirror(id) => mirror::target(view, view.mirror(*id)?, &mut part),
        Unit::Identity(groups) => set_of_groups(groups, view, index, &mut part)?,
        Unit::Endpoint(endpoint) => {
            part.name_host(*endpoint, view.host_of(*endpoint)?);
            tunnel::endpoint(view, *endpoint, &mut part);
        }
    }
    Some(part)
}

fn set_of_groups(groups: &Groups, view: &View<'_>, index: &Index, part: &mut Part) -> Option<()> {
    if !index.has_set(groups) || groups.is_empty() {
        return None;
    }
    let names: Vec<&str> = groups.iter().filter_map(|id| view.group(*id)).map(|group| group.name.as_str()).collect();
    part.name(Object::Identity(view.identity_of(groups)), format!("members of {}", names.join(" and ")));
    Some(())
}

/// What every host has.
fn host(view: &View<'_>, part: &mut Part) {
    part.name(Object::Identity(NOBODY), "no security group".to_owned());
    canary::host(part);
    classify::host(part);
    identity::host(part);
    arp::host(part);
    neighbour::host(part);
    dhcp::host(part);
    forward::host(part);
    router::host(part);
    security::host(part);
    service::host(part);
    deliver::host(part);
    trunk::host(part);
    tunnel::host(view, part);
    provider::host(view, part);
    floating::host(part);
    quoted::host(part);
    health::host(part);
    snat::host(part);
    balancer::host(part);
    firewall::host(part);
    arrival::host(part);
}

fn port(view: &View<'_>, id: PortId, part: &mut Part) -> Option<()> {
    let port = view.port(id)?;
    part.name(Object::Port(port.key), format!("port {}", port.name));
    let spot = view.spot(port);
    if spot.place == Place::Here {
        classify::port(view, spot, part);
        neighbour::local(view, spot, part);
        dhcp::port(view, spot, part);
        service::port(view, spot, part);
        qos::port(view, spot, part);
        deliver::port(view, spot, part);
        trunk::port(view, spot, part);
        mirror::port(view, spot, part);
    }
    arrival::port(view, spot, part);
    identity::port(view, spot, part);
    arp::port(view, spot, part);
    neighbour::port(spot, part);
    forward::port(view, spot, part);
    router::port(view, spot, part);
    floating::port(view, spot, part);
    north::port(view, spot, part);
    Some(())
}
