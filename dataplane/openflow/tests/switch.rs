//! Shows that the client works with a real Open vSwitch: what is installed is dumped back as the same values, bundles are all or
//! nothing, packets pass both ways.
//!
//! How: a private switch with the userspace datapath, in a network namespace of its own.

mod samples;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use basalt_tests::{ovs::Switch, require, skip::Need};
use openflow::{
    connection::{ApplyError, Connection, Incoming, Options, RequestError, Target, Unasked},
    flow::{Action, Controller, Field, Flow, Group, Match, Meter, MeterUnit, PortNo},
    session::{BundleError, Change},
    wire::{
        BucketPlace, CtFlush, CtTuple, FlowFilter, FlowMod, FlowMonitor, FlowUpdate, GROUP_ALL, GroupMod, METER_ALL,
        Message, MeterMod, MultipartReply, MultipartRequest, PacketOut, QUEUE_ALL, QueueFilter, TlvMap, TlvTableMod,
    },
};

use samples::{FLOWS, GROUPS, REFUSED_FLOWS};

const BRIDGE: &str = "br-of";

async fn connect(switch: &Switch) -> Result<(Connection, Incoming)> {
    let target = Target::Unix(switch.bridge_socket(BRIDGE));
    let options = Options { wants_unasked: true, ..Options::default() };
    Ok(Connection::connect(&target, options).await?)
}

fn start() -> Result<Switch> {
    let switch = Switch::start()?;
    switch.add_bridge(BRIDGE)?;
    switch.vsctl(&["set", "bridge", BRIDGE, "protocols=OpenFlow10,OpenFlow13,OpenFlow15"])?;
    Ok(switch)
}

fn flows(lines: &[&str]) -> Vec<Flow> {
    lines.iter().map(|line| line.parse().unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

fn adds(flows: &[Flow]) -> Vec<Change> {
    flows.iter().cloned().map(|flow| FlowMod::add(flow).into()).collect()
}

/// What differs between two sorted sets, one line each.
fn difference<T: Ord + std::fmt::Display>(wanted: &[T], found: &[T]) -> String {
    let missing = wanted.iter().filter(|one| !found.contains(one)).map(|one| format!("- {one}\n"));
    let extra = found.iter().filter(|one| !wanted.contains(one)).map(|one| format!("+ {one}\n"));
    missing.chain(extra).collect()
}

/// Shows that flows and groups of every kind come back from the switch as equal values, and print as `ovs-ofctl dump-flows` does.
#[tokio::test]
async fn what_is_installed_comes_back_equal() -> Result<()> {
    require!(Need::OpenVswitch, Need::Root);
    let switch = start()?;
    let (connection, _incoming) = connect(&switch).await?;
    ensure!(
        connection.description().await?.software == "3.1.0" || !connection.description().await?.software.is_empty()
    );
    let meter = Meter::drop_above(3, MeterUnit::Packets, 1000, 100);
    connection.change_meter(MeterMod::Add(meter.clone())).await?;
    assert_eq!(connection.dump_meters().await?, [meter]);
    let groups: Vec<Group> =
        GROUPS.iter().map(|line| line.parse().unwrap_or_else(|error| panic!("{line}: {error}"))).collect();
    let mut wanted = flows(FLOWS);
    let mut changes: Vec<Change> = vec![FlowMod::delete_table(255).into(), GroupMod::Delete(GROUP_ALL).into()];
    changes.extend(groups.iter().cloned().map(|group| GroupMod::Add(group).into()));
    changes.extend(adds(&wanted));
    connection.apply_bundle(changes).await?;

    let mut found = connection.dump_flows().await?;
    wanted.sort();
    found.sort();
    assert_eq!(difference(&wanted, &found), "");
    let mut found = connection.dump_groups().await?;
    found.sort_by_key(|group| group.id);
    assert_eq!(difference(&groups, &found), "");

    // The same in the words of ovs-ofctl.
    let target = format!("unix:{}", switch.bridge_socket(BRIDGE).display());
    let dumped = switch.ofctl(&["-O", "OpenFlow15", "--no-stats", "--no-names", "dump-flows", &target])?;
    let mut theirs: Vec<String> = dumped.lines().map(|line| line.trim().to_owned()).collect();
    // Without statistics it leaves out a cookie and a table of zero.
    let brief = |flow: &Flow| flow.to_string().replace("cookie=0x0, ", "").replace("table=0, ", "");
    let mut ours: Vec<String> = wanted.iter().map(brief).collect();
    theirs.sort();
    ours.sort();
    assert_eq!(difference(&ours, &theirs), "");
    let dumped = switch.ofctl(&["-O", "OpenFlow15", "--no-names", "dump-groups", &target])?;
    let theirs: Vec<String> = dumped.lines().skip(1).map(|line| line.trim().to_owned()).collect();
    let ours: Vec<String> = groups.iter().map(Group::to_string).collect();
    assert_eq!(difference(&ours, &theirs), "");

    let counters = connection.aggregate(FlowFilter { table: 24, ..FlowFilter::default() }).await?;
    ensure!(counters.flows == Some(4), "{counters:?}");
    ensure!(connection.table_stats().await?.iter().any(|table| table.table == 24 && table.active == 4));
    ensure!(connection.group_stats().await?.len() == groups.len());
    ensure!(connection.port_stats().await?.iter().any(|port| port.number == PortNo::LOCAL));
    ensure!(connection.port_desc().await?.iter().any(|port| port.name == BRIDGE && port.number == PortNo::LOCAL));

    // Deleting by key with the dumped values leaves nothing.
    let changes = connection.dump_flows().await?.iter().map(|flow| FlowMod::delete_strict(flow.key()).into()).collect();
    connection.apply_bundle(changes).await?;
    assert_eq!(connection.dump_flows().await?, []);
    Ok(())
}

/// Shows that a refused change is named and changes nothing, whether the switch refuses it at once or at commit.
#[tokio::test]
async fn refused_bundle_changes_nothing() -> Result<()> {
    require!(Need::OpenVswitch, Need::Root);
    let switch = start()?;
    let (connection, _incoming) = connect(&switch).await?;
    let before = flows(&["table=1,priority=1,ip actions=drop"]);
    connection.apply_bundle(vec![FlowMod::delete_table(255).into()]).await?;
    connection.apply_bundle(adds(&before)).await?;
    let cases = [
        // No such group: known when the message is read.
        ("actions=group:99", "OFPBAC_BAD_OUT_GROUP"),
        // No such meter.
        ("actions=meter:77,output:1", "OFPMMFC_INVALID_METER"),
        // Fields that the switch keeps for itself.
        (REFUSED_FLOWS[0], "OFPBRC_EPERM"),
        (REFUSED_FLOWS[1], "OFPBRC_EPERM"),
    ];
    for (refused, name) in cases {
        let mut wanted = flows(&["table=2,priority=1,ip actions=drop", refused, "table=3,priority=1 actions=drop"]);
        wanted.insert(0, before[0].clone().with_cookie(9));
        let error = connection.apply_bundle(adds(&wanted)).await.err().context("was applied")?;
        let ApplyError::Bundle(BundleError::Refused { index, change, source }) = &error else {
            panic!("{refused}: {error:?}")
        };
        assert_eq!((*index, source.name()), (2, Some(name)), "{error:?}");
        let flow: Flow = refused.parse()?;
        ensure!(change.contains(&flow.to_string()), "{change}");
        assert_eq!(connection.dump_flows().await?, before);
    }
    // A group that is there already is only known at commit.
    let group: Group = "group_id=5,type=all,bucket=actions=output:1".parse()?;
    let twice = vec![
        FlowMod::add(before[0].clone().with_cookie(9)).into(),
        GroupMod::Add(group.clone()).into(),
        GroupMod::Add(group).into(),
    ];
    let error = connection.apply_bundle(twice).await.err().context("was applied")?;
    let ApplyError::Bundle(BundleError::Refused { index, source, .. }) = &error else { panic!("{error:?}") };
    assert_eq!((*index, source.name()), (2, Some("OFPGMFC_GROUP_EXISTS")), "{error:?}");
    assert_eq!(connection.dump_flows().await?, before);
    assert_eq!(connection.dump_groups().await?, []);
    Ok(())
}

/// An Ethernet frame of the experimental type with a recognisable payload.
fn frame() -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xb5];
    frame.extend(*b"what the controller sent");
    frame.resize(64, 0);
    frame
}

async fn packet_in(incoming: &mut Incoming) -> Result<openflow::wire::PacketIn> {
    loop {
        match tokio::time::timeout(Duration::from_secs(10), incoming.next()).await?.context("connection over")? {
            Unasked::PacketIn(packet) => return Ok(packet),
            Unasked::Refused { error, .. } => return Err(error.into()),
            _ => {}
        }
    }
}

/// Shows that a packet-out runs through the flows, comes back as an extended packet-in with userdata, registers and cookie, and
/// that a paused packet goes on where it stopped.
#[tokio::test]
async fn packets_pass_both_ways() -> Result<()> {
    require!(Need::OpenVswitch, Need::Root);
    let switch = start()?;
    let (connection, mut incoming) = connect(&switch).await?;
    let pause = Controller::new().with_userdata([1, 2, 3, 4, 5]).paused();
    let plain = Controller::new().with_userdata(*b"second");
    let table_0 = vec![Action::set(Field::Reg5, 0x1234), Action::Controller(pause), Action::resubmit(7)];
    let table_7 = vec![Action::set(Field::Reg6, 9), Action::Controller(plain)];
    let wanted = [
        Flow::new(0, 5, Match::new().eth_type(0x88b5), table_0).with_cookie(0xabc),
        Flow::new(7, 5, Match::new().with(Field::Reg5, 0x1234), table_7).with_cookie(0xdef),
    ];
    connection.apply_bundle(adds(&wanted)).await?;
    let out = PacketOut::new(PortNo::LOCAL, vec![Action::Output(PortNo::TABLE)], frame());
    connection.packet_out(out).await?;

    let first = packet_in(&mut incoming).await?;
    assert_eq!(first.packet, frame());
    assert_eq!(first.userdata, [1, 2, 3, 4, 5]);
    assert_eq!(first.in_port(), Some(PortNo::LOCAL));
    assert_eq!(first.metadata.exact(Field::Reg5), Some(0x1234));
    connection.resume(first.resume().context("was not paused")?).await?;
    let second = packet_in(&mut incoming).await?;
    assert_eq!((second.userdata.as_slice(), second.cookie, second.table), (b"second".as_slice(), 0xdef, 7));
    assert_eq!(second.metadata.exact(Field::Reg6), Some(9));
    assert_eq!(second.continuation, None);

    // A packet-out that the switch refuses is told by its id.
    let bad = PacketOut::new(PortNo::LOCAL, vec![Action::Group(12345)], frame());
    let xid = connection.packet_out(bad).await?;
    loop {
        match tokio::time::timeout(Duration::from_secs(10), incoming.next()).await?.context("connection over")? {
            Unasked::Refused { xid: of, .. } => {
                assert_eq!(of, xid);
                break;
            }
            _ => continue,
        }
    }
    Ok(())
}

/// Shows that a new port is told, that the owner learns why a connection ended, and that an absent switch is named.
#[tokio::test]
async fn ports_and_ends_are_told() -> Result<()> {
    require!(Need::OpenVswitch, Need::Root);
    let mut switch = start()?;
    let (connection, mut incoming) = connect(&switch).await?;
    switch.vsctl(&["add-port", BRIDGE, "newport", "--", "set", "interface", "newport", "type=internal"])?;
    loop {
        let message =
            tokio::time::timeout(Duration::from_secs(10), incoming.next()).await?.context("connection over")?;
        if let Unasked::PortStatus(status) = message
            && status.port.name == "newport"
        {
            break;
        }
    }
    switch.kill_vswitchd()?;
    let why = tokio::time::timeout(Duration::from_secs(10), connection.over()).await?.context("no reason")?;
    ensure!(why.to_string().contains("closed the connection") || why.to_string().contains("failed"), "{why}");
    let error = connection.ask(Message::BarrierRequest).await.err().context("answered")?;
    ensure!(error.to_string().contains("the connection to the switch is over"), "{error}");
    let error = connect(&switch).await.err().context("connected")?;
    ensure!(error.to_string().contains("cannot connect to unix:"), "{error}");
    Ok(())
}

/// Shows that meters come back as they were added, count, and are gone once deleted; and that a bad one is refused by name.
#[tokio::test]
async fn meters_come_back_equal() -> Result<()> {
    require!(Need::OpenVswitch, Need::Root);
    let switch = start()?;
    let (connection, _incoming) = connect(&switch).await?;
    let features = connection.meter_features().await?;
    ensure!(features.meters_max > 0 && features.bands_max > 0, "{features:?}");
    let wanted = [
        Meter::drop_above(1, MeterUnit::Packets, 1000, 0),
        Meter::drop_above(2, MeterUnit::Kilobits, 8000, 400),
        "meter=7,kbps,stats,bands=type=drop,rate=5".parse()?,
    ];
    for meter in &wanted {
        connection.change_meter(MeterMod::Add(meter.clone())).await?;
    }
    connection.change_meter(MeterMod::Modify(Meter::drop_above(7, MeterUnit::Kilobits, 6, 0))).await?;
    let mut found = connection.dump_meters().await?;
    found.sort();
    ensure!(found[..2] == wanted[..2], "{found:?}");
    assert_eq!(found[2].bands[0].rate, 6);
    connection.apply_bundle(adds(&flows(&["table=0,priority=1 actions=meter:1,output:LOCAL"]))).await?;
    for _ in 0..3 {
        let out = PacketOut::new(PortNo::CONTROLLER, vec![Action::Output(PortNo::TABLE)], frame());
        connection.packet_out(out).await?;
    }
    connection.barrier().await?;
    let counted = connection.meter_stats().await?;
    ensure!(
        counted.iter().any(|meter| meter.meter == 1 && meter.packets == 3 && meter.bands.len() == 1),
        "{counted:?}"
    );
    let error = connection.change_meter(MeterMod::Add(wanted[0].clone())).await.err().context("was added twice")?;
    ensure!(format!("{error:?}").contains("kind: 12, code: 1"), "{error:?}");
    connection.change_meter(MeterMod::Delete(METER_ALL)).await?;
    assert_eq!(connection.dump_meters().await?, []);
    Ok(())
}

/// Shows that many meters are changed in their order, also those behind a refused one of the same message train, and that the first refused is named.
#[tokio::test]
async fn many_meters_are_changed_at_once() -> Result<()> {
    require!(Need::OpenVswitch, Need::Root);
    let switch = start()?;
    let (connection, mut incoming) = connect(&switch).await?;
    let meter = |id| Meter::drop_above(id, MeterUnit::Packets, 50, 50);
    let added = (1..=600).map(|id| MeterMod::Add(meter(id)));
    connection.change_meters(added.collect()).await?;
    assert_eq!(connection.dump_meters().await?.len(), 600);
    let changes = [MeterMod::Add(meter(601)), MeterMod::Add(meter(7)), MeterMod::Add(meter(8)), MeterMod::Delete(9)];
    let error = connection.change_meters(changes.to_vec()).await.err().context("added what is there")?;
    assert_eq!(error.change, changes[1].to_string());
    ensure!(matches!(error.source, RequestError::Refused(_)), "{error:?}");
    let left: Vec<u32> = connection.dump_meters().await?.iter().map(|meter| meter.id).collect();
    ensure!(left.contains(&601) && !left.contains(&9) && left.len() == 600, "{left:?}");
    drop(connection);
    ensure!(incoming.next().await.is_none(), "a refusal came unasked as well");
    Ok(())
}

/// Shows that a monitor tells of the flows that are there, and of each change that another client makes.
#[tokio::test]
async fn watched_flows_are_told() -> Result<()> {
    require!(Need::OpenVswitch, Need::Root);
    let switch = start()?;
    let (connection, mut incoming) = connect(&switch).await?;
    let first = flows(&["cookie=0x5, table=3, priority=7,ip actions=drop"]);
    connection.apply_bundle(vec![FlowMod::delete_table(255).into()]).await?;
    connection.apply_bundle(adds(&first)).await?;
    let there = connection.watch_flows(FlowMonitor::new(1)).await?;
    let [FlowUpdate::Initial(flow)] = &there[..] else { anyhow::bail!("{there:?}") };
    assert_eq!((&flow.key, flow.cookie, flow.actions.as_slice()), (&first[0].key(), 5, [].as_slice()));
    let target = format!("unix:{}", switch.bridge_socket(BRIDGE).display());
    switch.ofctl(&["-O", "OpenFlow15", "add-flow", &target, "table=4,priority=8,tcp,actions=goto_table:9"])?;
    switch.ofctl(&["-O", "OpenFlow15", "--strict", "del-flows", &target, "table=4,priority=8,tcp"])?;
    let mut told = Vec::new();
    while told.len() < 2 {
        let next = tokio::time::timeout(Duration::from_secs(10), incoming.next()).await?.context("connection over")?;
        if let Unasked::FlowUpdates(mut updates) = next {
            told.append(&mut updates);
        }
    }
    let [FlowUpdate::Added(added), FlowUpdate::Removed(removed, _)] = &told[..] else { anyhow::bail!("{told:?}") };
    assert_eq!(added.key, removed.key);
    assert_eq!((added.key.table, added.actions.as_slice()), (4, [Action::GotoTable(9)].as_slice()));
    Ok(())
}

/// Shows that buckets go in and out of a group, that connections are forgotten, and that tunnel options are mapped.
#[tokio::test]
async fn buckets_connections_and_options_change() -> Result<()> {
    require!(Need::OpenVswitch, Need::Root);
    let switch = start()?;
    let (connection, _incoming) = connect(&switch).await?;
    let group: Group = "group_id=7,type=select,bucket=bucket_id:1,actions=output:1".parse()?;
    let more: Group = "group_id=7,type=select,bucket=bucket_id:2,weight:5,actions=output:2".parse()?;
    connection.apply_bundle(vec![GroupMod::Add(group.clone()).into()]).await?;
    connection.checked(Message::GroupMod(GroupMod::InsertBuckets(BucketPlace::First, more.clone()))).await?;
    let found = connection.dump_groups().await?;
    assert_eq!(found[0].buckets, [more.buckets[0].clone(), group.buckets[0].clone()]);
    connection.checked(Message::GroupMod(GroupMod::RemoveBuckets(BucketPlace::Bucket(1), 7))).await?;
    assert_eq!(connection.dump_groups().await?, [more]);

    let source = Some([10, 0, 0, 1].into());
    let tuple = Some(CtTuple { source, target: Some([10, 0, 0, 2].into()), ..CtTuple::default() });
    for which in [
        CtFlush { zone: Some(5), ..CtFlush::default() },
        CtFlush { proto: 6, original: tuple, ..CtFlush::default() },
        CtFlush::default(),
    ] {
        connection.flush_connections(which).await?;
    }
    let map = TlvMap { class: 0xffff, kind: 0x10, octets: 4, field: 3 };
    connection.checked(Message::TlvTableMod(TlvTableMod::Add(vec![map]))).await?;
    let Message::TlvTableReply(table) = connection.ask(Message::TlvTableRequest).await? else {
        anyhow::bail!("another answer")
    };
    assert_eq!(table.maps, [map]);
    connection.checked(Message::TlvTableMod(TlvTableMod::Clear)).await?;
    for request in [
        MultipartRequest::TableFeatures(Vec::new()),
        MultipartRequest::TableSettings,
        MultipartRequest::GroupFeatures,
        MultipartRequest::QueueStats(QueueFilter { port: PortNo::ANY, queue: QUEUE_ALL }),
        MultipartRequest::Queues(QueueFilter { port: PortNo::LOCAL, queue: QUEUE_ALL }),
    ] {
        let answer = connection.ask(Message::MultipartRequest(request)).await?;
        let is_known = !matches!(&answer, Message::MultipartReply { reply: MultipartReply::Unknown { .. }, .. });
        ensure!(is_known, "{answer:?}");
    }
    Ok(())
}

/// Shows that a bridge without OpenFlow 1.5 is refused with the way out.
#[tokio::test]
async fn old_protocol_is_refused() -> Result<()> {
    require!(Need::OpenVswitch, Need::Root);
    let switch = start()?;
    switch.vsctl(&["set", "bridge", BRIDGE, "protocols=OpenFlow13"])?;
    let error = connect(&switch).await.err().context("connected")?;
    let said = format!("{error:#}");
    ensure!(said.contains("OpenFlow 1.5") && said.contains("ovs-vsctl set bridge"), "{said}");
    Ok(())
}

/// Shows how long 20,000 flows take to install in one bundle and to dump, and that both give the same values.
#[tokio::test]
async fn twenty_thousand_flows() -> Result<()> {
    require!(Need::OpenVswitch, Need::Root);
    let switch = start()?;
    let (connection, _incoming) = connect(&switch).await?;
    let mut wanted: Vec<Flow> = (0..20_000_u32)
        .map(|n| {
            let matching = Match::new().ip().with(Field::Reg3, n % 7).with(Field::Ipv4Dst, 0x0a00_0000 + n);
            let actions = vec![Action::set(Field::Reg2, n), Action::DecTtl, Action::GotoTable(20)];
            Flow::new(10, 100, matching, actions).with_cookie(n.into())
        })
        .collect();
    let started = Instant::now();
    let mut changes = vec![FlowMod::delete_table(255).into()];
    changes.extend(adds(&wanted));
    connection.apply_bundle(changes).await?;
    let applied = started.elapsed();
    let started = Instant::now();
    let mut found = connection.dump_flows().await?;
    let dumped = started.elapsed();
    println!("20000 flows: bundle {applied:?}, dump {dumped:?}");
    wanted.sort();
    found.sort();
    ensure!(wanted == found, "{} flows came back", found.len());
    Ok(())
}
