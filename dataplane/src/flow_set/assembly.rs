//! A flow set and the pieces it is put together from, so that a unit that changed replaces its own piece and nothing else.
//!
//! Owns [`Assembly`]. Never knows what a unit is for. Invariant: the set is what the pieces say, whatever came and went before: where several
//! units want the same place, the entry is joined from all of them in order of unit.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use model::provider::VlanId;
use openflow::flow::{FlowKey, Group, PortNo};
use openflow::wire::Meter;

use super::place::{Place, Placed};
use super::{Entry, FlowSet, Part, Touched};
use crate::compile::unit::Unit;
use crate::cookie::Object;

/// What is kept of a part: enough to take it out again.
#[derive(Debug, Default)]
struct Piece {
    /// By place.
    flows: Box<[Arc<Entry>]>,
    groups: Box<[u32]>,
    meters: Box<[u32]>,
    names: Box<[Object]>,
    hosts: Box<[Ipv4Addr]>,
    ports: Box<[(PortNo, Option<VlanId>)]>,
    physical: Box<[PortNo]>,
    peers: Box<[PortNo]>,
    has_tunnel: bool,
}

/// A flow set and its pieces.
#[derive(Debug, Default)]
pub(crate) struct Assembly {
    set: FlowSet,
    pieces: BTreeMap<Unit, Piece>,
    /// Places that more than one unit wants.
    shared: BTreeMap<FlowKey, BTreeMap<Unit, Arc<Entry>>>,
}

/// What of a part is new: put in once all that goes is out, because a number or a place may go from one unit to another.
struct Arrival {
    unit: Unit,
    part: Part,
    flows: Vec<Arc<Entry>>,
}

impl Assembly {
    /// The set as it is now.
    pub(crate) const fn set(&self) -> &FlowSet {
        &self.set
    }

    /// Gives units new parts, or none any more, and says where the set may have changed.
    pub(crate) fn replace(&mut self, parts: impl IntoIterator<Item = (Unit, Option<Part>)>) -> Touched {
        let before = self.set.clone();
        let mut touched = Touched::default();
        let mut arrivals = Vec::new();
        for (unit, part) in parts {
            let old = self.pieces.remove(&unit).unwrap_or_default();
            self.take_out_numbers(&old, &mut touched);
            let is_wanted = part.is_some();
            let mut part = part.unwrap_or_default();
            let (piece, gone, came) = exchange(old, &mut part);
            for entry in gone {
                let key = entry.flow.key();
                self.take_out(&unit, &key);
                touched.touch(key);
            }
            if is_wanted {
                self.pieces.insert(unit.clone(), piece);
                arrivals.push(Arrival { unit, part, flows: came });
            }
        }
        for Arrival { unit, part, flows } in arrivals {
            for entry in flows {
                if !touched.everywhere {
                    touched.touch(entry.flow.key());
                }
                self.put_in(&unit, entry);
            }
            self.put_in_numbers(part, &mut touched);
        }
        touched.flows.retain(|key| before.entry(key).map(|entry| &entry.flow) != self.set.entry(key).map(|e| &e.flow));
        touched.groups.retain(|id| before.group(*id) != self.set.group(*id));
        touched.meters.retain(|id| before.meter(*id) != self.set.meter(*id));
        touched
    }

    fn put_in(&mut self, unit: &Unit, entry: Arc<Entry>) {
        let flows = &mut self.set.flows;
        let Some((place, owner)) = flows.get_key_value(&Place(Arc::clone(&entry))) else {
            flows.insert_mut(Place(entry), unit.clone());
            return;
        };
        let alone = (owner.clone(), Arc::clone(&place.0));
        let key = entry.flow.key();
        let wishes = self.shared.entry(key).or_insert_with(|| BTreeMap::from([alone]));
        wishes.insert(unit.clone(), entry);
        join(flows, wishes);
    }

    fn take_out(&mut self, unit: &Unit, key: &FlowKey) {
        let Some(wishes) = self.shared.get_mut(key) else {
            self.set.flows.remove_mut(key as &dyn Placed);
            return;
        };
        wishes.remove(unit);
        join(&mut self.set.flows, wishes);
        if wishes.len() == 1 {
            self.shared.remove(key);
        }
    }

    fn take_out_numbers(&mut self, piece: &Piece, touched: &mut Touched) {
        for id in &piece.groups {
            self.set.groups.remove_mut(id);
        }
        for id in &piece.meters {
            self.set.meters.remove_mut(id);
        }
        for object in &piece.names {
            self.set.names.remove_mut(object);
        }
        for endpoint in &piece.hosts {
            self.set.hosts.remove_mut(endpoint);
        }
        for number in &piece.ports {
            self.set.ports.remove_mut(number);
        }
        for number in &piece.peers {
            self.set.peers.remove_mut(number);
        }
        for number in &piece.physical {
            self.set.physical.remove_mut(number);
        }
        if piece.has_tunnel {
            self.set.tunnel = None;
        }
        touched.groups.extend(&piece.groups);
        touched.meters.extend(&piece.meters);
    }

    fn put_in_numbers(&mut self, part: Part, touched: &mut Touched) {
        touched.groups.extend(part.groups.keys());
        touched.meters.extend(part.meters.keys());
        for (id, group) in part.groups {
            self.put_group(id, group);
        }
        for (id, meter) in part.meters {
            self.put_meter(id, meter);
        }
        for (object, name) in part.names {
            self.set.names.insert_mut(object, name.into());
        }
        for (endpoint, host) in part.hosts {
            self.set.hosts.insert_mut(endpoint, host);
        }
        for (number, key) in part.ports {
            self.set.ports.insert_mut(number, key);
        }
        for (number, peer) in part.peers {
            self.set.peers.insert_mut(number, peer);
        }
        for (number, name) in part.physical {
            self.set.physical.insert_mut(number, name.into());
        }
        if part.tunnel.is_some() {
            self.set.tunnel = part.tunnel;
        }
    }

    fn put_group(&mut self, id: u32, group: Group) {
        debug_assert!(self.set.group(id).is_none(), "two units want group {id:#x}");
        self.set.groups.insert_mut(id, Arc::new(group));
    }

    fn put_meter(&mut self, id: u32, meter: Meter) {
        debug_assert!(self.set.meter(id).is_none(), "two units want meter {id:#x}");
        self.set.meters.insert_mut(id, meter);
    }
}

/// Puts in place what several units want together, as the first of them.
fn join(flows: &mut rpds::RedBlackTreeMapSync<Place, Unit>, wishes: &BTreeMap<Unit, Arc<Entry>>) {
    let mut wishes = wishes.iter();
    let Some((first, entry)) = wishes.next() else { return };
    let mut joined = Arc::clone(entry);
    for (_, other) in wishes {
        Arc::make_mut(&mut joined).join(other);
    }
    flows.insert_mut(Place(joined), first.clone());
}

/// Holds an old piece against a new part: the new piece, which entries of the old go, and which of the new come. What is equal stays as it is.
/// The flows are taken out of the part.
fn exchange(old: Piece, part: &mut Part) -> (Piece, Vec<Arc<Entry>>, Vec<Arc<Entry>>) {
    let (mut flows, mut gone, mut came) = (Vec::with_capacity(part.flows.len()), Vec::new(), Vec::new());
    let mut before = old.flows.into_vec().into_iter().peekable();
    for (key, mut entry) in std::mem::take(&mut part.flows) {
        let key = &key;
        while let Some(less) = before.next_if(|other| (&Place(Arc::clone(other)) as &dyn Placed) < (key as &dyn Placed))
        {
            gone.push(less);
        }
        match before.next_if(|other| (&Place(Arc::clone(other)) as &dyn Placed) == (key as &dyn Placed)) {
            Some(same) if *same == entry => flows.push(same),
            other => {
                gone.extend(other);
                // Thousands of these stay for long.
                let flow = Arc::make_mut(&mut entry.flow);
                flow.actions.shrink_to_fit();
                flow.matching.shrink_to_fit();
                let entry = Arc::new(entry);
                came.push(Arc::clone(&entry));
                flows.push(entry);
            }
        }
    }
    gone.extend(before);
    let piece = Piece {
        flows: flows.into(),
        groups: part.groups.keys().copied().collect(),
        meters: part.meters.keys().copied().collect(),
        names: part.names.keys().copied().collect(),
        hosts: part.hosts.keys().copied().collect(),
        ports: part.ports.keys().copied().collect(),
        physical: part.physical.keys().copied().collect(),
        peers: part.peers.keys().copied().collect(),
        has_tunnel: part.tunnel.is_some(),
    };
    (piece, gone, came)
}
