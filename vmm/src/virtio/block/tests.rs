//! Shows the device on rings in memory and a volume in a file: what it does for requests, what it says of wrong ones, what its driver reads of it.

use super::*;
use crate::virtio::testing::{Bench, hostile_chains};
use basalt_tests::require;
use basalt_tests::skip::Need;
use storage::source::{FileSource, OpenOptions, Source};

/// Type, sector, data buffers, expected status.
type Row<'a> = (u32, u64, &'a [(u64, u32, bool)], u8);

const HEADER: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;
const STATUS: u64 = 0x30_0000;

struct Disk {
    path: std::path::PathBuf,
    volume: SharedVolume,
}

impl Disk {
    fn new(name: &str, read_only: bool) -> Self {
        let path = std::env::temp_dir().join(format!("vmm-block-{}-{name}.raw", std::process::id()));
        std::fs::write(&path, (0..128_u8).flat_map(|sector| [sector; 512]).collect::<Vec<_>>()).unwrap();
        let source = Source::File(FileSource { path: path.clone(), direct: false });
        let options = OpenOptions { read_only, in_flight_max: 4, ..OpenOptions::default() };
        Self { path, volume: Arc::new(Mutex::new(storage::source::open(&source, &options).unwrap())) }
    }

    fn block(&self) -> Block {
        Block::new(&self.volume, 1, "disk-serial-number-x")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        std::fs::remove_file(&self.path).ok();
    }
}

/// Serves the ring until `count` chains came back.
fn run(bench: &mut Bench, block: &mut Block, count: usize) -> Vec<(u16, u32)> {
    let mut used = Vec::new();
    for _ in 0..1000 {
        bench.with(|context| block.serve(0, context));
        used.extend(bench.used(0));
        if used.len() >= count {
            break;
        }
        let volume = Arc::clone(&block.volume);
        wait_for_input(lock(&volume).completion_fd());
        bench.with(|context| block.ready(0, context));
        used.extend(bench.used(0));
    }
    assert_eq!(used.len(), count);
    used
}

fn request(bench: &mut Bench, kind: u32, sector: u64, data: &[(u64, u32, bool)]) {
    let mut header = kind.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    bench.write(HEADER, &header);
    bench.write(STATUS, &[0xee]);
    let mut chain = vec![(HEADER, 16, false)];
    chain.extend(data);
    chain.push((STATUS, 1, true));
    bench.add(0, &chain);
}

fn status(bench: &Bench) -> u8 {
    bench.read(STATUS, 1)[0]
}

#[test]
fn reads_writes_and_flushes_reach_the_volume() {
    require!(Need::Kvm);
    let disk = Disk::new("rw", false);
    let (mut bench, mut block) = (Bench::new(&[128]), disk.block());
    request(&mut bench, 0, 3, &[(DATA, 512, true), (DATA + 4096, 1024, true)]);
    assert_eq!(run(&mut bench, &mut block, 1), vec![(0, 1537)]);
    assert_eq!((status(&bench), bench.read(DATA, 512)), (0, vec![3; 512]));
    assert_eq!(bench.read(DATA + 4096, 1024), [vec![4; 512], vec![5; 512]].concat());

    bench.write(DATA, &[0x77; 512]);
    request(&mut bench, 1, 9, &[(DATA, 512, false)]);
    assert_eq!(run(&mut bench, &mut block, 1)[0].1, 1);
    request(&mut bench, 4, 0, &[]);
    run(&mut bench, &mut block, 1);
    assert_eq!(status(&bench), 0);
    let stored = std::fs::read(&disk.path).unwrap();
    assert_eq!(&stored[9 * 512..10 * 512], &[0x77; 512]);
    assert_eq!(stored[8 * 512], 8);
}

#[test]
fn the_serial_number_is_told() {
    require!(Need::Kvm);
    let disk = Disk::new("id", false);
    let (mut bench, mut block) = (Bench::new(&[128]), disk.block());
    request(&mut bench, 8, 0, &[(DATA, 20, true)]);
    run(&mut bench, &mut block, 1);
    assert_eq!((status(&bench), bench.read(DATA, 20)), (0, b"disk-serial-number-x".to_vec()));
}

#[test]
fn zeroes_are_written_and_bad_ranges_refused() {
    require!(Need::Kvm);
    let disk = Disk::new("zero", false);
    let (mut bench, mut block) = (Bench::new(&[128]), disk.block());
    let mut range = |sector: u64, sectors: u32, flags: u32, kind| {
        bench.write(DATA, &sector.to_le_bytes());
        bench.write(DATA + 8, &sectors.to_le_bytes());
        bench.write(DATA + 12, &flags.to_le_bytes());
        request(&mut bench, kind, 0, &[(DATA, 16, false)]);
        run(&mut bench, &mut block, 1);
        status(&bench)
    };
    assert_eq!(range(2, 2, 0, 13), 0);
    assert_eq!(range(4, 2, 0, 11), 0);
    assert_eq!(range(127, 2, 0, 13), 1);
    assert_eq!(range(u64::MAX, 1, 0, 13), 1);
    assert_eq!(range(0, u32::MAX, 0, 11), 1);
    assert_eq!(range(0, 1, 2, 11), 1);
    let stored = std::fs::read(&disk.path).unwrap();
    assert_eq!((stored[1023], stored[1024], stored[2047], stored[6 * 512]), (1, 0, 0, 6));
}

#[test]
fn what_cannot_be_done_gets_an_error_status() {
    require!(Need::Kvm);
    let disk = Disk::new("bad", true);
    let (mut bench, mut block) = (Bench::new(&[128]), disk.block());
    let rows: [Row<'_>; 8] = [
        (99, 0, &[], 2),
        (0, 128, &[(DATA, 512, true)], 1),
        (0, u64::MAX, &[(DATA, 512, true)], 1),
        (0, 0, &[(DATA, 100, true)], 1),
        (0, 0, &[(u64::MAX - 511, 512, true)], 1),
        (0, 0, &[(0x8000_0000, 0x8000_0000, true)], 1),
        (1, 0, &[(DATA, 512, false)], 1),
        (13, 0, &[(DATA, 16, false)], 1),
    ];
    for (kind, sector, data, expected) in rows {
        request(&mut bench, kind, sector, data);
        run(&mut bench, &mut block, 1);
        assert_eq!(status(&bench), expected, "type {kind} sector {sector} {data:x?}");
    }
    assert_eq!(block.counters()["error_requests"], 8);
}

#[test]
fn a_header_in_pieces_is_read_and_a_readable_part_after_a_writable_is_refused() {
    require!(Need::Kvm);
    let disk = Disk::new("pieces", false);
    let (mut bench, mut block) = (Bench::new(&[128]), disk.block());
    let mut header = vec![0; 8];
    header.extend(7_u64.to_le_bytes());
    bench.write(HEADER, &header);
    bench.add(0, &[(HEADER, 5, false), (HEADER + 5, 11, false), (DATA, 513, true)]);
    assert_eq!(run(&mut bench, &mut block, 1)[0].1, 513);
    assert_eq!(bench.read(DATA, 513), [vec![7; 512], vec![0]].concat());
    bench.add(0, &[(DATA, 512, true), (HEADER, 16, false), (STATUS, 1, true)]);
    run(&mut bench, &mut block, 1);
    assert_eq!(status(&bench), 1);
}

/// An indirect table that claims more descriptors than a system call takes: the chain comes back, and nothing is written.
#[test]
fn a_chain_without_end_is_given_back() {
    require!(Need::Kvm);
    let disk = Disk::new("endless", false);
    let (mut bench, mut block) = (Bench::new(&[128]), disk.block());
    for at in 0..2000 {
        bench.descriptor(0x40_0000, at, (DATA, 512, 1 | 2, at + 1));
    }
    bench.write(HEADER, &[0; 16]);
    bench.descriptor(0x40_0000, 0, (HEADER, 16, 1, 1));
    bench.descriptor(Bench::table(0), 0, (0x40_0000, 2000 * 16, 4, 0));
    bench.offer(0, 0);
    assert_eq!(run(&mut bench, &mut block, 1), [(0, 0)]);
    assert_eq!(block.counters()["error_requests"], 1);
}

/// More requests than the volume takes at once: the rest waits in the ring and all come back.
#[test]
fn more_requests_than_fit_are_served_in_turn() {
    require!(Need::Kvm);
    let disk = Disk::new("many", false);
    let (mut bench, mut block) = (Bench::new(&[128]), disk.block());
    for _ in 0..20 {
        request(&mut bench, 0, 1, &[(DATA, 512, true)]);
    }
    assert_eq!(run(&mut bench, &mut block, 20).len(), 20);
}

#[test]
fn a_reset_waits_for_what_is_in_flight() {
    require!(Need::Kvm);
    let disk = Disk::new("reset", false);
    let (mut bench, mut block) = (Bench::new(&[128]), disk.block());
    for _ in 0..4 {
        request(&mut bench, 0, 1, &[(DATA, 512, true)]);
    }
    bench.with(|context| block.serve(0, context));
    block.reset();
    assert_eq!((lock(&disk.volume).in_flight(), block.free.len()), (0, 4));
}

#[test]
fn hostile_rings_are_survived() {
    require!(Need::Kvm);
    let disk = Disk::new("hostile", false);
    hostile_chains(&mut disk.block(), 0);
}

/// A request that a reset did not wait for ends after it: the device must not take it for one of its own.
#[test]
fn what_an_earlier_life_left_behind_is_nobodys() {
    require!(Need::Kvm);
    let disk = Disk::new("epoch", false);
    let (mut bench, mut block) = (Bench::new(&[128]), disk.block());
    request(&mut bench, 0, 1, &[(DATA, 512, true)]);
    bench.with(|context| block.serve(0, context));
    let mut next = disk.block();
    let late = block.tag(0);
    assert_eq!((block.slot(late), next.slot(late)), (Some(0), None));
    wait_for_input(lock(&disk.volume).completion_fd());
    bench.with(|context| next.ready(0, context));
    assert!(bench.used(0).is_empty());
    assert_eq!(lock(&disk.volume).in_flight(), 0);
}

#[test]
fn the_driver_is_told_what_the_volume_can() {
    let limits = |read_only, queues| Limits {
        size_bytes: 1 << 30,
        block_bytes: 4096,
        discard_granularity_bytes: 64 << 10,
        read_only,
        queues,
    };
    let config = limits(false, 4).config();
    let word = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
    assert_eq!(u64::from_le_bytes(config[..8].try_into().unwrap()), 1 << 21);
    assert_eq!((word(12), word(20), config[34]), (126, 4096, 4));
    assert_eq!((word(36), word(40), word(44)), (1 << 21, 1, 128), "longest discard, one at a time, aligned to 64 KiB");
    assert_eq!((word(48), word(52), config[56]), (1 << 21, 1, 1));
    let bit = |limits: Limits, bit: u32| limits.features() >> bit & 1;
    assert_eq!([5, 12, 13, 14].map(|number| bit(limits(false, 1), number)), [0, 0, 1, 1]);
    assert_eq!([5, 12, 13, 14].map(|number| bit(limits(true, 2), number)), [1, 1, 0, 0]);
}
