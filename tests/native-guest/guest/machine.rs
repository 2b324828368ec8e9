//! The processor: entry, ports, time, memory for devices, and the memory functions that the compiler calls.

use core::arch::{asm, global_asm};
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

// The VMM leaves the start info's address in RDI and promises no stack.
global_asm!(
    ".globl _start",
    "_start:",
    "lea rsp, [rip + guest_stack_top]",
    "xor ebp, ebp",
    "call guest_main",
    "ud2",
    ".section .bss.stack, \"aw\", @nobits",
    ".balign 16",
    "guest_stack: .skip 65536",
    "guest_stack_top:",
    ".text",
);

/// Where memory for rings and buffers starts: above the program, below the 64 MiB that every test gives.
const DMA_START: u64 = 0x0100_0000;
/// Where it ends.
const DMA_END: u64 = 0x0300_0000;

static NEXT: AtomicU64 = AtomicU64::new(DMA_START);

/// Takes zeroed memory that a device may use; its physical address is its virtual one. Never given back.
pub fn dma(bytes: usize) -> &'static mut [u8] {
    let size = (bytes as u64).next_multiple_of(4096);
    let start = NEXT.fetch_add(size, Ordering::Relaxed);
    assert!(start + size <= DMA_END, "out of memory for devices");
    // SAFETY: the range is mapped guest memory that nothing else uses, and is given out once.
    unsafe {
        ptr::write_bytes(start as *mut u8, 0, bytes);
        core::slice::from_raw_parts_mut(start as *mut u8, bytes)
    }
}

/// Writes a byte to an I/O port.
pub fn out8(port: u16, value: u8) {
    // SAFETY: port output touches no memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) }
}

/// Reads a byte from an I/O port.
pub fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: port input touches no memory.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) }
    value
}

/// The time-stamp counter.
pub fn ticks() -> u64 {
    // SAFETY: RDTSC is allowed at CPL3 while CR4.TSD is clear.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Asks for a reset by the keyboard controller's command, then spins.
pub fn reset() -> ! {
    out8(0x64, 0xfe);
    loop {
        core::hint::spin_loop();
    }
}

/// Reads from a device register.
pub fn read<T: Copy>(address: u64) -> T {
    // SAFETY: callers pass addresses inside mapped device windows or tables.
    unsafe { ptr::read_volatile(address as *const T) }
}

/// Writes to a device register.
pub fn write<T: Copy>(address: u64, value: T) {
    // SAFETY: callers pass addresses inside mapped device windows.
    unsafe { ptr::write_volatile(address as *mut T, value) }
}

/// Reads from memory at any alignment.
pub fn peek<T: Copy>(address: u64) -> T {
    // SAFETY: callers pass addresses of mapped memory.
    unsafe { ptr::read_unaligned(address as *const T) }
}

// What the compiler calls by name, and what a libc would have had. `rep` keeps the compiler from turning them into calls to themselves.

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _, options(nostack))
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= count {
        // SAFETY: the target does not start inside the source.
        return unsafe { memcpy(to, from, count) };
    }
    // SAFETY: the caller's promise; backwards, because the target starts inside the source.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") count => _, inout("rdi") to.wrapping_add(count).wrapping_sub(1) => _,
             inout("rsi") from.wrapping_add(count).wrapping_sub(1) => _, options(nostack));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe { asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("al") value as u8, options(nostack)) }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    let mut index = 0;
    while index < count {
        // SAFETY: the caller's promise; volatile keeps the loop from becoming a call to this function.
        let (left, right) = unsafe { (ptr::read_volatile(a.add(index)), ptr::read_volatile(b.add(index))) };
        if left != right {
            return i32::from(left) - i32::from(right);
        }
        index += 1;
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { memcmp(a, b, count) }
}

/// The core library was compiled to unwind and names this; a program that aborts on panic never calls it.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
