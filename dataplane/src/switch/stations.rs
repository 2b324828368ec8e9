//! Looks for stations outside, run: takes the frames that flows hand over, keeps time, says what was found and what is to be sent.
//!
//! Thin: [`crate::station`] knows whom to ask and whom to believe. A frame that comes when there is no room is lost, as on any wire; what is wanted is
//! wanted again.

use std::sync::Arc;
use std::time::Duration;

use model::NetworkId;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::channel::Reply;
use super::host::Shared;
use crate::compile::Stations;
use crate::exit::Exit;
use crate::station::{Finder, Outlets, Probe, outlets, read};

/// Frames that may wait to be looked at, and to be sent.
const HEARD_MAX: usize = 256;
const PROBES_MAX: usize = 1024;
/// The time between two looks at who is to be asked.
const TICK: Duration = Duration::from_millis(250);

/// What is found, for those who compile.
pub(super) type Found = watch::Receiver<Arc<Stations>>;

/// The running search.
#[derive(Debug)]
pub(super) struct Search {
    heard: mpsc::Sender<(u32, Vec<u8>)>,
    probes: mpsc::Receiver<Reply>,
    task: JoinHandle<()>,
}

struct Searcher {
    host: Shared,
    finder: Finder,
    /// As they were at the last look: stations ask and tell much more often than addresses come and go.
    outlets: Outlets,
    probes: mpsc::Sender<Reply>,
    found: watch::Sender<Arc<Stations>>,
    start: Instant,
}

impl Search {
    /// Starts it; must be called inside a tokio runtime.
    pub(super) fn start(host: Shared) -> (Self, Found) {
        let (heard, frames) = mpsc::channel(HEARD_MAX);
        let (sender, probes) = mpsc::channel(PROBES_MAX);
        let (found, known) = watch::channel(Arc::default());
        let searcher = Searcher {
            host,
            finder: Finder::default(),
            outlets: Outlets::new(),
            probes: sender,
            found,
            start: Instant::now(),
        };
        (Self { heard, probes, task: tokio::spawn(searcher.run(frames)) }, known)
    }

    /// Takes a frame of a network, by its VNI.
    pub(super) fn take(&self, vni: u32, frame: Vec<u8>) {
        let _lost = self.heard.try_send((vni, frame));
    }

    /// Waits for the next frame to send. Giving up waiting loses none.
    pub(super) async fn probe(&mut self) -> Reply {
        match self.probes.recv().await {
            Some(reply) => reply,
            // The task ends with this value only.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Search {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Searcher {
    async fn run(mut self, mut frames: mpsc::Receiver<(u32, Vec<u8>)>) {
        let mut due = self.start;
        loop {
            tokio::select! {
                frame = frames.recv() => match frame {
                    Some((vni, frame)) => self.hear(vni, &frame),
                    None => return,
                },
                () = sleep_until(due) => {
                    due = Instant::now() + TICK;
                    self.tick();
                }
            }
        }
    }

    fn hear(&mut self, vni: u32, frame: &[u8]) {
        let network = |host: &model::spec::HostNetwork| -> Option<NetworkId> {
            host.networks.values().find(|network| network.vni.get() == vni).map(|network| network.id)
        };
        let (Some(heard), Some(network)) = (read(frame), self.host.read(network)) else { return };
        let answer = self.finder.hear(network, heard, &self.outlets, self.start.elapsed());
        self.send(answer);
        self.tell();
    }

    fn tick(&mut self) {
        self.outlets = self.host.read_numbers(outlets);
        let probes = self.finder.tick(&self.outlets, self.start.elapsed());
        self.send(probes);
        self.tell();
    }

    fn send(&self, probes: impl IntoIterator<Item = Probe>) {
        for Probe { port, frame } in probes {
            let _lost = self.probes.try_send(Reply::Out { port, exit: Exit::default(), frame });
        }
    }

    fn tell(&self) {
        let known = self.finder.known();
        self.found.send_if_modified(|before| {
            let is_other = **before != known;
            if is_other {
                *before = Arc::new(known);
            }
            is_other
        });
    }
}
