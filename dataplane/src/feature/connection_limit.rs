//! The limit of a listener: how many of its connections may be open at once from one host.
//!
//! Owns the flows that count: the switch itself learns one into [`Table::Open`] for each connection of a listener with a limit, under a cookie of that
//! listener, and learns no more than the limit. What is learned is the switch's: nobody installs it, and nobody deletes it but the end of its
//! listener's limit. A connection of TCP counts until its client has ended it, or its member has reset it; of one that is only begun, and of one over UDP,
//! silence is the end. One that is known to the connection tracker passes whether or not it was counted, and counts from then on where there is room: neither
//! a smaller limit nor a restart of the switch cuts anything.
//! Invariant: packets for listeners without a limit meet none of these flows.
//!
//! ```text
//! new     --look up, learn up to the limit--> balance again: counted --> a member
//!                                                 \--no room: dropped, so that its client asks again
//! known   --look up--> balance again: counted --> its member
//!                            \--not, or begun: learn--> its member
//! ended   --learn over it, under a cookie that is not counted--> its member, or its client
//! ```
//!
//! Two flows are learned for one connection, because learning again changes actions and cookie of a flow and never its timeouts: one that counts while it
//! is only begun, and one from then on. Source: ovs-actions(7) "The learn action".

use model::balancer::{Listener, Transport};
use openflow::flow::{Action, Field, Learn, LearnSource, LearnSpec, Match, Subfield, ct_state, eth_type};

use super::balancer::{Front, TCP_FIN, TCP_RST, number, source, target};
use crate::balanced;
use crate::cookie::{Cookie, Object, is_ours};
use crate::family::{self, Family};
use crate::flow_set::Part;
use crate::register::{COUNTED, FLAG_BITS, FROM_MEMBER, LISTENER, LOOKED_UP, WITHIN_LIMIT};
use crate::table::Table;
use openflow::flow::Flow;

/// What a member has reset, before it is an answer.
const RESET: u16 = 131;
const ASKING: u16 = 116;
const FULL: u16 = 115;
const ENDED: u16 = 114;
const LOOKING: u16 = 113;
const UNCOUNTED: u16 = 112;

/// Seconds of silence after which a connection counts no more: as long as nobody has answered (a client of TCP asks again after 1, 3 and 7 s), while it is
/// open, and once it has ended, which is how long its member may take to end it too: what its client says after that is taken for a connection again.
const BEGUN_SECONDS: u16 = 5;
const TCP_SECONDS: u16 = 300;
const UDP_SECONDS: u16 = 30;
const ENDED_SECONDS: u16 = 20;
/// Priorities of learned flows: one that counts an open connection is met before the one that counted it when it began.
const BEGUN: u16 = 90;
const OPEN: u16 = 100;

/// What is said of a connection that is one too many.
pub(crate) const NO_ROOM: &str = "open from this host, as many as its limit allows";

/// Whether the switch learned a flow, by itself: it is nobody's to add, to replace or to delete.
pub(crate) const fn is_learned(flow: &Flow) -> bool {
    flow.table == Table::Open.number() && is_ours(flow.cookie)
}

/// A listener with a limit.
pub(super) struct Limited<'a> {
    front: &'a Front<'a>,
    listener: &'a Listener,
    most: u32,
}

impl<'a> Limited<'a> {
    /// None where it has none.
    pub(super) fn of(front: &'a Front<'a>, listener: &'a Listener) -> Option<Self> {
        listener.connection_limit.map(|most| Self { front, listener, most })
    }

    /// What is there whoever its members are.
    pub(super) fn add_known(&self, part: &mut Part) {
        use ct_state::{ESTABLISHED, INVALID, NEW, TRACKED};
        let Self { front, listener, .. } = self;
        let of_it = || {
            let known =
                front.of_it().ip_proto(number(listener.protocol)).ct_state(TRACKED | ESTABLISHED, NEW | INVALID);
            known.with(Field::CtLabel, self.label())
        };
        let onward = Action::GotoTable(Table::Member.number());
        let looking = of_it().with_masked(FLAG_BITS.field, 0, LOOKED_UP.mask);
        let mut steps = self.look_up(LOOKED_UP.mask);
        steps.push(Action::resubmit(Table::Balance.number()));
        let note = "whether the connection is counted is looked up".to_owned();
        part.add_noted(Table::Balance, LOOKING, looking, steps, (front.cookie, note));
        let uncounted = of_it().with_masked(FLAG_BITS.field, LOOKED_UP.mask, LOOKED_UP.mask | COUNTED.mask);
        // What it counted as when it began makes room for it.
        let steps = vec![self.begun_no_more(Way::Forth), self.count(), onward.clone()];
        let note = "a connection that a member has, counted from now on".to_owned();
        part.add_noted(Table::Balance, UNCOUNTED, uncounted, steps, (front.cookie, note));
        if listener.protocol == Transport::Tcp {
            for (flag, what) in [(TCP_FIN, "ends"), (TCP_RST, "resets")] {
                let mut steps = self.look_up(0);
                steps.extend([self.end(Way::Forth), self.begun_no_more(Way::Forth), onward.clone()]);
                let ended = of_it().with_masked(Field::TcpFlags, flag, flag);
                let note = format!("its client {what} a connection, which is counted no more");
                part.add_noted(Table::Balance, ENDED, ended, steps, (front.cookie, note));
            }
            self.add_reset(part);
        }
    }

    /// What a member resets, its client has no more to say of.
    fn add_reset(&self, part: &mut Part) {
        use ct_state::{ESTABLISHED, TRACKED};
        let Self { front, listener, .. } = self;
        let answer = Match::new().with_masked(FLAG_BITS.field, FROM_MEMBER.mask, FROM_MEMBER.mask | LOOKED_UP.mask);
        let answer = front.packets(answer).ip_proto(number(listener.protocol)).ct_state(TRACKED | ESTABLISHED, 0);
        let answer = answer.with(front.family.source(), family::value(front.balancer.address));
        let answer = answer.with(source(listener.protocol), listener.port).with(Field::CtLabel, self.label());
        let reset = answer.with_masked(Field::TcpFlags, TCP_RST, TCP_RST);
        let steps = vec![
            Action::set_masked(FLAG_BITS.field, LOOKED_UP.mask, LOOKED_UP.mask),
            self.named(),
            self.end(Way::Back),
            self.begun_no_more(Way::Back),
            Action::resubmit(Table::Balance.number()),
        ];
        let note = "its member resets a connection, which is counted no more".to_owned();
        part.add_noted(Table::Balance, RESET, reset, steps, (front.cookie, note));
    }

    /// What holds for new connections, where there is somebody to give them to.
    pub(super) fn add_new(&self, fresh: &Match, part: &mut Part) {
        let Self { front, listener, most } = self;
        let port = format!("{} port {}", listener.protocol, listener.port);
        let asking = fresh.clone().with_masked(FLAG_BITS.field, 0, LOOKED_UP.mask);
        // Where nothing is learned, as in a trace, there is room.
        let mut steps = self.look_up(LOOKED_UP.mask | WITHIN_LIMIT.mask);
        steps.extend([self.begin(), Action::resubmit(Table::Balance.number())]);
        let note = format!("{port}: no more than {most} connections may be open from this host");
        part.add_noted(Table::Balance, ASKING, asking, steps, (front.cookie, note));
        // Who counts already is not one too many, as when its member is gone and nobody remembers the connection.
        let neither = LOOKED_UP.mask | WITHIN_LIMIT.mask | COUNTED.mask;
        let refused = fresh.clone().with_masked(FLAG_BITS.field, LOOKED_UP.mask, neither);
        let note = format!("{port}: {most} connections are {NO_ROOM}");
        part.add_noted(Table::Balance, FULL, refused, Vec::new(), (front.cookie, note));
    }

    fn label(&self) -> u128 {
        balanced::label(self.front.balancer.key, self.listener.port)
    }

    /// Says whose connection it is.
    fn named(&self) -> Action {
        Action::set(LISTENER.field, key(self.front.balancer.key, self.listener.port))
    }

    /// Has what was learned of the connection speak, and live on.
    fn look_up(&self, flags: u32) -> Vec<Action> {
        let mut steps = vec![self.named(), Action::resubmit(Table::Open.number())];
        steps.splice(0..0, (flags != 0).then(|| Action::set_masked(FLAG_BITS.field, flags, flags)));
        steps
    }

    fn begin(&self) -> Action {
        let (idle_timeout, result) = (BEGUN_SECONDS, flag(WITHIN_LIMIT.mask));
        let begun = Learn { priority: BEGUN, idle_timeout, limit: self.most, result, ..self.counting() };
        self.learn(begun, Way::Forth, LOOKED_UP.mask)
    }

    /// Counts what is known, as far as there is room: it passes in any case, and nobody may have the switch learn without end.
    fn count(&self) -> Action {
        let (idle_timeout, fin_idle_timeout) = match self.listener.protocol {
            Transport::Tcp => (TCP_SECONDS, ENDED_SECONDS),
            Transport::Udp => (UDP_SECONDS, 0),
        };
        let limit = self.most;
        let open = Learn { priority: OPEN, idle_timeout, fin_idle_timeout, limit, ..self.counting() };
        self.learn(open, Way::Forth, COUNTED.mask)
    }

    /// What comes after the end is not to count it again.
    fn end(&self, way: Way) -> Action {
        let ended = Learn { priority: OPEN, idle_timeout: ENDED_SECONDS, ..self.not_counting() };
        self.learn(ended, way, COUNTED.mask)
    }

    fn begun_no_more(&self, way: Way) -> Action {
        let begun = Learn { priority: BEGUN, idle_timeout: BEGUN_SECONDS, ..self.not_counting() };
        self.learn(begun, way, LOOKED_UP.mask)
    }

    fn counting(&self) -> Learn {
        let label = key(self.front.balancer.key, self.listener.port);
        let object = match self.listener.protocol {
            Transport::Tcp => Object::TcpListener(label),
            Transport::Udp => Object::UdpListener(label),
        };
        let cookie = Cookie { object, ..self.front.cookie }.to_wire();
        Learn { table: Table::Open.number(), cookie, delete_learned: true, ..Learn::default() }
    }

    fn not_counting(&self) -> Learn {
        Learn { cookie: self.front.cookie.to_wire(), ..self.counting() }
    }

    /// Of this client's address and port, whichever way the packet at hand goes.
    fn learn(&self, learn: Learn, way: Way, says: u32) -> Action {
        let Self { front: Front { family, .. }, listener, .. } = self;
        let kind = match family {
            Family::V4 => eth_type::IPV4,
            Family::V6 => eth_type::IPV6,
        };
        let value =
            |field, value: u128| LearnSpec::Match { source: LearnSource::Value(value), target: Subfield::whole(field) };
        let same = |field, from| LearnSpec::Match {
            source: LearnSource::Field(Subfield::whole(from)),
            target: Subfield::whole(field),
        };
        let (address, port) = (family.source(), source(listener.protocol));
        let (from_address, from_port) = match way {
            Way::Forth => (address, port),
            Way::Back => (family.target(), target(listener.protocol)),
        };
        let mut specs = vec![
            value(Field::EthType, kind.into()),
            value(Field::IpProto, number(listener.protocol).into()),
            same(LISTENER.field, LISTENER.field),
            same(address, from_address),
            same(port, from_port),
        ];
        specs.extend(flag(says).map(|target| LearnSpec::Load { source: LearnSource::Value(1), target }));
        Action::Learn(Box::new(Learn { specs, ..learn }))
    }
}

/// Which way the packet at hand goes.
#[derive(Clone, Copy)]
enum Way {
    Forth,
    Back,
}

/// The bit of a flag.
fn flag(mask: u32) -> Option<Subfield> {
    let start = u8::try_from(mask.trailing_zeros()).ok()?;
    Subfield::new(FLAG_BITS.field, start, 1).ok()
}

/// A listener in a register and in cookies: as its connections have it in their label, the protocol apart.
pub(crate) fn key(balancer: u16, port: u16) -> u32 {
    u32::from(balancer) << 16 | u32::from(port)
}
