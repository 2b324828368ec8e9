//! From rules to matches: what a rule says of a packet, but for the identities of the two sides.
//!
//! IPv4 only, as the pipeline is: an IPv6 rule yields nothing.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use model::SecurityGroupId;
use model::security::{Direction, Ethertype, PortRange, Protocol, Remote, Rule, SecurityGroup};
use openflow::flow::{Field, Match, ip_proto};

use crate::compile::view::View;

/// All rules of a group whose other side is one other group.
pub(super) struct RemoteRule<'a> {
    pub(super) group: &'a SecurityGroup,
    pub(super) selectors: Vec<(Match, String)>,
}

/// Matches and words of the rules whose other side is anyone or a prefix.
pub(super) fn plain_rules(group: &SecurityGroup, direction: Direction) -> Vec<(Match, String)> {
    let mut matches = Vec::new();
    for rule in rules(group, direction) {
        let prefix = match rule.remote {
            Remote::Any => Ipv4Net::default(),
            Remote::Prefix(IpNet::V4(prefix)) => prefix.trunc(),
            Remote::Prefix(IpNet::V6(_)) | Remote::Group(_) => continue,
        };
        let note = words(rule, &if prefix.prefix_len() == 0 { "anyone".to_owned() } else { prefix.to_string() });
        for selector in selectors(rule.protocol) {
            matches.push((with_prefix(selector, direction, prefix), note.clone()));
        }
    }
    matches
}

/// The rules whose other side is a group, by that group.
pub(super) fn remote_rules<'a>(view: &View<'a>, group: &SecurityGroup, direction: Direction) -> Vec<RemoteRule<'a>> {
    let mut remotes: BTreeMap<SecurityGroupId, RemoteRule<'a>> = BTreeMap::new();
    for rule in rules(group, direction) {
        let Remote::Group(id) = rule.remote else { continue };
        let Some(other) = view.group(id) else { continue };
        let note = words(rule, &format!("members of {}", other.name));
        let remote = remotes.entry(id).or_insert_with(|| RemoteRule { group: other, selectors: Vec::new() });
        for selector in selectors(rule.protocol) {
            if !remote.selectors.iter().any(|(other, _)| *other == selector) {
                remote.selectors.push((selector, note.clone()));
            }
        }
    }
    remotes.into_values().collect()
}

fn rules(group: &SecurityGroup, direction: Direction) -> impl Iterator<Item = &Rule> {
    group.rules.iter().filter(move |rule| rule.direction == direction && rule.ethertype == Ethertype::IPv4)
}

fn with_prefix(matching: Match, direction: Direction, prefix: Ipv4Net) -> Match {
    let (network, length): (Ipv4Addr, u8) = (prefix.network(), prefix.prefix_len());
    match direction {
        Direction::Egress => matching.ipv4_dst_net(network, length),
        Direction::Ingress => matching.ipv4_src_net(network, length),
    }
}

/// What a protocol says of a packet: one match, or one for each mask of a range of ports.
fn selectors(protocol: Protocol) -> Vec<Match> {
    let ranged = |matching: &Match, field: Field, range: PortRange| -> Vec<Match> {
        range.masks().into_iter().map(|(value, mask)| matching.clone().with_masked(field, value, mask)).collect()
    };
    match protocol {
        Protocol::Any => vec![Match::new().ip()],
        Protocol::Tcp(range) => ranged(&Match::new().tcp(), Field::TcpDst, range),
        Protocol::Udp(range) => ranged(&Match::new().udp(), Field::UdpDst, range),
        Protocol::Icmp { kind, code } => {
            let matching = Match::new().ip().ip_proto(ip_proto::ICMP);
            let matching = kind.map_or(matching.clone(), |kind| matching.with(Field::IcmpType, kind));
            vec![code.map_or(matching.clone(), |code| matching.with(Field::IcmpCode, code))]
        }
        Protocol::Number(number) => vec![Match::new().ip().ip_proto(number)],
    }
}

/// A rule as an owner would say it.
fn words(rule: &Rule, other: &str) -> String {
    let what = match rule.protocol {
        Protocol::Any => "anything".to_owned(),
        Protocol::Tcp(range) => format!("tcp {}", ports(range)),
        Protocol::Udp(range) => format!("udp {}", ports(range)),
        Protocol::Icmp { kind: None, .. } => "icmp".to_owned(),
        Protocol::Icmp { kind: Some(kind), code: None } => format!("icmp type {kind}"),
        Protocol::Icmp { kind: Some(kind), code: Some(code) } => format!("icmp type {kind} code {code}"),
        Protocol::Number(number) => format!("IP protocol {number}"),
    };
    let way = match rule.direction {
        Direction::Egress => "to",
        Direction::Ingress => "from",
    };
    format!("allow {what} {way} {other} (rule {})", rule.id.short())
}

fn ports(range: PortRange) -> String {
    match (range.first(), range.last()) {
        (0, u16::MAX) => "any port".to_owned(),
        (first, last) if first == last => format!("port {first}"),
        (first, last) => format!("ports {first} to {last}"),
    }
}
