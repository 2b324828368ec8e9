//! The real channel: OpenFlow 1.5 over the bridge's own socket.
//!
//! Translates, and decides nothing: steps become one ordered atomic bundle, packet-ins become [`Punted`], replies become
//! packet-outs that go out of a port without meeting a flow.

use std::error::Error;
use std::path::PathBuf;

use openflow::connection::{ApplyError, Connection, Incoming, Options, RequestError, Target, Unasked};
use openflow::flow::{Action, PortNo};
use openflow::session::Change;
use openflow::wire::{FlowMod, GroupMod, PacketOut};
use tracing::{debug, warn};

use super::channel::{Channel, ChannelError, Connector, Punted, Reply};
use crate::diff::{Changes, Installed, Step};

/// Connects to one bridge.
#[derive(Debug, Clone)]
pub struct OpenFlow {
    target: Target,
}

impl OpenFlow {
    /// The bridge whose management socket this is; Debian has that of `br-int` at `/run/openvswitch/br-int.mgmt`.
    #[must_use]
    pub fn unix(socket: impl Into<PathBuf>) -> Self {
        Self { target: Target::Unix(socket.into()) }
    }
}

impl Connector for OpenFlow {
    type Channel = OpenFlowChannel;

    async fn connect(&mut self) -> Result<OpenFlowChannel, ChannelError> {
        let options = Options { wants_unasked: true, ..Options::default() };
        match Connection::connect(&self.target, options).await {
            Ok((connection, incoming)) => Ok(OpenFlowChannel { connection, incoming }),
            Err(error) => Err(ChannelError::Connect { target: self.target.to_string(), source: Box::new(error) }),
        }
    }
}

/// A connection to one bridge.
#[derive(Debug)]
pub struct OpenFlowChannel {
    connection: Connection,
    incoming: Incoming,
}

impl Channel for OpenFlowChannel {
    async fn read(&mut self) -> Result<Installed, ChannelError> {
        let flows = self.connection.dump_flows().await.map_err(|error| failed("read flows", error))?;
        let groups = self.connection.dump_groups().await.map_err(|error| failed("read groups", error))?;
        Ok(Installed { flows, groups })
    }

    async fn apply(&mut self, changes: &Changes) -> Result<usize, ChannelError> {
        let steps: Vec<Change> = changes.steps().map(change).collect();
        let count = steps.len();
        match self.connection.apply_bundle(steps).await {
            Ok(()) => Ok(count),
            Err(ApplyError::Bundle(error)) => {
                Err(ChannelError::Refused { what: "change flows", source: Box::new(error) })
            }
            Err(error @ ApplyError::Unknown(_)) => {
                Err(ChannelError::Lost { what: "change flows", source: Box::new(error) })
            }
        }
    }

    async fn punted(&mut self) -> Result<Punted, ChannelError> {
        loop {
            match self.incoming.next().await {
                Some(Unasked::PacketIn(packet)) => {
                    let in_port = packet.in_port().unwrap_or(PortNo::ANY);
                    return Ok(Punted { in_port, user_data: packet.userdata, frame: packet.packet });
                }
                Some(Unasked::Refused { error, .. }) => debug!(%error, "packet-out refused"),
                Some(Unasked::Lost { count }) => warn!(count, "packet-ins dropped: too many at once"),
                Some(Unasked::PortStatus(_) | Unasked::FlowRemoved(_)) => {}
                None => return Err(self.over("wait for packets").await),
            }
        }
    }

    async fn send(&mut self, reply: Reply) -> Result<(), ChannelError> {
        let packet = PacketOut::new(PortNo::CONTROLLER, vec![Action::Output(reply.port)], reply.frame);
        self.connection.packet_out(packet).await.map(drop).map_err(|error| failed("send a packet", error))
    }
}

impl OpenFlowChannel {
    async fn over(&self, what: &'static str) -> ChannelError {
        let source: Box<dyn Error + Send + Sync> = match self.connection.over().await {
            Some(error) => Box::new(error),
            None => "it was closed".into(),
        };
        ChannelError::Lost { what, source }
    }
}

fn change(step: Step<'_>) -> Change {
    match step {
        Step::AddGroup(group) => GroupMod::Add(group.clone()).into(),
        Step::ModifyGroup(group) => GroupMod::Modify(group.clone()).into(),
        Step::AddFlow(flow) => FlowMod::add(flow.clone()).into(),
        Step::DeleteFlow(key) => FlowMod::delete_strict(key.clone()).into(),
        Step::DeleteGroup(id) => GroupMod::Delete(id).into(),
    }
}

/// Whether the connection is of further use decides which error it is.
fn failed(what: &'static str, error: RequestError) -> ChannelError {
    let is_lost = matches!(error, RequestError::Over(_) | RequestError::Timeout { .. });
    let source = Box::new(error);
    if is_lost { ChannelError::Lost { what, source } } else { ChannelError::Refused { what, source } }
}
