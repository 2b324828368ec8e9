//! All of a host's switch in one hand: bridge, ports, flows, and answers to the packets that flows hand over.
//!
//! [`HostSwitch`] is what an agent uses. It compiles the networks it was last given whenever they, or the port numbers
//! that the switch gave out, change: a switch that comes back with other numbers gets other flows without being asked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use model::arrival::Arrived;
use model::balancer::MemberHealth;
use model::machine::Machine;
use model::spec::HostNetwork;
use model::{MachineId, PortId};
use thiserror::Error;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, sleep_until};
use tracing::warn;

use super::answers::Answers;
use super::arrivals::{self, Arrivals};
use super::bridge::{Bridge, BridgeError, PortState, Settings, TapPort};
use super::channel::Connector;
use super::driver::{Applied, Driver, DriverError, DriverSettings, DriverStatus};
use super::health::{Checks, Verdicts};
use super::names::Names;
use super::resolver::{NameCounts, Tally, Upstreams};
use super::services::{Machines, Services};
use super::stations::{Found, Search};
use crate::compile::{Compiler, Edit, PortNumbers, compile};
use crate::diff::{Changes, Installed};
use crate::exit::Exit;
use crate::flow_set::{FlowSet, Touched};
use crate::peer::{Leavers, Memory};

/// The pause after ports of peers or queues could not be made.
const PEERS_PAUSE: Duration = Duration::from_secs(5);

/// How long frames of a port that came wait for its flows.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(5);

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
#[derive(Debug)]
pub(super) struct Desired {
    compiler: Compiler,
    /// Whether a network was ever asked for: before that the flows of nothing are not wanted either.
    is_programmed: bool,
    version: u64,
}

/// What is wanted, in the hands of those who change it and of those who answer packets from it.
#[derive(Debug, Clone)]
pub(super) struct Shared(Arc<Mutex<Desired>>);

impl Shared {
    fn desired(&self) -> MutexGuard<'_, Desired> {
        // The compiler's parts are replaced one by one; after a panic in it the process does not go on with what is left.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the networks.
    pub(super) fn read<T>(&self, look: impl FnOnce(&HostNetwork) -> T) -> T {
        look(self.desired().compiler.network())
    }

    /// What is done with frames for the port with this key before they leave by its tap.
    pub(super) fn exit_to(&self, key: u32) -> Exit {
        self.read_numbers(|host, numbers| {
            let port = host.ports.values().find(|port| port.key == key);
            port.map(|port| Exit::to(host, numbers, port)).unwrap_or_default()
        })
    }

    /// Whether an address is behind the router that has this floating IP.
    pub(super) fn is_behind(&self, floating: Ipv4Addr, address: Ipv4Addr) -> bool {
        self.desired().compiler.is_behind(floating, address)
    }

    /// Looks at the networks and at what this host found out.
    pub(super) fn read_numbers<T>(&self, look: impl FnOnce(&HostNetwork, &PortNumbers) -> T) -> T {
        let desired = self.desired();
        look(desired.compiler.network(), desired.compiler.numbers())
    }
}

#[derive(Debug)]
struct Inner {
    bridge: Bridge,
    driver: Driver,
    shared: Shared,
    machines: Machines,
    upstreams: Upstreams,
    names: Tally,
    found: Found,
    peers: Mutex<Memory>,
    verdicts: Verdicts,
    arrivals: Arrivals,
    /// Told of each change of what is wanted.
    wishes: Notify,
}

/// What came of a change of what is wanted.
struct Wish {
    /// The version wanted before.
    before: u64,
    /// The version wanted now.
    version: u64,
    compile: Duration,
}

/// A host's switch.
#[derive(Debug)]
pub struct HostSwitch {
    inner: Arc<Inner>,
    tasks: [JoinHandle<()>; 3],
}

impl HostSwitch {
    /// Starts to follow the database and to connect to the bridge; must be called inside a tokio runtime. Nothing is
    /// changed before it is asked for. `nothing` is the host without any network.
    #[must_use]
    pub fn start(settings: Settings, connector: impl Connector, nothing: HostNetwork) -> Self {
        Self::start_with(DriverSettings::default(), settings, connector, nothing)
    }

    /// The same, with settings for the flows.
    #[must_use]
    pub fn start_with(
        flows: DriverSettings,
        settings: Settings,
        connector: impl Connector,
        nothing: HostNetwork,
    ) -> Self {
        let desired = Desired { compiler: Compiler::new(nothing), is_programmed: false, version: 0 };
        let shared = Shared(Arc::new(Mutex::new(desired)));
        let machines = Machines::default();
        let (upstreams, tally) = (Upstreams::default(), Tally::default());
        let names = Names::new(shared.clone(), upstreams.clone(), tally.clone());
        let services = Services::start(shared.clone(), machines.clone(), names);
        let (search, found) = Search::start(shared.clone());
        let (checks, verdicts, follow) = Checks::start(shared.clone());
        let (arrivals, let_in) = Arrivals::new();
        let responder = Answers::new(shared.clone(), services, search, checks, (arrivals.clone(), let_in));
        let driver = Driver::start_with(flows, connector, responder);
        // Who checks has just begun to wait for it.
        let _follows = follow.send(driver.status());
        let bridge = Bridge::start(settings);
        let (names, peers, wishes) = (tally, Mutex::default(), Notify::new());
        let inner =
            Inner { bridge, driver, shared, machines, upstreams, names, found, peers, verdicts, arrivals, wishes };
        let inner = Arc::new(inner);
        let tasks = [
            tokio::spawn(follow_numbers(Arc::clone(&inner))),
            tokio::spawn(follow_peers(Arc::clone(&inner))),
            tokio::spawn(follow_arrivals(Arc::clone(&inner))),
        ];
        Self { inner, tasks }
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
        let wish = self.inner.program(network)?;
        self.installed_as(wish, limit).await
    }

    /// Says what the machines of this host are, for the metadata service to tell them. Before that it asks them to come again.
    pub fn describe(&self, machines: BTreeMap<MachineId, Machine>) {
        self.inner.machines.set(machines);
    }

    /// Says which resolvers are asked for names that are not known here, in this order; at first, and without any, such questions are refused.
    pub fn ask_names_of(&self, servers: Vec<SocketAddr>) {
        self.inner.upstreams.set(servers);
    }

    /// What became of the questions for names that ports asked.
    #[must_use]
    pub fn names(&self) -> NameCounts {
        self.inner.names.get()
    }

    /// Changes a few objects of the network that was asked for last, and waits until the flows of that are installed. The edits are the caller's to
    /// have checked, as [`Compiler::edit`] says.
    ///
    /// # Errors
    /// As [`HostSwitch::program`].
    pub async fn edit(&self, edits: Vec<Edit>, limit: Duration) -> Result<Applied, SwitchError> {
        let wish = self.inner.edit(edits);
        self.installed_as(wish, limit).await
    }

    /// Waits for a version; when it is the one from before, nothing was done for this call.
    async fn installed_as(&self, wish: Wish, limit: Duration) -> Result<Applied, SwitchError> {
        let applied = self.inner.driver.applied(wish.version, limit).await?;
        let compile = wish.compile;
        if wish.version > wish.before {
            return Ok(Applied { compile, ..applied });
        }
        Ok(Applied { unchanged_flows: self.flows().flows().len(), compile, ..Applied::default() })
    }

    /// What the switch is, held against what `network` wants.
    ///
    /// # Errors
    /// When there is no bridge, or the switch does not answer.
    pub async fn look(&self, network: &HostNetwork) -> Result<Look, SwitchError> {
        let ports = self.inner.bridge.ports()?;
        let numbers = self.inner.numbers()?;
        let flows = {
            let desired = self.inner.desired();
            let moved = (!self.inner.arrivals.is_empty()).then(|| self.inner.arrivals.seen_by(network.clone()));
            let network = moved.as_ref().unwrap_or(network);
            let same = desired.compiler.network() == network && *desired.compiler.numbers() == numbers;
            if same { desired.compiler.flows().clone() } else { compile(network, &numbers) }
        };
        let changes = self.inner.driver.pending(Arc::new(flows)).await?;
        Ok(Look { ports, changes })
    }

    /// The flows wanted now.
    #[must_use]
    pub fn flows(&self) -> FlowSet {
        self.inner.desired().compiler.flows().clone()
    }

    /// Reads what is installed now.
    ///
    /// # Errors
    /// When the switch does not answer.
    pub async fn installed(&self) -> Result<Installed, SwitchError> {
        Ok(self.inner.driver.installed().await?)
    }

    /// Follows what health checks found out of the members of load balancers that are plugged in here.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Arc<Vec<MemberHealth>>> {
        self.inner.verdicts.clone()
    }

    /// Goes on with ports that came before this began, as they were told by [`HostSwitch::arrived`]; to be said before the first
    /// [`HostSwitch::program`].
    pub fn resume_arrivals(&self, arrived: impl IntoIterator<Item = Arrived>) {
        self.inner.arrivals.note(arrived, Instant::now());
    }

    /// Follows which ports were awaited here and have come, each with its attempt, until what is programmed has them here.
    #[must_use]
    pub fn arrived(&self) -> watch::Receiver<BTreeMap<PortId, u64>> {
        self.inner.arrivals.follow()
    }

    /// Follows how the flows are.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<DriverStatus> {
        self.inner.driver.status()
    }
}

impl Drop for HostSwitch {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Inner {
    fn desired(&self) -> MutexGuard<'_, Desired> {
        self.shared.desired()
    }

    /// Wants the flows of a network, with the numbers that there are.
    fn program(&self, network: HostNetwork) -> Result<Wish, BridgeError> {
        let numbers = self.numbers()?;
        Ok(self.wish(|compiler| compiler.update(self.arrivals.apply(network), &numbers)))
    }

    /// Plugs a port in that was awaited, with its sub-ports; none when it is not awaited.
    fn welcome(&self, key: u32) -> Option<(PortId, Wish)> {
        let arrived = arrivals::awaited(self.desired().compiler.network(), key)?;
        self.arrivals.note([arrived], Instant::now());
        let wish = self.wish(|compiler| {
            let came = BTreeMap::from([(arrived.port, arrived.serial)]);
            let network = compiler.network();
            let moved = network.ports.values().filter(|port| port.tap_port() == arrived.port).cloned();
            let moved = moved.map(|port| Edit::PutPort(Box::new(port.once_arrived(network.host, &came))));
            let settling = compiler.numbers().settling.iter().copied().chain([arrived.port]).collect();
            let edits = moved.chain([Edit::Settling(settling)]).collect();
            compiler.edit(edits)
        });
        Some((arrived.port, wish))
    }

    fn edit(&self, edits: Vec<Edit>) -> Wish {
        self.wish(|compiler| compiler.edit(edits))
    }

    fn wish(&self, change: impl FnOnce(&mut Compiler) -> Touched) -> Wish {
        let mut desired = self.desired();
        let before = desired.version;
        let start = Instant::now();
        let touched = change(&mut desired.compiler);
        let compile = start.elapsed();
        desired.is_programmed = true;
        self.wishes.notify_one();
        Wish { before, version: self.want(&mut desired, touched), compile }
    }

    /// Compiles again when the numbers are others than before.
    fn refresh(&self) -> Result<(), BridgeError> {
        let numbers = self.numbers()?;
        let mut desired = self.desired();
        let plugs = desired.compiler.plugs(&numbers);
        let touched = desired.compiler.edit(plugs);
        if desired.is_programmed {
            self.want(&mut desired, touched);
        }
        Ok(())
    }

    /// Has the driver install what was compiled, unless that is what it installs already.
    fn want(&self, desired: &mut Desired, touched: Touched) -> u64 {
        let flows = desired.compiler.flows().clone();
        if desired.version == 0 {
            desired.version = self.driver.set(Arc::new(flows));
        } else if !touched.is_empty() {
            desired.version = self.driver.update(flows, touched);
        }
        desired.version
    }

    fn has_other_numbers(&self) -> Result<bool, BridgeError> {
        Ok(self.numbers()? != *self.desired().compiler.numbers())
    }

    fn peers(&self) -> MutexGuard<'_, Memory> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the switch gave out, and what was found outside.
    fn numbers(&self) -> Result<PortNumbers, BridgeError> {
        let stations = self.found.borrow().as_ref().clone();
        let numbers = self.bridge.numbers()?;
        let peers = self.peers().tell(numbers.peers, Instant::now());
        let settling = self.arrivals.settling(Instant::now());
        Ok(PortNumbers { stations, peers, settling, ..numbers })
    }
}

/// Compiles again whenever the switch gives out other port numbers, or stations outside are found or lost.
async fn follow_numbers(inner: Arc<Inner>) {
    let (mut changes, mut found, mut status) = (inner.bridge.changes(), inner.found.clone(), inner.driver.status());
    loop {
        let due = inner.peers().due().into_iter().chain(inner.arrivals.due()).min();
        let changed = tokio::select! {
            changed = changes.changed() => changed.is_ok(),
            changed = found.changed() => changed.is_ok(),
            changed = status.changed() => changed.is_ok(),
            () = at(due) => true,
        };
        if !changed {
            return;
        }
        let is_there = status.borrow_and_update().connected;
        inner.peers().follow(is_there, Instant::now());
        let refreshed = match inner.has_other_numbers() {
            Ok(true) => inner.refresh(),
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

/// Switches ports that are awaited here once their machines send, and lets in what they sent.
async fn follow_arrivals(inner: Arc<Inner>) {
    loop {
        inner.arrivals.rung().await;
        let waiting = inner.arrivals.waiting();
        // All that wait are switched at once: one late port holds up no other.
        let came: Vec<(PortId, Wish)> = waiting.iter().filter_map(|key| inner.welcome(*key)).collect();
        let version = came.iter().map(|(_, wish)| wish.version).max().unwrap_or_default();
        // Frames go on waiting, for they would come back; those too many are lost.
        while let Err(error) = inner.driver.applied(version, ARRIVAL_LIMIT).await {
            if matches!(error, DriverError::Stopped) {
                return;
            }
            warn!(%error, "flows of ports that came are late");
        }
        // What the tracker saw of them, when the port was here before or only one side of it was, is not how they stand: it would find them invalid.
        for (port, _) in came {
            let known = inner.desired().compiler.connections_of(port);
            if let Err(error) = inner.driver.forget(known).await {
                warn!(%error, "connections of a port that came not forgotten");
            }
        }
        for key in waiting {
            let is_here = inner.shared.read(|host| host.local_ports().any(|port| port.key == key));
            if is_here { inner.arrivals.let_in(key) } else { inner.arrivals.turn_away(key) }
        }
    }
}

/// Waits until then; without a time for ever.
async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// Keeps the tunnel ports of peers, as what is wanted names them, and for a while those that it no longer names; and the queues of ports.
async fn follow_peers(inner: Arc<Inner>) {
    let (mut changes, mut leavers) = (inner.bridge.changes(), Leavers::default());
    loop {
        tokio::select! {
            () = inner.wishes.notified() => {}
            changed = changes.changed() => if changed.is_err() { return },
            () = at(leavers.due()) => {}
        }
        let (wanted, minimums) = {
            let desired = inner.desired();
            // Before that nothing is known, and what is there from before stays.
            let watches = inner.bridge.settings().watches_peers;
            let known = desired.is_programmed.then_some(&desired.compiler);
            known.map(|compiler| (watches.then(|| compiler.peers()), compiler.minimums())).unzip()
        };
        let (Some(wanted), Some(minimums)) = (wanted, minimums) else { continue };
        let wanted = match wanted {
            Some(wanted) => leavers.keep(&wanted, &inner.bridge.peers(), Instant::now()),
            None => BTreeSet::new(),
        };
        let peers = inner.bridge.ensure_peers(&wanted).await;
        let queues = inner.bridge.ensure_queues(&minimums).await;
        for (outcome, what) in [(peers, "ports of peers"), (queues, "queues")] {
            match outcome {
                Ok(_) | Err(BridgeError::NoBridge(_)) => {}
                Err(error) => {
                    warn!(%error, what, "not made");
                    sleep(PEERS_PAUSE).await;
                    inner.wishes.notify_one();
                }
            }
        }
    }
}
