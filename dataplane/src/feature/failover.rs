//! The gateways of a router in their order: who leads out now, found by the switches themselves.
//!
//! Owns [`Seat`], where this host stands among them, and [`Gate`], which flows of a gateway that stands by are behind. The switches of hosts tell each
//! other that they are alive (BFD, [`peer`](mod@crate::peer)), and fast-failover groups take the first gateway that does: no flow changes when one dies.
//! A gateway whose life nobody watches is taken for alive, so that what comes after it in the order is never used: then the scheduler alone decides.
//! Never announces an address: [`station`](mod@crate::station) does.
//! Invariant: a gateway that stands by answers for the address, and translates, only while all before it were heard once and are silent.
//!
//! ```text
//! a flow behind a gate --not looked yet--> group --a gateway before is alive--> standing by: again in the same table, and past this flow
//!                                            \----none is------------------> taken over: again in the same table, what the flow is for
//! ```
//!
//! Source: OpenFlow 1.5.1 §5.10.1 (fast failover), RFC 5880.

use std::net::Ipv4Addr;

use model::network::{GatewayHost, Snat};
use openflow::flow::{Action, Match, PortNo};

use crate::compile::view::View;
use crate::cookie::Cookie;
use crate::feature::floating::raise;
use crate::flow_set::{GroupNumber, Part};
use crate::register::{ENDPOINT, FLAG_BITS, Flag, STANDS_BY, TAKES_OVER, TO_TUNNEL};
use crate::table::Table;

/// What tells the gates of a router's address of IPv6 from those of the other, beside the numbers of tables.
const GATE_OF_IPV6: u8 = 0x80;

/// What is known of a packet that met a gate.
const LOOKED: u32 = TAKES_OVER.mask | STANDS_BY.mask;

/// A gateway that tells whether it is alive, and the port by which it does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watched {
    tunnel: Ipv4Addr,
    port: PortNo,
}

/// Where this host stands among the gateways of a router.
#[derive(Debug)]
pub(crate) enum Seat {
    /// It has the address.
    First,
    /// It has the address while none of these is alive.
    Standby(Vec<Watched>),
    /// The address is with the first of these that is alive, else with the last one.
    Elsewhere(Vec<Watched>, Ipv4Addr),
}

impl Seat {
    /// The seat of this host; none where no host leads out.
    pub(crate) fn of(view: &View<'_>, snat: &Snat) -> Option<Self> {
        Self::among(view, &snat.gateways)
    }

    /// The same of these gateways.
    pub(crate) fn among(view: &View<'_>, gateways: &[GatewayHost]) -> Option<Self> {
        if let [only] = gateways {
            return Some(if only.host == view.here() { Self::First } else { Self::Elsewhere(Vec::new(), only.tunnel) });
        }
        let mut before = Vec::new();
        for gateway in gateways {
            if gateway.host == view.here() {
                return Some(if before.is_empty() { Self::First } else { Self::Standby(before) });
            }
            match view.tunnel().and_then(|_| view.pulse(gateway.tunnel)) {
                Some(port) => before.push(Watched { tunnel: gateway.tunnel, port }),
                None => return Some(Self::Elsewhere(before, gateway.tunnel)),
            }
        }
        // Where all are silent the fault may be here: what leaves goes where it would without BFD.
        gateways.first().map(|first| Self::Elsewhere(before, first.tunnel))
    }

    /// What sends a packet to the gateway that leads out, in table `at`. One that stands by comes back to that table with [`TAKES_OVER`] raised
    /// when it is the one.
    pub(crate) fn leave(&self, view: &View<'_>, router: u16, at: Table, part: &mut Part) -> Vec<Action> {
        let (watched, last) = match self {
            Self::First => return Vec::new(),
            Self::Elsewhere(watched, last) if watched.is_empty() => {
                let [endpoint, flag] = to_host(*last);
                return vec![endpoint, flag, Action::GotoTable(Table::Track.number())];
            }
            Self::Elsewhere(watched, last) => (watched, by_tunnel(*last)),
            Self::Standby(watched) => (watched, vec![raise(TAKES_OVER), Action::resubmit(at.number())]),
        };
        let Some(always) = view.tunnel() else { return Vec::new() };
        let ways = watched.iter().map(|it| (it.port, by_tunnel(it.tunnel)));
        let group = GroupNumber::Gateways(router);
        part.add_failover_group(group, ways.chain([(always, last)]));
        vec![Action::Group(group.to_wire())]
    }

    /// What holds flows back that are for the gateway that leads out.
    pub(crate) fn gate(&self, view: &View<'_>, router: u16) -> Gate<'_> {
        let shut =
            if let Self::Standby(before) = self { view.tunnel().map(|always| (&before[..], always)) } else { None };
        Gate { router, of_ipv6: false, shut }
    }

    /// The same for the router's address of IPv6, whose gateways may be others.
    pub(crate) fn gate6(&self, view: &View<'_>, router: u16) -> Gate<'_> {
        Gate { of_ipv6: true, ..self.gate(view, router) }
    }
}

fn to_host(endpoint: Ipv4Addr) -> [Action; 2] {
    [Action::set(ENDPOINT.field, endpoint), raise(TO_TUNNEL)]
}

fn by_tunnel(endpoint: Ipv4Addr) -> Vec<Action> {
    to_host(endpoint).into_iter().chain([Action::resubmit(Table::Track.number())]).collect()
}

/// Holds flows back while a gateway before this host is alive.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gate<'a> {
    router: u16,
    of_ipv6: bool,
    /// The gateways before this host, and a port that is always alive; none: nothing is held back.
    shut: Option<(&'a [Watched], PortNo)>,
}

impl Gate<'_> {
    /// Holds nothing back.
    pub(crate) const OPEN: Self = Self { router: 0, of_ipv6: false, shut: None };

    /// Wants a flow that is behind the gate.
    pub(crate) fn add(
        &self,
        part: &mut Part,
        (table, priority): (Table, u16),
        matching: Match,
        steps: Vec<Action>,
        (cookie, note): (Cookie, String),
    ) {
        let Some((before, always)) = self.shut else {
            return part.add_noted(table, priority, matching, steps, (cookie, note));
        };
        let place = table.number() | if self.of_ipv6 { GATE_OF_IPV6 } else { 0 };
        let group = GroupNumber::Gate(self.router, place);
        let again = |flag: Flag| vec![raise(flag), Action::resubmit(table.number())];
        let ways = before.iter().map(|watched| (watched.port, again(STANDS_BY)));
        part.add_failover_group(group, ways.chain([(always, again(TAKES_OVER))]));
        let look = "unless a gateway before this host is alive".to_owned();
        let looking = vec![Action::Group(group.to_wire())];
        part.add_noted(table, priority, flagged(&matching, 0, LOOKED), looking, (cookie, look));
        part.add_noted(table, priority, taken(&matching), settle(0).into_iter().chain(steps).collect(), (cookie, note));
    }

    /// The same, and what is held back is dropped there.
    pub(crate) fn add_or_drop(
        &self,
        part: &mut Part,
        (table, priority): (Table, u16),
        matching: Match,
        steps: Vec<Action>,
        (cookie, note): (Cookie, String),
    ) {
        if self.shut.is_some() {
            let held = flagged(&matching, STANDS_BY.mask, STANDS_BY.mask);
            let note = "a gateway of the router before this host is alive, and does this".to_owned();
            part.add_noted(table, priority, held, Vec::new(), (cookie, note));
        }
        self.add(part, (table, priority), matching, steps, (cookie, note));
    }
}

/// A match for packets that this host takes over.
pub(crate) fn taken(matching: &Match) -> Match {
    flagged(matching, TAKES_OVER.mask, LOOKED)
}

/// Forgets what was looked up, and raises flags.
pub(crate) fn settle(flags: u32) -> [Action; 1] {
    [Action::set_masked(FLAG_BITS.field, flags, flags | LOOKED)]
}

/// The match, and these flags beside those that it asks for.
fn flagged(matching: &Match, flags: u32, mask: u32) -> Match {
    let before = matching.get(FLAG_BITS.field).map(|masked| (masked.value, masked.mask));
    let before = before.and_then(|(value, mask)| Some((u32::try_from(value).ok()?, u32::try_from(mask).ok()?)));
    let (set, seen) = before.unwrap_or_default();
    matching.clone().with_masked(FLAG_BITS.field, set | flags, seen | mask)
}
