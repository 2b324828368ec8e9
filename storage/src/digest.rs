//! The SHA-256 of an image file: its identity.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::str::FromStr;

use sha2::Digest as _;

/// How much is hashed between two words of progress.
const STEP_BYTES: usize = 4 * 1024 * 1024;

/// A SHA-256 digest; 64 hexadecimal digits as text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sha256([u8; 32]);

/// A text that is no SHA-256.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is no SHA-256: 64 hexadecimal digits are")]
pub struct DigestError {
    text: String,
}

impl Sha256 {
    /// Hashes all of `file`. `progress` hears the bytes done.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn of_file(file: &mut File, progress: &mut dyn FnMut(u64)) -> io::Result<Self> {
        file.rewind()?;
        let mut hasher = sha2::Sha256::new();
        let mut bytes = vec![0; STEP_BYTES];
        let mut done_bytes = 0;
        loop {
            match file.read(&mut bytes) {
                Ok(0) => return Ok(Self(hasher.finalize().into())),
                Ok(count) => {
                    hasher.update(&bytes[..count]);
                    done_bytes += count as u64;
                    progress(done_bytes);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sha256({self})")
    }
}

impl FromStr for Sha256 {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let failed = || DigestError { text: text.to_owned() };
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(failed());
        }
        let mut digest = [0; 32];
        for (byte, at) in digest.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| failed())?;
        }
        Ok(Self(digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_nothing_else_is_taken() {
        let text = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(text.parse::<Sha256>().unwrap().to_string(), text);
        for wrong in ["", "e3b0", &format!("+{}", &text[1..]), &format!("{text}00")] {
            assert!(wrong.parse::<Sha256>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_empty_file_has_the_known_digest() {
        let mut file = tempfile::tempfile().unwrap();
        let digest = Sha256::of_file(&mut file, &mut |_| ()).unwrap();
        assert_eq!(digest.to_string(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
