//! What flows are there for: the units that compile makes flows for, one at a time.
//!
//! Owns [`Unit`] and [`Fact`]. A unit is an object of the specification, or the host itself; a fact is something that a unit may have read while
//! its flows were made. When a fact changes, the units that read it are made again, and no others.
//! Invariant: a unit never reads anything but through [`View`](super::view::View), which writes the fact down.

use std::net::{IpAddr, Ipv4Addr};

use model::{AddressGroupId, BalancerId, FirewallPolicyId, NetworkId, PortId, RouterId, SecurityGroupId, SubnetId};

use crate::identity::Groups;

/// What a piece of the flow set is there for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Unit {
    /// What every host has.
    Host,
    /// A network.
    Network(NetworkId),
    /// A router.
    Router(RouterId),
    /// The firewall of a router.
    Firewall(RouterId),
    /// A firewall policy.
    FirewallPolicy(FirewallPolicyId),
    /// A security group.
    Group(SecurityGroupId),
    /// An address group.
    Addresses(AddressGroupId),
    /// A load balancer.
    Balancer(BalancerId),
    /// A port, here or elsewhere.
    Port(PortId),
    /// A port that gets copies of the frames of others.
    Mirror(PortId),
    /// A set of security groups that some port is in.
    Identity(Groups),
    /// The tunnel endpoint of another host.
    Endpoint(Ipv4Addr),
}

/// What a unit may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Fact {
    /// A network as it was given.
    Network(NetworkId),
    /// A subnet as it was given.
    Subnet(SubnetId),
    /// A router as it was given.
    Router(RouterId),
    /// A firewall policy as it was given.
    FirewallPolicy(FirewallPolicyId),
    /// The conntrack zone of what crosses the border of a router here.
    FirewallZone(RouterId),
    /// A security group as it was given.
    Group(SecurityGroupId),
    /// An address group as it was given.
    Addresses(AddressGroupId),
    /// What an address group is called.
    Named(AddressGroupId),
    /// Which rules that hold here name an address group.
    Users(AddressGroupId),
    /// A load balancer as it was given.
    Balancer(BalancerId),
    /// The conntrack zone of the balanced connections of a network.
    BalancerZone(NetworkId),
    /// A port as it was given.
    Port(PortId),
    /// What is known of a port that gets copies.
    Mirror(PortId),
    /// The OpenFlow port of a port, and its queue.
    Number(PortId),
    /// The OpenFlow port of the tunnel.
    Tunnel,
    /// The peers that tell whether they are alive, and their ports.
    Peers,
    /// Which of them are alive.
    Pulses,
    /// The OpenFlow ports of physical networks.
    Physical,
    /// The stations of a network outside that the agent found.
    Stations(NetworkId),
    /// Whether a network has a port here, a floating IP of one, or the address of a router.
    Near(NetworkId),
    /// Whether a network outside has an address here: a floating IP of a port, or that of a router.
    Outside(NetworkId),
    /// How what is in a subnet is reached by IPv6 from outside.
    North(SubnetId),
    /// Whether routers here lead out to a network by IPv6.
    NorthOf(NetworkId),
    /// The conntrack zone of a network.
    Zone(NetworkId),
    /// The conntrack zone in which a router translates addresses here.
    SnatZone(RouterId),
    /// The addresses of IPv4 that packets inside may come from where a router translates addresses here.
    Inside(RouterId),
    /// Whether a network is behind a router that translates addresses here.
    Gated(NetworkId),
    /// Whether a zone has a network with a port here.
    NearZone(u16),
    /// Which ports of a network are plugged in here.
    Locals(NetworkId),
    /// Which other hosts have a port of a network.
    Endpoints(NetworkId),
    /// Which routers have feet in a network.
    Feet(NetworkId),
    /// Whether a router has a foot in a network with a port here, or translates addresses here.
    NearRouter(RouterId),
    /// Whether routers here lead to a network.
    Routed(NetworkId),
    /// Whether a security group remembers connections.
    Stateful(SecurityGroupId),
    /// Which ports have an address.
    At(IpAddr),
    /// Which host has a tunnel endpoint.
    HostOf(Ipv4Addr),
    /// The identities of guarded ports here that are in a group.
    Own(SecurityGroupId),
    /// The identities of all ports that are in a group.
    With(SecurityGroupId),
    /// Whether rules that hold here name a group as the sender.
    Asked(SecurityGroupId),
    /// The numbers of identities that were given before.
    Identities,
    /// The numbers of conjunctions that were given before.
    Conjunctions,
}

impl Fact {
    /// The unit that reads this whether it is written down or not.
    pub(crate) const fn own_unit(self) -> Option<Unit> {
        match self {
            Self::Network(id) => Some(Unit::Network(id)),
            Self::Router(id) => Some(Unit::Router(id)),
            Self::FirewallPolicy(id) => Some(Unit::FirewallPolicy(id)),
            Self::Group(id) => Some(Unit::Group(id)),
            Self::Addresses(id) => Some(Unit::Addresses(id)),
            Self::Balancer(id) => Some(Unit::Balancer(id)),
            Self::Port(id) | Self::Number(id) => Some(Unit::Port(id)),
            Self::Mirror(id) => Some(Unit::Mirror(id)),
            Self::HostOf(endpoint) => Some(Unit::Endpoint(endpoint)),
            _ => None,
        }
    }
}
