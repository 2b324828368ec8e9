//! Shows what a flow costs on its way to the switch and back, in allocations and octets, so that a change for the worse is seen.
//!
//! How: an allocator that counts, and a flow as a pipeline has them; counts do not depend on the machine.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

use openflow::{
    flow::{Action, Field, Flow, Match},
    wire::{self, FlowMod, Message},
};

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call goes on to the system's allocator as it came; counting touches no memory that is given out.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises about the layout are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the memory came from the system's allocator with this layout, as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const FLOWS: u32 = 100_000;
/// What was measured, as the ratchet: the buffer.
const ENCODE_ALLOCATIONS_MAX: usize = 1;
/// What was measured, as the ratchet: the match's fields, the applied actions, the instructions after them, and one growth.
const DECODE_ALLOCATIONS_MAX: usize = 4;
/// What the test harness's own threads may allocate meanwhile.
const SLACK: usize = 1000;

fn flow(n: u32) -> Message {
    let matching =
        Match::new().tcp().with(Field::Reg3, n % 7).with(Field::Ipv4Dst, 0x0a00_0000 + n).with(Field::TcpDst, 80);
    let actions = vec![Action::set(Field::Reg2, n), Action::DecTtl, Action::GotoTable(20)];
    Message::FlowMod(FlowMod::add(Flow::new(10, 100, matching, actions).with_cookie(n.into())))
}

#[test]
fn a_flow_costs_few_allocations() {
    let (mut encoded, mut decoded, mut octets_all) = (0, 0, 0);
    for n in 0..FLOWS {
        let message = flow(n);
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        let octets = wire::encode(&message, n).expect("has a wire form");
        let between = ALLOCATIONS.load(Ordering::Relaxed);
        let read = wire::decode(&octets).expect("was written by us");
        encoded += between - before;
        decoded += ALLOCATIONS.load(Ordering::Relaxed) - between;
        octets_all += octets.len();
        assert_eq!(read.1, message);
    }
    let count = usize::try_from(FLOWS).expect("fits");
    println!(
        "{FLOWS} flow_mods: {} octets, {encoded} allocations to encode and {decoded} to decode (each, in thousandths: {} and {})",
        octets_all,
        encoded * 1000 / count,
        decoded * 1000 / count
    );
    assert!(encoded <= ENCODE_ALLOCATIONS_MAX * count + SLACK, "{encoded} allocations to encode {count} flows");
    assert!(decoded <= DECODE_ALLOCATIONS_MAX * count + SLACK, "{decoded} allocations to decode {count} flows");
}
