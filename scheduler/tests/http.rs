//! The scheduler as its callers meet it: the real program, real TLS, real certificates.
#![expect(clippy::unwrap_used, reason = "a test that can not go on fails")]

mod fixture;

use std::time::{Duration, Instant};

use fixture::disk::SmallDisk;
use fixture::{Scheduler, join_request};
use model::agent::JoinToken;
use model::observed::{MachineState, Observed, VolumeState};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// A kernel as far as its first bytes tell.
fn kernel() -> Vec<u8> {
    let mut bytes = vec![0; 2048];
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_right_certificate_opens_a_route() {
    let scheduler = Scheduler::start().await;
    let agent = scheduler.join("h1", "192.0.2.1").await;
    let anonymous = scheduler.client(None);
    for path in ["/v1/vms", "/metrics", "/v1/openapi.json", "/agent/v1/spec?after=0"] {
        assert_eq!(anonymous.get(scheduler.url(path)).send().await.unwrap().status(), StatusCode::FORBIDDEN, "{path}");
    }
    assert_eq!(agent.client.get(scheduler.url("/v1/vms")).send().await.unwrap().status(), StatusCode::FORBIDDEN);
    let operator = scheduler.operator();
    let (status, _, _) = operator.refused(Method::GET, "/agent/v1/spec?after=0", None).await;
    assert_eq!(status, 403, "an operator is no agent");
    let report = agent.empty_report(0);
    assert_eq!(operator.call(Method::POST, "/agent/v1/report", Some(json!(report))).await.0, StatusCode::FORBIDDEN);
    assert_eq!(agent.report(&report).await, StatusCode::NO_CONTENT);

    // A certificate of another authority with the right words in it does not even finish the handshake.
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "operator");
    let foreign = params.self_signed(&key).unwrap().pem() + &key.serialize_pem();
    assert!(scheduler.client(Some(&foreign)).get(scheduler.url("/healthz")).send().await.is_err());

    // Another host's report is refused, and so is a host that joined again with its old certificate.
    let other = scheduler.join("h2", "192.0.2.2").await;
    assert_eq!(other.report(&report).await, StatusCode::BAD_REQUEST);
    let again = scheduler.join("h2", "192.0.2.2").await;
    assert_eq!(again.id, other.id, "a host that joins again keeps its identity");
    assert_eq!(other.report(&other.empty_report(0)).await, StatusCode::FORBIDDEN);
    assert_eq!(again.report(&again.empty_report(0)).await, StatusCode::NO_CONTENT);
    let (status, _) = operator.call(Method::DELETE, "/v1/hosts/h2", None).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(again.report(&again.empty_report(0)).await, StatusCode::FORBIDDEN, "a deleted host is shut out");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_token_works_once_in_time_and_for_its_host() {
    let scheduler = Scheduler::start().await;
    let client = scheduler.client(None);
    let join = async |token: JoinToken, name: &str| {
        let (request, _) = join_request(token, name, "192.0.2.9");
        client.post(scheduler.url("/agent/v1/join")).json(&request).send().await.unwrap().status()
    };
    let token = scheduler.token("h1", "1h");
    assert_eq!(join(token.clone(), "h2").await, StatusCode::FORBIDDEN, "for another host");
    assert_eq!(join(token.clone(), "h1").await, StatusCode::OK, "a refusal has not used it up");
    assert_eq!(join(token, "h1").await, StatusCode::FORBIDDEN, "used already");
    let late = scheduler.token("h3", "1s");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(join(late.clone(), "h3").await, StatusCode::FORBIDDEN, "expired");
    assert_eq!(join(JoinToken::new(late.ca(), [7; 32]), "h3").await, StatusCode::FORBIDDEN, "made up");
    let spoiled = scheduler.token("h4", "1h");
    let (mut request, _) = join_request(spoiled.clone(), "h4", "192.0.2.10");
    request.csr = "no request".to_owned();
    let answer = client.post(scheduler.url("/agent/v1/join")).json(&request).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    let body: model::agent::ErrorBody = answer.json().await.unwrap();
    assert_eq!(body.error.field.as_deref(), Some("csr"));
    let secret = spoiled.reveal();
    let secret = secret.rsplit('.').next().unwrap();
    assert!(!scheduler.log().contains(secret), "no secret is logged");
}

/// A request that is refused: route, body, status, code and field.
type Refused = (&'static str, Value, u16, &'static str, &'static str);

fn refused_posts() -> Vec<Refused> {
    vec![
        ("/v1/networks", json!({"name": "blue"}), 409, "taken", "name"),
        ("/v1/networks", json!({"name": "x", "mtu": 99999}), 400, "invalid", "mtu"),
        ("/v1/networks", json!({"name": "x", "mtu": 10}), 400, "invalid", "mtu"),
        ("/v1/networks", json!({"nam": "x"}), 400, "invalid", "nam"),
        ("/v1/networks", json!({}), 400, "invalid", "name"),
        (
            "/v1/subnets",
            json!({"name": "c", "network": "red", "cidr": "10.0.0.0/24"}),
            400,
            "unknown_reference",
            "network",
        ),
        ("/v1/subnets", json!({"name": "c", "network": "blue", "cidr": "10.0.0.1/24"}), 400, "invalid", "cidr"),
        ("/v1/subnets", json!({"name": "c", "network": "blue", "cidr": "10.1.0.0/16"}), 400, "invalid", "cidr"),
        ("/v1/subnets", json!({"name": "c", "network": "blue", "cidr": "fd00::/20"}), 400, "invalid", "cidr"),
        ("/v1/subnets", json!({"name": "c", "network": "blue", "cidr": "fd00::1/64"}), 400, "invalid", "cidr"),
        ("/v1/subnets", json!({"name": "c", "network": "blue", "cidr": "169.254.169.0/24"}), 400, "invalid", "cidr"),
        ("/v1/subnets", json!({"name": "c", "network": "blue", "cidr": "127.0.0.0/8"}), 400, "invalid", "cidr"),
        ("/v1/subnets", json!({"name": "c", "network": "blue", "cidr": "239.1.0.0/16"}), 400, "invalid", "cidr"),
        ("/v1/subnets", json!({"name": "c", "network": "blue", "cidr": "fe80::/64"}), 400, "invalid", "cidr"),
        ("/v1/subnets", json!({"name": "c", "network": "blue", "cidr": "::/64"}), 400, "invalid", "cidr"),
        (
            "/v1/subnets",
            json!({"name": "c", "network": "blue", "cidr": "fd00::/64", "gateway": "10.1.0.1"}),
            400,
            "invalid",
            "gateway",
        ),
        (
            "/v1/subnets",
            json!({"name": "c", "network": "blue", "cidr": "fd00::/64", "pools": []}),
            400,
            "invalid",
            "pools",
        ),
        (
            "/v1/ports",
            json!({"network": "blue", "allowed_pairs": [{"addresses": "10.1.0.9/32", "mac": "ff:ff:ff:ff:ff:ff"}]}),
            400,
            "invalid",
            "allowed_pairs[0].mac",
        ),
        (
            "/v1/subnets",
            json!({"name": "c", "network": "blue", "cidr": "10.9.0.0/24",
                   "pools": [{"start": "10.9.0.9", "end": "10.9.0.3"}]}),
            400,
            "invalid",
            "pools[0].end",
        ),
        ("/v1/routers/r/interfaces", json!({"subnet": "b"}), 400, "invalid", "subnet"),
        ("/v1/routers/r/interfaces", json!({"subnet": "a"}), 409, "taken", "subnet"),
        ("/v1/ports", json!({"network": "blue", "mac": "fa:16:3e:aa:00:01"}), 409, "taken", "mac"),
        ("/v1/ports", json!({"network": "blue", "mac": "nonsense"}), 400, "invalid", "mac"),
        (
            "/v1/ports",
            json!({"network": "blue", "addresses": [{"address": "10.1.0.1"}]}),
            409,
            "taken",
            "addresses[0].address",
        ),
        ("/v1/ports", json!({"network": "blue", "groups": ["web"]}), 400, "unknown_reference", "groups[0]"),
        (
            "/v1/security-groups/default/rules",
            json!({"direction": "ingress", "protocol": "tcp", "port_min": 90, "port_max": 80}),
            400,
            "invalid",
            "port_max",
        ),
        ("/v1/volumes", json!({"name": "v", "image": "disk", "size_mib": 1}), 400, "invalid", "size_mib"),
        ("/v1/volumes", json!({"name": "v", "image": "empty"}), 409, "wrong_state", "image"),
        ("/v1/volumes", json!({"name": "v", "image": "vmlinuz"}), 400, "invalid", "image"),
        ("/v1/volumes", json!({"name": "v"}), 400, "invalid", "size_mib"),
        ("/v1/vms", json!({"name": "Web_1", "flavor": "tiny", "image": "disk"}), 400, "invalid", "name"),
        ("/v1/vms", json!({"name": "a", "flavor": "huge", "image": "disk"}), 400, "unknown_reference", "flavor"),
        ("/v1/vms", json!({"name": "a", "flavor": "tiny"}), 400, "invalid", "boot.kernel"),
        ("/v1/flavors", json!({"name": "x", "vcpus": 0, "memory_mib": 1}), 400, "invalid", "vcpus"),
    ]
}

/// Requests about what the dataplane serves and limits.
fn refused_services() -> Vec<Refused> {
    vec![
        ("/v1/ports", json!({"network": "blue", "qos": {"dscp_mark": 64}}), 400, "invalid", "qos.dscp_mark"),
        (
            "/v1/ports",
            json!({"network": "blue", "qos": {"ingress": {"pps": {"rate": 0}}}}),
            400,
            "invalid",
            "qos.ingress.pps",
        ),
        (
            "/v1/ports",
            json!({"network": "blue", "qos": {"egress_min_kbps": 1000}}),
            400,
            "invalid",
            "qos.egress_min_kbps",
        ),
        (
            "/v1/ports",
            json!({"network": "blue", "qos": {"egress": {"kbps": {"rate": 1000, "burst": 5}}}}),
            400,
            "invalid",
            "qos.egress.kbps",
        ),
        (
            "/v1/vms",
            json!({"name": "a", "flavor": "tiny", "image": "disk", "user_data": "no base64!"}),
            400,
            "invalid",
            "user_data",
        ),
        (
            "/v1/vms",
            json!({"name": "a", "flavor": "tiny", "image": "disk", "ssh_keys": ["ssh-rsa AAAA"]}),
            400,
            "invalid",
            "ssh_keys[0]",
        ),
    ]
}

/// Where no provider network can be: the provider asked for, and the field that is at fault.
fn refused_providers() -> [(Value, &'static str); 4] {
    let kind = |kind: &str, physical: &str, vlan: Option<u16>| json!({"network_type": kind, "physical_network": physical, "segmentation_id": vlan});
    let vlan = "provider.segmentation_id";
    [
        (kind("flat", "a b", None), "provider.physical_network"),
        (kind("vlan", "dc", None), vlan),
        (kind("vlan", "dc", Some(4095)), vlan),
        (kind("flat", "dc", Some(1)), vlan),
    ]
}

/// A subnet's domain is kept as names are compared; what is no domain is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subnets_have_a_domain() {
    let scheduler = Scheduler::start().await;
    let operator = scheduler.operator();
    operator.make("/v1/networks", json!({"name": "blue"})).await;
    let new = |domain: &str| json!({"name": "a", "network": "blue", "cidr": "10.1.0.0/24", "domain": domain});
    let refused = operator.refused(Method::POST, "/v1/subnets", Some(new("no_domain"))).await;
    assert_eq!(refused, (400, "invalid".to_owned(), "domain".to_owned()));
    let subnet = operator.make("/v1/subnets", new("Cloud.Example.org.")).await;
    assert_eq!(subnet["domain"], "cloud.example.org");
    assert_eq!(operator.get("/v1/subnets/a").await["domain"], "cloud.example.org");
}

/// A network with subnets of both versions gives each port an address of either; allowed pairs and stateless groups reach the specification.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_have_an_address_of_each_version() {
    let scheduler = Scheduler::start().await;
    let operator = scheduler.operator();
    operator.make("/v1/networks", json!({"name": "blue"})).await;
    operator.make("/v1/subnets", json!({"name": "six", "network": "blue", "cidr": "fd00:1::/64"})).await;
    operator.make("/v1/subnets", json!({"name": "four", "network": "blue", "cidr": "10.1.0.0/24"})).await;
    operator.make("/v1/security-groups", json!({"name": "plain", "stateless": true})).await;
    let pairs = json!([{"addresses": "10.1.0.100/32"}]);
    let mac = "fa:16:3e:aa:00:01";
    let new = json!({"name": "p", "network": "blue", "mac": mac, "groups": ["plain"], "allowed_pairs": pairs});
    let port = operator.make("/v1/ports", new).await;
    let addresses: Vec<&str> =
        port["addresses"].as_array().unwrap().iter().filter_map(|fixed| fixed["address"].as_str()).collect();
    assert_eq!(addresses, ["10.1.0.2", "fd00:1::f816:3eff:feaa:1"], "{port}");
    let limits = json!({"egress": {"kbps": {"rate": 1000}}, "dscp_mark": 46});
    let (status, port) = operator.call(Method::PATCH, "/v1/ports/p", Some(json!({"qos": limits}))).await;
    assert_eq!(
        (status, &port["qos"]["egress"]["kbps"]),
        (StatusCode::OK, &json!({"rate": 1000, "burst": 800})),
        "{port}"
    );
    let both = json!({"kbps": {"rate": 1000, "burst": 800}, "pps": {"rate": 100, "burst": 80}});
    let (status, port) = operator.call(Method::PATCH, "/v1/ports/p", Some(json!({"qos": {"ingress": both}}))).await;
    assert_eq!((status, &port["qos"]["ingress"]), (StatusCode::OK, &both), "{port}");
    let (_, port) = operator.call(Method::PATCH, "/v1/ports/p", Some(json!({"qos": {}}))).await;
    assert_eq!(port["qos"], json!({}), "{port}");
    // Where another has the address that the port would make for itself, and where the subnet is no /64, the lowest that is free.
    let taken = json!({"network": "blue", "addresses": [{"address": "fd00:1::f816:3eff:feaa:2"}]});
    operator.make("/v1/ports", taken).await;
    let mac = "fa:16:3e:aa:00:02";
    let new = json!({"network": "blue", "mac": mac, "addresses": [{"subnet": "six"}]});
    let second = operator.make("/v1/ports", new).await;
    assert_eq!(second["addresses"][0]["address"], "fd00:1::2", "{second}");
    operator.make("/v1/subnets", json!({"name": "long", "network": "blue", "cidr": "fd00:2::/80"})).await;
    let third = operator.make("/v1/ports", json!({"network": "blue", "addresses": [{"subnet": "long"}]})).await;
    assert_eq!(third["addresses"][0]["address"], "fd00:2::2", "{third}");
}

/// A port can be a part of another one's trunk, with a tag that no other there has; what cannot be is refused by the name of its field.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_can_be_a_part_of_a_trunk() {
    let scheduler = Scheduler::start().await;
    let operator = scheduler.operator();
    for (name, mtu, cidr) in
        [("blue", 1450, "10.1.0.0/24"), ("green", 1400, "10.2.0.0/24"), ("large", 8950, "10.3.0.0/24")]
    {
        operator.make("/v1/networks", json!({"name": name, "mtu": mtu})).await;
        operator.make("/v1/subnets", json!({"name": name, "network": name, "cidr": cidr})).await;
    }
    let mac = "fa:16:3e:aa:00:01";
    let parent = operator.make("/v1/ports", json!({"name": "parent", "network": "blue", "mac": mac})).await;
    assert_eq!(parent["trunk"], json!(null));
    let new =
        |network: &str, parent: &str, vlan: u16| json!({"network": network, "trunk": {"parent": parent, "vlan": vlan}});
    let mut sub = new("green", "parent", 7);
    sub["name"] = json!("sub");
    sub["mac"] = json!(mac);
    let sub = operator.make("/v1/ports", sub).await;
    assert_eq!(
        (&sub["trunk"]["parent"]["name"], &sub["trunk"]["vlan"], &sub["mac"]),
        (&json!("parent"), &json!(7), &json!(mac))
    );
    for (network, parent, vlan, status, code, field) in [
        ("green", "parent", 7, 409, "taken", "trunk.vlan"),
        ("green", "parent", 0, 400, "invalid", "trunk.vlan"),
        ("green", "parent", 4095, 400, "invalid", "trunk.vlan"),
        ("green", "sub", 8, 409, "wrong_state", "trunk.parent"),
        ("green", "nobody", 8, 400, "unknown_reference", "trunk.parent"),
        ("large", "parent", 8, 400, "invalid", "trunk.parent"),
    ] {
        let refused = operator.refused(Method::POST, "/v1/ports", Some(new(network, parent, vlan))).await;
        assert_eq!(refused, (status, code.to_owned(), field.to_owned()), "{network} {parent} {vlan}");
    }
    let (code, _, _) = operator.refused(Method::DELETE, "/v1/ports/parent", None).await;
    assert_eq!(code, 409, "it has a sub-port");
    operator.call(Method::DELETE, "/v1/ports/sub", None).await;
    let (status, _) = operator.call(Method::DELETE, "/v1/ports/parent", None).await;
    assert!(status.is_success(), "{status}");
}

/// A port can be mirrored to another one, when it is made and later; what cannot be is refused by the name of its field, and who gets copies stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_can_be_mirrored() {
    let scheduler = Scheduler::start().await;
    let operator = scheduler.operator();
    operator.make("/v1/networks", json!({"name": "blue"})).await;
    operator.make("/v1/subnets", json!({"name": "blue", "network": "blue", "cidr": "10.1.0.0/24"})).await;
    let eye = operator.make("/v1/ports", json!({"name": "eye", "network": "blue"})).await;
    assert_eq!((&eye["mirror"], &eye["mirror_of"]), (&json!(null), &json!([])));
    let new = |name: &str, mirror: Value| json!({"name": name, "network": "blue", "mirror": mirror});
    let web = operator.make("/v1/ports", new("web", json!({"to": "eye"}))).await;
    assert_eq!((&web["mirror"]["to"]["id"], &web["mirror"]["direction"]), (&eye["id"], &json!("both")));
    operator.make("/v1/ports", new("db", json!({"to": eye["id"], "direction": "in"}))).await;
    let (_, eye) = operator.call(Method::GET, "/v1/ports/eye", None).await;
    let names = [&eye["mirror_of"][0]["name"], &eye["mirror_of"][1]["name"]];
    assert_eq!(names, ["db", "web"]);
    for (mirror, status, code, field) in [
        (json!({"to": "web"}), 409, "wrong_state", "mirror.to"),
        (json!({"to": "none"}), 400, "unknown_reference", "mirror.to"),
        (json!({"to": "eye", "direction": "sideways"}), 400, "invalid", "mirror.direction"),
        (json!({"to": "eye", "filter": "tcp"}), 400, "invalid", "mirror.filter"),
        (json!({"direction": "in"}), 400, "invalid", "mirror"),
    ] {
        let refused = operator.refused(Method::POST, "/v1/ports", Some(new("late", mirror.clone()))).await;
        assert_eq!(refused, (status, code.to_owned(), field.to_owned()), "{mirror}");
    }
    for (port, to) in [("eye", "db"), ("web", "web"), ("web", "db")] {
        let refused =
            operator.refused(Method::PATCH, &format!("/v1/ports/{port}"), Some(json!({"mirror": {"to": to}}))).await;
        assert_eq!(refused, (409, "wrong_state".to_owned(), "mirror.to".to_owned()), "{port} to {to}");
    }
    let (status, code, _) = operator.refused(Method::DELETE, "/v1/ports/eye", None).await;
    assert_eq!((status, code.as_str()), (409, "in_use"));
    let (_, web) = operator.call(Method::PATCH, "/v1/ports/web", Some(json!({"port_security": false}))).await;
    assert_eq!(web["mirror"]["to"]["name"], "eye", "what is not said stays");
    for port in ["web", "db"] {
        let (_, port) = operator.call(Method::PATCH, &format!("/v1/ports/{port}"), Some(json!({"mirror": null}))).await;
        assert_eq!(port["mirror"], json!(null));
    }
    let (status, _) = operator.call(Method::DELETE, "/v1/ports/eye", None).await;
    assert!(status.is_success(), "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_name_the_field_and_the_user() {
    let scheduler = Scheduler::start().await;
    let operator = scheduler.operator();
    let net = operator.make("/v1/networks", json!({"name": "blue"})).await;
    operator.make("/v1/subnets", json!({"name": "a", "network": "blue", "cidr": "10.1.0.0/24"})).await;
    operator.make("/v1/networks", json!({"name": "green"})).await;
    operator.make("/v1/subnets", json!({"name": "b", "network": "green", "cidr": "10.1.0.128/25"})).await;
    operator.make("/v1/routers", json!({"name": "r"})).await;
    operator.make("/v1/routers/r/interfaces", json!({"subnet": "a"})).await;
    operator.make("/v1/ports", json!({"name": "p", "network": net["id"], "mac": "fa:16:3e:aa:00:01"})).await;
    operator.upload(json!({"name": "vmlinuz", "kind": "kernel"}), kernel()).await;
    operator.upload(json!({"name": "disk", "kind": "raw", "kernel": "vmlinuz"}), vec![1; 3 << 20]).await;
    operator.make("/v1/images", json!({"name": "empty", "kind": "raw"})).await;
    for (path, body, status, code, field) in refused_posts().into_iter().chain(refused_services()) {
        let refused = operator.refused(Method::POST, path, Some(body.clone())).await;
        assert_eq!(refused, (status, code.to_owned(), field.to_owned()), "{path} {body}");
    }
    let delete = [
        ("/v1/networks/blue", 409, "in_use"),
        ("/v1/subnets/a", 409, "in_use"),
        ("/v1/routers/r", 409, "in_use"),
        ("/v1/security-groups/default", 409, "wrong_state"),
        ("/v1/images/vmlinuz", 409, "in_use"),
        ("/v1/ports/none", 404, "not_found"),
        ("/v1/nothing", 404, "not_found"),
        ("/v1/openapi.json", 405, "no_method"),
    ];
    for (path, status, code) in delete {
        let (got, got_code, _) = operator.refused(Method::DELETE, path, None).await;
        assert_eq!((got, got_code.as_str()), (status, code), "{path}");
    }
    let (_, body) = operator.call(Method::DELETE, "/v1/networks/blue", None).await;
    assert!(body["error"]["message"].as_str().unwrap().contains("port p, subnet a"), "{body}");
    let answer = operator.client.put(scheduler.url("/v1/images/disk/data")).body("x").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::CONFLICT, "bytes come once");
    let answer = operator.client.post(scheduler.url("/v1/networks")).body("{").send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    let huge = vec![b' '; 2 << 20];
    let answer = operator.client.post(scheduler.url("/v1/networks")).body(huge).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

/// A provider network says where it is, once for each VLAN; a machine on it goes to a host that is wired there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn provider_networks_are_where_hosts_are_wired() {
    let scheduler = Scheduler::start().await;
    let operator = scheduler.operator();
    let provider = json!({"network_type": "vlan", "physical_network": "dc", "segmentation_id": 100});
    let office = operator.make("/v1/networks", json!({"name": "office", "provider": provider})).await;
    assert_eq!((&office["provider"], &office["mtu"]), (&provider, &json!(1500)), "{office}");
    let again = json!({"name": "again", "provider": provider});
    let again = operator.refused(Method::POST, "/v1/networks", Some(again)).await;
    assert_eq!(again, (409, "taken".to_owned(), "provider".to_owned()));
    for (provider, field) in refused_providers() {
        let new = json!({"name": "x", "provider": provider});
        let refused = operator.refused(Method::POST, "/v1/networks", Some(new)).await;
        assert_eq!(refused, (400, "invalid".to_owned(), field.to_owned()), "{provider}");
    }
    operator.make("/v1/subnets", json!({"name": "a", "network": "office", "cidr": "10.1.0.0/24"})).await;
    operator.upload(json!({"name": "vmlinuz", "kind": "kernel"}), kernel()).await;
    operator.upload(json!({"name": "disk", "kind": "raw", "kernel": "vmlinuz"}), vec![1; 3 << 20]).await;
    let agent = scheduler.join("h1", "192.0.2.1").await;
    let mut report = agent.empty_report(0);
    assert_eq!(agent.report(&report).await, StatusCode::NO_CONTENT);
    let launch = json!({"name": "web", "flavor": "tiny", "image": "disk", "networks": ["office"]});
    let vm = operator.make("/v1/vms", launch).await;
    let problem = vm["problem"]["message"].as_str().unwrap();
    assert!(problem.contains("h1: it is not wired to physical network dc"), "{vm}");
    let generation = agent.spec(0).await.unwrap().generation().0;
    report.resources.physical_networks.insert("dc".parse().unwrap());
    let (spec, status) = tokio::join!(agent.spec(generation), agent.report(&report));
    assert_eq!(status, StatusCode::NO_CONTENT);
    let spec = spec.unwrap();
    let network = spec.network().networks.values().next().unwrap();
    assert_eq!(network.provider.as_ref().unwrap().to_string(), "VLAN 100 of physical network dc");
}

/// Routes are given to a router and taken from it; one that leads nowhere the router stands is refused, and a foot that a route needs stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_has_routes() {
    let scheduler = Scheduler::start().await;
    let operator = scheduler.operator();
    operator.make("/v1/networks", json!({"name": "blue"})).await;
    operator.make("/v1/subnets", json!({"name": "a", "network": "blue", "cidr": "10.1.0.0/24"})).await;
    operator.make("/v1/routers", json!({"name": "r"})).await;
    operator.make("/v1/routers/r/interfaces", json!({"subnet": "a"})).await;
    let route = |to: &str, by: &str| json!({"destination": to, "next_hop": by});
    for (to, by, status, field) in [
        ("172.16.0.1/12", "10.1.0.5", 400, "destination"),
        ("10.1.0.0/24", "10.1.0.5", 400, "destination"),
        ("172.16.0.0/12", "10.2.0.5", 400, "next_hop"),
        ("172.16.0.0/12", "10.1.0.1", 400, "next_hop"),
        ("172.16.0.0/12", "fd00::5", 400, "next_hop"),
    ] {
        let refused = operator.refused(Method::POST, "/v1/routers/r/routes", Some(route(to, by))).await;
        assert_eq!(refused, (status, "invalid".to_owned(), field.to_owned()), "{to} by {by}");
    }
    for by in ["10.1.0.5", "10.1.0.6"] {
        operator.make("/v1/routers/r/routes", route("172.16.0.0/12", by)).await;
    }
    let again = operator.refused(Method::POST, "/v1/routers/r/routes", Some(route("172.16.0.0/12", "10.1.0.5"))).await;
    assert_eq!(again, (409, "taken".to_owned(), "destination".to_owned()));
    let foot = operator.refused(Method::DELETE, "/v1/routers/r/interfaces/a", None).await;
    assert_eq!((foot.0, foot.1.as_str()), (409, "in_use"), "a route begins there");
    for (by, left) in [("10.1.0.5", 1), ("10.1.0.6", 0)] {
        let path = format!("/v1/routers/r/routes/172.16.0.0%2F12/{by}");
        let (status, router) = operator.call(Method::DELETE, &path, None).await;
        assert_eq!((status, router["routes"].as_array().unwrap().len()), (StatusCode::OK, left), "{router}");
    }
    let (status, ..) = operator.refused(Method::DELETE, "/v1/routers/r/routes/172.16.0.0%2F12/10.1.0.6", None).await;
    assert_eq!(status, 404);
    operator.make("/v1/subnets", json!({"name": "a6", "network": "blue", "cidr": "fd00:0:0:9::/64"})).await;
    operator.make("/v1/routers/r/interfaces", json!({"subnet": "a6"})).await;
    operator.make("/v1/routers/r/routes", route("FD16:0::/32", "fd00:0:0:9:0::5")).await;
    let path = "/v1/routers/r/routes/FD16:0::%2F32/fd00:0:0:9:0::5";
    assert_eq!(operator.call(Method::DELETE, path, None).await.0, StatusCode::OK, "as it was written to add it");
    assert_eq!(operator.call(Method::DELETE, "/v1/routers/r/interfaces/a6", None).await.0, StatusCode::OK);
    assert_eq!(operator.call(Method::DELETE, "/v1/routers/r/interfaces/a", None).await.0, StatusCode::OK);
}

/// A provider network with subnet "out" and port "far", and router "r" in front of subnet "in" with ports "p" and "q".
async fn beside_the_outside(operator: &fixture::Operator<'_>) {
    let provider = json!({"network_type": "vlan", "physical_network": "dc", "segmentation_id": 100});
    operator.make("/v1/networks", json!({"name": "outside", "provider": provider})).await;
    operator.make("/v1/networks", json!({"name": "blue"})).await;
    for (name, network, cidr) in [("out", "outside", "203.0.113.0/24"), ("in", "blue", "10.1.0.0/24")] {
        operator.make("/v1/subnets", json!({"name": name, "network": network, "cidr": cidr})).await;
    }
    operator.make("/v1/routers", json!({"name": "r"})).await;
    operator.make("/v1/routers/r/interfaces", json!({"subnet": "in"})).await;
    for (name, network) in [("p", "blue"), ("q", "blue"), ("far", "outside")] {
        operator.make("/v1/ports", json!({"name": name, "network": network})).await;
    }
}

/// What is routed to a network is none of the subnets that it has itself, whichever came first, and nobody takes the MAC addresses that routed ports have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_routed_is_not_the_data_centres_own() {
    let scheduler = Scheduler::start().await;
    let operator = scheduler.operator();
    beside_the_outside(&operator).await;
    let invalid = |field: &str| (400, "invalid".to_owned(), field.to_owned());
    for (name, network, cidr) in [
        ("out6", "outside", "2001:db8:100:f::/64"),
        ("own", "outside", "2001:db8:100:e::/64"),
        ("in6", "blue", "2001:db8:100:1::/64"),
        ("like-own", "blue", "2001:db8:100:e::/64"),
    ] {
        operator.make("/v1/subnets", json!({"name": name, "network": network, "cidr": cidr})).await;
    }
    let routed = json!({"routed_prefixes": ["2001:db8:100::/40"]});
    assert_eq!(operator.call(Method::PATCH, "/v1/networks/outside", Some(routed.clone())).await.0, StatusCode::OK);
    operator.make("/v1/routers/r/interfaces", json!({"subnet": "in6"})).await;
    operator.make("/v1/routers/r/ipv6-gateway", json!({"subnet": "out6"})).await;
    let foot = json!({"subnet": "like-own"});
    let refused = operator.refused(Method::POST, "/v1/routers/r/interfaces", Some(foot.clone())).await;
    assert_eq!(refused, invalid("subnet"), "another subnet of the network outside");
    let late = json!({"name": "late", "network": "outside", "cidr": "2001:db8:100:1::/64"});
    assert_eq!(operator.refused(Method::POST, "/v1/subnets", Some(late)).await, invalid("cidr"));
    let nothing = Some(json!({"routed_prefixes": []}));
    assert_eq!(operator.call(Method::PATCH, "/v1/networks/outside", nothing).await.0, StatusCode::OK);
    operator.make("/v1/routers/r/interfaces", foot).await;
    let refused = operator.refused(Method::PATCH, "/v1/networks/outside", Some(routed)).await;
    assert_eq!(refused, invalid("routed_prefixes"));
    let pairs = json!([{"addresses": "192.0.2.7/32", "mac": "02:06:00:00:00:07"}]);
    let port = json!({"name": "x", "network": "outside", "allowed_pairs": pairs});
    assert_eq!(operator.refused(Method::POST, "/v1/ports", Some(port)).await, invalid("allowed_pairs[0].mac"));
}

/// A router is led out by IPv6; what contradicts that is refused, and two subnets of one prefix are never routed on one network.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_leads_out_by_ipv6() {
    let scheduler = Scheduler::start().await;
    let operator = scheduler.operator();
    beside_the_outside(&operator).await;
    let invalid = |field: &str| (400, "invalid".to_owned(), field.to_owned());
    operator.make("/v1/networks", json!({"name": "red"})).await;
    for (name, network, cidr) in [
        ("out6", "outside", "2001:db8:ffff::/64"),
        ("in6", "blue", "2001:db8:100:1::/64"),
        ("ula", "blue", "fd00:1::/64"),
        ("twin", "red", "2001:db8:100:1::/64"),
    ] {
        operator.make("/v1/subnets", json!({"name": name, "network": network, "cidr": cidr})).await;
    }
    for subnet in ["in6", "ula"] {
        operator.make("/v1/routers/r/interfaces", json!({"subnet": subnet})).await;
    }
    let gateway = "/v1/routers/r/ipv6-gateway";
    for (subnet, why) in [("out", "IPv4"), ("in6", "a tenant's network")] {
        let refused = operator.refused(Method::POST, gateway, Some(json!({"subnet": subnet}))).await;
        assert_eq!(refused, invalid("subnet"), "{why}");
    }
    for address in ["2001:db8:ffff::1", "2001:db8:1::1"] {
        let wanted = json!({"subnet": "out6", "address": address});
        assert_eq!(operator.refused(Method::POST, gateway, Some(wanted)).await, invalid("address"), "{address}");
    }
    let router = operator.make(gateway, json!({"subnet": "out6", "address": "2001:db8:ffff::28"})).await;
    let out = &router["ipv6_gateway"];
    assert_eq!((&out["address"], &out["routed"]), (&json!("2001:db8:ffff::28"), &json!([])), "nothing is routed yet");
    let again = operator.make(gateway, json!({"subnet": "out6"})).await;
    assert_eq!(again["ipv6_gateway"], *out, "once more changes nothing");
    for (network, prefix) in [
        ("blue", "2001:db8:100::/40"),
        ("outside", "2001:db8:100::1/40"),
        ("outside", "fe80::/16"),
        ("outside", "::/0"),
    ] {
        let change = Some(json!({"routed_prefixes": [prefix]}));
        let refused = operator.refused(Method::PATCH, &format!("/v1/networks/{network}"), change).await;
        assert_eq!(refused, invalid("routed_prefixes"), "{prefix} to {network}");
    }
    let routed = json!({"routed_prefixes": ["2001:db8:100::/40"]});
    let (status, network) = operator.call(Method::PATCH, "/v1/networks/outside", Some(routed.clone())).await;
    assert_eq!((status, &network["routed_prefixes"]), (StatusCode::OK, &routed["routed_prefixes"]), "{network}");
    let (_, router) = operator.call(Method::GET, "/v1/routers/r", None).await;
    assert_eq!(router["ipv6_gateway"]["routed"][0]["name"], json!("in6"), "{router}");
    assert_eq!(router["ipv6_gateway"]["routed"].as_array().unwrap().len(), 1, "the other is of no routed prefix");

    // Another router in front of the same prefix: by its gateway, by its foot, or by what is routed.
    operator.make("/v1/routers", json!({"name": "s"})).await;
    operator.make("/v1/routers/s/interfaces", json!({"subnet": "twin"})).await;
    let lead = Some(json!({"subnet": "out6"}));
    let (status, body) = operator.call(Method::POST, "/v1/routers/s/ipv6-gateway", lead.clone()).await;
    let words = body.to_string();
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(["twin", "behind router s", "in6", "behind router r"].iter().all(|name| words.contains(name)), "{words}");
    assert_eq!(operator.call(Method::DELETE, "/v1/routers/s/interfaces/twin", None).await.0, StatusCode::OK);
    operator.make("/v1/routers/s/ipv6-gateway", json!({"subnet": "out6"})).await;
    let foot = operator.refused(Method::POST, "/v1/routers/s/interfaces", Some(json!({"subnet": "twin"}))).await;
    assert_eq!(foot, invalid("subnet"));
    let none = Some(json!({"routed_prefixes": []}));
    assert_eq!(operator.call(Method::PATCH, "/v1/networks/outside", none).await.0, StatusCode::OK);
    operator.make("/v1/routers/s/interfaces", json!({"subnet": "twin"})).await;
    let both = operator.refused(Method::PATCH, "/v1/networks/outside", Some(routed)).await;
    assert_eq!(both, invalid("routed_prefixes"));

    let route = json!({"destination": "::/0", "next_hop": "2001:db8:100:1::9"});
    let refused = operator.refused(Method::POST, "/v1/routers/r/routes", Some(route)).await;
    assert_eq!(refused, invalid("destination"));
    let mac = json!({"name": "x", "network": "outside", "mac": "02:06:00:00:00:07"});
    assert_eq!(operator.refused(Method::POST, "/v1/ports", Some(mac)).await, invalid("mac"));
    assert_eq!(operator.refused(Method::DELETE, "/v1/subnets/out6", None).await.1, "in_use");
    let (status, router) = operator.call(Method::DELETE, gateway, None).await;
    assert_eq!((status, &router["ipv6_gateway"]), (StatusCode::OK, &json!(null)));
    assert_eq!(operator.refused(Method::DELETE, gateway, None).await.0, 404);
}

/// A router is led out, and ports behind it get floating IPs; what contradicts them is refused, and what they need stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_has_a_floating_ip() {
    let scheduler = Scheduler::start().await;
    let operator = scheduler.operator();
    beside_the_outside(&operator).await;
    let invalid = |field: &str| (400, "invalid".to_owned(), field.to_owned());
    let early = operator.refused(Method::POST, "/v1/routers/r/floating-ips", Some(json!({"port": "p"}))).await;
    assert_eq!(early, invalid("port"), "no gateway yet");
    let tenant = operator.refused(Method::POST, "/v1/routers/r/gateway", Some(json!({"subnet": "in"}))).await;
    assert_eq!(tenant, invalid("subnet"));
    let router = operator.make("/v1/routers/r/gateway", json!({"subnet": "out"})).await;
    let shared = &router["gateway"];
    assert_eq!((&shared["enable_snat"], &shared["hosts"]), (&json!(true), &json!([])), "{router}");
    let own = shared["address"].as_str().unwrap().to_owned();
    assert!(own.starts_with("203.0.113."), "{router}");
    let off = operator.make("/v1/routers/r/gateway", json!({"subnet": "out", "enable_snat": false})).await;
    assert_eq!((&off["gateway"]["enable_snat"], &off["gateway"]["address"]), (&json!(false), &json!(null)), "{off}");
    let on = operator.make("/v1/routers/r/gateway", json!({"subnet": "out", "enable_snat": true})).await;
    let again = operator.make("/v1/routers/r/gateway", json!({"subnet": "out"})).await;
    assert_eq!(on["gateway"], again["gateway"], "once more changes nothing");
    let own = on["gateway"]["address"].as_str().filter(|address| *address == own).unwrap().to_owned();
    let default = json!({"destination": "0.0.0.0/0", "next_hop": "10.1.0.9"});
    assert_eq!(operator.refused(Method::POST, "/v1/routers/r/routes", Some(default)).await, invalid("destination"));
    let router = operator.make("/v1/routers/r/floating-ips", json!({"port": "p"})).await;
    let floating = &router["gateway"]["floating_ips"][0];
    assert_eq!((&floating["port"]["name"], &floating["fixed"]), (&json!("p"), &json!("10.1.0.2")), "{router}");
    let address = floating["address"].as_str().unwrap().to_owned();
    assert!(address.starts_with("203.0.113."), "{router}");
    let asked = |port: &str, address: &str| Some(json!({"port": port, "address": address}));
    let path = "/v1/routers/r/floating-ips";
    let taken = |field: &str| (409, "taken".to_owned(), field.to_owned());
    assert_eq!(operator.refused(Method::POST, path, asked("p", "203.0.113.77")).await, taken("port"));
    assert_eq!(operator.refused(Method::POST, path, asked("q", &address)).await, taken("address"));
    assert_eq!(operator.refused(Method::POST, path, asked("q", &own)).await, taken("address"));
    assert_eq!(operator.refused(Method::POST, path, asked("q", "198.51.100.1")).await, invalid("address"));
    assert_eq!(operator.refused(Method::POST, path, asked("q", "203.0.113.1")).await, invalid("address"));
    assert_eq!(operator.refused(Method::POST, path, asked("far", "203.0.113.77")).await, invalid("port"));
    for used in ["/v1/routers/r/gateway", "/v1/routers/r/interfaces/in", "/v1/ports/p", "/v1/subnets/out"] {
        let refused = operator.refused(Method::DELETE, used, None).await;
        assert_eq!((refused.0, refused.1.as_str()), (409, "in_use"), "{used}");
    }
    let (status, router) = operator.call(Method::DELETE, &format!("{path}/{address}"), None).await;
    assert_eq!((status, router["gateway"]["floating_ips"].as_array().unwrap().len()), (StatusCode::OK, 0), "{router}");
    assert_eq!(operator.refused(Method::DELETE, &format!("{path}/{address}"), None).await.0, 404);
    let (status, router) = operator.call(Method::DELETE, "/v1/routers/r/gateway", None).await;
    assert_eq!((status, &router["gateway"]), (StatusCode::OK, &json!(null)), "{router}");
}

/// Ports of a router's address are forwarded to ports behind it; what cannot be is refused by name, and what they need stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_forwards_ports() {
    let scheduler = Scheduler::start().await;
    let operator = scheduler.operator();
    beside_the_outside(&operator).await;
    let path = "/v1/routers/r/port-forwardings";
    let new = |change: serde_json::Value| {
        let mut body = json!({"protocol": "tcp", "external_port": 8080, "port": "p", "internal_port": 80});
        body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        body
    };
    let plain = || new(json!({}));
    let refused = async |body: serde_json::Value| operator.refused(Method::POST, path, Some(body)).await;
    let early = refused(plain()).await;
    assert_eq!((early.0, early.1.as_str()), (409, "wrong_state"), "no gateway yet: {early:?}");
    operator.make("/v1/routers/r/gateway", json!({"subnet": "out", "enable_snat": false})).await;
    assert_eq!(refused(plain()).await.0, 409, "no SNAT");
    operator.make("/v1/routers/r/gateway", json!({"subnet": "out"})).await;
    let router = operator.make(path, plain()).await;
    let forwarding = &router["gateway"]["port_forwardings"][0];
    let seen = (&forwarding["protocol"], &forwarding["external_port"], &forwarding["port"]["name"]);
    assert_eq!(seen, (&json!("tcp"), &json!(8080), &json!("p")), "{router}");
    assert_eq!(forwarding["internal_ip_address"], json!("10.1.0.2"), "{router}");
    operator.make(path, new(json!({"protocol": "udp"}))).await;
    let invalid = |field: &str| (400, "invalid".to_owned(), field.to_owned());
    let taken = |field: &str| (409, "taken".to_owned(), field.to_owned());
    assert_eq!(refused(new(json!({"internal_port": 81}))).await, taken("external_port"));
    assert_eq!(refused(new(json!({"external_port": 8081}))).await, taken("internal_port"));
    for field in ["external_port", "internal_port"] {
        assert_eq!(refused(new(json!({field: 0}))).await, invalid(field));
    }
    assert_eq!(refused(new(json!({"protocol": "sctp"}))).await, invalid("protocol"));
    assert_eq!(refused(new(json!({"port": "far"}))).await, invalid("port"));
    for (address, why) in [("10.1.0.77", "not its own"), ("fd00::2", "of IPv6")] {
        let other = new(json!({"external_port": 1, "internal_ip_address": address}));
        assert_eq!(refused(other).await, invalid("internal_ip_address"), "{why}");
    }
    let floating = operator.refused(Method::POST, "/v1/routers/r/floating-ips", Some(json!({"port": "p"}))).await;
    assert_eq!((floating.0, floating.1.as_str()), (409, "in_use"), "its answers would leave by that");
    operator.make("/v1/routers/r/floating-ips", json!({"port": "q"})).await;
    assert_eq!(refused(new(json!({"port": "q", "external_port": 1}))).await, invalid("port"));
    for used in ["/v1/routers/r/gateway", "/v1/routers/r/interfaces/in", "/v1/ports/p"] {
        let refused = operator.refused(Method::DELETE, used, None).await;
        assert_eq!((refused.0, refused.1.as_str()), (409, "in_use"), "{used}");
    }
    let off = Some(json!({"subnet": "out", "enable_snat": false}));
    assert_eq!(operator.refused(Method::POST, "/v1/routers/r/gateway", off).await.0, 409);
    assert_eq!(operator.refused(Method::DELETE, &format!("{path}/tcp/8081"), None).await.0, 404);
    let (status, router) = operator.call(Method::DELETE, &format!("{path}/tcp/8080"), None).await;
    assert_eq!((status, router["gateway"]["port_forwardings"].as_array().unwrap().len()), (StatusCode::OK, 1));
    let (status, router) = operator.call(Method::DELETE, &format!("{path}/udp/8080"), None).await;
    assert_eq!((status, &router["gateway"]["port_forwardings"]), (StatusCode::OK, &json!([])), "{router}");
    let (status, _) = operator.call(Method::DELETE, "/v1/ports/p", None).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_goes_from_launch_to_gone() {
    let scheduler = Scheduler::start().await;
    let operator = scheduler.operator();
    operator.make("/v1/networks", json!({"name": "blue"})).await;
    operator.make("/v1/subnets", json!({"name": "a", "network": "blue", "cidr": "10.1.0.0/24"})).await;
    operator.upload(json!({"name": "vmlinuz", "kind": "kernel"}), kernel()).await;
    operator.upload(json!({"name": "disk", "kind": "raw", "kernel": "vmlinuz"}), vec![1; 3 << 20]).await;
    let launch = json!({"name": "web", "flavor": "tiny", "image": "disk", "networks": ["blue"]});
    let vm = operator.make("/v1/vms", launch).await;
    assert_eq!(vm["state"], "error");
    assert!(vm["problem"]["message"].as_str().unwrap().contains("no host has joined"), "{vm}");

    let agent = scheduler.join("h1", "192.0.2.1").await;
    let first = agent.spec(0).await.unwrap();
    let generation = first.generation().0;
    let started = Instant::now();
    let (woken, status) = tokio::join!(agent.spec(generation), agent.report_later());
    assert_eq!(status, StatusCode::NO_CONTENT);
    let spec = woken.unwrap();
    assert!(started.elapsed() < Duration::from_secs(10), "the long poll wakes as soon as there is news");
    let machine = spec.machines().values().next().unwrap();
    assert_eq!((machine.name.as_str(), machine.ports.len(), machine.disks.len()), ("web", 1, 1));

    let placement = operator.get("/v1/vms/web/placement").await;
    assert_eq!(placement["verdicts"][0]["name"], "h1", "{placement}");
    let kernel_id = machine.boot.kernel;
    let url = scheduler.url(&model::agent::image_data_path(kernel_id));
    assert_eq!(agent.client.get(url).send().await.unwrap().bytes().await.unwrap(), kernel());
    let unknown = scheduler.url(&model::agent::image_data_path(model::ImageId::from_uuid(uuid::Uuid::from_u128(1))));
    assert_eq!(agent.client.get(unknown).send().await.unwrap().status(), StatusCode::NOT_FOUND);

    let mut report = agent.empty_report(spec.generation().0);
    report.machines = vec![Observed { id: machine.id, state: MachineState::Running, problem: None }];
    report.volumes = vec![Observed { id: machine.disks[0].volume, state: VolumeState::InUse, problem: None }];
    assert_eq!(agent.report(&report).await, StatusCode::NO_CONTENT);
    let vm = operator.get("/v1/vms/web").await;
    assert_eq!((&vm["state"], &vm["host"]["name"]), (&json!("running"), &json!("h1")));
    assert_eq!(vm["ports"][0]["addresses"], json!(["10.1.0.2"]));
    let (_, stopped) = operator.call(Method::POST, "/v1/vms/web/stop", None).await;
    assert_eq!(stopped["power"], "stopped");
    let (_, started) = operator.call(Method::POST, "/v1/vms/web/start", None).await;
    assert_eq!(started["starts"], 2);

    assert_eq!(operator.call(Method::DELETE, "/v1/vms/web", None).await.0, StatusCode::ACCEPTED);
    assert_eq!(operator.get("/v1/vms/web").await["state"], "deleting");
    let spec = agent.spec(spec.generation().0).await.unwrap();
    assert!(spec.machines().is_empty());
    report.accepted = spec.generation();
    report.machines.clear();
    assert_eq!(agent.report(&report).await, StatusCode::NO_CONTENT);
    assert_eq!(operator.call(Method::GET, "/v1/vms/web", None).await.0, StatusCode::NOT_FOUND);
    assert_eq!(operator.get("/v1/volumes").await[0]["state"], "deleting");
    let spec = agent.spec(spec.generation().0).await.unwrap();
    report.accepted = spec.generation();
    report.volumes[0].state = VolumeState::Absent;
    assert_eq!(agent.report(&report).await, StatusCode::NO_CONTENT);
    assert_eq!(operator.get("/v1/volumes").await, json!([]));
    let metrics = operator.get("/metrics").await;
    assert!(metrics.as_str().unwrap().contains("basalt_scheduler_hosts{state=\"up\"} 1"), "{metrics}");
    assert!(operator.get("/v1/openapi.json").await["paths"]["/v1/vms"].is_object());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_survives_sigkill_and_generations_go_on() {
    let mut scheduler = Scheduler::start().await;
    let agent = scheduler.join("h1", "192.0.2.1").await;
    agent.report(&agent.empty_report(0)).await;
    for number in 0..5 {
        scheduler.operator().make("/v1/networks", json!({"name": format!("net{number}")})).await;
        let vni = scheduler.operator().get(&format!("/v1/networks/net{number}")).await["vni"].clone();
        scheduler.kill_and_restart().await;
        let networks = scheduler.operator().get("/v1/networks").await;
        assert_eq!(networks.as_array().unwrap().len(), number + 1, "{networks}");
        assert_eq!(networks[number]["vni"], vni);
    }
    let operator = scheduler.operator();
    operator.call(Method::DELETE, "/v1/networks/net4", None).await;
    assert_eq!(operator.make("/v1/networks", json!({"name": "again"})).await["vni"], 6, "a VNI is never given again");
    let spec = agent.spec(0).await.unwrap();
    assert_eq!(agent.report(&agent.empty_report(spec.generation().0)).await, StatusCode::NO_CONTENT);
    assert_eq!(operator.get("/v1/hosts/h1").await["state"], "up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_ends_gracefully_and_lets_waiting_agents_go() {
    let mut scheduler = Scheduler::start().await;
    let agent = scheduler.join("h1", "192.0.2.1").await;
    let generation = agent.spec(0).await.unwrap().generation().0;
    let waiting = tokio::spawn(async move { agent.spec(generation).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let started = Instant::now();
    let code = tokio::task::block_in_place(|| scheduler.terminate());
    assert_eq!(code, Some(0), "{}", scheduler.log());
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(waiting.await.unwrap(), None, "the poll was answered, not cut");
}

/// A full disk under the store: each change is refused with the cause and the way out, nothing that was answered is lost and nothing that was
/// refused is there, looking goes on, and with space again so does everything else, without a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_changes_and_loses_none() {
    basalt_tests::require!(basalt_tests::skip::Need::Root);
    let disk = SmallDisk::new("8m");
    let mut scheduler = Scheduler::start_in(disk.path()).await;
    let agent = scheduler.join("h1", "192.0.2.1").await;
    let mut kept = vec!["before".to_owned()];
    scheduler.operator().make("/v1/networks", json!({"name": "before"})).await;
    let filler = disk.fill();
    let operator = scheduler.operator();
    let mut refused = 0;
    for number in 0..2000 {
        let name = format!("net{number}");
        let (status, value) = operator.call(Method::POST, "/v1/networks", Some(json!({"name": name}))).await;
        if status == StatusCode::CREATED {
            assert_eq!(refused, 0, "once it is full it stays so");
            kept.push(name);
            continue;
        }
        assert_eq!((status.as_u16(), &value["error"]["code"]), (507, &json!("disk_full")), "{value}");
        let message = value["error"]["message"].as_str().unwrap();
        assert!(message.contains("space") && message.contains("free some") && message.contains("home"), "{message}");
        refused += 1;
        if refused == 3 {
            break;
        }
    }
    assert_eq!(refused, 3, "2000 networks fit: the disk never was full\n{}", scheduler.log());
    let names = async |operator: &fixture::Operator<'_>| {
        let mut names: Vec<String> = Vec::new();
        for network in operator.get("/v1/networks").await.as_array().unwrap() {
            names.push(network["name"].as_str().unwrap().to_owned());
        }
        names
    };
    kept.sort();
    assert_eq!(names(&operator).await, kept);
    assert_eq!(agent.report(&agent.empty_report(0)).await, StatusCode::NO_CONTENT, "hosts are heard");
    assert!(agent.spec(0).await.is_some(), "and told");

    std::fs::remove_file(filler).unwrap();
    operator.make("/v1/networks", json!({"name": "after"})).await;
    kept.push("after".to_owned());
    kept.sort();
    assert_eq!(names(&operator).await, kept);
    drop(operator);
    scheduler.kill_and_restart().await;
    assert_eq!(names(&scheduler.operator()).await, kept);
}

/// A host's certificate is renewed over its own link; the old one is good until the new one was shown once, and opens nothing after that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_renewed_and_the_old_one_is_good_until_the_new_one_is_shown() {
    let scheduler = Scheduler::start().await;
    let agent = scheduler.join("h1", "192.0.2.1").await;
    let renew = async |agent: &fixture::Agent| {
        let (request, key) =
            join_request(JoinToken::new(model::image::Sha256::new([0; 32]), [0; 32]), "h1", "192.0.2.1");
        let body = json!({"csr": request.csr});
        let answer = agent.client.post(scheduler.url("/agent/v1/renew")).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let renewed: model::agent::RenewResponse = answer.json().await.unwrap();
        agent.again(scheduler.client(Some(&format!("{}{key}", renewed.certificate))))
    };
    let lost = renew(&agent).await;
    let next = renew(&agent).await;
    assert_eq!(agent.report(&agent.empty_report(0)).await, StatusCode::NO_CONTENT, "an answer may be lost");
    assert_eq!(lost.report(&agent.empty_report(0)).await, StatusCode::FORBIDDEN, "only the newest counts");
    assert_eq!(next.report(&agent.empty_report(0)).await, StatusCode::NO_CONTENT);
    assert_eq!(agent.report(&agent.empty_report(0)).await, StatusCode::FORBIDDEN, "the old one is used up");
    assert_eq!(next.report(&agent.empty_report(0)).await, StatusCode::NO_CONTENT);
    let bad =
        next.client.post(scheduler.url("/agent/v1/renew")).json(&json!({"csr": "nonsense"})).send().await.unwrap();
    assert_eq!(bad.status(), StatusCode::BAD_REQUEST);
    let anonymous = scheduler.client(None).post(scheduler.url("/agent/v1/renew")).json(&json!({"csr": ""}));
    assert_eq!(anonymous.send().await.unwrap().status(), StatusCode::FORBIDDEN);
}

/// A host that reports is not evacuated, forced or not; nobody is evacuated while the scheduler cannot know who is down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_may_be_alive_is_not_evacuated() {
    let scheduler = Scheduler::start().await;
    let agent = scheduler.join("h1", "192.0.2.1").await;
    let operator = scheduler.operator();
    for force in [false, true] {
        let body = Some(json!({"force": force}));
        let (status, value) = operator.call(Method::POST, "/v1/hosts/h1/evacuate", body.clone()).await;
        assert_eq!(status, StatusCode::CONFLICT);
        assert!(value["error"]["message"].as_str().unwrap().contains("try again"), "{value}");
    }
    agent.report(&agent.empty_report(0)).await;
    let body = Some(json!({"force": true}));
    let (status, value) = operator.call(Method::POST, "/v1/hosts/h1/evacuate", body).await;
    assert_eq!((status, &value["error"]["code"]), (StatusCode::CONFLICT, &json!("wrong_state")));
    assert!(value["error"]["message"].as_str().unwrap().contains("it is up"), "{value}");
    assert_eq!(operator.get("/v1/hosts/h1").await["enabled"], true, "a refusal changes nothing");
}

impl fixture::Agent {
    /// Reports for the first time a little later, so that a poll waits already.
    async fn report_later(&self) -> StatusCode {
        tokio::time::sleep(Duration::from_millis(300)).await;
        self.report(&self.empty_report(0)).await
    }
}
