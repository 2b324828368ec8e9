//! Routers and their feet in subnets.

use std::net::IpAddr;
use std::sync::Arc;

use model::network::{Router, RouterInterface};
use model::{RouterId, SubnetId};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{Context, Intent, check_name, find, refuse_users};
use crate::refusal::Refusal;

/// A router to make.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewRouter {
    /// Its name.
    name: String,
}

/// A foot of a router to make.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewInterface {
    /// The subnet, by name or id.
    subnet: String,
    /// The router's address there; the subnet's gateway unless said.
    #[schema(value_type = Option<String>)]
    address: Option<IpAddr>,
}

impl Intent {
    /// Makes a router.
    pub(crate) fn create_router(&mut self, context: &mut Context<'_>, new: NewRouter) -> Result<RouterId, Refusal> {
        check_name(&self.routers, &new.name)?;
        let id = RouterId::from_uuid((context.draw)());
        let key = self.counters.next_router_key()?;
        self.routers.insert(id, Arc::new(Router { id, name: new.name, key, interfaces: Vec::new() }));
        Ok(id)
    }

    /// Forgets a router without feet.
    pub(crate) fn delete_router(&mut self, name: &str) -> Result<(), Refusal> {
        let (id, router) = find(&self.routers, name, None)?;
        let feet = router.interfaces.iter().map(|foot| format!("subnet {}", self.subnet_name(foot.subnet)));
        refuse_users(format!("router {}", router.name), feet)?;
        self.routers.remove(&id);
        Ok(())
    }

    /// Puts a router's foot into a subnet.
    pub(crate) fn add_interface(&mut self, name: &str, new: &NewInterface) -> Result<RouterId, Refusal> {
        let (id, router) = find(&self.routers, name, None)?;
        let (subnet_id, subnet) = find(&self.subnets, &new.subnet, Some("subnet"))?;
        let holder = self.routers.values().find(|other| other.interfaces.iter().any(|foot| foot.subnet == subnet_id));
        if let Some(holder) = holder {
            let what = format!("the subnet {}", subnet.subnet.name);
            let owner = format!("router {}", holder.name);
            return Err(Refusal::Taken { field: "subnet".to_owned(), what, owner });
        }
        for foot in &router.interfaces {
            let Some(other) = self.subnets.get(&foot.subnet) else { continue };
            let (a, b) = (other.subnet.cidr, subnet.subnet.cidr);
            if a.contains(&b.network()) || b.contains(&a.network()) {
                let problem =
                    format!("{b} overlaps {a} of subnet {}, where the router stands already", other.subnet.name);
                return Err(Refusal::invalid("subnet", problem));
            }
        }
        let address = new
            .address
            .or(subnet.subnet.gateway)
            .ok_or_else(|| Refusal::invalid("address", "the subnet has no gateway: say which address to take"))?;
        self.check_address(&subnet, address, "address")?;
        let mac = self.draw_mac(subnet.subnet.network)?;
        let mut router = (*router).clone();
        router.interfaces.push(RouterInterface { subnet: subnet_id, address, mac });
        self.routers.insert(id, Arc::new(router));
        Ok(id)
    }

    /// Takes a router's foot out of a subnet.
    pub(crate) fn remove_interface(&mut self, name: &str, subnet: &str) -> Result<RouterId, Refusal> {
        let (id, router) = find(&self.routers, name, None)?;
        let (subnet_id, _) = find(&self.subnets, subnet, None)?;
        let mut router = (*router).clone();
        let before = router.interfaces.len();
        router.interfaces.retain(|foot| foot.subnet != subnet_id);
        if router.interfaces.len() == before {
            return Err(Refusal::Missing {
                kind: "foot of the router in a subnet",
                name: super::clip(subnet),
                field: None,
            });
        }
        self.routers.insert(id, Arc::new(router));
        Ok(id)
    }

    pub(crate) fn subnet_name(&self, id: SubnetId) -> String {
        self.subnets.get(&id).map_or_else(|| id.to_string(), |subnet| subnet.subnet.name.clone())
    }
}
