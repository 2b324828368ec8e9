//! A small bare-metal guest of our own, and where its program file is.
//!
//! It shows that a VMM's devices work, on any KVM and in well under a second: it enters in 64-bit mode at CPL3 with identity-mapped memory,
//! finds the PCI devices by the ACPI tables, drives virtio-pci by polling and reports over the serial port. At CPL3 it runs at native speed even
//! where KVM emulates guest kernel code.
//!
//! # What it asks of the VMM (boot protocol `native`)
//! - A static ELF64 file, marked as a standalone application, loaded to its physical addresses; entered at its entry point in 64-bit mode with CS, SS, DS and ES of privilege 3.
//! - All guest memory below 4 GiB, the ECAM window and the PCI memory windows identity-mapped, writable, user-accessible.
//! - SSE on (CR0.MP, CR4.OSFXSR, CR4.OSXMMEXCPT), the I/O permission bitmap open for every port.
//! - RDI holds the address of a PVH start info structure (`hvm_start_info`: magic 0x336ec578, command line, RSDP).
//! - PCI memory BARs are assigned; RSDP, XSDT and MCFG lead to the ECAM window.
//!
//! # What it does: words of the command line, in order
//! | word | effect |
//! |---|---|
//! | `pci` | lists the virtio devices |
//! | `blk=write:SEED:SECTORS` | writes a pattern from sector 0 on and flushes |
//! | `blk=verify:SEED:SECTORS` | reads it back and holds every byte against the pattern |
//! | `blk=zero:SECTORS` | discards from sector 0 on, in the pieces that the device announces, and expects zeros |
//! | `blk=wipe:SECTORS` | has zeros written from sector 0 on and expects them |
//! | `blk=queue:INDEX:SEED:SECTORS` | writes and verifies a pattern by way of this queue |
//! | `blk=refused` | expects a read-only device that refuses every change |
//! | `blk=bench:READS` | random 4 KiB reads, one at a time |
//! | `net=ADDRESS:ECHOES` | answers ARP and ICMP echo for this IPv4 address until it has answered so many |
//! | `net=dhcp:ECHOES` | the same for an address that it asks of a DHCP server first |
//! | `hvc=COUNT` | says `hvc is up` on the console device, then gives back so many bytes typed there |
//! | `hostile=blk` | nonsense in the block device's rings; then expects it to work again after a reset |
//! | `rng` | reads from the entropy device |
//!
//! Each word ends in one line `ok WORD …` or `FAIL WORD …`; the last line is `done`, after which it asks for a reset (port 0x64) and spins.

use std::path::Path;

/// The guest's program file.
#[must_use]
pub fn elf() -> &'static Path {
    Path::new(env!("NATIVE_GUEST_ELF"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_a_static_elf_for_the_address_it_is_loaded_to() {
        let bytes = std::fs::read(elf()).unwrap();
        assert_eq!(&bytes[..6], b"\x7fELF\x02\x01", "ELF, 64 bits, little endian");
        assert_eq!(bytes[7], 255, "a standalone application");
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let entry = word(24);
        assert!((0x20_0000..0x40_0000).contains(&entry), "entry {entry:#x}");
        let (headers, count) =
            (usize::try_from(word(32)).unwrap(), usize::from(u16::from_le_bytes([bytes[56], bytes[57]])));
        for header in (0..count).map(|index| headers + index * 56) {
            let kind = u32::from_le_bytes(bytes[header..header + 4].try_into().unwrap());
            assert!(kind != 2 && kind != 3, "no dynamic section, no interpreter");
        }
    }
}
