//! One conversation with a switch, without a socket: octets and time in, octets and events out.
//!
//! Owns the state of the conversation: hello, echo, transaction ids, answers in parts. Never waits, reads a clock or opens a socket.
//! Invariant: whatever octets arrive, memory stays within [`Limits`]; every registered question ends in exactly one
//! [`Event::Answer`], [`Event::Refused`] or [`Event::Unreadable`], or in the end of the session.
//!
//! ```text
//!            hello with 1.5                      silence > echo_interval            silence > dead_interval
//! Greeting ----------------> Ready (echo asked) <----------------------> Ready ------------------------> SessionError::Silent
//!     | hello without 1.5, error
//!     v
//! SessionError::NoCommonVersion, ::Refused
//! ```
//! Source: OpenFlow 1.5.1 §6.3 (set-up), §6.4 (echo), §7.3.5 (multipart).

mod backoff;
mod bundle;

use std::{collections::BTreeMap, time::Duration};

pub use backoff::Backoff;
pub use bundle::{Bundle, BundleError, Change};
use thiserror::Error;

use crate::wire::{self, DecodeError, EncodeError, Hello, Message, MultipartReply, SwitchError, Xid};

/// Bounds of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Silence after which the other side is asked whether it lives.
    pub echo_interval: Duration,
    /// Silence after which it counts as dead.
    pub dead_interval: Duration,
    /// Questions that may be open at once.
    pub requests_max: usize,
    /// Octets of one answer in parts.
    pub answer_octets_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            echo_interval: Duration::from_secs(5),
            dead_interval: Duration::from_secs(15),
            requests_max: 256,
            // A flow takes 100 to 300 octets: room for about half a million.
            answer_octets_max: 128 << 20,
        }
    }
}

/// Something that the owner of the session must hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Both sides speak OpenFlow 1.5: questions may be asked.
    Ready,
    /// The answer to a question; parts are put together.
    Answer {
        /// The question's transaction id.
        xid: Xid,
        /// The answer.
        message: Message,
    },
    /// The switch refused a message.
    Refused {
        /// The message's transaction id.
        xid: Xid,
        /// Why.
        error: SwitchError,
    },
    /// The switch sent something that cannot be read.
    Unreadable {
        /// Its transaction id.
        xid: Xid,
        /// Why.
        error: DecodeError,
    },
    /// A message that nothing asked for: a packet-in, a port change, a flow that went, an update of a flow monitor.
    Unasked(Message),
}

/// Why a session is over.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SessionError {
    /// The octets cannot be cut into messages.
    #[error("the switch's octets cannot be cut into messages")]
    Framing(#[source] DecodeError),
    /// No version in common.
    #[error(
        "the switch does not speak OpenFlow 1.5 (versions bitmap {versions:#x}): allow it with `ovs-vsctl set bridge NAME protocols=...,OpenFlow15`"
    )]
    NoCommonVersion {
        /// The switch's versions.
        versions: u32,
    },
    /// The switch refused the hello.
    #[error("the switch refused the session")]
    Refused(#[source] SwitchError),
    /// A message before the hello.
    #[error("the switch did not begin with hello")]
    NoHello,
    /// The other side fell silent.
    #[error("the switch was silent for {silence:?}")]
    Silent {
        /// For how long.
        silence: Duration,
    },
    /// An answer larger than the limit.
    #[error("the answer to request {xid} is larger than {octets_max} octets")]
    AnswerTooLarge {
        /// The question's transaction id.
        xid: Xid,
        /// The limit.
        octets_max: usize,
    },
}

/// A question that cannot be asked.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AskError {
    /// It has no wire form.
    #[error("request cannot be written")]
    Encode(#[from] EncodeError),
    /// Too many are open.
    #[error("{requests_max} requests are already open")]
    TooMany {
        /// The limit.
        requests_max: usize,
    },
}

#[derive(Debug, Default)]
struct Pending {
    parts: Option<MultipartReply>,
    octets: usize,
}

/// One conversation with a switch.
///
/// ```
/// use std::time::Duration;
/// use openflow::{session::{Event, Limits, Session}, wire::{self, Hello, Message}};
/// let mut session = Session::new(Limits::default(), Duration::ZERO);
/// assert!(!session.take_output().is_empty(), "it begins with hello");
/// let hello = wire::encode(&Message::Hello(Hello::new()), 1)?;
/// assert_eq!(session.receive(&hello, Duration::ZERO)?, [Event::Ready]);
/// let xid = session.ask(&Message::BarrierRequest)?;
/// let answer = wire::encode(&Message::BarrierReply, xid)?;
/// assert_eq!(session.receive(&answer, Duration::ZERO)?, [Event::Answer { xid, message: Message::BarrierReply }]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Session {
    limits: Limits,
    is_ready: bool,
    input: Vec<u8>,
    output: Vec<u8>,
    next_xid: Xid,
    pending: BTreeMap<Xid, Pending>,
    heard_at: Duration,
    echo_asked: bool,
}

impl Session {
    /// A session that begins at `now`, which counts from any moment, as long as it is always the same one.
    #[must_use]
    pub fn new(limits: Limits, now: Duration) -> Self {
        let mut session = Self {
            limits,
            is_ready: false,
            input: Vec::new(),
            output: Vec::new(),
            next_xid: 1,
            pending: BTreeMap::new(),
            heard_at: now,
            echo_asked: false,
        };
        session.put(&Message::Hello(Hello::new()));
        session
    }

    /// Whether hello is done.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// Octets that wait to be sent.
    #[must_use]
    pub fn output_len(&self) -> usize {
        self.output.len()
    }

    /// Takes the octets that are to be sent.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// Sends a message that has no answer; a refusal comes as [`Event::Refused`] with the same id.
    ///
    /// # Errors
    /// When the message has no wire form.
    pub fn send(&mut self, message: &Message) -> Result<Xid, EncodeError> {
        let xid = self.next_xid;
        let mut octets = wire::encode(message, xid)?;
        self.output.append(&mut octets);
        // Zero is left out: it is what unasked messages bear.
        self.next_xid = xid.checked_add(1).unwrap_or(1);
        Ok(xid)
    }

    /// Sends a question; its end comes as an event with the same id.
    ///
    /// # Errors
    /// When the message has no wire form, or too many questions are open.
    pub fn ask(&mut self, message: &Message) -> Result<Xid, AskError> {
        if self.pending.len() >= self.limits.requests_max {
            return Err(AskError::TooMany { requests_max: self.limits.requests_max });
        }
        let xid = self.send(message)?;
        self.pending.insert(xid, Pending::default());
        Ok(xid)
    }

    /// Asks a question of a bundle, which is outside the limit: there are three of them to a bundle.
    fn ask_always(&mut self, message: &Message) -> Option<Xid> {
        let xid = self.send(message).ok()?;
        self.pending.insert(xid, Pending::default());
        Some(xid)
    }

    /// Sends a message that always has a wire form.
    fn put(&mut self, message: &Message) {
        let sent = self.send(message);
        debug_assert!(sent.is_ok(), "{message:?} has no wire form: {sent:?}");
    }

    /// When [`tick`](Self::tick) is due.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        let interval =
            if self.echo_asked || !self.is_ready { self.limits.dead_interval } else { self.limits.echo_interval };
        self.heard_at + interval
    }

    /// Looks at the time: asks whether the other side lives, or finds that it does not.
    ///
    /// # Errors
    /// When the other side has been silent for too long.
    pub fn tick(&mut self, now: Duration) -> Result<(), SessionError> {
        let silence = now.saturating_sub(self.heard_at);
        if silence >= self.limits.dead_interval {
            return Err(SessionError::Silent { silence });
        }
        if self.is_ready && !self.echo_asked && silence >= self.limits.echo_interval {
            self.echo_asked = true;
            self.put(&Message::EchoRequest(Vec::new()));
        }
        Ok(())
    }

    /// Takes octets from the switch.
    ///
    /// # Errors
    /// When the session is over.
    pub fn receive(&mut self, octets: &[u8], now: Duration) -> Result<Vec<Event>, SessionError> {
        self.heard_at = now;
        self.echo_asked = false;
        self.input.extend_from_slice(octets);
        let input = std::mem::take(&mut self.input);
        let mut events = Vec::new();
        let mut rest = input.as_slice();
        while let Some(length) = wire::message_length(rest).map_err(SessionError::Framing)? {
            let Some((message, after)) = rest.split_at_checked(length) else { break };
            rest = after;
            events.extend(self.take_message(message)?);
        }
        self.input = rest.to_vec();
        Ok(events)
    }

    fn take_message(&mut self, octets: &[u8]) -> Result<Option<Event>, SessionError> {
        let (xid, message) = match wire::decode(octets) {
            Ok(decoded) => decoded,
            Err(error @ DecodeError::Version { .. }) => return Err(SessionError::Framing(error)),
            Err(error) => {
                let xid = octets.get(4..8).map_or(0, |id| id.iter().fold(0, |sum, octet| sum << 8 | u32::from(*octet)));
                self.pending.remove(&xid);
                return Ok(Some(Event::Unreadable { xid, error }));
            }
        };
        match message {
            Message::Hello(hello) if !self.is_ready => {
                if !hello.speaks_ours() {
                    return Err(SessionError::NoCommonVersion { versions: hello.versions });
                }
                self.is_ready = true;
                Ok(Some(Event::Ready))
            }
            Message::Hello(_) | Message::EchoReply(_) => Ok(None),
            Message::Error(error) if !self.is_ready => Err(SessionError::Refused(error)),
            _ if !self.is_ready => Err(SessionError::NoHello),
            Message::EchoRequest(data) => {
                if let Ok(mut reply) = wire::encode(&Message::EchoReply(data), xid) {
                    self.output.append(&mut reply);
                }
                Ok(None)
            }
            Message::Error(error) => {
                self.pending.remove(&xid);
                Ok(Some(Event::Refused { xid, error }))
            }
            Message::MultipartReply { reply, more } => self.take_part(xid, reply, more, octets.len()),
            message if is_unasked(&message) => Ok(Some(Event::Unasked(message))),
            message => Ok(self.pending.remove(&xid).map(|_| Event::Answer { xid, message })),
        }
    }

    /// Takes one part of an answer; parts that nobody asked for are dropped, but for the updates of a flow monitor.
    fn take_part(
        &mut self,
        xid: Xid,
        reply: MultipartReply,
        more: bool,
        octets: usize,
    ) -> Result<Option<Event>, SessionError> {
        let Some(pending) = self.pending.get_mut(&xid) else {
            // What a flow monitor tells looks like an answer, and bears the id of none.
            let is_told = matches!(reply, MultipartReply::FlowUpdates(_));
            return Ok(is_told.then_some(Event::Unasked(Message::MultipartReply { reply, more })));
        };
        pending.octets += octets;
        if pending.octets > self.limits.answer_octets_max {
            return Err(SessionError::AnswerTooLarge { xid, octets_max: self.limits.answer_octets_max });
        }
        match &mut pending.parts {
            None => pending.parts = Some(reply),
            Some(parts) => {
                if !parts.append(reply) {
                    self.pending.remove(&xid);
                    let error = DecodeError::BadValue { what: "kind of a later part of an answer", value: 0 };
                    return Ok(Some(Event::Unreadable { xid, error }));
                }
            }
        }
        if more {
            return Ok(None);
        }
        let parts = self.pending.remove(&xid).and_then(|pending| pending.parts);
        Ok(parts.map(|reply| Event::Answer { xid, message: Message::MultipartReply { reply, more: false } }))
    }
}

/// Whether a message comes of the switch's own accord.
fn is_unasked(message: &Message) -> bool {
    matches!(
        message,
        Message::PacketIn(_)
            | Message::PortStatus(_)
            | Message::FlowRemoved(_)
            | Message::RoleStatus(_)
            | Message::TableStatus(_)
            | Message::RequestForward(_)
    )
}

#[cfg(test)]
mod tests;
