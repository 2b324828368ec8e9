//! Two machines and the host's whole switch, without a scheduler: taps in a private Open vSwitch, our flows in it, addresses from our own DHCP answers,
//! echo requests that a neighbour on the same network sends.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

mod machine;

use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::Duration;

use basalt_tests::netns::Namespace;
use basalt_tests::ovs::Switch;
use basalt_tests::require;
use basalt_tests::skip::Need;
use dataplane::switch::bridge::{Datapath, Settings, TapPort};
use dataplane::switch::host::HostSwitch;
use dataplane::switch::openflow::OpenFlow;
use machine::{config, run_by};
use model::network::{Binding, FixedIp, Network, Port, Subnet};
use model::security::{Direction, Ethertype, Protocol, Remote, Rule, SecurityGroup};
use model::spec::HostNetwork;
use model::{HostId, Mac, MachineId, NetworkId, PortId, RuleId, SecurityGroupId, SubnetId, Vni};
use ovsdb::connection::Remote as Database;
use uuid::Uuid;
use vmm::config::{NetConfig, VmConfig};

/// The most that installing the flows may take.
const LIMIT: Duration = Duration::from_secs(15);
const TUNNEL: Ipv4Addr = Ipv4Addr::new(172, 20, 0, 1);
/// The number of the port that a namespace has, after those of the guests.
const NEIGHBOUR: usize = 3;

fn id(kind: u128, number: usize) -> Uuid {
    Uuid::from_u128(kind << 64 | number as u128)
}

/// The address that a port is to be given.
fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, u8::try_from(10 + number).unwrap())
}

fn port(number: usize) -> Port {
    let host = HostId::from_uuid(id(1, 0));
    Port {
        id: PortId::from_uuid(id(6, number)),
        name: format!("port-{number}"),
        network: NetworkId::from_uuid(id(2, 0)),
        key: u32::try_from(number).unwrap(),
        mac: Mac::new([2, 2, 0, 0, 0, u8::try_from(number).unwrap()]),
        addresses: vec![FixedIp { subnet: SubnetId::from_uuid(id(3, 0)), address: address(number).into() }],
        groups: vec![SecurityGroupId::from_uuid(id(5, 0))],
        allowed_pairs: Vec::new(),
        qos: model::qos::Qos::default(),
        port_security: true,
        trunk: None,
        mirror: None,
        arriving: None,
        binding: Some(Binding {
            machine: MachineId::from_uuid(id(7, number)),
            hostname: format!("machine-{number}"),
            host,
            tunnel: TUNNEL,
        }),
    }
}

/// A host that has no network.
fn nothing() -> HostNetwork {
    HostNetwork {
        host: HostId::from_uuid(id(1, 0)),
        tunnel: TUNNEL,
        networks: [].into(),
        subnets: [].into(),
        routers: [].into(),
        address_groups: [].into(),
        balancers: [].into(),
        firewall_policies: [].into(),
        mirrors: [].into(),
        groups: [].into(),
        ports: [].into(),
    }
}

/// One network with DHCP, one group that lets echo requests in and everything out, three ports.
fn network() -> HostNetwork {
    let (network, subnet) = (NetworkId::from_uuid(id(2, 0)), SubnetId::from_uuid(id(3, 0)));
    let group = SecurityGroupId::from_uuid(id(5, 0));
    let rule = |number, direction, protocol| Rule {
        id: RuleId::from_uuid(id(8, number)),
        direction,
        ethertype: Ethertype::IPv4,
        protocol,
        remote: Remote::Any,
    };
    let rules = vec![
        rule(1, Direction::Egress, Protocol::Any),
        rule(2, Direction::Ingress, Protocol::Icmp { kind: None, code: None }),
    ];
    let vni = Vni::try_from(5001).unwrap();
    let cidr: ipnet::IpNet = "10.0.1.0/24".parse().unwrap();
    let network = HostNetwork {
        networks: [(
            network,
            Network {
                id: network,
                name: "blue".to_owned(),
                vni,
                mtu: 1450,
                provider: None,
                routed_prefixes: Vec::new(),
            },
        )]
        .into(),
        subnets: [(
            subnet,
            Subnet {
                id: subnet,
                name: "blue".to_owned(),
                network,
                cidr,
                gateway: None,
                dhcp: true,
                dns: Vec::new(),
                announced: model::network::Announced::default(),
            },
        )]
        .into(),
        groups: [(group, SecurityGroup { id: group, name: "ping".to_owned(), key: 1, stateful: true, rules })].into(),
        ports: (1..=NEIGHBOUR).map(|number| (port(number).id, port(number))).collect(),
        ..nothing()
    };
    network.check().unwrap();
    network
}

/// Makes a bridge with our flows, and the ports on it.
async fn plug(switch: &Switch) -> HostSwitch {
    let settings = Settings {
        database: Database::Unix(switch.db_socket()),
        bridge: "br-int".to_owned(),
        datapath: Datapath::Netdev,
        tunnel_ip: None,
        bandwidth_kbps: std::collections::BTreeMap::new(),
        export: None,
        watches_peers: false,
        physical: std::collections::BTreeMap::new(),
    };
    let host = HostSwitch::start(settings, OpenFlow::unix(switch.bridge_socket("br-int")), nothing());
    host.ensure().await.unwrap();
    for port in (1..=NEIGHBOUR).map(port) {
        let machine = port.binding.as_ref().unwrap().machine;
        host.ensure_port(&TapPort { tap: port.tap_name(), port: port.id, machine, mac: port.mac }).await.unwrap();
    }
    host.program(network(), LIMIT).await.unwrap();
    host
}

/// Runs a guest on its port: it asks for its address, and the neighbour reaches it there.
fn guest(number: usize, switch: &Switch, neighbour: &Namespace) {
    let (port, address) = (port(number), address(number));
    let net =
        NetConfig { id: "net".to_owned(), tap: port.tap_name(), mac: port.mac.to_string().parse().unwrap(), mtu: None };
    let config = VmConfig { nets: vec![net], ..config("net=dhcp:3") };
    let said = run_by(switch.namespace().command(env!("CARGO_BIN_EXE_vmm")), config, |lines| {
        lines.until(&format!("net {address} is up"));
        assert_eq!(neighbour.ping(IpAddr::V4(address), 3, Duration::from_secs(3)).unwrap(), 3);
    });
    assert_eq!(said, [format!("net {address} is up").as_str(), "net 3 echoes answered", "ok net=dhcp:3"]);
}

#[test]
fn two_guests_get_their_addresses_from_our_dhcp_and_answer_a_neighbour() {
    require!(Need::Kvm, Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"));
    let (switch, neighbour) = (Switch::start().unwrap(), Namespace::new().unwrap());
    for guest in 1..NEIGHBOUR {
        switch.namespace().add_tap(&port(guest).tap_name()).unwrap();
    }
    switch.namespace().add_veth(&port(NEIGHBOUR).tap_name(), &neighbour, "eth0").unwrap();
    neighbour.set_mac("eth0", &port(NEIGHBOUR).mac.to_string()).unwrap();
    neighbour.add_address("eth0", &format!("{}/24", address(NEIGHBOUR))).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let host = runtime.block_on(plug(&switch));
    thread::scope(|scope| {
        for number in 1..NEIGHBOUR {
            let (switch, neighbour) = (&switch, &neighbour);
            scope.spawn(move || guest(number, switch, neighbour));
        }
    });
    drop(host);
}
