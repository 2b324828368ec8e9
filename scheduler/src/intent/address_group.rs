//! Address groups: lists of addresses that rules of security groups name.
//!
//! Owns the checks of a request; what a list must be is the model's to say. Invariant: a group is never without an address, and never gone while a
//! rule names it.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use model::AddressGroupId;
use model::address_group::{self, ADDRESSES_MAX, AddressGroup, AddressesError};
use model::security::{Remote, SecurityGroup};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{Context, Intent, check_name, clip, find, refuse_users};
use crate::refusal::Refusal;

/// An address group to make.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewAddressGroup {
    /// Its name.
    name: String,
    /// Its addresses, one at least: prefixes of IPv4 and IPv6, or single addresses.
    #[schema(example = json!(["192.0.2.0/24", "2001:db8::7"]))]
    addresses: Vec<String>,
}

/// A change of an address group's addresses: what is taken away goes first, and all of it happens or nothing.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AddressGroupChange {
    /// Addresses that it is to have from now on.
    #[serde(default)]
    add: Vec<String>,
    /// Addresses that it is not to have any more, as they were given.
    #[serde(default)]
    remove: Vec<String>,
}

impl Intent {
    /// Makes an address group.
    pub(crate) fn create_address_group(
        &mut self,
        context: &mut Context<'_>,
        new: &NewAddressGroup,
    ) -> Result<AddressGroupId, Refusal> {
        check_name(&self.address_groups, &new.name)?;
        let addresses = prefixes("addresses", &new.addresses)?;
        check("addresses", &new.name, &addresses)?;
        let id = AddressGroupId::from_uuid((context.draw)());
        let key = self.counters.next_address_group_key()?;
        let group = AddressGroup { id, name: new.name.clone(), key, addresses };
        self.address_groups.insert(id, Arc::new(group));
        Ok(id)
    }

    /// Gives an address group other addresses.
    pub(crate) fn change_address_group(
        &mut self,
        name: &str,
        change: &AddressGroupChange,
    ) -> Result<AddressGroupId, Refusal> {
        let (id, group) = find(&self.address_groups, name, None)?;
        refuse_crowd(&group, change)?;
        let mut group = (*group).clone();
        let object = format!("address group {}", group.name);
        for (number, prefix) in prefixes("remove", &change.remove)?.into_iter().enumerate() {
            let Some(at) = group.addresses.iter().position(|other| *other == prefix) else {
                return Err(Refusal::invalid(format!("remove[{number}]"), format!("{object} does not have {prefix}")));
            };
            group.addresses.remove(at);
        }
        for (number, prefix) in prefixes("add", &change.add)?.into_iter().enumerate() {
            if group.addresses.contains(&prefix) {
                return Err(Refusal::Taken {
                    field: format!("add[{number}]"),
                    what: prefix.to_string(),
                    owner: object.clone(),
                });
            }
            group.addresses.push(prefix);
        }
        check(if change.add.is_empty() { "remove" } else { "add" }, &group.name, &group.addresses)?;
        self.address_groups.insert(id, Arc::new(group));
        Ok(id)
    }

    /// Forgets an address group that no rule names.
    pub(crate) fn delete_address_group(&mut self, name: &str) -> Result<(), Refusal> {
        let (id, group) = find(&self.address_groups, name, None)?;
        let names_it =
            |other: &&Arc<SecurityGroup>| other.rules.iter().any(|rule| rule.remote == Remote::Addresses(id));
        let users = self.groups.values().filter(names_it);
        let users = users.map(|other| format!("a rule of security group {}", other.name));
        refuse_users(format!("address group {}", group.name), users)?;
        self.address_groups.remove(&id);
        Ok(())
    }
}

/// Refuses what takes more away than there is, or leaves too much, before anything is looked for: each look is at a whole list.
fn refuse_crowd(group: &AddressGroup, change: &AddressGroupChange) -> Result<(), Refusal> {
    let (count, removed) = (group.addresses.len(), change.remove.len());
    let Some(left) = count.checked_sub(removed) else {
        let problem = format!("address group {} has {count} addresses, {removed} are to be removed", group.name);
        return Err(Refusal::invalid("remove", problem));
    };
    match left.saturating_add(change.add.len()) {
        count if count > ADDRESSES_MAX => {
            let error = AddressesError::TooMany { count };
            Err(Refusal::invalid("add", format!("address group {}: {error}", group.name)))
        }
        _ => Ok(()),
    }
}

fn check(field: &str, name: &str, addresses: &[IpNet]) -> Result<(), Refusal> {
    address_group::check(addresses).map_err(|error| Refusal::invalid(field, format!("address group {name}: {error}")))
}

/// Reads prefixes; a single address needs no length.
fn prefixes(field: &str, texts: &[String]) -> Result<Vec<IpNet>, Refusal> {
    let read = |(number, text): (usize, &String)| {
        let prefix = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        let problem = || format!("{:?} is no address and no prefix", clip(text));
        prefix.ok_or_else(|| Refusal::invalid(format!("{field}[{number}]"), problem()))
    };
    texts.iter().enumerate().map(read).collect()
}
