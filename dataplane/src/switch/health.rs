//! Health checks, run: takes the answers that flows hand over, keeps time, hands out what is to be asked, says what was found.
//!
//! Thin: [`crate::health`] knows whom to ask and what answers mean. Nothing is asked before the flows for the answers are installed, and what was asked over
//! a connection to the switch that is lost since has no verdict: a switch that restarts has nobody in error. An answer that comes when there is no room is
//! lost, as on any wire.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use model::balancer::MemberHealth;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::channel::Reply;
use super::driver::DriverStatus;
use super::host::Shared;
use crate::exit::Exit;
use crate::health::{Engine, targets};
use crate::line::Sent;

/// Answers that may wait to be looked at, and questions that may wait to be sent.
const ANSWERS_MAX: usize = 256;
const QUESTIONS_MAX: usize = 1024;
/// The time between two looks at who is to be checked.
const LOOK: Duration = Duration::from_millis(500);
/// The least time between two looks at the clock's account.
const TICK_MIN: Duration = Duration::from_millis(10);

/// The least time between two words on what was found: the agent looks at all of its host for each.
const TELL_GAP: Duration = Duration::from_secs(1);

/// The least time between two warnings that checks are late.
const WARN_GAP: Duration = Duration::from_secs(60);

/// What was found out of the members of this host. It changes for verdicts; the reasons for them are there, and nobody is woken for them.
pub(super) type Verdicts = watch::Receiver<Arc<Vec<MemberHealth>>>;

/// Says how the driver is, once there is one.
pub(super) type Follow = oneshot::Sender<watch::Receiver<DriverStatus>>;

/// The running checks.
#[derive(Debug)]
pub(super) struct Checks {
    answers: mpsc::Sender<(u32, Vec<u8>)>,
    /// Ports that an answer is waited for of.
    asked: watch::Receiver<BTreeSet<u32>>,
    questions: mpsc::Receiver<Reply>,
    task: JoinHandle<()>,
}

struct Checker {
    host: Shared,
    engine: Engine,
    questions: mpsc::Sender<Reply>,
    asked: watch::Sender<BTreeSet<u32>>,
    found: watch::Sender<Arc<Vec<MemberHealth>>>,
    driver: watch::Receiver<DriverStatus>,
    /// Connections to the switch that there had been when it was looked at last; none while there is none.
    connection: Option<u64>,
    start: Instant,
    /// When it may say again what was found.
    tell: Instant,
    /// When it may warn again.
    warn: Instant,
}

impl Checks {
    /// Starts them; must be called inside a tokio runtime.
    pub(super) fn start(host: Shared) -> (Self, Verdicts, Follow) {
        let (answers, frames) = mpsc::channel(ANSWERS_MAX);
        let (sender, questions) = mpsc::channel(QUESTIONS_MAX);
        let (found, known) = watch::channel(Arc::default());
        let (asks, asked) = watch::channel(BTreeSet::new());
        let (follow, followed) = oneshot::channel();
        let task = tokio::spawn(async move {
            // Without a driver there is nobody to send anything.
            let Ok(driver) = followed.await else { return };
            let (engine, start) = (fresh_engine(), Instant::now());
            let checker = Checker {
                host,
                engine,
                questions: sender,
                asked: asks,
                found,
                driver,
                connection: None,
                start,
                tell: start,
                warn: start,
            };
            checker.run(frames).await;
        });
        (Self { answers, asked, questions, task }, known, follow)
    }

    /// Takes a frame that a port answered with, if one is waited for: who talks unasked takes nobody's room.
    pub(super) fn take(&self, port: u32, frame: &[u8]) {
        if self.asked.borrow().contains(&port) {
            let _lost = self.answers.try_send((port, frame.to_vec()));
        }
    }

    /// Waits for the next frame to send. Giving up waiting loses none.
    pub(super) async fn question(&mut self) -> Reply {
        match self.questions.recv().await {
            Some(reply) => reply,
            // The task ends with this value only.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Checks {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The hasher's key is drawn by the operating system.
fn fresh_engine() -> Engine {
    Engine::new(RandomState::new().build_hasher().finish())
}

impl Checker {
    async fn run(mut self, mut frames: mpsc::Receiver<(u32, Vec<u8>)>) {
        let (mut look, mut ticked) = (self.start, self.start);
        loop {
            let now = self.start.elapsed();
            // Never put off by what comes in meanwhile.
            let due = self.engine.next_tick(now).map(|due| (self.start + due).max(ticked + TICK_MIN));
            let tell = self.engine.has_news().then_some(self.tell);
            let due = [due, tell, Some(look)].into_iter().flatten().min();
            tokio::select! {
                frame = frames.recv() => match frame {
                    Some((port, frame)) => self.work(|engine, now| engine.receive(port, &frame, now)),
                    None => return,
                },
                () = sleep_until(due.unwrap_or(look)) => {
                    if Instant::now() >= look {
                        look = Instant::now() + LOOK;
                        let targets = self.host.read_numbers(targets);
                        self.engine.update(targets, self.start.elapsed());
                    }
                    ticked = Instant::now();
                    let may_begin = self.is_ready();
                    self.work(|engine, now| engine.tick(now, may_begin));
                    if may_begin {
                        self.warn();
                    }
                }
            }
        }
    }

    /// Whether answers would come: the flows that are wanted are installed, as far as is known.
    fn is_ready(&mut self) -> bool {
        let status = self.driver.borrow().clone();
        let connection = status.connected.then_some(status.connections);
        if connection != self.connection {
            self.engine.forget();
            self.connection = connection;
        }
        status.is_in_place()
    }

    /// Does something with the checks. They are read from what guests send: should that ever make them stumble, checks begin anew.
    fn work(&mut self, work: impl FnOnce(&mut Engine, Duration) -> Vec<Sent>) {
        let now = self.start.elapsed();
        let engine = &mut self.engine;
        match catch_unwind(AssertUnwindSafe(|| work(engine, now))) {
            Ok(sent) => {
                self.note_asked();
                self.send(sent);
            }
            Err(_) => {
                tracing::error!("health checks begin anew: a fault in the reading of an answer, told above");
                self.engine = fresh_engine();
            }
        }
        self.tell();
    }

    fn send(&mut self, frames: Vec<Sent>) {
        for Sent { port, frame } in frames {
            let place = self.host.read_numbers(|host, numbers| {
                let port = host.ports.values().find(|it| it.key == port)?;
                Some((numbers.of(port)?, Exit::to(host, numbers, port)))
            });
            let reply = place.map(|(port, exit)| Reply::Out { port, exit, frame });
            if reply.is_none_or(|reply| self.questions.try_send(reply).is_err()) {
                self.engine.unsent(port);
            }
        }
    }

    fn warn(&mut self) {
        let (now, late) = (Instant::now(), self.engine.late(self.start.elapsed()));
        if let Some((members, longest)) = late.filter(|_| now >= self.warn) {
            self.warn = now + WARN_GAP;
            let seconds = longest.as_secs();
            tracing::warn!(members, seconds, "health checks run late: too many members answer late, or not at all");
        }
    }

    fn note_asked(&self) {
        let asked = self.engine.asked();
        self.asked.send_if_modified(|before| {
            let is_other = *before != asked;
            *before = asked;
            is_other
        });
    }

    fn tell(&mut self) {
        let now = Instant::now();
        if now < self.tell || !self.engine.take_news() {
            return;
        }
        self.tell = now + TELL_GAP;
        let known = self.engine.verdicts();
        self.found.send_if_modified(|before| {
            let verdicts = |of: &[MemberHealth]| of.iter().map(|it| (it.member, it.online)).collect::<Vec<_>>();
            let is_other = verdicts(before) != verdicts(&known);
            *before = Arc::new(known);
            is_other
        });
    }
}
