//! The name service, run: takes the messages that ports sent to it, by datagrams or in streams, and hands out what is to be said.
//!
//! Thin: [`crate::dns`] decides, [`super::resolver`] asks others. An answer goes out of the port that the question came in on and no other.

use std::collections::VecDeque;

use openflow::flow::PortNo;
use tracing::debug;

use super::channel::Reply;
use super::host::Shared;
use super::resolver::{Ready, Resolver, Tally, Upstreams};
use crate::dns::envelope::Envelope;
use crate::dns::question::STREAM;
use crate::dns::{Verdict, answer};
use crate::metadata::stack::{Said, Stream};

/// Who asked.
#[derive(Debug)]
enum Caller {
    /// By a datagram: what its frame says, and which port sent it from where.
    Datagram(Envelope, u32, PortNo),
    /// On a connection.
    Stream(Stream),
}

/// An answer on its way.
#[derive(Debug)]
pub(super) enum Outcome {
    /// To be sent; none: there is no frame for it.
    Frame(Option<Reply>),
    /// To be said on a connection.
    Message(Stream, Vec<u8>),
}

/// The name service.
#[derive(Debug)]
pub(super) struct Names {
    host: Shared,
    tally: Tally,
    resolver: Resolver<Caller>,
    /// Answers that came of questions asked meanwhile: one for each that waited at most.
    ready: VecDeque<Ready<Caller>>,
}

impl Names {
    pub(super) fn new(host: Shared, upstreams: Upstreams, tally: Tally) -> Self {
        Self { host, tally: tally.clone(), resolver: Resolver::new(upstreams, tally), ready: VecDeque::new() }
    }

    /// Takes a datagram of the port with this key; gives what is to be sent at once.
    pub(super) fn take(&mut self, key: u32, number: PortNo, envelope: Envelope, message: &[u8]) -> Option<Reply> {
        let verdict = self.judge(key, message, |mtu| envelope.room(mtu))?;
        match verdict {
            Verdict::Answer(octets) => self.datagram(envelope, (key, number), &octets),
            Verdict::Unreadable(octets, _) => self.datagram(envelope, (key, number), &octets?),
            Verdict::Forward(question) => {
                self.ready.extend(self.resolver.ask(key, Caller::Datagram(envelope, key, number), question));
                None
            }
        }
    }

    /// Takes a message of a connection.
    pub(super) fn take_stream(&mut self, stream: Stream, message: &[u8]) -> Said {
        match self.judge(stream.port, message, |_| STREAM) {
            Some(Verdict::Answer(octets) | Verdict::Unreadable(Some(octets), _)) => Said::Answer(octets),
            Some(Verdict::Forward(question)) => {
                self.ready.extend(self.resolver.ask(stream.port, Caller::Stream(stream), question));
                Said::Later
            }
            Some(Verdict::Unreadable(None, _)) | None => Said::Nothing,
        }
    }

    fn judge(&self, key: u32, message: &[u8], room: impl FnOnce(u16) -> usize) -> Option<Verdict> {
        self.tally.add(|counts| &mut counts.questions);
        let verdict = self.host.read(|host| {
            let port = host.ports.values().find(|port| port.key == key)?;
            let mtu = host.networks.get(&port.network)?.mtu;
            Some(answer(host, key, message, room(mtu)))
        })?;
        match &verdict {
            Verdict::Answer(_) => self.tally.add(|counts| &mut counts.answered),
            Verdict::Forward(_) => {}
            Verdict::Unreadable(_, error) => {
                self.tally.add(|counts| &mut counts.malformed);
                debug!(port = key, %error, "not a question");
            }
        }
        Some(verdict)
    }

    /// Waits for the next answer of others. Giving up waiting loses none.
    pub(super) async fn next(&mut self) -> Outcome {
        let Ready { caller, octets } = match self.ready.pop_front() {
            Some(ready) => ready,
            None => self.resolver.next().await,
        };
        match caller {
            Caller::Datagram(envelope, key, number) => Outcome::Frame(self.datagram(envelope, (key, number), &octets)),
            Caller::Stream(stream) => Outcome::Message(stream, octets),
        }
    }

    fn datagram(&self, envelope: Envelope, (key, port): (u32, PortNo), octets: &[u8]) -> Option<Reply> {
        Some(Reply::Out { port, exit: self.host.exit_to(key), frame: envelope.seal(octets)? })
    }
}
