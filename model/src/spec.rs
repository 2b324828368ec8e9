//! What one host should be: everything its agent needs to know, under one generation number.
//!
//! [`NodeSpec`] is checked: every reference names an object in it, keys and addresses are unique where they must be. The only ways in are
//! [`NodeSpec::check`] and, from bytes, [`wire`]. A spec of an older generation than the one accepted is the agent's to refuse.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::address_group::AddressGroup;
use crate::balancer::Balancer;
use crate::firewall::FirewallPolicy;
use crate::id::{
    AddressGroupId, BalancerId, FirewallPolicyId, HostId, ImageId, MachineId, NetworkId, PortId, RouterId,
    SecurityGroupId, SubnetId, VolumeId,
};
use crate::image::{Image, ImageKind};
use crate::machine::Machine;
use crate::metadata::SSH_KEYS_MAX;
use crate::mirror::MirrorTarget;
use crate::network::{Network, Port, Router, Subnet};
use crate::security::{Remote, SecurityGroup};
use crate::volume::{Volume, VolumeSource};

mod arrival;
mod balancer;
pub mod external;
mod firewall;
mod mirror;
pub mod north;
pub mod route;
mod trunk;
pub mod wire;

/// The least MTU of a link that carries IPv6 (RFC 8200 §5).
const IPV6_MTU_MIN: u16 = 1280;

/// Counts the specs made for one host: a larger number is newer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl std::fmt::Display for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What one host should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSpec {
    generation: Generation,
    network: HostNetwork,
    images: BTreeMap<ImageId, Image>,
    volumes: BTreeMap<VolumeId, Volume>,
    retired_volumes: BTreeMap<VolumeId, Volume>,
    machines: BTreeMap<MachineId, Machine>,
}

/// The network part of a spec: all that the data plane of one host compiles from.
///
/// Holds the networks, subnets, routers and security groups that touch a port of this host, and every port that one of those could speak to,
/// wherever it is plugged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostNetwork {
    /// The host.
    pub host: HostId,
    /// Its tunnel endpoint on the underlay.
    pub tunnel: Ipv4Addr,
    /// Networks.
    pub networks: BTreeMap<NetworkId, Network>,
    /// Subnets; each one's network is among `networks`.
    pub subnets: BTreeMap<SubnetId, Subnet>,
    /// Routers; each foot's subnet is among `subnets`, and no two feet of a router overlap.
    pub routers: BTreeMap<RouterId, Router>,
    /// Firewall policies; those of each router are among them.
    pub firewall_policies: BTreeMap<FirewallPolicyId, FirewallPolicy>,
    /// Address groups that rules of the security groups name.
    pub address_groups: BTreeMap<AddressGroupId, AddressGroup>,
    /// Security groups; each remote group is among them, each remote address group among those above.
    pub groups: BTreeMap<SecurityGroupId, SecurityGroup>,
    /// Ports, here and elsewhere; each one's network, subnets and groups are above.
    pub ports: BTreeMap<PortId, Port>,
    /// Load balancers; each one's subnet is above.
    pub balancers: BTreeMap<BalancerId, Balancer>,
    /// Ports that get copies: all that ports here are mirrored to, and those here.
    pub mirrors: BTreeMap<PortId, MirrorTarget>,
}

impl HostNetwork {
    /// A host without any network.
    #[must_use]
    pub const fn empty(host: HostId, tunnel: Ipv4Addr) -> Self {
        Self {
            host,
            tunnel,
            networks: BTreeMap::new(),
            subnets: BTreeMap::new(),
            routers: BTreeMap::new(),
            firewall_policies: BTreeMap::new(),
            address_groups: BTreeMap::new(),
            groups: BTreeMap::new(),
            ports: BTreeMap::new(),
            balancers: BTreeMap::new(),
            mirrors: BTreeMap::new(),
        }
    }

    /// The port whose tap device a port is at: its parent for a sub-port.
    #[must_use]
    pub fn tap_of<'a>(&'a self, port: &'a Port) -> &'a Port {
        self.ports.get(&port.tap_port()).unwrap_or(port)
    }

    /// The ports that are plugged in on this host, in order of identity.
    pub fn local_ports(&self) -> impl Iterator<Item = &Port> {
        self.ports.values().filter(|port| port.is_on(self.host))
    }
}

/// The parts of a spec before they are held against each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecParts {
    /// Its number.
    pub generation: Generation,
    /// The host that it is for.
    pub host: HostId,
    /// The host's tunnel endpoint.
    pub tunnel: Ipv4Addr,
    /// Networks.
    pub networks: Vec<Network>,
    /// Subnets.
    pub subnets: Vec<Subnet>,
    /// Routers.
    pub routers: Vec<Router>,
    /// Firewall policies that those routers have.
    pub firewall_policies: Vec<FirewallPolicy>,
    /// Address groups that rules of the security groups name.
    pub address_groups: Vec<AddressGroup>,
    /// Security groups.
    pub groups: Vec<SecurityGroup>,
    /// Ports, here and elsewhere.
    pub ports: Vec<Port>,
    /// Load balancers that ports here can reach.
    pub balancers: Vec<Balancer>,
    /// Ports that get copies: all that ports here are mirrored to, and those here.
    pub mirrors: Vec<MirrorTarget>,
    /// Images that volumes and machines here need.
    pub images: Vec<Image>,
    /// Volumes that should exist.
    pub volumes: Vec<Volume>,
    /// Volumes whose data this host is to delete. A volume that is in neither list is left alone.
    pub retired_volumes: Vec<Volume>,
    /// Machines that should exist here.
    pub machines: Vec<Machine>,
}

/// What is wrong between the objects of a spec.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Two objects of one kind have the same identity.
    #[error("{object} appears twice")]
    Twice {
        /// The object.
        object: String,
    },
    /// An object refers to another that the spec does not hold.
    #[error("{object} refers to {target}, which the spec does not hold")]
    Missing {
        /// The object that refers.
        object: String,
        /// What it refers to.
        target: String,
    },
    /// Something that must be unique is not.
    #[error("{object} and {other} share {what}")]
    Shared {
        /// One object.
        object: String,
        /// The other.
        other: String,
        /// What they share.
        what: String,
    },
    /// A value that does not fit its object.
    #[error("{object}: {problem}")]
    Unfit {
        /// The object.
        object: String,
        /// What is wrong.
        problem: String,
    },
}

impl NodeSpec {
    /// Holds the parts against each other.
    ///
    /// # Errors
    /// The first [`SpecError`] found, in the order: duplicates, references, uniqueness, fitness.
    pub fn check(parts: SpecParts) -> Result<Self, SpecError> {
        let network = HostNetwork {
            host: parts.host,
            tunnel: parts.tunnel,
            networks: by_id(parts.networks, |network| network.id)?,
            subnets: by_id(parts.subnets, |subnet| subnet.id)?,
            routers: by_id(parts.routers, |router| router.id)?,
            firewall_policies: by_id(parts.firewall_policies, |policy| policy.id)?,
            address_groups: by_id(parts.address_groups, |group| group.id)?,
            groups: by_id(parts.groups, |group| group.id)?,
            ports: by_id(parts.ports, |port| port.id)?,
            balancers: by_id(parts.balancers, |balancer| balancer.id)?,
            mirrors: by_id(parts.mirrors, |target| target.port)?,
        };
        let spec = Self {
            generation: parts.generation,
            network,
            images: by_id(parts.images, |image| image.id)?,
            volumes: by_id(parts.volumes, |volume| volume.id)?,
            retired_volumes: by_id(parts.retired_volumes, |volume| volume.id)?,
            machines: by_id(parts.machines, |machine| machine.id)?,
        };
        spec.network.check()?;
        spec.check_storage()?;
        spec.check_machines()?;
        Ok(spec)
    }

    /// A spec that wants nothing of the host.
    #[must_use]
    pub const fn empty(generation: Generation, host: HostId, tunnel: Ipv4Addr) -> Self {
        Self {
            generation,
            network: HostNetwork::empty(host, tunnel),
            images: BTreeMap::new(),
            volumes: BTreeMap::new(),
            retired_volumes: BTreeMap::new(),
            machines: BTreeMap::new(),
        }
    }

    /// Its number.
    #[must_use]
    pub const fn generation(&self) -> Generation {
        self.generation
    }

    /// The host that it is for.
    #[must_use]
    pub const fn host(&self) -> HostId {
        self.network.host
    }

    /// The network part.
    #[must_use]
    pub const fn network(&self) -> &HostNetwork {
        &self.network
    }

    /// Images that volumes and machines here need.
    #[must_use]
    pub const fn images(&self) -> &BTreeMap<ImageId, Image> {
        &self.images
    }

    /// Volumes that should exist.
    #[must_use]
    pub const fn volumes(&self) -> &BTreeMap<VolumeId, Volume> {
        &self.volumes
    }

    /// Volumes whose data this host is to delete.
    #[must_use]
    pub const fn retired_volumes(&self) -> &BTreeMap<VolumeId, Volume> {
        &self.retired_volumes
    }

    /// Machines that should exist here.
    #[must_use]
    pub const fn machines(&self) -> &BTreeMap<MachineId, Machine> {
        &self.machines
    }

    fn check_storage(&self) -> Result<(), SpecError> {
        for volume in self.volumes.values() {
            let object = format!("{:?}", volume.id);
            if self.retired_volumes.contains_key(&volume.id) {
                return Err(SpecError::Unfit { object, problem: "it is both wanted and retired".to_owned() });
            }
            let VolumeSource::Image(id) = volume.source else { continue };
            let image = refer(&self.images, &object, id)?;
            if !image.kind.is_disk() {
                return Err(SpecError::Unfit { object, problem: format!("its {id:?} is no disk image") });
            }
        }
        Ok(())
    }

    fn check_machines(&self) -> Result<(), SpecError> {
        let mut volume_users = BTreeMap::new();
        let mut port_users = BTreeMap::new();
        for machine in self.machines.values() {
            let object = format!("{:?}", machine.id);
            let kernel = refer(&self.images, &object, machine.boot.kernel)?;
            expect_kind(&object, kernel, ImageKind::Kernel)?;
            if let Some(initrd) = machine.boot.initrd {
                expect_kind(&object, refer(&self.images, &object, initrd)?, ImageKind::Initrd)?;
            }
            if machine.metadata.ssh_keys.len() > SSH_KEYS_MAX {
                let problem =
                    format!("it has {} SSH keys, want {SSH_KEYS_MAX} at most", machine.metadata.ssh_keys.len());
                return Err(SpecError::Unfit { object, problem });
            }
            for disk in &machine.disks {
                refer(&self.volumes, &object, disk.volume)?;
                unique(&mut volume_users, disk.volume, &object, || format!("{:?}", disk.volume))?;
            }
            for id in &machine.ports {
                let port = refer(&self.network.ports, &object, *id)?;
                // One that has gone ahead of its machine is another host's.
                let has_left = port.binding.as_ref().is_some_and(|binding| binding.machine == machine.id);
                if !port.is_on(self.network.host) && !has_left {
                    return Err(SpecError::Unfit {
                        object,
                        problem: format!("its {id:?} is not plugged in on this host"),
                    });
                }
                if let Some(trunk) = port.trunk {
                    let problem = format!("its {id:?} is a sub-port of {:?}, which has the interface", trunk.parent);
                    return Err(SpecError::Unfit { object, problem });
                }
                unique(&mut port_users, *id, &object, || format!("{id:?}"))?;
            }
        }
        Ok(())
    }
}

impl HostNetwork {
    /// Holds the network's objects against each other.
    ///
    /// # Errors
    /// The first [`SpecError`] found.
    pub fn check(&self) -> Result<(), SpecError> {
        self.check_networks()?;
        self.check_routers()?;
        firewall::check(self)?;
        self.check_address_groups()?;
        self.check_groups()?;
        self.check_ports()?;
        trunk::check(self)?;
        balancer::check(self)?;
        mirror::check(self)?;
        arrival::check(self)?;
        external::check(self)?;
        north::check(self)
    }

    fn check_networks(&self) -> Result<(), SpecError> {
        let (mut vnis, mut parts) = (BTreeMap::new(), BTreeMap::new());
        for network in self.networks.values() {
            let object = format!("{:?}", network.id);
            unique(&mut vnis, network.vni, &object, || format!("VNI {}", network.vni))?;
            if let Some(provider) = &network.provider {
                unique(&mut parts, provider, &object, || provider.to_string())?;
            }
            if !(68..=9000).contains(&network.mtu) {
                return Err(SpecError::Unfit {
                    object,
                    problem: format!("its MTU {} is outside of 68 to 9000", network.mtu),
                });
            }
        }
        for subnet in self.subnets.values() {
            let object = format!("{:?}", subnet.id);
            let network = refer(&self.networks, &object, subnet.network)?;
            if matches!(subnet.cidr, IpNet::V6(_)) && network.mtu < IPV6_MTU_MIN {
                let problem = format!("its network has an MTU of {}, IPv6 needs {IPV6_MTU_MIN}", network.mtu);
                return Err(SpecError::Unfit { object, problem });
            }
            if subnet.cidr != subnet.cidr.trunc() {
                return Err(SpecError::Unfit { object, problem: format!("{} has host bits set", subnet.cidr) });
            }
            check_announced(&object, subnet)?;
            if let Some(gateway) = subnet.gateway.filter(|gateway| !subnet.cidr.contains(gateway)) {
                return Err(SpecError::Unfit {
                    object,
                    problem: format!("its gateway {gateway} is outside of {}", subnet.cidr),
                });
            }
        }
        Ok(())
    }

    fn check_routers(&self) -> Result<(), SpecError> {
        let mut keys = BTreeMap::new();
        let mut feet = BTreeMap::new();
        for router in self.routers.values() {
            let object = format!("{:?}", router.id);
            unique(&mut keys, router.key, &object, || format!("router key {}", router.key))?;
            if router.key == 0 {
                return Err(SpecError::Unfit { object, problem: "its key is 0".to_owned() });
            }
            let mut prefixes = Vec::new();
            for foot in &router.interfaces {
                let subnet = refer(&self.subnets, &object, foot.subnet)?;
                unique(&mut feet, foot.subnet, &object, || format!("a foot in {:?}", foot.subnet))?;
                if !subnet.cidr.contains(&foot.address) {
                    let problem = format!("its address {} is outside of {}", foot.address, subnet.cidr);
                    return Err(SpecError::Unfit { object, problem });
                }
                if let Some(other) = prefixes.iter().find(|other| overlap(**other, subnet.cidr)) {
                    let problem = format!("its subnets {other} and {} overlap", subnet.cidr);
                    return Err(SpecError::Unfit { object, problem });
                }
                prefixes.push(subnet.cidr);
            }
            route::check(&object, router, &self.subnets)?;
        }
        Ok(())
    }

    fn check_address_groups(&self) -> Result<(), SpecError> {
        let mut keys = BTreeMap::new();
        for group in self.address_groups.values() {
            let object = format!("{:?}", group.id);
            unique(&mut keys, group.key, &object, || format!("address group key {}", group.key))?;
            group.check().map_err(|error| SpecError::Unfit { object, problem: error.to_string() })?;
        }
        Ok(())
    }

    fn check_groups(&self) -> Result<(), SpecError> {
        let mut keys = BTreeMap::new();
        for group in self.groups.values() {
            let object = format!("{:?}", group.id);
            unique(&mut keys, group.key, &object, || format!("security group key {}", group.key))?;
            for rule in &group.rules {
                match rule.remote {
                    Remote::Any => {}
                    Remote::Group(remote) => {
                        refer(&self.groups, &object, remote)?;
                    }
                    Remote::Addresses(remote) => {
                        refer(&self.address_groups, &object, remote)?;
                    }
                    Remote::Prefix(prefix) if rule.ethertype.holds(prefix) => {}
                    Remote::Prefix(prefix) => {
                        let problem = format!("its {:?} is of {:?} and names {prefix}", rule.id, rule.ethertype);
                        return Err(SpecError::Unfit { object, problem });
                    }
                }
            }
        }
        Ok(())
    }

    fn check_ports(&self) -> Result<(), SpecError> {
        let (mut keys, mut macs, mut addresses) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for port in self.ports.values() {
            let object = format!("{:?}", port.id);
            refer(&self.networks, &object, port.network)?;
            unique(&mut keys, port.key, &object, || format!("port key {}", port.key))?;
            unique(&mut macs, (port.network, port.mac), &object, || format!("MAC address {}", port.mac))?;
            if !port.mac.is_unicast() {
                return Err(SpecError::Unfit { object, problem: format!("{} is no unicast MAC address", port.mac) });
            }
            for fixed in &port.addresses {
                let no_station = fixed.address.is_multicast() || fixed.address.is_unspecified();
                if no_station || matches!(fixed.address, IpAddr::V6(address) if address.is_unicast_link_local()) {
                    return Err(SpecError::Unfit { object, problem: format!("it cannot own {}", fixed.address) });
                }
                let subnet = refer(&self.subnets, &object, fixed.subnet)?;
                unique(&mut addresses, (subnet.network, fixed.address), &object, || {
                    format!("address {}", fixed.address)
                })?;
                if subnet.network != port.network || !subnet.cidr.contains(&fixed.address) {
                    let problem = format!("its address {} does not belong to {:?}", fixed.address, fixed.subnet);
                    return Err(SpecError::Unfit { object, problem });
                }
            }
            if let Some(mac) = port.allowed_pairs.iter().filter_map(|pair| pair.mac).find(|mac| !mac.is_unicast()) {
                return Err(SpecError::Unfit {
                    object,
                    problem: format!("its allowed pair has {mac}, no unicast address"),
                });
            }
            let mut seen = BTreeSet::new();
            for group in &port.groups {
                refer(&self.groups, &object, *group)?;
                if !seen.insert(*group) {
                    return Err(SpecError::Twice { object: format!("{group:?} of {object}") });
                }
            }
        }
        Ok(())
    }
}

/// Time servers and routes are of the subnet's version, and next hops are on it.
fn check_announced(object: &str, subnet: &Subnet) -> Result<(), SpecError> {
    let refuse = |problem: String| Err(SpecError::Unfit { object: object.to_owned(), problem });
    let is_plain = subnet.cidr.addr().is_ipv4();
    if let Some(address) = subnet.announced.ntp.iter().find(|address| address.is_ipv4() != is_plain) {
        return refuse(format!("its time server {address} is of another version than {}", subnet.cidr));
    }
    for route in &subnet.announced.routes {
        if route.destination.addr().is_ipv4() != is_plain || !subnet.cidr.contains(&route.next_hop) {
            return refuse(format!(
                "its route to {} by {} does not begin in {}",
                route.destination, route.next_hop, subnet.cidr
            ));
        }
    }
    Ok(())
}

fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

fn by_id<I: Ord + Copy + std::fmt::Debug, T>(
    objects: Vec<T>,
    id: impl Fn(&T) -> I,
) -> Result<BTreeMap<I, T>, SpecError> {
    let mut map = BTreeMap::new();
    for object in objects {
        let id = id(&object);
        if map.insert(id, object).is_some() {
            return Err(SpecError::Twice { object: format!("{id:?}") });
        }
    }
    Ok(map)
}

fn refer<'a, I: Ord + std::fmt::Debug, T>(map: &'a BTreeMap<I, T>, object: &str, id: I) -> Result<&'a T, SpecError> {
    map.get(&id).ok_or_else(|| SpecError::Missing { object: object.to_owned(), target: format!("{id:?}") })
}

fn unique<K: Ord>(
    seen: &mut BTreeMap<K, String>,
    key: K,
    object: &str,
    what: impl Fn() -> String,
) -> Result<(), SpecError> {
    match seen.insert(key, object.to_owned()) {
        None => Ok(()),
        Some(other) => Err(SpecError::Shared { object: object.to_owned(), other, what: what() }),
    }
}

fn expect_kind(object: &str, image: &Image, kind: ImageKind) -> Result<(), SpecError> {
    if image.kind == kind {
        return Ok(());
    }
    let problem = format!("{:?} is of kind {:?}, want {kind:?}", image.id, image.kind);
    Err(SpecError::Unfit { object: object.to_owned(), problem })
}

#[cfg(test)]
mod tests;
