//! From a host's networks to the flows that should exist: pure, complete and deterministic.
//!
//! Owns `Plan`, the reading of the networks that all features share (zones, identities, which ports and networks matter here), and the order in
//! which features add their flows. Never reads what is installed: that is [`diff`](mod@crate::diff)'s part.
//! Invariant: equal inputs give equal flow sets; a flow's key (table, priority, match) is wanted once, or twice for the same actions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use model::network::{Network, Port, Router, RouterInterface, Subnet};
use model::spec::HostNetwork;
use model::{NetworkId, PortId};
use openflow::flow::PortNo;

use crate::cookie::Object;
use crate::feature::{arp, canary, classify, deliver, dhcp, forward, identity, router, security, tunnel};
use crate::flow_set::FlowSet;
use crate::identity::{Identities, NOBODY};
use crate::zone::zones;

/// The numbers that the switch gave to what is plugged into it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortNumbers {
    /// The OpenFlow port of each local port that is plugged in. A port without one gets no traffic yet.
    pub ports: BTreeMap<PortId, PortNo>,
    /// The OpenFlow port of the VXLAN tunnel; none: hosts do not reach each other yet.
    pub vxlan: Option<PortNo>,
}

/// What features read.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) host: &'a HostNetwork,
    pub(crate) vxlan: Option<PortNo>,
    pub(crate) identities: Identities,
    /// Networks with a port here, in order of identity.
    pub(crate) segments: Vec<Segment<'a>>,
    /// Routers with a foot in one of those.
    pub(crate) routers: Vec<&'a Router>,
}

/// A network with at least one port here.
#[derive(Debug)]
pub(crate) struct Segment<'a> {
    pub(crate) network: &'a Network,
    pub(crate) zone: u16,
    /// Ports that are plugged in here, with their OpenFlow port where they have one.
    pub(crate) local: Vec<Local<'a>>,
    /// Ports that are plugged in elsewhere.
    pub(crate) remote: Vec<&'a Port>,
    /// Tunnel endpoints of the other hosts that have a port on it.
    pub(crate) endpoints: BTreeSet<Ipv4Addr>,
    /// Feet of routers in subnets of it.
    pub(crate) feet: Vec<(&'a Router, &'a RouterInterface)>,
}

/// A port that is plugged in here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Local<'a> {
    pub(crate) port: &'a Port,
    pub(crate) number: Option<PortNo>,
}

/// Where a port is, as seen from this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Here,
    There(Ipv4Addr),
    Nowhere,
}

/// Makes the flows and groups that this host should have.
#[must_use]
pub fn compile(host: &HostNetwork, numbers: &PortNumbers) -> FlowSet {
    let plan = Plan::new(host, numbers);
    let mut set = FlowSet::default();
    plan.add_names(&mut set);
    canary::add(&mut set);
    classify::add(&plan, &mut set);
    identity::add(&plan, &mut set);
    arp::add(&plan, &mut set);
    dhcp::add(&plan, &mut set);
    forward::add(&plan, &mut set);
    router::add(&plan, &mut set);
    security::add(&plan, &mut set);
    deliver::add(&plan, &mut set);
    tunnel::add(&plan, &mut set);
    set
}

impl<'a> Plan<'a> {
    fn new(host: &'a HostNetwork, numbers: &PortNumbers) -> Self {
        let zones = zones(host);
        let near: BTreeSet<NetworkId> = host.local_ports().map(|port| port.network).collect();
        let segments: Vec<Segment<'a>> = near
            .iter()
            .filter_map(|id| Some((host.networks.get(id)?, *zones.get(id)?)))
            .map(|(network, zone)| Segment::new(host, numbers, network, zone))
            .collect();
        let keys: BTreeSet<u16> = segments.iter().flat_map(|s| &s.feet).map(|(router, _)| router.key).collect();
        let routers = host.routers.values().filter(|router| keys.contains(&router.key)).collect();
        Self { host, vxlan: numbers.vxlan, identities: Identities::of(host), segments, routers }
    }

    /// The subnet of a router's foot.
    pub(crate) fn subnet_of(&self, foot: &RouterInterface) -> Option<(&'a Subnet, &'a Network)> {
        let subnet = self.host.subnets.get(&foot.subnet)?;
        Some((subnet, self.host.networks.get(&subnet.network)?))
    }

    /// The networks that routers here lead to, near ones included.
    pub(crate) fn routed_networks(&self) -> BTreeSet<NetworkId> {
        let feet = self.routers.iter().flat_map(|router| &router.interfaces);
        feet.filter_map(|foot| self.subnet_of(foot)).map(|(_, network)| network.id).collect()
    }

    pub(crate) fn place(&self, port: &Port) -> Place {
        match &port.binding {
            None => Place::Nowhere,
            Some(binding) if binding.host == self.host.host => Place::Here,
            Some(binding) => Place::There(binding.tunnel),
        }
    }

    /// Gives every object that cookies name the name its owner gave it.
    fn add_names(&self, set: &mut FlowSet) {
        for network in self.host.networks.values() {
            set.name(Object::Network(network.vni.get()), format!("network {}", network.name));
        }
        for router in self.host.routers.values() {
            set.name(Object::Router(router.key.into()), format!("router {}", router.name));
        }
        for group in self.host.groups.values() {
            set.name(Object::Group(group.key), format!("security group {}", group.name));
        }
        set.name(Object::Identity(NOBODY), "no security group".to_owned());
        for (identity, groups) in self.identities.iter() {
            let names: Vec<&str> =
                groups.iter().filter_map(|id| self.host.groups.get(id)).map(|g| g.name.as_str()).collect();
            set.name(Object::Identity(identity), format!("members of {}", names.join(" and ")));
        }
        for port in self.host.ports.values() {
            set.name(Object::Port(port.key), format!("port {}", port.name));
            if let Some(binding) = port.binding.as_ref().filter(|binding| binding.host != self.host.host) {
                set.name_host(binding.tunnel, binding.host);
            }
        }
    }
}

impl<'a> Segment<'a> {
    fn new(host: &'a HostNetwork, numbers: &PortNumbers, network: &'a Network, zone: u16) -> Self {
        let mut segment =
            Self { network, zone, local: Vec::new(), remote: Vec::new(), endpoints: BTreeSet::new(), feet: Vec::new() };
        for port in host.ports.values().filter(|port| port.network == network.id) {
            match &port.binding {
                Some(_) if port.is_on(host.host) => {
                    segment.local.push(Local { port, number: numbers.ports.get(&port.id).copied() });
                }
                Some(binding) => {
                    segment.endpoints.insert(binding.tunnel);
                    segment.remote.push(port);
                }
                None => {}
            }
        }
        for router in host.routers.values() {
            for foot in &router.interfaces {
                if host.subnets.get(&foot.subnet).is_some_and(|subnet| subnet.network == network.id) {
                    segment.feet.push((router, foot));
                }
            }
        }
        segment
    }

    pub(crate) fn vni(&self) -> u32 {
        self.network.vni.get()
    }

    /// Every port that is plugged in somewhere.
    pub(crate) fn ports(&self) -> impl Iterator<Item = &'a Port> {
        self.local.iter().map(|local| local.port).chain(self.remote.iter().copied())
    }
}
