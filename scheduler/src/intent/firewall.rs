//! Firewall policies and their rules, and which policies routers have at their borders.
//!
//! Owns the checks of a request; what a policy must be is the model's to say. Invariant: a policy that a router has is never gone.

use std::sync::Arc;

use ipnet::IpNet;
use model::firewall::{Carried, Ends, Firewall, FirewallAction, FirewallPolicy, FirewallRule};
use model::security::{Ethertype, PortRange};
use model::{FirewallPolicyId, FirewallRuleId, RouterId};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{Context, Intent, check_name, check_word, clip, find, refuse_users};
use crate::refusal::Refusal;

/// A firewall policy to make: without a rule, so it denies everything.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewFirewallPolicy {
    /// Its name.
    name: String,
}

/// A rule to put into a policy: of those that are for a packet the first decides, and what none is for is denied. Addresses and ports are those behind the
/// router, whatever it translates.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewFirewallRule {
    /// Its name: unique in the policy.
    name: String,
    /// `allow` or `deny`.
    #[schema(value_type = String, example = "allow")]
    action: FirewallAction,
    /// `any` (unless said), `tcp`, `udp`, `icmp`, or an IP protocol number.
    protocol: Option<String>,
    /// 4 (unless said) or 6.
    ip_version: Option<u8>,
    /// Who sends; anyone unless said.
    #[schema(value_type = Option<String>, example = "198.51.100.0/24")]
    source_ip_address: Option<IpNet>,
    /// Who is to have it; anyone unless said.
    #[schema(value_type = Option<String>, example = "10.1.0.5/32")]
    destination_ip_address: Option<IpNet>,
    /// A port or a range of them, as 80 or 8000:8999; for tcp and udp.
    source_port: Option<String>,
    /// A port or a range of them, as 80 or 8000:8999; for tcp and udp.
    #[schema(example = "8000:8999")]
    destination_port: Option<String>,
    /// Whether it is asked at all; it is, unless said.
    enabled: Option<bool>,
    /// The rule that it goes right before.
    insert_before: Option<String>,
    /// The rule that it goes right after; it goes last where neither is said.
    insert_after: Option<String>,
}

/// A change of a rule.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FirewallRuleChange {
    /// Whether it is asked at all.
    enabled: Option<bool>,
    /// `allow` or `deny`.
    #[schema(value_type = Option<String>)]
    action: Option<FirewallAction>,
}

/// The firewall of a router: what crosses its border is judged from then on. A direction without a policy is closed.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewFirewall {
    /// The policy of connections that begin outside, by name or id.
    ingress_firewall_policy: Option<String>,
    /// The policy of connections that begin behind the router, by name or id.
    egress_firewall_policy: Option<String>,
}

impl Intent {
    /// Makes a firewall policy.
    pub(crate) fn create_firewall_policy(
        &mut self,
        context: &mut Context<'_>,
        new: &NewFirewallPolicy,
    ) -> Result<FirewallPolicyId, Refusal> {
        check_name(&self.firewall_policies, &new.name)?;
        let id = FirewallPolicyId::from_uuid((context.draw)());
        let policy = FirewallPolicy { id, name: new.name.clone(), rules: Vec::new() };
        self.firewall_policies.insert(id, Arc::new(policy));
        Ok(id)
    }

    /// Forgets a firewall policy that no router has.
    pub(crate) fn delete_firewall_policy(&mut self, name: &str) -> Result<(), Refusal> {
        let (id, policy) = find(&self.firewall_policies, name, None)?;
        let has_it = |firewall: &Firewall| firewall.policies().any(|other| other == id);
        let users = self.routers.values().filter(|router| router.firewall.as_ref().is_some_and(has_it));
        refuse_users(
            format!("firewall policy {}", policy.name),
            users.map(|router| format!("router {}", router.name)),
        )?;
        self.firewall_policies.remove(&id);
        Ok(())
    }

    /// Puts a rule into a policy.
    pub(crate) fn add_firewall_rule(
        &mut self,
        context: &mut Context<'_>,
        name: &str,
        new: &NewFirewallRule,
    ) -> Result<FirewallPolicyId, Refusal> {
        let (id, policy) = find(&self.firewall_policies, name, None)?;
        check_word(&new.name)?;
        if policy.rules.iter().any(|rule| rule.name == new.name) {
            let (what, owner) =
                (format!("the name {:?}", new.name), format!("a rule of firewall policy {}", policy.name));
            return Err(Refusal::Taken { field: "name".to_owned(), what, owner });
        }
        let at = place(&policy, new)?;
        let rule = FirewallRule {
            id: FirewallRuleId::from_uuid((context.draw)()),
            name: new.name.clone(),
            key: self.counters.next_firewall_rule_key()?,
            rank: 0,
            enabled: new.enabled.unwrap_or(true),
            action: new.action,
            ethertype: ethertype(new)?,
            protocol: protocol(new)?,
            source: new.source_ip_address,
            destination: new.destination_ip_address,
        };
        let mut policy = (*policy).clone();
        policy.insert(at, rule);
        self.put_firewall_policy(policy)?;
        Ok(id)
    }

    /// Changes a rule of a policy.
    pub(crate) fn change_firewall_rule(
        &mut self,
        name: &str,
        rule: &str,
        change: &FirewallRuleChange,
    ) -> Result<FirewallPolicyId, Refusal> {
        let (id, policy) = find(&self.firewall_policies, name, None)?;
        let at = position(&policy, rule, None)?;
        let mut policy = (*policy).clone();
        if let Some(rule) = policy.rules.get_mut(at) {
            rule.enabled = change.enabled.unwrap_or(rule.enabled);
            rule.action = change.action.unwrap_or(rule.action);
        }
        self.put_firewall_policy(policy)?;
        Ok(id)
    }

    /// Takes a rule out of a policy.
    pub(crate) fn remove_firewall_rule(&mut self, name: &str, rule: &str) -> Result<FirewallPolicyId, Refusal> {
        let (id, policy) = find(&self.firewall_policies, name, None)?;
        let at = position(&policy, rule, None)?;
        let mut policy = (*policy).clone();
        policy.rules.remove(at);
        self.put_firewall_policy(policy)?;
        Ok(id)
    }

    /// Gives a router a firewall, in the place of the one that it has.
    pub(crate) fn set_firewall(&mut self, name: &str, new: &NewFirewall) -> Result<RouterId, Refusal> {
        let (id, router) = find(&self.routers, name, None)?;
        let policy = |name: &Option<String>, field: &str| {
            name.as_ref().map(|name| find(&self.firewall_policies, name, Some(field)).map(|(id, _)| id)).transpose()
        };
        let ingress = policy(&new.ingress_firewall_policy, "ingress_firewall_policy")?;
        let egress = policy(&new.egress_firewall_policy, "egress_firewall_policy")?;
        let mut router = (*router).clone();
        router.firewall = Some(Firewall { ingress, egress });
        self.routers.insert(id, Arc::new(router));
        Ok(id)
    }

    /// Takes a router's firewall away: all may cross its border.
    pub(crate) fn clear_firewall(&mut self, name: &str) -> Result<RouterId, Refusal> {
        let (id, router) = find(&self.routers, name, None)?;
        if router.firewall.is_none() {
            let object = format!("router {}", router.name);
            return Err(Refusal::State { object, problem: "it has no firewall".to_owned(), field: None });
        }
        let mut router = (*router).clone();
        router.firewall = None;
        self.routers.insert(id, Arc::new(router));
        Ok(id)
    }

    fn put_firewall_policy(&mut self, policy: FirewallPolicy) -> Result<(), Refusal> {
        let object = format!("firewall policy {}", policy.name);
        policy.check().map_err(|error| Refusal::invalid("rule", format!("{object}: {error}")))?;
        self.firewall_policies.insert(policy.id, Arc::new(policy));
        Ok(())
    }
}

/// Where a rule is in a policy, by name or id.
fn position(policy: &FirewallPolicy, name: &str, field: Option<&str>) -> Result<usize, Refusal> {
    let id: Option<FirewallRuleId> = name.parse().ok();
    let at = policy.rules.iter().position(|rule| rule.name == name || Some(rule.id) == id);
    let field = field.map(str::to_owned);
    at.ok_or_else(|| Refusal::Missing { kind: FirewallRuleId::KIND, name: clip(name), field })
}

/// Where a new rule goes.
fn place(policy: &FirewallPolicy, new: &NewFirewallRule) -> Result<usize, Refusal> {
    match (&new.insert_before, &new.insert_after) {
        (Some(_), Some(_)) => Err(Refusal::invalid("insert_after", "it is given, and insert_before too")),
        (Some(before), None) => position(policy, before, Some("insert_before")),
        (None, Some(after)) => position(policy, after, Some("insert_after")).map(|at| at + 1),
        (None, None) => Ok(policy.rules.len()),
    }
}

fn ethertype(new: &NewFirewallRule) -> Result<Ethertype, Refusal> {
    let ethertype = match new.ip_version {
        None | Some(4) => Ethertype::IPv4,
        Some(6) => Ethertype::IPv6,
        Some(other) => return Err(Refusal::invalid("ip_version", format!("{other} is neither 4 nor 6"))),
    };
    let prefixes =
        [("source_ip_address", new.source_ip_address), ("destination_ip_address", new.destination_ip_address)];
    for (field, prefix) in prefixes {
        let Some(prefix) = prefix else { continue };
        if !ethertype.holds(prefix) {
            return Err(Refusal::invalid(field, format!("{prefix} does not fit a rule of {ethertype:?}")));
        }
        if prefix != prefix.trunc() {
            let problem = format!("{prefix} has host bits set: the range is {}", prefix.trunc());
            return Err(Refusal::invalid(field, problem));
        }
    }
    Ok(ethertype)
}

fn protocol(new: &NewFirewallRule) -> Result<Carried, Refusal> {
    let name = new.protocol.as_deref().unwrap_or("any");
    let ends = [("source_port", &new.source_port), ("destination_port", &new.destination_port)];
    if !matches!(name, "tcp" | "udp")
        && let Some((field, _)) = ends.iter().find(|(_, port)| port.is_some())
    {
        return Err(Refusal::invalid(*field, format!("protocol {:?} has no ports", clip(name))));
    }
    let [source, destination] = ends.map(|(field, port)| range(field, port.as_deref()));
    let ends = Ends { source: source?, destination: destination? };
    match name {
        "any" => Ok(Carried::Any),
        "tcp" => Ok(Carried::Tcp(ends)),
        "udp" => Ok(Carried::Udp(ends)),
        "icmp" => Ok(Carried::Icmp),
        number => number.parse().map(Carried::Number).map_err(|_| {
            let problem = format!("{:?} is not any, tcp, udp, icmp or a number from 0 to 255", clip(number));
            Refusal::invalid("protocol", problem)
        }),
    }
}

/// A port, or two with a colon between them.
fn range(field: &str, text: Option<&str>) -> Result<PortRange, Refusal> {
    let Some(text) = text else { return Ok(PortRange::ALL) };
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    let (Ok(first), Ok(last)) = (first.parse(), last.parse()) else {
        let problem = format!("{:?} is no port and no range of ports, as 80 or 8000:8999", clip(text));
        return Err(Refusal::invalid(field, problem));
    };
    PortRange::new(first, last).map_err(|error| Refusal::invalid(field, error.to_string()))
}
