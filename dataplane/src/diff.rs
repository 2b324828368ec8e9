//! From what is installed to what should be: the least list of changes, in an order in which no step needs a later one.
//!
//! Owns [`diff`], [`between`] and [`Changes`]. Pure: what is installed was read by someone else, and someone else applies.
//! Invariant: applying the changes and looking again leaves nothing to change; a flow that is right is not touched; what is not ours is reported
//! and not touched unless [`Changes::remove_foreign`] is asked for. Flows are ours by their cookie, groups by their number, and every meter of the
//! bridge is: nothing but our flows can use one. What the switch has learned by flows of ours is the switch's, and not looked at.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use openflow::flow::{Action, CtZone, Flow, FlowKey, Group, NatRange, NatSide};
use openflow::wire::{CtFlush, Meter};

use crate::balanced;
use crate::cookie::is_ours;
use crate::feature::connection_limit::is_learned;
use crate::feature::firewall;
use crate::flow_set::{FlowSet, GroupNumber, Touched};
use crate::table::Table;

/// What a switch holds, as it was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Installed {
    /// Flows of all tables.
    pub flows: Vec<Flow>,
    /// Groups.
    pub groups: Vec<Group>,
    /// Meters.
    pub meters: Vec<Meter>,
}

/// How much a switch holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Flows of all tables.
    pub flows: usize,
    /// Groups.
    pub groups: usize,
    /// Meters.
    pub meters: usize,
}

/// What stands on the bridge and is not ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Foreign {
    /// Flows.
    pub flows: Vec<Flow>,
    /// Groups.
    pub groups: Vec<u32>,
}

/// What has to change, and what stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Meters that are missing.
    pub add_meters: Vec<Meter>,
    /// Meters with another rate than they should have.
    pub modify_meters: Vec<Meter>,
    /// Groups that are missing.
    pub add_groups: Vec<Group>,
    /// Groups with other buckets than they should have.
    pub modify_groups: Vec<Group>,
    /// Flows that are missing, or say something else. Adding a flow replaces the one at its place.
    pub add_flows: Vec<Arc<Flow>>,
    /// Flows of ours that should not exist.
    pub delete_flows: Vec<FlowKey>,
    /// Groups of ours that should not exist.
    pub delete_groups: Vec<u32>,
    /// Meters that should not exist.
    pub delete_meters: Vec<u32>,
    /// How many of `add_flows` replace one that says something else.
    pub replaced_flows: usize,
    /// How many flows are right.
    pub unchanged_flows: usize,
    /// How many groups are right.
    pub unchanged_groups: usize,
    /// Connection tracking zones in which addresses are translated in another way from then on, or not any more: connections there are to be forgotten,
    /// for a connection keeps to what it was given first. Also those of firewalls that are none any more: what they allowed, a later one may not.
    pub stale_zones: BTreeSet<u16>,
    /// Balanced connections whose member is none any more: they are to be forgotten, or a client that goes on by the same port would not get another. Also
    /// those of a firewall that allows less, of protocols in which one end may go on without the other.
    pub stale_connections: BTreeSet<CtFlush>,
    /// What is not ours.
    pub foreign: Foreign,
}

/// One step of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'a> {
    /// Add this meter.
    AddMeter(&'a Meter),
    /// Give this meter this rate.
    ModifyMeter(&'a Meter),
    /// Add this group.
    AddGroup(&'a Group),
    /// Give this group these buckets.
    ModifyGroup(&'a Group),
    /// Add this flow, or put it in the place of another.
    AddFlow(&'a Flow),
    /// Delete the flow at this place.
    DeleteFlow(&'a FlowKey),
    /// Delete this group.
    DeleteGroup(u32),
    /// Delete this meter.
    DeleteMeter(u32),
}

impl Foreign {
    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.flows.len() + self.groups.len()
    }

    /// Whether all is ours.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Changes {
    /// Whether there is nothing to do; foreign flows are not ours to do anything about.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps().next().is_none()
    }

    /// The steps in the order in which they have to be taken: a meter or a group is there before a flow uses it, and goes after the last one did.
    pub fn steps(&self) -> impl Iterator<Item = Step<'_>> {
        let meters = self.add_meters.iter().map(Step::AddMeter).chain(self.modify_meters.iter().map(Step::ModifyMeter));
        let groups = self.add_groups.iter().map(Step::AddGroup).chain(self.modify_groups.iter().map(Step::ModifyGroup));
        let flows =
            self.add_flows.iter().map(|flow| Step::AddFlow(flow)).chain(self.delete_flows.iter().map(Step::DeleteFlow));
        let groups_after = self.delete_groups.iter().copied().map(Step::DeleteGroup);
        let meters_after = self.delete_meters.iter().copied().map(Step::DeleteMeter);
        meters.chain(groups).chain(flows).chain(groups_after).chain(meters_after)
    }

    /// Finds the zones in which addresses were translated in another way than they will be, and balanced connections that nothing leads to their member
    /// any more.
    fn find_stale(&mut self, before: &Translated, desired: &FlowSet) {
        let mut after = Translated::default();
        self.add_flows.iter().for_each(|flow| after.note(flow));
        self.stale_zones = before.zones.symmetric_difference(&after.zones).map(|(zone, _)| *zone).collect();
        self.stale_zones.extend(before.walled.difference(&after.walled).map(|(zone, _)| *zone));
        self.stale_connections = before.balanced.difference(&after.balanced).copied().collect();
        let denied = self.add_flows.iter().filter_map(|flow| firewall::judges(flow, Table::Deny));
        let narrowed: BTreeSet<u128> = before.allowed.iter().copied().chain(denied).collect();
        if !narrowed.is_empty() {
            let zones = desired.table(Table::Output.number()).filter_map(|entry| firewall::zone(&entry.flow));
            let zones = zones.filter(|(_, router)| narrowed.contains(router));
            self.stale_connections.extend(zones.flat_map(|(zone, _)| firewall::silent(zone)));
        }
    }

    /// Also deletes what is not ours, and gives back what that is.
    pub fn remove_foreign(&mut self) -> Foreign {
        let foreign = std::mem::take(&mut self.foreign);
        self.delete_flows.extend(foreign.flows.iter().map(Flow::key));
        self.delete_groups.extend(&foreign.groups);
        foreign
    }
}

/// What flows have done to the addresses of connections.
#[derive(Debug, Default)]
struct Translated {
    zones: BTreeSet<(u16, NatRange)>,
    balanced: BTreeSet<CtFlush>,
    walled: BTreeSet<(u16, u128)>,
    /// Routers whose firewalls have allowed something.
    allowed: BTreeSet<u128>,
}

impl Translated {
    fn note(&mut self, flow: &Flow) {
        self.zones.extend(translation(flow));
        self.balanced.extend(balanced::connections(flow));
        self.walled.extend(firewall::zone(flow));
        self.allowed.extend(firewall::judges(flow, Table::Border));
    }
}

impl Installed {
    /// What a switch holds once these steps are taken: what tests and dry runs compare with.
    #[must_use]
    pub fn after(&self, changes: &Changes) -> Self {
        let mut flows: BTreeMap<FlowKey, Flow> = self.flows.iter().map(|flow| (flow.key(), flow.clone())).collect();
        let mut groups: BTreeMap<u32, Group> = self.groups.iter().map(|group| (group.id, group.clone())).collect();
        let mut meters: BTreeMap<u32, Meter> = self.meters.iter().map(|meter| (meter.id, meter.clone())).collect();
        for step in changes.steps() {
            match step {
                Step::AddMeter(meter) | Step::ModifyMeter(meter) => drop(meters.insert(meter.id, meter.clone())),
                Step::AddGroup(group) | Step::ModifyGroup(group) => drop(groups.insert(group.id, group.clone())),
                Step::AddFlow(flow) => drop(flows.insert(flow.key(), flow.clone())),
                Step::DeleteFlow(key) => drop(flows.remove(key)),
                Step::DeleteGroup(id) => drop(groups.remove(&id)),
                Step::DeleteMeter(id) => drop(meters.remove(&id)),
            }
        }
        let (flows, groups) = (flows.into_values().collect(), groups.into_values().collect());
        Self { flows, groups, meters: meters.into_values().collect() }
    }

    /// How much that is.
    #[must_use]
    pub const fn counts(&self) -> Counts {
        Counts { flows: self.flows.len(), groups: self.groups.len(), meters: self.meters.len() }
    }
}

/// What has to change for `installed` to hold all of `desired` and nothing else of ours. Looks at each flow once.
#[must_use]
pub fn diff(desired: &FlowSet, installed: &Installed) -> Changes {
    let mut changes = Changes::default();
    diff_groups(desired, installed, &mut changes);
    diff_meters(desired, installed, &mut changes);
    // Flows of a set do not move, so where one stands in memory is its name, and no match is hashed.
    let mut right: HashSet<usize> = HashSet::with_capacity(installed.flows.len());
    let (mut translated, mut has_ours) = (Translated::default(), false);
    for flow in installed.flows.iter().filter(|flow| !is_learned(flow)) {
        has_ours |= is_ours(flow.cookie);
        let key = flow.key();
        match desired.entry(&key) {
            Some(entry) if *entry.flow == *flow => {
                changes.unchanged_flows += 1;
                right.insert(Arc::as_ptr(&entry.flow).addr());
            }
            // A flow at a place of ours is replaced whoever made it: both cannot stand.
            Some(_) => {
                changes.replaced_flows += 1;
                translated.note(flow);
            }
            None if is_ours(flow.cookie) => {
                changes.delete_flows.push(key);
                translated.note(flow);
            }
            None => changes.foreign.flows.push(flow.clone()),
        }
    }
    let wrong = desired.shared_flows().filter(|flow| !right.contains(&Arc::as_ptr(flow).addr()));
    changes.add_flows = wrong.cloned().collect();
    // A switch that was restarted has nothing of ours: its connections outlived that and go on.
    if has_ours {
        changes.find_stale(&translated, desired);
    }
    changes.delete_flows.sort_unstable();
    changes.foreign.flows.sort_unstable();
    changes
}

/// What has to change for a switch that holds all of `before` to hold all of `after`, when they differ at the touched places and nowhere else.
#[must_use]
pub fn between(before: &FlowSet, after: &FlowSet, touched: &Touched) -> Changes {
    if touched.everywhere {
        return between(before, after, &before.differences(after));
    }
    let (mut changes, mut translated) = (Changes::default(), Translated::default());
    for key in &touched.flows {
        match (before.entry(key), after.entry(key)) {
            (Some(old), Some(new)) if old.flow == new.flow => {}
            (old, Some(new)) => {
                changes.replaced_flows += usize::from(old.is_some());
                old.iter().for_each(|old| translated.note(&old.flow));
                changes.add_flows.push(Arc::clone(&new.flow));
            }
            (Some(old), None) => {
                translated.note(&old.flow);
                changes.delete_flows.push(key.clone());
            }
            (None, None) => {}
        }
    }
    changes.find_stale(&translated, after);
    for id in &touched.groups {
        match (before.group(*id), after.group(*id)) {
            (Some(old), Some(new)) if old == new => {}
            (Some(_), Some(new)) => changes.modify_groups.push(new.clone()),
            (None, Some(new)) => changes.add_groups.push(new.clone()),
            (Some(_), None) => changes.delete_groups.push(*id),
            (None, None) => {}
        }
    }
    for id in &touched.meters {
        match (before.meter(*id), after.meter(*id)) {
            (Some(old), Some(new)) if old == new => {}
            (Some(_), Some(new)) => changes.modify_meters.push(new.clone()),
            (None, Some(new)) => changes.add_meters.push(new.clone()),
            (Some(_), None) => changes.delete_meters.push(*id),
            (None, None) => {}
        }
    }
    changes.unchanged_flows = after.flows().len() - changes.add_flows.len();
    changes.unchanged_groups = after.groups().len() - changes.add_groups.len() - changes.modify_groups.len();
    changes
}

/// The zone in which a flow gives connections another address, and which.
fn translation(flow: &Flow) -> Option<(u16, NatRange)> {
    flow.actions.iter().find_map(|action| {
        let Action::Ct(ct) = action else { return None };
        let CtZone::Fixed(zone) = ct.zone else { return None };
        // A connection by a port forwarding has a label that flows ask for: it is over when they are; one that a machine began from
        // such a port is its own. One of a load balancer stays with its member.
        let is_one = |range: &NatRange| range.ports.is_some_and(|(_, last)| last.is_none());
        let is_shared = |range: &NatRange| range.side == NatSide::Source && !is_one(range);
        let range = |action: &Action| if let Action::Nat(nat) = action { nat.range.filter(is_shared) } else { None };
        ct.actions.iter().find_map(range).filter(|_| ct.commit).map(|range| (zone, range))
    })
}

fn diff_groups(desired: &FlowSet, installed: &Installed, changes: &mut Changes) {
    let there: BTreeMap<u32, &Group> = installed.groups.iter().map(|group| (group.id, group)).collect();
    for group in desired.groups() {
        match there.get(&group.id) {
            None => changes.add_groups.push(group.clone()),
            Some(other) if **other == *group => changes.unchanged_groups += 1,
            Some(_) => changes.modify_groups.push(group.clone()),
        }
    }
    for id in there.into_keys().filter(|id| desired.group(*id).is_none()) {
        match GroupNumber::from_wire(id) {
            Some(_) => changes.delete_groups.push(id),
            None => changes.foreign.groups.push(id),
        }
    }
}

fn diff_meters(desired: &FlowSet, installed: &Installed, changes: &mut Changes) {
    let there: BTreeMap<u32, &Meter> = installed.meters.iter().map(|meter| (meter.id, meter)).collect();
    for meter in desired.meters() {
        match there.get(&meter.id) {
            None => changes.add_meters.push(meter.clone()),
            Some(other) if **other == *meter => {}
            Some(_) => changes.modify_meters.push(meter.clone()),
        }
    }
    changes.delete_meters.extend(there.into_keys().filter(|id| desired.meter(*id).is_none()));
}
