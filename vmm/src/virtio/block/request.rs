//! Requests of the driver (virtio 1.2 §5.2.6): a chain of descriptors taken apart, and the numbers in it read.
//!
//! Pure: guest memory in, a [`Request`] out. What is not sound has no [`Parsed`]; nothing here reaches a volume. Structures are copied once and the copy
//! is what is checked and used.

use crate::memory::{Piece, Ram};
use crate::virtio::{Chain, DESCRIPTORS_MAX};
use storage::volume::{Operation, SECTOR_BYTES};
use vm_memory::{Bytes, GuestAddress};

/// The most a discard or write-zeroes covers: 1 GiB, so that one request cannot keep the backend busy for long.
pub(super) const RANGE_MAX_SECTORS: u32 = 1 << 21;

const HEADER_BYTES: usize = 16;
const RANGE_BYTES: usize = 16;

/// How a request ended (§5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// What a request asks for (§5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    Transfer(Operation),
    Flush,
    Range(Operation),
    GetId,
}

impl Ask {
    const fn from_type(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Transfer(Operation::Read),
            1 => Self::Transfer(Operation::Write),
            4 => Self::Flush,
            8 => Self::GetId,
            11 => Self::Range(Operation::Discard),
            13 => Self::Range(Operation::WriteZeroes),
            _ => return None,
        })
    }
}

/// A chain taken apart: what can be read after the header, what can be written before the status byte.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) ask: Option<Ask>,
    pub(super) sector: u64,
    pub(super) readable: Vec<Piece>,
    pub(super) writable: Vec<Piece>,
}

/// A chain's status byte, and the rest where the chain is sound.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) status: Option<GuestAddress>,
    pub(super) parsed: Option<Parsed>,
}

impl Request {
    pub(super) fn parse(ram: &Ram, chain: Chain) -> Self {
        let (mut readable, mut writable, mut ordered): (Vec<Piece>, Vec<Piece>, bool) = (Vec::new(), Vec::new(), true);
        for descriptor in chain.take(DESCRIPTORS_MAX + 1) {
            let buffer = (descriptor.addr(), descriptor.len());
            if descriptor.is_write_only() {
                writable.push(buffer);
            } else {
                ordered &= writable.is_empty();
                readable.push(buffer);
            }
        }
        let bounded = readable.len() + writable.len() <= DESCRIPTORS_MAX;
        // Of a chain that was cut, nobody knows where its status would be.
        let status = bounded.then(|| take_last_byte(&mut writable)).flatten();
        let mut header = [0; HEADER_BYTES];
        let sound = ordered && status.is_some() && take(ram, &mut readable, &mut header);
        let parsed = sound.then(|| {
            let [a, b, c, d, _, _, _, _, sector @ ..] = header;
            let ask = Ask::from_type(u32::from_le_bytes([a, b, c, d]));
            Parsed { ask, sector: u64::from_le_bytes(sector), readable, writable }
        });
        Self { status, parsed }
    }
}

/// Cuts the last byte off a list of buffers.
fn take_last_byte(buffers: &mut Vec<Piece>) -> Option<GuestAddress> {
    while buffers.last().is_some_and(|&(_, length)| length == 0) {
        buffers.pop();
    }
    let (address, length) = buffers.last_mut()?;
    *length -= 1;
    address.0.checked_add(u64::from(*length)).map(GuestAddress)
}

/// Moves the first bytes of a list of buffers to `bytes`; false when there are fewer or they are not RAM.
fn take(ram: &Ram, buffers: &mut [Piece], bytes: &mut [u8]) -> bool {
    let mut done = 0;
    for (address, length) in buffers {
        let count = usize::try_from(*length).unwrap_or(usize::MAX).min(bytes.len() - done);
        if ram.read_slice(&mut bytes[done..done + count], *address).is_err() {
            return false;
        }
        done += count;
        // `count` is at most `length`, which was 32 bits.
        let cut = u32::try_from(count).unwrap_or(u32::MAX);
        *length -= cut;
        let Some(after) = address.0.checked_add(u64::from(cut)) else { return false };
        *address = GuestAddress(after);
    }
    done == bytes.len()
}

/// The one range of a discard or write-zeroes request (§5.2.6.2), bytes: offset and length. None when there is not exactly one, it is too long, or a
/// flag is set that means nothing here.
pub(super) fn range(ram: &Ram, mut readable: Vec<Piece>) -> Option<(u64, u64)> {
    let mut bytes = [0; RANGE_BYTES];
    if !take(ram, &mut readable, &mut bytes) || readable.iter().any(|&(_, length)| length > 0) {
        return None;
    }
    let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, f0, f1, f2, f3] = bytes;
    let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
    // Flag 0 is "unmap", which is advice; others are refused.
    if sectors > RANGE_MAX_SECTORS || u32::from_le_bytes([f0, f1, f2, f3]) & !1 != 0 {
        return None;
    }
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    Some((sector.checked_mul(SECTOR_BYTES)?, u64::from(sectors) * SECTOR_BYTES))
}
