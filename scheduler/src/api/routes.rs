//! Every route, as one table: the router, the role checks and the OpenAPI document are made from it and from nothing else.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::handler::Handler;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use model::agent::{JOIN_PATH, RENEW_PATH, REPORT_PATH, SPEC_PATH};

use super::operator as op;
use super::view::{
    AddressGroupKind, FirewallPolicyKind, FlavorKind, GroupKind, HostKind, ImageKind, LoadBalancerKind, MachineKind,
    NetworkKind, PortKind, RouterKind, SubnetKind, VolumeKind,
};
use super::{App, agent};
use crate::caller::{Caller, Role};
use crate::refusal::Refusal;

/// How a route is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

/// What a body holds: a schema by name, an array of one, or something that no schema describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Nothing,
    One(&'static str),
    Many(&'static str),
    Bytes,
    Text,
    Json(&'static str),
}

/// One route.
pub(crate) struct Route {
    pub(crate) verb: Verb,
    pub(crate) path: &'static str,
    pub(crate) role: Role,
    pub(crate) summary: &'static str,
    pub(crate) takes: Shape,
    pub(crate) status: u16,
    pub(crate) gives: Shape,
    handler: fn(MethodFilter) -> MethodRouter<Arc<App>>,
}

impl Route {
    const fn new(verb: Verb, path: &'static str, summary: &'static str, handler: Make) -> Self {
        let (role, takes, gives) = (Role::Operator, Shape::Nothing, Shape::Nothing);
        Self { verb, path, role, summary, takes, status: 200, gives, handler }
    }

    const fn takes(self, takes: Shape) -> Self {
        Self { takes, ..self }
    }

    const fn gives(self, status: u16, gives: Shape) -> Self {
        Self { status, gives, ..self }
    }

    const fn role(self, role: Role) -> Self {
        Self { role, ..self }
    }
}

type Make = fn(MethodFilter) -> MethodRouter<Arc<App>>;

macro_rules! handler {
    ($handler:expr) => {
        |filter| route_of(filter, $handler)
    };
}

fn route_of<H: Handler<T, Arc<App>>, T: 'static>(filter: MethodFilter, handler: H) -> MethodRouter<Arc<App>> {
    on(filter, handler)
}

use Shape::{Bytes, Json, Many, Nothing, One, Text};
use Verb::{Delete, Get, Patch, Post, Put};

const fn list(path: &'static str, summary: &'static str, view: &'static str, handler: Make) -> Route {
    Route::new(Get, path, summary, handler).gives(200, Many(view))
}

const fn show(path: &'static str, summary: &'static str, view: &'static str, handler: Make) -> Route {
    Route::new(Get, path, summary, handler).gives(200, One(view))
}

const fn make(path: &'static str, summary: &'static str, schemas: [&'static str; 2], handler: Make) -> Route {
    let [takes, gives] = schemas;
    Route::new(Post, path, summary, handler).takes(One(takes)).gives(201, One(gives))
}

const fn delete(path: &'static str, summary: &'static str, handler: Make) -> Route {
    Route::new(Delete, path, summary, handler).gives(204, Nothing)
}

/// Every route.
#[rustfmt::skip]
pub(crate) const ROUTES: &[Route] = &[
    list("/v1/hosts", "All hosts.", "HostView", handler!(op::list::<HostKind>)),
    show("/v1/hosts/{host}", "One host.", "HostView", handler!(op::show::<HostKind>)),
    Route::new(Patch, "/v1/hosts/{host}", "Enable or disable a host.", handler!(op::change_host)).takes(One("HostChange")).gives(200, One("HostView")),
    delete("/v1/hosts/{host}", "Forget a host without machines.", handler!(op::delete_host)),
    Route::new(Post, "/v1/hosts/{host}/evacuate", "Place the machines of a host that is dead elsewhere; refused without force, and for a host that is up.", handler!(op::evacuate_host)).takes(One("Evacuation")).gives(200, One("Evacuated")),
    Route::new(Get, "/v1/hosts/{host}/spec", "The specification that the host was given last.", handler!(op::host_spec)).gives(200, Json("the wire form of a node specification")),

    list("/v1/networks", "All networks.", "NetworkView", handler!(op::list::<NetworkKind>)),
    make("/v1/networks", "Make a network.", ["NewNetwork", "NetworkView"], handler!(op::create_network)),
    show("/v1/networks/{network}", "One network.", "NetworkView", handler!(op::show::<NetworkKind>)),
    Route::new(Patch, "/v1/networks/{network}", "Change which prefixes of IPv6 the data centre routes to a provider network.", handler!(op::change_network)).takes(One("NetworkChange")).gives(200, One("NetworkView")),
    delete("/v1/networks/{network}", "Delete a network without subnets and ports.", handler!(op::delete_network)),

    list("/v1/subnets", "All subnets.", "SubnetView", handler!(op::list::<SubnetKind>)),
    make("/v1/subnets", "Make a subnet.", ["NewSubnet", "SubnetView"], handler!(op::create_subnet)),
    show("/v1/subnets/{subnet}", "One subnet.", "SubnetView", handler!(op::show::<SubnetKind>)),
    delete("/v1/subnets/{subnet}", "Delete a subnet that nothing has an address of.", handler!(op::delete_subnet)),

    list("/v1/ports", "All ports.", "PortView", handler!(op::list::<PortKind>)),
    make("/v1/ports", "Make a port.", ["NewPort", "PortView"], handler!(op::create_port)),
    show("/v1/ports/{port}", "One port.", "PortView", handler!(op::show::<PortKind>)),
    Route::new(Patch, "/v1/ports/{port}", "Change a port's security, quality of service or mirror.", handler!(op::change_port)).takes(One("PortChange")).gives(200, One("PortView")),
    delete("/v1/ports/{port}", "Delete a port that no machine has.", handler!(op::delete_port)),
    make("/v1/ports/{port}/bindings", "Have a port of a running machine awaited on another host, which the first frame of the machine there switches it to.", ["NewBinding", "PortView"], handler!(op::bind_port)),
    Route::new(Delete, "/v1/ports/{port}/bindings", "Have a port awaited no more; refused once its machine has spoken there.", handler!(op::unbind_port)).gives(200, One("PortView")),

    list("/v1/address-groups", "All address groups.", "AddressGroupView", handler!(op::list::<AddressGroupKind>)),
    make("/v1/address-groups", "Make an address group.", ["NewAddressGroup", "AddressGroupView"], handler!(op::create_address_group)),
    show("/v1/address-groups/{group}", "One address group.", "AddressGroupView", handler!(op::show::<AddressGroupKind>)),
    Route::new(Patch, "/v1/address-groups/{group}", "Add addresses to an address group, and take others away.", handler!(op::change_address_group)).takes(One("AddressGroupChange")).gives(200, One("AddressGroupView")),
    delete("/v1/address-groups/{group}", "Delete an address group that no rule names.", handler!(op::delete_address_group)),

    list("/v1/security-groups", "All security groups.", "GroupView", handler!(op::list::<GroupKind>)),
    make("/v1/security-groups", "Make a security group.", ["NewGroup", "GroupView"], handler!(op::create_group)),
    show("/v1/security-groups/{group}", "One security group.", "GroupView", handler!(op::show::<GroupKind>)),
    delete("/v1/security-groups/{group}", "Delete a security group that nothing names.", handler!(op::delete_group)),
    make("/v1/security-groups/{group}/rules", "Add a rule to a security group.", ["NewRule", "GroupView"], handler!(op::add_rule)),
    Route::new(Delete, "/v1/security-groups/{group}/rules/{rule}", "Take a rule out of a security group.", handler!(op::remove_rule)).gives(200, One("GroupView")),

    list("/v1/firewall-policies", "All firewall policies.", "FirewallPolicyView", handler!(op::list::<FirewallPolicyKind>)),
    make("/v1/firewall-policies", "Make a firewall policy, without a rule.", ["NewFirewallPolicy", "FirewallPolicyView"], handler!(op::create_firewall_policy)),
    show("/v1/firewall-policies/{policy}", "One firewall policy.", "FirewallPolicyView", handler!(op::show::<FirewallPolicyKind>)),
    delete("/v1/firewall-policies/{policy}", "Delete a firewall policy that no router has.", handler!(op::delete_firewall_policy)),
    make("/v1/firewall-policies/{policy}/rules", "Put a rule into a firewall policy.", ["NewFirewallRule", "FirewallPolicyView"], handler!(op::add_firewall_rule)),
    Route::new(Patch, "/v1/firewall-policies/{policy}/rules/{rule}", "Switch a rule off or on, or give it another action.", handler!(op::change_firewall_rule)).takes(One("FirewallRuleChange")).gives(200, One("FirewallPolicyView")),
    Route::new(Delete, "/v1/firewall-policies/{policy}/rules/{rule}", "Take a rule out of a firewall policy; connections that only it allowed are cut.", handler!(op::remove_firewall_rule)).gives(200, One("FirewallPolicyView")),

    list("/v1/routers", "All routers.", "RouterView", handler!(op::list::<RouterKind>)),
    make("/v1/routers", "Make a router.", ["NewRouter", "RouterView"], handler!(op::create_router)),
    show("/v1/routers/{router}", "One router.", "RouterView", handler!(op::show::<RouterKind>)),
    delete("/v1/routers/{router}", "Delete a router that stands in no subnet.", handler!(op::delete_router)),
    make("/v1/routers/{router}/interfaces", "Put a router into a subnet.", ["NewInterface", "RouterView"], handler!(op::add_interface)),
    Route::new(Delete, "/v1/routers/{router}/interfaces/{subnet}", "Take a router out of a subnet.", handler!(op::remove_interface)).gives(200, One("RouterView")),
    make("/v1/routers/{router}/routes", "Give a router a route.", ["NewRoute", "RouterView"], handler!(op::add_route)),
    Route::new(Delete, "/v1/routers/{router}/routes/{destination}/{next_hop}", "Take a route from a router; the slash of the destination is written %2F.", handler!(op::remove_route)).gives(200, One("RouterView")),
    make("/v1/routers/{router}/gateway", "Lead a router out to an external subnet.", ["NewGateway", "RouterView"], handler!(op::set_gateway)),
    Route::new(Delete, "/v1/routers/{router}/gateway", "Take a router's way out, which no floating IP needs.", handler!(op::clear_gateway)).gives(200, One("RouterView")),
    make("/v1/routers/{router}/ipv6-gateway", "Lead a router out by IPv6 to an external subnet.", ["NewIpv6Gateway", "RouterView"], handler!(op::set_ipv6_gateway)),
    Route::new(Delete, "/v1/routers/{router}/ipv6-gateway", "Take a router's way out by IPv6.", handler!(op::clear_ipv6_gateway)).gives(200, One("RouterView")),
    make("/v1/routers/{router}/floating-ips", "Give a port behind a router a floating IP.", ["NewFloatingIp", "RouterView"], handler!(op::add_floating_ip)),
    Route::new(Delete, "/v1/routers/{router}/floating-ips/{address}", "Take a floating IP away.", handler!(op::remove_floating_ip)).gives(200, One("RouterView")),
    make("/v1/routers/{router}/port-forwardings", "Forward a port of a router's own address outside to one behind the router.", ["NewPortForwarding", "RouterView"], handler!(op::add_port_forwarding)),
    Route::new(Delete, "/v1/routers/{router}/port-forwardings/{protocol}/{external_port}", "Forward a port no more; connections by it are cut.", handler!(op::remove_port_forwarding)).gives(200, One("RouterView")),
    make("/v1/routers/{router}/firewall", "Have all that crosses a router's way out judged by firewall policies.", ["NewFirewall", "RouterView"], handler!(op::set_firewall)),
    Route::new(Delete, "/v1/routers/{router}/firewall", "Take a router's firewall away.", handler!(op::clear_firewall)).gives(200, One("RouterView")),

    list("/v1/images", "All images.", "ImageView", handler!(op::list::<ImageKind>)),
    make("/v1/images", "Make an image; its bytes follow.", ["NewImage", "ImageView"], handler!(op::create_image)),
    show("/v1/images/{image}", "One image.", "ImageView", handler!(op::show::<ImageKind>)),
    delete("/v1/images/{image}", "Delete an image that nothing is made from.", handler!(op::delete_image)),
    Route::new(Put, "/v1/images/{image}/data", "Upload an image's bytes, once.", handler!(op::upload_image)).takes(Bytes).gives(200, One("ImageView")),

    list("/v1/volumes", "All volumes.", "VolumeView", handler!(op::list::<VolumeKind>)),
    make("/v1/volumes", "Make a volume.", ["NewVolume", "VolumeView"], handler!(op::create_volume)),
    show("/v1/volumes/{volume}", "One volume.", "VolumeView", handler!(op::show::<VolumeKind>)),
    delete("/v1/volumes/{volume}", "Delete a volume's data; it is shown as deleting until a host has done so.", handler!(op::delete_volume)).gives(202, Nothing),

    list("/v1/load-balancers", "All load balancers.", "LoadBalancerView", handler!(op::list::<LoadBalancerKind>)),
    make("/v1/load-balancers", "Make a load balancer.", ["NewLoadBalancer", "LoadBalancerView"], handler!(op::create_balancer)),
    show("/v1/load-balancers/{load_balancer}", "One load balancer.", "LoadBalancerView", handler!(op::show::<LoadBalancerKind>)),
    delete("/v1/load-balancers/{load_balancer}", "Delete a load balancer; its connections are cut.", handler!(op::delete_balancer)),
    make("/v1/load-balancers/{load_balancer}/listeners", "Have a load balancer listen.", ["NewListener", "LoadBalancerView"], handler!(op::add_listener)),
    Route::new(Patch, "/v1/load-balancers/{load_balancer}/listeners/{protocol}/{port}", "Give a listener another limit of connections.", handler!(op::change_listener)).takes(One("ListenerChange")).gives(200, One("LoadBalancerView")),
    Route::new(Delete, "/v1/load-balancers/{load_balancer}/listeners/{protocol}/{port}", "Have it listen no more; connections of the listener are cut.", handler!(op::remove_listener)).gives(200, One("LoadBalancerView")),
    Route::new(Put, "/v1/load-balancers/{load_balancer}/listeners/{protocol}/{port}/health-monitor", "Have the members of a listener checked, each by its own host.", handler!(op::set_monitor)).takes(One("NewHealthMonitor")).gives(200, One("LoadBalancerView")),
    Route::new(Delete, "/v1/load-balancers/{load_balancer}/listeners/{protocol}/{port}/health-monitor", "Check the members of a listener no more.", handler!(op::remove_monitor)).gives(200, One("LoadBalancerView")),
    make("/v1/load-balancers/{load_balancer}/listeners/{protocol}/{port}/members", "Give a listener a member.", ["NewMember", "LoadBalancerView"], handler!(op::add_member)),
    Route::new(Patch, "/v1/load-balancers/{load_balancer}/listeners/{protocol}/{port}/members/{address}/{member_port}", "Give a member another weight.", handler!(op::change_member)).takes(One("MemberChange")).gives(200, One("LoadBalancerView")),
    Route::new(Delete, "/v1/load-balancers/{load_balancer}/listeners/{protocol}/{port}/members/{address}/{member_port}", "Take a member away; its connections are cut.", handler!(op::remove_member)).gives(200, One("LoadBalancerView")),

    list("/v1/flavors", "All flavors.", "FlavorView", handler!(op::list::<FlavorKind>)),
    make("/v1/flavors", "Make a flavor.", ["NewFlavor", "FlavorView"], handler!(op::create_flavor)),
    show("/v1/flavors/{flavor}", "One flavor.", "FlavorView", handler!(op::show::<FlavorKind>)),
    delete("/v1/flavors/{flavor}", "Delete a flavor; machines keep their size.", handler!(op::delete_flavor)),

    list("/v1/vms", "All machines.", "MachineView", handler!(op::list::<MachineKind>)),
    make("/v1/vms", "Launch a machine.", ["NewMachine", "MachineView"], handler!(op::launch)),
    show("/v1/vms/{vm}", "One machine.", "MachineView", handler!(op::show::<MachineKind>)),
    delete("/v1/vms/{vm}", "Delete a machine; it is shown as deleting until its host has done so.", handler!(op::delete_machine)).gives(202, Nothing),
    Route::new(Post, "/v1/vms/{vm}/start", "Start a machine.", handler!(op::start)).gives(200, One("MachineView")),
    Route::new(Post, "/v1/vms/{vm}/stop", "Shut a machine down.", handler!(op::stop)).gives(200, One("MachineView")),
    show("/v1/vms/{vm}/placement", "Where a machine goes, and why not elsewhere.", "PlacementView", handler!(op::placement)),

    Route::new(Get, "/v1/openapi.json", "This document.", handler!(op::openapi)).gives(200, Json("OpenAPI 3.1")),
    Route::new(Get, "/metrics", "Metrics in OpenMetrics text.", handler!(op::metrics)).gives(200, Text),
    Route::new(Get, "/healthz", "Whether the scheduler answers.", handler!(op::health)).gives(200, Text).role(Role::Anyone),

    Route::new(Post, JOIN_PATH, "Join a host against a token.", handler!(agent::join)).takes(Json("model::agent::JoinRequest")).gives(200, Json("model::agent::JoinResponse")).role(Role::Anyone),
    Route::new(Get, SPEC_PATH, "Wait for a specification newer than `after`; 204 when none came.", handler!(agent::spec)).gives(200, Json("the wire form of a node specification")).role(Role::Agent),
    Route::new(Post, RENEW_PATH, "Renew a host's certificate; the old one is good until the new one is shown.", handler!(agent::renew)).takes(Json("model::agent::RenewRequest")).gives(200, Json("model::agent::RenewResponse")).role(Role::Agent),
    Route::new(Post, REPORT_PATH, "Report what a host sees.", handler!(agent::report)).takes(Json("model::observed::Report")).gives(204, Nothing).role(Role::Agent),
    Route::new(Get, "/agent/v1/images/{image}/data", "The bytes of an image.", handler!(agent::image_data)).gives(200, Bytes).role(Role::Agent),
];

/// The router with every route behind its role check.
pub(crate) fn router(app: &Arc<App>) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        let filter = match route.verb {
            Get => MethodFilter::GET,
            Post => MethodFilter::POST,
            Put => MethodFilter::PUT,
            Patch => MethodFilter::PATCH,
            Delete => MethodFilter::DELETE,
        };
        let gate = from_fn_with_state((Arc::clone(app), route.role), admit);
        router = router.route(route.path, (route.handler)(filter).layer(gate));
    }
    router
        .fallback(|| async { Refusal::NoRoute })
        .method_not_allowed_fallback(|| async { Refusal::NoMethod })
        .layer(axum::extract::DefaultBodyLimit::disable())
        .layer(from_fn_with_state(Arc::clone(app), count))
        .with_state(Arc::clone(app))
}

/// Lets a request through if its caller has the role.
async fn admit(State((app, role)): State<(Arc<App>, Role)>, request: Request, next: Next) -> Response {
    let caller = request.extensions().get::<Caller>().cloned().unwrap_or(Caller::Anonymous);
    let intent = app.centre.intent();
    match caller.check(role, &intent) {
        Ok(()) => {
            if let Some((host, certificate)) = caller.first_shown(&intent) {
                // Not now is later: it is shown with every connection.
                let _ = app.change(|intent, _| {
                    intent.shown(host, certificate);
                    Ok(())
                });
            }
            next.run(request).await
        }
        Err(refusal) => {
            tracing::warn!(path = request.uri().path(), ?caller, %refusal, "a caller was refused");
            refusal.into_response()
        }
    }
}

/// Counts answers by status.
async fn count(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    app.metrics.answered(response.status().as_u16());
    response
}
