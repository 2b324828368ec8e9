//! Real packets through our flows: two hosts with private switches, joined by VXLAN, and a namespace per machine.

#[cfg(test)]
mod hosts;
#[cfg(test)]
mod topology;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Result;
use basalt_tests::require;
use basalt_tests::skip::Need;
use dataplane::switch::counters;
use hosts::{Host, Machine};
use model::spec::HostNetwork;
use topology::{Cloud, endpoint, host_id, two_subnets};

const LIMIT: Duration = Duration::from_secs(30);
const COUNT_READINGS: u32 = 20;

/// A cloud of two hosts whose machines run.
struct Running {
    cloud: Cloud,
    hosts: [Host; 2],
    machines: Vec<Machine>,
}

impl Running {
    /// Starts hosts and machines, programs the flows, and gives the machines their addresses by DHCP.
    async fn start(cloud: Cloud) -> Result<Self> {
        let start = |host| Host::start(HostNetwork::empty(host_id(host), endpoint(host)));
        let hosts = [start(0).await?, start(1).await?];
        hosts[0].link(&hosts[1])?;
        let mut running = Self { cloud, hosts, machines: Vec::new() };
        for port in &running.cloud.ports {
            let host = usize::from(port.is_on(host_id(1)));
            running.machines.push(running.hosts[host].plug(port).await?);
        }
        running.program().await?;
        for (index, machine) in running.machines.iter().enumerate() {
            machine.ask_dhcp()?;
            let shown = machine.namespace.run(&["ip", "-4", "address", "show", "dev", "eth0"])?;
            let address = format!("inet {}/24", running.cloud.address(index));
            assert!(shown.contains(&address) && shown.contains("mtu 1450"), "{shown}");
        }
        Ok(running)
    }

    async fn program(&self) -> Result<()> {
        for (number, host) in self.hosts.iter().enumerate() {
            host.program(self.cloud.host(number)).await?;
        }
        Ok(())
    }

    fn named(&self) -> BTreeMap<&str, (&Machine, Ipv4Addr)> {
        let named = |(index, machine): (usize, _)| {
            (self.cloud.ports[index].name.as_str(), (machine, self.cloud.address(index)))
        };
        self.machines.iter().enumerate().map(named).collect()
    }
}

/// What the two-subnet cloud promises holds for packets: inside a subnet across hosts, routed, by security group.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_subnets_on_two_hosts() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"), Need::Program("busybox"));
    let mut running = Running::start(two_subnets()).await?;
    {
        let named = running.named();
        let ((web_1, _), (web_2, web_2_at)) = (named["web-1"], named["web-2"]);
        let ((db_1, db_1_at), (db_2, db_2_at)) = (named["db-1"], named["db-2"]);
        assert_eq!(web_1.pings(web_2_at)?, 3, "inside a subnet, across hosts");
        assert_eq!(db_1.pings(web_2_at)?, 3, "across subnets and hosts");
        assert!(!web_1.leaks(db_2_at)?, "db lets no ping in");

        let (postgres, other) = (db_2.listen(5432)?, db_2.listen(5433)?);
        assert!(web_1.reaches(db_2_at, &postgres)?, "members of web may use tcp 5432, across hosts");
        assert!(!web_1.intrudes(db_2_at, &other)?, "and no other port");
        assert!(!db_1.intrudes(db_2_at, &postgres)?, "db is no member of web");
        let local = db_1.listen(5432)?;
        assert!(web_1.reaches(db_1_at, &local)?, "the same on one host");
        let http = web_2.listen(80)?;
        assert!(db_1.reaches(web_2_at, &http)?, "everybody may use tcp 80 of web");

        // A source that the port does not own goes nowhere.
        web_1.namespace.run(&["ip", "address", "add", "10.0.1.99/24", "dev", "eth0"])?;
        let spoofed = web_1.namespace.run(&[
            "ping",
            "-n",
            "-c",
            "2",
            "-i",
            "0.2",
            "-W",
            "1",
            "-I",
            "10.0.1.99",
            &web_2_at.to_string(),
        ]);
        assert!(spoofed.is_err(), "{spoofed:?}");
    }
    counted(&running).await?;
    // web-1 leaves its group: the remote-group rule no longer covers it.
    running.cloud.ports[0].groups.clear();
    running.program().await?;
    let named = running.named();
    let ((web_1, _), (db_2, db_2_at)) = (named["web-1"], named["db-2"]);
    let postgres = db_2.listen(5432)?;
    assert!(!web_1.intrudes(db_2_at, &postgres)?, "web-1 is no member of web any more");
    Ok(())
}

/// What went before is found in the counters: web-1's port carried packets both ways, and the two spoofed pings, or the ARP requests for them, were
/// dropped by the flows that judge senders.
async fn counted(running: &Running) -> Result<()> {
    let host = &running.hosts[0];
    // The switch sums up what its data path counted once a second or so.
    let mut seen = String::new();
    for _ in 0..COUNT_READINGS {
        let counters = counters::read(&host.switch.bridge_socket("br-int")).await?;
        let number = host.switch.ofport(&running.cloud.ports[0].tap_name())?;
        let port = counters.ports.iter().find(|port| port.number.0 == number);
        let (sent, received) = port.map_or((0, 0), |port| port.packets);
        let is_refusal = |flow: &openflow::flow::Flow| flow.table == 0 && flow.actions.is_empty();
        let refusals = counters.flows.iter().filter(|stats| is_refusal(&stats.flow));
        let refused: u64 = refusals.filter_map(|stats| stats.counters.packets).sum();
        if sent >= 3 && received >= 3 && refused >= 2 {
            return Ok(());
        }
        seen = format!("web-1 sent {sent} and received {received}, {refused} were refused");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    anyhow::bail!("the counters do not tell what went before: {seen}")
}

/// The switch daemon of one host is killed: ports keep their numbers, flows come back, and so does the traffic.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traffic_comes_back_after_the_switch_was_killed() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"), Need::Program("busybox"));
    let mut running = Running::start(two_subnets()).await?;
    let (web_1, web_2) = (running.cloud.address(0), running.cloud.address(1));
    assert_eq!(running.machines[0].pings(web_2)?, 3);
    running.hosts[0].switch.restart_vswitchd()?;
    let mut status = running.hosts[0].host.status();
    tokio::time::timeout(LIMIT, status.wait_for(|status| status.connected && status.problem.is_none())).await??;
    running.program().await?;
    let look = running.hosts[0].host.look(&running.cloud.host(0)).await?;
    assert!(look.changes.is_empty(), "{} steps left", look.changes.steps().count());
    // The first packet into a tunnel may go while the switch resolves the other endpoint's address again.
    assert!(running.machines[0].pings(web_2)? >= 2);
    assert_eq!(running.machines[0].pings(web_2)?, 3);
    assert_eq!(running.machines[1].pings(web_1)?, 3);
    Ok(())
}
