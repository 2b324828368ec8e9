//! One health check: a question to one member, and what its answers say.
//!
//! Owns the question in each of its forms and the decision which frames answer it: of the member's port, from its address and port, to the address and port
//! that asked. Never asks a second time: that is the part of [`Engine`](super::Engine). Never panics on what a member sends.
//! Source: RFC 792 and RFC 4443 §3.1, §4 (destination unreachable, echo), RFC 1122 §4.1.3.1 (a closed port of UDP says so).

use std::net::IpAddr;
use std::time::Duration;

use etherparse::{LaxNetSlice, LaxSlicedPacket, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use model::balancer::monitor::{Check, TIMEOUT_MAX};

use super::Target;
use super::stream::Stream;
use crate::line::ETHERNET;

const TTL: u8 = 64;
const SEQUENCE: u16 = 1;
/// ICMP types of echo replies, and type and code of a closed port, of both versions.
const ECHO_REPLY: u8 = 0;
const ECHO_REPLY_V6: u8 = 129;
const CLOSED: (u8, u8) = (3, 3);
const CLOSED_V6: (u8, u8) = (1, 4);
/// Octets of an ICMP message before what it quotes.
const ICMP_HEADER: usize = 8;

/// What a check found: it went well, or why not.
pub type Finding = Result<(), String>;

/// A check that waits for its answer.
#[derive(Debug)]
pub struct Flight {
    /// The port, or number, that it asks from.
    port: u16,
    began: Duration,
    question: Question,
}

#[derive(Debug)]
enum Question {
    Stream(Box<Stream>),
    Echo,
    Datagram,
}

/// What a frame, or time, brought.
#[derive(Debug, Default)]
pub struct Step {
    /// What was found, when it is over.
    pub found: Option<Finding>,
    /// Frames to the member.
    pub frames: Vec<Vec<u8>>,
}

impl Flight {
    /// Asks a member from this port; sequence numbers follow from `seed`. Without a flight it was over at once.
    #[must_use]
    pub fn begin(target: &Target, port: u16, seed: u64, now: Duration) -> (Option<Self>, Step) {
        let question = match &target.monitor.check {
            Check::Tcp | Check::Http { .. } => match Stream::new(target, port, seed, now) {
                Some(stream) => Question::Stream(Box::new(stream)),
                None => return unasked(),
            },
            Check::Ping => Question::Echo,
            Check::UdpConnect => Question::Datagram,
        };
        let mut flight = Self { port, began: now, question };
        let step = match &flight.question {
            Question::Stream(_) => flight.tick(target, now),
            Question::Echo | Question::Datagram => match written(target, port) {
                Some(frame) => Step { found: None, frames: vec![frame] },
                None => return unasked(),
            },
        };
        (Some(flight), step)
    }

    /// The port that it asks from.
    pub(super) const fn port(&self) -> u16 {
        self.port
    }

    /// Takes a frame of the member's port; none when it is no answer to this.
    pub fn receive(&mut self, target: &Target, frame: &[u8], now: Duration) -> Option<Step> {
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        if ends(packet.net.as_ref()?)? != (target.member.address, target.source) {
            return None;
        }
        let (own, member) = (self.port, target.member.port);
        let found = match (&mut self.question, packet.transport.as_ref()?) {
            (Question::Stream(stream), TransportSlice::Tcp(tcp)) => {
                if (tcp.source_port(), tcp.destination_port()) != (member, own) {
                    return None;
                }
                let (found, packets) = stream.turn(Some(frame.get(ETHERNET..)?), now);
                return Some(Step { found, frames: framed(target, packets) });
            }
            (Question::Echo, TransportSlice::Icmpv4(icmp)) => {
                (icmp.type_u8() == ECHO_REPLY && icmp.bytes5to8() == echo(own)).then_some(Ok(()))
            }
            (Question::Echo, TransportSlice::Icmpv6(icmp)) => {
                (icmp.type_u8() == ECHO_REPLY_V6 && icmp.bytes5to8() == echo(own)).then_some(Ok(()))
            }
            (Question::Datagram, TransportSlice::Udp(udp)) => {
                ((udp.source_port(), udp.destination_port()) == (member, own)).then_some(Ok(()))
            }
            (Question::Datagram, TransportSlice::Icmpv4(icmp)) => {
                let is_closed = (icmp.type_u8(), icmp.code_u8()) == CLOSED;
                is_closed.then(|| refused(target, own, icmp.slice())).flatten()
            }
            (Question::Datagram, TransportSlice::Icmpv6(icmp)) => {
                let is_closed = (icmp.type_u8(), icmp.code_u8()) == CLOSED_V6;
                is_closed.then(|| refused(target, own, icmp.slice())).flatten()
            }
            _ => None,
        };
        found.map(|found| Step { found: Some(found), frames: Vec::new() })
    }

    /// Does what time asks for: sends again, gives up.
    pub fn tick(&mut self, target: &Target, now: Duration) -> Step {
        if now < self.deadline(target) {
            let Question::Stream(stream) = &mut self.question else { return Step::default() };
            let (found, packets) = stream.turn(None, now);
            return Step { found, frames: framed(target, packets) };
        }
        let late = Err(format!("timed out after {} s", timeout(target)));
        let (found, packets) = match &mut self.question {
            Question::Stream(stream) => (late, stream.abort(now)),
            Question::Echo => (late, Vec::new()),
            // Nobody said that the port is closed.
            Question::Datagram => (Ok(()), Vec::new()),
        };
        Step { found: Some(found), frames: framed(target, packets) }
    }

    /// When time asks for something next.
    pub fn due(&mut self, target: &Target, now: Duration) -> Duration {
        let end = self.deadline(target);
        match &mut self.question {
            Question::Stream(stream) => stream.due(now).map_or(end, |due| due.min(end)),
            Question::Echo | Question::Datagram => end,
        }
    }

    fn deadline(&self, target: &Target) -> Duration {
        self.began + Duration::from_secs(timeout(target).into())
    }
}

fn timeout(target: &Target) -> u16 {
    target.monitor.timeout_seconds.min(TIMEOUT_MAX)
}

/// A question that can not be put.
fn unasked() -> (Option<Flight>, Step) {
    let found = Some(Err("no question can be made for its address".to_owned()));
    (None, Step { found, frames: Vec::new() })
}

/// Identifier and sequence number of an echo request.
fn echo(port: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (port.to_be_bytes(), SEQUENCE.to_be_bytes());
    [a, b, c, d]
}

/// What an error of the member says about the question from this port, when it quotes that.
fn refused(target: &Target, own: u16, message: &[u8]) -> Option<Finding> {
    let quoted = LaxSlicedPacket::from_ip(message.get(ICMP_HEADER..)?).ok()?;
    let to = match quoted.net.as_ref()? {
        LaxNetSlice::Ipv4(ip) => IpAddr::V4(ip.header().destination_addr()),
        LaxNetSlice::Ipv6(ip) => IpAddr::V6(ip.header().destination_addr()),
        LaxNetSlice::Arp(_) => return None,
    };
    let Some(TransportSlice::Udp(udp)) = &quoted.transport else { return None };
    let is_own =
        to == target.member.address && (udp.source_port(), udp.destination_port()) == (own, target.member.port);
    is_own.then(|| Err("its port is closed (ICMP port unreachable)".to_owned()))
}

fn ends(net: &NetSlice<'_>) -> Option<(IpAddr, IpAddr)> {
    match net {
        NetSlice::Ipv4(ip) => Some((ip.header().source_addr().into(), ip.header().destination_addr().into())),
        NetSlice::Ipv6(ip) => Some((ip.header().source_addr().into(), ip.header().destination_addr().into())),
        NetSlice::Arp(_) => None,
    }
}

/// An echo request, or a datagram without content.
fn written(target: &Target, port: u16) -> Option<Vec<u8>> {
    let ethernet = PacketBuilder::ethernet2(target.macs.0.bytes(), target.macs.1.bytes());
    let (is_echo, to_port) = (target.monitor.check == Check::Ping, target.member.port);
    let mut frame = Vec::new();
    let wrote = match (target.source, target.member.address) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let ip = ethernet.ipv4(from.octets(), to.octets(), TTL);
            match is_echo {
                true => ip.icmpv4_echo_request(port, SEQUENCE).write(&mut frame, &[]),
                false => ip.udp(port, to_port).write(&mut frame, &[]),
            }
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let ip = ethernet.ipv6(from.octets(), to.octets(), TTL);
            match is_echo {
                true => ip.icmpv6_echo_request(port, SEQUENCE).write(&mut frame, &[]),
                false => ip.udp(port, to_port).write(&mut frame, &[]),
            }
        }
        _ => return None,
    };
    wrote.ok().map(|()| frame)
}

/// Packets as frames to the member.
fn framed(target: &Target, packets: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let kind: u16 = if target.source.is_ipv4() { 0x0800 } else { 0x86dd };
    let header = [&target.macs.1.bytes()[..], &target.macs.0.bytes(), &kind.to_be_bytes()].concat();
    packets.into_iter().map(|packet| [&header[..], &packet].concat()).collect()
}
