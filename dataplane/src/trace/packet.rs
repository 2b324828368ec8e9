//! A packet as the pipeline sees it: fields with values, registers among them.
//!
//! Owns [`Packet`], the ways to make one, and its text for `ofproto/trace`. Never carries a payload.
//! Invariant: wide registers are held as the plain ones that they cover; a field that is absent reads as zero.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use model::Mac;
use model::network::{Port, RouterInterface};
use model::spec::HostNetwork;
use openflow::flow::{Field, FieldValue, Format, PortNo, Subfield, VLAN_PRESENT, eth_type, ip_proto};
use serde::{Deserialize, Serialize};

use crate::compile::PortNumbers;
use crate::family::{self, Family};
use crate::feature::service::{ADDRESS_V4, SERVICE_MAC};

/// What a packet carries above IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Payload {
    /// TCP with its ports.
    Tcp {
        /// Source port.
        source: u16,
        /// Destination port.
        target: u16,
    },
    /// UDP with its ports.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        target: u16,
    },
    /// ICMP, or ICMPv6 between IPv6 addresses, with its type and code.
    Icmp {
        /// Type: 8 is an echo request, 128 in ICMPv6.
        kind: u8,
        /// Code.
        code: u8,
    },
    /// Another protocol by number.
    Protocol(u8),
}

impl Payload {
    /// An echo request to an address.
    #[must_use]
    pub const fn ping(target: IpAddr) -> Self {
        Self::Icmp { kind: Family::of(target).echo().0, code: 0 }
    }
}

/// A packet can not be made as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// The sender is not plugged into this switch.
    #[error("make a packet from port {0}: it is not plugged in on this host")]
    NotHere(String),
    /// The sender has no address of the version asked for.
    #[error("make a packet from port {0}: it has no IPv{1} address")]
    NoAddress(String, u8),
    /// There is no tunnel to come out of.
    #[error("make a packet from the tunnel: this host has no tunnel port")]
    NoTunnel,
    /// The destination is outside of the sender's subnet, which has no router.
    #[error("make a packet from port {port} to {target}: no router leads out of its subnet")]
    NoGateway {
        /// The sender.
        port: String,
        /// The destination.
        target: IpAddr,
    },
}

/// The TTL that packets start with.
const TTL: u8 = 64;
/// The hop limit of neighbour discovery: no router has passed it on (RFC 4861 §3.1).
const NEIGHBOUR_TTL: u8 = 255;
const ROUTER_SOLICIT: u8 = 133;
const ROUTER_ADVERT: u8 = 134;
const NEIGHBOUR_SOLICIT: u8 = 135;
const NEIGHBOUR_ADVERT: u8 = 136;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const DHCP_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
/// The group of an address is this and its last 24 bits (RFC 4291 §2.7.1).
const SOLICITED_NODE: u128 = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0).to_bits();
/// What nobody has: where a packet goes to whose destination no ARP request would find.
const UNKNOWN_MAC: Mac = Mac::new([0x02, 0, 0, 0, 0, 0xff]);

/// The bits of a VLAN's number.
const VLAN_MASK: u16 = 0x0fff;

/// A packet. In JSON an object of field names and hexadecimal values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Packet {
    fields: BTreeMap<Field, u128>,
}

impl Packet {
    /// A packet that comes in on a port, of the version of its destination.
    #[must_use]
    pub fn ip(
        in_port: PortNo,
        macs: (Mac, Mac),
        addresses: (impl Into<IpAddr>, impl Into<IpAddr>),
        payload: Payload,
    ) -> Self {
        let (source, target) = (addresses.0.into(), addresses.1.into());
        let family = Family::of(target);
        let kind = if family == Family::V4 { eth_type::IPV4 } else { eth_type::IPV6 };
        let packet = Self::ethernet(in_port, macs, kind)
            .with(family.source(), family::value(source))
            .with(family.target(), family::value(target))
            .with(Field::IpTtl, TTL);
        match payload {
            Payload::Tcp { source, target } => {
                packet.with(Field::IpProto, ip_proto::TCP).with(Field::TcpSrc, source).with(Field::TcpDst, target)
            }
            Payload::Udp { source, target } => {
                packet.with(Field::IpProto, ip_proto::UDP).with(Field::UdpSrc, source).with(Field::UdpDst, target)
            }
            Payload::Icmp { kind, code } => {
                packet.with(Field::IpProto, family.icmp()).with(family.icmp_type(), kind).with(family.icmp_code(), code)
            }
            Payload::Protocol(number) => packet.with(Field::IpProto, number),
        }
    }

    /// A neighbour solicitation of `sender` (MAC and address) for `target`, to the group that the target listens on (RFC 4861 §4.3). From the
    /// unspecified address it asks whether the target is taken, and says no MAC address.
    #[must_use]
    pub fn neighbour_solicit(in_port: PortNo, sender: (Mac, Ipv6Addr), target: Ipv6Addr) -> Self {
        let [.., a, b, c] = target.octets();
        let group = Ipv6Addr::from_bits(SOLICITED_NODE | u128::from(u32::from_be_bytes([0, a, b, c])));
        let packet = Self::neighbour(in_port, (sender.0, group_mac(group)), (sender.1, group), NEIGHBOUR_SOLICIT)
            .with(Field::NdTarget, target);
        if sender.1.is_unspecified() { packet } else { packet.with(Field::NdSll, sender.0.bytes()) }
    }

    /// A neighbour advertisement that nobody asked for: `sender` (MAC and address) says that it has `target` (RFC 4861 §7.2.6).
    #[must_use]
    pub fn neighbour_advert(in_port: PortNo, sender: (Mac, Ipv6Addr), target: Ipv6Addr) -> Self {
        Self::neighbour(in_port, (sender.0, group_mac(ALL_NODES)), (sender.1, ALL_NODES), NEIGHBOUR_ADVERT)
            .with(Field::NdTarget, target)
            .with(Field::NdTll, sender.0.bytes())
    }

    /// A router solicitation of `sender` (RFC 4861 §4.1).
    #[must_use]
    pub fn router_solicit(in_port: PortNo, sender: (Mac, Ipv6Addr)) -> Self {
        Self::neighbour(in_port, (sender.0, group_mac(ALL_ROUTERS)), (sender.1, ALL_ROUTERS), ROUTER_SOLICIT)
    }

    /// A router advertisement of `sender` to every station (RFC 4861 §4.2).
    #[must_use]
    pub fn router_advert(in_port: PortNo, sender: (Mac, Ipv6Addr)) -> Self {
        Self::neighbour(in_port, (sender.0, group_mac(ALL_NODES)), (sender.1, ALL_NODES), ROUTER_ADVERT)
    }

    /// A DHCPv6 message of a client (RFC 9915 §7.1).
    #[must_use]
    pub fn dhcp6_solicit(in_port: PortNo, client: Mac) -> Self {
        let macs = (client, group_mac(DHCP_SERVERS));
        Self::ip(in_port, macs, (client.link_local(), DHCP_SERVERS), Payload::Udp { source: 546, target: 547 })
    }

    fn neighbour(in_port: PortNo, macs: (Mac, Mac), addresses: (Ipv6Addr, Ipv6Addr), kind: u8) -> Self {
        Self::ip(in_port, macs, addresses, Payload::Icmp { kind, code: 0 }).with(Field::IpTtl, NEIGHBOUR_TTL)
    }

    /// An ARP request of `sender` (MAC and address) for `target`, broadcast.
    #[must_use]
    pub fn arp_request(in_port: PortNo, sender: (Mac, Ipv4Addr), target: Ipv4Addr) -> Self {
        Self::ethernet(in_port, (sender.0, Mac::BROADCAST), eth_type::ARP)
            .with(Field::ArpOp, 1)
            .with(Field::ArpSha, sender.0.bytes())
            .with(Field::ArpSpa, sender.1)
            .with(Field::ArpTpa, target)
    }

    /// A DHCP request of a client without an address.
    #[must_use]
    pub fn dhcp_discover(in_port: PortNo, client: Mac) -> Self {
        let addresses = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
        Self::ip(in_port, (client, Mac::BROADCAST), addresses, Payload::Udp { source: 68, target: 67 })
    }

    /// The packet that a port here would send to an address: straight to a neighbour, by its router to everybody else.
    ///
    /// # Errors
    /// [`PacketError`] says what the port lacks.
    pub fn from_port(
        host: &HostNetwork,
        numbers: &PortNumbers,
        port: &Port,
        target: impl Into<IpAddr>,
        payload: Payload,
    ) -> Result<Self, PacketError> {
        let target = target.into();
        let number = numbers.of(port).ok_or_else(|| PacketError::NotHere(port.name.clone()))?;
        let sent = |macs, source: IpAddr| Self::ip(number, macs, (source, target), payload).sent_by(port);
        if let IpAddr::V4(ADDRESS_V4) = target {
            let source = first_address(port, Family::V4)?;
            return Ok(sent((port.mac, SERVICE_MAC), source));
        }
        if let Some(mac) = link_local_neighbour(host, port, target) {
            return Ok(sent((port.mac, mac), port.mac.link_local().into()));
        }
        let address = first_address(port, Family::of(target))?;
        let subnet = port.addresses.iter().find(|fixed| fixed.address == address);
        let subnet = subnet.and_then(|fixed| host.subnets.get(&fixed.subnet));
        let mac = if subnet.is_some_and(|subnet| subnet.cidr.contains(&target)) {
            neighbour(host, port, target).unwrap_or(UNKNOWN_MAC)
        } else {
            let gateway = subnet.and_then(|subnet| {
                let feet =
                    || host.routers.values().flat_map(|router| &router.interfaces).filter(|f| f.subnet == subnet.id);
                feet().find(|foot| Some(foot.address) == subnet.gateway).or_else(|| feet().next())
            });
            gateway.ok_or_else(|| PacketError::NoGateway { port: port.name.clone(), target })?.mac
        };
        Ok(sent((port.mac, mac), address))
    }

    /// This packet as it comes out of a tunnel at another host, from the sender's endpoint: what the other host's switch sees of it.
    #[must_use]
    pub fn out_of_tunnel(&self, tunnel: PortNo, (from, vni): (Ipv4Addr, u32)) -> Self {
        let fields = self.fields.iter().filter(|(field, _)| is_header(**field)).map(|(field, value)| (*field, *value));
        let packet = Self { fields: fields.collect() };
        packet.with(Field::InPort, tunnel).with(Field::TunSrc, from).with(Field::TunId, vni)
    }

    fn ethernet(in_port: PortNo, (source, target): (Mac, Mac), kind: u16) -> Self {
        Self::default()
            .with(Field::InPort, in_port)
            .with(Field::EthSrc, source.bytes())
            .with(Field::EthDst, target.bytes())
            .with(Field::EthType, kind)
    }

    /// With a field set.
    #[must_use]
    pub fn with(mut self, field: Field, value: impl Into<FieldValue>) -> Self {
        self.set(Subfield::whole(field), value.into().0);
        self
    }

    /// The value of a field.
    #[must_use]
    pub fn get(&self, field: Field) -> u128 {
        match field.covered_registers() {
            [] => self.fields.get(&field).copied().unwrap_or(0),
            parts => parts.iter().fold(0, |wide, part| wide << 32 | self.get(*part)),
        }
    }

    /// The value of a field that holds an IPv4 address.
    #[must_use]
    pub fn address(&self, field: Field) -> Ipv4Addr {
        u32::try_from(self.get(field)).map_or(Ipv4Addr::UNSPECIFIED, Ipv4Addr::from_bits)
    }

    /// The value of some bits.
    pub(super) fn bits(&self, bits: Subfield) -> u128 {
        (self.get(bits.field()) & bits.mask()) >> bits.start()
    }

    /// Writes some bits.
    pub(super) fn set(&mut self, bits: Subfield, value: u128) {
        self.set_masked(bits.field(), value << bits.start(), bits.mask());
    }

    /// Writes the bits of a field that the mask names.
    pub(super) fn set_masked(&mut self, field: Field, value: u128, mask: u128) {
        let parts = field.covered_registers();
        for (index, part) in parts.iter().rev().enumerate() {
            let low = |wide: u128| wide >> (32 * index) & u128::from(u32::MAX);
            self.set_masked(*part, low(value), low(mask));
        }
        if parts.is_empty() {
            let value = self.get(field) & !mask | value & mask;
            self.fields.insert(field, value);
        }
    }

    /// The VLAN of its tag.
    #[must_use]
    pub fn vlan(&self) -> Option<u16> {
        let tag = u16::try_from(self.get(Field::VlanVid)).unwrap_or(0);
        (tag & VLAN_PRESENT != 0).then_some(tag & VLAN_MASK)
    }

    /// With the tag of a VLAN.
    #[must_use]
    pub fn in_vlan(mut self, vlan: u16) -> Self {
        // The bit that says that there is a tag is none that an action could write.
        self.fields.insert(Field::VlanVid, u128::from(VLAN_PRESENT | vlan & VLAN_MASK));
        self
    }

    /// With the tag that a port's frames have on its tap.
    #[must_use]
    pub fn sent_by(self, port: &Port) -> Self {
        match port.tag() {
            Some(vlan) => self.in_vlan(vlan.get()),
            None => self,
        }
    }

    /// Puts a tag on, of VLAN 0.
    pub(super) fn tag(&mut self) {
        self.fields.insert(Field::VlanVid, VLAN_PRESENT.into());
    }

    /// Takes the tag off.
    pub(super) fn untag(&mut self) {
        self.fields.remove(&Field::VlanVid);
        self.fields.remove(&Field::VlanPcp);
    }

    /// The headers in the syntax that `ofproto/trace` takes: unlike matches, transport ports under the name of their protocol.
    #[must_use]
    pub fn to_text(&self) -> String {
        let kind = match (u16::try_from(self.get(Field::EthType)), u8::try_from(self.get(Field::IpProto))) {
            (Ok(eth_type::ARP), _) => "arp".to_owned(),
            (Ok(eth_type::IPV4), Ok(ip_proto::TCP)) => "tcp".to_owned(),
            (Ok(eth_type::IPV4), Ok(ip_proto::UDP)) => "udp".to_owned(),
            (Ok(eth_type::IPV4), Ok(ip_proto::ICMP)) => "icmp".to_owned(),
            (Ok(eth_type::IPV4), Ok(number)) => format!("ip,nw_proto={number}"),
            (Ok(eth_type::IPV6), Ok(ip_proto::TCP)) => "tcp6".to_owned(),
            (Ok(eth_type::IPV6), Ok(ip_proto::UDP)) => "udp6".to_owned(),
            (Ok(eth_type::IPV6), Ok(ip_proto::ICMPV6)) => "icmp6".to_owned(),
            (Ok(eth_type::IPV6), Ok(number)) => format!("ipv6,nw_proto={number}"),
            (kind, _) => format!("dl_type={:#06x}", kind.unwrap_or(0)),
        };
        let shown = self.fields.iter().filter(|(field, value)| {
            let implied = matches!(field, Field::EthType | Field::IpProto);
            !implied
                && (is_header(**field) || matches!(field, Field::InPort | Field::TunId | Field::TunSrc) && **value != 0)
        });
        shown.fold(kind, |text, (field, value)| format!("{text},{}={}", name(*field), print(*field, *value)))
    }
}

/// Whether a field is of the packet, not of the switch.
fn is_header(field: Field) -> bool {
    field >= Field::EthSrc
}

const fn name(field: Field) -> &'static str {
    match field {
        Field::InPort => "in_port",
        _ => FIELD_NAMES[field as usize],
    }
}

/// The names that `set_field` uses are those that `ofproto/trace` takes.
const FIELD_NAMES: [&str; openflow::flow::FIELDS.len()] = {
    let mut names = [""; openflow::flow::FIELDS.len()];
    let mut index = 0;
    while index < names.len() {
        names[index] = openflow::flow::FIELDS[index].name;
        index += 1;
    }
    names
};

fn print(field: Field, value: u128) -> String {
    match field.info().format {
        Format::Ethernet => {
            let [.., a, b, c, d, e, g] = value.to_be_bytes();
            Mac::new([a, b, c, d, e, g]).to_string()
        }
        Format::Ipv6 => Ipv6Addr::from_bits(value).to_string(),
        Format::Ipv4 => u32::try_from(value).map_or(Ipv4Addr::UNSPECIFIED, Ipv4Addr::from_bits).to_string(),
        Format::Hexadecimal => format!("{value:#x}"),
        _ => value.to_string(),
    }
}

/// The port's first address of a version.
pub(super) fn first_address(port: &Port, family: Family) -> Result<IpAddr, PacketError> {
    let mut addresses = port.addresses.iter().map(|fixed| fixed.address).filter(|a| Family::of(*a) == family);
    addresses.next().ok_or_else(|| PacketError::NoAddress(port.name.clone(), family.number()))
}

/// The port's first IPv4 address.
pub(super) fn first_ipv4(port: &Port) -> Result<Ipv4Addr, PacketError> {
    let addresses = port.addresses.iter().map(|fixed| fixed.address);
    let mut plain =
        addresses.filter_map(|address| if let IpAddr::V4(address) = address { Some(address) } else { None });
    plain.next().ok_or_else(|| PacketError::NoAddress(port.name.clone(), Family::V4.number()))
}

/// Text that names no field, or no value of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read a packet's {field} from {value:?}: want the name of a field and a hexadecimal value that fits it")]
pub struct PacketTextError {
    /// The name given.
    pub field: String,
    /// The value given.
    pub value: String,
}

impl TryFrom<BTreeMap<String, String>> for Packet {
    type Error = PacketTextError;

    fn try_from(text: BTreeMap<String, String>) -> Result<Self, Self::Error> {
        let mut packet = Self::default();
        for (field, value) in text {
            let known = openflow::flow::FIELDS.iter().find(|info| info.name == field).map(|info| info.field);
            let number = value.strip_prefix("0x").and_then(|digits| u128::from_str_radix(digits, 16).ok());
            match (known, number) {
                (Some(known), Some(number)) if number <= known.full_mask() => {
                    packet.set_masked(known, number, known.full_mask());
                }
                _ => return Err(PacketTextError { field, value }),
            }
        }
        Ok(packet)
    }
}

impl From<Packet> for BTreeMap<String, String> {
    fn from(packet: Packet) -> Self {
        packet.fields.iter().map(|(field, value)| (field.info().name.to_owned(), format!("{value:#x}"))).collect()
    }
}

/// The MAC address that ARP or neighbour discovery would find for an address on the port's network.
fn neighbour(host: &HostNetwork, port: &Port, target: IpAddr) -> Option<Mac> {
    let has =
        |other: &&Port| other.network == port.network && other.addresses.iter().any(|fixed| fixed.address == target);
    let router = || near_feet(host, port).find(|foot| foot.address == target).map(|foot| foot.mac);
    let floating = || {
        let externals = host.routers.values().filter_map(|router| router.external.as_ref());
        let on_it = |id| host.subnets.get(&id).is_some_and(|subnet| subnet.network == port.network);
        let mut own = externals.filter(|out| on_it(out.subnet)).flat_map(|out| {
            let floating = out.floating_ips.iter().map(|floating| (floating.address, floating.mac));
            floating.chain(out.snat.iter().map(|snat| (snat.address, snat.mac)))
        });
        own.find(|(address, _)| target == IpAddr::V4(*address)).map(|(_, mac)| mac)
    };
    let balancer = || {
        let on_it = |id| host.subnets.get(&id).is_some_and(|subnet| subnet.network == port.network);
        let mut own = host.balancers.values().filter(|balancer| on_it(balancer.subnet));
        own.find(|balancer| balancer.address == target).map(|balancer| balancer.mac)
    };
    host.ports.values().find(has).map(|other| other.mac).or_else(router).or_else(floating).or_else(balancer)
}

/// The same for a link-local address; none for any other.
fn link_local_neighbour(host: &HostNetwork, port: &Port, target: IpAddr) -> Option<Mac> {
    let IpAddr::V6(target) = target else { return None };
    if !target.is_unicast_link_local() {
        return None;
    }
    let near = host.ports.values().filter(|other| other.network == port.network).map(|other| other.mac);
    let mut macs = near.chain(near_feet(host, port).map(|foot| foot.mac));
    Some(macs.find(|mac| mac.link_local() == target).unwrap_or(UNKNOWN_MAC))
}

/// The feet of routers on the port's network.
fn near_feet<'a>(host: &'a HostNetwork, port: &'a Port) -> impl Iterator<Item = &'a RouterInterface> {
    let feet = host.routers.values().flat_map(|router| &router.interfaces);
    feet.filter(|foot| host.subnets.get(&foot.subnet).is_some_and(|subnet| subnet.network == port.network))
}

/// The Ethernet group of an IPv6 group (RFC 2464 §7).
fn group_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    Mac::new([0x33, 0x33, a, b, c, d])
}
