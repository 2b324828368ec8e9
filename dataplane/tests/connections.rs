//! Live connections through our flows in a real Open vSwitch: what happens to them when rules change, and what answers come from the flows.
//!
//! One switch, one namespace for each machine, real sockets. The connection tracker is the userspace datapath's.

#[cfg(test)]
mod rig;
#[cfg(test)]
mod topology;

use std::io::{ErrorKind, Write as _};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result};
use basalt_tests::netns::Namespace;
use basalt_tests::require;
use basalt_tests::skip::Need;
use basalt_tests::tcp::{Pair, REACH, arrives};
use model::security::Direction;
use rig::{BRIDGE, Rig};
use topology::{Cloud, two_subnets};

const WEB_1: usize = 0;
const DB_1: usize = 2;
const OPEN_1: usize = 4;

/// How long is waited for bytes that should not arrive.
const SILENCE: Duration = Duration::from_millis(900);

/// A switch with the machines of the first host of a cloud.
struct Host {
    rig: Rig,
    machines: Vec<Option<Namespace>>,
}

impl Host {
    fn start(cloud: &Cloud) -> Result<Self> {
        let rig = Rig::start(&Cloud::default(), 0)?;
        let mut host = Self { rig, machines: Vec::new() };
        for (index, port) in cloud.ports.iter().enumerate() {
            if !port.is_on(topology::host_id(0)) {
                host.machines.push(None);
                continue;
            }
            let machine = Namespace::new()?;
            let number = host.rig.switch.plug(BRIDGE, &port.tap_name(), &machine, &port.mac.to_string())?;
            host.rig.numbers.ports.insert(port.id, openflow::flow::PortNo(number));
            let address = cloud.address(index);
            let [a, b, c, _] = address.octets();
            machine.add_address("eth0", &format!("{address}/24"))?;
            machine.add_route("default", &Ipv4Addr::new(a, b, c, 1).to_string())?;
            host.machines.push(Some(machine));
        }
        host.rig.install(cloud)?;
        Ok(host)
    }

    fn machine(&self, index: usize) -> Result<&Namespace> {
        self.machines[index].as_ref().context("no machine here")
    }

    /// A connection from one machine to a port of another.
    fn connect(&self, cloud: &Cloud, from: usize, to: usize, port: u16) -> Result<Pair> {
        let listener = self.machine(to)?.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))??;
        Pair::connect(self.machine(from)?, &listener, cloud.address(to).into())
    }
}

/// A rule taken away cuts the connection that it had allowed, both ways, and no other; given back, the same connection goes on.
#[test]
fn a_revoked_rule_cuts_live_connections_and_no_others() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ethtool"));
    let mut cloud = two_subnets();
    let host = Host::start(&cloud)?;
    let mut sql = host.connect(&cloud, WEB_1, DB_1, 5432)?;
    let mut http = host.connect(&cloud, OPEN_1, WEB_1, 80)?;
    assert!(sql.speaks()? && http.speaks()?);

    let rules = cloud.groups[1].rules.clone();
    cloud.groups[1].rules.retain(|rule| rule.direction == Direction::Egress);
    host.rig.install(&cloud)?;
    host.rig.switch.settle()?;
    sql.client.write_all(b"x")?;
    assert!(!arrives(&mut sql.server, b'x', SILENCE)?, "the rule is gone");
    sql.server.write_all(b"y")?;
    assert!(!arrives(&mut sql.client, b'y', SILENCE)?, "replies of a dead connection do not pass");
    assert!(http.speaks()?, "a connection that no change concerns goes on");

    cloud.groups[1].rules = rules;
    host.rig.install(&cloud)?;
    assert!(arrives(&mut sql.server, b'x', REACH)?, "sent again, and allowed again");
    assert!(arrives(&mut sql.client, b'y', REACH)?);
    assert!(sql.speaks()?);
    Ok(())
}

/// A router answers pings on each of its addresses; an error about an allowed datagram comes back to its sender; packets pass the datapath at
/// most twice.
#[test]
fn routers_answer_errors_return_and_passes_are_few() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"));
    let cloud = two_subnets();
    let host = Host::start(&cloud)?;
    let web = host.machine(WEB_1)?;
    for router in ["10.0.1.1", "10.0.2.1"] {
        assert_eq!(web.ping(router.parse()?, 3, Duration::from_secs(2))?, 3, "ping {router}");
    }
    let socket = web.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    socket.connect((cloud.address(DB_1), 8000))?;
    socket.set_read_timeout(Some(REACH))?;
    socket.send(b"anybody?")?;
    let answer = socket.recv(&mut [0; 16]).map_err(|error| error.kind());
    assert_eq!(answer, Err(ErrorKind::ConnectionRefused), "the receiver's ICMP error is about an allowed datagram");

    let mut sql = host.connect(&cloud, WEB_1, DB_1, 5432)?;
    host.rig.switch.appctl(&["dpif-netdev/pmd-stats-clear"])?;
    for _ in 0..50 {
        assert!(sql.speaks()?);
    }
    let stats = host.rig.switch.appctl(&["dpif-netdev/pmd-stats-show"])?;
    let passes = stats.lines().find_map(|line| line.trim().strip_prefix("avg. datapath passes per packet:"));
    let passes: f64 = passes.context("no count of passes")?.trim().parse()?;
    assert!(passes <= 2.0, "{passes} passes for each packet of a routed connection between guarded ports");
    Ok(())
}

/// Two tenants with the same addresses on one host: each connection ends at its own tenant's machine.
#[test]
fn tenants_with_the_same_addresses_do_not_meet() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ethtool"));
    let mut cloud = Cloud::default();
    for tenant in ["red", "blue"] {
        let network = cloud.network(tenant, "10.0.0.0/24");
        let group = cloud.group(tenant);
        cloud.allow(group, topology::tcp(7, 7), cloud.members(group));
        cloud.port(&format!("{tenant}-client"), network, 0, 11, &[group]);
        cloud.port(&format!("{tenant}-server"), network, 0, 12, &[group]);
    }
    let host = Host::start(&cloud)?;
    for (client, server, other) in [(0, 1, 3), (2, 3, 1)] {
        let bind = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 7));
        let elsewhere = host.machine(other)?.enter(bind)??;
        elsewhere.set_nonblocking(true)?;
        let mut pair = host.connect(&cloud, client, server, 7)?;
        assert!(pair.speaks()?);
        assert!(elsewhere.accept().is_err_and(|error| error.kind() == ErrorKind::WouldBlock));
    }
    Ok(())
}
