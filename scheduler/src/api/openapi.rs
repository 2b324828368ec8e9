//! The OpenAPI document, made from the table of routes and the schemas of bodies.

use utoipa::OpenApi;
use utoipa::openapi::path::{OperationBuilder, ParameterBuilder, ParameterIn, PathsBuilder};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, Schema};
use utoipa::openapi::{ContentBuilder, HttpMethod, PathItem, Ref, RefOr, Required, Response, ResponseBuilder};

use super::routes::{ROUTES, Route, Shape, Verb};
use super::view;
use crate::caller::Role;
use crate::intent::{
    address, address_group, balancer, binding, firewall, flavor, floating, forwarding, health, host, image, machine,
    network, north, port, router, security, volume,
};
use crate::{evacuate, place};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Basalt scheduler",
        description = "Objects are named by name or id. Bodies are JSON; unknown fields are refused. A refusal is a 4xx with an ErrorBody. \
                       Callers show a client certificate: an operator's on /v1 and /metrics, an agent's on /agent/v1.",
        license(name = "Apache-2.0")
    ),
    components(schemas(
        address::Pool,
        address_group::AddressGroupChange,
        address_group::NewAddressGroup,
        balancer::ListenerChange,
        balancer::MemberChange,
        balancer::NewListener,
        balancer::NewLoadBalancer,
        balancer::NewMember,
        balancer::SessionPersistence,
        evacuate::Evacuated,
        evacuate::Evacuation,
        evacuate::Left,
        firewall::FirewallRuleChange,
        firewall::NewFirewall,
        firewall::NewFirewallPolicy,
        firewall::NewFirewallRule,
        flavor::NewFlavor,
        health::NewHealthMonitor,
        host::HostChange,
        image::NewImage,
        machine::NewMachine,
        machine::NewBoot,
        network::NetworkType,
        network::NewNetwork,
        network::NewProvider,
        network::NewSubnet,
        binding::NewBinding,
        north::NetworkChange,
        north::NewIpv6Gateway,
        port::NewPort,
        port::NewAddress,
        port::PortChange,
        router::NewRouter,
        router::NewInterface,
        router::NewRoute,
        floating::NewGateway,
        floating::NewFloatingIp,
        forwarding::NewPortForwarding,
        security::NewGroup,
        security::NewRule,
        volume::Backend,
        volume::NewVolume,
        place::Verdict,
        view::NamedRef,
        view::ProblemView,
        view::HostView,
        view::ResourcesView,
        view::BandwidthView,
        view::NetworkView,
        view::ProviderView,
        view::SubnetView,
        view::PortView,
        view::AddressView,
        view::AddressGroupView,
        view::HealthMonitorView,
        view::ListenerView,
        view::LoadBalancerView,
        view::MemberView,
        view::GroupView,
        view::RuleView,
        view::FirewallPolicyView,
        view::FirewallRuleView,
        view::FirewallView,
        view::RouterView,
        view::InterfaceView,
        view::RouteView,
        view::GatewayView,
        view::Ipv6GatewayView,
        view::FloatingIpView,
        view::PortForwardingView,
        view::ImageView,
        view::VolumeView,
        view::FlavorView,
        view::MachineView,
        view::MachinePortView,
        view::BootView,
        view::PlacementView,
        view::ErrorSchema,
        view::ErrorDetailSchema,
    ))
)]
struct Schemas;

/// The document.
pub(crate) fn document() -> utoipa::openapi::OpenApi {
    let mut document = Schemas::openapi();
    let mut paths = PathsBuilder::new();
    for route in ROUTES {
        paths = paths.path(route.path, PathItem::new(method(route.verb), operation(route)));
    }
    document.paths = paths.build();
    document
}

const fn method(verb: Verb) -> HttpMethod {
    match verb {
        Verb::Get => HttpMethod::Get,
        Verb::Post => HttpMethod::Post,
        Verb::Put => HttpMethod::Put,
        Verb::Patch => HttpMethod::Patch,
        Verb::Delete => HttpMethod::Delete,
    }
}

fn operation(route: &Route) -> OperationBuilder {
    let role = match route.role {
        Role::Anyone => "Needs no certificate.",
        Role::Operator => "Needs an operator's certificate.",
        Role::Agent => "Needs an agent's certificate.",
    };
    let mut operation =
        OperationBuilder::new().summary(Some(route.summary)).description(Some(role)).operation_id(Some(name(route)));
    let names = route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    for name in names {
        let parameter = ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Path)
            .required(Required::True)
            .schema(Some(text_schema()));
        operation = operation.parameter(parameter);
    }
    if route.path == model::agent::SPEC_PATH {
        let number = ObjectBuilder::new().schema_type(utoipa::openapi::schema::Type::Integer);
        let parameter = ParameterBuilder::new()
            .name("after")
            .parameter_in(ParameterIn::Query)
            .required(Required::True)
            .schema(Some(RefOr::T(Schema::Object(number.build()))));
        operation = operation.parameter(parameter);
    }
    if let Some((kind, content)) = content(route.takes) {
        let body = RequestBodyBuilder::new().required(Some(Required::True)).content(kind, content);
        operation = operation.request_body(Some(body.build()));
    }
    operation.response(route.status.to_string(), answer(route)).response("4XX", refusal())
}

fn name(route: &Route) -> String {
    let verb = format!("{:?}", route.verb).to_lowercase();
    let words = route.path.split(['/', '-', '.']).filter(|part| !part.is_empty());
    let words = words.map(|part| part.trim_matches(['{', '}']));
    std::iter::once(verb.as_str()).chain(words).collect::<Vec<_>>().join("_")
}

fn answer(route: &Route) -> Response {
    let response = ResponseBuilder::new().description(route.summary);
    match content(route.gives) {
        Some((kind, content)) => response.content(kind, content).build(),
        None => response.build(),
    }
}

fn refusal() -> Response {
    let content = ContentBuilder::new().schema(Some(reference("ErrorBody"))).build();
    ResponseBuilder::new().description("Refused; nothing was changed.").content("application/json", content).build()
}

fn content(shape: Shape) -> Option<(&'static str, utoipa::openapi::Content)> {
    let with = |schema: RefOr<Schema>| ContentBuilder::new().schema(Some(schema)).build();
    match shape {
        Shape::Nothing => None,
        Shape::One(schema) => Some(("application/json", with(reference(schema)))),
        Shape::Many(schema) => {
            let array = ArrayBuilder::new().items(reference(schema)).build();
            Some(("application/json", with(RefOr::T(Schema::Array(array)))))
        }
        Shape::Bytes => Some(("application/octet-stream", ContentBuilder::new().build())),
        Shape::Text => Some(("text/plain", with(text_schema()))),
        Shape::Json(what) => {
            let object = ObjectBuilder::new().description(Some(what)).build();
            Some(("application/json", with(RefOr::T(Schema::Object(object)))))
        }
    }
}

fn reference(schema: &str) -> RefOr<Schema> {
    RefOr::Ref(Ref::from_schema_name(schema))
}

fn text_schema() -> RefOr<Schema> {
    RefOr::T(Schema::Object(ObjectBuilder::new().schema_type(utoipa::openapi::schema::Type::String).build()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The document as it is reviewed: `BASALT_GOLDEN=write cargo test -p scheduler` writes it anew.
    const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/openapi.json");

    #[test]
    fn the_document_is_as_reviewed() {
        let text = document().to_pretty_json().unwrap() + "\n";
        if std::env::var_os("BASALT_GOLDEN").is_some_and(|value| value == "write") {
            std::fs::write(GOLDEN, &text).unwrap();
        }
        let golden = std::fs::read_to_string(GOLDEN).unwrap();
        assert!(golden == text, "the OpenAPI document has changed: look at it, then BASALT_GOLDEN=write");
    }

    #[test]
    fn every_route_is_in_the_document_and_every_schema_exists() {
        let value = serde_json::to_value(document()).unwrap();
        for route in ROUTES {
            let verb = format!("{:?}", route.verb).to_lowercase();
            let found = value.pointer(&format!("/paths/{}/{verb}", route.path.replace('/', "~1")));
            assert!(found.is_some(), "{verb} {}", route.path);
            for shape in [route.takes, route.gives] {
                if let Shape::One(schema) | Shape::Many(schema) = shape {
                    assert!(value.pointer(&format!("/components/schemas/{schema}")).is_some(), "{schema}");
                }
            }
        }
        let text = value.to_string();
        let named = text.split("#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next());
        for schema in named {
            assert!(value.pointer(&format!("/components/schemas/{schema}")).is_some(), "{schema} is named only");
        }
        let names: BTreeSet<String> = ROUTES.iter().map(name).collect();
        assert_eq!(names.len(), ROUTES.len(), "operation ids are unique");
    }
}
