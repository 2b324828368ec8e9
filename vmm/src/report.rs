//! What a running machine tells its owner: that it reset, powered off or failed.
//!
//! Devices and vCPUs report from their threads; the control thread waits on the eventfd and drains. Reports of a machine that was taken down are
//! dropped with it, because each machine has a reporter of its own.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use vmm_sys_util::eventfd::EventFd;

/// Something only the owner can act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// The guest asked for a reset.
    Reset,
    /// The guest powered itself off.
    PowerOff,
    /// A vCPU could not even deliver a double fault.
    TripleFault {
        /// Which.
        vcpu: u8,
    },
    /// The machine cannot go on.
    Failed(String),
}

/// The sending end.
#[derive(Debug)]
pub struct Reporter {
    sender: Sender<Report>,
    event: EventFd,
}

/// The receiving end.
#[derive(Debug)]
pub struct Reports {
    receiver: Receiver<Report>,
    event: EventFd,
}

/// A pair of ends.
///
/// # Errors
/// When the process has no descriptor left.
pub fn pair() -> io::Result<(Reporter, Reports)> {
    let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
    let (sender, receiver) = channel();
    Ok((Reporter { sender, event: event.try_clone()? }, Reports { receiver, event }))
}

impl Reporter {
    /// Tells the owner.
    pub fn report(&self, report: Report) {
        // An owner that is gone does not want to know; a full counter means that it is being woken.
        self.sender.send(report).ok();
        self.event.write(1).ok();
    }

    /// Another sending end.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { sender: self.sender.clone(), event: self.event.try_clone()? })
    }
}

impl Reports {
    /// Readable when there are reports.
    #[must_use]
    pub const fn event(&self) -> &EventFd {
        &self.event
    }

    /// The first report since the last look: whatever follows it comes from a machine that is ending already.
    pub fn first(&self) -> Option<Report> {
        self.event.read().ok();
        let first = self.receiver.try_recv().ok();
        while self.receiver.try_recv().is_ok() {}
        first
    }
}
