//! DNS for machines: one question in, an answer, a question for the host's own resolvers, or nothing out.
//!
//! Owns [`answer`], which decides, and [`is_resolver`], which says whom DHCP and router advertisements send here. `names` knows whose name an address
//! is, [`question`] the messages, [`envelope`] and [`stream`] what carries them, [`share`] how many questions of one port may wait for others; the shell that asks
//! other resolvers is [`switch`](crate::switch).
//!
//! A machine is known to the machines of its own network, by its host name alone and under the domain of its subnets, as Neutron has it: whoever is on
//! a network learns of its neighbours anyway, while a router may join networks of different owners. Names in a domain of the network, single labels and
//! addresses of the network's subnets are answered here and never asked elsewhere; all else is forwarded, names of a tenant's other networks with it.
//! Which port asks is the switch's word, so that two tenants with the same names never meet. Nothing is remembered between questions.
//! Never reads a clock, never panics on what a guest or a resolver sends.
//! Source: RFC 1034 §4.3.1, RFC 1035 §4.1, RFC 2308 (answers that say no), RFC 6891 (EDNS), RFC 8482 (any type), RFC 8906 (what to refuse how).

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{DNSClass, Record};
use model::network::Port;
use model::spec::HostNetwork;

pub mod envelope;
mod names;
pub mod question;
pub mod share;
pub mod stream;

use names::{Finding, Found};
use question::{Question, QuestionError};

/// The port of DNS (RFC 1035 §4.2).
pub const PORT: u16 = 53;

/// How long what is said of machines may be kept, seconds: a machine's address is its own for as long as it lives, but names are given again soon.
const TTL: u32 = 10;

/// What comes of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is answered from what is known here.
    Answer(Vec<u8>),
    /// Others have to be asked.
    Forward(Question),
    /// It was no question that can be answered otherwise than with this; none: with silence.
    Unreadable(Option<Vec<u8>>, QuestionError),
}

/// What to say to the question in `octets` of the port with this key, in at most `room` octets.
#[must_use]
pub fn answer(host: &HostNetwork, port_key: u32, octets: &[u8], room: usize) -> Verdict {
    let question = match Question::parse(octets, room) {
        Ok(question) => question,
        Err(error) => return Verdict::Unreadable(error.reply(), error),
    };
    let Some(port) = host.ports.values().find(|port| port.key == port_key) else {
        return Verdict::Answer(question.refuse(ResponseCode::ServFail));
    };
    if question.is_of_later_edns() {
        return Verdict::Answer(question.refuse(ResponseCode::BADVERS));
    }
    if question.query().query_class() != DNSClass::IN {
        return Verdict::Answer(question.refuse(ResponseCode::Refused));
    }
    match names::find(host, port, question.query()) {
        Some(finding) => Verdict::Answer(say(&question, finding)),
        None => Verdict::Forward(question),
    }
}

fn say(question: &Question, finding: Finding) -> Vec<u8> {
    let mut message = question.response();
    message.metadata.authoritative = finding.apex.is_some();
    let name = question.query().name();
    let denied = match finding.found {
        Found::Records(records) => {
            message.add_answers(records.into_iter().map(|data| Record::from_rdata(name.clone(), TTL, data)));
            false
        }
        Found::Nothing => true,
        Found::NoSuchName => {
            message.metadata.response_code = ResponseCode::NXDomain;
            true
        }
    };
    // How long the answer no may be kept stands in the zone's own record (RFC 2308 §5).
    if let (true, Some(apex)) = (denied, finding.apex) {
        let soa = names::soa(&apex, TTL);
        message.add_authority(Record::from_rdata(apex, TTL, soa));
    }
    question.octets(&message)
}

/// Whether a port is told to ask the host: when none of the subnets that it has addresses of names a server.
#[must_use]
pub fn is_resolver(host: &HostNetwork, port: &Port) -> bool {
    let mut subnets = port.addresses.iter().filter_map(|fixed| host.subnets.get(&fixed.subnet));
    subnets.all(|subnet| subnet.dns.is_empty())
}

#[cfg(test)]
mod tests;
