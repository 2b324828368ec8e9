//! The console between guest devices and the outside: a bounded memory of output, a bounded queue of input.
//!
//! [`Hub`] is shared: devices put output in and take input out on their threads; the shell in [`server`] moves both to clients and to the log on the
//! control thread. Each side wakes the other by an eventfd. Invariant: output is never blocked by a client; a client that reads too slowly loses the
//! oldest output, and input that finds the queue full waits in the client's socket.

pub mod log;
pub mod server;

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use vmm_sys_util::eventfd::EventFd;

/// Output kept for clients that come or read late, bytes.
pub const SCROLLBACK_BYTES: usize = 64 * 1024;
/// Input that waits for the guest, bytes.
pub const INPUT_MAX_BYTES: usize = 4096;

#[derive(Debug, Default)]
struct Buffers {
    output: VecDeque<u8>,
    /// How many bytes were ever put out: the position after the last byte of `output`.
    end: u64,
    input: VecDeque<u8>,
    /// A client waits for room in `input`.
    wants_room: bool,
}

/// The meeting point of console devices and clients.
#[derive(Debug)]
pub struct Hub {
    buffers: Mutex<Buffers>,
    woken: AtomicBool,
    output_event: EventFd,
    input_event: EventFd,
}

impl Hub {
    /// An empty hub.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let event = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        Ok(Self {
            buffers: Mutex::default(),
            woken: AtomicBool::new(false),
            output_event: event()?,
            input_event: event()?,
        })
    }

    /// The guest put out `bytes`.
    pub fn output(&self, bytes: &[u8]) {
        let mut buffers = self.lock();
        let keep = &bytes[bytes.len().saturating_sub(SCROLLBACK_BYTES)..];
        let over = (buffers.output.len() + keep.len()).saturating_sub(SCROLLBACK_BYTES);
        buffers.output.drain(..over);
        buffers.output.extend(keep);
        buffers.end += bytes.len() as u64;
        drop(buffers);
        self.wake_server();
    }

    /// Output from position `from` on, or from the oldest that is kept; with the position after it.
    #[must_use]
    pub fn scrollback(&self, from: u64) -> (u64, Vec<u8>) {
        let buffers = self.lock();
        let start = buffers.end - buffers.output.len() as u64;
        let skip = usize::try_from(from.saturating_sub(start)).unwrap_or(usize::MAX).min(buffers.output.len());
        (buffers.end, buffers.output.range(skip..).copied().collect())
    }

    /// A client sent `bytes`; returns how many found room.
    pub fn input(&self, bytes: &[u8]) -> usize {
        let mut buffers = self.lock();
        let count = bytes.len().min(INPUT_MAX_BYTES - buffers.input.len());
        buffers.input.extend(&bytes[..count]);
        buffers.wants_room = buffers.input.len() == INPUT_MAX_BYTES;
        drop(buffers);
        if count > 0 {
            self.wake_device();
        }
        count
    }

    /// How much input finds room now.
    #[must_use]
    pub fn input_room(&self) -> usize {
        INPUT_MAX_BYTES - self.lock().input.len()
    }

    /// The guest takes at most `count` bytes of input.
    pub fn take_input(&self, count: usize) -> Vec<u8> {
        let mut buffers = self.lock();
        let count = count.min(buffers.input.len());
        let bytes = buffers.input.drain(..count).collect();
        let wake = count > 0 && std::mem::take(&mut buffers.wants_room);
        drop(buffers);
        if wake {
            self.wake_server();
        }
        bytes
    }

    /// Whether input waits for the guest.
    #[must_use]
    pub fn has_input(&self) -> bool {
        !self.lock().input.is_empty()
    }

    /// Readable when input waits, or the device asked to be woken.
    #[must_use]
    pub const fn input_event(&self) -> &EventFd {
        &self.input_event
    }

    /// Readable when there is output, or room for input again. Cleared by [`Hub::served`].
    #[must_use]
    pub const fn output_event(&self) -> &EventFd {
        &self.output_event
    }

    /// The shell looks at the output now: later output wakes it again.
    pub fn served(&self) {
        // Nothing to read only means that somebody was woken twice.
        self.output_event.read().ok();
        self.woken.store(false, Ordering::SeqCst);
    }

    /// Wakes the device's thread to look for input.
    pub fn wake_device(&self) {
        // A full counter means that it is awake.
        self.input_event.write(1).ok();
    }

    /// One write wakes the shell however much is put out until it looks.
    fn wake_server(&self) {
        if !self.woken.swap(true, Ordering::SeqCst) {
            self.output_event.write(1).ok();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Buffers> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_kept_up_to_its_bound_and_read_by_position() {
        let hub = Hub::new().unwrap();
        hub.output(b"abc");
        let (end, bytes) = hub.scrollback(0);
        assert_eq!((end, bytes.as_slice()), (3, &b"abc"[..]));
        hub.output(b"de");
        assert_eq!(hub.scrollback(end).1, b"de");
        hub.output(&vec![b'x'; SCROLLBACK_BYTES + 10]);
        let (end, bytes) = hub.scrollback(2);
        assert_eq!((end, bytes.len()), (SCROLLBACK_BYTES as u64 + 15, SCROLLBACK_BYTES));
        assert!(hub.scrollback(u64::MAX).1.is_empty());
    }

    #[test]
    fn input_is_bounded_and_room_is_told() {
        let hub = Hub::new().unwrap();
        assert_eq!(hub.input(&[1; 5000]), INPUT_MAX_BYTES);
        assert_eq!((hub.input(&[1]), hub.input_room()), (0, 0));
        assert!(hub.output_event().read().is_err());
        assert_eq!(hub.take_input(100).len(), 100);
        assert!(hub.output_event().read().is_ok());
        assert_eq!(hub.input_room(), 100);
    }

    #[test]
    fn one_wake_serves_much_output() {
        let hub = Hub::new().unwrap();
        hub.output(b"a");
        hub.output(b"b");
        assert_eq!(hub.output_event().read().unwrap(), 1);
        hub.served();
        hub.output(b"c");
        assert_eq!(hub.output_event().read().unwrap(), 1);
    }
}
