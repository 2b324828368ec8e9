//! What the switch counted: packets of each flow and of each port.
//!
//! Owns a connection of its own for each reading, so that a question never waits behind a change, nor a change behind a question. Reads only.

use std::path::Path;

use openflow::connection::{Connection, ConnectionError, Options, RequestError, Target};
use openflow::wire::{FlowFilter, FlowStats, PortCounters};
use thiserror::Error;

use crate::table::Table;

/// Why counters were not read.
#[derive(Debug, Error)]
pub enum CountersError {
    /// There is no switch at the socket.
    #[error("connect to {target}")]
    Connect {
        /// The socket.
        target: String,
        /// Why.
        #[source]
        source: ConnectionError,
    },
    /// The switch did not answer a question.
    #[error("read the counters of {what}")]
    Read {
        /// What they are of.
        what: &'static str,
        /// Why.
        #[source]
        source: RequestError,
    },
}

/// How many connections count for a listener: the flows under its cookie that the switch whose management socket this is has learned.
///
/// # Errors
/// When the switch cannot be reached, or does not answer in the connection's usual time.
pub async fn open_connections(socket: &Path, cookie: u64) -> Result<u64, CountersError> {
    let connection = connect(socket).await?;
    let table = Table::Open.number();
    let learned = FlowFilter { table, cookie, cookie_mask: u64::MAX, ..FlowFilter::default() };
    let counted = connection.aggregate(learned).await;
    let counted = counted.map_err(|source| CountersError::Read { what: "open connections", source })?;
    Ok(counted.flows.map_or(0, u64::from))
}

async fn connect(socket: &Path) -> Result<Connection, CountersError> {
    let target = Target::Unix(socket.to_owned());
    let connected = Connection::connect(&target, Options::default()).await;
    let (connection, _) = connected.map_err(|source| CountersError::Connect { target: target.to_string(), source })?;
    Ok(connection)
}

/// What was counted since each flow and each port came to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Flows of all tables, foreign ones too.
    pub flows: Vec<FlowStats>,
    /// Ports of the bridge.
    pub ports: Vec<PortCounters>,
}

/// Reads all counters of the bridge whose management socket this is.
///
/// # Errors
/// When the switch cannot be reached, or does not answer in the connection's usual time.
pub async fn read(socket: &Path) -> Result<Counters, CountersError> {
    let connection = connect(socket).await?;
    let flows = connection.flow_stats(FlowFilter::default()).await;
    let flows = flows.map_err(|source| CountersError::Read { what: "flows", source })?;
    let ports = connection.port_stats().await.map_err(|source| CountersError::Read { what: "ports", source })?;
    Ok(Counters { flows, ports })
}
