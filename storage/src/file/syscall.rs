//! System calls on files that nix does not wrap: what direct I/O must be aligned to, and copying by reference.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

/// What direct I/O on a file must be aligned to, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DirectAlignment {
    /// Addresses and lengths of buffers.
    pub(super) memory: usize,
    /// Offsets in the file.
    pub(super) offset: u64,
}

impl DirectAlignment {
    /// Right for every block device with 4096-byte sectors or smaller ones; used where the kernel does not say.
    const CAUTIOUS: Self = Self { memory: 4096, offset: 4096 };
}

/// Asks what direct I/O on `file` must be aligned to (statx(2), `STATX_DIOALIGN`, Linux 6.1). `None`: it does none.
pub(super) fn direct_alignment(file: &File) -> Option<DirectAlignment> {
    let mut answer = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the descriptor is open, the path is an empty C string as AT_EMPTY_PATH wants, and `answer` is writable
    // memory of the struct's size.
    let status = unsafe {
        libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, answer.as_mut_ptr())
    };
    // SAFETY: all-zero bytes are a valid `statx`, and the kernel only writes valid values over them.
    let answer = unsafe { answer.assume_init() };
    if status != 0 || answer.stx_mask & libc::STATX_DIOALIGN == 0 {
        return Some(DirectAlignment::CAUTIOUS);
    }
    let memory = usize::try_from(answer.stx_dio_mem_align).ok()?;
    (memory > 0).then_some(DirectAlignment { memory, offset: u64::from(answer.stx_dio_offset_align) })
}

/// Makes all of `source` appear in `target` without copying (ioctl `FICLONE`); `false` where the file system cannot.
pub(super) fn reflink(source: &File, target: &File) -> io::Result<bool> {
    // SAFETY: FICLONE takes a descriptor as its argument and touches no memory of ours.
    let status = unsafe { libc::ioctl(target.as_raw_fd(), libc::FICLONE, source.as_raw_fd()) };
    if status == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::EXDEV | libc::EINVAL | libc::ENOTTY | libc::ENOSYS) => Ok(false),
        _ => Err(error),
    }
}
