//! A virtio device over PCI, modern interface (virtio 1.2 §4.1.4), and its start (§3.1.1).

use crate::machine::{read, write};
use crate::pci::Function;
use crate::virtqueue::Queue;

/// Feature: the device follows version 1 of the specification.
pub const VERSION_1: u64 = 1 << 32;

const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
/// The device has met an error that only a reset mends.
pub const NEEDS_RESET: u8 = 64;
/// How often the status is read back after a reset.
const PATIENCE: u32 = 1_000_000;

/// The windows of one device.
pub struct Device {
    common: u64,
    notify: u64,
    notify_step: u32,
    interrupt_status: u64,
    /// The device's own configuration.
    pub config: u64,
}

impl Device {
    /// Finds the windows of `function` and resets the device.
    pub fn open(function: Function) -> Result<Self, &'static str> {
        function.enable();
        let mut device = Self { common: 0, notify: 0, notify_step: 0, interrupt_status: 0, config: 0 };
        for (id, at) in function.capabilities() {
            if id != 9 {
                continue;
            }
            let address =
                || Ok::<u64, &'static str>(function.bar(read::<u8>(at + 4))? + u64::from(read::<u32>(at + 8)));
            match read::<u8>(at + 3) {
                1 => device.common = address()?,
                2 => (device.notify, device.notify_step) = (address()?, read::<u32>(at + 16)),
                3 => device.interrupt_status = address()?,
                4 => device.config = address()?,
                _ => {}
            }
        }
        if device.common == 0 || device.notify == 0 {
            return Err("a virtio capability is missing");
        }
        device.reset()?;
        Ok(device)
    }

    /// Resets the device and waits until it says so.
    pub fn reset(&self) -> Result<(), &'static str> {
        self.set_status(0);
        (0..PATIENCE).any(|_| self.status() == 0).then_some(()).ok_or("the device does not come out of its reset")
    }

    /// Agrees on those of `wanted` that the device has, besides version 1; returns what was agreed.
    pub fn negotiate(&self, wanted: u64) -> Result<u64, &'static str> {
        self.set_status(ACKNOWLEDGE);
        self.set_status(ACKNOWLEDGE | DRIVER);
        let mut offered = 0;
        for half in 0..2 {
            write::<u32>(self.common, half);
            offered |= u64::from(read::<u32>(self.common + 4)) << (32 * half);
        }
        if offered & VERSION_1 == 0 {
            return Err("the device does not offer version 1");
        }
        let agreed = offered & (wanted | VERSION_1);
        for half in 0..2u32 {
            write::<u32>(self.common + 8, half);
            write::<u32>(self.common + 12, (agreed >> (32 * half)) as u32);
        }
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        if self.status() & FEATURES_OK == 0 {
            return Err("the device refuses the features that it offered");
        }
        Ok(agreed)
    }

    /// Sets up queue `index`.
    pub fn queue(&self, index: u16) -> Result<Queue, &'static str> {
        let queue = self.queue_without_place(index)?;
        self.place(queue.addresses());
        self.enable(index);
        Ok(queue)
    }

    /// Sets up queue `index` but for its place, and does not enable it.
    pub fn queue_without_place(&self, index: u16) -> Result<Queue, &'static str> {
        write::<u16>(self.common + 22, index);
        if read::<u16>(self.common + 24) < Queue::SIZE {
            return Err("the device's queue is too short");
        }
        write::<u16>(self.common + 24, Queue::SIZE);
        // No MSI-X vector: this guest polls.
        write::<u16>(self.common + 26, 0xffff);
        let offset = read::<u16>(self.common + 30);
        Ok(Queue::new(index, self.notify + u64::from(offset) * u64::from(self.notify_step)))
    }

    /// Tells the device where the selected queue's three parts are.
    pub fn place(&self, addresses: [u64; 3]) {
        for (field, address) in [32, 40, 48].into_iter().zip(addresses) {
            write::<u32>(self.common + field, address as u32);
            write::<u32>(self.common + field + 4, (address >> 32) as u32);
        }
    }

    /// Selects queue `index` and enables it where it is.
    pub fn enable(&self, index: u16) {
        write::<u16>(self.common + 22, index);
        write::<u16>(self.common + 28, 1);
    }

    /// Sets the device going.
    pub fn start(&self) {
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// The device's status.
    pub fn status(&self) -> u8 {
        read::<u8>(self.common + 20)
    }

    /// Whether the device says that its configuration or its status changed; reading it clears it (§4.1.4.5).
    pub fn has_changed(&self) -> bool {
        self.interrupt_status != 0 && read::<u8>(self.interrupt_status) & 2 != 0
    }

    fn set_status(&self, status: u8) {
        write::<u8>(self.common + 20, status);
    }
}
