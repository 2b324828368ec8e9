//! The tables that tell the guest of its hardware (ACPI 6.5): a hardware-reduced platform without legacy timers, keyboard controller or clock chip.
//!
//! ```text
//!  RSDP -> XSDT -> FADT -> DSDT   MADT   MCFG
//! ```
//!
//! The tables are bytes made from the number of vCPUs alone and are written once, before the guest runs. A guest that resets or powers off uses the
//! ports in [`layout`]; the power button is an event of a generic event device.

use crate::layout;
use crate::memory::Ram;
use acpi_tables::Aml;
use acpi_tables::aml::{
    self, AddressSpace, AddressSpaceCacheable, EISAName, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule,
    OpRegionSpace, Path,
};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace as Space, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

const OEM: [u8; 6] = *b"BASALT";
const TABLE: [u8; 8] = *b"BASALTVM";
const REVISION: u32 = 1;
/// The DSDT's ACPI revision: 64-bit integers.
const DSDT_REVISION: u8 = 2;

/// IA-PC boot flags (§5.2.9.3): no VGA, and no clock at 0x70.
const BOOT_FLAGS: u16 = 1 << 2 | 1 << 5;

/// A device event's notification value for a pressed button (§4.8.2.2).
const NOTIFY_PRESSED: u8 = 0x80;

/// Writes all tables; returns the address of the root pointer.
///
/// # Errors
/// When the area is not in RAM, which the layout rules out.
pub fn write(ram: &Ram, vcpus: u8) -> Result<u64, GuestMemoryError> {
    let rsdp = layout::ACPI_START;
    let mut at = rsdp + 64;
    let mut put = |table: Vec<u8>| {
        let start = at;
        at = (start + table.len() as u64).next_multiple_of(64);
        ram.write_slice(&table, GuestAddress(start)).map(|()| start)
    };
    let dsdt = put(dsdt(vcpus))?;
    let tables = [put(bytes(&fadt(dsdt)))?, put(bytes(&madt(vcpus)))?, put(bytes(&mcfg()))?];
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    tables.into_iter().for_each(|table| xsdt.add_entry(table));
    let xsdt = put(bytes(&xsdt))?;
    ram.write_slice(&bytes(&Rsdp::new(OEM, xsdt)), GuestAddress(rsdp))?;
    Ok(rsdp)
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn port(port: u16) -> GAS {
    GAS::new(Space::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port))
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        // The fixed buttons and the fixed clock event do not exist.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc);
    fadt.iapc_boot_arch = BOOT_FLAGS.into();
    fadt.reset_reg = port(layout::RESET_PORT);
    fadt.reset_value = layout::RESET_VALUE;
    fadt.sleep_control_reg = port(layout::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(layout::SLEEP_STATUS_PORT);
    fadt.finalize()
}

fn madt(vcpus: u8) -> MADT {
    let low = |address: u64| u32::try_from(address).unwrap_or(0);
    let mut madt = MADT::new(OEM, TABLE, REVISION, LocalInterruptController::Address(low(layout::LAPIC)));
    for index in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(index, index, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, low(layout::IOAPIC), 0));
    madt
}

fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM, TABLE, REVISION);
    mcfg.add_ecam(layout::ECAM, 0, 0, 0);
    mcfg
}

fn dsdt(vcpus: u8) -> Vec<u8> {
    let mut code = Vec::new();
    let mut add = |object: &dyn Aml| object.to_aml_bytes(&mut code);
    add(&aml::Name::new(
        "_S5_".into(),
        &aml::Package::new(vec![&layout::SLEEP_TYPE_S5, &aml::ZERO, &aml::ZERO, &aml::ZERO]),
    ));
    pci(&mut add);
    serial(&mut add);
    power_button(&mut add);
    (0..vcpus).for_each(|index| processor(&mut add, index));
    let mut table = Sdt::new(*b"DSDT", 36, DSDT_REVISION, OEM, TABLE, REVISION);
    table.append_slice(&code);
    table.as_slice().to_vec()
}

type Add<'a> = dyn FnMut(&dyn Aml) + 'a;

/// The host bridge with its windows, and the claim on configuration space that Linux wants to see.
fn pci(add: &mut Add<'_>) {
    let end = u32::try_from(layout::PCI_WINDOW + layout::PCI_WINDOW_BYTES - 1).unwrap_or(0);
    let start = u32::try_from(layout::PCI_WINDOW).unwrap_or(0);
    let window = AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, start, end, None);
    add(&aml::Device::new(
        "_SB_.PCI0".into(),
        vec![
            &aml::Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &aml::Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &aml::Name::new("_SEG".into(), &aml::ZERO),
            &aml::Name::new("_BBN".into(), &aml::ZERO),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new("_CCA".into(), &aml::ONE),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&AddressSpace::new_bus_number(0_u16, 0), &window]),
            ),
        ],
    ));
    let (base, size) = (u32::try_from(layout::ECAM).unwrap_or(0), u32::try_from(layout::ECAM_BYTES).unwrap_or(0));
    add(&aml::Device::new(
        "_SB_.MBRD".into(),
        vec![
            &aml::Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&aml::Memory32Fixed::new(true, base, size)]),
            ),
        ],
    ));
}

fn serial(add: &mut Add<'_>) {
    let ports = u8::try_from(layout::SERIAL_PORTS).unwrap_or(0);
    add(&aml::Device::new(
        "_SB_.COM1".into(),
        vec![
            &aml::Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::Interrupt::new(true, true, false, false, layout::SERIAL_GSI),
                    &aml::IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 0, ports),
                ]),
            ),
        ],
    ));
}

/// A button, and the generic event device (§5.6.9) whose method reads the event register and presses it.
fn power_button(add: &mut Add<'_>) {
    add(&aml::Device::new(
        "_SB_.PWRB".into(),
        vec![&aml::Name::new("_HID".into(), &EISAName::new("PNP0C0C")), &aml::Name::new("_UID".into(), &aml::ZERO)],
    ));
    let (events, button) = (Path::new("EVTS"), Path::new("\\_SB_.PWRB"));
    add(&aml::Device::new(
        "_SB_.GED_".into(),
        vec![
            &aml::Name::new("_HID".into(), &"ACPI0013"),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&aml::Interrupt::new(true, true, false, false, layout::EVENT_GSI)]),
            ),
            &aml::OpRegion::new("EVTR".into(), OpRegionSpace::SystemIO, &layout::EVENT_PORT, &aml::ONE),
            &aml::Field::new(
                "EVTR".into(),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![FieldEntry::Named(*b"EVTS", 8)],
            ),
            &aml::Method::new(
                "_EVT".into(),
                1,
                true,
                vec![
                    &aml::Store::new(&aml::Local(0), &events),
                    &aml::And::new(&aml::Local(1), &aml::Local(0), &layout::EVENT_POWER_BUTTON),
                    &aml::If::new(
                        &aml::Equal::new(&aml::Local(1), &layout::EVENT_POWER_BUTTON),
                        vec![&aml::Notify::new(&button, &NOTIFY_PRESSED)],
                    ),
                ],
            ),
        ],
    ));
}

fn processor(add: &mut Add<'_>, index: u8) {
    add(&aml::Device::new(
        Path::new(&format!("_SB_.C{index:03}")),
        vec![&aml::Name::new("_HID".into(), &"ACPI0007"), &aml::Name::new("_UID".into(), &index)],
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(ram: &Ram, at: u64) -> Vec<u8> {
        let length: u32 = ram.read_obj(GuestAddress(at + 4)).unwrap();
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn qword(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// Walks from the root pointer to every table: signatures, checksums, and that all lie in the reserved area.
    #[test]
    fn every_table_is_found_and_sums_to_zero() {
        for vcpus in [1, 2, 64] {
            let ram = crate::memory::map(16).unwrap();
            let root = write(&ram, vcpus).unwrap();
            let mut rsdp = [0; 36];
            ram.read_slice(&mut rsdp, GuestAddress(root)).unwrap();
            assert_eq!((&rsdp[..8], sum(&rsdp[..20]), sum(&rsdp)), (&b"RSD PTR "[..], 0, 0));
            let xsdt = table(&ram, qword(&rsdp, 24));
            assert_eq!((&xsdt[..4], sum(&xsdt)), (&b"XSDT"[..], 0));
            let addresses: Vec<u64> = xsdt[36..].chunks(8).map(|entry| qword(entry, 0)).collect();
            let tables: Vec<_> = addresses.iter().map(|&at| table(&ram, at)).collect();
            let names: Vec<_> = tables.iter().map(|table| String::from_utf8_lossy(&table[..4]).into_owned()).collect();
            assert_eq!(names, ["FACP", "APIC", "MCFG"]);
            let dsdt_at = qword(&tables[0], 140);
            let dsdt = table(&ram, dsdt_at);
            assert_eq!(&dsdt[..4], b"DSDT");
            assert!(tables.iter().chain([&dsdt]).all(|table| sum(table) == 0));
            assert!(qword(&rsdp, 24) + (xsdt.len() as u64) < layout::HIGH_MEMORY_START);
            assert_eq!(tables[1].len(), 44 + 8 * usize::from(vcpus) + 12);
        }
    }

    #[test]
    fn the_fadt_says_hardware_reduced_and_where_to_reset() {
        let fadt = bytes(&fadt(0xe_1000));
        let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
        assert_ne!(flags & (1 << 20), 0);
        assert_ne!(flags & (1 << 10), 0);
        assert_eq!(u16::from_le_bytes([fadt[109], fadt[110]]), BOOT_FLAGS);
        assert_eq!((fadt[116], qword(&fadt, 120), fadt[128]), (1, u64::from(layout::RESET_PORT), layout::RESET_VALUE));
        assert_eq!(qword(&fadt, 244 + 4), u64::from(layout::SLEEP_CONTROL_PORT));
    }
}
