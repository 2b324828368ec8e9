//! Load balancers of layer 4: the client's own host gives each new connection to a member, so that no packet goes through a third host.
//!
//! Owns the address of a load balancer and both directions of the translation. What a port here sends there is translated in a conntrack zone of its
//! own before it is tracked and judged, and an answer back after that: rules and connections know the client's and the member's addresses only, and
//! security groups hold as if the client had asked the member. An established connection stays with its member, whoever comes and goes; a new one
//! goes to one of those that are plugged in and have a weight, and are not who asks. A member that is taken out has its connections cut; one of weight 0
//! keeps them, and so does one in error over TCP: whether they live, its own machine says. Over UDP nobody would, and they go to another member.
//! What comes from a member's port and is of no balanced connection goes on unchanged, at the cost of one pass; what the tracker has taken for no part of
//! any, and could be a segment of a balanced one with the wrong source, does not.
//! Invariant: a packet of a balanced connection reaches a member of its load balancer that there is, or nobody.
//!
//! ```text
//! client here -> forward, or route -> host --ct(nat)--> balance --known--------------------> member -> track ... to the member, here or elsewhere
//!                                                          \----new --group, ct(commit,nat)-->/   \--again--> route (on another network)
//! member, here or elsewhere -> ... track ... output --ct(nat)--> balance -> output -> client here
//! ```
//!
//! Which member a connection gets is the data path's hash over addresses and ports (`dp_hash`), or over the client's address. Translation does
//! not change the client's port: a client that uses one for a member itself and for its load balancer at once has one connection too many.
//! Source: RFC 3022 §2.2 (translation of ports); Octavia API v2 (load balancer, listener, member).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::balancer::{Balancer, Listener, MEMBERS_MAX, Member, Persistence, Transport};
use model::network::{Network, Port, Router, Subnet};
use openflow::flow::{Action, Ct, CtZone, Field, Match, Nat, NatRange, NatSide, ct_state, ip_proto};

use crate::balanced;
use crate::compile::view::{Place, Segment, View};
use crate::cookie::{Cookie, Object};
use crate::family::{self, Family};
use crate::feature::connection_limit::Limited;
use crate::feature::forward::towards;
use crate::feature::{Feature, arp, neighbour, router};
use crate::flow_set::{GroupNumber, Part};
use crate::register::{
    BALANCER, FLAG_BITS, FROM_MEMBER, FROM_OUTSIDE, LEAVING, NETWORK, ROUTER, SOURCE, TO_ALL_HOSTS, TO_PHYSICAL,
    TO_TUNNEL, ZONE,
};
use crate::table::Table;

const LISTEN: u16 = 100;
const NOT_LISTENING: u16 = 90;
/// What was translated back, and what has passed by.
const RESTORED: u16 = 130;
/// What could be of a balanced connection, out of its window or of none any more.
const STRAY: u16 = 125;
const PASSED: u16 = 120;
const KNOWN: u16 = 110;
const INVALID: u16 = 105;
/// Of a member, who is not to be given its own.
const NEW_OF_MEMBER: u16 = 102;
const NEW: u16 = 100;
/// Above what counts new connections: whoever is not to have one is not counted.
const NEW_OF_ONLY_MEMBER: u16 = 117;
const UNHEARD: u16 = 50;
const MEMBER: u16 = 100;
const FORMER: u16 = 50;
/// Above delivery, below what leads to other hosts.
const FROM: u16 = 150;

/// Bits of TCP's header (RFC 9293 §3.1).
pub(super) const TCP_FIN: u16 = 1;
const TCP_SYN: u16 = 1 << 1;
pub(super) const TCP_RST: u16 = 1 << 2;
const TCP_ACK: u16 = 1 << 4;
/// The bits of a bucket's number that a hash gives.
const TICKET_BITS: u32 = u32::MAX >> 1;
/// The bit of all fragments, first and later ones.
const FRAGMENT: u8 = 1;

/// What is said of a packet that no listener is for.
pub(crate) const NO_LISTENER: &str = "nothing listens for that there";
/// What is said of a connection that nobody can be given.
pub(crate) const NO_MEMBER: &str = "no member of the listener is plugged in and has a weight";
/// What is said of a connection that nobody can be given because of health monitors alone.
pub(crate) const NO_HEALTHY_MEMBER: &str =
    "every member that is plugged in and has a weight is in error, as its health monitor found";
/// What is said of a connection whose member is no more.
pub(crate) const NO_MORE: &str = "its member is none any more, or not plugged in";
/// What is said of a connection of the only member.
pub(crate) const ITSELF: &str = "a member does not reach itself by its load balancer, and there is no other";

const PIPELINE: Cookie = Cookie { feature: Feature::Balancer, object: Object::Pipeline };

pub(crate) fn host(part: &mut Part) {
    part.add_miss(Table::Balance);
    part.add_miss(Table::Member);
    let passed = Match::new().with_masked(FLAG_BITS.field, FROM_MEMBER.mask, FROM_MEMBER.mask);
    for segment in [passed.clone().tcp(), passed.clone().tcp6()] {
        // A connection beside the load balancer is not known in this zone: its first answer is invalid there, the rest is new.
        let segment = segment.ct_state(ct_state::TRACKED | ct_state::INVALID, 0);
        let segment = segment.with_masked(Field::TcpFlags, TCP_ACK, TCP_ACK | TCP_SYN | TCP_RST | TCP_FIN);
        let note = "the connection tracker knows no connection that this segment of a member could be of".to_owned();
        part.add_noted(Table::Balance, STRAY, segment, Vec::new(), (PIPELINE, note));
    }
    let onward = vec![Action::GotoTable(Table::Output.number())];
    part.add_noted(Table::Balance, PASSED, passed, onward, (PIPELINE, "it is of no balanced connection".to_owned()));
}

/// A load balancer that ports here can reach.
pub(crate) fn balancer(view: &View<'_>, balancer: &Balancer, part: &mut Part) {
    let Some(front) = Front::of(view, balancer) else { return };
    if let Some(near) = front.near {
        front.add_neighbour(near, part);
    }
    if view.is_routed(front.network.id) {
        front.add_routed(view, part);
    }
    front.add_balance(view, part);
    front.add_members(view, part);
}

/// A load balancer and where it is.
pub(super) struct Front<'a> {
    pub(super) balancer: &'a Balancer,
    subnet: &'a Subnet,
    pub(super) network: &'a Network,
    /// Its network, when that has a port here.
    near: Option<Segment<'a>>,
    /// The zone of its network, and that of its translation.
    zone: u16,
    own_zone: u16,
    pub(super) family: Family,
    pub(super) cookie: Cookie,
}

/// A member that is plugged in somewhere.
pub(super) struct Seat<'a> {
    pub(super) port: &'a Port,
    /// The router that leads there; none: it is on the network of the load balancer.
    router: Option<&'a Router>,
}

impl<'a> Front<'a> {
    /// None where no port here can reach it.
    pub(super) fn of(view: &View<'a>, balancer: &'a Balancer) -> Option<Self> {
        let subnet = view.subnet(balancer.subnet)?;
        let network = view.network(subnet.network)?;
        let near = view.segment(network.id);
        if near.is_none() && !view.is_routed(network.id) {
            return None;
        }
        let cookie = Cookie { feature: Feature::Balancer, object: Object::Balancer(balancer.key.into()) };
        let (zone, own_zone) = (view.zone(network.id)?, view.balancer_zone(network.id)?);
        Some(Self { balancer, subnet, network, near, zone, own_zone, family: Family::of(balancer.address), cookie })
    }

    /// From ports of its own network.
    fn add_neighbour(&self, near: Segment<'_>, part: &mut Part) {
        let (address, mac) = (self.balancer.address, self.balancer.mac);
        match address {
            IpAddr::V4(address) => arp::answer(near, address, mac, self.cookie, part),
            IpAddr::V6(address) => neighbour::answer(near, address, mac, self.cookie, part),
        }
        let local = || {
            let to = Match::new().with(NETWORK.field, near.vni()).eth_dst(mac.bytes());
            to.with_masked(FLAG_BITS.field, 0, FROM_OUTSIDE.mask)
        };
        self.add_ways(Table::Forward, &local, part);
        let ping = self.ping(local());
        let note = "it answers the ping".to_owned();
        part.add_noted(Table::Forward, LISTEN, ping, router::answer(address), (self.cookie, note));
        part.add_noted(Table::Forward, NOT_LISTENING, local(), Vec::new(), (self.cookie, NO_LISTENER.to_owned()));
    }

    /// From ports of other networks, once they are routed.
    fn add_routed(&self, view: &View<'_>, part: &mut Part) {
        let address = self.balancer.address;
        let local = || {
            let on_it = Match::new().with(NETWORK.field, self.network.vni.get());
            on_it.with_masked(FLAG_BITS.field, 0, FROM_OUTSIDE.mask)
        };
        self.add_ways(Table::Host, &local, part);
        let rest = self.to(local());
        part.add_noted(Table::Host, NOT_LISTENING, rest, Vec::new(), (self.cookie, NO_LISTENER.to_owned()));
        for router in self.routers(view) {
            let ping = self.ping(Match::new().with(ROUTER.field, router.key));
            let note = "it answers the ping".to_owned();
            part.add_noted(Table::Route, router::PING, ping, router::answer(address), (self.cookie, note));
        }
    }

    /// The routers that stand where it is.
    fn routers<'v>(&self, view: &View<'v>) -> impl Iterator<Item = &'v Router> {
        let all = view.routers_of(self.network.id).into_iter();
        let stands = |router: &Router| router.interfaces.iter().any(|foot| foot.subnet == self.subnet.id);
        let near: Vec<&Router> = all.filter(|router| stands(router) && view.is_near_router(router.id)).collect();
        near.into_iter()
    }

    /// What has a port to balance by is asked of the connection tracker.
    fn add_ways(&self, table: Table, local: &dyn Fn() -> Match, part: &mut Part) {
        let protocols: BTreeSet<Transport> = self.balancer.listeners.iter().map(|listener| listener.protocol).collect();
        for protocol in protocols {
            let ask = Action::ct(Ct { actions: vec![Action::Nat(Nat::default())], ..self.track() });
            let steps = vec![Action::set(BALANCER.field, u32::from(self.balancer.key)), ask];
            let to = self.to(local()).ip_proto(number(protocol));
            part.add_noted(
                table,
                LISTEN,
                to,
                steps,
                (self.cookie, format!("{} is its address", self.balancer.address)),
            );
        }
    }

    fn to(&self, matching: Match) -> Match {
        let Self { family, balancer, .. } = self;
        self.packets(matching).with(family.target(), family::value(balancer.address))
    }

    pub(super) fn packets(&self, matching: Match) -> Match {
        match self.family {
            Family::V4 => matching.ip(),
            Family::V6 => matching.ipv6(),
        }
    }

    fn ping(&self, matching: Match) -> Match {
        let family = self.family;
        let icmp = self.to(matching).ip_proto(family.icmp());
        icmp.with(family.icmp_type(), family.echo().0).with(family.icmp_code(), 0_u8)
    }

    fn track(&self) -> Ct {
        Ct::track(CtZone::Fixed(self.own_zone), Table::Balance.number())
    }

    pub(super) fn of_it(&self) -> Match {
        self.packets(Match::new().with(BALANCER.field, u32::from(self.balancer.key)))
    }

    /// What the connection tracker knows goes on to its member; what is new gets one.
    fn add_balance(&self, view: &View<'_>, part: &mut Part) {
        use ct_state::{ESTABLISHED, INVALID as INV, NEW as FRESH, TRACKED};
        let known = self.of_it().ct_state(TRACKED | ESTABLISHED, FRESH | INV);
        let onward = vec![Action::GotoTable(Table::Member.number())];
        part.add_noted(
            Table::Balance,
            KNOWN,
            known,
            onward,
            (self.cookie, "a connection that a member has".to_owned()),
        );
        let invalid = self.of_it().ct_state(TRACKED | INV, 0);
        let note = "the connection tracker knows no connection that this packet could be of".to_owned();
        part.add_noted(Table::Balance, INVALID, invalid, Vec::new(), (self.cookie, note));
        for (place, listener) in (0_u8..).zip(&self.balancer.listeners) {
            let to = self.to(self.of_it()).ip_proto(number(listener.protocol));
            let fresh = to.with(target(listener.protocol), listener.port).ct_state(TRACKED | FRESH, INV);
            let live = self.live(view, listener);
            let group = GroupNumber::Members(self.balancer.key, place);
            let (steps, note) = self.share_out(listener, &live, group, part);
            part.add_noted(Table::Balance, NEW, fresh.clone(), steps, (self.cookie, note));
            if let Some(limited) = Limited::of(self, listener) {
                limited.add_known(part);
                if !live.is_empty() {
                    limited.add_new(&fresh, part);
                }
            }
            let mut own = BTreeSet::new();
            for (seat, port) in live.iter().filter(|(_, port)| view.place(port) == Place::Here && own.insert(port.key))
            {
                let but = listener.members.iter().position(|member| member == *seat).map(u8::try_from);
                let Some(Ok(but)) = but else { continue };
                let others: Vec<_> = live.iter().filter(|(_, other)| other.key != port.key).copied().collect();
                let group = GroupNumber::OtherMembers(self.balancer.key, place, but);
                let (priority, (steps, note)) = match others.as_slice() {
                    [] if listener.connection_limit.is_some() => {
                        (NEW_OF_ONLY_MEMBER, (Vec::new(), format!("port {}: {ITSELF}", port.name)))
                    }
                    [] => (NEW_OF_MEMBER, (Vec::new(), format!("port {}: {ITSELF}", port.name))),
                    others => (NEW_OF_MEMBER, self.share_out(listener, others, group, part)),
                };
                let of_member = fresh.clone().with(SOURCE.field, port.key);
                part.add_noted(Table::Balance, priority, of_member, steps, (self.cookie, note));
            }
        }
        let unheard = (self.cookie, NO_LISTENER.to_owned());
        part.add_noted(Table::Balance, UNHEARD, self.of_it(), Vec::new(), unheard);
        if self.near.is_some() {
            let restored = self.packets(Match::new().with(NETWORK.field, self.network.vni.get()));
            let restored = restored.with(self.family.source(), family::value(self.balancer.address));
            let restored = restored.with_masked(FLAG_BITS.field, FROM_MEMBER.mask, FROM_MEMBER.mask);
            let mac = Action::set(Field::EthSrc, self.balancer.mac.bytes());
            let steps = vec![mac, Action::GotoTable(Table::Output.number())];
            let note = format!("an answer, from {} again", self.balancer.address);
            part.add_noted(Table::Balance, RESTORED, restored, steps, (self.cookie, note));
        }
    }

    /// The members that get new connections, with their ports.
    fn live<'v>(&self, view: &View<'v>, listener: &'v Listener) -> Vec<(&'v Member, &'v Port)> {
        let weighty = listener.members.iter().filter(|member| member.weight > 0 && !member.in_error);
        weighty.filter_map(|member| Some((member, self.seat(view, member.address)?.port))).collect()
    }

    /// Who of some members gets a new connection: the only one, or one of several by their weights.
    fn share_out(
        &self,
        listener: &Listener,
        members: &[(&Member, &Port)],
        group: GroupNumber,
        part: &mut Part,
    ) -> (Vec<Action>, String) {
        let port = format!("{} port {}", listener.protocol, listener.port);
        match members {
            [] if listener.members.iter().any(|member| member.weight > 0 && member.in_error) => {
                (Vec::new(), format!("{port}: {NO_HEALTHY_MEMBER}"))
            }
            [] => (Vec::new(), format!("{port}: {NO_MEMBER}")),
            [(member, _)] => (
                vec![self.give(listener, member)],
                format!("{port}: its member is {} port {}", member.address, member.port),
            ),
            several => {
                match listener.persistence {
                    Persistence::None => {
                        let way = |(member, _): &(&Member, &Port)| (member.weight, vec![self.give(listener, member)]);
                        part.add_weighted_group(group, several.iter().map(way).collect());
                    }
                    Persistence::SourceIp => {
                        let members: Vec<&Member> = several.iter().map(|(member, _)| *member).collect();
                        let way = |(id, member): (u32, &Member)| (id, vec![self.give(listener, member)]);
                        let ways = tickets(&members).into_iter().map(way).collect();
                        part.add_drawn_group(group, self.family.source(), ways);
                    }
                }
                (vec![Action::Group(group.to_wire())], format!("{port}: one of its {} members gets it", several.len()))
            }
        }
    }

    /// Makes a connection of a listener a member's.
    fn give(&self, listener: &Listener, member: &Member) -> Action {
        let addresses = Some((member.address, None));
        let range = NatRange { side: NatSide::Destination, addresses, ports: Some((member.port, None)) };
        let translate = Action::Nat(Nat { range: Some(range), ..Nat::default() });
        let remember = Action::set(Field::CtLabel, balanced::label(self.balancer.key, listener.port));
        let table = Some(Table::Member.number());
        Action::ct(Ct { commit: true, table, actions: vec![translate, remember], ..self.track() })
    }

    /// Where a member is, when packets can get there.
    pub(super) fn seat<'v>(&self, view: &View<'v>, address: IpAddr) -> Option<Seat<'v>> {
        let plugged = |port: &&'v Port| view.place(port) != Place::Nowhere;
        let all: Vec<&'v Port> = view.ports_at(address).into_iter().filter(plugged).collect();
        if let Some(port) = all.iter().find(|port| port.network == self.network.id) {
            return Some(Seat { port, router: None });
        }
        self.routers(view).find_map(|router| {
            let stands = |subnet| router.interfaces.iter().any(|foot| foot.subnet == subnet);
            let behind =
                |port: &&&'v Port| port.addresses.iter().any(|fixed| fixed.address == address && stands(fixed.subnet));
            all.iter().find(behind).map(|port| Seat { port, router: Some(router) })
        })
    }

    /// The ways to members and back from them.
    fn add_members(&self, view: &View<'_>, part: &mut Part) {
        let mut services = BTreeSet::new();
        for listener in &self.balancer.listeners {
            for member in &listener.members {
                let Some(seat) = self.seat(view, member.address) else { continue };
                // A client of UDP that goes on by the same port would never leave it: nothing resets a connection there is not.
                if !(member.in_error && listener.protocol == Transport::Udp) {
                    self.add_way_to(view, (listener, member), &seat, part);
                }
                services.insert((listener.protocol, member.address, member.port));
            }
        }
        let former = (self.cookie, NO_MORE.to_owned());
        part.add_noted(Table::Member, FORMER, self.of_it(), Vec::new(), former);
        for (protocol, address, port) in &services {
            let from = self.from(*address).ip_proto(number(*protocol)).with(source(*protocol), *port);
            self.add_asking(from, format!("from {address} port {port}, maybe as a member"), part);
        }
        let all: BTreeSet<IpAddr> = services.iter().map(|service| service.1).collect();
        for address in all {
            // In the tracker they wait for each other, and only the first has ports, or for IPv6 a protocol.
            let fragment = self.from(address).with_masked(Field::IpFrag, FRAGMENT, FRAGMENT);
            self.add_asking(fragment, format!("a fragment from {address}, maybe as a member"), part);
            for kind in self.errors() {
                let error = self.from(address).ip_proto(self.family.icmp()).with(self.family.icmp_type(), *kind);
                self.add_asking(
                    error,
                    format!("an ICMP error from {address}, maybe about a balanced connection"),
                    part,
                );
            }
        }
    }

    /// Connections of a listener go to a member of it; of another listener that has the same member, by another flow.
    fn add_way_to(&self, view: &View<'_>, (listener, member): (&Listener, &Member), seat: &Seat<'_>, part: &mut Part) {
        let Self { balancer, family, own_zone, .. } = *self;
        let to = self.of_it().with(Field::CtLabel, balanced::label(balancer.key, listener.port));
        let to = to.with(family.target(), family::value(member.address)).ip_proto(number(listener.protocol));
        let to = to.with(target(listener.protocol), member.port);
        let mut steps = vec![balanced::whereabouts(balancer.address, listener.port, own_zone)];
        steps.extend(onward(view, seat));
        part.add_noted(Table::Member, MEMBER, to, steps, (self.cookie, format!("to port {}", seat.port.name)));
    }

    /// Whether what may be of a balanced connection is, the connection tracker is asked.
    fn add_asking(&self, from: Match, note: String, part: &mut Part) {
        let ask = Action::ct(Ct { actions: vec![Action::Nat(Nat::default())], ..self.track() });
        let asked = Action::set_masked(FLAG_BITS.field, FROM_MEMBER.mask, FROM_MEMBER.mask);
        part.add_noted(Table::Output, FROM, from, vec![asked, ask], (self.cookie, note));
    }

    /// What a member may have sent a port here.
    fn from(&self, address: IpAddr) -> Match {
        let elsewhere = TO_TUNNEL.mask | TO_ALL_HOSTS.mask | TO_PHYSICAL.mask | LEAVING.mask;
        let here = self.packets(Match::new().with(ZONE.field, u32::from(self.zone)));
        let here = here.with_masked(FLAG_BITS.field, 0, FROM_MEMBER.mask | elsewhere);
        here.with(self.family.source(), family::value(address))
    }

    /// ICMP types that quote a packet (RFC 792; RFC 4443 §2.1).
    const fn errors(&self) -> &'static [u8] {
        match self.family {
            Family::V4 => &[3, 11, 12],
            Family::V6 => &[1, 2, 3, 4],
        }
    }
}

/// For each member as many tickets as its share of [`MEMBERS_MAX`] or less, each with a number that depends on that member alone: who draws by the hash of
/// an address and the number draws the same when others come, and another when its own is gone.
fn tickets<'a>(members: &[&'a Member]) -> BTreeMap<u32, &'a Member> {
    let divisor = members.iter().fold(0, |divisor, member| gcd(divisor, usize::from(member.weight))).max(1);
    let whole: usize = members.iter().map(|member| usize::from(member.weight) / divisor).sum();
    let mut tickets = BTreeMap::new();
    for member in members {
        let weight = usize::from(member.weight) / divisor;
        let count = match whole {
            ..=MEMBERS_MAX => weight,
            // Each has one, and a share of the rest.
            _ => 1 + weight * MEMBERS_MAX.saturating_sub(members.len()) / whole,
        };
        for copy in 0..count {
            let mut number = ticket(member, copy);
            while tickets.contains_key(&number) {
                number = (number + 1) & TICKET_BITS;
            }
            tickets.insert(number, *member);
        }
    }
    tickets
}

/// FNV-1a (draft-eastlake-fnv), of 31 bits: numbers of buckets end before 2^32 - 256.
fn ticket(member: &Member, copy: usize) -> u32 {
    let text = format!("{} {} {copy}", member.address, member.port);
    let hash = |hash: u32, octet: u8| (hash ^ u32::from(octet)).wrapping_mul(0x0100_0193);
    text.bytes().fold(0x811c_9dc5, hash) & TICKET_BITS
}

const fn gcd(mut one: usize, mut other: usize) -> usize {
    while other != 0 {
        (one, other) = (other, one % other);
    }
    one
}

/// What leads a packet to its member.
fn onward(view: &View<'_>, seat: &Seat<'_>) -> Vec<Action> {
    match seat.router {
        Some(router) => {
            vec![Action::set(ROUTER.field, router.key), Action::resubmit(Table::Route.number())]
        }
        None => {
            let mut steps = vec![Action::set(Field::EthDst, seat.port.mac.bytes())];
            steps.extend(towards(view, seat.port));
            steps.push(Action::GotoTable(Table::Track.number()));
            steps
        }
    }
}

pub(super) const fn number(protocol: Transport) -> u8 {
    match protocol {
        Transport::Tcp => ip_proto::TCP,
        Transport::Udp => ip_proto::UDP,
    }
}

pub(super) const fn target(protocol: Transport) -> Field {
    match protocol {
        Transport::Tcp => Field::TcpDst,
        Transport::Udp => Field::UdpDst,
    }
}

pub(super) const fn source(protocol: Transport) -> Field {
    match protocol {
        Transport::Tcp => Field::TcpSrc,
        Transport::Udp => Field::UdpSrc,
    }
}
