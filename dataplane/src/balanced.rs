//! Balanced connections: what the connection tracker remembers of each, and how those of one member of a listener are forgotten.
//!
//! Owns the label that says which listener a connection is of, and the note in which a flow to a member says where its connections are to be found: of
//! flows that were installed by who ran before, there is nothing else to tell it. Never looks at connections.
//! Invariant: what is forgotten is of that listener and that member only.

use std::net::{IpAddr, Ipv6Addr};

use openflow::flow::{Action, Field, Flow, Note, ip_proto};
use openflow::wire::{CtFlush, CtTuple};

use crate::table::Table;

/// The label of connections of a listener. Which protocol it is for, every packet says.
///
/// ```text
/// 31               16 15             0
/// load balancer's key | listener's port
/// ```
pub(crate) fn label(balancer: u16, port: u16) -> u128 {
    u128::from(balancer) << 16 | u128::from(port)
}

/// Where the connections of a listener are to be found: its address, its port, and their zone.
///
/// ```text
/// 0                                            15 16    17 18     19 20    21
/// address, of version 4 as ::ffff:a.b.c.d (RFC 4291) | zone  | port    | 0
/// ```
pub(crate) fn whereabouts(address: IpAddr, port: u16, zone: u16) -> Action {
    let address = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let octets = [&address.octets()[..], &zone.to_be_bytes(), &port.to_be_bytes()].concat();
    Action::Note(Note::new(&octets))
}

/// What makes a switch forget the connections that a flow leads to a member; none when it leads none there.
pub(crate) fn connections(flow: &Flow) -> Option<CtFlush> {
    if flow.table != Table::Member.number() {
        return None;
    }
    let note = flow.actions.iter().find_map(|action| if let Action::Note(note) = action { Some(note) } else { None });
    let (address, rest) = note?.octets().split_first_chunk::<16>()?;
    let (zone, rest) = rest.split_first_chunk()?;
    let (port, _) = rest.split_first_chunk()?;
    let proto = u8::try_from(flow.matching.exact(Field::IpProto)?).ok()?;
    let own = match proto {
        ip_proto::TCP => Field::TcpDst,
        ip_proto::UDP => Field::UdpDst,
        _ => return None,
    };
    let own = u16::try_from(flow.matching.exact(own)?).ok()?;
    let member = match (flow.matching.exact(Field::Ipv4Dst), flow.matching.exact(Field::Ipv6Dst)) {
        (Some(bits), _) => IpAddr::V4(u32::try_from(bits).ok()?.into()),
        (_, Some(bits)) => IpAddr::V6(bits.into()),
        _ => return None,
    };
    let target = Some(Ipv6Addr::from(*address).to_canonical());
    Some(CtFlush {
        zone: Some(u16::from_be_bytes(*zone)),
        proto,
        original: Some(CtTuple { target, target_port: u16::from_be_bytes(*port), ..CtTuple::default() }),
        reply: Some(CtTuple { source: Some(member), source_port: own, ..CtTuple::default() }),
    })
}
