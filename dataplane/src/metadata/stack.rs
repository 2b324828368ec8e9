//! TCP under the metadata service: frames of a port in, frames for it out, no socket of the host in between.
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
use smoltcp::phy::{self, Checksum, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::{Duration as Span, Instant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

use super::Found;
use super::http::{self, HEAD_MAX, Reading};
use crate::feature::service::{ADDRESS_V4, ADDRESS_V6, METADATA_PORT};

/// Ports that are served at once. A station takes about 50 KiB.
const STATIONS_MAX: usize = 128;
/// Connections of one port at once.
const CONNECTIONS_MAX: usize = 4;
/// Octets that a connection holds of what came and of what goes.
const RECEIVED_MAX: usize = 2048;
const SENT_MAX: usize = 8192;
/// Packets that one look may make for one port.
const PACKETS_MAX: usize = 64;
/// How long a connection may take from its first packet to its last.
const CONNECTION_TIME: Duration = Duration::from_secs(20);
/// How long nothing may come where something has to.
const SILENCE: Span = Span::from_secs(8);
/// How long a station is kept without a connection.
const IDLE: Duration = Duration::from_secs(5);
/// Turns of the stack for one packet: each takes what came, answers and sends.
const TURNS_MAX: usize = 8;
/// Octets of an Ethernet header.
const ETHERNET: usize = 14;
/// What IPv4 takes at least (RFC 791 §3.1), and networks have at most.
const MTU: (u16, u16) = (576, 9000);

/// A frame for a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// The key of the port.
    pub port: u32,
    /// The frame.
    pub frame: Vec<u8>,
}

/// Finds pages: the key of the port that asks and the path.
pub type Find<'a> = &'a dyn Fn(u32, &str) -> Found;

/// All connections to the metadata service of this host.
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
    pub fn receive(&mut self, port: u32, frame: &[u8], mtu: u16, now: Duration, find: Find<'_>) -> Vec<Sent> {
        let (Some(header), Some(packet)) = (frame.first_chunk::<ETHERNET>(), frame.get(ETHERNET..)) else {
            return Vec::new();
        };
        if !self.stations.contains_key(&port) && !self.make_room() {
            return Vec::new();
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
        station.turn(port, now, find)
    }

    /// Does what time asks for: sends again, gives up, forgets.
    pub fn tick(&mut self, now: Duration, find: Find<'_>) -> Vec<Sent> {
        let mut sent = Vec::new();
        for (port, station) in &mut self.stations {
            if station.is_busy() {
                sent.extend(station.turn(*port, now, find));
            }
        }
        self.stations.retain(|_, station| station.is_busy() || now < station.used + IDLE);
        sent
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

    /// Makes room for one more station, at the cost of one without a connection.
    fn make_room(&mut self) -> bool {
        if self.stations.len() >= STATIONS_MAX {
            let idle = self.stations.iter().filter(|(_, station)| !station.is_busy());
            let Some(oldest) = idle.min_by_key(|(_, station)| station.used).map(|(port, _)| *port) else {
                return false;
            };
            self.stations.remove(&oldest);
        }
        true
    }
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
}

/// One socket with the exchange that it has.
struct Connection {
    handle: SocketHandle,
    /// Since when it is not just listening.
    since: Option<Duration>,
    head: Vec<u8>,
    /// What has to be sent still, once the request is known.
    answer: Option<VecDeque<u8>>,
}

impl fmt::Debug for Station {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Station").field("used", &self.used).finish_non_exhaustive()
    }
}

fn instant(now: Duration) -> Instant {
    Instant::from_micros(i64::try_from(now.as_micros()).unwrap_or(i64::MAX))
}

fn listening() -> Socket<'static> {
    let buffer = |octets: usize| SocketBuffer::new(vec![0; octets]);
    let mut socket = Socket::new(buffer(RECEIVED_MAX), buffer(SENT_MAX));
    socket.set_timeout(Some(SILENCE));
    socket.set_ack_delay(None);
    socket.set_nagle_enabled(false);
    // A new socket listens on any port but 0.
    let listens = socket.listen(METADATA_PORT);
    debug_assert_eq!(listens, Ok(()));
    socket
}

impl Station {
    fn new(seed: u64, mtu: u16, now: Duration) -> Self {
        let mut wire = Wire { received: None, sent: Vec::new(), mtu: usize::from(mtu.clamp(MTU.0, MTU.1)) };
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
        let connections = (0..CONNECTIONS_MAX).map(|_| Connection::of(sockets.add(listening()))).collect();
        Self { interface, sockets, connections, wire, header: [0; ETHERNET], used: now }
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
    fn turn(&mut self, port: u32, now: Duration, find: Find<'_>) -> Vec<Sent> {
        let mut sent = Vec::new();
        for _ in 0..TURNS_MAX {
            self.interface.poll(instant(now), &mut self.wire, &mut self.sockets);
            for packet in self.wire.sent.drain(..) {
                sent.push(Sent { port, frame: [&self.header[..], &packet].concat() });
            }
            let mut moved = false;
            for connection in &mut self.connections {
                moved |= connection.serve(&mut self.sockets, now, &|path| find(port, path));
            }
            if !moved {
                break;
            }
        }
        sent
    }
}

impl Connection {
    const fn of(handle: SocketHandle) -> Self {
        Self { handle, since: None, head: Vec::new(), answer: None }
    }

    /// Moves the exchange on; says whether there may be more to do.
    fn serve(&mut self, sockets: &mut SocketSet<'static>, now: Duration, find: &dyn Fn(&str) -> Found) -> bool {
        let socket = sockets.get_mut::<Socket<'_>>(self.handle);
        match socket.state() {
            State::Listen => return false,
            // The last acknowledgement is out: to wait here would keep the next request from coming.
            State::Closed | State::TimeWait => {
                sockets.remove(self.handle);
                *self = Self::of(sockets.add(listening()));
                return false;
            }
            _ => {}
        }
        if now >= *self.since.get_or_insert(now) + CONNECTION_TIME {
            socket.abort();
            return true;
        }
        if self.answer.is_none() {
            return self.read(socket, find);
        }
        self.write(socket)
    }

    fn read(&mut self, socket: &mut Socket<'_>, find: &dyn Fn(&str) -> Found) -> bool {
        let mut octets = [0; RECEIVED_MAX];
        let room = octets.len().min(HEAD_MAX - self.head.len());
        let count = if socket.can_recv() { socket.recv_slice(&mut octets[..room]).unwrap_or(0) } else { 0 };
        if count == 0 {
            // It hung up before it asked.
            let is_over = !socket.may_recv() && socket.state() == State::CloseWait;
            if is_over {
                socket.close();
            }
            return is_over;
        }
        self.head.extend_from_slice(&octets[..count]);
        if let Reading::Answer(answer) = http::answer(&self.head, find) {
            self.answer = Some(answer.into());
        }
        true
    }

    fn write(&mut self, socket: &mut Socket<'_>) -> bool {
        let Some(answer) = &mut self.answer else { return false };
        // What comes behind the request is nobody's: it is taken, so that the client is not left waiting.
        if socket.can_recv() {
            let _dropped = socket.recv(|octets| (octets.len(), ()));
        }
        if answer.is_empty() {
            let is_open = matches!(socket.state(), State::Established | State::CloseWait);
            if is_open {
                socket.close();
            }
            return is_open;
        }
        let count = socket.send_slice(answer.make_contiguous()).unwrap_or(0);
        answer.drain(..count);
        count > 0
    }
}

/// The line between a port and its station: one packet in, a few out.
#[derive(Debug)]
struct Wire {
    received: Option<Vec<u8>>,
    sent: Vec<Vec<u8>>,
    mtu: usize,
}

struct Received(Vec<u8>);

struct Sending<'a>(&'a mut Vec<Vec<u8>>);

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

impl phy::TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut packet = vec![0; length];
        let result = fill(&mut packet);
        self.0.push(packet);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        let packet = self.received.take()?;
        Some((Received(packet), Sending(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        (self.sent.len() < PACKETS_MAX).then_some(Sending(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        // Packets of guests come over no wire: their cards leave the sums to hardware that is not there.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}
