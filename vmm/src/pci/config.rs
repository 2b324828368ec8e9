//! One function's configuration space: 256 bytes with a mask of what the guest may change (PCI 3.0 §6).
//!
//! Pure: bytes in, bytes out. Invariant: a bit whose mask is 0 never changes after the function was built.

/// Offset of the command register.
pub const COMMAND: u8 = 0x04;
/// Command bit: the function answers memory accesses to its BARs.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command bit: the function may write to memory, which includes interrupts by message.
pub const COMMAND_MASTER: u16 = 1 << 2;
/// Offset of BAR 0.
pub const BAR0: u8 = 0x10;

const STATUS: u8 = 0x06;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const CAPABILITY_POINTER: u8 = 0x34;
const FIRST_CAPABILITY: u8 = 0x40;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;

/// What identifies a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass and interface: `0xCCSSII`.
    pub class: u32,
    /// Subsystem vendor.
    pub subsystem_vendor: u16,
    /// Subsystem.
    pub subsystem: u16,
}

/// The configuration space of one function of header type 0.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: [u8; 256],
    writable: [u8; 256],
    last_capability: Option<u8>,
    next_free: u8,
}

impl ConfigSpace {
    /// A function without BARs or capabilities.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        let mut space =
            Self { bytes: [0; 256], writable: [0; 256], last_capability: None, next_free: FIRST_CAPABILITY };
        space.put(0x00, &identity.vendor.to_le_bytes());
        space.put(0x02, &identity.device.to_le_bytes());
        space.put(0x08, &[identity.revision]);
        space.put(0x09, &identity.class.to_le_bytes()[..3]);
        space.put(0x2c, &identity.subsystem_vendor.to_le_bytes());
        space.put(0x2e, &identity.subsystem.to_le_bytes());
        space.allow(COMMAND, &(COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTX_DISABLE).to_le_bytes());
        // The interrupt line is scratch space for the guest; the interrupt pin stays 0, none.
        space.allow(0x3c, &[0xff]);
        space
    }

    /// Adds a 32-bit memory BAR 0 of `bytes` (a power of two, at least 16) at `address`.
    ///
    /// # Panics
    /// When `bytes` is not such a size or `address` is not a multiple of it: both are our own constants.
    pub fn set_bar0(&mut self, address: u32, bytes: u32) {
        assert!(bytes.is_power_of_two() && bytes >= 16 && address.is_multiple_of(bytes));
        self.put(BAR0, &address.to_le_bytes());
        self.allow(BAR0, &(!(bytes - 1)).to_le_bytes());
    }

    /// Appends a capability of type `id`; `body` follows the two header bytes. Returns its offset.
    ///
    /// # Panics
    /// When the space is full: capabilities are our own constants.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> u8 {
        let at = self.next_free;
        let length = u8::try_from(body.len() + 2).unwrap_or(u8::MAX);
        let after = at.checked_add(length.next_multiple_of(4));
        self.next_free = after.unwrap_or_else(|| panic!("capability {id:#x} does not fit at {at:#x}"));
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        match self.last_capability.replace(at) {
            Some(previous) => self.put(previous + 1, &[at]),
            None => {
                self.put(CAPABILITY_POINTER, &[at]);
                self.put(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
            }
        }
        at
    }

    /// Lets the guest change the bits of `mask` from offset `at` on.
    pub fn allow(&mut self, at: u8, mask: &[u8]) {
        let at = usize::from(at);
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }

    /// Reads from offset `at`; what lies past the 256 bytes (extended space) reads as zero, the end of its list of capabilities.
    pub fn read(&self, at: u16, data: &mut [u8]) {
        for (index, byte) in (usize::from(at)..).zip(data) {
            *byte = self.bytes.get(index).copied().unwrap_or(0);
        }
    }

    /// Writes what the guest may change.
    pub fn write(&mut self, at: u16, data: &[u8]) {
        for (index, byte) in (usize::from(at)..).zip(data) {
            let (Some(old), Some(mask)) = (self.bytes.get_mut(index), self.writable.get(index)) else { return };
            *old = (*old & !mask) | (byte & mask);
        }
    }

    /// The 16 bits at `at`.
    #[must_use]
    pub fn word(&self, at: u8) -> u16 {
        let mut bytes = [0; 2];
        self.read(u16::from(at), &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// Where BAR 0 answers now: none while memory decoding is off.
    #[must_use]
    pub fn bar0(&self) -> Option<u64> {
        let mut bytes = [0; 4];
        self.read(u16::from(BAR0), &mut bytes);
        (self.word(COMMAND) & COMMAND_MEMORY != 0).then(|| u64::from(u32::from_le_bytes(bytes) & !0xf))
    }

    fn put(&mut self, at: u8, data: &[u8]) {
        let at = usize::from(at);
        self.bytes[at..at + data.len()].copy_from_slice(data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: 0x01_80_00,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        })
    }

    fn dword(space: &ConfigSpace, at: u16) -> u32 {
        let mut bytes = [0; 4];
        space.read(at, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn identity_is_where_the_specification_puts_it_and_stays() {
        let mut space = space();
        for at in (0..256).step_by(4) {
            space.write(at, &[0xff; 4]);
        }
        assert_eq!(dword(&space, 0), 0x1042_1af4);
        assert_eq!(dword(&space, 8), 0x0180_0001);
        assert_eq!(dword(&space, 0x2c), 0x1100_1af4);
        assert_eq!(dword(&space, 0x3c), 0xff);
    }

    #[test]
    fn a_bar_tells_its_size_and_moves_only_when_decoding() {
        let mut space = space();
        space.set_bar0(0xc000_0000, 0x8000);
        assert_eq!(space.bar0(), None);
        space.write(u16::from(BAR0), &[0xff; 4]);
        assert_eq!(dword(&space, 0x10), 0xffff_8000);
        space.write(u16::from(BAR0), &0xd000_1234_u32.to_le_bytes());
        space.write(u16::from(COMMAND), &COMMAND_MEMORY.to_le_bytes());
        assert_eq!(space.bar0(), Some(0xd000_0000));
    }

    #[test]
    fn capabilities_form_a_list() {
        let mut space = space();
        let (first, second) = (space.add_capability(9, &[1, 2, 3]), space.add_capability(0x11, &[4; 10]));
        assert_eq!((first, second), (0x40, 0x48));
        assert_eq!(dword(&space, 0x34), 0x40);
        assert_eq!(dword(&space, 0x40) & 0xffff, 0x4809);
        assert_eq!(dword(&space, 0x48) & 0xffff, 0x11);
        assert_eq!(dword(&space, 4) >> 16, u32::from(STATUS_CAPABILITIES));
    }

    /// Accesses of any width at any offset, also over the end, never panic and never change read-only bits.
    #[test]
    fn odd_accesses_are_harmless() {
        let mut space = space();
        for at in [0_u16, 1, 3, 253, 255, 256, 0xfff, u16::MAX] {
            for width in 1..=8 {
                let mut data = [0xaa; 8];
                space.write(at, &data[..width]);
                space.read(at, &mut data[..width]);
            }
        }
        assert_eq!(dword(&space, 0), 0x1042_1af4);
        assert_eq!(dword(&space, 0x100), 0);
    }
}
