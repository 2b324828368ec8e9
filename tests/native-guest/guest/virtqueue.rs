//! A split virtqueue (virtio 1.2 §2.7), used by polling: one chain per descriptor slot, no interrupts.

use core::sync::atomic::{Ordering, fence};

use crate::machine::{dma, read, ticks, write};

/// One piece of a chain.
#[derive(Clone, Copy)]
pub struct Piece {
    /// Physical address.
    pub address: u64,
    /// Length in bytes.
    pub length: u32,
    /// Whether the device writes it.
    pub device_writes: bool,
}

impl Piece {
    /// Memory that the device reads.
    pub fn input(bytes: &[u8]) -> Self {
        Self { address: bytes.as_ptr() as u64, length: bytes.len() as u32, device_writes: false }
    }

    /// Memory that the device writes.
    pub fn output(bytes: &mut [u8]) -> Self {
        Self { address: bytes.as_mut_ptr() as u64, length: bytes.len() as u32, device_writes: true }
    }
}

/// A queue in memory that the device knows.
pub struct Queue {
    index: u16,
    doorbell: u64,
    descriptors: u64,
    available: u64,
    used: u64,
    next_descriptor: u16,
    seen: u16,
}

/// How long a device may take before it is given up: about ten seconds on any processor of these years.
const PATIENCE_TICKS: u64 = 30_000_000_000;

impl Queue {
    /// Descriptors in a queue.
    pub const SIZE: u16 = 64;

    /// A queue with fresh memory whose doorbell is at `doorbell`.
    pub fn new(index: u16, doorbell: u64) -> Self {
        let [descriptors, available, used] = [0; 3].map(|_: u8| dma(4096).as_ptr() as u64);
        // The device need not interrupt: flag NO_INTERRUPT.
        write::<u16>(available, 1);
        Self { index, doorbell, descriptors, available, used, next_descriptor: 0, seen: 0 }
    }

    /// Where the descriptor table, the available ring and the used ring are.
    pub const fn addresses(&self) -> [u64; 3] {
        [self.descriptors, self.available, self.used]
    }

    /// Writes one descriptor as it stands, right or wrong.
    pub fn set_descriptor(&self, slot: u16, address: u64, length: u32, flags: u16, next: u16) {
        let at = self.descriptors + u64::from(slot) * 16;
        write::<u64>(at, address);
        write::<u32>(at + 8, length);
        write::<u16>(at + 12, flags);
        write::<u16>(at + 14, next);
    }

    /// Offers the chain that starts at `head`, without telling the device.
    pub fn offer(&self, head: u16) {
        let index = read::<u16>(self.available + 2);
        write::<u16>(self.available + 4 + u64::from(index % Self::SIZE) * 2, head);
        fence(Ordering::SeqCst);
        write::<u16>(self.available + 2, index.wrapping_add(1));
    }

    /// Sets the available index, right or wrong.
    pub fn set_available_index(&self, index: u16) {
        write::<u16>(self.available + 2, index);
    }

    /// Offers a chain and rings the doorbell; returns its head. The caller keeps fewer than `SIZE` pieces under way.
    pub fn submit(&mut self, pieces: &[Piece]) -> u16 {
        let head = self.next_descriptor;
        for (at, piece) in pieces.iter().enumerate() {
            let slot = self.next_descriptor;
            self.next_descriptor = (slot + 1) % Self::SIZE;
            let chained = u16::from(at + 1 < pieces.len());
            let flags = chained | u16::from(piece.device_writes) << 1;
            self.set_descriptor(slot, piece.address, piece.length, flags, self.next_descriptor);
        }
        self.offer(head);
        self.ring();
        head
    }

    /// Rings the doorbell.
    pub fn ring(&self) {
        fence(Ordering::SeqCst);
        write::<u16>(self.doorbell, self.index);
    }

    /// The next chain that the device is done with: its head, and how many bytes the device wrote.
    pub fn poll(&mut self) -> Option<(u16, u32)> {
        if read::<u16>(self.used + 2) == self.seen {
            return None;
        }
        fence(Ordering::SeqCst);
        let at = self.used + 4 + u64::from(self.seen % Self::SIZE) * 8;
        self.seen = self.seen.wrapping_add(1);
        Some((read::<u32>(at) as u16, read::<u32>(at + 4)))
    }

    /// Waits for the next chain, with a bound.
    pub fn wait(&mut self) -> Result<(u16, u32), &'static str> {
        let start = ticks();
        loop {
            if let Some(done) = self.poll() {
                return Ok(done);
            }
            if ticks() - start > PATIENCE_TICKS {
                return Err("the device does not answer");
            }
            core::hint::spin_loop();
        }
    }
}
