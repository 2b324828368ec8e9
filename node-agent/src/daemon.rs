//! `node-agent run`: puts the parts together, tells systemd, and ends in order.
//!
//! SIGTERM and SIGINT end the agent and nothing else: machines and flows go on.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use dataplane::switch::openflow::OpenFlow;
use http_body_util::{BodyExt, Empty, Limited};
use model::spec::{Generation, wire};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::api::{self, Api};
use crate::apply::Drivers;
use crate::config::{Config, LogFormat, SpecSource};
use crate::counter_records;
use crate::driver::bridge::HostNetworking;
use crate::driver::images::ImageCache;
use crate::driver::machines::VmmProcesses;
use crate::driver::volumes::VolumeStore;
use crate::driver::{Failure, chain};
use crate::identity::{self, Identity};
use crate::ledger::Ledger;
use crate::link::{self, LinkStatus, SchedulerClient};
use crate::reconcile::{Command, Outlets, Reconciler, Snapshot, stamp};
use crate::renewal;
use crate::upstream;

/// Threads that run tasks: the agent waits far more than it computes.
const WORKER_THREADS: usize = 2;
/// Most threads for calls that block.
const BLOCKING_THREADS_MAX: usize = 8;
/// How long an idle thread for such calls stays.
const BLOCKING_THREAD_IDLE: Duration = Duration::from_secs(2);
/// Commands that may wait for the loop.
const COMMANDS_MAX: usize = 16;
/// How often a spec file is looked at.
const FILE_INTERVAL: Duration = Duration::from_millis(500);
/// How many times the loop turns at least in the time after which systemd takes the agent for hung (sd_watchdog_enabled(3) advises two).
const TURNS_PER_WATCHDOG: u32 = 3;
/// The longest answer of the local API that `status` reads.
const ANSWER_MAX: usize = 16 << 20;

/// The real drivers.
#[derive(Debug)]
struct Host {
    machines: VmmProcesses,
    images: ImageCache,
    volumes: VolumeStore,
    network: Arc<HostNetworking>,
}

impl Drivers for Host {
    type Machines = VmmProcesses;
    type Images = ImageCache;
    type Volumes = VolumeStore;
    type Network = HostNetworking;

    fn machines(&self) -> &VmmProcesses {
        &self.machines
    }
    fn images(&self) -> &ImageCache {
        &self.images
    }
    fn volumes(&self) -> &VolumeStore {
        &self.volumes
    }
    fn network(&self) -> &HostNetworking {
        &self.network
    }
}

/// Runs the agent until it is told to end.
///
/// # Errors
/// When it cannot begin: the ledger is damaged, the host has not joined, the socket is taken.
pub fn run(config: Config) -> Result<()> {
    start_log(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_keep_alive(BLOCKING_THREAD_IDLE)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let ended = runtime.block_on(serve(Arc::new(config)));
    // A blocking call that hangs must not hold up the end.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

fn start_log(config: &Config) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log.filter)
        .with_context(|| format!("read log.filter {:?}", config.log.filter))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log.format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

async fn serve(config: Arc<Config>) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let ledger = Ledger::open(&config.paths.state)?;
    let identity = who(&config)?;
    let scheduler = match &identity {
        Some(identity) => Some(SchedulerClient::new(&config.paths.state, identity)?),
        None => None,
    };
    let changed = Arc::new(Notify::new());
    let socket = config.switch.socket();
    let network = Arc::new(HostNetworking::start(&config, OpenFlow::unix(socket))?);
    let volumes = VolumeStore::new(Arc::clone(&config))?;
    let host = Host {
        machines: VmmProcesses::new(Arc::clone(&config), Arc::clone(&changed))?,
        images: ImageCache::new(Arc::clone(&config), scheduler.clone()),
        volumes: volumes.clone(),
        network: Arc::clone(&network),
    };
    let (snapshot, snapshots) = watch::channel(Arc::new(Snapshot::default()));
    let (report, reports) = watch::channel(None);
    let (accepted, generations) = watch::channel(Generation(0));
    let (status, link_status) = watch::channel::<Option<LinkStatus>>(None);
    let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
    let this = identity.as_ref().map(|identity| identity.host);
    let outlets = Outlets { snapshot, report, accepted };
    let reconciler = Reconciler::new(Arc::clone(&config), Arc::new(host), ledger, this, outlets).map_err(|error| {
        let remedy = error.remedy();
        anyhow::Error::new(error).context(format!("go on from the ledger (way out: {remedy})"))
    })?;
    let listener =
        api::listen(&config.api.socket).with_context(|| format!("listen on {}", config.api.socket.display()))?;
    let shared = Arc::new(Api {
        config: Arc::clone(&config),
        identity,
        snapshot: snapshots.clone(),
        report: reports.clone(),
        link: link_status,
        commands: commands.clone(),
        network: Arc::clone(&network),
        volumes: volumes.clone(),
        started: tokio::time::Instant::now(),
    });
    tokio::spawn(counter_records::keep(Arc::clone(&shared)));
    tokio::spawn(async move { axum::serve(listener, api::router(shared)).await });
    tokio::spawn(upstream::follow(config.dns.upstream.clone(), Arc::clone(&network)));
    tokio::spawn(follow_switch(network, Arc::clone(&changed)));
    if let Some(limit) = sd_notify::watchdog_enabled() {
        tokio::spawn(turn_in_time(limit / TURNS_PER_WATCHDOG, Arc::clone(&changed)));
    }
    if config.ceph.is_some() {
        tokio::spawn(follow_cluster(volumes, Arc::clone(&changed)));
    }
    if let Some(client) = scheduler {
        tokio::spawn(renewal::keep(client.clone(), config.paths.state.clone()));
        tokio::spawn(link::keep(client, commands.clone(), reports, generations, status));
    }
    if let SpecSource::File(path) = &config.spec.source {
        tokio::spawn(follow_file(path.clone(), commands.clone()));
    }
    tokio::spawn(tell_systemd(snapshots));
    tracing::info!(socket = %config.api.socket.display(), version = env!("CARGO_PKG_VERSION"), "agent runs");
    tokio::select! {
        () = reconciler.run(inbox, changed) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("agent ends; machines and flows go on");
    notify(&[NotifyState::Stopping]);
    // What is left of the socket is taken for another agent's by nobody: the next start looks whether someone listens.
    let _ = std::fs::remove_file(&config.api.socket);
    Ok(())
}

/// Who this host is; none when specs do not come from a scheduler.
fn who(config: &Config) -> Result<Option<Identity>> {
    match config.spec.source {
        SpecSource::Scheduler => Ok(Some(identity::load(&config.paths.state)?)),
        SpecSource::File(_) | SpecSource::Api => Ok(None),
    }
}

/// Has the loop look whenever the switch changes.
async fn follow_switch(network: Arc<HostNetworking>, changed: Arc<Notify>) {
    loop {
        network.changed().await;
        changed.notify_one();
        // A burst of changes is one.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Has the loop turn often enough for systemd's watchdog, whatever its own pace. What says that it turns is still the loop itself.
async fn turn_in_time(interval: Duration, changed: Arc<Notify>) {
    loop {
        tokio::time::sleep(interval).await;
        changed.notify_one();
    }
}

/// Asks the cluster whether it is there: from time to time for the report, and while a look found that it does not answer.
async fn follow_cluster(volumes: VolumeStore, changed: Arc<Notify>) {
    const INTERVAL: Duration = Duration::from_secs(60);
    const SOON: Duration = Duration::from_secs(5);
    loop {
        let wait = match volumes.probe().await {
            Ok(()) => INTERVAL,
            Err(_) => SOON,
        };
        if wait == INTERVAL {
            changed.notify_one();
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = volumes.doubted() => {}
        }
    }
}

/// Offers the spec in a file whenever the file changes.
async fn follow_file(path: PathBuf, commands: mpsc::Sender<Command>) {
    let mut seen = None;
    loop {
        let now = stamp(&path);
        if now.is_some() && now != seen {
            seen = now;
            if let Err(failure) = offer_file(&path, &commands).await {
                let problem = failure.problem();
                tracing::warn!(problem = problem.message, remedy = problem.remedy, "spec file not taken in");
            }
        }
        tokio::time::sleep(FILE_INTERVAL).await;
    }
}

async fn offer_file(path: &std::path::Path, commands: &mpsc::Sender<Command>) -> Result<(), Failure> {
    let what = || format!("take in the spec file {}", path.display());
    let bytes = std::fs::read(path).map_err(|error| Failure::caused(what(), "look at its permissions", error))?;
    let spec = wire::decode(&bytes).map_err(|error| Failure::caused(what(), "correct the file", error))?;
    let (reply, answer) = oneshot::channel();
    let ending = || Failure::new(format!("{}: the agent is ending", what()), "");
    commands.send(Command::Accept { spec: Box::new(spec), reply }).await.map_err(|_| ending())?;
    match answer.await.map_err(|_| ending())? {
        Ok(_) => Ok(()),
        Err(refusal) => {
            let remedy = refusal.remedy();
            Err(Failure::caused(what(), remedy, refusal))
        }
    }
}

/// READY after the first look, then STATUS on change and WATCHDOG while the loop turns (sd_notify(3)).
async fn tell_systemd(mut snapshots: watch::Receiver<Arc<Snapshot>>) {
    let mut ready = false;
    let mut told = String::new();
    while snapshots.changed().await.is_ok() {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        if !ready && (snapshot.looks > 0 || snapshot.spec.is_none()) {
            ready = true;
            notify(&[NotifyState::Ready]);
        }
        // Each published snapshot is a turn of the loop.
        notify(&[NotifyState::Watchdog]);
        let status = status_line(&snapshot);
        if status != told {
            notify(&[NotifyState::Status(&status)]);
            told = status;
        }
    }
}

fn status_line(snapshot: &Snapshot) -> String {
    let Some(spec) = &snapshot.spec else { return "no specification yet".to_owned() };
    let (generation, machines) = (spec.generation(), spec.machines().len());
    let failing = snapshot.resting.len() + snapshot.plan.blocked.len();
    if snapshot.settled == spec.generation() && failing == 0 {
        format!("generation {generation} settled, {machines} machines")
    } else {
        let waiting = snapshot.plan.waiting.len();
        format!("generation {generation}, {machines} machines: {waiting} objects wait, {failing} have a problem")
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd not told");
    }
}

/// Asks the running agent.
///
/// # Errors
/// When it does not answer or refuses.
pub async fn ask(config: Arc<Config>, path: &str) -> Result<serde_json::Value> {
    let socket = &config.api.socket;
    let stream = tokio::net::UnixStream::connect(socket)
        .await
        .with_context(|| format!("connect to the agent at {}: is it running?", socket.display()))?;
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    tokio::spawn(connection);
    let request =
        hyper::Request::builder().uri(path).header("host", "agent").body(Empty::<hyper::body::Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
    let bytes = body.map_err(|error| anyhow::anyhow!("read the agent's answer: {}", chain(error.as_ref())))?.to_bytes();
    Ok(serde_json::from_slice(&bytes)?)
}
