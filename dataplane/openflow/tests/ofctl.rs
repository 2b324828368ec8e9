//! Shows that our octets are those of `ovs-ofctl`, both ways.
//!
//! How: `ovs-ofctl ofp-parse` prints messages that we wrote, and must say what our own text says; and `ovs-ofctl` sends flows and
//! groups to a switch that we play, which must read the values that our own parser reads from the same text.

mod samples;

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use basalt_tests::{process, require, skip::Need};
use openflow::{
    flow::{Action, Controller, Field, Flow, FlowFlags, Group, Match, PacketInReason, PortNo},
    wire::{
        self, BucketPlace, BundleControl, BundleFlags, BundleStep, CtFlush, CtTuple, Features, FlowMod, FlowMonitor,
        FlowUpdate, GroupMod, Hello, METER_ALL, Message, Meter, MeterCounters, MeterMod, MeterUnit, MultipartReply,
        MultipartRequest, PacketIn, PacketInFormat, PacketOut, Port, PortChange, PortMod, PortStatus, QUEUE_ALL,
        QueueCounters, QueueFilter, Role, RoleKind, RoleStatus, SwitchConfig, SwitchError, Table, TableMod, TlvMap,
        TlvTableMod, WatchedFlow,
    },
};
use samples::{FLOWS, GROUPS, REFUSED_FLOWS};

const TIMEOUT: Duration = Duration::from_secs(30);

/// What `ovs-ofctl` prints for messages, one text each.
fn printed(messages: &[Message]) -> Result<Vec<String>> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("messages");
    let octets: Vec<u8> =
        messages.iter().flat_map(|message| wire::encode(message, 7).expect("has a wire form")).collect();
    std::fs::write(&file, octets)?;
    let text = process::run(Command::new("ovs-ofctl").arg("--no-names").arg("ofp-parse").arg(&file), TIMEOUT)?;
    let mut texts: Vec<String> = Vec::new();
    for line in text.lines() {
        match texts.last_mut() {
            Some(last) if !line.starts_with("OFPT_") && !line.starts_with("NXT_") && !line.starts_with("OFPST_") => {
                last.push('\n');
                last.push_str(line);
            }
            _ => texts.push(line.to_owned()),
        }
    }
    Ok(texts)
}

/// A flow as `ovs-ofctl` prints it inside a flow_mod.
fn as_flow_mod(flow: &Flow) -> String {
    let mut words = vec!["ADD".to_owned()];
    if flow.table != 0 {
        words.push(format!("table:{}", flow.table));
    }
    match (flow.priority, flow.matching.to_string()) {
        (0x8000, matching) if matching.is_empty() => {}
        (0x8000, matching) => words.push(matching),
        (priority, matching) if matching.is_empty() => words.push(format!("priority={priority}")),
        (priority, matching) => words.push(format!("priority={priority},{matching}")),
    }
    let numbers = [("idle", flow.idle_timeout), ("hard", flow.hard_timeout), ("importance", flow.importance)];
    if flow.cookie != 0 {
        words.push(format!("cookie:{:#x}", flow.cookie));
    }
    words.extend(numbers.iter().filter(|(_, n)| *n != 0).map(|(name, n)| format!("{name}:{n}")));
    for (flag, name) in [
        (FlowFlags::SEND_FLOW_REMOVED, "send_flow_rem"),
        (FlowFlags::NO_PACKET_COUNTS, "no_packet_counts"),
        (FlowFlags::NO_BYTE_COUNTS, "no_byte_counts"),
    ] {
        if flow.flags.contains(flag) {
            words.push(name.to_owned());
        }
    }
    words.push(format!("actions={}", openflow::flow::print_actions(&flow.actions)));
    words.join(" ")
}

fn sample_flows() -> Vec<Flow> {
    let lines = FLOWS.iter().chain(REFUSED_FLOWS);
    lines.map(|line| line.parse().unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

fn sample_groups() -> Vec<Group> {
    GROUPS.iter().map(|line| line.parse().unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

/// Shows that flows which we encode are printed by ovs-ofctl as we print them.
#[test]
fn our_flows_read_the_same() -> Result<()> {
    require!(Need::OpenVswitch);
    let flows = sample_flows();
    let messages: Vec<Message> = flows.iter().map(|flow| Message::FlowMod(FlowMod::add(flow.clone()))).collect();
    let texts = printed(&messages)?;
    ensure!(texts.len() == flows.len(), "{} texts: {texts:#?}", texts.len());
    for (flow, text) in flows.iter().zip(texts) {
        assert_eq!(text, format!("OFPT_FLOW_MOD (OF1.5) (xid=0x7): {}", as_flow_mod(flow)));
    }
    Ok(())
}

/// Shows that groups which we encode are printed by ovs-ofctl as we print them.
#[test]
fn our_groups_read_the_same() -> Result<()> {
    require!(Need::OpenVswitch);
    let groups = sample_groups();
    let messages: Vec<Message> = groups.iter().map(|group| Message::GroupMod(GroupMod::Add(group.clone()))).collect();
    for (group, text) in groups.iter().zip(printed(&messages)?) {
        let flat = text.replace('\n', "");
        ensure!(flat.ends_with(&format!("ADD {group}")), "{text}\nshould end with {group}");
    }
    Ok(())
}

fn packet_in() -> PacketIn {
    PacketIn {
        packet: vec![0; 60],
        octets_total: 60,
        reason: PacketInReason::ACTION,
        table: 3,
        cookie: 0xabc,
        metadata: Match::new().in_port(PortNo(4)).with(Field::Reg2, 5),
        userdata: vec![1, 2],
        continuation: None,
    }
}

/// Shows that messages other than changes of flows mean to ovs-ofctl what they mean to us.
#[test]
fn our_messages_read_the_same() -> Result<()> {
    require!(Need::OpenVswitch);
    let port = Port {
        number: PortNo(4),
        address: [2, 0, 0, 0, 0, 9],
        name: "tap4".into(),
        config: 1,
        state: 1,
        speed_kbps: 0,
    };
    let error = SwitchError { kind: 5, code: 1, experimenter: None, data: Vec::new() };
    let meter = Meter::drop_above(5, MeterUnit::Packets, 100, 20);
    let flags = BundleFlags::ATOMIC | BundleFlags::ORDERED;
    let pause = Action::Controller(Controller::new().with_userdata([1, 2]).paused());
    let features = Features { datapath_id: 0x1234, buffers: 0, tables: 254, auxiliary_id: 0, capabilities: 0 };
    let cases = [
        (Message::Hello(Hello::new()), "version bitmap: 0x06"),
        (Message::Error(error), "OFPFMFC_TABLE_FULL"),
        (Message::EchoRequest(vec![1, 2, 3]), "OFPT_ECHO_REQUEST (OF1.5) (xid=0x7): 3 bytes of payload"),
        (Message::FeaturesReply(features), "dpid:0000000000001234"),
        (Message::SetConfig(SwitchConfig { flags: 0, miss_octets_max: 128 }), "frags=normal miss_send_len=128"),
        (
            Message::PacketIn(PacketIn { userdata: vec![], ..packet_in() }),
            "table_id=3 cookie=0xabc total_len=60 reg2=0x5,in_port=4 (via action)",
        ),
        (
            Message::PacketIn(packet_in()),
            "NXT_PACKET_IN2 (OF1.5) (xid=0x7): table_id=3 cookie=0xabc total_len=60 reg2=0x5,in_port=4 (via action) data_len=60 (unbuffered)\n userdata=01.02",
        ),
        (
            Message::PacketOut(PacketOut::new(PortNo(4), vec![pause], vec![0; 60])),
            "in_port=4 actions=controller(userdata=01.02,pause) data_len=60",
        ),
        (
            Message::PortStatus(PortStatus { change: PortChange::Added, port }),
            "ADD: 4(tap4): addr:02:00:00:00:00:09\n     config:     PORT_DOWN\n     state:      LINK_DOWN",
        ),
        (
            Message::MeterMod(MeterMod::Add(meter)),
            "ADD meter=5 pktps burst stats bands=\ntype=drop rate=100 burst_size=20",
        ),
        (Message::GroupMod(GroupMod::Delete(7)), "DEL group_id=7,type=all"),
        (Message::FlowMod(FlowMod::delete_table(3)), "DEL table:3 priority=0 actions=drop"),
        (Message::FlowMod(FlowMod::delete_cookie(5, 0xff)), "DEL table:255 priority=0 cookie:0x5/0xff actions=drop"),
        (
            Message::BundleControl(BundleControl { id: 5, step: BundleStep::Commit, flags }),
            "bundle_id=0x5 type=COMMIT_REQUEST flags=atomic ordered",
        ),
        (Message::RoleRequest(Role { kind: RoleKind::Primary, generation: 3 }), "role=primary generation_id=3"),
        (Message::SetPacketInFormat(PacketInFormat::Extended), "format=nxt_packet_in2"),
        (Message::SetControllerId(9), "id=9"),
        (
            Message::MultipartRequest(MultipartRequest::Ports(PortNo(4))),
            "OFPST_PORT_DESC request (OF1.5) (xid=0x7): port=4",
        ),
        (Message::BarrierReply, "OFPT_BARRIER_REPLY (OF1.5) (xid=0x7):"),
    ];
    check(&cases)
}

/// Holds what ovs-ofctl prints for each message against what it should say.
fn check(cases: &[(Message, &str)]) -> Result<()> {
    let messages: Vec<Message> = cases.iter().map(|(message, _)| message.clone()).collect();
    let texts = printed(&messages)?;
    ensure!(texts.len() == cases.len(), "{} texts: {texts:#?}", texts.len());
    let wrong = cases.iter().zip(texts).filter(|((_, expected), text)| !text.contains(expected));
    let wrong: Vec<_> =
        wrong.map(|((message, expected), text)| format!("{message:?}\nreads {text:?}\nnot    {expected:?}")).collect();
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn counted() -> Duration {
    Duration::from_millis(9500)
}

/// The same for meters, groups, queues, tables, monitors and the messages that Nicira added.
#[test]
fn our_rarer_messages_read_the_same() -> Result<()> {
    require!(Need::OpenVswitch);
    let meter = Meter::drop_above(5, MeterUnit::Kilobits, 100, 20);
    let meter_counters = MeterCounters {
        meter: 5,
        references: 3,
        packets: 100,
        octets: 2000,
        duration: counted(),
        bands: vec![(7, 70)],
    };
    let group: Group = "group_id=7,type=select,bucket=bucket_id:5,actions=output:1".parse()?;
    let queue = QueueCounters { port: PortNo(3), queue: 4, octets: 50, packets: 5, errors: 1, duration: counted() };
    let port_mod = PortMod { number: PortNo(4), address: [2, 0, 0, 0, 0, 9], config: 1, mask: 1, advertise: 0 };
    let table = Table { id: 3, config: Table::EVICTION, eviction: None, vacancy: None };
    let flow: Flow = "table=3,priority=7,ip actions=output:2".parse()?;
    let watched =
        WatchedFlow { key: flow.key(), cookie: 5, idle_timeout: 0, hard_timeout: 0, actions: flow.actions.clone() };
    let updates = vec![FlowUpdate::Added(watched), FlowUpdate::Own(9)];
    let map = TlvMap { class: 0xffff, kind: 0x10, octets: 4, field: 3 };
    let source = Some([10, 1, 1, 1].into());
    let flush =
        CtFlush { zone: Some(5), proto: 6, original: Some(CtTuple { source, ..CtTuple::default() }), reply: None };
    let role = RoleStatus { role: Role { kind: RoleKind::Secondary, generation: 3 }, reason: 0 };
    let reply = |reply| Message::MultipartReply { reply, more: false };
    let ask = Message::MultipartRequest;
    check(&[
        (
            Message::MeterMod(MeterMod::Modify(meter.clone())),
            "MOD meter=5 kbps burst stats bands=\ntype=drop rate=100 burst_size=20",
        ),
        (Message::MeterMod(MeterMod::Delete(METER_ALL)), "DEL meter=all"),
        (ask(MultipartRequest::MeterStats(METER_ALL)), "OFPST_METER request (OF1.5) (xid=0x7): meter=all"),
        (ask(MultipartRequest::Meters(5)), "OFPST_METER_CONFIG request (OF1.5) (xid=0x7): meter=5"),
        (ask(MultipartRequest::MeterFeatures), "OFPST_METER_FEATURES request"),
        (
            reply(MultipartReply::Meters(vec![meter])),
            "meter=5 kbps burst stats bands=\ntype=drop rate=100 burst_size=20",
        ),
        (
            reply(MultipartReply::MeterStats(vec![meter_counters])),
            "meter:5 flow_count:3 packet_in_count:100 byte_in_count:2000 duration:9.500s bands:\n0: packet_count:7 byte_count:70",
        ),
        (
            Message::GroupMod(GroupMod::InsertBuckets(BucketPlace::Last, group)),
            "INSERT_BUCKET command_bucket_id:last,group_id=7,bucket=bucket_id:5,actions=output:1",
        ),
        (
            Message::GroupMod(GroupMod::RemoveBuckets(BucketPlace::Bucket(5), 7)),
            "REMOVE_BUCKET command_bucket_id:5,group_id=7",
        ),
        (ask(MultipartRequest::GroupFeatures), "OFPST_GROUP_FEATURES request"),
        (ask(MultipartRequest::QueueStats(QueueFilter { port: PortNo::ANY, queue: QUEUE_ALL })), "port=ANY queue=ALL"),
        (reply(MultipartReply::QueueStats(vec![queue])), "port 3 queue 4: bytes=50, pkts=5, errors=1, duration=9.500s"),
        (Message::PortMod(port_mod), "port: 4: addr:02:00:00:00:00:09\n     config: PORT_DOWN\n     mask:   PORT_DOWN"),
        (Message::TableMod(TableMod(table)), "table_id=3, eviction=on, vacancy=off"),
        (reply(MultipartReply::TableSettings(vec![table])), "OFPST_TABLE_DESC reply"),
        (ask(MultipartRequest::TableFeatures(Vec::new())), "OFPST_TABLE_FEATURES request"),
        (ask(MultipartRequest::FlowMonitor(vec![FlowMonitor::new(5)])), "id=5 flags=initial,add,delete,modify,actions"),
        (
            reply(MultipartReply::FlowUpdates(updates)),
            // It does not print the priority, which stands between the timeouts and the cookie.
            "event=ADDED table=3 cookie=0x5 ip actions=output:2\n event=ABBREV xid=0x9",
        ),
        (
            Message::TlvTableMod(TlvTableMod::Add(vec![map])),
            "ADD mapping table:\n  class  type  length  match field\n ------  ----  ------  --------------\n 0xffff  0x10       4  tun_metadata3",
        ),
        (Message::CtFlushZone(5), "NXT_CT_FLUSH_ZONE (OF1.5) (xid=0x7): zone_id=5"),
        (Message::CtFlush(flush), "zone=5 'ct_nw_src=10.1.1.1,"),
        (Message::RoleStatus(role), "role=secondary generation_id=3 reason=primary_request"),
    ])
}

/// Plays a switch for one client until it goes; gives the changes that it sent.
fn play_switch(listener: &UnixListener) -> Result<Vec<Message>> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let send =
        |to: &mut UnixStream, message: &Message, xid| -> Result<()> { Ok(to.write_all(&wire::encode(message, xid)?)?) };
    send(&mut stream, &Message::Hello(Hello::new()), 1)?;
    let (mut input, mut changes) = (Vec::new(), Vec::new());
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(changes);
        }
        input.extend_from_slice(&buffer[..count]);
        while let Some(length) = wire::message_length(&input)?.filter(|length| *length <= input.len()) {
            let octets: Vec<u8> = input.drain(..length).collect();
            // The client asks for the tables' names, which is outside of what we read: type 18, part 12.
            if (octets[1], octets.get(9)) == (18, Some(&12)) {
                let xid = u32::from_be_bytes([octets[4], octets[5], octets[6], octets[7]]);
                let mut body = vec![0, 64];
                body.resize(64, 0);
                let reply = MultipartReply::Unknown { kind: 12, body };
                send(&mut stream, &Message::MultipartReply { reply, more: false }, xid)?;
                continue;
            }
            match wire::decode(&octets).with_context(|| format!("{octets:02x?}"))? {
                (xid, Message::BarrierRequest) => send(&mut stream, &Message::BarrierReply, xid)?,
                (xid, Message::MultipartRequest(MultipartRequest::Ports(_))) => {
                    let reply = MultipartReply::Ports(Vec::new());
                    send(&mut stream, &Message::MultipartReply { reply, more: false }, xid)?;
                }
                (_, change @ (Message::FlowMod(_) | Message::GroupMod(_))) => changes.push(change),
                _ => {}
            }
        }
    }
}

/// What `ovs-ofctl COMMAND` sends for the lines of a file.
fn sent_by_ofctl(command: &str, lines: &[&str]) -> Result<Vec<Message>> {
    let directory = tempfile::tempdir()?;
    let (file, socket) = (directory.path().join("lines"), directory.path().join("switch"));
    std::fs::write(&file, lines.join("\n"))?;
    let listener = UnixListener::bind(&socket)?;
    // The client connects twice: to ask for names, and to send.
    let player = thread::spawn(move || -> Result<Vec<Message>> {
        loop {
            let changes = play_switch(&listener)?;
            if !changes.is_empty() {
                return Ok(changes);
            }
        }
    });
    let target = |socket: &Path| format!("unix:{}", socket.display());
    let mut ofctl = Command::new("ovs-ofctl");
    ofctl.args(["-O", "OpenFlow15", "--timeout=20", command]).arg(target(&socket)).arg(&file);
    process::run(&mut ofctl, TIMEOUT)?;
    player.join().map_err(|_| anyhow::anyhow!("the player panicked"))?
}

/// Shows that we read what ovs-ofctl sends for a flow as the value that we read from the flow's text.
#[test]
fn their_flows_read_the_same() -> Result<()> {
    require!(Need::OpenVswitch);
    let lines = [FLOWS, REFUSED_FLOWS].concat();
    let sent = sent_by_ofctl("add-flows", &lines)?;
    ensure!(sent.len() == lines.len(), "{} of {} arrived", sent.len(), lines.len());
    for (flow, message) in sample_flows().into_iter().zip(sent) {
        assert_eq!(message, Message::FlowMod(FlowMod::add(flow)));
    }
    Ok(())
}

/// The same for groups.
#[test]
fn their_groups_read_the_same() -> Result<()> {
    require!(Need::OpenVswitch);
    let sent = sent_by_ofctl("add-groups", GROUPS)?;
    ensure!(sent.len() == GROUPS.len(), "{} of {} arrived", sent.len(), GROUPS.len());
    for (group, message) in sample_groups().into_iter().zip(sent) {
        assert_eq!(message, Message::GroupMod(GroupMod::Add(group)));
    }
    Ok(())
}
