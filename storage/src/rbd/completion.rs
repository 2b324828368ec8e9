//! Requests in flight on an open image: starts asynchronous calls and collects their ends.
//!
//! librbd queues ended calls and writes an eventfd (`rbd_set_image_notification`); [`Flights::collect`] takes them from
//! the queue. The token of a call is the slot of its request, which keeps what librbd must not lose meanwhile: the array
//! of buffers. A request larger than librbd takes in one call is cut into pieces that end together.
//!
//! Invariants: a completion handle is released exactly once, by `collect` or by a start that failed; a slot is free
//! exactly when none of its calls is under way.

use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use nix::sys::eventfd::EventFd;

use super::ffi::{self, CompletionHandle};
use super::handle::{Errno, ImageOwner, check};
use crate::memory::{self, GuestSlice, Owner};
use crate::volume::{Completion, Fault, Operation, Request, SubmitError};

/// Completions taken by one call.
const POLL_MAX: usize = 64;

/// Most bytes of a discard or write-zeroes that librbd gets at once: it refuses those above 2 GiB.
const PIECE_BYTES: u64 = 1 << 30;

/// All requests in flight on one image. Its owner must not drop it, nor close the image, before
/// [`Flights::in_flight`] is 0.
#[derive(Debug)]
pub(super) struct Flights {
    slots: Vec<Slot>,
    free: Vec<u16>,
    ended: Vec<Completion>,
}

/// A request in flight.
#[derive(Debug)]
struct Slot {
    tag: u64,
    operation: Operation,
    length_bytes: u64,
    buffers: Vec<GuestSlice>,
    /// Keeps the buffers mapped.
    _owner: Owner,
    /// Calls that have not ended.
    pieces: u32,
    result: Result<(), Fault>,
}

impl Slot {
    const FREE: Self = Self {
        tag: 0,
        operation: Operation::Flush,
        length_bytes: 0,
        buffers: Vec::new(),
        _owner: None,
        pieces: 0,
        result: Ok(()),
    };
}

impl Flights {
    pub(super) fn new(in_flight_max: u16) -> Self {
        Self {
            slots: (0..in_flight_max).map(|_| Slot::FREE).collect(),
            free: (0..in_flight_max).rev().collect(),
            ended: Vec::with_capacity(usize::from(in_flight_max)),
        }
    }

    pub(super) fn in_flight_max(&self) -> u16 {
        // As many slots as `in_flight_max`, which was a u16.
        u16::try_from(self.slots.len()).unwrap_or(u16::MAX)
    }

    /// Requests whose completions were not collected yet.
    pub(super) fn in_flight(&self) -> u16 {
        u16::try_from(self.slots.len() - self.free.len() + self.ended.len()).unwrap_or(u16::MAX)
    }

    /// Starts a request; `Ok(true)` where it has ended already, without a call to librbd that would tell.
    pub(super) fn start(&mut self, image: &ImageOwner, request: Request) -> Result<bool, SubmitError> {
        let Some(index) = self.free.pop() else {
            return Err(SubmitError::Full { in_flight_max: self.in_flight_max(), request: Box::new(request) });
        };
        let Request { operation, offset_bytes, length_bytes, buffers, tag } = request;
        let (buffers, owner) = buffers.into_parts();
        let slot = &mut self.slots[usize::from(index)];
        *slot = Slot { tag, operation, length_bytes, buffers, _owner: owner, pieces: 0, result: Ok(()) };
        if let Err(errno) = start_pieces(image, usize::from(index), slot, offset_bytes) {
            slot.result = Err(Fault::from_errno(errno.0));
        }
        let ended = slot.pieces == 0;
        if ended {
            self.end(index);
        }
        Ok(ended)
    }

    /// Appends the completions of all requests that have ended.
    pub(super) fn collect(&mut self, image: &ImageOwner, completions: &mut Vec<Completion>) -> Result<(), Errno> {
        let polled = poll(image, |index, value| {
            let Some(slot) = self.slots.get_mut(index) else { return };
            slot.result = slot.result.and(outcome(slot, value));
            slot.pieces = slot.pieces.saturating_sub(1);
            if slot.pieces == 0 {
                self.end(u16::try_from(index).unwrap_or(u16::MAX));
            }
        });
        completions.append(&mut self.ended);
        polled
    }

    fn end(&mut self, index: u16) {
        let slot = std::mem::replace(&mut self.slots[usize::from(index)], Slot::FREE);
        self.ended.push(Completion { tag: slot.tag, result: slot.result });
        self.free.push(index);
    }
}

/// What an answer, the bytes read or a negative errno, means for its request.
fn outcome(slot: &Slot, value: isize) -> Result<(), Fault> {
    if let Ok(count) = u64::try_from(value) {
        let short = slot.operation == Operation::Read && count < slot.length_bytes;
        return if short { Err(Fault::UnexpectedEnd) } else { Ok(()) };
    }
    Err(Fault::from_errno(i32::try_from(value.unsigned_abs()).unwrap_or(libc::EIO)))
}

/// Starts the calls that make up a request and counts them in its slot.
fn start_pieces(image: &ImageOwner, index: usize, slot: &mut Slot, offset_bytes: u64) -> Result<(), Errno> {
    let whole = matches!(slot.operation, Operation::Read | Operation::Write);
    let mut done_bytes = 0;
    while done_bytes < slot.length_bytes || (slot.operation == Operation::Flush && slot.pieces == 0) {
        let left_bytes = slot.length_bytes - done_bytes;
        let piece_bytes = if whole { left_bytes } else { left_bytes.min(PIECE_BYTES) };
        // SAFETY: the array lies on the heap and in the slot until `collect` has seen the end of every piece; the memory
        // that it names is kept by the promise made to `GuestSlice::new`.
        unsafe { start(image, index, slot, offset_bytes + done_bytes, piece_bytes) }?;
        slot.pieces += 1;
        if slot.operation == Operation::Flush {
            break;
        }
        done_bytes += piece_bytes;
    }
    Ok(())
}

/// Has librbd write `signal` whenever a call ends.
pub(super) fn announce_on(image: &ImageOwner, signal: &EventFd) -> Result<(), Errno> {
    let notify = image.functions().rbd_set_image_notification;
    // SAFETY: the image is open; the eventfd is closed only after the image (see the order of `RbdVolume`'s fields).
    check(unsafe { notify(image.handle(), signal.as_fd().as_raw_fd(), ffi::EVENT_TYPE_EVENTFD) }).map(drop)
}

/// Starts one call of a slot's request.
///
/// # Safety
/// The slot's buffers, the array of them included, must stay where they are until the call has ended.
unsafe fn start(
    image: &ImageOwner,
    index: usize,
    slot: &Slot,
    offset_bytes: u64,
    piece_bytes: u64,
) -> Result<(), Errno> {
    let functions = image.functions();
    let mut completion: CompletionHandle = ptr::null_mut();
    let token = ptr::without_provenance_mut(index);
    // SAFETY: `completion` is writable; there is no callback, and the token is never dereferenced.
    check(unsafe { (functions.rbd_aio_create_completion)(token, None, &raw mut completion) })?;
    // SAFETY: the image is open, the completion is new; the caller keeps the buffers.
    let status = unsafe { begin(image, slot, offset_bytes, piece_bytes, completion) };
    check(status).map(drop).inspect_err(|_| {
        // SAFETY: a call that was refused never completes, so the handle is still ours alone.
        unsafe { (functions.rbd_aio_release)(completion) };
    })
}

/// Calls the function for the operation.
///
/// # Safety
/// As for [`start`]; the completion must be unused.
unsafe fn begin(
    image: &ImageOwner,
    slot: &Slot,
    offset_bytes: u64,
    piece_bytes: u64,
    completion: CompletionHandle,
) -> i32 {
    let functions = image.functions();
    let handle = image.handle();
    let (array, count) = (memory::as_iovecs(&slot.buffers), ffi::count_of(slot.buffers.len()));
    match slot.operation {
        // SAFETY: promised by the caller.
        Operation::Read => unsafe { (functions.rbd_aio_readv)(handle, array, count, offset_bytes, completion) },
        // SAFETY: promised by the caller.
        Operation::Write => unsafe { (functions.rbd_aio_writev)(handle, array, count, offset_bytes, completion) },
        // SAFETY: promised by the caller.
        Operation::Flush => unsafe { (functions.rbd_aio_flush)(handle, completion) },
        // SAFETY: promised by the caller.
        Operation::Discard => unsafe { (functions.rbd_aio_discard)(handle, offset_bytes, piece_bytes, completion) },
        Operation::WriteZeroes => {
            let write = functions.rbd_aio_write_zeroes;
            // A piece is 1 GiB at most.
            let length = usize::try_from(piece_bytes).unwrap_or(0);
            // SAFETY: promised by the caller.
            unsafe { write(handle, offset_bytes, length, completion, ffi::NO_FLAGS, ffi::NO_FLAGS) }
        }
    }
}

/// Takes all calls that have ended.
fn poll(image: &ImageOwner, mut each: impl FnMut(usize, isize)) -> Result<(), Errno> {
    let functions = image.functions();
    loop {
        let mut handles: [CompletionHandle; POLL_MAX] = [ptr::null_mut(); POLL_MAX];
        let room = ffi::count_of(POLL_MAX);
        // SAFETY: the image is open, and the array has `room` elements.
        let status = unsafe { (functions.rbd_poll_io_events)(image.handle(), handles.as_mut_ptr(), room) };
        let count = usize::try_from(check(status)?).unwrap_or(0);
        for &completion in handles.iter().take(count) {
            // SAFETY: the call above returned this completion, which has ended and is ours now.
            let value = unsafe { (functions.rbd_aio_get_return_value)(completion) };
            // SAFETY: as above.
            let slot = unsafe { (functions.rbd_aio_get_arg)(completion) }.addr();
            // SAFETY: as above; it is not used again.
            unsafe { (functions.rbd_aio_release)(completion) };
            each(slot, value);
        }
        if count < POLL_MAX {
            return Ok(());
        }
    }
}
