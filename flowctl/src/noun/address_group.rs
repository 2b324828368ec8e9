//! Address groups: lists of addresses that rules of security groups name.

use clap::Subcommand;
use serde_json::{Value, json};

use super::{Common, Kind, Session, body};
use crate::failure::Failure;

/// Address groups.
pub const ADDRESS_GROUPS: Kind = Kind {
    path: "/v1/address-groups",
    columns: &[("NAME", "/name"), ("ADDRESSES", "/addresses"), ("USED BY", "/used_by"), ("ID", "/id")],
};

/// What can be done with address groups.
#[derive(Debug, Subcommand)]
pub enum AddressGroupVerb {
    /// Make an address group, for `flowctl group allow --remote-address-group`.
    Create {
        /// Its name.
        name: String,
        /// An address or a prefix, as 192.0.2.7 or 2001:db8::/32; one at least.
        #[arg(required = true, value_name = "PREFIX")]
        addresses: Vec<String>,
    },
    /// Add addresses: rules that name the group let them by at once.
    Add {
        /// The group.
        group: String,
        /// An address or a prefix; one at least.
        #[arg(required = true, value_name = "PREFIX")]
        addresses: Vec<String>,
    },
    /// Take addresses away: what rules that name the group let by of them is cut at once.
    Remove {
        /// The group.
        group: String,
        /// An address or a prefix as it is listed; one at least.
        #[arg(required = true, value_name = "PREFIX")]
        addresses: Vec<String>,
    },
    /// What can be done with every kind of object.
    #[command(flatten)]
    Common(Common),
}

impl Session<'_> {
    /// Does something with address groups.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn address_group(&self, verb: &AddressGroupVerb) -> Result<(), Failure> {
        match verb {
            AddressGroupVerb::Create { name, addresses } => {
                self.create(ADDRESS_GROUPS, body([("name", json!(name)), ("addresses", json!(addresses))])).await
            }
            AddressGroupVerb::Add { group, addresses } => self.change(group, body([("add", json!(addresses))])).await,
            AddressGroupVerb::Remove { group, addresses } => {
                self.change(group, body([("remove", json!(addresses))])).await
            }
            AddressGroupVerb::Common(verb) => self.common(ADDRESS_GROUPS, verb).await,
        }
    }

    async fn change(&self, group: &str, change: Value) -> Result<(), Failure> {
        self.show(&self.scheduler.patch(&ADDRESS_GROUPS.of(group), &change).await?)
    }
}
