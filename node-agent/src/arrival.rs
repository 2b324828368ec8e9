//! The receiving leg of a question: a packet from a port on another host, as it comes out of the tunnel here.
//!
//! The other host has routed it already (routing is done where a packet is sent), so it bears the receiver's address and the VNI of the receiver's
//! network. What the sender's own host does with it, its security groups above all, is asked there.

use std::net::IpAddr;

use dataplane::trace::{Packet, PacketError, Payload};
use model::network::{Binding, Port};
use model::spec::NodeSpec;
use openflow::flow::Field;
use openflow::flow::PortNo;

use crate::ask::{AskError, Flows};

/// Where a port is plugged in, if that is not this host.
#[must_use]
pub fn elsewhere<'a>(spec: &NodeSpec, port: &'a Port) -> Option<&'a Binding> {
    port.binding.as_ref().filter(|binding| binding.host != spec.host())
}

/// The packet of a port on another host as it comes out of the tunnel here.
///
/// # Errors
/// [`AskError::Elsewhere`] when the receiver is not here either; [`AskError::Packet`] when this host has no tunnel.
pub fn out_of_tunnel(
    flows: &Flows<'_>,
    (port, binding): (&Port, &Binding),
    target: IpAddr,
    payload: Payload,
) -> Result<Packet, AskError> {
    let network = flows.network;
    let has = |other: &&Port| other.addresses.iter().any(|fixed| fixed.address == target);
    let receiver = network.ports.values().filter(|other| flows.numbers.of(other).is_some()).find(has);
    let receiver = receiver.ok_or_else(|| AskError::Elsewhere {
        port: port.name.clone(),
        host: binding.host.to_string(),
        tunnel: binding.tunnel,
        target,
    })?;
    let tunnel = flows.numbers.vxlan.ok_or(PacketError::NoTunnel)?;
    // The sender's own number there is not known here and does not leave that host.
    let mut numbers = flows.numbers.clone();
    numbers.ports.insert(port.id, PortNo(1));
    // Nor does the tag that a sub-port's frames have on its tap.
    let plain = Port { trunk: None, ..port.clone() };
    let sent = Packet::from_port(network, &numbers, &plain, target, payload)?;
    let sent = if receiver.network == port.network { sent } else { routed(flows, receiver, target, sent) };
    let vni = network.networks.get(&receiver.network).map_or(0, |network| network.vni.get());
    Ok(sent.out_of_tunnel(tunnel, (binding.tunnel, vni)))
}

/// A packet that a router has put into the receiver's subnet.
fn routed(flows: &Flows<'_>, receiver: &Port, target: IpAddr, sent: Packet) -> Packet {
    let subnet = receiver.addresses.iter().find(|fixed| fixed.address == target).map(|fixed| fixed.subnet);
    let mut feet = flows.network.routers.values().flat_map(|router| &router.interfaces);
    let sent = sent.with(Field::EthDst, receiver.mac.bytes());
    match feet.find(|foot| Some(foot.subnet) == subnet) {
        Some(foot) => sent.with(Field::EthSrc, foot.mac.bytes()),
        None => sent,
    }
}
