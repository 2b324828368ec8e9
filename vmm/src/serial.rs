//! COM1: a 16550A at port 0x3f8 (vm-superio) joined to the console hub, or to nothing where the hub belongs to the virtio console.

use crate::bus::BusDevice;
use crate::console::Hub;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

#[derive(Debug)]
struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Asks for more input once the guest has read what was given.
#[derive(Debug)]
struct Hunger(Option<Arc<Hub>>);

impl SerialEvents for Hunger {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        if let Some(hub) = self.0.as_ref().filter(|hub| hub.has_input()) {
            hub.wake_device();
        }
    }
}

#[derive(Debug)]
struct Output(Option<Arc<Hub>>);

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(hub) = &self.0 {
            hub.output(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The port.
pub struct SerialPort {
    uart: Mutex<Serial<Line, Hunger, Output>>,
    hub: Option<Arc<Hub>>,
}

impl fmt::Debug for SerialPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SerialPort").finish_non_exhaustive()
    }
}

impl SerialPort {
    /// A port that interrupts by `line`.
    #[must_use]
    pub fn new(line: EventFd, hub: Option<Arc<Hub>>) -> Self {
        let uart = Serial::with_events(Line(line), Hunger(hub.clone()), Output(hub.clone()));
        Self { uart: Mutex::new(uart), hub }
    }

    /// Gives the guest as much input as the port has room for. Called on the device thread.
    pub fn feed(&self) {
        let Some(hub) = &self.hub else { return };
        let mut uart = self.lock();
        let bytes = hub.take_input(uart.fifo_capacity());
        if !bytes.is_empty()
            && let Err(error) = uart.enqueue_raw_bytes(&bytes)
        {
            tracing::debug!(?error, "console input was lost");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Serial<Line, Hunger, Output>> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut uart = self.lock();
        // A string instruction reads the same register again and again.
        data.fill_with(|| uart.read(u8::try_from(offset).unwrap_or(0)));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut uart = self.lock();
        for &byte in data {
            if let Err(error) = uart.write(u8::try_from(offset).unwrap_or(0), byte) {
                tracing::debug!(?error, "the serial port lost a byte");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port() -> (SerialPort, Arc<Hub>, EventFd) {
        let hub = Arc::new(Hub::new().unwrap());
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let port = SerialPort::new(line.try_clone().unwrap(), Some(Arc::clone(&hub)));
        (port, hub, line)
    }

    #[test]
    fn bytes_go_out_to_the_hub() {
        let (port, hub, _) = port();
        port.write(0, b"h");
        port.write(0, b"i!");
        assert_eq!(hub.scrollback(0).1, b"hi!");
    }

    #[test]
    fn input_interrupts_and_more_is_asked_for_when_it_is_read() {
        let (port, hub, line) = port();
        port.write(1, &[1]);
        let text: Vec<u8> = (0..100).collect();
        hub.input(&text);
        hub.input_event().read().unwrap();
        port.feed();
        assert!(line.read().is_ok());
        let mut read = Vec::new();
        for _ in 0..2 {
            let mut status = [0];
            port.read(5, &mut status);
            while status[0] & 1 == 1 {
                let mut byte = [0];
                port.read(0, &mut byte);
                read.push(byte[0]);
                port.read(5, &mut status);
            }
            if read.len() < text.len() {
                assert!(hub.input_event().read().is_ok(), "the port asks for more");
                port.feed();
            }
        }
        assert_eq!(read, text);
    }

    #[test]
    fn every_register_takes_any_value() {
        let (port, _, _) = port();
        for offset in 0..8 {
            for value in 0..=255 {
                port.write(offset, &[value]);
                port.read(offset, &mut [0; 4]);
            }
        }
    }
}
