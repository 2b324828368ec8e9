//! The block device (virtio 1.2 §5.2): turns chains of descriptors into requests to a [`Volume`] and completions into used chains.
//!
//! A chain is parsed into a request by copying its header once; every length and address is checked before the volume sees it. A chain that is
//! wrong gets an error status where it has room for one, and goes back to the driver in any case. At most as many requests are in flight as the volume
//! takes; the rest wait in the ring.

use crate::memory::{self, Ram};
use crate::virtio::{Chain, Context, Counters, Device, Kind};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use storage::memory::GuestSlice;
use storage::volume::{self, Completion, Operation, SECTOR_BYTES, Volume};
use vm_memory::{Bytes, GuestAddress};

/// Entries of each request queue; also the most descriptors in one chain that is not indirect.
pub const QUEUE_SIZE: u16 = 128;
/// The most data buffers in a request: what fits the queue besides header and status.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// The most a discard or write-zeroes covers: 1 GiB, so that one request cannot keep the backend busy for long.
const RANGE_MAX_SECTORS: u32 = 1 << 21;
/// How long a reset waits for I/O in flight: longer than the volume's own limit for a request.
const RESET_WAIT: Duration = Duration::from_secs(70);

const HEADER_BYTES: usize = 16;
const RANGE_BYTES: usize = 16;
const ID_BYTES: usize = 20;

const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_MQ: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// How a request ended (§5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// What a request asks for (§5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Transfer(Operation),
    Flush,
    Range(Operation),
    GetId,
}

impl Ask {
    const fn from_type(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Transfer(Operation::Read),
            1 => Self::Transfer(Operation::Write),
            4 => Self::Flush,
            8 => Self::GetId,
            11 => Self::Range(Operation::Discard),
            13 => Self::Range(Operation::WriteZeroes),
            _ => return None,
        })
    }
}

type Buffer = (GuestAddress, u32);

/// A chain taken apart: what can be read after the header, what can be written before the status byte.
#[derive(Debug)]
struct Parsed {
    ask: Option<Ask>,
    sector: u64,
    readable: Vec<Buffer>,
    writable: Vec<Buffer>,
}

/// A chain's status byte, and the rest where the chain is sound.
#[derive(Debug)]
struct Request {
    status: Option<GuestAddress>,
    parsed: Option<Parsed>,
}

impl Request {
    fn parse(ram: &Ram, chain: Chain) -> Self {
        let (mut readable, mut writable, mut ordered): (Vec<Buffer>, Vec<Buffer>, bool) =
            (Vec::new(), Vec::new(), true);
        for descriptor in chain {
            let buffer = (descriptor.addr(), descriptor.len());
            if descriptor.is_write_only() {
                writable.push(buffer);
            } else {
                ordered &= writable.is_empty();
                readable.push(buffer);
            }
        }
        let status = take_last_byte(&mut writable);
        let mut header = [0; HEADER_BYTES];
        let sound = ordered && status.is_some() && take(ram, &mut readable, &mut header);
        let parsed = sound.then(|| {
            let [a, b, c, d, _, _, _, _, sector @ ..] = header;
            let ask = Ask::from_type(u32::from_le_bytes([a, b, c, d]));
            Parsed { ask, sector: u64::from_le_bytes(sector), readable, writable }
        });
        Self { status, parsed }
    }
}

/// Cuts the last byte off a list of buffers.
fn take_last_byte(buffers: &mut Vec<Buffer>) -> Option<GuestAddress> {
    while buffers.last().is_some_and(|&(_, length)| length == 0) {
        buffers.pop();
    }
    let (address, length) = buffers.last_mut()?;
    *length -= 1;
    address.0.checked_add(u64::from(*length)).map(GuestAddress)
}

/// Moves the first bytes of a list of buffers to `bytes`; false when there are fewer or they are not RAM.
fn take(ram: &Ram, buffers: &mut [Buffer], bytes: &mut [u8]) -> bool {
    let mut done = 0;
    for (address, length) in buffers {
        let count = usize::try_from(*length).unwrap_or(usize::MAX).min(bytes.len() - done);
        if ram.read_slice(&mut bytes[done..done + count], *address).is_err() {
            return false;
        }
        done += count;
        // `count` is at most `length`, which was 32 bits.
        let cut = u32::try_from(count).unwrap_or(u32::MAX);
        *length -= cut;
        let Some(after) = address.0.checked_add(u64::from(cut)) else { return false };
        *address = GuestAddress(after);
    }
    done == bytes.len()
}

/// A request the volume works on.
#[derive(Debug)]
struct Pending {
    queue: usize,
    head: u16,
    status: GuestAddress,
    read_bytes: u32,
    // Keeps the buffers mapped until the completion is drained.
    _ram: Arc<Ram>,
}

/// Counters of one device.
#[derive(Debug, Default)]
struct Count {
    read_requests: u64,
    read_bytes: u64,
    write_requests: u64,
    write_bytes: u64,
    flush_requests: u64,
    other_requests: u64,
    error_requests: u64,
}

/// A volume shared between one machine and the next after a reset; only one at a time uses it.
pub type SharedVolume = Arc<Mutex<Volume>>;

/// The device.
#[derive(Debug)]
pub struct Block {
    volume: SharedVolume,
    completion_fd: RawFd,
    in_flight_max: usize,
    serial: [u8; ID_BYTES],
    size_bytes: u64,
    block_bytes: u32,
    read_only: bool,
    queues: u16,
    pending: Vec<Option<Pending>>,
    free: Vec<usize>,
    /// A bit for each queue that waits until a request completes.
    stalled: u32,
    completions: Vec<Completion>,
    count: Count,
}

impl Block {
    /// A device over `volume` with `queues` request queues and a serial number of at most 20 bytes.
    #[must_use]
    pub fn new(volume: &SharedVolume, queues: u16, serial: &str) -> Self {
        let open = lock(volume);
        let in_flight_max = usize::from(open.in_flight_max());
        let mut id = [0; ID_BYTES];
        let count = serial.len().min(ID_BYTES);
        id[..count].copy_from_slice(&serial.as_bytes()[..count]);
        Self {
            completion_fd: open.as_raw_fd(),
            in_flight_max,
            serial: id,
            size_bytes: open.size_bytes(),
            block_bytes: u32::try_from(open.block_bytes()).unwrap_or(4096),
            read_only: open.is_read_only(),
            queues,
            pending: (0..in_flight_max).map(|_| None).collect(),
            free: (0..in_flight_max).rev().collect(),
            stalled: 0,
            completions: Vec::new(),
            count: Count::default(),
            volume: Arc::clone(volume),
        }
    }

    /// Starts a request, or ends it at once with the status returned.
    fn start(
        &mut self,
        volume: &mut Volume,
        ram: &Arc<Ram>,
        request: Parsed,
        mut pending: Pending,
    ) -> Result<(), Ended> {
        let ended = |status| Err(Ended { status, written: 0 });
        let Some(offset_bytes) = request.sector.checked_mul(SECTOR_BYTES) else { return ended(Status::IoError) };
        let (operation, offset_bytes, length_bytes, buffers) = match request.ask {
            None => return ended(Status::Unsupported),
            Some(Ask::GetId) => return Err(self.get_id(ram, &request.writable)),
            Some(Ask::Flush) => (Operation::Flush, 0, 0, Vec::new()),
            Some(Ask::Range(operation)) => match self.range(ram, request.readable) {
                Some((offset, length)) => (operation, offset, length, Vec::new()),
                None => return ended(Status::IoError),
            },
            Some(Ask::Transfer(operation)) => {
                let list = if operation == Operation::Read { &request.writable } else { &request.readable };
                let Some(buffers) = slices(ram, list) else { return ended(Status::IoError) };
                (operation, offset_bytes, storage::memory::total_bytes(&buffers), buffers)
            }
        };
        self.account(operation, length_bytes);
        if length_bytes == 0 && operation != Operation::Flush {
            return ended(Status::Ok);
        }
        if operation == Operation::Read {
            let Ok(bytes) = u32::try_from(length_bytes) else { return ended(Status::IoError) };
            pending.read_bytes = bytes;
        }
        let Some(slot) = self.free.pop() else { return ended(Status::IoError) };
        self.pending[slot] = Some(pending);
        let request = volume::Request { operation, offset_bytes, length_bytes, buffers, tag: slot as u64 };
        volume.submit(request).map_err(|error| {
            tracing::debug!(%error, "a request of the guest was refused");
            self.pending[slot] = None;
            self.free.push(slot);
            Ended { status: Status::IoError, written: 0 }
        })
    }

    fn account(&mut self, operation: Operation, bytes: u64) {
        let count = &mut self.count;
        match operation {
            Operation::Read => {
                (count.read_requests, count.read_bytes) = (count.read_requests + 1, count.read_bytes + bytes)
            }
            Operation::Write => {
                (count.write_requests, count.write_bytes) = (count.write_requests + 1, count.write_bytes + bytes);
            }
            Operation::Flush => count.flush_requests += 1,
            Operation::Discard | Operation::WriteZeroes => count.other_requests += 1,
        }
    }

    /// The one range of a discard or write-zeroes request, bytes: offset and length.
    fn range(&self, ram: &Ram, mut readable: Vec<Buffer>) -> Option<(u64, u64)> {
        let mut bytes = [0; RANGE_BYTES];
        if !take(ram, &mut readable, &mut bytes) || readable.iter().any(|&(_, length)| length > 0) {
            return None;
        }
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, f0, f1, f2, f3] = bytes;
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        // Flag 0 is "unmap", which is advice; others are refused (§5.2.6.2).
        if sectors > RANGE_MAX_SECTORS || u32::from_le_bytes([f0, f1, f2, f3]) & !1 != 0 || self.read_only {
            return None;
        }
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        Some((sector.checked_mul(SECTOR_BYTES)?, u64::from(sectors) * SECTOR_BYTES))
    }

    fn get_id(&mut self, ram: &Ram, writable: &[Buffer]) -> Ended {
        self.count.other_requests += 1;
        let mut written = 0;
        for &(address, length) in writable {
            let count = usize::try_from(length).unwrap_or(usize::MAX).min(ID_BYTES - written);
            if ram.write_slice(&self.serial[written..written + count], address).is_err() {
                return Ended { status: Status::IoError, written: 0 };
            }
            written += count;
        }
        Ended { status: Status::Ok, written: u32::try_from(written).unwrap_or(0) }
    }

    /// Ends a request: writes its status and returns its chain.
    fn end(&mut self, context: &mut Context<'_>, queue: usize, head: u16, at: Option<GuestAddress>, ended: Ended) {
        if ended.status != Status::Ok {
            self.count.error_requests += 1;
        }
        let wrote = at.is_some_and(|at| context.ram.write_obj(ended.status as u8, at).is_ok());
        context.finish(queue, head, if wrote { ended.written.saturating_add(1) } else { 0 });
    }

    /// Returns what the volume finished, then takes up queues that waited for that.
    fn complete(&mut self, context: &mut Context<'_>) {
        let mut completions = std::mem::take(&mut self.completions);
        lock(&self.volume).drain(&mut completions);
        let mut queues = 0_u32;
        for completion in completions.drain(..) {
            let slot = usize::try_from(completion.tag).unwrap_or(usize::MAX);
            let Some(pending) = self.pending.get_mut(slot).and_then(Option::take) else { continue };
            self.free.push(slot);
            queues |= 1 << pending.queue;
            let ended = match completion.result {
                Ok(()) => Ended { status: Status::Ok, written: pending.read_bytes },
                Err(fault) => {
                    tracing::warn!(%fault, "a request to the volume failed");
                    Ended { status: Status::IoError, written: 0 }
                }
            };
            self.end(context, pending.queue, pending.head, Some(pending.status), ended);
        }
        self.completions = completions;
        for queue in (0..usize::from(self.queues)).filter(|queue| queues & 1 << queue != 0) {
            context.signal(queue);
        }
        let stalled = std::mem::take(&mut self.stalled);
        for queue in (0..usize::from(self.queues)).filter(|queue| stalled & 1 << queue != 0) {
            context.call_again(queue);
        }
    }
}

/// How a request ended, and how many bytes of its data buffers were written.
#[derive(Debug)]
struct Ended {
    status: Status,
    written: u32,
}

fn lock(volume: &Mutex<Volume>) -> MutexGuard<'_, Volume> {
    volume.lock().unwrap_or_else(PoisonError::into_inner)
}

fn slices(ram: &Arc<Ram>, buffers: &[Buffer]) -> Option<Vec<GuestSlice>> {
    let mut slices = Vec::with_capacity(buffers.len());
    for &(address, length) in buffers.iter().filter(|&&(_, length)| length > 0) {
        // SAFETY: `Pending` holds `ram` until the completion of the request is drained, and a reset drains or leaks what is pending.
        if !unsafe { memory::append_slices(ram, address, length, &mut slices) } {
            return None;
        }
    }
    Some(slices)
}

impl Device for Block {
    fn kind(&self) -> Kind {
        Kind::Block
    }

    fn features(&self) -> u64 {
        let writing = if self.read_only { F_RO } else { F_DISCARD | F_WRITE_ZEROES };
        F_SEG_MAX | F_BLK_SIZE | F_FLUSH | writing | if self.queues > 1 { F_MQ } else { 0 }
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; usize::from(self.queues)]
    }

    /// `struct virtio_blk_config` (§5.2.4), 60 bytes.
    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; 60];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        let block_sectors = self.block_bytes / 512;
        put(0, &(self.size_bytes / SECTOR_BYTES).to_le_bytes());
        put(12, &SEGMENTS_MAX.to_le_bytes());
        put(20, &self.block_bytes.to_le_bytes());
        put(34, &self.queues.to_le_bytes());
        put(36, &RANGE_MAX_SECTORS.to_le_bytes());
        put(40, &1_u32.to_le_bytes());
        put(44, &block_sectors.to_le_bytes());
        put(48, &RANGE_MAX_SECTORS.to_le_bytes());
        put(52, &1_u32.to_le_bytes());
        put(56, &[1]);
        config
    }

    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.completion_fd]
    }

    fn activate(&mut self, _features: u64, context: &mut Context<'_>) {
        (0..usize::from(self.queues)).for_each(|queue| context.call_again(queue));
    }

    fn serve(&mut self, queue: usize, context: &mut Context<'_>) {
        let volume = Arc::clone(&self.volume);
        let mut volume = lock(&volume);
        let ram = Arc::clone(context.ram);
        let (mut ended_some, mut submitted) = (false, false);
        for _ in 0..QUEUE_SIZE {
            if self.free.is_empty() {
                self.stalled |= 1 << queue;
                break;
            }
            let Some(chain) = context.next(queue) else { break };
            let head = chain.head_index();
            let Request { status, parsed } = Request::parse(&ram, chain);
            let outcome = match (status, parsed) {
                (Some(status), Some(parsed)) => {
                    let pending = Pending { queue, head, status, read_bytes: 0, _ram: Arc::clone(&ram) };
                    self.start(&mut volume, &ram, parsed, pending)
                }
                _ => Err(Ended { status: Status::IoError, written: 0 }),
            };
            match outcome {
                Ok(()) => submitted = true,
                Err(ended) => {
                    ended_some = true;
                    self.end(context, queue, head, status, ended);
                }
            }
        }
        if submitted && let Err(error) = volume.kick() {
            tracing::warn!(%error, "the volume did not start what was submitted");
        }
        if ended_some {
            context.signal(queue);
        }
        if self.stalled & 1 << queue == 0 && context.rearm(queue) {
            context.call_again(queue);
        }
    }

    fn ready(&mut self, _descriptor: usize, context: &mut Context<'_>) {
        self.complete(context);
    }

    fn reset(&mut self) {
        let end = Instant::now() + RESET_WAIT;
        let mut volume = lock(&self.volume);
        while volume.in_flight() > 0 && Instant::now() < end {
            if let Err(error) = volume.kick() {
                tracing::warn!(%error, "the volume did not start what was submitted");
            }
            wait_for_input(volume.completion_fd());
            volume.drain(&mut self.completions);
            self.completions.clear();
        }
        if volume.in_flight() > 0 {
            // The buffers must stay mapped for as long as the backend may use them: their memory is given up for good.
            tracing::error!(in_flight = volume.in_flight(), "a reset did not wait any longer for the volume");
            self.pending.iter_mut().filter_map(Option::take).for_each(std::mem::forget);
            return;
        }
        drop(volume);
        self.pending.fill_with(|| None);
        self.free = (0..self.in_flight_max).rev().collect();
        self.stalled = 0;
    }

    fn counters(&self) -> Counters {
        let count = &self.count;
        [
            ("read_requests", count.read_requests),
            ("read_bytes", count.read_bytes),
            ("write_requests", count.write_requests),
            ("write_bytes", count.write_bytes),
            ("flush_requests", count.flush_requests),
            ("other_requests", count.other_requests),
            ("error_requests", count.error_requests),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}

/// Waits until `fd` has input, a second at most.
fn wait_for_input(fd: BorrowedFd<'_>) {
    if let Err(error) = poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::from(1000_u16)) {
        tracing::debug!(%error, "waiting for the volume was cut short");
    }
}

#[cfg(test)]
mod tests {
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
}
