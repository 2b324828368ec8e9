//! The DHCPv4 server: one request frame in, one reply frame or nothing out.
//!
//! Answers a port with its own address and the facts of its subnet, straight from the host's networks: there are no leases to keep, because an
//! address belongs to its port for as long as the port exists. Never speaks for a port that did not ask through its own tap: the port is named by
//! the switch, not by the packet. Never panics on what a guest sends.
//! Invariant: a reply offers the port's own address or none.
//! Source: RFC 2131 §4.3, RFC 2132, RFC 3442 (classless routes).

use std::net::{IpAddr, Ipv4Addr};

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, Opcode};
use dhcproto::{Encodable, Encoder, Name};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use ipnet::{IpNet, Ipv4Net};
use model::Mac;
use model::domain::Domain;
use model::network::{Announced, Port, RouterInterface, Subnet};
use model::spec::HostNetwork;

use crate::dns::is_resolver;
use crate::feature::service::ADDRESS_V4;

mod request;

pub use request::RequestError;
use request::{Kind, Request};

/// How long an address is given for: a client asks again after half of it.
pub const LEASE_SECONDS: u32 = 86_400;

/// The Ethernet source of replies on a subnet whose gateway is no router of ours.
pub const SERVER_MAC: Mac = Mac::new([0x02, 0xba, 0x5a, 0x00, 0x00, 0x43]);

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
const REPLY_TTL: u8 = 64;

/// Why a request gets no answer. None of these is a fault of the host.
#[derive(Debug, thiserror::Error)]
pub enum DhcpError {
    /// The port is not known here any more.
    #[error("answer DHCP request of port {key}: no port here has this key")]
    NoPort {
        /// The key that the switch named.
        key: u32,
    },
    /// The port has no IPv4 address on a subnet with DHCP.
    #[error("answer DHCP request of port {port}: it has no IPv4 address on a subnet with DHCP")]
    NoAddress {
        /// The port's name.
        port: String,
    },
    /// Not Ethernet, IPv4, UDP from 68 to 67.
    #[error("read DHCP request of {length} octets: {reason}")]
    Frame {
        /// Octets of the frame.
        length: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The DHCP message itself.
    #[error("read DHCP message of {length} octets")]
    Message {
        /// Octets of the message.
        length: usize,
        /// What is wrong with it.
        #[source]
        source: RequestError,
    },
    /// A well-formed message that is no request of this port.
    #[error("answer DHCP request of port {port}: {reason}")]
    Refused {
        /// The port's name.
        port: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The reply does not fit its form; our own fault.
    #[error("encode DHCP reply for port {port}")]
    Encode {
        /// The port's name.
        port: String,
        /// What does not fit.
        #[source]
        source: dhcproto::error::EncodeError,
    },
}

/// What a subnet's server says to one port.
#[derive(Debug)]
struct Offer<'a> {
    port: &'a Port,
    subnet: &'a Subnet,
    prefix: Ipv4Net,
    address: Ipv4Addr,
    gateway: Option<Ipv4Addr>,
    server: Ipv4Addr,
    server_mac: Mac,
    mtu: u16,
    routes: Vec<(Ipv4Net, Ipv4Addr)>,
    name_servers: Vec<Ipv4Addr>,
}

/// Answers the DHCP request in `frame`, which came from the port with this key; none when the protocol wants silence.
///
/// # Errors
/// [`DhcpError`] says why there is no answer.
pub fn answer(host: &HostNetwork, port_key: u32, frame: &[u8]) -> Result<Option<Vec<u8>>, DhcpError> {
    let port = host.ports.values().find(|port| port.key == port_key).ok_or(DhcpError::NoPort { key: port_key })?;
    let offer = offer(host, port).ok_or_else(|| DhcpError::NoAddress { port: port.name.clone() })?;
    let payload = request_payload(frame)?;
    let request = Request::parse(payload).map_err(|source| DhcpError::Message { length: payload.len(), source })?;
    if request.mac != port.mac {
        let reason = format!("its hardware address is {}, want {}", request.mac, port.mac);
        return Err(DhcpError::Refused { port: port.name.clone(), reason });
    }
    let Some(kind) = offer.reply_kind(&request) else { return Ok(None) };
    let message = offer.message(&request, kind);
    offer.frame(&request, kind, &message).map(Some)
}

/// The offer for a port: its first IPv4 address on a subnet with DHCP.
fn offer<'a>(host: &'a HostNetwork, port: &'a Port) -> Option<Offer<'a>> {
    port.addresses.iter().find_map(|fixed| {
        let subnet = host.subnets.get(&fixed.subnet).filter(|subnet| subnet.dhcp)?;
        let (IpAddr::V4(address), IpNet::V4(prefix)) = (fixed.address, subnet.cidr) else { return None };
        let gateway = subnet.gateway.and_then(v4);
        let feet = || host.routers.values().flat_map(|router| &router.interfaces).filter(|f| f.subnet == subnet.id);
        let server = gateway.unwrap_or_else(|| prefix.hosts().next().unwrap_or(address));
        let server_mac = feet().find(|foot| v4(foot.address) == Some(server)).map_or(SERVER_MAC, |foot| foot.mac);
        let mtu = host.networks.get(&subnet.network)?.mtu;
        let routes = routes(host, subnet, gateway);
        let name_servers = if is_resolver(host, port) {
            vec![ADDRESS_V4]
        } else {
            subnet.dns.iter().copied().filter_map(v4).collect()
        };
        Some(Offer { port, subnet, prefix, address, gateway, server, server_mac, mtu, routes, name_servers })
    })
}

/// Routes that the default gateway does not cover: by routers of the subnet that are not its gateway, those its owner announces, and the one to the
/// services of the host; 0.0.0.0 says that it is on the link.
fn routes(host: &HostNetwork, subnet: &Subnet, gateway: Option<Ipv4Addr>) -> Vec<(Ipv4Net, Ipv4Addr)> {
    let mut routes = Vec::new();
    for router in host.routers.values() {
        let Some(here) = router.interfaces.iter().find(|foot| foot.subnet == subnet.id) else { continue };
        let Some(next_hop) = v4(here.address).filter(|address| Some(*address) != gateway) else { continue };
        for foot in router.interfaces.iter().filter(|foot| foot.subnet != subnet.id) {
            if let Some(IpNet::V4(prefix)) = host.subnets.get(&foot.subnet).map(|subnet| subnet.cidr) {
                routes.push((prefix, next_hop));
            }
        }
    }
    // Machines find services by their gateway; where that is no router of ours, on the link.
    if !host.routers.values().flat_map(|router| &router.interfaces).any(|foot| is_gateway(foot, subnet)) {
        routes.push((Ipv4Net::from(ADDRESS_V4), Ipv4Addr::UNSPECIFIED));
    }
    for route in &subnet.announced.routes {
        if let (IpNet::V4(destination), Some(next_hop)) = (route.destination, v4(route.next_hop)) {
            routes.push((destination.trunc(), next_hop));
        }
    }
    routes.sort_unstable();
    routes.dedup();
    routes
}

fn is_gateway(foot: &RouterInterface, subnet: &Subnet) -> bool {
    foot.subnet == subnet.id && Some(foot.address) == subnet.gateway
}

/// Domains that short names are looked up in: the machine's own first.
pub(crate) fn search(announced: &Announced) -> impl Iterator<Item = &Domain> {
    let own = announced.domain.iter();
    own.chain(announced.search.iter().filter(|other| Some(*other) != announced.domain.as_ref()))
}

impl Offer<'_> {
    /// What to reply, by RFC 2131 §4.3: none where the server has to stay silent.
    fn reply_kind(&self, request: &Request) -> Option<MessageType> {
        match request.kind {
            Kind::Discover => Some(MessageType::Offer),
            Kind::Inform => Some(MessageType::Ack),
            Kind::Request => {
                let asked = request.requested.unwrap_or(request.client);
                match request.server {
                    Some(server) if server != self.server => None,
                    _ if asked == self.address => Some(MessageType::Ack),
                    _ => Some(MessageType::Nak),
                }
            }
            Kind::Other => None,
        }
    }

    fn message(&self, request: &Request, kind: MessageType) -> Message {
        let none = Ipv4Addr::UNSPECIFIED;
        let informed = request.kind == Kind::Inform;
        let refused = kind == MessageType::Nak;
        let yours = if informed || refused { none } else { self.address };
        let client = if refused { none } else { request.client };
        let chaddr = self.port.mac.bytes();
        let mut reply = Message::new_with_id(request.transaction, client, yours, none, request.relay, &chaddr);
        let flags = if request.broadcast { Flags::default().set_broadcast() } else { Flags::default() };
        reply.set_opcode(Opcode::BootReply).set_flags(flags);
        reply.opts_mut().insert(DhcpOption::MessageType(kind));
        reply.opts_mut().insert(DhcpOption::ServerIdentifier(self.server));
        if refused {
            return reply;
        }
        if !informed {
            for option in [
                DhcpOption::AddressLeaseTime(LEASE_SECONDS),
                DhcpOption::Renewal(LEASE_SECONDS / 2),
                DhcpOption::Rebinding(LEASE_SECONDS / 8 * 7),
            ] {
                reply.opts_mut().insert(option);
            }
        }
        for option in self.options() {
            reply.opts_mut().insert(option);
        }
        reply
    }

    /// The facts of the subnet and the port.
    fn options(&self) -> Vec<DhcpOption> {
        let mut options = vec![
            DhcpOption::SubnetMask(self.prefix.netmask()),
            DhcpOption::BroadcastAddr(self.prefix.broadcast()),
            DhcpOption::InterfaceMtu(self.mtu),
        ];
        options.extend(self.gateway.map(|gateway| DhcpOption::Router(vec![gateway])));
        if !self.name_servers.is_empty() {
            options.push(DhcpOption::DomainNameServer(self.name_servers.clone()));
        }
        let announced = &self.subnet.announced;
        options.extend(announced.domain.as_ref().map(|domain| DhcpOption::DomainName(domain.to_string())));
        let search: Vec<Name> = search(announced).filter_map(|domain| Name::from_ascii(domain.as_str()).ok()).collect();
        if !announced.search.is_empty() {
            options.push(DhcpOption::DomainSearch(search));
        }
        let ntp: Vec<Ipv4Addr> = announced.ntp.iter().copied().filter_map(v4).collect();
        if !ntp.is_empty() {
            options.push(DhcpOption::NtpServers(ntp));
        }
        let hostname = self.port.binding.as_ref().map(|binding| binding.hostname.clone());
        options.extend(hostname.filter(|name| !name.is_empty() && name.len() <= 63).map(DhcpOption::Hostname));
        if !self.routes.is_empty() {
            // A client that takes option 121 ignores option 3 (RFC 3442), so the default route is among them.
            let default = self.gateway.map(|gateway| (Ipv4Net::default(), gateway));
            let routes = self.routes.iter().copied().chain(default).collect();
            options.push(DhcpOption::ClasslessStaticRoute(routes));
        }
        options
    }

    /// Wraps the message in UDP, IPv4 and Ethernet, addressed as RFC 2131 §4.1 says.
    fn frame(&self, request: &Request, kind: MessageType, message: &Message) -> Result<Vec<u8>, DhcpError> {
        let mut payload = Vec::new();
        message
            .encode(&mut Encoder::new(&mut payload))
            .map_err(|source| DhcpError::Encode { port: self.port.name.clone(), source })?;
        let broadcast = kind == MessageType::Nak || (request.client.is_unspecified() && request.broadcast);
        let (mac, address) = match (broadcast, request.client) {
            (true, _) => (Mac::BROADCAST, Ipv4Addr::BROADCAST),
            (false, Ipv4Addr::UNSPECIFIED) => (self.port.mac, self.address),
            (false, client) => (self.port.mac, client),
        };
        let builder = PacketBuilder::ethernet2(self.server_mac.bytes(), mac.bytes())
            .ipv4(self.server.octets(), address.octets(), REPLY_TTL)
            .udp(SERVER_PORT, CLIENT_PORT);
        let mut frame = Vec::with_capacity(builder.size(payload.len()));
        let length = payload.len();
        builder
            .write(&mut frame, &payload)
            .map_err(|error| DhcpError::Frame { length, reason: format!("wrap the reply: {error}") })?;
        Ok(frame)
    }
}

/// The UDP payload of a frame from a DHCP client.
fn request_payload(frame: &[u8]) -> Result<&[u8], DhcpError> {
    let refuse = |reason: String| DhcpError::Frame { length: frame.len(), reason };
    let packet = SlicedPacket::from_ethernet(frame).map_err(|error| refuse(error.to_string()))?;
    let (Some(NetSlice::Ipv4(_)), Some(TransportSlice::Udp(udp))) = (&packet.net, &packet.transport) else {
        return Err(refuse("it is no whole UDP datagram over IPv4".to_owned()));
    };
    if (udp.source_port(), udp.destination_port()) != (CLIENT_PORT, SERVER_PORT) {
        return Err(refuse(format!("UDP from {} to {}, want 68 to 67", udp.source_port(), udp.destination_port())));
    }
    Ok(udp.payload())
}

const fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}
