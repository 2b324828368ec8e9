//! Reading and writing big-endian octets with bounds.
//!
//! Owns [`Reader`] and [`Writer`]. Never knows a message.
//! Invariant: reading past the end is an error, never a panic.

use super::error::{DecodeError, EncodeError};

/// Reads octets of one structure, whose name errors carry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    octets: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(octets: &'a [u8], what: &'static str) -> Self {
        Self { octets, what }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.octets.is_empty()
    }

    pub(crate) fn left(&self) -> usize {
        self.octets.len()
    }

    /// All octets that are left, without taking them.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.octets
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.octets.split_at_checked(count).ok_or(DecodeError::Truncated {
            what: self.what,
            needed: count,
            left: self.octets.len(),
        })?;
        self.octets = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array().map(u8::from_be_bytes)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn mac(&mut self) -> Result<[u8; 6], DecodeError> {
        self.array()
    }

    /// A number of up to 16 octets.
    pub(crate) fn uint(&mut self, octets: usize) -> Result<u128, DecodeError> {
        Ok(self.bytes(octets)?.iter().fold(0, |sum, octet| sum << 8 | u128::from(*octet)))
    }

    pub(crate) fn skip(&mut self, count: usize) -> Result<(), DecodeError> {
        self.bytes(count).map(|_| ())
    }

    /// Skips up to `count` octets: padding that some senders leave out at the end.
    pub(crate) fn skip_padding(&mut self, count: usize) {
        self.octets = &self.octets[count.min(self.octets.len())..];
    }

    /// The next `count` octets as a structure of their own.
    pub(crate) fn sub(&mut self, count: usize, what: &'static str) -> Result<Self, DecodeError> {
        Ok(Self { octets: self.bytes(count)?, what })
    }

    /// A length that counts a structure's own header of `header` octets; the rest of the structure.
    pub(crate) fn body(&mut self, length: u16, header: usize, what: &'static str) -> Result<Self, DecodeError> {
        let body = usize::from(length).checked_sub(header);
        let body = body.ok_or(DecodeError::BadLength { what, length: length.into() })?;
        self.sub(body, what)
    }

    /// A string padded with zeros to `count` octets. What is not UTF-8 becomes question marks, so that it never grows.
    pub(crate) fn text(&mut self, count: usize) -> Result<String, DecodeError> {
        let octets = self.bytes(count)?;
        let end = octets.iter().position(|octet| *octet == 0).unwrap_or(octets.len());
        let mut text = String::with_capacity(end);
        for chunk in octets[..end].utf8_chunks() {
            text.push_str(chunk.valid());
            text.extend(chunk.invalid().iter().map(|_| '?'));
        }
        Ok(text)
    }
}

/// How many octets of padding bring `length` to a multiple of 8.
pub(crate) fn padding(length: usize) -> usize {
    length.wrapping_neg() % 8
}

/// Collects the octets of a message.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    octets: Vec<u8>,
}

impl Writer {
    pub(crate) fn with_capacity(octets: usize) -> Self {
        Self { octets: Vec::with_capacity(octets) }
    }

    pub(crate) fn len(&self) -> usize {
        self.octets.len()
    }

    pub(crate) fn into_octets(self) -> Vec<u8> {
        self.octets
    }

    pub(crate) fn bytes(&mut self, octets: &[u8]) {
        self.octets.extend_from_slice(octets);
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.octets.push(value);
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.bytes(&value.to_be_bytes());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_be_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.bytes(&value.to_be_bytes());
    }

    /// The low `octets` octets of a number.
    pub(crate) fn uint(&mut self, value: u128, octets: usize) {
        let all = value.to_be_bytes();
        self.bytes(&all[all.len() - octets..]);
    }

    pub(crate) fn zeros(&mut self, count: usize) {
        self.octets.resize(self.octets.len() + count, 0);
    }

    /// A string padded with zeros to `count` octets.
    pub(crate) fn text(&mut self, text: &str, count: usize) {
        let taken = text.len().min(count);
        self.bytes(&text.as_bytes()[..taken]);
        self.zeros(count - taken);
    }

    /// Pads with zeros until the octets since `start` are a multiple of 8.
    pub(crate) fn align(&mut self, start: usize) {
        self.zeros(padding(self.len() - start));
    }

    /// Writes the length since `start` into the two octets at `at`.
    pub(crate) fn patch_length(&mut self, at: usize, start: usize, what: &'static str) -> Result<(), EncodeError> {
        let length = self.len() - start;
        let short = u16::try_from(length).map_err(|_| EncodeError::TooLong { what, length })?;
        self.octets[at..at + 2].copy_from_slice(&short.to_be_bytes());
        Ok(())
    }
}
