//! What the device tells its driver of itself: feature bits and configuration space (virtio 1.2 §5.2.3, §5.2.4).

use super::QUEUE_SIZE;
use super::request::RANGE_MAX_SECTORS;
use storage::volume::{SECTOR_BYTES, Volume};

/// The most data buffers in a request: what fits the queue besides header and status.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Bytes of `struct virtio_blk_config` up to its last field that is offered.
const CONFIG_BYTES: usize = 60;

const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_MQ: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// What the volume can, as it was when the device was made.
#[derive(Debug)]
pub(super) struct Limits {
    pub(super) size_bytes: u64,
    pub(super) block_bytes: u32,
    pub(super) discard_granularity_bytes: u64,
    pub(super) read_only: bool,
    pub(super) queues: u16,
}

impl Limits {
    pub(super) fn of(volume: &Volume, queues: u16) -> Self {
        Self {
            size_bytes: volume.size_bytes(),
            block_bytes: u32::try_from(volume.block_bytes()).unwrap_or(4096),
            discard_granularity_bytes: volume.discard_granularity_bytes(),
            read_only: volume.is_read_only(),
            queues,
        }
    }

    pub(super) const fn features(&self) -> u64 {
        let writing = if self.read_only { F_RO } else { F_DISCARD | F_WRITE_ZEROES };
        F_SEG_MAX | F_BLK_SIZE | F_FLUSH | writing | if self.queues > 1 { F_MQ } else { 0 }
    }

    /// `struct virtio_blk_config`.
    pub(super) fn config(&self) -> Vec<u8> {
        let mut config = vec![0; CONFIG_BYTES];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        let granularity_sectors = u32::try_from(self.discard_granularity_bytes / SECTOR_BYTES).unwrap_or(1).max(1);
        put(0, &(self.size_bytes / SECTOR_BYTES).to_le_bytes());
        put(12, &SEGMENTS_MAX.to_le_bytes());
        put(20, &self.block_bytes.to_le_bytes());
        put(34, &self.queues.to_le_bytes());
        // Discards: the longest, how many in a request, and what they must be aligned to so as not to be lost.
        put(36, &(RANGE_MAX_SECTORS - RANGE_MAX_SECTORS % granularity_sectors).max(granularity_sectors).to_le_bytes());
        put(40, &1_u32.to_le_bytes());
        put(44, &granularity_sectors.to_le_bytes());
        // Writing zeroes: the longest, how many in a request, and that they may free what they cover.
        put(48, &RANGE_MAX_SECTORS.to_le_bytes());
        put(52, &1_u32.to_le_bytes());
        put(56, &[1]);
        config
    }
}
