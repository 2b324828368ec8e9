//! A check over TCP: whether a member takes a connection, and what it answers to a request of HTTP.
//!
//! Owns one connection, from our SYN to a reset: what was to be learned is learned then, and the member keeps nothing of it. Never reads more of an answer
//! than the beginning of its status line. Source: RFC 9293 by way of smoltcp; RFC 9112 §4 (status line).

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use model::balancer::monitor::{Check, Codes, Method, UrlPath};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

use super::Target;
use super::check::Finding;
use crate::line::{Wire, instant};

/// Octets that a connection holds of an answer, and of a request: a path of 255, an address, and what HTTP wants beside them.
const RECEIVED_MAX: usize = 1024;
const SENT_MAX: usize = 512;
/// Octets of a status line that are read: version and code are in these.
const STATUS_LENGTH: usize = 12;
/// Turns of the stack for one packet.
const TURNS_MAX: usize = 4;

/// One connection.
pub(super) struct Stream {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    wire: Wire,
    /// What is asked; none: the connection is all.
    request: Option<Request>,
    was_open: bool,
}

struct Request {
    octets: Vec<u8>,
    is_sent: bool,
    answer: Vec<u8>,
    expected: Codes,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("was_open", &self.was_open).finish_non_exhaustive()
    }
}

impl Stream {
    /// A connection that begins with the first turn; none where the target's addresses make none.
    pub(super) fn new(target: &Target, port: u16, seed: u64, now: Duration) -> Option<Self> {
        let mut wire = Wire::new(target.mtu);
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut wire, instant(now));
        let own = IpAddress::from(target.source);
        let length = if target.source.is_ipv4() { 32 } else { 128 };
        // One is less than there is room for.
        interface.update_ip_addrs(|addresses| addresses.extend([IpCidr::new(own, length)]));
        // Only the member is behind the line; who the next hop is has no meaning there.
        match target.source {
            IpAddr::V4(own) => interface.routes_mut().add_default_ipv4_route(own).map(drop).ok()?,
            IpAddr::V6(own) => interface.routes_mut().add_default_ipv6_route(own).map(drop).ok()?,
        }
        let buffer = |octets: usize| SocketBuffer::new(vec![0; octets]);
        let mut socket = Socket::new(buffer(RECEIVED_MAX), buffer(SENT_MAX));
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        let member = (IpAddress::from(target.member.address), target.member.port);
        socket.connect(interface.context(), member, (own, port)).ok()?;
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(socket);
        let request = match &target.monitor.check {
            Check::Http { method, url_path, expected_codes } => Some(Request {
                octets: request(*method, url_path, target),
                is_sent: false,
                answer: Vec::new(),
                expected: expected_codes.clone(),
            }),
            Check::Tcp | Check::Ping | Check::UdpConnect => None,
        };
        Some(Self { interface, sockets, handle, wire, request, was_open: false })
    }

    /// Takes a packet of the member, if one came, and does what time asks for; says what was found, and what is to be sent.
    pub(super) fn turn(&mut self, packet: Option<&[u8]>, now: Duration) -> (Option<Finding>, Vec<Vec<u8>>) {
        self.wire.received = packet.map(<[u8]>::to_vec);
        let mut found = None;
        for _ in 0..TURNS_MAX {
            self.interface.poll(instant(now), &mut self.wire, &mut self.sockets);
            if found.is_some() {
                break;
            }
            found = self.look();
            if found.is_some() {
                self.sockets.get_mut::<Socket<'_>>(self.handle).abort();
            }
        }
        (found, std::mem::take(&mut self.wire.sent))
    }

    /// Gives up; says what ends the connection for the member as well.
    pub(super) fn abort(&mut self, now: Duration) -> Vec<Vec<u8>> {
        self.sockets.get_mut::<Socket<'_>>(self.handle).abort();
        self.interface.poll(instant(now), &mut self.wire, &mut self.sockets);
        std::mem::take(&mut self.wire.sent)
    }

    /// When the next turn is due without a packet.
    pub(super) fn due(&mut self, now: Duration) -> Option<Duration> {
        let soon = self.interface.poll_at(instant(now), &self.sockets)?;
        Some(Duration::from_micros(u64::try_from(soon.total_micros()).unwrap_or_default()))
    }

    fn look(&mut self) -> Option<Finding> {
        let socket = self.sockets.get_mut::<Socket<'_>>(self.handle);
        let state = socket.state();
        self.was_open |= matches!(state, State::Established | State::CloseWait);
        if !self.was_open {
            return (state == State::Closed).then(|| Err("connection refused".to_owned()));
        }
        let Some(request) = &mut self.request else { return Some(Ok(())) };
        if !request.is_sent && socket.can_send() {
            // The buffer is empty, and larger than any request.
            request.is_sent = socket.send_slice(&request.octets).is_ok();
        }
        while socket.can_recv() && request.answer.len() < STATUS_LENGTH {
            let mut part = [0; STATUS_LENGTH];
            let room = STATUS_LENGTH - request.answer.len();
            let count = socket.recv_slice(&mut part[..room]).unwrap_or(0);
            request.answer.extend_from_slice(&part[..count]);
        }
        if request.answer.len() >= STATUS_LENGTH {
            return Some(judge(&request.answer, &request.expected));
        }
        let is_over = matches!(state, State::Closed | State::CloseWait);
        is_over.then(|| Err("the connection was closed without an answer".to_owned()))
    }
}

fn request(method: Method, path: &UrlPath, target: &Target) -> Vec<u8> {
    let host = match target.member.address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    let (method, path, port) = (method.name(), path.as_str(), target.member.port);
    let line = format!("{method} {path} HTTP/1.0\r\nHost: {host}:{port}\r\n");
    format!("{line}User-Agent: basalt-health\r\nConnection: close\r\n\r\n").into_bytes()
}

/// What the beginning of an answer says.
fn judge(answer: &[u8], expected: &Codes) -> Finding {
    let rest = answer.strip_prefix(b"HTTP/1.").filter(|rest| rest.get(1) == Some(&b' '));
    let digits = rest.and_then(|rest| rest.get(2..5)).filter(|digits| digits.iter().all(u8::is_ascii_digit));
    let code = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u16>().ok());
    match code {
        Some(code) if expected.holds(code) => Ok(()),
        Some(code) => Err(format!("HTTP {code}, expected {expected}")),
        None => Err("the answer is none of HTTP/1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_judged_by_its_code() {
        let expected = Codes::try_from("200-299".to_owned()).unwrap();
        for (answer, finding) in [
            ("HTTP/1.0 200", Ok(())),
            ("HTTP/1.1 204", Ok(())),
            ("HTTP/1.1 503", Err("HTTP 503, expected 200-299")),
            ("HTTP/2.0 200", Err("the answer is none of HTTP/1")),
            ("HTTP/1.1 2x0", Err("the answer is none of HTTP/1")),
            ("SSH-2.0-Open", Err("the answer is none of HTTP/1")),
        ] {
            assert_eq!(judge(answer.as_bytes(), &expected), finding.map_err(str::to_owned), "{answer}");
        }
    }
}
