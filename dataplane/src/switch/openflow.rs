//! The real channel: OpenFlow 1.5 over the bridge's own socket.
//!
//! Translates, and decides nothing: steps become one ordered atomic bundle (but for meters), packet-ins become [`Punted`], replies become
//! packet-outs that go out of a port without meeting a flow.

use std::error::Error;
use std::path::PathBuf;

use openflow::connection::{ApplyError, Connection, Incoming, MetersError, Options, RequestError, Target, Unasked};
use openflow::flow::{Action, PortNo};
use openflow::session::Change;
use openflow::wire::{CtFlush, FlowFilter, FlowMod, GroupMod, Message, MeterMod, PacketOut};
use tracing::{debug, warn};

use super::channel::{Channel, ChannelError, Connector, Paused, Punted, Reply};
use crate::diff::{Changes, Counts, Installed};
use crate::feature::connection_limit::is_learned;
use crate::table::Table;

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
        let meters = self.connection.dump_meters().await.map_err(|error| failed("read meters", error))?;
        Ok(Installed { flows, groups, meters })
    }

    async fn count(&mut self) -> Result<Counts, ChannelError> {
        let all = FlowFilter::default();
        // What the switch learns comes and goes between two questions.
        let had_learned = self.has_learned().await?;
        let flows = self.connection.aggregate(all).await.map_err(|error| failed("count flows", error))?.flows;
        let groups = self.connection.dump_groups().await.map_err(|error| failed("count groups", error))?.len();
        let meters = self.connection.dump_meters().await.map_err(|error| failed("count meters", error))?.len();
        let mut flows = flows.and_then(|flows| usize::try_from(flows).ok()).unwrap_or(usize::MAX);
        if had_learned || self.has_learned().await? {
            let all = self.connection.dump_flows().await.map_err(|error| failed("count flows", error))?;
            flows = all.iter().filter(|flow| !is_learned(flow)).count();
        }
        Ok(Counts { flows, groups, meters })
    }

    async fn apply(&mut self, changes: Changes) -> Result<usize, ChannelError> {
        let mut count = 0;
        let added = changes.add_meters.iter().cloned().map(MeterMod::Add);
        let modified = changes.modify_meters.iter().cloned().map(MeterMod::Modify);
        count += self.change_meters(added.chain(modified).collect()).await?;
        let unused = changes.delete_meters.clone();
        let steps = bundled(changes);
        count += steps.len();
        if !steps.is_empty() {
            self.connection.apply_bundle(steps).await.map_err(|error| match error {
                ApplyError::Bundle(error) => ChannelError::Refused { what: "change flows", source: Box::new(error) },
                error @ ApplyError::Unknown(_) => ChannelError::Lost { what: "change flows", source: Box::new(error) },
            })?;
        }
        count += self.change_meters(unused.into_iter().map(MeterMod::Delete).collect()).await?;
        Ok(count)
    }

    async fn forget(&mut self, zone: u16) -> Result<(), ChannelError> {
        let flush = Message::CtFlushZone(zone);
        self.connection.checked(flush).await.map_err(|error| failed("forget connections", error))
    }

    async fn forget_connections(&mut self, which: CtFlush) -> Result<(), ChannelError> {
        self.connection.flush_connections(which).await.map_err(|error| failed("forget connections", error))
    }

    async fn punted(&mut self) -> Result<Punted, ChannelError> {
        loop {
            match self.incoming.next().await {
                Some(Unasked::PacketIn(packet)) => {
                    let in_port = packet.in_port().unwrap_or(PortNo::ANY);
                    let (user_data, frame) = (packet.userdata.clone(), packet.packet.clone());
                    let paused = packet.resume().map(|resume| Paused(Box::new(resume)));
                    return Ok(Punted { in_port, user_data, frame, paused });
                }
                Some(Unasked::Refused { error, .. }) => debug!(%error, "packet-out refused"),
                Some(Unasked::Lost { count }) => warn!(count, "packet-ins dropped: too many at once"),
                Some(_) => {}
                None => return Err(self.over("wait for packets").await),
            }
        }
    }

    async fn send(&mut self, reply: Reply) -> Result<(), ChannelError> {
        let sent = match reply {
            Reply::Out { port, exit, frame } => {
                self.connection.packet_out(PacketOut::new(PortNo::CONTROLLER, exit.steps(port), frame)).await
            }
            Reply::GoOn { paused: Paused(mut resume), frame } => {
                resume.0.octets_total = u32::try_from(frame.len()).unwrap_or(u32::MAX);
                resume.0.packet = frame;
                self.connection.resume(*resume).await
            }
            Reply::Again { port, frame } => {
                let anew = vec![Action::resubmit(Table::Classify.number())];
                self.connection.packet_out(PacketOut::new(port, anew, frame)).await
            }
        };
        sent.map(drop).map_err(|error| failed("send a packet", error))
    }
}

impl OpenFlowChannel {
    /// Whether the switch has learned anything by itself.
    async fn has_learned(&mut self) -> Result<bool, ChannelError> {
        let open = FlowFilter { table: Table::Open.number(), ..FlowFilter::default() };
        let learned = self.connection.aggregate(open).await.map_err(|error| failed("count flows", error))?;
        Ok(learned.flows != Some(0))
    }

    /// Changes meters, and says how many.
    async fn change_meters(&self, changes: Vec<MeterMod>) -> Result<usize, ChannelError> {
        let count = changes.len();
        let failed = |error: MetersError| {
            let (what, source) = ("change meters", Box::new(error));
            if is_lost(&source.source) {
                ChannelError::Lost { what, source }
            } else {
                ChannelError::Refused { what, source }
            }
        };
        self.connection.change_meters(changes).await.map_err(failed)?;
        Ok(count)
    }

    async fn over(&self, what: &'static str) -> ChannelError {
        let source: Box<dyn Error + Send + Sync> = match self.connection.over().await {
            Some(error) => Box::new(error),
            None => "it was closed".into(),
        };
        ChannelError::Lost { what, source }
    }
}

/// The steps that go into one bundle, in the order of [`Changes::steps`]; Open vSwitch takes no meters in bundles.
fn bundled(changes: Changes) -> Vec<Change> {
    let added = changes.add_groups.into_iter().map(GroupMod::Add);
    let groups = added.chain(changes.modify_groups.into_iter().map(GroupMod::Modify)).map(Change::from);
    let flows = changes.add_flows.into_iter().map(Change::Add);
    let flows = flows.chain(changes.delete_flows.into_iter().map(FlowMod::delete_strict).map(Change::from));
    let after = changes.delete_groups.into_iter().map(GroupMod::Delete).map(Change::from);
    groups.chain(flows).chain(after).collect()
}

/// Whether the connection is of further use decides which error it is.
fn failed(what: &'static str, error: RequestError) -> ChannelError {
    let is_lost = is_lost(&error);
    let source = Box::new(error);
    if is_lost { ChannelError::Lost { what, source } } else { ChannelError::Refused { what, source } }
}

const fn is_lost(error: &RequestError) -> bool {
    matches!(error, RequestError::Over(_) | RequestError::Timeout { .. })
}
