//! From rules to matches: what a rule says of a packet, but for the identities of the two sides.
//!
//! A rule speaks of one version of IP. A prefix of the other version, which no checked specification holds, yields nothing.

use std::collections::BTreeMap;

use model::security::{Direction, PortRange, Protocol, Remote, Rule, SecurityGroup};
use openflow::flow::{Field, Match, ip_proto};

use crate::compile::view::{Other, View};
use crate::family::{self, Family};

/// All rules of a group whose other side is one other group, or one address group.
pub(super) struct RemoteRule {
    pub(super) other: Other,
    /// The other side in the users' words.
    pub(super) name: String,
    pub(super) selectors: Vec<(Match, String)>,
}

/// Matches and words of the rules whose other side is anyone or a prefix.
pub(super) fn plain_rules(group: &SecurityGroup, direction: Direction) -> Vec<(Match, String)> {
    let mut matches = Vec::new();
    for rule in rules(group, direction) {
        let prefix = match rule.remote {
            Remote::Any => None,
            Remote::Prefix(prefix) if rule.ethertype.holds(prefix) => Some(prefix.trunc()),
            Remote::Prefix(_) | Remote::Group(_) | Remote::Addresses(_) => continue,
        };
        let prefix = prefix.filter(|prefix| prefix.prefix_len() > 0);
        let note = words(rule, &prefix.map_or_else(|| "anyone".to_owned(), |prefix| prefix.to_string()));
        for selector in selectors(rule) {
            let matching = match (prefix, direction) {
                (None, _) => selector,
                (Some(prefix), Direction::Egress) => family::to_net(selector, prefix),
                (Some(prefix), Direction::Ingress) => family::from_net(selector, prefix),
            };
            matches.push((matching, note.clone()));
        }
    }
    matches
}

/// The rules whose other side is a group or an address group, by that.
pub(super) fn remote_rules(view: &View<'_>, group: &SecurityGroup, direction: Direction) -> Vec<RemoteRule> {
    let mut remotes: BTreeMap<Other, RemoteRule> = BTreeMap::new();
    for rule in rules(group, direction) {
        let Some(other) = Other::of(rule.remote) else { continue };
        let (name, sides) = match other {
            Other::Group(id) => (view.group(id).map(|group| group.name.as_str()), "members"),
            Other::Addresses(id) => (view.name_of_addresses(id), "addresses"),
        };
        let Some(name) = name else { continue };
        let note = words(rule, &format!("{sides} of {name}"));
        let remote =
            remotes.entry(other).or_insert_with(|| RemoteRule { other, name: name.to_owned(), selectors: Vec::new() });
        for selector in selectors(rule) {
            if !remote.selectors.iter().any(|(other, _)| *other == selector) {
                remote.selectors.push((selector, note.clone()));
            }
        }
    }
    remotes.into_values().collect()
}

fn rules(group: &SecurityGroup, direction: Direction) -> impl Iterator<Item = &Rule> {
    group.rules.iter().filter(move |rule| rule.direction == direction)
}

/// What a rule says of a packet, but for its two sides: one match, or one for each mask of a range of ports.
fn selectors(rule: &Rule) -> Vec<Match> {
    let family = Family::from(rule.ethertype);
    let ranged = |number: u8, field: Field, range: PortRange| -> Vec<Match> {
        let matching = family.packets().ip_proto(number);
        range.masks().into_iter().map(|(value, mask)| matching.clone().with_masked(field, value, mask)).collect()
    };
    match rule.protocol {
        Protocol::Any => vec![family.packets()],
        Protocol::Tcp(range) => ranged(ip_proto::TCP, Field::TcpDst, range),
        Protocol::Udp(range) => ranged(ip_proto::UDP, Field::UdpDst, range),
        Protocol::Icmp { kind, code } => {
            let matching = family.packets().ip_proto(family.icmp());
            let matching = kind.map_or(matching.clone(), |kind| matching.with(family.icmp_type(), kind));
            vec![code.map_or(matching.clone(), |code| matching.with(family.icmp_code(), code))]
        }
        Protocol::Number(number) => vec![family.packets().ip_proto(number)],
    }
}

/// A rule as an owner would say it.
pub(crate) fn words(rule: &Rule, other: &str) -> String {
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
    let version = match Family::from(rule.ethertype) {
        Family::V4 => "",
        Family::V6 => " over IPv6",
    };
    format!("allow {what}{version} {way} {other} (rule {})", rule.id.short())
}

fn ports(range: PortRange) -> String {
    match (range.first(), range.last()) {
        (0, u16::MAX) => "any port".to_owned(),
        (first, last) if first == last => format!("port {first}"),
        (first, last) => format!("ports {first} to {last}"),
    }
}
