//! Our flows in a real Open vSwitch: it takes them all, holds what was sent, and says of packets what the model says.

#[cfg(test)]
mod rig;
#[cfg(test)]
mod topology;

use std::net::{Ipv4Addr, Ipv6Addr};

use basalt_tests::require;
use basalt_tests::skip::Need;
use dataplane::diff;
use dataplane::trace::{Connection, Packet, Payload};
use model::Mac;
use model::security::Ethertype;
use openflow::flow::Field;
use rig::Rig;
use topology::random::{self, Random};
use topology::{Cloud, VXLAN, dual_stack, endpoint, two_subnets};

/// The switch takes every flow and group, and what it dumps back equals what was sent: nothing is left to change. A rule more or less, installed
/// over it, leaves nothing to change either.
#[test]
fn the_switch_holds_what_was_compiled() {
    require!(Need::Root, Need::OpenVswitch);
    let mut cloud = two_subnets();
    let rig = Rig::start(&cloud, 0).unwrap();
    for round in 0..3 {
        let set = rig.install(&cloud).unwrap();
        let changes = diff(&set, &rig.installed().unwrap());
        assert!(changes.is_empty(), "{changes:#?}");
        assert_eq!(changes.unchanged_flows, set.flows().len());
        cloud.groups[round % 2].rules.pop();
        cloud.ports.pop();
    }
}

/// Of every kind of packet in the two-subnet cloud, with every state of the connection, both say the same.
#[test]
fn the_model_and_the_switch_agree_on_known_packets() {
    require!(Need::Root, Need::OpenVswitch);
    let cloud = two_subnets();
    let rig = Rig::start(&cloud, 0).unwrap();
    let set = rig.install(&cloud).unwrap();
    let (network, numbers) = (cloud.host(0), cloud.numbers(0));
    let payloads = [
        Payload::Tcp { source: 1, target: 80 },
        Payload::Tcp { source: 1, target: 5432 },
        Payload::Udp { source: 67, target: 68 },
        Payload::Udp { source: 9, target: 8500 },
        Payload::Icmp { kind: 8, code: 0 },
        Payload::Protocol(47),
    ];
    let states =
        [Connection::New, Connection::Established, Connection::Reply, Connection::Related, Connection::Invalid];
    for from in [0, 2, 4] {
        let port = &cloud.ports[from];
        let number = rig.number(&cloud, from);
        let others = (0..cloud.ports.len()).map(|port| cloud.address(port));
        let routers =
            ["10.0.1.1", "10.0.2.1", "10.0.2.99", "8.8.8.8"].map(|address| address.parse::<Ipv4Addr>().unwrap());
        for to in others.chain(routers) {
            rig.ask(&set, &Packet::arp_request(number, (port.mac, cloud.address(from)), to), Connection::New);
            for payload in payloads {
                let packet = Packet::from_port(&network, &numbers, port, to, payload).unwrap();
                let tracked = if matches!(payload, Payload::Tcp { .. }) { &states[..] } else { &states[..1] };
                for connection in tracked {
                    rig.ask(&set, &packet, *connection);
                }
            }
        }
        rig.ask(&set, &Packet::dhcp_discover(number, port.mac), Connection::New);
        let broadcast = Packet::ip(
            number,
            (port.mac, Mac::BROADCAST),
            (cloud.address(from), Ipv4Addr::new(10, 0, 1, 255)),
            payloads[3],
        );
        rig.ask(&set, &broadcast, Connection::New);
        rig.ask(&set, &broadcast.with(Field::EthSrc, [2, 0, 0, 0, 0, 9]), Connection::New);
    }
}

/// The same over IPv6: packets to neighbours, through the router and to it, neighbour discovery true and false, questions to the agent.
#[test]
fn the_model_and_the_switch_agree_on_ipv6_packets() {
    require!(Need::Root, Need::OpenVswitch);
    let cloud = dual_stack();
    let rig = Rig::start(&cloud, 0).unwrap();
    let set = rig.install(&cloud).unwrap();
    let changes = diff(&set, &rig.installed().unwrap());
    assert!(changes.is_empty(), "{changes:#?}");
    let (network, numbers) = (cloud.host(0), cloud.numbers(0));
    let new = Connection::New;
    let payloads = [
        Payload::Tcp { source: 1, target: 80 },
        Payload::Tcp { source: 1, target: 5432 },
        Payload::Udp { source: 547, target: 546 },
        Payload::Udp { source: 9, target: 8500 },
        Payload::Icmp { kind: 128, code: 0 },
        Payload::Icmp { kind: 143, code: 0 },
        Payload::Protocol(47),
    ];
    for from in [0, 2, 4] {
        let (port, number) = (&cloud.ports[from], rig.number(&cloud, from));
        let (mac, own) = (port.mac, port.mac.link_local());
        let others =
            (0..cloud.ports.len()).flat_map(|other| [cloud.address6(other).unwrap(), cloud.mac(other).link_local()]);
        let feet = cloud.routers[0].interfaces.iter().flat_map(|foot| foot.ipv6_addresses());
        let nobody = ["fd00:0:0:1::99", "fd00:0:0:2::99", "2001:db8::1"].map(|address| address.parse().unwrap());
        for to in others.chain(feet).chain(nobody) {
            for sender in [own, cloud.address6(from).unwrap(), Ipv6Addr::UNSPECIFIED, cloud.mac(1).link_local()] {
                let solicit = Packet::neighbour_solicit(number, (mac, sender), to);
                rig.ask(&set, &solicit, new);
                rig.ask(&set, &solicit.with(Field::NdSll, [2, 9, 9, 9, 9, 9]), new);
                rig.ask(&set, &Packet::neighbour_advert(number, (mac, sender), to), new);
            }
            for payload in payloads {
                let packet = Packet::from_port(&network, &numbers, port, to, payload).unwrap();
                for connection in [new, Connection::Established, Connection::Reply] {
                    rig.ask(&set, &packet, connection);
                }
                rig.ask(&set, &packet.with(Field::IpTtl, 1), new);
            }
        }
        for sender in [own, Ipv6Addr::UNSPECIFIED] {
            rig.ask(&set, &Packet::router_solicit(number, (mac, sender)), new);
            rig.ask(&set, &Packet::router_advert(number, (mac, sender)), new);
        }
        rig.ask(&set, &Packet::dhcp6_solicit(number, mac), new);
    }
}

/// The same for random clouds and packets: from ports and out of tunnels, honest and spoofed.
#[test]
fn the_model_and_the_switch_agree_on_random_clouds() {
    require!(Need::Root, Need::OpenVswitch);
    for seed in 1..=6 {
        let mut random = Random::new(seed);
        let cloud = random::cloud(&mut random);
        let rig = Rig::start(&cloud, 0).unwrap();
        let set = rig.install(&cloud).unwrap();
        let changes = diff(&set, &rig.installed().unwrap());
        assert!(changes.is_empty(), "seed {seed}: {changes:#?}");
        for _ in 0..60 {
            let (packet, connection) = (
                random_packet(&cloud, &rig, &mut random),
                *random.pick(&[Connection::New, Connection::Reply, Connection::Established]),
            );
            rig.ask(&set, &packet, connection);
        }
    }
}

/// A packet of any port of the cloud: put in at its own port where that is on this host, else arriving by tunnel on a random network.
#[cfg(test)]
fn random_packet(cloud: &Cloud, rig: &Rig, random: &mut Random) -> Packet {
    let (from, to) = (random.below(cloud.ports.len()), random.below(cloud.ports.len()));
    let feet = cloud.routers.iter().flat_map(|router| &router.interfaces).map(|foot| foot.mac);
    let macs: Vec<Mac> = cloud.ports.iter().map(|port| port.mac).chain(feet).chain([Mac::BROADCAST]).collect();
    let target = if random.once_in(2) { cloud.mac(to) } else { *random.pick(&macs) };
    let source = if random.once_in(6) { *random.pick(&macs[..macs.len() - 1]) } else { cloud.mac(from) };
    let number = rig.numbers.of(&cloud.ports[from]).unwrap_or(VXLAN);
    let plain = (cloud.address(from), cloud.address(to));
    let six = cloud.address6(from).zip(cloud.address6(to)).filter(|_| random.once_in(2));
    let packet = match six {
        Some((_, at)) if random.once_in(4) => {
            let sender = *random.pick(&[Ipv6Addr::UNSPECIFIED, source.link_local(), cloud.mac(from).link_local()]);
            match random.below(4) {
                0 => Packet::neighbour_advert(number, (source, sender), at),
                1 => Packet::router_solicit(number, (source, sender)),
                _ => Packet::neighbour_solicit(number, (source, sender), at),
            }
        }
        Some(addresses) => Packet::ip(number, (source, target), addresses, random.payload(Ethertype::IPv6)),
        None if random.once_in(6) => Packet::arp_request(number, (source, plain.0), plain.1),
        None => Packet::ip(number, (source, target), plain, random.payload(Ethertype::IPv4)),
    };
    let vni = random.pick(&cloud.networks).vni.get();
    match number {
        VXLAN => packet.out_of_tunnel(VXLAN, (endpoint(random.below(3)), vni)),
        _ if random.once_in(8) => packet.in_vlan(u16::try_from(random.below(20)).unwrap() + 1),
        _ => packet.sent_by(&cloud.ports[from]),
    }
}
