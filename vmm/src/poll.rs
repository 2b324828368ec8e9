//! Waiting for many descriptors: epoll with tokens, and nothing else.
//!
//! Whoever adds a descriptor keeps it open until it is removed; a closed one leaves by itself.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Events taken in one wait.
const BATCH: usize = 32;

/// What to wait for. A hang-up is always told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Input.
    Read,
    /// Room for output.
    Write,
    /// Either.
    Both,
    /// Neither; a hang-up is told once.
    HangUp,
    /// New input since the last look.
    ReadEdge,
}

impl Interest {
    const fn events(self) -> EventSet {
        match self {
            Self::Read => EventSet::IN,
            Self::Write => EventSet::OUT,
            Self::Both => EventSet::IN.union(EventSet::OUT),
            Self::HangUp => EventSet::EDGE_TRIGGERED,
            Self::ReadEdge => EventSet::IN.union(EventSet::EDGE_TRIGGERED),
        }
    }
}

/// A set of descriptors with tokens.
#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
}

impl Poller {
    /// An empty set.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: Epoll::new()? })
    }

    /// Adds a descriptor.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn add(&self, source: &impl AsRawFd, token: u64, interest: Interest) -> io::Result<()> {
        self.add_fd(source.as_raw_fd(), token, interest)
    }

    /// Adds a descriptor by number.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn add_fd(&self, fd: RawFd, token: u64, interest: Interest) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(interest.events(), token))
    }

    /// Changes what a descriptor is watched for.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn change(&self, source: &impl AsRawFd, token: u64, interest: Interest) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Modify, source.as_raw_fd(), EpollEvent::new(interest.events(), token))
    }

    /// Waits for events, at most `timeout_ms` (for ever when negative); returns their tokens. A signal ends the wait with none.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn wait(&self, timeout_ms: i32) -> io::Result<Vec<u64>> {
        let mut events = [EpollEvent::default(); BATCH];
        match self.epoll.wait(timeout_ms, &mut events) {
            Ok(count) => Ok(events[..count].iter().map(EpollEvent::data).collect()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}
