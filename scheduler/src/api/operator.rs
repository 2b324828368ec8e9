//! Routes of operators: each is one function of the intent, and a view.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::view::{
    AddressGroupKind, FirewallPolicyKind, FlavorKind, GroupKind, HostKind, ImageKind, Kind, LoadBalancerKind,
    MachineKind, NetworkKind, PlacementView, PortKind, RouterKind, SubnetKind, VolumeKind,
};
use super::{Answer, App, Read};
use crate::evacuate::Evacuation;
use crate::intent::address_group::{AddressGroupChange, NewAddressGroup};
use crate::intent::balancer::{ListenerChange, MemberChange, NewListener, NewLoadBalancer, NewMember};
use crate::intent::binding::NewBinding;
use crate::intent::find;
use crate::intent::firewall::{FirewallRuleChange, NewFirewall, NewFirewallPolicy, NewFirewallRule};
use crate::intent::flavor::NewFlavor;
use crate::intent::floating::{NewFloatingIp, NewGateway};
use crate::intent::forwarding::NewPortForwarding;
use crate::intent::health::NewHealthMonitor;
use crate::intent::host::HostChange;
use crate::intent::image::NewImage;
use crate::intent::machine::NewMachine;
use crate::intent::network::{NewNetwork, NewSubnet};
use crate::intent::north::{NetworkChange, NewIpv6Gateway};
use crate::intent::port::{NewPort, PortChange};
use crate::intent::router::{NewInterface, NewRoute, NewRouter};
use crate::intent::security::{NewGroup, NewRule};
use crate::intent::volume::NewVolume;
use crate::refusal::Refusal;

type Here = State<Arc<App>>;

pub(crate) async fn list<K: Kind>(State(app): Here) -> Response {
    app.list::<K>()
}

pub(crate) async fn show<K: Kind>(State(app): Here, Path(name): Path<String>) -> Answer {
    app.show::<K>(&name)
}

pub(crate) async fn change_host(State(app): Here, Path(name): Path<String>, Read(new): Read<HostChange>) -> Answer {
    app.update::<HostKind>(|intent, _| intent.change_host(&name, &new))
}

pub(crate) async fn delete_host(State(app): Here, Path(name): Path<String>) -> Answer {
    let id = app.change(|intent, _| {
        let (id, _) = find(&intent.hosts, &name, None)?;
        intent.delete_host(&name).map(|()| id)
    })?;
    app.centre.forget(id);
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(crate) async fn evacuate_host(State(app): Here, Path(name): Path<String>, Read(how): Read<Evacuation>) -> Answer {
    let cluster = app.centre.world().cluster;
    let done = app.change(|intent, _| intent.evacuate(&cluster, &name, &how))?;
    let left: Vec<&str> = done.left.iter().map(|left| left.vm.as_str()).collect();
    tracing::warn!(host = name, moved = ?done.moved, forgotten = ?done.forgotten, ?left, "host evacuated by force");
    Ok(Json(done).into_response())
}

pub(crate) async fn host_spec(State(app): Here, Path(name): Path<String>) -> Answer {
    let intent = app.centre.intent();
    let (id, host) = find(&intent.hosts, &name, None)?;
    let missing = || Refusal::Missing { kind: "specification of host", name: host.name.clone(), field: None };
    let assigned = intent.assigned.get(&id).ok_or_else(missing)?;
    Ok(Json(assigned.as_ref()).into_response())
}

pub(crate) async fn create_network(State(app): Here, Read(new): Read<NewNetwork>) -> Answer {
    app.create::<NetworkKind>(|intent, context| intent.create_network(context, new))
}

pub(crate) async fn change_network(
    State(app): Here,
    Path(name): Path<String>,
    Read(new): Read<NetworkChange>,
) -> Answer {
    app.update::<NetworkKind>(|intent, _| intent.change_network(&name, &new))
}

pub(crate) async fn delete_network(State(app): Here, Path(name): Path<String>) -> Answer {
    app.delete(|intent| intent.delete_network(&name))
}

pub(crate) async fn create_subnet(State(app): Here, Read(new): Read<NewSubnet>) -> Answer {
    app.create::<SubnetKind>(|intent, context| intent.create_subnet(context, new))
}

pub(crate) async fn delete_subnet(State(app): Here, Path(name): Path<String>) -> Answer {
    app.delete(|intent| intent.delete_subnet(&name))
}

pub(crate) async fn create_port(State(app): Here, Read(new): Read<NewPort>) -> Answer {
    app.create::<PortKind>(|intent, context| intent.create_port(context, new))
}

pub(crate) async fn change_port(State(app): Here, Path(name): Path<String>, Read(new): Read<PortChange>) -> Answer {
    app.update::<PortKind>(|intent, _| intent.change_port(&name, &new))
}

pub(crate) async fn bind_port(State(app): Here, Path(name): Path<String>, Read(new): Read<NewBinding>) -> Answer {
    let cluster = app.centre.world().cluster;
    app.create::<PortKind>(|intent, _| intent.bind_port(&cluster, &name, &new))
}

pub(crate) async fn unbind_port(State(app): Here, Path(name): Path<String>) -> Answer {
    app.update::<PortKind>(|intent, _| intent.unbind_port(&name))
}

pub(crate) async fn delete_port(State(app): Here, Path(name): Path<String>) -> Answer {
    app.delete(|intent| intent.delete_port(&name))
}

pub(crate) async fn create_address_group(State(app): Here, Read(new): Read<NewAddressGroup>) -> Answer {
    app.create::<AddressGroupKind>(|intent, context| intent.create_address_group(context, &new))
}

pub(crate) async fn change_address_group(
    State(app): Here,
    Path(name): Path<String>,
    Read(change): Read<AddressGroupChange>,
) -> Answer {
    app.update::<AddressGroupKind>(|intent, _| intent.change_address_group(&name, &change))
}

pub(crate) async fn delete_address_group(State(app): Here, Path(name): Path<String>) -> Answer {
    app.delete(|intent| intent.delete_address_group(&name))
}

pub(crate) async fn create_balancer(State(app): Here, Read(new): Read<NewLoadBalancer>) -> Answer {
    app.create::<LoadBalancerKind>(|intent, context| intent.create_balancer(context, &new))
}

pub(crate) async fn delete_balancer(State(app): Here, Path(name): Path<String>) -> Answer {
    app.delete(|intent| intent.delete_balancer(&name))
}

pub(crate) async fn add_listener(State(app): Here, Path(name): Path<String>, Read(new): Read<NewListener>) -> Answer {
    app.create::<LoadBalancerKind>(|intent, _| intent.add_listener(&name, &new))
}

pub(crate) async fn change_listener(
    State(app): Here,
    Path((name, protocol, port)): Path<(String, String, String)>,
    Read(change): Read<ListenerChange>,
) -> Answer {
    app.update::<LoadBalancerKind>(|intent, _| intent.change_listener(&name, (&protocol, &port), &change))
}

pub(crate) async fn remove_listener(
    State(app): Here,
    Path((name, protocol, port)): Path<(String, String, String)>,
) -> Answer {
    app.update::<LoadBalancerKind>(|intent, _| intent.remove_listener(&name, (&protocol, &port)))
}

pub(crate) async fn add_member(
    State(app): Here,
    Path((name, protocol, port)): Path<(String, String, String)>,
    Read(new): Read<NewMember>,
) -> Answer {
    app.create::<LoadBalancerKind>(|intent, _| intent.add_member(&name, (&protocol, &port), &new))
}

/// A load balancer, the protocol and port of a listener, the address and port of a member.
type MemberPath = Path<(String, String, String, String, String)>;

pub(crate) async fn change_member(
    State(app): Here,
    Path((name, protocol, port, address, own)): MemberPath,
    Read(change): Read<MemberChange>,
) -> Answer {
    let (listener, member) = ((protocol.as_str(), port.as_str()), (address.as_str(), own.as_str()));
    app.update::<LoadBalancerKind>(|intent, _| intent.change_member(&name, listener, member, &change))
}

pub(crate) async fn remove_member(State(app): Here, Path((name, protocol, port, address, own)): MemberPath) -> Answer {
    let (listener, member) = ((protocol.as_str(), port.as_str()), (address.as_str(), own.as_str()));
    app.update::<LoadBalancerKind>(|intent, _| intent.remove_member(&name, listener, member))
}

pub(crate) async fn set_monitor(
    State(app): Here,
    Path((name, protocol, port)): Path<(String, String, String)>,
    Read(new): Read<NewHealthMonitor>,
) -> Answer {
    app.update::<LoadBalancerKind>(|intent, _| intent.set_monitor(&name, (&protocol, &port), &new))
}

pub(crate) async fn remove_monitor(
    State(app): Here,
    Path((name, protocol, port)): Path<(String, String, String)>,
) -> Answer {
    app.update::<LoadBalancerKind>(|intent, _| intent.remove_monitor(&name, (&protocol, &port)))
}

pub(crate) async fn create_group(State(app): Here, Read(new): Read<NewGroup>) -> Answer {
    app.create::<GroupKind>(|intent, context| intent.create_group(context, new))
}

pub(crate) async fn delete_group(State(app): Here, Path(name): Path<String>) -> Answer {
    app.delete(|intent| intent.delete_group(&name))
}

pub(crate) async fn add_rule(State(app): Here, Path(name): Path<String>, Read(new): Read<NewRule>) -> Answer {
    app.create::<GroupKind>(|intent, context| intent.add_rule(context, &name, &new).map(|(group, _)| group))
}

pub(crate) async fn remove_rule(State(app): Here, Path((name, rule)): Path<(String, String)>) -> Answer {
    app.update::<GroupKind>(|intent, _| intent.remove_rule(&name, &rule))
}

pub(crate) async fn create_firewall_policy(State(app): Here, Read(new): Read<NewFirewallPolicy>) -> Answer {
    app.create::<FirewallPolicyKind>(|intent, context| intent.create_firewall_policy(context, &new))
}

pub(crate) async fn delete_firewall_policy(State(app): Here, Path(name): Path<String>) -> Answer {
    app.delete(|intent| intent.delete_firewall_policy(&name))
}

pub(crate) async fn add_firewall_rule(
    State(app): Here,
    Path(name): Path<String>,
    Read(new): Read<NewFirewallRule>,
) -> Answer {
    app.create::<FirewallPolicyKind>(|intent, context| intent.add_firewall_rule(context, &name, &new))
}

pub(crate) async fn change_firewall_rule(
    State(app): Here,
    Path((name, rule)): Path<(String, String)>,
    Read(change): Read<FirewallRuleChange>,
) -> Answer {
    app.update::<FirewallPolicyKind>(|intent, _| intent.change_firewall_rule(&name, &rule, &change))
}

pub(crate) async fn remove_firewall_rule(State(app): Here, Path((name, rule)): Path<(String, String)>) -> Answer {
    app.update::<FirewallPolicyKind>(|intent, _| intent.remove_firewall_rule(&name, &rule))
}

pub(crate) async fn set_firewall(State(app): Here, Path(name): Path<String>, Read(new): Read<NewFirewall>) -> Answer {
    app.create::<RouterKind>(|intent, _| intent.set_firewall(&name, &new))
}

pub(crate) async fn clear_firewall(State(app): Here, Path(name): Path<String>) -> Answer {
    app.update::<RouterKind>(|intent, _| intent.clear_firewall(&name))
}

pub(crate) async fn create_router(State(app): Here, Read(new): Read<NewRouter>) -> Answer {
    app.create::<RouterKind>(|intent, context| intent.create_router(context, new))
}

pub(crate) async fn delete_router(State(app): Here, Path(name): Path<String>) -> Answer {
    app.delete(|intent| intent.delete_router(&name))
}

pub(crate) async fn add_interface(State(app): Here, Path(name): Path<String>, Read(new): Read<NewInterface>) -> Answer {
    app.create::<RouterKind>(|intent, _| intent.add_interface(&name, &new))
}

pub(crate) async fn remove_interface(State(app): Here, Path((name, subnet)): Path<(String, String)>) -> Answer {
    app.update::<RouterKind>(|intent, _| intent.remove_interface(&name, &subnet))
}

pub(crate) async fn add_route(State(app): Here, Path(name): Path<String>, Read(new): Read<NewRoute>) -> Answer {
    app.create::<RouterKind>(|intent, _| intent.add_route(&name, &new))
}

pub(crate) async fn set_gateway(State(app): Here, Path(name): Path<String>, Read(new): Read<NewGateway>) -> Answer {
    app.create::<RouterKind>(|intent, _| intent.set_gateway(&name, &new))
}

pub(crate) async fn set_ipv6_gateway(
    State(app): Here,
    Path(name): Path<String>,
    Read(new): Read<NewIpv6Gateway>,
) -> Answer {
    app.create::<RouterKind>(|intent, _| intent.set_ipv6_gateway(&name, &new))
}

pub(crate) async fn clear_ipv6_gateway(State(app): Here, Path(name): Path<String>) -> Answer {
    app.update::<RouterKind>(|intent, _| intent.clear_ipv6_gateway(&name))
}

pub(crate) async fn clear_gateway(State(app): Here, Path(name): Path<String>) -> Answer {
    app.update::<RouterKind>(|intent, _| intent.clear_gateway(&name))
}

pub(crate) async fn add_floating_ip(
    State(app): Here,
    Path(name): Path<String>,
    Read(new): Read<NewFloatingIp>,
) -> Answer {
    app.create::<RouterKind>(|intent, _| intent.add_floating_ip(&name, &new))
}

pub(crate) async fn remove_floating_ip(State(app): Here, Path((name, address)): Path<(String, String)>) -> Answer {
    app.update::<RouterKind>(|intent, _| intent.remove_floating_ip(&name, &address))
}

pub(crate) async fn add_port_forwarding(
    State(app): Here,
    Path(name): Path<String>,
    Read(new): Read<NewPortForwarding>,
) -> Answer {
    app.create::<RouterKind>(|intent, _| intent.add_port_forwarding(&name, &new))
}

pub(crate) async fn remove_port_forwarding(
    State(app): Here,
    Path((name, protocol, port)): Path<(String, String, String)>,
) -> Answer {
    app.update::<RouterKind>(|intent, _| intent.remove_port_forwarding(&name, &protocol, &port))
}

pub(crate) async fn remove_route(State(app): Here, Path((name, to, by)): Path<(String, String, String)>) -> Answer {
    app.update::<RouterKind>(|intent, _| intent.remove_route(&name, &to, &by))
}

pub(crate) async fn create_image(State(app): Here, Read(new): Read<NewImage>) -> Answer {
    app.create::<ImageKind>(|intent, context| intent.create_image(context, new))
}

pub(crate) async fn upload_image(State(app): Here, Path(name): Path<String>, body: Body) -> Answer {
    let image = app.centre.intent().awaits_content(&name)?;
    let content = app.blobs.take(image.kind, body).await?;
    tracing::info!(image_id = %image.id, image = image.name, sha256 = %content.sha256, "image uploaded");
    app.update::<ImageKind>(|intent, _| intent.set_content(&image.id.to_string(), content))
}

pub(crate) async fn delete_image(State(app): Here, Path(name): Path<String>) -> Answer {
    let (_, image) = find(&app.centre.intent().images, &name, None)?;
    let answer = app.delete(|intent| intent.delete_image(&name))?;
    let sha256 = image.content.as_ref().map(|content| content.sha256);
    let still_named = |sha256| {
        let intent = app.centre.intent();
        intent.images.values().any(|other| other.content.as_ref().is_some_and(|content| content.sha256 == sha256))
    };
    if let Some(sha256) = sha256.filter(|sha256| !still_named(*sha256)) {
        app.blobs.drop(sha256).await;
    }
    Ok(answer)
}

pub(crate) async fn create_volume(State(app): Here, Read(new): Read<NewVolume>) -> Answer {
    app.create::<VolumeKind>(|intent, context| intent.create_volume(context, new))
}

pub(crate) async fn delete_volume(State(app): Here, Path(name): Path<String>) -> Answer {
    app.change(|intent, _| intent.delete_volume(&name))?;
    Ok(StatusCode::ACCEPTED.into_response())
}

pub(crate) async fn create_flavor(State(app): Here, Read(new): Read<NewFlavor>) -> Answer {
    app.create::<FlavorKind>(|intent, context| intent.create_flavor(context, new))
}

pub(crate) async fn delete_flavor(State(app): Here, Path(name): Path<String>) -> Answer {
    app.delete(|intent| intent.delete_flavor(&name))
}

pub(crate) async fn launch(State(app): Here, Read(new): Read<NewMachine>) -> Answer {
    app.create::<MachineKind>(|intent, context| intent.launch(context, new))
}

pub(crate) async fn start(State(app): Here, Path(name): Path<String>) -> Answer {
    app.update::<MachineKind>(|intent, _| intent.start_machine(&name))
}

pub(crate) async fn stop(State(app): Here, Path(name): Path<String>) -> Answer {
    app.update::<MachineKind>(|intent, _| intent.stop_machine(&name))
}

pub(crate) async fn delete_machine(State(app): Here, Path(name): Path<String>) -> Answer {
    app.change(|intent, _| intent.delete_machine(&name))?;
    Ok(StatusCode::ACCEPTED.into_response())
}

pub(crate) async fn placement(State(app): Here, Path(name): Path<String>) -> Answer {
    let intent = app.centre.intent();
    let (_, vm) = find(&intent.machines, &name, None)?;
    Ok(Json(PlacementView::of(&vm)).into_response())
}

pub(crate) async fn openapi() -> Response {
    Json(super::openapi::document()).into_response()
}

pub(crate) async fn metrics(State(app): Here) -> Answer {
    let text = app.metrics.text(&app.centre.world()).map_err(|error| Refusal::Internal(error.to_string()))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

pub(crate) async fn health() -> &'static str {
    "ok\n"
}
