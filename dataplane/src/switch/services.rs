//! The services of the host to its machines, run: takes the frames that ports sent to them, keeps time, and hands out what is to be sent.
//!
//! Thin: [`crate::metadata`] knows what to say and how, and `names` has what belongs to DNS. One task owns all connections. A frame that comes when there is
//! no room is lost, as on any wire; its sender repeats it.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model::MachineId;
use model::machine::Machine;
use openflow::flow::PortNo;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::channel::Reply;
use super::host::Shared;
use super::names::{Names, Outcome};
use crate::dns::envelope::Envelope;
use crate::metadata::stack::{Desk, Said, Sent, Stack, Stream};
use crate::metadata::{Asker, Found, page};

/// Frames that may wait to be looked at, and to be sent.
const ASKED_MAX: usize = 256;
const REPLIES_MAX: usize = 256;
/// The least time between two looks at the clock's account.
const TICK_MIN: Duration = Duration::from_millis(5);
/// The time between two when nothing is due.
const TICK_MAX: Duration = Duration::from_secs(3600);

/// A frame that a port sent to a service.
#[derive(Debug)]
struct Asked {
    key: u32,
    number: PortNo,
    frame: Vec<u8>,
}

/// What is known of the machines of this host; nothing before it was told.
#[derive(Debug, Clone, Default)]
pub(super) struct Machines(Arc<Mutex<Arc<BTreeMap<MachineId, Machine>>>>);

impl Machines {
    pub(super) fn set(&self, machines: BTreeMap<MachineId, Machine>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(machines);
    }

    fn get(&self) -> Arc<BTreeMap<MachineId, Machine>> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The running services.
#[derive(Debug)]
pub(super) struct Services {
    asked: mpsc::Sender<Asked>,
    replies: mpsc::Receiver<Reply>,
    task: JoinHandle<()>,
}

impl Services {
    /// Starts them; must be called inside a tokio runtime.
    pub(super) fn start(host: Shared, machines: Machines, names: Names) -> Self {
        let (asked, questions) = mpsc::channel(ASKED_MAX);
        let (answers, replies) = mpsc::channel(REPLIES_MAX);
        let server = Server {
            host,
            machines,
            names,
            stack: fresh_stack(),
            numbers: HashMap::new(),
            answers,
            start: Instant::now(),
        };
        Self { asked, replies, task: tokio::spawn(server.run(questions)) }
    }

    /// Takes a frame.
    pub(super) fn take(&self, key: u32, number: PortNo, frame: Vec<u8>) {
        let _lost = self.asked.try_send(Asked { key, number, frame });
    }

    /// Waits for the next frame to send. Giving up waiting loses none.
    pub(super) async fn reply(&mut self) -> Reply {
        match self.replies.recv().await {
            Some(reply) => reply,
            // The task ends with this value only: a guest that makes it stumble is caught where its frames are read.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The hasher's key is drawn by the operating system.
fn fresh_stack() -> Stack {
    Stack::new(RandomState::new().build_hasher().finish())
}

struct Server {
    host: Shared,
    machines: Machines,
    names: Names,
    stack: Stack,
    /// Where ports with connections were when they sent something last.
    numbers: HashMap<u32, PortNo>,
    answers: mpsc::Sender<Reply>,
    start: Instant,
}

impl Server {
    async fn run(mut self, mut questions: mpsc::Receiver<Asked>) {
        loop {
            let now = self.start.elapsed();
            let due = self.stack.next_tick(now).map_or(now + TICK_MAX, |due| due.max(now + TICK_MIN));
            tokio::select! {
                asked = questions.recv() => match asked {
                    Some(asked) => self.receive(&asked),
                    None => return,
                },
                outcome = self.names.next() => self.tell(outcome),
                () = sleep_until(self.start + due) => self.tick(),
            }
        }
    }

    fn receive(&mut self, asked: &Asked) {
        if let Some((envelope, message)) = Envelope::open(&asked.frame) {
            let reply = self.names.take(asked.key, asked.number, envelope, message);
            return self.reply(reply);
        }
        let mtu = self.host.read(|host| {
            let port = host.ports.values().find(|port| port.key == asked.key)?;
            host.networks.get(&port.network).map(|network| network.mtu)
        });
        let Some(mtu) = mtu else { return };
        self.numbers.insert(asked.key, asked.number);
        self.with_stack(|stack, now, desk| stack.receive(asked.key, &asked.frame, mtu, now, desk));
    }

    /// Does something with the connections. They are read from what guests send: should that ever make the stack stumble, all connections of this host
    /// are lost, and no service.
    fn with_stack(&mut self, work: impl FnOnce(&mut Stack, Duration, &mut Counter<'_>) -> Vec<Sent>) {
        let now = self.start.elapsed();
        let machines = self.machines.get();
        let mut desk = Counter { host: &self.host, machines: &machines, names: &mut self.names };
        let stack = &mut self.stack;
        match catch_unwind(AssertUnwindSafe(|| work(stack, now, &mut desk))) {
            Ok(sent) => self.send(sent),
            Err(_) => {
                tracing::error!(
                    "the services to machines lost their connections: a fault in the TCP stack, told above; they go on"
                );
                self.stack = fresh_stack();
            }
        }
    }

    fn tick(&mut self) {
        self.with_stack(|stack, now, desk| stack.tick(now, desk));
        if self.stack.stations() == 0 {
            self.numbers.clear();
        }
    }

    fn tell(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Frame(reply) => self.reply(reply),
            Outcome::Message(stream, message) => {
                self.with_stack(|stack, now, desk| stack.answer(stream, &message, now, desk));
            }
        }
    }

    fn send(&self, frames: Vec<Sent>) {
        for Sent { port, frame } in frames {
            if let Some(number) = self.numbers.get(&port) {
                self.reply(Some(Reply::Out { port: *number, exit: self.host.exit_to(port), frame }));
            }
        }
    }

    fn reply(&self, reply: Option<Reply>) {
        if let Some(reply) = reply {
            let _lost = self.answers.try_send(reply);
        }
    }
}

/// What connections are answered from.
struct Counter<'a> {
    host: &'a Shared,
    machines: &'a BTreeMap<MachineId, Machine>,
    names: &'a mut Names,
}

impl Desk for Counter<'_> {
    fn page(&self, key: u32, path: &str) -> Found {
        self.host.read(|network| {
            let Some(port) = network.ports.values().find(|port| port.key == key) else { return Found::NotYet };
            let machine = port.binding.as_ref().and_then(|binding| self.machines.get(&binding.machine));
            let Some(machine) = machine else { return Found::NotYet };
            page(Asker { network, port, machine }, path).map_or(Found::Nothing, Found::Page)
        })
    }

    fn name(&mut self, stream: Stream, message: &[u8]) -> Said {
        self.names.take_stream(stream, message)
    }
}
