//! The block device (virtio 1.2 §5.2): turns chains of descriptors into requests to a [`Volume`] and completions into used chains.
//!
//! A chain is parsed into a request by copying its header once; every length and address is checked before the volume sees it. A chain that is
//! wrong gets an error status where it has room for one, and goes back to the driver in any case. At most as many requests are in flight as the volume
//! takes; the rest wait in the ring.

mod config;
mod request;
#[cfg(test)]
mod tests;

use crate::memory::{self, Piece, Ram};
use crate::virtio::{Context, Counters, Device, Kind};
use config::Limits;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use request::{Ask, Parsed, Request, Status};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use storage::memory::Buffers;
use storage::volume::{self, Completion, Operation, SECTOR_BYTES, Volume};
use vm_memory::{Bytes, GuestAddress};

/// Entries of each request queue; also the most descriptors in one chain that is not indirect.
pub const QUEUE_SIZE: u16 = 128;
/// How long a reset waits for I/O in flight: longer than the volume's own limit for a request.
const RESET_WAIT: Duration = Duration::from_secs(70);
/// Bytes of a serial number (§5.2.6.1).
const ID_BYTES: usize = 20;

/// A request the volume works on.
#[derive(Debug)]
struct Pending {
    queue: usize,
    head: u16,
    status: GuestAddress,
    read_bytes: u32,
}

/// Counters of one device.
#[derive(Debug, Default)]
struct Count {
    read_requests: u64,
    read_bytes: u64,
    write_requests: u64,
    write_bytes: u64,
    flush_requests: u64,
    other_requests: u64,
    error_requests: u64,
}

/// A volume shared between one machine and the next after a reset; only one at a time uses it.
pub type SharedVolume = Arc<Mutex<Volume>>;

/// Counts devices and their resets, so that each has tags of its own.
static EPOCHS: AtomicU32 = AtomicU32::new(0);

/// The device.
#[derive(Debug)]
pub struct Block {
    volume: SharedVolume,
    completion_fd: RawFd,
    in_flight_max: usize,
    serial: [u8; ID_BYTES],
    limits: Limits,
    epoch: u32,
    pending: Vec<Option<Pending>>,
    free: Vec<usize>,
    /// A bit for each queue that waits until a request completes.
    stalled: u32,
    completions: Vec<Completion>,
    count: Count,
}

impl Block {
    /// A device over `volume` with `queues` request queues and a serial number of at most 20 bytes.
    #[must_use]
    pub fn new(volume: &SharedVolume, queues: u16, serial: &str) -> Self {
        let open = lock(volume);
        let in_flight_max = usize::from(open.in_flight_max());
        let mut id = [0; ID_BYTES];
        let count = serial.len().min(ID_BYTES);
        id[..count].copy_from_slice(&serial.as_bytes()[..count]);
        Self {
            completion_fd: open.as_raw_fd(),
            in_flight_max,
            serial: id,
            limits: Limits::of(&open, queues),
            epoch: EPOCHS.fetch_add(1, Ordering::Relaxed),
            pending: (0..in_flight_max).map(|_| None).collect(),
            free: (0..in_flight_max).rev().collect(),
            stalled: 0,
            completions: Vec::new(),
            count: Count::default(),
            volume: Arc::clone(volume),
        }
    }

    /// Starts a request, or ends it at once with the status returned.
    fn start(
        &mut self,
        volume: &mut Volume,
        ram: &Arc<Ram>,
        request: Parsed,
        mut pending: Pending,
    ) -> Result<(), Ended> {
        let ended = |status| Err(Ended { status, written: 0 });
        let Some(offset_bytes) = request.sector.checked_mul(SECTOR_BYTES) else { return ended(Status::IoError) };
        let (operation, offset_bytes, length_bytes, buffers) = match request.ask {
            None => return ended(Status::Unsupported),
            Some(Ask::GetId) => return Err(self.get_id(ram, &request.writable)),
            Some(Ask::Flush) => (Operation::Flush, 0, 0, Buffers::default()),
            Some(Ask::Range(_)) if self.limits.read_only => return ended(Status::IoError),
            Some(Ask::Range(operation)) => match request::range(ram, request.readable) {
                Some((offset, length)) => (operation, offset, length, Buffers::default()),
                None => return ended(Status::IoError),
            },
            Some(Ask::Transfer(operation)) => {
                let list = if operation == Operation::Read { &request.writable } else { &request.readable };
                let Some(buffers) = memory::lend(ram, list) else { return ended(Status::IoError) };
                (operation, offset_bytes, buffers.total_bytes(), buffers)
            }
        };
        self.account(operation, length_bytes);
        if length_bytes == 0 && operation != Operation::Flush {
            return ended(Status::Ok);
        }
        if operation == Operation::Read {
            let Ok(bytes) = u32::try_from(length_bytes) else { return ended(Status::IoError) };
            pending.read_bytes = bytes;
        }
        let Some(slot) = self.free.pop() else { return ended(Status::IoError) };
        self.pending[slot] = Some(pending);
        let request = volume::Request { operation, offset_bytes, length_bytes, buffers, tag: self.tag(slot) };
        volume.submit(request).map_err(|error| {
            tracing::debug!(%error, "a request of the guest was refused");
            self.pending[slot] = None;
            self.free.push(slot);
            Ended { status: Status::IoError, written: 0 }
        })
    }

    /// The tag of slot `slot`: of this device and since its last reset, so that what an earlier one left behind is not taken for ours.
    const fn tag(&self, slot: usize) -> u64 {
        (self.epoch as u64) << 32 | slot as u64
    }

    /// The slot of a tag; none when it is from before a reset.
    fn slot(&self, tag: u64) -> Option<usize> {
        (tag >> 32 == u64::from(self.epoch)).then_some(usize::try_from(tag & u64::from(u32::MAX)).ok()?)
    }

    fn account(&mut self, operation: Operation, bytes: u64) {
        let count = &mut self.count;
        match operation {
            Operation::Read => {
                (count.read_requests, count.read_bytes) = (count.read_requests + 1, count.read_bytes + bytes)
            }
            Operation::Write => {
                (count.write_requests, count.write_bytes) = (count.write_requests + 1, count.write_bytes + bytes);
            }
            Operation::Flush => count.flush_requests += 1,
            Operation::Discard | Operation::WriteZeroes => count.other_requests += 1,
        }
    }

    fn get_id(&mut self, ram: &Ram, writable: &[Piece]) -> Ended {
        self.count.other_requests += 1;
        let mut written = 0;
        for &(address, length) in writable {
            let count = usize::try_from(length).unwrap_or(usize::MAX).min(ID_BYTES - written);
            if ram.write_slice(&self.serial[written..written + count], address).is_err() {
                return Ended { status: Status::IoError, written: 0 };
            }
            written += count;
        }
        Ended { status: Status::Ok, written: u32::try_from(written).unwrap_or(0) }
    }

    /// Ends a request: writes its status and returns its chain.
    fn end(&mut self, context: &mut Context<'_>, queue: usize, head: u16, at: Option<GuestAddress>, ended: Ended) {
        if ended.status != Status::Ok {
            self.count.error_requests += 1;
        }
        let wrote = at.is_some_and(|at| context.ram.write_obj(ended.status as u8, at).is_ok());
        context.finish(queue, head, if wrote { ended.written.saturating_add(1) } else { 0 });
    }

    /// Returns what the volume finished, then takes up queues that waited for that.
    fn complete(&mut self, context: &mut Context<'_>) {
        let mut completions = std::mem::take(&mut self.completions);
        lock(&self.volume).drain(&mut completions);
        let mut queues = 0_u32;
        for completion in completions.drain(..) {
            // A request that a reset gave up may end at last; nobody waits for it.
            let Some(slot) = self.slot(completion.tag) else { continue };
            let Some(pending) = self.pending.get_mut(slot).and_then(Option::take) else { continue };
            self.free.push(slot);
            queues |= 1 << pending.queue;
            let ended = match completion.result {
                Ok(()) => Ended { status: Status::Ok, written: pending.read_bytes },
                Err(fault) => {
                    tracing::warn!(%fault, "a request to the volume failed");
                    Ended { status: Status::IoError, written: 0 }
                }
            };
            self.end(context, pending.queue, pending.head, Some(pending.status), ended);
        }
        self.completions = completions;
        for queue in (0..usize::from(self.limits.queues)).filter(|queue| queues & 1 << queue != 0) {
            context.signal(queue);
        }
        let stalled = std::mem::take(&mut self.stalled);
        for queue in (0..usize::from(self.limits.queues)).filter(|queue| stalled & 1 << queue != 0) {
            context.call_again(queue);
        }
    }
}

/// How a request ended, and how many bytes of its data buffers were written.
#[derive(Debug)]
struct Ended {
    status: Status,
    written: u32,
}

fn lock(volume: &Mutex<Volume>) -> MutexGuard<'_, Volume> {
    volume.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Device for Block {
    fn kind(&self) -> Kind {
        Kind::Block
    }

    fn features(&self) -> u64 {
        self.limits.features()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; usize::from(self.limits.queues)]
    }

    fn config(&self) -> Vec<u8> {
        self.limits.config()
    }

    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.completion_fd]
    }

    fn activate(&mut self, _features: u64, context: &mut Context<'_>) {
        (0..usize::from(self.limits.queues)).for_each(|queue| context.call_again(queue));
    }

    fn serve(&mut self, queue: usize, context: &mut Context<'_>) {
        let volume = Arc::clone(&self.volume);
        let mut volume = lock(&volume);
        let ram = Arc::clone(context.ram);
        let (mut ended_some, mut submitted) = (false, false);
        for _ in 0..QUEUE_SIZE {
            if self.free.is_empty() {
                self.stalled |= 1 << queue;
                break;
            }
            let Some(chain) = context.next(queue) else { break };
            let head = chain.head_index();
            let Request { status, parsed } = Request::parse(&ram, chain);
            let outcome = match (status, parsed) {
                (Some(status), Some(parsed)) => {
                    let pending = Pending { queue, head, status, read_bytes: 0 };
                    self.start(&mut volume, &ram, parsed, pending)
                }
                _ => Err(Ended { status: Status::IoError, written: 0 }),
            };
            match outcome {
                Ok(()) => submitted = true,
                Err(ended) => {
                    ended_some = true;
                    self.end(context, queue, head, status, ended);
                }
            }
        }
        if submitted && let Err(error) = volume.kick() {
            tracing::warn!(%error, "the volume did not start what was submitted");
        }
        if ended_some {
            context.signal(queue);
        }
        if self.stalled & 1 << queue == 0 && context.rearm(queue) {
            context.call_again(queue);
        }
    }

    fn ready(&mut self, _descriptor: usize, context: &mut Context<'_>) {
        self.complete(context);
    }

    fn reset(&mut self) {
        let end = Instant::now() + RESET_WAIT;
        let mut volume = lock(&self.volume);
        while volume.in_flight() > 0 && Instant::now() < end {
            if let Err(error) = volume.kick() {
                tracing::warn!(%error, "the volume did not start what was submitted");
            }
            wait_for_input(volume.completion_fd());
            volume.drain(&mut self.completions);
            self.completions.clear();
        }
        if volume.in_flight() > 0 {
            // The volume keeps their memory until they end; their tags mean nothing to us from here on.
            tracing::error!(in_flight = volume.in_flight(), "a reset did not wait any longer for the volume");
        }
        drop(volume);
        self.pending.fill_with(|| None);
        self.free = (0..self.in_flight_max).rev().collect();
        self.stalled = 0;
        self.epoch = EPOCHS.fetch_add(1, Ordering::Relaxed);
    }

    fn counters(&self) -> Counters {
        let count = &self.count;
        [
            ("read_requests", count.read_requests),
            ("read_bytes", count.read_bytes),
            ("write_requests", count.write_requests),
            ("write_bytes", count.write_bytes),
            ("flush_requests", count.flush_requests),
            ("other_requests", count.other_requests),
            ("error_requests", count.error_requests),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}

/// Waits until `fd` has input, a second at most.
fn wait_for_input(fd: BorrowedFd<'_>) {
    if let Err(error) = poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::from(1000_u16)) {
        tracing::debug!(%error, "waiting for the volume was cut short");
    }
}
