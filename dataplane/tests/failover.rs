//! The gateway of a router dies and comes back: in the model, in a real switch, and with real packets between three hosts that watch each other.

#[cfg(test)]
mod hosts;
#[cfg(test)]
mod outside;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod topology;
#[cfg(test)]
mod world;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use basalt_tests::ovs::Switch;
use basalt_tests::require;
use basalt_tests::skip::Need;
use dataplane::compile::Stations;
use dataplane::peer::{Peer, Peers};
use dataplane::trace::{Connection, Packet, Payload, Verdict};
use dataplane::{Compiler, PortNumbers, trace};
use hosts::{Host, Machine};
use model::Mac;
use model::security::Remote;
use openflow::flow::{Field, PortNo};
use outside::{DC, FAR, GATEWAY, GATEWAY_AT, eventually, plug};
use rig::Rig;
use tokio::time::sleep;
use topology::{Cloud, PING, VXLAN, endpoint, host_id, tcp};
use world::World;

const HOSTS: usize = 3;
const ON_FIRST: usize = 0;
const ON_SECOND: usize = 1;
const ON_THIRD: usize = 2;
const FLOATING: usize = 3;
const OUTER: usize = 4;
const MAIN: usize = 0;
const MAIN_AT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 40);
const MAIN_MAC: Mac = Mac::new([2, 3, 0, 0, 0, 40]);
const HTTP: Payload = Payload::Tcp { source: 40_000, target: 80 };
const ECHO: Payload = Payload::Icmp { kind: 8, code: 0 };

/// Of the three ports of blue one is on each host, and a fourth, with a floating IP, on the second. Its router leads out to VLAN 100 by host 0, then
/// by host 1. outer-1 is on the network outside, on host 1.
fn cloud() -> Cloud {
    let mut cloud = Cloud::default();
    let blue = cloud.network("blue", "10.0.1.0/24");
    let outer = cloud.network("outer", "203.0.113.0/24");
    cloud.provide(outer, "dc", Some(100));
    cloud.router("main", &[blue]);
    let all = cloud.group("all");
    cloud.allow(all, PING, Remote::Any);
    cloud.allow(all, tcp(80, 80), Remote::Any);
    let plugged = [
        ("blue-1", blue, 0, 11),
        ("blue-2", blue, 1, 12),
        ("blue-3", blue, 2, 13),
        ("blue-4", blue, 1, 14),
        ("outer-1", outer, 1, 60),
    ];
    for (name, network, host, last) in plugged {
        cloud.port(name, network, host, last, &[all]);
    }
    cloud.lead_out(MAIN, outer);
    cloud.share(MAIN, &[0, 1], 40);
    cloud.float(MAIN, FLOATING, 50);
    cloud
}

/// The OpenFlow port of the tunnel to a host.
fn peer_port(host: usize) -> PortNo {
    PortNo(100 + u32::try_from(host).unwrap_or(0))
}

/// What hosts know of each other, besides the cloud.
#[derive(Clone, Default)]
struct Life {
    /// Hosts that are silent.
    silent: BTreeSet<usize>,
    /// Hosts whose agent knows nothing of this.
    mute: BTreeSet<usize>,
}

impl Life {
    fn without(silent: &[usize]) -> Self {
        Self { silent: silent.iter().copied().collect(), mute: BTreeSet::new() }
    }
}

/// The hosts that a host watches.
fn watched(cloud: &Cloud, host: usize) -> BTreeSet<Ipv4Addr> {
    Compiler::new(cloud.host(host)).peers()
}

impl World {
    #[cfg(test)]
    fn new(cloud: Cloud, life: &Life) -> Self {
        let outer = cloud.networks.last().unwrap().id;
        let numbers = |cloud: &Cloud, host: usize| {
            let watched = watched(cloud, host);
            let others = (0..HOSTS).filter(|other| watched.contains(&endpoint(*other)));
            let peer = |other: usize| {
                let is_heard = !life.mute.contains(&other);
                Peer { number: peer_port(other), is_heard, is_alive: is_heard && !life.silent.contains(&other) }
            };
            let peers: Peers = others.map(|other| (endpoint(other), peer(other))).collect();
            let stations = Stations::from([((outer, GATEWAY_AT.into()), GATEWAY)]);
            PortNumbers { stations, peers, ..cloud.numbers(host) }
        };
        Self::of(cloud, HOSTS, numbers)
    }

    /// Where a port leaves, and as whom.
    #[cfg(test)]
    fn leaves(&self, port: usize) -> Vec<(usize, Ipv4Addr)> {
        let ends = self.ends(self.host_of(port), &self.from(port, FAR, HTTP), Connection::New);
        let out = ends.iter().filter(|(_, end)| matches!(end.verdict, Verdict::Physical { .. }));
        out.map(|(host, end)| (*host, end.leaving.address(Field::Ipv4Src))).collect()
    }
}

fn asked() -> Packet {
    Packet::arp_request(DC, (GATEWAY, GATEWAY_AT), MAIN_AT).in_vlan(100)
}

/// Gateways watch each other and those that use them; a host that does neither watches nobody, nor does anybody where a router has one gateway.
#[test]
fn only_those_are_watched_whose_life_matters() {
    let mut cloud = cloud();
    let of = |hosts: &[usize]| hosts.iter().map(|host| endpoint(*host)).collect::<BTreeSet<_>>();
    assert_eq!(watched(&cloud, 0), of(&[1, 2]));
    assert_eq!(watched(&cloud, 1), of(&[0, 2]));
    assert_eq!(watched(&cloud, 2), of(&[0, 1]));
    assert_eq!(watched(&cloud, 3), of(&[]), "it has no port of the router's");
    cloud.share(MAIN, &[0], 40);
    assert_eq!(watched(&cloud, 0), of(&[]));
    cloud.share(MAIN, &[0, 200], 40);
    for host in 100..250 {
        cloud.port(&format!("more-{host}"), 0, host, u8::try_from(host).unwrap(), &[]);
    }
    let many = Compiler::new(cloud.host(0)).peers();
    let mut all: Vec<usize> = vec![1, 2, 200];
    all.extend((100..250).filter(|host| *host != 200));
    assert_eq!(many, of(&all));
}

/// Packets leave by the first gateway that is alive, from wherever; a floating IP stays where it is. Where the first was never heard, it is used as before.
#[test]
fn packets_leave_by_the_first_gateway_that_is_alive() {
    let world = World::new(cloud(), &Life::default());
    for port in [ON_FIRST, ON_SECOND, ON_THIRD] {
        assert_eq!(world.leaves(port), [(0, MAIN_AT)], "port {port}");
    }
    let path = trace(&world.sets[2], &world.from(ON_THIRD, FAR, HTTP), Connection::New).to_string();
    assert!(path.contains(&format!("host {} is alive", host_id(0))), "{path}");
    assert_eq!(world.leaves(FLOATING), [(1, Ipv4Addr::new(203, 0, 113, 50))]);

    let world = World::new(cloud(), &Life::without(&[0]));
    for port in [ON_SECOND, ON_THIRD] {
        assert_eq!(world.leaves(port), [(1, MAIN_AT)], "port {port}");
    }
    assert_eq!(world.leaves(FLOATING), [(1, Ipv4Addr::new(203, 0, 113, 50))]);
    let path = trace(&world.sets[2], &world.from(ON_THIRD, FAR, HTTP), Connection::New).to_string();
    assert!(path.contains(&format!("host {} is silent", host_id(0))), "{path}");
    assert_eq!(world.leaves(ON_FIRST), [(0, MAIN_AT)], "the first never gives way by itself");
    let near = Ipv4Addr::new(203, 0, 113, 60);
    assert_eq!(world.says(2, &world.from(ON_THIRD, near, HTTP), Connection::New), "host 1: delivered to port outer-1");

    let world = World::new(cloud(), &Life::without(&[0, 1]));
    let ends = trace(&world.sets[2], &world.from(ON_THIRD, FAR, HTTP), Connection::New);
    let said = ends.outcomes[0].verdict.to_string();
    assert!(said.contains("172.20.0.1"), "who hears nobody uses the first: {said}");

    let deaf = Life { silent: BTreeSet::from([0]), mute: BTreeSet::from([0]) };
    let world = World::new(cloud(), &deaf);
    assert_eq!(world.leaves(ON_THIRD), [(0, MAIN_AT)], "it may be an agent of before");
    assert_eq!(world.leaves(ON_SECOND), [(0, MAIN_AT)]);
    assert!(!world.says(1, &asked(), Connection::New).contains("answered"));
}

/// The address is answered for by one gateway, and so is what comes for it: on the other it goes past, as on any host.
#[test]
fn one_gateway_has_the_address() {
    let reply = Packet::ip(DC, (GATEWAY, MAIN_MAC), (FAR, MAIN_AT), ECHO).in_vlan(100);
    for (silent, home) in [(vec![], 0), (vec![0], 1)] {
        let world = World::new(cloud(), &Life::without(&silent));
        let answered: Vec<usize> =
            (0..HOSTS).filter(|host| world.says(*host, &asked(), Connection::New).contains("answered")).collect();
        // The first would answer, too; it is dead.
        let living: Vec<usize> = answered.into_iter().filter(|host| !silent.contains(host)).collect();
        assert_eq!(living, [home]);
        let fixed = world.cloud.address(ON_THIRD);
        let back = reply.clone().with(Field::CtNwSrc, fixed);
        assert_eq!(world.says(home, &back, Connection::Reply), "host 2: delivered to port blue-3");
        // A station on the standby's own host, which speaks to the router's address.
        let said = world.says(1, &world.from(OUTER, MAIN_AT, HTTP), Connection::New);
        let want = if home == 1 { "nobody behind the router has begun" } else { "sent out to physical network dc" };
        assert!(said.contains(want), "{said}");
    }
    let world = World::new(cloud(), &Life::default());
    let said = world.says(1, &asked(), Connection::New);
    assert!(said.contains("a gateway of the router before this host is alive, and does this"), "{said}");
    let sent =
        trace(&World::new(cloud(), &Life::without(&[0])).sets[2], &world.from(ON_THIRD, FAR, HTTP), Connection::New);
    let [outcome] = &sent.outcomes[..] else { panic!("{sent}") };
    let arrived = world.arrival(2, 1, outcome, world.cloud.networks[0].vni.get());
    let said = world.says(1, &arrived, Connection::New);
    assert!(said.contains("a gateway of the router before this host is alive"), "hosts that disagree: {said}");
}

/// A real switch says the same, for peers that it is told are alive or not.
#[test]
fn the_model_and_the_switch_agree() {
    require!(Need::Root, Need::OpenVswitch);
    for host in 0..HOSTS {
        let mut rig = Rig::start(&cloud(), host).unwrap();
        let first = World::new(cloud(), &Life::default());
        rig.add_peers(&first.numbers[host]).unwrap();
        for silent in [&[][..], &[0], &[0, 1]] {
            let world = World::new(cloud(), &Life::without(silent));
            rig.numbers = world.numbers[host].clone();
            rig.tell_peers().unwrap();
            let set = rig.install(&world.cloud).unwrap();
            let changes = dataplane::diff(&set, &rig.installed().unwrap());
            assert!(changes.is_empty(), "{changes:#?}");
            let mut packets = vec![asked(), Packet::ip(DC, (GATEWAY, MAIN_MAC), (FAR, MAIN_AT), ECHO).in_vlan(100)];
            for port in [ON_FIRST, ON_SECOND, ON_THIRD, FLOATING, OUTER] {
                for to in [FAR, MAIN_AT, GATEWAY_AT, Ipv4Addr::new(203, 0, 113, 60)] {
                    if port == OUTER && to == FAR {
                        continue;
                    }
                    let packet = world.from(port, to, HTTP);
                    let home = world.host_of(port);
                    if home == host {
                        packets.push(packet);
                        continue;
                    }
                    for outcome in trace(&world.sets[home], &packet, Connection::New).outcomes {
                        if let Verdict::Tunnelled { vni, .. } = outcome.verdict {
                            packets.push(world.arrival(home, host, &outcome, vni));
                            packets.push(outcome.leaving.out_of_tunnel(VXLAN, (endpoint(home), vni)));
                        }
                    }
                }
            }
            rig.ask_all(&set, &packets);
        }
    }
}

/// How often a thing is looked at, and the pause between.
const LOOKS_MAX: u32 = 600;
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// Pings that go on all the while, ten a second.
const PINGS: u32 = 300;

/// Looks at something a bounded number of times until it is so.
async fn until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    for _ in 0..LOOKS_MAX {
        if is_so()? {
            return Ok(());
        }
        sleep(LOOK_PAUSE).await;
    }
    bail!("never {what}")
}

/// Whether a host hears another one now.
fn hears(host: &Host, other: usize) -> Result<bool> {
    Ok(host.host.bridge().numbers()?.peers.get(&endpoint(other)).is_some_and(|peer| peer.is_alive))
}

/// Has the switch of the data centre count, by the host they come from: answers for the router's address, announcements of it, and pings from it.
fn count_at(dc: &Switch) -> Result<()> {
    let sent = format!("arp,arp_spa={MAIN_AT}");
    for host in 0..2 {
        let port = dc.ofport(&format!("host{}", endpoint(host).octets()[3]))?;
        for (number, what) in [
            (1, format!("{sent},arp_op=2")),
            (2, format!("{sent},arp_tpa={MAIN_AT},arp_op=1")),
            (3, format!("icmp,nw_src={MAIN_AT}")),
        ] {
            let cookie = 10 * (host + 1) + number;
            dc.ofctl(&[
                "add-flow",
                "dc",
                &format!("cookie={cookie},priority=10,in_port={port},{what},actions=NORMAL"),
            ])?;
        }
    }
    Ok(())
}

/// What it counted: answers, announcements and pings from a host.
fn counted(dc: &Switch, host: usize) -> Result<[u64; 3]> {
    let mut counts = [0; 3];
    for (number, count) in (1..).zip(&mut counts) {
        let cookie = format!("cookie={}/-1", 10 * (host + 1) + number);
        let text = dc.ofctl(&["dump-flows", "dc", &cookie])?;
        let packets = text.split("n_packets=").nth(1).and_then(|rest| rest.split(',').next());
        *count = packets.and_then(|packets| packets.parse().ok()).with_context(|| format!("no count: {text}"))?;
    }
    Ok(counts)
}

/// Has the station ask anew who has the router's address, and gives how many answers came from each of the gateways.
fn ask_anew(station: &Machine, dc: &Switch) -> Result<[u64; 2]> {
    let answers = || -> Result<[u64; 2]> { Ok([counted(dc, 0)?[0], counted(dc, 1)?[0]]) };
    let before = answers()?;
    for _ in 0..3 {
        station.namespace.run(&["ip", "neigh", "flush", "dev", "eth0"])?;
        station.pings(MAIN_AT)?;
    }
    let after = answers()?;
    Ok([after[0] - before[0], after[1] - before[1]])
}

/// Three hosts, two of them gateways of a router: the switch of the first hangs, and pings go on by the second, which announces the address; the first
/// comes back, and has it again. One of them answers for the address at any time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_gateway_takes_over_by_itself() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"));
    let cloud = cloud();
    let (dc, underlay) = (outside::datacentre()?, outside::datacentre()?);
    let nothing = |host| model::spec::HostNetwork::empty(host_id(host), endpoint(host));
    let wires = [("dc", &dc)];
    let first = Host::start_wired(nothing(0), &wires).await?;
    let mut second = Host::start_wired(nothing(1), &wires).await?;
    let third = Host::start(nothing(2)).await?;
    let hosts = [&first, &second, &third];
    Host::link_by(&underlay, &hosts)?;
    let station = outside::gateway(&dc)?;
    count_at(&dc)?;
    let blue_2 = plug(&second, &cloud, ON_SECOND).await?;
    let blue_3 = plug(&third, &cloud, ON_THIRD).await?;
    for (number, host) in hosts.iter().enumerate() {
        host.program(cloud.host(number)).await?;
    }
    for (number, host) in hosts.iter().enumerate() {
        for other in (0..HOSTS).filter(|other| *other != number && (number < 2 || *other < 2)) {
            until("do hosts hear each other", || hears(host, other)).await?;
        }
    }
    for host in [&second, &third] {
        until("do flows know of it", || Ok(host.switch.ofctl(&["dump-groups", "br-int"])?.contains("type=ff"))).await?;
        host.switch.settle()?;
    }
    for (name, machine) in [("blue-2", &blue_2), ("blue-3", &blue_3)] {
        eventually(&format!("does {name} get out"), || Ok(machine.pings(FAR)? == 3))?;
    }
    let [_, announced, pinged] = counted(&dc, 1)?;
    assert_eq!((announced, pinged), (0, 0), "the second stands by");
    let answers = ask_anew(&station, &dc)?;
    assert!(answers[0] > 0 && answers[1] == 0, "the first answers: {answers:?}");

    // The first hangs.
    let log = dc.dir().join("pings");
    let words = ["ping", "-n", "-i", "0.1", "-W", "1", "-c", &PINGS.to_string(), &FAR.to_string()].map(str::to_owned);
    let mut pings = blue_3.namespace.start("ping", &words, &log)?;
    until("do pings go", || Ok(std::fs::read_to_string(&log)?.contains("icmp_seq=10 "))).await?;
    first.switch.freeze_vswitchd(true)?;
    until("is it missed", || Ok(!hears(&second, 0)? && !hears(&third, 0)?)).await?;
    until("is the address announced", || Ok(counted(&dc, 1)?[1] > 0)).await?;
    for (name, machine) in [("blue-2", &blue_2), ("blue-3", &blue_3)] {
        eventually(&format!("does {name} get out by the second"), || Ok(machine.pings(FAR)? == 3))?;
    }
    let answers = ask_anew(&station, &dc)?;
    assert!(answers[1] > 0 && answers[0] == 0, "the second answers: {answers:?}");
    until("do pings go on", || Ok(counted(&dc, 1)?[2] > 60)).await?;

    // It comes back.
    let announced = counted(&dc, 0)?[1];
    first.switch.freeze_vswitchd(false)?;
    until("is it heard", || Ok(hears(&second, 0)? && hears(&third, 0)? && hears(&first, 1)?)).await?;
    until("is the address announced again", || Ok(counted(&dc, 0)?[1] > announced)).await?;
    for host in hosts {
        host.switch.settle()?;
    }
    for (name, machine) in [("blue-2", &blue_2), ("blue-3", &blue_3)] {
        eventually(&format!("does {name} get out by the first"), || Ok(machine.pings(FAR)? == 3))?;
    }
    let answers = ask_anew(&station, &dc)?;
    assert!(answers[0] > 0 && answers[1] == 0, "the first answers again: {answers:?}");
    let before = counted(&dc, 1)?[2];
    assert_eq!(blue_2.pings(FAR)?, 3);
    assert_eq!(counted(&dc, 1)?[2], before, "the second stands by again");

    until("do pings end", || Ok(pings.ended()?.is_some())).await?;
    let said = std::fs::read_to_string(&log)?;
    let lost: Vec<u32> = (1..=PINGS).filter(|number| !said.contains(&format!("icmp_seq={number} "))).collect();
    println!("of {PINGS} pings, ten a second, these were lost while the gateway went and came back: {lost:?}");
    assert!(lost.len() < 100, "{said}");

    started_again(&mut second, [&first, &third], (&station, &dc)).await?;
    no_longer_needed([&first, &second, &third], cloud).await
}

/// The switch of the second is started again: it does not take over from the first, which it has had no time to hear.
async fn started_again(second: &mut Host, others: [&Host; 2], (station, dc): (&Machine, &Switch)) -> Result<()> {
    let before = counted(dc, 1)?;
    second.restart_switch(&others)?;
    until("is the first heard again", || {
        assert_eq!(ask_anew(station, dc)?[1], 0, "the second answers for the address");
        hears(second, 0)
    })
    .await?;
    until("do flows know of it", || Ok(second.switch.ofctl(&["dump-groups", "br-int"])?.contains("type=ff"))).await?;
    assert!(ask_anew(station, dc)?[0] > 0, "the first answers all the while");
    assert_eq!(counted(dc, 1)?, before, "the second stood by all the while");
    Ok(())
}

/// Nobody needs the third any more, which is not told: it hears the others as before.
async fn no_longer_needed([first, second, third]: [&Host; 3], mut cloud: Cloud) -> Result<()> {
    cloud.ports.remove(ON_THIRD);
    for (number, host) in [first, second].into_iter().enumerate() {
        host.program(cloud.host(number)).await?;
        assert!(!watched(&cloud, number).contains(&endpoint(2)));
    }
    for _ in 0..30 {
        assert!(hears(third, 0)? && hears(third, 1)?, "peers keep their ports for a while");
        sleep(LOOK_PAUSE * 2).await;
    }
    Ok(())
}
