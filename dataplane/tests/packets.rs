//! Real packets through our flows: two hosts with private switches, joined by VXLAN, and a namespace per machine.

#[cfg(test)]
mod hosts;
#[cfg(test)]
mod topology;

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Context, Result};
use basalt_tests::require;
use basalt_tests::skip::Need;
use dataplane::{FlowSet, PortNumbers, compile};
use hosts::{Host, Machine};
use openflow::flow::PortNo;
use topology::{Cloud, endpoint, host_id, two_subnets};

/// A cloud of two hosts whose machines run.
struct Running {
    cloud: Cloud,
    hosts: [Host; 2],
    machines: Vec<Machine>,
    numbers: [PortNumbers; 2],
}

impl Running {
    async fn start(cloud: Cloud) -> Result<Self> {
        let hosts = [Host::start(endpoint(0)).await?, Host::start(endpoint(1)).await?];
        hosts[0].link(&hosts[1])?;
        let mut running = Self { cloud, hosts, machines: Vec::new(), numbers: Default::default() };
        for (host, numbers) in running.hosts.iter().zip(&mut running.numbers) {
            numbers.vxlan = host.bridge.ports()?["vxlan0"].number.map(PortNo);
        }
        for (index, port) in running.cloud.ports.iter().enumerate() {
            let host = usize::from(port.is_on(host_id(1)));
            let (machine, number) = running.hosts[host].plug(port).await?;
            let gateway = running.cloud.subnets.iter().find(|subnet| subnet.id == port.addresses[0].subnet);
            let gateway = gateway.and_then(|subnet| subnet.gateway).context("no gateway")?;
            machine.configure(running.cloud.address(index), gateway.to_string().parse()?)?;
            running.machines.push(machine);
            running.numbers[host].ports.insert(port.id, PortNo(number));
        }
        running.install()?;
        Ok(running)
    }

    fn flows(&self, host: usize) -> FlowSet {
        compile(&self.cloud.host(host), &self.numbers[host])
    }

    /// Puts all flows in place in one bundle, by the tool.
    fn install(&self) -> Result<()> {
        for (number, host) in self.hosts.iter().enumerate() {
            let set = self.flows(number);
            let mut file = tempfile::NamedTempFile::new()?;
            writeln!(file, "flow delete\ngroup delete group_id=all")?;
            for group in set.groups() {
                writeln!(file, "group add {group}")?;
            }
            for flow in set.flows() {
                writeln!(file, "flow add {flow}")?;
            }
            host.switch.ofctl(&["bundle", "br-int", file.path().to_str().context("path")?])?;
        }
        Ok(())
    }

    fn named(&self) -> BTreeMap<&str, (&Machine, std::net::Ipv4Addr)> {
        let named = |(index, machine): (usize, _)| {
            (self.cloud.ports[index].name.as_str(), (machine, self.cloud.address(index)))
        };
        self.machines.iter().enumerate().map(named).collect()
    }
}

/// What the two-subnet cloud promises holds for packets: inside a subnet across hosts, routed, by security group.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_subnets_on_two_hosts() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"));
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
    // web-1 leaves its group: the remote-group rule no longer covers it.
    running.cloud.ports[0].groups.clear();
    running.install()?;
    let named = running.named();
    let ((web_1, _), (db_2, db_2_at)) = (named["web-1"], named["db-2"]);
    let postgres = db_2.listen(5432)?;
    assert!(!web_1.intrudes(db_2_at, &postgres)?, "web-1 is no member of web any more");
    Ok(())
}
