//! What operators asked for: every object of the cloud, and the rules that hold between them.
//!
//! [`Intent`] is a value. Each request is one function on it that either changes it and leaves it whole or refuses and leaves it as it was to
//! be thrown away: the caller works on a clone, which is cheap because the objects are shared. No clock, no randomness (ids are drawn by the
//! [`Context`]), no I/O. What hosts report is not in here.
//!
//! Invariants: names are unique per kind; a port, and a volume, belongs to one machine at most; addresses and MACs are unique per network; keys
//! and VNIs only count up, so none is ever given twice.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use model::{
    AddressGroupId, BalancerId, FirewallPolicyId, FlavorId, HostId, ImageId, MachineId, NetworkId, PortId, RouterId,
    SecurityGroupId, SubnetId, Vni, VolumeId,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::config::Defaults;
use crate::refusal::Refusal;

pub(crate) mod address;
pub(crate) mod address_group;
pub(crate) mod balancer;
pub(crate) mod binding;
pub(crate) mod firewall;
pub(crate) mod flavor;
pub(crate) mod floating;
pub(crate) mod forwarding;
pub(crate) mod health;
pub(crate) mod host;
pub(crate) mod image;
pub(crate) mod machine;
pub(crate) mod mirror;
pub(crate) mod network;
pub(crate) mod north;
pub(crate) mod port;
pub(crate) mod router;
pub(crate) mod security;
pub(crate) mod volume;

use flavor::Flavor;
use host::{Assigned, Host};
use image::ImageIntent;
use machine::MachineIntent;
use network::SubnetIntent;
use port::PortIntent;
use volume::VolumeIntent;

/// Objects of one kind by identity; shared, so that a clone of the whole intent copies no object.
pub(crate) type Table<I, T> = BTreeMap<I, Arc<T>>;

/// Every object of the cloud.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Intent {
    pub(crate) counters: Counters,
    pub(crate) hosts: Table<HostId, Host>,
    pub(crate) networks: Table<NetworkId, model::network::Network>,
    pub(crate) subnets: Table<SubnetId, SubnetIntent>,
    pub(crate) ports: Table<PortId, PortIntent>,
    pub(crate) address_groups: Table<AddressGroupId, model::address_group::AddressGroup>,
    pub(crate) groups: Table<SecurityGroupId, model::security::SecurityGroup>,
    pub(crate) firewall_policies: Table<FirewallPolicyId, model::firewall::FirewallPolicy>,
    pub(crate) routers: Table<RouterId, model::network::Router>,
    pub(crate) balancers: Table<BalancerId, model::balancer::Balancer>,
    pub(crate) images: Table<ImageId, ImageIntent>,
    pub(crate) volumes: Table<VolumeId, VolumeIntent>,
    pub(crate) flavors: Table<FlavorId, Flavor>,
    pub(crate) machines: Table<MachineId, MachineIntent>,
    /// The specification last given to each host, with its generation.
    pub(crate) assigned: Table<HostId, Assigned>,
}

/// The last number given of each sequence. A number is never given again, also when its object is gone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Counters {
    pub(crate) vni: u32,
    pub(crate) port_key: u32,
    pub(crate) group_key: u32,
    #[serde(default)]
    pub(crate) address_group_key: u32,
    pub(crate) router_key: u16,
    #[serde(default)]
    pub(crate) balancer_key: u16,
    #[serde(default)]
    pub(crate) firewall_rule_key: u32,
    pub(crate) mac: u32,
    /// How many ports were given a number for copies.
    #[serde(default)]
    pub(crate) mirror: u32,
}

impl Counters {
    pub(crate) fn next_vni(&mut self) -> Result<Vni, Refusal> {
        self.vni = next(self.vni, Vni::MIRRORS.start() - 1, "VXLAN network identifier")?;
        Vni::try_from(self.vni).map_err(|error| Refusal::Internal(error.to_string()))
    }

    /// The next identifier of those that are kept for ports that get copies.
    pub(crate) fn next_mirror_vni(&mut self) -> Result<Vni, Refusal> {
        let (first, last) = (Vni::MIRRORS.start(), Vni::MIRRORS.end());
        self.mirror = next(self.mirror, last - first + 1, "VXLAN network identifier for a port that gets copies")?;
        Vni::try_from(first + self.mirror - 1).map_err(|error| Refusal::Internal(error.to_string()))
    }

    pub(crate) fn next_port_key(&mut self) -> Result<u32, Refusal> {
        self.port_key = next(self.port_key, u32::MAX, "port key")?;
        Ok(self.port_key)
    }

    pub(crate) fn next_group_key(&mut self) -> Result<u32, Refusal> {
        self.group_key = next(self.group_key, u32::MAX, "security group key")?;
        Ok(self.group_key)
    }

    pub(crate) fn next_address_group_key(&mut self) -> Result<u32, Refusal> {
        self.address_group_key = next(self.address_group_key, u32::MAX, "address group key")?;
        Ok(self.address_group_key)
    }

    pub(crate) fn next_router_key(&mut self) -> Result<u16, Refusal> {
        self.router_key = next(self.router_key, u16::MAX, "router key")?;
        Ok(self.router_key)
    }

    pub(crate) fn next_firewall_rule_key(&mut self) -> Result<u32, Refusal> {
        self.firewall_rule_key = next(self.firewall_rule_key, u32::MAX, "firewall rule key")?;
        Ok(self.firewall_rule_key)
    }

    pub(crate) fn next_balancer_key(&mut self) -> Result<u16, Refusal> {
        self.balancer_key = next(self.balancer_key, u16::MAX, "load balancer key")?;
        Ok(self.balancer_key)
    }
}

fn next<N: PartialOrd + std::ops::Add<Output = N> + From<u8> + Copy>(
    last: N,
    most: N,
    what: &str,
) -> Result<N, Refusal> {
    if last < most { Ok(last + N::from(1)) } else { Err(Refusal::Exhausted { what: what.to_owned(), field: None }) }
}

/// What a request needs besides the intent itself.
pub(crate) struct Context<'a> {
    /// Draws the UUID of a new object: random in the program, counted in tests.
    pub(crate) draw: &'a mut dyn FnMut() -> Uuid,
    /// What is taken where a request says nothing.
    pub(crate) defaults: &'a Defaults,
}

/// An object with a name that is unique among its kind.
pub(crate) trait Named {
    /// The kind in the users' words.
    const KIND: &'static str;
    /// The name.
    fn name(&self) -> &str;
}

macro_rules! named {
    ($($type:ty = $kind:literal, $($path:ident).+;)*) => {$(
        impl Named for $type {
            const KIND: &'static str = $kind;
            fn name(&self) -> &str {
                &self.$($path).+
            }
        }
    )*};
}

named! {
    Host = "host", name;
    model::network::Network = "network", name;
    SubnetIntent = "subnet", subnet.name;
    PortIntent = "port", port.name;
    model::address_group::AddressGroup = "address group", name;
    model::security::SecurityGroup = "security group", name;
    model::firewall::FirewallPolicy = "firewall policy", name;
    model::network::Router = "router", name;
    model::balancer::Balancer = "load balancer", name;
    ImageIntent = "image", name;
    VolumeIntent = "volume", volume.name;
    Flavor = "flavor", name;
    MachineIntent = "vm", machine.name;
}

/// Finds an object by name or id. `field` names the reference in the request; none: the object of the route itself.
pub(crate) fn find<I, T>(table: &Table<I, T>, name: &str, field: Option<&str>) -> Result<(I, Arc<T>), Refusal>
where
    I: FromStr + Ord + Copy,
    T: Named,
{
    let by_id = name.parse::<I>().ok().and_then(|id| table.get(&id).map(|object| (id, Arc::clone(object))));
    by_id
        .or_else(|| {
            table.iter().find(|(_, object)| object.name() == name).map(|(id, object)| (*id, Arc::clone(object)))
        })
        .ok_or_else(|| Refusal::Missing {
            kind: T::KIND,
            name: name.chars().take(64).collect(),
            field: field.map(str::to_owned),
        })
}

/// Checks a new object's name: 1 to 63 letters, digits, `.`, `_` and `-`, no UUID, not taken.
pub(crate) fn check_name<I, T: Named>(table: &Table<I, T>, name: &str) -> Result<(), Refusal> {
    check_word(name)?;
    if table.values().any(|object| object.name() == name) {
        let owner = format!("another {}", T::KIND);
        return Err(Refusal::Taken { field: "name".to_owned(), what: format!("the name {name:?}"), owner });
    }
    Ok(())
}

/// Checks that a name can be one: 1 to 63 letters, digits, `.`, `_` and `-`, no UUID.
pub(crate) fn check_word(name: &str) -> Result<(), Refusal> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > 63 || !name.chars().all(legal) {
        let problem = format!("{:?} is not 1 to 63 letters, digits, '.', '_' or '-'", clip(name));
        return Err(Refusal::invalid("name", problem));
    }
    if Uuid::parse_str(name).is_ok() {
        return Err(Refusal::invalid("name", format!("{name:?} looks like an id, so it can not be a name")));
    }
    Ok(())
}

/// Checks that a name is a DNS label (RFC 1123 §2.1): 1 to 63 lower-case letters, digits and inner hyphens.
pub(crate) fn check_label(name: &str) -> Result<(), Refusal> {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edge = name.starts_with('-') || name.ends_with('-');
    if name.is_empty() || name.len() > 63 || edge || !name.chars().all(legal) {
        let problem = format!(
            "{:?} is no DNS label: want 1 to 63 lower-case letters, digits and hyphens, no hyphen at either end",
            clip(name)
        );
        return Err(Refusal::invalid("name", problem));
    }
    Ok(())
}

/// The names of the objects that use `object`, as a refusal; `Ok` when there are none.
pub(crate) fn refuse_users(object: String, users: impl IntoIterator<Item = String>) -> Result<(), Refusal> {
    let mut users: Vec<String> = users.into_iter().collect();
    users.sort();
    if users.is_empty() { Ok(()) } else { Err(Refusal::InUse { object, users: users.join(", ") }) }
}

pub(crate) fn clip(text: &str) -> String {
    text.chars().take(64).collect()
}

impl Intent {
    /// The objects that a new cloud starts with: the default security group and a few flavors.
    pub(crate) fn found(context: &mut Context<'_>) -> Result<Self, Refusal> {
        let mut intent = Self::default();
        intent.found_default_group(context)?;
        intent.found_flavors(context)?;
        Ok(intent)
    }
}
