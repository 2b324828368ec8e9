//! Applying many changes at once, or none of them.
//!
//! Owns [`Bundle`]: the steps open, add, close, commit. Never touches a socket; its owner feeds it and hands it events.
//! Invariant: commit is only sent after the switch has taken every message; so a refused one leaves the switch as it was.
//!
//! ```text
//! Filling --all sent, close--> Closing --closed, none refused--> Committing --committed--> Ok
//!    |  encode error              | a message refused                | a message refused
//!    v                            v                                  v
//!  discard, Err                 discard, Err                        Err (the switch rolled back)
//! ```
//! Source: OpenFlow 1.5.1 §6.9 and §7.3.9.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use super::{Event, Session};
use crate::{
    flow::{Flow, Match},
    wire::{
        BundleAdd, BundleControl, BundleFlags, BundleStep, EncodeError, FlowCommand, FlowMod, GroupMod, Message,
        SwitchError, Xid,
    },
};

/// A change that a bundle can hold.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Change {
    /// Adds a flow that its owner keeps as well: a bundle of many of them holds no copies.
    Add(Arc<Flow>),
    /// Of flows.
    Flow(Box<FlowMod>),
    /// Of groups.
    Group(GroupMod),
}

impl From<FlowMod> for Change {
    fn from(change: FlowMod) -> Self {
        Self::Flow(Box::new(change))
    }
}

impl From<GroupMod> for Change {
    fn from(change: GroupMod) -> Self {
        Self::Group(change)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add(flow) => write!(f, "add flow {flow}"),
            Self::Flow(change) => match change.command {
                FlowCommand::Add => write!(f, "add flow {}", change.flow),
                FlowCommand::Modify | FlowCommand::ModifyStrict => write!(f, "modify flow {}", change.flow),
                FlowCommand::Delete if change.flow.matching == Match::new() => {
                    write!(f, "delete flows of table {}", change.flow.table)
                }
                FlowCommand::Delete | FlowCommand::DeleteStrict => write!(f, "delete flow {}", change.flow),
            },
            Self::Group(GroupMod::Add(group)) => write!(f, "add group {group}"),
            Self::Group(GroupMod::Modify(group) | GroupMod::AddOrModify(group)) => write!(f, "modify group {group}"),
            Self::Group(GroupMod::Delete(id)) => write!(f, "delete group {id}"),
            Self::Group(GroupMod::InsertBuckets(_, group)) => write!(f, "insert buckets {group}"),
            Self::Group(GroupMod::RemoveBuckets(_, id)) => write!(f, "remove buckets of group {id}"),
        }
    }
}

impl From<Change> for Message {
    fn from(change: Change) -> Self {
        match change {
            Change::Add(flow) => Self::FlowMod(FlowMod::add(Arc::unwrap_or_clone(flow))),
            Change::Flow(change) => Self::FlowMod(*change),
            Change::Group(change) => Self::GroupMod(change),
        }
    }
}

/// Why nothing of a bundle was applied.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BundleError {
    /// A change has no wire form.
    #[error("change {index} of the bundle cannot be written: {change}")]
    Encode {
        /// Its place among the changes, from 0.
        index: usize,
        /// The change as text.
        change: String,
        /// Why.
        #[source]
        source: EncodeError,
    },
    /// The switch refused a change.
    #[error("the switch refused change {index} of the bundle: {change}")]
    Refused {
        /// Its place among the changes, from 0.
        index: usize,
        /// The change as text.
        change: String,
        /// Why.
        #[source]
        source: SwitchError,
    },
    /// The switch refused the bundle itself.
    #[error("the switch refused to {step} the bundle")]
    Bundle {
        /// What was tried.
        step: &'static str,
        /// Why.
        #[source]
        source: SwitchError,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Filling,
    Closing,
    Committing,
}

/// A bundle on its way to the switch.
#[derive(Debug)]
pub struct Bundle {
    id: u32,
    flags: BundleFlags,
    changes: Vec<Change>,
    /// Transaction ids of the changes sent so far, ascending but for one wrap.
    sent: Vec<Xid>,
    state: State,
    /// Transaction ids of open, close and commit.
    control: [Option<Xid>; 3],
    refused: Option<(usize, SwitchError)>,
}

impl Bundle {
    /// A bundle with a number that no other open bundle of the session has. It is atomic and ordered.
    #[must_use]
    pub fn new(id: u32, changes: Vec<Change>) -> Self {
        Self {
            id,
            flags: BundleFlags::ATOMIC | BundleFlags::ORDERED,
            changes,
            sent: Vec::new(),
            state: State::Filling,
            control: [None; 3],
            refused: None,
        }
    }

    fn control(&self, step: BundleStep) -> Message {
        Message::BundleControl(BundleControl { id: self.id, step, flags: self.flags })
    }

    /// Whether [`feed`](Self::feed) has more to send.
    #[must_use]
    pub fn has_more(&self) -> bool {
        self.state == State::Filling
    }

    /// Whether the message of this id is one of the bundle's changes.
    #[must_use]
    pub fn has_sent(&self, xid: Xid) -> bool {
        self.sent.contains(&xid)
    }

    /// Writes changes into the session until its output holds `octets_max` octets or all are written.
    ///
    /// # Errors
    /// When a change has no wire form; the bundle is then forgotten and nothing was applied.
    pub fn feed(&mut self, session: &mut Session, octets_max: usize) -> Result<(), BundleError> {
        if self.state != State::Filling {
            return Ok(());
        }
        if self.control[0].is_none() {
            self.control[0] = session.ask_always(&self.control(BundleStep::Open));
        }
        while let Some(change) = self.changes.get(self.sent.len()) {
            if session.output_len() >= octets_max {
                return Ok(());
            }
            let message = Box::new(Message::from(change.clone()));
            match session.send(&Message::BundleAdd(BundleAdd { id: self.id, flags: self.flags, message })) {
                Ok(xid) => self.sent.push(xid),
                Err(source) => {
                    let (index, change) = (self.sent.len(), change.to_string());
                    self.discard(session);
                    return Err(BundleError::Encode { index, change, source });
                }
            }
        }
        self.control[1] = session.ask_always(&self.control(BundleStep::Close));
        self.state = State::Closing;
        Ok(())
    }

    fn discard(&self, session: &mut Session) {
        session.ask_always(&self.control(BundleStep::Discard));
    }

    /// Takes an event of the session. `None` while the bundle goes on; `Some` is its end.
    pub fn take(&mut self, event: &Event, session: &mut Session) -> Option<Result<(), BundleError>> {
        match event {
            Event::Refused { xid, error } => self.take_refusal(*xid, error, session),
            Event::Unasked(_) | Event::Ready | Event::Unreadable { .. } => None,
            Event::Answer { message: Message::BundleControl(control), .. } if control.id == self.id => {
                match (control.step, self.state) {
                    (BundleStep::Closed, State::Closing) => match self.take_refused() {
                        Some(error) => {
                            self.discard(session);
                            Some(Err(error))
                        }
                        None => {
                            self.control[2] = session.ask_always(&self.control(BundleStep::Commit));
                            self.state = State::Committing;
                            None
                        }
                    },
                    (BundleStep::Committed, State::Committing) => Some(Ok(())),
                    _ => None,
                }
            }
            Event::Answer { .. } => None,
        }
    }

    fn take_refused(&mut self) -> Option<BundleError> {
        let (index, source) = self.refused.take()?;
        let change = self.changes.get(index).map_or_else(String::new, Change::to_string);
        Some(BundleError::Refused { index, change, source })
    }

    fn take_refusal(
        &mut self,
        xid: Xid,
        error: &SwitchError,
        session: &mut Session,
    ) -> Option<Result<(), BundleError>> {
        if let Some(index) = self.sent.iter().position(|sent| *sent == xid) {
            // The first refusal is the cause; those after it may be its consequences.
            self.refused.get_or_insert_with(|| (index, error.clone()));
            return None;
        }
        let at = self.control.iter().position(|sent| *sent == Some(xid))?;
        let step = ["open", "close", "commit"][at];
        if at < 2 {
            self.discard(session);
        }
        Some(Err(self.take_refused().unwrap_or_else(|| BundleError::Bundle { step, source: error.clone() })))
    }
}
