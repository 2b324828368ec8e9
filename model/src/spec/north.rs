//! What must hold of routers' ways out by IPv6: each leads to a provider network, and nobody else there has what it routes.
//!
//! Owns the bounds of them and of what the data centre routes. Invariant: an address of a routed subnet is behind one router, so that what comes from outside
//! has one place to go, and none of them is one of the data centre's own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv6Net};

use super::external::GATEWAYS_MAX;
use super::{HostNetwork, SpecError, overlap, refer, unique};
use crate::address::Mac;
use crate::id::NetworkId;
use crate::network::{Ipv6Gateway, Network, Router, Subnet};

/// The most prefixes that the data centre routes to one network.
pub const ROUTED_PREFIXES_MAX: usize = 64;

/// What the subnets of one network are called, and where they are.
type Routed<'a> = BTreeMap<NetworkId, Vec<(IpNet, &'a Subnet, &'a Router)>>;

/// Holds the ways out by IPv6 of all routers against the network.
pub(super) fn check(host: &HostNetwork) -> Result<(), SpecError> {
    for network in host.networks.values() {
        check_network(network)?;
    }
    let mut routed = Routed::new();
    let mut taken = stations(host);
    for router in host.routers.values() {
        let Some(gateway) = &router.ipv6_gateway else { continue };
        let object = format!("{:?}", router.id);
        let outside = check_gateway(&object, host, router, gateway)?;
        let own = (outside.id, IpAddr::V6(gateway.address));
        unique(&mut taken.0, own, &object, || format!("address {}", gateway.address))?;
        unique(&mut taken.1, (outside.id, gateway.mac), &object, || format!("MAC address {}", gateway.mac))?;
        for foot in &router.interfaces {
            let subnet = refer(&host.subnets, &object, foot.subnet)?;
            if !outside.routes(subnet.cidr) {
                continue;
            }
            let mut on_it = host.subnets.values().filter(|it| it.network == outside.id);
            if let Some(own) = on_it.find(|own| overlap(own.cidr, subnet.cidr)) {
                let problem = format!(
                    "its subnet {} ({}) is routed on network {} and overlaps that network's own subnet {} ({})",
                    subnet.name, subnet.cidr, outside.name, own.name, own.cidr
                );
                return Err(SpecError::Unfit { object, problem });
            }
            let others = routed.entry(outside.id).or_default();
            if let Some((_, other, there)) = others.iter().find(|(cidr, ..)| overlap(*cidr, subnet.cidr)) {
                let problem = format!(
                    "its subnet {} ({}) overlaps subnet {} ({}) of router {}: both are routed on network {}",
                    subnet.name, subnet.cidr, other.name, other.cidr, there.name, outside.name
                );
                return Err(SpecError::Unfit { object, problem });
            }
            others.push((subnet.cidr, subnet, router));
        }
    }
    Ok(())
}

/// Who has which address and which MAC address on a network.
type Taken = (BTreeMap<(NetworkId, IpAddr), String>, BTreeMap<(NetworkId, Mac), String>);

/// Ports, and feet of routers.
fn stations(host: &HostNetwork) -> Taken {
    let mut taken = Taken::default();
    if host.routers.values().all(|router| router.ipv6_gateway.is_none()) {
        return taken;
    }
    for port in host.ports.values() {
        taken.1.insert((port.network, port.mac), format!("{:?}", port.id));
        let addresses = port.addresses.iter().map(|fixed| (port.network, fixed.address));
        taken.0.extend(addresses.map(|key| (key, format!("{:?}", port.id))));
    }
    for router in host.routers.values() {
        for foot in &router.interfaces {
            let Some(subnet) = host.subnets.get(&foot.subnet) else { continue };
            taken.0.insert((subnet.network, foot.address), format!("{:?}", router.id));
            taken.1.insert((subnet.network, foot.mac), format!("{:?}", router.id));
        }
    }
    taken
}

fn check_network(network: &Network) -> Result<(), SpecError> {
    let refuse = |problem: String| Err(SpecError::Unfit { object: format!("{:?}", network.id), problem });
    let prefixes = &network.routed_prefixes;
    if prefixes.is_empty() {
        return Ok(());
    }
    if network.provider.is_none() {
        return refuse("nothing is routed to it: it is no provider network".to_owned());
    }
    if prefixes.len() > ROUTED_PREFIXES_MAX {
        return refuse(format!("{} prefixes are routed to it, at most {ROUTED_PREFIXES_MAX}", prefixes.len()));
    }
    if let Some(prefix) = prefixes.iter().find(|prefix| **prefix != prefix.trunc()) {
        return refuse(format!("its routed prefix {prefix} has host bits set"));
    }
    if let Some(prefix) = prefixes.iter().find(|prefix| !is_routable(**prefix)) {
        return refuse(format!("its routed prefix {prefix} has addresses that no router passes on"));
    }
    Ok(())
}

/// Whether all of a prefix is unicast, and of more than one link (RFC 4291 §2.4).
#[must_use]
pub fn is_routable(prefix: Ipv6Net) -> bool {
    const KEPT: [&str; 3] = ["::/8", "fe80::/10", "ff00::/8"];
    let kept = KEPT.iter().filter_map(|text| text.parse::<Ipv6Net>().ok());
    !kept.into_iter().any(|kept| kept.contains(&prefix) || prefix.contains(&kept))
}

fn check_gateway<'a>(
    object: &str,
    host: &'a HostNetwork,
    router: &Router,
    gateway: &Ipv6Gateway,
) -> Result<&'a Network, SpecError> {
    let refuse = |problem: String| Err(SpecError::Unfit { object: object.to_owned(), problem });
    let subnet = refer(&host.subnets, object, gateway.subnet)?;
    let network = refer(&host.networks, object, subnet.network)?;
    let (name, cidr) = (&subnet.name, subnet.cidr);
    if !matches!(cidr, IpNet::V6(_)) {
        return refuse(format!("its external subnet {name} ({cidr}) is not of IPv6"));
    }
    if network.provider.is_none() {
        return refuse(format!("its external subnet {name} ({cidr}) is not on a provider network"));
    }
    let address = IpAddr::V6(gateway.address);
    if !cidr.contains(&address) || address == cidr.network() || subnet.gateway == Some(address) {
        return refuse(format!("its address {address} is no host address of its external subnet {name} ({cidr})"));
    }
    if !gateway.mac.is_unicast() {
        return refuse(format!("{} is no unicast MAC address", gateway.mac));
    }
    if gateway.gateways.len() > GATEWAYS_MAX {
        return refuse(format!("it has {} gateway hosts, at most {GATEWAYS_MAX}", gateway.gateways.len()));
    }
    let hosts: BTreeSet<_> = gateway.gateways.iter().map(|gateway| gateway.host).collect();
    if hosts.len() < gateway.gateways.len() {
        return refuse("a host is named twice among its gateways".to_owned());
    }
    for foot in &router.interfaces {
        let near = refer(&host.subnets, object, foot.subnet)?;
        if near.network == subnet.network || overlap(near.cidr, cidr) {
            let problem =
                format!("its external subnet {name} ({cidr}) overlaps its subnet {} ({})", near.name, near.cidr);
            return refuse(problem);
        }
    }
    let is_default = |to: IpNet| to.addr().is_ipv6() && to.prefix_len() == 0;
    if let Some(route) = router.routes.iter().find(|route| route.destination == cidr || is_default(route.destination)) {
        return refuse(format!("its route to {} contradicts its external gateway", route.destination));
    }
    Ok(network)
}
