//! An open volume in a file: its slots, its bounce buffers, and the engine that does the I/O.
//!
//! A request takes a free slot at submission and gives it back when its completion is drained; the slot keeps what the
//! engine must not lose meanwhile. With direct I/O, buffers that are not aligned as the device wants go through an
//! aligned copy. The lock is taken before anything else and lives as long as the descriptor.
//!
//! Invariant: `free.len() + in flight = in_flight_max`; dropping the volume waits for every slot.

use std::fs::OpenOptions as FileOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::lock::{self, LockedFile};
use super::pool::Pool;
use super::ring::Ring;
use super::{FileError, syscall};
use crate::memory::{self, Bounce, GuestSlice, Owner};
use crate::source::{Engine as EngineChoice, FileSource, OpenOptions};
use crate::volume::{Completion, Fault, Operation, Request, SECTOR_BYTES, SubmitError, wait_readable};

/// What an engine does: a request without its tag, with the slot it runs in.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) slot: u16,
    pub(super) operation: Operation,
    pub(super) offset_bytes: u64,
    pub(super) length_bytes: u64,
    pub(super) buffers: Vec<GuestSlice>,
}

impl Job {
    /// Takes the job out of its place.
    pub(super) fn take(&mut self) -> Self {
        let &mut Self { slot, operation, offset_bytes, length_bytes, .. } = self;
        Self { slot, operation, offset_bytes, length_bytes, buffers: std::mem::take(&mut self.buffers) }
    }
}

/// A file that is open and locked, and on which no I/O was started.
#[derive(Debug)]
pub(crate) struct PreparedFile {
    file: LockedFile,
    path: PathBuf,
    alignment: syscall::DirectAlignment,
    size_bytes: u64,
    block_bytes: u64,
}

impl PreparedFile {
    pub(crate) fn open(source: &FileSource, options: &OpenOptions) -> Result<Self, FileError> {
        let path = &source.path;
        let file = open_locked(path, options.read_only, source.direct)?;
        let alignment = if source.direct {
            syscall::direct_alignment(&file).ok_or_else(|| FileError::NoDirect { path: path.clone() })?
        } else {
            syscall::DirectAlignment { memory: 1, offset: SECTOR_BYTES }
        };
        let block_bytes = alignment.offset.max(SECTOR_BYTES);
        let size_bytes = file.metadata().map_err(|source| FileError::from_io("stat", path, source))?.len();
        if size_bytes == 0 || !size_bytes.is_multiple_of(block_bytes) {
            return Err(FileError::Size { path: path.clone(), size_bytes, block_bytes });
        }
        Ok(Self { file, path: path.clone(), alignment, size_bytes, block_bytes })
    }

    /// Starts the engine.
    pub(crate) fn start(self, options: &OpenOptions) -> Result<FileVolume, FileError> {
        let Self { file, path, alignment, size_bytes, block_bytes } = self;
        let signal = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| FileError::from_io("make an eventfd for", &path, errno.into()))?;
        let signal = Arc::new(signal);
        let engine = start_engine(file, &signal, options)
            .map_err(|source| FileError::from_io("start the I/O threads of", &path, source))?;
        Ok(FileVolume {
            engine,
            signal,
            size_bytes,
            block_bytes,
            memory_alignment: alignment.memory,
            read_only: options.read_only,
            slots: (0..options.in_flight_max).map(|_| Slot::default()).collect(),
            free: (0..options.in_flight_max).rev().collect(),
            ended: Vec::with_capacity(usize::from(options.in_flight_max)),
        })
    }
}

/// A job that has ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) slot: u16,
    pub(super) result: Result<(), Fault>,
}

/// An open volume in a raw file.
#[derive(Debug)]
pub struct FileVolume {
    engine: Engine,
    signal: Arc<EventFd>,
    size_bytes: u64,
    block_bytes: u64,
    /// What buffers must be aligned to; 1 for buffered I/O.
    memory_alignment: usize,
    read_only: bool,
    slots: Vec<Slot>,
    free: Vec<u16>,
    ended: Vec<Ended>,
}

/// What a request in flight needs again at its end.
#[derive(Debug, Default)]
struct Slot {
    tag: u64,
    bounce: Option<Bounce>,
    /// Keeps the request's memory mapped.
    _owner: Owner,
}

/// The closed set of engines.
#[derive(Debug)]
enum Engine {
    Ring(Box<Ring>),
    Pool(Pool),
}

impl FileVolume {
    /// Opens the file, takes its lock (exclusive for writing, shared for reading) and starts an engine.
    ///
    /// # Errors
    /// [`FileError`]: no such file, in use, a size that is no volume's, …
    pub fn open(source: &FileSource, options: &OpenOptions) -> Result<Self, FileError> {
        PreparedFile::open(source, options)?.start(options)
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(crate) fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only
    }

    pub(crate) fn in_flight_max(&self) -> u16 {
        // As many slots as `in_flight_max`, which was a u16.
        u16::try_from(self.slots.len()).unwrap_or(u16::MAX)
    }

    pub(crate) fn in_flight(&self) -> u16 {
        u16::try_from(self.slots.len() - self.free.len()).unwrap_or(u16::MAX)
    }

    pub(crate) fn engine(&self) -> &'static str {
        match self.engine {
            Engine::Ring(_) => "io_uring",
            Engine::Pool(_) => "threads",
        }
    }

    /// Takes a request that passed the volume's checks.
    pub(crate) fn submit(&mut self, request: Request) -> Result<(), SubmitError> {
        let Some(slot) = self.free.pop() else {
            return Err(SubmitError::Full { in_flight_max: self.in_flight_max(), request: Box::new(request) });
        };
        let Request { operation, offset_bytes, length_bytes, buffers, tag } = request;
        // Without the empty ones, which would look like the end of the file.
        let (mut buffers, owner) = buffers.into_parts();
        let bounce = (!memory::is_aligned(&buffers, self.memory_alignment))
            .then(|| Bounce::new(&mut buffers, operation == Operation::Write, self.memory_alignment));
        self.slots[usize::from(slot)] = Slot { tag, bounce, _owner: owner };
        if length_bytes == 0 && operation != Operation::Flush {
            self.end_at_once(slot);
            return Ok(());
        }
        let job = Job { slot, operation, offset_bytes, length_bytes, buffers };
        match &mut self.engine {
            Engine::Ring(ring) => ring.push(job),
            Engine::Pool(pool) => pool.push(job),
        }
        Ok(())
    }

    pub(crate) fn kick(&mut self) -> io::Result<()> {
        match &mut self.engine {
            Engine::Ring(ring) => ring.kick(),
            Engine::Pool(_) => Ok(()),
        }
    }

    pub(crate) fn completion_fd(&self) -> BorrowedFd<'_> {
        self.signal.as_fd()
    }

    pub(crate) fn drain(&mut self, completions: &mut Vec<Completion>) {
        // Read first: a completion that comes later signals again. WouldBlock means that none was signalled.
        let _ = self.signal.read();
        let taken = match &mut self.engine {
            Engine::Ring(ring) => ring.take_ended(&mut self.ended),
            Engine::Pool(pool) => {
                pool.take_ended(&mut self.ended);
                Ok(())
            }
        };
        if let Err(error) = taken {
            // The rest of a short transfer stays queued; wake the caller again to try.
            tracing::warn!(%error, "a short transfer could not go on yet");
            let _ = self.signal.write(1);
        }
        for Ended { slot, result } in self.ended.drain(..) {
            let Slot { tag, bounce, _owner } = std::mem::take(&mut self.slots[usize::from(slot)]);
            if let (Some(bounce), Ok(())) = (bounce, result) {
                bounce.finish_read();
            }
            self.free.push(slot);
            completions.push(Completion { tag, result });
        }
    }

    /// Waits for everything in flight and closes the file, which gives the lock back.
    #[expect(clippy::unnecessary_wraps, reason = "the same shape for every backend")]
    pub(crate) fn close(self) -> io::Result<()> {
        drop(self);
        Ok(())
    }

    fn end_at_once(&mut self, slot: u16) {
        self.ended.push(Ended { slot, result: Ok(()) });
        let _ = self.signal.write(1);
    }
}

impl Drop for FileVolume {
    fn drop(&mut self) {
        // The memory of what is in flight may go away after this: wait, however long the disk takes.
        let mut completions = Vec::new();
        while self.in_flight() > 0 {
            if let Err(error) = self.kick().and_then(|()| wait_readable(self.signal.as_fd(), 1000)) {
                tracing::error!(%error, in_flight = self.in_flight(), "waiting for a closing volume failed");
            }
            self.drain(&mut completions);
        }
    }
}

/// Opens the file with its lock.
pub(super) fn open_locked(path: &Path, read_only: bool, direct: bool) -> Result<LockedFile, FileError> {
    let file = FileOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK | if direct { libc::O_DIRECT } else { 0 })
        .open(path)
        .map_err(|source| match source.raw_os_error() {
            Some(libc::EINVAL) if direct => FileError::NoDirect { path: path.to_owned() },
            Some(libc::EISDIR | libc::ENXIO) => FileError::NotAFile { path: path.to_owned() },
            _ => FileError::from_io("open", path, source),
        })?;
    let metadata = file.metadata().map_err(|source| FileError::from_io("stat", path, source))?;
    if !metadata.is_file() {
        return Err(FileError::NotAFile { path: path.to_owned() });
    }
    // It kept the open from waiting on a pipe; on a file it would only make io_uring give up where it should wait.
    let flags = if direct { OFlag::O_DIRECT } else { OFlag::empty() };
    fcntl(&file, FcntlArg::F_SETFL(flags))
        .map_err(|errno| FileError::from_io("set the flags of", path, errno.into()))?;
    match LockedFile::acquire(file, !read_only) {
        Ok(Ok(file)) => Ok(file),
        Ok(Err(file)) => Err(FileError::Locked { path: path.to_owned(), holder: lock::find_holder(&file) }),
        Err(source) => Err(FileError::from_io("lock", path, source)),
    }
}

fn start_engine(file: LockedFile, signal: &Arc<EventFd>, options: &OpenOptions) -> io::Result<Engine> {
    let file = match options.engine {
        EngineChoice::Threads => file,
        EngineChoice::Automatic => match Ring::new(file, signal, options.in_flight_max) {
            Ok(ring) => return Ok(Engine::Ring(Box::new(ring))),
            Err((error, file)) => {
                tracing::info!(%error, "the kernel refuses io_uring: a pool of threads does the volume's I/O");
                file
            }
        },
    };
    Ok(Engine::Pool(Pool::new(file, Arc::clone(signal))?))
}
