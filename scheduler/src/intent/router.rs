//! Routers and their feet in subnets.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use model::network::{Router, RouterInterface, StaticRoute};
use model::spec::route::{NEXT_HOPS_MAX, ROUTES_MAX};
use model::{RouterId, SubnetId};
use serde::Deserialize;
use utoipa::ToSchema;

use super::forwarding::refuse_forwarded;
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

/// A route of a router to make.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewRoute {
    /// The addresses that it leads to, host bits zero.
    #[schema(value_type = String, example = "172.16.0.0/12")]
    destination: IpNet,
    /// Who leads there: an address in a subnet where the router stands. Several routes to one destination share its connections.
    #[schema(value_type = String, example = "10.1.0.5")]
    next_hop: IpAddr,
}

impl Intent {
    /// Makes a router.
    pub(crate) fn create_router(&mut self, context: &mut Context<'_>, new: NewRouter) -> Result<RouterId, Refusal> {
        check_name(&self.routers, &new.name)?;
        let id = RouterId::from_uuid((context.draw)());
        let key = self.counters.next_router_key()?;
        let (interfaces, routes) = (Vec::new(), Vec::new());
        let router =
            Router { id, name: new.name, key, interfaces, routes, external: None, ipv6_gateway: None, firewall: None };
        self.routers.insert(id, Arc::new(router));
        Ok(id)
    }

    /// Forgets a router without feet.
    pub(crate) fn delete_router(&mut self, name: &str) -> Result<(), Refusal> {
        let (id, router) = find(&self.routers, name, None)?;
        let feet = router.interfaces.iter().map(|foot| format!("subnet {}", self.subnet_name(foot.subnet)));
        let out = router.external.iter().map(|out| format!("external subnet {}", self.subnet_name(out.subnet)));
        let out6 = router.ipv6_gateway.iter().map(|out| format!("external subnet {}", self.subnet_name(out.subnet)));
        refuse_users(format!("router {}", router.name), feet.chain(out).chain(out6))?;
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
        let outside = router.external.as_ref().and_then(|external| self.subnets.get(&external.subnet));
        if let Some(outside) = outside {
            let (a, b) = (outside.subnet.cidr, subnet.subnet.cidr);
            if a.contains(&b.network()) || b.contains(&a.network()) {
                let problem = format!("{b} overlaps {a} of subnet {}, the router's way out", outside.subnet.name);
                return Err(Refusal::invalid("subnet", problem));
            }
        }
        let outside6 = router.ipv6_gateway.as_ref().and_then(|gateway| self.subnets.get(&gateway.subnet));
        if let Some(problem) = outside6.and_then(|outside| self.in_the_way(subnet_id, &outside.subnet)) {
            return Err(Refusal::invalid("subnet", problem));
        }
        if router.routes.iter().any(|route| route.destination == subnet.subnet.cidr) {
            let problem = format!("the router has a route to {} already", subnet.subnet.cidr);
            return Err(Refusal::invalid("subnet", problem));
        }
        if router.routes.iter().any(|route| route.next_hop == address) {
            return Err(Refusal::invalid("address", format!("a route of the router leads to {address}")));
        }
        let mac = self.draw_mac(subnet.subnet.network)?;
        let mut router = (*router).clone();
        router.interfaces.push(RouterInterface { subnet: subnet_id, address, mac });
        self.put_router(id, router, "subnet")
    }

    /// Gives a router a route.
    pub(crate) fn add_route(&mut self, name: &str, new: &NewRoute) -> Result<RouterId, Refusal> {
        let (id, router) = find(&self.routers, name, None)?;
        let (to, hop) = (new.destination, new.next_hop);
        if to != to.trunc() {
            let problem = format!("{to} has host bits set: the range is {}", to.trunc());
            return Err(Refusal::invalid("destination", problem));
        }
        if to.addr().is_ipv4() != hop.is_ipv4() {
            return Err(Refusal::invalid("next_hop", format!("{hop} is of another version of IP than {to}")));
        }
        let feet = || router.interfaces.iter().filter_map(|foot| Some((foot, self.subnets.get(&foot.subnet)?)));
        if let Some((_, subnet)) = feet().find(|(_, subnet)| subnet.subnet.cidr == to) {
            let problem = format!("{to} is subnet {}, where the router stands already", subnet.subnet.name);
            return Err(Refusal::invalid("destination", problem));
        }
        let Some((foot, _)) = feet().find(|(_, subnet)| subnet.subnet.cidr.contains(&hop)) else {
            return Err(Refusal::invalid("next_hop", format!("{hop} is in no subnet where the router stands")));
        };
        if foot.address == hop {
            return Err(Refusal::invalid("next_hop", format!("{hop} is the router itself")));
        }
        if self.is_way_out(&router, to) || self.is_way_out6(&router, to) {
            return Err(Refusal::invalid("destination", format!("{to} is where the router's gateway leads")));
        }
        let route = StaticRoute { destination: to, next_hop: hop };
        if router.routes.contains(&route) {
            let owner = format!("router {}", router.name);
            return Err(Refusal::Taken {
                field: "destination".to_owned(),
                what: format!("the route to {to} by {hop}"),
                owner,
            });
        }
        let hops = router.routes.iter().filter(|other| other.destination == to).count();
        if router.routes.len() >= ROUTES_MAX || hops >= NEXT_HOPS_MAX {
            let problem = format!("a router has at most {ROUTES_MAX} routes, {NEXT_HOPS_MAX} for one destination");
            return Err(Refusal::invalid("destination", problem));
        }
        let mut router = (*router).clone();
        router.routes.push(route);
        self.routers.insert(id, Arc::new(router));
        Ok(id)
    }

    /// Takes a route from a router.
    pub(crate) fn remove_route(&mut self, name: &str, destination: &str, next_hop: &str) -> Result<RouterId, Refusal> {
        let (id, router) = find(&self.routers, name, None)?;
        let mut router = (*router).clone();
        let before = router.routes.len();
        // What is written otherwise than it is shown means the same route.
        let meant = destination.parse().ok().zip(next_hop.parse().ok());
        let meant = meant.map(|(destination, next_hop)| StaticRoute { destination, next_hop });
        router.routes.retain(|route| Some(route) != meant.as_ref());
        if router.routes.len() == before {
            let name = format!("{} by {}", super::clip(destination), super::clip(next_hop));
            return Err(Refusal::Missing { kind: "route of the router to", name, field: None });
        }
        self.routers.insert(id, Arc::new(router));
        Ok(id)
    }

    /// Takes a router's foot out of a subnet.
    pub(crate) fn remove_interface(&mut self, name: &str, subnet: &str) -> Result<RouterId, Refusal> {
        let (id, router) = find(&self.routers, name, None)?;
        let (subnet_id, _) = find(&self.subnets, subnet, None)?;
        if let Some(subnet) = self.subnets.get(&subnet_id) {
            let routes = router.routes.iter().filter(|route| subnet.subnet.cidr.contains(&route.next_hop));
            let routes = routes.map(|route| format!("route to {} by {}", route.destination, route.next_hop));
            let foot = format!("the foot in subnet {}", subnet.subnet.name);
            refuse_users(foot.clone(), routes)?;
            let is_in = |address| subnet.subnet.cidr.contains(&IpAddr::V4(address));
            self.refuse_floating(&router, foot.clone(), |floating| is_in(floating.fixed))?;
            refuse_forwarded(&router, foot, |forwarding| is_in(forwarding.internal_ip_address))?;
        }
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
