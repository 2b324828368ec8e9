//! What the switch counted, in the users' words: packets of each port, and packets dropped, by reason.
//!
//! Pure: counters, flows and ports in, bodies out. "Sent" and "received" are the machine's view, which is the reverse of the switch's.

use std::collections::BTreeMap;

use dataplane::FlowSet;
use dataplane::switch::counters::Counters;
use dataplane::table::Table;
use openflow::flow::{Action, Flow, PortNo};
use openflow::wire::{FlowStats, PortCounters};
use serde::Serialize;
use utoipa::ToSchema;

use super::body::{FlowBody, PortBody, table_name};

/// What was counted on this host.
#[derive(Debug, Serialize, ToSchema)]
pub struct CountersBody {
    /// The ports that are plugged in here, and the tunnel.
    pub ports: Vec<PortCounted>,
    /// Packets dropped by flows, by reason; the most first.
    pub drops: Vec<Drops>,
}

/// What a port counted. A counter that the switch does not keep is missing.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct PortCounted {
    /// The port's name; `tunnel` for the way to other hosts.
    pub name: String,
    /// The machine's host name; none for the tunnel.
    pub vm: Option<String>,
    /// The OpenFlow port number.
    pub ofport: u32,
    /// Packets that the machine sent.
    pub sent_packets: Option<u64>,
    /// Octets that the machine sent.
    pub sent_octets: Option<u64>,
    /// Packets that the machine received.
    pub received_packets: Option<u64>,
    /// Octets that the machine received.
    pub received_octets: Option<u64>,
    /// Packets that the port itself dropped, both ways: queues that were full.
    pub dropped_packets: Option<u64>,
}

/// Packets dropped for one reason.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Drops {
    /// The table's name.
    pub table: String,
    /// Why, and whose flow it was.
    pub reason: String,
    /// Packets.
    pub packets: u64,
    /// Octets.
    pub octets: u64,
}

/// A flow and what it counted.
#[derive(Debug, Serialize, ToSchema)]
pub struct FlowCounted {
    /// The flow.
    #[serde(flatten)]
    pub flow: FlowBody,
    /// Packets.
    pub packets: u64,
    /// Octets.
    pub octets: u64,
}

impl CountersBody {
    /// Sums up what was counted.
    pub(super) fn new(counters: &Counters, set: &FlowSet, ports: &[PortBody]) -> Self {
        // What a tap counts is its own port's and that of all sub-ports there.
        let own = ports.iter().filter(|port| port.vlan.is_none());
        let by_number: BTreeMap<u32, &PortBody> = own.filter_map(|port| Some((port.ofport?, port))).collect();
        let named = |counted: &PortCounters| {
            let known = by_number.get(&counted.number.0);
            let is_tunnel = set.tunnel() == Some(counted.number);
            let name = known.map_or_else(|| is_tunnel.then(|| "tunnel".to_owned()), |port| Some(port.name.clone()));
            let vm = known.map(|port| port.hostname.clone());
            name.map(|name| PortCounted::new(name, vm, counted))
        };
        let ports = one_tunnel(&counters.ports, set);
        Self { ports: ports.iter().filter_map(named).collect(), drops: drops(&counters.flows, set) }
    }
}

impl PortCounted {
    fn new(name: String, vm: Option<String>, counted: &PortCounters) -> Self {
        // OpenFlow 1.5.1 §7.3.5.8: all ones for what is not counted.
        let kept = |count: u64| (count != u64::MAX).then_some(count);
        let PortNo(ofport) = counted.number;
        Self {
            name,
            vm,
            ofport,
            sent_packets: kept(counted.packets.0),
            sent_octets: kept(counted.octets.0),
            received_packets: kept(counted.packets.1),
            received_octets: kept(counted.octets.1),
            dropped_packets: kept(counted.dropped.0)
                .and_then(|sent| Some(sent.saturating_add(kept(counted.dropped.1)?))),
        }
    }
}

/// The ports, with what came by the tunnel ports of peers counted as the tunnel's: they are the way to other hosts as well.
fn one_tunnel(ports: &[PortCounters], set: &FlowSet) -> Vec<PortCounters> {
    let is_peer = |port: &&PortCounters| set.peer_at(port.number).is_some();
    let both = |one: (u64, u64), other: (u64, u64)| (sum(one.0, other.0), sum(one.1, other.1));
    let whole = |tunnel: &PortCounters| {
        ports.iter().filter(is_peer).fold(*tunnel, |sum, peer| PortCounters {
            number: sum.number,
            packets: both(sum.packets, peer.packets),
            octets: both(sum.octets, peer.octets),
            dropped: both(sum.dropped, peer.dropped),
            errors: both(sum.errors, peer.errors),
        })
    };
    let others = ports.iter().filter(|port| !is_peer(port));
    others.map(|port| if set.tunnel() == Some(port.number) { whole(port) } else { *port }).collect()
}

/// Both counts, as far as they are kept.
const fn sum(one: u64, other: u64) -> u64 {
    match (one, other) {
        (u64::MAX, kept) | (kept, u64::MAX) => kept,
        (one, other) => one.saturating_add(other),
    }
}

/// Whether a flow drops; a flow that marks a connection as dead on its way out drops too.
fn is_drop(flow: &Flow) -> bool {
    let leads_on = |action: &Action| !matches!(action, Action::Ct(ct) if ct.table.is_none());
    !flow.actions.iter().any(leads_on)
}

fn drops(flows: &[FlowStats], set: &FlowSet) -> Vec<Drops> {
    let mut sums: BTreeMap<(u8, String), (u64, u64)> = BTreeMap::new();
    for stats in flows.iter().filter(|stats| is_drop(&stats.flow)) {
        let note = set.entry(&stats.flow.key()).and_then(|entry| entry.note.as_deref());
        let said = set.describe(&stats.flow, note);
        let miss = || Table::by_number(stats.flow.table).map_or("not a flow of ours", |table| table.info().miss);
        let reason = if said.is_empty() { miss().to_owned() } else { said };
        let sum = sums.entry((stats.flow.table, reason)).or_default();
        sum.0 = sum.0.saturating_add(stats.counters.packets.unwrap_or(0));
        sum.1 = sum.1.saturating_add(stats.counters.octets.unwrap_or(0));
    }
    let body = |((table, reason), (packets, octets))| Drops { table: table_name(table), reason, packets, octets };
    let mut drops: Vec<Drops> = sums.into_iter().map(body).filter(|drops| drops.packets > 0).collect();
    drops.sort_by(|one, other| other.packets.cmp(&one.packets).then_with(|| one.reason.cmp(&other.reason)));
    drops
}

/// The installed flows with what they counted.
pub(super) fn flows(counters: &Counters, set: &FlowSet) -> Vec<FlowCounted> {
    let body = |stats: &FlowStats| FlowCounted {
        flow: FlowBody::installed(&stats.flow, set),
        packets: stats.counters.packets.unwrap_or(0),
        octets: stats.counters.octets.unwrap_or(0),
    };
    counters.flows.iter().map(body).collect()
}

#[cfg(test)]
mod tests {
    use dataplane::peer::{Peer, Peers};
    use dataplane::{PortNumbers, compile};
    use model::HostId;
    use model::spec::HostNetwork;
    use openflow::wire::FlowCounters;

    use super::*;

    fn stats(line: &str, packets: u64) -> FlowStats {
        let counters = FlowCounters { packets: Some(packets), octets: Some(packets * 60), ..FlowCounters::default() };
        FlowStats { flow: line.parse().unwrap(), counters }
    }

    /// Drops of one reason add up, the most frequent stands first, what never dropped anything is not named, and a flow that only marks a
    /// connection drops as well.
    #[test]
    fn drops_are_summed_by_reason() {
        let flows = [
            stats("table=0, priority=5, in_port=1, actions=drop", 2),
            stats("table=0, priority=5, in_port=2, actions=drop", 1),
            stats("table=26, priority=0, actions=ct(commit,zone=1,exec(set_field:1->ct_mark))", 9),
            stats("table=10, priority=0, actions=drop", 0),
            stats("table=10, priority=1, actions=goto_table:12", 100),
        ];
        let drops = drops(&flows, &FlowSet::default());
        let seen: Vec<(&str, u64, u64)> =
            drops.iter().map(|drop| (drop.table.as_str(), drop.packets, drop.octets)).collect();
        assert_eq!(seen, [("deny", 9, 540), ("classify", 3, 180)]);
        assert!(drops[0].reason.contains("rules"), "{:?}", drops[0]);
    }

    /// What comes from a host that has a tunnel port of its own came by the tunnel.
    #[test]
    fn ports_of_peers_are_the_tunnel() {
        let endpoint = |last| std::net::Ipv4Addr::new(192, 0, 2, last);
        let peer = |number| Peer { number: PortNo(number), is_heard: true, is_alive: true };
        let numbers = PortNumbers {
            vxlan: Some(PortNo(1)),
            peers: Peers::from([(endpoint(2), peer(7)), (endpoint(3), peer(8))]),
            ..PortNumbers::default()
        };
        let set = compile(&HostNetwork::empty(HostId::from_uuid(uuid::Uuid::nil()), endpoint(1)), &numbers);
        let port = |number, received| PortCounters {
            number: PortNo(number),
            packets: (received, 1),
            octets: (10 * received, 10),
            dropped: (u64::MAX, 0),
            errors: (0, 0),
        };
        let counters = Counters { ports: vec![port(1, 5), port(7, 20), port(8, 300)], flows: Vec::new() };
        let [tunnel] = &CountersBody::new(&counters, &set, &[]).ports[..] else { panic!("one tunnel") };
        assert_eq!((tunnel.name.as_str(), tunnel.ofport), ("tunnel", 1));
        assert_eq!(
            (tunnel.sent_packets, tunnel.sent_octets, tunnel.received_packets),
            (Some(325), Some(3250), Some(3))
        );
        assert_eq!(tunnel.dropped_packets, None);
    }

    /// The switch receives what the machine sends; all ones is no number.
    #[test]
    fn ports_are_seen_from_the_machine() {
        let counted = PortCounters {
            number: PortNo(3),
            packets: (1, 2),
            octets: (10, 20),
            dropped: (u64::MAX, 4),
            errors: (0, 0),
        };
        let port = PortCounted::new("web".to_owned(), None, &counted);
        assert_eq!((port.sent_packets, port.received_octets, port.dropped_packets), (Some(1), Some(20), None));
    }
}
