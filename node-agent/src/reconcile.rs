//! The loop that owns the state: accept, look, plan, begin steps, report, and again.
//!
//! ```text
//!   select: command | step finished | machine changed | time -> take it in -> look -> plan -> begin what is due -> publish
//! ```
//!
//! One task owns everything here; others send [`Command`]s and watch [`Snapshot`]s. Steps run as tasks of their own and touch nothing of this.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use model::HostId;
use model::arrival::Arrived;
use model::image::Image;
use model::observed::{Problem, Report};
use model::spec::{Generation, NodeSpec};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::accept::{Accepted, Refusal, accept};
use crate::apply::{self, Drivers};
use crate::config::Config;
use crate::driver::{Images, Machines, Network, Volumes};
use crate::lane::{Lanes, Resting};
use crate::ledger::{Ledger, LedgerError};
use crate::plan::{self, Context, Lane, Plan};
use crate::resources;
use crate::seen::{Look, Seen};

/// How long a look at one part of the host may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(20);
/// How long until the next look when all is right.
const SETTLED_INTERVAL: Duration = Duration::from_secs(10);
/// How long until the next look while something is left to do.
const UNSETTLED_INTERVAL: Duration = Duration::from_secs(1);
/// How long to gather finished steps before looking.
const GATHER: Duration = Duration::from_millis(10);

/// What others ask of the loop.
#[derive(Debug)]
pub enum Command {
    /// Take in a spec.
    Accept {
        /// The spec.
        spec: Box<NodeSpec>,
        /// What became of it.
        reply: oneshot::Sender<Result<Accepted, Refusal>>,
    },
    /// Look now, and let resting lanes try again.
    Look,
}

/// The state as of the last look, for everyone to read.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The spec in force.
    pub spec: Option<Arc<NodeSpec>>,
    /// What was seen.
    pub seen: Option<Arc<Seen>>,
    /// What was planned.
    pub plan: Arc<Plan>,
    /// What is under way.
    pub busy: BTreeMap<Lane, &'static str>,
    /// What failed last.
    pub resting: BTreeMap<Lane, Resting>,
    /// The newest spec that nothing is left to do for.
    pub settled: Generation,
    /// How many looks there were.
    pub looks: u64,
    /// How long the last look took, milliseconds.
    pub look_ms: u64,
}

/// What the loop tells others by.
#[derive(Debug)]
pub struct Outlets {
    /// The state.
    pub snapshot: watch::Sender<Arc<Snapshot>>,
    /// The report.
    pub report: watch::Sender<Option<Arc<Report>>>,
    /// The newest accepted generation.
    pub accepted: watch::Sender<Generation>,
}

/// The loop's state.
#[derive(Debug)]
pub struct Reconciler<D> {
    config: Arc<Config>,
    drivers: Arc<D>,
    ledger: Ledger,
    this: Option<HostId>,
    spec: Option<Arc<NodeSpec>>,
    lanes: Lanes,
    steps: JoinSet<(Lane, Result<(), Problem>)>,
    boot_id: String,
    snapshot: Snapshot,
    outlets: Outlets,
}

/// Which boot of the host this is.
#[must_use]
pub fn boot_id() -> String {
    // A kernel without it makes every restart of the agent look like one boot, which never starts anything twice.
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Milliseconds since 1970.
#[must_use]
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl<D: Drivers> Reconciler<D> {
    /// A loop that goes on from the ledger. `this` is the host's identity, when it is known without a spec.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger cannot be read: nothing is done then, and nothing taken for absent.
    pub fn new(
        config: Arc<Config>,
        drivers: Arc<D>,
        ledger: Ledger,
        this: Option<HostId>,
        outlets: Outlets,
    ) -> Result<Self, LedgerError> {
        let spec = ledger.spec()?.map(Arc::new);
        let boot_id = boot_id();
        drivers.network().resume_arrivals(ledger.arrivals(&boot_id)?);
        if let Some(spec) = &spec {
            tracing::info!(generation = spec.generation().0, "going on from the ledger");
            outlets.accepted.send_replace(spec.generation());
            drivers.network().describe(spec.machines());
        }
        let snapshot = Snapshot { spec: spec.clone(), ..Snapshot::default() };
        outlets.snapshot.send_replace(Arc::new(snapshot.clone()));
        Ok(Self {
            config,
            drivers,
            ledger,
            this,
            spec,
            lanes: Lanes::default(),
            steps: JoinSet::new(),
            boot_id,
            snapshot,
            outlets,
        })
    }

    /// Runs until the command channel closes. Steps under way are cut off then; machines and flows stay as they are.
    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>, changed: Arc<Notify>) {
        loop {
            self.turn().await;
            let rest = self.rest();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => return,
                },
                Some(done) = self.steps.join_next() => self.finished(done),
                () = changed.notified() => {}
                () = tokio::time::sleep(rest) => {}
            }
            tokio::time::sleep(GATHER).await;
            while let Some(done) = self.steps.try_join_next() {
                self.finished(done);
            }
            while let Ok(command) = commands.try_recv() {
                self.command(command);
            }
        }
    }

    /// Looks, plans, begins and publishes, once.
    pub async fn turn(&mut self) {
        let Some(spec) = self.spec.clone() else { return self.turn_without_spec().await };
        // A look may take long, when a part of the host hangs.
        self.keep_arrivals(&self.drivers.network().arrived());
        let began = tokio::time::Instant::now();
        let seen = look(&*self.drivers, &self.ledger, &spec).await;
        self.snapshot.look_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.snapshot.looks += 1;
        self.keep_arrivals(&seen.arrived);
        let plan = plan::plan(&spec, &seen, &self.context());
        let now = now_ms();
        let settled = plan.is_settled() && self.lanes.busy().is_empty();
        for step in self.lanes.begin(&plan, now) {
            let (lane, verb) = (step.lane(), step.verb());
            tracing::info!(step = verb, %lane, generation = spec.generation().0, "step begins");
            let taken = apply::take(Arc::clone(&self.drivers), self.ledger.clone(), step, now);
            self.steps.spawn(async move { (lane, taken.await) });
        }
        if settled && self.snapshot.settled != spec.generation() {
            self.snapshot.settled = spec.generation();
            tracing::info!(generation = spec.generation().0, "settled");
        }
        self.snapshot.plan = Arc::new(plan);
        self.publish(Some(Arc::new(seen)));
    }

    /// Notes which ports have come, if it can, before the scheduler is told: a restart does not await them again, and their machines need not speak first.
    fn keep_arrivals(&self, arrived: &[Arrived]) {
        if let Err(error) = self.ledger.keep_arrivals(&self.boot_id, arrived) {
            let remedy = error.remedy();
            tracing::warn!(error = crate::driver::chain(&error), remedy, "ports that came are not noted");
        }
    }

    /// Looks and tells what the host can give; plans nothing, for nothing is known to be unwanted.
    async fn turn_without_spec(&mut self) {
        let Some(host) = self.this else { return self.publish(None) };
        let tunnel = self.config.underlay.ip.unwrap_or(std::net::Ipv4Addr::UNSPECIFIED);
        let seen = look(&*self.drivers, &self.ledger, &NodeSpec::empty(Generation(0), host, tunnel)).await;
        self.publish(Some(Arc::new(seen)));
    }

    fn context(&self) -> Context {
        let machines = &self.config.machines;
        Context {
            now_ms: now_ms(),
            boot_id: self.boot_id.clone(),
            shutdown_grace_ms: machines.shutdown_grace_seconds * 1000,
            uids: machines.uid_first..machines.uid_first.saturating_add(machines.uid_count),
        }
    }

    fn publish(&mut self, seen: Option<Arc<Seen>>) {
        self.snapshot.seen = seen;
        self.snapshot.spec.clone_from(&self.spec);
        self.snapshot.busy.clone_from(self.lanes.busy());
        self.snapshot.resting.clone_from(self.lanes.resting());
        if let Some(host) = self.this.or_else(|| self.spec.as_ref().map(|spec| spec.host())) {
            let resources = resources::sample(&self.config, self.snapshot.seen.as_deref());
            let report = Arc::new(crate::report::report(host, &self.snapshot, resources));
            self.outlets.report.send_if_modified(|now| {
                // What is no news goes with the next heartbeat.
                let is_news = now.as_ref().is_none_or(|before| report.is_news_after(before));
                *now = Some(report);
                is_news
            });
        }
        self.outlets.snapshot.send_replace(Arc::new(self.snapshot.clone()));
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Look => self.lanes.wake(),
            Command::Accept { spec, reply } => {
                let outcome = self.accept(*spec);
                if let Err(refusal) = &outcome {
                    tracing::warn!(refusal = crate::driver::chain(refusal), "spec refused");
                }
                // Who asked may have gone.
                let _ = reply.send(outcome);
            }
        }
    }

    fn accept(&mut self, spec: NodeSpec) -> Result<Accepted, Refusal> {
        let accepted = accept(self.spec.as_deref(), self.this, &spec)?;
        if accepted == Accepted::New {
            self.ledger.keep_spec(&spec)?;
            tracing::info!(generation = spec.generation().0, machines = spec.machines().len(), "spec accepted");
            self.outlets.accepted.send_replace(spec.generation());
            self.drivers.network().describe(spec.machines());
            self.spec = Some(Arc::new(spec));
            // Who is told that it was taken may ask for it at once, before the next look.
            self.snapshot.spec.clone_from(&self.spec);
            self.outlets.snapshot.send_replace(Arc::new(self.snapshot.clone()));
            self.lanes.wake();
        }
        Ok(accepted)
    }

    fn finished(&mut self, done: Result<(Lane, Result<(), Problem>), tokio::task::JoinError>) {
        let (lane, outcome) = match done {
            Ok(done) => done,
            // A step never panics by design; its lane stays busy, so that a bug is seen and nothing is done twice.
            Err(error) => return tracing::error!(%error, "a step ended without an outcome"),
        };
        match &outcome {
            Ok(()) => tracing::debug!(%lane, "step done"),
            Err(problem) => tracing::warn!(%lane, problem = problem.message, remedy = problem.remedy, "step failed"),
        }
        self.lanes.finish(&lane, outcome, now_ms());
    }

    fn rest(&self) -> Duration {
        let plan = &self.snapshot.plan;
        let usual = if plan.is_settled() || self.spec.is_none() { SETTLED_INTERVAL } else { UNSETTLED_INTERVAL };
        let due = self.lanes.next_due_ms().map(|due| Duration::from_millis(due.saturating_sub(now_ms())));
        due.map_or(usual, |due| due.min(usual)).max(Duration::from_millis(50))
    }
}

/// Looks at everything that a spec is about. Parts that do not answer in time are unknown.
pub async fn look<D: Drivers>(drivers: &D, ledger: &Ledger, spec: &NodeSpec) -> Seen {
    let images: Vec<Image> = spec.images().values().cloned().collect();
    let volumes = spec.volumes().values().chain(spec.retired_volumes().values()).cloned().collect();
    let (images, volumes, taps, switch, machines) = tokio::join!(
        in_time("images", drivers.images().look(&images)),
        tokio::time::timeout(LOOK_TIMEOUT, drivers.volumes().look(volumes, plan::bases(spec))),
        in_time("taps", drivers.network().look_taps()),
        in_time("the bridge", drivers.network().look_bridge(spec.network())),
        look_machines(drivers, ledger),
    );
    // A volume without an entry waits to be looked at.
    let volumes = volumes.unwrap_or_default();
    let (health, arrived) = (drivers.network().health(), drivers.network().arrived());
    Seen { images, bases: volumes.bases, volumes: volumes.volumes, taps, switch, health, arrived, machines }
}

async fn in_time<T>(what: &str, look: impl Future<Output = Result<T, crate::driver::Failure>>) -> Look<T> {
    match tokio::time::timeout(LOOK_TIMEOUT, look).await {
        Ok(result) => result.into(),
        Err(_) => Look::Unknown(Problem {
            message: format!("look at {what}: no answer within {LOOK_TIMEOUT:?}"),
            remedy: "look at the load of this host and at what the part depends on".to_owned(),
        }),
    }
}

async fn look_machines<D: Drivers>(
    drivers: &D,
    ledger: &Ledger,
) -> Look<BTreeMap<model::MachineId, Look<crate::seen::MachineSeen>>> {
    let records = match ledger.records() {
        Ok(records) => records,
        Err(error) => {
            let remedy = error.remedy();
            return Look::Unknown(Problem { message: crate::driver::chain(&error), remedy });
        }
    };
    let mut seen = BTreeMap::new();
    let mut readable = Vec::new();
    for (id, record) in records {
        match record {
            Ok(record) => readable.push(record),
            Err(error) => {
                let remedy = error.remedy();
                seen.insert(id, Look::Unknown(Problem { message: crate::driver::chain(&error), remedy }));
            }
        }
    }
    let ids: Vec<_> = readable.iter().map(|record| record.id).collect();
    match tokio::time::timeout(LOOK_TIMEOUT, drivers.machines().look(readable)).await {
        Ok(found) => seen.extend(found),
        Err(_) => seen.extend(ids.into_iter().map(|id| {
            let message = format!("look at vm {id}: no answer within {LOOK_TIMEOUT:?}");
            (id, Look::Unknown(Problem { message, remedy: "look at the load of this host".to_owned() }))
        })),
    }
    Look::Known(seen)
}

/// Whether `path` changed since `seen`: its time and length.
#[must_use]
pub fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}
