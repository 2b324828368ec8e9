//! Questions about one host, asked of its agent: its flows, the way of a packet, what stops a packet or a machine, and the host's health.
//!
//! A bad answer (flows that differ, a model and a switch that disagree, a packet that is stopped, a fault) is printed in full and ends with its
//! own exit code.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::failure::Failure;
use crate::noun::{body, written};
use crate::output::{self, Column, Format};
use crate::picture;

/// What a check of a host shows.
const CHECKS: &[Column] = &[("CHECK", "/name"), ("OK", "/ok"), ("EVIDENCE", "/evidence"), ("WAY OUT", "/remedy")];

/// What can be done with flows.
#[derive(Debug, Subcommand)]
pub enum FlowVerb {
    /// Print flows with what each is for.
    Dump {
        /// What is in the switch, rather than what should be.
        #[arg(long)]
        installed: bool,
        /// Only this table, by number or name.
        #[arg(long)]
        table: Option<String>,
    },
    /// Hold what is in the switch against what should be.
    Diff,
    /// Draw the pipeline with the flows and packets of each way through it, as SVG.
    Graph {
        /// Write the picture here, rather than to standard output.
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
}

/// A packet.
#[derive(Debug, Args)]
pub struct Packet {
    /// Where it goes: an address, or a VM or port by name or id.
    #[arg(long)]
    to: String,
    /// TCP to this port.
    #[arg(long, value_name = "PORT", group = "protocol")]
    tcp: Option<u16>,
    /// UDP to this port.
    #[arg(long, value_name = "PORT", group = "protocol")]
    udp: Option<u16>,
    /// Another protocol, by name or number; ICMP echo unless said.
    #[arg(long, group = "protocol")]
    proto: Option<String>,
}

impl Packet {
    /// The protocol's name and its destination port.
    fn protocol(&self) -> (String, Option<u16>) {
        match (self.tcp, self.udp) {
            (Some(port), _) => ("tcp".to_owned(), Some(port)),
            (_, Some(port)) => ("udp".to_owned(), Some(port)),
            _ => (self.proto.clone().unwrap_or_else(|| "icmp".to_owned()), None),
        }
    }
}

/// A packet whose way is asked for.
#[derive(Debug, Args)]
pub struct Trace {
    /// Who sends it: a VM or port, by name or id; of one on another host, the leg that is here is shown.
    #[arg(long)]
    from: String,
    #[command(flatten)]
    packet: Packet,
    /// A source address other than the sender's own.
    #[arg(long)]
    source: Option<std::net::Ipv4Addr>,
    /// What the connection tracker is taken to say.
    #[arg(long, value_parser = ["new", "established", "reply", "related", "invalid"])]
    connection: Option<String>,
}

/// What is asked about.
#[derive(Debug, Args)]
pub struct Why {
    /// A VM or port, by name or id; of one on another host, the leg that is here is asked about. Without --to: what stops the VM itself.
    #[arg(long)]
    from: String,
    /// Where a packet from it goes: an address, or a VM or port by name or id.
    #[arg(long)]
    to: Option<String>,
    /// TCP to this port.
    #[arg(long, value_name = "PORT", requires = "to", conflicts_with = "udp")]
    tcp: Option<u16>,
    /// UDP to this port.
    #[arg(long, value_name = "PORT", requires = "to")]
    udp: Option<u16>,
    /// A source address other than the sender's own.
    #[arg(long, requires = "to")]
    source: Option<std::net::IpAddr>,
    /// How large the packet is, in octets with its IP header.
    #[arg(long, value_name = "OCTETS", requires = "to", value_parser = clap::value_parser!(u32).range(20..=65_535))]
    size: Option<u32>,
}

/// Prints flows, or how they differ.
///
/// # Errors
/// [`Failure::BadAnswer`] when they differ; [`Failure`] otherwise.
pub async fn flow(agent: &Agent, format: Format, verb: &FlowVerb) -> Result<(), Failure> {
    match verb {
        FlowVerb::Dump { installed, table } => {
            let path = if *installed { "/v1/flows/installed" } else { "/v1/flows" };
            let mut answer = agent.get(path).await?;
            if let (Some(table), Some(flows)) = (table, answer.pointer_mut("/flows").and_then(Value::as_array_mut)) {
                flows.retain(|flow| is_in(flow, table));
            }
            match format {
                Format::Json => written(output::json(&answer)),
                Format::Table => written(output::text(&dump(&answer))),
            }
        }
        FlowVerb::Graph { to } => picture::graph(agent, format, to.as_deref()).await,
        FlowVerb::Diff => {
            let answer = agent.get("/v1/flows/diff").await?;
            match format {
                Format::Json => written(output::json(&answer))?,
                Format::Table => written(output::text(&difference(&answer)))?,
            }
            let same = answer.pointer("/same").and_then(Value::as_bool) == Some(true);
            if same {
                Ok(())
            } else {
                Err(Failure::BadAnswer("the flows in the switch are not what they should be".into()))
            }
        }
    }
}

/// Shows the way of a packet: the model's, and what Open vSwitch says.
///
/// # Errors
/// [`Failure::BadAnswer`] when they disagree; [`Failure`] otherwise.
pub async fn trace(agent: &Agent, format: Format, trace: &Trace) -> Result<(), Failure> {
    let (proto, port) = trace.packet.protocol();
    let question = body([
        ("port", json!(trace.from)),
        ("dst", json!(trace.packet.to)),
        ("proto", json!(proto)),
        ("dst_port", json!(port)),
        ("src", json!(trace.source)),
        ("connection", json!(trace.connection)),
    ]);
    let answer = agent.post("/v1/trace", &question).await?;
    match format {
        Format::Json => written(output::json(&answer))?,
        Format::Table => written(output::text(&way(&answer)))?,
    }
    match answer.pointer("/agree").and_then(Value::as_bool) {
        Some(false) => Err(Failure::BadAnswer("the model and Open vSwitch disagree".into())),
        _ => Ok(()),
    }
}

/// Says in one line what stops a packet or a machine.
///
/// # Errors
/// [`Failure::BadAnswer`] when something stops it; [`Failure`] otherwise.
pub async fn why(agent: &Agent, format: Format, why: &Why) -> Result<(), Failure> {
    let proto = match (&why.to, why.tcp, why.udp) {
        (None, ..) => None,
        (_, Some(_), _) => Some("tcp"),
        (_, _, Some(_)) => Some("udp"),
        _ => Some("icmp"),
    };
    let question = body([
        ("vm", json!(why.from)),
        ("dst", json!(why.to)),
        ("proto", json!(proto)),
        ("dst_port", json!(why.tcp.or(why.udp))),
        ("src", json!(why.source)),
        ("octets", json!(why.size)),
    ]);
    let answer = agent.post("/v1/why", &question).await?;
    match format {
        Format::Json => written(output::json(&answer))?,
        Format::Table => {
            let details = lines(&answer, "/details").map(|line| format!("\n  {line}")).collect::<String>();
            let remedy = answer.pointer("/remedy").and_then(Value::as_str).filter(|remedy| !remedy.is_empty());
            let remedy = remedy.map(|remedy| format!("\nway out: {remedy}")).unwrap_or_default();
            written(output::text(&format!("{}{remedy}{details}", text(&answer, "/line"))))?;
        }
    }
    match answer.pointer("/stopped").and_then(Value::as_bool) {
        Some(true) => Err(Failure::BadAnswer("it is stopped".into())),
        _ => Ok(()),
    }
}

/// Checks this host.
///
/// # Errors
/// [`Failure::BadAnswer`] when a check finds a fault; [`Failure`] otherwise.
pub async fn doctor(agent: &Agent, format: Format) -> Result<(), Failure> {
    let answer = agent.get("/v1/doctor").await?;
    let checks = answer.pointer("/checks").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    match format {
        Format::Json => written(output::json(&answer))?,
        Format::Table => written(output::list(format, CHECKS, checks))?,
    }
    let faults = checks.iter().filter(|check| check.pointer("/ok").and_then(Value::as_bool) != Some(true)).count();
    if faults == 0 {
        Ok(())
    } else {
        Err(Failure::BadAnswer(format!("{faults} of {} checks found a fault", checks.len())))
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("-")
}

fn lines<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a str> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

fn is_in(flow: &Value, table: &str) -> bool {
    text(flow, "/name") == table || flow.pointer("/table").map(Value::to_string).as_deref() == Some(table)
}

/// Flows with what each is for, and the groups.
fn dump(answer: &Value) -> String {
    let flows = answer.pointer("/flows").and_then(Value::as_array).into_iter().flatten();
    let flows =
        flows.map(|flow| format!("# {}: {}\n{}", text(flow, "/name"), text(flow, "/meaning"), text(flow, "/flow")));
    let groups = lines(answer, "/groups").map(|group| format!("# group\n{group}"));
    flows.chain(groups).collect::<Vec<_>>().join("\n")
}

fn difference(answer: &Value) -> String {
    let marks = [("+", "/missing"), ("-", "/surplus"), ("?", "/foreign")];
    let changed =
        marks.iter().flat_map(|(mark, pointer)| lines(answer, pointer).map(move |line| format!("{mark} {line}")));
    let unchanged = answer.pointer("/unchanged").and_then(Value::as_u64).unwrap_or(0);
    let legend = format!("{unchanged} flows are right; + missing, - ours and wrong, ? not ours");
    changed.chain([legend]).collect::<Vec<_>>().join("\n")
}

/// Both ways of a packet, and whether they agree.
fn way(answer: &Value) -> String {
    let mut shown = vec![format!("packet   {}", text(answer, "/path/packet"))];
    for hop in answer.pointer("/path/hops").and_then(Value::as_array).into_iter().flatten() {
        let table = hop.pointer("/table").and_then(Value::as_u64).unwrap_or_default();
        shown.push(format!("{table:>3} {:14} {}", text(hop, "/name"), text(hop, "/meaning")));
        shown.extend(lines(hop, "/effects").map(|effect| format!("{:18} {effect}", "")));
    }
    shown.push(format!("ours     {}", text(answer, "/line")));
    shown.extend(lines(answer, "/copies").map(|copy| format!("copy     {copy}")));
    match answer.pointer("/ofproto").filter(|ofproto| !ofproto.is_null()) {
        Some(ofproto) => {
            let join = |pointer| {
                let values = ofproto.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
                values.map(ToString::to_string).collect::<Vec<_>>().join(" ")
            };
            shown.push(format!("ofproto  tables {}; out {}", join("/tables"), join("/outputs")));
        }
        None => shown.push(format!("ofproto  did not answer: {}", text(answer, "/problem"))),
    }
    shown.push(match answer.pointer("/agree").and_then(Value::as_bool) {
        Some(true) => "they agree".to_owned(),
        Some(false) => format!("THEY DISAGREE: {}", text(answer, "/disagreement")),
        None => "there is nothing to compare".to_owned(),
    });
    shown.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_are_shown_with_their_meaning_and_can_be_picked_by_table() {
        let flow =
            json!({"table": 0, "name": "classify", "flow": "table=0,in_port=1 actions=drop", "meaning": "port a"});
        assert!(is_in(&flow, "0") && is_in(&flow, "classify") && !is_in(&flow, "1"));
        let shown = dump(&json!({"flows": [flow], "groups": ["group_id=1,type=all"]}));
        assert_eq!(shown, "# classify: port a\ntable=0,in_port=1 actions=drop\n# group\ngroup_id=1,type=all");
    }

    #[test]
    fn a_difference_says_which_side_each_line_is_on() {
        let answer = json!({"same": false, "missing": ["a"], "surplus": ["b"], "foreign": ["c"], "unchanged": 7});
        assert_eq!(difference(&answer), "+ a\n- b\n? c\n7 flows are right; + missing, - ours and wrong, ? not ours");
    }

    #[test]
    fn both_ways_of_a_packet_are_shown_and_a_disagreement_is_loud() {
        let hop =
            json!({"copy": 0, "table": 10, "name": "l2", "flow": null, "meaning": "to web2", "effects": ["set reg2"]});
        let path = json!({"packet": "icmp", "connection": "new", "hops": [hop], "outcomes": []});
        let ofproto = json!({"tables": [0, 10], "outputs": [], "text": ""});
        let answer =
            json!({"path": path, "line": "delivered to web2", "ofproto": ofproto, "agree": false, "disagreement": "x"});
        let shown = way(&answer);
        assert!(shown.contains("10 l2") && shown.contains("to web2") && shown.contains("set reg2"), "{shown}");
        assert!(shown.contains("tables 0 10") && shown.ends_with("THEY DISAGREE: x"), "{shown}");
    }
}
