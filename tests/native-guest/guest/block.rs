//! The block device (virtio 1.2 §5.2): patterns written, read back and held against what they must be.

use crate::machine::{dma, read, ticks};
use crate::pci::Function;
use crate::virtio::Device;
use crate::virtqueue::{Piece, Queue};
use crate::{Outcome, println};

const SECTOR: usize = 512;
/// Sectors in one request.
const REQUEST_SECTORS: u64 = 64;
const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
/// Feature: the device refuses writes.
const FEATURE_READ_ONLY: u64 = 1 << 5;
/// Feature: the device takes flush requests.
const FEATURE_FLUSH: u64 = 1 << 9;
/// Feature: the device has several queues.
const FEATURE_QUEUES: u64 = 1 << 12;
/// Feature: the device takes discard requests.
const FEATURE_DISCARD: u64 = 1 << 13;
/// Feature: the device takes requests to write zeroes.
const FEATURE_WRITE_ZEROES: u64 = 1 << 14;
/// All that this driver knows.
const FEATURES: u64 = FEATURE_READ_ONLY | FEATURE_FLUSH | FEATURE_QUEUES | FEATURE_DISCARD | FEATURE_WRITE_ZEROES;
/// Where the configuration has the number of queues, and the sectors that a discard must be aligned to.
const CONFIG_QUEUES: u64 = 34;
const CONFIG_DISCARD_ALIGNMENT: u64 = 44;

/// A started block device.
pub struct Disk {
    queue: Queue,
    features: u64,
    sectors: u64,
    discard_alignment: u64,
    header: &'static mut [u8],
    status: &'static mut [u8],
    buffer: &'static mut [u8],
}

/// Runs one of the verbs that the crate's documentation lists.
pub fn run(function: Function, value: &str) -> Outcome {
    let mut words = value.split(':');
    let verb = words.next().unwrap_or_default();
    let mut number = || words.next().and_then(|word| word.parse::<u64>().ok()).ok_or("want a number after each colon");
    let device = Device::open(function)?;
    if verb == "queue" {
        let mut disk = Disk::start_on(&device, number()? as u16)?;
        let (seed, sectors) = (number()?, number()?);
        disk.write_pattern(seed, sectors)?;
        return disk.verify_pattern(seed, sectors);
    }
    let mut disk = Disk::start(&device)?;
    match verb {
        "wipe" => disk.wipe(number()?),
        "refused" => disk.refused(),
        "write" => disk.write_pattern(number()?, number()?),
        "verify" => disk.verify_pattern(number()?, number()?),
        "zero" => disk.zero(number()?),
        "bench" => disk.bench(number()?),
        _ => Err("unknown verb"),
    }
}

impl Disk {
    /// Negotiates, sets up one queue and starts.
    pub fn start(device: &Device) -> Result<Self, &'static str> {
        Self::start_on(device, 0)
    }

    /// As [`Disk::start`], with requests in queue `index`.
    fn start_on(device: &Device, index: u16) -> Result<Self, &'static str> {
        let features = device.negotiate(FEATURES)?;
        let queues = if features & FEATURE_QUEUES == 0 { 1 } else { read::<u16>(device.config + CONFIG_QUEUES) };
        if index >= queues {
            return Err("the device has fewer queues");
        }
        let queue = device.queue(index)?;
        let discard_alignment = u64::from(read::<u32>(device.config + CONFIG_DISCARD_ALIGNMENT));
        let sectors = read::<u64>(device.config);
        device.start();
        let buffer = dma(REQUEST_SECTORS as usize * SECTOR);
        Ok(Self { queue, features, sectors, discard_alignment, header: dma(16), status: dma(1), buffer })
    }

    /// One request over `self.buffer[..bytes]`, waited for.
    pub fn request(&mut self, kind: u32, sector: u64, bytes: usize) -> Outcome {
        self.header[..4].copy_from_slice(&kind.to_le_bytes());
        self.header[8..].copy_from_slice(&sector.to_le_bytes());
        self.status[0] = 0xff;
        let data = &mut self.buffer[..bytes];
        let body = if kind == READ { Piece::output(data) } else { Piece::input(data) };
        let (header, status) = (Piece::input(self.header), Piece::output(self.status));
        match bytes {
            0 => self.queue.submit(&[header, status]),
            _ => self.queue.submit(&[header, body, status]),
        };
        self.queue.wait()?;
        match read::<u8>(self.status.as_ptr() as u64) {
            0 => Ok(()),
            1 => Err("the device reports an I/O error"),
            2 => Err("the device does not support the request"),
            _ => Err("the device left no status"),
        }
    }

    /// Runs over sectors 0 to `sectors` in pieces of at most one request.
    fn pieces(&self, sectors: u64) -> Result<impl Iterator<Item = (u64, usize)> + use<>, &'static str> {
        if sectors > self.sectors {
            return Err("the disk is smaller than that");
        }
        Ok((0..sectors)
            .step_by(REQUEST_SECTORS as usize)
            .map(move |first| (first, (sectors - first).min(REQUEST_SECTORS) as usize * SECTOR)))
    }

    fn write_pattern(&mut self, seed: u64, sectors: u64) -> Outcome {
        for (first, bytes) in self.pieces(sectors)? {
            fill(&mut self.buffer[..bytes], seed, first);
            self.request(WRITE, first, bytes)?;
        }
        if self.features & FEATURE_FLUSH == 0 {
            return Err("the device takes no flush");
        }
        self.request(FLUSH, 0, 0)
    }

    fn verify_pattern(&mut self, seed: u64, sectors: u64) -> Outcome {
        for (first, bytes) in self.pieces(sectors)? {
            self.buffer[..bytes].fill(0);
            self.request(READ, first, bytes)?;
            let held = words(&self.buffer[..bytes]).enumerate().all(|(at, word)| word == pattern(seed, first, at));
            if !held {
                println!("sectors {first} to {} differ", first + (bytes / SECTOR) as u64);
                return Err("what was read is not what was written");
            }
        }
        Ok(())
    }

    /// Discards, which frees whole pieces only, and expects zeros.
    fn zero(&mut self, sectors: u64) -> Outcome {
        if self.features & FEATURE_DISCARD == 0 {
            return Err("the device takes no discard");
        }
        if !sectors.is_multiple_of(self.discard_alignment.max(1)) {
            println!("discards are in pieces of {} sectors", self.discard_alignment);
            return Err("the device would not discard all of it");
        }
        self.range(DISCARD, sectors)
    }

    /// Has zeros written, and expects them.
    fn wipe(&mut self, sectors: u64) -> Outcome {
        if self.features & FEATURE_WRITE_ZEROES == 0 {
            return Err("the device writes no zeroes");
        }
        self.range(WRITE_ZEROES, sectors)
    }

    fn range(&mut self, kind: u32, sectors: u64) -> Outcome {
        self.buffer[..8].copy_from_slice(&0u64.to_le_bytes());
        self.buffer[8..12].copy_from_slice(&(sectors as u32).to_le_bytes());
        self.buffer[12..16].fill(0);
        self.request(kind, 0, 16)?;
        for (first, bytes) in self.pieces(sectors)? {
            self.request(READ, first, bytes)?;
            if words(&self.buffer[..bytes]).any(|word| word != 0) {
                return Err("the sectors are not zero");
            }
        }
        Ok(())
    }

    /// Expects a device that says it is read-only, offers nothing that changes it, and refuses to be changed all the same.
    fn refused(&mut self) -> Outcome {
        if self.features & (FEATURE_READ_ONLY | FEATURE_DISCARD | FEATURE_WRITE_ZEROES) != FEATURE_READ_ONLY {
            return Err("the device does not say that it is read-only");
        }
        self.buffer[..SECTOR].fill(0x55);
        for (kind, bytes) in [(WRITE, SECTOR), (DISCARD, 16), (WRITE_ZEROES, 16)] {
            if self.request(kind, 0, bytes).is_ok() {
                return Err("the device takes a change");
            }
        }
        self.request(READ, 0, SECTOR)
    }

    fn bench(&mut self, reads: u64) -> Outcome {
        let blocks = self.sectors / 8;
        let start = ticks();
        for number in 0..reads {
            self.request(READ, mix(number) % blocks.max(1) * 8, 4096)?;
        }
        println!("blk {reads} reads, {} ticks each", (ticks() - start) / reads.max(1));
        Ok(())
    }
}

/// Fills a buffer with what sector `first` and its followers must hold.
pub fn fill(buffer: &mut [u8], seed: u64, first: u64) {
    for (at, word) in buffer.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&pattern(seed, first, at).to_le_bytes());
    }
}

fn words(buffer: &[u8]) -> impl Iterator<Item = u64> {
    buffer
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes([word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7]]))
}

/// The 64-bit word `at` words after the start of sector `first`: different in every place of the disk and for every seed.
fn pattern(seed: u64, first: u64, at: usize) -> u64 {
    mix(mix(seed) ^ (first * 64 + at as u64))
}

/// The finaliser of splitmix64 (Steele, Lea and Flood, 2014): each bit of the input changes about half of the output.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
