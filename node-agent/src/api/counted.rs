//! What the switch counted, in the users' words: packets of each port, and packets dropped, by reason.
//!
//! Pure: counters, flows and ports in, bodies out. "Sent" and "received" are the machine's view, which is the reverse of the switch's.

use std::collections::BTreeMap;

use dataplane::FlowSet;
use dataplane::cookie::{Cookie, Object};
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
    /// What rules of security groups and firewalls decided, the most first. A rule decides on the packets in the direction that a connection began
    /// in; replies need none.
    pub rules: Vec<RuleCounted>,
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

/// What a rule decided.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct RuleCounted {
    /// Whose rule: a security group, a rule of a firewall policy, or a router where no rule was for it.
    pub owner: String,
    /// What the rule says, with what shares its flows: rules with another group as the other side count together.
    pub rule: String,
    /// The number of a firewall rule; none for others.
    pub key: Option<u32>,
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
        Self {
            ports: ports.iter().filter_map(named).collect(),
            drops: drops(&counters.flows, set),
            rules: rules(&counters.flows, set),
        }
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

/// Whether a flow drops; one that marks a connection as dead on its way out drops too, and one that gives somebody a copy and no more.
fn is_drop(flow: &Flow) -> bool {
    let leads_on = |action: &Action| match action {
        Action::Ct(ct) => ct.table.is_some(),
        Action::Clone(_) => false,
        _ => true,
    };
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

/// What each rule decided: all its flows together, those that never met a packet too.
fn rules(flows: &[FlowStats], set: &FlowSet) -> Vec<RuleCounted> {
    let judges = [Table::Egress, Table::Ingress, Table::Firewall].map(Table::number);
    let mut sums: BTreeMap<(Object, &str), (u64, u64)> = BTreeMap::new();
    for stats in flows.iter().filter(|stats| judges.contains(&stats.flow.table)) {
        let object = Cookie::from_wire(stats.flow.cookie).map(|cookie| cookie.object);
        let note = set.entry(&stats.flow.key()).and_then(|entry| entry.note.as_deref());
        let is_clause = matches!(stats.flow.actions.first(), Some(Action::Conjunction { .. }));
        let (Some(object), Some(note), false) = (object.filter(|it| *it != Object::Pipeline), note, is_clause) else {
            continue;
        };
        let sum = sums.entry((object, note)).or_default();
        sum.0 = sum.0.saturating_add(stats.counters.packets.unwrap_or(0));
        sum.1 = sum.1.saturating_add(stats.counters.octets.unwrap_or(0));
    }
    let body = |((object, note), (packets, octets)): ((Object, &str), (u64, u64))| RuleCounted {
        owner: set.name_of(object).map_or_else(|| object.to_string(), str::to_owned),
        rule: note.to_owned(),
        key: if let Object::FirewallRule(key) = object { Some(key) } else { None },
        packets,
        octets,
    };
    let mut rules: Vec<RuleCounted> = sums.into_iter().map(body).collect();
    rules.sort_by(|one, other| {
        let by_name = || (&one.owner, &one.rule).cmp(&(&other.owner, &other.rule));
        other.packets.cmp(&one.packets).then_with(by_name)
    });
    rules
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
    use model::network::{Binding, Network, Port};
    use model::security::{Direction, Ethertype, PortRange, Protocol, Remote, Rule, SecurityGroup};
    use model::spec::HostNetwork;
    use model::{HostId, Mac, MachineId, NetworkId, PortId, RuleId, SecurityGroupId, Vni};
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

    fn group() -> SecurityGroup {
        let rule = |number: u128, protocol| Rule {
            id: RuleId::from_uuid(uuid::Uuid::from_u128(number << 96)),
            direction: Direction::Egress,
            ethertype: Ethertype::IPv4,
            protocol,
            remote: Remote::Any,
        };
        let (ports, id) = (PortRange::new(80, 82).unwrap(), SecurityGroupId::from_uuid(uuid::Uuid::from_u128(5)));
        let rules = vec![rule(1, Protocol::Tcp(ports)), rule(2, Protocol::Udp(ports))];
        SecurityGroup { id, name: "web".to_owned(), key: 1, stateful: true, rules }
    }

    /// All flows of a rule count together, whatever range of ports it has; one that met nothing is there with nothing.
    #[test]
    fn rules_are_counted_whole() {
        let here = HostId::from_uuid(uuid::Uuid::nil());
        let mut host = HostNetwork::empty(here, std::net::Ipv4Addr::LOCALHOST);
        let (network, group) = (NetworkId::from_uuid(uuid::Uuid::from_u128(2)), group());
        let vni = Vni::try_from(7).unwrap();
        host.networks.insert(
            network,
            Network { id: network, name: "n".to_owned(), vni, mtu: 1450, provider: None, routed_prefixes: Vec::new() },
        );
        let tunnel = host.tunnel;
        let machine = MachineId::from_uuid(uuid::Uuid::from_u128(3));
        let port = Port {
            id: PortId::from_uuid(uuid::Uuid::from_u128(4)),
            name: "p".to_owned(),
            network,
            key: 1,
            mac: Mac::new([2, 0, 0, 0, 0, 1]),
            addresses: Vec::new(),
            groups: vec![group.id],
            allowed_pairs: Vec::new(),
            qos: model::qos::Qos::default(),
            port_security: true,
            binding: Some(Binding { machine, hostname: "p".to_owned(), host: here, tunnel }),
            trunk: None,
            mirror: None,
            arriving: None,
        };
        host.groups.insert(group.id, group);
        host.ports.insert(port.id, port);
        let set = compile(&host, &PortNumbers::default());
        let stats = |flow: &Flow| {
            let is_tcp = flow.to_string().contains("tcp");
            let counters =
                FlowCounters { packets: Some(u64::from(is_tcp)), octets: Some(60), ..FlowCounters::default() };
            FlowStats { flow: flow.clone(), counters }
        };
        let flows: Vec<FlowStats> = set.flows().map(stats).collect();
        let counted = rules(&flows, &set);
        let seen: Vec<_> = counted.iter().map(|rule| (rule.owner.as_str(), rule.rule.as_str(), rule.packets)).collect();
        let want = [
            ("security group web", "allow tcp ports 80 to 82 to anyone (rule 00000001)", 2),
            ("security group web", "allow udp ports 80 to 82 to anyone (rule 00000002)", 0),
        ];
        assert_eq!(seen, want);
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
