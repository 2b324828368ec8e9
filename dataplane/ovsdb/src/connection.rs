//! A session over a unix or TCP socket, on tokio: connects, reads, writes, and connects again.
//!
//! One task owns the socket. It and the handles share the [`Session`] behind a lock that nobody holds while waiting.
//! A handle reads the replica, sends transactions, and follows changes; dropping the last [`Connection`] ends the task.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Notify, broadcast, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, sleep_until, timeout};
use tracing::{debug, info};

use crate::backoff::Backoff;
use crate::replica::{Replica, RowChange};
use crate::session::{Config, Event, Session, SessionError, TransactionId};
use crate::transaction::{Outcome, Transaction, TransactionError};
use crate::value::Name;

/// How many sets of changes a follower may be behind before it is told that it missed some.
pub const CHANGES_BEHIND_MAX: usize = 256;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How much is read at once.
const READ_BYTES: usize = 64 << 10;

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum ConnectionError {
    /// A remote that is written in no known way.
    #[error("{0:?} is no database address: unix:PATH or tcp:HOST:PORT")]
    Remote(String),
    /// The socket cannot be connected.
    #[error("connect to {remote}")]
    Connect {
        /// Where.
        remote: Remote,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Reading or writing failed, or the server closed the connection.
    #[error("talk to {remote}")]
    Socket {
        /// With whom.
        remote: Remote,
        /// What failed.
        #[source]
        source: io::Error,
    },
    /// The server broke the protocol or was silent.
    #[error("follow {remote}")]
    Session {
        /// Whom.
        remote: Remote,
        /// What it did.
        #[source]
        source: SessionError,
    },
    /// No contents came in time.
    #[error("database at {remote} not reached in {waited:?}: {problem}")]
    Timeout {
        /// Where.
        remote: Remote,
        /// How long was waited.
        waited: Duration,
        /// What the last attempt said.
        problem: String,
    },
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remote {
    /// A unix socket.
    Unix(PathBuf),
    /// A host and port, `host:port`.
    Tcp(String),
}

impl fmt::Display for Remote {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
            Self::Tcp(address) => write!(formatter, "tcp:{address}"),
        }
    }
}

impl FromStr for Remote {
    type Err = ConnectionError;

    /// Reads `unix:PATH` or `tcp:HOST:PORT`, as the tools of Open vSwitch write it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(PathBuf::from(path))),
            Some(("tcp", address)) if address.contains(':') => Ok(Self::Tcp(address.to_owned())),
            _ => Err(ConnectionError::Remote(text.to_owned())),
        }
    }
}

/// How the connection is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// Whether the replica follows the server now.
    pub synchronised: bool,
    /// Counted up with each change of the replica and each synchronisation.
    pub generation: u64,
    /// Why the last connection ended or could not be made, with all causes.
    pub problem: Option<String>,
}

#[derive(Debug)]
struct State {
    session: Session,
    waiting: BTreeMap<TransactionId, oneshot::Sender<Result<Outcome, TransactionError>>>,
}

#[derive(Debug)]
struct Shared {
    remote: Remote,
    state: Mutex<State>,
    /// Something is to be written.
    wake: Notify,
    status: watch::Sender<Status>,
    changes: broadcast::Sender<Arc<[RowChange]>>,
    /// Locks that this client holds now.
    locks: watch::Sender<BTreeSet<Name>>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // The state has no invariant that a panic elsewhere could have broken half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client of one database that stays connected as well as it can.
#[derive(Debug)]
pub struct Connection {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Connection {
    /// Starts to connect; must be called inside a tokio runtime. Use [`Connection::synchronised`] to wait.
    #[must_use]
    pub fn start(remote: Remote, config: Config) -> Self {
        let shared = Arc::new(Shared {
            remote,
            state: Mutex::new(State { session: Session::new(config), waiting: BTreeMap::new() }),
            wake: Notify::new(),
            status: watch::Sender::new(Status::default()),
            changes: broadcast::Sender::new(CHANGES_BEHIND_MAX),
            locks: watch::Sender::new(BTreeSet::new()),
        });
        let task = tokio::spawn(keep_connected(Arc::clone(&shared)));
        Self { shared, task }
    }

    /// Where the server is.
    #[must_use]
    pub fn remote(&self) -> &Remote {
        &self.shared.remote
    }

    /// Reads the replica. `look` must be short: the connection waits for it.
    pub fn read<T>(&self, look: impl FnOnce(&Replica) -> T) -> T {
        look(self.shared.state().session.replica())
    }

    /// Follows the state of the connection and the replica.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.shared.status.subscribe()
    }

    /// Follows changes row by row, from now on. A receiver that falls behind by more than [`CHANGES_BEHIND_MAX`] gets
    /// `Lagged` and has to read the replica.
    #[must_use]
    pub fn changes(&self) -> broadcast::Receiver<Arc<[RowChange]>> {
        self.shared.changes.subscribe()
    }

    /// Waits until the replica follows the server.
    ///
    /// # Errors
    /// When `limit` passes; the message has the last problem.
    pub async fn synchronised(&self, limit: Duration) -> Result<(), ConnectionError> {
        let mut status = self.status();
        let outcome = timeout(limit, status.wait_for(|status| status.synchronised)).await;
        if matches!(outcome, Ok(Ok(_))) {
            return Ok(());
        }
        let problem = self.shared.status.borrow().problem.clone().unwrap_or_else(|| "no answer".to_owned());
        Err(ConnectionError::Timeout { remote: self.shared.remote.clone(), waited: limit, problem })
    }

    /// Waits until `look` finds something in the replica.
    ///
    /// # Errors
    /// When `limit` passes first.
    pub async fn wait_for<T>(
        &self,
        limit: Duration,
        mut look: impl FnMut(&Replica) -> Option<T>,
    ) -> Result<T, ConnectionError> {
        let mut status = self.status();
        let search = async {
            loop {
                status.borrow_and_update();
                if let Some(found) = self.read(&mut look) {
                    return found;
                }
                if status.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        timeout(limit, search).await.map_err(|_| ConnectionError::Timeout {
            remote: self.shared.remote.clone(),
            waited: limit,
            problem: "what was waited for is not in the database".to_owned(),
        })
    }

    /// Wants a lock, on this connection and all that follow; the receiver has the locks held at any time. A transaction
    /// that must only happen under the lock says so with [`Transaction::assert_lock`].
    #[must_use]
    pub fn lock(&self, name: Name) -> watch::Receiver<BTreeSet<Name>> {
        self.shared.state().session.lock(name);
        self.shared.wake.notify_one();
        self.shared.locks.subscribe()
    }

    /// No longer wants a lock.
    pub fn unlock(&self, name: &Name) {
        self.shared.state().session.unlock(name);
        self.shared.wake.notify_one();
        self.shared.locks.send_modify(|locks| drop(locks.take(name)));
    }

    /// Sends a transaction and waits for its end; a lost connection ends it as well.
    ///
    /// # Errors
    /// When it was refused, not sent, or its fate is not known.
    pub async fn transact(&self, transaction: &Transaction) -> Result<Outcome, TransactionError> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut state = self.shared.state();
            let id = state.session.transact(transaction)?;
            state.waiting.insert(id, sender);
        }
        self.shared.wake.notify_one();
        receiver.await.unwrap_or(Err(TransactionError::Disconnected))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep_connected(shared: Arc<Shared>) {
    let mut backoff = Backoff::default();
    loop {
        let error = match connect(&shared.remote).await {
            Ok(Socket::Unix(stream)) => serve(&shared, stream, &mut backoff).await,
            Ok(Socket::Tcp(stream)) => serve(&shared, stream, &mut backoff).await,
            Err(error) => error,
        };
        shared.state().session.disconnected();
        tell(&shared);
        let problem = chain(&error);
        shared.status.send_modify(|status| {
            if status.synchronised {
                info!(remote = %shared.remote, problem, "database connection lost");
            }
            status.synchronised = false;
            status.problem = Some(problem);
        });
        sleep(backoff.next_pause()).await;
    }
}

enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

async fn connect(remote: &Remote) -> Result<Socket, ConnectionError> {
    let connected = timeout(CONNECT_TIMEOUT, async {
        match remote {
            Remote::Unix(path) => UnixStream::connect(path).await.map(Socket::Unix),
            Remote::Tcp(address) => TcpStream::connect(address).await.map(Socket::Tcp),
        }
    });
    let outcome = connected.await.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)));
    outcome.map_err(|source| ConnectionError::Connect { remote: remote.clone(), source })
}

/// Talks until something goes wrong, and returns that.
async fn serve(
    shared: &Shared,
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    backoff: &mut Backoff,
) -> ConnectionError {
    let socket = |source| ConnectionError::Socket { remote: shared.remote.clone(), source };
    shared.state().session.connected(Instant::now());
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let (output, deadline) = {
            let mut state = shared.state();
            (state.session.take_output(), state.session.deadline())
        };
        if let Err(error) = write(&mut stream, &output).await {
            return socket(error);
        }
        let probe = async {
            match deadline {
                Some(deadline) => sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        let outcome = tokio::select! {
            read = stream.read(&mut buffer) => match read {
                Ok(0) => return socket(io::Error::from(io::ErrorKind::UnexpectedEof)),
                Ok(count) => shared.state().session.received(&buffer[..count], Instant::now()),
                Err(error) => return socket(error),
            },
            () = shared.wake.notified() => Ok(()),
            () = probe => shared.state().session.tick(Instant::now()),
        };
        if tell(shared) {
            backoff.reset();
        }
        if let Err(source) = outcome {
            return ConnectionError::Session { remote: shared.remote.clone(), source };
        }
    }
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), output: &[u8]) -> io::Result<()> {
    if output.is_empty() {
        return Ok(());
    }
    let written = timeout(CONNECT_TIMEOUT, stream.write_all(output)).await;
    written.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
}

/// Hands on all events; returns whether the replica was synchronised by one of them.
fn tell(shared: &Shared) -> bool {
    let mut came_up = false;
    loop {
        // The lock is not held while others are told.
        let (event, waiting) = {
            let mut state = shared.state();
            let Some(event) = state.session.next_event() else { return came_up };
            let waiting = if let Event::Transacted { id, .. } = &event { state.waiting.remove(id) } else { None };
            (event, waiting)
        };
        match event {
            Event::Synchronised { changes } => {
                came_up = true;
                debug!(remote = %shared.remote, changes = changes.len(), "database synchronised");
                announce(shared, changes, true);
            }
            Event::Changed { changes } => announce(shared, changes, false),
            Event::Transacted { outcome, .. } => {
                // Whoever gave up waiting does not want to know.
                let _unheard = waiting.map(|waiting| waiting.send(outcome));
            }
            Event::Lock { name, held } => {
                info!(remote = %shared.remote, %name, held, "database lock");
                shared.locks.send_modify(|locks| {
                    let _was_other = if held { locks.insert(name) } else { locks.remove(&name) };
                });
            }
        }
    }
}

fn announce(shared: &Shared, changes: Vec<RowChange>, synchronised: bool) {
    if !changes.is_empty() {
        // Without followers there is nobody to tell.
        let _unheard = shared.changes.send(changes.into());
    }
    shared.status.send_modify(|status| {
        status.generation += 1;
        if synchronised {
            status.synchronised = true;
            status.problem = None;
        }
    });
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remotes_are_written_as_the_tools_do() {
        for text in ["unix:/run/openvswitch/db.sock", "tcp:127.0.0.1:6640", "tcp:[::1]:6640"] {
            assert_eq!(text.parse::<Remote>().unwrap().to_string(), text);
        }
        for text in ["", "unix:", "tcp:host", "ssl:host:1", "/run/db.sock"] {
            assert!(text.parse::<Remote>().is_err(), "{text}");
        }
    }
}
