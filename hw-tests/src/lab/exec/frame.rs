//! The messages between exec client and server: one byte of kind, four bytes of length (big endian), the payload.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// Largest payload of one message.
pub const PAYLOAD_BYTES_MAX: u32 = 1 << 20;

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Program and arguments.
    pub words: Vec<String>,
    /// Variables added to the server's own environment.
    #[serde(default)]
    pub environment: Vec<(String, String)>,
    /// Working directory; the server's own (`/`) when absent.
    #[serde(default)]
    pub directory: Option<String>,
    /// The command is killed with its process group after this time.
    pub timeout_ms: u64,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// It exited with this status.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// It ran longer than its time limit and was killed.
    TimedOut,
    /// It could not be started.
    NotStarted(String),
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Client: run this. Always first, exactly once.
    Start(Request),
    /// Client: bytes for standard input.
    Stdin(Vec<u8>),
    /// Client: no more standard input.
    StdinEnd,
    /// Server: bytes of standard output.
    Stdout(Vec<u8>),
    /// Server: bytes of standard error.
    Stderr(Vec<u8>),
    /// Server: it ended. Always last.
    Exit(Ending),
}

impl Frame {
    /// Writes the message in one piece.
    ///
    /// # Errors
    /// The stream fails, or the payload is larger than [`PAYLOAD_BYTES_MAX`].
    pub fn write(&self, stream: &mut impl Write) -> io::Result<()> {
        let (kind, payload) = match self {
            Self::Start(request) => (1, serde_json::to_vec(request)?),
            Self::Stdin(bytes) => (2, bytes.clone()),
            Self::StdinEnd => (3, Vec::new()),
            Self::Stdout(bytes) => (4, bytes.clone()),
            Self::Stderr(bytes) => (5, bytes.clone()),
            Self::Exit(ending) => (6, serde_json::to_vec(ending)?),
        };
        let length = u32::try_from(payload.len()).ok().filter(|length| *length <= PAYLOAD_BYTES_MAX);
        let length = length.ok_or_else(|| invalid("a message is larger than 1 MiB"))?;
        let mut bytes = Vec::with_capacity(payload.len() + 5);
        bytes.push(kind);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&payload);
        stream.write_all(&bytes)
    }

    /// Reads one message; `None` at a clean end of the stream.
    ///
    /// # Errors
    /// The stream fails, ends inside a message, or carries something else.
    pub fn read(stream: &mut impl Read) -> io::Result<Option<Self>> {
        let mut kind = [0];
        if stream.read(&mut kind)? == 0 {
            return Ok(None);
        }
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length);
        if length > PAYLOAD_BYTES_MAX {
            return Err(invalid("a message announces more than 1 MiB"));
        }
        let mut payload = Vec::new();
        let read = stream.take(u64::from(length)).read_to_end(&mut payload)?;
        if u32::try_from(read) != Ok(length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let frame = match kind[0] {
            1 => Self::Start(serde_json::from_slice(&payload)?),
            2 => Self::Stdin(payload),
            3 => Self::StdinEnd,
            4 => Self::Stdout(payload),
            5 => Self::Stderr(payload),
            6 => Self::Exit(serde_json::from_slice(&payload)?),
            _ => return Err(invalid("a message of an unknown kind")),
        };
        Ok(Some(frame))
    }
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    //! Shows that messages round-trip and that broken ones are refused.
    use super::*;

    #[test]
    fn messages_round_trip() {
        let request = Request {
            words: vec!["sh".into(), "-c".into(), "exit 3".into()],
            environment: vec![("A".into(), "b".into())],
            directory: None,
            timeout_ms: 1000,
        };
        let frames = [
            Frame::Start(request),
            Frame::Stdin(vec![0, 255]),
            Frame::StdinEnd,
            Frame::Stdout(vec![]),
            Frame::Stderr(b"x".to_vec()),
            Frame::Exit(Ending::NotStarted("no such file".into())),
        ];
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.write(&mut bytes).unwrap());
        let mut stream = bytes.as_slice();
        for frame in frames {
            assert_eq!(Frame::read(&mut stream).unwrap(), Some(frame));
        }
        assert_eq!(Frame::read(&mut stream).unwrap(), None);
    }

    #[test]
    fn broken_messages_are_refused() {
        for bytes in [&[9, 0, 0, 0, 0][..], &[2, 255, 0, 0, 0], &[2, 0, 0, 0, 5, 1], &[2, 0], &[1, 0, 0, 0, 1, b'{']] {
            assert!(Frame::read(&mut &bytes[..]).is_err(), "{bytes:?}");
        }
    }
}
