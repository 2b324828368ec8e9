//! What features read: the specification, the port numbers and what follows from both, every look written down.
//!
//! Owns [`View`] and the shapes it hands out. Never decides anything. Invariant: whatever a feature learns from a view is a
//! [`Fact`] that the view remembers, so that the unit is made again when it changes. A feature that reads much is
//! made again often: correct, but slow.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use model::address_group::AddressGroup;
use model::balancer::Balancer;
use model::firewall::FirewallPolicy;
use model::mirror::MirrorTarget;
use model::network::{Network, Port, Router, RouterInterface, Subnet};
use model::provider::PhysicalNetwork;
use model::security::{Direction, SecurityGroup};
use model::spec::HostNetwork;
use model::{
    AddressGroupId, BalancerId, FirewallPolicyId, HostId, Mac, NetworkId, PortId, RouterId, SecurityGroupId, SubnetId,
};
use openflow::flow::PortNo;

use super::PortNumbers;
pub(crate) use super::index::Other;
use super::index::{Index, Pair};
pub(crate) use super::structure::North;
use super::unit::Fact;
use crate::identity::{self, NOBODY};
use crate::peer::Peers;

/// What a unit reads while its flows are made.
#[derive(Debug)]
pub(crate) struct View<'a> {
    host: &'a HostNetwork,
    numbers: &'a PortNumbers,
    index: &'a Index,
    reads: RefCell<BTreeSet<Fact>>,
}

/// A network that has a port here, or a floating IP of one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment<'a> {
    pub(crate) network: &'a Network,
    pub(crate) zone: u16,
}

/// A port and where it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spot<'a> {
    pub(crate) port: &'a Port,
    pub(crate) place: Place,
    /// Its network, when that has a port here.
    pub(crate) segment: Option<Segment<'a>>,
}

/// A port that is plugged in here, with its OpenFlow port where it has one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Local<'a> {
    pub(crate) port: &'a Port,
    pub(crate) number: Option<PortNo>,
}

/// Where a port is, as seen from this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Here,
    There(Ipv4Addr),
    Nowhere,
}

impl Segment<'_> {
    pub(crate) fn vni(&self) -> u32 {
        self.network.vni.get()
    }
}

impl<'a> View<'a> {
    pub(super) fn new(host: &'a HostNetwork, numbers: &'a PortNumbers, index: &'a Index) -> Self {
        Self { host, numbers, index, reads: RefCell::default() }
    }

    /// What was read.
    pub(super) fn into_reads(self) -> BTreeSet<Fact> {
        self.reads.into_inner()
    }

    fn read(&self, fact: Fact) {
        self.reads.borrow_mut().insert(fact);
    }

    pub(crate) fn network(&self, id: NetworkId) -> Option<&'a Network> {
        self.read(Fact::Network(id));
        self.host.networks.get(&id)
    }

    pub(crate) fn subnet(&self, id: SubnetId) -> Option<&'a Subnet> {
        self.read(Fact::Subnet(id));
        self.host.subnets.get(&id)
    }

    pub(crate) fn router(&self, id: RouterId) -> Option<&'a Router> {
        self.read(Fact::Router(id));
        self.host.routers.get(&id)
    }

    pub(crate) fn group(&self, id: SecurityGroupId) -> Option<&'a SecurityGroup> {
        self.read(Fact::Group(id));
        self.host.groups.get(&id)
    }

    pub(crate) fn addresses(&self, id: AddressGroupId) -> Option<&'a AddressGroup> {
        self.read(Fact::Addresses(id));
        self.host.address_groups.get(&id)
    }

    /// What an address group is called. Reads none of its addresses.
    pub(crate) fn name_of_addresses(&self, id: AddressGroupId) -> Option<&'a str> {
        self.read(Fact::Named(id));
        self.host.address_groups.get(&id).map(|group| group.name.as_str())
    }

    /// The groups whose rules hold here and name an address group, with the direction.
    pub(crate) fn users(&self, id: AddressGroupId) -> BTreeSet<(SecurityGroupId, Direction)> {
        self.read(Fact::Users(id));
        self.index.users(id)
    }

    pub(crate) fn firewall_policy(&self, id: FirewallPolicyId) -> Option<&'a FirewallPolicy> {
        self.read(Fact::FirewallPolicy(id));
        self.host.firewall_policies.get(&id)
    }

    /// The conntrack zone of what crosses the border of a router here.
    pub(crate) fn firewall_zone(&self, id: RouterId) -> Option<u16> {
        self.read(Fact::FirewallZone(id));
        self.index.firewall_zone(id)
    }

    pub(crate) fn balancer(&self, id: BalancerId) -> Option<&'a Balancer> {
        self.read(Fact::Balancer(id));
        self.host.balancers.get(&id)
    }

    /// The conntrack zone of the balanced connections of a network with load balancers.
    pub(crate) fn balancer_zone(&self, id: NetworkId) -> Option<u16> {
        self.read(Fact::BalancerZone(id));
        self.index.balancer_zone(id)
    }

    pub(crate) fn port(&self, id: PortId) -> Option<&'a Port> {
        self.read(Fact::Port(id));
        self.host.ports.get(&id)
    }

    /// A port that gets copies of the frames of others.
    pub(crate) fn mirror(&self, id: PortId) -> Option<&'a MirrorTarget> {
        self.read(Fact::Mirror(id));
        self.host.mirrors.get(&id)
    }

    /// The OpenFlow port of a port.
    pub(crate) fn number(&self, port: &Port) -> Option<PortNo> {
        self.read(Fact::Number(port.tap_port()));
        self.numbers.of(port)
    }

    /// The queue of a port with a minimum; none: this host keeps none for it.
    pub(crate) fn queue(&self, port: &Port) -> Option<u32> {
        self.read(Fact::Number(port.id));
        self.numbers.queues.get(&port.id).copied()
    }

    /// The OpenFlow port of the tunnel; none: hosts do not reach each other yet.
    pub(crate) fn tunnel(&self) -> Option<PortNo> {
        self.read(Fact::Tunnel);
        self.numbers.vxlan
    }

    /// The port that tells whether another host is alive; none: it is taken for alive.
    pub(crate) fn pulse(&self, endpoint: Ipv4Addr) -> Option<PortNo> {
        self.read(Fact::Peers);
        self.numbers.peers.get(&endpoint).filter(|peer| peer.is_heard).map(|peer| peer.number)
    }

    /// The ports of peers.
    pub(crate) fn peers(&self) -> &'a Peers {
        self.read(Fact::Peers);
        self.read(Fact::Pulses);
        &self.numbers.peers
    }

    /// The OpenFlow port of a physical network; none: this host is not wired to it.
    pub(crate) fn physical(&self, name: &PhysicalNetwork) -> Option<PortNo> {
        self.physical_ports().get(name).copied()
    }

    /// The OpenFlow ports of all physical networks.
    pub(crate) fn physical_ports(&self) -> &'a BTreeMap<PhysicalNetwork, PortNo> {
        self.read(Fact::Physical);
        &self.numbers.physical
    }

    /// The MAC address of a station outside, as far as the agent found out.
    pub(crate) fn station(&self, network: NetworkId, address: IpAddr) -> Option<Mac> {
        self.read(Fact::Stations(network));
        self.numbers.stations.get(&(network, address)).copied()
    }

    /// The stations of a network outside, as far as the agent found out.
    pub(crate) fn stations(&self, network: NetworkId) -> impl Iterator<Item = (IpAddr, Mac)> {
        self.read(Fact::Stations(network));
        let [least, most] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::from_bits(u128::MAX).into()];
        let from = (network, least)..=(network, most);
        self.numbers.stations.range(from).map(|((_, address), mac)| (*address, *mac))
    }

    /// Whether a network has a floating IP or a routed address of a port here, or the address of a router that translates or leads in here.
    pub(crate) fn is_outside(&self, network: NetworkId) -> bool {
        self.read(Fact::Outside(network));
        self.index.is_outside(network)
    }

    /// How what is in a subnet is reached by IPv6 from outside; none: it is not routed there.
    pub(crate) fn north(&self, subnet: SubnetId) -> Option<North> {
        self.read(Fact::North(subnet));
        self.index.north(subnet)
    }

    /// Whether routers here lead out to a network by IPv6.
    pub(crate) fn is_north(&self, network: NetworkId) -> bool {
        self.read(Fact::NorthOf(network));
        self.index.north_gateways(network).is_some()
    }

    /// The gateways there of those that do.
    pub(crate) fn north_gateways(&self, network: NetworkId) -> impl Iterator<Item = Ipv6Addr> {
        self.read(Fact::NorthOf(network));
        self.index.north_gateways(network).into_iter().flatten().copied()
    }

    /// This host. Reads nothing: it is never another.
    pub(crate) const fn here(&self) -> HostId {
        self.host.host
    }

    /// The conntrack zone in which a router translates addresses here.
    pub(crate) fn snat_zone(&self, id: RouterId) -> Option<u16> {
        self.read(Fact::SnatZone(id));
        self.index.snat_zone(id)
    }

    /// The addresses of IPv4 that packets inside may come from where a router translates addresses here.
    pub(crate) fn inside(&self, id: RouterId) -> impl Iterator<Item = IpNet> {
        self.read(Fact::Inside(id));
        self.index.inside(id).into_iter().flatten().copied()
    }

    /// A network behind a router that translates addresses here.
    pub(crate) fn gated(&self, id: NetworkId) -> Option<Segment<'a>> {
        self.read(Fact::Gated(id));
        let network = self.index.is_gated(id).then(|| self.network(id)).flatten()?;
        Some(Segment { network, zone: self.zone(id)? })
    }

    /// A network, when it has a port here or an address outside of one.
    pub(crate) fn segment(&self, id: NetworkId) -> Option<Segment<'a>> {
        self.read(Fact::Near(id));
        let network = self.index.is_near(id).then(|| self.network(id)).flatten()?;
        Some(Segment { network, zone: self.zone(id)? })
    }

    /// The conntrack zone of a network.
    pub(crate) fn zone(&self, id: NetworkId) -> Option<u16> {
        self.read(Fact::Zone(id));
        self.index.zone(id)
    }

    /// Whether a zone has a network with a port here.
    pub(crate) fn is_near_zone(&self, zone: u16) -> bool {
        self.read(Fact::NearZone(zone));
        self.index.is_near_zone(zone)
    }

    /// Where a port is. Reads nothing that is not the port's own.
    pub(crate) fn place(&self, port: &Port) -> Place {
        place(port, self.host.host)
    }

    /// Whether a port is awaited here, and has not come: it is elsewhere, and its tap is here. Reads nothing that is not the port's own.
    pub(crate) fn is_awaited(&self, port: &Port) -> bool {
        port.is_awaited_on(self.host.host)
    }

    /// The tunnel endpoint of the other host that a port is awaited on.
    pub(crate) fn awaited_at(&self, port: &Port) -> Option<Ipv4Addr> {
        port.arriving.filter(|arrival| arrival.host != self.host.host).map(|arrival| arrival.tunnel)
    }

    /// Whether a port came here a while ago at most, so that connections go on that are not known here.
    pub(crate) fn is_settling(&self, port: &Port) -> bool {
        self.read(Fact::Number(port.tap_port()));
        self.numbers.settling.contains(&port.tap_port())
    }

    pub(crate) fn spot(&self, port: &'a Port) -> Spot<'a> {
        Spot { port, place: self.place(port), segment: self.segment(port.network) }
    }

    /// The ports of a network that are plugged in here or awaited here, in order of identity.
    pub(crate) fn locals(&self, id: NetworkId) -> Vec<Local<'a>> {
        self.read(Fact::Locals(id));
        let ports = self.index.locals(id).filter_map(|port| self.port(port));
        ports.map(|port| Local { port, number: self.number(port) }).collect()
    }

    /// The tunnel endpoints of the other hosts that have a port of a network.
    pub(crate) fn endpoints(&self, id: NetworkId) -> BTreeSet<Ipv4Addr> {
        self.read(Fact::Endpoints(id));
        self.index.endpoints(id)
    }

    /// Which host has a tunnel endpoint.
    pub(crate) fn host_of(&self, endpoint: Ipv4Addr) -> Option<HostId> {
        self.read(Fact::HostOf(endpoint));
        self.index.host_of(endpoint)
    }

    /// The subnet of a router's foot, and its network.
    pub(crate) fn subnet_of(&self, foot: &RouterInterface) -> Option<(&'a Subnet, &'a Network)> {
        let subnet = self.subnet(foot.subnet)?;
        Some((subnet, self.network(subnet.network)?))
    }

    /// The feet of routers in subnets of a network.
    #[expect(dead_code, reason = "for features whose unit is a network; those of routers read their own feet")]
    pub(crate) fn feet(&self, id: NetworkId) -> Vec<(&'a Router, &'a RouterInterface)> {
        let routers = self.routers_of(id);
        let all = routers.into_iter().flat_map(|router| router.interfaces.iter().map(move |foot| (router, foot)));
        all.filter(|(_, foot)| self.subnet(foot.subnet).is_some_and(|subnet| subnet.network == id)).collect()
    }

    /// The routers that have a foot in a network, in order of identity.
    pub(crate) fn routers_of(&self, id: NetworkId) -> Vec<&'a Router> {
        self.read(Fact::Feet(id));
        self.index.routers_of(id).filter_map(|router| self.router(router)).collect()
    }

    /// Whether a router has a foot in a network with a port here: others have no flows here.
    pub(crate) fn is_near_router(&self, id: RouterId) -> bool {
        self.read(Fact::NearRouter(id));
        self.index.is_near_router(id)
    }

    /// Whether routers here lead to a network.
    pub(crate) fn is_routed(&self, id: NetworkId) -> bool {
        self.read(Fact::Routed(id));
        self.index.is_routed(id)
    }

    /// The ports that have an address, on whatever network.
    pub(crate) fn ports_at(&self, address: IpAddr) -> Vec<&'a Port> {
        self.read(Fact::At(address));
        self.index.ports_at(address).filter_map(|port| self.port(port)).collect()
    }

    /// The identity of a port: stands for the set of its groups.
    pub(crate) fn identity(&self, port: &Port) -> u32 {
        self.identity_of(&identity::groups(port))
    }

    /// The identity of a set of groups.
    pub(crate) fn identity_of(&self, groups: &identity::Groups) -> u32 {
        self.read(Fact::Identities);
        self.index.identity(groups).unwrap_or(NOBODY)
    }

    /// Whether a port is guarded by stateless groups, and by no other: no connection of it is remembered.
    pub(crate) fn is_stateless(&self, port: &Port) -> bool {
        let remembers = |id: &SecurityGroupId| {
            self.read(Fact::Stateful(*id));
            self.host.groups.get(id).is_none_or(|group| group.stateful)
        };
        port.port_security && !port.groups.is_empty() && !port.groups.iter().any(remembers)
    }

    /// The identities of guarded ports here that are in a group.
    pub(crate) fn own_identities(&self, group: SecurityGroupId) -> BTreeSet<u32> {
        self.read(Fact::Own(group));
        self.index.own(group)
    }

    /// The identities of all ports that are in a group.
    pub(crate) fn identities_with(&self, group: SecurityGroupId) -> BTreeSet<u32> {
        self.read(Fact::With(group));
        self.index.with(group)
    }

    /// Whether ingress rules that hold here name a group as the other side.
    pub(crate) fn is_asked(&self, group: SecurityGroupId) -> bool {
        self.read(Fact::Asked(group));
        self.index.is_asked(group)
    }

    /// The number for the rules of one group towards another side.
    pub(crate) fn conjunction(&self, group: SecurityGroupId, remote: Other, direction: Direction) -> u32 {
        self.read(Fact::Conjunctions);
        self.index.conjunction(Pair { group, remote, direction })
    }
}

/// Where a port is, as seen from a host.
fn place(port: &Port, here: HostId) -> Place {
    match &port.binding {
        None => Place::Nowhere,
        Some(binding) if binding.host == here => Place::Here,
        Some(binding) => Place::There(binding.tunnel),
    }
}
