//! What the driver needs of an OpenFlow connection to one bridge, and nothing more.
//!
//! [`Channel`] is the narrow interface; `switch/openflow.rs` has the real one and the driver's tests a switch in memory.
//! A channel that has failed with [`ChannelError::Lost`] is of no further use.

use std::error::Error;
use std::future::Future;

use openflow::flow::PortNo;
use openflow::wire::{CtFlush, Resume};
use thiserror::Error;

use crate::diff::{Changes, Counts, Installed};
use crate::exit::Exit;

/// Why a switch did not do what was asked.
#[derive(Debug, Error)]
pub enum ChannelError {
    /// There is no connection.
    #[error("connect to the switch at {target} (is ovs-vswitchd running, and does the bridge exist?)")]
    Connect {
        /// The socket.
        target: String,
        /// Why not.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The connection went, or the switch did not answer in time.
    #[error("{what}: lost the connection to the switch")]
    Lost {
        /// What was being done.
        what: &'static str,
        /// How.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The switch answered with an error; the connection goes on.
    #[error("{what}: the switch refused")]
    Refused {
        /// What was being done.
        what: &'static str,
        /// In the switch's words.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

/// A packet that a flow handed to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Punted {
    /// The port that it came in on.
    pub in_port: PortNo,
    /// What the flow's controller action carries.
    pub user_data: Vec<u8>,
    /// The frame.
    pub frame: Vec<u8>,
    /// How it goes on, when it waits for us.
    pub paused: Option<Paused>,
}

/// The state of a packet that waits, as the switch told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paused(pub(super) Box<Resume>);

/// What the switch is told to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// A packet out of a port, without going through the flows.
    Out {
        /// The port.
        port: PortNo,
        /// What is done with it before.
        exit: Exit,
        /// The frame.
        frame: Vec<u8>,
    },
    /// A packet that waited goes on where it was.
    GoOn {
        /// Where it was.
        paused: Paused,
        /// What it is now.
        frame: Vec<u8>,
    },
    /// A frame comes in by a port once more, through the flows.
    Again {
        /// The port.
        port: PortNo,
        /// The frame.
        frame: Vec<u8>,
    },
}

/// An OpenFlow connection to one bridge.
pub trait Channel: Send {
    /// Reads all flows, groups and meters.
    fn read(&mut self) -> impl Future<Output = Result<Installed, ChannelError>> + Send;

    /// Counts all flows, groups and meters.
    fn count(&mut self) -> impl Future<Output = Result<Counts, ChannelError>> + Send;

    /// Takes all steps of flows and groups at once or none, meters before and after them, and returns how many messages that took.
    fn apply(&mut self, changes: Changes) -> impl Future<Output = Result<usize, ChannelError>> + Send;

    /// Makes the switch forget all connections in a zone of its connection tracker.
    fn forget(&mut self, zone: u16) -> impl Future<Output = Result<(), ChannelError>> + Send;

    /// Makes the switch forget some connections of its connection tracker.
    fn forget_connections(&mut self, which: CtFlush) -> impl Future<Output = Result<(), ChannelError>> + Send;

    /// Waits for the next packet that a flow hands to us. Giving up waiting loses none.
    fn punted(&mut self) -> impl Future<Output = Result<Punted, ChannelError>> + Send;

    /// Sends a packet out of a port.
    fn send(&mut self, reply: Reply) -> impl Future<Output = Result<(), ChannelError>> + Send;
}

/// Makes channels to one bridge.
pub trait Connector: Send + 'static {
    /// The channels made.
    type Channel: Channel;

    /// Connects once.
    fn connect(&mut self) -> impl Future<Output = Result<Self::Channel, ChannelError>> + Send;
}

/// Answers packets.
pub trait Responder: Send + 'static {
    /// What to send for this packet, if anything.
    fn respond(&mut self, packet: &Punted) -> Option<Reply>;

    /// Waits for what is to be sent later than [`Responder::respond`] can say; mostly forever. Giving up waiting loses nothing.
    fn later(&mut self) -> impl Future<Output = Reply> + Send {
        std::future::pending()
    }

    /// What to send though nobody asked, now and then; mostly nothing.
    fn announce(&mut self) -> Vec<Reply> {
        Vec::new()
    }
}
