//! Shows the registers of a function as its driver sees them, from negotiation to a reset, right and wrong.

use super::*;
use crate::kvm::Vm;
use crate::memory;
use crate::virtio::rng::Rng;
use basalt_tests::require;
use basalt_tests::skip::Need;
use kvm_ioctls::Kvm;
use std::fs::File;
use vm_memory::{Bytes, GuestAddress};

const BAR: u32 = 0xc000_0000;
const DESCRIPTORS: u64 = 0x1_0000;
const AVAILABLE: u64 = 0x1_1000;
const USED: u64 = 0x1_2000;
const DATA: u64 = 0x2_0000;
const NOWHERE: u64 = 0x7fff_ffff_f000;
const VERSION_1_HALF: u32 = 1;

struct Driver {
    function: VirtioPci,
    ram: Arc<Ram>,
}

impl Driver {
    /// An entropy device: one queue.
    fn new() -> Self {
        let ram = memory::map(16).unwrap();
        let vm = Arc::new(Vm::new(&Kvm::new().unwrap(), Arc::clone(&ram)).unwrap());
        let rng = Box::new(Rng::new(Arc::new(File::open("/dev/urandom").unwrap())));
        Self { function: VirtioPci::new("rng", rng, BAR, &ram, &vm).unwrap(), ram }
    }

    fn get<const BYTES: usize>(&mut self, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        self.function.read_bar(offset, &mut bytes[..BYTES]);
        u64::from_le_bytes(bytes)
    }

    fn set<const BYTES: usize>(&mut self, offset: u64, value: u64) {
        self.function.write_bar(offset, &value.to_le_bytes()[..BYTES]);
    }

    fn status(&mut self) -> u64 {
        self.get::<1>(0x14)
    }

    /// Accepts the upper half of the features and says so; whether that was taken.
    fn negotiate(&mut self, upper: u32) -> bool {
        self.set::<1>(0x14, 3);
        self.set::<4>(0x08, 1);
        self.set::<4>(0x0c, u64::from(upper));
        self.set::<1>(0x14, 3 | 8);
        self.status() & 8 != 0
    }

    fn place(&mut self, rings: [u64; 3]) {
        self.set::<2>(0x16, 0);
        for (register, address) in [0x20, 0x28, 0x30].into_iter().zip(rings) {
            self.set::<4>(register, address & 0xffff_ffff);
            self.set::<4>(register + 4, address >> 32);
        }
        self.set::<2>(0x1c, 1);
    }

    fn go_live(&mut self, rings: [u64; 3]) {
        assert!(self.negotiate(VERSION_1_HALF));
        self.place(rings);
        self.set::<1>(0x14, 3 | 8 | 4);
    }

    /// Offers 16 bytes to be filled, rings the bell, and returns how many were.
    fn ask(&mut self) -> u32 {
        self.ram.write_obj(DATA, GuestAddress(DESCRIPTORS)).unwrap();
        self.ram.write_obj(16_u32, GuestAddress(DESCRIPTORS + 8)).unwrap();
        self.ram.write_obj(2_u16, GuestAddress(DESCRIPTORS + 12)).unwrap();
        self.ram.write_obj(0_u16, GuestAddress(AVAILABLE + 4)).unwrap();
        self.ram.write_obj(1_u16, GuestAddress(AVAILABLE + 2)).unwrap();
        self.set::<2>(NOTIFY, 0);
        self.function.notified(0);
        let index: u16 = self.ram.read_obj(GuestAddress(USED + 2)).unwrap();
        if index == 0 { 0 } else { self.ram.read_obj(GuestAddress(USED + 8)).unwrap() }
    }
}

#[test]
fn features_are_offered_in_halves_and_only_those_are_taken() {
    require!(Need::Kvm);
    let mut driver = Driver::new();
    for (half, wanted) in [(0, 3 << 28), (1, 1), (2, 0), (u64::from(u32::MAX), 0)] {
        driver.set::<4>(0x00, half);
        assert_eq!(driver.get::<4>(0x04), wanted, "half {half}");
    }
    assert!(!driver.negotiate(0), "a driver of before version 1");
    driver.set::<1>(0x14, 0);
    assert!(!driver.negotiate(VERSION_1_HALF | 1 << 30), "a feature that was not offered");
    driver.set::<1>(0x14, 0);
    assert!(driver.negotiate(VERSION_1_HALF));
    driver.set::<4>(0x0c, 0);
    assert_eq!(driver.get::<4>(0x0c), 1, "what was agreed stays");
}

#[test]
fn a_live_device_serves_and_one_that_is_not_does_not() {
    require!(Need::Kvm);
    let rings = [DESCRIPTORS, AVAILABLE, USED];
    let mut driver = Driver::new();
    assert_eq!(driver.ask(), 0, "before anything");
    driver.place(rings);
    driver.set::<1>(0x14, 3 | 4);
    assert_eq!((driver.status() & 4, driver.ask()), (0, 0), "ready without having agreed on features");
    driver.set::<1>(0x14, 0);
    driver.go_live(rings);
    assert_eq!((driver.status(), driver.ask()), (15, 16));
    assert_ne!(driver.ram.read_obj::<u128>(GuestAddress(DATA)).unwrap(), 0);
    driver.set::<1>(0x14, 0);
    driver.ram.write_obj(0_u16, GuestAddress(USED + 2)).unwrap();
    assert_eq!((driver.status(), driver.ask()), (0, 0), "after a reset");
}

#[test]
fn an_enabled_queue_stays_where_it_is() {
    require!(Need::Kvm);
    let mut driver = Driver::new();
    driver.place([DESCRIPTORS, AVAILABLE, USED]);
    driver.place([NOWHERE; 3]);
    driver.set::<2>(0x18, 2);
    assert_eq!((driver.get::<4>(0x20), driver.get::<4>(0x24), driver.get::<2>(0x18)), (DESCRIPTORS, 0, 64));
    driver.set::<2>(0x16, 1);
    assert_eq!((driver.get::<2>(0x18), driver.get::<2>(0x1c)), (0, 0), "there is no second queue");
}

/// virtio 1.2 §2.1.1 and §2.1.2: the bit in the status, a change of configuration, and an interrupt for it; a reset mends it.
#[test]
fn rings_outside_of_memory_make_the_device_ask_for_a_reset() {
    require!(Need::Kvm);
    let good = [DESCRIPTORS, AVAILABLE, USED];
    for bad in 0..3 {
        let mut driver = Driver::new();
        driver.set::<2>(0x10, 0);
        assert_eq!(driver.get::<2>(0x10), 0);
        let mut rings = good;
        rings[bad] = NOWHERE;
        let generation = driver.get::<1>(0x15);
        driver.go_live(rings);
        assert_eq!(driver.status() & 0x40, 0x40, "ring {bad}");
        assert_eq!(driver.get::<1>(0x15), generation + 1);
        assert_eq!(driver.get::<1>(0x5000) & 1, 1, "the configuration's vector is pending, for it is masked");
        assert_eq!((driver.get::<1>(0x1000), driver.get::<1>(0x1000)), (2, 0), "told once");
        driver.set::<1>(0x14, 3 | 8 | 4);
        assert_eq!((driver.status() & 0x40, driver.ask()), (0x40, 0), "only a reset mends it");
        driver.set::<1>(0x14, 0);
        driver.go_live(good);
        assert_eq!((driver.status(), driver.ask()), (15, 16));
    }
}

/// An index that no driver could have come to, met while the device works.
#[test]
fn a_ring_that_breaks_later_makes_the_device_ask_for_a_reset() {
    require!(Need::Kvm);
    let mut driver = Driver::new();
    driver.go_live([DESCRIPTORS, AVAILABLE, USED]);
    driver.ram.write_obj(0x7fff_u16, GuestAddress(AVAILABLE + 2)).unwrap();
    driver.function.notified(0);
    assert_eq!(driver.status() & 0x40, 0x40);
}

#[test]
fn a_vector_that_does_not_exist_reads_as_none() {
    require!(Need::Kvm);
    let mut driver = Driver::new();
    for (register, vector, kept) in [(0x10, 1, 1), (0x10, 2, 0xffff), (0x1a, 0, 0), (0x1a, 0xfffe, 0xffff)] {
        driver.set::<2>(register, vector);
        assert_eq!(driver.get::<2>(register), kept, "{register:#x}");
    }
}

/// Reads and writes of every width all over the function's space, numbers from a fixed sequence: nothing panics, and after a reset it works.
#[test]
fn any_access_is_survived() {
    require!(Need::Kvm);
    let mut driver = Driver::new();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 16
    };
    for _ in 0..50_000 {
        let (offset, width, value) = (next() % u64::from(BAR_BYTES), 1 << (next() % 4), next());
        let width = usize::try_from(width).unwrap();
        match next() % 4 {
            0 => driver.function.read_bar(offset, &mut [0; 8][..width]),
            1 => driver
                .function
                .write_config(u16::try_from(offset % 4096).unwrap(), &value.to_le_bytes()[..width.min(4)]),
            _ => driver.function.write_bar(offset, &value.to_le_bytes()[..width]),
        }
        if value % 16 == 0 {
            driver.function.notified(usize::try_from(value % 3).unwrap());
        }
    }
    driver.set::<1>(0x14, 0);
    driver.ram.write_obj(0_u64, GuestAddress(AVAILABLE)).unwrap();
    driver.ram.write_obj(0_u64, GuestAddress(USED)).unwrap();
    driver.go_live([DESCRIPTORS, AVAILABLE, USED]);
    assert_eq!((driver.status(), driver.ask()), (15, 16));
}
