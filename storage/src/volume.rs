//! An open volume: the narrow interface between a VM's block device and a backend.
//!
//! One thread owns a volume. It submits requests, kicks once per batch, waits for [`Volume::completion_fd`] in its event
//! loop, and drains:
//!
//! ```text
//!   submit(request)*  ─▶  kick()  ─▶  (completion_fd readable)  ─▶  drain(&mut completions)
//!        │ Full: drain first
//! ```
//!
//! It never reorders a flush before writes that completed earlier, never retries what failed, and never touches a
//! request's memory after its completion was drained. Requests in flight together may run in any order.
//!
//! Invariants: at most [`Volume::in_flight_max`] requests are in flight; every submitted request completes exactly once;
//! closing or dropping waits for all of them, so that their memory may be unmapped afterwards.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use crate::file::FileVolume;
use crate::memory::{self, Buffers, GuestSlice};
use crate::rbd::RbdVolume;

/// The unit of every offset and length: requests must be multiples of it.
pub const SECTOR_BYTES: u64 = 512;

/// The size of the pieces that blocking calls cut a transfer into.
const PIECE_BYTES: usize = 1024 * 1024;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Reads into the request's buffers.
    Read,
    /// Writes the request's buffers.
    Write,
    /// Makes every write that completed before it was submitted survive a crash. Offset and length are ignored.
    Flush,
    /// Says that the range's data is not needed any more. Advice: it reads as zeroes or as before.
    Discard,
    /// Makes the range read as zeroes, without storing them where the backend can.
    WriteZeroes,
}

/// One request to a volume.
#[derive(Debug)]
pub struct Request {
    /// What to do.
    pub operation: Operation,
    /// Where in the volume, in bytes.
    pub offset_bytes: u64,
    /// How many bytes; for reads and writes the sum of `buffers`.
    pub length_bytes: u64,
    /// Memory to read into or write from; empty for the other operations. At most [`memory::SEGMENTS_MAX`].
    pub buffers: Buffers,
    /// Comes back in the [`Completion`]; the volume gives it no meaning.
    pub tag: u64,
}

/// The end of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The tag of the request.
    pub tag: u64,
    /// Whether all of it was done.
    pub result: Result<(), Fault>,
}

/// Why a request failed, as far as it matters to who must react.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Fault {
    /// The file system, pool or quota is full.
    #[error("no space is left on the volume's storage")]
    NoSpace,
    /// The cluster blocks this client: another has taken the volume over. It can do nothing but stop.
    #[error("fenced: another client has taken this volume over")]
    Fenced,
    /// The backend gave no answer in time.
    #[error("the storage gave no answer in time")]
    TimedOut,
    /// The volume, or the medium under it, is read-only.
    #[error("the volume is read-only")]
    ReadOnly,
    /// The volume ends before the range does: it was shrunk under us.
    #[error("the volume ended before the request did")]
    UnexpectedEnd,
    /// Any other error number of the backend.
    #[error("{}", io::Error::from_raw_os_error(*.0))]
    Os(i32),
}

impl Fault {
    /// The meaning of a positive `errno`.
    #[must_use]
    pub fn from_errno(errno: i32) -> Self {
        match errno {
            libc::ENOSPC | libc::EDQUOT => Self::NoSpace,
            libc::ESHUTDOWN => Self::Fenced,
            libc::ETIMEDOUT => Self::TimedOut,
            libc::EROFS => Self::ReadOnly,
            other => Self::Os(other),
        }
    }
}

impl From<&io::Error> for Fault {
    fn from(error: &io::Error) -> Self {
        Self::from_errno(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

/// Why a request was not taken. The request was not started and its memory was not touched.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// As many requests as allowed are in flight: drain, then submit it again.
    #[error("{in_flight_max} requests are in flight already")]
    Full {
        /// The bound.
        in_flight_max: u16,
        /// The request, given back.
        request: Box<Request>,
    },
    /// The range does not lie inside the volume.
    #[error("{operation:?} of {length_bytes} bytes at {offset_bytes} reaches past the volume's {size_bytes} bytes")]
    OutOfRange {
        /// The operation.
        operation: Operation,
        /// Its offset.
        offset_bytes: u64,
        /// Its length.
        length_bytes: u64,
        /// The volume's size.
        size_bytes: u64,
    },
    /// The offset or length is not a multiple of the block size.
    #[error("{operation:?} of {length_bytes} bytes at {offset_bytes} is not in whole blocks of {block_bytes} bytes")]
    Misaligned {
        /// The operation.
        operation: Operation,
        /// Its offset.
        offset_bytes: u64,
        /// Its length.
        length_bytes: u64,
        /// What both must be multiples of.
        block_bytes: u64,
    },
    /// The buffers do not add up to the length, or are too many, or the operation takes none.
    #[error("{operation:?} of {length_bytes} bytes came with {count} buffers of {buffer_bytes} bytes")]
    Buffers {
        /// The operation.
        operation: Operation,
        /// Its length.
        length_bytes: u64,
        /// The number of buffers.
        count: usize,
        /// What they add up to.
        buffer_bytes: u64,
    },
    /// The volume was opened read-only.
    #[error("{operation:?} on a volume that was opened read-only")]
    ReadOnly {
        /// The operation.
        operation: Operation,
    },
    /// The backend refused the request at once.
    #[error("{operation:?} of {length_bytes} bytes at {offset_bytes} was refused")]
    Refused {
        /// The operation.
        operation: Operation,
        /// Its offset.
        offset_bytes: u64,
        /// Its length.
        length_bytes: u64,
        /// Why.
        #[source]
        source: Fault,
    },
}

/// The failure of a blocking call on an open volume.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The request was not taken.
    #[error("the request was not taken")]
    Submit(#[from] SubmitError),
    /// The request failed.
    #[error("{operation:?} of {length_bytes} bytes at {offset_bytes} failed")]
    Failed {
        /// The operation.
        operation: Operation,
        /// Its offset.
        offset_bytes: u64,
        /// Its length.
        length_bytes: u64,
        /// Why.
        #[source]
        source: Fault,
    },
}

/// An open volume. See the [module](self) for the way requests go.
#[derive(Debug)]
pub struct Volume {
    backend: Backend,
}

/// The closed set of backends.
#[derive(Debug)]
enum Backend {
    File(FileVolume),
    Rbd(RbdVolume),
}

impl From<FileVolume> for Volume {
    fn from(file: FileVolume) -> Self {
        Self { backend: Backend::File(file) }
    }
}

impl From<RbdVolume> for Volume {
    fn from(rbd: RbdVolume) -> Self {
        Self { backend: Backend::Rbd(rbd) }
    }
}

impl Volume {
    /// The size in bytes, as it was when the volume was opened; a multiple of [`SECTOR_BYTES`].
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        match &self.backend {
            Backend::File(file) => file.size_bytes(),
            Backend::Rbd(rbd) => rbd.size_bytes(),
        }
    }

    /// What offsets and lengths must be multiples of: the logical block size to tell the guest, at least 512.
    #[must_use]
    pub fn block_bytes(&self) -> u64 {
        match &self.backend {
            Backend::File(file) => file.block_bytes(),
            Backend::Rbd(_) => SECTOR_BYTES,
        }
    }

    /// What a discard must cover whole, and start on a multiple of, to free anything; a multiple of [`Volume::block_bytes`].
    #[must_use]
    pub fn discard_granularity_bytes(&self) -> u64 {
        match &self.backend {
            Backend::File(file) => file.block_bytes(),
            Backend::Rbd(rbd) => rbd.discard_granularity_bytes(),
        }
    }

    /// Whether the volume was opened read-only.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        match &self.backend {
            Backend::File(file) => file.is_read_only(),
            Backend::Rbd(rbd) => rbd.is_read_only(),
        }
    }

    /// Most requests in flight at once.
    #[must_use]
    pub fn in_flight_max(&self) -> u16 {
        match &self.backend {
            Backend::File(file) => file.in_flight_max(),
            Backend::Rbd(rbd) => rbd.in_flight_max(),
        }
    }

    /// Requests submitted whose completions were not drained yet.
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        match &self.backend {
            Backend::File(file) => file.in_flight(),
            Backend::Rbd(rbd) => rbd.in_flight(),
        }
    }

    /// How I/O is done: `io_uring`, `threads` or `librbd`. For logs and `show`.
    #[must_use]
    pub fn engine(&self) -> &'static str {
        match &self.backend {
            Backend::File(file) => file.engine(),
            Backend::Rbd(_) => "librbd",
        }
    }

    /// Takes a request. It may start at once or with the next [`Volume::kick`].
    ///
    /// # Errors
    /// [`SubmitError`]: nothing was started.
    pub fn submit(&mut self, request: Request) -> Result<(), SubmitError> {
        self.check(&request)?;
        if self.in_flight() >= self.in_flight_max() {
            return Err(SubmitError::Full { in_flight_max: self.in_flight_max(), request: Box::new(request) });
        }
        match &mut self.backend {
            Backend::File(file) => file.submit(request),
            Backend::Rbd(rbd) => rbd.submit(request),
        }
    }

    /// Starts what was submitted. Call it once after a batch; a request may wait for ever without it.
    ///
    /// # Errors
    /// Where the kernel refuses the whole batch; the requests stay queued for the next kick.
    pub fn kick(&mut self) -> io::Result<()> {
        match &mut self.backend {
            Backend::File(file) => file.kick(),
            // librbd starts each request as it is submitted.
            Backend::Rbd(_) => Ok(()),
        }
    }

    /// An eventfd that is readable when completions wait. Level-triggered until [`Volume::drain`]; never read or write
    /// it yourself.
    #[must_use]
    pub fn completion_fd(&self) -> BorrowedFd<'_> {
        match &self.backend {
            Backend::File(file) => file.completion_fd(),
            Backend::Rbd(rbd) => rbd.completion_fd(),
        }
    }

    /// Appends all completions that wait to `completions`, in the order they ended, and clears the eventfd.
    pub fn drain(&mut self, completions: &mut Vec<Completion>) {
        match &mut self.backend {
            Backend::File(file) => file.drain(completions),
            Backend::Rbd(rbd) => rbd.drain(completions),
        }
    }

    /// Waits for what is in flight, gives the lock back and closes the volume. It does not flush.
    ///
    /// # Errors
    /// Where the backend could not close in order; the volume is closed all the same.
    pub fn close(self) -> io::Result<()> {
        match self.backend {
            Backend::File(file) => file.close(),
            Backend::Rbd(rbd) => rbd.close(),
        }
    }

    /// Reads into `bytes` and waits for it. Only while nothing else is in flight.
    ///
    /// # Errors
    /// [`TransferError`].
    ///
    /// # Panics
    /// Where other requests are in flight: their completions would be lost. So do the other blocking calls.
    pub fn read_at(&mut self, offset_bytes: u64, bytes: &mut [u8]) -> Result<(), TransferError> {
        memory::lend_for_read(bytes, |slice| self.transfer(Operation::Read, offset_bytes, slice))
    }

    /// Writes `bytes` and waits for it. Only while nothing else is in flight.
    ///
    /// # Errors
    /// [`TransferError`].
    pub fn write_at(&mut self, offset_bytes: u64, bytes: &[u8]) -> Result<(), TransferError> {
        memory::lend_for_write(bytes, |slice| self.transfer(Operation::Write, offset_bytes, slice))
    }

    /// Does a flush, discard or write-zeroes and waits for it. Only while nothing else is in flight.
    ///
    /// # Errors
    /// [`TransferError`].
    pub fn perform(&mut self, operation: Operation, offset_bytes: u64, length_bytes: u64) -> Result<(), TransferError> {
        self.assert_idle();
        let request = Request { operation, offset_bytes, length_bytes, buffers: Buffers::default(), tag: 0 };
        self.submit(request)?;
        self.finish(operation, offset_bytes, length_bytes)
    }

    /// Transfers a buffer in pieces that are in flight together, and waits for all of them, whatever happens.
    fn transfer(&mut self, operation: Operation, offset_bytes: u64, buffer: GuestSlice) -> Result<(), TransferError> {
        self.assert_idle();
        let length_bytes = buffer.length_bytes() as u64;
        let mut outcome = Ok(());
        for (at, piece) in buffer.pieces(PIECE_BYTES) {
            if self.in_flight() >= self.in_flight_max() {
                outcome = outcome.and(self.finish(operation, offset_bytes, length_bytes));
            }
            let offset_bytes = offset_bytes + at;
            let length_bytes = piece.length_bytes() as u64;
            let request = Request { operation, offset_bytes, length_bytes, buffers: vec![piece].into(), tag: 0 };
            outcome = outcome.and_then(|()| self.submit(request).map_err(TransferError::Submit));
            if outcome.is_err() {
                break;
            }
        }
        let finished = self.finish(operation, offset_bytes, length_bytes);
        outcome.and(finished)
    }

    /// Waits until nothing is in flight; the first fault of what was.
    fn finish(&mut self, operation: Operation, offset_bytes: u64, length_bytes: u64) -> Result<(), TransferError> {
        let mut completions = Vec::new();
        while self.in_flight() > 0 {
            // A kick or wait that fails leaves requests in flight, and their memory is borrowed: keep on waiting.
            if let Err(error) = self.kick() {
                tracing::warn!(%error, "kicking a volume failed; trying again");
            }
            if let Err(error) = wait_readable(self.completion_fd(), -1) {
                tracing::warn!(%error, "waiting for a volume failed; trying again");
            }
            self.drain(&mut completions);
        }
        let fault = completions.iter().find_map(|completion| completion.result.err());
        fault.map_or(Ok(()), |source| Err(TransferError::Failed { operation, offset_bytes, length_bytes, source }))
    }

    /// Blocking calls take every completion for theirs.
    fn assert_idle(&self) {
        assert_eq!(self.in_flight(), 0, "blocking calls are for a volume with nothing in flight");
    }

    /// The checks that hold for every backend: range, alignment, buffers, read-only.
    fn check(&self, request: &Request) -> Result<(), SubmitError> {
        let &Request { operation, offset_bytes, length_bytes, .. } = request;
        let count = request.buffers.count();
        let buffer_bytes = request.buffers.total_bytes();
        let wanted_bytes = if matches!(operation, Operation::Read | Operation::Write) { length_bytes } else { 0 };
        if buffer_bytes != wanted_bytes || count > memory::SEGMENTS_MAX {
            return Err(SubmitError::Buffers { operation, length_bytes, count, buffer_bytes });
        }
        if operation == Operation::Flush {
            return Ok(());
        }
        if self.is_read_only() && operation != Operation::Read {
            return Err(SubmitError::ReadOnly { operation });
        }
        let block_bytes = self.block_bytes();
        if !(offset_bytes | length_bytes).is_multiple_of(block_bytes) {
            return Err(SubmitError::Misaligned { operation, offset_bytes, length_bytes, block_bytes });
        }
        let size_bytes = self.size_bytes();
        match offset_bytes.checked_add(length_bytes) {
            Some(end) if end <= size_bytes => Ok(()),
            _ => Err(SubmitError::OutOfRange { operation, offset_bytes, length_bytes, size_bytes }),
        }
    }
}

impl AsRawFd for Volume {
    /// The same as [`Volume::completion_fd`], for event loops that take raw descriptors.
    fn as_raw_fd(&self) -> RawFd {
        self.completion_fd().as_raw_fd()
    }
}

impl AsFd for Volume {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.completion_fd()
    }
}

/// Waits until `fd` is readable, for at most `timeout_ms` (-1: for ever); whether it is.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, timeout_ms: i32) -> io::Result<bool> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let timeout = PollTimeout::try_from(timeout_ms).map_err(|_| io::ErrorKind::InvalidInput)?;
    match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
        Ok(ready) => Ok(ready > 0),
        Err(nix::errno::Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}
