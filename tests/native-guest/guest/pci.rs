//! The PCI bus, read through ECAM; devices are known by their virtio identity (virtio 1.2 §4.1.2).

use crate::machine::{read, write};

/// Virtio's vendor identity.
const VENDOR: u16 = 0x1af4;
/// The device identity of a modern virtio device is this plus its type.
const MODERN: u16 = 0x1040;

/// A type of virtio device (virtio 1.2 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Network.
    Net = 1,
    /// Block.
    Block = 2,
    /// Console.
    Console = 3,
    /// Entropy.
    Entropy = 4,
}

/// Bus 0 behind its ECAM window.
pub struct Bus {
    ecam: u64,
}

/// One function's configuration space.
#[derive(Clone, Copy)]
pub struct Function {
    /// Address of its 4 KiB of configuration space.
    pub config: u64,
}

impl Bus {
    /// The bus whose ECAM window starts at `ecam`.
    pub const fn new(ecam: u64) -> Self {
        Self { ecam }
    }

    /// The device of a kind with this index, counted in slot order.
    pub fn find(&self, kind: Kind, index: usize) -> Result<Function, &'static str> {
        (0..32)
            .map(|slot| Function { config: self.ecam + (slot << 15) })
            .filter(|function| {
                read::<u16>(function.config) == VENDOR && read::<u16>(function.config + 2) == MODERN + kind as u16
            })
            .nth(index)
            .ok_or("no such device")
    }
}

impl Function {
    /// Lets the function answer on its memory BARs and reach memory by itself.
    pub fn enable(self) {
        let command = read::<u16>(self.config + 4);
        write::<u16>(self.config + 4, command | 0x6);
    }

    /// The address of a memory BAR.
    pub fn bar(self, index: u8) -> Result<u64, &'static str> {
        if index > 5 {
            return Err("a capability names a BAR that can not be");
        }
        let low = read::<u32>(self.config + 0x10 + u64::from(index) * 4);
        let high = if low & 0x6 == 0x4 { read::<u32>(self.config + 0x14 + u64::from(index) * 4) } else { 0 };
        match u64::from(high) << 32 | u64::from(low & !0xf) {
            0 => Err("a BAR has no address"),
            address => Ok(address),
        }
    }

    /// The capabilities: (identity, address of its first byte), at most 48.
    pub fn capabilities(self) -> impl Iterator<Item = (u8, u64)> {
        let mut next = read::<u8>(self.config + 0x34) & !3;
        let mut left = 48;
        core::iter::from_fn(move || {
            if next == 0 || left == 0 {
                return None;
            }
            left -= 1;
            let at = self.config + u64::from(next);
            next = read::<u8>(at + 1) & !3;
            Some((read::<u8>(at), at))
        })
    }
}
