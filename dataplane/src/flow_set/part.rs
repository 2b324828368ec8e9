//! What one unit wants: its flows, groups and meters, and the names it gives to objects.
//!
//! Owns [`Part`], which features fill. Never knows what other units want; [`FlowSet`](super::FlowSet) brings parts together.
//! Invariant: one flow for each place; two features of one unit may want the same flow for the same actions, not for others.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::net::Ipv4Addr;
use std::sync::Arc;

use model::HostId;
use model::provider::VlanId;
use openflow::flow::{Action, Field, Flow, FlowKey, Group, GroupKind, Match, PortNo, Selection};
use openflow::wire::Meter;

use super::{Entry, GroupNumber};
use crate::cookie::{Cookie, Object};
use crate::table::Table;

/// What one unit wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Part {
    pub(super) flows: BTreeMap<FlowKey, Entry>,
    pub(super) groups: BTreeMap<u32, Group>,
    pub(super) meters: BTreeMap<u32, Meter>,
    pub(super) names: BTreeMap<Object, String>,
    pub(super) hosts: BTreeMap<Ipv4Addr, HostId>,
    pub(super) ports: BTreeMap<(PortNo, Option<VlanId>), u32>,
    pub(super) tunnel: Option<PortNo>,
    pub(super) peers: BTreeMap<PortNo, (Ipv4Addr, bool)>,
    pub(super) physical: BTreeMap<PortNo, String>,
}

impl Part {
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
        let key = flow.key();
        let wanted = Entry { flow: Arc::new(flow), note: None };
        match self.flows.entry(key) {
            Slot::Vacant(slot) => slot.insert(wanted),
            Slot::Occupied(slot) => {
                let entry = slot.into_mut();
                entry.join(&wanted);
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
        self.add(table, priority, matching, actions, cookie).also_means(&note);
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

    /// Wants a group that runs one of these lists of actions, the same for all packets of a connection: the data path hashes addresses and ports.
    pub(crate) fn add_select_group(&mut self, number: GroupNumber, ways: Vec<Vec<Action>>) {
        self.add_weighted_group(number, ways.into_iter().map(|way| (1, way)).collect());
    }

    /// Wants a group that runs one of these lists of actions, each as often as its weight says, the same for all packets of a connection.
    pub(crate) fn add_weighted_group(&mut self, number: GroupNumber, ways: Vec<(u16, Vec<Action>)>) {
        let by = Selection { method: "dp_hash".to_owned(), parameter: 0, fields: BTreeMap::new() };
        let (weights, ways): (Vec<u16>, Vec<Vec<Action>>) = ways.into_iter().unzip();
        let mut group = Group { selection: Some(by), ..Group::new(number.to_wire(), GroupKind::Select, ways) };
        for (bucket, weight) in group.buckets.iter_mut().zip(weights) {
            bucket.weight = weight;
        }
        self.groups.insert(group.id, group);
    }

    /// Wants a group that runs one of these lists of actions, all as often, the same for all packets with the same value in a field: Open vSwitch hashes it
    /// together with the number of each bucket, and takes the greatest. It multiplies that with a weight, which would not be its share.
    pub(crate) fn add_drawn_group(&mut self, number: GroupNumber, by: Field, ways: Vec<(u32, Vec<Action>)>) {
        let by = Selection { method: "hash".to_owned(), parameter: 0, fields: BTreeMap::from([(by, by.full_mask())]) };
        let (ids, ways): (Vec<u32>, Vec<Vec<Action>>) = ways.into_iter().unzip();
        let mut group = Group { selection: Some(by), ..Group::new(number.to_wire(), GroupKind::Select, ways) };
        for (bucket, id) in group.buckets.iter_mut().zip(ids) {
            (bucket.id, bucket.weight) = (id, 1);
        }
        self.groups.insert(group.id, group);
    }

    /// Wants a group that runs the first of these lists of actions whose port is alive.
    pub(crate) fn add_failover_group(
        &mut self,
        number: GroupNumber,
        ways: impl IntoIterator<Item = (PortNo, Vec<Action>)>,
    ) {
        let (watched, ways): (Vec<PortNo>, Vec<Vec<Action>>) = ways.into_iter().unzip();
        let mut group = Group::new(number.to_wire(), GroupKind::FastFailover, ways);
        for (bucket, port) in group.buckets.iter_mut().zip(watched) {
            bucket.watch_port = Some(port);
        }
        self.groups.insert(group.id, group);
    }

    /// Wants a meter.
    pub(crate) fn add_meter(&mut self, meter: Meter) {
        self.meters.insert(meter.id, meter);
    }

    /// Says what the owner calls the object of a cookie.
    pub(crate) fn name(&mut self, object: Object, name: String) {
        self.names.insert(object, name);
    }

    /// Says which host a tunnel endpoint is of.
    pub(crate) fn name_host(&mut self, endpoint: Ipv4Addr, host: HostId) {
        self.hosts.insert(endpoint, host);
    }

    /// Says which port is plugged in at an OpenFlow port, or has the frames there with a tag.
    pub(crate) fn plug(&mut self, number: PortNo, tag: Option<VlanId>, key: u32) {
        self.ports.insert((number, tag), key);
    }

    /// Says which physical network is plugged in at an OpenFlow port.
    pub(crate) fn plug_physical(&mut self, number: PortNo, name: &str) {
        self.physical.insert(number, name.to_owned());
    }

    /// Says which other host's tunnel has an OpenFlow port of its own, and whether that host tells that it is alive.
    pub(crate) fn plug_peer(&mut self, number: PortNo, endpoint: Ipv4Addr, is_alive: bool) {
        self.peers.insert(number, (endpoint, is_alive));
    }

    /// Says where the tunnel is plugged in.
    pub(crate) const fn plug_tunnel(&mut self, number: Option<PortNo>) {
        self.tunnel = number;
    }
}
