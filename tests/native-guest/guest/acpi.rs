//! Finds the ECAM window by the ACPI tables (ACPI 6.5 §5.2.5 to §5.2.8, PCI firmware 3.3 §4.1.2), checking their sums on the way.

use crate::machine::peek;

/// The most tables that an XSDT may list here.
const TABLES_MAX: u64 = 64;

/// The base address of the ECAM window of segment 0.
pub fn ecam(rsdp: u64) -> Result<u64, &'static str> {
    if peek::<[u8; 8]>(rsdp) != *b"RSD PTR " || sum(rsdp, 36) != 0 {
        return Err("no RSDP, or its checksum is wrong");
    }
    let xsdt = table(peek::<u64>(rsdp + 24), *b"XSDT")?;
    let entries = (u64::from(peek::<u32>(xsdt + 4)) - 36) / 8;
    for index in 0..entries.min(TABLES_MAX) {
        let address = peek::<u64>(xsdt + 36 + index * 8);
        if peek::<[u8; 4]>(address) == *b"MCFG" {
            return Ok(peek::<u64>(table(address, *b"MCFG")? + 44));
        }
    }
    Err("no MCFG table")
}

fn table(address: u64, name: [u8; 4]) -> Result<u64, &'static str> {
    let length = u64::from(peek::<u32>(address + 4));
    if peek::<[u8; 4]>(address) != name || !(36..65536).contains(&length) || sum(address, length) != 0 {
        return Err("a table has a wrong name, length or checksum");
    }
    Ok(address)
}

fn sum(address: u64, length: u64) -> u8 {
    (0..length).fold(0, |sum: u8, at| sum.wrapping_add(peek::<u8>(address + at)))
}
