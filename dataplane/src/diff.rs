//! From what is installed to what should be: the least list of changes, in an order in which no step needs a later one.
//!
//! Owns [`diff`] and [`Changes`]. Pure: what is installed was read by someone else, and someone else applies.
//! Invariant: applying the changes and looking again leaves nothing to change; a flow that is right is not touched; what is not ours is reported
//! and not touched. Flows are ours by their cookie, groups by their number.

use std::collections::{BTreeMap, BTreeSet};

use openflow::flow::{Flow, FlowKey, Group};

use crate::cookie::is_ours;
use crate::flow_set::{FlowSet, GroupNumber};

/// What a switch holds, as it was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Installed {
    /// Flows of all tables.
    pub flows: Vec<Flow>,
    /// Groups.
    pub groups: Vec<Group>,
}

/// What has to change, and what stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Groups that are missing.
    pub add_groups: Vec<Group>,
    /// Groups with other buckets than they should have.
    pub modify_groups: Vec<Group>,
    /// Flows that are missing, or say something else. Adding a flow replaces the one at its place.
    pub add_flows: Vec<Flow>,
    /// Flows of ours that should not exist.
    pub delete_flows: Vec<FlowKey>,
    /// Groups of ours that should not exist.
    pub delete_groups: Vec<u32>,
    /// How many of `add_flows` replace one that says something else.
    pub replaced_flows: usize,
    /// How many flows are right.
    pub unchanged_flows: usize,
    /// How many groups are right.
    pub unchanged_groups: usize,
    /// Flows that are not ours.
    pub foreign_flows: Vec<Flow>,
    /// Groups that are not ours.
    pub foreign_groups: Vec<u32>,
}

/// One step of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'a> {
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
}

impl Changes {
    /// Whether there is nothing to do; foreign flows are not ours to do anything about.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps().next().is_none()
    }

    /// The steps in the order in which they have to be taken: a group is there before a flow uses it, and goes after the last one did.
    pub fn steps(&self) -> impl Iterator<Item = Step<'_>> {
        let groups = self.add_groups.iter().map(Step::AddGroup).chain(self.modify_groups.iter().map(Step::ModifyGroup));
        let flows = self.add_flows.iter().map(Step::AddFlow).chain(self.delete_flows.iter().map(Step::DeleteFlow));
        groups.chain(flows).chain(self.delete_groups.iter().copied().map(Step::DeleteGroup))
    }
}

impl Installed {
    /// What a switch holds once these steps are taken: what tests and dry runs compare with.
    #[must_use]
    pub fn after(&self, changes: &Changes) -> Self {
        let mut flows: BTreeMap<FlowKey, Flow> = self.flows.iter().map(|flow| (flow.key(), flow.clone())).collect();
        let mut groups: BTreeMap<u32, Group> = self.groups.iter().map(|group| (group.id, group.clone())).collect();
        for step in changes.steps() {
            match step {
                Step::AddGroup(group) | Step::ModifyGroup(group) => drop(groups.insert(group.id, group.clone())),
                Step::AddFlow(flow) => drop(flows.insert(flow.key(), flow.clone())),
                Step::DeleteFlow(key) => drop(flows.remove(key)),
                Step::DeleteGroup(id) => drop(groups.remove(&id)),
            }
        }
        Self { flows: flows.into_values().collect(), groups: groups.into_values().collect() }
    }
}

/// What has to change for `installed` to hold all of `desired` and nothing else of ours.
#[must_use]
pub fn diff(desired: &FlowSet, installed: &Installed) -> Changes {
    let mut changes = Changes::default();
    diff_groups(desired, installed, &mut changes);
    let mut there: BTreeSet<FlowKey> = BTreeSet::new();
    for flow in &installed.flows {
        let key = flow.key();
        match desired.entry(&key) {
            Some(entry) if entry.flow == *flow => {
                changes.unchanged_flows += 1;
                there.insert(key);
            }
            // A flow at a place of ours is replaced whoever made it: both cannot stand.
            Some(_) => changes.replaced_flows += 1,
            None if is_ours(flow.cookie) => changes.delete_flows.push(key),
            None => changes.foreign_flows.push(flow.clone()),
        }
    }
    changes.add_flows = desired.flows().filter(|flow| !there.contains(&flow.key())).cloned().collect();
    changes.delete_flows.sort_unstable();
    changes.foreign_flows.sort_unstable();
    changes
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
            None => changes.foreign_groups.push(id),
        }
    }
}
