//! Where everything is in the guest's physical memory, its I/O ports and its interrupt lines.
//!
//! ```text
//!  0          640K    1M                    3G          3.5G    +1M            4G
//!  | boot data | ACPI | RAM ............... | PCI BARs  | ECAM  | ... APICs .. | RAM above 3G goes on here
//! ```
//!
//! Constants and the memory map only. Invariant, asserted below: no two ranges overlap.

/// The end of memory that a real-mode BIOS would leave free; boot data lives below.
pub const LOW_MEMORY_END: u64 = 0x9_fc00;
/// Where ACPI tables start: the area that legacy code searches for the RSDP.
pub const ACPI_START: u64 = 0xe_0000;
/// Where a processor in real mode starts after a reset, at ffff:0 as a PC has it: a guest that finds no other way to restart jumps there.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// The end of the ACPI area, and the least address a kernel may be loaded at.
pub const HIGH_MEMORY_START: u64 = 0x10_0000;
/// RAM below this address; the rest goes to [`RAM_ABOVE_4G`].
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// The window PCI BARs are placed in.
pub const PCI_WINDOW: u64 = 0xc000_0000;
/// The size of the PCI window, bytes.
pub const PCI_WINDOW_BYTES: u64 = 0x2000_0000;
/// Memory-mapped configuration space of bus 0 (PCI Express base spec §7.2.2).
pub const ECAM: u64 = 0xe000_0000;
/// 32 devices of 8 functions of 4 KiB: one bus.
pub const ECAM_BYTES: u64 = 1 << 20;
/// The I/O APIC's registers.
pub const IOAPIC: u64 = 0xfec0_0000;
/// The local APICs' registers.
pub const LAPIC: u64 = 0xfee0_0000;
/// A page KVM needs for real mode on Intel.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages KVM needs for real mode on Intel.
pub const KVM_TSS: u64 = 0xfffb_d000;
/// RAM above the hole.
pub const RAM_ABOVE_4G: u64 = 0x1_0000_0000;

/// Boot data, all below [`LOW_MEMORY_END`]: segment descriptors.
pub const GDT: u64 = 0x500;
/// The PVH start structure, its memory map and module list.
pub const START_INFO: u64 = 0x1000;
/// The zero page of the Linux boot protocol.
pub const ZERO_PAGE: u64 = 0x7000;
/// Page tables of an entry in long mode: one PML4, one PDPT, four PDs.
pub const PAGE_TABLES: u64 = 0xa000;
/// The command line.
pub const CMDLINE: u64 = 0x2_0000;
/// An all-zero task state segment with its port bitmap, for native programs.
pub const NATIVE_TSS: u64 = 0x3_0000;
/// The size of that segment: 104 bytes, 65,536 port bits, and the closing byte, rounded up.
pub const NATIVE_TSS_BYTES: u64 = 0x3000;
/// The top of a native program's stack; it has all down to [`NATIVE_STACK_LIMIT`].
pub const NATIVE_STACK_TOP: u64 = 0x9_f000;
/// The bottom of a native program's stack.
pub const NATIVE_STACK_LIMIT: u64 = 0x4_0000;

/// COM1.
pub const SERIAL_PORT: u16 = 0x3f8;
/// COM1 has 8 registers.
pub const SERIAL_PORTS: u16 = 8;
/// The keyboard controller's command port: 0xfe written here resets an old machine.
pub const I8042_COMMAND_PORT: u16 = 0x64;
/// The reset control register of PC chip sets.
pub const RESET_CONTROL_PORT: u16 = 0xcf9;
/// ACPI sleep control register (ACPI 6.5 §4.8.3.7).
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI sleep status register.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// ACPI reset register.
pub const RESET_PORT: u16 = 0x602;
/// What is written there to reset.
pub const RESET_VALUE: u8 = 1;
/// The generic event device's register: one bit an event, cleared by reading.
pub const EVENT_PORT: u16 = 0x603;
/// The power button's bit in it.
pub const EVENT_POWER_BUTTON: u8 = 1;
/// The sleep type that means S5, as the DSDT says and the guest writes.
pub const SLEEP_TYPE_S5: u8 = 5;

/// COM1's interrupt line.
pub const SERIAL_GSI: u32 = 4;
/// The generic event device's interrupt line.
pub const EVENT_GSI: u32 = 5;
/// Lines of the I/O APIC; message-signalled interrupts are numbered from here.
pub const IOAPIC_LINES: u32 = 24;

const MIB: u64 = 1 << 20;

const _: () = assert!(START_INFO + 0x1000 <= ZERO_PAGE && ZERO_PAGE + 0x1000 <= PAGE_TABLES);
const _: () = assert!(PAGE_TABLES + 6 * 0x1000 <= CMDLINE && CMDLINE + 0x1000 <= NATIVE_TSS);
const _: () = assert!(NATIVE_TSS + NATIVE_TSS_BYTES <= NATIVE_STACK_LIMIT && NATIVE_STACK_TOP <= LOW_MEMORY_END);
const _: () = assert!(LOW_RAM_END <= PCI_WINDOW && PCI_WINDOW + PCI_WINDOW_BYTES <= ECAM);
const _: () = assert!(ECAM + ECAM_BYTES <= IOAPIC && IOAPIC < LAPIC && LAPIC < KVM_IDENTITY_MAP);

/// What a range of guest memory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapKind {
    /// Free for the guest.
    Ram,
    /// Not to be touched except as devices or tables say.
    Reserved,
}

/// One range of the memory map told to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapEntry {
    /// First address.
    pub start: u64,
    /// Size in bytes.
    pub bytes: u64,
    /// What it is for.
    pub kind: MapKind,
}

/// Ranges of RAM, first address and bytes, for a machine with `memory_mib`.
#[must_use]
pub fn ram_ranges(memory_mib: u64) -> Vec<(u64, u64)> {
    let bytes = memory_mib * MIB;
    if bytes <= LOW_RAM_END {
        return vec![(0, bytes)];
    }
    vec![(0, LOW_RAM_END), (RAM_ABOVE_4G, bytes - LOW_RAM_END)]
}

/// The memory map for a machine with `memory_mib`: sorted, without overlap.
#[must_use]
pub fn memory_map(memory_mib: u64) -> Vec<MapEntry> {
    let entry = |start, end, kind| MapEntry { start, bytes: end - start, kind };
    let ranges = ram_ranges(memory_mib);
    let mut map = vec![
        entry(0, LOW_MEMORY_END, MapKind::Ram),
        entry(LOW_MEMORY_END, HIGH_MEMORY_START, MapKind::Reserved),
        entry(HIGH_MEMORY_START, ranges[0].1, MapKind::Ram),
        entry(ECAM, ECAM + ECAM_BYTES, MapKind::Reserved),
    ];
    map.extend(ranges.get(1).map(|&(start, bytes)| entry(start, start + bytes, MapKind::Ram)));
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_sorted_without_overlap_and_hold_all_ram() {
        for memory_mib in [16, 512, 3071, 3072, 3073, 8192, 1 << 20] {
            let map = memory_map(memory_mib);
            assert!(map.windows(2).all(|pair| pair[0].start + pair[0].bytes <= pair[1].start), "{map:?}");
            let ram: u64 = map.iter().filter(|entry| entry.kind == MapKind::Ram).map(|entry| entry.bytes).sum();
            assert_eq!(ram, memory_mib * MIB - (HIGH_MEMORY_START - LOW_MEMORY_END));
        }
    }
}
