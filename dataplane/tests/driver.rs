//! The switch driver against a private Open vSwitch: what is installed, what a change costs, what a restart loses.

#[cfg(test)]
mod topology;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use basalt_tests::ovs::Switch;
use basalt_tests::require;
use basalt_tests::skip::Need;
use dataplane::switch::channel::{Punted, Reply, Responder};
use dataplane::switch::driver::Driver;
use dataplane::switch::openflow::OpenFlow;
use dataplane::{FlowSet, compile, diff};
use model::{Mac, PortId};
use topology::{Cloud, tcp, two_subnets};
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(30);

/// Answers nothing.
struct Silent;

impl Responder for Silent {
    fn respond(&mut self, _packet: &Punted) -> Option<Reply> {
        None
    }
}

fn start() -> Result<(Switch, Driver)> {
    let switch = Switch::start()?;
    switch.add_bridge("br-int")?;
    let driver = Driver::start(OpenFlow::unix(switch.bridge_socket("br-int")), Silent);
    Ok((switch, driver))
}

fn flows(cloud: &Cloud) -> Arc<FlowSet> {
    Arc::new(compile(&cloud.host(0), &cloud.numbers(0)))
}

fn count(switch: &Switch) -> Result<usize> {
    let text = switch.ofctl(&["dump-aggregate", "br-int"])?;
    let count = text.split("flow_count=").nth(1).context("no flow count")?;
    Ok(count.trim().parse()?)
}

/// All flows and groups arrive; applied again, nothing is sent; a port more or less touches only its own flows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_are_applied_once_and_changes_are_small() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch);
    let (switch, driver) = start()?;
    let mut cloud = two_subnets();
    let first = flows(&cloud);
    let applied = driver.applied(driver.set(Arc::clone(&first)), LIMIT).await?;
    assert_eq!(applied.added_flows, first.flows().len());
    assert_eq!(count(&switch)?, first.flows().len());

    let again = driver.applied(driver.set(Arc::clone(&first)), LIMIT).await?;
    assert_eq!((again.messages, again.unchanged_flows), (0, first.flows().len()));
    let installed = driver.installed().await?;
    assert!(diff(&first, &installed).is_empty(), "what Open vSwitch says is what was sent");

    // A new driver, as after a restart of the agent, finds everything in place.
    drop(driver);
    let driver = Driver::start(OpenFlow::unix(switch.bridge_socket("br-int")), Silent);
    let restarted = driver.applied(driver.set(Arc::clone(&first)), LIMIT).await?;
    assert_eq!((restarted.messages, restarted.unchanged_flows), (0, first.flows().len()));

    let port = cloud.port("web-3", 0, 0, 14, &[0]);
    let second = flows(&cloud);
    let grown = driver.applied(driver.set(Arc::clone(&second)), LIMIT).await?;
    assert_eq!(grown.added_flows, second.flows().len() - first.flows().len());
    assert_eq!(grown.deleted_flows, 0);
    assert!(grown.unchanged_flows + grown.replaced_flows == first.flows().len(), "{grown:?}");
    cloud.ports.remove(port);
    let shrunk = driver.applied(driver.set(flows(&cloud)), LIMIT).await?;
    assert_eq!((shrunk.added_flows, shrunk.deleted_flows), (0, grown.added_flows));
    assert_eq!(count(&switch)?, first.flows().len());
    Ok(())
}

/// The switch daemon is killed: the driver says so, tries again, and the flows are back within moments of its return.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_switch_gets_its_flows_back() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch);
    let (mut switch, driver) = start()?;
    let wanted = flows(&two_subnets());
    driver.applied(driver.set(Arc::clone(&wanted)), LIMIT).await?;
    let mut status = driver.status();
    switch.kill_vswitchd()?;
    tokio::time::timeout(LIMIT, status.wait_for(|status| !status.connected)).await??;
    let problem = status.borrow().problem.clone().context("no problem named")?;
    let late = driver.applied(driver.set(flows(&Cloud::default())), Duration::from_millis(500)).await;
    let late = late.err().context("installed without a switch")?.to_string();
    assert!(late.contains("ovs-vswitchd"), "{late} ({problem})");

    driver.set(Arc::clone(&wanted));
    switch.start_vswitchd()?;
    let returned = Instant::now();
    tokio::time::timeout(LIMIT, status.wait_for(|status| status.connected && status.applied == 3)).await??;
    println!("flows are back {:?} after the switch", returned.elapsed());
    assert_eq!(count(&switch)?, wanted.flows().len());
    assert_eq!(status.borrow().connections, 2);
    Ok(())
}

/// A flow of somebody else is named and stays; our flows that somebody deleted come back with the next change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_flows_are_named_and_stay() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch);
    let (switch, driver) = start()?;
    switch.ofctl(&["add-flow", "br-int", "table=0,priority=1234,in_port=77,actions=drop"])?;
    let wanted = flows(&two_subnets());
    driver.applied(driver.set(Arc::clone(&wanted)), LIMIT).await?;
    let status = driver.status().borrow().clone();
    assert_eq!(status.foreign_count, 1);
    assert!(status.foreign[0].contains("priority=1234,in_port=77"), "{:?}", status.foreign);
    assert_eq!(count(&switch)?, wanted.flows().len() + 1);
    Ok(())
}

/// A cloud of this many networks of 50 ports behind one router, one group with a remote-group rule on every port, and
/// every other port on this host.
fn large(networks: u8) -> Cloud {
    let mut cloud = Cloud::default();
    let group = cloud.group("all");
    let members = cloud.members(group);
    cloud.allow(group, tcp(22, 22), members);
    let subnets: Vec<usize> =
        (0..networks).map(|n| cloud.network(&format!("net{n}"), &format!("10.{n}.0.0/24"))).collect();
    cloud.router("main", &subnets);
    let templates = [0, 1].map(|host| {
        cloud.port("template", 0, host, 10, &[group]);
        cloud.ports.pop()
    });
    for network in 0..networks {
        for last in 0..50_u8 {
            let Some(mut port) = templates[usize::from(last % 2)].clone() else { continue };
            let number = u32::from(network) * 50 + u32::from(last);
            port.id = PortId::from_uuid(Uuid::from_u128(u128::from(number) << 32));
            port.key = number + 1;
            port.mac = Mac::new([2, 3, 0, 0, network, last]);
            port.network = cloud.networks[usize::from(network)].id;
            port.addresses[0].subnet = cloud.subnets[usize::from(network)].id;
            port.addresses[0].address = Ipv4Addr::new(10, network, 0, last + 10).into();
            cloud.ports.push(port);
        }
    }
    cloud
}

/// Among two thousand ports one more costs its own flows, whatever the number of the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_port_among_thousands_costs_one_port() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch);
    let (switch, driver) = start()?;
    let mut cloud = large(40);
    let last = cloud.ports.pop().context("no port")?;
    let before = driver.applied(driver.set(flows(&cloud)), LIMIT).await?;
    cloud.ports.push(last);
    let one = driver.applied(driver.set(flows(&cloud)), LIMIT).await?;
    println!(
        "{} flows in {:?}, one port more: {} messages in {:?}",
        before.added_flows, before.took, one.messages, one.took
    );
    assert!(one.messages < 40, "{one:?}");
    assert_eq!(count(&switch)?, flows(&cloud).flows().len());
    Ok(())
}

/// A bridge that is not there is named in the error, and nothing else happens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_bridge_is_named() -> Result<()> {
    let driver = Driver::start(OpenFlow::unix("/nonexistent/br-int.mgmt"), Silent);
    let version = driver.set(Arc::default());
    let error = driver.applied(version, Duration::from_millis(300)).await.err().context("applied")?.to_string();
    assert!(error.contains("/nonexistent/br-int.mgmt") && error.contains("No such file"), "{error}");
    Ok(())
}
