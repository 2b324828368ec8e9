//! Making, copying, resizing and removing volumes in files.
//!
//! Every change takes the volume's lock first, so nothing here pulls a file from under a running VM; and every new file
//! appears whole or not at all. Calls block for as long as the disk takes.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::copy_file_range;
use nix::unistd::{Whence, lseek64};

use super::draft::{Draft, set_length};
use super::volume::open_locked;
use super::{FileError, syscall};
use crate::volume::SECTOR_BYTES;

/// Most bytes that one step of a copy moves: the interval of progress reports.
const COPY_STEP_BYTES: u64 = 16 * 1024 * 1024;

/// How a clone came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cloned {
    /// The file system shares the blocks of both files until one changes.
    Reflink,
    /// The data was copied, holes left out.
    Copied {
        /// How much data there was.
        data_bytes: u64,
    },
}

/// What a volume takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// What its user sees.
    pub size_bytes: u64,
    /// What the file system gave it.
    pub allocated_bytes: u64,
}

/// Makes an empty volume that reads as zeroes and takes no space.
///
/// # Errors
/// [`FileError`]: the path is taken, the size is not a positive multiple of 512, …
pub fn create(path: &Path, size_bytes: u64) -> Result<(), FileError> {
    check_size(path, size_bytes)?;
    let draft = Draft::new(path)?;
    set_length(draft.file(), path, size_bytes)?;
    draft.publish()
}

/// Makes `target` a volume of `size_bytes` that starts with all of `source`, by reference where the file system can.
/// `progress` hears bytes done and bytes in all.
///
/// # Errors
/// [`FileError`]: `source` is open for writing somewhere or larger than `size_bytes`, `target` exists, …
pub fn clone(
    source: &Path,
    target: &Path,
    size_bytes: u64,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Cloned, FileError> {
    check_size(target, size_bytes)?;
    let original = open_locked(source, true, false)?;
    let usage = usage_of(&original, source)?;
    if usage.size_bytes > size_bytes {
        return Err(FileError::Shrink { path: target.to_owned(), from_bytes: usage.size_bytes, to_bytes: size_bytes });
    }
    let draft = Draft::new(target)?;
    let failed = |error| FileError::from_io("copy into", target, error);
    let cloned = if syscall::reflink(&original, draft.file()).map_err(failed)? {
        Cloned::Reflink
    } else {
        let data_bytes = copy_data(&original, draft.file(), usage.size_bytes, progress).map_err(failed)?;
        Cloned::Copied { data_bytes }
    };
    set_length(draft.file(), target, size_bytes)?;
    draft.publish()?;
    progress(usage.size_bytes, usage.size_bytes);
    Ok(cloned)
}

/// Grows a volume that nobody has open. Shrinking is refused: it would cut data off.
///
/// # Errors
/// [`FileError`].
pub fn grow(path: &Path, size_bytes: u64) -> Result<(), FileError> {
    check_size(path, size_bytes)?;
    let file = open_locked(path, false, false)?;
    let now = usage_of(&file, path)?.size_bytes;
    if size_bytes < now {
        return Err(FileError::Shrink { path: path.to_owned(), from_bytes: now, to_bytes: size_bytes });
    }
    set_length(&file, path, size_bytes)?;
    file.sync_all().map_err(|source| FileError::from_io("finish", path, source))
}

/// Removes a volume that nobody has open.
///
/// # Errors
/// [`FileError`].
pub fn remove(path: &Path) -> Result<(), FileError> {
    let _locked = open_locked(path, false, false)?;
    fs::remove_file(path).map_err(|source| FileError::from_io("remove", path, source))
}

/// What the volume takes. Needs no lock.
///
/// # Errors
/// [`FileError`].
pub fn usage(path: &Path) -> Result<Usage, FileError> {
    let file = File::open(path).map_err(|source| FileError::from_io("open", path, source))?;
    usage_of(&file, path)
}

fn usage_of(file: &File, path: &Path) -> Result<Usage, FileError> {
    let metadata = file.metadata().map_err(|source| FileError::from_io("stat", path, source))?;
    // st_blocks counts units of 512 bytes whatever the file system's block is (stat(2)).
    Ok(Usage { size_bytes: metadata.len(), allocated_bytes: metadata.blocks() * 512 })
}

pub(crate) fn check_size(path: &Path, size_bytes: u64) -> Result<(), FileError> {
    let fits = size_bytes > 0 && size_bytes.is_multiple_of(SECTOR_BYTES) && i64::try_from(size_bytes).is_ok();
    if fits { Ok(()) } else { Err(FileError::Size { path: path.to_owned(), size_bytes, block_bytes: SECTOR_BYTES }) }
}

/// Copies the data of `source`, but not its holes; returns the bytes copied.
fn copy_data(source: &File, target: &File, size_bytes: u64, progress: &mut dyn FnMut(u64, u64)) -> io::Result<u64> {
    let mut copied = 0;
    let mut at = 0;
    while let Some((start, end)) = next_data(source, at)? {
        at = start;
        while at < end {
            let count = copy_step(source, target, at, (end - at).min(COPY_STEP_BYTES))?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            copied += count;
            at += count;
            progress(at, size_bytes);
        }
    }
    Ok(copied)
}

/// The next range of data at or after `from`.
pub(crate) fn next_data(file: &File, from: u64) -> io::Result<Option<(u64, u64)>> {
    let from = i64::try_from(from).map_err(|_| io::ErrorKind::InvalidInput)?;
    let start = match lseek64(file, from, Whence::SeekData) {
        Ok(start) => start,
        Err(Errno::ENXIO) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let end = lseek64(file, start, Whence::SeekHole)?;
    let bytes = |at: i64| u64::try_from(at).map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
    Ok(Some((bytes(start)?, bytes(end)?)))
}

/// Copies up to `length` bytes inside the kernel.
fn copy_step(source: &File, target: &File, at: u64, length: u64) -> io::Result<u64> {
    let mut from = i64::try_from(at).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut to = from;
    let length = usize::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
    loop {
        match copy_file_range(source.as_fd(), Some(&mut from), target.as_fd(), Some(&mut to), length) {
            Ok(count) => return Ok(count as u64),
            Err(Errno::EINTR) => {}
            Err(Errno::EXDEV | Errno::EOPNOTSUPP | Errno::ENOSYS) => return copy_by_hand(source, target, at, length),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Copies through memory, for file systems between which the kernel does not.
fn copy_by_hand(source: &File, target: &File, at: u64, length: usize) -> io::Result<u64> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; length.min(1024 * 1024)];
    let count = source.read_at(&mut bytes, at)?;
    target.write_all_at(&bytes[..count], at)?;
    Ok(count as u64)
}
