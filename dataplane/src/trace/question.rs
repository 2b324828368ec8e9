//! A question about a packet as people and tools ask it, and as it travels in JSON: from this port, to that address, with this inside.
//!
//! Owns [`Question`] and [`explain`]. What comes out of the tunnel on another host is asked there as [`Origin::Tunnel`], with the packet as it left.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use model::PortId;
use model::spec::HostNetwork;
use serde::{Deserialize, Serialize};

use super::{Connection, Packet, PacketError, Path, Payload, trace};
use crate::compile::PortNumbers;
use crate::family::{self, Family};
use crate::flow_set::FlowSet;

/// What is asked.
///
/// ```
/// # use dataplane::trace::Question;
/// let json = r#"{"origin": {"port": {"port": "6f1f9a3e-0b6e-4c55-9a53-0d6f1c2b7a10", "target": "10.0.2.22",
///     "payload": {"tcp": {"source": 40000, "target": 5432}}}}, "connection": "new"}"#;
/// let question: Question = serde_json::from_str(json)?;
/// # assert_eq!(serde_json::from_value::<Question>(serde_json::to_value(&question)?)?, question);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// Where the packet comes from.
    pub origin: Origin,
    /// What the connection tracker says of it; left out: that it is new.
    #[serde(default)]
    pub connection: Connection,
}

/// Where a packet comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A port of this host sends it.
    Port {
        /// The port.
        port: PortId,
        /// The destination.
        target: IpAddr,
        /// What it carries.
        payload: Payload,
        /// The source address to pretend; left out: the port's own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pretend: Option<IpAddr>,
    },
    /// A port of this host asks who has an address.
    Arp {
        /// The port.
        port: PortId,
        /// The address that it asks for.
        target: Ipv4Addr,
    },
    /// A port of this host asks who has an IPv6 address.
    Neighbour {
        /// The port.
        port: PortId,
        /// The address that it asks for.
        target: Ipv6Addr,
    },
    /// A port of this host asks for its own address.
    Dhcp {
        /// The port.
        port: PortId,
    },
    /// A port of this host asks for its own IPv6 address.
    Dhcp6 {
        /// The port.
        port: PortId,
    },
    /// A port of this host asks for routers.
    RouterSolicit {
        /// The port.
        port: PortId,
    },
    /// It comes out of the tunnel.
    Tunnel {
        /// The packet as the other host let it go.
        packet: Packet,
        /// The other host's tunnel endpoint.
        from: Ipv4Addr,
        /// The VNI that it carries.
        vni: u32,
    },
}

impl Question {
    /// The packet that is asked about.
    ///
    /// # Errors
    /// [`PacketError`] when this host has no such port, or the port cannot send it.
    pub fn packet(&self, host: &HostNetwork, numbers: &PortNumbers) -> Result<Packet, PacketError> {
        let known = |id: &PortId| {
            let port = host.ports.get(id).ok_or_else(|| PacketError::NotHere(id.to_string()))?;
            let number = numbers.of(port).ok_or_else(|| PacketError::NotHere(port.name.clone()))?;
            Ok((port, number))
        };
        match &self.origin {
            Origin::Port { port, target, payload, pretend } => {
                let packet = Packet::from_port(host, numbers, known(port)?.0, *target, *payload)?;
                Ok(match pretend {
                    Some(source) => packet.with(Family::of(*source).source(), family::value(*source)),
                    None => packet,
                })
            }
            Origin::Arp { port, target } => {
                let (port, number) = known(port)?;
                let address = super::packet::first_ipv4(port)?;
                Ok(Packet::arp_request(number, (port.mac, address), *target).sent_by(port))
            }
            Origin::Neighbour { port, target } => {
                let (port, number) = known(port)?;
                Ok(Packet::neighbour_solicit(number, (port.mac, port.mac.link_local()), *target).sent_by(port))
            }
            Origin::Dhcp6 { port } => {
                known(port).map(|(port, number)| Packet::dhcp6_solicit(number, port.mac).sent_by(port))
            }
            Origin::RouterSolicit { port } => {
                let (port, number) = known(port)?;
                Ok(Packet::router_solicit(number, (port.mac, port.mac.link_local())).sent_by(port))
            }
            Origin::Dhcp { port } => {
                known(port).map(|(port, number)| Packet::dhcp_discover(number, port.mac).sent_by(port))
            }
            Origin::Tunnel { packet, from, vni } => {
                let tunnel = numbers.vxlan.ok_or(PacketError::NoTunnel)?;
                Ok(packet.out_of_tunnel(tunnel, (*from, *vni)))
            }
        }
    }
}

/// Answers a question from the flows that a host should have.
///
/// # Errors
/// [`PacketError`] when the packet cannot be made.
pub fn explain(
    host: &HostNetwork,
    numbers: &PortNumbers,
    set: &FlowSet,
    question: &Question,
) -> Result<(Packet, Path), PacketError> {
    let packet = question.packet(host, numbers)?;
    let path = trace(set, &packet, question.connection);
    Ok((packet, path))
}
