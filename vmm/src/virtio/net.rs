//! The network device (virtio 1.2 §5.1) over a tap interface: queue 0 receives, queue 1 sends, headers pass through unchanged.
//!
//! A packet that has no room waits, one at a time; behind it the host's queue of the tap fills and drops. Packets the kernel refuses are counted and
//! dropped, as a wire would.

use crate::config::Mac;
use crate::memory::{self, Piece, Ram};
use crate::virtio::tap::{HEADER_BYTES, Offload, Tap};
use crate::virtio::{Chain, Context, Counters, DESCRIPTORS_MAX, Device, Kind};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use storage::memory::Buffers;
use virtio_queue::desc::split::Descriptor;
use vm_memory::Bytes;

/// Entries of each queue.
pub const QUEUE_SIZE: u16 = 256;
/// Packets handled in one turn before other devices have theirs.
const BUDGET: usize = 128;
/// The largest packet the kernel hands out: 64 KiB of IP, an Ethernet header with a tag, and the virtio header.
const PACKET_MAX: usize = 65_535 + 18 + HEADER_BYTES;
const RECEIVE: usize = 0;
const SEND: usize = 1;

const F_CSUM: u64 = 1;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_MTU: u64 = 1 << 3;
const F_MAC: u64 = 1 << 5;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_GUEST_TSO6: u64 = 1 << 8;
const F_HOST_TSO4: u64 = 1 << 11;
const F_HOST_TSO6: u64 = 1 << 12;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_STATUS: u64 = 1 << 16;
const STATUS_LINK_UP: u16 = 1;

#[derive(Debug, Default)]
struct Count {
    receive_packets: u64,
    receive_bytes: u64,
    receive_dropped_packets: u64,
    send_packets: u64,
    send_bytes: u64,
    send_dropped_packets: u64,
}

/// The device.
#[derive(Debug)]
pub struct Net {
    tap: Arc<Tap>,
    mac: Mac,
    mtu: Option<u16>,
    merges: bool,
    /// What the driver accepted, until the device thread has told the host.
    accepted: Option<Offload>,
    packet: Vec<u8>,
    waiting: usize,
    count: Count,
}

/// The writable buffers of one chain.
type Room = (u16, Vec<Piece>);

impl Net {
    /// A device over `tap`.
    #[must_use]
    pub const fn new(tap: Arc<Tap>, mac: Mac, mtu: Option<u16>) -> Self {
        Self { tap, mac, mtu, merges: false, accepted: None, packet: Vec::new(), waiting: 0, count: EMPTY }
    }

    /// Moves packets from the tap to the guest.
    fn receive(&mut self, context: &mut Context<'_>) {
        if let Some(Err(error)) = self.accepted.take().map(|offload| self.tap.set_offload(offload)) {
            tracing::warn!(%error, "packets go to the guest finished by the host");
        }
        let mut moved = false;
        for turn in 0..=BUDGET {
            if turn == BUDGET {
                context.call_again(RECEIVE);
                break;
            }
            if self.waiting == 0 && !self.fetch() {
                break;
            }
            if self.deliver(context) {
                self.waiting = 0;
                moved = true;
            } else if !context.rearm(RECEIVE) {
                // No room: the driver's next notification brings us back.
                break;
            }
        }
        if moved {
            context.signal(RECEIVE);
        }
    }

    /// Reads the next packet from the tap; false when none waits.
    fn fetch(&mut self) -> bool {
        if self.packet.is_empty() {
            self.packet = vec![0; PACKET_MAX];
        }
        match self.tap.receive(&mut self.packet) {
            Ok(Some(count)) if count >= HEADER_BYTES => self.waiting = count,
            Ok(_) => return false,
            Err(error) => {
                tracing::debug!(%error, "the tap could not be read");
                return false;
            }
        }
        true
    }

    /// Gives the waiting packet to the guest, in several chains where the driver merges; false when there is no room yet.
    fn deliver(&mut self, context: &mut Context<'_>) -> bool {
        let mut rooms: Vec<Room> = Vec::new();
        let mut capacity = 0;
        while capacity < self.waiting && (self.merges || rooms.is_empty()) {
            let Some(chain) = context.next(RECEIVE) else {
                rooms.iter().for_each(|_| context.put_back(RECEIVE));
                return false;
            };
            let room = room(chain);
            let bytes: usize = room.1.iter().map(|&(_, length)| usize::try_from(length).unwrap_or(0)).sum();
            capacity = capacity.saturating_add(bytes);
            rooms.push(room);
            if rooms.len() >= usize::from(QUEUE_SIZE) {
                break;
            }
        }
        let fits = capacity >= self.waiting;
        let chains = u16::try_from(rooms.len()).unwrap_or(u16::MAX);
        self.packet[10..12].copy_from_slice(&chains.to_le_bytes());
        let mut left = &self.packet[..if fits { self.waiting } else { 0 }];
        let mut sound = fits;
        for (head, buffers) in rooms {
            let before = left.len();
            for (address, length) in buffers {
                let count = usize::try_from(length).unwrap_or(0).min(left.len());
                sound &= context.ram.write_slice(&left[..count], address).is_ok();
                left = &left[count..];
            }
            let written = if sound { before - left.len() } else { 0 };
            context.finish(RECEIVE, head, u32::try_from(written).unwrap_or(0));
        }
        if sound {
            self.count.receive_packets += 1;
            self.count.receive_bytes += (self.waiting - HEADER_BYTES) as u64;
        } else {
            self.count.receive_dropped_packets += 1;
        }
        true
    }

    /// Moves packets from the guest to the tap.
    fn send(&mut self, context: &mut Context<'_>) {
        let ram = Arc::clone(context.ram);
        let mut moved = false;
        for _ in 0..BUDGET {
            let Some(chain) = context.next(SEND) else { break };
            let head = chain.head_index();
            match packet(&ram, chain).map(|packet| self.tap.send(&packet)) {
                Some(Ok(bytes)) => {
                    self.count.send_packets += 1;
                    self.count.send_bytes += bytes.saturating_sub(HEADER_BYTES) as u64;
                }
                Some(Err(error)) => {
                    tracing::trace!(%error, "the tap refused a packet");
                    self.count.send_dropped_packets += 1;
                }
                None => self.count.send_dropped_packets += 1,
            }
            context.finish(SEND, head, 0);
            moved = true;
        }
        if moved {
            context.signal(SEND);
        }
        if context.rearm(SEND) {
            context.call_again(SEND);
        }
    }
}

const EMPTY: Count = Count {
    receive_packets: 0,
    receive_bytes: 0,
    receive_dropped_packets: 0,
    send_packets: 0,
    send_bytes: 0,
    send_dropped_packets: 0,
};

fn piece(descriptor: Descriptor) -> Piece {
    (descriptor.addr(), descriptor.len())
}

fn room(chain: Chain) -> Room {
    let head = chain.head_index();
    (head, chain.take(DESCRIPTORS_MAX).filter(Descriptor::is_write_only).map(piece).collect())
}

/// The readable buffers of a chain as one packet; none when it is no packet.
fn packet(ram: &Arc<Ram>, chain: Chain) -> Option<Buffers> {
    // One more than is let through, so that a longer one is refused and not cut.
    let pieces = chain.take(DESCRIPTORS_MAX + 1).filter(|descriptor| !descriptor.is_write_only()).map(piece);
    let pieces: Vec<Piece> = pieces.collect();
    let packet = memory::lend(ram, &pieces)?;
    let bytes = packet.total_bytes();
    let fits = bytes > HEADER_BYTES as u64 && bytes <= PACKET_MAX as u64 && pieces.len() <= DESCRIPTORS_MAX;
    fits.then_some(packet)
}

impl Device for Net {
    fn kind(&self) -> Kind {
        Kind::Net
    }

    fn features(&self) -> u64 {
        let offloads = F_CSUM | F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_HOST_TSO4 | F_HOST_TSO6;
        F_MAC | F_STATUS | F_MRG_RXBUF | offloads | if self.mtu.is_some() { F_MTU } else { 0 }
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    /// `struct virtio_net_config` (§5.1.4) up to the MTU.
    fn config(&self) -> Vec<u8> {
        let mut config = self.mac.octets().to_vec();
        config.extend(STATUS_LINK_UP.to_le_bytes());
        config.extend(1_u16.to_le_bytes());
        config.extend(self.mtu.unwrap_or(0).to_le_bytes());
        config
    }

    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.tap.as_raw_fd()]
    }

    fn activate(&mut self, features: u64, context: &mut Context<'_>) {
        self.merges = features & F_MRG_RXBUF != 0;
        let offload = Offload {
            checksum: features & F_GUEST_CSUM != 0,
            tso4: features & F_GUEST_TSO4 != 0,
            tso6: features & F_GUEST_TSO6 != 0,
        };
        self.accepted = Some(offload);
        context.call_again(RECEIVE);
        context.call_again(SEND);
    }

    fn serve(&mut self, queue: usize, context: &mut Context<'_>) {
        match queue {
            RECEIVE => self.receive(context),
            _ => self.send(context),
        }
    }

    fn ready(&mut self, _descriptor: usize, context: &mut Context<'_>) {
        self.receive(context);
    }

    fn reset(&mut self) {
        self.waiting = 0;
        self.merges = false;
    }

    fn counters(&self) -> Counters {
        let count = &self.count;
        [
            ("receive_packets", count.receive_packets),
            ("receive_bytes", count.receive_bytes),
            ("receive_dropped_packets", count.receive_dropped_packets),
            ("send_packets", count.send_packets),
            ("send_bytes", count.send_bytes),
            ("send_dropped_packets", count.send_dropped_packets),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}

#[cfg(test)]
mod tests;
