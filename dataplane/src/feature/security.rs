//! Security groups: one pass through the connection tracker, then the rules.
//!
//! A packet of a guarded port is tracked once, after its destination is known, in the zone of its networks. Replies pass, and so do errors about a
//! connection that lives; **everything else asks the rules again**, so that a rule taken away cuts the connections it had allowed: the first packet
//! that is not allowed any more marks the connection dead, and replies of dead connections do not pass. If a rule comes back, the mark goes.
//!
//! ```text
//! track --ct(zone)--> state --reply, alive--------------------------> output
//!                       |---else--> egress --> ingress --> commit --> output
//!                                     \___________\______> deny (mark dead)
//! ```
//!
//! Ports whose groups are all stateless go round the tracker, straight to the rules, in both directions.
//!
//! A rule is one flow per identity of a port here and per mask of its port range. Rules whose other side is a group share a conjunction per pair
//! of groups where that takes fewer flows than the product of members and masks. Where it is an address group they always do, and the addresses are
//! flows of their own (see [`address`]): N addresses and M rules are N + M flows. No NAT here, ever (Open vSwitch 3.1 aborts).

use std::collections::BTreeSet;

use model::security::{Direction, SecurityGroup};
use openflow::flow::{Action, Ct, CtZone, Field, Match, Subfield, ct_state};

use crate::compile::view::{Other, View};
use crate::cookie::{Cookie, Object};
use crate::family::FAMILIES;
use crate::feature::Feature;
use crate::flow_set::Part;
use crate::register::{
    FLAG_BITS, Flag, MARK_DEAD, SOURCE_GUARDED, SOURCE_IDENTITY, SOURCE_STATELESS, TARGET_GUARDED, TARGET_IDENTITY,
    TARGET_STATELESS, ZONE,
};
use crate::table::Table;

pub(crate) mod address;
pub(crate) mod rule;

use rule::{RemoteRule, plain_rules, remote_rules};

/// Neighbour discovery and multicast listeners (RFC 4890 §4.4): no rule is asked, for without them there is no IPv6. What a guest may say of
/// them is the guard's to judge.
const ESSENTIAL: [u8; 8] = [130, 131, 132, 133, 134, 135, 136, 143];

const NO_RULES: u16 = 210;
const FIRST: u16 = 200;
const SECOND: u16 = 190;
/// How far below tracked sides the untracked ones stand: below both.
const STATELESS: u16 = 50;
const UNGUARDED: u16 = 200;
const RULE: u16 = 100;
/// Below plain rules: a packet that one of those allows never gets here.
const CONJUNCTION: u16 = 90;

const PIPELINE: Cookie = Cookie { feature: Feature::Security, object: Object::Pipeline };

/// What a direction is made of.
struct Side {
    direction: Direction,
    table: Table,
    next: Table,
    guarded: Flag,
    own: Field,
    other: Field,
    unguarded: &'static str,
}

const SIDES: [Side; 2] = [
    Side {
        direction: Direction::Egress,
        table: Table::Egress,
        next: Table::Ingress,
        guarded: SOURCE_GUARDED,
        own: SOURCE_IDENTITY.field,
        other: TARGET_IDENTITY.field,
        unguarded: "no rules of the sender hold on this host",
    },
    Side {
        direction: Direction::Ingress,
        table: Table::Ingress,
        next: Table::Commit,
        guarded: TARGET_GUARDED,
        own: TARGET_IDENTITY.field,
        other: SOURCE_IDENTITY.field,
        unguarded: "no rules of the receiver hold on this host",
    },
];

/// What holds whatever the groups say.
pub(crate) fn host(part: &mut Part) {
    add_tracking(part);
    for side in &SIDES {
        let open = Match::new().with_masked(FLAG_BITS.field, 0, side.guarded.mask);
        let pass = vec![Action::GotoTable(side.next.number())];
        part.add_noted(side.table, UNGUARDED, open, pass, note(side.unguarded));
        part.add_miss_to(side.table, Table::Deny);
    }
}

/// The rules of a group, when a guarded port here is in it.
pub(crate) fn group(view: &View<'_>, group: &SecurityGroup, part: &mut Part) {
    let own = view.own_identities(group.id);
    if own.is_empty() {
        return;
    }
    for side in &SIDES {
        add_plain(side, group, &own, part);
        for remote in remote_rules(view, group, side.direction) {
            Pair { side, group, own: &own, remote: &remote }.add(view, part);
        }
    }
}

/// The fixed part: what the connection tracker is asked and told.
fn add_tracking(part: &mut Part) {
    use ct_state::{ESTABLISHED, INVALID, NEW, RELATED, REPLY, TRACKED};
    let zone = || CtZone::From(Subfield::new(ZONE.field, 0, 16).unwrap_or(Subfield::whole(ZONE.field)));
    let goto = |table: Table| vec![Action::GotoTable(table.number())];
    let sides = [
        (FIRST, SOURCE_GUARDED, SOURCE_STATELESS, "the sender is guarded"),
        (SECOND, TARGET_GUARDED, TARGET_STATELESS, "the receiver is guarded"),
    ];
    for (priority, flag, stateless, why) in sides {
        for family in FAMILIES {
            let track = family.packets().with_masked(FLAG_BITS.field, flag.mask, flag.mask | stateless.mask);
            let steps = vec![Action::ct(Ct::track(zone(), Table::State.number()))];
            part.add_noted(Table::Track, priority, track, steps, note(why));
            let round = family.packets().with_masked(FLAG_BITS.field, flag.mask, flag.mask);
            let why = note("only stateless groups: no connection is remembered");
            part.add_noted(Table::Track, priority - STATELESS, round, goto(Table::Egress), why);
        }
    }
    for kind in ESSENTIAL {
        let essential = Match::new().icmp6().with(Field::Icmpv6Type, kind);
        let why = note("neighbours are always allowed to find each other");
        part.add_noted(Table::Track, NO_RULES, essential, goto(Table::Output), why);
    }
    part.add_noted(Table::Track, 0, Match::new(), goto(Table::Output), note("neither side is guarded here"));

    let alive = |matching: Match| matching.with_masked(Field::CtMark, 0, MARK_DEAD);
    let dead = |matching: Match| matching.with_masked(Field::CtMark, MARK_DEAD, MARK_DEAD);
    let invalid = Match::new().ct_state(TRACKED | INVALID, 0);
    part.add_noted(Table::State, 100, invalid, Vec::new(), note("the connection tracker finds the packet invalid"));
    let reply = alive(Match::new().ct_state(TRACKED | ESTABLISHED | REPLY, NEW | INVALID));
    part.add_noted(Table::State, 90, reply, goto(Table::Output), note("reply of an allowed connection"));
    // A side that remembers nothing asks its rules of replies, too; the other side's have been asked when the connection began.
    for (stateless, other) in [(SOURCE_STATELESS, TARGET_GUARDED), (TARGET_STATELESS, SOURCE_GUARDED)] {
        let reply = alive(Match::new().ct_state(TRACKED | ESTABLISHED | REPLY, NEW | INVALID));
        let reply = reply.with_masked(FLAG_BITS.field, stateless.mask, stateless.mask);
        let steps = vec![Action::set_masked(FLAG_BITS.field, 0, other.mask), Action::GotoTable(Table::Egress.number())];
        part.add_noted(
            Table::State,
            95,
            reply,
            steps,
            note("reply of an allowed connection, for a stateless side to judge"),
        );
    }
    let related = alive(Match::new().ct_state(TRACKED | RELATED, NEW | INVALID));
    part.add_noted(Table::State, 90, related, goto(Table::Output), note("about an allowed connection"));
    part.add_noted(Table::State, 0, Match::new(), goto(Table::Egress), note("the rules are asked"));

    let mark = |value: u32| {
        let write = Action::set_masked(Field::CtMark, value, MARK_DEAD);
        Action::ct(Ct { actions: vec![write], ..Ct::commit(zone()) })
    };
    for family in FAMILIES {
        let new = family.packets().ct_state(TRACKED | NEW, 0);
        let commit = vec![Action::ct(Ct::commit(zone())), Action::GotoTable(Table::Output.number())];
        part.add_noted(Table::Commit, 100, new, commit, note("a new connection, remembered for its replies"));
        let again = dead(family.packets().ct_state(TRACKED | ESTABLISHED, REPLY));
        let revive = vec![mark(0), Action::GotoTable(Table::Output.number())];
        part.add_noted(Table::Commit, 100, again, revive, note("allowed again"));
        let lived = alive(family.packets().ct_state(TRACKED | ESTABLISHED, REPLY));
        part.add_noted(Table::Deny, 100, lived, vec![mark(MARK_DEAD)], note("allowed before, not any more"));
    }
    part.add_noted(Table::Commit, 0, Match::new(), goto(Table::Output), note("known already"));
    part.add_miss(Table::Deny);
}

fn note(text: &str) -> (Cookie, String) {
    (PIPELINE, text.to_owned())
}

/// Rules whose other side is anyone or a prefix.
fn add_plain(side: &Side, group: &SecurityGroup, own: &BTreeSet<u32>, part: &mut Part) {
    let cookie = Cookie { feature: Feature::Security, object: Object::Group(group.key) };
    for (matching, note) in plain_rules(group, side.direction) {
        for identity in own {
            let allow = vec![Action::GotoTable(side.next.number())];
            let matching = matching.clone().with(side.own, *identity);
            part.add_noted(side.table, RULE, matching, allow, (cookie, note.clone()));
        }
    }
}

/// Rules of one group whose other side is one other group, or one address group.
struct Pair<'a> {
    side: &'a Side,
    group: &'a SecurityGroup,
    /// Identities of the guarded ports here that are in the group.
    own: &'a BTreeSet<u32>,
    remote: &'a RemoteRule,
}

impl Pair<'_> {
    /// Adds the product of own identities, other identities and selectors, or a conjunction of the three where that is fewer flows; for an address
    /// group the conjunction without the addresses.
    fn add(&self, view: &View<'_>, part: &mut Part) {
        let id = || view.conjunction(self.group.id, self.remote.other, self.side.direction);
        let others: Vec<u32> = match self.remote.other {
            Other::Group(group) => view.identities_with(group).into_iter().collect(),
            Other::Addresses(_) => return self.add_conjunction(&[], id(), part),
        };
        let (own, selectors) = (self.own.len(), self.remote.selectors.len());
        if own * others.len() * selectors <= own + others.len() + selectors + 1 {
            self.add_product(&others, part);
        } else {
            self.add_conjunction(&others, id(), part);
        }
    }

    fn add_product(&self, others: &[u32], part: &mut Part) {
        for (selector, note) in &self.remote.selectors {
            for (mine, other) in self.own.iter().flat_map(|mine| others.iter().map(move |other| (mine, other))) {
                let matching = selector.clone().with(self.side.own, *mine).with(self.side.other, *other);
                part.add_noted(self.side.table, RULE, matching, self.allow(), (self.cookie(), note.clone()));
            }
        }
    }

    fn add_conjunction(&self, others: &[u32], id: u32, part: &mut Part) {
        let (table, cookie) = (self.side.table, self.cookie());
        let clause = |clause: u8| vec![Action::Conjunction { id, clause, clauses: 3 }];
        for mine in self.own {
            part.add(table, CONJUNCTION, Match::new().with(self.side.own, *mine), clause(1), cookie);
        }
        for other in others {
            part.add(table, CONJUNCTION, Match::new().with(self.side.other, *other), clause(2), cookie);
        }
        for (selector, note) in &self.remote.selectors {
            part.add_noted(table, CONJUNCTION, selector.clone(), clause(3), (cookie, note.clone()));
        }
        let met = Match::new().with(Field::ConjId, id);
        let note = format!("a rule between it and {}", self.remote.name);
        part.add_noted(table, CONJUNCTION, met, self.allow(), (cookie, note));
    }

    fn allow(&self) -> Vec<Action> {
        vec![Action::GotoTable(self.side.next.number())]
    }

    const fn cookie(&self) -> Cookie {
        Cookie { feature: Feature::Security, object: Object::Group(self.group.key) }
    }
}
