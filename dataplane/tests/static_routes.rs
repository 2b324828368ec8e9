//! Static routes: by one next hop and by several, seen in the model, in a real switch and by real packets on two hosts, in both versions of IP.

#[cfg(test)]
mod hosts;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod topology;

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};
use basalt_tests::process::wait_for;
use basalt_tests::require;
use basalt_tests::skip::Need;
use dataplane::trace::{Connection, Packet, Path, Payload};
use dataplane::{compile, trace};
use hosts::{Host, Machine};
use model::network::AllowedPair;
use model::security::{Direction, Ethertype, Protocol, Remote};
use model::spec::HostNetwork;
use rig::Rig;
use topology::{Cloud, PING, endpoint, host_id, tcp};

const CLIENT: usize = 0;
const NEAR: usize = 1;
const FAR: usize = 2;
const BEYOND: [&str; 2] = ["172.16.0.1", "2001:db8:16::1"];
const RANGES: [&str; 2] = ["172.16.0.0/16", "2001:db8:16::/48"];
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that are shared by two next hops: that all of them hash to one of two is one in 2^39.
const CONNECTIONS: usize = 40;

/// A client on one network; on the next, behind a router, two gateways to the same addresses, the second on another host.
fn cloud() -> Cloud {
    let mut cloud = Cloud::default();
    let blue = cloud.network("blue", "10.0.1.0/24");
    let green = cloud.network("green", "10.0.2.0/24");
    cloud.ipv6(blue, "fd00:0:0:1::/64");
    cloud.ipv6(green, "fd00:0:0:2::/64");
    cloud.router("main", &[blue, green]);
    let group = cloud.group("all");
    cloud.rule_of(Ethertype::IPv6, group, Direction::Egress, Protocol::Any, Remote::Any);
    for protocol in [PING, tcp(80, 80)] {
        cloud.allow(group, protocol, Remote::Any);
        cloud.allow6(group, protocol, Remote::Any);
    }
    for (name, network, host, last) in [("client", blue, 0, 11), ("near", green, 0, 21), ("far", green, 1, 22)] {
        cloud.port(name, network, host, last, &[group]);
    }
    for gateway in [NEAR, FAR] {
        let pairs = RANGES.map(|range| range.parse().map(|addresses| AllowedPair { addresses, mac: None }));
        cloud.ports[gateway].allowed_pairs = pairs.into_iter().flatten().collect();
    }
    cloud
}

/// Gives the router a route of each version by a port.
#[cfg(test)]
fn route_by(cloud: &mut Cloud, port: usize) {
    cloud.route(0, RANGES[0], cloud.address(port));
    let six = cloud.address6(port).unwrap();
    cloud.route(0, RANGES[1], six);
}

#[cfg(test)]
fn walk(cloud: &Cloud, to: &str) -> Path {
    let (host, numbers) = (cloud.host(0), cloud.numbers(0));
    let to: IpAddr = to.parse().unwrap();
    let packet = Packet::from_port(&host, &numbers, &cloud.ports[CLIENT], to, Payload::ping(to)).unwrap();
    trace(&compile(&host, &numbers), &packet, Connection::New)
}

#[cfg(test)]
fn says(cloud: &Cloud, to: &str) -> String {
    walk(cloud, to).verdicts().iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ")
}

/// The words of a route that is missing, leads nowhere, leads here or to another host, and of several; the longest prefix wins.
#[test]
fn routes_are_told_in_the_users_words() {
    let mut cloud = cloud();
    for beyond in BEYOND {
        assert_eq!(says(&cloud, beyond), "dropped in route: router main: it has no route to this destination");
    }
    cloud.route(0, "172.16.0.0/12", "10.0.2.77".parse::<IpAddr>().unwrap());
    assert_eq!(says(&cloud, BEYOND[0]), {
        "dropped in route: router main: the route to 172.16.0.0/12 leads nowhere: no port that is plugged in has 10.0.2.77"
    });
    route_by(&mut cloud, NEAR);
    for beyond in BEYOND {
        assert_eq!(says(&cloud, beyond), "delivered to port near", "the longer prefix wins");
    }
    assert!(says(&cloud, "172.17.0.1").starts_with("dropped in route: router main: the route to 172.16.0.0/12"));
    route_by(&mut cloud, FAR);
    for (beyond, by) in BEYOND.into_iter().zip(["10.0.2.21, 10.0.2.22", "fd00:0:0:2::15, fd00:0:0:2::16"]) {
        let path = walk(&cloud, beyond);
        assert_eq!(path.verdicts().len(), 2, "{path}");
        assert!(path.reaches(2) && path.to_string().contains(&format!("by one of {by}")), "{path}");
        assert!(path.to_string().contains("sends it by one of the next hops of router main"), "{path}");
    }
    cloud.ports[FAR].binding = None;
    assert_eq!(says(&cloud, BEYOND[0]), "delivered to port near", "what is not plugged in is left out");
}

/// The switch takes the flows and groups and says of packets what the model says; a choice of next hops it leaves to its data path.
#[test]
fn the_model_and_the_switch_agree_on_routes() {
    require!(Need::Root, Need::OpenVswitch);
    for by in [NEAR, FAR] {
        let mut cloud = cloud();
        cloud.route(0, "0.0.0.0/0", "10.0.1.99".parse::<IpAddr>().unwrap());
        route_by(&mut cloud, by);
        let rig = Rig::start(&cloud, 0).unwrap();
        let set = rig.install(&cloud).unwrap();
        for to in BEYOND.into_iter().chain(["8.8.8.8", "2001:db8::1", "10.0.2.22"]) {
            let to: IpAddr = to.parse().unwrap();
            for payload in [Payload::ping(to), Payload::Tcp { source: 1, target: 80 }] {
                let (host, numbers) = (cloud.host(0), cloud.numbers(0));
                let packet = Packet::from_port(&host, &numbers, &cloud.ports[CLIENT], to, payload).unwrap();
                rig.ask(&set, &packet, Connection::New);
            }
        }
        route_by(&mut cloud, if by == NEAR { FAR } else { NEAR });
        let set = rig.install(&cloud).unwrap();
        let changes = dataplane::diff(&set, &rig.installed().unwrap());
        assert!(changes.is_empty(), "{changes:#?}");
        assert_eq!(set.groups().filter(|group| group.selection.is_some()).count(), 2, "one for each version");
    }
}

async fn program(hosts: &[Host; 2], cloud: &Cloud) -> Result<()> {
    for (number, host) in hosts.iter().enumerate() {
        host.program(cloud.host(number)).await?;
    }
    Ok(())
}

/// Plugs a machine in with its addresses of both versions and its ways out; a gateway has the addresses beyond, too.
async fn plug(host: &Host, cloud: &Cloud, port: usize) -> Result<Machine> {
    let machine = host.plug(&cloud.ports[port]).await?;
    machine.restart_link()?;
    machine.configure_both(cloud.address(port), cloud.address6(port))?;
    if port != CLIENT {
        machine.also_has(&BEYOND)?;
    }
    Ok(machine)
}

/// Real packets follow a route here and to another host; two next hops share connections, and each connection keeps to its way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_follow_routes() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"));
    let mut cloud = cloud();
    let start = |host| Host::start(HostNetwork::empty(host_id(host), endpoint(host)));
    let hosts = [start(0).await?, start(1).await?];
    hosts[0].link(&hosts[1])?;
    let mut machines = Vec::new();
    for port in [CLIENT, NEAR, FAR] {
        machines.push(plug(&hosts[usize::from(port == FAR)], &cloud, port).await?);
    }
    program(&hosts, &cloud).await?;
    let beyond: [IpAddr; 2] = [BEYOND[0].parse()?, BEYOND[1].parse()?];
    assert!(!machines[CLIENT].leaks(beyond[0])?, "there is no route");
    for by in [NEAR, FAR] {
        cloud.routers[0].routes.clear();
        route_by(&mut cloud, by);
        program(&hosts, &cloud).await?;
        for to in beyond {
            assert_eq!(machines[CLIENT].pings(to)?, 3, "{to} by {}", cloud.ports[by].name);
        }
    }
    route_by(&mut cloud, NEAR);
    program(&hosts, &cloud).await?;
    let listeners = [machines[NEAR].listen(80)?, machines[FAR].listen(80)?];
    for to in beyond {
        let open = connections(&machines[CLIENT], to)?;
        let mut shares = [0, 0];
        // A client is through before its last word has reached the server.
        wait_for("every connection at a server", CONNECT_TIMEOUT, || {
            for (share, listener) in shares.iter_mut().zip(&listeners) {
                *share += accepted(listener)?;
            }
            Ok((shares[0] + shares[1] == open.len()).then_some(()))
        })?;
        assert!(open.len() == CONNECTIONS && shares[0] > 0 && shares[1] > 0, "{to}: {shares:?}");
    }
    Ok(())
}

fn connections(client: &Machine, to: IpAddr) -> Result<Vec<TcpStream>> {
    let to = SocketAddr::from((to, 80));
    let all = client.namespace.enter(|| {
        let open = (0..CONNECTIONS).map(|_| TcpStream::connect_timeout(&to, CONNECT_TIMEOUT));
        open.collect::<std::io::Result<Vec<_>>>()
    })?;
    all.with_context(|| format!("connect to {to}"))
}

/// How many connections wait at a server.
fn accepted(listener: &TcpListener) -> Result<usize> {
    listener.set_nonblocking(true)?;
    Ok(std::iter::from_fn(|| listener.accept().ok()).count())
}
