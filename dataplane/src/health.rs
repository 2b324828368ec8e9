//! Health checks of members of load balancers: whom this host asks, what, and what it makes of the answers.
//!
//! Owns [`Target`], a member that is plugged in here, and how those are found in a host's networks. [`check`] is one question with its answers, [`Engine`]
//! asks all of them in time and keeps the verdicts; the shell that moves frames is [`switch`](crate::switch). Never asks a member of another host: its own
//! agent does, and tells the scheduler. Invariant: what is asked here is what [`feature::health`](crate::feature) hands the answers of to the agent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::balancer::monitor::Monitor;
use model::balancer::{Balancer, MemberRef};
use model::network::Port;
use model::spec::HostNetwork;
use model::{Mac, NetworkId, PortId};

pub mod check;
mod engine;
mod stream;

pub use engine::{CHECKS_MAX, DATAGRAMS_MAX, Engine};

use crate::compile::PortNumbers;

/// A member that is checked from here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Which one.
    pub member: MemberRef,
    /// The key of its port.
    pub port: u32,
    /// The address that it is asked from: its load balancer's.
    pub source: IpAddr,
    /// The MAC address that it is asked from, and its own.
    pub macs: (Mac, Mac),
    /// The MTU of its network.
    pub mtu: u16,
    /// How it is checked.
    pub monitor: Monitor,
    /// What the specification says of it: the verdict from before.
    pub in_error: bool,
}

/// The members that are plugged in here and checked.
#[must_use]
pub fn targets(host: &HostNetwork, numbers: &PortNumbers) -> BTreeMap<MemberRef, Target> {
    let is_checked = |balancer: &&Balancer| balancer.listeners.iter().any(|listener| listener.checks().is_some());
    let balancers: Vec<&Balancer> = host.balancers.values().filter(is_checked).collect();
    if balancers.is_empty() {
        return BTreeMap::new();
    }
    let places = Places::of(host);
    let mut targets = BTreeMap::new();
    for balancer in balancers {
        for listener in &balancer.listeners {
            let Some(monitor) = listener.checks() else { continue };
            for member in &listener.members {
                let found = places.seat(balancer, member.address).filter(|(port, _)| port.is_on(host.host));
                let Some((port, mac)) = found.filter(|(port, _)| numbers.of(port).is_some()) else { continue };
                let Some(network) = host.networks.get(&port.network) else { continue };
                let id = MemberRef {
                    balancer: balancer.id,
                    protocol: listener.protocol,
                    listener: listener.port,
                    address: member.address,
                    port: member.port,
                };
                let target = Target {
                    member: id,
                    port: port.key,
                    source: balancer.address,
                    macs: (mac, port.mac),
                    mtu: network.mtu,
                    monitor: monitor.clone(),
                    in_error: member.in_error,
                };
                targets.insert(id, target);
            }
        }
    }
    targets
}

/// Where addresses are, as clients of a load balancer find them.
struct Places<'a> {
    host: &'a HostNetwork,
    /// Ports that are plugged in somewhere, by address, in order of identity.
    ports: BTreeMap<IpAddr, BTreeMap<PortId, &'a Port>>,
    /// Networks with a port here.
    near: BTreeSet<NetworkId>,
}

impl<'a> Places<'a> {
    fn of(host: &'a HostNetwork) -> Self {
        let mut ports = BTreeMap::<_, BTreeMap<_, _>>::new();
        for port in host.ports.values().filter(|port| port.binding.is_some()) {
            for fixed in &port.addresses {
                ports.entry(fixed.address).or_default().insert(port.id, port);
            }
        }
        Self { host, ports, near: host.local_ports().map(|port| port.network).collect() }
    }

    /// The port that a load balancer gives connections for this address to, and the MAC address that leads there: its own, or the router's.
    fn seat(&self, balancer: &Balancer, address: IpAddr) -> Option<(&'a Port, Mac)> {
        let network = self.host.subnets.get(&balancer.subnet)?.network;
        let ports = self.ports.get(&address)?;
        if let Some(port) = ports.values().find(|port| port.network == network) {
            return Some((port, balancer.mac));
        }
        let stands = |router: &&model::network::Router| {
            let is_near = |subnet| self.host.subnets.get(subnet).is_some_and(|it| self.near.contains(&it.network));
            let mut feet = router.interfaces.iter();
            feet.any(|foot| foot.subnet == balancer.subnet)
                && router.interfaces.iter().any(|foot| is_near(&foot.subnet))
        };
        self.host.routers.values().filter(stands).find_map(|router| {
            ports.values().find_map(|port| {
                let fixed = port.addresses.iter().filter(|fixed| fixed.address == address);
                let foot = |subnet| router.interfaces.iter().find(|foot| foot.subnet == subnet);
                let foot = fixed.into_iter().find_map(|fixed| foot(fixed.subnet))?;
                Some((*port, foot.mac))
            })
        })
    }
}

#[cfg(test)]
mod tests;
