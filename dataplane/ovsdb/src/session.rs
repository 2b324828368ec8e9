//! One client's side of the protocol, over any number of connections one after the other.
//!
//! ```text
//!            connected            schema             contents
//!   Down ──────────────> Schema ─────────> Monitor ───────────> Up ─┐ updates, transactions, locks
//!    ^                     │                 │ refused: the next    └─┘
//!    │                     │                 └─ older monitor method
//!    └─────────────────────┴──────────────── disconnected ──────────
//! ```
//!
//! Bytes and the time come in by [`Session::received`] and [`Session::tick`]; bytes and events go out by
//! [`Session::take_output`] and [`Session::next_event`]. An error of these means that the connection has to be closed;
//! the session then waits for [`Session::connected`], keeps its replica, and on the next connection asks for what
//! happened since the last transaction it saw. A transaction that was under way has an unknown fate and says so.
//!
//! Sources: RFC 7047 §4; ovsdb-server(7) §4.1.12 to §4.1.15.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use thiserror::Error;

use crate::framing::{Framer, FramingError, MESSAGE_BYTES_MAX};
use crate::message::{Message, MessageError};
use crate::monitor::{MonitorError, Notation, TableUpdates, Watch};
use crate::replica::{Replica, ReplicaError, RowChange};
use crate::schema::{DatabaseSchema, SchemaError};
use crate::transaction::{Outcome, Transaction, TransactionError, decode_reply};
use crate::value::Name;

/// The most transactions that may be under way at once.
pub const TRANSACTIONS_MAX: usize = 1024;

/// The most bytes that may wait to be written: a caller that does not write, or a server that floods us with requests.
pub const OUTPUT_BYTES_MAX: usize = 64 << 20;

/// The transaction id that no transaction has: asks for the whole contents.
const NO_TRANSACTION: &str = "00000000-0000-0000-0000-000000000000";

/// The most bytes of a last transaction id that are kept.
const TRANSACTION_ID_BYTES_MAX: usize = 64;

/// The name of our one monitor on a connection.
const MONITOR: &str = "replica";

/// Why the connection has to be closed.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The stream cannot be cut into messages.
    #[error("the server's stream cannot be read")]
    Framing(#[from] FramingError),
    /// A message cannot be read.
    #[error("a message of the server cannot be read")]
    Message(#[from] MessageError),
    /// The schema cannot be read.
    #[error("the schema of database {database} cannot be read")]
    Schema {
        /// The database.
        database: String,
        /// What is wrong with it.
        #[source]
        source: SchemaError,
    },
    /// The server refused a request without which we cannot go on.
    #[error("the server refused {method} for database {database}: {reply}")]
    Refused {
        /// What was asked.
        method: &'static str,
        /// The database.
        database: String,
        /// The server's words.
        reply: String,
    },
    /// A table cannot be watched, or an update cannot be read.
    #[error("the monitor of database {database} failed")]
    Monitor {
        /// The database.
        database: String,
        /// What is wrong.
        #[source]
        source: MonitorError,
    },
    /// The reply to a monitor request has another form than it should.
    #[error("the reply to {method} has another form than it should")]
    MonitorReply {
        /// What was asked.
        method: &'static str,
    },
    /// An update does not fit what we hold.
    #[error("an update does not fit the replica of database {database}")]
    Replica {
        /// The database.
        database: String,
        /// What does not fit.
        #[source]
        source: ReplicaError,
    },
    /// The server said nothing, not even an answer to an echo request.
    #[error("the server was silent for {0:?}")]
    Silent(Duration),
    /// Too much waits to be written.
    #[error("more than {OUTPUT_BYTES_MAX} bytes wait to be written to the server")]
    Overflow,
}

/// What a session is for.
#[derive(Debug, Clone)]
pub struct Config {
    /// The database, `Open_vSwitch` for a switch.
    pub database: String,
    /// What the replica holds.
    pub watch: Watch,
    /// After how much silence the server is probed, and after how much more the connection is given up.
    pub probe_interval: Duration,
    /// The most bytes that one message of the server may have.
    pub message_bytes_max: usize,
}

impl Config {
    /// The usual limits: a probe after 5 s of silence, messages up to [`MESSAGE_BYTES_MAX`].
    #[must_use]
    pub fn new(database: &str, watch: Watch) -> Self {
        Self {
            database: database.to_owned(),
            watch,
            probe_interval: Duration::from_secs(5),
            message_bytes_max: MESSAGE_BYTES_MAX,
        }
    }
}

/// The name of a transaction under way, unique in its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransactionId(u64);

/// What a session has to tell.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A connection is up and the replica has the server's contents.
    Synchronised {
        /// What is different from before, row by row.
        changes: Vec<RowChange>,
    },
    /// The replica moved to a later state.
    Changed {
        /// What changed, row by row; at least one.
        changes: Vec<RowChange>,
    },
    /// A transaction is over.
    Transacted {
        /// Which.
        id: TransactionId,
        /// What came of it.
        outcome: Result<Outcome, TransactionError>,
    },
    /// A lock came or went.
    Lock {
        /// Which.
        name: Name,
        /// Whether this client holds it.
        held: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    CondSince,
    Cond,
    Plain,
}

impl Method {
    fn word(self) -> &'static str {
        match self {
            Self::CondSince => "monitor_cond_since",
            Self::Cond => "monitor_cond",
            Self::Plain => "monitor",
        }
    }

    fn older(self) -> Option<Self> {
        match self {
            Self::CondSince => Some(Self::Cond),
            Self::Cond => Some(Self::Plain),
            Self::Plain => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Down,
    Schema,
    Monitor(Method),
    Up,
}

/// What a request was, by its id.
#[derive(Debug)]
enum Asked {
    Schema,
    Monitor(Method),
    Transaction { id: TransactionId, operations: usize },
    Lock(Name),
    Ignored,
}

/// The client's side of the protocol.
#[derive(Debug)]
pub struct Session {
    config: Config,
    phase: Phase,
    framer: Framer,
    output: Vec<u8>,
    events: VecDeque<Event>,
    asked: BTreeMap<u64, Asked>,
    transactions: usize,
    next_id: u64,
    /// Locks wanted, with whether they are held.
    locks: BTreeMap<Name, bool>,
    replica: Replica,
    last_transaction: String,
    heard: Option<Instant>,
    probed: bool,
}

impl Session {
    /// A session that is not connected yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let framer = Framer::new(config.message_bytes_max);
        Self {
            config,
            phase: Phase::Down,
            framer,
            output: Vec::new(),
            events: VecDeque::new(),
            asked: BTreeMap::new(),
            transactions: 0,
            next_id: 1,
            locks: BTreeMap::new(),
            replica: Replica::default(),
            last_transaction: NO_TRANSACTION.to_owned(),
            heard: None,
            probed: false,
        }
    }

    /// The watched rows.
    #[must_use]
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// Whether the replica follows the server now.
    #[must_use]
    pub fn is_synchronised(&self) -> bool {
        self.phase == Phase::Up
    }

    /// What is to be written to the server.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// The oldest event not yet taken.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// A fresh connection is up.
    pub fn connected(&mut self, now: Instant) {
        self.disconnected();
        self.heard = Some(now);
        self.phase = Phase::Schema;
        let params = json!([self.config.database]);
        self.request("get_schema", params, Asked::Schema);
        for name in self.locks.keys().cloned().collect::<Vec<_>>() {
            self.request("lock", json!([name.as_str()]), Asked::Lock(name));
        }
    }

    /// The connection is gone, or was closed after an error.
    pub fn disconnected(&mut self) {
        self.phase = Phase::Down;
        self.framer = Framer::new(self.config.message_bytes_max);
        self.output.clear();
        self.heard = None;
        self.probed = false;
        self.transactions = 0;
        for asked in std::mem::take(&mut self.asked).into_values() {
            if let Asked::Transaction { id, .. } = asked {
                self.events.push_back(Event::Transacted { id, outcome: Err(TransactionError::Disconnected) });
            }
        }
        for (name, held) in &mut self.locks {
            if std::mem::take(held) {
                self.events.push_back(Event::Lock { name: name.clone(), held: false });
            }
        }
    }

    /// The server wrote `bytes`.
    ///
    /// # Errors
    /// When the connection has to be closed.
    pub fn received(&mut self, bytes: &[u8], now: Instant) -> Result<(), SessionError> {
        self.heard = Some(now);
        self.probed = false;
        self.framer.push(bytes);
        while let Some(text) = self.framer.pop()? {
            self.handle(Message::decode(&text)?)?;
            self.check_output()?;
        }
        Ok(())
    }

    /// When [`Session::tick`] has something to do, or `None` while there is no connection.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let intervals = if self.probed { 2 } else { 1 };
        self.heard.map(|heard| heard + self.config.probe_interval * intervals)
    }

    /// Time has passed: probes a silent server.
    ///
    /// # Errors
    /// When it has been silent for too long.
    pub fn tick(&mut self, now: Instant) -> Result<(), SessionError> {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return Ok(());
        }
        if self.probed {
            return Err(SessionError::Silent(self.config.probe_interval * 2));
        }
        self.probed = true;
        self.request("echo", json!([]), Asked::Ignored);
        Ok(())
    }

    /// Sends a transaction; its end comes as [`Event::Transacted`].
    ///
    /// # Errors
    /// When there is no connection or too much under way. Nothing is sent then.
    pub fn transact(&mut self, transaction: &Transaction) -> Result<TransactionId, TransactionError> {
        if self.phase != Phase::Up {
            return Err(TransactionError::NotConnected);
        }
        if self.transactions >= TRANSACTIONS_MAX || self.output.len() >= OUTPUT_BYTES_MAX {
            return Err(TransactionError::Busy);
        }
        self.transactions += 1;
        let id = TransactionId(self.next_id);
        let params = transaction.encode(&self.config.database);
        let operations = params.len() - 1;
        self.request("transact", Json::from(params), Asked::Transaction { id, operations });
        Ok(id)
    }

    /// Wants a lock, on this connection and all that follow. [`Event::Lock`] says when it is held.
    pub fn lock(&mut self, name: Name) {
        if self.locks.insert(name.clone(), false).is_none() && self.phase != Phase::Down {
            self.request("lock", json!([name.as_str()]), Asked::Lock(name));
        }
    }

    /// Takes a lock away from whoever holds it.
    pub fn steal(&mut self, name: Name) {
        self.locks.insert(name.clone(), false);
        if self.phase != Phase::Down {
            self.request("steal", json!([name.as_str()]), Asked::Lock(name));
        }
    }

    /// No longer wants a lock.
    pub fn unlock(&mut self, name: &Name) {
        if self.locks.remove(name).is_some() && self.phase != Phase::Down {
            self.request("unlock", json!([name.as_str()]), Asked::Ignored);
        }
    }

    fn request(&mut self, method: &str, params: Json, asked: Asked) {
        let id = self.next_id;
        self.next_id += 1;
        self.asked.insert(id, asked);
        let Json::Array(params) = params else { return };
        self.write(&Message::Request { id: Json::from(id), method: method.to_owned(), params });
    }

    fn write(&mut self, message: &Message) {
        self.output.extend_from_slice(&message.encode());
    }

    fn check_output(&self) -> Result<(), SessionError> {
        if self.output.len() > OUTPUT_BYTES_MAX { Err(SessionError::Overflow) } else { Ok(()) }
    }

    fn handle(&mut self, message: Message) -> Result<(), SessionError> {
        match message {
            Message::Request { id, method, params } => {
                let outcome =
                    if method == "echo" { Ok(Json::from(params)) } else { Err(json!({"error": "unknown method"})) };
                self.write(&Message::Reply { id, outcome });
                Ok(())
            }
            Message::Notification { method, params } => self.notified(&method, &params),
            Message::Reply { id, outcome } => {
                // A reply to what we never asked, or asked on an earlier connection, is nobody's business.
                let Some(asked) = id.as_u64().and_then(|id| self.asked.remove(&id)) else { return Ok(()) };
                self.replied(asked, outcome)
            }
        }
    }

    fn replied(&mut self, asked: Asked, outcome: Result<Json, Json>) -> Result<(), SessionError> {
        match asked {
            Asked::Ignored => Ok(()),
            Asked::Schema => self.schema_came(outcome),
            Asked::Monitor(method) => self.contents_came(method, outcome),
            Asked::Transaction { id, operations } => {
                self.transactions = self.transactions.saturating_sub(1);
                let outcome = decode_reply(&outcome, operations);
                self.events.push_back(Event::Transacted { id, outcome });
                Ok(())
            }
            Asked::Lock(name) => {
                if outcome.ok().and_then(|reply| reply.get("locked")?.as_bool()) == Some(true) {
                    self.set_lock(name.as_str(), true);
                }
                Ok(())
            }
        }
    }

    fn notified(&mut self, method: &str, params: &[Json]) -> Result<(), SessionError> {
        match (method, params) {
            ("update", [_, updates]) => self.updated(updates, Notation::Whole),
            ("update2", [_, updates]) => self.updated(updates, Notation::Difference),
            ("update3", [_, last, updates]) => {
                self.updated(updates, Notation::Difference)?;
                self.note_transaction(last);
                Ok(())
            }
            ("locked", [Json::String(name)]) => {
                self.set_lock(name, true);
                Ok(())
            }
            ("stolen", [Json::String(name)]) => {
                self.set_lock(name, false);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn set_lock(&mut self, name: &str, held: bool) {
        let Some((name, state)) = self.locks.iter_mut().find(|(known, _)| known.as_str() == name) else { return };
        if std::mem::replace(state, held) != held {
            self.events.push_back(Event::Lock { name: name.clone(), held });
        }
    }

    fn schema_came(&mut self, outcome: Result<Json, Json>) -> Result<(), SessionError> {
        let database = || self.config.database.clone();
        let reply = outcome.map_err(|reply| self.refused("get_schema", &reply))?;
        let schema =
            DatabaseSchema::decode(&reply).map_err(|source| SessionError::Schema { database: database(), source })?;
        let watch = self.config.watch.available(&schema);
        let watch = watch.map_err(|source| SessionError::Monitor { database: database(), source })?;
        self.replica.set_schema(schema, watch.clone());
        self.monitor(Method::CondSince, &watch);
        Ok(())
    }

    fn monitor(&mut self, method: Method, watch: &Watch) {
        self.phase = Phase::Monitor(method);
        let mut params = vec![json!(self.config.database), json!(MONITOR), watch.encode()];
        if method == Method::CondSince {
            params.push(json!(self.last_transaction));
        }
        self.request(method.word(), Json::from(params), Asked::Monitor(method));
    }

    fn contents_came(&mut self, method: Method, outcome: Result<Json, Json>) -> Result<(), SessionError> {
        let reply = match (outcome, method.older()) {
            (Ok(reply), _) => reply,
            (Err(_), Some(older)) => {
                let watch = self.replica.watch().clone();
                self.monitor(older, &watch);
                return Ok(());
            }
            (Err(reply), None) => return Err(self.refused(method.word(), &reply)),
        };
        let changes = match method {
            Method::Plain => self.take(&reply, Notation::Whole, true)?,
            Method::Cond => self.take(&reply, Notation::Difference, true)?,
            Method::CondSince => {
                let parts = reply.as_array().map(Vec::as_slice);
                let Some([Json::Bool(found), last, updates]) = parts else {
                    return Err(SessionError::MonitorReply { method: method.word() });
                };
                let changes = self.take(updates, Notation::Difference, !found)?;
                self.note_transaction(last);
                changes
            }
        };
        self.phase = Phase::Up;
        self.events.push_back(Event::Synchronised { changes });
        Ok(())
    }

    fn updated(&mut self, updates: &Json, notation: Notation) -> Result<(), SessionError> {
        let changes = self.take(updates, notation, false)?;
        if !changes.is_empty() {
            self.events.push_back(Event::Changed { changes });
        }
        Ok(())
    }

    fn take(&mut self, updates: &Json, notation: Notation, whole: bool) -> Result<Vec<RowChange>, SessionError> {
        let database = self.config.database.clone();
        let updates = match TableUpdates::decode(updates, notation) {
            Ok(updates) => updates,
            Err(source) => return Err(self.out_of_step(SessionError::Monitor { database, source })),
        };
        let changes = if whole { self.replica.replace(updates) } else { self.replica.apply(updates) };
        changes.map_err(|source| self.out_of_step(SessionError::Replica { database, source }))
    }

    /// After an update that could not be applied only the whole contents help.
    fn out_of_step(&mut self, error: SessionError) -> SessionError {
        NO_TRANSACTION.clone_into(&mut self.last_transaction);
        error
    }

    fn note_transaction(&mut self, last: &Json) {
        let last = last.as_str().filter(|text| text.len() <= TRANSACTION_ID_BYTES_MAX).unwrap_or(NO_TRANSACTION);
        last.clone_into(&mut self.last_transaction);
    }

    fn refused(&self, method: &'static str, reply: &Json) -> SessionError {
        let reply = reply.to_string().chars().take(200).collect();
        SessionError::Refused { method, database: self.config.database.clone(), reply }
    }
}

#[cfg(test)]
mod tests;
