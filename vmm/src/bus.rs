//! The address decoders of the machine: which device answers a port or a memory address.
//!
//! A bus is filled while the machine is built and frozen before vCPUs run. What no device answers reads as all ones and swallows writes, as on real
//! hardware. The bus knows ranges, never what is behind them.

use std::fmt;
use std::sync::Arc;

/// Something that answers a range of a bus. Called on vCPU threads; offsets count from the start of its range.
pub trait BusDevice: Send + Sync {
    /// Fills `data`, at most 8 bytes.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes `data`, at most 8 bytes.
    fn write(&self, offset: u64, data: &[u8]);
}

struct Range {
    start: u64,
    end: u64,
    device: Arc<dyn BusDevice>,
}

/// One address space, ports or memory.
#[derive(Default)]
pub struct Bus {
    ranges: Vec<Range>,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ranges.iter().map(|range| range.start..range.end)).finish()
    }
}

impl Bus {
    /// Puts a device at `start`.
    ///
    /// # Panics
    /// When the range overlaps one that is there: the layout is ours, so that is a mistake in this program.
    pub fn insert(&mut self, start: u64, bytes: u64, device: Arc<dyn BusDevice>) {
        let end = start + bytes;
        assert!(
            self.ranges.iter().all(|range| end <= range.start || range.end <= start),
            "{start:#x}..{end:#x} overlaps a device"
        );
        self.ranges.push(Range { start, end, device });
    }

    /// Reads from whoever answers `address`; false when nobody does.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        self.find(address).inspect(|range| range.device.read(address - range.start, data)).is_some()
    }

    /// Writes to whoever answers `address`; false when nobody does.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        self.find(address).inspect(|range| range.device.write(address - range.start, data)).is_some()
    }

    /// A machine has fewer than ten ranges, so a walk is as quick as a search.
    fn find(&self, address: u64) -> Option<&Range> {
        self.ranges.iter().find(|range| (range.start..range.end).contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Memory(Mutex<[u8; 8]>);

    impl BusDevice for Memory {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data[0] = self.0.lock().unwrap()[usize::try_from(offset).unwrap()];
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap()[usize::try_from(offset).unwrap()] = data[0];
        }
    }

    #[test]
    fn ranges_answer_and_the_rest_reads_as_ones() {
        let mut bus = Bus::default();
        bus.insert(0x10, 8, Arc::new(Memory::default()));
        let mut data = [0; 1];
        assert!(bus.write(0x17, &[5]) && bus.read(0x17, &mut data));
        assert_eq!(data, [5]);
        assert!(!bus.write(0x18, &[5]) && !bus.read(0xf, &mut data));
        assert_eq!(data, [0xff]);
    }

    #[test]
    #[should_panic(expected = "overlaps")]
    fn overlapping_ranges_are_a_mistake() {
        let mut bus = Bus::default();
        bus.insert(0x10, 8, Arc::new(Memory::default()));
        bus.insert(0x17, 1, Arc::new(Memory::default()));
    }
}
