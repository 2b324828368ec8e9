//! Cuts a byte stream into JSON texts.
//!
//! RFC 7047 §4 puts one JSON object after another on the stream, with or without white space between them, so the end
//! of a message is where its brackets close. [`Framer`] finds that end without parsing, and keeps at most one message
//! plus what came with its last bytes. It never looks at a byte twice.

use thiserror::Error;

/// A stream that cannot be cut any further: the connection has to go.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FramingError {
    /// A message longer than allowed.
    #[error("a message has more than {bytes_max} bytes")]
    TooLong {
        /// The limit.
        bytes_max: usize,
    },
    /// Brackets nested deeper than any OVSDB message needs.
    #[error("a message is nested deeper than {DEPTH_MAX} brackets")]
    TooDeep,
    /// A byte outside of any object.
    #[error("byte {0:#04x} where an object should begin")]
    Garbage(u8),
}

/// How deep brackets may be nested. OVSDB needs about ten; serde_json itself stops at 128.
pub const DEPTH_MAX: u32 = 64;

/// The default limit for one message: room for the initial contents of a host with tens of thousands of ports.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// The state of one stream.
#[derive(Debug)]
pub struct Framer {
    buffer: Vec<u8>,
    /// Bytes of `buffer` already looked at, all of them part of the message that is coming in.
    scanned: usize,
    depth: u32,
    in_string: bool,
    escaped: bool,
    bytes_max: usize,
}

impl Framer {
    /// A framer for a new stream with the given limit for one message.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { buffer: Vec::new(), scanned: 0, depth: 0, in_string: false, escaped: false, bytes_max }
    }

    /// Takes in what the stream gave.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete message, or `None` until more bytes come.
    ///
    /// # Errors
    /// When the stream can hold no further message.
    pub fn pop(&mut self) -> Result<Option<Vec<u8>>, FramingError> {
        self.skip_space()?;
        while let Some(&byte) = self.buffer.get(self.scanned) {
            self.scanned += 1;
            if self.scanned > self.bytes_max {
                return Err(FramingError::TooLong { bytes_max: self.bytes_max });
            }
            if self.closes(byte)? {
                let rest = self.buffer.split_off(self.scanned);
                self.scanned = 0;
                return Ok(Some(std::mem::replace(&mut self.buffer, rest)));
            }
        }
        Ok(None)
    }

    fn skip_space(&mut self) -> Result<(), FramingError> {
        if self.scanned > 0 {
            return Ok(());
        }
        let space = self.buffer.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        self.buffer.drain(..space);
        match self.buffer.first() {
            None | Some(b'{') => Ok(()),
            Some(&other) => Err(FramingError::Garbage(other)),
        }
    }

    /// Whether `byte` ends the message.
    fn closes(&mut self, byte: u8) -> Result<bool, FramingError> {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return Ok(false);
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' if self.depth == DEPTH_MAX => return Err(FramingError::TooDeep),
            b'{' | b'[' => self.depth += 1,
            // The first byte is an opening brace, so the depth is at least one here.
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        Ok(self.depth == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(chunks: &[&[u8]], bytes_max: usize) -> Result<Vec<String>, FramingError> {
        let mut framer = Framer::new(bytes_max);
        let mut messages = Vec::new();
        for chunk in chunks {
            framer.push(chunk);
            while let Some(message) = framer.pop()? {
                messages.push(String::from_utf8(message).unwrap());
            }
        }
        Ok(messages)
    }

    #[test]
    fn objects_follow_each_other_with_and_without_space() {
        let texts = [r#"{"a":[1,{"}":"]\"{"}]}"#, "{}", r#"{"x":"\\"}"#];
        let stream = format!("{}{}\n  {}", texts[0], texts[1], texts[2]);
        assert_eq!(cut(&[stream.as_bytes()], 100).unwrap(), texts);
        let bytes: Vec<&[u8]> = stream.as_bytes().chunks(1).collect();
        assert_eq!(cut(&bytes, 100).unwrap(), texts);
    }

    #[test]
    fn limits_hold() {
        assert_eq!(cut(&[b"{\"aaaaaaaaaa"], 8), Err(FramingError::TooLong { bytes_max: 8 }));
        assert_eq!(cut(&[&[b'{'; 100]], 1000), Err(FramingError::TooDeep));
        assert_eq!(cut(&[b"  [1]"], 1000), Err(FramingError::Garbage(b'[')));
        assert_eq!(cut(&[b"{\"aaa\":1}{\"aaa\":2}"], 9).unwrap().len(), 2, "the limit is for one message");
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_messages_or_an_error(chunks in proptest::collection::vec(any::<Vec<u8>>(), 0..8)) {
            let mut framer = Framer::new(64);
            for chunk in chunks {
                framer.push(&chunk);
                while let Ok(Some(message)) = framer.pop() {
                    prop_assert!(message.len() <= 64);
                }
            }
        }
    }
}
