//! The one piece of firmware that there is: sixteen bytes at the reset vector that pull the machine's reset line.
//!
//! Linux takes a platform with reduced ACPI hardware for one with EFI and tries no other reset of its own (`efi_reboot_required`, arch/x86): without
//! EFI it goes back to real mode and jumps to ffff:0 (`machine_real_restart`, 6.1). Where nothing stands there, it runs through memory for ever.

use crate::layout;
use crate::memory::Ram;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

const PORT: [u8; 2] = layout::RESET_PORT.to_le_bytes();

/// 16-bit code: `mov dx, RESET_PORT; mov al, RESET_VALUE; out dx, al; hlt; jmp` to the `hlt`.
const CODE: [u8; 9] = [0xba, PORT[0], PORT[1], 0xb0, layout::RESET_VALUE, 0xee, 0xf4, 0xeb, 0xfd];
const _: () = assert!(layout::RESET_VECTOR + CODE.len() as u64 <= layout::HIGH_MEMORY_START);

/// Puts the code into guest memory.
///
/// # Errors
/// When the place is not RAM, which the layout rules out.
pub fn write(ram: &Ram) -> Result<(), GuestMemoryError> {
    ram.write_slice(&CODE, GuestAddress(layout::RESET_VECTOR))
}
