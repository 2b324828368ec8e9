//! Ways out of routers by IPv6: which prefixes the data centre routes to a provider network, and which routers lead out there.
//!
//! Invariant: no two subnets that are routed on one network overlap, so that an address there is behind one router.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv6Net};
use model::network::{Ipv6Gateway, Network, Router, Subnet};
use model::spec::north::{ROUTED_PREFIXES_MAX, is_routable};
use model::{NetworkId, RouterId, SubnetId};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{Intent, clip, find};
use crate::refusal::Refusal;

/// What is to be changed of a network.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetworkChange {
    /// All prefixes of IPv6 that the data centre routes to it, a provider network: to its link, or by the addresses of routers there. Subnets behind routers that
    /// lead out to it are reached from outside when they lie in one of these; others stay inside.
    #[schema(value_type = Option<Vec<String>>, example = json!(["2001:db8:100::/40"]))]
    routed_prefixes: Option<Vec<Ipv6Net>>,
}

/// A way out of a router by IPv6 to make.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewIpv6Gateway {
    /// The external subnet, by name or id: of IPv6, on a provider network. Its gateway leads to everywhere else.
    subnet: String,
    /// The router's own address there, by which the data centre may route prefixes; a free one unless said.
    #[schema(value_type = Option<String>)]
    address: Option<Ipv6Addr>,
}

impl Intent {
    /// Changes what is routed to a network.
    pub(crate) fn change_network(&mut self, name: &str, change: &NetworkChange) -> Result<NetworkId, Refusal> {
        let (id, network) = find(&self.networks, name, None)?;
        let Some(prefixes) = &change.routed_prefixes else { return Ok(id) };
        let mut prefixes = prefixes.clone();
        prefixes.sort_unstable();
        prefixes.dedup();
        check_prefixes((&network.name, network.provider.is_some()), &prefixes)?;
        let network = Network { routed_prefixes: prefixes, ..(*network).clone() };
        let out: Vec<&Router> = self.routers.values().map(|router| &**router).collect();
        self.refuse_shared(&network, &out, "routed_prefixes")?;
        self.networks.insert(id, Arc::new(network));
        Ok(id)
    }

    /// Leads a router out by IPv6.
    pub(crate) fn set_ipv6_gateway(&mut self, name: &str, new: &NewIpv6Gateway) -> Result<RouterId, Refusal> {
        let (id, router) = find(&self.routers, name, None)?;
        let (subnet_id, external) = find(&self.subnets, &new.subnet, Some("subnet"))?;
        let refuse = |problem: String| Err(Refusal::invalid("subnet", problem));
        let subnet = &external.subnet;
        if matches!(subnet.cidr, IpNet::V4(_)) {
            return refuse(format!("{} is not of IPv6", subnet.cidr));
        }
        let network = self.networks.get(&subnet.network).filter(|network| network.provider.is_some());
        let Some(network) = network.map(Arc::clone) else {
            return refuse(format!("subnet {} is not on a provider network", subnet.name));
        };
        if let Some(near) = router.interfaces.iter().find_map(|foot| self.in_the_way(foot.subnet, subnet)) {
            return refuse(near);
        }
        if let Some(route) = router.routes.iter().find(|route| shadows(subnet, route.destination)) {
            return refuse(format!("the router has a route to {} already", route.destination));
        }
        let before = router.ipv6_gateway.as_ref().filter(|before| before.subnet == subnet_id);
        let keeps = before.filter(|before| new.address.is_none_or(|address| address == before.address));
        let gateway = match keeps {
            Some(before) => before.clone(),
            None => {
                let mac = self.draw_mac(network.id)?;
                let address = match new.address.map(IpAddr::V6) {
                    Some(address) => self.check_address(&external, address, "address").map(|()| address)?,
                    None => self.free_address(&external, mac, "subnet")?,
                };
                let IpAddr::V6(address) = address else {
                    return Err(Refusal::Internal(format!("{address} is not of IPv6")));
                };
                if subnet.gateway == Some(address.into()) {
                    let problem = format!("{address} is the gateway of subnet {}", subnet.name);
                    return Err(Refusal::invalid("address", problem));
                }
                Ipv6Gateway { subnet: subnet_id, address, mac, gateways: Vec::new() }
            }
        };
        self.put_router(id, Router { ipv6_gateway: Some(gateway), ..(*router).clone() }, "subnet")
    }

    /// Takes a router's way out by IPv6.
    pub(crate) fn clear_ipv6_gateway(&mut self, name: &str) -> Result<RouterId, Refusal> {
        let (id, router) = find(&self.routers, name, None)?;
        if router.ipv6_gateway.is_none() {
            return Err(Refusal::Missing { kind: "gateway of IPv6 of router", name: clip(name), field: None });
        }
        self.routers.insert(id, Arc::new(Router { ipv6_gateway: None, ..(*router).clone() }));
        Ok(id)
    }

    /// Puts a router in the place of itself, if what is routed behind it is nobody else's.
    pub(super) fn put_router(&mut self, id: RouterId, router: Router, field: &str) -> Result<RouterId, Refusal> {
        if let Some(outside) = self.outside6(&router) {
            let others = self.routers.values().filter(|other| other.id != id).map(|other| &**other);
            let all: Vec<&Router> = std::iter::once(&router).chain(others).collect();
            self.refuse_shared(&outside, &all, field)?;
        }
        self.routers.insert(id, Arc::new(router));
        Ok(id)
    }

    /// The network that a router leads out to by IPv6.
    pub(crate) fn outside6(&self, router: &Router) -> Option<Arc<Network>> {
        let external = self.subnets.get(&router.ipv6_gateway.as_ref()?.subnet)?;
        self.networks.get(&external.subnet.network).map(Arc::clone)
    }

    /// Why a subnet can not be one where a router stands that leads out to another.
    pub(super) fn in_the_way(&self, near: SubnetId, external: &Subnet) -> Option<String> {
        let near = &self.subnets.get(&near)?.subnet;
        let (a, b) = (near.cidr, external.cidr);
        if near.network == external.network {
            return Some(format!("subnet {} is on the same network as {}, the way out", near.name, external.name));
        }
        let overlap = a.contains(&b.network()) || b.contains(&a.network());
        overlap.then(|| format!("{a} of subnet {} overlaps {b} of subnet {}, the way out", near.name, external.name))
    }

    /// Whether a route of a router would stand in the way of its gateway of IPv6.
    pub(super) fn is_way_out6(&self, router: &Router, destination: IpNet) -> bool {
        let subnet = router.ipv6_gateway.as_ref().and_then(|gateway| self.subnets.get(&gateway.subnet));
        subnet.is_some_and(|subnet| shadows(&subnet.subnet, destination))
    }

    /// Why a network can not have a subnet: one behind a router is routed there, and would have its addresses.
    pub(super) fn is_routed_there(&self, network: NetworkId, cidr: IpNet) -> Option<String> {
        let outside = self.networks.get(&network)?;
        let overlaps = |other: IpNet| other.contains(&cidr.network()) || cidr.contains(&other.network());
        self.routers.values().find_map(|router| {
            self.outside6(router).filter(|it| it.id == network)?;
            let mut feet = router.interfaces.iter().filter_map(|foot| self.subnets.get(&foot.subnet));
            let there = feet.find(|it| outside.routes(it.subnet.cidr) && overlaps(it.subnet.cidr))?;
            let (name, other) = (&there.subnet.name, there.subnet.cidr);
            Some(format!(
                "{cidr} overlaps {other} of subnet {name} behind router {}, which is routed here",
                router.name
            ))
        })
    }

    /// Refuses two subnets of one prefix that would be routed on a network, and one that overlaps what the network has itself.
    fn refuse_shared(&self, network: &Network, routers: &[&Router], field: &str) -> Result<(), Refusal> {
        let leads_there = |router: &&&Router| self.outside6(router).is_some_and(|outside| outside.id == network.id);
        let mut seen: Vec<(&Router, Arc<super::network::SubnetIntent>)> = Vec::new();
        for router in routers.iter().filter(leads_there) {
            for subnet in router.interfaces.iter().filter_map(|foot| self.subnets.get(&foot.subnet)) {
                let cidr = subnet.subnet.cidr;
                if !network.routes(cidr) {
                    continue;
                }
                let overlaps = |other: IpNet| other.contains(&cidr.network()) || cidr.contains(&other.network());
                let on_it = self.subnets.values().map(|other| &other.subnet).filter(|it| it.network == network.id);
                if let Some(own) = on_it.into_iter().find(|own| overlaps(own.cidr)) {
                    let problem = format!(
                        "{cidr} of subnet {} behind router {} would be routed on network {} and overlaps {} of its own subnet {}",
                        subnet.subnet.name, router.name, network.name, own.cidr, own.name
                    );
                    return Err(Refusal::invalid(field, problem));
                }
                if let Some((there, other)) = seen.iter().find(|(_, other)| overlaps(other.subnet.cidr)) {
                    let problem = format!(
                        "{cidr} of subnet {} behind router {} overlaps {} of subnet {} behind router {}, and both would be routed on network {}",
                        subnet.subnet.name, router.name, other.subnet.cidr, other.subnet.name, there.name, network.name
                    );
                    return Err(Refusal::invalid(field, problem));
                }
                seen.push((router, Arc::clone(subnet)));
            }
        }
        Ok(())
    }
}

/// Whether a route leads where an external subnet does.
fn shadows(subnet: &Subnet, destination: IpNet) -> bool {
    destination == subnet.cidr || (destination.addr().is_ipv6() && destination.prefix_len() == 0)
}

/// Holds prefixes against the network that they are to be routed to, by its name and whether it is one of the data centre.
pub(super) fn check_prefixes((name, is_outside): (&str, bool), prefixes: &[Ipv6Net]) -> Result<(), Refusal> {
    let refuse = |problem: String| Err(Refusal::invalid("routed_prefixes", problem));
    if !is_outside && !prefixes.is_empty() {
        return refuse(format!("network {name} is no provider network: nothing is routed to it"));
    }
    if prefixes.len() > ROUTED_PREFIXES_MAX {
        return refuse(format!("{} prefixes, at most {ROUTED_PREFIXES_MAX}", prefixes.len()));
    }
    if let Some(prefix) = prefixes.iter().find(|prefix| **prefix != prefix.trunc()) {
        return refuse(format!("{prefix} has host bits set: the prefix is {}", prefix.trunc()));
    }
    match prefixes.iter().find(|prefix| !is_routable(**prefix)) {
        Some(prefix) => refuse(format!("{prefix} has addresses that no router passes on")),
        None => Ok(()),
    }
}
