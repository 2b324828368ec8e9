//! DNS messages: a guest's question, answers to it, the question as others are asked it, and whether what they say is an answer to that.
//!
//! Owns [`Question`]. What a guest sends is read whole and nothing of it is passed on but the question, its flags and the size that the guest takes: a
//! resolver is asked in a message of our own, without the guest's options. Its answer is believed when it came with the same id and the same question
//! and reads as a DNS message; it is passed on as it is, cut to nothing when it is too long (RFC 2181 §9).
//! Source: RFC 1035 §4.1, RFC 5452 §9 (what an answer must have), RFC 6891 §6 (EDNS), RFC 9715 (sizes that are not fragmented).

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};

/// The most octets of an answer in one datagram, whatever its asker takes (RFC 9715 §3.2).
pub const ANSWER_MAX: u16 = 1232;
/// What one who says nothing of it takes (RFC 1035 §4.2.1).
const PLAIN_MAX: u16 = 512;
/// Octets of a question: a name has 255 at most, options few.
pub(super) const QUESTION_MAX: usize = 2048;
/// The room that a stream has (RFC 1035 §4.2.2); no datagram has as much.
pub const STREAM: usize = 65_535;
/// Octets of a message's header.
const HEADER: usize = 12;
/// Records behind a question: EDNS, and a signature that nobody here looks at.
const ADDITIONAL_MAX: u16 = 2;

const RESPONSE: u8 = 0x80;
const RECURSION: u8 = 0x01;
const FORMAT_ERROR: u8 = 1;
const NOT_IMPLEMENTED: u8 = 4;

/// Why octets are no question that can be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    /// Too short to be answered at all, too long, or an answer.
    #[error("read a DNS message of {length} octets: it is no question")]
    NoQuestion {
        /// Its octets.
        length: usize,
    },
    /// Something else than a question is wanted.
    #[error("answer DNS message {id:#06x}: nothing is known of operation {operation}")]
    Operation {
        /// Its id.
        id: u16,
        /// What it wants.
        operation: u8,
        /// Whether it asks for recursion.
        recursion: bool,
    },
    /// It does not read as one question.
    #[error("read DNS question {id:#06x} of {length} octets: {reason}")]
    Malformed {
        /// Its id.
        id: u16,
        /// Its octets.
        length: usize,
        /// What is wrong with it.
        reason: String,
    },
}

/// Why octets are no answer to a question.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// Not the id that was asked with, no answer, or another question.
    #[error("take a DNS message of {length} octets as answer: it answers something else")]
    Other {
        /// Its octets.
        length: usize,
    },
    /// It does not read.
    #[error("take a DNS message of {length} octets as answer: {reason}")]
    Malformed {
        /// Its octets.
        length: usize,
        /// What is wrong with it.
        reason: String,
    },
}

/// An answer of another resolver, as the guest gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relayed {
    /// The message.
    pub octets: Vec<u8>,
    /// Whether the resolver could not or would not say: another may.
    pub is_failure: bool,
}

/// A guest's question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    id: u16,
    query: Query,
    recursion: bool,
    unchecked: bool,
    authentic: bool,
    edns: Option<Options>,
    /// The most octets of an answer.
    room: usize,
}

/// What the guest says by EDNS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Options {
    version: u8,
    signatures: bool,
}

impl QuestionError {
    /// What is said to it, unless that is nothing.
    #[must_use]
    pub fn reply(&self) -> Option<Vec<u8>> {
        let (id, flags, code) = match self {
            Self::NoQuestion { .. } => return None,
            Self::Operation { id, operation, recursion } => {
                (id, operation << 3 | if *recursion { RECURSION } else { 0 }, NOT_IMPLEMENTED)
            }
            Self::Malformed { id, .. } => (id, 0, FORMAT_ERROR),
        };
        Some(header(*id, flags, code))
    }
}

/// A response without any section.
fn header(id: u16, flags: u8, code: u8) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    let mut octets = vec![high, low, RESPONSE | flags, RESPONSE | code];
    octets.resize(HEADER, 0);
    octets
}

impl Question {
    /// Reads a question that may be answered in `room` octets, [`STREAM`] for one on a connection, or in fewer if the guest takes fewer.
    ///
    /// # Errors
    /// [`QuestionError`], which knows what to reply.
    pub fn parse(octets: &[u8], room: usize) -> Result<Self, QuestionError> {
        let length = octets.len();
        let Some(head) = octets.first_chunk::<HEADER>().filter(|head| head[2] & RESPONSE == 0) else {
            return Err(QuestionError::NoQuestion { length });
        };
        let [id, flags, questions, answers, authorities, additional] = words(head);
        let operation = head[2] >> 3 & 0xf;
        if operation != 0 {
            let recursion = flags.to_be_bytes()[0] & RECURSION != 0;
            return Err(QuestionError::Operation { id, operation, recursion });
        }
        let malformed = |reason: String| QuestionError::Malformed { id, length, reason };
        // Before anything is made as large as these say.
        if (questions, answers, authorities) != (1, 0, 0) || additional > ADDITIONAL_MAX || length > QUESTION_MAX {
            return Err(malformed(format!("{questions} questions, {answers}, {authorities} and {additional} records")));
        }
        let message = Message::from_vec(octets).map_err(|error| malformed(error.to_string()))?;
        let Some(query) = message.queries.first().cloned() else { return Err(malformed("no question".to_owned())) };
        let (takes, edns) = match &message.edns {
            Some(edns) => {
                let options = Options { version: edns.version(), signatures: edns.flags().dnssec_ok };
                (edns.max_payload().max(PLAIN_MAX), Some(options))
            }
            None => (PLAIN_MAX, None),
        };
        // What the guest takes is said of datagrams (RFC 6891 §6.2.3).
        let room = if room < STREAM { room.min(usize::from(takes)) } else { room };
        let (recursion, unchecked) = (message.metadata.recursion_desired, message.metadata.checking_disabled);
        Ok(Self { id, query, recursion, unchecked, authentic: message.metadata.authentic_data, edns, room })
    }

    /// What is asked.
    #[must_use]
    pub const fn query(&self) -> &Query {
        &self.query
    }

    /// Whether it is in a version of EDNS that is not known here.
    #[must_use]
    pub fn is_of_later_edns(&self) -> bool {
        self.edns.is_some_and(|edns| edns.version > 0)
    }

    /// Whether it came on a connection, and has room for any answer.
    #[must_use]
    pub const fn is_for_stream(&self) -> bool {
        self.room >= STREAM
    }

    /// An answer that says nothing yet.
    #[must_use]
    pub fn response(&self) -> Message {
        let mut message = Message::response(self.id, OpCode::Query);
        message.metadata.recursion_desired = self.recursion;
        message.metadata.recursion_available = true;
        message.metadata.checking_disabled = self.unchecked;
        message.add_query(self.query.clone());
        self.add_options(&mut message);
        message
    }

    fn add_options(&self, message: &mut Message) {
        if let Some(options) = self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(ANSWER_MAX).set_dnssec_ok(options.signatures);
            message.set_edns(edns);
        }
    }

    /// An answer as octets: without its records, and saying so, when it is too long.
    #[must_use]
    pub fn octets(&self, message: &Message) -> Vec<u8> {
        let octets = message.to_vec().ok().filter(|octets| octets.len() <= self.room);
        // A question that was read is written as well, so what is left in the end is never needed.
        octets.or_else(|| message.truncate().to_vec().ok()).unwrap_or_else(|| header(self.id, 0, FORMAT_ERROR))
    }

    /// The answer that there is none.
    #[must_use]
    pub fn refuse(&self, code: ResponseCode) -> Vec<u8> {
        let mut message = self.response();
        message.metadata.response_code = code;
        self.octets(&message)
    }

    /// The same question as another resolver is asked it.
    #[must_use]
    pub fn asked_as(&self, id: u16) -> Vec<u8> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = self.recursion;
        message.metadata.checking_disabled = self.unchecked;
        message.metadata.authentic_data = self.authentic;
        message.add_query(self.query.clone());
        self.add_options(&mut message);
        // A question that was read is written as well.
        message.to_vec().unwrap_or_default()
    }

    /// Takes what another resolver said to the question asked with this id.
    ///
    /// # Errors
    /// [`AnswerError`] when it is not the answer, or does not read.
    pub fn relay(&self, id: u16, octets: &[u8]) -> Result<Relayed, AnswerError> {
        let length = octets.len();
        let other = || AnswerError::Other { length };
        let head = octets.first_chunk::<HEADER>().ok_or_else(other)?;
        let [its_id, _, questions, ..] = words(head);
        if its_id != id || head[2] & RESPONSE == 0 || questions != 1 {
            return Err(other());
        }
        let message =
            Message::from_vec(octets).map_err(|error| AnswerError::Malformed { length, reason: error.to_string() })?;
        let is_same = |query: &Query| {
            // Names are equal whatever their case.
            query.name() == self.query.name()
                && query.query_type() == self.query.query_type()
                && query.query_class() == self.query.query_class()
        };
        if message.metadata.op_code != OpCode::Query || !message.queries.first().is_some_and(is_same) {
            return Err(other());
        }
        let code = message.metadata.response_code;
        let is_failure = !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain);
        if length > self.room {
            let mut cut = self.response();
            cut.metadata.response_code = code;
            return Ok(Relayed { octets: self.octets(&cut.truncate()), is_failure });
        }
        let own = self.id.to_be_bytes();
        Ok(Relayed { octets: own.iter().chain(&octets[own.len()..]).copied().collect(), is_failure })
    }
}

/// The six words of a header: id, flags, and how many entries each section has.
fn words(head: &[u8; HEADER]) -> [u16; 6] {
    let mut words = [0; 6];
    for (word, octets) in words.iter_mut().zip(head.chunks_exact(2)) {
        *word = u16::from_be_bytes([octets[0], octets[1]]);
    }
    words
}
