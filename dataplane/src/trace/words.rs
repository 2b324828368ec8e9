//! What flows do, in the words of those who own the objects.

use std::net::{IpAddr, Ipv4Addr};

use openflow::flow::{
    Action, Ct, CtZone, Field, Flow, MeterUnit, NatRange, NatSide, PortNo, SetField, VLAN_PRESENT, eth_type,
};

use super::Packet;
use crate::cookie::{Cookie, Object};
use crate::dns;
use crate::family::Family;
use crate::feature::service::METADATA_PORT;
use crate::flow_set::{FlowSet, GroupNumber};
use crate::punt::Punt;
use crate::register::{self, FLAGS, Register};
use crate::table::Table;

/// The name of an object, or what it is when nobody named it.
fn name(set: &FlowSet, object: Object) -> String {
    set.name_of(object).map_or_else(|| object.to_string(), str::to_owned)
}

pub(super) fn port(set: &FlowSet, key: u32) -> String {
    name(set, Object::Port(key))
}

/// Who owns a flow; nobody owns those of the pipeline itself.
pub(super) fn owner(set: &FlowSet, flow: &Flow) -> Option<String> {
    let object = Cookie::from_wire(flow.cookie).map(|cookie| cookie.object).filter(|o| *o != Object::Pipeline)?;
    let name = name(set, object);
    Some(if matches!(object, Object::Port(_)) { format!("this host for {name}") } else { name })
}

/// Why a table sent a packet to be dropped, with the guarded side that it was judged for.
pub(super) fn blame(set: &FlowSet, table: u8, packet: &Packet, meaning: &str) -> String {
    let side = match Table::by_number(table) {
        Some(Table::Egress) => (register::SOURCE, register::SOURCE_IDENTITY),
        Some(Table::Ingress) => (register::TARGET, register::TARGET_IDENTITY),
        _ => return meaning.to_owned(),
    };
    let value = |register: Register| u32::try_from(packet.get(register.field)).unwrap_or(0);
    let (port, groups) = (port(set, value(side.0)), name(set, Object::Identity(value(side.1))));
    format!("{meaning} ({port}: {groups})")
}

/// The port of DNS, as a field has it.
const DNS: u128 = dns::PORT as u128;

/// What the agent is asked.
pub(super) fn punt(set: &FlowSet, punt: Punt, packet: &Packet) -> String {
    let port_key = match punt {
        Punt::Question { port } => port,
        Punt::Health { port: key } => return format!("answer of {} to a health check", port(set, key)),
        Punt::Arrival { port: key } => {
            return format!("{} has come: it is switched to this host, and lets the frame in again", port(set, key));
        }
        Punt::TooLarge { network, .. } => {
            return format!("it tells the sender what {} carries", name(set, Object::Network(network)));
        }
        Punt::Quoted { from, to, .. } => {
            return format!("it puts {to} in the place of {from} in what the error quotes, and lets it go on");
        }
        Punt::Station { network } => {
            let network = name(set, Object::Network(network));
            return if packet.get(Field::EthType) == eth_type::IPV6.into() {
                let target = Family::V6.address(packet.get(Field::NdTarget));
                match packet.get(Field::Icmpv6Type) {
                    135 => format!("it says who has {target} on {network}"),
                    136 => format!("who has {target} on {network}, as it tells"),
                    _ => format!("who has {} on {network}", destination(packet)),
                }
            } else if packet.get(Field::ArpOp) == 0 {
                format!("who has {} on {network}", packet.address(Field::Ipv4Dst))
            } else {
                format!("who has {} on {network}, as it tells", packet.address(Field::ArpSpa))
            };
        }
    };
    let what = match (packet.get(Field::UdpDst), packet.get(Field::Icmpv6Type)) {
        _ if packet.get(Field::TcpDst) == METADATA_PORT.into() => "request for metadata",
        _ if packet.get(Field::TcpDst) == DNS => "DNS question",
        (DNS, _) => "DNS question",
        (67, _) => "DHCP request",
        (547, _) => "DHCPv6 request",
        (_, 133) => "router solicitation",
        (_, 135) => "neighbour solicitation",
        _ => "question",
    };
    format!("{what} of {}", port(set, port_key))
}

pub(super) fn group(set: &FlowSet, number: u32) -> String {
    match GroupNumber::from_wire(number) {
        Some(GroupNumber::FloodHere(vni)) => format!("every port of {} here", name(set, Object::Network(vni))),
        Some(GroupNumber::FloodEverywhere(vni)) => format!("every port of {}", name(set, Object::Network(vni))),
        Some(GroupNumber::FloodPart(vni, _)) => {
            format!("some of the ports of {} here", name(set, Object::Network(vni)))
        }
        Some(GroupNumber::OtherHosts(vni)) => format!("every other host of {}", name(set, Object::Network(vni))),
        Some(GroupNumber::NextHops(router, _)) => {
            format!("one of the next hops of {}", name(set, Object::Router(router.into())))
        }
        Some(GroupNumber::Members(balancer, _)) => {
            format!("one of the members of {}", name(set, Object::Balancer(balancer.into())))
        }
        Some(GroupNumber::Gateways(router)) => {
            format!("the first gateway of {} that is alive", name(set, Object::Router(router.into())))
        }
        Some(GroupNumber::Gate(router, _)) => {
            format!("the gateway of {} before this host", name(set, Object::Router(router.into())))
        }
        Some(GroupNumber::OtherMembers(balancer, ..)) => {
            format!("one of the other members of {}", name(set, Object::Balancer(balancer.into())))
        }
        None => format!("group {number}"),
    }
}

/// The port that the steps of a mirror are for.
pub(super) fn mirror(set: &FlowSet, steps: &[Action]) -> String {
    let written = |field: Field| {
        steps.iter().find_map(|step| match step {
            Action::SetField(set) if set.field() == field => u32::try_from(set.value()).ok(),
            _ => None,
        })
    };
    if let Some(vni) = written(Field::TunId) {
        return name(set, Object::Mirror(vni));
    }
    let tag = written(Field::VlanVid).and_then(|vid| u16::try_from(vid & !u32::from(VLAN_PRESENT)).ok());
    let number = steps.iter().find_map(|step| if let Action::Output(number) = step { Some(*number) } else { None });
    let key = number.and_then(|number| set.port_at(number, tag));
    key.map_or_else(|| "nobody".to_owned(), |key| port(set, key))
}

/// What a peer tells of itself by its port.
pub(super) fn pulse(set: &FlowSet, number: PortNo) -> Option<String> {
    let (endpoint, is_alive) = set.peer_at(number)?;
    let host = set.host_of(endpoint).map_or_else(|| format!("endpoint {endpoint}"), |host| format!("host {host}"));
    Some(format!("{host} is {}", if is_alive { "alive" } else { "silent" }))
}

/// What an action does, where that is worth saying.
pub(super) fn effect(set: &FlowSet, action: &Action, before: &Packet) -> Option<String> {
    match action {
        Action::SetField(write) => set_field(set, *write, before),
        Action::Meter(number) => set.meter(*number).map(|meter| {
            let unit = if meter.unit == MeterUnit::Packets { "packets" } else { "kilobits" };
            let rate = meter.bands.iter().map(|band| band.rate).min().unwrap_or(0);
            format!("drops what exceeds {rate} {unit} a second")
        }),
        Action::PopVlan => Some("takes the VLAN tag off".to_owned()),
        Action::PushVlan(_) => Some("puts a VLAN tag on".to_owned()),
        Action::Clone(steps) => Some(format!("copies it for {}", mirror(set, steps))),
        Action::DecTtl => Some("lowers the time to live".to_owned()),
        Action::CheckPacketLarger { octets, .. } => Some(format!("measures whether it has more than {octets} octets")),
        Action::Group(number) => Some(match GroupNumber::from_wire(*number) {
            Some(GroupNumber::NextHops(..)) => format!("sends it by {}", group(set, *number)),
            Some(GroupNumber::Members(..) | GroupNumber::OtherMembers(..)) => {
                format!("gives it to {}", group(set, *number))
            }
            Some(GroupNumber::Gateways(..)) => format!("sends it to {}", group(set, *number)),
            Some(GroupNumber::Gate(..)) => format!("leaves it to {}, if that is alive", group(set, *number)),
            _ => format!("copies it to {}", group(set, *number)),
        }),
        Action::Ct(ct) if ct.table.is_some() => {
            let zone = match ct.zone {
                CtZone::Fixed(zone) => zone.into(),
                CtZone::From(bits) => before.bits(bits),
            };
            Some(format!("tracks it in zone {zone}{}", translation(ct, before)))
        }
        Action::Ct(ct) if ct.actions.is_empty() => Some("remembers the connection".to_owned()),
        Action::Ct(ct) => Some(match ct.actions.first() {
            Some(Action::SetField(mark)) if mark.value() != 0 => "marks the connection dead".to_owned(),
            _ => "marks the connection alive".to_owned(),
        }),
        _ => None,
    }
}

/// What the connection tracker does to addresses.
fn translation(ct: &Ct, before: &Packet) -> String {
    let Some(Action::Nat(nat)) = ct.actions.first() else { return String::new() };
    match nat.range {
        Some(NatRange { side: NatSide::Destination, addresses: Some((address, _)), ports }) => {
            let port = ports.map(|(port, _)| format!(", port {port}")).unwrap_or_default();
            format!(", translates destination {} to {address}{port}", destination(before))
        }
        None if ct.table == Some(Table::Balance.number()) => ", translates what is of a balanced connection".to_owned(),
        Some(NatRange { addresses: Some((address, _)), ports, .. }) => {
            let ports = ports.map(|(first, last)| match last {
                Some(last) => format!(", ports {first} to {last}"),
                None => format!(", port {first}"),
            });
            let source = before.address(Field::Ipv4Src);
            format!(", translates source {source} to {address}{}", ports.unwrap_or_default())
        }
        _ if before.get(Field::CtNwSrc) != 0 => {
            format!(
                ", translates destination {} back to {}",
                before.address(Field::Ipv4Dst),
                before.address(Field::CtNwSrc)
            )
        }
        _ => format!(", translates destination {} back to who began the connection", before.address(Field::Ipv4Dst)),
    }
}

fn destination(packet: &Packet) -> IpAddr {
    let is_plain = packet.get(Field::EthType) == eth_type::IPV4.into();
    let family = if is_plain { Family::V4 } else { Family::V6 };
    family.address(packet.get(family.target()))
}

fn set_field(set: &FlowSet, write: SetField, before: &Packet) -> Option<String> {
    let value = u32::try_from(write.value()).ok();
    let Some(register) = register::by_field(write.field()) else { return Some(header(write)) };
    let value = value?;
    if register.field == register::FLAG_BITS.field {
        let raised = FLAGS.iter().filter(|flag| value & flag.mask != 0).map(|flag| flag.name);
        return Some(raised.collect::<Vec<_>>().join(", ")).filter(|text| !text.is_empty());
    }
    if before.get(register.field) == u128::from(value) {
        return None;
    }
    Some(format!("{}: {}", register.name, register_value(set, register, value)))
}

fn register_value(set: &FlowSet, register: &Register, value: u32) -> String {
    let object = match register.field {
        field if field == register::NETWORK.field => Object::Network(value),
        field if field == register::SOURCE.field || field == register::TARGET.field => Object::Port(value),
        field if field == register::ROUTER.field => Object::Router(value),
        field if field == register::BALANCER.field => Object::Balancer(value),
        field if field == register::SOURCE_IDENTITY.field || field == register::TARGET_IDENTITY.field => {
            Object::Identity(value)
        }
        field if field == register::LISTENER.field => {
            return format!("port {} of {}", value & 0xffff, name(set, Object::Balancer(value >> 16)));
        }
        field if field == register::ENDPOINT.field => return Ipv4Addr::from_bits(value).to_string(),
        _ => return value.to_string(),
    };
    name(set, object)
}

fn header(write: SetField) -> String {
    let text = Action::SetField(write).to_string();
    let value = text.strip_prefix("set_field:").and_then(|text| text.split("->").next()).unwrap_or_default();
    let what = match write.field() {
        Field::EthSrc => "source MAC address",
        Field::EthDst => "destination MAC address",
        Field::Ipv4Src | Field::Ipv6Src => "source address",
        Field::Ipv4Dst | Field::Ipv6Dst => "destination address",
        Field::IpTtl => "time to live",
        Field::IpDscp => "DSCP mark",
        Field::TunDst => "tunnel to",
        Field::ArpOp => "ARP operation",
        Field::ArpSpa => "ARP sender address",
        Field::ArpSha => "ARP sender MAC address",
        Field::IcmpType => "ICMP type",
        Field::Icmpv6Type => "ICMPv6 type",
        Field::NdSll => "neighbour's MAC address",
        Field::NdReserved => "neighbour flags",
        Field::NdOptionsType => "neighbour option",
        other => other.info().name,
    };
    format!("{what}: {value}")
}
