//! What differs between two specifications, object by object.
//!
//! Owns [`Changed`] and [`Edit`]. Never knows which flows follow: it tells the index, which tells which facts moved.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::address_group::AddressGroup;
use model::balancer::Balancer;
use model::firewall::FirewallPolicy;
use model::mirror::MirrorTarget;
use model::network::{Network, Port, Router, Subnet};
use model::provider::PhysicalNetwork;
use model::security::SecurityGroup;
use model::spec::HostNetwork;
use model::{
    AddressGroupId, BalancerId, FirewallPolicyId, Mac, NetworkId, PortId, RouterId, SecurityGroupId, SubnetId,
};
use openflow::flow::PortNo;

use super::index::{Index, Moved};
use super::unit::{Fact, Unit};
use super::{PortNumbers, Stations};
use crate::peer::{self, Peers};

/// One change to a specification, or to the port numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// Adds a port, or puts it in the place of the one with its identity.
    PutPort(Box<Port>),
    /// Takes a port away.
    RemovePort(PortId),
    /// Says at which OpenFlow port a port is plugged in, or that it is not.
    Plug(PortId, Option<PortNo>),
    /// Says which queue a port with a minimum has, or that it has none.
    Queue(PortId, Option<u32>),
    /// Says at which OpenFlow port the tunnel is plugged in, or that it is not.
    PlugTunnel(Option<PortNo>),
    /// Says which other hosts tell whether they are alive, and what they tell.
    Peers(Peers),
    /// Says at which OpenFlow ports physical networks are plugged in.
    PlugPhysical(BTreeMap<PhysicalNetwork, PortNo>),
    /// Says which MAC addresses stations outside have.
    Stations(Stations),
    /// Says which ports came here a while ago at most.
    Settling(BTreeSet<PortId>),
    /// Adds a security group, or puts it in the place of the one with its identity.
    PutGroup(Box<SecurityGroup>),
    /// Takes a security group away.
    RemoveGroup(SecurityGroupId),
    /// Adds an address group, or puts it in the place of the one with its identity.
    PutAddresses(Box<AddressGroup>),
    /// Takes an address group away.
    RemoveAddresses(AddressGroupId),
    /// Adds a firewall policy, or puts it in the place of the one with its identity.
    PutFirewallPolicy(Box<FirewallPolicy>),
}

/// What an edit replaced.
#[derive(Debug)]
pub(super) enum Before {
    Port(PortId, Option<Box<Port>>),
    Number(PortId),
    Tunnel,
    Peers(Peers),
    Physical,
    Stations(Stations),
    Settling(BTreeSet<PortId>),
    Group(SecurityGroupId, Option<Box<SecurityGroup>>),
    Addresses(AddressGroupId, Option<Box<AddressGroup>>),
    FirewallPolicy(FirewallPolicyId, Option<Box<FirewallPolicy>>),
}

impl Edit {
    /// Makes the change and gives back what was there.
    pub(super) fn exchange(self, network: &mut HostNetwork, numbers: &mut PortNumbers) -> Before {
        match self {
            Self::PutPort(port) => Before::Port(port.id, network.ports.insert(port.id, *port).map(Box::new)),
            Self::RemovePort(id) => Before::Port(id, network.ports.remove(&id).map(Box::new)),
            Self::Plug(id, number) => {
                match number {
                    Some(number) => numbers.ports.insert(id, number),
                    None => numbers.ports.remove(&id),
                };
                Before::Number(id)
            }
            Self::Queue(id, queue) => {
                match queue {
                    Some(queue) => numbers.queues.insert(id, queue),
                    None => numbers.queues.remove(&id),
                };
                Before::Number(id)
            }
            Self::PlugTunnel(number) => {
                numbers.vxlan = number;
                Before::Tunnel
            }
            Self::Peers(peers) => Before::Peers(std::mem::replace(&mut numbers.peers, peers)),
            Self::PlugPhysical(ports) => {
                numbers.physical = ports;
                Before::Physical
            }
            Self::Stations(stations) => Before::Stations(std::mem::replace(&mut numbers.stations, stations)),
            Self::Settling(ports) => Before::Settling(std::mem::replace(&mut numbers.settling, ports)),
            Self::PutGroup(group) => Before::Group(group.id, network.groups.insert(group.id, *group).map(Box::new)),
            Self::RemoveGroup(id) => Before::Group(id, network.groups.remove(&id).map(Box::new)),
            Self::PutAddresses(group) => {
                Before::Addresses(group.id, network.address_groups.insert(group.id, *group).map(Box::new))
            }
            Self::PutFirewallPolicy(policy) => {
                Before::FirewallPolicy(policy.id, network.firewall_policies.insert(policy.id, *policy).map(Box::new))
            }
            Self::RemoveAddresses(id) => Before::Addresses(id, network.address_groups.remove(&id).map(Box::new)),
        }
    }
}

/// An object before and after.
type Change<'a, T> = (Option<&'a T>, Option<&'a T>);

/// What differs between two specifications.
#[derive(Debug, Default)]
pub(super) struct Changed<'a> {
    networks: Vec<(NetworkId, Change<'a, Network>)>,
    subnets: Vec<(SubnetId, Change<'a, Subnet>)>,
    routers: Vec<(RouterId, Change<'a, Router>)>,
    firewall_policies: Vec<(FirewallPolicyId, Change<'a, FirewallPolicy>)>,
    groups: Vec<(SecurityGroupId, Change<'a, SecurityGroup>)>,
    address_groups: Vec<(AddressGroupId, Change<'a, AddressGroup>)>,
    balancers: Vec<(BalancerId, Change<'a, Balancer>)>,
    ports: Vec<(PortId, Change<'a, Port>)>,
    mirrors: Vec<(PortId, Change<'a, MirrorTarget>)>,
    numbers: Vec<PortId>,
    tunnel: bool,
    peers: bool,
    pulses: bool,
    physical: bool,
    stations: BTreeSet<NetworkId>,
}

impl<'a> Changed<'a> {
    pub(super) fn between(before: &'a HostNetwork, after: &'a HostNetwork) -> Self {
        Self {
            networks: differing(&before.networks, &after.networks),
            subnets: differing(&before.subnets, &after.subnets),
            routers: differing(&before.routers, &after.routers),
            firewall_policies: differing(&before.firewall_policies, &after.firewall_policies),
            groups: differing(&before.groups, &after.groups),
            address_groups: differing(&before.address_groups, &after.address_groups),
            balancers: differing(&before.balancers, &after.balancers),
            ports: differing(&before.ports, &after.ports),
            mirrors: differing(&before.mirrors, &after.mirrors),
            ..Self::default()
        }
    }

    pub(super) fn by(edits: &'a [Before], after: &'a HostNetwork, numbers: &PortNumbers) -> Self {
        let mut changed = Self::default();
        for edit in edits {
            // Of several edits of one object the first knows what was there before all of them.
            match edit {
                Before::Port(id, _) if changed.ports.iter().any(|(other, _)| other == id) => {}
                Before::Port(id, before) => changed.ports.push((*id, (before.as_deref(), after.ports.get(id)))),
                Before::Number(id) => changed.numbers.push(*id),
                Before::Tunnel => changed.tunnel = true,
                Before::Peers(before) => changed.peer(before, numbers),
                Before::Physical => changed.physical = true,
                Before::Stations(before) => changed.find(before, &numbers.stations),
                Before::Settling(before) => {
                    changed.numbers.extend(before.symmetric_difference(&numbers.settling));
                }
                Before::Group(id, _) if changed.groups.iter().any(|(other, _)| other == id) => {}
                Before::Group(id, before) => changed.groups.push((*id, (before.as_deref(), after.groups.get(id)))),
                Before::FirewallPolicy(id, _) if changed.firewall_policies.iter().any(|(other, _)| other == id) => {}
                Before::FirewallPolicy(id, before) => {
                    changed.firewall_policies.push((*id, (before.as_deref(), after.firewall_policies.get(id))));
                }
                Before::Addresses(id, _) if changed.address_groups.iter().any(|(other, _)| other == id) => {}
                Before::Addresses(id, before) => {
                    changed.address_groups.push((*id, (before.as_deref(), after.address_groups.get(id))));
                }
            }
        }
        changed
    }

    pub(super) fn number(&mut self, before: &PortNumbers, after: &PortNumbers) {
        self.tunnel = before.vxlan != after.vxlan;
        self.peer(&before.peers, after);
        self.physical = before.physical != after.physical;
        self.find(&before.stations, &after.stations);
        self.numbers.extend(differing(&before.ports, &after.ports).into_iter().map(|(id, _)| id));
        self.numbers.extend(before.settling.symmetric_difference(&after.settling));
        self.numbers.extend(differing(&before.queues, &after.queues).into_iter().map(|(id, _)| id));
    }

    fn find(&mut self, before: &Stations, after: &Stations) {
        let is_other = |(at, mac): &(&(NetworkId, IpAddr), &Mac), among: &Stations| among.get(at) != Some(mac);
        let gone = before.iter().filter(|station| is_other(station, after));
        let found = after.iter().filter(|station| is_other(station, before));
        self.stations.extend(gone.chain(found).map(|((network, _), _)| *network));
    }

    fn peer(&mut self, before: &Peers, after: &PortNumbers) {
        let is_other = *before != after.peers;
        self.pulses |= is_other;
        self.peers |= is_other && !peer::are_alike(before, &after.peers);
    }

    /// Brings an index up to date and says what moved.
    pub(super) fn enter(self, index: &mut Index, after: &HostNetwork) -> Moved {
        let mut moved = Moved::default();
        if !(self.networks.is_empty() && self.subnets.is_empty() && self.routers.is_empty()) {
            moved.structure();
        }
        let is_elsewhere = |(_, (before, after)): &(BalancerId, Change<'_, Balancer>)| {
            before.map(|it| it.subnet) != after.map(|it| it.subnet)
        };
        if self.balancers.iter().any(is_elsewhere) {
            moved.structure();
        }
        let places = |target: Option<&MirrorTarget>| target.map(|target| (target.place, target.senders.clone()));
        if self.mirrors.iter().any(|(_, (before, after))| places(*before) != places(*after)) {
            moved.structure();
        }
        moved.facts.extend(self.mirrors.iter().map(|(id, _)| Fact::Mirror(*id)));
        moved.facts.extend(self.balancers.iter().map(|(id, _)| Fact::Balancer(*id)));
        moved.facts.extend(self.networks.iter().map(|(id, _)| Fact::Network(*id)));
        moved.facts.extend(self.subnets.iter().map(|(id, _)| Fact::Subnet(*id)));
        moved.facts.extend(self.routers.iter().map(|(id, _)| Fact::Router(*id)));
        moved.units.extend(self.routers.iter().map(|(id, _)| Unit::Firewall(*id)));
        moved.facts.extend(self.firewall_policies.iter().map(|(id, _)| Fact::FirewallPolicy(*id)));
        moved.facts.extend(self.numbers.iter().map(|id| Fact::Number(*id)));
        moved.facts.extend(self.tunnel.then_some(Fact::Tunnel));
        moved.facts.extend(self.peers.then_some(Fact::Peers));
        moved.facts.extend(self.pulses.then_some(Fact::Pulses));
        moved.facts.extend(self.physical.then_some(Fact::Physical));
        moved.facts.extend(self.stations.iter().copied().map(Fact::Stations));
        for (id, (before, after)) in &self.groups {
            moved.facts.insert(Fact::Group(*id));
            moved.rules();
            if before.map(|group| group.stateful) != after.map(|group| group.stateful) {
                moved.facts.insert(Fact::Stateful(*id));
            }
            if before.zip(*after).is_some_and(|(before, after)| before.key != after.key) {
                moved.keys();
            }
        }
        for (id, (before, after)) in &self.address_groups {
            moved.facts.insert(Fact::Addresses(*id));
            let is_same = |(before, after): (&AddressGroup, &&AddressGroup)| {
                (&before.name, before.key) == (&after.name, after.key)
            };
            if !before.zip(after.as_ref()).is_some_and(is_same) {
                moved.facts.insert(Fact::Named(*id));
                moved.rules();
            }
        }
        for (id, (before, _)) in &self.ports {
            moved.facts.insert(Fact::Port(*id));
            if index.has_floating_ip(*id) {
                moved.structure();
            }
            if let Some(port) = before {
                index.remove_port(port, after.host, &mut moved);
            }
        }
        for port in self.ports.iter().filter_map(|(_, (_, port))| *port) {
            index.add_port(port, after.host, &mut moved);
        }
        index.settle(after, &mut moved);
        moved
    }
}

/// The objects that are not the same in both maps.
fn differing<'a, K: Ord + Copy, T: PartialEq>(
    before: &'a BTreeMap<K, T>,
    after: &'a BTreeMap<K, T>,
) -> Vec<(K, Change<'a, T>)> {
    let mut changes = Vec::new();
    let (mut old, mut new) = (before.iter().peekable(), after.iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return changes,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((old, _)), Some((new, _))) => old.cmp(new),
        };
        let before = if order.is_le() { old.next() } else { None };
        let after = if order.is_ge() { new.next() } else { None };
        let Some((key, _)) = before.or(after) else { return changes };
        let change = (before.map(|(_, value)| value), after.map(|(_, value)| value));
        if change.0 != change.1 {
            changes.push((*key, change));
        }
    }
}
