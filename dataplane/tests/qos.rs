//! Quality of service of ports: what the model says, that Open vSwitch holds the meters and says the same, and that real packets above a limit are
//! dropped in both directions and both versions of IP, with one limit in a direction and with either of two.

#[cfg(test)]
mod hosts;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod topology;

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result};
use basalt_tests::process::wait_for;
use basalt_tests::require;
use basalt_tests::skip::Need;
use dataplane::table::Table;
use dataplane::trace::ofproto::{Report, arguments, compare};
use dataplane::trace::{Connection, Packet, Payload};
use dataplane::{diff, trace};
use hosts::{Host, Machine};
use model::qos::{DscpMark, Limit, Limits, Qos};
use model::security::{Direction, Ethertype, Protocol, Remote};
use model::spec::HostNetwork;
use rig::{BRIDGE, Rig};
use topology::{Cloud, VXLAN, endpoint, host_id, udp};

/// What is sent at once, and the least that arrives of it without a limit.
const SENT: usize = 60;
const MOST: usize = 45;
/// Octets of each: all together 480 kilobits and more.
const OCTETS: usize = 1000;

/// A sender and a receiver on one network.
fn pair() -> Cloud {
    let mut cloud = Cloud::default();
    let network = cloud.network("blue", "10.0.1.0/24");
    cloud.ipv6(network, "fd00:0:0:1::/64");
    let group = cloud.group("all");
    cloud.rule_of(Ethertype::IPv6, group, Direction::Egress, Protocol::Any, Remote::Any);
    cloud.allow(group, udp(1, 65_535), Remote::Any);
    cloud.allow6(group, udp(1, 65_535), Remote::Any);
    cloud.port("sender", network, 0, 11, &[group]);
    cloud.port("receiver", network, 0, 12, &[group]);
    cloud
}

#[cfg(test)]
fn limit(rate: u32) -> Limit {
    Limit::new(rate, Some(rate)).unwrap()
}

#[cfg(test)]
fn kbps(rate: u32) -> Limits {
    Limits { kbps: Some(limit(rate)), pps: None }
}

#[cfg(test)]
fn pps(rate: u32) -> Limits {
    Limits { kbps: None, pps: Some(limit(rate)) }
}

/// Limits and marks are on the way of a packet in the users' words; ports without them have none; Open vSwitch holds the meters and agrees.
#[test]
fn the_model_and_the_switch_agree_on_limits_and_marks() {
    require!(Need::Root, Need::OpenVswitch);
    let mut cloud = pair();
    let open = cloud.port("open", 0, 0, 13, &[]);
    cloud.ports[open].port_security = false;
    let (tagged, twice) = (cloud.port("tagged", 0, 0, 14, &[0]), cloud.port("twice", 0, 0, 15, &[0]));
    cloud.trunk(tagged, 1, 7);
    let rig = Rig::start(&cloud, 0).unwrap();
    let dscp_mark = DscpMark::try_from(46).ok();
    for port in [0, open] {
        cloud.ports[port].qos = Qos { egress: kbps(1000), ingress: pps(400), dscp_mark, ..Qos::default() };
    }
    for port in [tagged, twice] {
        let both = Limits { kbps: Some(limit(1000)), pps: Some(limit(400)) };
        cloud.ports[port].qos = Qos { egress: both, ingress: both, dscp_mark, ..Qos::default() };
    }
    let set = rig.install(&cloud).unwrap();
    let changes = diff(&set, &rig.installed().unwrap());
    assert!(changes.is_empty(), "{changes:#?}");
    let (host, numbers) = (cloud.host(0), cloud.numbers(0));
    for (from, to) in [(0, 1), (1, 0), (open, 0), (twice, 1), (1, twice), (twice, 0), (tagged, twice), (open, tagged)] {
        for at in [IpAddr::V4(cloud.address(to)), cloud.address6(to).unwrap().into()] {
            let payload = Payload::Udp { source: 9, target: 5000 };
            let packet = Packet::from_port(&host, &numbers, &cloud.ports[from], at, payload).unwrap();
            let path = trace(&set, &packet, Connection::New);
            assert!(path.reaches(cloud.ports[to].key), "{path}");
            let effects: Vec<&str> = path.hops.iter().flat_map(|hop| &hop.effects).map(String::as_str).collect();
            let times = |effect: &str| effects.iter().filter(|other| **other == effect).count();
            let (sent, received) = (cloud.ports[from].qos.egress, cloud.ports[to].qos.ingress);
            let limited = from != 1;
            let of_bits = [sent, received].iter().filter(|limits| limits.kbps.is_some()).count();
            assert_eq!(times("drops what exceeds 1000 kilobits a second"), of_bits, "{path}");
            let of_packets = [sent, received].iter().filter(|limits| limits.pps.is_some()).count();
            assert_eq!(times("drops what exceeds 400 packets a second"), of_packets, "{path}");
            let seconds =
                [sent, received].iter().filter(|limits| limits.kbps.is_some() && limits.pps.is_some()).count();
            let asked = path.hops.iter().filter(|hop| hop.table == Table::Limit.number()).count();
            assert_eq!(asked, seconds, "{path}");
            assert_eq!(times("DSCP mark: 46") == 1, limited, "{path}");
            let said = rig.switch.appctl(&arguments(BRIDGE, &packet, Connection::New)).unwrap();
            let report = Report::parse(&said, Some(VXLAN.0)).unwrap();
            assert_eq!(compare(&set, &path, &report), None, "{path}\n{said}");
            let mark = if at.is_ipv4() { "tos=0xb8/0xfc" } else { "tclass=0xb8/0xfc" };
            assert_eq!(said.contains(mark), limited, "{said}");
        }
    }
}

/// How many of the datagrams that the sender sends at once arrive, until so many have or nothing comes for so long.
#[cfg(test)]
fn arriving((sender, receiver): (&Machine, &Machine), at: IpAddr, enough: usize, silence: Duration) -> Result<usize> {
    let any = if at.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let bind = |machine: &Machine| machine.namespace.enter(|| UdpSocket::bind(any));
    let (from, to) = (bind(sender)??, bind(receiver)??);
    to.set_read_timeout(Some(silence))?;
    let target = (at, to.local_addr()?.port());
    let counter = std::thread::spawn(move || {
        let mut octets = [0; OCTETS];
        (0..enough).take_while(|_| to.recv(&mut octets).is_ok()).count()
    });
    for _ in 0..SENT {
        from.send_to(&[7; OCTETS], target)?;
    }
    counter.join().ok().context("count datagrams")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_exceeds_a_limit_is_dropped() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ethtool"));
    let mut cloud = pair();
    let host = Host::start(HostNetwork::empty(host_id(0), endpoint(0))).await?;
    let mut machines = Vec::new();
    for (index, port) in cloud.ports.iter().enumerate() {
        let machine = host.plug(port).await?;
        let address = cloud.address6(index).context("IPv6 address")?;
        machine.namespace.add_address("eth0", &format!("{}/24", cloud.address(index)))?;
        machine.namespace.run(&["ip", "address", "add", &format!("{address}/64"), "dev", "eth0", "nodad"])?;
        machines.push(machine);
    }
    // Far below what is sent at once, so that a slow machine that lets seconds go by sees the difference too; and with the other limit far above it.
    let [few_packets, few_bits] = [pps(5), kbps(40)];
    let much = Some(limit(1_000_000));
    let few_of_two = [Limits { pps: much, ..few_bits }, Limits { kbps: much, ..few_packets }];
    let few = [few_packets, few_bits].into_iter().chain(few_of_two);
    let kinds =
        few.flat_map(|limits| [Qos { egress: limits, ..Qos::default() }, Qos { ingress: limits, ..Qos::default() }]);
    let targets = [IpAddr::V4(cloud.address(1)), cloud.address6(1).context("IPv6 address")?.into()];
    let many = Limits { kbps: much, pps: much };
    let free = [Qos::default(), Qos { egress: many, ingress: many, ..Qos::default() }];
    for qos in free.into_iter().chain(kinds) {
        cloud.ports[0].qos = Qos { ingress: Limits::default(), ..qos };
        cloud.ports[1].qos = Qos { egress: Limits::default(), ..qos };
        host.program(cloud.host(0)).await?;
        for at in targets {
            // The first rounds find the neighbour and set the datapath up.
            let (ends, patience) = ((&machines[0], &machines[1]), Duration::from_secs(10));
            let passes = || anyhow::Ok((arriving(ends, at, 1, Duration::from_secs(1))? == 1).then_some(()));
            wait_for("the first datagram", patience, passes)?;
            if free.contains(&qos) {
                assert_eq!(arriving(ends, at, MOST, patience)?, MOST, "to {at} with {qos:?}");
                continue;
            }
            // What was sent before is forgotten by the meter after a second: then some pass, and far from all.
            let count = arriving(ends, at, SENT, Duration::from_secs(1))?;
            assert!(count < SENT / 2, "{count} of {SENT} to {at} with {qos:?}");
            wait_for("a datagram within the limit", patience, passes)?;
        }
    }
    Ok(())
}
