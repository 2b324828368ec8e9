//! Memory that the kernel or librbd reads and writes on a volume's behalf: slices of guest memory and aligned buffers.
//!
//! This module owns every raw pointer of the crate outside the librbd binding. It never makes a Rust reference to guest
//! memory, because a guest may change it at any time; it only copies or hands addresses to system calls.
//!
//! Invariant: a [`GuestSlice`] exists only after its maker promised (in an `unsafe` block of its own) that the memory
//! stays mapped until the request that carries it has completed.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::any::Any;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

/// Most buffers that one system call takes (`IOV_MAX` of Linux).
pub const SEGMENTS_MAX: usize = 1024;

/// One contiguous piece of memory that a request reads into or writes from.
///
/// It is a `struct iovec`, so a list of them goes to the kernel or to librbd as it is.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct GuestSlice {
    iovec: libc::iovec,
}

const _: () = assert!(size_of::<GuestSlice>() == size_of::<libc::iovec>());

// SAFETY: the slice is an address and a length. What may be done with them, from any thread, is the promise made to
// `GuestSlice::new`, which is not bound to a thread.
unsafe impl Send for GuestSlice {}

impl GuestSlice {
    /// Names `length_bytes` of memory from `address` as an I/O buffer.
    ///
    /// # Safety
    /// From this call until the completion of the request that carries the slice has been drained (or the volume it was
    /// submitted to has been closed or dropped), the memory must stay mapped, readable and, for reads, writable; and no
    /// Rust reference to it may be alive that such a write would contradict. Others, like a guest, may change the
    /// memory meanwhile.
    #[must_use]
    pub unsafe fn new(address: *mut u8, length_bytes: usize) -> Self {
        Self { iovec: libc::iovec { iov_base: address.cast(), iov_len: length_bytes } }
    }

    /// The first byte's address.
    #[must_use]
    pub fn address(&self) -> *mut u8 {
        self.iovec.iov_base.cast()
    }

    /// The number of bytes.
    #[must_use]
    pub fn length_bytes(&self) -> usize {
        self.iovec.iov_len
    }

    /// Cuts the slice into pieces of at most `piece_bytes`, each with its place in the slice.
    pub(crate) fn pieces(self, piece_bytes: usize) -> impl Iterator<Item = (u64, Self)> {
        let mut rest = self;
        let mut at = 0;
        std::iter::from_fn(move || {
            let mut piece = rest;
            piece.iovec.iov_len = rest.iovec.iov_len.min(piece_bytes);
            rest.advance(piece_bytes);
            let place = at;
            at += piece.iovec.iov_len as u64;
            (piece.iovec.iov_len > 0).then_some((place, piece))
        })
    }

    /// Drops the first `count` bytes, or all where there are fewer.
    fn advance(&mut self, count: usize) {
        let step = count.min(self.iovec.iov_len);
        self.iovec.iov_base = self.address().wrapping_add(step).cast();
        self.iovec.iov_len -= step;
    }
}

impl fmt::Debug for GuestSlice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuestSlice({:p}+{})", self.address(), self.length_bytes())
    }
}

/// Whatever keeps memory mapped; dropped when nobody may touch the memory any more.
pub(crate) type Owner = Option<Arc<dyn Any + Send + Sync>>;

/// The memory of one request with its owner, which the volume keeps until the request has ended. Nobody outside of this crate gets a slice out
/// of it, so whoever lends memory with an owner has kept the promise of [`GuestSlice::new`].
#[derive(Debug, Default)]
pub struct Buffers {
    slices: Vec<GuestSlice>,
    owner: Owner,
}

impl Buffers {
    /// Slices of memory that `owner` keeps mapped as long as it lives.
    #[must_use]
    pub fn kept_by(owner: Arc<dyn Any + Send + Sync>, slices: Vec<GuestSlice>) -> Self {
        Self { slices, owner: Some(owner) }
    }

    /// The number of slices.
    #[must_use]
    pub fn count(&self) -> usize {
        self.slices.len()
    }

    /// The number of bytes in all slices.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        total_bytes(&self.slices)
    }

    /// The slices as an array of [`Buffers::count`] elements for one system call, which must end before the buffers are dropped.
    #[must_use]
    pub fn as_iovecs(&self) -> *const libc::iovec {
        as_iovecs(&self.slices)
    }

    /// The slices that are not empty, and what keeps them.
    pub(crate) fn into_parts(self) -> (Vec<GuestSlice>, Owner) {
        let Self { mut slices, owner } = self;
        slices.retain(|slice| slice.length_bytes() > 0);
        (slices, owner)
    }
}

impl From<Vec<GuestSlice>> for Buffers {
    /// Slices whose maker keeps their memory by other means.
    fn from(slices: Vec<GuestSlice>) -> Self {
        Self { slices, owner: None }
    }
}

/// The number of bytes in all of `slices`.
#[must_use]
pub fn total_bytes(slices: &[GuestSlice]) -> u64 {
    slices.iter().fold(0_u64, |sum, slice| sum.saturating_add(slice.length_bytes() as u64))
}

/// Drops the first `count` bytes of `slices`, and the slices that are empty then: what is left after a short transfer.
pub(crate) fn advance(slices: &mut Vec<GuestSlice>, mut count: usize) {
    let mut used = 0;
    for slice in slices.iter_mut() {
        let step = count.min(slice.length_bytes());
        slice.advance(step);
        count -= step;
        if slice.length_bytes() > 0 {
            break;
        }
        used += 1;
    }
    slices.drain(..used);
}

/// Whether every slice starts and ends on a multiple of `alignment` (a power of two).
pub(crate) fn is_aligned(slices: &[GuestSlice], alignment: usize) -> bool {
    let mask = alignment - 1;
    slices.iter().all(|slice| (slice.address().addr() | slice.length_bytes()) & mask == 0)
}

/// The slices as the kernel's `struct iovec` array.
pub(crate) fn as_iovecs(slices: &[GuestSlice]) -> *const libc::iovec {
    slices.as_ptr().cast()
}

/// Reads from `file` at `offset` into `slices`; returns the bytes read, which may be fewer than asked for.
///
/// # Errors
/// Whatever `preadv(2)` reports.
pub(crate) fn read_vectored_at(file: BorrowedFd<'_>, slices: &[GuestSlice], offset: u64) -> io::Result<usize> {
    let (count, offset) = call_arguments(slices, offset)?;
    // SAFETY: the iovec array is a live slice of `count` elements, and each names memory that its maker promised to
    // keep mapped and writable until the request completes, which is after this call.
    let done = unsafe { libc::preadv64(file.as_raw_fd(), as_iovecs(slices), count, offset) };
    usize::try_from(done).map_err(|_| io::Error::last_os_error())
}

/// Writes `slices` to `file` at `offset`; returns the bytes written, which may be fewer than asked for.
///
/// # Errors
/// Whatever `pwritev(2)` reports.
pub(crate) fn write_vectored_at(file: BorrowedFd<'_>, slices: &[GuestSlice], offset: u64) -> io::Result<usize> {
    let (count, offset) = call_arguments(slices, offset)?;
    // SAFETY: as in `read_vectored_at`; the kernel only reads the memory here.
    let done = unsafe { libc::pwritev64(file.as_raw_fd(), as_iovecs(slices), count, offset) };
    usize::try_from(done).map_err(|_| io::Error::last_os_error())
}

fn call_arguments(slices: &[GuestSlice], offset: u64) -> io::Result<(libc::c_int, libc::off64_t)> {
    let count = libc::c_int::try_from(slices.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let offset = libc::off64_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok((count, offset))
}

/// Heap memory of a chosen alignment, zeroed at first: the bounce buffer of direct I/O, and what tests read into.
pub struct AlignedBuffer {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the buffer owns its allocation alone, as a `Box<[u8]>` does.
unsafe impl Send for AlignedBuffer {}

impl AlignedBuffer {
    /// Allocates `length_bytes` zeroed bytes that start on a multiple of `alignment`.
    ///
    /// # Panics
    /// Where `alignment` is not a power of two or `length_bytes` is above `isize::MAX`: both are constants or checked
    /// sizes in every caller.
    #[must_use]
    pub fn zeroed(length_bytes: usize, alignment: usize) -> Self {
        let layout = Layout::from_size_align(length_bytes.max(1), alignment).expect("a checked size and alignment");
        // SAFETY: the layout's size is at least 1.
        let start = unsafe { alloc_zeroed(layout) };
        match NonNull::new(start) {
            Some(start) => Self { start, layout },
            None => handle_alloc_error(layout),
        }
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `start` owns `layout.size()` initialised bytes, borrowed as long as `self` is.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }

    /// The bytes, to change.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed for change, so nobody else has the bytes.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }

    /// The whole buffer as an I/O buffer.
    ///
    /// # Safety
    /// The buffer must outlive the request that carries the slice, and must not be touched before it completes.
    #[must_use]
    pub unsafe fn as_guest_slice(&mut self, length_bytes: usize) -> GuestSlice {
        // SAFETY: the memory is this buffer's own; the caller promises the rest.
        unsafe { GuestSlice::new(self.start.as_ptr(), length_bytes.min(self.layout.size())) }
    }

    /// Copies `slices`, one after the other, into the buffer from its start.
    pub(crate) fn gather(&mut self, slices: &[GuestSlice]) {
        let mut at = 0;
        for slice in slices {
            let count = slice.length_bytes().min(self.layout.size() - at);
            // SAFETY: `at` is inside the buffer, or at its end where `count` is 0.
            let target = unsafe { self.start.as_ptr().add(at) };
            // SAFETY: the maker of the slice keeps it mapped; `target` has `count` bytes left; the buffer is our own
            // allocation, so the two cannot overlap.
            unsafe { std::ptr::copy_nonoverlapping(slice.address(), target, count) };
            at += count;
        }
    }

    /// Copies the buffer from its start into `slices`, one after the other.
    pub(crate) fn scatter(&self, slices: &[GuestSlice]) {
        let mut at = 0;
        for slice in slices {
            let count = slice.length_bytes().min(self.layout.size() - at);
            // SAFETY: as in `gather`.
            let source = unsafe { self.start.as_ptr().add(at) };
            // SAFETY: as in `gather`, the other way round; the slice belongs to a read, so it is writable.
            unsafe { std::ptr::copy_nonoverlapping(source, slice.address(), count) };
            at += count;
        }
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this very layout in `zeroed`, and freed only here.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

impl fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuffer({} bytes, aligned to {})", self.layout.size(), self.layout.align())
    }
}

/// Runs `body` with `bytes` as a buffer of a request that reads into it. `body` must not return before the request has
/// completed or was refused.
pub(crate) fn lend_for_read<R>(bytes: &mut [u8], body: impl FnOnce(GuestSlice) -> R) -> R {
    // SAFETY: the borrow proves the memory mapped, writable and ours alone until `body` returns, and `body`, which is
    // `Volume::transfer` only, waits for the completion.
    body(unsafe { GuestSlice::new(bytes.as_mut_ptr(), bytes.len()) })
}

/// Runs `body` with `bytes` as a buffer of a request that writes it. `body` must not return before the request has
/// completed or was refused.
pub(crate) fn lend_for_write<R>(bytes: &[u8], body: impl FnOnce(GuestSlice) -> R) -> R {
    // SAFETY: as above; a write request never stores through the address.
    body(unsafe { GuestSlice::new(bytes.as_ptr().cast_mut(), bytes.len()) })
}

/// An aligned copy of buffers that direct I/O cannot take as they are. It lives as long as the request.
#[derive(Debug)]
pub(crate) struct Bounce {
    copy: AlignedBuffer,
    read_into: Vec<GuestSlice>,
}

impl Bounce {
    /// Replaces `buffers` by an aligned copy; `is_write` copies their data now, else they get it in
    /// [`Bounce::finish_read`]. The request must end before the value is dropped.
    pub(crate) fn new(buffers: &mut Vec<GuestSlice>, is_write: bool, alignment: usize) -> Self {
        // Buffers are memory that is mapped, so their sum fits into the address space.
        let length = usize::try_from(total_bytes(buffers)).unwrap_or(usize::MAX);
        let mut copy = AlignedBuffer::zeroed(length, alignment);
        if is_write {
            copy.gather(buffers);
        }
        // SAFETY: the copy is on the heap, and its owner keeps it until the request has ended.
        let aligned = vec![unsafe { copy.as_guest_slice(length) }];
        let originals = std::mem::replace(buffers, aligned);
        Self { copy, read_into: if is_write { Vec::new() } else { originals } }
    }

    /// Gives a read's data to the buffers that asked for it.
    pub(crate) fn finish_read(&self) {
        self.copy.scatter(&self.read_into);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slices_of(bytes: &mut [u8], lengths: &[usize]) -> Vec<GuestSlice> {
        let mut at = 0;
        lengths
            .iter()
            .map(|&length| {
                let piece = &mut bytes[at..at + length];
                at += length;
                // SAFETY: the caller keeps `bytes` for the whole test.
                unsafe { GuestSlice::new(piece.as_mut_ptr(), piece.len()) }
            })
            .collect()
    }

    #[test]
    fn advance_drops_bytes_across_slices() {
        let mut bytes = [0_u8; 10];
        let base = bytes.as_ptr().addr();
        let mut slices = slices_of(&mut bytes, &[3, 4, 3]);
        advance(&mut slices, 5);
        let left: Vec<_> = slices.iter().map(|s| (s.address().addr() - base, s.length_bytes())).collect();
        assert_eq!(left, [(5, 2), (7, 3)]);
        advance(&mut slices, 5);
        assert!(slices.is_empty());
    }

    #[test]
    fn gather_then_scatter_is_identity() {
        let mut bytes: Vec<u8> = (0..100).collect();
        let slices = slices_of(&mut bytes, &[1, 60, 39]);
        let mut buffer = AlignedBuffer::zeroed(100, 4096);
        buffer.gather(&slices);
        assert_eq!(buffer.as_slice(), (0..100).collect::<Vec<u8>>());
        let mut back = vec![0_u8; 100];
        buffer.scatter(&slices_of(&mut back, &[50, 50]));
        assert_eq!(back, (0..100).collect::<Vec<u8>>());
    }
}
