//! File I/O by a bounded pool of threads: the engine for kernels that refuse io_uring.
//!
//! The queue is bounded by the volume's slots: a job is queued only for a free slot. Jobs end in any order. Dropping the
//! pool lets the threads finish what is queued and joins them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::eventfd::EventFd;

use super::lock::LockedFile;
use super::volume::{Ended, Job};
use crate::memory::{self, AlignedBuffer, GuestSlice};
use crate::volume::{Fault, Operation};

/// Threads of one volume: enough to keep a disk busy, few enough for many volumes.
const THREADS: usize = 4;

/// How much of a range one write of zeroes covers where holes cannot be punched.
const ZEROES_BYTES: usize = 256 * 1024;

/// The threads and what they share.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    file: LockedFile,
    queue: Mutex<Queue>,
    work: Condvar,
    done: Mutex<Vec<Ended>>,
    signal: Arc<EventFd>,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closing: bool,
}

impl Pool {
    /// Starts the threads on `file`; each completion writes `signal`.
    pub(super) fn new(file: LockedFile, signal: Arc<EventFd>) -> io::Result<Self> {
        let shared =
            Arc::new(Shared { file, queue: Mutex::default(), work: Condvar::new(), done: Mutex::default(), signal });
        let mut pool = Self { shared, threads: Vec::with_capacity(THREADS) };
        for _ in 0..THREADS {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new().name("volume-io".to_owned()).spawn(move || shared.serve())?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Queues a job.
    pub(super) fn push(&self, job: Job) {
        lock(&self.shared.queue).jobs.push_back(job);
        self.shared.work.notify_one();
    }

    /// Takes the jobs that have ended.
    pub(super) fn take_ended(&self, ended: &mut Vec<Ended>) {
        ended.append(&mut lock(&self.shared.done));
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.queue).closing = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a volume's I/O thread had panicked");
            }
        }
    }
}

impl Shared {
    fn serve(&self) {
        while let Some(job) = self.next() {
            let ended = Ended { slot: job.slot, result: perform(self.file.as_fd(), job) };
            lock(&self.done).push(ended);
            if let Err(error) = self.signal.write(1) {
                tracing::error!(%error, "a completion could not be signalled");
            }
        }
    }

    fn next(&self) -> Option<Job> {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            if queue.closing {
                return None;
            }
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The data behind the lock. A thread that panicked leaves whole values behind: each critical section is one push or pop.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does one job to its end.
pub(super) fn perform(file: BorrowedFd<'_>, job: Job) -> Result<(), Fault> {
    let Job { operation, offset_bytes, length_bytes, buffers, .. } = job;
    match operation {
        Operation::Read => transfer(buffers, offset_bytes, |left, at| memory::read_vectored_at(file, left, at)),
        Operation::Write => transfer(buffers, offset_bytes, |left, at| memory::write_vectored_at(file, left, at)),
        Operation::Flush => nix::unistd::fdatasync(file).map_err(|errno| Fault::from_errno(errno as i32)),
        Operation::Discard => match punch_hole(file, offset_bytes, length_bytes) {
            Err(error) if is_unsupported(&error) => Ok(()),
            other => other.map_err(|error| Fault::from(&error)),
        },
        Operation::WriteZeroes => match punch_hole(file, offset_bytes, length_bytes) {
            Err(error) if is_unsupported(&error) => write_zeroes(file, offset_bytes, length_bytes),
            other => other.map_err(|error| Fault::from(&error)),
        },
    }
}

/// Repeats a transfer until nothing is left of `buffers`.
fn transfer(
    mut buffers: Vec<GuestSlice>,
    mut offset_bytes: u64,
    mut step: impl FnMut(&[GuestSlice], u64) -> io::Result<usize>,
) -> Result<(), Fault> {
    memory::advance(&mut buffers, 0);
    while !buffers.is_empty() {
        match step(&buffers, offset_bytes) {
            Ok(0) => return Err(Fault::UnexpectedEnd),
            Ok(count) => {
                memory::advance(&mut buffers, count);
                offset_bytes += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Fault::from(&error)),
        }
    }
    Ok(())
}

/// Whether the file system cannot punch holes.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS))
}

/// Gives the range back to the file system; it reads as zeroes afterwards.
fn punch_hole(file: BorrowedFd<'_>, offset_bytes: u64, length_bytes: u64) -> io::Result<()> {
    if length_bytes == 0 {
        return Ok(());
    }
    let offset = i64::try_from(offset_bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    let length = i64::try_from(length_bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    Ok(fallocate(file, flags, offset, length)?)
}

/// Writes zeroes over the range, the slow way.
pub(super) fn write_zeroes(file: BorrowedFd<'_>, offset_bytes: u64, length_bytes: u64) -> Result<(), Fault> {
    // Aligned for direct I/O of any kind.
    let zeroes = AlignedBuffer::zeroed(ZEROES_BYTES, 4096);
    let mut done = 0;
    while done < length_bytes {
        let count = usize::try_from(length_bytes - done).unwrap_or(ZEROES_BYTES).min(ZEROES_BYTES);
        let at = i64::try_from(offset_bytes + done).map_err(|_| Fault::Os(libc::EFBIG))?;
        match nix::sys::uio::pwrite(file, &zeroes.as_slice()[..count], at) {
            Ok(written) => done += written as u64,
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(Fault::from_errno(errno as i32)),
        }
    }
    Ok(())
}
