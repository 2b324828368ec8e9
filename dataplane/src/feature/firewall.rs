//! Perimeter firewalls: what crosses the border of a router is judged by the rules of its policies, in their order, on the host that translates it.
//!
//! That host (of the port for a floating IP, the gateway for the router's own address and its forwarded ports) is the only one that sees both directions
//! of every connection, whatever the security of the port: so there, in a conntrack zone of the router's own, connections are remembered. Replies pass,
//! and errors about a connection that lives; everything else asks the rules again, so that a change cuts what it does not allow any more, as with security groups.
//! Rules see addresses and ports as they are behind the router: what leaves is judged before its source is translated, what comes in after its
//! destination was. Security groups judge beside that: what leaves before, what comes in after. What stays behind the router never gets here.
//! A rule is a flow for each match of its ports; its rank in the policy is the flow's priority, so that a rule between two others touches its own flows only.
//! Invariant: nothing crosses the border of a router with a firewall but what its rules allow, or have allowed: without a zone, nothing does.
//!
//! ```text
//! output (leaving) -----ct(zone)--\          /--reply, alive----------------\          /--> output, with the source translated
//! forward (to a floating IP) -----> firewall ---rules, first match: allow--> border --> track
//! nat (an answer, or forwarded) --/          \--deny, or no rule: deny        \-------> route
//! ```
//!
//! Source: ADR 11; the words are those of OpenStack's FWaaS v2.

use ipnet::IpNet;
use model::RouterId;
use model::firewall::{Carried, Ends, FirewallAction, FirewallPolicy, FirewallRule, RANK_MAX};
use model::network::Router;
use model::security::Direction;
use openflow::flow::{Action, Ct, CtZone, Field, Flow, Match, Subfield, ct_state, ip_proto};
use openflow::wire::CtFlush;

use crate::compile::view::View;
use crate::cookie::{Cookie, Object};
use crate::family::{self, FAMILIES, Family};
use crate::feature::Feature;
use crate::feature::floating::raise;
use crate::flow_set::Part;
use crate::register::{FLAG_BITS, FROM_PHYSICAL, LEAVING, LET_OUT, MARK_DEAD, ROUTER, ZONE};
use crate::table::Table;

/// Above all that leads out, but for what no machine may send.
const JUDGE: u16 = 405;
const INVALID: u16 = 65_030;
const KNOWN: u16 = 65_020;
/// What the last place of a policy has; others are above it.
const LAST: u16 = 100;
const CLOSED: u16 = 10;
/// ICMP, UDP, GRE and ESP (IANA, Assigned Internet Protocol Numbers).
const SILENT: [u8; 4] = [ip_proto::ICMP, ip_proto::UDP, 47, 50];
const REMEMBER: u16 = 110;
const ONWARD: u16 = 100;

/// What is said of a packet that no rule is for.
pub(crate) const NO_RULE: &str = "no firewall rule of it is for this";
/// What is said where a direction has no policy.
pub(crate) const NO_POLICY: &str = "its firewall has no policy for this direction";
/// What is said of a packet that a rule denies.
pub(crate) const DENIES: &str = "does not allow it";

pub(crate) fn host(part: &mut Part) {
    part.add_miss(Table::Firewall);
    part.add_miss(Table::Border);
}

/// Names the rules of a policy.
pub(crate) fn policy(policy: &FirewallPolicy, part: &mut Part) {
    for rule in &policy.rules {
        part.name(Object::FirewallRule(rule.key), format!("firewall rule {} of policy {}", rule.name, policy.name));
    }
}

/// The firewall of a router, where this host translates for it.
pub(crate) fn router(view: &View<'_>, router: &Router, part: &mut Part) -> Option<()> {
    let firewall = router.firewall?;
    if !view.is_near_router(router.id) {
        return Some(());
    }
    let cookie = Cookie { feature: Feature::Firewall, object: Object::Router(router.key.into()) };
    let leaving = flagged(router, Match::new(), LEAVING.mask, LEAVING.mask | LET_OUT.mask);
    let Some(zone) = view.firewall_zone(router.id) else {
        let note = "its firewall can remember no connection here".to_owned();
        part.add_noted(Table::Output, JUDGE, leaving, Vec::new(), (cookie, note));
        return Some(());
    };
    for family in FAMILIES {
        let leaving = flagged(router, family.packets(), LEAVING.mask, LEAVING.mask | LET_OUT.mask);
        let note = "its firewall is asked".to_owned();
        part.add_noted(Table::Output, JUDGE, leaving, ask(zone).into(), (cookie, note));
    }
    let wall = Wall { view, router, cookie };
    wall.add_known(part);
    for direction in [Direction::Ingress, Direction::Egress] {
        let policy = firewall.policy(direction).and_then(|id| view.firewall_policy(id));
        let closed = wall.of(direction, Match::new());
        let note = if policy.is_some() { NO_RULE } else { NO_POLICY };
        part.add_noted(Table::Firewall, CLOSED, closed, goto(Table::Deny), (cookie, note.to_owned()));
        for rule in policy.iter().flat_map(|policy| &policy.rules).filter(|rule| rule.enabled) {
            wall.add_rule(rule, direction, part);
        }
    }
    wall.add_border(part);
    Some(())
}

/// What a packet does that comes in over the border of a router, instead of going `onward`: its firewall is asked first, if it has one.
pub(crate) fn inward(view: &View<'_>, router: &Router, onward: Vec<Action>) -> Vec<Action> {
    past(view, router.firewall.map(|_| (router.id, router.key)), onward)
}

/// The same, of a router with a firewall that is known by its identity and its key, or of one without.
pub(crate) fn past(view: &View<'_>, border: Option<(RouterId, u16)>, onward: Vec<Action>) -> Vec<Action> {
    let Some((router, key)) = border else { return onward };
    let Some(zone) = view.firewall_zone(router) else { return Vec::new() };
    [Action::set(ROUTER.field, key)].into_iter().chain(ask(zone)).collect()
}

/// Through the connection tracker, and on to the rules.
fn ask(zone: u16) -> [Action; 2] {
    [Action::set(ZONE.field, zone), Action::ct(Ct::track(this_zone(), Table::Firewall.number()))]
}

fn this_zone() -> CtZone {
    CtZone::From(Subfield::new(ZONE.field, 0, 16).unwrap_or(Subfield::whole(ZONE.field)))
}

fn goto(table: Table) -> Vec<Action> {
    vec![Action::GotoTable(table.number())]
}

/// The zone in which a flow has what leaves remembered, and the router, if it is that of a firewall.
pub(crate) fn zone(flow: &Flow) -> Option<(u16, u128)> {
    let [Action::SetField(zone), Action::Ct(ct)] = flow.actions.as_slice() else { return None };
    let is_ours = flow.table == Table::Output.number() && ct.table == Some(Table::Firewall.number());
    let number = u16::try_from(zone.value()).ok().filter(|_| is_ours && zone.field() == ZONE.field)?;
    Some((number, flow.matching.exact(ROUTER.field)?))
}

/// The router for which a flow is a rule that sends packets there: to the border, or to be denied.
pub(crate) fn judges(flow: &Flow, to: Table) -> Option<u128> {
    let is_rule = flow.table == Table::Firewall.number() && (LAST..INVALID.min(KNOWN)).contains(&flow.priority);
    let router = flow.matching.exact(ROUTER.field).filter(|_| is_rule)?;
    (flow.actions == goto(to)).then_some(router)
}

/// What the connection tracker is to forget of a zone when its firewall allows less: of these protocols one end may go on for long without a word of the
/// other, whose next packet asks the rules. TCP acknowledges what it hears.
pub(crate) fn silent(zone: u16) -> impl Iterator<Item = CtFlush> {
    SILENT.into_iter().map(move |proto| CtFlush { zone: Some(zone), proto, ..CtFlush::default() })
}

/// Packets of a router with these flags among those.
fn flagged(router: &Router, matching: Match, flags: u32, among: u32) -> Match {
    matching.with(ROUTER.field, router.key).with_masked(FLAG_BITS.field, flags, among)
}

/// The firewall of one router.
struct Wall<'a> {
    view: &'a View<'a>,
    router: &'a Router,
    cookie: Cookie,
}

impl Wall<'_> {
    /// What begins outside, or behind the router.
    fn of(&self, direction: Direction, matching: Match) -> Match {
        let leaving = if direction == Direction::Egress { LEAVING.mask } else { 0 };
        flagged(self.router, matching, leaving, LEAVING.mask)
    }

    /// What needs no rule.
    fn add_known(&self, part: &mut Part) {
        use ct_state::{ESTABLISHED, INVALID as STRAY, NEW, RELATED, REPLY, TRACKED};
        let of_router = || Match::new().with(ROUTER.field, self.router.key);
        let stray = of_router().ct_state(TRACKED | STRAY, 0);
        let note = "the connection tracker finds the packet invalid".to_owned();
        part.add_noted(Table::Firewall, INVALID, stray, Vec::new(), (self.cookie, note));
        let known = [
            (ESTABLISHED | REPLY, "reply of a connection that its firewall allowed"),
            (RELATED, "about a connection that its firewall allowed"),
        ];
        for (state, note) in known {
            let alive = of_router().ct_state(TRACKED | state, NEW | STRAY).with_masked(Field::CtMark, 0, MARK_DEAD);
            part.add_noted(Table::Firewall, KNOWN, alive, goto(Table::Border), (self.cookie, note.to_owned()));
        }
    }

    fn add_rule(&self, rule: &FirewallRule, direction: Direction, part: &mut Part) {
        let cookie = Cookie { feature: Feature::Firewall, object: Object::FirewallRule(rule.key) };
        let priority = LAST + RANK_MAX.saturating_sub(rule.rank);
        let way = if direction == Direction::Egress { "out" } else { "in" };
        let name = &self.router.name;
        let (next, note) = match rule.action {
            FirewallAction::Allow => (Table::Border, format!("router {name} lets it {way}")),
            FirewallAction::Deny => (Table::Deny, format!("router {name} {DENIES} {way}")),
        };
        for matching in selectors(rule) {
            part.add_noted(Table::Firewall, priority, self.of(direction, matching), goto(next), (cookie, note.clone()));
        }
    }

    /// What is allowed is remembered, and goes on where it was.
    fn add_border(&self, part: &mut Part) {
        use ct_state::{ESTABLISHED, NEW, REPLY, TRACKED};
        let feet = self.router.interfaces.iter().filter_map(|foot| self.view.subnet_of(foot));
        let Some(inside) = feet.filter_map(|(_, network)| self.view.zone(network.id)).next() else { return };
        // What the tracker said here is nothing to those who ask about another zone next, or about none.
        let back = || [Action::CtClear, Action::set(ZONE.field, inside)].into_iter();
        let to_track = [Action::set(ROUTER.field, 0_u32), Action::GotoTable(Table::Track.number())];
        let ways = [
            (LEAVING.mask, vec![raise(LET_OUT), Action::GotoTable(Table::Output.number())], "out, as it was going"),
            (FROM_PHYSICAL.mask, back().chain(to_track).collect(), "in, to its port"),
            (0, back().chain([Action::resubmit(Table::Route.number())]).collect(), "in, to be routed"),
        ];
        for (flag, onward, note) in ways {
            let of_way = |matching: Match| flagged(self.router, matching, flag, LEAVING.mask | FROM_PHYSICAL.mask);
            let mut add = |priority, matching, first: Option<Action>, note: String| {
                let steps = first.into_iter().chain(onward.clone()).collect();
                part.add_noted(Table::Border, priority, of_way(matching), steps, (self.cookie, note));
            };
            for family in FAMILIES {
                let new = family.packets().ct_state(TRACKED | NEW, 0);
                let commit = Action::ct(Ct::commit(this_zone()));
                add(REMEMBER, new, Some(commit), format!("a new connection, remembered for its replies; {note}"));
                let again = family.packets().ct_state(TRACKED | ESTABLISHED, REPLY);
                let again = again.with_masked(Field::CtMark, MARK_DEAD, MARK_DEAD);
                let write = Action::set_masked(Field::CtMark, 0_u32, MARK_DEAD);
                let revive = Action::ct(Ct { actions: vec![write], ..Ct::commit(this_zone()) });
                add(REMEMBER, again, Some(revive), format!("allowed again; {note}"));
            }
            add(ONWARD, Match::new(), None, note.to_owned());
        }
    }
}

/// What a rule says of a packet: one match, or one for each pair of masks of its ranges of ports.
fn selectors(rule: &FirewallRule) -> Vec<Match> {
    let family = Family::from(rule.ethertype);
    let some = |prefix: Option<IpNet>| prefix.filter(|prefix| prefix.prefix_len() > 0);
    let matching = family.packets();
    let matching = some(rule.source).map_or(matching.clone(), |prefix| family::from_net(matching, prefix));
    let matching = some(rule.destination).map_or(matching.clone(), |prefix| family::to_net(matching, prefix));
    match rule.protocol {
        Carried::Any => vec![matching],
        Carried::Icmp => vec![matching.ip_proto(family.icmp())],
        Carried::Number(number) => vec![matching.ip_proto(number)],
        Carried::Tcp(ends) => ranged(&matching.ip_proto(ip_proto::TCP), (Field::TcpSrc, Field::TcpDst), ends),
        Carried::Udp(ends) => ranged(&matching.ip_proto(ip_proto::UDP), (Field::UdpSrc, Field::UdpDst), ends),
    }
}

fn ranged(matching: &Match, (source, target): (Field, Field), ends: Ends) -> Vec<Match> {
    let mut matches = Vec::new();
    for (from, from_mask) in ends.source.masks() {
        for (to, to_mask) in ends.destination.masks() {
            let from = matching.clone().with_masked(source, from, from_mask);
            matches.push(from.with_masked(target, to, to_mask));
        }
    }
    matches
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::FirewallRuleId;
    use model::security::{Ethertype, PortRange};
    use openflow::flow::eth_type;
    use proptest::prelude::{any, proptest};
    use std::net::Ipv6Addr;
    use uuid::Uuid;

    fn rule(protocol: Carried, source: Option<&str>, destination: Option<&str>) -> FirewallRule {
        FirewallRule {
            id: FirewallRuleId::from_uuid(Uuid::nil()),
            name: "r".to_owned(),
            key: 1,
            rank: 1,
            enabled: true,
            action: FirewallAction::Allow,
            ethertype: Ethertype::IPv6,
            protocol,
            source: source.map(|prefix| prefix.parse().unwrap()),
            destination: destination.map(|prefix| prefix.parse().unwrap()),
        }
    }

    fn is_met(rule: &FirewallRule, ends: (Ipv6Addr, Ipv6Addr), (protocol, from, to): (u8, u16, u16)) -> bool {
        let value = |field: Field| match field {
            Field::EthType => eth_type::IPV6.into(),
            Field::IpProto => protocol.into(),
            Field::Ipv6Src => ends.0.to_bits(),
            Field::Ipv6Dst => ends.1.to_bits(),
            Field::TcpSrc | Field::UdpSrc => from.into(),
            Field::TcpDst | Field::UdpDst => to.into(),
            _ => 0,
        };
        let met = selectors(rule).iter().filter(|matching| matching.is_met(value)).count();
        assert!(met <= 1, "matches of one rule do not overlap");
        met == 1
    }

    #[test]
    fn rules_of_ipv6_match_both_ends() {
        let [inside, outside] = ["2001:db8:1::5", "2001:db8:2::5"].map(|text| text.parse().unwrap());
        let to_tcp = (ip_proto::TCP, 40_000, 443);
        let any = rule(Carried::Any, None, Some("::/0"));
        assert!(is_met(&any, (inside, outside), to_tcp));
        let from = rule(Carried::Any, Some("2001:db8:1::/48"), None);
        assert!(is_met(&from, (inside, outside), to_tcp) && !is_met(&from, (outside, inside), to_tcp));
        let icmp = rule(Carried::Icmp, None, Some("2001:db8:2::/48"));
        assert!(is_met(&icmp, (inside, outside), (ip_proto::ICMPV6, 0, 0)));
        assert!(!is_met(&icmp, (inside, outside), (ip_proto::ICMP, 0, 0)));
        let other = rule(Carried::Number(47), None, None);
        assert!(is_met(&other, (inside, outside), (47, 0, 0)) && !is_met(&other, (inside, outside), to_tcp));
    }

    proptest! {
        /// Two ranges of ports match just the pairs of ports that are in both.
        #[test]
        fn ranges_match_pairs_of_ports(a in any::<[u16; 2]>(), b in any::<[u16; 2]>(), from in any::<u16>(), to in any::<u16>()) {
            let range = |ends: [u16; 2]| PortRange::new(ends[0].min(ends[1]), ends[0].max(ends[1])).unwrap();
            let ends = Ends { source: range(a), destination: range(b) };
            let rule = rule(Carried::Udp(ends), None, None);
            let here = Ipv6Addr::LOCALHOST;
            for (from, to) in [(from, to), (a[0], b[0]), (a[0].wrapping_sub(1), b[1]), (a[1], b[1].wrapping_add(1))] {
                let want = ends.source.holds(from) && ends.destination.holds(to);
                assert_eq!(is_met(&rule, (here, here), (ip_proto::UDP, from, to)), want);
            }
        }
    }
}
