//! The DHCPv6 server: one request frame in, one reply frame or nothing out.
//!
//! As with DHCPv4 there are no leases to keep: a port gets its own addresses and the facts of its subnets, for as long as it exists. All addresses
//! go into the first association that the client asks for; others are told that there is none. Every host is the same server, by one identifier,
//! so that a machine that moved renews as before. Never speaks for a port that did not ask through its own tap, never panics on what a guest sends.
//! Invariant: a reply grants the port's own addresses or none.
//! Source: RFC 8415 §16 (which messages to take), §18.3 (what to answer), §21 (options); RFC 3646 (name servers and domains),
//! RFC 5908 (time servers).

use std::net::{IpAddr, Ipv6Addr};

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use model::network::{Port, Subnet};
use model::spec::HostNetwork;

use crate::dhcp::{LEASE_SECONDS, SERVER_MAC};
use crate::router_advert::{default_router, name_servers, search_list};

mod message;

pub use message::MessageError;
use message::{Association, Kind, Message, Options};

const SERVER_PORT: u16 = 547;
const CLIENT_PORT: u16 = 546;
const REPLY_TTL: u8 = 64;

const ADVERTISE: u8 = 2;
const REPLY: u8 = 7;

const SUCCESS: u16 = 0;
const NO_ADDRESSES: u16 = 2;
const NOT_ON_LINK: u16 = 4;

/// Why a request gets no answer. None of these is a fault of the host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Dhcp6Error {
    /// The port is not known here any more.
    #[error("answer DHCPv6 request of port {key}: no port here has this key")]
    NoPort {
        /// The key that the switch named.
        key: u32,
    },
    /// The port has no IPv6 address.
    #[error("answer DHCPv6 request of port {port}: it has no IPv6 address")]
    NoAddress {
        /// The port's name.
        port: String,
    },
    /// Not Ethernet, IPv6, UDP from 546 to 547.
    #[error("read DHCPv6 request of {length} octets: {reason}")]
    Frame {
        /// Octets of the frame.
        length: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The DHCPv6 message itself.
    #[error("read DHCPv6 message of {length} octets")]
    Message {
        /// Octets of the message.
        length: usize,
        /// What is wrong with it.
        #[source]
        source: MessageError,
    },
}

/// What the server knows of one port.
struct Server<'a> {
    port: &'a Port,
    /// Addresses on subnets with DHCP.
    granted: Vec<Ipv6Addr>,
    /// Subnets of all its IPv6 addresses.
    subnets: Vec<&'a Subnet>,
    name_servers: Vec<Ipv6Addr>,
    mac: model::Mac,
}

/// The server's identifier (DUID-LL, RFC 8415 §11.4): the same on every host.
#[must_use]
pub fn server_id() -> Vec<u8> {
    [0, 3, 0, 1].into_iter().chain(SERVER_MAC.bytes()).collect()
}

/// Answers the DHCPv6 request in `frame`, which came from the port with this key; none when the protocol wants silence.
///
/// # Errors
/// [`Dhcp6Error`] says why there is no answer.
pub fn answer(host: &HostNetwork, port_key: u32, frame: &[u8]) -> Result<Option<Vec<u8>>, Dhcp6Error> {
    let port = host.ports.values().find(|port| port.key == port_key).ok_or(Dhcp6Error::NoPort { key: port_key })?;
    let server = Server::of(host, port).ok_or_else(|| Dhcp6Error::NoAddress { port: port.name.clone() })?;
    let (client, payload) = request_payload(frame)?;
    let message = Message::parse(payload).map_err(|source| Dhcp6Error::Message { length: payload.len(), source })?;
    let Some(reply) = server.reply(&message) else { return Ok(None) };
    server.frame(client, &reply, frame.len()).map(Some)
}

impl<'a> Server<'a> {
    fn of(host: &'a HostNetwork, port: &'a Port) -> Option<Self> {
        let mut server =
            Self { port, granted: Vec::new(), subnets: Vec::new(), name_servers: Vec::new(), mac: SERVER_MAC };
        for fixed in &port.addresses {
            let (IpAddr::V6(address), Some(subnet)) = (fixed.address, host.subnets.get(&fixed.subnet)) else {
                continue;
            };
            server.subnets.push(subnet);
            if subnet.dhcp {
                server.granted.push(address);
            }
        }
        let router = server.subnets.iter().find_map(|subnet| default_router(host, subnet));
        server.mac = router.map_or(SERVER_MAC, |foot| foot.mac);
        server.name_servers = name_servers(host, port, server.subnets.iter().copied());
        (!server.subnets.is_empty()).then_some(server)
    }

    /// The reply to a message; none where the server has to stay silent.
    fn reply(&self, message: &Message<'_>) -> Option<Vec<u8>> {
        let is_ours = message.server.is_none_or(|id| id == server_id());
        let fits = match message.kind {
            Kind::Solicit | Kind::Confirm | Kind::Rebind => message.client.is_some() && message.server.is_none(),
            Kind::Request | Kind::Renew | Kind::Release | Kind::Decline => {
                message.client.is_some() && message.server.is_some() && is_ours
            }
            Kind::Inform => is_ours && message.associations.is_empty(),
        };
        let advertise = message.kind == Kind::Solicit && !message.rapid;
        let mut options = Options::new(if advertise { ADVERTISE } else { REPLY }, message.transaction);
        if let Some(client) = message.client {
            options.client_id(client);
        }
        options.server_id(&server_id());
        match message.kind {
            Kind::Confirm => {
                let asked = message.associations.iter().flat_map(|association| &association.addresses);
                let mut asked = asked.peekable();
                asked.peek()?;
                let all = asked.all(|address| self.granted.contains(address));
                options.status(if all { SUCCESS } else { NOT_ON_LINK });
            }
            Kind::Release | Kind::Decline => options.status(SUCCESS),
            Kind::Inform => self.facts(&mut options),
            Kind::Solicit | Kind::Request | Kind::Renew | Kind::Rebind => {
                if message.kind == Kind::Solicit && message.rapid {
                    options.rapid_commit();
                }
                for (index, association) in message.associations.iter().enumerate() {
                    self.associate(index, association, &mut options);
                }
                self.facts(&mut options);
            }
        }
        fits.then(|| options.into_octets())
    }

    /// All addresses for the first association, none for others; addresses that the client has by mistake are taken back.
    fn associate(&self, index: usize, association: &Association, options: &mut Options) {
        let granted: &[Ipv6Addr] = if index == 0 { &self.granted } else { &[] };
        let stale = association.addresses.iter().filter(|address| !granted.contains(address));
        let timed = granted.iter().map(|address| (*address, LEASE_SECONDS));
        let addresses: Vec<(Ipv6Addr, u32)> = timed.chain(stale.map(|address| (*address, 0))).collect();
        let status = granted.is_empty().then_some(NO_ADDRESSES);
        options.association(association.id, &addresses, (LEASE_SECONDS / 2, LEASE_SECONDS / 5 * 4), status);
    }

    fn facts(&self, options: &mut Options) {
        options.name_servers(&self.name_servers);
        options.search(&search_list(self.subnets.iter().copied()));
        let ntp = self.subnets.iter().flat_map(|subnet| &subnet.announced.ntp);
        options.time_servers(
            ntp.filter_map(|address| if let IpAddr::V6(address) = address { Some(*address) } else { None }),
        );
    }

    fn frame(&self, client: Ipv6Addr, message: &[u8], length: usize) -> Result<Vec<u8>, Dhcp6Error> {
        let builder = PacketBuilder::ethernet2(self.mac.bytes(), self.port.mac.bytes())
            .ipv6(self.mac.link_local().octets(), client.octets(), REPLY_TTL)
            .udp(SERVER_PORT, CLIENT_PORT);
        let mut frame = Vec::with_capacity(builder.size(message.len()));
        builder
            .write(&mut frame, message)
            .map_err(|error| Dhcp6Error::Frame { length, reason: format!("wrap the reply: {error}") })?;
        Ok(frame)
    }
}

/// The client's address and the UDP payload of a frame from a DHCPv6 client.
fn request_payload(frame: &[u8]) -> Result<(Ipv6Addr, &[u8]), Dhcp6Error> {
    let refuse = |reason: String| Dhcp6Error::Frame { length: frame.len(), reason };
    let packet = SlicedPacket::from_ethernet(frame).map_err(|error| refuse(error.to_string()))?;
    let (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Udp(udp))) = (&packet.net, &packet.transport) else {
        return Err(refuse("it is no whole UDP datagram over IPv6".to_owned()));
    };
    if (udp.source_port(), udp.destination_port()) != (CLIENT_PORT, SERVER_PORT) {
        return Err(refuse(format!("UDP from {} to {}, want 546 to 547", udp.source_port(), udp.destination_port())));
    }
    Ok((ip.header().source_addr(), udp.payload()))
}
