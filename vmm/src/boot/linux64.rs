//! Entry by the 64-bit Linux boot protocol: long mode, RSI at the zero page (Documentation/arch/x86/boot.rst, "64-bit boot protocol").

use crate::boot::entry::{
    self, CR0_ET, CR0_PE, CR0_PG, CR4_PAE, EFER_LONG, Entry, RFLAGS_FIXED, Width, write_page_tables,
};
use crate::boot::{BootError, Told};
use crate::layout::{self, MapKind};
use crate::memory::Ram;
use kvm_bindings::kvm_regs;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{Bytes, GuestAddress};

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
const BOOT_FLAG: u16 = 0xaa55;
/// "HdrS".
const HEADER_MAGIC: u32 = 0x5372_6448;
/// A loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;

/// Writes the zero page and gives the registers to enter at `start`.
///
/// # Errors
/// [`BootError::Memory`].
pub fn enter(ram: &Ram, told: &Told<'_>, start: u64) -> Result<Entry, BootError> {
    ram.write_obj(zero_page(told), GuestAddress(layout::ZERO_PAGE))?;
    // The selectors that the protocol names __BOOT_CS and __BOOT_DS.
    let (code, data) = (entry::code(0x10, Width::Long), entry::data(0x18, Width::Long));
    Ok(Entry {
        regs: kvm_regs { rip: start, rsi: layout::ZERO_PAGE, rflags: RFLAGS_FIXED, ..Default::default() },
        cr: [CR0_PE | CR0_ET | CR0_PG, write_page_tables(ram, false)?, CR4_PAE],
        efer: EFER_LONG,
        gdt_limit: entry::write_gdt(ram, &[code, data])?,
        code,
        data,
        task: entry::task(0x20, 0, 0x67),
    })
}

fn zero_page(told: &Told<'_>) -> boot_params {
    let mut page = boot_params::default();
    page.hdr.boot_flag = BOOT_FLAG;
    page.hdr.header = HEADER_MAGIC;
    page.hdr.type_of_loader = LOADER_UNDEFINED;
    page.hdr.kernel_alignment = 1 << 24;
    page.acpi_rsdp_addr = told.rsdp;
    // Boot data lies below 1 MiB and the initrd below 3 GiB, so these are 32-bit numbers.
    let low = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    page.hdr.cmd_line_ptr = low(layout::CMDLINE);
    page.hdr.cmdline_size = low(told.cmdline.len() as u64);
    if let Some(initrd) = told.initrd {
        (page.hdr.ramdisk_image, page.hdr.ramdisk_size) = (low(initrd.start), low(initrd.bytes));
    }
    let map = layout::memory_map(told.memory_mib);
    page.e820_entries = u8::try_from(map.len()).unwrap_or(u8::MAX);
    for (entry, range) in page.e820_table.iter_mut().zip(map) {
        let kind = match range.kind {
            MapKind::Ram => E820_RAM,
            MapKind::Reserved => E820_RESERVED,
        };
        *entry = boot_e820_entry { addr: range.start, size: range.bytes, r#type: kind };
    }
    page
}
