//! Shows that the client works with a real Open vSwitch: what is installed is dumped back as the same values, bundles are all or
//! nothing, packets pass both ways.
//!
//! How: a private switch with the userspace datapath, in a network namespace of its own.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use basalt_tests::{ovs::Switch, require, skip::Need};
use openflow::{
    connection::{ApplyError, Connection, Incoming, Options, Target, Unasked},
    flow::{Action, Controller, Field, Flow, Group, Match, PortNo},
    session::{BundleError, Change},
    wire::{FlowFilter, FlowMod, GROUP_ALL, GroupMod, Message, Meter, MeterMod, MeterUnit, PacketOut},
};

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

/// Flows of every kind that a pipeline needs, in the words in which people write them.
const FLOWS: &[&str] = &[
    "cookie=0x123456789abcdef0,table=0,priority=100,ip,in_port=1,dl_src=02:00:00:00:00:01,nw_src=10.0.0.1 actions=set_field:0x5->metadata,set_field:7->reg3,load:1->NXM_NX_REG0[3],set_field:0x2/0x2->reg0,goto_table:10",
    "table=0,priority=110,udp,in_port=1,nw_src=0.0.0.0,tp_src=68,tp_dst=67 actions=controller(pause,userdata=01.02.03,max_len=65535)",
    "table=0,priority=90,in_port=2,tun_id=5000 actions=set_field:0x7->xreg2,goto_table:10",
    "table=0,priority=89,ipv6,in_port=2 actions=set_field:0x7->xxreg2,set_field:::1->ipv6_dst,goto_table:10",
    "table=0,priority=80,dl_vlan=7,dl_vlan_pcp=3 actions=pop_vlan,goto_table:10",
    "table=0,priority=79,vlan_tci=0x0000/0x1fff actions=push_vlan:0x8100,set_field:4103->vlan_vid,NORMAL",
    "table=0,priority=78,vlan_tci=0x1000/0x1000 actions=strip_vlan,goto_table:10",
    "table=0,priority=77,dl_vlan_pcp=2 actions=drop",
    "table=0,priority=76,dl_vlan=0xffff,in_port=LOCAL actions=drop",
    "table=0,priority=0 actions=drop",
    "table=5,priority=100,arp,metadata=0x5,arp_tpa=10.0.0.254,arp_op=1 actions=move:NXM_OF_ETH_SRC[]->NXM_OF_ETH_DST[],set_field:02:01:00:00:00:01->eth_src,set_field:2->arp_op,move:arp_sha->arp_tha,set_field:02:01:00:00:00:01->arp_sha,move:arp_spa->arp_tpa,set_field:10.0.0.254->arp_spa,set_field:0->in_port,IN_PORT",
    "table=5,priority=90,icmp6,icmp_type=135,icmp_code=0,nd_target=fe80::1,nd_sll=02:00:00:00:00:01 actions=set_field:136->icmpv6_type,set_field:2->nd_options_type,set_field:0xe0000000->nd_reserved,move:ipv6_src->ipv6_dst,IN_PORT",
    "table=10,priority=100,ip,xxreg0=0x1000000020000000300000004,nw_dst=10.1.0.0/16 actions=dec_ttl,resubmit(,20)",
    "table=10,priority=99,xreg1=0x100000000/0xff00000000 actions=resubmit(3,),resubmit:4,resubmit(5,6)",
    "table=10,priority=98,ip,nw_tos=184,nw_ecn=1,nw_ttl=64 actions=set_field:10->ip_dscp,mod_nw_src:10.9.9.9",
    "table=10,priority=97,ip,nw_frag=later actions=drop",
    "table=10,priority=96,tcp,nw_frag=not_later,tp_dst=0x1f00/0xff00,tcp_flags=+syn-ack actions=group:7",
    "table=20,priority=100,ip actions=ct(zone=NXM_NX_REG3[0..15],table=21)",
    "table=21,priority=100,ct_state=+trk+inv actions=drop",
    "table=21,priority=90,ct_state=-new+est+rpl+trk,ct_mark=0,ip actions=goto_table:30",
    "table=21,priority=80,ct_state=+trk+est-inv,ct_nw_src=10.0.0.0/8,ct_nw_proto=6,ct_tp_dst=80,ip,ct_zone=7,ct_label=0x5/0xf actions=ct_clear,goto_table:22",
    "table=22,priority=90,ip,reg4=0x1 actions=conjunction(10,1/2),conjunction(11,1/3)",
    "table=22,priority=91,ip,reg5=0x1 actions=conjunction(10,2/2)",
    "table=22,priority=92,conj_id=10,ip actions=note:01.02.03,goto_table:24",
    "table=24,priority=100,ct_state=+new+trk,ip actions=ct(commit,zone=NXM_NX_REG3[0..15],exec(set_field:0x1/0x1->ct_mark,set_field:0x5->ct_label)),goto_table:30",
    "table=24,priority=99,ct_state=+new+trk,ip actions=ct(commit,zone=5,nat(src=192.0.2.1-192.0.2.9:1024-2048,random)),goto_table:30",
    "table=24,priority=98,ct_state=+trk,ipv6 actions=ct(table=25,zone=5,nat)",
    "table=24,priority=97,tcp6 actions=ct(commit,force,zone=5,alg=ftp,nat(dst=[2001:db8::1]:80))",
    "table=30,priority=100,reg2=0x1 actions=output:1",
    "table=30,priority=99,reg2=0x2 actions=set_field:0x1389->tun_id,set_field:172.20.0.2->tun_dst,output:2",
    "table=30,priority=98,reg2=0x3 actions=output:NXM_NX_REG7[0..15]",
    "table=30,priority=97,reg2=0x4 actions=output(port=1,max_len=100),clone(set_field:1->reg1,output:2),CONTROLLER:128",
    "table=30,priority=96,reg2=0x5 actions=check_pkt_larger(1400)->NXM_NX_REG0[5],push:NXM_NX_REG0[],pop:NXM_NX_REG1[],goto_table:31",
    "table=31,idle_timeout=60,hard_timeout=600,importance=3,send_flow_rem,no_packet_counts,priority=5,pkt_mark=0x1/0xf actions=multipath(symmetric_l4,5,modulo_n,4,0,NXM_NX_REG1[0..3]),exit",
    "table=32,priority=1 actions=learn(table=33,hard_timeout=30,priority=9,NXM_OF_VLAN_TCI[0..11],NXM_OF_ETH_DST[]=NXM_OF_ETH_SRC[],load:0->NXM_OF_VLAN_TCI[],output:NXM_OF_IN_PORT[]),learn(table=34,limit=5,result_dst=NXM_NX_REG0[7],eth_type=0x800,NXM_NX_REG1[0..7]=0x3)",
    "table=40,priority=3,tcp actions=clear_actions,write_actions(output:1,group:7),write_metadata:0x5/0xf,goto_table:41",
    "table=40,priority=2,icmp,icmp_type=8,icmp_code=0 actions=meter:3,controller(reason=no_match,id=4,meter_id=3),dec_ttl(1,2)",
    "table=41,priority=1,tun_src=172.20.0.0/16,tun_ipv6_dst=2001:db8::/32,tun_flags=+oam actions=drop",
    "table=41,priority=2,dl_dst=01:00:00:00:00:00/01:00:00:00:00:00 actions=group:8",
    "table=41,priority=3,ipv6,ipv6_src=2001:db8::/64,ipv6_label=0x12345 actions=set_queue:3,output:1,pop_queue",
    "table=41,priority=4,sctp,tp_src=5 actions=drop",
    "table=41,priority=5,dl_type=0x88cc actions=drop",
    "table=41,priority=6,rarp,arp_sha=02:00:00:00:00:01 actions=drop",
];

const GROUPS: &[&str] = &[
    "group_id=7,type=select,selection_method=dp_hash,bucket=bucket_id:1,weight:100,actions=set_field:1->reg1,output:1,bucket=bucket_id:2,actions=output:2",
    "group_id=8,type=all,bucket=bucket_id:0,actions=output:1,bucket=bucket_id:1,actions=set_field:2->reg2,resubmit(,30)",
    "group_id=9,type=fast_failover,bucket=bucket_id:0,watch_port:1,actions=output:1,bucket=bucket_id:5,watch_group:8,actions=group:8",
    "group_id=10,type=indirect,bucket=bucket_id:0,actions=dec_ttl,output:2",
    "group_id=11,type=select,selection_method=hash,fields(eth_src,ip_dst),bucket=bucket_id:0,weight:0,actions=drop",
];

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
    let meter = Meter { id: 3, rate: 1000, burst: 100, unit: MeterUnit::Packets };
    connection.change_meter(MeterMod::Add(meter)).await?;
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
    ];
    for (refused, name) in cases {
        let mut wanted = flows(&["table=2,priority=1,ip actions=drop", refused, "table=3,priority=1 actions=drop"]);
        wanted.insert(0, before[0].clone().with_cookie(9));
        let error = connection.apply_bundle(adds(&wanted)).await.err().context("was applied")?;
        let ApplyError::Bundle(BundleError::Refused { index, change, source }) = &error else {
            panic!("{refused}: {error:?}")
        };
        assert_eq!((*index, source.name()), (2, Some(name)), "{error:?}");
        ensure!(change.contains(refused), "{change}");
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
