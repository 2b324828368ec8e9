//! Importing disk images: from a raw or qcow2 file into a volume file, or into a Ceph pool as the base of clones.
//!
//! ```text
//!   file ──hash, compare──▶ read by its format ──holes left out──▶ draft ──▶ published under its final name
//! ```
//!
//! An import is whole or not there at all. In a pool it goes to a name of its own first and is renamed at the end.
//! Several hosts may import the same image at once: one holds the image's lease and does it, the others wait and find it
//! there. (Renaming alone does not do: librbd lets two renames to one name both succeed.) Images in a pool are named by
//! the SHA-256 of their file, and never change.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::digest::Sha256;
use crate::file::{Draft, FileError};
use crate::format::{Format, FormatError, Reader};
use crate::rbd::lease::Lease;
use crate::rbd::{Pool, RbdError, RbdVolume};
use crate::source::OpenOptions;
use crate::volume::{Fault, Operation, TransferError, Volume};

/// The snapshot of an image in a pool that volumes are cloned from.
pub const BASE_SNAPSHOT: &str = "base";

/// What is zero in this unit is left out: the size of a qcow2 cluster, and of what Ceph can punch out of an object.
const BLOCK_BYTES: usize = 64 * 1024;

/// A zero block, to compare with: one memcmp, however this is compiled.
static ZEROES: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// How long an import waits for another host that imports the same image, and how often it looks.
const TURN_TIMEOUT: Duration = Duration::from_secs(1800);
const TURN_INTERVAL: Duration = Duration::from_millis(300);

/// Requests in flight while an image is written to a pool.
const IN_FLIGHT_MAX: u16 = 16;

/// What to import.
#[derive(Clone, Debug)]
pub struct Import {
    /// The image file.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// What the file must hash to; `None` takes it as it is.
    pub sha256: Option<Sha256>,
    /// The largest disk that is allowed.
    pub size_bytes_max: u64,
}

/// What an import made, or found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The SHA-256 of the image file.
    pub sha256: Sha256,
    /// The disk's size.
    pub size_bytes: u64,
    /// How much of it was written; 0 where it was there already.
    pub data_bytes: u64,
    /// Whether it was there already.
    pub was_there: bool,
}

/// How far an import is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The image file is being hashed.
    Hashing {
        /// Bytes of the file done.
        done_bytes: u64,
        /// Bytes of the file.
        total_bytes: u64,
    },
    /// The disk is being written.
    Writing {
        /// Bytes of the disk done, holes included.
        done_bytes: u64,
        /// Bytes of the disk.
        total_bytes: u64,
    },
}

/// Why an import failed. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file is not the image that it should be.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The file hashes to something else.
    #[error("the image {} has the SHA-256 {found}, not {expected}: it is damaged, or another one", path.display())]
    Digest {
        /// The file.
        path: PathBuf,
        /// What it should hash to.
        expected: Sha256,
        /// What it does.
        found: Sha256,
    },
    /// The target file could not be made.
    #[error(transparent)]
    File(#[from] FileError),
    /// The pool failed.
    #[error(transparent)]
    Rbd(#[from] RbdError),
    /// Another host has been importing the same image for too long.
    #[error("another host has been importing the image {sha256} into the pool {pool} for {} s", waited.as_secs())]
    Busy {
        /// The image.
        sha256: Sha256,
        /// The pool.
        pool: String,
        /// How long was waited.
        waited: Duration,
    },
    /// The pool has no room.
    #[error("cannot import the image {} into the pool {pool}: the pool or its cluster is full (ceph df)", path.display())]
    PoolFull {
        /// The file.
        path: PathBuf,
        /// The pool.
        pool: String,
    },
    /// Writing to the pool failed.
    #[error("cannot write the image {} to the pool {pool}", path.display())]
    Transfer {
        /// The file.
        path: PathBuf,
        /// The pool.
        pool: String,
        /// Why.
        #[source]
        source: TransferError,
    },
}

impl ImageError {
    /// Whether the cluster gave no answer in time.
    fn is_timeout(&self) -> bool {
        matches!(
            self,
            Self::Rbd(RbdError::TimedOut { .. })
                | Self::Transfer { source: TransferError::Failed { source: Fault::TimedOut, .. }, .. }
        )
    }
}

impl Import {
    /// The image's name in a pool, for an image file that hashes to `sha256`.
    #[must_use]
    pub fn name_in_pool(sha256: Sha256) -> String {
        format!("image-{sha256}")
    }

    /// Imports into a new volume file.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn into_file(&self, target: &Path, progress: &mut dyn FnMut(Progress)) -> Result<Imported, ImageError> {
        let (mut reader, sha256) = self.open(progress)?;
        let size_bytes = reader.size_bytes();
        let draft = Draft::new(target)?;
        let failed = |source| FileError::from_io("write an image to", target, source);
        draft.file().set_len(size_bytes).map_err(failed)?;
        let data_bytes = copy(&mut reader, progress, |offset_bytes, bytes| {
            draft.file().write_all_at(bytes, offset_bytes).map_err(|source| failed(source).into())
        })?;
        draft.publish()?;
        Ok(Imported { sha256, size_bytes, data_bytes, was_there: false })
    }

    /// Imports into a pool as `image-<sha256>` with the protected snapshot [`BASE_SNAPSHOT`]. An image that is there
    /// already is left as it is.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn into_pool(&self, pool: &Pool, progress: &mut dyn FnMut(Progress)) -> Result<Imported, ImageError> {
        self.try_into_pool(pool, progress).map_err(|error| match error {
            // A full pool does not refuse writes: it lets them wait.
            error if error.is_timeout() && pool.is_full().unwrap_or(false) => {
                ImageError::PoolFull { path: self.path.clone(), pool: pool.name().to_owned() }
            }
            error => error,
        })
    }

    fn try_into_pool(&self, pool: &Pool, progress: &mut dyn FnMut(Progress)) -> Result<Imported, ImageError> {
        let (mut reader, sha256) = self.open(progress)?;
        let name = Self::name_in_pool(sha256);
        let mut lease = match wait_turn(pool, sha256)? {
            Turn::Found(size_bytes) => return Ok(Imported { sha256, size_bytes, data_bytes: 0, was_there: true }),
            Turn::Ours(lease) => lease,
        };
        sweep(pool, sha256)?;
        let draft = PoolDraft::new(pool, sha256, reader.size_bytes())?;
        let data_bytes = draft.write(self, &mut reader, &mut lease, progress)?;
        pool.create_snapshot(&draft.name, BASE_SNAPSHOT)?;
        pool.protect(&draft.name, BASE_SNAPSHOT)?;
        lease.renew_now()?;
        pool.rename(&draft.name, &name)?;
        draft.keep();
        Ok(Imported { sha256, size_bytes: reader.size_bytes(), data_bytes, was_there: false })
    }

    /// Opens, hashes and checks the image file.
    fn open(&self, progress: &mut dyn FnMut(Progress)) -> Result<(Reader, Sha256), ImageError> {
        let failed = |source: io::Error| FormatError::Read { path: self.path.clone(), source };
        let mut file = File::open(&self.path).map_err(failed)?;
        let total_bytes = file.metadata().map_err(failed)?.len();
        let found =
            Sha256::of_file(&mut file, &mut |done_bytes| progress(Progress::Hashing { done_bytes, total_bytes }));
        let found = found.map_err(failed)?;
        if let Some(expected) = self.sha256.filter(|expected| *expected != found) {
            return Err(ImageError::Digest { path: self.path.clone(), expected, found });
        }
        let reader = Reader::new(self.path.clone(), file, self.format)?;
        let (size_bytes, size_bytes_max) = (reader.size_bytes(), self.size_bytes_max);
        if size_bytes > size_bytes_max {
            return Err(FormatError::TooLarge { path: self.path.clone(), size_bytes, size_bytes_max }.into());
        }
        Ok((reader, found))
    }
}

/// What waiting for a turn ended with.
enum Turn {
    /// The image is there; its size.
    Found(u64),
    /// It is not, and nobody else makes it.
    Ours(Lease),
}

/// Waits while another imports the image.
fn wait_turn(pool: &Pool, sha256: Sha256) -> Result<Turn, ImageError> {
    let name = Import::name_in_pool(sha256);
    let start = Instant::now();
    loop {
        let lease = Lease::take(pool, &format!("basalt-import-{sha256}"))?;
        // Looked for under the lease, so that nobody finishes it between the look and the decision.
        match pool.snapshot(&name, BASE_SNAPSHOT) {
            Ok(base) if base.is_protected => return Ok(Turn::Found(base.size_bytes)),
            Ok(_) | Err(RbdError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        match lease {
            Some(lease) => return Ok(Turn::Ours(lease)),
            None if start.elapsed() >= TURN_TIMEOUT => {
                return Err(ImageError::Busy { sha256, pool: pool.name().to_owned(), waited: TURN_TIMEOUT });
            }
            None => pause(),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a lease gives no event when it ends; the wait is bounded by its caller")]
fn pause() {
    std::thread::sleep(TURN_INTERVAL);
}

/// An image in the making in a pool; removed when dropped, unless it is kept.
struct PoolDraft<'a> {
    pool: &'a Pool,
    name: String,
    kept: bool,
}

impl<'a> PoolDraft<'a> {
    fn new(pool: &'a Pool, sha256: Sha256, size_bytes: u64) -> Result<Self, ImageError> {
        // Not a secret: the name only has to differ from those of other hosts and other tries.
        let mark = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
        let name = format!("{}{}", draft_prefix(sha256), mark.trim());
        pool.create(&name, size_bytes)?;
        Ok(Self { pool, name, kept: false })
    }

    /// Writes the disk, and returns how much of it there was.
    fn write(
        &self,
        import: &Import,
        reader: &mut Reader,
        lease: &mut Lease,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<u64, ImageError> {
        let failed =
            |source| ImageError::Transfer { path: import.path.clone(), pool: self.pool.name().to_owned(), source };
        let options =
            OpenOptions { in_flight_max: IN_FLIGHT_MAX, holder: "an import".to_owned(), ..OpenOptions::default() };
        let mut volume = Volume::from(RbdVolume::open_in(self.pool, &self.name, &options)?);
        let data_bytes = copy(reader, progress, |offset_bytes, bytes| {
            lease.renew()?;
            // The disk ends on a sector, so what is filled up lies inside of it.
            let whole = bytes.len().next_multiple_of(512);
            if whole == bytes.len() {
                return volume.write_at(offset_bytes, bytes).map_err(failed);
            }
            let mut filled = bytes.to_vec();
            filled.resize(whole, 0);
            volume.write_at(offset_bytes, &filled).map_err(failed)
        })?;
        volume.perform(Operation::Flush, 0, 0).map_err(failed)?;
        volume.close().map_err(|source| {
            let (attempt, image) = ("close", format!("{}/{}", self.pool.name(), self.name));
            ImageError::Rbd(RbdError::Failed { attempt, image, source })
        })?;
        Ok(data_bytes)
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for PoolDraft<'_> {
    fn drop(&mut self) {
        if !self.kept {
            remove_draft(self.pool, &self.name);
        }
    }
}

fn draft_prefix(sha256: Sha256) -> String {
    format!("import-{sha256}-")
}

/// Removes what imports of the same image left that died. Only for the holder of the image's lease.
fn sweep(pool: &Pool, sha256: Sha256) -> Result<(), ImageError> {
    let prefix = draft_prefix(sha256);
    for name in pool.list()?.iter().filter(|name| name.starts_with(&prefix)) {
        tracing::info!(name, "removing what a dead import left");
        remove_draft(pool, name);
    }
    Ok(())
}

fn remove_draft(pool: &Pool, name: &str) {
    let removed = match pool.remove_snapshot(name, BASE_SNAPSHOT) {
        Ok(()) | Err(RbdError::NotFound { .. }) => pool.remove(name),
        Err(error) => Err(error),
    };
    match removed {
        Ok(()) | Err(RbdError::NotFound { .. }) => {}
        Err(error) => tracing::warn!(name, %error, "half an image stays in the pool until the next import of it"),
    }
}

/// Gives all data of the image to `write`, zero blocks left out; returns how much that was.
fn copy(
    reader: &mut Reader,
    progress: &mut dyn FnMut(Progress),
    mut write: impl FnMut(u64, &[u8]) -> Result<(), ImageError>,
) -> Result<u64, ImageError> {
    let total_bytes = reader.size_bytes();
    let mut data_bytes = 0;
    while let Some(piece) = reader.next()? {
        for (start, end) in data_runs(&piece.bytes) {
            write(piece.offset_bytes + start as u64, &piece.bytes[start..end])?;
            data_bytes += (end - start) as u64;
        }
        progress(Progress::Writing { done_bytes: piece.offset_bytes + piece.bytes.len() as u64, total_bytes });
    }
    progress(Progress::Writing { done_bytes: total_bytes, total_bytes });
    Ok(data_bytes)
}

/// The runs of blocks of `bytes` that are not all zero.
fn data_runs(bytes: &[u8]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (index, block) in bytes.chunks(BLOCK_BYTES).enumerate() {
        if *block == ZEROES[..block.len()] {
            continue;
        }
        let start = index * BLOCK_BYTES;
        match runs.last_mut() {
            Some(last) if last.1 == start => last.1 += block.len(),
            _ => runs.push((start, start + block.len())),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_blocks_are_left_out_and_runs_join() {
        let mut bytes = vec![0; 4 * BLOCK_BYTES + 10];
        assert_eq!(data_runs(&bytes), []);
        bytes[BLOCK_BYTES] = 1;
        bytes[3 * BLOCK_BYTES - 1] = 1;
        bytes[4 * BLOCK_BYTES + 9] = 1;
        let end = bytes.len();
        assert_eq!(data_runs(&bytes), [(BLOCK_BYTES, 3 * BLOCK_BYTES), (4 * BLOCK_BYTES, end)]);
    }
}
