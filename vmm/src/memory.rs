//! Guest RAM: anonymous memory of this process, mapped once for each start of the machine.
//!
//! Devices reach it only through checked accessors of vm-memory, or as [`Buffers`] made here for a volume or a tap. The guest can change any byte at
//! any time: whoever reads a structure copies it once and checks the copy.

use crate::layout;
use std::sync::Arc;
use storage::memory::{Buffers, GuestSlice};
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

/// A piece of guest memory as a descriptor names it: address and bytes.
pub type Piece = (GuestAddress, u32);

/// The host memory behind pieces of guest memory, for one request or one system call; it keeps `ram` mapped as long as it lives, and a volume keeps
/// it until the request has ended. Pieces of no bytes are left out. None when any byte is not RAM.
#[must_use]
pub fn lend(ram: &Arc<Ram>, pieces: &[Piece]) -> Option<Buffers> {
    let mut slices = Vec::with_capacity(pieces.len());
    for &(address, length) in pieces.iter().filter(|&&(_, length)| length > 0) {
        let length = usize::try_from(length).ok()?;
        for piece in ram.get_slices(address, length, Permissions::ReadWrite).ok()? {
            let piece = piece.ok()?;
            let (start, bytes) = (piece.ptr_guard_mut().as_ptr(), piece.len());
            // SAFETY: the piece lies inside a readable and writable mapping of `ram`. The slice goes into `Buffers` beside `ram`, which hands out no
            // slice by itself and lives until the request has ended. No Rust reference to guest RAM exists anywhere, all access is volatile.
            slices.push(unsafe { GuestSlice::new(start, bytes) });
        }
    }
    Some(Buffers::kept_by(Arc::<Ram>::clone(ram), slices))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_cover_a_buffer_and_refuse_what_is_not_ram() {
        let ram = map(16).unwrap();
        let lent =
            lend(&ram, &[(GuestAddress(0x1000), 512), (GuestAddress(u64::MAX), 0), (GuestAddress(0x3000), 1)]).unwrap();
        assert_eq!((lent.count(), lent.total_bytes()), (2, 513));
        for piece in [(16 << 20, 1), ((16 << 20) - 1, 2), (u64::MAX, 2), (0, u32::MAX)] {
            assert!(lend(&ram, &[(GuestAddress(piece.0), piece.1)]).is_none(), "{piece:x?}");
        }
    }

    #[test]
    fn what_is_lent_keeps_memory_mapped() {
        let ram = map(16).unwrap();
        let lent = lend(&ram, &[(GuestAddress(0), 4096)]).unwrap();
        let weak = Arc::downgrade(&ram);
        drop(ram);
        assert!(weak.upgrade().is_some());
        drop(lent);
        assert!(weak.upgrade().is_none());
    }
}
