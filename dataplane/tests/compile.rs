//! The flows of known topologies as golden text, and what must hold of every flow set: legal, deterministic, and nothing left to change once
//! installed.

#[cfg(test)]
mod topology;

use std::collections::BTreeSet;
use std::path::Path;

use dataplane::peer::Peer;
use dataplane::{Installed, PortNumbers, compile, diff};
use model::balancer::monitor::{Check, Monitor};
use model::balancer::{Persistence, Transport};
use model::firewall::{Carried, FirewallAction};
use model::mirror::MirrorDirection;
use model::network::ForwardedProtocol;
use openflow::flow::{Action, Field, Flow, GroupKind, PortNo};
use proptest::prelude::{any, proptest};
use topology::random::{self, Random};
use topology::{Cloud, PING, tcp, two_subnets};

/// Holds text against the golden file, or writes the file when `UPDATE_GOLDEN` is set.
fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        assert!(std::fs::write(&path, text).is_ok(), "write {}", path.display());
        return;
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(want == text, "{} differs; set UPDATE_GOLDEN=1, run again and review the diff", path.display());
}

/// Both hosts of the two-subnet cloud, flow by flow.
#[test]
fn two_subnets_and_two_groups() {
    let cloud = two_subnets();
    for host in [0, 1] {
        let set = compile(&cloud.host(host), &cloud.numbers(host));
        golden(&format!("two-subnets-host-{}.flows", host + 1), &set.to_text());
    }
}

/// The same with IPv6 as well.
#[test]
fn dual_stack_on_one_host() {
    let cloud = topology::dual_stack();
    golden("dual-stack-host-1.flows", &compile(&cloud.host(0), &cloud.numbers(0)).to_text());
}

/// A group of many members in several sets, many masks: a conjunction instead of the product.
#[test]
fn a_remote_group_of_many_sets_is_a_conjunction() {
    let mut cloud = Cloud::default();
    let network = cloud.network("flat", "10.0.0.0/24");
    let member = cloud.group("member");
    let members = cloud.members(member);
    cloud.allow(member, tcp(1000, 1999), members);
    cloud.allow(member, PING, members);
    for number in 0..6_u8 {
        let extra = cloud.group(&format!("extra-{number}"));
        cloud.port(&format!("vm-{number}"), network, usize::from(number % 2), number + 10, &[member, extra]);
    }
    let set = compile(&cloud.host(0), &cloud.numbers(0));
    let clauses = set.flows().filter(|flow| flow.to_string().contains("conjunction(")).count();
    let masks = 1 + cloud.groups[member]
        .rules
        .iter()
        .map(|rule| match rule.protocol {
            model::security::Protocol::Tcp(range) => range.masks().len(),
            _ => 0,
        })
        .sum::<usize>();
    assert_eq!(clauses, 3 + 6 + masks, "three identities here, six in all, {masks} selectors");
    golden("remote-group.flows", &set.to_text());
}

/// Every flow and group is one that a switch takes, and reads back from its own text.
#[test]
fn flows_are_legal_and_read_back() {
    let cloud = two_subnets();
    let set = compile(&cloud.host(0), &cloud.numbers(0));
    for flow in set.flows() {
        flow.check().unwrap_or_else(|error| panic!("{flow}: {error}"));
        assert_eq!(&flow.to_string().parse::<Flow>().unwrap(), flow);
    }
    for group in set.groups() {
        group.check().unwrap_or_else(|error| panic!("{group}: {error}"));
    }
}

/// The kernel's data path can write no field of a neighbour message, and Open vSwitch refuses a whole bundle for one flow that does.
#[test]
fn no_flow_writes_what_the_kernel_cannot() {
    let mut outside = two_subnets();
    let outer = outside.network("outer", "203.0.113.0/24");
    outside.provide(outer, "dc", Some(100));
    outside.lead_out(0, outer);
    outside.float(0, 0, 50);
    outside.share(0, &[0, 1], 40);
    outside.forward(0, (ForwardedProtocol::Tcp, 8080), (2, 80));
    let mut unequal = outside.clone();
    unequal.float(0, 1, 51);
    for (network, mtu) in unequal.networks.iter_mut().zip([1450, 1300, 9000]) {
        network.mtu = mtu;
    }
    let mut elsewhere = unequal.clone();
    elsewhere.share(0, &[1], 40);
    let mut joined = unequal.clone();
    joined.trunk(2, 0, 7);
    let mut balanced = topology::dual_stack();
    for six in [false, true] {
        let front = balanced.balancer("front", 0, 100, six);
        balanced.listen(front, Transport::Tcp, 80, &[(0, 80, 1), (1, 80, 2), (3, 80, 1)]);
        balanced.listen(front, Transport::Udp, 53, &[(2, 53, 1)]);
    }
    balanced.balancers[0].listeners[0].persistence = Persistence::SourceIp;
    let checks = [[Check::http(), Check::UdpConnect], [Check::Tcp, Check::Ping]];
    for (front, checks) in balanced.balancers.iter_mut().zip(checks) {
        for (listener, check) in front.listeners.iter_mut().zip(checks) {
            listener.monitor = Some(Monitor::new(check));
        }
    }
    let mut walled = unequal.clone();
    let (ingress, egress) = walled.wall(0);
    walled.judge(ingress, 0, FirewallAction::Allow, topology::carried_tcp(80), (None, Some("10.0.1.0/24")));
    walled.judge(egress, 0, FirewallAction::Deny, Carried::Icmp, (None, None));
    let mut mirrored = joined.clone();
    for (port, to) in [(0, 3), (1, 2), (4, 3)] {
        mirrored.mirror(port, to, MirrorDirection::Both);
    }
    let mut watched = topology::dual_stack();
    watched.mirror(0, 3, MirrorDirection::Both);
    let clouds = [topology::dual_stack(), outside, unequal, elsewhere, joined, balanced, walled, mirrored, watched];
    let (mut kinds, mut copies) = (BTreeSet::new(), 0);
    for (cloud, host) in clouds.iter().flat_map(|cloud| [(cloud, 0), (cloud, 1), (cloud, 2)]) {
        let peer = |other: u32| Peer { number: PortNo(100 + other), is_heard: true, is_alive: true };
        let peers = [0, 1].map(|other| (topology::endpoint(other), peer(u32::try_from(other).unwrap())));
        let others = peers.into_iter().filter(|(endpoint, _)| *endpoint != topology::endpoint(host));
        let set = compile(&cloud.host(host), &PortNumbers { peers: others.collect(), ..cloud.numbers(host) });
        let failover = set.groups().filter(|group| group.kind == GroupKind::FastFailover);
        for bucket in failover.flat_map(|group| &group.buckets) {
            let is_plain =
                |action: &Action| matches!(action, Action::SetField(_) | Action::Resubmit { .. } | Action::Output(_));
            assert!(bucket.actions.iter().all(is_plain), "an action set keeps the last of the others: {bucket:?}");
            let last = |action: &Action| matches!(action, Action::Resubmit { .. } | Action::Output(_));
            assert_eq!(bucket.actions.iter().filter(|action| last(action)).count(), 1, "{bucket:?}");
        }
        kinds.extend(set.groups().map(|group| group.kind));
        for flow in set.flows() {
            let text = flow.to_string().to_lowercase();
            let (_, actions) = text.split_once("actions=").unwrap();
            assert!(!actions.contains("->nd_") && !actions.contains("->nxm_nx_nd"), "{flow}");
        }
        for copy in set.flows().flat_map(|flow| &flow.actions) {
            let Action::Clone(steps) = copy else { continue };
            copies += 1;
            let fields = [Field::InPort16, Field::TunId, Field::TunDst, Field::VlanVid];
            let is_plain = |action: &Action| match action {
                Action::SetField(set) => fields.contains(&set.field()),
                Action::PushVlan(_) | Action::Output(_) => true,
                _ => false,
            };
            assert!(steps.iter().all(is_plain), "{copy}");
            assert!(matches!(steps.last(), Some(Action::Output(port)) if *port != PortNo::IN_PORT), "{copy}");
        }
        for bucket in set.groups().filter(|group| group.kind == GroupKind::Select).flat_map(|group| &group.buckets) {
            let is_plain =
                |action: &Action| matches!(action, Action::Ct(_) | Action::SetField(_) | Action::Resubmit { .. });
            assert!(bucket.actions.iter().all(is_plain), "{bucket:?}");
        }
    }
    assert!(kinds.contains(&GroupKind::FastFailover) && copies > 0, "{kinds:?}, {copies} copies");
}

/// From nothing, from another state and from a state with foreign flows: applying the changes leaves nothing to change, and what is right stays.
#[test]
fn applied_changes_leave_nothing_to_change() {
    let mut cloud = two_subnets();
    let before = compile(&cloud.host(0), &cloud.numbers(0));
    let foreign: Flow = "table=0, priority=5, in_port=99 actions=NORMAL".parse().unwrap();
    let mut installed = Installed { flows: vec![foreign.clone()], ..Installed::default() };
    installed = installed.after(&diff(&before, &installed));
    let again = diff(&before, &installed);
    assert!(again.is_empty(), "{again:?}");
    assert_eq!((again.unchanged_flows, again.foreign.flows), (before.flows().len(), vec![foreign]));

    cloud.port("web-3", 0, 1, 33, &[0]);
    let after = compile(&cloud.host(0), &cloud.numbers(0));
    let changes = diff(&after, &installed);
    assert_eq!(changes.delete_flows, []);
    assert_eq!(changes.replaced_flows, 0);
    assert_eq!(changes.add_flows.len(), 4, "ARP, layer 2, layer 3, identity: {:#?}", changes.add_flows);
    assert!(diff(&after, &installed.after(&changes)).is_empty());
    let back = diff(&before, &installed.after(&changes));
    assert_eq!((back.delete_flows.len(), back.add_flows.len()), (4, 0));
}

/// A flow that somebody changed, and a group that somebody emptied, are put right.
#[test]
fn what_was_tampered_with_is_put_right() {
    let cloud = two_subnets();
    let set = compile(&cloud.host(0), &cloud.numbers(0));
    let mut installed = Installed::default().after(&diff(&set, &Installed::default()));
    installed.flows[3].actions.clear();
    installed.flows[3].cookie = 7;
    installed.groups[0].buckets.clear();
    let lost = installed.flows.remove(7);
    let changes = diff(&set, &installed);
    assert_eq!((changes.add_flows.len(), changes.replaced_flows, changes.modify_groups.len()), (2, 1, 1));
    assert!(changes.add_flows.iter().any(|flow| **flow == lost));
    assert!(diff(&set, &installed.after(&changes)).is_empty());
}

/// A host without ports has the fixed flows only.
#[test]
fn an_empty_host_has_the_fixed_flows_only() {
    let cloud = Cloud::default();
    golden("empty.flows", &compile(&cloud.host(0), &cloud.numbers(0)).to_text());
}

/// A network with more ports here than one group message can hold floods through groups of groups, and one port more changes one of them.
#[test]
fn a_large_network_floods_in_parts() {
    let mut cloud = Cloud::default();
    let network = cloud.network("large", "10.0.0.0/16");
    cloud.port("template", network, 0, 2, &[]);
    let template = cloud.ports.remove(0);
    let port = |number: u32| {
        let mut port = template.clone();
        port.id = model::PortId::from_uuid(uuid::Uuid::from_u128(u128::from(number)));
        port.key = number;
        let [_, _, high, low] = number.to_be_bytes();
        port.mac = model::Mac::new([2, 4, 0, 0, high, low]);
        port.addresses[0].address = std::net::Ipv4Addr::new(10, 0, 10 + high, low).into();
        port
    };
    cloud.ports = (1..=2000).map(port).collect();
    let set = compile(&cloud.host(0), &cloud.numbers(0));
    for group in set.groups() {
        let octets = group.buckets.len() * 80;
        assert!(octets < usize::from(u16::MAX), "{} buckets in group {:#x}", group.buckets.len(), group.id);
    }
    let copies = |set: &dataplane::FlowSet| {
        let all = set.groups().flat_map(|group| &group.buckets).flat_map(|bucket| &bucket.actions);
        all.filter(|action| matches!(action, openflow::flow::Action::Resubmit { .. })).count()
    };
    assert_eq!(copies(&set), 2000, "each port once");
    cloud.ports.push(port(2001));
    let more = compile(&cloud.host(0), &cloud.numbers(0));
    assert_eq!((copies(&more), set.differences(&more).groups.len()), (2001, 1));
}

/// A network of many ports with a remote group costs a few flows a port, and is compiled in no time.
#[test]
fn flows_grow_with_ports_and_not_with_their_product() {
    let mut counts = Vec::new();
    for ports in [50_u8, 200] {
        let mut cloud = Cloud::default();
        let (left, right) = (cloud.network("left", "10.0.1.0/24"), cloud.network("right", "10.0.2.0/24"));
        cloud.router("main", &[left, right]);
        let group = cloud.group("all");
        let members = cloud.members(group);
        cloud.allow(group, tcp(1, 1000), members);
        for number in 0..ports {
            let network = if number % 2 == 0 { left } else { right };
            cloud.port(&format!("vm-{number}"), network, usize::from(number % 4 < 2), number + 2, &[group]);
        }
        counts.push(compile(&cloud.host(0), &cloud.numbers(0)).flows().len());
    }
    let more = counts[1] - counts[0];
    assert!(more <= 150 * 15 / 2, "{more} flows for 150 ports, half of them here");
}

proptest! {
    /// From the flows of any cloud to those of any other: what is applied leaves nothing to change, a second compile gives the same set, and
    /// every flow is one that a switch takes.
    #[test]
    fn any_cloud_follows_any_other(before in any::<u64>(), after in any::<u64>()) {
        let set = |seed: u64| {
            let cloud = random::cloud(&mut Random::new(seed));
            let set = compile(&cloud.host(0), &cloud.numbers(0));
            assert_eq!(set, compile(&cloud.host(0), &cloud.numbers(0)));
            set
        };
        let (before, after) = (set(before), set(after));
        let installed = Installed::default().after(&diff(&before, &Installed::default()));
        let changes = diff(&after, &installed);
        let installed = installed.after(&changes);
        assert!(diff(&after, &installed).is_empty());
        assert_eq!(installed.flows, after.flows().cloned().collect::<Vec<_>>());
        for flow in after.flows() {
            flow.check().unwrap_or_else(|error| panic!("{flow}: {error}"));
            let clauses = flow.actions.iter().filter_map(|action| match action {
                openflow::flow::Action::Conjunction { id, .. } => Some(*id),
                _ => None,
            });
            let clauses: Vec<u32> = clauses.collect();
            let mut once = clauses.clone();
            once.dedup();
            assert_eq!(clauses, once, "the switch counts {flow} as one clause met");
        }
    }
}
