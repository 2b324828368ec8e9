//! Entry of a freestanding program at user privilege: long mode, CPL 3, everything mapped for it.
//!
//! A KVM that emulates guest kernel code (nested and para-virtualised hosts) runs guest user code natively, so such a program drives our devices at
//! full speed where no kernel boots. What it finds:
//!
//! - CS 0x33 and SS 0x2b at CPL 3, SSE on, the low 4 GiB mapped one to one and open to user code: RAM, PCI windows, APICs;
//! - a task state segment of zeros at [`layout::NATIVE_TSS`], whose port bitmap therefore lets every `in` and `out` through;
//! - RDI at the start structure of [`crate::boot::pvh`] (memory map, command line, RSDP), RSP at [`layout::NATIVE_STACK_TOP`];
//! - no interrupt table: it polls, and a fault ends the machine. It ends itself by the ACPI sleep or reset port.

use crate::boot::entry::{
    self, CR0_ET, CR0_MP, CR0_NE, CR0_PE, CR0_PG, CR0_WP, CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_PAE, EFER_LONG, EFER_NXE,
    EFER_SCE, Entry, RFLAGS_FIXED, Width, write_page_tables,
};
use crate::boot::{BootError, Told, pvh};
use crate::layout;
use crate::memory::Ram;
use kvm_bindings::kvm_regs;
use vm_memory::{Bytes, GuestAddress};

const CODE: u16 = 0x33;
const DATA: u16 = 0x2b;
const TASK: u16 = 0x40;

/// Writes the start structure and gives the registers to enter at `start`.
///
/// # Errors
/// [`BootError::Memory`].
pub fn enter(ram: &Ram, told: &Told<'_>, start: u64) -> Result<Entry, BootError> {
    pvh::write_start_info(ram, told)?;
    let bytes = usize::try_from(layout::NATIVE_TSS_BYTES).unwrap_or(0);
    ram.write_slice(&vec![0; bytes], GuestAddress(layout::NATIVE_TSS))?;
    let (code, data) = (entry::code(CODE, Width::User), entry::data(DATA, Width::User));
    let limit = u32::try_from(layout::NATIVE_TSS_BYTES - 1).unwrap_or(0);
    Ok(Entry {
        regs: kvm_regs {
            rip: start,
            rdi: layout::START_INFO,
            // As if called: the ABI wants the stack 8 bytes off a multiple of 16 at a function's first instruction.
            rsp: layout::NATIVE_STACK_TOP - 8,
            rflags: RFLAGS_FIXED,
            ..Default::default()
        },
        cr: [
            CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG,
            write_page_tables(ram, true)?,
            CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT,
        ],
        efer: EFER_LONG | EFER_SCE | EFER_NXE,
        gdt_limit: entry::write_gdt(ram, &[code, data])?,
        code,
        data,
        task: entry::task(TASK, layout::NATIVE_TSS, limit),
    })
}
