//! Provider networks: VLANs and untagged ones on two physical networks, in the model, in a real switch and with real packets between two hosts and a
//! station of the data centre, in both versions of IP.

#[cfg(test)]
mod hosts;
#[cfg(test)]
mod outside;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod topology;

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context as _, Result};
use basalt_tests::netns::Namespace;
use basalt_tests::ovs::Switch;
use basalt_tests::require;
use basalt_tests::skip::Need;
use dataplane::trace::{Connection, Packet, Payload};
use dataplane::{FlowSet, compile, trace};
use hosts::{Host, Machine};
use model::Mac;
use model::security::{Direction, Ethertype, Protocol, Remote};
use model::spec::HostNetwork;
use openflow::flow::{Field, PortNo};
use outside::datacentre;
use rig::Rig;
use topology::{Cloud, PING, endpoint, host_id, tcp};

const OFFICE_1: usize = 0;
const OFFICE_2: usize = 1;
const FLOOR_1: usize = 2;
const LAB_1: usize = 3;
const BLUE_1: usize = 4;
const OFFICE_3: usize = 5;
/// The OpenFlow ports of the physical networks: in order of name.
const DC: PortNo = PortNo(2);
const LAB: PortNo = PortNo(3);
const STATION: Mac = Mac::new([2, 9, 0, 0, 0, 1]);
const STATION_AT: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 200);

/// The office is VLAN 100 and the floor VLAN 200 of one physical network, the lab is untagged on another, blue is a tenant's; office and blue have a
/// router. Office, floor and lab have the same addresses.
fn cloud() -> Cloud {
    let mut cloud = Cloud::default();
    let office = cloud.network("office", "10.0.1.0/24");
    let floor = cloud.network("floor", "10.0.1.0/24");
    let lab = cloud.network("lab", "10.0.1.0/24");
    let blue = cloud.network("blue", "10.0.2.0/24");
    for (network, physical, vlan) in [(office, "dc", Some(100)), (floor, "dc", Some(200)), (lab, "lab", None)] {
        cloud.ipv6(network, "fd00:0:0:1::/64");
        cloud.provide(network, physical, vlan);
    }
    cloud.router("main", &[office, blue]);
    let all = cloud.group("all");
    cloud.rule_of(Ethertype::IPv6, all, Direction::Egress, Protocol::Any, Remote::Any);
    cloud.allow(all, PING, Remote::Any);
    cloud.allow6(all, PING, Remote::Any);
    let members = cloud.members(all);
    cloud.allow(all, tcp(80, 80), members);
    let plugged = [
        ("office-1", office, 0, 11),
        ("office-2", office, 1, 12),
        ("floor-1", floor, 0, 13),
        ("lab-1", lab, 0, 14),
        ("blue-1", blue, 0, 15),
        ("office-3", office, 0, 16),
    ];
    for (name, network, host, last) in plugged {
        cloud.port(name, network, host, last, &[all]);
    }
    cloud
}

struct Host0 {
    cloud: Cloud,
    set: FlowSet,
}

impl Host0 {
    #[cfg(test)]
    fn new() -> Self {
        let cloud = cloud();
        let set = compile(&cloud.host(0), &cloud.numbers(0));
        Self { cloud, set }
    }

    /// From a port to any MAC address.
    #[cfg(test)]
    fn from(&self, port: usize, to: (Mac, Ipv4Addr), payload: Payload) -> Packet {
        let number = self.cloud.numbers(0).ports[&self.cloud.ports[port].id];
        Packet::ip(number, (self.cloud.mac(port), to.0), (self.cloud.address(port), to.1), payload)
    }

    /// From the data centre to a port.
    #[cfg(test)]
    fn to(&self, port: usize, from: (Mac, Ipv4Addr), payload: Payload) -> Packet {
        Packet::ip(DC, (from.0, self.cloud.mac(port)), (from.1, self.cloud.address(port)), payload)
    }

    #[cfg(test)]
    fn says(&self, packet: &Packet) -> String {
        let path = trace(&self.set, packet, Connection::New);
        path.verdicts().iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ")
    }
}

const ECHO: Payload = Payload::Icmp { kind: 8, code: 0 };
const HTTP: Payload = Payload::Tcp { source: 40_000, target: 80 };

/// What leaves and what comes in, in the users' words.
#[test]
fn verdicts_are_in_the_users_words() {
    let host = Host0::new();
    let cloud = &host.cloud;
    let station = (STATION, STATION_AT);
    assert_eq!(host.says(&host.from(OFFICE_1, station, ECHO)), "sent out to physical network dc in VLAN 100");
    assert_eq!(host.says(&host.from(LAB_1, station, ECHO)), "sent out to physical network lab");
    let peer = (cloud.mac(OFFICE_2), cloud.address(OFFICE_2));
    assert_eq!(host.says(&host.from(OFFICE_1, peer, ECHO)), "sent out to physical network dc in VLAN 100");
    let neighbour = (cloud.mac(OFFICE_3), cloud.address(OFFICE_3));
    assert_eq!(host.says(&host.from(OFFICE_1, neighbour, ECHO)), "delivered to port office-3");
    let arp = Packet::arp_request(PortNo(10), (cloud.mac(OFFICE_1), cloud.address(OFFICE_1)), STATION_AT);
    let heard = host.says(&arp);
    assert!(heard.contains("delivered to port office-3") && heard.contains("in VLAN 100"), "{heard}");
    assert!(!heard.contains("floor") && !heard.contains("lab") && !heard.contains("VNI"), "{heard}");

    assert_eq!(host.says(&host.to(OFFICE_1, station, ECHO).in_vlan(100)), "delivered to port office-1");
    let wrong = host.says(&host.to(OFFICE_1, station, ECHO).in_vlan(200));
    assert_eq!(wrong, "dropped in forward: no port of the network has this destination MAC address");
    for vlan in [Some(300), None] {
        let packet = host.to(OFFICE_1, station, ECHO);
        let packet = vlan.map_or_else(|| packet.clone(), |vlan| packet.clone().in_vlan(vlan));
        assert_eq!(host.says(&packet), "dropped in classify: no network here has this VLAN of physical network dc");
    }
    let lab = host.to(LAB_1, station, ECHO).with(Field::InPort, LAB);
    assert_eq!(host.says(&lab), "delivered to port lab-1");
    assert!(host.says(&lab.in_vlan(100)).starts_with("dropped in classify"), "tagged where nothing is");
    let back = host.to(OFFICE_2, station, ECHO).in_vlan(100);
    assert!(host.says(&back).contains("it came from the physical network that its destination is on"));
    assert!(host.says(&arp.with(Field::InPort, DC).in_vlan(100)).contains("delivered to port office-3"));
}

/// What speaks for a link, as spanning tree and LACP do, passes neither to a physical network nor from one, even where a port has no security.
#[test]
fn link_control_stays_on_its_link() {
    let mut cloud = cloud();
    cloud.ports[LAB_1].port_security = false;
    let host = Host0 { set: compile(&cloud.host(0), &cloud.numbers(0)), cloud };
    for last in [0x00, 0x02, 0x0e] {
        let mac = Mac::new([0x01, 0x80, 0xc2, 0, 0, last]);
        let out = host.from(LAB_1, (mac, STATION_AT), ECHO);
        let into =
            host.to(LAB_1, (STATION, STATION_AT), ECHO).with(Field::InPort, LAB).with(Field::EthDst, mac.bytes());
        for packet in [out, into] {
            assert_eq!(host.says(&packet), "dropped in forward: link control frames stay on their link");
        }
    }
    let group = Mac::new([0x01, 0x80, 0xc2, 0, 0, 0x10]);
    assert!(host.says(&host.from(LAB_1, (group, STATION_AT), ECHO)).contains("sent out to physical network lab"));
}

/// Rules hold as on tenants' networks; outside, a group's address counts with its MAC address only. A guest chooses no VLAN.
#[test]
fn rules_and_tags_hold() {
    let host = Host0::new();
    let cloud = &host.cloud;
    let refused = host.says(&host.to(OFFICE_1, (STATION, STATION_AT), HTTP).in_vlan(100));
    assert!(refused.starts_with("dropped in ingress: no rule of the receiver's security groups"), "{refused}");
    let member = (cloud.mac(OFFICE_2), cloud.address(OFFICE_2));
    assert_eq!(host.says(&host.to(OFFICE_1, member, HTTP).in_vlan(100)), "delivered to port office-1");
    for false_member in [(STATION, member.1), (STATION, cloud.address(BLUE_1))] {
        let said = host.says(&host.to(OFFICE_1, false_member, HTTP).in_vlan(100));
        assert!(said.starts_with("dropped in ingress"), "{said}");
    }
    let tagged = host.from(OFFICE_1, (STATION, STATION_AT), ECHO).in_vlan(200);
    assert_eq!(host.says(&tagged), {
        "dropped in output: network office: guests may not choose a VLAN of a physical network"
    });
    let spoofed = host.from(OFFICE_1, (STATION, STATION_AT), ECHO).with(Field::Ipv4Src, STATION_AT);
    assert!(host.says(&spoofed).starts_with("dropped in classify"));
}

/// What is routed to a provider network goes by tunnel; a host that is not wired says so.
#[test]
fn routed_packets_go_by_tunnel_and_a_missing_wire_is_named() {
    let mut host = Host0::new();
    let cloud = &host.cloud;
    let packet = |to: usize| {
        let (network, numbers) = (cloud.host(0), cloud.numbers(0));
        Packet::from_port(&network, &numbers, &cloud.ports[BLUE_1], cloud.address(to), ECHO).unwrap()
    };
    assert_eq!(host.says(&packet(OFFICE_1)), "delivered to port office-1");
    let by_tunnel = host.says(&packet(OFFICE_2));
    assert!(by_tunnel.contains("at 172.20.0.2 with VNI 5001"), "{by_tunnel}");
    let mut numbers = host.cloud.numbers(0);
    numbers.physical.clear();
    host.set = compile(&host.cloud.host(0), &numbers);
    assert_eq!(host.says(&host.from(OFFICE_1, (STATION, STATION_AT), ECHO)), {
        "dropped in output: network office: physical network dc is not plugged in on this host"
    });
}

/// The switch takes the flows, and says of packets in and out what the model says.
#[test]
fn the_model_and_the_switch_agree() {
    require!(Need::Root, Need::OpenVswitch);
    let mut host = Host0::new();
    let rig = Rig::start(&host.cloud, 0).unwrap();
    host.set = rig.install(&host.cloud).unwrap();
    let changes = dataplane::diff(&host.set, &rig.installed().unwrap());
    assert!(changes.is_empty(), "{changes:#?}");
    let cloud = &host.cloud;
    let mut packets = Vec::new();
    let far =
        [(STATION, STATION_AT), (cloud.mac(OFFICE_2), cloud.address(OFFICE_2)), (cloud.mac(OFFICE_3), STATION_AT)];
    for payload in [ECHO, HTTP] {
        for peer in far {
            packets.extend([OFFICE_1, FLOOR_1, LAB_1].map(|port| host.from(port, peer, payload)));
            packets.push(host.from(OFFICE_1, peer, payload).in_vlan(7));
            for to in [OFFICE_1, OFFICE_2, FLOOR_1, LAB_1] {
                let packet = host.to(to, peer, payload);
                packets.extend([100, 200, 300].map(|vlan| packet.clone().in_vlan(vlan)));
                packets.push(packet.clone().with(Field::InPort, LAB));
                packets.push(packet);
            }
        }
    }
    let arp = Packet::arp_request(PortNo(10), (cloud.mac(OFFICE_1), cloud.address(OFFICE_1)), STATION_AT);
    let own = cloud.mac(OFFICE_1).link_local();
    let solicit = Packet::neighbour_solicit(PortNo(10), (cloud.mac(OFFICE_1), own), STATION.link_local());
    let outside = Packet::neighbour_solicit(DC, (STATION, STATION.link_local()), own).in_vlan(100);
    packets.extend([arp.clone().with(Field::InPort, DC).in_vlan(100), arp, solicit, outside]);
    rig.ask_all(&host.set, &packets);
}

/// A station of the data centre, in a VLAN or untagged.
fn station(switch: &Switch, name: &str, mac: Mac, vlan: Option<u16>, (plain, six): (&str, &str)) -> Result<Machine> {
    let namespace = Namespace::new()?;
    switch.plug("dc", name, &namespace, &mac.to_string())?;
    if let Some(vlan) = vlan {
        switch.vsctl(&["set", "port", name, &format!("tag={vlan}")])?;
    }
    let machine = Machine { namespace };
    machine.restart_link()?;
    let namespace = &machine.namespace;
    namespace.add_address("eth0", plain)?;
    namespace.run(&["ip", "address", "add", six, "dev", "eth0", "nodad"])?;
    Ok(machine)
}

async fn plug(host: &Host, cloud: &Cloud, port: usize) -> Result<Machine> {
    let machine = host.plug(&cloud.ports[port]).await?;
    machine.restart_link()?;
    machine.namespace.add_address("eth0", &format!("{}/24", cloud.address(port)))?;
    let six = format!("{}/64", cloud.address6(port).context("an IPv6 address")?);
    machine.namespace.run(&["ip", "address", "add", &six, "dev", "eth0", "nodad"])?;
    Ok(machine)
}

/// The passes of a packet through a host's data path, on average.
fn passes(switch: &Switch) -> Result<f64> {
    let stats = switch.appctl(&["dpif-netdev/pmd-stats-show"])?;
    let passes = stats.lines().filter_map(|line| line.trim().strip_prefix("avg. datapath passes per packet:"));
    Ok(passes.filter_map(|number| number.trim().parse::<f64>().ok()).fold(0.0, f64::max))
}

/// Two hosts that only the data centre joins: machines of a VLAN reach each other and its stations, those of another and of the other physical
/// network with the same addresses do not; at most two passes for each packet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_stay_in_their_vlan() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"));
    let cloud = cloud();
    let (dc, lab) = (datacentre()?, datacentre()?);
    let nothing = |host| HostNetwork::empty(host_id(host), endpoint(host));
    let wires = [("dc", &dc), ("lab", &lab)];
    let hosts = [Host::start_wired(nothing(0), &wires).await?, Host::start_wired(nothing(1), &wires).await?];
    let at = ("10.0.1.200/24", "fd00:0:0:1::c8/64");
    let in_office = station(&dc, "office", STATION, Some(100), at)?;
    let in_floor = station(&dc, "floor", Mac::new([2, 9, 0, 0, 0, 2]), Some(200), at)?;
    let in_lab = station(&lab, "lab", Mac::new([2, 9, 0, 0, 0, 3]), None, at)?;
    let office_1 = plug(&hosts[0], &cloud, OFFICE_1).await?;
    let office_2 = plug(&hosts[1], &cloud, OFFICE_2).await?;
    let floor_1 = plug(&hosts[0], &cloud, FLOOR_1).await?;
    let lab_1 = plug(&hosts[0], &cloud, LAB_1).await?;
    for (number, host) in hosts.iter().enumerate() {
        host.program(cloud.host(number)).await?;
    }
    let six = |port: usize| cloud.address6(port).map(IpAddr::V6).context("an IPv6 address");
    let station_at: [IpAddr; 2] = [STATION_AT.into(), "fd00:0:0:1::c8".parse()?];
    for to in station_at {
        for (name, machine) in
            [("office-1", &office_1), ("office-2", &office_2), ("floor-1", &floor_1), ("lab-1", &lab_1)]
        {
            assert_eq!(machine.pings(to)?, 3, "{name} to the station at {to}");
        }
    }
    for to in [cloud.address(OFFICE_2).into(), six(OFFICE_2)?] {
        assert_eq!(office_1.pings(to)?, 3, "{to} on the other host");
        assert_eq!(in_office.pings(to)?, 3, "{to} from the station");
        for (name, machine) in [("floor-1", &floor_1), ("lab-1", &lab_1), ("floor", &in_floor), ("lab", &in_lab)] {
            assert!(!machine.leaks(to)?, "{name} reaches {to}, which has the same address range");
        }
    }
    let listener = office_2.listen(80)?;
    assert!(office_1.reaches(cloud.address(OFFICE_2), &listener)?, "a member of the same group");
    assert!(!in_office.intrudes(cloud.address(OFFICE_2), &listener)?, "nobody's member");
    for host in &hosts {
        host.switch.appctl(&["dpif-netdev/pmd-stats-clear"])?;
    }
    office_1.namespace.run(&["ping", "-q", "-c", "200", "-i", "0.002", &cloud.address(OFFICE_2).to_string()])?;
    for host in &hosts {
        let passes = passes(&host.switch)?;
        println!("passes of a packet between hosts on a VLAN: {passes}");
        assert!(passes > 0.0 && passes <= 2.0, "{passes}");
    }
    Ok(())
}
