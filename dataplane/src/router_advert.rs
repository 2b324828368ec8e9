//! Router advertisements: what a port is told of its network's routers, prefixes, MTU and name servers.
//!
//! Answers a solicitation with one advertisement made for the port that asked: the router of its own subnet, the prefixes of its own addresses.
//! Where the subnet has DHCPv6 the flags say so; a prefix is announced for autoconfiguration only to a port whose address is what comes of it,
//! because another would not pass anti-spoofing. On a network without a router the advertisement says that there is none (lifetime 0) and still
//! carries prefixes. Never speaks for a port that did not ask through its own tap. Never panics on what a guest sends.
//! Source: RFC 4861 §4.2 and §6.2.6, RFC 4862 §5.5, RFC 8106 (name servers and domains), RFC 8319 (lifetimes).

use std::net::{IpAddr, Ipv6Addr};

use etherparse::PacketBuilder;
use ipnet::{IpNet, Ipv6Net};
use model::Mac;
use model::domain::Domain;
use model::network::{Port, RouterInterface, Subnet};
use model::spec::HostNetwork;

use crate::dhcp::{LEASE_SECONDS, SERVER_MAC, search};
use crate::dns::is_resolver;
use crate::feature::service::ADDRESS_V6;

/// How long a router may be used after an advertisement: the most that RFC 8319 §4 allows.
pub const ROUTER_LIFETIME_SECONDS: u16 = u16::MAX;

const ADVERT: u8 = 134;
const HOP_LIMIT: u8 = 64;
/// Neighbour discovery is never routed.
const UNROUTED: u8 = 255;
const MANAGED: u8 = 0x80;
const OTHER: u8 = 0x40;
const ON_LINK: u8 = 0x80;
const AUTONOMOUS: u8 = 0x40;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

const SOURCE_ADDRESS: u8 = 1;
const PREFIX: u8 = 3;
const MTU: u8 = 5;
const NAME_SERVERS: u8 = 25;
const SEARCH_LIST: u8 = 31;
/// Octets of names in one option: its length has 8 bits, in units of 8 octets, and 8 octets are its head.
const SEARCH_OCTETS_MAX: usize = 1024;
/// Name servers in one option: its length has 8 bits, in units of 8 octets.
const NAME_SERVERS_MAX: usize = 8;

/// Why a port gets no advertisement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdvertError {
    /// The port is not known here any more.
    #[error("advertise a router to port {key}: no port here has this key")]
    NoPort {
        /// The key that the switch named.
        key: u32,
    },
    /// The port does not speak IPv6.
    #[error("advertise a router to port {port}: it has no IPv6 address")]
    NoAddress {
        /// The port's name.
        port: String,
    },
    /// The advertisement does not fit its form; our own fault.
    #[error("write the advertisement for port {port}: {reason}")]
    Write {
        /// The port's name.
        port: String,
        /// What does not fit.
        reason: String,
    },
}

/// The advertisement for the port with this key, to the address that asked; to all stations when that is unspecified.
///
/// # Errors
/// [`AdvertError`] says why there is none.
pub fn advertise(host: &HostNetwork, port_key: u32, asker: Ipv6Addr) -> Result<Vec<u8>, AdvertError> {
    let port = host.ports.values().find(|port| port.key == port_key).ok_or(AdvertError::NoPort { key: port_key })?;
    let homes = homes(host, port);
    if homes.is_empty() {
        return Err(AdvertError::NoAddress { port: port.name.clone() });
    }
    let router = homes.iter().find_map(|home| default_router(host, home.subnet));
    let mac = router.map_or(SERVER_MAC, |foot| foot.mac);
    let payload = body(host, port, &homes, mac);
    let lifetime = if router.is_some() { ROUTER_LIFETIME_SECONDS } else { 0 };
    let managed = if homes.iter().any(|home| home.subnet.dhcp) { MANAGED | OTHER } else { OTHER };
    let [high, low] = lifetime.to_be_bytes();
    let target = if asker.is_unspecified() { ALL_NODES } else { asker };
    let builder = PacketBuilder::ethernet2(mac.bytes(), port.mac.bytes())
        .ipv6(mac.link_local().octets(), target.octets(), UNROUTED)
        .icmpv6_raw(ADVERT, 0, [HOP_LIMIT, managed, high, low]);
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    let write = |reason| AdvertError::Write { port: port.name.clone(), reason };
    builder.write(&mut frame, &payload).map_err(|error| write(error.to_string()))?;
    Ok(frame)
}

/// One IPv6 address of a port, with its subnet.
struct Home<'a> {
    subnet: &'a Subnet,
    prefix: Ipv6Net,
    address: Ipv6Addr,
}

fn homes<'a>(host: &'a HostNetwork, port: &Port) -> Vec<Home<'a>> {
    let fixed = port.addresses.iter();
    let home = fixed.filter_map(|fixed| {
        let subnet = host.subnets.get(&fixed.subnet)?;
        let (IpAddr::V6(address), IpNet::V6(prefix)) = (fixed.address, subnet.cidr) else { return None };
        Some(Home { subnet, prefix, address })
    });
    home.collect()
}

/// The router's foot at a subnet's gateway.
pub(crate) fn default_router<'a>(host: &'a HostNetwork, subnet: &Subnet) -> Option<&'a RouterInterface> {
    let feet = host.routers.values().flat_map(|router| &router.interfaces);
    feet.into_iter().find(|foot| foot.subnet == subnet.id && Some(foot.address) == subnet.gateway)
}

/// What follows the fixed part: two timers that are not set, then options.
fn body(host: &HostNetwork, port: &Port, homes: &[Home<'_>], mac: Mac) -> Vec<u8> {
    let mut body = vec![0; 8];
    body.extend([SOURCE_ADDRESS, 1]);
    body.extend(mac.bytes());
    if let Some(network) = host.networks.get(&port.network) {
        body.extend([MTU, 1, 0, 0]);
        body.extend(u32::from(network.mtu).to_be_bytes());
    }
    for home in homes {
        let own = home.prefix.prefix_len() == 64 && port.mac.autoconfigured(home.address) == home.address;
        body.extend([PREFIX, 4, home.prefix.prefix_len(), ON_LINK | if own { AUTONOMOUS } else { 0 }]);
        body.extend(LEASE_SECONDS.to_be_bytes());
        body.extend(LEASE_SECONDS.to_be_bytes());
        body.extend([0; 4]);
        body.extend(home.prefix.network().octets());
    }
    let servers = name_servers(host, port, homes.iter().map(|home| home.subnet));
    if let (false, Ok(units)) = (servers.is_empty(), u8::try_from(1 + 2 * servers.len())) {
        body.extend([NAME_SERVERS, units, 0, 0]);
        body.extend(LEASE_SECONDS.to_be_bytes());
        body.extend(servers.iter().flat_map(Ipv6Addr::octets));
    }
    let mut names = search_list(homes.iter().map(|home| home.subnet));
    names.resize(names.len().next_multiple_of(8), 0);
    if let (false, Ok(units)) = (names.is_empty(), u8::try_from(1 + names.len() / 8)) {
        body.extend([SEARCH_LIST, units, 0, 0]);
        body.extend(LEASE_SECONDS.to_be_bytes());
        body.extend(names);
    }
    body
}

/// The domains that short names are looked up in, as DNS messages carry them, as many as one option carries.
pub(crate) fn search_list<'a>(subnets: impl Iterator<Item = &'a Subnet>) -> Vec<u8> {
    let mut octets = Vec::new();
    for name in subnets.flat_map(|subnet| search(&subnet.announced)).map(Domain::to_wire) {
        if octets.len() + name.len() <= SEARCH_OCTETS_MAX {
            octets.extend(name);
        }
    }
    octets
}

/// The IPv6 name servers of some subnets of a port, each once, as many as one option carries; the host, for a port whose subnets have none at all.
pub(crate) fn name_servers<'a>(
    host: &HostNetwork,
    port: &Port,
    subnets: impl Iterator<Item = &'a Subnet>,
) -> Vec<Ipv6Addr> {
    if is_resolver(host, port) {
        return vec![ADDRESS_V6];
    }
    let mut servers = Vec::new();
    for address in subnets.flat_map(|subnet| &subnet.dns) {
        match address {
            IpAddr::V6(address) if !servers.contains(address) => servers.push(*address),
            _ => {}
        }
    }
    servers.truncate(NAME_SERVERS_MAX);
    servers
}
