//! Rings built in memory for tests of devices: a bench with real guest memory, real queues and no KVM machine behind the interrupts' eventfds but one
//! without vCPUs.

use crate::kvm::Vm;
use crate::memory::{self, Ram};
use crate::pci::msix::Msix;
use crate::virtio::{Context, Device, NO_VECTOR};
use kvm_ioctls::Kvm;
use std::sync::Arc;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Each queue's rings take this much, from 64 KiB on.
const STEP: u64 = 0x8000;

/// Guest memory with queues that tests fill as a driver would.
pub(crate) struct Bench {
    pub(crate) ram: Arc<Ram>,
    pub(crate) queues: Vec<Queue>,
    msix: Msix,
    vectors: Vec<u16>,
    pub(crate) broken: Option<String>,
    pub(crate) again: u32,
    sizes: Vec<u16>,
    next_descriptor: Vec<u16>,
    avail: Vec<u16>,
    used: Vec<u16>,
}

impl Bench {
    pub(crate) fn new(sizes: &[u16]) -> Self {
        let ram = memory::map(16).unwrap();
        let vm = Arc::new(Vm::new(&Kvm::new().expect("these tests need /dev/kvm"), Arc::clone(&ram)).unwrap());
        let queues = sizes
            .iter()
            .enumerate()
            .map(|(index, &size)| {
                let mut queue = Queue::new(size).unwrap();
                let [desc, avail, used] = Self::rings(index).map(|at| Some(u32::try_from(at).unwrap()));
                queue.set_desc_table_address(desc, None);
                queue.set_avail_ring_address(avail, None);
                queue.set_used_ring_address(used, None);
                queue.set_ready(true);
                queue
            })
            .collect();
        let count = sizes.len();
        Self {
            msix: Msix::new(&vm, 1).unwrap(),
            ram,
            queues,
            vectors: vec![NO_VECTOR; count],
            broken: None,
            again: 0,
            sizes: sizes.to_vec(),
            next_descriptor: vec![0; count],
            avail: vec![0; count],
            used: vec![0; count],
        }
    }

    fn rings(queue: usize) -> [u64; 3] {
        let base = 0x1_0000 + queue as u64 * STEP;
        [base, base + 0x5000, base + 0x6000]
    }

    pub(crate) fn with(&mut self, call: impl FnOnce(&mut Context<'_>)) {
        let mut context = Context {
            ram: &self.ram,
            queues: &mut self.queues,
            vectors: &self.vectors,
            msix: &mut self.msix,
            broken: &mut self.broken,
            again: &mut self.again,
        };
        call(&mut context);
    }

    pub(crate) fn write(&self, address: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub(crate) fn read(&self, address: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.ram.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// Writes descriptor `index` of a table as raw fields.
    pub(crate) fn descriptor(&self, table: u64, index: u16, fields: (u64, u32, u16, u16)) {
        let (address, length, flags, next) = fields;
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.write(table + u64::from(index) * 16, &bytes);
    }

    pub(crate) fn table(queue: usize) -> u64 {
        Self::rings(queue)[0]
    }

    /// Makes `head` available.
    pub(crate) fn offer(&mut self, queue: usize, head: u16) {
        let ring = Self::rings(queue)[1];
        let slot = u64::from(self.avail[queue] % self.sizes[queue]);
        self.write(ring + 4 + slot * 2, &head.to_le_bytes());
        self.avail[queue] = self.avail[queue].wrapping_add(1);
        self.write(ring + 2, &self.avail[queue].to_le_bytes());
    }

    /// Sets the available index to whatever a hostile driver likes.
    pub(crate) fn set_avail_index(&mut self, queue: usize, index: u16) {
        self.avail[queue] = index;
        self.write(Self::rings(queue)[1] + 2, &index.to_le_bytes());
    }

    /// Builds and offers a chain of (address, length, writable) buffers; returns its head.
    pub(crate) fn add(&mut self, queue: usize, buffers: &[(u64, u32, bool)]) -> u16 {
        let head = self.next_descriptor[queue] % self.sizes[queue];
        for (index, &(address, length, writable)) in buffers.iter().enumerate() {
            let at = self.next_descriptor[queue] % self.sizes[queue];
            let next = (at + 1) % self.sizes[queue];
            let flags = if writable { WRITE } else { 0 } | if index + 1 < buffers.len() { NEXT } else { 0 };
            self.descriptor(Self::table(queue), at, (address, length, flags, next));
            self.next_descriptor[queue] = next;
        }
        self.offer(queue, head);
        head
    }

    /// The chains returned since the last look: head and written bytes.
    pub(crate) fn used(&mut self, queue: usize) -> Vec<(u16, u32)> {
        let ring = Self::rings(queue)[2];
        let index = u16::from_le_bytes(self.read(ring + 2, 2).try_into().unwrap());
        let mut done = Vec::new();
        while self.used[queue] != index {
            let at = ring + 4 + u64::from(self.used[queue] % self.sizes[queue]) * 8;
            let entry = self.read(at, 8);
            let head = u32::from_le_bytes(entry[..4].try_into().unwrap());
            done.push((u16::try_from(head).unwrap(), u32::from_le_bytes(entry[4..].try_into().unwrap())));
            self.used[queue] = self.used[queue].wrapping_add(1);
        }
        done
    }
}

/// Offers every kind of broken chain to `queue` of a device: it must come back each time, without a panic and without an endless loop.
pub(crate) fn hostile_chains(device: &mut dyn Device, queue: usize) {
    let sizes = device.queue_sizes();
    let count = sizes.len();
    type Build = fn(&mut Bench, usize);
    let cases: &[(&str, Build)] = &[
        ("a loop of one", |bench, queue| {
            bench.descriptor(Bench::table(queue), 0, (0x10_0000, 16, NEXT, 0));
            bench.offer(queue, 0);
        }),
        ("a loop of two, writable", |bench, queue| {
            bench.descriptor(Bench::table(queue), 0, (0x10_0000, 16, NEXT | WRITE, 1));
            bench.descriptor(Bench::table(queue), 1, (0x10_0000, 16, NEXT | WRITE, 0));
            bench.offer(queue, 0);
        }),
        ("an address past the end of memory", |bench, queue| {
            bench.add(queue, &[(0xffff_ffff_f000, 16, false), (0xffff_ffff_f000, 512, true)]);
        }),
        ("an address that overflows", |bench, queue| {
            bench.add(queue, &[(u64::MAX - 4, 512, false), (u64::MAX, 1, true)]);
        }),
        ("huge lengths", |bench, queue| {
            bench.add(queue, &[(0x10_0000, u32::MAX, false), (0x10_0000, u32::MAX, true), (0x10_0000, 1, true)]);
        }),
        ("zero lengths", |bench, queue| {
            bench.add(queue, &[(0x10_0000, 0, false), (0x10_0000, 0, true)]);
        }),
        ("zero writable", |bench, queue| {
            bench.add(queue, &[(0x10_0000, 0, true)]);
        }),
        ("a head outside the table", |bench, queue| bench.offer(queue, 0xfffe)),
        ("a next outside the table", |bench, queue| {
            bench.descriptor(Bench::table(queue), 0, (0x10_0000, 16, NEXT, 0xffff));
            bench.offer(queue, 0);
        }),
        ("an index far ahead", |bench, queue| bench.set_avail_index(queue, 0x8000)),
        ("an indirect table outside memory", |bench, queue| {
            bench.descriptor(Bench::table(queue), 0, (0xffff_ffff_0000, 32, INDIRECT, 0));
            bench.offer(queue, 0);
        }),
        ("an indirect table of half a descriptor", |bench, queue| {
            bench.descriptor(Bench::table(queue), 0, (0x10_0000, 8, INDIRECT, 0));
            bench.offer(queue, 0);
        }),
        ("an indirect table that points to itself", |bench, queue| {
            bench.descriptor(Bench::table(queue), 0, (0x20_0000, 32, INDIRECT, 0));
            bench.descriptor(0x20_0000, 0, (0x20_0000, 32, INDIRECT | NEXT, 1));
            bench.descriptor(0x20_0000, 1, (0x20_0000, 32, WRITE | NEXT, 0));
            bench.offer(queue, 0);
        }),
    ];
    for (name, build) in cases {
        let mut bench = Bench::new(&sizes);
        build(&mut bench, queue);
        bench.with(|context| {
            device.activate(0, context);
            (0..count).for_each(|queue| device.serve(queue, context));
            (0..device.descriptors().len()).for_each(|descriptor| device.ready(descriptor, context));
            device.reset();
        });
        assert!(bench.used(queue).len() <= 1, "{name}: more chains came back than were offered");
    }
}
