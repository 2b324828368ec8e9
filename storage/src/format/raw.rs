//! Raw images: the file is the disk. Holes of the file are holes of the disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::Piece;
use crate::file::next_data;

/// Most bytes of one piece.
const PIECE_BYTES: u64 = 16 * 1024 * 1024;

/// A raw image and how far it was read.
#[derive(Debug)]
pub(super) struct Raw {
    file: File,
    size_bytes: u64,
    /// What is left of the range of data that was found last.
    data: std::ops::Range<u64>,
}

impl Raw {
    pub(super) fn new(file: File, size_bytes: u64) -> Self {
        Self { file, size_bytes, data: 0..0 }
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(super) fn next(&mut self) -> io::Result<Option<Piece>> {
        if self.data.is_empty() {
            match next_data(&self.file, self.data.end)? {
                Some((start, end)) => self.data = start..end.min(self.size_bytes),
                None => return Ok(None),
            }
        }
        let offset_bytes = self.data.start;
        let length = (self.data.end - offset_bytes).min(PIECE_BYTES);
        let mut bytes = vec![0; usize::try_from(length).map_err(|_| io::ErrorKind::InvalidData)?];
        self.file.read_exact_at(&mut bytes, offset_bytes)?;
        self.data.start += length;
        Ok(Some(Piece { offset_bytes, bytes }))
    }
}
