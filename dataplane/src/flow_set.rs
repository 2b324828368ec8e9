//! A set of flows and groups that should exist together, with what is needed to speak of them in the users' words.
//!
//! Owns [`FlowSet`]: flows by their place in the switch, groups by number, the names that owners gave to objects. Never knows what is installed.
//! Invariant: one flow for each place; two features, or two rules, may want the same flow for the same actions, not for others.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::fmt;
use std::net::Ipv4Addr;

use model::HostId;
use openflow::flow::{Action, Flow, FlowKey, Group, GroupKind, Match, PortNo};

use crate::cookie::{Cookie, Object};
use crate::table::Table;

/// Flows and groups that should exist together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FlowSet {
    flows: BTreeMap<FlowKey, Entry>,
    groups: BTreeMap<u32, Group>,
    names: BTreeMap<Object, String>,
    hosts: BTreeMap<Ipv4Addr, HostId>,
    ports: BTreeMap<PortNo, u32>,
    tunnel: Option<PortNo>,
}

/// A flow and what it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The flow, as the switch should have it.
    pub flow: Flow,
    /// What it means to a user, beyond what its table and its cookie say.
    pub note: Option<String>,
}

/// Numbers of our groups: what they are for, and the network.
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
}

impl GroupNumber {
    /// The number on the wire.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        match self {
            Self::FloodHere(vni) => 0xb1 << 24 | vni,
            Self::FloodEverywhere(vni) => 0xb2 << 24 | vni,
            Self::OtherHosts(vni) => 0xb3 << 24 | vni,
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
            _ => None,
        }
    }
}

impl fmt::Display for GroupNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FloodHere(vni) => write!(f, "all ports of network {vni} on this host"),
            Self::FloodEverywhere(vni) => write!(f, "all ports of network {vni}"),
            Self::OtherHosts(vni) => write!(f, "all other hosts of network {vni}"),
        }
    }
}

impl FlowSet {
    /// The flows, by table, then priority, then match.
    pub fn flows(&self) -> impl ExactSizeIterator<Item = &Flow> {
        self.flows.values().map(|entry| &entry.flow)
    }

    /// The flows with their notes, in the same order.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = &Entry> {
        self.flows.values()
    }

    /// The flows of one table, by priority, then match.
    pub fn table(&self, number: u8) -> impl Iterator<Item = &Entry> {
        let first = FlowKey { table: number, priority: 0, matching: Match::new() };
        self.flows.range(first..).map(|(_, entry)| entry).take_while(move |entry| entry.flow.table == number)
    }

    /// The flow at a place.
    #[must_use]
    pub fn entry(&self, key: &FlowKey) -> Option<&Entry> {
        self.flows.get(key)
    }

    /// The groups, by number.
    pub fn groups(&self) -> impl ExactSizeIterator<Item = &Group> {
        self.groups.values()
    }

    /// The group with this number.
    #[must_use]
    pub fn group(&self, number: u32) -> Option<&Group> {
        self.groups.get(&number)
    }

    /// What the owner calls the object of a cookie; none for objects that these networks do not have, and for the pipeline itself.
    #[must_use]
    pub fn name_of(&self, object: Object) -> Option<&str> {
        self.names.get(&object).map(String::as_str)
    }

    /// The host that has this tunnel endpoint.
    #[must_use]
    pub fn host_of(&self, endpoint: Ipv4Addr) -> Option<HostId> {
        self.hosts.get(&endpoint).copied()
    }

    /// The key of the port that is plugged in at an OpenFlow port.
    #[must_use]
    pub fn port_at(&self, number: PortNo) -> Option<u32> {
        self.ports.get(&number).copied()
    }

    /// The OpenFlow port that the port with this key is plugged in at.
    #[must_use]
    pub fn number_of(&self, key: u32) -> Option<PortNo> {
        self.ports.iter().find(|(_, other)| **other == key).map(|(number, _)| *number)
    }

    /// The OpenFlow port of the tunnel.
    #[must_use]
    pub const fn tunnel(&self) -> Option<PortNo> {
        self.tunnel
    }

    /// The whole set in ovs-ofctl's syntax: groups, then flows, one a line, names of tables as comments. What golden files hold.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for group in self.groups.values() {
            text += &format!("group {group}\n");
        }
        let mut before = None;
        for entry in self.flows.values() {
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

    pub(crate) fn name(&mut self, object: Object, name: String) {
        self.names.insert(object, name);
    }

    pub(crate) fn name_host(&mut self, endpoint: Ipv4Addr, host: HostId) {
        self.hosts.insert(endpoint, host);
    }

    pub(crate) fn plug(&mut self, number: PortNo, key: u32) {
        self.ports.insert(number, key);
    }

    pub(crate) const fn plug_tunnel(&mut self, number: Option<PortNo>) {
        self.tunnel = number;
    }

    /// Wants a flow. When the place is taken, actions of conjunctions add up; otherwise the first stays, for both ask for the same.
    pub(crate) fn add(
        &mut self,
        table: Table,
        priority: u16,
        matching: Match,
        actions: Vec<Action>,
        cookie: Cookie,
    ) -> &mut Entry {
        let flow = Flow::new(table.number(), priority, matching, actions).with_cookie(cookie.to_wire());
        match self.flows.entry(flow.key()) {
            Slot::Vacant(slot) => slot.insert(Entry { flow, note: None }),
            Slot::Occupied(slot) => {
                let entry = slot.into_mut();
                let is_clause = |action: &Action| matches!(action, Action::Conjunction { .. });
                if entry.flow.actions.iter().all(is_clause) && flow.actions.iter().all(is_clause) {
                    entry.flow.actions.extend(flow.actions);
                    entry.flow.actions.sort_unstable();
                    entry.flow.actions.dedup();
                    entry.flow.cookie = entry.flow.cookie.min(flow.cookie);
                } else {
                    debug_assert_eq!(entry.flow.actions, flow.actions, "two meanings for {}", entry.flow);
                }
                entry
            }
        }
    }

    /// Wants a flow and says what it means; a flow wanted twice collects both meanings.
    pub(crate) fn add_noted(
        &mut self,
        table: Table,
        priority: u16,
        matching: Match,
        actions: Vec<Action>,
        (cookie, note): (Cookie, String),
    ) {
        let entry = self.add(table, priority, matching, actions, cookie);
        entry.note = match entry.note.take() {
            None => Some(note),
            Some(before) if before.split("; ").any(|part| part == note) => Some(before),
            Some(before) => Some(format!("{before}; {note}")),
        };
    }

    /// Drops what no other flow of the table matches, and counts it.
    pub(crate) fn add_miss(&mut self, table: Table) {
        let cookie = Cookie { feature: table.info().feature, object: Object::Pipeline };
        self.add_noted(table, 0, Match::new(), Vec::new(), (cookie, table.info().miss.to_owned()));
    }

    /// Sends what no other flow of the table matches on to another table, with the meaning of a miss.
    pub(crate) fn add_miss_to(&mut self, table: Table, next: Table) {
        let cookie = Cookie { feature: table.info().feature, object: Object::Pipeline };
        let goto = vec![Action::GotoTable(next.number())];
        self.add_noted(table, 0, Match::new(), goto, (cookie, table.info().miss.to_owned()));
    }

    /// Wants a group that runs all of these lists of actions, each on its own copy of the packet.
    pub(crate) fn add_group(&mut self, number: GroupNumber, copies: Vec<Vec<Action>>) {
        let group = Group::new(number.to_wire(), GroupKind::All, copies);
        self.groups.insert(group.id, group);
    }
}
