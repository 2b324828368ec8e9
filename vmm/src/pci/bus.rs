//! Bus 0: the host bridge in slot 0, one function in each slot after it, and the decoding of configuration and BAR accesses.
//!
//! BARs can be moved by the guest, so memory accesses in the PCI window are resolved here at each access, by asking each function where it answers.

use crate::bus::BusDevice;
use crate::layout;
use crate::pci::config::{ConfigSpace, Identity};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A function in a slot. Called on vCPU threads with the function's lock held.
pub trait Function: Send {
    /// Reads configuration space.
    fn read_config(&self, at: u16, data: &mut [u8]);
    /// Writes configuration space.
    fn write_config(&mut self, at: u16, data: &[u8]);
    /// Where its BAR answers now: first address and bytes.
    fn bar(&self) -> Option<(u64, u64)>;
    /// Reads its BAR.
    fn read_bar(&mut self, offset: u64, data: &mut [u8]);
    /// Writes its BAR.
    fn write_bar(&mut self, offset: u64, data: &[u8]);
}

/// A bridge between processor and bus, without registers of its own.
#[derive(Debug)]
pub struct HostBridge(ConfigSpace);

impl Default for HostBridge {
    /// The identity of QEMU's generic PCI Express bridge, which guests know to need no driver.
    fn default() -> Self {
        Self(ConfigSpace::new(Identity {
            vendor: 0x1b36,
            device: 0x0008,
            revision: 0,
            class: 0x06_00_00,
            subsystem_vendor: 0,
            subsystem: 0,
        }))
    }
}

impl Function for HostBridge {
    fn read_config(&self, at: u16, data: &mut [u8]) {
        self.0.read(at, data);
    }
    fn write_config(&mut self, at: u16, data: &[u8]) {
        self.0.write(at, data);
    }
    fn bar(&self) -> Option<(u64, u64)> {
        None
    }
    fn read_bar(&mut self, _offset: u64, _data: &mut [u8]) {}
    fn write_bar(&mut self, _offset: u64, _data: &[u8]) {}
}

/// A function in a slot, shared with the thread that serves its device.
pub type Slot = Arc<Mutex<dyn Function>>;

/// Bus 0.
pub struct PciBus {
    slots: Vec<Slot>,
}

impl fmt::Debug for PciBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PciBus").field("slots", &self.slots.len()).finish()
    }
}

impl PciBus {
    /// A bus with the host bridge and `functions` in the slots after it.
    #[must_use]
    pub fn new(functions: impl IntoIterator<Item = Slot>) -> Self {
        let bridge: Slot = Arc::new(Mutex::new(HostBridge::default()));
        Self { slots: std::iter::once(bridge).chain(functions).collect() }
    }

    /// The slot behind an offset in configuration space, and the offset in its space; only function 0 of bus 0 exists.
    fn locate(&self, offset: u64) -> Option<(&Slot, u16)> {
        let function = offset >> 12;
        if !function.is_multiple_of(8) {
            return None;
        }
        let slot = usize::try_from(function / 8).ok().and_then(|slot| self.slots.get(slot))?;
        Some((slot, u16::try_from(offset & 0xfff).ok()?))
    }

    /// Calls `access` with the function that answers `address`, and the offset in its BAR.
    fn with_bar(&self, address: u64, access: impl FnOnce(&mut dyn Function, u64)) {
        for slot in &self.slots {
            let mut function = lock(slot);
            if let Some((start, bytes)) = function.bar()
                && (start..start + bytes).contains(&address)
            {
                return access(&mut *function, address - start);
            }
        }
    }
}

fn lock(slot: &Slot) -> MutexGuard<'_, dyn Function + 'static> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Configuration space of the bus, memory-mapped.
#[derive(Debug)]
pub struct Ecam(pub Arc<PciBus>);

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((slot, at)) = self.0.locate(offset) {
            lock(slot).read_config(at, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((slot, at)) = self.0.locate(offset) {
            lock(slot).write_config(at, data);
        }
    }
}

/// The window that BARs are in.
#[derive(Debug)]
pub struct Window(pub Arc<PciBus>);

impl BusDevice for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        self.0.with_bar(layout::PCI_WINDOW + offset, |function, at| function.read_bar(at, data));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.with_bar(layout::PCI_WINDOW + offset, |function, at| function.write_bar(at, data));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(ecam: &Ecam, device: u64, function: u64, at: u64) -> u32 {
        let mut data = [0; 4];
        ecam.read(device << 15 | function << 12 | at, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn only_function_0_of_filled_slots_answers() {
        let ecam = Ecam(Arc::new(PciBus::new([])));
        assert_eq!(config(&ecam, 0, 0, 0), 0x0008_1b36);
        for (device, function) in [(0, 1), (1, 0), (31, 0), (31, 7)] {
            assert_eq!(config(&ecam, device, function, 0), u32::MAX);
            ecam.write(device << 15 | function << 12, &[0; 4]);
        }
    }

    #[test]
    fn an_address_without_a_bar_reads_as_ones() {
        let window = Window(Arc::new(PciBus::new([])));
        let mut data = [0; 4];
        window.read(0x1000, &mut data);
        assert_eq!(data, [0xff; 4]);
        window.write(0x1000, &data);
    }
}
