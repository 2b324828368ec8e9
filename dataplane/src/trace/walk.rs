//! The walk: flows looked up as Open vSwitch looks them up, actions run as it runs them.
//!
//! ```text
//! table -> best flow -> actions --goto--> table
//!                          |--group--> a copy for each bucket, which may resubmit into a table
//!                          |--resubmit to table limit--> a meter of that table, and back
//!                          |--clone--> a copy for the port that it is mirrored to
//!                          |--ct(table)--> the packet goes on there, with its state known
//!                          \--output, controller--> an outcome
//! ```
//!
//! A list of actions that comes to no outcome is a drop. Actions that our pipeline does not use end the walk and say so.
//! Source: ovs-ofctl(8), ovs-actions(7), ovs-fields(7) "Conjunctive Match Fields".

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use openflow::flow::{
    Action, Bucket, Ct, Field, GroupKind, NatRange, NatSide, PortNo, SetField, Subfield, ct_state, ip_proto,
};

use super::words;
use super::{Connection, Hop, Mirrored, Outcome, Packet, Path, Verdict};
use crate::family::Family;
use crate::flow_set::{Entry, FlowSet};
use crate::punt::Punt;
use crate::register::{FLAG_BITS, LOOKED_UP, WITHIN_LIMIT};
use crate::table::Table;

/// How many flows and buckets one packet may meet; more means that flows chase each other.
const STEPS_MAX: usize = 4096;

struct Walk<'a> {
    set: &'a FlowSet,
    connection: Connection,
    path: Path,
    copies: usize,
    steps: usize,
}

/// One copy of the packet under way.
#[derive(Clone)]
struct Traveller {
    copy: usize,
    packet: Packet,
    stack: Vec<u128>,
    /// The table that sent it to be dropped, and why.
    blame: Option<(u8, String)>,
    /// Who owns the last flow it met that is somebody's.
    owner: Option<String>,
    /// It stands for packets of more octets than this, Ethernet header included.
    larger_than: Option<u16>,
    /// The port that it is a copy for, when mirroring made it.
    copy_for: Option<String>,
}

pub(super) fn walk(set: &FlowSet, packet: &Packet, connection: Connection) -> Path {
    let path =
        Path { packet: packet.to_text(), connection, hops: Vec::new(), outcomes: Vec::new(), mirrored: Vec::new() };
    let mut walk = Walk { set, connection, path, copies: 0, steps: 0 };
    let mut traveller = Traveller {
        copy: 0,
        packet: packet.clone(),
        stack: Vec::new(),
        blame: None,
        owner: None,
        larger_than: None,
        copy_for: None,
    };
    walk.enter(Table::Classify.number(), &mut traveller);
    walk.path
}

impl Walk<'_> {
    /// Runs the flow of a table that the packet meets; that is where its way ends if it comes to nothing.
    fn enter(&mut self, table: u8, traveller: &mut Traveller) {
        if let Some((table, why)) = self.visit(table, traveller) {
            self.drop(traveller, table, why);
        }
    }

    /// Runs the flow of a table that the packet meets; unless that comes to an outcome, says which table is to blame for none, and why.
    fn visit(&mut self, table: u8, traveller: &mut Traveller) -> Option<(u8, String)> {
        self.steps += 1;
        let found = lookup(self.set, table, &traveller.packet);
        let name = Table::by_number(table).map_or_else(|| format!("table {table}"), |table| table.to_string());
        let Some((entry, clauses)) = found.filter(|_| self.steps <= STEPS_MAX) else {
            let why = Table::by_number(table).map_or("no flow matches", |table| table.info().miss).to_owned();
            let hop = Hop { copy: traveller.copy, table, name, flow: None, meaning: why.clone(), effects: Vec::new() };
            self.path.hops.push(hop);
            return Some((table, why));
        };
        let mut meaning = self.set.describe(&entry.flow, entry.note.as_deref());
        for clause in clauses {
            meaning += &format!("; {}", self.set.describe(&clause.flow, clause.note.as_deref()));
        }
        self.path.hops.push(Hop {
            copy: traveller.copy,
            table,
            name,
            flow: Some(entry.flow.to_string()),
            meaning: meaning.clone(),
            effects: Vec::new(),
        });
        let hop = self.path.hops.len() - 1;
        if entry.flow.actions == [Action::GotoTable(Table::Deny.number())] {
            traveller.blame = Some((table, words::blame(self.set, table, &traveller.packet, &meaning)));
        }
        if let Some(owner) = words::owner(self.set, &entry.flow) {
            traveller.owner = Some(owner);
        }
        let by = traveller.owner.clone().unwrap_or_else(|| "the pipeline".to_owned());
        let is_settled = self.run(&entry.flow.actions, traveller, hop, &by);
        (!is_settled).then(|| traveller.blame.clone().unwrap_or((table, meaning)))
    }

    /// Runs actions; says whether they came to any outcome.
    fn run(&mut self, actions: &[Action], traveller: &mut Traveller, hop: usize, by: &str) -> bool {
        let mut settled = false;
        for (at, action) in actions.iter().enumerate() {
            if let Some(effect) = words::effect(self.set, action, &traveller.packet) {
                self.path.hops[hop].effects.push(effect);
            }
            match action {
                Action::CheckPacketLarger { octets, target } => {
                    return settled | self.measure((*octets, *target), &actions[at + 1..], traveller, hop, by);
                }
                Action::SetField(set) => write(&mut traveller.packet, *set),
                Action::Move { source, target } => {
                    let value = traveller.packet.bits(*source);
                    traveller.packet.set(*target, value);
                }
                Action::Push(bits) => traveller.stack.push(traveller.packet.bits(*bits)),
                Action::Pop(bits) => {
                    let value = traveller.stack.pop().unwrap_or(0);
                    traveller.packet.set(*bits, value);
                }
                Action::DecTtl => {
                    let ttl = traveller.packet.get(Field::IpTtl).saturating_sub(1);
                    traveller.packet.set_masked(Field::IpTtl, ttl, Field::IpTtl.full_mask());
                }
                Action::CtClear => {
                    traveller.packet.set_masked(Field::CtState, 0, Field::CtState.full_mask());
                }
                Action::PushVlan(_) => traveller.packet.tag(),
                Action::PopVlan => traveller.packet.untag(),
                Action::GotoTable(table) => {
                    self.enter(*table, traveller);
                    settled = true;
                }
                // It goes on here, whatever that table has for it; what the switch has learned is not among our flows.
                Action::Resubmit { table: Some(table), .. }
                    if [Table::Limit, Table::Open].map(Table::number).contains(table) =>
                {
                    self.visit(*table, traveller);
                }
                Action::Resubmit { table: Some(table), .. } => {
                    self.enter(*table, traveller);
                    settled = true;
                }
                Action::Clone(steps) => self.mirror(steps, traveller, hop, by),
                Action::Group(number) => settled |= self.copy(*number, traveller, hop, by),
                Action::Ct(ct) => settled |= self.track(ct, traveller),
                Action::Output(port) => settled |= self.output(*port, traveller, hop, by),
                Action::Controller(controller) => {
                    let what = Punt::from_user_data(&controller.userdata)
                        .map_or_else(|error| error.to_string(), |punt| words::punt(self.set, punt, &traveller.packet));
                    self.end(traveller, Verdict::Punted { what });
                    settled = true;
                    // It goes on as another packet; Open vSwitch's trace ends here, too.
                    if controller.pause {
                        return settled;
                    }
                }
                // A walk is of one packet: no rate is exceeded, and it waits for nobody.
                Action::Note(_)
                | Action::Learn(_)
                | Action::Conjunction { .. }
                | Action::Meter(_)
                | Action::SetQueue(_) => {}
                other => self.path.hops[hop].effects.push(format!("{other}: not followed")),
            }
        }
        settled
    }

    /// Runs the steps of a mirror on a copy of its own, which is nothing to what becomes of the packet.
    fn mirror(&mut self, steps: &[Action], traveller: &Traveller, hop: usize, by: &str) {
        self.copies += 1;
        let copy_for = Some(words::mirror(self.set, steps));
        let mut copy = Traveller { copy: self.copies, copy_for, ..traveller.clone() };
        let said = self.path.hops[hop].effects.len();
        if !self.run(steps, &mut copy, hop, by) {
            let (table, why) = (self.path.hops[hop].table, self.path.hops[hop].meaning.clone());
            self.drop(&copy, table, why);
        }
        self.path.hops[hop].effects.truncate(said);
    }

    /// Runs what follows a measure as a small packet does, and on a copy as one does that is larger.
    fn measure(
        &mut self,
        (octets, bit): (u16, Subfield),
        rest: &[Action],
        traveller: &mut Traveller,
        hop: usize,
        by: &str,
    ) -> bool {
        self.copies += 1;
        let mut larger = Traveller { copy: self.copies, larger_than: Some(octets), ..traveller.clone() };
        larger.packet.set(bit, 1);
        traveller.packet.set(bit, 0);
        let settled = self.run(rest, traveller, hop, by);
        let said = self.path.hops[hop].effects.len();
        let is_larger_settled = self.run(rest, &mut larger, hop, by);
        // The same steps once more.
        self.path.hops[hop].effects.truncate(said);
        if !is_larger_settled {
            let (table, why) = (self.path.hops[hop].table, self.path.hops[hop].meaning.clone());
            self.drop(&larger, table, why);
        }
        settled
    }

    /// Runs every bucket of a group on a copy of its own; of a select group, too, for which one the hash takes only the data path knows; of a
    /// fast-failover group the first whose port is alive.
    fn copy(&mut self, number: u32, traveller: &Traveller, hop: usize, by: &str) -> bool {
        let set = self.set;
        let Some(group) = set.group(number) else { return false };
        let mut taken = group.buckets.iter();
        let taken: Vec<_> = match group.kind {
            GroupKind::FastFailover => taken.find(|bucket| self.is_live(bucket, hop)).into_iter().collect(),
            // Some have several buckets, for their share.
            GroupKind::Select => {
                let mut seen = BTreeSet::new();
                taken.filter(|bucket| seen.insert(&bucket.actions)).collect()
            }
            _ => taken.collect(),
        };
        for bucket in &taken {
            self.copies += 1;
            let mut copy = Traveller { copy: self.copies, ..traveller.clone() };
            if !self.run(&bucket.actions, &mut copy, hop, by) {
                let table = self.path.hops[hop].table;
                self.drop(&copy, table, words::group(set, number));
            }
        }
        !taken.is_empty()
    }

    /// Whether what a bucket watches is alive, which is said.
    fn is_live(&mut self, bucket: &Bucket, hop: usize) -> bool {
        let Some(port) = bucket.watch_port else { return true };
        self.path.hops[hop].effects.extend(words::pulse(self.set, port));
        self.set.peer_at(port).is_none_or(|(_, is_alive)| is_alive)
    }

    /// Asks the connection tracker; only with a table does the packet go on with the answer.
    fn track(&mut self, ct: &Ct, traveller: &Traveller) -> bool {
        use ct_state::{ESTABLISHED, INVALID, NEW, RELATED, REPLY, TRACKED};
        let Some(table) = ct.table else { return false };
        let state = TRACKED
            | match self.connection {
                Connection::New => NEW,
                Connection::Established => ESTABLISHED,
                Connection::Reply => ESTABLISHED | REPLY,
                Connection::Related => RELATED,
                Connection::Invalid => INVALID,
            };
        let mut tracked = traveller.clone();
        tracked.packet.set_masked(Field::CtState, state.into(), Field::CtState.full_mask());
        for action in &ct.actions {
            if let Action::SetField(set) = action {
                write(&mut tracked.packet, *set);
            }
        }
        if self.connection != Connection::Invalid {
            translate(&mut tracked.packet, ct, self.connection);
        }
        let members = if self.connection == Connection::Established { self.members(ct, &tracked) } else { Vec::new() };
        for member in &members {
            self.copies += 1;
            let mut copy = Traveller { copy: self.copies, ..tracked.clone() };
            for action in &member.actions {
                match action {
                    Action::Nat(nat) => nat.range.into_iter().for_each(|range| send(&mut copy.packet, range)),
                    Action::SetField(set) => write(&mut copy.packet, *set),
                    _ => {}
                }
            }
            self.enter(table, &mut copy);
        }
        if members.is_empty() {
            self.enter(table, &mut tracked);
        }
        true
    }

    /// Whom a load balancer may have given the connection of a packet when it was new: only the data path knows which of them it was.
    fn members(&self, ct: &Ct, tracked: &Traveller) -> Vec<Ct> {
        use ct_state::{NEW, TRACKED};
        let is_asked = matches!(ct.actions.first(), Some(Action::Nat(nat)) if nat.range.is_none());
        let Some(table) = ct.table.filter(|table| is_asked && *table == Table::Balance.number()) else {
            return Vec::new();
        };
        let mut first = tracked.packet.clone();
        first.set_masked(Field::CtState, (TRACKED | NEW).into(), Field::CtState.full_mask());
        let counted = LOOKED_UP.mask | WITHIN_LIMIT.mask;
        first.set_masked(FLAG_BITS.field, counted.into(), counted.into());
        let Some((entry, _)) = lookup(self.set, table, &first) else { return Vec::new() };
        let given = |actions: &[Action]| match actions {
            [Action::Ct(ct)] if ct.commit => Some((**ct).clone()),
            _ => None,
        };
        let group = match entry.flow.actions.as_slice() {
            [Action::Group(number)] => self.set.group(*number),
            _ => None,
        };
        let shared = group.into_iter().flat_map(|group| &group.buckets).filter_map(|bucket| given(&bucket.actions));
        let mut given: Vec<Ct> = given(&entry.flow.actions).into_iter().chain(shared).collect();
        let mut seen = BTreeSet::new();
        given.retain(|ct| seen.insert(ct.clone()));
        given
    }

    fn output(&mut self, port: PortNo, traveller: &Traveller, hop: usize, by: &str) -> bool {
        let packet = &traveller.packet;
        let in_port = PortNo(u32::try_from(packet.get(Field::InPort)).unwrap_or(u32::MAX));
        let is_delivery = self.path.hops[hop].table == Table::Output.number();
        let verdict = match port {
            PortNo::IN_PORT if is_delivery => self.exit(in_port, packet),
            PortNo::IN_PORT => Verdict::Answered { by: by.to_owned() },
            port if port == in_port => return false,
            port if Some(port) == self.set.tunnel() => {
                let endpoint: Ipv4Addr = packet.address(Field::TunDst);
                let vni = u32::try_from(packet.get(Field::TunId)).unwrap_or(u32::MAX);
                Verdict::Tunnelled { endpoint, host: self.set.host_of(endpoint), vni }
            }
            port => self.exit(port, packet),
        };
        self.end(traveller, verdict);
        true
    }

    /// Who is at an OpenFlow port, for a packet as it leaves there.
    fn exit(&self, port: PortNo, packet: &Packet) -> Verdict {
        if let Some(key) = self.set.port_at(port, packet.vlan()) {
            return Verdict::Delivered { port: key, name: words::port(self.set, key) };
        }
        match self.set.physical_at(port) {
            Some(network) => Verdict::Physical { network: network.to_owned(), vlan: packet.vlan(), port: port.0 },
            None => Verdict::Output { port: port.0 },
        }
    }

    fn drop(&mut self, traveller: &Traveller, table: u8, why: String) {
        let table = Table::by_number(table).map_or_else(|| format!("table {table}"), |table| table.to_string());
        self.end(traveller, Verdict::Dropped { table, why });
    }

    fn end(&mut self, traveller: &Traveller, verdict: Verdict) {
        let (packet, leaving) = (traveller.packet.to_text(), traveller.packet.clone());
        let larger_than = traveller.larger_than;
        let outcome = Outcome { copy: traveller.copy, verdict, larger_than, packet, leaving };
        match traveller.copy_for.clone() {
            Some(to) => self.path.mirrored.push(Mirrored { to, outcome }),
            None => self.path.outcomes.push(outcome),
        }
    }
}

/// Translates addresses as a connection of the zone would: forth as it is told to, back to what the packet says that the connection began as
/// (`ct_nw_src`, `ct_tp_src`), where it says so. Ports that the tracker would choose stay as they are.
fn translate(packet: &mut Packet, ct: &Ct, connection: Connection) {
    let Some(Action::Nat(nat)) = ct.actions.first() else { return };
    match nat.range {
        Some(NatRange { side: NatSide::Source, addresses: Some((IpAddr::V4(address), _)), ports: among }) => {
            packet.set(Subfield::whole(Field::Ipv4Src), address.to_bits().into());
            if let (Some((port, None)), Some((source, _))) = (among, ports(packet)) {
                packet.set(Subfield::whole(source), port.into());
            }
        }
        Some(range @ NatRange { side: NatSide::Destination, .. }) => send(packet, range),
        None if matches!(connection, Connection::Reply | Connection::Related) => {
            restore(packet);
            let (address, port) = (packet.get(Field::CtNwSrc), packet.get(Field::CtTpSrc));
            if address == 0 {
                return;
            }
            packet.set(Subfield::whole(Field::Ipv4Dst), address);
            if let (true, Some((_, target))) = (port != 0, ports(packet)) {
                packet.set(Subfield::whole(target), port);
            }
        }
        _ => {}
    }
}

/// Gives a packet another destination.
fn send(packet: &mut Packet, to: NatRange) {
    if let Some((address, _)) = to.addresses {
        let bits = match address {
            IpAddr::V4(address) => address.to_bits().into(),
            IpAddr::V6(address) => address.to_bits(),
        };
        packet.set(Subfield::whole(Family::of(address).target()), bits);
    }
    if let (Some((port, _)), Some((_, field))) = (to.ports, ports(packet)) {
        packet.set(Subfield::whole(field), port.into());
    }
}

/// Gives an answer the source that its connection was begun to (`ct_nw_dst`, `ct_ipv6_dst`, `ct_tp_dst`), where the packet says so.
fn restore(packet: &mut Packet) {
    for (began, source) in [(Field::CtNwDst, Field::Ipv4Src), (Field::CtIpv6Dst, Field::Ipv6Src)] {
        let address = packet.get(began);
        if address != 0 {
            packet.set(Subfield::whole(source), address);
        }
    }
    let port = packet.get(Field::CtTpDst);
    if let Some((field, _)) = ports(packet).filter(|_| port != 0) {
        packet.set(Subfield::whole(field), port);
    }
}

/// The fields of the ports of a packet that has some.
fn ports(packet: &Packet) -> Option<(Field, Field)> {
    match u8::try_from(packet.get(Field::IpProto)) {
        Ok(ip_proto::TCP) => Some((Field::TcpSrc, Field::TcpDst)),
        Ok(ip_proto::UDP) => Some((Field::UdpSrc, Field::UdpDst)),
        _ => None,
    }
}

fn write(packet: &mut Packet, set: SetField) {
    match set.field() {
        // What actions write is what matches read, in another form.
        Field::InPort16 => packet.set(Subfield::whole(Field::InPort), set.value()),
        field => packet.set_masked(field, set.value(), set.mask()),
    }
}

/// The flow that a packet meets in a table, and the clauses that led to it where it stands at the end of a conjunction.
fn lookup<'a>(set: &'a FlowSet, table: u8, packet: &Packet) -> Option<(&'a Entry, Vec<&'a Entry>)> {
    let met = set.table(table).filter(|entry| entry.flow.matching.is_met(|field| packet.get(field)));
    let mut by_priority: BTreeMap<u16, Vec<&Entry>> = BTreeMap::new();
    for entry in met {
        by_priority.entry(entry.flow.priority).or_default().push(entry);
    }
    for entries in by_priority.into_values().rev() {
        if let Some(plain) = entries.iter().find(|entry| !is_clause(entry)) {
            return Some((plain, Vec::new()));
        }
        for id in satisfied(&entries) {
            let with_id = packet.clone().with(Field::ConjId, id);
            let end = set.table(table).filter(|entry| !is_clause(entry)).find(|entry| {
                entry.flow.matching.exact(Field::ConjId) == Some(u128::from(id))
                    && entry.flow.matching.is_met(|field| with_id.get(field))
            });
            if let Some(end) = end {
                let noted =
                    entries.iter().filter(|entry| entry.note.is_some() && clauses(entry).any(|(of, ..)| of == id));
                return Some((end, noted.copied().collect()));
            }
        }
    }
    None
}

fn is_clause(entry: &Entry) -> bool {
    matches!(entry.flow.actions.first(), Some(Action::Conjunction { .. }))
}

fn clauses(entry: &Entry) -> impl Iterator<Item = (u32, u8, u8)> {
    entry.flow.actions.iter().filter_map(|action| match action {
        Action::Conjunction { id, clause, clauses } => Some((*id, *clause, *clauses)),
        _ => None,
    })
}

/// The conjunctions all of whose clauses are met.
fn satisfied(entries: &[&Entry]) -> Vec<u32> {
    let mut met: BTreeMap<(u32, u8), BTreeSet<u8>> = BTreeMap::new();
    for (id, clause, count) in entries.iter().flat_map(|entry| clauses(entry)) {
        met.entry((id, count)).or_default().insert(clause);
    }
    met.into_iter().filter(|((_, count), seen)| seen.len() == usize::from(*count)).map(|((id, _), _)| id).collect()
}
