//! What routers look like to an operator: where they stand, where they lead, and the floating IPs behind them.

use model::SubnetId;
use model::network::{ExternalGateway, Ipv6Gateway, Router};
use serde::Serialize;
use utoipa::ToSchema;

use super::{FirewallView, NamedRef, named};
use crate::centre::World;

/// A router.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RouterView {
    id: String,
    name: String,
    /// Number of the router in flows.
    key: u16,
    interfaces: Vec<InterfaceView>,
    routes: Vec<RouteView>,
    /// Its way out of the cloud.
    gateway: Option<GatewayView>,
    /// Its way out by IPv6.
    ipv6_gateway: Option<Ipv6GatewayView>,
    /// What judges all that crosses those; none: nothing does.
    firewall: Option<FirewallView>,
}

/// A router's way out.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct GatewayView {
    /// The external subnet.
    subnet: NamedRef,
    /// Whether ports without a floating IP get out.
    enable_snat: bool,
    /// The address that they leave as.
    address: Option<String>,
    mac: Option<String>,
    /// The host that has that address, then those that stand by.
    hosts: Vec<NamedRef>,
    floating_ips: Vec<FloatingIpView>,
    /// The ports of that address that lead behind the router.
    port_forwardings: Vec<PortForwardingView>,
}

/// A router's way out by IPv6.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Ipv6GatewayView {
    /// The external subnet.
    subnet: NamedRef,
    /// The router's own address there.
    address: String,
    mac: String,
    /// The host that has that address, then those that stand by. What leaves does so from the hosts of ports.
    hosts: Vec<NamedRef>,
    /// The router's subnets that are reached from outside, for they lie in a routed prefix of the network; others stay inside.
    routed: Vec<NamedRef>,
}

/// A port of a router's address that leads to one behind the router.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PortForwardingView {
    /// tcp or udp.
    protocol: &'static str,
    external_port: u16,
    port: NamedRef,
    /// Which address of the port.
    internal_ip_address: String,
    internal_port: u16,
}

/// An address of an external subnet that stands for a port.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FloatingIpView {
    address: String,
    mac: String,
    port: NamedRef,
    /// Which address of the port.
    fixed: String,
}

/// A way of a router beyond its subnets.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RouteView {
    destination: String,
    next_hop: String,
}

/// A router's foot in a subnet.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct InterfaceView {
    subnet: NamedRef,
    address: String,
    mac: String,
}

impl RouterView {
    pub(super) fn of(world: &World, router: &Router) -> Self {
        let interfaces = router.interfaces.iter().map(|foot| InterfaceView {
            subnet: named(&world.intent.subnets, &foot.subnet),
            address: foot.address.to_string(),
            mac: foot.mac.to_string(),
        });
        let routes = router.routes.iter().map(|route| RouteView {
            destination: route.destination.to_string(),
            next_hop: route.next_hop.to_string(),
        });
        Self {
            id: router.id.to_string(),
            name: router.name.clone(),
            key: router.key,
            interfaces: interfaces.collect(),
            routes: routes.collect(),
            gateway: router.external.as_ref().map(|external| GatewayView::of(world, external)),
            ipv6_gateway: router.ipv6_gateway.as_ref().map(|gateway| Ipv6GatewayView::of(world, router, gateway)),
            firewall: router.firewall.map(|firewall| FirewallView::of(world, firewall)),
        }
    }
}

impl Ipv6GatewayView {
    fn of(world: &World, router: &Router, gateway: &Ipv6Gateway) -> Self {
        let outside = world.intent.outside6(router);
        let is_routed = |id: &SubnetId| {
            let subnet = world.intent.subnets.get(id);
            outside.as_ref().zip(subnet).is_some_and(|(outside, subnet)| outside.routes(subnet.subnet.cidr))
        };
        let routed = router.interfaces.iter().map(|foot| &foot.subnet).filter(|id| is_routed(id));
        Self {
            subnet: named(&world.intent.subnets, &gateway.subnet),
            address: gateway.address.to_string(),
            mac: gateway.mac.to_string(),
            hosts: gateway.gateways.iter().map(|gateway| named(&world.intent.hosts, &gateway.host)).collect(),
            routed: routed.map(|id| named(&world.intent.subnets, id)).collect(),
        }
    }
}

impl GatewayView {
    fn of(world: &World, external: &ExternalGateway) -> Self {
        let floating_ips = external.floating_ips.iter().map(|floating| FloatingIpView {
            address: floating.address.to_string(),
            mac: floating.mac.to_string(),
            port: named(&world.intent.ports, &floating.port),
            fixed: floating.fixed.to_string(),
        });
        let snat = external.snat.as_ref();
        let gateways = snat.iter().flat_map(|snat| &snat.gateways);
        let forwardings = snat.iter().flat_map(|snat| &snat.forwardings).map(|forwarding| PortForwardingView {
            protocol: forwarding.protocol.name(),
            external_port: forwarding.external_port,
            port: named(&world.intent.ports, &forwarding.port),
            internal_ip_address: forwarding.internal_ip_address.to_string(),
            internal_port: forwarding.internal_port,
        });
        Self {
            subnet: named(&world.intent.subnets, &external.subnet),
            enable_snat: snat.is_some(),
            address: snat.map(|snat| snat.address.to_string()),
            mac: snat.map(|snat| snat.mac.to_string()),
            hosts: gateways.map(|gateway| named(&world.intent.hosts, &gateway.host)).collect(),
            floating_ips: floating_ips.collect(),
            port_forwardings: forwardings.collect(),
        }
    }
}
