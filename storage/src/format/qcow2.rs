//! QEMU's qcow2, versions 2 and 3, read only (qemu docs/interop/qcow2.txt).
//!
//! An image maps the disk's clusters by two levels of tables to clusters of the file:
//!
//! ```text
//!   L1 entry ─▶ L2 table of cluster_bytes / 8 entries ─▶ nothing | zeroes | data at an offset | deflated data
//! ```
//!
//! The file is not trusted: every table and cluster must lie inside the file and be aligned, reserved bits must be zero,
//! tables are bounded in size, and what is not supported (backing file, encryption, external data, zstd, extended L2,
//! unknown features) is refused by name. Internal snapshots are ignored: the disk is its active state.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::Piece;

/// How a qcow2 file starts.
pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";

/// Bytes of the version 2 header; version 3 has at least 104.
const HEADER_BYTES: usize = 104;
/// Cluster sizes that QEMU makes: 512 bytes to 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// QEMU's own bound of the L1 table.
const L1_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Offset bits of L1 and L2 entries.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// "Refcount is one": meaningless to a reader.
const COPIED: u64 = 1 << 63;
/// The cluster is deflated.
const COMPRESSED: u64 = 1 << 62;
/// Version 3: the cluster reads as zeroes.
const ZERO: u64 = 1;

/// Incompatible features, by bit (version 3).
mod incompatible {
    /// Reference counts may be wrong, which does not matter to a reader.
    pub(super) const DIRTY: u64 = 1 << 0;
    pub(super) const CORRUPT: u64 = 1 << 1;
    pub(super) const EXTERNAL_DATA: u64 = 1 << 2;
    pub(super) const COMPRESSION_TYPE: u64 = 1 << 3;
    pub(super) const EXTENDED_L2: u64 = 1 << 4;
    pub(super) const KNOWN: u64 = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2;
}

/// What is wrong with a qcow2 image.
#[derive(Debug, thiserror::Error)]
pub enum Qcow2Error {
    /// The file could not be read.
    #[error("cannot read {length_bytes} bytes at {offset_bytes}")]
    Read {
        /// Where.
        offset_bytes: u64,
        /// How much.
        length_bytes: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file does not start as qcow2 does.
    #[error("it is no qcow2 image: it does not start with \"QFI\\xfb\"")]
    Magic,
    /// The header says what no image can have.
    #[error("its header has {field} {value}: {rule}")]
    Header {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What it must be.
        rule: &'static str,
    },
    /// The image uses what this reader does not support.
    #[error("it uses {feature}: convert it with `qemu-img convert -O qcow2` first")]
    Unsupported {
        /// The feature.
        feature: String,
    },
    /// QEMU itself has marked the image as corrupt.
    #[error("it is marked as corrupt: `qemu-img check -r all` may repair it")]
    MarkedCorrupt,
    /// A table or cluster does not lie in the file.
    #[error(
        "its {part} for disk offset {disk_offset} lies at {offset_bytes}, but the file ends at {file_bytes}: the file is cut off or corrupt"
    )]
    OutsideFile {
        /// What it is.
        part: &'static str,
        /// The first byte of the disk that it is for.
        disk_offset: u64,
        /// Where it should be in the file.
        offset_bytes: u64,
        /// Where the file ends.
        file_bytes: u64,
    },
    /// An entry has reserved bits, or an offset that is not a cluster's.
    #[error("its {part} for disk offset {disk_offset} is {entry:#018x}, which is no valid entry: the file is corrupt")]
    Entry {
        /// What it is.
        part: &'static str,
        /// The first byte of the disk that it is for.
        disk_offset: u64,
        /// The entry.
        entry: u64,
    },
    /// A compressed cluster does not inflate to a cluster.
    #[error("its compressed cluster for disk offset {disk_offset} does not unpack: the file is corrupt")]
    Inflate {
        /// The first byte of the disk that it is for.
        disk_offset: u64,
    },
}

/// An open image and how far it was read.
#[derive(Debug)]
pub(super) struct Qcow2 {
    file: File,
    file_bytes: u64,
    header: Header,
    l1: Vec<u64>,
    /// The L2 table in memory, with its place in `l1`.
    l2: Option<(usize, Vec<u64>)>,
    /// The next cluster of the disk.
    cluster: u64,
}

/// What the header says, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Header {
    cluster_bits: u32,
    size_bytes: u64,
    l1_offset: u64,
    l1_entries: usize,
    /// Version 3 has zero clusters.
    has_zero_clusters: bool,
}

impl Header {
    /// Reads the header out of the file's first [`HEADER_BYTES`] bytes (zeroes where the file is shorter).
    fn parse(bytes: &[u8; HEADER_BYTES], file_bytes: u64) -> Result<Self, Qcow2Error> {
        if bytes[..4] != MAGIC {
            return Err(Qcow2Error::Magic);
        }
        let version = be32(bytes, 4);
        if !(2..=3).contains(&version) {
            return Err(Qcow2Error::Header { field: "version", value: version.into(), rule: "2 and 3 are known" });
        }
        if be64(bytes, 8) != 0 {
            return Err(Qcow2Error::Unsupported { feature: "a backing file".to_owned() });
        }
        if be32(bytes, 32) != 0 {
            return Err(Qcow2Error::Unsupported { feature: "encryption".to_owned() });
        }
        if version == 3 {
            check_features(be64(bytes, 72), be32(bytes, 100))?;
        }
        let cluster_bits = be32(bytes, 20);
        if !CLUSTER_BITS.contains(&cluster_bits) {
            let value = cluster_bits.into();
            return Err(Qcow2Error::Header { field: "cluster bits", value, rule: "9 to 21 are possible" });
        }
        let size_bytes = be64(bytes, 24);
        if size_bytes == 0 || i64::try_from(size_bytes).is_err() {
            return Err(Qcow2Error::Header {
                field: "size",
                value: size_bytes,
                rule: "a disk has 1 to 2^63 - 1 bytes",
            });
        }
        let l1_entries = u64::from(be32(bytes, 36));
        let l1_offset = be64(bytes, 40);
        let needed = size_bytes.div_ceil(1 << (2 * cluster_bits - 3));
        if l1_entries < needed || l1_entries * 8 > L1_BYTES_MAX {
            let rule = "the disk's size needs another number, or it is beyond 4194304";
            return Err(Qcow2Error::Header { field: "L1 entries", value: l1_entries, rule });
        }
        if !l1_offset.is_multiple_of(1 << cluster_bits) || l1_offset == 0 {
            return Err(Qcow2Error::Header {
                field: "L1 offset",
                value: l1_offset,
                rule: "it must be that of a cluster",
            });
        }
        let inside = l1_offset.checked_add(needed * 8).is_some_and(|end| end <= file_bytes);
        if !inside {
            let (part, offset_bytes) = ("L1 table", l1_offset);
            return Err(Qcow2Error::OutsideFile { part, disk_offset: 0, offset_bytes, file_bytes });
        }
        // At most L1_BYTES_MAX / 8; entries beyond the disk's end are of no use.
        let l1_entries = usize::try_from(needed).unwrap_or(0);
        Ok(Self { cluster_bits, size_bytes, l1_offset, l1_entries, has_zero_clusters: version == 3 })
    }

    fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }
}

impl Qcow2 {
    /// Reads header and L1 table.
    pub(super) fn open(file: File, file_bytes: u64) -> Result<Self, Qcow2Error> {
        let mut start = [0; HEADER_BYTES];
        let count = usize::try_from(file_bytes).unwrap_or(HEADER_BYTES).min(HEADER_BYTES);
        read(&file, 0, &mut start[..count])?;
        let mut header = Header::parse(&start, file_bytes)?;
        if start[7] == 3 && be32(&start, 100) > 104 && be64(&start, 72) & incompatible::COMPRESSION_TYPE != 0 {
            let mut kind = [0];
            read(&file, 104, &mut kind)?;
            check_compression(kind[0])?;
        }
        let l1 = table(&file, header.l1_offset, header.l1_entries)?;
        header.l1_entries = l1.len();
        Ok(Self { file, file_bytes, header, l1, l2: None, cluster: 0 })
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.header.size_bytes
    }

    /// The next cluster that has data, cut off where the disk ends.
    pub(super) fn next(&mut self) -> Result<Option<Piece>, Qcow2Error> {
        let cluster_bytes = self.header.cluster_bytes();
        let clusters_per_table = cluster_bytes / 8;
        let clusters = self.header.size_bytes.div_ceil(cluster_bytes);
        while self.cluster < clusters {
            let index = usize::try_from(self.cluster / clusters_per_table).unwrap_or(usize::MAX);
            if !self.load_l2(index)? {
                self.cluster = (self.cluster / clusters_per_table + 1) * clusters_per_table;
                continue;
            }
            let disk_offset = self.cluster * cluster_bytes;
            let at = usize::try_from(self.cluster % clusters_per_table).unwrap_or(0);
            let entry = self.l2.as_ref().map_or(0, |(_, entries)| entries[at]);
            self.cluster += 1;
            if let Some(mut bytes) = self.cluster_data(entry, disk_offset)? {
                let left = usize::try_from(self.header.size_bytes - disk_offset).unwrap_or(usize::MAX);
                bytes.truncate(left);
                return Ok(Some(Piece { offset_bytes: disk_offset, bytes }));
            }
        }
        Ok(None)
    }

    /// Puts L2 table `index` into memory; `false` where there is none.
    fn load_l2(&mut self, index: usize) -> Result<bool, Qcow2Error> {
        if self.l2.as_ref().is_some_and(|(loaded, _)| *loaded == index) {
            return Ok(true);
        }
        let entry = self.l1.get(index).copied().unwrap_or(0);
        let cluster_bytes = self.header.cluster_bytes();
        let disk_offset = (index as u64) << (2 * self.header.cluster_bits - 3);
        let offset_bytes = entry & OFFSET_MASK;
        if entry & !(OFFSET_MASK | COPIED) != 0 || !offset_bytes.is_multiple_of(cluster_bytes) {
            return Err(Qcow2Error::Entry { part: "L1 entry", disk_offset, entry });
        }
        if offset_bytes == 0 {
            return Ok(false);
        }
        if offset_bytes + cluster_bytes > self.file_bytes {
            let (part, file_bytes) = ("L2 table", self.file_bytes);
            return Err(Qcow2Error::OutsideFile { part, disk_offset, offset_bytes, file_bytes });
        }
        let entries = usize::try_from(cluster_bytes / 8).unwrap_or(0);
        self.l2 = Some((index, table(&self.file, offset_bytes, entries)?));
        Ok(true)
    }

    /// The data of a cluster, or `None` where it reads as zeroes.
    fn cluster_data(&self, entry: u64, disk_offset: u64) -> Result<Option<Vec<u8>>, Qcow2Error> {
        if entry & COMPRESSED != 0 {
            return self.inflate(entry, disk_offset).map(Some);
        }
        let offset_bytes = entry & OFFSET_MASK;
        let flags = entry & !(OFFSET_MASK | COPIED);
        let is_zero = flags == ZERO && self.header.has_zero_clusters;
        let aligned = offset_bytes.is_multiple_of(self.header.cluster_bytes());
        if (flags != 0 && !is_zero) || !aligned {
            return Err(Qcow2Error::Entry { part: "L2 entry", disk_offset, entry });
        }
        if is_zero || offset_bytes == 0 {
            return Ok(None);
        }
        if offset_bytes >= self.file_bytes {
            let (part, file_bytes) = ("data cluster", self.file_bytes);
            return Err(Qcow2Error::OutsideFile { part, disk_offset, offset_bytes, file_bytes });
        }
        // The file may end inside its last cluster, which reads as zeroes from there.
        let mut bytes = vec![0; usize::try_from(self.header.cluster_bytes()).unwrap_or(0)];
        let there = usize::try_from(self.file_bytes - offset_bytes).unwrap_or(usize::MAX).min(bytes.len());
        read(&self.file, offset_bytes, &mut bytes[..there])?;
        Ok(Some(bytes))
    }

    /// Unpacks a compressed cluster. Its entry has the offset, and the length in sectors from there.
    fn inflate(&self, entry: u64, disk_offset: u64) -> Result<Vec<u8>, Qcow2Error> {
        let length_shift = 62 - (self.header.cluster_bits - 8);
        let offset_bytes = entry & ((1 << length_shift) - 1);
        let sectors = (entry & !(COMPRESSED | COPIED)) >> length_shift;
        let end = ((offset_bytes & !511) + (sectors + 1) * 512).min(self.file_bytes);
        if offset_bytes >= end {
            let (part, file_bytes) = ("compressed cluster", self.file_bytes);
            return Err(Qcow2Error::OutsideFile { part, disk_offset, offset_bytes, file_bytes });
        }
        // At most the sectors that 14 bits count: 8 MiB.
        let mut packed = vec![0; usize::try_from(end - offset_bytes).unwrap_or(0)];
        read(&self.file, offset_bytes, &mut packed)?;
        let cluster_bytes = usize::try_from(self.header.cluster_bytes()).unwrap_or(0);
        match miniz_oxide::inflate::decompress_to_vec_with_limit(&packed, cluster_bytes) {
            Ok(bytes) if bytes.len() == cluster_bytes => Ok(bytes),
            _ => Err(Qcow2Error::Inflate { disk_offset }),
        }
    }
}

/// Refuses the features of a version 3 image that a reader must know and this one does not.
fn check_features(features: u64, header_bytes: u32) -> Result<(), Qcow2Error> {
    let refused = |feature: &str| Err(Qcow2Error::Unsupported { feature: feature.to_owned() });
    if features & incompatible::CORRUPT != 0 {
        return Err(Qcow2Error::MarkedCorrupt);
    }
    if features & incompatible::EXTERNAL_DATA != 0 {
        return refused("an external data file");
    }
    if features & incompatible::EXTENDED_L2 != 0 {
        return refused("extended L2 entries");
    }
    if features & !incompatible::KNOWN != 0 {
        return refused(&format!("unknown features {:#x}", features & !incompatible::KNOWN));
    }
    if header_bytes < 104 {
        let rule = "version 3 has 104 or more";
        return Err(Qcow2Error::Header { field: "header length", value: header_bytes.into(), rule });
    }
    Ok(())
}

/// The compression type: 0 is zlib's deflate.
fn check_compression(kind: u8) -> Result<(), Qcow2Error> {
    match kind {
        0 => Ok(()),
        1 => Err(Qcow2Error::Unsupported { feature: "zstd compression".to_owned() }),
        other => Err(Qcow2Error::Unsupported { feature: format!("compression type {other}") }),
    }
}

/// A table of big-endian entries.
fn table(file: &File, offset_bytes: u64, entries: usize) -> Result<Vec<u64>, Qcow2Error> {
    let mut bytes = vec![0; entries * 8];
    read(file, offset_bytes, &mut bytes)?;
    let (chunks, _) = bytes.as_chunks::<8>();
    Ok(chunks.iter().map(|chunk| u64::from_be_bytes(*chunk)).collect())
}

fn read(file: &File, offset_bytes: u64, bytes: &mut [u8]) -> Result<(), Qcow2Error> {
    let length_bytes = bytes.len() as u64;
    file.read_exact_at(bytes, offset_bytes).map_err(|source| Qcow2Error::Read { offset_bytes, length_bytes, source })
}

fn be32(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(field)
}

fn be64(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(field)
}
