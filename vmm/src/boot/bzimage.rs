//! Unpacking of a bzImage on the host: the ELF kernel inside costs a guest 0.75 billion instructions and 34 MiB to unpack itself.
//!
//! The header says where the compressed payload is (Documentation/arch/x86/boot.rst, `payload_offset`); its last four bytes are the unpacked size.
//! With a cache directory the result is kept there under the SHA-256 of the bzImage, written aside and renamed, so that a half-written file is never
//! used; without one it lives in a memory file for as long as the process.

use nix::sys::memfd::{MFdFlags, memfd_create};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The largest bzImage read, bytes.
pub const PACKED_MAX: u64 = 256 << 20;
/// The largest kernel unpacked, bytes.
pub const UNPACKED_MAX: u64 = 1 << 30;
/// The largest block of the old LZ4 format, bytes.
const LZ4_BLOCK: usize = 8 << 20;
const LZ4_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

const HEADER_BYTES: usize = 0x260;
const SETUP_SECTORS: usize = 0x1f1;
const HEADER_MAGIC: std::ops::Range<usize> = 0x202..0x206;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// The first protocol with a payload offset.
const VERSION_MIN: u16 = 0x0208;

/// Why a bzImage could not be unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// Neither an ELF file nor a bzImage.
    #[error("it is neither an ELF file nor a bzImage (boot protocol 2.08 or later)")]
    NotAKernel,
    /// The header points outside the file.
    #[error("the payload of {length} bytes at {offset} does not lie in the file of {file_bytes} bytes")]
    Payload {
        /// Where the header says it starts.
        offset: u64,
        /// How long it says it is.
        length: u64,
        /// The file's size.
        file_bytes: u64,
    },
    /// Compressed in a way that is not supported.
    #[error("the payload starts with {magic:02x?}: gzip, xz, zstd and lz4 are supported")]
    Compression {
        /// Its first bytes.
        magic: [u8; 4],
    },
    /// The file, or what comes out of it, is too large.
    #[error("{what} of {bytes} bytes is larger than {most} bytes")]
    TooLarge {
        /// Which of the two.
        what: &'static str,
        /// Its size.
        bytes: u64,
        /// The limit.
        most: u64,
    },
    /// The compressed data is corrupt.
    #[error("decompress the {format} payload")]
    Corrupt {
        /// The format.
        format: &'static str,
        /// What the decoder said.
        #[source]
        source: io::Error,
    },
    /// What came out is not as long as the file says.
    #[error("the payload unpacks to {found} bytes, its header says {told}")]
    Length {
        /// What came out.
        found: u64,
        /// What was told.
        told: u64,
    },
    /// A file could not be read or written.
    #[error("{attempt}")]
    Io {
        /// What was attempted, with its path.
        attempt: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Unpacks `packed`, or finds it unpacked in `cache`; returns the ELF file.
///
/// # Errors
/// [`UnpackError`].
pub fn unpack(mut packed: File, cache: Option<&Path>) -> Result<File, UnpackError> {
    let reading = |source| UnpackError::Io { attempt: "read the file".to_owned(), source };
    let bytes = packed.metadata().map_err(reading)?.len();
    if bytes > PACKED_MAX {
        return Err(UnpackError::TooLarge { what: "the file", bytes, most: PACKED_MAX });
    }
    packed.seek(SeekFrom::Start(0)).map_err(reading)?;
    let mut image = Vec::new();
    packed.read_to_end(&mut image).map_err(reading)?;
    let payload = Payload::find(&image)?;
    let Some(cache) = cache else {
        let file = memfd_create(c"vmlinux", MFdFlags::MFD_CLOEXEC).map_err(|error| UnpackError::Io {
            attempt: "make a memory file for the unpacked kernel".to_owned(),
            source: error.into(),
        })?;
        let mut file = File::from(file);
        payload.write_to(&mut file)?;
        return Ok(file);
    };
    let path = cache.join(format!("{}.vmlinux", hex(&Sha256::digest(&image))));
    if let Ok(file) = File::open(&path) {
        return Ok(file);
    }
    keep(&payload, cache, &path)
}

/// Unpacks into the cache, aside first.
fn keep(payload: &Payload<'_>, cache: &Path, path: &Path) -> Result<File, UnpackError> {
    let io = |attempt: &str, path: &Path| {
        let attempt = format!("{attempt} {}", path.display());
        move |source| UnpackError::Io { attempt, source }
    };
    std::fs::create_dir_all(cache).map_err(io("make the kernel cache", cache))?;
    let mut aside = tempfile::NamedTempFile::new_in(cache).map_err(io("make a file in the kernel cache", cache))?;
    payload.write_to(aside.as_file_mut())?;
    aside.as_file().sync_all().map_err(io("store", path))?;
    aside.persist(path).map_err(|error| io("store", path)(error.error))?;
    let path: PathBuf = path.to_owned();
    File::open(&path).map_err(io("open", &path))
}

#[derive(Debug)]
struct Payload<'a> {
    bytes: &'a [u8],
    unpacked_bytes: u64,
}

impl<'a> Payload<'a> {
    fn find(image: &'a [u8]) -> Result<Self, UnpackError> {
        let header = image.get(..HEADER_BYTES).filter(|header| &header[HEADER_MAGIC] == b"HdrS");
        let header = header.filter(|header| u16::from_le_bytes([header[VERSION], header[VERSION + 1]]) >= VERSION_MIN);
        let header = header.ok_or(UnpackError::NotAKernel)?;
        // A sector count of 0 means 4, from the oldest kernels.
        let sectors = if header[SETUP_SECTORS] == 0 { 4 } else { u64::from(header[SETUP_SECTORS]) };
        let offset = (sectors + 1) * 512 + u64::from(dword(header, PAYLOAD_OFFSET));
        let length = u64::from(dword(header, PAYLOAD_LENGTH));
        let outside = || UnpackError::Payload { offset, length, file_bytes: image.len() as u64 };
        let start = usize::try_from(offset).map_err(|_| outside())?;
        let count = usize::try_from(length).map_err(|_| outside())?;
        let bytes = image.get(start..).and_then(|rest| rest.get(..count)).filter(|bytes| bytes.len() > 8);
        let bytes = bytes.ok_or_else(outside)?;
        let unpacked_bytes = u64::from(dword(bytes, bytes.len() - 4));
        if unpacked_bytes > UNPACKED_MAX {
            return Err(UnpackError::TooLarge {
                what: "the unpacked kernel",
                bytes: unpacked_bytes,
                most: UNPACKED_MAX,
            });
        }
        Ok(Self { bytes, unpacked_bytes })
    }

    fn write_to(&self, file: &mut File) -> Result<(), UnpackError> {
        let magic = [self.bytes[0], self.bytes[1], self.bytes[2], self.bytes[3]];
        // All but gzip, which ends with the size of its own accord, have it appended.
        let body = &self.bytes[..self.bytes.len() - 4];
        let (format, mut reader): (_, Box<dyn Read + '_>) = match magic {
            [0x1f, 0x8b, ..] => ("gzip", Box::new(flate2::read::GzDecoder::new(self.bytes))),
            [0xfd, b'7', b'z', b'X'] => ("xz", Box::new(lzma_rust2::XzReader::new(body, false))),
            [0x28, 0xb5, 0x2f, 0xfd] => ("zstd", Box::new(zstd(body)?)),
            LZ4_MAGIC => ("lz4", Box::new(Lz4 { rest: body, block: Vec::new(), at: 0 })),
            _ => return Err(UnpackError::Compression { magic }),
        };
        let found = io::copy(&mut reader.by_ref().take(self.unpacked_bytes + 1), file)
            .map_err(|source| UnpackError::Corrupt { format, source })?;
        let told = self.unpacked_bytes;
        if found == told { Ok(()) } else { Err(UnpackError::Length { found, told }) }
    }
}

fn zstd(body: &[u8]) -> Result<impl Read + '_, UnpackError> {
    let decoder = ruzstd::decoding::StreamingDecoder::new_with_max_window_size(body, UNPACKED_MAX);
    let decoder = decoder
        .map_err(|error| UnpackError::Corrupt { format: "zstd", source: io::Error::other(error.to_string()) })?;
    Ok(BufReader::with_capacity(1 << 16, decoder))
}

/// The old LZ4 format that kernels use: a magic number, then blocks of at most 8 MiB, each behind its packed length.
struct Lz4<'a> {
    rest: &'a [u8],
    block: Vec<u8>,
    at: usize,
}

impl Lz4<'_> {
    /// Unpacks the next block; false at the end.
    fn advance(&mut self) -> io::Result<bool> {
        let corrupt = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
        loop {
            if self.rest.is_empty() {
                return Ok(false);
            }
            let Some((length, after)) = self.rest.split_first_chunk::<4>() else {
                return Err(corrupt(format!("{} bytes follow the last block", self.rest.len())));
            };
            self.rest = after;
            if *length == LZ4_MAGIC {
                continue;
            }
            let length = u32::from_le_bytes(*length);
            let count = usize::try_from(length).unwrap_or(usize::MAX);
            let Some((packed, after)) = after.split_at_checked(count) else {
                return Err(corrupt(format!("a block of {length} bytes is cut off")));
            };
            self.rest = after;
            self.block.resize(LZ4_BLOCK, 0);
            let unpacked = lz4_flex::block::decompress_into(packed, &mut self.block);
            let unpacked = unpacked.map_err(|error| corrupt(error.to_string()))?;
            self.block.truncate(unpacked);
            self.at = 0;
            return Ok(true);
        }
    }
}

impl Read for Lz4<'_> {
    fn read(&mut self, mut buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.block.len() {
            if !self.advance()? {
                return Ok(0);
            }
        }
        let count = buffer.write(&self.block[self.at..])?;
        self.at += count;
        Ok(count)
    }
}

fn dword(bytes: &[u8], at: usize) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(four)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use basalt_tests::require;
    use basalt_tests::skip::Need;

    /// A bzImage with one setup sector and `payload`.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[SETUP_SECTORS] = 1;
        image[HEADER_MAGIC].copy_from_slice(b"HdrS");
        image[VERSION..VERSION + 2].copy_from_slice(&0x020f_u16.to_le_bytes());
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        image.extend(payload);
        image
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn lz4(data: &[u8], told: u32) -> Vec<u8> {
        let mut payload = LZ4_MAGIC.to_vec();
        for block in data.chunks(5000) {
            let packed = lz4_flex::block::compress(block);
            payload.extend(u32::try_from(packed.len()).unwrap().to_le_bytes());
            payload.extend(packed);
        }
        payload.extend(told.to_le_bytes());
        payload
    }

    fn unpacked(image: &[u8], cache: Option<&Path>) -> Result<Vec<u8>, UnpackError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(image).unwrap();
        let mut out = unpack(file, cache)?;
        let mut bytes = Vec::new();
        out.seek(SeekFrom::Start(0)).unwrap();
        out.read_to_end(&mut bytes).unwrap();
        Ok(bytes)
    }

    #[test]
    fn gzip_and_lz4_payloads_unpack() {
        let data: Vec<u8> = (0..20_000_u32).map(|at| (at % 251) as u8).collect();
        assert_eq!(unpacked(&image(&gzip(&data)), None).unwrap(), data);
        assert_eq!(unpacked(&image(&lz4(&data, 20_000)), None).unwrap(), data);
    }

    /// What `program` makes of `data`, with the unpacked size behind it as kernels have it (`size_append` in scripts/Makefile.lib).
    fn packed_by(program: &str, arguments: &[&str], data: &[u8]) -> Vec<u8> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(data).unwrap();
        let output =
            std::process::Command::new(program).args(arguments).stdin(file.reopen().unwrap()).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        let mut packed = output.stdout;
        if program != "gzip" {
            packed.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        }
        packed
    }

    /// The programs and options that kernels are packed with (Linux 6.1: scripts/Makefile.lib, scripts/xz_wrap.sh), over some MiB of x86 code: this
    /// test's own program.
    #[test]
    fn payloads_of_the_real_programs_unpack() {
        let needs = ["xz", "zstd", "lz4", "gzip"].map(Need::Program);
        require!(needs[0], needs[1], needs[2], needs[3]);
        let mut program_code = Vec::new();
        File::open("/proc/self/exe").unwrap().take(9 << 20).read_to_end(&mut program_code).unwrap();
        let few = 1 << 20;
        let ways: [(&str, &[&str], usize); 5] = [
            ("gzip", &["-n", "-f", "-9", "-c"], few),
            ("xz", &["--check=crc32", "--x86", "--lzma2=preset=1,dict=32MiB", "-c"], few),
            ("zstd", &["-19", "--long=27", "-c", "-q"], few),
            ("zstd", &["-3", "-c", "-q"], few),
            // More than one block.
            ("lz4", &["-l", "-9", "-c", "-q"], program_code.len()),
        ];
        for (program, arguments, bytes) in ways {
            let data = &program_code[..bytes];
            let packed = packed_by(program, arguments, data);
            let out = unpacked(&image(&packed), None).unwrap_or_else(|error| panic!("{program}: {error:?}"));
            assert!(out == data, "{program} {arguments:?}: what comes out is not what went in");
            let mut damaged = packed.clone();
            damaged[packed.len() / 2] ^= 0x10;
            assert!(
                unpacked(&image(&damaged), None).map_or(true, |out| out != data),
                "{program}: damage goes unnoticed and unharmed"
            );
            let mut cut = packed[..packed.len() / 2].to_vec();
            cut.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
            assert!(unpacked(&image(&cut), None).is_err(), "{program}: half a payload");
        }
    }

    #[test]
    fn a_cached_kernel_is_found_by_content() {
        let cache = tempfile::tempdir().unwrap();
        let image = image(&gzip(b"the kernel"));
        assert_eq!(unpacked(&image, Some(cache.path())).unwrap(), b"the kernel");
        let files: Vec<_> = std::fs::read_dir(cache.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 1);
        std::fs::write(&files[0], b"from the cache").unwrap();
        assert_eq!(unpacked(&image, Some(cache.path())).unwrap(), b"from the cache");
    }

    #[test]
    fn bad_images_are_told_apart() {
        assert!(matches!(unpacked(b"#!/bin/sh", None), Err(UnpackError::NotAKernel)));
        assert!(matches!(unpacked(&[0; 4096], None), Err(UnpackError::NotAKernel)));
        let mut outside = image(&gzip(b"x"));
        outside[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].fill(0xff);
        assert!(matches!(unpacked(&outside, None), Err(UnpackError::Payload { .. })));
        assert!(matches!(unpacked(&image(b"BZh91AY&SY\0\0\0"), None), Err(UnpackError::Compression { .. })));
        assert!(matches!(unpacked(&image(&lz4(b"short", 6)), None), Err(UnpackError::Length { found: 5, told: 6 })));
        assert!(matches!(unpacked(&image(&lz4(b"x", u32::MAX)), None), Err(UnpackError::TooLarge { .. })));
        let mut cut = lz4(b"some text that is packed", 24);
        cut[4] = 0xff;
        assert!(matches!(unpacked(&image(&cut), None), Err(UnpackError::Corrupt { format: "lz4", .. })));
        let mut flipped = gzip(&[7; 4000]);
        flipped[12] ^= 0x55;
        assert!(unpacked(&image(&flipped), None).is_err());
    }
}
