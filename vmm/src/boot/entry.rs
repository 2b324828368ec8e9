//! The registers a vCPU starts with, as plain data, and the segments, descriptors and page tables they are made of (Intel SDM vol. 3, chapters 3 and 4).

use crate::kvm::{KvmError, attempt};
use crate::layout;
use crate::memory::Ram;
use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

/// CR0: protection on.
pub const CR0_PE: u64 = 1;
/// CR0: report floating point by exception, as a modern system expects.
pub const CR0_MP: u64 = 1 << 1;
/// CR0: fixed to 1 on all machines since the 486.
pub const CR0_ET: u64 = 1 << 4;
/// CR0: native floating-point errors.
pub const CR0_NE: u64 = 1 << 5;
/// CR0: read-only pages bind the kernel too.
pub const CR0_WP: u64 = 1 << 16;
/// CR0: paging on.
pub const CR0_PG: u64 = 1 << 31;
/// CR4: 8-byte page table entries.
pub const CR4_PAE: u64 = 1 << 5;
/// CR4: SSE state is saved.
pub const CR4_OSFXSR: u64 = 1 << 9;
/// CR4: SSE errors by exception.
pub const CR4_OSXMMEXCPT: u64 = 1 << 10;
/// EFER: long mode enabled and active.
pub const EFER_LONG: u64 = 1 << 8 | 1 << 10;
/// EFER: `syscall` enabled.
pub const EFER_SCE: u64 = 1;
/// EFER: execute-disable enabled.
pub const EFER_NXE: u64 = 1 << 11;
/// The bit of RFLAGS that is always 1.
pub const RFLAGS_FIXED: u64 = 2;

const PRESENT_WRITABLE: u64 = 3;
const USER: u64 = 1 << 2;
const HUGE: u64 = 1 << 7;
const HUGE_BYTES: u64 = 2 << 20;
/// Page tables map this many GiB one to one: RAM below 3 GiB, the PCI windows and the APICs.
const MAPPED_GIB: u64 = 4;

/// How the first vCPU starts.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// General registers.
    pub regs: kvm_regs,
    /// Control registers 0, 3 and 4.
    pub cr: [u64; 3],
    /// The extended feature register.
    pub efer: u64,
    /// The code segment.
    pub code: kvm_segment,
    /// All data segments and the stack's.
    pub data: kvm_segment,
    /// The task register.
    pub task: kvm_segment,
    /// The limit of the descriptor table at [`layout::GDT`]; 0 where there is none.
    pub gdt_limit: u16,
}

impl Entry {
    /// Puts the registers into a vCPU.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn apply(&self, vcpu: &VcpuFd) -> Result<(), KvmError> {
        let mut sregs = vcpu.get_sregs().map_err(attempt("read segment registers"))?;
        (sregs.cs, sregs.tr) = (self.code, self.task);
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (self.data, self.data, self.data, self.data, self.data);
        [sregs.cr0, sregs.cr3, sregs.cr4] = self.cr;
        sregs.efer = self.efer;
        if self.gdt_limit > 0 {
            (sregs.gdt.base, sregs.gdt.limit) = (layout::GDT, self.gdt_limit);
        }
        (sregs.idt.base, sregs.idt.limit) = (0, 0);
        vcpu.set_sregs(&sregs).map_err(attempt("set segment registers"))?;
        vcpu.set_regs(&self.regs).map_err(attempt("set general registers"))
    }
}

/// A segment's privilege and width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// 32-bit protected mode, kernel privilege.
    Protected,
    /// 64-bit mode, kernel privilege.
    Long,
    /// 64-bit mode, user privilege.
    User,
}

/// A flat code segment.
#[must_use]
pub fn code(selector: u16, width: Width) -> kvm_segment {
    kvm_segment {
        limit: u32::MAX,
        selector,
        type_: 11,
        present: 1,
        dpl: if width == Width::User { 3 } else { 0 },
        db: u8::from(width == Width::Protected),
        s: 1,
        l: u8::from(width != Width::Protected),
        g: 1,
        ..Default::default()
    }
}

/// A flat data segment.
#[must_use]
pub fn data(selector: u16, width: Width) -> kvm_segment {
    let dpl = if width == Width::User { 3 } else { 0 };
    kvm_segment { limit: u32::MAX, selector, type_: 3, present: 1, dpl, db: 1, s: 1, g: 1, ..Default::default() }
}

/// A busy task state segment.
#[must_use]
pub fn task(selector: u16, base: u64, limit: u32) -> kvm_segment {
    kvm_segment { base, limit, selector, type_: 11, present: 1, ..Default::default() }
}

/// Writes a descriptor table with `segments` where their selectors say; returns its limit.
///
/// # Errors
/// When the table is not in RAM, which the layout rules out.
pub fn write_gdt(ram: &Ram, segments: &[kvm_segment]) -> Result<u16, GuestMemoryError> {
    let mut limit = 7;
    ram.write_obj(0_u64, GuestAddress(layout::GDT))?;
    for segment in segments {
        let at = segment.selector & !7;
        ram.write_obj(descriptor(segment), GuestAddress(layout::GDT + u64::from(at)))?;
        limit = limit.max(at + 7);
    }
    Ok(limit)
}

/// A segment as its 8 bytes in a descriptor table (SDM vol. 3 §3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let base = segment.base;
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7;
    let flags = u64::from(segment.l) << 1 | u64::from(segment.db) << 2 | u64::from(segment.g) << 3;
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (base >> 24 & 0xff) << 56
}

/// Writes page tables that map the low 4 GiB one to one, for user mode where `user`; returns the root's address.
///
/// # Errors
/// When the tables are not in RAM, which the layout rules out.
pub fn write_page_tables(ram: &Ram, user: bool) -> Result<u64, GuestMemoryError> {
    let flags = PRESENT_WRITABLE | if user { USER } else { 0 };
    let (root, pointers, directories) =
        (layout::PAGE_TABLES, layout::PAGE_TABLES + 0x1000, layout::PAGE_TABLES + 0x2000);
    ram.write_obj(pointers | flags, GuestAddress(root))?;
    for gib in 0..MAPPED_GIB {
        ram.write_obj((directories + gib * 0x1000) | flags, GuestAddress(pointers + gib * 8))?;
    }
    for page in 0..MAPPED_GIB * 512 {
        ram.write_obj((page * HUGE_BYTES) | flags | HUGE, GuestAddress(directories + page * 8))?;
    }
    Ok(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_have_the_well_known_values() {
        assert_eq!(descriptor(&code(0x10, Width::Long)), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&data(0x18, Width::Long)), 0x00cf_9300_0000_ffff);
        assert_eq!(descriptor(&code(0x10, Width::Protected)), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&code(0x33, Width::User)), 0x00af_fb00_0000_ffff);
    }

    #[test]
    fn page_tables_map_one_to_one() {
        let ram = crate::memory::map(16).unwrap();
        let root = write_page_tables(&ram, true).unwrap();
        let entry = |table: u64, index: u64| -> u64 { ram.read_obj(GuestAddress(table + index * 8)).unwrap() };
        for address in [0, 0x20_0000, 0xc000_0000, 0xfee0_0000_u64] {
            let pointer = entry(entry(root, 0) & !0xfff, address >> 30);
            let page = entry(pointer & !0xfff, address >> 21 & 0x1ff);
            assert_eq!((page & !0xfff, page & USER), (address & !(HUGE_BYTES - 1), USER));
        }
    }
}
