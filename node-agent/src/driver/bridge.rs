//! The real network of a host: taps, the integration bridge through its database, flows through its OpenFlow socket.
//!
//! Thin: what flows should be is [`dataplane::compile()`]'s, how they get there [`dataplane::switch`]'s. This module holds the two together with
//! the taps and says in an operator's words what is wrong.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dataplane::switch::bridge::{BridgeError, Datapath, PortState, Settings, TapPort, promisable};
use dataplane::switch::channel::Connector;
use dataplane::switch::driver::DriverSettings;
use dataplane::switch::host::{HostSwitch, SwitchError};
use model::arrival::Arrived;
use model::balancer::MemberHealth;
use model::machine::Machine;
use model::spec::HostNetwork;
use model::{HostId, MachineId, PortId};
use ovsdb::connection::Remote;

use super::taps::Taps;
use super::{Failure, Network, Plug};
use crate::config::{self, Config};
use crate::seen::{Bridge, Tap};

/// How long the database may take to answer a look.
const LOOK_LIMIT: Duration = Duration::from_secs(3);
/// How long flows may take until they are installed.
const PROGRAM_LIMIT: Duration = Duration::from_secs(15);

/// Taps, bridge and flows of this host.
#[derive(Debug)]
pub struct HostNetworking {
    taps: Taps,
    switch: HostSwitch,
    database: PathBuf,
    /// The network that flows and DHCP answers were last made from.
    programmed: Mutex<Option<HostNetwork>>,
}

impl HostNetworking {
    /// Begins to follow the switch; it need not be up yet. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`Failure`] when the kernel refuses a netlink socket.
    pub fn start(config: &Config, connector: impl Connector) -> Result<Self, Failure> {
        let datapath = match config.switch.datapath {
            config::Datapath::System => Datapath::System,
            config::Datapath::Netdev => Datapath::Netdev,
        };
        let settings = Settings {
            database: Remote::Unix(config.switch.database.clone()),
            bridge: config.switch.bridge.clone(),
            datapath,
            tunnel_ip: config.underlay.ip,
            physical: config.physical.iter().map(|it| (it.name.clone(), it.interface.clone())).collect(),
            bandwidth_kbps: config.bandwidth(),
            export: config.ipfix.as_ref().map(config::Ipfix::export),
            watches_peers: config.underlay.bfd,
        };
        let nothing = HostNetwork::empty(HostId::from_uuid(uuid::Uuid::nil()), Ipv4Addr::UNSPECIFIED);
        let flows = DriverSettings { remove_foreign: config.switch.remove_foreign };
        let switch = HostSwitch::start_with(flows, settings, connector, nothing);
        Ok(Self { taps: Taps::open()?, switch, database: config.switch.database.clone(), programmed: Mutex::default() })
    }

    /// The switch by itself, for those who only ask.
    #[must_use]
    pub const fn switch(&self) -> &HostSwitch {
        &self.switch
    }

    /// Returns at the next change of the bridge, its ports, its flows or the connection to them, of what health checks found, and
    /// when a port comes that was awaited.
    pub async fn changed(&self) {
        let mut database = self.switch.bridge().changes();
        let (mut flows, mut health) = (self.switch.status(), self.switch.health());
        let mut arrived = self.switch.arrived();
        database.mark_unchanged();
        flows.mark_unchanged();
        health.mark_unchanged();
        arrived.mark_unchanged();
        tokio::select! {
            _ = database.changed() => {}
            _ = flows.changed() => {}
            _ = health.changed() => {}
            _ = arrived.changed() => {}
        }
    }

    fn programmed(&self) -> MutexGuard<'_, Option<HostNetwork>> {
        self.programmed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ready(&self) -> Result<(), Failure> {
        let connected = self.switch.bridge().connected(LOOK_LIMIT).await;
        connected.map_err(|error| self.failure("reach Open vSwitch", error.into()))?;
        self.switch.ensure().await.map(drop).map_err(|error| self.failure("set up the bridge", error))
    }

    /// In an operator's words.
    #[must_use]
    pub fn failure(&self, attempt: &str, error: SwitchError) -> Failure {
        let remedy = match &error {
            SwitchError::Bridge(BridgeError::Database(_)) => {
                format!("`systemctl start openvswitch-switch`, or set switch.database ({})", self.database.display())
            }
            SwitchError::Bridge(BridgeError::Uninitialised) => "run `ovs-vsctl init`".to_owned(),
            SwitchError::Bridge(BridgeError::Foreign { port, .. } | BridgeError::Elsewhere { port, .. }) => {
                format!("`ovs-vsctl del-port {port}`, if nobody needs it")
            }
            _ => "is ovs-vswitchd running? look into its log".to_owned(),
        };
        Failure::caused(attempt, remedy, error)
    }
}

impl Network for HostNetworking {
    async fn look_taps(&self) -> Result<BTreeMap<String, Tap>, Failure> {
        self.taps.list().await
    }

    async fn look_bridge(&self, network: &HostNetwork) -> Result<Bridge, Failure> {
        self.ready().await?;
        let look = self.switch.look(network).await.map_err(|error| self.failure("look at the bridge", error))?;
        let ours = look.ports.iter().filter(|(_, state)| state.machine.is_some());
        let ports = ours.map(|(name, state)| (name.clone(), state.number)).collect();
        let flows = look.changes.unchanged_flows;
        // DHCP answers come from the network, so another network counts as a change even where its flows are the same.
        let stale = self.programmed().as_ref() != Some(network);
        let changes_pending = look.changes.steps().count().max(usize::from(stale));
        let works = |state: &PortState| state.physical.clone().filter(|_| state.number.is_some());
        let physical = look.ports.values().filter_map(works).collect();
        let bandwidth = &self.switch.bridge().settings().bandwidth_kbps;
        let part = |kbps: &NonZeroU32| NonZeroU32::new(u32::try_from(promisable(kbps.get().into())).ok()?);
        let kept = |state: &PortState| Some((works(state)?, part(bandwidth.get(&works(state)?)?)?));
        let bandwidth = look.ports.values().filter(|state| !state.is_shaped).filter_map(kept).collect();
        Ok(Bridge { ports, changes_pending, flows, physical, bandwidth })
    }

    async fn set_tap(&self, tap: &str, port: PortId, want: Tap) -> Result<(), Failure> {
        self.taps.set(tap, port, want).await
    }

    async fn delete_tap(&self, tap: &str) -> Result<(), Failure> {
        self.taps.delete(tap).await
    }

    async fn plug(&self, plug: &Plug) -> Result<(), Failure> {
        self.ready().await?;
        let port = TapPort { tap: plug.tap.clone(), port: plug.port, machine: plug.machine, mac: plug.mac };
        let plugged = self.switch.ensure_port(&port).await;
        plugged.map(drop).map_err(|error| self.failure(&format!("plug in {}", plug.tap), error))
    }

    async fn unplug(&self, tap: &str) -> Result<(), Failure> {
        let unplugged = self.switch.remove_port(tap).await;
        unplugged.map(drop).map_err(|error| self.failure(&format!("unplug {tap}"), error))
    }

    fn health(&self) -> Vec<MemberHealth> {
        self.switch.health().borrow().to_vec()
    }

    fn arrived(&self) -> Vec<Arrived> {
        let arrived = self.switch.arrived();
        let arrived = arrived.borrow();
        arrived.iter().map(|(port, serial)| Arrived { port: *port, serial: *serial }).collect()
    }

    fn resume_arrivals(&self, arrived: Vec<Arrived>) {
        self.switch.resume_arrivals(arrived);
    }

    fn describe(&self, machines: &BTreeMap<MachineId, Machine>) {
        self.switch.describe(machines.clone());
    }

    async fn program(&self, network: &HostNetwork) -> Result<(), Failure> {
        let applied = self.switch.program(network.clone(), PROGRAM_LIMIT).await;
        let applied = applied.map_err(|error| self.failure("program flows", error))?;
        *self.programmed() = Some(network.clone());
        tracing::info!(
            added = applied.added_flows,
            replaced = applied.replaced_flows,
            deleted = applied.deleted_flows,
            unchanged = applied.unchanged_flows,
            messages = applied.messages,
            took_ms = u64::try_from(applied.took.as_millis()).unwrap_or(u64::MAX),
            "flows programmed"
        );
        Ok(())
    }
}
