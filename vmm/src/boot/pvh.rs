//! Entry by PVH: 32-bit protected mode without paging, EBX at a start structure (Xen's `start_info.h`, `docs/misc/pvh.pandoc`).

use crate::boot::entry::{self, CR0_ET, CR0_PE, Entry, RFLAGS_FIXED, Width};
use crate::boot::{BootError, Told};
use crate::layout::{self, MapKind};
use crate::memory::Ram;
use kvm_bindings::kvm_regs;
use linux_loader::loader::elf::start_info::{
    XEN_HVM_MEMMAP_TYPE_RAM, XEN_HVM_MEMMAP_TYPE_RESERVED, XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry,
    hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{Bytes, GuestAddress};

const MODULES: u64 = layout::START_INFO + 0x100;
const MEMORY_MAP: u64 = layout::START_INFO + 0x200;

/// Writes the start structure and gives the registers to enter at `start`.
///
/// # Errors
/// [`BootError::Memory`].
pub fn enter(ram: &Ram, told: &Told<'_>, start: u64) -> Result<Entry, BootError> {
    write_start_info(ram, told)?;
    let (code, data) = (entry::code(0x8, Width::Protected), entry::data(0x10, Width::Protected));
    Ok(Entry {
        regs: kvm_regs { rip: start, rbx: layout::START_INFO, rflags: RFLAGS_FIXED, ..Default::default() },
        cr: [CR0_PE | CR0_ET, 0, 0],
        efer: 0,
        gdt_limit: entry::write_gdt(ram, &[code, data])?,
        code,
        data,
        task: entry::task(0x18, 0, 0x67),
    })
}

/// Writes the start structure with its memory map and module list at [`layout::START_INFO`].
///
/// # Errors
/// [`BootError::Memory`].
pub fn write_start_info(ram: &Ram, told: &Told<'_>) -> Result<(), BootError> {
    let mut info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: told.rsdp,
        memmap_paddr: MEMORY_MAP,
        ..Default::default()
    };
    if let Some(initrd) = told.initrd {
        let module = hvm_modlist_entry { paddr: initrd.start, size: initrd.bytes, ..Default::default() };
        ram.write_obj(module, GuestAddress(MODULES))?;
        (info.nr_modules, info.modlist_paddr) = (1, MODULES);
    }
    for (range, at) in layout::memory_map(told.memory_mib).into_iter().zip((MEMORY_MAP..).step_by(24)) {
        let type_ = match range.kind {
            MapKind::Ram => XEN_HVM_MEMMAP_TYPE_RAM,
            MapKind::Reserved => XEN_HVM_MEMMAP_TYPE_RESERVED,
        };
        let entry = hvm_memmap_table_entry { addr: range.start, size: range.bytes, type_, reserved: 0 };
        ram.write_obj(entry, GuestAddress(at))?;
        info.memmap_entries += 1;
    }
    Ok(ram.write_obj(info, GuestAddress(layout::START_INFO))?)
}
