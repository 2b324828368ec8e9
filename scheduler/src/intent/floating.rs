//! Ways out of routers: the address of an external subnet that ports share, and floating IPs, which stand for one port each.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;
use model::network::{ExternalGateway, FloatingIp, Router, Snat};
use model::spec::external::FLOATING_IPS_MAX;
use model::{PortId, RouterId, SubnetId};
use serde::Deserialize;
use utoipa::ToSchema;

use super::forwarding::refuse_forwarded;
use super::{Intent, clip, find, refuse_users};
use crate::refusal::Refusal;

/// A way out of a router to make.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewGateway {
    /// The external subnet, by name or id: of IPv4, on a provider network. Its gateway leads to everywhere else.
    subnet: String,
    /// Whether ports without a floating IP get out, as an address that the router takes there; yes unless said.
    enable_snat: Option<bool>,
}

/// A floating IP to make.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewFloatingIp {
    /// The port that it is to stand for, by name or id.
    port: String,
    /// Which address of the port; its first one behind the router unless said.
    #[schema(value_type = Option<String>)]
    fixed: Option<Ipv4Addr>,
    /// The address in the external subnet; the lowest free one unless said.
    #[schema(value_type = Option<String>, example = "203.0.113.50")]
    address: Option<Ipv4Addr>,
}

impl Intent {
    /// Leads a router out to an external subnet.
    pub(crate) fn set_gateway(&mut self, name: &str, new: &NewGateway) -> Result<RouterId, Refusal> {
        let (id, router) = find(&self.routers, name, None)?;
        let (subnet_id, subnet) = find(&self.subnets, &new.subnet, Some("subnet"))?;
        let refuse = |problem: String| Err(Refusal::invalid("subnet", problem));
        let subnet = &subnet.subnet;
        if matches!(subnet.cidr, IpNet::V6(_)) {
            return refuse(format!("{} is not of IPv4", subnet.cidr));
        }
        if self.networks.get(&subnet.network).is_none_or(|network| network.provider.is_none()) {
            return refuse(format!("subnet {} is not on a provider network", subnet.name));
        }
        for foot in &router.interfaces {
            let Some(near) = self.subnets.get(&foot.subnet) else { continue };
            let (a, b) = (near.subnet.cidr, subnet.cidr);
            if a.contains(&b.network()) || b.contains(&a.network()) {
                let problem = format!("{b} overlaps {a} of subnet {}, where the router stands", near.subnet.name);
                return refuse(problem);
            }
        }
        if let Some(route) = router.routes.iter().find(|route| is_shadow(subnet, route.destination)) {
            return refuse(format!("the router has a route to {} already", route.destination));
        }
        let mut router = (*router).clone();
        let mut external = match router.external.take() {
            Some(external) if external.subnet == subnet_id => external,
            before => {
                router.external = before;
                self.refuse_gateway(&router)?;
                ExternalGateway { subnet: subnet_id, snat: None, floating_ips: Vec::new() }
            }
        };
        external.snat = match external.snat {
            _ if new.enable_snat == Some(false) => {
                let shared = Router { external: Some(external.clone()), ..router.clone() };
                refuse_forwarded(&shared, format!("SNAT of router {}", router.name), |_| true)?;
                None
            }
            Some(snat) => Some(snat),
            None => Some(self.draw_snat(subnet_id)?),
        };
        router.external = Some(external);
        self.routers.insert(id, Arc::new(router));
        Ok(id)
    }

    /// An address of an external subnet for all ports behind a router. Its gateway is chosen as hosts report.
    fn draw_snat(&mut self, subnet: SubnetId) -> Result<Snat, Refusal> {
        let Some(subnet) = self.subnets.get(&subnet).map(Arc::clone) else {
            return Err(Refusal::Internal("the external subnet is gone".to_owned()));
        };
        let mac = self.draw_mac(subnet.subnet.network)?;
        match self.free_address(&subnet, mac, "subnet")? {
            IpAddr::V4(address) => Ok(Snat { address, mac, gateways: Vec::new(), forwardings: Vec::new() }),
            IpAddr::V6(address) => Err(Refusal::Internal(format!("{address} is not of IPv4"))),
        }
    }

    /// Takes a router's way out, which no floating IP needs.
    pub(crate) fn clear_gateway(&mut self, name: &str) -> Result<RouterId, Refusal> {
        let (id, router) = find(&self.routers, name, None)?;
        if router.external.is_none() {
            return Err(Refusal::Missing { kind: "gateway of router", name: clip(name), field: None });
        }
        self.refuse_gateway(&router)?;
        let mut router = (*router).clone();
        router.external = None;
        self.routers.insert(id, Arc::new(router));
        Ok(id)
    }

    /// Refuses to take from a router a way out that something needs.
    fn refuse_gateway(&self, router: &Router) -> Result<(), Refusal> {
        let gateway = || format!("the gateway of router {}", router.name);
        self.refuse_floating(router, gateway(), |_| true)?;
        refuse_forwarded(router, gateway(), |_| true)
    }

    /// Makes a floating IP for a port.
    pub(crate) fn add_floating_ip(&mut self, name: &str, new: &NewFloatingIp) -> Result<RouterId, Refusal> {
        let (id, router) = find(&self.routers, name, None)?;
        let (port_id, port) = find(&self.ports, &new.port, Some("port"))?;
        let subnet = router.external.as_ref().and_then(|external| self.subnets.get(&external.subnet));
        let Some(subnet) = subnet.map(Arc::clone) else {
            return Err(Refusal::invalid("port", format!("router {} has no gateway to the outside", router.name)));
        };
        let is_near = |subnet: SubnetId| router.interfaces.iter().any(|foot| foot.subnet == subnet);
        let mut near = port
            .port
            .addresses
            .iter()
            .filter(|fixed| is_near(fixed.subnet))
            .filter_map(|fixed| if let IpAddr::V4(address) = fixed.address { Some(address) } else { None });
        let Some(fixed) = near.find(|address| new.fixed.is_none_or(|wanted| wanted == *address)) else {
            let problem = format!("port {} has no such IPv4 address behind router {}", port.port.name, router.name);
            return Err(Refusal::invalid(if new.fixed.is_some() { "fixed" } else { "port" }, problem));
        };
        let all = self.routers.values().filter_map(|router| router.external.as_ref()).flat_map(|it| &it.floating_ips);
        if let Some(other) = all.into_iter().find(|other| other.port == port_id && other.fixed == fixed) {
            let what = format!("the address {fixed} of port {}", port.port.name);
            return Err(Refusal::Taken {
                field: "port".to_owned(),
                what,
                owner: format!("floating IP {}", other.address),
            });
        }
        let what = format!("the address {fixed} of port {}", port.port.name);
        refuse_forwarded(&router, what, |it| it.port == port_id && it.internal_ip_address == fixed)?;
        let mac = self.draw_mac(subnet.subnet.network)?;
        let address = match new.address {
            Some(address) => {
                self.check_address(&subnet, address.into(), "address")?;
                if subnet.subnet.gateway == Some(address.into()) {
                    return Err(Refusal::invalid("address", format!("{address} is the subnet's gateway")));
                }
                address
            }
            None => match self.free_address(&subnet, mac, "address")? {
                IpAddr::V4(address) => address,
                IpAddr::V6(address) => return Err(Refusal::Internal(format!("{address} is not of IPv4"))),
            },
        };
        let mut router = (*router).clone();
        let Some(external) = &mut router.external else {
            return Err(Refusal::Internal("the router lost its gateway".to_owned()));
        };
        if external.floating_ips.len() >= FLOATING_IPS_MAX {
            return Err(Refusal::invalid("port", format!("a router has at most {FLOATING_IPS_MAX} floating IPs")));
        }
        external.floating_ips.push(FloatingIp { address, mac, port: port_id, fixed });
        self.routers.insert(id, Arc::new(router));
        Ok(id)
    }

    /// Takes a floating IP away.
    pub(crate) fn remove_floating_ip(&mut self, name: &str, address: &str) -> Result<RouterId, Refusal> {
        let (id, router) = find(&self.routers, name, None)?;
        let mut router = (*router).clone();
        let floating_ips = router.external.as_mut().map(|external| &mut external.floating_ips);
        let removed = floating_ips.is_some_and(|all| {
            let before = all.len();
            all.retain(|floating| floating.address.to_string() != address);
            all.len() < before
        });
        if !removed {
            return Err(Refusal::Missing { kind: "floating IP of the router", name: clip(address), field: None });
        }
        self.routers.insert(id, Arc::new(router));
        Ok(id)
    }

    /// Takes away the floating IPs of a port that goes.
    pub(super) fn drop_floating_ips(&mut self, port: PortId) {
        for router in self.routers.values_mut() {
            let holds = |external: &ExternalGateway| external.floating_ips.iter().any(|floating| floating.port == port);
            if router.external.as_ref().is_some_and(holds)
                && let Some(external) = &mut Arc::make_mut(router).external
            {
                external.floating_ips.retain(|floating| floating.port != port);
            }
        }
    }

    /// The floating IPs of a port, in words.
    pub(super) fn floating_ips_of(&self, port: PortId) -> impl Iterator<Item = String> {
        let all = self.routers.values().filter_map(|router| router.external.as_ref()).flat_map(|it| &it.floating_ips);
        all.filter(move |floating| floating.port == port).map(|floating| format!("floating IP {}", floating.address))
    }

    /// Refuses to take from a router what some of its floating IPs need.
    pub(super) fn refuse_floating(
        &self,
        router: &Router,
        object: String,
        needs: impl Fn(&FloatingIp) -> bool,
    ) -> Result<(), Refusal> {
        let all = router.external.iter().flat_map(|external| &external.floating_ips);
        let users = all.filter(|floating| needs(floating));
        refuse_users(object, users.map(|floating| format!("floating IP {}", floating.address)))
    }

    /// Whether a route of a router would stand in the way of its gateway.
    pub(super) fn is_way_out(&self, router: &Router, destination: IpNet) -> bool {
        let subnet = router.external.as_ref().and_then(|external| self.subnets.get(&external.subnet));
        subnet.is_some_and(|subnet| is_shadow(&subnet.subnet, destination))
    }
}

/// Whether a route leads where an external subnet does.
fn is_shadow(subnet: &model::network::Subnet, destination: IpNet) -> bool {
    let is_default = destination.addr().is_ipv4() && destination.prefix_len() == 0;
    destination == subnet.cidr || (is_default && subnet.gateway.is_some())
}
