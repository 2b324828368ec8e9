//! The task behind a connection: it waits, reads, writes, and lets the session decide.
//!
//! Owns the socket, the session and the open questions. Never branches on meaning.
//! Invariant: at most [`OUTPUT_MAX`] octets wait to be written, plus one message; further commands wait in their bounded queue.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    net::{TcpStream, UnixStream},
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot, watch,
    },
    time::Instant,
};

use super::{ConnectionError, Options, RequestError, Target, Unasked};
use crate::{
    session::{Bundle, BundleError, Change, Event, Session},
    wire::{EncodeError, Message, MultipartReply, SwitchError, Xid},
};

/// Octets that may wait to be written before commands have to wait.
const OUTPUT_MAX: usize = 256 << 10;
/// Octets read at once.
const READ_OCTETS: usize = 64 << 10;

/// What the owner wants.
#[derive(Debug)]
pub(super) enum Command {
    /// A question.
    Ask { message: Box<Message>, reply: oneshot::Sender<Result<Message, RequestError>> },
    /// A message without answer.
    Send { message: Box<Message>, reply: oneshot::Sender<Result<Xid, EncodeError>> },
    /// Messages without answer, followed by a barrier that tells whether one was refused.
    Checked { messages: Vec<Message>, reply: oneshot::Sender<Result<(), CheckedError>> },
    /// Changes, all or none.
    Bundle { changes: Vec<Change>, reply: oneshot::Sender<Result<(), BundleError>> },
}

/// Why messages were not all taken: the place of the first of them that was not, if that is known.
#[derive(Debug)]
pub(super) struct CheckedError {
    pub(super) index: Option<usize>,
    pub(super) source: RequestError,
}

/// Who waits for the end of a question.
#[derive(Debug)]
enum Waiting {
    Answer(oneshot::Sender<Result<Message, RequestError>>),
    /// The barrier behind messages.
    Done(Checked),
}

/// Messages that a barrier follows.
#[derive(Debug)]
struct Checked {
    /// Their ids, in the order in which they were sent.
    xids: Vec<Xid>,
    /// The first that was refused.
    refused: Option<(usize, SwitchError)>,
    reply: oneshot::Sender<Result<(), CheckedError>>,
}

impl Checked {
    /// The barrier was answered.
    fn done(self) {
        let outcome = match self.refused {
            Some((index, error)) => Err(CheckedError { index: Some(index), source: RequestError::Refused(error) }),
            None => Ok(()),
        };
        // Whoever asked may have gone away: then nobody wants to know.
        let _ = self.reply.send(outcome);
    }

    /// Notes a refusal; false when it is of another message.
    fn refuse(&mut self, xid: Xid, error: &SwitchError) -> bool {
        let Some(index) = self.xids.iter().position(|of| *of == xid) else { return false };
        self.refused.get_or_insert_with(|| (index, error.clone()));
        true
    }
}

trait Stream: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Stream for T {}
type Socket = Box<dyn Stream + Unpin>;

async fn open(target: &Target) -> io::Result<Socket> {
    Ok(match target {
        Target::Unix(path) => Box::new(UnixStream::connect(path).await?),
        Target::Tcp(address) => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Box::new(stream)
        }
    })
}

/// Connects and starts the task; gives where it will say why it ended.
pub(super) async fn spawn(
    target: Target,
    options: Options,
    commands: mpsc::Receiver<Command>,
    unasked: mpsc::Sender<Unasked>,
    moved: Arc<AtomicU64>,
) -> Result<watch::Receiver<Option<Arc<ConnectionError>>>, ConnectionError> {
    let socket = match open(&target).await {
        Ok(socket) => socket,
        Err(source) => return Err(ConnectionError::Connect { target, source }),
    };
    let (over, is_over) = watch::channel(None);
    let (read, write) = tokio::io::split(socket);
    let driver = Driver {
        target,
        started: Instant::now(),
        session: Session::new(options.limits, Duration::ZERO),
        read,
        write,
        input: Vec::with_capacity(READ_OCTETS),
        output: Vec::new(),
        written: 0,
        waiting: BTreeMap::new(),
        bundles: Vec::new(),
        next_bundle: 1,
        unasked,
        lost: 0,
        moved,
    };
    tokio::spawn(async move {
        let error = driver.run(commands).await;
        over.send_replace(error.map(Arc::new));
    });
    Ok(is_over)
}

struct Driver {
    target: Target,
    started: Instant,
    session: Session,
    read: ReadHalf<Socket>,
    write: WriteHalf<Socket>,
    input: Vec<u8>,
    output: Vec<u8>,
    written: usize,
    waiting: BTreeMap<Xid, Waiting>,
    bundles: Vec<(Bundle, oneshot::Sender<Result<(), BundleError>>)>,
    next_bundle: u32,
    unasked: mpsc::Sender<Unasked>,
    lost: u64,
    /// Octets read and written, for those who wait to see that something goes on.
    moved: Arc<AtomicU64>,
}

/// What the task woke up for.
enum Wake {
    Read(io::Result<usize>),
    Written(io::Result<usize>),
    Command(Option<Command>),
    Time,
}

impl Driver {
    /// Runs until the connection is over; `None` when its owner dropped it.
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) -> Option<ConnectionError> {
        let mut is_dropped = false;
        loop {
            self.fill();
            if is_dropped && self.output.is_empty() {
                return None;
            }
            match self.wake(&mut commands, !is_dropped).await {
                Wake::Read(Ok(0)) => return Some(ConnectionError::Closed { target: self.target }),
                Wake::Read(Ok(count)) => {
                    self.note_moved(count);
                    let now = self.started.elapsed();
                    match self.session.receive(&self.input, now) {
                        Ok(events) => events.into_iter().for_each(|event| self.take_event(event)),
                        Err(source) => return Some(ConnectionError::Session { target: self.target, source }),
                    }
                }
                Wake::Written(Ok(count)) => {
                    self.note_moved(count);
                    self.written += count;
                }
                Wake::Read(Err(source)) | Wake::Written(Err(source)) => {
                    return Some(ConnectionError::Io { target: self.target, source });
                }
                Wake::Command(Some(command)) => self.take_command(command),
                // What was sent before still goes out.
                Wake::Command(None) => is_dropped = true,
                Wake::Time => {
                    if let Err(source) = self.session.tick(self.started.elapsed()) {
                        return Some(ConnectionError::Session { target: self.target, source });
                    }
                }
            }
        }
    }

    fn note_moved(&self, octets: usize) {
        self.moved.fetch_add(u64::try_from(octets).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    async fn wake(&mut self, commands: &mut mpsc::Receiver<Command>, has_owner: bool) -> Wake {
        self.input.clear();
        let unwritten = &self.output[self.written..];
        // Questions before hello is done wait in their queue.
        let takes_commands =
            has_owner && self.session.is_ready() && unwritten.len() + self.session.output_len() < OUTPUT_MAX;
        tokio::select! {
            read = self.read.read_buf(&mut self.input) => Wake::Read(read),
            written = self.write.write(unwritten), if !unwritten.is_empty() => Wake::Written(written),
            command = commands.recv(), if takes_commands => Wake::Command(command),
            () = tokio::time::sleep_until(self.started + self.session.deadline()) => Wake::Time,
        }
    }

    /// Moves what the session wrote to where it is sent from, and lets bundles write more.
    fn fill(&mut self) {
        if self.written < self.output.len() {
            return;
        }
        let (mut index, session) = (0, &mut self.session);
        while let Some((bundle, _)) = self.bundles.get_mut(index) {
            match bundle.feed(session, OUTPUT_MAX) {
                Ok(()) => index += 1,
                Err(error) => {
                    let (_, reply) = self.bundles.remove(index);
                    // Whoever asked may have gone away: then nobody wants to know.
                    let _ = reply.send(Err(error));
                }
            }
        }
        self.output = session.take_output();
        self.written = 0;
    }

    fn take_command(&mut self, command: Command) {
        match command {
            Command::Ask { message, reply } => match self.session.ask(&message) {
                Ok(xid) => {
                    self.waiting.insert(xid, Waiting::Answer(reply));
                }
                Err(error) => {
                    let _ = reply.send(Err(error.into()));
                }
            },
            Command::Send { message, reply } => {
                let _ = reply.send(self.session.send(&message));
            }
            Command::Checked { messages, reply } => match self.send_checked(&messages) {
                Ok((xids, barrier)) => {
                    self.waiting.insert(barrier, Waiting::Done(Checked { xids, refused: None, reply }));
                }
                Err(error) => {
                    let _ = reply.send(Err(error));
                }
            },
            Command::Bundle { changes, reply } => {
                let bundle = Bundle::new(self.next_bundle, changes);
                self.next_bundle = self.next_bundle.wrapping_add(1);
                self.bundles.push((bundle, reply));
            }
        }
    }

    fn send_checked(&mut self, messages: &[Message]) -> Result<(Vec<Xid>, Xid), CheckedError> {
        let mut xids = Vec::with_capacity(messages.len());
        for (index, message) in messages.iter().enumerate() {
            let failed = |error| CheckedError { index: Some(index), source: RequestError::from(error) };
            xids.push(self.session.send(message).map_err(failed)?);
        }
        let barrier = self.session.ask(&Message::BarrierRequest);
        Ok((xids, barrier.map_err(|error| CheckedError { index: None, source: error.into() })?))
    }

    fn take_event(&mut self, event: Event) {
        for index in 0..self.bundles.len() {
            let (bundle, _) = &mut self.bundles[index];
            if let Some(outcome) = bundle.take(&event, &mut self.session) {
                let (_, reply) = self.bundles.remove(index);
                let _ = reply.send(outcome);
                return;
            }
        }
        match event {
            Event::Ready => {}
            Event::Answer { xid, message } => match self.waiting.remove(&xid) {
                Some(Waiting::Answer(reply)) => {
                    let _ = reply.send(Ok(message));
                }
                Some(Waiting::Done(checked)) => checked.done(),
                None => {}
            },
            Event::Refused { xid, error } => match self.waiting.remove(&xid) {
                Some(Waiting::Answer(reply)) => {
                    let _ = reply.send(Err(RequestError::Refused(error)));
                }
                Some(Waiting::Done(checked)) => {
                    let _ = checked.reply.send(Err(CheckedError { index: None, source: RequestError::Refused(error) }));
                }
                None if self.note_refusal(xid, &error) => {}
                None if self.bundles.iter().any(|(bundle, _)| bundle.has_sent(xid)) => {}
                None => self.hand_on(Unasked::Refused { xid, error }),
            },
            Event::Unreadable { xid, error } => {
                if let Some(Waiting::Answer(reply)) = self.waiting.remove(&xid) {
                    let _ = reply.send(Err(RequestError::Unreadable(error)));
                }
            }
            Event::Unasked(Message::PacketIn(packet)) => self.hand_on(Unasked::PacketIn(packet)),
            Event::Unasked(Message::PortStatus(status)) => self.hand_on(Unasked::PortStatus(status)),
            Event::Unasked(Message::FlowRemoved(removed)) => self.hand_on(Unasked::FlowRemoved(removed)),
            Event::Unasked(Message::RoleStatus(status)) => self.hand_on(Unasked::RoleStatus(status)),
            Event::Unasked(Message::MultipartReply { reply: MultipartReply::FlowUpdates(updates), .. }) => {
                self.hand_on(Unasked::FlowUpdates(updates));
            }
            Event::Unasked(_) => {}
        }
    }

    /// Tells who waits for the barrier behind the message of this id that it was refused; false when nobody does.
    fn note_refusal(&mut self, xid: Xid, error: &SwitchError) -> bool {
        self.waiting.values_mut().any(|waiting| match waiting {
            Waiting::Done(checked) => checked.refuse(xid, error),
            Waiting::Answer(_) => false,
        })
    }

    /// Gives a message to the owner, or counts it as lost when the owner is slow.
    fn hand_on(&mut self, message: Unasked) {
        if self.lost > 0 {
            match self.unasked.try_send(Unasked::Lost { count: self.lost }) {
                Ok(()) => self.lost = 0,
                Err(_) => {
                    self.lost += 1;
                    return;
                }
            }
        }
        if let Err(TrySendError::Full(_)) = self.unasked.try_send(message) {
            self.lost += 1;
        }
    }
}
