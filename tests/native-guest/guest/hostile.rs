//! Nonsense in the rings of the block device. A device may fail the request or ask for a reset; after a reset it must work again.

use crate::block::Disk;
use crate::machine::{dma, ticks};
use crate::pci::Function;
use crate::virtio::{Device, NEEDS_RESET};
use crate::virtqueue::Queue;
use crate::{Outcome, println};

/// Descriptor flags.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// How long the device is left alone with each piece of nonsense.
const LEFT_ALONE_TICKS: u64 = 50_000_000;
/// An address where no guest has memory.
const NOWHERE: u64 = 0x7fff_ffff_f000;

/// One piece of nonsense: its name, and what it writes.
type Nonsense = (&'static str, fn(&Queue));

const NONSENSE: &[Nonsense] = &[
    ("a chain that bites its tail", |queue| {
        queue.set_descriptor(0, buffer(), 16, NEXT, 1);
        queue.set_descriptor(1, buffer(), 16, NEXT, 0);
        queue.offer(0);
    }),
    ("a header outside of memory", |queue| {
        queue.set_descriptor(0, NOWHERE, 16, NEXT, 1);
        queue.set_descriptor(1, buffer(), 1, WRITE, 0);
        queue.offer(0);
    }),
    ("a length past the end of the address space", |queue| {
        queue.set_descriptor(0, buffer(), 16, NEXT, 1);
        queue.set_descriptor(1, u64::MAX - 4095, u32::MAX, NEXT | WRITE, 2);
        queue.set_descriptor(2, buffer(), 1, WRITE, 0);
        queue.offer(0);
    }),
    ("a head that is no descriptor", |queue| queue.offer(0xfff0)),
    ("a next that is no descriptor", |queue| {
        queue.set_descriptor(0, buffer(), 16, NEXT, 0xfff0);
        queue.offer(0);
    }),
    ("an available index far ahead", |queue| queue.set_available_index(0x7fff)),
    ("an indirect table of an odd size", |queue| {
        queue.set_descriptor(0, buffer(), 17, INDIRECT, 0);
        queue.offer(0);
    }),
    ("no room for the status", |queue| {
        queue.set_descriptor(0, buffer(), 16, 0, 0);
        queue.offer(0);
    }),
    ("an empty descriptor", |queue| {
        queue.set_descriptor(0, buffer(), 0, 0, 0);
        queue.offer(0);
    }),
];

fn buffer() -> u64 {
    dma(4096).as_ptr() as u64
}

/// Does all of it, each on a fresh device, then expects the device to serve a plain read.
pub fn run(function: Function) -> Outcome {
    for (name, write) in NONSENSE {
        let device = Device::open(function)?;
        device.negotiate(0)?;
        let queue = device.queue(0)?;
        device.start();
        write(&queue);
        queue.ring();
        leave_alone();
        report(name, &device);
    }
    rings_nowhere(function)?;
    let device = Device::open(function)?;
    Disk::start(&device)?.request(0, 0, 512)
}

/// A queue whose rings are outside of memory: the device must ask for a reset and say that something changed (virtio 1.2 §2.1.2).
fn rings_nowhere(function: Function) -> Outcome {
    let device = Device::open(function)?;
    device.negotiate(0)?;
    let queue = device.queue_without_place(0)?;
    device.place([NOWHERE; 3]);
    device.enable(0);
    device.start();
    queue.ring();
    leave_alone();
    report("rings outside of memory", &device);
    match (device.status() & NEEDS_RESET != 0, device.has_changed()) {
        (true, true) => Ok(()),
        (true, false) => Err("the device asks for a reset and does not say so"),
        (false, _) => Err("the device takes rings outside of memory"),
    }
}

fn report(name: &str, device: &Device) {
    let word = if device.status() & NEEDS_RESET == 0 { "goes on" } else { "asks for a reset" };
    println!("hostile: {name}: the device {word}");
}

fn leave_alone() {
    let start = ticks();
    while ticks() - start < LEFT_ALONE_TICKS {
        core::hint::spin_loop();
    }
}
