//! No packet is lost when nothing is wrong: real pings, a thousand a second, and a TCP connection between machines on one host, while the agent is
//! killed and comes back, everything is compared again, rules of others change, and the layout of the tables becomes another.
//!
//! Only counts decide. How long things took is printed.

#[cfg(test)]
mod hosts;
#[cfg(test)]
mod topology;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use basalt_tests::require;
use basalt_tests::skip::Need;
use basalt_tests::tcp::accept;
use dataplane::{FlowSet, Installed, compile};
use hosts::{Host, Machine};
use model::spec::HostNetwork;
use openflow::flow::{Action, Flow};
use topology::{Cloud, PING, endpoint, host_id, tcp};

const LIMIT: Duration = Duration::from_secs(30);
/// Pings in a row, a millisecond apart, and how long they may take in all on a loaded machine.
const PINGS: u32 = 5000;
const PINGS_LIMIT: Duration = Duration::from_secs(60);

/// Two machines that may ping each other and speak TCP, and a third in a group of its own.
fn cloud() -> Cloud {
    let mut cloud = Cloud::default();
    let network = cloud.network("net", "10.0.0.0/24");
    let group = cloud.group("speaks");
    let other = cloud.group("other");
    cloud.allow(group, PING, cloud.members(group));
    cloud.allow(group, tcp(7, 7), cloud.members(group));
    cloud.port("left", network, 0, 11, &[group]);
    cloud.port("right", network, 0, 12, &[group]);
    cloud.port("third", network, 0, 13, &[other]);
    cloud
}

struct World {
    cloud: Cloud,
    host: Host,
    left: Machine,
    right: Machine,
}

impl World {
    async fn start() -> Result<Self> {
        let cloud = cloud();
        let host = Host::start(HostNetwork::empty(host_id(0), endpoint(0))).await?;
        let gateway = Ipv4Addr::new(10, 0, 0, 1);
        let left = host.plug(&cloud.ports[0]).await?;
        let right = host.plug(&cloud.ports[1]).await?;
        left.configure(cloud.address(0), gateway)?;
        right.configure(cloud.address(1), gateway)?;
        host.host.program(cloud.host(0), LIMIT).await?;
        let world = Self { cloud, host, left, right };
        anyhow::ensure!(world.left.pings(world.cloud.address(1))? == 3, "the machines reach each other");
        Ok(world)
    }

    /// Pings while something happens, and how many were lost.
    async fn lost_during<T>(&self, happens: impl Future<Output = Result<T>>) -> Result<(u32, T)> {
        let (namespace, target) = (self.left.namespace.name().to_owned(), self.cloud.address(1).to_string());
        let pings = tokio::task::spawn_blocking(move || {
            let mut ping = std::process::Command::new("ip");
            ping.args(["netns", "exec", &namespace, "ping", "-q", "-i", "0.001", "-W", "3", "-c", &PINGS.to_string()]);
            basalt_tests::process::output(ping.arg(&target), PINGS_LIMIT)
        });
        // Some pings go before, so that the path is there.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let happened = happens.await?;
        let text = pings.await??.stdout;
        let received = text.split(", ").find_map(|part| part.strip_suffix(" received")?.parse::<u32>().ok());
        Ok((PINGS - received.with_context(|| format!("read {text}"))?, happened))
    }

    /// A connection from left to right.
    fn connect(&self) -> Result<(TcpStream, TcpStream)> {
        let listener = self.right.namespace.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 7)))??;
        let address = (self.cloud.address(1), 7).into();
        let client = self.left.namespace.enter(|| TcpStream::connect_timeout(&address, LIMIT))??;
        let server = accept(&listener, LIMIT)?;
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(LIMIT))?;
        }
        Ok((client, server))
    }
}

fn speaks((client, server): &mut (TcpStream, TcpStream)) -> Result<()> {
    let mut octets = [0; 4];
    client.write_all(b"ping")?;
    server.read_exact(&mut octets)?;
    server.write_all(b"pong")?;
    client.read_exact(&mut octets)?;
    anyhow::ensure!(octets == *b"pong");
    Ok(())
}

/// The agent goes without a word and another takes its place; everything is compared again; groups that the machines are not in change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_and_edits_of_others_lose_nothing() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"));
    let mut world = World::start().await?;
    let mut connection = world.connect()?;
    speaks(&mut connection)?;

    let (lost, applied) = world
        .lost_during(async {
            let again = world.host.again(HostNetwork::empty(host_id(0), endpoint(0)));
            again.bridge().connected(LIMIT).await?;
            Ok(again.program(world.cloud.host(0), LIMIT).await?)
        })
        .await?;
    println!("a second agent on the same switch: {applied:?}");
    assert_eq!((lost, applied.messages), (0, 0), "nothing was wrong, so nothing was touched");
    let nothing = HostNetwork::empty(host_id(0), endpoint(0));
    world.host.host = world.host.again(nothing);
    world.host.host.bridge().connected(LIMIT).await?;
    world.host.host.program(world.cloud.host(0), LIMIT).await?;
    speaks(&mut connection)?;

    let mut others = world.cloud.clone();
    let (lost, ()) = world
        .lost_during(async {
            for number in 0..20_u16 {
                let members = others.members(1);
                others.allow(1, tcp(100 + number, 200 + number), members);
                world.host.host.program(others.host(0), LIMIT).await?;
            }
            Ok(())
        })
        .await?;
    assert_eq!(lost, 0, "rules of a group that neither machine is in");
    speaks(&mut connection)
}

/// The flows with every table moved up: another layout of the same pipeline.
fn shifted(set: &FlowSet) -> (Vec<Flow>, Vec<openflow::flow::Group>) {
    const BY: u8 = 100;
    fn shift(actions: &[Action]) -> Vec<Action> {
        let one = |action: &Action| match action {
            Action::GotoTable(table) => Action::GotoTable(table + BY),
            Action::Resubmit { port, table, original_tuple } => {
                Action::Resubmit { port: *port, table: table.map(|table| table + BY), original_tuple: *original_tuple }
            }
            Action::Ct(ct) => {
                let mut ct = ct.clone();
                ct.table = ct.table.map(|table| table + BY);
                Action::Ct(ct)
            }
            other => other.clone(),
        };
        actions.iter().map(one).collect()
    }
    let moved = |flow: &Flow| {
        // The first table stays the first: packets enter there.
        let table = if flow.table == 0 { 0 } else { flow.table + BY };
        Flow { table, actions: shift(&flow.actions), cookie: flow.cookie ^ 0xff << 40, ..flow.clone() }
    };
    let groups = set.groups().cloned().map(|mut group| {
        group.buckets.iter_mut().for_each(|bucket| bucket.actions = shift(&bucket.actions));
        group
    });
    (set.flows().map(moved).collect(), groups.collect())
}

/// A bridge that holds another layout of the tables, as an older agent left it, gets ours in one step that no packet sees half of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_layout_of_the_tables_is_left_without_loss() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"));
    let mut world = World::start().await?;
    let mut connection = world.connect()?;
    let set = compile(&world.cloud.host(0), &world.host.host.bridge().numbers()?);
    let (flows, groups) = shifted(&set);
    let old = Installed { flows, groups, meters: Vec::new() };
    let file = world.host.switch.dir().join("old-flows");
    std::fs::write(&file, old.flows.iter().map(|flow| format!("{flow}\n")).collect::<String>())?;

    // The agent is gone; the older one leaves its layout.
    world.host.host = world.host.again(HostNetwork::empty(host_id(0), endpoint(0)));
    for group in &old.groups {
        world.host.switch.ofctl(&["--may-create", "mod-group", "br-int", &group.to_string()])?;
    }
    world.host.switch.ofctl(&["--bundle", "replace-flows", "br-int", &file.display().to_string()])?;
    speaks(&mut connection).context("through the old layout")?;
    anyhow::ensure!(world.left.pings(world.cloud.address(1))? == 3, "the old layout carries pings");

    let nothing = HostNetwork::empty(host_id(0), endpoint(0));
    let (lost, applied) = world
        .lost_during(async {
            let again = world.host.again(nothing);
            again.bridge().connected(LIMIT).await?;
            let applied = again.program(world.cloud.host(0), LIMIT).await?;
            Ok((applied, again))
        })
        .await?;
    println!("from the old layout to ours: {:?}", applied.0);
    assert!(applied.0.deleted_flows > 0 && applied.0.added_flows > 0, "{:?}", applied.0);
    assert_eq!(lost, 0);
    assert_eq!(applied.1.installed().await?.counts(), set.counts(), "nothing of the old layout is left");
    speaks(&mut connection)
}

/// The switch daemon is killed: how long until packets pass again is printed; that they pass, and that all is installed, decides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_switch_forwards_again() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"), Need::Program("ethtool"));
    let mut world = World::start().await?;
    let flows = Arc::new(world.host.host.flows());
    let killed = Instant::now();
    world.host.switch.kill_vswitchd()?;
    world.host.switch.start_vswitchd()?;
    let started = killed.elapsed();
    let target = world.cloud.address(1).into();
    basalt_tests::process::wait_for("packets to pass again", LIMIT, || {
        Ok((world.left.namespace.ping(target, 1, Duration::from_millis(200))? == 1).then_some(()))
    })?;
    println!("killed; the switch was back after {started:?}, packets passed after {:?}", killed.elapsed());
    let mut status = world.host.host.status();
    tokio::time::timeout(LIMIT, status.wait_for(|status| status.connected && status.connections >= 2)).await??;
    assert_eq!(world.host.host.installed().await?.counts(), flows.counts());
    Ok(())
}
