//! File I/O by io_uring: one ring for a volume, completions by an eventfd.
//!
//! It keeps each job in its slot until the kernel is done with it, so that the iovec array that the kernel was told of
//! stays where it is, and repeats short transfers. The ring has an entry for every slot, so it can never be full.
//! (io_uring(7), io_uring_enter(2).)

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use io_uring::{IoUring, opcode, squeue, types};
use nix::sys::eventfd::EventFd;

use super::lock::LockedFile;
use super::pool;
use super::volume::{Ended, Job};
use crate::memory;
use crate::volume::{Fault, Operation};

/// A hole where the range was; the file keeps its length.
const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

/// The ring and the jobs that the kernel has.
pub(super) struct Ring {
    ring: IoUring,
    file: LockedFile,
    slots: Vec<Option<Job>>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Ring {
    /// Makes a ring for `slots` jobs on `file`; the kernel writes `signal` at each completion.
    ///
    /// # Errors
    /// Where the kernel has no io_uring or refuses it; the file comes back for another engine.
    pub(super) fn new(file: LockedFile, signal: &EventFd, slots: u16) -> Result<Self, (io::Error, LockedFile)> {
        let ring = IoUring::new(u32::from(slots).next_power_of_two())
            .and_then(|ring| ring.submitter().register_eventfd(signal.as_fd().as_raw_fd()).map(|()| ring));
        match ring {
            Ok(ring) => Ok(Self { ring, file, slots: (0..slots).map(|_| None).collect() }),
            Err(error) => Err((error, file)),
        }
    }

    /// Takes a job for its slot and queues it in the ring.
    pub(super) fn push(&mut self, job: Job) {
        let slot = job.slot;
        self.slots[usize::from(slot)] = Some(job);
        self.queue(slot);
    }

    /// Tells the kernel of all queued entries.
    pub(super) fn kick(&mut self) -> io::Result<()> {
        loop {
            match self.ring.submit() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(_) => return Ok(()),
            }
        }
    }

    /// Takes the jobs that have ended, and goes on with those that came back short.
    pub(super) fn take_ended(&mut self, ended: &mut Vec<Ended>) -> io::Result<()> {
        let mut again = Vec::new();
        for entry in self.ring.completion() {
            // The token is the slot that `queue` put there.
            let Ok(slot) = u16::try_from(entry.user_data()) else { continue };
            let Some(job) = self.slots[usize::from(slot)].as_mut() else { continue };
            match outcome(job, entry.result(), &self.file) {
                Some(result) => {
                    self.slots[usize::from(slot)] = None;
                    ended.push(Ended { slot, result });
                }
                None => again.push(slot),
            }
        }
        if again.is_empty() {
            return Ok(());
        }
        for slot in again {
            self.queue(slot);
        }
        self.kick()
    }

    /// Puts the slot's job into the submission queue.
    fn queue(&mut self, slot: u16) {
        let Some(job) = self.slots[usize::from(slot)].as_ref() else { return };
        let entry = entry(job, types::Fd(self.file.as_raw_fd())).user_data(u64::from(slot));
        // SAFETY: the entry's iovec array lies in the job, on the heap, and stays there until the slot is cleared at its
        // completion; the memory it names is kept by the promise made to `GuestSlice::new`; `file` lives as long as the ring.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        assert!(pushed.is_ok(), "the ring has an entry for each slot");
    }
}

/// The submission entry for what is left of a job.
fn entry(job: &Job, file: types::Fd) -> squeue::Entry {
    // At most SEGMENTS_MAX buffers were let in.
    let count = u32::try_from(job.buffers.len()).unwrap_or(u32::MAX);
    let iovecs = memory::as_iovecs(&job.buffers);
    match job.operation {
        Operation::Read => opcode::Readv::new(file, iovecs, count).offset(job.offset_bytes).build(),
        Operation::Write => opcode::Writev::new(file, iovecs, count).offset(job.offset_bytes).build(),
        Operation::Flush => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
        Operation::Discard | Operation::WriteZeroes => {
            opcode::Fallocate::new(file, job.length_bytes).offset(job.offset_bytes).mode(PUNCH_HOLE).build()
        }
    }
}

/// What a completion means for its job: its end, or `None` where the rest must be queued again.
fn outcome(job: &mut Job, result: i32, file: &File) -> Option<Result<(), Fault>> {
    match (job.operation, result) {
        (_, result) if result == -libc::EINTR => None,
        // The file system cannot do it without waiting and the kernel would not wait for it: do it here, which is rare.
        (_, result) if result == -libc::EAGAIN => Some(pool::perform(file.as_fd(), job.take())),
        (Operation::Discard, result) if unsupported(result) => Some(Ok(())),
        (Operation::WriteZeroes, result) if unsupported(result) => {
            Some(pool::write_zeroes(file.as_fd(), job.offset_bytes, job.length_bytes))
        }
        (_, result) if result < 0 => Some(Err(Fault::from_errno(-result))),
        (Operation::Read | Operation::Write, result) => {
            let count = usize::try_from(result).unwrap_or(0);
            if count == 0 && memory::total_bytes(&job.buffers) > 0 {
                return Some(Err(Fault::UnexpectedEnd));
            }
            memory::advance(&mut job.buffers, count);
            job.offset_bytes += count as u64;
            if job.buffers.is_empty() { Some(Ok(())) } else { None }
        }
        (Operation::Flush | Operation::Discard | Operation::WriteZeroes, _) => Some(Ok(())),
    }
}

/// Whether the file system cannot punch holes.
fn unsupported(result: i32) -> bool {
    result == -libc::EOPNOTSUPP || result == -libc::ENOSYS
}
