//! The monitor's own log: a file that a guest cannot make grow without end.
//!
//! A guest can bring about lines as often as it likes (it breaks its rings, resets, moves its devices), on threads that may do nothing to a file but
//! write. So the log has a budget for the life of the process; the line that uses it up says so, and those after it are dropped.

use std::io::{self, Write};

/// The most bytes written by one process: some ten thousand lines, where a life without trouble writes ten.
pub const LOG_MAX_BYTES: usize = 2 << 20;
const LAST_WORDS: &[u8] = b"the log has reached its limit: no further lines\n";

/// A writer with a budget.
#[derive(Debug)]
pub struct Bounded<W> {
    writer: W,
    left: usize,
}

impl<W: Write> Bounded<W> {
    /// A log that lets `most` bytes through, in whole writes.
    pub const fn new(writer: W, most: usize) -> Self {
        Self { writer, left: most }
    }
}

impl<W: Write> Write for Bounded<W> {
    /// Takes a line; what the budget has no room for is dropped, which is no error.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Ok(line.len());
        }
        self.left = self.left.saturating_sub(line.len());
        self.writer.write_all(if self.left == 0 { LAST_WORDS } else { line })?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_pass_until_the_budget_is_used_up() {
        let mut kept = Vec::new();
        let mut log = Bounded::new(&mut kept, 100);
        for _ in 0..1000 {
            assert_eq!(log.write(b"a line of forty bytes, give or take one\n").unwrap(), 40);
        }
        let text = String::from_utf8(kept).unwrap();
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.ends_with("no further lines\n"), "{text}");
    }
}
