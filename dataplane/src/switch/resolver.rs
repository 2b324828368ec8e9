//! Asks the host's own resolvers what machines want to know and nobody here does.
//!
//! Owns the sockets and the time: [`crate::dns`] says what to send, what an answer must have, and who may wait. Who asks by a stream is answered by one,
//! for it most often asks again for what did not fit a datagram. Each attempt has a socket of its own,
//! whose port the kernel draws, and an id that nobody guesses, and hears nobody but whom it asked (RFC 5452 §9.2). Resolvers are asked one after the
//! other until one answers; what does not answer the question is counted and not believed. Nothing is kept of an answer: the host's resolvers do that.
//! Invariant: all is bounded: questions that wait, attempts, the time of each, and what is read in it.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tracing::debug;

use crate::dns::question::{Question, Relayed};
use crate::dns::share::{Admission, Share, Ticket};
use crate::dns::stream::framed;

/// Attempts at one question. With their time they end before the 5 s that resolvers of guests wait (resolv.conf(5)).
const ATTEMPTS_MAX: usize = 3;
const ATTEMPT_TIME: Duration = Duration::from_millis(1500);
/// Messages that do not answer the question, until the attempt is given up: whoever sends them guesses.
const WRONG_MAX: usize = 16;
/// Octets of an answer that is read; what we say that we take is less.
const ANSWER_OCTETS_MAX: usize = 4096;

/// Whom to ask; nobody before it was told.
#[derive(Debug, Clone, Default)]
pub(super) struct Upstreams(Arc<Mutex<Arc<[SocketAddr]>>>);

impl Upstreams {
    pub(super) fn set(&self, servers: Vec<SocketAddr>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = servers.into();
    }

    fn get(&self) -> Arc<[SocketAddr]> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What became of questions since the host's switch was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NameCounts {
    /// Messages that ports sent.
    pub questions: u64,
    /// Answered from what is known here.
    pub answered: u64,
    /// Given to other resolvers.
    pub forwarded: u64,
    /// Answered with what other resolvers said.
    pub relayed: u64,
    /// Given to other resolvers, none of which answered in time.
    pub unanswered: u64,
    /// Not given to other resolvers: there are none, or too many questions wait.
    pub refused: u64,
    /// What ports sent that is no question.
    pub malformed: u64,
    /// What came back that is no answer.
    pub disbelieved: u64,
}

/// The counts, in the hands of those who count and of those who read.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally(Arc<Mutex<NameCounts>>);

impl Tally {
    pub(super) fn add(&self, count: impl FnOnce(&mut NameCounts) -> &mut u64) {
        *count(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner)) += 1;
    }

    pub(super) fn get(&self) -> NameCounts {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An answer for whoever asked.
#[derive(Debug)]
pub(super) struct Ready<C> {
    pub(super) caller: C,
    pub(super) octets: Vec<u8>,
}

#[derive(Debug)]
struct Waiting<C> {
    key: u32,
    caller: C,
    question: Question,
    task: AbortHandle,
}

/// The questions that wait for other resolvers, each with whoever asked it.
#[derive(Debug)]
pub(super) struct Resolver<C> {
    upstreams: Upstreams,
    tally: Tally,
    share: Share,
    waiting: BTreeMap<Ticket, Waiting<C>>,
    tasks: JoinSet<(Ticket, Option<Relayed>)>,
    /// Makes ids: its key is drawn by the operating system, and a keyed hash of a count is as good as drawn.
    ids: RandomState,
    asked: u64,
}

impl<C> Resolver<C> {
    pub(super) fn new(upstreams: Upstreams, tally: Tally) -> Self {
        Self {
            upstreams,
            tally,
            share: Share::default(),
            waiting: BTreeMap::new(),
            tasks: JoinSet::new(),
            ids: RandomState::new(),
            asked: 0,
        }
    }

    /// Takes a question of the port with this key. What it gives is answered at once: the question itself, or another that has to give way to it.
    pub(super) fn ask(&mut self, key: u32, caller: C, question: Question) -> Option<Ready<C>> {
        let upstreams = self.upstreams.get();
        if upstreams.is_empty() {
            self.tally.add(|counts| &mut counts.refused);
            return Some(Ready { caller, octets: question.refuse(ResponseCode::Refused) });
        }
        let (ticket, displaced) = match self.share.admit(key) {
            Admission::Yes(ticket) => (ticket, None),
            Admission::InsteadOf(ticket, displaced) => (ticket, self.waiting.remove(&displaced)),
            Admission::No => {
                self.tally.add(|counts| &mut counts.refused);
                return Some(Ready { caller, octets: question.refuse(ResponseCode::ServFail) });
            }
        };
        self.tally.add(|counts| &mut counts.forwarded);
        let ids = std::array::from_fn(|_| self.draw());
        let inquiry = Inquiry { question: question.clone(), upstreams, ids, tally: self.tally.clone() };
        let task = self.tasks.spawn(async move { (ticket, inquiry.run().await) });
        self.waiting.insert(ticket, Waiting { key, caller, question, task });
        displaced.map(|displaced| {
            displaced.task.abort();
            self.tally.add(|counts| &mut counts.unanswered);
            Ready { caller: displaced.caller, octets: displaced.question.refuse(ResponseCode::ServFail) }
        })
    }

    fn draw(&mut self) -> u16 {
        self.asked += 1;
        let [high, low, ..] = self.ids.hash_one(self.asked).to_be_bytes();
        u16::from_be_bytes([high, low])
    }

    /// Waits for the next answer. Giving up waiting loses none.
    pub(super) async fn next(&mut self) -> Ready<C> {
        loop {
            let done = match self.tasks.join_next().await {
                Some(Ok(done)) => done,
                // It gave way to another.
                Some(Err(_)) => continue,
                None => std::future::pending().await,
            };
            let (ticket, relayed) = done;
            // One that gave way when it was done already was answered then.
            let Some(Waiting { key, caller, question, .. }) = self.waiting.remove(&ticket) else { continue };
            self.share.release(key, ticket);
            let octets = match relayed {
                Some(relayed) => {
                    self.tally.add(|counts| &mut counts.relayed);
                    relayed.octets
                }
                None => {
                    self.tally.add(|counts| &mut counts.unanswered);
                    question.refuse(ResponseCode::ServFail)
                }
            };
            return Ready { caller, octets };
        }
    }
}

/// One question on its way through the resolvers.
struct Inquiry {
    question: Question,
    upstreams: Arc<[SocketAddr]>,
    ids: [u16; ATTEMPTS_MAX],
    tally: Tally,
}

impl Inquiry {
    /// The first answer that says something; the last that does not, where none does.
    async fn run(self) -> Option<Relayed> {
        let mut failure = None;
        for (attempt, (id, upstream)) in self.ids.into_iter().zip(self.upstreams.iter().cycle()).enumerate() {
            let exchange = async {
                if self.question.is_for_stream() {
                    self.exchange_by_stream(id, *upstream).await
                } else {
                    self.exchange(id, *upstream).await
                }
            };
            match timeout(ATTEMPT_TIME, exchange).await {
                Ok(Ok(relayed)) if !relayed.is_failure => return Some(relayed),
                Ok(Ok(relayed)) => {
                    failure = Some(relayed);
                    // It has said so; only others may say something else.
                    if attempt + 1 >= self.upstreams.len() {
                        return failure;
                    }
                }
                Ok(Err(error)) => debug!(%upstream, %error, "resolver not asked"),
                Err(_) => debug!(%upstream, "resolver does not answer"),
            }
        }
        failure
    }

    async fn exchange(&self, id: u16, upstream: SocketAddr) -> io::Result<Relayed> {
        let any: SocketAddr = match upstream {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(upstream).await?;
        socket.send(&self.question.asked_as(id)).await?;
        let mut octets = vec![0; ANSWER_OCTETS_MAX];
        for _ in 0..WRONG_MAX {
            let length = socket.recv(&mut octets).await?;
            match self.question.relay(id, &octets[..length]) {
                Ok(relayed) => return Ok(relayed),
                Err(error) => {
                    self.tally.add(|counts| &mut counts.disbelieved);
                    debug!(%upstream, %error, "answer not believed");
                }
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, format!("{WRONG_MAX} messages that are no answer")))
    }

    /// The same over TCP; on a connection of its own there is one answer.
    async fn exchange_by_stream(&self, id: u16, upstream: SocketAddr) -> io::Result<Relayed> {
        let mut stream = TcpStream::connect(upstream).await?;
        stream.write_all(&framed(&self.question.asked_as(id))).await?;
        let mut octets = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut octets).await?;
        self.question.relay(id, &octets).map_err(|error| {
            self.tally.add(|counts| &mut counts.disbelieved);
            io::Error::new(io::ErrorKind::InvalidData, error)
        })
    }
}

#[cfg(test)]
mod tests;
