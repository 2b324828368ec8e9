//! Flows, groups and meters that should exist together, with what is needed to speak of them in the users' words.
//!
//! Owns [`FlowSet`]: flows by their place in the switch, groups and meters by number, the names that owners gave to objects. It is put together
//! from `Part`s, one per unit, and a copy of it costs nothing: what two sets have in common they share. Never knows what is installed.
//! Invariant: one flow for each place; two parts may want the same flow for the same actions, not for others. Equal parts give equal sets, in
//! whatever order they came and went.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::ops::Bound;
use std::sync::Arc;

use model::HostId;
use model::provider::VlanId;
use openflow::flow::{Action, Flow, FlowKey, Group, Match, PortNo};
use openflow::wire::Meter;
use rpds::RedBlackTreeMapSync;

use crate::compile::unit::Unit;
use crate::cookie::{Cookie, Object};
use crate::table::Table;

mod assembly;
mod part;
mod place;

pub(crate) use assembly::Assembly;
pub(crate) use part::Part;
use place::{Place, Placed};

/// Flows, groups and meters that should exist together.
#[derive(Debug, Clone, Default)]
pub struct FlowSet {
    /// With the first of the units that want it.
    flows: RedBlackTreeMapSync<Place, Unit>,
    groups: RedBlackTreeMapSync<u32, Arc<Group>>,
    meters: RedBlackTreeMapSync<u32, Meter>,
    names: RedBlackTreeMapSync<Object, Arc<str>>,
    hosts: RedBlackTreeMapSync<Ipv4Addr, HostId>,
    /// By OpenFlow port and the tag that frames have there.
    ports: RedBlackTreeMapSync<(PortNo, Option<VlanId>), u32>,
    tunnel: Option<PortNo>,
    /// Other hosts that tell whether they are alive, by the port of their tunnel: the endpoint, and what they tell.
    peers: RedBlackTreeMapSync<PortNo, (Ipv4Addr, bool)>,
    physical: RedBlackTreeMapSync<PortNo, Arc<str>>,
}

/// The most flows that are named as touched. Past this, comparing the sets costs no more than the names.
const TOUCHED_MAX: usize = 4096;

/// Places and numbers at which two flow sets may differ; at all others they do not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    /// Whether flows may differ anywhere: there are too many to name them.
    pub everywhere: bool,
    /// Flows.
    pub flows: BTreeSet<FlowKey>,
    /// Groups.
    pub groups: BTreeSet<u32>,
    /// Meters.
    pub meters: BTreeSet<u32>,
}

impl Touched {
    /// Whether there is no difference.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.everywhere && self.flows.is_empty() && self.groups.is_empty() && self.meters.is_empty()
    }

    /// One more flow.
    fn touch(&mut self, key: FlowKey) {
        if self.everywhere || (self.flows.len() >= TOUCHED_MAX && !self.flows.contains(&key)) {
            self.everywhere = true;
            self.flows.clear();
        } else {
            self.flows.insert(key);
        }
    }

    /// Where two sets may differ that are two such steps apart.
    pub fn extend(&mut self, other: Self) {
        self.everywhere |= other.everywhere;
        other.flows.into_iter().for_each(|key| self.touch(key));
        self.groups.extend(other.groups);
        self.meters.extend(other.meters);
    }
}

/// A flow and what it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The flow, as the switch should have it.
    pub flow: Arc<Flow>,
    /// What it means to a user, beyond what its table and its cookie say.
    pub note: Option<String>,
}

impl Entry {
    /// Takes what another unit wants at the same place: clauses of conjunctions add up, otherwise both ask for the same.
    fn join(&mut self, other: &Self) {
        let is_clause = |action: &Action| matches!(action, Action::Conjunction { .. });
        if self.flow.actions.iter().all(is_clause) && other.flow.actions.iter().all(is_clause) {
            let flow = Arc::make_mut(&mut self.flow);
            flow.actions.extend(other.flow.actions.iter().cloned());
            flow.actions.sort_unstable();
            flow.actions.dedup();
            flow.cookie = flow.cookie.min(other.flow.cookie);
        } else {
            debug_assert_eq!(self.flow.actions, other.flow.actions, "two meanings for {}", self.flow);
        }
        if let Some(note) = &other.note {
            self.also_means(note);
        }
    }

    /// Adds a meaning unless it is there already.
    fn also_means(&mut self, note: &str) {
        for part in note.split("; ") {
            match &mut self.note {
                None => self.note = Some(part.to_owned()),
                Some(before) if before.split("; ").any(|other| other == part) => {}
                Some(before) => *before = format!("{before}; {part}"),
            }
        }
    }
}

/// Numbers of our groups: what they are for, and the network, or the key of a router (16 bits) and the place of a destination (8), or the key of a load
/// balancer and the place of a listener.
///
/// ```text
/// 31        24 23                0
/// |   kind   |   VNI of network  |
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GroupNumber {
    /// All ports of the network on this host.
    FloodHere(u32),
    /// The same, and the other hosts.
    FloodEverywhere(u32),
    /// All other hosts of the network.
    OtherHosts(u32),
    /// Some of the ports of the network on this host, when they are too many for one message: the network and which of the parts, below 32.
    FloodPart(u32, u8),
    /// One of several next hops of a router: its key, and which of its destinations.
    NextHops(u16, u8),
    /// One of the members of a load balancer: its key, and which of its listeners.
    Members(u16, u8),
    /// The first gateway of a router that is alive, by its key.
    Gateways(u16),
    /// Whether a gateway of a router before this host is alive: the key, and the table where it is asked (and 128, for its address of IPv6).
    Gate(u16, u8),
    /// The same for connections of one of them: all others. The last says which it is in the listener's list, which of its listeners is below 64.
    OtherMembers(u16, u8, u8),
}

impl GroupNumber {
    /// The number on the wire.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        match self {
            Self::FloodHere(vni) => 0xb1 << 24 | vni,
            Self::FloodEverywhere(vni) => 0xb2 << 24 | vni,
            Self::OtherHosts(vni) => 0xb3 << 24 | vni,
            Self::FloodPart(vni, part) => (0xc0 | (part & 0x1f) as u32) << 24 | vni,
            Self::NextHops(router, destination) => 0xb4 << 24 | (router as u32) << 8 | destination as u32,
            Self::Members(balancer, listener) => 0xb6 << 24 | (balancer as u32) << 8 | listener as u32,
            Self::Gateways(router) => 0xb8 << 24 | (router as u32) << 8,
            Self::Gate(router, table) => 0xb9 << 24 | (router as u32) << 8 | table as u32,
            Self::OtherMembers(balancer, listener, member) => {
                (0x40 | (listener & 0x3f) as u32) << 24 | (balancer as u32) << 8 | member as u32
            }
        }
    }

    /// Reads a number; none when it is not one of ours.
    #[must_use]
    pub const fn from_wire(wire: u32) -> Option<Self> {
        let vni = wire & 0x00ff_ffff;
        match wire >> 24 {
            0xb1 => Some(Self::FloodHere(vni)),
            0xb2 => Some(Self::FloodEverywhere(vni)),
            0xb3 => Some(Self::OtherHosts(vni)),
            0xb4 => Some(Self::NextHops(((vni >> 8) & 0xffff) as u16, (vni & 0xff) as u8)),
            0xb6 => Some(Self::Members(((vni >> 8) & 0xffff) as u16, (vni & 0xff) as u8)),
            0xb8 => Some(Self::Gateways(((vni >> 8) & 0xffff) as u16)),
            0xb9 => Some(Self::Gate(((vni >> 8) & 0xffff) as u16, (vni & 0xff) as u8)),
            kind @ 0x40..=0x7f => {
                Some(Self::OtherMembers(((vni >> 8) & 0xffff) as u16, (kind & 0x3f) as u8, (vni & 0xff) as u8))
            }
            kind @ 0xc0..=0xdf => Some(Self::FloodPart(vni, (kind & 0x1f) as u8)),
            _ => None,
        }
    }
}

/// Numbers of our meters: what they limit, and the port or the network.
///
/// ```text
/// 31  28 27                    0
/// | kind |  key of port or VNI |
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MeterNumber {
    /// Questions to the agent.
    Questions(u32),
    /// Packets to the services of the host.
    Services(u32),
    /// Thousands of bits that the port's machine sends.
    EgressBits(u32),
    /// Packets that it sends.
    EgressPackets(u32),
    /// Thousands of bits that it is sent.
    IngressBits(u32),
    /// Packets that it is sent.
    IngressPackets(u32),
    /// Answers of stations of a network outside that the agent is handed, by its VNI.
    Stations(u32),
    /// Packets to stations that it does not know yet.
    Wanted(u32),
    /// Answers of the network's gateways.
    Gateways(u32),
    /// Solicitations from there for addresses of ports here.
    Asked(u32),
    /// Packets that a router would not send into a smaller network, by its key.
    TooLarge(u32),
    /// ICMP errors from outside to the floating IPs of a port, by its key.
    ErrorsIn(u32),
    /// ICMP errors that the port sends by them.
    ErrorsOut(u32),
    /// Both, of all ports of the host.
    Errors,
    /// Answers of a port to the health checks of a load balancer, by the key of that and the port's place among those that are checked here.
    Checks(u32, u32),
    /// The same of all ports and load balancers of the host.
    AllChecks,
    /// Frames of a port that is awaited here, by its key.
    Arrivals(u32),
    /// The same of all ports of the host.
    AllArrivals,
}

impl MeterNumber {
    /// The number on the wire.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        match self {
            Self::Questions(key) => 0x1 << 28 | key & 0x0fff_ffff,
            Self::Services(key) => 0x2 << 28 | key & 0x0fff_ffff,
            Self::EgressBits(key) => 0x3 << 28 | key & 0x0fff_ffff,
            Self::EgressPackets(key) => 0x4 << 28 | key & 0x0fff_ffff,
            Self::IngressBits(key) => 0x5 << 28 | key & 0x0fff_ffff,
            Self::IngressPackets(key) => 0x6 << 28 | key & 0x0fff_ffff,
            Self::Stations(vni) => 0x7 << 28 | vni & 0x0fff_ffff,
            Self::Wanted(vni) => 0x8 << 28 | vni & 0x0fff_ffff,
            Self::Gateways(vni) => 0x9 << 28 | vni & 0x0fff_ffff,
            Self::Asked(vni) => 0xb << 28 | vni & 0x0fff_ffff,
            Self::TooLarge(key) => 0xc << 28 | key & 0x0fff_ffff,
            Self::ErrorsIn(key) => 0xd << 28 | key & 0x0fff_ffff,
            Self::ErrorsOut(key) => 0xe << 28 | key & 0x0fff_ffff,
            Self::Errors => 0xf << 28,
            Self::AllChecks => 0xf << 28 | 1,
            Self::AllArrivals => 0xf << 28 | 2,
            Self::Arrivals(key) => 0xb << 28 | key & 0x0fff_ffff,
            Self::Checks(balancer, place) => 0xa << 28 | (balancer & 0xffff) << 12 | place & 0x0fff,
        }
    }
}

impl fmt::Display for GroupNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FloodHere(vni) => write!(f, "all ports of network {vni} on this host"),
            Self::FloodEverywhere(vni) => write!(f, "all ports of network {vni}"),
            Self::OtherHosts(vni) => write!(f, "all other hosts of network {vni}"),
            Self::FloodPart(vni, part) => write!(f, "part {part} of the ports of network {vni} on this host"),
            Self::NextHops(router, _) => write!(f, "one of the next hops of router {router}"),
            Self::Members(balancer, _) => write!(f, "one of the members of load balancer {balancer}"),
            Self::Gateways(router) => write!(f, "the first gateway of router {router} that is alive"),
            Self::Gate(router, _) => write!(f, "whether a gateway of router {router} before this host is alive"),
            Self::OtherMembers(balancer, ..) => write!(f, "one of the other members of load balancer {balancer}"),
        }
    }
}

impl PartialEq for FlowSet {
    fn eq(&self, other: &Self) -> bool {
        let same_flows = self.flows.ptr_eq(&other.flows) || self.entries().eq(other.entries());
        let same_names = self.names == other.names && self.hosts == other.hosts && self.ports == other.ports;
        let same_names = same_names && self.physical == other.physical && self.peers == other.peers;
        let same_rest = self.groups == other.groups && self.meters == other.meters && self.tunnel == other.tunnel;
        same_flows && same_names && same_rest
    }
}

impl Eq for FlowSet {}

impl FlowSet {
    /// The flows, by table, then priority, then match.
    pub fn flows(&self) -> impl ExactSizeIterator<Item = &Flow> {
        self.shared_flows().map(|flow| &**flow)
    }

    /// The same, for who keeps some of them.
    pub(crate) fn shared_flows(&self) -> impl ExactSizeIterator<Item = &Arc<Flow>> {
        self.flows.keys().map(|place| &place.0.flow)
    }

    /// The flows with their notes, in the same order.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = &Entry> {
        self.flows.keys().map(|place| &*place.0)
    }

    /// The flows of one table, by priority, then match.
    pub fn table(&self, number: u8) -> impl Iterator<Item = &Entry> {
        let first = FlowKey { table: number, priority: 0, matching: Match::new() };
        let after: Vec<&Entry> = {
            let range: (Bound<&dyn Placed>, Bound<&dyn Placed>) = (Bound::Included(&first), Bound::Unbounded);
            let from = self.flows.range::<dyn Placed, _>(range).map(|(place, _)| &*place.0);
            from.take_while(|entry| entry.flow.table == number).collect()
        };
        after.into_iter()
    }

    /// The flow at a place.
    #[must_use]
    pub fn entry(&self, key: &FlowKey) -> Option<&Entry> {
        self.flows.get_key_value(key as &dyn Placed).map(|(place, _)| &*place.0)
    }

    /// The groups, by number.
    pub fn groups(&self) -> impl ExactSizeIterator<Item = &Group> {
        self.groups.values().map(|group| &**group)
    }

    /// The group with this number.
    #[must_use]
    pub fn group(&self, number: u32) -> Option<&Group> {
        self.groups.get(&number).map(|group| &**group)
    }

    /// How much there is.
    #[must_use]
    pub fn counts(&self) -> crate::diff::Counts {
        crate::diff::Counts { flows: self.flows.size(), groups: self.groups.size(), meters: self.meters.size() }
    }

    /// The meters, by number.
    pub fn meters(&self) -> impl ExactSizeIterator<Item = &Meter> {
        self.meters.values()
    }

    /// The meter with this number.
    #[must_use]
    pub fn meter(&self, number: u32) -> Option<&Meter> {
        self.meters.get(&number)
    }

    /// Whether another set was copied from this one, or this from it, and neither changed since. Costs nothing; two sets that were made apart
    /// are not the same, though they may be equal.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let rest = self.groups.ptr_eq(&other.groups) && self.meters.ptr_eq(&other.meters);
        rest && self.flows.ptr_eq(&other.flows)
    }

    /// Where another set differs from this one, at the cost of a look at both.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Touched {
        let mut touched = Touched::default();
        if !self.flows.ptr_eq(&other.flows) {
            let differs = |this: &Self, that: &Self, key: &FlowKey| {
                this.entry(key).map(|entry| &entry.flow) != that.entry(key).map(|entry| &entry.flow)
            };
            let keys = self.flows().chain(other.flows()).map(Flow::key);
            touched.flows = keys.filter(|key| differs(self, other, key)).collect();
        }
        let groups = self.groups.keys().chain(other.groups.keys()).copied();
        touched.groups = groups.filter(|id| self.group(*id) != other.group(*id)).collect();
        let meters = self.meters.keys().chain(other.meters.keys()).copied();
        touched.meters = meters.filter(|id| self.meter(*id) != other.meter(*id)).collect();
        touched
    }

    /// What the owner calls the object of a cookie; none for objects that these networks do not have, and for the pipeline itself.
    #[must_use]
    pub fn name_of(&self, object: Object) -> Option<&str> {
        self.names.get(&object).map(|name| &**name)
    }

    /// The host that has this tunnel endpoint.
    #[must_use]
    pub fn host_of(&self, endpoint: Ipv4Addr) -> Option<HostId> {
        self.hosts.get(&endpoint).copied()
    }

    /// The key of the port that has the frames with a tag, or without one, at an OpenFlow port: its sub-port, or who is plugged in there.
    #[must_use]
    pub fn port_at(&self, number: PortNo, tag: Option<u16>) -> Option<u32> {
        let tag = tag.and_then(|vlan| VlanId::try_from(vlan).ok());
        self.ports.get(&(number, tag)).or_else(|| self.ports.get(&(number, None))).copied()
    }

    /// The OpenFlow port that the port with this key is plugged in at.
    #[must_use]
    pub fn number_of(&self, key: u32) -> Option<PortNo> {
        self.ports.iter().find(|(_, other)| **other == key).map(|((number, _), _)| *number)
    }

    /// The OpenFlow port of the tunnel.
    #[must_use]
    pub const fn tunnel(&self) -> Option<PortNo> {
        self.tunnel
    }

    /// The other host whose tunnel has an OpenFlow port of its own: its endpoint, and whether it tells that it is alive.
    #[must_use]
    pub fn peer_at(&self, number: PortNo) -> Option<(Ipv4Addr, bool)> {
        self.peers.get(&number).copied()
    }

    /// The physical network that is plugged in at an OpenFlow port.
    #[must_use]
    pub fn physical_at(&self, number: PortNo) -> Option<&str> {
        self.physical.get(&number).map(|name| &**name)
    }

    /// The whole set in ovs-ofctl's syntax: groups, then flows, one a line, names of tables as comments. What golden files hold.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for group in self.groups() {
            text += &format!("group {group}\n");
        }
        for meter in self.meters() {
            text += &format!("{meter}\n");
        }
        let mut before = None;
        for entry in self.entries() {
            let table = entry.flow.table;
            if before.replace(table) != Some(table) {
                let info = Table::by_number(table).map(Table::info);
                text += &info.map_or(String::new(), |info| format!("\n# {table} {}: {}\n", info.name, info.doc));
            }
            let why = self.describe(&entry.flow, entry.note.as_deref());
            text += &format!("{}\n", entry.flow);
            if !why.is_empty() {
                text += &format!("#   {why}\n");
            }
        }
        text
    }

    /// Whose flow it is and what it says, in a line.
    #[must_use]
    pub fn describe(&self, flow: &Flow, note: Option<&str>) -> String {
        let object = Cookie::from_wire(flow.cookie).map(|cookie| cookie.object).filter(|o| *o != Object::Pipeline);
        let name = object.map(|object| self.name_of(object).map_or_else(|| object.to_string(), str::to_owned));
        match (name, note) {
            (Some(name), Some(note)) => format!("{name}: {note}"),
            (Some(name), None) => name,
            (None, Some(note)) => note.to_owned(),
            (None, None) => String::new(),
        }
    }
}
