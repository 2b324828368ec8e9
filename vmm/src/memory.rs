//! Guest RAM: anonymous memory of this process, mapped once for each start of the machine.
//!
//! Devices reach it only through checked accessors of vm-memory, or as [`GuestSlice`]s made here for a volume's I/O. The guest can change any byte at
//! any time: whoever reads a structure copies it once and checks the copy.

use crate::layout;
use std::sync::Arc;
use storage::memory::GuestSlice;
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

/// Guest RAM. No dirty bitmap: pages are tracked by KVM when that is needed.
pub type Ram = GuestMemoryMmap<()>;

/// Guest RAM could not be mapped.
#[derive(Debug, thiserror::Error)]
#[error("map {memory_mib} MiB of guest memory")]
pub struct MapError {
    /// How much was asked for.
    pub memory_mib: u64,
    /// What the kernel said.
    #[source]
    pub source: vm_memory::mmap::FromRangesError,
}

/// Maps zeroed RAM for a machine with `memory_mib`; pages are taken from the host as the guest touches them.
///
/// # Errors
/// [`MapError`] when the address space is not to be had.
pub fn map(memory_mib: u64) -> Result<Arc<Ram>, MapError> {
    let ranges: Vec<(GuestAddress, usize)> = layout::ram_ranges(memory_mib)
        .into_iter()
        // A 64-bit host: a usize holds every u64.
        .map(|(start, bytes)| (GuestAddress(start), usize::try_from(bytes).unwrap_or(usize::MAX)))
        .collect();
    Ram::from_ranges(&ranges).map(Arc::new).map_err(|source| MapError { memory_mib, source })
}

/// The host memory behind a guest buffer, appended to `slices`, which must be dropped before `ram` is unmapped.
///
/// False when any byte of it is not RAM; `slices` may then hold a part.
///
/// # Safety
/// The caller keeps `ram` mapped until every request that carries one of the slices has completed.
pub unsafe fn append_slices(ram: &Ram, address: GuestAddress, length: u32, slices: &mut Vec<GuestSlice>) -> bool {
    let Ok(count) = usize::try_from(length) else { return false };
    let Ok(pieces) = ram.get_slices(address, count, Permissions::ReadWrite) else { return false };
    for piece in pieces {
        let Ok(piece) = piece else { return false };
        let (start, bytes) = (piece.ptr_guard_mut().as_ptr(), piece.len());
        // SAFETY: the piece lies inside a mapping of `ram`, which is readable and writable and which the caller keeps; no Rust reference to guest
        // RAM exists anywhere, all access is volatile.
        slices.push(unsafe { GuestSlice::new(start, bytes) });
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_cover_a_buffer_and_refuse_what_is_not_ram() {
        let ram = map(16).unwrap();
        let mut slices = Vec::new();
        // SAFETY: no request is made of the slices.
        assert!(unsafe { append_slices(&ram, GuestAddress(0x1000), 512, &mut slices) });
        assert_eq!(storage::memory::total_bytes(&slices), 512);
        for (address, length) in [(16 << 20, 1), ((16 << 20) - 1, 2), (u64::MAX, 2), (0, u32::MAX)] {
            // SAFETY: as above.
            assert!(!unsafe { append_slices(&ram, GuestAddress(address), length, &mut slices) }, "{address:#x}");
        }
    }
}
