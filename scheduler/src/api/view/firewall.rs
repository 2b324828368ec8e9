//! What firewall policies look like to an operator, and which of them a router has.

use model::firewall::{Carried, Firewall, FirewallAction, FirewallPolicy, FirewallRule};
use model::security::{Ethertype, PortRange};
use serde::Serialize;
use utoipa::ToSchema;

use super::{NamedRef, named};
use crate::centre::World;

/// A firewall policy.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FirewallPolicyView {
    id: String,
    name: String,
    /// Its rules in their order; what none is for is denied.
    rules: Vec<FirewallRuleView>,
}

/// A rule of a firewall policy.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FirewallRuleView {
    id: String,
    name: String,
    /// Number of the rule in flows.
    key: u32,
    enabled: bool,
    /// allow or deny.
    action: &'static str,
    ip_version: u8,
    /// any, tcp, udp, icmp, or a number.
    protocol: String,
    source_ip_address: Option<String>,
    destination_ip_address: Option<String>,
    /// A port or a range of them; any where there is none.
    source_port: Option<String>,
    destination_port: Option<String>,
}

/// The firewall of a router.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FirewallView {
    /// Of connections that begin outside; all are denied where there is none.
    ingress_firewall_policy: Option<NamedRef>,
    /// Of connections that begin behind the router; all are denied where there is none.
    egress_firewall_policy: Option<NamedRef>,
}

impl FirewallPolicyView {
    pub(super) fn of(_world: &World, policy: &FirewallPolicy) -> Self {
        let rules = policy.rules.iter().map(FirewallRuleView::of).collect();
        Self { id: policy.id.to_string(), name: policy.name.clone(), rules }
    }
}

impl FirewallRuleView {
    fn of(rule: &FirewallRule) -> Self {
        let (protocol, ends) = match rule.protocol {
            Carried::Any => ("any".to_owned(), None),
            Carried::Icmp => ("icmp".to_owned(), None),
            Carried::Tcp(ends) => ("tcp".to_owned(), Some(ends)),
            Carried::Udp(ends) => ("udp".to_owned(), Some(ends)),
            Carried::Number(number) => (number.to_string(), None),
        };
        Self {
            id: rule.id.to_string(),
            name: rule.name.clone(),
            key: rule.key,
            enabled: rule.enabled,
            action: match rule.action {
                FirewallAction::Allow => "allow",
                FirewallAction::Deny => "deny",
            },
            ip_version: if rule.ethertype == Ethertype::IPv4 { 4 } else { 6 },
            protocol,
            source_ip_address: rule.source.map(|prefix| prefix.to_string()),
            destination_ip_address: rule.destination.map(|prefix| prefix.to_string()),
            source_port: ends.and_then(|ends| ports(ends.source)),
            destination_port: ends.and_then(|ends| ports(ends.destination)),
        }
    }
}

impl FirewallView {
    pub(super) fn of(world: &World, firewall: Firewall) -> Self {
        let policy = |id| named(&world.intent.firewall_policies, &id);
        Self {
            ingress_firewall_policy: firewall.ingress.map(policy),
            egress_firewall_policy: firewall.egress.map(policy),
        }
    }
}

/// As it is written in requests; none for every port.
fn ports(range: PortRange) -> Option<String> {
    match (range.first(), range.last()) {
        (0, u16::MAX) => None,
        (first, last) if first == last => Some(first.to_string()),
        (first, last) => Some(format!("{first}:{last}")),
    }
}
