//! Answers the packets that our flows hand over: DHCP requests and router solicitations of local ports at once, what is for services later. Tells
//! senders of packets that are too large, translates what errors through floating IPs quote, and takes in what members answer to health checks.
//!
//! Thin: [`crate::punt`] reads what the flow said, [`crate::respond`] makes the answer. Never answers anybody but the port
//! that asked.

use std::net::{Ipv4Addr, Ipv6Addr};

use tokio::sync::mpsc;
use tracing::debug;

use super::arrivals::Arrivals;
use super::channel::{Punted, Reply, Responder};
use super::health::Checks;
use super::host::Shared;
use super::services::Services;
use super::stations::Search;
use crate::exit::Exit;
use crate::punt::Punt;
use crate::quoted::{self, End};
use crate::respond;
use crate::router_advert::advertise;
use crate::too_large::{self, Handed, Told};

/// Answers, and advertises routers, from the newest networks of the host.
#[derive(Debug)]
pub(super) struct Answers {
    host: Shared,
    services: Services,
    search: Search,
    checks: Checks,
    arrivals: Arrivals,
    let_in: mpsc::Receiver<Reply>,
}

impl Answers {
    /// Answers from what `host` holds at the time of the question.
    pub(super) fn new(
        host: Shared,
        services: Services,
        search: Search,
        checks: Checks,
        (arrivals, let_in): (Arrivals, mpsc::Receiver<Reply>),
    ) -> Self {
        Self { host, services, search, checks, arrivals, let_in }
    }

    /// Keeps a frame of a port that is awaited here until the port is switched; lets it in again at once when that is done.
    fn welcome(&self, packet: &Punted, key: u32) -> Option<Reply> {
        let is_awaited = self.host.read(|host| host.awaited_ports().any(|port| port.key == key));
        let (port, frame) = self.arrivals.take(key, is_awaited, (packet.in_port, packet.frame.clone()))?;
        let is_here = self.host.read(|host| host.local_ports().any(|port| port.key == key));
        is_here.then_some(Reply::Again { port, frame })
    }

    /// Tells the sender that a router would not send its packet on.
    fn tell(&self, packet: &Punted, network: u32, router: u16) -> Option<Reply> {
        let handed = Handed { in_port: packet.in_port, network, router, frame: &packet.frame };
        match self.host.read_numbers(|host, numbers| too_large::tell(host, numbers, &handed)) {
            Ok(Told { exit, frame }) => Some(Reply::Out { port: packet.in_port, exit, frame }),
            Err(error) => {
                debug!(in_port = %packet.in_port, %error, "sender not told");
                None
            }
        }
    }

    /// Lets an error go on with another address in what it quotes. A station outside has seen nothing of what goes on behind the router: by an error
    /// about that it would reach a connection that is not with it.
    fn translate(&self, packet: &Punted, end: End, from: Ipv4Addr, to: Ipv4Addr) -> Option<Reply> {
        let paused = packet.paused.clone()?;
        let is_behind = |far| end == End::Source && self.host.is_behind(from, far);
        if let Some(far) = quoted::other_end(&packet.frame, end).filter(|far| is_behind(*far)) {
            debug!(in_port = %packet.in_port, floating = %from, %far, "error from outside quotes a packet that never left");
            return None;
        }
        match quoted::translate(&packet.frame, end, from, to) {
            Ok(frame) => Some(Reply::GoOn { paused, frame }),
            Err(error) => {
                debug!(in_port = %packet.in_port, %error, "error not translated");
                None
            }
        }
    }
}

impl Responder for Answers {
    fn respond(&mut self, packet: &Punted) -> Option<Reply> {
        let port = match Punt::from_user_data(&packet.user_data) {
            Ok(Punt::Question { port }) => port,
            Ok(Punt::Station { network }) => {
                self.search.take(network, packet.frame.clone());
                return None;
            }
            Ok(Punt::Health { port }) => {
                self.checks.take(port, &packet.frame);
                return None;
            }
            Ok(Punt::Arrival { port }) => return self.welcome(packet, port),
            Ok(Punt::TooLarge { network, router }) => return self.tell(packet, network, router),
            Ok(Punt::Quoted { end, from, to }) => return self.translate(packet, end, from, to),
            Err(error) => {
                debug!(in_port = %packet.in_port, %error, "packet-in not understood");
                return None;
            }
        };
        if respond::is_for_service(&packet.frame) {
            self.services.take(port, packet.in_port, packet.frame.clone());
            return None;
        }
        let answer = self.host.read(|host| respond::answer(host, port, &packet.frame));
        match answer {
            Ok(frame) => frame.map(|frame| Reply::Out { port: packet.in_port, exit: self.host.exit_to(port), frame }),
            Err(error) => {
                debug!(in_port = %packet.in_port, %error, "question not answered");
                None
            }
        }
    }

    async fn later(&mut self) -> Reply {
        tokio::select! {
            reply = self.services.reply() => reply,
            probe = self.search.probe() => probe,
            question = self.checks.question() => question,
            Some(frame) = self.let_in.recv() => frame,
        }
    }

    fn announce(&mut self) -> Vec<Reply> {
        self.host.read_numbers(|host, numbers| {
            let here = host.local_ports().filter_map(|port| Some((port, numbers.of(port)?)));
            // Ports without IPv6 are told nothing.
            let told = here.filter_map(|(told, port)| {
                let frame = advertise(host, told.key, Ipv6Addr::UNSPECIFIED).ok()?;
                Some(Reply::Out { port, exit: Exit::to(host, numbers, told), frame })
            });
            told.collect()
        })
    }
}
