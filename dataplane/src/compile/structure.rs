//! What follows from networks, subnets, routers and load balancers as a whole: zones, who leads where, what is reached from outside.
//!
//! Owns [`Structure`], which is worked out from nothing whenever one of these changes, and says which facts are others then. Ports move none of it but by
//! which networks have one here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use model::network::{Router, Snat, Subnet};
use model::spec::HostNetwork;
use model::{HostId, Mac, NetworkId, PortId, RouterId, SubnetId};

use super::unit::Fact;
use crate::zone::{balancer_zones, firewall_zones, snat_zones, zones};

/// How what is in a subnet is reached by IPv6 from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct North {
    /// The router before it, and its key.
    pub(crate) router: RouterId,
    pub(crate) key: u16,
    /// Its MAC address in the subnet.
    pub(crate) foot: Mac,
    /// The network that it leads out to.
    pub(crate) outside: NetworkId,
    pub(crate) has_firewall: bool,
    /// Whether this host has the router's own address outside, or may come to have it.
    pub(crate) is_gate: bool,
}

/// What follows from networks, subnets and routers, and from which networks have a port here.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Structure {
    pub(super) zones: BTreeMap<NetworkId, u16>,
    pub(super) near_zones: BTreeSet<u16>,
    pub(super) routers: BTreeMap<NetworkId, BTreeSet<RouterId>>,
    pub(super) near_routers: BTreeSet<RouterId>,
    pub(super) routed: BTreeSet<NetworkId>,
    /// Ports with floating IPs, wherever they are.
    pub(super) floating: BTreeSet<PortId>,
    /// Networks with floating IPs of ports here, those that lead to routed addresses, and those where routers that translate here, or may have to, have their address.
    pub(super) outside: BTreeSet<NetworkId>,
    /// Networks behind routers that translate here, or may have to.
    pub(super) gated: BTreeSet<NetworkId>,
    pub(super) snat_zones: BTreeMap<RouterId, u16>,
    /// Of each router that translates here, or has a floating IP or a routed address of a port here, the addresses that share its zone.
    pub(super) inside: BTreeMap<RouterId, BTreeSet<IpNet>>,
    /// Subnets that are reached by IPv6 from outside, where they have ports here or this host may have to lead in.
    pub(super) norths: BTreeMap<SubnetId, North>,
    /// The networks outside that routers lead out to by IPv6, for ports here or as a gateway, with the gateways there.
    pub(super) north_gateways: BTreeMap<NetworkId, BTreeSet<Ipv6Addr>>,
    pub(super) balancer_zones: BTreeMap<NetworkId, u16>,
    pub(super) firewall_zones: BTreeMap<RouterId, u16>,
    /// The other hosts that are gateways of routers, get copies or send some, by tunnel endpoint.
    pub(super) others: BTreeMap<Ipv4Addr, HostId>,
}

impl Structure {
    /// Works it out from nothing, given the networks with a port here.
    pub(super) fn of(host: &HostNetwork, near: &BTreeSet<NetworkId>) -> Self {
        let (zones, snat_zones) = (zones(host), snat_zones(host));
        let balancer_zones = balancer_zones(host, &zones, &snat_zones);
        let taken = zones.values().chain(snat_zones.values()).chain(balancer_zones.values());
        let firewall_zones = firewall_zones(host, near, taken.copied());
        let mut structure = Self { zones, snat_zones, balancer_zones, firewall_zones, ..Self::default() };
        structure.look_outside(host);
        structure.look_north(host, near);
        structure.look_inside(host);
        let near_zones = near.iter().chain(&structure.outside).filter_map(|network| structure.zones.get(network));
        structure.near_zones = near_zones.copied().collect();
        for router in host.routers.values() {
            let subnets = router.interfaces.iter().filter_map(|foot| host.subnets.get(&foot.subnet));
            let networks: BTreeSet<NetworkId> = subnets.map(|subnet| subnet.network).collect();
            for network in &networks {
                structure.routers.entry(*network).or_default().insert(router.id);
            }
            let is_gateway = router.snat_among(host.host).is_some();
            if is_gateway {
                structure.gated.extend(&networks);
            }
            if is_gateway || !networks.is_disjoint(near) {
                structure.near_routers.insert(router.id);
                structure.routed.extend(networks);
            }
        }
        structure
    }

    /// Finds floating IPs, the gateways of routers, and hosts that copies go to or come from.
    fn look_outside(&mut self, host: &HostNetwork) {
        let places = host.mirrors.values().flat_map(|target| target.place.iter().chain(&target.senders));
        let places = places.filter(|place| place.host != host.host);
        self.others.extend(places.map(|place| (place.tunnel, place.host)));
        for router in host.routers.values() {
            let Some(external) = &router.external else { continue };
            let gateways = external.snat.iter().flat_map(|snat: &Snat| &snat.gateways);
            let others = gateways.filter(|gateway| gateway.host != host.host);
            self.others.extend(others.map(|gateway| (gateway.tunnel, gateway.host)));
            let is_gateway = router.snat_among(host.host).is_some();
            let ports = || external.floating_ips.iter().map(|floating| floating.port);
            self.floating.extend(ports());
            let is_here = |id: &PortId| host.ports.get(id).is_some_and(|port| port.is_on(host.host));
            let network = host.subnets.get(&external.subnet).map(|subnet| subnet.network);
            self.outside.extend(network.filter(|_| is_gateway || ports().any(|id| is_here(&id))));
        }
    }

    /// Finds what is reached by IPv6 from outside.
    fn look_north(&mut self, host: &HostNetwork, near: &BTreeSet<NetworkId>) {
        for router in host.routers.values() {
            let Some(gateway) = &router.ipv6_gateway else { continue };
            let others = gateway.gateways.iter().filter(|gateway| gateway.host != host.host);
            self.others.extend(others.map(|gateway| (gateway.tunnel, gateway.host)));
            let Some(external) = host.subnets.get(&gateway.subnet) else { continue };
            let Some(outside) = host.networks.get(&external.network) else { continue };
            let is_gate = router.ipv6_gateway_among(host.host).is_some();
            let routed = router.interfaces.iter().filter_map(|foot| Some((foot, host.subnets.get(&foot.subnet)?)));
            let routed = routed.filter(|(_, subnet)| outside.routes(subnet.cidr));
            let mut is_used = is_gate;
            for (foot, subnet) in routed.filter(|(_, it)| is_gate || near.contains(&it.network)) {
                let (key, has_firewall) = (router.key, router.firewall.is_some());
                let north =
                    North { router: router.id, key, foot: foot.mac, outside: outside.id, has_firewall, is_gate };
                self.norths.insert(subnet.id, north);
                is_used = true;
            }
            if is_used {
                self.outside.insert(outside.id);
                let gateways = self.north_gateways.entry(outside.id).or_default();
                gateways.extend(external.gateway.and_then(|address| match address {
                    IpAddr::V6(address) => Some(address),
                    IpAddr::V4(_) => None,
                }));
            }
        }
    }

    /// Finds what may be sent from behind routers that translate here, or have floating IPs or routed addresses here: subnets of all networks that share the zone, and what static routes there lead to.
    fn look_inside(&mut self, host: &HostNetwork) {
        let zone_of = |subnet: &Subnet| self.zones.get(&subnet.network);
        let zone_behind = |router: &Router| {
            let mut feet = router.interfaces.iter().filter_map(|foot| host.subnets.get(&foot.subnet));
            feet.find_map(zone_of)
        };
        let is_some = |range: &IpNet| range.prefix_len() > 0;
        let is_here = |id: &PortId| host.ports.get(id).is_some_and(|port| port.is_on(host.host));
        for router in host.routers.values() {
            let Some(zone) = zone_behind(router) else { continue };
            let translates = self.snat_zones.contains_key(&router.id);
            let floats = || router.external.iter().flat_map(|external| &external.floating_ips);
            let leads_in = self.norths.values().any(|north| north.router == router.id);
            if !translates && !leads_in && !floats().any(|floating| is_here(&floating.port)) {
                continue;
            }
            let external = router.external.as_ref().map(|external| external.subnet);
            let external = external.into_iter().chain(router.ipv6_gateway.as_ref().map(|gateway| gateway.subnet));
            let outside: BTreeSet<NetworkId> =
                external.filter_map(|id| host.subnets.get(&id)).map(|subnet| subnet.network).collect();
            let subnets = host.subnets.values().filter(|subnet| zone_of(subnet) == Some(zone));
            let subnets = subnets.filter(|subnet| !outside.contains(&subnet.network)).map(|subnet| subnet.cidr);
            let routers = host.routers.values().filter(|other| zone_behind(other) == Some(zone));
            let routes = routers.flat_map(|router| &router.routes).map(|route| route.destination);
            self.inside.insert(router.id, subnets.chain(routes).filter(is_some).collect());
        }
    }

    /// What is another fact than it was before.
    pub(super) fn changes_from(&self, before: &Self, facts: &mut BTreeSet<Fact>) {
        facts.extend(differing(&before.zones, &self.zones).map(Fact::Zone));
        facts.extend(differing(&before.routers, &self.routers).map(Fact::Feet));
        facts.extend(before.near_zones.symmetric_difference(&self.near_zones).copied().map(Fact::NearZone));
        facts.extend(before.near_routers.symmetric_difference(&self.near_routers).copied().map(Fact::NearRouter));
        let outside: Vec<_> = before.outside.symmetric_difference(&self.outside).copied().collect();
        facts.extend(outside.iter().copied().map(Fact::Outside));
        facts.extend(outside.into_iter().map(Fact::Near));
        facts.extend(before.gated.symmetric_difference(&self.gated).copied().map(Fact::Gated));
        facts.extend(differing(&before.snat_zones, &self.snat_zones).map(Fact::SnatZone));
        facts.extend(differing(&before.inside, &self.inside).map(Fact::Inside));
        facts.extend(differing(&before.norths, &self.norths).map(Fact::North));
        facts.extend(differing(&before.north_gateways, &self.north_gateways).map(Fact::NorthOf));
        facts.extend(differing(&before.balancer_zones, &self.balancer_zones).map(Fact::BalancerZone));
        facts.extend(differing(&before.firewall_zones, &self.firewall_zones).map(Fact::FirewallZone));
        facts.extend(differing(&before.others, &self.others).map(Fact::HostOf));
        facts.extend(before.routed.symmetric_difference(&self.routed).copied().map(Fact::Routed));
    }
}

/// The keys under which two maps say different things.
pub(super) fn differing<'a, K: Ord + Copy, V: PartialEq>(
    before: &'a BTreeMap<K, V>,
    after: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = K> + 'a {
    let gone = before.keys().filter(|key| !after.contains_key(key));
    let others = after.iter().filter(|(key, value)| before.get(key) != Some(value)).map(|(key, _)| key);
    gone.chain(others).copied()
}
