//! DNS messages in a stream: each behind its length.
//!
//! Owns [`Framing`], what came of a connection so far, and [`framed`]. Questions are taken one after the other, the next when the one before is answered.
//! Invariant: no more is kept than one question with its length.
//! Source: RFC 1035 §4.2.2, RFC 7766 §8.

use super::question::QUESTION_MAX;

/// Octets of a length.
const LENGTH: usize = 2;

/// What came of a connection and is not answered.
#[derive(Debug, Default)]
pub struct Framing {
    received: Vec<u8>,
    /// Whether a question was taken whose answer is not there yet.
    is_waiting: bool,
}

impl Framing {
    /// Of a connection that begins.
    #[must_use]
    pub const fn new() -> Self {
        Self { received: Vec::new(), is_waiting: false }
    }

    /// Octets that may come still.
    #[must_use]
    pub fn room(&self) -> usize {
        (LENGTH + QUESTION_MAX).saturating_sub(self.received.len())
    }

    /// Takes octets, [`Framing::room`] at most.
    pub fn push(&mut self, octets: &[u8]) {
        self.received.extend_from_slice(octets);
    }

    /// Whether what comes is longer than any question.
    #[must_use]
    pub fn is_too_long(&self) -> bool {
        self.length().is_some_and(|length| length > QUESTION_MAX)
    }

    /// Whether an answer is owed.
    #[must_use]
    pub const fn is_waiting(&self) -> bool {
        self.is_waiting
    }

    /// The next question, when it is whole and none before it waits.
    pub fn take(&mut self) -> Option<Vec<u8>> {
        let end = LENGTH + self.length()?;
        if self.is_waiting || self.received.len() < end {
            return None;
        }
        self.is_waiting = true;
        let rest = self.received.split_off(end);
        let message = std::mem::replace(&mut self.received, rest);
        message.get(LENGTH..).map(<[u8]>::to_vec)
    }

    /// Notes that the answer is there.
    pub const fn answered(&mut self) {
        self.is_waiting = false;
    }

    fn length(&self) -> Option<usize> {
        self.received.first_chunk::<LENGTH>().map(|length| usize::from(u16::from_be_bytes(*length)))
    }
}

/// A message behind its length; nothing when it has no such length.
#[must_use]
pub fn framed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).map(u16::to_be_bytes);
    length.map(|length| [&length[..], message].concat()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_come_one_after_the_other_however_they_are_cut() {
        let stream = [framed(b"first"), framed(b"second")].concat();
        for cut in 0..stream.len() {
            let mut framing = Framing::default();
            let mut taken = Vec::new();
            for part in [&stream[..cut], &stream[cut..]] {
                framing.push(part);
                while let Some(message) = framing.take() {
                    assert!(framing.is_waiting() && framing.take().is_none(), "one at a time");
                    framing.answered();
                    taken.push(message);
                }
            }
            assert_eq!(taken, [&b"first"[..], b"second"]);
        }
        let mut long = Framing::default();
        long.push(&[0xff, 0xff]);
        assert!(long.is_too_long());
        assert!(framed(&vec![0; 70_000]).is_empty());
    }
}
