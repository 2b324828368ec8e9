//! The name service, run: takes the datagrams that ports sent to it, and hands out what is to be sent.
//!
//! Thin: [`crate::dns`] decides, [`super::resolver`] asks others. An answer goes out of the port that the question came in on and no other.

use openflow::flow::PortNo;
use tracing::debug;

use super::channel::Reply;
use super::host::Shared;
use super::resolver::{Ready, Resolver, Tally, Upstreams};
use crate::dns::envelope::Envelope;
use crate::dns::{Verdict, answer};

/// Who asked: what its frame says, and where it came in.
#[derive(Debug)]
struct Caller {
    envelope: Envelope,
    number: PortNo,
}

/// The name service.
#[derive(Debug)]
pub(super) struct Names {
    host: Shared,
    tally: Tally,
    resolver: Resolver<Caller>,
}

impl Names {
    pub(super) fn new(host: Shared, upstreams: Upstreams, tally: Tally) -> Self {
        Self { host, tally: tally.clone(), resolver: Resolver::new(upstreams, tally) }
    }

    /// Takes a datagram of the port with this key; gives what is to be sent at once.
    pub(super) fn take(&mut self, key: u32, number: PortNo, envelope: Envelope, message: &[u8]) -> Option<Reply> {
        self.tally.add(|counts| &mut counts.questions);
        let verdict = self.host.read(|host| {
            let port = host.ports.values().find(|port| port.key == key)?;
            let mtu = host.networks.get(&port.network)?.mtu;
            Some(answer(host, key, message, envelope.room(mtu)))
        })?;
        let caller = Caller { envelope, number };
        let ready = match verdict {
            Verdict::Answer(octets) => {
                self.tally.add(|counts| &mut counts.answered);
                Ready { caller, octets }
            }
            Verdict::Forward(question) => self.resolver.ask(key, caller, question)?,
            Verdict::Unreadable(octets, error) => {
                self.tally.add(|counts| &mut counts.malformed);
                debug!(port = key, %error, "not a question");
                Ready { caller, octets: octets? }
            }
        };
        sealed(&ready)
    }

    /// Waits for the next answer of others. Giving up waiting loses none.
    pub(super) async fn next(&mut self) -> Option<Reply> {
        sealed(&self.resolver.next().await)
    }
}

fn sealed(ready: &Ready<Caller>) -> Option<Reply> {
    let Caller { envelope, number } = &ready.caller;
    Some(Reply { port: *number, frame: envelope.seal(&ready.octets)? })
}
