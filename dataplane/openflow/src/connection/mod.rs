//! A client for one switch: the session on a unix or TCP socket.
//!
//! Owns [`Connection`], [`Incoming`] and the task that drives them. Never decides what a switch should hold, and never connects
//! again by itself: [`crate::session::Backoff`] tells its owner when to.
//! Invariant: every queue is bounded. When the owner is slow to take what comes unasked, it is dropped, counted, and said so
//! ([`Unasked::Lost`]); answers are never dropped.

mod driver;

use std::{
    fmt, io,
    path::PathBuf,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};

use self::driver::{CheckedError, Command};
use crate::{
    flow::{Flow, Group, Meter, PortNo},
    session::{AskError, BundleError, Change, Limits, SessionError},
    wire::{
        AsyncConfig, CtFlush, DecodeError, Description, EncodeError, Features, FlowCounters, FlowFilter, FlowMonitor,
        FlowRemoved, FlowStats, FlowUpdate, GROUP_ALL, GroupCounters, METER_ALL, Message, MeterCounters, MeterFeatures,
        MeterMod, MultipartReply, MultipartRequest, PacketIn, PacketInFormat, PacketOut, Port, PortCounters,
        PortStatus, QUEUE_ALL, QueueCounters, QueueFilter, Resume, RoleStatus, SwitchConfig, SwitchError,
        TableCounters, Xid,
    },
};

/// Commands that may wait for the driver.
const COMMANDS_MAX: usize = 64;
/// How many times the silence allowed an answer may take on the whole.
const PATIENCE: u32 = 8;
/// Messages that share a barrier.
const CHECKED_MAX: usize = 256;

/// Where a switch listens.
///
/// ```
/// use openflow::connection::Target;
/// let target: Target = "unix:/run/openvswitch/br-int.mgmt".parse()?;
/// assert_eq!(target.to_string(), "unix:/run/openvswitch/br-int.mgmt");
/// assert_eq!("tcp:192.0.2.1".parse::<Target>()?, Target::Tcp("192.0.2.1:6653".to_owned()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A unix socket.
    Unix(PathBuf),
    /// Host and port.
    Tcp(String),
}

/// Text that is not a target.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is not a switch address: expected unix:PATH or tcp:HOST[:PORT]")]
pub struct TargetError(String);

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(("tcp", host)) if !host.is_empty() => {
                let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
                Ok(Self::Tcp(if has_port { host.to_owned() } else { format!("{host}:6653") }))
            }
            _ => Err(TargetError(text.to_owned())),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// How to talk to a switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Bounds of the session.
    pub limits: Limits,
    /// How long connecting and greeting may take.
    pub connect_timeout: Duration,
    /// For how long nothing may go to and fro before an answer is given up. One that is on its way for longer, because it is large or the switch
    /// is slow, may take eight times as long.
    pub request_timeout: Duration,
    /// The same for a bundle.
    pub bundle_timeout: Duration,
    /// Whether packet-ins, port changes and removed flows are wanted.
    pub wants_unasked: bool,
    /// Which `controller` actions this connection answers to.
    pub controller_id: u16,
    /// Unasked messages that may wait for the owner.
    pub unasked_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            bundle_timeout: Duration::from_secs(60),
            wants_unasked: false,
            controller_id: 0,
            unasked_max: 1024,
        }
    }
}

/// Why a connection did not come about, or is over.
#[derive(Debug, Error)]
pub enum ConnectionError {
    /// The socket could not be opened.
    #[error("cannot connect to {target}")]
    Connect {
        /// The switch.
        target: Target,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It took too long.
    #[error("{target} did not greet within {after:?}")]
    Timeout {
        /// The switch.
        target: Target,
        /// The limit.
        after: Duration,
    },
    /// The switch closed the connection.
    #[error("{target} closed the connection")]
    Closed {
        /// The switch.
        target: Target,
    },
    /// Reading or writing failed.
    #[error("connection to {target} failed")]
    Io {
        /// The switch.
        target: Target,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The protocol went wrong.
    #[error("session with {target} is over")]
    Session {
        /// The switch.
        target: Target,
        /// Why.
        #[source]
        source: SessionError,
    },
    /// The first questions failed.
    #[error("cannot set up the session with {target}")]
    SetUp {
        /// The switch.
        target: Target,
        /// Why.
        #[source]
        source: Box<RequestError>,
    },
}

/// Why a question has no answer.
#[derive(Debug, Clone, Error)]
pub enum RequestError {
    /// The connection is over.
    #[error("the connection to the switch is over")]
    Over(#[source] Option<Arc<ConnectionError>>),
    /// The switch refused it.
    #[error("the switch refused the request")]
    Refused(#[source] SwitchError),
    /// The answer cannot be read.
    #[error("the answer cannot be read")]
    Unreadable(#[source] DecodeError),
    /// It could not be asked.
    #[error("the request cannot be sent")]
    Ask(#[from] AskError),
    /// Nothing went to and fro for too long, or the answer took many times that.
    #[error("no answer within {after:?}, nor in a bounded time of more")]
    Timeout {
        /// The limit of silence.
        after: Duration,
    },
    /// Another answer than to this question.
    #[error("the switch answered something else than what was asked")]
    Unexpected,
}

impl From<EncodeError> for RequestError {
    fn from(error: EncodeError) -> Self {
        Self::Ask(AskError::Encode(error))
    }
}

/// Why a bundle was not applied, or nobody knows whether it was.
#[derive(Debug, Clone, Error)]
pub enum ApplyError {
    /// Nothing was applied.
    #[error("nothing of the bundle was applied")]
    Bundle(#[from] BundleError),
    /// The connection ended or was too slow: look at what is installed.
    #[error("it is not known whether the bundle was applied")]
    Unknown(#[source] RequestError),
}

/// Why not all of several meters were changed. Those before the one that is named are, and some behind it may be.
#[derive(Debug, Clone, Error)]
#[error("{change}")]
pub struct MetersError {
    /// The first change that was refused, or all of them when that is not known.
    pub change: String,
    /// Why.
    #[source]
    pub source: RequestError,
}

/// What comes from the switch without being asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unasked {
    /// A packet.
    PacketIn(PacketIn),
    /// A port changed.
    PortStatus(PortStatus),
    /// A flow went.
    FlowRemoved(FlowRemoved),
    /// What happened to flows that are watched: see [`Connection::watch_flows`].
    FlowUpdates(Vec<FlowUpdate>),
    /// The switch changed this connection's role.
    RoleStatus(RoleStatus),
    /// A message that had no answer to wait for (a packet-out, say) was refused.
    Refused {
        /// The message's transaction id.
        xid: Xid,
        /// Why.
        error: SwitchError,
    },
    /// So many messages were dropped, because the owner was slow.
    Lost {
        /// How many.
        count: u64,
    },
}

/// The stream of unasked messages. Dropping it discards them.
#[derive(Debug)]
pub struct Incoming {
    receiver: mpsc::Receiver<Unasked>,
}

impl Incoming {
    /// The next message; `None` once the connection is over. Safe to cancel.
    pub async fn next(&mut self) -> Option<Unasked> {
        self.receiver.recv().await
    }
}

/// A connection to a switch. Clones share it; it ends when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Connection {
    commands: mpsc::Sender<Command>,
    over: watch::Receiver<Option<Arc<ConnectionError>>>,
    features: Features,
    options: Options,
    /// Octets that went to and fro.
    moved: Arc<AtomicU64>,
}

impl Connection {
    /// Connects, greets, and chooses what comes unasked.
    ///
    /// # Errors
    /// When the switch cannot be reached or does not speak OpenFlow 1.5.
    pub async fn connect(target: &Target, options: Options) -> Result<(Self, Incoming), ConnectionError> {
        let timeout = || ConnectionError::Timeout { target: target.clone(), after: options.connect_timeout };
        tokio::time::timeout(options.connect_timeout, Self::set_up(target, options)).await.map_err(|_| timeout())?
    }

    async fn set_up(target: &Target, options: Options) -> Result<(Self, Incoming), ConnectionError> {
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let (unasked, incoming) = mpsc::channel(options.unasked_max.max(1));
        let moved = Arc::new(AtomicU64::new(0));
        let over = driver::spawn(target.clone(), options, receiver, unasked, moved.clone()).await?;
        let features = Features { datapath_id: 0, buffers: 0, tables: 0, auxiliary_id: 0, capabilities: 0 };
        let mut connection = Self { commands, over, features, options, moved };
        match connection.choose().await {
            Ok(features) => connection.features = features,
            Err(RequestError::Over(Some(error))) => {
                // The driver's own error says more, and nobody else holds it yet.
                let fallback = |error| {
                    let source = Box::new(RequestError::Over(Some(error)));
                    ConnectionError::SetUp { target: target.clone(), source }
                };
                connection.over = watch::channel(None).1;
                return Err(Arc::try_unwrap(error).unwrap_or_else(fallback));
            }
            Err(error) => return Err(ConnectionError::SetUp { target: target.clone(), source: Box::new(error) }),
        }
        Ok((connection, Incoming { receiver: incoming }))
    }

    /// Asks for the features, and chooses which messages come unasked and how.
    async fn choose(&self) -> Result<Features, RequestError> {
        let Message::FeaturesReply(features) = self.ask(Message::FeaturesRequest).await? else {
            return Err(RequestError::Unexpected);
        };
        if !self.options.wants_unasked {
            return Ok(features);
        }
        let Message::GetConfigReply(config) = self.ask(Message::GetConfigRequest).await? else {
            return Err(RequestError::Unexpected);
        };
        // Open vSwitch sends nothing unasked to a client of the bridge's own socket while its miss length is zero.
        self.send(Message::SetConfig(SwitchConfig { miss_octets_max: u16::MAX, ..config })).await?;
        self.send(Message::SetPacketInFormat(PacketInFormat::Extended)).await?;
        self.send(Message::SetControllerId(self.options.controller_id)).await?;
        let masks =
            vec![(AsyncConfig::PACKET_IN, 0x3f), (AsyncConfig::PORT_STATUS, 0x07), (AsyncConfig::FLOW_REMOVED, 0x3f)];
        self.send(Message::SetAsync(AsyncConfig { masks })).await?;
        self.barrier().await?;
        Ok(features)
    }

    /// What the switch is, as it said when greeted.
    #[must_use]
    pub fn features(&self) -> Features {
        self.features
    }

    /// Why the connection is over, as soon as it is.
    pub async fn over(&self) -> Option<Arc<ConnectionError>> {
        let mut over = self.over.clone();
        let error = over.wait_for(Option::is_some).await.ok()?;
        error.clone()
    }

    fn is_over(&self) -> RequestError {
        RequestError::Over(self.over.borrow().clone())
    }

    /// Waits for an answer of the driver.
    async fn wait<T>(&self, silence_max: Duration, mut answer: oneshot::Receiver<T>) -> Result<T, RequestError> {
        for _ in 0..PATIENCE {
            let moved = self.moved.load(Ordering::Relaxed);
            match tokio::time::timeout(silence_max, &mut answer).await {
                Err(_) if self.moved.load(Ordering::Relaxed) == moved => break,
                Err(_) => {}
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(_)) => {
                    // The driver dropped the question: it is about to say why.
                    let _ = tokio::time::timeout(Duration::from_secs(1), self.over()).await;
                    return Err(self.is_over());
                }
            }
        }
        Err(RequestError::Timeout { after: silence_max })
    }

    /// Asks a question and waits for its answer.
    ///
    /// # Errors
    /// When the switch refuses, is silent for too long, or the connection is over.
    pub async fn ask(&self, message: Message) -> Result<Message, RequestError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Ask { message: Box::new(message), reply };
        self.commands.send(command).await.map_err(|_| self.is_over())?;
        self.wait(self.options.request_timeout, answer).await?
    }

    /// Sends a message that has no answer. A refusal comes as [`Unasked::Refused`] with the id given here.
    ///
    /// # Errors
    /// When the message has no wire form or the connection is over.
    pub async fn send(&self, message: Message) -> Result<Xid, RequestError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Send { message: Box::new(message), reply };
        self.commands.send(command).await.map_err(|_| self.is_over())?;
        Ok(self.wait(self.options.request_timeout, answer).await??)
    }

    /// Makes all changes, in order, or none. Packets see either the old flows or the new ones.
    ///
    /// # Errors
    /// [`ApplyError::Bundle`] names the change that was refused; the switch is then as before.
    pub async fn apply_bundle(&self, changes: Vec<Change>) -> Result<(), ApplyError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.commands.send(Command::Bundle { changes, reply }).await;
        sent.map_err(|_| ApplyError::Unknown(self.is_over()))?;
        let outcome = self.wait(self.options.bundle_timeout, answer).await.map_err(ApplyError::Unknown)?;
        Ok(outcome?)
    }

    /// Waits until the switch is done with all that was sent before.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub async fn barrier(&self) -> Result<(), RequestError> {
        match self.ask(Message::BarrierRequest).await? {
            Message::BarrierReply => Ok(()),
            _ => Err(RequestError::Unexpected),
        }
    }

    /// Sends a packet; see [`send`](Self::send) for refusals.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn packet_out(&self, packet: PacketOut) -> Result<Xid, RequestError> {
        self.send(Message::PacketOut(packet)).await
    }

    /// Lets a paused packet go on.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn resume(&self, resume: Resume) -> Result<Xid, RequestError> {
        self.send(Message::Resume(resume)).await
    }

    /// Changes a meter, and waits until that is done. Open vSwitch takes no meters in bundles: meters that flows use are
    /// added before the bundle, and those that none uses any more deleted after it.
    ///
    /// # Errors
    /// When the switch refuses it or the connection is over.
    pub async fn change_meter(&self, change: MeterMod) -> Result<(), RequestError> {
        self.checked(Message::MeterMod(change)).await
    }

    /// Changes meters, in order, and waits until that is done: many cost little more than one does by [`change_meter`](Self::change_meter).
    ///
    /// # Errors
    /// When the switch refuses one or the connection is over.
    pub async fn change_meters(&self, changes: Vec<MeterMod>) -> Result<(), MetersError> {
        for changes in changes.chunks(CHECKED_MAX) {
            let messages = changes.iter().cloned().map(Message::MeterMod).collect();
            let name = |index: Option<usize>| match index.and_then(|index| changes.get(index)) {
                Some(change) => change.to_string(),
                None => format!("change {} meters", changes.len()),
            };
            let failed = |error: CheckedError| MetersError { change: name(error.index), source: error.source };
            self.check(messages).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Makes the switch forget tracked connections, and waits until that is done.
    ///
    /// # Errors
    /// When the switch refuses it or the connection is over.
    pub async fn flush_connections(&self, which: CtFlush) -> Result<(), RequestError> {
        self.checked(Message::CtFlush(which)).await
    }

    /// Sends a message that has no answer and waits until it is done, or refused.
    ///
    /// # Errors
    /// When the switch refuses it or the connection is over.
    pub async fn checked(&self, message: Message) -> Result<(), RequestError> {
        self.check(vec![message]).await.map_err(|error| error.source)
    }

    async fn check(&self, messages: Vec<Message>) -> Result<(), CheckedError> {
        let unknown = |source| CheckedError { index: None, source };
        let (reply, answer) = oneshot::channel();
        let command = Command::Checked { messages, reply };
        self.commands.send(command).await.map_err(|_| unknown(self.is_over()))?;
        self.wait(self.options.request_timeout, answer).await.map_err(unknown)?
    }
}

macro_rules! questions {
    ($($(#[$doc:meta])* $name:ident($($argument:ident: $kind:ty),*) -> $answer:ty, $request:expr => $pattern:pat => $value:expr;)*) => {
        /// Questions with an answer in parts. They fail as [`Connection::ask`] does.
        impl Connection {$(
            $(#[$doc])*
            ///
            /// # Errors
            /// As [`ask`](Self::ask).
            pub async fn $name(&self, $($argument: $kind),*) -> Result<$answer, RequestError> {
                match self.ask(Message::MultipartRequest($request)).await? {
                    Message::MultipartReply { reply: $pattern, .. } => Ok($value),
                    _ => Err(RequestError::Unexpected),
                }
            }
        )*}
    };
}

questions! {
    /// Every flow, without counters.
    dump_flows() -> Vec<Flow>, MultipartRequest::all_flows()
        => MultipartReply::Flows(flows) => flows.into_iter().map(|stats| stats.flow).collect();
    /// Some flows, with what they counted.
    flow_stats(filter: FlowFilter) -> Vec<FlowStats>, MultipartRequest::Flows(filter)
        => MultipartReply::Flows(flows) => flows;
    /// What some flows counted together.
    aggregate(filter: FlowFilter) -> FlowCounters, MultipartRequest::Aggregate(filter)
        => MultipartReply::Aggregate(counters) => counters;
    /// Every group.
    dump_groups() -> Vec<Group>, MultipartRequest::all_groups()
        => MultipartReply::Groups(groups) => groups;
    /// What every group counted.
    group_stats() -> Vec<GroupCounters>, MultipartRequest::GroupStats(GROUP_ALL)
        => MultipartReply::GroupStats(groups) => groups;
    /// Every meter.
    dump_meters() -> Vec<Meter>, MultipartRequest::all_meters()
        => MultipartReply::Meters(meters) => meters;
    /// What every meter counted.
    meter_stats() -> Vec<MeterCounters>, MultipartRequest::MeterStats(METER_ALL)
        => MultipartReply::MeterStats(meters) => meters;
    /// What the switch can meter.
    meter_features() -> MeterFeatures, MultipartRequest::MeterFeatures
        => MultipartReply::MeterFeatures(features) => features;
    /// What every queue counted.
    queue_stats() -> Vec<QueueCounters>, MultipartRequest::QueueStats(QueueFilter { port: PortNo::ANY, queue: QUEUE_ALL })
        => MultipartReply::QueueStats(queues) => queues;
    /// Begins to watch flows, and gives those that are there. What happens later comes as [`Unasked::FlowUpdates`].
    watch_flows(monitor: FlowMonitor) -> Vec<FlowUpdate>, MultipartRequest::FlowMonitor(vec![monitor])
        => MultipartReply::FlowUpdates(updates) => updates;
    /// Every port.
    port_desc() -> Vec<Port>, MultipartRequest::Ports(PortNo::ANY)
        => MultipartReply::Ports(ports) => ports;
    /// What every port counted.
    port_stats() -> Vec<PortCounters>, MultipartRequest::PortStats(PortNo::ANY)
        => MultipartReply::PortStats(ports) => ports;
    /// What every table counted.
    table_stats() -> Vec<TableCounters>, MultipartRequest::Tables
        => MultipartReply::Tables(tables) => tables;
    /// What the switch is, in its own words.
    description() -> Description, MultipartRequest::Description
        => MultipartReply::Description(description) => *description;
}
