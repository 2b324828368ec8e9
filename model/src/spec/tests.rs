//! What [`NodeSpec::check`] takes and refuses, and that the wire form loses nothing.

use super::*;
use crate::address::Mac;
use crate::id::RuleId;
use crate::image::Sha256;
use crate::machine::{Boot, Disk, Power};
use crate::mirror::{Mirror, MirrorDirection, MirrorPlace, MirrorTarget};
use crate::network::{
    Binding, ExternalGateway, FixedIp, FloatingIp, ForwardedProtocol, GatewayHost, PortForwarding, RouterInterface,
    Snat, StaticRoute,
};
use crate::security::{Direction, Ethertype, PortRange, Protocol, Rule};
use crate::volume::VolumeBackend;
use uuid::Uuid;

fn uuid(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn host() -> HostId {
    HostId::from_uuid(uuid(1))
}

fn image(number: u128, kind: ImageKind) -> Image {
    Image {
        id: ImageId::from_uuid(uuid(number)),
        name: format!("image{number}"),
        kind,
        sha256: Sha256::new([7; 32]),
        size_bytes: 10,
    }
}

fn subnet(number: u128, network: u128, cidr: &str, gateway: &str) -> Subnet {
    Subnet {
        id: SubnetId::from_uuid(uuid(number)),
        name: format!("subnet{number}"),
        network: NetworkId::from_uuid(uuid(network)),
        cidr: cidr.parse().unwrap(),
        gateway: Some(gateway.parse().unwrap()),
        dhcp: true,
        dns: vec![],
        announced: crate::network::Announced::default(),
    }
}

fn foot(subnet: u128, address: &str) -> RouterInterface {
    RouterInterface {
        subnet: SubnetId::from_uuid(uuid(subnet)),
        address: address.parse().unwrap(),
        mac: Mac::new([0xfa, 0x16, 0x3e, 0, 1, u8::try_from(subnet).unwrap()]),
    }
}

fn route(destination: &str, next_hop: &str) -> StaticRoute {
    StaticRoute { destination: destination.parse().unwrap(), next_hop: next_hop.parse().unwrap() }
}

/// One machine with a volume and a port, two networks, a router and a group that names itself.
fn router() -> Router {
    Router {
        id: RouterId::from_uuid(uuid(25)),
        name: "r".to_owned(),
        key: 1,
        interfaces: vec![foot(11, "10.0.0.1"), foot(21, "10.0.1.1")],
        routes: vec![route("172.16.0.0/12", "10.0.0.5")],
        external: None,
        ipv6_gateway: None,
        firewall: None,
    }
}

fn parts() -> SpecParts {
    let network = |number, vni| Network {
        id: NetworkId::from_uuid(uuid(number)),
        name: format!("net{number}"),
        vni: crate::Vni::try_from(vni).unwrap(),
        mtu: 1450,
        provider: None,
        routed_prefixes: Vec::new(),
    };
    let group = SecurityGroupId::from_uuid(uuid(30));
    let rule = Rule {
        id: RuleId::from_uuid(uuid(31)),
        direction: Direction::Ingress,
        ethertype: Ethertype::IPv4,
        protocol: Protocol::Tcp(PortRange::new(22, 22).unwrap()),
        remote: Remote::Group(group),
    };
    let machine = MachineId::from_uuid(uuid(60));
    let port = Port {
        id: PortId::from_uuid(uuid(40)),
        name: "eth0".to_owned(),
        network: NetworkId::from_uuid(uuid(10)),
        key: 5,
        mac: Mac::new([0xfa, 0x16, 0x3e, 0, 0, 5]),
        addresses: vec![FixedIp { subnet: SubnetId::from_uuid(uuid(11)), address: "10.0.0.5".parse().unwrap() }],
        groups: vec![group],
        allowed_pairs: Vec::new(),
        qos: crate::qos::Qos::default(),
        port_security: true,
        binding: Some(Binding { machine, hostname: "a".to_owned(), host: host(), tunnel: Ipv4Addr::new(192, 0, 2, 1) }),
        trunk: None,
        mirror: None,
        arriving: None,
    };
    SpecParts {
        generation: Generation(3),
        host: host(),
        tunnel: Ipv4Addr::new(192, 0, 2, 1),
        networks: vec![network(10, 100), network(20, 200)],
        subnets: vec![subnet(11, 10, "10.0.0.0/24", "10.0.0.1"), subnet(21, 20, "10.0.1.0/24", "10.0.1.1")],
        routers: vec![router()],
        address_groups: Vec::new(),
        groups: vec![SecurityGroup {
            id: group,
            name: "default".to_owned(),
            key: 1,
            stateful: true,
            rules: vec![rule],
        }],
        ports: vec![port],
        balancers: Vec::new(),
        firewall_policies: Vec::new(),
        mirrors: Vec::new(),
        images: vec![image(50, ImageKind::Qcow2), image(51, ImageKind::Kernel), image(52, ImageKind::Initrd)],
        volumes: vec![Volume {
            id: VolumeId::from_uuid(uuid(55)),
            name: "root".to_owned(),
            size: crate::Mib::try_from(512).unwrap(),
            backend: VolumeBackend::Rbd { pool: "volumes".to_owned() },
            source: VolumeSource::Image(ImageId::from_uuid(uuid(50))),
        }],
        retired_volumes: vec![],
        machines: vec![Machine {
            id: machine,
            name: "a".to_owned(),
            vcpus: crate::Vcpus::try_from(1).unwrap(),
            memory: crate::Mib::try_from(256).unwrap(),
            boot: Boot {
                kernel: ImageId::from_uuid(uuid(51)),
                initrd: Some(ImageId::from_uuid(uuid(52))),
                cmdline: "root=/dev/vda".to_owned(),
            },
            disks: vec![Disk { volume: VolumeId::from_uuid(uuid(55)), read_only: false }],
            ports: vec![PortId::from_uuid(uuid(40))],
            power: Power::Running,
            starts: 1,
            metadata: crate::metadata::Metadata::default(),
        }],
    }
}

/// Changes a good spec in one place and expects the refusal.
fn refused(change: impl FnOnce(&mut SpecParts)) -> String {
    let mut parts = parts();
    change(&mut parts);
    NodeSpec::check(parts).unwrap_err().to_string()
}

#[test]
fn the_wire_form_loses_nothing() {
    let spec = NodeSpec::check(parts()).unwrap();
    let bytes = wire::encode(&spec).unwrap();
    assert_eq!(wire::decode(&bytes).unwrap(), spec);
}

#[test]
fn a_field_or_version_that_is_not_known_is_refused() {
    let spec = NodeSpec::check(parts()).unwrap();
    let text = String::from_utf8(wire::encode(&spec).unwrap()).unwrap();
    for (known, unknown) in
        [("\"machines\"", "\"engines\""), ("\"version\":\"1\"", "\"version\":\"2\""), ("\"mtu\"", "\"mtv\"")]
    {
        let changed = text.replace(known, unknown);
        assert_ne!(changed, text, "{known} is part of the wire form");
        assert!(matches!(wire::decode(changed.as_bytes()), Err(wire::DecodeError::Shape { .. })), "{unknown}");
    }
}

#[test]
fn a_reference_to_nothing_is_refused_with_both_names() {
    let missing = refused(|parts| parts.networks.truncate(1));
    assert!(missing.starts_with("subnet(") && missing.contains("refers to network("), "{missing}");
    assert!(refused(|parts| parts.groups.clear()).contains("refers to security group("));
    assert!(refused(|parts| parts.volumes.clear()).contains("refers to volume("));
    assert!(refused(|parts| parts.images.truncate(1)).contains("refers to image("));
    assert!(refused(|parts| parts.ports.clear()).contains("refers to port("));
}

#[test]
fn what_must_be_unique_is_refused_twice() {
    assert!(refused(|parts| parts.networks[1].vni = parts.networks[0].vni).contains("share VNI 100"));
    assert!(refused(|parts| parts.networks[1].id = parts.networks[0].id).contains("appears twice"));
    let twin = refused(|parts| {
        let mut twin = parts.ports[0].clone();
        twin.id = PortId::from_uuid(uuid(41));
        twin.key = 6;
        parts.ports.push(twin);
    });
    assert!(twin.contains("share MAC address fa:16:3e:00:00:05"), "{twin}");
    let one_part = refused(|parts| {
        let provider = crate::provider::Provider {
            physical_network: "dc".parse().unwrap(),
            segmentation: crate::provider::Segmentation::Vlan(100.try_into().unwrap()),
        };
        parts.networks.iter_mut().for_each(|network| network.provider = Some(provider.clone()));
    });
    assert!(one_part.contains("share VLAN 100 of physical network dc"), "{one_part}");
    let shared = refused(|parts| {
        let mut other = parts.machines[0].clone();
        other.id = MachineId::from_uuid(uuid(61));
        other.ports.clear();
        parts.machines.push(other);
    });
    assert!(shared.contains("share volume("), "{shared}");
}

#[test]
fn values_that_do_not_fit_their_object_are_refused() {
    let overlap = refused(|parts| {
        parts.subnets[1].cidr = "10.0.0.0/16".parse().unwrap();
        parts.subnets[1].gateway = None;
        parts.routers[0].interfaces[1].address = "10.0.1.1".parse().unwrap();
    });
    assert!(overlap.contains("its subnets 10.0.0.0/24 and 10.0.0.0/16 overlap"), "{overlap}");
    assert!(
        refused(|parts| parts.subnets[0].gateway = Some("10.9.0.1".parse().unwrap())).contains("its gateway 10.9.0.1")
    );
    assert!(refused(|parts| parts.subnets[0].cidr = "10.0.0.3/24".parse().unwrap()).contains("has host bits set"));
    assert!(refused(|parts| parts.networks[0].mtu = 60).contains("its MTU 60"));
    assert!(refused(|parts| parts.images[1].kind = ImageKind::Raw).contains("want Kernel"));
    assert!(refused(|parts| parts.ports[0].binding = None).contains("not plugged in on this host"));
    assert!(refused(|parts| parts.ports[0].mac = Mac::BROADCAST).contains("no unicast MAC address"));
    assert!(refused(|parts| parts.retired_volumes = parts.volumes.clone()).contains("both wanted and retired"));
}

#[test]
fn a_route_begins_in_a_subnet_of_its_router() {
    let routes = |routes: &[(&str, &str)]| {
        let routes = routes.iter().map(|(destination, next_hop)| route(destination, next_hop)).collect();
        refused(|parts| parts.routers[0].routes = routes)
    };
    let stray = routes(&[("172.16.0.0/12", "10.9.0.5")]);
    assert!(
        stray.starts_with("router(") && stray.contains("its next hop 10.9.0.5 to 172.16.0.0/12 is on no"),
        "{stray}"
    );
    assert!(routes(&[("172.16.0.0/12", "10.0.0.1")]).contains("is the router itself"));
    assert!(routes(&[("172.16.0.1/12", "10.0.0.5")]).contains("172.16.0.1/12 has host bits set"));
    assert!(routes(&[("fd00::/64", "10.0.0.5")]).contains("of another version"));
    assert!(routes(&[("10.0.1.0/24", "10.0.0.5")]).contains("is one of its own subnets"));
    assert!(routes(&[("172.16.0.0/12", "10.0.0.5"); 2]).contains("appears twice"));
    let many: Vec<_> = (2..=18).map(|last| format!("10.0.0.{last}")).collect();
    let many: Vec<_> = many.iter().map(|hop| ("0.0.0.0/0", hop.as_str())).collect();
    assert!(routes(&many).contains("has more than 16 next hops"));
    let plain = (0..=256).map(|number| route(&format!("172.16.{}.{}/32", number / 256, number % 256), "10.0.0.5"));
    let crowd = refused(|parts| parts.routers[0].routes = plain.collect());
    assert!(crowd.contains("it has 257 routes, at most 256"), "{crowd}");
}

/// The good spec with a way out by a third network, and a floating IP for its port.
fn with_floating_ip(parts: &mut SpecParts) {
    let provider = r#"{"physical_network":"dc","segmentation":{"vlan":100}}"#;
    let outside = Network {
        id: NetworkId::from_uuid(uuid(30)),
        name: "outside".to_owned(),
        vni: crate::Vni::try_from(300).unwrap(),
        mtu: 1500,
        provider: Some(serde_json::from_str(provider).unwrap()),
        routed_prefixes: Vec::new(),
    };
    parts.networks.push(outside);
    parts.subnets.push(subnet(31, 30, "203.0.113.0/24", "203.0.113.1"));
    let floating = FloatingIp {
        address: "203.0.113.50".parse().unwrap(),
        mac: Mac::new([2, 3, 0, 0, 0, 50]),
        port: PortId::from_uuid(uuid(40)),
        fixed: "10.0.0.5".parse().unwrap(),
    };
    let subnet = SubnetId::from_uuid(uuid(31));
    parts.routers[0].external = Some(ExternalGateway { subnet, snat: None, floating_ips: vec![floating] });
}

#[test]
fn a_floating_ip_stands_for_one_address_behind_its_router() {
    let mut good = parts();
    with_floating_ip(&mut good);
    let good = NodeSpec::check(good).unwrap();
    assert_eq!(wire::decode(&wire::encode(&good).unwrap()).unwrap(), good);
    let wrong = |change: &dyn Fn(&mut SpecParts)| {
        refused(|parts| {
            with_floating_ip(parts);
            change(parts);
        })
    };
    let floating = |change: &dyn Fn(&mut FloatingIp)| {
        wrong(&|parts: &mut SpecParts| change(&mut parts.routers[0].external.as_mut().unwrap().floating_ips[0]))
    };
    for (address, problem) in [
        ("198.51.100.1", "it is no host address of 203.0.113.0/24"),
        ("203.0.113.255", "it is no host address of 203.0.113.0/24"),
        ("203.0.113.1", "it is the address of the subnet's gateway"),
    ] {
        let refused = floating(&|floating| floating.address = address.parse().unwrap());
        assert!(
            refused.starts_with(&format!("floating IP {address} of router(")) && refused.ends_with(problem),
            "{refused}"
        );
    }
    assert!(floating(&|floating| floating.fixed = "10.0.0.6".parse().unwrap()).contains("does not have the address"));
    assert!(floating(&|floating| floating.port = PortId::from_uuid(uuid(41))).contains("which the spec does not hold"));
    assert!(floating(&|floating| floating.mac = Mac::BROADCAST).contains("no unicast MAC address"));
    let far = wrong(&|parts| {
        parts.routers[0].routes.clear();
        parts.routers[0].interfaces.truncate(0);
    });
    assert!(far.contains("at 10.0.0.5 is not behind the router"), "{far}");
    let twice = wrong(&|parts| {
        let external = parts.routers[0].external.as_mut().unwrap();
        let other = FloatingIp { mac: Mac::new([2, 3, 0, 0, 0, 51]), ..external.floating_ips[0] };
        external.floating_ips.push(other);
    });
    assert!(twice.contains("share address 203.0.113.50"), "{twice}");
    let tenant = wrong(&|parts| parts.networks[2].provider = None);
    assert!(tenant.contains("is not on a provider network"), "{tenant}");
    let overlap = wrong(&|parts| {
        parts.subnets[2].cidr = "10.0.0.0/8".parse().unwrap();
        parts.subnets[2].gateway = None;
    });
    assert!(overlap.contains("its external subnet 10.0.0.0/8 overlaps its subnet 10.0.0.0/24"), "{overlap}");
    let shadow = wrong(&|parts| parts.routers[0].routes.push(route("0.0.0.0/0", "10.0.0.5")));
    assert!(shadow.contains("its route to 0.0.0.0/0 contradicts its external gateway"), "{shadow}");
}

#[test]
fn an_address_group_is_held_and_its_list_is_sound() {
    let with = |parts: &mut SpecParts, addresses: &[&str]| {
        let id = crate::AddressGroupId::from_uuid(uuid(70));
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        let name = "office".to_owned();
        parts.address_groups.push(crate::address_group::AddressGroup { id, name, key: 1, addresses });
        parts.groups[0].rules[0].remote = Remote::Addresses(id);
    };
    let mut good = parts();
    with(&mut good, &["192.0.2.0/24", "fd00::/8"]);
    let good = NodeSpec::check(good).unwrap();
    assert_eq!(wire::decode(&wire::encode(&good).unwrap()).unwrap(), good);
    let unknown = refused(|parts| {
        with(parts, &["192.0.2.0/24"]);
        parts.address_groups.clear();
    });
    assert!(unknown.starts_with("security group(") && unknown.contains("refers to address group("), "{unknown}");
    for (addresses, problem) in [
        (vec![], "it has no address"),
        (vec!["192.0.2.1/24"], "has host bits set"),
        (vec!["192.0.2.0/24", "192.0.2.0/24"], "is given twice"),
    ] {
        let refused = refused(|parts| with(parts, &addresses));
        assert!(refused.starts_with("address group(") && refused.contains(problem), "{refused}");
    }
    let shared = refused(|parts| {
        with(parts, &["192.0.2.0/24"]);
        let id = crate::AddressGroupId::from_uuid(uuid(71));
        let other = crate::address_group::AddressGroup { id, ..parts.address_groups[0].clone() };
        parts.address_groups.push(other);
    });
    assert!(shared.contains("share address group key 1"), "{shared}");
}

#[test]
fn the_address_of_a_load_balancer_is_its_own() {
    let with = |parts: &mut SpecParts, change: &dyn Fn(&mut crate::balancer::Balancer)| {
        let mut balancer = crate::balancer::Balancer {
            id: crate::BalancerId::from_uuid(uuid(80)),
            name: "front".to_owned(),
            key: 1,
            subnet: SubnetId::from_uuid(uuid(11)),
            address: "10.0.0.100".parse().unwrap(),
            mac: Mac::new([2, 4, 0, 0, 0, 1]),
            listeners: Vec::new(),
        };
        change(&mut balancer);
        parts.balancers.push(balancer);
    };
    let mut good = parts();
    with(&mut good, &|_| ());
    let good = NodeSpec::check(good).unwrap();
    assert_eq!(wire::decode(&wire::encode(&good).unwrap()).unwrap(), good);
    let router = parts().routers[0].interfaces[0].clone();
    let port = parts().ports[0].addresses[0].address;
    for (address, problem) in [
        ("10.0.1.100".parse().unwrap(), "its address 10.0.1.100 is outside of 10.0.0.0/24"),
        (router.address, "share address 10.0.0.1"),
        (port, "share address 10.0.0."),
    ] {
        let refused = refused(|parts| with(parts, &|balancer| balancer.address = address));
        assert!(refused.contains(problem), "{refused}");
    }
    let mac = refused(|parts| with(parts, &|balancer| balancer.mac = router.mac));
    assert!(mac.contains("share MAC address"), "{mac}");
    let key = refused(|parts| with(parts, &|balancer| balancer.key = 0));
    assert!(key.contains("its key is 0"), "{key}");
    let subnet = refused(|parts| with(parts, &|balancer| balancer.subnet = SubnetId::from_uuid(uuid(99))));
    assert!(subnet.starts_with("load balancer(") && subnet.contains("refers to subnet("), "{subnet}");
    let member =
        |port, weight| crate::balancer::Member { address: "10.0.0.9".parse().unwrap(), port, weight, in_error: false };
    let (protocol, persistence) = (crate::balancer::Transport::Tcp, crate::balancer::Persistence::None);
    let listener = |port, members| crate::balancer::Listener {
        protocol,
        port,
        persistence,
        monitor: None,
        connection_limit: None,
        members,
    };
    let heavy =
        |parts: &mut SpecParts| with(parts, &|balancer| balancer.listeners.push(listener(80, vec![member(80, 300)])));
    let weight = refused(heavy);
    assert!(weight.contains("has weight 300, want 0 to 256"), "{weight}");
    let listener = |port| listener(port, (1..=256).map(|port| member(port, 1)).collect());
    let many = |parts: &mut SpecParts, count: u8| {
        for number in 0..count {
            with(parts, &|balancer| {
                balancer.id = crate::BalancerId::from_uuid(uuid(80 + u128::from(number)));
                balancer.key = u16::from(number) + 1;
                balancer.address = std::net::Ipv4Addr::new(10, 0, 0, 100 + number).into();
                balancer.mac = Mac::new([2, 4, 0, 0, 0, number]);
                balancer.listeners = (1..=4).map(listener).collect();
            });
        }
    };
    let mut full = parts();
    many(&mut full, 4);
    NodeSpec::check(full).unwrap();
    let full = refused(|parts| many(parts, 5));
    assert!(full.contains("have more than 4096 members"), "{full}");
}

/// All keys of a JSON document, each with those that lead to it.
fn keys(value: &serde_json::Value, path: &str, found: &mut std::collections::BTreeSet<String>) {
    match value {
        serde_json::Value::Object(members) => members.iter().for_each(|(key, value)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            keys(value, &path, found);
            found.insert(path);
        }),
        serde_json::Value::Array(values) => values.iter().for_each(|value| keys(value, path, found)),
        _ => {}
    }
}

/// Agents refuse keys that they do not know. So a specification that has neither address groups nor a router with an address of its own outside is
/// written with the keys that agents from before these know, as it was then, and what was written then is read.
#[test]
fn what_is_not_used_is_not_written() {
    let mut plain = parts();
    with_floating_ip(&mut plain);
    let spec = NodeSpec::check(plain).unwrap();
    let bytes = wire::encode(&spec).unwrap();
    let mut found = std::collections::BTreeSet::new();
    keys(&serde_json::from_slice(&bytes).unwrap(), "", &mut found);
    let found: Vec<&str> = found.iter().map(String::as_str).collect();
    let known: Vec<&str> = include_str!("golden/keys-before-address-groups.txt").lines().collect();
    assert_eq!(found, known);
    assert_eq!(wire::decode(&bytes).unwrap(), spec);
}

#[test]
fn a_router_has_one_address_outside_for_all_its_ports() {
    let host = |number: u8| GatewayHost {
        host: HostId::from_uuid(uuid(90 + u128::from(number))),
        tunnel: Ipv4Addr::new(172, 20, 0, number),
    };
    let with_snat = |parts: &mut SpecParts, change: &dyn Fn(&mut Snat)| {
        with_floating_ip(parts);
        let mut snat = Snat {
            address: Ipv4Addr::new(203, 0, 113, 40),
            mac: Mac::new([2, 3, 0, 0, 0, 40]),
            gateways: vec![host(1), host(2)],
            forwardings: Vec::new(),
        };
        change(&mut snat);
        parts.routers[0].external.as_mut().unwrap().snat = Some(snat);
    };
    let mut good = parts();
    with_snat(&mut good, &|_| {});
    let good = NodeSpec::check(good).unwrap();
    let text = String::from_utf8(wire::encode(&good).unwrap()).unwrap();
    assert!(!text.contains("forwardings"), "agents from before port forwardings refuse the key: {text}");
    assert_eq!(wire::decode(&wire::encode(&good).unwrap()).unwrap(), good);
    let wrong = |change: &dyn Fn(&mut Snat)| refused(|parts| with_snat(parts, change));
    let edge = wrong(&|snat| snat.address = Ipv4Addr::new(203, 0, 113, 0));
    assert!(edge.starts_with("external address 203.0.113.0 of router("), "{edge}");
    assert!(edge.ends_with("it is no host address of 203.0.113.0/24"), "{edge}");
    let gateway = wrong(&|snat| snat.address = Ipv4Addr::new(203, 0, 113, 1));
    assert!(gateway.ends_with("it is the address of the subnet's gateway"), "{gateway}");
    assert!(wrong(&|snat| snat.address = Ipv4Addr::new(203, 0, 113, 50)).contains("share address 203.0.113.50"));
    assert!(wrong(&|snat| snat.mac = Mac::new([2, 3, 0, 0, 0, 50])).contains("share MAC address 02:03:00:00:00:32"));
    assert!(wrong(&|snat| snat.mac = Mac::BROADCAST).contains("no unicast MAC address"));
    assert!(wrong(&|snat| snat.gateways.push(host(1))).contains("a host is named twice among its gateways"));
    let crowd = wrong(&|snat| snat.gateways = (0..=16).map(host).collect());
    assert!(crowd.contains("it has 17 gateway hosts, at most 16"), "{crowd}");
}

#[test]
fn a_router_forwards_ports_to_addresses_behind_it() {
    let with = |parts: &mut SpecParts, change: &dyn Fn(&mut PortForwarding)| {
        with_floating_ip(parts);
        let mut forwarding = PortForwarding {
            protocol: ForwardedProtocol::Tcp,
            external_port: 8080,
            port: PortId::from_uuid(uuid(40)),
            internal_ip_address: "10.0.0.5".parse().unwrap(),
            internal_port: 80,
        };
        change(&mut forwarding);
        let external = parts.routers[0].external.as_mut().unwrap();
        external.floating_ips.clear();
        let (address, mac) = (Ipv4Addr::new(203, 0, 113, 40), Mac::new([2, 3, 0, 0, 0, 40]));
        external.snat = Some(Snat { address, mac, gateways: Vec::new(), forwardings: vec![forwarding] });
    };
    let mut good = parts();
    with(&mut good, &|_| {});
    let good = NodeSpec::check(good).unwrap();
    assert_eq!(wire::decode(&wire::encode(&good).unwrap()).unwrap(), good);
    let wrong = |change: &dyn Fn(&mut PortForwarding)| refused(|parts| with(parts, change));
    let zero = wrong(&|it| it.external_port = 0);
    assert!(zero.starts_with("port forwarding tcp 0 to 10.0.0.5:80 of router("), "{zero}");
    assert!(zero.ends_with("there is no port 0"), "{zero}");
    assert!(wrong(&|it| it.internal_port = 0).ends_with("there is no port 0"));
    let stranger = wrong(&|it| it.internal_ip_address = "10.0.0.6".parse().unwrap());
    assert!(stranger.contains("does not have the address 10.0.0.6"), "{stranger}");
    assert!(wrong(&|it| it.port = PortId::from_uuid(uuid(41))).contains("which the spec does not hold"));
    let also = |change: &dyn Fn(&mut PortForwarding)| {
        refused(|parts| {
            with(parts, &|_| {});
            let snat = parts.routers[0].external.as_mut().unwrap().snat.as_mut().unwrap();
            let mut other = snat.forwardings[0];
            change(&mut other);
            snat.forwardings.push(other);
        })
    };
    let twice = also(&|it| it.internal_port = 81);
    assert!(twice.ends_with("share tcp port 8080 of 203.0.113.40"), "{twice}");
    let back = also(&|it| it.external_port = 8081);
    assert!(back.contains("share tcp port 80 of port(") && back.ends_with("at 10.0.0.5"), "{back}");
    let mut both = parts();
    with(&mut both, &|_| {});
    let snat = both.routers[0].external.as_mut().unwrap().snat.as_mut().unwrap();
    snat.forwardings.push(PortForwarding { protocol: ForwardedProtocol::Udp, ..snat.forwardings[0] });
    NodeSpec::check(both).unwrap();
    let far = refused(|parts| {
        with(parts, &|_| {});
        parts.routers[0].routes.clear();
        parts.routers[0].interfaces.clear();
    });
    assert!(far.contains("at 10.0.0.5 is not behind the router"), "{far}");
    let floating = refused(|parts| {
        with(parts, &|_| {});
        let snat = parts.routers[0].external.as_ref().unwrap().snat.clone();
        parts.networks.pop();
        parts.subnets.pop();
        with_floating_ip(parts);
        parts.routers[0].external.as_mut().unwrap().snat = snat;
    });
    assert!(floating.contains("has a floating IP, by which its answers would leave"), "{floating}");
    let crowd = refused(|parts| {
        with(parts, &|_| {});
        let snat = parts.routers[0].external.as_mut().unwrap().snat.as_mut().unwrap();
        let one = snat.forwardings[0];
        let more = (1..=1025).map(|port| PortForwarding { external_port: port, internal_port: port, ..one });
        snat.forwardings = more.collect();
    });
    assert!(crowd.contains("it forwards 1025 ports, at most 1024"), "{crowd}");
}

/// A spec whose machine's port has a sub-port on the other network, with the parent's MAC address.
fn trunk() -> SpecParts {
    let mut parts = parts();
    let parent = parts.ports[0].clone();
    parts.ports.push(crate::network::Port {
        id: PortId::from_uuid(uuid(41)),
        name: "eth0.7".to_owned(),
        network: NetworkId::from_uuid(uuid(20)),
        key: 6,
        addresses: vec![FixedIp { subnet: SubnetId::from_uuid(uuid(21)), address: "10.0.1.5".parse().unwrap() }],
        trunk: Some(crate::network::SubPort { parent: parent.id, vlan: 7.try_into().unwrap() }),
        ..parent
    });
    parts
}

/// Sub-ports are where their parents are, each with a tag of its own; a port without a trunk is written as it was before there were any.
#[test]
fn sub_ports_hang_on_their_parents() {
    let spec = NodeSpec::check(trunk()).unwrap();
    let bytes = wire::encode(&spec).unwrap();
    assert_eq!(wire::decode(&bytes).unwrap(), spec);
    assert_eq!(String::from_utf8(bytes).unwrap().matches("\"trunk\"").count(), 1);
    let sub = &spec.network().ports[&PortId::from_uuid(uuid(41))];
    assert_eq!((spec.network().tap_of(sub).tap_name(), sub.tag().map(|vlan| vlan.get())), ("tap5".to_owned(), Some(7)));

    let refused = |change: &dyn Fn(&mut SpecParts)| {
        let mut parts = trunk();
        change(&mut parts);
        NodeSpec::check(parts).unwrap_err().to_string()
    };
    let text = refused(&|parts| parts.ports[1].binding = None);
    assert!(text.contains("000000000029") && text.contains("it is plugged in elsewhere than its parent"), "{text}");
    let text = refused(&|parts| parts.ports[1].trunk.as_mut().unwrap().parent = PortId::from_uuid(uuid(99)));
    assert!(text.contains("which the spec does not hold"), "{text}");
    let text = refused(&|parts| parts.ports[1].trunk.as_mut().unwrap().parent = PortId::from_uuid(uuid(41)));
    assert!(text.contains("is a sub-port itself"), "{text}");
    let text = refused(&|parts| parts.machines[0].ports.push(PortId::from_uuid(uuid(41))));
    assert!(text.contains("is a sub-port of"), "{text}");
    let text = refused(&|parts| {
        let mut other = parts.ports[1].clone();
        (other.id, other.key, other.mac) = (PortId::from_uuid(uuid(42)), 7, Mac::new([2, 0, 0, 0, 0, 9]));
        other.addresses.clear();
        parts.ports.push(other);
    });
    assert!(text.contains("share VLAN 7 of"), "{text}");
}

/// A sub-port on another host needs no parent in the spec: the parent may be on a network that this host knows nothing of.
#[test]
fn a_sub_port_elsewhere_needs_no_parent_here() {
    let mut parts = trunk();
    parts.ports.remove(0);
    parts.machines.clear();
    parts.routers[0].routes.clear();
    parts.ports[0].binding.as_mut().unwrap().host = HostId::from_uuid(uuid(2));
    NodeSpec::check(parts).unwrap();
}

/// The policies of a router's firewall are there, are sound, and no two rules have one key.
#[test]
fn a_firewall_has_its_policies() {
    use crate::firewall::{Carried, Firewall, FirewallAction, FirewallPolicy, FirewallRule};
    let id = |number| crate::FirewallPolicyId::from_uuid(uuid(number));
    let rule = |number, key| FirewallRule {
        id: crate::FirewallRuleId::from_uuid(uuid(number)),
        name: format!("rule-{number}"),
        key,
        rank: 10,
        enabled: true,
        action: FirewallAction::Allow,
        ethertype: Ethertype::IPv6,
        protocol: Carried::Any,
        source: None,
        destination: None,
    };
    let policy =
        |number, key| FirewallPolicy { id: id(number), name: "p".to_owned(), rules: vec![rule(number + 10, key)] };
    let mut walled = parts();
    walled.routers[0].firewall = Some(Firewall { ingress: Some(id(80)), egress: Some(id(81)) });
    walled.firewall_policies = vec![policy(80, 1)];
    let said = |parts: &SpecParts| NodeSpec::check(parts.clone()).unwrap_err().to_string();
    assert!(
        said(&walled).contains("refers to firewall policy(") && said(&walled).contains("router("),
        "{}",
        said(&walled)
    );
    walled.firewall_policies.push(policy(81, 1));
    assert_eq!(said(&walled), "firewall rule rule-91 and firewall rule rule-90 share firewall rule key 1");
    walled.firewall_policies[1].rules[0].key = 2;
    let spec = NodeSpec::check(walled.clone()).unwrap();
    assert_eq!(wire::decode(&wire::encode(&spec).unwrap()).unwrap(), spec);
    walled.firewall_policies[1].rules[0].source = "10.0.0.0/8".parse().ok();
    assert!(said(&walled).ends_with("(p): its rule rule-91 is of IPv6 and names 10.0.0.0/8"), "{}", said(&walled));
}

/// A spec whose machine's port is mirrored to a port on another host, which the spec knows nothing else of.
fn mirrored() -> SpecParts {
    let mut parts = parts();
    let to = PortId::from_uuid(uuid(41));
    parts.ports[0].mirror = Some(Mirror { to, direction: MirrorDirection::Both });
    let place = MirrorPlace { host: HostId::from_uuid(uuid(2)), tunnel: Ipv4Addr::new(192, 0, 2, 2) };
    let vni = crate::Vni::try_from(*crate::Vni::MIRRORS.start()).unwrap();
    parts.mirrors.push(MirrorTarget { port: to, name: "monitor".to_owned(), vni, place: Some(place), senders: vec![] });
    parts
}

/// Who gets copies is known by a number of its own, is another port, and is not copied; a spec without mirrors is written as it was before there were
/// any.
#[test]
fn copies_go_to_a_port_that_is_not_copied() {
    let spec = NodeSpec::check(mirrored()).unwrap();
    let bytes = wire::encode(&spec).unwrap();
    assert_eq!(wire::decode(&bytes).unwrap(), spec);
    let plain = String::from_utf8(wire::encode(&NodeSpec::check(parts()).unwrap()).unwrap()).unwrap();
    assert!(!plain.contains("mirror"), "{plain}");

    let refused = |change: &dyn Fn(&mut SpecParts)| {
        let mut parts = mirrored();
        change(&mut parts);
        NodeSpec::check(parts).unwrap_err().to_string()
    };
    let text = refused(&|parts| parts.mirrors.clear());
    assert!(text.contains("which the spec does not hold"), "{text}");
    let text = refused(&|parts| parts.ports[0].mirror.as_mut().unwrap().to = parts.ports[0].id);
    assert!(text.contains("it is mirrored to itself"), "{text}");
    let text = refused(&|parts| {
        let mut other = parts.ports[0].clone();
        (other.id, other.key, other.mac) = (PortId::from_uuid(uuid(41)), 7, Mac::new([2, 0, 0, 0, 0, 9]));
        other.addresses.clear();
        other.mirror = Some(Mirror { to: PortId::from_uuid(uuid(42)), direction: MirrorDirection::In });
        parts.ports.push(other);
        let next = MirrorTarget { port: PortId::from_uuid(uuid(42)), ..parts.mirrors[0].clone() };
        parts.mirrors.push(next);
    });
    assert!(text.contains("which is mirrored itself"), "{text}");
    let text = refused(&|parts| parts.mirrors[0].vni = crate::Vni::try_from(5000).unwrap());
    assert!(text.contains("its VNI 5000 is not kept for mirrors"), "{text}");
    let text = refused(&|parts| parts.networks[0].vni = crate::Vni::try_from(crate::Vni::MAX).unwrap());
    assert!(text.contains("its VNI 16777215 is kept for mirrors"), "{text}");
    let text = refused(&|parts| {
        let next = MirrorTarget { port: PortId::from_uuid(uuid(42)), ..parts.mirrors[0].clone() };
        parts.mirrors.push(next);
    });
    assert!(text.contains("share VNI 15728640"), "{text}");
    let text = refused(&|parts| parts.mirrors[0].place.as_mut().unwrap().host = host());
    assert!(text.contains("which the spec does not hold"), "{text}");
}
