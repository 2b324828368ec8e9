//! What address groups look like to an operator: their addresses, and whose rules name them.

use model::address_group::AddressGroup;
use model::security::Remote;
use serde::Serialize;
use utoipa::ToSchema;

use super::{NamedRef, listed};
use crate::centre::World;

/// An address group.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AddressGroupView {
    id: String,
    name: String,
    /// Number of the group in flows.
    key: u32,
    /// Its addresses, as prefixes.
    addresses: Vec<String>,
    /// The security groups whose rules name it.
    used_by: Vec<NamedRef>,
}

impl AddressGroupView {
    pub(super) fn of(world: &World, group: &AddressGroup) -> Self {
        let groups = &world.intent.groups;
        let users = groups
            .iter()
            .filter(|(_, other)| other.rules.iter().any(|rule| rule.remote == Remote::Addresses(group.id)));
        Self {
            id: group.id.to_string(),
            name: group.name.clone(),
            key: group.key,
            addresses: group.addresses.iter().map(ToString::to_string).collect(),
            used_by: listed(groups, users.map(|(id, _)| id)),
        }
    }
}
