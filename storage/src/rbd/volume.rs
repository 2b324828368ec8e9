//! An open image as a volume: its exclusive lock, its requests in flight.
//!
//! The lock is taken before the volume is handed out and is never given to another client that asks: moving a volume
//! means closing it here first.
//!
//! Invariant: dropping the volume waits for every request in flight, at most about the I/O timeout that it was opened
//! with.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::completion::{self, Flights};
use super::fence::{self, HOLDER_KEY};
use super::ffi::feature;
use super::handle::{ImageOwner, c_string};
use super::{Pool, RbdError, Timeouts};
use crate::source::{OpenOptions, RbdSource};
use crate::volume::{Completion, Request, SECTOR_BYTES, SubmitError, wait_readable};

/// An open RBD image.
pub struct RbdVolume {
    // Closed in this order: the image writes the eventfd until it is closed.
    image: ImageOwner,
    signal: EventFd,
    name: String,
    size_bytes: u64,
    discard_granularity_bytes: u64,
    read_only: bool,
    flights: Flights,
}

impl fmt::Debug for RbdVolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RbdVolume")
            .field("name", &self.name)
            .field("size_bytes", &self.size_bytes)
            .field("read_only", &self.read_only)
            .finish_non_exhaustive()
    }
}

impl RbdVolume {
    /// Connects to the cluster, opens the image and takes its exclusive lock (unless read-only).
    ///
    /// # Errors
    /// [`RbdError`]: the cluster cannot be reached in time, there is no such image, another holds it, …
    pub fn open(source: &RbdSource, options: &OpenOptions) -> Result<Self, RbdError> {
        let timeouts = Timeouts { connect: options.connect_timeout, operation: options.io_timeout };
        let pool = Pool::connect(&source.conf, &source.user, &source.pool, timeouts)?;
        Self::open_in(&pool, &source.image, options)
    }

    /// Opens an image of a pool that is connected already.
    ///
    /// # Errors
    /// As [`RbdVolume::open`].
    pub fn open_in(pool: &Pool, name: &str, options: &OpenOptions) -> Result<Self, RbdError> {
        let image = if options.read_only { pool.open_to_look(name)? } else { pool.open_to_change(name)? };
        if !options.read_only {
            lock(pool, name, &image, options)?;
        }
        let (size_bytes, _) = image.stat().map_err(|errno| pool.failed("stat", name, errno))?;
        if size_bytes == 0 || !size_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(RbdError::Size { image: pool.image_name(name), size_bytes });
        }
        let signal = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(|errno| {
            let (attempt, image) = ("make an eventfd for", pool.image_name(name));
            RbdError::Failed { attempt, image, source: errno.into() }
        })?;
        completion::announce_on(&image, &signal).map_err(|errno| pool.failed("listen to", name, errno))?;
        Ok(Self {
            image,
            signal,
            name: pool.image_name(name),
            size_bytes,
            discard_granularity_bytes: pool.discard_granularity_bytes()?,
            read_only: options.read_only,
            flights: Flights::new(options.in_flight_max),
        })
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(crate) fn discard_granularity_bytes(&self) -> u64 {
        self.discard_granularity_bytes
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only
    }

    pub(crate) fn in_flight_max(&self) -> u16 {
        self.flights.in_flight_max()
    }

    pub(crate) fn in_flight(&self) -> u16 {
        self.flights.in_flight()
    }

    /// Takes a request that passed the volume's checks.
    pub(crate) fn submit(&mut self, request: Request) -> Result<(), SubmitError> {
        if self.flights.start(&self.image, request)? {
            // librbd heard nothing of it, so nobody else signals its end.
            let _ = self.signal.write(1);
        }
        Ok(())
    }

    pub(crate) fn completion_fd(&self) -> BorrowedFd<'_> {
        self.signal.as_fd()
    }

    pub(crate) fn drain(&mut self, completions: &mut Vec<Completion>) {
        // Read first: a completion that comes later signals again. EAGAIN means that none was signalled.
        let _ = self.signal.read();
        if let Err(errno) = self.flights.collect(&self.image, completions) {
            tracing::error!(volume = self.name, error = %io::Error::from(errno), "completions could not be taken");
        }
    }

    /// Waits for what is in flight, gives the lock back and closes the image.
    pub(crate) fn close(mut self) -> io::Result<()> {
        self.settle();
        if self.read_only {
            return Ok(());
        }
        // Closing the image would release it too, but would not say when that fails.
        self.image.release_lock().map_err(io::Error::from)
    }

    /// Waits until nothing is in flight: the memory of requests may go away afterwards.
    fn settle(&mut self) {
        let mut completions = Vec::new();
        while self.in_flight() > 0 {
            if let Err(error) = wait_readable(self.signal.as_fd(), 1000) {
                tracing::error!(%error, volume = self.name, "waiting for a closing volume failed");
            }
            self.drain(&mut completions);
        }
    }
}

impl Drop for RbdVolume {
    fn drop(&mut self) {
        self.settle();
    }
}

/// Takes the exclusive lock and leaves a word on who did.
fn lock(pool: &Pool, name: &str, image: &ImageOwner, options: &OpenOptions) -> Result<(), RbdError> {
    let features = image.features().map_err(|errno| pool.failed("ask for the features of", name, errno))?;
    if features & feature::EXCLUSIVE_LOCK == 0 {
        return Err(RbdError::NoLock { image: pool.image_name(name) });
    }
    fence::acquire(pool, name, image, options.takeover)?;
    let said = image.set_metadata(HOLDER_KEY, &c_string(&options.holder)?);
    said.map_err(|errno| pool.failed("say who holds", name, errno))
}
