//! Networks, subnets, routers and ports, as a host needs to know them.
//!
//! The numbers that flows carry (VNI, router and port keys) are given once by the scheduler and stay with the object, so that two hosts, or one
//! host before and after a restart, say the same.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::address::{Mac, Vni};
use crate::arrival::Arrival;
use crate::domain::Domain;
use crate::firewall::Firewall;
use crate::id::{HostId, MachineId, NetworkId, PortId, RouterId, SecurityGroupId, SubnetId};
use crate::mirror::Mirror;
use crate::provider::{Provider, VlanId};
use crate::qos::Qos;

/// A network: one layer-2 segment, carried between hosts in VXLAN, or a part of a physical network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Identity.
    pub id: NetworkId,
    /// Name given by its owner.
    pub name: String,
    /// Its number in tunnels and in flows: unique in the cloud.
    pub vni: Vni,
    /// The largest IP packet in bytes that a port may send: 68 (IPv4) or 1280 (IPv6) to 9000.
    pub mtu: u16,
    /// Where it is, for a network of the data centre; none: a tenant's, in tunnels.
    #[serde(default)]
    pub provider: Option<Provider>,
    /// What the data centre routes there, of IPv6: subnets behind routers with a way out to it are reached from outside when they lie in one of these.
    /// Others stay inside. An agent from before these refuses a network that has some.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routed_prefixes: Vec<Ipv6Net>,
}

/// A range of addresses on a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subnet {
    /// Identity.
    pub id: SubnetId,
    /// Name given by its owner.
    pub name: String,
    /// The network it is on.
    pub network: NetworkId,
    /// The addresses, host bits zero.
    pub cidr: IpNet,
    /// The address of the default gateway, inside `cidr`; none: no way out is announced.
    pub gateway: Option<IpAddr>,
    /// Whether DHCP answers on this subnet: DHCPv4, or DHCPv6 with its addresses. Routers are advertised either way.
    pub dhcp: bool,
    /// Name servers announced by DHCP and in router advertisements.
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    /// What else is announced.
    #[serde(default)]
    pub announced: Announced,
}

/// What DHCP, DHCPv6 and router advertisements say of a subnet beside addresses, routers and name servers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Announced {
    /// The domain that machines are in.
    #[serde(default)]
    pub domain: Option<Domain>,
    /// Domains that short names are looked up in, beside that one.
    #[serde(default)]
    pub search: Vec<Domain>,
    /// Time servers, each of the subnet's version of IP.
    #[serde(default)]
    pub ntp: Vec<IpAddr>,
    /// Routes beside the default one, each of the subnet's version of IP; IPv6 has no way to announce them (RFC 8415 knows none).
    #[serde(default)]
    pub routes: Vec<StaticRoute>,
}

/// A way to a range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StaticRoute {
    /// The range.
    pub destination: IpNet,
    /// The neighbour that leads there.
    pub next_hop: IpAddr,
}

/// A router between subnets, present on every host at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Router {
    /// Identity.
    pub id: RouterId,
    /// Name given by its owner.
    pub name: String,
    /// Number of its routing table in flows and its conntrack zone: 1 to 65535, unique in the cloud.
    pub key: u16,
    /// Its feet, each in one subnet.
    pub interfaces: Vec<RouterInterface>,
    /// Ways beyond its subnets. Several next hops for one destination share its connections.
    #[serde(default)]
    pub routes: Vec<StaticRoute>,
    /// Its way out of the cloud; none: it joins its subnets only.
    #[serde(default)]
    pub external: Option<ExternalGateway>,
    /// Its way out by IPv6; none: its subnets of IPv6 stay inside. An agent from before these refuses a router that has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6_gateway: Option<Ipv6Gateway>,
    /// What judges all that crosses its ways out; none: nothing does. An agent from before firewalls refuses a router that has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firewall: Option<Firewall>,
}

/// A router's way out: a subnet of the data centre, and the addresses there that stand for ports behind the router. The subnet's gateway is the next
/// hop to everywhere else. Every host is the router; the address that it has there, it has on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalGateway {
    /// The subnet, of IPv4, on a provider network.
    pub subnet: SubnetId,
    /// The address that ports without a floating IP share for connections that they begin; none: such ports do not get out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snat: Option<Snat>,
    /// The addresses that stand for ports.
    #[serde(default)]
    pub floating_ips: Vec<FloatingIp>,
}

/// A router's way out by IPv6: a subnet of the data centre, whose gateway is the next hop to everywhere else. Nothing is translated: ports behind the router
/// leave from their own hosts with the addresses that they have, when those lie in what the data centre routes there ([`Network::routed_prefixes`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ipv6Gateway {
    /// The subnet, of IPv6, on a provider network.
    pub subnet: SubnetId,
    /// The router's own address there: what the data centre may route those prefixes by.
    pub address: Ipv6Addr,
    /// Its MAC address there.
    pub mac: Mac,
    /// The hosts that may have that address: the first one has, the others stand by in this order.
    #[serde(default)]
    pub gateways: Vec<GatewayHost>,
}

/// The router's own address on an external subnet: all ports behind it leave as that, and are reached by it at the ports that it forwards only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snat {
    /// The address.
    pub address: Ipv4Addr,
    /// Its MAC address there.
    pub mac: Mac,
    /// The hosts that may be the gateway: the first one is, the others stand by in this order.
    #[serde(default)]
    pub gateways: Vec<GatewayHost>,
    /// The ports of the address that lead to ports behind the router.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forwardings: Vec<PortForwarding>,
}

/// A port of a router's own address outside that leads to one of an address behind the router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortForwarding {
    /// Of what.
    pub protocol: ForwardedProtocol,
    /// The port outside: 1 to 65535.
    pub external_port: u16,
    /// The port that has the address.
    pub port: PortId,
    /// The address behind the router.
    pub internal_ip_address: Ipv4Addr,
    /// The port there: 1 to 65535.
    pub internal_port: u16,
}

/// What has ports that can be forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ForwardedProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A host that leads a router's packets out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayHost {
    /// The host.
    pub host: HostId,
    /// Its tunnel endpoint on the underlay.
    pub tunnel: Ipv4Addr,
}

/// An address of an external subnet that stands for an address of a port, in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FloatingIp {
    /// The external address.
    pub address: Ipv4Addr,
    /// Its MAC address there: its own, for it is at one host at a time, and not at the same one as another's.
    pub mac: Mac,
    /// The port that it stands for.
    pub port: PortId,
    /// The address of that port that it stands for.
    pub fixed: Ipv4Addr,
}

/// A router's foot in a subnet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterInterface {
    /// The subnet.
    pub subnet: SubnetId,
    /// The router's address there; mostly the subnet's gateway.
    pub address: IpAddr,
    /// The router's MAC address there: the same on every host.
    pub mac: Mac,
}

/// How MAC addresses of routed IPv6 addresses begin; no port of a provider network has one of these for its own.
pub const ROUTED_MAC: [u8; 2] = [0x02, 0x06];

/// A virtual network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Identity.
    pub id: PortId,
    /// Name given by its owner; DHCP and DNS use the VM's name, not this.
    pub name: String,
    /// The network it is on.
    pub network: NetworkId,
    /// Number of this port in flows: unique in the cloud, 1 and up, never used again for another port.
    pub key: u32,
    /// Its MAC address: unique in its network.
    pub mac: Mac,
    /// Its addresses; with port security it may send from no other.
    pub addresses: Vec<FixedIp>,
    /// The security groups that it is in.
    pub groups: Vec<SecurityGroupId>,
    /// What it may send from beside its own addresses; without port security it may send from anything.
    #[serde(default)]
    pub allowed_pairs: Vec<AllowedPair>,
    /// What it may send and receive in a second, and how its packets are marked.
    #[serde(default)]
    pub qos: Qos,
    /// Whether spoofed sources are dropped and security groups hold. Off: everything passes.
    pub port_security: bool,
    /// Where it is plugged in; none: nowhere yet.
    pub binding: Option<Binding>,
    /// The trunk that it is a part of; none: it has a tap of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trunk: Option<SubPort>,
    /// Who gets copies of its frames; none: nobody. In a specification only of ports on its host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Mirror>,
    /// The other host that it is awaited on; none: it stays where it is. Written only where it is so: agents from before it refuse what they do not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arriving: Option<Arrival>,
}

/// What makes a port a part of another one's trunk: it has no tap, its frames come and go on that of its parent with the tag of a VLAN. The parent
/// itself has the frames without a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubPort {
    /// The port that has the tap: no sub-port itself.
    pub parent: PortId,
    /// The VLAN whose tag its frames have there: unique on the trunk, and of no meaning elsewhere.
    pub vlan: VlanId,
}

/// An address that a port owns.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FixedIp {
    /// The subnet that the address is from.
    pub subnet: SubnetId,
    /// The address.
    pub address: IpAddr,
}

/// Addresses that a port may send from though they are not its own, as the members of a VRRP group do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllowedPair {
    /// The addresses.
    pub addresses: IpNet,
    /// The MAC address that they come with; none: the port's own.
    #[serde(default)]
    pub mac: Option<Mac>,
}

/// Where a port is plugged in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Binding {
    /// The VM that has the port.
    pub machine: MachineId,
    /// The VM's name: what DHCP gives as host name.
    pub hostname: String,
    /// The host that the VM runs on.
    pub host: HostId,
    /// That host's tunnel endpoint on the underlay.
    pub tunnel: Ipv4Addr,
}

impl ForwardedProtocol {
    /// Its name, as it is written in requests.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl std::fmt::Display for ForwardedProtocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::fmt::Display for PortForwarding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { protocol, external_port, internal_ip_address, internal_port, .. } = self;
        write!(f, "{protocol} {external_port} to {internal_ip_address}:{internal_port}")
    }
}

impl Snat {
    /// The host that has the address; none: no host leads out.
    #[must_use]
    pub fn gateway(&self) -> Option<GatewayHost> {
        self.gateways.first().copied()
    }
}

impl Router {
    /// The router's own address outside, when `host` is the one that has it.
    #[must_use]
    pub fn snat_on(&self, host: HostId) -> Option<&Snat> {
        let snat = self.external.as_ref()?.snat.as_ref()?;
        snat.gateway().filter(|gateway| gateway.host == host).map(|_| snat)
    }

    /// Its way out by IPv6, when `host` has the router's address there or stands by to have it, with the gateways that come before that host.
    #[must_use]
    pub fn ipv6_gateway_among(&self, host: HostId) -> Option<(&Ipv6Gateway, &[GatewayHost])> {
        let gateway = self.ipv6_gateway.as_ref()?;
        let rank = gateway.gateways.iter().position(|gateway| gateway.host == host)?;
        Some((gateway, gateway.gateways.get(..rank)?))
    }

    /// The router's own address outside, when `host` has it or stands by to have it, with the gateways that come before that host.
    #[must_use]
    pub fn snat_among(&self, host: HostId) -> Option<(&Snat, &[GatewayHost])> {
        let snat = self.external.as_ref()?.snat.as_ref()?;
        let rank = snat.gateways.iter().position(|gateway| gateway.host == host)?;
        Some((snat, snat.gateways.get(..rank)?))
    }
}

impl Network {
    /// Whether a subnet lies in what the data centre routes there.
    #[must_use]
    pub fn routes(&self, subnet: IpNet) -> bool {
        matches!(subnet, IpNet::V6(subnet) if self.routed_prefixes.iter().any(|prefix| prefix.contains(&subnet)))
    }
}

impl RouterInterface {
    /// The IPv6 addresses that the router has there: its own and the link-local one; none in an IPv4 subnet.
    pub fn ipv6_addresses(&self) -> impl Iterator<Item = Ipv6Addr> {
        with_link_local([self.address].into_iter(), self.mac)
    }
}

/// The IPv6 addresses among these, with the link-local address of the interface first; nothing when there is none.
fn with_link_local(addresses: impl Iterator<Item = IpAddr>, mac: Mac) -> impl Iterator<Item = Ipv6Addr> {
    let plain = addresses.filter_map(|address| if let IpAddr::V6(address) = address { Some(address) } else { None });
    let mut plain = plain.peekable();
    let link_local = plain.peek().map(|_| mac.link_local());
    link_local.into_iter().chain(plain)
}

impl Port {
    /// The IPv6 addresses that this port may use: its own, and the link-local one that its MAC address makes. A port without an IPv6 address of its
    /// own has no link-local one either: it does not speak IPv6.
    pub fn ipv6_addresses(&self) -> impl Iterator<Item = Ipv6Addr> {
        with_link_local(self.addresses.iter().map(|fixed| fixed.address), self.mac)
    }

    /// The MAC address that its routed IPv6 addresses have on a provider network: made from its key, so that it goes where the port goes and no other host
    /// sends with it.
    #[must_use]
    pub const fn routed_mac(&self) -> Mac {
        let [a, b, c, d] = self.key.to_be_bytes();
        let [first, second] = ROUTED_MAC;
        Mac::new([first, second, a, b, c, d])
    }

    /// What this port may send from beside its own addresses: ranges, each with its MAC address.
    pub fn pairs(&self) -> impl Iterator<Item = (IpNet, Mac)> {
        self.allowed_pairs.iter().map(|pair| (pair.addresses.trunc(), pair.mac.unwrap_or(self.mac)))
    }

    /// Whether this port is plugged in on `host`.
    #[must_use]
    pub fn is_on(&self, host: HostId) -> bool {
        self.binding.as_ref().is_some_and(|binding| binding.host == host)
    }

    /// Whether this port is awaited on `host`, and has not come yet.
    #[must_use]
    pub fn is_awaited_on(&self, host: HostId) -> bool {
        self.arriving.is_some_and(|arrival| arrival.host == host) && !self.is_on(host)
    }

    /// The port at whose tap this one is plugged in: its parent, or itself.
    #[must_use]
    pub fn tap_port(&self) -> PortId {
        self.trunk.map_or(self.id, |trunk| trunk.parent)
    }

    /// The VLAN whose tag its frames have on the tap; none: they have no tag.
    #[must_use]
    pub fn tag(&self) -> Option<VlanId> {
        self.trunk.map(|trunk| trunk.vlan)
    }

    /// The name of the tap device of this port on its host: within the 15 characters that Linux allows. A sub-port has none, see
    /// [`HostNetwork::tap_of`](crate::spec::HostNetwork::tap_of).
    #[must_use]
    pub fn tap_name(&self) -> String {
        format!("tap{}", self.key)
    }
}
