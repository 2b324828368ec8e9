//! What the VMM hands over: the PVH start info structure (Xen's public/arch-x86/hvm/start_info.h).

use core::slice;
use core::str;

use crate::machine::peek;

/// "xEn3", with the top bit of the first byte set.
const MAGIC: u32 = 0x336e_c578;
/// The longest command line that is looked at.
const COMMAND_LINE_BYTES_MAX: usize = 2048;

/// The part of the start info that this guest uses.
#[derive(Clone, Copy)]
pub struct StartInfo {
    /// Words to run.
    pub command_line: &'static str,
    /// Physical address of the ACPI root pointer.
    pub rsdp: u64,
}

/// Reads the structure at `address`.
pub fn read(address: u64) -> Result<StartInfo, &'static str> {
    if address == 0 || peek::<u32>(address) != MAGIC {
        return Err("no start info");
    }
    let (command_line, rsdp) = (peek::<u64>(address + 24), peek::<u64>(address + 32));
    let length = (0..COMMAND_LINE_BYTES_MAX)
        .find(|at| peek::<u8>(command_line + *at as u64) == 0)
        .ok_or("endless command line")?;
    // SAFETY: the VMM put `length` bytes and a NUL there, and nothing writes to them.
    let bytes = unsafe { slice::from_raw_parts(command_line as *const u8, length) };
    Ok(StartInfo { command_line: str::from_utf8(bytes).map_err(|_| "the command line is not text")?, rsdp })
}
