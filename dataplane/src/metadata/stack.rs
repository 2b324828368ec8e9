//! TCP under the metadata service and the name service: frames of a port in, frames for it out, no socket of the host in between.
//!
//! Owns [`Stack`]: a [`Station`](self) for each port that asked lately, which has the two service addresses, a few listening sockets and nothing
//! else. Two ports never share one, so that equal addresses of two tenants never meet. It answers the MAC address that the frame came from.
//! Invariant: everything is bounded: stations, connections of one, octets of a request, and the time that one connection may take; what is beyond
//! finds nobody or is cut off. Reads no clock: `now` counts from any one moment.
//! Source: RFC 9293 by way of smoltcp.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Duration as Span;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpVersion, Ipv4Packet, Ipv6Packet, TcpOption, TcpPacket};

use super::Found;
use super::http::{self, HEAD_MAX, Reading};
use crate::dns;
use crate::dns::stream::{Framing, framed};
use crate::feature::service::{ADDRESS_V4, ADDRESS_V6, METADATA_PORT};
pub use crate::line::Sent;
use crate::line::{ETHERNET, Wire, instant};

/// Ports that are served at once. A station takes about 70 KiB.
const STATIONS_MAX: usize = 128;
/// Connections of one port at once, to each service.
const PAGES_MAX: usize = 4;
const NAMES_MAX: usize = 2;
/// Octets that a connection holds of what came and of what goes.
const RECEIVED_MAX: usize = 2048;
const SENT_MAX: usize = 8192;
/// How long a connection may take from its first packet to its last.
const CONNECTION_TIME: Duration = Duration::from_secs(20);
/// How long nothing may come where something has to.
const SILENCE: Span = Span::from_secs(8);
/// How long a station is kept without a connection.
const IDLE: Duration = Duration::from_secs(5);
/// Turns of the stack for one packet: each takes what came, answers and sends.
const TURNS_MAX: usize = 8;
/// The least segment that a client may ask for (RFC 9293 §3.7.1): with smaller ones it would be sent many packets for each of its own.
const SEGMENT_MIN: u16 = 536;

/// A connection to the name service, never the same again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    /// The key of the port.
    pub port: u32,
    number: u64,
}

/// What is said to a DNS message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// This, at once.
    Answer(Vec<u8>),
    /// Something, by [`Stack::answer`].
    Later,
    /// Nothing: the connection is over.
    Nothing,
}

/// Who knows what is asked.
pub trait Desk {
    /// What stands at a path for the port with this key.
    fn page(&self, port: u32, path: &str) -> Found;
    /// What is said to a DNS message.
    fn name(&mut self, stream: Stream, message: &[u8]) -> Said;
}

/// All connections to the services of this host.
#[derive(Debug)]
pub struct Stack {
    stations: BTreeMap<u32, Station>,
    seed: u64,
}

impl Stack {
    /// A stack whose sequence numbers nobody guesses who does not know `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { stations: BTreeMap::new(), seed }
    }

    /// Takes a frame that a port sent to a service address. `mtu` is that of its network.
    pub fn receive(&mut self, port: u32, frame: &[u8], mtu: u16, now: Duration, desk: &mut dyn Desk) -> Vec<Sent> {
        let Some((header, packet)) = frame.split_first_chunk::<ETHERNET>().filter(|(_, packet)| !packet.is_empty())
        else {
            return Vec::new();
        };
        if asks_for_crumbs(packet) {
            return Vec::new();
        }
        if !self.stations.contains_key(&port) {
            self.make_room();
        }
        let seed = &mut self.seed;
        let station = self.stations.entry(port).or_insert_with(|| {
            // The generator that follows is as good as its seed; each station begins elsewhere.
            *seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(u64::from(port) | 1);
            Station::new(*seed, mtu, now)
        });
        station.header = reversed(header);
        station.used = now;
        station.wire.received = Some(packet.to_owned());
        station.turn(port, now, desk)
    }

    /// Does what time asks for: sends again, gives up, forgets.
    pub fn tick(&mut self, now: Duration, desk: &mut dyn Desk) -> Vec<Sent> {
        let mut sent = Vec::new();
        for (port, station) in &mut self.stations {
            if station.is_busy() {
                sent.extend(station.turn(*port, now, desk));
            }
        }
        self.stations.retain(|_, station| station.is_busy() || now < station.used + IDLE);
        sent
    }

    /// Sends the answer to a message that was to be answered later.
    pub fn answer(&mut self, stream: Stream, message: &[u8], now: Duration, desk: &mut dyn Desk) -> Vec<Sent> {
        let Some(station) = self.stations.get_mut(&stream.port) else { return Vec::new() };
        let connection = station.connections.iter_mut().find(|connection| connection.number == stream.number);
        if let Some(Connection { exchange: Exchange::Names(framing), answer, .. }) = connection {
            framing.answered();
            answer.extend(framed(message));
        }
        station.turn(stream.port, now, desk)
    }

    /// When the next tick is due; none while there is no connection and nothing to forget.
    pub fn next_tick(&mut self, now: Duration) -> Option<Duration> {
        self.stations.values_mut().map(|station| station.next_tick(now)).min()
    }

    /// How many ports are served now.
    #[must_use]
    pub fn stations(&self) -> usize {
        self.stations.len()
    }

    /// Makes room for one more station, at the cost of one without a connection, or of the one that has had its connection for longest: what is asked
    /// for takes a moment, and ports that hold connections open keep nobody else out.
    fn make_room(&mut self) {
        if self.stations.len() >= STATIONS_MAX {
            let age = |station: &Station| station.since().map_or((false, station.used), |since| (true, since));
            let oldest = self.stations.iter().min_by_key(|(_, station)| age(station)).map(|(port, _)| *port);
            oldest.map(|port| self.stations.remove(&port));
        }
    }
}

/// Whether a packet begins a connection with segments smaller than [`SEGMENT_MIN`].
fn asks_for_crumbs(packet: &[u8]) -> bool {
    let segment = match IpVersion::of_packet(packet) {
        Ok(IpVersion::Ipv4) => Ipv4Packet::new_checked(packet).ok().map(|ip| ip.payload()),
        Ok(IpVersion::Ipv6) => Ipv6Packet::new_checked(packet).ok().map(|ip| ip.payload()),
        Err(_) => None,
    };
    let Some(segment) = segment.and_then(|segment| TcpPacket::new_checked(segment).ok()) else { return false };
    let mut options = segment.options();
    while segment.syn() && !options.is_empty() {
        match TcpOption::parse(options) {
            Ok((_, TcpOption::MaxSegmentSize(size))) => return size < SEGMENT_MIN,
            Ok((rest, _)) => options = rest,
            Err(_) => return false,
        }
    }
    false
}

/// The header that leads back.
fn reversed(header: &[u8; ETHERNET]) -> [u8; ETHERNET] {
    let mut reversed = *header;
    reversed[..6].copy_from_slice(&header[6..12]);
    reversed[6..12].copy_from_slice(&header[..6]);
    reversed
}

/// The services as one port sees them.
struct Station {
    interface: Interface,
    sockets: SocketSet<'static>,
    connections: Vec<Connection>,
    wire: Wire,
    /// Of frames to the port.
    header: [u8; ETHERNET],
    /// When its port sent something last.
    used: Duration,
    /// Connections so far.
    count: u64,
}

/// One socket with the exchange that it has.
struct Connection {
    handle: SocketHandle,
    /// Since when it is not just listening.
    since: Option<Duration>,
    number: u64,
    exchange: Exchange,
    /// What has to be sent still.
    answer: VecDeque<u8>,
}

/// What is spoken on a connection.
enum Exchange {
    /// A request for a page; what came of it until it is answered.
    Page(Option<Vec<u8>>),
    /// Questions for names.
    Names(Framing),
}

impl Exchange {
    const fn port(&self) -> u16 {
        match self {
            Self::Page(_) => METADATA_PORT,
            Self::Names(_) => dns::PORT,
        }
    }

    const fn anew(&self) -> Self {
        match self {
            Self::Page(_) => Self::page(),
            Self::Names(_) => Self::names(),
        }
    }

    const fn page() -> Self {
        Self::Page(Some(Vec::new()))
    }

    const fn names() -> Self {
        Self::Names(Framing::new())
    }
}

impl fmt::Debug for Station {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Station").field("used", &self.used).finish_non_exhaustive()
    }
}

fn listening(port: u16) -> Socket<'static> {
    let buffer = |octets: usize| SocketBuffer::new(vec![0; octets]);
    let mut socket = Socket::new(buffer(RECEIVED_MAX), buffer(SENT_MAX));
    socket.set_timeout(Some(SILENCE));
    socket.set_ack_delay(None);
    socket.set_nagle_enabled(false);
    // A new socket listens on any port but 0.
    let listens = socket.listen(port);
    debug_assert_eq!(listens, Ok(()));
    socket
}

impl Station {
    fn new(seed: u64, mtu: u16, now: Duration) -> Self {
        let mut wire = Wire::new(mtu);
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut wire, instant(now));
        interface.update_ip_addrs(|addresses| {
            let own = [(IpAddress::from(ADDRESS_V4), 32), (IpAddress::from(ADDRESS_V6), 128)];
            // Two is what there is room for.
            addresses.extend(own.map(|(address, length)| IpCidr::new(address, length)));
        });
        // Everybody is behind the one port; who the next hop is has no meaning there.
        let _no_other_v4 = interface.routes_mut().add_default_ipv4_route(ADDRESS_V4);
        let _no_other_v6 = interface.routes_mut().add_default_ipv6_route(ADDRESS_V6);
        let mut sockets = SocketSet::new(Vec::new());
        let pages = std::iter::repeat_with(Exchange::page).take(PAGES_MAX);
        let names = std::iter::repeat_with(Exchange::names).take(NAMES_MAX);
        let mut count = 0;
        let connections = pages.chain(names).map(|exchange| {
            count += 1;
            Connection::of(count, exchange, &mut sockets)
        });
        let connections = connections.collect();
        Self { interface, sockets, connections, wire, header: [0; ETHERNET], used: now, count }
    }

    /// Since when it has had a connection.
    fn since(&self) -> Option<Duration> {
        self.connections.iter().filter_map(|connection| connection.since).min()
    }

    fn is_busy(&self) -> bool {
        self.connections.iter().any(|connection| connection.since.is_some())
    }

    fn next_tick(&mut self, now: Duration) -> Duration {
        let soon = self.interface.poll_at(instant(now), &self.sockets);
        let soon = soon.map(|at| Duration::from_micros(u64::try_from(at.total_micros()).unwrap_or_default()));
        let given_up = self.connections.iter().filter_map(|connection| connection.since).min();
        let end = given_up.map_or(self.used + IDLE, |since| since + CONNECTION_TIME);
        soon.map_or(end, |soon| soon.min(end)).max(now)
    }

    /// Takes what came, answers and sends, until there is nothing to do.
    fn turn(&mut self, port: u32, now: Duration, desk: &mut dyn Desk) -> Vec<Sent> {
        let mut sent = Vec::new();
        for _ in 0..TURNS_MAX {
            self.interface.poll(instant(now), &mut self.wire, &mut self.sockets);
            for packet in self.wire.sent.drain(..) {
                sent.push(Sent { port, frame: [&self.header[..], &packet].concat() });
            }
            let mut moved = false;
            for connection in &mut self.connections {
                if connection.has_ended(&mut self.sockets) {
                    self.count += 1;
                    *connection = Connection::of(self.count, connection.exchange.anew(), &mut self.sockets);
                } else {
                    moved |= connection.serve(&mut self.sockets, now, port, desk);
                }
            }
            if !moved {
                break;
            }
        }
        sent
    }
}

impl Connection {
    fn of(number: u64, exchange: Exchange, sockets: &mut SocketSet<'static>) -> Self {
        let handle = sockets.add(listening(exchange.port()));
        Self { handle, since: None, number, exchange, answer: VecDeque::new() }
    }

    /// Whether the socket is of no further use; it is gone then.
    fn has_ended(&self, sockets: &mut SocketSet<'static>) -> bool {
        // The last acknowledgement is out: to wait here would keep the next request from coming.
        let state = sockets.get::<Socket<'_>>(self.handle).state();
        let has_ended = matches!(state, State::Closed | State::TimeWait);
        if has_ended {
            sockets.remove(self.handle);
        }
        has_ended
    }

    /// Moves the exchange on; says whether there may be more to do.
    fn serve(&mut self, sockets: &mut SocketSet<'static>, now: Duration, port: u32, desk: &mut dyn Desk) -> bool {
        let socket = sockets.get_mut::<Socket<'_>>(self.handle);
        if socket.state() == State::Listen {
            return false;
        }
        if now >= *self.since.get_or_insert(now) + CONNECTION_TIME {
            socket.abort();
            return true;
        }
        if !self.answer.is_empty() {
            let count = socket.send_slice(self.answer.make_contiguous()).unwrap_or(0);
            self.answer.drain(..count);
            return count > 0;
        }
        match &mut self.exchange {
            Exchange::Page(head) => {
                let Some(octets) = head else { return finish(socket) };
                let room = HEAD_MAX - octets.len();
                let is_over = receive(socket, room, octets);
                if let Some(is_over) = is_over {
                    return is_over;
                }
                if let Reading::Answer(answer) = http::answer(octets, |path| desk.page(port, path)) {
                    self.answer = answer.into();
                    *head = None;
                }
                true
            }
            Exchange::Names(framing) => {
                let stream = Stream { port, number: self.number };
                if let Some(message) = framing.take() {
                    match desk.name(stream, &message) {
                        Said::Answer(answer) => {
                            framing.answered();
                            self.answer = framed(&answer).into();
                        }
                        Said::Later => {}
                        Said::Nothing => socket.abort(),
                    }
                    return true;
                }
                if framing.is_waiting() {
                    return false;
                }
                let mut octets = Vec::new();
                if let Some(is_over) = receive(socket, framing.room(), &mut octets) {
                    return is_over;
                }
                framing.push(&octets);
                if framing.is_too_long() {
                    socket.abort();
                }
                true
            }
        }
    }
}

/// Takes what came; where nothing did, says whether the other side has hung up, which is answered.
fn receive(socket: &mut Socket<'_>, room: usize, octets: &mut Vec<u8>) -> Option<bool> {
    let mut buffer = [0; RECEIVED_MAX];
    let room = buffer.len().min(room);
    let count = if socket.can_recv() { socket.recv_slice(&mut buffer[..room]).unwrap_or(0) } else { 0 };
    octets.extend_from_slice(&buffer[..count]);
    if count > 0 {
        return None;
    }
    let is_over = !socket.may_recv() && socket.state() == State::CloseWait;
    if is_over {
        socket.close();
    }
    Some(is_over)
}

/// Ends a connection on which all is said.
fn finish(socket: &mut Socket<'_>) -> bool {
    // What comes behind the request is nobody's: it is taken, so that the client is not left waiting.
    if socket.can_recv() {
        let _dropped = socket.recv(|octets| (octets.len(), ()));
    }
    let is_open = matches!(socket.state(), State::Established | State::CloseWait);
    if is_open {
        socket.close();
    }
    is_open
}

#[cfg(test)]
mod tests;
