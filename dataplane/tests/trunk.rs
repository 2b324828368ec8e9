//! Trunks: sub-ports on the tap of their parent, told apart by the tags of VLANs, in the model, in a real switch, and with the packets of a guest
//! that has them as interfaces of its own.
//!
//! The guest's own VLAN interfaces are the access ports of a switch in front of its tap: this needs no module of the kernel.

#[cfg(test)]
mod hosts;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod topology;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use basalt_tests::netns::Namespace;
use basalt_tests::ovs::Switch;
use basalt_tests::process::wait_for;
use basalt_tests::require;
use basalt_tests::skip::Need;
use dataplane::compile::{Compiler, Edit};
use dataplane::switch::bridge::TapPort;
use dataplane::too_large::{Handed, tell};
use dataplane::trace::{Cause, Connection, Packet, Path, Payload, blame};
use dataplane::{FlowSet, PortNumbers, compile, trace};
use etherparse::PacketBuilder;
use hosts::{Host, Machine};
use model::Mac;
use model::network::Port;
use model::security::{Direction, Ethertype, Protocol, Remote};
use model::spec::HostNetwork;
use openflow::flow::{Action, Field, PortNo};
use rig::Rig;
use topology::{Cloud, PING, VXLAN, endpoint, host_id, tcp};

const TRUNK: usize = 0;
/// In VLAN 7, behind the same router as its parent.
const SUB: usize = 1;
/// In VLAN 9, with its parent's MAC address, on a network of its own.
const LONE: usize = 2;
const NEAR: usize = 3;
const BLUE: usize = 4;
const FAR: usize = 5;
const BLUE_FAR: usize = 6;
const RED_FAR: usize = 7;
/// In no group that the others let in.
const STRANGER: usize = 8;
/// On a network that carries less than the others.
const LITTLE: usize = 9;
const SUB_VLAN: u16 = 7;
const LONE_VLAN: u16 = 9;
const OTHER_VLAN: u16 = 8;
const SMALL: u16 = 1400;
const LIMIT: Duration = Duration::from_secs(30);
const ECHO: Payload = Payload::Icmp { kind: 8, code: 0 };
const HTTP: Payload = Payload::Tcp { source: 40_000, target: 80 };

/// The parent is on blue, its sub-ports are on green and red; blue and green have a router, and with them small, which carries less. Red has none, and
/// the addresses of green.
fn cloud() -> Cloud {
    let mut cloud = Cloud::default();
    let blue = cloud.network("blue", "10.0.1.0/24");
    let green = cloud.network("green", "10.0.2.0/24");
    let red = cloud.network("red", "10.0.2.0/24");
    cloud.ipv6(blue, "fd00:0:0:1::/64");
    cloud.ipv6(green, "fd00:0:0:2::/64");
    let small = cloud.network("small", "10.0.3.0/24");
    cloud.networks[small].mtu = SMALL;
    cloud.router("main", &[blue, green, small]);
    let all = cloud.group("all");
    let other = cloud.group("other");
    for group in [all, other] {
        cloud.rule_of(Ethertype::IPv6, group, Direction::Egress, Protocol::Any, Remote::Any);
        cloud.allow(group, PING, Remote::Any);
        cloud.allow6(group, PING, Remote::Any);
    }
    let members = cloud.members(all);
    cloud.allow(all, tcp(80, 80), members);
    for (name, network, host, last, group) in [
        ("trunk", blue, 0, 11, all),
        ("trunk.7", green, 0, 12, all),
        ("trunk.9", red, 0, 12, all),
        ("near", green, 0, 21, all),
        ("blue", blue, 0, 22, all),
        ("far", green, 1, 23, all),
        ("blue-far", blue, 1, 24, all),
        ("red-far", red, 1, 25, all),
        ("stranger", green, 1, 26, other),
        ("little", small, 0, 31, all),
    ] {
        cloud.port(name, network, host, last, &[group]);
    }
    cloud.trunk(SUB, TRUNK, SUB_VLAN);
    cloud.trunk(LONE, TRUNK, LONE_VLAN);
    cloud.ports[LONE].mac = cloud.ports[TRUNK].mac;
    cloud
}

struct World {
    cloud: Cloud,
    network: HostNetwork,
    numbers: PortNumbers,
    set: FlowSet,
}

impl World {
    #[cfg(test)]
    fn new() -> Self {
        let cloud = cloud();
        let (network, numbers) = (cloud.host(0), cloud.numbers(0));
        let set = compile(&network, &numbers);
        Self { cloud, network, numbers, set }
    }

    #[cfg(test)]
    fn packet(&self, from: usize, to: impl Into<IpAddr>, payload: Payload) -> Packet {
        Packet::from_port(&self.network, &self.numbers, &self.cloud.ports[from], to, payload).unwrap()
    }

    #[cfg(test)]
    fn arp(&self, from: usize, to: Ipv4Addr) -> Packet {
        let port = &self.cloud.ports[from];
        let number = self.numbers.of(port).unwrap();
        Packet::arp_request(number, (port.mac, self.cloud.address(from)), to).sent_by(port)
    }

    /// A frame with a tag more than its sender's frames have, as Open vSwitch sees it.
    #[cfg(test)]
    fn twice(&self, from: usize, to: usize, kind: u16) -> Packet {
        let port = &self.cloud.ports[from];
        let packet = Packet::default()
            .with(Field::InPort, self.numbers.of(port).unwrap())
            .with(Field::EthSrc, port.mac.bytes())
            .with(Field::EthDst, self.cloud.mac(to).bytes())
            .with(Field::EthType, kind);
        packet.sent_by(port)
    }

    #[cfg(test)]
    fn path(&self, packet: &Packet) -> Path {
        trace(&self.set, packet, Connection::New)
    }

    /// What becomes of a packet, and the tags of its copies that leave.
    #[cfg(test)]
    fn says(&self, packet: &Packet) -> (String, Vec<Option<u16>>) {
        let path = self.path(packet);
        let words = path.verdicts().iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ");
        let ordinary = path.outcomes.iter().filter(|outcome| outcome.larger_than.is_none());
        (words, ordinary.map(|outcome| outcome.leaving.vlan()).collect())
    }

    #[cfg(test)]
    fn blame(&self, packet: &Packet) -> (Cause, String) {
        let blame = blame(&self.network, &self.numbers, packet, &self.path(packet)).unwrap();
        (blame.cause, blame.line)
    }
}

#[cfg(test)]
fn said(words: &str, tag: Option<u16>) -> (String, Vec<Option<u16>>) {
    (words.to_owned(), vec![tag])
}

/// What the guest sends with a tag is its sub-port's, without one its own; the tag is on the tap and nowhere else.
#[test]
fn the_tag_says_whose_a_frame_is() {
    let world = World::new();
    let cloud = &world.cloud;
    let host_2 = host_id(1);
    let tunnelled = |vni: u32| format!("sent to host {host_2} at 172.20.0.2 with VNI {vni}");
    assert_eq!(world.says(&world.packet(SUB, cloud.address(FAR), HTTP)), said(&tunnelled(5002), None));
    assert_eq!(world.says(&world.packet(LONE, cloud.address(RED_FAR), HTTP)), said(&tunnelled(5003), None));
    let blue_far = world.packet(TRUNK, cloud.address(BLUE_FAR), HTTP);
    assert_eq!(world.says(&blue_far), said(&tunnelled(5001), None));
    let near = world.packet(NEAR, cloud.address(SUB), HTTP);
    assert_eq!(world.says(&near), said("delivered to port trunk.7", Some(SUB_VLAN)));
    let blue = world.packet(BLUE, cloud.address(TRUNK), HTTP);
    assert_eq!(world.says(&blue), said("delivered to port trunk", None));
    for (number, vni, sub, vlan) in [(SUB, 5002, "trunk.7", SUB_VLAN), (LONE, 5003, "trunk.9", LONE_VLAN)] {
        let sent = world.packet(NEAR, cloud.address(SUB), HTTP).with(Field::EthDst, cloud.mac(number).bytes());
        let packet = sent.out_of_tunnel(VXLAN, (endpoint(1), vni));
        let (words, tags) = world.says(&packet.with(Field::Ipv4Src, cloud.address(FAR)));
        let words = words.split(':').next().unwrap_or_default().to_owned();
        // Red knows no member at the address of one of green.
        let want = if number == SUB { format!("delivered to port {sub}") } else { "dropped in ingress".to_owned() };
        assert_eq!((words, tags), (want, vec![(number == SUB).then_some(vlan)]));
    }
}

/// Ports of one trunk reach each other by their router, back out of the tap that they came in by; no flood comes back to who sent it.
#[test]
fn ports_of_one_trunk_meet_on_their_tap() {
    let world = World::new();
    let cloud = &world.cloud;
    let down = world.packet(TRUNK, cloud.address(SUB), HTTP);
    assert_eq!(world.says(&down), said("delivered to port trunk.7", Some(SUB_VLAN)));
    let up = world.packet(SUB, cloud.address(TRUNK), HTTP);
    assert_eq!(world.says(&up), said("delivered to port trunk", None));
    for (from, own, others) in [(TRUNK, TRUNK, vec![BLUE]), (SUB, SUB, vec![NEAR])] {
        let path = world.path(&world.arp(from, Ipv4Addr::new(10, 0, if from == SUB { 2 } else { 1 }, 99)));
        assert!(!path.reaches(cloud.ports[own].key), "{path}");
        assert!(others.iter().all(|other| path.reaches(cloud.ports[*other].key)), "{path}");
    }
}

/// What a sub-port is answered has its tag, whoever answers; what it asks the agent is its own question.
#[test]
fn answers_have_the_tag() {
    let world = World::new();
    let cloud = &world.cloud;
    let gateway = |network: u8| Ipv4Addr::new(10, 0, network, 1);
    let tag = Some(SUB_VLAN);
    assert_eq!(world.says(&world.arp(SUB, cloud.address(FAR))), said("answered by this host for port far", tag));
    assert_eq!(world.says(&world.arp(SUB, gateway(2))), said("answered by router main", tag));
    assert_eq!(world.says(&world.arp(TRUNK, gateway(1))), said("answered by router main", None));
    for address in [gateway(2), gateway(1)] {
        assert_eq!(world.says(&world.packet(SUB, address, ECHO)), said("answered by router main", tag));
        assert_eq!(world.says(&world.packet(TRUNK, address, ECHO)), said("answered by router main", None));
    }
    let six: IpAddr = "fd00:0:0:2::1".parse().unwrap();
    assert_eq!(world.says(&world.packet(SUB, six, Payload::ping(six))), said("answered by router main", tag));
    for (from, name) in [(TRUNK, "trunk"), (SUB, "trunk.7"), (LONE, "trunk.9")] {
        let port = &cloud.ports[from];
        let number = world.numbers.of(port).unwrap();
        let discover = Packet::dhcp_discover(number, port.mac).sent_by(port);
        assert_eq!(world.says(&discover), said(&format!("handed to the agent: DHCP request of port {name}"), None));
    }
    let metadata = world.packet(SUB, dataplane::feature::service::ADDRESS_V4, HTTP);
    assert_eq!(world.says(&metadata), said("handed to the agent: request for metadata of port trunk.7", None));
}

/// A tag that no sub-port has, and what a sub-port may not send, is dropped and blamed on the right port; nobody on the networks of the parent or of
/// a sub-port can send what the guest would take for a frame of another.
#[test]
fn other_tags_go_nowhere() {
    let world = World::new();
    let cloud = &world.cloud;
    let dropped = "dropped in classify: port trunk: no sub-port of it has this VLAN and may send this";
    let number = world.numbers.of(&cloud.ports[TRUNK]).unwrap();
    for from in [TRUNK, SUB] {
        let to = if from == SUB { FAR } else { BLUE_FAR };
        for packet in [world.packet(from, cloud.address(to), HTTP), world.arp(from, cloud.address(to))] {
            let packet = packet.in_vlan(OTHER_VLAN);
            assert_eq!(world.says(&packet).0, dropped);
            let wanted = (Cause::NoSubPort, "trunk trunk has no sub-port in VLAN 8".to_owned());
            assert_eq!(world.blame(&packet), wanted);
        }
    }
    let discover = Packet::dhcp_discover(number, cloud.mac(TRUNK)).in_vlan(OTHER_VLAN);
    assert_eq!(world.says(&discover).0, dropped, "though the parent may ask without a tag");
    let spoofed = world.packet(SUB, cloud.address(FAR), HTTP).with(Field::Ipv4Src, cloud.address(NEAR));
    assert_eq!(world.says(&spoofed).0, dropped);
    let (cause, line) = world.blame(&spoofed);
    let line = line.replace(", fd00:0:0:2::c", "");
    assert_eq!(
        (cause, line.as_str()),
        (Cause::SpoofedSource, "port trunk.7 may send from 10.0.2.12 and does from 10.0.2.21")
    );
    let untagged = world.packet(SUB, cloud.address(FAR), HTTP).in_vlan(OTHER_VLAN).with(Field::VlanVid, 0_u16);
    assert!(world.says(&untagged).0.starts_with("dropped in classify"), "the parent may not send as its sub-port");
    for (from, to, name) in [(BLUE, TRUNK, "trunk"), (NEAR, SUB, "trunk.7")] {
        let packet = world.packet(from, cloud.address(to), HTTP).in_vlan(SUB_VLAN);
        let words = format!("dropped in output: port {name}: a frame with a tag is for no port of a trunk");
        assert_eq!(world.says(&packet).0, words);
    }
}

/// Without port security a sub-port still has its own tag only, and a parent only what has none.
#[test]
fn tags_hold_without_port_security() {
    let mut world = World::new();
    for port in [TRUNK, SUB, BLUE] {
        world.cloud.ports[port].port_security = false;
    }
    world.network = world.cloud.host(0);
    world.set = compile(&world.network, &world.numbers);
    let cloud = &world.cloud;
    let anything = world.packet(SUB, cloud.address(FAR), HTTP).with(Field::Ipv4Src, cloud.address(NEAR));
    assert!(world.says(&anything).0.contains("with VNI 5002"), "{:?}", world.says(&anything));
    assert!(world.says(&anything.clone().in_vlan(OTHER_VLAN)).0.starts_with("dropped in classify: port trunk"));
    assert_eq!(world.says(&world.arp(SUB, cloud.address(FAR))).1, [Some(SUB_VLAN)]);
    for kind in [0x8100, 0x88a8] {
        let twice = world.twice(SUB, FAR, kind);
        assert_eq!(world.says(&twice).0, "dropped in classify: port trunk: it has two tags", "{kind:#x}");
        // What Open vSwitch sees of such a frame from elsewhere once a tag is off it.
        let popped = world.twice(BLUE, TRUNK, kind);
        assert!(
            world.says(&popped).0.starts_with("dropped in output: port trunk: a frame with a second tag"),
            "{kind:#x}"
        );
    }
    let down = world.packet(TRUNK, cloud.address(SUB), HTTP);
    assert_eq!(world.says(&down), said("delivered to port trunk.7", Some(SUB_VLAN)));
}

/// The sub-port is told what is too large for the next network, by the foot that it knows, and with its tag.
#[test]
fn a_sub_port_is_told_what_is_too_large() {
    let world = World::new();
    let cloud = &world.cloud;
    let path = world.path(&world.packet(SUB, cloud.address(LITTLE), ECHO));
    assert!(path.too_large().is_some_and(|(octets, _)| octets == SMALL + 14), "{path}");
    let told = |source: usize| {
        let IpAddr::V4(from) = IpAddr::from(cloud.address(source)) else { panic!("IPv4") };
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(from.octets(), [10, 0, 3, 31], 63).udp(1, 2);
        builder.write(&mut frame, &[7; 1400]).unwrap();
        let handed = Handed {
            in_port: world.numbers.of(&cloud.ports[SUB]).unwrap(),
            network: cloud.networks[3].vni.get(),
            router: cloud.routers[0].key,
            frame: &frame,
        };
        tell(&world.network, &world.numbers, &handed).unwrap()
    };
    let sub = told(SUB);
    assert_eq!(sub.exit.tag.map(|vlan| vlan.get()), Some(SUB_VLAN));
    assert_eq!(sub.frame[..12], [cloud.mac(SUB).bytes(), cloud.routers[0].interfaces[1].mac.bytes()].concat());
    let parent = told(TRUNK);
    assert_eq!((parent.exit.tag, &parent.frame[..6]), (None, &cloud.mac(TRUNK).bytes()[..]));
}

/// A trunk has flows of its own while it has sub-ports and not before; one more costs what is its own, and the parent's are not made twice.
#[test]
fn flows_come_and_go_with_sub_ports() {
    let cloud = cloud();
    let without = |gone: &[usize]| {
        let mut less = cloud.clone();
        less.ports.retain(|port| !gone.iter().any(|number| cloud.ports[*number].id == port.id));
        less
    };
    let none = without(&[SUB, LONE]);
    let tags = |action: &Action| matches!(action, Action::PopVlan | Action::PushVlan(_));
    let set = compile(&none.host(0), &none.numbers(0));
    assert!(!set.flows().any(|flow| flow.actions.iter().any(tags)), "no tag where no trunk is");
    let mut compiler = Compiler::new(HostNetwork::empty(host_id(0), endpoint(0)));
    compiler.update(none.host(0), &none.numbers(0));
    // The number is the parent's: nothing is plugged in.
    for (number, gone) in [(SUB, &[LONE][..]), (LONE, &[])] {
        compiler.edit(vec![Edit::PutPort(Box::new(cloud.ports[number].clone()))]);
        let now = without(gone);
        assert!(*compiler.flows() == compile(&now.host(0), &now.numbers(0)), "{number}");
    }
    let moved = PortNo(99);
    compiler.edit(vec![Edit::Plug(cloud.ports[TRUNK].id, Some(moved))]);
    let mut numbers = cloud.numbers(0);
    numbers.ports.insert(cloud.ports[TRUNK].id, moved);
    assert!(*compiler.flows() == compile(&cloud.host(0), &numbers), "another number of the parent");
    let edits = [SUB, LONE].map(|number| Edit::RemovePort(cloud.ports[number].id));
    compiler.edit(edits.into_iter().chain([Edit::Plug(cloud.ports[TRUNK].id, Some(PortNo(10)))]).collect());
    assert!(*compiler.flows() == set, "nothing is left of them");
}

/// The switch takes the flows, and says of packets with every tag what the model says.
#[test]
fn the_model_and_the_switch_agree() {
    require!(Need::Root, Need::OpenVswitch);
    let world = World::new();
    let cloud = &world.cloud;
    let rig = Rig::start(cloud, 0).unwrap();
    let set = rig.install(cloud).unwrap();
    let changes = dataplane::diff(&set, &rig.installed().unwrap());
    assert!(changes.is_empty(), "{changes:#?}");
    let mut packets = Vec::new();
    for from in [TRUNK, SUB, LONE, NEAR, BLUE] {
        let port = &cloud.ports[from];
        for to in (0..cloud.ports.len()).filter(|to| *to != from) {
            packets.extend([ECHO, HTTP].iter().filter_map(|payload| {
                Packet::from_port(&world.network, &world.numbers, port, cloud.address(to), *payload).ok()
            }));
            packets.push(world.arp(from, cloud.address(to)));
        }
        for last in [1, 12, 99] {
            packets.push(world.arp(from, Ipv4Addr::new(10, 0, 1, last)));
            packets.push(world.arp(from, Ipv4Addr::new(10, 0, 2, last)));
        }
        if from != LONE {
            packets.push(world.packet(from, Ipv4Addr::new(10, 0, 1, 1), ECHO));
            packets.push(world.packet(from, Ipv4Addr::new(10, 0, 2, 1), ECHO));
            let six: IpAddr = "fd00:0:0:2::1".parse().unwrap();
            packets.push(world.packet(from, six, Payload::ping(six)));
        }
        packets.push(Packet::dhcp_discover(rig.number(cloud, from), port.mac).sent_by(port));
    }
    packets.extend([0x8100, 0x88a8].into_iter().flat_map(|kind| {
        [(SUB, FAR), (SUB, TRUNK), (BLUE, TRUNK), (TRUNK, SUB)].map(|(from, to)| world.twice(from, to, kind))
    }));
    let tagged: Vec<Packet> =
        packets.iter().flat_map(|packet| [SUB_VLAN, OTHER_VLAN].map(|vlan| packet.clone().in_vlan(vlan))).collect();
    rig.ask_all(&set, &[packets, tagged].concat());
}

/// A guest with a trunk: a switch of its own behind its tap, and an interface for each VLAN, which is its machine to the tests.
struct Guest {
    inside: Switch,
}

impl Guest {
    async fn start(host: &Host, port: &Port) -> Result<Self> {
        let inside = Switch::start()?;
        inside.vsctl(&["add-br", "dc", "--", "set", "bridge", "dc", "datapath_type=netdev"])?;
        let tap = port.tap_name();
        host.switch.namespace().add_veth(&tap, inside.namespace(), "tap")?;
        inside.add_port("dc", "tap")?;
        // What has no tag on the tap is VLAN 4000 inside.
        inside.vsctl(&["set", "port", "tap", "vlan_mode=native-untagged", "tag=4000", "trunks=7,8,9"])?;
        let binding = port.binding.as_ref().context("plugged in")?;
        let machine = binding.machine;
        host.host.ensure_port(&TapPort { tap, port: port.id, machine, mac: port.mac }).await?;
        Ok(Self { inside })
    }

    /// The interface in a VLAN, or the one that sends without a tag.
    fn interface(&self, name: &str, vlan: Option<u16>, mac: Mac) -> Result<Machine> {
        let namespace = Namespace::new()?;
        self.inside.plug("dc", name, &namespace, &mac.to_string())?;
        self.inside.vsctl(&["set", "port", name, &format!("tag={}", vlan.unwrap_or(4000))])?;
        namespace.set_mtu("eth0", 1450)?;
        namespace.run(&["sysctl", "-qw", "net.ipv6.conf.eth0.accept_dad=0"])?;
        let machine = Machine { namespace };
        machine.restart_link()?;
        Ok(machine)
    }
}

/// An answer of the host's name service in short.
fn look_up(machine: &Machine, more: &[&str]) -> Result<String> {
    let words = ["dig", "@169.254.169.254", "+short", "+tries=3", "+time=5", "far", "A"];
    Ok(machine.namespace.run(&[&words[..], more].concat())?.trim().to_owned())
}

fn start_host(host: usize) -> impl Future<Output = Result<Host>> {
    Host::start(HostNetwork::empty(host_id(host), endpoint(host)))
}

/// A guest gets addresses for its interfaces, each from its own network, reaches others there and by routers, is judged by each port's own rules, and
/// has nothing of VLANs that it was not given.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_has_an_interface_for_each_vlan() -> Result<()> {
    require!(
        Need::Root,
        Need::OpenVswitch,
        Need::Program("ping"),
        Need::Program("busybox"),
        Need::Program("curl"),
        Need::Program("dig"),
        Need::Program("ethtool")
    );
    let cloud = cloud();
    let hosts = [start_host(0).await?, start_host(1).await?];
    hosts[0].link(&hosts[1])?;
    let guest = Guest::start(&hosts[0], &cloud.ports[TRUNK]).await?;
    let mut others = Vec::new();
    for port in [NEAR, BLUE, FAR, BLUE_FAR, RED_FAR, STRANGER, LITTLE] {
        others.push(hosts[usize::from((FAR..=STRANGER).contains(&port))].plug(&cloud.ports[port]).await?);
    }
    let [near, blue, far, blue_far, red_far, stranger, little] = others.as_slice() else {
        anyhow::bail!("seven machines")
    };
    for (number, host) in hosts.iter().enumerate() {
        host.program(cloud.host(number)).await?;
    }
    let parent = guest.interface("plain", None, cloud.mac(TRUNK))?;
    let sub = guest.interface("vlan7", Some(SUB_VLAN), cloud.mac(SUB))?;
    let lone = guest.interface("vlan9", Some(LONE_VLAN), cloud.mac(LONE))?;
    // The others are configured by hand, what is behind the trunk by what the host says.
    for (machine, port, network) in [
        (near, NEAR, 2),
        (blue, BLUE, 1),
        (far, FAR, 2),
        (blue_far, BLUE_FAR, 1),
        (red_far, RED_FAR, 2),
        (stranger, STRANGER, 2),
        (little, LITTLE, 3),
    ] {
        machine.configure(cloud.address(port), Ipv4Addr::new(10, 0, network, 1))?;
    }
    for (machine, port) in [(&parent, TRUNK), (&sub, SUB), (&lone, LONE)] {
        machine.ask_dhcp().with_context(|| cloud.ports[port].name.clone())?;
        let has = machine.namespace.run(&["ip", "-4", "address", "show", "dev", "eth0"])?;
        assert!(has.contains(&format!("{}/24", cloud.address(port))), "{has}");
    }
    for (name, machine, to) in [
        ("sub to near", &sub, NEAR),
        ("sub to far", &sub, FAR),
        ("far to sub", far, SUB),
        ("sub by router", &sub, BLUE_FAR),
        ("blue to sub", blue, SUB),
        ("sub to parent", &sub, TRUNK),
        ("parent to sub", &parent, SUB),
        ("parent to blue", &parent, BLUE_FAR),
        ("lone to red", &lone, RED_FAR),
        ("red to lone", red_far, LONE),
    ] {
        assert_eq!(machine.pings(cloud.address(to))?, 3, "{name}");
    }
    for network in [1, 2] {
        assert_eq!(sub.pings(Ipv4Addr::new(10, 0, network, 1))?, 3, "the router's foot in network {network}");
        assert_eq!(parent.pings(Ipv4Addr::new(10, 0, network, 1))?, 3, "the router's foot in network {network}");
    }
    let listener = sub.listen(80)?;
    assert!(far.reaches(cloud.address(SUB), &listener)?, "a member");
    assert!(parent.reaches(cloud.address(SUB), &listener)?, "a member on the same tap");
    assert!(!stranger.intrudes(cloud.address(SUB), &listener)?, "nobody's member");
    assert!(!lone.leaks(cloud.address(FAR))?, "the same addresses on another network");

    hear_nothing_of_other_vlans(&guest, &cloud)?;
    ask_the_host(&sub, &cloud)?;
    speak_ipv6(&sub, &parent, &cloud)
}

/// The sub-port's own addresses do not help in a VLAN that the trunk does not have, nor without a tag.
fn hear_nothing_of_other_vlans(guest: &Guest, cloud: &Cloud) -> Result<()> {
    for (name, vlan) in [("vlan8", Some(OTHER_VLAN)), ("bare", None)] {
        let thief = guest.interface(name, vlan, cloud.mac(SUB))?;
        thief.configure(cloud.address(SUB), Ipv4Addr::new(10, 0, 2, 1))?;
        assert!(!thief.leaks(cloud.address(FAR))? && !thief.leaks(Ipv4Addr::new(10, 0, 2, 1))?, "{name}");
    }
    Ok(())
}

/// What the host answers itself: names, metadata, and what is too large for the next network.
fn ask_the_host(sub: &Machine, cloud: &Cloud) -> Result<()> {
    assert_eq!(look_up(sub, &[])?, cloud.address(FAR).to_string());
    assert_eq!(look_up(sub, &["+tcp"])?, cloud.address(FAR).to_string());
    let status = ["curl", "--silent", "--max-time", "10", "--output", "/dev/null", "--write-out", "%{http_code}"];
    let status = [&status[..], &["http://169.254.169.254/"]].concat();
    assert_eq!(sub.namespace.run(&status)?.trim(), "503", "the agent was not told of the machine");

    let told = |to: Ipv4Addr| sub.namespace.run(&["ip", "route", "get", &to.to_string()]);
    let large = ["ping", "-q", "-c", "1", "-W", "1", "-M", "do", "-s", "1422", &cloud.address(LITTLE).to_string()]
        .map(str::to_owned);
    wait_for("the sub-port to be told of the smaller network", LIMIT, || {
        let _refused = sub.namespace.run(&large.iter().map(String::as_str).collect::<Vec<_>>());
        Ok(told(cloud.address(LITTLE))?.contains("mtu 1400").then_some(()))
    })?;
    Ok(())
}

fn speak_ipv6(sub: &Machine, parent: &Machine, cloud: &Cloud) -> Result<()> {
    let (addresses, _) = sub.ask_ipv6()?;
    assert_eq!(addresses, [cloud.address6(SUB).context("IPv6")?]);
    let (addresses, _) = parent.ask_ipv6()?;
    assert_eq!(addresses, [cloud.address6(TRUNK).context("IPv6")?]);
    let (six, gateway): (IpAddr, IpAddr) = (cloud.address6(TRUNK).context("IPv6")?.into(), "fd00:0:0:2::1".parse()?);
    assert_eq!((sub.pings(six)?, sub.pings(gateway)?), (3, 3), "by IPv6");
    Ok(())
}
