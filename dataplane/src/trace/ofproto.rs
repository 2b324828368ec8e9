//! What Open vSwitch's `ofproto/trace` says of a packet, read from its text, and whether our walk says the same.
//!
//! Owns [`Report`] and [`compare`]. Reads the tables that flows were met in and the actions that left the switch; looks past everything else,
//! such as megaflows and datapath actions, which differ between datapaths.
//! Source: ovs-vswitchd(8) "ofproto/trace"; output of Open vSwitch 3.1.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use openflow::flow::Field;
use serde::{Deserialize, Serialize};

use super::{Connection, Packet, Path, Verdict};
use crate::flow_set::FlowSet;
use crate::table::Table;

/// What Open vSwitch said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Numbers of the tables that were looked in, in order.
    pub tables: Vec<u8>,
    /// What left the switch; empty means that the packet was dropped.
    pub outputs: BTreeSet<Exit>,
}

/// One way that a packet left the switch.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// Out of an OpenFlow port.
    Port(u32),
    /// Out of the tunnel port.
    Tunnel {
        /// To this endpoint.
        endpoint: Ipv4Addr,
        /// With this VNI.
        vni: u64,
    },
    /// Back out of the port that it came in on.
    Back,
    /// To the controller.
    Controller,
}

/// Text that is no output of `ofproto/trace`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// No flow was looked up.
    #[error("read output of ofproto/trace: it names no table: {0:?}")]
    NoTable(String),
    /// A tunnel whose destination was not said.
    #[error("read output of ofproto/trace: output to tunnel port {0} before a tunnel destination")]
    NoEndpoint(u32),
}

/// Where our walk and Open vSwitch part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disagreement {
    /// What our walk lets out of the switch.
    pub ours: BTreeSet<Exit>,
    /// What Open vSwitch does.
    pub theirs: BTreeSet<Exit>,
    /// The tables of our walk.
    pub our_tables: Vec<u8>,
    /// The tables of Open vSwitch's.
    pub their_tables: Vec<u8>,
}

impl Report {
    /// Reads the output of `ofproto/trace`; `tunnel` is the OpenFlow port of the VXLAN tunnel.
    ///
    /// # Errors
    /// [`ReportError`] when it is no such output.
    pub fn parse(text: &str, tunnel: Option<u32>) -> Result<Self, ReportError> {
        let mut report = Self::default();
        let (mut endpoint, mut vni) = (None, 0);
        let mut lines = text.lines().map(str::trim).peekable();
        while let Some(line) = lines.next() {
            if let Some(table) = table_of(line) {
                report.tables.push(table);
            } else if let Some(value) = written(line, "tun_dst", "NXM_NX_TUN_IPV4_DST[]") {
                endpoint = value.parse().ok();
            } else if let Some(value) = written(line, "tun_id", "NXM_NX_TUN_ID[0..23]") {
                vni = value.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(0);
            } else if line == "IN_PORT" {
                report.outputs.insert(Exit::Back);
            } else if line.starts_with("controller(") || line.starts_with("CONTROLLER") {
                report.outputs.insert(Exit::Controller);
            } else if let Some(port) = line.strip_prefix("output:").and_then(|number| number.parse::<u32>().ok()) {
                let skipped = lines.peek().is_some_and(|next| next.contains("skipping output"));
                if Some(port) == tunnel {
                    let endpoint = endpoint.ok_or(ReportError::NoEndpoint(port))?;
                    report.outputs.insert(Exit::Tunnel { endpoint, vni });
                } else if !skipped {
                    report.outputs.insert(Exit::Port(port));
                }
            }
        }
        if report.tables.is_empty() {
            return Err(ReportError::NoTable(text.chars().take(200).collect()));
        }
        Ok(report)
    }
}

/// How many passes through the connection tracker are answered: a flood has one for each copy.
const ANSWERS: usize = 64;

/// The words that `ovs-appctl` takes to ask Open vSwitch about a packet, with the connection tracker saying the same as in our walk.
#[must_use]
pub fn arguments(bridge: &str, packet: &Packet, connection: Connection) -> Vec<String> {
    let state = match connection {
        Connection::New => "trk,new",
        Connection::Established => "trk,est",
        Connection::Reply => "trk,est,rpl",
        Connection::Related => "trk,rel",
        Connection::Invalid => "trk,inv",
    };
    let answers = ["--ct-next", state].repeat(ANSWERS);
    let mut words = vec!["ofproto/trace", bridge];
    words.extend(answers);
    words.into_iter().map(str::to_owned).chain([packet.to_text()]).collect()
}

/// What our walk lets out of the switch, in Open vSwitch's terms.
#[must_use]
pub fn exits(set: &FlowSet, path: &Path) -> BTreeSet<Exit> {
    let copies = path.mirrored.iter().map(|copy| &copy.outcome);
    path.outcomes
        .iter()
        .chain(copies)
        .filter_map(|outcome| match &outcome.verdict {
            Verdict::Delivered { port, .. } => set.number_of(*port).map(|number| {
                let is_back = outcome.leaving.get(Field::InPort) == u128::from(number.0);
                if is_back { Exit::Back } else { Exit::Port(number.0) }
            }),
            Verdict::Tunnelled { endpoint, vni, .. } => {
                Some(Exit::Tunnel { endpoint: *endpoint, vni: u64::from(*vni) })
            }
            Verdict::Answered { .. } => Some(Exit::Back),
            Verdict::Punted { .. } => Some(Exit::Controller),
            Verdict::Output { port } | Verdict::Physical { port, .. } => Some(Exit::Port(*port)),
            Verdict::Dropped { .. } => None,
        })
        .collect()
}

/// Holds our walk against Open vSwitch's: the same exits, and the same tables in some order (Open vSwitch recirculates last).
#[must_use]
pub fn compare(set: &FlowSet, path: &Path, report: &Report) -> Option<Disagreement> {
    let ours = exits(set, path);
    let mut our_tables: Vec<u8> = path.hops.iter().map(|hop| hop.table).collect();
    let mut their_tables = report.tables.clone();
    our_tables.sort_unstable();
    their_tables.sort_unstable();
    let theirs = report.outputs.clone();
    (ours != theirs || our_tables != their_tables).then_some(Disagreement { ours, theirs, our_tables, their_tables })
}

/// The table that a line like `10. ip,reg0=0/0x1, priority 100, cookie 0x1` or `10. No match.` speaks of.
fn table_of(line: &str) -> Option<u8> {
    let (number, rest) = line.split_once(". ")?;
    let number = number.parse().ok()?;
    let met = rest.contains("priority ") || rest.starts_with("No match");
    (met && Table::by_number(number).is_some()).then_some(number)
}

/// The value that a line writes into a field: by `set_field`, or as told after a `move`.
fn written<'a>(line: &'a str, name: &str, long_name: &str) -> Option<&'a str> {
    if let Some(rest) = line.strip_prefix("set_field:") {
        return rest.split_once("->").filter(|(_, field)| *field == name).map(|(value, _)| value);
    }
    line.strip_prefix("-> ")?.strip_prefix(long_name)?.strip_prefix(" is now ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Open vSwitch 3.1 printed for a routed packet to another host, cut to the lines that matter and some that must not.
    const ROUTED: &str = r#"
Flow: tcp,in_port=10,vlan_tci=0x0000,nw_src=10.0.1.11,nw_dst=10.0.2.22

bridge("br-int")
----------------
 0. ip,in_port=10,nw_src=10.0.1.11, priority 100, cookie 0xba5a010200000001
    set_field:0x1389->metadata
    goto_table:20
20. ip,reg0=0x2/0x2, priority 200, cookie 0xba5a070000000000
    ct(table=21,zone=NXM_NX_REG3[0..15])
    drop

Final flow: tcp,reg0=0xa,in_port=10
Datapath actions: ct(zone=1),recirc(0x1)

recirc(0x1) - resume conntrack with ct_state=new|trk

bridge("br-int")
----------------
    thaw
        Resuming from table 21
21. priority 0, cookie 0xba5a070000000000
    goto_table:30
30. reg0=0x8/0x8, priority 200, cookie 0xba5a090000000000
    move:OXM_OF_METADATA[0..23]->NXM_NX_TUN_ID[0..23]
     -> NXM_NX_TUN_ID[0..23] is now 0x138a
    move:NXM_NX_REG6[]->NXM_NX_TUN_IPV4_DST[]
     -> NXM_NX_TUN_IPV4_DST[] is now 172.20.0.2
    output:1
     -> output to native tunnel
     >> native tunnel routing failed
"#;

    /// A flood: a copy for the sender itself, which the switch skips, one for a port and one for a tunnel.
    const FLOOD: &str = "
10. metadata=0x1389,dl_dst=01:00:00:00:00:00/01:00:00:00:00:00, priority 50, cookie 0xba5a050100001389
    group:2986349449
    bucket 0
        30. reg2=0x1, priority 100, cookie 0xba5a080200000001
            output:10
             >> skipping output to input port
    bucket 1
        30. reg2=0x5, priority 100, cookie 0xba5a080200000005
            output:14
    bucket 2
                    set_field:172.20.0.3->tun_dst
                    output:1
";

    #[test]
    fn tables_and_exits_are_read() {
        let report = Report::parse(ROUTED, Some(1)).unwrap();
        assert_eq!(report.tables, [0, 20, 21, 30]);
        let tunnel = Exit::Tunnel { endpoint: Ipv4Addr::new(172, 20, 0, 2), vni: 0x138a };
        assert_eq!(report.outputs, BTreeSet::from([tunnel]));
        let report = Report::parse(FLOOD, Some(1)).unwrap();
        let tunnel = Exit::Tunnel { endpoint: Ipv4Addr::new(172, 20, 0, 3), vni: 0 };
        assert_eq!(report.outputs, BTreeSet::from([Exit::Port(14), tunnel]));
        let report = Report::parse(" 4. arp, priority 100, cookie 0x1\n    IN_PORT\n", None).unwrap();
        assert_eq!(report.outputs, BTreeSet::from([Exit::Back]));
        let dropped = Report::parse(" 0. No match.\n    drop\n", None).unwrap();
        assert_eq!((dropped.tables, dropped.outputs), (vec![0], BTreeSet::new()));
    }

    #[test]
    fn what_is_no_trace_is_refused() {
        let error = Report::parse("ovs-appctl: cannot connect", Some(1)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "read output of ofproto/trace: it names no table: \"ovs-appctl: cannot connect\""
        );
        let early = "30. reg0=0x8/0x8, priority 200, cookie 0x1\n    output:1\n";
        assert_eq!(Report::parse(early, Some(1)), Err(ReportError::NoEndpoint(1)));
    }
}
