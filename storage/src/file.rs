//! Volumes in raw files of a local file system: what can fail, and the parts.
//!
//! A volume is a sparse file whose length is the volume's size; what was never written, or was discarded, is a hole.
//! No state is kept beside the file: the lock is the kernel's and dies with its holder.
//!
//! | part | what it owns |
//! |---|---|
//! | `volume` | [`FileVolume`]: slots in flight, bounce buffers |
//! | `ring`, `pool` | the two engines that do the I/O |
//! | `draft`, `manage` | making, cloning, growing and removing |
//! | `lock` | one writer or many readers, and who is in the way |
//! | `syscall` | system calls that nix does not wrap |

mod draft;
mod lock;
mod manage;
mod pool;
mod ring;
mod syscall;
mod volume;

use std::io;
use std::path::PathBuf;

pub(crate) use draft::Draft;
pub use lock::Holder;
pub(crate) use manage::next_data;
pub use manage::{Cloned, Usage, clone, create, grow, remove, usage};
pub use volume::FileVolume;
pub(crate) use volume::PreparedFile;

/// What can go wrong with a volume in a file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is no such file.
    #[error("there is no volume at {}", path.display())]
    NotFound {
        /// The file.
        path: PathBuf,
    },
    /// The path is taken already.
    #[error("there is a volume at {} already", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The path names something else than a regular file.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The size is zero or not a multiple of the block size.
    #[error("the volume {} has {size_bytes} bytes: not a positive multiple of {block_bytes}", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Its length.
        size_bytes: u64,
        /// What the length must be a multiple of.
        block_bytes: u64,
    },
    /// The volume would become smaller than its data.
    #[error("the volume {} cannot have {to_bytes} bytes: its data takes {from_bytes}", path.display())]
    Shrink {
        /// The file.
        path: PathBuf,
        /// The size that it has, or must hold.
        from_bytes: u64,
        /// The size that was asked for.
        to_bytes: u64,
    },
    /// Another process has the volume open.
    #[error("the volume {} is in use by {holder}", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
        /// Who has it.
        holder: Holder,
    },
    /// The file system does not do direct I/O.
    #[error("the file system of {} cannot do direct I/O: open the volume with \"direct\": false", path.display())]
    NoDirect {
        /// The file.
        path: PathBuf,
    },
    /// The file system is full.
    #[error("no space left on the file system of {} to {attempt}", path.display())]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// What was attempted.
        attempt: &'static str,
    },
    /// A system call failed.
    #[error("cannot {attempt} {}", path.display())]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl FileError {
    /// Gives a failed attempt on `path` its meaning.
    pub(crate) fn from_io(attempt: &'static str, path: &std::path::Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.raw_os_error() {
            Some(libc::ENOENT) => Self::NotFound { path },
            Some(libc::EEXIST) => Self::Exists { path },
            Some(libc::ENOSPC | libc::EDQUOT) => Self::NoSpace { path, attempt },
            _ => Self::Io { attempt, path, source },
        }
    }
}
