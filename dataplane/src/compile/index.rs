//! What follows from a specification, kept up to date one change at a time.
//!
//! Owns [`Index`]: who is where, which networks routers join, which identities there are. Never makes a flow. Each change answers with the
//! [`Fact`]s that are others now.
//! Invariant: an index that followed changes equals one that was made from nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use model::network::Port;
use model::security::{Direction, Remote};
use model::spec::HostNetwork;
use model::{AddressGroupId, HostId, NetworkId, PortId, RouterId, SecurityGroupId, SubnetId};

use super::structure::{North, Structure, differing};
use super::unit::{Fact, Unit};
use crate::identity::{Groups, Identities, groups};

/// The other side of rules that share a conjunction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Other {
    /// Members of a security group.
    Group(SecurityGroupId),
    /// Addresses of an address group.
    Addresses(AddressGroupId),
}

impl Other {
    /// What a rule names, if it is one of these.
    pub(crate) const fn of(remote: Remote) -> Option<Self> {
        match remote {
            Remote::Group(id) => Some(Self::Group(id)),
            Remote::Addresses(id) => Some(Self::Addresses(id)),
            Remote::Any | Remote::Prefix(_) => None,
        }
    }

    /// The key in flows, and how its kind is told from the other.
    fn key(self, host: &HostNetwork) -> Option<(u32, u8)> {
        match self {
            Self::Group(id) => host.groups.get(&id).map(|group| (group.key, 0)),
            Self::Addresses(id) => host.address_groups.get(&id).map(|group| (group.key, 2)),
        }
    }
}

/// The rules of one group that name one other side, in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pair {
    pub(super) group: SecurityGroupId,
    pub(super) remote: Other,
    pub(super) direction: Direction,
}

/// How many ports are in a set of groups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Uses {
    all: usize,
    /// Those plugged in here whose groups hold.
    guarded: usize,
}

/// What follows from a specification.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    locals: BTreeMap<NetworkId, BTreeSet<PortId>>,
    endpoints: BTreeMap<NetworkId, BTreeMap<Ipv4Addr, usize>>,
    hosts: BTreeMap<Ipv4Addr, BTreeMap<HostId, usize>>,
    at: BTreeMap<IpAddr, BTreeSet<PortId>>,
    sets: BTreeMap<Groups, Uses>,
    identities: Identities,
    own: BTreeMap<SecurityGroupId, BTreeSet<u32>>,
    with: BTreeMap<SecurityGroupId, BTreeSet<u32>>,
    asked: BTreeSet<SecurityGroupId>,
    conjunctions: BTreeMap<Pair, u32>,
    users: BTreeMap<AddressGroupId, BTreeSet<(SecurityGroupId, Direction)>>,
    structure: Structure,
}

/// What a change of the index has moved.
#[derive(Debug, Default)]
pub(super) struct Moved {
    pub(super) facts: BTreeSet<Fact>,
    /// Units that came, went, or are to be made again.
    pub(super) units: BTreeSet<Unit>,
    structure: bool,
    security: bool,
    identities: bool,
}

impl Moved {
    /// Networks, subnets, routers or load balancers are others.
    pub(super) const fn structure(&mut self) {
        self.structure = true;
    }

    /// Rules are others, or groups came or went.
    pub(super) const fn rules(&mut self) {
        self.security = true;
    }

    /// A group has another key: every number that was made from keys may be another.
    pub(super) const fn keys(&mut self) {
        self.security = true;
        self.identities = true;
    }
}

impl Index {
    pub(super) fn is_near(&self, network: NetworkId) -> bool {
        self.locals.contains_key(&network) || self.is_outside(network)
    }

    pub(super) fn inside(&self, router: RouterId) -> Option<&BTreeSet<IpNet>> {
        self.structure.inside.get(&router)
    }

    pub(super) fn north(&self, subnet: SubnetId) -> Option<North> {
        self.structure.norths.get(&subnet).copied()
    }

    pub(super) fn north_gateways(&self, network: NetworkId) -> Option<&BTreeSet<Ipv6Addr>> {
        self.structure.north_gateways.get(&network)
    }

    pub(super) fn is_outside(&self, network: NetworkId) -> bool {
        self.structure.outside.contains(&network)
    }

    pub(super) fn has_floating_ip(&self, port: PortId) -> bool {
        self.structure.floating.contains(&port)
    }

    pub(super) fn zone(&self, network: NetworkId) -> Option<u16> {
        self.structure.zones.get(&network).copied()
    }

    pub(super) fn snat_zone(&self, router: RouterId) -> Option<u16> {
        self.structure.snat_zones.get(&router).copied()
    }

    pub(super) fn balancer_zone(&self, network: NetworkId) -> Option<u16> {
        self.structure.balancer_zones.get(&network).copied()
    }

    pub(super) fn firewall_zone(&self, router: RouterId) -> Option<u16> {
        self.structure.firewall_zones.get(&router).copied()
    }

    pub(super) fn is_gated(&self, network: NetworkId) -> bool {
        self.structure.gated.contains(&network)
    }

    pub(super) fn is_near_zone(&self, zone: u16) -> bool {
        self.structure.near_zones.contains(&zone)
    }

    pub(super) fn locals(&self, network: NetworkId) -> impl Iterator<Item = PortId> {
        self.locals.get(&network).into_iter().flatten().copied()
    }

    pub(super) fn endpoints(&self, network: NetworkId) -> BTreeSet<Ipv4Addr> {
        self.endpoints.get(&network).into_iter().flat_map(BTreeMap::keys).copied().collect()
    }

    pub(super) fn host_of(&self, endpoint: Ipv4Addr) -> Option<HostId> {
        let holder = self.hosts.get(&endpoint).and_then(|hosts| hosts.keys().next_back());
        holder.or_else(|| self.structure.others.get(&endpoint)).copied()
    }

    pub(super) fn routers_of(&self, network: NetworkId) -> impl Iterator<Item = RouterId> {
        self.structure.routers.get(&network).into_iter().flatten().copied()
    }

    pub(super) fn is_near_router(&self, router: RouterId) -> bool {
        self.structure.near_routers.contains(&router)
    }

    pub(super) fn is_routed(&self, network: NetworkId) -> bool {
        self.structure.routed.contains(&network)
    }

    pub(super) fn ports_at(&self, address: IpAddr) -> impl Iterator<Item = PortId> {
        self.at.get(&address).into_iter().flatten().copied()
    }

    pub(super) fn identity(&self, groups: &Groups) -> Option<u32> {
        self.identities.get(groups)
    }

    pub(super) fn own(&self, group: SecurityGroupId) -> BTreeSet<u32> {
        self.own.get(&group).cloned().unwrap_or_default()
    }

    pub(super) fn with(&self, group: SecurityGroupId) -> BTreeSet<u32> {
        self.with.get(&group).cloned().unwrap_or_default()
    }

    pub(super) fn is_asked(&self, group: SecurityGroupId) -> bool {
        self.asked.contains(&group)
    }

    pub(super) fn users(&self, group: AddressGroupId) -> BTreeSet<(SecurityGroupId, Direction)> {
        self.users.get(&group).cloned().unwrap_or_default()
    }

    pub(super) fn conjunction(&self, pair: Pair) -> u32 {
        self.conjunctions.get(&pair).copied().unwrap_or_default()
    }

    /// Whether some port is in exactly these groups.
    pub(super) fn has_set(&self, groups: &Groups) -> bool {
        self.sets.contains_key(groups)
    }

    /// Forgets a port as it was.
    pub(super) fn remove_port(&mut self, port: &Port, here: HostId, moved: &mut Moved) {
        for fixed in &port.addresses {
            moved.facts.insert(Fact::At(fixed.address));
            remove_from(&mut self.at, fixed.address, &port.id);
        }
        let set = groups(port);
        let uses = self.sets.entry(Groups::clone(&set)).or_default();
        uses.all -= 1;
        if is_guarded(port, here) {
            uses.guarded -= 1;
        }
        self.count(&set, moved);
        if is_wired(port, here) {
            moved.facts.insert(Fact::Locals(port.network));
            if remove_from(&mut self.locals, port.network, &port.id) {
                moved.facts.insert(Fact::Near(port.network));
                moved.structure();
            }
        }
        for (endpoint, host) in elsewhere(port, here) {
            if uncount(self.endpoints.entry(port.network).or_default(), endpoint) {
                moved.facts.insert(Fact::Endpoints(port.network));
            }
            let hosts = self.hosts.entry(endpoint).or_default();
            if uncount(hosts, host) {
                moved.facts.insert(Fact::HostOf(endpoint));
            }
            if hosts.is_empty() {
                self.hosts.remove(&endpoint);
            }
            if self.endpoints.get(&port.network).is_some_and(BTreeMap::is_empty) {
                self.endpoints.remove(&port.network);
            }
        }
    }

    /// Takes up a port as it is.
    pub(super) fn add_port(&mut self, port: &Port, here: HostId, moved: &mut Moved) {
        for fixed in &port.addresses {
            moved.facts.insert(Fact::At(fixed.address));
            self.at.entry(fixed.address).or_default().insert(port.id);
        }
        let set = groups(port);
        let uses = self.sets.entry(Groups::clone(&set)).or_default();
        uses.all += 1;
        if is_guarded(port, here) {
            uses.guarded += 1;
        }
        self.count(&set, moved);
        if is_wired(port, here) {
            moved.facts.insert(Fact::Locals(port.network));
            let locals = self.locals.entry(port.network).or_default();
            if locals.is_empty() {
                moved.facts.insert(Fact::Near(port.network));
                moved.structure();
            }
            locals.insert(port.id);
        }
        for (endpoint, host) in elsewhere(port, here) {
            if count(self.endpoints.entry(port.network).or_default(), endpoint) {
                moved.facts.insert(Fact::Endpoints(port.network));
            }
            if count(self.hosts.entry(endpoint).or_default(), host) {
                moved.facts.insert(Fact::HostOf(endpoint));
            }
        }
    }

    /// Notes a set whose number of ports has changed, to be settled once all ports have.
    fn count(&mut self, set: &Groups, moved: &mut Moved) {
        moved.units.insert(Unit::Identity(Groups::clone(set)));
    }

    /// Brings all that follows up to date, once all ports have been removed and added.
    pub(super) fn settle(&mut self, host: &HostNetwork, moved: &mut Moved) {
        if moved.structure {
            let near: BTreeSet<NetworkId> = self.locals.keys().copied().collect();
            let structure = Structure::of(host, &near);
            structure.changes_from(&self.structure, &mut moved.facts);
            self.structure = structure;
        }
        self.settle_identities(host, moved);
        if moved.security {
            self.settle_security(host, moved);
        }
    }

    fn settle_identities(&mut self, host: &HostNetwork, moved: &mut Moved) {
        let sets: Vec<Groups> = moved
            .units
            .iter()
            .filter_map(|unit| if let Unit::Identity(set) = unit { Some(set) } else { None })
            .cloned()
            .collect();
        let before = moved.identities.then(|| self.identities.clone());
        let mut is_crowded = moved.identities;
        for set in &sets {
            let uses = self.sets.get(set).copied().unwrap_or_default();
            if uses.all == 0 {
                self.sets.remove(set);
            }
            let known = self.identities.get(set);
            let is_settled = match (known, uses.all) {
                (Some(number), 0) => {
                    self.drop_number(set, number, moved);
                    self.identities.remove(set)
                }
                (None, 1..) => self.identities.add(set, &host.groups),
                _ => true,
            };
            is_crowded |= !is_settled;
        }
        if is_crowded {
            let fresh = Identities::of(self.sets.keys(), &host.groups);
            let before = before.unwrap_or_else(|| self.identities.clone());
            if fresh.moved_from(&before) {
                moved.facts.insert(Fact::Identities);
            }
            self.identities = fresh;
            self.number_all(moved);
            return;
        }
        for set in &sets {
            self.number(set, moved);
        }
    }

    /// Enters the number of a set under its groups.
    fn number(&mut self, set: &Groups, moved: &mut Moved) {
        let Some(number) = self.identities.get(set) else { return };
        let guarded = self.sets.get(set).is_some_and(|uses| uses.guarded > 0);
        for group in set.iter() {
            if self.with.entry(*group).or_default().insert(number) {
                moved.facts.insert(Fact::With(*group));
            }
            let own = self.own.entry(*group).or_default();
            let (was_empty, changed) = (own.is_empty(), if guarded { own.insert(number) } else { own.remove(&number) });
            if changed {
                moved.facts.insert(Fact::Own(*group));
                moved.security |= was_empty || own.is_empty();
            }
            if own.is_empty() {
                self.own.remove(group);
            }
        }
    }

    fn drop_number(&mut self, set: &Groups, number: u32, moved: &mut Moved) {
        for group in set.iter() {
            moved.facts.insert(Fact::With(*group));
            remove_from(&mut self.with, *group, &number);
            if self.own.get(group).is_some_and(|own| own.contains(&number)) {
                moved.facts.insert(Fact::Own(*group));
                moved.security |= remove_from(&mut self.own, *group, &number);
            }
        }
    }

    /// Enters all numbers again, because some may have moved.
    fn number_all(&mut self, moved: &mut Moved) {
        let before = (std::mem::take(&mut self.own), std::mem::take(&mut self.with));
        let sets: Vec<(Groups, u32)> =
            self.identities.iter().map(|(set, number)| (Groups::clone(set), number)).collect();
        for (set, number) in sets {
            let guarded = self.sets.get(&set).is_some_and(|uses| uses.guarded > 0);
            for group in set.iter() {
                self.with.entry(*group).or_default().insert(number);
                if guarded {
                    self.own.entry(*group).or_default().insert(number);
                }
            }
        }
        moved.security = true;
        moved.facts.extend(differing(&before.0, &self.own).map(Fact::Own));
        moved.facts.extend(differing(&before.1, &self.with).map(Fact::With));
    }

    /// Which groups are asked for, and the numbers of conjunctions.
    fn settle_security(&mut self, host: &HostNetwork, moved: &mut Moved) {
        let mut asked = BTreeSet::new();
        let mut pairs = BTreeSet::new();
        let mut users: BTreeMap<AddressGroupId, BTreeSet<(SecurityGroupId, Direction)>> = BTreeMap::new();
        for group in self.own.keys().filter_map(|id| host.groups.get(id)) {
            for rule in &group.rules {
                let Some(remote) = Other::of(rule.remote) else { continue };
                pairs.insert(Pair { group: group.id, remote, direction: rule.direction });
                match remote {
                    Other::Group(id) if rule.direction == Direction::Ingress => drop(asked.insert(id)),
                    Other::Group(_) => {}
                    Other::Addresses(id) => drop(users.entry(id).or_default().insert((group.id, rule.direction))),
                }
            }
        }
        moved.facts.extend(self.asked.symmetric_difference(&asked).copied().map(Fact::Asked));
        self.asked = asked;
        moved.facts.extend(differing(&self.users, &users).map(Fact::Users));
        self.users = users;
        let conjunctions = conjunctions(host, &pairs);
        if conjunctions.iter().any(|(pair, id)| self.conjunctions.get(pair).is_some_and(|before| before != id)) {
            moved.facts.insert(Fact::Conjunctions);
        }
        self.conjunctions = conjunctions;
    }
}

/// A number for the rules of one group towards another: made from their keys, so that it stays when others come and go, and the next that is free
/// where two meet.
fn conjunctions(host: &HostNetwork, pairs: &BTreeSet<Pair>) -> BTreeMap<Pair, u32> {
    let mut taken = BTreeSet::from([0]);
    let mut numbers = BTreeMap::new();
    for pair in pairs {
        let key = host.groups.get(&pair.group).map_or(0, |group| group.key);
        let (other, kind) = pair.remote.key(host).unwrap_or_default();
        let direction = [kind | u8::from(pair.direction == Direction::Ingress)];
        let octets = [key, other].into_iter().flat_map(u32::to_be_bytes).chain(direction);
        let mut id = octets.fold(0x811c_9dc5_u32, |hash, octet| (hash ^ u32::from(octet)).wrapping_mul(0x0100_0193));
        while !taken.insert(id) {
            id = id.wrapping_add(1);
        }
        numbers.insert(*pair, id);
    }
    numbers
}

fn is_guarded(port: &Port, here: HostId) -> bool {
    port.port_security && (port.is_on(here) || port.is_awaited_on(here))
}

/// Whether a port has a tap here, be it awaited only.
fn is_wired(port: &Port, here: HostId) -> bool {
    port.is_on(here) || port.is_awaited_on(here)
}

/// The other hosts that a port is on, or awaited on.
fn elsewhere(port: &Port, here: HostId) -> impl Iterator<Item = (Ipv4Addr, HostId)> {
    let home = port.binding.as_ref().map(|binding| (binding.tunnel, binding.host));
    let next = port.arriving.map(|arrival| (arrival.tunnel, arrival.host));
    home.into_iter().chain(next).filter(move |(_, host)| *host != here)
}

/// Counts one more; true when it is the first.
fn count<K: Ord>(counts: &mut BTreeMap<K, usize>, key: K) -> bool {
    let count = counts.entry(key).or_default();
    *count += 1;
    *count == 1
}

/// Counts one less; true when it was the last.
fn uncount<K: Ord>(counts: &mut BTreeMap<K, usize>, key: K) -> bool {
    let Some(count) = counts.get_mut(&key) else { return false };
    *count -= 1;
    *count == 0 && counts.remove(&key).is_some()
}

/// Removes a member from a set; true when the set is empty then, and gone.
fn remove_from<K: Ord + Copy, T: Ord>(sets: &mut BTreeMap<K, BTreeSet<T>>, key: K, member: &T) -> bool {
    let Some(set) = sets.get_mut(&key) else { return false };
    set.remove(member);
    set.is_empty() && sets.remove(&key).is_some()
}
