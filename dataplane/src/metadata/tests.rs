//! What stands at the paths that cloud-init reads, and what does not.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use model::machine::{Boot, Power};
use model::metadata::{Metadata, UserData};
use model::network::{Announced, Binding, FixedIp, Network, SubPort, Subnet};
use model::{HostId, ImageId, MachineId, Mib, NetworkId, PortId, SubnetId, Vcpus};
use serde_json::{Value, json};
use uuid::Uuid;

use super::*;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJqf6zk0v2xTOf3JeXnTl7VYvfzvqY4kqYSw8PpJr8hK";

struct World {
    network: HostNetwork,
    machine: Machine,
}

fn world() -> World {
    let id = Uuid::from_u128;
    let (host, network, subnet) = (HostId::from_uuid(id(1)), NetworkId::from_uuid(id(2)), SubnetId::from_uuid(id(3)));
    let (port, machine) = (PortId::from_uuid(id(4)), MachineId::from_uuid(id(5)));
    let tunnel = Ipv4Addr::new(172, 16, 0, 1);
    let mut world = World {
        network: HostNetwork::empty(host, tunnel),
        machine: Machine {
            id: machine,
            name: "web-1".to_owned(),
            vcpus: Vcpus::try_from(1).unwrap(),
            memory: Mib::try_from(64).unwrap(),
            boot: Boot { kernel: ImageId::from_uuid(id(6)), initrd: None, cmdline: String::new() },
            disks: vec![],
            ports: vec![port],
            power: Power::Running,
            starts: 1,
            metadata: Metadata {
                user_data: Some(UserData::try_from(b"#!/bin/sh\n\xff".to_vec()).unwrap()),
                ssh_keys: vec![format!("{KEY} ann@home").parse().unwrap(), KEY.parse().unwrap()],
            },
        },
    };
    let vni = model::Vni::try_from(5001).unwrap();
    world.network.networks = BTreeMap::from([(
        network,
        Network { id: network, name: "blue".to_owned(), vni, mtu: 1450, provider: None, routed_prefixes: Vec::new() },
    )]);
    let announced = Announced { domain: Some("cloud.test".parse().unwrap()), ..Announced::default() };
    let blue = Subnet {
        id: subnet,
        name: "blue".to_owned(),
        network,
        cidr: "10.0.1.0/24".parse().unwrap(),
        gateway: Some("10.0.1.1".parse().unwrap()),
        dhcp: true,
        dns: vec!["9.9.9.9".parse().unwrap()],
        announced,
    };
    world.network.subnets = BTreeMap::from([(subnet, blue)]);
    let own = Port {
        id: port,
        name: "p".to_owned(),
        network,
        key: 7,
        mac: "02:00:00:00:00:07".parse().unwrap(),
        addresses: vec![FixedIp { subnet, address: "10.0.1.7".parse().unwrap() }],
        groups: vec![],
        allowed_pairs: vec![],
        qos: model::qos::Qos::default(),
        port_security: true,
        trunk: None,
        mirror: None,
        arriving: None,
        binding: Some(Binding { machine, hostname: "web-1".to_owned(), host, tunnel }),
    };
    world.network.ports = BTreeMap::from([(port, own)]);
    world
}

impl World {
    fn page(&self, path: &str) -> Option<Page> {
        let port = &self.network.ports[&self.machine.ports[0]];
        page(Asker { network: &self.network, port, machine: &self.machine }, path)
    }

    fn text(&self, path: &str) -> String {
        String::from_utf8(self.page(path).unwrap_or_else(|| panic!("{path}")).body).unwrap()
    }

    fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.text(path)).unwrap()
    }
}

/// Every name in a listing of EC2's layout leads somewhere, as a crawler follows it: a slash behind it is a directory.
#[test]
fn a_crawler_finds_what_is_listed() {
    let world = world();
    assert_eq!(world.text("/"), "1.0\n2009-04-04\nlatest");
    assert_eq!(world.text("/2009-04-04/"), "meta-data/\nuser-data");
    let listing = world.text("/latest/meta-data/");
    assert_eq!(listing, "hostname\ninstance-id\nlocal-hostname\nlocal-ipv4\nmac\npublic-keys/");
    for name in listing.lines() {
        assert!(!world.text(&format!("/latest/meta-data/{name}")).is_empty(), "{name}");
    }
    assert_eq!(world.text("//latest//meta-data/hostname"), "web-1.cloud.test");
    assert_eq!(world.text("/latest/meta-data/instance-id"), world.machine.id.to_string());
    assert_eq!(world.text("/latest/meta-data/local-ipv4"), "10.0.1.7");
    assert_eq!(world.text("/latest/meta-data/mac"), "02:00:00:00:00:07");
    assert_eq!(world.text("/latest/meta-data/public-keys/"), "0=ann@home\n1=key-1");
    assert_eq!(world.text("/latest/meta-data/public-keys/0"), "openssh-key");
    assert_eq!(world.text("/latest/meta-data/public-keys/1/openssh-key"), KEY);
    assert_eq!(world.page("/latest/user-data").unwrap().body, b"#!/bin/sh\n\xff");
}

/// The map of OpenStack's document has room for each key once only.
#[test]
fn no_key_takes_the_name_of_another() {
    let mut world = world();
    let keys = ["key-1", "", "ann@home", "ann@home", "ann@home-3", "key-1-1"];
    world.machine.metadata.ssh_keys = keys.map(|comment| format!("{KEY} {comment}").trim().parse().unwrap()).to_vec();
    let meta = world.json("/openstack/2018-08-27/meta_data.json");
    assert_eq!(meta["public_keys"].as_object().unwrap().len(), keys.len(), "{meta:#}");
}

#[test]
fn cloud_init_finds_openstack_and_its_documents() {
    let world = world();
    assert!(world.text("/openstack").lines().any(|version| version == "2018-08-27"));
    for name in world.text("/openstack/latest/").lines() {
        assert!(world.page(&format!("/openstack/latest/{name}")).is_some(), "{name}");
    }
    let meta = world.json("/openstack/2018-08-27/meta_data.json");
    assert_eq!((&meta["uuid"], &meta["hostname"]), (&json!(world.machine.id), &json!("web-1.cloud.test")));
    assert_eq!(meta["public_keys"], json!({ "ann@home": format!("{KEY} ann@home"), "key-1": KEY }));
    let network = world.json("/openstack/latest/network_data.json");
    assert_eq!(network["links"][0]["ethernet_mac_address"], "02:00:00:00:00:07");
    assert_eq!(network["links"][0]["mtu"], 1450);
    assert_eq!(
        (&network["networks"][0]["type"], &network["networks"][0]["link"]),
        (&json!("ipv4_dhcp"), &json!("tap7"))
    );
    assert_eq!(network["services"], json!([{ "type": "dns", "address": "9.9.9.9" }]));
    assert_eq!(world.page("/openstack/latest/user_data").unwrap().body, b"#!/bin/sh\n\xff");
    let mut without = world;
    without.network.subnets.values_mut().for_each(|subnet| subnet.dns.clear());
    let services = &without.json("/openstack/latest/network_data.json")["services"];
    assert_eq!(services, &json!([{ "type": "dns", "address": "169.254.169.254" }]), "the host answers");
}

/// A sub-port is a VLAN of its parent's interface, with addresses of its own; one of another trunk is not this machine's.
#[test]
fn sub_ports_are_vlans_of_their_parents_interface() {
    let mut world = world();
    let own = world.network.ports.values().next().unwrap().clone();
    let sub_port = |number: u32, parent| {
        let id = PortId::from_uuid(Uuid::from_u128(number.into()));
        let mac = format!("02:00:00:00:00:{number:02x}").parse().unwrap();
        let addresses = vec![FixedIp { address: Ipv4Addr::new(10, 0, 1, 9).into(), ..own.addresses[0] }];
        let trunk = Some(SubPort { parent, vlan: 5.try_into().unwrap() });
        (id, Port { id, key: number, mac, addresses, trunk, ..own.clone() })
    };
    world.network.ports.extend([sub_port(9, own.id), sub_port(10, PortId::from_uuid(Uuid::from_u128(99)))]);
    let network = world.json("/openstack/latest/network_data.json");
    assert_eq!(network["links"].as_array().unwrap().len(), 2, "{network:#}");
    let vlan = json!({
        "id": "tap7.5", "type": "vlan", "vlan_link": "tap7", "vlan_id": 5, "vlan_mac_address": "02:00:00:00:00:09",
        "vif_id": Uuid::from_u128(9), "mtu": 1450,
    });
    assert_eq!(network["links"][1], vlan);
    let addressed = &network["networks"][1];
    assert_eq!((&addressed["link"], &addressed["ip_address"]), (&json!("tap7.5"), &json!("10.0.1.9")));
}

#[test]
fn what_a_machine_does_not_have_is_nowhere() {
    let mut world = world();
    for path in [
        "/latest/none",
        "/openstack/none",
        "/1999/meta-data/",
        "/latest/meta-data/ipv6",
        "/latest/meta-data/public-keys/2",
    ] {
        assert_eq!(world.page(path), None, "{path}");
    }
    world.machine.metadata = Metadata::default();
    for path in ["/latest/user-data", "/openstack/latest/user_data", "/latest/meta-data/public-keys/"] {
        assert_eq!(world.page(path), None, "{path}");
    }
    assert_eq!(world.text("/latest/"), "meta-data/");
    assert!(!world.text("/latest/meta-data/").contains("public-keys"));
}
