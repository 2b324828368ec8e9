//! The bridge shell against a private Open vSwitch: made once, found right the second time, wrong things named.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use basalt_tests::ovs::Switch;
use basalt_tests::require;
use basalt_tests::skip::{self, Need};
use dataplane::switch::bridge::{Bridge, BridgeError, Datapath, Settings, TUNNEL_PORT, TapPort};
use dataplane::switch::handlers;
use model::{Mac, MachineId, PortId};
use openflow::flow::PortNo;
use ovsdb::connection::Remote;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(20);

fn settings(switch: &Switch) -> Settings {
    Settings {
        database: Remote::Unix(switch.db_socket()),
        bridge: "br-int".to_owned(),
        datapath: Datapath::Netdev,
        tunnel_ip: Some([192, 0, 2, 1].into()),
        physical: std::collections::BTreeMap::new(),
        bandwidth_kbps: Default::default(),
        export: None,
        watches_peers: false,
    }
}

fn tap(number: u8) -> TapPort {
    TapPort {
        tap: format!("tap{number}"),
        port: PortId::from_uuid(Uuid::from_u128(u128::from(number))),
        machine: MachineId::from_uuid(Uuid::from_u128(0xff00 + u128::from(number))),
        mac: Mac::new([2, 0, 0, 0, 0, number]),
    }
}

async fn bridge(switch: &Switch) -> Result<Bridge> {
    let bridge = Bridge::start(settings(switch));
    bridge.connected(LIMIT).await?;
    Ok(bridge)
}

/// Bridge, tunnel and a machine's port are made; asked again nothing changes; ovs-vsctl sees what was meant.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bridge_is_made_once() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch);
    let switch = Switch::start()?;
    let bridge = bridge(&switch).await?;
    assert!(matches!(bridge.ports(), Err(BridgeError::NoBridge(_))));
    let changed = bridge.ensure().await?;
    assert_eq!(changed, ["create bridge br-int with datapath netdev", "create tunnel port vxlan0"]);
    assert_eq!(bridge.ensure().await?, Vec::<String>::new());
    let shown = switch.vsctl(&["get", "bridge", "br-int", "fail_mode", "protocols", "datapath_type"])?;
    assert_eq!(shown.split_whitespace().collect::<Vec<_>>(), ["secure", "[OpenFlow15]", "netdev"]);
    let options = switch.vsctl(&["get", "interface", TUNNEL_PORT, "options"])?;
    assert_eq!(options.trim(), r#"{dst_port="4789", key=flow, local_ip="192.0.2.1", remote_ip=flow}"#);

    switch.namespace().add_tap("tap1")?;
    let number = bridge.ensure_port(&tap(1)).await?;
    assert_eq!(number, switch.ofport("tap1")?);
    assert_eq!(bridge.ensure_port(&tap(1)).await?, number);
    let ports = bridge.ports()?;
    assert_eq!(ports.keys().collect::<Vec<_>>(), ["tap1", TUNNEL_PORT]);
    assert_eq!((ports["tap1"].port, ports["tap1"].machine), (Some(tap(1).port), Some(tap(1).machine)));
    assert_eq!(ports["tap1"].number, Some(number));
    let numbers = bridge.numbers()?;
    assert_eq!(numbers.ports, [(tap(1).port, PortNo(number))].into());
    assert_eq!(numbers.vxlan, ports[TUNNEL_PORT].number.map(PortNo));

    assert!(bridge.remove_port("tap1").await?);
    assert!(!bridge.remove_port("tap1").await?);
    assert_eq!(bridge.ports()?.len(), 1);
    switch.vsctl(&["set", "open_vswitch", ".", "ovs_version=3.1.0"])?;
    bridge.reconfigure().await?;
    assert_eq!(bridge.version()?.as_deref(), Some("3.1.0"));
    Ok(())
}

/// What an operator changed is put right, and what the agent did not make is left alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drift_is_corrected_and_foreign_ports_stay() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch);
    let switch = Switch::start()?;
    let bridge = bridge(&switch).await?;
    bridge.ensure().await?;
    switch.vsctl(&["set", "bridge", "br-int", "fail_mode=standalone", "protocols=OpenFlow13"])?;
    switch.vsctl(&["set", "interface", TUNNEL_PORT, "options:local_ip=192.0.2.9"])?;
    let changed = bridge.ensure().await?;
    assert_eq!(changed.len(), 2, "{changed:?}");
    assert_eq!(bridge.ensure().await?, Vec::<String>::new());
    let shown = switch.vsctl(&["get", "bridge", "br-int", "protocols"])?;
    assert_eq!(shown.trim(), "[OpenFlow13, OpenFlow15]");

    switch.namespace().add_tap("tap7")?;
    switch.vsctl(&["add-port", "br-int", "tap7"])?;
    for outcome in [bridge.ensure_port(&tap(7)).await.map(drop), bridge.remove_port("tap7").await.map(drop)] {
        assert!(matches!(outcome, Err(BridgeError::Foreign { .. })), "{outcome:?}");
    }
    switch.vsctl(&["add-br", "br-other", "--", "set", "bridge", "br-other", "datapath_type=netdev"])?;
    switch.namespace().add_tap("tap8")?;
    switch.vsctl(&["add-port", "br-other", "tap8"])?;
    let outcome = bridge.ensure_port(&tap(8)).await;
    assert!(matches!(outcome, Err(BridgeError::Elsewhere { .. })), "{outcome:?}");
    Ok(())
}

/// An interface for a physical network that somebody else uses is left to them, and stops neither the bridge nor a machine's port.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interface_of_somebody_else_stops_nothing() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch);
    let switch = Switch::start()?;
    switch.vsctl(&["add-br", "br-other", "--", "set", "bridge", "br-other", "datapath_type=netdev"])?;
    for link in ["eth2", "eth3", "tap1"] {
        switch.namespace().add_tap(link)?;
    }
    switch.vsctl(&["add-port", "br-other", "eth2"])?;
    let wired = |links: [&str; 2]| links.map(|link| (format!("net-{link}").parse().unwrap(), link.to_owned())).into();
    let bridge = Bridge::start(Settings { physical: wired(["eth2", "eth3"]), ..settings(&switch) });
    bridge.connected(LIMIT).await?;
    bridge.ensure().await?;
    assert_eq!(bridge.ensure().await?, Vec::<String>::new());
    bridge.ensure_port(&tap(1)).await?;
    let plugged: Vec<String> = bridge.ports()?.into_keys().collect();
    assert_eq!(plugged, ["eth3", "tap1", TUNNEL_PORT]);
    switch.vsctl(&["add-port", "br-int", "veth9", "--", "set", "interface", "veth9", "type=internal"])?;
    drop(bridge);
    let bridge = Bridge::start(Settings { physical: wired(["veth9", "eth3"]), ..settings(&switch) });
    bridge.connected(LIMIT).await?;
    bridge.ensure().await?;
    bridge.ensure_port(&tap(1)).await?;
    assert_eq!(bridge.ports()?["veth9"].physical, None, "what an operator plugged in stays the operator's");
    Ok(())
}

/// A device that is not there, a switch daemon that is down, a database that is down: three errors that say so. After a
/// restart of the switch daemon the port has its number again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_name_their_cause_and_pass() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch);
    let mut switch = Switch::start()?;
    let bridge = bridge(&switch).await?;
    bridge.ensure().await?;
    match bridge.ensure_port(&tap(1)).await {
        Err(BridgeError::Unusable { port, reason }) => assert!(reason.contains("tap1"), "{port}: {reason}"),
        other => bail!("{other:?}"),
    }
    switch.namespace().add_tap("tap1")?;
    bridge.reconfigure().await?;
    let number = bridge.ensure_port(&tap(1)).await?;

    switch.kill_vswitchd()?;
    let outcome = bridge.ensure_port(&tap(2)).await;
    assert!(matches!(outcome, Err(BridgeError::Silent { .. })), "{outcome:?}");
    assert!(handlers::count(&switch.dir().join("ovs-vswitchd.pid")).is_err());
    switch.namespace().add_tap("tap2")?;
    switch.start_vswitchd()?;
    bridge.ensure_port(&tap(2)).await?;
    assert_eq!(bridge.ensure_port(&tap(1)).await?, number);
    handlers::count(&switch.dir().join("ovs-vswitchd.pid"))?;

    let mut changes = bridge.changes();
    switch.kill_ovsdb()?;
    tokio::time::timeout(LIMIT, changes.wait_for(|status| !status.synchronised)).await??;
    assert!(!bridge.is_connected());
    assert_eq!(bridge.ports()?.len(), 3, "what was known stays known");
    switch.start_ovsdb()?;
    bridge.connected(LIMIT).await?;
    assert_eq!(bridge.ensure().await?, Vec::<String>::new());
    Ok(())
}

/// A datapath that the machine does not have is named at once; corrected, the bridge comes up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_kernel_module_is_named() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch);
    if Path::new("/sys/module/openvswitch").exists() {
        skip::announce("a_missing_kernel_module_is_named", "a kernel without the openvswitch module");
        return Ok(());
    }
    let switch = Switch::start()?;
    let wrong = Bridge::start(Settings { datapath: Datapath::System, ..settings(&switch) });
    for _ in 0..2 {
        let outcome = wrong.ensure().await;
        assert!(matches!(outcome, Err(BridgeError::NoDatapath { .. })), "{outcome:?}");
    }
    assert!(!bridge(&switch).await?.ensure().await?.is_empty());
    Ok(())
}

/// Two agents' worth of changes at once: everybody's port is there in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_at_the_same_time_do_not_lose_each_other() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch);
    let switch = Switch::start()?;
    let (left, right) = (bridge(&switch).await?, bridge(&switch).await?);
    left.ensure().await?;
    for number in 1..=6 {
        switch.namespace().add_tap(&format!("tap{number}"))?;
    }
    let many = async |bridge: &Bridge, numbers: [u8; 3]| -> Result<()> {
        for number in numbers {
            bridge.ensure_port(&tap(number)).await?;
        }
        Ok(())
    };
    let outcomes = tokio::join!(many(&left, [1, 2, 3]), many(&right, [4, 5, 6]));
    outcomes.0?;
    outcomes.1?;
    assert_eq!(left.ports()?.len(), 7);
    Ok(())
}
