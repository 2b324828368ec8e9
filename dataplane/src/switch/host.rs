//! All of a host's switch in one hand: bridge, ports, flows, and answers to the packets that flows hand over.
//!
//! [`HostSwitch`] is what an agent uses. It compiles the networks it was last given whenever they, or the port numbers
//! that the switch gave out, change: a switch that comes back with other numbers gets other flows without being asked.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::spec::HostNetwork;
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::warn;

use super::bridge::{Bridge, BridgeError, PortState, Settings, TapPort};
use super::channel::Connector;
use super::dhcp::DhcpResponder;
use super::driver::{Applied, Driver, DriverError, DriverStatus};
use crate::compile::{PortNumbers, compile};
use crate::diff::{Changes, Installed};
use crate::flow_set::FlowSet;

/// Why the switch is not as it should be.
#[derive(Debug, Error)]
pub enum SwitchError {
    /// The bridge or a port is not.
    #[error(transparent)]
    Bridge(#[from] BridgeError),
    /// The flows are not.
    #[error(transparent)]
    Driver(#[from] DriverError),
}

/// What a host's switch is.
#[derive(Debug, Clone)]
pub struct Look {
    /// The ports of the bridge by name.
    pub ports: BTreeMap<String, PortState>,
    /// What would have to change for the flows to be right.
    pub changes: Changes,
}

/// What was last wanted, and what came of it.
#[derive(Debug, Default)]
struct Desired {
    network: Option<Arc<HostNetwork>>,
    numbers: PortNumbers,
    flows: Arc<FlowSet>,
    version: u64,
}

#[derive(Debug)]
struct Inner {
    bridge: Bridge,
    driver: Driver,
    desired: Mutex<Desired>,
    /// What the responder answers from.
    network: watch::Sender<Arc<HostNetwork>>,
}

/// A host's switch.
#[derive(Debug)]
pub struct HostSwitch {
    inner: Arc<Inner>,
    task: JoinHandle<()>,
}

impl HostSwitch {
    /// Starts to follow the database and to connect to the bridge; must be called inside a tokio runtime. Nothing is
    /// changed before it is asked for. `nothing` is the host without any network.
    #[must_use]
    pub fn start(settings: Settings, connector: impl Connector, nothing: HostNetwork) -> Self {
        let (network, answers) = watch::channel(Arc::new(nothing));
        let driver = Driver::start(connector, DhcpResponder::new(answers));
        let bridge = Bridge::start(settings);
        let inner = Arc::new(Inner { bridge, driver, desired: Mutex::default(), network });
        let task = tokio::spawn(follow_numbers(Arc::clone(&inner)));
        Self { inner, task }
    }

    /// The bridge by itself.
    #[must_use]
    pub fn bridge(&self) -> &Bridge {
        &self.inner.bridge
    }

    /// Makes the bridge and the tunnel port, or corrects them, and returns what was changed in words.
    ///
    /// # Errors
    /// As [`Bridge::ensure`].
    pub async fn ensure(&self) -> Result<Vec<String>, SwitchError> {
        Ok(self.inner.bridge.ensure().await?)
    }

    /// Makes a machine's port, or corrects it, and returns its OpenFlow port number. Its flows follow by themselves once
    /// [`HostSwitch::program`] was given a network that has the port.
    ///
    /// # Errors
    /// As [`Bridge::ensure_port`].
    pub async fn ensure_port(&self, port: &TapPort) -> Result<u32, SwitchError> {
        let number = self.inner.bridge.ensure_port(port).await?;
        self.inner.refresh()?;
        Ok(number)
    }

    /// Removes a machine's port from the bridge, and returns whether there was one.
    ///
    /// # Errors
    /// As [`Bridge::remove_port`].
    pub async fn remove_port(&self, tap: &str) -> Result<bool, SwitchError> {
        let removed = self.inner.bridge.remove_port(tap).await?;
        self.inner.refresh()?;
        Ok(removed)
    }

    /// Wants the flows of this network from now on, and waits until they are installed.
    ///
    /// # Errors
    /// When there is no bridge, or the flows are not in place within `limit`; they are still wanted then.
    pub async fn program(&self, network: HostNetwork, limit: Duration) -> Result<Applied, SwitchError> {
        let network = Arc::new(network);
        self.inner.network.send_replace(Arc::clone(&network));
        let before = {
            let mut desired = self.inner.desired();
            desired.network = Some(network);
            desired.version
        };
        let version = self.inner.refresh()?;
        let applied = self.inner.driver.applied(version, limit).await?;
        if version > before {
            return Ok(applied);
        }
        // The same flows as before: what was done for them then was not done for this call.
        Ok(Applied { unchanged_flows: self.flows().flows().len(), ..Applied::default() })
    }

    /// What the switch is, held against what `network` wants.
    ///
    /// # Errors
    /// When there is no bridge, or the switch does not answer.
    pub async fn look(&self, network: &HostNetwork) -> Result<Look, SwitchError> {
        let ports = self.inner.bridge.ports()?;
        let numbers = self.inner.bridge.numbers()?;
        let flows = {
            let desired = self.inner.desired();
            let same = desired.network.as_deref() == Some(network) && desired.numbers == numbers;
            if same { Arc::clone(&desired.flows) } else { Arc::new(compile(network, &numbers)) }
        };
        let changes = self.inner.driver.pending(flows).await?;
        Ok(Look { ports, changes })
    }

    /// The flows wanted now; none before the first [`HostSwitch::program`].
    #[must_use]
    pub fn flows(&self) -> Arc<FlowSet> {
        Arc::clone(&self.inner.desired().flows)
    }

    /// Reads what is installed now.
    ///
    /// # Errors
    /// When the switch does not answer.
    pub async fn installed(&self) -> Result<Installed, SwitchError> {
        Ok(self.inner.driver.installed().await?)
    }

    /// Follows how the flows are.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<DriverStatus> {
        self.inner.driver.status()
    }
}

impl Drop for HostSwitch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Inner {
    fn desired(&self) -> MutexGuard<'_, Desired> {
        // What is wanted is replaced as a whole; a panic elsewhere cannot leave half of it.
        self.desired.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compiles again when networks or numbers are others than before, and returns the version that is wanted now.
    fn refresh(&self) -> Result<u64, BridgeError> {
        let numbers = self.bridge.numbers()?;
        let mut desired = self.desired();
        let Some(network) = desired.network.clone() else { return Ok(0) };
        let flows = compile(&network, &numbers);
        desired.numbers = numbers;
        if desired.version == 0 || *desired.flows != flows {
            desired.flows = Arc::new(flows);
            desired.version = self.driver.set(Arc::clone(&desired.flows));
        }
        Ok(desired.version)
    }

    fn has_other_numbers(&self) -> Result<bool, BridgeError> {
        Ok(self.bridge.numbers()? != self.desired().numbers)
    }
}

/// Compiles again whenever the switch gives out other port numbers.
async fn follow_numbers(inner: Arc<Inner>) {
    let mut changes = inner.bridge.changes();
    while changes.changed().await.is_ok() {
        let refreshed = match inner.has_other_numbers() {
            Ok(true) => inner.refresh().map(drop),
            Ok(false) => Ok(()),
            // A bridge that is not there yet has no numbers.
            Err(BridgeError::NoBridge(_)) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = refreshed {
            warn!(%error, "port numbers not read");
        }
    }
}
