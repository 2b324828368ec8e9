//! Questions about packets: which way one goes. What stops one is `why`'s.
//!
//! The model walks the flows that should be; Open vSwitch walks the flows that are. Both are shown, and whether they agree.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use dataplane::trace::ofproto::{Exit, Report, arguments, compare};
use dataplane::trace::{Connection, Packet, Path as PacketPath, Payload};
use dataplane::{FlowSet, PortNumbers, trace};
use model::network::Port;
use model::spec::{HostNetwork, NodeSpec};
use openflow::flow::Field;
use serde::{Deserialize, Serialize};

use crate::arrival;
use crate::driver::Failure;
use crate::unixctl;

/// How long Open vSwitch may take to trace.
const TRACE_LIMIT: Duration = Duration::from_secs(10);

/// A packet to ask about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// The sender: id or name of a port here, or of a machine (its first port).
    #[serde(alias = "vm")]
    pub port: String,
    /// Where to: an address, or id or name of a port or of a machine.
    pub dst: String,
    /// icmp, tcp, udp, or a number.
    #[serde(default = "icmp")]
    pub proto: String,
    /// The destination port of TCP or UDP.
    #[serde(default, alias = "port_dst")]
    pub dst_port: Option<u16>,
    /// The source port of TCP or UDP.
    #[serde(default)]
    pub src_port: Option<u16>,
    /// A source address other than the port's own.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub src: Option<IpAddr>,
    /// What the connection tracker is taken to say: new, established, reply, related, invalid.
    #[serde(default)]
    pub connection: Option<String>,
}

fn icmp() -> String {
    "icmp".to_owned()
}

/// The way of a packet.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Traced {
    /// The model's way.
    #[schema(value_type = Object)]
    pub path: PacketPath,
    /// In one line.
    pub line: String,
    /// Where mirrors send copies of it, a line for each.
    pub copies: Vec<String>,
    /// What Open vSwitch says; none when it did not answer.
    #[schema(value_type = Option<Object>)]
    pub ofproto: Option<Ofproto>,
    /// Whether both take the same tables and let the same out; none when Open vSwitch did not answer.
    pub agree: Option<bool>,
    /// Why not.
    pub disagreement: Option<String>,
    /// Why Open vSwitch did not answer.
    pub problem: Option<String>,
}

/// What Open vSwitch says.
#[derive(Debug, Serialize)]
pub struct Ofproto {
    /// Tables looked in.
    pub tables: Vec<u8>,
    /// What left the switch.
    pub outputs: Vec<Exit>,
    /// The whole text of `ofproto/trace`.
    pub text: String,
}

/// A question as names have it, or as [`dataplane::trace::Question`] has it: a packet out of a tunnel, an ARP or a DHCP request, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AnyQuestion {
    /// By names.
    Named(Question),
    /// By ids.
    Exact(dataplane::trace::Question),
}

impl AnyQuestion {
    /// The packet that is asked about, and what the tracker is taken to say.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn packet(&self, spec: &NodeSpec, flows: &Flows<'_>) -> Result<(Packet, Connection), AskError> {
        match self {
            Self::Named(question) => packet(spec, flows, question),
            Self::Exact(question) => Ok((question.packet(flows.network, flows.numbers)?, question.connection)),
        }
    }
}

/// A question that cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nothing here has this name.
    #[error("find {what} {name:?}: the specification of this host names none, by id or by name")]
    Unknown {
        /// What was looked for.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A field has no meaning.
    #[error("read {field} {value:?}: want {want}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        want: &'static str,
    },
    /// Neither end of the packet is here.
    #[error(
        "make a packet from port {port} to {target}: neither is on this host; ask host {host} at {tunnel}, where the port is"
    )]
    Elsewhere {
        /// The sender.
        port: String,
        /// Its host.
        host: String,
        /// That host's tunnel endpoint.
        tunnel: Ipv4Addr,
        /// The destination.
        target: IpAddr,
    },
    /// No packet can be made.
    #[error("make a packet")]
    Packet(#[from] dataplane::trace::PacketError),
}

/// The flows and what they were made from.
#[derive(Debug)]
pub struct Flows<'a> {
    /// The network.
    pub network: &'a HostNetwork,
    /// The port numbers.
    pub numbers: &'a PortNumbers,
    /// The flows that should be.
    pub set: &'a FlowSet,
}

/// Finds a port by its id or name, or by the id or name of the machine whose first port it is.
///
/// # Errors
/// [`AskError::Unknown`].
pub fn find_port<'a>(spec: &'a NodeSpec, name: &str) -> Result<&'a Port, AskError> {
    let ports = &spec.network().ports;
    let by_port = ports.values().find(|port| port.id.to_string() == name || port.name == name);
    let by_machine = || {
        let machine = spec.machines().values().find(|vm| vm.id.to_string() == name || vm.name == name)?;
        ports.get(machine.ports.first()?)
    };
    let elsewhere = || {
        let bound =
            |port: &&Port| port.binding.as_ref().is_some_and(|b| b.hostname == name || b.machine.to_string() == name);
        ports.values().filter(|port| port.trunk.is_none()).find(bound)
    };
    let found = by_port.or_else(by_machine).or_else(elsewhere);
    found.ok_or_else(|| AskError::Unknown { what: "port or machine", name: name.to_owned() })
}

/// The packet of a question, its destination and what the tracker is taken to say.
///
/// # Errors
/// [`AskError`].
pub fn packet(spec: &NodeSpec, flows: &Flows<'_>, question: &Question) -> Result<(Packet, Connection), AskError> {
    let port = find_port(spec, &question.port)?;
    let target = match question.dst.parse::<IpAddr>() {
        Ok(address) => address,
        Err(_) => address_of(find_port(spec, &question.dst)?, &question.dst)?,
    };
    let ports = (question.src_port.unwrap_or(40_000), question.dst_port.unwrap_or(80));
    let payload = match question.proto.as_str() {
        "icmp" | "ping" => Payload::ping(target),
        "tcp" => Payload::Tcp { source: ports.0, target: ports.1 },
        "udp" => Payload::Udp { source: ports.0, target: ports.1 },
        number => Payload::Protocol(number.parse().map_err(|_| AskError::Field {
            field: "proto",
            value: number.to_owned(),
            want: "icmp, tcp, udp or a number to 255",
        })?),
    };
    let mut packet = match arrival::elsewhere(spec, port) {
        Some(binding) => arrival::out_of_tunnel(flows, (port, binding), target, payload)?,
        None => Packet::from_port(flows.network, flows.numbers, port, target, payload)?,
    };
    if let Some(source) = question.src {
        packet = match source {
            IpAddr::V4(source) => packet.with(Field::Ipv4Src, source),
            IpAddr::V6(source) => packet.with(Field::Ipv6Src, source),
        };
    }
    let connection = match question.connection.as_deref() {
        None | Some("new") => Connection::New,
        Some("established") => Connection::Established,
        Some("reply") => Connection::Reply,
        Some("related") => Connection::Related,
        Some("invalid") => Connection::Invalid,
        Some(other) => {
            let want = "new, established, reply, related or invalid";
            return Err(AskError::Field { field: "connection", value: other.to_owned(), want });
        }
    };
    Ok((packet, connection))
}

/// The address that a port is known by: its IPv4 address where it has one.
fn address_of(port: &Port, name: &str) -> Result<IpAddr, AskError> {
    let addresses = port.addresses.iter().map(|fixed| fixed.address);
    let found = addresses.min_by_key(IpAddr::is_ipv6);
    found.ok_or_else(|| AskError::Unknown { what: "an address of", name: name.to_owned() })
}

/// Traces a packet through the model and through Open vSwitch.
pub async fn traced(flows: &Flows<'_>, packet: &Packet, connection: Connection, switch: (&Path, &str)) -> Traced {
    let path = trace(flows.set, packet, connection);
    let line = line(&path);
    let (theirs, problem) = match ask_switch(packet, connection, switch).await {
        Ok(text) => match Report::parse(&text, flows.numbers.vxlan.map(|number| number.0)) {
            Ok(report) => (Some((report, text)), None),
            Err(error) => (None, Some(error.to_string())),
        },
        Err(failure) => (None, Some(failure.problem().message)),
    };
    let difference = theirs.as_ref().map(|(report, _)| compare(flows.set, &path, report));
    Traced {
        line,
        copies: path.copies(),
        agree: difference.as_ref().map(Option::is_none),
        disagreement: difference.flatten().map(|difference| {
            format!(
                "ours lets out {} by tables {:?}, theirs {} by tables {:?}",
                words(&difference.ours),
                difference.our_tables,
                words(&difference.theirs),
                difference.their_tables
            )
        }),
        ofproto: theirs.map(|(report, text)| Ofproto {
            tables: report.tables,
            outputs: report.outputs.into_iter().collect(),
            text,
        }),
        path,
        problem,
    }
}

async fn ask_switch(
    packet: &Packet,
    connection: Connection,
    (run_dir, bridge): (&Path, &str),
) -> Result<String, Failure> {
    let words = arguments(bridge, packet, connection);
    let (method, words) = words.split_first().map_or(("ofproto/trace", &[][..]), |(first, rest)| (first, rest));
    let socket = unixctl::find(run_dir, "ovs-vswitchd")?;
    unixctl::call(&socket, method, words, TRACE_LIMIT).await
}

fn words(exits: &std::collections::BTreeSet<Exit>) -> String {
    format!("{exits:?}")
}

/// A way in one line.
#[must_use]
pub fn line(path: &PacketPath) -> String {
    let verdicts: Vec<String> = path.verdicts().iter().map(ToString::to_string).collect();
    if verdicts.is_empty() { "dropped".to_owned() } else { verdicts.join("; ") }
}
