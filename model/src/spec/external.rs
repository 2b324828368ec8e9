//! What must hold of routers' ways out: each leads to a provider network by IPv4, each floating IP stands for one address of one port behind it,
//! the address that the other ports share is nobody else's, and each port of it that is forwarded leads to one port of one address behind it.
//!
//! Owns the bounds of them. Never asks where the port is plugged in. Invariant: an external address, its MAC address and the fixed address are each
//! used once, so that both directions of a packet lead to one place.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use super::{HostNetwork, SpecError, overlap, refer, unique};
use crate::address::Mac;
use crate::id::{NetworkId, PortId};
use crate::network::{ExternalGateway, FloatingIp, PortForwarding, Router, Snat, Subnet};

/// The most floating IPs of one router.
pub const FLOATING_IPS_MAX: usize = 4096;

/// The most hosts that may be the gateway of one router.
pub const GATEWAYS_MAX: usize = 16;

/// The most ports that one router forwards.
pub const PORT_FORWARDINGS_MAX: usize = 1024;

/// What is taken already.
#[derive(Default)]
struct Taken {
    addresses: BTreeMap<(NetworkId, IpAddr), String>,
    macs: BTreeMap<(NetworkId, Mac), String>,
    fixed: BTreeMap<(PortId, Ipv4Addr), String>,
}

/// Holds the ways out of all routers against the network.
pub(super) fn check(host: &HostNetwork) -> Result<(), SpecError> {
    if host.routers.values().all(|router| router.external.is_none()) {
        return Ok(());
    }
    let mut taken = Taken::default();
    for port in host.ports.values() {
        let object = format!("{:?}", port.id);
        taken.macs.insert((port.network, port.mac), object.clone());
        for fixed in &port.addresses {
            taken.addresses.insert((port.network, fixed.address), object.clone());
        }
    }
    for router in host.routers.values() {
        for foot in &router.interfaces {
            let Some(subnet) = host.subnets.get(&foot.subnet) else { continue };
            let object = format!("{:?}", router.id);
            taken.macs.insert((subnet.network, foot.mac), object.clone());
            taken.addresses.insert((subnet.network, foot.address), object);
        }
    }
    for router in host.routers.values() {
        let Some(external) = &router.external else { continue };
        let object = format!("{:?}", router.id);
        let (subnet, cidr) = check_gateway(&object, host, router, external)?;
        if let Some(snat) = &external.snat {
            check_snat(&object, (subnet, cidr), snat, &mut taken)?;
        }
        for floating in &external.floating_ips {
            check_floating(&object, host, router, (subnet, cidr), floating, &mut taken)?;
        }
        if let Some(snat) = &external.snat {
            check_forwardings(&object, host, router, snat, external)?;
        }
    }
    Ok(())
}

fn check_gateway<'a>(
    object: &str,
    host: &'a HostNetwork,
    router: &Router,
    external: &ExternalGateway,
) -> Result<(&'a Subnet, Ipv4Net), SpecError> {
    let refuse = |problem: String| SpecError::Unfit { object: object.to_owned(), problem };
    let subnet = refer(&host.subnets, object, external.subnet)?;
    let IpNet::V4(cidr) = subnet.cidr else {
        return Err(refuse(format!("its external subnet {} is not of IPv4", subnet.cidr)));
    };
    if refer(&host.networks, object, subnet.network)?.provider.is_none() {
        return Err(refuse(format!("its external subnet {cidr} is not on a provider network")));
    }
    for foot in &router.interfaces {
        let near = refer(&host.subnets, object, foot.subnet)?.cidr;
        if overlap(near, subnet.cidr) {
            return Err(refuse(format!("its external subnet {cidr} overlaps its subnet {near}")));
        }
    }
    let shadow =
        |to: IpNet| to == subnet.cidr || (subnet.gateway.is_some() && to.addr().is_ipv4() && to.prefix_len() == 0);
    if let Some(route) = router.routes.iter().find(|route| shadow(route.destination)) {
        return Err(refuse(format!("its route to {} contradicts its external gateway", route.destination)));
    }
    if external.floating_ips.len() > FLOATING_IPS_MAX {
        return Err(refuse(format!("it has {} floating IPs, at most {FLOATING_IPS_MAX}", external.floating_ips.len())));
    }
    Ok((subnet, cidr))
}

fn check_snat(
    object: &str,
    (subnet, cidr): (&Subnet, Ipv4Net),
    snat: &Snat,
    taken: &mut Taken,
) -> Result<(), SpecError> {
    let object = format!("external address {} of {object}", snat.address);
    check_outside(&object, (subnet, cidr), snat.address, snat.mac)?;
    let refuse = |problem: String| Err(SpecError::Unfit { object: object.clone(), problem });
    if snat.gateways.len() > GATEWAYS_MAX {
        return refuse(format!("it has {} gateway hosts, at most {GATEWAYS_MAX}", snat.gateways.len()));
    }
    let hosts: BTreeSet<_> = snat.gateways.iter().map(|gateway| gateway.host).collect();
    if hosts.len() < snat.gateways.len() {
        return refuse("a host is named twice among its gateways".to_owned());
    }
    unique(&mut taken.addresses, (subnet.network, snat.address.into()), &object, || {
        format!("address {}", snat.address)
    })?;
    unique(&mut taken.macs, (subnet.network, snat.mac), &object, || format!("MAC address {}", snat.mac))
}

/// An address on an external subnet, and its MAC address.
fn check_outside(
    object: &str,
    (subnet, cidr): (&Subnet, Ipv4Net),
    address: Ipv4Addr,
    mac: Mac,
) -> Result<(), SpecError> {
    let refuse = |problem: String| Err(SpecError::Unfit { object: object.to_owned(), problem });
    let is_edge = cidr.prefix_len() < 31 && (address == cidr.network() || address == cidr.broadcast());
    if !cidr.contains(&address) || is_edge {
        return refuse(format!("it is no host address of {cidr}"));
    }
    if subnet.gateway == Some(address.into()) {
        return refuse("it is the address of the subnet's gateway".to_owned());
    }
    if !mac.is_unicast() {
        return refuse(format!("{mac} is no unicast MAC address"));
    }
    Ok(())
}

fn check_floating(
    object: &str,
    host: &HostNetwork,
    router: &Router,
    (subnet, cidr): (&Subnet, Ipv4Net),
    floating: &FloatingIp,
    taken: &mut Taken,
) -> Result<(), SpecError> {
    let FloatingIp { address, mac, port, fixed } = *floating;
    let object = format!("floating IP {address} of {object}");
    check_outside(&object, (subnet, cidr), address, mac)?;
    check_behind(&object, host, router, port, fixed)?;
    unique(&mut taken.addresses, (subnet.network, address.into()), &object, || format!("address {address}"))?;
    unique(&mut taken.macs, (subnet.network, mac), &object, || format!("MAC address {mac}"))?;
    unique(&mut taken.fixed, (port, fixed), &object, || format!("{port:?} at {fixed}"))
}

/// An address of a port, which is to be behind a router.
fn check_behind(
    object: &str,
    host: &HostNetwork,
    router: &Router,
    port: PortId,
    fixed: Ipv4Addr,
) -> Result<(), SpecError> {
    let refuse = |problem: String| Err(SpecError::Unfit { object: object.to_owned(), problem });
    let holder = refer(&host.ports, object, port)?;
    let Some(own) = holder.addresses.iter().find(|own| own.address == IpAddr::V4(fixed)) else {
        return refuse(format!("{port:?} does not have the address {fixed}"));
    };
    if !router.interfaces.iter().any(|foot| foot.subnet == own.subnet) {
        return refuse(format!("{port:?} at {fixed} is not behind the router"));
    }
    Ok(())
}

/// The ports that a router forwards: each leads to one place, and each place answers by one of them.
fn check_forwardings(
    object: &str,
    host: &HostNetwork,
    router: &Router,
    snat: &Snat,
    external: &ExternalGateway,
) -> Result<(), SpecError> {
    if snat.forwardings.len() > PORT_FORWARDINGS_MAX {
        let problem = format!("it forwards {} ports, at most {PORT_FORWARDINGS_MAX}", snat.forwardings.len());
        return Err(SpecError::Unfit { object: object.to_owned(), problem });
    }
    let floating: BTreeSet<_> = external.floating_ips.iter().map(|it| (it.port, it.fixed)).collect();
    let (mut outside, mut inside) = (BTreeMap::new(), BTreeMap::new());
    for forwarding in &snat.forwardings {
        let PortForwarding { protocol, external_port, port, internal_ip_address: address, internal_port } = *forwarding;
        let object = format!("port forwarding {forwarding} of {object}");
        let refuse = |problem: String| Err(SpecError::Unfit { object: object.clone(), problem });
        if external_port == 0 || internal_port == 0 {
            return refuse("there is no port 0".to_owned());
        }
        check_behind(&object, host, router, port, address)?;
        if floating.contains(&(port, address)) {
            return refuse(format!("{port:?} at {address} has a floating IP, by which its answers would leave"));
        }
        unique(&mut outside, (protocol, external_port), &object, || {
            format!("{protocol} port {external_port} of {}", snat.address)
        })?;
        let end = || format!("{protocol} port {internal_port} of {port:?} at {address}");
        unique(&mut inside, (protocol, port, address, internal_port), &object, end)?;
    }
    Ok(())
}
