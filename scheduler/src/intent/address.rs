//! Addresses and MACs for ports, routers and load balancers: which are free, and the next one to give.
//!
//! Whatever is given here is taken as long as a port, a router's foot or a load balancer holds it; there is no second book of leases that could disagree.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;
use model::balancer::Balancer;
use model::network::{ExternalGateway, Router};
use model::{Mac, NetworkId, SubnetId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Intent;
use super::network::SubnetIntent;
use crate::refusal::Refusal;

/// The first three bytes of every MAC address that is drawn here: the prefix that operators know from OpenStack.
const MAC_PREFIX: [u8; 3] = [0xfa, 0x16, 0x3e];
/// The last three bytes are a number that only counts up.
const MAC_NUMBER_MAX: u32 = 0x00ff_ffff;

/// An inclusive range of addresses that may be given to ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pool {
    /// The first address.
    #[schema(value_type = String, example = "10.1.0.10")]
    pub(crate) start: Ipv4Addr,
    /// The last address.
    #[schema(value_type = String, example = "10.1.0.99")]
    pub(crate) end: Ipv4Addr,
}

/// Every address of `cidr` that a port could have: network and broadcast address and the gateway left out.
pub(crate) fn whole_pools(cidr: ipnet::Ipv4Net, gateway: Option<Ipv4Addr>) -> Vec<Pool> {
    let (first, last) = (u32::from(cidr.network()), u32::from(cidr.broadcast()));
    let (first, last) = if cidr.prefix_len() >= 31 { (first, last) } else { (first + 1, last - 1) };
    let pool = |start: u32, end: u32| Pool { start: start.into(), end: end.into() };
    match gateway.map(u32::from).filter(|gateway| (first..=last).contains(gateway)) {
        None => vec![pool(first, last)],
        Some(gateway) => {
            let below = (gateway > first).then(|| pool(first, gateway - 1));
            let above = (gateway < last).then(|| pool(gateway + 1, last));
            below.into_iter().chain(above).collect()
        }
    }
}

impl Intent {
    /// The addresses in use in a subnet: by ports, by routers' feet, by routers that lead out there, by floating IPs and by load
    /// balancers.
    pub(crate) fn addresses_in_use(&self, subnet: SubnetId) -> BTreeSet<IpAddr> {
        let ports = self.ports.values().flat_map(|port| &port.port.addresses);
        let ports = ports.filter(|fixed| fixed.subnet == subnet).map(|fixed| fixed.address);
        let feet = self.routers.values().flat_map(|router| &router.interfaces);
        let externals = self.routers.values().filter_map(|router| router.external.as_ref());
        let outside = externals.filter(|external| external.subnet == subnet).flat_map(|external| {
            let floating = external.floating_ips.iter().map(|floating| floating.address);
            floating.chain(external.snat.as_ref().map(|snat| snat.address))
        });
        let outside6 = self.routers.values().filter_map(|router| router.ipv6_gateway.as_ref());
        let outside6 = outside6.filter(|gateway| gateway.subnet == subnet).map(|gateway| IpAddr::V6(gateway.address));
        let feet = feet.filter(|foot| foot.subnet == subnet).map(|foot| foot.address);
        let balancers = self.balancers.values().filter(|balancer| balancer.subnet == subnet);
        let balancers = balancers.map(|balancer| balancer.address);
        ports.chain(feet).chain(outside.map(IpAddr::V4)).chain(outside6).chain(balancers).collect()
    }

    /// An address of a subnet that nobody has, its gateway never: in an IPv6 subnet of 64 bits the one that a station with this MAC address makes
    /// for itself, so that it needs no DHCPv6; otherwise the lowest of the subnet's pools, or of an IPv6 subnet.
    pub(crate) fn free_address(&self, subnet: &SubnetIntent, mac: Mac, field: &str) -> Result<IpAddr, Refusal> {
        let used = self.addresses_in_use(subnet.subnet.id);
        let own = match subnet.subnet.cidr {
            IpNet::V6(cidr) if cidr.prefix_len() == 64 => Some(IpAddr::V6(mac.autoconfigured(cidr.network()))),
            _ => None,
        };
        let plain = subnet.pools.iter().flat_map(|pool| u32::from(pool.start)..=u32::from(pool.end));
        let six = match subnet.subnet.cidr {
            IpNet::V4(_) => None,
            // The first address is every router's of the subnet (RFC 4291 §2.6.1).
            IpNet::V6(cidr) => Some(cidr.network().to_bits() + 1..=cidr.broadcast().to_bits()),
        };
        own.into_iter()
            .chain(plain.map(|number| IpAddr::V4(number.into())))
            .chain(six.into_iter().flatten().map(|number| IpAddr::V6(number.into())))
            .find(|address| !used.contains(address) && Some(*address) != subnet.subnet.gateway)
            .ok_or_else(|| Refusal::Exhausted {
                what: format!("address of subnet {}", subnet.subnet.name),
                field: Some(field.to_owned()),
            })
    }

    /// Checks an address that a request asks for by value.
    pub(crate) fn check_address(&self, subnet: &SubnetIntent, address: IpAddr, field: &str) -> Result<(), Refusal> {
        let cidr = subnet.subnet.cidr;
        let edge = match cidr {
            IpNet::V4(cidr) => cidr.prefix_len() < 31 && (address == cidr.network() || address == cidr.broadcast()),
            IpNet::V6(cidr) => address == cidr.network(),
        };
        if !cidr.contains(&address) || edge {
            return Err(Refusal::invalid(field, format!("{address} is no host address of {cidr}")));
        }
        if self.addresses_in_use(subnet.subnet.id).contains(&address) {
            let owner = self.address_owner(subnet.subnet.id, address);
            return Err(Refusal::Taken { field: field.to_owned(), what: format!("the address {address}"), owner });
        }
        Ok(())
    }

    fn address_owner(&self, subnet: SubnetId, address: IpAddr) -> String {
        let holds = |fixed: &model::network::FixedIp| fixed.subnet == subnet && fixed.address == address;
        let port = self.ports.values().find(|port| port.port.addresses.iter().any(holds));
        let mut balancers = self.balancers.values();
        if let Some(balancer) = balancers.find(|it| it.subnet == subnet && it.address == address) {
            return format!("load balancer {}", balancer.name);
        }
        let externals = self.routers.values().filter_map(|router| router.external.as_ref());
        let mut floating = externals.filter(|external| external.subnet == subnet).flat_map(|it| &it.floating_ips);
        if floating.any(|floating| address == IpAddr::V4(floating.address)) {
            return "a floating IP".to_owned();
        }
        port.map_or_else(|| "a router".to_owned(), |port| format!("port {}", port.port.name))
    }

    /// Draws a MAC address that nobody in `network` has.
    pub(crate) fn draw_mac(&mut self, network: NetworkId) -> Result<Mac, Refusal> {
        loop {
            if self.counters.mac >= MAC_NUMBER_MAX {
                return Err(Refusal::Exhausted { what: "MAC address".to_owned(), field: None });
            }
            self.counters.mac += 1;
            let [_, low @ ..] = self.counters.mac.to_be_bytes();
            let ([a, b, c], [d, e, f]) = (MAC_PREFIX, low);
            let mac = Mac::new([a, b, c, d, e, f]);
            if self.mac_owner(network, mac).is_none() {
                return Ok(mac);
            }
        }
    }

    /// Who has a MAC address on a network.
    pub(crate) fn mac_owner(&self, network: NetworkId, mac: Mac) -> Option<String> {
        let port = self.ports.values().find(|port| port.port.network == network && port.port.mac == mac);
        let router = self.routers.values().find(|router| {
            router.interfaces.iter().any(|foot| {
                foot.mac == mac && self.subnets.get(&foot.subnet).is_some_and(|subnet| subnet.subnet.network == network)
            })
        });
        let floating = || {
            let externals = self.routers.values().filter_map(|router| router.external.as_ref());
            let on_it = |id| self.subnets.get(&id).is_some_and(|subnet| subnet.subnet.network == network);
            let mut all = externals.filter(|external| on_it(external.subnet)).flat_map(|it| &it.floating_ips);
            all.find(|floating| floating.mac == mac).map(|floating| format!("floating IP {}", floating.address))
        };
        let snat = || {
            let mut externals = self.routers.values().filter_map(|router| Some((router, router.external.as_ref()?)));
            let on_it = |id| self.subnets.get(&id).is_some_and(|subnet| subnet.subnet.network == network);
            let has = |external: &ExternalGateway| external.snat.as_ref().is_some_and(|snat| snat.mac == mac);
            let (router, _) = externals.find(|(_, external)| on_it(external.subnet) && has(external))?;
            Some(format!("router {}", router.name))
        };
        let north = || {
            let has = |router: &&Arc<Router>| router.ipv6_gateway.as_ref().is_some_and(|gateway| gateway.mac == mac);
            let leads = |router: &&Arc<Router>| self.outside6(router).is_some_and(|outside| outside.id == network);
            let mut routers = self.routers.values().filter(has);
            routers.find(leads).map(|router| format!("router {}", router.name))
        };
        port.map(|port| format!("port {}", port.port.name))
            .or_else(floating)
            .or_else(north)
            .or_else(snat)
            .or_else(|| {
                let has = |it: &&Arc<Balancer>| it.mac == mac && self.network_of(it) == Some(network);
                self.balancers.values().find(has).map(|it| format!("load balancer {}", it.name))
            })
            .or_else(|| router.map(|router| format!("router {}", router.name)))
    }
}
