//! Virtio devices over PCI (virtio 1.2): what a device is ([`Device`]), what it may touch while it works ([`Context`]), and one module for each device.
//!
//! A device is called with its function's lock held: from a vCPU thread for registers, from the device thread for queues and its own descriptors.
//! It answers from memory and asynchronous I/O only and never blocks, except in `reset`, which waits for I/O in flight.
//! Whatever a guest writes into its rings ends as an error status, a skipped buffer or a device that asks for a reset: never as a panic.

pub mod block;
pub mod console;
pub mod net;
pub mod rng;
pub mod tap;
pub mod transport;

use crate::memory::Ram;
use crate::pci::msix::Msix;
use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::sync::Arc;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};

/// Feature bits that are the transport's or the queues' business, not a device's (virtio 1.2 §6).
pub mod feature {
    /// The device follows virtio 1.0 or later.
    pub const VERSION_1: u64 = 1 << 32;
    /// Notifications are suppressed by index.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// Descriptors may point to tables of descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
}

/// The vector number that means none (virtio 1.2 §4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

/// A device's type number (virtio 1.2 §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// Network.
    Net = 1,
    /// Block.
    Block = 2,
    /// Console.
    Console = 3,
    /// Entropy.
    Rng = 4,
}

impl Kind {
    /// The PCI class code that fits the device; drivers do not look at it.
    #[must_use]
    pub const fn class(self) -> u32 {
        match self {
            Self::Net => 0x02_00_00,
            Self::Block => 0x01_80_00,
            Self::Console => 0x07_80_00,
            Self::Rng => 0xff_00_00,
        }
    }
}

/// Named counters of one device; names carry their units.
pub type Counters = BTreeMap<String, u64>;

/// One virtio device behind the transport.
pub trait Device: Send {
    /// Its type.
    fn kind(&self) -> Kind;
    /// The device's own feature bits.
    fn features(&self) -> u64;
    /// The largest size of each queue.
    fn queue_sizes(&self) -> Vec<u16>;
    /// The device's configuration structure, as bytes; it is read-only to the guest.
    fn config(&self) -> Vec<u8>;
    /// Descriptors to watch for input, edge-triggered, for as long as the machine lives.
    fn descriptors(&self) -> Vec<RawFd> {
        Vec::new()
    }
    /// The driver is ready and has accepted `features`.
    fn activate(&mut self, features: u64, context: &mut Context<'_>);
    /// The driver put buffers into queue `queue`.
    fn serve(&mut self, queue: usize, context: &mut Context<'_>);
    /// Descriptor `descriptor` of [`Device::descriptors`] has input.
    fn ready(&mut self, descriptor: usize, context: &mut Context<'_>);
    /// The driver is gone: nothing of guest memory may be touched after this returns.
    fn reset(&mut self);
    /// What it did so far.
    fn counters(&self) -> Counters;
}

/// What a device may touch while it works: guest memory, its queues and its interrupts.
#[derive(Debug)]
pub struct Context<'a> {
    /// Guest memory.
    pub ram: &'a Arc<Ram>,
    pub(crate) queues: &'a mut [Queue],
    pub(crate) vectors: &'a [u16],
    pub(crate) msix: &'a mut Msix,
    pub(crate) broken: &'a mut Option<String>,
    pub(crate) again: &'a mut u32,
}

/// The most descriptors of one chain that are looked at, as many as one system call takes. An indirect table may claim 65,535, and a driver may offer as
/// many such chains as a queue has entries.
pub const DESCRIPTORS_MAX: usize = storage::memory::SEGMENTS_MAX;

/// A chain of descriptors in guest memory.
pub type Chain = DescriptorChain<Arc<Ram>>;

impl Context<'_> {
    /// Takes the next chain from queue `queue`; none when it is empty, disabled or broken.
    pub fn next(&mut self, queue: usize) -> Option<Chain> {
        let ring = self.queues.get_mut(queue).filter(|ring| ring.ready())?;
        if self.broken.is_some() {
            return None;
        }
        match ring.iter(Arc::clone(self.ram)) {
            Ok(mut chains) => chains.next(),
            Err(error) => {
                *self.broken = Some(format!("queue {queue}: {error}"));
                None
            }
        }
    }

    /// Gives the last chain taken from queue `queue` back to it, to be taken again.
    pub fn put_back(&mut self, queue: usize) {
        if let Some(ring) = self.queues.get_mut(queue) {
            ring.go_to_previous_position();
        }
    }

    /// Returns a chain to the driver with `written` bytes in its writable part.
    pub fn finish(&mut self, queue: usize, head: u16, written: u32) {
        let Some(ring) = self.queues.get_mut(queue).filter(|ring| ring.ready()) else { return };
        if let Err(error) = ring.add_used(self.ram.as_ref(), head, written) {
            *self.broken = Some(format!("queue {queue}: return chain {head}: {error}"));
        }
    }

    /// Interrupts the driver when it wants to know of what was finished.
    pub fn signal(&mut self, queue: usize) {
        let Some(ring) = self.queues.get_mut(queue).filter(|ring| ring.ready()) else { return };
        match ring.needs_notification(self.ram.as_ref()) {
            Ok(true) => self.msix.raise(self.vectors.get(queue).copied().unwrap_or(NO_VECTOR)),
            Ok(false) => {}
            Err(error) => *self.broken = Some(format!("queue {queue}: {error}")),
        }
    }

    /// Asks to be notified of new buffers in queue `queue`; true when there are some already.
    pub fn rearm(&mut self, queue: usize) -> bool {
        let Some(ring) = self.queues.get_mut(queue).filter(|ring| ring.ready()) else { return false };
        match ring.enable_notification(self.ram.as_ref()) {
            Ok(more) => more && self.broken.is_none(),
            Err(error) => {
                *self.broken = Some(format!("queue {queue}: {error}"));
                false
            }
        }
    }

    /// Asks to be called again for queue `queue` after the other devices had their turn.
    pub const fn call_again(&mut self, queue: usize) {
        *self.again |= 1 << (queue % 32);
    }
}

#[cfg(test)]
pub(crate) mod testing;
