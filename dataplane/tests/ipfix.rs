//! Flow records: a collector sees the packets that our flows forward.

#[cfg(test)]
mod hosts;
#[cfg(test)]
mod topology;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use basalt_tests::ipfix::Told;
use basalt_tests::require;
use basalt_tests::skip::Need;
use dataplane::switch::bridge::{Bridge, FlowExport, Settings};
use hosts::Host;
use model::security::Remote;
use model::spec::HostNetwork;
use topology::{Cloud, PING, endpoint, host_id};

const LIMIT: Duration = Duration::from_secs(20);
/// How long records may take: flows are counted for a second before they are sent.
const RECORDS_TIMEOUT: Duration = Duration::from_secs(20);

/// Every packet is looked at: the pings of one machine to another and their answers are in the records, under the host's domain; and when no export is
/// wanted any more, none comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_sees_what_is_forwarded() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch, Need::Program("ping"));
    let mut cloud = Cloud::default();
    let blue = cloud.network("blue", "10.0.1.0/24");
    let all = cloud.group("all");
    cloud.allow(all, PING, Remote::Any);
    for (name, last) in [("web-1", 11), ("web-2", 12)] {
        cloud.port(name, blue, 0, last, &[all]);
    }
    let host = Host::start(HostNetwork::empty(host_id(0), endpoint(0))).await?;
    let mut machines = Vec::new();
    for (index, port) in cloud.ports.iter().enumerate() {
        let machine = host.plug(port).await?;
        machine.configure(cloud.address(index), Ipv4Addr::new(10, 0, 1, 1))?;
        machines.push(machine);
    }
    host.program(cloud.host(0)).await?;

    let collector = host.switch.namespace().enter(|| UdpSocket::bind("127.0.0.1:0"))??;
    collector.set_read_timeout(Some(Duration::from_millis(200)))?;
    let export = FlowExport {
        collectors: [collector.local_addr()?].into(),
        sampling: NonZeroU32::MIN,
        active: Duration::from_secs(1),
        domain: 77,
    };
    let settings = host.host.bridge().settings().clone();
    let bridge = Bridge::start(Settings { export: Some(export.clone()), ..settings.clone() });
    bridge.connected(LIMIT).await?;
    assert_eq!(bridge.ensure().await?, ["export flows of bridge br-int"]);
    assert_eq!(bridge.ensure().await?, Vec::<String>::new());
    host.switch.settle()?;

    let (mine, other) = (IpAddr::V4(cloud.address(0)), IpAddr::V4(cloud.address(1)));
    assert_eq!(machines[0].pings(other)?, 3);
    let (mut told, mut octets) = (Told::default(), [0; 65_536]);
    let wanted = [(mine, other), (other, mine)];
    let end = Instant::now() + RECORDS_TIMEOUT;
    // Each is looked at twice: as it comes in and as it goes out.
    while !wanted.iter().all(|pair| told.packets.get(pair) == Some(&6)) {
        ensure!(Instant::now() < end, "the records say {:?} of {:?}", told.packets, told.interfaces);
        let Ok((length, exporter)) = collector.recv_from(&mut octets) else { continue };
        told.take(exporter, octets.get(..length).context("length")?)?;
    }
    assert_eq!(told.domains, [77].into());
    for port in &cloud.ports {
        let tap = port.tap_name();
        ensure!(told.interfaces.iter().any(|name| name.contains(&tap)), "{tap} is not in {:?}", told.interfaces);
    }

    let twice = NonZeroU32::new(2).context("two")?;
    let less = Bridge::start(Settings { export: Some(FlowExport { sampling: twice, ..export }), ..settings.clone() });
    less.connected(LIMIT).await?;
    let changed = less.ensure().await?;
    ensure!(changed.len() == 1 && changed[0].contains("sampling"), "{changed:?}");
    let none = Bridge::start(settings);
    none.connected(LIMIT).await?;
    assert_eq!(none.ensure().await?, ["export no flows of bridge br-int"]);
    assert_eq!(host.switch.vsctl(&["--columns=_uuid", "list", "ipfix"])?.trim(), "");
    Ok(())
}

/// A new bridge is made with its export, and what somebody else has exported stays while none is wanted of us.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_of_somebody_else_stays() -> Result<()> {
    require!(Need::Root, Need::OpenVswitch);
    let host = Host::start(HostNetwork::empty(host_id(0), endpoint(0))).await?;
    let set =
        ["--", "--id=@x", "create", "ipfix", "targets=\"127.0.0.1:4739\"", "--", "set", "bridge", "br-int", "ipfix=@x"];
    host.switch.vsctl(&set)?;
    let settings = host.host.bridge().settings().clone();
    let bridge = Bridge::start(settings.clone());
    bridge.connected(LIMIT).await?;
    assert_eq!(bridge.ensure().await?, Vec::<String>::new());
    host.switch.vsctl(&["del-br", "br-int"])?;
    let collector: SocketAddr = "[::1]:4739".parse()?;
    let export =
        FlowExport { collectors: [collector].into(), sampling: NonZeroU32::MIN, active: Duration::ZERO, domain: 1 };
    let made = Bridge::start(Settings { export: Some(export), ..settings });
    made.connected(LIMIT).await?;
    made.ensure().await?;
    let shown = host.switch.vsctl(&["--columns=targets", "--bare", "list", "ipfix"])?;
    assert_eq!(shown.trim(), "[::1]:4739");
    Ok(())
}
