//! The integration bridge and its ports, kept as they should be through the switch's database.
//!
//! [`Bridge`] follows the database and changes it only where `plan` finds a difference: asked twice, the
//! second time changes nothing. It never touches flows, other bridges, or ports that it did not make. A change is done
//! when the switch daemon has caught up with it, not when the database took it.
//!
//! Ports are named by their tap device; `external_ids:iface-id` has the port's id, as other controllers have it too, and
//! `external_ids:basalt:vm` the machine's, which marks the port as ours. The tunnel port of a peer has its endpoint in `external_ids:basalt:peer`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use model::provider::PhysicalNetwork;
use model::{Mac, MachineId, PortId};
use openflow::flow::PortNo;
use ovsdb::connection::{Connection, ConnectionError, Remote, Status};
use ovsdb::monitor::Watch;
use ovsdb::replica::Replica;
use ovsdb::session::Config;
use ovsdb::tables::{self, DATABASE, Interface, OpenVswitch, Port, Table, TableError};
use ovsdb::transaction::{ErrorKind, Transaction, TransactionError};
use thiserror::Error;
use tokio::sync::watch;
use tracing::info;

use crate::compile::{Minimums, PortNumbers};
use crate::peer::Peer;

mod export;
mod plan;
mod queues;

pub use export::FlowExport;
use plan::Plan;
pub use queues::promisable;

/// The name of the tunnel port.
pub const TUNNEL_PORT: &str = "vxlan0";

/// The UDP port of VXLAN (RFC 7348 §5).
pub const VXLAN_UDP_PORT: u16 = 4789;

/// How long the switch daemon may take to catch up with a change.
pub const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the switch daemon may take to say again that it has made a bridge.
const MADE_TIMEOUT: Duration = Duration::from_secs(3);

/// How often a change is planned again because somebody else changed the same rows in between.
const CONFLICTS_MAX: u32 = 5;

/// What forwards the packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datapath {
    /// The kernel's openvswitch module.
    System,
    /// The switch daemon itself.
    Netdev,
}

impl Datapath {
    /// The word that the database has for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Netdev => "netdev",
        }
    }
}

impl fmt::Display for Datapath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.word())
    }
}

impl FromStr for Datapath {
    type Err = BridgeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "system" => Ok(Self::System),
            "netdev" => Ok(Self::Netdev),
            _ => Err(BridgeError::Datapath(text.to_owned())),
        }
    }
}

/// Where the database is and how the bridge should be.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The switch's database.
    pub database: Remote,
    /// The bridge's name.
    pub bridge: String,
    /// What forwards its packets.
    pub datapath: Datapath,
    /// This host's address in the underlay, or none for a host without tunnels.
    pub tunnel_ip: Option<Ipv4Addr>,
    /// The physical networks that this host is wired to, each with its interface, which becomes a port of the bridge.
    pub physical: BTreeMap<PhysicalNetwork, String>,
    /// Thousands of bits a second that the link to a physical network carries, where minimums of ports are kept there.
    pub bandwidth_kbps: BTreeMap<PhysicalNetwork, NonZeroU32>,
    /// What is told of the flows that it forwards, and to whom.
    pub export: Option<FlowExport>,
    /// Whether hosts that depend on each other for routers' ways out watch each other by BFD.
    pub watches_peers: bool,
}

/// The port of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapPort {
    /// The name of the tap device, which must exist.
    pub tap: String,
    /// The port.
    pub port: PortId,
    /// The machine that has it.
    pub machine: MachineId,
    /// The address by which the machine is known.
    pub mac: Mac,
}

/// A port of the bridge as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortState {
    /// The OpenFlow port number, while the switch has the port working.
    pub number: Option<u32>,
    /// What is wrong with it.
    pub error: Option<String>,
    /// The port's id, where `iface-id` has one.
    pub port: Option<PortId>,
    /// The machine, where this is one of our ports.
    pub machine: Option<MachineId>,
    /// The physical network that it leads to.
    pub physical: Option<PhysicalNetwork>,
    /// Whether somebody else has shaped what leaves by it.
    pub is_shaped: bool,
    /// The other host whose tunnel it is, and what is known of that.
    pub peer: Option<(Ipv4Addr, Pulse)>,
}

/// What BFD says of another host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pulse {
    /// Whether it was alive since the switch daemon started.
    pub is_heard: bool,
    /// Whether it is now.
    pub is_alive: bool,
}

/// Why the bridge is not as it should be.
#[derive(Debug, Error)]
pub enum BridgeError {
    /// A datapath of no known name.
    #[error("{0:?} is no datapath: system or netdev")]
    Datapath(String),
    /// The database cannot be reached.
    #[error("reach the switch's database (is openvswitch-switch running?)")]
    Database(#[source] Box<ConnectionError>),
    /// A row cannot be read.
    #[error("read the switch's database")]
    Table(#[from] TableError),
    /// The database has no `Open_vSwitch` row: nobody ran `ovs-vsctl init`.
    #[error("the switch's database is not initialised: run ovs-vsctl init")]
    Uninitialised,
    /// The bridge is not there.
    #[error("there is no bridge {0}")]
    NoBridge(String),
    /// A port of this name exists on another bridge.
    #[error("port {port} exists already on another bridge than {bridge}")]
    Elsewhere {
        /// The port.
        port: String,
        /// Our bridge.
        bridge: String,
    },
    /// A port of this name exists, and somebody else made it.
    #[error("port {port} of bridge {bridge} was not made by this agent")]
    Foreign {
        /// The port.
        port: String,
        /// Our bridge.
        bridge: String,
    },
    /// The database refused a change.
    #[error("{what}")]
    Change {
        /// What was to be changed.
        what: String,
        /// Why not.
        #[source]
        source: TransactionError,
    },
    /// The switch daemon did not act on a change that the database has.
    #[error("{what}: the switch daemon did not act on it in {waited:?} (is ovs-vswitchd running?)")]
    Silent {
        /// What was changed.
        what: String,
        /// How long was waited.
        waited: Duration,
    },
    /// The switch daemon could not make the bridge: for the kernel datapath its module is missing.
    #[error(
        "the switch cannot make bridge {bridge} with datapath {datapath} (for system: is the kernel module openvswitch loaded?)"
    )]
    NoDatapath {
        /// Our bridge.
        bridge: String,
        /// Its datapath.
        datapath: Datapath,
    },
    /// The switch cannot use a port.
    #[error("the switch cannot use port {port}: {reason}")]
    Unusable {
        /// The port.
        port: String,
        /// The switch's words.
        reason: String,
    },
}

/// The bridge, followed through the database.
#[derive(Debug)]
pub struct Bridge {
    settings: Settings,
    connection: Connection,
}

impl Bridge {
    /// Starts to follow the database; must be called inside a tokio runtime. It connects, and connects again, by itself.
    #[must_use]
    pub fn start(settings: Settings) -> Self {
        let mut watch = OpenVswitch::watched_by(Watch::new());
        for add in [tables::Bridge::watched_by, tables::Ipfix::watched_by, Port::watched_by, Interface::watched_by] {
            watch = add(watch);
        }
        watch = tables::Queue::watched_by(tables::Qos::watched_by(watch));
        let connection = Connection::start(settings.database.clone(), Config::new(DATABASE, watch));
        Self { settings, connection }
    }

    /// How the bridge should be.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Waits until the database was read.
    ///
    /// # Errors
    /// When that takes longer than `limit`.
    pub async fn connected(&self, limit: Duration) -> Result<(), BridgeError> {
        self.connection.synchronised(limit).await.map_err(|error| BridgeError::Database(Box::new(error)))
    }

    /// Follows the database: the generation grows with each change of the bridge, its ports, or anything else watched.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Status> {
        self.connection.status()
    }

    /// Makes the bridge, the tunnel port and the ports of physical networks, or corrects them, and returns what was changed in words. An interface
    /// of a physical network that the switch cannot use stops nothing else: the network's flows say so.
    ///
    /// # Errors
    /// When the database refuses, the switch daemon does not act, or cannot use the tunnel port.
    pub async fn ensure(&self) -> Result<Vec<String>, BridgeError> {
        let changed = self.change(|replica| plan::bridge(replica, &self.settings)).await?;
        self.made().await?;
        if self.settings.tunnel_ip.is_some() {
            self.working(TUNNEL_PORT).await?;
        }
        Ok(changed)
    }

    /// Makes a machine's port, or corrects it, and returns its OpenFlow port number.
    ///
    /// # Errors
    /// When there is no bridge, the port is somebody else's, the database refuses, or the switch cannot use the device.
    pub async fn ensure_port(&self, port: &TapPort) -> Result<u32, BridgeError> {
        self.change(|replica| plan::port(replica, &self.settings, port)).await?;
        self.working(&port.tap).await
    }

    /// Removes a machine's port from the bridge, and returns whether there was one. The tap device stays.
    ///
    /// # Errors
    /// When the port is somebody else's or the database refuses.
    pub async fn remove_port(&self, tap: &str) -> Result<bool, BridgeError> {
        let changed = self.change(|replica| plan::no_port(replica, &self.settings, tap)).await?;
        Ok(!changed.is_empty())
    }

    /// Makes the ports of peers, by their tunnel endpoints, or corrects them, removes those of other peers, and returns what was changed in words.
    ///
    /// # Errors
    /// When there is no bridge, the database refuses, or the switch daemon does not act.
    pub async fn ensure_peers(&self, peers: &BTreeSet<Ipv4Addr>) -> Result<Vec<String>, BridgeError> {
        self.change(|replica| plan::peers(replica, &self.settings, peers)).await
    }

    /// Makes the queues of ports that are promised something of a physical network, or corrects them, removes those of others, and returns what was
    /// changed in words. There is none where the link's bandwidth is not known, or somebody else has shaped what leaves by it.
    ///
    /// # Errors
    /// When there is no bridge, the database refuses, or the switch daemon does not act.
    pub async fn ensure_queues(&self, wanted: &Minimums) -> Result<Vec<String>, BridgeError> {
        self.change(|replica| queues::plan(replica, &self.settings, wanted)).await
    }

    /// Makes the switch daemon go through its configuration once more, which ends the state without handler threads.
    ///
    /// # Errors
    /// When the database refuses or the switch daemon does not act.
    pub async fn reconfigure(&self) -> Result<(), BridgeError> {
        let again = |_: &Replica| Ok(Plan::step("have the switch go through its configuration again"));
        self.change(again).await.map(drop)
    }

    /// The ports of the bridge by name, without the bridge's own.
    ///
    /// # Errors
    /// When there is no bridge or a row cannot be read.
    pub fn ports(&self) -> Result<BTreeMap<String, PortState>, BridgeError> {
        self.connection.read(|replica| plan::ports(replica, &self.settings.bridge))
    }

    /// The endpoints of peers that have a port; none where there is no bridge, or it cannot be read.
    pub(super) fn peers(&self) -> BTreeSet<Ipv4Addr> {
        let ports = self.ports().unwrap_or_default();
        ports.values().filter_map(|state| state.peer).map(|(endpoint, _)| endpoint).collect()
    }

    /// The numbers that [`crate::compile()`] needs: of our machines' ports, and of the tunnel.
    ///
    /// # Errors
    /// As [`Bridge::ports`].
    pub fn numbers(&self) -> Result<PortNumbers, BridgeError> {
        let ports = self.ports()?;
        let vxlan = ports.get(TUNNEL_PORT).and_then(|state| state.number).map(PortNo);
        let wired = ports.values().filter_map(|state| Some((state.physical.clone()?, PortNo(state.number?))));
        let physical = wired.collect();
        let peer = |state: &PortState| {
            let (endpoint, Pulse { is_heard, is_alive }) = state.peer?;
            Some((endpoint, Peer { number: PortNo(state.number?), is_heard, is_alive }))
        };
        let peers = ports.values().filter_map(peer).collect();
        let ours = ports.into_values().filter(|state| state.machine.is_some());
        let ports = ours.filter_map(|state| Some((state.port?, PortNo(state.number?)))).collect();
        let queues = self.connection.read(|replica| queues::numbers(replica, &self.settings.bridge))?;
        Ok(PortNumbers { ports, vxlan, peers, physical, queues, ..PortNumbers::default() })
    }

    /// Whether the database is followed now; otherwise [`Bridge::ports`] tells what it was last.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connection.status().borrow().synchronised
    }

    /// The version of Open vSwitch, where the script that starts it (ovs-ctl) has written it.
    ///
    /// # Errors
    /// When the row cannot be read.
    pub fn version(&self) -> Result<Option<String>, BridgeError> {
        self.connection.read(|replica| Ok(plan::root(replica)?.ovs_version))
    }

    /// Plans against the replica, applies, and waits until the switch daemon has caught up. A plan that somebody else's
    /// change made stale is refused by the database and made again.
    async fn change(&self, plan: impl Fn(&Replica) -> Result<Plan, BridgeError>) -> Result<Vec<String>, BridgeError> {
        self.connected(CATCH_UP_TIMEOUT).await?;
        let mut conflicts = 0;
        loop {
            let mut plan = self.connection.read(&plan)?;
            if plan.is_empty() {
                return Ok(Vec::new());
            }
            let what = plan.to_string();
            let (transaction, next) = self.connection.read(|replica| plan.transaction(replica))?;
            match self.connection.transact(&transaction).await {
                Ok(_) => {
                    self.caught_up(&what, next).await?;
                    info!(bridge = self.settings.bridge, what, "bridge changed");
                    return Ok(plan.into_steps());
                }
                Err(source) if is_conflict(&source) && conflicts < CONFLICTS_MAX => {
                    conflicts += 1;
                    self.settle().await;
                }
                Err(source) => return Err(BridgeError::Change { what, source }),
            }
        }
    }

    /// Lets the updates come in on which a refusal was based: the reply to a later request follows them.
    async fn settle(&self) {
        let _either = self.connection.transact(&Transaction::new()).await;
    }

    /// Waits until the switch has made the bridge, and has it try again when it did not.
    async fn made(&self) -> Result<(), BridgeError> {
        let is_made = |replica: &Replica| plan::is_made(replica, &self.settings.bridge).ok()?.then_some(());
        // A switch that made it says so with its word that it has caught up; after a restart of the database it says it
        // again, a little later.
        if self.connection.wait_for(MADE_TIMEOUT, is_made).await.is_ok() {
            return Ok(());
        }
        self.reconfigure().await?;
        self.connection.read(is_made).ok_or_else(|| BridgeError::NoDatapath {
            bridge: self.settings.bridge.clone(),
            datapath: self.settings.datapath,
        })
    }

    async fn caught_up(&self, what: &str, next: i64) -> Result<(), BridgeError> {
        let reached = |replica: &Replica| plan::root(replica).ok().filter(|root| root.cur_cfg >= next).map(drop);
        let outcome = self.connection.wait_for(CATCH_UP_TIMEOUT, reached).await;
        outcome.map_err(|_| BridgeError::Silent { what: what.to_owned(), waited: CATCH_UP_TIMEOUT })
    }

    /// The number of a port that the switch uses.
    async fn working(&self, name: &str) -> Result<u32, BridgeError> {
        // The switch writes number and error together with its word that it has caught up, so a look is enough; the
        // wait is for a switch that was started in between.
        let decided = |replica: &Replica| {
            let state = plan::ports(replica, &self.settings.bridge).ok()?.remove(name)?;
            (state.number.is_some() || state.error.is_some()).then_some(state)
        };
        let waited = self.connection.wait_for(CATCH_UP_TIMEOUT, decided).await;
        let state =
            waited.map_err(|_| BridgeError::Silent { what: format!("use port {name}"), waited: CATCH_UP_TIMEOUT })?;
        state.number.ok_or_else(|| BridgeError::Unusable {
            port: name.to_owned(),
            reason: state.error.unwrap_or_else(|| "no reason given".to_owned()),
        })
    }
}

/// Whether a refusal may come from a plan that was made on rows that have changed since.
fn is_conflict(error: &TransactionError) -> bool {
    let TransactionError::Refused { kind, .. } = error else { return false };
    matches!(kind, ErrorKind::TimedOut | ErrorKind::ConstraintViolation | ErrorKind::ReferentialIntegrityViolation)
}
