//! Disk image formats, read only: what a file means as a disk.
//!
//! A reader takes an untrusted file, checks every offset in it against the file's length before use, and gives the
//! disk's data piece by piece; holes and zero clusters are left out. It opens no other file, whatever the image names.

mod qcow2;
mod raw;

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use qcow2::Qcow2Error;

/// The format of an image file. Always said by its owner, never guessed: a guest may write any header into a raw disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's qcow2, version 2 or 3, without backing file, encryption or external data.
    Qcow2,
}

/// Why a file is not the image that it should be.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The file could not be opened or read.
    #[error("cannot read the image {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is empty.
    #[error("the image {} is empty", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A file that was said to be raw is a qcow2 image.
    #[error("the image {} was said to be raw, but it is qcow2", path.display())]
    NotRaw {
        /// The file.
        path: PathBuf,
    },
    /// The disk is larger than allowed.
    #[error("the image {} is a disk of {size_bytes} bytes: at most {size_bytes_max} are allowed", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The disk's size.
        size_bytes: u64,
        /// The limit.
        size_bytes_max: u64,
    },
    /// The qcow2 image is corrupt or uses what is not supported.
    #[error("the qcow2 image {} cannot be used", path.display())]
    Qcow2 {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: Qcow2Error,
    },
}

/// A piece of a disk.
#[derive(Debug)]
pub(crate) struct Piece {
    /// Where on the disk.
    pub(crate) offset_bytes: u64,
    /// What is there.
    pub(crate) bytes: Vec<u8>,
}

/// Reads the data of an image from its start to its end.
#[derive(Debug)]
pub(crate) struct Reader {
    path: PathBuf,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Raw(raw::Raw),
    Qcow2(Box<qcow2::Qcow2>),
}

impl Reader {
    /// Checks the image's structure as far as its header tells.
    pub(crate) fn new(path: PathBuf, mut file: File, format: Format) -> Result<Self, FormatError> {
        let length_bytes = match file.metadata() {
            Ok(metadata) => metadata.len(),
            Err(source) => return Err(FormatError::Read { path, source }),
        };
        if length_bytes == 0 {
            return Err(FormatError::Empty { path });
        }
        let kind = match format {
            Format::Raw => match is_qcow2(&mut file) {
                Ok(false) => Kind::Raw(raw::Raw::new(file, length_bytes)),
                Ok(true) => return Err(FormatError::NotRaw { path }),
                Err(source) => return Err(FormatError::Read { path, source }),
            },
            Format::Qcow2 => match qcow2::Qcow2::open(file, length_bytes) {
                Ok(image) => Kind::Qcow2(Box::new(image)),
                Err(source) => return Err(FormatError::Qcow2 { path, source }),
            },
        };
        Ok(Self { path, kind })
    }

    /// The disk's size: whole sectors, the last one filled up with zeroes.
    pub(crate) fn size_bytes(&self) -> u64 {
        let size_bytes = match &self.kind {
            Kind::Raw(raw) => raw.size_bytes(),
            Kind::Qcow2(image) => image.size_bytes(),
        };
        size_bytes.next_multiple_of(crate::volume::SECTOR_BYTES)
    }

    /// The next piece of data, in ascending order; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Piece>, FormatError> {
        match &mut self.kind {
            Kind::Raw(raw) => raw.next().map_err(|source| FormatError::Read { path: self.path.clone(), source }),
            Kind::Qcow2(image) => image.next().map_err(|source| FormatError::Qcow2 { path: self.path.clone(), source }),
        }
    }
}

fn is_qcow2(file: &mut File) -> io::Result<bool> {
    let mut start = Vec::with_capacity(4);
    file.rewind()?;
    file.by_ref().take(4).read_to_end(&mut start)?;
    Ok(start == qcow2::MAGIC)
}
